//! A console session after its login: the simple and the extended query protocol, over [`Answerer`].
//!
//! ```text
//! Ready ── P, B, D, E, C fail ──► Skipping ── Sync ──► Ready        X, EOF, malformed message: end
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use super::MESSAGE_LEN_MAX;
use super::answer::{self, Answer, Answerer, Login};
use super::chatter::Chatter;
use super::control::Control;
use super::encode;
use super::io::{End, Wire};
use super::parse::{self, Failure, Request, SYNTAX_ERROR};
use super::view::Rows;
use crate::reason::{Reason, Severity};
use crate::wire::frame::split_cstr;
use crate::wire::reply;

/// Prepared statements at most, and portals at most.
const NAMED_MAX: usize = 128;

/// What was prepared; none is the empty statement.
type Statement = Option<Arc<Request>>;

struct Portal {
    statement: Statement,
    binary: Vec<bool>,
    progress: Progress,
}

enum Progress {
    Bound,
    Suspended(Rows),
    Done,
}

/// A session.
pub struct Session {
    wire: Wire,
    answerer: Answerer,
    statements: HashMap<String, Statement>,
    portals: HashMap<String, Portal>,
    skipping: bool,
}

/// An ERROR of one message, or the session's end.
enum Trouble {
    Failed(Failure),
    Over(End),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<End> for Trouble {
    fn from(end: End) -> Self {
        Self::Over(end)
    }
}

impl From<Reason> for Trouble {
    fn from(reason: Reason) -> Self {
        Self::Over(reason.into())
    }
}

impl Session {
    /// A session for a login.
    pub fn new(wire: Wire, login: Login, control: Arc<dyn Control>) -> Self {
        let answerer = Answerer::new(login, control);
        Self { wire, answerer, statements: HashMap::new(), portals: HashMap::new(), skipping: false }
    }

    /// Gives the connection back, to be closed.
    pub fn into_wire(self) -> Wire {
        self.wire
    }

    /// Serves the client until it goes or breaks the protocol.
    pub async fn run(&mut self) -> End {
        match self.serve().await {
            Ok(()) => End::Gone,
            Err(end) => end,
        }
    }

    async fn serve(&mut self) -> Result<(), End> {
        self.greet().await?;
        loop {
            let (tag, body) = self.wire.message(MESSAGE_LEN_MAX).await?;
            match tag {
                b'X' => return Ok(()),
                b'S' => {
                    self.skipping = false;
                    self.ready().await?;
                }
                _ if self.skipping => {}
                b'Q' => {
                    let done = self.simple(&body).await;
                    self.report(done)?;
                    self.ready().await?;
                }
                b'P' | b'B' | b'D' | b'E' | b'C' => {
                    let done = self.extended(tag, &body).await;
                    self.skipping = self.report(done)?;
                    self.wire.flush_chunk().await?;
                }
                b'H' => self.wire.flush().await?,
                b'F' => {
                    self.report(Err(Failure::new(b"0A000", "function calls are not supported", "").into()))?;
                    self.ready().await?;
                }
                // COPY's messages outside of a COPY are left over from a failed one; PostgreSQL ignores them too.
                b'd' | b'c' | b'f' => {}
                _ => return Err(Reason::Malformed.into()),
            }
        }
    }

    async fn greet(&mut self) -> Result<(), End> {
        for (name, value) in self.answerer.reported() {
            reply::parameter_status(&mut self.wire.out, name, value);
        }
        let (pid, key) = self.answerer.key_data();
        reply::backend_key_data(&mut self.wire.out, pid, key);
        self.ready().await
    }

    /// The end of a request cycle; portals live as long as their transaction.
    async fn ready(&mut self) -> Result<(), End> {
        let status = self.answerer.status();
        if status == b'I' {
            self.portals.clear();
        }
        reply::ready_for_query(&mut self.wire.out, status);
        self.wire.flush().await
    }

    /// Writes an ERROR where there was one, and says so.
    fn report(&mut self, done: Result<(), Trouble>) -> Result<bool, End> {
        match done {
            Ok(()) => Ok(false),
            Err(Trouble::Failed(failure)) => {
                let (state, text, hint) = (failure.state, &failure.text, &failure.hint);
                reply::error(&mut self.wire.out, Severity::Error, state, text, hint);
                Ok(true)
            }
            Err(Trouble::Over(end)) => Err(end),
        }
    }

