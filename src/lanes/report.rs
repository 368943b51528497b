//! What people see of the guard: rows, and the figures and next command of a refusal.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::guard::{Guard, Lane};
use super::ids::{LaneId, LinkId};
use crate::clock::Moment;
use crate::reason::{Reason, Refusal};
use crate::snapshot::{ApplicationRow, LaneRow, LaneState, UsageRow};

impl Guard {
    /// SHOW LANES; what links do (idle, active, idle in transaction) is 0, for the shell to fill in. Retired lanes follow while they have
    /// slots.
    pub fn rows(&self, now: Moment) -> Vec<LaneRow> {
        let all = (0..self.lanes.len()).filter_map(|index| u16::try_from(index).ok()).map(LaneId);
        let retired = all.filter(|id| self.lane_ref(*id).retired && self.ledger.lane(*id).load() > 0);
        self.file_order.iter().copied().chain(retired).map(|id| self.lane_row(now, id)).collect()
    }

    fn lane_row(&self, now: Moment, id: LaneId) -> LaneRow {
        let lane = self.lane_ref(id);
        let counts = self.ledger.lane(id);
        let oldest = [lane.queue.oldest(), lane.held.oldest()].into_iter().flatten().min();
        let max_wait = oldest.map_or(0, |since| now.since(since).as_millis());
        let (state, paused_by, reason) = self.lane_state(now, id);
        LaneRow {
            lane: lane.settings.name.clone(),
            state,
            priority: lane.settings.priority,
            quota: lane.ramp.as_ref().map_or(lane.quota(), |ramp| ramp.allowance(lane.quota())),
            reserve: lane.settings.reserve,
            slots: counts.slots,
            idle: 0,
            active: 0,
            idle_in_transaction: 0,
            waiting: u32::try_from(lane.queue.len() + lane.held.len()).unwrap_or(u32::MAX),
            max_wait_ms: u64::try_from(max_wait).unwrap_or(u64::MAX),
            admitted: lane.counters.admitted,
            shed: lane.counters.shed,
            refused: lane.counters.refused.values().sum(),
            resets: lane.counters.resets,
            paused_by,
            reason,
        }
    }

    /// What a lane does, who paused it, and why.
    fn lane_state(&self, now: Moment, id: LaneId) -> (LaneState, String, String) {
        let lane = self.lane_ref(id);
        let load = self.ledger.lane(id).load();
        if let Some(pause) = &lane.pause {
            return (LaneState::Paused, pause.by.clone(), pause.describe(now));
        }
        if let Some(ramp) = &lane.ramp {
            let step = format!("step {} of {}", ramp.step(), super::ramp::STEPS);
            return (LaneState::Ramping, ramp.by.clone(), step);
        }
        if lane.shed.is_on() {
            let reason = match (self.shed_reason(), lane.thresholds()) {
                (Reason::Shed, Some(limits)) => lane.shed.why(now, limits, self.usage_percent()),
                _ => "the monitor is stale".to_owned(),
            };
            let would = if self.limits.observe { "would shed: " } else { "" };
            return (LaneState::Shedding, String::new(), format!("{would}{reason}"));
        }
        if load > lane.quota() {
            let why = match () {
                () if lane.retired => "not in the configuration any more",
                () if self.limits.observe => "would admit nobody until below",
                () => "admits nobody until below",
            };
            return (LaneState::Over, String::new(), format!("{load} of {} slots, {why}", lane.quota()));
        }
        let waits = lane.queue.oldest_link().map(|link| self.why_waiting(now, link));
        let reason = waits.map_or_else(String::new, |reason| format!("waiting: {reason}, {}", reason.text()));
        (LaneState::Open, String::new(), reason)
    }

    fn shown_usage(&self) -> String {
        self.usage_percent().map_or_else(|| "unknown".to_owned(), |usage| format!("{usage:.1} %"))
    }

    /// SHOW APPLICATIONS; what links do is 0, for the shell to fill in. Those configured first, then those that have links.
    pub fn application_rows(&self) -> Vec<ApplicationRow> {
        let mut seen = BTreeSet::new();
        let configured = self.applications.iter().map(|app| (app.name.clone(), app.quota));
        let present = self.ledger.counts().applications.keys().map(|name| (name.clone(), None));
        let mut rows = Vec::new();
        for (application, quota) in configured.chain(present) {
            if !seen.insert(application.clone()) {
                continue;
            }
            let counts = self.ledger.counts().application(&application);
            let (slots, waiting) = (counts.slots, counts.waiting);
            rows.push(ApplicationRow {
                application,
                quota,
                slots,
                idle: 0,
                active: 0,
                idle_in_transaction: 0,
                waiting,
            });
        }
        rows
    }

    /// SHOW USAGE.
    pub fn usage_row(&self, now: Moment) -> UsageRow {
        let own_slots = self.ledger.counts().own;
        let stale = self.is_stale(now);
        let Some(seen) = self.usage.seen() else {
            return UsageRow {
                own_slots,
                connections: own_slots,
                percent: self.usage_percent(),
                stale,
                ..UsageRow::default()
            };
        };
        let connections = own_slots + seen.bypass;
        UsageRow {
            max_connections: seen.max_connections,
            usable: seen.usable,
            connections,
            active: seen.active,
            idle: seen.idle,
            idle_in_transaction: seen.idle_in_transaction,
            percent: self.usage_percent(),
            percent_of_max: Some(f64::from(connections) * 100.0 / f64::from(seen.max_connections.max(1))),
            own_slots,
            bypass: seen.bypass,
            sampled_ms_ago: Some(u64::try_from(now.since(seen.taken_at).as_millis()).unwrap_or(u64::MAX)),
            stale,
        }
    }

