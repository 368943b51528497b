//! The life of a client connection, from its first packet to the release of its slot.

mod failed;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use self::failed::Failure;
use super::authenticate::{Denied, authenticate};
use super::binding::Binding;
use super::cancel;
use super::closing;
use super::deadline;
use super::desk::{Alias, Desk};
use super::dial::{Dialled, dial};
use super::established::Established;
use super::hub::{Client, Hub, Lane, Registered, Slot, Stage, Tally};
use super::login::{self, LoggedIn, Login, LoginError};
use super::pool::{self, Reuse, Ticket};
use super::relay::Relay;
use super::shared::{Command, Labels, LinkShared, LinkState, ProcessKey, flag};
use super::side::Side;
use super::stranger::{self, Leaves};
use super::stream::{Socket, Stream};
use super::tag::Tag;
use super::welcome::{self, DoorTls, NoWish, Wish};
use crate::auth::upstream::Credentials;
use crate::clock::{self, Moment};
use crate::lanes::classify::Facts;
use crate::lanes::guard::{Arrival, Arrived, DialFailure};
use crate::lanes::ids::LinkId;
use crate::lanes::pool::PoolKey;
use crate::lanes::settings::Pooling;
use crate::listen::process::{self, LookupError};
use crate::listen::socket::{is_local, same_host};
use crate::reason::{Reason, Refusal};
use crate::wire::backend::Limit;
use crate::wire::startup::Startup;

/// A client's bytes kept while it waits in the queue.
const QUEUED_BYTES_MAX: usize = 16 * 1024;

const LOOK_FOR_HANG_UP: Duration = Duration::from_millis(250);
/// How often it is looked whether a pooled connection has ended for whose room a client waits.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(10);
/// How long a client may take to accept PostgreSQL's refusal.
const WORDS_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection that came to nothing may take to close before its client is dialled for again.
const REDIAL_CLOSE: Duration = Duration::from_secs(1);

/// A connection just accepted.
#[derive(Debug)]
pub struct Accepted {
    /// The socket.
    pub stream: Stream,
    /// Client's address; none for a Unix socket.
    pub peer: Option<SocketAddr>,
    /// The listener, as written in the configuration.
    pub listener: Arc<str>,
    /// The lane of all that comes from that listener.
    pub listener_lane: Option<Arc<str>>,
}

/// From the first packet to the first ReadyForQuery; the link, or nothing if the client was refused, or wanted a cancel.
pub async fn serve(
    hub: &Arc<Hub>,
    accepted: Accepted,
    tally: Client,
    stranger: Tally,
) -> Option<Box<Established>> {
    let mut link = begin(hub, accepted, stranger).await?;
    link.counted(tally);
    Some(link)
}

