//! `/metrics`: figures in Prometheus' text format. Labels are lanes, reasons and states only: their number is bounded by the
//! configuration, whatever clients call themselves.

use std::fmt::{self, Write};
use std::sync::atomic::Ordering;

use super::App;
use crate::admin::control::Control;
use crate::link::meter::{BOUNDS_US, Histogram, TransactionEnd};
use crate::snapshot::LaneState;

/// One metric family being written.
struct Family<'a> {
    out: &'a mut String,
    name: &'static str,
}

impl<'a> Family<'a> {
    fn new(out: &'a mut String, name: &'static str, kind: &str, help: &str) -> Self {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Self { out, name }
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: impl fmt::Display) {
        self.line("", labels, value);
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl fmt::Display) {
        let _ = write!(self.out, "{}{suffix}", self.name);
        for (n, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.out, "{}{label}=\"{text}\"", if n == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.out, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn histogram(&mut self, lane: &str, histogram: &Histogram) {
        let (counts, total, sum) = histogram.read();
        for (bound, count) in BOUNDS_US.iter().zip(&counts) {
            self.line("_bucket", &[("lane", lane), ("le", &(*bound as f64 / 1e6).to_string())], count);
        }
        self.line("_bucket", &[("lane", lane), ("le", "+Inf")], total);
        self.line("_sum", &[("lane", lane)], sum);
        self.line("_count", &[("lane", lane)], total);
    }
}

/// Everything of `/metrics`.
pub(super) fn render(app: &App) -> String {
    let mut out = String::with_capacity(16 * 1024);
    process(app, &mut out);
    usage(app, &mut out);
    lanes(app, &mut out);
    meters(app, &mut out);
    out
}

fn process(app: &App, out: &mut String) {
    let process = app.process();
    Family::new(out, "pgweir_build_info", "gauge", "Version of pgweir.")
        .sample(&[("version", process.version)], 1);
    Family::new(out, "pgweir_clients", "gauge", "Client connections.").sample(&[], process.clients);
    Family::new(out, "pgweir_logins", "gauge", "Logins in progress.").sample(&[], process.logins);
    Family::new(out, "pgweir_panics_total", "counter", "Links ended by a bug of pgweir.")
        .sample(&[], process.panics);
    Family::new(
        out,
        "pgweir_upstream_too_many_clients_total",
        "counter",
        "Times PostgreSQL had no connection left.",
    )
    .sample(&[], process.too_many_clients);
    Family::new(out, "pgweir_upstream_up", "gauge", "Whether PostgreSQL answers.")
        .sample(&[], u8::from(process.upstream == "up"));
    let mut lookups =
        Family::new(out, "pgweir_process_lookups_failed_total", "counter", "Client processes not found.");
    for (cause, count) in &process.lookups_failed {
        lookups.sample(&[("cause", cause)], count);
    }
    Family::new(
        out,
        "pgweir_timeline_dropped_total",
        "counter",
        "Timeline entries that did not reach the disk.",
    )
    .sample(&[], app.timeline.dropped_from_disk());
}

fn usage(app: &App, out: &mut String) {
    let usage = app.usage();
    let mut percent =
        Family::new(out, "pgweir_usage_percent", "gauge", "Connections in use of those usable, in percent.");
    if let Some(value) = usage.percent {
        percent.sample(&[], value);
    }
    Family::new(out, "pgweir_usable_connections", "gauge", "max_connections less the reserved ones.")
        .sample(&[], usage.usable);
    Family::new(out, "pgweir_own_slots", "gauge", "Upstream connections of pgweir.")
        .sample(&[], usage.own_slots);
    Family::new(out, "pgweir_bypass_connections", "gauge", "Client backends that are not pgweir's.")
        .sample(&[], usage.bypass);
    Family::new(out, "pgweir_monitor_stale", "gauge", "Whether the usage is too old to decide upon.")
        .sample(&[], u8::from(usage.stale));
}

fn lanes(app: &App, out: &mut String) {
    let rows = app.lane_rows();
    let mut slots = Family::new(out, "pgweir_lane_slots", "gauge", "Upstream connections by what they do.");
    for row in &rows {
        let other = row.slots.saturating_sub(row.idle + row.active + row.idle_in_transaction);
        for (state, value) in [
            ("idle", row.idle),
            ("active", row.active),
            ("idle_in_transaction", row.idle_in_transaction),
            ("other", other),
        ] {
            slots.sample(&[("lane", &row.lane), ("state", state)], value);
        }
    }
    let mut gauge = |name, help, value: fn(&crate::snapshot::LaneRow) -> u32| {
        let mut family = Family::new(out, name, "gauge", help);
        rows.iter().for_each(|row| family.sample(&[("lane", &row.lane)], value(row)));
    };
    gauge("pgweir_lane_quota", "Upstream connections a lane may have.", |row| row.quota);
    gauge("pgweir_lane_waiting", "Clients waiting or held.", |row| row.waiting);
    gauge("pgweir_idle_in_transaction", "Links idle in transaction.", |row| row.idle_in_transaction);
    let mut states = Family::new(out, "pgweir_lane_state", "gauge", "1 for the state a lane is in.");
    for row in &rows {
        for state in LaneState::ALL {
            states.sample(&[("lane", &row.lane), ("state", state.word())], u8::from(row.state == state));
        }
    }
    let refusals = app.hub.guard(|guard, _| guard.refusals());
    let mut family = Family::new(out, "pgweir_refusals_total", "counter", "Clients refused, by reason.");
    for (lane, reason, count) in &refusals {
        family.sample(&[("lane", lane), ("reason", reason.label())], count);
    }
    for entry in &app.hub.counters.strangers_refused {
        family.sample(&[("lane", ""), ("reason", entry.key().label())], entry.value());
    }
}

fn meters(app: &App, out: &mut String) {
    let lanes = app.hub.lanes.load();
    let mut resets = Family::new(out, "pgweir_resets_total", "counter", "Leaks ended.");
    for lane in lanes.iter() {
        resets.sample(
            &[("lane", &lane.name), ("action", "rollback")],
            lane.meter.rollbacks.load(Ordering::Relaxed),
        );
        resets.sample(
            &[("lane", &lane.name), ("action", "disconnect")],
            lane.meter.disconnects.load(Ordering::Relaxed),
        );
    }
    let mut reclaimed =
        Family::new(out, "pgweir_reclaimed_total", "counter", "Idle links closed for those who wait.");
    for lane in lanes.iter() {
        reclaimed.sample(&[("lane", &lane.name)], lane.meter.reclaimed.load(Ordering::Relaxed));
    }
    let mut pooled = Family::new(
        out,
        "pgweir_pooled_connections",
        "gauge",
        "Upstream connections at rest, ready for the next client.",
    );
    for lane in lanes.iter() {
        pooled.sample(&[("lane", &lane.name)], app.hub.guard(|guard, _| guard.pooled(lane.id)));
    }
    let mut reused =
        Family::new(out, "pgweir_pool_reused_total", "counter", "Clients given a pooled connection.");
    for lane in lanes.iter() {
        reused.sample(&[("lane", &lane.name)], lane.meter.reused.load(Ordering::Relaxed));
    }
    let mut ends =
        Family::new(out, "pgweir_transactions_total", "counter", "Transactions by how they ended.");
    for lane in lanes.iter() {
        for end in TransactionEnd::ALL {
            ends.sample(&[("lane", &lane.name), ("end", end.label())], lane.meter.ends(end));
        }
    }
    let mut wait = Family::new(
        out,
        "pgweir_wait_seconds",
        "histogram",
        "Time clients waited for a connection or were held.",
    );
    lanes.iter().for_each(|lane| wait.histogram(&lane.name, &lane.meter.wait));
    let mut transaction =
        Family::new(out, "pgweir_transaction_seconds", "histogram", "Transactions, begin to end.");
    lanes.iter().for_each(|lane| transaction.histogram(&lane.name, &lane.meter.transaction));
    let mut query =
        Family::new(out, "pgweir_query_seconds", "histogram", "Requests, to the delivery of ReadyForQuery.");
    lanes.iter().for_each(|lane| query.histogram(&lane.name, &lane.meter.query));
}
