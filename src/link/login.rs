//! Pass-through authentication: PostgreSQL asks, the client answers, pgweir relays and learns no password ("Message Flow", "Start-up").
//! Where pgweir has authenticated the client itself, it answers in the client's place, and the client is asked nothing.
//!
//! What PostgreSQL sends between AuthenticationOk and BackendKeyData is kept back until the latter: a FATAL 53300 comes in between,
//! and as long as the client was asked nothing, it can still wait and be dialled again without noticing.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::authority;
use super::binding::{self, Binding};
use super::hub::Hub;
use super::keys::CancelKeys;
use super::random;
use super::server::Server;
use super::shared::LinkShared;
use super::stream::{Socket, Stream};
use super::tag::Tag;
use crate::auth::upstream::{Answerer, Credentials};
use crate::clock;
use crate::listen::socket::is_local;
use crate::reason::{Reason, Refusal};
use crate::wire::backend::{Limit, UpstreamError};
use crate::wire::frame::{HEADER_LEN, Header, split_cstr};
use crate::wire::reply;

/// Largest message accepted from PostgreSQL in a login, in bytes: as libpq.
const UPSTREAM_MESSAGE_MAX: u32 = 30_000;
/// Largest answer of a client: a GSSAPI token (PostgreSQL's PG_MAX_AUTH_TOKEN_LENGTH).
const ANSWER_MAX: u32 = 65_535;
/// Bytes kept back before BackendKeyData.
const KEPT_BACK_MAX: usize = 64 * 1024;
/// How long a client may think while others wait for its place. An honest one answers at once: libpq asks people for a password
/// only after it has closed the connection.
const THINK_UNDER_PRESSURE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// A login that succeeded.
#[derive(Debug)]
pub struct LoggedIn {
    /// Backend pid.
    pub pid: i32,
    /// What the client was given as its secret, and what PostgreSQL gave.
    pub keys: CancelKeys,
    /// Upstream bytes behind ReadyForQuery.
    pub upstream_rest: Vec<u8>,
    /// Client bytes not used.
    pub client_rest: Vec<u8>,
    /// What the backend reported, as whole ParameterStatus messages; only where pgweir has authenticated the client.
    pub parameters: Vec<u8>,
}

/// A login that did not.
#[derive(Debug)]
pub enum LoginError {
    /// The client went away.
    ClientGone,
    /// PostgreSQL refused the client for reasons of its own; the error is with the client.
    Refused(UpstreamError),
    /// A CONNECTION LIMIT is reached, and the client, which was asked nothing, can still be dialled for again.
    Limited {
        /// Whose.
        limit: Limit,
        /// What the client is told if it is not.
        words: Vec<u8>,
    },
    /// PostgreSQL has no connection left, or is not ready. `asked` says whether the client has been asked anything.
    NotNow {
        /// What it said, empty when it just closed.
        error: String,
        /// A true 53300.
        full: bool,
        /// Too late to dial again.
        asked: bool,
    },
    /// Another server is dialled by now; `told` says whether the client has heard anything of this one.
    Moved {
        /// Too late to dial again.
        told: bool,
    },
    /// pgweir refuses.
    Refuse(Refusal),
    /// pgweir could not log in in the user's name, for this reason.
    NotLetIn(String),
}

impl LoginError {
    /// The same where the server was left meanwhile: that it cannot be reached, or is full, is nothing to the one that is dialled now.
    pub fn of_another_server(self) -> Self {
        match self {
            Self::NotNow { asked, .. } => Self::Moved { told: asked },
            other => other,
        }
    }
}

/// What the login needs to know of its client.
pub struct Login<'a> {
    /// Shared state.
    pub hub: &'a Arc<Hub>,
    /// The link.
    pub shared: &'a Arc<LinkShared>,
    /// Whether the client is on this host, or such an upstream is open to all.
    pub may_skip_password: bool,
    /// Asks for replication.
    pub replication: bool,
    /// What SCRAM's channel binding would be bound to.
    pub binding: Binding,
    /// Bound on the whole login.
    pub bound: Duration,
    /// Where pgweir has authenticated the client: what PostgreSQL is answered with, and what goes to the client before its
    /// AuthenticationOk.
    pub own: Option<(&'a Credentials, &'a [u8])>,
    /// Upstream the client's name is tagged so.
    pub tag: Option<&'a Tag>,
    /// Tells when another server is dialled than that of this login, as last seen.
    pub chosen: watch::Receiver<Option<Arc<Server>>>,
}

