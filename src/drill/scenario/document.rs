//! A TOML document as its author wrote it: tables that know where they stand, and one place where problems are collected.
//!
//! A value that cannot be read is put on record and reads as absent, so that one mistake is told once and does not hide the next.

use std::fmt;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Problems kept at most.
const PROBLEMS_MAX: usize = 200;
/// The longest time in a scenario: a day.
const TIME_MAX: Duration = Duration::from_secs(86_400);

/// Something that keeps a scenario from being played.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1.
    pub line: usize,
    /// Dotted key; list items count from 1. Empty where no key is at fault.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let colon = if self.key.is_empty() { "" } else { ": " };
        write!(f, "{}: {}{colon}{}. Hint: {}", self.line, self.key, self.message, self.hint)
    }
}

/// Collects problems of one text.
#[derive(Debug)]
pub(super) struct Problems<'d> {
    text: &'d str,
    found: Vec<Problem>,
}

impl<'d> Problems<'d> {
    pub(super) fn of(text: &'d str) -> Self {
        Self { text, found: Vec::new() }
    }

    pub(super) fn line_of(&self, offset: usize) -> usize {
        1 + self.text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count()
    }

    pub(super) fn add(
        &mut self,
        line: usize,
        key: &str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        if self.found.len() < PROBLEMS_MAX {
            self.found.push(Problem { line, key: key.into(), message: message.into(), hint: hint.into() });
        }
    }

    pub(super) fn finish(mut self) -> Vec<Problem> {
        self.found.sort_by_key(|problem| problem.line);
        self.found
    }

    pub(super) fn none(&self) -> bool {
        self.found.is_empty()
    }
}

/// A table that is being read.
pub(super) struct Section<'d> {
    name: String,
    line: usize,
    table: &'d DeTable<'d>,
    known: Vec<&'static str>,
}

impl<'d> Section<'d> {
    pub(super) fn root(table: &'d DeTable<'d>) -> Self {
        Self { name: String::new(), line: 1, table, known: Vec::new() }
    }

    pub(super) fn line(&self) -> usize {
        self.line
    }

    pub(super) fn key(&self, name: &str) -> String {
        if self.name.is_empty() { name.to_owned() } else { format!("{}.{name}", self.name) }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.table.contains_key(name)
    }

    /// The line of a key, or the table's own where it is absent.
    pub(super) fn line_of(&self, problems: &Problems<'_>, name: &str) -> usize {
        self.table.get(name).map_or(self.line, |value| problems.line_of(value.span().start))
    }

    /// The value of a key, known from now on; none where it is absent or, with a problem on record, wrong.
    pub(super) fn read<T>(
        &mut self,
        problems: &mut Problems<'_>,
        name: &'static str,
        parse: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<T> {
        self.known.push(name);
        let value = self.table.get(name)?;
        let line = problems.line_of(value.span().start);
        match parse(value.get_ref()) {
            Ok(value) => Some(value),
            Err(why) => {
                problems.add(line, &self.key(name), why, "see docs/drill.md, Scenario files");
                None
            }
        }
    }

    /// The same; a missing key is a problem.
    pub(super) fn require<T>(
        &mut self,
        problems: &mut Problems<'_>,
        name: &'static str,
        hint: &str,
        parse: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<T> {
        if !self.has(name) {
            problems.add(self.line, &self.key(name), "is missing", hint);
        }
        self.read(problems, name, parse)
    }

    /// The table `[name]`.
    pub(super) fn table(&mut self, problems: &mut Problems<'_>, name: &'static str) -> Option<Self> {
        self.known.push(name);
        let value = self.table.get(name)?;
        self.child(problems, self.key(name), value)
    }

    /// The tables of `[[name]]`; items count from 1.
    pub(super) fn tables(&mut self, problems: &mut Problems<'_>, name: &'static str) -> Vec<Self> {
        self.known.push(name);
        let Some(value) = self.table.get(name) else { return Vec::new() };
        let DeValue::Array(items) = value.get_ref() else {
            let line = problems.line_of(value.span().start);
            let hint = format!("write [[{}]], with double brackets", self.key(name));
            problems.add(line, &self.key(name), "must be a list of tables", hint);
            return Vec::new();
        };
        let named =
            items.iter().enumerate().map(|(at, item)| (format!("{}[{}]", self.key(name), at + 1), item));
        named.filter_map(|(key, item)| self.child(problems, key, item)).collect()
    }

    fn child(
        &self,
        problems: &mut Problems<'_>,
        key: String,
        value: &'d Spanned<DeValue<'d>>,
    ) -> Option<Self> {
        let line = problems.line_of(value.span().start);
        match value.get_ref() {
            DeValue::Table(table) => Some(Self { name: key, line, table, known: Vec::new() }),
            _ => {
                problems.add(line, &key, "must be a table", "write `key = value` lines in it");
                None
            }
        }
    }

    /// Every key that nobody asked for is a problem.
    pub(super) fn finish(self, problems: &mut Problems<'_>) {
        for name in self.table.keys().filter(|name| !self.known.contains(&name.get_ref().as_ref())) {
            let text: String = name.get_ref().chars().take(80).collect();
            let line = problems.line_of(name.span().start);
            let hint = format!("known here: {}", self.known.join(", "));
            problems.add(line, &self.key(&text), "unknown key", hint);
        }
    }
}

/// One line of text.
pub(super) fn text(value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) if text.trim().is_empty() => Err("is empty".into()),
        DeValue::String(text) if text.contains('\0') => Err("contains a NUL".into()),
        DeValue::String(text) => Ok(text.trim().to_owned()),
        _ => Err("must be a string".into()),
    }
}

