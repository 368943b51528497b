//! The plan as a commented pgweir.toml: the shipped one with its figures, names and places changed, comments and rules kept. Pure.

use std::fmt::Write as _;

use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, Value, value};

use super::limits::{Limits, plain};
use super::odoo::OdooConf;
use super::place::{self, Place};
use super::plan::{LanePlan, Plan};
use super::template::Template;

/// Column at which the shipped file's comments begin.
const COMMENT_COLUMN: usize = 39;
/// Globs of the shipped file, which a role or name of another kind replaces.
const ODOO: &str = "odoo*";

/// What the shipped file says of an account that only the package makes.
const PACKAGED: &str = "its account must be able to read it: usermod -aG adm pgweir";

/// The file's text.
pub fn toml(template: &Template, conf: &OdooConf, limits: &Limits, plan: &Plan, place: &Place) -> String {
    let mut document = template.document();
    set(
        document.as_table_mut(),
        "mode",
        "observe",
        "decides and records, touches nothing. After a week: pgweir suggest, then \"enforce\"",
    );
    header(&mut document, limits, plan, place);
    listeners(&mut document, place);
    sections(&mut document, conf, place);
    names(&mut document, conf);
    if let Some(application) = tables(&mut document, "application").and_then(|list| list.get_mut(0)) {
        set(application, "quota", i64::from(plan.application_quota), "the sum of the quotas of its lanes");
    }
    for lane in &plan.lanes {
        let found = tables(&mut document, "lane").and_then(|lanes| {
            lanes.iter_mut().find(|table| table.get("name").and_then(Item::as_str) == Some(&lane.lane))
        });
        if let Some(table) = found {
            one_lane(table, lane, plan);
        }
    }
    match &place.directory {
        None => document.to_string(),
        // Tried without the package there is no account of that name.
        Some(_) => document.to_string().replace(PACKAGED, "its account must be able to read it: group adm"),
    }
}

fn one_lane(table: &mut Table, lane: &LanePlan, plan: &Plan) {
    if lane.apart {
        return;
    }
    let need = if lane.need == 0 { lane.how.clone() } else { format!("needs {}: {}", lane.need, lane.how) };
    set(table, "quota", i64::from(lane.quota), &need);
    if lane.reserve > 0 {
        set(table, "reserve", i64::from(lane.reserve), "");
    } else {
        table.remove("reserve");
    }
    if lane.lane == "web" {
        set(table, "wait_timeout", format!("{}s", plan.wait_timeout_s), "");
        if plan.per_database > 0 {
            let why = "no database takes all: half of the quota";
            set(table, "per_database", i64::from(plan.per_database), why);
        }
    }
}

fn header(document: &mut DocumentMut, limits: &Limits, plan: &Plan, place: &Place) {
    let mut text = format!(
        "# Made by pgweir init of {}. Next: pgweir check\n#\n# The arithmetic:\n",
        plain(&place.odoo_conf.display().to_string())
    );
    for figure in &plan.figures {
        let _ = writeln!(text, "#   {:>6}  {:<16} {}", figure.value, figure.name, figure.how);
    }
    if let Some(why) = &limits.assumed {
        let _ = writeln!(text, "# PostgreSQL was not asked: {why}");
    }
    text.push_str(
        "#\n# Quotas say how much a lane may take while others leave it, reserves what nobody else can take.\n\
         # Every key: docs/configuration.md. The figures: docs/capacity.md.\n\n",
    );
    if let Some(mut key) = document.as_table_mut().key_mut("mode") {
        key.leaf_decor_mut().set_prefix(text);
    }
}

fn listeners(document: &mut DocumentMut, place: &Place) {
    let Some(list) = tables(document, "listen") else { return };
    for table in list.iter_mut() {
        let is_socket = table.get("address").and_then(Item::as_str).is_some_and(|a| a.starts_with("unix:"));
        if is_socket {
            let run = place.run();
            let way = format!(
                "the way for clients on this host: {}/.s.PGSQL.{}",
                plain(&run.display().to_string()),
                place.listen_port
            );
            set(table, "address", format!("unix:{}", run.display()), &way);
            if place.listen_port != 6432 {
                keep(table, "port", i64::from(place.listen_port));
            }
        } else {
            let host = &place.listen_host;
            let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            keep(table, "address", format!("{host}:{}", place.listen_port));
        }
    }
}

fn sections(document: &mut DocumentMut, conf: &OdooConf, place: &Place) {
    let mut section = |name: &str, key: &str, text: String| {
        if let Some(table) = document.get_mut(name).and_then(Item::as_table_mut) {
            keep(table, key, text);
        }
    };
    section("admin", "address", format!("127.0.0.1:{}", place.listen_port.saturating_add(1)));
    section("upstream", "address", place.upstream.to_string());
    let tls = place::tls(conf);
    if tls != "prefer" {
        section("upstream", "tls", tls.to_owned());
    }
    section("monitor", "password_file", "monitor.password".to_owned());
    if let Some(directory) = &place.directory {
        section("state", "directory", directory.join("state").display().to_string());
    }
}

/// Rules for `odoo*` become rules for this Odoo's role and name.
fn names(document: &mut DocumentMut, conf: &OdooConf) {
    let other = |name: Option<String>| name.filter(|name| !name.starts_with("odoo"));
    let user = other(conf.db_user.value.clone());
    let application = other(conf.db_app_name.value.as_ref().map(|name| name.replace("{pid}", "*")));
    if let (Some(name), Some(list)) = (&application, tables(document, "application")) {
        list.iter_mut().for_each(|table| keep(table, "match", name.clone()));
    }
    let Some(lanes) = tables(document, "lane") else { return };
    let rules =
        lanes.iter_mut().filter_map(|lane| lane.get_mut("match")?.as_array_mut()).flat_map(|m| m.iter_mut());
    for rule in rules.filter_map(Value::as_inline_table_mut) {
        for (key, name) in [("user", &user), ("application", &application)] {
            if let (Some(name), Some(found)) = (name, rule.get_mut(key))
                && found.as_str() == Some(ODOO)
            {
                replace(found, Value::from(name.clone()));
            }
        }
    }
}

fn tables<'a>(document: &'a mut DocumentMut, name: &str) -> Option<&'a mut ArrayOfTables> {
    document.get_mut(name)?.as_array_of_tables_mut()
}

/// Sets a key, and the comment behind it.
fn set(table: &mut Table, key: &str, new: impl Into<Value>, comment: &str) {
    let mut new: Value = new.into();
    let width = key.len() + 3 + new.to_string().trim().len();
    let suffix = if comment.is_empty() {
        String::new()
    } else {
        format!(
            "{:pad$}# {}",
            "",
            comment.replace('\n', " "),
            pad = COMMENT_COLUMN.saturating_sub(width).max(1)
        )
    };
    new.decor_mut().set_prefix(" ");
    new.decor_mut().set_suffix(suffix);
    table.insert(key, value(new));
}

/// Sets a key; the comment behind it stays.
fn keep(table: &mut Table, key: &str, new: impl Into<Value>) {
    let decor = table.get(key).and_then(Item::as_value).map(Value::decor);
    let suffix = decor.and_then(|decor| decor.suffix()?.as_str()).unwrap_or_default();
    let comment = suffix.trim().strip_prefix('#').unwrap_or_default().trim().to_owned();
    set(table, key, new, &comment);
}

fn replace(found: &mut Value, mut new: Value) {
    *new.decor_mut() = found.decor().clone();
    *found = new;
}