struct Exchange<'a> {
    login: &'a Login<'a>,
    client: &'a mut Stream,
    upstream: &'a mut Stream,
    from_upstream: Vec<u8>,
    from_client: Vec<u8>,
    kept_back: Vec<u8>,
    key: Option<(i32, CancelKeys)>,
    asked: bool,
    /// Something has been written to the client.
    told: &'a AtomicBool,
    awaits_answer: bool,
    /// The client's next answer chooses among SASL's mechanisms.
    first_answer: bool,
    healthy: bool,
    /// Answers in the client's place.
    answerer: Option<Answerer>,
    /// PostgreSQL has said AuthenticationOk.
    let_in: bool,
}

/// What an upstream message asks for.
enum Next {
    Upstream,
    Client,
    Done,
}

impl Login<'_> {
    /// Relays the exchange up to the first ReadyForQuery. The startup packet has been sent.
    ///
    /// # Errors
    /// See [`LoginError`].
    pub async fn relay(
        &self,
        client: &mut Stream,
        upstream: &mut Stream,
        server: &Server,
        behind: Vec<u8>,
    ) -> Result<LoggedIn, LoginError> {
        let answerer =
            self.own.map(|(credentials, _)| Answerer::new(credentials.clone(), is_private(upstream)));
        let told = AtomicBool::new(false);
        let mut exchange = Exchange {
            login: self,
            client,
            upstream,
            from_upstream: Vec::with_capacity(1024),
            from_client: behind,
            kept_back: self.own.map(|(_, words)| words.to_vec()).unwrap_or_default(),
            key: None,
            asked: false,
            told: &told,
            awaits_answer: false,
            first_answer: false,
            healthy: false,
            answerer,
            let_in: false,
        };
        let done = tokio::select! {
            biased;
            done = timeout(self.bound, exchange.run()) => done,
            told = self.moved(server, &told) => return Err(LoginError::Moved { told }),
        };
        match done {
            Ok(done) => done,
            // Who kept whom waiting?
            Err(_) if !exchange.awaits_answer => {
                Err(exchange.not_now("no answer within startup_timeout", false))
            }
            Err(_) => Err(LoginError::Refuse(Refusal::new(
                Reason::StartupTimeout,
                format!(
                    "the password request was not answered within startup_timeout, {} s",
                    self.bound.as_secs_f64()
                ),
                "",
            ))),
        }
    }
}

impl Login<'_> {
    /// Returns when the login is to be given up for another server: the client has heard nothing yet, or this one is lost.
    async fn moved(&self, server: &Server, told: &AtomicBool) -> bool {
        let mut chosen = self.chosen.clone();
        loop {
            if chosen.changed().await.is_err() {
                // The process ends.
                std::future::pending::<()>().await;
            }
            let told = told.load(Ordering::Relaxed);
            if !told || server.is_lost() {
                return told;
            }
        }
    }
}

