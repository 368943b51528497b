//! The users file: PgBouncer's userlist.txt, read as it is.
//!
//! A line holds `"name" "secret"`; a quote inside is doubled, what follows on the line is ignored. Lines that begin with `;` (or `#`) are
//! comments. The secret is a password, `md5…` or `SCRAM-SHA-256$…`, as in pg_authid.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::quality::RandomState;
use zeroize::Zeroizing;

use super::stored::{Secret, Stored};

/// Bytes of a users file at most.
pub const USERS_BYTES_MAX: usize = 4 << 20;
/// Users at most.
const USERS_MAX: usize = 20_000;
/// Problems told at most.
const PROBLEMS_MAX: usize = 100;

/// Users and their secrets.
#[derive(Debug, Default)]
pub struct Users {
    known: HashMap<Arc<str>, Option<Arc<Stored>>, RandomState>,
    iterations: Option<u32>,
}

/// Something wrong or doubtful in a users file. Never holds anything of a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Counted from 1.
    pub line: usize,
    /// A sentence with what to do.
    pub text: String,
}

impl Users {
    /// Reads a file; with doubts, which do not keep it from being used.
    ///
    /// # Errors
    /// What is wrong with it, the first 100 of it.
    pub fn parse(text: &str) -> Result<(Self, Vec<Note>), Vec<Note>> {
        let (mut users, mut problems, mut doubts) = (Self::default(), Vec::new(), Vec::new());
        let mut lines: HashMap<Arc<str>, usize> = HashMap::new();
        for (at, line) in text.lines().enumerate() {
            let note = |into: &mut Vec<Note>, text: String| {
                if into.len() < PROBLEMS_MAX {
                    into.push(Note { line: at + 1, text });
                }
            };
            let line = line.trim_start();
            if line.is_empty() || line.starts_with([';', '#']) {
                continue;
            }
            let Some((name, secret)) = fields(line) else {
                note(
                    &mut problems,
                    "is no user. Hint: write \"name\" \"password\", quotes inside doubled".to_owned(),
                );
                continue;
            };
            let name: Arc<str> = name.as_str().into();
            if let Some(first) = lines.insert(name.clone(), at + 1) {
                note(
                    &mut problems,
                    format!("user {name:?} is on line {first} already. Hint: remove one of them"),
                );
                continue;
            }
            if users.known.len() == USERS_MAX {
                note(
                    &mut problems,
                    format!("more than {USERS_MAX} users. Hint: [auth] query asks PostgreSQL"),
                );
                break;
            }
            match Stored::parse(&secret) {
                Ok(stored) => {
                    if let Some(doubt) = doubt(&name, stored.as_deref()) {
                        note(&mut doubts, doubt);
                    }
                    users.add(name, stored);
                }
                Err(error) => {
                    note(
                        &mut problems,
                        format!("user {name:?}: {error}. Hint: copy rolpassword from pg_authid"),
                    );
                }
            }
        }
        if problems.is_empty() { Ok((users, doubts)) } else { Err(problems) }
    }

    fn add(&mut self, name: Arc<str>, stored: Option<Arc<Stored>>) {
        if let Some(Secret::Scram(verifier)) = stored.as_deref().map(Stored::secret) {
            self.iterations.get_or_insert(verifier.derivation().1);
        }
        self.known.insert(name, stored);
    }

    /// A user of the file. `Some(None)` is one without a password: known, and never let in.
    pub fn find(&self, name: &str) -> Option<Option<Arc<Stored>>> {
        self.known.get(name).cloned()
    }

    /// Iterations of its verifiers, going by the first.
    pub fn iterations(&self) -> Option<u32> {
        self.iterations
    }

    /// Users.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// All who have a secret.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Stored>)> {
        self.known.iter().filter_map(|(name, stored)| Some((name, stored.as_ref()?)))
    }

    /// Takes over what was derived for users whose secret is the same as before.
    pub fn inherit(&mut self, old: &Self) {
        // A plain password's verifier depends on the iterations in force.
        if self.iterations() != old.iterations() {
            return;
        }
        for (name, stored) in &mut self.known {
            if let (Some(new), Some(Some(before))) = (&stored, old.known.get(name))
                && new.is_same(before)
            {
                *stored = Some(before.clone());
            }
        }
    }
}

