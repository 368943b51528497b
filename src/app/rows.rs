//! The read model: what the console shows, made from the guard's rows, the links' cells and the last sample.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::App;
use super::suspects::{PORTION, PORTION_AWAITED};
use crate::clock::{self, Moment, WallMs};
use crate::incident::growth::{Count, Counts};
use crate::lanes::ids::{LaneId, LinkId};
use crate::lanes::sample::{Sample, Session};
use crate::lanes::settings::{Disposition, LaneSettings, LeakAction, LeakSettings};
use crate::leaks::judge::LeakFacts;
use crate::link::hub::Lane;
use crate::link::shared::{Labels, LinkShared, LinkState, ProcessKey, flag};
use crate::snapshot::{
    ApplicationRow, ClientEnds, ClientRow, LanePolicyRow, LaneRow, LeakRow, PolicyRow, SessionRow,
};
use crate::wire::statement;

/// The lane of those who bypass pgweir, where leaks are listed or counted.
pub(super) const BYPASS: &str = "bypass";

/// Who is idle in transaction for too long, and for how long.
struct Leak {
    idle: Duration,
    who: Leaking,
}

enum Leaking {
    Link(Arc<LinkShared>, LeakFacts),
    Bypass(Arc<Session>),
}

/// Links of one lane or application by state.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    idle: u32,
    active: u32,
    idle_in_transaction: u32,
    waiting: u32,
}

impl Tally {
    fn add(&mut self, state: LinkState) {
        match state {
            LinkState::Idle => self.idle += 1,
            LinkState::Active => self.active += 1,
            LinkState::IdleInTransaction => self.idle_in_transaction += 1,
            LinkState::Waiting | LinkState::Held => self.waiting += 1,
            LinkState::Starting | LinkState::Login | LinkState::Closing => {}
        }
    }

    fn join(&mut self, other: Self) {
        self.idle += other.idle;
        self.active += other.active;
        self.idle_in_transaction += other.idle_in_transaction;
        self.waiting += other.waiting;
    }
}

/// By the name of a lane, and by that of an application.
#[derive(Default)]
struct Tallies {
    lanes: HashMap<Arc<str>, Tally>,
    applications: HashMap<Arc<str>, Tally>,
}

/// Links share their names: of ten thousand few are hashed by what they say.
#[derive(Default)]
struct Groups(HashMap<(usize, usize), Group>);

/// Links of one lane and application.
struct Group {
    lane: Arc<str>,
    application: Arc<str>,
    tally: Tally,
}

impl Groups {
    fn add(&mut self, link: &LinkShared) {
        let (state, _) = link.state();
        link.with_labels(|labels| {
            let (lane, application) = (&labels.lane_name, &labels.application_name);
            // No name goes away before the end: each is kept beside its place.
            let place = |name: &Arc<str>| Arc::as_ptr(name).cast::<u8>().addr();
            let group = self.0.entry((place(lane), place(application))).or_insert_with(|| Group {
                lane: lane.clone(),
                application: application.clone(),
                tally: Tally::default(),
            });
            group.tally.add(state);
        });
    }
}

