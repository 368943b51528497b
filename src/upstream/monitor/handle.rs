//! Reaches a running monitor: for its state, and for what is asked through its session.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use zeroize::Zeroizing;

use crate::lanes::sample::Session;
use crate::upstream::connect::explain;
use crate::upstream::query;
use crate::upstream::row::Timestamp;
use crate::upstream::targets::{Memory, differ};

/// Why nobody is cancelled or ended at the moment.
pub const ELSEWHERE: &str =
    "the monitor is at another server of the same name at the moment, which may have the same pid: ask again";

/// The session there is, and how things are.
pub(super) struct Now {
    pub(super) client: Option<Arc<Client>>,
    /// Where the name led its session, if that is looked up beforehand.
    pub(super) at: Option<IpAddr>,
    /// The system identifier of its cluster, where it was asked and told.
    pub(super) system: Option<u64>,
    pub(super) state: String,
}

impl Default for Now {
    fn default() -> Self {
        Self { client: None, at: None, system: None, state: "connecting".to_owned() }
    }
}

pub(super) struct Shared {
    pub(super) wake: Notify,
    pub(super) user: String,
    /// PostgreSQL's bound of each query.
    pub(super) statement_timeout: Duration,
    /// Ours.
    pub(super) limit: Duration,
    /// Whether sessions are listed, or only the server's role is asked for.
    pub(super) samples: AtomicBool,
    pub(super) hurries: AtomicBool,
    /// See [`MonitorHandle::left_behind_by`].
    pub(super) highest: AtomicU32,
    /// See [`MonitorHandle::left_behind_by`]; 0 where it is not known.
    pub(super) system: AtomicU64,
    /// See [`MonitorHandle::dialled`].
    pub(super) dialled: Mutex<Option<IpAddr>>,
    pub(super) now: Mutex<Now>,
}

impl Shared {
    pub(super) fn set_state(&self, state: impl Into<String>) {
        self.now.lock().state = state.into();
    }

    /// From here on the session may be used by others than the monitor.
    pub(super) fn has_session(&self, client: &Arc<Client>, at: Option<IpAddr>, system: Option<u64>) {
        let mut now = self.now.lock();
        now.client = Some(Arc::clone(client));
        (now.at, now.system) = (at, system);
    }

    /// The cluster that is served, as far as it is known.
    pub(super) fn ours(&self) -> Option<u64> {
        Some(self.system.load(Ordering::Relaxed)).filter(|ours| *ours != 0)
    }
}

/// A backend that is to be cancelled or ended. What is given besides its pid must still be so when PostgreSQL does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whom {
    /// Its pid.
    pub pid: i32,
    /// When it began: [`Session::started`].
    pub started: Option<i64>,
    /// When its state changed last: [`Session::changed`].
    pub changed: Option<i64>,
}

impl Whom {
    /// Whoever has this pid by then.
    pub fn anybody(pid: i32) -> Self {
        Self { pid, started: None, changed: None }
    }

    /// This very backend.
    pub fn backend(session: &Session) -> Self {
        Self { pid: session.pid, started: Some(session.started), changed: None }
    }

    /// This very backend, as long as it does what it did when it was seen.
    pub fn as_seen(session: &Session) -> Self {
        Self { changed: Some(session.changed), ..Self::backend(session) }
    }
}

/// Reaches a running monitor. Cheap to clone.
#[derive(Clone)]
pub struct MonitorHandle {
    pub(super) shared: Arc<Shared>,
}

impl MonitorHandle {
    /// Asks for a sample at once. Requests that come while one is under way are served together by the next.
    pub fn sample_now(&self) {
        self.shared.wake.notify_one();
    }

    /// Whether to list sessions, or only to ask what the server is; from the next look on, which is at once.
    pub fn sample(&self, on: bool) {
        if self.shared.samples.swap(on, Ordering::Relaxed) != on {
            self.sample_now();
        }
    }

    /// Where links are dialled to this server; none while they are not: where its name leads to others too, it is this one that is looked at as
    /// long as it answers.
    pub fn dialled(&self, at: Option<IpAddr>) {
        *self.shared.dialled.lock() = at;
    }

    /// Whether to look more often: no server is known that suits.
    pub fn hurry(&self, on: bool) {
        if self.shared.hurries.swap(on, Ordering::Relaxed) != on && on {
            self.sample_now();
        }
    }

    /// The cluster that is served and the highest timeline that was seen of it: where the server's name leads to others too, a primary of a lower
    /// one and a server of another cluster are passed over.
    pub fn left_behind_by(&self, memory: Memory) {
        self.shared.highest.store(memory.timeline, Ordering::Relaxed);
        self.shared.system.store(memory.system.unwrap_or(0), Ordering::Relaxed);
    }

    /// For `status`: `connecting`, `ok`, `blind: …`, `down: …`, `pooler: …`.
    pub fn state(&self) -> String {
        self.shared.now.lock().state.clone()
    }

