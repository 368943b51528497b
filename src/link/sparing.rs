//! Keeps the log readable in a storm: so many lines a second for each kind of refusal, and a count of those left out. Pure. Every
//! refusal is counted in the metrics all the same.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Moment;
use crate::reason::Reason;

/// Lines a second of one kind.
const BURST: u32 = 10;
const WINDOW: Duration = Duration::from_secs(1);

/// What was said of one kind.
#[derive(Debug)]
struct Window {
    since: Moment,
    said: u32,
    left_out: u64,
}

/// Refusals left out of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Lane, empty for a client whose lane is not known.
    pub lane: Arc<str>,
    /// Why they were refused.
    pub reason: Reason,
    /// How many.
    pub count: u64,
}

/// See the module. There are as many kinds as lanes times reasons.
#[derive(Debug, Default)]
pub struct Sparing {
    kinds: BTreeMap<(Arc<str>, Reason), Window>,
}

impl Sparing {
    /// Whether one more refusal of that kind goes into the log.
    pub fn may_say(&mut self, now: Moment, lane: &Arc<str>, reason: Reason) -> bool {
        let fresh = || Window { since: now, said: 0, left_out: 0 };
        let window = self.kinds.entry((lane.clone(), reason)).or_insert_with(fresh);
        if now.since(window.since) >= WINDOW && window.left_out == 0 {
            *window = fresh();
        }
        let may = window.said < BURST;
        if may {
            window.said += 1;
        } else {
            window.left_out += 1;
        }
        may
    }

    /// What was left out in windows that are over; they begin anew. To be called about once a second.
    pub fn settle(&mut self, now: Moment) -> Vec<LeftOut> {
        let mut left_out = Vec::new();
        self.kinds.retain(|(lane, reason), window| {
            if now.since(window.since) < WINDOW {
                return true;
            }
            if window.left_out > 0 {
                left_out.push(LeftOut { lane: lane.clone(), reason: *reason, count: window.left_out });
            }
            false
        });
        left_out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_micros(ms * 1000)
    }

    #[test]
    fn a_storm_is_ten_lines_a_second_and_a_count() {
        let (mut sparing, lane): (_, Arc<str>) = (Sparing::default(), "cron".into());
        let said = (0..500).filter(|ms| sparing.may_say(at(*ms), &lane, Reason::LaneFull)).count();
        assert_eq!(said, 10);
        assert!(sparing.may_say(at(500), &lane, Reason::Shed), "another kind has its own");
        assert_eq!(sparing.settle(at(600)), [], "the window is not over");
        let left_out = sparing.settle(at(1500));
        assert_eq!(left_out, [LeftOut { lane: lane.clone(), reason: Reason::LaneFull, count: 490 }]);
        assert!(sparing.may_say(at(1500), &lane, Reason::LaneFull));
        assert_eq!(sparing.settle(at(9000)), [], "nothing was left out");
        assert!(sparing.kinds.is_empty());
    }

    #[test]
    fn a_count_that_was_not_told_yet_is_not_forgotten() {
        let (mut sparing, lane): (_, Arc<str>) = (Sparing::default(), "cron".into());
        let said = (0..12).filter(|ms| sparing.may_say(at(*ms), &lane, Reason::LaneFull)).count();
        assert_eq!(said, 10);
        assert!(!sparing.may_say(at(5000), &lane, Reason::LaneFull));
        assert_eq!(sparing.settle(at(5001)).first().map(|left| left.count), Some(3));
    }
}
