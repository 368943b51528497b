//! The configuration as its author meets it: each mistake with its line.

#![allow(clippy::panic, reason = "tests say what they found")]

mod common;

use common::config::{BASE, checked, problems};
use pgweir::config::check_against;
use pgweir::lanes::settings::LeakAction;

fn warnings(text: &str) -> Vec<String> {
    let (_, warnings) = checked(text).unwrap_or_else(|problems| panic!("{problems:#?}"));
    warnings.iter().map(ToString::to_string).collect()
}

/// `BASE` with `from` replaced by `to`, and the line on which `to` begins.
fn edited(from: &str, to: &str) -> (String, usize) {
    let at = BASE.find(from).unwrap_or_else(|| panic!("{from:?} is not in BASE"));
    (BASE.replacen(from, to, 1), 1 + BASE[..at].matches('\n').count())
}

/// Exactly one problem, on the line where `wrong` stands in `to`, naming `key` and saying `says`.
#[track_caller]
fn one(from: &str, to: &str, wrong: &str, key: &str, says: &str) {
    let (text, first) = edited(from, to);
    let at = to.find(wrong).unwrap_or_else(|| panic!("{wrong:?} is not in {to:?}"));
    one_at(&text, first + to[..at].matches('\n').count(), key, says);
}

/// Exactly one problem in `text`.
#[track_caller]
fn one_at(text: &str, line: usize, key: &str, says: &str) {
    let found = problems(text);
    let start = format!("pgweir.toml:{line}: {key}: ");
    assert!(
        found.len() == 1
            && found[0].starts_with(&start)
            && found[0].contains(says)
            && found[0].contains(". Hint: "),
        "expected one problem {start}…{says}…, found {found:#?}\n{text}"
    );
}

/// A key added to lane web.
#[track_caller]
fn web(line: &str, key: &str, says: &str) {
    one("quota = 10\n", &format!("quota = 10\n{line}\n"), line, &format!("lane.web.{key}"), says);
}

/// A section added at the end.
#[track_caller]
fn section(text: &str, wrong: &str, key: &str, says: &str) {
    one("quota = 5\n", &format!("quota = 5\n{text}\n"), wrong, key, says);
}

#[test]
fn the_base_is_without_fault() {
    assert_eq!(warnings(BASE), Vec::<String>::new());
}

#[test]
fn unknown_keys_are_found_everywhere_with_the_nearest_known_one() {
    web("qouta = 3", "qouta", "unknown key. Hint: did you mean `quota`?");
    web(
        "idle_in_transaction = { warm = \"5s\", reset = \"9s\" }",
        "idle_in_transaction.warm",
        "did you mean `warn`?",
    );
    one(
        "[{ application",
        "[{ aplication",
        "aplication",
        "lane.web.match[1].aplication",
        "did you mean `application`?",
    );
    section("[moniter]", "[moniter]", "moniter", "did you mean `monitor`?");
    one("user = \"pgweir\"", "usr = \"pgweir\"", "usr", "monitor.usr", "did you mean `user`?");
    section(
        "[[exit.probe]]\nname='a'\ndatabase='b'\nsql='c'\nexpct='d'",
        "expct",
        "exit.probe[1].expct",
        "`expect`",
    );
    one("[monitor]", "mode = \"observe\"\n[monitor]", "mode", "upstream.mode", "top of the file");
    one("[[listen]]\n", "[[listen]]\nlanes = \"web\"\n", "lanes", "listen[1].lanes", "did you mean `lane`?");
}

