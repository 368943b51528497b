//! `/metrics`: the read model and the lanes' meters, as one collector of prometheus-client, gathered anew for each scrape. Nothing is
//! counted twice, and the data path knows nothing of a registry.
//!
//! Labels are lanes, applications, reasons and states of the configuration only: their number is bounded, whatever clients call
//! themselves.

use std::collections::HashSet;
use std::fmt::{self, Debug};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::App;
use super::rows::BYPASS;
use crate::admin::control::Control;
use crate::admin::io::REST;
use crate::link::hub::Lane;
use crate::link::meter::{BOUNDS_US, Histogram, Meter, TransactionEnd};
use crate::reason::Reason;
use crate::snapshot::{ApplicationRow, ExitRow, LaneRow, LaneState, ProcessRow, UpstreamRow, UsageRow};

/// Everything of `/metrics`, in OpenMetrics' text format.
pub(super) async fn render(app: &App) -> String {
    let figures = Figures::gather(app).await;
    tokio::time::sleep(REST).await;
    let mut registry = Registry::default();
    registry.register_collector(Box::new(figures));
    let mut out = String::with_capacity(64 * 1024);
    if text::encode(&mut out, &registry).is_err() {
        tracing::error!("metrics could not be written");
    }
    out
}

/// What one scrape shows.
#[derive(Debug)]
struct Figures {
    process: ProcessRow,
    usage: UsageRow,
    lanes: Vec<LaneRow>,
    meters: Vec<Arc<Lane>>,
    pooled: Vec<(Arc<str>, u32)>,
    refusals: Vec<(Arc<str>, Reason, u64)>,
    /// Those of `[[application]]` only.
    applications: Vec<ApplicationRow>,
    /// Leaks by lane, those that bypass pgweir among them.
    leaks: Vec<(Arc<str>, u32)>,
    exit: Vec<ExitRow>,
    incident_open: bool,
    timeline_dropped: u64,
    upstreams: Vec<UpstreamRow>,
    switches: u64,
}

/// The words of SHOW UPSTREAMS' column `role`.
const UPSTREAM_ROLES: [&str; 6] = ["primary", "read_only", "standby", "down", "unknown", "unseen"];

impl Figures {
    async fn gather(app: &App) -> Self {
        let meters: Vec<Arc<Lane>> = app.hub.lanes.load().iter().cloned().collect();
        let (pooled, mut refusals) = app.hub.guard(|guard, _| {
            let pooled = meters.iter().map(|lane| (lane.name.clone(), guard.pooled(lane.id)));
            (pooled.collect(), guard.refusals())
        });
        // Who is refused before its lane is known.
        let strangers = app.hub.counters.strangers_refused.iter();
        refusals.extend(strangers.map(|entry| ("".into(), *entry.key(), *entry.value())));
        let config = app.config.load();
        let known: HashSet<&str> = config.settings.applications.iter().map(|known| &*known.name).collect();
        let found = app.leaks_by_lane().await;
        let all = meters.iter().map(|lane| lane.name.clone()).chain([BYPASS.into()]);
        let leaks = all.map(|lane| (found.get(&lane).copied().unwrap_or_default(), lane));
        let leaks = leaks.map(|(count, lane)| (lane, count)).collect();
        let (lanes, mut applications) = app.lane_and_application_rows().await;
        applications.retain(|row| known.contains(&*row.application));
        Self {
            process: app.process(),
            usage: app.usage(),
            lanes,
            meters,
            pooled,
            refusals,
            applications,
            leaks,
            exit: app.exit_rows(),
            incident_open: app.incident_rows().iter().any(|row| row.closed_at.is_none()),
            timeline_dropped: app.timeline.dropped_from_disk(),
            upstreams: app.upstream_rows(),
            switches: app.switches.load(Relaxed),
        }
    }

