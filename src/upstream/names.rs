//! Where a server's name leads, asked again and again. Pure: answers come in with the time.
//!
//! An answer holds until the next one: a resolver that fails or does not answer takes nobody off the air whose address is known. Where a name
//! leads to several addresses they are taken in turn.

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
    /// The resolver has not said it yet.
    guessed: bool,
    /// Whose turn it is.
    turn: usize,
}

impl Names {
    /// Nothing is known yet but where it led `before`; it is to be asked `every` so often.
    pub fn new(every: Duration, before: Option<IpAddr>) -> Self {
        let known = before.map(|ip| ip.to_canonical()).into_iter().collect();
        Self { every, asked_at: None, known, guessed: true, turn: 0 }
    }

    /// Where the resolver said that it leads; empty as long as it has said nothing.
    pub fn answer(&self) -> &[IpAddr] {
        if self.guessed { &[] } else { &self.known }
    }

    /// Whether it is time to ask. One that was asked and is not known is asked at each occasion.
    pub fn is_due(&self, now: Moment) -> bool {
        self.known.is_empty() || self.asked_at.is_none_or(|at| now.since(at) >= self.every)
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
        // The one in use stays in turn; the order of answers means nothing.
        let used = self.candidate();
        self.turn = used.and_then(|used| new.iter().position(|ip| *ip == used)).unwrap_or(0);
        self.known = new;
        self.guessed = false;
    }

    /// Whose turn it is; none where nothing is known.
    pub fn candidate(&self) -> Option<IpAddr> {
        self.known.get(self.turn).copied()
    }

    /// The next one's turn. False if there is only one.
    pub fn skip(&mut self) -> bool {
        self.turn = (self.turn + 1) % self.known.len().max(1);
        self.known.len() > 1
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

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn a_name_is_asked_again_in_time_and_its_last_answer_holds() {
        let mut names = Names::new(Duration::from_secs(10), None);
        assert!(names.is_due(at(0)) && names.candidate().is_none());
        names.asked(at(0));
        assert!(names.is_due(at(1)), "nothing is known yet");
        names.answered([ip(1), ip(1)]);
        assert!(!names.is_due(at(9)) && names.is_due(at(10)) && !names.skip());
        names.asked(at(10));
        names.answered([]);
        assert!(
            names.leads_to(ip(1)) && !names.is_due(at(19)),
            "a resolver without an answer changes nothing"
        );
        names.answered([ip(2)]);
        assert!(!names.leads_to(ip(1)) && names.candidate() == Some(ip(2)));
    }

    #[test]
    fn several_addresses_take_turns_and_another_order_is_no_change() {
        let mut names = Names::new(Duration::from_secs(10), None);
        names.answered([ip(1), ip(2), ip(3)]);
        assert!(names.skip());
        assert_eq!(names.candidate(), Some(ip(2)));
        names.answered([ip(3), ip(1), ip(2)]);
        assert_eq!(names.candidate(), Some(ip(2)));
        names.skip();
        assert_eq!(names.candidate(), Some(ip(3)));
        names.answered((0..100).map(ip));
        assert_eq!(names.known.len(), ADDRESSES_MAX);
    }
    #[test]
    fn where_a_server_is_dialled_it_is_looked_at_first_and_until_the_resolver_answers() {
        let mut names = Names::new(Duration::from_secs(10), Some(ip(2)));
        assert!(names.is_due(at(0)) && names.candidate() == Some(ip(2)) && names.answer().is_empty());
        names.asked(at(0));
        names.answered([]);
        assert!(names.candidate() == Some(ip(2)) && names.answer().is_empty(), "a resolver that fails");
        names.answered([ip(1), ip(2)]);
        assert_eq!((names.candidate(), names.answer()), (Some(ip(2)), [ip(1), ip(2)].as_slice()));
    }
}
