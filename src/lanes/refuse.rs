//! Refusals and what is counted of them.

use std::time::Duration;

use super::guard::{Action, Guard, SELF};
use super::ids::{LaneId, LinkId};
use super::settings::Disposition;
use crate::clock::Moment;
use crate::reason::Reason;

/// In observe mode one entry per lane and reason in so long stands for all that would have been stopped.
const OBSERVED_EVERY: Duration = Duration::from_secs(10);
/// One entry per lane in so long stands for all nested links that pass a pause or ramp.
const EXEMPT_EVERY: Duration = Duration::from_secs(10);

impl Guard {
    /// Refuses a waiting link whose lane is stopped and refuses rather than holds.
    pub(super) fn reject_if_told_to(&mut self, now: Moment, link: LinkId) {
        let Some(known) = self.ledger.get(link) else { return };
        let lane = self.lane_ref(known.home);
        let shed = lane.shed.is_on();
        let reason = match &lane.pause {
            Some(pause) if pause.how == Disposition::Reject => Reason::Paused,
            Some(_) if !lane.passes_pause(known.extra().place) => return,
            _ if shed && lane.settings.on_shed == Disposition::Reject => self.shed_reason(),
            _ => return,
        };
        if shed && reason != Reason::Paused {
            self.count_shed(link);
        }
        if self.limits.observe {
            self.observed(now, link, reason, true);
        } else {
            self.refuse_waiting(now, link, reason);
        }
    }

    /// A nested link or transaction passes a pause or ramp: on record, but not once per link.
    pub(super) fn exempted(&mut self, now: Moment, lane: LaneId, link: LinkId) {
        let state = self.lane_mut(lane);
        let (count, next) = &mut state.exempt;
        *count += 1;
        if *next > now {
            return;
        }
        *next = now + EXEMPT_EVERY;
        let text = format!(
            "not held: its client process is inside a transaction that may wait for it ({count} links and transactions so since start)"
        );
        let name = Some(state.settings.name.clone());
        self.timeline("exempt", name, Some(link), text, SELF);
    }

    /// Counts a link as shed, once.
    pub(super) fn count_shed(&mut self, link: LinkId) {
        let first = self
            .ledger
            .update(link, |known| (!std::mem::replace(&mut known.shed, true)).then_some(known.home));
        if let Some(home) = first.flatten() {
            self.lane_mut(home).counters.shed += 1;
        }
    }

    /// Refuses a link in a queue and forgets it.
    pub(super) fn refuse_waiting(&mut self, now: Moment, link: LinkId, reason: Reason) {
        let Some(home) = self.ledger.get(link).map(|known| known.home) else { return };
        let refusal = self.refusal(now, home, Some(link), reason);
        self.count_refusal(home, reason);
        self.forget_quietly(now, link);
        if self.caller == Some(link) {
            self.caller_refusal = Some(refusal);
        } else {
            self.act(Action::Refuse(link, refusal));
        }
    }

    /// Counts a refusal; for the shell as well, where it refuses by itself.
    pub fn count_refusal(&mut self, lane: LaneId, reason: Reason) {
        *self.lane_mut(lane).counters.refused.entry(reason).or_default() += 1;
    }

    /// Counts a reset of a leak.
    pub fn count_reset(&mut self, lane: LaneId) {
        self.lane_mut(lane).counters.resets += 1;
    }

    /// Observe mode: what would have happened, on record but not once per link.
    pub(super) fn observed(&mut self, now: Moment, link: LinkId, reason: Reason, refused: bool) {
        let Some(home) = self.ledger.get(link).map(|known| known.home) else { return };
        if refused {
            self.count_refusal(home, reason);
            *self.lane_mut(home).counters.spared.entry(reason).or_default() += 1;
        }
        let lane = self.lane_mut(home);
        let due = now + OBSERVED_EVERY;
        let (next, unsaid) = lane.observed.entry(reason).or_insert((now, 0));
        *unsaid += 1;
        if *next > now {
            return;
        }
        let links = std::mem::take(unsaid);
        *next = due;
        let name = Some(lane.settings.name.clone());
        let verb = if refused { "would refuse" } else { "would hold" };
        let text = format!("{verb}: {} ({links} since the last such entry)", reason.text());
        self.timeline("observed", name, Some(link), text, SELF);
    }
}
