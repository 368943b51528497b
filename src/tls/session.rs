//! TLS of one connection, without input or output.
//!
//! rustls's unbuffered interface works in buffers of its caller: those of the thread. What a connection keeps between two calls is the
//! beginning of a record, and ciphertext that its socket did not take; an idle one keeps neither.
//!
//! Writing has the contract of send(2) on a non-blocking socket: what was reported as taken is with the kernel. Ciphertext cannot be
//! taken back, so bytes that were encrypted and could not be sent whole count as not taken, and whoever writes next (the same
//! bytes first, as after any refused write) is told of them when the last one is sent.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, ServerConfig};

/// A record's largest ciphertext with its header (RFC 5246, section 6.2.3; TLS 1.3's are smaller).
const RECORD_MAX: usize = 5 + (1 << 14) + 2048;
/// Ciphertext kept: a record's, or those of a handshake message that goes over many (rustls takes 64 kB).
const CARRY_MAX: usize = 5 * RECORD_MAX;
/// The same while a client shakes hands, whoever it is: its Certificate message, the longest, has as much as one record takes.
const HELLO_MAX: usize = 20 * 1024;
/// Ciphertext taken from a socket at once.
const RECV_MAX: usize = 64 * 1024;
/// Plaintext encrypted at once: what one send takes of a socket buffer of the usual size.
const SEND_MAX: usize = 64 * 1024;
/// Room for its ciphertext: four records, or one more beside what was queued, with headers and tags.
const SEND_ROOM: usize = SEND_MAX + 4096;
/// Own messages (answers to key updates, alerts) that a peer may leave unread.
const OUT_MAX: usize = 64 * 1024;

/// What all sessions of a thread use, one after the other.
struct Scratch {
    recv: Vec<u8>,
    send: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch { recv: Vec::new(), send: Vec::new() }) };
}

enum Conn {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

/// TLS of one connection.
pub struct Session {
    conn: Conn,
    /// Ciphertext that is no whole record yet.
    carry: Vec<u8>,
    /// Plaintext for which its reader had no room: less than what one read brings.
    plain: Vec<u8>,
    /// Ciphertext that the socket has not taken yet.
    out: Vec<u8>,
    /// Bytes of plaintext in `out` that nobody was told are taken.
    owed: usize,
    /// The peer has closed: close_notify.
    closed: bool,
    /// It has sent what is no TLS: what still comes is dropped.
    broken: bool,
    /// Bytes of a record came, and no plaintext.
    piece: bool,
    /// The peer's certificate was held against an authority.
    verified: bool,
    /// The certificate shown to the client.
    presented: Option<Arc<CertificateDer<'static>>>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("closed", &self.closed).finish_non_exhaustive()
    }
}

/// What rustls is asked to do once it can.
enum Wish<'a> {
    Nothing,
    Encrypt(&'a [u8], &'a mut [u8]),
    Close(&'a mut [u8]),
}

/// How far one call of rustls came.
enum Step {
    /// Call again.
    Again,
    /// Nothing more to do; with the wish granted, the bytes of ciphertext.
    Done(usize),
}

/// Where plaintext goes: into the reader's buffer, and what is left into the session's.
struct Sink<'a> {
    into: &'a mut [u8],
    put: usize,
    rest: &'a mut Vec<u8>,
}

impl Sink<'_> {
    fn put(&mut self, bytes: &[u8]) {
        let room = self.into.len() - self.put;
        let (now, later) = bytes.split_at(room.min(bytes.len()));
        self.into[self.put..self.put + now.len()].copy_from_slice(now);
        self.put += now.len();
        self.rest.extend_from_slice(later);
    }
}

fn broken(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Acts on one status of rustls. Gives the bytes to be discarded, whatever else happened.
fn step<D>(
    status: UnbufferedStatus<'_, '_, D>,
    wish: &mut Wish<'_>,
    sink: &mut Sink<'_>,
    out: &mut Vec<u8>,
    closed: &mut bool,
) -> (usize, io::Result<Step>) {
    let mut discard = status.discard;
    let state = match status.state {
        Ok(state) => state,
        Err(error) => return (discard, Err(broken(error))),
    };
    let done = match state {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                match record {
                    Ok(record) => {
                        discard += record.discard;
                        sink.put(record.payload);
                    }
                    Err(error) => return (discard, Err(broken(error))),
                }
            }
            Ok(Step::Again)
        }
        ConnectionState::EncodeTlsData(mut data) => {
            let at = out.len();
            if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
                out.resize(at + size.required_size, 0);
            }
            data.encode(&mut out[at..]).map(|_| Step::Again).map_err(broken)
        }
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(Step::Again)
        }
        ConnectionState::PeerClosed => {
            *closed = true;
            Ok(Step::Again)
        }
        ConnectionState::WriteTraffic(mut traffic) => match wish {
            Wish::Nothing => Ok(Step::Done(0)),
            Wish::Encrypt(bytes, into) => traffic.encrypt(bytes, into).map(Step::Done).map_err(broken),
            Wish::Close(into) => traffic.queue_close_notify(into).map(Step::Done).map_err(broken),
        },
        ConnectionState::Closed | ConnectionState::BlockedHandshake => Ok(Step::Done(0)),
        // Early data is refused at the handshake.
        _ => Err(io::ErrorKind::InvalidData.into()),
    };
    (discard, done)
}

