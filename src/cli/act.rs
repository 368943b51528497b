//! Commands that change something.

use serde_json::json;

use super::console::{Console, Failure};
use super::{print, table};

/// Carries out a command and prints what the console says about it.
pub async fn run(console: &Console, sql: &str, json: bool) -> Result<bool, Failure> {
    let lines = console.act(sql).await?;
    if json {
        return print(&table::pretty(&json!({ "done": true, "messages": lines })));
    }
    let lines: Vec<String> = lines.iter().map(|line| table::printable(line) + "\n").collect();
    print(if lines.is_empty() { "done\n".into() } else { lines.concat() }.as_str())
}
