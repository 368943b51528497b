//! How long the monitor rests: between two looks, and before it dials again.

use std::time::Duration;

/// A look at a session costs PostgreSQL and us a microsecond: with thousands of them one rests longer than the interval, up to so many times.
const REST_PER_SESSION: Duration = Duration::from_micros(300);
const INTERVALS_MAX: u32 = 2;
/// Pause before the first redial, and the longest one.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Between two looks at so many sessions.
pub fn pause_after(interval: Duration, sessions: usize) -> Duration {
    let sessions = u32::try_from(sessions).unwrap_or(u32::MAX);
    REST_PER_SESSION.saturating_mul(sessions).min(interval * INTERVALS_MAX).max(interval)
}

/// Doubles from [`BACKOFF_FIRST`] to [`BACKOFF_MAX`], the upper half of each step left to chance, so that several pgweir
/// do not redial in step.
#[derive(Debug, Default)]
pub struct Backoff {
    step: u32,
}

impl Backoff {
    /// The next pause, with `chance` between none and all of it.
    pub fn next(&mut self, chance: u32) -> Duration {
        let full = BACKOFF_FIRST.saturating_mul(1 << self.step.min(8)).min(BACKOFF_MAX);
        self.step = self.step.saturating_add(1);
        full / 2 + (full / 2).mul_f64(f64::from(chance) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_grows_jitters_and_is_bounded() {
        let mut low = Backoff::default();
        let mut high = Backoff::default();
        assert_eq!((low.next(0), high.next(u32::MAX)), (BACKOFF_FIRST / 2, BACKOFF_FIRST));
        assert_eq!((low.next(0), high.next(u32::MAX)), (BACKOFF_FIRST, BACKOFF_FIRST * 2));
        for _ in 0..100 {
            low.next(0);
            high.next(0);
        }
        assert_eq!((low.next(0), high.next(u32::MAX)), (BACKOFF_MAX / 2, BACKOFF_MAX));
    }

    #[test]
    fn many_sessions_are_looked_at_less_often() {
        let second = Duration::from_secs(1);
        assert_eq!(pause_after(second, 0), second);
        assert_eq!(pause_after(second, 3_000), second);
        assert_eq!(pause_after(second, 5_000), second * 3 / 2);
        assert_eq!(pause_after(second, usize::MAX), second * 2);
        assert_eq!(pause_after(second * 60, 100_000), second * 60);
    }
}
