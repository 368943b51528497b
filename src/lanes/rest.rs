//! Session pooling: what becomes of an upstream connection between two clients.
//!
//! ```text
//!                      pool                 a waiter of the same key
//!   Established ─────────────────► Pooled ──────────────────────────► Taken (by the new link) ─ revived ─► Established
//!        │ refused                  ▲ │ evict: room is needed, time is up        │ stale: dead, or not as it should be
//!        ▼                 given up │ ▼                                          ▼
//!     (closed)            unused    └ Closing ─► (forgotten)                  Waiting again, in its old place
//! ```
//!
//! Invariants: the slot is counted all the way, first for the old link, which then names the pooled connection, then for the new one. A
//! pooled connection is nobody's: whoever waits and could have its room gets it at once.

use std::collections::BTreeMap;
use std::num::NonZeroI32;
use std::sync::Arc;

use super::guard::{Action, Arrival, Arrived, Guard};
use super::ids::{LaneId, LinkId};
use super::ledger::{Link, Phase, Who};
use super::near::Near;
use super::needs::{Lack, whose};
use super::pass::{Claims, Earmarks};
use super::pool::PoolKey;
use super::queue::Place;
use super::sample::Sample;
use super::settings::Pooling;
use crate::clock::Moment;
use crate::reason::Reason;

/// Waiting links per lane looked at for connections they could use, or have the room of.
pub(super) const WAITERS_MAX: usize = 64;

/// PostgreSQL's NAMEDATALEN less one: what it keeps of a name, in bytes.
const NAME_LEN_MAX: usize = 63;

/// Whether a role of that name is what a startup packet that asked for `user` was logged in as. True where names cannot be compared.
fn is_called(user: &str, name: &str) -> bool {
    let asked = user.as_bytes();
    user.contains(char::REPLACEMENT_CHARACTER) || &asked[..asked.len().min(NAME_LEN_MAX)] == name.as_bytes()
}

/// Slots that are closing already, and for whom: one closing slot helps one waiter.
#[derive(Debug, Default)]
pub(super) struct Relief(BTreeMap<Lack, u32>);

impl Guard {
    /// A link's client has ended well and its backend has been reset: keeps it for the next client of that key. `application` is what the
    /// startup packet makes it, `lane` where that led: a link that was moved since is not kept. False: close it. What is kept may be handed over or evicted in this very call.
    pub fn pool(
        &mut self,
        now: Moment,
        link: LinkId,
        lane: LaneId,
        key: PoolKey,
        application: &Arc<str>,
    ) -> bool {
        let Some(known) = self.ledger.get(link).filter(|known| known.phase == Phase::Established) else {
            return false;
        };
        let (home, who, born) = (known.home, known.who.clone(), known.dialled_at);
        let is_good = known.pid.is_some() && !known.extra().renamed;
        if home != lane || !is_good || who.replication || !self.may_rest(now, home, &who, born) {
            return false;
        }
        self.drop_hold(now, link);
        self.breaker.gone(now, link);
        self.ledger.update(link, |known| {
            known.visit(None);
            known.phase = Phase::Pooled;
        });
        let nobodys = Who { address: None, application: application.clone(), ..(*who).clone() };
        // The ledger forgets who has no link left, and nobody else holds it.
        drop(who);
        self.ledger.put_who(link, nobodys);
        self.pool.insert(link, home, key, now);
        self.settle(now);
        true
    }

    /// Whether connections of a lane and database are kept now, one of that age among them.
    fn may_rest(&self, now: Moment, lane: LaneId, who: &Who, born: Moment) -> bool {
        let state = self.lane_ref(lane);
        let young = |pooling: &Pooling| {
            now.since(born) < pooling.lifetime || pooling.keeps_reserve && self.is_irreplaceable(lane)
        };
        !self.pool.closed
            && !state.retired
            && state.pause.is_none()
            && !state.shed.is_on()
            && state.settings.pooling.as_ref().is_some_and(young)
            && !self.pool.is_barred(now, &who.database)
    }

    /// The pooled connection a waiting link may have now.
    pub(super) fn reusable(
        &self,
        now: Moment,
        link: LinkId,
        claims: &Claims,
        earmarks: &Earmarks,
    ) -> Option<LinkId> {
        let found = self.resting_for(link)?;
        self.stop_reuse(now, link, claims, earmarks).is_none().then_some(found)
    }