#[test]
fn wrong_types_name_what_is_there_and_what_must_be() {
    web("priority = \"0\"", "priority", "is a string, must be a whole number");
    web("freeze = \"yes\"", "freeze", "is a string, must be true or false");
    web("wait_timeout = 30", "wait_timeout", "is an integer, must be a duration");
    web("shed_above = \"75%\"", "shed_above", "is a string, must be a number");
    web("on_shed = true", "on_shed", "is true or false, must be a string");
    web("idle_in_transaction = \"60s\"", "idle_in_transaction", "is a string, must be a table");
    one(
        "match = [{ application = \"shop*\" }]",
        "match = { application = \"shop*\" }",
        "match",
        "lane.web.match",
        "list",
    );
    one("[upstream]", "[[upstream]]", "[[upstream]]", "upstream", "write [upstream]");
    section("[application]\nmatch='a'\nname='b'", "[application]", "application", "write [[application]]");
    section("[exit]\ncritical_lanes = \"web\"", "critical", "exit.critical_lanes", "must be a list");
    section("[exit]\ncritical_lanes = [1]", "critical", "exit.critical_lanes", "item 1 is an integer");
}

#[test]
fn values_out_of_range_are_refused() {
    one("quota = 10", "quota = 0", "quota", "lane.web.quota", "out of range");
    one("quota = 10", "quota = -1", "quota", "lane.web.quota", "out of range");
    one("quota = 10", "quota = 99999999999999999999", "quota", "lane.web.quota", "out of range");
    web("priority = 10", "priority", "from 0 to 9");
    web("shed_above = 101", "shed_above", "no percentage");
    web("shed_above = nan", "shed_above", "no usable number");
    web("connect_rate = -1", "connect_rate", "out of range");
    section("[limits]\nmax_clients = 0", "max_clients", "limits.max_clients", "out of range");
    section("[limits]\ntcp_keepalive = \"5ms\"", "tcp_keepalive", "limits.tcp_keepalive", "below the second");
}

#[test]
fn bad_durations_globs_ranges_states_and_words() {
    web("wait_timeout = \"30\"", "wait_timeout", "has no unit");
    web("wait_timeout = \"3 parsecs\"", "wait_timeout", "no unit of time");
    web("on_shed = \"holdd\"", "on_shed", "did you mean `hold`?");
    web(
        "idle_in_transaction = { reset = \"1m\", sqlstate = \"4001\" }",
        "idle_in_transaction.sqlstate",
        "no SQLSTATE",
    );
    web(
        "idle_in_transaction = { reset = \"1m\", sqlstate = \"00000\" }",
        "idle_in_transaction.sqlstate",
        "not mean an error",
    );
    web(
        "idle_in_transaction = { reset = \"1m\", exempt = [\"\"] }",
        "idle_in_transaction.exempt",
        "item 1 is an empty glob",
    );
    let rule = |rule: &str, key: &str, says: &str| {
        one("{ application = \"shop*\" }", rule, "{", &format!("lane.web.match[1].{key}"), says);
    };
    rule("{ user = \"\" }", "user", "empty glob");
    rule("{ user = \"a\\u0007\" }", "user", "control character");
    rule("{ address = \"10.0.0\" }", "address", "no IP address");
    rule("{ address = \"10.0.0.0/33\" }", "address", "no prefix length");
    rule("{ address = \"10.0.0.1/8\" }", "address", "did you mean \"10.0.0.0/8\"");
    rule("{ statement = \"listen x;\" }", "statement", "semicolon");
    rule("{ statement = \"select  1\" }", "statement", "blanks");
}

#[test]
fn addresses_are_checked() {
    let listen = |to: &str, says: &str| one("\"127.0.0.1:6432\"", to, to, "listen[1].address", says);
    listen("\"127.0.0.1\"", "has no port");
    listen("\":6432\"", "no host");
    listen("\"127.0.0.1:0\"", "no port from 1 to 65535");
    listen("\"::1:6432\"", "no host");
    listen("\"unix:run\"", "no absolute path");
    listen("\"unix:/run:x\"", "no port");
    let long = format!("\"unix:/{}\"", "x".repeat(100));
    listen(&long, "more than 107 bytes");
    one("6432\"\n", "6432\"\nport = 1\n", "port", "listen[1].port", "unix: address only");
    one("127.0.0.1:5432", "localhost:6432", "localhost", "upstream.address", "connect to itself");
    one(
        "[monitor]\n",
        "[monitor]\naddress = \"127.0.0.1:6432\"\n",
        "address",
        "monitor.address",
        "connect to itself",
    );
    section("[admin]\naddress = \"127.0.0.1:6432\"", "address", "admin.address", "listen[1].address too");
    section("[admin]\naddress = \"unix:/run\"", "address", "admin.address", "must be host:port");
    for host in ["http://weir.example", "weir.example:6433", "weir.example/x", "*"] {
        section(
            &format!("[admin]\nhosts = [\"ok\", \"{host}\"]"),
            "hosts",
            "admin.hosts",
            "is no name of a host",
        );
    }
    section(
        "[[listen]]\naddress = \"127.0.0.1:6432\"",
        "address",
        "listen[2].address",
        "listen[1].address too",
    );
}

