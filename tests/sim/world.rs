//! A shell and a PostgreSQL in miniature around the guard, with counts of its own: the shadow model.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use pgweir::clock::Moment;
use pgweir::lanes::guard::{Action, Arrival, Arrived, Begun, DialFailure, Guard};
use pgweir::lanes::ids::{LaneId, LinkId};
use pgweir::lanes::pause::PauseRecord;
use pgweir::lanes::pool::PoolKey;
use pgweir::lanes::settings::{Disposition, Settings};
use pgweir::leaks::judge::Judge;
use pgweir::reason::Reason;
use pgweir::snapshot::LaneState;

use crate::config;
use crate::dice::Dice;
use crate::monitor::Pending;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Waiting,
    Dialling,
    Login,
    Established,
    Pooled,
    /// It was given the pooled connection of this name, and has not looked at it yet.
    Taken(u64),
    Closing,
    Zombie(Moment),
    Over,
}

#[derive(Clone, Debug)]
pub struct Shadow {
    pub lane: String,
    pub visiting: Option<String>,
    pub application: &'static str,
    pub user: &'static str,
    pub address: Option<IpAddr>,
    pub replication: bool,
    pub nested: bool,
    pub alone: bool,
    pub since: Moment,
    pub requeued: bool,
    pub state: State,
    pub local: Option<SocketAddr>,
    pub pid: i32,
    /// Whether the guard was told the pid.
    pub pid_known: bool,
    /// The guard gave its slot up without having seen its backend go.
    pub orphan: bool,
    /// Whether PostgreSQL has a backend for it.
    pub backend: bool,
    pub in_transaction: Option<Moment>,
    pub counted: bool,
    /// Counted in the ramp that is under way.
    pub ramped: bool,
    pub held: bool,
    /// Released, not begun again yet.
    pub released: bool,
    pub generation: u64,
    pub reset_at: Option<Moment>,
    /// What its startup packet says.
    pub key: Option<&'static str>,
}

impl Shadow {
    pub fn has_slot(&self) -> bool {
        !matches!(self.state, State::Waiting | State::Over)
    }

    pub fn is_login(&self) -> bool {
        matches!(self.state, State::Dialling | State::Login)
    }

    pub fn give_up(&mut self) {
        self.state = State::Over;
        self.orphan = true;
        self.backend = false;
    }

    pub fn counts_in(&self) -> &str {
        self.visiting.as_deref().unwrap_or(&self.lane)
    }
}