pub(super) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl App {
    /// Every link there is, oldest first; of those that are gone when their turn comes there is none. Only their ids are held.
    pub(super) fn links(&self) -> impl Iterator<Item = Arc<LinkShared>> + Send + use<> {
        let mut ids: Vec<LinkId> = self.hub.links.iter().map(|entry| *entry.key()).collect();
        ids.sort_unstable();
        let hub = Arc::clone(&self.hub);
        ids.into_iter().filter_map(move |id| hub.links.get(&id).map(|entry| Arc::clone(entry.value())))
    }

    async fn tallies(&self, portion: usize) -> Tallies {
        let mut groups = Groups::default();
        self.each_link(portion, |link| groups.add(link)).await;
        let mut tallies = Tallies::default();
        for Group { lane, application, tally } in groups.0.into_values() {
            tallies.lanes.entry(lane).or_default().join(tally);
            tallies.applications.entry(application).or_default().join(tally);
        }
        // To PostgreSQL a pooled connection is an idle one.
        for (_, lane, application) in self.hub.guard(|guard, _| guard.pooled_backends()) {
            tallies.lanes.entry(lane).or_default().idle += 1;
            tallies.applications.entry(application).or_default().idle += 1;
        }
        tallies
    }

    fn lane_rows_of(&self, lanes: &HashMap<Arc<str>, Tally>) -> Vec<LaneRow> {
        let mut rows = self.hub.guard(|guard, now| guard.rows(now));
        for row in &mut rows {
            let tally = lanes.get(&row.lane).copied().unwrap_or_default();
            row.idle = tally.idle;
            row.active = tally.active;
            row.idle_in_transaction = tally.idle_in_transaction;
        }
        rows
    }

    /// Both from one look at the links.
    pub(super) async fn lane_and_application_rows(&self) -> (Vec<LaneRow>, Vec<ApplicationRow>) {
        let tallies = self.tallies(PORTION_AWAITED).await;
        (self.lane_rows_of(&tallies.lanes), self.application_rows_of(&tallies.applications))
    }

    fn application_rows_of(&self, applications: &HashMap<Arc<str>, Tally>) -> Vec<ApplicationRow> {
        let mut rows = self.hub.guard(|guard, _| guard.application_rows());
        for row in &mut rows {
            let tally = applications.get(&row.application).copied().unwrap_or_default();
            row.idle = tally.idle;
            row.active = tally.active;
            row.idle_in_transaction = tally.idle_in_transaction;
            row.waiting = row.waiting.max(tally.waiting);
        }
        rows
    }

    pub(super) async fn growth_counts(&self) -> Counts {
        let tallies = self.tallies(PORTION).await;
        let count = |name: Arc<str>, slots, idle_in_transaction| Count { name, slots, idle_in_transaction };
        let lanes = self.lane_rows_of(&tallies.lanes);
        let applications = self.application_rows_of(&tallies.applications);
        let lanes = lanes.into_iter().map(|r| count(r.lane, r.slots, r.idle_in_transaction)).collect();
        let applications = applications.into_iter();
        let applications =
            applications.map(|r| count(r.application, r.slots, r.idle_in_transaction)).collect();
        let bypass = self.hub.guard(|guard, now| guard.usage_row(now).bypass);
        Counts { lanes, applications, bypass }
    }

    /// Made one at a time: ten thousand rows take milliseconds, between which whoever writes them rests.
    pub(super) fn client_rows(&self) -> impl Iterator<Item = ClientRow> + Send + use<> {
        let literals = self.hub.settings.load().log_literals;
        self.links().map(move |link| client_row(&link, clock::now(), literals))
    }

    pub(super) fn session_rows(&self) -> Vec<SessionRow> {
        let Some(sample) = self.sample.load_full() else { return Vec::new() };
        let ours = self.by_pid();
        let pooled = self.hub.guard(|guard, _| guard.pooled_backends());
        let pooled: HashMap<i32, Arc<str>> = pooled.into_iter().map(|(pid, lane, _)| (pid, lane)).collect();
        let now = clock::now();
        let literals = self.hub.settings.load().log_literals;
        let row = |session: &Arc<Session>| {
            let (state_age, transaction_age) = session.ages(now);
            let link = ours.get(&session.pid);
            let rests = pooled.get(&session.pid);
            let lane = link.map(|link| link.with_labels(|l| l.lane_name.clone()));
            let lane = lane.or_else(|| rests.cloned()).unwrap_or_else(|| "".into());
            SessionRow {
                pid: session.pid,
                via: match link {
                    Some(_) => "pgweir",
                    None if rests.is_some() => "pgweir",
                    None if session.pid == sample.monitor_pid => "monitor",
                    None => "bypass",
                },
                id: link.map(|link| link.id.0),
                lane,
                // As the client named itself: upstream it may be tagged with its address.
                application: match link {
                    Some(link) => link.with_labels(|labels| labels.facts.application.clone()),
                    None => session.application.clone(),
                },
                user: session.user.clone(),
                database: session.database.clone(),
                address: match link {
                    Some(link) => address(link),
                    None => session_address(session),
                },
                process: link.map_or_else(String::new, |link| link.with_labels(|l| l.process_line())),
                state: session.state.clone(),
                state_ms: ms(state_age),
                transaction_ms: transaction_age.map_or(0, ms),
                wait_event: wait_event(session),
                blocked_by: session.blocked_by.clone(),
                query: statement::shown(&session.query, literals),
            }
        };
        sample.sessions.iter().map(row).collect()
    }

    /// Links by the pid of their backend on the server that is sampled.
    pub(super) fn by_pid(&self) -> HashMap<i32, Arc<LinkShared>> {
        let left = self.hub.keys_elsewhere.iter().map(|entry| entry.value().clone());
        let all = self.hub.keys.iter().map(|entry| entry.value().clone()).chain(left);
        all.map(|link| (self.hub.pid_here(&link), link)).filter(|(pid, _)| *pid != 0).collect()
    }

    /// Links idle in transaction beyond their lane's `warn`, and sessions that bypass pgweir for longer than `[bypass] after`.
    async fn leaks(&self, now: Moment, sample: Option<&Sample>) -> Vec<Leak> {
        let facts = self.leak_facts(now, sample).await;
        let lanes = self.hub.lanes.load();
        let of_links = facts.into_iter().filter_map(|(link, facts)| {
            let warn = policy(&lanes, facts.lane).and_then(|policy| policy.warn);
            let idle = now.since(facts.idle_since);
            let leaks = link.flags() & flag::RESET != 0 || warn.is_some_and(|warn| idle >= warn);
            leaks.then_some(Leak { idle, who: Leaking::Link(link, facts) })
        });
        let mut leaks: Vec<Leak> = of_links.collect();
        let bypass = sample.map(|sample| self.bypass_leaks(sample, now)).unwrap_or_default().into_iter();
        leaks.extend(bypass.map(|(session, idle)| Leak { idle, who: Leaking::Bypass(Arc::clone(session)) }));
        leaks
    }

    /// How many leaks there are by lane, "bypass" being one.
    pub(super) async fn leaks_by_lane(&self) -> HashMap<Arc<str>, u32> {
        let sample = self.sample.load_full();
        let mut found = HashMap::new();
        for leak in self.leaks(clock::now(), sample.as_deref()).await {
            let lane = match &leak.who {
                Leaking::Link(link, _) => link.with_labels(|labels| labels.lane_name.clone()),
                Leaking::Bypass(_) => BYPASS.into(),
            };
            *found.entry(lane).or_default() += 1;
        }
        found
    }

    /// The leaks, longest first. Rows are made as they are asked for: of a thousand leaks the page shows the worst hundred.
    pub(super) async fn leak_rows(&self) -> impl ExactSizeIterator<Item = LeakRow> + Send + use<> {
        let now = clock::now();
        let literals = self.hub.settings.load().log_literals;
        let sample = self.sample.load_full();
        let mut leaks = self.leaks(now, sample.as_deref()).await;
        leaks.sort_by_key(|leak| std::cmp::Reverse(leak.idle));
        let lanes = self.hub.lanes.load();
        let judge = self.judge.lock();
        let leaks: Vec<(Leak, i32, String)> = leaks
            .into_iter()
            .map(|leak| {
                let (pid, verdict) = match &leak.who {
                    Leaking::Link(link, facts) => {
                        (self.hub.pid_here(link), judge.verdict_text(facts, policy(&lanes, facts.lane), now))
                    }
                    Leaking::Bypass(session) => (session.pid, self.bypass_verdict()),
                };
                (leak, pid, verdict)
            })
            .collect();
        let blocks = sample.as_deref().map(blocked_by_pid).unwrap_or_default();
        leaks.into_iter().map(move |(leak, pid, verdict)| LeakRow {
            blocks: blocks.get(&pid).cloned().unwrap_or_default(),
            locks: sample.as_ref().map(|sample| sample.locks_of(pid)).unwrap_or_default(),
            verdict,
            ..leak_row(&leak, now, literals)
        })
    }

    pub(super) fn policy_row(&self) -> PolicyRow {
        let config = self.config.load();
        PolicyRow {
            usage_below: config.exit.usage_below,
            lanes: config.settings.lanes.iter().map(lane_policy_row).collect(),
        }
    }

    /// Sessions of a sample that are not ours and idle in transaction for longer than `[bypass] after`. Whose pid is a link's on any server is
    /// none: of two addresses it is not always known that they are one server's.
    pub(super) fn bypass_leaks<'a>(
        &self,
        sample: &'a Sample,
        now: Moment,
    ) -> Vec<(&'a Arc<Session>, Duration)> {
        let after = self.config.load().bypass.after;
        sample
            .sessions
            .iter()
            .filter(|s| {
                s.state.starts_with("idle in transaction") && s.pid != sample.monitor_pid && !s.walsender
            })
            .map(|s| (s, s.ages(now).0))
            .filter(|(session, idle)| *idle >= after && self.hub.owners(session.pid).is_empty())
            .collect()
    }
}

