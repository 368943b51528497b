//! Failed logins of an address: each is answered later than the one before, and too many are not heard at all for a while.
//!
//! Counted where a proof is found wrong, so that many connections at once get no more guesses than one after the other. A user who has
//! logged in from the address lately has a count of its own: one misconfigured program must not shut out its neighbours, whether they
//! share a host or a router with it.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Moment;

/// Failures of one address after which its logins are refused unheard.
pub const FAILURES_MAX: u32 = 30;
/// One failure is forgiven in this time: what remains to somebody who guesses for ever.
pub const FORGIVE: Duration = Duration::from_secs(2);
/// How long a user counts as known at an address after its last login there.
pub const KNOWN_FOR: Duration = Duration::from_secs(3600);
/// Pause before the answer to a first failure; doubled by each further one.
const DELAY_FIRST: Duration = Duration::from_millis(100);
/// Longest pause.
const DELAY_MAX: Duration = Duration::from_millis(1600);
/// Addresses remembered at most, and users known at one; beyond, the one nearest to being forgotten goes.
const ENTRIES_MAX: usize = 10_000;

/// Failures by address. Clients of Unix sockets have none: they are slowed, never refused, since one of them would speak for all.
#[derive(Debug, Default)]
pub struct Throttle {
    addresses: HashMap<IpAddr, Failures>,
    known: HashMap<(IpAddr, Arc<str>), Known>,
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    /// When `count` was true.
    at: Moment,
}

/// A user at an address where it has logged in.
#[derive(Clone, Copy, Debug)]
struct Known {
    failures: Failures,
    logged_in: Moment,
}

impl Failures {
    const fn none(now: Moment) -> Self {
        Self { count: 0, at: now }
    }

    fn left(self, now: Moment) -> u32 {
        let forgiven = now.since(self.at).as_millis() / FORGIVE.as_millis();
        self.count.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX))
    }

    /// Counts one more; gives how many there were.
    fn add(&mut self, now: Moment) -> u32 {
        let left = self.left(now);
        // What is forgiven in part stays so: whole steps only are taken off.
        self.at = if left == 0 { now } else { self.at + FORGIVE * (self.count - left) };
        self.count = (left + 1).min(FAILURES_MAX);
        left
    }
}

impl Throttle {
    /// Failures that are not forgiven yet, and are held against this user at this address.
    pub fn failures(&self, address: Option<IpAddr>, user: &str, now: Moment) -> u32 {
        let Some(address) = address.map(network) else { return 0 };
        match self.known.get(&(address, user.into())) {
            Some(known) if now.since(known.logged_in) < KNOWN_FOR => known.failures.left(now),
            _ => self.addresses.get(&address).map_or(0, |failures| failures.left(now)),
        }
    }

    /// Whether a user may try at an address.
    pub fn may_try(&self, address: Option<IpAddr>, user: &str, now: Moment) -> bool {
        self.failures(address, user, now) < FAILURES_MAX
    }

    /// Counts a failure; gives the time after which it is answered.
    pub fn fail(&mut self, address: Option<IpAddr>, user: &str, now: Moment) -> Duration {
        let Some(address) = address.map(network) else { return DELAY_FIRST };
        if let Some(known) = self.known.get_mut(&(address, user.into())) {
            known.failures.add(now);
        }
        make_room(&mut self.addresses, &address, |failures| failures.left(now));
        let left = self.addresses.entry(address).or_insert(Failures::none(now)).add(now);
        DELAY_FIRST.saturating_mul(1 << left.min(8)).min(DELAY_MAX)
    }

    /// A user has logged in. What is held against its address stays.
    pub fn succeed(&mut self, address: Option<IpAddr>, user: &str, now: Moment) {
        let Some(address) = address.map(network) else { return };
        let key = (address, user.into());
        make_room(&mut self.known, &key, |known| known.logged_in);
        let known = self.known.entry(key).or_insert(Known { failures: Failures::none(now), logged_in: now });
        known.logged_in = now;
    }

    /// Forgets what is forgiven, and users that were not seen for long.
    pub fn clean(&mut self, now: Moment) {
        self.addresses.retain(|_, failures| failures.left(now) > 0);
        self.known.retain(|_, known| now.since(known.logged_in) < KNOWN_FOR);
    }

