//! Listeners: sockets accepted by the reception.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with, acceptfrom_with};
use tokio::io::unix::AsyncFd;

use super::workers::{Socket, Workers};
use crate::listen::files::ReserveFd;
use crate::listen::socket::{SocketFile, tune_tcp};

/// Connections accepted before others on this thread get their turn.
const BURST: usize = 64;
/// So many clients have their first keepalive probe after the same time.
const TUNE_EVERY: usize = 64;
/// Pause when the system cannot give us a descriptor.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// A listening socket.
pub enum Listening {
    /// TCP.
    Tcp(TcpListener),
    /// Unix; its file is removed when it goes, if it is ours.
    Unix(UnixListener, #[allow(dead_code, reason = "kept for its Drop")] Option<SocketFile>),
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(l) => l.as_fd(),
            Self::Unix(l, _) => l.as_fd(),
        }
    }
}

impl std::os::fd::AsRawFd for Listening {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// One listener and where its clients belong.
pub struct Door {
    /// The socket.
    pub listening: Listening,
    /// As written in the configuration.
    pub name: Arc<str>,
    /// The lane of all that comes in.
    pub lane: Option<Arc<str>>,
    /// The service manager opened it, and keeps it for our successor.
    pub inherited: bool,
}

/// Accepts until the future is dropped, which closes the door.
pub async fn accept(door: Door, workers: Arc<Workers>, reserve: Arc<Mutex<ReserveFd>>) {
    let Door { listening, name, lane, inherited: _ } = door;
    // SAFETY: `register` asks that `as_raw_fd` always gives the same descriptor, open for as long as the AsyncFd lives. `Listening` owns
    // its socket, never replaces it, and is moved into the AsyncFd: nobody else can close it before the AsyncFd is dropped.
    #[allow(unsafe_code, reason = "the safe constructor is deprecated; proof above")]
    let listening = match unsafe { AsyncFd::register(listening) } {
        Ok(listening) => listening,
        Err(error) => {
            tracing::error!(%error, listener = %name, "cannot watch a listener");
            return;
        }
    };
    let mut dead_after = workers.dead_after();
    let mut accepted = 0;
    loop {
        let Ok(mut ready) = listening.readable().await else { return };
        if dead_after != workers.dead_after() || accepted >= TUNE_EVERY {
            dead_after = workers.dead_after();
            accepted = 0;
            tune(listening.get_ref(), dead_after, &name);
        }
        let mut more = true;
        for turn in 0..BURST {
            accepted += 1;
            let was_last = match next(listening.get_ref()) {
                Ok(socket) => {
                    if !workers.turns_away(&socket, &name) {
                        workers.receive(socket, name.clone(), lane.clone());
                    }
                    // Mostly nobody else; behind a second one there may be many.
                    turn == 0 && is_empty(listening.get_ref())
                }
                Err(Errno::AGAIN) => true,
                // The client was gone before it was accepted, or the network said so (accept(2)).
                Err(
                    Errno::CONNABORTED | Errno::INTR | Errno::PROTO | Errno::NETDOWN | Errno::HOSTUNREACH,
                ) => false,
                Err(error) => {
                    exhausted(listening.get_ref(), &reserve, &name, error);
                    tokio::time::sleep(EXHAUSTED_PAUSE).await;
                    break;
                }
            };
            if was_last {
                // Whoever comes from here on is an event of its own.
                ready.clear_ready();
                more = false;
                break;
            }
        }
        if more {
            tokio::task::yield_now().await;
        }
    }
}

/// Those accepted from here on have the options of their listener. One that was complete before has those of then.
fn tune(listening: &Listening, dead_after: Duration, name: &str) {
    if let Listening::Tcp(listener) = listening
        && let Err(error) = tune_tcp(listener, dead_after)
    {
        tracing::warn!(%error, listener = name, "dead clients are not looked for");
    }
}

/// Whether nobody else is there. accept(2) would say so too, but makes a socket first and throws it away.
fn is_empty(listening: &Listening) -> bool {
    let mut asked = [PollFd::new(listening, PollFlags::IN)];
    matches!(poll(&mut asked, Some(&Timespec::default())), Ok(0))
}

fn next(listening: &Listening) -> Result<Socket, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    match listening {
        Listening::Tcp(listener) => {
            let (fd, peer): (OwnedFd, _) = acceptfrom_with(listener, flags)?;
            let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
            // A socket of both families, which only the service manager opens, shows IPv4 clients as IPv6.
            let peer = peer.map(|peer| SocketAddr::new(peer.ip().to_canonical(), peer.port()));
            Ok(Socket::Tcp(fd, peer))
        }
        Listening::Unix(listener, _) => Ok(Socket::Unix(accept_with(listener, flags)?)),
    }
}

/// No descriptor or memory left: one client is accepted with the descriptor kept for this and closed, so that it learns, and the
/// listener rests for a moment rather than spin.
fn exhausted(listening: &Listening, reserve: &Mutex<ReserveFd>, name: &str, error: Errno) {
    let error = io::Error::from(error);
    tracing::error!(%error, listener = %name, "cannot accept: raise the file limit (LimitNOFILE)");
    reserve.lock().spend(|| drop(next(listening)));
}
