//! The documentation of errors is complete and says what the program says.

mod common;

use std::path::Path;

use common::config::BASE;
use pgweir::admin::parse::script;
use pgweir::cli::verdict::Word;
use pgweir::clock::Moment;
use pgweir::config::{check, check_against};
use pgweir::lanes::guard::Guard;
use pgweir::reason::Reason;
use pgweir::snapshot::LaneState;

#[test]
fn every_reason_is_documented_with_what_the_client_sees() {
    for reason in Reason::ALL {
        let row = format!(
            "| `{}` | {} | {} | {} |",
            reason.label(),
            reason.sqlstate(),
            reason.severity().word(),
            reason.text()
        );
        assert!(PAGE.contains(&row), "docs/errors.md lacks the row {row}");
    }
    let rows = PAGE.lines().filter(|line| line.starts_with("| `") && line.contains(" | FATAL | ")).count()
        + PAGE.lines().filter(|line| line.starts_with("| `") && line.contains(" | ERROR | ")).count();
    assert_eq!(rows, Reason::ALL.len(), "a row of a reason that is gone");
}

const PAGE: &str = include_str!("../docs/errors.md");

/// First and second cell of each row of the tables below a heading, up to the next one.
fn rows(heading: &str) -> Vec<(&'static str, &'static str)> {
    let (_, section) = PAGE.split_once(&format!("{heading}\n")).expect(heading);
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    let section = section.split_once("\n### ").map_or(section, |(section, _)| section);
    let cells = section.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | "));
    cells.filter(|(first, _)| !first.starts_with("---")).skip(1).collect()
}

/// What `check` says of a text: problems, else warnings.
fn said(text: &str) -> (&'static str, String) {
    let joined = |lines: Vec<String>| lines.join("\n");
    match check(text, Path::new("pgweir.toml")) {
        Err(problems) => ("problem", joined(problems.iter().map(ToString::to_string).collect())),
        Ok((_, warnings)) => ("warning", joined(warnings.iter().map(ToString::to_string).collect())),
    }
}

