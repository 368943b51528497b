//! What is asked for: a page, a program, a number.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{Span, State, Terms, Verdict};
use crate::clock::Moment;

/// Numbers kept of a window.
const POINTS: u32 = 120;

/// How the answers of a probe must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Expect {
    /// Answered at all.
    Ok,
    /// Less at the window's end than at its beginning, or 0 at its end.
    Decreasing,
    /// 0.
    Empty,
    /// Below this.
    Below(f64),
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("ok"),
            Self::Decreasing => f.write_str("decreasing"),
            Self::Empty => f.write_str("empty"),
            Self::Below(limit) => write!(f, "below {limit}"),
        }
    }
}

/// A probe as the criteria see it.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeRule {
    /// Its name.
    pub name: Arc<str>,
    /// What it must find.
    pub expect: Expect,
    /// An answer counts for so long.
    pub fresh_for: Duration,
}

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Measured {
    /// An answer without a number.
    Fine,
    /// A number.
    Number(f64),
}

#[derive(Clone, Debug)]
pub(super) struct ProbeWatch {
    rule: ProbeRule,
    /// The last answer.
    last: Option<(Moment, Result<Measured, String>)>,
    /// As expected without a break since then; of `Decreasing`: answered without a break.
    good_since: Option<Moment>,
    /// Numbers without a break, oldest first; of those at the window's beginning or before, one.
    pub(super) points: VecDeque<(Moment, f64)>,
}

impl ProbeWatch {
    pub(super) fn new(rule: ProbeRule) -> Self {
        Self { rule, last: None, good_since: None, points: VecDeque::new() }
    }

    pub(super) fn rule(&self) -> &ProbeRule {
        &self.rule
    }

    /// The latest number, while it is fresh.
    pub(super) fn number(&self, now: Moment) -> Option<f64> {
        match &self.last {
            Some((at, Ok(Measured::Number(number)))) if self.is_fresh(now, *at) => Some(*number),
            _ => None,
        }
    }

    fn is_fresh(&self, now: Moment, at: Moment) -> bool {
        now.since(at) <= self.rule.fresh_for
    }

    pub(super) fn take(&mut self, now: Moment, hold_for: Duration, answer: Result<Measured, String>) {
        let gap = self.last.as_ref().is_some_and(|(at, _)| !self.is_fresh(now, *at));
        let good = match (&answer, self.rule.expect) {
            (Err(_), _) => false,
            (Ok(_), Expect::Ok) => true,
            (Ok(Measured::Fine), _) => false,
            (Ok(Measured::Number(_)), Expect::Decreasing) => true,
            (Ok(Measured::Number(number)), Expect::Empty) => *number == 0.0,
            (Ok(Measured::Number(number)), Expect::Below(limit)) => *number < limit,
        };
        if !good || gap {
            self.good_since = None;
            self.points.clear();
        }
        if good {
            self.good_since.get_or_insert(now);
            if let Ok(Measured::Number(number)) = answer {
                self.keep(now, hold_for, number);
            }
        }
        self.last = Some((now, answer));
    }

    fn keep(&mut self, now: Moment, hold_for: Duration, number: f64) {
        if self.points.back().is_none_or(|(at, _)| now.since(*at) >= hold_for / POINTS) {
            self.points.push_back((now, number));
        }
        let begins = now - hold_for;
        while self.points.get(1).is_some_and(|(at, _)| *at <= begins) {
            self.points.pop_front();
        }
    }

    pub(super) fn judge(&self, terms: Terms) -> Verdict {
        let unknown =
            |reason: String| Verdict { state: State::Unknown, measured: "unknown".to_owned(), reason };
        let Some((at, answer)) = &self.last else { return unknown("not asked yet".to_owned()) };
        if !self.is_fresh(terms.now, *at) {
            return unknown(format!("the last answer is {} old", Span(terms.now.since(*at))));
        }
        match (answer, self.rule.expect) {
            // A page that does not come is the trouble itself; a query that is not answered says nothing of the number.
            (Err(why), Expect::Ok) => {
                Verdict { state: State::NotMet, measured: "failed".to_owned(), reason: why.clone() }
            }
            (Err(why), _) => unknown(why.clone()),
            (Ok(Measured::Fine), Expect::Ok) => self.by_time(terms, "ok".to_owned(), "ok"),
            (Ok(Measured::Number(number)), Expect::Ok) => self.by_time(terms, number.to_string(), "ok"),
            (Ok(Measured::Fine), _) => unknown("it gave no number".to_owned()),
            (Ok(Measured::Number(number)), Expect::Decreasing) => self.trend(terms, *number),
            (Ok(Measured::Number(number)), expect) => match self.good_since {
                Some(_) => self.by_time(terms, number.to_string(), &expect.to_string()),
                None => Verdict {
                    state: State::NotMet,
                    measured: number.to_string(),
                    reason: format!("{number} is not {expect}"),
                },
            },
        }
    }

    fn by_time(&self, terms: Terms, measured: String, what: &str) -> Verdict {
        terms.by_time(terms.held(self.good_since.unwrap_or(terms.now)), measured, what)
    }

    /// Quarters rather than single numbers: a queue that hovers is now and then lower than it was.
    fn trend(&self, terms: Terms, last: f64) -> Verdict {
        let begins = (terms.now - terms.hold_for).max(terms.floor);
        let after = self.points.iter().position(|(at, _)| *at > begins).unwrap_or(self.points.len());
        let inside: Vec<(Moment, f64)> = self.points.iter().skip(after.saturating_sub(1)).copied().collect();
        let quarter = terms.hold_for / 4;
        let early = inside.iter().filter(|(at, _)| *at <= begins + quarter).map(|(_, number)| *number);
        let early = median(early.collect()).unwrap_or(last);
        let tail = terms.now - quarter;
        let late = inside.iter().filter(|(at, _)| *at >= tail).map(|(_, number)| *number);
        let late: Vec<f64> = late.chain([last]).collect();
        let empty = late.iter().all(|number| *number == 0.0);
        let late = median(late).unwrap_or(last);
        let measured = format!("{last}; about {early} before, {late} now");
        if !empty && late >= early {
            let why = if inside.len() < 2 { "seen once so far" } else { "it does not go down" };
            return Verdict {
                state: State::NotMet,
                measured,
                reason: format!("{why}: about {early} before, {late} now"),
            };
        }
        let since = inside.first().map_or(terms.now, |(at, _)| *at);
        let what = if empty { "empty" } else { "decreasing" };
        terms.by_time(terms.held(since), measured, what)
    }
}

/// The middle one; of an even number the upper.
fn median(mut numbers: Vec<f64>) -> Option<f64> {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied()
}