#[test]
fn several_servers_are_listed_once_and_need_a_monitor() {
    let upstream = |to: &str, says: &str| one("\"127.0.0.1:5432\"", to, to, "upstream.address", says);
    upstream("[]", "has 0 addresses");
    upstream("[\"a:1\", \"b:1\", \"a:1\"]", "has a:1 twice");
    upstream("[\"a:1\", \"b\"]", "item 2 \"b\" has no port");
    upstream("[\"a:1\", \"127.0.0.1:6432\"]", "connect to itself");
    let many: Vec<String> = (1..=17).map(|n| format!("\"a:{n}\"")).collect();
    upstream(&format!("[{}]", many.join(", ")), "has 17 addresses");
    let two = "address = [\"a:1\", \"b:1\"]";
    one(
        "address = \"127.0.0.1:5432\"\n[monitor]\nuser = \"pgweir\"\n",
        &format!("{two}\n"),
        two,
        "upstream.address",
        "needs a [monitor]",
    );
    let (text, _) = edited("address = \"127.0.0.1:5432\"", two);
    let text = text.replace("[monitor]\n", "[monitor]\naddress = \"a:1\"\n");
    assert!(problems(&text).iter().any(|p| p.contains("monitor.address: has no meaning here")), "{text}");
}

#[test]
fn a_list_of_servers_means_the_one_that_takes_writes() {
    let attrs = |address: &str| {
        let (text, _) = edited("\"127.0.0.1:5432\"", address);
        let (config, _) = checked(&text).unwrap_or_else(|problems| panic!("{problems:#?}"));
        (config.upstream.session.word(), config.upstream.is_watched(), config.upstream.addresses())
    };
    assert_eq!(attrs("\"a:1\""), ("any", false, "a:1".to_owned()));
    assert_eq!(attrs("[\"a:1\"]"), ("any", false, "a:1".to_owned()));
    assert_eq!(attrs("[\"a:1\", \"b:1\"]"), ("read-write", true, "a:1, b:1".to_owned()));
    assert_eq!(attrs("\"a:1\"\ntarget_session_attrs = \"standby\""), ("standby", true, "a:1".to_owned()));
    assert_eq!(attrs("[\"a:1\", \"b:1\"]\ntarget_session_attrs = \"any\"").0, "any");
}

#[test]
fn what_is_missing_is_named() {
    one(
        "[[lane]]\nname = \"web\"\nquota = 10",
        "[[lane]]\nname = \"web\"",
        "[[lane]]",
        "lane.web.quota",
        "is missing",
    );
    one("[[lane]]\nname = \"web\"", "[[lane]]", "[[lane]]", "lane[1].name", "is missing");
    one(
        "[upstream]\naddress = \"127.0.0.1:5432\"",
        "[upstream]",
        "[upstream]",
        "upstream.address",
        "is missing",
    );
    section("[[application]]\nname='a'", "[[application]]", "application.a.match", "is missing");
    section("[[exit.probe]]\nname='a'\ndatabase='b'", "[[exit.probe]]", "exit.probe[1].sql", "is missing");
    let found = problems("");
    let missing: Vec<&str> = ["listen: ", "upstream: ", "lane: "]
        .into_iter()
        .filter(|key| !found.iter().any(|p| p.starts_with(&format!("pgweir.toml:1: {key}"))))
        .collect();
    assert!(missing.is_empty() && found.len() == 3, "{missing:?} not in {found:#?}");
}