/// From the first packet to the first ReadyForQuery.
async fn begin(hub: &Arc<Hub>, mut accepted: Accepted, stranger: Tally) -> Option<Box<Established>> {
    let settings = hub.settings.load_full();
    // One deadline for the startup packet, TLS, and the password where it is ours to ask.
    let mut deadline = pin!(deadline::after(settings.startup_timeout));
    let door = DoorTls::of(&settings.doors, &accepted.listener);
    let wish = match deadline::bound(deadline.as_mut(), welcome::read(&mut accepted.stream, door)).await {
        Some(Ok(wish)) => wish,
        Some(Err(not)) => return leave(no_wish(hub, accepted, not)).await,
        None => return leave(stranger::refuse(hub, accepted, Reason::StartupTimeout)).await,
    };
    drop(settings);
    match wish {
        Wish::Cancel { pid, key } => {
            Box::pin(cancel::route(hub, pid, &key)).await;
            // With close_notify: without it libpq takes the end for a failed cancel.
            Box::pin(closing::dismiss(accepted.stream, &[])).await;
            None
        }
        Wish::Session { mut startup, mut behind } => {
            if hub.stage() != Stage::Running {
                return leave(stranger::refuse(hub, accepted, Reason::ShuttingDown)).await;
            }
            if startup.replication().is_none() {
                return leave(stranger::refuse_for(hub, accepted, &stranger::bad_replication())).await;
            }
            let mut own = None;
            if let Some(settings) = &hub.settings.load_full().own_auth {
                // Nothing is held for a client while it thinks, but its place among strangers.
                let address = accepted.peer.map(|peer| peer.ip());
                let client = &mut accepted.stream;
                let deadline = deadline.as_mut();
                match authenticate(hub, settings, client, address, &mut startup, behind, deadline).await {
                    Ok(done) => {
                        behind = done.rest;
                        own = Some(Own { credentials: done.credentials, words: done.words });
                    }
                    Err(Denied::Gone) => return None,
                    Err(Denied::Refuse(refusal)) => {
                        return leave(stranger::refuse_unproved(hub, accepted, startup.user(), &refusal))
                            .await;
                    }
                }
                if hub.stage() != Stage::Running {
                    return leave(stranger::refuse(hub, accepted, Reason::ShuttingDown)).await;
                }
            }
            deadline.set(None);
            let newcomer = Newcomer::new(hub, accepted, startup, own).await?;
            drop(stranger);
            newcomer.come_in(behind).await
        }
    }
}

/// The end of a client that is not let in.
async fn leave<T>(last_words: Leaves) -> Option<T> {
    last_words.await;
    None
}

#[cold]
fn no_wish(hub: &Hub, accepted: Accepted, not: NoWish) -> Leaves {
    match not {
        NoWish::Gone => Box::pin(std::future::ready(())),
        NoWish::Bad(reason) => stranger::refuse(hub, accepted, reason),
        NoWish::NoTls(why) => stranger::see_off_without_tls(hub, accepted, &why),
        NoWish::Refused(refusal) => stranger::refuse_for(hub, accepted, &refusal),
    }
}

/// What the authentication of a client by pgweir itself left.
struct Own {
    /// For the login upstream; overwritten when that is over.
    credentials: Credentials,
    /// What goes to the client before AuthenticationOk.
    words: Vec<u8>,
}

/// A client that has sent its startup packet, and has proved who it is where that is pgweir's to ask.
struct Newcomer<'a> {
    hub: &'a Arc<Hub>,
    client: Stream,
    startup: Startup,
    facts: Arc<Facts>,
    /// Before `registered`, whose drop forgets a process that nobody holds any more.
    process: Option<Arc<super::shared::Process>>,
    registered: Registered,
    lane: Arc<Lane>,
    /// The rules by which it was classified.
    epoch: u32,
    may_skip_password: bool,
    arrived: Moment,
    own: Option<Own>,
    /// Whose pooled connections it may have; none where it is to have one of its own.
    key: Option<PoolKey>,
    /// The pool's epoch when it was last dialled for.
    dialled_in: u32,
    /// Its name, where the startup packet bears another.
    alias: Option<Alias>,
    /// Upstream its name is tagged so.
    tag: Option<Arc<Tag>>,
}

