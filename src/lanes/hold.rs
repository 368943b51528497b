//! Established links: transactions held at their start, moves between lanes.

use std::sync::Arc;

use super::guard::{Action, Begun, Guard};
use super::ids::{LaneId, LinkId};
use super::ledger::Phase;
use super::queue::Place;
use super::settings::Disposition;
use crate::clock::Moment;
use crate::reason::Reason;

impl Guard {
    /// A transaction wants to begin, and the gate of the link's lane is not open. `nested`: the client process has another link in a
    /// transaction that began without this exemption; what holds lets it pass, what refuses does not.
    pub fn begin(&mut self, now: Moment, link: LinkId, nested: bool) -> Begun {
        let free = Begun::Go { counted: false };
        let Some(known) = self.ledger.get(link) else { return free };
        let (lane_id, counted, held) = (known.lane(), known.extra().counted, known.extra().held);
        let lane = self.lane_ref(lane_id);
        let is_open = lane.gate.is_open();
        let refuses = lane.pause.as_ref().is_some_and(|pause| pause.how == Disposition::Reject);
        if is_open || (nested && !refuses) {
            if held.is_some() {
                self.drop_hold(now, link);
            }
            if !is_open {
                self.exempted(now, lane_id, link);
            }
            return free;
        }
        if counted == Some((lane_id, lane.epoch)) {
            return Begun::Go { counted: true };
        }
        match (&lane.pause, &lane.ramp) {
            _ if refuses => {
                let refusal = self.refusal(now, lane_id, Some(link), Reason::Paused);
                self.count_refusal(lane_id, Reason::Paused);
                return Begun::Reject(refusal);
            }
            // Those held come first.
            (None, Some(ramp))
                if lane.held.is_empty() && lane.transactions < ramp.allowance(lane.quota()) =>
            {
                self.count_transaction(link, lane_id);
                return Begun::Go { counted: true };
            }
            _ => {}
        }
        if held.is_none() {
            let place = Place::new(false, now, self.next_seq());
            self.lane_mut(lane_id).held.insert(place, link);
            self.ledger.update(link, |known| known.extra_mut().held = Some(place));
        }
        Begun::Hold(Reason::Paused)
    }

    fn count_transaction(&mut self, link: LinkId, lane: LaneId) {
        let state = self.lane_mut(lane);
        state.transactions += 1;
        let epoch = state.epoch;
        self.ledger.update(link, |known| known.extra_mut().counted = Some((lane, epoch)));
    }

    /// Counts transactions that were under way when a ramp began, so that [`Guard::end`] makes room for others. Call it after `resume`
    /// with the links of the lane that are in a transaction.
    pub fn seed_transactions(&mut self, now: Moment, links: &[LinkId]) {
        let _ = now;
        for link in links {
            let Some(known) = self.ledger.get(*link).filter(|known| known.extra().held.is_none()) else {
                continue;
            };
            let lane = self.lane_ref(known.lane());
            if lane.ramp.is_some() && known.extra().counted != Some((known.lane(), lane.epoch)) {
                self.count_transaction(*link, known.lane());
            }
        }
    }

    /// A held link is not waiting any more: cancelled or hung up.
    pub fn unhold(&mut self, now: Moment, link: LinkId) {
        self.drop_hold(now, link);
    }

    /// A counted transaction is over. Harmless for others.
    pub fn end(&mut self, now: Moment, link: LinkId) {
        if self.ledger.get(link).is_some_and(|known| known.extra().held.is_none()) {
            self.drop_hold(now, link);
        }
    }

    /// Takes a link out of the held and out of the count of its lane's ramp; the next one held may go.
    pub(super) fn drop_hold(&mut self, now: Moment, link: LinkId) {
        let _ = now;
        let Some(known) = self.ledger.get(link) else { return };
        let (lane, held, counted) = (known.lane(), known.extra().held, known.extra().counted);
        if held.is_none() && counted.is_none() {
            return;
        }
        self.ledger.update(link, |known| {
            let extra = known.extra_mut();
            extra.held = None;
            extra.counted = None;
        });
        if let Some(place) = held {
            self.lane_mut(lane).held.remove(place);
        }
        if let Some((lane, epoch)) = counted {
            let state = self.lane_mut(lane);
            if state.epoch == epoch {
                state.transactions = state.transactions.saturating_sub(1);
            }
            self.release_held(lane);
        }
    }

