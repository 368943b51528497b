//! How full PostgreSQL is: own slots, which we count, and bypass, which the monitor sees.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroI32;
use std::time::Duration;

use super::ids::LinkId;
use super::ledger::{Ledger, Link, Phase};
use super::sample::{Sample, Session};
use super::settings::Limits;
use crate::clock::Moment;

/// Closed slots remembered until a sample asked for later has come: at most this many, oldest forgotten first.
const TOMBSTONES_MAX: usize = 4096;
/// A zombie without a pid may still be logging in, invisible: PostgreSQL's authentication_timeout (default 60 s) ends that.
const PIDLESS_ZOMBIE_MIN: Duration = Duration::from_secs(60);
/// Without samples a zombie is given up after this.
pub const ZOMBIE_MAX: Duration = Duration::from_secs(300);
/// Without samples "too many clients" counts for so long.
const LATCH_MAX: Duration = Duration::from_secs(10);

/// What the last sample said.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// When it was asked for.
    pub asked_at: Moment,
    /// When it came back.
    pub taken_at: Moment,
    /// max_connections.
    pub max_connections: u32,
    /// max_connections less the reserved ones.
    pub usable: u32,
    /// Client backends that are not ours.
    pub bypass: u32,
    /// Client backends that are active.
    pub active: u32,
    /// Client backends that are idle.
    pub idle: u32,
    /// Client backends idle in transaction, aborted ones included.
    pub idle_in_transaction: u32,
}

/// A slot that closed, perhaps after a sample was asked for that still lists it.
#[derive(Clone, Debug)]
struct Tombstone {
    closed_at: Moment,
    dialled_at: Moment,
    pid: Option<i32>,
    local: Option<SocketAddr>,
}

/// Usage as known.
#[derive(Clone, Debug)]
pub struct Usage {
    started: Moment,
    seen: Option<Seen>,
    /// PostgreSQL said "too many clients" then.
    latched_at: Option<Moment>,
    tombstones: VecDeque<Tombstone>,
}

impl Usage {
    /// Nothing known yet.
    pub fn new(started: Moment) -> Self {
        Self { started, seen: None, latched_at: None, tombstones: VecDeque::new() }
    }

    /// The last sample.
    pub fn seen(&self) -> Option<Seen> {
        self.seen
    }

    /// In percent of usable; none until known. "Too many clients" counts as 100.
    pub fn percent(&self, own: u32) -> Option<f64> {
        let counted =
            self.seen.map(|seen| f64::from(own + seen.bypass) * 100.0 / f64::from(seen.usable.max(1)));
        if self.latched_at.is_some() {
            return Some(counted.unwrap_or(100.0).max(100.0));
        }
        counted
    }

    /// Slots we may hold: usable − headroom − bypass. None until known. Of a stale sample bypass is the best guess there is: those who
    /// bypass pgweir are not gone because nobody counts them.
    pub fn budget(&self, limits: &Limits) -> Option<u32> {
        let seen = self.seen.filter(|_| limits.monitored)?;
        Some(seen.usable.saturating_sub(limits.headroom).saturating_sub(seen.bypass))
    }

    /// Whether the last sample is too old, or there was none for that long. Never without a monitor.
    pub fn is_stale(&self, now: Moment, limits: &Limits) -> bool {
        self.stale_at(limits).is_some_and(|at| at <= now)
    }

    /// When data becomes too old; none without a monitor.
    pub fn stale_at(&self, limits: &Limits) -> Option<Moment> {
        let since = self.seen.map_or(self.started, |seen| seen.taken_at);
        limits.monitored.then(|| since + limits.stale_after)
    }

    /// Whether the first sample is still to come, and not overdue.
    pub fn is_cold(&self, now: Moment, limits: &Limits) -> bool {
        limits.monitored && self.seen.is_none() && !self.is_stale(now, limits)
    }

    /// PostgreSQL said "too many clients". True if that was not known yet.
    pub fn latch(&mut self, now: Moment) -> bool {
        self.latched_at.replace(now).is_none()
    }

    /// Another server is dialled from now on: nothing is known of it yet, and what was known was the other's.
    pub fn moved(&mut self, now: Moment) {
        *self = Self::new(now);
    }

    /// Whether "too many clients" still counts.
    pub fn is_latched(&self) -> bool {
        self.latched_at.is_some()
    }

    /// A login succeeded whose dial began at `dialled_at`.
    pub fn login_succeeded(&mut self, dialled_at: Moment) {
        self.latched_at = self.latched_at.filter(|at| *at >= dialled_at);
    }

    /// When the latch ends without a sample; none while samples come, or when it is off.
    pub fn latch_ends(&self, now: Moment, limits: &Limits) -> Option<Moment> {
        let blind = !limits.monitored || self.is_stale(now, limits);
        self.latched_at.filter(|_| blind).map(|at| at + LATCH_MAX)
    }

