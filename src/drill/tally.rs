//! What was measured: counts and HDR histograms per lane and phase, and a series over time. Pure: moments are since the start of the run.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::scenario::Scenario;

/// Longest time that is told apart, in microseconds: an hour. What took longer counts as that.
const LONGEST_US: u64 = 3_600_000_000;
/// Points of a series at most; a longer run has wider ones.
const POINTS_MAX: u32 = 600;
/// Different failures told apart in a lane; further ones are counted as `other`.
const LABELS_MAX: usize = 64;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Well.
    Ok,
    /// Badly, for its user; the attempts that failed were counted as they did.
    Failed,
    /// Not: its age is on record, and `user` says whether somebody had waited for it.
    Unfinished {
        /// Whether a person waits for its end.
        user: bool,
    },
}

/// The times of one request, since the start of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// When it was due.
    pub arrived: Duration,
    /// When a link was ready to work for it the last time; none if never.
    pub ready: Option<Duration>,
    /// When it was over.
    pub ended: Duration,
}

/// Response, waiting and service times of requests that ended well or not at all.
#[derive(Clone, Debug)]
pub struct Latencies {
    /// From the arrival to the end.
    pub response: Histogram<u32>,
    /// From the arrival until a link was ready.
    pub wait: Histogram<u32>,
    /// The rest.
    pub service: Histogram<u32>,
    /// Requests that ended well.
    pub ok: u64,
    /// Requests that ended badly for their users.
    pub user_failures: u64,
}

fn histogram() -> Histogram<u32> {
    // Three digits, up to an hour; grows as it is used.
    let mut histogram = Histogram::new(3).expect("three significant digits are a valid precision");
    histogram.auto(true);
    histogram
}

/// A growing histogram takes every value up to [`LONGEST_US`]; `saturating_record` would not let it grow.
fn record(histogram: &mut Histogram<u32>, micros: u64) {
    let _ = histogram.record(micros);
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX).clamp(1, LONGEST_US)
}

impl Default for Latencies {
    fn default() -> Self {
        Self { response: histogram(), wait: histogram(), service: histogram(), ok: 0, user_failures: 0 }
    }
}

impl Latencies {
    fn add(&mut self, times: &Times) {
        let response = times.ended.saturating_sub(times.arrived);
        let wait = times.ready.unwrap_or(times.ended).saturating_sub(times.arrived).min(response);
        record(&mut self.response, micros(response));
        record(&mut self.wait, micros(wait));
        record(&mut self.service, micros(response - wait));
    }

    /// Both together.
    pub fn merge(&mut self, other: &Self) {
        // Same precision and growing: it cannot fail.
        for (into, from) in [
            (&mut self.response, &other.response),
            (&mut self.wait, &other.wait),
            (&mut self.service, &other.service),
        ] {
            let _ = into.add(from);
        }
        self.ok += other.ok;
        self.user_failures += other.user_failures;
    }
}

/// A stretch of time in a lane's series.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    /// Requests that ended well in it.
    pub ok: u32,
    /// Requests that ended badly for their users in it.
    pub user_failures: u32,
    /// Attempts that failed in it.
    pub errors: u32,
    /// Median response time of what ended in it, in milliseconds.
    pub p50_ms: f32,
    /// 99th percentile.
    pub p99_ms: f32,
    /// Slowest.
    pub max_ms: f32,
}

/// One lane.
#[derive(Clone, Debug)]
pub struct Lane {
    /// Its name.
    pub name: String,
    /// Requests that ended well.
    pub ok: u64,
    /// Requests that ended badly for their users.
    pub user_failures: u64,
    /// Requests that had not ended when the run did.
    pub unfinished: u64,
    /// Attempts that were repeated as Odoo repeats them.
    pub retries: u64,
    /// Failed attempts, by SQLSTATE or a word of the drill's own.
    pub failures: BTreeMap<String, u64>,
    /// By phase of arrival.
    pub phases: Vec<Latencies>,
    /// Over time.
    pub series: Vec<Point>,
    open: Histogram<u32>,
}

impl Lane {
    fn new(name: String, phases: usize, points: usize) -> Self {
        Self {
            name,
            ok: 0,
            user_failures: 0,
            unfinished: 0,
            retries: 0,
            failures: BTreeMap::new(),
            phases: vec![Latencies::default(); phases],
            series: vec![Point::default(); points],
            open: histogram(),
        }
    }

    /// Tries in all: `ok` and every failed one.
    pub fn attempts(&self) -> u64 {
        self.ok + self.errors()
    }

    /// Failed tries.
    pub fn errors(&self) -> u64 {
        self.failures.values().sum()
    }

