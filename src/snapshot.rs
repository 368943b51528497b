//! The read model of console, CLI, metrics and (later) dashboard: plain rows, made in one place, shown in many.

use std::sync::Arc;

use crate::clock::WallMs;

/// What a lane is doing, in the words of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LaneState {
    /// Admits up to its quota.
    Open,
    /// An operator, FREEZE or a ramp stopped it.
    Paused,
    /// Usage is above its threshold (or unknown).
    Shedding,
    /// Being resumed step by step.
    Ramping,
    /// More slots than its quota: admits nobody until below.
    Over,
}

impl LaneState {
    /// Every state, in the order of the contract.
    pub const ALL: [Self; 5] = [Self::Open, Self::Paused, Self::Shedding, Self::Ramping, Self::Over];

    /// The word shown.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Paused => "paused",
            Self::Shedding => "shedding",
            Self::Ramping => "ramping",
            Self::Over => "over",
        }
    }
}

/// A row of SHOW LANES.
#[derive(Clone, Debug, PartialEq)]
pub struct LaneRow {
    /// Name.
    pub lane: Arc<str>,
    /// State.
    pub state: LaneState,
    /// 0 is best.
    pub priority: u8,
    /// Slots at most (SET LANE and ramps included).
    pub quota: u32,
    /// Slots kept free for it.
    pub reserve: u32,
    /// Slots now, dialling and closing included.
    pub slots: u32,
    /// Links idle outside a transaction.
    pub idle: u32,
    /// Links with a request running.
    pub active: u32,
    /// Links idle in transaction.
    pub idle_in_transaction: u32,
    /// Clients waiting for a slot, and established links held.
    pub waiting: u32,
    /// Longest wait of those waiting now, in ms.
    pub max_wait_ms: u64,
    /// Links admitted since start.
    pub admitted: u64,
    /// Links shed (held or refused by shedding) since start.
    pub shed: u64,
    /// Refusals since start, shed ones included.
    pub refused: u64,
    /// Resets since start.
    pub resets: u64,
    /// Who paused it, empty if nobody.
    pub paused_by: String,
    /// Why it is in its state, empty when open.
    pub reason: String,
}

/// A row of SHOW APPLICATIONS.
#[derive(Clone, Debug, PartialEq)]
pub struct ApplicationRow {
    /// Normalised name; raw where no `[[application]]` matches.
    pub application: Arc<str>,
    /// Quota; none is unlimited.
    pub quota: Option<u32>,
    /// Slots now.
    pub slots: u32,
    /// Links idle outside a transaction.
    pub idle: u32,
    /// Links with a request running.
    pub active: u32,
    /// Links idle in transaction.
    pub idle_in_transaction: u32,
    /// Clients waiting.
    pub waiting: u32,
}

/// A row of SHOW CLIENTS.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientRow {
    /// Stable for the life of the link.
    pub id: u64,
    /// Lane.
    pub lane: Arc<str>,
    /// The rule that matched, as written; "default" where none did.
    pub rule: Arc<str>,
    /// Raw application_name.
    pub application: Arc<str>,
    /// User.
    pub user: Arc<str>,
    /// Database.
    pub database: Arc<str>,
    /// Client address with port, or "unix".
    pub address: String,
    /// Backend pid, while there is one.
    pub pid: Option<i32>,
    /// Client process: "PID command line", empty when not looked up.
    pub process: String,
    /// starting, waiting, login, held, idle, active, idle_in_transaction, stalled, reset, closing.
    pub state: &'static str,
    /// Age of the transaction in ms, 0 outside one.
    pub transaction_ms: u64,
    /// Idle time in transaction in ms, 0 when not.
    pub idle_in_transaction_ms: u64,
    /// Time waited in a queue or held, in ms.
    pub wait_ms: u64,
    /// Last statement, literals redacted.
    pub last_statement: String,
    /// When it connected.
    pub connected_at: WallMs,
    /// Whether it LISTENs.
    pub listening: bool,
    /// Local port of the upstream connection, 0 when none or a Unix socket.
    pub upstream_port: u16,
}

