//! Scenarios in ten lines: `Sim::new(lanes).arrive("web", 3).advance_ms(250).expect(…)`.

use std::sync::Arc;
use std::time::Duration;

use pgweir::clock::Moment;
use pgweir::lanes::guard::{Action, Arrival, Arrived, Begun, DialFailure, Guard};
use pgweir::lanes::ids::{LaneId, LinkId};
use pgweir::lanes::pool::PoolKey;
use pgweir::lanes::sample::{Sample, Session};
use pgweir::lanes::settings::{LaneSettings, Settings};
use pgweir::reason::Reason;
use pgweir::snapshot::{LaneRow, LaneState};

pub struct Sim {
    pub guard: Guard,
    pub now: Moment,
    pub actions: Vec<Action>,
    /// Links so far; the next one gets the next number.
    pub links: u64,
    pub last: Option<Arrived>,
    application: &'static str,
    user: &'static str,
    nested: bool,
    alone: bool,
    key: Option<&'static str>,
    /// Whether the last connection offered to the pool was kept.
    pub pooled: bool,
}

/// A startup packet with these parameters, behind its length.
pub fn packet(key: &str) -> PoolKey {
    PoolKey::new(format!("size{key}").as_bytes())
}

/// A lane as `change` makes it.
pub fn lane(name: &str, quota: u32, change: impl FnOnce(&mut LaneSettings)) -> LaneSettings {
    let mut lane = LaneSettings::new(name, quota);
    change(&mut lane);
    lane
}

/// Lanes and a default one.
pub fn settings(mut lanes: Vec<LaneSettings>) -> Settings {
    lanes.push(lane("other", 2, |lane| {
        lane.default = true;
        lane.priority = 9;
    }));
    let mut settings = Settings::new(lanes);
    settings.limits.max_logins = 1000;
    settings
}

/// An idle session of somebody else.
pub fn session() -> Session {
    Session {
        pid: 0,
        walsender: false,
        address: Some([10, 0, 0, 9].into()),
        port: Some(1),
        application: "".into(),
        user: "".into(),
        database: "".into(),
        state: "idle".into(),
        seen_at: Moment::default(),
        started: 0,
        changed: 0,
        state_age: Duration::ZERO,
        transaction_age: None,
        wait_event: ("".into(), "".into()),
        query: "".into(),
        blocked_by: vec![],
    }
}

impl Sim {
    pub fn new(lanes: Vec<LaneSettings>) -> Self {
        Self::with(settings(lanes))
    }

    pub fn with(settings: Settings) -> Self {
        let now = Moment::from_micros(1_000_000);
        let guard = Guard::new(settings, 1, now);
        Self {
            guard,
            now,
            actions: vec![],
            links: 0,
            last: None,
            application: "app",
            user: "u",
            nested: false,
            alone: false,
            key: None,
            pooled: false,
        }
    }

    pub fn lane(&self, name: &str) -> LaneId {
        self.guard.lane(name).expect("a lane of the scenario")
    }

    pub fn application(mut self, name: &'static str) -> Self {
        self.application = name;
        self
    }

    pub fn user(mut self, name: &'static str) -> Self {
        self.user = name;
        self
    }

    pub fn nested(mut self, nested: bool) -> Self {
        self.nested = nested;
        self
    }

    /// Whether those that arrive are the first of their client process.
    pub fn alone(mut self, alone: bool) -> Self {
        self.alone = alone;
        self
    }

    /// Links that arrive may share pooled connections.
    pub fn key(mut self, key: &'static str) -> Self {
        self.key = Some(key);
        self
    }

    /// The client of a link ends well; whether its connection is kept.
    pub fn pool(mut self, lane: &str, link: u64) -> Self {
        let (lane, key) = (self.lane(lane), packet(self.key.expect("a key")));
        let application = self.application.into();
        self.pooled = self.guard.pool(self.now, LinkId(link), lane, key, &application);
        if !self.pooled {
            self.guard.closing(self.now, LinkId(link));
        }
        self.drain();
        self
    }

    fn who(&self, lane: &str) -> Arrival {
        Arrival {
            lane: self.lane(lane),
            application: self.application.into(),
            user: self.user.into(),
            database: "db".into(),
            address: None,
            replication: false,
            nested: self.nested,
            alone: self.alone,
            key: self.key.map(packet),
        }
    }

    /// A connection is made ahead, logs in and is pooled, where it is granted: see `last`.
    pub fn make_ahead(mut self, lane: &str) -> Self {
        self.links += 1;
        let (link, who) = (self.links, self.who(lane));
        if !self.guard.arrive_ahead(self.now, LinkId(link), who) {
            self.last = None;
            return self;
        }
        self.last = Some(Arrived::Granted);
        self.log_in(link).pool(lane, link)
    }

    /// So many links arrive; those granted stay in login.
    pub fn arrive(mut self, lane: &str, count: u64) -> Self {
        for _ in 0..count {
            self.links += 1;
            let who = self.who(lane);
            self.last = Some(self.guard.arrive(self.now, LinkId(self.links), who));
            self.drain();
        }
        self
    }

    /// So many links arrive and each logs in at once where it was granted.
    pub fn connect(mut self, lane: &str, count: u64) -> Self {
        for _ in 0..count {
            self = self.arrive(lane, 1);
            let link = self.links;
            self = self.log_in(link);
        }
        self
    }

