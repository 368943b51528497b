//! One `[[lane]]`, and what can be said of it alone.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::raw::{Report, Section};
use super::{rule, values};
use crate::lanes::settings::{
    Disposition, Glob, LaneSettings, LeakAction, LeakSettings, Pooling, ResetWhen, Rule,
};
use crate::reason::SqlState;

/// Rules of one lane at most.
const RULES_MAX: usize = 200;
/// `exempt` globs of one lane at most.
const EXEMPT_MAX: usize = 100;
/// How far below `shed_above` a lane's `shed_below` is unless it says so: percent.
const SHED_BAND: f64 = 10.0;
/// `shed_below` of a lane that never sheds: the usage above which its leaks do harm.
const HARM_ABOVE: f64 = 75.0;

/// Odoo's row locks that are held while a job runs: ir_cron (14 and older: NOWAIT) and queue_job.
pub(super) const EXEMPT_DEFAULT: [&str; 3] = [
    "*from*ir_cron*for no key update skip locked*",
    "*from*ir_cron*for update nowait*",
    "*from*queue_job*for update*",
];

const DISPOSITIONS: [(&str, Disposition); 2] = [("hold", Disposition::Hold), ("reject", Disposition::Reject)];
const ACTIONS: [(&str, LeakAction); 3] =
    [("rollback", LeakAction::Rollback), ("disconnect", LeakAction::Disconnect), ("none", LeakAction::None)];

/// Where a lane and its rules stand.
pub(super) struct LaneNote {
    /// `lane.web`, or `lane[3]` where it has no name of its own.
    pub(super) key: String,
    /// Keys of the rules that could be read, in step with the lane's `rules`.
    pub(super) rules: Vec<String>,
    /// Whether every rule could be read.
    pub(super) complete: bool,
    /// Whether `default` could be read, or is absent.
    pub(super) default_read: bool,
    /// Whether quota and reserve could be read.
    pub(super) counted: bool,
}

/// Reads a lane.
pub(super) fn read(
    report: &mut Report<'_>,
    mut section: Section<'_>,
    names: &mut HashSet<Arc<str>>,
) -> (LaneSettings, LaneNote) {
    let name = name(report, &mut section, names);
    let protected = section.read(report, "protected", values::boolean).unwrap_or(false);
    let (quota, reserve) = counts(report, &mut section);
    let limit = |report: &mut Report<'_>, section: &mut Section<'_>, name| {
        section.read(report, name, values::count(0, values::CONNECTIONS_MAX)).unwrap_or(0)
    };
    let (shed_above, shed_below) = shedding(report, &mut section);
    let default = section.read(report, "default", values::boolean);
    let default_read = default.is_some() || !section.has("default");
    let rules = rules(report, &mut section, protected);
    let lane = LaneSettings {
        name,
        protected,
        default: default.unwrap_or(false),
        priority: section
            .read(report, "priority", values::count(0, 9))
            .and_then(|p| u8::try_from(p).ok())
            .unwrap_or(5),
        quota: quota.unwrap_or(1),
        reserve: reserve.unwrap_or(0),
        per_application: limit(report, &mut section, "per_application"),
        per_user: limit(report, &mut section, "per_user"),
        per_database: limit(report, &mut section, "per_database"),
        per_address: limit(report, &mut section, "per_address"),
        links_per_process: limit(report, &mut section, "links_per_process"),
        shed_above,
        shed_below,
        shed_dwell: section.read(report, "shed_dwell", values::duration).unwrap_or(Duration::from_secs(5)),
        on_shed: disposition(report, &mut section, "on_shed"),
        freeze: section.read(report, "freeze", values::boolean).unwrap_or(false),
        on_pause: disposition(report, &mut section, "on_pause"),
        pause_hold_timeout: optional(report, &mut section, "pause_hold_timeout"),
        wait_timeout: section
            .read(report, "wait_timeout", values::duration)
            .unwrap_or(Duration::from_secs(30)),
        max_waiting: section.read(report, "max_waiting", values::count(0, 1_000_000)).unwrap_or(500),
        connect_rate: section.read(report, "connect_rate", values::rate).flatten(),
        reclaim_idle_after: optional(report, &mut section, "reclaim_idle_after"),
        pooling: pooling(report, &mut section),
        idle_in_transaction: leaks(report, &mut section, protected),
        rules: rules.rules,
    };
    alone(report, &section, &lane);
    let note = LaneNote {
        key: section.name.clone(),
        rules: rules.keys,
        complete: rules.complete,
        default_read,
        counted: quota.is_some() && reserve.is_some(),
    };
    section.finish(report);
    (lane, note)
}

