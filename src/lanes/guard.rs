//! The guard: one plain value that knows every link's lane, slot and place, and decides. Entered under the shell's lock; time is passed in;
//! what is to be done comes back as [`Action`]s, to be drained after unlocking.
//!
//! A link the guard does not know (any more) is ignored by every method: hang-ups race with everything.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use super::breaker::Breaker;
use super::gate::LaneGate;
use super::ids::{LaneId, LinkId};
use super::ledger::{Ledger, Phase};
use super::near::Ends;
use super::pass::Stops;
use super::pause::{Chain, Pause};
use super::pool::{Pool, PoolKey};
use super::queue::{Place, Queue};
use super::ramp::Ramp;
use super::rate::{Jitter, Rate};
use super::sample::Sample;
use super::settings::{Disposition, LaneSettings, Limits, Settings};
use super::shed::{Shed, Thresholds};
use super::usage::{self, Usage, ZOMBIE_MAX};
use crate::clock::Moment;
use crate::reason::{Reason, Refusal};

/// Who pgweir itself is, in the timeline.
pub(super) const SELF: &str = "pgweir";

/// A client that wants a slot.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Its lane.
    pub lane: LaneId,
    /// Normalised application.
    pub application: Arc<str>,
    /// User.
    pub user: Arc<str>,
    /// Database.
    pub database: Arc<str>,
    /// Client address; none for a Unix socket.
    pub address: Option<IpAddr>,
    /// Whether it asks for replication.
    pub replication: bool,
    /// Whether its client process has another link in a transaction, which must not wait for this one: it passes a pause that holds,
    /// and nothing else.
    pub nested: bool,
    /// Whether its client process has no other link: with `links_per_process` it waits until the lane has room for all of its process.
    /// A process that keeps others when this one goes is not counted any more: the quota is exact, this is not.
    pub alone: bool,
    /// Which pooled connections it may be given; none for those that are to have one of their own.
    pub key: Option<PoolKey>,
}

/// What became of an arrival or a redial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrived {
    /// It has a slot: dial.
    Granted,
    /// It has the slot of this pooled connection: take it, and say [`Guard::revived`] or [`Guard::stale`].
    Reused(LinkId),
    /// It is in its lane's queue, for this reason; an [`Action`] tells the end.
    Waiting(Reason),
    /// It is forgotten: tell the client.
    Refused(Refusal),
}

/// Why a dial failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialFailure {
    /// Not reached, starting up or shutting down; with the cause, for the timeline.
    Down(String),
    /// A true "sorry, too many clients already".
    Full,
    /// A CONNECTION LIMIT of role or database was reached, and room has been made.
    Limited,
    /// Another server is dialled by now, or none.
    Moved,
}

/// Whether a transaction may begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// It may.
    Go {
        /// It counts in a ramp: call [`Guard::end`] when it is over.
        counted: bool,
    },
    /// Hold it until [`Action::Release`] or [`Action::RejectHeld`].
    Hold(Reason),
    /// Refuse it.
    Reject(Refusal),
}

/// What the shell has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// A waiting link has a slot: dial.
    Grant(LinkId),
    /// A waiting link has the slot of a pooled connection: as [`Arrived::Reused`].
    GrantPooled(LinkId, LinkId),
    /// Close a pooled connection.
    ClosePooled(LinkId),
    /// A connection that was given to somebody is pooled again: where it has ended meanwhile, it is a [`Guard::zombie`].
    PooledAgain(LinkId),
    /// A waiting link is refused and forgotten.
    Refuse(LinkId, Refusal),
    /// A held link may go on: call [`Guard::begin`] again.
    Release(LinkId),
    /// A held link is not held any more: tell its client.
    RejectHeld(LinkId, Refusal),
    /// Ask the monitor for a sample now.
    SampleNow,
    /// [`Guard::pauses`] changed: write the state file.
    PausesChanged,
    /// For the timeline.
    Timeline {
        /// One word.
        event: &'static str,
        /// Lane, where it concerns one.
        lane: Option<Arc<str>>,
        /// Link, where it concerns one.
        link: Option<LinkId>,
        /// For people.
        text: String,
        /// The operator, or "pgweir".
        who: String,
    },
}

/// Whether a leak in a lane and application does harm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Harm {
    /// Its lane or application is full, and others wait.
    pub full_with_waiters: bool,
    /// Usage is above the lane's `shed_below`.
    pub usage_above_shed_below: bool,
}

