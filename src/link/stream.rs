//! A socket of either family, with or without TLS.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::tls::session::Session;
use crate::tls::stream as tls;

/// A socket under tokio.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
}

/// A connection to a client or to PostgreSQL.
#[derive(Debug)]
pub struct Stream {
    socket: Socket,
    tls: Option<Box<Session>>,
}

impl From<TcpStream> for Stream {
    fn from(socket: TcpStream) -> Self {
        Self { socket: Socket::Tcp(socket), tls: None }
    }
}

impl From<UnixStream> for Stream {
    fn from(socket: UnixStream) -> Self {
        Self { socket: Socket::Unix(socket), tls: None }
    }
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

/// A connection that no runtime knows.
#[derive(Debug)]
pub struct Parts {
    /// Non-blocking.
    pub fd: OwnedFd,
    /// Its kind.
    pub family: Family,
    /// TLS on it.
    pub tls: Option<Box<Session>>,
}

impl Socket {
    /// The file descriptor.
    #[inline]
    pub fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(s) => s.as_fd(),
            Self::Unix(s) => s.as_fd(),
        }
    }

    /// Our side of it; none for a Unix socket, and where the system does not say.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(s) => s.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    /// Whether the runtime has been told that there is something to read.
    ///
    /// # Errors
    /// The runtime ends.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(s) => s.poll_read_ready(cx),
            Self::Unix(s) => s.poll_read_ready(cx),
        }
    }

    /// Whether the runtime has been told that there is room to write.
    ///
    /// # Errors
    /// The runtime ends.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(s) => s.poll_write_ready(cx),
            Self::Unix(s) => s.poll_write_ready(cx),
        }
    }

    /// Tells the runtime that it is not ready any more, as far as anybody knows.
    pub fn forget(&self, what: Interest) {
        let blocked = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
        let _ = match self {
            Self::Tcp(s) => s.try_io(what, blocked),
            Self::Unix(s) => s.try_io(what, blocked),
        };
    }
}

impl Stream {
    /// A socket under the runtime that runs here, with TLS on it or without.
    pub fn from_socket(socket: Socket, tls: Option<Box<Session>>) -> Self {
        Self { socket, tls }
    }

    /// The socket, still under its runtime, and TLS on it.
    pub fn into_socket(self) -> (Socket, Option<Box<Session>>) {
        (self.socket, self.tls)
    }

    /// Takes the socket out of its runtime.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn into_parts(self) -> io::Result<Parts> {
        let (fd, family) = match self.socket {
            Socket::Tcp(s) => (s.into_std()?.into(), Family::Tcp),
            Socket::Unix(s) => (s.into_std()?.into(), Family::Unix),
        };
        Ok(Parts { fd, family, tls: self.tls })
    }

    /// Puts a non-blocking socket under the runtime that runs here.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn from_parts(parts: Parts) -> io::Result<Self> {
        let socket = match parts.family {
            Family::Tcp => Socket::Tcp(TcpStream::from_std(parts.fd.into())?),
            Family::Unix => Socket::Unix(UnixStream::from_std(parts.fd.into())?),
        };
        Ok(Self { socket, tls: parts.tls })
    }

    /// The socket, below any TLS.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// The socket, below any TLS, to shake hands on.
    pub fn socket_mut(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// TLS on it.
    pub fn tls(&self) -> Option<&Session> {
        self.tls.as_deref()
    }

    /// From here on all goes through TLS.
    pub fn secure(&mut self, session: Box<Session>) {
        self.tls = Some(session);
    }

    /// The file descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }

    /// Whether the peer has shut its side down, or the connection broke, even with bytes unread (POLLRDHUP).
    pub fn is_hung_up(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_closed()) || is_hung_up(self.fd())
    }

    /// What could be read this instant.
    pub fn peek(&self) -> Peek {
        match &self.tls {
            Some(tls) if !tls.pending().is_empty() => Peek::Bytes,
            Some(tls) if tls.is_closed() => Peek::Gone,
            _ => peek(self.fd()),
        }
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

impl AsyncRead for Socket {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Self::Unix(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
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

impl AsyncRead for Stream {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { socket, tls } = self.get_mut();
        match tls {
            None => Pin::new(socket).poll_read(cx, buf),
            Some(session) => tls::poll_read(session, socket, cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Self { socket, tls } = self.get_mut();
        match tls {
            None => Pin::new(socket).poll_write(cx, buf),
            Some(session) => tls::poll_write(session, socket, cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { socket, tls } = self.get_mut();
        match tls {
            None => Pin::new(socket).poll_flush(cx),
            Some(session) => tls::poll_flush(session, socket, cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { socket, tls } = self.get_mut();
        match tls {
            None => Pin::new(socket).poll_shutdown(cx),
            Some(session) => tls::poll_shutdown(session, socket, cx),
        }
    }
}
