//! The read model of console, CLI, metrics and dashboard: plain rows, made in one place, shown in many.

use std::sync::Arc;

use crate::clock::WallMs;

mod utc;

pub use utc::{from_utc, rfc3339, utc, utc_seconds};

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
    /// Why it is in its state; when open, why those who wait do, empty if nobody does.
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
    /// What PgBouncer's tools want to know besides.
    pub ends: ClientEnds,
}

/// Of a client, what is shown in PgBouncer's columns only.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClientEnds {
    /// Client port; 0 for a Unix socket.
    pub port: u16,
    /// The listener, as written in the configuration.
    pub listener: Arc<str>,
    /// When it came.
    pub connected_at: WallMs,
    /// When its last request began; when it came, if there was none.
    pub requested_at: WallMs,
    /// Waiting for so long now, in µs; 0 when not.
    pub waiting_us: u64,
    /// "TLSv1.3", "TLSv1.2" or empty.
    pub tls: &'static str,
    /// Pid of the client process; 0 where it is not known.
    pub process_pid: i32,
}

/// An upstream connection: a row of SHOW SERVERS.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerRow {
    /// Its link; of a pooled connection the one it had last.
    pub link: u64,
    /// Lane it counts in.
    pub lane: Arc<str>,
    /// Raw application_name of its client; the normalised one without.
    pub application: Arc<str>,
    /// User.
    pub user: Arc<str>,
    /// Database.
    pub database: Arc<str>,
    /// PgBouncer's words: new, active, idle; and closing.
    pub state: &'static str,
    /// What the client does, in the words of SHOW CLIENTS; empty without one.
    pub link_state: &'static str,
    /// PostgreSQL's host, or "unix".
    pub host: Arc<str>,
    /// PostgreSQL's port.
    pub port: u16,
    /// pgweir's own address on it, or "unix"; none while it is dialled.
    pub local_address: Option<String>,
    /// The port there; 0 for a Unix socket, and while it is dialled.
    pub local_port: u16,
    /// When it was dialled.
    pub connected_at: WallMs,
    /// When its client's last request began; when it was dialled, if there was none.
    pub requested_at: WallMs,
    /// Backend pid, once known.
    pub pid: Option<i32>,
    /// Whether it has TLS; false where that is not known.
    pub tls: bool,
}

/// A database's figures: rows of SHOW DATABASES, STATS and STATS_TOTALS.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DatabaseRow {
    /// Name.
    pub name: Arc<str>,
    /// PostgreSQL's host, or its socket's directory.
    pub host: Arc<str>,
    /// PostgreSQL's port.
    pub port: u16,
    /// Slots it may have, by all lanes' quotas, their limit per database and the budget.
    pub slots_max: u32,
    /// Reserves of all lanes.
    pub reserved: u32,
    /// Slots it has.
    pub slots: u32,
    /// Whether every lane that may be paused is.
    pub paused: bool,
    /// Whether nobody is let in any more.
    pub disabled: bool,
    /// Since start.
    pub total: Work,
    /// In the last whole minute.
    pub recent: Work,
    /// How long that minute was, in µs; 0 before the first.
    pub recent_us: u64,
}

/// What clients did. Times are in µs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Transactions ended.
    pub transactions: u64,
    /// Time in them.
    pub transaction_us: u64,
    /// Requests answered.
    pub queries: u64,
    /// Time they took.
    pub query_us: u64,
    /// Bytes from clients.
    pub received: u64,
    /// Bytes for clients.
    pub sent: u64,
    /// Time waited for a connection, or held.
    pub wait_us: u64,
}

/// A user's links to a database: a row of SHOW POOLS.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PoolRow {
    /// Database.
    pub database: Arc<str>,
    /// User.
    pub user: Arc<str>,
    /// Clients with a connection of their own.
    pub active: u32,
    /// Clients that wait for one, or are held.
    pub waiting: u32,
    /// Cancel requests on their way to PostgreSQL.
    pub cancels: u32,
    /// Connections that such a request is meant for.
    pub cancelled: u32,
    /// Upstream connections with a client.
    pub linked: u32,
    /// Pooled connections.
    pub idle: u32,
    /// Upstream connections that are being made.
    pub login: u32,
    /// The longest wait now, in µs.
    pub max_wait_us: u64,
    /// Links idle in transaction.
    pub idle_in_transaction: u32,
}

