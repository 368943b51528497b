//! From text to a checked [`Config`], or to every reason why not.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use toml::de::{DeTable, Error};

use super::lane::LaneNote;
use super::problem::{Problem, Warning};
use super::raw::{Report, Section, find_place};
pub use super::settings::Config;
use super::settings::Endpoint;
use super::{FILE_BYTES_MAX, cross, exit, lane, reach, sections};
use crate::lanes::settings::{LaneSettings, Settings};

/// Lanes, applications and listeners at most, each.
const TABLES_MAX: usize = 500;
/// Syntax errors told: those behind the first ones mostly follow from them.
const SYNTAX_ERRORS_MAX: usize = 5;

/// A configuration that may still have problems, and where its parts stand.
pub(super) struct Draft {
    pub(super) config: Config,
    /// In step with the lanes.
    pub(super) lanes: Vec<LaneNote>,
    /// In step with the applications.
    pub(super) applications: Vec<String>,
    /// Whether every listener's address could be read.
    pub(super) listeners_complete: bool,
}

impl Draft {
    pub(super) fn lane_settings(&self) -> &[LaneSettings] {
        &self.config.settings.lanes
    }

    /// Whether a listener leads into the lane.
    pub(super) fn bound(&self, lane: &LaneSettings) -> bool {
        self.config.listen.iter().any(|l| l.lane.as_ref() == Some(&lane.name))
    }
}

/// Checks a configuration's text; `path` is named in problems, and relative paths start at its directory. Reads no file.
///
/// # Errors
/// Every problem, in the order of the file.
pub fn check(text: &str, path: &Path) -> Result<(Config, Vec<Warning>), Vec<Problem>> {
    let mut report = Report::new(text, path);
    if text.len() > FILE_BYTES_MAX {
        let message = format!("has more than {FILE_BYTES_MAX} bytes");
        report.problem_at("", message, "a configuration is a few kilobytes; is this the right file?");
        return Err(report.finish().0);
    }
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        syntax(&mut report, &errors);
        return Err(report.finish().0);
    }
    let mut draft = read(&mut report, document.get_ref());
    cross::check(&mut report, &mut draft);
    let (problems, warnings, places) = report.finish();
    if problems.is_empty() {
        draft.config.places = places;
        Ok((draft.config, warnings))
    } else {
        Err(problems)
    }
}

/// The `[admin]` section of a file that has problems, if it is not that section's own: a broken file must not keep an operator from the
/// console of the process that still runs with the old one.
pub fn admin_of(path: &Path) -> Option<super::settings::AdminSettings> {
    let text = std::fs::read_to_string(path).ok().filter(|text| text.len() <= FILE_BYTES_MAX)?;
    let mut report = Report::new(&text, path);
    let (document, _) = DeTable::parse_recoverable(&text);
    let mut root = Section::root(document.get_ref());
    let state_directory = sections::state(&mut report, &mut root);
    let admin = sections::admin(&mut report, &mut root, &state_directory);
    (report.problem_count() == 0).then_some(admin)
}

/// Puts the first errors of the parser on record, one a line. Nothing else is: what a parser that lost its place makes of the rest of the
/// file (a key that is missing, a value of the wrong type) may be right as it stands.
fn syntax(report: &mut Report<'_>, errors: &[Error]) {
    let mut told = BTreeSet::new();
    for error in errors {
        let line = error.span().map(|span| report.line_of(span.start));
        if told.len() == SYNTAX_ERRORS_MAX {
            return;
        }
        if !told.insert(line) {
            continue;
        }
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        let inside_brackets = message.contains("missing comma") || message.contains("inline table");
        let hint = if message.contains("duplicate key") {
            "write each key and [section] once; lists of tables need [[double brackets]]; [admin] has either user = \"…\" or [[admin.user]]"
        } else if message.contains("must be quoted") {
            "put strings in double quotes"
        } else if inside_brackets {
            "a [ or { further up is not closed, or a comma is missing"
        } else {
            "the file must be TOML: key = value lines below [section] headers"
        };
        report.problem(line, "", message, hint);
        if inside_brackets {
            // Every line behind a bracket that is not closed would be another such error.
            return;
        }
    }
}

