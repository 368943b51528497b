//! What it costs to keep what `pgweir suggest` reckons with: once a second, and when somebody asks.

#![allow(missing_docs, reason = "benchmarks")]

use divan::Bencher;
use pgweir::advise::peaks::{LaneLook, Peaks, Server, WholeLook};
use pgweir::advise::suggest::{Lane, Present, suggest};
use pgweir::clock::Moment;
use pgweir::lanes::ids::{LaneId, LinkId};
use pgweir::leaks::gaps::{Gaps, Idle, Later};

const HOUR_MS: u64 = 3_600_000;
const NOW: u64 = 490_000 * HOUR_MS;

fn main() {
    divan::main();
}

fn names(lanes: usize) -> Vec<String> {
    (0..lanes).map(|n| format!("lane{n}")).collect()
}

fn looks(names: &[String]) -> impl Iterator<Item = LaneLook<'_>> {
    names.iter().map(|lane| LaneLook {
        lane,
        slots: 20,
        demand: 25,
        in_use: 10,
        waiting: 5,
        wait_ms: 900,
        transactions: 700,
        gap_ms: 1500,
        refused: &[("lane_full", 3)],
        ..LaneLook::default()
    })
}

fn whole() -> WholeLook {
    let server = Some(Server { max_connections: 500, usable: 497 });
    WholeLook { own: 100, bypass: 5, usage: 60.0, of_max: 59.0, server }
}

/// Eight days of all lanes.
fn full(names: &[String]) -> Peaks {
    let mut peaks = Peaks::default();
    (0..192).for_each(|ago| peaks.record(NOW - ago * HOUR_MS, HOUR_MS, &whole(), looks(names)));
    peaks
}

/// The look of one second.
#[divan::bench(args = [1, 20, 500])]
fn record(bencher: Bencher<'_, '_>, lanes: usize) {
    let names = names(lanes);
    let mut peaks = full(&names);
    bencher.bench_local(|| peaks.record(NOW, 1000, &whole(), looks(&names)));
}

/// One sweep with so many links that idle in transactions, a tenth of which went on.
#[divan::bench(args = [10, 1_000])]
fn gaps(bencher: Bencher<'_, '_>, links: u64) {
    let mut gaps = Gaps::default();
    let mut round = 0;
    bencher.bench_local(|| {
        round += 1;
        let now = Moment::from_micros(10_000_000 + round);
        let idle =
            |n| Idle { link: LinkId(n), lane: LaneId(0), generation: 1, since: Moment::from_micros(1) };
        let went_on = |link: LinkId| u32::from(link.0 % 10 == round % 10);
        gaps.sweep(now, (0..links).map(|n| (idle(n), ())).collect(), |link, ()| Later {
            generation: 1 + went_on(link),
            since: now,
            ended: false,
            reset_at: None,
            reset_period: None,
        })
    });
}

/// What is written to the disk every five minutes.
#[divan::bench]
fn save(bencher: Bencher<'_, '_>) {
    let peaks = full(&names(20));
    let mut text = Vec::new();
    bencher.bench_local(|| {
        text.clear();
        divan::black_box(peaks.clone()).save(&mut text)
    });
}

/// SHOW SUGGESTION.
#[divan::bench]
fn advice(bencher: Bencher<'_, '_>) {
    let names = names(20);
    let peaks = full(&names);
    let lane = |name: &String| Lane { name: name.clone(), quota: 30, reserve: 5, ..Lane::default() };
    let present = Present { lanes: names.iter().map(lane).collect(), headroom: 3, ..Present::default() };
    bencher.bench_local(|| suggest(&present, &peaks, NOW));
}