/// How much there is of what, for SHOW LISTS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListsRow {
    /// Client connections there is room for.
    pub free_clients: u32,
    /// Client connections.
    pub used_clients: u32,
    /// Logins in progress.
    pub login_clients: u32,
    /// Upstream connections there is room for.
    pub free_servers: u32,
    /// Upstream connections.
    pub used_servers: u32,
}

/// A server, as SHOW UPSTREAMS shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamRow {
    /// As configured.
    pub address: String,
    /// Where its name led, if that is watched; else empty.
    pub ip: String,
    /// primary, read_only, standby; down, unknown (it does not let the monitor in; or it is the only address, and not asked) or unseen.
    pub role: &'static str,
    /// Whether it is the one that is dialled.
    pub current: bool,
    /// Since when it is what it is.
    pub since_ms: u64,
    /// Of a primary.
    pub timeline: Option<u32>,
    /// Why nothing is known of it, or why it is not dialled though its role would do.
    pub cause: String,
}

/// A line of SHOW HEADROOM's reckoning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadroomRow {
    /// What it is about, one word.
    pub item: &'static str,
    /// The figure, with its unit; empty where there is none.
    pub value: String,
    /// measured, setting, assumed, counted or reckoned.
    pub basis: &'static str,
    /// Where it comes from, and what that means.
    pub note: String,
}

/// A setting in force: a row of SHOW CONFIG.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigRow {
    /// Key, with its section.
    pub key: String,
    /// Value; never a secret.
    pub value: String,
    /// What it is without being set; none where it must be set, or follows from others.
    pub default: Option<String>,
    /// Whether a reload changes it.
    pub changeable: bool,
}

/// A row of SHOW LEAKS: links and bypass sessions idle in transaction beyond their `warn`.
#[derive(Clone, Debug, Default, PartialEq)]
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
    /// Locks it held when PostgreSQL was looked at last, by kind and number.
    pub locks: Arc<str>,
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
    /// "PID command line" of the real client, where it is ours and was looked up.
    pub process: String,
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

/// Usage in a few seconds of the past: the highest figures seen in them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HistoryRow {
    /// When they began, in ms since the epoch.
    pub at: u64,
    /// Usage in percent; none while it was not known.
    pub percent: Option<f64>,
    /// Connections at PostgreSQL; none while they were not known.
    pub connections: Option<u32>,
    /// Those of them that bypass pgweir.
    pub bypass: Option<u32>,
}

/// A row of SHOW PEAKS: a lane, or all of them, in the last 168 hours. *Usual* is what 95 % of the hours had at most in which there was
/// anything to do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PeaksRow {
    /// Name; none for all together.
    pub lane: Option<Arc<str>>,
    /// Hours in which it did something; of all together, hours seen.
    pub hours: u64,
    /// Slots at most; of all together, those of replication left out.
    pub slots_peak: u64,
    /// When the hour of that began, in ms since the epoch.
    pub slots_peak_at: Option<u64>,
    /// Slots in ordinary hours.
    pub slots_usual: u64,
    /// None of all together.
    pub of_lane: Option<PeaksOfLane>,
    /// Client backends that are not pgweir's, at most; none of a lane, nor have the next.
    pub bypass_peak: Option<u64>,
    /// Connections in percent of max_connections, at most.
    pub percent_of_max_peak: Option<f64>,
}

/// What only a lane has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PeaksOfLane {
    /// Slots, with those who waited because it was full.
    pub demand_peak: u64,
    /// Links in a request or a transaction at once.
    pub in_use_peak: u64,
    /// The same in ordinary hours.
    pub in_use_usual: u64,
    /// Clients that waited at once.
    pub waiting_peak: u64,
    /// The longest wait.
    pub max_wait_ms: u64,
    /// Transactions.
    pub transactions: u64,
    /// Refusals.
    pub refused: u64,
    /// By reason, most first: "lane_full 3, shed 2".
    pub refusals: String,
    /// The longest time idle in transaction that its client ended by going on.
    pub idle_in_transaction_ms: u64,
    /// When the hour of that began, in ms since the epoch.
    pub idle_in_transaction_at: Option<u64>,
    /// The same in ordinary hours.
    pub idle_in_transaction_usual_ms: u64,
    /// The longest that was reset, disconnected, or left by its client.
    pub cut_ms: u64,
    /// How many were.
    pub cuts: u64,
}