    /// Ends a latch nobody else can end.
    pub fn expire_latch(&mut self, now: Moment, limits: &Limits) {
        if self.latch_ends(now, limits).is_some_and(|at| at <= now) {
            self.latched_at = None;
        }
    }

    /// Remembers a slot that closed: a sample asked for before that may still list it.
    pub fn bury(&mut self, closed_at: Moment, link: &Link) {
        if self.tombstones.len() == TOMBSTONES_MAX {
            self.tombstones.pop_front();
        }
        let (dialled_at, local) = (link.dialled_at, link.extra().local);
        let pid = link.pid.map(NonZeroI32::get);
        self.tombstones.push_back(Tombstone { closed_at, dialled_at, pid, local });
    }

    /// Takes a sample. False: it is older than the last one and was ignored.
    pub fn take(&mut self, sample: &Sample, ledger: &Ledger) -> bool {
        if self.seen.is_some_and(|seen| seen.asked_at > sample.asked_at) {
            return false;
        }
        self.tombstones.retain(|tombstone| tombstone.closed_at >= sample.asked_at);
        self.latched_at = self.latched_at.filter(|at| *at >= sample.asked_at);
        // One pass over what may be ten thousand rows.
        let (mut active, mut idle, mut idle_in_transaction) = (0, 0, 0);
        for row in sample.sessions.iter().filter(|row| !row.walsender) {
            match &*row.state {
                "active" | "fastpath function call" => active += 1,
                "idle" => idle += 1,
                "idle in transaction" | "idle in transaction (aborted)" => idle_in_transaction += 1,
                _ => {}
            }
        }
        self.seen = Some(Seen {
            asked_at: sample.asked_at,
            taken_at: sample.taken_at,
            max_connections: sample.max_connections,
            usable: sample.max_connections.saturating_sub(sample.reserved_connections),
            bypass: self.bypass(sample, ledger),
            active,
            idle,
            idle_in_transaction,
        });
        true
    }

    /// Client backends that are not ours: by pid, or by address and port while we do not know the pid.
    fn bypass(&self, sample: &Sample, ledger: &Ledger) -> u32 {
        let mut pids = Vec::new();
        let mut ports = BTreeSet::new();
        let mut unknown = 0_u32;
        let living = ledger.iter().filter(|(_, link)| link.phase.has_slot() && !link.who.replication);
        let living =
            living.map(|(_, link)| (link.pid.map(NonZeroI32::get), link.extra().local, link.dialled_at));
        let buried = self.tombstones.iter().map(|t| (t.pid, t.local, t.dialled_at));
        for (pid, local, dialled_at) in living.chain(buried) {
            match (pid, local) {
                (Some(pid), _) => pids.push(pid),
                (None, Some(local)) => drop(ports.insert((local.ip().to_canonical(), local.port()))),
                // Before it was begun to count, on another server.
                (None, None) if (self.started..=sample.taken_at).contains(&dialled_at) => unknown += 1,
                (None, None) => {}
            }
        }
        pids.sort_unstable();
        let is_ours = |row: &Session| {
            pids.binary_search(&row.pid).is_ok()
                || address(row).is_some_and(|address| ports.contains(&address))
        };
        let (mut over_socket, mut over_tcp) = (0_u32, 0_u32);
        for row in sample.sessions.iter().filter(|row| !row.walsender && !is_ours(row)) {
            let side = if row.address.is_none() { &mut over_socket } else { &mut over_tcp };
            *side += 1;
        }
        // Over a Unix socket nothing but the pid tells whose a backend is: our logins without one account for as many rows.
        over_tcp + over_socket.saturating_sub(unknown)
    }
}

/// The zombies whose backends `sample` shows to be gone.
pub fn proven_gone(sample: &Sample, ledger: &Ledger) -> Vec<LinkId> {
    let gone = ledger.iter().filter(|(_, link)| match link.phase {
        Phase::Zombie if sample.asked_at >= link.extra().zombie_since => match link.pid {
            Some(pid) => {
                !sample.sessions.iter().any(|row| row.pid == pid.get() && may_be(row, link.near.port))
            }
            None => {
                let listed = |local: SocketAddr| {
                    let own = Some((local.ip().to_canonical(), local.port()));
                    sample.sessions.iter().any(|row| address(row) == own)
                };
                sample.asked_at.since(link.extra().zombie_since) >= PIDLESS_ZOMBIE_MIN
                    && !link.extra().local.is_some_and(listed)
            }
        },
        _ => false,
    });
    gone.map(|(id, _)| id).collect()
}

/// Whether a backend with the right pid may be the one behind local port `ours` (0: unknown), and not a later one that got the same pid.
fn may_be(row: &Session, ours: u16) -> bool {
    ours == 0 || row.port.is_none_or(|port| port == ours)
}

fn address(row: &Session) -> Option<(IpAddr, u16)> {
    Some((row.address?.to_canonical(), row.port?))
}