    /// Query: all statements are parsed before the first is carried out, and the first failure ends the string.
    async fn simple(&mut self, body: &[u8]) -> Result<(), Trouble> {
        let mut body = Body(body);
        let text = body.text()?;
        body.end()?;
        let requests = parse::script(text)?;
        if requests.is_empty() {
            reply::message(&mut self.wire.out, b'I', |_| {});
        }
        for request in requests {
            let rows = self.answer(&request).await?;
            if let Some(rows) = rows {
                let columns = answer::columns(&request).unwrap_or_default();
                encode::row_description(&mut self.wire.out, &columns, &[]);
                self.send(&request, rows, &[], usize::MAX).await?;
            }
            reply::command_complete(&mut self.wire.out, request.tag());
        }
        Ok(())
    }

    /// Carries a request out and writes what comes before its rows.
    async fn answer(&mut self, request: &Request) -> Result<Option<Rows>, Trouble> {
        let Answer { rows, notices, changed } = self.answerer.answer(request).await?;
        for notice in notices {
            reply::notice(&mut self.wire.out, &notice);
        }
        if let Some(name) = changed {
            reply::parameter_status(&mut self.wire.out, name, self.answerer.value(name));
        }
        if let Request::Chatter(Chatter::Deallocate(Some(name))) = request {
            self.statements.remove(name).ok_or_else(|| no_statement(name))?;
        }
        if let Request::Chatter(Chatter::Deallocate(None) | Chatter::DiscardAll) = request {
            self.statements.clear();
        }
        Ok(rows)
    }

    /// Writes at most `limit` rows and returns the rest, if there may be one.
    async fn send(
        &mut self,
        request: &Request,
        mut rows: Rows,
        binary: &[bool],
        limit: usize,
    ) -> Result<Option<Rows>, Trouble> {
        let columns = answer::columns(request).unwrap_or_default();
        for _ in 0..limit {
            let Some(row) = rows.next() else { return Ok(None) };
            encode::data_row(&mut self.wire.out, &columns, &row, binary);
            self.wire.flush_chunk().await?;
        }
        Ok(Some(rows))
    }

    async fn extended(&mut self, tag: u8, body: &[u8]) -> Result<(), Trouble> {
        let mut body = Body(body);
        match tag {
            b'P' => self.parse(&mut body),
            b'B' => self.bind(&mut body),
            b'D' => self.describe(&mut body),
            b'C' => self.close(&mut body),
            _ => self.execute(&mut body).await,
        }
    }

    fn parse(&mut self, body: &mut Body) -> Result<(), Trouble> {
        let name = body.text()?.to_owned();
        let text = body.text()?;
        let types = body.count()?;
        body.bytes(types * 4)?;
        body.end()?;
        let mut requests = parse::script(text)?;
        if requests.len() > 1 {
            return Err(Failure::new(&SYNTAX_ERROR.0, "a prepared statement is one command", "").into());
        }
        if !name.is_empty() && self.statements.contains_key(&name) {
            return Err(
                Failure::new(b"42P05", format!("prepared statement {name:.80?} exists already"), "").into()
            );
        }
        bounded(self.statements.len())?;
        self.statements.insert(name, requests.pop().map(Arc::new));
        reply::message(&mut self.wire.out, b'1', |_| {});
        Ok(())
    }

    fn bind(&mut self, body: &mut Body) -> Result<(), Trouble> {
        let portal = body.text()?.to_owned();
        let name = body.text()?;
        let formats = body.count()?;
        body.bytes(formats * 2)?;
        let parameters = body.count()?;
        for _ in 0..parameters {
            // -1 is NULL and has no bytes.
            let len = usize::try_from(body.i32()?).unwrap_or(0);
            body.bytes(len)?;
        }
        let wanted = body.count()?;
        let wanted: Vec<bool> =
            body.bytes(wanted * 2)?.chunks_exact(2).map(|format| format != [0, 0]).collect();
        body.end()?;
        let statement = self.statements.get(name).ok_or_else(|| no_statement(name))?.clone();
        if parameters > 0 {
            let text = "the console's commands take no parameters";
            return Err(Failure::new(b"08P01", text, "write the value into the command").into());
        }
        if !portal.is_empty() && self.portals.contains_key(&portal) {
            return Err(Failure::new(b"42P03", format!("portal {portal:.80?} exists already"), "").into());
        }
        bounded(self.portals.len())?;
        let columns = statement.as_deref().and_then(answer::columns).map_or(0, |columns| columns.len());
        let binary = match wanted.as_slice() {
            [all] => vec![*all; columns],
            each if each.is_empty() || columns == 0 || each.len() == columns => wanted,
            each => {
                let text = format!("{} result formats for {columns} columns", each.len());
                return Err(Failure::new(b"08P01", text, "").into());
            }
        };
        self.portals.insert(portal, Portal { statement, binary, progress: Progress::Bound });
        reply::message(&mut self.wire.out, b'2', |_| {});
        Ok(())
    }

