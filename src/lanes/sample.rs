//! What the monitor saw of PostgreSQL.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Moment;

/// Who holds advisory locks is asked again sooner than this while samples come.
const LOCKS_UNKNOWN_MAX: Duration = Duration::from_secs(10);

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
    /// backend_start, in µs since 2000-01-01 by PostgreSQL's clock: with the pid it names the backend, for pids are used again, and another server
    /// has the same.
    pub started: i64,
    /// state_change, likewise: it names what it does since, or its idle period.
    pub changed: i64,
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

/// Who holds locks, but for those every transaction has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockHolder {
    /// Backend pid.
    pub pid: i32,
    /// Whether an advisory one is among them, of session or transaction.
    pub advisory: bool,
    /// By kind and number: names of tables could only be looked up in their own database.
    pub held: Arc<str>,
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
    pub lock_holders: Arc<[LockHolder]>,
    /// When that was asked: not with every sample where max_connections makes it dear.
    pub locks_asked_at: Moment,
}

impl Sample {
    /// Whether a backend was seen to hold an advisory lock.
    pub fn holds_lock(&self, pid: i32) -> bool {
        self.holder(pid).is_some_and(|holder| holder.advisory)
    }

    /// The locks a session holds, as last asked: "RowExclusiveLock 2, transactionid ExclusiveLock 1"; empty when none.
    pub fn locks_of(&self, pid: i32) -> Arc<str> {
        self.holder(pid).map(|holder| holder.held.clone()).unwrap_or_default()
    }

    fn holder(&self, pid: i32) -> Option<&LockHolder> {
        let at = self.lock_holders.binary_search_by_key(&pid, |holder| holder.pid).ok()?;
        self.lock_holders.get(at)
    }

    /// Whether a backend idle since `idle_since` holds an advisory lock as far as one can tell at `now`: it was seen to, or went idle
    /// after that was last asked, and this sample came without. Without later samples nobody is spared for ever.
    pub fn may_hold_lock(&self, pid: i32, idle_since: Moment, now: Moment) -> bool {
        let unasked = self.locks_asked_at < self.asked_at && idle_since >= self.locks_asked_at;
        unasked && now.since(self.locks_asked_at) < LOCKS_UNKNOWN_MAX || self.holds_lock(pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_went_idle_after_locks_were_asked_for_may_hold_one_for_a_while() {
        let at = |second: u64| Moment::from_micros(second * 1_000_000);
        let sample = |locks_asked_at| Sample {
            asked_at: at(104),
            taken_at: at(104),
            max_connections: 5000,
            reserved_connections: 3,
            monitor_pid: 1,
            sessions: Vec::new(),
            lock_holders: [(3, true), (5, false), (7, true)]
                .map(|(pid, advisory)| LockHolder { pid, advisory, held: "some".into() })
                .into(),
            locks_asked_at,
        };
        let carried = sample(at(100));
        assert!(carried.may_hold_lock(7, at(90), at(104)), "seen");
        assert!(!carried.may_hold_lock(5, at(90), at(104)), "no advisory one");
        assert_eq!((&*carried.locks_of(5), &*carried.locks_of(4)), ("some", ""));
        assert!(!carried.may_hold_lock(8, at(90), at(104)), "asked since, and not seen");
        assert!(carried.may_hold_lock(8, at(101), at(104)), "not asked since");
        assert!(!carried.may_hold_lock(8, at(101), at(110)), "no sample comes any more");
        assert!(!sample(at(104)).may_hold_lock(8, at(105), at(105)), "as ever: asked with the last sample");
    }
}
