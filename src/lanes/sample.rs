//! What the monitor saw of PostgreSQL.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Moment;

/// One row of pg_stat_activity with `backend_type = 'client backend'` (or walsender).
#[derive(Clone, Debug, PartialEq)]
pub struct Session {
    /// Backend pid.
    pub pid: i32,
    /// Whether it is a walsender: another pool of connections in PostgreSQL.
    pub walsender: bool,
    /// client_addr; none for a Unix socket.
    pub address: Option<IpAddr>,
    /// client_port; none for a Unix socket.
    pub port: Option<u16>,
    /// application_name.
    pub application: Arc<str>,
    /// usename.
    pub user: Arc<str>,
    /// datname.
    pub database: Arc<str>,
    /// state.
    pub state: Arc<str>,
    /// When this row was read. A session that did nothing since is not read again with each sample: see [`Self::ages`].
    pub seen_at: Moment,
    /// From state_change to then.
    pub state_age: Duration,
    /// From xact_start to then; none outside a transaction.
    pub transaction_age: Option<Duration>,
    /// wait_event_type and wait_event, empty when none.
    pub wait_event: (Arc<str>, Arc<str>),
    /// query, raw.
    pub query: Arc<str>,
    /// pg_blocking_pids, asked only where it waits for a lock.
    pub blocked_by: Vec<i32>,
}

impl Session {
    /// Time since state_change and since xact_start, at `now`.
    pub fn ages(&self, now: Moment) -> (Duration, Option<Duration>) {
        let since = now.since(self.seen_at);
        (self.state_age + since, self.transaction_age.map(|age| age + since))
    }
}

/// One look at PostgreSQL.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// When it was asked for: what happened on our side after it is not in it.
    pub asked_at: Moment,
    /// When it came back.
    pub taken_at: Moment,
    /// max_connections.
    pub max_connections: u32,
    /// superuser_reserved_connections + reserved_connections (PostgreSQL 16).
    pub reserved_connections: u32,
    /// Pid of the monitor's own backend.
    pub monitor_pid: i32,
    /// All client backends and walsenders.
    pub sessions: Vec<Arc<Session>>,
    /// Pids that hold session or transaction advisory locks, ascending.
    pub lock_holders: Arc<[i32]>,
    /// When that was asked: not with every sample where max_connections makes it dear.
    pub locks_asked_at: Moment,
}

impl Sample {
    /// Whether a backend was seen to hold an advisory lock.
    pub fn holds_lock(&self, pid: i32) -> bool {
        self.lock_holders.binary_search(&pid).is_ok()
    }
}
