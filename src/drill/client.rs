//! A link as psycopg2 has it: simple protocol, one message at a time, answered before the next.
//!
//! Not tokio-postgres: its COPY and its startup differ from libpq's on the wire, its connection is a task of its own behind two channels, and a worker
//! killed in the middle of a query must be able to drop its socket. Messages and SCRAM are postgres-protocol's.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::OwnedSemaphorePermit;

use super::way::{Duplex, Way};
use crate::wire::backend::UpstreamError;
use crate::wire::frame::Header;

/// The largest message taken from a server; the drill asks for small rows.
const MESSAGE_MAX: usize = 1 << 24;
/// Time for saying Terminate, and for the server to close.
const CLOSE_MAX: Duration = Duration::from_secs(1);
/// Room a link reads into at first.
const READ_BUFFER: usize = 1024;

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The SQLSTATE, or libpq's class where no server spoke: 08001 not connected, 08006 connection lost.
    pub label: String,
    /// What the server or the system said; for people.
    pub message: String,
    /// Whether the link is gone.
    pub lost: bool,
    /// Whether it had been logged in.
    pub established: bool,
}

impl Failure {
    /// The SQLSTATE as Odoo sees it: none for a connection that was refused, nor for one that was closed, whatever it was told.
    pub fn odoo_sees(&self) -> Option<&str> {
        (self.established && !self.lost).then_some(self.label.as_str())
    }

    fn of_socket(error: &std::io::Error, established: bool) -> Self {
        let label = if established { "08006" } else { "08001" };
        Self { label: label.into(), message: error.to_string(), lost: true, established }
    }
}

/// A logged-in connection. Dropping it closes the socket without a word, as a killed process does; [`Link::close`] says Terminate.
pub struct Link {
    stream: Box<dyn Duplex>,
    input: BytesMut,
    output: BytesMut,
    /// The FATAL that came before the end, if any.
    farewell: Option<UpstreamError>,
    established: bool,
    /// NotificationResponses so far.
    pub notifications: u64,
    _permit: Option<OwnedSemaphorePermit>,
}

enum Step {
    Nothing,
    Ready,
    Failed(UpstreamError),
    CopyIn,
}

impl Link {
    /// Connects and logs in. There is no time limit, as Odoo sets none.
    ///
    /// # Errors
    /// What the server or the system said.
    pub async fn connect(
        way: &Way,
        database: &str,
        application: &str,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<Self, Failure> {
        let stream = way.open().await.map_err(|error| Failure::of_socket(&error, false))?;
        let mut link = Self {
            stream,
            input: BytesMut::with_capacity(READ_BUFFER),
            output: BytesMut::new(),
            farewell: None,
            established: false,
            notifications: 0,
            _permit: permit,
        };
        let path = format!("-c search_path={}", super::odoo::SCHEMA);
        let mut parameters = vec![
            ("user", way.account.user.as_str()),
            ("database", database),
            ("application_name", application),
        ];
        if way.options {
            parameters.push(("options", &path));
        }
        frontend::startup_message(parameters, &mut link.output)
            .map_err(|error| link.broken(&error.to_string()))?;
        link.log_in(way).await?;
        link.established = true;
        Ok(link)
    }

    async fn log_in(&mut self, way: &Way) -> Result<(), Failure> {
        let mut scram = None;
        loop {
            self.flush().await?;
            let (tag, body) = self.message().await?;
            if tag != b'R' {
                match self.step(tag, &body) {
                    Step::Ready => return Ok(()),
                    Step::Failed(error) => return Err(self.refused(error)),
                    Step::Nothing | Step::CopyIn => continue,
                }
            }
            let password =
                || way.account.password.as_deref().ok_or("a password is asked for and the URL has none");
            let done = match body.first_chunk::<4>().map(|code| u32::from_be_bytes(*code)) {
                Some(0 | 12) => Ok(()),
                Some(3) => password().and_then(|password| self.answer_password(password)),
                Some(5) => password().and_then(|password| {
                    let salt = *body[4..].first_chunk::<4>().ok_or("MD5 without salt")?;
                    self.answer_password(md5_hash(way.account.user.as_bytes(), password, salt).as_bytes())
                }),
                Some(10) => password().and_then(|password| {
                    let state = sasl::ScramSha256::new(password, sasl::ChannelBinding::unsupported());
                    let first =
                        frontend::sasl_initial_response("SCRAM-SHA-256", state.message(), &mut self.output);
                    scram = Some(state);
                    first.map_err(|_| "SCRAM cannot be begun")
                }),
                Some(11) => scram.as_mut().ok_or("SASL continues before it began").and_then(|state| {
                    state.update(&body[4..]).map_err(|_| "the server's SCRAM message is wrong")?;
                    frontend::sasl_response(state.message(), &mut self.output)
                        .map_err(|_| "SCRAM cannot go on")
                }),
                _ => Err("an authentication the drill does not know"),
            };
            done.map_err(|why| self.broken(why))?;
        }
    }

    fn answer_password(&mut self, password: &[u8]) -> Result<(), &'static str> {
        frontend::password_message(password, &mut self.output).map_err(|_| "the password contains a NUL")
    }

