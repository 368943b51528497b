//! Failed logins of an address: each is answered later than the one before, and too many are not heard at all for a while.
//!
//! Counted where a proof is found wrong, so that many connections at once get no more guesses than one after the other.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::clock::Moment;

/// Failures of one address after which its logins are refused unheard.
pub const FAILURES_MAX: u32 = 30;
/// One failure is forgiven in this time: what remains to somebody who guesses for ever.
pub const FORGIVE: Duration = Duration::from_secs(2);
/// Pause before the answer to a first failure; doubled by each further one.
const DELAY_FIRST: Duration = Duration::from_millis(100);
/// Longest pause.
const DELAY_MAX: Duration = Duration::from_millis(1600);
/// Addresses remembered at most; beyond, the one nearest to being forgiven is forgotten.
const ADDRESSES_MAX: usize = 10_000;

/// Failures by address. Clients of Unix sockets have none: they are slowed, never refused, since one of them would speak for all.
#[derive(Debug, Default)]
pub struct Throttle {
    failures: HashMap<IpAddr, Failures>,
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    /// When `count` was true.
    at: Moment,
}

impl Failures {
    fn left(self, now: Moment) -> u32 {
        let forgiven = now.since(self.at).as_millis() / FORGIVE.as_millis();
        self.count.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX))
    }
}

impl Throttle {
    /// Failures of an address that are not forgiven yet.
    pub fn failures(&self, address: Option<IpAddr>, now: Moment) -> u32 {
        address
            .and_then(|address| self.failures.get(&network(address)))
            .map_or(0, |failures| failures.left(now))
    }

    /// Whether an address may try.
    pub fn may_try(&self, address: Option<IpAddr>, now: Moment) -> bool {
        self.failures(address, now) < FAILURES_MAX
    }

    /// Counts a failure; gives the time after which it is answered.
    pub fn fail(&mut self, address: Option<IpAddr>, now: Moment) -> Duration {
        let Some(address) = address.map(network) else { return DELAY_FIRST };
        if !self.failures.contains_key(&address) {
            self.make_room(now);
        }
        let entry = self.failures.entry(address).or_insert(Failures { count: 0, at: now });
        let left = entry.left(now);
        if left == 0 {
            entry.at = now;
        } else {
            // What is forgiven in part stays so: whole steps only are taken off.
            let steps = entry.count - left;
            entry.at = entry.at + FORGIVE * steps;
        }
        entry.count = (left + 1).min(FAILURES_MAX);
        DELAY_FIRST.saturating_mul(1 << left.min(8)).min(DELAY_MAX)
    }

    /// Addresses remembered.
    pub fn len(&self) -> usize {
        self.failures.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.failures.is_empty()
    }

    fn make_room(&mut self, now: Moment) {
        if self.failures.len() < ADDRESSES_MAX {
            return;
        }
        self.failures.retain(|_, failures| failures.left(now) > 0);
        if self.failures.len() == ADDRESSES_MAX {
            let nearest = self
                .failures
                .iter()
                .min_by_key(|(_, failures)| failures.left(now))
                .map(|(address, _)| *address);
            nearest.map(|address| self.failures.remove(&address));
        }
    }
}

/// One host may choose among all addresses of an IPv6 /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_micros(ms * 1000)
    }

    fn host(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, last]))
    }

    #[test]
    fn each_failure_waits_longer_and_too_many_are_not_heard() {
        let mut throttle = Throttle::default();
        let delays: Vec<u128> = (0..7).map(|_| throttle.fail(host(1), at(0)).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 1600, 1600]);
        for _ in 7..FAILURES_MAX {
            assert!(throttle.may_try(host(1), at(0)));
            throttle.fail(host(1), at(0));
        }
        assert!(!throttle.may_try(host(1), at(0)) && throttle.may_try(host(2), at(0)));
        // One guess a step is left, and after a minute nothing is held against it.
        assert!(!throttle.may_try(host(1), at(1999)) && throttle.may_try(host(1), at(2000)));
        throttle.fail(host(1), at(2000));
        assert!(!throttle.may_try(host(1), at(3999)) && throttle.may_try(host(1), at(4000)));
        assert_eq!(throttle.failures(host(1), at(64_000)), 0);
        assert_eq!(throttle.fail(host(1), at(64_000)).as_millis(), 100);
    }

    #[test]
    fn a_unix_socket_is_slowed_and_never_shut() {
        let mut throttle = Throttle::default();
        for _ in 0..100 {
            assert_eq!(throttle.fail(None, at(0)).as_millis(), 100);
        }
        assert!(throttle.may_try(None, at(0)) && throttle.is_empty());
    }

    #[test]
    fn a_host_is_its_network_and_the_table_is_bounded() {
        let mut throttle = Throttle::default();
        throttle.fail(Some("2001:db8::1".parse().expect("an address")), at(0));
        assert_eq!(throttle.failures(Some("2001:db8::ffff".parse().expect("an address")), at(0)), 1);
        throttle.fail(Some("::ffff:192.0.2.1".parse().expect("an address")), at(0));
        assert_eq!(throttle.failures(host(1), at(0)), 1);
        throttle.fail(host(1), at(0));
        for n in 0..20_000_u32 {
            throttle.fail(Some(IpAddr::from(n.to_be_bytes())), at(1));
        }
        assert_eq!(throttle.len(), ADDRESSES_MAX);
        assert_eq!(throttle.failures(host(1), at(1)), 2, "the worst stay");
    }
}
