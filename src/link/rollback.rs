//! A transaction that pgweir rolled back while its client was silent. Pure.
//!
//! ```text
//! Injected ── our CommandComplete, ERROR and ReadyForQuery `E` swallowed ──► Failed ── ReadyForQuery `I` or `T` ──► over
//! ```
//!
//! While `Failed`, PostgreSQL itself is in `E`: it fails whatever is not the end of a transaction. Left to do: its errors get the
//! lane's SQLSTATE, and a COMMIT must neither succeed nor let anything behind it in the same string or pipeline be executed.
//! Invariant: the client is told `I` or `T` only when PostgreSQL said so, and only for a statement known to end the transaction.

use std::collections::HashMap;

use super::heads::{HEAD_MAX, Step};
use super::out::Out;
use crate::wire::frame::split_cstr;
use crate::wire::reply;
use crate::wire::statement::{self, Exit};

/// Portals remembered; a Bind beyond it is unknown, and unknown never ends the transaction.
const PORTALS_MAX: usize = 256;

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    /// Replies up to the next ReadyForQuery are those of our own statement.
    Injected { rolled_back: bool, failed_as_meant: bool },
    /// The client's statements fail.
    Failed,
}

/// Why a ReadyForQuery does not reach the client.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SwallowedBy {
    Nobody,
    /// It answers the injected statement.
    Injection {
        as_expected: bool,
    },
    /// The Sync of a pipeline whose COMMIT was refused: a ROLLBACK follows, and its ReadyForQuery is the one to send on.
    CommitOfPipeline,
}

/// What of the running cycle is special.
#[derive(Debug, Default)]
struct Cycle {
    /// Extended messages forwarded.
    sent: u32,
    /// Terminal replies seen.
    answered: u32,
    /// A plain ROLLBACK was forwarded: its CommandComplete is the client's.
    leaving: bool,
    /// That CommandComplete came: what follows is outside the transaction, untouched.
    left: bool,
    /// A simple COMMIT was replaced by ROLLBACK: its CommandComplete becomes the error.
    commit_replaced: bool,
    /// Which of the extended messages was the Execute of a COMMIT.
    commit_at: Option<u32>,
    /// The COMMIT's own turn came, and failed as meant.
    commit_refused: bool,
    /// The ROLLBACK injected behind that cycle's Sync is running.
    closing: bool,
    /// An exit nobody recognised was executed: its error is out, the rest of its results is dropped.
    dropping: bool,
}

#[derive(Debug)]
pub(super) struct Rollback {
    phase: Phase,
    error: Vec<u8>,
    portals: HashMap<Vec<u8>, Exit>,
    cycle: Cycle,
}

impl Rollback {
    /// Rolls back with locks, xid and snapshot gone and the isolation level kept, then fails on purpose, which leaves PostgreSQL in
    /// `E` (both in one simple Query inside a transaction block: "Multiple Statements in a Simple Query").
    pub(super) const INJECTED: &'static str = "ROLLBACK AND CHAIN; RELEASE SAVEPOINT pgweir_reset";
    /// Certain to fail inside a transaction, without executing anything.
    const FAILS: &'static str = "RELEASE SAVEPOINT pgweir_reset";
    /// A portal nobody has: its Execute fails and PostgreSQL skips to Sync.
    const NO_PORTAL: &'static [u8] = b"pgweir_reset";

    /// `error`: the whole ErrorResponse for every statement.
    pub(super) fn new(error: Vec<u8>) -> Self {
        Self {
            phase: Phase::Injected { rolled_back: false, failed_as_meant: false },
            error,
            portals: HashMap::new(),
            cycle: Cycle::default(),
        }
    }

    // ---------------------------------------------------------------- client → upstream

    pub(super) fn query(&mut self, body: &[u8], complete: bool) -> Step {
        self.cycle = Cycle::default();
        let text = split_cstr(body).map_or(body, |(text, _)| text);
        let complete = complete || text.len() < body.len();
        match statement::exit(text, complete) {
            Exit::Rollback => {
                self.cycle.leaving = true;
                Step::Forward
            }
            Exit::Commit => {
                self.cycle.commit_replaced = true;
                Self::replaced_by("ROLLBACK")
            }
            Exit::RollbackTo | Exit::None => Step::Forward,
            // A head full of comments. What it would do is not known, so nothing of it is executed.
            Exit::Unknown => Self::replaced_by(Self::FAILS),
        }
    }

    fn replaced_by(sql: &str) -> Step {
        let mut bytes = Vec::new();
        reply::query(&mut bytes, sql);
        Step::Replace(bytes)
    }

    /// Parse, Close or Describe.
    pub(super) fn extended(&mut self) {
        self.cycle.sent += 1;
    }

