//! Listening sockets that the service manager has opened for us (sd_listen_fds(3)): they outlive this process, so that clients who come
//! while it restarts wait in them instead of being refused.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use socket2::SockRef;

/// Sockets handed over, by their addresses, until somebody takes them.
#[derive(Debug, Default)]
pub struct Inherited {
    tcp: Vec<(SocketAddr, TcpListener)>,
    unix: Vec<(PathBuf, UnixListener)>,
    /// Ports at which one of them takes IPv4 as well as IPv6, whoever has taken it.
    dual: Vec<u16>,
}

impl Inherited {
    /// Those named by `LISTEN_FDS`, where `LISTEN_PID` is us. Takes both out of the environment: to be called once, while there is one
    /// thread.
    ///
    /// # Errors
    /// A descriptor that is neither a listening TCP socket nor a listening Unix stream socket at a path.
    pub fn from_env() -> io::Result<Self> {
        let mut handed = ListenFd::from_env();
        let mut inherited = Self::default();
        for index in 0..handed.len() {
            if let Ok(Some(listener)) = handed.take_tcp_listener(index) {
                inherited.add_tcp(listener)?;
            } else if let Ok(Some(listener)) = handed.take_unix_listener(index) {
                inherited.add_unix(listener)?;
            } else {
                return Err(useless(&format!("socket {index} is neither TCP nor a Unix stream")));
            }
        }
        Ok(inherited)
    }

    fn add_tcp(&mut self, listener: TcpListener) -> io::Result<()> {
        let address = listener.local_addr()?;
        if !SockRef::from(&listener).is_listener()? {
            return Err(useless(&format!("{address} does not listen (Accept=yes?)")));
        }
        listener.set_nonblocking(true)?;
        if address.is_ipv6() && address.ip().is_unspecified() && !SockRef::from(&listener).only_v6()? {
            self.dual.push(address.port());
        }
        self.tcp.push((address, listener));
        Ok(())
    }

    fn add_unix(&mut self, listener: UnixListener) -> io::Result<()> {
        let address = listener.local_addr()?;
        let path = address.as_pathname().ok_or_else(|| useless("a Unix socket has no path"))?;
        if !SockRef::from(&listener).is_listener()? {
            return Err(useless(&format!("{} does not listen (Accept=yes?)", path.display())));
        }
        listener.set_nonblocking(true)?;
        self.unix.push((path.to_owned(), listener));
        Ok(())
    }

    /// The one at this very address.
    pub fn take_tcp(&mut self, wanted: SocketAddr) -> Option<TcpListener> {
        let same = |address: &SocketAddr| (address.ip(), address.port()) == (wanted.ip(), wanted.port());
        let index = self.tcp.iter().position(|(address, _)| same(address))?;
        Some(self.tcp.swap_remove(index).1)
    }

    /// Whether an address is one of those that a socket at `[::]` takes as well: nobody else can listen there. systemd's `ListenStream=6432`, without
    /// an address, is such a one.
    pub fn is_taken(&self, wanted: SocketAddr) -> bool {
        wanted.is_ipv4() && self.dual.contains(&wanted.port())
    }

    /// The one at this very path.
    pub fn take_unix(&mut self, wanted: &Path) -> Option<UnixListener> {
        let index = self.unix.iter().position(|(path, _)| path == wanted)?;
        Some(self.unix.swap_remove(index).1)
    }

    /// Those nobody took: whoever connects there would wait for ever.
    pub fn left(&self) -> Vec<String> {
        let tcp = self.tcp.iter().map(|(address, _)| address.to_string());
        tcp.chain(self.unix.iter().map(|(path, _)| path.display().to_string())).collect()
    }
}

fn useless(text: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("the service manager hands over a socket of no use: {text}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_taken_once_by_its_very_address() {
        let mut inherited = Inherited::default();
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("bound");
        inherited.add_tcp(listener).expect("listens");
        let other = SocketAddr::from(([127, 0, 0, 2], address.port()));
        assert!(inherited.take_tcp(other).is_none());
        assert_eq!(inherited.left(), [address.to_string()]);
        let taken = inherited.take_tcp(address).expect("the one");
        assert_eq!(taken.accept().expect_err("nobody came").kind(), io::ErrorKind::WouldBlock);
        assert!(inherited.take_tcp(address).is_none() && inherited.left().is_empty());
    }

    #[test]
    fn a_socket_of_both_families_takes_the_ipv4_addresses_of_its_port() {
        let listener = |only_v6| {
            let socket =
                socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).expect("a socket");
            socket.set_only_v6(only_v6).expect("not bound yet");
            socket.bind(&SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 0)).into()).expect("bound");
            socket.listen(1).expect("listens");
            TcpListener::from(socket)
        };
        for only_v6 in [false, true] {
            let mut inherited = Inherited::default();
            let listener = listener(only_v6);
            let address = listener.local_addr().expect("bound");
            inherited.add_tcp(listener).expect("listens");
            for taken in [None, inherited.take_tcp(address)] {
                for ip in [std::net::Ipv4Addr::UNSPECIFIED, std::net::Ipv4Addr::LOCALHOST] {
                    assert_eq!(inherited.is_taken((ip, address.port()).into()), !only_v6, "{taken:?}");
                    assert!(!inherited.is_taken((ip, address.port() ^ 1).into()));
                }
                assert!(!inherited.is_taken((std::net::Ipv6Addr::LOCALHOST, address.port()).into()));
            }
        }
    }

    #[test]
    fn a_unix_socket_is_taken_by_its_path() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("one");
        let mut inherited = Inherited::default();
        inherited.add_unix(UnixListener::bind(&path).expect("bound")).expect("listens");
        assert!(inherited.take_unix(&dir.path().join("two")).is_none());
        assert_eq!(inherited.left(), [path.display().to_string()]);
        assert!(inherited.take_unix(&path).is_some() && inherited.left().is_empty());
    }

    #[test]
    fn what_does_not_listen_is_refused() {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        let error = Inherited::default().add_tcp(socket.into()).expect_err("does not listen");
        assert!(error.to_string().contains("does not listen"), "{error}");
    }
}