impl<'a> Newcomer<'a> {
    /// Classifies the client and enters it into the registry. None when it was refused on the spot.
    async fn new(
        hub: &'a Arc<Hub>,
        accepted: Accepted,
        mut startup: Startup,
        own: Option<Own>,
    ) -> Option<Self> {
        let arrived = clock::now();
        let settings = hub.settings.load_full();
        let (pid, process) = find_process(hub, &accepted).await;
        let facts = hub.facts.share(Facts {
            application: startup.application_name().into(),
            user: startup.user().into(),
            database: startup.database().into(),
            address: accepted.peer.map(|peer| peer.ip()),
            listener: accepted.listener.clone(),
            listener_lane: accepted.listener_lane.clone(),
            replication: startup.replication() == Some(true),
            process,
        });
        let epoch = hub.epoch.load(Ordering::Acquire);
        let rules = hub.rules.load();
        let class = rules.classify(&facts);
        let lane = hub.lanes.load().iter().find(|lane| lane.name == class.lane).cloned();
        let Some(lane) = lane else {
            return leave(stranger::refuse(hub, accepted, Reason::Internal)).await;
        };
        let sessions = hub.counters.sessions.load(Ordering::Relaxed);
        if sessions >= settings.max_clients && !lane.settings.protected {
            return leave(stranger::refuse_at_max(hub, accepted, &lane, sessions, settings.max_clients))
                .await;
        }
        let key = match pid {
            Some(pid) => ProcessKey::Pid(pid),
            None => ProcessKey::Named(facts.address, facts.application.clone()),
        };
        let labels = Labels {
            lane: lane.id,
            lane_name: lane.name.clone(),
            rule: class.rule,
            application_name: rules.application(&facts.application),
            facts: facts.clone(),
            process: None,
            statement: Vec::new(),
        };
        let id = hub.next_link();
        let shared = Arc::new(LinkShared::new(id, accepted.peer.map(|peer| peer.port()), arrived, labels));
        if let Some(tls) = accepted.stream.tls() {
            shared.set_flag(if tls.is_1_3() { flag::TLS_13 } else { flag::TLS_12 }, true);
        }
        let mut registered = Registered::new(hub.clone(), shared);
        let process = Some(registered.set_process(&key));
        let local = accepted.peer.is_none_or(|peer| {
            let here = |local: SocketAddr| same_host(peer.ip(), local.ip());
            is_local(peer.ip()) || accepted.stream.socket().local_addr().is_some_and(here)
        });
        let pools = own.is_some() && !facts.replication && hub.pool.is_enabled();
        // Before the key: pooled connections are shared by clients of one address then, and the tag is always true. Where workers share them
        // under one name there is none.
        let tags = settings.tag_application_name && !(pools && pool::normalises(&lane));
        let tag = if tags { Tag::put(&mut startup, facts.address).map(Arc::new) } else { None };
        let (key, alias) = if pools { pool::keyed(hub, &lane, &mut startup) } else { (None, None) };
        Some(Self {
            hub,
            client: accepted.stream,
            startup,
            facts,
            process,
            registered,
            lane,
            epoch,
            may_skip_password: local || settings.allow_trust,
            arrived,
            own,
            key,
            dialled_in: 0,
            alias,
            tag,
        })
    }

    fn shared(&self) -> &Arc<LinkShared> {
        &self.registered.shared
    }

    /// Waits for a slot, dials, logs in; again and again while PostgreSQL is not ready and the client may wait.
    async fn come_in(mut self, mut behind: Vec<u8>) -> Option<Box<Established>> {
        let id = self.shared().id;
        let nested = self.process.as_ref().is_some_and(|p| p.in_transaction.load(Ordering::Relaxed) > 0);
        let who = Arrival {
            lane: self.lane.id,
            application: self.shared().with_labels(|labels| labels.application_name.clone()),
            user: self.facts.user.clone(),
            database: self.facts.database.clone(),
            address: self.facts.address,
            replication: self.facts.replication,
            nested,
            alone: self.process.as_ref().is_some_and(|p| p.links.load(Ordering::Relaxed) <= 1),
            key: self.key.clone(),
        };
        let mut arrived = self.hub.guard(|guard, now| guard.arrive(now, id, who));
        loop {
            let mut slot = match self.admitted(arrived, &mut behind).await {
                Ok((slot, Some(pooled))) => match self.reuse(slot, pooled, &mut behind).await {
                    Reuse::Done(resumed) => {
                        let (upstream, slot, logged_in, ticket) = *resumed;
                        return self.establish(upstream, slot, logged_in, Some(ticket));
                    }
                    Reuse::Gone => return None,
                    Reuse::Again(next) => {
                        arrived = next;
                        continue;
                    }
                },
                Ok((slot, None)) => Some(slot),
                Err(None) => return None,
                Err(Some(refusal)) => {
                    let by_guard =
                        !matches!(refusal.reason, Reason::Killed | Reason::Drained | Reason::ShuttingDown);
                    return Box::pin(self.refuse(refusal, by_guard)).await;
                }
            };
            self.shared().enter(LinkState::Login, clock::now());
            match Box::pin(self.try_once(&mut slot, std::mem::take(&mut behind))).await {
                Ok((upstream, mut logged_in)) => {
                    let pid = logged_in.pid;
                    self.hub.guard(|guard, now| guard.login_done(now, id, pid));
                    let ticket = self.ticket(std::mem::take(&mut logged_in.parameters));
                    return self.establish(upstream, slot?, logged_in, ticket);
                }
                Err(Failure::Again(why)) => {
                    if let Some(slot) = slot {
                        slot.forget();
                    }
                    arrived = self.hub.guard(|guard, now| guard.dial_failed(now, id, why, true));
                }
                Err(Failure::Refuse(refusal)) => return Box::pin(self.refuse(refusal, false)).await,
                Err(Failure::Told) => return None,
            }
        }
    }

