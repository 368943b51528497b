//! A client's login at pgweir itself, before it is classified: no slot is held while it thinks.
//!
//! Wrong password and unknown user take the same way to the same answer, at the same time after the client's last word: the delay of
//! its address. AuthenticationOk is not sent here: PostgreSQL's own follows when the upstream login has succeeded.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tracing::warn;
use zeroize::Zeroizing;

use super::authority::{OwnAuth, random};
use super::deadline::{self, Deadline};
use super::hub::Hub;
use super::stream::Stream;
use crate::auth::exchange::{ANSWER_MAX, Ask, Exchange, Proof, Step};
use crate::auth::scram::Failed;
use crate::auth::stored::Stored;
use crate::auth::throttle::Turn;
use crate::auth::upstream::Credentials;
use crate::clock;
use crate::reason::{Reason, Refusal};
use crate::tls::names::end_point;
use crate::wire::frame::{HEADER_LEN, Header};
use crate::wire::reply;
use crate::wire::startup::Startup;

/// Room for a client's answers, all of which is overwritten in the end: what an honest one sends, in bytes.
const INPUT_LEN: usize = 512;
/// Room for what it is asked, in bytes: an honest client's nonce leaves server-first shorter.
const OUTPUT_LEN: usize = 128;
/// An authentication message without its data, in bytes.
const AUTHENTICATION_LEN: usize = HEADER_LEN + 4;
/// Room made for longer ones; never grown in place, so that no copy is left behind.
const INPUT_MORE: usize = 4096;

/// A client that has proved who it is.
pub struct Authenticated {
    /// For the login upstream.
    pub credentials: Credentials,
    /// What goes to the client before PostgreSQL's AuthenticationOk.
    pub words: Vec<u8>,
    /// Bytes of the client not used.
    pub rest: Vec<u8>,
}

/// Why there is none.
#[derive(Debug)]
pub enum Denied {
    /// The client went away: libpq does, to ask somebody for a password.
    Gone,
    /// It is refused.
    Refuse(Refusal),
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        Self::Refuse(refusal)
    }
}

struct Login<'a> {
    hub: &'a Hub,
    own: &'a OwnAuth,
    client: &'a mut Stream,
    user: &'a str,
    address: Option<IpAddr>,
    /// Hash of the certificate the client saw, where its TLS ends here.
    binding: Option<Vec<u8>>,
    input: Zeroizing<Vec<u8>>,
    out: Vec<u8>,
    /// The auth query has not answered yet.
    looks_up: bool,
}

/// What the exchange came to.
enum Outcome {
    Proven(Arc<Stored>, Proof),
    /// Wrong password or unknown user.
    Wrong,
    /// Not looked at: too many logins of the address failed.
    Unheard,
}

/// Authenticates a client before its `deadline`, that of startup_timeout. A startup packet that asks for more than protocol 3.0 is brought
/// down to it: what PostgreSQL speaks is not known yet.
///
/// # Errors
/// See [`Denied`].
pub async fn authenticate(
    hub: &Hub,
    own: &OwnAuth,
    client: &mut Stream,
    address: Option<IpAddr>,
    startup: &mut Startup,
    behind: Vec<u8>,
    deadline: Pin<&mut Deadline>,
) -> Result<Authenticated, Denied> {
    if startup.user().is_empty() {
        return Err(Refusal::new(Reason::Malformed, "no user name is in the startup packet", "").into());
    }
    // What the client's TLS shows it of us.
    let presented = client.tls().and_then(|tls| tls.presented());
    let binding = presented.and_then(|certificate| end_point(certificate));
    let mut out = Vec::with_capacity(OUTPUT_LEN);
    if let Some(unknown) = startup.settle_for_3_0() {
        reply::negotiate_protocol_version(&mut out, 0, &unknown);
    }
    let mut input = Zeroizing::new(Vec::with_capacity(INPUT_LEN.max(behind.len())));
    input.extend_from_slice(&behind);
    let user = startup.user();
    let mut login = Login { hub, own, client, user, address, binding, input, out, looks_up: false };
    let outcome = match deadline::bound(deadline, login.run()).await {
        Some(outcome) => outcome?,
        None if login.looks_up => {
            return Err(login.unavailable("the monitor has no connection, or PostgreSQL does not answer"));
        }
        None => {
            let bound = hub.settings.load().startup_timeout;
            let detail = format!("the login took longer than startup_timeout, {} s", bound.as_secs_f64());
            return Err(Refusal::new(Reason::StartupTimeout, detail, "").into());
        }
    };
    match outcome {
        Outcome::Proven(stored, proof) => {
            hub.authority.throttle.lock().succeed(address, user, clock::now());
            let mut words = Vec::new();
            if let Some(server_final) = &proof.server_final {
                words.reserve_exact(AUTHENTICATION_LEN + server_final.len());
                authentication(&mut words, 12, server_final.as_bytes());
            }
            if let Some(client_key) = &proof.client_key {
                stored.remember(client_key, clock::now());
            }
            // A copy: the buffer itself, which held proofs, is overwritten.
            let rest = login.input.to_vec();
            let credentials = Credentials { user: user.into(), stored, client_key: proof.client_key };
            Ok(Authenticated { credentials, words, rest })
        }
        Outcome::Wrong => Err(Box::pin(login.wrong()).await),
        Outcome::Unheard => Err(login.throttled()),
    }
}