/// Reads the name and calls the section by it; a second lane of one name keeps its number.
fn name(report: &mut Report<'_>, section: &mut Section<'_>, names: &mut HashSet<Arc<str>>) -> Arc<str> {
    let hint = "write name = \"…\": commands and metrics call the lane by it";
    let Some(name) = section.require(report, "name", hint, values::lane_name) else {
        return section.name.as_str().into();
    };
    let key = format!("lane.{name}");
    if names.insert(name.clone()) {
        section.rename(report, key);
    } else {
        let text = format!("there is another lane {name:?}{}", on_line(report.place(&key)));
        report.problem_at(&section.key("name"), text, "give each lane a name of its own, or merge the two");
    }
    name
}

fn on_line(line: Option<usize>) -> String {
    line.map(|line| format!(" on line {line}")).unwrap_or_default()
}

/// Quota, required, and reserve, 0 where absent; none where it cannot be read.
fn counts(report: &mut Report<'_>, section: &mut Section<'_>) -> (Option<u32>, Option<u32>) {
    let hint = "write quota = N: the connections to PostgreSQL that the lane may have at most";
    let quota = section.require(report, "quota", hint, values::count(1, values::CONNECTIONS_MAX));
    let reserve = if section.has("reserve") {
        section.read(report, "reserve", values::count(0, values::CONNECTIONS_MAX))
    } else {
        Some(0)
    };
    if let (Some(quota), Some(reserve)) = (quota, reserve)
        && reserve > quota
    {
        let text = format!("{reserve} is more than the quota {quota}");
        report.problem_at(&section.key("reserve"), text, "lower the reserve or raise the quota");
    }
    (quota, reserve)
}

fn shedding(report: &mut Report<'_>, section: &mut Section<'_>) -> (Option<f64>, f64) {
    let above = section.read(report, "shed_above", values::percent);
    let below = section.read(report, "shed_below", values::percent);
    let (key, hint) =
        (section.key("shed_below"), "shedding must end below where it begins, say 10 percent lower");
    match (above, below) {
        (Some(above), Some(below)) if below >= above => {
            report.problem_at(&key, format!("{below} is not below shed_above = {above}"), hint);
        }
        (Some(above), None) if above <= SHED_BAND && !section.has("shed_below") => {
            let text = format!("would be {} for shed_above = {above}", above - SHED_BAND);
            let line = report.place(&section.key("shed_above"));
            report.problem(line, &key, text, "write shed_below, or raise shed_above");
        }
        _ => {}
    }
    let below = below.unwrap_or_else(|| above.map_or(HARM_ABOVE, |above| above - SHED_BAND));
    (above, below)
}

fn disposition(report: &mut Report<'_>, section: &mut Section<'_>, name: &'static str) -> Disposition {
    section.read(report, name, values::word(&DISPOSITIONS)).unwrap_or(Disposition::Hold)
}

fn optional(report: &mut Report<'_>, section: &mut Section<'_>, name: &'static str) -> Option<Duration> {
    section.read(report, name, values::optional_duration).flatten()
}

struct Rules {
    rules: Vec<Rule>,
    keys: Vec<String>,
    complete: bool,
}

