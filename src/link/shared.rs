//! The cell through which a link is seen and reached from outside. Its worker writes, everybody reads; commands wait in a mailbox.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;

use super::keys::CancelKeys;
use super::reactor::ReactorWake;
use super::totals::{Figures, Totals};
use crate::clock::Moment;
use crate::lanes::classify::Facts;
use crate::lanes::ids::{LaneId, LinkId};
use crate::reason::{Refusal, SqlState};
use crate::wire::statement;

/// Where a link stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LinkState {
    /// Its startup packet is awaited, or its process looked up.
    Starting,
    /// In its lane's queue.
    Waiting,
    /// Dialling or authenticating.
    Login,
    /// A transaction is held at its begin.
    Held,
    /// Outside a transaction.
    Idle,
    /// A request is running.
    Active,
    /// Inside a transaction, nothing outstanding.
    IdleInTransaction,
    /// The upstream side is being closed.
    Closing,
}

impl LinkState {
    const ALL: [Self; 8] = [
        Self::Starting,
        Self::Waiting,
        Self::Login,
        Self::Held,
        Self::Idle,
        Self::Active,
        Self::IdleInTransaction,
        Self::Closing,
    ];

    /// The word of SHOW CLIENTS.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Waiting => "waiting",
            Self::Login => "login",
            Self::Held => "held",
            Self::Idle => "idle",
            Self::Active => "active",
            Self::IdleInTransaction => "idle_in_transaction",
            Self::Closing => "closing",
        }
    }
}

/// Facts beside the state, as bits.
pub mod flag {
    /// LISTENs.
    pub const LISTENING: u16 = 1;
    /// The last statement is one that idles for a living.
    pub const EXEMPT: u16 = 2;
    /// Set its own idle_in_transaction_session_timeout to 0.
    pub const WATCH_ONLY: u16 = 4;
    /// PostgreSQL waits for the client inside a request.
    pub const STALLED: u16 = 8;
    /// The same, if the monitor sees ClientRead.
    pub const MAYBE_STALLED: u16 = 16;
    /// Rolled back as a leak, and the client has not ended it yet.
    pub const RESET: u16 = 32;
    /// The client is not being read.
    pub const BLOCKED: u16 = 64;
    /// In a transaction.
    pub const IN_TRANSACTION: u16 = 128;
    /// Told to end at its next transaction boundary, for a better lane's reserve.
    pub const YIELDING: u16 = 256;
    /// The client came with TLS 1.3.
    pub const TLS_13: u16 = 512;
    /// The client came with TLS 1.2.
    pub const TLS_12: u16 = 1024;
    /// The connection to PostgreSQL has TLS.
    pub const UPSTREAM_TLS: u16 = 2048;
}

/// What others ask of a link.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// A slot is yours.
    Granted,
    /// A pooled connection is yours.
    Reused(LinkId),
    /// You may not come in.
    Refused(Refusal),
    /// The lane may have opened: ask again.
    AskAgain,
    /// A held link is refused.
    RejectHeld(Refusal),
    /// Roll the transaction of this idle period back.
    Reset {
        /// Void in any other period; `None` is an operator's word on whatever runs now.
        generation: Option<u32>,
        /// For the client's errors.
        sqlstate: SqlState,
        /// Figures.
        refusal: Refusal,
    },
    /// Close both sides, in this idle period.
    Close {
        /// Void in any other period; `None`: at once.
        generation: Option<u32>,
        /// Sent to the client as FATAL.
        refusal: Refusal,
    },
    /// End at the next transaction boundary.
    Drain,
    /// The same, for its server is not the one that is dialled any more.
    Leave(Refusal),
    /// The same, for a better lane's reserve.
    Yield,
    /// The client of this phase's held statement cancelled it.
    CancelHeld(u32),
    /// Rules changed: classify again at the next boundary.
    Reclassify,
    /// Look whether the client hung up behind unread bytes.
    Probe,
}

/// Commands that may wait for one link.
const MAIL_MAX: usize = 32;

/// Who carries the link: a task, until its login is done and again when it closes; a reactor in between.
#[derive(Debug)]
enum Wake {
    Task(Waker),
    Reactor(ReactorWake),
}