    /// Lets held links go, as far as pause and ramp allow. In a ramp each takes its place in the count at once.
    pub(super) fn release_held(&mut self, lane: LaneId) {
        let observe = self.limits.observe;
        loop {
            let state = self.lane_ref(lane);
            let Some((place, link)) = state.held.iter().next() else { return };
            let counts = match (&state.pause, &state.ramp) {
                _ if observe => false,
                (Some(_), _) => return,
                (None, Some(ramp)) if state.transactions >= ramp.allowance(state.quota()) => return,
                (None, Some(_)) => true,
                (None, None) => false,
            };
            self.lane_mut(lane).held.remove(place);
            self.ledger.update(link, |known| known.extra_mut().held = None);
            if counts {
                self.count_transaction(link, lane);
            }
            self.act(Action::Release(link));
        }
    }

    /// Refuses a held link's transaction.
    pub(super) fn reject_held(&mut self, now: Moment, link: LinkId, reason: Reason) {
        let Some(known) = self.ledger.get(link).filter(|known| known.extra().held.is_some()) else { return };
        let lane = known.lane();
        let refusal = self.refusal(now, lane, Some(link), reason);
        self.count_refusal(lane, reason);
        self.drop_hold(now, link);
        self.act(Action::RejectHeld(link, refusal));
    }

    /// A link's transaction counts in another lane, whatever that lane's quota; its home keeps its place.
    pub fn visit(&mut self, now: Moment, link: LinkId, lane: LaneId) {
        let Some(known) = self.ledger.get(link) else { return };
        let home = known.home;
        if known.phase == Phase::Established && !self.lane_ref(lane).retired {
            self.relocate(now, link, home, Some(lane).filter(|lane| *lane != home), None);
        }
    }

    /// The visit is over.
    pub fn leave(&mut self, now: Moment, link: LinkId) {
        let Some(known) = self.ledger.get(link) else { return };
        self.relocate(now, link, known.home, None, None);
    }

    /// A link belongs to another lane from now on, whatever that lane's quota; one that waits takes its place there by its age.
    pub fn move_link(&mut self, now: Moment, link: LinkId, lane: LaneId, application: Option<Arc<str>>) {
        let Some(known) = self.ledger.get(link) else { return };
        let (old, place, phase) = (known.home, known.extra().place, known.phase);
        let new = if self.lane_ref(lane).retired { old } else { lane };
        if phase != Phase::Waiting {
            let visiting = known.visiting().filter(|visited| *visited != new);
            return self.relocate(now, link, new, visiting, application);
        }
        self.lane_mut(old).queue.remove(place);
        self.lane_mut(new).queue.insert(place, link);
        self.ledger.update(link, |known| known.home = new);
        self.rename(link, application);
        self.reject_if_told_to(now, link);
        self.settle(now);
    }

    fn rename(&mut self, link: LinkId, application: Option<Arc<str>>) {
        if let Some(application) = application {
            self.ledger.rename(link, application);
        }
    }

    fn relocate(
        &mut self,
        now: Moment,
        link: LinkId,
        home: LaneId,
        visiting: Option<LaneId>,
        application: Option<Arc<str>>,
    ) {
        let Some(known) = self.ledger.get(link) else { return };
        let same_place = known.home == home && known.visiting() == visiting;
        if same_place && application.is_none() {
            return;
        }
        let was_held = known.extra().held.is_some();
        let moves = known.lane() != visiting.unwrap_or(home);
        if moves {
            self.drop_hold(now, link);
        }
        self.ledger.update(link, |known| {
            known.home = home;
            known.visit(visiting);
        });
        self.rename(link, application);
        if moves && was_held {
            // It asks again, at the gate of the lane it is in now.
            self.act(Action::Release(link));
        }
        self.settle(now);
    }
}
