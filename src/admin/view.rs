//! The read model as tables: names, types and order of columns in one place, for console, HTTP and `--json`. Pure.
//!
//! Rows are made one at a time while they are sent: 10,000 clients are never held twice.

use std::ops::Deref;
use std::sync::Arc;

use super::command::Show;
use super::control::Control;
use super::{help, tongue};
use crate::clock::WallMs;
use crate::snapshot::{
    ApplicationRow, ExitRow, HeadroomRow, IncidentRow, LaneRow, LeakRow, PeaksOfLane, PeaksRow, SessionRow,
    TimelineEntry, UpstreamRow, UsageRow, utc,
};

/// Type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// int4
    Int4,
    /// int8
    Int8,
    /// numeric; ours are whole
    Numeric,
    /// float8
    Float8,
    /// bool
    Bool,
    /// text
    Text,
}

impl Kind {
    /// Its OID in pg_type.
    pub const fn oid(self) -> u32 {
        match self {
            Self::Bool => 16,
            Self::Int8 => 20,
            Self::Int4 => 23,
            Self::Text => 25,
            Self::Float8 => 701,
            Self::Numeric => 1700,
        }
    }

    /// Its length in pg_type; -1 is variable.
    pub const fn size(self) -> i16 {
        match self {
            Self::Bool => 1,
            Self::Int4 => 4,
            Self::Int8 | Self::Float8 => 8,
            Self::Text | Self::Numeric => -1,
        }
    }
}

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Name.
    pub name: &'static str,
    /// Type.
    pub kind: Kind,
}

/// A text. Names that many rows have in common are not copied into each.
#[derive(Clone, Debug)]
pub enum Word {
    /// A word of pgweir's.
    Fixed(&'static str),
    /// A name out of the read model.
    Shared(Arc<str>),
    /// Anything else.
    Own(String),
}

impl Deref for Word {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Fixed(text) => text,
            Self::Shared(text) => text,
            Self::Own(text) => text,
        }
    }
}

impl PartialEq for Word {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl From<&'static str> for Word {
    fn from(text: &'static str) -> Self {
        Self::Fixed(text)
    }
}

impl From<Arc<str>> for Word {
    fn from(text: Arc<str>) -> Self {
        Self::Shared(text)
    }
}

impl From<String> for Word {
    fn from(text: String) -> Self {
        Self::Own(text)
    }
}

/// A value; its column says which type an integer has.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Unknown or none.
    Null,
    /// int4, int8 or numeric.
    Int(i64),
    /// float8.
    Float(f64),
    /// bool.
    Bool(bool),
    /// text.
    Text(Word),
}

impl Value {
    /// PostgreSQL's text format; `None` for NULL.
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Null => None,
            Self::Int(value) => Some(value.to_string()),
            Self::Float(value) if value.is_nan() => Some("NaN".to_owned()),
            Self::Float(value) if value.is_infinite() => {
                Some(if *value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned())
            }
            Self::Float(value) => Some(value.to_string()),
            Self::Bool(value) => Some(if *value { "t" } else { "f" }.to_owned()),
            Self::Text(value) => Some(value.to_string()),
        }
    }

    /// The value in JSON; NaN and infinities, which JSON has not, are null.
    pub fn json(&self) -> serde_json::Value {
        match self {
            Self::Null => serde_json::Value::Null,
            Self::Int(value) => (*value).into(),
            Self::Float(value) => (*value).into(),
            Self::Bool(value) => (*value).into(),
            Self::Text(value) => (**value).into(),
        }
    }
}

/// One row, in the order of its columns.
pub type Row = Vec<Value>;

/// Rows, made as they are asked for.
pub type Rows = Box<dyn Iterator<Item = Row> + Send>;

/// A row as a JSON object.
pub fn object(columns: &[Column], row: &[Value]) -> serde_json::Value {
    let fields = columns.iter().zip(row).map(|(column, value)| (column.name.to_owned(), value.json()));
    serde_json::Value::Object(fields.collect())
}

macro_rules! table {
    ($($name:ident: $kind:ident),* $(,)?) => {
        &[$($crate::admin::view::Column { name: stringify!($name), kind: $crate::admin::view::Kind::$kind }),*]
    };
}
pub(super) use table;

