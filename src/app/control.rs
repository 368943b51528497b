//! What the admin port sees of the application.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::watch;

use super::{App, metrics};
use crate::admin::command::Command;
use crate::admin::control::{Control, Later, Leaks, Operator, Reply};
use crate::clock;
use crate::lanes::breaker::Trouble;
use crate::link::hub::Stage;
use crate::snapshot::{
    ApplicationRow, ClientRow, ConfigRow, DatabaseRow, ExitRow, HeadroomRow, HistoryRow, IncidentRow,
    LaneRow, ListsRow, PeaksRow, PolicyRow, PoolRow, ProcessRow, ServerRow, SessionRow, TimelineEntry,
    UpstreamRow, UsageRow,
};

impl App {
    /// "up", "full: …" or "down: …": what links and monitor met. A stale or blind monitor alone says nothing of PostgreSQL.
    fn upstream_state(&self, trouble: Option<Trouble>) -> String {
        let unreachable = self.unreachable.load_full();
        match (trouble, unreachable) {
            (Some(Trouble::Full), _) => "full: PostgreSQL has no connection left".to_owned(),
            (None, None) if self.hub.guard(|guard, _| guard.has_no_server()) => {
                format!("down: {}", self.no_server())
            }
            (None, Some(cause)) if cause.contains("53300") => format!("full: {cause}"),
            (_, Some(cause)) => format!("down: {cause}"),
            (Some(Trouble::Down), None) => "down: PostgreSQL cannot be reached, or is not ready".to_owned(),
            (None, None) => "up".to_owned(),
        }
    }
}

impl Control for App {
    fn lane_names(&self) -> Vec<Arc<str>> {
        self.hub.lanes.load().iter().map(|lane| lane.name.clone()).collect()
    }

    fn lanes_and_applications(&self) -> Later<'_, (Vec<LaneRow>, Vec<ApplicationRow>)> {
        Box::pin(self.lane_and_application_rows())
    }

    fn clients(&self) -> Box<dyn Iterator<Item = ClientRow> + Send> {
        Box::new(self.client_rows())
    }

    fn sessions(&self) -> Vec<SessionRow> {
        self.session_rows()
    }

    fn leaks(&self) -> Later<'_, Leaks> {
        Box::pin(async { Box::new(self.leak_rows().await) as Leaks })
    }

    fn usage(&self) -> UsageRow {
        self.hub.guard(|guard, now| guard.usage_row(now))
    }

    fn history(&self) -> Vec<HistoryRow> {
        self.history.lock().rows(clock::now(), clock::wall_now())
    }

    fn policy(&self) -> PolicyRow {
        self.policy_row()
    }

    fn timeline(&self) -> Vec<TimelineEntry> {
        self.timeline.entries()
    }

    fn exit(&self) -> Vec<ExitRow> {
        self.exit_rows()
    }

    fn incidents(&self) -> Vec<IncidentRow> {
        self.incident_rows()
    }

    fn incident(&self, id: u64) -> Option<String> {
        self.incident_record(id)
    }

    fn peaks(&self) -> Vec<PeaksRow> {
        self.peaks_rows()
    }

    fn suggestion(&self) -> String {
        self.suggestion_text()
    }

    fn timeline_after(&self, seq: u64) -> Vec<TimelineEntry> {
        self.timeline.since(seq.saturating_add(1))
    }

    fn timeline_changed(&self) -> watch::Receiver<u64> {
        self.timeline.changed()
    }

    fn config(&self) -> Vec<ConfigRow> {
        self.config_rows()
    }

    fn databases(&self) -> Vec<DatabaseRow> {
        self.database_rows()
    }

    fn pools(&self) -> Vec<PoolRow> {
        self.pool_rows()
    }

    fn servers(&self) -> Vec<ServerRow> {
        self.server_rows()
    }

    fn lists(&self) -> ListsRow {
        self.lists_row()
    }

    fn upstreams(&self) -> Vec<UpstreamRow> {
        self.upstream_rows()
    }

    fn headroom(&self) -> Later<'_, Vec<HeadroomRow>> {
        Box::pin(self.headroom_rows())
    }

    fn process(&self) -> ProcessRow {
        let now = clock::now();
        let config = self.config.load();
        let (logins, stale, down) =
            self.hub.guard(|guard, now| (guard.logins(), guard.is_stale(now), guard.upstream_trouble()));
        let monitor = match self.monitor.load_full() {
            None => "off".to_owned(),
            Some(monitor) if stale => format!("stale ({})", monitor.state()),
            Some(monitor) => monitor.state(),
        };
        ProcessRow {
            version: env!("CARGO_PKG_VERSION"),
            mode: if config.settings.limits.observe { "observe" } else { "enforce" },
            uptime_s: now.since(self.started).as_secs(),
            clients: self.hub.counters.clients.load(Ordering::Relaxed),
            max_clients: config.settings.limits.max_clients,
            logins,
            state: if self.hub.stage() == Stage::Running { "running" } else { "draining" },
            upstream: self.upstream_state(down),
            monitor,
            growth: self.growth.lock().grew_most(now).map(|line| line.to_string()).unwrap_or_default(),
            reserves: self.hub.guard(|guard, _| guard.reserve_problem()).unwrap_or_default(),
            lookups_failed: self.hub.lookups.failures().into_iter().map(|(c, n)| (c.to_owned(), n)).collect(),
            too_many_clients: self.hub.counters.too_many_clients.load(Ordering::Relaxed),
            panics: self.hub.counters.panics.load(Ordering::Relaxed),
        }
    }

    fn metrics(&self) -> Later<'_, String> {
        Box::pin(metrics::render(self))
    }

    fn execute<'a>(&'a self, who: &'a Operator, command: Command) -> Reply<'a> {
        Box::pin(self.carry_out(who, command))
    }
}
