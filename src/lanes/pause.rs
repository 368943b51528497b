//! The operator's switches: pause, freeze, resume, ramps, SET LANE.
//!
//! ```text
//!            pause, freeze                     resume (at once), pause's own end
//!   open ───────────────────► paused ─────────────────────────────────────────────► open
//!    ▲                          │ ▲
//!    │ last step     resume over│ │usage has grown again (by "ramp"), pause
//!    └──────────────────────► ramping
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::guard::{Action, Guard, SELF};
use super::ids::LaneId;
use super::ramp::{Ramp, STEPS};
use super::report::seconds;
use super::settings::Disposition;
use crate::clock::Moment;
use crate::reason::Reason;

/// Usage in percent at which a ramp stops in a lane without `shed_above`.
const RAMP_ABOVE_DEFAULT: f64 = 75.0;
/// Who re-pauses on growth.
const RAMP: &str = "ramp";

/// A pause in force.
#[derive(Clone, Debug)]
pub(super) struct Pause {
    pub how: Disposition,
    pub by: String,
    pub reason: String,
    pub since: Moment,
    /// In force for so long before `since`, in an earlier run of the process.
    pub before: Duration,
    pub until: Option<Moment>,
}

/// What FREEZE did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frozen {
    /// Lanes it paused.
    pub paused: Vec<Arc<str>>,
    /// Lanes that were paused already, and by whom.
    pub already: Vec<(Arc<str>, String)>,
    /// What it does not reach, and why: lanes, and "bypass" for connections that are not pgweir's.
    pub beyond: Vec<(Arc<str>, String)>,
}

/// RESUME ALL OVER: one lane after the other.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    lanes: VecDeque<LaneId>,
    current: Option<LaneId>,
    each: Duration,
    by: String,
}

/// A pause, for the state file.
#[derive(Clone, Debug, PartialEq)]
pub struct PauseRecord {
    /// Name of the lane.
    pub lane: Arc<str>,
    /// What happens to those it stops.
    pub how: Disposition,
    /// Who.
    pub by: String,
    /// Why.
    pub reason: String,
    /// Since when.
    pub since: Moment,
    /// In force for so long before `since`: moments of an earlier run of the process cannot be told as such.
    pub before: Duration,
    /// When it ends by itself.
    pub until: Option<Moment>,
    /// It is being lifted by a ramp over so long.
    pub ramp_over: Option<Duration>,
}

impl Guard {
    /// Stops new links and new transactions of a lane, instead of whatever pause or ramp it has. Without `how` as the lane's `on_pause`
    /// says. Protected lanes too: it was asked for by name.
    pub fn pause(
        &mut self,
        now: Moment,
        lane: LaneId,
        how: Option<Disposition>,
        until: Option<Moment>,
        by: &str,
        reason: &str,
    ) {
        if self.lane_ref(lane).retired {
            return;
        }
        let how = how.unwrap_or(self.lane_ref(lane).settings.on_pause);
        let word = if how == Disposition::Hold { "held" } else { "refused" };
        let are = if self.limits.observe { "would be" } else { "are" };
        let text =
            format!("new links and transactions {are} {word}{}{}", so_long(now, until), because(reason));
        self.timeline("pause", Some(self.lane_name(lane)), None, text, by);
        self.leave_chain(lane);
        self.stop_lane(now, lane, Pause::new(now, how, until, by, reason));
        self.settle(now);
    }

    /// Puts a pause of an earlier run in force again, or the ramp that was lifting it, from its first step: how far it had come says
    /// nothing about now. Not in the timeline: nobody decided anything. False: there is no such lane any more.
    pub fn restore_pause(&mut self, now: Moment, record: &PauseRecord) -> bool {
        let Some(lane) = self.lane(&record.lane) else { return false };
        self.leave_chain(lane);
        let (since, before) = (record.since, record.before);
        let pause = Pause::new(since, record.how, record.until, &record.by, &record.reason);
        self.stop_lane(now, lane, Pause { before, ..pause });
        if let Some(over) = record.ramp_over.filter(|over| !over.is_zero()) {
            self.lift_by_ramp(now, lane, over, &record.by);
        }
        self.settle(now);
        true
    }

