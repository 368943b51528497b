//! Usage over the last 15 minutes, for the dashboard: a page that is opened in the middle of it shows how it came about. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::{Moment, WallMs};
use crate::snapshot::HistoryRow;

/// One point is kept per this long.
pub const STEP: Duration = Duration::from_secs(5);
/// Points kept: 15 minutes of them.
pub const POINTS_MAX: usize = 180;

/// What is seen at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    /// Usage in percent; none while it is not known.
    pub percent: Option<f64>,
    /// Connections at PostgreSQL; none while they are not known.
    pub connections: Option<u32>,
    /// Those of them that bypass pgweir.
    pub bypass: Option<u32>,
}

impl Point {
    /// The worse of two, figure by figure: a peak between two points must not be lost.
    fn peak(self, other: Self) -> Self {
        Self {
            percent: self.percent.into_iter().chain(other.percent).reduce(f64::max),
            connections: self.connections.max(other.connections),
            bypass: self.bypass.max(other.bypass),
        }
    }
}

/// The last [`POINTS_MAX`] points, oldest first. By the monotonic clock: a correction of the wall clock tears no hole.
#[derive(Clone, Debug, Default)]
pub struct History {
    points: VecDeque<(Moment, Point)>,
}

impl History {
    /// Takes a look into the point of its time.
    pub fn record(&mut self, now: Moment, seen: Point) {
        if let Some((began, point)) = self.points.back_mut()
            && now.since(*began) < STEP
        {
            *point = point.peak(seen);
            return;
        }
        if self.points.len() == POINTS_MAX {
            self.points.pop_front();
        }
        self.points.push_back((now, seen));
    }

    /// What is kept of the last [`POINTS_MAX`] steps, in the wall clock's time of now.
    pub fn rows(&self, now: Moment, wall: WallMs) -> Vec<HistoryRow> {
        let window = STEP * u32::try_from(POINTS_MAX).unwrap_or(u32::MAX);
        let recent = self.points.iter().filter(|(began, _)| now.since(*began) <= window);
        let row = |(began, point): &(Moment, Point)| {
            let age = u64::try_from(now.since(*began).as_millis()).unwrap_or(u64::MAX);
            HistoryRow {
                at: wall.0.saturating_sub(age),
                percent: point.percent,
                connections: point.connections,
                bypass: point.bypass,
            }
        };
        recent.map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Moment = Moment::from_micros(1);

    fn at(seconds: u64) -> Moment {
        ORIGIN + Duration::from_secs(seconds)
    }

    fn usage(percent: f64) -> Point {
        Point { percent: Some(percent), connections: Some(1), bypass: Some(0) }
    }

    #[test]
    fn a_point_has_the_peak_of_its_time() {
        let mut history = History::default();
        for (second, percent) in [(0, 10.0), (1, 90.0), (4, 20.0), (5, 30.0)] {
            history.record(at(second), usage(percent));
        }
        history.record(at(6), Point::default());
        let rows = history.rows(at(10), WallMs(1_000_000));
        let shown: Vec<_> = rows.iter().map(|row| (row.at, row.percent)).collect();
        assert_eq!(shown, [(990_000, Some(90.0)), (995_000, Some(30.0))]);
    }

    #[test]
    fn what_is_not_known_is_a_gap() {
        let mut history = History::default();
        history.record(at(0), Point::default());
        assert_eq!(history.rows(at(0), WallMs(5))[0], HistoryRow { at: 5, ..HistoryRow::default() });
    }

    #[test]
    fn it_is_bounded_and_forgets_what_is_too_old() {
        let mut history = History::default();
        for second in 0..5000 {
            history.record(at(second), usage(1.0));
        }
        assert_eq!(history.rows(at(5000), WallMs(9_000_000)).len(), POINTS_MAX);
        assert_eq!(history.rows(at(5000 + 450), WallMs(9_000_000)).len(), POINTS_MAX / 2);
        assert_eq!(history.rows(at(9000), WallMs(9_000_000)), []);
    }
}
