//! What the operator sees while it runs: one line on standard error, where that is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::tally::Tally;

/// The line.
pub struct Progress(ProgressBar);

impl Progress {
    /// A line for a drill that takes `length` for each of `runs`.
    pub fn new(length: Duration, runs: usize) -> Self {
        let all = u64::try_from(length.as_millis()).unwrap_or(u64::MAX).saturating_mul(runs as u64);
        let bar = ProgressBar::new(all);
        let style = ProgressStyle::with_template("{prefix} [{bar:24}] {eta} left  {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self(bar)
    }

    /// A run that begins: `done` of them are over.
    pub fn begin(&self, length: Duration, done: usize, way: &str) {
        self.0.set_position(u64::try_from(length.as_millis()).unwrap_or(0).saturating_mul(done as u64));
        self.0.set_prefix(way.to_owned());
        if self.0.is_hidden() {
            eprintln!("drill: {way}");
        }
    }

    /// How far it is.
    pub fn show(&self, way: &str, phase: &str, now: Duration, tally: &Tally) {
        let sum = |of: fn(&super::tally::Lane) -> u64| tally.lanes.iter().map(of).sum::<u64>();
        self.0.set_prefix(way.to_owned());
        self.0.set_message(format!(
            "{phase}, {:.0} s: {} done, {} failed for users",
            now.as_secs_f64(),
            sum(|lane| lane.ok),
            sum(|lane| lane.user_failures)
        ));
        self.0.inc(200);
    }

    /// Takes the line away.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}