    fn stop_lane(&mut self, now: Moment, lane: LaneId, pause: Pause) {
        let refuses = pause.how == Disposition::Reject;
        let state = self.lane_mut(lane);
        if state.ramp.take().is_some() {
            // Nested links, held by the ramp until now, pass the pause: their clock begins anew.
            state.fresh_from = now;
        }
        state.epoch += 1;
        state.transactions = 0;
        state.pause = Some(pause);
        state.stopped_since.get_or_insert(now);
        self.set_gate(lane);
        self.pauses_changed();
        if refuses {
            let waiting: Vec<_> = self.lane_ref(lane).queue.iter().map(|(_, link)| link).collect();
            waiting.into_iter().for_each(|link| self.reject_if_told_to(now, link));
            let held: Vec<_> = self.lane_ref(lane).held.iter().map(|(_, link)| link).collect();
            held.into_iter().for_each(|link| self.reject_held(now, link, Reason::Paused));
        }
    }

    /// Pauses every lane with `freeze = true` that is not protected; a pause in force stays, and does not end before this one.
    pub fn freeze(&mut self, now: Moment, until: Option<Moment>, by: &str, reason: &str) -> Frozen {
        let mut done = Frozen::default();
        for lane in self.file_order.clone() {
            let state = self.lane_mut(lane);
            let (name, is_protected) = (state.settings.name.clone(), state.settings.protected);
            if is_protected || !state.settings.freeze {
                let why = if is_protected { "protected" } else { "not marked freeze = true" };
                let slots = self.ledger.lane(lane).slots;
                let s = if slots == 1 { "" } else { "s" };
                done.beyond.push((name, format!("{why}; {slots} connection{s}")));
                continue;
            }
            if let Some(pause) = &mut state.pause {
                pause.until = pause.until.zip(until).map(|(one, other)| one.max(other));
                done.already.push((name, pause.by.clone()));
                self.pauses_changed();
            } else {
                let pause = Pause::new(now, state.settings.on_pause, until, by, reason);
                done.paused.push(name);
                self.stop_lane(now, lane, pause);
            }
            self.leave_chain(lane);
        }
        if let Some(bypass) = self.usage.seen().map(|seen| seen.bypass).filter(|bypass| *bypass > 0) {
            let text = match bypass {
                1 => "1 connection to PostgreSQL does not pass through pgweir: its own monitor's".to_owned(),
                n => format!(
                    "{n} connections to PostgreSQL do not pass through pgweir, its own monitor's among them"
                ),
            };
            done.beyond.push(("bypass".into(), text));
        }
        let how = format!("{}{}", so_long(now, until), because(reason));
        let text = done.describe(if self.limits.observe { "would pause" } else { "paused" }, &how);
        self.timeline("freeze", None, None, text, by);
        self.settle(now);
        done
    }

    /// Ends a lane's pause: at once, or in ten steps over `over`. A ramp under way takes the new pace, or ends. False: it was open.
    pub fn resume(&mut self, now: Moment, lane: LaneId, over: Option<Duration>, by: &str) -> bool {
        if self.lane_ref(lane).is_open() {
            return false;
        }
        self.leave_chain(lane);
        match over.filter(|over| !over.is_zero()) {
            None => {
                self.timeline("resume", Some(self.lane_name(lane)), None, "open".to_owned(), by);
                self.open_lane(now, lane);
            }
            Some(over) => self.start_ramp(now, lane, over, by),
        }
        self.settle(now);
        true
    }

    /// Ends all pauses: at once (ramps too), or one lane after the other, best priority first, all together over `over`. Returns how
    /// many lanes that concerns.
    pub fn resume_all(&mut self, now: Moment, over: Option<Duration>, by: &str) -> usize {
        let paused = self.order.iter().filter(|lane| self.lane_ref(**lane).pause.is_some());
        let lanes: VecDeque<LaneId> = paused.copied().collect();
        let Some(over) = over.filter(|over| !over.is_zero()) else {
            let stopped = self.order.iter().filter(|lane| !self.lane_ref(**lane).is_open());
            let stopped: Vec<_> = stopped.copied().collect();
            for lane in &stopped {
                self.resume(now, *lane, None, by);
            }
            return stopped.len();
        };
        let lane_count = lanes.len();
        let count = u32::try_from(lane_count).unwrap_or(u32::MAX);
        if count == 0 {
            return 0;
        }
        let names: Vec<_> = lanes.iter().map(|lane| self.lane_name(*lane).to_string()).collect();
        let text = format!("one after the other over {}: {}", seconds(over), names.join(", "));
        self.timeline("resume", None, None, text, by);
        self.chain = Some(Chain { lanes, current: None, each: over / count, by: by.to_owned() });
        self.advance_chain(now);
        self.settle(now);
        lane_count
    }

