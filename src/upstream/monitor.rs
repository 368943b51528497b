//! The monitor: one session that looks at PostgreSQL again and again, and survives whatever happens to it.
//!
//! ```text
//! [resolved ─►] dialling ─► checked (pid as announced: no pooler) ─► looking ⇄ resting
//!    ▲  │ refused, timeout         │ pooler              │ lost, no answer in time
//!    └──┴──── back-off ◄───────────┴─────────────────────┘
//! ```
//! Invariants: no transaction stays open; every wait is bounded; a low reading (a role that sees only itself, a pooler) is never
//! passed on as a sample. Deliberately absent: what a sample means.
//!
//! Where there are several servers each has a monitor, and only that of the server in use takes samples; the others ask for no more than
//! what the server is ([`Scouting`]).

mod failing;
mod handle;
mod peek;
mod whereabouts;

use std::future::Future;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use super::connect::{self, Failed, Opened, explain};
use super::pace::{Backoff, pause_after};
use super::query::{self, Asks};
use super::resolve::Name;
use super::roster::{Answer, Roster};
use super::row::Known;
use super::targets::{Role, Wants};
use crate::clock::Moment;
use crate::lanes::sample::Sample;

use self::failing::Failing;
pub use self::handle::{ELSEWHERE, LookUpError, MonitorHandle, Whom};
use self::handle::{Now, Shared, bounded};
use self::peek::Peeking;
pub use super::connect::{MonitorAddress, MonitorSettings};

/// Least time from one look to the next, however often one is asked for.
const GAP_MIN: Duration = Duration::from_millis(20);
/// PostgreSQL gives a statement of ours up after this, or twice the interval.
const QUERY_TIMEOUT_MIN: Duration = Duration::from_secs(2);
/// What is not answered so long after that costs the connection: PostgreSQL's own word, which shows that it lives, comes first.
const ANSWER_MARGIN: Duration = Duration::from_secs(1);
/// Sessions read at once, and the rest after them: some 0.1 ms of work at a time.
const PORTION: usize = 128;
const PORTION_REST: Duration = Duration::from_millis(1);
/// What only an operator can change is looked at again after this.
const RECHECK: Duration = Duration::from_secs(10);
/// Time between two looks at what a server is while none is known that suits, where the interval is longer.
const HURRIED: Duration = Duration::from_millis(200);
/// Events not yet taken. A consumer that is slower stops the monitor, whose samples then grow stale: as they should.
const EVENTS_MAX: usize = 4;

/// What one look found.
enum Look {
    Sample(Sample),
    /// The role would see itself only.
    Blind,
    /// Nothing was asked but what the server is.
    Role,
}

/// What the monitor has to say. Everything but samples is said once, when it becomes so.
#[derive(Clone, Debug, PartialEq)]
pub enum MonitorEvent {
    /// PostgreSQL was looked at.
    Sample(Sample),
    /// No connection; it is being redialled.
    Down {
        /// For the operator: PostgreSQL's words with SQLSTATE, or the system's.
        cause: String,
        /// What it says of the server.
        sign: Sign,
        /// Which of the servers that its name leads to was tried, if that is looked up beforehand ([`Scouting`]).
        at: Option<IpAddr>,
    },
    /// Where the server's name leads, by the resolver's last answer ([`Scouting`]).
    Name(Vec<IpAddr>),
    /// What the server is, and where it was reached by TCP; said before the sample in which it became so.
    Role {
        /// What it calls itself.
        role: Role,
        /// Where its name led, if that is looked up beforehand ([`Scouting`]).
        at: Option<IpAddr>,
        /// The system identifier of its cluster, where it was asked ([`Scouting`]) and told.
        system: Option<u64>,
    },
    /// The role lacks pg_read_all_stats: it would see itself only.
    Blind,
    /// Something that is not PostgreSQL answers.
    Pooler {
        /// For the operator.
        what: String,
        /// As in [`Self::Down`].
        at: Option<IpAddr>,
    },
}

/// What the monitor's trouble says of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// It is PostgreSQL that refuses, so it runs.
    Answers,
    /// A session ended or was not answered in time, and it was not tried yet to get another.
    Suspect,
    /// So it goes for ten seconds already.
    Hung,
    /// No session is to be had.
    Silent,
}

