//! Moves bytes between a client and its backend, one `poll` per wake-up.
//!
//! Reads go to a buffer of the thread, writes straight from it. Only what a socket would not take is copied into a buffer of the
//! link's own, and the other side is not read until it is gone: an idle link holds no buffer. tokio's `poll_read` forgets readiness
//! after a short read, so that no read ends in EAGAIN.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::desk::Desk;
use super::hub::Hub;
use super::out::Out;
use super::session::Session;
use super::shared::{Command, LinkShared, LinkState, flag};
use super::stream::Stream;
use crate::clock;
use crate::reason::{Reason, Refusal, SqlState};
use crate::wire::reply;

/// Bytes read at once.
const READ_MAX: usize = 64 * 1024;
/// Client bytes kept while a request is held, or a cancel awaited.
const CARRY_MAX: usize = 64 * 1024;
/// Client bytes read on behind a hang-up, looking for the Terminate that makes it an orderly end: the kernel's own receive
/// buffer is no larger by default.
const HANGUP_READ_MAX: usize = 8 * 1024 * 1024;
/// Rounds of one poll before other links get their turn.
const ROUNDS_MAX: u32 = 32;

struct Scratch {
    read: Vec<u8>,
    spare: Vec<u8>,
    aside: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> =
        RefCell::new(Scratch { read: vec![0; CARRY_MAX + READ_MAX], spare: Vec::new(), aside: Vec::new() });
}

/// Bytes sent to a peer that has not spoken since, from which on it may be slow rather than dead: far less than a receive window.
const PATIENCE_AFTER: usize = 16 * 1024;

/// Tells slow peers from dead ones. TCP_USER_TIMEOUT also ends a connection whose living peer keeps its window shut, and a client may
/// well read slowly. So it is lifted as soon as enough was sent to fill a window, and set again when the peer speaks; a peer that
/// dies in between is noticed by the kernel's own retransmission limit.
#[derive(Debug, Default)]
struct Patience {
    sent: usize,
    lifted: bool,
}

impl Patience {
    #[inline]
    fn sent(&mut self, stream: &Stream, bytes: usize) {
        self.sent += bytes;
        if self.sent > PATIENCE_AFTER && !self.lifted {
            self.lifted = true;
            stream.set_user_timeout(Duration::ZERO);
        }
    }

    #[inline]
    fn heard(&mut self, stream: &Stream, hub: &Hub) {
        self.sent = 0;
        if std::mem::take(&mut self.lifted) {
            stream.set_user_timeout(hub.settings.load().dead_after);
        }
    }
}

/// Bytes a socket did not take yet.
#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    sent: usize,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Writes `bytes` behind what is pending; keeps what the socket does not take.
    fn send(&mut self, stream: &mut Stream, cx: &mut Context<'_>, mut bytes: &[u8]) -> io::Result<()> {
        if self.is_empty() {
            while !bytes.is_empty() {
                match Pin::new(&mut *stream).poll_write(cx, bytes) {
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(n)) => bytes = &bytes[n..],
                    Poll::Ready(Err(error)) => return Err(error),
                    Poll::Pending => break,
                }
            }
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Writes what is pending. True if something moved.
    fn flush(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> io::Result<bool> {
        let before = self.sent;
        while self.sent < self.bytes.len() {
            match Pin::new(&mut *stream).poll_write(cx, &self.bytes[self.sent..]) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(n)) => self.sent += n,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(self.sent > before),
            }
        }
        let moved = !self.bytes.is_empty();
        if moved {
            *self = Self::default();
        }
        Ok(moved)
    }
}

/// Why the relay ended, for those who close both sides.
#[derive(Debug)]
pub enum End {
    /// The client sent Terminate; requests before it may still run.
    Terminated,
    /// The client went away without one.
    ClientGone,
    /// PostgreSQL closed: EOF or RST.
    UpstreamClosed,
    /// The connection to PostgreSQL broke without a word of it: the backend may still be there.
    UpstreamLost,
    /// pgweir ends it.
    ByUs(Refusal),
}