    fn start_ramp(&mut self, now: Moment, lane: LaneId, over: Duration, by: &str) {
        let text = format!("in {STEPS} steps over {}", seconds(over));
        self.timeline("resume", Some(self.lane_name(lane)), None, text, by);
        self.lift_by_ramp(now, lane, over, by);
    }

    fn lift_by_ramp(&mut self, now: Moment, lane: LaneId, over: Duration, by: &str) {
        let state = self.lane_mut(lane);
        if let Some(ramp) = &mut state.ramp {
            return ramp.set_pace(over);
        }
        let Some(pause) = state.pause.take() else { return };
        state.ramp = Some(Ramp::new(now, over, pause.how, by));
        state.epoch += 1;
        state.transactions = 0;
        self.pauses_changed();
        self.release_held(lane);
    }

    pub(super) fn open_lane(&mut self, now: Moment, lane: LaneId) {
        let state = self.lane_mut(lane);
        let was_paused = state.pause.take().is_some() | state.ramp.take().is_some();
        state.epoch += 1;
        state.transactions = 0;
        state.stopped_since = None;
        state.fresh_from = now;
        self.set_gate(lane);
        if was_paused {
            self.pauses_changed();
        }
        self.release_held(lane);
    }

    pub(super) fn set_gate(&mut self, lane: LaneId) {
        let observe = self.limits.observe;
        let state = self.lane_ref(lane);
        state.gate.set(observe || state.is_open());
    }

    fn pauses_changed(&mut self) {
        self.act_once(Action::PausesChanged);
    }

    /// Pauses that end by themselves, ramps' steps, the next lane of RESUME ALL.
    pub(super) fn advance_pauses(&mut self, now: Moment) {
        for lane in self.file_order.clone() {
            let state = self.lane_ref(lane);
            if state.pause.as_ref().and_then(|pause| pause.until).is_some_and(|until| until <= now) {
                let text = "the pause ended by itself".to_owned();
                self.timeline("resume", Some(self.lane_name(lane)), None, text, SELF);
                self.leave_chain(lane);
                self.open_lane(now, lane);
            } else if self.lane_ref(lane).ramp.is_some() {
                self.advance_ramp(now, lane);
            }
        }
        self.advance_chain(now);
    }

    fn advance_ramp(&mut self, now: Moment, lane: LaneId) {
        let judges = self.limits.monitored;
        if self.usage.is_stale(now, &self.limits) {
            return;
        }
        let quota = self.lane_ref(lane).quota();
        let Some(ramp) = &mut self.lane_mut(lane).ramp else { return };
        let (done, by) = match ramp.advance(now, judges) {
            None => return,
            Some(done) => (done, ramp.by.clone()),
        };
        let text = if done {
            "open".to_owned()
        } else {
            format!("step {} of {STEPS}: {} of {quota}", ramp.step(), ramp.allowance(quota))
        };
        self.timeline("ramp", Some(self.lane_name(lane)), None, text, &by);
        if done {
            self.open_lane(now, lane);
        } else {
            self.release_held(lane);
        }
    }

    fn advance_chain(&mut self, now: Moment) {
        while self.chain_is_due() {
            let Some(chain) = &mut self.chain else { return };
            let (each, by, current) = (chain.each, chain.by.clone(), chain.current);
            if let Some(lane) = current.filter(|lane| self.lane_ref(*lane).pause.is_some()) {
                let text = "the lanes still paused stay paused: this one had to be paused again".to_owned();
                self.timeline("ramp", Some(self.lane_name(lane)), None, text, SELF);
                self.chain = None;
                return;
            }
            let Some(chain) = &mut self.chain else { return };
            let next = chain.lanes.pop_front();
            chain.current = next;
            match next {
                Some(lane) if self.lane_ref(lane).pause.is_some() => self.start_ramp(now, lane, each, &by),
                // Opened meanwhile: go on with the one after it.
                Some(_) => {}
                None => self.chain = None,
            }
        }
    }

    /// The operator said something else about a lane of RESUME ALL.
    fn leave_chain(&mut self, lane: LaneId) {
        if let Some(chain) = &mut self.chain {
            chain.lanes.retain(|waiting| *waiting != lane);
            if chain.current == Some(lane) {
                chain.current = None;
            }
        }
    }

    /// Whether RESUME ALL can go on with its next lane.
    pub(super) fn chain_is_due(&self) -> bool {
        let Some(chain) = &self.chain else { return false };
        chain.current.is_none_or(|lane| self.lane_ref(lane).ramp.is_none())
    }

