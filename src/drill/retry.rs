//! Odoo's `retrying`: what is repeated, how often, and after which pause. Pure.

use std::time::Duration;

use rand::RngExt;

use super::schedule::Dice;

/// Tries of a request in all.
pub const TRIES_MAX: u32 = 5;
/// The SQLSTATEs Odoo repeats: serialization failure, deadlock, lock not available.
const REPEATED: [&str; 3] = ["40001", "40P01", "55P03"];

/// The tries of one request.
#[derive(Debug, Default)]
pub struct Retry {
    tries: u32,
}

impl Retry {
    /// What Odoo does after a try failed with this SQLSTATE, as Odoo sees it (`None` on a link that was closed): the pause before the next try,
    /// uniform(0, 2^n) s after the n-th, or `None`, and the user sees the error.
    pub fn after(&mut self, sqlstate: Option<&str>, dice: &mut Dice) -> Option<Duration> {
        self.tries += 1;
        let again = sqlstate.is_some_and(|state| REPEATED.contains(&state)) && self.tries < TRIES_MAX;
        again.then(|| Duration::from_secs_f64(dice.random_range(0.0..f64::from(1_u32 << self.tries))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::schedule::dice;

    #[test]
    fn five_tries_with_growing_pauses() {
        let mut longest = [0.0_f64; 4];
        for index in 0..500 {
            let (mut retry, mut dice) = (Retry::default(), dice(1, 0, index));
            for longest in &mut longest {
                let pause = retry.after(Some("40001"), &mut dice).unwrap().as_secs_f64();
                *longest = longest.max(pause);
            }
            assert_eq!(retry.after(Some("40001"), &mut dice), None, "the fifth try was the last");
        }
        for (longest, bound) in longest.into_iter().zip([2.0, 4.0, 8.0, 16.0]) {
            assert!(longest < bound && longest > bound * 0.95, "{longest} of {bound}");
        }
    }

    #[test]
    fn only_what_odoo_repeats_is_repeated() {
        let mut dice = dice(1, 0, 0);
        for state in [Some("40P01"), Some("55P03")] {
            assert!(Retry::default().after(state, &mut dice).is_some(), "{state:?}");
        }
        for state in [None, Some("25P03"), Some("25P02"), Some("57014"), Some("53300"), Some("57P01")] {
            assert!(Retry::default().after(state, &mut dice).is_none(), "{state:?}");
        }
    }
}
