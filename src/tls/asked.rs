//! What whoever answers may ask of a driver that knows a password. Drivers answer any request, the password in the clear as readily
//! as a proof; so the requests are looked at before the driver sees them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Type byte of all messages about authentication.
const AUTHENTICATION: u8 = b'R';
/// AuthenticationOk.
pub const OK: u32 = 0;
/// AuthenticationCleartextPassword.
pub const CLEAR: u32 = 3;
/// AuthenticationSASL, AuthenticationSASLContinue.
const SASL: [u32; 2] = [10, 11];
/// AuthenticationSASLFinal: with SCRAM, the server's proof.
const SASL_FINAL: u32 = 12;
/// Type byte and length.
const HEADER_LEN: usize = 5;
/// Bytes of a code.
const CODE_LEN: usize = 4;

/// Requests that reach the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// Any: nobody can listen, and whoever answers is who it should be.
    All,
    /// All but the one for the password in the clear.
    NotInTheClear,
    /// SCRAM alone, and no success before the server's own proof (which the driver checks).
    ProofOnly,
}

/// Where the scan is.
///
/// ```text
/// Header ─ R ─► Code ─ allowed ─► Body(n) ─ n bytes ─► Header
///   │             │ AuthenticationOk ─► Done
///   └─ any other, or the rest of one ─► Body(n)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Header,
    /// Bytes of the message behind the code.
    Code(usize),
    Body(usize),
    Done,
}

/// Scans a stream of backend messages up to AuthenticationOk; holds at most five bytes.
#[derive(Debug)]
struct Scan {
    answered: Answered,
    at: At,
    held: [u8; HEADER_LEN],
    held_len: usize,
    /// The server's proof has come.
    proved: bool,
}

impl Scan {
    fn new(answered: Answered) -> Self {
        Self { answered, at: At::Header, held: [0; HEADER_LEN], held_len: 0, proved: false }
    }