/// A mistake: the beginning of its row, what of [`BASE`] becomes what, and what `check` says.
type Mistake = (&'static str, &'static str, &'static str, &'static str, &'static str);

const WEB: &str = "quota = 10\n";
const RULE: &str = "{ application = \"shop*\" }";
const END: &str = "quota = 5\n";
const MONITOR: &str = "[monitor]\nuser = \"pgweir\"\n";

const MISTAKES: &[Mistake] = &[
    (
        "several servers",
        "[upstream]\naddress = \"127.0.0.1:5432\"\n[monitor]\nuser = \"pgweir\"\n",
        "[upstream]\naddress = [\"127.0.0.1:5432\", \"127.0.0.1:5433\"]\n",
        "problem",
        "needs a [monitor]",
    ),
    ("broken syntax", WEB, "quota =\n", "problem", "pgweir.toml:9: "),
    ("broken syntax", WEB, "quota = 10\nquota = 10\n", "problem", "duplicate key"),
    ("unknown key", WEB, "qouta = 10\n", "problem", "did you mean `quota`?"),
    ("unknown key", "[monitor]", "[moniter]", "problem", "did you mean `monitor`?"),
    ("wrong type", WEB, "quota = \"10\"\n", "problem", "must be a whole number"),
    ("wrong type", WEB, "quota = 0\n", "problem", "out of range"),
    ("wrong type", WEB, "quota = 10\nwait_timeout = \"30\"\n", "problem", "has no unit"),
    ("no `[[listen]]`", "[[listen]]\naddress = \"127.0.0.1:6432\"\n", "", "problem", "listen: is missing"),
    ("no `[[listen]]`", "[upstream]\naddress = \"127.0.0.1:5432\"\n", "", "problem", "upstream: is missing"),
    ("no `[[listen]]`", WEB, "", "problem", "lane.web.quota: is missing"),
    ("no `[[listen]]`", "name = \"web\"\n", "", "problem", "lane[1].name: is missing"),
    ("no `[[lane]]`", "default = true", "match = [{ user = \"a\" }]", "problem", "no lane is the default"),
    ("no `[[lane]]`", WEB, "quota = 10\ndefault = true\n", "problem", "is the default already"),
    ("no `[[lane]]`", "\"other\"", "\"web\"", "problem", "there is another lane \"web\""),
    ("`reserve` above", WEB, "quota = 10\nreserve = 20\n", "problem", "20 is more than the quota 10"),
    ("`reserve` above", WEB, "quota = 10\nshed_above = 70\nshed_below = 70\n", "problem", "is not below"),
    (
        "`warn` after",
        WEB,
        "quota = 10\nidle_in_transaction = { warn = \"2m\", reset = \"1m\" }\n",
        "problem",
        "comes after",
    ),
    (
        "`warn` after",
        WEB,
        "quota = 10\nidle_in_transaction = { reset = \"2m\", cap = \"1m\" }\n",
        "problem",
        "comes after",
    ),
    (
        "an application's quota",
        "[[lane]]\nname = \"web\"\n",
        "[[application]]\nmatch = \"shop-1\"\nname = \"shop\"\nquota = 5\n[[lane]]\nname = \"web\"\nreserve = 6\n",
        "problem",
        "it would wait for itself",
    ),
    (
        "an application's quota",
        END,
        "quota = 5\n[[application]]\nmatch = \"shop-1\"\nname = \"shop\"\nquota = 5\n",
        "warning",
        "less than the quotas of its lanes",
    ),
    ("a rule behind one", RULE, "{ user = \"a*\" }, { user = \"ab\" }", "problem", "can never decide"),
    (
        "a rule behind one",
        "match = [{ application = \"shop*\" }]\n",
        "",
        "problem",
        "nothing leads to this lane",
    ),
    (
        "a `statement` rule",
        "match = [{ application = \"shop*\" }]",
        "protected = true\nmatch = [{ statement = \"listen x\" }]",
        "problem",
        "cannot lead into a protected lane",
    ),
    ("the default lane", END, "quota = 5\nprotected = true\n", "warning", "would be protected"),
    (
        "`shed_above`, `freeze`",
        WEB,
        "quota = 10\nprotected = true\nshed_above = 75\n",
        "warning",
        "never shed",
    ),
    ("`shed_above`, `freeze`", WEB, "quota = 10\nprotected = true\nfreeze = true\n", "warning", "frozen"),
    (
        "`shed_above`, `freeze`",
        WEB,
        "quota = 10\nprotected = true\nidle_in_transaction = { reset = \"1m\", action = \"rollback\" }\n",
        "warning",
        "or reset",
    ),
    (
        "an unknown lane",
        END,
        "quota = 5\n[exit]\ncritical_lanes = [\"wbe\"]\n",
        "problem",
        "did you mean `web`?",
    ),
    ("an unknown lane", "6432\"\n", "6432\"\nlane = \"wbe\"\n", "problem", "did you mean `web`?"),
    (
        "two listeners",
        END,
        "quota = 5\n[[listen]]\naddress = \"127.0.0.1:6432\"\n",
        "problem",
        "listen[1].address too",
    ),
    ("two listeners", "127.0.0.1:5432", "127.0.0.1:6432", "problem", "connect to itself"),
    (
        "`user = \"…\"` in",
        END,
        "quota = 5\n[admin]\nuser = \"ann\"\n[[admin.user]]\nname = \"eve\"\n",
        "problem",
        "either user = ",
    ),
    (
        "`stale_after`",
        MONITOR,
        "[monitor]\ninterval = \"4s\"\nstale_after = \"4s\"\n",
        "problem",
        "not longer than",
    ),
    (
        "`stale_after`",
        MONITOR,
        "[monitor]\ninterval = \"4s\"\nstale_after = \"5s\"\n",
        "warning",
        "two intervals",
    ),
    ("no `[monitor]`", MONITOR, "", "warning", "usage is unknown and nothing sheds"),
    (
        "`[bypass] action",
        MONITOR,
        "[bypass]\naction = \"terminate\"\n",
        "problem",
        "works through the monitor",
    ),
    (
        "`[bypass] action",
        MONITOR,
        "[[exit.probe]]\nname = \"a\"\ndatabase = \"b\"\nsql = \"c\"\n",
        "warning",
        "cannot ask PostgreSQL without a [monitor]",
    ),
    (
        "a probe that asks in no way",
        END,
        "quota = 5\n[[exit.probe]]\nname = \"a\"\nhttp = \"http://h/\"\ncommand = [\"b\"]\n",
        "problem",
        "asks in more than one way",
    ),
    ("short links", "shop*", "odoo-*", "warning", "waits for itself"),
    ("an admin address", END, "quota = 5\n[admin]\naddress = \"0.0.0.0:6433\"\n", "warning", "in the clear"),
    (
        "a name in `[admin] hosts`",
        END,
        "quota = 5\n[admin]\nhosts = [\"http://weir.example\"]\n",
        "problem",
        "is no name of a host",
    ),
    ("a feature", WEB, "quota = 10\npooling = \"transaction\"\n", "problem", "not available yet"),
    (
        "`pooling = \"session\"`",
        WEB,
        "quota = 10\npooling = \"session\"\n",
        "problem",
        "where pgweir itself authenticates",
    ),
    (
        "`pooling = \"session\"`",
        WEB,
        "quota = 10\nmin_pool_size = 2\n",
        "warning",
        "has no effect without pooling",
    ),
    (
        "`mode = \"scram\"`",
        END,
        "quota = 5\n[auth]\nmode = \"scram\"\n",
        "problem",
        "neither users_file nor query",
    ),
    (
        "`mode = \"scram\"`",
        MONITOR,
        "[auth]\nmode = \"scram\"\nquery = \"select $1\"\n",
        "problem",
        "there is no [monitor]",
    ),
    ("`mode = \"scram\"`", END, "quota = 5\n[auth]\nquery = \"select $1\"\n", "problem", "belongs to mode"),
    ("TLS without", "6432\"\n", "6432\"\ntls = \"require\"\n", "problem", "is missing"),
    ("TLS without", "5432\"\n", "5432\"\ntls = \"verify-full\"\n", "problem", "needs a ca_file"),
    ("keys of TLS", "6432\"\n", "6432\"\ncertificate_file = \"c\"\n", "warning", "has no effect"),
];

/// Rows that take PostgreSQL or a file; other tests hold them.
const NOT_OF_THE_TEXT: &[&str] = &[
    "reserves of all lanes",
    "the monitor's role",
    "no server that is",
    "PostgreSQL cannot be reached",
    "a password file",
    "a certificate or key",
    "a listener whose certificate",
    "a users file",
    "a state directory",
];

#[test]
fn check_says_of_each_mistake_what_its_row_says() {
    assert_eq!(said(BASE), ("warning", String::new()));
    let table = rows("## What the author of a configuration sees");
    for (row, from, to, verdict, says) in MISTAKES {
        let (_, documented) = table.iter().find(|(first, _)| first.starts_with(row)).expect(row);
        assert!(documented.contains(verdict), "{row}: the page does not say {verdict}: {documented}");
        assert!(BASE.contains(from), "{row}: {from}");
        let found = said(&BASE.replacen(from, to, 1));
        assert!(found.0 == *verdict && found.1.contains(says), "{row}: {to}: {found:?}");
    }
    let held = || MISTAKES.iter().map(|mistake| mistake.0).chain(NOT_OF_THE_TEXT.iter().copied());
    for (first, _) in &table {
        assert!(held().any(|row| first.starts_with(row)), "no test holds the row: {first}");
    }
}

#[test]
fn reserves_beyond_postgresql_are_a_problem_once_it_is_known() {
    let (config, _) =
        check(&BASE.replacen(WEB, "quota = 10\nreserve = 9\n", 1), Path::new("p")).expect("fine");
    assert_eq!(check_against(&config, 15, 3), Vec::new());
    assert!(check_against(&config, 14, 3)[0].to_string().contains("the reserves sum to 9"));
}

#[test]
fn a_pause_by_name_reaches_a_protected_lane_and_freeze_says_that_it_does_not() {
    let row =
        |begins: &str| rows("## What an operator sees").into_iter().find(|row| row.0.starts_with(begins));
    assert!(row("PAUSE LANE of a protected").is_some_and(|row| row.1.contains("it is done")));
    assert!(row("FREEZE").is_some_and(|row| row.1.contains("what it cannot reach")));
    let text = BASE.replacen(WEB, "quota = 10\nprotected = true\n", 1).replacen(
        END,
        "quota = 5\nfreeze = true\n",
        1,
    );
    let (config, _) = check(&text, Path::new("p")).expect("fine");
    let now = Moment::from_micros(1);
    let mut guard = Guard::new(config.settings, 1, now);
    let state =
        |guard: &Guard, lane| guard.rows(now).iter().find(|row| &*row.lane == lane).map(|row| row.state);
    let beyond = guard.freeze(now, None, "ann", "").beyond;
    assert!(beyond.iter().any(|(lane, why)| &**lane == "web" && why.starts_with("protected")), "{beyond:?}");
    assert_eq!(
        (state(&guard, "web"), state(&guard, "other")),
        (Some(LaneState::Open), Some(LaneState::Paused))
    );
    let web = guard.lane("web").expect("a lane");
    guard.pause(now, web, None, None, "ann", "");
    assert_eq!(state(&guard, "web"), Some(LaneState::Paused));
}

#[test]
fn pgbouncers_other_commands_are_unknown_and_verdicts_are_documented() {
    for show in ["SHOW FDS", "SHOW MEM", "SHOW SOCKETS", "PAUSE odoo", "SUSPEND", "RECONNECT"] {
        let failure = script(show).expect_err(show);
        assert_eq!(failure.state.as_str(), "42601", "{show}");
    }
    use Word::{Blind, Down, Draining, Ok, Paused, Pressure, Ramping, Saturated};
    for word in [Draining, Down, Saturated, Blind, Paused, Pressure, Ramping, Ok] {
        assert!(PAGE.contains(&format!("`{}`", word.text())), "{word:?}");
    }
}

#[test]
fn a_quota_below_the_reserve_is_refused() {
    let table = rows("## What an operator sees");
    let row = table.iter().find(|row| row.0.starts_with("SET LANE below")).expect("a row");
    assert!(row.1.contains("nothing is changed"));
    let text = BASE.replacen(WEB, "quota = 10\nreserve = 4\n", 1);
    let (config, _) = check(&text, Path::new("p")).expect("fine");
    let now = Moment::from_micros(1);
    let mut guard = Guard::new(config.settings, 1, now);
    let web = guard.lane("web").expect("a lane");
    assert!(guard.set_quota(now, web, 3).is_err() && guard.set_quota(now, web, 0).is_err());
    assert_eq!(guard.rows(now)[0].quota, 10);
    assert_eq!(guard.set_quota(now, web, 4), Ok(()));
}
