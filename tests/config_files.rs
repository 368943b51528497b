//! The configuration's files: the shipped ones, the contract's example, defaults, the documentation, and text that is no configuration.

#![allow(clippy::panic, reason = "tests say what they found")]

mod common;

use std::path::Path;
use std::time::Duration;

use common::config::{BASE, checked, problems};
use pgweir::config::{Problem, check, check_against, load};
use pgweir::lanes::settings::{Disposition, LeakAction, ResetWhen};
use proptest::prelude::*;

#[test]
fn what_is_absent_has_its_documented_default() {
    let (config, _) = checked(&BASE.replacen(
        "quota = 10",
        "quota = 10\nshed_above = 80\nidle_in_transaction = { cap = \"1m\" }",
        1,
    ))
    .expect("valid");
    let web = &config.settings.lanes[0];
    assert_eq!((web.priority, web.reserve, web.max_waiting, web.shed_below), (5, 0, 500, 70.0));
    assert_eq!((web.wait_timeout, web.shed_dwell), (Duration::from_secs(30), Duration::from_secs(5)));
    assert_eq!((web.on_shed, web.on_pause, web.freeze), (Disposition::Hold, Disposition::Hold, false));
    assert_eq!((web.connect_rate, web.reclaim_idle_after, web.pause_hold_timeout), (None, None, None));
    let leaks = web.idle_in_transaction.as_ref().expect("it is set");
    let minute = Some(Duration::from_secs(60));
    assert_eq!((leaks.warn, leaks.reset, leaks.cap, leaks.disconnect_after), (minute, minute, minute, None));
    assert_eq!(
        (leaks.when, leaks.action, leaks.sqlstate.as_str()),
        (ResetWhen::Harm, LeakAction::Rollback, "40001")
    );
    assert_eq!(leaks.exempt.len(), 3);
    assert_eq!(&*web.rules[0].text, "{ application = \"shop*\" }");
    let limits = &config.settings.limits;
    assert_eq!(
        (limits.max_clients, limits.max_logins, limits.headroom, limits.max_resets_per_minute),
        (10_000, 64, 3, 10)
    );
    assert_eq!((limits.stale_after, limits.monitored, limits.observe), (Duration::from_secs(5), true, false));
    assert_eq!(config.process.tcp_keepalive, minute);
    assert_eq!(config.bypass.after, Duration::from_secs(600));
    assert_eq!(config.admin.endpoint.to_string(), "127.0.0.1:6433");
}

#[test]
fn paths_start_at_the_files_directory_and_sockets_have_their_names() {
    let text = BASE
        .replace("127.0.0.1:6432", "unix:/run/pgweir")
        .replace("127.0.0.1:5432", "unix:/run/postgresql:5433");
    let text = text.replace("[monitor]", "[monitor]\npassword_file = \"monitor.password\"");
    let (config, _) = check(&text, Path::new("/etc/pgweir/pgweir.toml")).expect("valid");
    let socket = |endpoint: &pgweir::config::settings::Endpoint| {
        endpoint.socket_path().expect("a socket").display().to_string()
    };
    assert_eq!(socket(&config.listen[0].endpoint), "/run/pgweir/.s.PGSQL.6432");
    assert_eq!(socket(&config.upstream.endpoints[0]), "/run/postgresql/.s.PGSQL.5433");
    let file = config.monitor.and_then(|m| m.password_file);
    assert_eq!(file.as_deref(), Some(Path::new("/etc/pgweir/monitor.password")));
}

fn shipped(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)
}

#[test]
fn the_shipped_files_pass_without_a_warning() {
    for (name, max_connections) in [
        ("pgweir.toml", 100),
        ("odoo.toml", 100),
        ("odoo-pooled.toml", 100),
        ("odoo-compose.toml", 100),
        ("odoo-hosts.toml", 200),
        ("odoo-databases.toml", 200),
        ("../tests/contract.toml", 100),
    ] {
        let (config, warnings) = load(&shipped(name)).unwrap_or_else(|problems| panic!("{problems:#?}"));
        assert_eq!(warnings, Vec::new(), "{name}");
        assert_eq!(check_against(&config, max_connections, 3), Vec::new(), "{name}");
    }
}

