//! The end of a link: the client is told where it can be, upstream is closed so that nothing is lost and nothing runs on, and the
//! slot is given back when PostgreSQL has really closed.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{interval, timeout};

use super::cancel;
use super::hub::{Hub, Slot};
use super::keys::CancelKeys;
use super::shared::{Command, LinkShared};
use super::stream::Stream;
use crate::reason::Refusal;
use crate::wire::reply;

/// How long a client may take to accept its last words.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long an idle backend may take to close.
const IDLE_CLOSE: Duration = Duration::from_secs(10);
/// How long a cancelled backend may take to close.
const CANCELLED_CLOSE: Duration = Duration::from_secs(60);
/// How long requests before a Terminate may run: as long as they like, within reason. KILL CLIENT ends it sooner.
const ORDERLY_CLOSE: Duration = Duration::from_secs(24 * 3600);
/// How often a cancel is repeated: the first may have come before the query.
const CANCEL_EVERY: Duration = Duration::from_millis(500);

/// How upstream is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Terminate is on its way behind requests that may still run.
    Orderly,
    /// Nothing runs.
    Idle,
    /// Something runs for nobody, or waits for more of a message or COPY: EOF and cancels end it, whichever reaches it.
    Cancel,
}

/// The upstream side of a link that is over.
pub struct Closing {
    /// Who.
    pub shared: Arc<LinkShared>,
    /// The connection.
    pub upstream: Stream,
    /// Given back at its end.
    pub slot: Slot,
    /// How.
    pub how: How,
    /// Bytes to be sent first.
    pub unsent: Vec<u8>,
    /// Backend and its keys, for cancels.
    pub cancel: Option<(i32, CancelKeys)>,
    /// The client, where it may still read the replies to what it asked before its Terminate, and bytes it has not taken yet.
    pub reader: Option<(Stream, Vec<u8>)>,
}

/// Sends a client its last words and closes it. What it still sends is read to the end, within a bound: a socket closed with bytes
/// unread is reset, and the reset may overtake the words.
pub async fn dismiss(mut client: Stream, words: &[u8]) {
    let _ = timeout(LAST_WORDS, async {
        client.write_all(words).await?;
        client.shutdown().await?;
        discard(&mut client).await
    })
    .await;
}

/// Sends a refusal to a client and closes it.
pub async fn refuse(client: Stream, refusal: &Refusal) {
    let mut words = Vec::new();
    reply::refusal(&mut words, refusal);
    dismiss(client, &words).await;
}

/// Waits until PostgreSQL has closed a connection whose login came to nothing; false at the bound.
pub async fn wait_closed(upstream: &mut Stream) -> bool {
    matches!(timeout(IDLE_CLOSE, discard(upstream)).await, Ok(Ok(())))
}

/// Closes upstream and gives the slot back.
pub async fn close(hub: &Arc<Hub>, closing: Closing) {
    let Closing { shared, mut upstream, slot, how, unsent, cancel, reader: mut client } = closing;
    hub.guard(|guard, now| guard.closing(now, shared.id));
    let bound = match how {
        How::Orderly => ORDERLY_CLOSE,
        How::Idle => IDLE_CLOSE,
        How::Cancel => CANCELLED_CLOSE,
    };
    let finish = async {
        // Upstream may be busy and take nothing while its replies are not read: both go on at once.
        let (mut reader, mut writer) = tokio::io::split(&mut upstream);
        let write = async {
            writer.write_all(&unsent).await?;
            writer.shutdown().await
        };
        let read = deliver(&mut reader, client.take());
        let (_, seen) = tokio::join!(write, read);
        seen
    };
    let seen = match (how, cancel) {
        (How::Cancel, Some((pid, keys))) => {
            tokio::select! {
                seen = timeout(bound, finish) => seen,
                () = keep_cancelling(hub, pid, keys.upstream()) => Ok(Err(io::ErrorKind::Other.into())),
            }
        }
        _ => tokio::select! {
            seen = timeout(bound, finish) => seen,
            _ = killed(&shared) => Ok(Err(io::ErrorKind::Other.into())),
        },
    };
    match seen {
        Ok(Ok(())) => {
            drop(upstream);
            slot.released();
        }
        // A bound, a time-out of the network, KILL CLIENT: PostgreSQL may still have the backend. Dropping the slot makes it a zombie.
        _ => {
            drop(upstream);
            drop(slot);
        }
    }
}

/// Reads to EOF, and hands what comes to a client that still listens, as PostgreSQL would; its EOF follows PostgreSQL's.
async fn deliver(
    upstream: &mut (impl AsyncReadExt + Unpin),
    client: Option<(Stream, Vec<u8>)>,
) -> io::Result<()> {
    let Some((mut client, pending)) = client else { return discard(upstream).await };
    if client.write_all(&pending).await.is_err() {
        return discard(upstream).await;
    }
    let mut buf = vec![0; 16 * 1024];
    loop {
        match upstream.read(&mut buf).await {
            Ok(0) => return Ok(()),
            Ok(n) => {
                if client.write_all(&buf[..n]).await.is_err() {
                    return discard(upstream).await;
                }
            }
            Err(error) if is_close(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Whether an error says that the peer has closed.
pub(super) fn is_close(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// Reads to EOF (or RST), which PostgreSQL sends after it has freed the backend.
async fn discard(reader: &mut (impl AsyncReadExt + Unpin)) -> io::Result<()> {
    let mut buf = vec![0; 16 * 1024];
    loop {
        match reader.read(&mut buf).await {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if is_close(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

async fn keep_cancelling(hub: &Hub, pid: i32, key: &[u8]) {
    let mut every = interval(CANCEL_EVERY);
    loop {
        every.tick().await;
        let settings = hub.settings.load_full();
        let _ = cancel::send(&settings, pid, key).await;
    }
}

/// Waits for an operator's KILL CLIENT.
pub async fn killed(shared: &LinkShared) -> Refusal {
    loop {
        for command in shared.receive().await {
            if let Command::Close { generation: None, refusal } = command {
                return refusal;
            }
        }
    }
}
