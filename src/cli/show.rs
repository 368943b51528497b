//! Plain tables.

use serde_json::{Value, json};

use super::console::{Console, Failure};
use super::{print, table};

/// Prints the answer of a SHOW.
pub async fn run(console: &Console, sql: &str, json: bool) -> Result<bool, Failure> {
    let answer = console.show(sql).await?;
    print(&if json { table::pretty(&Value::Array(answer.objects())) } else { answer.aligned() })
}

/// This program's version.
pub fn version(json: bool) -> String {
    let version = env!("CARGO_PKG_VERSION");
    if json { table::pretty(&json!({ "version": version })) } else { format!("pgweir {version}\n") }
}
