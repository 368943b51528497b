//! Moves bytes between a client and its backend, one run per wake-up.
//!
//! Reads go to a buffer of the thread, writes straight from it. Only what a socket would not take is copied into a buffer of the
//! link's own, and the other side is not read until it is gone: an idle link holds no buffer.

use std::io;
use std::sync::Arc;

use super::carry::Carry;
use super::desk::Desk;
use super::out::Out;
use super::pending::Pending;
use super::reactor::Run;
use super::session::Session;
use super::shared::{Command, LinkShared, LinkState, flag};
use super::side::Side;
use crate::clock;
use crate::reason::{Reason, Refusal, SqlState};
use crate::wire::reply;

/// Bytes read at once: a bulk transfer costs less the more of it one read takes, up to what a core's own cache holds. It is also what is
/// kept at most of what a slow peer does not take: a fraction of what the kernel keeps for it.
const READ_MAX: usize = 256 * 1024;
/// Client bytes kept while a request is held, or a cancel awaited; what one read brought before is kept whole.
const CARRY_MAX: usize = 64 * 1024;
/// Client bytes read on behind a hang-up, looking for the Terminate that makes it an orderly end: the kernel's own receive
/// buffer is no larger by default.
const HANGUP_READ_MAX: usize = 8 * 1024 * 1024;
/// Rounds of one run before other links get their turn: a megabyte, a few tenths of a millisecond.
const ROUNDS_MAX: u32 = 4;

/// The buffers of a reactor's thread, used by one relay after the other.
pub struct Scratch {
    read: Vec<u8>,
    aux: Aux,
}

/// Where output is put together that is not forwarded as it came.
#[derive(Default)]
struct Aux {
    spare: Vec<u8>,
    aside: Vec<u8>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { read: vec![0; CARRY_MAX + READ_MAX], aux: Aux::default() }
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
    pub(super) client: Side,
    pub(super) upstream: Side,
    pub(super) session: Session,
    pub(super) desk: Desk,
    to_client: Pending,
    to_upstream: Pending,
    client_carry: Carry,
    upstream_carry: Vec<u8>,
    /// The head of `client_carry` is a request that waits for the gate, or for replies.
    waits: bool,
    /// The client is gone or hung up: only what it sent before still counts.
    hung_up: bool,
    /// All of that has been read, and a Terminate is in what still waits.
    at_end: bool,
    /// The client takes nothing any more.
    deaf: bool,
    /// Nothing more can be sent to PostgreSQL.
    upstream_broken: bool,
    started: bool,
    /// The client's Terminate was not sent on: the backend may be pooled.
    pub(super) spared: bool,
}

type Turn = Result<bool, End>;

