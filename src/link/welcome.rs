//! A client's first packet: encryption requests answered, cancel requests told from sessions.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::stream::{Peek, Stream};
use crate::reason::{Reason, Refusal};
use crate::tls::server::ServerTls;
use crate::tls::{self, names};
use crate::wire::startup::{self, FirstPacket, Startup};

/// Bytes a client may send behind its startup packet before it was answered (optimistic clients do).
const BEHIND_MAX: usize = 64 * 1024;

/// TLS at a listener.
#[derive(Clone, Debug)]
pub struct DoorTls {
    /// The listener, as written in the configuration.
    pub listener: Arc<str>,
    /// Certificate and demands.
    pub tls: ServerTls,
    /// Whether sessions without it are refused.
    pub required: bool,
}

impl DoorTls {
    /// That of a listener, if it has any.
    pub fn of<'a>(doors: &'a [Self], listener: &str) -> Option<&'a Self> {
        doors.iter().find(|door| &*door.listener == listener)
    }
}

/// What a client wants.
#[derive(Debug)]
pub enum Wish {
    /// A session; `behind` are bytes sent behind the packet.
    Session {
        /// The packet.
        startup: Startup,
        /// Bytes sent behind it.
        behind: Vec<u8>,
    },
    /// To cancel a query.
    Cancel {
        /// Backend.
        pid: i32,
        /// Its secret.
        key: Vec<u8>,
    },
}

/// Why there is none.
#[derive(Debug)]
pub enum NoWish {
    /// The client closed, or its connection broke: nobody is there to be told.
    Gone,
    /// It sent what it must not.
    Bad(Reason),
    /// There is no TLS with it, which it has been told in TLS's own way.
    NoTls(String),
    /// It may not come in.
    Refused(Refusal),
}

impl From<io::Error> for NoWish {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

impl From<Reason> for NoWish {
    fn from(reason: Reason) -> Self {
        Self::Bad(reason)
    }
}

/// Reads a client's first packet; `door` is TLS at its listener. SSLRequest and GSSENCRequest are answered, each at most once, in either
/// order; bytes stuffed behind one are refused (CVE-2021-23222). TLS may also begin with the first byte, if the client names
/// PostgreSQL's protocol by ALPN.
///
/// A CancelRequest needs no TLS, whatever the door says, as with PostgreSQL: most clients send it plain, and its key is all there is to it.
///
/// # Errors
/// The client went away, broke the protocol, or does not do what the door demands.
pub async fn read(client: &mut Stream, door: Option<&DoorTls>) -> Result<Wish, NoWish> {
    let mut buf = Vec::with_capacity(512);
    let (mut asked_tls, mut asked_gss) = (false, false);
    if client.read_buf(&mut buf).await? == 0 {
        return Err(NoWish::Gone);
    }
    if buf.first() == Some(&tls::FIRST_BYTE) {
        Box::pin(direct(client, door, &mut buf)).await?;
        (asked_tls, asked_gss) = (true, true);
    }
    loop {
        let len = read_packet(client, &mut buf).await?;
        let behind = buf.split_off(len);
        let wants_tls = match startup::parse(&buf)? {
            FirstPacket::Ssl | FirstPacket::GssEnc if !behind.is_empty() => {
                return Err(Reason::Malformed.into());
            }
            FirstPacket::Ssl if !asked_tls => true,
            FirstPacket::GssEnc if !asked_gss => false,
            FirstPacket::Ssl | FirstPacket::GssEnc => return Err(Reason::Malformed.into()),
            FirstPacket::Cancel { pid, key } => return Ok(Wish::Cancel { pid, key }),
            FirstPacket::Startup(startup) => {
                may_come(client, door, &startup)?;
                return Ok(Wish::Session { startup, behind });
            }
        };
        asked_tls |= wants_tls;
        asked_gss |= !wants_tls;
        match client.peek() {
            Peek::Silent => {}
            Peek::Gone => return Err(NoWish::Gone),
            // Something was sent without waiting for the answer.
            Peek::Bytes => return Err(Reason::Malformed.into()),
        }
        buf.clear();
        match door {
            Some(door) if wants_tls => {
                client.write_all(b"S").await?;
                Box::pin(shake(client, door, &[])).await?;
                asked_gss = true;
            }
            _ => client.write_all(b"N").await?,
        }
    }
}

/// TLS without asking. `buf` holds its first bytes, and nothing afterwards.
async fn direct(client: &mut Stream, door: Option<&DoorTls>, buf: &mut Vec<u8>) -> Result<(), NoWish> {
    let Some(door) = door else {
        client.write_all(&tls::NO_TLS_HERE).await?;
        return Err(NoWish::NoTls("this listener has no TLS".to_owned()));
    };
    shake(client, door, buf).await?;
    buf.clear();
    if client.tls().and_then(|tls| tls.alpn()) != Some(tls::ALPN_POSTGRESQL) {
        // PostgreSQL demands it too: a browser led here must not get anywhere.
        return Err(NoWish::Refused(Refusal::new(
            Reason::Malformed,
            "TLS began without a request for it, and without ALPN \"postgresql\"",
            "sslnegotiation=direct needs libpq 17 or later",
        )));
    }
    Ok(())
}

async fn shake(client: &mut Stream, door: &DoorTls, read: &[u8]) -> Result<(), NoWish> {
    let session = door.tls.accept(client.socket_mut(), read).await.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => NoWish::NoTls(error.to_string()),
        _ => NoWish::Gone,
    })?;
    client.secure(session);
    Ok(())
}

/// Whether a session may begin like this: with TLS where the door demands it, under a name that its certificate bears where it needs one.
fn may_come(client: &Stream, door: Option<&DoorTls>, startup: &Startup) -> Result<(), NoWish> {
    let Some(door) = door else { return Ok(()) };
    let Some(session) = client.tls() else {
        return if door.required { Err(Reason::TlsRequired.into()) } else { Ok(()) };
    };
    if !door.tls.knows_clients() {
        return Ok(());
    }
    let found = session.peer_certificate().map(names::holders).transpose();
    let holders = found.ok().flatten().unwrap_or_default();
    if holders.iter().any(|holder| holder == startup.user()) {
        return Ok(());
    }
    let detail = format!("the certificate names {holders:?}, the user is {:?}", startup.user());
    let hint = "the certificate's common name or a subject alternative name must be the user's name";
    Err(NoWish::Refused(Refusal::new(Reason::ClientCertificate, detail, hint)))
}

/// Reads until a whole packet is in `buf`; gives its length.
async fn read_packet(client: &mut Stream, buf: &mut Vec<u8>) -> Result<usize, NoWish> {
    loop {
        if let Some(head) = buf.first_chunk::<4>() {
            let len = startup::check_len(u32::from_be_bytes(*head))?;
            if buf.len() >= len {
                return Ok(len);
            }
        }
        if buf.len() > BEHIND_MAX {
            return Err(Reason::Oversized.into());
        }
        if client.read_buf(buf).await? == 0 {
            return Err(NoWish::Gone);
        }
    }
}