impl Wake {
    fn wake(&self) {
        match self {
            Self::Task(waker) => waker.wake_by_ref(),
            Self::Reactor(reactor) => reactor.wake(),
        }
    }
}

#[derive(Debug, Default)]
struct Mail {
    waker: Option<Wake>,
    commands: Vec<Command>,
}

/// A client process that may have several links.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ProcessKey {
    /// Peer pid of a Unix socket, or owner of a loopback connection.
    Pid(i32),
    /// Else address and raw application_name.
    Named(Option<IpAddr>, Arc<str>),
}

/// Links of one client process.
#[derive(Debug)]
pub struct Process {
    /// Which.
    pub key: ProcessKey,
    /// Links inside a transaction that a hold would have stopped but did not have to.
    pub in_transaction: AtomicU32,
    /// Its links, waiting ones included.
    pub links: AtomicU32,
}

/// Words about a link, for people.
#[derive(Clone, Debug)]
pub struct Labels {
    /// Lane it is counted in.
    pub lane: LaneId,
    /// That lane's name.
    pub lane_name: Arc<str>,
    /// The rule that matched.
    pub rule: Arc<str>,
    /// Normalised application.
    pub application_name: Arc<str>,
    /// What is known of the client, its raw application_name included.
    pub facts: Arc<Facts>,
    /// Its process, for holds and repeats; none once it has left the registry.
    pub process: Option<Arc<Process>>,
    /// Head of the last statement, raw.
    pub statement: Vec<u8>,
}

impl Labels {
    /// "PID command line" of the client process, as far as it was looked up; empty where it was not.
    pub fn process_line(&self) -> String {
        match (self.process.as_ref().map(|process| &process.key), &self.facts.process) {
            (Some(ProcessKey::Pid(pid)), Some(line)) => format!("{pid} {line}"),
            (Some(ProcessKey::Pid(pid)), None) => pid.to_string(),
            _ => String::new(),
        }
    }
}

/// What a canceller finds a link doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing a cancel could mean.
    Idle,
    /// A request is upstream.
    Running,
    /// A request is held here.
    Held,
}

/// One link, seen from outside.
#[derive(Debug)]
pub struct LinkShared {
    /// Its name.
    pub id: LinkId,
    /// When it came.
    pub arrived: Moment,
    /// What its worker counts.
    pub figures: Figures,
    /// Client port; 0 for a Unix socket. The address is among the facts.
    port: u16,
    state: AtomicU8,
    since: AtomicU64,
    transaction_since: AtomicU64,
    wait_us: AtomicU64,
    generation: AtomicU32,
    flags: AtomicU16,
    /// Moment of the rollback that this transaction suffered; 0 when none.
    pub reset_at: AtomicU64,
    /// The last period whose transaction was rolled back, also when that one is over; 0 when none was.
    pub reset_period: AtomicU32,
    /// Backend pid; 0 while unknown.
    pub pid: AtomicI32,
    phase: AtomicU32,
    cancels: AtomicU32,
    keys: OnceLock<CancelKeys>,
    labels: Mutex<Labels>,
    has_mail: AtomicBool,
    mail: Mutex<Mail>,
}

impl LinkShared {
    /// A link that has just sent its startup packet, from `port` unless it came over a Unix socket.
    pub fn new(id: LinkId, port: Option<u16>, now: Moment, labels: Labels) -> Self {
        Self {
            id,
            arrived: now,
            figures: Figures::default(),
            port: port.unwrap_or(0),
            state: AtomicU8::new(LinkState::Starting as u8),
            since: AtomicU64::new(now.as_micros()),
            transaction_since: AtomicU64::new(0),
            wait_us: AtomicU64::new(0),
            generation: AtomicU32::new(0),
            flags: AtomicU16::new(0),
            reset_at: AtomicU64::new(0),
            reset_period: AtomicU32::new(0),
            pid: AtomicI32::new(0),
            phase: AtomicU32::new(0),
            cancels: AtomicU32::new(0),
            keys: OnceLock::new(),
            labels: Mutex::new(labels),
            has_mail: AtomicBool::new(false),
            mail: Mutex::new(Mail::default()),
        }
    }

    // ------------------------------------------------------------ state

