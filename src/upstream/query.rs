//! What is asked of PostgreSQL, and how its answer becomes a sample. PostgreSQL 12 and later.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Type};
use zeroize::Zeroizing;

use crate::clock::Moment;
use crate::lanes::sample::{Sample, Session};

/// One look, in one statement. Every row repeats the server's own facts: the monitor's session is always listed, so there
/// is always a row, and the facts belong to the same instant. They are in subselects, which PostgreSQL computes once and not for each
/// row, and ages are left to [`read`]: with thousands of backends these two were two thirds of the statement's time.
///
/// pg_blocking_pids locks the whole lock table for a moment, so it is called for waiting sessions only. `textsend` with
/// client_encoding SQL_ASCII passes bytes unseen: names and statements come in the encoding of *their* database, and
/// `left()` or a conversion would fail the whole sample for one odd byte.
///
/// Locks are told by kind and number: names of tables could only be looked up in their own database. Who is outside a transaction holds
/// none but advisory ones, so that there are few to be counted.
pub const SAMPLE: &str = "
select (select pg_backend_pid()),
       (select pg_has_role(current_user, 'pg_read_all_stats', 'usage')),
       (select current_setting('max_connections')::int4),
       (select current_setting('superuser_reserved_connections')::int4
           + coalesce(current_setting('reserved_connections', true), '0')::int4),
       a.pid,
       a.backend_type = 'walsender',
       a.client_addr,
       a.client_port,
       textsend(a.application_name),
       textsend(a.usename::text),
       textsend(a.datname::text),
       a.state,
       a.state_change,
       a.xact_start,
       (select clock_timestamp()),
       a.wait_event_type,
       a.wait_event,
       substr(textsend(a.query), 1, 1000),
       case when a.wait_event_type = 'Lock' then pg_blocking_pids(a.pid) else '{}'::int4[] end,
       coalesce(l.advisory, false),
       textsend(l.held)
  from pg_stat_activity a
  left join (select pid,
                    bool_or(locktype = 'advisory') as advisory,
                    string_agg(case locktype when 'relation' then '' else locktype || ' ' end || mode || ' ' || n, ', '
                               order by locktype, mode) as held
               from (select pid, locktype, mode, count(*) as n from pg_locks
                      where granted and locktype <> 'virtualxid' group by pid, locktype, mode) each
              group by pid) l on l.pid = a.pid
 where a.backend_type in ('client backend', 'walsender')";

/// The pid of the session that answers.
pub const BACKEND_PID: &str = "select pg_catalog.pg_backend_pid()";

/// Settings that say what backends may take of memory, in bytes where they are sizes. A negative one means another setting's value, and
/// is left out; so is what this PostgreSQL does not know.
pub const MEMORY_SETTINGS: &str = "
select name, (setting::numeric * case unit when '8kB' then 8192 when 'kB' then 1024 when 'MB' then 1048576 else 1 end)::int8
  from pg_settings
 where name in ('shared_buffers', 'work_mem', 'maintenance_work_mem', 'autovacuum_work_mem', 'autovacuum_max_workers')
   and setting not like '-%'";

/// Cancels a backend's query.
pub const CANCEL: &str = "select pg_cancel_backend($1)";

/// Ends a backend.
pub const TERMINATE: &str = "select pg_terminate_backend($1)";

/// Settings of the session. A role's or database's own settings must not end or slow it; settings that this
/// PostgreSQL does not know are left alone.
pub fn session_settings(statement_timeout: Duration) -> String {
    format!(
        "set search_path = pg_catalog; set client_encoding = 'SQL_ASCII'; set application_name = '{}'; \
         set statement_timeout = {}; set lock_timeout = 1000; set jit = off; \
         set max_parallel_workers_per_gather = 0; \
         select set_config(name, '0', false) from pg_settings \
         where name in ('idle_session_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')",
        super::connect::APPLICATION_NAME,
        statement_timeout.as_millis()
    )
}

/// What one look found.
#[derive(Clone, Debug, PartialEq)]
pub struct Look {
    /// Whether the role sees other roles' sessions. Where it does not, the sample is a low reading and must not be used.
    pub may_read: bool,
    /// The sample.
    pub sample: Sample,
}

/// Reads the rows of [`SAMPLE`], one after the other.
#[derive(Default)]
pub struct Reader {
    known: Known,
    sessions: Vec<Session>,
    /// The server's own facts, and when the first row came: what is listed was listed before it.
    facts: Option<(Facts, Moment)>,
}

struct Facts {
    monitor_pid: i32,
    may_read: bool,
    max_connections: u32,
    reserved_connections: u32,
}

impl Reader {
    /// Takes one row that came at `now`; rows so far.
    ///
    /// # Errors
    /// A sentence, where the row is not what the statement yields.
    pub fn row(&mut self, row: &Row, now: Moment) -> Result<usize, String> {
        self.take(row, now).map_err(|error| super::connect::explain(&error))?;
        Ok(self.sessions.len())
    }

    fn take(&mut self, row: &Row, now: Moment) -> Result<(), tokio_postgres::Error> {
        if self.facts.is_none() {
            let facts = Facts {
                monitor_pid: row.try_get(0)?,
                may_read: row.try_get(1)?,
                max_connections: count(row.try_get(2)?),
                reserved_connections: count(row.try_get(3)?),
            };
            self.facts = Some((facts, now));
        }
        self.sessions.push(read_session(row, &mut self.known)?);
        Ok(())
    }

