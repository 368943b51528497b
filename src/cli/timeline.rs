//! The timeline, and following it.

use std::time::Duration;

use serde_json::Value;

use super::args::Timeline;
use super::console::{Console, Failure};
use super::print;
use super::table::{self, Table, printable};

/// Time between two looks when following.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);

/// Prints the last entries, then, if wanted, new ones for as long as pgweir answers.
pub async fn run(console: &Console, wanted: &Timeline, json: bool) -> Result<bool, Failure> {
    let mut entries = console.show("SHOW TIMELINE").await?;
    let mut last_seq = newest(&entries);
    entries.rows.drain(..entries.rows.len().saturating_sub(wanted.last));
    if json && !wanted.follow {
        return print(&table::pretty(&Value::Array(entries.objects())));
    }
    loop {
        let read = print(&lines(&entries, json))?;
        if !wanted.follow || !read {
            return Ok(read);
        }
        tokio::time::sleep(FOLLOW_EVERY).await;
        entries = console.show("SHOW TIMELINE").await?;
        let seen = last_seq;
        last_seq = last_seq.max(newest(&entries));
        keep_after(&mut entries, seen);
    }
}

fn seq(entries: &Table, row: usize) -> u64 {
    entries.get(row, "seq").and_then(|seq| seq.parse().ok()).unwrap_or(0)
}

fn newest(entries: &Table) -> u64 {
    (0..entries.rows.len()).map(|row| seq(entries, row)).max().unwrap_or(0)
}

fn keep_after(entries: &mut Table, seen: u64) {
    let mut row = 0;
    let new: Vec<bool> = (0..entries.rows.len()).map(|row| seq(entries, row) > seen).collect();
    entries.rows.retain(|_| {
        row += 1;
        new[row - 1]
    });
}

/// One line an entry; as JSON one object a line.
fn lines(entries: &Table, json: bool) -> String {
    if json {
        return entries.objects().iter().map(|entry| format!("{entry}\n")).collect();
    }
    (0..entries.rows.len()).map(|row| line(entries, row)).collect()
}

/// `2026-03-01T02:14:07.250Z  81.5 %  cron  shed  pgweir: usage is above 75 %`
fn line(entries: &Table, row: usize) -> String {
    let field = |name| printable(entries.get(row, name).unwrap_or(""));
    let usage = field("usage").parse::<f64>().map_or("-".into(), |percent| format!("{percent:.1} %"));
    let client = field("client");
    let client = if client.is_empty() { client } else { format!(" [client {client}]") };
    let lane = Some(field("lane")).filter(|lane| !lane.is_empty()).unwrap_or_else(|| "-".into());
    let (at, event, who, text) = (field("at"), field("event"), field("who"), field("text"));
    format!("{at}  {usage:>7}  {lane:<12}  {event:<16}  {who}: {text}{client}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::table::Kind;

    fn entries(rows: &[[&str; 8]]) -> Table {
        let names = ["seq", "at", "who", "event", "lane", "client", "text", "usage"];
        let cell = |cell: &&str| Some((*cell).to_owned()).filter(|cell| !cell.is_empty());
        Table {
            names: names.map(str::to_owned).to_vec(),
            kinds: vec![Kind::Number, Kind::Number],
            rows: rows.iter().map(|row| row.iter().map(cell).collect()).collect(),
        }
    }

    #[test]
    fn a_line_tells_when_how_full_what_who_and_why() {
        let table = entries(&[
            ["1", "2024-02-29T23:59:59.120Z", "pgweir", "reset", "web", "42", "idle for 62 s", "81.53"],
            ["2", "2024-03-01T00:00:00.000Z", "admin (alice)", "note", "", "", "called the carrier", ""],
        ]);
        let expected = "\
2024-02-29T23:59:59.120Z   81.5 %  web           reset             pgweir: idle for 62 s [client 42]
2024-03-01T00:00:00.000Z        -  -             note              admin (alice): called the carrier
";
        assert_eq!(lines(&table, false), expected);
        assert_eq!(lines(&table, true).lines().count(), 2);
    }

    #[test]
    fn following_shows_each_entry_once() {
        let row = |seq: &'static str| [seq, "0", "pgweir", "shed", "", "", "", ""];
        let mut table = entries(&[row("7"), row("8"), row("9")]);
        assert_eq!(newest(&table), 9);
        keep_after(&mut table, 8);
        assert_eq!((table.rows.len(), newest(&table)), (1, 9));
    }
}