    pub(super) fn bound(&mut self, portal: &[u8], exit: Exit) {
        self.cycle.sent += 1;
        if self.portals.len() < PORTALS_MAX || self.portals.contains_key(portal) {
            // A portal name used twice may have failed to bind the second time.
            let known = match self.portals.get(portal) {
                Some(earlier) if *earlier != exit && !portal.is_empty() => Exit::Unknown,
                _ => exit,
            };
            self.portals.insert(portal.to_vec(), known);
        }
    }

    pub(super) fn execute(&mut self, portal: &[u8]) -> Step {
        let at = self.cycle.sent;
        self.cycle.sent += 1;
        if self.cycle.leaving {
            // Either the ROLLBACK before it ran and this is outside the transaction, or PostgreSQL is skipping to Sync.
            return Step::Forward;
        }
        match self.portals.get(portal) {
            Some(Exit::Rollback) => {
                self.cycle.leaving = true;
                return Step::Forward;
            }
            Some(Exit::Commit) if self.cycle.commit_at.is_none() => self.cycle.commit_at = Some(at),
            _ => {}
        }
        let mut bytes = Vec::new();
        reply::message(&mut bytes, b'E', |out| {
            out.extend_from_slice(Self::NO_PORTAL);
            out.extend_from_slice(&[0; 5]); // NUL, and no row limit
        });
        Step::Replace(bytes)
    }

    // ---------------------------------------------------------------- upstream → client

    /// Whether a reply is forwarded as it is. Writes to `out` what the client gets in its place.
    pub(super) fn reply(&mut self, tag: u8, body: &[u8], out: &mut Out<'_>) -> bool {
        let fatal = tag == b'E' && !is_error(body);
        if let Phase::Injected { rolled_back, failed_as_meant } = &mut self.phase {
            match tag {
                b'C' => *rolled_back |= body.starts_with(b"ROLLBACK\0"),
                b'E' if !fatal => *failed_as_meant = has_state(body, b"3B001"),
                b'Z' => {}
                // ParameterStatus, NotificationResponse and NoticeResponse are the client's, and so is a FATAL.
                _ => return true,
            }
            return false;
        }
        match tag {
            b'E' if fatal || self.cycle.left => true,
            b'E' => {
                if self.cycle.commit_at == Some(self.cycle.answered) {
                    self.cycle.commit_refused = true;
                }
                if !self.cycle.closing {
                    out.insert(|v| v.extend_from_slice(&self.error));
                }
                false
            }
            b'C' => self.command(body, out),
            b'Z' => !self.cycle.commit_refused || self.cycle.closing,
            b'1' | b'2' | b'3' | b'n' | b'T' | b'I' | b's' => {
                self.cycle.answered += 1;
                !self.cycle.dropping
            }
            b'A' | b'N' | b'S' => true,
            _ => !self.cycle.dropping,
        }
    }

    fn command(&mut self, body: &[u8], out: &mut Out<'_>) -> bool {
        self.cycle.answered += 1;
        if self.cycle.left {
            return true;
        }
        if self.cycle.leaving {
            self.cycle.left = true;
            return true;
        }
        if self.cycle.closing || self.cycle.dropping {
            return false;
        }
        // The ROLLBACK in place of a COMMIT; or an exit that nobody recognised, which counts as COMMIT.
        if self.cycle.commit_replaced || body.starts_with(b"ROLLBACK\0") {
            out.insert(|v| v.extend_from_slice(&self.error));
            self.cycle.dropping = true;
            return false;
        }
        true
    }

    /// ReadyForQuery came.
    pub(super) fn ready(&mut self, status: u8) -> SwallowedBy {
        if let Phase::Injected { rolled_back, failed_as_meant } = self.phase {
            self.phase = Phase::Failed;
            return SwallowedBy::Injection { as_expected: rolled_back && failed_as_meant && status == b'E' };
        }
        if self.cycle.commit_refused && !self.cycle.closing {
            self.cycle = Cycle { closing: true, ..Cycle::default() };
            return SwallowedBy::CommitOfPipeline;
        }
        self.cycle = Cycle::default();
        self.portals.clear();
        SwallowedBy::Nobody
    }
}

/// Whether an ErrorResponse is of severity ERROR: the session goes on. Field V is never localised and comes second.
fn is_error(body: &[u8]) -> bool {
    field(body, b'V').or_else(|| field(body, b'S')).is_some_and(|value| value == b"ERROR")
}

fn has_state(body: &[u8], state: &[u8]) -> bool {
    field(body, b'C') == Some(state)
}

fn field(body: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = &body[..body.len().min(HEAD_MAX)];
    while let [name, tail @ ..] = rest {
        if *name == 0 {
            return None;
        }
        let (value, next) = split_cstr(tail)?;
        if *name == wanted {
            return Some(value);
        }
        rest = next;
    }
    None
}
