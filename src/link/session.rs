//! The protocol state of an established link: bytes of either side in, bytes for the other side and facts out. Pure: no sockets, no
//! clock, no policy ("Frontend/Backend Protocol", "Message Flow").
//!
//! Invariants
//! - Any split of the same bytes gives the same output and the same facts: what cannot be judged yet is left in the input
//!   (`Progress::taken` stops before it) and is presented again with more behind it.
//! - At most [`HEAD_MAX`] bytes of a message are ever waited for; bodies stream.
//! - Nothing is forwarded that could begin a transaction or a request without the gate's word.

use std::sync::Arc;

use super::cycles::Cycles;
use super::gate::{Gate, Statement, Word};
use super::heads::{Step, bind_names, head_needed, read_statement, reply_head_needed};
use super::out::Out;
use super::rollback::{Rollback, SwallowedBy};
use super::tag::Tag;
use crate::reason::Reason;
use crate::wire::frame::{HEADER_LEN, Header, split_cstr};
use crate::wire::reply;
use crate::wire::statement::{self, Exit};

/// Named statements remembered because they would end a transaction; further ones are unknown.
const EXITS_MAX: usize = 256;

/// How far a step came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Input bytes dealt with; the rest is to be presented again.
    pub taken: usize,
    /// Stopped by the gate (or because replies are awaited), not for want of bytes.
    pub waits: bool,
    /// Terminate was forwarded: nothing the client sends behind it counts.
    pub terminated: bool,
}

/// One direction's place in its stream of messages.
#[derive(Debug, Default)]
struct Stream {
    /// Body bytes still to come of the message being passed on.
    body: u32,
    /// Whether they are dropped rather than forwarded.
    drop_body: bool,
}

impl Stream {
    /// Passes on what is left of a body. False when the input ended before the body.
    #[inline]
    fn pass(&mut self, input_len: usize, pos: &mut usize, out: &mut Out<'_>) -> bool {
        let n = (self.body as usize).min(input_len - *pos);
        if !self.drop_body && n > 0 {
            out.forward(*pos..*pos + n);
        }
        *pos += n;
        self.body -= n as u32;
        self.body == 0
    }

    fn start(&mut self, header: Header, drop_body: bool) {
        self.body = header.body_len;
        self.drop_body = drop_body;
    }
}

/// Errors answered by pgweir in the middle of an extended cycle: what follows up to Sync is dropped, as PostgreSQL would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Skip {
    No,
    /// Drop up to Sync; then forward it (something of the cycle went upstream) or answer it ourselves.
    ToSync {
        forward: bool,
    },
}

/// DataRow and CopyData: they come in millions, and nothing in them matters.
#[inline]
fn is_data(tag: u8) -> bool {
    matches!(tag, b'D' | b'd')
}

/// The end of the run of whole data messages of one type that begins at `pos`.
#[inline]
fn data_run(input: &[u8], mut pos: usize) -> usize {
    let tag = input.get(pos).copied();
    while let Ok(Some(header)) = Header::read(&input[pos..]) {
        let end = pos + header.total_len();
        if Some(header.tag) != tag || end > input.len() {
            break;
        }
        pos = end;
    }
    pos
}

/// Protocol state of an established link.
#[derive(Debug)]
pub struct Session {
    front: Stream,
    back: Stream,
    cycles: Cycles,
    /// Status of the last ReadyForQuery: `I`, `T` or `E`.
    status: u8,
    /// A transaction was let through since the last `I`.
    begun: bool,
    copy_in: bool,
    skip: Skip,
    rollback: Option<Box<Rollback>>,
    /// Boxed: hardly any session prepares a COMMIT or ROLLBACK, and every idle one would carry the empty map.
    #[allow(clippy::box_collection)]
    exits: Option<Box<std::collections::HashMap<Vec<u8>, Exit>>>,
    unnamed: Exit,
    /// Upstream the client's name is tagged so.
    tag: Option<Arc<Tag>>,
}

impl Default for Session {
    fn default() -> Self {
        Self::new()
    }
}

