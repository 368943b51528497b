//! Whether it is a pgweir that listens somewhere, rather than PostgreSQL: nobody need log in for that.
//!
//! pgweir passes PostgreSQL's real pids on, so that nothing in a session betrays it. What it says for itself begins `pgweir: `, and to a
//! protocol that neither it nor PostgreSQL speaks it answers for itself.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::connect::MonitorAddress;

/// A startup packet of protocol 2.0: its length, and the version.
const OLD: [u8; 8] = [0, 0, 0, 8, 0, 2, 0, 0];
/// An ErrorResponse's field M, up to where its author is known.
const OWN_WORDS: &[u8] = b"Mpgweir: ";
/// Bytes of an answer looked at.
const ANSWER_MAX: u64 = 4096;

/// Asks; false where nobody answers within `bound`.
pub async fn is_pgweir(address: &MonitorAddress, bound: Duration) -> bool {
    let asked = async {
        let answer = match address {
            MonitorAddress::Tcp { host, port } => {
                ask(TcpStream::connect((host.as_str(), *port)).await?).await
            }
            MonitorAddress::Unix { directory, port } => {
                ask(UnixStream::connect(directory.join(format!(".s.PGSQL.{port}"))).await?).await
            }
        };
        std::io::Result::Ok(is_own(&answer?))
    };
    matches!(tokio::time::timeout(bound, asked).await, Ok(Ok(true)))
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<Vec<u8>> {
    stream.write_all(&OLD).await?;
    let mut answer = Vec::new();
    // A reset behind the answer takes nothing of it back.
    let _ = stream.take(ANSWER_MAX).read_to_end(&mut answer).await;
    Ok(answer)
}

fn is_own(answer: &[u8]) -> bool {
    answer.windows(OWN_WORDS.len()).any(|bytes| bytes == OWN_WORDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_begins_as_pgweirs_own_words_is_its_answer() {
        assert!(is_own(b"E\0\0\0\x30SFATAL\0C08P01\0Mpgweir: unsupported protocol\0\0"));
        for other in [
            &b"EFATAL:  unsupported frontend protocol 2.0: server supports 3.0 to 3.0\n\0"[..],
            b"E\0\0\0\x20SFATAL\0C28000\0Mrole \"pgweir: x\" does not exist\0\0",
            b"",
        ] {
            assert!(!is_own(other));
        }
    }
}
