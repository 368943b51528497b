//! One TOML file → checked settings, with every problem reported at once.
//!
//! Pure but for [`load`] and what of `secret` reads files. `raw` walks the document and knows lines and keys;
//! `values` reads one value; `sections`, `lane` and `rule` read one table each; `cross` holds what no table can know alone.
//! Nothing here changes anything: a changed file is either a whole new [`Config`] or a list of problems.

pub mod checked;
pub mod glob;
pub mod problem;
pub mod secret;
pub mod settings;
pub mod timeouts;
pub mod units;

mod cross;
mod exit;
mod lane;
mod lines;
mod raw;
mod reach;
mod rule;
mod sections;
mod tls;
mod values;

use std::fs::File;
use std::io::Read;
use std::path::Path;

pub use checked::{admin_of, check, check_against};
pub use lines::{default_of, is_changeable};
pub use problem::{Problem, Warning};
pub use secret::{Secret, read_password, read_users};
pub use settings::Config;
pub use timeouts::{RoleTimeout, check_timeouts};

/// Bytes of a configuration file at most: far above any honest one, far below what would make checking slow.
pub const FILE_BYTES_MAX: usize = 1 << 20;

/// Reads and checks the file at `path`.
///
/// # Errors
/// Every problem of the file, or the one of not being able to read it.
pub fn load(path: &Path) -> Result<(Config, Vec<Warning>), Vec<Problem>> {
    let unread = |message: String, hint: &str| {
        vec![Problem {
            file: path.display().to_string().into(),
            line: None,
            key: String::new(),
            message,
            hint: hint.to_owned(),
        }]
    };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| unread(format!("cannot be read: {error}"), "name it with --config FILE"))?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => check(text, path),
        Err(error) => {
            let line = 1 + bytes[..error.valid_up_to()].iter().filter(|b| **b == b'\n').count();
            let mut problems = unread("is not UTF-8 text".to_owned(), "save the file as UTF-8");
            problems[0].line = Some(line);
            Err(problems)
        }
    }
}