/// A word of letters, digits, `_` and `-`, 63 at most: lane and phase names stand in rules.
pub(super) fn word(value: &DeValue<'_>) -> Result<String, String> {
    let word = text(value)?;
    let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if plain && word.len() <= 63 { Ok(word) } else { Err(format!("{word:?} is no plain word")) }
}

/// A list of texts.
pub(super) fn texts(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    match value {
        DeValue::Array(items) => items.iter().map(|item| text(item.get_ref())).collect(),
        _ => Err("must be a list of strings".into()),
    }
}

/// `true` or `false`.
pub(super) fn boolean(value: &DeValue<'_>) -> Result<bool, String> {
    match value {
        DeValue::Boolean(yes) => Ok(*yes),
        _ => Err("must be true or false".into()),
    }
}

/// A whole number within bounds.
pub(super) fn count(min: u32, max: u32) -> impl Fn(&DeValue<'_>) -> Result<u32, String> {
    move |value| {
        let number = match value {
            DeValue::Integer(number) => u32::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        number
            .filter(|n| (min..=max).contains(n))
            .ok_or(format!("must be a whole number from {min} to {max}"))
    }
}

/// A number within bounds.
pub(super) fn number(min: f64, max: f64) -> impl Fn(&DeValue<'_>) -> Result<f64, String> {
    move |value| {
        let number = match value {
            DeValue::Integer(number) => number.as_str().parse::<f64>().ok(),
            DeValue::Float(number) => number.as_str().parse::<f64>().ok(),
            _ => None,
        };
        number.filter(|n| (min..=max).contains(n)).ok_or(format!("must be a number from {min} to {max}"))
    }
}

/// A time, see [`parse_time`].
pub(super) fn time(value: &DeValue<'_>) -> Result<Duration, String> {
    parse_time(&text(value)?)
}

/// A time in words: `250ms`, `5s`, `1.5s`, `10m`, `1h`; at most a day.
///
/// # Errors
/// What is wrong, in words.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time: write 250ms, 5s, 10m");
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(wrong)?;
    let unit = match text[digits..].trim() {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3_600.0,
        _ => return Err(wrong()),
    };
    let seconds = text[..digits].parse::<f64>().map_err(|_| wrong())? * unit;
    Duration::try_from_secs_f64(seconds).ok().filter(|time| *time <= TIME_MAX).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_refused() {
        for (text, ms) in [("250ms", 250), ("5s", 5_000), ("1.5s", 1_500), ("10 m", 600_000), ("0s", 0)] {
            assert_eq!(parse_time(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "5", "s", "-5s", "5 parsecs", "1.2.3s", "25h", "1e9s"] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }
}