impl Exchange<'_> {
    async fn run(&mut self) -> Result<LoggedIn, LoginError> {
        loop {
            let message = self.whole_message()?;
            match message {
                Some((header, len)) => match self.judge(header, len).await? {
                    Next::Upstream => {}
                    Next::Client => self.awaits_answer = true,
                    Next::Done => return self.finish().await,
                },
                None if self.awaits_answer => self.client_answer().await?,
                None => self.read_upstream().await?,
            }
        }
    }

    /// The message at the head of `from_upstream`, once it is whole.
    fn whole_message(&self) -> Result<Option<(Header, usize)>, LoginError> {
        match Header::read(&self.from_upstream) {
            Ok(Some(header)) if header.body_len > UPSTREAM_MESSAGE_MAX => Err(self.old_error(header)),
            Ok(Some(header)) if self.from_upstream.len() >= header.total_len() => {
                Ok(Some((header, header.total_len())))
            }
            Ok(_) => Ok(None),
            Err(_) => Err(self.not_now("bytes that are no PostgreSQL message", false)),
        }
    }

    /// Reads more of upstream; notices a client that goes away meanwhile.
    async fn read_upstream(&mut self) -> Result<(), LoginError> {
        let room = self.from_client.len() < ANSWER_MAX as usize;
        tokio::select! {
            biased;
            read = self.upstream.read_buf(&mut self.from_upstream) => match read {
                Ok(n) if n > 0 => Ok(()),
                _ => Err(self.not_now("the connection was closed during the login", false)),
            },
            // Clients may send ahead; EOF means that nobody waits for this login any more.
            read = self.client.read_buf(&mut self.from_client), if room => match read {
                Ok(n) if n > 0 => Ok(()),
                _ => Err(LoginError::ClientGone),
            },
            () = tokio::time::sleep(LOOK_AGAIN), if !room => {
                if self.client.is_hung_up() { Err(LoginError::ClientGone) } else { Ok(()) }
            }
        }
    }

    /// A postmaster that cannot fork answers in the protocol of 1997: `E` and plain text.
    fn old_error(&self, header: Header) -> LoginError {
        let text = String::from_utf8_lossy(&self.from_upstream[1..self.from_upstream.len().min(200)]);
        self.not_now(text.trim_end_matches('\0'), header.tag == b'E')
    }

    fn not_now(&self, error: &str, full: bool) -> LoginError {
        LoginError::NotNow { error: error.to_owned(), full, asked: self.asked }
    }

    /// Deals with the message at the head of `from_upstream`.
    async fn judge(&mut self, header: Header, len: usize) -> Result<Next, LoginError> {
        let message: Vec<u8> = self.from_upstream.drain(..len).collect();
        let body = &message[HEADER_LEN..];
        match header.tag {
            b'R' => self.authentication(&message, body).await,
            b'K' => {
                self.is_healthy();
                self.key(body)?;
                Ok(Next::Upstream)
            }
            b'E' => Err(self.error(&message, body).await),
            b'Z' => {
                self.kept_back.extend_from_slice(&message);
                Ok(Next::Done)
            }
            // NegotiateProtocolVersion comes before any authentication request and belongs to it.
            _ => {
                let replaced = match self.login.tag {
                    Some(tag) if header.tag == b'S' => {
                        split_cstr(body).and_then(|(name, rest)| tag.replaced(name, split_cstr(rest)?.0))
                    }
                    _ => None,
                };
                self.kept_back.extend_from_slice(replaced.as_deref().unwrap_or(&message));
                if self.kept_back.len() > KEPT_BACK_MAX {
                    return Err(self.not_now("too much was sent before ReadyForQuery", false));
                }
                Ok(Next::Upstream)
            }
        }
    }

    async fn authentication(&mut self, message: &[u8], body: &[u8]) -> Result<Next, LoginError> {
        let code = body.first_chunk::<4>().map_or(u32::MAX, |code| u32::from_be_bytes(*code));
        if self.answerer.is_some() {
            return self.answer_ourselves(code, message, body.get(4..).unwrap_or_default()).await;
        }
        if code == binding::SASL {
            self.first_answer = true;
            let offer = self.login.binding.offer(message).map_err(LoginError::Refuse)?;
            self.kept_back.extend_from_slice(&offer);
        } else {
            self.kept_back.extend_from_slice(message);
        }
        match code {
            // AuthenticationOk.
            0 => {
                if !self.asked && !self.login.may_skip_password {
                    return Err(LoginError::Refuse(Refusal::new(
                        Reason::TrustRefused,
                        "upstream's pg_hba.conf trusts pgweir's address, which would let every remote client in",
                        "let PostgreSQL ask for a password, or set [auth] allow_trust = true",
                    )));
                }
                Ok(Next::Upstream)
            }
            // AuthenticationSASLFinal wants no answer.
            12 => {
                self.forward_kept_back().await?;
                Ok(Next::Upstream)
            }
            _ => {
                self.is_healthy();
                self.asked = true;
                self.forward_kept_back().await?;
                Ok(Next::Client)
            }
        }
    }

    /// Answers for a client that has logged in here.
    async fn answer_ourselves(&mut self, code: u32, message: &[u8], data: &[u8]) -> Result<Next, LoginError> {
        let Some(answerer) = &mut self.answerer else { return Ok(Next::Upstream) };
        if let Some(work) = answerer.work(code, data) {
            self.login.hub.authority.derive(move || work.carry_out()).await;
        }
        let random = authority::random();
        let nonce = random
            .ok_or_else(|| LoginError::Refuse(Refusal::new(Reason::Internal, "no random numbers", "")))?;
        let answer = answerer.answer(code, data, &nonce.nonce);
        let answer = answer.map_err(|cannot| LoginError::NotLetIn(cannot.to_string()))?;
        if code == 0 {
            self.let_in = true;
            self.kept_back.extend_from_slice(message);
        } else {
            self.is_healthy();
        }
        if let Some(body) = answer {
            let mut message = Zeroizing::new(Vec::with_capacity(HEADER_LEN + body.len()));
            reply::message(&mut message, b'p', |out| out.extend_from_slice(&body));
            if let Err(error) = self.upstream.write_all(&message).await {
                return Err(self.not_now(&error.to_string(), false));
            }
        }
        Ok(Next::Upstream)
    }

    /// PostgreSQL does more than accept connections: it asked for a password, refused for the client's own reasons, or let it in. An
    /// AuthenticationOk alone says nothing: a server that closes behind it would be dialled in a storm.
    fn is_healthy(&mut self) {
        if !std::mem::replace(&mut self.healthy, true) {
            let id = self.login.shared.id;
            self.login.hub.guard(|guard, now| guard.upstream_answered(now, id));
        }
    }

    async fn forward_kept_back(&mut self) -> Result<(), LoginError> {
        self.told.store(true, Ordering::Relaxed);
        let bytes = std::mem::take(&mut self.kept_back);
        self.client.write_all(&bytes).await.map_err(|_| LoginError::ClientGone)
    }

    /// The client sees the real pid with a secret of pgweir's own, as long as the real one: 4 bytes in protocol 3.0.
    fn key(&mut self, body: &[u8]) -> Result<(), LoginError> {
        let Some((pid, key)) = body.split_first_chunk::<4>() else {
            return Err(self.not_now("malformed BackendKeyData", false));
        };
        let mut secret = vec![0; key.len()];
        if random::fill(&mut secret).is_none() {
            return Err(LoginError::Refuse(Refusal::new(Reason::Internal, "no random numbers", "")));
        }
        let pid = i32::from_be_bytes(*pid);
        reply::backend_key_data(&mut self.kept_back, pid, &secret);
        self.key = Some((pid, CancelKeys::new(&secret, key)));
        Ok(())
    }

    /// PostgreSQL refused. What can be waited for is not the client's to see.
    async fn error(&mut self, message: &[u8], body: &[u8]) -> LoginError {
        let error = UpstreamError::parse(body);
        let full = error.is_saturation(self.login.replication);
        if full || error.is_not_ready() {
            let text = format!("{}: {}", error.state, error.message);
            return self.not_now(&text, full);
        }
        self.is_healthy();
        if self.answerer.is_some() && !self.let_in && error.state.0.starts_with(b"28") {
            // Not the client's password: what is stored here.
            return LoginError::NotLetIn(format!("PostgreSQL said {}: {}", error.state, error.message));
        }
        self.kept_back.extend_from_slice(message);
        if self.answerer.is_some()
            && let Some(limit) = error.limit()
        {
            return LoginError::Limited { limit, words: std::mem::take(&mut self.kept_back) };
        }
        match self.forward_kept_back().await {
            Ok(()) => LoginError::Refused(error),
            Err(gone) => gone,
        }
    }

    /// Relays one answer of the client, whole.
    async fn client_answer(&mut self) -> Result<(), LoginError> {
        let began = clock::now();
        loop {
            match Header::read(&self.from_client) {
                Ok(Some(header)) if header.body_len > ANSWER_MAX => return Err(bad(Reason::Oversized)),
                Ok(Some(header)) if header.tag != b'p' => {
                    // Terminate: libpq closes like this to ask somebody for a password.
                    let reason = if header.tag == b'X' { None } else { Some(Reason::Malformed) };
                    return Err(reason.map_or(LoginError::ClientGone, bad));
                }
                Ok(Some(header)) if self.from_client.len() >= header.total_len() => {
                    self.awaits_answer = false;
                    let answer: Vec<u8> = self.from_client.drain(..header.total_len()).collect();
                    if std::mem::take(&mut self.first_answer) {
                        self.login.binding.judge(&answer).map_err(LoginError::Refuse)?;
                    }
                    return match self.upstream.write_all(&answer).await {
                        Ok(()) => Ok(()),
                        Err(error) => Err(self.not_now(&error.to_string(), false)),
                    };
                }
                Ok(_) => {}
                Err(reason) => return Err(bad(reason)),
            }
            tokio::select! {
                read = self.client.read_buf(&mut self.from_client) => match read {
                    Ok(n) if n > 0 => {}
                    _ => return Err(LoginError::ClientGone),
                },
                read = self.upstream.read_buf(&mut self.from_upstream) => match read {
                    // PostgreSQL's own authentication_timeout, or a shutdown: its last words are judged first.
                    Ok(n) if n > 0 => return Ok(()),
                    _ => return Err(self.not_now("the connection was closed during the login", false)),
                },
                () = tokio::time::sleep(LOOK_AGAIN) => {
                    let id = self.login.shared.id;
                    if clock::now().since(began) > THINK_UNDER_PRESSURE && self.login.hub.guard(|guard, _| guard.pressure(id)) {
                        return Err(LoginError::Refuse(Refusal::new(
                            Reason::StartupTimeout,
                            "the client does not answer the password request, and others wait to log in",
                            "",
                        )));
                    }
                }
            }
        }
    }

    async fn finish(&mut self) -> Result<LoggedIn, LoginError> {
        let parameters = if self.answerer.is_some() { self.parameters() } else { Vec::new() };
        self.forward_kept_back().await?;
        // A server without BackendKeyData cannot be cancelled; PostgreSQL always sends it.
        let mut client_rest = std::mem::take(&mut self.from_client);
        // Mostly there is none, but room for some was made: the link would keep it for ever.
        client_rest.shrink_to_fit();
        let (pid, keys) = self.key.take().unwrap_or_default();
        Ok(LoggedIn {
            pid,
            keys,
            upstream_rest: std::mem::take(&mut self.from_upstream),
            client_rest,
            parameters,
        })
    }

    /// ParameterStatus of what is kept back: where the client was asked nothing, that is all.
    fn parameters(&self) -> Vec<u8> {
        let (mut found, mut rest) = (Vec::new(), self.kept_back.as_slice());
        while let Ok(Some(header)) = Header::read(rest)
            && let Some(message) = rest.get(..header.total_len())
        {
            if header.tag == b'S' {
                found.extend_from_slice(message);
            }
            rest = &rest[header.total_len()..];
        }
        found
    }
}

/// Whether nobody can listen on the way to PostgreSQL: TLS with whomever keeps out those only who change nothing.
fn is_private(upstream: &Stream) -> bool {
    upstream.tls().is_some_and(|tls| tls.is_verified())
        || match upstream.socket() {
            Socket::Unix(_) => true,
            Socket::Tcp(socket) => socket.peer_addr().is_ok_and(|peer| is_local(peer.ip())),
        }
}

fn bad(reason: Reason) -> LoginError {
    LoginError::Refuse(Refusal::new(reason, "the login broke the protocol", ""))
}

/// Sends a startup packet.
///
/// # Errors
/// As the system says: upstream closed at once.
pub async fn send_startup(upstream: &mut Stream, raw: &[u8]) -> io::Result<()> {
    upstream.write_all(raw).await
}