/// An established link.
pub struct Relay {
    pub(super) client: Stream,
    pub(super) upstream: Stream,
    pub(super) session: Session,
    pub(super) desk: Desk,
    to_client: Pending,
    to_upstream: Pending,
    client_carry: Vec<u8>,
    upstream_carry: Vec<u8>,
    /// The head of `client_carry` is a request that waits for the gate, or for replies.
    waits: bool,
    /// The client is gone or hung up: only what it sent before still counts.
    hung_up: bool,
    /// Nothing more can be sent to PostgreSQL.
    upstream_broken: bool,
    client_patience: Patience,
    upstream_patience: Patience,
    registered: bool,
}

type Turn = Result<bool, End>;

impl Relay {
    pub(super) fn new(
        client: Stream,
        upstream: Stream,
        desk: Desk,
        client_carry: Vec<u8>,
        upstream_carry: Vec<u8>,
    ) -> Self {
        Self {
            client,
            upstream,
            session: Session::new(),
            desk,
            to_client: Pending::default(),
            to_upstream: Pending::default(),
            client_carry,
            upstream_carry,
            waits: false,
            hung_up: false,
            upstream_broken: false,
            client_patience: Patience::default(),
            upstream_patience: Patience::default(),
            registered: false,
        }
    }

    fn shared(&self) -> &Arc<LinkShared> {
        &self.desk.shared
    }

