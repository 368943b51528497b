//! Which of several servers clients are led to. Pure: what was seen of each comes in with the time, decisions come out.
//!
//! ```text
//!            ┌────────── none that suits ◄───────────┐
//!            ▼                                       │ the current one answers and does not suit,
//!  held: nobody is dialled                           │ and nobody else does
//!            │ one that suits is seen                │
//!            ▼                                       │
//!  serving: one server is dialled ───────────────────┘
//!     ▲      │ the current one is silent or does not suit, and another one suits; or its name leads to another one that suits
//!     └──────┘ (a switch)
//! ```
//! Invariants:
//! - At most one server is dialled at any time.
//! - Who suits and answers stays, whatever others say of themselves, but for one thing:
//! - Where there can be only one, nobody is served whose timeline is lower than one that was seen: each promotion makes a higher one, so this is a
//!   primary that was left behind, and what is written there will be thrown away. Clients wait rather than write there. Going over for this
//!   happens once a promotion, so two primaries cannot make clients go back and forth.
//! - Nobody is served of another cluster than the one that was served before, as far as servers tell: what is written there is another truth, and
//!   its timelines say nothing of ours. Whoever was served first says which cluster it is, or what was kept of the last run.
//! - A current one that is silent stays while nobody else suits: it may only be restarting, and links find out as soon as the monitor does.
//! - One that answers, but not the monitor (a wrong password, no connection left), stays as well: that is trouble of the monitor's. So does one
//!   that is only suspect: a session was lost, or a look was not answered in time. An overloaded server looks like that, and lives.
//! - Where a name leads to several servers only the one that was chosen is the current one: what the others say of themselves is no word on it.
//!   One of them takes its place when it is silent; where there can be only one, also when it was left behind, or does not answer the monitor and
//!   the name does not lead to it any more. That a name leads elsewhere is no reason to leave one that answers and suits: there are names that lead
//!   elsewhere each time.
//! - Between two times that a silent server is left there are [`DWELL`] at least.
//!
//! Deliberately absent: when to look, and how links leave a server.

mod seen;

use std::net::IpAddr;
use std::time::Duration;

use crate::clock::Moment;

use self::seen::Timelines;
pub use self::seen::{Role, Seen, Wants, differ, is_behind};

/// The first choice waits so long for those that were not seen yet: the first to answer need not be the first in the list, nor the only one.
pub const GRACE: Duration = Duration::from_secs(1);
/// Who was left and who was chosen may both be in trouble that comes and goes: a server that is silent is left so long after the last switch at
/// the soonest. One that was left behind, or says that it will not do, is left at once.
pub const DWELL: Duration = Duration::from_secs(5);

/// A server, as configured and as seen.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its address in the configuration.
    pub name: String,
    /// What was seen of it last.
    pub seen: Seen,
    /// Since when it is that, without a break.
    pub since: Moment,
    /// Which server of its name that is; none where it is not known.
    from: Option<IpAddr>,
    /// Where its name leads, as far as it is known.
    leads_to: Vec<IpAddr>,
    /// Of which other cluster it was said to be.
    told_foreign: Option<u64>,
}

/// What is known of the servers' past; it outlives the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// The system identifier of the cluster that was served; none where it is not known.
    pub system: Option<u64>,
    /// The highest timeline seen of it; 0 where none is known.
    pub timeline: u32,
}

/// What ails the server that is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ails {
    Nothing,
    /// It may be no more than the monitor's trouble.
    Mute,
    Hung,
    Silent,
}

