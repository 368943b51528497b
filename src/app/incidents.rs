//! Incidents open and close by themselves: once a second the criteria are looked at, and the open incident gets its figures.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::App;
use crate::clock::{self, Moment, WallMs};
use crate::config::checked::Config;
use crate::config::settings::ProbeSettings;
use crate::incident::archive::Archive;
use crate::incident::book::{self, Act, Book};
use crate::incident::exit::{Criterion, Exit, Facts, LaneTotals, ProbeRule, Rules, Span};
use crate::incident::history::Point;
use crate::incident::record::{Incident, LaneFigures, Look, Said, Summary};
use crate::link::meter::TransactionEnd;
use crate::reason::{Reason, SqlState};
use crate::snapshot::{ExitRow, IncidentRow, LaneRow, UsageRow};

/// Time between two looks, and the shortest one, for a `hold_for` of a few seconds.
const EVERY: Duration = Duration::from_secs(1);
const EVERY_AT_LEAST: Duration = Duration::from_millis(100);
/// Looks in a window at least.
const LOOKS: u32 = 20;
/// An open incident is written to disk at least so often: a crash costs figures of that long.
const SAVE_EVERY: Duration = Duration::from_secs(15);
/// Entries of the timeline looked at again: an incident begins with those before it.
const CONTEXT: u64 = 50;
/// Intervals after which an answer is too old.
const FRESH_INTERVALS: u32 = 3;
const TOO_MANY_CLIENTS: SqlState = SqlState(*b"53300");

/// Refusals since start, by lane and reason.
type Refusals = Vec<(Arc<str>, Reason, u64)>;

/// What is kept between two looks.
pub(super) struct Incidents {
    pub(super) exit: Mutex<Exit>,
    pub(super) book: Mutex<Book>,
    archive: Archive,
    /// Records are written one after the other, the newest last.
    saving: Arc<tokio::sync::Mutex<()>>,
    /// The one that was closed last, until the disk has it as it ended.
    unsaved: Arc<Mutex<Option<Box<Incident>>>>,
    /// The configuration changed.
    pub(super) changed: Notify,
    /// Somebody said FREEZE: whoever asks next whether all is over must hear of the incident.
    pub(super) stirred: Notify,
    /// Times the monitor was told "too many clients".
    pub(super) monitor_full: AtomicU64,
    /// Times PostgreSQL's log has it, or why it cannot be read.
    pub(super) logged: Mutex<Result<u64, String>>,
}

impl Incidents {
    /// With what the state directory holds. Blocks on the disk.
    pub(super) fn new(config: &Config, now: Moment) -> Self {
        let archive = Archive::new(&config.state_directory);
        let found = archive.load();
        Self {
            exit: Mutex::new(Exit::new(rules(config), now)),
            book: Mutex::new(Book::new(found.open, found.closed)),
            archive,
            saving: Arc::default(),
            unsaved: Arc::default(),
            stirred: Notify::new(),
            changed: Notify::new(),
            monitor_full: AtomicU64::new(0),
            logged: Mutex::new(Err("PostgreSQL's log was not read yet".to_owned())),
        }
    }
}

/// What the criteria are told of the configuration.
pub(super) fn rules(config: &Config) -> Rules {
    let exit = &config.exit;
    let probe = |probe: &ProbeSettings| ProbeRule {
        name: probe.name.clone(),
        expect: probe.expect,
        fresh_for: probe.interval * FRESH_INTERVALS + probe.timeout,
    };
    Rules {
        usage_below: exit.usage_below,
        hold_for: exit.hold_for,
        lanes: exit.critical_lanes.clone(),
        failures_below: exit.failures_below,
        watches_log: exit.log_file.is_some(),
        probes: exit.probes.iter().map(probe).collect(),
    }
}

impl App {
    /// Looks until the process ends.
    pub(super) async fn watch_incidents(self: Arc<Self>) {
        let open = self.incidents.book.lock().open().map(Incident::summary);
        if let Some(open) = open {
            let text = format!("incident {} is still open: {}", open.id, open.cause);
            self.note("restore", "", None, &text);
        }
        let mut before = Before { fresh: self.timeline.next_seq(), ..Before::default() };
        loop {
            self.look(&mut before);
            let every = (self.config.load().exit.hold_for / LOOKS).clamp(EVERY_AT_LEAST, EVERY);
            let _ = tokio::time::timeout(every, self.incidents.stirred.notified()).await;
        }
    }