    pub fn log_in(mut self, link: u64) -> Self {
        self.guard.dialling(self.now, LinkId(link), None);
        self.guard.login_done(self.now, LinkId(link), 1000 + link as i32);
        self.drain();
        self
    }

    pub fn close(self, link: u64) -> Self {
        self.call(|guard, now| guard.closed(now, LinkId(link)))
    }

    pub fn dial_fails(mut self, link: u64, full: bool) -> Self {
        let why = if full { DialFailure::Full } else { DialFailure::Down("refused".to_owned()) };
        self.last = Some(self.guard.dial_failed(self.now, LinkId(link), why, true));
        self.drain();
        self
    }

    pub fn call<T>(mut self, act: impl FnOnce(&mut Guard, Moment) -> T) -> Self {
        act(&mut self.guard, self.now);
        self.drain();
        self
    }

    pub fn pause(self, lane: &str) -> Self {
        let lane = self.lane(lane);
        self.call(|guard, now| guard.pause(now, lane, None, None, "me", ""))
    }

    pub fn resume(self, lane: &str, over_ms: u64) -> Self {
        let lane = self.lane(lane);
        self.call(|guard, now| guard.resume(now, lane, Some(Duration::from_millis(over_ms)), "me"))
    }

    pub fn advance_ms(mut self, ms: u64) -> Self {
        let target = self.now + Duration::from_millis(ms);
        while self.now < target {
            let next = self.guard.next_tick(self.now).map_or(target, |wait| self.now + wait);
            self.now = next.min(target).max(self.now + Duration::from_micros(1));
            self.guard.tick(self.now);
            self.drain();
        }
        self
    }

    /// A sample of a server with `max` usable connections, `strangers` of them in use by others.
    pub fn sample(self, max: u32, strangers: u32) -> Self {
        let row = |n| Session { pid: 900_000 + n as i32, ..session() };
        self.sample_of(max, (0..strangers).map(row).collect())
    }

    /// A sample of such a server with these sessions.
    pub fn sample_of(self, max: u32, sessions: Vec<Session>) -> Self {
        self.call(|guard, now| {
            let (asked_at, taken_at) = (now, now);
            let sample = Sample {
                asked_at,
                taken_at,
                max_connections: max,
                reserved_connections: 0,
                monitor_pid: 900_000,
                sessions: sessions.into_iter().map(Arc::new).collect(),
                lock_holders: [].into(),
                locks_asked_at: asked_at,
            };
            guard.sample(now, &sample);
        })
    }

    pub fn begin(&mut self, link: u64) -> Begun {
        let begun = self.guard.begin(self.now, LinkId(link), false);
        self.drain();
        begun
    }

    fn drain(&mut self) {
        while let Some(action) = self.guard.poll_action() {
            self.actions.push(action);
        }
    }

    pub fn row(&self, lane: &str) -> LaneRow {
        self.guard.rows(self.now).into_iter().find(|row| &*row.lane == lane).expect("a lane of the scenario")
    }

    /// Slots and waiting links of a lane.
    #[track_caller]
    pub fn expect(self, lane: &str, slots: u32, waiting: u32) -> Self {
        let row = self.row(lane);
        assert_eq!((row.slots, row.waiting), (slots, waiting), "slots and waiting of {lane}: {row:?}");
        self
    }

    #[track_caller]
    pub fn expect_state(self, lane: &str, state: LaneState) -> Self {
        assert_eq!(self.row(lane).state, state, "{:?}", self.row(lane));
        self
    }

    /// What the last arrival was told.
    #[track_caller]
    pub fn expect_waiting(self, reason: Reason) -> Self {
        assert_eq!(self.last, Some(Arrived::Waiting(reason)));
        self
    }

    #[track_caller]
    pub fn expect_refused(self, reason: Reason) -> Self {
        assert!(
            matches!(&self.last, Some(Arrived::Refused(refusal)) if refusal.reason == reason),
            "{:?}",
            self.last
        );
        self
    }

    /// Links refused after having waited, in order.
    #[track_caller]
    pub fn expect_refusals(self, expected: &[(u64, Reason)]) -> Self {
        let refused: Vec<_> = self.refusals().collect();
        assert_eq!(refused, expected);
        self
    }

    fn refusals(&self) -> impl Iterator<Item = (u64, Reason)> {
        self.actions.iter().filter_map(|action| match action {
            Action::Refuse(link, refusal) => Some((link.0, refusal.reason)),
            _ => None,
        })
    }

    /// Links granted after having waited, in order.
    #[track_caller]
    pub fn expect_grants(self, expected: &[u64]) -> Self {
        let granted: Vec<_> = self
            .actions
            .iter()
            .filter_map(|action| match action {
                Action::Grant(link) => Some(link.0),
                _ => None,
            })
            .collect();
        assert_eq!(granted, expected);
        self
    }

    /// Texts of the timeline's entries of this kind.
    pub fn timeline(&self, wanted: &str) -> Vec<String> {
        let texts = self.actions.iter().filter_map(|action| match action {
            Action::Timeline { event, text, .. } if *event == wanted => Some(text.clone()),
            _ => None,
        });
        texts.collect()
    }

    pub fn released(&self) -> Vec<u64> {
        let released = self.actions.iter().filter_map(|action| match action {
            Action::Release(link) => Some(link.0),
            _ => None,
        });
        released.collect()
    }
}
