//! What grew most in the last 15 minutes: the first question of whoever is woken. Pure.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Moment;

/// How far back growth is looked for.
pub const WINDOW: Duration = Duration::from_secs(15 * 60);
/// One count is kept per this long.
const STEP: Duration = Duration::from_secs(60);
/// Lanes, and applications, kept per count: those with most slots. Application names come from clients.
const NAMES_MAX: usize = 128;

/// Counts of one lane or application at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// Its name.
    pub name: Arc<str>,
    /// Slots.
    pub slots: u32,
    /// Links idle in transaction.
    pub idle_in_transaction: u32,
}

/// All counts at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Of each lane.
    pub lanes: Vec<Count>,
    /// Of each application.
    pub applications: Vec<Count>,
    /// Sessions that bypass pgweir.
    pub bypass: u32,
}

/// What is counted. The order breaks ties: the first is the one an operator can act upon most directly.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Series {
    IdleInTransactionOfLane(Arc<str>),
    IdleInTransactionOfApplication(Arc<str>),
    SlotsOfLane(Arc<str>),
    SlotsOfApplication(Arc<str>),
    Bypass,
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IdleInTransactionOfLane(name) => write!(f, "idle in transaction in lane {name}"),
            Self::IdleInTransactionOfApplication(name) => {
                write!(f, "idle in transaction in application {name}")
            }
            Self::SlotsOfLane(name) => write!(f, "connections of lane {name}"),
            Self::SlotsOfApplication(name) => write!(f, "connections of application {name}"),
            Self::Bypass => f.write_str("connections that bypass pgweir"),
        }
    }
}

/// The answer: shown as `connections of lane cron: from 2 to 14 in 15 min`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrowthLine {
    /// What grew, for people.
    pub what: String,
    /// Count at the beginning.
    pub from: u32,
    /// Count now.
    pub to: u32,
    /// Time between the two: [`WINDOW`], or less where less is known.
    pub over: Duration,
}

impl fmt::Display for GrowthLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let minutes = self.over.as_secs().div_ceil(60).max(1);
        write!(f, "{}: from {} to {} in {minutes} min", self.what, self.from, self.to)
    }
}

type Row = BTreeMap<Series, u32>;

/// Counts of the last [`WINDOW`], one a minute, and the newest.
#[derive(Clone, Debug, Default)]
pub struct Growth {
    /// Oldest first; at most one per [`STEP`], so at most 16.
    minutes: VecDeque<(Moment, Row)>,
    newest: Row,
}

impl Growth {
    /// An empty tracker.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the counts of `now`. May be called as often as one likes.
    pub fn record(&mut self, now: Moment, counts: &Counts) {
        self.forget_before(now);
        self.newest = row(counts);
        if self.minutes.back().is_none_or(|(at, _)| now.since(*at) >= STEP) {
            self.minutes.push_back((now, self.newest.clone()));
        }
    }

    /// What has most more now than at the beginning of the window; none if nothing has more.
    pub fn grew_most(&self, now: Moment) -> Option<GrowthLine> {
        let (since, oldest) = self.minutes.iter().find(|(at, _)| now.since(*at) <= WINDOW)?;
        let grown = |(series, to): (&Series, &u32)| {
            let from = oldest.get(series).copied().unwrap_or(0);
            to.checked_sub(from).filter(|by| *by > 0).map(|by| (by, series.clone(), from, *to))
        };
        // Of equals the first in `Series`' order: max_by_key would take the last.
        let most = self.newest.iter().filter_map(grown).reduce(|a, b| if b.0 > a.0 { b } else { a });
        most.map(|(_, series, from, to)| GrowthLine {
            what: series.to_string(),
            from,
            to,
            over: now.since(*since),
        })
    }

    fn forget_before(&mut self, now: Moment) {
        while self.minutes.front().is_some_and(|(at, _)| now.since(*at) > WINDOW) {
            self.minutes.pop_front();
        }
    }
}