    fn look(&self, before: &mut Before) {
        let now = clock::now();
        let wall = clock::wall_now();
        let config = self.config.load_full();
        // Without what links do, which would mean to look at each of them.
        let rows = self.hub.guard(|guard, now| guard.rows(now));
        let (facts, usage, refusals) = self.exit_facts(&rows);
        let (connections, bypass) = (usage.connections, usage.bypass);
        self.record_peaks(now, &rows, &usage, &refusals);
        let known = |figure: u32| facts.usage.map(|_| figure);
        let point = Point { percent: facts.usage, connections: known(connections), bypass: known(bypass) };
        self.history.lock().record(now, point);
        let (criteria, met, probes) = {
            let mut exit = self.incidents.exit.lock();
            exit.observe(now, &facts);
            (exit.criteria(now), exit.is_met(now), exit.numbers(now))
        };
        let entries = self.timeline.since(before.fresh.saturating_sub(CONTEXT));
        let next = entries.last().map_or(before.fresh, |entry| entry.seq + 1);
        let fresh = std::mem::replace(&mut before.fresh, next);
        let book_facts = book::Facts {
            usage: facts.usage,
            opens_at: config.opens_at(),
            too_many_clients: facts.too_many_clients,
            logged: facts.logged.as_ref().copied().unwrap_or(before.logged),
            met,
            observe: config.settings.limits.observe,
            hold_for_ms: u64::try_from(config.exit.hold_for.as_millis()).unwrap_or(u64::MAX),
        };
        before.logged = book_facts.logged;
        let look = Look {
            usage: facts.usage,
            connections,
            bypass,
            lanes: before.figures(&rows, &facts.lanes),
            probes,
        };
        let said: Vec<Said> = criteria.iter().map(|criterion| said(criterion, wall)).collect();
        let act = {
            let mut book = self.incidents.book.lock();
            book.record(wall, &look, said);
            let act = book.step(wall, &book_facts, &entries, fresh);
            if let Some(Act::Closed(incident)) = &act {
                // Before anybody can see that it is over: until the disk has it, its record is here.
                *self.incidents.unsaved.lock() = Some(incident.clone());
            }
            if matches!(act, Some(Act::Opened(_))) {
                // It begins with what began it.
                book.record(wall, &look, Vec::new());
            }
            act
        };
        match act {
            Some(Act::Opened(summary)) => self.opened(now, before, &summary),
            Some(Act::Closed(incident)) => self.closed(*incident),
            None if now.since(before.saved_at) >= SAVE_EVERY => {
                before.saved_at = now;
                self.save_open();
            }
            None => {}
        }
    }

    fn opened(&self, now: Moment, before: &mut Before, summary: &Summary) {
        self.incidents.exit.lock().began(now);
        self.note("incident_opened", "", None, &format!("incident {}: {}", summary.id, summary.cause));
        before.saved_at = now;
        self.save_open();
    }

    fn closed(&self, incident: Incident) {
        let lasted = incident.closed_at.unwrap_or_default().0.saturating_sub(incident.opened_at.0);
        let paused = self.hub.guard(|guard, _| guard.pauses());
        let mut text = format!(
            "incident {}: every criterion was met for {}; it lasted {}",
            incident.id,
            Span(Duration::from_millis(incident.hold_for_ms)),
            Span(Duration::from_millis(lasted))
        );
        for (words, ramps) in [("still paused", false), ("still resuming", true)] {
            let lanes = paused.iter().filter(|pause| pause.ramp_over.is_some() == ramps);
            let names: Vec<&str> = lanes.map(|pause| &*pause.lane).collect();
            if !names.is_empty() {
                text += &format!("; {words}: {}", names.join(", "));
            }
        }
        self.note("incident_closed", "", None, &text);
        self.save(incident);
    }

    fn save_open(&self) {
        let open = self.incidents.book.lock().open().cloned();
        if let Some(open) = open {
            self.save(open);
        }
    }

    /// Writes a record without anybody waiting for the disk.
    fn save(&self, incident: Incident) {
        let (archive, saving) = (self.incidents.archive.clone(), self.incidents.saving.clone());
        let (unsaved, id, is_over) =
            (self.incidents.unsaved.clone(), incident.id, incident.closed_at.is_some());
        tokio::spawn(async move {
            let _last_word = saving.lock().await;
            let saved = tokio::task::spawn_blocking(move || archive.save(&incident)).await;
            match saved {
                Ok(Err(error)) => {
                    tracing::error!(%error, "the incident could not be saved: a restart will not know of it");
                }
                _ if is_over => drop(unsaved.lock().take_if(|kept| kept.id == id)),
                _ => {}
            }
        });
    }

    /// The last word of the process about an open incident. Blocks on the disk.
    pub(super) fn save_open_at_the_end(&self) {
        if let Some(open) = self.incidents.book.lock().open()
            && let Err(error) = self.incidents.archive.save(open)
        {
            tracing::error!(%error, "the incident could not be saved");
        }
    }

    /// Of each lane, what it committed, tried and failed; who was refused among it.
    fn lane_totals(&self, rows: &[LaneRow], refusals: &Refusals) -> Vec<LaneTotals> {
        let lanes = self.hub.lanes.load();
        let totals = rows.iter().filter_map(|row| {
            let meter = &lanes.iter().find(|lane| lane.name == row.lane)?.meter;
            let ends: u64 = TransactionEnd::ALL.into_iter().map(|end| meter.ends(end)).sum();
            let lost = meter.ends(TransactionEnd::Reset) + meter.ends(TransactionEnd::Lost);
            let refused = refusals.iter().filter(|(lane, ..)| *lane == row.lane).map(|(.., count)| count);
            let refused: u64 = refused.sum();
            Some(LaneTotals {
                name: row.lane.clone(),
                committed: meter.ends(TransactionEnd::Committed),
                attempts: ends + refused,
                failures: meter.failed.load(Ordering::Relaxed) + lost + refused,
            })
        });
        totals.collect()
    }