impl Session {
    /// The server's side of a connection; `presented` is the certificate that `config` shows.
    ///
    /// # Errors
    /// rustls does not accept its settings.
    pub fn server(
        config: Arc<ServerConfig>,
        presented: Arc<CertificateDer<'static>>,
    ) -> Result<Self, rustls::Error> {
        let conn = Conn::Server(UnbufferedServerConnection::new(config)?);
        Ok(Self::new(conn, Some(presented)))
    }

    /// The client's side of a connection to `name`.
    ///
    /// # Errors
    /// rustls does not accept its settings.
    pub fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, rustls::Error> {
        Ok(Self::new(Conn::Client(UnbufferedClientConnection::new(config, name)?), None))
    }

    fn new(conn: Conn, presented: Option<Arc<CertificateDer<'static>>>) -> Self {
        Self {
            conn,
            carry: Vec::new(),
            plain: Vec::new(),
            out: Vec::new(),
            owed: 0,
            closed: false,
            broken: false,
            piece: false,
            verified: false,
            presented,
        }
    }

    fn state(&self) -> &CommonState {
        match &self.conn {
            Conn::Server(conn) => conn,
            Conn::Client(conn) => conn,
        }
    }

    /// Whether the handshake goes on.
    pub fn is_handshaking(&self) -> bool {
        self.state().is_handshaking()
    }

