//! `pgweir status`: the verdict first, then what grew, what to try, and the figures.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::console::{Console, Failure};
use super::print;
use super::show::about_bypass;
use super::table::{self, Table, printable};
use super::verdict::{Facts, Finding, Word, judge};

/// Columns of SHOW USAGE and SHOW LANES that fit on a screen at 3 a.m.
const USAGE_COLUMNS: [&str; 8] = [
    "percent",
    "connections",
    "usable",
    "max_connections",
    "own_slots",
    "bypass",
    "idle_in_transaction",
    "sampled_ms_ago",
];
const LANE_COLUMNS: [&str; 9] = [
    "lane",
    "state",
    "quota",
    "slots",
    "idle_in_transaction",
    "waiting",
    "max_wait_ms",
    "paused_by",
    "reason",
];
/// Values of SHOW STATUS that are numbers: it is a table of texts.
const NUMBERS: [&str; 6] = ["uptime_s", "clients", "max_clients", "logins", "too_many_clients", "panics"];

/// Asks and prints.
pub async fn run(console: &Console, json: bool) -> Result<bool, Failure> {
    let usage = console.show("SHOW USAGE").await?;
    let lanes = console.show("SHOW LANES").await?;
    let process = console.pairs("SHOW STATUS").await?;
    let facts = Facts::read(&usage, &lanes, &process);
    let findings = judge(&facts);
    if json {
        return print(&table::pretty(&for_programs(&facts, &findings, &usage, &lanes, &process)));
    }
    print(&for_people(&facts, &findings, &usage, &lanes, &process))
}

/// Why lanes that go by processes may be wrong: causes that somebody can do something about.
const UNSEEN: [(&str, &str); 2] = [
    ("denied", "for want of a right (let Odoo use the Unix socket)"),
    ("not_local", "behind a container's wall"),
];

fn for_people(
    facts: &Facts,
    findings: &[Finding],
    usage: &Table,
    lanes: &Table,
    process: &BTreeMap<String, String>,
) -> String {
    let mut out: String = findings.iter().map(|finding| line(finding, findings)).collect();
    if facts.process.mode == "observe" {
        out.push_str("Mode observe: decisions are recorded, nothing is enforced.\n");
    }
    out.push_str(&grown(&facts.growth, process.get("uptime_s").map_or("", String::as_str)));
    for (cause, meant) in UNSEEN {
        let times = process.get(&format!("lookups_failed.{cause}")).map_or("0", String::as_str);
        if times != "0" {
            out.push_str(&format!("Client processes not seen, {meant}: {} times\n", printable(times)));
        }
    }
    if let Some(next) = next(findings) {
        out.push_str(&format!("Try next: {next}\n"));
    }
    out.push('\n');
    out.push_str(&usage.select(&USAGE_COLUMNS).aligned());
    out.push_str(&about_bypass(usage));
    out.push('\n');
    out.push_str(&lanes.select(&LANE_COLUMNS).aligned());
    out.push('\n');
    let value = |name: &str| printable(process.get(name).map_or("?", String::as_str));
    out.push_str(&format!(
        "pgweir {}, mode {}, {}, up {} s, clients {} of {}, logins {}, upstream {}, monitor {}, \"too many clients\" {}\n",
        value("version"),
        value("mode"),
        value("state"),
        value("uptime_s"),
        value("clients"),
        value("max_clients"),
        value("logins"),
        value("upstream"),
        value("monitor"),
        value("too_many_clients"),
    ));
    out
}

/// What grew most, and within which time: a pgweir that is young has seen less than it otherwise looks back.
fn grown(growth: &str, uptime_s: &str) -> String {
    const LOOKS_BACK_MIN: u64 = 15;
    let minutes = uptime_s.parse::<u64>().map_or(LOOKS_BACK_MIN, |s| s.div_ceil(60).clamp(1, LOOKS_BACK_MIN));
    let since = if minutes < LOOKS_BACK_MIN { ", as long as pgweir runs" } else { "" };
    // The time is told once.
    let what = growth
        .rsplit_once(" in ")
        .filter(|(_, time)| time.ends_with(" min"))
        .map_or(growth, |(what, _)| what);
    let what = if what.is_empty() { "nothing" } else { what };
    format!("Grew most in {minutes} min: {}{since}\n", printable(what))
}

/// A sentence; that of an incident names its command, where `Try next` names another's.
fn line(finding: &Finding, all: &[Finding]) -> String {
    let own = finding.word == Word::Incident && next(all) != Some(finding.next.as_str());
    let command = if own { format!(" (see {})", finding.next) } else { String::new() };
    printable(&finding.sentence()) + &command + "\n"
}

fn next(findings: &[Finding]) -> Option<&str> {
    findings.iter().map(|finding| finding.next.as_str()).find(|next| !next.is_empty())
}

fn for_programs(
    facts: &Facts,
    findings: &[Finding],
    usage: &Table,
    lanes: &Table,
    process: &BTreeMap<String, String>,
) -> Value {
    let figure = |(name, text): (&String, &String)| (name.clone(), typed(name, text));
    let found = |finding: &Finding| json!({ "verdict": finding.word.text(), "text": finding.text, "next": finding.next });
    json!({
        "verdict": findings.first().map(|finding| finding.word.text()),
        "sentence": findings.first().map(Finding::sentence),
        "findings": findings.iter().map(found).collect::<Vec<_>>(),
        "incident": facts.incident.as_ref().map(|open| {
            json!({ "id": open.id, "since": open.since, "cause": open.cause, "not_met": open.not_met })
        }),
        "growth": facts.growth,
        "next": next(findings),
        "usage": usage.objects().into_iter().next(),
        "lanes": lanes.objects(),
        "process": process.iter().map(figure).collect::<Map<_, _>>(),
    })
}

