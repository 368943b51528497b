//! Session pooling: a backend whose client has ended well is reset, watched while it rests, and handed to the next client that sends the
//! same startup packet. All of it happens on the reception; who gets what is the guard's word (`lanes/rest`).
//!
//! A connection at rest has nothing to say but good-bye. One task, the keeper, listens to all of them: whoever takes one finds it on the
//! shelf, and no thread or task has to be asked for it.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::task::unconstrained;
use tokio::time::timeout;
use tracing::debug;

use super::ahead::Seen;
use super::closing::{self, Closing, How};
use super::desk::Alias;
use super::hub::{Hub, Lane, Slot, Stage};
use super::keys::CancelKeys;
use super::login::LoggedIn;
use super::random;
use super::shared::{Command, LinkShared};
use super::stream::{Peek, Stream};
use super::tag::Tag;
use crate::clock::{self, Moment};
use crate::lanes::guard::Arrived;
use crate::lanes::ids::{LaneId, LinkId};
use crate::lanes::pool::PoolKey;
use crate::wire::frame::{HEADER_LEN, Header, split_cstr};
use crate::wire::startup::Startup;
use crate::wire::{reply, statement};

/// How long a reset may take: it drops the temporary tables of the session.
const RESET_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a sign of life may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long no connection is pooled to a database that PostgreSQL needs without sessions: it waits for 5 s.
const BARRED_FOR: Duration = Duration::from_secs(10);
/// Replies kept while a reset or check is judged, in bytes.
const REPLIES_MAX: usize = 64 * 1024;
/// How long a new client may take to accept its greeting.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// Sync without anything before it.
const SYNC: [u8; 5] = [b'S', 0, 0, 0, 4];

/// What a link must know to be pooled when its client has ended.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// Who may have it next.
    pub key: PoolKey,
    /// The lane its client came into: a link that was moved since is not pooled.
    pub lane: LaneId,
    /// The application its startup packet names.
    pub application: Arc<str>,
    /// What the backend has reported, as whole ParameterStatus messages.
    parameters: Arc<Vec<u8>>,
    /// Which PostgreSQL it was dialled at.
    epoch: u32,
    /// Its application_name upstream is tagged so.
    pub(super) tag: Option<Arc<Tag>>,
}

impl Ticket {
    /// For a backend that reported `parameters` at its login, dialled when the pool's epoch was that.
    pub fn new(
        epoch: u32,
        key: PoolKey,
        lane: LaneId,
        application: Arc<str>,
        parameters: Vec<u8>,
        tag: Option<Arc<Tag>>,
    ) -> Self {
        Self { key, lane, application, parameters: Arc::new(parameters), epoch, tag }
    }

    /// The backend reports another value.
    pub fn note(&mut self, name: &[u8], value: &[u8]) {
        let tag = self.tag.clone();
        let value = tag.as_deref().map_or(value, |tag| tag.own_of(name, value));
        let mut new = Vec::with_capacity(self.parameters.len() + value.len());
        let mut rest = self.parameters.as_slice();
        let mut found = false;
        while let Ok(Some(header)) = Header::read(rest)
            && let Some(message) = rest.get(..header.total_len())
        {
            if split_cstr(&message[HEADER_LEN..]).is_some_and(|(known, _)| known == name) {
                found = true;
                parameter(&mut new, name, value);
            } else {
                new.extend_from_slice(message);
            }
            rest = &rest[header.total_len()..];
        }
        if !found {
            parameter(&mut new, name, value);
        }
        if new != *self.parameters {
            self.parameters = Arc::new(new);
        }
    }
}

fn parameter(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    reply::message(out, b'S', |out| {
        for text in [name, value] {
            out.extend_from_slice(text);
            out.push(0);
        }
    });
}

/// Which pooled connections a client of a lane may have, and its own name where PostgreSQL is to be told another: the normalised one, if
/// the lane wants that and the client gives a name at all. No key where nothing is pooled.
pub(super) fn keyed(hub: &Hub, lane: &Lane, startup: &mut Startup) -> (Option<PoolKey>, Option<Alias>) {
    let mut alias = None;
    let of_client: Arc<str> = startup.application_name().into();
    if normalises(lane) && !of_client.is_empty() {
        let at_server = hub.rules.load().application(&of_client);
        if let Some(raw) = startup.renamed(&at_server) {
            startup.raw = raw;
            alias = Some(Alias { at_server, of_client });
        }
    }
    (Some(PoolKey::new(&startup.raw)), alias)
}

/// Whether PostgreSQL is told the application's name in place of the client's.
pub(super) fn normalises(lane: &Lane) -> bool {
    lane.settings.pooling.as_ref().is_some_and(|pooling| pooling.normalises)
}

