//! What the end of a session says of the server. Pure.

use std::time::Duration;

use super::Sign;
use crate::clock::Moment;

/// A server that lets the monitor in again and again, and does not answer, counts as lost after this.
const HUNG_AFTER: Duration = Duration::from_secs(10);

/// Since when sessions are lost without an answer between.
#[derive(Debug, Default)]
pub(super) struct Failing(Option<Moment>);

impl Failing {
    /// A session was lost; with `answers` it was PostgreSQL that said so.
    pub(super) fn lost(&mut self, now: Moment, answers: bool) -> Sign {
        if answers {
            self.over();
            return Sign::Answers;
        }
        let since = *self.0.get_or_insert(now);
        if now.since(since) < HUNG_AFTER { Sign::Suspect } else { Sign::Hung }
    }

    /// No session was to be had; with `answers` it was PostgreSQL that refused one. Either ends a series of sessions that were had and lost.
    pub(super) fn refused(&mut self, answers: bool) -> Sign {
        self.over();
        if answers { Sign::Answers } else { Sign::Silent }
    }

    /// There was an answer.
    pub(super) fn over(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sessions_that_are_had_and_lost_again_and_again_are_a_server_that_hangs() {
        let at = |second: u64| Moment::from_micros(second * 1_000_000);
        let mut failing = Failing::default();
        assert_eq!(
            [1, 10, 11].map(|second| failing.lost(at(second), false)),
            [Sign::Suspect, Sign::Suspect, Sign::Hung]
        );
        // It refused in between, or was not there: what came before was another trouble.
        for (answers, sign) in [(true, Sign::Answers), (false, Sign::Silent)] {
            assert_eq!((failing.refused(answers), failing.lost(at(30), false)), (sign, Sign::Suspect));
        }
        assert_eq!((failing.lost(at(99), true), failing.lost(at(99), false)), (Sign::Answers, Sign::Suspect));
    }
}
