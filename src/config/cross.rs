//! What no table can know alone: references, order, sums, and configurations that would wait for themselves.

use std::collections::HashMap;
use std::sync::Arc;

use super::checked::{Draft, same_place};
use super::glob::matches;
use super::raw::{Report, suggest};
use super::reach::{lanes_of, rule_covers};
use super::settings::Ask;
use super::values::clip;
use crate::lanes::settings::{Glob, LaneSettings, Rule};

/// Rules of all lanes at most: each is compared with those before it.
const RULES_MAX: usize = 2000;

/// Checks everything that spans tables, and fills in which lanes an application can come into.
pub(super) fn check(report: &mut Report<'_>, draft: &mut Draft) {
    addresses(report, draft);
    lane_references(report, draft);
    default_lane(report, draft);
    reachability(report, draft);
    applications(report, draft);
    nested_need(report, draft);
    pooling(report, draft);
    monitor(report, draft);
}

fn addresses(report: &mut Report<'_>, draft: &Draft) {
    if !draft.listeners_complete {
        return;
    }
    let config = &draft.config;
    let mut seen = HashMap::new();
    for (at, listen) in config.listen.iter().enumerate() {
        let key = format!("listen[{}].address", at + 1);
        if let Some(other) = seen.insert(listen.endpoint.clone(), key.clone()) {
            let text = format!("{} is the address of {other} too", listen.text);
            report.problem_at(&key, text, "give each listener an address of its own");
        }
        let own = "is pgweir's own: it would connect to itself";
        if config.upstream.endpoints.iter().any(|upstream| same_place(&listen.endpoint, upstream)) {
            report.problem_at("upstream.address", own, "write where PostgreSQL listens");
        } else if let Some(monitor) = &config.monitor
            && same_place(&listen.endpoint, &monitor.endpoint)
        {
            report.problem_at("monitor.address", own, "write where PostgreSQL listens, or leave the key out");
        }
        if same_place(&listen.endpoint, &config.admin.endpoint) {
            let text = format!("{} is the address of {key} too", config.admin.endpoint);
            report.problem_at("admin.address", text, "give the admin port an address of its own");
        }
    }
}

fn lane_references(report: &mut Report<'_>, draft: &Draft) {
    let names: Vec<&str> = draft.lane_settings().iter().map(|l| &*l.name).collect();
    let listeners = draft.config.listen.iter().enumerate();
    let listens =
        listeners.filter_map(|(at, l)| l.lane.as_ref().map(|n| (format!("listen[{}].lane", at + 1), n)));
    let critical = draft.config.exit.critical_lanes.iter().map(|n| ("exit.critical_lanes".to_owned(), n));
    for (key, name) in listens.chain(critical) {
        if !names.contains(&&**name) {
            report.problem_at(&key, format!("there is no lane {:?}", clip(name)), suggest(name, &names));
        }
    }
    if !draft.listeners_complete {
        return;
    }
    let texts: Vec<&str> = draft.config.listen.iter().map(|l| &*l.text).collect();
    for (lane, note) in draft.lane_settings().iter().zip(&draft.lanes) {
        for (rule, key) in lane.rules.iter().zip(&note.rules) {
            let Some(listener) = &rule.listener else { continue };
            let key = format!("{key}.listener");
            match draft.config.listen.iter().find(|l| l.text == *listener) {
                None => {
                    let text = format!("there is no listener {:?}", clip(listener));
                    report.problem_at(&key, text, suggest(listener, &texts));
                }
                Some(listen) => {
                    if let Some(owner) = &listen.lane {
                        let text = format!("everything from {listener} belongs to lane {owner:?} already");
                        report.problem_at(&key, text, "remove the rule, or the listener's `lane`");
                    }
                }
            }
        }
    }
}

fn default_lane(report: &mut Report<'_>, draft: &Draft) {
    let hint = "exactly one [[lane]] takes whom no rule matches: give it default = true";
    let mut defaults = draft.lane_settings().iter().zip(&draft.lanes).filter(|(lane, _)| lane.default);
    match defaults.next() {
        None if draft.lane_settings().is_empty() => {
            report.problem_at("lane", "there is no lane", "add [[lane]] with name, quota and default = true");
        }
        None if draft.lanes.iter().all(|note| note.default_read) => {
            report.problem_at("lane", "no lane is the default", hint);
        }
        None => {}
        Some((first, _)) => {
            let first = first.name.clone();
            for (_, note) in defaults {
                let text = format!("lane {first:?} is the default already");
                report.problem_at(&format!("{}.default", note.key), text, hint);
            }
        }
    }
}

struct Seen<'a> {
    rule: &'a Rule,
    key: &'a str,
}

