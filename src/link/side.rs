//! One socket of an established link, as the reactor's thread sees it: non-blocking, with what is known of its readiness.
//!
//! The reactor is told of changes only (edge-triggered epoll(7)), so that readiness is remembered here, and forgotten when a read comes
//! back short or a write is not taken whole: no call is made only to learn that there is nothing to do.
//!
//! While a runtime keeps the socket (`link/young`) it is the runtime that is told, and asked: see [`Side::poll_ready`].
//!
//! With TLS on it the same holds of the ciphertext. Plaintext for which the reader had no room stays in the session and comes first at
//! the next read; bytes whose ciphertext the socket did not take whole count as not taken (`tls::session`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::Interest;

use super::stream::{self, Family, Parts, Stream};
use crate::listen::socket::{set_low_water, set_user_timeout};
use crate::tls::session::Session;

/// Bytes sent to a peer that has not spoken since, from which on it may be slow rather than dead: far less than a receive window.
const PATIENCE_AFTER: usize = 16 * 1024;
/// Bytes one side sends without a word from the other, from which on they are a bulk transfer.
const BULK_AFTER: usize = 256 * 1024;
/// Bytes that are worth a wake-up in a bulk transfer: half of what one read takes. A window that is full before wakes us too.
const BULK_LOW_WATER: u32 = 128 * 1024;
/// Reads of one call at most that bring TLS records without a byte of plaintext: no honest peer sends so many.
const EMPTY_READS_MAX: u32 = 8;

/// Who watches a socket.
#[derive(Debug)]
enum Socket {
    /// Whoever carries the link.
    Bare(OwnedFd),
    /// A runtime.
    Kept(Box<stream::Socket>),
}

/// A socket and its readiness.
#[derive(Debug)]
pub struct Side {
    socket: Socket,
    tls: Option<Box<Session>>,
    family: Family,
    readable: bool,
    writable: bool,
    /// The peer has shut its side down, or the connection broke: reads go on until they say so.
    shut: bool,
    /// TCP_USER_TIMEOUT is lifted.
    patient: bool,
    /// SO_RCVLOWAT is raised.
    bulk: bool,
    /// Bytes came since the last tick.
    moved: bool,
    /// Bytes sent since the peer spoke last.
    sent: u32,
    /// Bytes received since the other side spoke last.
    streak: u32,
}

impl Side {
    /// Takes a socket from the runtime that logged it in.
    ///
    /// # Errors
    /// The runtime cannot let go of it.
    pub fn new(stream: Stream) -> io::Result<Self> {
        stream.into_parts().map(Self::from_parts)
    }

    /// Leaves a socket with the runtime that logged it in, on whose thread all that follows must happen until [`Side::let_go`].
    pub fn kept(stream: Stream) -> Self {
        let (socket, tls) = stream.into_socket();
        let family = match &socket {
            stream::Socket::Tcp(_) => Family::Tcp,
            stream::Socket::Unix(_) => Family::Unix,
        };
        // What there is to read the runtime knows, and is asked first.
        Self::on(Socket::Kept(Box::new(socket)), family, tls, false)
    }

    fn from_parts(parts: Parts) -> Self {
        Self::on(Socket::Bare(parts.fd), parts.family, parts.tls, true)
    }

    fn on(socket: Socket, family: Family, tls: Option<Box<Session>>, readable: bool) -> Self {
        Self {
            socket,
            tls,
            family,
            readable,
            writable: true,
            shut: false,
            patient: false,
            bulk: false,
            moved: false,
            sent: 0,
            streak: 0,
        }
    }

    /// Gives the socket to the runtime that runs here.
    ///
    /// # Errors
    /// The runtime cannot watch it.
    pub fn into_stream(mut self) -> io::Result<Stream> {
        self.calm();
        match self.socket {
            Socket::Bare(fd) => Stream::from_parts(Parts { fd, family: self.family, tls: self.tls }),
            Socket::Kept(socket) => Ok(Stream::from_socket(*socket, self.tls)),
        }
    }

