//! When an incident is over: criteria that must hold without a break for `hold_for`. Pure: facts and answers in, a checklist out.
//!
//! ```text
//! unknown ⇄ not met ── held for hold_for without a break ──► met
//!    ▲          ▲                                              │
//!    └──────────┴── one look that is worse, or none in time ───┘
//! ```
//! Nothing counts from before the process started, nor from before an incident began ([`Exit::began`]): what was quiet yesterday proves
//! nothing about today's incident. What is not known is never met. Deliberately absent: who asks, and what an incident is.

mod probe;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Moment;

use probe::ProbeWatch;
pub use probe::{Expect, Measured, ProbeRule};
use watch::{LaneWatch, QuietWatch, UsageWatch};

/// What a criterion's moment of truth is judged by.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Usage in percent.
    pub usage_below: f64,
    /// How long every criterion must hold.
    pub hold_for: Duration,
    /// Lanes whose transactions must succeed.
    pub lanes: Vec<Arc<str>>,
    /// Share of their transactions that may fail, in percent.
    pub failures_below: f64,
    /// Whether PostgreSQL's log is read.
    pub watches_log: bool,
    /// What is asked.
    pub probes: Vec<ProbeRule>,
}

/// Totals of a lane since it came to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaneTotals {
    /// Its name.
    pub name: Arc<str>,
    /// Transactions committed.
    pub committed: u64,
    /// Transactions of any end, and clients refused.
    pub attempts: u64,
    /// Those of them that failed: an error, a reset, a lost connection, a refusal.
    pub failures: u64,
}

/// One look at everything that is not asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Percent; none where it is unknown or stale.
    pub usage: Option<f64>,
    /// Times PostgreSQL said "too many clients" to pgweir or its monitor.
    pub too_many_clients: u64,
    /// Clients that pgweir refused with 53300.
    pub refused: u64,
    /// Times PostgreSQL's log has it, or why it cannot be read.
    pub logged: Result<u64, String>,
    /// Lanes, the critical ones among them.
    pub lanes: Vec<LaneTotals>,
}

/// What became of a criterion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// It held for `hold_for`.
    Met,
    /// It does not, or not for long enough.
    NotMet,
    /// Nobody knows: nothing was measured, or too long ago.
    Unknown,
}

impl State {
    /// The word shown.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::NotMet => "not met",
            Self::Unknown => "unknown",
        }
    }
}

/// A line of the checklist.
#[derive(Clone, Debug, PartialEq)]
pub struct Criterion {
    /// `usage`, `too_many_clients`, `refusals`, `log`, `lane NAME`, `probe NAME`.
    pub name: Arc<str>,
    /// What became of it.
    pub state: State,
    /// Since when it has that state.
    pub since: Moment,
    /// What was seen.
    pub measured: String,
    /// What is wanted.
    pub wanted: String,
    /// Why it has that state, in a sentence.
    pub reason: String,
}

/// A judgement before it has its moment.
struct Verdict {
    state: State,
    measured: String,
    reason: String,
}

/// What judgements are made by.
#[derive(Clone, Copy)]
struct Terms {
    now: Moment,
    hold_for: Duration,
    /// Nothing counts from before.
    floor: Moment,
}

impl Terms {
    /// How long something has held that began then.
    fn held(&self, since: Moment) -> Duration {
        self.now.since(since.max(self.floor))
    }

    /// Met where it held for long enough; `what` says what does.
    fn by_time(&self, held: Duration, measured: String, what: &str) -> Verdict {
        if held >= self.hold_for {
            return Verdict { state: State::Met, measured, reason: format!("{what} for {}", Span(held)) };
        }
        let reason = format!("{what}, for {} of {} so far", Span(held), Span(self.hold_for));
        Verdict { state: State::NotMet, measured, reason }
    }
}

#[derive(Clone, Debug)]
enum Watch {
    Usage(UsageWatch),
    TooManyClients(QuietWatch),
    Refusals(QuietWatch),
    Log(QuietWatch),
    Lane(LaneWatch),
    Probe(ProbeWatch),
}

#[derive(Clone, Debug)]
struct Watched {
    name: Arc<str>,
    watch: Watch,
    state: State,
    since: Moment,
}

/// The criteria of one configuration, evaluated as time goes on.
#[derive(Clone, Debug)]
pub struct Exit {
    rules: Rules,
    floor: Moment,
    watched: Vec<Watched>,
}

impl Exit {
    /// Nothing is known yet.
    pub fn new(rules: Rules, now: Moment) -> Self {
        let watched = watches(&rules).into_iter().map(|(name, watch)| fresh(name, watch, now)).collect();
        Self { rules, floor: now, watched }
    }

    /// Takes changed rules; a criterion whose own rule is the same keeps what is known.
    pub fn configure(&mut self, rules: Rules, now: Moment) {
        let mut known = std::mem::take(&mut self.watched);
        for (name, watch) in watches(&rules) {
            let same = known.iter().position(|old| {
                old.name == name
                    && match (&old.watch, &watch) {
                        (Watch::Probe(old), Watch::Probe(new)) => old.rule() == new.rule(),
                        (Watch::Usage(_), Watch::Usage(_)) => self.rules.usage_below == rules.usage_below,
                        _ => true,
                    }
            });
            self.watched.push(match same {
                Some(at) => known.swap_remove(at),
                None => fresh(name, watch, now),
            });
        }
        self.rules = rules;
        self.settle(now);
    }

    /// An incident began: everything must be proved from here on.
    pub fn began(&mut self, now: Moment) {
        self.floor = now;
        self.settle(now);
    }

