//! `pgweir init`'s advice: plans for Odoos that differ, and files that pass the real checker.

#![allow(clippy::panic, reason = "tests say what they found")]

use std::path::{Path, PathBuf};

use pgweir::advise::limits::{Connected, Limits};
use pgweir::advise::odoo::OdooConf;
use pgweir::advise::place::Place;
use pgweir::advise::place::Upstream;
use pgweir::advise::plan::{HEADROOM, Plan, plan};
use pgweir::advise::template::{SHIPPED, Template};
use pgweir::advise::warning::Warning;
use pgweir::advise::{render, sheet};
use pgweir::config::settings::Config;
use pgweir::config::{check, check_against};
use pgweir::lanes::settings::LaneSettings;
use proptest::prelude::*;

const VERIFIER: &str = "SCRAM-SHA-256$4096:c2FsdA==$a:b";

fn conf(name: &str) -> OdooConf {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/odoo-conf").join(name);
    let text = std::fs::read_to_string(file).expect("a fixture");
    OdooConf::parse(&text).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

fn given(text: &str) -> OdooConf {
    OdooConf::parse(&format!("[options]\n{text}")).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

fn limits(max_connections: u32) -> Limits {
    Limits { assumed: None, max_connections, has_monitor: Some(false), ..Limits::assumed("") }
}

fn place() -> Place {
    Place {
        odoo_conf: PathBuf::from("/etc/odoo/odoo.conf"),
        upstream: Upstream::Tcp { host: "127.0.0.1".into(), port: 5432 },
        listen_host: "127.0.0.1".into(),
        listen_port: 6432,
        directory: None,
    }
}

fn planned(conf: &OdooConf, limits: &Limits) -> Plan {
    let template = Template::shipped().expect("it parses");
    plan(conf, limits, &template).unwrap_or_else(|error| panic!("{error}"))
}

fn file(conf: &OdooConf, limits: &Limits, place: &Place) -> String {
    let template = Template::shipped().expect("it parses");
    render::toml(&template, conf, limits, &planned(conf, limits), place)
}

/// The file through the real checker, as against the limits it was made for.
fn checked(conf: &OdooConf, limits: &Limits, place: &Place) -> Config {
    let text = file(conf, limits, place);
    let (config, warnings) =
        check(&text, Path::new("pgweir.toml")).unwrap_or_else(|problems| panic!("{problems:#?}\n{text}"));
    assert_eq!(warnings, Vec::new(), "{text}");
    let reserved = limits.superuser_reserved + limits.reserved;
    assert_eq!(check_against(&config, limits.max_connections, reserved), Vec::new(), "{text}");
    assert!(config.settings.limits.observe);
    config
}

/// `lane quota/reserve` of all lanes that are part of the budget.
fn shown(plan: &Plan) -> String {
    let lanes = plan.lanes.iter().filter(|lane| !lane.apart);
    lanes.map(|lane| format!("{} {}/{}", lane.lane, lane.quota, lane.reserve)).collect::<Vec<_>>().join(" ")
}

fn kinds(plan: &Plan) -> Vec<String> {
    let kind = |warning| serde_json::to_value(warning).ok()?.get("kind")?.as_str().map(str::to_owned);
    plan.warnings.iter().filter_map(|warning: &Warning| kind(warning)).collect()
}

fn lane<'a>(config: &'a Config, name: &str) -> &'a LaneSettings {
    config.settings.lanes.iter().find(|lane| &*lane.name == name).unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn one_host_with_four_workers() {
    let plan = planned(&conf("one-host.conf"), &limits(100));
    assert_eq!(
        shown(&plan),
        "live 8/2 cron 8/0 notify 4/2 queue 4/0 reports 2/0 imports 2/0 other 6/0 web 58/4"
    );
    assert_eq!((plan.budget, plan.worst, plan.need, plan.application_quota), (94, 448, 24, 92));
    assert_eq!((plan.per_database, plan.wait_timeout_s, plan.role_timeout_min), (0, 30, 15));
    assert_eq!(kinds(&plan), ["worst_exceeds"]);
    assert_eq!(plan.db_maxconn, Some(8));
    let config = checked(&conf("one-host.conf"), &limits(100), &place());
    assert_eq!(config.settings.applications[0].quota, Some(92));
    let web = lane(&config, "web");
    assert_eq!((web.quota, web.reserve, web.per_database), (58, 4, 0));
}

#[test]
fn thirty_two_workers_on_a_hundred_connections() {
    let conf = conf("many-workers.conf");
    let plan = planned(&conf, &limits(100));
    assert_eq!(
        shown(&plan),
        "live 4/2 cron 16/0 notify 10/2 queue 14/0 reports 1/0 imports 1/0 other 2/0 web 44/32"
    );
    assert_eq!((plan.worst, plan.need, plan.fits_with), (2368, 110, 120));
    // A cron job of an hour holds its row by a transaction that idles for as long.
    assert_eq!(plan.role_timeout_min, 90);
    assert_eq!(kinds(&plan), ["worst_exceeds", "web_below_need", "elsewhere"]);
    let said = plan.warnings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert!(
        said.contains("could open 2368 connections where 94 fit") && said.contains("bounds it to 296"),
        "{said}"
    );
    assert!(said.contains("max_connections = 120"), "{said}");
    assert_eq!(kinds(&planned(&conf, &limits(plan.fits_with))), ["worst_exceeds", "elsewhere"], "all fits");
    let place = Place { upstream: place().upstream_of(&conf).unwrap_or_else(|p| panic!("{p}")), ..place() };
    let config = checked(&conf, &limits(100), &place);
    assert_eq!(config.upstream.endpoints[0].to_string(), "db.example:5433");
    assert_eq!(config.upstream.tls.word(), "require");
    let users: Vec<_> =
        config.settings.lanes.iter().flat_map(|l| &l.rules).filter_map(|r| r.user.as_ref()).collect();
    assert!(users.iter().all(|glob| ["postgres", "erp"].contains(&&*glob.text)), "{users:?}");
}

#[test]
fn many_tenants() {
    let conf = conf("multi-tenant.conf");
    let plan = planned(&conf, &limits(100));
    assert_eq!(
        shown(&plan),
        "live 8/2 cron 4/0 notify 7/2 queue 4/0 reports 3/0 imports 2/0 other 6/0 web 58/12"
    );
    assert_eq!((plan.worst, plan.need, plan.per_database), (240, 41, 29));
    assert_eq!(kinds(&plan), ["worst_exceeds", "many_databases"]);
    assert_eq!(lane(&checked(&conf, &limits(100), &place()), "web").per_database, 29);
    let known = Limits { databases: Some(40), ..limits(100) };
    let said = planned(&conf, &known).warnings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert!(said.contains("40 databases: each worker keeps"), "{said}");
}

#[test]
fn one_process_for_everything() {
    let conf = conf("threaded.conf");
    let plan = planned(&conf, &limits(100));
    assert_eq!(
        shown(&plan),
        "live 4/1 cron 4/0 notify 4/2 queue 4/0 reports 2/0 imports 2/0 other 6/0 web 64/10"
    );
    assert_eq!((plan.worst, plan.need, plan.db_maxconn), (64, 30, None));
    assert_eq!(kinds(&plan), ["threaded", "no_password"]);
    checked(&conf, &limits(100), &place());
    assert_eq!(sheet::odoo_lines(&conf, &plan, &place()).len(), 2);
}

#[test]
fn a_broken_file_is_no_plan_but_a_list_of_lines() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/odoo-conf/broken.conf");
    let text = std::fs::read_to_string(file).expect("a fixture");
    let said = |text: &str| {
        let problems = OdooConf::parse(text).err().unwrap_or_default();
        problems.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let lines = |said: &[String]| -> Vec<String> {
        said.iter().filter_map(|line| line.split(':').nth(1)).map(str::to_owned).collect()
    };
    let found = said(&text);
    assert_eq!(lines(&found), ["5", "9"], "{found:?}");
    // What is wrong with the values is told once the lines can be read.
    let mended = text.replace("db_password the", "db_password = the").replace("db_maxconn = 32\n", "");
    let found = said(&mended);
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(
        found.iter().any(|line| line.starts_with(":4: is indented, so it continues db_host")),
        "{found:?}"
    );
    assert!(found.iter().any(|line| line.contains("comments need a line of their own")), "{found:?}");
    assert!(found.iter().all(|line| !line.contains("the-odoo-password")), "{found:?}");
}

#[test]
fn more_workers_than_connections_and_too_little_for_cron() {
    let conf = given("workers = 200\nmax_cron_threads = 10\ndb_user = odoo\ndb_password = x\n");
    let plan = planned(&conf, &limits(100));
    assert_eq!(kinds(&plan), ["worst_exceeds", "more_workers_than_connections", "cron_below_need"]);
    let cron = plan.lane("cron").expect("cron");
    assert_eq!((cron.quota, cron.need), (4, 40));
    checked(&conf, &limits(100), &place());
    let small = given("workers = 2\ndb_maxconn = 2\ndb_user = odoo\ndb_password = x\n");
    assert_eq!(kinds(&planned(&small, &limits(100))), ["cron_pool_too_small", "gevent_pool_too_small"]);
    checked(&small, &limits(100), &place());
}

#[test]
fn where_nothing_fits_there_is_no_file() {
    let template = Template::shipped().expect("it parses");
    for (options, least) in [("", 19), ("workers = 1\n", 21)] {
        let conf = given(options);
        let error = plan(&conf, &limits(20), &template).expect_err("twenty are too few").to_string();
        assert!(error.contains("17 usable connections") && error.contains("14 are left"), "{error}");
        assert!(error.contains(&format!("need {least} to work")), "{error}");
        assert!(plan(&conf, &limits(least + 5), &template).is_err(), "one less");
        checked(&conf, &limits(least + 6), &place());
    }
}

#[test]
fn others_who_are_connected_are_not_given_away() {
    let row = |user: &str, count| Connected { user: user.into(), application: "bi-1".into(), count };
    let limits =
        Limits { connected: vec![row("odoo", 30), row("bi", 28), row("app\nx = 1\u{7}", 2)], ..limits(100) };
    let plan = planned(&given("workers = 4\ndb_user = odoo\ndb_password = x\n"), &limits);
    assert_eq!(plan.budget, 100 - 3 - HEADROOM - 30);
    assert_eq!(kinds(&plan), ["worst_exceeds", "others"]);
    let figure = plan.figures.iter().find(|figure| figure.name == "others").expect("a line of its own");
    // A name cannot leave the comment it stands in.
    assert!(figure.how.ends_with("28 bi bi-1, 2 app x = 1  bi-1"), "{}", figure.how);
    checked(&given("workers = 4\n"), &limits, &place());
    checked(&given("workers = 4\n"), &Limits::assumed("FATAL\n[admin]\naddress = 1\u{1b}[2J"), &place());
}

#[test]
fn the_monitor_of_a_pgweir_that_runs_is_named_and_no_other() {
    let row = |user: &str, application: &str, count| Connected {
        user: user.into(),
        application: application.into(),
        count,
    };
    let there = vec![row("pgweir", "pgweir monitor", 1), row("odoo", "odoo-1", 3), row("bi", "", 2)];
    let limits = Limits { connected: there, has_monitor: Some(true), ..limits(100) };
    let conf = given("workers = 4\ndb_user = odoo\ndb_password = x\n");
    let plan = planned(&conf, &limits);
    assert_eq!((plan.budget, limits.monitors()), (100 - 3 - HEADROOM - 2, 1));
    let figure = plan.figures.iter().find(|figure| figure.name == "others").expect("a line of its own");
    assert_eq!((figure.value, figure.how.as_str()), (2, "connected now as other users: 2 bi"));
    assert_eq!(kinds(&plan), ["worst_exceeds", "runs_already"]);
    let text = plan.warnings[1].to_string();
    assert!(text.contains("its monitor is connected (1, not counted among the others)"), "{text}");
}

#[test]
fn comments_name_the_places_that_were_chosen() {
    let place = Place { directory: Some("/srv/weir".into()), listen_port: 7000, ..place() };
    let conf = given("workers = 4\n");
    let text = file(&conf, &limits(100), &place);
    assert!(text.contains("# the way for clients on this host: /srv/weir/run/.s.PGSQL.7000\n"), "{text}");
    for packaged in ["/run/pgweir", "/var/lib/pgweir", "/etc/pgweir", "usermod"] {
        assert!(!text.contains(packaged), "{packaged} is not there: {text}");
    }
    let text = file(&conf, &limits(100), &self::place());
    assert!(text.contains("# the way for clients on this host: /run/pgweir/.s.PGSQL.6432\n"), "{text}");
    assert!(text.contains("usermod -aG adm pgweir"), "{text}");
}

#[test]
fn what_backs_pgweir_from_behind_comes_after_all_it_does_itself() {
    for (options, minutes) in
        [("", 15), ("limit_time_real_cron = 0\n", 360), ("limit_time_real = 3600\n", 90)]
    {
        let conf = given(options);
        let plan = planned(&conf, &limits(100));
        assert_eq!(plan.role_timeout_min, minutes, "{options}");
        let config = checked(&conf, &limits(100), &place());
        let policies = config.settings.lanes.iter().filter_map(|lane| lane.idle_in_transaction.as_ref());
        let last = policies.flat_map(|policy| [policy.reset, policy.cap]).flatten().max().expect("policies");
        assert!(last.as_secs() < u64::from(minutes) * 60, "{last:?}");
    }
}

#[test]
fn sql_makes_the_shipped_files_monitor_or_mends_one_that_exists() {
    let conf = given("db_user = Odoo \"x\n");
    let plan = planned(&conf, &limits(100));
    let sql = sheet::sql(&conf, &limits(100), &plan, VERIFIER);
    assert!(
        sql.starts_with(&format!("create role pgweir login password '{VERIFIER}' in role pg_monitor;\n")),
        "{sql}"
    );
    assert!(SHIPPED.contains("create role pgweir login password '…' in role pg_monitor"), "one truth");
    assert!(
        sql.ends_with("alter role \"Odoo \"\"x\" set idle_in_transaction_session_timeout = '15min';\n"),
        "{sql}"
    );
    let there = Limits { has_monitor: Some(true), ..limits(100) };
    let sql = sheet::sql(&conf, &there, &plan, VERIFIER);
    assert!(sql.contains("alter role pgweir login") && sql.contains("grant pg_monitor to pgweir;"), "{sql}");
}

#[test]
fn places_and_names_of_other_kinds_reach_the_file() {
    let conf = given("db_host = db.example\ndb_user = erp\ndb_app_name = shop-{pid}\nworkers = 2\n");
    let mut place = Place {
        listen_host: "10.0.0.5".into(),
        listen_port: 7000,
        directory: Some("/srv/weir".into()),
        ..place()
    };
    place.upstream = place.upstream_of(&conf).unwrap_or_else(|problem| panic!("{problem}"));
    let config = checked(&conf, &limits(100), &place);
    let listen: Vec<_> = config.listen.iter().map(|listen| listen.endpoint.to_string()).collect();
    assert_eq!(listen, ["unix:/srv/weir/run:7000", "10.0.0.5:7000"]);
    assert_eq!(config.admin.endpoint.to_string(), "127.0.0.1:7001");
    assert_eq!(config.state_directory, Path::new("/srv/weir/state"));
    assert_eq!(&*config.settings.applications[0].pattern.text, "shop-*");
    let web = lane(&config, "web").rules.iter().filter_map(|rule| rule.application.as_ref());
    assert_eq!(web.map(|glob| &*glob.text).collect::<Vec<_>>(), ["shop-*"]);
    let plan = planned(&conf, &limits(100));
    assert_eq!(
        sheet::odoo_lines(&conf, &plan, &place)[..2],
        [("db_host", "10.0.0.5".into()), ("db_port", "7000".into())]
    );
}

#[test]
fn an_odoo_conf_that_leads_to_pgweir_is_noticed() {
    for options in [
        "db_port = 6432\n",
        "db_host = /run/pgweir\ndb_port = 6432\n",
        "db_host = 127.0.0.1\ndb_port = 6432\n",
    ] {
        let problem = place().upstream_of(&given(options)).expect_err(options);
        assert!(problem.message.contains("lead to a pgweir already") && problem.line.is_some());
    }
    let elsewhere = place().upstream_of(&given("db_host = db.example\ndb_port = 6432\n"));
    assert_eq!(elsewhere.map(|upstream| upstream.to_string()), Ok("db.example:6432".into()));
    let socket = place().upstream_of(&given("db_host = /var/run/postgresql\n"));
    assert_eq!(socket.map(|upstream| upstream.to_string()), Ok("127.0.0.1:5432".into()));
}

#[test]
fn tls_is_not_less_than_what_odoo_has() {
    for (word, tls, told) in [
        ("verify-full", "require", true),
        ("require", "require", false),
        ("allow", "prefer", false),
        ("disable", "disable", false),
    ] {
        let conf = given(&format!("db_host = db\ndb_sslmode = {word}\n"));
        let place = Place { upstream: Upstream::Tcp { host: "db".into(), port: 5432 }, ..place() };
        assert_eq!(checked(&conf, &limits(100), &place).upstream.tls.word(), tls, "{word}");
        assert_eq!(kinds(&planned(&conf, &limits(100))).contains(&"verify".to_owned()), told, "{word}");
    }
}

#[test]
fn comments_of_the_shipped_file_are_kept_and_its_figures_explained() {
    let text = file(&conf("one-host.conf"), &limits(100), &place());
    assert!(text.starts_with("# Made by pgweir init of /etc/odoo/odoo.conf."), "{text}");
    assert!(text.contains("448  worst") && text.contains("# needs 8: 4 HTTP workers × 2"), "{text}");
    assert!(text.contains("# held, not refused: a refused cron worker exits"), "{text}");
    assert!(text.contains("password_file = \"monitor.password\""), "{text}");
    let rules = |text: &str| {
        let lines = text.lines().filter(|line| line.contains("process =") || line.contains("statement ="));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(rules(&text), rules(SHIPPED));
}

#[test]
fn everything_is_told_in_a_minute_and_no_secret_with_it() {
    for name in ["one-host.conf", "many-workers.conf", "multi-tenant.conf", "threaded.conf"] {
        let (conf, limits) = (conf(name), limits(100));
        let text = sheet::text(&conf, &planned(&conf, &limits), &place());
        assert!(text.lines().count() < 50, "{text}");
        assert!(!text.contains("the-odoo-password") && !text.contains("the-master-password"), "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever an Odoo and a server are like: there is a file that passes, or none and a reason.
    #[test]
    fn every_plan_fits_and_passes(
        workers in 0_u32..300,
        crons in 0_u32..40,
        maxconn in 0_u32..200,
        jobs in 0_u32..40,
        max_connections in 0_u32..600,
        others in 0_u32..60,
        many in any::<bool>(),
    ) {
        let filter = if many { "dbfilter = ^%d$\n" } else { "" };
        let queue = if jobs > 0 { format!("[queue_job]\nchannels = root:{jobs}\n") } else { String::new() };
        let conf = given(&format!(
            "workers = {workers}\nmax_cron_threads = {crons}\ndb_maxconn = {maxconn}\n{filter}{queue}"
        ));
        let row = Connected { user: "bi".into(), application: String::new(), count: others };
        let limits = Limits { connected: vec![row], ..limits(max_connections) };
        let template = Template::shipped().expect("it parses");
        match plan(&conf, &limits, &template) {
            Ok(plan) => {
                let set_apart: u32 = plan.lanes.iter().filter(|lane| lane.apart).map(|lane| lane.reserve).sum();
                prop_assert!(plan.application_quota + set_apart <= plan.budget, "{plan:?}");
                prop_assert!(plan.lanes.iter().all(|lane| lane.reserve <= lane.quota && lane.quota > 0));
                checked(&conf, &limits, &place());
            }
            // What every lane needs at least, all of them asked for, is 23; 3 are headroom, 3 are PostgreSQL's.
            Err(_) => prop_assert!(max_connections.saturating_sub(others) < 29),
        }
    }
}