fn reachability(report: &mut Report<'_>, draft: &Draft) {
    let total: usize = draft.lane_settings().iter().map(|l| l.rules.len()).sum();
    if total > RULES_MAX {
        report.problem_at("lane", format!("there are more than {RULES_MAX} rules"), "use wider globs");
        return;
    }
    let mut seen: Vec<Seen<'_>> = Vec::with_capacity(total);
    for (lane, note) in draft.lane_settings().iter().zip(&draft.lanes) {
        for (rule, key) in lane.rules.iter().zip(&note.rules) {
            if let Some(earlier) = seen.iter().find(|s| rule_covers(s.rule, rule)) {
                let line = report.place(earlier.key).map(|l| format!(" on line {l}")).unwrap_or_default();
                let text = if rule_covers(rule, earlier.rule) {
                    format!("can never decide: {}{line} says the same", earlier.key)
                } else {
                    format!("can never decide: {}{line} takes everything it would match", earlier.key)
                };
                let hint = "lanes and rules are tried in file order: move it up, or remove it";
                report.problem_at(key, text, hint);
            }
            seen.push(Seen { rule, key });
        }
        if note.complete && note.default_read && lane.rules.is_empty() && !lane.default && !draft.bound(lane)
        {
            let text = "nothing leads to this lane: no rule, no listener, and it is not the default";
            report.problem_at(&note.key, text, "add match = [{ … }], or remove the lane");
        }
        if lane.default
            && let Some(all) = catch_all(draft, lane)
        {
            let text = format!("nobody is left for the default lane: {all} takes everybody");
            report.problem_at(
                &format!("{}.default", note.key),
                text,
                "narrow that rule, or make its lane the default",
            );
        }
    }
}

/// Key of a rule of another lane that matches every link.
fn catch_all<'a>(draft: &'a Draft, default: &LaneSettings) -> Option<&'a str> {
    let everybody = Rule::default();
    draft
        .lane_settings()
        .iter()
        .zip(&draft.lanes)
        .filter(|(lane, _)| lane.name != default.name)
        .flat_map(|(lane, note)| lane.rules.iter().zip(&note.rules))
        .find(|(rule, _)| rule_covers(rule, &everybody))
        .map(|(_, key)| key.as_str())
}

fn applications(report: &mut Report<'_>, draft: &mut Draft) {
    let lanes = &draft.config.settings.lanes;
    let mut reached: Vec<Vec<Arc<str>>> = Vec::new();
    let mut seen: Vec<(&Glob, &str)> = Vec::new();
    for (application, key) in draft.config.settings.applications.iter().zip(&draft.applications) {
        if let Some((_, other)) =
            seen.iter().find(|(glob, _)| super::glob::covers(glob, &application.pattern))
        {
            let text = format!("can never decide: {other} takes everything it would match");
            report.problem_at(
                &format!("{key}.match"),
                text,
                "applications are tried in file order: move it up",
            );
        }
        seen.push((&application.pattern, key));
        let own: Vec<usize> = lanes_of(application, lanes, |lane| draft.bound(lane));
        let quota_key = format!("{key}.quota");
        if let Some(quota) = application.quota
            && own.iter().all(|at| draft.lanes[*at].counted)
        {
            application_sums(report, &quota_key, quota, own.iter().map(|at| &lanes[*at]).collect());
        }
        reached.push(own.iter().map(|at| lanes[*at].name.clone()).collect());
    }
    for (application, lanes) in draft.config.settings.applications.iter_mut().zip(reached) {
        application.lanes = lanes;
    }
}

fn application_sums(report: &mut Report<'_>, key: &str, quota: u32, lanes: Vec<&LaneSettings>) {
    let listed = |figure: fn(&LaneSettings) -> u32, lanes: &[&LaneSettings]| {
        let parts: Vec<String> =
            lanes.iter().filter(|l| figure(l) > 0).map(|l| format!("{} {}", l.name, figure(l))).collect();
        (lanes.iter().map(|l| u64::from(figure(l))).sum::<u64>(), parts.join(", "))
    };
    let (reserves, parts) = listed(|l| l.reserve, &lanes);
    if reserves > u64::from(quota) {
        let text = format!(
            "{quota} is less than the reserves of its lanes, {reserves} ({parts}): it would wait for itself"
        );
        report.problem_at(key, text, "raise the quota, or lower the reserves");
        return;
    }
    // Administrators are not what an application's quota is measured by.
    let unprotected: Vec<&LaneSettings> = lanes.into_iter().filter(|l| !l.protected).collect();
    let (quotas, parts) = listed(|l| l.quota, &unprotected);
    if quotas > u64::from(quota) {
        let text = format!("{quota} is less than the quotas of its lanes, {quotas} ({parts})");
        report.warning_at(key, text, "its lanes cannot all be full at once; raise it if they should");
    }
}

