//! A query: connect, ask, close, each time, so that no database is kept from being dropped by a probe at rest.

use std::pin::pin;
use std::time::Duration;

use futures_util::TryStreamExt;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::number;
use crate::upstream::connect::{self, MonitorSettings, explain};

/// `application_name` of a probe's session.
pub const APPLICATION_NAME: &str = "pgweir probe";
/// How long PostgreSQL may take to see a good-bye.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// Asks; no row is 0.
///
/// # Errors
/// No connection, no answer, or one that is not one number.
pub async fn ask(settings: &MonitorSettings, sql: &str, timeout: Duration) -> Result<f64, String> {
    let opened = connect::open_as(settings, APPLICATION_NAME).await?;
    let mut connection = pin!(opened.connection);
    let client = opened.client;
    let answer = {
        let question = pin!(question(&client, sql, timeout));
        tokio::select! {
            answer = question => answer,
            ended = &mut connection => Err(ended.err().map_or_else(|| "the connection ended".to_owned(), |e| explain(&e))),
        }
    };
    // Dropping the client says good-bye; the connection has to be driven for that, and PostgreSQL closes it.
    drop(client);
    let _ = tokio::time::timeout(CLOSE_MAX, connection).await;
    answer
}

async fn question(client: &Client, sql: &str, timeout: Duration) -> Result<f64, String> {
    // A probe that is not waited for any more must not go on in PostgreSQL, and one that writes is a mistake.
    let settings = format!(
        "set statement_timeout = {0}; set lock_timeout = {0}; set default_transaction_read_only = on",
        timeout.as_millis().max(1)
    );
    client.batch_execute(&settings).await.map_err(|error| explain(&error))?;
    let messages = client.simple_query_raw(sql).await.map_err(|error| explain(&error))?;
    let mut messages = pin!(messages);
    let mut found: Option<f64> = None;
    // Read one by one: a query that forgot its count(*) must not fill our memory.
    while let Some(message) = messages.try_next().await.map_err(|error| explain(&error))? {
        let SimpleQueryMessage::Row(row) = message else { continue };
        if found.is_some() {
            return Err("the query gave more than one row".to_owned());
        }
        if row.len() != 1 {
            return Err(format!("the query gave {} columns, not one", row.len()));
        }
        let text = row.get(0).ok_or("the query gave NULL, no number")?;
        found = Some(number(text).ok_or_else(|| format!("the query gave {text:.80?}, no number"))?);
    }
    Ok(found.unwrap_or(0.0))
}