    /// All rows were read.
    ///
    /// # Errors
    /// There was none.
    pub fn done(self, asked_at: Moment) -> Result<Look, String> {
        let (facts, taken_at) = self.facts.ok_or("PostgreSQL listed no session, not even the monitor's")?;
        let sample = Sample {
            asked_at,
            taken_at,
            max_connections: facts.max_connections,
            reserved_connections: facts.reserved_connections,
            monitor_pid: facts.monitor_pid,
            sessions: self.sessions,
        };
        Ok(Look { may_read: facts.may_read, sample })
    }
}

fn read_session(row: &Row, known: &mut Known) -> Result<Session, tokio_postgres::Error> {
    let mut text = |column| row.try_get::<_, Option<Raw<'_>>>(column).map(|raw| known.text(column, raw));
    let time = |column| row.try_get::<_, Option<Timestamp>>(column);
    let now = time(14)?;
    let age = |then: Option<Timestamp>| Some(now?.since(then?));
    // -1 is a Unix socket.
    let port = row.try_get::<_, Option<i32>>(7)?.and_then(|port| u16::try_from(port).ok());
    Ok(Session {
        pid: row.try_get(4)?,
        walsender: row.try_get(5)?,
        address: row.try_get::<_, Option<IpAddr>>(6)?,
        port,
        application: text(8)?,
        user: text(9)?,
        database: text(10)?,
        state: text(11)?,
        state_age: age(time(12)?).unwrap_or_default(),
        transaction_age: age(time(13)?),
        wait_event: (text(15)?, text(16)?),
        query: text(17)?,
        blocked_by: row.try_get(18)?,
        advisory_lock: row.try_get(19)?,
        locks: text(20)?,
    })
}

/// The secret in the one row of an auth query: the user's name, and its secret. None without a row, or where the secret is NULL.
///
/// # Errors
/// A sentence, where the answer is none; it never holds what was answered.
pub fn read_secret(rows: &[Row], user: &str) -> Result<Option<Zeroizing<String>>, String> {
    let row = match rows {
        [] => return Ok(None),
        [row] => row,
        _ => return Err("the auth query gave more than one row".to_owned()),
    };
    if row.len() < 2 {
        return Err("the auth query must give two columns, name and secret".to_owned());
    }
    let column = |at: usize, what: &str| {
        let text = row.try_get::<_, Option<String>>(at);
        text.map(|text| text.map(Zeroizing::new)).map_err(|_| format!("the auth query's {what} is no text"))
    };
    let (name, secret) = (column(0, "first column, the name,")?, column(1, "second column, the secret,")?);
    match (name, secret) {
        (_, None) => Ok(None),
        (Some(name), secret) if *name == user => Ok(secret),
        _ => Err("the auth query answered with another user's name".to_owned()),
    }
}

/// Limits are never negative.
fn count(value: i32) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

/// Microseconds since 2000-01-01 ("Date/Time Types": an 8-byte integer on the wire).
#[derive(Clone, Copy)]
struct Timestamp(i64);

impl Timestamp {
    /// A server's clock that was set back reads as no time.
    fn since(self, then: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(then.0)).unwrap_or(0))
    }
}

impl<'a> FromSql<'a> for Timestamp {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        i64::from_sql(ty, raw).map(Self)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }
}

/// Bytes of a text in whatever encoding its database has.
struct Raw<'a>(&'a [u8]);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(ty: &Type) -> bool {
        matches!(*ty, Type::TEXT | Type::BYTEA)
    }
}

/// The text last seen in each column: neighbours mostly say the same, and share it.
#[derive(Default)]
struct Known(Vec<Arc<str>>);

impl Known {
    fn text(&mut self, column: usize, raw: Option<Raw<'_>>) -> Arc<str> {
        let raw = raw.map_or(&b""[..], |raw| raw.0);
        if self.0.len() <= column {
            self.0.resize_with(column + 1, || Arc::from(""));
        }
        let last = &mut self.0[column];
        if last.as_bytes() != raw {
            *last = String::from_utf8_lossy(raw).into();
        }
        last.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_encoding_is_shown_not_refused() {
        let mut known = Known::default();
        assert_eq!(&*known.text(3, Some(Raw(b"caf\xe9"))), "caf\u{fffd}");
        assert_eq!(&*known.text(3, None), "");
    }

    #[test]
    fn neighbours_share_a_text_and_columns_do_not() {
        let mut known = Known::default();
        let first = known.text(1, Some(Raw(b"odoo")));
        assert!(Arc::ptr_eq(&first, &known.text(1, Some(Raw(b"odoo")))));
        assert_eq!(&*known.text(0, Some(Raw(b"postgres"))), "postgres");
        assert_eq!(&*known.text(1, Some(Raw(b"odoo2"))), "odoo2");
    }

    #[test]
    fn ages_of_a_clock_set_back_are_zero() {
        assert_eq!(Timestamp(5).since(Timestamp(10)), Duration::ZERO);
        assert_eq!(Timestamp(1_500_000).since(Timestamp(0)), Duration::from_millis(1500));
        // "infinity" and its opposite.
        assert_eq!(Timestamp(i64::MIN).since(Timestamp(i64::MAX)), Duration::ZERO);
    }
}
