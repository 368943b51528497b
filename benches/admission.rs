//! What the guard costs while its lock is held.

#![allow(missing_docs, reason = "benchmarks")]

use std::time::Duration;

use divan::Bencher;
use pgweir::clock::Moment;
use pgweir::lanes::guard::{Arrival, Guard};
use pgweir::lanes::ids::LinkId;
use pgweir::lanes::settings::{LaneSettings, Settings};

fn main() {
    divan::main();
}

/// Eight lanes, the last one with all the links.
fn guard(quota: u32) -> Guard {
    let mut lanes: Vec<_> = (0..8).map(|n| LaneSettings::new(&format!("lane{n}"), quota)).collect();
    lanes[0].default = true;
    let mut settings = Settings::new(lanes);
    settings.limits.max_logins = u32::MAX;
    Guard::new(settings, 1, Moment::from_micros(1))
}

fn arrive(guard: &mut Guard, now: Moment, link: u64) {
    let who = Arrival {
        lane: guard.lane("lane7").expect("the last lane"),
        application: "odoo".into(),
        user: "odoo".into(),
        database: "production".into(),
        address: Some([10, 0, 0, (link % 200) as u8].into()),
        replication: false,
        nested: false,
        alone: false,
        key: None,
    };
    divan::black_box(guard.arrive(now, LinkId(link), who));
    while guard.poll_action().is_some() {}
}

/// A link comes, logs in, works and goes, beside so many others.
#[divan::bench(args = [100, 1_000, 10_000])]
fn life(bencher: Bencher<'_, '_>, others: u64) {
    let mut guard = guard(100_000);
    let now = Moment::from_micros(2);
    for link in 1..=others {
        arrive(&mut guard, now, link);
        guard.login_done(now, LinkId(link), link as i32);
    }
    let mut link = others;
    bencher.bench_local(|| {
        link += 1;
        arrive(&mut guard, now, link);
        guard.dialling(now, LinkId(link), None);
        guard.login_done(now, LinkId(link), 1_000_000);
        guard.closing(now, LinkId(link));
        guard.closed(now, LinkId(link));
        while guard.poll_action().is_some() {}
    });
}

/// A slot goes from one link to the next while so many wait.
#[divan::bench(args = [1, 100, 500])]
fn handover(bencher: Bencher<'_, '_>, waiting: u64) {
    let mut guard = guard(4);
    let mut now = Moment::from_micros(2);
    for link in 1..=waiting {
        arrive(&mut guard, now, link);
    }
    let mut link = waiting;
    bencher.bench_local(|| {
        now = now + Duration::from_micros(10);
        link += 1;
        arrive(&mut guard, now, link);
        // The oldest holds the one slot for logins.
        guard.closed(now, LinkId(link - waiting));
        while guard.poll_action().is_some() {}
        divan::black_box(guard.next_tick(now));
    });
}
