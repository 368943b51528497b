//! What was seen of each lane, hour by hour, for eight days: what `pgweir suggest` reckons with. Pure: whoever looks passes what was seen,
//! and when.
//!
//! Bounds: [`HOURS_KEPT`] hours, and the room of [`CELLS_MAX`] cells of 32 bytes, one for each hour and lane in which there was anything, and one for
//! each [`REFUSALS_PER_CELL`] kinds of refusals of an hour: 200 kB. With
//! more than 32 busy lanes fewer hours are kept. Where something has to go, it is the hour farthest from now: a clock that was wrong for a
//! while costs as many hours as it was wrong.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

/// Hours kept: a week, and a day on either side of it.
pub const HOURS_KEPT: usize = 192;
/// Cells kept, of all hours together, those counted that refusals take.
pub const CELLS_MAX: usize = 6144;
/// Kinds of refusals (a lane, a reason, a count) that take no more room than one cell.
const REFUSALS_PER_CELL: usize = 4;
/// Lanes of one hour at most; more are not seen. A configuration has at most 500.
const LANES_MAX: usize = 1024;
/// Pairs of lane and reason of one hour at most; more are not told apart.
const REFUSALS_MAX: usize = 512;
/// Names of lanes and reasons: more than there are cells.
const NAMES_MAX: usize = 8192;
/// Format of the file.
const VERSION: u32 = 1;

const HOUR_MS: u64 = 3_600_000;

/// What one look saw of a lane; counts and gaps are those since the look before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaneLook<'a> {
    /// Its name.
    pub lane: &'a str,
    /// Slots it has.
    pub slots: u32,
    /// Slots it would have had: with those who wait because it is full.
    pub demand: u32,
    /// Links in a request or a transaction at once.
    pub in_use: u32,
    /// Clients that wait, for whatever reason.
    pub waiting: u32,
    /// The longest wait, in ms.
    pub wait_ms: u64,
    /// Transactions ended.
    pub transactions: u64,
    /// The longest time idle in transaction that the client itself ended by going on, in ms.
    pub gap_ms: u64,
    /// The longest that did not end so: reset, disconnected, or left by its client.
    pub cut_ms: u64,
    /// How many did not.
    pub cuts: u32,
    /// Refusals by reason.
    pub refused: &'a [(&'static str, u64)],
}

/// What it saw of PostgreSQL; 0 where nothing is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WholeLook {
    /// Slots of pgweir's, replication left out.
    pub own: u32,
    /// Client backends that are not pgweir's.
    pub bypass: u32,
    /// Usage in percent of usable.
    pub usage: f64,
    /// Connections in percent of max_connections.
    pub of_max: f64,
    /// PostgreSQL's limits, where they are known.
    pub server: Option<Server>,
}

/// PostgreSQL's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// max_connections.
    pub max_connections: u32,
    /// Less the reserved ones.
    pub usable: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A lane in an hour: the highest of each figure, and sums of what is counted. Saturating.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Cell {
    pub lane: u16,
    #[serde(skip_serializing_if = "is_zero")]
    pub slots: u16,
    #[serde(skip_serializing_if = "is_zero")]
    pub demand: u16,
    #[serde(skip_serializing_if = "is_zero")]
    pub in_use: u16,
    #[serde(skip_serializing_if = "is_zero")]
    pub waiting: u16,
    #[serde(skip_serializing_if = "is_zero")]
    pub cuts: u16,
    #[serde(skip_serializing_if = "is_zero")]
    pub wait_ms: u32,
    #[serde(skip_serializing_if = "is_zero")]
    pub gap_ms: u32,
    #[serde(skip_serializing_if = "is_zero")]
    pub cut_ms: u32,
    #[serde(skip_serializing_if = "is_zero")]
    pub transactions: u32,
}

/// PostgreSQL in an hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Whole {
    /// Of this hour pgweir saw so much.
    pub seen_ms: u32,
    #[serde(skip_serializing_if = "is_zero")]
    pub own: u16,
    #[serde(skip_serializing_if = "is_zero")]
    pub bypass: u16,
    #[serde(skip_serializing_if = "is_zero")]
    pub usage_permille: u16,
    #[serde(skip_serializing_if = "is_zero")]
    pub of_max_permille: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Refused {
    pub lane: u16,
    pub reason: u16,
    pub count: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Hour {
    pub whole: Whole,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lanes: Vec<Cell>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<Refused>,
}

impl Hour {
    /// The room it takes, in cells.
    fn size(&self) -> usize {
        self.lanes.len() + self.refused.len().div_ceil(REFUSALS_PER_CELL)
    }

    fn refused(&mut self, lane: u16, reason: u16, count: u32) {
        if let Some(known) = self.refused.iter_mut().find(|one| one.lane == lane && one.reason == reason) {
            known.count = known.count.saturating_add(count);
        } else if self.refused.len() < REFUSALS_MAX {
            self.refused.push(Refused { lane, reason, count });
        }
    }

    /// Of all names in it.
    fn numbers(&self) -> impl Iterator<Item = u16> + '_ {
        let refused = self.refused.iter().flat_map(|one| [one.lane, one.reason]);
        self.lanes.iter().map(|cell| cell.lane).chain(refused)
    }
}

