//! The table *Every key* of docs/configuration.md is made here, by asking the program: which keys a table knows, what it says of a value of the
//! wrong type or out of bounds, what it takes where a key is absent, and whether a reload applies it. `UPDATE=1 cargo test --test
//! config_reference` writes the table anew; the prose stands in the page, and a key without prose, or with another default there, is a failure.

#![allow(clippy::panic, reason = "tests say what they found")]

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use pgweir::config::units::parse_duration;
use pgweir::config::{Problem, check, default_of, is_changeable};

/// Tables of the file: their name, the text that leads into them (`@` is where a key stands), and their heading in the page.
const TABLES: &[(&str, &str, &str)] = &[
    ("", "@\n", "## Top of the file"),
    ("listen", "[[listen]]\n@\n", "## `[[listen]]`"),
    ("admin", "[admin]\n@\n", "## `[admin]`"),
    ("admin.user", "[[admin.user]]\n@\n", "## `[admin]`"),
    ("upstream", "[upstream]\n@\n", "## `[upstream]`"),
    ("monitor", "[monitor]\n@\n", "## `[monitor]`"),
    ("auth", "[auth]\n@\n", "## `[auth]`"),
    ("limits", "[limits]\n@\n", "## `[limits]`"),
    ("state", "[state]\n@\n", "## `[state]`"),
    ("bypass", "[bypass]\n@\n", "## `[bypass]`"),
    ("application", "[[application]]\n@\n", "## `[[application]]`"),
    ("lane", "[[lane]]\n@\n", "## `[[lane]]`"),
    ("lane.match", "[[lane]]\n[[lane.match]]\n@\n", "### `match`"),
    ("lane.idle_in_transaction", "[[lane]]\n[lane.idle_in_transaction]\n@\n", "### `idle_in_transaction`"),
    ("exit", "[exit]\n@\n", "## `[exit]`"),
    ("exit.probe", "[[exit.probe]]\n@\n", "### `[[exit.probe]]`"),
];

/// A file that sets as little as it may, and has every kind of table.
const LEAST: &str = r#"
listen = [{ address = "127.0.0.1:6432" }]
upstream = { address = "127.0.0.1:5432" }
monitor = {}
auth = { mode = "scram", users_file = "u" }
lane = [{ name = "x", default = true, quota = 1, pooling = "session", idle_in_transaction = {} }]
exit = { probe = [{ name = "p", sql = "select 1", database = "d" }] }
"#;

const BEGIN: &str = "<!-- every key: begin. Made by tests/config_reference.rs -->\n";
const END: &str = "<!-- every key: end -->\n";

fn page_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md")
}

fn problems(table: &str, line: &str) -> Vec<Problem> {
    let (_, text, _) = TABLES.iter().find(|(name, _, _)| *name == table).expect("a table");
    check(&text.replace('@', line), Path::new("p")).err().unwrap_or_default()
}

/// What is wrong with a value of a key: message and hint.
fn fault(table: &str, key: &str, value: &str) -> Option<(String, String)> {
    let ends = [format!(".{key}"), format!(".{key}[1]")];
    let is_it =
        |p: &Problem| (table.is_empty() && p.key == key) || ends.iter().any(|end| p.key.ends_with(end));
    let found = problems(table, &format!("{key} = {value}")).into_iter().find(is_it)?;
    Some((found.message, found.hint))
}

/// The keys a table knows, by its own hint.
fn keys(table: &str) -> Vec<String> {
    let found = problems(table, "zzzzzzzzzzzz = 1");
    let hint = found.iter().find_map(|p| p.hint.strip_prefix("known here: "));
    hint.unwrap_or_else(|| panic!("{table}: {found:#?}")).split(", ").map(str::to_owned).collect()
}

/// What may be written, in the words of the table; none where the key is a table of its own.
fn takes(table: &str, key: &str) -> Option<String> {
    let (message, _) =
        fault(table, key, "1979-05-27").unwrap_or_else(|| panic!("{table}.{key} takes a date"));
    let must = message.split_once("must be ").unwrap_or_else(|| panic!("{table}.{key}: {message}")).1;
    Some(match must {
        "a list of tables" | "a table" | "one table" => return None,
        "true or false" => "`true`, `false`".to_owned(),
        "a whole number" => bounds(table, key).replace("a whole number from ", ""),
        "a number" => {
            bounds(table, key).replace("a number ", "").replace(", in percent of usable connections", "")
        }
        "a duration" => duration(table, key),
        "a list" => "list of strings".to_owned(),
        "a string of five characters" => "SQLSTATE".to_owned(),
        "a string" => string(table, key),
        other => panic!("{table}.{key}: what is {other}?"),
    })
}

fn bounds(table: &str, key: &str) -> String {
    fault(table, key, "-1").unwrap_or_else(|| panic!("{table}.{key} takes -1")).1
}

