//! What is played: phases, actors, an operator's actions, and what must hold. Pure.

mod check;
mod document;

use std::collections::BTreeSet;
use std::time::Duration;

pub use check::read;
pub use document::{Problem, parse_time};

use super::expect::Rule;

/// A checked scenario: every name in it resolves, every number is within its bounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// One line for people.
    pub title: String,
    /// More lines for people; may be empty.
    pub description: String,
    /// At least one, without gaps.
    pub phases: Vec<Phase>,
    /// At least one.
    pub actors: Vec<Actor>,
    /// In the order of their times.
    pub actions: Vec<Action>,
    /// What must hold.
    pub rules: Vec<Rule>,
    /// Time to recover at most.
    pub recover_within: Option<Duration>,
    /// The idle time after which the guard is taken to reset a leak.
    pub reset: Option<Duration>,
}

/// A part of the run.
#[derive(Clone, Debug, PartialEq)]
pub struct Phase {
    /// Unique.
    pub name: String,
    /// Since the start of the run.
    pub start: Duration,
    /// Never zero.
    pub length: Duration,
    /// Whether it is the yardstick of the others.
    pub steady: bool,
    /// Whether its end is what recovery is counted from, where there are no actions.
    pub incident: bool,
}

/// What an actor behaves as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "docs/drill.md, Actors, says what each does")]
pub enum Kind {
    Web,
    Live,
    Cron,
    Queue,
    Report,
    Import,
    Leak,
    Hoard,
    Bypass,
    Storm,
    Killed,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Web,
        Self::Live,
        Self::Cron,
        Self::Queue,
        Self::Report,
        Self::Import,
        Self::Leak,
        Self::Hoard,
        Self::Bypass,
        Self::Storm,
        Self::Killed,
    ];

    /// The word in a scenario file.
    pub fn word(self) -> &'static str {
        match self {
            Self::Web => "web",
            Self::Live => "live",
            Self::Cron => "cron",
            Self::Queue => "queue",
            Self::Report => "report",
            Self::Import => "import",
            Self::Leak => "leak",
            Self::Hoard => "hoard",
            Self::Bypass => "bypass",
            Self::Storm => "storm",
            Self::Killed => "killed",
        }
    }

    /// application_name where the scenario gives none: those config/odoo.toml tells apart. `{pid}` as in ODOO_PGAPPNAME.
    pub fn application(self) -> &'static str {
        match self {
            Self::Web | Self::Killed => "odoo-{pid}",
            Self::Live => "odoo-{pid}-gevent",
            Self::Cron => "odoo-cron-{pid}",
            Self::Queue => "odoo-queue-{pid}",
            Self::Report => "odoo-reports-{pid}",
            Self::Import => "odoo-imports-{pid}",
            Self::Leak => "odoo-{pid}-carrier",
            Self::Hoard => "odoo-{pid}-idle",
            Self::Bypass => "drill-bypass",
            Self::Storm => "import-storm",
        }
    }

    /// Whether a person waits for the end of each request: what is unfinished at the end of the run failed for them.
    pub fn has_a_user(self) -> bool {
        matches!(self, Self::Web | Self::Live | Self::Report | Self::Import)
    }

    /// Whether arrivals come by schedule; the others are closed loops, or only hold.
    pub fn is_scheduled(self) -> bool {
        !matches!(self, Self::Hoard | Self::Bypass | Self::Storm)
    }

    /// Keys that mean something to this kind, beyond kind, lane, application and phases.
    pub(in crate::drill) fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Web => {
                &["workers", "rate", "arrivals", "statements", "hot", "notify", "timeout", "max_waiting"]
            }
            Self::Live => &["workers", "rate", "arrivals", "timeout", "max_waiting"],
            Self::Cron | Self::Queue | Self::Report => {
                &["workers", "rate", "arrivals", "work", "timeout", "max_waiting"]
            }
            Self::Import => &["workers", "rate", "arrivals", "statements", "timeout", "max_waiting"],
            Self::Leak => &["workers", "rate", "count", "arrivals", "hold", "timeout", "max_waiting"],
            Self::Killed => &["workers", "rate", "count", "arrivals", "work", "max_waiting"],
            Self::Hoard | Self::Bypass => &["count"],
            Self::Storm => &["workers", "work"],
        }
    }
}