    /// Takes the socket from the runtime that keeps it: from here on somebody else watches it. What is known of its readiness stays
    /// true: whoever begins to watch is told of all there is.
    ///
    /// # Errors
    /// The runtime cannot let go of it.
    pub fn let_go(mut self) -> io::Result<Self> {
        if let Socket::Kept(socket) = self.socket {
            self.socket = Socket::Bare(Stream::from_socket(*socket, None).into_parts()?.fd);
        }
        Ok(self)
    }

    /// Whether a runtime keeps the socket.
    pub fn is_kept(&self) -> bool {
        matches!(self.socket, Socket::Kept(_))
    }

    /// The descriptor.
    #[inline]
    pub fn fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Bare(fd) => fd.as_fd(),
            Socket::Kept(socket) => socket.fd(),
        }
    }

    /// Asks the runtime that keeps the socket for what this does not know to be ready, and has it wake the task otherwise; true if
    /// there is news.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> bool {
        let Socket::Kept(socket) = &self.socket else { return false };
        // An error is that of a runtime that ends, and is none of the socket's.
        let news = |asked: Poll<io::Result<()>>| matches!(asked, Poll::Ready(Ok(())));
        let reads = !self.readable && news(socket.poll_read_ready(cx));
        let writes = !self.writable && news(socket.poll_write_ready(cx));
        self.readable |= reads;
        self.writable |= writes;
        reads || writes
    }

    /// Tells the runtime that keeps the socket what was found not to be ready since it was asked. To be called in the same poll as
    /// [`Side::poll_ready`]: the runtime looks on this thread only, so that it has heard of nothing in between that would be forgotten too.
    pub fn forget(&self) {
        let Socket::Kept(socket) = &self.socket else { return };
        if !self.readable {
            socket.forget(Interest::READABLE);
        }
        if !self.writable {
            socket.forget(Interest::WRITABLE);
        }
    }

    /// Notes what epoll said.
    #[inline]
    pub fn ready(&mut self, events: EventFlags) {
        let over = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        self.shut |= events.intersects(over);
        self.readable |= events.intersects(EventFlags::IN | over);
        self.writable |= events.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR);
    }

    /// Reads what is there. `None`: nothing now. Zero: the peer has shut its side down.
    ///
    /// # Errors
    /// The connection broke.
    #[inline]
    pub fn recv(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        if self.tls.is_some() { self.recv_tls(into) } else { self.recv_raw(into) }
    }

    #[inline]
    fn recv_raw(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        if !self.readable {
            return Ok(None);
        }
        let room = into.len();
        loop {
            match recv(self.fd(), &mut *into, RecvFlags::empty()) {
                Ok((n, _)) => {
                    // A short read has emptied the socket; what comes next is told.
                    self.readable = n == room || self.shut;
                    if n > 0 {
                        self.heard(n);
                    }
                    return Ok(Some(n));
                }
                Err(Errno::AGAIN) => {
                    self.readable = false;
                    return Ok(None);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes what the socket takes. `None`: nothing now.
    ///
    /// # Errors
    /// The connection broke.
    #[inline]
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        if self.tls.is_some() { self.send_tls(bytes) } else { self.send_raw(bytes) }
    }

    #[inline]
    fn send_raw(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        if !self.writable {
            return Ok(None);
        }
        loop {
            match send(self.fd(), bytes, SendFlags::NOSIGNAL) {
                Ok(n) => {
                    self.writable = n == bytes.len();
                    self.spoke(n);
                    return Ok(Some(n));
                }
                Err(Errno::AGAIN) => {
                    self.writable = false;
                    return Ok(None);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    #[inline(never)]
    fn recv_tls(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(mut session) = self.tls.take() else { return Ok(None) };
        let mut reads = 0;
        let done = session.read_with(into, |room| {
            reads += 1;
            if reads > EMPTY_READS_MAX { Ok(None) } else { self.recv_raw(room) }
        });
        if session.wants_write() {
            // An answer to a key update, or the alert that says what was wrong: as far as it goes.
            let _ = session.flush_with(|bytes| self.send_raw(bytes));
        }
        self.tls = Some(session);
        done
    }

    #[inline(never)]
    fn send_tls(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        let Some(mut session) = self.tls.take() else { return Ok(None) };
        let done = session.write_with(bytes, |bytes| self.send_raw(bytes));
        self.tls = Some(session);
        done
    }

    /// Whether the peer has begun to speak, and nothing of it can be read yet: a piece of a TLS record came since this was asked last.
    #[inline]
    pub fn take_piece(&mut self) -> bool {
        self.tls.as_mut().is_some_and(|tls| tls.take_piece())
    }

    /// TCP_USER_TIMEOUT also ends a connection whose living peer keeps its window shut, and a client may well read slowly. So it is
    /// lifted as soon as enough was sent to fill a window, and set again when the peer speaks; a peer that dies in between is noticed
    /// by the kernel's own retransmission limit.
    #[inline]
    fn spoke(&mut self, bytes: usize) {
        self.sent = self.sent.saturating_add(bytes as u32);
        if self.sent as usize > PATIENCE_AFTER && !self.patient {
            self.patient = true;
            if self.family == Family::Tcp {
                set_user_timeout(self.fd(), Duration::ZERO);
            }
        }
    }

    /// In a bulk transfer the kernel shall not wake us for every 8 kB PostgreSQL writes: it costs more than the bytes do.
    #[inline]
    fn heard(&mut self, bytes: usize) {
        self.moved = true;
        self.streak = self.streak.saturating_add(bytes as u32);
        if self.streak as usize >= BULK_AFTER && !self.bulk && self.family == Family::Tcp {
            self.bulk = true;
            set_low_water(self.fd(), BULK_LOW_WATER);
        }
    }

    /// The peer spoke: what was sent to it counts from now. `dead_after` is set again where it was lifted.
    #[inline]
    pub fn answered(&mut self, dead_after: impl FnOnce() -> Duration) {
        self.sent = 0;
        if std::mem::take(&mut self.patient) && self.family == Family::Tcp {
            set_user_timeout(self.fd(), dead_after());
        }
    }

    /// The other side spoke, or nothing is outstanding: what comes next is wanted at once.
    #[inline]
    pub fn calm(&mut self) {
        self.streak = 0;
        if std::mem::take(&mut self.bulk) {
            // The kernel tells at once of bytes that lie below the old mark.
            set_low_water(self.fd(), 1);
        }
    }

    /// Whether a bulk transfer is on, whose end must be looked for: see [`Side::tick`].
    #[inline]
    pub fn is_bulk(&self) -> bool {
        self.bulk
    }

    /// To be called regularly while [`Side::is_bulk`]: a transfer that rests may be over, and its last bytes lie below the mark.
    pub fn tick(&mut self) {
        if !std::mem::take(&mut self.moved) {
            self.calm();
        }
    }

    /// Whether the peer has shut its side down, or the connection broke, even with bytes unread (POLLRDHUP).
    pub fn is_hung_up(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_closed()) || stream::is_hung_up(self.fd())
    }

    /// Whether nothing can be read this instant: no byte, no EOF, no error. Asks the kernel. The beginning of a TLS record that was read
    /// before is no speech: see [`Side::take_piece`].
    pub fn is_silent(&self) -> bool {
        let said = self.tls.as_ref().is_some_and(|tls| tls.is_closed() || !tls.pending().is_empty());
        !said && stream::peek(self.fd()) == stream::Peek::Silent
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use rustix::event::epoll::{self, CreateFlags, EventData};

    use super::*;

    fn pair() -> (Side, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let far = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let (near, _) = listener.accept().expect("a client");
        near.set_nonblocking(true).expect("an option");
        let side = Side::from_parts(Parts { fd: near.into(), family: Family::Tcp, tls: None });
        (side, far)
    }

    /// An epoll that tells of changes only.
    fn watch(side: &Side) -> OwnedFd {
        let epoll = epoll::create(CreateFlags::CLOEXEC).expect("a descriptor");
        let interest = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&epoll, side.fd(), EventData::new_u64(0), interest).expect("watched");
        epoll
    }

    fn told(epoll: &OwnedFd, wait_s: i64) -> Option<EventFlags> {
        let mut events = Vec::with_capacity(4);
        let patience = rustix::event::Timespec { tv_sec: wait_s, tv_nsec: 0 };
        epoll::wait(epoll, rustix::buffer::spare_capacity(&mut events), Some(&patience)).expect("epoll");
        events.first().map(|event: &epoll::Event| event.flags)
    }

    fn read_all(side: &mut Side, epoll: &OwnedFd, wanted: usize) {
        let (mut buf, mut got) = (vec![0; 64 * 1024], 0);
        while got < wanted {
            match side.recv(&mut buf).expect("alive") {
                Some(n) => got += n,
                // A sender may be slow to begin with; behind the mark, what is left may lie below it, and a reactor would tick.
                None if !side.is_bulk() => side.ready(told(epoll, 10).expect("told")),
                None => match told(epoll, 0) {
                    Some(flags) => side.ready(flags),
                    None => side.tick(),
                },
            }
        }
        assert_eq!(got, wanted);
    }

    #[test]
    fn a_short_read_is_remembered_until_something_is_told() {
        let (mut side, mut far) = pair();
        let epoll = watch(&side);
        let mut buf = [0; 16];
        assert_eq!(side.recv(&mut buf).expect("alive"), None);
        far.write_all(b"abc").expect("room");
        assert_eq!(side.recv(&mut buf).expect("alive"), None, "nobody told");
        side.ready(told(&epoll, 10).expect("told"));
        assert_eq!(side.recv(&mut buf).expect("alive"), Some(3));
        assert!(!side.readable);
        drop(far);
        side.ready(told(&epoll, 10).expect("told"));
        assert_eq!(side.recv(&mut buf).expect("alive"), Some(0));
    }

    #[test]
    fn the_tail_of_a_bulk_transfer_arrives() {
        let (mut side, mut far) = pair();
        let epoll = watch(&side);
        let sender = std::thread::spawn(move || {
            far.write_all(&vec![7; BULK_AFTER]).expect("room");
            far
        });
        read_all(&mut side, &epoll, BULK_AFTER);
        let mut far = sender.join().expect("sent");
        assert!(side.is_bulk());
        far.write_all(b"the last word").expect("room");
        // Below the mark nobody is told ...
        let mut buf = [0; 64];
        assert_eq!(told(&epoll, 0).filter(|flags| flags.contains(EventFlags::IN)), None);
        side.moved = false;
        side.tick();
        // ... and when the mark falls, the kernel tells at once.
        assert!(!side.is_bulk());
        side.ready(told(&epoll, 10).expect("told"));
        assert_eq!(side.recv(&mut buf).expect("alive"), Some(13));
    }

    /// A side with TLS, and the other end as rustls's own blocking stream.
    fn tls_pair() -> (Side, rustls::StreamOwned<rustls::ClientConnection, TcpStream>) {
        use crate::tls::testing::{Ends, ends, name};
        let Ends { server, leaf, client } = ends();
        let (mut side, far) = pair();
        let connection = rustls::ClientConnection::new(client, name()).expect("settings");
        let far = std::thread::spawn(move || {
            let mut far = rustls::StreamOwned::new(connection, far);
            far.write_all(b"hello").expect("agreed");
            far
        });
        let mut session = Box::new(Session::server(server, leaf).expect("settings"));
        let epoll = watch(&side);
        loop {
            let socket = std::cell::RefCell::new(&mut side);
            let shaken = session.shake_with(
                |room| socket.borrow_mut().recv_raw(room),
                |bytes| socket.borrow_mut().send_raw(bytes),
            );
            if shaken.expect("agreed").is_some() {
                break;
            }
            side.ready(told(&epoll, 10).expect("told"));
        }
        side.tls = Some(session);
        let far = far.join().expect("agreed");
        read_exactly(&mut side, &epoll, b"hello");
        (side, far)
    }

    fn read_exactly(side: &mut Side, epoll: &OwnedFd, wanted: &[u8]) {
        let (mut got, mut buf) = (Vec::new(), [0; 64]);
        while got.len() < wanted.len() {
            match side.recv(&mut buf).expect("alive") {
                Some(n) => got.extend_from_slice(&buf[..n]),
                None => side.ready(told(epoll, 10).expect("told")),
            }
        }
        assert_eq!(got, wanted);
    }

    #[test]
    fn plaintext_that_is_left_is_readable_though_the_socket_is_not() {
        let (mut side, mut far) = tls_pair();
        let epoll = watch(&side);
        assert!(side.is_silent());
        far.write_all(b"0123456789").expect("room");
        side.ready(told(&epoll, 10).expect("told"));
        assert!(!side.is_silent());
        let mut buf = [0; 4];
        assert_eq!(side.recv(&mut buf).expect("alive"), Some(4));
        assert_eq!(stream::peek(side.fd()), stream::Peek::Silent);
        assert!(!side.is_silent());
        read_exactly(&mut side, &epoll, b"456789");
        assert!(side.is_silent());
        assert_eq!(side.recv(&mut buf).expect("alive"), None);
    }

    #[test]
    fn a_piece_of_a_record_is_speech_when_it_comes_and_silence_later() {
        let (mut side, far) = tls_pair();
        let epoll = watch(&side);
        (&far.sock).write_all(&[0x17, 3, 3, 0, 40, 1, 2]).expect("room");
        side.ready(told(&epoll, 10).expect("told"));
        assert!(!side.is_silent());
        assert_eq!(side.recv(&mut [0; 64]).expect("alive"), None);
        assert!(side.take_piece() && !side.take_piece());
        assert!(side.is_silent());
    }

    #[test]
    fn a_good_bye_of_tls_alone_is_a_hang_up() {
        let (mut side, mut far) = tls_pair();
        let epoll = watch(&side);
        far.conn.send_close_notify();
        far.flush().expect("room");
        side.ready(told(&epoll, 10).expect("told"));
        assert!(!side.is_hung_up(), "it has not been read");
        assert_eq!(side.recv(&mut [0; 64]).expect("alive"), Some(0));
        assert!(side.is_hung_up() && !side.is_silent());
    }

    #[test]
    fn new_keys_are_answered_and_change_nothing() {
        let (mut side, mut far) = tls_pair();
        let epoll = watch(&side);
        far.conn.refresh_traffic_keys().expect("TLS 1.3");
        far.write_all(b"with new keys").expect("room");
        read_exactly(&mut side, &epoll, b"with new keys");
        assert_eq!(side.send(b"reply").expect("alive"), Some(5));
        let mut reply = [0; 5];
        std::io::Read::read_exact(&mut far, &mut reply).expect("the same session");
        assert_eq!(&reply, b"reply");
    }

    #[test]
    fn a_slow_reader_gets_every_byte_once() {
        let (mut side, mut far) = tls_pair();
        let epoll = {
            let epoll = epoll::create(CreateFlags::CLOEXEC).expect("a descriptor");
            let interest = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            epoll::add(&epoll, side.fd(), EventData::new_u64(0), interest).expect("watched");
            epoll
        };
        let data: Vec<u8> = (0..30_000_000_u32).map(|n| (n >> 3) as u8).collect();
        let mut sent = 0;
        while let Some(n) = side.send(&data[sent..]).expect("alive") {
            sent += n;
        }
        assert!(sent < data.len(), "it stops where nobody reads");
        let wanted = data.clone();
        let reader = std::thread::spawn(move || {
            let mut got = vec![0; wanted.len()];
            std::io::Read::read_exact(&mut far, &mut got).expect("alive");
            assert!(got == wanted);
        });
        while sent < data.len() {
            match side.send(&data[sent..]).expect("alive") {
                Some(n) => sent += n,
                None => {
                    if let Some(flags) = told(&epoll, 10) {
                        side.ready(flags);
                    }
                }
            }
        }
        reader.join().expect("it got all");
    }

    #[test]
    fn the_end_is_told_whatever_the_mark() {
        let (mut side, mut far) = pair();
        let epoll = watch(&side);
        side.bulk = true;
        set_low_water(side.fd(), BULK_LOW_WATER);
        far.write_all(b"x").expect("room");
        drop(far);
        side.ready(told(&epoll, 10).expect("told"));
        let mut buf = [0; 4];
        assert_eq!(side.recv(&mut buf).expect("alive"), Some(1));
        assert_eq!(
            side.recv(&mut buf).expect("alive"),
            Some(0),
            "a connection that is shut is read to its end"
        );
    }
}