impl Login<'_> {
    async fn run(&mut self) -> Result<Outcome, Denied> {
        let internal = || Refusal::new(Reason::Internal, "no random numbers", "");
        let mock = self.hub.authority.mock().ok_or_else(internal)?;
        self.looks_up = true;
        let stored = match self.hub.authority.find(self.own.query.as_ref(), self.user).await {
            Ok(stored) => stored,
            Err(why) => return Err(self.unavailable(&why)),
        };
        self.looks_up = false;
        if let Some(stored) = stored.clone().filter(|stored| stored.must_derive()) {
            let (user, mock) = (self.user.to_owned(), mock.clone());
            let derive = move || {
                stored.verifier(&user, &mock);
            };
            Box::pin(self.hub.authority.derive(derive)).await;
        }
        let random = random().ok_or_else(internal)?;
        let (mut exchange, ask) =
            Exchange::begin(self.user, stored.as_ref(), &mock, random, self.binding.take());
        self.ask(&ask).await?;
        loop {
            let end = self.answer().await?;
            if exchange.is_last() {
                // Everybody has been asked, and is asked until here: an address that is locked must not tell who exists.
                if !self.has_its_turn().await {
                    return Ok(Outcome::Unheard);
                }
            }
            let step = exchange.answer(self.input.get(HEADER_LEN..end).unwrap_or_default());
            self.input.drain(..end);
            match step {
                Ok(Step::Ask(next, ask)) => {
                    exchange = next;
                    self.ask(&ask).await?;
                }
                Ok(Step::Proven(proof)) => {
                    let unproven = || Refusal::new(Reason::Internal, "a proof without a user", "");
                    return Ok(Outcome::Proven(stored.ok_or_else(unproven)?, proof));
                }
                Err(Failed::Wrong) => return Ok(Outcome::Wrong),
                Err(Failed::Malformed) => {
                    return Err(bad("the answer to the password request makes no sense"));
                }
                Err(Failed::Downgraded) => {
                    return Err(bad("the client says that channel binding was not offered, and it was"));
                }
            }
        }
    }

    /// Waits until this proof may be looked at; false if it is not. Who waits competes anew each time, so that a row of guesses is no
    /// queue before the one who knows the password.
    async fn has_its_turn(&self) -> bool {
        loop {
            let turn = self.hub.authority.throttle.lock().turn(self.address, self.user, clock::now());
            match turn {
                Turn::Now => return true,
                Turn::Later(wait) => Box::pin(tokio::time::sleep(wait + jitter())).await,
                Turn::Never(delay) => {
                    Box::pin(tokio::time::sleep(delay)).await;
                    return false;
                }
            }
        }
    }

    /// The answer to a failed login, when its time has come.
    async fn wrong(&mut self) -> Denied {
        let (locked, delay) = {
            let (mut throttle, now) = (self.hub.authority.throttle.lock(), clock::now());
            (throttle.is_locked(self.address, now), throttle.fail(self.address, self.user, now))
        };
        self.hub.authority.forget(self.user);
        // It may hang up meanwhile; its place among strangers is its own for that long.
        tokio::time::sleep(delay).await;
        if locked {
            // As those who are not heard, lest the answer tells who has logged in from here.
            return self.throttled();
        }
        let detail = format!("for user \"{}\"", self.user);
        Refusal::new(Reason::Password, detail, "").into()
    }

    fn throttled(&self) -> Denied {
        let failures = self.hub.authority.throttle.lock().failures(self.address, clock::now());
        let detail = format!("{failures} logins failed lately");
        Refusal::new(Reason::LoginThrottled, detail, "wait a minute, and use the right password").into()
    }

    /// For the operator's eyes; a stranger learns only that it is not its fault.
    fn unavailable(&self, why: &str) -> Denied {
        if self.hub.may_log(&"".into(), Reason::AuthQuery) {
            warn!(user = ?self.user, why, "the auth query failed");
        }
        Refusal::new(Reason::AuthQuery, "", "pgweir's log has the cause").into()
    }

    async fn ask(&mut self, ask: &Ask) -> Result<(), Denied> {
        authentication(&mut self.out, ask.code, &ask.data);
        let sent = self.client.write_all(&self.out).await;
        self.out.clear();
        sent.map_err(|_| Denied::Gone)
    }

    /// Waits for the client's next message, which must be an answer; gives where it ends in the input.
    async fn answer(&mut self) -> Result<usize, Denied> {
        loop {
            match Header::read(&self.input) {
                Ok(Some(header)) if header.tag == b'X' => return Err(Denied::Gone),
                Ok(Some(header)) if header.tag != b'p' => return Err(bad("a password message was expected")),
                Ok(Some(header)) if header.body_len > ANSWER_MAX => {
                    let detail = format!("an answer has at most {ANSWER_MAX} bytes");
                    return Err(Refusal::new(Reason::Oversized, detail, "").into());
                }
                Ok(Some(header)) if self.input.len() >= header.total_len() => {
                    return Ok(header.total_len());
                }
                Ok(_) => {}
                Err(reason) => return Err(Refusal::new(reason, "the login broke the protocol", "").into()),
            }
            if self.input.len() == self.input.capacity() {
                let mut more = Zeroizing::new(Vec::with_capacity(self.input.len() + INPUT_MORE));
                more.extend_from_slice(&self.input);
                self.input = more;
            }
            match self.client.read_buf(&mut *self.input).await {
                Ok(1..) => {}
                _ => return Err(Denied::Gone),
            }
        }
    }
}

/// Up to a quarter of a second, in which those who waited for the same moment are put into an order of chance.
fn jitter() -> Duration {
    let mut byte = [0];
    let _ = getrandom::fill(&mut byte);
    Duration::from_millis(u64::from(byte[0]))
}

fn bad(detail: &str) -> Denied {
    Refusal::new(Reason::Malformed, detail, "").into()
}

fn authentication(out: &mut Vec<u8>, code: u32, data: &[u8]) {
    reply::message(out, b'R', |out| {
        out.extend_from_slice(&code.to_be_bytes());
        out.extend_from_slice(data);
    });
}
