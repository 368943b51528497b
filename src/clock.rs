//! The only reader of time.
//!
//! Everything else receives a [`Moment`]; clippy's `disallowed_methods` bans the standard clocks elsewhere, so that every
//! decision can be replayed in a test with virtual time.

use std::ops::{Add, Sub};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A point in monotonic time: microseconds since an origin of the process's own. Never zero when read from the clock, so that
/// atomics may use zero for "never".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    /// The moment `micros` microseconds after the origin.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the origin.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Time passed since `earlier`; zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;
    fn add(self, by: Duration) -> Self {
        let micros = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(micros))
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;
    fn sub(self, by: Duration) -> Self {
        let micros = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        Self(self.0.saturating_sub(micros))
    }
}

/// Wall-clock time in milliseconds since the Unix epoch, for records that people read and for pauses that outlive the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct WallMs(pub u64);

static ORIGIN: OnceLock<Instant> = OnceLock::new();

/// Now, on the monotonic clock.
#[allow(clippy::disallowed_methods, reason = "this file is the one reader of the clock")]
pub fn now() -> Moment {
    let origin = ORIGIN.get_or_init(Instant::now);
    Moment(1 + u64::try_from(origin.elapsed().as_micros()).unwrap_or(u64::MAX - 1))
}

/// Now, on the wall clock. A clock before 1970 reads as zero.
#[allow(clippy::disallowed_methods, reason = "this file is the one reader of the clock")]
pub fn wall_now() -> WallMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_saturate_instead_of_wrapping() {
        let early = Moment::from_micros(5);
        assert_eq!(early.since(Moment::from_micros(9)), Duration::ZERO);
        assert_eq!(early - Duration::from_secs(1), Moment::from_micros(0));
        assert!(early + Duration::MAX > early);
    }

    #[test]
    fn the_clock_never_reads_zero_and_never_goes_back() {
        let first = now();
        assert!(first.as_micros() > 0);
        assert!(now() >= first);
    }
}
