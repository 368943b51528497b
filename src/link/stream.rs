//! A socket of either family. TLS will be a third and a fourth variant here, and nowhere else.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// A connection to a client or to PostgreSQL.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
}

/// What a peer has sent that was not read yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peek {
    /// Nothing.
    Silent,
    /// Bytes.
    Bytes,
    /// EOF, or the connection is broken.
    Gone,
}

impl Stream {
    /// The file descriptor, for socket options and polls that tokio does not offer.
    pub fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(s) => s.as_fd(),
            Self::Unix(s) => s.as_fd(),
        }
    }

    /// Sets TCP_USER_TIMEOUT (tcp(7)); zero leaves it to the system. A Unix socket needs none, and a connection that is gone already
    /// will say so itself.
    pub fn set_user_timeout(&self, timeout: Duration) {
        if let Self::Tcp(stream) = self {
            let timeout = Some(timeout).filter(|timeout| !timeout.is_zero());
            let _ = socket2::SockRef::from(stream).set_tcp_user_timeout(timeout);
        }
    }

    /// Whether the peer has shut its side down, or the connection broke, even with bytes unread (POLLRDHUP).
    pub fn is_hung_up(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let fd = self.fd();
        let mut fds = [PollFd::new(&fd, PollFlags::RDHUP)];
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))
            .is_ok_and(|_| fds[0].revents().intersects(gone))
    }

    /// What could be read this instant. Asks the kernel, not tokio's readiness, which may be behind.
    pub fn peek(&self) -> Peek {
        use rustix::net::{RecvFlags, recv};
        let mut byte = [0_u8; 1];
        match recv(self.fd(), &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Err(rustix::io::Errno::AGAIN) => Peek::Silent,
            Ok((1.., _)) => Peek::Bytes,
            Ok(_) | Err(_) => Peek::Gone,
        }
    }

    /// Whether nothing can be read this instant: no byte, no EOF, no error.
    pub fn is_silent(&self) -> bool {
        self.peek() == Peek::Silent
    }
}

impl AsyncRead for Stream {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Self::Unix(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Self::Unix(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Self::Unix(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}