/// As it is kept on disk.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    names: Vec<String>,
    server: Option<Server>,
    hours: BTreeMap<u64, Hour>,
}

#[derive(Serialize)]
struct DocumentRef<'a> {
    version: u32,
    names: &'a [String],
    server: Option<Server>,
    hours: &'a BTreeMap<u64, Hour>,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Peaks {
    names: Vec<String>,
    index: HashMap<String, u16>,
    server: Option<Server>,
    /// By hours since the Unix epoch.
    hours: BTreeMap<u64, Hour>,
    /// The room they take.
    cells: usize,
}

impl Peaks {
    /// Takes what was seen at `at_ms` (since the Unix epoch) of the time passed since the look before.
    pub fn record<'a>(
        &mut self,
        at_ms: u64,
        passed_ms: u64,
        look: &WholeLook,
        lanes: impl IntoIterator<Item = LaneLook<'a>>,
    ) {
        self.server = look.server.or(self.server);
        let now = at_ms / HOUR_MS;
        let whole = &mut self.hours.entry(now).or_default().whole;
        whole.seen_ms = whole.seen_ms.saturating_add(narrow(passed_ms)).min(narrow(HOUR_MS));
        raise(&mut whole.own, short(look.own));
        raise(&mut whole.bypass, short(look.bypass));
        raise(&mut whole.usage_permille, permille(look.usage));
        raise(&mut whole.of_max_permille, permille(look.of_max));
        self.make_room(now);
        for lane in lanes {
            self.one_lane(now, &lane);
        }
    }

    fn one_lane(&mut self, now: u64, look: &LaneLook<'_>) {
        if *look == (LaneLook { lane: look.lane, ..LaneLook::default() }) {
            return;
        }
        let Some(lane) = self.name(look.lane) else { return };
        let Some(cell) = self.cell(now, lane) else { return };
        raise(&mut cell.slots, short(look.slots));
        raise(&mut cell.demand, short(look.demand.max(look.slots)));
        raise(&mut cell.in_use, short(look.in_use));
        raise(&mut cell.waiting, short(look.waiting));
        raise(&mut cell.wait_ms, narrow(look.wait_ms));
        raise(&mut cell.gap_ms, narrow(look.gap_ms));
        raise(&mut cell.cut_ms, narrow(look.cut_ms));
        cell.cuts = cell.cuts.saturating_add(short(look.cuts));
        cell.transactions = cell.transactions.saturating_add(narrow(look.transactions));
        for (reason, count) in look.refused {
            let Some(reason) = self.name(reason) else { continue };
            let Some(hour) = self.hours.get_mut(&now) else { return };
            let before = hour.size();
            hour.refused(lane, reason, narrow(*count));
            self.cells += hour.size() - before;
        }
        self.make_room(now);
    }

    /// The lane's cell in this hour; none where there are too many already.
    fn cell(&mut self, now: u64, lane: u16) -> Option<&mut Cell> {
        let known = self.hours.get(&now)?.lanes.iter().position(|cell| cell.lane == lane);
        if let Some(at) = known {
            return self.hours.get_mut(&now)?.lanes.get_mut(at);
        }
        if self.hours.get(&now)?.lanes.len() >= LANES_MAX {
            return None;
        }
        self.cells += 1;
        self.hours.get_mut(&now)?.lanes.push(Cell { lane, ..Cell::default() });
        self.make_room(now);
        self.hours.get_mut(&now)?.lanes.last_mut()
    }

    /// The number of a name; none where there are too many.
    fn name(&mut self, name: &str) -> Option<u16> {
        if let Some(known) = self.index.get(name) {
            return Some(*known);
        }
        if self.names.len() >= NAMES_MAX {
            self.forget_names();
        }
        let number = u16::try_from(self.names.len()).ok().filter(|n| usize::from(*n) < NAMES_MAX)?;
        self.names.push(name.to_owned());
        self.index.insert(name.to_owned(), number);
        Some(number)
    }

    /// Forgets the hours farthest from `now` until the bounds hold.
    fn make_room(&mut self, now: u64) {
        while self.hours.len() > HOURS_KEPT || self.cells > CELLS_MAX {
            let ends = [self.hours.keys().next(), self.hours.keys().next_back()];
            let farthest = ends.into_iter().flatten().copied().max_by_key(|hour| hour.abs_diff(now));
            let Some(hour) = farthest.filter(|hour| *hour != now) else { return };
            self.cells -= self.hours.remove(&hour).map_or(0, |hour| hour.size());
        }
    }

    /// Forgets names that nothing is called by any more, and gives those that are left numbers without gaps.
    fn forget_names(&mut self) {
        let used: BTreeSet<u16> = self.hours.values().flat_map(Hour::numbers).collect();
        let moved: HashMap<u16, u16> = used.iter().copied().zip(0..).collect();
        let mut old = std::mem::take(&mut self.names);
        self.names = used
            .iter()
            .map(|number| old.get_mut(usize::from(*number)).map(std::mem::take).unwrap_or_default())
            .collect();
        self.index = self.names.iter().cloned().zip(0..).collect();
        for hour in self.hours.values_mut() {
            let lanes = hour.lanes.iter_mut().map(|cell| &mut cell.lane);
            let refused = hour.refused.iter_mut().flat_map(|one| [&mut one.lane, &mut one.reason]);
            lanes.chain(refused).for_each(|number| *number = moved.get(number).copied().unwrap_or(0));
        }
    }

    // ------------------------------------------------------------ disk

    /// Writes all of it as JSON.
    ///
    /// # Errors
    /// The writer's.
    pub fn save(&self, to: impl std::io::Write) -> std::io::Result<()> {
        let document =
            DocumentRef { version: VERSION, names: &self.names, server: self.server, hours: &self.hours };
        Ok(serde_json::to_writer(to, &document)?)
    }

    /// What [`Peaks::save`] wrote.
    ///
    /// # Errors
    /// What is wrong with it, for the log: it is not what pgweir wrote.
    pub fn load(text: &[u8]) -> Result<Self, String> {
        let document: Document = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if document.version != VERSION {
            return Err(format!("version {} is not known, {VERSION} is", document.version));
        }
        let Document { names, server, hours, .. } = document;
        let known = |number: u16| usize::from(number) < names.len();
        let cells: usize = hours.values().map(Hour::size).sum();
        let lanes: usize = hours.values().map(|hour| hour.lanes.len()).sum();
        let sound = |hour: &Hour| {
            hour.refused.len() <= REFUSALS_MAX
                && hour.lanes.iter().all(|cell| known(cell.lane))
                && hour.refused.iter().all(|one| known(one.lane) && known(one.reason))
        };
        if names.len() > NAMES_MAX || hours.len() > HOURS_KEPT || lanes > CELLS_MAX {
            return Err("holds more than pgweir ever writes".to_owned());
        }
        if !hours.values().all(sound) {
            return Err("names a lane or reason that it does not list".to_owned());
        }
        let numbers = (0_u16..).zip(&names).map(|(number, name)| (name.clone(), number));
        let index: HashMap<String, u16> = numbers.collect();
        if index.len() != names.len() {
            return Err("lists a name twice".to_owned());
        }
        let last = hours.keys().next_back().copied().unwrap_or_default();
        let mut peaks = Self { names, index, server, hours, cells };
        // Refusals were not counted before, and are no reason to do without the rest.
        peaks.make_room(last);
        Ok(peaks)
    }

    // ------------------------------------------------------------ what it holds

    /// PostgreSQL's limits as they were seen last.
    pub fn server(&self) -> Option<Server> {
        self.server
    }

    /// The hours from `first` to `last`, both included, by number.
    pub(super) fn hours(&self, first: u64, last: u64) -> impl Iterator<Item = (u64, &Hour)> + Clone {
        self.hours.range(first.min(last)..=last).map(|(number, hour)| (*number, hour))
    }

    /// The number of a name that is known.
    pub(super) fn number(&self, name: &str) -> Option<u16> {
        self.index.get(name).copied()
    }

    /// A name by its number.
    pub(super) fn called(&self, number: u16) -> &str {
        self.names.get(usize::from(number)).map_or("", String::as_str)
    }
}