pub struct World {
    pub seed: u64,
    pub dice: Dice,
    pub settings: Settings,
    pub guard: Guard,
    pub judge: Judge,
    pub now: Moment,
    /// Those that are not over when a call begins.
    pub links: BTreeMap<u64, Shadow>,
    /// Those that are.
    pub gone: BTreeMap<u64, Shadow>,
    /// Those of lanes the configuration does not name any more included.
    ids: BTreeMap<String, LaneId>,
    pub quotas: BTreeMap<String, u32>,
    pub foreign: u32,
    pub max_connections: u32,
    pub unix: bool,
    pub pending: Vec<Pending>,
    pub last_sample: Option<(Moment, u32, u32)>,
    pub stopped: BTreeSet<String>,
    pub open_since: BTreeMap<String, Moment>,
    /// Granted in the present call.
    pub granted: Vec<u64>,
    /// Whether PostgreSQL was in trouble when the present call began.
    pub was_in_trouble: bool,
    /// Lanes shed when the present call began.
    pub was_shed: BTreeSet<String>,
    pub admitted: BTreeSet<u64>,
    /// Pooled connections whose slot another link has, until that says what became of them.
    pub kept: BTreeMap<u64, Shadow>,
    pub reused: u64,
    pub evicted: u64,
    pub refused: u64,
    pub unshed: BTreeSet<String>,
    pub resets: Vec<Moment>,
    pub acted: BTreeMap<(u64, u64), u32>,
    pub trace: u64,
    pub steps: u64,
    next_link: u64,
    next_pid: i32,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let settings = config::random(&mut dice);
        let now = Moment::from_micros(1_000_000);
        let guard = Guard::new(settings.clone(), seed, now);
        let mut judge = Judge::new(settings.limits.max_resets_per_minute);
        judge.configure(settings.limits.max_resets_per_minute, settings.limits.observe);
        let max_connections = dice.range(8, 40) as u32;
        let unix = dice.one_in(4);
        let mut world = Self {
            seed,
            dice,
            guard,
            judge,
            now,
            links: BTreeMap::new(),
            gone: BTreeMap::new(),
            ids: BTreeMap::new(),
            quotas: BTreeMap::new(),
            foreign: 1,
            max_connections,
            unix,
            pending: Vec::new(),
            last_sample: None,
            stopped: BTreeSet::new(),
            open_since: BTreeMap::new(),
            granted: Vec::new(),
            was_in_trouble: false,
            was_shed: BTreeSet::new(),
            admitted: BTreeSet::new(),
            kept: BTreeMap::new(),
            reused: 0,
            evicted: 0,
            refused: 0,
            unshed: BTreeSet::new(),
            resets: Vec::new(),
            acted: BTreeMap::new(),
            trace: 0,
            steps: 0,
            next_link: 0,
            next_pid: 100,
            settings: settings.clone(),
        };
        world.take_quotas(&settings);
        world
    }

    pub fn take_quotas(&mut self, settings: &Settings) {
        self.quotas = settings.lanes.iter().map(|lane| (lane.name.to_string(), lane.quota)).collect();
        self.settings = settings.clone();
        for lane in &settings.lanes {
            if let Some(id) = self.guard.lane(&lane.name) {
                let known = self.ids.insert(lane.name.to_string(), id);
                self.check(known.is_none_or(|known| known == id), || {
                    format!("{} has another id now", lane.name)
                });
            }
        }
    }

    pub fn lane(&self, name: &str) -> LaneId {
        self.ids.get(name).copied().unwrap_or_else(|| self.bad(&format!("lane {name} is unknown")))
    }

    /// Whether a lane is paused and refuses those it stops.
    pub fn pause_refuses(&self, lane: &str) -> bool {
        let refuses = |record: &PauseRecord| record.ramp_over.is_none() && record.how == Disposition::Reject;
        self.guard.pauses().iter().any(|record| &*record.lane == lane && refuses(record))
    }

    pub fn bad(&self, what: &str) -> ! {
        panic!(
            "{what}\nat {:?}, step {}\nreplay: PGWEIR_SIM_SEED={} cargo test --test sim",
            self.now, self.steps, self.seed
        )
    }

    pub fn check(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.bad(&what());
        }
    }

    pub fn some(&mut self, wanted: impl Fn(&Shadow) -> bool) -> Option<u64> {
        let ids: Vec<u64> = self.links.iter().filter(|(_, link)| wanted(link)).map(|(id, _)| *id).collect();
        self.dice.pick(&ids)
    }

    pub fn link(&mut self, id: u64) -> &mut Shadow {
        self.links.get_mut(&id).expect("a link of the model")
    }

    pub fn arrive(&mut self) {
        let lanes: Vec<String> = self.settings.lanes.iter().map(|lane| lane.name.to_string()).collect();
        let lane = lanes[self.dice.below(lanes.len() as u64) as usize].clone();
        let application = self.dice.pick(&config::APPLICATIONS).expect("some");
        let user = self.dice.pick(&config::USERS).expect("some");
        let replication = self.dice.one_in(12);
        // As a packet would, it names user and application.
        let key = self.dice.pick(&config::keys(user, application)).flatten().filter(|_| !replication);
        self.arrive_as(lane, application, user, key, replication);
    }

    /// Another client of the program that left a pooled connection.
    pub fn arrive_again(&mut self, pooled: u64) {
        let left = self.links[&pooled].clone();
        if self.settings.lanes.iter().any(|lane| *lane.name == *left.lane) {
            self.arrive_as(left.lane, left.application, left.user, left.key, false);
        }
    }

    fn arrive_as(
        &mut self,
        lane: String,
        application: &'static str,
        user: &'static str,
        key: Option<&'static str>,
        replication: bool,
    ) {
        let host = self.dice.range(1, 4) as u8;
        let address = (!self.dice.one_in(4)).then(|| IpAddr::from([10, 0, 0, host]));
        let nested = self.dice.one_in(8);
        self.next_link += 1;
        let id = self.next_link;
        let alone = !nested && id.is_multiple_of(2);
        let shadow = Shadow {
            lane: lane.clone(),
            visiting: None,
            application,
            user,
            address,
            replication,
            nested,
            alone,
            since: self.now,
            requeued: false,
            state: State::Waiting,
            local: None,
            pid: 0,
            pid_known: false,
            orphan: false,
            backend: false,
            in_transaction: None,
            counted: false,
            ramped: false,
            held: false,
            released: false,
            generation: 0,
            reset_at: None,
            key,
        };
        self.links.insert(id, shadow);
        let who = Arrival {
            lane: self.lane(&lane),
            application: application.into(),
            user: user.into(),
            database: "db".into(),
            address,
            replication,
            nested,
            alone,
            key: key.map(|key| PoolKey::new(key.as_bytes())),
        };
        let arrived = self.guard.arrive(self.now, LinkId(id), who);
        let waits = matches!(arrived, Arrived::Waiting(_));
        self.arrived(id, arrived);
        self.settle();
        if waits && self.links.get(&id).is_some_and(|link| link.state == State::Waiting) {
            let waiting = self.waiting_in(&lane).count();
            let max =
                self.settings.lanes.iter().find(|one| *one.name == *lane).map_or(0, |one| one.max_waiting);
            self.check(waiting <= max as usize, || format!("{waiting} wait in {lane}, {max} may"));
        }
    }

    fn arrived(&mut self, id: u64, arrived: Arrived) {
        match arrived {
            Arrived::Granted => self.grant(id),
            Arrived::Reused(pooled) => self.grant_pooled(id, pooled.0),
            Arrived::Refused(refusal) => self.refuse(id, refusal.reason),
            Arrived::Waiting(reason) => self.mix(reason as u64),
        }
    }

    fn grant(&mut self, id: u64) {
        self.check(self.links.get(&id).is_some_and(|link| link.state == State::Waiting), || {
            format!("link {id} was granted but does not wait: {:?}", self.links.get(&id))
        });
        self.link(id).state = State::Dialling;
        self.admitted.insert(id);
        self.granted.push(id);
    }

    fn grant_pooled(&mut self, id: u64, pooled: u64) {
        let kept = self.links.get(&pooled).filter(|kept| kept.state == State::Pooled).cloned();
        let Some(kept) = kept else {
            self.bad(&format!("link {id} was given {pooled}, which is not pooled"));
        };
        let link = &self.links[&id];
        let fits =
            link.key.is_some() && link.key == kept.key && link.lane == kept.lane && link.user == kept.user;
        self.check(fits && link.state == State::Waiting, || format!("{link:?} was given {kept:?}"));
        let link = self.link(id);
        link.state = State::Taken(pooled);
        link.pid = kept.pid;
        link.pid_known = true;
        link.backend = kept.backend;
        link.local = kept.local;
        self.links.remove(&pooled);
        self.kept.insert(pooled, kept);
        self.admitted.insert(id);
        self.granted.push(id);
        self.reused += 1;
    }

    /// A link with the slot of a pooled connection gives it back under its old name.
    fn give_back(&mut self, id: u64, state: State) {
        let State::Taken(pooled) = self.links[&id].state else { self.bad("nothing was taken") };
        let mut kept = self.kept.remove(&pooled).expect("a pooled connection of the model");
        kept.state = state;
        kept.backend = self.links[&id].backend;
        kept.lane.clone_from(&self.links[&id].lane);
        self.links.insert(pooled, kept);
        let link = self.link(id);
        link.pid = 0;
        link.pid_known = false;
        link.backend = false;
        link.local = None;
    }

    /// The client has ended well.
    pub fn pool(&mut self, id: u64) {
        if self.links[&id].visiting.is_some() {
            self.link(id).visiting = None;
            self.guard.leave(self.now, LinkId(id));
            self.settle();
        }
        let Some(key) = self.links[&id].key.filter(|_| self.links[&id].state == State::Established) else {
            return;
        };
        let (lane, application) = (self.links[&id].lane.clone(), self.links[&id].application);
        let lane = self.lane(&lane);
        self.forget_session(id);
        let before = self.links[&id].clone();
        let link = self.link(id);
        link.state = State::Pooled;
        link.address = None;
        let packet = PoolKey::new(key.as_bytes());
        if !self.guard.pool(self.now, LinkId(id), lane, packet, &application.into()) {
            self.links.insert(id, before);
            return self.closing(id);
        }
        self.settle();
    }

    pub fn revived(&mut self, id: u64) {
        let link = self.link(id);
        if let State::Taken(pooled) = link.state {
            link.state = State::Established;
            self.kept.remove(&pooled);
            self.guard.revived(self.now, LinkId(id));
            self.settle();
        }
    }

    /// The connection it was given is no good.
    pub fn stale(&mut self, id: u64, gone: bool) {
        let State::Taken(pooled) = self.links[&id].state else { return };
        if gone {
            self.kept.remove(&pooled);
            let link = self.link(id);
            link.pid = 0;
            link.pid_known = false;
            link.backend = false;
            link.local = None;
        } else {
            self.give_back(id, State::Closing);
        }
        let link = self.link(id);
        link.state = State::Waiting;
        link.requeued = true;
        let arrived = self.guard.stale(self.now, LinkId(id), gone);
        self.arrived(id, arrived);
        self.settle();
    }

    fn refuse(&mut self, id: u64, reason: Reason) {
        self.check(self.links.get(&id).is_some_and(|link| matches!(link.state, State::Waiting)), || {
            format!("link {id} was refused ({reason}) but does not wait: {:?}", self.links.get(&id))
        });
        self.link(id).state = State::Over;
        self.refused += 1;
        self.mix(reason as u64);
    }

    fn mix(&mut self, value: u64) {
        self.trace = (self.trace ^ value).wrapping_mul(0x0100_0000_01B3).rotate_left(17);
    }

    /// Carries out the guard's actions, then checks what must always hold.
    pub fn settle(&mut self) {
        self.drain();
        let rows = self.guard.rows(self.now);
        let rows: crate::invariants::Rows = rows.into_iter().map(|row| (row.lane.clone(), row)).collect();
        crate::invariants::check(self, &rows);
        let over: Vec<u64> =
            self.links.iter().filter(|(_, link)| link.state == State::Over).map(|(id, _)| *id).collect();
        for id in over {
            if let Some(link) = self.links.remove(&id) {
                self.gone.insert(id, link);
            }
        }
        self.granted.clear();
        self.unshed.clear();
        self.was_in_trouble = self.guard.upstream_trouble().is_some();
        let shed = rows.into_values().filter(|row| row.state == LaneState::Shedding);
        self.was_shed = shed.map(|row| row.lane.to_string()).collect();
    }

    /// The links granted in the present call that are somebody's.
    pub fn granted(&self, whose: impl Fn(&Shadow) -> bool) -> bool {
        self.granted.iter().any(|id| whose(&self.links[id]))
    }

    fn drain(&mut self) {
        while let Some(action) = self.guard.poll_action() {
            self.carry_out(action);
        }
    }

    pub fn carry_out(&mut self, action: Action) {
        match action {
            Action::Grant(link) => {
                self.mix(link.0);
                self.grant(link.0);
            }
            Action::GrantPooled(link, pooled) => {
                self.mix(link.0 ^ 3);
                self.grant_pooled(link.0, pooled.0);
            }
            Action::ClosePooled(pooled) => {
                self.mix(pooled.0 ^ 5);
                self.check(self.links.get(&pooled.0).is_some_and(|kept| kept.state == State::Pooled), || {
                    format!("{pooled} is to be closed and not pooled: {:?}", self.links.get(&pooled.0))
                });
                self.link(pooled.0).state = State::Closing;
                self.evicted += 1;
            }
            Action::PooledAgain(pooled) => {
                self.check(self.links.get(&pooled.0).is_some_and(|kept| kept.state == State::Pooled), || {
                    format!("{pooled} is said to be pooled again: {:?}", self.links.get(&pooled.0))
                });
            }
            Action::Refuse(link, refusal) => self.refuse(link.0, refusal.reason),
            Action::Release(link) => {
                self.mix(link.0 ^ 7);
                self.check(self.links.get(&link.0).is_some_and(|one| one.held), || {
                    format!("link {link} was released but not held: {:?}", self.links.get(&link.0))
                });
                let one = self.link(link.0);
                one.held = false;
                one.released = true;
            }
            Action::RejectHeld(link, refusal) => {
                self.check(self.links.get(&link.0).is_some_and(|one| one.held), || {
                    format!("link {link} ({}) was rejected but not held", refusal.reason)
                });
                self.link(link.0).held = false;
                self.refused += 1;
            }
            Action::Timeline { event, lane, .. } => {
                self.mix(event.len() as u64);
                if let Some(lane) = lane.filter(|_| event == "unshed") {
                    self.unshed.insert(lane.to_string());
                }
            }
            Action::SampleNow | Action::PausesChanged => {}
        }
    }

    pub fn waiting_in(&self, lane: &str) -> impl Iterator<Item = (&u64, &Shadow)> {
        self.links.iter().filter(move |(_, link)| link.state == State::Waiting && link.lane == lane)
    }

    pub fn connected(&mut self, id: u64) {
        let port = 10_000 + (id % 50_000) as u16;
        let local = (!self.unix).then(|| SocketAddr::from(([127, 0, 0, 1], port)));
        let link = self.link(id);
        link.state = State::Login;
        link.local = local;
        self.guard.dialling(self.now, LinkId(id), local);
        self.settle();
    }

    pub fn dial_failed(&mut self, id: u64) {
        let full = self.dice.one_in(3);
        let why = if full { DialFailure::Full } else { DialFailure::Down("refused".to_owned()) };
        let may_wait = !self.dice.one_in(4);
        let link = self.link(id);
        link.state = State::Waiting;
        link.requeued = true;
        link.backend = false;
        link.pid = 0;
        link.local = None;
        let arrived = self.guard.dial_failed(self.now, LinkId(id), why, may_wait);
        self.check(may_wait || matches!(arrived, Arrived::Refused(_)), || {
            "waits though it may not".to_owned()
        });
        self.arrived(id, arrived);
        self.settle();
    }

    /// PostgreSQL authenticated it: it is visible there, while we do not know its pid yet.
    pub fn authenticated(&mut self, id: u64) {
        // PostgreSQL gives pids of dead backends away again.
        let all = self.links.values().chain(self.gone.values().rev().take(10));
        let dead: Vec<i32> = all.filter(|one| one.pid > 0 && !one.backend).map(|one| one.pid).collect();
        let alive: BTreeSet<i32> = self.links.values().filter(|one| one.backend).map(|one| one.pid).collect();
        let reused = self.dice.pick(&dead).filter(|pid| !alive.contains(pid)).filter(|_| self.dice.one_in(2));
        let pid = reused.unwrap_or_else(|| {
            self.next_pid += 1;
            self.next_pid
        });
        let link = self.link(id);
        link.pid = pid;
        link.backend = true;
    }

    pub fn login_done(&mut self, id: u64) {
        if self.links[&id].pid == 0 {
            self.authenticated(id);
        }
        let pid = self.links[&id].pid;
        let same = |other: &&mut Shadow| other.pid == pid && other.pid_known && other.has_slot();
        for other in self.links.values_mut().filter(same) {
            other.state = State::Over;
        }
        let link = self.link(id);
        link.state = State::Established;
        link.pid_known = true;
        self.guard.login_done(self.now, LinkId(id), pid);
        self.settle();
    }

    pub fn begin(&mut self, id: u64) {
        let lane = self.lane(self.links[&id].counts_in());
        let nested = self.dice.one_in(6);
        let refuses = self.pause_refuses(self.links[&id].counts_in());
        self.link(id).released = false;
        let mut counted = false;
        if !self.guard.gate(lane).is_open() {
            match self.guard.begin(self.now, LinkId(id), nested) {
                Begun::Go { counted: counts } => {
                    self.check(!refuses, || "a transaction began in a lane that refuses".to_owned());
                    counted = counts;
                }
                Begun::Hold(_) => {
                    self.check(!nested, || "a nested transaction was held".to_owned());
                    self.link(id).held = true;
                    return self.settle();
                }
                Begun::Reject(_) => {
                    self.check(refuses, || "a transaction was refused by a lane that holds".to_owned());
                    self.refused += 1;
                    return self.settle();
                }
            }
        }
        let now = self.now;
        let link = self.link(id);
        link.in_transaction = Some(now);
        link.generation += 1;
        link.counted = counted;
        link.ramped = counted;
        link.reset_at = None;
        self.settle();
    }

    pub fn end(&mut self, id: u64) {
        let link = self.link(id);
        link.in_transaction = None;
        link.reset_at = None;
        link.ramped = false;
        let visits = link.visiting.take().is_some();
        if std::mem::take(&mut link.counted) || self.dice.one_in(4) {
            self.guard.end(self.now, LinkId(id));
        }
        if visits {
            self.guard.leave(self.now, LinkId(id));
        }
        self.settle();
    }

    fn forget_session(&mut self, id: u64) {
        let link = self.link(id);
        link.in_transaction = None;
        link.counted = false;
        link.ramped = false;
        link.held = false;
        link.released = false;
        link.visiting = None;
    }

    pub fn closing(&mut self, id: u64) {
        self.forget_session(id);
        self.link(id).state = State::Closing;
        self.guard.closing(self.now, LinkId(id));
        self.settle();
    }

    pub fn closed(&mut self, id: u64) {
        self.forget_session(id);
        let link = self.link(id);
        link.state = State::Over;
        link.backend = false;
        self.guard.closed(self.now, LinkId(id));
        self.settle();
    }

    pub fn zombie(&mut self, id: u64) {
        let now = self.now;
        self.forget_session(id);
        self.link(id).state = State::Zombie(now);
        self.guard.zombie(now, LinkId(id));
        self.settle();
    }

    pub fn hang_up(&mut self, id: u64) {
        if matches!(self.links[&id].state, State::Taken(_)) {
            self.give_back(id, State::Pooled);
        }
        self.link(id).state = State::Over;
        self.guard.hang_up(self.now, LinkId(id));
        self.settle();
    }

    pub fn visit(&mut self, id: u64, lane: &str) {
        let target = self.lane(lane);
        let link = self.link(id);
        if link.counts_in() != lane {
            link.counted = false;
            link.ramped = false;
        }
        link.visiting = (lane != link.lane).then(|| lane.to_owned());
        self.guard.visit(self.now, LinkId(id), target);
        self.settle();
    }

    pub fn move_link(&mut self, id: u64, lane: &str) {
        let target = self.lane(lane);
        let link = self.link(id);
        if link.visiting.is_none() && link.lane != lane {
            link.counted = false;
            link.ramped = false;
        }
        lane.clone_into(&mut link.lane);
        if link.visiting.as_deref() == Some(lane) {
            link.visiting = None;
        }
        self.guard.move_link(self.now, LinkId(id), target, None);
        self.settle();
    }

    /// Lets time pass, ticking exactly when the guard asks for it. After a tick nothing may be due at once.
    pub fn advance(&mut self, by: Duration) {
        let target = self.now + by;
        for _ in 0..10_000 {
            self.tick();
            let wait = self.guard.next_tick(self.now);
            self.check(wait != Some(Duration::ZERO), || "a tick is asked for at once".to_owned());
            match wait {
                _ if self.now == target => return,
                Some(wait) if self.now + wait < target => self.now = self.now + wait,
                _ => self.now = target,
            }
        }
        self.bad("the guard asks for ticks without end");
    }

    fn tick(&mut self) {
        let blind = !self.settings.limits.monitored || self.guard.is_stale(self.now);
        for link in self.links.values_mut() {
            if matches!(link.state, State::Zombie(since) if blind && self.now.since(since) >= Duration::from_secs(300))
            {
                link.give_up();
            }
        }
        self.guard.tick(self.now);
        self.settle();
        for settings in &self.settings.lanes {
            // As of `settle`: stopped lanes are open to nobody's clock.
            if self.stopped.contains(&*settings.name) {
                continue;
            }
            let fresh = self.open_since.get(&*settings.name).copied().unwrap_or_default();
            for (id, link) in self.waiting_in(&settings.name) {
                let overdue = self.now >= link.since.max(fresh) + settings.wait_timeout;
                self.check(!overdue, || format!("link {id} waits for too long in {}", settings.name));
            }
        }
    }
}
