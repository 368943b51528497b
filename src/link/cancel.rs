//! CancelRequest: from a client to the backend it means, and from pgweir to the backend of a client that went away.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use subtle::ConstantTimeEq;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::dial::{Dialled, dial};
use super::hub::{Hub, LinkSettings};
use super::keys::CancelKeys;
use super::shared::{Command, LinkShared, Phase};
use super::stream::Stream;
use crate::reason::{Reason, Refusal};
use crate::wire::reply;

/// Cancel connections at once; beyond it a request is dropped, as PostgreSQL may drop one.
const CANCELS_MAX: u32 = 128;
/// Cancels at once for clients that went away, all links together. They are dialled by the thread that logs clients in, and each costs
/// PostgreSQL a fork: a storm of hang-ups has them wait for each other, a millisecond each, rather than logins for them.
pub(super) const ORPHANS_MAX: usize = 16;
/// How long PostgreSQL may take to close a cancel connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(20);

/// Counts a cancel under way in and out, on the link and in the process, whatever happens in between.
struct Underway {
    hub: Arc<Hub>,
    link: Arc<LinkShared>,
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.hub.counters.cancels.fetch_sub(1, Ordering::Relaxed);
        self.link.end_cancel();
    }
}

/// Routes a client's CancelRequest. Returns when the client's cancel connection may be closed: after upstream closed its own, so
/// that the client knows that the cancel cannot hit its next query.
pub async fn route(hub: &Arc<Hub>, pid: i32, key: &[u8]) {
    let Some((link, keys)) = find(hub, pid, key) else { return };
    let _ = cancel(hub, &link, pid, &keys).await;
}

fn find(hub: &Hub, pid: i32, key: &[u8]) -> Option<(Arc<LinkShared>, CancelKeys)> {
    hub.owners(pid).into_iter().find_map(|owner| {
        let keys = owner.cancel_keys()?.clone();
        bool::from(keys.secret().ct_eq(key)).then_some((owner, keys))
    })
}

/// Cancels what `link` is doing now, if it is doing anything.
///
/// # Errors
/// The request was sent but PostgreSQL did not close the connection in time. The link has been told to end.
pub async fn cancel(
    hub: &Arc<Hub>,
    link: &Arc<LinkShared>,
    pid: i32,
    keys: &CancelKeys,
) -> Result<(), Refusal> {
    if hub.counters.cancels.fetch_add(1, Ordering::Relaxed) >= CANCELS_MAX {
        hub.counters.cancels.fetch_sub(1, Ordering::Relaxed);
        return Ok(());
    }
    let (phase, number) = link.begin_cancel();
    let _underway = Underway { hub: hub.clone(), link: link.clone() };
    match phase {
        Phase::Idle => Ok(()),
        Phase::Held => {
            link.post(Command::CancelHeld(number));
            Ok(())
        }
        Phase::Running => send(&hub.settings.load_full(), pid, keys).await.map_err(|()| {
            let refusal =
                Refusal::new(Reason::UpstreamDown, "PostgreSQL did not answer a cancel request", "");
            // The request may still be on its way: neither a later query nor the backend's next client must be hit, so the link cannot go
            // on, and knows it before the cancel is counted as over.
            link.post(Command::Close { generation: None, refusal: refusal.clone() });
            refusal
        }),
    }
}

/// Whose turn it is to cancel what runs for a client that went away.
#[derive(Debug)]
pub struct Turns(Semaphore);

impl Default for Turns {
    fn default() -> Self {
        Self(Semaphore::new(ORPHANS_MAX))
    }
}

/// Cancels what runs for a client that went away, once it is its turn. Best effort: whoever needs the end of it asks again.
pub(super) async fn orphan(hub: &Hub, pid: i32, keys: &CancelKeys) {
    let Ok(_turn) = hub.counters.orphans.0.acquire().await else { return };
    let settings = hub.settings.load_full();
    let _ = send(&settings, pid, keys).await;
}

/// Sends one CancelRequest to the backend's own server and waits until that has closed the connection. A dial that fails is no error:
/// nothing was sent.
async fn send(settings: &LinkSettings, pid: i32, keys: &CancelKeys) -> Result<(), ()> {
    let Some(server) = keys.server() else { return Ok(()) };
    let Ok(Dialled { mut stream, .. }) = dial(settings, server).await else { return Ok(()) };
    let request = reply::cancel_request(pid, keys.upstream());
    if stream.write_all(&request).await.is_err() {
        return Ok(());
    }
    timeout(CLOSE_TIMEOUT, drain(&mut stream)).await.map_err(|_| ())
}

/// Reads to EOF or error; what comes is of no interest.
async fn drain(stream: &mut Stream) {
    let mut buf = [0; 64];
    while matches!(stream.read(&mut buf).await, Ok(n) if n > 0) {}
}
