//! Whose idle links would help somebody who waits, and whether a leak keeps somebody waiting.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::guard::{Guard, Harm};
use super::ids::{LaneId, LinkId};
use super::ledger::Link;
use crate::clock::Moment;
use crate::reason::Reason;

/// Waiting links looked at per lane: more than that cannot be helped by one sweep anyway.
const WAITERS_MAX: usize = 64;

/// Slots that waiting links could have if idle links were closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReclaimNeed {
    /// Lanes whose links may be closed, each with the idle time after which.
    pub lanes: Vec<(LaneId, Duration)>,
    /// Which of their links would help; none: all.
    pub among: Option<BTreeSet<LinkId>>,
    /// How many to close at most; slots that are closing already are taken off.
    pub count: u32,
}

impl ReclaimNeed {
    /// Whether links of `lane` may help.
    pub fn concerns(&self, lane: LaneId) -> bool {
        self.lanes.iter().any(|(one, _)| *one == lane)
    }
}

/// What waiting links of a lane lack, those alike together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Lack {
    pub lane: LaneId,
    pub reason: Reason,
    /// The application, user, database or address that is full; empty where it is the lane or the budget.
    pub whose: String,
}

impl Lack {
    /// Whether only slots of the link's own lane help.
    fn own_only(&self) -> bool {
        !matches!(self.reason, Reason::ApplicationFull | Reason::UpstreamBudget)
    }

    /// Whether a link is one of those whose slot is lacking.
    pub(super) fn concerns(&self, link: &Link) -> bool {
        link.phase.has_slot()
            && (!self.own_only() || link.home == self.lane)
            && whose(self.reason, link).as_ref() == Some(&self.whose)
    }

    /// The same for all whom the same slot would help.
    pub(super) fn shared(&self) -> Self {
        let lane = if self.own_only() { self.lane } else { LaneId::default() };
        Self { lane, ..self.clone() }
    }
}

impl Guard {
    /// What idle links of lanes with `reclaim_idle_after` could do for those who wait: links of the waiting link's own lane, and of worse
    /// lanes where these stand in its way.
    pub fn wants_reclaim(&self, now: Moment) -> Vec<ReclaimNeed> {
        let mut lacks: BTreeMap<Lack, u32> = BTreeMap::new();
        for lane in &self.order {
            for (_, link) in self.lane_ref(*lane).queue.iter().take(WAITERS_MAX) {
                let Some(known) = self.ledger.get(link) else { continue };
                let reason = self.why_waiting(now, link);
                if let Some(whose) = whose(reason, known) {
                    *lacks.entry(Lack { lane: *lane, reason, whose }).or_default() += 1;
                }
            }
        }
        lacks.into_iter().filter_map(|(lack, waiting)| self.need(&lack, waiting)).collect()
    }

    fn need(&self, lack: &Lack, waiting: u32) -> Option<ReclaimNeed> {
        let own_only = lack.own_only();
        let priority = self.lane_ref(lack.lane).settings.priority;
        let helps = |lane: LaneId| {
            let state = self.lane_ref(lane);
            let worse = !own_only && state.settings.priority > priority;
            // What another lane has of its own reserve would go back to that reserve.
            let beyond_floor = self.ledger.lane(lane).residents > state.floor();
            lane == lack.lane || (worse && beyond_floor)
        };
        let lanes: Vec<_> = self
            .order
            .iter()
            .filter(|lane| helps(**lane))
            .filter_map(|lane| Some((*lane, self.lane_ref(*lane).settings.reclaim_idle_after?)))
            .collect();
        let among = (!lack.whose.is_empty()).then(|| {
            let links = self.ledger.iter().filter(|(_, link)| lack.concerns(link));
            links.map(|(id, _)| id).collect()
        });
        let count = waiting.saturating_sub(self.ending(lack));
        (count > 0 && !lanes.is_empty()).then_some(ReclaimNeed { lanes, among, count })
    }