/// What becomes of the server that is dialled, or of there being none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Whoever else suits.
    Stays,
    /// Until another one suits.
    Yields,
    /// It is not dialled, whether or not another one suits.
    IsOut,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Dial this one from now on. Links elsewhere end: with their transaction, or at once where their server was lost.
    Serve {
        /// Which.
        target: usize,
        /// Where its name led.
        at: Option<IpAddr>,
        /// Whether the one dialled until now is silent.
        lost: bool,
    },
    /// The one that is dialled is found here: it is dialled here only from now on, and stays the same.
    Found(Option<IpAddr>),
    /// Dial nobody: newcomers wait.
    Hold,
    /// Several call themselves the primary; these.
    Split(Vec<usize>),
    /// No longer.
    SplitOver,
    /// Nobody suits but primaries that were left behind; these. They are not served.
    Stale(Vec<usize>),
    /// This one is of another cluster. It is not served. Said once of each.
    Foreign(usize),
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Targets {
    wants: Wants,
    all: Vec<Target>,
    current: Option<usize>,
    /// Where the current one was when it was chosen; none too where it was the only one until now, whose name is looked up at each dial.
    at: Option<IpAddr>,
    split: bool,
    /// What ailed the current one when it was last tried where it is dialled. Its name may lead to others.
    ails: Ails,
    /// What the current one's timeline was when it was seen last; 0 where it is not known.
    timeline: u32,
    /// The highest timelines of servers that suited, wherever they were seen; of no effect where there can be more than one.
    timelines: Timelines,
    /// The system identifier of the cluster that was served; none as long as it is not known.
    system: Option<u64>,
    /// Whether it was said that nobody suits but those left behind.
    only_stale: bool,
    /// When it was begun to look.
    began: Moment,
    /// When one server was left for another.
    switched_at: Option<Moment>,
    /// Nothing is decided: there is one address, and it is dialled whatever it is.
    fixed: bool,
}

impl Targets {
    /// Servers of which nothing is known; all are held.
    pub fn new(wants: Wants, names: Vec<String>, now: Moment) -> Self {
        let target = |name| Target {
            name,
            seen: Seen::Unseen,
            since: now,
            from: None,
            leads_to: Vec::new(),
            told_foreign: None,
        };
        let all = names.into_iter().map(target).collect();
        Self {
            wants,
            all,
            current: None,
            at: None,
            split: false,
            ails: Ails::Nothing,
            timeline: 0,
            timelines: Timelines::default(),
            system: None,
            only_stale: false,
            began: now,
            switched_at: None,
            fixed: false,
        }
    }

    /// The only server, dialled whatever it is: it is watched to be shown.
    pub fn fixed(name: String, now: Moment) -> Self {
        Self { current: Some(0), fixed: true, ..Self::new(Wants::Any, vec![name], now) }
    }

    /// Goes on with the server that `old` has served, where it is among these: it is dialled on until more is known. Who was left behind, or is of
    /// another cluster, stays so; an operator who means such a one configures it as the only one, which is dialled whatever it is. Where none of
    /// these was among the old ones it is another cluster, whose timelines begin anew.
    pub fn inherit(&mut self, old: &Self) {
        if self.fixed {
            return;
        }
        let was_there = |target: &Target| old.all.iter().any(|old| old.name == target.name);
        if self.all.iter().any(was_there) {
            self.system = old.system;
            // Also where they are nothing: a later list may be one where they are.
            self.timelines = old.timelines.clone();
        }
        for target in &mut self.all {
            let before = old.all.iter().find(|old| old.name == target.name);
            target.told_foreign = before.and_then(|old| old.told_foreign);
        }
        let name = old.current().map(|target| &target.name);
        // The only one is dialled whatever it is: it was behind nobody.
        if let Some(at) = self.all.iter().position(|target| Some(&target.name) == name) {
            self.current = Some(at);
            self.at = old.at;
            self.timeline = old.timeline;
            self.switched_at = old.switched_at;
        }
    }

    /// Begins with what was known when servers of these `names` were served last, as [`Self::inherit`] does.
    pub fn restore(&mut self, memory: Memory, names: &[String]) {
        if self.fixed || !self.all.iter().any(|target| names.contains(&target.name)) {
            return;
        }
        self.system = memory.system;
        self.timelines.note(memory.system, memory.timeline);
    }

    /// What is to be known after a restart. As long as the cluster is not known, timelines of those that tell theirs are nothing to it.
    pub fn memory(&self) -> Memory {
        Memory { system: self.system, timeline: self.timelines.kept(self.system) }
    }

    /// All, in the order of the configuration.
    pub fn all(&self) -> &[Target] {
        &self.all
    }

    /// What is wanted.
    pub fn wants(&self) -> Wants {
        self.wants
    }

    /// Which one is dialled.
    pub fn current_index(&self) -> Option<usize> {
        self.current
    }

    /// The one that is dialled.
    pub fn current(&self) -> Option<&Target> {
        self.all.get(self.current?)
    }

    /// Where the current one's name led; none where that is looked up at each dial, and over Unix sockets.
    pub fn current_at(&self) -> Option<IpAddr> {
        self.at
    }

