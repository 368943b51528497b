//! A link after its login: carried by a reactor, then closed.

use std::future::Future;
use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use rustix::event::epoll::EventFlags;
use tracing::{debug, error, info, warn};

use super::closing::{self, Closing, How};
use super::hub::{Client, Hub, Registered, Slot, Tally};
use super::keys::CancelKeys;
use super::pool::{self, Worn};
use super::reactor::{Member, ReactorWake, Run};
pub use super::relay::End;
use super::relay::{Relay, Scratch};
use super::shared::{LinkShared, LinkState};
use super::side::Side;
use super::stream::Stream;
use crate::clock;
use crate::reason::{Reason, Refusal};
use crate::wire::reply;

/// Turns of one poll: who always finds more to do belongs to a reactor.
const TURNS_MAX: u32 = 32;

/// A link after its login. Every exit, panics included, gives back what it holds.
pub struct Established {
    relay: Relay,
    registered: Registered,
    slot: Slot,
    /// Backend, and its cancel keys.
    key: (i32, CancelKeys),
    tally: Option<Client>,
}

impl Established {
    pub(super) fn new(relay: Relay, registered: Registered, slot: Slot, key: (i32, CancelKeys)) -> Self {
        Self { relay, registered, slot, key, tally: None }
    }

    /// Whether the runtime that logged it in keeps its sockets.
    pub fn is_young(&self) -> bool {
        self.relay.client.is_kept()
    }

    /// Takes its sockets from the runtime that logged it in.
    ///
    /// # Errors
    /// The runtime cannot let go of them; the link is closed, and its slot given back by its drop.
    pub fn grown(self: Box<Self>) -> io::Result<Box<Self>> {
        let Self { relay, registered, slot, key, tally } = *self;
        let relay = relay.let_go()?;
        Ok(Box::new(Self { relay, registered, slot, key, tally }))
    }

    /// Works until nothing moves, asking the runtime that keeps the sockets and having it wake the task. `Again` also where only a reactor
    /// has the means for what moves.
    pub(super) fn poll_run(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<Run<End>> {
        self.registered.shared.register(cx);
        self.poll_ready(cx);
        for _ in 0..TURNS_MAX {
            let ran = self.relay.run(scratch);
            self.relay.client.forget();
            self.relay.upstream.forget();
            match ran {
                Run::Waits if self.is_bulk() => return Poll::Ready(Run::Again),
                Run::Waits if self.poll_ready(cx) => {}
                Run::Waits => return Poll::Pending,
                ran => return Poll::Ready(ran),
            }
        }
        Poll::Ready(Run::Again)
    }

    /// A bulk transfer is on, whose end only a tick finds.
    #[inline]
    fn is_bulk(&self) -> bool {
        self.relay.client.is_bulk() || self.relay.upstream.is_bulk()
    }

    /// What the runtime that keeps the sockets has heard; true if there is news.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> bool {
        let client = self.relay.client.poll_ready(cx);
        self.relay.upstream.poll_ready(cx) || client
    }

    /// Its place in the count of clients.
    pub(super) fn counted(&mut self, tally: Client) {
        self.tally = Some(tally);
    }
}

impl Member for Box<Established> {
    type Scratch = Scratch;
    type End = End;

    fn sockets(&self) -> [BorrowedFd<'_>; 2] {
        [self.relay.client.fd(), self.relay.upstream.fd()]
    }

    fn carried(&mut self, wake: ReactorWake) {
        self.registered.shared.carried(wake);
    }

    #[inline]
    fn ready(&mut self, side: usize, events: EventFlags) {
        let side = if side == 0 { &mut self.relay.client } else { &mut self.relay.upstream };
        side.ready(events);
    }

    #[inline]
    fn run(&mut self, scratch: &mut Scratch) -> Run<End> {
        self.relay.run(scratch)
    }

    #[inline]
    fn wants_tick(&self) -> bool {
        self.is_bulk()
    }

    fn tick(&mut self) {
        self.relay.client.tick();
        self.relay.upstream.tick();
    }
}

/// From the end of the relay to the release of the slot. To be run where tokio runs.
pub async fn finish(hub: Arc<Hub>, link: Box<Established>, end: End) {
    // Counted until all is over: a process that ends waits for the last words of those who are in no registry any more.
    let _leaving = Tally::leaving(hub.clone());
    let (parted, _tally) = part(&hub, *link, end);
    match parted {
        Parted::Worn(worn) => pool::recycle(&hub, worn).await,
        Parted::Last(work) => work.await,
    }
}

/// What is left to do when a relay has ended.
enum Parted<'a> {
    /// The client has been told all, and the backend may be pooled: most ends, where links are short.
    Worn(Worn),
    /// Anything else, which may take its time, and has a room of its own for what it needs meanwhile.
    Last(Pin<Box<dyn Future<Output = ()> + Send + 'a>>),
}

