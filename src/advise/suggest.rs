//! `pgweir suggest`: from a week of peaks to quotas, reserves and thresholds, each with its reason. Pure.
//!
//! [`share`](super::share) divides connections, [`threshold`](super::threshold) sets times and percentages. Both may only propose what a
//! configuration file may say, and what fits PostgreSQL as it was seen last; what was not seen stays as it is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::limits::plain;
use super::peaks::Peaks;
use super::seen::{self, HOURS, Seen, WholeSeen};
use super::{share, threshold};

/// PostgreSQL's own bound of max_connections: no figure of a file may be higher.
pub(super) const CONNECTIONS_MAX: u32 = 262_143;
/// Fewer hours seen are no evidence at all.
const NONE_BELOW: u64 = 1;
/// With fewer nothing is lowered.
const THIN_BELOW: u64 = 24;
/// From so many on a week was seen: the hour that runs and a restart or two leave gaps.
const WEEK_FROM: u64 = 160;

/// A value of the configuration, as the file has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Setting {
    /// A whole number.
    Count(u32),
    /// Percent of usable connections.
    Percent(f64),
    /// A time: `"90s"`.
    Time(String),
}

impl Setting {
    /// A time in the configuration's words.
    pub fn time(ms: u64) -> Self {
        const UNITS: [(u64, &str); 3] = [(3_600_000, "h"), (60_000, "m"), (1000, "s")];
        let unit = UNITS.into_iter().find(|(unit, _)| ms.is_multiple_of(*unit));
        Self::Time(unit.map_or_else(|| format!("{ms}ms"), |(unit, name)| format!("{}{name}", ms / unit)))
    }

    /// As it is written in the file.
    pub fn literal(&self) -> String {
        match self {
            Self::Count(count) => count.to_string(),
            Self::Percent(percent) => percent.to_string(),
            Self::Time(time) => format!("\"{time}\""),
        }
    }
}

/// A lane's policy for what idles in transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leak {
    /// Put on record from here on, in ms.
    pub warn_ms: Option<u64>,
    /// Reset from here on where it does harm, in ms.
    pub reset_ms: Option<u64>,
    /// Reset from here on in any case, in ms.
    pub cap_ms: Option<u64>,
    /// Whether anything is done at all.
    pub acts: bool,
}

/// A lane as it is configured, or as it should be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lane {
    /// Name.
    pub name: String,
    /// 0 is best.
    pub priority: u8,
    /// Never shed, frozen or reset.
    pub protected: bool,
    /// Replication: another pool of PostgreSQL's.
    pub apart: bool,
    /// Slots at most.
    pub quota: u32,
    /// Slots kept free for it.
    pub reserve: u32,
    /// With a lower quota something else that is configured for it would not work.
    pub quota_min: u32,
    /// Clients waiting at most.
    pub max_waiting: u32,
    /// shed_above and shed_below, in percent; none where it is never shed.
    pub shed: Option<(f64, f64)>,
    /// Idle in transaction.
    pub leak: Option<Leak>,
}

impl Lane {
    /// What may be suggested of it: keys of its table, and values.
    pub fn settings(&self) -> Vec<(&'static str, Setting)> {
        let mut found = vec![
            ("quota", Setting::Count(self.quota)),
            ("reserve", Setting::Count(self.reserve)),
            ("max_waiting", Setting::Count(self.max_waiting)),
        ];
        if let Some((above, below)) = self.shed {
            found.push(("shed_above", Setting::Percent(above)));
            found.push(("shed_below", Setting::Percent(below)));
        }
        if let Some(leak) = self.leak {
            let times = [
                ("idle_in_transaction.warn", leak.warn_ms),
                ("idle_in_transaction.reset", leak.reset_ms),
                ("idle_in_transaction.cap", leak.cap_ms),
            ];
            found.extend(times.into_iter().filter_map(|(key, ms)| Some((key, Setting::time(ms?)))));
        }
        found
    }
}

