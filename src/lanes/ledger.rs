//! Who holds a slot, counted every way admission asks for.
//!
//! Invariant: the counts are a function of the links. [`Ledger::update`] lets a link change and trades its old weight for the new one;
//! nothing else touches a count, so each is released exactly once, by construction.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroI32;
use std::sync::Arc;

use super::ids::{LaneId, LinkId};
pub use super::known::{Link, Phase, Who};
use super::pages::Pages;
use super::queue::Place;
use crate::clock::Moment;

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
    /// Slots of links that were the first of their client process: what `links_per_process` is multiplied with.
    pub processes: u32,
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
#[derive(Debug, Default)]
pub struct Ledger {
    links: Pages<Link>,
    /// One of each, held by its links and by this table alone.
    whos: BTreeSet<Arc<Who>>,
    counts: Counts,
    by_pid: BTreeMap<NonZeroI32, LinkId>,
}

impl Ledger {
    /// Makes room for the lanes up to `protected.len()` and counts everything anew: protection may have changed.
    pub fn set_lanes(&mut self, protected: Vec<bool>) {
        self.counts = Self::recount(&self.links, protected);
    }

    fn recount(links: &Pages<Link>, protected: Vec<bool>) -> Counts {
        let lanes = vec![LaneCounts::default(); protected.len()];
        let mut counts = Counts { lanes, protected, ..Counts::default() };
        for (_, link) in links.iter() {
            counts.weigh(&link.who, Standing::of(link), true);
            counts.weigh_names(&link.who, Standing::of(link), true);
        }
        counts
    }

    /// Whether the counts are those of the links: for tests, slow.
    pub fn audit(&self) -> Result<(), String> {
        let expected = Self::recount(&self.links, self.counts.protected.clone());
        if expected != self.counts {
            return Err(format!("counts {:?} of links worth {expected:?}", self.counts));
        }
        let present: BTreeSet<_> = self.links.iter().map(|(_, link)| link.who.clone()).collect();
        if present != self.whos {
            return Err(format!("{:?} are kept of {present:?}", self.whos));
        }
        Ok(())
    }

    /// A link.
    pub fn get(&self, id: LinkId) -> Option<&Link> {
        self.links.get(id)
    }

    /// All links, by id.
    pub fn iter(&self) -> impl Iterator<Item = (LinkId, &Link)> {
        self.links.iter()
    }

    /// The counts that are not a lane's.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The counts of a lane.
    pub fn lane(&self, lane: LaneId) -> &LaneCounts {
        &self.counts.lanes[usize::from(lane.0)]
    }

    /// Adds a link that waits. There must be none of that id.
    pub fn insert(&mut self, id: LinkId, who: Who, home: LaneId, place: Place, now: Moment) {
        let link = Link::new(self.share(who), home, place, now);
        self.counts.weigh(&link.who, Standing::of(&link), true);
        self.counts.weigh_names(&link.who, Standing::of(&link), true);
        self.links.insert(id, link);
    }

    fn share(&mut self, who: Who) -> Arc<Who> {
        if let Some(known) = self.whos.get(&who) {
            return known.clone();
        }
        let who = Arc::new(who);
        self.whos.insert(who.clone());
        who
    }

    /// Forgets who has no link left. `who` was one's until now.
    fn unshare(&mut self, who: &Arc<Who>) {
        // The table's and the caller's.
        if Arc::strong_count(who) == 2 {
            self.whos.remove(who);
        }
    }

    /// Changes a link; none if there is no such link.
    pub fn update<T>(&mut self, id: LinkId, change: impl FnOnce(&mut Link) -> T) -> Option<T> {
        let link = self.links.get_mut(id)?;
        let (before, pid_before) = (Standing::of(link), link.pid);
        let result = change(link);
        link.tidy();
        let after = Standing::of(link);
        self.counts.trade(&link.who, before, after);
        let pid = link.pid;
        if pid != pid_before {
            self.forget_pid(id, pid_before);
            if let Some(pid) = pid {
                self.by_pid.insert(pid, id);
            }
        }
        Some(result)
    }

    /// Changes a link's application; nothing if there is no such link.
    pub fn rename(&mut self, id: LinkId, application: Arc<str>) {
        let Some(old) = self.links.get(id).map(|link| link.who.clone()) else { return };
        self.put_who(id, Who { application, ..(*old).clone() });
    }

    /// Makes a link count for others; nothing if there is no such link.
    pub fn put_who(&mut self, id: LinkId, who: Who) {
        let Some(old) = self.links.get(id).map(|link| link.who.clone()) else { return };
        if *old == who {
            return;
        }
        let new = self.share(who);
        let Some(link) = self.links.get_mut(id) else { return };
        link.who = new;
        let standing = Standing::of(link);
        for (who, on) in [(&link.who, true), (&old, false)] {
            self.counts.weigh(who, standing, on);
            self.counts.weigh_names(who, standing, on);
        }
        self.unshare(&old);
    }