fn duration(table: &str, key: &str) -> String {
    // What is wrong beside other keys says nothing of the key's own bounds.
    let said = |time: &str| {
        fault(table, key, &format!("{time:?}"))
            .map(|f| f.0)
            .filter(|message| !message.contains("longer than"))
    };
    let shortest = ["1ms", "10ms", "100ms", "1s"].into_iter().find(|time| said(time).is_none());
    let longest = ["365d", "1d", "1h", "1m"].into_iter().find(|time| said(time).is_none());
    let (Some(shortest), Some(longest)) = (shortest, longest) else { panic!("{table}.{key} takes no time") };
    let zero = if said("0").is_none() { "0, or " } else { "" };
    match (shortest, longest, zero) {
        ("1ms", "365d", "") => "duration above 0".to_owned(),
        ("1ms", "365d", _) => "duration".to_owned(),
        (_, "365d", _) => format!("{zero}duration from {shortest}"),
        _ => format!("{zero}duration from {shortest} to {longest}"),
    }
}

fn string(table: &str, key: &str) -> String {
    let said = fault(table, key, "\"zzzzzzzz\"").unwrap_or_default();
    if let Some(words) = said.1.strip_prefix("known here: ") {
        let quoted = words.split(", ").filter(|word| {
            fault(table, key, &format!("{word:?}"))
                .is_none_or(|f| !f.0.contains("not served") && !f.0.contains("not available"))
        });
        return quoted.map(|word| format!("`\"{word}\"`")).collect::<Vec<_>>().join(", ");
    }
    for (message, kind) in [
        ("has no port", "address"),
        ("is no IP address", "address range"),
        ("is no SQLSTATE", "SQLSTATE"),
        ("is no URL", "URL"),
        ("is not known", "expectation"),
    ] {
        if said.0.contains(message) {
            return kind.to_owned();
        }
    }
    let controlled = fault(table, key, "\"a\\u0007b\"").map(|f| f.0).unwrap_or_default();
    if controlled.contains("in a glob") {
        "glob"
    } else if controlled.contains("is no name") {
        "name"
    } else if key.ends_with("_file") || key == "directory" {
        "path"
    } else {
        "text"
    }
    .to_owned()
}

/// The key as SHOW CONFIG has it.
fn shown(table: &str, key: &str) -> String {
    match (table, key) {
        ("", _) => key.to_owned(),
        ("listen", "port") => "listen[1].address".to_owned(),
        ("listen", _) => format!("listen[1].{key}"),
        ("admin", "user") => "admin.user.x.role".to_owned(),
        ("admin", "password_file") => "admin.user.x.password_file".to_owned(),
        ("admin.user" | "application", _) => format!("{table}.x.{key}"),
        ("lane", _) => format!("lane.x.{key}"),
        ("lane.match", _) => "lane.x.match[1]".to_owned(),
        ("lane.idle_in_transaction", _) => format!("lane.x.idle_in_transaction.{key}"),
        _ => format!("{table}.{key}"),
    }
}

/// What is in force where the key is absent: none where it follows from others, or there is none.
fn default(table: &str, key: &str, least: &HashMap<String, String>) -> Option<String> {
    if table == "exit.probe" {
        // One line has all of a probe: `…, decreasing, every 15s, within 5s`.
        let words: Vec<&str> = least["exit.probe.p"].rsplitn(4, ", ").collect();
        return match key {
            "timeout" => words[0].strip_prefix("within ").map(str::to_owned),
            "interval" => words[1].strip_prefix("every ").map(str::to_owned),
            _ => None,
        };
    }
    let shown = shown(table, key);
    let is_pooling = default_of(&shown).is_none()
        && (key.starts_with("server_") || ["min_pool_size", "keep_reserve"].contains(&key));
    let value = if is_pooling { least.get(&shown).cloned() } else { default_of(&shown).map(str::to_owned) };
    // These are what others are: `warn` is `reset`, `reset` is `cap`.
    let is_moot =
        (table, key) == ("listen", "port") || table == "lane.match" || ["warn", "reset"].contains(&key);
    value.filter(|value| !value.is_empty() && !is_moot)
}

fn is_required(table: &str, key: &str) -> bool {
    if (table, key) == ("exit.probe", "sql") {
        return false; // or http, or command
    }
    let ends = format!(".{key}");
    problems(table, "").iter().any(|p| p.key.ends_with(&ends) && p.message.starts_with("is missing"))
}

struct Row {
    table: &'static str,
    key: String,
    takes: String,
    default: Option<String>,
    required: bool,
    reload: bool,
}

