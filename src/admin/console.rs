//! A console connection from its first packet to its login; `session` takes it from there.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use tokio::time::timeout;

use super::answer::Login;
use super::io::{End, Stream, Wire};
use super::parse::Failure;
use super::places::Place;
use super::session::Session;
use super::{STARTUP_TIMEOUT, Shared};
use crate::auth::scram::{self, Failed, Server};
use crate::reason::{Reason, Refusal};
use crate::wire::frame::split_cstr;
use crate::wire::reply;
use crate::wire::startup::{self, FirstPacket, Startup};

/// Databases the console answers under; the second for PgBouncer's exporters.
const DATABASES: [&str; 2] = ["pgweir", "pgbouncer"];
/// Newest minor protocol version spoken.
const MINOR_MAX: u16 = 2;
/// A wrong password is answered after this long: one guess a second and connection.
const FAILURE_DELAY: Duration = Duration::from_secs(1);
/// Bytes of a message at most before the login.
const LOGIN_MESSAGE_LEN_MAX: usize = 4096;

/// Serves one connection to its end.
pub(crate) async fn run(
    stream: Box<dyn Stream>,
    peer: SocketAddr,
    shared: &Shared,
    place: &Place,
    is_secure: bool,
) {
    let mut wire = Wire::new(stream);
    let end = match timeout(STARTUP_TIMEOUT, login(&mut wire, peer, shared, place, is_secure)).await {
        Ok(Ok(login)) => {
            place.settle(true);
            tracing::debug!(%peer, user = ?login.user, database = ?login.database, "admin console: login");
            let mut session = Session::new(wire, login, std::sync::Arc::clone(&shared.control));
            let end = session.run().await;
            wire = session.into_wire();
            end
        }
        Ok(Err(end)) => end,
        Err(_) => {
            // Part of it may have been written: what follows is the error alone.
            wire.out.clear();
            Reason::StartupTimeout.into()
        }
    };
    if let End::Refused(refusal) = &end {
        tracing::warn!(%peer, reason = %refusal.reason, detail = ?refusal.detail, "admin console: refused");
    }
    wire.close(end).await;
}

/// Refuses a connection above the limit. Its first packet stays unread: any PostgreSQL client accepts an error at once.
pub(crate) async fn refuse_many(stream: Box<dyn Stream>) {
    let detail = format!("at most {} connections to the admin port", super::CONNECTIONS_MAX);
    Wire::new(stream).close(End::Refused(Refusal::new(Reason::MaxClients, detail, ""))).await;
}

/// Refuses bytes that are neither PostgreSQL, TLS nor HTTP.
pub(crate) async fn refuse_garbage(stream: Box<dyn Stream>) {
    Wire::new(stream).close(Reason::Malformed.into()).await;
}

async fn login(
    wire: &mut Wire,
    peer: SocketAddr,
    shared: &Shared,
    place: &Place,
    is_secure: bool,
) -> Result<Login, End> {
    let startup = startup_packet(wire, shared, is_secure).await?;
    let minor = startup.minor.min(MINOR_MAX);
    negotiate(&mut wire.out, &startup);
    if startup.user().is_empty() {
        return Err(End::Fatal(Failure::new(b"28000", "no user name in the startup packet", "")));
    }
    let user = shared.settings.users.iter().find(|user| user.name == startup.user());
    if let Err(end) = authenticate(wire, startup.user(), user.map(|user| &user.verifier), shared).await {
        if matches!(&end, End::Refused(refusal) if refusal.reason == Reason::AdminPassword) {
            tracing::warn!(%peer, user = ?startup.user(), "admin console: wrong password or unknown user");
            // Its place is its own until then: to give it up for a newcomer would let a guesser go as fast as it can connect.
            place.settle(true);
            tokio::time::sleep(FAILURE_DELAY).await;
        }
        return Err(end);
    }
    let user = user.ok_or(Reason::AdminPassword)?;
    let database = startup.database().to_owned();
    if !DATABASES.contains(&database.as_str()) {
        let text = format!("database {database:.80?} does not exist on the admin port");
        return Err(End::Fatal(Failure::new(b"3D000", text, "connect to the database pgweir")));
    }
    let pid = shared.next_pid.fetch_add(1, Ordering::Relaxed).saturating_abs().max(1);
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(|_| Reason::Internal)?;
    // A cancel key is 4 bytes long unless 3.2 was negotiated. Nothing is ever cancelled by it: answers are short.
    let key = if minor >= 2 { &key[..] } else { &key[..4] };
    reply::message(&mut wire.out, b'R', |out| out.extend_from_slice(&0_u32.to_be_bytes()));
    Ok(Login {
        user: user.name.clone(),
        may_change: user.may_change,
        database,
        parameters: startup.parameters,
        pid,
        key: key.to_vec(),
    })
}

