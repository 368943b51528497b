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
    /// Time since state_change.
    pub state_age: Duration,
    /// Time since xact_start.
    pub transaction_age: Option<Duration>,
    /// wait_event_type and wait_event, empty when none.
    pub wait_event: (Arc<str>, Arc<str>),
    /// query, raw.
    pub query: Arc<str>,
    /// pg_blocking_pids, asked only where it waits for a lock.
    pub blocked_by: Vec<i32>,
    /// Whether it holds a session or transaction advisory lock.
    pub advisory_lock: bool,
    /// Locks it holds: "RowExclusiveLock 2, transactionid ExclusiveLock 1"; empty when none.
    pub locks: Arc<str>,
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
    pub sessions: Vec<Session>,
}
