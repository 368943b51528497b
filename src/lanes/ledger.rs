//! Who holds a slot, counted every way admission asks for.
//!
//! Invariant: the counts are a function of the links. [`Ledger::update`] takes a link's weight off, lets it change, and puts the new
//! weight on; nothing else touches a count, so each is released exactly once, by construction.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::ids::{LaneId, LinkId};
use super::queue::Place;
use crate::clock::Moment;

/// Where a link is on its way.
///
/// ```text
/// Waiting ⇄ Dialling ─► Login ─► Established ─► Closing ─► (forgotten)
///               └─────────┴───────────┴────────────┴────► Zombie ─► (forgotten)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// In a queue, without a slot.
    Waiting,
    /// Granted; no TCP connection yet that we know of.
    Dialling,
    /// Connected, no first ReadyForQuery yet.
    Login,
    /// Relaying.
    Established,
    /// We close; upstream's EOF is still to come.
    Closing,
    /// Nobody watches the socket any more; a sample must tell when the backend is gone.
    Zombie {
        /// Since when.
        since: Moment,
    },
}

impl Phase {
    /// Whether it holds a slot.
    pub fn has_slot(self) -> bool {
        self != Self::Waiting
    }

    /// Whether it is a login in progress.
    pub fn is_login(self) -> bool {
        matches!(self, Self::Dialling | Self::Login)
    }

    /// Whether its slot will be free soon.
    pub fn is_ending(self) -> bool {
        matches!(self, Self::Closing | Self::Zombie { .. })
    }
}

/// What the guard knows of a link.
#[derive(Clone, Debug)]
pub struct Link {
    /// Where it belongs.
    pub home: LaneId,
    /// Where its transaction counts, while that is elsewhere.
    pub visiting: Option<LaneId>,
    /// Normalised application.
    pub application: Arc<str>,
    /// User.
    pub user: Arc<str>,
    /// Database.
    pub database: Arc<str>,
    /// Client address; none for a Unix socket.
    pub address: Option<IpAddr>,
    /// Whether it is a replication link: another pool in PostgreSQL.
    pub replication: bool,
    /// Where it is on its way.
    pub phase: Phase,
    /// Its place in the queue, kept over redials.
    pub place: Place,
    /// Not granted before: the back-off of those who are not stopped by the breaker.
    pub not_before: Moment,
    /// Dials that failed.
    pub failures: u32,
    /// Whether it was granted once.
    pub admitted: bool,
    /// Whether it was counted as shed.
    pub shed: bool,
    /// When its present dial began.
    pub dialled_at: Moment,
    /// Backend pid, once known.
    pub pid: Option<i32>,
    /// Local address of its upstream connection, once known.
    pub local: Option<SocketAddr>,
    /// Its transaction counts in a ramp: which lane's, which one.
    pub counted: Option<(LaneId, u64)>,
    /// Held at the start of a transaction: its place among the held.
    pub held: Option<Place>,
}

impl Link {
    /// The lane it counts in now.
    pub fn lane(&self) -> LaneId {
        self.visiting.unwrap_or(self.home)
    }
}

/// Counts of a lane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaneCounts {
    /// Slots that count here now, visitors included.
    pub slots: u32,
    /// Slots that belong here and count elsewhere.
    pub away: u32,
    /// Non-replication slots that belong here, wherever they count: what fills the reserve.
    pub residents: u32,
    /// Logins in progress.
    pub logins: u32,
    /// Slots that will be free soon.
    pub ending: u32,
    by_application: BTreeMap<Arc<str>, u32>,
    by_user: BTreeMap<Arc<str>, u32>,
    by_database: BTreeMap<Arc<str>, u32>,
    by_address: BTreeMap<IpAddr, u32>,
}

impl LaneCounts {
    /// What admission compares with the quota.
    pub fn load(&self) -> u32 {
        self.slots + self.away
    }

    /// Slots of the link's application in the lane.
    pub fn of_application(&self, name: &str) -> u32 {
        self.by_application.get(name).copied().unwrap_or(0)
    }

    /// Slots of a user in the lane.
    pub fn of_user(&self, name: &str) -> u32 {
        self.by_user.get(name).copied().unwrap_or(0)
    }

    /// Slots of a database in the lane.
    pub fn of_database(&self, name: &str) -> u32 {
        self.by_database.get(name).copied().unwrap_or(0)
    }

    /// Slots of a client address in the lane.
    pub fn of_address(&self, address: IpAddr) -> u32 {
        self.by_address.get(&address).copied().unwrap_or(0)
    }
}

/// Counts of an application, replication links left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ApplicationCounts {
    /// Slots.
    pub slots: u32,
    /// Slots that will be free soon.
    pub ending: u32,
    /// Links waiting for a slot.
    pub waiting: u32,
}

/// All counts that are not a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    lanes: Vec<LaneCounts>,
    /// Lanes outside the pool of logins.
    protected: Vec<bool>,
    /// By normalised name.
    pub applications: BTreeMap<Arc<str>, ApplicationCounts>,
    /// Non-replication slots.
    pub own: u32,
    /// Non-replication slots that will be free soon.
    pub own_ending: u32,
    /// Logins in progress of lanes that are not protected.
    pub logins: u32,
    logins_by_address: BTreeMap<IpAddr, u32>,
    /// Links in a queue.
    pub waiting: u32,
    /// Slots nobody watches.
    pub zombies: u32,
}

/// The links and their counts.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    links: BTreeMap<LinkId, Link>,
    counts: Counts,
    by_pid: BTreeMap<i32, LinkId>,
}