fn rules(report: &mut Report<'_>, section: &mut Section<'_>, protected: bool) -> Rules {
    let before = report.problem_count();
    let tables = section.tables(report, "match");
    let mut all = Rules { rules: Vec::new(), keys: Vec::new(), complete: true };
    if tables.len() > RULES_MAX {
        let text = format!("has {} rules, more than {RULES_MAX}", tables.len());
        report.problem_at(&section.key("match"), text, "use globs or address ranges");
        return Rules { complete: false, ..all };
    }
    for table in tables {
        let key = table.name.clone();
        let statement = table.has("statement");
        if let Some(rule) = rule::read(report, table) {
            all.rules.push(rule);
            all.keys.push(key.clone());
        }
        if statement && protected {
            report.problem_at(
                &format!("{key}.statement"),
                "a statement cannot lead into a protected lane",
                "nothing a client says later may; use user, address, listener or process",
            );
        }
    }
    all.complete = report.problem_count() == before;
    all
}

/// What means nothing without pooling.
const POOLING_KEYS: [&str; 6] = [
    "server_lifetime",
    "server_idle_timeout",
    "server_check_delay",
    "server_application_name",
    "min_pool_size",
    "keep_reserve",
];
/// Whether PostgreSQL is told the normalised application.
const SERVER_NAMES: [(&str, bool); 2] = [("client", false), ("normalised", true)];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    None,
    Session,
    Transaction,
}

fn pooling(report: &mut Report<'_>, section: &mut Section<'_>) -> Option<Pooling> {
    let words = [("none", Mode::None), ("session", Mode::Session), ("transaction", Mode::Transaction)];
    let mode = section.read(report, "pooling", values::word(&words)).unwrap_or(Mode::None);
    if mode == Mode::Transaction {
        let key = section.key("pooling");
        report.problem_at(
            &key,
            "is not available yet",
            "write \"session\" or \"none\", or leave the key out",
        );
    }
    let time = |report: &mut Report<'_>, section: &mut Section<'_>, name, default| {
        section.read(report, name, values::duration).unwrap_or(Duration::from_secs(default))
    };
    let pooling = Pooling {
        lifetime: time(report, section, "server_lifetime", 3600),
        idle_timeout: time(report, section, "server_idle_timeout", 600),
        check_after: time(report, section, "server_check_delay", 30),
        min_size: section
            .read(report, "min_pool_size", values::count(0, values::CONNECTIONS_MAX))
            .unwrap_or(0),
        keeps_reserve: section.read(report, "keep_reserve", values::boolean).unwrap_or(false),
        normalises: section
            .read(report, "server_application_name", values::word(&SERVER_NAMES))
            .unwrap_or(false),
    };
    for name in POOLING_KEYS {
        if mode == Mode::None && section.has(name) {
            let text = "has no effect without pooling = \"session\"";
            report.warning_at(&section.key(name), text, "write pooling = \"session\", or remove it");
        }
    }
    (mode == Mode::Session).then_some(pooling)
}

/// What contradicts itself inside one lane.
fn alone(report: &mut Report<'_>, section: &Section<'_>, lane: &LaneSettings) {
    if lane.protected {
        let hint = "remove it, or the lane's `protected = true`";
        for (name, set) in [("shed_above", lane.shed_above.is_some()), ("freeze", lane.freeze)] {
            if set {
                let text = "a protected lane is never shed, frozen or reset";
                report.warning_at(&section.key(name), text, hint);
            }
        }
        if lane.default {
            report.warning_at(
                &section.key("default"),
                "everybody whom no rule matches would be protected",
                "let another lane be the default",
            );
        }
    }
    if let Some(pooling) = lane.pooling.as_ref().filter(|pooling| pooling.min_size > lane.quota) {
        let text = format!("{} is more than the quota {}", pooling.min_size, lane.quota);
        report.problem_at(&section.key("min_pool_size"), text, "lower it, or raise the quota");
    }
    if lane.reserve == 0 && lane.pooling.as_ref().is_some_and(|pooling| pooling.keeps_reserve) {
        let key = section.key("keep_reserve");
        report.warning_at(&key, "has no effect without a reserve", "write reserve = N, or remove it");
    }
    if lane.shed_above.is_none() && !section.has("shed_above") {
        let judged = lane.idle_in_transaction.as_ref().is_some_and(|l| l.reset.is_some());
        for name in ["on_shed", "shed_dwell", "shed_below"] {
            if section.has(name) && !(name == "shed_below" && judged) {
                let text = "has no effect without shed_above";
                report.warning_at(&section.key(name), text, "write shed_above = 75 (percent), or remove it");
            }
        }
    }
}

