//! What is wrong with a configuration, in words for its author.

use std::fmt;
use std::sync::Arc;

/// Something that keeps a configuration from being used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file's path as it was named.
    pub file: Arc<str>,
    /// Line, from 1; none where no line is at fault.
    pub line: Option<usize>,
    /// Dotted key such as `lane.web.reserve`; list items count from 1: `lane.web.match[2]`. Empty where no key is at fault.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it; never empty.
    pub hint: String,
}

impl Problem {
    fn write(&self, f: &mut fmt::Formatter<'_>, label: &str) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {label}")?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{}. Hint: {}", self.message, self.hint)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, "")
    }
}

/// Something that works, but probably not as its author thinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning(pub Problem);

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.write(f, "warning: ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_reads_like_a_compilers() {
        let problem = Problem {
            file: "pgweir.toml".into(),
            line: Some(12),
            key: "lane.web.reserve".into(),
            message: "20 is more than the quota 10".into(),
            hint: "lower it".into(),
        };
        assert_eq!(
            problem.to_string(),
            "pgweir.toml:12: lane.web.reserve: 20 is more than the quota 10. Hint: lower it"
        );
        assert_eq!(
            Warning(Problem { line: None, key: String::new(), ..problem }).to_string(),
            "pgweir.toml: warning: 20 is more than the quota 10. Hint: lower it"
        );
    }
}
