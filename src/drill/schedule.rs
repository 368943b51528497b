//! When requests arrive, and the dice each brings along. Pure: scenario and seed decide, nothing that happens in a run does.

use std::time::Duration;

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Exp};

use super::scenario::Pace;

/// A request's or an actor's own random choices: the same in every run of the same seed, whoever carries it out.
pub type Dice = ChaCha8Rng;

/// One request that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Since the start of the run.
    pub at: Duration,
    /// Of its actor, from 0.
    pub index: u64,
}

/// The dice of arrival `index` of the `actor`-th actor.
pub fn dice(seed: u64, actor: usize, index: u64) -> Dice {
    let mut key = [0_u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&(actor as u64).to_le_bytes());
    key[16..24].copy_from_slice(&index.to_le_bytes());
    Dice::from_seed(key)
}

/// Around `mean`, between a half and one and a half of it.
pub fn around(dice: &mut Dice, mean: Duration) -> Duration {
    mean.mul_f64(dice.random_range(0.5..1.5))
}

/// The arrivals of one actor, in order.
#[derive(Debug)]
pub struct Arrivals {
    windows: std::vec::IntoIter<(Duration, Duration)>,
    window: Option<(Duration, Duration)>,
    step: Step,
    /// Position within all windows laid end to end, for paces that know it.
    at: Duration,
    next: u64,
    dice: Dice,
}

#[derive(Debug)]
enum Step {
    Random(Exp<f64>),
    Fixed(Duration),
}

impl Arrivals {
    /// The arrivals of the `actor`-th actor, which plays in these `windows`.
    pub fn new(seed: u64, actor: usize, windows: Vec<(Duration, Duration)>, pace: Pace) -> Self {
        let whole: Duration = windows.iter().map(|(start, end)| *end - *start).sum();
        let step = match pace {
            Pace::Poisson(rate) => match Exp::new(rate) {
                Ok(gaps) => Step::Random(gaps),
                Err(_) => Step::Fixed(Duration::MAX),
            },
            Pace::Even(rate) => Step::Fixed(Duration::try_from_secs_f64(1.0 / rate).unwrap_or(Duration::MAX)),
            Pace::Count(count) => Step::Fixed(whole.div_f64(f64::from(count.max(1)))),
        };
        let mut windows = windows.into_iter();
        let window = windows.next();
        let mut arrivals =
            Self { windows, window, step, at: Duration::ZERO, next: 0, dice: dice(seed, actor, u64::MAX) };
        // Even arrivals begin in the middle of their first gap, so that `count = 1` falls in the middle of its phase.
        arrivals.at = match arrivals.step {
            Step::Fixed(gap) => gap / 2,
            Step::Random(_) => arrivals.gap(),
        };
        arrivals
    }

    fn gap(&mut self) -> Duration {
        match &self.step {
            Step::Fixed(gap) => *gap,
            // A gap of zero would be harmless; one beyond a day ends the schedule.
            Step::Random(gaps) => Duration::try_from_secs_f64(gaps.sample(&mut self.dice))
                .unwrap_or(Duration::from_secs(86_400)),
        }
    }
}

impl Iterator for Arrivals {
    type Item = Arrival;

    fn next(&mut self) -> Option<Arrival> {
        loop {
            let (start, end) = self.window?;
            let at = start.checked_add(self.at)?;
            if at < end {
                let arrival = Arrival { at, index: self.next };
                self.next += 1;
                self.at = self.at.saturating_add(self.gap());
                return Some(arrival);
            }
            // What is left of the gap is spent in the next window.
            self.at = at - end;
            self.window = self.windows.next();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn all(seed: u64, pace: Pace) -> Vec<Arrival> {
        Arrivals::new(seed, 0, vec![(SECOND, 11 * SECOND), (20 * SECOND, 30 * SECOND)], pace).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_schedule_and_dice() {
        let pace = Pace::Poisson(50.0);
        assert_eq!(all(7, pace), all(7, pace));
        assert_ne!(all(7, pace), all(8, pace));
        let draw = |seed, actor, index| dice(seed, actor, index).random::<u64>();
        assert_eq!(draw(1, 2, 3), draw(1, 2, 3));
        assert_ne!(draw(1, 2, 3), draw(1, 2, 4));
        assert_ne!(draw(1, 2, 3), draw(1, 3, 3));
        assert_ne!(draw(1, 2, 3), draw(2, 2, 3));
    }

    #[test]
    fn a_schedule_of_this_version_is_that_of_the_next() {
        // A report's seed must be good for a rerun years later: a change of generator shows here.
        let first: Vec<u128> =
            all(42, Pace::Poisson(10.0)).iter().take(3).map(|a| a.at.as_micros()).collect();
        assert_eq!(first, FIRST_OF_42);
    }
    const FIRST_OF_42: [u128; 3] = [1_046_577, 1_049_974, 1_205_541];

    #[test]
    fn even_arrivals_are_even_and_a_count_is_exact() {
        let even = all(1, Pace::Even(10.0));
        assert_eq!(even.len(), 200);
        assert_eq!(even[1].at - even[0].at, Duration::from_millis(100));
        assert_eq!(all(1, Pace::Count(7)).len(), 7);
        let once: Vec<Arrival> = Arrivals::new(1, 0, vec![(SECOND, 3 * SECOND)], Pace::Count(1)).collect();
        assert_eq!(once, [Arrival { at: 2 * SECOND, index: 0 }]);
    }

    #[test]
    fn poisson_arrivals_have_their_rate_and_their_spread() {
        let arrivals = all(3, Pace::Poisson(100.0));
        let (mean, deviation) = (2000.0, 2000_f64.sqrt());
        assert!((arrivals.len() as f64 - mean).abs() < 5.0 * deviation, "{}", arrivals.len());
        let gaps: Vec<f64> = arrivals.windows(2).map(|two| (two[1].at - two[0].at).as_secs_f64()).collect();
        let short = gaps.iter().filter(|gap| **gap < 0.01).count() as f64 / gaps.len() as f64;
        assert!(
            (short - 0.632).abs() < 0.05,
            "{short}: the share below the mean of an exponential distribution"
        );
    }

    proptest! {
        #[test]
        fn arrivals_are_in_order_and_inside_the_windows(seed in 0_u64..1000, rate in 0.5_f64..500.0, even: bool) {
            let pace = if even { Pace::Even(rate) } else { Pace::Poisson(rate) };
            let arrivals = all(seed, pace);
            prop_assert!(arrivals.windows(2).all(|two| two[0].at <= two[1].at && two[0].index + 1 == two[1].index));
            prop_assert!(arrivals.iter().all(|a| (1..11).contains(&a.at.as_secs()) || (20..30).contains(&a.at.as_secs())));
        }
    }
}
