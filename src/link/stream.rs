//! A socket of either family. TLS will be a third and a fourth variant here, and nowhere else.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

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

/// What kind of socket a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// TCP.
    Tcp,
    /// A Unix socket.
    Unix,
}

impl Stream {
    /// Takes the socket out of its runtime.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn into_parts(self) -> io::Result<(OwnedFd, Family)> {
        Ok(match self {
            Self::Tcp(s) => (s.into_std()?.into(), Family::Tcp),
            Self::Unix(s) => (s.into_std()?.into(), Family::Unix),
        })
    }

    /// Puts a non-blocking socket under the runtime that runs here.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn from_parts(fd: OwnedFd, family: Family) -> io::Result<Self> {
        Ok(match family {
            Family::Tcp => Self::Tcp(TcpStream::from_std(fd.into())?),
            Family::Unix => Self::Unix(UnixStream::from_std(fd.into())?),
        })
    }

    /// The file descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(s) => s.as_fd(),
            Self::Unix(s) => s.as_fd(),
        }
    }

    /// Whether the peer has shut its side down, or the connection broke, even with bytes unread (POLLRDHUP).
    pub fn is_hung_up(&self) -> bool {
        is_hung_up(self.fd())
    }

    /// What could be read this instant.
    pub fn peek(&self) -> Peek {
        peek(self.fd())
    }
}

/// Whether the peer of a socket has shut its side down, or the connection broke, even with bytes unread (POLLRDHUP).
pub fn is_hung_up(fd: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(&fd, PollFlags::RDHUP)];
    let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|_| fds[0].revents().intersects(gone))
}

/// What could be read from a socket this instant. Asks the kernel, not a remembered readiness, which may be behind.
pub fn peek(fd: BorrowedFd<'_>) -> Peek {
    use rustix::net::{RecvFlags, recv};
    let mut byte = [0_u8; 1];
    match recv(fd, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Err(rustix::io::Errno::AGAIN) => Peek::Silent,
        Ok((1.., _)) => Peek::Bytes,
        Ok(_) | Err(_) => Peek::Gone,
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