#[test]
fn reserve_and_shedding_fit_their_lane() {
    web("reserve = 20", "reserve", "20 is more than the quota 10");
    let shed = |line: &str, wrong: &str, says: &str| {
        one("quota = 10\n", &format!("quota = 10\n{line}\n"), wrong, "lane.web.shed_below", says);
    };
    shed("shed_above = 70\nshed_below = 70", "shed_below", "70 is not below shed_above = 70");
    shed("shed_above = 70\nshed_below = 80", "shed_below", "80 is not below shed_above = 70");
    shed("shed_above = 10", "shed_above", "would be 0");
}

#[test]
fn thresholds_and_leak_times_are_in_order() {
    let leak = |table: &str, key: &str, says: &str| {
        web(&format!("idle_in_transaction = {table}"), &format!("idle_in_transaction.{key}"), says);
    };
    leak("{ warn = \"2m\", reset = \"1m\" }", "warn", "comes after `reset`");
    leak("{ reset = \"2m\", cap = \"1m\" }", "reset", "comes after `cap`");
    leak("{ warn = \"2m\", cap = \"1m\" }", "warn", "comes after `cap`");
    leak(
        "{ reset = \"1m\", action = \"disconnect\", disconnect_after = \"1m\" }",
        "disconnect_after",
        "a rollback only",
    );
}

#[test]
fn protected_lanes_are_left_alone() {
    let protect = |line: &str, key: &str, says: &str| {
        let to = format!("quota = 10\nprotected = true\n{line}\n");
        let (text, first) = edited("quota = 10\n", &to);
        let start = format!("pgweir.toml:{}: warning: lane.web.{key}: ", first + 2);
        let found = warnings(&text);
        assert!(found.iter().any(|w| w.starts_with(&start) && w.contains(says)), "{start} in {found:#?}");
    };
    protect("shed_above = 75", "shed_above", "never shed");
    protect("freeze = true", "freeze", "never shed, frozen");
    protect(
        "idle_in_transaction = { reset = \"1m\", action = \"rollback\" }",
        "idle_in_transaction.action",
        "never shed",
    );
    one(
        "[{ application = \"shop*\" }]",
        "[{ statement = \"listen x\" }]\nprotected = true",
        "[{",
        "lane.web.match[1].statement",
        "cannot lead into a protected lane",
    );
    let (watched, _) =
        edited("quota = 10\n", "quota = 10\nprotected = true\nidle_in_transaction = { warn = \"1m\" }\n");
    let (config, _) = checked(&watched).expect("watching a protected lane is allowed");
    let leaks = config.settings.lanes[0].idle_in_transaction.as_ref().expect("it is watched");
    assert_eq!(leaks.action, LeakAction::None);
}

#[test]
fn what_is_to_come_says_so() {
    web("pooling = \"transaction\"", "pooling", "not available yet");
    web("pooling = \"session\"", "pooling", "where pgweir itself authenticates");
}

const FILES: &str = "certificate_file = \"c.pem\"\nkey_file = \"/k.pem\"\n";

#[test]
fn tls_of_those_who_serve_needs_a_certificate_and_its_key() {
    let missing = "6432\"\ntls = \"require\"\n";
    let (text, _) = edited("6432\"\n", missing);
    let found = problems(&text);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].contains("listen[1].certificate_file") && found[1].contains("listen[1].key_file"),
        "{found:?}"
    );
    let (text, _) = edited("6432\"\n", &format!("6432\"\ntls = \"allow\"\n{FILES}"));
    let (config, _) = checked(&text).expect("fine");
    let tls = config.listen[0].tls.as_ref().expect("on");
    assert!(!tls.required && tls.client_ca_file.is_none());
    assert!(tls.certificate_file.ends_with("c.pem") && tls.key_file == std::path::Path::new("/k.pem"));
    let lines = config.lines();
    let line = |key: &str| lines.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
    assert_eq!((line("listen[1].tls"), line("listen[1].key_file")), (Some("allow"), Some("/k.pem")));
    one(
        "127.0.0.1:6432\"\n",
        &format!("unix:/run\"\ntls = \"allow\"\n{FILES}"),
        "tls",
        "listen[1].tls",
        "no TLS",
    );
    section(
        &format!("[admin]\ntls = \"allow\"\n{}", &FILES[..27]),
        "[admin]",
        "admin.key_file",
        "is missing",
    );
}

