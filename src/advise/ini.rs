//! Files of Python's configparser as Odoo reads them: `[section]`, `key = value` or `key: value`, whole-line comments behind `#` or `;`,
//! indented lines that continue a value, no interpolation. Pure.
//!
//! A value may be a password, so no message here quotes one: keys and line numbers say enough.

use std::collections::HashMap;
use std::fmt;

/// Bytes of a file at most: far above any honest one.
pub const BYTES_MAX: usize = 1 << 20;
/// Problems told; what follows them mostly follows from them.
const PROBLEMS_MAX: usize = 20;

/// What keeps a file from being used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1; none where no line is at fault.
    pub line: Option<usize>,
    /// What is wrong.
    pub message: String,
    /// What to do about it; never empty.
    pub hint: String,
}

impl Problem {
    /// One at a line.
    pub fn at(line: usize, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { line: Some(line), message: message.into(), hint: hint.into() }
    }
}

impl fmt::Display for Problem {
    /// Behind the file's name: `:12: what is wrong. Hint: what to do`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}. Hint: {}", self.message, self.hint)
    }
}

/// One option as it stands in the file.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// Line of its key, from 1.
    pub line: usize,
    /// Its value, lines of a longer one joined by line feeds.
    pub value: String,
    /// The first line that continues it and looks like an option of its own.
    pub swallows: Option<usize>,
}

/// Sections, in lower-case keys.
#[derive(Default)]
pub struct Ini(HashMap<String, HashMap<String, Entry>>);

impl Ini {
    /// Whether there is such a section.
    pub fn has(&self, section: &str) -> bool {
        self.0.contains_key(section)
    }

    /// An option of a section, or else of `[DEFAULT]`, which every section inherits.
    pub fn get(&self, section: &str, key: &str) -> Option<&Entry> {
        let own = self.0.get(section)?;
        own.get(key).or_else(|| self.0.get("DEFAULT").and_then(|all| all.get(key)))
    }
}

/// Reads a file's text.
///
/// # Errors
/// What Python would refuse, every line of it up to a bound.
pub fn parse(text: &str) -> Result<Ini, Vec<Problem>> {
    if text.len() > BYTES_MAX {
        let message = format!("has more than {BYTES_MAX} bytes");
        return Err(vec![Problem { line: None, message, hint: "is this the right file?".to_owned() }]);
    }
    let mut reader = Reader::default();
    for (at, line) in text.lines().enumerate() {
        reader.line(at + 1, line);
        if reader.problems.len() >= PROBLEMS_MAX {
            break;
        }
    }
    if reader.problems.is_empty() { Ok(reader.ini) } else { Err(reader.problems) }
}

#[derive(Default)]
struct Reader {
    ini: Ini,
    problems: Vec<Problem>,
    section: Option<String>,
    /// Key and indentation of the option that an indented line continues.
    open: Option<(String, usize)>,
}

impl Reader {
    fn line(&mut self, number: usize, line: &str) {
        let text = line.trim();
        if text.is_empty() || text.starts_with(['#', ';']) {
            return;
        }
        let indent = line.len() - line.trim_start().len();
        if let (Some(section), Some((key, begun))) = (&self.section, &self.open)
            && indent > *begun
        {
            let entry = self.ini.0.get_mut(section).and_then(|options| options.get_mut(key));
            if let Some(entry) = entry {
                entry.value.push('\n');
                entry.value.push_str(text);
                entry.swallows = entry.swallows.or_else(|| text.contains(['=', ':']).then_some(number));
            }
            return;
        }
        self.open = None;
        match text.strip_prefix('[') {
            Some(rest) => self.header(number, rest),
            None => self.option(number, text, indent),
        }
    }

    fn header(&mut self, number: usize, rest: &str) {
        let Some(name) = rest.split_once(']').map(|(name, _)| name).filter(|name| !name.is_empty()) else {
            let problem = Problem::at(number, "a section's [ is not closed", "write [options]");
            return self.problems.push(problem);
        };
        if self.ini.has(name) && name != "DEFAULT" {
            let message = format!("[{}] is here for the second time", shown(name));
            self.problems.push(Problem::at(number, message, "put its options below the first one"));
        }
        self.ini.0.entry(name.to_owned()).or_default();
        self.section = Some(name.to_owned());
    }