impl Session {
    /// A session right after its first ReadyForQuery (`I`).
    pub fn new() -> Self {
        Self {
            front: Stream::default(),
            back: Stream::default(),
            cycles: Cycles::default(),
            status: b'I',
            begun: false,
            copy_in: false,
            skip: Skip::No,
            rollback: None,
            exits: None,
            unnamed: Exit::Unknown,
            tag: None,
        }
    }

    /// Upstream the client's application_name is tagged: it is to be told its own.
    pub fn set_tag(&mut self, tag: Option<Arc<Tag>>) {
        self.tag = tag;
    }

    /// Status of the last ReadyForQuery.
    pub fn status(&self) -> u8 {
        self.status
    }

    /// Nothing outstanding in either direction.
    pub fn is_quiet(&self) -> bool {
        self.cycles.is_quiet() && !self.copy_in
    }

    /// Quiet inside a transaction.
    pub fn is_idle_in_transaction(&self) -> bool {
        self.is_quiet() && self.status != b'I'
    }

    /// PostgreSQL waits for this client in the middle of a request: a pipeline without Sync, COPY IN, or a message of which a part has
    /// come. `false` also where only the monitor can tell (replies not flushed yet): see [`Session::may_be_stalled`].
    pub fn is_stalled(&self) -> bool {
        self.copy_in
            || self.cycles.is_unsynced_and_answered()
            || self.is_cut() && self.cycles.owes_the_last_only()
    }

    /// The same, but replies of the messages before have not arrived.
    pub fn may_be_stalled(&self) -> bool {
        self.copy_in || self.cycles.is_unsynced() || self.is_cut()
    }

    /// Inside a transaction, a message has been forwarded in part. Outside one, PostgreSQL has not begun anything.
    fn is_cut(&self) -> bool {
        self.status != b'I' && !self.upstream_at_boundary()
    }

    /// COPY FROM STDIN is open.
    pub fn is_copy_in(&self) -> bool {
        self.copy_in
    }

    /// The stream towards upstream stands between two messages.
    pub fn upstream_at_boundary(&self) -> bool {
        self.front.body == 0 || self.front.drop_body
    }

    /// The stream towards the client stands between two messages.
    pub fn client_at_boundary(&self) -> bool {
        self.back.body == 0 || self.back.drop_body
    }

    /// Whether this transaction has been reset, and is not over yet.
    pub fn is_reset(&self) -> bool {
        self.rollback.is_some()
    }

    /// Starts a reset: appends to `upstream` what rolls the transaction back. `error` is the whole ErrorResponse that every
    /// statement gets from now on. False, and nothing appended, unless the session is quiet inside a transaction at a boundary.
    pub fn reset(&mut self, error: Vec<u8>, upstream: &mut Vec<u8>) -> bool {
        if !self.is_idle_in_transaction()
            || self.rollback.is_some()
            || self.front.body > 0
            || self.back.body > 0
            || self.skip != Skip::No
        {
            return false;
        }
        self.rollback = Some(Box::new(Rollback::new(error)));
        self.cycles.query();
        reply::query(upstream, Rollback::INJECTED);
        true
    }

    /// Refuses the request at the head of `input`, which the gate made wait, with an ERROR: drops it, and up to Sync where it is an
    /// extended one. Appends the error, and ReadyForQuery where it is ours to say. Returns bytes of `input` to drop.
    pub fn refuse_waiting(&mut self, input: &[u8], error: &[u8], client: &mut Vec<u8>) -> usize {
        let Ok(Some(header)) = Header::read(input) else { return 0 };
        client.extend_from_slice(error);
        if matches!(header.tag, b'Q' | b'F') {
            reply::ready_for_query(client, self.status);
        } else {
            self.skip = Skip::ToSync { forward: !self.cycles.is_quiet() };
        }
        let dropped = header.total_len().min(input.len());
        self.front.body = (header.total_len() - dropped) as u32;
        self.front.drop_body = true;
        dropped
    }

    // ---------------------------------------------------------------- client → upstream