/// A row of SHOW LEAKS: links and bypass sessions idle in transaction beyond their `warn`.
#[derive(Clone, Debug, PartialEq)]
pub struct LeakRow {
    /// Link, none for a session that bypasses pgweir.
    pub id: Option<u64>,
    /// Lane; "bypass" where it is none of ours.
    pub lane: Arc<str>,
    /// Raw application_name.
    pub application: Arc<str>,
    /// User.
    pub user: Arc<str>,
    /// Database.
    pub database: Arc<str>,
    /// Client address.
    pub address: String,
    /// Backend pid.
    pub pid: Option<i32>,
    /// Idle time in ms.
    pub idle_in_transaction_ms: u64,
    /// Transaction age in ms.
    pub transaction_ms: u64,
    /// Pids that wait for its locks.
    pub blocks: Vec<i32>,
    /// What pgweir will do or did: watch, warn, reset in N s, reset, exempt, observed, limit.
    pub verdict: String,
    /// Last statement, literals redacted.
    pub last_statement: String,
}

/// A row of SHOW SESSIONS: pg_stat_activity joined with our links.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionRow {
    /// Backend pid.
    pub pid: i32,
    /// "pgweir", "bypass" or "monitor".
    pub via: &'static str,
    /// Link id where it is ours.
    pub id: Option<u64>,
    /// Lane where it is ours.
    pub lane: Arc<str>,
    /// application_name.
    pub application: Arc<str>,
    /// User.
    pub user: Arc<str>,
    /// Database.
    pub database: Arc<str>,
    /// The real client's address.
    pub address: String,
    /// pg_stat_activity.state.
    pub state: Arc<str>,
    /// ms since state_change.
    pub state_ms: u64,
    /// ms since xact_start, 0 when none.
    pub transaction_ms: u64,
    /// Wait event, "Type:Event".
    pub wait_event: String,
    /// Pids that block it.
    pub blocked_by: Vec<i32>,
    /// Query, literals redacted.
    pub query: String,
}

/// The row of SHOW USAGE.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UsageRow {
    /// PostgreSQL's max_connections; 0 until known.
    pub max_connections: u32,
    /// max_connections less the reserved ones.
    pub usable: u32,
    /// own_slots + bypass.
    pub connections: u32,
    /// Sampled client backends that are active.
    pub active: u32,
    /// Sampled client backends that are idle.
    pub idle: u32,
    /// Sampled client backends idle in transaction (aborted included).
    pub idle_in_transaction: u32,
    /// connections ÷ usable × 100; none until known.
    pub percent: Option<f64>,
    /// connections ÷ max_connections × 100; none until known.
    pub percent_of_max: Option<f64>,
    /// pgweir's own non-replication slots.
    pub own_slots: u32,
    /// Client backends that are not pgweir's.
    pub bypass: u32,
    /// Age of the sample in ms; none before the first.
    pub sampled_ms_ago: Option<u64>,
    /// Whether the sample is too old to decide upon.
    pub stale: bool,
}

/// An entry of the timeline.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TimelineEntry {
    /// Strictly increasing.
    pub seq: u64,
    /// When.
    pub at: u64,
    /// Who: an operator's name, or "pgweir".
    pub who: String,
    /// What, one word: freeze, pause, resume, ramp, shed, unshed, leak_warn, reset, disconnect, reset_limit, too_many_clients,
    /// upstream_down, upstream_up, monitor_stale, monitor_ok, reload, note, set, kill, cancel, drain, start, shutdown…
    pub event: String,
    /// Lane, empty when none.
    pub lane: String,
    /// Link id.
    pub client: Option<u64>,
    /// Details and why, for people.
    pub text: String,
    /// Usage in percent at that moment.
    pub usage: Option<f64>,
}

/// What `status` says of the process itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProcessRow {
    /// Version.
    pub version: &'static str,
    /// enforce or observe.
    pub mode: &'static str,
    /// Seconds since start.
    pub uptime_s: u64,
    /// Client connections.
    pub clients: u32,
    /// max_clients.
    pub max_clients: u32,
    /// Logins in progress.
    pub logins: u32,
    /// running, draining.
    pub state: &'static str,
    /// Whether upstream answers.
    pub upstream: String,
    /// Monitor's state: ok, stale, blind (no pg_read_all_stats), off, pooler, …
    pub monitor: String,
    /// Failed process look-ups by cause.
    pub lookups_failed: Vec<(String, u64)>,
    /// Times PostgreSQL said "too many clients" to us.
    pub too_many_clients: u64,
    /// Panics caught in links.
    pub panics: u64,
}
