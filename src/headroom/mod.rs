//! SHOW HEADROOM: how many more backends memory would bear, reckoned line by line. Pure but for [`host`].
//!
//! Every line says what it rests on: measured, counted, a setting of PostgreSQL's, or an assumption. Where memory is not known, the last
//! line says so and recommends nothing: `max_connections` is never to be raised on a guess.

pub mod host;

use std::collections::BTreeMap;

use crate::snapshot::HeadroomRow;

/// Private memory of a backend where none can be measured: the upper end of what Odoo's took, 2 to 10 MB.
pub const BACKEND_ASSUMED: u64 = 10 * MIB;
/// Of all memory, what is left to the page cache, other programs, and all that nobody thought of.
const KEPT_BACK_PERCENT: u64 = 10;
/// A page-table entry (8 bytes) for each page of 4 kB.
const BYTES_PER_ENTRY: u64 = 512;
/// Backends measured from which on their 90th percentile is worth more than the assumption.
const MEASURED_MIN: usize = 3;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// What one backend takes of memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// Pages of its own, swapped out ones included.
    pub private: u64,
    /// Page tables.
    pub page_tables: u64,
}

/// PostgreSQL's host, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// MemTotal, or the limit of PostgreSQL's control group.
    pub total: u64,
    /// MemAvailable, or what the control group leaves, if that is less.
    pub available: u64,
    /// Whether the control group is the tighter one.
    pub is_limited: bool,
    /// Shared memory in use.
    pub shared: u64,
    /// Memory set aside as huge pages, in use or not.
    pub huge_pages: u64,
    /// Backends that could be measured.
    pub backends: Vec<Backend>,
}

/// All that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// PostgreSQL's settings by name, sizes in bytes; or why they are not known.
    pub settings: BTreeMap<String, u64>,
    /// The host; or why nothing is known of it.
    pub host: Result<Host, String>,
    /// Client backends now.
    pub connected: u64,
    /// max_connections; 0 where it is not known.
    pub max_connections: u64,
}

/// The reckoning, line by line.
#[derive(Default)]
struct Sheet(Vec<HeadroomRow>);

impl Sheet {
    fn put(
        &mut self,
        item: &'static str,
        value: impl Into<String>,
        basis: &'static str,
        note: impl Into<String>,
    ) {
        self.0.push(HeadroomRow { item, value: value.into(), basis, note: note.into() });
    }
}

/// Reckons.
pub fn reckon(facts: &Facts) -> Vec<HeadroomRow> {
    let mut sheet = Sheet::default();
    connections(&mut sheet, facts);
    settings(&mut sheet, facts);
    let each = per_backend(&mut sheet, facts);
    match &facts.host {
        Ok(host) => on_host(&mut sheet, facts, host, each),
        Err(why) => {
            sheet.put("memory_available", "unknown", "assumed", why.clone());
            let note = "memory is not known, so nothing is recommended: do not raise max_connections on this";
            sheet.put("verdict", "unknown", "reckoned", note);
        }
    }
    sheet.0
}

fn connections(sheet: &mut Sheet, facts: &Facts) {
    if facts.max_connections == 0 {
        sheet.put("max_connections", "unknown", "setting", "the monitor has not seen PostgreSQL yet");
        return;
    }
    sheet.put("max_connections", facts.max_connections.to_string(), "setting", "PostgreSQL's limit");
    sheet.put(
        "connected",
        facts.connected.to_string(),
        "counted",
        "client backends now, of pgweir and beside it",
    );
}

fn settings(sheet: &mut Sheet, facts: &Facts) {
    if facts.settings.is_empty() {
        sheet.put("settings", "unknown", "setting", "the monitor could not ask PostgreSQL for its settings");
        return;
    }
    for (name, note) in [
        (
            "shared_buffers",
            "one for all backends; what of it was never touched is still to be taken from memory",
        ),
        ("work_mem", "for each sort of each statement"),
        ("maintenance_work_mem", "for each CREATE INDEX and VACUUM"),
    ] {
        if let Some(bytes) = facts.settings.get(name) {
            sheet.put(name_of(name), size(*bytes), "setting", note);
        }
    }
}

/// Names live as long as the program: they come from the tables here.
fn name_of(name: &str) -> &'static str {
    match name {
        "shared_buffers" => "shared_buffers",
        "work_mem" => "work_mem",
        _ => "maintenance_work_mem",
    }
}

