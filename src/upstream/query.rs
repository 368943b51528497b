//! What is asked of PostgreSQL, and how its answer is read. PostgreSQL 12 and later.

use std::error::Error;
use std::net::IpAddr;
use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::Type;
use zeroize::Zeroizing;

use super::roster::Facts;
use super::row::{Known, Record, Records, Timestamp};
use super::targets::Role;
use crate::clock::Moment;
use crate::lanes::sample::{LockHolder, Session};

/// One look, in one statement and one row.
///
/// With thousands of backends nearly all are *quiet*: idle, in a transaction or not, waiting for their client, and so since before the
/// last look. Nothing of such a session can have changed but by a statement of its own, so of these only the pids are asked
/// ([`super::roster`] knows the rest); a full row costs PostgreSQL two and pgweir one microsecond. The first parameter says since when. What is not
/// idle is listed in full whatever its age: its wait and its blockers change without it. NULL, as at first, makes nobody quiet.
/// A role may be renamed beneath its sessions: the column behind them changes with any role's name. Behind it come the columns of [`role`].
///
/// pg_locks goes through the locks of all *possible* backends, so the second parameter says whether to. pg_blocking_pids locks the
/// whole lock table for a moment: it is called for waiting sessions only. `textsend` with client_encoding SQL_ASCII passes bytes unseen: names and
/// statements come in the encoding of *their* database, and `left()` or a conversion would fail the whole sample for one odd byte.
/// `offset 0` keeps PostgreSQL from evaluating the condition twice.
pub fn sample(asks: Asks) -> String {
    let role = match asks {
        Asks::Nothing => String::new(),
        asks => format!(",\n{}", role_columns(asks)),
    };
    format!("{SAMPLE_COLUMNS}{role}{SAMPLE_ROWS}")
}

const SAMPLE_COLUMNS: &str = "
select pg_backend_pid(),
       pg_has_role(current_user, 'pg_read_all_stats', 'usage'),
       current_setting('max_connections')::int4,
       current_setting('superuser_reserved_connections')::int4
           + coalesce(current_setting('reserved_connections', true), '0')::int4,
       clock_timestamp(),
       (select array_agg(row(h.pid, h.advisory, textsend(h.held)))
          from (select pid,
                       bool_or(locktype = 'advisory') as advisory,
                       string_agg(case locktype when 'relation' then '' else locktype || ' ' end || mode || ' ' || n, ', '
                                  order by locktype, mode) as held
                  from (select pid, locktype, mode, count(*) as n from pg_locks
                         where $2 and granted and locktype <> 'virtualxid' and pid is not null
                         group by pid, locktype, mode) each
                 group by pid) h),
       array_agg(a.pid) filter (where a.quiet),
       array_agg(row(
           a.pid,
           a.backend_type = 'walsender',
           a.client_addr,
           a.client_port,
           a.backend_start,
           textsend(a.application_name),
           textsend(a.usename::text),
           textsend(a.datname::text),
           a.state,
           a.state_change,
           a.xact_start,
           a.wait_event_type,
           a.wait_event,
           substr(textsend(a.query), 1, 1000),
           case when a.wait_event_type = 'Lock' then pg_blocking_pids(a.pid) end
       )) filter (where not a.quiet),
       (select coalesce(sum(hashtext(r.rolname::text || ' ' || r.oid)::int8), 0)::int8 from pg_roles r)";

const SAMPLE_ROWS: &str = "
  from (select *,
               coalesce(state in ('idle', 'idle in transaction', 'idle in transaction (aborted)')
                   and wait_event_type = 'Client' and backend_type = 'client backend'
                   and backend_start < $1 and state_change < $1, false) as quiet
          from pg_stat_activity
         where backend_type in ('client backend', 'walsender')
        offset 0) a";

/// Where the texts of locks are remembered, behind those of a session.
const HELD: usize = 7;

/// Types of its parameters.
pub const SAMPLE_TYPES: [Type; 2] = [Type::TIMESTAMPTZ, Type::BOOL];