    /// The pooled connection that fits a waiting link.
    pub(super) fn resting_for(&self, link: LinkId) -> Option<LinkId> {
        let known = self.ledger.get(link)?;
        let found = self.pool.find(known.home, known.extra().key.as_ref()?)?;
        // Other rules since: it counts for another application.
        let same = |pooled: &Link| pooled.who.application == known.who.application;
        self.ledger.get(found).is_some_and(same).then_some(found)
    }

    /// Moves the slot of `pooled` to `link`, which waits.
    pub(super) fn hand_over(&mut self, now: Moment, link: LinkId, pooled: LinkId) {
        let Some(kept) = self.ledger.get(pooled).filter(|kept| kept.phase == Phase::Pooled) else { return };
        let (pid, near, dialled_at) = (kept.pid, kept.near, kept.dialled_at);
        let granted = self.ledger.update(link, |known| {
            known.phase = Phase::Taken;
            known.pid = pid;
            known.near = near;
            known.dialled_at = dialled_at;
            known.extra_mut().taken = Some(pooled);
            (known.home, known.extra().place, !std::mem::replace(&mut known.admitted, true))
        });
        let Some((home, place, first)) = granted else { return };
        self.pool.remove(pooled);
        self.ledger.remove(pooled);
        self.note_granted(now, link, home, place, first);
        if self.caller != Some(link) {
            self.act(Action::GrantPooled(link, pooled));
        }
    }

    /// The connection a link was given is as it should be.
    pub fn revived(&mut self, now: Moment, link: LinkId) {
        let _ = now;
        if self.ledger.get(link).is_some_and(|known| known.phase == Phase::Taken) {
            self.ledger.update(link, |known| known.establish(known.pid));
        }
    }

    /// The connection a link was given is not: PostgreSQL has closed it (`gone`), or it must be closed, under its old name. The link takes
    /// its old place in the queue.
    pub fn stale(&mut self, now: Moment, link: LinkId, gone: bool) -> Arrived {
        let Some(known) = self.ledger.get(link).filter(|known| known.phase == Phase::Taken) else {
            return Arrived::Refused(crate::reason::Refusal::new(Reason::Internal, "", ""));
        };
        let (home, place) = (known.home, known.extra().place);
        if gone {
            self.bury(now, link);
        } else {
            self.give_back(now, link, Phase::Closing);
        }
        self.ledger.update(link, |known| {
            known.phase = Phase::Waiting;
            known.pid = None;
            known.set_local(None, Near::default());
            known.extra_mut().taken = None;
        });
        self.lane_mut(home).queue.insert(place, link);
        self.decide(now, link, false)
    }

    /// A link that was given a pooled connection went away before it had taken it.
    pub(super) fn untaken(&mut self, now: Moment, link: LinkId) {
        let Some(known) = self.ledger.get(link).filter(|known| known.phase == Phase::Taken) else { return };
        let (home, key, who) = (known.home, known.extra().key.clone(), known.who.clone());
        let (born, pooled) = (known.dialled_at, known.extra().taken);
        let (Some(key), Some(pooled)) = (key, pooled) else { return };
        let rests = self.may_rest(now, home, &who, born);
        // As in `pool`.
        drop(who);
        self.give_back(now, link, if rests { Phase::Pooled } else { Phase::Closing });
        if rests {
            self.pool.insert(pooled, home, key, now);
            self.act(Action::PooledAgain(pooled));
        } else {
            self.act(Action::ClosePooled(pooled));
        }
        self.forget_quietly(now, link);
        self.settle(now);
    }

    /// Moves a slot back to the name it had while it was pooled. The link's own weight is the caller's to change.
    fn give_back(&mut self, now: Moment, link: LinkId, phase: Phase) {
        let Some(known) = self.ledger.get(link) else { return };
        let Some(pooled) = known.extra().taken else { return };
        let (home, pid, near, dialled_at) = (known.home, known.pid, known.near, known.dialled_at);
        let who = Who { address: None, ..(*known.who).clone() };
        self.ledger.update(link, |known| known.pid = None);
        self.ledger.insert(pooled, who, home, Place::NOWHERE, now);
        self.ledger.update(pooled, |kept| {
            kept.phase = phase;
            kept.pid = pid;
            kept.near = near;
            kept.dialled_at = dialled_at;
        });
    }

    /// Closes a pooled connection; its slot is free when PostgreSQL has closed it.
    pub(super) fn evict(&mut self, pooled: LinkId) {
        if self.pool.remove(pooled).is_some() {
            self.ledger.update(pooled, |kept| kept.phase = Phase::Closing);
            self.act(Action::ClosePooled(pooled));
        }
    }

