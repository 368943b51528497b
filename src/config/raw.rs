//! The document as its author wrote it: tables that know where they stand, and one place where problems are collected.
//!
//! A reader asks a [`Section`] for each key it knows; what nobody asked for is unknown. A value that cannot be read is put on
//! record and reads as absent, so that one mistake is reported once and does not hide the next.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::problem::{Problem, Warning};

/// Keys that belong above the first `[section]`; written below it they land inside it.
const TOP_LEVEL: [&str; 3] = ["mode", "log_format", "log_literals"];

/// Problems told at most; as many warnings.
const PROBLEMS_MAX: usize = 1000;

/// What is wrong with one value, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) message: String,
    pub(super) hint: String,
}

impl Fault {
    pub(super) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }
}

/// Collects problems and warnings, and remembers on which line each key stands.
pub(super) struct Report<'d> {
    pub(super) text: &'d str,
    pub(super) path: &'d Path,
    file: Arc<str>,
    line_starts: Vec<usize>,
    problems: Vec<Problem>,
    /// Problems beyond [`PROBLEMS_MAX`].
    untold: usize,
    warnings: Vec<Warning>,
    pub(super) places: BTreeMap<String, usize>,
}

impl<'d> Report<'d> {
    pub(super) fn new(text: &'d str, path: &'d Path) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1);
        Self {
            text,
            path,
            file: path.display().to_string().into(),
            line_starts: std::iter::once(0).chain(breaks).collect(),
            problems: Vec::new(),
            untold: 0,
            warnings: Vec::new(),
            places: BTreeMap::new(),
        }
    }

    pub(super) fn line_of(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset)
    }

    /// Line of a key that was read; else that of the table it would stand in; the top for what is missing altogether.
    pub(super) fn place(&self, key: &str) -> Option<usize> {
        find_place(&self.places, key).or(Some(1))
    }

    pub(super) fn problem(
        &mut self,
        line: Option<usize>,
        key: &str,
        text: impl Into<String>,
        hint: impl Into<String>,
    ) {
        let problem = self.make(line, key, text.into(), hint.into());
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        } else {
            self.untold += 1;
        }
    }

    /// Problems so far.
    pub(super) fn problem_count(&self) -> usize {
        self.problems.len() + self.untold
    }

    /// A problem of a key that was read.
    pub(super) fn problem_at(&mut self, key: &str, text: impl Into<String>, hint: impl Into<String>) {
        self.problem(self.place(key), key, text, hint);
    }

    pub(super) fn warning_at(&mut self, key: &str, text: impl Into<String>, hint: impl Into<String>) {
        if self.warnings.len() < PROBLEMS_MAX {
            let warning = Warning(self.make(self.place(key), key, text.into(), hint.into()));
            self.warnings.push(warning);
        }
    }

    fn make(&self, line: Option<usize>, key: &str, message: String, hint: String) -> Problem {
        Problem { file: self.file.clone(), line, key: key.to_owned(), message, hint }
    }

    /// Everything found, in the order of the file.
    pub(super) fn finish(mut self) -> (Vec<Problem>, Vec<Warning>, BTreeMap<String, usize>) {
        self.problems.sort_by_key(|p| p.line.unwrap_or(0));
        self.warnings.sort_by_key(|w| w.0.line.unwrap_or(0));
        if self.untold > 0 {
            let text = format!("{} more problems are not shown", self.untold);
            let last = self.make(Some(self.line_starts.len()), "", text, "mend these first".to_owned());
            self.problems.push(last);
        }
        (self.problems, self.warnings, self.places)
    }
}

/// Line of `key`, or of the nearest table around it.
pub(super) fn find_place(places: &BTreeMap<String, usize>, key: &str) -> Option<usize> {
    let mut key = key;
    loop {
        if let Some(line) = places.get(key) {
            return Some(*line);
        }
        key = &key[..key.rfind(['.', '['])?];
    }
}

/// A value with its place.
#[derive(Clone)]
pub(super) struct Item<'d> {
    pub(super) key: String,
    pub(super) line: usize,
    pub(super) span: Range<usize>,
    pub(super) value: &'d DeValue<'d>,
}

/// A table that is being read.
pub(super) struct Section<'d> {
    /// Dotted name, empty for the top of the file.
    pub(super) name: String,
    pub(super) line: usize,
    pub(super) span: Range<usize>,
    table: &'d DeTable<'d>,
    known: Vec<&'static str>,
}

impl<'d> Section<'d> {
    pub(super) fn root(table: &'d DeTable<'d>) -> Self {
        Self { name: String::new(), line: 1, span: 0..0, table, known: Vec::new() }
    }

    /// The table in `item`, or a problem.
    pub(super) fn of(report: &mut Report<'_>, item: &Item<'d>) -> Option<Self> {
        let DeValue::Table(table) = item.value else {
            let text = format!("is {}, must be a table", kind(item.value));
            report.problem(
                Some(item.line),
                &item.key,
                text,
                "write `key = value` lines in it, or { key = value }",
            );
            return None;
        };
        report.places.insert(item.key.clone(), item.line);
        Some(Self {
            name: item.key.clone(),
            line: item.line,
            span: item.span.clone(),
            table,
            known: Vec::new(),
        })
    }

    /// Calls it by another name from now on: a lane by its own.
    pub(super) fn rename(&mut self, report: &mut Report<'_>, name: String) {
        report.places.insert(name.clone(), self.line);
        self.name = name;
    }