fn part(hub: &Arc<Hub>, link: Established, end: End) -> (Parted<'_>, Option<Client>) {
    let Established { mut relay, registered, slot, key, tally } = link;
    let shared = registered.shared.clone();
    shared.enter(LinkState::Closing, clock::now());
    let quiet = relay.session.is_quiet();
    let at_boundary = relay.can_terminate_upstream();
    let mut unsent = relay.take_unsent();
    let may_rest = match &end {
        End::Terminated => relay.spared,
        End::ClientGone => relay.may_rest(),
        _ => false,
    };
    let how = match &end {
        End::Terminated if !relay.spared => How::Orderly,
        _ if quiet && at_boundary => How::Idle,
        _ => How::Cancel,
    };
    if how != How::Orderly {
        // What upstream has not been given, nobody waits for. A Terminate in the middle of a message would be read as its end.
        unsent.clear();
        if at_boundary && !relay.session.is_copy_in() {
            unsent.extend_from_slice(&reply::TERMINATE);
        }
    }
    let told = tell_client(&mut relay, &shared, &end);
    let Relay { client, upstream, mut desk, .. } = relay;
    let ticket = desk.ticket.take().filter(|_| may_rest);
    drop(desk);
    if matches!(end, End::UpstreamClosed | End::UpstreamLost) {
        drop(upstream);
        match end {
            End::UpstreamClosed => slot.released(),
            _ => drop(slot),
        }
        drop(registered);
        return (Parted::Last(Box::pin(last_words(client, told))), tally);
    }
    let mut registered = Some(registered);
    if let Some(ticket) = ticket {
        // No cancel finds it from here on.
        registered = None;
        if pool::is_undisturbed(hub, &shared) {
            let Ok(upstream) = upstream.into_stream() else {
                return (Parted::Last(Box::pin(std::future::ready(()))), tally);
            };
            let worn = Worn { shared, upstream, slot, key, ticket: *ticket };
            if told.is_empty() {
                return (Parted::Worn(worn), tally);
            }
            let both = async {
                tokio::join!(last_words(client, told), pool::recycle(hub, worn));
            };
            return (Parted::Last(Box::pin(both)), tally);
        }
    }
    // Without a descriptor to watch them with, both sides close now, and the slot stays counted until a sample confirms.
    let (Ok(client), Ok(upstream)) = (client.into_stream(), upstream.into_stream()) else {
        error!(client = shared.id.0, "a link cannot be watched any more, and is cut off");
        return (Parted::Last(Box::pin(std::future::ready(()))), tally);
    };
    let closing = Closing { shared, upstream, slot, how, unsent, cancel: Some(key), reader: None };
    (Parted::Last(Box::pin(close_both(hub, closing, client, told, registered, end))), tally)
}

/// Tells a client what is left to be told, and closes it.
async fn last_words(client: Side, told: Vec<u8>) {
    if let Ok(client) = client.into_stream() {
        closing::dismiss(client, &told).await;
    }
}

async fn close_both(
    hub: &Arc<Hub>,
    mut closing: Closing,
    client: Stream,
    told: Vec<u8>,
    registered: Option<Registered>,
    end: End,
) {
    match end {
        End::Terminated => {
            closing.reader = Some((client, told));
            closing::close(hub, closing).await;
        }
        End::ClientGone => {
            drop(client);
            closing::close(hub, closing).await;
        }
        _ => {
            let close = async {
                closing::close(hub, closing).await;
                // A client that is slow to read its last words is not listed for it.
                drop(registered);
            };
            tokio::join!(closing::dismiss(client, &told), close);
        }
    }
}

/// Puts on record what an operator must be able to find later: leaks disconnected.
fn note_end(relay: &Relay, shared: &LinkShared, refusal: &Refusal) {
    let (lane, hub) = (relay.desk.lane(), &relay.desk.hub);
    if refusal.reason == Reason::Reclaimed {
        lane.meter.reclaimed.fetch_add(1, Ordering::Relaxed);
    }
    if refusal.reason != Reason::LeakDisconnect {
        return;
    }
    lane.meter.disconnects.fetch_add(1, Ordering::Relaxed);
    hub.guard(|guard, _| guard.count_reset(lane.id));
    let who = shared.describe(hub.settings.load().log_literals);
    let text = format!("disconnected: {}; {who}", refusal.detail);
    hub.note("disconnect", Some(lane.name.clone()), Some(shared.id), text);
}

/// The client's last words, and the log's.
fn tell_client(relay: &mut Relay, shared: &LinkShared, end: &End) -> Vec<u8> {
    let lane = relay.desk.lane().name.clone();
    let mut words = relay.take_undelivered();
    match end {
        End::ByUs(refusal) => {
            info!(client = shared.id.0, lane = %lane, pid = shared.pid.load(Ordering::Relaxed),
                  reason = refusal.reason.label(), detail = refusal.detail, "closed by pgweir");
            note_end(relay, shared, refusal);
            if relay.can_tell_client() {
                reply::refusal(&mut words, refusal);
            }
        }
        End::UpstreamLost => warn!(client = shared.id.0, lane = %lane, "the connection to PostgreSQL broke"),
        End::UpstreamClosed => debug!(client = shared.id.0, lane = %lane, "PostgreSQL closed the connection"),
        End::ClientGone => debug!(client = shared.id.0, lane = %lane, "the client went away"),
        End::Terminated => debug!(client = shared.id.0, lane = %lane, "the client ended the session"),
    }
    words
}

#[cfg(test)]
pub(super) mod tests;