/// Counters since start.
#[derive(Clone, Debug, Default)]
pub(super) struct Counters {
    pub admitted: u64,
    pub shed: u64,
    pub refused: BTreeMap<Reason, u64>,
    /// Of `refused`, those whom mode observe let in.
    pub spared: BTreeMap<Reason, u64>,
    pub resets: u64,
}

/// A lane and what goes on in it.
#[derive(Debug)]
pub(super) struct Lane {
    pub settings: LaneSettings,
    /// Missing in the present settings: admits nobody, lives until its slots are gone.
    pub retired: bool,
    /// Its reserve is for replication links only, which need nothing of the budget.
    pub replication_only: bool,
    /// SET LANE, until the next reload.
    pub quota_set: Option<u32>,
    pub gate: Arc<LaneGate>,
    pub queue: Queue,
    pub held: Queue,
    pub pause: Option<Pause>,
    pub ramp: Option<Ramp>,
    /// Which ramp it is: a transaction counted in an earlier one is void.
    pub epoch: u64,
    /// Transactions counted in this ramp.
    pub transactions: u32,
    /// Since when it is paused or ramping, without a break.
    pub stopped_since: Option<Moment>,
    /// When it was opened last: waits begin anew.
    pub fresh_from: Moment,
    pub shed: Shed,
    pub rate: Rate,
    pub stops: Stops,
    pub counters: Counters,
    /// Observe mode: what was not put on record since when, by reason.
    pub observed: BTreeMap<Reason, (Moment, u64)>,
    /// Nested links and transactions that passed a pause or ramp since start, and when the next entry may say so.
    pub exempt: (u64, Moment),
}

impl Lane {
    pub(super) fn new(settings: LaneSettings) -> Self {
        Self {
            rate: Rate::new(settings.connect_rate),
            replication_only: is_replication_only(&settings),
            settings,
            retired: false,
            quota_set: None,
            gate: Arc::new(LaneGate::new()),
            queue: Queue::default(),
            held: Queue::default(),
            pause: None,
            ramp: None,
            epoch: 0,
            transactions: 0,
            stopped_since: None,
            fresh_from: Moment::default(),
            shed: Shed::default(),
            stops: Stops::default(),
            counters: Counters::default(),
            observed: BTreeMap::new(),
            exempt: (0, Moment::default()),
        }
    }

    /// Slots at most, SET LANE included, ramp left out.
    pub(super) fn quota(&self) -> u32 {
        if self.retired { 0 } else { self.quota_set.unwrap_or(self.settings.quota) }
    }

    /// Slots that are always there for it.
    pub(super) fn floor(&self) -> u32 {
        if self.replication_only { 0 } else { self.settings.reserve.min(self.quota()) }
    }

    /// Whether a pause lets this place pass: what it holds may depend on a nested link's end. One that refuses holds nobody.
    pub(super) fn passes_pause(&self, place: Place) -> bool {
        place.nested() && self.pause.as_ref().is_some_and(|pause| pause.how == Disposition::Hold)
    }

    /// Neither paused nor ramping.
    pub(super) fn is_open(&self) -> bool {
        self.pause.is_none() && self.ramp.is_none()
    }

    /// None for lanes that are never shed.
    pub(super) fn thresholds(&self) -> Option<Thresholds> {
        let above = self.settings.shed_above.filter(|_| !self.settings.protected)?;
        Some(Thresholds { above, below: self.settings.shed_below, dwell: self.settings.shed_dwell })
    }
}

/// Whether a lane is for replication links only, which PostgreSQL counts in another pool.
pub fn is_replication_only(settings: &LaneSettings) -> bool {
    !settings.rules.is_empty() && settings.rules.iter().all(|rule| rule.replication == Some(true))
}

/// See the module.
#[derive(Debug)]
pub struct Guard {
    pub(super) limits: Limits,
    pub(super) applications: Vec<super::settings::ApplicationSettings>,
    /// By [`LaneId`]; never shrinks.
    pub(super) lanes: Vec<Lane>,
    pub(super) by_name: BTreeMap<Arc<str>, LaneId>,
    /// Lanes of the present settings, best priority first, then in file order.
    pub(super) order: Vec<LaneId>,
    /// The same in file order.
    pub(super) file_order: Vec<LaneId>,
    pub(super) default: LaneId,
    pub(super) ledger: Ledger,
    pub(super) ends: Ends,
    pub(super) usage: Usage,
    pub(super) breaker: Breaker,
    /// Whose dial began before is on another server than the one that is dialled now.
    pub(super) moved_at: Moment,
    /// But for these: they were on it already. Links that ended since may be among them.
    pub(super) here: BTreeSet<LinkId>,
    pub(super) pool: Pool,
    pub(super) jitter: Jitter,
    pub(super) chain: Option<Chain>,
    pub(super) too_many_clients: u64,
    pub(super) was_stale: bool,
    /// What the timeline last said of reserves beyond the budget.
    pub(super) reserves_said: Option<String>,
    pub(super) arrivals: u64,
    /// The link whose fate is the return value of the present call, not an action.
    pub(super) caller: Option<LinkId>,
    pub(super) caller_refusal: Option<Refusal>,
    actions: VecDeque<Action>,
}