    fn exit_facts(&self, rows: &[LaneRow]) -> (Facts, UsageRow, Refusals) {
        let (usage, full, refusals, carried_out) = self.hub.guard(|guard, now| {
            let (usage, full) = (guard.usage_row(now), guard.too_many_clients_total());
            (usage, full, guard.refusals(), guard.refusals_carried_out())
        });
        let lanes = self.lane_totals(rows, &carried_out);
        let of_lanes = carried_out.iter().map(|(_, reason, count)| (*reason, *count));
        let of_strangers = self.hub.counters.strangers_refused.iter();
        let of_strangers: Vec<_> = of_strangers.map(|entry| (*entry.key(), *entry.value())).collect();
        let refused =
            of_lanes.chain(of_strangers).filter(|(reason, _)| reason.sqlstate() == TOO_MANY_CLIENTS);
        let facts = Facts {
            usage: usage.percent.filter(|_| !usage.stale && usage.max_connections > 0),
            too_many_clients: full + self.incidents.monitor_full.load(Ordering::Relaxed),
            refused: refused.map(|(_, count)| count).sum(),
            logged: self.incidents.logged.lock().clone(),
            lanes,
        };
        (facts, usage, refusals)
    }

    // ------------------------------------------------------------ the read model

    pub(super) fn exit_rows(&self) -> Vec<ExitRow> {
        let (now, wall) = (clock::now(), clock::wall_now());
        let criteria = self.incidents.exit.lock().criteria(now);
        let row = |criterion: Criterion| {
            let since_ms = u64::try_from(now.since(criterion.since).as_millis()).unwrap_or(u64::MAX);
            ExitRow {
                criterion: criterion.name,
                state: criterion.state.word(),
                since: wall.0.saturating_sub(since_ms),
                since_ms,
                measured: criterion.measured,
                wanted: criterion.wanted,
                reason: criterion.reason,
            }
        };
        criteria.into_iter().map(row).collect()
    }

    pub(super) fn incident_rows(&self) -> Vec<IncidentRow> {
        let wall = clock::wall_now().0;
        let list = self.incidents.book.lock().list();
        let row = |summary: Summary| IncidentRow {
            id: summary.id,
            opened_at: summary.opened_at.0,
            closed_at: summary.closed_at.map(|at| at.0),
            duration_ms: summary.closed_at.map_or(wall, |at| at.0).saturating_sub(summary.opened_at.0),
            trigger: summary.trigger,
            cause: summary.cause,
            peak_percent: summary.peak_percent,
            events: summary.events,
        };
        list.into_iter().map(row).collect()
    }

    /// The record of an incident as JSON. Of one that is over it is read from the disk.
    pub(super) fn incident_record(&self, id: u64) -> Option<String> {
        if let Some(open) = self.incidents.book.lock().open().filter(|open| open.id == id) {
            return serde_json::to_string(open).ok();
        }
        if let Some(over) = self.incidents.unsaved.lock().as_deref().filter(|over| over.id == id) {
            return serde_json::to_string(over).ok();
        }
        let known = self.incidents.book.lock().list().iter().any(|summary| summary.id == id);
        let read = known.then(|| self.incidents.archive.read(id))?;
        read.inspect_err(|error| tracing::error!(%error, incident = id, "this incident cannot be read")).ok()
    }
}

/// What a look has to know of the one before.
#[derive(Default)]
struct Before {
    /// The timeline from this number on is new.
    fresh: u64,
    logged: u64,
    saved_at: Moment,
    /// Committed and failed, by lane.
    counted: HashMap<Arc<str>, (u64, u64)>,
}

impl Before {
    /// Figures of the lanes: what they have, and what was counted since the last look.
    fn figures(&mut self, rows: &[LaneRow], totals: &[LaneTotals]) -> Vec<(Arc<str>, LaneFigures)> {
        let figures = rows.iter().map(|row| {
            let total = totals.iter().find(|total| total.name == row.lane);
            let now = total.map_or((0, 0), |total| (total.committed, total.failures));
            // Of the first look nothing is known to be new.
            let before = self.counted.insert(row.lane.clone(), now).unwrap_or(now);
            let figures = LaneFigures {
                state: row.state.word().to_owned(),
                slots: row.slots,
                waiting: row.waiting,
                committed: now.0.saturating_sub(before.0),
                failed: now.1.saturating_sub(before.1),
            };
            (row.lane.clone(), figures)
        });
        figures.collect()
    }
}

fn said(criterion: &Criterion, wall: WallMs) -> Said {
    Said {
        at: wall.into(),
        criterion: criterion.name.to_string(),
        state: criterion.state.word().to_owned(),
        measured: criterion.measured.clone(),
        wanted: criterion.wanted.clone(),
        reason: criterion.reason.clone(),
    }
}
