//! Counters and histograms of a lane, written by the workers without locks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the histogram buckets in microseconds; one more bucket takes the rest.
pub const BOUNDS_US: [u64; 17] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// A histogram of durations.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Records one duration.
    #[inline]
    pub fn record(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let at = BOUNDS_US.partition_point(|bound| *bound < us);
        self.buckets[at].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    /// Counts per bucket, the last one that of all longer ones, and the sum in seconds.
    pub fn counts(&self) -> ([u64; BOUNDS_US.len() + 1], f64) {
        (self.buckets.each_ref().map(|bucket| bucket.load(Relaxed)), self.sum_us.load(Relaxed) as f64 / 1e6)
    }
}

/// How a transaction ended, as far as a proxy can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionEnd {
    /// No error in it, and not a ROLLBACK.
    Committed,
    /// ROLLBACK, or an error.
    RolledBack,
    /// Rolled back by pgweir as a leak.
    Reset,
    /// The link ended inside it.
    Lost,
}

impl TransactionEnd {
    /// Every end.
    pub const ALL: [Self; 4] = [Self::Committed, Self::RolledBack, Self::Reset, Self::Lost];

    /// The metric's label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::RolledBack => "rolled_back",
            Self::Reset => "reset",
            Self::Lost => "lost",
        }
    }
}

/// All figures of one lane.
#[derive(Debug, Default)]
pub struct Meter {
    /// Time waited for a slot or held.
    pub wait: Histogram,
    /// Transactions, begin to end.
    pub transaction: Histogram,
    /// Requests, first byte in to ReadyForQuery out.
    pub query: Histogram,
    ends: [AtomicU64; 4],
    /// Transactions in which PostgreSQL raised an error, those that went on after a savepoint included; not those that were reset.
    pub failed: AtomicU64,
    /// Rollbacks as a leak.
    pub rollbacks: AtomicU64,
    /// Disconnects as a leak.
    pub disconnects: AtomicU64,
    /// Leaks left to the operator because `max_resets_per_minute` was reached.
    pub resets_stopped: AtomicU64,
    /// Idle links closed for those who wait.
    pub reclaimed: AtomicU64,
    /// Clients given a pooled connection.
    pub reused: AtomicU64,
}

impl Meter {
    /// Counts a transaction.
    pub fn ended(&self, end: TransactionEnd) {
        self.ends[end as usize].fetch_add(1, Relaxed);
    }

    /// Transactions that ended so.
    pub fn ends(&self, end: TransactionEnd) -> u64 {
        self.ends[end as usize].load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_counts_below_the_next_bound() {
        let h = Histogram::default();
        for us in [100, 250, 251, 70_000_000] {
            h.record(Duration::from_micros(us));
        }
        let (counts, sum) = h.counts();
        assert_eq!((counts[0], counts[1], counts[17], counts.iter().sum()), (2, 1, 1, 4_u64));
        assert!((sum - 70.000_601).abs() < 1e-9);
    }
}
