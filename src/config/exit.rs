//! `[exit]` and `[[exit.probe]]`.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use toml::de::DeValue;

use super::raw::{Fault, Report, Section};
use super::settings::{Ask, ExitSettings, ProbeSettings};
use super::values;
use crate::incident::exit::Expect;

/// Probes at most: each costs a query, a request or a process.
const PROBES_MAX: usize = 50;
/// Arguments of a command at most, the program included.
const ARGUMENTS_MAX: usize = 100;
/// `hold_for`, shortest and longest.
const HOLD: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(86_400));
/// A probe's `interval`, shortest and longest, and the default.
const INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
const INTERVAL_DEFAULT: Duration = Duration::from_secs(15);
/// A probe's `timeout`, shortest and longest, and the default.
const TIMEOUT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

const ASK: &str = "write sql = \"select count(*) …\" (with database), http = \"https://…\" or command = [\"/path\", \"argument\"]";
const EXPECT: &str =
    "write expect = \"decreasing\", \"empty\", \"< 10\" (a number), or \"ok\" where there is no number";

/// `[exit]` and `[[exit.probe]]`.
pub(super) fn exit(report: &mut Report<'_>, root: &mut Section<'_>) -> ExitSettings {
    let mut settings = ExitSettings {
        usage_below: 75.0,
        hold_for: Duration::from_secs(900),
        critical_lanes: Vec::new(),
        failures_below: 5.0,
        opens_at: None,
        log_file: None,
        probes: Vec::new(),
    };
    let path = report.path;
    let Some(mut section) = root.table(report, "exit") else { return settings };
    if let Some(percent) = section.read(report, "usage_below", values::percent) {
        settings.usage_below = percent;
    }
    if let Some(duration) = section.read(report, "hold_for", within(HOLD)) {
        settings.hold_for = duration;
    }
    if let Some(lanes) = section.read(report, "critical_lanes", values::list(values::name)) {
        settings.critical_lanes = lanes;
    }
    if let Some(percent) = section.read(report, "failures_below", values::percent) {
        settings.failures_below = percent;
    }
    settings.opens_at = section.read(report, "opens_at", values::percent);
    settings.log_file = section.read(report, "log_file", values::path(path));
    let mut names = HashSet::new();
    for probe in section.tables(report, "probe") {
        if let Some(probe) = read_probe(report, probe, &mut names) {
            settings.probes.push(probe);
        }
    }
    if settings.probes.len() > PROBES_MAX {
        let text = format!("there are more than {PROBES_MAX} probes");
        report.problem_at(&section.key("probe"), text, "each costs a query; keep the telling ones");
    }
    section.finish(report);
    settings
}

fn read_probe(
    report: &mut Report<'_>,
    mut section: Section<'_>,
    names: &mut HashSet<Arc<str>>,
) -> Option<ProbeSettings> {
    let name = section.require(report, "name", "write name = \"…\"", values::name);
    let kinds = ["sql", "http", "command"].into_iter().filter(|kind| section.has(kind)).count();
    if kinds > 1 {
        report.problem_at(&section.name, "asks in more than one way", "give each way a probe of its own");
        // Told once: what belongs to the other ways is no unknown key.
        for key in ["sql", "http", "command", "contains", "database"] {
            section.item(report, key);
        }
    }
    let ask = read_ask(report, &mut section);
    let expect = section.read(report, "expect", expect);
    let interval = section.read(report, "interval", within(INTERVAL)).unwrap_or(INTERVAL_DEFAULT);
    let timeout = section.read(report, "timeout", within(TIMEOUT)).unwrap_or(TIMEOUT_DEFAULT.min(interval));
    if let Some(name) = &name
        && !names.insert(name.clone())
    {
        let text = format!("there is another probe {name:?}");
        report.problem_at(&section.key("name"), text, "give each probe a name of its own");
    }
    if timeout > interval {
        let text = "is longer than the interval";
        report.problem_at(&section.key("timeout"), text, "a look must be over before the next one");
    }
    let key = section.key("expect");
    section.finish(report);
    let (name, ask) = (name?, ask?);
    match (&ask, expect) {
        (Ask::Sql { .. }, Some(Expect::Ok)) => {
            report.problem_at(&key, "\"ok\" says nothing of a query's number", EXPECT)
        }
        (Ask::Http { .. }, Some(Expect::Decreasing | Expect::Empty | Expect::Below(_))) => {
            report.problem_at(
                &key,
                "a page has no number",
                "leave the key out; contains = \"…\" looks into the page",
            );
        }
        _ => {}
    }
    let usual = if matches!(ask, Ask::Sql { .. }) { Expect::Decreasing } else { Expect::Ok };
    Some(ProbeSettings { name, ask, expect: expect.unwrap_or(usual), interval, timeout })
}

