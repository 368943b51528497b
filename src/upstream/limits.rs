//! One look at PostgreSQL for `pgweir init`: limits, and who is connected. Any role may look: what it needs is shown to everybody.

use super::connect::{MonitorSettings, explain, open_as};
use super::query::BACKEND_PID;

/// `application_name` of the look.
const APPLICATION_NAME: &str = "pgweir init";
/// Groups of sessions that are told apart at most.
const GROUPS_MAX: i64 = 1000;

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// max_connections.
    pub max_connections: u32,
    /// superuser_reserved_connections.
    pub superuser_reserved: u32,
    /// reserved_connections.
    pub reserved: u32,
    /// Databases that the role in question owns.
    pub databases: u32,
    /// Whether the role of the monitor exists.
    pub has_monitor: bool,
    /// Client sessions but this one: user, application_name, how many.
    pub sessions: Vec<(String, String, u32)>,
    /// Where PostgreSQL itself says that it is; none over a Unix socket.
    pub server: Option<(String, u16)>,
    /// Whether PostgreSQL itself answered, rather than a pooler with pids of its own.
    pub is_postgres: bool,
}

const LIMITS: &str = "
select current_setting('max_connections')::int4,
       current_setting('superuser_reserved_connections')::int4,
       coalesce(current_setting('reserved_connections', true), '0')::int4,
       (select count(*)::int4 from pg_catalog.pg_database where not datistemplate and pg_catalog.pg_get_userbyid(datdba) = $1),
       exists (select from pg_catalog.pg_roles where rolname = $2),
       pg_catalog.host(pg_catalog.inet_server_addr()), pg_catalog.inet_server_port()";

/// Without pg_monitor the kind of a session is not shown; background workers have no user, WAL senders no database.
const SESSIONS: &str = "
select usename::text, coalesce(application_name, ''), count(*)::int4
  from pg_catalog.pg_stat_activity
 where usename is not null and datname is not null and pid <> pg_catalog.pg_backend_pid()
   and coalesce(backend_type, 'client backend') = 'client backend'
 group by 1, 2 order by 3 desc limit $1";

/// Looks once. `owner` is Odoo's role, `monitor` the one pgweir is to have.
///
/// # Errors
/// A sentence for the operator.
pub async fn look(settings: &MonitorSettings, owner: &str, monitor: &str) -> Result<Seen, String> {
    let opened = open_as(settings, APPLICATION_NAME).await?;
    let connection = tokio::spawn(opened.connection);
    let looked = async {
        let pid: i32 = opened.client.query_one(BACKEND_PID, &[]).await?.try_get(0)?;
        let row = opened.client.query_one(LIMITS, &[&owner, &monitor]).await?;
        let count = |column| row.try_get::<_, i32>(column).map(|n| u32::try_from(n).unwrap_or(0));
        let mut sessions = Vec::new();
        for row in opened.client.query(SESSIONS, &[&GROUPS_MAX]).await? {
            let count = u32::try_from(row.try_get::<_, i32>(2)?).unwrap_or(0);
            sessions.push((row.try_get(0)?, row.try_get(1)?, count));
        }
        Ok(Seen {
            max_connections: count(0)?,
            superuser_reserved: count(1)?,
            reserved: count(2)?,
            databases: count(3)?,
            has_monitor: row.try_get(4)?,
            server: row
                .try_get::<_, Option<String>>(5)?
                .zip(row.try_get::<_, Option<i32>>(6)?.and_then(|port| u16::try_from(port).ok())),
            sessions,
            is_postgres: pid == opened.announced_pid,
        })
    };
    let seen = tokio::time::timeout(settings.connect_timeout, looked).await;
    connection.abort();
    match seen {
        Ok(seen) => seen.map_err(|error: tokio_postgres::Error| explain(&error)),
        Err(_) => Err("PostgreSQL did not answer in time".to_owned()),
    }
}
