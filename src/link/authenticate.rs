//! A client's login at pgweir itself, before it is classified: no slot is held while it thinks.
//!
//! Wrong password and unknown user take the same way to the same answer, at the same time after the client's last word: the delay of
//! its address. AuthenticationOk is not sent here: PostgreSQL's own follows when the upstream login has succeeded.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tracing::warn;
use zeroize::Zeroizing;

use super::authority::{OwnAuth, random};
use super::hub::Hub;
use super::stream::Stream;
use crate::auth::exchange::{ANSWER_MAX, Ask, Exchange, Proof, Step};
use crate::auth::scram::Failed;
use crate::auth::stored::Stored;
use crate::auth::upstream::Credentials;
use crate::clock;
use crate::reason::{Reason, Refusal};
use crate::wire::frame::{HEADER_LEN, Header};
use crate::wire::reply;
use crate::wire::startup::Startup;

/// Room for a client's answers; never grown, so that no copy is left behind.
const INPUT_LEN: usize = 4096;

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
}

/// Authenticates a client within startup_timeout. A startup packet that asks for more than protocol 3.0 is brought down to it: what
/// PostgreSQL speaks is not known yet.
///
/// # Errors
/// See [`Denied`].
pub async fn authenticate(
    hub: &Hub,
    own: &OwnAuth,
    client: &mut Stream,
    address: Option<IpAddr>,
    binding: Option<Vec<u8>>,
    startup: &mut Startup,
    behind: Vec<u8>,
) -> Result<Authenticated, Denied> {
    if startup.user().is_empty() {
        return Err(Refusal::new(Reason::Malformed, "no user name is in the startup packet", "").into());
    }
    may_try(hub, address, startup.user())?;
    let mut out = Vec::new();
    if let Some(unknown) = startup.settle_for_3_0() {
        reply::negotiate_protocol_version(&mut out, 0, &unknown);
    }
    let mut input = Zeroizing::new(Vec::with_capacity(INPUT_LEN.max(behind.len())));
    input.extend_from_slice(&behind);
    let user = startup.user();
    let mut login = Login { hub, own, client, user, address, binding, input, out, looks_up: false };
    let bound = hub.settings.load().startup_timeout;
    let outcome = match timeout(bound, login.run()).await {
        Ok(outcome) => outcome?,
        Err(_) if login.looks_up => {
            return Err(login.unavailable("the monitor has no connection, or PostgreSQL does not answer"));
        }
        Err(_) => {
            let detail = format!("the login took longer than startup_timeout, {} s", bound.as_secs_f64());
            return Err(Refusal::new(Reason::StartupTimeout, detail, "").into());
        }
    };
    match outcome {
        Outcome::Proven(stored, proof) => {
            hub.authority.throttle.lock().succeed(address, user, clock::now());
            let mut words = Vec::new();
            if let Some(server_final) = &proof.server_final {
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
        Outcome::Wrong => Err(login.wrong().await),
    }
}

/// Whether an address is heard at all.
fn may_try(hub: &Hub, address: Option<IpAddr>, user: &str) -> Result<(), Refusal> {
    let throttle = hub.authority.throttle.lock();
    if throttle.may_try(address, user, clock::now()) {
        return Ok(());
    }
    let detail = format!("{} logins failed lately", throttle.failures(address, user, clock::now()));
    Err(Refusal::new(Reason::LoginThrottled, detail, "wait a minute, and use the right password"))
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
        let random = random().ok_or_else(internal)?;
        let (mut exchange, ask) =
            Exchange::begin(self.user, stored.as_ref(), &mock, random, self.binding.take());
        self.ask(&ask).await?;
        loop {
            let answer = self.answer().await?;
            if exchange.is_last() {
                // Again: many that came at once must not get more guesses than one after the other.
                may_try(self.hub, self.address, self.user)?;
            }
            match exchange.answer(&answer) {
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

    /// The answer to a failed login, when its time has come.
    async fn wrong(&mut self) -> Denied {
        let delay = self.hub.authority.throttle.lock().fail(self.address, self.user, clock::now());
        self.hub.authority.forget(self.user);
        // It may hang up meanwhile; its place among strangers is its own for that long.
        tokio::time::sleep(delay).await;
        let detail = format!("for user \"{}\"", self.user);
        Refusal::new(Reason::Password, detail, "").into()
    }

    /// For the operator's eyes; a stranger learns only that it is not its fault.
    fn unavailable(&self, why: &str) -> Denied {
        if self.hub.may_log(&"".into(), Reason::AuthQuery) {
            warn!(user = ?self.user, "the auth query failed: {why}");
        }
        Refusal::new(Reason::AuthQuery, "", "pgweir's log has the cause").into()
    }

    async fn ask(&mut self, ask: &Ask) -> Result<(), Denied> {
        authentication(&mut self.out, ask.code, &ask.data);
        let sent = self.client.write_all(&self.out).await;
        self.out.clear();
        sent.map_err(|_| Denied::Gone)
    }

    /// The body of the client's next message, which must be an answer.
    async fn answer(&mut self) -> Result<Zeroizing<Vec<u8>>, Denied> {
        loop {
            match Header::read(&self.input) {
                Ok(Some(header)) if header.tag == b'X' => return Err(Denied::Gone),
                Ok(Some(header)) if header.tag != b'p' => return Err(bad("a password message was expected")),
                Ok(Some(header)) if header.body_len > ANSWER_MAX => {
                    let detail = format!("an answer has at most {ANSWER_MAX} bytes");
                    return Err(Refusal::new(Reason::Oversized, detail, "").into());
                }
                Ok(Some(header)) if self.input.len() >= header.total_len() => {
                    let body = Zeroizing::new(self.input[HEADER_LEN..header.total_len()].to_vec());
                    self.input.drain(..header.total_len());
                    return Ok(body);
                }
                Ok(_) => {}
                Err(reason) => return Err(Refusal::new(reason, "the login broke the protocol", "").into()),
            }
            match self.client.read_buf(&mut *self.input).await {
                Ok(1..) => {}
                _ => return Err(Denied::Gone),
            }
        }
    }
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