/// How one of several servers is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scouting {
    /// How often the server's name is looked up again.
    pub resolve_interval: Duration,
    /// What is looked for: where a name leads to several servers, one that will do.
    pub wants: Wants,
    /// Where the server is dialled already, if it is: it is looked at there first, whatever the resolver says.
    pub dialled: Option<IpAddr>,
}

/// Starts monitors.
#[derive(Debug)]
pub struct Monitor;

impl Monitor {
    /// Starts a monitor as a task of the current tokio runtime. It ends when the receiver is dropped.
    pub fn spawn(
        settings: MonitorSettings,
        clock: fn() -> Moment,
    ) -> (MonitorHandle, mpsc::Receiver<MonitorEvent>) {
        Self::start(settings, clock, None)
    }

    /// The same for one of several servers: until [`MonitorHandle::sample`] it only asks what the server is.
    pub fn scout(
        settings: MonitorSettings,
        clock: fn() -> Moment,
        scouting: Scouting,
    ) -> (MonitorHandle, mpsc::Receiver<MonitorEvent>) {
        Self::start(settings, clock, Some(scouting))
    }

    fn start(
        settings: MonitorSettings,
        clock: fn() -> Moment,
        scouting: Option<Scouting>,
    ) -> (MonitorHandle, mpsc::Receiver<MonitorEvent>) {
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let statement_timeout = (2 * settings.interval).max(QUERY_TIMEOUT_MIN);
        let shared = Arc::new(Shared {
            wake: Notify::new(),
            user: settings.user.clone(),
            statement_timeout,
            limit: statement_timeout + ANSWER_MARGIN,
            samples: AtomicBool::new(scouting.is_none()),
            hurries: AtomicBool::new(false),
            highest: AtomicU32::new(0),
            system: AtomicU64::new(0),
            dialled: Mutex::new(scouting.and_then(|scouting| scouting.dialled)),
            now: Mutex::new(Now::default()),
        });
        let handle = MonitorHandle { shared: Arc::clone(&shared) };
        let name = scouting.and_then(|scouting| Name::of(&settings, scouting.resolve_interval));
        let wants = scouting.map(|scouting| scouting.wants);
        tokio::spawn(
            Task {
                settings,
                clock,
                shared,
                events,
                told: None,
                role: None,
                // Where there can be only one, another that suits shows that the silent one is lost; else patience has to.
                failing: Failing::new(wants.is_some_and(|wants| !wants.is_unique())),
                name,
                leads_to: Vec::new(),
                at: None,
                wants,
                peeking: Peeking::default(),
            }
            .run(),
        );
        (handle, receiver)
    }
}

/// Why a session ended.
enum End {
    /// There was none.
    NoSession(Failed),
    Lost(Failed),
    Pooler(String),
    /// The server's name leads elsewhere, or it is the next address' turn.
    Moved,
}

impl End {
    fn silent(cause: impl Into<String>) -> Self {
        Self::Lost(Failed::silent(cause.into()))
    }
}

/// What one connection has seen.
struct Seen {
    /// The backend that answers.
    pid: i32,
    roster: Roster,
    known: Known,
    questions: Questions,
    /// Of its cluster: a session has one to its end.
    system: System,
}

/// What is known of a system identifier.
#[derive(Clone, Copy)]
enum System {
    Unasked,
    /// None: it is not told to this role.
    Asked(Option<u64>),
}

/// The statements of a connection.
struct Questions {
    asks: Asks,
    sample: String,
    role: String,
}

impl Questions {
    fn new(asks: Asks) -> Self {
        Self { asks, sample: query::sample(asks), role: query::role(asks) }
    }
}

struct Task {
    settings: MonitorSettings,
    clock: fn() -> Moment,
    shared: Arc<Shared>,
    events: mpsc::Sender<MonitorEvent>,
    /// The last event, where it was not a sample: it is not repeated.
    told: Option<MonitorEvent>,
    /// What was said last of the server, on this connection.
    role: Option<Role>,
    failing: Failing,
    /// Where it is to be looked up.
    name: Option<Name>,
    /// What was said last of that.
    leads_to: Vec<IpAddr>,
    /// Where the name led this time.
    at: Option<IpAddr>,
    wants: Option<Wants>,
    /// Where the name leads while links are elsewhere.
    peeking: Peeking,
}