    /// Whether what the current one's monitor sees now is another server of its name.
    pub fn is_seen_elsewhere(&self) -> bool {
        let from = self.current().and_then(|target| target.from);
        !self.fixed && self.at.zip(from).is_some_and(|(at, from)| at != from)
    }

    /// The system identifier of the cluster that is served, where it is known.
    pub fn system(&self) -> Option<u64> {
        self.system
    }

    /// Why a server that would suit by its role is not dialled, for people; empty where nothing stands against it.
    pub fn objection(&self, target: &Target) -> String {
        match target.seen.system().zip(self.system) {
            Some((its, ours)) if its != ours => {
                format!(
                    "of another cluster: its system identifier is {its}, that of the one served before {ours}"
                )
            }
            _ if self.is_stale(target) => {
                let timeline = target.seen.role().map_or(0, Role::timeline);
                let by = self.timelines.highest(self.cluster().or(target.seen.system()));
                format!("on timeline {timeline}, left behind by {by}")
            }
            _ => String::new(),
        }
    }

    /// Those that are silent and not dialled, and where that was seen, if it is known.
    pub fn silent_elsewhere(&self) -> impl Iterator<Item = (&Target, Option<IpAddr>)> {
        let all = self.all.iter().enumerate().filter(|(index, _)| self.current != Some(*index));
        all.filter(|(_, target)| matches!(target.seen, Seen::Silent(_)))
            .map(|(_, target)| (target, target.from))
    }

    /// Whether the current one is known to be well: others need not be looked at in a hurry.
    pub fn is_settled(&self) -> bool {
        let is_well = |target: &Target| self.will_do(&target.seen) || matches!(target.seen, Seen::Mute(_));
        self.fixed || !self.is_seen_elsewhere() && self.current().is_some_and(is_well)
    }

    /// What each one is, in one line, for people.
    pub fn summary(&self) -> String {
        let line = |target: &Target| match (target.seen.cause(), self.objection(target)) {
            ("", why) if why.is_empty() => format!("{}: {}", target.name, target.seen.word()),
            ("", why) => format!("{}: {} {why}", target.name, target.seen.word()),
            (cause, _) => format!("{}: {} ({cause})", target.name, target.seen.word()),
        };
        self.all.iter().map(line).collect::<Vec<_>>().join("; ")
    }

    /// A server was looked at, for trouble at `from`, if that is known: else it is that of the one that is dialled. True in front where it is
    /// not what it was before.
    pub fn saw_at(
        &mut self,
        now: Moment,
        index: usize,
        seen: Seen,
        from: Option<IpAddr>,
    ) -> (bool, Vec<Decision>) {
        let Some(target) = self.all.get_mut(index) else { return (false, Vec::new()) };
        target.from = if let Seen::Is { at, .. } = seen { at } else { from };
        let changed = target.seen.word() != seen.word();
        if changed {
            target.since = now;
        }
        target.seen = seen;
        let mut decisions = Vec::new();
        if !self.fixed {
            self.note_timeline(index);
            if self.current == Some(index) {
                self.note_trouble();
            }
            self.look_for_split(&mut decisions);
            self.decide(now, &mut decisions);
            self.look_for_stale(now, &mut decisions);
            self.look_for_foreign(&mut decisions);
        }
        (changed, decisions)
    }

    /// The resolver has said where the name of one leads.
    pub fn leads(&mut self, now: Moment, index: usize, addresses: Vec<IpAddr>) -> Vec<Decision> {
        let mut decisions = Vec::new();
        let Some(target) = self.all.get_mut(index) else { return decisions };
        target.leads_to = addresses;
        if !self.fixed {
            self.decide(now, &mut decisions);
        }
        decisions
    }

    /// Time has passed: to be called each second or so, for what [`GRACE`] and [`DWELL`] have put off.
    pub fn tick(&mut self, now: Moment) -> Vec<Decision> {
        let mut decisions = Vec::new();
        if !self.fixed && !self.is_settled() {
            self.decide(now, &mut decisions);
            self.look_for_stale(now, &mut decisions);
            self.look_for_foreign(&mut decisions);
        }
        decisions
    }