fn read(report: &mut Report<'_>, document: &DeTable<'_>) -> Draft {
    let mut root = Section::root(document);
    let (observe, log) = sections::top(report, &mut root);
    let (listen, listeners_complete) = sections::listen(report, &mut root);
    let state_directory = sections::state(report, &mut root);
    let admin = sections::admin(report, &mut root, &state_directory);
    let (upstream, headroom) = sections::upstream(report, &mut root);
    let (monitor, stale_after) = sections::monitor(report, &mut root, &upstream);
    let auth = sections::auth(report, &mut root, monitor.is_some());
    let (mut limits, process) = sections::limits(report, &mut root);
    let bypass = sections::bypass(report, &mut root, monitor.is_some());
    let exit = exit::exit(report, &mut root);
    let (applications, application_keys) = sections::applications(report, &mut root).into_iter().unzip();
    let mut names = HashSet::new();
    let tables = root.tables(report, "lane");
    let (lanes, lane_notes) = tables.into_iter().map(|table| lane::read(report, table, &mut names)).unzip();
    limits.headroom = headroom;
    limits.stale_after = stale_after;
    limits.monitored = monitor.is_some();
    limits.observe = observe;
    root.finish(report);
    let config = Config {
        path: report.path.to_owned(),
        listen,
        admin,
        upstream,
        monitor,
        auth,
        state_directory,
        log,
        process,
        bypass,
        exit,
        settings: Settings { lanes, applications, limits },
        places: Default::default(),
    };
    bound_tables(report, &config);
    Draft { config, lanes: lane_notes, applications: application_keys, listeners_complete }
}

fn bound_tables(report: &mut Report<'_>, config: &Config) {
    let counts = [
        ("lane", config.settings.lanes.len()),
        ("application", config.settings.applications.len()),
        ("listen", config.listen.len()),
    ];
    for (name, count) in counts {
        if count > TABLES_MAX {
            let text = format!("there are {count}, more than {TABLES_MAX}");
            report.problem_at(name, text, "use globs to say the same with fewer");
        }
    }
}

impl Config {
    /// Something that is wrong with the value of a key, found when the file was read already.
    pub fn problem(&self, key: &str, message: impl Into<String>, hint: &str) -> Problem {
        Problem {
            file: self.path.display().to_string().into(),
            line: find_place(&self.places, key),
            key: key.to_owned(),
            message: message.into(),
            hint: hint.to_owned(),
        }
    }
}

/// What is wrong with `config` once PostgreSQL's limits are known: `max_connections`, and `reserved` =
/// superuser_reserved_connections + reserved_connections.
pub fn check_against(config: &Config, max_connections: u32, reserved: u32) -> Vec<Problem> {
    let usable = max_connections.saturating_sub(reserved);
    let headroom = config.settings.limits.headroom;
    let problem = |key: &str, message: String, hint: &str| config.problem(key, message, hint);
    if headroom >= usable {
        let text = format!(
            "{headroom} leaves nothing of the {usable} usable connections (max_connections {max_connections} less {reserved} reserved)"
        );
        return vec![problem("upstream.headroom", text, "lower it")];
    }
    let budget = usable - headroom;
    let counted: Vec<&LaneSettings> = config
        .settings
        .lanes
        .iter()
        .filter(|lane| lane.reserve > 0 && !reach::replication_only(lane))
        .collect();
    let sum: u64 = counted.iter().map(|lane| u64::from(lane.reserve)).sum();
    if sum <= u64::from(budget) {
        return Vec::new();
    }
    let largest = counted.iter().max_by_key(|lane| lane.reserve).map_or("", |lane| &lane.name);
    let parts: Vec<String> = counted.iter().map(|l| format!("{} {}", l.name, l.reserve)).collect();
    let text = format!(
        "the reserves sum to {sum} ({}), more than the budget {budget}: max_connections {max_connections} less {reserved} reserved less headroom {headroom}",
        parts.join(", ")
    );
    vec![problem(&format!("lane.{largest}.reserve"), text, "lower reserves until they fit the budget")]
}

/// Whether connecting to `target` would come back to `listener`.
pub(super) fn same_place(listener: &Endpoint, target: &Endpoint) -> bool {
    match (listener, target) {
        (Endpoint::Tcp { host, port }, Endpoint::Tcp { host: to, port: to_port }) => {
            let any = ["0.0.0.0", "::"].contains(&&**host);
            let local = sections::is_loopback(to);
            port == to_port && (host == to || (local && (any || sections::is_loopback(host))))
        }
        (a, b) => a == b,
    }
}
