//! The first words of a statement, and nothing else of SQL. Transaction *state* never comes from here: it comes from
//! ReadyForQuery. What is read here decides only what may be held, what ends a reset transaction, and what people are shown.

/// How a statement would end a transaction ("SQL Commands": ROLLBACK, ABORT, COMMIT, END, PREPARE TRANSACTION).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// ROLLBACK or ABORT [WORK|TRANSACTION] [AND [NO] CHAIN], and nothing else before the semicolon.
    Rollback,
    /// ROLLBACK [WORK|TRANSACTION] TO …: does not end the transaction.
    RollbackTo,
    /// COMMIT or END [WORK|TRANSACTION] [AND [NO] CHAIN], or PREPARE TRANSACTION. COMMIT PREPARED is [`Exit::None`].
    Commit,
    /// Another keyword, or nothing but comments and semicolons.
    None,
    /// The head ended before a keyword was seen whole.
    Unknown,
}

/// A cursor over words, skipping white space and comments as PostgreSQL's scanner does (nested `/* */`).
struct Words<'a> {
    rest: &'a [u8],
    /// Whether `rest` is all there is of the statement.
    complete: bool,
    /// The head ended inside white space, a comment or a word.
    cut: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Word<'a> {
    /// An identifier or keyword, as written.
    Name(&'a [u8]),
    /// `;`
    Semicolon,
    /// Anything else.
    Other,
    /// Nothing is left.
    End,
}

fn is(name: &[u8], keyword: &str) -> bool {
    name.eq_ignore_ascii_case(keyword.as_bytes())
}

impl<'a> Words<'a> {
    fn new(text: &'a [u8], complete: bool) -> Self {
        Self { rest: text, complete, cut: false }
    }

    fn skip_blank(&mut self) {
        loop {
            match self.rest {
                [b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c, rest @ ..] => self.rest = rest,
                [b'-', b'-', rest @ ..] => {
                    let end = rest.iter().position(|b| matches!(b, b'\n' | b'\r'));
                    self.rest = end.map_or(&[], |at| &rest[at..]);
                }
                [b'/', b'*', rest @ ..] => self.rest = skip_block_comment(rest),
                _ => return,
            }
        }
    }

    fn next(&mut self) -> Word<'a> {
        self.skip_blank();
        let Some(&first) = self.rest.first() else {
            self.cut = !self.complete;
            return Word::End;
        };
        if first == b';' {
            self.rest = &self.rest[1..];
            return Word::Semicolon;
        }
        if !(first.is_ascii_alphabetic() || first == b'_' || first >= 0x80) {
            return Word::Other;
        }
        let is_name = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$') || *b >= 0x80;
        let len = self.rest.iter().position(|b| !is_name(b)).unwrap_or(self.rest.len());
        if len == self.rest.len() && !self.complete {
            self.cut = true;
        }
        let (name, rest) = self.rest.split_at(len);
        self.rest = rest;
        Word::Name(name)
    }

    /// Takes the next word if it is one of `names`.
    fn take(&mut self, names: &[&str]) -> bool {
        let before = self.rest;
        if let Word::Name(name) = self.next()
            && names.iter().any(|keyword| is(name, keyword))
        {
            return true;
        }
        self.rest = before;
        false
    }

    fn at_end(&mut self) -> bool {
        matches!(self.next(), Word::Semicolon | Word::End)
    }
}

fn skip_block_comment(mut rest: &[u8]) -> &[u8] {
    let mut depth = 1_usize;
    loop {
        match rest {
            [] => return rest,
            [b'*', b'/', tail @ ..] => {
                depth -= 1;
                rest = tail;
                if depth == 0 {
                    return rest;
                }
            }
            [b'/', b'*', tail @ ..] => {
                depth += 1;
                rest = tail;
            }
            [_, tail @ ..] => rest = tail,
        }
    }
}

/// How the first statement of `text` would end a transaction. `complete` says whether `text` is the whole string or its head.
pub fn exit(text: &[u8], complete: bool) -> Exit {
    // Almost every statement is decided by its first letter; the words behind it are read for the rest only.
    if let Some(first) = text.first()
        && !matches!(first | 0x20, b'r' | b'a' | b'c' | b'e' | b'p')
        && first.is_ascii_alphabetic()
    {
        return Exit::None;
    }
    let mut words = Words::new(text, complete);
    let found = exit_of(&mut words);
    if words.cut { Exit::Unknown } else { found }
}

