//! Pauses outlive the process.

use std::time::Duration;

use super::App;
use crate::clock::{self, Moment, WallMs};
use crate::incident::state::{How, PausedLane, StateError};
use crate::lanes::pause::PauseRecord;
use crate::lanes::settings::Disposition;

impl App {
    /// Writes the pauses in force. Called after they are in force: a disk that fails costs only the memory of them.
    pub(super) async fn save_pauses(&self) -> Result<(), StateError> {
        let _last_word = self.saving.lock().await;
        let (records, now) = self.hub.guard(|guard, now| (guard.pauses(), now));
        let wall = clock::wall_now();
        let lanes: Vec<PausedLane> = records.iter().map(|record| to_file(record, now, wall)).collect();
        let file = self.state_file.clone();
        let saved = tokio::task::spawn_blocking(move || file.save(&lanes)).await;
        saved.unwrap_or(Ok(()))
    }

    /// Puts the pauses of the last run in force again.
    pub(super) fn restore_pauses(&self, lanes: &[PausedLane]) {
        let wall = clock::wall_now();
        for lane in lanes {
            let restored = self.hub.guard(|guard, now| guard.restore_pause(now, &from_file(lane, now, wall)));
            let text = if restored {
                let observe = self.config.load().settings.limits.observe;
                let again =
                    if observe { "is on record again, and holds nobody" } else { "is in force again" };
                format!("the pause by {} {again}: {}", lane.by, lane.reason)
            } else {
                "a pause of this lane was saved, but the lane is not configured any more".to_owned()
            };
            self.note("restore", &lane.lane, None, &text);
        }
    }
}

fn from_file(lane: &PausedLane, now: Moment, wall: WallMs) -> PauseRecord {
    let until = |ms: u64| now + Duration::from_millis(ms.saturating_sub(wall.0));
    PauseRecord {
        lane: lane.lane.as_str().into(),
        how: match lane.how {
            How::Hold => Disposition::Hold,
            How::Reject => Disposition::Reject,
        },
        by: lane.by.clone(),
        reason: lane.reason.clone(),
        since: now,
        before: Duration::from_millis(wall.0.saturating_sub(lane.since_ms)),
        until: lane.until_ms.map(until),
        ramp_over: lane.ramp_over_ms.map(Duration::from_millis),
    }
}

fn to_file(record: &PauseRecord, now: Moment, wall: WallMs) -> PausedLane {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    PausedLane {
        lane: record.lane.to_string(),
        by: record.by.clone(),
        reason: record.reason.clone(),
        how: match record.how {
            Disposition::Hold => How::Hold,
            Disposition::Reject => How::Reject,
        },
        since_ms: wall.0.saturating_sub(ms(now.since(record.since) + record.before)),
        until_ms: record.until.map(|until| wall.0.saturating_add(ms(until.since(now)))),
        ramp_over_ms: record.ramp_over.map(ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_keeps_its_beginning_and_end_over_restarts() {
        let saved = PausedLane {
            lane: "cron".to_owned(),
            by: "me".to_owned(),
            reason: "incident".to_owned(),
            how: How::Reject,
            since_ms: 1_000_000,
            until_ms: Some(9_000_000),
            ramp_over_ms: Some(5_000),
        };
        let (started, later) = (Moment::from_micros(1), Moment::from_micros(60_000_001));
        let restored = from_file(&saved, started, WallMs(3_000_000));
        assert_eq!(to_file(&restored, later, WallMs(3_060_000)), saved);
    }
}
