//! Plain tables.

use serde_json::{Value, json};

use super::console::{Console, Failure};
use super::table::Table;
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
    let about = if sql == "SHOW USAGE" { about_bypass(&answer) } else { String::new() };
    print(&if json { table::pretty(&Value::Array(answer.objects())) } else { answer.aligned() + &about })
}

/// Who `bypass` of a SHOW USAGE is, where that is known: the monitor's session is always one of them.
pub(super) fn about_bypass(usage: &Table) -> String {
    match usage.get(0, "bypass").and_then(|count| count.parse::<u64>().ok()) {
        None | Some(0) => String::new(),
        Some(1) => "bypass 1: pgweir's own monitor\n".to_owned(),
        Some(count) => format!("bypass {count}: one of them is pgweir's own monitor\n"),
    }
}

/// This program's version.
pub fn version(json: bool) -> String {
    let version = env!("CARGO_PKG_VERSION");
    if json { table::pretty(&json!({ "version": version })) } else { format!("pgweir {version}\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monitor_is_named_among_those_who_bypass() {
        let about = |bypass: Option<&str>| {
            let names = vec!["bypass".to_owned()];
            about_bypass(&Table { names, kinds: Vec::new(), rows: vec![vec![bypass.map(str::to_owned)]] })
        };
        assert_eq!((about(None), about(Some("0"))), (String::new(), String::new()));
        assert_eq!(about(Some("1")), "bypass 1: pgweir's own monitor\n");
        assert_eq!(about(Some("63")), "bypass 63: one of them is pgweir's own monitor\n");
    }
}