/// Reads up to the StartupMessage, answering requests for encryption, each at most once.
async fn startup_packet(wire: &mut Wire, shared: &Shared, mut is_secure: bool) -> Result<Startup, End> {
    let (mut ssl_asked, mut gss_asked) = (is_secure, is_secure);
    loop {
        let packet = startup::parse(&wire.packet().await?)?;
        let tls = shared.settings.tls.load_full();
        let wants_tls = packet == FirstPacket::Ssl;
        let asked = match packet {
            FirstPacket::Startup(_) if !is_secure && tls.as_ref().is_some_and(|tls| tls.required) => {
                let (detail, hint) =
                    ("the admin port takes connections over TLS only", "connect with sslmode=require");
                return Err(End::Refused(Refusal::new(Reason::TlsRequired, detail, hint)));
            }
            FirstPacket::Startup(startup) => return Ok(startup),
            FirstPacket::Cancel { .. } => return Err(End::Gone),
            FirstPacket::Ssl => &mut ssl_asked,
            FirstPacket::GssEnc => &mut gss_asked,
        };
        if std::mem::replace(asked, true) {
            return Err(Reason::Malformed.into());
        }
        if wire.has_input() {
            // Sent before our answer: a client would not, somebody between it and us might (CVE-2021-23214).
            let detail = "bytes came behind the request for encryption";
            return Err(End::Refused(Refusal::new(Reason::Malformed, detail, "")));
        }
        match tls {
            Some(tls) if wants_tls => {
                wire.out.push(b'S');
                wire.flush().await?;
                wire.secure(&tls.tls).await?;
                (is_secure, gss_asked) = (true, true);
            }
            _ => {
                wire.out.push(b'N');
                wire.flush().await?;
            }
        }
    }
}

/// NegotiateProtocolVersion, where the client asks for more than is spoken.
fn negotiate(out: &mut Vec<u8>, startup: &Startup) {
    let unknown = startup.protocol_options();
    if startup.minor <= MINOR_MAX && unknown.is_empty() {
        return;
    }
    reply::negotiate_protocol_version(out, startup.minor.min(MINOR_MAX), &unknown);
}

async fn authenticate(
    wire: &mut Wire,
    user: &str,
    verifier: Option<&scram::Verifier>,
    shared: &Shared,
) -> Result<(), End> {
    let mut nonce = [0; 18];
    getrandom::fill(&mut nonce).map_err(|_| Reason::Internal)?;
    let server = Server::new(verifier, user, &shared.mock);
    sasl(&mut wire.out, 10, format!("{}\0\0", scram::MECHANISM).as_bytes());
    wire.flush().await?;
    let first = sasl_message(wire).await?;
    let (challenged, server_first) =
        server.first(initial(&first)?, &BASE64.encode(nonce)).map_err(refusal)?;
    sasl(&mut wire.out, 11, server_first.as_bytes());
    wire.flush().await?;
    let last = sasl_message(wire).await?;
    let proven = challenged.last(&last).map_err(refusal)?;
    sasl(&mut wire.out, 12, proven.server_final.as_bytes());
    Ok(())
}

fn sasl(out: &mut Vec<u8>, code: u32, data: &[u8]) {
    reply::message(out, b'R', |out| {
        out.extend_from_slice(&code.to_be_bytes());
        out.extend_from_slice(data);
    });
}

async fn sasl_message(wire: &mut Wire) -> Result<Vec<u8>, End> {
    match wire.message(LOGIN_MESSAGE_LEN_MAX).await? {
        (b'p', body) => Ok(body),
        (b'X', _) => Err(End::Gone),
        _ => Err(End::Refused(Refusal::new(Reason::Malformed, "a password message was expected", ""))),
    }
}

/// The client-first in a SASLInitialResponse: mechanism, length, data.
fn initial(body: &[u8]) -> Result<&[u8], End> {
    let (mechanism, rest) = split_cstr(body).ok_or(Reason::Malformed)?;
    let (len, data) = rest.split_first_chunk::<4>().ok_or(Reason::Malformed)?;
    if mechanism != scram::MECHANISM.as_bytes() || u32::from_be_bytes(*len) as usize != data.len() {
        return Err(Reason::Malformed.into());
    }
    Ok(data)
}

fn refusal(failed: Failed) -> End {
    match failed {
        Failed::Malformed | Failed::Downgraded => {
            End::Refused(Refusal::new(Reason::Malformed, "no SCRAM-SHA-256 exchange", ""))
        }
        Failed::Wrong => Reason::AdminPassword.into(),
    }
}