#[test]
fn what_is_asked_of_postgresql_must_make_sense() {
    let upstream = |keys: &str, line: &str, key: &str, says: &str| {
        one("5432\"\n", &format!("5432\"\n{keys}\n"), line, key, says);
    };
    upstream("tls = \"verify-full\"", "tls", "upstream.tls", "needs a ca_file");
    upstream("tls = \"verify-ca\"", "tls", "upstream.tls", "needs a ca_file");
    upstream("tls = \"allow\"", "tls", "upstream.tls", "is not served");
    upstream("key_file = \"k\"", "key_file", "upstream.key_file", "needs certificate_file");
    upstream("tls_negotiation = \"direct\"", "tls_neg", "upstream.tls_negotiation", "cannot be had");
    for fine in [
        "tls = \"disable\"",
        "tls = \"prefer\"",
        "tls = \"require\"\ntls_negotiation = \"direct\"",
        "tls = \"verify-full\"\nca_file = \"ca.pem\"",
        "certificate_file = \"c\"\nkey_file = \"k\"",
    ] {
        let (text, _) = edited("5432\"\n", &format!("5432\"\n{fine}\n"));
        assert_eq!(problems(&text), Vec::<String>::new(), "{fine}");
    }
    let (text, _) = edited("5432\"\n", "5432\"\nca_file = \"ca.pem\"\n");
    let (_, warnings) = checked(&text).expect("fine");
    assert!(warnings.iter().any(|w| w.to_string().contains("ca_file: has no effect")), "{warnings:?}");
}

#[test]
fn own_authentication_needs_to_know_users() {
    section("[auth]\nmode = \"scram\"", "mode", "auth.mode", "neither users_file nor query");
    section("[auth]\nusers_file = \"u\"", "users_file", "auth.users_file", "belongs to mode = \"scram\"");
    section("[auth]\nquery = \"select $1\"", "query", "auth.query", "belongs to mode = \"scram\"");
    let query = "[auth]\nmode = \"scram\"\nquery = \"select\"";
    section(query, "query", "auth.query", "does not use $1");
    let (text, _) = edited(
        "quota = 5\n",
        "quota = 5\n[auth]\nmode = \"scram\"\nusers_file = \"users.txt\"\nquery = \"select $1\"\n",
    );
    let (config, _) = checked(&text).expect("both may be there");
    let own = config.auth.own.expect("scram");
    assert!(
        own.users_file.is_some_and(|file| file.ends_with("users.txt"))
            && own.query.as_deref() == Some("select $1")
    );
}

#[test]
fn lanes_have_names_of_their_own_and_one_is_the_default() {
    one(
        "name = \"other\"",
        "name = \"web\"",
        "name",
        "lane[2].name",
        "there is another lane \"web\" on line 7",
    );
    one("name = \"web\"", "name = \"a b\"", "name", "lane[1].name", "no name for a lane");
    one("name = \"web\"", "name = \"bypass\"", "name", "lane[1].name", "word of pgweir's own");
    let (two, _) = edited("quota = 10\n", "quota = 10\ndefault = true\n");
    one_at(&two, 14, "lane.other.default", "lane \"web\" is the default already");
    one_at(
        &BASE.replace("default = true\n", "match = [{ user = \"a\" }]\n"),
        7,
        "lane",
        "no lane is the default",
    );
}