impl Guard {
    /// A guard with `settings`, which must name at least one lane; `seed` is for the jitter of back-offs.
    pub fn new(settings: Settings, seed: u64, now: Moment) -> Self {
        let mut guard = Self {
            limits: settings.limits.clone(),
            applications: Vec::new(),
            lanes: Vec::new(),
            by_name: BTreeMap::new(),
            order: Vec::new(),
            file_order: Vec::new(),
            default: LaneId(0),
            ledger: Ledger::default(),
            ends: Ends::default(),
            usage: Usage::new(now),
            breaker: Breaker::default(),
            moved_at: Moment::default(),
            here: BTreeSet::new(),
            pool: Pool::default(),
            jitter: Jitter::new(seed),
            chain: None,
            too_many_clients: 0,
            was_stale: false,
            reserves_said: None,
            arrivals: 0,
            caller: None,
            caller_refusal: None,
            actions: VecDeque::new(),
        };
        guard.install(now, settings);
        guard
    }

    /// A lane of the present settings.
    pub fn lane(&self, name: &str) -> Option<LaneId> {
        self.by_name.get(name).copied().filter(|id| !self.lane_ref(*id).retired)
    }

    /// A lane's name.
    pub fn lane_name(&self, lane: LaneId) -> Arc<str> {
        self.lane_ref(lane).settings.name.clone()
    }

    /// A lane's gate, for the links in it to read.
    pub fn gate(&self, lane: LaneId) -> Arc<LaneGate> {
        self.lane_ref(lane).gate.clone()
    }

    /// A lane's settings as configured.
    pub fn lane_settings(&self, lane: LaneId) -> &LaneSettings {
        &self.lane_ref(lane).settings
    }

    /// The lane, or the default one for an id of another process.
    pub(super) fn lane_ref(&self, lane: LaneId) -> &Lane {
        &self.lanes[usize::from(self.known(lane).0)]
    }

    pub(super) fn lane_mut(&mut self, lane: LaneId) -> &mut Lane {
        let known = self.known(lane);
        &mut self.lanes[usize::from(known.0)]
    }

    pub(super) fn known(&self, lane: LaneId) -> LaneId {
        if usize::from(lane.0) < self.lanes.len() { lane } else { self.default }
    }

    /// What the monitor saw. A sample asked for before the last one is ignored.
    pub fn sample(&mut self, now: Moment, sample: &Sample) {
        // Of the server before this one.
        if sample.asked_at < self.moved_at {
            return;
        }
        for link in usage::proven_gone(sample, &self.ledger) {
            self.forget_quietly(now, link);
        }
        if self.usage.take(sample, &self.ledger) {
            self.mark_renamed(sample);
            self.watch_reserves();
            self.pause_ramps_above(now, sample.asked_at);
        }
        self.settle(now);
    }

    /// What time alone changes. Call it when [`Guard::next_tick`] says so, or more often.
    pub fn tick(&mut self, now: Moment) {
        self.usage.expire_latch(now, &self.limits);
        self.expire_zombies(now);
        self.advance_pauses(now);
        self.expire_pool(now);
        self.settle(now);
        if self.expire_waits(now) {
            self.settle(now);
        }
    }

    fn expire_zombies(&mut self, now: Moment) {
        if self.limits.monitored && !self.usage.is_stale(now, &self.limits) {
            return;
        }
        let old = self.ledger.iter().filter(|(_, known)| match known.phase {
            Phase::Zombie => now.since(known.extra().zombie_since) >= ZOMBIE_MAX,
            _ => false,
        });
        for link in old.map(|(id, _)| id).collect::<Vec<_>>() {
            let lane = self.ledger.get(link).map(|known| self.lane_name(known.home));
            let text = "an upstream connection nobody watches was given up: no sample tells whether its backend is gone";
            self.timeline("zombie", lane, Some(link), text.to_owned(), SELF);
            self.forget_quietly(now, link);
        }
    }

