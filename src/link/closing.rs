//! The end of a link: the client is told where it can be, upstream is closed so that nothing is lost and nothing runs on, and the
//! slot is given back when PostgreSQL has really closed.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::yield_now;
use tokio::time::{MissedTickBehavior, interval, timeout};

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
/// Bytes of a reply that nobody waits for read before others on the thread get their turn. Logins are among them, and have several:
/// behind a hundred huge replies each of these is a few milliseconds.
const TURN: usize = 64 * 1024;

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

/// Sends a refusal to a client and closes it. Boxed: whoever is let in needs no room for it.
#[cold]
pub fn refuse(client: Stream, refusal: &Refusal) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    let mut words = Vec::new();
    reply::refusal(&mut words, refusal);
    Box::pin(async move { dismiss(client, &words).await })
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
                () = keep_cancelling(hub, pid, &keys) => Ok(Err(io::ErrorKind::Other.into())),
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
    let mut turn = 0;
    loop {
        match upstream.read(&mut buf).await {
            Ok(0) => {
                if client.tls().is_some() {
                    // close_notify: without it the client must take the end for a cut.
                    let _ = timeout(LAST_WORDS, client.shutdown()).await;
                }
                return Ok(());
            }
            Ok(n) => {
                if client.write_all(&buf[..n]).await.is_err() {
                    return discard(upstream).await;
                }
                breathe(&mut turn, n).await;
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
    let mut turn = 0;
    loop {
        match reader.read(&mut buf).await {
            Ok(0) => return Ok(()),
            Ok(n) => breathe(&mut turn, n).await,
            Err(error) if is_close(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Lets others on this thread have their turn once `TURN` bytes were read in one: `turn` counts them.
async fn breathe(turn: &mut usize, n: usize) {
    *turn += n;
    if *turn >= TURN {
        *turn = 0;
        yield_now().await;
    }
}

async fn keep_cancelling(hub: &Hub, pid: i32, keys: &CancelKeys) {
    let mut every = interval(CANCEL_EVERY);
    // One at a time: those whose time came while the last one was on its way are left out, not made up for.
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        cancel::orphan(hub, pid, keys).await;
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use std::pin::Pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, ReadBuf};
    use tokio::net::TcpListener;

    use super::*;
    use crate::link::cancel::ORPHANS_MAX;
    use crate::link::hub::{LinkSettings, tests::hub};
    use crate::link::server::{Server, Upstream};

    /// A reply of which more is always there.
    struct Reply {
        left: usize,
        read: Arc<AtomicUsize>,
    }

    impl AsyncRead for Reply {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let n = buf.remaining().min(self.left);
            buf.put_slice(&vec![0; n]);
            self.left -= n;
            self.read.fetch_add(n, Ordering::Relaxed);
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_huge_reply_that_nobody_waits_for_holds_up_nobody() {
        let read = Arc::new(AtomicUsize::new(0));
        let seen = read.clone();
        let neighbour = tokio::spawn(async move { seen.load(Ordering::Relaxed) });
        discard(&mut Reply { left: 16 * TURN, read: read.clone() }).await.expect("an end");
        assert_eq!(neighbour.await.expect("no panic"), TURN);
        assert_eq!(read.load(Ordering::Relaxed), 16 * TURN);
    }

    /// Hears as many cancels, and whatever else is on its way then; whom each one means.
    async fn heard(postgres: &TcpListener, open: &mut Vec<(i32, tokio::net::TcpStream)>, count: usize) {
        let mut turns = 0;
        // Whoever is about to dial has done so by then. The kernel may take its time.
        while open.len() < count || turns < 2000 {
            let patience = if open.len() < count { Duration::from_secs(60) } else { Duration::ZERO };
            if let Ok(Ok((mut stream, _))) = timeout(patience, postgres.accept()).await {
                let mut request = [0; 13];
                stream.read_exact(&mut request).await.expect("a request");
                open.push((i32::from_be_bytes([request[8], request[9], request[10], request[11]]), stream));
            } else {
                assert!(patience.is_zero(), "{} cancels and no more", open.len());
            }
            turns += 1;
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_storm_of_hang_ups_is_cancelled_a_few_at_a_time_and_each_once() {
        let (hub, _events) = hub();
        let postgres = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = postgres.local_addr().expect("bound").port();
        let server = Server::new(1, Upstream::Tcp("127.0.0.1".to_owned(), port), None);
        let connect_timeout = Duration::from_secs(60);
        let settings = LinkSettings { connect_timeout, ..(**hub.settings.load()).clone() };
        hub.settings.store(Arc::new(settings));
        for pid in 0..50 {
            let (hub, keys) = (hub.clone(), CancelKeys::new(&[1], &[1]).at(server.clone()));
            tokio::spawn(async move { keep_cancelling(&hub, pid, &keys).await });
        }
        let mut open = Vec::new();
        heard(&postgres, &mut open, ORPHANS_MAX).await;
        assert_eq!(open.len(), ORPHANS_MAX);
        let mut meant: HashSet<i32> = open.iter().map(|(pid, _)| *pid).collect();
        assert_eq!(meant.len(), ORPHANS_MAX, "none has two under way");
        open.clear();
        heard(&postgres, &mut open, ORPHANS_MAX).await;
        meant.extend(open.iter().map(|(pid, _)| *pid));
        assert_eq!(meant.len(), 2 * ORPHANS_MAX, "the next ones' turn has come");
    }
}