#[test]
fn references_lead_somewhere() {
    one("6432\"\n", "6432\"\nlane = \"wep\"\n", "lane", "listen[1].lane", "did you mean `web`?");
    section("[exit]\ncritical_lanes = [\"wbe\"]", "critical", "exit.critical_lanes", "did you mean `web`?");
    let shop = "{ application = \"shop*\" }";
    one(
        shop,
        "{ listener = \"127.0.0.1:6433\" }",
        "{",
        "lane.web.match[1].listener",
        "did you mean `127.0.0.1:6432`?",
    );
    let bound = BASE.replacen("6432\"\n", "6432\"\nlane = \"web\"\n", 1);
    one_at(
        &bound.replace(shop, "{ listener = \"127.0.0.1:6432\" }"),
        11,
        "lane.web.match[1].listener",
        "belongs to lane",
    );
    assert_eq!(problems(&bound.replace("match = [{ application = \"shop*\" }]\n", "")), Vec::<String>::new());
}

#[test]
fn rules_and_lanes_that_nothing_reaches() {
    let after = |first: &str, second: &str, says: &str| {
        let rules = format!("{first},\n{second}");
        one_at(&BASE.replace("{ application = \"shop*\" }", &rules), 11, "lane.web.match[2]", says);
    };
    after("{ user = \"a*\" }", "{ user = \"ab\" }", "lane.web.match[1] on line 10 takes everything");
    after("{ user = \"a\" }", "{ user = \"a\" }", "says the same");
    after("{ address = \"10.0.0.0/8\" }", "{ address = \"10.1.0.0/16\", user = \"x\" }", "takes everything");
    one_at(
        &BASE.replace("match = [{ application = \"shop*\" }]\n", ""),
        7,
        "lane.web",
        "nothing leads to this lane",
    );
    for all in ["{}", "{ application = \"*\" }"] {
        let text = BASE.replace("{ application = \"shop*\" }", all).replace(
            "quota = 5\n",
            "quota = 5\n[[lane]]\nname = \"late\"\nquota = 1\nmatch = [{ user = \"x\" }]\n",
        );
        let found = problems(&text);
        assert_eq!(found.len(), 2, "{found:#?}");
        assert!(found[0].starts_with("pgweir.toml:13: lane.other.default: nobody is left"), "{found:#?}");
        assert!(found[1].starts_with("pgweir.toml:18: lane.late.match[1]: can never decide"), "{found:#?}");
    }
    // Asking for a process, or for another listener, is asking for something.
    for some in [
        "{ process = \"*\" }",
        "{ address = \"0.0.0.0/0\" }",
        "{ statement = \"*\" }",
        "{ replication = false }",
    ] {
        assert_eq!(
            problems(&BASE.replace("{ application = \"shop*\" }", some)),
            Vec::<String>::new(),
            "{some}"
        );
    }
    let applications =
        "[[application]]\nmatch = \"shop*\"\nname = \"a\"\n[[application]]\nmatch = \"shop-1\"\nname = \"b\"";
    section(applications, "match = \"shop-1\"", "application.b.match", "application.a takes everything");
}

#[test]
fn an_application_holds_at_least_its_reserves() {
    let with = |quota: u32| {
        let reserved = BASE.replacen("quota = 10\n", "quota = 10\nreserve = 6\n", 1);
        format!("{reserved}[[application]]\nmatch = \"shop-1\"\nname = \"shop\"\nquota = {quota}\n")
    };
    one_at(
        &with(5),
        19,
        "application.shop.quota",
        "5 is less than the reserves of its lanes, 6 (web 6): it would wait for itself",
    );
    let said = warnings(&with(9));
    assert!(
        said.len() == 1
            && said[0].contains(":19: warning: application.shop.quota: 9 is less than the quotas"),
        "{said:#?}"
    );
    assert_eq!(warnings(&with(10)), Vec::<String>::new());
    let (config, _) = checked(&with(10)).expect("valid");
    assert_eq!(config.settings.applications[0].lanes, vec!["web".into()]);
    assert_eq!(
        problems(
            &with(10)
                .replace("\"shop-1\"", "\"shop\"")
                .replace("name = \"shop\"", "name = \"shop\"\nquote = 1")
        )
        .len(),
        1
    );
}

