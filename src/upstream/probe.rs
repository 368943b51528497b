//! One look at PostgreSQL for `pgweir check`: limits and the monitor role's rights.

use super::connect::{MonitorSettings, explain, open};
use super::query::{self, BACKEND_PID, ROLE};
use super::targets::Role;

/// What `check` needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// What the server calls itself.
    pub role: Role,
}

const LOOK: &str = "
select current_setting('max_connections')::int4,
       current_setting('superuser_reserved_connections')::int4
           + coalesce(current_setting('reserved_connections', true), '0')::int4,
       pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'usage'),
       pg_catalog.pg_has_role(current_user, 'pg_signal_backend', 'usage')";

/// Looks once.
///
/// # Errors
/// A sentence for the operator.
pub async fn look(settings: &MonitorSettings) -> Result<Facts, String> {
    let opened = open(settings).await?;
    let connection = tokio::spawn(opened.connection);
    let looked = async {
        let pid: i32 = opened.client.query_one(BACKEND_PID, &[]).await?.try_get(0)?;
        let role = query::role_of(&opened.client.query_one(ROLE, &[]).await?)?;
        let row = opened.client.query_one(LOOK, &[]).await?;
        let count = |column| row.try_get::<_, i32>(column).map(|n| u32::try_from(n).unwrap_or(0));
        Ok(Facts {
            max_connections: count(0)?,
            reserved: count(1)?,
            may_read: row.try_get(2)?,
            may_signal: row.try_get(3)?,
            is_postgres: pid == opened.announced_pid,
            role,
        })
    };
    let facts = tokio::time::timeout(settings.connect_timeout, looked).await;
    connection.abort();
    match facts {
        Ok(facts) => facts.map_err(|error: tokio_postgres::Error| explain(&error)),
        Err(_) => Err("PostgreSQL did not answer in time".to_owned()),
    }
}