    /// State and since when.
    pub fn state(&self) -> (LinkState, Moment) {
        let state = LinkState::ALL[usize::from(self.state.load(Ordering::Relaxed)) % LinkState::ALL.len()];
        (state, Moment::from_micros(self.since.load(Ordering::Relaxed)))
    }

    /// Whether it logs in, or has neither a slot nor asked for anything yet, for less than `grace`.
    pub fn has_just_come(&self, grace: Duration, now: Moment) -> bool {
        match self.state() {
            (LinkState::Starting | LinkState::Login, _) => true,
            (LinkState::Waiting, since) => now.since(since) < grace,
            (LinkState::Idle, since) => self.figures.read().queries == 0 && now.since(since) < grace,
            _ => false,
        }
    }

    /// Enters a state: a new period begins, and commands for the old one are void.
    pub fn enter(&self, state: LinkState, now: Moment) {
        // Only the link's own worker writes: no locked instruction is needed.
        let next = self.generation.load(Ordering::Relaxed).wrapping_add(1);
        self.generation.store(next, Ordering::Relaxed);
        self.since.store(now.as_micros(), Ordering::Relaxed);
        self.state.store(state as u8, Ordering::Release);
    }

    /// The running period's number.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Begin of the transaction, if there is one.
    pub fn transaction_since(&self) -> Option<Moment> {
        match self.transaction_since.load(Ordering::Relaxed) {
            0 => None,
            at => Some(Moment::from_micros(at)),
        }
    }

    /// Notes the begin or end of a transaction.
    pub fn set_transaction(&self, since: Option<Moment>) {
        self.transaction_since.store(since.map_or(0, Moment::as_micros), Ordering::Relaxed);
        if since.is_none() {
            self.reset_at.store(0, Ordering::Relaxed);
        }
    }

    /// Adds to the time it has waited.
    pub fn waited(&self, took: Duration) {
        self.wait_us.fetch_add(u64::try_from(took.as_micros()).unwrap_or(0), Ordering::Relaxed);
    }

    /// Time waited so far in µs, the wait going on not counted.
    pub fn wait_us(&self) -> u64 {
        self.wait_us.load(Ordering::Relaxed)
    }

    /// What it adds to the totals of its database; nothing before it was let in.
    pub fn totals(&self) -> Option<Totals> {
        let let_in = self.pid.load(Ordering::Relaxed) != 0;
        let_in.then(|| Totals { wait_us: self.wait_us(), ..self.figures.read() })
    }

    /// Flags now: see [`flag`].
    pub fn flags(&self) -> u16 {
        self.flags.load(Ordering::Relaxed)
    }

    /// Sets or clears a flag. Only the link's own worker does.
    pub fn set_flag(&self, which: u16, on: bool) {
        let flags = self.flags.load(Ordering::Relaxed);
        let wanted = if on { flags | which } else { flags & !which };
        if wanted != flags {
            self.flags.store(wanted, Ordering::Relaxed);
        }
    }

    /// Reads or writes the labels; short.
    pub fn with_labels<R>(&self, f: impl FnOnce(&mut Labels) -> R) -> R {
        f(&mut self.labels.lock())
    }

    /// Client address with port; none for a Unix socket.
    pub fn address(&self) -> Option<SocketAddr> {
        let address = self.with_labels(|labels| labels.facts.address)?;
        Some(SocketAddr::new(address, self.port))
    }

    /// Who this is and what it did last, for the timeline.
    pub fn describe(&self, literals: bool) -> String {
        let pid = self.pid.load(Ordering::Relaxed);
        let address = self.address().map_or_else(|| "unix".to_owned(), |address| address.to_string());
        self.with_labels(|l| {
            let statement = statement::shown(&String::from_utf8_lossy(&l.statement), literals);
            format!(
                "application {}, user {}, database {}, from {address}, pid {pid}, last statement: {statement}",
                l.facts.application, l.facts.user, l.facts.database
            )
        })
    }

    // ------------------------------------------------------------ cancel

    /// Its cancel keys; none before its login is done.
    pub fn cancel_keys(&self) -> Option<&CancelKeys> {
        self.keys.get()
    }

    /// Its login is done, and these are its cancel keys: once.
    pub fn set_cancel_keys(&self, keys: CancelKeys) {
        let _ = self.keys.set(keys);
    }

