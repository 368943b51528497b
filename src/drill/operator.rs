//! The operator's acts at their times: commands at pgweir's console, or of a shell.

use std::process::Stdio;
use std::time::Duration;

use super::console::{Console, ConsoleAddress, Row, value};
use super::scenario::{Action, Deed};
use super::stage::Stage;

/// Time for a shell's command.
const COMMAND_MAX: Duration = Duration::from_secs(60);
/// Leaks that one act resets.
const RESETS_MAX: usize = 100;
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
            Deed::ResetLeaks(idle, _) => match console {
                Some(address) => reset_leaks(address, *idle).await,
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

/// As the runbook has it: oldest first, one by one. One that spoke or went away meanwhile needs none.
async fn reset_leaks(address: &ConsoleAddress, idle: Duration) -> Result<Outcome, String> {
    let console = Console::open(address).await?;
    let rows = console.say("SHOW LEAKS").await?;
    for id in to_reset(&rows, idle) {
        if let Err(why) = console.say(&format!("RESET CLIENT {id}")).await
            && to_reset(&console.say("SHOW LEAKS").await?, idle).contains(&id)
        {
            return Err(why);
        }
    }
    Ok(Outcome::Done)
}

/// Clients of SHOW LEAKS that an operator resets, oldest first: neither those of which pgweir says that they idle for a living or are none of
/// its business, nor those it has rolled back.
fn to_reset(rows: &[Row], idle: Duration) -> Vec<u64> {
    let is_one = |row: &&Row| !matches!(value(row, "verdict"), "exempt" | "reset" | "watch");
    let leak = |row: &Row| {
        let ms: u64 = value(row, "idle_in_transaction_ms").parse().ok()?;
        let id: u64 = value(row, "id").parse().ok()?;
        (u128::from(ms) >= idle.as_millis()).then_some((std::cmp::Reverse(ms), id))
    };
    let mut found: Vec<_> = rows.iter().filter(is_one).filter_map(leak).collect();
    found.sort_unstable();
    found.truncate(RESETS_MAX);
    found.into_iter().map(|(_, id)| id).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_resets_the_oldest_first_and_leaves_alone_who_idles_for_a_living() {
        let row = |id: &str, ms: &str, verdict: &str| -> Row {
            [("id", id), ("idle_in_transaction_ms", ms), ("verdict", verdict)]
                .map(|(column, value)| (column.to_owned(), value.to_owned()))
                .to_vec()
        };
        let rows = [
            row("1", "2500", "reset in 598 s"),
            row("2", "9000", "warn"),
            row("3", "9999", "exempt"),
            row("4", "9999", "reset"),
            row("5", "1999", "warn"),
            row("", "9999", "listed: it bypasses pgweir"),
        ];
        assert_eq!(to_reset(&rows, Duration::from_secs(2)), [2, 1]);
    }
}