fn rows() -> Vec<Row> {
    let (config, _) = check(LEAST, Path::new("/p")).unwrap_or_else(|found| panic!("{found:#?}"));
    let least: HashMap<String, String> = config.lines().into_iter().collect();
    let mut rows = Vec::new();
    for (table, _, _) in TABLES {
        let mut known = keys(table);
        known.dedup();
        for key in known {
            let inner = if table.is_empty() { key.clone() } else { format!("{table}.{key}") };
            let Some(takes) = takes(table, &key) else {
                assert!(
                    TABLES.iter().any(|(name, _, _)| *name == inner),
                    "the table {inner} is not known here"
                );
                continue;
            };
            rows.push(Row {
                default: default(table, &key, &least),
                required: is_required(table, &key),
                reload: is_changeable(&shown(table, &key)),
                table,
                takes,
                key,
            });
        }
    }
    rows
}

fn reference(rows: &[Row]) -> String {
    let mut out = String::from("| key | takes | default | reload |\n| --- | --- | --- | --- |\n");
    for row in rows {
        let name = if row.table.is_empty() { row.key.clone() } else { format!("{}.{}", row.table, row.key) };
        let default = match &row.default {
            _ if row.required => "required".to_owned(),
            Some(value) => format!("`{value}`"),
            None => "–".to_owned(),
        };
        let reload = if row.reload { "yes" } else { "restart" };
        let _ = writeln!(out, "| `{name}` | {} | {default} | {reload} |", row.takes);
    }
    out
}

#[test]
fn the_table_of_keys_is_the_program_s() {
    let page = std::fs::read_to_string(page_path()).expect("the page");
    let (before, rest) = page.split_once(BEGIN).expect("the table's beginning");
    let (table, after) = rest.split_once(END).expect("the table's end");
    let made = reference(&rows());
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(page_path(), format!("{before}{BEGIN}{made}{END}{after}")).expect("written");
        return;
    }
    for (there, here) in table.lines().zip(made.lines()) {
        assert_eq!(there, here, "UPDATE=1 cargo test --test config_reference writes the table anew");
    }
    assert_eq!(table, made, "UPDATE=1 cargo test --test config_reference writes the table anew");
}

/// The cells of the rows below a heading, up to the next heading of its level or above; each key with the rest of its row.
fn prose(page: &str, heading: &str) -> HashMap<String, Vec<String>> {
    let at = page.find(&format!("\n{heading}")).unwrap_or_else(|| panic!("no {heading}")) + 1;
    let body = &page[at + heading.len()..];
    let ends = if heading.starts_with("###") { vec!["\n## ", "\n### "] } else { vec!["\n## "] };
    let body = &body[..ends.iter().filter_map(|end| body.find(end)).min().unwrap_or(body.len())];
    let mut found: HashMap<String, Vec<String>> = HashMap::new();
    for line in body.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        for key in cells[0].split('`').skip(1).step_by(2) {
            found
                .entry(key.to_owned())
                .or_insert_with(|| cells[1..].iter().map(|cell| (*cell).to_owned()).collect());
        }
    }
    // `[state]` has one key, and it stands in a sentence.
    for sentence in body.lines().filter(|line| {
        line.starts_with('`')
            || line.contains("Each has")
            || line.contains("More people")
            || line.contains("generated one for")
    }) {
        for key in sentence.split('`').skip(1).step_by(2) {
            found.entry(key.to_owned()).or_insert_with(|| vec![sentence.to_owned()]);
        }
    }
    found
}

#[test]
fn every_key_has_its_prose_and_its_default_there() {
    let page = std::fs::read_to_string(page_path()).expect("the page");
    let page = format!("\n{page}");
    for row in rows() {
        let (_, _, heading) = TABLES.iter().find(|(name, _, _)| *name == row.table).expect("a table");
        let known = prose(&page, heading);
        let cells = known
            .get(&row.key)
            .unwrap_or_else(|| panic!("{heading} of docs/configuration.md says nothing of `{}`", row.key));
        assert!(cells.iter().any(|cell| cell.len() > 3), "{heading} says nothing about `{}`", row.key);
        let first = &cells[0];
        if row.required && row.table != "exit.probe" && cells.len() > 1 {
            assert_eq!(first, "required", "{heading}: `{}`", row.key);
        }
        if let (Some(value), true) = (&row.default, cells.len() > 1 && row.table != "lane.match") {
            let none = ["never", "no limit", "–", "nothing"].iter().any(|word| first.contains(word));
            let means_none = ["0", ""].contains(&value.as_str());
            let quoted = first.split('"').nth(1).and_then(|text| parse_duration(text).ok());
            let is_same_time = quoted.is_some() && quoted == parse_duration(value).ok();
            assert!(
                first.contains(value.as_str()) || (none && means_none) || is_same_time,
                "{heading}: the default of `{}` is {value}, the page says {first}",
                row.key
            );
        }
    }
}