/// The pid of the session that answers.
pub const BACKEND_PID: &str = "select pg_catalog.pg_backend_pid()";

/// How much is asked about what a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// Nothing: there is only one, and it is dialled whatever it is.
    Nothing,
    /// Whether it is a primary.
    Role,
    /// Its timeline, too. What derives from PostgreSQL may not have one: Aurora raises an error where the position in its log is asked for.
    Timeline,
}

/// What the server is: in recovery, read-only by default for all (not only for this role or database), and the timeline it writes, where that
/// is asked for; 0 in recovery.
pub fn role(asks: Asks) -> String {
    format!("select {}", role_columns(asks))
}

fn role_columns(asks: Asks) -> String {
    let timeline = match asks {
        Asks::Timeline => TIMELINE,
        Asks::Nothing | Asks::Role => "0",
    };
    format!("{ROLE},\n       {timeline}")
}

const ROLE: &str = "       pg_is_in_recovery(),
       coalesce(current_setting('default_transaction_read_only') = 'on'
           and (select source not in ('database', 'user', 'database user', 'client', 'session')
                  from pg_settings where name = 'default_transaction_read_only'), false)";

const TIMELINE: &str = "case when pg_is_in_recovery() then 0
            else ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int4 end";

/// The system identifier of the server's cluster: made by initdb, and the same on all servers that were copied from that one. Everybody may
/// execute the function, unless it was revoked; what derives from PostgreSQL may not have it.
pub const SYSTEM: &str = "select system_identifier from pg_catalog.pg_control_system()";

/// Settings that say what backends may take of memory, in bytes where they are sizes. A negative one means another setting's value, and
/// is left out; so is what this PostgreSQL does not know.
pub const MEMORY_SETTINGS: &str = "
select name, (setting::numeric * case unit when '8kB' then 8192 when 'kB' then 1024 when 'MB' then 1048576 else 1 end)::int8
  from pg_settings
 where name in ('shared_buffers', 'work_mem', 'maintenance_work_mem', 'autovacuum_work_mem', 'autovacuum_max_workers')
   and setting not like '-%'";

/// Cancels the query of a backend: of this pid, that began then, and whose state changed then last, as far as that is given. No row where there
/// is none: by the time it is asked the pid may be another's.
pub const CANCEL: &str = "select pg_cancel_backend(pid) from pg_stat_activity
 where pid = $1 and ($2 is null or backend_start = $2) and ($3 is null or state_change = $3)";

/// Ends one, likewise.
pub const TERMINATE: &str = "select pg_terminate_backend(pid) from pg_stat_activity
 where pid = $1 and ($2 is null or backend_start = $2) and ($3 is null or state_change = $3)";

/// Types of their parameters.
pub const SIGNAL_TYPES: [Type; 3] = [Type::INT4, Type::TIMESTAMPTZ, Type::TIMESTAMPTZ];

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

/// The facts in a row of [`sample`].
///
/// # Errors
/// The row is not what the statement yields.
pub fn facts(row: &Row) -> Result<Facts, tokio_postgres::Error> {
    Ok(Facts {
        monitor_pid: row.try_get(0)?,
        may_read: row.try_get(1)?,
        max_connections: count(row.try_get(2)?),
        reserved_connections: count(row.try_get(3)?),
        clock: row.try_get(4)?,
        roles: row.try_get(8)?,
        role: if row.len() > 9 { Some(read_role(row, 9)?) } else { None },
    })
}

/// What the server calls itself, in a row of [`role`].
///
/// # Errors
/// As [`facts`].
pub fn role_of(row: &Row) -> Result<Role, tokio_postgres::Error> {
    read_role(row, 0)
}

/// What [`SYSTEM`] yields.
///
/// # Errors
/// As [`facts`].
pub fn system_of(row: &Row) -> Result<Option<u64>, tokio_postgres::Error> {
    // PostgreSQL shows 64 bits without a sign as a number with one.
    Ok(row.try_get::<_, Option<i64>>(0)?.map(i64::cast_unsigned))
}

