//! What is looked for, and what a server says of itself. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// Clusters whose timelines are kept apart, as long as it is not known which one is served.
const CLUSTERS_MAX: usize = 64;

/// What a server must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// Whatever answers.
    Any,
    /// A primary that lets transactions write.
    ReadWrite,
    /// A standby, or a primary whose transactions are read-only by default.
    ReadOnly,
    /// A primary.
    Primary,
    /// A standby.
    Standby,
}

impl Wants {
    /// Whether a server of this role will do.
    pub fn suits(self, role: Role) -> bool {
        match self {
            Self::Any => true,
            Self::ReadWrite => matches!(role, Role::Primary { .. }),
            Self::ReadOnly => !matches!(role, Role::Primary { .. }),
            Self::Primary => role != Role::Standby,
            Self::Standby => role == Role::Standby,
        }
    }

    /// Whether there can be only one.
    pub fn is_unique(self) -> bool {
        matches!(self, Self::ReadWrite | Self::Primary)
    }

    /// As libpq's target_session_attrs has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::ReadWrite => "read-write",
            Self::ReadOnly => "read-only",
            Self::Primary => "primary",
            Self::Standby => "standby",
        }
    }
}

/// What a server calls itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It takes writes, on this timeline: the number grows with each promotion.
    Primary {
        /// 0 where it is not known.
        timeline: u32,
    },
    /// Not in recovery, but its transactions are read-only by default.
    ReadOnly {
        /// As above.
        timeline: u32,
    },
    /// In recovery.
    Standby,
}

impl Role {
    /// The word of SHOW UPSTREAMS and of the metric's label.
    pub fn word(self) -> &'static str {
        match self {
            Self::Primary { .. } => "primary",
            Self::ReadOnly { .. } => "read_only",
            Self::Standby => "standby",
        }
    }

    /// Of a primary; 0 where it is not known.
    pub fn timeline(self) -> u32 {
        match self {
            Self::Primary { timeline } | Self::ReadOnly { timeline } => timeline,
            Self::Standby => 0,
        }
    }
}

/// What was seen of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing yet.
    Unseen,
    /// It said what it is.
    Is {
        /// What it calls itself.
        role: Role,
        /// Where it was reached, by TCP.
        at: Option<IpAddr>,
        /// PostgreSQL's system identifier, the same on all servers of a cluster; none where it does not tell.
        system: Option<u64>,
    },
    /// There is no connection to be had: refused, no login in time, starting up or shutting down; why.
    Silent(String),
    /// It lets the monitor in and has not answered for long; why.
    Hung(String),
    /// It does not tell the monitor what it is: it answers something else, or has only just ceased to answer; why.
    Mute(String),
}

impl Seen {
    /// One word: the role, `unseen`, `down` or `unknown`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Unseen => "unseen",
            Self::Is { role, .. } => role.word(),
            Self::Silent(_) | Self::Hung(_) => "down",
            Self::Mute(_) => "unknown",
        }
    }

    /// Why nothing is known; empty where it is.
    pub fn cause(&self) -> &str {
        match self {
            Self::Unseen | Self::Is { .. } => "",
            Self::Silent(cause) | Self::Hung(cause) | Self::Mute(cause) => cause,
        }
    }

    /// What it calls itself, where it is known.
    pub fn role(&self) -> Option<Role> {
        match self {
            Self::Is { role, .. } => Some(*role),
            _ => None,
        }
    }

    /// The system identifier of its cluster, where it is known.
    pub fn system(&self) -> Option<u64> {
        match self {
            Self::Is { system, .. } => *system,
            _ => None,
        }
    }
}

/// Whether two system identifiers are known, and are not the same.
pub fn differ(one: Option<u64>, other: Option<u64>) -> bool {
    one.zip(other).is_some_and(|(one, other)| one != other)
}

/// Whether a timeline was left behind by the `highest` one; what is not known was not.
pub fn is_behind(timeline: u32, highest: u32) -> bool {
    0 < timeline && timeline < highest
}

/// The highest timelines that were seen, by cluster: those of one are nothing to another. What does not tell its cluster may be of any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Timelines(BTreeMap<Option<u64>, u32>);

impl Timelines {
    pub(super) fn note(&mut self, system: Option<u64>, timeline: u32) {
        if self.0.len() < CLUSTERS_MAX || self.0.contains_key(&system) {
            let known = self.0.entry(system).or_default();
            *known = timeline.max(*known);
        }
    }

    /// What is to be kept of a cluster: of one that is not known, only what was seen of servers that do not tell theirs. 0 where none is known.
    pub(super) fn kept(&self, system: Option<u64>) -> u32 {
        match system {
            Some(_) => self.highest(system),
            None => self.0.get(&None).copied().unwrap_or(0),
        }
    }

    /// 0 where none is known.
    pub(super) fn highest(&self, system: Option<u64>) -> u32 {
        let may_be_its = self.0.iter().filter(|(other, _)| !differ(system, **other));
        may_be_its.map(|(_, timeline)| *timeline).max().unwrap_or(0)
    }
}