    /// Takes bytes of the client. `client` receives what is ours to answer (the end of a refused cycle).
    ///
    /// # Errors
    /// `Malformed` or `Oversized` for bytes that are no message.
    pub fn client(
        &mut self,
        input: &[u8],
        out: &mut Out<'_>,
        client: &mut Vec<u8>,
        gate: &mut impl Gate,
    ) -> Result<Progress, Reason> {
        let mut pos = 0;
        loop {
            if !self.front.pass(input.len(), &mut pos, out) {
                return Ok(Progress { taken: pos, ..Progress::default() });
            }
            let Some(header) = Header::read(&input[pos..])? else {
                return Ok(Progress { taken: pos, ..Progress::default() });
            };
            // CopyData comes in millions. (`D` is Describe here.)
            if header.tag == b'd' && self.skip == Skip::No && self.rollback.is_none() {
                let end = data_run(input, pos);
                if end > pos {
                    out.forward(pos..end);
                    pos = end;
                } else {
                    self.forward(header, &mut pos, out);
                }
                continue;
            }
            let body = &input[pos + HEADER_LEN..];
            let need = head_needed(header.tag, header.body_len);
            if body.len() < need {
                return Ok(Progress { taken: pos, ..Progress::default() });
            }
            // Never more than the head, even if more is here: what is decided must not depend on how the bytes were split.
            let complete = need == header.body_len as usize;
            let body = &body[..need];
            let step = if header.tag == b'X' {
                Step::Terminate
            } else if let Skip::ToSync { forward } = self.skip {
                self.skipped(header, forward, client)
            } else if self.rollback.is_some() {
                self.failed_transaction(header, body, complete, gate)
            } else {
                self.message(header, body, complete, gate)
            };
            match step {
                Step::Forward => {
                    let end = pos + header.total_len();
                    if end <= input.len() {
                        out.forward(pos..end);
                        pos = end;
                    } else {
                        self.forward(header, &mut pos, out);
                    }
                }
                Step::Drop => {
                    self.front.start(header, true);
                    pos += HEADER_LEN;
                }
                Step::Replace(bytes) => {
                    out.insert(|v| v.extend_from_slice(&bytes));
                    self.front.start(header, true);
                    pos += HEADER_LEN;
                }
                Step::Wait => return Ok(Progress { taken: pos, waits: true, terminated: false }),
                Step::Terminate => {
                    out.insert(|v| v.extend_from_slice(&reply::TERMINATE));
                    return Ok(Progress { taken: input.len(), waits: false, terminated: true });
                }
            }
        }
    }

    #[inline]
    fn forward(&mut self, header: Header, pos: &mut usize, out: &mut Out<'_>) {
        out.forward(*pos..*pos + HEADER_LEN);
        *pos += HEADER_LEN;
        self.front.start(header, false);
    }

    /// A message of a cycle that pgweir answered with an error.
    fn skipped(&mut self, header: Header, forward: bool, client: &mut Vec<u8>) -> Step {
        if header.tag != b'S' {
            return Step::Drop;
        }
        self.skip = Skip::No;
        if forward {
            self.cycles.sync();
            return Step::Forward;
        }
        reply::ready_for_query(client, self.status);
        Step::Drop
    }

    /// A message outside a reset.
    fn message(&mut self, header: Header, body: &[u8], complete: bool, gate: &mut impl Gate) -> Step {
        let Some(statement) = read_statement(header.tag, body, complete) else {
            return self.plain_message(header.tag, body);
        };
        if self.cycles.is_full() {
            return Step::Wait;
        }
        let begins = self.status == b'I' && !self.begun && !self.cycles.owes_ready();
        if (begins || self.cycles.at_start()) && gate.request(begins, statement) == Word::Wait {
            return Step::Wait;
        }
        self.begun = true;
        gate.statement(statement);
        match statement {
            Statement::Text { simple: true, .. } | Statement::Function => self.cycles.query(),
            Statement::Text { text, complete, name, .. } => {
                self.remember_exit(name, statement::exit(text, complete));
                self.cycles.extended();
            }
            Statement::Prepared(_) => self.cycles.extended(),
        }
        Step::Forward
    }