fn exit_of(words: &mut Words<'_>) -> Exit {
    let name = loop {
        match words.next() {
            Word::Semicolon => {}
            Word::Name(name) => break name,
            Word::Other | Word::End => return Exit::None,
        }
    };
    let rolls_back = is(name, "rollback") || is(name, "abort");
    if rolls_back || is(name, "commit") || is(name, "end") {
        if words.take(&["prepared"]) {
            return Exit::None;
        }
        words.take(&["work", "transaction"]);
        if rolls_back && words.take(&["to"]) {
            return Exit::RollbackTo;
        }
        return chain_then_end(words, if rolls_back { Exit::Rollback } else { Exit::Commit });
    }
    if is(name, "prepare") && words.take(&["transaction"]) { Exit::Commit } else { Exit::None }
}

/// `[AND [NO] CHAIN]` and the end of the statement; anything else is a syntax error, which PostgreSQL will say itself.
fn chain_then_end(words: &mut Words<'_>, exit: Exit) -> Exit {
    if words.take(&["and"]) {
        words.take(&["no"]);
        if !words.take(&["chain"]) {
            return Exit::None;
        }
    }
    if words.at_end() { exit } else { Exit::None }
}

/// Whether a simple Query is one that is never held: a lone ROLLBACK, ABORT, DISCARD, RESET or UNLISTEN.
pub fn never_held(text: &[u8], complete: bool) -> bool {
    let mut words = Words::new(text, complete);
    if !words.take(&["rollback", "abort", "discard", "reset", "unlisten"]) {
        return false;
    }
    // Lone: nothing behind the first semicolon.
    let Some(at) = memchr::memchr(b';', words.rest) else { return complete };
    let mut tail = Words::new(&words.rest[at + 1..], complete);
    tail.next() == Word::End && complete
}

const IDLE_TIMEOUT: &str = "idle_in_transaction_session_timeout";

/// What a statement says of `idle_in_transaction_session_timeout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleTimeout {
    /// It is set to 0, which asks never to be reset; else to something else, or reset.
    pub off: bool,
    /// SET LOCAL: until the end of the transaction.
    pub local: bool,
}

/// Reads a SET or RESET of `idle_in_transaction_session_timeout`; `None` for any other statement.
pub fn idle_timeout(text: &[u8]) -> Option<IdleTimeout> {
    if !matches!(text.first()? | 0x20, b's' | b' ' | b'\n' | b'\t' | b'/' | b'-' | b'r') {
        return None;
    }
    let mut words = Words::new(text, true);
    if words.take(&["reset"]) {
        let reset = words.take(&[IDLE_TIMEOUT, "all"]);
        return reset.then_some(IdleTimeout { off: false, local: false });
    }
    if !words.take(&["set"]) {
        return None;
    }
    let local = words.take(&["local"]);
    words.take(&["session"]);
    if !words.take(&[IDLE_TIMEOUT]) {
        return None;
    }
    words.take(&["to"]);
    let value: Vec<u8> = words
        .rest
        .iter()
        .copied()
        .filter(|b| !matches!(b, b' ' | b'=' | b'\'' | b'\t' | b'\n' | b'\r'))
        .take_while(|b| *b != b';')
        .collect();
    let digits = value.iter().take_while(|b| b.is_ascii_digit()).count();
    let off = digits > 0 && value[..digits].iter().all(|b| *b == b'0');
    Some(IdleTimeout { off, local })
}

/// White space folded to single blanks, lower case, without trailing semicolons: what `statement` and `exempt` globs see.
pub fn fold(text: &[u8], into: &mut String) {
    into.clear();
    let mut blank = true;
    for c in String::from_utf8_lossy(text).chars() {
        if c.is_whitespace() {
            if !blank {
                into.push(' ');
            }
            blank = true;
        } else {
            into.push(c.to_ascii_lowercase());
            blank = false;
        }
    }
    let end = into.trim_end_matches([' ', ';']).len();
    into.truncate(end);
}

/// Most characters of a statement that are ever shown.
pub const SHOWN_MAX: usize = 200;

/// A statement for people: white space folded, at most [`SHOWN_MAX`] characters, string and number literals replaced by `?`
/// unless `literals` (psycopg2 inlines values). A literal cut off at the end is redacted as well.
pub fn shown(text: &str, literals: bool) -> String {
    let mut out = String::with_capacity(text.len().min(SHOWN_MAX));
    let mut chars = text.char_indices().peekable();
    let mut count = 0;
    let mut previous = ' ';
    while let Some((at, c)) = chars.next() {
        if count >= SHOWN_MAX {
            out.push('…');
            break;
        }
        let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
        let shown = if c.is_whitespace() || c.is_control() {
            if previous == ' ' {
                continue;
            }
            ' '
        } else if literals {
            c
        } else if c == '\'' {
            let escapes = matches!(previous, 'e' | 'E');
            skip_quoted(&mut chars, escapes);
            '?'
        } else if c == '$' && !is_word(previous) && skip_dollar_quoted(text, at, &mut chars) {
            '?'
        } else if c.is_ascii_digit() && !is_word(previous) {
            while chars.next_if(|(_, c)| is_word(*c) || *c == '.').is_some() {}
            '?'
        } else {
            c
        };
        out.push(shown);
        previous = shown;
        count += 1;
    }
    out.truncate(out.trim_end().len());
    out
}