/// What a further backend is reckoned with.
fn per_backend(sheet: &mut Sheet, facts: &Facts) -> u64 {
    let setting = |name: &str| facts.settings.get(name).copied().unwrap_or(0);
    let measured: &[Backend] = facts.host.as_ref().map_or(&[], |host| &host.backends);
    let private = if measured.len() >= MEASURED_MIN {
        let private = sorted(measured, |backend| backend.private);
        let note = format!(
            "pages of their own of {} backends (Private_* and Swap of smaps_rollup): median {}, largest {}; they grow with what they do, so \
             measure under load. Pages of shared_buffers that only one has touched count as its own",
            measured.len(),
            size(percentile(&private, 50)),
            size(percentile(&private, 100)),
        );
        sheet.put(
            "private_per_backend",
            size(percentile(&private, 90)),
            "measured",
            format!("90th percentile; {note}"),
        );
        percentile(&private, 90)
    } else {
        let found = measured.len();
        let note = format!(
            "{found} backends could be measured, at least {MEASURED_MIN} are needed; Odoo's take 2 to 10 MB, a LISTEN 1.4 MB"
        );
        sheet.put("private_per_backend", size(BACKEND_ASSUMED), "assumed", note);
        BACKEND_ASSUMED
    };
    let tables = page_tables(sheet, facts, measured, setting("shared_buffers"));
    let work_mem = setting("work_mem");
    sheet.put(
        "working_per_backend",
        size(work_mem),
        "assumed",
        "each backend runs one sort or hash of work_mem at its busiest; a statement may run several",
    );
    let each = private + tables + work_mem;
    sheet.put("per_backend", size(each), "reckoned", "private memory, page tables and work_mem together");
    each.max(1)
}

fn page_tables(sheet: &mut Sheet, facts: &Facts, measured: &[Backend], shared_buffers: u64) -> u64 {
    if measured.len() >= MEASURED_MIN {
        let tables = sorted(measured, |backend| backend.page_tables);
        let largest = percentile(&tables, 100);
        sheet.put(
            "page_tables_per_backend",
            size(largest),
            "measured",
            "the largest (VmPTE): it grows with shared_buffers touched",
        );
        return largest;
    }
    let huge = facts.host.as_ref().is_ok_and(|host| host.huge_pages >= shared_buffers && host.huge_pages > 0);
    let bytes = if huge { 0 } else { shared_buffers / BYTES_PER_ENTRY };
    let note = if huge {
        "shared_buffers fit into huge pages"
    } else {
        "8 bytes for each 4 kB of shared_buffers, all touched"
    };
    sheet.put("page_tables_per_backend", size(bytes), "assumed", note);
    bytes
}

fn on_host(sheet: &mut Sheet, facts: &Facts, host: &Host, each: u64) {
    let setting = |name: &str| facts.settings.get(name).copied().unwrap_or(0);
    let source = if host.is_limited {
        "PostgreSQL's control group leaves less than the host"
    } else {
        "/proc/meminfo"
    };
    sheet.put("memory_total", size(host.total), "measured", source);
    sheet.put("memory_available", size(host.available), "measured", format!("without swapping; {source}"));
    let shared_buffers = setting("shared_buffers");
    let untouched =
        if host.huge_pages >= shared_buffers { 0 } else { shared_buffers.saturating_sub(host.shared) };
    sheet.put(
        "shared_buffers_to_come",
        size(untouched),
        "reckoned",
        "at most: shared_buffers less all shared memory in use; none where huge pages hold them",
    );
    let vacuum = match setting("autovacuum_work_mem") {
        0 => setting("maintenance_work_mem"),
        own => own,
    };
    let vacuum = vacuum.saturating_mul(setting("autovacuum_max_workers"));
    sheet.put(
        "autovacuum",
        size(vacuum),
        "assumed",
        "all autovacuum workers at once, each with all it may take",
    );
    let kept = host.total / 100 * KEPT_BACK_PERCENT;
    sheet.put(
        "kept_back",
        size(kept),
        "assumed",
        format!("{KEPT_BACK_PERCENT} % of all memory, for the page cache and other programs"),
    );
    let free = host.available.saturating_sub(untouched).saturating_sub(vacuum).saturating_sub(kept);
    let bears = free / each;
    sheet.put(
        "bears",
        bears.to_string(),
        "reckoned",
        format!("backends more than now: {} at {} each", size(free), size(each)),
    );
    verdict(sheet, facts, bears);
}

fn verdict(sheet: &mut Sheet, facts: &Facts, bears: u64) {
    if facts.max_connections == 0 || facts.settings.is_empty() {
        let note =
            "max_connections or PostgreSQL's settings are not known: do not raise max_connections on this";
        return sheet.put("verdict", "unknown", "reckoned", note);
    }
    let room = facts.max_connections.saturating_sub(facts.connected);
    if bears < room {
        let note = format!(
            "do not raise max_connections: it allows {room} backends more than now, memory bears {bears}; lower it or work_mem, or add memory"
        );
        return sheet.put("verdict", "0", "reckoned", note);
    }
    let more = bears - room;
    let note = if more == 0 {
        format!(
            "do not raise max_connections: memory bears the {room} backends it still allows, and none beyond"
        )
    } else {
        format!(
            "memory bears the {room} backends max_connections still allows and {more} beyond: up to {} in all, if every line above holds. \
             More backends do not make PostgreSQL faster: look for leaks and quotas first",
            facts.max_connections + more
        )
    };
    sheet.put("verdict", more.to_string(), "reckoned", note);
}

fn sorted(backends: &[Backend], of: fn(&Backend) -> u64) -> Vec<u64> {
    let mut all: Vec<u64> = backends.iter().map(of).collect();
    all.sort_unstable();
    all
}

