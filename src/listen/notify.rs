//! Tells the service manager how we are (sd_notify(3): one datagram of `NAME=value` lines to `$NOTIFY_SOCKET`).
//!
//! For `Type=notify`. `Type=notify-reload` also wants MONOTONIC_USEC, which is not sent.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// A service manager that listens, or none: then everything is a no-op.
#[derive(Debug, Default)]
pub struct Notifier {
    to: Option<(UnixDatagram, SocketAddr)>,
}

impl Notifier {
    /// The one named by `NOTIFY_SOCKET`. What cannot be reached counts as none: it is no reason not to serve.
    pub fn from_env() -> Self {
        std::env::var_os("NOTIFY_SOCKET")
            .map_or_else(Self::default, |name| Self::to(&name).unwrap_or_default())
    }

    /// One at a path, or at an abstract name where the first character is `@`.
    ///
    /// # Errors
    /// A name too long for a socket, or no descriptor left.
    pub fn to(name: &OsStr) -> io::Result<Self> {
        let address = match name.as_bytes().strip_prefix(b"@") {
            Some(abstract_name) => SocketAddr::from_abstract_name(abstract_name)?,
            None => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        // A manager that does not read must never stop us.
        socket.set_nonblocking(true)?;
        Ok(Self { to: Some((socket, address)) })
    }

    /// Started, or reloaded.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// Reloading; `ready` follows.
    pub fn reloading(&self) {
        self.send("RELOADING=1");
    }

    /// Going down.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// One line for `systemctl status`.
    pub fn status(&self, text: &str) {
        self.send(&format!("STATUS={}", text.replace(['\n', '\r'], " ")));
    }

    fn send(&self, state: &str) {
        if let Some((socket, address)) = &self.to {
            // Lost when the manager is busy or gone: nothing depends on it.
            let _ = socket.send_to_addr(state.as_bytes(), address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(socket: &UnixDatagram) -> String {
        let mut buf = [0; 256];
        let len = socket.recv(&mut buf).expect("a datagram");
        String::from_utf8_lossy(&buf[..len]).into_owned()
    }

    #[test]
    fn states_reach_a_path() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("bound");
        manager.set_nonblocking(true).expect("nonblocking");
        let notifier = Notifier::to(path.as_os_str()).expect("a notifier");
        notifier.ready();
        notifier.reloading();
        notifier.stopping();
        notifier.status("75 %\nREADY=1");
        assert_eq!(
            [(); 4].map(|()| receive(&manager)),
            ["READY=1", "RELOADING=1", "STOPPING=1", "STATUS=75 % READY=1"]
        );
    }

    #[test]
    fn states_reach_an_abstract_name() {
        let name = format!("pgweir-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let manager = UnixDatagram::bind_addr(&address).expect("bound");
        manager.set_nonblocking(true).expect("nonblocking");
        Notifier::to(OsStr::new(&format!("@{name}"))).expect("a notifier").ready();
        assert_eq!(receive(&manager), "READY=1");
    }

    #[test]
    fn nobody_listening_is_no_error() {
        Notifier::default().ready();
        Notifier::to(OsStr::new("/nonexistent/notify")).expect("a notifier").ready();
    }
}
