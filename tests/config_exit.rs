//! `[exit]` and its probes: what is read, and what is refused with which words.

mod common;

use std::time::Duration;

use common::config::{BASE, checked, problems};
use pgweir::config::settings::Ask;
use pgweir::incident::exit::Expect;

fn with(exit: &str) -> String {
    format!("{BASE}[exit]\n{exit}\n")
}

fn probe(keys: &str) -> String {
    with(&format!("[[exit.probe]]\nname = \"x\"\n{keys}"))
}

fn refused(text: &str, key: &str, says: &str) {
    let found = problems(text);
    assert!(
        found.len() == 1 && found[0].contains(key) && found[0].contains(says),
        "{key} {says}: {found:#?}"
    );
}

#[test]
fn every_way_to_ask_is_read_with_its_defaults() {
    let text = with(
        "failures_below = 1\nopens_at = 80\nlog_file = \"pg.log\"\n\
         [[exit.probe]]\nname = \"a\"\ndatabase = \"d\"\nsql = \"select 1\"\n\
         [[exit.probe]]\nname = \"b\"\nhttp = \"https://shop.example/web/login\"\ncontains = \"Log in\"\ninterval = \"1m\"\ntimeout = \"1s\"\n\
         [[exit.probe]]\nname = \"c\"\ncommand = [\"depth\", \"mail\"]\nexpect = \"< 10\"\n\
         [[exit.probe]]\nname = \"d\"\ncommand = [\"true\"]\n\
         [[exit.probe]]\nname = \"e\"\ndatabase = \"d\"\nsql = \"select 1\"\nexpect = \"== 0\"\nuser = \"probe\"",
    );
    let (config, warnings) = checked(&text).unwrap_or_else(|problems| panic!("{problems:#?}"));
    assert!(warnings.is_empty(), "{warnings:#?}");
    let exit = &config.exit;
    assert_eq!((exit.failures_below, config.opens_at(), exit.log_file.is_some()), (1.0, 80.0, true));
    let expects: Vec<Expect> = exit.probes.iter().map(|probe| probe.expect).collect();
    assert_eq!(expects, [Expect::Decreasing, Expect::Ok, Expect::Below(10.0), Expect::Ok, Expect::Empty]);
    let times: Vec<u64> = exit.probes.iter().map(|probe| probe.interval.as_secs()).collect();
    assert_eq!((times, exit.probes[1].timeout), (vec![15, 60, 15, 15, 15], Duration::from_secs(1)));
    assert!(matches!(&exit.probes[4].ask, Ask::Sql { role: Some((user, None)), .. } if &**user == "probe"));
}

#[test]
fn an_incident_opens_at_the_lowest_threshold_unless_told_otherwise() {
    let opens_at = |text: &str| checked(text).expect("no problems").0.opens_at();
    assert_eq!(opens_at(BASE), 90.0);
    let shedding = BASE
        .replace("quota = 10\n", "quota = 10\nshed_above = 80\n")
        .replace("quota = 5\n", "quota = 5\nshed_above = 70\n");
    assert_eq!(opens_at(&shedding), 70.0);
    assert_eq!(opens_at(&format!("{shedding}[exit]\nopens_at = 85\n")), 85.0);
}

#[test]
fn what_cannot_be_asked_is_refused() {
    refused(&probe(""), "exit.probe[1].sql", "is missing");
    refused(&probe("http = \"http://h/\"\ncommand = [\"x\"]"), "exit.probe[1]", "asks in more than one way");
    refused(&probe("sql = \"select 1\"\ndatabase = \"d\"\ncontains = \"x\""), "contains", "belongs to http");
    refused(&probe("http = \"http://h/\"\ndatabase = \"d\""), "exit.probe[1].database", "unknown key");
    for (url, says) in [
        ("ftp://h/", "no URL with a host"),
        ("/web/login", "no URL with a host"),
        ("http://", "no URL"),
        ("http://a b/", "no URL"),
        ("https://me:secret@h/", "has a user or password in it"),
    ] {
        refused(&probe(&format!("http = \"{url}\"")), "exit.probe[1].http", says);
    }
    assert!(
        !problems(&probe("http = \"https://me:secret@h/\""))[0].contains("secret@"),
        "a password is not repeated"
    );
    refused(&probe("command = []"), "exit.probe[1].command", "names no program");
    refused(&probe("command = \"ls -l\""), "exit.probe[1].command", "must be a list");
}

#[test]
fn expectations_and_times_fit_the_question() {
    let sql = "sql = \"select 1\"\ndatabase = \"d\"\n";
    refused(&probe(&format!("{sql}expect = \"falling\"")), "exit.probe[1].expect", "is not known");
    refused(&probe(&format!("{sql}expect = \"< many\"")), "exit.probe[1].expect", "is not known");
    refused(&probe(&format!("{sql}expect = \"ok\"")), "exit.probe[1].expect", "says nothing of a query");
    refused(
        &probe("http = \"http://h/\"\nexpect = \"empty\""),
        "exit.probe[1].expect",
        "a page has no number",
    );
    refused(&probe(&format!("{sql}interval = \"500ms\"")), "exit.probe[1].interval", "out of range");
    refused(&probe(&format!("{sql}timeout = \"2m\"")), "exit.probe[1].timeout", "out of range");
    refused(
        &probe(&format!("{sql}interval = \"2s\"\ntimeout = \"3s\"")),
        "exit.probe[1].timeout",
        "longer than the interval",
    );
    refused(&with("hold_for = \"0\""), "exit.hold_for", "out of range");
    refused(&with("failures_below = 0"), "exit.failures_below", "no percentage");
}