impl Relay {
    pub(super) fn new(
        client: Side,
        upstream: Side,
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
            client_carry: client_carry.into(),
            upstream_carry,
            waits: false,
            hung_up: false,
            at_end: false,
            deaf: false,
            upstream_broken: false,
            started: false,
            spared: false,
        }
    }

    fn shared(&self) -> &Arc<LinkShared> {
        &self.desk.shared
    }

    /// Works until nothing moves, or others should get their turn.
    pub(super) fn run(&mut self, scratch: &mut Scratch) -> Run<End> {
        if !self.started {
            self.started = true;
            if let Err(end) = self.start(scratch) {
                return Run::Done(end);
            }
        }
        let mut ran = Run::Again;
        for _ in 0..ROUNDS_MAX {
            match self.turn(scratch) {
                Err(end) => return Run::Done(end),
                Ok(true) => {}
                Ok(false) => {
                    ran = Run::Waits;
                    break;
                }
            }
        }
        self.publish();
        ran
    }

    /// Bytes that came together with the login.
    fn start(&mut self, scratch: &mut Scratch) -> Result<(), End> {
        self.desk.delivered(false);
        let upstream = std::mem::take(&mut self.upstream_carry);
        if !upstream.is_empty() {
            self.take_upstream(&upstream, &mut scratch.aux)?;
        }
        if !self.client_carry.is_empty() {
            self.retry_client(&mut scratch.aux)?;
        }
        Ok(())
    }

    /// One round: true if anything moved.
    fn turn(&mut self, scratch: &mut Scratch) -> Turn {
        self.desk.turn_begins();
        let mut moved = match self.to_upstream.flush(&mut self.upstream) {
            Ok(flushed) => flushed,
            Err(_) => self.upstream_broke(),
        };
        match self.to_client.flush(&mut self.client) {
            Ok(flushed) => moved |= flushed,
            Err(_) => self.client_broke(),
        }
        moved |= self.read_client(scratch)?;
        moved |= self.read_upstream(scratch)?;
        if self.desk.ready && self.to_client.is_empty() {
            self.desk.delivered(self.session.is_idle_in_transaction());
        }
        if self.shared().has_mail() {
            moved |= self.handle_mail(&mut scratch.aux)?;
        }
        if self.at_end && (!self.waits || self.desk.held_since.is_some()) {
            return Err(End::ClientGone);
        }
        if let Some(refusal) = self.desk.end.take() {
            return Err(End::ByUs(*refusal));
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

    fn send_upstream(&mut self, bytes: &[u8]) {
        if !self.upstream_broken && self.to_upstream.send(&mut self.upstream, bytes).is_err() {
            self.upstream_broke();
        }
    }

    /// A write to the client failed: it is gone, but a Terminate may still lie unread.
    fn client_broke(&mut self) {
        self.hung_up = true;
        self.deaf = true;
        self.to_client = Pending::default();
    }

    /// Takes the sockets from the runtime that keeps them.
    pub(super) fn let_go(self) -> io::Result<Self> {
        Ok(Self { client: self.client.let_go()?, upstream: self.upstream.let_go()?, ..self })
    }

    // ------------------------------------------------------------ client → upstream

    fn read_client(&mut self, scratch: &mut Scratch) -> Turn {
        if !self.may_read_client() {
            return Ok(false);
        }
        let carried = self.client_carry.len();
        // Before bytes that are judged with them, those that were kept.
        let kept = if self.waits { 0 } else { carried };
        let Scratch { read, aux } = scratch;
        if read.len() < kept + READ_MAX {
            read.resize(kept + READ_MAX, 0);
        }
        let is_bounded = self.waits && !self.hung_up;
        let room = if is_bounded { CARRY_MAX.saturating_sub(carried).max(1) } else { READ_MAX };
        let n = match self.client.recv(&mut read[kept..kept + room]) {
            Ok(None) => {
                if self.client.take_piece() {
                    self.desk.heard_a_piece();
                }
                return Ok(false);
            }
            Ok(Some(n)) if n > 0 => n,
            Ok(Some(_)) | Err(_) => return self.client_ended(),
        };
        self.shared().figures.received(n);
        self.client.answered(|| self.desk.hub.settings.load().dead_after);
        self.upstream.calm();
        if self.waits {
            // Nothing is judged while the first request waits; the rest is kept behind it.
            self.client_carry.push(&read[..n]);
            return Ok(true);
        }
        read[..kept].copy_from_slice(self.client_carry.as_slice());
        let taken = self.feed_client(&read[..kept + n], aux)?;
        self.client_carry.replace(&read[taken..kept + n]);
        if !self.client_carry.is_empty() && !self.waits {
            self.desk.heard_a_piece();
        }
        Ok(true)
    }

    /// Nothing more comes of the client. Requests that wait for replies are not overtaken by its end where a Terminate is behind them:
    /// it left in good order. A transaction held at its begin waits for nobody: nothing of it has run.
    fn client_ended(&mut self) -> Turn {
        let is_orderly = self.waits && self.desk.held_since.is_none() && self.client_carry.has_terminate();
        if !is_orderly {
            return Err(End::ClientGone);
        }
        self.hung_up = true;
        self.at_end = true;
        Ok(true)
    }

    fn may_read_client(&self) -> bool {
        if self.upstream_broken || self.at_end {
            return false;
        }
        if self.hung_up {
            return self.client_carry.len() + self.to_upstream.len() < HANGUP_READ_MAX;
        }
        self.to_upstream.is_empty() && (!self.waits || self.client_carry.len() < CARRY_MAX)
    }

    /// Presents to the session what waited.
    fn retry_client(&mut self, aux: &mut Aux) -> Turn {
        let mut carry = std::mem::take(&mut self.client_carry);
        self.waits = false;
        if carry.is_empty() {
            return Ok(false);
        }
        let taken = self.feed_client(carry.as_slice(), aux)?;
        carry.take(taken);
        self.client_carry = carry;
        Ok(taken > 0)
    }

    /// Presents bytes to the session; how many of them need not be presented again.
    fn feed_client(&mut self, input: &[u8], aux: &mut Aux) -> Result<usize, End> {
        let Aux { spare, aside } = aux;
        aside.clear();
        let mut out = Out::new(input, spare);
        let judged = self.session.client(input, &mut out, aside, &mut self.desk);
        // What came before bytes that are no message counts, however it was split.
        self.spared = out.bytes() == reply::TERMINATE
            && matches!(&judged, Ok(progress) if progress.terminated)
            && self.may_rest();
        if !self.spared {
            self.send_upstream(out.bytes());
        }
        let progress = judged.map_err(|reason| {
            End::ByUs(Refusal::new(reason, "the client sent bytes that are no PostgreSQL message", ""))
        })?;
        if !aside.is_empty() && self.to_client.send(&mut self.client, aside).is_err() {
            self.client_broke();
        }
        if progress.terminated {
            return Err(End::Terminated);
        }
        self.waits = progress.waits;
        Ok(progress.taken)
    }

    // ------------------------------------------------------------ upstream → client

    fn read_upstream(&mut self, scratch: &mut Scratch) -> Turn {
        if !self.to_client.is_empty() {
            return Ok(false);
        }
        let kept = self.upstream_carry.len();
        let Scratch { read, aux } = scratch;
        let n = match self.upstream.recv(&mut read[kept..kept + READ_MAX]) {
            Ok(None) => return Ok(false),
            Ok(Some(0)) => return Err(End::UpstreamClosed),
            Ok(Some(n)) => n,
            Err(error) => return Err(upstream_end(&error)),
        };
        self.shared().figures.sent(n);
        self.upstream.answered(|| self.desk.hub.settings.load().dead_after);
        self.client.calm();
        read[..kept].copy_from_slice(&self.upstream_carry);
        self.take_upstream(&read[..kept + n], aux)?;
        // A request that waited for these replies may go on.
        if self.waits && self.desk.held_since.is_none() && !self.desk.awaits_cancel {
            self.retry_client(aux)?;
        }
        Ok(true)
    }

    fn take_upstream(&mut self, input: &[u8], aux: &mut Aux) -> Result<(), End> {
        let Aux { spare, aside } = aux;
        aside.clear();
        let mut out = Out::new(input, spare);
        let judged = self.session.upstream(input, &mut out, aside, &mut self.desk);
        if !self.deaf && self.to_client.send(&mut self.client, out.bytes()).is_err() {
            self.client_broke();
        }
        let progress = judged.map_err(|reason| {
            End::ByUs(Refusal::new(reason, "PostgreSQL sent bytes that are no PostgreSQL message", ""))
        })?;
        if !aside.is_empty() {
            self.send_upstream(aside);
        }
        keep(&mut self.upstream_carry, &input[progress.taken..]);
        Ok(())
    }

    // ------------------------------------------------------------ commands

    fn handle_mail(&mut self, aux: &mut Aux) -> Turn {
        let mut moved = false;
        if self.desk.awaits_cancel && !self.shared().is_being_cancelled() {
            self.desk.awaits_cancel = false;
            moved |= self.retry_client(aux)?;
        }
        for command in self.shared().take_mail() {
            moved |= self.obey(command, aux)?;
        }
        Ok(moved)
    }

    fn obey(&mut self, command: Command, aux: &mut Aux) -> Turn {
        match command {
            Command::AskAgain if self.desk.held_since.is_some() => self.retry_client(aux),
            Command::RejectHeld(refusal) if self.desk.held_since.is_some() => Err(End::ByUs(refusal)),
            Command::CancelHeld(number) => self.cancel_held(number, aux),
            Command::Reset { generation, sqlstate, refusal } => {
                let done = self.reset(generation, sqlstate, refusal)?;
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
            Command::Drain => self.drain(Refusal::new(Reason::Drained, "", "connect again")),
            Command::Leave(refusal) => self.drain(refusal),
            Command::Yield => {
                self.shared().set_flag(flag::YIELDING, true);
                let detail = "PostgreSQL is full, and a better lane waits for its reserve";
                self.drain(Refusal::new(Reason::Reclaimed, detail, "connect again"))
            }
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

    /// Whether the period is the one meant, and the client has said nothing in it that is still on its way. A piece of a message began
    /// a period of its own: what lies there from before is no speech.
    fn is_still(&self, period: u32) -> bool {
        self.shared().generation() == period && !self.waits && self.client.is_silent()
    }

    fn reset(&mut self, generation: Option<u32>, sqlstate: SqlState, refusal: Refusal) -> Turn {
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
        self.send_upstream(&injected);
        self.desk.resetting(refusal, period);
        Ok(true)
    }

    fn cancel_held(&mut self, number: u32, aux: &mut Aux) -> Turn {
        if self.desk.held_since.is_none() || self.shared().phase_number() != number {
            return Ok(false);
        }
        let mut error = Vec::new();
        reply::plain_refusal(&mut error, Reason::HeldCancelled);
        let mut answer = Vec::new();
        let dropped = self.session.refuse_waiting(self.client_carry.as_slice(), &error, &mut answer);
        self.client_carry.take(dropped);
        self.desk.unhold();
        if self.to_client.send(&mut self.client, &answer).is_err() {
            self.client_broke();
        }
        self.retry_client(aux)?;
        Ok(true)
    }

    fn drain(&mut self, refusal: Refusal) -> Turn {
        let (state, _) = self.shared().state();
        let outside = matches!(state, LinkState::Idle | LinkState::Held) && self.session.status() == b'I';
        if outside && self.session.is_quiet() && (state == LinkState::Held || self.client.is_silent()) {
            return Err(End::ByUs(refusal));
        }
        self.desk.draining = Some(Box::new(refusal));
        Ok(false)
    }

    // ------------------------------------------------------------ what others see

    fn publish(&mut self) {
        let shared = &self.desk.shared;
        let blocked = !self.hung_up && !self.may_read_client();
        shared.set_flag(flag::BLOCKED, blocked);
        let stalled =
            self.desk.held_since.is_none() && self.session.may_be_stalled() && self.to_upstream.is_empty();
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
        !self.deaf && self.session.client_at_boundary()
    }

    /// Whether the backend could go on without its client: nothing is outstanding, outside a transaction, and the link was one that is
    /// pooled.
    pub(super) fn may_rest(&self) -> bool {
        self.desk.may_rest()
            && self.session.is_quiet()
            && self.session.status() == b'I'
            && !self.session.is_reset()
            && self.session.client_at_boundary()
            && self.can_terminate_upstream()
            && self.client_carry.is_empty()
            && self.upstream_carry.is_empty()
            && !self.waits
            && !self.upstream_broken
    }

    /// Bytes the client has not taken yet.
    pub(super) fn take_undelivered(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.to_client).into_bytes()
    }

    /// Whether a Terminate would be read as one: upstream's stream stands between two messages.
    pub(super) fn can_terminate_upstream(&self) -> bool {
        self.to_upstream.is_empty() && self.session.upstream_at_boundary()
    }

    /// Bytes upstream has not taken yet.
    pub(super) fn take_unsent(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.to_upstream).into_bytes()
    }
}

/// What an error on the connection to PostgreSQL means.
fn upstream_end(error: &io::Error) -> End {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => End::UpstreamClosed,
        _ => End::UpstreamLost,
    }
}

/// Keeps what could not be judged yet, for the next read; nothing at all when there is none.
#[inline]
fn keep(carry: &mut Vec<u8>, rest: &[u8]) {
    carry.clear();
    if !rest.is_empty() {
        carry.extend_from_slice(rest);
    } else if carry.capacity() > 0 {
        *carry = Vec::new();
    }
}