    /// Takes the next bytes of the stream; an error is the code of the request that must not be answered.
    fn feed(&mut self, mut bytes: &[u8]) -> Result<(), u32> {
        while !bytes.is_empty() {
            match self.at {
                At::Done => return Ok(()),
                At::Body(left) => {
                    let skipped = left.min(bytes.len());
                    bytes = &bytes[skipped..];
                    self.at = if skipped == left { At::Header } else { At::Body(left - skipped) };
                }
                At::Header => {
                    bytes = self.hold(bytes, HEADER_LEN);
                    if self.held_len == HEADER_LEN {
                        self.held_len = 0;
                        self.at = Self::behind(&self.held);
                    }
                }
                At::Code(rest) => {
                    bytes = self.hold(bytes, CODE_LEN);
                    if self.held_len == CODE_LEN {
                        self.held_len = 0;
                        let [a, b, c, d, _] = self.held;
                        self.at = self.judge(u32::from_be_bytes([a, b, c, d]), rest)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Moves bytes into the holding place until `want` are there; returns the rest.
    fn hold<'a>(&mut self, bytes: &'a [u8], want: usize) -> &'a [u8] {
        let taken = (want - self.held_len).min(bytes.len());
        self.held[self.held_len..self.held_len + taken].copy_from_slice(&bytes[..taken]);
        self.held_len += taken;
        &bytes[taken..]
    }

    /// What follows a header. Nonsense ends the scan: the driver does not go on behind it.
    fn behind(head: &[u8; HEADER_LEN]) -> At {
        let [tag, a, b, c, d] = *head;
        let Some(body) = (u32::from_be_bytes([a, b, c, d]) as usize).checked_sub(4) else { return At::Done };
        match (tag, body.checked_sub(CODE_LEN)) {
            (AUTHENTICATION, Some(rest)) => At::Code(rest),
            (AUTHENTICATION, None) => At::Done,
            _ if body == 0 => At::Header,
            _ => At::Body(body),
        }
    }

    fn judge(&mut self, code: u32, rest: usize) -> Result<At, u32> {
        self.proved |= code == SASL_FINAL;
        let allowed = match self.answered {
            Answered::All => true,
            Answered::NotInTheClear => code != CLEAR,
            Answered::ProofOnly => SASL.contains(&code) || self.proved && matches!(code, SASL_FINAL | OK),
        };
        match (allowed, code, rest) {
            (false, ..) => Err(code),
            (_, OK, _) => Ok(At::Done),
            (_, _, 0) => Ok(At::Header),
            _ => Ok(At::Body(rest)),
        }
    }
}

/// A connection on which only some requests are answered.
#[derive(Debug)]
pub struct Wary<S> {
    inner: S,
    scan: Scan,
    /// What is said of a request that is not answered, by its code.
    words: fn(u32) -> &'static str,
}

impl<S> Wary<S> {
    /// Wraps a connection before its startup packet. A request that is not `answered` ends it with the `words` for its code
    /// ([`OK`]: let in without a proof; [`CLEAR`]; others).
    pub fn new(inner: S, answered: Answered, words: fn(u32) -> &'static str) -> Self {
        Self { inner, scan: Scan::new(answered), words }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wary<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        Poll::Ready(this.scan.feed(&buf.filled()[before..]).map_err(|code| {
            // Not for the driver, who would answer it.
            buf.set_filled(before);
            io::Error::new(io::ErrorKind::InvalidData, (this.words)(code))
        }))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wary<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_postgres::config::SslMode;
    use tokio_postgres::{Config, NoTls};

    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(body.len() + 4).expect("small").to_be_bytes();
        [&[tag][..], &len, body].concat()
    }

    fn asks(code: u32, more: &[u8]) -> Vec<u8> {
        message(b'R', &[&code.to_be_bytes(), more].concat())
    }

    /// What a stream comes to, whatever the pieces it comes in.
    fn scanned(answered: Answered, stream: &[u8]) -> Result<(), u32> {
        let by = |size: usize| {
            let mut scan = Scan::new(answered);
            stream.chunks(size).try_for_each(|chunk| scan.feed(chunk))
        };
        let whole = by(stream.len());
        (1..stream.len()).for_each(|size| assert_eq!(by(size), whole, "in pieces of {size}"));
        whole
    }

    #[test]
    fn only_a_proof_is_given_to_whomever() {
        let proof =
            [asks(10, b"SCRAM-SHA-256\0\0"), asks(11, b"r=x,s=y,i=1"), asks(12, b"v=z"), asks(0, b"")]
                .concat();
        // Behind the login nothing is looked at: it may be anything.
        let logged_in = [proof, message(b'Z', b"I"), asks(3, b"")].concat();
        for answered in [Answered::All, Answered::NotInTheClear, Answered::ProofOnly] {
            assert_eq!(scanned(answered, &logged_in), Ok(()));
        }
        let chatty = [message(b'N', b"hello"), message(b'v', b""), asks(3, b"")].concat();
        assert_eq!(scanned(Answered::ProofOnly, &chatty), Err(3));
        assert_eq!(scanned(Answered::NotInTheClear, &chatty), Err(3));
        assert_eq!(scanned(Answered::All, &chatty), Ok(()));
        assert_eq!(scanned(Answered::NotInTheClear, &asks(5, b"salt")), Ok(()));
        for code in [0, 2, 5, 7, 9, 13] {
            assert_eq!(scanned(Answered::ProofOnly, &asks(code, b"salt")), Err(code), "{code}");
        }
        assert_eq!(
            scanned(Answered::ProofOnly, &[asks(10, b"SCRAM-SHA-256\0\0"), asks(3, b"")].concat()),
            Err(3)
        );
        assert_eq!(scanned(Answered::ProofOnly, b"R\0\0\0\x07abc"), Ok(()), "no message: the driver says so");
    }

    #[tokio::test]
    async fn a_driver_does_not_get_to_answer() {
        let (near, mut far) = tokio::io::duplex(1024);
        let mut config = Config::new();
        config.user("monitor").password("hunter2").ssl_mode(SslMode::Disable);
        let wary =
            Wary::new(
                near,
                Answered::NotInTheClear,
                |code| if code == CLEAR { "asked in the clear" } else { "" },
            );
        let server = async move {
            let mut heard = vec![0; 1024];
            let n = far.read(&mut heard).await.expect("a startup packet");
            far.write_all(&asks(CLEAR, b"")).await.expect("there");
            heard.truncate(n);
            far.read_to_end(&mut heard).await.expect("an end");
            heard
        };
        let (logged_in, heard) = tokio::join!(config.connect_raw(wary, NoTls), server);
        let error = logged_in.err().expect("not logged in");
        let cause = std::error::Error::source(&error).expect("a cause").to_string();
        assert_eq!(cause, "asked in the clear");
        assert!(!String::from_utf8_lossy(&heard).contains("hunter2"));
    }
}