    pub(super) fn key(&self, name: &str) -> String {
        if self.name.is_empty() { name.to_owned() } else { format!("{}.{name}", self.name) }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.table.contains_key(name)
    }

    /// The raw value of a key, known from now on.
    pub(super) fn item(&mut self, report: &mut Report<'_>, name: &'static str) -> Option<Item<'d>> {
        self.known.push(name);
        let (_, value) = self.table.get_key_value(name)?;
        let line = report.line_of(value.span().start);
        let key = self.key(name);
        report.places.insert(key.clone(), line);
        Some(Item { key, line, span: value.span(), value: value.get_ref() })
    }

    /// The value of a key; none where it is absent or, with a problem on record, wrong.
    pub(super) fn read<T>(
        &mut self,
        report: &mut Report<'_>,
        name: &'static str,
        parse: impl FnOnce(&DeValue<'_>) -> Result<T, Fault>,
    ) -> Option<T> {
        let item = self.item(report, name)?;
        match parse(item.value) {
            Ok(value) => Some(value),
            Err(fault) => {
                report.problem(Some(item.line), &item.key, fault.message, fault.hint);
                None
            }
        }
    }

    /// The same; a missing key is a problem.
    pub(super) fn require<T>(
        &mut self,
        report: &mut Report<'_>,
        name: &'static str,
        hint: &str,
        parse: impl FnOnce(&DeValue<'_>) -> Result<T, Fault>,
    ) -> Option<T> {
        if !self.has(name) {
            let key = self.key(name);
            report.problem(Some(self.line), &key, "is missing", hint);
        }
        self.read(report, name, parse)
    }

    /// A table of this one, `[name]`.
    pub(super) fn table(&mut self, report: &mut Report<'_>, name: &'static str) -> Option<Self> {
        let item = self.item(report, name)?;
        if let DeValue::Array(items) = item.value
            && items.iter().all(|v| v.get_ref().is_table())
        {
            let hint = format!("write [{name}], with single brackets, once");
            report.problem(Some(item.line), &item.key, "is a list, must be one table", hint);
            return None;
        }
        Section::of(report, &item)
    }

    /// The tables of a list, `[[name]]`; items count from 1.
    pub(super) fn tables(&mut self, report: &mut Report<'_>, name: &'static str) -> Vec<Self> {
        let Some(item) = self.item(report, name) else { return Vec::new() };
        let items = match item.value {
            DeValue::Array(items) => items,
            other => {
                let hint = if name == "match" {
                    "write match = [{ application = \"…\" }]: a list of rules".to_owned()
                } else {
                    format!("write [[{}]], with double brackets, and its name inside", self.key(name))
                };
                let text = format!("is {}, must be a list of tables", kind(other));
                report.problem(Some(item.line), &item.key, text, hint);
                return Vec::new();
            }
        };
        items
            .iter()
            .enumerate()
            .filter_map(|(at, value)| {
                let item = Item {
                    key: format!("{}[{}]", item.key, at + 1),
                    line: report.line_of(value.span().start),
                    span: value.span(),
                    value: value.get_ref(),
                };
                Section::of(report, &item)
            })
            .collect()
    }

    /// Every key that nobody asked for is a problem.
    pub(super) fn finish(self, report: &mut Report<'_>) {
        let unknown: Vec<&Spanned<DeString<'_>>> =
            self.table.keys().filter(|key| !self.known.contains(&key.get_ref().as_ref())).collect();
        for name in unknown {
            let text: String = name.get_ref().chars().take(80).collect();
            let line = report.line_of(name.span().start);
            let hint = if !self.name.is_empty() && TOP_LEVEL.contains(&text.as_str()) {
                "it belongs at the top of the file, above the first [section]".to_owned()
            } else {
                suggest(&text, &self.known)
            };
            let key = self.key(&text);
            report.problem(Some(line), &key, "unknown key", hint);
        }
    }
}

/// What a value is, in TOML's words.
pub(super) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// "did you mean", where a known word is near; else all of them.
pub(super) fn suggest(word: &str, known: &[&str]) -> String {
    let near = known
        .iter()
        .map(|k| (distance(&word.to_lowercase(), k), *k))
        .filter(|(d, k)| *d <= (k.len() / 3).clamp(1, 3))
        .min();
    match near {
        Some((_, name)) => format!("did you mean `{name}`?"),
        None if known.is_empty() => "nothing is known by that name".to_owned(),
        None => {
            let mut all = known.to_vec();
            all.sort_unstable();
            format!("known here: {}", all.join(", "))
        }
    }
}

/// Edits (insert, delete, replace, swap of neighbours) between two words; words beyond 64 characters are far from everything.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len() > 64 || b.len() > 64 {
        return usize::MAX;
    }
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let swap = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + swap);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_suggested_and_far_ones_are_not() {
        assert_eq!(suggest("qouta", &["name", "quota"]), "did you mean `quota`?");
        assert_eq!(suggest("Shed_abov", &["shed_above", "shed_below"]), "did you mean `shed_above`?");
        assert_eq!(suggest("colour", &["quota", "name"]), "known here: name, quota");
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("ab", "ba"), 1);
    }

    #[test]
    fn places_fall_back_to_the_table_around() {
        let places = BTreeMap::from([("lane.web".to_owned(), 4), ("lane.web.quota".to_owned(), 6)]);
        assert_eq!(find_place(&places, "lane.web.quota"), Some(6));
        assert_eq!(find_place(&places, "lane.web.match[2].user"), Some(4));
        assert_eq!(find_place(&places, "exit"), None);
    }
}
