//! A small configuration and what is wrong with its variants.

use std::path::Path;

use pgweir::config::{Config, Problem, Warning, check};

/// A configuration without a fault; problems are put into it.
pub const BASE: &str = r#"[[listen]]
address = "127.0.0.1:6432"
[upstream]
address = "127.0.0.1:5432"
[monitor]
user = "pgweir"
[[lane]]
name = "web"
quota = 10
match = [{ application = "shop*" }]
[[lane]]
name = "other"
default = true
quota = 5
"#;

/// What `check` makes of a text.
pub fn checked(text: &str) -> Result<(Config, Vec<Warning>), Vec<Problem>> {
    check(text, Path::new("pgweir.toml"))
}

/// Its problems, as told.
pub fn problems(text: &str) -> Vec<String> {
    checked(text).err().unwrap_or_default().iter().map(ToString::to_string).collect()
}