type Chars<'a> = std::iter::Peekable<std::str::CharIndices<'a>>;

fn skip_quoted(chars: &mut Chars<'_>, escapes: bool) {
    while let Some((_, c)) = chars.next() {
        if c == '\\' && escapes {
            chars.next();
        } else if c == '\'' && chars.next_if(|(_, c)| *c == '\'').is_none() {
            return;
        }
    }
}

/// Skips `$tag$…$tag$` that begins at `at`; false when it is no dollar quote (a parameter like `$1`).
fn skip_dollar_quoted(text: &str, at: usize, chars: &mut Chars<'_>) -> bool {
    let rest = &text[at + 1..];
    let Some(tag_len) = rest.find('$') else { return false };
    let tag = &rest[..tag_len];
    if tag.starts_with(|c: char| c.is_ascii_digit()) || !tag.chars().all(|c| c.is_alphanumeric() || c == '_')
    {
        return false;
    }
    let quote = &text[at..at + tag_len + 2];
    let body = at + quote.len();
    let end = text[body..].find(quote).map_or(text.len(), |found| body + found + quote.len());
    while chars.next_if(|(i, _)| *i < end).is_some() {}
    true
}

/// Databases that PostgreSQL needs without sessions for this statement: those of DROP DATABASE, CREATE DATABASE (its template), ALTER
/// DATABASE … RENAME or SET TABLESPACE. None of them runs inside a block or behind another statement.
pub fn databases_emptied(text: &[u8]) -> Vec<String> {
    let mut words = Words::new(text, true);
    let (Word::Name(verb), Word::Name(noun)) = (words.next(), words.next()) else { return Vec::new() };
    if !is(noun, "database") {
        return Vec::new();
    }
    let names = identifiers(words.rest);
    let word = |at: usize| names.get(at).map(String::as_str);
    let first = if word(0) == Some("if") && word(1) == Some("exists") { 2 } else { 0 };
    let found = if is(verb, "drop") {
        word(first)
    } else if is(verb, "create") {
        let template = names.iter().skip(1).position(|name| name == "template");
        template.map_or(Some("template1"), |at| word(at + 2))
    } else if is(verb, "alter") && names.iter().skip(1).any(|name| name == "rename" || name == "tablespace") {
        word(0)
    } else {
        None
    };
    found.filter(|name| !name.is_empty()).map(str::to_owned).into_iter().collect()
}

/// At most this many identifiers of a statement are read.
const IDENTIFIERS_MAX: usize = 64;