fn raise<T: PartialOrd>(known: &mut T, new: T) {
    if new > *known {
        *known = new;
    }
}

fn short(value: u32) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn permille(percent: f64) -> u16 {
    // Saturating, and 0 for NaN: what a cast from a float does.
    (percent * 10.0).round() as u16
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may fail")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOON: u64 = 400_000 * HOUR_MS;

    fn lane(lane: &str, slots: u32) -> LaneLook<'_> {
        LaneLook { lane, slots, ..LaneLook::default() }
    }

    fn look(peaks: &mut Peaks, hour: u64, lanes: &[LaneLook<'_>]) {
        peaks.record(hour * HOUR_MS, 1000, &WholeLook::default(), lanes.iter().cloned());
    }

    fn saved(peaks: &Peaks) -> Vec<u8> {
        let mut text = Vec::new();
        peaks.save(&mut text).unwrap();
        text
    }

    #[test]
    fn an_hour_keeps_its_peaks_and_adds_up_what_is_counted() {
        let mut peaks = Peaks::default();
        for (slots, transactions, refused) in [(3, 10, 0), (9, 5, 2), (4, 0, 1)] {
            let refused = [("lane_full", refused)];
            let web = LaneLook {
                transactions,
                refused: &refused,
                gap_ms: 100 * u64::from(slots),
                ..lane("web", slots)
            };
            let whole = WholeLook { own: slots, usage: f64::from(slots) * 10.0, ..WholeLook::default() };
            peaks.record(NOON + 1000, 1000, &whole, [web]);
        }
        let (_, hour) = peaks.hours(400_000, 400_000).next().unwrap();
        let web = hour.lanes[0];
        assert_eq!((web.slots, web.demand, web.transactions, web.gap_ms), (9, 9, 15, 900));
        assert_eq!((hour.whole.seen_ms, hour.whole.own, hour.whole.usage_permille), (3000, 9, 900));
        assert_eq!((peaks.called(hour.refused[0].reason), hour.refused[0].count), ("lane_full", 3));
    }

    #[test]
    fn a_lane_of_which_nothing_was_seen_takes_no_room() {
        let mut peaks = Peaks::default();
        look(&mut peaks, 1, &[lane("web", 0), lane("cron", 1)]);
        assert_eq!((peaks.cells, peaks.number("web")), (1, None));
    }

    #[test]
    fn eight_days_are_kept_and_fewer_of_many_lanes() {
        let mut peaks = Peaks::default();
        for hour in 0..1000 {
            look(&mut peaks, hour, &[lane("web", 1)]);
        }
        assert_eq!(peaks.hours.keys().copied().collect::<Vec<_>>(), (808..1000).collect::<Vec<_>>());
        let names: Vec<String> = (0..500).map(|n| format!("lane {n}")).collect();
        for hour in 1000..1100 {
            let lanes: Vec<_> = names.iter().map(|name| lane(name, 1)).collect();
            look(&mut peaks, hour, &lanes);
        }
        assert_eq!((peaks.hours.len(), peaks.cells), (12, 6000));
        assert!(std::mem::size_of::<Cell>() <= 32);
        assert!(std::mem::size_of::<Refused>() * REFUSALS_PER_CELL <= 32);
    }

    const REASONS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

    /// An hour in which each of 64 lanes refused for each of these reasons.
    fn refusals(peaks: &mut Peaks, hour: u64, reasons: &[&'static str]) {
        let refused: Vec<(&'static str, u64)> = reasons.iter().map(|reason| (*reason, 1)).collect();
        let names: Vec<String> = (0..64).map(|n| format!("lane {n}")).collect();
        let lanes: Vec<_> =
            names.iter().map(|name| LaneLook { refused: &refused, ..lane(name, 1) }).collect();
        look(peaks, hour, &lanes);
    }

    #[test]
    fn refusals_take_room_of_the_same_bound() {
        let mut peaks = Peaks::default();
        for hour in 0..100 {
            refusals(&mut peaks, hour, &REASONS);
            assert!(peaks.cells <= CELLS_MAX, "{}", peaks.cells);
        }
        // 64 cells, and 512 refusals in the room of 128.
        assert_eq!((peaks.hours.len(), peaks.cells), (32, CELLS_MAX));
        assert_eq!(peaks.hours.keys().next_back(), Some(&99));
    }

    #[test]
    fn a_file_from_before_refusals_were_bounded_loses_its_oldest_hours_only() {
        let mut peaks = Peaks::default();
        for hour in 0..32 {
            refusals(&mut peaks, hour, &REASONS);
        }
        let whole = peaks.hours[&0].clone();
        peaks.hours.extend((32..96).map(|hour| (hour, whole.clone())));
        let back = Peaks::load(&saved(&peaks)).unwrap();
        assert_eq!((back.hours.len(), back.cells), (32, CELLS_MAX));
        assert_eq!(back.hours.keys().copied().collect::<Vec<_>>(), (64..96).collect::<Vec<_>>());
    }

    #[test]
    fn a_clock_that_was_wrong_costs_an_hour_and_not_the_week() {
        let mut peaks = Peaks::default();
        for hour in 400_000..400_192 {
            look(&mut peaks, hour, &[lane("web", 1)]);
        }
        look(&mut peaks, 3, &[lane("web", 9)]);
        look(&mut peaks, 400_191, &[lane("web", 2)]);
        assert_eq!(peaks.hours.len(), HOURS_KEPT);
        assert_eq!(peaks.hours(400_000, 400_191).count(), HOURS_KEPT);
        assert_eq!(peaks.hours(0, 100).count(), 0, "the wrong one is the farthest");
        let (_, last) = peaks.hours(400_191, 400_191).next().unwrap();
        assert_eq!(last.lanes[0].slots, 2, "begun anew");
    }

    #[test]
    fn names_that_are_not_needed_any_more_make_room() {
        let mut peaks = Peaks::default();
        for hour in 0..200 {
            let names: Vec<String> = (0..100).map(|n| format!("lane {hour} {n}")).collect();
            let slots = u32::try_from(hour).unwrap() + 1;
            let lanes: Vec<_> = names.iter().map(|name| lane(name, slots)).collect();
            look(&mut peaks, hour, &lanes);
        }
        assert!(peaks.names.len() <= NAMES_MAX);
        for (number, hour) in peaks.hours(0, 200) {
            let own = format!("lane {number} ");
            assert_eq!(hour.lanes.len(), 100);
            assert!(hour.lanes.iter().all(|cell| peaks.called(cell.lane).starts_with(&own)));
            assert!(hour.lanes.iter().all(|cell| u64::from(cell.slots) == number + 1));
        }
    }

    #[test]
    fn what_pgweir_did_not_write_is_refused_with_a_reason() {
        let mut peaks = Peaks::default();
        look(&mut peaks, 7, &[lane("web", 1)]);
        let good = String::from_utf8(saved(&peaks)).unwrap();
        assert!(Peaks::load(good.as_bytes()).is_ok());
        for (bad, said) in [
            (String::new(), "EOF"),
            (good[..good.len() - 2].to_owned(), "EOF"),
            (good.replace("\"version\":1", "\"version\":2"), "version 2 is not known"),
            (good.replace("[\"web\"]", "[]"), "does not list"),
            (good.replace("[\"web\"]", "[\"web\",\"web\"]"), "twice"),
            (good.replace("\"slots\"", "\"slotz\""), "unknown field"),
            (good.replace("\"slots\":1", "\"slots\":-1"), "invalid value"),
        ] {
            let error = Peaks::load(bad.as_bytes()).unwrap_err();
            assert!(error.contains(said), "{bad}: {error}");
        }
    }

    proptest! {
        /// Whatever happens, the bounds hold and it comes back from the disk as it was.
        #[test]
        fn it_survives_a_restart(looks in proptest::collection::vec((0_u64..400, 0_usize..60, any::<u32>(), any::<u64>()), 0..200)) {
            let mut peaks = Peaks::default();
            let names: Vec<String> = (0..60).map(|n| format!("lane {n}")).collect();
            for (hour, n, count, ms) in looks {
                let refused = [("shed", ms)];
                let one = LaneLook {
                    slots: count, demand: count, in_use: count, waiting: count, wait_ms: ms, transactions: ms, gap_ms: ms,
                    cut_ms: ms, cuts: count, refused: &refused, lane: &names[n],
                };
                let server = Some(Server { max_connections: count, usable: count });
                let whole = WholeLook { own: count, bypass: count, usage: ms as f64, of_max: f64::NAN, server };
                peaks.record(hour.saturating_mul(HOUR_MS), ms, &whole, [one]);
            }
            prop_assert!(peaks.hours.len() <= HOURS_KEPT && peaks.cells <= CELLS_MAX);
            prop_assert_eq!(peaks.cells, peaks.hours.values().map(Hour::size).sum::<usize>());
            let back = Peaks::load(&saved(&peaks)).unwrap();
            prop_assert_eq!((&back.names, &back.hours, back.cells), (&peaks.names, &peaks.hours, peaks.cells));
            prop_assert_eq!(back.index, peaks.index);
        }
    }
}
