//! The server of PostgreSQL that links are dialled to. A link remembers its own: cancels go there, whatever is dialled by then.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
    lost: Arc<AtomicBool>,
}

impl Server {
    /// A choice.
    pub fn new(number: u32, place: Upstream, at: Option<IpAddr>) -> Arc<Self> {
        Arc::new(Self { number, place, at, lost: Arc::default() })
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
        match ip {
            Some(ip) if self.at.is_none() && is_name => self.at(Some(ip)),
            _ => self.clone(),
        }
    }

    /// The same server, dialled there from now on.
    pub fn at(&self, at: Option<IpAddr>) -> Arc<Self> {
        let (number, place, lost) = (self.number, self.place.clone(), Arc::clone(&self.lost));
        Arc::new(Self { number, place, at, lost })
    }

    /// Whether both are one choice, and lead to the same place as far as is known.
    pub fn is(&self, other: &Self) -> bool {
        let agree = self.at.zip(other.at).is_none_or(|(one, other)| one == other);
        self.number == other.number && agree
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_is_remembered_by_what_it_led_to() {
        let ip = Some(IpAddr::from([10, 0, 0, 1]));
        let name = Server::new(1, Upstream::Tcp("db".to_owned(), 5432), None);
        assert_eq!(name.found_at(ip).at, ip);
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
}
