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
//! - A current one that is silent stays while nobody else suits: it may only be restarting, and links find out as soon as the monitor does.
//! - One that answers, but not the monitor (a wrong password, no connection left), stays as well: that is trouble of the monitor's. So does one
//!   that is only suspect: a session was lost, or a look was not answered in time. An overloaded server looks like that, and lives.
//! - Where a name leads to several servers only the one that was chosen is the current one: what the others say of themselves is no word on it.
//!   One of them takes its place when it is silent, when the name does not lead to it any more, or when it was left behind.
//! - Between two times that a silent server is left there are [`DWELL`] at least.
//!
//! Deliberately absent: when to look, and how links leave a server.

use std::net::IpAddr;
use std::time::Duration;

use crate::clock::Moment;

/// The first choice waits so long for those that were not seen yet: the first to answer need not be the first in the list, nor the only one.
pub const GRACE: Duration = Duration::from_secs(1);
/// Who was left and who was chosen may both be in trouble that comes and goes: a server that is silent is left so long after the last switch at
/// the soonest. One that was left behind, or says that it will not do, is left at once.
pub const DWELL: Duration = Duration::from_secs(5);

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
    fn is_unique(self) -> bool {
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
    /// It said what it is, from this address where it was reached by TCP.
    Is(Role, Option<IpAddr>),
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
            Self::Is(role, _) => role.word(),
            Self::Silent(_) | Self::Hung(_) => "down",
            Self::Mute(_) => "unknown",
        }
    }

    /// Why nothing is known; empty where it is.
    pub fn cause(&self) -> &str {
        match self {
            Self::Unseen | Self::Is(..) => "",
            Self::Silent(cause) | Self::Hung(cause) | Self::Mute(cause) => cause,
        }
    }

    fn role(&self) -> Option<Role> {
        match self {
            Self::Is(role, _) => Some(*role),
            _ => None,
        }
    }
}

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
}

