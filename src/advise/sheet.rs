//! What is told beside the file: the arithmetic, warnings, SQL, and the lines of odoo.conf to change. Pure.

use std::fmt::Write as _;

use super::limits::Limits;
use super::odoo::OdooConf;
use super::place::Place;
use super::plan::{Plan, role};

/// The monitor's role, as the shipped configuration has it.
const MONITOR: &str = "pgweir";

/// SQL for a superuser: the monitor's role, and a time limit that backs pgweir's resets from behind. `verifier` is what PostgreSQL stores
/// of the monitor's password: SCRAM-SHA-256$…, not the password.
pub fn sql(conf: &OdooConf, limits: &Limits, plan: &Plan, verifier: &str) -> String {
    let monitor = if limits.has_monitor == Some(true) {
        format!("alter role {MONITOR} login password '{verifier}';\ngrant pg_monitor to {MONITOR};\n")
    } else {
        format!("create role {MONITOR} login password '{verifier}' in role pg_monitor;\n")
    };
    let minutes = plan.role_timeout_min;
    format!(
        "{monitor}alter role {} set idle_in_transaction_session_timeout = '{minutes}min';\n",
        identifier(role(conf))
    )
}

/// The lines of odoo.conf to change: keys and values.
pub fn odoo_lines(conf: &OdooConf, plan: &Plan, place: &Place) -> Vec<(&'static str, String)> {
    let mut lines = vec![("db_host", place.odoo_host()), ("db_port", place.listen_port.to_string())];
    if conf.db_user.value.is_none() {
        lines.push(("db_user", role(conf).to_owned()));
    }
    if let Some(size) = plan.db_maxconn {
        lines.push(("db_maxconn", size.to_string()));
    }
    lines
}

/// A figure of the file and where it comes from.
fn setting(out: &mut String, name: &str, shown: &str, line: Option<usize>) {
    let from = line.map_or_else(|| "Odoo's default".to_owned(), |line| format!("line {line}"));
    let _ = writeln!(out, "  {name:<22} {shown:<14} {from}");
}

/// Everything, for people: to be read in a minute.
pub fn text(conf: &OdooConf, plan: &Plan, place: &Place) -> String {
    let mut out = String::new();
    let _ =
        writeln!(out, "{}, as Odoo reads it (options on its command line win):", place.odoo_conf.display());
    let gevent = conf.db_maxconn_gevent.value.map_or_else(|| "as db_maxconn".to_owned(), |n| n.to_string());
    let names = if conf.db_name.value.is_empty() { "any".to_owned() } else { conf.db_name.value.join(", ") };
    for (name, shown, line) in [
        ("workers", conf.workers.value.to_string(), conf.workers.line),
        ("max_cron_threads", conf.max_cron_threads.value.to_string(), conf.max_cron_threads.line),
        ("db_maxconn", conf.db_maxconn.value.to_string(), conf.db_maxconn.line),
        ("db_maxconn_gevent", gevent, conf.db_maxconn_gevent.line),
        ("limit_time_real", format!("{} s", conf.limit_time_real.value), conf.limit_time_real.line),
        ("db_user", conf.db_user.value.clone().unwrap_or_else(|| "not set".to_owned()), conf.db_user.line),
        ("db_name", names, conf.db_name.line),
    ] {
        setting(&mut out, name, &shown, line);
    }
    let _ = writeln!(out, "\nConnections of PostgreSQL at {}:", place.upstream);
    for figure in &plan.figures {
        let _ = writeln!(out, "  {:>6}  {:<16} {}", figure.value, figure.name, figure.how);
    }
    let _ = writeln!(out, "\n  {:<12}{:>6}{:>7}{:>9}", "lane", "need", "quota", "reserve");
    for lane in &plan.lanes {
        let _ = writeln!(
            out,
            "  {:<12}{:>6}{:>7}{:>9}  {}",
            lane.lane,
            lane.need,
            lane.quota,
            lane.reserve,
            if lane.apart { "protected: its reserve is set apart" } else { &lane.how }
        );
    }
    let apart: u32 = plan.lanes.iter().filter(|lane| lane.apart).map(|lane| lane.reserve).sum();
    let reserves: u32 = plan.lanes.iter().map(|lane| lane.reserve).sum();
    let _ = writeln!(
        out,
        "  {:<12}{:>6}{:>7}{reserves:>9}  of a budget of {}, {apart} of which are set apart",
        "together", plan.need, plan.application_quota, plan.budget
    );
    if !plan.warnings.is_empty() {
        out.push_str("\nTo be known:\n");
        plan.warnings.iter().for_each(|warning| _ = writeln!(out, "- {warning}."));
    }
    out
}

/// A name as SQL takes it, be it a keyword.
fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