    /// The phases that `wanted` accepts, together.
    pub fn latencies(&self, wanted: impl Fn(usize) -> bool) -> Latencies {
        let mut all = Latencies::default();
        for (_, phase) in self.phases.iter().enumerate().filter(|(index, _)| wanted(*index)) {
            all.merge(phase);
        }
        all
    }
}

/// One run's measurements.
#[derive(Clone, Debug)]
pub struct Tally {
    /// In the order of the scenario.
    pub lanes: Vec<Lane>,
    /// Width of a series' points.
    pub step: Duration,
    /// When each begins, and whether it is steady.
    phases: Vec<(Duration, bool)>,
    point: usize,
}

impl Tally {
    /// Nothing measured yet. The series go on for `after` beyond the scenario's end.
    pub fn new(scenario: &Scenario, after: Duration) -> Self {
        let whole = scenario.length() + after;
        let step = (whole / POINTS_MAX).max(Duration::from_secs(1));
        let points = usize::try_from(whole.as_micros() / step.as_micros().max(1)).unwrap_or(0) + 1;
        let phases = scenario.phases.len();
        let lanes = scenario.lanes().into_iter().map(|name| Lane::new(name, phases, points)).collect();
        let bounds = scenario.phases.iter().map(|phase| (phase.start, phase.steady)).collect();
        Self { lanes, step, phases: bounds, point: 0 }
    }

    /// An attempt failed at `at` with this label.
    pub fn failed(&mut self, lane: usize, label: &str, at: Duration) {
        let point = self.turn(at);
        let Some(lane) = self.lanes.get_mut(lane) else { return };
        let known = lane.failures.contains_key(label) || lane.failures.len() < LABELS_MAX;
        *lane.failures.entry(if known { label } else { "other" }.to_owned()).or_default() += 1;
        lane.series[point].errors += 1;
    }

    /// An attempt is repeated.
    pub fn retried(&mut self, lane: usize) {
        if let Some(lane) = self.lanes.get_mut(lane) {
            lane.retries += 1;
        }
    }

    /// A request is over.
    pub fn ended(&mut self, lane: usize, times: &Times, ending: Ending) {
        let point = self.turn(times.ended);
        let phase = self.phase_of(times);
        let Some(lane) = self.lanes.get_mut(lane) else { return };
        let Some(latencies) = lane.phases.get_mut(phase) else { return };
        let failed_for_user = match ending {
            Ending::Ok => {
                lane.ok += 1;
                latencies.ok += 1;
                lane.series[point].ok += 1;
                false
            }
            Ending::Failed => true,
            Ending::Unfinished { user } => {
                lane.unfinished += 1;
                *lane.failures.entry("unfinished".to_owned()).or_default() += 1;
                lane.series[point].errors += 1;
                user
            }
        };
        if failed_for_user {
            lane.user_failures += 1;
            latencies.user_failures += 1;
            lane.series[point].user_failures += 1;
        }
        // A refusal is quick; counting it would make a server that refuses everybody look fast.
        if ending != Ending::Failed {
            latencies.add(times);
            record(&mut lane.open, micros(times.ended.saturating_sub(times.arrived)));
        }
    }

    /// The phase of arrival; but what arrived in a steady phase and ended behind it was held up by what came then, and must not stretch the yardstick.
    fn phase_of(&self, times: &Times) -> usize {
        let at =
            |moment: Duration| self.phases.partition_point(|(start, _)| *start <= moment).saturating_sub(1);
        let (arrived, ended) = (at(times.arrived), at(times.ended));
        let steady = |phase: usize| self.phases.get(phase).is_some_and(|(_, steady)| *steady);
        if steady(arrived) && !steady(ended) { ended } else { arrived }
    }

    /// Closes the last point: to be called once, when nothing more comes.
    pub fn finish(&mut self) {
        self.close_point();
    }

    /// The point `at` belongs to. What comes late counts in the present one.
    fn turn(&mut self, at: Duration) -> usize {
        let last = self.lanes.first().map_or(0, |lane| lane.series.len().saturating_sub(1));
        let point = usize::try_from(at.as_micros() / self.step.as_micros().max(1)).unwrap_or(last).min(last);
        if point > self.point {
            self.close_point();
            self.point = point;
        }
        self.point
    }

