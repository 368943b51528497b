//! The drill as one JSON object. What the contract names stands where the contract says; everything else is under `details`.

use serde_json::{Map, Value, json};

use super::Drill;
use crate::drill::expect::Scope;
use crate::drill::operator::Outcome;
use crate::drill::run::Run;
use crate::drill::tally::Lane;

/// The whole drill.
pub fn object(drill: &Drill<'_>) -> Value {
    let expect = drill.runs.iter().zip(&drill.verdicts).flat_map(|(run, verdicts)| {
        verdicts.iter().map(|verdict| {
            json!({"rule": verdict.rule, "through": run.way, "held": verdict.held, "measured": verdict.measured.map(short)})
        })
    });
    json!({
        "scenario": drill.name,
        "seed": drill.seed,
        "runs": drill.runs.iter().map(run).collect::<Vec<_>>(),
        "expect": expect.collect::<Vec<_>>(),
        "held": drill.held(),
        "judged": drill.judged,
        "verdict": drill.verdict(),
        "sentence": drill.sentence(),
    })
}

/// Three decimals are microseconds.
fn short(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

fn run(run: &Run) -> Value {
    let lanes: Map<String, Value> =
        run.tally.lanes.iter().map(|found| (found.name.clone(), lane(run, found))).collect();
    json!({
        "through": run.way,
        "lanes": lanes,
        "recovered_after_s": run.recovered_after.map(|after| short(after.as_secs_f64())),
        "upstream_peak": run.observed.peak(),
        "details": details(run),
    })
}

fn lane(run: &Run, lane: &Lane) -> Value {
    let all = run.latencies(lane, Scope::Whole);
    let ms = |histogram: &hdrhistogram::Histogram<u32>, quantile: f64| {
        (!histogram.is_empty()).then(|| short(histogram.value_at_quantile(quantile) as f64 / 1e3))
    };
    json!({
        "attempts": lane.attempts(),
        "ok": lane.ok,
        "user_failures": lane.user_failures,
        "failures": lane.failures,
        "p50_ms": ms(&all.response, 0.5),
        "p90_ms": ms(&all.response, 0.9),
        "p99_ms": ms(&all.response, 0.99),
        "max_ms": ms(&all.response, 1.0),
        "wait_p99_ms": ms(&all.wait, 0.99),
    })
}

fn details(run: &Run) -> Value {
    let seconds = |time: std::time::Duration| short(time.as_secs_f64());
    let lanes: Map<String, Value> =
        run.tally.lanes.iter().map(|lane| (lane.name.clone(), lane_details(run, lane))).collect();
    let acts = run.acts.iter().map(|act| {
        let (outcome, why) = match &act.outcome {
            Outcome::Done => ("done", None),
            Outcome::Skipped => ("skipped: this way has no console", None),
            Outcome::Failed(why) => ("failed", Some(why)),
        };
        json!({"at_s": seconds(act.at), "action": act.text, "outcome": outcome, "why": why})
    });
    let looks: Map<String, Value> = run
        .observed
        .lanes
        .iter()
        .map(|(name, looks)| {
            let looks =
                looks.iter().map(|look| json!([seconds(look.at), look.state, look.slots, look.waiting]));
            (name.clone(), looks.collect())
        })
        .collect();
    json!({
        "lanes": lanes,
        "step_s": seconds(run.tally.step),
        "actions": acts.collect::<Vec<_>>(),
        "upstream": run.observed.upstream.iter().map(|(at, count)| json!([seconds(*at), count])).collect::<Vec<_>>(),
        "max_connections": run.capacity.max_connections,
        "usable": run.capacity.usable,
        "leak_lock_held_s": run.observed.leaks.then(|| seconds(run.observed.lock_held)),
        "leak_lock_blocked_s": run.observed.leaks.then(|| seconds(run.observed.lock_blocked)),
        "leak_lock_late_s": run.observed.leaks.then(|| seconds(run.observed.lock_late)),
        "pgweir_lanes": looks,
        "pgweir_timeline": run.observed.events.iter().map(|(at, text)| json!([seconds(*at), text])).collect::<Vec<_>>(),
        "orders_told_saved": run.told,
        "orders_lost": run.lost,
        "bus_sent": run.bus.0,
        "bus_received": run.bus.1,
        "left_over": run.left_over,
        "interrupted": run.interrupted,
        "generator": run.generator,
    })
}

fn lane_details(run: &Run, lane: &Lane) -> Value {
    let ms = |histogram: &hdrhistogram::Histogram<u32>| {
        (!histogram.is_empty()).then(|| short(histogram.value_at_quantile(0.99) as f64 / 1e3))
    };
    let all = run.latencies(lane, Scope::Whole);
    let series = lane.series.iter().map(|p| {
        json!([
            p.ok,
            p.user_failures,
            p.errors,
            short(p.p50_ms.into()),
            short(p.p99_ms.into()),
            short(p.max_ms.into())
        ])
    });
    json!({
        "retries": lane.retries,
        "unfinished": lane.unfinished,
        "service_p99_ms": ms(&all.service),
        "steady_p99_ms": ms(&run.latencies(lane, Scope::Steady).response),
        "not_steady_p99_ms": ms(&run.latencies(lane, Scope::NotSteady).response),
        "series_ok_failed_errors_p50_p99_max": series.collect::<Vec<_>>(),
    })
}
