//! What all links share: the guard behind its lock, the registry of links, the cancel table, the lanes' gates and meters.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use dashmap::DashMap;
use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};

use super::authority::{Authority, OwnAuth};
use super::intern::Interner;
use super::keys::CancelKeys;
use super::meter::Meter;
use super::pool::Pool;
use super::server::Server;
use super::shared::{Command, LinkShared, LinkState, Process, ProcessKey};
use super::sparing::Sparing;
pub use super::tally::{Client, Tally};
use super::totals::{ByDatabase, Gone};
use super::welcome::DoorTls;
use crate::clock::{self, Moment};
use crate::lanes::classify::{Facts, Rules};
use crate::lanes::gate::LaneGate;
use crate::lanes::guard::{Action, Guard};
use crate::lanes::ids::{LaneId, LinkId};
use crate::lanes::settings::LaneSettings;
use crate::listen::process::Lookups;
use crate::reason::Reason;
use crate::tls::client::ClientTls;

/// What links need of the configuration.
#[derive(Clone, Debug)]
pub struct LinkSettings {
    /// TLS asked of PostgreSQL; none where there can be none.
    pub upstream_tls: Option<ClientTls>,
    /// Listeners with TLS.
    pub doors: Vec<DoorTls>,
    /// Bound on a dial.
    pub connect_timeout: Duration,
    /// Bound on a login, queueing not counted.
    pub startup_timeout: Duration,
    /// A dead peer is noticed within this.
    pub dead_after: Duration,
    /// Whether remote clients may use an upstream that asks for no password.
    pub allow_trust: bool,
    /// How pgweir itself authenticates clients; none leaves it to PostgreSQL.
    pub own_auth: Option<OwnAuth>,
    /// Whether PostgreSQL sees the client's address behind its application_name.
    pub tag_application_name: bool,
    /// Whether statements are shown with their literals.
    pub log_literals: bool,
    /// Client links at most.
    pub max_clients: u32,
}

/// What the control thread is told.
#[derive(Debug)]
pub enum Event {
    /// An entry for the timeline.
    Timeline {
        /// One word.
        event: &'static str,
        /// Lane, where there is one.
        lane: Option<Arc<str>>,
        /// Link, where there is one.
        link: Option<LinkId>,
        /// For people.
        text: String,
        /// Operator or "pgweir".
        who: String,
        /// Usage at that moment.
        usage: Option<f64>,
    },
    /// Look at PostgreSQL now.
    SampleNow,
    /// Pauses must be written to disk.
    PausesChanged,
    /// A leak's client spoke before its reset arrived.
    ResetOff {
        /// The link.
        link: LinkId,
        /// The idle period that was judged.
        generation: u32,
    },
}

/// When the control thread's next turn at the guard is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Then.
    For(Duration),
    /// When it is told ([`Hub::ticker`]), or then at the latest.
    UntilTold(Option<Duration>),
}

/// A lane as the workers see it.
#[derive(Debug)]
pub struct Lane {
    /// Identity.
    pub id: LaneId,
    /// Name.
    pub name: Arc<str>,
    /// Open or not.
    pub gate: Arc<LaneGate>,
    /// Figures.
    pub meter: Arc<Meter>,
    /// Settings.
    pub settings: LaneSettings,
}

/// How far a shutdown has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Serving.
    Running,
    /// No new links; transactions finish.
    Draining,
    /// Everybody out.
    Ending,
}

/// Figures of the process.
#[derive(Debug, Default)]
pub struct Counters {
    /// Client connections open, strangers and those being refused included.
    pub clients: AtomicU32,
    /// Those that have sent a startup packet.
    pub sessions: AtomicU32,
    /// Connections of whom nothing is known yet, or that are refused without a startup packet.
    pub strangers: AtomicU32,
    /// The same by address, where there is one.
    pub strangers_by_address: DashMap<IpAddr, u32, RandomState>,
    /// Links whose end is under way: last words, orderly close.
    pub leaving: AtomicU32,
    /// Panics caught.
    pub panics: AtomicU64,
    /// True 53300 seen.
    pub too_many_clients: AtomicU64,
    /// Cancel requests under way.
    pub cancels: AtomicU32,
    /// Whose turn it is to cancel for clients that are gone.
    pub orphans: super::cancel::Turns,
    /// Clients refused before their lane was known, by reason.
    pub strangers_refused: DashMap<Reason, u64>,
}