#[test]
fn reserves_fit_the_budget_once_it_is_known() {
    let text = BASE.replacen("quota = 10\n", "quota = 10\nreserve = 6\n", 1).replacen(
        "quota = 5\n",
        "quota = 5\nreserve = 2\n",
        1,
    );
    let (config, _) = checked(&text).expect("valid");
    assert_eq!(check_against(&config, 14, 3), Vec::new());
    let found = check_against(&config, 13, 3);
    assert_eq!(found.len(), 1);
    let said = found[0].to_string();
    assert!(
        said.starts_with(
            "pgweir.toml:10: lane.web.reserve: the reserves sum to 8 (web 6, other 2), more than the budget 7"
        ),
        "{said}"
    );
    let said = check_against(&config, 6, 3)[0].to_string();
    assert!(said.starts_with("pgweir.toml:3: upstream.headroom: 3 leaves nothing"), "{said}");
}

#[test]
fn the_monitor_is_missed_where_it_is_needed() {
    let blind = BASE.replace("[monitor]\nuser = \"pgweir\"\n", "");
    let said = warnings(&blind);
    assert!(
        said.len() == 1 && said[0].contains("monitor: is missing: usage is unknown and nothing sheds"),
        "{said:#?}"
    );
    let said = warnings(&blind.replacen("quota = 10", "quota = 10\nshed_above = 75", 1));
    assert!(
        said.len() == 1 && said[0].contains(":8: warning: lane.web.shed_above: there is no [monitor]"),
        "{said:#?}"
    );
    one_at(
        &format!("{blind}[bypass]\naction = \"terminate\"\n"),
        14,
        "bypass.action",
        "works through the monitor",
    );
    let slow = |stale: &str| {
        BASE.replace("[monitor]", &format!("[monitor]\ninterval = \"4s\"\nstale_after = \"{stale}\""))
    };
    one_at(&slow("4s"), 7, "monitor.stale_after", "not longer than the interval");
    assert!(warnings(&slow("5s"))[0].contains("less than two intervals"));
}

#[test]
fn a_lane_that_would_wait_for_itself_is_warned_of() {
    let odoo = BASE.replace("shop*", "odoo-*");
    let said = warnings(&odoo);
    assert!(
        said.len() == 1 && said[0].contains(":7: warning: lane.web: its links open a second one"),
        "{said:#?}"
    );
    let notify =
        "[[lane]]\nname = \"notify\"\nquota = 4\nmatch = [{ user = \"odoo*\", database = \"postgres\" }]\n";
    let cared_for = odoo.replacen("[[lane]]\n", &format!("{notify}[[lane]]\n"), 1);
    let said = warnings(&cared_for);
    assert!(said.len() == 1 && said[0].contains(":7: warning: lane.notify.reserve: Odoo opens"), "{said:#?}");
    assert_eq!(warnings(&cared_for.replacen("quota = 4", "quota = 4\nreserve = 2", 1)), Vec::<String>::new());
}

#[test]
fn other_warnings_have_their_lines() {
    let warned = |line: &str, says: &str| {
        let said = warnings(&BASE.replacen("quota = 10\n", &format!("quota = 10\n{line}\n"), 1));
        assert!(
            said.len() == 1
                && said[0].starts_with("pgweir.toml:10: warning: lane.web.")
                && said[0].contains(says),
            "{said:#?}"
        );
    };
    warned("on_shed = \"reject\"", "on_shed: has no effect without shed_above");
    warned("idle_in_transaction = {}", "watches nothing");
    warned(
        "idle_in_transaction = { warn = \"1s\", action = \"rollback\" }",
        "never taken without reset or cap",
    );
    warned("idle_in_transaction = { reset = \"1m\", action = \"none\" }", "reset: has no effect");
    warned(
        "idle_in_transaction = { reset = \"1m\", cap = \"2m\", when = \"always\" }",
        "cap: is never reached",
    );
    let said = warnings(&BASE.replace("shop*", "shop%"));
    assert!(
        said[0].starts_with("pgweir.toml:10: warning: lane.web.match[1].application: `%` stands for itself"),
        "{said:#?}"
    );
    let said = warnings(&format!("{BASE}[admin]\naddress = \"0.0.0.0:6433\"\n"));
    assert!(
        said[0].starts_with("pgweir.toml:16: warning: admin.address: is not a loopback address"),
        "{said:#?}"
    );
}

