//! The command line as an operator types it, and what the console is asked.
#![allow(clippy::panic, reason = "a test may fail")]

use std::ffi::OsString;
use std::time::Duration;

use clap::Parser;
use pgweir::cli::args::{Cli, Command, Format, Which};
use pgweir::cli::sql;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("pgweir").chain(line.split('|')).map(OsString::from))
}

/// What the console is sent for a command line, whose words are separated by `|`.
fn sent(line: &str) -> String {
    let command = parse(line).unwrap_or_else(|error| panic!("{line}: {error}")).command;
    sql::act(&command).or(sql::show(&command).map(str::to_owned)).unwrap_or_default()
}

#[test]
fn every_command_is_sent_as_the_console_knows_it() {
    for (line, expected) in [
        ("lanes", "SHOW LANES"),
        ("applications", "SHOW APPLICATIONS"),
        ("clients", "SHOW CLIENTS"),
        ("sessions", "SHOW SESSIONS"),
        ("leaks", "SHOW LEAKS"),
        ("usage", "SHOW USAGE"),
        ("freeze", "FREEZE"),
        ("freeze|--for|30m|--reason|it's late", "FREEZE FOR '1800 s' REASON 'it''s late'"),
        ("pause|cron", "PAUSE LANE cron"),
        ("pause|cron|--hold|--for|10m", "PAUSE LANE cron HOLD FOR '600 s'"),
        ("pause|odoo-cron|--reject|--reason|x", "PAUSE LANE odoo-cron REJECT REASON 'x'"),
        ("resume|cron", "RESUME LANE cron"),
        ("resume|cron|--over|5m", "RESUME LANE cron OVER '300 s'"),
        ("resume|all|--over|1h30m", "RESUME ALL OVER '5400 s'"),
        ("resume|all", "RESUME ALL"),
        ("drain|queue", "DRAIN LANE queue"),
        ("cancel|42", "CANCEL CLIENT 42"),
        ("cancel|--pid|4242", "CANCEL PID 4242"),
        ("reset|42", "RESET CLIENT 42"),
        ("kill|42", "KILL CLIENT 42"),
        ("kill|--pid|4242", "TERMINATE PID 4242"),
        ("note|called|the|carrier's|desk", "NOTE 'called the carrier''s desk'"),
        ("set|cron|quota=5", "SET LANE cron quota = 5"),
        ("set|cron|quota = 5", "SET LANE cron quota = 5"),
        ("reload", "RELOAD"),
    ] {
        assert_eq!(sent(line), expected, "{line}");
    }
}

#[test]
fn suggest_replaces_nothing_unless_a_file_is_named() {
    let parsed = parse("suggest|--write|new.toml|--force|--state").unwrap_or_else(|error| panic!("{error}"));
    let Command::Suggest(wanted) = parsed.command else { panic!("another command") };
    assert!(wanted.state && wanted.force && wanted.write.is_some_and(|file| file.ends_with("new.toml")));
    assert!(parse("suggest|--force").is_err());
}

#[test]
fn nothing_an_operator_types_leaves_its_quotes() {
    assert_eq!(sent("note|'; KILL CLIENT 1; --"), "NOTE '''; KILL CLIENT 1; --'");
    assert_eq!(sent("pause|cron; FREEZE"), "PAUSE LANE \"cron; FREEZE\"");
    assert_eq!(sent("drain|a\"b"), "DRAIN LANE \"a\"\"b\"");
    assert_eq!(sent("freeze|--reason|two\nlines"), "FREEZE REASON 'two lines'");
}

#[test]
fn what_makes_no_sense_is_a_usage_error() {
    for line in [
        "pause",
        "pause|cron|--hold|--reject",
        "pause|cron|--for|soon",
        "freeze|--for|0s",
        "freeze|--for|10",
        "cancel",
        "cancel|1|--pid|2",
        "cancel|web",
        "kill|--pid|0",
        "kill|--pid|-1",
        "reset|-1",
        "note",
        "set|cron",
        "set|cron|quota",
        "set|cron|quota=-1",
        "set|cron|quota=many",
        "set|cron|priority=1",
        "timeline|--last|many",
        "lanes|extra",
        "unknown",
        "status|--admin|h:1|--config|f",
    ] {
        let error = parse(line).err().unwrap_or_else(|| panic!("{line} was accepted"));
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

#[test]
fn options_of_every_command_go_before_or_after_it() {
    for line in ["--json|--config|x.toml|status", "status|--config|x.toml|--json", "status|-c|x.toml|--json"]
    {
        let cli = parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert!(cli.global.json && cli.global.config.as_deref() == Some("x.toml".as_ref()), "{line}");
        assert_eq!(cli.command, Command::Status);
    }
    let cli = parse("--admin|[::1]:6433|--user|bob|run").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((cli.global.admin.as_deref(), cli.global.user.as_deref()), (Some("[::1]:6433"), Some("bob")));
}

#[test]
fn help_and_version_are_no_errors() {
    for line in ["--help", "--version", "help", "pause|--help"] {
        let text = parse(line).err().unwrap_or_else(|| panic!("{line} should print and end"));
        assert_eq!(text.exit_code(), 0, "{line}");
    }
}

#[test]
fn exit_and_report_know_their_options() {
    let command = |line: &str| parse(line).map(|cli| cli.command);
    let Ok(Command::Exit(exit)) = command("exit|--wait|--timeout|1h") else { panic!("exit") };
    assert_eq!((exit.wait, exit.timeout), (true, Some(Duration::from_secs(3600))));
    assert!(command("exit|--timeout|1h").is_err(), "without --wait there is nothing to time");
    let Ok(Command::Report(report)) = command("report|--format|html|--incident|7") else { panic!("report") };
    assert_eq!((report.incident, report.format), (Which::Number(7), Format::Html));
    let Ok(Command::Report(report)) = command("report") else { panic!("report") };
    assert_eq!((report.incident, report.format, report.output), (Which::Latest, Format::Md, None));
    assert!(command("report|--incident|last").is_err() && command("report|--format|pdf").is_err());
}

#[test]
fn what_is_still_to_come_is_not_offered() {
    for command in ["drill", "init"] {
        assert!(parse(command).is_err(), "{command}");
    }
}