    /// The application protocol agreed upon.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.state().alpn_protocol()
    }

    /// The peer's own certificate.
    pub fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.state().peer_certificates().and_then(<[_]>::first)
    }

    /// The certificate that was shown to the client, on the server's side.
    pub fn presented(&self) -> Option<&Arc<CertificateDer<'static>>> {
        self.presented.as_ref()
    }

    /// Whether the server's certificate was verified, on the client's side.
    pub fn is_verified(&self) -> bool {
        self.verified
    }

    /// Says that `config` verifies certificates.
    pub(super) fn set_verified(&mut self, verified: bool) {
        self.verified = verified;
    }

    /// Whether it is TLS 1.3, and not 1.2.
    pub fn is_1_3(&self) -> bool {
        self.state().protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3)
    }

    /// Version and cipher suite, for people.
    pub fn describe(&self) -> String {
        let version = self.state().protocol_version().and_then(|v| v.as_str()).unwrap_or("TLS");
        let suite = self.state().negotiated_cipher_suite().and_then(|s| s.suite().as_str()).unwrap_or("");
        format!("{version} {suite}")
    }

    /// Whether the peer has closed its side of the session.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Plaintext that was read from the socket and not yet taken.
    pub fn pending(&self) -> &[u8] {
        &self.plain
    }

    /// Whether bytes of a record came since it was last asked, and none of plaintext: the peer has begun to speak.
    pub fn take_piece(&mut self) -> bool {
        std::mem::take(&mut self.piece)
    }

    /// Bytes of the peer that were read before the session began.
    pub fn preload(&mut self, bytes: &[u8]) {
        self.carry.extend_from_slice(bytes);
    }

    /// Works through `wire`, and grants a wish where it can. Gives the bytes worked through and those of the wish.
    fn drive(
        &mut self,
        wire: &mut [u8],
        into: &mut [u8],
        mut wish: Wish<'_>,
    ) -> (usize, usize, io::Result<usize>) {
        let Self { conn, plain, out, closed, .. } = self;
        let mut sink = Sink { into, put: 0, rest: plain };
        let mut at = 0;
        loop {
            let (discard, done) = match conn {
                Conn::Server(conn) => {
                    let status = conn.process_tls_records(&mut wire[at..]);
                    step(status, &mut wish, &mut sink, out, closed)
                }
                Conn::Client(conn) => {
                    let status = conn.process_tls_records(&mut wire[at..]);
                    step(status, &mut wish, &mut sink, out, closed)
                }
            };
            at += discard;
            match done {
                Ok(Step::Again) if out.len() <= OUT_MAX => {}
                Ok(Step::Again) => return (at, sink.put, Err(io::ErrorKind::OutOfMemory.into())),
                Ok(Step::Done(granted)) => return (at, sink.put, Ok(granted)),
                Err(error) => return (at, sink.put, Err(error)),
            }
        }
    }

    /// Works through what was read; keeps the beginning of a record. Gives the bytes of plaintext put into `into`.
    fn take(&mut self, wire: &mut [u8], into: &mut [u8]) -> io::Result<usize> {
        let (used, put, done) = self.drive(wire, into, Wish::Nothing);
        if let Err(error) = done {
            self.give_up(&mut wire[used..]);
            return Err(error);
        }
        let rest = if self.closed { &[] } else { &wire[used..] };
        if rest.is_empty() {
            self.carry = Vec::new();
        } else {
            self.carry.clear();
            self.carry.extend_from_slice(rest);
        }
        self.piece = put == 0 && self.plain.is_empty() && !self.carry.is_empty();
        Ok(put)
    }

    /// Collects what is left to be sent, the alert that tells the peer why above all. `wire` is what was begun, in its place: rustls
    /// remembers places in it, and must not look at it again.
    fn give_up(&mut self, wire: &mut [u8]) {
        self.broken = true;
        self.carry = Vec::new();
        let Self { conn, plain, out, closed, .. } = self;
        let mut sink = Sink { into: &mut [], put: 0, rest: plain };
        let mut at = 0;
        while match conn {
            Conn::Server(conn) => conn.wants_write(),
            Conn::Client(conn) => conn.wants_write(),
        } {
            let (discard, done) = match conn {
                Conn::Server(conn) => step(
                    conn.process_tls_records(&mut wire[at..]),
                    &mut Wish::Nothing,
                    &mut sink,
                    out,
                    closed,
                ),
                Conn::Client(conn) => step(
                    conn.process_tls_records(&mut wire[at..]),
                    &mut Wish::Nothing,
                    &mut sink,
                    out,
                    closed,
                ),
            };
            at += discard;
            if done.is_err() {
                return;
            }
        }
    }

    /// Works on what is there already: begins a handshake.
    fn begin(&mut self) -> io::Result<()> {
        let mut wire = std::mem::take(&mut self.carry);
        self.take(&mut wire, &mut []).map(drop)
    }

    /// Reads plaintext; `recv` reads from the socket (`None`: nothing now; zero: the end). `None`: nothing now. Zero: the end, by
    /// close_notify or without one: PostgreSQL's protocol has its own word for an orderly end.
    ///
    /// # Errors
    /// Those of `recv`; `InvalidData` for what is no TLS, after which [`Session::flush_with`] may have an alert to send.
    pub fn read_with(
        &mut self,
        into: &mut [u8],
        mut recv: impl FnMut(&mut [u8]) -> io::Result<Option<usize>>,
    ) -> io::Result<Option<usize>> {
        loop {
            if !self.plain.is_empty() {
                return Ok(Some(self.take_plain(into)));
            }
            if self.closed {
                return Ok(Some(0));
            }
            if self.broken {
                return self.drop_rest(&mut recv);
            }
            match self.read_once(into, &mut recv)? {
                None => return Ok(None),
                Some(Read::End) => return Ok(Some(0)),
                Some(Read::Plain(0)) => {}
                Some(Read::Plain(n)) => return Ok(Some(n)),
            }
        }
    }

    fn drop_rest(
        &mut self,
        recv: &mut impl FnMut(&mut [u8]) -> io::Result<Option<usize>>,
    ) -> io::Result<Option<usize>> {
        let mut sink = [0; 4096];
        loop {
            match recv(&mut sink)? {
                Some(0) => return Ok(Some(0)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    fn take_plain(&mut self, into: &mut [u8]) -> usize {
        let n = self.plain.len().min(into.len());
        into[..n].copy_from_slice(&self.plain[..n]);
        if n == self.plain.len() {
            self.plain = Vec::new();
        } else {
            self.plain.drain(..n);
        }
        n
    }

    fn read_once(
        &mut self,
        into: &mut [u8],
        recv: &mut impl FnMut(&mut [u8]) -> io::Result<Option<usize>>,
    ) -> io::Result<Option<Read>> {
        let shakes_as_server = matches!(self.conn, Conn::Server(_)) && self.is_handshaking();
        SCRATCH.with_borrow_mut(|scratch| {
            let kept = self.carry.len();
            let bound = if shakes_as_server { HELLO_MAX } else { CARRY_MAX };
            if kept >= bound {
                return Err(io::ErrorKind::InvalidData.into());
            }
            // A record must fit, and what it brings should.
            let room = into.len().clamp(RECORD_MAX, RECV_MAX);
            let room = if shakes_as_server { room.min(HELLO_MAX - kept) } else { room };
            let wire = &mut scratch.recv;
            if wire.len() < CARRY_MAX + RECV_MAX {
                wire.resize(CARRY_MAX + RECV_MAX, 0);
            }
            let Some(n) = recv(&mut wire[kept..kept + room])? else { return Ok(None) };
            if n == 0 {
                return Ok(Some(Read::End));
            }
            wire[..kept].copy_from_slice(&self.carry);
            self.take(&mut wire[..kept + n], into).map(|put| Some(Read::Plain(put)))
        })
    }

    /// Writes plaintext; `send` writes to the socket. See the module's words on what is reported as taken. `None`: nothing now.
    ///
    /// # Errors
    /// Those of `send`; `InvalidData` when the session cannot encrypt any more.
    pub fn write_with(
        &mut self,
        bytes: &[u8],
        mut send: impl FnMut(&[u8]) -> io::Result<Option<usize>>,
    ) -> io::Result<Option<usize>> {
        if !self.flush_with(&mut send)? {
            return Ok(None);
        }
        if self.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let owed = std::mem::take(&mut self.owed);
        if owed > 0 || bytes.is_empty() {
            return Ok(Some(owed.min(bytes.len())));
        }
        let bytes = &bytes[..bytes.len().min(SEND_MAX)];
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.send.resize(SEND_ROOM, 0);
            let wire = &mut scratch.send;
            let mut carry = std::mem::take(&mut self.carry);
            let (used, _, done) = self.drive(&mut carry, &mut [], Wish::Encrypt(bytes, wire));
            carry.drain(..used);
            self.carry = carry;
            let len = done?;
            if len == 0 {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            // Answers of our own that came up meanwhile were encrypted before.
            if !self.out.is_empty() {
                self.out.extend_from_slice(&wire[..len]);
                self.owed = bytes.len();
                return Ok(self.flush_with(&mut send)?.then(|| std::mem::take(&mut self.owed)));
            }
            let mut sent = 0;
            while sent < len {
                match send(&wire[sent..len])? {
                    Some(n) => sent += n,
                    None => {
                        self.out.extend_from_slice(&wire[sent..len]);
                        self.owed = bytes.len();
                        return Ok(None);
                    }
                }
            }
            Ok(Some(bytes.len()))
        })
    }

    /// Sends what is waiting to be sent; whether that is all.
    ///
    /// # Errors
    /// Those of `send`.
    pub fn flush_with(
        &mut self,
        mut send: impl FnMut(&[u8]) -> io::Result<Option<usize>>,
    ) -> io::Result<bool> {
        let mut sent = 0;
        while sent < self.out.len() {
            match send(&self.out[sent..])? {
                Some(n) => sent += n,
                None => break,
            }
        }
        if sent == self.out.len() {
            if sent > 0 {
                self.out = Vec::new();
            }
            return Ok(true);
        }
        self.out.drain(..sent);
        Ok(false)
    }

    /// Whether something waits to be sent.
    pub fn wants_write(&self) -> bool {
        !self.out.is_empty()
    }

    /// Says that nothing more will be written: close_notify, to be flushed.
    pub fn close(&mut self) {
        if self.broken {
            return;
        }
        let mut words = [0; 256];
        let mut carry = std::mem::take(&mut self.carry);
        let (used, _, done) = self.drive(&mut carry, &mut [], Wish::Close(&mut words));
        carry.drain(..used);
        self.carry = carry;
        if let Ok(len) = done {
            self.out.extend_from_slice(&words[..len]);
        }
    }

    /// Moves a handshake on as far as `recv` and `send` go. `None`: nothing now.
    ///
    /// # Errors
    /// Those of `recv` and `send`; `UnexpectedEof`; `InvalidData` for a peer with whom there is no agreement, which has been told.
    pub fn shake_with(
        &mut self,
        mut recv: impl FnMut(&mut [u8]) -> io::Result<Option<usize>>,
        mut send: impl FnMut(&[u8]) -> io::Result<Option<usize>>,
    ) -> io::Result<Option<()>> {
        let mut moved = if self.broken { Err(io::ErrorKind::InvalidData.into()) } else { self.begin() };
        loop {
            let flushed = self.flush_with(&mut send);
            // Why it failed matters more than that the peer could not be told.
            moved?;
            if !flushed? {
                return Ok(None);
            }
            if !self.is_handshaking() {
                return Ok(Some(()));
            }
            moved = match self.read_once(&mut [], &mut recv) {
                Ok(Some(Read::Plain(_))) => Ok(()),
                Ok(Some(Read::End)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(None) => return Ok(None),
                Err(error) => Err(error),
            };
        }
    }
}

enum Read {
    /// Bytes of plaintext, if any.
    Plain(usize),
    End,
}

#[cfg(test)]
mod tests;
