//! A week of peaks in a few figures: of each lane, and of PostgreSQL. Pure.
//!
//! A *percentile* is of the hours' peaks, so that one bad hour is not the plan; hours in which a lane did nothing are left out of it, so
//! that nights and Sundays do not make a busy day look exceptional.

use serde::{Deserialize, Serialize};

use super::peaks::{Cell, Hour, Peaks, Server};
use crate::snapshot::rfc3339;

/// Hours looked at: a week.
pub const HOURS: u64 = 168;
/// Of the hours' peaks, so many percent are at most the figure that is planned with.
pub const PERCENT: usize = 95;
/// An hour of which less was seen is in no percentile, unless there is no other.
const SEEN_MS_MIN: u32 = 15 * 60 * 1000;

const HOUR_MS: u64 = 3_600_000;

/// The highest figure, and the hour that had it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peak {
    /// The figure.
    pub value: u64,
    /// When the hour began, in ms since the Unix epoch; 0 where the figure is 0.
    #[serde(with = "rfc3339")]
    pub at: u64,
    /// What [`PERCENT`] of the lane's hours had at most.
    pub usual: u64,
}

/// What was seen of a lane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Hours in which it did something.
    pub hours: u32,
    /// Slots.
    pub slots: Peak,
    /// Slots, with those who waited because it was full.
    pub demand: Peak,
    /// Links in a request or a transaction at once.
    pub in_use: Peak,
    /// Clients that waited at once.
    pub waiting: Peak,
    /// The longest wait, in ms.
    pub wait_ms: Peak,
    /// The longest time idle in transaction that its client ended by going on, in ms.
    pub gap_ms: Peak,
    /// The longest that was reset, disconnected, or left by its client, in ms.
    pub cut_ms: Peak,
    /// How many were.
    pub cuts: u64,
    /// Transactions.
    pub transactions: u64,
    /// Refusals by reason, most first.
    pub refused: Vec<(String, u64)>,
}

/// What was seen of PostgreSQL.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WholeSeen {
    /// How much of the week was seen, in seconds.
    pub seen_s: u64,
    /// When the first hour seen began, in ms since the Unix epoch; 0 where none was.
    #[serde(with = "rfc3339")]
    pub since: u64,
    /// pgweir's slots.
    pub own: Peak,
    /// Client backends that are not pgweir's.
    pub bypass: Peak,
    /// Usage in tenths of a percent of usable.
    pub usage_permille: Peak,
    /// Connections in tenths of a percent of max_connections.
    pub of_max_permille: Peak,
    /// PostgreSQL's limits as they were seen last.
    pub server: Option<Server>,
}

impl WholeSeen {
    /// Whole hours of which something is known.
    pub fn hours(&self) -> u64 {
        self.seen_s / 3600
    }
}

/// The week that ends with the hour of `now_ms`.
pub fn whole(peaks: &Peaks, now_ms: u64) -> WholeSeen {
    let hours = week(peaks, now_ms);
    let peak =
        |of: fn(&Hour) -> u16| peak(hours.clone().map(|(at, hour)| (at, u64::from(of(hour)), full(hour))));
    let seen_ms: u64 = hours.clone().map(|(_, hour)| u64::from(hour.whole.seen_ms)).sum();
    WholeSeen {
        seen_s: seen_ms / 1000,
        since: hours.clone().next().map_or(0, |(number, _)| number * HOUR_MS),
        own: peak(|hour| hour.whole.own),
        bypass: peak(|hour| hour.whole.bypass),
        usage_permille: peak(|hour| hour.whole.usage_permille),
        of_max_permille: peak(|hour| hour.whole.of_max_permille),
        server: peaks.server(),
    }
}

/// The same of a lane.
pub fn lane(peaks: &Peaks, lane: &str, now_ms: u64) -> Seen {
    let Some(number) = peaks.number(lane) else { return Seen::default() };
    let cells = week(peaks, now_ms).filter_map(|(at, hour)| {
        let cell = hour.lanes.iter().find(|cell| cell.lane == number)?;
        Some((at, cell, full(hour)))
    });
    let worked = |cell: &Cell| cell.transactions > 0 || cell.waiting > 0;
    let any = cells.clone().any(|(_, cell, _)| worked(cell));
    let counts = |cell: &Cell| !any || worked(cell);
    let peak = |of: fn(&Cell) -> u64| {
        peak(cells.clone().map(|(at, cell, full)| (at, of(cell), full && counts(cell))))
    };
    Seen {
        hours: u32::try_from(cells.clone().filter(|(_, cell, _)| counts(cell)).count()).unwrap_or(u32::MAX),
        slots: peak(|cell| cell.slots.into()),
        demand: peak(|cell| cell.demand.into()),
        in_use: peak(|cell| cell.in_use.into()),
        waiting: peak(|cell| cell.waiting.into()),
        wait_ms: peak(|cell| cell.wait_ms.into()),
        gap_ms: peak(|cell| cell.gap_ms.into()),
        cut_ms: peak(|cell| cell.cut_ms.into()),
        cuts: cells.clone().map(|(_, cell, _)| u64::from(cell.cuts)).sum(),
        transactions: cells.clone().map(|(_, cell, _)| u64::from(cell.transactions)).sum(),
        refused: refused(peaks, number, now_ms),
    }
}