    /// The link's side: a request is about to be forwarded (or held). False if a cancel is in flight: then it must wait.
    ///
    /// Either this store is seen by [`LinkShared::begin_cancel`], or that one's count is seen here: both are sequentially
    /// consistent.
    pub fn start_phase(&self, held: bool) -> bool {
        let before = self.phase.load(Ordering::Relaxed);
        let next = (before & !3).wrapping_add(4) | if held { 2 } else { 1 };
        self.phase.store(next, Ordering::SeqCst);
        if self.cancels.load(Ordering::SeqCst) == 0 || held {
            return true;
        }
        // An earlier request of the same pipeline may still be running.
        self.phase.store(before, Ordering::SeqCst);
        false
    }

    /// The link's side: nothing is outstanding any more.
    pub fn end_phase(&self) {
        let phase = self.phase.load(Ordering::Relaxed);
        if phase & 3 != 0 {
            self.phase.store(phase & !3, Ordering::SeqCst);
        }
    }

    /// The number that [`Command::CancelHeld`] must name.
    pub fn phase_number(&self) -> u32 {
        self.phase.load(Ordering::Relaxed) & !3
    }

    /// Whether a cancel is on its way upstream.
    pub fn is_being_cancelled(&self) -> bool {
        self.cancels.load(Ordering::SeqCst) > 0
    }

    /// Cancels that are on their way upstream.
    pub fn cancels_under_way(&self) -> u32 {
        self.cancels.load(Ordering::Relaxed)
    }

    /// The canceller's side: from here until [`LinkShared::end_cancel`] no new request is forwarded. Says what there is to cancel.
    pub fn begin_cancel(&self) -> (Phase, u32) {
        self.cancels.fetch_add(1, Ordering::SeqCst);
        let phase = self.phase.load(Ordering::SeqCst);
        let kind = match phase & 3 {
            1 => Phase::Running,
            2 => Phase::Held,
            _ => Phase::Idle,
        };
        (kind, phase & !3)
    }

    /// The canceller's side: upstream has closed the cancel connection, or there was nothing to cancel.
    pub fn end_cancel(&self) {
        self.cancels.fetch_sub(1, Ordering::SeqCst);
        self.wake();
    }

    // ------------------------------------------------------------ mailbox

    /// Sends a command. A full mailbox drops it: those who command repeat themselves (sweeps) or see it in SHOW CLIENTS.
    pub fn post(&self, command: Command) {
        let mut mail = self.mail.lock();
        if mail.commands.len() < MAIL_MAX && !mail.commands.contains(&command) {
            mail.commands.push(command);
        }
        self.has_mail.store(true, Ordering::Release);
        if let Some(waker) = &mail.waker {
            waker.wake();
        }
    }

    /// Wakes the link's task without a command.
    pub fn wake(&self) {
        self.has_mail.store(true, Ordering::Release);
        if let Some(waker) = &self.mail.lock().waker {
            waker.wake();
        }
    }

    /// Whom to wake. A task's waker is stable, so that once per task is enough.
    pub fn register(&self, cx: &Context<'_>) {
        let mut mail = self.mail.lock();
        if !matches!(&mail.waker, Some(Wake::Task(known)) if known.will_wake(cx.waker())) {
            mail.waker = Some(Wake::Task(cx.waker().clone()));
        }
    }

    /// A reactor carries the link from now on.
    pub fn carried(&self, wake: ReactorWake) {
        self.mail.lock().waker = Some(Wake::Reactor(wake));
    }

    /// Whether there may be mail or a wake; clears the mark.
    #[inline]
    pub fn has_mail(&self) -> bool {
        self.has_mail.load(Ordering::Relaxed) && self.has_mail.swap(false, Ordering::Acquire)
    }

    /// All commands waiting.
    pub fn take_mail(&self) -> Vec<Command> {
        std::mem::take(&mut self.mail.lock().commands)
    }

