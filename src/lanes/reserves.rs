//! Whether PostgreSQL has what the lanes' reserves promise, once its limits are known.

use super::guard::{Guard, SELF, is_replication_only};
use super::settings::{LaneSettings, Limits};

impl Guard {
    /// What is wrong where the reserves sum to more than usable − `headroom`: then not each of them is always available. None until
    /// PostgreSQL's limits are known, or without a monitor.
    pub fn reserve_problem(&self) -> Option<String> {
        let lanes = self.file_order.iter().map(|lane| self.lane_settings(*lane));
        self.reserves_exceed(lanes, &self.limits)
    }

    /// The same for other settings.
    pub(super) fn reserves_exceed<'a>(
        &self,
        lanes: impl Iterator<Item = &'a LaneSettings>,
        limits: &Limits,
    ) -> Option<String> {
        let seen = self.usage.seen().filter(|_| limits.monitored)?;
        let budget = seen.usable.saturating_sub(limits.headroom);
        let counted: Vec<_> = lanes.filter(|lane| lane.reserve > 0 && !is_replication_only(lane)).collect();
        let sum: u64 = counted.iter().map(|lane| u64::from(lane.reserve)).sum();
        if sum <= u64::from(budget) {
            return None;
        }
        let parts: Vec<_> = counted.iter().map(|lane| format!("{} {}", lane.name, lane.reserve)).collect();
        Some(format!(
            "the reserves sum to {sum} ({}), more than the budget {budget}: max_connections {} less {} reserved less headroom {}",
            parts.join(", "),
            seen.max_connections,
            seen.max_connections.saturating_sub(seen.usable),
            limits.headroom
        ))
    }

    /// Puts the problem on record, once per change of its figures.
    pub(super) fn watch_reserves(&mut self) {
        let problem = self.reserve_problem();
        if problem == self.reserves_said {
            return;
        }
        self.reserves_said.clone_from(&problem);
        if let Some(text) = problem {
            self.timeline("reserves_exceed_budget", None, None, text, SELF);
        }
    }
}