/// Shared by all links, one per process.
pub struct Hub {
    guard: Mutex<Guard>,
    /// Every link that sent a startup packet.
    pub links: DashMap<LinkId, Arc<LinkShared>, RandomState>,
    /// Who owns a cancel key, by pid.
    pub keys: DashMap<i32, Arc<LinkShared>, RandomState>,
    /// The same of those whose pid a link of another server has got: hardly ever anybody.
    pub keys_elsewhere: DashMap<(i32, LinkId), Arc<LinkShared>>,
    /// What is known of clients, one for all links of a service.
    pub facts: Interner<Facts>,
    /// How links are put into lanes.
    pub rules: ArcSwap<Rules>,
    /// Changes with `rules`.
    pub epoch: AtomicU32,
    /// Lanes by id.
    pub lanes: ArcSwap<Vec<Arc<Lane>>>,
    /// What links need of the configuration.
    pub settings: ArcSwap<LinkSettings>,
    /// Which server is dialled; none while none is known that will do.
    pub server: watch::Sender<Option<Arc<Server>>>,
    /// Figures.
    pub counters: Counters,
    /// What links that are gone did.
    gone: Gone,
    /// Backends that wait for their next client.
    pub pool: Pool,
    /// Looks client processes up.
    pub lookups: Lookups,
    /// Who may log in, where pgweir itself authenticates.
    pub authority: Authority,
    processes: Mutex<HashMap<ProcessKey, Weak<Process>>>,
    sparing: Mutex<Sparing>,
    stage: AtomicU8,
    next_link: AtomicU64,
    events: mpsc::UnboundedSender<Event>,
    /// The control thread looks at the guard for itself.
    tick_wanted: AtomicBool,
    /// Tells it that something waits for time now.
    pub ticker: Notify,
}

impl Hub {
    /// A hub around a guard. Events go to the control thread; their number is bounded by the guard's decisions.
    pub fn new(
        guard: Guard,
        rules: Rules,
        settings: LinkSettings,
        events: mpsc::UnboundedSender<Event>,
    ) -> Self {
        let hub = Self {
            guard: Mutex::new(guard),
            links: DashMap::default(),
            keys: DashMap::default(),
            keys_elsewhere: DashMap::new(),
            facts: Interner::default(),
            rules: ArcSwap::from_pointee(rules),
            epoch: AtomicU32::new(0),
            lanes: ArcSwap::from_pointee(Vec::new()),
            settings: ArcSwap::from_pointee(settings),
            server: watch::Sender::new(None),
            counters: Counters::default(),
            gone: Gone::default(),
            pool: Pool::default(),
            lookups: Lookups::default(),
            authority: Authority::default(),
            processes: Mutex::default(),
            sparing: Mutex::new(Sparing::default()),
            stage: AtomicU8::new(Stage::Running as u8),
            next_link: AtomicU64::new(1),
            events,
            tick_wanted: AtomicBool::new(false),
            ticker: Notify::new(),
        };
        hub.refresh_lanes();
        hub
    }

    /// Runs `f` under the guard's lock, then delivers what it decided. A panic inside would leave the ledger half-updated: the
    /// process ends rather than go on with it.
    pub fn guard<R>(&self, f: impl FnOnce(&mut Guard, Moment) -> R) -> R {
        /// A panic that is unwinding already (and drops a slot on its way) is not the guard's.
        struct AbortOnPanic {
            unwinding: bool,
        }
        impl Drop for AbortOnPanic {
            fn drop(&mut self) {
                if std::thread::panicking() && !self.unwinding {
                    std::process::abort();
                }
            }
        }
        let mut actions = Vec::new();
        let (result, usage, waits) = {
            let mut guard = self.guard.lock();
            let _abort = AbortOnPanic { unwinding: std::thread::panicking() };
            let now = clock::now();
            let result = f(&mut guard, now);
            while let Some(action) = guard.poll_action() {
                actions.push(action);
            }
            let usage = if actions.is_empty() { None } else { guard.usage_percent() };
            // Asked only while the control thread rests: it looks for itself while it ticks.
            let rests = !self.tick_wanted.load(Ordering::Relaxed);
            (result, usage, rests && guard.waits_for_time(now))
        };
        for action in actions {
            self.deliver(action, usage);
        }
        if waits && !self.tick_wanted.swap(true, Ordering::Relaxed) {
            self.ticker.notify_one();
        }
        result
    }

