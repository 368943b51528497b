//! Where a server's name leads, asked again and again. Pure: answers come in with the time.
//!
//! An answer holds until the next one: a resolver that fails or does not answer takes nobody off the air whose address is known. Where a name
//! leads to several addresses they are taken in turn. The one that is dialled keeps its turn, whether or not the name still leads to it.

use std::net::IpAddr;
use std::time::Duration;

use crate::clock::Moment;

/// Addresses of one name kept at most.
const ADDRESSES_MAX: usize = 16;

/// What is known of a name.
#[derive(Clone, Debug)]
pub struct Names {
    every: Duration,
    asked_at: Option<Moment>,
    known: Vec<IpAddr>,
    /// The one that is dialled.
    kept: Option<IpAddr>,
    /// Whose turn it is.
    turn: usize,
}

impl Names {
    /// Nothing is known yet; it is to be asked `every` so often.
    pub fn new(every: Duration) -> Self {
        Self { every, asked_at: None, known: Vec::new(), kept: None, turn: 0 }
    }

    /// How often it is to be asked.
    pub fn every(&self) -> Duration {
        self.every
    }

    /// Where a server of this name is dialled, if one is: it stays a candidate, and is the first as long as nothing else is known.
    pub fn keep(&mut self, dialled: Option<IpAddr>) {
        let dialled = dialled.map(|ip| ip.to_canonical());
        if self.kept != dialled {
            let used = self.candidate();
            self.kept = dialled;
            self.take_turn(used);
        }
    }

    /// Where the resolver said that it leads; empty as long as it has said nothing.
    pub fn answer(&self) -> &[IpAddr] {
        &self.known
    }

    /// Whether it is time to ask. One that was asked and is not known is asked at each occasion.
    pub fn is_due(&self, now: Moment) -> bool {
        self.candidate().is_none() || self.asked_at.is_none_or(|at| now.since(at) >= self.every)
    }

    /// It is being asked.
    pub fn asked(&mut self, now: Moment) {
        self.asked_at = Some(now);
    }

    /// Where it leads now; an empty answer is none.
    pub fn answered(&mut self, found: impl IntoIterator<Item = IpAddr>) {
        let mut new: Vec<IpAddr> = Vec::new();
        for ip in found.into_iter().map(|ip| ip.to_canonical()) {
            if new.len() < ADDRESSES_MAX && !new.contains(&ip) {
                new.push(ip);
            }
        }
        if new.is_empty() {
            return;
        }
        let used = self.candidate();
        self.known = new;
        self.take_turn(used);
    }

    /// The one in use stays in turn, and else the one that is dialled; the order of answers means nothing.
    fn take_turn(&mut self, used: Option<IpAddr>) {
        let place = |ip: Option<IpAddr>| self.candidates().position(|one| Some(one) == ip);
        self.turn = place(used).or_else(|| place(self.kept)).unwrap_or(0);
    }

    /// All there are.
    fn candidates(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let kept = self.kept.filter(|kept| !self.known.contains(kept));
        self.known.iter().copied().chain(kept)
    }

    /// Whose turn it is; none where nothing is known.
    pub fn candidate(&self) -> Option<IpAddr> {
        self.candidates().nth(self.turn)
    }

    /// The next one's turn. False if there is only one.
    pub fn skip(&mut self) -> bool {
        let count = self.candidates().count();
        self.turn = (self.turn + 1) % count.max(1);
        count > 1
    }

    /// This one's turn. False if it is none of them.
    pub fn turn_to(&mut self, ip: IpAddr) -> bool {
        let place = self.candidates().position(|one| one == ip);
        self.turn = place.unwrap_or(self.turn);
        place.is_some()
    }

    /// Whether the name leads to `ip`, as far as is known.
    pub fn leads_to(&self, ip: IpAddr) -> bool {
        self.known.is_empty() || self.known.contains(&ip.to_canonical())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Moment {
        Moment::from_micros(second * 1_000_000)
    }

    fn number(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn ip(last: u8) -> Option<IpAddr> {
        Some(number(last))
    }

    #[test]
    fn a_name_is_asked_again_in_time_and_its_last_answer_holds() {
        let mut names = Names::new(Duration::from_secs(10));
        assert!(names.is_due(at(0)) && names.candidate().is_none());
        names.asked(at(0));
        assert!(names.is_due(at(1)), "nothing is known yet");
        names.answered([number(1), number(1)]);
        assert!(!names.is_due(at(9)) && names.is_due(at(10)) && !names.skip());
        names.asked(at(10));
        names.answered([]);
        assert!(
            names.leads_to(number(1)) && !names.is_due(at(19)),
            "a resolver without an answer changes nothing"
        );
        names.answered([number(2)]);
        assert!(!names.leads_to(number(1)) && names.candidate() == ip(2));
    }

    #[test]
    fn several_addresses_take_turns_and_another_order_is_no_change() {
        let mut names = Names::new(Duration::from_secs(10));
        names.answered([1, 2, 3].map(number));
        assert!(names.skip());
        assert_eq!(names.candidate(), ip(2));
        names.answered([3, 1, 2].map(number));
        assert_eq!(names.candidate(), ip(2));
        names.skip();
        assert_eq!(names.candidate(), ip(3));
        names.answered((0..100).map(number));
        assert_eq!(names.known.len(), ADDRESSES_MAX);
    }

    #[test]
    fn where_a_server_is_dialled_it_is_looked_at_first_and_until_the_resolver_answers() {
        let mut names = Names::new(Duration::from_secs(10));
        names.keep(ip(2));
        assert!(names.is_due(at(0)) && names.candidate() == ip(2) && names.answer().is_empty());
        names.asked(at(0));
        names.answered([]);
        assert!(names.candidate() == ip(2) && names.answer().is_empty(), "a resolver that fails");
        assert!(!names.is_due(at(9)), "it is known where to look");
        names.answered([ip(1), ip(2)].into_iter().flatten());
        assert_eq!(names.candidate(), ip(2));
        assert!(names.skip() && names.candidate() == ip(1) && names.skip() && names.candidate() == ip(2));
    }

    #[test]
    fn the_one_that_is_dialled_keeps_its_turn_though_the_name_leads_elsewhere() {
        let mut names = Names::new(Duration::from_secs(10));
        names.answered(ip(1));
        names.keep(ip(1));
        for last in 2..9 {
            names.answered(ip(last));
            assert_eq!(names.candidate(), ip(1));
            assert!(!names.leads_to(number(1)) && names.answer() == [number(last)]);
        }
        // It is in trouble: where the name leads has its turn, and then it has again.
        assert!(names.skip() && names.candidate() == ip(8));
        names.answered(ip(9));
        assert_eq!(names.candidate(), ip(1), "the one in use is gone");
        assert!(names.turn_to(number(9)) && names.candidate() == ip(9) && !names.turn_to(number(5)));
        names.keep(ip(9));
        assert!(names.candidate() == ip(9) && !names.skip(), "the old one is nothing any more");
    }
}