    /// Works until nothing moves.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if !self.registered {
            self.registered = true;
            self.shared().register(cx);
            if let Err(end) = self.start(cx) {
                return Poll::Ready(end);
            }
        }
        for round in 0.. {
            match self.turn(cx) {
                Err(end) => return Poll::Ready(end),
                Ok(false) => break,
                Ok(true) if round >= ROUNDS_MAX => {
                    cx.waker().wake_by_ref();
                    break;
                }
                Ok(true) => {}
            }
        }
        self.publish();
        Poll::Pending
    }

    /// Bytes that came together with the login.
    fn start(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        self.desk.delivered(false);
        let upstream = std::mem::take(&mut self.upstream_carry);
        if !upstream.is_empty() {
            self.feed_upstream(&upstream, cx)?;
        }
        if !self.client_carry.is_empty() {
            self.retry_client(cx)?;
        }
        Ok(())
    }

    /// One round: true if anything moved.
    fn turn(&mut self, cx: &mut Context<'_>) -> Turn {
        let mut moved = match self.to_upstream.flush(&mut self.upstream, cx) {
            Ok(flushed) => flushed,
            Err(_) => self.upstream_broke(),
        };
        match self.to_client.flush(&mut self.client, cx) {
            Ok(flushed) => moved |= flushed,
            Err(_) => self.client_broke(),
        }
        moved |= self.read_client(cx)?;
        moved |= self.read_upstream(cx)?;
        if self.desk.ready && self.to_client.is_empty() {
            self.desk.delivered(self.session.is_idle_in_transaction());
        }
        if self.shared().has_mail() {
            moved |= self.handle_mail(cx)?;
        }
        if let Some(refusal) = self.desk.end.take() {
            return Err(End::ByUs(refusal));
        }
        if self.desk.reset_failed {
            return Err(End::ByUs(Refusal::new(
                Reason::LeakDisconnect,
                "the transaction could not be rolled back in place",
                "",
            )));
        }
        Ok(moved)
    }

    /// A write to PostgreSQL failed: what it said before it closed is still to be read, and says why.
    fn upstream_broke(&mut self) -> bool {
        self.upstream_broken = true;
        self.to_upstream = Pending::default();
        true
    }

    fn send_upstream(&mut self, cx: &mut Context<'_>, bytes: &[u8]) {
        self.upstream_patience.sent(&self.upstream, bytes.len());
        if !self.upstream_broken && self.to_upstream.send(&mut self.upstream, cx, bytes).is_err() {
            self.upstream_broke();
        }
    }

    /// A write to the client failed: it is gone, but a Terminate may still lie unread.
    fn client_broke(&mut self) {
        self.hung_up = true;
        self.to_client = Pending::default();
    }

    // ------------------------------------------------------------ client → upstream

    fn read_client(&mut self, cx: &mut Context<'_>) -> Turn {
        if !self.may_read_client() {
            return Ok(false);
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let kept = self.client_carry.len();
            let Scratch { read, spare, aside } = scratch;
            if read.len() < kept + READ_MAX {
                read.resize(kept + READ_MAX, 0);
            }
            let n = match poll_read(&mut self.client, cx, &mut read[kept..kept + READ_MAX]) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(n)) if n > 0 => n,
                Poll::Ready(_) => return Err(End::ClientGone),
            };
            self.client_patience.heard(&self.client, &self.desk.hub);
            if self.waits {
                // Nothing is judged while the first request waits; the rest is kept behind it.
                self.client_carry.extend_from_slice(&read[kept..kept + n]);
                return Ok(true);
            }
            read[..kept].copy_from_slice(&self.client_carry);
            self.feed_client(&read[..kept + n], spare, aside, cx)?;
            Ok(true)
        })
    }

    fn may_read_client(&self) -> bool {
        if self.upstream_broken {
            return false;
        }
        if self.hung_up {
            return self.client_carry.len() + self.to_upstream.len() < HANGUP_READ_MAX;
        }
        self.to_upstream.is_empty() && (!self.waits || self.client_carry.len() < CARRY_MAX)
    }

    /// Presents to the session what waited.
    fn retry_client(&mut self, cx: &mut Context<'_>) -> Turn {
        let input = std::mem::take(&mut self.client_carry);
        self.waits = false;
        if input.is_empty() {
            return Ok(false);
        }
        let before = input.len();
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { spare, aside, .. } = scratch;
            self.feed_client(&input, spare, aside, cx)
        })?;
        Ok(self.client_carry.len() < before)
    }

    fn feed_client(
        &mut self,
        input: &[u8],
        spare: &mut Vec<u8>,
        aside: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Result<(), End> {
        aside.clear();
        let mut out = Out::new(input, spare);
        let progress = self.session.client(input, &mut out, aside, &mut self.desk).map_err(|reason| {
            End::ByUs(Refusal::new(reason, "the client sent bytes that are no PostgreSQL message", ""))
        })?;
        self.send_upstream(cx, out.bytes());
        if !aside.is_empty() && self.to_client.send(&mut self.client, cx, aside).is_err() {
            self.client_broke();
        }
        if progress.terminated {
            return Err(End::Terminated);
        }
        self.waits = progress.waits;
        self.client_carry.clear();
        if progress.taken < input.len() {
            self.client_carry.extend_from_slice(&input[progress.taken..]);
        } else if self.client_carry.capacity() > 0 {
            self.client_carry = Vec::new();
        }
        Ok(())
    }

    // ------------------------------------------------------------ upstream → client

    fn read_upstream(&mut self, cx: &mut Context<'_>) -> Turn {
        if !self.to_client.is_empty() {
            return Ok(false);
        }
        let moved = SCRATCH.with_borrow_mut(|scratch| {
            let kept = self.upstream_carry.len();
            let Scratch { read, spare, aside } = scratch;
            let n = match poll_read(&mut self.upstream, cx, &mut read[kept..kept + READ_MAX]) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(0)) => return Err(End::UpstreamClosed),
                Poll::Ready(Ok(n)) => n,
                Poll::Ready(Err(error)) => return Err(upstream_end(&error)),
            };
            self.upstream_patience.heard(&self.upstream, &self.desk.hub);
            read[..kept].copy_from_slice(&self.upstream_carry);
            self.take_upstream(&read[..kept + n], spare, aside, cx)
        })?;
        // A request that waited for these replies may go on.
        if moved && self.waits && self.desk.held_since.is_none() && !self.desk.awaits_cancel {
            self.retry_client(cx)?;
        }
        Ok(moved)
    }

    fn feed_upstream(&mut self, input: &[u8], cx: &mut Context<'_>) -> Result<bool, End> {
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { spare, aside, .. } = scratch;
            self.take_upstream(input, spare, aside, cx)
        })
    }

    fn take_upstream(
        &mut self,
        input: &[u8],
        spare: &mut Vec<u8>,
        aside: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Turn {
        aside.clear();
        let mut out = Out::new(input, spare);
        let progress = self.session.upstream(input, &mut out, aside, &mut self.desk).map_err(|reason| {
            End::ByUs(Refusal::new(reason, "PostgreSQL sent bytes that are no PostgreSQL message", ""))
        })?;
        self.client_patience.sent(&self.client, out.bytes().len());
        let sent = if self.hung_up { Ok(()) } else { self.to_client.send(&mut self.client, cx, out.bytes()) };
        if sent.is_err() {
            self.client_broke();
        }
        if !aside.is_empty() {
            self.send_upstream(cx, aside);
        }
        self.upstream_carry.clear();
        if progress.taken < input.len() {
            self.upstream_carry.extend_from_slice(&input[progress.taken..]);
        } else if self.upstream_carry.capacity() > 0 {
            self.upstream_carry = Vec::new();
        }
        Ok(true)
    }

    // ------------------------------------------------------------ commands

    fn handle_mail(&mut self, cx: &mut Context<'_>) -> Turn {
        let mut moved = false;
        if self.desk.awaits_cancel && !self.shared().is_being_cancelled() {
            self.desk.awaits_cancel = false;
            moved |= self.retry_client(cx)?;
        }
        for command in self.shared().take_mail() {
            moved |= self.obey(command, cx)?;
        }
        Ok(moved)
    }

    fn obey(&mut self, command: Command, cx: &mut Context<'_>) -> Turn {
        match command {
            Command::AskAgain if self.desk.held_since.is_some() => self.retry_client(cx),
            Command::RejectHeld(refusal) if self.desk.held_since.is_some() => Err(End::ByUs(refusal)),
            Command::CancelHeld(number) => self.cancel_held(number, cx),
            Command::Reset { generation, sqlstate, refusal } => {
                let done = self.reset(generation, sqlstate, refusal, cx)?;
                if !done {
                    self.desk.reset_is_off(generation);
                }
                Ok(done)
            }
            Command::Close { generation: None, refusal } => Err(End::ByUs(refusal)),
            Command::Close { generation: Some(period), refusal } => {
                if self.is_still(period) {
                    return Err(End::ByUs(refusal));
                }
                self.desk.reset_is_off(Some(period));
                Ok(false)
            }
            Command::Drain => self.drain(),
            Command::Reclassify => {
                self.desk.ask_reclassify();
                Ok(false)
            }
            Command::Probe if self.client.is_hung_up() => {
                self.hung_up = true;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Whether the period is the one meant, and the client has said nothing in it that is still on its way.
    fn is_still(&self, period: u32) -> bool {
        self.shared().generation() == period && self.client_carry.is_empty() && self.client.is_silent()
    }

    fn reset(
        &mut self,
        generation: Option<u32>,
        sqlstate: SqlState,
        refusal: Refusal,
        cx: &mut Context<'_>,
    ) -> Turn {
        let period = generation.unwrap_or_else(|| self.shared().generation());
        let ready =
            self.to_upstream.is_empty() && self.to_client.is_empty() && self.upstream_carry.is_empty();
        if !self.is_still(period) || !ready || self.shared().is_being_cancelled() {
            return Ok(false);
        }
        let mut error = Vec::new();
        reply::refusal_as(&mut error, &refusal, sqlstate);
        let mut injected = Vec::new();
        if !self.session.reset(error, &mut injected) {
            return Ok(false);
        }
        self.send_upstream(cx, &injected);
        self.desk.resetting(refusal);
        Ok(true)
    }

    fn cancel_held(&mut self, number: u32, cx: &mut Context<'_>) -> Turn {
        if self.desk.held_since.is_none() || self.shared().phase_number() != number {
            return Ok(false);
        }
        let mut error = Vec::new();
        reply::plain_refusal(&mut error, Reason::HeldCancelled);
        let mut answer = Vec::new();
        let dropped = self.session.refuse_waiting(&self.client_carry, &error, &mut answer);
        self.client_carry.drain(..dropped);
        self.desk.unhold();
        if self.to_client.send(&mut self.client, cx, &answer).is_err() {
            self.client_broke();
        }
        self.retry_client(cx)?;
        Ok(true)
    }

    fn drain(&mut self) -> Turn {
        let refusal = Refusal::new(Reason::Drained, "", "connect again");
        let (state, _) = self.shared().state();
        let outside = matches!(state, LinkState::Idle | LinkState::Held) && self.session.status() == b'I';
        if outside && self.session.is_quiet() && (state == LinkState::Held || self.client.is_silent()) {
            return Err(End::ByUs(refusal));
        }
        self.desk.draining = Some(refusal);
        Ok(false)
    }

    // ------------------------------------------------------------ what others see

    fn publish(&mut self) {
        let shared = &self.desk.shared;
        let blocked = !self.hung_up && !self.may_read_client();
        shared.set_flag(flag::BLOCKED, blocked);
        let stalled = self.desk.held_since.is_none() && self.session.may_be_stalled();
        let was = shared.flags() & (flag::STALLED | flag::MAYBE_STALLED) != 0;
        if stalled || was {
            let answered = stalled && self.session.is_stalled() && self.to_client.is_empty();
            shared.set_flag(flag::STALLED, answered);
            shared.set_flag(flag::MAYBE_STALLED, stalled);
            if stalled {
                // Bytes moved, or we would not be here: its silence counts from now.
                shared.enter(LinkState::Active, clock::now());
            }
        }
        if let Some(refusal) = self.desk.draining.as_ref()
            && self.session.is_quiet()
            && self.session.status() == b'I'
            && self.to_client.is_empty()
            && self.client_carry.is_empty()
        {
            self.desk.end = Some(refusal.clone());
            shared.wake();
        }
    }

    /// Whether the client may be told why: its stream stands between two messages.
    pub(super) fn can_tell_client(&self) -> bool {
        !self.hung_up && self.session.client_at_boundary()
    }

    /// Bytes the client has not taken yet.
    pub(super) fn take_undelivered(&mut self) -> Vec<u8> {
        let pending = std::mem::take(&mut self.to_client);
        pending.bytes[pending.sent..].to_vec()
    }

    /// Whether a Terminate would be read as one: upstream's stream stands between two messages.
    pub(super) fn can_terminate_upstream(&self) -> bool {
        self.to_upstream.is_empty() && self.session.upstream_at_boundary()
    }

    /// Bytes upstream has not taken yet.
    pub(super) fn take_unsent(&mut self) -> Vec<u8> {
        let pending = std::mem::take(&mut self.to_upstream);
        pending.bytes[pending.sent..].to_vec()
    }
}

/// What an error on the connection to PostgreSQL means.
fn upstream_end(error: &io::Error) -> End {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => End::UpstreamClosed,
        _ => End::UpstreamLost,
    }
}

fn poll_read(stream: &mut Stream, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
    let mut buf = ReadBuf::new(into);
    match Pin::new(stream).poll_read(cx, &mut buf) {
        Poll::Ready(Ok(())) => Poll::Ready(Ok(buf.filled().len())),
        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        Poll::Pending => Poll::Pending,
    }
}