#[test]
fn the_pooled_file_is_odoos_and_pooling() {
    let text = |name: &str| std::fs::read_to_string(shipped(name)).expect("shipped");
    let (plain, pooled) = (text("odoo.toml"), text("odoo-pooled.toml"));
    let body = |text: &str| text.split_once("\nmode = ").expect("a mode").1.to_owned();
    let auth = "[auth]\nmode = \"scram\"\nquery = \"select usename, passwd from pgweir.secret_of($1)\"\n\n";
    let rest = body(&pooled).replacen(auth, "", 1);
    let is_pooling = |line: &&str| {
        ["pooling = ", "keep_reserve = ", "server_application_name = "]
            .iter()
            .any(|key| line.starts_with(key))
    };
    assert_eq!(rest.lines().filter(is_pooling).count(), 9, "web, live and notify");
    let rest: Vec<_> = rest.lines().filter(|line| !is_pooling(line)).collect();
    assert_eq!(rest, body(&plain).lines().collect::<Vec<_>>());
}

/// What the heads of Odoo's files say of reserves is what their lanes add up to.
#[test]
fn the_arithmetic_in_odoos_files_is_that_of_their_lanes() {
    for (name, reserved) in [
        ("odoo.toml", "26 are reserved"),
        ("odoo-compose.toml", "26 are reserved"),
        ("odoo-hosts.toml", "62 are reserved"),
        ("odoo-databases.toml", "54 are reserved"),
    ] {
        let (config, _) = load(&shipped(name)).expect("it passes");
        let sum: u32 = config.settings.lanes.iter().map(|lane| lane.reserve).sum();
        let head: Vec<_> = std::fs::read_to_string(shipped(name))
            .expect("shipped")
            .lines()
            .take_while(|line| line.starts_with('#'))
            .map(|line| line.trim_start_matches(['#', ' ']).to_owned())
            .collect();
        assert!(reserved.starts_with(&sum.to_string()) && head.join(" ").contains(reserved), "{name}: {sum}");
    }
}

#[test]
fn the_reference_shows_the_real_defaults() {
    let (config, _) = load(&shipped("pgweir.toml")).expect("it passes");
    let minimal = BASE.replace(
        "name = \"web\"\nquota = 10\nmatch = [{ application = \"shop*\" }]",
        "name = \"admin\"\nprotected = true\nquota = 5\nreserve = 2\nmatch = [{ user = \"postgres\" }]",
    );
    let minimal = minimal
        .replace("name = \"other\"", "name = \"default\"")
        .replace("quota = 5\n", "quota = 50\n")
        .replacen("quota = 50", "quota = 5", 1);
    let minimal =
        format!("{minimal}idle_in_transaction = {{ warn = \"15s\", reset = \"60s\", cap = \"10m\" }}\n");
    let (bare, _) = checked(&minimal).unwrap_or_else(|problems| panic!("{problems:#?}"));
    assert_eq!(config.lines(), bare.lines());
    assert_eq!(config.settings, bare.settings);
}

/// Every key that any table knows, learnt from the hints of `check` itself.
fn known_keys() -> Vec<String> {
    let unknown = "zzzzzzzzzzzz = 1\n";
    let tables = [
        "[[listen]]",
        "[admin]",
        "[[admin.user]]",
        "[upstream]",
        "[monitor]",
        "[auth]",
        "[limits]",
        "[state]",
        "[bypass]",
        "[[application]]",
        "[[lane]]",
        "[[lane]]\n[lane.idle_in_transaction]",
        "[[lane]]\n[[lane.match]]",
        "[exit]",
        "[[exit.probe]]",
    ];
    let mut keys: Vec<String> = Vec::new();
    for text in tables.iter().map(|t| format!("{t}\n{unknown}")).chain([unknown.to_owned()]) {
        let found = problems(&text);
        let hint =
            found.iter().find_map(|p| p.split_once("known here: ")).unwrap_or_else(|| panic!("{found:#?}"));
        keys.extend(hint.1.split(", ").map(str::to_owned));
    }
    keys
}