/// A backend without a client.
pub struct Resting {
    pub(super) upstream: Stream,
    pub(super) slot: Slot,
    /// Backend, and what PostgreSQL wants to see in a cancel.
    pub(super) key: (i32, CancelKeys),
    pub(super) ticket: Ticket,
    /// When it was last known to be well.
    pub(super) since: Moment,
}

/// How a connection's rest has ended.
enum Heard {
    /// PostgreSQL has closed it.
    End,
    /// It was dismissed, or has said what it should not have: it must be closed.
    Words,
}

/// Connections that rest no more, and why.
type Over = Vec<(Box<Resting>, Heard)>;

/// The connections at rest.
#[derive(Default)]
struct Shelf {
    resting: HashMap<LinkId, Box<Resting>, RandomState>,
    /// To be seen off by the keeper.
    over: Over,
    keeper: Option<Waker>,
}

/// All pooled connections.
#[derive(Default)]
pub struct Pool {
    /// Never locked while the guard is asked, which may have connections taken off it.
    shelf: Mutex<Shelf>,
    /// Whose connections are made ahead of clients.
    pub(super) seen: Seen,
    /// Whether any lane pools.
    enabled: AtomicBool,
    /// Changes with the PostgreSQL that is dialled.
    epoch: AtomicU32,
    /// Connections that are being closed after they were pooled, at least one for each.
    closing: Arc<AtomicU32>,
}

impl Pool {
    /// Connections that are pooled, or being closed after they were.
    pub fn kept(&self) -> u32 {
        let shelf = self.shelf.lock();
        let on_it = u32::try_from(shelf.resting.len() + shelf.over.len()).unwrap_or(u32::MAX);
        on_it.saturating_add(self.closing.load(Ordering::Relaxed))
    }

    /// Has a pooled connection closed: the guard has said so. False for one that is not there any more: it has ended.
    pub fn close(&self, pooled: LinkId) -> bool {
        let keeper = {
            let mut shelf = self.shelf.lock();
            let Some(resting) = shelf.resting.remove(&pooled) else { return false };
            shelf.over.push((resting, Heard::Words));
            shelf.keeper.clone()
        };
        if let Some(keeper) = keeper {
            keeper.wake();
        }
        true
    }

    /// Whether a connection rests here.
    pub fn has(&self, pooled: LinkId) -> bool {
        self.shelf.lock().resting.contains_key(&pooled)
    }

    fn take(&self, pooled: LinkId) -> Option<Box<Resting>> {
        self.shelf.lock().resting.remove(&pooled)
    }

    /// Puts a connection on the shelf, where the keeper hears of it; gives it back if something was heard of it already.
    fn put(&self, mut resting: Box<Resting>) -> Result<(), (Box<Resting>, Heard)> {
        let mut shelf = self.shelf.lock();
        // Without a keeper yet, it listens when it comes.
        if let Some(keeper) = &shelf.keeper
            && let Poll::Ready(heard) = resting.listen(&mut Context::from_waker(keeper))
        {
            return Err((resting, heard));
        }
        shelf.resting.insert(resting.slot.link(), resting);
        Ok(())
    }

    /// For the keeper: takes those off the shelf of whom something was heard, and those that are to be closed. Listens to all of them: it is
    /// woken by the few that speak.
    fn look(&self, cx: &mut Context<'_>) -> Poll<(Over, Leaving)> {
        let mut shelf = self.shelf.lock();
        if !shelf.keeper.as_ref().is_some_and(|keeper| keeper.will_wake(cx.waker())) {
            shelf.keeper = Some(cx.waker().clone());
        }
        let Shelf { resting, over, .. } = &mut *shelf;
        let listen = |(id, resting): (&LinkId, &mut Box<Resting>)| {
            // A bug in one closes that one: its neighbours notice nothing.
            match catch_unwind(AssertUnwindSafe(|| resting.listen(cx))) {
                Ok(Poll::Pending) => None,
                Ok(Poll::Ready(heard)) => Some((*id, heard)),
                Err(_) => Some((*id, Heard::Words)),
            }
        };
        let spoke: Vec<_> = resting.iter_mut().filter_map(listen).collect();
        let mut over = std::mem::take(over);
        over.extend(spoke.into_iter().filter_map(|(id, heard)| Some((resting.remove(&id)?, heard))));
        // Counted before the shelf can be seen without them.
        if over.is_empty() { Poll::Pending } else { Poll::Ready((over, Leaving::count(self))) }
    }

    /// Says whether any lane pools.
    pub fn set_enabled(&self, on: bool) {
        self.enabled.store(on, Ordering::Relaxed);
    }