/// Of sorted values; 0 of none.
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

/// `512 kB`, `7.3 MB`, `15.6 GB`, to the base of 1,024 as PostgreSQL counts.
fn size(bytes: u64) -> String {
    match bytes {
        0..MIB => format!("{} kB", bytes / KIB),
        MIB..1_073_741_824 => format!("{:.1} MB", bytes as f64 / MIB as f64),
        _ => format!("{:.1} GB", bytes as f64 / (1024 * MIB) as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1024 * MIB;

    fn facts() -> Facts {
        let settings = [
            ("shared_buffers", GIB),
            ("work_mem", 4 * MIB),
            ("maintenance_work_mem", 64 * MIB),
            ("autovacuum_max_workers", 3),
        ];
        let backend = |mb| Backend { private: mb * MIB, page_tables: MIB };
        Facts {
            settings: settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            host: Ok(Host {
                total: 8 * GIB,
                available: 4 * GIB,
                shared: GIB,
                backends: [2, 3, 4, 5, 5, 5, 5, 5, 7, 40].map(backend).to_vec(),
                ..Host::default()
            }),
            connected: 40,
            max_connections: 100,
        }
    }

    fn line(rows: &[HeadroomRow], item: &str) -> HeadroomRow {
        rows.iter().find(|row| row.item == item).cloned().expect(item)
    }

    fn verdict_of(facts: &Facts) -> (String, String) {
        let row = reckon(facts).pop().expect("a last line");
        assert_eq!(row.item, "verdict");
        (row.value, row.note)
    }

    #[test]
    fn measured_memory_is_reckoned_line_by_line() {
        let rows = reckon(&facts());
        let shown = |item: &str| {
            let row = line(&rows, item);
            (row.value, row.basis)
        };
        assert_eq!(shown("private_per_backend"), ("7.0 MB".into(), "measured"));
        assert_eq!(shown("page_tables_per_backend"), ("1.0 MB".into(), "measured"));
        assert_eq!(shown("per_backend"), ("12.0 MB".into(), "reckoned"));
        assert_eq!(shown("shared_buffers_to_come"), ("0 kB".into(), "reckoned"));
        assert_eq!(shown("autovacuum"), ("192.0 MB".into(), "assumed"));
        // 4096 − 192 − 819.2 MB at 12 MB each.
        assert_eq!(shown("bears"), ("257".into(), "reckoned"));
        let (value, note) = verdict_of(&facts());
        assert_eq!(value, "197");
        assert!(note.contains("up to 297 in all"), "{note}");
    }

    #[test]
    fn without_the_host_nothing_is_recommended() {
        let facts = Facts { host: Err("PostgreSQL is on another host".into()), ..facts() };
        let rows = reckon(&facts);
        assert_eq!(line(&rows, "private_per_backend").basis, "assumed");
        assert_eq!(line(&rows, "memory_available").note, "PostgreSQL is on another host");
        let (value, note) = verdict_of(&facts);
        assert!(value == "unknown" && note.contains("do not raise"), "{note}");
    }

    #[test]
    fn neither_is_it_where_memory_does_not_bear_what_is_allowed_already() {
        let mut facts = facts();
        let Ok(host) = &mut facts.host else { return };
        host.available = GIB + GIB / 2;
        let (value, note) = verdict_of(&facts);
        assert!(value == "0" && note.starts_with("do not raise max_connections: it allows 60"), "{note}");
    }

    #[test]
    fn nor_where_postgresql_was_never_seen() {
        let nothing = Facts { settings: BTreeMap::new(), max_connections: 0, ..facts() };
        assert_eq!(verdict_of(&nothing).0, "unknown");
        let no_settings = Facts { settings: BTreeMap::new(), ..facts() };
        assert_eq!(verdict_of(&no_settings).0, "unknown");
    }

    #[test]
    fn few_backends_are_no_measure() {
        let mut facts = facts();
        let Ok(host) = &mut facts.host else { return };
        host.backends.truncate(2);
        let rows = reckon(&facts);
        assert_eq!(
            (
                line(&rows, "private_per_backend").value.as_str(),
                line(&rows, "page_tables_per_backend").value.as_str()
            ),
            ("10.0 MB", "2.0 MB")
        );
    }

    #[test]
    fn shared_buffers_that_were_never_touched_are_still_to_come() {
        let mut facts = facts();
        let Ok(host) = &mut facts.host else { return };
        host.shared = GIB / 4;
        assert_eq!(line(&reckon(&facts), "shared_buffers_to_come").value, "768.0 MB");
        let Ok(host) = &mut facts.host else { return };
        host.huge_pages = GIB;
        assert_eq!(line(&reckon(&facts), "shared_buffers_to_come").value, "0 kB");
    }

    #[test]
    fn sizes_are_those_of_postgresql() {
        assert_eq!([size(0), size(1536), size(MIB), size(GIB * 3 / 2)], ["0 kB", "1 kB", "1.0 MB", "1.5 GB"]);
    }
}
