//! What console, HTTP and metrics need of the rest: the read model and one channel for commands.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::watch;

use super::command::Command;
use crate::snapshot::{
    ApplicationRow, ClientRow, ConfigRow, DatabaseRow, ExitRow, HeadroomRow, HistoryRow, IncidentRow,
    LaneRow, LeakRow, ListsRow, PeaksRow, PolicyRow, PoolRow, ProcessRow, ServerRow, SessionRow,
    TimelineEntry, UpstreamRow, UsageRow,
};

/// Who asks, for the timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// Name of the admin user, with the tool's application_name where it gave one: "admin (psql)".
    pub name: String,
    /// Whether commands are allowed, or SHOW only.
    pub may_change: bool,
}

/// Why a command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// No such lane.
    UnknownLane(String),
    /// No such client.
    UnknownClient(u64),
    /// It was refused, with the reason.
    Refused(String),
}

/// What was done, one sentence a line, for the operator's screen (sent as notices, and as `message` in HTTP).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Lines.
    pub lines: Vec<String>,
}

/// The outcome of a command, when it is ready.
pub type Reply<'a> = Later<'a, Result<Outcome, CommandError>>;

/// Something that takes its time.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Rows of SHOW LEAKS.
pub type Leaks = Box<dyn ExactSizeIterator<Item = LeakRow> + Send>;

/// Implemented by the application; taken by the admin port as `Arc<dyn Control>`. What has to look at all links takes its time: it rests between
/// some of them and the next, so that a worker does not wait for the core.
pub trait Control: Send + Sync + 'static {
    /// The lanes' names, in the order of SHOW LANES.
    fn lane_names(&self) -> Vec<Arc<str>>;
    /// SHOW LANES and SHOW APPLICATIONS, from one look at the links.
    fn lanes_and_applications(&self) -> Later<'_, (Vec<LaneRow>, Vec<ApplicationRow>)>;
    /// SHOW CLIENTS: of those that are there now, each as it is when its turn comes.
    fn clients(&self) -> Box<dyn Iterator<Item = ClientRow> + Send>;
    /// SHOW SESSIONS.
    fn sessions(&self) -> Vec<SessionRow>;
    /// SHOW LEAKS, longest first; rows are made as they are asked for.
    fn leaks(&self) -> Later<'_, Leaks>;
    /// SHOW USAGE.
    fn usage(&self) -> UsageRow;
    /// Usage over the last 15 minutes, oldest first.
    fn history(&self) -> Vec<HistoryRow>;
    /// What the configuration in force says of thresholds, freezing and resets.
    fn policy(&self) -> PolicyRow;
    /// SHOW TIMELINE, oldest first.
    fn timeline(&self) -> Vec<TimelineEntry>;
    /// SHOW EXIT: the criteria by which an incident is over.
    fn exit(&self) -> Vec<ExitRow>;
    /// SHOW INCIDENTS, oldest first.
    fn incidents(&self) -> Vec<IncidentRow>;
    /// SHOW INCIDENT n: its record in JSON (`incident::record::Incident`); none where there is no such incident. May read a file.
    fn incident(&self, id: u64) -> Option<String>;
    /// SHOW PEAKS: lanes, and last all together.
    fn peaks(&self) -> Vec<PeaksRow>;
    /// SHOW SUGGESTION, in JSON (`advise::suggest::Suggestion`).
    fn suggestion(&self) -> String;
    /// What is kept of the timeline behind an entry's number, oldest first.
    fn timeline_after(&self, seq: u64) -> Vec<TimelineEntry>;
    /// The number of the last entry; changes when one is added.
    fn timeline_changed(&self) -> watch::Receiver<u64>;
    /// SHOW CONFIG, without secrets.
    fn config(&self) -> Vec<ConfigRow>;
    /// SHOW DATABASES and STATS, by name.
    fn databases(&self) -> Vec<DatabaseRow>;
    /// SHOW POOLS, by database and user.
    fn pools(&self) -> Vec<PoolRow>;
    /// SHOW SERVERS.
    fn servers(&self) -> Vec<ServerRow>;
    /// SHOW LISTS.
    fn lists(&self) -> ListsRow;
    /// SHOW UPSTREAMS, in the order of the configuration.
    fn upstreams(&self) -> Vec<UpstreamRow>;

    /// SHOW HEADROOM, one line of the reckoning after the other.
    fn headroom(&self) -> Later<'_, Vec<HeadroomRow>>;
    /// Figures of the process.
    fn process(&self) -> ProcessRow;
    /// Prometheus text: everything of `/metrics`.
    fn metrics(&self) -> Later<'_, String>;
    /// Carries out a command, puts it into the timeline.
    fn execute<'a>(&'a self, who: &'a Operator, command: Command) -> Reply<'a>;
}
