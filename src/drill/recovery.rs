//! When users were well again. Pure.

use std::time::Duration;

use super::tally::{Lane, Point};

/// A request slower than so many times steady's p99 is a sign of trouble …
const TIMES_STEADY: f64 = 3.0;
/// … but not one faster than this.
const SLOW_MS_MIN: f64 = 250.0;

/// The response time, in milliseconds, above which a second is bad.
pub fn slow_ms(steady_p99_ms: Option<f64>) -> f64 {
    steady_p99_ms.map_or(SLOW_MS_MIN, |steady| (steady * TIMES_STEADY).max(SLOW_MS_MIN))
}

/// Time from `disturbed_until` to the end of the last bad stretch of `lanes`, zero if there was none since. `None` if the last stretch that
/// anything ended in is bad: nobody saw it recover.
pub fn recovered_after(
    lanes: &[&Lane],
    step: Duration,
    disturbed_until: Duration,
    slow_ms: f64,
) -> Option<Duration> {
    let bad = |point: &Point| point.user_failures > 0 || f64::from(point.max_ms) > slow_ms;
    let busy = |point: &Point| point.ok > 0 || point.user_failures > 0;
    let last_bad = lanes.iter().filter_map(|lane| lane.series.iter().rposition(bad)).max();
    let last_busy = lanes.iter().filter_map(|lane| lane.series.iter().rposition(busy)).max()?;
    let Some(last_bad) = last_bad else { return Some(Duration::ZERO) };
    if last_bad >= last_busy {
        return None;
    }
    let end = step * u32::try_from(last_bad + 1).unwrap_or(u32::MAX);
    Some(end.saturating_sub(disturbed_until))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::scenario;
    use crate::drill::tally::{Ending, Tally, Times};

    const S: Duration = Duration::from_secs(1);

    /// A lane with a good request ending in each of 20 seconds, and slow or failed ones where told.
    fn recovered(slow: &[u32], failed: &[u32], silent_from: u32) -> Option<u64> {
        let source = "title = \"t\"\n[[phase]]\nname = \"a\"\nduration = \"20s\"\n[[actor]]\nkind = \"web\"\nrate = 1\nnotify = 0";
        let mut tally = Tally::new(&scenario::read(source).unwrap(), Duration::ZERO);
        for second in (0..20).filter(|second| *second < silent_from) {
            let ended = S * second + S / 2;
            let took = if slow.contains(&second) { S / 2 } else { S / 100 };
            let times = Times { arrived: ended - took, ready: None, ended };
            tally.ended(0, &times, if failed.contains(&second) { Ending::Failed } else { Ending::Ok });
        }
        tally.finish();
        recovered_after(&[&tally.lanes[0]], S, 10 * S, slow_ms(Some(20.0))).map(|after| after.as_secs())
    }

    #[test]
    fn recovery_is_the_end_of_the_last_bad_second() {
        assert_eq!(recovered(&[], &[], 99), Some(0));
        assert_eq!(recovered(&[3, 5], &[4], 99), Some(0), "it was bad before only");
        assert_eq!(recovered(&[12], &[], 99), Some(3));
        assert_eq!(recovered(&[12], &[14], 99), Some(5));
    }

    #[test]
    fn a_run_that_ends_badly_has_not_recovered() {
        assert_eq!(recovered(&[], &[19], 99), None);
        assert_eq!(recovered(&[15], &[], 16), None, "silence is no recovery");
        assert_eq!(recovered(&[], &[], 0), None);
    }

    #[test]
    fn slow_is_seen_against_steady() {
        assert!((slow_ms(None) - 250.0).abs() < 1e-9);
        assert!((slow_ms(Some(10.0)) - 250.0).abs() < 1e-9);
        assert!((slow_ms(Some(200.0)) - 600.0).abs() < 1e-9);
    }
}