    /// Whose links should end with their transactions so that lanes below their reserve get it: PostgreSQL has nothing left (somebody who bypasses
    /// pgweir grew), and no lane admits its way out of that. Lanes, worst priority first, each with how many links it has to give, and how
    /// many are wanted of all of them. None while nobody waits for that.
    pub fn wants_yield(&self, now: Moment) -> Option<(Vec<(LaneId, u32)>, u32)> {
        let mut wanted = 0_u32;
        let mut best = u8::MAX;
        for lane in &self.order {
            let state = self.lane_ref(*lane);
            let first = state.queue.iter().next().map(|(_, link)| link);
            let stopped = first.is_some_and(|link| self.why_waiting(now, link) == Reason::UpstreamBudget);
            if stopped && self.unfilled(*lane) > 0 {
                wanted += self.unfilled(*lane).min(u32::try_from(state.queue.len()).unwrap_or(u32::MAX));
                best = best.min(state.settings.priority);
            }
        }
        let wanted = wanted.saturating_sub(self.ledger.counts().own_ending);
        let gives = |lane: &LaneId| {
            let state = self.lane_ref(*lane);
            let beyond = self.ledger.lane(*lane).residents.saturating_sub(state.floor());
            let may = !state.settings.protected && state.settings.reclaim_idle_after.is_some();
            (may && state.settings.priority > best && beyond > 0).then_some((*lane, beyond))
        };
        let lanes: Vec<_> = self.order.iter().rev().filter_map(gives).collect();
        (wanted > 0 && !lanes.is_empty()).then_some((lanes, wanted))
    }

    /// Slots that will be free soon and help.
    pub(super) fn ending(&self, lack: &Lack) -> u32 {
        if lack.whose.is_empty() {
            let lane = self.ledger.lane(lack.lane);
            return if lack.own_only() { lane.ending } else { self.ledger.counts().own_ending };
        }
        let links = self.ledger.iter().filter(|(_, link)| lack.concerns(link));
        u32::try_from(links.filter(|(_, link)| link.phase.is_ending()).count()).unwrap_or(u32::MAX)
    }

    /// Whether a slot of `lane`, if nobody uses it, would help: what another lane has of its own reserve would go back to that reserve.
    pub(super) fn would_help(&self, lack: &Lack, lane: LaneId) -> bool {
        let counts = self.ledger.lane(lane);
        let beyond_floor = counts.residents.saturating_sub(counts.ending) > self.lane_ref(lane).floor();
        lane == lack.lane || (!lack.own_only() && beyond_floor)
    }

    /// Whether a leak of an application in a lane keeps others from working.
    pub fn harm(&self, lane: LaneId, application: &str) -> Harm {
        let state = self.lane_ref(lane);
        let lane_full = self.ledger.lane(lane).load() >= state.quota() && !state.queue.is_empty();
        let counts = self.ledger.counts().application(application);
        let quota = self.applications.iter().find(|app| &*app.name == application).and_then(|app| app.quota);
        let application_full = quota.is_some_and(|quota| counts.slots >= quota && counts.waiting > 0);
        Harm {
            full_with_waiters: lane_full || application_full,
            usage_above_shed_below: self
                .usage_percent()
                .is_some_and(|usage| usage > state.settings.shed_below),
        }
    }
}

/// Of what a link has too little, if a closed link could give it.
pub(super) fn whose(reason: Reason, link: &Link) -> Option<String> {
    Some(match reason {
        Reason::LaneFull => String::new(),
        Reason::UpstreamBudget if !link.who.replication => String::new(),
        Reason::ApplicationFull if !link.who.replication => link.who.application.to_string(),
        Reason::ApplicationLimit => link.who.application.to_string(),
        Reason::UserLimit => link.who.user.to_string(),
        Reason::DatabaseLimit => link.who.database.to_string(),
        Reason::AddressLimit => link.who.address?.to_string(),
        _ => return None,
    })
}