    /// Takes the pooled connection the guard has given to this client.
    async fn reuse(&mut self, slot: Slot, pooled: LinkId, behind: &mut Vec<u8>) -> Reuse {
        self.shared().enter(LinkState::Login, clock::now());
        let words = self.own.as_ref().map_or(&[][..], |own| own.words.as_slice());
        pool::reuse(self.hub, &self.lane, slot, pooled, &mut self.client, words, behind).await
    }

    /// What the link needs to be pooled when this client has ended; none where it will not be.
    fn ticket(&self, parameters: Vec<u8>) -> Option<Ticket> {
        let key = self.key.clone().filter(|_| self.lane.settings.pooling.is_some())?;
        let application = self.shared().with_labels(|labels| labels.application_name.clone());
        Some(Ticket::new(self.dialled_in, key, self.lane.id, application, parameters, self.tag.clone()))
    }

    /// The slot the guard grants, or that of the pooled connection it gives. An error without refusal is a client that hung up.
    async fn admitted(
        &mut self,
        arrived: Arrived,
        behind: &mut Vec<u8>,
    ) -> Result<(Slot, Option<LinkId>), Option<Refusal>> {
        let pooled = match arrived {
            Arrived::Granted => None,
            Arrived::Reused(pooled) => Some(pooled),
            Arrived::Refused(refusal) => return Err(Some(refusal)),
            // Boxed: who need not wait needs no room for it.
            Arrived::Waiting(reason) => return Box::pin(self.wait(reason, behind)).await,
        };
        self.lane.meter.wait.record(Duration::ZERO);
        Ok((Slot::new(self.hub.clone(), self.shared().id), pooled))
    }

