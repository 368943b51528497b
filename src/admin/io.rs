//! Messages to and from one console connection, with bounds on size and time.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::parse::Failure;
use crate::reason::{Reason, Refusal, Severity};
use crate::tls::server::ServerTls;
use crate::tls::stream::TlsStream;
use crate::wire::frame::{HEADER_LEN, Header};
use crate::wire::{reply, startup};

/// How long a peer may take to read what is written to it.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Output is written in pieces of about this many bytes.
pub const CHUNK_LEN: usize = 16 * 1024;
/// A rest behind each piece but the last, of a table as of a look at all links: thousands take milliseconds, in which a worker would wait for the core.
pub const REST: Duration = Duration::from_millis(1);
/// Room made for a read.
const READ_LEN: usize = 8 * 1024;
/// What is read, at most, from a peer that was refused and still speaks, and for how long.
const LINGER_LEN_MAX: usize = 1024 * 1024;
const LINGER: Duration = Duration::from_secs(1);

/// A connection's bytes, encrypted or not.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Why a connection ends.
#[derive(Debug)]
pub enum End {
    /// The peer went away, or said Terminate.
    Gone,
    /// It is refused with a typed reason.
    Refused(Refusal),
    /// It is refused with an error that only the console knows (3D000).
    Fatal(Failure),
}

impl From<Reason> for End {
    fn from(reason: Reason) -> Self {
        Self::Refused(Refusal::new(reason, "", ""))
    }
}

impl From<std::io::Error> for End {
    fn from(_: std::io::Error) -> Self {
        Self::Gone
    }
}

/// One connection with its buffers.
pub struct Wire {
    stream: Box<dyn Stream>,
    inbox: BytesMut,
    /// Output not yet written; [`Wire::flush`] writes it.
    pub out: Vec<u8>,
}

impl Wire {
    /// Takes a connection over.
    pub fn new(stream: Box<dyn Stream>) -> Self {
        Self { stream, inbox: BytesMut::new(), out: Vec::new() }
    }

    /// Goes on with TLS: the client has asked for it, and has been told `S`.
    ///
    /// # Errors
    /// `Gone`: there was no agreement, which the client has been told.
    pub async fn secure(&mut self, tls: &ServerTls) -> Result<(), End> {
        let mut stream = std::mem::replace(&mut self.stream, Box::new(tokio::io::empty()));
        match tls.accept(&mut stream, &[]).await {
            Ok(session) => {
                self.stream = Box::new(TlsStream::new(stream, session));
                Ok(())
            }
            Err(error) => {
                tracing::info!(error = error.to_string(), "admin console: no TLS with a client");
                say_and_close(stream, &[]).await;
                Err(End::Gone)
            }
        }
    }

    /// Reads one packet of the startup phase: a length that counts itself, and a body.
    ///
    /// # Errors
    /// `Malformed` and `Oversized` by its length; `Gone`.
    pub async fn packet(&mut self) -> Result<Vec<u8>, End> {
        self.fill(4).await?;
        let head = self.inbox.first_chunk::<4>().copied().unwrap_or_default();
        let len = startup::check_len(u32::from_be_bytes(head))?;
        self.fill(len).await?;
        Ok(self.inbox.split_to(len).to_vec())
    }

    /// Reads one message: its type and body.
    ///
    /// # Errors
    /// `Malformed` and `Oversized` by its length, above `len_max` bytes of body; `Gone`.
    pub async fn message(&mut self, len_max: usize) -> Result<(u8, Vec<u8>), End> {
        self.fill(HEADER_LEN).await?;
        let header = Header::read(&self.inbox)?.ok_or(Reason::Malformed)?;
        if header.body_len as usize > len_max {
            let detail = format!("message of {} bytes, at most {len_max} are accepted", header.body_len);
            return Err(End::Refused(Refusal::new(Reason::Oversized, detail, "")));
        }
        self.fill(header.total_len()).await?;
        self.inbox.advance(HEADER_LEN);
        Ok((header.tag, self.inbox.split_to(header.body_len as usize).to_vec()))
    }

    /// Whether bytes have come that were not asked for yet.
    pub fn has_input(&self) -> bool {
        !self.inbox.is_empty()
    }

    async fn fill(&mut self, len: usize) -> Result<(), End> {
        while self.inbox.len() < len {
            // All that has come is taken: what stands behind an SSLRequest must be seen.
            self.inbox.reserve((len - self.inbox.len()).max(READ_LEN));
            if self.stream.read_buf(&mut self.inbox).await? == 0 {
                return Err(End::Gone);
            }
        }
        Ok(())
    }

    /// Writes what is pending.
    ///
    /// # Errors
    /// `Gone`, also when the peer does not read for [`WRITE_TIMEOUT`].
    pub async fn flush(&mut self) -> Result<(), End> {
        let written = timeout(WRITE_TIMEOUT, self.stream.write_all(&self.out)).await;
        self.out.clear();
        match written {
            Ok(Ok(())) => Ok(()),
            _ => Err(End::Gone),
        }
    }

    /// Writes what is pending once it is a chunk: so much, and not more, is held of a long answer.
    ///
    /// # Errors
    /// As [`Wire::flush`].
    pub async fn flush_chunk(&mut self) -> Result<(), End> {
        if self.out.len() < CHUNK_LEN {
            return Ok(());
        }
        self.flush().await?;
        tokio::time::sleep(REST).await;
        Ok(())
    }

    /// Says why and closes. What the peer still sends is read for a moment: closing with unread bytes would reset the
    /// connection, and the peer would never see the error.
    pub async fn close(mut self, end: End) {
        match end {
            End::Gone => {}
            End::Refused(refusal) => reply::refusal(&mut self.out, &refusal),
            End::Fatal(failure) => {
                reply::error(&mut self.out, Severity::Fatal, failure.state, &failure.text, &failure.hint);
            }
        }
        if self.flush().await.is_ok() {
            linger(self.stream).await;
        }
    }
}

/// Writes a last answer and closes, as [`Wire::close`].
pub(crate) async fn say_and_close(mut stream: Box<dyn Stream>, bytes: &[u8]) {
    if let Ok(Ok(())) = timeout(WRITE_TIMEOUT, stream.write_all(bytes)).await {
        linger(stream).await;
    }
}

/// Refuses a TLS handshake: the alert `handshake_failure` (RFC 8446, section 6), then the end.
pub(crate) async fn close_notify(stream: Box<dyn Stream>) {
    say_and_close(stream, &[0x15, 3, 3, 0, 2, 2, 40]).await;
}

async fn linger(mut stream: Box<dyn Stream>) {
    let drain = async {
        stream.shutdown().await?;
        let mut sink = [0; 4096];
        let mut seen = 0;
        while seen < LINGER_LEN_MAX {
            match stream.read(&mut sink).await? {
                0 => break,
                more => seen += more,
            }
        }
        std::io::Result::Ok(())
    };
    // The connection is over either way.
    let _ = timeout(LINGER, drain).await;
}