/// A group of clients of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Actor {
    /// What it behaves as.
    pub kind: Kind,
    /// Where its figures go.
    pub lane: String,
    /// application_name of its links; `{pid}` stands for the worker's.
    pub application: String,
    /// Indices of the phases it plays in, ascending; never empty.
    pub phases: Vec<usize>,
    /// Processes.
    pub workers: u32,
    /// When its requests arrive.
    pub pace: Pace,
    /// Links that are held.
    pub count: u32,
    /// Statements of a request; hundreds of rows of an import.
    pub statements: u32,
    /// Share of requests that want a much wanted row.
    pub hot: f64,
    /// Share of requests that open a bus connection.
    pub notify: f64,
    /// Mean time of the work itself.
    pub work: Duration,
    /// Silence of a leak.
    pub hold: Duration,
    /// Age at which a request is over.
    pub timeout: Duration,
    /// Arrivals waiting for a worker at most.
    pub max_waiting: u32,
}

impl Actor {
    /// application_name of its `number`-th worker, where it is the scenario's `ordinal`-th actor. Who asks which links are one client
    /// process's has, from afar, nothing but address and name to go by; so each worker has its own, as with Odoo.
    pub fn application_of(&self, ordinal: usize, number: u32) -> String {
        let pid = (ordinal + 1) * 1_000 + number as usize;
        self.application.replace("{pid}", &pid.to_string())
    }

    /// Those of all its workers and links.
    pub fn applications(&self, ordinal: usize) -> BTreeSet<String> {
        (0..self.workers.max(self.count).max(1)).map(|number| self.application_of(ordinal, number)).collect()
    }
}

/// When requests arrive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// Independent of one another, so many a second.
    Poisson(f64),
    /// At equal distances, so many a second.
    Even(f64),
    /// So many in all, evenly spread over the actor's phases.
    Count(u32),
}

/// An operator's act at a set time.
#[derive(Clone, Debug, PartialEq)]
pub struct Action {
    /// Since the start of the run.
    pub at: Duration,
    /// What is done.
    pub deed: Deed,
}

/// What an operator does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Says this at the console.
    Console(String),
    /// Has the shell run this.
    Run(String),
    /// Resets one after the other, at the console, the leaks idle for longer than this; the same for people.
    ResetLeaks(Duration, String),
}

impl Deed {
    /// For people.
    pub fn text(&self) -> &str {
        match self {
            Self::Console(text) | Self::Run(text) | Self::ResetLeaks(_, text) => text,
        }
    }
}

impl Scenario {
    /// Time from the start to the end of the last phase.
    pub fn length(&self) -> Duration {
        self.phases.last().map_or(Duration::ZERO, |last| last.start + last.length)
    }

    /// The same scenario stretched or shrunk to `length`: phases and actions, not what actors do inside.
    #[must_use]
    pub fn stretched(mut self, length: Duration) -> Self {
        let whole = self.length();
        if whole.is_zero() {
            return self;
        }
        let factor = length.as_secs_f64() / whole.as_secs_f64();
        for phase in &mut self.phases {
            phase.start = phase.start.mul_f64(factor);
            phase.length = phase.length.mul_f64(factor);
        }
        for action in &mut self.actions {
            action.at = action.at.mul_f64(factor);
        }
        self
    }

    /// Index of the phase that contains this moment of the run; the last one from its end on.
    pub fn phase_at(&self, at: Duration) -> usize {
        let after = self.phases.partition_point(|phase| phase.start <= at);
        after.saturating_sub(1)
    }

    /// When `actor` plays: start and end of each stretch of phases that follow one another.
    pub fn windows(&self, actor: &Actor) -> Vec<(Duration, Duration)> {
        let mut windows: Vec<(Duration, Duration)> = Vec::new();
        for phase in actor.phases.iter().filter_map(|index| self.phases.get(*index)) {
            let end = phase.start + phase.length;
            match windows.last_mut() {
                Some(last) if last.1 == phase.start => last.1 = end,
                _ => windows.push((phase.start, end)),
            }
        }
        windows
    }

    /// What recovery is counted from: the last action, or the end of the last incident; none where there is neither.
    pub fn disturbed_until(&self) -> Option<Duration> {
        let incident = self.phases.iter().rev().find(|phase| phase.incident);
        self.actions.last().map(|action| action.at).or(incident.map(|phase| phase.start + phase.length))
    }

    /// Names of the lanes that appear, in the order of the file, `notify` behind the first actor that notifies.
    pub fn lanes(&self) -> Vec<String> {
        let mut lanes: Vec<String> = Vec::new();
        for actor in &self.actors {
            let notify = (actor.kind == Kind::Web && actor.notify > 0.0).then_some(NOTIFY);
            for lane in std::iter::once(actor.lane.as_str()).chain(notify) {
                if !lanes.iter().any(|known| known == lane) {
                    lanes.push(lane.to_owned());
                }
            }
        }
        lanes
    }
}

/// The lane of bus connections.
pub const NOTIFY: &str = "notify";