    /// A message that begins nothing.
    fn plain_message(&mut self, tag: u8, body: &[u8]) -> Step {
        match tag {
            b'C' => {
                if let [b'S', name @ ..] = body {
                    self.forget_exit(split_cstr(name).map_or(name, |(n, _)| n));
                }
                self.cycles.extended();
            }
            // A Bind of the unnamed statement arrives here only if malformed; PostgreSQL will say so.
            b'D' | b'E' | b'B' => self.cycles.extended(),
            b'S' => {
                if self.cycles.is_full() {
                    return Step::Wait;
                }
                if !self.copy_in {
                    self.cycles.sync();
                }
            }
            b'c' | b'f' => self.copy_in = false,
            _ => {}
        }
        Step::Forward
    }

    /// Remembers that a prepared statement would end a transaction, so that a reset can tell COMMIT from ROLLBACK. A name seen with
    /// two meanings is unknown: the second Parse may have failed.
    fn remember_exit(&mut self, name: &[u8], exit: Exit) {
        if name.is_empty() {
            self.unnamed = exit;
            return;
        }
        if exit == Exit::None && self.exits.as_ref().is_none_or(|exits| !exits.contains_key(name)) {
            return;
        }
        let exits = self.exits.get_or_insert_with(Box::default);
        if let Some(known) = exits.get_mut(name) {
            if *known != exit {
                *known = Exit::Unknown;
            }
        } else if exits.len() < EXITS_MAX {
            exits.insert(name.to_vec(), exit);
        }
    }

    fn forget_exit(&mut self, name: &[u8]) {
        if let Some(exits) = &mut self.exits {
            exits.remove(name);
        }
    }

    fn exit_of(&self, statement: &[u8]) -> Exit {
        if statement.is_empty() {
            return self.unnamed;
        }
        self.exits.as_ref().and_then(|exits| exits.get(statement)).copied().unwrap_or(Exit::None)
    }

    /// A message while the transaction has been reset: one cycle at a time.
    fn failed_transaction(
        &mut self,
        header: Header,
        body: &[u8],
        complete: bool,
        gate: &mut impl Gate,
    ) -> Step {
        if self.cycles.owes_ready() {
            return Step::Wait;
        }
        let statement = read_statement(header.tag, body, complete);
        if let Some(statement) = statement {
            if self.cycles.at_start() && gate.request(false, statement) == Word::Wait {
                return Step::Wait;
            }
            gate.statement(statement);
        }
        let bound = bind_names(header.tag, body).map(|(portal, statement)| (portal, self.exit_of(statement)));
        let Some(rollback) = self.rollback.as_mut() else { return Step::Wait };
        let step = match header.tag {
            b'Q' => {
                self.cycles.query();
                rollback.query(body, complete)
            }
            b'F' => {
                self.cycles.query();
                Step::Forward
            }
            b'S' => {
                self.cycles.sync();
                Step::Forward
            }
            b'E' => {
                self.cycles.extended();
                let portal = split_cstr(body).map_or(body, |(portal, _)| portal);
                rollback.execute(portal)
            }
            b'B' => {
                self.cycles.extended();
                if let Some((portal, exit)) = bound {
                    rollback.bound(portal, exit);
                }
                Step::Forward
            }
            b'P' | b'C' | b'D' => {
                self.cycles.extended();
                rollback.extended();
                Step::Forward
            }
            _ => Step::Forward,
        };
        if let Some(Statement::Text { text, complete, name, simple: false }) = statement {
            self.remember_exit(name, statement::exit(text, complete));
        }
        step
    }

    // ---------------------------------------------------------------- upstream → client