    /// Forgets a link.
    pub fn remove(&mut self, id: LinkId) -> Option<Link> {
        let link = self.links.remove(id)?;
        self.counts.weigh(&link.who, Standing::of(&link), false);
        self.counts.weigh_names(&link.who, Standing::of(&link), false);
        self.forget_pid(id, link.pid);
        self.unshare(&link.who);
        Some(link)
    }

    fn forget_pid(&mut self, id: LinkId, pid: Option<NonZeroI32>) {
        if let Some(pid) = pid.filter(|pid| self.by_pid.get(pid) == Some(&id)) {
            self.by_pid.remove(&pid);
        }
    }

    /// The link whose backend has this pid.
    pub fn by_pid(&self, pid: NonZeroI32) -> Option<LinkId> {
        self.by_pid.get(&pid).copied()
    }
}

/// What of a link's state has weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Standing {
    home: LaneId,
    visiting: Option<LaneId>,
    /// Its weight, which many a step of a link does not change.
    phase: Phase,
    alone: bool,
}

impl Standing {
    fn of(link: &Link) -> Self {
        Self { home: link.home, visiting: link.visiting(), phase: link.phase.weight(), alone: link.alone }
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

    /// A link's weight changes with its standing.
    fn trade(&mut self, who: &Who, before: Standing, after: Standing) {
        if before == after {
            return;
        }
        // On before off: entries do not come and go in between.
        self.weigh(who, after, true);
        self.weigh(who, before, false);
        if (before.home, before.phase.has_slot()) != (after.home, after.phase.has_slot()) {
            self.weigh_names(who, after, true);
            self.weigh_names(who, before, false);
        }
    }

    /// Puts a link's weight on, or takes it off. With `weigh_names` the one place that knows what a link counts for.
    fn weigh(&mut self, who: &Who, standing: Standing, on: bool) {
        let phase = standing.phase;
        if !phase.has_slot() {
            step(&mut self.waiting, on);
        }
        if !who.replication {
            if on && !self.applications.contains_key(&who.application) {
                self.applications.insert(who.application.clone(), ApplicationCounts::default());
            }
            let counts = self.applications.get_mut(&who.application);
            let counts = counts.expect("what is weighed off was weighed on");
            step(if phase.has_slot() { &mut counts.slots } else { &mut counts.waiting }, on);
            if phase.is_ending() {
                step(&mut counts.ending, on);
            }
            if *counts == ApplicationCounts::default() {
                self.applications.remove(&who.application);
            }
        }
        if phase.has_slot() {
            self.weigh_slot(who, standing, on);
        }
    }

    fn weigh_slot(&mut self, who: &Who, standing: Standing, on: bool) {
        let Standing { home, visiting, phase, alone } = standing;
        if phase == Phase::Zombie {
            step(&mut self.zombies, on);
        }
        let home_index = usize::from(home.0);
        step(&mut self.lanes[usize::from(visiting.unwrap_or(home).0)].slots, on);
        let home = &mut self.lanes[home_index];
        if visiting.is_some() {
            step(&mut home.away, on);
        }
        if phase.is_ending() {
            step(&mut home.ending, on);
        }
        if alone {
            step(&mut home.processes, on);
        }
        if phase.is_login() {
            step(&mut home.logins, on);
            if !self.protected[home_index] {
                step(&mut self.logins, on);
                if let Some(address) = who.address {
                    step_entry(&mut self.logins_by_address, &address, on);
                }
            }
        }
        if !who.replication {
            step(&mut home.residents, on);
            step(&mut self.own, on);
            if phase.is_ending() {
                step(&mut self.own_ending, on);
            }
        }
    }

    /// The part of the weight that is the same for every phase with a slot.
    fn weigh_names(&mut self, who: &Who, standing: Standing, on: bool) {
        if !standing.phase.has_slot() {
            return;
        }
        let home = &mut self.lanes[usize::from(standing.home.0)];
        step_entry(&mut home.by_application, &who.application, on);
        step_entry(&mut home.by_user, &who.user, on);
        step_entry(&mut home.by_database, &who.database, on);
        if let Some(address) = who.address {
            step_entry(&mut home.by_address, &address, on);
        }
    }
}

fn step(count: &mut u32, up: bool) {
    *count =
        if up { *count + 1 } else { count.checked_sub(1).expect("a link weighs off what it weighed on") };
}

fn step_entry<K: Ord + Clone>(counts: &mut BTreeMap<K, u32>, key: &K, up: bool) {
    let Some(count) = counts.get_mut(key) else {
        let mut first = 0;
        step(&mut first, up);
        counts.insert(key.clone(), first);
        return;
    };
    step(count, up);
    if *count == 0 {
        counts.remove(key);
    }
}
