//! The server of PostgreSQL that links are dialled to. A link remembers its own: cancels go there, whatever is dialled by then.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// Where PostgreSQL is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// Host (name or address) and port.
    Tcp(String, u16),
    /// Path of the socket file.
    Unix(PathBuf),
}

/// A server, as chosen at some time.
#[derive(Debug)]
pub struct Server {
    /// Each choice has a number of its own: a server that was left and chosen again is another one.
    pub number: u32,
    /// As configured; its name is that of the certificate.
    pub place: Upstream,
    /// Where the name leads; none where each dial is to look it up.
    pub at: Option<IpAddr>,
    /// It is the only one, and dialled whatever it is: nothing is known of which server that is. A reload that spells it otherwise keeps its
    /// number, and with it all who are connected.
    only: bool,
    lost: Arc<AtomicBool>,
    /// The same where its name led last, for all links that were led there.
    found: Mutex<Weak<Self>>,
}

impl Server {
    /// A choice.
    pub fn new(number: u32, place: Upstream, at: Option<IpAddr>) -> Arc<Self> {
        Self::make(number, place, at, false, Arc::default())
    }

    /// The only one.
    pub fn only(number: u32, place: Upstream) -> Arc<Self> {
        Self::make(number, place, None, true, Arc::default())
    }

    fn make(
        number: u32,
        place: Upstream,
        at: Option<IpAddr>,
        only: bool,
        lost: Arc<AtomicBool>,
    ) -> Arc<Self> {
        Arc::new(Self { number, place, at, only, lost, found: Mutex::default() })
    }

    /// It is silent, and another one has taken its place: nothing is dialled there any more, cancels included, which would only wait.
    pub fn mark_lost(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    /// See [`Self::mark_lost`].
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// The same where its name was looked up by a dial, and led to `ip`: cancels must go to the very server.
    pub(super) fn found_at(self: &Arc<Self>, ip: Option<IpAddr>) -> Arc<Self> {
        let is_name = matches!(&self.place, Upstream::Tcp(host, _) if host.parse::<IpAddr>().is_err());
        if ip.is_none() || self.at.is_some() || !is_name {
            return self.clone();
        }
        let mut found = self.found.lock();
        if let Some(known) = found.upgrade().filter(|known| known.at == ip) {
            return known;
        }
        let new = self.at(ip);
        *found = Arc::downgrade(&new);
        new
    }

    /// The same server, dialled there from now on.
    pub fn at(&self, at: Option<IpAddr>) -> Arc<Self> {
        self.with(self.place.clone(), at, self.only)
    }

    /// The same, as one of several.
    pub fn among_others(&self, at: Option<IpAddr>) -> Arc<Self> {
        self.with(self.place.clone(), at, false)
    }

    /// The same, as the only one from now on, under whatever address.
    pub fn alone(&self, place: Upstream) -> Arc<Self> {
        self.with(place, None, true)
    }

    fn with(&self, place: Upstream, at: Option<IpAddr>, only: bool) -> Arc<Self> {
        Self::make(self.number, place, at, only, Arc::clone(&self.lost))
    }

    /// Whether a link's server is this one, as far as is known, however often it was left and chosen again between.
    pub fn is(&self, other: &Self) -> bool {
        let is_choice = self.number == other.number;
        // While its name was looked up at each dial, one host may have been reached by both kinds of address.
        let families = self.at.zip(other.at).is_some_and(|(one, other)| one.is_ipv4() != other.is_ipv4());
        is_choice && (self.only || families && self.place == other.place) || self.is_at(other)
    }

    /// Whether both lead to the same place, as far as is known. Under different names it must be known of both.
    pub fn is_at(&self, other: &Self) -> bool {
        let (Upstream::Tcp(host, port), Upstream::Tcp(other_host, other_port)) = (&self.place, &other.place)
        else {
            return self.place == other.place;
        };
        let agree = match (self.ip(), other.ip()) {
            (Some(one), Some(other)) => one == other,
            _ => host.eq_ignore_ascii_case(other_host),
        };
        port == other_port && agree
    }

    fn ip(&self) -> Option<IpAddr> {
        let Upstream::Tcp(host, _) = &self.place else { return None };
        self.at.or_else(|| host.parse().ok()).map(|ip| ip.to_canonical())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_is_remembered_by_what_it_led_to() {
        let ip = Some(IpAddr::from([10, 0, 0, 1]));
        let name = Server::new(1, Upstream::Tcp("db".to_owned(), 5432), None);
        let found = name.found_at(ip);
        assert_eq!(found.at, ip);
        assert!(Arc::ptr_eq(&found, &name.found_at(ip)), "shared by all links");
        let elsewhere = name.at(Some(IpAddr::from([10, 0, 0, 2])));
        assert!(name.is(&elsewhere) && name.is(&name.found_at(ip)) && !elsewhere.is(&name.found_at(ip)));
        name.mark_lost();
        assert!(elsewhere.is_lost(), "one choice is lost as one");
        for place in [Upstream::Tcp("10.0.0.1".to_owned(), 5432), Upstream::Unix("/run/.s.PGSQL.5432".into())]
        {
            let server = Server::new(1, place, None);
            assert!(Arc::ptr_eq(&server, &server.found_at(ip)), "shared by all links");
        }
    }
    fn host(host: &str) -> Upstream {
        Upstream::Tcp(host.to_owned(), 5432)
    }

    #[test]
    fn a_server_is_known_by_its_place_whichever_choice_and_spelling_it_was() {
        let ip = |last| Some(IpAddr::from([10, 0, 0, last]));
        let link = Server::new(1, host("pg1"), ip(1));
        for (number, place, at, is) in [
            (2, host("pg1"), ip(1), true),
            (2, host("PG1"), None, true),
            (2, host("10.0.0.1"), None, true),
            (2, host("pg2"), ip(1), true),
            (2, host("pg2"), None, false),
            (1, host("pg1"), ip(2), false),
            (2, Upstream::Tcp("pg1".to_owned(), 5433), ip(1), false),
            (2, Upstream::Unix("/run/.s.PGSQL.5432".into()), None, false),
        ] {
            let chosen = Server::new(number, place, at);
            assert_eq!(chosen.is(&link), is, "{chosen:?}");
        }
    }

    #[test]
    fn the_only_one_stays_the_same_under_another_address_until_others_join_it() {
        let a = Server::only(0, host("10.0.0.1"));
        let b = a.alone(host("db"));
        assert!(b.is(&a), "nobody told of another server");
        assert!(!b.among_others(None).is(&a) && b.among_others(None).is(&b));
        assert!(!Server::only(1, host("db")).is(&a), "there were others between");
    }

    #[test]
    fn a_host_of_both_kinds_of_address_is_one_server_until_the_next_choice() {
        let by_name = Server::only(0, host("db"));
        let six = by_name.found_at(Some(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])));
        let (four, other) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        assert!(by_name.among_others(Some(four)).is(&six));
        assert!(!by_name.among_others(Some(four)).is(&by_name.found_at(Some(other))));
        assert!(!Server::new(1, host("db"), Some(four)).is(&six));
    }
}