    fn option(&mut self, number: usize, text: &str, indent: usize) {
        let Some(section) = &self.section else {
            let hint = "write [options] above the first option";
            self.problems.push(Problem::at(number, "stands above every [section]", hint));
            // All lines up to the first section would say the same.
            self.section = Some(String::new());
            return;
        };
        let split = text.find(['=', ':']);
        let Some((key, value)) = split.map(|at| (text[..at].trim(), text[at + 1..].trim())) else {
            let hint = "write key = value, a comment behind # or ;, or indent the line if it continues the one above";
            return self.problems.push(Problem::at(number, "is neither an option nor a comment", hint));
        };
        if key.is_empty() {
            let problem = Problem::at(number, "has a value without a key", "write key = value");
            return self.problems.push(problem);
        }
        let key = key.to_lowercase();
        let options = self.ini.0.entry(section.clone()).or_default();
        if let Some(first) = options.get(&key) {
            let message = format!("{} is set on line {} already", shown(&key), first.line);
            self.problems.push(Problem::at(number, message, "Odoo does not start on this: keep one of them"));
        }
        let entry = Entry { line: number, value: value.to_owned(), swallows: None };
        options.insert(key.clone(), entry);
        self.open = Some((key, indent));
    }
}

/// A name from the file, short and on one line.
fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(40).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(text: &str, key: &str) -> String {
        parse(text)
            .unwrap_or_default()
            .get("options", key)
            .map(|entry| entry.value.clone())
            .unwrap_or_default()
    }

    fn problems(text: &str) -> Vec<String> {
        parse(text).err().unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn options_are_read_as_python_does() {
        let text = "; saved\n[options]\nWorkers = 4\ndb_host: db.example\n# no = comment\n\
                    addons_path = /a,\n  /b,\n  /c\nempty =\npercent = %(x)s ; kept\n[queue_job]\nchannels = root:4\n";
        assert_eq!(value(text, "workers"), "4");
        assert_eq!(value(text, "db_host"), "db.example");
        assert_eq!(value(text, "addons_path"), "/a,\n/b,\n/c");
        assert_eq!((value(text, "empty"), value(text, "percent")), (String::new(), "%(x)s ; kept".into()));
        assert_eq!(parse(text).unwrap().get("queue_job", "channels").unwrap().line, 12);
        assert_eq!(value("[DEFAULT]\ndb_user = odoo\n[options]\n", "db_user"), "odoo");
    }

    #[test]
    fn what_python_refuses_is_named_with_its_line_and_without_its_text() {
        for (text, said) in [
            ("workers = 4\n[options]\n", ":1: stands above every [section]"),
            ("[options\n", ":1: a section's [ is not closed"),
            ("[options]\nhunter2\n", ":2: is neither an option nor a comment"),
            ("[options]\n= hunter2\n", ":2: has a value without a key"),
            ("[options]\na = 1\nA = hunter2\n", ":3: a is set on line 2 already"),
            ("[options]\n[options]\n", ":2: [options] is here for the second time"),
        ] {
            let found = problems(text);
            assert!(found.len() == 1 && found[0].starts_with(said), "{text:?}: {found:?}");
            assert!(!found[0].contains("hunter2") && found[0].contains("Hint: "), "{found:?}");
        }
        assert_eq!(problems(&"x\n".repeat(500)).len(), PROBLEMS_MAX);
        assert!(problems(&"#".repeat(BYTES_MAX + 1))[0].contains("has more than"));
    }

    #[test]
    fn an_indented_option_is_known_as_one_that_python_swallows() {
        let ini = parse("[options]\ndb_host = db\n  workers = 4\n").unwrap();
        let entry = ini.get("options", "db_host").unwrap();
        assert_eq!((entry.swallows, ini.get("options", "workers").is_none()), (Some(3), true));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(\\[|\\]|=|:|a|é|\n| |#|;|\t|options)*") {
            let lines = text.lines().count();
            if let Err(found) = parse(&text) {
                prop_assert!(!found.is_empty() && found.iter().all(|p| p.line.is_none_or(|l| l <= lines)));
            }
        }
    }
}