/// What it asks. Keys of another way to ask are unknown to it.
fn read_ask(report: &mut Report<'_>, section: &mut Section<'_>) -> Option<Ask> {
    if section.has("http") {
        let url = section.read(report, "http", url);
        let contains = section.read(report, "contains", values::text);
        return Some(Ask::Http { url: url?, contains });
    }
    if section.has("command") {
        let argv = section.read(report, "command", argv)?;
        return Some(Ask::Command { argv });
    }
    let sql = section.require(report, "sql", ASK, values::text);
    // A probe that asks nothing has one fault, not two.
    let database = if section.has("sql") {
        section.require(report, "database", "write database = \"…\": where to ask", values::name)
    } else {
        section.read(report, "database", values::name)
    };
    let path = report.path;
    let user = section.read(report, "user", values::name);
    let file = section.read(report, "password_file", values::path(path));
    if file.is_some() && user.is_none() {
        let text = "has no effect without user";
        report.warning_at(&section.key("password_file"), text, "without user the monitor's role asks");
    }
    // Absent, for they would have been taken above: known all the same, so that a hint at an unknown key names them.
    section.item(report, "http");
    section.item(report, "command");
    if section.read(report, "contains", values::text).is_some() {
        report.problem_at(
            &section.key("contains"),
            "belongs to http",
            "remove it, or write http = \"https://…\"",
        );
    }
    Some(Ask::Sql { database: database?, sql: sql?, role: user.map(|user| (user, file)) })
}

fn within(bounds: (Duration, Duration)) -> impl Fn(&DeValue<'_>) -> Result<Duration, Fault> {
    move |value| {
        let duration = values::duration(value)?;
        if (bounds.0..=bounds.1).contains(&duration) {
            return Ok(duration);
        }
        Err(Fault::new(
            format!("{duration:?} is out of range"),
            format!("from {:?} to {:?}", bounds.0, bounds.1),
        ))
    }
}

fn expect(value: &DeValue<'_>) -> Result<Expect, Fault> {
    let text = values::string(value)?;
    let folded = text.split_whitespace().collect::<String>();
    match &*folded {
        "ok" => return Ok(Expect::Ok),
        "decreasing" => return Ok(Expect::Decreasing),
        "empty" | "==0" => return Ok(Expect::Empty),
        _ => {}
    }
    let limit = folded.strip_prefix('<').and_then(|limit| limit.parse().ok());
    let limit = limit.filter(|limit: &f64| limit.is_finite());
    limit
        .map(Expect::Below)
        .ok_or_else(|| Fault::new(format!("{:?} is not known", values::clip(&text)), EXPECT))
}

fn url(value: &DeValue<'_>) -> Result<Arc<str>, Fault> {
    const HINT: &str = "write http://host:port/path or https://…";
    let text = values::text(value)?;
    let uri: Uri = text
        .parse()
        .map_err(|error| Fault::new(format!("{:?} is no URL: {error}", values::clip(&text)), HINT))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
        return Err(Fault::new(format!("{:?} is no URL with a host", values::clip(&text)), HINT));
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        let hint = "ask for a page that everybody may see, or let a command read the password from a file";
        return Err(Fault::new("has a user or password in it", hint));
    }
    Ok(text)
}

fn argv(value: &DeValue<'_>) -> Result<Vec<Arc<str>>, Fault> {
    const HINT: &str = "write command = [\"/usr/local/bin/check\", \"argument\"]: no shell reads it";
    let words = values::list(values::string)(value)?;
    if words.first().is_none_or(|program| program.is_empty()) {
        return Err(Fault::new("names no program", HINT));
    }
    if words.len() > ARGUMENTS_MAX || words.iter().any(|word| word.contains('\0')) {
        return Err(Fault::new("has too many words, or a NUL in one", HINT));
    }
    Ok(words)
}