    /// The control thread's turn at the guard: in how long it has to come again. Where nothing waits for time it is told when something
    /// does, by whoever brings it; until then it rests, but never longer than until data becomes too old.
    ///
    /// Who has just been told may not rest yet: those who wait for less than it takes to tell would have it come for each of them.
    pub fn tick(&self, may_rest: bool) -> Rest {
        self.guard(|guard, now| {
            guard.tick(now);
            let stays = !may_rest || guard.waits_for_time(now);
            // Under the guard's lock: who visits it next finds the word said.
            self.tick_wanted.store(stays, Ordering::Relaxed);
            let next = guard.next_tick(now);
            if stays { Rest::For(next.unwrap_or(Duration::MAX)) } else { Rest::UntilTold(next) }
        })
    }

    fn deliver(&self, action: Action, usage: Option<f64>) {
        match action {
            Action::Grant(link) => self.post(link, Command::Granted),
            Action::GrantPooled(link, pooled) => self.post(link, Command::Reused(pooled)),
            // PostgreSQL may have closed it while it was given to somebody: nobody was told then, and nobody watches it.
            Action::ClosePooled(pooled) => {
                if !self.pool.close(pooled) {
                    self.guard(|guard, now| guard.zombie(now, pooled));
                }
            }
            Action::PooledAgain(pooled) => {
                if !self.pool.has(pooled) {
                    self.guard(|guard, now| guard.zombie(now, pooled));
                }
            }
            Action::Refuse(link, refusal) => self.post(link, Command::Refused(refusal)),
            Action::Release(link) => self.post(link, Command::AskAgain),
            Action::RejectHeld(link, refusal) => self.post(link, Command::RejectHeld(refusal)),
            Action::SampleNow => self.tell(Event::SampleNow),
            Action::PausesChanged => self.tell(Event::PausesChanged),
            Action::Timeline { event, lane, link, text, who } => {
                self.tell(Event::Timeline { event, lane, link, text, who, usage });
            }
        }
    }

    /// Sends a command to a link; a link that is gone needs none.
    pub fn post(&self, link: LinkId, command: Command) {
        let found = self.links.get(&link).map(|entry| entry.value().clone());
        if let Some(link) = found {
            link.post(command);
        }
    }

    /// Tells the control thread. It is gone only at the end of the process.
    pub fn tell(&self, event: Event) {
        let _ = self.events.send(event);
    }

    /// Puts an entry of pgweir's own into the timeline.
    pub fn note(&self, event: &'static str, lane: Option<Arc<str>>, link: Option<LinkId>, text: String) {
        let usage = self.guard.lock().usage_percent();
        self.tell(Event::Timeline { event, lane, link, text, who: "pgweir".to_owned(), usage });
    }

    /// Whether a refusal goes into the log: in a storm not each does. `lane` is empty where it is not known.
    pub fn may_log(&self, lane: &Arc<str>, reason: Reason) -> bool {
        self.sparing.lock().may_say(clock::now(), lane, reason)
    }

    /// Puts into the log how many refusals were left out of it.
    pub fn log_left_out(&self) {
        for left in self.sparing.lock().settle(clock::now()) {
            tracing::info!(lane = %left.lane, reason = left.reason.label(), count = left.count, "refused, and not logged one by one");
        }
    }

    /// The next link's name.
    pub fn next_link(&self) -> LinkId {
        LinkId(self.next_link.fetch_add(1, Ordering::Relaxed))
    }

    /// The lane of an id. Lanes are never taken out, only retired.
    pub fn lane(&self, id: LaneId) -> Option<Arc<Lane>> {
        self.lanes.load().get(usize::from(id.0)).cloned()
    }

    /// Makes the workers' view of the lanes anew from the guard's; meters stay.
    pub fn refresh_lanes(&self) {
        let old = self.lanes.load_full();
        let guard = self.guard.lock();
        let lanes = (0..guard.lane_count())
            .map(LaneId)
            .map(|id| {
                let meter = old.get(usize::from(id.0)).map_or_else(Arc::default, |lane| lane.meter.clone());
                Arc::new(Lane {
                    id,
                    name: guard.lane_name(id),
                    gate: guard.gate(id),
                    meter,
                    settings: guard.lane_settings(id).clone(),
                })
            })
            .collect();
        let lanes: Vec<Arc<Lane>> = lanes;
        self.pool.set_enabled(lanes.iter().any(|lane| lane.settings.pooling.is_some()));
        self.lanes.store(Arc::new(lanes));
    }