    fn describe(&mut self, body: &mut Body) -> Result<(), Trouble> {
        let kind = body.byte()?;
        let name = body.text()?;
        body.end()?;
        let (statement, binary) = match kind {
            b'S' => {
                let statement = self.statements.get(name).ok_or_else(|| no_statement(name))?;
                reply::message(&mut self.wire.out, b't', |out| out.extend_from_slice(&[0, 0]));
                (statement, &[][..])
            }
            b'P' => {
                let portal = self.portals.get(name).ok_or_else(|| no_portal(name))?;
                (&portal.statement, &portal.binary[..])
            }
            _ => return Err(Reason::Malformed.into()),
        };
        match statement.as_deref().and_then(answer::columns) {
            Some(columns) => encode::row_description(&mut self.wire.out, &columns, binary),
            None => reply::message(&mut self.wire.out, b'n', |_| {}),
        }
        Ok(())
    }

    fn close(&mut self, body: &mut Body) -> Result<(), Trouble> {
        let kind = body.byte()?;
        let name = body.text()?;
        body.end()?;
        match kind {
            b'S' => drop(self.statements.remove(name)),
            b'P' => drop(self.portals.remove(name)),
            _ => return Err(Reason::Malformed.into()),
        }
        reply::message(&mut self.wire.out, b'3', |_| {});
        Ok(())
    }

    async fn execute(&mut self, body: &mut Body<'_>) -> Result<(), Trouble> {
        let name = body.text()?.to_owned();
        let limit = match usize::try_from(body.i32()?) {
            Ok(limit) if limit > 0 => limit,
            _ => usize::MAX,
        };
        body.end()?;
        let mut portal = self.portals.remove(&name).ok_or_else(|| no_portal(&name))?;
        let Some(request) = portal.statement.clone() else {
            self.portals.insert(name, portal);
            reply::message(&mut self.wire.out, b'I', |_| {});
            return Ok(());
        };
        let rows = match portal.progress {
            Progress::Bound => self.answer(&request).await?,
            Progress::Suspended(rows) => Some(rows),
            // A command is never carried out twice by mistake.
            Progress::Done => {
                return Err(
                    Failure::new(b"55000", format!("portal {name:.80?} has been executed"), "").into()
                );
            }
        };
        let rest = match rows {
            Some(rows) => self.send(&request, rows, &portal.binary, limit).await?,
            None => None,
        };
        portal.progress = match rest {
            Some(rows) => {
                reply::message(&mut self.wire.out, b's', |_| {});
                Progress::Suspended(rows)
            }
            None => {
                reply::command_complete(&mut self.wire.out, request.tag());
                Progress::Done
            }
        };
        self.portals.insert(name, portal);
        Ok(())
    }
}

fn no_statement(name: &str) -> Failure {
    Failure::new(b"26000", format!("prepared statement {name:.80?} does not exist"), "")
}

fn no_portal(name: &str) -> Failure {
    Failure::new(b"34000", format!("portal {name:.80?} does not exist"), "")
}

fn bounded(len: usize) -> Result<(), Failure> {
    if len < NAMED_MAX {
        return Ok(());
    }
    Err(Failure::new(
        b"53400",
        format!("{NAMED_MAX} prepared statements or portals are open"),
        "DEALLOCATE ALL",
    ))
}

/// The rest of a message's body.
struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], Reason> {
        let (found, rest) = self.0.split_at_checked(len).ok_or(Reason::Malformed)?;
        self.0 = rest;
        Ok(found)
    }

    fn byte(&mut self) -> Result<u8, Reason> {
        self.bytes(1)?.first().copied().ok_or(Reason::Malformed)
    }

    fn i32(&mut self) -> Result<i32, Reason> {
        let (found, rest) = self.0.split_first_chunk().ok_or(Reason::Malformed)?;
        self.0 = rest;
        Ok(i32::from_be_bytes(*found))
    }

    fn count(&mut self) -> Result<usize, Reason> {
        let (found, rest) = self.0.split_first_chunk().ok_or(Reason::Malformed)?;
        self.0 = rest;
        Ok(u16::from_be_bytes(*found).into())
    }

    /// A string. Other encodings than UTF-8 fail the statement, not the session.
    fn text(&mut self) -> Result<&'a str, Trouble> {
        let (found, rest) = split_cstr(self.0).ok_or(Reason::Malformed)?;
        self.0 = rest;
        let text = std::str::from_utf8(found);
        text.map_err(|_| Failure::new(b"22021", "the text is not UTF-8", "").into())
    }

    fn end(&self) -> Result<(), Reason> {
        if self.0.is_empty() { Ok(()) } else { Err(Reason::Malformed) }
    }
}