    /// Waits in the queue.
    async fn wait(
        &mut self,
        reason: Reason,
        behind: &mut Vec<u8>,
    ) -> Result<(Slot, Option<LinkId>), Option<Refusal>> {
        let id = self.shared().id;
        debug!(client = id.0, lane = %self.lane.name, reason = reason.label(), "waits");
        // From here on a grant may come at any time: the slot's guard takes it back whatever happens.
        let slot = Slot::new(self.hub.clone(), id);
        let began = clock::now();
        let shared = self.registered.shared.clone();
        shared.enter(LinkState::Waiting, began);
        loop {
            tokio::select! {
                commands = shared.receive() => for command in commands {
                    match command {
                        Command::Granted => {
                            self.waited(began);
                            return Ok((slot, None));
                        }
                        Command::Reused(pooled) => {
                            self.waited(began);
                            return Ok((slot, Some(pooled)));
                        }
                        Command::Refused(refusal) | Command::Close { refusal, .. } => {
                            self.waited(began);
                            return Err(Some(refusal));
                        }
                        Command::Reclassify => self.classify_again(),
                        // DRAIN LANE ends links; those who wait are not yet one.
                        Command::Drain if self.hub.stage() != Stage::Running => {
                            let took = clock::now().since(began).as_secs_f64();
                            let detail = format!("waited {took:.1} s in lane {}", self.lane.name);
                            let hint = "connect again when pgweir is back";
                            return Err(Some(Refusal::new(Reason::ShuttingDown, detail, hint)));
                        }
                        _ => {}
                    }
                },
                read = self.client.read_buf(behind), if behind.len() < QUEUED_BYTES_MAX => match read {
                    Ok(n) if n > 0 => {}
                    _ => {
                        self.waited(began);
                        return Err(None);
                    }
                },
                // What it sends ahead is not read for ever; its hang-up is noticed all the same.
                () = tokio::time::sleep(LOOK_FOR_HANG_UP), if behind.len() >= QUEUED_BYTES_MAX => {
                    if self.client.is_hung_up() {
                        self.waited(began);
                        return Err(None);
                    }
                }
            }
        }
    }

    /// Every wait is measured, the one that came to nothing too.
    fn waited(&self, began: Moment) {
        let took = clock::now().since(began);
        self.shared().waited(took);
        self.lane.meter.wait.record(took);
    }

    /// The rules changed while it waits.
    fn classify_again(&mut self) {
        self.epoch = self.hub.epoch.load(Ordering::Acquire);
        let rules = self.hub.rules.load();
        let class = rules.classify(&self.facts);
        let Some(lane) = self.hub.lanes.load().iter().find(|lane| lane.name == class.lane).cloned() else {
            return;
        };
        let application = rules.application(&self.facts.application);
        let id = self.shared().id;
        self.hub.guard(|guard, now| guard.move_link(now, id, lane.id, Some(application.clone())));
        self.shared().with_labels(|labels| {
            labels.lane = lane.id;
            labels.lane_name = lane.name.clone();
            labels.rule = class.rule;
            labels.application_name = application;
        });
        self.lane = lane;
    }

    /// One dial and login.
    async fn try_once(
        &mut self,
        slot: &mut Option<Slot>,
        behind: Vec<u8>,
    ) -> Result<(Stream, LoggedIn), Failure> {
        self.dialled_in = self.hub.pool.epoch();
        let settings = self.hub.settings.load_full();
        let shared = self.shared().clone();
        let mut chosen = self.hub.server.subscribe();
        let Some(dialling) = chosen.borrow_and_update().clone() else {
            return Err(Failure::Again(DialFailure::Moved));
        };
        let dialled = tokio::select! {
            dialled = dial(&settings, &dialling) => dialled,
            refusal = closing::killed(&shared) => return Err(Failure::Refuse(refusal)),
            // A server that died with its host says nothing for as long as a dial may take.
            _ = chosen.changed() => return Err(Failure::Again(DialFailure::Moved)),
        };
        let Dialled { stream: mut upstream, local, server } = match dialled {
            Ok(dialled) => dialled,
            Err(error) => return Err(self.not_reached(&dialling, error.to_string())),
        };
        if let Some(slot) = slot {
            slot.dialled(local);
        }
        if login::send_startup(&mut upstream, &self.startup.raw).await.is_err() {
            return Err(self.not_reached(&server, "the connection was closed at once".to_owned()));
        }
        let login = Login {
            hub: self.hub,
            shared: &self.registered.shared,
            may_skip_password: self.may_skip_password,
            replication: self.facts.replication,
            binding: Binding::between(&self.client, &upstream),
            bound: settings.startup_timeout,
            own: self.own.as_ref().map(|own| (&own.credentials, own.words.as_slice())),
            tag: self.tag.as_deref(),
            chosen,
        };
        let logged_in = tokio::select! {
            done = login.relay(&mut self.client, &mut upstream, &server, behind) => done,
            refusal = closing::killed(&shared) => Err(LoginError::Refuse(refusal)),
        };
        match logged_in {
            Ok(mut logged_in) => {
                logged_in.keys = logged_in.keys.at(server);
                Ok((upstream, logged_in))
            }
            Err(error) => Err(self.failed(error, &server, upstream, slot).await),
        }
    }