const LANES: &[Column] = table![
    lane: Text, state: Text, priority: Int8, quota: Int8, reserve: Int8, slots: Int8, idle: Int8, active: Int8,
    idle_in_transaction: Int8, waiting: Int8, max_wait_ms: Int8, admitted: Int8, shed: Int8, refused: Int8,
    resets: Int8, paused_by: Text, reason: Text,
];
const APPLICATIONS: &[Column] = table![
    application: Text, quota: Int8, slots: Int8, idle: Int8, active: Int8, idle_in_transaction: Int8, waiting: Int8,
];
const SESSIONS: &[Column] = table![
    pid: Int4, via: Text, id: Int8, lane: Text, application: Text, user: Text, database: Text, address: Text,
    process: Text, state: Text, state_ms: Int8, transaction_ms: Int8, wait_event: Text, blocked_by: Text, query: Text,
];
const LEAKS: &[Column] = table![
    id: Int8, lane: Text, application: Text, user: Text, database: Text, address: Text, pid: Int4,
    idle_in_transaction_ms: Int8, transaction_ms: Int8, blocks: Text, locks: Text, verdict: Text,
    last_statement: Text,
];
const USAGE: &[Column] = table![
    max_connections: Int8, usable: Int8, connections: Int8, active: Int8, idle: Int8, idle_in_transaction: Int8,
    percent: Float8, percent_of_max: Float8, own_slots: Int8, bypass: Int8, sampled_ms_ago: Int8,
];
const TIMELINE: &[Column] = table![
    seq: Int8, at: Text, who: Text, event: Text, lane: Text, client: Int8, usage: Float8, text: Text,
];
const EXIT: &[Column] = table![
    criterion: Text, state: Text, since: Text, since_ms: Int8, measured: Text, wanted: Text, reason: Text,
];
const INCIDENTS: &[Column] = table![
    id: Int8, state: Text, opened_at: Text, closed_at: Text, duration_ms: Int8, peak_percent: Float8, events: Int8,
    trigger: Text, cause: Text,
];
const INCIDENT: &[Column] = table![id: Int8, incident: Text];
const PEAKS: &[Column] = table![
    lane: Text, hours: Int8, slots_peak: Int8, slots_peak_at: Text, slots_usual: Int8, demand_peak: Int8, in_use_peak: Int8,
    in_use_usual: Int8, waiting_peak: Int8, max_wait_ms: Int8, transactions: Int8, refused: Int8, refusals: Text,
    idle_in_transaction_ms: Int8, idle_in_transaction_at: Text, idle_in_transaction_usual_ms: Int8, cut_ms: Int8, cuts: Int8,
    bypass_peak: Int8, percent_of_max_peak: Float8,
];
const SUGGESTION: &[Column] = table![suggestion: Text];
const NAME_VALUE: &[Column] = table![name: Text, value: Text];
const HEADROOM: &[Column] = table![item: Text, value: Text, basis: Text, note: Text];
const UPSTREAMS: &[Column] = table![
    address: Text, ip: Text, role: Text, current: Bool, since_ms: Int8, timeline: Int8, cause: Text,
];
const VERSION: &[Column] = table![version: Text];
const HELP: &[Column] = table![command: Text, what: Text];

/// What SHOW VERSION says.
pub const VERSION_TEXT: &str = concat!("pgweir ", env!("CARGO_PKG_VERSION"));

/// The columns of a SHOW: known before there are rows.
pub fn columns(show: Show) -> &'static [Column] {
    match show {
        Show::Lanes => LANES,
        Show::Applications => APPLICATIONS,
        Show::Clients => tongue::CLIENTS,
        Show::Servers => tongue::SERVERS,
        Show::Stats => tongue::STATS,
        Show::StatsTotals => tongue::STATS_TOTALS,
        Show::Pools => tongue::POOLS,
        Show::Databases => tongue::DATABASES,
        Show::Lists => tongue::LISTS,
        Show::Upstreams => UPSTREAMS,
        Show::Headroom => HEADROOM,
        Show::Sessions => SESSIONS,
        Show::Leaks => LEAKS,
        Show::Usage => USAGE,
        Show::Timeline => TIMELINE,
        Show::Exit => EXIT,
        Show::Incidents => INCIDENTS,
        Show::Incident(_) => INCIDENT,
        Show::Peaks => PEAKS,
        Show::Suggestion => SUGGESTION,
        Show::Config => tongue::CONFIG,
        Show::Status => NAME_VALUE,
        Show::Version => VERSION,
        Show::Help => HELP,
    }
}

