//! A link's life, from its arrival to the end of its slot.

use std::net::SocketAddr;
use std::num::NonZeroI32;

use super::breaker::Trouble;
use super::guard::{Action, Arrival, Arrived, DialFailure, Guard, Lane, SELF};
use super::ids::LinkId;
use super::ledger::{Ledger, Phase, Who};
use super::near::Near;
use super::queue::Place;
use crate::clock::Moment;
use crate::reason::{Reason, Refusal};

impl Guard {
    /// A client wants a slot.
    pub fn arrive(&mut self, now: Moment, link: LinkId, who: Arrival) -> Arrived {
        if let Some(known) = self.ledger.get(link) {
            // A shell that arrives twice has a bug; answering what is keeps the counts right.
            return if known.phase.has_slot() { Arrived::Granted } else { self.waiting_answer(now, link) };
        }
        let home = self.known(who.lane);
        let home = if self.lane_ref(home).retired { self.default } else { home };
        let place = Place::new(who.nested, now, self.next_seq());
        let alone = who.alone;
        let key = who.key;
        let who = Who {
            application: who.application,
            user: who.user,
            database: who.database,
            address: who.address.map(|address| address.to_canonical()),
            replication: who.replication,
        };
        self.ledger.insert(link, who, home, place, now);
        self.ledger.update(link, |known| known.alone = alone);
        if key.is_some() {
            self.ledger.update(link, |known| known.extra_mut().key = key);
        }
        self.lane_mut(home).queue.insert(place, link);
        self.decide(now, link, true)
    }

    /// Settles everything after `link` was put into its queue; its own fate is the answer.
    pub(super) fn decide(&mut self, now: Moment, link: LinkId, bounded: bool) -> Arrived {
        self.caller = Some(link);
        self.caller_refusal = None;
        self.reject_if_told_to(now, link);
        self.settle(now);
        let home = self.ledger.get(link).filter(|known| !known.phase.has_slot()).map(|known| known.home);
        if let Some(home) = home.filter(|_| bounded) {
            let lane = self.lane_ref(home);
            if lane.queue.len() > lane.settings.max_waiting as usize {
                self.refuse_waiting(now, link, Reason::QueueFull);
            }
        }
        self.refuse_if_overdue(now, link);
        self.caller = None;
        match self.caller_refusal.take() {
            Some(refusal) => Arrived::Refused(refusal),
            None if home.is_none() => {
                let taken = self.ledger.get(link).and_then(|known| known.extra().taken);
                taken.map_or(Arrived::Granted, Arrived::Reused)
            }
            None => self.waiting_answer(now, link),
        }
    }

    /// A lane whose wait_timeout is 0 has no queue: its clients are told at once, not at the next tick.
    fn refuse_if_overdue(&mut self, now: Moment, link: LinkId) {
        let waiting = self.ledger.get(link).filter(|known| !known.phase.has_slot());
        let Some((home, place)) = waiting.map(|known| (known.home, known.extra().place)) else { return };
        if self.wait_ends(home, place).is_some_and(|ends| ends <= now) {
            let lane = self.lane_ref(home);
            let is_held = !lane.is_open() && !lane.passes_pause(place);
            let reason = if is_held { Reason::PauseHoldTimeout } else { self.why_waiting(now, link) };
            self.refuse_waiting(now, link, reason);
        }
    }

    fn waiting_answer(&self, now: Moment, link: LinkId) -> Arrived {
        Arrived::Waiting(self.why_waiting(now, link))
    }

    /// A waiting client went away, or a granted link that never dialled, or never took the connection it was given.
    pub fn hang_up(&mut self, now: Moment, link: LinkId) {
        let phase = self.ledger.get(link).map(|known| known.phase);
        if phase == Some(Phase::Taken) {
            return self.untaken(now, link);
        }
        if matches!(phase, Some(Phase::Waiting | Phase::Dialling)) {
            self.forget(now, link);
            self.settle(now);
        }
    }

    /// The TCP connection is there, from `local`; none over a Unix socket.
    pub fn dialling(&mut self, now: Moment, link: LinkId, local: Option<SocketAddr>) {
        let _ = now;
        let near = self.ends.note(local);
        self.ledger.update(link, |known| {
            if known.phase == Phase::Dialling {
                known.phase = Phase::Login;
                known.set_local(local, near);
            }
        });
    }

    /// Upstream answered, with whatever says that it runs.
    pub fn upstream_answered(&mut self, now: Moment, link: LinkId) {
        // The answer of a full server is an authentication request like any other: only a login tells.
        let down = self.breaker.trouble() == Some(Trouble::Down) && !self.is_elsewhere(link);
        if down && self.ledger.get(link).is_some_and(|known| known.phase.has_slot()) {
            self.upstream_is_well();
            self.settle(now);
        }
    }