    /// The common end of every event: what follows from the new state of things.
    pub(super) fn settle(&mut self, now: Moment) {
        let stale = self.usage.is_stale(now, &self.limits);
        if stale != self.was_stale {
            self.was_stale = stale;
            let (event, text) = if stale {
                let are = if self.limits.observe { "would be" } else { "are" };
                ("monitor_stale", format!("usage is unknown: lanes with shed_above {are} shed"))
            } else {
                ("monitor_ok", "usage is known again".to_owned())
            };
            self.timeline(event, None, None, text, SELF);
        }
        if !self.usage.is_latched() {
            self.breaker.no_longer_full(now);
        }
        self.evaluate_shed(now);
        self.trim_pool();
        self.pass(now);
    }

    pub(super) fn evaluate_shed(&mut self, now: Moment) {
        let usage = self.usage_percent();
        for index in 0..self.lanes.len() {
            let lane = &mut self.lanes[index];
            let Some(limits) = lane.thresholds().filter(|_| !lane.retired) else {
                lane.shed.clear();
                continue;
            };
            if !lane.shed.evaluate(now, limits, usage, self.was_stale) {
                continue;
            }
            let shown = usage.map_or_else(|| "unknown".to_owned(), |usage| format!("{usage:.1} %"));
            let name = Some(lane.settings.name.clone());
            if lane.shed.is_on() {
                let cause = if self.was_stale {
                    "the monitor is stale".to_owned()
                } else {
                    format!("shed_above {}", limits.above)
                };
                let would = if self.limits.observe { "would shed: " } else { "" };
                self.timeline("shed", name, None, format!("{would}usage {shown}, {cause}"), SELF);
                let waiting: Vec<_> = self.lanes[index].queue.iter().map(|(_, link)| link).collect();
                waiting.into_iter().for_each(|link| self.reject_if_told_to(now, link));
            } else {
                let would = if self.limits.observe { "would shed no longer: " } else { "" };
                let text = format!("{would}usage {shown}, shed_below {}", limits.below);
                self.timeline("unshed", name, None, text, SELF);
            }
        }
    }

    /// Why a lane is shed.
    pub(super) fn shed_reason(&self) -> Reason {
        if self.was_stale { Reason::MonitorStale } else { Reason::Shed }
    }

    pub(super) fn grant_action(&mut self, link: LinkId) {
        if self.caller != Some(link) {
            self.act(Action::Grant(link));
        }
    }

    pub(super) fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    /// The same, unless it is already to be done.
    pub(super) fn act_once(&mut self, action: Action) {
        if !self.actions.contains(&action) {
            self.act(action);
        }
    }

    pub(super) fn next_seq(&mut self) -> u64 {
        self.arrivals += 1;
        self.arrivals
    }

    pub(super) fn timeline(
        &mut self,
        event: &'static str,
        lane: Option<Arc<str>>,
        link: Option<LinkId>,
        text: String,
        who: &str,
    ) {
        self.act(Action::Timeline { event, lane, link, text, who: who.to_owned() });
    }

    /// The next thing to do, in order. Drain it after every call: what is not drained is not done.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Usage in percent of usable; none until known.
    pub fn usage_percent(&self) -> Option<f64> {
        self.usage.percent(self.ledger.counts().own)
    }

    /// Whether usage is unknown because the monitor is silent.
    pub fn is_stale(&self, now: Moment) -> bool {
        self.usage.is_stale(now, &self.limits)
    }

    /// Whether the counts are those of the links: for tests, slow.
    pub fn audit(&self) -> Result<(), String> {
        self.ledger.audit()?;
        self.pool.audit()?;
        let pooled = self.ledger.iter().filter(|(_, link)| link.phase == Phase::Pooled);
        let unknown = pooled.filter(|(id, _)| self.pool.get(*id).is_none()).count();
        let lost = self
            .pool
            .iter()
            .filter(|(id, _)| self.ledger.get(*id).is_none_or(|link| link.phase != Phase::Pooled))
            .count();
        if unknown + lost > 0 {
            return Err(format!("{unknown} pooled links not in the pool, {lost} in the pool only"));
        }
        if self.forgets_a_timer() {
            return Err("a lane that waits for time is taken for quiet".to_owned());
        }
        let queued: usize = self.lanes.iter().map(|lane| lane.queue.len()).sum();
        if queued == self.ledger.counts().waiting as usize {
            Ok(())
        } else {
            Err(format!("{queued} links in queues, {} links waiting", self.ledger.counts().waiting))
        }
    }
}