    /// Sends one Query and waits until it is answered whole.
    ///
    /// # Errors
    /// The server's ERROR, or how the link was lost.
    pub async fn query(&mut self, sql: &str) -> Result<(), Failure> {
        frontend::query(sql, &mut self.output).map_err(|error| self.broken(&error.to_string()))?;
        self.flush().await?;
        self.until_ready(false).await.map(|_| ())
    }

    /// `COPY … FROM STDIN` with this data.
    ///
    /// # Errors
    /// As [`Link::query`].
    pub async fn copy_in(&mut self, sql: &str, data: &[u8]) -> Result<(), Failure> {
        frontend::query(sql, &mut self.output).map_err(|error| self.broken(&error.to_string()))?;
        self.flush().await?;
        if !self.until_ready(true).await? {
            return Err(self.broken("COPY was not begun"));
        }
        for chunk in data.chunks(8192) {
            let message = frontend::CopyData::new(chunk).map_err(|error| self.broken(&error.to_string()))?;
            message.write(&mut self.output);
            self.flush().await?;
        }
        frontend::copy_done(&mut self.output);
        self.flush().await?;
        self.until_ready(false).await.map(|_| ())
    }

    /// Reads until ReadyForQuery (false), or until a COPY wants data (true).
    async fn until_ready(&mut self, copy: bool) -> Result<bool, Failure> {
        let mut failed = None;
        loop {
            let (tag, body) = match self.message().await {
                Ok(message) => message,
                Err(lost) => return Err(lost),
            };
            match self.step(tag, &body) {
                Step::Ready => {
                    return match failed {
                        Some(error) => Err(self.refused(error)),
                        None => Ok(false),
                    };
                }
                Step::Failed(error) => failed = Some(error),
                Step::CopyIn if copy => return Ok(true),
                Step::CopyIn | Step::Nothing => {}
            }
        }
    }

    /// Takes notifications until the link is lost; that is the only way it ends.
    pub async fn listen(&mut self) -> Failure {
        loop {
            match self.message().await {
                Ok((tag, body)) => {
                    let _ = self.step(tag, &body);
                }
                Err(lost) => return lost,
            }
        }
    }

    /// Says Terminate and closes.
    pub async fn close(mut self) {
        frontend::terminate(&mut self.output);
        // A client that leaves does not care whether anybody reads it.
        let _ = tokio::time::timeout(CLOSE_MAX, self.flush()).await;
        // Nor does it wait; but its place among --max-connections is free only when the server has closed too.
        tokio::spawn(async move {
            let _ = tokio::time::timeout(CLOSE_MAX, self.listen()).await;
        });
    }

    fn step(&mut self, tag: u8, body: &[u8]) -> Step {
        match tag {
            b'Z' => Step::Ready,
            b'G' => Step::CopyIn,
            b'A' => {
                self.notifications += 1;
                Step::Nothing
            }
            b'E' => {
                let error = UpstreamError::parse(body);
                if error.severity == "ERROR" || !self.established {
                    Step::Failed(error)
                } else {
                    self.farewell = Some(error);
                    Step::Nothing
                }
            }
            _ => Step::Nothing,
        }
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        let sent = self.stream.write_all(&self.output).await;
        self.output.clear();
        match sent {
            Ok(()) => Ok(()),
            // What the server said before it closed is still there to be read; then comes the end.
            Err(_) => loop {
                let (tag, body) = self.message().await?;
                let _ = self.step(tag, &body);
            },
        }
    }

    async fn message(&mut self) -> Result<(u8, BytesMut), Failure> {
        loop {
            let header = Header::read(&self.input).map_err(|_| self.broken("a malformed message"))?;
            if let Some(header) = header {
                if header.total_len() > MESSAGE_MAX {
                    return Err(self.broken("a message beyond all bounds"));
                }
                if self.input.len() >= header.total_len() {
                    let mut message = self.input.split_to(header.total_len());
                    message.advance(crate::wire::frame::HEADER_LEN);
                    return Ok((header.tag, message));
                }
            }
            self.input.reserve(READ_BUFFER);
            match self.stream.read_buf(&mut self.input).await {
                Ok(0) => return Err(self.lost(&std::io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) => return Err(self.lost(&error)),
            }
        }
    }

    fn lost(&mut self, error: &std::io::Error) -> Failure {
        match self.farewell.take() {
            Some(fatal) => Failure { lost: true, ..self.refused(fatal) },
            None => Failure::of_socket(error, self.established),
        }
    }

    fn refused(&self, error: UpstreamError) -> Failure {
        Failure {
            label: error.state.as_str().to_owned(),
            message: error.message,
            lost: error.severity != "ERROR",
            established: self.established,
        }
    }

    fn broken(&self, why: &str) -> Failure {
        let established = self.established;
        Failure { label: "08P01".into(), message: why.to_owned(), lost: true, established }
    }
}
