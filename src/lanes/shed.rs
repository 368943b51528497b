//! Shedding: two thresholds and a dwell, so that it does not flap.
//!
//! ```text
//! off ── usage ≥ above, or no data ──► on ── usage < below (or < above where only missing data put it on), data there,
//!  ▲                                    │    and on for at least the dwell
//!  └────────────────────────────────────┘
//! ```

use std::time::Duration;

use super::report::seconds;
use crate::clock::Moment;

/// A lane's thresholds.
#[derive(Clone, Copy, Debug)]
pub struct Thresholds {
    /// Usage in percent at which it goes on.
    pub above: f64,
    /// Usage in percent below which it may go off.
    pub below: f64,
    /// Time it stays on at least.
    pub dwell: Duration,
}

/// Whether a lane is shed.
#[derive(Clone, Debug, Default)]
pub struct Shed {
    on_since: Option<Moment>,
    /// Usage never was above the threshold: only missing data put it on.
    blind: bool,
}

impl Shed {
    /// Whether it is on.
    pub fn is_on(&self) -> bool {
        self.on_since.is_some()
    }

    /// Since when it is on.
    pub fn on_since(&self) -> Option<Moment> {
        self.on_since
    }

    /// Off at once: the lane has no thresholds any more.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Takes usage in percent (none: unknown without anybody to ask) and whether data is missing. True if it changed.
    pub fn evaluate(&mut self, now: Moment, limits: Thresholds, usage: Option<f64>, stale: bool) -> bool {
        let full = usage.is_some_and(|usage| usage >= limits.above);
        let Some(since) = self.on_since else {
            if stale || full {
                *self = Self { on_since: Some(now), blind: !full };
            }
            return self.is_on();
        };
        if full {
            self.blind = false;
        }
        let leaves = !stale && self.is_low(limits, usage) && now.since(since) >= limits.dwell;
        if leaves {
            self.clear();
        }
        leaves
    }

    /// When the dwell ends, where that alone keeps it on.
    pub fn dwell_ends(&self, limits: Thresholds, usage: Option<f64>, stale: bool) -> Option<Moment> {
        let since = self.on_since?;
        (!stale && self.is_low(limits, usage)).then(|| since + limits.dwell)
    }

    /// Why it is on, for people; while data is there.
    pub fn why(&self, now: Moment, limits: Thresholds, usage: Option<f64>) -> String {
        let shown = usage.map_or_else(|| "usage unknown".to_owned(), |usage| format!("usage {usage:.1} %"));
        let exit = if self.blind {
            format!("shed_above {}", limits.above)
        } else {
            format!("shed_below {}", limits.below)
        };
        if let Some(ends) = self.dwell_ends(limits, usage, false) {
            return format!("{shown}, below {exit}, dwell for another {}", seconds(ends.since(now)));
        }
        if usage.is_some_and(|usage| usage >= limits.above) {
            return format!("{shown}, shed_above {}", limits.above);
        }
        format!("{shown}, shed until below {exit}")
    }

    fn is_low(&self, limits: Thresholds, usage: Option<f64>) -> bool {
        let exit = if self.blind { limits.above } else { limits.below };
        usage.is_none_or(|usage| usage < exit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Thresholds = Thresholds { above: 75.0, below: 65.0, dwell: Duration::from_secs(5) };

    fn at(secs: u64) -> Moment {
        Moment::from_micros(1 + secs * 1_000_000)
    }

    #[test]
    fn it_needs_the_lower_threshold_and_the_dwell_to_go_off() {
        let mut shed = Shed::default();
        assert!(!shed.evaluate(at(0), LIMITS, Some(74.9), false));
        assert!(shed.evaluate(at(1), LIMITS, Some(75.0), false) && shed.is_on());
        assert!(!shed.evaluate(at(3), LIMITS, Some(10.0), false), "the dwell is not over");
        assert_eq!(shed.dwell_ends(LIMITS, Some(10.0), false), Some(at(6)));
        assert!(!shed.evaluate(at(9), LIMITS, Some(65.0), false), "not below yet");
        assert_eq!(shed.dwell_ends(LIMITS, Some(65.0), false), None);
        assert!(shed.evaluate(at(9), LIMITS, Some(64.9), false) && !shed.is_on());
    }

    #[test]
    fn it_says_why_it_is_still_on() {
        let mut shed = Shed::default();
        shed.evaluate(at(0), LIMITS, Some(80.0), false);
        assert_eq!(shed.why(at(1), LIMITS, Some(80.0)), "usage 80.0 %, shed_above 75");
        assert_eq!(shed.why(at(1), LIMITS, Some(70.0)), "usage 70.0 %, shed until below shed_below 65");
        let half = at(1) + Duration::from_millis(500);
        assert_eq!(
            shed.why(half, LIMITS, Some(3.7)),
            "usage 3.7 %, below shed_below 65, dwell for another 3.5 s"
        );
        let mut blind = Shed::default();
        blind.evaluate(at(0), LIMITS, Some(70.0), true);
        assert_eq!(
            blind.why(at(1), LIMITS, Some(70.0)),
            "usage 70.0 %, below shed_above 75, dwell for another 4 s"
        );
    }

    #[test]
    fn missing_data_puts_it_on_and_data_below_the_upper_threshold_takes_it_off() {
        let mut shed = Shed::default();
        assert!(shed.evaluate(at(0), LIMITS, Some(70.0), true) && shed.is_on());
        assert!(!shed.evaluate(at(60), LIMITS, Some(1.0), true), "still no data");
        assert!(shed.evaluate(at(61), LIMITS, Some(70.0), false) && !shed.is_on());
    }

    #[test]
    fn once_full_it_needs_the_lower_threshold_however_it_began() {
        let mut shed = Shed::default();
        shed.evaluate(at(0), LIMITS, None, true);
        shed.evaluate(at(1), LIMITS, Some(80.0), false);
        assert!(!shed.evaluate(at(60), LIMITS, Some(70.0), false) && shed.is_on());
    }
}