    /// The shared record of a client process.
    pub fn process(&self, key: &ProcessKey) -> Arc<Process> {
        let mut processes = self.processes.lock();
        if let Some(known) = processes.get(key).and_then(Weak::upgrade) {
            return known;
        }
        let process = Arc::new(Process {
            key: key.clone(),
            in_transaction: AtomicU32::new(0),
            links: AtomicU32::new(0),
        });
        processes.insert(key.clone(), Arc::downgrade(&process));
        process
    }

    /// What clients did since start, by database.
    pub fn totals(&self) -> ByDatabase {
        self.gone.with(|| {
            self.links.iter().filter_map(|entry| {
                let totals = entry.value().totals()?;
                Some((entry.value().with_labels(|labels| labels.facts.database.clone()), totals))
            })
        })
    }

    /// Forgets facts and client processes without links. [`Hub::forget_process`] does so at once; this catches what a panic, or
    /// somebody who looked at the link's labels meanwhile, left.
    pub fn forget_processes(&self) {
        self.facts.clean();
        self.authority.clean();
        self.processes.lock().retain(|_, process| process.strong_count() > 0);
    }

    /// Forgets a client process whose last link is gone.
    pub fn forget_process(&self, key: &ProcessKey) {
        let mut processes = self.processes.lock();
        if processes.get(key).is_some_and(|known| known.strong_count() == 0) {
            processes.remove(key);
        }
    }

    /// Another server, or none, is dialled from now on. What was dialled before is not pooled any more, nor counted where it ends.
    pub fn dial_only(&self, server: Option<Arc<Server>>) {
        let here = server.as_ref().map(|server| self.links_on(server));
        self.guard(|guard, now| {
            // Under the guard's lock: who dials the new one by then tells the guard of it afterwards.
            self.server.send_replace(server);
            // After the server, see [`Pool::epoch`].
            self.pool.upstream_changed();
            guard.server_changed(now, here.as_deref());
            guard.drain_pool(now, None, false);
        });
    }

    /// The only server is dialled under another address from now on. Who is connected stays, and counts, as if nothing had changed.
    pub fn dial_alone(&self, server: Arc<Server>) {
        self.dial_at(server);
        self.pool.upstream_changed();
        self.guard(|guard, now| guard.drain_pool(now, None, false));
    }

    /// Links that are logged in to a server, with their pids.
    fn links_on(&self, server: &Server) -> Vec<(LinkId, i32)> {
        let on = |link: &LinkShared| {
            let its = link.cancel_keys().and_then(CancelKeys::server);
            let pid = link.pid.load(Ordering::Relaxed);
            its.is_some_and(|its| server.is(its)).then_some((link.id, pid))
        };
        self.links.iter().filter_map(|entry| on(entry.value())).collect()
    }

    /// Whether a server is the one that is dialled.
    pub fn dials(&self, server: &Server) -> bool {
        self.server.borrow().as_ref().is_some_and(|current| current.is(server))
    }

    /// The pid of a link's backend; 0 where it has none, or one of a server that is not dialled any more.
    pub fn pid_here(&self, link: &LinkShared) -> i32 {
        let is_elsewhere = |keys: &CancelKeys| keys.server().is_some_and(|server| !self.dials(server));
        if link.cancel_keys().is_some_and(is_elsewhere) { 0 } else { link.pid.load(Ordering::Relaxed) }
    }

    /// Everybody with this pid, on whatever server.
    pub fn owners(&self, pid: i32) -> Vec<Arc<LinkShared>> {
        let mut owners: Vec<_> = self.keys.get(&pid).map(|owner| owner.clone()).into_iter().collect();
        if !self.keys_elsewhere.is_empty() {
            let all = self.keys_elsewhere.iter().filter(|entry| entry.key().0 == pid);
            owners.extend(all.map(|entry| entry.value().clone()));
        }
        owners
    }

    /// The server that is dialled is to be found elsewhere, or its place is known better. Nobody who dials it is disturbed.
    pub fn dial_at(&self, server: Arc<Server>) {
        self.server.send_if_modified(|old| {
            *old = Some(server);
            false
        });
    }

    /// How far a shutdown has come.
    pub fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Acquire) {
            0 => Stage::Running,
            1 => Stage::Draining,
            _ => Stage::Ending,
        }
    }

    /// Moves a shutdown on.
    pub fn set_stage(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Release);
    }
}

