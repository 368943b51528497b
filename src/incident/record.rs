//! What is kept of an incident: when and why it began, what happened, what the criteria said, figures. Pure; read back as it was written.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::WallMs;
use crate::snapshot::{TimelineEntry, rfc3339};

/// Entries of the timeline kept at most: beyond that pgweir's own go first, what people did stays.
pub const EVENTS_MAX: usize = 1_000;
/// Changes of criteria kept at most, the first and the last ones.
pub const CHANGES_MAX: usize = 400;
/// Rows of figures at most; then two become one.
pub const ROWS_MAX: usize = 360;
/// Time between rows at first, in ms.
pub const ROW_EVERY_MS: u64 = 5_000;
/// Lanes, and probes, with figures of their own at most: the first ones.
pub const SERIES_MAX: usize = 40;

/// A moment, in JSON as RFC 3339.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct At(#[serde(with = "rfc3339")] pub u64);

impl From<WallMs> for At {
    fn from(at: WallMs) -> Self {
        Self(at.0)
    }
}

/// A criterion became something else, or what it was in the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// When.
    pub at: At,
    /// Which.
    pub criterion: String,
    /// met, not met, unknown.
    pub state: String,
    /// What was measured.
    pub measured: String,
    /// What is wanted.
    pub wanted: String,
    /// Why.
    pub reason: String,
}

/// A lane in a row of figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneFigures {
    /// Its state at the end of the row.
    pub state: String,
    /// Most slots.
    pub slots: u32,
    /// Most waiting.
    pub waiting: u32,
    /// Transactions committed during the row.
    pub committed: u64,
    /// Transactions failed and clients refused during the row.
    pub failed: u64,
}

impl LaneFigures {
    fn add(&mut self, later: &Self) {
        self.state.clone_from(&later.state);
        self.slots = self.slots.max(later.slots);
        self.waiting = self.waiting.max(later.waiting);
        self.committed += later.committed;
        self.failed += later.failed;
    }
}

/// Figures of a stretch of time: the highest of what is a level, the sum of what is counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// When it began.
    pub at: At,
    /// Percent; none where it was not known.
    pub usage: Option<f64>,
    /// Connections at PostgreSQL.
    pub connections: u32,
    /// Those of them that are not pgweir's.
    pub bypass: u32,
    /// In the order of [`Figures::lanes`].
    pub lanes: Vec<LaneFigures>,
    /// In the order of [`Figures::probes`]: the last number.
    pub probes: Vec<Option<f64>>,
}

impl Row {
    fn add(&mut self, later: &Self) {
        self.usage = match (self.usage, later.usage) {
            (Some(one), Some(other)) => Some(one.max(other)),
            (one, other) => one.or(other),
        };
        self.connections = self.connections.max(later.connections);
        self.bypass = self.bypass.max(later.bypass);
        self.lanes.resize(self.lanes.len().max(later.lanes.len()), LaneFigures::default());
        self.lanes.iter_mut().zip(&later.lanes).for_each(|(one, other)| one.add(other));
        self.probes.resize(self.probes.len().max(later.probes.len()), None);
        for (one, other) in self.probes.iter_mut().zip(&later.probes) {
            *one = other.or(*one);
        }
    }
}

/// What is looked at, before it has its place in a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Look {
    /// Percent.
    pub usage: Option<f64>,
    /// Connections at PostgreSQL.
    pub connections: u32,
    /// Those of them that are not pgweir's.
    pub bypass: u32,
    /// Lanes by name; what is counted, since the last look.
    pub lanes: Vec<(Arc<str>, LaneFigures)>,
    /// Numbers of probes by name.
    pub probes: Vec<(Arc<str>, Option<f64>)>,
}

/// Figures over time, bounded: when there are too many rows, each two become one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Names of lanes.
    pub lanes: Vec<String>,
    /// Names of probes.
    pub probes: Vec<String>,
    /// Length of a row in ms.
    pub every_ms: u64,
    /// Oldest first; the last one still grows.
    pub rows: Vec<Row>,
}

impl Default for Figures {
    fn default() -> Self {
        Self { lanes: Vec::new(), probes: Vec::new(), every_ms: ROW_EVERY_MS, rows: Vec::new() }
    }
}

