//! The operator's acts at their times: commands at pgweir's console, or of a shell.

use std::process::Stdio;
use std::time::Duration;

use super::console::{Console, ConsoleAddress};
use super::scenario::{Action, Deed};
use super::stage::Stage;

/// Time for a shell's command.
const COMMAND_MAX: Duration = Duration::from_secs(60);
/// Characters kept of what a command printed.
const OUTPUT_MAX: usize = 300;

/// What became of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Done,
    /// Not for this way: it has no console.
    Skipped,
    /// It did not work, and why.
    Failed(String),
}

/// An action that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Act {
    /// Time of the run at which it was tried.
    pub at: Duration,
    /// What was said or run.
    pub text: String,
    /// What became of it.
    pub outcome: Outcome,
}

/// Carries out `actions` at their times until the run is over; what became of those that were tried.
pub async fn operate(
    stage: &Stage,
    actions: &[Action],
    console: Option<&ConsoleAddress>,
    commands: bool,
    acts: &parking_lot::Mutex<Vec<Act>>,
) {
    for (number, action) in actions.iter().enumerate() {
        if stage.unless_over(stage.until(action.at)).await.is_none() {
            return;
        }
        let at = stage.now();
        let done = match &action.deed {
            Deed::Console(text) => match console {
                Some(address) => say(address, text).await,
                None => Ok(Outcome::Skipped),
            },
            Deed::Run(_) if !commands => Err("commands are run only with --allow-commands".to_owned()),
            Deed::Run(command) => run(command, &stage.way.name, number).await,
        };
        let outcome = done.unwrap_or_else(Outcome::Failed);
        acts.lock().push(Act { at, text: action.deed.text().to_owned(), outcome });
    }
}

async fn say(address: &ConsoleAddress, text: &str) -> Result<Outcome, String> {
    Console::open(address).await?.say(text).await.map(|_| Outcome::Done)
}

async fn run(command: &str, way: &str, number: usize) -> Result<Outcome, String> {
    let mut shell = tokio::process::Command::new("/bin/sh");
    shell.args(["-c", command]).env("DRILL_WAY", way).env("DRILL_ACTION", number.to_string());
    shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let child = shell.spawn().map_err(|error| error.to_string())?;
    let ended = tokio::time::timeout(COMMAND_MAX, child.wait_with_output()).await;
    let output =
        ended.map_err(|_| "it did not end within a minute".to_owned())?.map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(Outcome::Done);
    }
    let said: String = String::from_utf8_lossy(&output.stderr).trim().chars().take(OUTPUT_MAX).collect();
    Err(format!("{}: {said}", output.status))
}