fn lane_policy_row(lane: &LaneSettings) -> LanePolicyRow {
    let disconnects =
        lane.idle_in_transaction.as_ref().is_some_and(|leak| leak.action == LeakAction::Disconnect);
    LanePolicyRow {
        lane: lane.name.clone(),
        protected: lane.protected,
        freeze: lane.freeze,
        shed_above: lane.shed_above,
        shed_below: lane.shed_above.map(|_| lane.shed_below),
        on_pause: match lane.on_pause {
            Disposition::Hold => "hold",
            Disposition::Reject => "reject",
        },
        reset: if disconnects { "disconnect" } else { "rollback" },
    }
}

/// A lane's policy for leaks.
pub(super) fn policy(lanes: &[Arc<Lane>], lane: LaneId) -> Option<&LeakSettings> {
    lanes.get(usize::from(lane.0))?.settings.idle_in_transaction.as_ref()
}

/// Whom each backend keeps waiting.
pub(super) fn blocked_by_pid(sample: &Sample) -> BTreeMap<i32, Vec<i32>> {
    let mut blocks: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for session in &sample.sessions {
        for blocker in &session.blocked_by {
            blocks.entry(*blocker).or_default().push(session.pid);
        }
    }
    blocks
}

/// Backends that wait for their client to send something.
pub(super) fn reading_from_client(sample: &Sample) -> HashSet<i32> {
    sample.sessions.iter().filter(|s| &*s.wait_event.1 == "ClientRead").map(|s| s.pid).collect()
}