    fn evict_where(&mut self, mut which: impl FnMut(&Self, LinkId, LaneId) -> bool) -> u32 {
        let all = self.pool.iter().filter(|(link, resting)| which(self, *link, resting.lane));
        let chosen: Vec<_> = all.map(|(link, _)| link).collect();
        chosen.iter().for_each(|link| self.evict(*link));
        u32::try_from(chosen.len()).unwrap_or(u32::MAX)
    }

    /// Closes the pooled connections of a lane, or of all; the number. With `for_good` nothing is pooled any more.
    pub fn drain_pool(&mut self, now: Moment, lane: Option<LaneId>, for_good: bool) -> u32 {
        self.pool.closed |= for_good;
        let count = self.evict_where(|_, _, one| lane.is_none_or(|lane| lane == one));
        self.settle(now);
        count
    }

    /// PostgreSQL needs a database without sessions: closes the pooled ones, and keeps none until then. The number closed.
    pub fn bar_database(&mut self, now: Moment, database: &str, until: Moment) -> u32 {
        self.pool.bar(now, database.into(), until);
        let is_its = |link: &Link| &*link.who.database == database;
        let count = self.evict_where(|guard, link, _| guard.ledger.get(link).is_some_and(is_its));
        if count > 0 {
            self.settle(now);
        }
        count
    }

    /// Closes what is too old, or unused for too long. Of each key `min_size` stay, however long unused, and of a lane that keeps its
    /// reserve open as many as that. Those of it that are too old are replaced one at a time, and only while PostgreSQL has room.
    pub(super) fn expire_pool(&mut self, now: Moment) {
        if self.pool.is_empty() {
            return;
        }
        let mut kept: BTreeMap<(LaneId, PoolKey), u32> = BTreeMap::new();
        let mut all: Vec<_> = self.pool.iter().map(|(link, resting)| (link, resting.clone())).collect();
        // The most recently used first: those are the ones that stay.
        all.sort_by_key(|(link, _)| std::cmp::Reverse(self.pool.age(*link)));
        for (link, resting) in all {
            let Some(pooling) = &self.lane_ref(resting.lane).settings.pooling else { continue };
            let old = self.ledger.get(link).is_none_or(|kept| now.since(kept.dialled_at) >= pooling.lifetime);
            let unused = now.since(resting.since) >= pooling.idle_timeout;
            let min = pooling.min_size;
            let needed = pooling.keeps_reserve && !self.is_spare(resting.lane);
            let old = old && !(needed && self.is_irreplaceable(resting.lane));
            let mine = kept.entry((resting.lane, resting.key)).or_default();
            if old || (unused && !needed && *mine >= min) {
                self.evict(link);
            } else {
                *mine += 1;
            }
        }
    }

    /// Whether a lane has more than its reserve, those left out that are closing.
    fn is_spare(&self, lane: LaneId) -> bool {
        let counts = self.ledger.lane(lane);
        counts.residents.saturating_sub(counts.ending) > self.lane_ref(lane).floor()
    }

    /// Whether a lane would do without a connection within its reserve for more than a moment if that was closed now: PostgreSQL has no room,
    /// or another one of the lane is closing.
    fn is_irreplaceable(&self, lane: LaneId) -> bool {
        let room = self.usage.budget(&self.limits).is_none_or(|budget| self.ledger.counts().own <= budget);
        let is_well = room && self.breaker.trouble().is_none() && self.ledger.lane(lane).ending == 0;
        !is_well && !self.is_spare(lane)
    }