    /// Another server is dialled from now on, and these links, with their pids, are on it already; or none is. Slots are one server's: those that
    /// are ending on another one are not counted any more, and the others until they end. Their pids and addresses are nothing to the new
    /// one, where others may have the same.
    pub fn server_changed(&mut self, now: Moment, here: Option<&[(LinkId, i32)]>) {
        self.moved_at = now;
        self.here.clear();
        let phase_is = |ledger: &Ledger, wanted: fn(Phase) -> bool| {
            let links = ledger.iter().filter(|(_, known)| wanted(known.phase));
            links.map(|(link, _)| link).collect::<Vec<_>>()
        };
        let (dialling, ending) = (
            phase_is(&self.ledger, |phase| phase == Phase::Dialling),
            phase_is(&self.ledger, Phase::is_ending),
        );
        for link in dialling {
            // It dials the new one, or gives up by itself.
            self.ledger.update(link, |known| known.dialled_at = now);
        }
        for link in ending {
            self.forget_quietly(now, link);
        }
        // While there is none nothing is counted there, and the next one may be the last one.
        if let Some(here) = here {
            let elsewhere = phase_is(&self.ledger, |phase| phase.has_slot() && phase != Phase::Dialling);
            for link in elsewhere {
                self.ledger.update(link, |known| {
                    known.pid = None;
                    known.extra_mut().local = None;
                });
            }
            for (link, pid) in here {
                let is_there = self.ledger.get(*link).is_some_and(|known| known.phase == Phase::Established);
                if is_there && self.here.insert(*link) {
                    self.ledger.update(*link, |known| known.pid = NonZeroI32::new((*pid).max(0)));
                }
            }
        }
        self.usage.moved(now);
        self.breaker.set_homeless(here.is_none());
        self.settle(now);
    }

    /// Whether a link's slot is on a server that is not dialled any more.
    fn is_elsewhere(&self, link: LinkId) -> bool {
        let is_older = self.ledger.get(link).is_some_and(|known| known.dialled_at < self.moved_at);
        is_older && !self.here.contains(&link)
    }

    fn upstream_is_well(&mut self) {
        if self.breaker.trouble() == Some(Trouble::Down) {
            self.timeline("upstream_up", None, None, "PostgreSQL answers again".to_owned(), SELF);
        }
        self.breaker.healthy();
    }

    /// The dial failed, and its slot is free. With `may_wait` (nothing was asked of the client yet) it goes back to its old place.
    pub fn dial_failed(&mut self, now: Moment, link: LinkId, why: DialFailure, may_wait: bool) -> Arrived {
        // What another server says is nothing to the one that is dialled.
        let why = if self.is_elsewhere(link) { DialFailure::Moved } else { why };
        let reason = match why {
            DialFailure::Down(_) => Reason::UpstreamDown,
            DialFailure::Full | DialFailure::Limited => Reason::UpstreamFull,
            DialFailure::Moved => Reason::NoPrimary,
        };
        let Some(known) = self.ledger.get(link).filter(|known| known.phase.is_login()) else {
            return Arrived::Refused(Refusal::new(reason, "", ""));
        };
        let (home, place, failures) = (known.home, known.extra().place, known.extra().failures + 1);
        self.record_failure(now, Some(link), why);
        let overdue = self.wait_ends(home, place).is_some_and(|ends| ends <= now);
        if !may_wait || overdue {
            let refusal = self.refusal(now, home, Some(link), reason);
            self.count_refusal(home, reason);
            self.forget(now, link);
            self.settle(now);
            return Arrived::Refused(refusal);
        }
        self.bury(now, link);
        // The breaker spaces out the others; those it does not stop get a back-off of their own.
        let own_backoff = self.has_own_backoff(self.lane_ref(home));
        let not_before = if own_backoff { now + self.jitter.backoff(failures) } else { now };
        self.ledger.update(link, |known| {
            known.phase = Phase::Waiting;
            known.pid = None;
            known.set_local(None, Near::default());
            let extra = known.extra_mut();
            extra.failures = failures;
            extra.not_before = not_before;
        });
        self.lane_mut(home).queue.insert(place, link);
        self.decide(now, link, false)
    }

    /// Whether the breaker does not stop a lane's links.
    pub(super) fn has_own_backoff(&self, lane: &Lane) -> bool {
        lane.settings.protected || self.limits.observe
    }