/// Odoo opens a second connection, to `postgres`, while it holds the first: both in one lane, a full lane waits for itself.
fn nested_need(report: &mut Report<'_>, draft: &Draft) {
    let lanes = draft.lane_settings();
    let cared_for = lanes.iter().flat_map(|l| &l.rules).any(|rule| {
        rule.database.as_ref().is_some_and(|glob| &*glob.text != "*" && matches(glob, "postgres"))
    });
    for (at, lane) in lanes.iter().enumerate().filter(|(_, lane)| !lane.protected) {
        for rule in lane.rules.iter().filter(|rule| is_odoo(rule)) {
            let Some(second) = lane_of_second_link(rule, lanes) else { continue };
            let (key, text) = if second == at && !cared_for {
                (
                    draft.lanes[at].key.clone(),
                    "its links open a second one, to `postgres`, in the same lane: when it is full it waits for itself",
                )
            } else if second != at && cared_for && lanes[second].reserve == 0 {
                (
                    format!("{}.reserve", draft.lanes[second].key),
                    "Odoo opens links of this lane while it holds others, and nothing is kept free for them",
                )
            } else {
                continue;
            };
            let hint = "put a lane with match = [{ user = \"odoo*\", database = \"postgres\" }] and a reserve of 2 above it";
            let hint = if second == at { hint } else { "write reserve = 2" };
            report.warning_at(&key, text, hint);
            return;
        }
    }
}

/// A pooled connection is anybody's who could log in as its user: that is pgweir's to judge.
fn pooling(report: &mut Report<'_>, draft: &Draft) {
    if draft.config.auth.own.is_some() {
        return;
    }
    for (_, note) in draft.lane_settings().iter().zip(&draft.lanes).filter(|(lane, _)| lane.pooling.is_some())
    {
        report.problem_at(
            &format!("{}.pooling", note.key),
            "is only possible where pgweir itself authenticates clients",
            "write [auth] mode = \"scram\" with a users_file or a query, or pooling = \"none\"",
        );
    }
}

fn is_odoo(rule: &Rule) -> bool {
    let names = [&rule.application, &rule.user, &rule.process];
    rule.statement.is_none()
        && rule.replication != Some(true)
        && rule.database.as_ref().is_none_or(|glob| !matches(glob, "postgres"))
        && names.into_iter().flatten().any(|glob| glob.text.to_lowercase().contains("odoo"))
}

/// The lane of a link like those of `rule`, but to the database `postgres`.
fn lane_of_second_link(rule: &Rule, lanes: &[LaneSettings]) -> Option<usize> {
    let example = |glob: &Option<Glob>, absent: &str| {
        glob.as_ref().map_or_else(|| absent.to_owned(), |glob| glob.text.replace(['*', '?'], "1"))
    };
    let application = example(&rule.application, "odoo-1");
    let user = example(&rule.user, "odoo");
    let process = example(&rule.process, "");
    let fits = |glob: &Option<Glob>, text: &str| glob.as_ref().is_none_or(|glob| matches(glob, text));
    let found = lanes.iter().position(|lane| {
        lane.rules.iter().any(|r| {
            fits(&r.application, &application)
                && fits(&r.user, &user)
                && fits(&r.database, "postgres")
                && (r.process.is_none() || (!process.is_empty() && fits(&r.process, &process)))
                && (r.address.is_none() || r.address == rule.address)
                && (r.listener.is_none() || r.listener == rule.listener)
                && r.replication != Some(true)
                && r.statement.is_none()
        })
    });
    found.or_else(|| lanes.iter().position(|lane| lane.default))
}

fn monitor(report: &mut Report<'_>, draft: &Draft) {
    if draft.config.monitor.is_some() {
        return;
    }
    let mut shedding = draft.lane_settings().iter().zip(&draft.lanes).filter(|(l, _)| l.shed_above.is_some());
    let hint = "add [monitor] with a role that has pg_monitor";
    match shedding.next() {
        Some((_, note)) => {
            let text = "there is no [monitor]: usage is unknown and nothing sheds";
            report.warning_at(&format!("{}.shed_above", note.key), text, hint);
        }
        None => report.warning_at("monitor", "is missing: usage is unknown and nothing sheds", hint),
    }
    if draft.config.exit.probes.iter().any(|probe| matches!(probe.ask, Ask::Sql { .. })) {
        report.warning_at("exit.probe", "cannot ask PostgreSQL without a [monitor]", hint);
    }
}