fn wait_event(session: &Session) -> String {
    let (kind, event) = &session.wait_event;
    if kind.is_empty() { String::new() } else { format!("{kind}:{event}") }
}

fn session_address(session: &Session) -> String {
    match (session.address, session.port) {
        (Some(address), Some(port)) => format!("{address}:{port}"),
        (Some(address), None) => address.to_string(),
        _ => "unix".to_owned(),
    }
}

fn address(link: &LinkShared) -> String {
    link.address().map_or_else(|| "unix".to_owned(), |address| address.to_string())
}

/// The link's state in the words of the console: a stalled or reset link is more than active or idle in transaction.
pub(super) fn state_word(link: &LinkShared) -> &'static str {
    let (state, _) = link.state();
    match state {
        LinkState::Active if link.flags() & flag::STALLED != 0 => "stalled",
        LinkState::IdleInTransaction if link.flags() & flag::RESET != 0 => "reset",
        _ => state.word(),
    }
}

/// What is known of a leak by itself.
fn leak_row(leak: &Leak, now: Moment, literals: bool) -> LeakRow {
    match &leak.who {
        Leaking::Link(link, _) => {
            let client = client_row(link, now, literals);
            LeakRow {
                id: Some(client.id),
                lane: client.lane,
                application: client.application,
                user: client.user,
                database: client.database,
                address: client.address,
                pid: client.pid,
                idle_in_transaction_ms: ms(leak.idle),
                transaction_ms: client.transaction_ms,
                last_statement: client.last_statement,
                ..LeakRow::default()
            }
        }
        Leaking::Bypass(session) => LeakRow {
            lane: BYPASS.into(),
            application: session.application.clone(),
            user: session.user.clone(),
            database: session.database.clone(),
            address: session_address(session),
            pid: Some(session.pid),
            idle_in_transaction_ms: ms(leak.idle),
            transaction_ms: session.ages(now).1.map_or(0, ms),
            last_statement: statement::shown(&session.query, literals),
            ..LeakRow::default()
        },
    }
}

pub(super) fn client_row(link: &LinkShared, now: Moment, literals: bool) -> ClientRow {
    let (state, since) = link.state();
    let labels = link.with_labels(|labels| labels.clone());
    let process = labels.process_line();
    let waits = matches!(state, LinkState::Waiting | LinkState::Held);
    let waiting = if waits { now.since(since) } else { Duration::ZERO };
    let ends = client_ends(link, &labels, now, waiting);
    ClientRow {
        id: link.id.0,
        lane: labels.lane_name,
        rule: labels.rule,
        application: labels.facts.application.clone(),
        user: labels.facts.user.clone(),
        database: labels.facts.database.clone(),
        address: address(link),
        pid: Some(link.pid.load(Ordering::Relaxed)).filter(|pid| *pid != 0),
        process,
        state: state_word(link),
        transaction_ms: link.transaction_since().map_or(0, |since| ms(now.since(since))),
        idle_in_transaction_ms: if state == LinkState::IdleInTransaction { ms(now.since(since)) } else { 0 },
        wait_ms: link.wait_us() / 1000 + ms(waiting),
        last_statement: statement::shown(&String::from_utf8_lossy(&labels.statement), literals),
        ends,
    }
}

fn client_ends(link: &LinkShared, labels: &Labels, now: Moment, waiting: Duration) -> ClientEnds {
    let wall = Wall::new(now);
    let flags = link.flags();
    ClientEnds {
        port: link.address().map_or(0, |address| address.port()),
        listener: labels.facts.listener.clone(),
        connected_at: wall.of(link.arrived),
        requested_at: wall.of(link.figures.requested_at().unwrap_or(link.arrived)),
        waiting_us: u64::try_from(waiting.as_micros()).unwrap_or(u64::MAX),
        tls: match flags & (flag::TLS_13 | flag::TLS_12) {
            flag::TLS_13 => "TLSv1.3",
            flag::TLS_12 => "TLSv1.2",
            _ => "",
        },
        process_pid: match labels.process.as_ref().map(|process| &process.key) {
            Some(ProcessKey::Pid(pid)) => *pid,
            _ => 0,
        },
    }
}

/// Moments as times of day.
pub(super) struct Wall {
    now: Moment,
    wall: WallMs,
}

impl Wall {
    pub(super) fn new(now: Moment) -> Self {
        Self { now, wall: clock::wall_now() }
    }

    pub(super) fn of(&self, at: Moment) -> WallMs {
        WallMs(self.wall.0.saturating_sub(ms(self.now.since(at))))
    }
}
