//! What an operator can ask for. Pure: text in, command out.

use std::time::Duration;

use crate::lanes::settings::Disposition;

/// A command that changes something.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// FREEZE [FOR 'duration'] [REASON 'text']
    Freeze {
        /// Ends by itself after this.
        duration: Option<Duration>,
        /// Why.
        reason: String,
    },
    /// PAUSE LANE name [HOLD|REJECT] [FOR 'duration'] [REASON 'text']
    Pause {
        /// Which lane.
        lane: String,
        /// Overrides the lane's `on_pause`.
        how: Option<Disposition>,
        /// Ends by itself after this.
        duration: Option<Duration>,
        /// Why.
        reason: String,
    },
    /// PAUSE, as PgBouncer has it: every lane that may be paused.
    PauseAll {
        /// Why.
        reason: String,
    },
    /// RESUME LANE name [OVER 'duration']
    Resume {
        /// Which lane.
        lane: String,
        /// Ramp.
        over: Option<Duration>,
    },
    /// RESUME ALL [OVER 'duration']: one lane after the other, best priority first.
    ResumeAll {
        /// Ramp of all lanes together.
        over: Option<Duration>,
    },
    /// DRAIN LANE name: links end at their next transaction boundary.
    Drain {
        /// Which lane.
        lane: String,
    },
    /// CANCEL CLIENT id: its running query.
    CancelClient {
        /// Link.
        id: u64,
    },
    /// RESET CLIENT id: as a leak, by its lane's action.
    ResetClient {
        /// Link.
        id: u64,
    },
    /// KILL CLIENT id
    KillClient {
        /// Link.
        id: u64,
    },
    /// CANCEL PID n, through the monitor.
    CancelPid {
        /// Backend.
        pid: i32,
    },
    /// TERMINATE PID n, through the monitor.
    TerminatePid {
        /// Backend.
        pid: i32,
    },
    /// NOTE 'text'
    Note {
        /// Into the timeline.
        text: String,
    },
    /// SET LANE name quota = n, until the next reload or restart.
    SetQuota {
        /// Which lane.
        lane: String,
        /// New quota.
        quota: u32,
    },
    /// RELOAD
    Reload,
    /// SHUTDOWN
    Shutdown,
}

/// What a SHOW asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the console's own words")]
pub enum Show {
    Lanes,
    Applications,
    Clients,
    Sessions,
    Leaks,
    Usage,
    Timeline,
    Exit,
    Incidents,
    /// The record of one, by its number.
    Incident(u64),
    Peaks,
    /// What `pgweir suggest` makes of them.
    Suggestion,
    Config,
    Stats,
    StatsTotals,
    Pools,
    Databases,
    Lists,
    Servers,
    Upstreams,
    Headroom,
    Version,
    Help,
    /// Everything `pgweir status` needs: the process's own figures as name, value.
    Status,
}