/// An application as it is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Application {
    /// Its normalised name.
    pub name: String,
    /// Slots at most; none is no limit.
    pub quota: Option<u32>,
    /// Lanes it can come into.
    pub lanes: Vec<String>,
}

/// What is configured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Present {
    /// enforce or observe.
    pub mode: String,
    /// Usable connections that are left alone.
    pub headroom: u32,
    /// In file order.
    pub lanes: Vec<Lane>,
    /// In file order.
    pub applications: Vec<Application>,
}

/// How much was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// Next to nothing: nothing is suggested.
    None,
    /// Less than a day: nothing lower is suggested.
    Thin,
    /// Less than a week.
    Days,
    /// A week.
    Week,
}

impl Evidence {
    fn of(hours: u64) -> Self {
        match hours {
            0..NONE_BELOW => Self::None,
            NONE_BELOW..THIN_BELOW => Self::Thin,
            THIN_BELOW..WEEK_FROM => Self::Days,
            _ => Self::Week,
        }
    }

    /// Whether something may be lowered by it.
    pub(super) fn may_lower(self) -> bool {
        self >= Self::Days
    }

    fn text(self) -> &'static str {
        match self {
            Self::None => {
                "that is too little: anything is suggested after an hour at the earliest, and a week tells most"
            }
            Self::Thin => "less than a day: nothing lower is suggested",
            Self::Days => "less than a week: the days that are missing may be the busy ones",
            Self::Week => "a week",
        }
    }
}

/// One setting, what it should be, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Advice {
    /// The key in its table: `quota`, `idle_in_transaction.reset`.
    pub key: String,
    /// What it is.
    pub present: Setting,
    /// What it should be.
    pub suggested: Setting,
    /// Why, in a sentence.
    pub why: String,
}

impl Advice {
    /// Whether it is to be changed.
    pub fn is_change(&self) -> bool {
        self.present != self.suggested
    }
}

/// What is suggested of a lane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaneAdvice {
    /// Its name.
    pub lane: String,
    /// 0 is best.
    pub priority: u8,
    /// What was seen of it.
    pub seen: Seen,
    /// Setting by setting.
    pub advice: Vec<Advice>,
}

/// What is suggested of an application.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApplicationAdvice {
    /// Its name.
    pub application: String,
    /// Its quota.
    pub advice: Advice,
}

/// What PostgreSQL has for pgweir.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// max_connections as it was seen last.
    pub max_connections: u32,
    /// Less the reserved ones.
    pub usable: u32,
    /// `[upstream] headroom`.
    pub headroom: u32,
    /// What others have in ordinary hours.
    pub bypass: u32,
    /// What is left.
    pub budget: u32,
}

impl Room {
    /// None where the limits were never seen, or nothing is left.
    fn of(present: &Present, whole: &WholeSeen) -> Option<Self> {
        let server = whole.server?;
        let usable = server.usable.min(CONNECTIONS_MAX);
        let bypass = u32::try_from(whole.bypass.usual).unwrap_or(u32::MAX);
        let max = usable.checked_sub(present.headroom).filter(|max| *max > 0)?;
        let budget = max.saturating_sub(bypass);
        let (max_connections, headroom) = (server.max_connections.max(usable), present.headroom);
        Some(Self { max_connections, usable, headroom, bypass, budget })
    }

    /// What reserves may sum to for a configuration to be accepted.
    pub(super) fn reserves_max(self) -> u32 {
        self.usable.saturating_sub(self.headroom)
    }
}

/// Everything that is suggested, with the evidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Suggestion {
    /// The mode it was seen in last.
    pub mode: String,
    /// Hours seen.
    pub hours_seen: u64,
    /// Of so many.
    pub hours_looked_at: u64,
    /// What that is worth.
    pub evidence: Evidence,
    /// The same in words.
    pub evidence_text: String,
    /// PostgreSQL's room; null where it is not known.
    pub room: Option<Room>,
    /// What was seen of PostgreSQL.
    pub whole: WholeSeen,
    /// In file order.
    pub lanes: Vec<LaneAdvice>,
    /// In file order, those with a quota.
    pub applications: Vec<ApplicationAdvice>,
    /// What is to be known besides.
    pub notes: Vec<String>,
}