    /// Whether any lane pools.
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    /// Another PostgreSQL is dialled from now on: what was dialled before is not pooled any more.
    pub fn upstream_changed(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Names the PostgreSQL that is dialled; to be asked before the settings that are dialled with.
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::SeqCst)
    }
}

impl Hub {
    /// Closes the pooled connections that a statement would wait for, and keeps none of those databases for a while.
    pub fn make_room_for(&self, statement: &[u8]) {
        for database in statement::databases_emptied(statement) {
            let closed = self.guard(|guard, now| guard.bar_database(now, &database, now + BARRED_FOR));
            if closed > 0 {
                let text = format!(
                    "{closed} pooled connections to {database} were closed for DROP, CREATE … TEMPLATE or ALTER DATABASE"
                );
                self.note("pool", None, None, text);
            }
        }
    }
}

/// A backend whose client has just ended, with nothing outstanding and outside a transaction.
pub(super) struct Worn {
    pub(super) shared: Arc<LinkShared>,
    pub(super) upstream: Stream,
    pub(super) slot: Slot,
    pub(super) key: (i32, CancelKeys),
    pub(super) ticket: Ticket,
}

/// Whether nothing of a link that has left the registry can hit whoever comes next: no cancel is on its way, nor was one given up.
pub(super) fn is_undisturbed(hub: &Hub, shared: &LinkShared) -> bool {
    let given_up =
        |command: &Command| matches!(command, Command::Close { .. } | Command::Drain | Command::Leave(_));
    hub.stage() == Stage::Running && !shared.is_being_cancelled() && !shared.take_mail().iter().any(given_up)
}

/// Resets a backend and pools it, or closes it.
pub(super) async fn recycle(hub: &Arc<Hub>, worn: Worn) {
    let Worn { shared, mut upstream, slot, key, mut ticket } = worn;
    match timeout(RESET_TIMEOUT, discard_all(&mut upstream, &mut ticket)).await {
        Ok(Ok(())) => rest(hub, Resting { upstream, slot, key, ticket, since: clock::now() }),
        Ok(Err(Trouble::Closed)) => slot.released(),
        Ok(Err(Trouble::Unexpected)) => {
            debug!(client = shared.id.0, pid = key.0, "DISCARD ALL did not go well: closed");
            let resting = Box::new(Resting { upstream, slot, key, ticket, since: clock::now() });
            Box::pin(close(hub, resting)).await;
        }
        Err(_) => {
            let (unsent, how, cancel) = (reply::TERMINATE.to_vec(), How::Cancel, Some(key));
            let closing = Closing { shared, upstream, slot, how, unsent, cancel, reader: None };
            Box::pin(closing::close(hub, closing)).await;
        }
    }
}

/// Hands a backend to the guard's pool, or closes it. To be called on the reception.
pub(super) fn rest(hub: &Arc<Hub>, resting: Resting) {
    let id = resting.slot.link();
    let (epoch, lane, key) = (resting.ticket.epoch, resting.ticket.lane, resting.ticket.key.clone());
    let application = resting.ticket.application.clone();
    // Before the guard knows of it: it may be handed over, or dismissed, in that very call.
    if let Err((resting, heard)) = hub.pool.put(Box::new(resting)) {
        return end(hub, resting, heard);
    }
    // Under the guard's lock, as the pool is drained for another server.
    let kept =
        hub.guard(|guard, now| epoch == hub.pool.epoch() && guard.pool(now, id, lane, key, &application));
    if !kept && let Some(resting) = hub.pool.take(id) {
        end(hub, resting, Heard::Words);
    }
}

/// Listens to all pooled connections, for as long as the process lives. To be run on the reception.
pub async fn keep(hub: Arc<Hub>) {
    loop {
        let keeper = tokio::spawn(keep_all(hub.clone()));
        match keeper.await {
            Err(error) if error.is_panic() => tracing::error!("the keeper of pooled connections begins anew"),
            _ => return,
        }
    }
}

async fn keep_all(hub: Arc<Hub>) {
    loop {
        // A budget that is spent would pass for connections that say nothing, and all of them must be listened to.
        let (over, _leaving) = unconstrained(poll_fn(|cx| hub.pool.look(cx))).await;
        over.into_iter().for_each(|(resting, heard)| end(&hub, resting, heard));
    }
}

/// Sees a connection off that is on the shelf no more.
fn end(hub: &Arc<Hub>, resting: Box<Resting>, heard: Heard) {
    match heard {
        Heard::End => resting.slot.released(),
        Heard::Words => {
            let (hub, leaving) = (hub.clone(), Leaving::count(&hub.pool));
            tokio::spawn(async move {
                let _leaving = leaving;
                close(&hub, resting).await;
            });
        }
    }
}

