//! Questions about globs that can be answered without any text to match: does one cover, or overlap, another?

use crate::lanes::settings::Glob;

/// Whether `glob` matches `text`.
pub fn matches(glob: &Glob, text: &str) -> bool {
    let subject = folded(text, glob.case_insensitive);
    run(&folded(&glob.text, glob.case_insensitive), &subject, |p, s| p == '?' || p == s)
}

/// Whether every text that `inner` matches is matched by `outer`. Never wrong when true; may miss exotic cases of `?` beside `*`.
pub fn covers(outer: &Glob, inner: &Glob) -> bool {
    if inner.case_insensitive && !outer.case_insensitive && &*outer.text != "*" {
        return false;
    }
    let inner = folded(&inner.text, outer.case_insensitive);
    // A star of the inner glob stands for anything, so only a star may take it.
    run(&folded(&outer.text, outer.case_insensitive), &inner, |p, s| {
        (p == '?' && s != '*') || (p == s && p != '*')
    })
}

/// Whether some text is matched by both.
pub fn overlap(a: &Glob, b: &Glob) -> bool {
    let fold = a.case_insensitive || b.case_insensitive;
    let (a, b) = (folded(&a.text, fold), folded(&b.text, fold));
    let same = |p: char, s: char| p == '?' || s == '?' || p == s;
    match (a.contains(&'*'), b.contains(&'*')) {
        (true, true) => {
            // What stands between the outer stars can always be strung together; only the ends can clash.
            let ends = |x: &[char], y: &[char]| {
                x.iter().zip(y).take_while(|(p, s)| **p != '*' && **s != '*').all(|(p, s)| same(*p, *s))
            };
            let reversed = |x: &[char]| x.iter().rev().copied().collect::<Vec<_>>();
            ends(&a, &b) && ends(&reversed(&a), &reversed(&b))
        }
        (true, false) => run(&a, &b, same),
        (false, _) => run(&b, &a, same),
    }
}

fn folded(text: &str, fold: bool) -> Vec<char> {
    if fold { text.chars().flat_map(char::to_lowercase).collect() } else { text.chars().collect() }
}

/// The usual match with one star to go back to: at most `pattern × subject` steps.
fn run(pattern: &[char], subject: &[char], one: impl Fn(char, char) -> bool) -> bool {
    let (mut p, mut s) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while s < subject.len() {
        if pattern.get(p) == Some(&'*') {
            star = Some((p, s));
            p += 1;
        } else if pattern.get(p).is_some_and(|c| one(*c, subject[s])) {
            p += 1;
            s += 1;
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            p = at + 1;
            s = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn glob(text: &str) -> Glob {
        Glob { text: text.into(), case_insensitive: false }
    }

    #[test]
    fn stars_and_question_marks() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("odoo-*", "odoo-12", true),
            ("odoo-?", "odoo-12", false),
            ("*b*b", "abb", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxc", false),
            ("[x]", "[x]", true),
        ] {
            assert_eq!(matches(&glob(pattern), text), expected, "{pattern} on {text}");
        }
        assert!(matches(&Glob { text: "LISTEN *".into(), case_insensitive: true }, "listen imbus"));
    }

    #[test]
    fn covering_and_overlapping() {
        for (outer, inner, expected) in [
            ("*", "*", true),
            ("odoo-*", "odoo-cron*", true),
            ("odoo-cron*", "odoo-*", false),
            ("odoo-?", "odoo-*", false),
            ("odoo-?", "odoo-7", true),
            ("*a*", "xa*", true),
            ("a", "a", true),
        ] {
            assert_eq!(covers(&glob(outer), &glob(inner)), expected, "{outer} over {inner}");
        }
        for (a, b, expected) in [
            ("odoo-*", "*-cron", true),
            ("odoo-*", "psql*", false),
            ("odoo", "o?oo", true),
            ("a*x", "*y", false),
            ("a", "b*", false),
        ] {
            assert_eq!(overlap(&glob(a), &glob(b)), expected, "{a} with {b}");
            assert_eq!(overlap(&glob(b), &glob(a)), expected, "{b} with {a}");
        }
    }

    proptest! {
        #[test]
        fn what_covers_or_overlaps_agrees_with_what_matches(a in "[ab*?]{0,6}", b in "[ab*?]{0,6}", text in "[ab]{0,8}") {
            let (a, b) = (glob(&a), glob(&b));
            if covers(&a, &b) && matches(&b, &text) {
                prop_assert!(matches(&a, &text));
            }
            if matches(&a, &text) && matches(&b, &text) {
                prop_assert!(overlap(&a, &b));
            }
        }
    }
}
