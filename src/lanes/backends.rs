//! Upstream connections, as SHOW SERVERS and SHOW POOLS list them.

use std::num::NonZeroI32;
use std::sync::Arc;

use super::guard::Guard;
use super::ids::LinkId;
use super::ledger::Phase;
use super::near::End;
use super::pause::Frozen;
use crate::clock::Moment;

/// One slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its link; of a pooled connection the one it had last.
    pub link: LinkId,
    /// Where it is on its way; never waiting.
    pub phase: Phase,
    /// The lane it counts in.
    pub lane: Arc<str>,
    /// Normalised application.
    pub application: Arc<str>,
    /// User.
    pub user: Arc<str>,
    /// Database.
    pub database: Arc<str>,
    /// Backend pid, once known.
    pub pid: Option<i32>,
    /// Our end of it; none while unknown.
    pub near: Option<End>,
    /// When it was dialled.
    pub dialled_at: Moment,
}

/// Slots there are for databases, as SHOW DATABASES tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Slots all lanes together may have: the sum of their quotas, but not more than the budget, where that is known.
    pub most: u32,
    /// The sum of their reserves.
    pub reserved: u32,
    /// Slots that could still be taken.
    pub left: u32,
    /// Whether every lane that may be paused is.
    pub all_paused: bool,
}

impl Guard {
    /// All slots, by link.
    pub fn backends(&self) -> Vec<Backend> {
        let with_slots = self.ledger.iter().filter(|(_, link)| link.phase.has_slot());
        with_slots
            .map(|(id, link)| Backend {
                link: id,
                phase: link.phase,
                lane: self.lane_name(link.lane()),
                application: link.who.application.clone(),
                user: link.who.user.clone(),
                database: link.who.database.clone(),
                pid: link.pid.map(NonZeroI32::get),
                near: self.ends.of(link.near),
                dialled_at: link.dialled_at,
            })
            .collect()
    }

    /// See [`Room`]. `per_database` is applied where a lane has it: the figures are for one database.
    pub fn room(&self) -> Room {
        let lanes = || self.file_order.iter().map(|id| self.lane_ref(*id));
        let most: u32 = lanes()
            .map(|lane| match lane.settings.per_database {
                0 => lane.quota(),
                limit => lane.quota().min(limit),
            })
            .fold(0, u32::saturating_add);
        let budget = self.usage.budget(&self.limits);
        let most = budget.map_or(most, |budget| most.min(budget));
        let mut pausable = lanes().filter(|lane| !lane.settings.protected).peekable();
        Room {
            most,
            reserved: lanes().map(|lane| lane.floor()).fold(0, u32::saturating_add),
            left: budget.unwrap_or(most).saturating_sub(self.ledger.counts().own),
            all_paused: pausable.peek().is_some() && pausable.all(|lane| lane.pause.is_some()),
        }
    }

    /// Pauses every lane that is not protected: PgBouncer's PAUSE. A pause in force stays.
    pub fn pause_all(&mut self, now: Moment, by: &str, reason: &str) -> Frozen {
        let mut done = Frozen::default();
        for id in self.file_order.clone() {
            let lane = self.lane_ref(id);
            let name = lane.settings.name.clone();
            match &lane.pause {
                _ if lane.settings.protected => {}
                Some(pause) => done.already.push((name, pause.by.clone())),
                None => {
                    self.pause(now, id, None, None, by, reason);
                    done.paused.push(name);
                }
            }
        }
        done
    }
}