    /// Pauses again the ramping lanes for which usage, as of a sample asked for then, is too high.
    pub(super) fn pause_ramps_above(&mut self, now: Moment, asked_at: Moment) {
        let Some(usage) = self.usage_percent() else { return };
        for lane in self.file_order.clone() {
            let state = self.lane_mut(lane);
            let above = state.settings.shed_above.unwrap_or(RAMP_ABOVE_DEFAULT);
            let Some(ramp) = &mut state.ramp else { continue };
            if ramp.sampled(asked_at, usage, above) {
                continue;
            }
            let (how, step) = (ramp.how, ramp.step());
            let reason = format!("usage {usage:.1} % reached {above} % in step {step} of {STEPS}");
            let paused = if self.limits.observe { "would pause again" } else { "paused again" };
            self.timeline("ramp", Some(self.lane_name(lane)), None, format!("{paused}: {reason}"), SELF);
            self.stop_lane(now, lane, Pause::new(now, how, None, RAMP, &reason));
        }
    }

    /// SET LANE: another quota until the next reload. Zero is refused: that is a pause. So is less than the reserve: another lane could
    /// have what is promised to this one.
    pub fn set_quota(&mut self, now: Moment, lane: LaneId, quota: u32) -> Result<(), String> {
        let state = self.lane_ref(lane);
        if state.retired {
            return Err("the lane is not in the configuration any more".to_owned());
        }
        if quota == 0 {
            return Err("a quota of 0 would hold everybody unseen: use PAUSE LANE".to_owned());
        }
        if quota < state.settings.reserve {
            let (name, reserve) = (&state.settings.name, state.settings.reserve);
            return Err(format!(
                "lane {name}: a quota of {quota} is below its reserve {reserve}: lower the reserve in the configuration"
            ));
        }
        self.lane_mut(lane).quota_set = Some(quota);
        self.release_held(lane);
        self.settle(now);
        Ok(())
    }

    /// All pauses in force, in file order, and those being lifted by a ramp.
    pub fn pauses(&self) -> Vec<PauseRecord> {
        self.file_order.iter().filter_map(|lane| self.lane_ref(*lane).pause_record()).collect()
    }
}

impl super::guard::Lane {
    fn pause_record(&self) -> Option<PauseRecord> {
        let lane = self.settings.name.clone();
        if let Some(pause) = &self.pause {
            return Some(PauseRecord {
                lane,
                how: pause.how,
                by: pause.by.clone(),
                reason: pause.reason.clone(),
                since: pause.since,
                before: pause.before,
                until: pause.until,
                ramp_over: None,
            });
        }
        let ramp = self.ramp.as_ref()?;
        Some(PauseRecord {
            lane,
            how: ramp.how,
            by: ramp.by.clone(),
            reason: String::new(),
            since: ramp.began(),
            before: Duration::ZERO,
            until: None,
            ramp_over: Some(ramp.over()),
        })
    }
}

impl Pause {
    fn new(since: Moment, how: Disposition, until: Option<Moment>, by: &str, reason: &str) -> Self {
        let (by, reason) = (by.to_owned(), reason.to_owned());
        Self { how, by, reason, since, before: Duration::ZERO, until }
    }

    /// Why, and until when.
    pub(super) fn describe(&self, now: Moment) -> String {
        let Some(until) = self.until else { return self.reason.clone() };
        let (whole, left) = (until.since(self.since) + self.before, until.since(now));
        let end = format!("for {}, {} left", seconds(whole), seconds(left));
        if self.reason.is_empty() { end } else { format!("{} ({end})", self.reason) }
    }
}

impl Frozen {
    /// `paused`: what is done, or would be.
    fn describe(&self, paused: &str, how: &str) -> String {
        let mut text = match self.paused.as_slice() {
            [] if self.already.is_empty() => return "no lane is marked freeze = true".to_owned(),
            [] => format!("{paused} no lane that was not paused{how}"),
            lanes => format!("{paused} {}{how}", lanes.join(", ")),
        };
        if !self.already.is_empty() {
            let already: Vec<_> = self.already.iter().map(|(lane, by)| format!("{lane} (by {by})")).collect();
            text += &format!("; paused already: {}", already.join(", "));
        }
        text
    }
}

fn so_long(now: Moment, until: Option<Moment>) -> String {
    until.map_or_else(String::new, |until| format!(" for {}", seconds(until.since(now))))
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}