/// The rows of a SHOW.
pub async fn rows(show: Show, control: &dyn Control) -> Rows {
    match show {
        Show::Lanes => lanes(control.lanes_and_applications().await.0),
        Show::Applications => applications(control.lanes_and_applications().await.1),
        Show::Clients => Box::new(control.clients().map(tongue::client)),
        Show::Servers => Box::new(control.servers().into_iter().map(tongue::server)),
        Show::Stats => Box::new(control.databases().into_iter().map(|row| tongue::stats(&row))),
        Show::StatsTotals => Box::new(control.databases().into_iter().map(|row| tongue::totals(&row))),
        Show::Pools => Box::new(control.pools().into_iter().map(tongue::pool)),
        Show::Databases => Box::new(control.databases().into_iter().map(|row| tongue::database(&row))),
        Show::Lists => Box::new(tongue::lists(control).into_iter()),
        Show::Upstreams => Box::new(control.upstreams().into_iter().map(upstream)),
        Show::Headroom => headroom(control.headroom().await),
        Show::Sessions => Box::new(control.sessions().into_iter().map(session)),
        Show::Leaks => Box::new(control.leaks().await.map(leak)),
        Show::Usage => Box::new(std::iter::once(usage(&control.usage()))),
        Show::Timeline => Box::new(control.timeline().into_iter().map(timeline)),
        Show::Exit => Box::new(control.exit().into_iter().map(exit)),
        Show::Incidents => Box::new(control.incidents().into_iter().map(incident)),
        Show::Incident(id) => {
            Box::new(control.incident(id).into_iter().map(move |record| vec![count(id), text(record)]))
        }
        Show::Peaks => Box::new(control.peaks().into_iter().map(peaks)),
        Show::Suggestion => Box::new(std::iter::once(vec![text(control.suggestion())])),
        Show::Config => Box::new(tongue::config(control).into_iter()),
        Show::Status => Box::new(status(control).into_iter()),
        Show::Version => Box::new(std::iter::once(vec![text(VERSION_TEXT)])),
        Show::Help => Box::new(help::COMMANDS.iter().map(|(syntax, what)| vec![text(*syntax), text(*what)])),
    }
}

/// The rows of SHOW LANES.
pub(super) fn lanes(rows: Vec<LaneRow>) -> Rows {
    Box::new(rows.into_iter().map(lane))
}

/// The rows of SHOW APPLICATIONS.
pub(super) fn applications(rows: Vec<ApplicationRow>) -> Rows {
    Box::new(rows.into_iter().map(application))
}

fn lane(row: LaneRow) -> Row {
    vec![
        text(row.lane),
        text(row.state.word()),
        int(row.priority),
        int(row.quota),
        int(row.reserve),
        int(row.slots),
        int(row.idle),
        int(row.active),
        int(row.idle_in_transaction),
        int(row.waiting),
        count(row.max_wait_ms),
        count(row.admitted),
        count(row.shed),
        count(row.refused),
        count(row.resets),
        text(row.paused_by),
        text(row.reason),
    ]
}

fn application(row: ApplicationRow) -> Row {
    vec![
        text(row.application),
        row.quota.map_or(Value::Null, int),
        int(row.slots),
        int(row.idle),
        int(row.active),
        int(row.idle_in_transaction),
        int(row.waiting),
    ]
}

fn headroom(rows: Vec<HeadroomRow>) -> Rows {
    let row = |row: HeadroomRow| vec![text(row.item), text(row.value), text(row.basis), text(row.note)];
    Box::new(rows.into_iter().map(row))
}

fn upstream(row: UpstreamRow) -> Row {
    vec![
        text(row.address),
        text(row.ip),
        text(row.role),
        Value::Bool(row.current),
        count(row.since_ms),
        row.timeline.map_or(Value::Null, |timeline| count(timeline.into())),
        text(row.cause),
    ]
}

fn session(row: SessionRow) -> Row {
    vec![
        int(row.pid),
        text(row.via),
        row.id.map_or(Value::Null, count),
        text(row.lane),
        text(row.application),
        text(row.user),
        text(row.database),
        text(row.address),
        text(row.process),
        text(row.state),
        count(row.state_ms),
        count(row.transaction_ms),
        text(row.wait_event),
        pids(&row.blocked_by),
        text(row.query),
    ]
}