impl Figures {
    /// Adds a look. May be called as often as one likes.
    pub fn add(&mut self, at: WallMs, look: &Look) {
        let mut row = Row {
            at: at.into(),
            usage: look.usage.map(|percent| (percent * 10.0).round() / 10.0),
            connections: look.connections,
            bypass: look.bypass,
            ..Row::default()
        };
        for (name, lane) in &look.lanes {
            if let Some(n) = place(&mut self.lanes, name) {
                row.lanes.resize(row.lanes.len().max(n + 1), LaneFigures::default());
                row.lanes[n] = lane.clone();
            }
        }
        for (name, number) in &look.probes {
            if let Some(n) = place(&mut self.probes, name) {
                row.probes.resize(row.probes.len().max(n + 1), None);
                row.probes[n] = *number;
            }
        }
        match self.rows.last_mut() {
            // A clock that was set back ends no row early, and one that jumps ahead begins one.
            Some(last) if at.0 < last.at.0.saturating_add(self.every_ms) => last.add(&row),
            _ => self.rows.push(row),
        }
        if self.rows.len() > ROWS_MAX {
            self.thin();
        }
    }

    fn thin(&mut self) {
        self.every_ms = self.every_ms.saturating_mul(2);
        let rows = std::mem::take(&mut self.rows);
        let merged = rows.chunks(2).map(|two| {
            let mut row = two[0].clone();
            two.iter().skip(1).for_each(|later| row.add(later));
            row
        });
        self.rows = merged.collect();
    }
}

/// The place of a name, made if there is room.
fn place(names: &mut Vec<String>, name: &str) -> Option<usize> {
    names.iter().position(|known| known == name).or_else(|| {
        let n = names.len();
        (n < SERIES_MAX).then(|| {
            names.push(name.to_owned());
            n
        })
    })
}

/// Whether what pgweir decided was carried out: an incident may see both. Of a record of an earlier version neither is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Modes {
    /// For a time it was only put on record.
    pub observe: bool,
    /// For a time it was.
    pub enforce: bool,
}

impl Modes {
    /// The mode at a look.
    pub fn note(&mut self, observe: bool) {
        self.observe |= observe;
        self.enforce |= !observe;
    }
}

/// An incident, whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    /// Counts from 1; never used twice.
    pub id: u64,
    /// When it began.
    pub opened_at: At,
    /// usage, freeze, too_many_clients, log.
    pub trigger: String,
    /// Why it began, in a sentence.
    pub cause: String,
    /// When it was over; none while it is open.
    pub closed_at: Option<At>,
    /// Highest usage in percent.
    pub peak_percent: Option<f64>,
    /// `hold_for` in ms, when last looked at.
    pub hold_for_ms: u64,
    /// Number of the first entry of the timeline that is not in here yet.
    pub next_seq: u64,
    /// Entries of the timeline, a few from before the beginning included.
    pub events: Vec<TimelineEntry>,
    /// Entries there was no room for.
    pub events_left_out: u64,
    /// What the criteria said, when it changed.
    pub changes: Vec<Said>,
    /// What they said last.
    pub criteria: Vec<Said>,
    /// Figures.
    pub figures: Figures,
    /// Modes it was in.
    #[serde(default)]
    pub modes: Modes,
}

impl Incident {
    /// Takes entries of the timeline, those it has already left out.
    pub fn take(&mut self, entries: &[TimelineEntry]) {
        for entry in entries {
            if entry.seq < self.next_seq {
                continue;
            }
            self.next_seq = entry.seq + 1;
            if self.events.len() >= EVENTS_MAX {
                let own = self.events.iter().position(|event| event.who == "pgweir").unwrap_or(0);
                self.events.remove(own);
                self.events_left_out += 1;
            }
            self.events.push(entry.clone());
        }
    }

    /// Takes what the criteria say now.
    pub fn hear(&mut self, criteria: Vec<Said>) {
        for said in &criteria {
            let before = self.criteria.iter().find(|before| before.criterion == said.criterion);
            if before.is_none_or(|before| before.state != said.state) {
                if self.changes.len() >= CHANGES_MAX {
                    self.changes.remove(CHANGES_MAX / 2);
                }
                self.changes.push(said.clone());
            }
        }
        self.criteria = criteria;
    }

    /// Its line in the list.
    pub fn summary(&self) -> Summary {
        Summary {
            id: self.id,
            opened_at: self.opened_at,
            closed_at: self.closed_at,
            trigger: self.trigger.clone(),
            cause: self.cause.clone(),
            peak_percent: self.peak_percent,
            events: self.events.len() as u64 + self.events_left_out,
        }
    }
}

/// An incident's line in the list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Counts from 1.
    pub id: u64,
    /// When it began.
    pub opened_at: At,
    /// When it was over.
    pub closed_at: Option<At>,
    /// usage, freeze, too_many_clients, log.
    pub trigger: String,
    /// Why it began.
    pub cause: String,
    /// Highest usage in percent.
    pub peak_percent: Option<f64>,
    /// Entries of the timeline.
    pub events: u64,
}
