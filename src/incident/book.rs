//! Which incident is open: it opens by itself, and closes when every criterion is met and by nothing else. Pure.
//!
//! ```text
//! none open ── usage crosses the line, FREEZE, a true "too many clients" ──► open ── every criterion met ──► none open
//! ```
//! Usage opens one by *crossing*: after an incident that ended above that line (it may lie below `usage_below`) no new one begins until usage
//! has been below it.

use std::collections::VecDeque;

use super::record::{Incident, Look, Said, Summary};
use crate::clock::WallMs;
use crate::snapshot::TimelineEntry;

/// Incidents kept.
pub const KEPT: usize = 32;
/// Entries of the timeline from before an incident that are kept with it, and how far back, in ms.
const BEFORE_MAX: usize = 50;
const BEFORE_MS: u64 = 5 * 60 * 1000;

/// Everything that decides about incidents, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Percent; none where it is unknown or stale.
    pub usage: Option<f64>,
    /// From this usage on an incident is open.
    pub opens_at: f64,
    /// Times PostgreSQL said "too many clients" to us, in all.
    pub too_many_clients: u64,
    /// Times its log has it, in all.
    pub logged: u64,
    /// Whether every criterion is met, all counted from the incident's beginning.
    pub met: bool,
    /// Whether nothing that is decided is carried out.
    pub observe: bool,
    /// `hold_for` in ms.
    pub hold_for_ms: u64,
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    /// Put it into the timeline, count the criteria anew, save it.
    Opened(Summary),
    /// Put it into the timeline and save it; it is not held here any more.
    Closed(Box<Incident>),
}

/// The open incident, and the list of those that are over.
#[derive(Debug, Default)]
pub struct Book {
    open: Option<Incident>,
    /// Oldest first, at most [`KEPT`].
    closed: VecDeque<Summary>,
    last_id: u64,
    /// Totals of the last look.
    seen: Option<(u64, u64)>,
    /// Usage was at or above the line at the last look that knew it.
    above: bool,
}

impl Book {
    /// Goes on with the incidents of earlier runs.
    pub fn new(open: Option<Incident>, mut closed: Vec<Summary>) -> Self {
        closed.sort_by_key(|summary| summary.id);
        let last_id = closed.iter().map(|s| s.id).chain(open.iter().map(|i| i.id)).max().unwrap_or(0);
        let excess = closed.len().saturating_sub(KEPT);
        Self { open, closed: closed.split_off(excess).into(), last_id, ..Self::default() }
    }

    /// The open incident.
    pub fn open(&self) -> Option<&Incident> {
        self.open.as_ref()
    }

    /// Every incident, oldest first.
    pub fn list(&self) -> Vec<Summary> {
        self.closed.iter().cloned().chain(self.open.as_ref().map(Incident::summary)).collect()
    }

    /// Takes a look. `entries` are the timeline's newest, oldest first; those it has seen already do no harm while an incident is open,
    /// and `fresh` says from which number on they are new.
    pub fn step(&mut self, at: WallMs, facts: &Facts, entries: &[TimelineEntry], fresh: u64) -> Option<Act> {
        let totals = (facts.too_many_clients, facts.logged);
        let before = self.seen.replace(totals).unwrap_or((0, 0));
        let above = facts.usage.map(|usage| usage >= facts.opens_at);
        let crossed = above == Some(true) && !self.above;
        self.above = above.unwrap_or(self.above);
        if let Some(incident) = &mut self.open {
            incident.take(entries);
            incident.modes.note(facts.observe);
            incident.hold_for_ms = facts.hold_for_ms;
            incident.peak_percent = highest(incident.peak_percent, facts.usage);
            return if facts.met { self.close(at) } else { None };
        }
        let frozen = entries.iter().find(|entry| entry.seq >= fresh && entry.event == "freeze");
        let (trigger, cause) = if totals.0 > before.0 {
            ("too_many_clients", "PostgreSQL said \"too many clients\"".to_owned())
        } else if totals.1 > before.1 {
            (
                "log",
                "PostgreSQL's log says \"too many clients\": somebody who bypasses pgweir was refused"
                    .to_owned(),
            )
        } else if let Some(usage) = facts.usage.filter(|_| crossed) {
            ("usage", format!("usage {usage:.1} %, from {} % on", facts.opens_at))
        } else if let Some(freeze) = frozen {
            ("freeze", format!("FREEZE by {}: {}", freeze.who, freeze.text))
        } else {
            return None;
        };
        self.last_id += 1;
        let mut incident = Incident {
            id: self.last_id,
            opened_at: at.into(),
            trigger: trigger.to_owned(),
            cause,
            peak_percent: highest(None, facts.usage),
            hold_for_ms: facts.hold_for_ms,
            ..Incident::default()
        };
        let recent =
            entries.iter().filter(|entry| entry.seq >= fresh || entry.at.saturating_add(BEFORE_MS) >= at.0);
        let recent: Vec<TimelineEntry> = recent.cloned().collect();
        incident.modes.note(facts.observe);
        incident.take(&recent[recent.len().saturating_sub(BEFORE_MAX)..]);
        let summary = incident.summary();
        self.open = Some(incident);
        Some(Act::Opened(summary))
    }

    /// Puts figures and what the criteria say on record, while an incident is open.
    pub fn record(&mut self, at: WallMs, look: &Look, said: Vec<Said>) {
        if let Some(incident) = &mut self.open {
            incident.figures.add(at, look);
            incident.hear(said);
        }
    }

    fn close(&mut self, at: WallMs) -> Option<Act> {
        let mut incident = self.open.take()?;
        incident.closed_at = Some(at.into());
        if self.closed.len() >= KEPT {
            self.closed.pop_front();
        }
        self.closed.push_back(incident.summary());
        Some(Act::Closed(Box::new(incident)))
    }
}

/// To one decimal, as the timeline has it.
fn highest(peak: Option<f64>, usage: Option<f64>) -> Option<f64> {
    let usage = usage.map(|percent| (percent * 10.0).round() / 10.0);
    match (peak, usage) {
        (Some(one), Some(other)) => Some(one.max(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests;
