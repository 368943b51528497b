//! How many per second, and random numbers for jitter.

use std::time::Duration;

use crate::clock::Moment;

/// A rate limit in whole microseconds, so that "allowed at" is exact: a burst of one second's worth, then one per interval.
#[derive(Clone, Debug)]
pub struct Rate {
    /// Zero is no limit.
    interval_us: u64,
    burst_us: u64,
    /// When the bucket is full again.
    full_at: Moment,
}

impl Rate {
    /// A limit of `per_second`; none is no limit.
    pub fn new(per_second: Option<f64>) -> Self {
        let interval_us = match per_second {
            // A cast of a float saturates; a day is slow enough for anybody.
            Some(rate) => ((1e6 / rate) as u64).clamp(1, 86_400_000_000),
            None => 0,
        };
        let burst_us = 1_000_000_u64.saturating_sub(interval_us);
        Self { interval_us, burst_us, full_at: Moment::default() }
    }

    /// The first moment at which one more is allowed; in the past if it is now.
    pub fn allowed_at(&self) -> Moment {
        if self.interval_us == 0 {
            return Moment::default();
        }
        self.full_at - Duration::from_micros(self.burst_us)
    }

    /// Takes one.
    pub fn take(&mut self, now: Moment) {
        if self.interval_us > 0 {
            self.full_at = self.full_at.max(now) + Duration::from_micros(self.interval_us);
        }
    }
}

/// xorshift64*: jitter that can be replayed from its seed. Not for secrets.
#[derive(Clone, Debug)]
pub struct Jitter(u64);

impl Jitter {
    /// A generator; every seed will do.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// The `failures`th wait of a doubling back-off, 100 ms to 5 s, stretched by up to half so that waiters do not come back together.
    pub fn backoff(&mut self, failures: u32) -> Duration {
        let base_us = (100_000_u64 << failures.saturating_sub(1).min(6)).min(5_000_000);
        let stretched = base_us + self.next_u64() % (base_us / 2);
        Duration::from_micros(stretched.min(5_000_000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_allows_a_burst_and_then_one_per_interval() {
        let start = Moment::from_micros(1);
        let mut rate = Rate::new(Some(4.0));
        for _ in 0..4 {
            assert!(rate.allowed_at() <= start);
            rate.take(start);
        }
        assert_eq!(rate.allowed_at(), start + Duration::from_millis(250));
        let later = start + Duration::from_secs(10);
        rate.take(later);
        assert!(rate.allowed_at() <= later, "a quiet second fills the bucket");
        assert!(Rate::new(None).allowed_at() <= start);
    }

    #[test]
    fn a_slow_rate_has_no_burst() {
        let mut rate = Rate::new(Some(0.5));
        rate.take(Moment::from_micros(5));
        assert_eq!(rate.allowed_at(), Moment::from_micros(2_000_005));
    }

    #[test]
    fn backoff_doubles_within_its_bounds() {
        let mut jitter = Jitter::new(7);
        let mut before = Duration::ZERO;
        for failures in 1..40 {
            let wait = jitter.backoff(failures);
            assert!((Duration::from_millis(100)..=Duration::from_secs(5)).contains(&wait));
            if failures < 6 {
                assert!(wait > before, "{failures}: {wait:?} after {before:?}");
            }
            before = wait;
        }
    }
}