    /// From here on the link needs no runtime, though one that may be pooled stays in this one for a while (`link/young`). None where a
    /// socket cannot be taken out of it: the slot is given back by its drop.
    fn establish(
        mut self,
        upstream: Stream,
        slot: Slot,
        logged_in: LoggedIn,
        ticket: Option<Ticket>,
    ) -> Option<Box<Established>> {
        let LoggedIn { pid, keys, upstream_rest, client_rest, .. } = logged_in;
        let shared = self.registered.shared.clone();
        shared.pid.store(pid, Ordering::Relaxed);
        shared.set_flag(flag::UPSTREAM_TLS, upstream.tls().is_some());
        if let Some(ticket) = &ticket
            && self.lane.settings.pooling.as_ref().is_some_and(Pooling::makes_ahead)
        {
            self.hub.pool.seen.note(ticket, &self.startup.raw, &self.facts);
        }
        self.registered.set_key(pid, keys.clone());
        // Those who are led away from a server are found by their keys: it may have been left before these were there.
        let is_left = keys.server().is_some_and(|server| !self.hub.dials(server));
        debug!(client = shared.id.0, lane = %self.lane.name, pid, took_us = clock::now().since(self.arrived).as_micros() as u64,
               "logged in");
        let (client, upstream) = match &ticket {
            Some(_) => (Side::kept(self.client), Side::kept(upstream)),
            None => (Side::new(self.client).ok()?, Side::new(upstream).ok()?),
        };
        let mut desk = Desk::new(self.hub.clone(), shared, self.lane, self.facts, self.process, self.epoch);
        desk.ticket = ticket.map(Box::new);
        desk.alias = self.alias.map(Box::new);
        // Set before the client's first word, which may be there already: no transaction begins on that server.
        desk.draining = is_left.then(|| Box::new(left_during_login()));
        let mut relay = Relay::new(client, upstream, desk, client_rest, upstream_rest);
        relay.session.set_tag(self.tag);
        Some(Box::new(Established::new(relay, self.registered, slot, (pid, keys))))
    }
}

/// What a client is told whose server was left after the client had heard of it.
fn left_during_login() -> Refusal {
    Refusal::new(Reason::UpstreamSwitched, "its server was left during the login", "connect again")
}

/// The client's process, where a rule asks for it: pid, and command line.
async fn find_process(hub: &Hub, accepted: &Accepted) -> (Option<i32>, Option<Arc<str>>) {
    let peer_pid = match accepted.stream.socket() {
        Socket::Unix(socket) => process::peer_of_unix(socket),
        Socket::Tcp(_) => None,
    };
    if !hub.rules.load().needs_process() {
        return (peer_pid, None);
    }
    let pid = match (peer_pid, accepted.peer, accepted.stream.socket().local_addr()) {
        (Some(pid), ..) => Ok(pid),
        (None, Some(peer), Some(local)) if same_host(peer.ip(), local.ip()) => {
            Box::pin(hub.lookups.owner_of_loopback(peer, local)).await
        }
        // Of another machine: nobody expects a process.
        (None, Some(_), _) => Err(LookupError::NotLocal),
        // A socket that a container shares, without its pid namespace: rules on `process` cannot work, which must show somewhere.
        (None, None, _) => {
            hub.lookups.failed(LookupError::NotLocal);
            Err(LookupError::NotLocal)
        }
    };
    let Ok(pid) = pid else { return (None, None) };
    let line = Box::pin(hub.lookups.command_line(pid)).await.ok();
    (Some(pid), line.map(Into::into))
}
