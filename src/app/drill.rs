//! `pgweir drill`: the command line's words handed to the drill, which knows neither the command line nor this program's configuration.

use std::process::ExitCode;

use crate::cli::args::Drill;
use crate::cli::endpoint::AdminEndpoint;
use crate::drill::command::{self, Options};
use crate::drill::console::ConsoleAddress;

/// Carries it out. Exit status: 0 what had to hold held, 1 it did not, 2 refused.
pub fn drill(drill: &Drill, json: bool, console: Option<AdminEndpoint>) -> ExitCode {
    let console =
        match console.map(|found| found.password.clone().map(|password| (found, password))).transpose() {
            Ok(console) => console,
            Err(why) => {
                eprintln!("pgweir: {why}");
                return ExitCode::from(2);
            }
        };
    let console = console.map(|(found, password)| ConsoleAddress {
        host: found.host,
        port: found.port,
        user: found.user,
        password,
    });
    command::drill(&Options {
        scenario: drill.scenario.clone(),
        target: drill.target.clone(),
        through: drill.through.clone(),
        skip_direct: drill.skip_direct,
        duration: drill.duration,
        seed: drill.seed,
        report: drill.report.clone(),
        json,
        is_staging: drill.i_know_this_is_staging,
        max_connections: drill.max_connections as usize,
        drain: drill.drain,
        commands: drill.allow_commands,
        console,
        console_of: drill.console_of.clone(),
        judge: drill.judge.clone(),
    })
}
