//! What is seen for `pgweir suggest`: by the sweep whenever it looks at all links, once a second beside the criteria, and kept on disk.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;

use super::App;
use super::rows::ms;
use super::suspects::REST_PER_WORK;
use crate::advise::peaks::{LaneLook, Peaks, Server, WholeLook};
use crate::advise::seen::{self, Peak, Seen};
use crate::advise::suggest;
use crate::clock::{self, Moment};
use crate::incident::peaks::PeaksFile;
use crate::leaks::gaps::{Gaps, Idle, Later};
use crate::link::hub::Lane;
use crate::link::meter::{BOUNDS_US, Meter, TransactionEnd};
use crate::link::shared::{LinkShared, LinkState, flag};
use crate::reason::Reason;
use crate::snapshot::{LaneRow, LaneState, PeaksOfLane, PeaksRow, UsageRow};

/// A crash costs figures of that long.
const SAVE_EVERY: Duration = Duration::from_secs(300);
/// Time that one look stands for at most: a host that slept saw nothing meanwhile.
const PASSED_MAX: Duration = Duration::from_secs(10);

/// What is kept between two looks, and of all of them.
pub(super) struct PeakWatch {
    peaks: Mutex<Peaks>,
    /// None where there is one that is of no use and could not be put aside: it is not written over.
    file: Option<PeaksFile>,
    /// By number of the lane, since the last look.
    between: Mutex<Vec<Between>>,
    gaps: Mutex<Followed>,
    counted: Mutex<Counted>,
}

/// What sweeps saw of a lane.
#[derive(Clone, Copy, Debug, Default)]
struct Between {
    in_use: u32,
    gap: Duration,
    cut: Duration,
    cuts: u32,
}

/// Counters as they were at the last look.
#[derive(Default)]
struct Counted {
    at: Option<Moment>,
    saved_at: Moment,
    lanes: HashMap<Arc<str>, (u64, [u64; BOUNDS_US.len() + 1])>,
    refused: HashMap<(Arc<str>, Reason), u64>,
}

impl PeakWatch {
    /// With what the state directory holds. A file that is of no use is put aside: nothing rests on it but advice. Blocks on the disk.
    pub(super) fn new(state: &Path) -> Self {
        let (peaks, file) = load(PeaksFile::new(state));
        Self {
            peaks: Mutex::new(peaks),
            file,
            between: Mutex::default(),
            gaps: Mutex::default(),
            counted: Mutex::default(),
        }
    }
}

fn load(file: PeaksFile) -> (Peaks, Option<PeaksFile>) {
    let read = match file.load() {
        Ok(None) => Ok(Peaks::default()),
        Ok(Some(text)) => Peaks::load(&text),
        Err(error) => Err(error.to_string()),
    };
    let why = match read {
        Ok(peaks) => return (peaks, Some(file)),
        Err(why) => why,
    };
    let file_name = file.path().display().to_string();
    match file.set_aside(clock::wall_now()) {
        Ok(aside) => {
            let aside = aside.display().to_string();
            tracing::error!(
                file = file_name,
                why,
                aside,
                "this is not what pgweir wrote, and was put aside: the peaks for pgweir suggest begin anew"
            );
            (Peaks::default(), Some(file))
        }
        Err(error) => {
            tracing::error!(file = file_name, why, %error, "this is not what pgweir wrote, and cannot be put aside: peaks for pgweir suggest begin anew and are not saved");
            (Peaks::default(), None)
        }
    }
}

/// Gaps that are known, when they were looked at last, and how long that took.
#[derive(Default)]
struct Followed {
    gaps: Gaps<Arc<LinkShared>>,
    looked_at: Moment,
    worked: Duration,
}

/// What one pass over all links sees.
#[derive(Default)]
pub(super) struct Pass {
    in_use: Vec<u32>,
    idle: Vec<(Idle, Arc<LinkShared>)>,
}

impl Pass {
    /// A link as it is now. Idle ones, most of all, cost three loads.
    pub(super) fn see(&mut self, link: &Arc<LinkShared>) {
        let generation = link.generation();
        let (state, since) = link.state();
        if !matches!(state, LinkState::Active | LinkState::IdleInTransaction) {
            return;
        }
        let lane = link.with_labels(|labels| labels.lane);
        let at = usize::from(lane.0);
        if at >= self.in_use.len() {
            self.in_use.resize(at + 1, 0);
        }
        self.in_use[at] += 1;
        // What idles for a living, and what is rolled back already, says nothing of clients.
        let aside = flag::EXEMPT | flag::WATCH_ONLY | flag::RESET;
        let idles = state == LinkState::IdleInTransaction;
        if idles && link.flags() & aside == 0 && link.generation() == generation {
            self.idle.push((Idle { link: link.id, lane, generation, since }, Arc::clone(link)));
        }
    }
}

