//! One look at PostgreSQL for `pgweir check`: limits and the monitor role's rights.

use super::connect::{MonitorSettings, explain, open};
use super::query::{self, Asks, BACKEND_PID};
use super::targets::Role;

/// What `check` needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// max_connections.
    pub max_connections: u32,
    /// superuser_reserved_connections + reserved_connections.
    pub reserved: u32,
    /// Whether the role sees other roles' sessions (pg_read_all_stats).
    pub may_read: bool,
    /// Whether it may cancel and terminate them (pg_signal_backend).
    pub may_signal: bool,
    /// Whether PostgreSQL itself answered, rather than a pooler with pids of its own.
    pub is_postgres: bool,
    /// Every idle_in_transaction_session_timeout: role and database, each empty where it is for all, and the value as it is set.
    pub idle_timeouts: Vec<(String, String, String)>,
    /// What the server calls itself, where that was asked.
    pub role: Option<Role>,
    /// The system identifier of its cluster, where that was asked and told.
    pub system: Option<u64>,
}

const LOOK: &str = "
select current_setting('max_connections')::int4,
       current_setting('superuser_reserved_connections')::int4
           + coalesce(current_setting('reserved_connections', true), '0')::int4,
       pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'usage'),
       pg_catalog.pg_has_role(current_user, 'pg_signal_backend', 'usage')";

/// What is set for the monitor's own role hides what holds for everybody.
const IDLE_TIMEOUTS: &str = "
select coalesce(r.rolname::text, ''), coalesce(d.datname::text, ''), split_part(o.setting, '=', 2)
  from pg_catalog.pg_db_role_setting s
       cross join unnest(s.setconfig) o(setting)
       left join pg_catalog.pg_roles r on r.oid = s.setrole
       left join pg_catalog.pg_database d on d.oid = s.setdatabase
 where o.setting like 'idle\\_in\\_transaction\\_session\\_timeout=%'
union all
select '', '', setting from pg_catalog.pg_settings
 where name = 'idle_in_transaction_session_timeout' and source in ('configuration file', 'command line', 'default')
 order by 1, 2 limit 1000";

/// Looks once; with `asks_role` also at what the server is.
///
/// # Errors
/// A sentence for the operator.
pub async fn look(settings: &MonitorSettings, asks_role: bool) -> Result<Facts, String> {
    let opened = open(settings).await?;
    let connection = tokio::spawn(opened.connection);
    let looked = async {
        let pid: i32 = opened.client.query_one(BACKEND_PID, &[]).await?.try_get(0)?;
        let role = match asks_role {
            true => {
                let row = opened.client.query_one(&query::role(Asks::Role), &[]).await?;
                Some(query::role_of(&row)?)
            }
            false => None,
        };
        let system = match asks_role {
            // Not every role may know it.
            true => opened.client.query_one(query::SYSTEM, &[]).await.ok(),
            false => None,
        };
        let system = system.and_then(|row| query::system_of(&row).ok().flatten());
        let row = opened.client.query_one(LOOK, &[]).await?;
        let timeouts = opened.client.query(IDLE_TIMEOUTS, &[]).await?;
        let timeouts = timeouts.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)));
        let idle_timeouts = timeouts.collect::<Result<_, tokio_postgres::Error>>()?;
        let count = |column| row.try_get::<_, i32>(column).map(|n| u32::try_from(n).unwrap_or(0));
        Ok(Facts {
            max_connections: count(0)?,
            reserved: count(1)?,
            may_read: row.try_get(2)?,
            may_signal: row.try_get(3)?,
            is_postgres: pid == opened.announced_pid,
            idle_timeouts,
            role,
            system,
        })
    };
    let facts = tokio::time::timeout(settings.connect_timeout, looked).await;
    connection.abort();
    match facts {
        Ok(facts) => facts.map_err(|error: tokio_postgres::Error| explain(&error)),
        Err(_) => Err("PostgreSQL did not answer in time".to_owned()),
    }
}
