//! Globs: `*` any run of characters, `?` one character, everything else itself.

use super::settings::Glob;

/// A compiled glob. Matching takes at most text × pattern steps, without recursion or allocation.
#[derive(Clone, Debug)]
pub struct Pattern {
    whole: Box<[u8]>,
    /// The pattern up to its first literal run, then anything: what the beginning of a text must satisfy.
    head: Box<[u8]>,
    fold: bool,
}

impl Pattern {
    /// Compiles `glob`; letters in either case means ASCII letters.
    pub fn new(glob: &Glob) -> Self {
        let text = if glob.case_insensitive { glob.text.to_ascii_lowercase() } else { glob.text.to_string() };
        let whole = text.into_bytes().into_boxed_slice();
        let literal = whole.iter().position(|b| *b != b'*').unwrap_or(whole.len());
        let head = match whole[literal..].iter().position(|b| *b == b'*') {
            Some(star) => whole[..=literal + star].into(),
            None => whole.clone(),
        };
        Self { whole, head, fold: glob.case_insensitive }
    }

    /// Whether all of `text` matches.
    pub fn matches(&self, text: &str) -> bool {
        run(&self.whole, text.as_bytes(), self.fold)
    }

    /// Whether a text of which only the beginning is known is taken to match: its first literal run must be there, the rest may be in
    /// the unknown tail. (Asking less would make every long text match a glob that begins with `*`.)
    pub fn may_match(&self, beginning: &str) -> bool {
        run(&self.head, beginning.as_bytes(), self.fold)
    }
}

fn run(pattern: &[u8], text: &[u8], fold: bool) -> bool {
    let (mut at, mut next) = (0, 0);
    // Behind the last star: where its pattern goes on, and where its run ends for now.
    let mut star: Option<(usize, usize)> = None;
    while at < text.len() {
        match pattern.get(next) {
            Some(b'*') => {
                next += 1;
                if next == pattern.len() {
                    return true;
                }
                star = Some((next, at));
                continue;
            }
            Some(b'?') => {
                at += character(text, at);
                next += 1;
                continue;
            }
            Some(byte) if same(*byte, text[at], fold) => {
                at += 1;
                next += 1;
                continue;
            }
            _ => {}
        }
        let Some((resume, ended)) = star else { return false };
        let Some(found) = seek(pattern[resume], text, ended + 1, fold) else { return false };
        star = Some((resume, found));
        at = found;
        next = resume;
    }
    pattern[next..].iter().all(|b| *b == b'*')
}

fn same(pattern: u8, text: u8, fold: bool) -> bool {
    pattern == text || (fold && pattern == text.to_ascii_lowercase())
}

/// The next place at or after `from` where a run that begins with `byte` may begin.
fn seek(byte: u8, text: &[u8], from: usize, fold: bool) -> Option<usize> {
    let rest = text.get(from..)?;
    let found = match byte {
        b'?' => (!rest.is_empty()).then_some(0),
        _ if fold => memchr::memchr2(byte, byte.to_ascii_uppercase(), rest),
        _ => memchr::memchr(byte, rest),
    };
    found.map(|offset| from + offset)
}

/// Bytes of the UTF-8 character that begins at `at`.
fn character(text: &[u8], at: usize) -> usize {
    1 + text[at + 1..].iter().take_while(|b| **b & 0xC0 == 0x80).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn glob(text: &str, case_insensitive: bool) -> Pattern {
        Pattern::new(&Glob { text: text.into(), case_insensitive })
    }

    #[test]
    fn globs_match_whole_texts() {
        for (pattern, text, expected) in [
            ("odoo-*", "odoo-12", true),
            ("odoo-*", "xodoo-12", false),
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*a*b", "xxaxxbxb", true),
            ("*a*b", "xxaxxbxc", false),
            ("a?c", "aéc", true),
            ("a?c", "ac", false),
            ("*?", "é", true),
            ("**x", "yx", true),
            ("a*", "b", false),
            ("*ab", "aab", true),
            ("a[b]", "a[b]", true),
        ] {
            assert_eq!(glob(pattern, false).matches(text), expected, "{pattern} on {text}");
        }
        assert!(glob("ODOO*", true).matches("odOO-1") && !glob("ODOO*", false).matches("odoo-1"));
    }

    #[test]
    fn the_beginning_of_a_text_needs_the_first_literal_run() {
        let lock = glob("*ir_cron*for no key update*", true);
        assert!(lock.may_match("select * from ir_cron where id in (1, 2"));
        assert!(!lock.may_match("update sale_order set x = 1 where id in (1, 2"));
        assert!(glob("select*from x", false).may_match("select a, b"));
        assert!(!glob("listen imbus", false).may_match("listen imbus and more"));
    }
}