impl App {
    /// Takes what a pass saw; nothing is in it between two looks at all links. Gaps that are known are followed all the same.
    pub(super) fn passed(&self, now: Moment, pass: Pass) {
        let later = |_, link: &Arc<LinkShared>| {
            let generation = link.generation();
            let (state, since) = link.state();
            let reset_at = link.reset_at.load(Ordering::Relaxed);
            Later {
                generation,
                since,
                ended: state == LinkState::Closing,
                reset_at: (reset_at != 0).then(|| Moment::from_micros(reset_at)),
                reset_period: Some(link.reset_period.load(Ordering::Relaxed)).filter(|period| *period != 0),
            }
        };
        let over = {
            let mut followed = self.peak_watch.gaps.lock();
            // A thousand of them are a thousand cache misses. What a look comes too late makes a gap longer, by little for what is advised.
            let rests = now.since(followed.looked_at) < followed.worked * REST_PER_WORK;
            if rests && pass.idle.is_empty() {
                Vec::new()
            } else {
                let began = clock::now();
                let over = followed.gaps.sweep(now, pass.idle, later);
                (followed.looked_at, followed.worked) = (now, clock::now().since(began));
                over
            }
        };
        let mut between = self.peak_watch.between.lock();
        let mut lane = |lane: usize, see: &dyn Fn(&mut Between)| {
            if lane >= between.len() {
                between.resize(lane + 1, Between::default());
            }
            see(&mut between[lane]);
        };
        for (at, in_use) in pass.in_use.into_iter().enumerate().filter(|(_, in_use)| *in_use > 0) {
            lane(at, &|one| one.in_use = one.in_use.max(in_use));
        }
        for gap in over {
            lane(usize::from(gap.lane.0), &|one| {
                if gap.honest {
                    one.gap = one.gap.max(gap.lasted);
                } else {
                    one.cut = one.cut.max(gap.lasted);
                    one.cuts += 1;
                }
            });
        }
    }

    /// Puts what is seen now into the running hour.
    pub(super) fn record_peaks(
        &self,
        now: Moment,
        rows: &[LaneRow],
        usage: &UsageRow,
        refusals: &[(Arc<str>, Reason, u64)],
    ) {
        let lanes = self.hub.lanes.load();
        let between = std::mem::take(&mut *self.peak_watch.between.lock());
        let mut counted = self.peak_watch.counted.lock();
        let passed = counted.at.replace(now).map_or(Duration::ZERO, |at| now.since(at)).min(PASSED_MAX);
        let refused = counted.refused(refusals);
        let looks: Vec<LaneLook<'_>> = rows
            .iter()
            .map(|row| {
                let lane = lanes.iter().find(|lane| lane.name == row.lane);
                let seen =
                    lane.and_then(|lane| between.get(usize::from(lane.id.0)).copied()).unwrap_or_default();
                let (transactions, wait_ms) = lane.map_or((0, 0), |lane| counted.lane(lane));
                let is_full =
                    matches!(row.state, LaneState::Open | LaneState::Over) && row.slots >= row.quota;
                LaneLook {
                    lane: &row.lane,
                    slots: row.slots,
                    demand: row.slots + if is_full { row.waiting } else { 0 },
                    in_use: seen.in_use,
                    waiting: row.waiting,
                    wait_ms: wait_ms.max(row.max_wait_ms),
                    transactions,
                    gap_ms: ms(seen.gap),
                    cut_ms: ms(seen.cut),
                    cuts: seen.cuts,
                    refused: refused.get(&row.lane).map_or(&[], Vec::as_slice),
                }
            })
            .collect();
        self.peak_watch.peaks.lock().record(clock::wall_now().0, ms(passed), &whole(usage), looks);
        if now.since(counted.saved_at) >= SAVE_EVERY {
            counted.saved_at = now;
            self.save_peaks();
        }
    }