    /// Takes a look. To be called every second or so: what comes and goes between two looks is not seen, but for counters.
    pub fn observe(&mut self, now: Moment, facts: &Facts) {
        let (below, hold_for) = (self.rules.usage_below, self.rules.hold_for);
        for watched in &mut self.watched {
            match &mut watched.watch {
                Watch::Usage(usage) => usage.take(now, facts.usage, below),
                Watch::TooManyClients(quiet) => quiet.take(now, Ok(facts.too_many_clients)),
                Watch::Refusals(quiet) => quiet.take(now, Ok(facts.refused)),
                Watch::Log(quiet) => quiet.take(now, facts.logged.clone()),
                Watch::Lane(lane) => lane.take(now, hold_for, &facts.lanes),
                Watch::Probe(_) => {}
            }
        }
        self.settle(now);
    }

    /// Takes what a probe found, or why it found nothing. One that is in no rule (any more) is nobody's business.
    pub fn answered(&mut self, now: Moment, probe: &str, answer: Result<Measured, String>) {
        let hold_for = self.rules.hold_for;
        let probes = self.watched.iter_mut().filter_map(|watched| match &mut watched.watch {
            Watch::Probe(watch) => Some(watch),
            _ => None,
        });
        if let Some(watch) = probes.into_iter().find(|watch| *watch.rule().name == *probe) {
            watch.take(now, hold_for, answer);
        }
        self.settle(now);
    }

    /// The checklist.
    pub fn criteria(&self, now: Moment) -> Vec<Criterion> {
        let terms = self.terms(now);
        let of = |watched: &Watched| {
            let verdict = self.judge(watched, terms);
            // Between two looks a state may have come of age.
            let since = if verdict.state == watched.state { watched.since } else { now };
            Criterion {
                name: watched.name.clone(),
                state: verdict.state,
                since,
                measured: verdict.measured,
                wanted: self.wanted(&watched.watch),
                reason: verdict.reason,
            }
        };
        self.watched.iter().map(of).collect()
    }

    /// Whether every criterion is met.
    pub fn is_met(&self, now: Moment) -> bool {
        let terms = self.terms(now);
        self.watched.iter().all(|watched| self.judge(watched, terms).state == State::Met)
    }

    /// The latest number of each probe, in the order of the rules; none where there is none.
    pub fn numbers(&self, now: Moment) -> Vec<(Arc<str>, Option<f64>)> {
        let probes = self.watched.iter().filter_map(|watched| match &watched.watch {
            Watch::Probe(watch) => Some((watch.rule().name.clone(), watch.number(now))),
            _ => None,
        });
        probes.collect()
    }

    fn terms(&self, now: Moment) -> Terms {
        Terms { now, hold_for: self.rules.hold_for, floor: self.floor }
    }

    fn judge(&self, watched: &Watched, terms: Terms) -> Verdict {
        match &watched.watch {
            Watch::Usage(usage) => usage.judge(terms, self.rules.usage_below),
            Watch::TooManyClients(quiet) => quiet.judge(terms, "PostgreSQL said \"too many clients\""),
            Watch::Refusals(quiet) => quiet.judge(terms, "pgweir refused clients with 53300"),
            Watch::Log(quiet) => quiet.judge(terms, "PostgreSQL's log has \"too many clients\""),
            Watch::Lane(lane) => lane.judge(terms, self.rules.failures_below),
            Watch::Probe(probe) => probe.judge(terms),
        }
    }

    fn wanted(&self, watch: &Watch) -> String {
        let window = Span(self.rules.hold_for);
        match watch {
            Watch::Usage(_) => format!("below {} % for {window}", self.rules.usage_below),
            Watch::TooManyClients(_) | Watch::Refusals(_) | Watch::Log(_) => format!("none for {window}"),
            Watch::Lane(_) => {
                format!("commits, and below {} % failed in {window}", self.rules.failures_below)
            }
            Watch::Probe(probe) => format!("{} for {window}", probe.rule().expect),
        }
    }

    /// Remembers since when each criterion has its state.
    fn settle(&mut self, now: Moment) {
        let terms = self.terms(now);
        let states: Vec<State> =
            self.watched.iter().map(|watched| self.judge(watched, terms).state).collect();
        for (watched, state) in self.watched.iter_mut().zip(states) {
            if watched.state != state {
                watched.state = state;
                watched.since = now;
            }
        }
    }
}

fn fresh(name: Arc<str>, watch: Watch, now: Moment) -> Watched {
    Watched { name, watch, state: State::Unknown, since: now }
}

fn watches(rules: &Rules) -> Vec<(Arc<str>, Watch)> {
    let mut all: Vec<(Arc<str>, Watch)> = vec![
        ("usage".into(), Watch::Usage(UsageWatch::default())),
        ("too_many_clients".into(), Watch::TooManyClients(QuietWatch::default())),
        ("refusals".into(), Watch::Refusals(QuietWatch::default())),
    ];
    if rules.watches_log {
        all.push(("log".into(), Watch::Log(QuietWatch::default())));
    }
    for lane in &rules.lanes {
        all.push((format!("lane {lane}").into(), Watch::Lane(LaneWatch::new(lane.clone()))));
    }
    for rule in &rules.probes {
        all.push((format!("probe {}", rule.name).into(), Watch::Probe(ProbeWatch::new(rule.clone()))));
    }
    all
}

/// A duration as people say it.
#[derive(Clone, Copy, Debug)]
pub struct Span(pub Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match seconds {
            0..120 => write!(f, "{seconds} s"),
            120..7200 => match seconds % 60 {
                0 => write!(f, "{} min", seconds / 60),
                rest => write!(f, "{} min {rest} s", seconds / 60),
            },
            _ => write!(f, "{} h {} min", seconds / 3600, seconds / 60 % 60),
        }
    }
}

#[cfg(test)]
mod tests;