fn doubt(name: &str, stored: Option<&Stored>) -> Option<String> {
    match stored.map(Stored::secret) {
        None => Some(format!(
            "user {name:?} has no password and cannot log in. Hint: write one, or remove the line"
        )),
        Some(Secret::Md5(_)) => Some(format!(
            "user {name:?} has an md5 secret, which whoever reads this file can log in with. Hint: set the password anew with password_encryption = 'scram-sha-256'"
        )),
        Some(_) => None,
    }
}

/// The two quoted fields at the beginning of a line.
fn fields(line: &str) -> Option<(Zeroizing<String>, Zeroizing<String>)> {
    let (name, rest) = quoted(line)?;
    let (secret, _) = quoted(rest.trim_start())?;
    (!name.is_empty()).then_some((name, secret))
}

/// One quoted field, and what follows it.
fn quoted(text: &str) -> Option<(Zeroizing<String>, &str)> {
    let mut rest = text.strip_prefix('"')?;
    let mut field = Zeroizing::new(String::with_capacity(rest.len()));
    loop {
        let (part, behind) = rest.split_once('"')?;
        field.push_str(part);
        match behind.strip_prefix('"') {
            Some(more) => {
                field.push('"');
                rest = more;
            }
            None => return Some((field, behind)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(users: &Users, name: &str) -> String {
        let stored = users.find(name).expect(name).expect("a secret");
        match stored.secret() {
            Secret::Plain(text) => text.to_string(),
            _ => panic!("{name} has no plain password"),
        }
    }

    #[test]
    fn pgbouncers_format_is_read_as_it_is() {
        let text = "; a comment\n\n\"odoo\" \"secret\"\n  \"a \"\"quoted\"\" name\"\t\"p\"\"w\" trailing words\r\n\
                    # another\n\"old\" \"md50123456789abcdef0123456789abcdef\"\n\"nobody\" \"\"\n";
        let (users, doubts) = Users::parse(text).expect("well-formed");
        assert_eq!((users.len(), plain(&users, "odoo").as_str()), (4, "secret"));
        assert_eq!(plain(&users, "a \"quoted\" name"), "p\"w");
        assert!(users.find("nobody").expect("known").is_none() && users.find("other").is_none());
        let lines: Vec<usize> = doubts.iter().map(|note| note.line).collect();
        assert_eq!(lines, [6, 7], "{doubts:?}");
        assert_eq!((users.iter().count(), users.iterations()), (3, None));
    }

    #[test]
    fn problems_are_told_all_at_once_and_without_secrets() {
        let text = "odoo hunter2\n\"odoo\" \"hunter2\"\n\"odoo\" \"hunter2\"\n\"x\" \"SCRAM-SHA-256$hunter2\"\n\"y\" \"hunter2\n\"\" \"hunter2\"\n";
        let problems = Users::parse(text).expect_err("nothing is right");
        let lines: Vec<usize> = problems.iter().map(|note| note.line).collect();
        assert_eq!(lines, [1, 3, 4, 5, 6]);
        assert!(problems[1].text.contains("on line 2 already"), "{problems:?}");
        assert!(!format!("{problems:?}").contains("hunter"), "{problems:?}");
    }

    #[test]
    fn a_reload_keeps_what_was_derived_for_unchanged_users() {
        let old = Users::parse("\"a\" \"one\"\n\"b\" \"two\"").expect("well-formed").0;
        let mut new = Users::parse("\"a\" \"one\"\n\"b\" \"other\"").expect("well-formed").0;
        new.inherit(&old);
        let same = |name| {
            Arc::ptr_eq(&old.find(name).flatten().expect(name), &new.find(name).flatten().expect(name))
        };
        assert!(same("a") && !same("b"));
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text: String, odd in "[\"; #a\n\\\\]*") {
            let _ = Users::parse(&text);
            let _ = Users::parse(&odd);
        }

        #[test]
        fn whatever_is_quoted_comes_back(name in "[^\r\n\0]{1,20}", secret in "[^\r\n\0]{1,20}") {
            let quote = |text: &str| text.replace('"', "\"\"");
            let (users, _) = Users::parse(&format!("\"{}\" \"{}\"", quote(&name), quote(&secret))).expect("one user");
            if !secret.starts_with("md5") && !secret.starts_with("SCRAM") {
                proptest::prop_assert_eq!(plain(&users, &name), secret);
            }
        }
    }
}
