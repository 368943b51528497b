//! Plain tables.

use serde_json::{Value, json};

use super::console::{Console, Failure};
use super::{print, table};

/// Columns of SHOW CLIENTS for people: the others are PgBouncer's, for its tools.
const CLIENT_COLUMNS: [&str; 14] = [
    "id",
    "lane",
    "rule",
    "application",
    "user",
    "database",
    "address",
    "pid",
    "process",
    "state",
    "transaction_ms",
    "idle_in_transaction_ms",
    "wait_ms",
    "last_statement",
];

/// Prints the answer of a SHOW.
pub async fn run(console: &Console, sql: &str, json: bool) -> Result<bool, Failure> {
    let answer = console.show(sql).await?;
    let answer = if sql == "SHOW CLIENTS" && !json { answer.select(&CLIENT_COLUMNS) } else { answer };
    print(&if json { table::pretty(&Value::Array(answer.objects())) } else { answer.aligned() })
}

/// This program's version.
pub fn version(json: bool) -> String {
    let version = env!("CARGO_PKG_VERSION");
    if json { table::pretty(&json!({ "version": version })) } else { format!("pgweir {version}\n") }
}
