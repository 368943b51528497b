//! A client's first packet: encryption requests answered, cancel requests told from sessions.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::stream::{Peek, Stream};
use crate::reason::Reason;
use crate::wire::startup::{self, FirstPacket, Startup};

/// Bytes a client may send behind its startup packet before it was answered (optimistic clients do).
const BEHIND_MAX: usize = 64 * 1024;

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

/// Reads a client's first packet. SSLRequest and GSSENCRequest are answered `N`, each at most once, in either order; bytes stuffed
/// behind one are refused (CVE-2021-23222). TLS will be answered `S` here.
///
/// # Errors
/// The client went away, or broke the protocol.
pub async fn read(client: &mut Stream) -> Result<Wish, NoWish> {
    let mut buf = Vec::with_capacity(512);
    let (mut asked_tls, mut asked_gss) = (false, false);
    loop {
        let len = read_packet(client, &mut buf).await?;
        let behind = buf.split_off(len);
        match startup::parse(&buf)? {
            FirstPacket::Ssl | FirstPacket::GssEnc if !behind.is_empty() => {
                return Err(Reason::Malformed.into());
            }
            FirstPacket::Ssl if !asked_tls => asked_tls = true,
            FirstPacket::GssEnc if !asked_gss => asked_gss = true,
            FirstPacket::Ssl | FirstPacket::GssEnc => return Err(Reason::Malformed.into()),
            FirstPacket::Cancel { pid, key } => return Ok(Wish::Cancel { pid, key }),
            FirstPacket::Startup(startup) => return Ok(Wish::Session { startup, behind }),
        }
        match client.peek() {
            Peek::Silent => {}
            Peek::Gone => return Err(NoWish::Gone),
            // Something was sent without waiting for the answer.
            Peek::Bytes => return Err(Reason::Malformed.into()),
        }
        client.write_all(b"N").await?;
        buf.clear();
    }
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