/// A link's place in registry and cancel table; dropping it takes the link out of both.
pub struct Registered {
    hub: Arc<Hub>,
    /// The link.
    pub shared: Arc<LinkShared>,
    key: Option<i32>,
}

impl Registered {
    /// Enters a link into the registry.
    pub fn new(hub: Arc<Hub>, shared: Arc<LinkShared>) -> Self {
        hub.links.insert(shared.id, shared.clone());
        hub.counters.sessions.fetch_add(1, Ordering::Relaxed);
        Self { hub, shared, key: None }
    }

    /// Enters its client process.
    pub fn set_process(&mut self, key: &ProcessKey) -> Arc<Process> {
        let process = self.hub.process(key);
        process.links.fetch_add(1, Ordering::Relaxed);
        self.shared.with_labels(|labels| labels.process = Some(process.clone()));
        process
    }

    /// Enters its cancel keys.
    pub fn set_key(&mut self, pid: i32, keys: CancelKeys) {
        let server = keys.server().cloned();
        self.shared.set_cancel_keys(keys);
        self.key = Some(pid);
        let Some(other) = self.hub.keys.insert(pid, self.shared.clone()) else { return };
        let its_server = other.cancel_keys().and_then(CancelKeys::server);
        if server.as_ref().zip(its_server).is_some_and(|(server, its)| !server.is_at(its)) {
            // Another server gives its pids without regard to this one's. Where it ended meanwhile nobody else takes it out.
            let place = (pid, other.id);
            self.hub.keys_elsewhere.insert(place, other);
            if !self.hub.links.contains_key(&place.1) {
                self.hub.keys_elsewhere.remove(&place);
            }
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // Whoever still holds it sees that it is over, however it ended.
        if self.shared.state().0 != LinkState::Closing {
            self.shared.enter(LinkState::Closing, clock::now());
        }
        let database = self.shared.with_labels(|labels| labels.facts.database.clone());
        self.hub.gone.retire(&database, self.shared.totals(), || {
            self.hub.links.remove(&self.shared.id);
        });
        self.hub.counters.sessions.fetch_sub(1, Ordering::Relaxed);
        if let Some(pid) = self.key {
            self.hub.keys.remove_if(&pid, |_, owner| owner.id == self.shared.id);
            if !self.hub.keys_elsewhere.is_empty() {
                self.hub.keys_elsewhere.remove(&(pid, self.shared.id));
            }
        }
        if let Some(process) = self.shared.with_labels(|labels| labels.process.take()) {
            process.links.fetch_sub(1, Ordering::Relaxed);
            let key = process.key.clone();
            drop(process);
            self.hub.forget_process(&key);
        }
    }
}

/// The proof of a grant. Dropping it gives the slot back: at once while nothing was dialled, else as a zombie that a later sample
/// must confirm. Only [`Slot::released`] frees a dialled slot at once.
pub struct Slot {
    hub: Arc<Hub>,
    link: LinkId,
    dialled: bool,
    done: bool,
}

impl Slot {
    /// The proof for a link the guard has just granted.
    pub fn new(hub: Arc<Hub>, link: LinkId) -> Self {
        Self { hub, link, dialled: false, done: false }
    }

    /// A connection to PostgreSQL is being made: from here on only EOF frees the slot.
    pub fn dialled(&mut self, local: Option<SocketAddr>) {
        self.dialled = true;
        self.hub.guard(|guard, now| guard.dialling(now, self.link, local));
    }

    /// The link that holds it.
    pub fn link(&self) -> LinkId {
        self.link
    }

    /// It is that of a pooled connection, which has been taken: from here on only EOF frees the slot.
    pub fn inherited(&mut self) {
        self.dialled = true;
    }

    /// EOF or RST was seen from PostgreSQL, or it never got a startup packet.
    pub fn released(mut self) {
        self.release_now();
    }

    /// The same in place, for a slot that is given up while its holder lives on.
    pub fn release_now(&mut self) {
        if !std::mem::replace(&mut self.done, true) {
            self.hub.guard(|guard, now| guard.closed(now, self.link));
        }
    }

    /// The guard has already taken the slot back (a failed dial).
    pub fn forget(mut self) {
        self.done = true;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let link = self.link;
        if self.dialled {
            self.hub.guard(|guard, now| guard.zombie(now, link));
        } else {
            self.hub.guard(|guard, now| guard.hang_up(now, link));
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