impl Task {
    async fn run(mut self) {
        let events = self.events.clone();
        tokio::select! {
            () = events.closed() => {}
            () = self.reconnect_for_ever() => {}
        }
        let mut now = self.shared.now.lock();
        now.client = None;
        "off".clone_into(&mut now.state);
    }

    async fn reconnect_for_ever(&mut self) {
        let mut backoff = Backoff::default();
        loop {
            let end = self.session(&mut backoff).await;
            self.shared.now.lock().client = None;
            let pause = match end {
                End::Moved => continue,
                End::NoSession(failed) => {
                    let sign = self.failing.refused((self.clock)(), self.at, failed.answers);
                    self.skip_unless_meant(sign);
                    self.tell_down(failed.cause, sign).await;
                    backoff.next(getrandom::u32().unwrap_or(0))
                }
                End::Lost(failed) => {
                    let sign = self.failing.lost((self.clock)(), self.at, failed.answers);
                    self.tell_down(failed.cause, sign).await;
                    if sign == Sign::Hung {
                        self.skip();
                    }
                    // Without randomness only the spreading is lost.
                    backoff.next(getrandom::u32().unwrap_or(0))
                }
                End::Pooler(what) => {
                    self.shared.set_state(format!("pooler: {what}"));
                    let goes_on = self.skip_unless_meant(Sign::Answers);
                    self.tell(MonitorEvent::Pooler { what, at: self.at }).await;
                    if goes_on { backoff.next(getrandom::u32().unwrap_or(0)) } else { RECHECK }
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn tell_down(&mut self, cause: String, sign: Sign) {
        self.shared.set_state(format!("down: {cause}"));
        self.tell(MonitorEvent::Down { cause, sign, at: self.at }).await;
    }

    /// One connection from dial to loss.
    async fn session(&mut self, backoff: &mut Backoff) -> End {
        self.role = None;
        self.at = None;
        let at = match self.resolve().await {
            Ok(at) => at,
            Err(failed) => return End::NoSession(failed),
        };
        self.at = at;
        self.tell_name().await;
        let Opened { client, connection, announced_pid } = match connect::open_at(&self.settings, at).await {
            Ok(opened) => opened,
            Err(failed) => return End::NoSession(failed),
        };
        let mut connection = pin!(connection);
        let mut watch = pin!(self.watch(Arc::new(client), announced_pid, at, backoff));
        tokio::select! {
            biased;
            closed = &mut connection => {
                // A FATAL goes to the query in flight, if there is one; else the connection itself has it.
                match (closed, watch.now_or_never()) {
                    (Err(error), _) if error.as_db_error().is_some() => End::silent(explain(&error)),
                    (_, Some(end)) => end,
                    (Err(error), None) => End::silent(explain(&error)),
                    (Ok(()), None) => End::silent("PostgreSQL closed the connection"),
                }
            }
            end = &mut watch => end,
        }
    }

    async fn watch(
        &mut self,
        client: Arc<Client>,
        announced_pid: i32,
        at: Option<IpAddr>,
        backoff: &mut Backoff,
    ) -> End {
        if let Err(end) = self.prepare(&client, announced_pid).await {
            return end;
        }
        if self.wants.is_none() {
            self.shared.has_session(&client, at, None);
        }
        let questions = Questions::new(if self.wants.is_some() { Asks::Timeline } else { Asks::Nothing });
        let mut seen = Seen {
            pid: announced_pid,
            roster: Roster::default(),
            known: Known::default(),
            questions,
            system: if self.wants.is_some() { System::Unasked } else { System::Asked(None) },
        };
        loop {
            let asked_at = (self.clock)();
            let (look, role) = match self.look(&client, &mut seen).await {
                Ok(looked) => looked,
                // The session lives, and another may not be had as long as PostgreSQL is so busy.
                Err(End::Lost(failed)) if failed.answers && !client.is_closed() => {
                    if failed.lacks && self.lacks_timeline(&client, &seen.questions).await {
                        tracing::warn!(upstream = %self.settings.address, error = failed.cause, "its timeline cannot be asked for");
                        seen.questions = Questions::new(Asks::Role);
                        seen.roster = Roster::default();
                        continue;
                    }
                    self.failing.answered(at);
                    self.role = None;
                    seen.roster = Roster::default();
                    self.tell_down(failed.cause, Sign::Answers).await;
                    let pause = backoff.next(getrandom::u32().unwrap_or(0));
                    self.rest(asked_at, pause.min(self.settings.interval)).await;
                    if self.is_elsewhere_in_trouble(at).await {
                        return End::Moved;
                    }
                    continue;
                }
                Err(end) => return end,
            };
            *backoff = Backoff::default();
            self.failing.answered(at);
            let system = if let System::Asked(system) = seen.system { system } else { None };
            let is_blind = matches!(look, Look::Blind);
            let mut pause = self.settings.interval;
            // First: whose sample it is, where the name leads to several.
            if let Some(role) = role
                && self.role.replace(role) != Some(role)
            {
                self.tell(MonitorEvent::Role { role, at, system }).await;
            }
            match look {
                Look::Sample(sample) => {
                    self.shared.set_state("ok");
                    pause = pause_after(self.settings.interval, sample.sessions.len());
                    self.tell(MonitorEvent::Sample(sample)).await;
                }
                Look::Role => {
                    self.shared.set_state("ok");
                    self.told = None;
                }
                Look::Blind => {
                    self.shared.set_state(format!(
                        "blind: `grant pg_monitor to {}` lets it see other roles' sessions",
                        self.settings.user
                    ));
                    self.tell(MonitorEvent::Blind).await;
                }
            }
            if is_blind && self.wants.is_none() {
                tokio::time::sleep(RECHECK).await;
            } else {
                self.rest(asked_at, pause).await;
            }
            if let Some(role) = role
                && self.is_elsewhere((role, system), at).await
            {
                return End::Moved;
            }
        }
    }

    /// Makes sure PostgreSQL itself answers, then sets the session up.
    async fn prepare(&self, client: &Client, announced_pid: i32) -> Result<(), End> {
        let row = self.ask(client.query_typed_one(query::BACKEND_PID, &[])).await.map_err(End::Lost)?;
        let pid: i32 = row.try_get(0).map_err(|error| End::Lost(Failed::of(&error)))?;
        same_backend(announced_pid, pid)?;
        let settings = query::session_settings(self.shared.statement_timeout);
        self.ask(client.batch_execute(&settings)).await.map_err(End::Lost)
    }

    /// Looks; and once more, at everything, where what was found does not go with what was known.
    async fn look(&self, client: &Arc<Client>, seen: &mut Seen) -> Result<(Look, Option<Role>), End> {
        if matches!(seen.system, System::Unasked) {
            let system = self.ask_system(client).await.map_err(End::Lost)?;
            seen.system = System::Asked(system);
            self.shared.has_session(client, self.at, system);
        }
        if !self.shared.samples.load(Ordering::Relaxed) {
            // What was known of its sessions will be old when it is asked for them again.
            seen.roster = Roster::default();
            let row = self.ask(client.query_typed_one(&seen.questions.role, &[])).await.map_err(End::Lost)?;
            let role = query::role_of(&row).map_err(|error| End::Lost(Failed::of(&error)))?;
            return Ok((Look::Role, Some(role)));
        }
        loop {
            let answer = self.question(client, seen).await.map_err(End::Lost)?;
            same_backend(seen.pid, answer.facts.monitor_pid)?;
            let role = answer.facts.role;
            if !answer.facts.may_read {
                // Nothing of what such a role is shown may be taken for known later.
                seen.roster = Roster::default();
                return Ok((Look::Blind, role));
            }
            if let Some(sample) = seen.roster.take(answer) {
                return Ok((Look::Sample(sample), role));
            }
        }
    }

    /// Asks, and reads the answer in portions with a rest between them: with thousands of sessions to read it takes milliseconds, in which a
    /// worker would wait for the core.
    async fn question(&self, client: &Client, seen: &mut Seen) -> Result<Answer, Failed> {
        let asked_at = (self.clock)();
        let question = seen.roster.question(asked_at);
        let [since, locks] = query::SAMPLE_TYPES;
        let parameters: [(&(dyn ToSql + Sync), Type); 2] =
            [(&question.quiet_since, since), (&question.locks, locks)];
        let row = self.ask(client.query_typed_one(&seen.questions.sample, &parameters)).await?;
        let taken_at = (self.clock)();
        let facts = query::facts(&row).map_err(|e| Failed::of(&e))?;
        let odd = |cause| Failed { cause, answers: true, lacks: false, gave_up: false };
        let mut others = Vec::new();
        for (n, record) in query::others(&row).map_err(|e| Failed::of(&e))?.into_iter().enumerate() {
            if n > 0 && n % PORTION == 0 {
                tokio::time::sleep(PORTION_REST).await;
            }
            others.push(query::session(record, facts.clock, taken_at, &mut seen.known).map_err(odd)?);
        }
        let quiet = query::quiet(&row).map_err(|e| Failed::of(&e))?;
        let holders = query::lock_holders(&row).map_err(|e| Failed::of(&e))?.into_iter();
        let lock_holders =
            holders.map(|r| query::lock_holder(r, &mut seen.known)).collect::<Result<_, _>>().map_err(odd)?;
        Ok(Answer { question, asked_at, taken_at, facts, lock_holders, quiet, others })
    }

    /// Whether it is the timeline that is not to be had, and not something else of what a sample asks.
    async fn lacks_timeline(&self, client: &Client, questions: &Questions) -> bool {
        questions.asks == Asks::Timeline
            && self.ask(client.query_typed_one(&questions.role, &[])).await.is_err_and(|failed| failed.lacks)
    }

    /// The system identifier of its cluster; none where it is not told, for whatever reason: a server serves without it. What was only given up
    /// is asked again.
    async fn ask_system(&self, client: &Client) -> Result<Option<u64>, Failed> {
        let error = match self.ask(client.query_typed(query::SYSTEM, &[])).await {
            Ok(rows) => match rows.first().map(query::system_of) {
                Some(Ok(system)) => return Ok(system),
                Some(Err(error)) => explain(&error),
                None => "no row".to_owned(),
            },
            Err(failed) if failed.answers && !failed.gave_up => failed.cause,
            Err(failed) => return Err(failed),
        };
        tracing::warn!(upstream = %self.settings.address, error, "its system identifier cannot be asked for: another cluster would not be noticed");
        Ok(None)
    }

    async fn ask<T>(
        &self,
        question: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Failed> {
        let answer = bounded(self.shared.limit, question).await.map_err(Failed::silent)?;
        answer.map_err(|error| Failed::of(&error))
    }

    /// Until the next look is due after `pause`, or asked for.
    async fn rest(&self, asked_at: Moment, pause: Duration) {
        let hurried =
            self.shared.hurries.load(Ordering::Relaxed) && !self.shared.samples.load(Ordering::Relaxed);
        let due = tokio::time::sleep(if hurried { pause.min(HURRIED) } else { pause });
        tokio::select! {
            () = due => {}
            () = self.shared.wake.notified() => {
                let since = (self.clock)().since(asked_at);
                tokio::time::sleep(GAP_MIN.saturating_sub(since)).await;
            }
        }
    }

    async fn tell(&mut self, event: MonitorEvent) {
        if self.told.as_ref() == Some(&event) {
            return;
        }
        if !matches!(event, MonitorEvent::Role { .. } | MonitorEvent::Name(_)) {
            self.told = (!matches!(event, MonitorEvent::Sample(_))).then(|| event.clone());
        }
        // A receiver that is gone ends the task through `closed`.
        let _ = self.events.send(event).await;
    }
}

/// A pooler announces a pid of its own making, or answers from another backend each time.
fn same_backend(announced: i32, answered: i32) -> Result<(), End> {
    if announced == answered {
        return Ok(());
    }
    Err(End::Pooler(format!(
        "backend {answered} answers where {announced} was announced; give [monitor] PostgreSQL's own address"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_backend_than_announced_is_a_pooler() {
        assert!(same_backend(7, 7).is_ok());
        assert!(matches!(same_backend(0, 7), Err(End::Pooler(text)) if text.contains("backend 7")));
    }
}
