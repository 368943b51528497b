//! What is seen without asking: usage, counters that must stand still, lanes that must commit.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::{LaneTotals, Span, State, Terms, Verdict};
use crate::clock::Moment;

/// Points kept of a window.
const POINTS: u32 = 60;

/// Usage below a line without a break.
#[derive(Clone, Debug, Default)]
pub(super) struct UsageWatch {
    last: Option<f64>,
    /// Below the line since then.
    below_since: Option<Moment>,
    /// Highest since then.
    highest: f64,
}

impl UsageWatch {
    pub(super) fn take(&mut self, now: Moment, usage: Option<f64>, below: f64) {
        self.last = usage;
        match usage.filter(|usage| *usage < below) {
            None => self.below_since = None,
            Some(usage) if self.below_since.is_none() => {
                self.below_since = Some(now);
                self.highest = usage;
            }
            Some(usage) => self.highest = self.highest.max(usage),
        }
    }

    pub(super) fn judge(&self, terms: Terms, below: f64) -> Verdict {
        let Some(usage) = self.last else {
            let reason = "usage is not known: there is no sample of PostgreSQL, or the last one is too old";
            return Verdict { state: State::Unknown, measured: "unknown".into(), reason: reason.into() };
        };
        match self.below_since {
            None => Verdict {
                state: State::NotMet,
                measured: format!("{usage:.1} %"),
                reason: format!("usage is {usage:.1} %, not below {below} %"),
            },
            Some(since) => {
                let measured = format!("{usage:.1} %, at most {:.1} %", self.highest);
                terms.by_time(terms.held(since), measured, &format!("below {below} %"))
            }
        }
    }
}

/// A counter that must stand still.
#[derive(Clone, Debug, Default)]
pub(super) struct QuietWatch {
    /// Total, or why it is not known. None before the first look.
    last: Option<Result<u64, String>>,
    /// The last total that was known: what moved while nobody could look has moved all the same.
    known: Option<u64>,
    /// Known without a break since then.
    known_since: Moment,
    moved_at: Option<Moment>,
    /// How often it moved since it is watched.
    moves: u64,
}

impl QuietWatch {
    pub(super) fn take(&mut self, now: Moment, total: Result<u64, String>) {
        if let Ok(total) = &total {
            if !matches!(self.last, Some(Ok(_))) {
                self.known_since = now;
            }
            let before = self.known.replace(*total).unwrap_or(*total);
            if *total > before {
                self.moved_at = Some(now);
                self.moves += total - before;
            }
        }
        self.last = Some(total);
    }

    pub(super) fn judge(&self, terms: Terms, what: &str) -> Verdict {
        match &self.last {
            None => Verdict {
                state: State::Unknown,
                measured: "unknown".into(),
                reason: "not looked at yet".into(),
            },
            Some(Err(why)) => {
                Verdict { state: State::Unknown, measured: "unknown".into(), reason: why.clone() }
            }
            Some(Ok(_)) => {
                let last = self.moved_at.filter(|at| *at >= terms.floor);
                let quiet = terms.held(last.unwrap_or(self.known_since));
                let measured = match last {
                    None => "none".to_owned(),
                    Some(at) => format!("last {} ago, {} in all", Span(terms.now.since(at)), self.moves),
                };
                match last.filter(|_| quiet < terms.hold_for) {
                    None => terms.by_time(quiet, measured, "quiet"),
                    Some(at) => {
                        let reason = format!(
                            "{what} {} ago; that must be {} ago",
                            Span(terms.now.since(at)),
                            Span(terms.hold_for)
                        );
                        Verdict { state: State::NotMet, measured, reason }
                    }
                }
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    at: Moment,
    committed: u64,
    attempts: u64,
    failures: u64,
}

/// A lane that must commit.
#[derive(Clone, Debug)]
pub(super) struct LaneWatch {
    name: Arc<str>,
    /// Oldest first; of those at the window's beginning or before, one. At most [`POINTS`] and two.
    pub(super) points: VecDeque<Point>,
    /// The last look; none where there is no such lane.
    last: Option<Point>,
}

impl LaneWatch {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self { name, points: VecDeque::new(), last: None }
    }

    pub(super) fn take(&mut self, now: Moment, hold_for: Duration, lanes: &[LaneTotals]) {
        let Some(lane) = lanes.iter().find(|lane| lane.name == self.name) else {
            self.points.clear();
            self.last = None;
            return;
        };
        let point =
            Point { at: now, committed: lane.committed, attempts: lane.attempts, failures: lane.failures };
        // A lane that came anew counts from 0.
        if self.last.is_some_and(|last| last.attempts > point.attempts || last.committed > point.committed) {
            self.points.clear();
        }
        self.last = Some(point);
        if self.points.back().is_none_or(|last| now.since(last.at) >= hold_for / POINTS) {
            self.points.push_back(point);
        }
        let begins = now - hold_for;
        while self.points.get(1).is_some_and(|second| second.at <= begins) {
            self.points.pop_front();
        }
    }

    pub(super) fn judge(&self, terms: Terms, failures_below: f64) -> Verdict {
        let Some(last) = self.last else {
            let reason = format!("there is no lane {}, or it was not looked at yet", self.name);
            return Verdict { state: State::Unknown, measured: "unknown".into(), reason };
        };
        let begins = (terms.now - terms.hold_for).max(terms.floor);
        let after = self.points.iter().position(|point| point.at > begins).unwrap_or(self.points.len());
        let base = self.points.get(after.saturating_sub(1)).copied().unwrap_or(last);
        let committed = last.committed.saturating_sub(base.committed);
        let attempts = last.attempts.saturating_sub(base.attempts);
        let failures = last.failures.saturating_sub(base.failures);
        let share = failures as f64 * 100.0 / attempts.max(1) as f64;
        let measured = format!("{committed} committed, {failures} failed ({share:.1} %)");
        let not_met = |reason: String| Verdict { state: State::NotMet, measured: measured.clone(), reason };
        let watched = terms.held(base.at);
        if committed == 0 {
            return not_met(format!("no transaction has committed in {}", Span(watched.min(terms.hold_for))));
        }
        if share >= failures_below {
            return not_met(format!(
                "{share:.1} % of {attempts} transactions failed, not below {failures_below} %"
            ));
        }
        terms.by_time(watched, measured, "transactions succeed")
    }
}