fn row(counts: &Counts) -> Row {
    let mut row = Row::new();
    for count in biggest(&counts.lanes) {
        row.insert(Series::SlotsOfLane(count.name.clone()), count.slots);
        row.insert(Series::IdleInTransactionOfLane(count.name.clone()), count.idle_in_transaction);
    }
    for count in biggest(&counts.applications) {
        row.insert(Series::SlotsOfApplication(count.name.clone()), count.slots);
        row.insert(Series::IdleInTransactionOfApplication(count.name.clone()), count.idle_in_transaction);
    }
    row.insert(Series::Bypass, counts.bypass);
    row
}

fn biggest(counts: &[Count]) -> Vec<&Count> {
    let mut biggest: Vec<&Count> = counts.iter().collect();
    if biggest.len() > NAMES_MAX {
        biggest.sort_by_key(|count| std::cmp::Reverse(count.slots));
        biggest.truncate(NAMES_MAX);
    }
    biggest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minute: u64) -> Moment {
        Moment::from_micros(1) + Duration::from_secs(60 * minute)
    }

    fn count(name: &str, slots: u32, idle_in_transaction: u32) -> Count {
        Count { name: name.into(), slots, idle_in_transaction }
    }

    fn lanes(web: (u32, u32), cron: (u32, u32)) -> Counts {
        Counts { lanes: vec![count("web", web.0, web.1), count("cron", cron.0, cron.1)], ..Counts::default() }
    }

    #[test]
    fn what_grew_most_is_named_with_its_figures() {
        let mut growth = Growth::new();
        growth.record(at(0), &lanes((10, 0), (2, 0)));
        growth.record(at(9), &lanes((13, 0), (14, 1)));
        let line = growth.grew_most(at(10)).expect("cron grew");
        assert_eq!(line.to_string(), "connections of lane cron: from 2 to 14 in 10 min");
    }

    #[test]
    fn nothing_grew_without_data_when_steady_and_when_falling() {
        let mut growth = Growth::new();
        assert_eq!(growth.grew_most(at(1)), None);
        growth.record(at(1), &lanes((5, 5), (5, 5)));
        assert_eq!(growth.grew_most(at(1)), None);
        growth.record(at(2), &lanes((5, 4), (3, 5)));
        assert_eq!(growth.grew_most(at(2)), None);
    }

    #[test]
    fn growth_older_than_the_window_is_history() {
        let mut growth = Growth::new();
        growth.record(at(0), &lanes((1, 0), (0, 0)));
        for minute in 1..=16 {
            growth.record(at(minute), &lanes((30, 0), (0, 0)));
        }
        assert_eq!(growth.grew_most(at(16)), None);
    }

    #[test]
    fn of_equal_growth_idle_in_transaction_comes_first() {
        let mut growth = Growth::new();
        growth.record(at(0), &lanes((1, 0), (0, 0)));
        growth.record(at(1), &lanes((5, 4), (4, 0)));
        assert_eq!(growth.grew_most(at(1)).expect("grew").what, "idle in transaction in lane web");
    }

    #[test]
    fn a_newcomer_grew_from_nothing_and_bypass_counts() {
        let mut growth = Growth::new();
        growth.record(at(0), &Counts::default());
        let mut now = Counts { bypass: 3, ..Counts::default() };
        now.applications.push(count("etl", 9, 0));
        growth.record(at(1), &now);
        assert_eq!(growth.grew_most(at(1)).expect("grew").what, "connections of application etl");
        now.bypass = 12;
        growth.record(at(2), &now);
        assert_eq!(growth.grew_most(at(2)).expect("grew").what, "connections that bypass pgweir");
    }

    #[test]
    fn memory_is_bounded_whatever_names_clients_invent_and_however_often_it_is_fed() {
        let mut growth = Growth::new();
        let many = (0..1000).map(|n| count(&format!("app{n}"), n, 0)).collect();
        let counts = Counts { applications: many, ..Counts::default() };
        for second in (0..3600).step_by(20) {
            growth.record(at(0) + Duration::from_secs(second), &counts);
        }
        assert!(growth.minutes.len() <= 16, "{}", growth.minutes.len());
        assert_eq!(growth.newest.len(), 2 * NAMES_MAX + 1);
        assert!(growth.newest.contains_key(&Series::SlotsOfApplication("app999".into())));
    }
}