fn leak(row: LeakRow) -> Row {
    vec![
        row.id.map_or(Value::Null, count),
        text(row.lane),
        text(row.application),
        text(row.user),
        text(row.database),
        text(row.address),
        row.pid.map_or(Value::Null, int),
        count(row.idle_in_transaction_ms),
        count(row.transaction_ms),
        pids(&row.blocks),
        text(row.locks),
        text(row.verdict),
        text(row.last_statement),
    ]
}

fn usage(row: &UsageRow) -> Row {
    // Without a sample only our own slots are known: a 0 in the other columns would read as an idle PostgreSQL.
    let sampled = |figure: u32| if row.max_connections == 0 { Value::Null } else { int(figure) };
    vec![
        sampled(row.max_connections),
        sampled(row.usable),
        sampled(row.connections),
        sampled(row.active),
        sampled(row.idle),
        sampled(row.idle_in_transaction),
        percent(row.percent),
        percent(row.percent_of_max),
        int(row.own_slots),
        sampled(row.bypass),
        row.sampled_ms_ago.map_or(Value::Null, count),
    ]
}

/// An entry as a row of SHOW TIMELINE.
pub(super) fn timeline(row: TimelineEntry) -> Row {
    vec![
        count(row.seq),
        text(utc(WallMs(row.at))),
        text(row.who),
        text(row.event),
        text(row.lane),
        row.client.map_or(Value::Null, count),
        percent(row.usage),
        text(row.text),
    ]
}

fn exit(row: ExitRow) -> Row {
    vec![
        text(row.criterion),
        text(row.state),
        text(utc(WallMs(row.since))),
        count(row.since_ms),
        text(row.measured),
        text(row.wanted),
        text(row.reason),
    ]
}

fn incident(row: IncidentRow) -> Row {
    vec![
        count(row.id),
        text(if row.closed_at.is_none() { "open" } else { "closed" }),
        text(utc(WallMs(row.opened_at))),
        row.closed_at.map_or(Value::Null, |at| text(utc(WallMs(at)))),
        count(row.duration_ms),
        percent(row.peak_percent),
        count(row.events),
        text(row.trigger),
        text(row.cause),
    ]
}

fn peaks(row: PeaksRow) -> Row {
    let when = |at: Option<u64>| at.map_or(Value::Null, |at| text(utc(WallMs(at))));
    let own = |of: fn(&PeaksOfLane) -> u64| row.of_lane.as_ref().map_or(Value::Null, |lane| count(of(lane)));
    vec![
        row.lane.clone().map_or(Value::Null, text),
        count(row.hours),
        count(row.slots_peak),
        when(row.slots_peak_at),
        count(row.slots_usual),
        own(|lane| lane.demand_peak),
        own(|lane| lane.in_use_peak),
        own(|lane| lane.in_use_usual),
        own(|lane| lane.waiting_peak),
        own(|lane| lane.max_wait_ms),
        own(|lane| lane.transactions),
        own(|lane| lane.refused),
        row.of_lane.as_ref().map_or(Value::Null, |lane| text(lane.refusals.clone())),
        own(|lane| lane.idle_in_transaction_ms),
        when(row.of_lane.as_ref().and_then(|lane| lane.idle_in_transaction_at)),
        own(|lane| lane.idle_in_transaction_usual_ms),
        own(|lane| lane.cut_ms),
        own(|lane| lane.cuts),
        row.bypass_peak.map_or(Value::Null, count),
        percent(row.percent_of_max_peak),
    ]
}

fn status(control: &dyn Control) -> Vec<Row> {
    let (process, usage) = (control.process(), control.usage());
    let mut found = vec![
        ("version".to_owned(), process.version.to_owned()),
        ("mode".to_owned(), process.mode.to_owned()),
        ("state".to_owned(), process.state.to_owned()),
        ("uptime_s".to_owned(), process.uptime_s.to_string()),
        ("clients".to_owned(), process.clients.to_string()),
        ("max_clients".to_owned(), process.max_clients.to_string()),
        ("logins".to_owned(), process.logins.to_string()),
        ("upstream".to_owned(), process.upstream.clone()),
        ("monitor".to_owned(), process.monitor.clone()),
        ("reserves".to_owned(), process.reserves.clone()),
        ("growth".to_owned(), process.growth.clone()),
        ("usage_stale".to_owned(), usage.stale.to_string()),
        ("too_many_clients".to_owned(), process.too_many_clients.to_string()),
        ("panics".to_owned(), process.panics.to_string()),
    ];
    found.extend(incident_open(control));
    let lookups = process.lookups_failed.iter();
    found.extend(lookups.map(|(cause, times)| (format!("lookups_failed.{cause}"), times.to_string())));
    found.into_iter().map(|(name, value)| vec![text(name), text(value)]).collect()
}