/// Lanes that something was seen of in the week.
pub fn lanes(peaks: &Peaks, now_ms: u64) -> Vec<String> {
    let numbers = week(peaks, now_ms).flat_map(|(_, hour)| hour.lanes.iter().map(|cell| cell.lane));
    let numbers: std::collections::BTreeSet<u16> = numbers.collect();
    let mut names: Vec<String> = numbers.into_iter().map(|number| peaks.called(number).to_owned()).collect();
    names.sort_unstable();
    names
}

fn refused(peaks: &Peaks, lane: u16, now_ms: u64) -> Vec<(String, u64)> {
    let mut found = std::collections::BTreeMap::<u16, u64>::new();
    let all = week(peaks, now_ms).flat_map(|(_, hour)| &hour.refused);
    for one in all.filter(|one| one.lane == lane) {
        *found.entry(one.reason).or_default() += u64::from(one.count);
    }
    let mut found: Vec<_> =
        found.into_iter().map(|(reason, count)| (peaks.called(reason).to_owned(), count)).collect();
    found.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    found
}

fn week(peaks: &Peaks, now_ms: u64) -> impl Iterator<Item = (u64, &Hour)> + Clone {
    let now = now_ms / HOUR_MS;
    peaks.hours(now.saturating_sub(HOURS - 1), now)
}

fn full(hour: &Hour) -> bool {
    hour.whole.seen_ms >= SEEN_MS_MIN
}

/// Of hours by number, figure, and whether they count in the percentile; where none does, all do.
fn peak(hours: impl Iterator<Item = (u64, u64, bool)> + Clone) -> Peak {
    let highest = hours.clone().max_by_key(|(_, value, _)| *value).filter(|(_, value, _)| *value > 0);
    let (at, value) = highest.map_or((0, 0), |(at, value, _)| (at * HOUR_MS, value));
    let any = hours.clone().any(|(_, _, counts)| counts);
    let counted = hours.filter(|(_, _, counts)| *counts || !any);
    let mut values: Vec<u64> = counted.map(|(_, value, _)| value).collect();
    values.sort_unstable();
    let rank = (values.len() * PERCENT).div_ceil(100);
    Peak { value, at, usual: values.get(rank.saturating_sub(1)).copied().unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advise::peaks::{LaneLook, WholeLook};

    const NOW: u64 = 400_000;

    fn week_of(figures: impl Iterator<Item = (u64, u32, u64)>) -> Peaks {
        let mut peaks = Peaks::default();
        for (ago, slots, transactions) in figures {
            let refused = [("lane_full", u64::from(slots))];
            let web = LaneLook { lane: "web", slots, transactions, refused: &refused, ..LaneLook::default() };
            let whole = WholeLook { own: slots, ..WholeLook::default() };
            peaks.record((NOW - ago) * HOUR_MS, HOUR_MS, &whole, [web]);
        }
        peaks
    }

    #[test]
    fn one_bad_hour_is_the_peak_and_not_the_plan() {
        let peaks = week_of((0..168).map(|ago| (ago, if ago == 5 { 90 } else { 10 }, 1)));
        let web = lane(&peaks, "web", NOW * HOUR_MS);
        assert_eq!(web.slots, Peak { value: 90, at: (NOW - 5) * HOUR_MS, usual: 10 });
        assert_eq!((web.hours, web.transactions), (168, 168));
        assert_eq!(web.refused, [("lane_full".to_owned(), 90 + 167 * 10)]);
        assert_eq!(whole(&peaks, NOW * HOUR_MS).hours(), 168);
    }

    #[test]
    fn nights_do_not_make_a_day_exceptional() {
        // Eight hours of work in 24, and idle links all the time.
        let peaks = week_of((0..168).map(|ago| if ago % 24 < 8 { (ago, 20, 50) } else { (ago, 12, 0) }));
        let web = lane(&peaks, "web", NOW * HOUR_MS);
        assert_eq!((web.hours, web.slots.usual), (56, 20));
        let idle = week_of((0..168).map(|ago| (ago, if ago < 4 { 30 } else { 12 }, 0)));
        assert_eq!(lane(&idle, "web", NOW * HOUR_MS).slots.usual, 12, "it never did anything: all hours");
    }

    #[test]
    fn what_is_older_than_a_week_or_barely_seen_does_not_count() {
        let mut peaks = week_of([(168, 99, 1), (3, 5, 1), (2, 5, 1)].into_iter());
        let sudden = LaneLook { lane: "web", slots: 50, transactions: 1, ..LaneLook::default() };
        peaks.record(NOW * HOUR_MS, 1000, &WholeLook::default(), [sudden]);
        let web = lane(&peaks, "web", NOW * HOUR_MS);
        assert_eq!((web.slots.value, web.slots.usual), (50, 5));
        let seen = whole(&peaks, NOW * HOUR_MS);
        assert_eq!((seen.seen_s, seen.since), (7201, (NOW - 3) * HOUR_MS));
        assert_eq!(lane(&peaks, "cron", NOW * HOUR_MS), Seen::default());
        assert_eq!(lanes(&peaks, NOW * HOUR_MS), ["web"]);
        // One hour that has just begun is better than nothing.
        let mut young = Peaks::default();
        let web = LaneLook { lane: "web", slots: 7, transactions: 1, ..LaneLook::default() };
        young.record(NOW * HOUR_MS, 1000, &WholeLook::default(), [web]);
        assert_eq!(lane(&young, "web", NOW * HOUR_MS).slots.usual, 7);
    }
}