    fn close_point(&mut self) {
        for lane in &mut self.lanes {
            let Some(point) = lane.series.get_mut(self.point) else { continue };
            if !lane.open.is_empty() {
                let ms = |micros: u64| micros as f32 / 1e3;
                point.p50_ms = ms(lane.open.value_at_quantile(0.5));
                point.p99_ms = ms(lane.open.value_at_quantile(0.99));
                point.max_ms = ms(lane.open.max());
                lane.open.reset();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::scenario;

    const S: Duration = Duration::from_secs(1);
    const MS: Duration = Duration::from_millis(1);

    fn tally() -> Tally {
        let source = "title = \"t\"\n[[phase]]\nname = \"a\"\nduration = \"10s\"\n[[phase]]\nname = \"b\"\nduration = \"10s\"\n\
                      [[actor]]\nkind = \"web\"\nrate = 1\nnotify = 0";
        Tally::new(&scenario::read(source).unwrap(), Duration::ZERO)
    }

    fn times(arrived: Duration, ready: Duration, ended: Duration) -> Times {
        Times { arrived, ready: Some(ready), ended }
    }

    fn ms(histogram: &Histogram<u32>, quantile: f64) -> u64 {
        histogram.value_at_quantile(quantile) / 1000
    }

    #[test]
    fn response_counts_from_the_arrival_and_splits_into_wait_and_service() {
        let mut tally = tally();
        tally.ended(0, &times(S, S + 400 * MS, S + 500 * MS), Ending::Ok);
        let all = tally.lanes[0].latencies(|_| true);
        assert_eq!((ms(&all.response, 1.0), ms(&all.wait, 1.0), ms(&all.service, 1.0)), (500, 400, 100));
    }

    #[test]
    fn a_request_counts_in_the_phase_it_arrived_in_and_the_second_it_ended_in() {
        let mut tally = tally();
        tally.ended(0, &times(9 * S, 9 * S, 12 * S), Ending::Ok);
        tally.finish();
        let lane = &tally.lanes[0];
        assert_eq!((lane.phases[0].ok, lane.phases[1].ok), (1, 0));
        assert_eq!((lane.series[9].ok, lane.series[12].ok), (0, 1));
        assert!((lane.series[12].max_ms - 3000.0).abs() < 5.0);
    }

    #[test]
    fn what_the_incident_held_up_does_not_stretch_the_yardstick() {
        let source = "title = \"t\"\n[[phase]]\nname = \"a\"\nduration = \"10s\"\nsteady = true\n[[phase]]\nname = \"b\"\nduration = \"10s\"\n\
                      [[actor]]\nkind = \"web\"\nrate = 1\nnotify = 0";
        let mut tally = Tally::new(&scenario::read(source).unwrap(), Duration::ZERO);
        tally.ended(0, &times(9 * S, 9 * S, 12 * S), Ending::Ok);
        tally.ended(0, &times(8 * S, 8 * S, 9 * S), Ending::Ok);
        assert_eq!((tally.lanes[0].phases[0].ok, tally.lanes[0].phases[1].ok), (1, 1));
    }

    #[test]
    fn attempts_are_ok_and_failed_ones_and_a_repeated_one_is_no_users_failure() {
        let mut tally = tally();
        tally.failed(0, "40001", S);
        tally.retried(0);
        tally.ended(0, &times(S, S, 2 * S), Ending::Ok);
        tally.failed(0, "53300", 2 * S);
        tally.ended(0, &times(2 * S, 2 * S, 2 * S), Ending::Failed);
        let lane = &tally.lanes[0];
        assert_eq!(
            (lane.attempts(), lane.ok, lane.errors(), lane.user_failures, lane.retries),
            (3, 1, 2, 1, 1)
        );
        assert_eq!(lane.failures["53300"], 1);
    }

    #[test]
    fn a_quick_refusal_makes_no_lane_look_fast_and_the_unfinished_count_with_their_age() {
        let mut tally = tally();
        for _ in 0..99 {
            tally.ended(0, &times(S, S, S + MS), Ending::Failed);
        }
        tally.ended(0, &Times { arrived: S, ready: None, ended: 11 * S }, Ending::Unfinished { user: true });
        let lane = &tally.lanes[0];
        let all = lane.latencies(|_| true);
        assert_eq!((all.response.len(), ms(&all.response, 0.5) / 100), (1, 100));
        assert_eq!((lane.unfinished, lane.user_failures, lane.failures["unfinished"]), (1, 100, 1));
        assert_eq!(ms(&all.wait, 1.0) / 100, 100, "it never had a link");
    }

    #[test]
    fn what_a_batch_leaves_undone_is_no_users_failure() {
        let mut tally = tally();
        tally.ended(0, &Times { arrived: S, ready: None, ended: 11 * S }, Ending::Unfinished { user: false });
        assert_eq!((tally.lanes[0].unfinished, tally.lanes[0].user_failures), (1, 0));
    }

    #[test]
    fn labels_and_points_are_bounded() {
        let mut tally = tally();
        for label in 0..1000 {
            tally.failed(0, &format!("{label:05}"), 100 * S);
        }
        assert_eq!(tally.lanes[0].failures.len(), LABELS_MAX + 1);
        assert_eq!(tally.lanes[0].errors(), 1000);
        assert_eq!(tally.lanes[0].series.last().unwrap().errors, 1000);
    }
}