    /// Takes bytes of upstream. `upstream` receives what has to be injected.
    ///
    /// # Errors
    /// `Malformed` or `Oversized` for bytes that are no message.
    pub fn upstream(
        &mut self,
        input: &[u8],
        out: &mut Out<'_>,
        upstream: &mut Vec<u8>,
        gate: &mut impl Gate,
    ) -> Result<Progress, Reason> {
        let mut pos = 0;
        loop {
            if !self.back.pass(input.len(), &mut pos, out) {
                break;
            }
            let Some(header) = Header::read(&input[pos..])? else { break };
            if is_data(header.tag) {
                let end = data_run(input, pos);
                if end > pos {
                    out.forward(pos..end);
                    pos = end;
                    continue;
                }
                out.forward(pos..pos + HEADER_LEN);
                pos += HEADER_LEN;
                self.back.start(header, false);
                continue;
            }
            let body = &input[pos + HEADER_LEN..];
            let need = reply_head_needed(header.tag, header.body_len);
            if body.len() < need {
                break;
            }
            let body = &body[..need];
            let forward = match self.rollback.as_mut() {
                None => true,
                Some(rollback) => rollback.reply(header.tag, body, out),
            };
            let end = pos + header.total_len();
            if header.tag == b'S'
                && forward
                && let Some(report) = self.own_report(body)
            {
                out.insert(|out| out.extend_from_slice(&report));
                pos += HEADER_LEN;
                self.back.start(header, true);
                self.reply(header.tag, &report[HEADER_LEN..], forward, upstream, gate);
                continue;
            }
            if forward && end <= input.len() {
                out.forward(pos..end);
                pos = end;
            } else {
                if forward {
                    out.forward(pos..pos + HEADER_LEN);
                }
                pos += HEADER_LEN;
                self.back.start(header, !forward);
            }
            self.reply(header.tag, body, forward, upstream, gate);
        }
        Ok(Progress { taken: pos, ..Progress::default() })
    }

    /// The ParameterStatus to send for one that reports the tagged name.
    fn own_report(&self, body: &[u8]) -> Option<Vec<u8>> {
        let tag = self.tag.as_deref()?;
        let (name, rest) = split_cstr(body)?;
        tag.replaced(name, split_cstr(rest)?.0)
    }

    fn reply(&mut self, tag: u8, body: &[u8], forwarded: bool, upstream: &mut Vec<u8>, gate: &mut impl Gate) {
        match tag {
            b'Z' => self.ready(body.first().copied().unwrap_or(b'I'), forwarded, upstream, gate),
            b'C' => {
                self.cycles.answered();
                self.copy_in = false;
                let tag = split_cstr(body).map_or(body, |(tag, _)| tag);
                if matches!(tag, b"DISCARD ALL" | b"DEALLOCATE ALL") {
                    self.exits = None;
                }
                if forwarded {
                    gate.command(tag);
                }
            }
            b'1' | b'2' | b'3' | b'n' | b'T' | b'I' | b's' => self.cycles.answered(),
            b'E' => {
                self.copy_in = false;
                self.cycles.failed();
                gate.error(body);
            }
            b'G' | b'W' => {
                self.copy_in = tag == b'G';
                self.cycles.copy_in();
            }
            b'S' => {
                if let Some((name, rest)) = split_cstr(body) {
                    gate.parameter(name, split_cstr(rest).map_or(rest, |(value, _)| value));
                }
            }
            b'A' => gate.notification(),
            _ => {}
        }
    }

    fn ready(&mut self, status: u8, forwarded: bool, upstream: &mut Vec<u8>, gate: &mut impl Gate) {
        self.cycles.ready();
        self.status = status;
        if let Some(rollback) = self.rollback.as_mut() {
            match rollback.ready(status) {
                SwallowedBy::Injection { as_expected } => {
                    gate.rolled_back(as_expected);
                    return;
                }
                SwallowedBy::CommitOfPipeline => {
                    self.cycles.query();
                    reply::query(upstream, "ROLLBACK");
                    return;
                }
                SwallowedBy::Nobody => {
                    if status != b'E' {
                        self.rollback = None;
                    }
                }
            }
        }
        let quiet = self.is_quiet();
        if status == b'I' && quiet {
            self.begun = false;
        }
        if forwarded {
            gate.ready(status, quiet);
        }
    }
}

#[cfg(test)]
mod tests;