    /// Waits for the next commands.
    pub async fn receive(&self) -> Vec<Command> {
        std::future::poll_fn(|cx| {
            self.register(cx);
            self.has_mail();
            let commands = self.take_mail();
            if commands.is_empty() { Poll::Pending } else { Poll::Ready(commands) }
        })
        .await
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn facts(word: &Arc<str>) -> Facts {
        Facts {
            application: word.clone(),
            user: word.clone(),
            database: word.clone(),
            address: None,
            listener: word.clone(),
            listener_lane: None,
            replication: false,
            process: None,
        }
    }

    pub(crate) fn link() -> LinkShared {
        let word: Arc<str> = "x".into();
        let labels = Labels {
            lane: LaneId(0),
            lane_name: word.clone(),
            rule: word.clone(),
            application_name: word.clone(),
            facts: Arc::new(facts(&word)),
            process: None,
            statement: Vec::new(),
        };
        LinkShared::new(LinkId(1), None, Moment::from_micros(1), labels)
    }

    #[test]
    fn who_logs_in_or_has_not_asked_yet_has_just_come() {
        let (link, grace) = (link(), Duration::from_secs(1));
        let at = |ms: u64| Moment::from_micros(ms * 1000);
        let has_just_come = |ms| link.has_just_come(grace, at(ms));
        assert!(has_just_come(60_000), "it says who it is");
        link.enter(LinkState::Waiting, at(1));
        assert!(has_just_come(1000));
        assert!(!has_just_come(1001), "nobody knows for how long it will wait");
        link.enter(LinkState::Login, at(1002));
        assert!(has_just_come(60_000), "PostgreSQL lets it in");
        link.enter(LinkState::Idle, at(60_000));
        assert!(has_just_come(60_999));
        assert!(!has_just_come(61_000), "it has nothing to ask");
        link.figures.query(grace);
        assert!(!has_just_come(60_001), "it has asked");
        link.enter(LinkState::IdleInTransaction, at(60_002));
        assert!(!has_just_come(60_002));
    }

    #[test]
    fn a_cancel_finds_the_request_or_the_request_finds_the_cancel() {
        let link = link();
        assert!(link.start_phase(false));
        assert_eq!(link.begin_cancel().0, Phase::Running);
        link.end_phase();
        assert!(!link.start_phase(false), "a new request waits for the cancel");
        assert_eq!(link.begin_cancel().0, Phase::Idle, "and is not hit by another");
        link.end_cancel();
        link.end_cancel();
        assert!(link.start_phase(false));
    }

    #[test]
    fn a_held_request_is_cancelled_by_number() {
        let link = link();
        assert!(link.start_phase(true));
        let (kind, number) = link.begin_cancel();
        assert_eq!((kind, number), (Phase::Held, link.phase_number()));
        link.end_cancel();
        assert!(link.start_phase(false));
        assert_ne!(number, link.phase_number());
    }

    #[test]
    fn the_mailbox_is_bounded_and_drops_repeats() {
        let link = link();
        for n in 0..100 {
            link.post(Command::CancelHeld(n));
            link.post(Command::CancelHeld(n));
        }
        assert_eq!(link.take_mail().len(), MAIL_MAX);
        assert!(link.has_mail());
        assert!(!link.has_mail());
    }

    #[test]
    fn a_process_is_shown_by_what_is_known_of_it() {
        let link = link();
        let shown = |key: Option<ProcessKey>, line: Option<&str>| {
            link.with_labels(|labels| {
                let facts = Facts { process: line.map(Into::into), ..facts(&"x".into()) };
                labels.facts = Arc::new(facts);
                labels.process = key.map(|key| {
                    Arc::new(Process { key, in_transaction: AtomicU32::new(0), links: AtomicU32::new(0) })
                });
                labels.process_line()
            })
        };
        assert_eq!(shown(Some(ProcessKey::Pid(7)), Some("python3 odoo-bin")), "7 python3 odoo-bin");
        assert_eq!(shown(Some(ProcessKey::Pid(7)), None), "7");
        assert_eq!(shown(Some(ProcessKey::Named(None, "x".into())), None), "");
        assert_eq!(shown(None, None), "");
    }

    #[test]
    fn each_state_begins_a_period() {
        let link = link();
        let before = link.generation();
        link.enter(LinkState::Idle, Moment::from_micros(9));
        assert_ne!(link.generation(), before);
        assert_eq!(link.state(), (LinkState::Idle, Moment::from_micros(9)));
    }
}
