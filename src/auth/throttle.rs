//! Failed logins of an address: each is answered later than the one before, and after too many proofs are not looked at for a while.
//!
//! Counted where a proof is found wrong, so that many connections at once get no more guesses than one after the other. A user who has
//! logged in from the address lately has a count of its own, and is never refused for it: beyond the bound its proofs are looked at one
//! after the other, at the pace of the longest pause. Nobody who shares a host or a router with it can shut it out by failing, not even
//! under its name, and a guesser is no faster by it.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::RandomState;

use crate::clock::Moment;

/// Failures of one address after which proofs of its logins are not looked at.
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
    known: HashMap<(IpAddr, Arc<str>), Known, RandomState>,
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
    /// From when on its next proof is looked at, where it failed too often.
    free_at: Moment,
}

/// What becomes of a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It is looked at.
    Now,
    /// It may ask again after this.
    Later(Duration),
    /// It is not looked at, and answered like a wrong one, after this.
    Never(Duration),
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
    /// Failures of an address that are not forgiven yet.
    pub fn failures(&self, address: Option<IpAddr>, now: Moment) -> u32 {
        let failures = address.and_then(|address| self.addresses.get(&network(address)));
        failures.map_or(0, |failures| failures.left(now))
    }

    /// Whether so many logins of an address failed that strangers' proofs are not looked at.
    pub fn is_locked(&self, address: Option<IpAddr>, now: Moment) -> bool {
        self.failures(address, now) >= FAILURES_MAX
    }

    /// Asked where a proof is about to be looked at.
    pub fn turn(&mut self, address: Option<IpAddr>, user: &str, now: Moment) -> Turn {
        let key: Option<(IpAddr, Arc<str>)> = address.map(|address| (network(address), user.into()));
        let locked = self.is_locked(address, now);
        match key.and_then(|key| self.known.get_mut(&key)) {
            Some(known) if now.since(known.logged_in) < KNOWN_FOR => {
                // The last one takes its turn already, or what is forgiven meanwhile would come on top.
                if known.failures.left(now) + 1 < FAILURES_MAX {
                    return Turn::Now;
                }
                let wait = known.free_at.since(now);
                if wait > Duration::ZERO {
                    return Turn::Later(wait);
                }
                known.free_at = now + DELAY_MAX;
                Turn::Now
            }
            _ if locked => Turn::Never(DELAY_MAX),
            _ => Turn::Now,
        }
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
        let new = Known { failures: Failures::none(now), logged_in: now, free_at: now };
        let known = self.known.entry(key).or_insert(new);
        known.logged_in = now;
        // It was no guess: the next one need not wait for it.
        known.free_at = now;
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
fn make_room<K: Clone + Eq + Hash, V, S: BuildHasher, W: Ord>(
    map: &mut HashMap<K, V, S>,
    key: &K,
    worth: impl Fn(&V) -> W,
) {
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

    fn may_try(throttle: &mut Throttle, address: Option<IpAddr>, user: &str, now: Moment) -> bool {
        throttle.turn(address, user, now) == Turn::Now
    }

    #[test]
    fn each_failure_waits_longer_and_too_many_are_not_heard() {
        let mut throttle = Throttle::default();
        let delays: Vec<u128> = (0..7).map(|_| throttle.fail(host(1), "u", at(0)).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 1600, 1600]);
        for _ in 7..FAILURES_MAX {
            assert!(may_try(&mut throttle, host(1), "u", at(0)));
            throttle.fail(host(1), "u", at(0));
        }
        assert!(!may_try(&mut throttle, host(1), "u", at(0)) && may_try(&mut throttle, host(2), "u", at(0)));
        // One guess a step is left, and after a minute nothing is held against it.
        assert!(
            !may_try(&mut throttle, host(1), "u", at(1999)) && may_try(&mut throttle, host(1), "u", at(2000))
        );
        throttle.fail(host(1), "u", at(2000));
        assert!(
            !may_try(&mut throttle, host(1), "u", at(3999)) && may_try(&mut throttle, host(1), "u", at(4000))
        );
        assert_eq!(throttle.failures(host(1), at(64_000)), 0);
        assert_eq!(throttle.fail(host(1), "u", at(64_000)).as_millis(), 100);
    }

    #[test]
    fn a_unix_socket_is_slowed_and_never_shut() {
        let mut throttle = Throttle::default();
        for _ in 0..100 {
            assert_eq!(throttle.fail(None, "u", at(0)).as_millis(), 100);
        }
        assert!(may_try(&mut throttle, None, "u", at(0)) && throttle.is_empty());
    }

    #[test]
    fn who_has_logged_in_from_an_address_answers_for_itself_only() {
        let mut throttle = Throttle::default();
        throttle.succeed(host(1), "web", at(0));
        for _ in 0..FAILURES_MAX {
            throttle.fail(host(1), "cron", at(1));
        }
        assert!(
            !may_try(&mut throttle, host(1), "cron", at(1))
                && !may_try(&mut throttle, host(1), "other", at(1))
        );
        assert!(may_try(&mut throttle, host(1), "web", at(1)));
        assert!(may_try(&mut throttle, host(2), "cron", at(1)));
        // And is a stranger again after an hour.
        throttle.succeed(host(1), "old", at(0));
        for _ in 0..FAILURES_MAX {
            throttle.fail(host(1), "cron", at(3_600_000));
        }
        assert!(!may_try(&mut throttle, host(1), "old", at(3_600_000)));
        throttle.clean(at(3_700_000));
        assert!(throttle.is_empty() && throttle.known.is_empty());
        for n in 0..10_100_u32 {
            throttle.succeed(Some(IpAddr::from(n.to_be_bytes())), "u", at(u64::from(n)));
        }
        assert_eq!(throttle.known.len(), ENTRIES_MAX);
    }

    /// Somebody behind the same router guesses the password of a user who works there.
    #[test]
    fn who_has_logged_in_from_an_address_is_slowed_and_never_shut_out() {
        let mut throttle = Throttle::default();
        throttle.succeed(host(1), "odoo", at(0));
        for _ in 0..FAILURES_MAX {
            assert_eq!(throttle.turn(host(1), "odoo", at(1)), Turn::Now);
            throttle.fail(host(1), "odoo", at(1));
        }
        assert!(throttle.is_locked(host(1), at(1)) && !throttle.is_locked(host(2), at(1)));
        // One at a time, no faster than the longest pause; others still have none.
        assert_eq!(throttle.turn(host(1), "odoo", at(1)), Turn::Later(DELAY_MAX));
        assert_eq!(throttle.turn(host(1), "odoo", at(1602)), Turn::Now);
        assert_eq!(throttle.turn(host(1), "stranger", at(1602)), Turn::Never(DELAY_MAX));
        assert_eq!(throttle.turn(host(1), "odoo", at(1700)), Turn::Later(Duration::from_millis(1502)));
        // The right password was no guess.
        throttle.succeed(host(1), "odoo", at(1700));
        assert_eq!(throttle.turn(host(1), "odoo", at(1700)), Turn::Now);
        // Guesses for ever: no more than one in the longest pause.
        let looked = (0..160_000).step_by(10).filter(|ms| {
            let now = throttle.turn(host(1), "odoo", at(2000 + ms)) == Turn::Now;
            if now {
                throttle.fail(host(1), "odoo", at(2000 + ms));
            }
            now
        });
        assert!(looked.count() <= 101 + FAILURES_MAX as usize);
    }

    #[test]
    fn a_host_is_its_network_and_the_table_is_bounded() {
        let mut throttle = Throttle::default();
        throttle.fail(Some("2001:db8::1".parse().expect("an address")), "u", at(0));
        assert_eq!(throttle.failures(Some("2001:db8::ffff".parse().expect("an address")), at(0)), 1);
        throttle.fail(Some("::ffff:192.0.2.1".parse().expect("an address")), "u", at(0));
        assert_eq!(throttle.failures(host(1), at(0)), 1);
        throttle.fail(host(1), "u", at(0));
        for n in 0..10_100_u32 {
            throttle.fail(Some(IpAddr::from(n.to_be_bytes())), "u", at(1));
        }
        assert_eq!(throttle.len(), ENTRIES_MAX);
        assert_eq!(throttle.failures(host(1), at(1)), 2, "the worst stay");
    }
}