    fn record_failure(&mut self, now: Moment, link: Option<LinkId>, why: DialFailure) {
        match why {
            DialFailure::Full => self.upstream_said_full(now, link),
            // PostgreSQL is well: it has looked at role and database.
            DialFailure::Limited | DialFailure::Moved => {
                link.into_iter().for_each(|link| self.breaker.gone(now, link))
            }
            DialFailure::Down(cause) => {
                if self.breaker.failed(now, link, Trouble::Down, &mut self.jitter) {
                    let text = format!("PostgreSQL cannot be reached: {cause}");
                    self.timeline("upstream_down", None, link, text, SELF);
                }
            }
        }
    }

    fn upstream_said_full(&mut self, now: Moment, link: Option<LinkId>) {
        self.too_many_clients += 1;
        self.breaker.failed(now, link, Trouble::Full, &mut self.jitter);
        if self.usage.latch(now) {
            let text = format!(
                "PostgreSQL said \"too many clients\" with {} own slots; usage counts as 100 %",
                self.ledger.counts().own
            );
            self.timeline("too_many_clients", None, link, text, SELF);
        }
        // Somebody needs the room more than the next client of its key.
        self.evict_oldest();
        self.act_once(Action::SampleNow);
        self.pause_ramps_above(now, now);
    }

    /// A true "too many clients" where no redial is possible any more.
    pub fn too_many_clients(&mut self, now: Moment) {
        self.upstream_said_full(now, None);
        self.settle(now);
    }

    /// The first ReadyForQuery: the login is over. A pid of 0 or less is none.
    pub fn login_done(&mut self, now: Moment, link: LinkId, pid: i32) {
        // Of another server the pid tells nothing.
        let pid = NonZeroI32::new(pid.max(0)).filter(|_| !self.is_elsewhere(link));
        let Some(known) = self.ledger.get(link).filter(|known| known.phase.is_login()) else { return };
        let dialled_at = known.dialled_at;
        // PostgreSQL gave the pid away again: whoever had it is gone, whatever became of its socket.
        if let Some(dead) = pid.and_then(|pid| self.ledger.by_pid(pid)).filter(|dead| *dead != link) {
            self.forget(now, dead);
        }
        self.ledger.update(link, |known| known.establish(pid));
        if !self.is_elsewhere(link) {
            self.usage.login_succeeded(dialled_at);
            if !self.usage.is_latched() {
                self.upstream_is_well();
            }
        }
        self.settle(now);
    }

    /// We began to close the upstream connection; the slot lives on.
    pub fn closing(&mut self, now: Moment, link: LinkId) {
        self.end_slot(now, link, Phase::Closing);
    }

    /// Nobody watches the upstream connection any more and no EOF was seen: a sample must free the slot.
    pub fn zombie(&mut self, now: Moment, link: LinkId) {
        self.end_slot(now, link, Phase::Zombie);
    }

    fn end_slot(&mut self, now: Moment, link: LinkId, phase: Phase) {
        match self.ledger.get(link).map(|known| known.phase) {
            None | Some(Phase::Zombie) => return,
            Some(Phase::Waiting) => self.forget(now, link),
            // It is nothing to the server that slots are counted of, and its own may never answer.
            Some(_) if self.is_elsewhere(link) => self.forget_quietly(now, link),
            Some(_) => {
                self.breaker.gone(now, link);
                self.drop_hold(now, link);
                self.pool.remove(link);
                self.ledger.update(link, |known| {
                    known.visit(None);
                    known.phase = phase;
                    if phase == Phase::Zombie {
                        known.extra_mut().zombie_since = now;
                    }
                });
            }
        }
        self.settle(now);
    }

    /// EOF or RST was read from upstream: the slot is free and the link forgotten.
    pub fn closed(&mut self, now: Moment, link: LinkId) {
        if self.ledger.get(link).is_some() {
            self.forget(now, link);
            self.settle(now);
        }
    }

    /// Takes a link out of everything; a sample under way may still list its backend.
    pub(super) fn forget(&mut self, now: Moment, link: LinkId) {
        self.bury(now, link);
        self.forget_quietly(now, link);
    }

    pub(super) fn bury(&mut self, now: Moment, link: LinkId) {
        let slot = self.ledger.get(link).filter(|known| known.phase.has_slot() && !known.who.replication);
        if let Some(known) = slot.filter(|_| !self.is_elsewhere(link)) {
            self.usage.bury(now, known);
        }
    }

    pub(super) fn forget_quietly(&mut self, now: Moment, link: LinkId) {
        self.pool.remove(link);
        self.breaker.gone(now, link);
        self.drop_hold(now, link);
        if let Some(known) = self.ledger.remove(link) {
            self.lane_mut(known.home).queue.remove(known.extra().place);
        }
    }
}
