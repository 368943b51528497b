//! The pure core under a seeded simulation: random events in virtual time, invariants checked after each against a shadow model.
//!
//! One seed: `PGWEIR_SIM_SEED=7 cargo test --test sim`. More of them: `PGWEIR_SIM_SEEDS=20000`.

#![allow(missing_docs, clippy::panic, clippy::unwrap_used, reason = "tests fail by panicking")]

mod config;
mod dice;
mod invariants;
mod leaks;
mod monitor;
mod pauses;
mod play;
mod pooling;
mod scenario;
mod scenarios;
mod world;

const STEPS: u64 = 400;
const SEEDS: u64 = 300;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn invariants_hold_whatever_happens() {
    let seeds = match number("PGWEIR_SIM_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=number("PGWEIR_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let many = seeds.clone().count() > 100;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = std::sync::Mutex::new(seeds);
    let totals = std::sync::Mutex::new(play::Totals::default());
    let work = || {
        while let Some(seed) = { next.lock().expect("no thread panics here").next() } {
            // A panic of the core itself must tell the seed as well.
            let run = std::panic::catch_unwind(|| play::run(seed, STEPS)).unwrap_or_else(|panic| {
                eprintln!("replay: PGWEIR_SIM_SEED={seed} cargo test --test sim");
                std::panic::resume_unwind(panic)
            });
            totals.lock().expect("no thread panics here").add(&run.totals);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let totals = totals.into_inner().expect("no thread panicked");
    assert!(!many || totals.is_varied(), "the simulation misses what it is for: {totals:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 1..=8 {
        assert_eq!(play::run(seed, STEPS).trace, play::run(seed, STEPS).trace, "seed {seed}");
    }
}