/// Counts connections that are being closed.
struct Leaving(Arc<AtomicU32>);

impl Leaving {
    fn count(pool: &Pool) -> Self {
        pool.closing.fetch_add(1, Ordering::Relaxed);
        Self(pool.closing.clone())
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Closes a backend; its slot is free when PostgreSQL has closed it.
pub(super) async fn close(hub: &Arc<Hub>, resting: Box<Resting>) {
    let _leaving = Leaving::count(&hub.pool);
    let Resting { mut upstream, slot, .. } = *resting;
    hub.guard(|guard, now| guard.closing(now, slot.link()));
    let _ = upstream.write_all(&reply::TERMINATE).await;
    let _ = upstream.shutdown().await;
    let closed = closing::wait_closed(&mut upstream).await;
    drop(upstream);
    if closed {
        slot.released();
    }
}

/// What became of a pooled connection that was to be reused.
pub(super) enum Reuse {
    /// The client has it.
    Done(Box<(Stream, Slot, LoggedIn, Ticket)>),
    /// The client is gone.
    Gone,
    /// It was no good.
    Again(Arrived),
}

/// Takes the pooled connection whose slot the guard has given to `slot`'s link, and greets the client: `words` come first.
pub(super) async fn reuse(
    hub: &Arc<Hub>,
    lane: &Lane,
    mut slot: Slot,
    pooled: LinkId,
    client: &mut Stream,
    words: &[u8],
    behind: &mut Vec<u8>,
) -> Reuse {
    let link = slot.link();
    slot.inherited();
    let check_after = lane.settings.pooling.as_ref().map_or(Duration::ZERO, |pooling| pooling.check_after);
    let resting = match take(hub, link, pooled, check_after).await {
        Ok(resting) => *resting,
        Err(next) => {
            slot.forget();
            return Reuse::Again(next);
        }
    };
    hub.guard(|guard, now| guard.revived(now, link));
    let logged_in = resting.greet(client, words, std::mem::take(behind)).await;
    let Resting { upstream, slot: old, key, mut ticket, since } = resting;
    // The guard knows it by the new name.
    old.forget();
    ticket.lane = lane.id;
    match logged_in {
        Some(logged_in) => {
            lane.meter.reused.fetch_add(1, Ordering::Relaxed);
            Reuse::Done(Box::new((upstream, slot, logged_in, ticket)))
        }
        None => {
            // Nothing of this client has reached the backend.
            rest(hub, Resting { upstream, slot, key, ticket, since });
            Reuse::Gone
        }
    }
}

/// Takes the pooled connection the guard has given to `link`, if it is well. Else the link waits again, or is granted something else.
async fn take(
    hub: &Arc<Hub>,
    link: LinkId,
    pooled: LinkId,
    check_after: Duration,
) -> Result<Box<Resting>, Arrived> {
    match hub.pool.take(pooled) {
        Some(mut resting) => {
            // Another server may have been chosen since the guard gave it.
            if resting.is_well(check_after).await && resting.ticket.epoch == hub.pool.epoch() {
                return Ok(resting);
            }
            if resting.has_ended() {
                // The slot is the taker's.
                resting.slot.forget();
                return Err(hub.guard(|guard, now| guard.stale(now, link, true)));
            }
            Err(discard(hub, link, resting))
        }
        // The keeper has heard of it in between.
        None => Err(hub.guard(|guard, now| {
            let arrived = guard.stale(now, link, false);
            guard.zombie(now, pooled);
            arrived
        })),
    }
}

fn discard(hub: &Arc<Hub>, link: LinkId, resting: Box<Resting>) -> Arrived {
    // The slot goes back to its old name before that is used again.
    let arrived = hub.guard(|guard, now| guard.stale(now, link, false));
    end(hub, resting, Heard::Words);
    arrived
}

impl Resting {
    /// What it has to say, if anything; the one who asks is woken when it has.
    fn listen(&mut self, cx: &mut Context<'_>) -> Poll<Heard> {
        #[cfg(test)]
        assert!(self.key.0 != tests::BUG, "a bug");
        let mut byte = [0];
        let mut buf = ReadBuf::new(&mut byte);
        Pin::new(&mut self.upstream).poll_read(cx, &mut buf).map(|read| match read {
            Ok(()) if buf.filled().is_empty() => Heard::End,
            Err(error) if closing::is_close(&error) => Heard::End,
            _ => Heard::Words,
        })
    }

    /// Whether the runtime knows that PostgreSQL has closed it.
    fn has_ended(&mut self) -> bool {
        matches!(self.listen(&mut Context::from_waker(Waker::noop())), Poll::Ready(Heard::End))
    }

    /// Whether PostgreSQL has said nothing, and answers if it was not asked for long.
    async fn is_well(&mut self, check_after: Duration) -> bool {
        if self.upstream.peek() != Peek::Silent {
            return false;
        }
        if clock::now().since(self.since) < check_after {
            return true;
        }
        let answer = Box::pin(ask(&mut self.upstream, &SYNC, None, &mut self.ticket));
        matches!(timeout(CHECK_TIMEOUT, answer).await, Ok(Ok(())))
    }

    /// What the next client is told, as if it had logged in: `words` come first. With the keys of its own.
    pub(super) fn greeting(&self, words: &[u8]) -> Option<(Vec<u8>, CancelKeys)> {
        let upstream = self.key.1.upstream();
        let mut secret = vec![0; upstream.len()];
        random::fill(&mut secret)?;
        let mut out = Vec::with_capacity(words.len() + self.ticket.parameters.len() + 64);
        out.extend_from_slice(words);
        reply::message(&mut out, b'R', |out| out.extend_from_slice(&[0; 4]));
        out.extend_from_slice(&self.ticket.parameters);
        reply::backend_key_data(&mut out, self.key.0, &secret);
        reply::ready_for_query(&mut out, b'I');
        let keys = CancelKeys::new(&secret, upstream);
        Some((
            out,
            match self.key.1.server() {
                Some(server) => keys.at(server.clone()),
                None => keys,
            },
        ))
    }

    /// Greets a client; what a login would have left, or nothing if the client is gone.
    pub(super) async fn greet(&self, client: &mut Stream, words: &[u8], behind: Vec<u8>) -> Option<LoggedIn> {
        let (greeting, keys) = self.greeting(words)?;
        matches!(timeout(GREETING_TIMEOUT, client.write_all(&greeting)).await, Ok(Ok(()))).then_some(())?;
        let (pid, parameters) = (self.key.0, Vec::new());
        Some(LoggedIn { pid, keys, upstream_rest: Vec::new(), client_rest: behind, parameters })
    }
}

/// Why a backend at rest is not to be used.
#[derive(Debug)]
enum Trouble {
    /// PostgreSQL has closed the connection.
    Closed,
    /// It said something else than was expected.
    Unexpected,
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        if closing::is_close(&error) { Self::Closed } else { Self::Unexpected }
    }
}

async fn discard_all(upstream: &mut Stream, ticket: &mut Ticket) -> Result<(), Trouble> {
    let mut query = Vec::with_capacity(24);
    reply::query(&mut query, "DISCARD ALL");
    ask(upstream, &query, Some(b"DISCARD ALL"), ticket).await
}

/// Sends a request and reads up to ReadyForQuery `I`, behind which nothing may follow; `tag` must have been completed. What the backend
/// reports on its way is noted.
async fn ask(
    upstream: &mut Stream,
    request: &[u8],
    tag: Option<&[u8]>,
    ticket: &mut Ticket,
) -> Result<(), Trouble> {
    upstream.write_all(request).await?;
    let mut replies = Vec::with_capacity(512);
    let mut completed = tag.is_none();
    let mut at = 0;
    loop {
        let Some(header) = Header::read(&replies[at..]).map_err(|_| Trouble::Unexpected)? else {
            read_on(upstream, &mut replies).await?;
            continue;
        };
        let end = at + header.total_len();
        if end > REPLIES_MAX {
            return Err(Trouble::Unexpected);
        }
        if replies.len() < end {
            read_on(upstream, &mut replies).await?;
            continue;
        }
        let body = &replies[at + HEADER_LEN..end];
        match header.tag {
            b'C' if !completed && split_cstr(body).map(|(tag, _)| tag) == tag => completed = true,
            b'S' => {
                let (name, rest) = split_cstr(body).ok_or(Trouble::Unexpected)?;
                let (value, _) = split_cstr(rest).ok_or(Trouble::Unexpected)?;
                ticket.note(name, value);
            }
            // For a session that is no more.
            b'N' | b'A' => {}
            b'Z' if completed && body == b"I" && replies.len() == end => return Ok(()),
            _ => return Err(Trouble::Unexpected),
        }
        at = end;
    }
}

async fn read_on(upstream: &mut Stream, replies: &mut Vec<u8>) -> Result<(), Trouble> {
    if replies.len() >= REPLIES_MAX {
        return Err(Trouble::Unexpected);
    }
    match upstream.read_buf(replies).await? {
        0 => Err(Trouble::Closed),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