    /// Cancels the running query of a backend; `false` where there is no such backend. Idle in transaction, nothing happens.
    ///
    /// # Errors
    /// A sentence for the operator: not connected, not allowed, no answer in time.
    pub async fn cancel_pid(&self, whom: Whom) -> Result<bool, String> {
        self.signal(query::CANCEL, whom).await
    }

    /// Ends a backend; `false` where there is none.
    ///
    /// # Errors
    /// As [`Self::cancel_pid`].
    pub async fn terminate_pid(&self, whom: Whom) -> Result<bool, String> {
        self.signal(query::TERMINATE, whom).await
    }

    /// Puts a query with one parameter, a user's name, and takes the user's secret from its one row (name, secret). None where there is
    /// no row, or no secret. It runs on the monitor's session, whose search_path is pg_catalog.
    ///
    /// # Errors
    /// Not connected, refused by PostgreSQL, or an answer that is none. A server of another cluster than the one that is served is not asked:
    /// its users are others.
    pub async fn look_up(
        &self,
        statement: &str,
        user: &str,
    ) -> Result<Option<Zeroizing<String>>, LookUpError> {
        let client = {
            let now = self.shared.now.lock();
            let ours = now.client.clone().filter(|_| !differ(self.shared.ours(), now.system));
            ours.ok_or(LookUpError::NotConnected)?
        };
        let query = async { client.query_typed(statement, &[(&user, Type::TEXT)]).await };
        let rows = match bounded(self.shared.limit, query).await {
            Ok(Ok(rows)) => rows,
            Ok(Err(error)) if is_lost(&error) => return Err(LookUpError::NotConnected),
            Ok(Err(error)) => return Err(LookUpError::Failed(explain(&error))),
            Err(why) => return Err(LookUpError::Failed(why)),
        };
        query::read_secret(&rows, user).map_err(LookUpError::Failed)
    }

    /// PostgreSQL's settings that concern memory, by name, sizes in bytes.
    ///
    /// # Errors
    /// As [`Self::cancel_pid`].
    pub async fn memory_settings(&self) -> Result<BTreeMap<String, u64>, String> {
        let client = self.shared.now.lock().client.clone().ok_or("the monitor is not connected")?;
        let query = async { client.query_typed(query::MEMORY_SETTINGS, &[]).await };
        let rows = bounded(self.shared.limit, query).await?.map_err(|error| explain(&error))?;
        let row = |row: &tokio_postgres::Row| {
            let (name, value): (&str, i64) = (row.try_get(0)?, row.try_get(1)?);
            Ok((name.to_owned(), u64::try_from(value).unwrap_or(0)))
        };
        rows.iter().map(row).collect::<Result<_, tokio_postgres::Error>>().map_err(|error| explain(&error))
    }

    async fn signal(&self, statement: &str, whom: Whom) -> Result<bool, String> {
        let dialled = *self.shared.dialled.lock();
        let client = {
            let now = self.shared.now.lock();
            // Before anybody was told: what was looked at there until now is another server's.
            if dialled.is_some() && now.client.is_some() && now.at != dialled {
                return Err(ELSEWHERE.to_owned());
            }
            now.client.clone().ok_or_else(|| format!("the monitor is not connected ({})", now.state))?
        };
        let [pid, started, changed] = query::SIGNAL_TYPES;
        let (its_start, its_change) = (whom.started.map(Timestamp), whom.changed.map(Timestamp));
        let parameters: [(&(dyn ToSql + Sync), Type); 3] =
            [(&whom.pid, pid), (&its_start, started), (&its_change, changed)];
        let query = async { client.query_typed(statement, &parameters).await };
        let rows = bounded(self.shared.limit, query).await?.map_err(|error| self.refusal(&error))?;
        let Some(row) = rows.first() else { return Ok(false) };
        row.try_get(0).map_err(|error| explain(&error))
    }

    fn refusal(&self, error: &tokio_postgres::Error) -> String {
        let text = explain(error);
        if error.code() != Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
            return text;
        }
        format!(
            "{text}; `grant pg_signal_backend to {}` allows it (a superuser's session can only be ended by a superuser)",
            self.shared.user
        )
    }
}

/// Whether an error is the connection's end and not the query's.
fn is_lost(error: &tokio_postgres::Error) -> bool {
    let ending = [&SqlState::ADMIN_SHUTDOWN, &SqlState::CRASH_SHUTDOWN, &SqlState::CANNOT_CONNECT_NOW];
    error.is_closed() || error.code().is_some_and(|code| ending.contains(&code))
}

/// Why a user could not be looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookUpError {
    /// There is no connection at the moment.
    NotConnected,
    /// What PostgreSQL said, or what is wrong with its answer.
    Failed(String),
}

pub(super) async fn bounded<F: Future>(limit: Duration, what: F) -> Result<F::Output, String> {
    tokio::time::timeout(limit, what)
        .await
        .map_err(|_| format!("PostgreSQL did not answer within {} ms", limit.as_millis()))
}
