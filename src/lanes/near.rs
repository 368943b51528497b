//! pgweir's own ends of its connections to PostgreSQL, in three bytes a link: the port, and where the address stands in a table of all that
//! were ever seen. There are as many as the host has addresses on the way to PostgreSQL, which is one.

use std::net::{IpAddr, SocketAddr};

/// Addresses kept at most; connections from others have an end that is not known.
const ADDRESSES_MAX: usize = 254;

/// A link's end; [`Ends`] knows what it means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Near {
    /// The port; 0 while unknown, and over a Unix socket.
    pub port: u16,
    /// 0: not known; 1: a Unix socket; else the address's place, from 2 on.
    place: u8,
}

/// An end, as it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Of a Unix socket, which has no name on this side.
    Unix,
    /// Of a TCP connection.
    Tcp(SocketAddr),
}

/// The addresses.
#[derive(Debug, Default)]
pub struct Ends(Vec<IpAddr>);

impl Ends {
    /// The end of a connection from `local`; none is a Unix socket.
    pub fn note(&mut self, local: Option<SocketAddr>) -> Near {
        let Some(local) = local else { return Near { port: 0, place: 1 } };
        let address = local.ip().to_canonical();
        let known = self.0.iter().position(|known| *known == address);
        let at = known.or_else(|| {
            (self.0.len() < ADDRESSES_MAX).then(|| {
                self.0.push(address);
                self.0.len() - 1
            })
        });
        let place = at.and_then(|at| u8::try_from(at + 2).ok()).unwrap_or(0);
        Near { port: local.port(), place }
    }

    /// What it was; none while that is not known.
    pub fn of(&self, near: Near) -> Option<End> {
        match near.place {
            0 => None,
            1 => Some(End::Unix),
            place => {
                let address = self.0.get(usize::from(place) - 2)?;
                Some(End::Tcp(SocketAddr::new(*address, near.port)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_as_it_was_noted() {
        let mut ends = Ends::default();
        let (one, other): (SocketAddr, SocketAddr) =
            (([10, 0, 0, 1], 4000).into(), ([192, 0, 2, 9], 4000).into());
        let (first, second, unix) = (ends.note(Some(one)), ends.note(Some(other)), ends.note(None));
        let again = ends.note(Some(([10, 0, 0, 1], 5000).into()));
        assert_eq!((ends.of(first), ends.of(second)), (Some(End::Tcp(one)), Some(End::Tcp(other))));
        assert_eq!(ends.of(again), Some(End::Tcp(([10, 0, 0, 1], 5000).into())));
        assert_eq!((ends.of(unix), ends.of(Near::default())), (Some(End::Unix), None));
        assert_eq!(ends.0.len(), 2, "each once");
    }

    #[test]
    fn a_host_with_more_addresses_than_are_kept_is_told_no_other_hosts() {
        let mut ends = Ends::default();
        let address = |n: usize| Some(SocketAddr::new(IpAddr::from((n as u128).to_be_bytes()), 4000));
        let all: Vec<Near> = (1..400).map(|n| ends.note(address(n))).collect();
        let told = |n: usize| ends.of(all[n - 1]);
        assert!((1..=ADDRESSES_MAX).all(|n| told(n) == address(n).map(End::Tcp)));
        assert!((ADDRESSES_MAX + 1..400).all(|n| told(n).is_none()));
        assert_eq!(all[398].port, 4000, "a sample needs the port alone");
    }
}
