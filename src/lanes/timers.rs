//! What time alone brings: the ends of waits, and when to look again.

use std::time::Duration;

use super::guard::{Guard, Lane};
use super::ids::LaneId;
use super::ledger::Phase;
use super::queue::Place;
use super::usage::ZOMBIE_MAX;
use crate::clock::Moment;
use crate::reason::Reason;

impl Guard {
    /// When the wait of a link in this place ends. A pause or ramp stops the clock of those it holds; afterwards it begins anew.
    pub(super) fn wait_ends(&self, lane: LaneId, place: Place) -> Option<Moment> {
        wait_ends(self.lane_ref(lane), place)
    }

    /// Refuses those who waited or were held for too long. True if anybody was.
    pub(super) fn expire_waits(&mut self, now: Moment) -> bool {
        let mut any = false;
        for index in 0..self.lanes.len() {
            let lane = &self.lanes[index];
            let due =
                |(place, link)| wait_ends(lane, place).filter(|ends| *ends <= now).map(|_| (place, link));
            // Each of the two parts of the queue is in the order of its ends.
            let nested = lane.queue.iter().take_while(|(place, _)| place.nested()).map_while(due);
            let ordinary = lane.queue.iter().skip_while(|(place, _)| place.nested()).map_while(due);
            let is_held = |place| !lane.is_open() && !lane.passes_pause(place);
            let overdue: Vec<_> =
                nested.chain(ordinary).map(|(place, link)| (is_held(place), link)).collect();
            let held: Vec<_> = lane.held.iter().map_while(due).collect();
            any |= !overdue.is_empty();
            for (is_held, link) in overdue {
                let reason = if is_held { Reason::PauseHoldTimeout } else { self.why_waiting(now, link) };
                self.refuse_waiting(now, link, reason);
            }
            held.into_iter().for_each(|(_, link)| self.reject_held(now, link, Reason::PauseHoldTimeout));
        }
        any
    }

    /// In how long [`Guard::tick`] has something to do, if nothing else happens; none: nothing ever.
    pub fn next_tick(&self, now: Moment) -> Option<Duration> {
        let all = self.timers(now).chain(self.stale_at(now));
        all.min().map(|at| at.since(now))
    }

    /// Whether anything waits for time. That data becomes too old is none of it: each sample puts it off, and a visit never brings it nearer.
    pub fn waits_for_time(&self, now: Moment) -> bool {
        self.timers(now).next().is_some()
    }

    /// Whether a lane that is taken for quiet has an end nevertheless: for tests.
    pub(super) fn forgets_a_timer(&self) -> bool {
        let mut quiet = self.lanes.iter().filter(|lane| is_quiet(lane));
        quiet.any(|lane| self.lane_timers(lane, false, self.usage_percent()).next().is_some())
    }

    fn stale_at(&self, now: Moment) -> Option<Moment> {
        self.usage.stale_at(&self.limits).filter(|at| *at > now)
    }

    fn timers(&self, now: Moment) -> impl Iterator<Item = Moment> {
        let stale = self.usage.is_stale(now, &self.limits);
        let usage = self.usage_percent();
        let lanes = self.lanes.iter().filter(|lane| !is_quiet(lane));
        let lanes = lanes.flat_map(move |lane| self.lane_timers(lane, stale, usage));
        lanes.chain(self.common_timers(now, stale))
    }

    fn common_timers(&self, now: Moment, stale: bool) -> impl Iterator<Item = Moment> {
        let limits = &self.limits;
        let somebody_waits = self.ledger.counts().waiting > 0;
        let blind = !limits.monitored || stale;
        let zombies = (blind && self.ledger.counts().zombies > 0).then(|| {
            let zombies = self.ledger.iter().filter(|(_, link)| link.phase == Phase::Zombie);
            zombies.map(|(_, link)| link.extra().zombie_since + ZOMBIE_MAX).min()
        });
        let queues =
            self.lanes.iter().filter(|lane| self.has_own_backoff(lane)).flat_map(|lane| lane.queue.iter());
        let own_backoffs = queues.filter_map(|(_, link)| Some(self.ledger.get(link)?.extra().not_before));
        [
            self.usage.latch_ends(now, limits),
            self.breaker.retry_at().filter(|at| somebody_waits && *at > now),
            self.chain_is_due().then_some(now),
            zombies.flatten(),
            own_backoffs.filter(|at| *at > now).min(),
        ]
        .into_iter()
        .flatten()
    }

    fn lane_timers(&self, lane: &Lane, stale: bool, usage: Option<f64>) -> impl Iterator<Item = Moment> {
        let ends = |place: Option<Place>| place.and_then(|place| wait_ends(lane, place));
        let ramp = lane.ramp.as_ref().filter(|_| !stale);
        [
            ends(lane.queue.first_nested()),
            ends(lane.queue.first_ordinary()),
            ends(lane.held.first_ordinary()),
            lane.pause.as_ref().and_then(|pause| pause.until),
            ramp.and_then(|ramp| ramp.due(self.limits.monitored)),
            lane.thresholds().and_then(|limits| lane.shed.dwell_ends(limits, usage, stale)),
            lane.stops.rate.then(|| lane.rate.allowed_at()),
        ]
        .into_iter()
        .flatten()
    }
}

/// Whether nothing in a lane can have an end: what is asked for on each visit, of all lanes.
fn is_quiet(lane: &Lane) -> bool {
    let nobody = lane.queue.is_empty() && lane.held.is_empty();
    nobody && lane.pause.is_none() && lane.ramp.is_none() && !lane.shed.is_on() && !lane.stops.rate
}

fn wait_ends(lane: &Lane, place: Place) -> Option<Moment> {
    if lane.is_open() || lane.passes_pause(place) {
        return Some(place.since.max(lane.fresh_from) + lane.settings.wait_timeout);
    }
    let held_from = lane.stopped_since.map_or(place.since, |since| since.max(place.since));
    lane.settings.pause_hold_timeout.map(|timeout| held_from + timeout)
}