fn leaks(report: &mut Report<'_>, lane: &mut Section<'_>, protected: bool) -> Option<LeakSettings> {
    let mut section = lane.table(report, "idle_in_transaction")?;
    let warn = optional(report, &mut section, "warn");
    let reset = optional(report, &mut section, "reset");
    let when = section
        .read(report, "when", values::word(&[("harm", ResetWhen::Harm), ("always", ResetWhen::Always)]))
        .unwrap_or(ResetWhen::Harm);
    let cap = optional(report, &mut section, "cap");
    let fallback = if protected { LeakAction::None } else { LeakAction::Rollback };
    let action = section.read(report, "action", values::word(&ACTIONS)).unwrap_or(fallback);
    let sqlstate = section.read(report, "sqlstate", values::sqlstate).unwrap_or(SqlState(*b"40001"));
    let disconnect_after = optional(report, &mut section, "disconnect_after");
    let exempt = section.read(report, "exempt", values::list(values::glob(true))).unwrap_or_else(|| {
        EXEMPT_DEFAULT.iter().map(|t| Glob { text: (*t).into(), case_insensitive: true }).collect()
    });
    // `cap` alone means: whatever it does, not longer than that.
    let reset_or_cap = reset.or(cap);
    let leaks = LeakSettings {
        warn: warn.or(if section.has("warn") { None } else { reset_or_cap }),
        reset: reset_or_cap,
        when,
        cap,
        action,
        sqlstate,
        exempt,
        disconnect_after,
    };
    leak_order(report, &section, &leaks);
    leak_actions(report, &section, &leaks, protected);
    section.finish(report);
    Some(leaks)
}

fn leak_order(report: &mut Report<'_>, section: &Section<'_>, leaks: &LeakSettings) {
    let steps = [("warn", leaks.warn), ("reset", leaks.reset), ("cap", leaks.cap)];
    for (at, (name, value)) in steps.iter().enumerate() {
        let later = steps[at + 1..].iter().find(|(other, _)| section.has(other));
        if let (true, Some(value), Some((other, Some(limit)))) = (section.has(name), value, later)
            && value > limit
        {
            let text = format!("comes after `{other}`");
            report.problem_at(&section.key(name), text, "the order is warn, then reset, then cap");
        }
    }
    if leaks.exempt.len() > EXEMPT_MAX {
        let text = format!("has more than {EXEMPT_MAX} globs");
        report.problem_at(&section.key("exempt"), text, "use wider globs");
    }
    if leaks.when == ResetWhen::Always && leaks.cap.is_some() && section.has("reset") {
        let text = "is never reached with when = \"always\"";
        report.warning_at(&section.key("cap"), text, "remove it, or write when = \"harm\"");
    }
}

fn leak_actions(report: &mut Report<'_>, section: &Section<'_>, leaks: &LeakSettings, protected: bool) {
    let acts = leaks.action != LeakAction::None;
    if protected && acts {
        let text = "a protected lane is never shed, frozen or reset";
        report.warning_at(&section.key("action"), text, "write action = \"none\": watch only");
    }
    if section.has("disconnect_after") && leaks.action != LeakAction::Rollback {
        let text = "follows a rollback only";
        report.problem_at(
            &section.key("disconnect_after"),
            text,
            "remove it, or write action = \"rollback\"",
        );
    }
    for name in ["reset", "cap"] {
        if section.has(name) && !acts {
            let text = "has no effect with action = \"none\"";
            report.warning_at(
                &section.key(name),
                text,
                "remove it, or choose \"rollback\" or \"disconnect\"",
            );
        }
    }
    if leaks.warn.is_none() && leaks.reset.is_none() {
        report.warning_at(
            &section.name,
            "watches nothing: neither warn nor reset is set",
            "write warn = \"15s\", reset = \"60s\"",
        );
    } else if section.has("action") && acts && leaks.reset.is_none() {
        let text = "is never taken without reset or cap";
        report.warning_at(&section.key("action"), text, "write reset = \"60s\", or action = \"none\"");
    }
}
