//! What the end of a session says of the server. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::Sign;
use crate::clock::Moment;

/// A server that lets the monitor in again and again, and does not answer, counts as lost after this.
const HUNG_AFTER: Duration = Duration::from_secs(10);
/// Where patience is asked for, one that lets nobody in counts as silent after this: a restart, a full backlog, a packet lost.
const SILENT_AFTER: Duration = Duration::from_secs(3);
/// Addresses of one name of which it is known since when they let nobody in.
const ADDRESSES_MAX: usize = 64;

/// Since when sessions are lost without an answer between, and since when none is to be had.
#[derive(Debug, Default)]
pub(super) struct Failing {
    /// Whether one attempt in vain is no sign yet.
    patient: bool,
    lost: Option<Moment>,
    /// By where the server's name led.
    refused: BTreeMap<Option<IpAddr>, Moment>,
}

impl Failing {
    pub(super) fn new(patient: bool) -> Self {
        Self { patient, ..Self::default() }
    }

    /// A session was lost; with `answers` it was PostgreSQL that said so.
    pub(super) fn lost(&mut self, now: Moment, at: Option<IpAddr>, answers: bool) -> Sign {
        if answers {
            self.answered(at);
            return Sign::Answers;
        }
        let since = *self.lost.get_or_insert(now);
        if now.since(since) < HUNG_AFTER { Sign::Suspect } else { Sign::Hung }
    }

    /// No session was to be had; with `answers` it was PostgreSQL that refused one. Either ends a series of sessions that were had and lost.
    pub(super) fn refused(&mut self, now: Moment, at: Option<IpAddr>, answers: bool) -> Sign {
        self.lost = None;
        if answers {
            self.refused.remove(&at);
            return Sign::Answers;
        }
        if self.refused.len() >= ADDRESSES_MAX && !self.refused.contains_key(&at) {
            self.refused.clear();
        }
        let since = *self.refused.entry(at).or_insert(now);
        if self.patient && now.since(since) < SILENT_AFTER { Sign::Suspect } else { Sign::Silent }
    }

    /// There was an answer.
    pub(super) fn answered(&mut self, at: Option<IpAddr>) {
        self.lost = None;
        self.refused.remove(&at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Moment {
        Moment::from_micros(second * 1_000_000)
    }

    #[test]
    fn only_sessions_that_are_had_and_lost_again_and_again_are_a_server_that_hangs() {
        let mut failing = Failing::default();
        assert_eq!(
            [1, 10, 11].map(|second| failing.lost(at(second), None, false)),
            [Sign::Suspect, Sign::Suspect, Sign::Hung]
        );
        // It refused in between, or was not there: what came before was another trouble.
        for (answers, sign) in [(true, Sign::Answers), (false, Sign::Silent)] {
            let refused = failing.refused(at(29), None, answers);
            assert_eq!((refused, failing.lost(at(30), None, false)), (sign, Sign::Suspect));
        }
        let signs = (failing.lost(at(99), None, true), failing.lost(at(99), None, false));
        assert_eq!(signs, (Sign::Answers, Sign::Suspect));
    }

    #[test]
    fn with_patience_one_attempt_in_vain_is_no_silence_and_a_second_one_later_is() {
        let mut failing = Failing::new(true);
        let mut refused = |second, answers| failing.refused(at(second), None, answers);
        assert_eq!(
            [10, 12, 13].map(|second| refused(second, false)),
            [Sign::Suspect, Sign::Suspect, Sign::Silent]
        );
        // However long it was silent: what counts is since when.
        assert_eq!(
            [refused(14, true), refused(60, false), refused(63, false)],
            [Sign::Answers, Sign::Suspect, Sign::Silent]
        );
        failing.answered(None);
        assert_eq!(failing.refused(at(64), None, false), Sign::Suspect);
        // A session that was had and lost is no answer.
        assert_eq!(failing.lost(at(66), None, false), Sign::Suspect);
        assert_eq!(failing.refused(at(67), None, false), Sign::Silent);
    }

    #[test]
    fn what_one_of_its_name_answers_ends_nobody_elses_silence() {
        let ip = |last| Some(IpAddr::from([10, 0, 0, last]));
        let mut failing = Failing::new(true);
        assert_eq!(failing.refused(at(1), ip(1), false), Sign::Suspect);
        failing.answered(ip(2));
        assert_eq!(failing.refused(at(2), ip(2), false), Sign::Suspect);
        assert_eq!(failing.refused(at(4), ip(1), false), Sign::Silent);
        for last in 0..255 {
            failing.refused(at(5), ip(last), false);
            assert!(failing.refused.len() <= ADDRESSES_MAX);
        }
    }
}