    /// Addresses remembered.
    pub fn len(&self) -> usize {
        self.addresses.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }
}

/// Makes room for a key that is not there yet: at the bound the entry of least worth goes.
fn make_room<K: Clone + Eq + Hash, V, W: Ord>(map: &mut HashMap<K, V>, key: &K, worth: impl Fn(&V) -> W) {
    if map.len() >= ENTRIES_MAX && !map.contains_key(key) {
        let least = map.iter().min_by_key(|(_, value)| worth(value)).map(|(key, _)| key.clone());
        least.map(|key| map.remove(&key));
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
        let delays: Vec<u128> = (0..7).map(|_| throttle.fail(host(1), "u", at(0)).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 1600, 1600]);
        for _ in 7..FAILURES_MAX {
            assert!(throttle.may_try(host(1), "u", at(0)));
            throttle.fail(host(1), "u", at(0));
        }
        assert!(!throttle.may_try(host(1), "u", at(0)) && throttle.may_try(host(2), "u", at(0)));
        // One guess a step is left, and after a minute nothing is held against it.
        assert!(!throttle.may_try(host(1), "u", at(1999)) && throttle.may_try(host(1), "u", at(2000)));
        throttle.fail(host(1), "u", at(2000));
        assert!(!throttle.may_try(host(1), "u", at(3999)) && throttle.may_try(host(1), "u", at(4000)));
        assert_eq!(throttle.failures(host(1), "u", at(64_000)), 0);
        assert_eq!(throttle.fail(host(1), "u", at(64_000)).as_millis(), 100);
    }

    #[test]
    fn a_unix_socket_is_slowed_and_never_shut() {
        let mut throttle = Throttle::default();
        for _ in 0..100 {
            assert_eq!(throttle.fail(None, "u", at(0)).as_millis(), 100);
        }
        assert!(throttle.may_try(None, "u", at(0)) && throttle.is_empty());
    }

    #[test]
    fn who_has_logged_in_from_an_address_answers_for_itself_only() {
        let mut throttle = Throttle::default();
        throttle.succeed(host(1), "web", at(0));
        for _ in 0..FAILURES_MAX {
            throttle.fail(host(1), "cron", at(1));
        }
        assert!(!throttle.may_try(host(1), "cron", at(1)) && !throttle.may_try(host(1), "other", at(1)));
        assert!(throttle.may_try(host(1), "web", at(1)));
        assert!(throttle.may_try(host(2), "cron", at(1)));
        // It has no more guesses than anybody else.
        for _ in 0..FAILURES_MAX {
            throttle.fail(host(1), "web", at(2));
        }
        assert!(!throttle.may_try(host(1), "web", at(2)));
        // And is a stranger again after an hour.
        throttle.succeed(host(1), "old", at(0));
        for _ in 0..FAILURES_MAX {
            throttle.fail(host(1), "cron", at(3_600_000));
        }
        assert!(!throttle.may_try(host(1), "old", at(3_600_000)));
        throttle.clean(at(3_700_000));
        assert!(throttle.is_empty() && throttle.known.is_empty());
        for n in 0..10_100_u32 {
            throttle.succeed(Some(IpAddr::from(n.to_be_bytes())), "u", at(u64::from(n)));
        }
        assert_eq!(throttle.known.len(), ENTRIES_MAX);
    }

    #[test]
    fn a_host_is_its_network_and_the_table_is_bounded() {
        let mut throttle = Throttle::default();
        throttle.fail(Some("2001:db8::1".parse().expect("an address")), "u", at(0));
        assert_eq!(throttle.failures(Some("2001:db8::ffff".parse().expect("an address")), "u", at(0)), 1);
        throttle.fail(Some("::ffff:192.0.2.1".parse().expect("an address")), "u", at(0));
        assert_eq!(throttle.failures(host(1), "u", at(0)), 1);
        throttle.fail(host(1), "u", at(0));
        for n in 0..10_100_u32 {
            throttle.fail(Some(IpAddr::from(n.to_be_bytes())), "u", at(1));
        }
        assert_eq!(throttle.len(), ENTRIES_MAX);
        assert_eq!(throttle.failures(host(1), "u", at(1)), 2, "the worst stay");
    }
}