    /// Whether a choice must wait for those that were not seen yet.
    fn is_early(&self, now: Moment) -> bool {
        now.since(self.began) < GRACE && self.all.iter().any(|target| target.seen == Seen::Unseen)
    }

    fn note_timeline(&mut self, index: usize) {
        let Some(Seen::Is { role, system, .. }) = self.all.get(index).map(|target| &target.seen) else {
            return;
        };
        let (role, system) = (*role, *system);
        if !self.wants.suits(role) || differ(self.system, system) {
            return;
        }
        // Of another server of its name it says nothing.
        let is_current = self.current == Some(index) && !self.is_seen_elsewhere();
        if is_current {
            self.system = self.system.or(system);
        }
        if self.wants.is_unique() {
            self.timelines.note(system, role.timeline());
            if is_current {
                self.timeline = role.timeline();
            }
        }
    }

    fn note_trouble(&mut self) {
        if self.is_seen_elsewhere() {
            return;
        }
        self.ails = match self.current().map(|target| &target.seen) {
            Some(Seen::Silent(_)) => Ails::Silent,
            Some(Seen::Hung(_)) => Ails::Hung,
            Some(Seen::Mute(_)) => Ails::Mute,
            _ => Ails::Nothing,
        };
    }

    /// The cluster that is served; where nobody was yet, that of the first who would suit.
    fn cluster(&self) -> Option<u64> {
        let would_suit = |target: &&Target| target.seen.role().is_some_and(|role| self.wants.suits(role));
        let first = || self.all.iter().filter(would_suit).find_map(|target| target.seen.system());
        self.system.or_else(|| if self.current.is_none() { first() } else { None })
    }

    /// Whether a timeline of the cluster that is served is known to have been left behind.
    fn is_behind(&self, timeline: u32) -> bool {
        self.wants.is_unique() && is_behind(timeline, self.timelines.highest(self.cluster()))
    }

    /// Whether one may be dialled of which this was seen.
    fn will_do(&self, seen: &Seen) -> bool {
        let Seen::Is { role, system, .. } = seen else { return false };
        let cluster = self.cluster();
        let highest = self.timelines.highest(cluster.or(*system));
        let is_behind = self.wants.is_unique() && is_behind(role.timeline(), highest);
        self.wants.suits(*role) && !differ(cluster, *system) && !is_behind
    }

    /// Whether it suits by its role, is of the cluster that is served, and was left behind.
    fn is_stale(&self, target: &Target) -> bool {
        let suits = target.seen.role().is_some_and(|role| self.wants.suits(role));
        suits && !differ(self.cluster(), target.seen.system()) && !self.will_do(&target.seen)
    }

    fn look_for_foreign(&mut self, decisions: &mut Vec<Decision>) {
        for (index, target) in self.all.iter_mut().enumerate() {
            let system = target.seen.system();
            if differ(self.system, system) && target.told_foreign != system {
                target.told_foreign = system;
                decisions.push(Decision::Foreign(index));
            }
        }
    }

    fn look_for_stale(&mut self, now: Moment, decisions: &mut Vec<Decision>) {
        let stale: Vec<usize> = self
            .all
            .iter()
            .enumerate()
            .filter(|(_, target)| self.is_stale(target))
            .map(|(at, _)| at)
            .collect();
        let early = self.current.is_none() && self.is_early(now);
        let only = !stale.is_empty() && !early && !self.is_settled() && self.best().is_none();
        if only && !self.only_stale {
            decisions.push(Decision::Stale(stale));
        }
        // Until one is well again it is said once, whatever comes and goes meanwhile.
        self.only_stale = only || self.only_stale && !self.is_settled();
    }

    fn look_for_split(&mut self, decisions: &mut Vec<Decision>) {
        let is_one = |target: &Target| is_primary(target) && !differ(self.cluster(), target.seen.system());
        let primaries: Vec<usize> =
            self.all.iter().enumerate().filter(|(_, target)| is_one(target)).map(|(at, _)| at).collect();
        let split = self.wants.is_unique() && primaries.len() > 1;
        if split != std::mem::replace(&mut self.split, split) {
            decisions.push(if split { Decision::Split(primaries) } else { Decision::SplitOver });
        }
    }