impl Ledger {
    /// Makes room for the lanes up to `protected.len()` and counts everything anew: protection may have changed.
    pub fn set_lanes(&mut self, protected: Vec<bool>) {
        self.counts = Self::recount(&self.links, protected);
    }

    fn recount(links: &BTreeMap<LinkId, Link>, protected: Vec<bool>) -> Counts {
        let lanes = vec![LaneCounts::default(); protected.len()];
        let mut counts = Counts { lanes, protected, ..Counts::default() };
        for link in links.values() {
            counts.weigh(link, true);
        }
        counts
    }

    /// Whether the counts are those of the links: for tests, slow.
    pub fn audit(&self) -> Result<(), String> {
        let expected = Self::recount(&self.links, self.counts.protected.clone());
        if expected == self.counts {
            Ok(())
        } else {
            Err(format!("counts {:?} of links worth {expected:?}", self.counts))
        }
    }

    /// A link.
    pub fn get(&self, id: LinkId) -> Option<&Link> {
        self.links.get(&id)
    }

    /// All links, by id.
    pub fn iter(&self) -> impl Iterator<Item = (LinkId, &Link)> {
        self.links.iter().map(|(id, link)| (*id, link))
    }

    /// The counts that are not a lane's.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The counts of a lane.
    pub fn lane(&self, lane: LaneId) -> &LaneCounts {
        &self.counts.lanes[usize::from(lane.0)]
    }

    /// Adds a link.
    pub fn insert(&mut self, id: LinkId, link: Link) {
        self.counts.weigh(&link, true);
        self.links.insert(id, link);
    }

    /// Changes a link; none if there is no such link.
    pub fn update<T>(&mut self, id: LinkId, change: impl FnOnce(&mut Link) -> T) -> Option<T> {
        let link = self.links.get_mut(&id)?;
        self.counts.weigh(link, false);
        let pid_before = link.pid;
        let result = change(link);
        self.counts.weigh(link, true);
        if link.pid != pid_before {
            if let Some(pid) = pid_before.filter(|pid| self.by_pid.get(pid) == Some(&id)) {
                self.by_pid.remove(&pid);
            }
            if let Some(pid) = link.pid {
                self.by_pid.insert(pid, id);
            }
        }
        Some(result)
    }

    /// Forgets a link.
    pub fn remove(&mut self, id: LinkId) -> Option<Link> {
        let link = self.links.remove(&id)?;
        self.counts.weigh(&link, false);
        if let Some(pid) = link.pid.filter(|pid| self.by_pid.get(pid) == Some(&id)) {
            self.by_pid.remove(&pid);
        }
        Some(link)
    }

    /// The link whose backend has this pid.
    pub fn by_pid(&self, pid: i32) -> Option<LinkId> {
        self.by_pid.get(&pid).copied()
    }
}

impl Counts {
    /// Logins in progress from an address, of lanes that are not protected.
    pub fn logins_from(&self, address: IpAddr) -> u32 {
        self.logins_by_address.get(&address).copied().unwrap_or(0)
    }

    /// An application's counts.
    pub fn application(&self, name: &str) -> ApplicationCounts {
        self.applications.get(name).copied().unwrap_or_default()
    }

    /// Puts a link's weight on, or takes it off. The one place that knows what a link counts for.
    fn weigh(&mut self, link: &Link, on: bool) {
        if !link.phase.has_slot() {
            step(&mut self.waiting, on);
        }
        if !link.replication {
            let application = self.applications.entry(link.application.clone()).or_default();
            if link.phase.has_slot() {
                step(&mut application.slots, on);
            } else {
                step(&mut application.waiting, on);
            }
            if link.phase.is_ending() {
                step(&mut application.ending, on);
            }
            if *application == ApplicationCounts::default() {
                self.applications.remove(&link.application);
            }
        }
        if link.phase.has_slot() {
            self.weigh_slot(link, on);
        }
    }

    fn weigh_slot(&mut self, link: &Link, on: bool) {
        if matches!(link.phase, Phase::Zombie { .. }) {
            step(&mut self.zombies, on);
        }
        let home_index = usize::from(link.home.0);
        step(&mut self.lanes[usize::from(link.lane().0)].slots, on);
        let home = &mut self.lanes[home_index];
        if link.visiting.is_some() {
            step(&mut home.away, on);
        }
        step_entry(&mut home.by_application, &link.application, on);
        step_entry(&mut home.by_user, &link.user, on);
        step_entry(&mut home.by_database, &link.database, on);
        if let Some(address) = link.address {
            step_entry(&mut home.by_address, &address, on);
        }
        if link.phase.is_ending() {
            step(&mut home.ending, on);
        }
        if link.phase.is_login() {
            step(&mut home.logins, on);
            if !self.protected[home_index] {
                step(&mut self.logins, on);
                if let Some(address) = link.address {
                    step_entry(&mut self.logins_by_address, &address, on);
                }
            }
        }
        if !link.replication {
            step(&mut home.residents, on);
            step(&mut self.own, on);
            if link.phase.is_ending() {
                step(&mut self.own_ending, on);
            }
        }
    }
}

fn step(count: &mut u32, up: bool) {
    *count =
        if up { *count + 1 } else { count.checked_sub(1).expect("a link weighs off what it weighed on") };
}

fn step_entry<K: Ord + Clone>(counts: &mut BTreeMap<K, u32>, key: &K, up: bool) {
    let count = counts.entry(key.clone()).or_default();
    step(count, up);
    if *count == 0 {
        counts.remove(key);
    }
}