impl Suggestion {
    /// How many settings are to be changed.
    pub fn changes(&self) -> usize {
        let lanes = self.lanes.iter().flat_map(|lane| &lane.advice);
        lanes
            .chain(self.applications.iter().map(|one| &one.advice))
            .filter(|advice| advice.is_change())
            .count()
    }
}

/// A lane on its way.
pub(super) struct Draft {
    pub now: Lane,
    pub new: Lane,
    pub seen: Seen,
    pub why: BTreeMap<&'static str, String>,
}

impl Draft {
    /// Whether anything is known of it.
    pub(super) fn is_known(&self) -> bool {
        self.seen.hours > 0
    }

    pub(super) fn because(&mut self, key: &'static str, why: impl Into<String>) {
        self.why.insert(key, why.into());
    }
}

/// Reckons what `present` should be by what was seen in the week that ends at `now_ms` (since the Unix epoch).
pub fn suggest(present: &Present, peaks: &Peaks, now_ms: u64) -> Suggestion {
    let whole = seen::whole(peaks, now_ms);
    let evidence = Evidence::of(whole.hours());
    let room = Room::of(present, &whole);
    let draft = |lane: &Lane| Draft {
        now: lane.clone(),
        new: lane.clone(),
        seen: seen::lane(peaks, &lane.name, now_ms),
        why: BTreeMap::new(),
    };
    let mut drafts: Vec<Draft> = present.lanes.iter().map(draft).collect();
    let mut notes = Vec::new();
    if evidence > Evidence::None {
        match room {
            Some(room) => share::divide(&mut drafts, room, evidence, &mut notes),
            None => notes.push(no_room(present, &whole)),
        }
        for draft in &mut drafts {
            threshold::waiting(draft);
            threshold::shedding(draft, &whole, evidence);
            threshold::leaks(draft, evidence);
        }
        threshold::told(&drafts, &whole, &mut notes);
    }
    let applications = share::applications(&present.applications, &drafts);
    gone(present, peaks, now_ms, &mut notes);
    Suggestion {
        mode: present.mode.clone(),
        hours_seen: whole.hours(),
        hours_looked_at: HOURS,
        evidence,
        evidence_text: evidence.text().to_owned(),
        room,
        whole,
        lanes: drafts.into_iter().map(told).collect(),
        applications,
        notes,
    }
}

fn told(draft: Draft) -> LaneAdvice {
    let Draft { now, new, seen, mut why } = draft;
    let pairs = now.settings().into_iter().zip(new.settings());
    let advice = pairs.map(|((key, present), (_, suggested))| {
        let why = why.remove(key).unwrap_or_default();
        Advice { key: key.to_owned(), present, suggested, why }
    });
    LaneAdvice { advice: advice.collect(), lane: now.name, priority: now.priority, seen }
}

fn no_room(present: &Present, whole: &WholeSeen) -> String {
    match whole.server {
        None => {
            "PostgreSQL's limits were never seen: quotas and reserves are left alone. A [monitor] sees them"
                .to_owned()
        }
        Some(server) => format!(
            "headroom = {} leaves nothing of the {} usable connections: quotas and reserves are left alone",
            present.headroom, server.usable
        ),
    }
}

/// Lanes that were seen and are in the configuration no more.
fn gone(present: &Present, peaks: &Peaks, now_ms: u64, notes: &mut Vec<String>) {
    const TOLD_MAX: usize = 10;
    let names = seen::lanes(peaks, now_ms).into_iter();
    let gone: Vec<String> = names
        .filter(|name| !present.lanes.iter().any(|lane| lane.name == *name))
        .map(|name| plain(&name))
        .collect();
    if !gone.is_empty() {
        let more = if gone.len() > TOLD_MAX { ", …" } else { "" };
        let shown = gone.iter().take(TOLD_MAX).cloned().collect::<Vec<_>>().join(", ");
        notes.push(format!("lanes that were seen and are not configured any more: {shown}{more}"));
    }
}