#[test]
fn reference_and_documentation_know_every_key() {
    let reference = std::fs::read_to_string(shipped("pgweir.toml")).expect("shipped");
    let docs = std::fs::read_to_string(shipped("../docs/configuration.md")).expect("shipped");
    let keys = known_keys();
    assert!(keys.len() > 80, "{keys:?}");
    for key in keys {
        let whole =
            |text: &str| text.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == key);
        assert!(whole(&reference), "{key} is missing in config/pgweir.toml");
        assert!(whole(&docs), "{key} is missing in docs/configuration.md");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_one_problem() {
    let directory = tempfile::tempdir().expect("test set-up");
    let path = directory.path().join("pgweir.toml");
    let said = |found: Vec<Problem>| found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert!(said(load(&path).expect_err("absent")).contains("cannot be read"));
    std::fs::write(&path, b"mode = \"enforce\"\n# \xff\n").expect("test set-up");
    assert!(said(load(&path).expect_err("not text")).contains("pgweir.toml:2: is not UTF-8"));
    std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).expect("test set-up");
    assert!(said(load(&path).expect_err("too long")).contains("has more than"));
    std::fs::write(&path, BASE).expect("test set-up");
    assert!(load(&path).is_ok());
}

/// Scraps that make text look like a configuration.
fn scraps() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "[[lane]]\n",
        "[[listen]]\n",
        "[upstream]\n",
        "[admin]\n",
        "[[admin.user]]\n",
        "[monitor]\n",
        "[exit]\n",
        "[[exit.probe]]\n",
        "[[application]]\n",
        "[lane.idle_in_transaction]\n",
        "name = ",
        "quota = ",
        "reserve = ",
        "address = ",
        "match = ",
        "default = true\n",
        "shed_above = ",
        "\"web\"\n",
        "\"*\"\n",
        "[{ user = \"a*\" }]\n",
        "[{}, { statement = \"*b?\" }]\n",
        "\"5s\"\n",
        "\"unix:/x\"\n",
        "\"[::1]:5\"\n",
        "3\n",
        "1e400\n",
        "0x7fffffffffffffff\n",
        "-1\n",
        "{ warn = \"1s\", exempt = [1] }\n",
        "idle_in_transaction = ",
        "\"\"\"",
        "'",
        "é",
        "\u{0}",
        "\n",
        "{ address = \"10.0.0.0/0\" }",
        ".",
        "=",
        "]",
        "1979-05-27\n",
        "#",
        "lane = ",
        "critical_lanes = ",
        "[\"web\"]\n",
        "match = \"\"\n",
    ]);
    prop::collection::vec(words, 0..60).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in prop_oneof![scraps(), any::<String>()]) {
        let lines = text.lines().count().max(1) + 1;
        match checked(&text) {
            Ok((config, _)) => prop_assert!(!config.lines().is_empty()),
            Err(found) => {
                prop_assert!(!found.is_empty());
                prop_assert!(found.iter().all(|p| p.line.is_some_and(|l| (1..=lines).contains(&l)) && !p.hint.is_empty()));
            }
        }
    }

    #[test]
    fn no_cut_of_a_real_file_makes_it_panic(at in 0_usize..8_000, drop in 0_usize..200) {
        let text = std::fs::read_to_string(shipped("odoo.toml")).expect("shipped");
        let kept: String = text.chars().enumerate().filter(|(i, _)| !(at..at + drop).contains(i)).map(|(_, c)| c).collect();
        if let Err(found) = checked(&kept) {
            prop_assert!(!found.is_empty());
        }
    }
}