    fn decide(&mut self, now: Moment, decisions: &mut Vec<Decision>) {
        if let Some(at) = self.place_to_find() {
            self.at = Some(at);
            return decisions.push(Decision::Found(Some(at)));
        }
        let standing = self.standing(now);
        if standing == Standing::Stays {
            return;
        }
        if let Some((target, at)) = self.best() {
            // Who is let in and not answered may be answered yet: its transactions are left to end.
            let lost = self.current.is_some() && self.ails == Ails::Silent;
            self.serve(now, target, at, lost, decisions);
        } else if standing == Standing::IsOut && self.current.take().is_some() {
            decisions.push(Decision::Hold);
        }
    }

    /// Where the current one, whose name was looked up at each dial until now, is to be dialled from now on.
    fn place_to_find(&self) -> Option<IpAddr> {
        match &self.current()?.seen {
            seen @ Seen::Is { at, .. } if self.at.is_none() && self.will_do(seen) => *at,
            _ => None,
        }
    }

    fn standing(&self, now: Moment) -> Standing {
        let dwells = self.switched_at.is_some_and(|at| now.since(at) < DWELL);
        let Some(target) = self.current() else {
            return if self.is_early(now) { Standing::Stays } else { Standing::Yields };
        };
        // Another one was promoted since it was seen last: whether it answers or not is nothing any more.
        let behind = self.is_behind(self.timeline);
        if self.is_seen_elsewhere() {
            let yields = match self.ails {
                Ails::Silent | Ails::Hung => true,
                // Where there are several they may well be full, and a name may lead elsewhere each time.
                Ails::Mute => self.wants.is_unique() && self.has_moved(target),
                Ails::Nothing => false,
            };
            return if behind {
                Standing::IsOut
            } else if yields && !dwells {
                Standing::Yields
            } else {
                Standing::Stays
            };
        }
        match &target.seen {
            seen if self.will_do(seen) => Standing::Stays,
            // It may have been another one of its name.
            Seen::Is { .. } if self.at.is_none() && target.leads_to.len() > 1 => Standing::Stays,
            Seen::Is { .. } => Standing::IsOut,
            _ if behind => Standing::IsOut,
            Seen::Mute(_) | Seen::Unseen => Standing::Stays,
            Seen::Silent(_) | Seen::Hung(_) if dwells => Standing::Stays,
            Seen::Silent(_) | Seen::Hung(_) => Standing::Yields,
        }
    }

    /// Whether the name of the one that is dialled does not lead to it any more, but to one that suits.
    fn has_moved(&self, target: &Target) -> bool {
        let leads_here = |at| target.leads_to.is_empty() || target.leads_to.contains(&at);
        self.will_do(&target.seen) && self.at.is_some_and(|at| !leads_here(at))
    }

    fn serve(
        &mut self,
        now: Moment,
        target: usize,
        at: Option<IpAddr>,
        lost: bool,
        decisions: &mut Vec<Decision>,
    ) {
        if self.current.replace(target).is_some() {
            self.switched_at = Some(now);
        }
        self.at = at;
        self.ails = Ails::Nothing;
        let seen = self.all.get(target).map(|target| &target.seen);
        self.system = self.system.or(seen.and_then(Seen::system));
        let role = seen.and_then(Seen::role);
        self.timeline = role.filter(|_| self.wants.is_unique()).map_or(0, Role::timeline);
        decisions.push(Decision::Serve { target, at, lost });
    }

    /// Another one of the current one's name; else the first that suits; of primaries the one promoted last.
    fn best(&self) -> Option<(usize, Option<IpAddr>)> {
        if let Some(Target { seen: seen @ Seen::Is { at, .. }, .. }) = self.current()
            && self.is_seen_elsewhere()
            && self.will_do(seen)
        {
            return self.current.map(|current| (current, *at));
        }
        let suiting = self.all.iter().enumerate().filter_map(|(index, target)| match &target.seen {
            seen @ Seen::Is { role, at, .. } if self.will_do(seen) => Some((index, *role, *at)),
            _ => None,
        });
        let rank = |role: Role| if self.wants.is_unique() { role.timeline() } else { 0 };
        let best = suiting.max_by_key(|(index, role, _)| (rank(*role), std::cmp::Reverse(*index)));
        best.map(|(index, _, at)| (index, at))
    }
}

fn is_primary(target: &Target) -> bool {
    matches!(target.seen.role(), Some(Role::Primary { .. }))
}

#[cfg(test)]
mod tests;