    /// Writes them without anybody waiting for the disk.
    fn save_peaks(&self) {
        let Some(file) = self.peak_watch.file.clone() else { return };
        let peaks = self.peak_watch.peaks.lock().clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = file.save(|to| peaks.save(to)) {
                tracing::error!(%error, "peaks could not be saved: a restart will not know of them");
            }
        });
    }

    /// The last word of the process about them. Blocks on the disk.
    pub(super) fn save_peaks_at_the_end(&self) {
        let Some(file) = &self.peak_watch.file else { return };
        if let Err(error) = file.save(|to| self.peak_watch.peaks.lock().save(to)) {
            tracing::error!(%error, "peaks could not be saved");
        }
    }

    // ------------------------------------------------------------ the read model

    /// The week that ends now: lanes that are configured, then those that were, then all together.
    pub(super) fn peaks_rows(&self) -> Vec<PeaksRow> {
        let config = self.config.load();
        let peaks = self.peak_watch.peaks.lock();
        let now = clock::wall_now().0;
        let mut names: Vec<String> = config.settings.lanes.iter().map(|lane| lane.name.to_string()).collect();
        names.extend(
            seen::lanes(&peaks, now).into_iter().filter(|name| !names.contains(name)).collect::<Vec<_>>(),
        );
        let mut rows: Vec<PeaksRow> =
            names.into_iter().map(|name| lane_row(&name, seen::lane(&peaks, &name, now))).collect();
        let whole = seen::whole(&peaks, now);
        rows.push(PeaksRow {
            lane: None,
            hours: whole.hours(),
            slots_peak: whole.own.value,
            slots_peak_at: at(whole.own),
            slots_usual: whole.own.usual,
            of_lane: None,
            bypass_peak: Some(whole.bypass.value),
            percent_of_max_peak: Some(whole.of_max_permille.value as f64 / 10.0),
        });
        rows
    }

    /// What `pgweir suggest` says, as JSON.
    pub(super) fn suggestion_text(&self) -> String {
        let present = super::suggest::present(&self.config.load());
        let peaks = self.peak_watch.peaks.lock().clone();
        let suggestion = suggest::suggest(&present, &peaks, clock::wall_now().0);
        serde_json::to_string(&suggestion).unwrap_or_default()
    }
}

impl Counted {
    /// Transactions since the last look, and the longest wait that ended since, at least, in ms.
    fn lane(&mut self, lane: &Lane) -> (u64, u64) {
        let meter: &Meter = &lane.meter;
        let transactions = TransactionEnd::ALL.into_iter().map(|end| meter.ends(end)).sum();
        let (waits, _) = meter.wait.counts();
        let known = self.lanes.entry(lane.name.clone()).or_default();
        let (transactions_before, waits_before) = std::mem::replace(known, (transactions, waits));
        let longest = (0..waits.len()).rev().find(|at| waits[*at] > waits_before[*at]);
        let bound_us = longest.and_then(|at| at.checked_sub(1)).map_or(0, |at| BOUNDS_US[at]);
        (transactions.saturating_sub(transactions_before), bound_us / 1000)
    }

    /// Refusals since the last look, by lane.
    fn refused(&mut self, totals: &[(Arc<str>, Reason, u64)]) -> HashMap<Arc<str>, Vec<(&'static str, u64)>> {
        let mut new: HashMap<Arc<str>, Vec<(&'static str, u64)>> = HashMap::new();
        for (lane, reason, total) in totals {
            let before = self.refused.insert((lane.clone(), *reason), *total).unwrap_or(0);
            if *total > before {
                new.entry(lane.clone()).or_default().push((reason.label(), total - before));
            }
        }
        new
    }
}

fn whole(usage: &UsageRow) -> WholeLook {
    let is_known = usage.max_connections > 0 && !usage.stale;
    let known = |figure: Option<f64>| figure.filter(|_| is_known).unwrap_or(0.0);
    let Server { max_connections, usable } =
        Server { max_connections: usage.max_connections, usable: usage.usable };
    WholeLook {
        own: usage.own_slots,
        bypass: if is_known { usage.bypass } else { 0 },
        usage: known(usage.percent),
        of_max: known(usage.percent_of_max),
        server: (max_connections > 0).then_some(Server { max_connections, usable }),
    }
}

fn lane_row(name: &str, seen: Seen) -> PeaksRow {
    let refusals: Vec<String> =
        seen.refused.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    PeaksRow {
        lane: Some(name.into()),
        hours: seen.hours.into(),
        slots_peak: seen.slots.value,
        slots_peak_at: at(seen.slots),
        slots_usual: seen.slots.usual,
        of_lane: Some(PeaksOfLane {
            demand_peak: seen.demand.value,
            in_use_peak: seen.in_use.value,
            in_use_usual: seen.in_use.usual,
            waiting_peak: seen.waiting.value,
            max_wait_ms: seen.wait_ms.value,
            transactions: seen.transactions,
            refused: seen.refused.iter().map(|(_, count)| count).sum(),
            refusals: refusals.join(", "),
            idle_in_transaction_ms: seen.gap_ms.value,
            idle_in_transaction_at: at(seen.gap_ms),
            idle_in_transaction_usual_ms: seen.gap_ms.usual,
            cut_ms: seen.cut_ms.value,
            cuts: seen.cuts,
        }),
        bypass_peak: None,
        percent_of_max_peak: None,
    }
}

fn at(peak: Peak) -> Option<u64> {
    (peak.at > 0).then_some(peak.at)
}