fn read_role(row: &Row, first: usize) -> Result<Role, tokio_postgres::Error> {
    let (standby, read_only): (bool, bool) = (row.try_get(first)?, row.try_get(first + 1)?);
    let timeline = count(row.try_get(first + 2)?);
    Ok(match (standby, read_only) {
        (true, _) => Role::Standby,
        (false, true) => Role::ReadOnly { timeline },
        (false, false) => Role::Primary { timeline },
    })
}

/// Who holds locks, each to be read by [`lock_holder`]; none, too, where it was not asked.
///
/// # Errors
/// As [`facts`].
pub fn lock_holders(row: &Row) -> Result<Vec<Record<'_>>, tokio_postgres::Error> {
    Ok(row.try_get::<_, Option<Records<'_>>>(5)?.map(|records| records.0).unwrap_or_default())
}

/// One of [`lock_holders`].
///
/// # Errors
/// A sentence, where it is not what the statement yields.
pub fn lock_holder(mut row: Record<'_>, known: &mut Known) -> Result<LockHolder, String> {
    let mut read = || -> Result<LockHolder, Box<dyn Error + Sync + Send>> {
        Ok(LockHolder {
            pid: row.required()?,
            advisory: row.required()?,
            held: known.text(HELD, row.column()?),
        })
    };
    read().map_err(|error| format!("PostgreSQL's answer is odd: {error}"))
}

/// Pids of the quiet sessions.
///
/// # Errors
/// As [`facts`].
pub fn quiet(row: &Row) -> Result<Vec<i32>, tokio_postgres::Error> {
    Ok(row.try_get::<_, Option<Vec<i32>>>(6)?.unwrap_or_default())
}

/// All others, each to be read by [`session`].
///
/// # Errors
/// As [`facts`].
pub fn others(row: &Row) -> Result<Vec<Record<'_>>, tokio_postgres::Error> {
    Ok(row.try_get::<_, Option<Records<'_>>>(7)?.map(|records| records.0).unwrap_or_default())
}

/// One of [`others`]. `clock` is PostgreSQL's, and was our `seen_at`.
///
/// # Errors
/// A sentence, where it is not what the statement yields.
pub fn session(
    mut row: Record<'_>,
    clock: Timestamp,
    seen_at: Moment,
    known: &mut Known,
) -> Result<Session, String> {
    read_session(&mut row, clock, seen_at, known)
        .map_err(|error| format!("PostgreSQL's answer is odd: {error}"))
}

fn read_session(
    row: &mut Record<'_>,
    clock: Timestamp,
    seen_at: Moment,
    known: &mut Known,
) -> Result<Session, Box<dyn Error + Sync + Send>> {
    let pid = row.required()?;
    let walsender = row.required()?;
    let address = row.column::<IpAddr>()?;
    // -1 is a Unix socket.
    let port = row.column::<i32>()?.and_then(|port| u16::try_from(port).ok());
    let started = row.column::<Timestamp>()?.map_or(0, |then| then.0);
    let application = known.text(0, row.column()?);
    let user = known.text(1, row.column()?);
    let database = known.text(2, row.column()?);
    let state = known.text(3, row.column()?);
    let changed: Option<Timestamp> = row.column()?;
    let state_age = changed.map(|then| clock.since(then)).unwrap_or_default();
    let transaction_age = row.column()?.map(|then| clock.since(then));
    let wait_event = (known.text(4, row.column()?), known.text(5, row.column()?));
    let query = known.text(6, row.column()?);
    let blocked_by = row.column()?.unwrap_or_default();
    Ok(Session {
        pid,
        walsender,
        address,
        port,
        application,
        user,
        database,
        state,
        seen_at,
        started,
        changed: changed.map_or(0, |then| then.0),
        state_age,
        transaction_age,
        wait_event,
        query,
        blocked_by,
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