    /// Logins in progress, protected lanes left out.
    pub fn logins(&self) -> u32 {
        self.ledger.counts().logins
    }

    /// Times PostgreSQL said "too many clients" to us.
    pub fn too_many_clients_total(&self) -> u64 {
        self.too_many_clients
    }

    /// Why upstream is not dialled, for `status`; none when it answers.
    pub fn upstream_trouble(&self) -> Option<super::breaker::Trouble> {
        self.breaker.trouble()
    }

    /// Whether no server is known that will do.
    pub fn has_no_server(&self) -> bool {
        self.breaker.is_homeless()
    }

    /// Lanes ever known: ids run from 0 up to it.
    pub fn lane_count(&self) -> u16 {
        u16::try_from(self.lanes.len()).unwrap_or(u16::MAX)
    }

    /// Refusals since start, by lane and reason.
    pub fn refusals(&self) -> Vec<(Arc<str>, Reason, u64)> {
        let lanes = self.lanes.iter();
        let of = |lane: &Lane| {
            let name = lane.settings.name.clone();
            let rows =
                lane.counters.refused.iter().map(move |(reason, count)| (name.clone(), *reason, *count));
            rows.collect::<Vec<_>>()
        };
        lanes.flat_map(of).collect()
    }

    /// Of [`Guard::refusals`], those that were carried out: in mode observe nobody is refused, and everything is counted.
    pub fn refusals_carried_out(&self) -> Vec<(Arc<str>, Reason, u64)> {
        let lanes = self.lanes.iter();
        let of = |lane: &Lane| {
            let name = lane.settings.name.clone();
            let rows = lane.counters.refused.iter().map(move |(reason, count)| {
                let spared = lane.counters.spared.get(reason).copied().unwrap_or(0);
                (name.clone(), *reason, count - spared.min(*count))
            });
            rows.collect::<Vec<_>>()
        };
        lanes.flat_map(of).collect()
    }

    /// A refusal with its figures and the next command.
    pub(super) fn refusal(&self, now: Moment, lane: LaneId, link: Option<LinkId>, reason: Reason) -> Refusal {
        let state = self.lane_ref(lane);
        let counts = self.ledger.lane(lane);
        let name = &state.settings.name;
        let waiting = state.queue.len() + state.held.len();
        let mut detail =
            format!("lane {name}: {} of {} slots, {waiting} waiting", counts.load(), state.quota());
        if let Some(link) = link.and_then(|link| self.ledger.get(link)) {
            let application = self.ledger.counts().application(&link.who.application);
            let quota = self
                .applications
                .iter()
                .find(|app| app.name == link.who.application)
                .and_then(|app| app.quota);
            if let Some(quota) = quota {
                detail += &format!(
                    "; application {}: {} of {quota} slots",
                    link.who.application, application.slots
                );
            }
            let since = link.extra().held.unwrap_or(link.extra().place).since;
            if !link.phase.has_slot() || link.extra().held.is_some() {
                detail += &format!("; waited {:.1} s", now.since(since).as_secs_f64());
            }
        }
        if let Some(budget) = self.usage.budget(&self.limits) {
            let own = self.ledger.counts().own;
            detail += &format!("; usage {}, {own} of {budget} upstream connections", self.shown_usage());
        }
        if let Some(pause) = &state.pause {
            detail += &format!("; paused by {}", pause.by);
            if !pause.reason.is_empty() {
                detail += &format!(" ({})", pause.reason);
            }
        }
        Refusal::new(reason, detail, hint(reason, name))
    }
}

/// A duration for people: seconds with at most one decimal.
pub(super) fn seconds(duration: Duration) -> String {
    format!("{} s", (duration.as_secs_f64() * 10.0).round() / 10.0)
}

/// The operator's next command.
fn hint(reason: Reason, lane: &str) -> String {
    match reason {
        Reason::LaneFull | Reason::QueueFull => {
            format!("pgweir clients, pgweir leaks; then pgweir set {lane} quota N")
        }
        Reason::ApplicationFull => {
            "pgweir clients; then raise the application's quota and pgweir reload".to_owned()
        }
        Reason::ApplicationLimit | Reason::UserLimit | Reason::DatabaseLimit | Reason::AddressLimit => {
            format!("pgweir clients; then raise the limit of lane {lane} and pgweir reload")
        }
        Reason::UpstreamBudget | Reason::UpstreamFull | Reason::Shed => {
            "pgweir usage, pgweir sessions; pgweir freeze gives the other lanes room".to_owned()
        }
        Reason::MonitorStale => "pgweir status tells why the monitor sees nothing".to_owned(),
        Reason::UpstreamDown => "pgweir status; is PostgreSQL running?".to_owned(),
        Reason::NoPrimary => "pgweir status, SHOW UPSTREAMS: what each server calls itself".to_owned(),
        Reason::LoginLimit | Reason::ConnectRate => {
            "pgweir clients shows who is logging in; see max_logins and connect_rate".to_owned()
        }
        Reason::Paused | Reason::PauseHoldTimeout => format!("pgweir resume {lane}"),
        _ => "pgweir status".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_at_most_one_decimal() {
        let shown = |ms| seconds(Duration::from_millis(ms));
        assert_eq!([shown(600_000), shown(2666), shown(49)], ["600 s", "2.7 s", "0 s"]);
    }
}
