//! Opening a lane in ten equal steps, each of which needs a look at usage.

use std::time::Duration;

use super::settings::Disposition;
use crate::clock::Moment;

/// Steps of a ramp; the end of the last one is the open lane.
pub const STEPS: u32 = 10;

/// A lane on its way from paused to open.
#[derive(Clone, Debug)]
pub struct Ramp {
    step: u32,
    each: Duration,
    began: Moment,
    /// A sample asked for in this step found usage low enough.
    judged: bool,
    /// What the pause did to those it stopped, should it come back.
    pub how: Disposition,
    /// Who resumed.
    pub by: String,
}

impl Ramp {
    /// A ramp over `over`, in its first step.
    pub fn new(now: Moment, over: Duration, how: Disposition, by: &str) -> Self {
        Self { step: 1, each: over / STEPS, began: now, judged: false, how, by: by.to_owned() }
    }

    /// Another pace for the steps to come.
    pub fn set_pace(&mut self, over: Duration) {
        self.each = over / STEPS;
    }

    /// How long all steps take together.
    pub fn over(&self) -> Duration {
        self.each * STEPS
    }

    /// Since when it is in this step.
    pub fn began(&self) -> Moment {
        self.began
    }

    /// Which step, from 1.
    pub fn step(&self) -> u32 {
        self.step
    }

    /// What the lane may have in this step, of `quota`: at least 1.
    pub fn allowance(&self, quota: u32) -> u32 {
        (u64::from(quota) * u64::from(self.step)).div_ceil(u64::from(STEPS)).max(1).min(u64::from(quota))
            as u32
    }

    /// Takes a sample. False: usage has grown again, pause.
    pub fn sampled(&mut self, asked_at: Moment, usage: f64, above: f64) -> bool {
        if asked_at <= self.began {
            return true;
        }
        self.judged = usage < above;
        self.judged
    }

    /// When the next step is due; none while it waits for a sample.
    pub fn due(&self, monitored: bool) -> Option<Moment> {
        (self.judged || !monitored).then(|| self.began + self.each)
    }

    /// Goes to the next step if it is due. True if that was the end.
    pub fn advance(&mut self, now: Moment, monitored: bool) -> Option<bool> {
        if self.due(monitored)? > now {
            return None;
        }
        self.step += 1;
        self.began = now;
        self.judged = false;
        Some(self.step > STEPS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Moment {
        Moment::from_micros(1 + secs * 1_000_000)
    }

    #[test]
    fn ten_steps_of_the_quota_rounded_up() {
        let mut ramp = Ramp::new(at(0), Duration::from_secs(10), Disposition::Hold, "me");
        let mut seen = vec![ramp.allowance(8)];
        for second in 1..=9 {
            assert_eq!(ramp.advance(at(second), false), Some(false));
            seen.push(ramp.allowance(8));
        }
        assert_eq!(seen, [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]);
        assert_eq!(ramp.advance(at(9), false), None);
        assert_eq!(ramp.advance(at(10), false), Some(true));
    }

    #[test]
    fn a_step_needs_a_sample_asked_for_in_it() {
        let mut ramp = Ramp::new(at(0), Duration::from_secs(10), Disposition::Hold, "me");
        assert!(ramp.sampled(at(0), 99.0, 75.0), "asked before the step: says nothing of it");
        assert_eq!((ramp.due(true), ramp.advance(at(60), true)), (None, None));
        assert!(ramp.sampled(at(60), 70.0, 75.0));
        assert_eq!(ramp.advance(at(60), true), Some(false));
        assert!(!ramp.sampled(at(61), 75.0, 75.0), "usage has grown again");
    }
}