/// A value of SHOW STATUS as what it is.
fn typed(name: &str, text: &str) -> Value {
    let is_number = NUMBERS.contains(&name) || name.starts_with("lookups_failed.");
    match text.parse::<u64>() {
        Ok(number) if is_number => number.into(),
        _ if name == "usage_stale" && matches!(text, "true" | "false") => (text == "true").into(),
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::table::Kind;

    fn answers() -> (Table, Table, BTreeMap<String, String>) {
        let table = |columns: &[(&str, &str)]| Table {
            names: columns.iter().map(|(name, _)| (*name).to_owned()).collect(),
            kinds: columns
                .iter()
                .map(|(_, text)| if text.parse::<f64>().is_ok() { Kind::Number } else { Kind::Text })
                .collect(),
            rows: vec![columns.iter().map(|(_, text)| Some((*text).to_owned())).collect()],
        };
        let usage = table(&[("usable", "40"), ("connections", "33"), ("percent", "82.5")]);
        let lanes = table(&[
            ("lane", "cron"),
            ("state", "shedding"),
            ("priority", "5"),
            ("slots", "8"),
            ("quota", "8"),
        ]);
        let status = [
            ("version", "0.1.0"),
            ("mode", "observe"),
            ("state", "running"),
            ("uptime_s", "240"),
            ("monitor", "ok"),
        ];
        let mut status: BTreeMap<String, String> =
            status.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        status.insert("lookups_failed.denied".into(), "42".into());
        status.insert("growth".into(), "connections of lane cron: from 2 to 8 in 15 min".into());
        (usage, lanes, status)
    }

    #[test]
    fn people_read_the_verdict_first_and_then_what_to_do() {
        let (usage, lanes, status) = answers();
        let facts = Facts::read(&usage, &lanes, &status);
        let text = for_people(&facts, &judge(&facts), &usage, &lanes, &status);
        let expected = "\
PRESSURE: usage 82 % (33 of 40); would be shed: cron
Mode observe: decisions are recorded, nothing is enforced.
Grew most in 4 min: connections of lane cron: from 2 to 8, as long as pgweir runs
Client processes not seen, for want of a right (let Odoo use the Unix socket): 42 times
Try next: pgweir clients

percent  connections  usable
   82.5           33      40

lane  state     quota  slots
cron  shedding      8      8

pgweir 0.1.0, mode observe, running, up 240 s, clients ? of ?, logins ?, upstream ?, monitor ok, \"too many clients\" ?
";
        assert_eq!(text, expected);
    }

    #[test]
    fn what_grew_is_told_with_the_time_it_was_seen_for() {
        let cron = "connections of lane cron: from 2 to 8";
        assert_eq!(grown(&format!("{cron} in 15 min"), "86400"), format!("Grew most in 15 min: {cron}\n"));
        assert_eq!(grown("", "59"), "Grew most in 1 min: nothing, as long as pgweir runs\n");
        assert_eq!(grown("", "?"), "Grew most in 15 min: nothing\n");
        let odd = "idle in transaction in lane web: from 0 to 3 in 2 min";
        let expected =
            "Grew most in 2 min: idle in transaction in lane web: from 0 to 3, as long as pgweir runs\n";
        assert_eq!(grown(odd, "61"), expected);
    }

    #[test]
    fn an_open_incident_names_its_command_beside_what_presses_more() {
        let (usage, lanes, mut status) = answers();
        let open =
            [("", "3"), ("_since", "2026-01-02T02:14:07.250Z"), ("_cause", "FREEZE"), ("_not_met", "usage")];
        status.extend(open.map(|(name, text)| (format!("incident{name}"), text.to_owned())));
        let facts = Facts::read(&usage, &lanes, &status);
        let text = for_people(&facts, &judge(&facts), &usage, &lanes, &status);
        let told =
            "INCIDENT: 3, since 2026-01-02T02:14:07.250Z: FREEZE; not met yet: usage (see pgweir exit)";
        assert_eq!(text.lines().nth(1), Some(told));
        assert!(text.contains("\nTry next: pgweir clients\n"));
        let value = for_programs(&facts, &judge(&facts), &usage, &lanes, &status);
        let expected =
            json!({ "id": 3, "since": "2026-01-02T02:14:07.250Z", "cause": "FREEZE", "not_met": "usage" });
        assert_eq!(value["incident"], expected);
        assert_eq!(value["findings"][1]["next"], "pgweir exit");
    }

    #[test]
    fn programs_get_everything_with_numbers_as_numbers() {
        let (usage, lanes, status) = answers();
        let facts = Facts::read(&usage, &lanes, &status);
        let value = for_programs(&facts, &judge(&facts), &usage, &lanes, &status);
        assert_eq!(value["verdict"], "PRESSURE");
        assert_eq!(value["next"], "pgweir clients");
        assert_eq!(value["usage"]["connections"], 33);
        assert_eq!(value["lanes"][0]["priority"], 5);
        assert_eq!(value["process"]["uptime_s"], 240);
        assert_eq!(value["incident"], Value::Null, "none is open");
        assert_eq!(value["process"]["version"], "0.1.0");
        assert_eq!(
            (typed("usage_stale", "false"), typed("lookups_failed.gone", "3")),
            (false.into(), 3.into())
        );
        assert_eq!(typed("growth", "7"), "7");
    }
}