/// Of the open incident its number, since when, why it began, and what it still waits for; all empty where none is open.
fn incident_open(control: &dyn Control) -> [(String, String); 4] {
    let open = control.incidents().into_iter().find(|incident| incident.closed_at.is_none());
    let criteria = if open.is_some() { control.exit() } else { Vec::new() };
    let not_met: Vec<&str> = criteria.iter().filter(|row| !row.is_met()).map(|row| &*row.criterion).collect();
    let of = |text: fn(&IncidentRow) -> String| open.as_ref().map(text).unwrap_or_default();
    [
        ("incident".to_owned(), of(|open| open.id.to_string())),
        ("incident_since".to_owned(), of(|open| utc(WallMs(open.opened_at)))),
        ("incident_cause".to_owned(), of(|open| open.cause.clone())),
        ("incident_not_met".to_owned(), not_met.join(", ")),
    ]
}

pub(super) fn text(value: impl Into<Word>) -> Value {
    Value::Text(value.into())
}

pub(super) fn int(value: impl Into<i64>) -> Value {
    Value::Int(value.into())
}

/// A counter beyond int8 is shown as its maximum.
pub(super) fn count(value: u64) -> Value {
    Value::Int(i64::try_from(value).unwrap_or(i64::MAX))
}

/// Two decimals are all a percentage is worth.
fn percent(value: Option<f64>) -> Value {
    value.map_or(Value::Null, |value| Value::Float((value * 100.0).round() / 100.0))
}

fn pids(pids: &[i32]) -> Value {
    text(pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(show: Show) -> String {
        columns(show).iter().map(|column| column.name).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn columns_are_those_of_the_contract() {
        assert_eq!(
            names(Show::Lanes),
            "lane, state, priority, quota, reserve, slots, idle, active, idle_in_transaction, waiting, max_wait_ms, \
             admitted, shed, refused, resets, paused_by, reason"
        );
        for name in
            "id, lane, rule, application, user, database, address, pid, process, state, transaction_ms, \
                     idle_in_transaction_ms, wait_ms, last_statement"
                .split(", ")
        {
            assert_eq!(
                columns(Show::Clients).iter().filter(|column| column.name == name).count(),
                1,
                "{name}"
            );
        }
        assert_eq!(
            names(Show::Usage),
            "max_connections, usable, connections, active, idle, idle_in_transaction, percent, percent_of_max, \
             own_slots, bypass, sampled_ms_ago"
        );
    }

    #[test]
    fn an_unknown_usage_is_null_not_zero() {
        let null = &serde_json::Value::Null;
        let unknown =
            object(USAGE, &usage(&UsageRow { own_slots: 3, connections: 3, ..UsageRow::default() }));
        for column in USAGE.iter().filter(|column| column.name != "own_slots") {
            assert_eq!(&unknown[column.name], null, "{}", column.name);
        }
        assert_eq!(unknown["own_slots"], 3);
        let known = UsageRow { max_connections: 40, percent_of_max: Some(12.345_6), ..UsageRow::default() };
        let known = object(USAGE, &usage(&known));
        assert_eq!((&known["percent"], &known["percent_of_max"]), (null, &12.35.into()));
        assert_eq!((&known["bypass"], &known["idle"]), (&0.into(), &0.into()));
    }

    #[test]
    fn floats_are_written_as_postgresql_reads_them() {
        let shown = |value: f64| Value::Float(value).text();
        assert_eq!(shown(37.5).as_deref(), Some("37.5"));
        assert_eq!(shown(f64::NAN).as_deref(), Some("NaN"));
        assert_eq!(shown(f64::NEG_INFINITY).as_deref(), Some("-Infinity"));
    }
}
