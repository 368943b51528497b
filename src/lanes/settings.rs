//! Checked settings of lanes, applications and limits. The configuration fills them; nothing here is ever invalid.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::reason::SqlState;

/// What to do with those who may not come in now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Keep them waiting in the lane's queue.
    Hold,
    /// Refuse at once.
    Reject,
}

/// A glob: `*` any run of characters, `?` one, everything else itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    /// As written in the configuration.
    pub text: Arc<str>,
    /// Whether letters match in either case.
    pub case_insensitive: bool,
}

/// An address range (RFC 4632).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// The network.
    pub network: IpAddr,
    /// Leading bits that count: at most 32 or 128.
    pub prefix: u8,
}

/// One rule of a lane: all keys present must match.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Rule {
    /// On the raw application_name.
    pub application: Option<Glob>,
    /// On the user.
    pub user: Option<Glob>,
    /// On the database.
    pub database: Option<Glob>,
    /// On the client's address; a Unix socket's client has none and never matches.
    pub address: Option<Cidr>,
    /// On the listener's address as written in the configuration.
    pub listener: Option<Arc<str>>,
    /// Whether the startup packet asks for replication.
    pub replication: Option<bool>,
    /// On the client process's command line, arguments joined by blanks.
    pub process: Option<Glob>,
    /// On a statement (white space folded, no trailing semicolon); makes the rule one that moves a link later.
    pub statement: Option<Glob>,
    /// As written in the configuration, for SHOW CLIENTS.
    pub text: Arc<str>,
}

/// When a leak past `reset` is acted upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetWhen {
    /// Only when it does harm, or after `cap`.
    Harm,
    /// Always.
    Always,
}

/// What is done to a leak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeakAction {
    /// Roll the transaction back, keep the client.
    Rollback,
    /// Close both sides.
    Disconnect,
    /// Watch only.
    None,
}

/// A lane's `idle_in_transaction`.
#[derive(Clone, Debug, PartialEq)]
pub struct LeakSettings {
    /// Idle time after which a leak is put on record.
    pub warn: Option<Duration>,
    /// Idle time after which a leak may be reset.
    pub reset: Option<Duration>,
    /// When.
    pub when: ResetWhen,
    /// Idle time after which a leak is reset, harm or not.
    pub cap: Option<Duration>,
    /// How.
    pub action: LeakAction,
    /// SQLSTATE of the errors a reset transaction gets.
    pub sqlstate: SqlState,
    /// Statements (globs on the last one) that idle for a living.
    pub exempt: Vec<Glob>,
    /// Idle time after a rollback, client still silent, after which the link is closed.
    pub disconnect_after: Option<Duration>,
}

impl LeakSettings {
    /// Idle time before which nothing is said of a link, nor done to it; none if never.
    pub fn earliest(&self) -> Option<Duration> {
        [self.warn, self.reset, self.cap].into_iter().flatten().min()
    }
}

/// A lane's `pooling = "session"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pooling {
    /// Age from which a connection is closed rather than pooled.
    pub lifetime: Duration,
    /// Time unused after which a pooled connection is closed.
    pub idle_timeout: Duration,
    /// Time unused after which a pooled connection is asked for a sign of life before it is handed over.
    pub check_after: Duration,
    /// Pooled connections kept of each user, database and set of startup parameters that was seen.
    pub min_size: u32,
    /// Whether as many connections as the lane's reserve are kept open, in use or at rest.
    pub keeps_reserve: bool,
    /// Whether PostgreSQL is told the normalised application, so that clients whose raw names differ share connections.
    pub normalises: bool,
}

impl Pooling {
    /// Whether connections are made ahead of clients.
    pub fn makes_ahead(&self) -> bool {
        self.min_size > 0 || self.keeps_reserve
    }
}