    /// Closes what may not rest any more: its lane is paused, shedding or over, or all slots are above the budget. In the last case a lane
    /// keeps what its reserve promises: if those who bypass pgweir have taken the rest, they would take that too.
    pub(super) fn trim_pool(&mut self) {
        if self.pool.is_empty() {
            return;
        }
        let shedding = self.order.iter().map(|lane| self.lane_ref(*lane)).filter(|lane| lane.shed.is_on());
        let shed_from = shedding.map(|lane| lane.settings.priority).min();
        let may_not = |guard: &Self, lane| {
            let state = guard.lane_ref(lane);
            let is_stopped = state.retired || state.pause.is_some() || state.settings.pooling.is_none();
            is_stopped || shed_from.is_some_and(|priority| state.settings.priority >= priority)
        };
        // By lane first: there are few, and nearly always none of them is concerned.
        if self.pool.lanes().any(|lane| may_not(self, lane)) {
            self.evict_where(|guard, _, lane| may_not(guard, lane));
        }
        self.trim_for_shed();
        let over = |lane| {
            let counts = self.ledger.lane(lane);
            let load = counts.load() - counts.ending.min(counts.load());
            (lane, load.saturating_sub(self.lane_ref(lane).quota()))
        };
        let over: Vec<_> = self.pool.lanes().map(over).filter(|(_, over)| *over > 0).collect();
        for (lane, over) in over {
            for _ in 0..over {
                let Some(oldest) = self.oldest(|_, resting| resting == lane) else { break };
                self.evict(oldest);
            }
        }
        let Some(budget) = self.usage.budget(&self.limits) else { return };
        let counts = self.ledger.counts();
        for _ in 0..(counts.own - counts.own_ending).saturating_sub(budget) {
            let Some(oldest) = self.oldest(|_, lane| self.is_spare(lane)) else { break };
            self.evict(oldest);
        }
    }

    /// Nobody is shed for what nobody uses: where usage is too high for a lane by what is pooled alone, so much of it is closed.
    fn trim_for_shed(&mut self) {
        if self.was_stale || self.usage.is_latched() {
            return;
        }
        let shed = self.order.iter().map(|lane| self.lane_ref(*lane)).filter(|lane| lane.shed.is_on());
        let bounds: Vec<_> = shed.map(|lane| lane.settings.shed_below).collect();
        let is_below = |guard: &Self, own: u32, bound: f64| {
            guard.usage.percent(own).is_none_or(|percent| percent < bound)
        };
        for bound in bounds {
            let counts = self.ledger.counts();
            let mut own = counts.own.saturating_sub(counts.own_ending);
            let spare = self.pool.lanes().map(|lane| self.dispensable(lane)).sum();
            if !is_below(self, own.saturating_sub(spare), bound) {
                continue;
            }
            while !is_below(self, own, bound)
                && let Some(oldest) = self.oldest(|_, lane| self.dispensable(lane) > 0)
            {
                self.evict(oldest);
                own -= 1;
            }
        }
    }

    /// How many of a lane's pooled connections nobody would miss: all but those of a reserve that is kept open.
    fn dispensable(&self, lane: LaneId) -> u32 {
        let (counts, state) = (self.ledger.lane(lane), self.lane_ref(lane));
        let pooled = self.pooled(lane);
        match &state.settings.pooling {
            Some(pooling) if pooling.keeps_reserve => {
                pooled.min(counts.residents.saturating_sub(counts.ending).saturating_sub(state.floor()))
            }
            _ => pooled,
        }
    }

    /// Whether a lane could be shed for one connection more that nobody uses: what is made ahead would be closed for it, again and again.
    fn would_shed(&self) -> bool {
        let thresholds = self.order.iter().filter_map(|lane| self.lane_ref(*lane).thresholds());
        let usage = self.usage.percent(self.ledger.counts().own + 1);
        let lowest = thresholds.map(|limits| limits.below).min_by(f64::total_cmp);
        lowest.zip(usage).is_some_and(|(lowest, usage)| usage >= lowest)
    }

    /// Closes the pooled connection that is missed least, of those beyond a reserve or of a lane that waits itself.
    pub(super) fn evict_oldest(&mut self) {
        let fits = |lane: LaneId| self.is_spare(lane) || !self.lane_ref(lane).queue.is_empty();
        if let Some(oldest) = self.oldest(|_, lane| fits(lane)) {
            self.evict(oldest);
        }
    }

    /// Of those that fit: of the worst lane, the one unused for longest.
    fn oldest(&self, fits: impl Fn(&Link, LaneId) -> bool) -> Option<LinkId> {
        let all = self
            .pool
            .iter()
            .filter(|(link, resting)| self.ledger.get(*link).is_some_and(|known| fits(known, resting.lane)));
        let worst = |lane: LaneId| std::cmp::Reverse(self.lane_ref(lane).settings.priority);
        let found = all.min_by_key(|(link, resting)| (worst(resting.lane), self.pool.age(*link)));
        found.map(|(link, _)| link)
    }