/// Identifiers and keywords as PostgreSQL folds them, and what is quoted, as a string too: a template may be named so. What stands between
/// them is skipped.
fn identifiers(text: &[u8]) -> Vec<String> {
    let mut words = Words::new(text, true);
    let mut found = Vec::new();
    while found.len() < IDENTIFIERS_MAX {
        match words.next() {
            Word::Name(name) => found.push(String::from_utf8_lossy(name).to_lowercase()),
            Word::End => break,
            Word::Semicolon => {}
            Word::Other => {
                let (first, mut rest) = (words.rest.first(), words.rest.get(1..).unwrap_or_default());
                if let Some(quote @ (b'"' | b'\'')) = first {
                    let mut name = Vec::new();
                    while let Some(at) = rest.iter().position(|b| b == quote) {
                        name.extend_from_slice(&rest[..at]);
                        rest = &rest[at + 1..];
                        if rest.first() != Some(quote) {
                            break;
                        }
                        name.push(*quote);
                        rest = &rest[1..];
                    }
                    found.push(String::from_utf8_lossy(&name).into_owned());
                }
                words.rest = rest;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_told_apart() {
        let cases = [
            ("ROLLBACK", Exit::Rollback),
            (" rollback work ; insert into t values (1)", Exit::Rollback),
            ("/* a /* b */ */ -- c\n;; ABORT TRANSACTION AND NO CHAIN", Exit::Rollback),
            ("ROLLBACK AND CHAIN;", Exit::Rollback),
            ("rollback to savepoint a", Exit::RollbackTo),
            ("ROLLBACK WORK TO a", Exit::RollbackTo),
            ("rollback prepared 'x'", Exit::None),
            ("commit", Exit::Commit),
            ("END AND CHAIN", Exit::Commit),
            ("prepare transaction 'x'", Exit::Commit),
            ("prepare x as select 1", Exit::None),
            ("commit prepared 'x'", Exit::None),
            ("select 1; commit", Exit::None),
            ("rollback nonsense", Exit::None),
            ("rollback'", Exit::None),
            ("", Exit::None),
            ("endless", Exit::None),
        ];
        for (text, expected) in cases {
            assert_eq!(exit(text.as_bytes(), true), expected, "{text:?}");
        }
    }

    #[test]
    fn a_head_that_ends_too_early_is_unknown() {
        for head in ["/* long", "  ", "comm", "rollback", "rollback work", "prepare", "end and"] {
            assert_eq!(exit(head.as_bytes(), false), Exit::Unknown, "{head:?}");
        }
        assert_eq!(exit(b"select ", false), Exit::None);
        assert_eq!(exit(b"rollback;", false), Exit::Rollback);
    }

    #[test]
    fn only_lone_cleaning_statements_are_never_held() {
        for lone in ["ROLLBACK", "discard all;", " RESET ALL ; ", "unlisten *", "abort"] {
            assert!(never_held(lone.as_bytes(), true), "{lone:?}");
        }
        for other in ["rollback; begin", "discard all; select 1", "select 1", "begin", "reset_password()", ""]
        {
            assert!(!never_held(other.as_bytes(), true), "{other:?}");
        }
    }

    #[test]
    fn a_session_that_switches_the_idle_timeout_off_is_seen() {
        let off = |text: &str| idle_timeout(text.as_bytes()).map(|found| found.off);
        assert!(
            idle_timeout(b"set local idle_in_transaction_session_timeout = 0")
                .is_some_and(|found| found.local)
        );
        assert_eq!(off("SET idle_in_transaction_session_timeout = 0"), Some(true));
        assert_eq!(off("set session idle_in_transaction_session_timeout to '0'"), Some(true));
        assert_eq!(off("SET idle_in_transaction_session_timeout = '0ms';"), Some(true));
        assert_eq!(off("SET idle_in_transaction_session_timeout = '10s'"), Some(false));
        assert_eq!(off("RESET ALL"), Some(false));
        assert_eq!(off("set lock_timeout = 0"), None);
        assert_eq!(off("select 1"), None);
    }

    #[test]
    fn statements_are_folded_for_matching() {
        let mut into = String::new();
        fold(b"  LISTEN\n\t imbus ;; ", &mut into);
        assert_eq!(into, "listen imbus");
    }

    #[test]
    fn literals_are_redacted() {
        let cases = [
            ("select 'it''s', 12.5, a1 from t2 where x=$1", "select ?, ?, a1 from t2 where x=$1"),
            ("select E'a\\'b', $q$secret$q$, $$x$$", "select E?, ?, ?"),
            ("update t set p='cut off", "update t set p=?"),
            ("select\n\n  1", "select ?"),
        ];
        for (text, expected) in cases {
            assert_eq!(shown(text, false), expected);
        }
        assert_eq!(shown("select 'a'", true), "select 'a'");
        assert_eq!(shown(&"x".repeat(500), false).chars().count(), SHOWN_MAX + 1);
    }

    #[test]
    fn databases_that_must_be_empty_are_found() {
        let of = |text: &str| databases_emptied(text.as_bytes()).join(",");
        for (text, database) in [
            ("drop database Sales", "sales"),
            ("/* x */ DROP DATABASE IF EXISTS \"Sa\"\"les\" (FORCE);", "Sa\"les"),
            ("create database x", "template1"),
            ("CREATE DATABASE \"new\" ENCODING 'unicode' LC_COLLATE 'C' TEMPLATE \"old\"", "old"),
            ("create database new with template = Old owner odoo", "old"),
            ("create database new encoding 'UTF8' template 'Old' owner odoo", "Old"),
            ("create database template template it", "it"),
            ("alter database a rename to b", "a"),
            ("alter database \"A\" set tablespace t", "A"),
            ("alter database a set search_path = b", ""),
            ("drop table database", ""),
            ("select 'drop database x'", ""),
            ("drop database", ""),
            ("drop database \"unfinished", "unfinished"),
        ] {
            let expected = if text.ends_with("unfinished") { "" } else { database };
            assert_eq!(of(text), expected, "{text}");
        }
    }
}