    fn process(&self, out: &mut Families<'_>) -> fmt::Result {
        let process = &self.process;
        out.gauges("pgweir_build_info", "Version of pgweir.", [([("version", process.version)], 1_i64)])?;
        out.gauge("pgweir_uptime_seconds", "Time since the start.", process.uptime_s)?;
        let observes = i64::from(process.mode == "observe");
        out.gauge("pgweir_observe_mode", "Whether it decides and touches nothing.", observes)?;
        out.gauge("pgweir_clients", "Client connections.", process.clients)?;
        out.gauge("pgweir_max_clients", "Client connections at most.", process.max_clients)?;
        out.gauge("pgweir_logins", "Logins in progress.", process.logins)?;
        out.counter("pgweir_panics", "Links ended by a bug of pgweir.", process.panics)?;
        let help = "Times PostgreSQL had no connection left.";
        out.counter("pgweir_upstream_too_many_clients", help, process.too_many_clients)?;
        let up = i64::from(process.upstream == "up");
        out.gauge("pgweir_upstream_up", "Whether PostgreSQL answers.", up)?;
        let current = self.upstreams.iter().map(|row| ([("address", &*row.address)], i64::from(row.current)));
        out.gauges("pgweir_upstream_current", "Whether this server is the one that is dialled.", current)?;
        let roles = self.upstreams.iter().flat_map(|row| {
            UPSTREAM_ROLES
                .map(|role| ([("address", &*row.address), ("role", role)], i64::from(row.role == role)))
        });
        out.gauges(
            "pgweir_upstream_role",
            "What a server was seen as, 1 for that and 0 for the others.",
            roles,
        )?;
        let help = "Times another server was dialled than before.";
        out.counter("pgweir_upstream_switches", help, self.switches)?;
        let failed = process.lookups_failed.iter().map(|(cause, count)| ([("cause", &**cause)], *count));
        out.counters("pgweir_process_lookups_failed", "Client processes not found.", failed)?;
        let help = "Timeline entries that did not reach the disk.";
        out.counter("pgweir_timeline_dropped", help, self.timeline_dropped)
    }

    fn usage(&self, out: &mut Families<'_>) -> fmt::Result {
        let usage = &self.usage;
        let help = "Connections in use of those usable, in percent.";
        out.gauges("pgweir_usage_percent", help, usage.percent.map(|percent| (NO_LABELS, percent)))?;
        let help = "Connections in use of max_connections, in percent.";
        let of_max = usage.percent_of_max.map(|percent| (NO_LABELS, percent));
        out.gauges("pgweir_usage_of_max_percent", help, of_max)?;
        out.gauge(
            "pgweir_max_connections",
            "PostgreSQL's max_connections, 0 until known.",
            usage.max_connections,
        )?;
        let help = "max_connections less the reserved ones.";
        out.gauge("pgweir_usable_connections", help, usage.usable)?;
        out.gauge("pgweir_own_slots", "Upstream connections of pgweir.", usage.own_slots)?;
        let help = "Client backends that are not pgweir's.";
        out.gauge("pgweir_bypass_connections", help, usage.bypass)?;
        let states = [
            ("active", usage.active),
            ("idle", usage.idle),
            ("idle_in_transaction", usage.idle_in_transaction),
        ];
        let help = "Client backends of the whole cluster by state, as sampled.";
        out.gauges(
            "pgweir_postgres_backends",
            help,
            states.map(|(state, count)| ([("state", state)], count)),
        )?;
        let help = "Whether the usage is too old to decide upon.";
        out.gauge("pgweir_monitor_stale", help, i64::from(usage.stale))?;
        let age = usage.sampled_ms_ago.map(|ms| (NO_LABELS, ms as f64 / 1e3));
        out.gauges("pgweir_sample_age_seconds", "Age of the last sample.", age)
    }