    /// A role that was renamed or dropped is another, or none, to whoever uses its name next: what the sample shows running under
    /// another name than it was logged in by is closed where it is pooled, and not pooled where it is in use.
    pub(super) fn mark_renamed(&mut self, sample: &Sample) {
        for session in &sample.sessions {
            let Some(link) = NonZeroI32::new(session.pid).and_then(|pid| self.ledger.by_pid(pid)) else {
                continue;
            };
            let Some(known) = self.ledger.get(link) else { continue };
            // A pid may have been another's when the sample was asked for.
            if known.dialled_at > sample.asked_at || is_called(&known.who.user, &session.user) {
                continue;
            }
            match known.phase {
                Phase::Pooled => self.evict(link),
                Phase::Established => {
                    self.ledger.update(link, |known| known.extra_mut().renamed = true);
                }
                _ => {}
            }
        }
    }

    /// Closes a pooled connection that counts against the CONNECTION LIMIT which stops a link's login, its role's or else its database's;
    /// none where there is no such.
    pub fn relieve_limit(&mut self, now: Moment, link: LinkId, of_role: bool) -> Option<LinkId> {
        let who = self.ledger.get(link)?.who.clone();
        let counts = |pooled: &Link, _| match of_role {
            true => pooled.who.user == who.user,
            false => pooled.who.database == who.database,
        };
        let oldest = self.oldest(counts)?;
        // As in `pool`.
        drop(who);
        self.evict(oldest);
        self.settle(now);
        Some(oldest)
    }

    /// Whether a link is known and has a slot.
    pub fn has_slot(&self, link: LinkId) -> bool {
        self.ledger.get(link).is_some_and(|known| known.phase.has_slot())
    }

    /// The pooled connection to close for a waiter stopped by `reason`; none where nothing helps, or enough is closing already.
    pub(super) fn relief(&self, link: LinkId, reason: Reason, relief: &mut Relief) -> Option<LinkId> {
        let known = self.ledger.get(link)?;
        let lack = Lack { lane: known.home, reason, whose: whose(reason, known)? };
        let used = relief.0.entry(lack.shared()).or_default();
        if *used < self.ending(&lack) {
            *used += 1;
            return None;
        }
        self.oldest(|pooled, lane| self.would_help(&lack, lane) && lack.concerns(pooled))
    }

    /// How many connections of a lane are pooled.
    pub fn pooled(&self, lane: LaneId) -> u32 {
        self.pool.count(lane)
    }

    /// Backends of pooled connections, each with its lane and application.
    pub fn pooled_backends(&self) -> Vec<(i32, Arc<str>, Arc<str>)> {
        let backend = |(link, resting): (LinkId, &super::pool::Resting)| {
            let known = self.ledger.get(link)?;
            Some((known.pid?.get(), self.lane_name(resting.lane), known.who.application.clone()))
        };
        self.pool.iter().filter_map(backend).collect()
    }

    /// A connection made ahead of clients: to keep `min_size` of a key pooled, granted only where nobody waits, or to fill a lane's reserve
    /// that is kept open, where nobody waits below his; and where nothing stops it.
    pub fn arrive_ahead(&mut self, now: Moment, link: LinkId, who: Arrival) -> bool {
        let home = self.known(who.lane);
        let (lane, key) = (self.lane_ref(home), who.key);
        let (Some(key), Some(pooling)) = (key, lane.settings.pooling.as_ref()) else { return false };
        let to_fill = pooling.keeps_reserve && self.unfilled(home) > 0;
        let nobody_waits = if to_fill {
            let waits = |lane: &LaneId| !self.lane_ref(*lane).queue.is_empty() && self.unfilled(*lane) > 0;
            !self.order.iter().any(waits)
        } else {
            self.pool.count_of(home, &key) < pooling.min_size && self.ledger.counts().waiting == 0
        };
        if !nobody_waits || !lane.is_open() || self.limits.observe {
            return false;
        }
        let who = Who {
            application: who.application,
            user: who.user,
            database: who.database,
            address: None,
            replication: false,
        };
        if !self.may_rest(now, home, &who, now) || (!to_fill && self.would_shed()) {
            return false;
        }
        let place = Place::new(false, now, self.next_seq());
        self.ledger.insert(link, who, home, place, now);
        let nothing = (Claims::default(), Earmarks::default());
        let stopped =
            self.stop(now, link, &nothing.0, &nothing.1).is_some() || self.pace(now, link).is_some();
        if stopped || self.breaker.trouble().is_some() {
            self.forget_quietly(now, link);
            return false;
        }
        self.caller = Some(link);
        self.grant(now, link);
        self.caller = None;
        self.evaluate_shed(now);
        true
    }
}