#[test]
fn people_at_the_admin_port() {
    let two = "[[admin.user]]\nname = \"ann\"\nrole = \"operator\"\n[[admin.user]]\nname = \"eve\"\npassword_file = \"/p/eve\"\n";
    let (config, _) = checked(&format!("{BASE}{two}")).expect("valid");
    let users: Vec<_> =
        config.admin.users.iter().map(|u| (&*u.name, u.generated, u.password_file.to_str())).collect();
    let (own, eve) = (Some("/var/lib/pgweir/admin.password"), Some("/p/eve"));
    assert_eq!(users, [("ann", true, own), ("eve", false, eve)]);
    section(&two.replace("eve\"\np", "ann\"\np"), "name = \"ann\"\np", "admin.user[2].name", "another user");
    section(
        &two.replace("password_file = \"/p/eve\"\n", ""),
        "[[admin.user]]\nname = \"eve\"",
        "admin.user[2].password_file",
        "only one",
    );
    let said = problems(&format!("{BASE}[admin]\nuser = \"ann\"\n{two}"));
    assert!(!said.is_empty() && said.iter().all(|s| s.contains("either user = ")), "{said:#?}");
}

#[test]
fn a_flood_of_mistakes_is_bounded() {
    let flood: String = (0..3_000).map(|n| format!("x{n} = 1\n")).collect();
    let found = problems(&format!("{flood}{BASE}"));
    assert_eq!(found.len(), 1_001);
    assert!(found[1_000].contains("2000 more problems are not shown"), "{:?}", found[1_000]);
}

#[test]
fn names_cannot_break_a_log_line() {
    section("[[application]]\nname = \"a\\nb\"\nmatch = \"b\"", "name", "application[1].name", "is no name");
    section("[admin]\nuser = \"\\u001b[2J\"", "user", "admin.user", "is no name");
}

#[test]
fn everything_is_reported_together_in_the_order_of_the_file() {
    let text = BASE
        .replacen("quota = 10\n", "qouta = 10\npriority = 11\n", 1)
        .replacen("default = true", "default = 1", 1)
        .replacen("user = \"pgweir\"", "interval = \"1 fortnight\"", 1);
    let found = problems(&text);
    let starts = [
        "pgweir.toml:6: monitor.interval: ",
        "pgweir.toml:7: lane.web.quota: is missing",
        "pgweir.toml:9: lane.web.qouta: ",
        "pgweir.toml:10: lane.web.priority: ",
        "pgweir.toml:14: lane.other.default: ",
    ];
    assert!(
        found.iter().zip(starts).all(|(f, s)| f.starts_with(s)) && found.len() == starts.len(),
        "{found:#?}"
    );
}

#[test]
fn broken_syntax_is_told_alone() {
    for broken in
        ["mode = [", "mode = \"observe", "mode = {", "mode =", "[[listen]", "mode \"observe\"", "= 1"]
    {
        let text = format!("{broken}\n{BASE}");
        let found = problems(&text);
        assert!(found.len() == 1 && found[0].contains(". Hint: "), "{broken}: {found:#?}");
        // Whatever a key is blamed for may follow from it: `listen` is not missing where the parser has lost its place.
        let blamed = checked(&text).expect_err("broken").into_iter().find(|problem| !problem.key.is_empty());
        assert_eq!(blamed, None, "{broken}");
    }
    let twice = BASE.replacen("quota = 10\n", "quota = 10\nquota = 10\n", 1);
    let found = problems(&twice);
    assert!(found.len() == 1 && found[0].starts_with("pgweir.toml:10: duplicate key"), "{found:#?}");
    assert!(problems(&format!("mode = [\n{BASE}"))[0].contains("further up is not closed"));
    let flood: String = (0..20).map(|n| format!("x{n} =\n")).collect();
    assert_eq!(problems(&flood).len(), 5);
}
