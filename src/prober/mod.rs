//! Asks what a criterion wants to know: a query, a page, a program; and reads PostgreSQL's log. Every look is bounded in time and in what
//! it takes in, and leaves nothing behind: no connection, no process.
//!
//! Deliberately absent: when to ask, and what an answer means.

pub mod command;
pub mod http;
pub mod sql;
pub mod tail;

use std::sync::Arc;
use std::time::Duration;

use crate::incident::exit::Measured;
use crate::upstream::connect::MonitorSettings;

/// Characters of a reason at most: pages and programs may say anything.
const WHY_MAX: usize = 300;

/// What to ask.
#[derive(Clone)]
pub enum Ask {
    /// A query: one row, one number.
    Sql {
        /// Where and as whom; never through pgweir, so that it costs no lane a slot.
        settings: Box<MonitorSettings>,
        /// What.
        sql: Arc<str>,
    },
    /// A page.
    Http {
        /// http or https.
        url: hyper::Uri,
        /// What it must contain.
        contains: Option<Arc<str>>,
    },
    /// A program and its arguments.
    Command {
        /// At least the program.
        argv: Vec<Arc<str>>,
        /// Whether its output must be a number.
        number: bool,
    },
}

/// Asks once, within `timeout`.
///
/// # Errors
/// Why there is no answer, in a sentence of at most 300 characters.
pub async fn ask(ask: &Ask, pages: &http::Pages, timeout: Duration) -> Result<Measured, String> {
    let answer = async {
        match ask {
            Ask::Sql { settings, sql } => sql::ask(settings, sql, timeout).await.map(Measured::Number),
            Ask::Http { url, contains } => pages.ask(url, contains.as_deref()).await.map(|()| Measured::Fine),
            Ask::Command { argv, number } => command::ask(argv, *number).await,
        }
    };
    let answer = match tokio::time::timeout(timeout, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} ms", timeout.as_millis())),
    };
    answer.map_err(|why| clip(&why))
}

/// On one line, and no longer than it may be.
fn clip(text: &str) -> String {
    text.chars().take(WHY_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A number as text, with blanks around it.
fn number(text: &str) -> Option<f64> {
    text.trim().parse().ok().filter(|number: &f64| number.is_finite())
}
