//! The target: is it staging, is our schema ours, and what is in it after a run.

use std::collections::HashSet;
use std::time::Duration;

use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::odoo::{self, SCHEMA, SCHEMA_MARK};

/// Keeps two drills apart: "pgweird" as a number.
const LOCK: &str = "31637053811843684";
/// `application_name` of the drill's own sessions, which no figure counts.
pub const APPLICATION: &str = "pgweir drill";
/// Time for one statement of the drill's own.
const STATEMENT_MAX: Duration = Duration::from_secs(60);
/// Backends of an ended run are waited for so long.
const CLEAR_MAX: Duration = Duration::from_secs(10);

/// A session of the drill's own, past every proxy: sets up, looks on, clears away.
pub struct Session {
    client: Client,
}

/// What the target's server allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// `max_connections`.
    pub max_connections: u32,
    /// Less the reserved ones.
    pub usable: u32,
}

/// A driver's error as one line.
pub fn explain(error: &tokio_postgres::Error) -> String {
    use std::error::Error as _;
    if let Some(db) = error.as_db_error() {
        return format!("{} {}: {}", db.severity(), db.code().code(), db.message());
    }
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

impl Session {
    /// Logs in.
    ///
    /// # Errors
    /// What the server or the system said.
    pub async fn open(config: &Config) -> Result<Self, String> {
        let mut config = config.clone();
        config.application_name(APPLICATION).connect_timeout(Duration::from_secs(10));
        let connecting = tokio::time::timeout(Duration::from_secs(15), config.connect(NoTls));
        let (client, connection) = connecting
            .await
            .map_err(|_| "the target does not answer".to_owned())?
            .map_err(|error| format!("the target cannot be reached: {}", explain(&error)))?;
        tokio::spawn(connection);
        Ok(Self { client })
    }

    /// Rows of a statement, as text.
    ///
    /// # Errors
    /// What the server said, or that it did not answer within a minute.
    pub async fn rows(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>, String> {
        let asked = tokio::time::timeout(STATEMENT_MAX, self.client.simple_query(sql)).await;
        let messages =
            asked.map_err(|_| "the target does not answer".to_owned())?.map_err(|error| explain(&error))?;
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|n| row.get(n).map(str::to_owned)).collect())
            }
            _ => None,
        });
        Ok(rows.collect())
    }

    /// The first value of the first row.
    async fn value(&self, sql: &str) -> Result<Option<String>, String> {
        Ok(self.rows(sql).await?.into_iter().next().and_then(|row| row.into_iter().next().flatten()))
    }

    /// Refuses a target that does not say it is staging.
    ///
    /// # Errors
    /// Why it is refused.
    pub async fn must_be_staging(&self) -> Result<(), String> {
        let said = self
            .value(
                "SELECT concat_ws(' ', shobj_description(oid, 'pg_database'), current_setting('pgweir.environment', true)) \
                 FROM pg_catalog.pg_database WHERE datname = current_database()",
            )
            .await?;
        if said
            .unwrap_or_default()
            .to_lowercase()
            .split(|c: char| !c.is_alphanumeric())
            .any(|word| word == "staging")
        {
            return Ok(());
        }
        Err("the target does not say that it is staging, and a drill hurts whoever works there. If it is: COMMENT ON DATABASE … IS \
             'staging', or ALTER DATABASE … SET pgweir.environment = 'staging', or --i-know-this-is-staging"
            .into())
    }

    /// Keeps other drills off this database as long as the session lives.
    ///
    /// # Errors
    /// That another is at work.
    pub async fn lock(&self) -> Result<(), String> {
        match self.value(&format!("SELECT pg_try_advisory_lock({LOCK})")).await?.as_deref() {
            Some("t") => Ok(()),
            _ => Err("another drill is at work on this database".into()),
        }
    }

    /// What the server allows.
    ///
    /// # Errors
    /// What the server said.
    pub async fn capacity(&self) -> Result<Capacity, String> {
        let sql = "SELECT current_setting('max_connections'), current_setting('superuser_reserved_connections'), \
                   coalesce(current_setting('reserved_connections', true), '0')";
        let row = self.rows(sql).await?.into_iter().next().unwrap_or_default();
        let mut numbers =
            row.into_iter().map(|value| value.and_then(|text| text.parse::<u32>().ok()).unwrap_or(0));
        let max_connections = numbers.next().unwrap_or(0);
        Ok(Capacity { max_connections, usable: numbers.fold(max_connections, u32::saturating_sub) })
    }

    /// Makes schema and tables anew, with so many queue jobs.
    ///
    /// # Errors
    /// That a schema of our name is not ours, or what the server said.
    pub async fn build(&self, jobs: u64) -> Result<(), String> {
        self.clear().await?;
        self.rows(&odoo::tables(jobs)).await.map(|_| ()).map_err(|error| format!("schema {SCHEMA}: {error}"))
    }

    /// Drops our schema, a crashed drill's too; one that does not carry our mark is left alone.
    ///
    /// # Errors
    /// That it is not ours, or what the server said.
    pub async fn clear(&self) -> Result<(), String> {
        let sql = format!(
            "SELECT coalesce(obj_description(oid, 'pg_namespace'), '') FROM pg_catalog.pg_namespace WHERE nspname = '{SCHEMA}'"
        );
        match self.value(&sql).await? {
            None => Ok(()),
            Some(mark) if mark == SCHEMA_MARK => {
                let drop =
                    format!("SET lock_timeout = '20s'; DROP SCHEMA {SCHEMA} CASCADE; RESET lock_timeout");
                self.rows(&drop).await.map(|_| ()).map_err(|error| format!("schema {SCHEMA}: {error}"))
            }
            Some(_) => Err(format!("the target has a schema {SCHEMA} that no drill made: rename or drop it")),
        }
    }

    /// Waits, within bounds, until the backends of these applications are gone; how many are left. A pooler keeps some.
    pub async fn wait_clear(&self, applications: &[String]) -> u32 {
        let sql = format!(
            "SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE application_name IN ({})",
            literals(applications)
        );
        let mut left = 0;
        for _ in 0..CLEAR_MAX.as_millis() / 200 {
            left = self.value(&sql).await.ok().flatten().and_then(|count| count.parse().ok()).unwrap_or(0);
            if left == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        left
    }

    /// How many of the orders that users were told are saved are not there.
    ///
    /// # Errors
    /// What the server said.
    pub async fn lost_orders(&self, told: &[u64]) -> Result<u64, String> {
        let rows = self.rows(&format!("SELECT ref FROM {SCHEMA}.sale_order")).await?;
        let there: HashSet<u64> =
            rows.into_iter().filter_map(|row| row.into_iter().next().flatten()?.parse().ok()).collect();
        Ok(told.iter().filter(|reference| !there.contains(reference)).count() as u64)
    }
}

/// A list of SQL string literals.
fn literals(texts: &[String]) -> String {
    let quoted: Vec<String> = texts.iter().map(|text| format!("'{}'", text.replace('\'', "''"))).collect();
    if quoted.is_empty() { "NULL".into() } else { quoted.join(", ") }
}
