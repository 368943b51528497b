//! A session under tokio.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::session::Session;

/// A connection with TLS on it.
#[derive(Debug)]
pub struct TlsStream<S> {
    io: S,
    session: Box<Session>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// Puts a session, after its handshake, on its connection.
    pub fn new(io: S, session: Box<Session>) -> Self {
        Self { io, session }
    }

    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The first byte to be read, which stays to be read; none at the end of the stream.
    ///
    /// # Errors
    /// Those of the connection, and of what is no TLS.
    pub async fn peek(&mut self) -> io::Result<Option<u8>> {
        poll_fn(|cx| {
            let Self { io, session } = self;
            let read = session.read_with(&mut [], |room| recv(io, cx, room));
            if let Some(byte) = session.pending().first() {
                return Poll::Ready(Ok(Some(*byte)));
            }
            match read {
                Ok(None) => Poll::Pending,
                Ok(Some(_)) => Poll::Ready(Ok(None)),
                Err(error) => Poll::Ready(Err(error)),
            }
        })
        .await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { io, session } = self.get_mut();
        poll_read(session, io, cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Self { io, session } = self.get_mut();
        poll_write(session, io, cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, session } = self.get_mut();
        poll_flush(session, io, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, session } = self.get_mut();
        poll_shutdown(session, io, cx)
    }
}

/// Shakes hands. A peer with whom there is no agreement has been told so when this fails.
///
/// # Errors
/// See [`Session::shake_with`].
pub async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    io: &mut S,
    session: &mut Session,
) -> io::Result<()> {
    poll_fn(|cx| {
        // Reading and writing need the socket each in its turn.
        let socket = std::cell::RefCell::new((&mut *io, &mut *cx));
        let shaken = session.shake_with(
            |room| {
                let (io, cx) = &mut *socket.borrow_mut();
                recv(*io, cx, room)
            },
            |bytes| {
                let (io, cx) = &mut *socket.borrow_mut();
                send(*io, cx, bytes)
            },
        );
        ready(shaken)
    })
    .await
}

/// [`AsyncRead::poll_read`] of a session on its connection.
pub fn poll_read<S: AsyncRead + AsyncWrite + Unpin>(
    session: &mut Session,
    io: &mut S,
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    let read = session.read_with(buf.initialize_unfilled(), |room| recv(io, cx, room));
    if session.wants_write() {
        // Answers of our own, alerts: as far as it goes.
        let _ = session.flush_with(|bytes| send(io, cx, bytes));
    }
    ready(read).map_ok(|n| buf.advance(n))
}

/// [`AsyncWrite::poll_write`] of a session on its connection.
pub fn poll_write<S: AsyncWrite + Unpin>(
    session: &mut Session,
    io: &mut S,
    cx: &mut Context<'_>,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    ready(session.write_with(bytes, |bytes| send(io, cx, bytes)))
}

/// [`AsyncWrite::poll_flush`] of a session on its connection.
pub fn poll_flush<S: AsyncWrite + Unpin>(
    session: &mut Session,
    io: &mut S,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    match session.flush_with(|bytes| send(io, cx, bytes))? {
        true => Pin::new(io).poll_flush(cx),
        false => Poll::Pending,
    }
}

/// [`AsyncWrite::poll_shutdown`] of a session on its connection: close_notify, then its end.
pub fn poll_shutdown<S: AsyncWrite + Unpin>(
    session: &mut Session,
    io: &mut S,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    session.close();
    match poll_flush(session, io, cx)? {
        Poll::Ready(()) => Pin::new(io).poll_shutdown(cx),
        Poll::Pending => Poll::Pending,
    }
}

fn ready<T>(done: io::Result<Option<T>>) -> Poll<io::Result<T>> {
    match done {
        Ok(Some(value)) => Poll::Ready(Ok(value)),
        Ok(None) => Poll::Pending,
        Err(error) => Poll::Ready(Err(error)),
    }
}

fn recv<S: AsyncRead + Unpin>(
    io: &mut S,
    cx: &mut Context<'_>,
    room: &mut [u8],
) -> io::Result<Option<usize>> {
    let mut buf = ReadBuf::new(room);
    match Pin::new(io).poll_read(cx, &mut buf) {
        Poll::Ready(Ok(())) => Ok(Some(buf.filled().len())),
        Poll::Ready(Err(error)) => Err(error),
        Poll::Pending => Ok(None),
    }
}

fn send<S: AsyncWrite + Unpin>(io: &mut S, cx: &mut Context<'_>, bytes: &[u8]) -> io::Result<Option<usize>> {
    match Pin::new(io).poll_write(cx, bytes) {
        Poll::Ready(Ok(n)) => Ok(Some(n)),
        Poll::Ready(Err(error)) => Err(error),
        Poll::Pending => Ok(None),
    }
}