/// What an operator's page has to know of the configuration: which lines usage may cross, and what its buttons will do.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyRow {
    /// `[exit] usage_below`, in percent.
    pub usage_below: f64,
    /// In the order of the configuration.
    pub lanes: Vec<LanePolicyRow>,
}

/// The same of one lane.
#[derive(Clone, Debug, PartialEq)]
pub struct LanePolicyRow {
    /// Name.
    pub lane: Arc<str>,
    /// Never shed, frozen or reset.
    pub protected: bool,
    /// FREEZE pauses it.
    pub freeze: bool,
    /// Usage in percent above which it sheds; none is never.
    pub shed_above: Option<f64>,
    /// Usage in percent below which it takes new links again; none where it never sheds.
    pub shed_below: Option<f64>,
    /// hold, reject: what a pause does with those who come.
    pub on_pause: &'static str,
    /// rollback, disconnect: what RESET CLIENT does in it.
    pub reset: &'static str,
}

/// An entry of the timeline.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TimelineEntry {
    /// Strictly increasing.
    pub seq: u64,
    /// When, in ms since the epoch. In JSON as [`utc`] writes it; read either way, for the files of earlier versions.
    #[serde(with = "rfc3339")]
    pub at: u64,
    /// Who: an operator's name, or "pgweir".
    pub who: String,
    /// What, one word: freeze, pause, resume, ramp, shed, unshed, leak_warn, reset, disconnect, reset_limit, too_many_clients, incident_opened, incident_closed,
    /// upstream_down, upstream_up, monitor_stale, monitor_ok, reload, note, set, kill, cancel, drain, start, shutdown…
    pub event: String,
    /// Lane, empty when none.
    pub lane: String,
    /// Link id.
    pub client: Option<u64>,
    /// Details and why, for people.
    pub text: String,
    /// Usage in percent at that moment, to one decimal.
    pub usage: Option<f64>,
}

/// A row of SHOW EXIT.
#[derive(Clone, Debug, PartialEq)]
pub struct ExitRow {
    /// `usage`, `too_many_clients`, `refusals`, `log`, `lane NAME`, `probe NAME`. Bounded by the configuration.
    pub criterion: Arc<str>,
    /// met, not met, unknown. Only met counts.
    pub state: &'static str,
    /// Since when, in ms since the epoch.
    pub since: u64,
    /// The same as an age in ms.
    pub since_ms: u64,
    /// What was seen.
    pub measured: String,
    /// What is wanted.
    pub wanted: String,
    /// Why it has that state, in a sentence.
    pub reason: String,
}

impl ExitRow {
    /// Whether it is met.
    pub fn is_met(&self) -> bool {
        self.state == "met"
    }
}

/// A row of SHOW INCIDENTS.
#[derive(Clone, Debug, PartialEq)]
pub struct IncidentRow {
    /// Counts from 1.
    pub id: u64,
    /// When it began, in ms since the epoch.
    pub opened_at: u64,
    /// When it was over; none while it is open.
    pub closed_at: Option<u64>,
    /// How long it lasted, or has by now, in ms.
    pub duration_ms: u64,
    /// usage, freeze, too_many_clients, log.
    pub trigger: String,
    /// Why it began.
    pub cause: String,
    /// Highest usage in percent.
    pub peak_percent: Option<f64>,
    /// Entries of the timeline in it.
    pub events: u64,
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
    /// What grew most in the last 15 minutes, as `incident::growth` puts it; empty if nothing did.
    pub growth: String,
    /// Why the lanes' reserves cannot all be kept free: "the reserves sum to 40 (web 20, …), more than …"; empty where they can.
    pub reserves: String,
    /// Failed process look-ups by cause.
    pub lookups_failed: Vec<(String, u64)>,
    /// Times PostgreSQL said "too many clients" to us.
    pub too_many_clients: u64,
    /// Panics caught in links.
    pub panics: u64,
}
