//! One rule of a lane's `match`.

use std::sync::Arc;

use super::raw::{Report, Section};
use super::values;
use crate::lanes::settings::{Glob, Rule};

/// Characters of a rule's text shown by SHOW CLIENTS, at most.
const TEXT_CHARS_MAX: usize = 200;

/// Reads a rule; none, with its problems on record, where a key of it is wrong.
pub(super) fn read(report: &mut Report<'_>, mut section: Section<'_>) -> Option<Rule> {
    let before = report.problem_count();
    let mut rule = Rule {
        application: section.read(report, "application", values::application_glob),
        user: section.read(report, "user", values::glob(false)),
        database: section.read(report, "database", values::glob(false)),
        address: section.read(report, "address", values::cidr),
        listener: section.read(report, "listener", values::name),
        replication: section.read(report, "replication", values::boolean),
        process: section.read(report, "process", values::glob(false)),
        statement: section.read(report, "statement", values::glob(true)),
        text: "".into(),
    };
    let names = [
        ("application", &rule.application),
        ("user", &rule.user),
        ("database", &rule.database),
        ("process", &rule.process),
    ];
    for (name, glob) in names {
        foreign_wildcards(report, &section.key(name), glob.as_ref());
    }
    if let Some(statement) = &rule.statement {
        folded_statement(report, &section.key("statement"), statement);
    }
    rule.text = shown(report, &section, &rule);
    section.finish(report);
    (report.problem_count() == before).then_some(rule)
}

/// SQL's and regular expressions' wildcards are ordinary characters here.
fn foreign_wildcards(report: &mut Report<'_>, key: &str, glob: Option<&Glob>) {
    let Some(glob) = glob else { return };
    if let Some(foreign) = ["%", ".*", "^", "$"].into_iter().find(|w| glob.text.contains(w)) {
        let text = format!("`{foreign}` stands for itself in a glob");
        report.warning_at(key, text, "only `*` (anything) and `?` (one character) are special");
    }
}

/// A statement is compared with white space folded and without its semicolon: some globs can never match.
fn folded_statement(report: &mut Report<'_>, key: &str, glob: &Glob) {
    let text = &*glob.text;
    let why = if text.ends_with(';') {
        "ends with a semicolon, which statements have lost when they are compared"
    } else if text.contains("  ") || text.starts_with(' ') || text.ends_with(' ') {
        "has blanks that statements have lost when they are compared"
    } else {
        return;
    };
    report.problem_at(
        key,
        why,
        "white space is folded to one blank and a trailing semicolon is dropped first",
    );
}

/// The rule as written where it is written in braces, else put together.
fn shown(report: &Report<'_>, section: &Section<'_>, rule: &Rule) -> Arc<str> {
    let written = report.text.get(section.span.clone()).filter(|t| t.starts_with('{') && !t.contains('#'));
    let text = match written {
        Some(written) => written.split_whitespace().collect::<Vec<_>>().join(" "),
        None => format!("{{ {} }}", keys(rule).join(", ")),
    };
    if text.chars().count() <= TEXT_CHARS_MAX {
        text.into()
    } else {
        text.chars().take(TEXT_CHARS_MAX - 1).chain(['…']).collect::<String>().into()
    }
}

fn keys(rule: &Rule) -> Vec<String> {
    let globs = [
        ("application", &rule.application),
        ("user", &rule.user),
        ("database", &rule.database),
        ("process", &rule.process),
        ("statement", &rule.statement),
    ];
    let mut all: Vec<String> = globs
        .into_iter()
        .filter_map(|(name, glob)| glob.as_ref().map(|g| format!("{name} = {:?}", g.text)))
        .collect();
    if let Some(cidr) = rule.address {
        all.push(format!("address = \"{}/{}\"", cidr.network, cidr.prefix));
    }
    if let Some(listener) = &rule.listener {
        all.push(format!("listener = {listener:?}"));
    }
    if let Some(replication) = rule.replication {
        all.push(format!("replication = {replication}"));
    }
    all
}