    fn lanes(&self, out: &mut Families<'_>) -> fmt::Result {
        let slots = self.lanes.iter().flat_map(|row| {
            let other = row.slots.saturating_sub(row.idle + row.active + row.idle_in_transaction);
            let states = [
                ("idle", row.idle),
                ("active", row.active),
                ("idle_in_transaction", row.idle_in_transaction),
                ("other", other),
            ];
            states.map(|(state, count)| ([("lane", &*row.lane), ("state", state)], count))
        });
        out.gauges("pgweir_lane_slots", "Upstream connections by what they do.", slots)?;
        let states = self.lanes.iter().flat_map(|row| {
            let one_hot = |state: LaneState| {
                ([("lane", &*row.lane), ("state", state.word())], i64::from(row.state == state))
            };
            LaneState::ALL.map(one_hot)
        });
        out.gauges("pgweir_lane_state", "1 for the state a lane is in.", states)?;
        type Gauge = (&'static str, &'static str, fn(&LaneRow) -> f64);
        let gauges: [Gauge; 5] = [
            ("pgweir_lane_quota", "Upstream connections a lane may have.", |row| row.quota.into()),
            ("pgweir_lane_reserve", "Upstream connections kept free for a lane.", |row| row.reserve.into()),
            ("pgweir_lane_waiting", "Clients waiting or held.", |row| row.waiting.into()),
            ("pgweir_lane_max_wait_seconds", "Longest wait of those waiting now.", |row| {
                row.max_wait_ms as f64 / 1e3
            }),
            ("pgweir_idle_in_transaction", "Links idle in transaction.", |row| {
                row.idle_in_transaction.into()
            }),
        ];
        for (name, help, value) in gauges {
            out.gauges(
                name,
                help,
                self.lanes.iter().map(|row| ([("lane", &*row.lane)], Figure(value(row)))),
            )?;
        }
        type Counter = (&'static str, &'static str, fn(&LaneRow) -> u64);
        let counters: [Counter; 3] = [
            ("pgweir_lane_admitted", "Links given a slot.", |row| row.admitted),
            ("pgweir_lane_shed", "Links held or refused by shedding.", |row| row.shed),
            ("pgweir_lane_refused", "Clients refused, for whatever reason.", |row| row.refused),
        ];
        for (name, help, value) in counters {
            out.counters(name, help, self.lanes.iter().map(|row| ([("lane", &*row.lane)], value(row))))?;
        }
        let refusals = self.refusals.iter();
        let refusals =
            refusals.map(|(lane, reason, count)| ([("lane", &**lane), ("reason", reason.label())], *count));
        out.counters("pgweir_refusals", "Clients refused, by reason.", refusals)?;
        let leaks = self.leaks.iter().map(|(lane, count)| ([("lane", &**lane)], *count));
        out.gauges(
            "pgweir_leaks",
            "Links and bypass sessions idle in transaction beyond their warn.",
            leaks,
        )?;
        let pooled = self.pooled.iter().map(|(lane, count)| ([("lane", &**lane)], *count));
        out.gauges(
            "pgweir_pooled_connections",
            "Upstream connections at rest, ready for the next client.",
            pooled,
        )
    }

    fn applications(&self, out: &mut Families<'_>) -> fmt::Result {
        let slots = self.applications.iter().map(|row| ([("application", &*row.application)], row.slots));
        out.gauges("pgweir_application_slots", "Upstream connections of an application.", slots)?;
        let quotas = self.applications.iter();
        let quotas = quotas.filter_map(|row| Some(([("application", &*row.application)], row.quota?)));
        out.gauges("pgweir_application_quota", "Upstream connections an application may have.", quotas)
    }

    fn exit(&self, out: &mut Families<'_>) -> fmt::Result {
        out.gauge("pgweir_incident_open", "Whether an incident is open.", i64::from(self.incident_open))?;
        let all = self.exit.iter().all(ExitRow::is_met);
        out.gauge(
            "pgweir_exit_met",
            "Whether all criteria are met by which an incident ends.",
            i64::from(all),
        )?;
        let criteria =
            self.exit.iter().map(|row| ([("criterion", &*row.criterion)], i64::from(row.is_met())));
        out.gauges("pgweir_exit_criterion", "Whether this one is met.", criteria)
    }

    fn meters(&self, out: &mut Families<'_>) -> fmt::Result {
        let resets = self.meters.iter().flat_map(|lane| {
            let (rollbacks, disconnects) = (&lane.meter.rollbacks, &lane.meter.disconnects);
            [("rollback", rollbacks), ("disconnect", disconnects)]
                .map(|(action, count)| ([("lane", &*lane.name), ("action", action)], count.load(Relaxed)))
        });
        out.counters("pgweir_resets", "Leaks ended.", resets)?;
        type Counter = (&'static str, &'static str, fn(&Meter) -> u64);
        let counters: [Counter; 3] = [
            ("pgweir_resets_stopped", "Leaks left alone because of max_resets_per_minute.", |meter| {
                meter.resets_stopped.load(Relaxed)
            }),
            ("pgweir_reclaimed", "Idle links closed for those who wait.", |meter| {
                meter.reclaimed.load(Relaxed)
            }),
            ("pgweir_pool_reused", "Clients given a pooled connection.", |meter| meter.reused.load(Relaxed)),
        ];
        for (name, help, value) in counters {
            out.counters(
                name,
                help,
                self.meters.iter().map(|lane| ([("lane", &*lane.name)], value(&lane.meter))),
            )?;
        }
        let ends = self.meters.iter().flat_map(|lane| {
            TransactionEnd::ALL
                .map(|end| ([("lane", &*lane.name), ("end", end.label())], lane.meter.ends(end)))
        });
        out.counters("pgweir_transactions", "Transactions by how they ended.", ends)?;
        type Durations = (&'static str, &'static str, fn(&Meter) -> &Histogram);
        let histograms: [Durations; 3] = [
            ("pgweir_wait_seconds", "Time clients waited for a connection or were held.", |meter| {
                &meter.wait
            }),
            ("pgweir_transaction_seconds", "Transactions, begin to end.", |meter| &meter.transaction),
            ("pgweir_query_seconds", "Requests, to the delivery of ReadyForQuery.", |meter| &meter.query),
        ];
        for (name, help, of) in histograms {
            out.histograms(
                name,
                help,
                self.meters.iter().map(|lane| ([("lane", &*lane.name)], of(&lane.meter))),
            )?;
        }
        Ok(())
    }
}

