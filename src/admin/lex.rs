//! Text → statements of tokens, in PostgreSQL's lexical rules as far as the console needs them: `'text'` with doubled quotes,
//! `E'text'` with backslashes (psycopg2 writes those), `"name"`, `--` and nested `/* */` comments. Deliberately absent: dollar
//! quotes, `U&''`, numbers as such (a number is a word).

/// Statements in one string at most.
pub const STATEMENTS_MAX: usize = 100;

/// A piece of a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// A bare word or number, as written.
    Word(String),
    /// A `"quoted name"`, unquoted.
    Quoted(String),
    /// A `'text'`, unquoted.
    Text(String),
    /// Any other single character.
    Symbol(char),
}

/// Splits at `;` outside quotes and comments. Empty statements are left out.
///
/// # Errors
/// What is wrong, in words: a quote or comment without end, or more than [`STATEMENTS_MAX`] statements.
pub fn statements(text: &str) -> Result<Vec<Vec<Token>>, &'static str> {
    let mut lexer = Lexer { rest: text };
    let mut found = Vec::new();
    let mut current = Vec::new();
    while let Some(token) = lexer.next()? {
        if token != Token::Symbol(';') {
            current.push(token);
        } else if !current.is_empty() {
            found.push(std::mem::take(&mut current));
        }
    }
    if !current.is_empty() {
        found.push(current);
    }
    if found.len() > STATEMENTS_MAX {
        return Err("too many statements in one string");
    }
    Ok(found)
}

struct Lexer<'a> {
    rest: &'a str,
}

impl Lexer<'_> {
    fn next(&mut self) -> Result<Option<Token>, &'static str> {
        self.skip_blanks()?;
        let mut chars = self.rest.chars();
        let Some(first) = chars.next() else { return Ok(None) };
        let behind = chars.as_str();
        if matches!(first, 'e' | 'E') && behind.starts_with('\'') {
            self.rest = &behind[1..];
            return self.escaped().map(|text| Some(Token::Text(text)));
        }
        match first {
            '\'' | '"' => {
                self.rest = behind;
                let text = self.quoted(first)?;
                Ok(Some(if first == '"' { Token::Quoted(text) } else { Token::Text(text) }))
            }
            _ if is_word(first) => Ok(Some(Token::Word(self.word()))),
            _ => {
                self.rest = behind;
                Ok(Some(Token::Symbol(first)))
            }
        }
    }

    fn skip_blanks(&mut self) -> Result<(), &'static str> {
        loop {
            self.rest = self.rest.trim_start();
            if self.rest.starts_with("--") {
                self.rest = self.rest.split_once('\n').map_or("", |(_, rest)| rest);
            } else if self.rest.starts_with("/*") {
                self.skip_comment()?;
            } else {
                return Ok(());
            }
        }
    }

    fn skip_comment(&mut self) -> Result<(), &'static str> {
        let mut depth = 0_usize;
        loop {
            if let Some(rest) = self.rest.strip_prefix("/*") {
                depth += 1;
                self.rest = rest;
            } else if let Some(rest) = self.rest.strip_prefix("*/") {
                depth -= 1;
                self.rest = rest;
                if depth == 0 {
                    return Ok(());
                }
            } else {
                let mut chars = self.rest.chars();
                chars.next().ok_or("unterminated /* comment")?;
                self.rest = chars.as_str();
            }
        }
    }

    /// A word ends before a comment too: `a--b` is `a`.
    fn word(&mut self) -> String {
        let stop = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
        let end = self.rest[..stop].find("--").unwrap_or(stop);
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word.to_owned()
    }

    fn quoted(&mut self, quote: char) -> Result<String, &'static str> {
        let mut text = String::new();
        loop {
            let end = self.rest.find(quote).ok_or("unterminated quote")?;
            text.push_str(&self.rest[..end]);
            self.rest = &self.rest[end + 1..];
            match self.rest.strip_prefix(quote) {
                Some(rest) => self.rest = rest,
                None => return Ok(text),
            }
            text.push(quote);
        }
    }

    fn escaped(&mut self) -> Result<String, &'static str> {
        let mut text = String::new();
        let mut chars = self.rest.chars();
        loop {
            match chars.next().ok_or("unterminated quote")? {
                '\\' => text.push(match chars.next().ok_or("unterminated quote")? {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    other => other,
                }),
                '\'' if chars.as_str().starts_with('\'') => {
                    chars.next();
                    text.push('\'');
                }
                '\'' => {
                    self.rest = chars.as_str();
                    return Ok(text);
                }
                other => text.push(other),
            }
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '$' | '+')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn word(text: &str) -> Token {
        Token::Word(text.to_owned())
    }

    #[test]
    fn semicolons_split_outside_quotes_and_comments_only() {
        let found = statements("a 'x;y' /* ; /* ; */ */ \"n;\"\"m\" -- ;\n;; b;").expect("well-formed");
        let first = vec![word("a"), Token::Text("x;y".into()), Token::Quoted("n;\"m".into())];
        assert_eq!(found, vec![first, vec![word("b")]]);
    }

    #[test]
    fn quotes_are_doubled_or_escaped() {
        let found = statements(r"NOTE 'it''s' E'a\\b\'c' quota=5").expect("well-formed");
        let want = [
            word("NOTE"),
            Token::Text("it's".into()),
            Token::Text(r"a\b'c".into()),
            word("quota"),
            Token::Symbol('='),
            word("5"),
        ];
        assert_eq!(found, vec![want.to_vec()]);
    }

    #[test]
    fn what_has_no_end_is_an_error() {
        for text in ["'a", "\"a", "E'a\\'", "/* /* */", "E'\\"] {
            assert!(statements(text).is_err(), "{text}");
        }
        assert!(statements(&"a;".repeat(STATEMENTS_MAX + 1)).is_err());
        assert_eq!(statements(" ;; -- nothing"), Ok(vec![]));
    }

    proptest! {
        #[test]
        fn any_text_in_quotes_comes_back(text in "\\PC*") {
            let quoted = format!("'{}'", text.replace('\'', "''"));
            prop_assert_eq!(statements(&quoted), Ok(vec![vec![Token::Text(text)]]));
        }

        #[test]
        fn no_text_panics(text in "([-*/;'\"\\\\eE ]|\\PC)*") {
            let _ = statements(&text);
        }
    }
}