/// What ails the server that is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ails {
    Nothing,
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
    /// The highest timeline of a server that suited, wherever it was seen; 0 where there can be more than one.
    highest: u32,
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
        let target = |name| Target { name, seen: Seen::Unseen, since: now, from: None, leads_to: Vec::new() };
        let all = names.into_iter().map(target).collect();
        Self {
            wants,
            all,
            current: None,
            at: None,
            split: false,
            ails: Ails::Nothing,
            timeline: 0,
            highest: 0,
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

    /// Goes on with the server that `old` has served, where it is among these: it is dialled on until more is known. Who was left behind
    /// stays so; an operator who means a server of a lower timeline configures it as the only one, which is dialled whatever it is. Where none of
    /// these was among the old ones it is another cluster, whose timelines begin anew.
    pub fn inherit(&mut self, old: &Self) {
        if self.fixed {
            return;
        }
        let was_there = |target: &Target| old.all.iter().any(|old| old.name == target.name);
        if self.wants.is_unique() && self.all.iter().any(was_there) {
            self.highest = old.highest;
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

    /// The highest timeline of a server that suited, below which nobody is dialled; 0 where none is known.
    pub fn highest(&self) -> u32 {
        self.highest
    }

    /// Whether the current one is known to be well: others need not be looked at in a hurry.
    pub fn is_settled(&self) -> bool {
        let suits = |target: &Target| target.seen.role().is_some_and(|role| self.will_do(role));
        self.fixed
            || !self.is_seen_elsewhere()
                && self.current().is_some_and(|target| suits(target) || matches!(target.seen, Seen::Mute(_)))
    }

    /// How many call themselves the primary.
    pub fn primaries(&self) -> usize {
        self.all.iter().filter(|target| is_primary(target)).count()
    }

    /// What each one is, in one line, for people.
    pub fn summary(&self) -> String {
        let line = |target: &Target| match target.seen.cause() {
            "" if self.is_stale(target) => format!(
                "{}: {} on timeline {}, left behind by {}",
                target.name,
                target.seen.word(),
                target.seen.role().map_or(0, Role::timeline),
                self.highest
            ),
            "" => format!("{}: {}", target.name, target.seen.word()),
            cause => format!("{}: {} ({cause})", target.name, target.seen.word()),
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
        target.from = if let Seen::Is(_, at) = seen { at } else { from };
        let changed = target.seen.word() != seen.word();
        if changed {
            target.since = now;
        }
        target.seen = seen;
        let role = target.seen.role();
        let mut decisions = Vec::new();
        if !self.fixed {
            self.note_timeline(index, role);
            if self.current == Some(index) {
                self.note_trouble();
            }
            self.look_for_split(&mut decisions);
            self.decide(now, &mut decisions);
            self.look_for_stale(&mut decisions);
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
            self.look_for_stale(&mut decisions);
        }
        decisions
    }

    /// Whether a choice must wait for those that were not seen yet.
    fn is_early(&self, now: Moment) -> bool {
        now.since(self.began) < GRACE && self.all.iter().any(|target| target.seen == Seen::Unseen)
    }

    fn note_timeline(&mut self, index: usize, role: Option<Role>) {
        let Some(role) = role.filter(|role| self.wants.is_unique() && self.wants.suits(*role)) else {
            return;
        };
        self.highest = self.highest.max(role.timeline());
        // Of another server of its name it says nothing.
        if self.current == Some(index) && !self.is_seen_elsewhere() {
            self.timeline = role.timeline();
        }
    }

    fn note_trouble(&mut self) {
        if self.is_seen_elsewhere() {
            return;
        }
        self.ails = match self.current().map(|target| &target.seen) {
            Some(Seen::Silent(_)) => Ails::Silent,
            Some(Seen::Hung(_)) => Ails::Hung,
            _ => Ails::Nothing,
        };
    }

    /// Whether a timeline is known to have been left behind.
    fn is_behind(&self, timeline: u32) -> bool {
        is_behind(timeline, self.highest)
    }

    /// Whether one may be dialled that calls itself this.
    fn will_do(&self, role: Role) -> bool {
        self.wants.suits(role) && !self.is_behind(role.timeline())
    }

    fn is_stale(&self, target: &Target) -> bool {
        target.seen.role().is_some_and(|role| self.wants.suits(role) && !self.will_do(role))
    }

    fn look_for_stale(&mut self, decisions: &mut Vec<Decision>) {
        let stale: Vec<usize> = self
            .all
            .iter()
            .enumerate()
            .filter(|(_, target)| self.is_stale(target))
            .map(|(at, _)| at)
            .collect();
        let only = !stale.is_empty() && !self.is_settled() && self.best().is_none();
        if only && !self.only_stale {
            decisions.push(Decision::Stale(stale));
        }
        // Until one is well again it is said once, whatever comes and goes meanwhile.
        self.only_stale = only || self.only_stale && !self.is_settled();
    }

    fn look_for_split(&mut self, decisions: &mut Vec<Decision>) {
        let primaries: Vec<usize> =
            self.all.iter().enumerate().filter(|(_, target)| is_primary(target)).map(|(at, _)| at).collect();
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
        match self.current()?.seen {
            Seen::Is(role, at) if self.at.is_none() && self.will_do(role) => at,
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
            let yields = self.ails != Ails::Nothing || self.has_moved(target);
            return if behind {
                Standing::IsOut
            } else if yields && !dwells {
                Standing::Yields
            } else {
                Standing::Stays
            };
        }
        match &target.seen {
            Seen::Is(role, _) if self.will_do(*role) => Standing::Stays,
            // It may have been another one of its name.
            Seen::Is(..) if self.at.is_none() && target.leads_to.len() > 1 => Standing::Stays,
            Seen::Is(..) => Standing::IsOut,
            _ if behind => Standing::IsOut,
            Seen::Mute(_) | Seen::Unseen => Standing::Stays,
            Seen::Silent(_) | Seen::Hung(_) if dwells => Standing::Stays,
            Seen::Silent(_) | Seen::Hung(_) => Standing::Yields,
        }
    }

    /// Whether the name of the one that is dialled does not lead to it any more, but to one that suits.
    fn has_moved(&self, target: &Target) -> bool {
        let leads_here = |at| target.leads_to.is_empty() || target.leads_to.contains(&at);
        let suits = target.seen.role().is_some_and(|role| self.will_do(role));
        suits && self.at.is_some_and(|at| !leads_here(at))
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
        let role = self.all.get(target).and_then(|target| target.seen.role());
        self.timeline = role.filter(|_| self.wants.is_unique()).map_or(0, Role::timeline);
        decisions.push(Decision::Serve { target, at, lost });
    }

    /// Another one of the current one's name; else the first that suits; of primaries the one promoted last.
    fn best(&self) -> Option<(usize, Option<IpAddr>)> {
        if let Some(Target { seen: Seen::Is(role, at), .. }) = self.current()
            && self.is_seen_elsewhere()
            && self.will_do(*role)
        {
            return self.current.map(|current| (current, *at));
        }
        let suiting = self.all.iter().enumerate().filter_map(|(index, target)| match target.seen {
            Seen::Is(role, at) if self.will_do(role) => Some((index, role, at)),
            _ => None,
        });
        let rank = |role: Role| if self.wants.is_unique() { role.timeline() } else { 0 };
        let best = suiting.max_by_key(|(index, role, _)| (rank(*role), std::cmp::Reverse(*index)));
        best.map(|(index, _, at)| (index, at))
    }
}

/// Whether a timeline was left behind by the `highest` one; what is not known was not.
pub fn is_behind(timeline: u32, highest: u32) -> bool {
    0 < timeline && timeline < highest
}

fn is_primary(target: &Target) -> bool {
    matches!(target.seen, Seen::Is(Role::Primary { .. }, _))
}

#[cfg(test)]
mod tests;