impl Collector for Figures {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Families(encoder);
        self.process(&mut out)?;
        self.usage(&mut out)?;
        self.lanes(&mut out)?;
        self.applications(&mut out)?;
        self.exit(&mut out)?;
        self.meters(&mut out)
    }
}

/// A family's name comes without the `_total` of a counter.
struct Families<'a>(DescriptorEncoder<'a>);

const NO_LABELS: [(&str, &str); 0] = [];

/// A whole number is written as one.
struct Figure(f64);

impl EncodeGaugeValue for Figure {
    fn encode(&self, encoder: &mut prometheus_client::encoding::GaugeValueEncoder<'_>) -> fmt::Result {
        // Exact up to 2^53, far beyond what is counted here.
        match self.0 {
            whole if whole.fract() == 0.0 => EncodeGaugeValue::encode(&(whole as i64), encoder),
            part => EncodeGaugeValue::encode(&part, encoder),
        }
    }
}

impl Families<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn gauges<L: EncodeLabelSet, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        samples
            .into_iter()
            .try_for_each(|(labels, value)| family.encode_family(&labels)?.encode_gauge(&value))
    }

    fn counters<L: EncodeLabelSet, V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        samples.into_iter().try_for_each(|(labels, value)| {
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)
        })
    }

    fn histograms<'h, L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, &'h Histogram)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        samples.into_iter().try_for_each(|(labels, histogram)| {
            let (counts, sum) = histogram.counts();
            let bounds = BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
            let total = counts.iter().sum();
            family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, total, &buckets, None)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn shown(write: impl FnOnce(&mut Families<'_>) -> fmt::Result + Send + Sync + 'static) -> String {
        struct Once<F>(parking_lot::Mutex<Option<F>>);
        impl<F> Debug for Once<F> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("Once")
            }
        }
        impl<F: FnOnce(&mut Families<'_>) -> fmt::Result + Send + Sync + 'static> Collector for Once<F> {
            fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
                self.0.lock().take().expect("one scrape")(&mut Families(encoder))
            }
        }
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Once(parking_lot::Mutex::new(Some(write)))));
        let mut out = String::new();
        text::encode(&mut out, &registry).expect("a String takes all");
        out
    }

    #[test]
    fn labels_are_escaped_and_whole_numbers_whole() {
        let text = shown(|out| {
            out.gauges(
                "a",
                "Some.",
                [([("lane", "we\"b\\\n")], Figure(2.0)), ([("lane", "x")], Figure(0.25))],
            )
        });
        assert_eq!(
            text,
            "# HELP a Some.\n# TYPE a gauge\na{lane=\"we\\\"b\\\\\\n\"} 2\na{lane=\"x\"} 0.25\n# EOF\n"
        );
    }

    #[test]
    fn a_histogram_is_cumulative_to_infinity() {
        let histogram = Histogram::default();
        for us in [100, 300, 70_000_000] {
            histogram.record(Duration::from_micros(us));
        }
        let text = shown(move |out| out.histograms("h", "Some.", [([("lane", "web")], &histogram)]));
        for line in [
            "h_bucket{le=\"0.00025\",lane=\"web\"} 1",
            "h_bucket{le=\"0.0005\",lane=\"web\"} 2",
            "h_bucket{le=\"60.0\",lane=\"web\"} 2",
            "h_bucket{le=\"+Inf\",lane=\"web\"} 3",
            "h_count{lane=\"web\"} 3",
            "h_sum{lane=\"web\"} 70.0004",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
}