/// One lane.
#[derive(Clone, Debug, PartialEq)]
pub struct LaneSettings {
    /// Its name.
    pub name: Arc<str>,
    /// Never shed, never paused by FREEZE, never reset.
    pub protected: bool,
    /// Takes everybody no rule matches. Exactly one lane is.
    pub default: bool,
    /// 0 is best, 9 worst.
    pub priority: u8,
    /// Slots at most.
    pub quota: u32,
    /// Slots kept free for it; at most `quota`.
    pub reserve: u32,
    /// Slots per application inside the lane; 0 is no limit.
    pub per_application: u32,
    /// Slots per user inside the lane; 0 is no limit.
    pub per_user: u32,
    /// Slots per database inside the lane; 0 is no limit.
    pub per_database: u32,
    /// Slots per client address inside the lane; 0 is no limit.
    pub per_address: u32,
    /// Links a client process may need at the same time: another process comes in only where the quota has room for as many of each. 0: not looked at.
    pub links_per_process: u32,
    /// Usage in percent at which the lane is shed.
    pub shed_above: Option<f64>,
    /// Usage in percent below which shedding ends; below `shed_above`.
    pub shed_below: f64,
    /// Shedding lasts at least this long.
    pub shed_dwell: Duration,
    /// What shedding does to new links.
    pub on_shed: Disposition,
    /// Whether FREEZE pauses it.
    pub freeze: bool,
    /// What a pause does, unless the command says otherwise.
    pub on_pause: Disposition,
    /// How long a pause may hold a client; none is for ever.
    pub pause_hold_timeout: Option<Duration>,
    /// How long a client may wait while the lane is not paused.
    pub wait_timeout: Duration,
    /// Clients waiting at most.
    pub max_waiting: u32,
    /// New upstream connections per second at most; none is no limit.
    pub connect_rate: Option<f64>,
    /// Idle time outside a transaction after which a link may be closed for a waiting client.
    pub reclaim_idle_after: Option<Duration>,
    /// Session pooling; none without.
    pub pooling: Option<Pooling>,
    /// Rules, any of which puts a link here.
    pub rules: Vec<Rule>,
    /// Policy for links idle in transaction; none is watch nothing.
    pub idle_in_transaction: Option<LeakSettings>,
}

/// One application.
#[derive(Clone, Debug, PartialEq)]
pub struct ApplicationSettings {
    /// On the raw application_name.
    pub pattern: Glob,
    /// The normalised name.
    pub name: Arc<str>,
    /// Slots at most, across lanes; none is no limit.
    pub quota: Option<u32>,
    /// Names of the lanes whose rules can match this application: their unfilled reserves are kept free inside its quota.
    pub lanes: Vec<Arc<str>>,
}

/// Limits of the whole process.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Client links at most.
    pub max_clients: u32,
    /// Logins in progress at most.
    pub max_logins: u32,
    /// Time for a login, waiting in a queue not counted.
    pub startup_timeout: Duration,
    /// Resets per minute at most, all lanes together.
    pub max_resets_per_minute: u32,
    /// Usable slots never used by pgweir.
    pub headroom: u32,
    /// Age of the last sample from which usage is unknown.
    pub stale_after: Duration,
    /// Whether a monitor is configured at all.
    pub monitored: bool,
    /// Whether decisions are recorded but not carried out.
    pub observe: bool,
}

/// Everything the guard is told by the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// In file order.
    pub lanes: Vec<LaneSettings>,
    /// In file order.
    pub applications: Vec<ApplicationSettings>,
    /// Process-wide.
    pub limits: Limits,
}

impl LaneSettings {
    /// A lane with `quota` slots and every optional limit, threshold and rule absent.
    pub fn new(name: &str, quota: u32) -> Self {
        Self {
            name: name.into(),
            protected: false,
            default: false,
            priority: 5,
            quota,
            reserve: 0,
            per_application: 0,
            per_user: 0,
            per_database: 0,
            per_address: 0,
            links_per_process: 0,
            shed_above: None,
            shed_below: 65.0,
            shed_dwell: Duration::from_secs(5),
            on_shed: Disposition::Hold,
            freeze: false,
            on_pause: Disposition::Hold,
            pause_hold_timeout: None,
            wait_timeout: Duration::from_secs(30),
            max_waiting: 500,
            connect_rate: None,
            reclaim_idle_after: None,
            pooling: None,
            rules: Vec::new(),
            idle_in_transaction: None,
        }
    }
}

impl Settings {
    /// Settings of `lanes`, without applications and without a monitor.
    pub fn new(lanes: Vec<LaneSettings>) -> Self {
        Self {
            lanes,
            applications: Vec::new(),
            limits: Limits {
                max_clients: 10_000,
                max_logins: 64,
                startup_timeout: Duration::from_secs(10),
                max_resets_per_minute: 10,
                headroom: 0,
                stale_after: Duration::from_secs(5),
                monitored: false,
                observe: false,
            },
        }
    }
}
