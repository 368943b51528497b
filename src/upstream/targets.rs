//! Which of several servers clients are led to. Pure: what was seen of each comes in with the time, decisions come out.
//!
//! ```text
//!            ┌────────── none that suits ◄───────────┐
//!            ▼                                       │ the current one answers and does not suit,
//!  held: nobody is dialled                           │ and nobody else does
//!            │ one that suits is seen                │
//!            ▼                                       │
//!  serving: one server is dialled ───────────────────┘
//!     ▲      │ the current one is silent or does not suit, and another one suits; or its name leads elsewhere
//!     └──────┘ (a switch)
//! ```
//! Invariants:
//! - At most one server is dialled at any time.
//! - Who suits and answers stays, whatever others say of themselves, but for one thing:
//! - Where there can be only one, nobody is served whose timeline is lower than one that was seen: each promotion makes a higher one, so this is a
//!   primary that was left behind, and what is written there will be thrown away. Clients wait rather than write there. Going over for this
//!   happens once a promotion, so two primaries cannot make clients go back and forth.
//! - A current one that is silent stays while nobody else suits: it may only be restarting, and links find out as soon as the monitor does.
//! - One that answers, but not the monitor (a wrong password, no connection left), stays as well: that is trouble of the monitor's.
//!
//! Deliberately absent: when to look, and how links leave a server.

use std::net::IpAddr;
use std::time::Duration;

use crate::clock::Moment;

/// The first choice waits so long for those that were not seen yet: the first to answer need not be the first in the list, nor the only one.
pub const GRACE: Duration = Duration::from_secs(1);

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
    /// No connection, no answer in time, starting up or shutting down; why.
    Silent(String),
    /// It answers, but does not tell the monitor what it is; why.
    Mute(String),
}

impl Seen {
    /// One word: the role, `unseen`, `down` or `unknown`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Unseen => "unseen",
            Self::Is(role, _) => role.word(),
            Self::Silent(_) => "down",
            Self::Mute(_) => "unknown",
        }
    }

    /// Why nothing is known; empty where it is.
    pub fn cause(&self) -> &str {
        match self {
            Self::Unseen | Self::Is(..) => "",
            Self::Silent(cause) | Self::Mute(cause) => cause,
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
    /// Where the current one was when it was chosen.
    at: Option<IpAddr>,
    split: bool,
    /// What the current one's timeline was when it was seen last; 0 where it is not known.
    timeline: u32,
    /// The highest timeline of a server that suited, wherever it was seen; 0 where there can be more than one.
    highest: u32,
    /// Whether it was said that nobody suits but those left behind.
    only_stale: bool,
    /// When it was begun to look.
    began: Moment,
    /// Nothing is decided: there is one address, and it is dialled whatever it is.
    fixed: bool,
}

impl Targets {
    /// Servers of which nothing is known; all are held.
    pub fn new(wants: Wants, names: Vec<String>, now: Moment) -> Self {
        let target = |name| Target { name, seen: Seen::Unseen, since: now };
        let all = names.into_iter().map(target).collect();
        Self {
            wants,
            all,
            current: None,
            at: None,
            split: false,
            timeline: 0,
            highest: 0,
            only_stale: false,
            began: now,
            fixed: false,
        }
    }

    /// The only server, dialled whatever it is: it is watched to be shown.
    pub fn fixed(name: String, now: Moment) -> Self {
        Self { current: Some(0), fixed: true, ..Self::new(Wants::Any, vec![name], now) }
    }

    /// Goes on with the server that `old` has served, where it is among these: it is dialled on until more is known. Who was left behind
    /// stays so; an operator who means a server of a lower timeline configures it as the only one, which is dialled whatever it is.
    pub fn inherit(&mut self, old: &Self) {
        if self.fixed {
            return;
        }
        if self.wants.is_unique() {
            self.highest = old.highest;
        }
        let name = old.current().map(|target| &target.name);
        if let Some(at) = self.all.iter().position(|target| Some(&target.name) == name)
            && !old.fixed
        {
            self.current = Some(at);
            self.at = old.at;
            self.timeline = old.timeline;
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

    /// Whether the current one is known to be well: others need not be looked at in a hurry.
    pub fn is_settled(&self) -> bool {
        let suits = |target: &Target| target.seen.role().is_some_and(|role| self.will_do(role));
        self.fixed
            || self.current().is_some_and(|target| suits(target) || matches!(target.seen, Seen::Mute(_)))
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

    /// A server was looked at. True in front where it is not what it was before.
    pub fn saw(&mut self, now: Moment, index: usize, seen: Seen) -> (bool, Vec<Decision>) {
        let Some(target) = self.all.get_mut(index) else { return (false, Vec::new()) };
        let was_silent = matches!(target.seen, Seen::Silent(_));
        let changed = target.seen.word() != seen.word();
        if changed {
            target.since = now;
        }
        target.seen = seen;
        let role = target.seen.role();
        let mut decisions = Vec::new();
        if !self.fixed {
            self.note_timeline(index, role);
            self.look_for_split(&mut decisions);
            self.decide(now, was_silent, &mut decisions);
            self.look_for_stale(&mut decisions);
        }
        (changed, decisions)
    }

    /// Time has passed: to be called once, [`GRACE`] after the beginning.
    pub fn tick(&mut self, now: Moment) -> Vec<Decision> {
        let mut decisions = Vec::new();
        if !self.fixed && self.current.is_none() {
            self.decide(now, false, &mut decisions);
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
        if self.current == Some(index) {
            self.timeline = role.timeline();
        }
    }

    /// Whether a timeline is known to have been left behind.
    fn is_behind(&self, timeline: u32) -> bool {
        0 < timeline && timeline < self.highest
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
        self.only_stale = only;
    }

    fn look_for_split(&mut self, decisions: &mut Vec<Decision>) {
        let primaries: Vec<usize> =
            self.all.iter().enumerate().filter(|(_, target)| is_primary(target)).map(|(at, _)| at).collect();
        let split = self.wants.is_unique() && primaries.len() > 1;
        if split != std::mem::replace(&mut self.split, split) {
            decisions.push(if split { Decision::Split(primaries) } else { Decision::SplitOver });
        }
    }

    fn decide(&mut self, now: Moment, was_silent: bool, decisions: &mut Vec<Decision>) {
        let lost = match self.current().map(|target| &target.seen) {
            Some(Seen::Is(role, at)) if self.will_do(*role) => {
                if *at == self.at {
                    return;
                }
                // Its name leads elsewhere: the same server for the operator, another one for links.
                return self.serve(self.current, *at, was_silent, decisions);
            }
            Some(Seen::Silent(_)) => true,
            // Another one was promoted since it was seen last: whether it answers or not is nothing any more.
            Some(_) if self.is_behind(self.timeline) => false,
            Some(Seen::Mute(_) | Seen::Unseen) => return,
            Some(Seen::Is(..)) => false,
            None if self.is_early(now) => return,
            None => false,
        };
        match self.best() {
            Some((target, at)) => self.serve(Some(target), at, lost, decisions),
            None if lost => {}
            None => {
                if self.current.take().is_some() {
                    decisions.push(Decision::Hold);
                }
            }
        }
    }

    fn serve(
        &mut self,
        target: Option<usize>,
        at: Option<IpAddr>,
        lost: bool,
        decisions: &mut Vec<Decision>,
    ) {
        let Some(target) = target else { return };
        self.current = Some(target);
        self.at = at;
        let role = self.all.get(target).and_then(|target| target.seen.role());
        self.timeline = role.filter(|_| self.wants.is_unique()).map_or(0, Role::timeline);
        decisions.push(Decision::Serve { target, at, lost });
    }

    /// The first that suits; of primaries the one promoted last.
    fn best(&self) -> Option<(usize, Option<IpAddr>)> {
        let suiting = self.all.iter().enumerate().filter_map(|(index, target)| match target.seen {
            Seen::Is(role, at) if self.will_do(role) => Some((index, role, at)),
            _ => None,
        });
        let rank = |role: Role| if self.wants.is_unique() { role.timeline() } else { 0 };
        let best = suiting.max_by_key(|(index, role, _)| (rank(*role), std::cmp::Reverse(*index)));
        best.map(|(index, _, at)| (index, at))
    }
}

fn is_primary(target: &Target) -> bool {
    matches!(target.seen, Seen::Is(Role::Primary { .. }, _))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: usize = 0;
    const B: usize = 1;

    fn at(second: u64) -> Moment {
        Moment::from_micros(second * 1_000_000)
    }

    fn ip(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, last]))
    }

    fn primary(last: u8, timeline: u32) -> Seen {
        Seen::Is(Role::Primary { timeline }, ip(last))
    }

    fn standby(last: u8) -> Seen {
        Seen::Is(Role::Standby, ip(last))
    }

    fn silent() -> Seen {
        Seen::Silent("connection refused".to_owned())
    }

    fn mute() -> Seen {
        Seen::Mute("FATAL 53300: sorry, too many clients already".to_owned())
    }

    fn serve(target: usize, last: u8, lost: bool) -> Decision {
        Decision::Serve { target, at: ip(last), lost }
    }

    /// Two servers, as seen one after the other, a second each.
    struct Pair(Targets, u64);

    impl Pair {
        fn new(wants: Wants) -> Self {
            Self(Targets::new(wants, vec!["a:5432".to_owned(), "b:5432".to_owned()], at(0)), 0)
        }

        fn running() -> Self {
            let mut pair = Self::new(Wants::ReadWrite);
            pair.saw(A, primary(1, 1), &[serve(A, 1, false)]).saw(B, standby(2), &[]);
            pair
        }

        fn saw(&mut self, index: usize, seen: Seen, expected: &[Decision]) -> &mut Self {
            self.1 += 1;
            let (_, decisions) = self.0.saw(at(self.1), index, seen.clone());
            assert_eq!(decisions, expected, "{index} was seen as {seen:?}: {}", self.0.summary());
            self
        }
    }

    #[test]
    fn nobody_is_dialled_until_a_primary_is_seen() {
        let mut pair = Pair::new(Wants::ReadWrite);
        assert!(!pair.0.is_settled());
        pair.saw(B, standby(2), &[]).saw(A, silent(), &[]).saw(A, primary(1, 1), &[serve(A, 1, false)]);
        assert!(pair.0.is_settled());
    }

    #[test]
    fn a_dead_primary_gives_way_to_the_standby_that_was_promoted() {
        let mut pair = Pair::running();
        pair.saw(A, silent(), &[]);
        assert_eq!(pair.0.current_index(), Some(A), "it may only be restarting");
        assert!(!pair.0.is_settled());
        pair.saw(B, primary(2, 2), &[serve(B, 2, true)]).saw(A, silent(), &[]).saw(A, standby(1), &[]);
        assert_eq!((pair.0.current_index(), pair.0.primaries()), (Some(B), 1));
    }

    #[test]
    fn a_restart_changes_nothing() {
        let mut pair = Pair::running();
        pair.saw(A, silent(), &[]).saw(A, primary(1, 1), &[]);
    }

    #[test]
    fn a_primary_that_turned_standby_or_is_fenced_is_left_and_clients_wait() {
        for demoted in [standby(1), Seen::Is(Role::ReadOnly { timeline: 1 }, ip(1))] {
            let mut pair = Pair::running();
            pair.saw(A, demoted.clone(), &[Decision::Hold]).saw(A, demoted.clone(), &[]);
            assert_eq!(pair.0.current_index(), None);
            pair.saw(B, primary(2, 2), &[serve(B, 2, false)]);
            let mut pair = Pair::running();
            pair.saw(A, silent(), &[]).saw(A, demoted, &[Decision::Hold]).saw(
                A,
                primary(1, 3),
                &[serve(A, 1, false)],
            );
        }
    }

    #[test]
    fn of_two_primaries_of_one_timeline_the_current_one_stays_while_it_answers() {
        let mut pair = Pair::running();
        pair.saw(B, primary(2, 1), &[Decision::Split(vec![A, B])]).saw(B, primary(2, 1), &[]);
        assert_eq!((pair.0.current_index(), pair.0.primaries()), (Some(A), 2));
        pair.saw(A, silent(), &[Decision::SplitOver, serve(B, 2, true)]);
        pair.saw(A, primary(1, 1), &[Decision::Split(vec![A, B])]);
        assert_eq!(pair.0.current_index(), Some(B));
    }

    #[test]
    fn a_primary_promoted_later_shows_that_the_current_one_was_left_behind() {
        let mut pair = Pair::running();
        pair.saw(B, primary(2, 2), &[Decision::Split(vec![A, B]), serve(B, 2, false)]);
        pair.saw(A, primary(1, 1), &[]);
        // Seen only after the first choice.
        let mut late = Pair::new(Wants::ReadWrite);
        late.saw(A, primary(1, 1), &[serve(A, 1, false)]);
        late.saw(B, primary(2, 2), &[Decision::Split(vec![A, B]), serve(B, 2, false)]);
    }

    #[test]
    fn an_old_primary_that_returns_is_never_served_whatever_becomes_of_the_new_one() {
        let mut pair = Pair::running();
        pair.saw(A, silent(), &[]).saw(B, primary(2, 2), &[serve(B, 2, true)]);
        pair.saw(A, primary(1, 1), &[Decision::Split(vec![A, B])]);
        pair.saw(B, silent(), &[Decision::SplitOver, Decision::Stale(vec![A])]).saw(A, primary(1, 1), &[]);
        assert_eq!(pair.0.current_index(), Some(B), "it may only be restarting");
        assert!(pair.0.summary().contains("timeline 1, left behind by 2"), "{}", pair.0.summary());
        pair.saw(B, standby(2), &[Decision::Hold]).saw(A, primary(1, 1), &[]);
        // Nor behind a change of the configuration.
        let mut new = Pair(Targets::new(Wants::Primary, vec!["a:5432".to_owned()], at(9)), 9);
        new.0.inherit(&pair.0);
        new.saw(A, primary(1, 1), &[Decision::Stale(vec![A])]).saw(A, primary(1, 3), &[serve(A, 1, false)]);
    }

    #[test]
    fn a_timeline_that_is_not_known_leaves_nobody_behind() {
        let mut pair = Pair::new(Wants::ReadWrite);
        pair.saw(A, primary(1, 2), &[serve(A, 1, false)]).saw(A, silent(), &[]);
        pair.saw(B, primary(2, 0), &[serve(B, 2, true)]);
    }

    #[test]
    fn the_first_choice_waits_for_all_to_be_seen_but_not_for_long() {
        let names = vec!["a:5432".to_owned(), "b:5432".to_owned()];
        let mut targets = Targets::new(Wants::ReadWrite, names.clone(), at(0));
        assert_eq!(targets.saw(at(0), A, primary(1, 3)).1, []);
        let both = targets.saw(at(0), B, primary(2, 4)).1;
        assert_eq!(both, [Decision::Split(vec![A, B]), serve(B, 2, false)], "promoted last");
        let mut targets = Targets::new(Wants::Any, names, at(0));
        assert_eq!(targets.saw(at(0), B, standby(2)).1, []);
        assert_eq!(targets.tick(at(1)), [serve(B, 2, false)]);
        assert_eq!(targets.saw(at(2), A, primary(1, 1)).1, []);
    }

    #[test]
    fn a_server_that_does_not_tell_the_monitor_stays() {
        let mut pair = Pair::running();
        pair.saw(A, mute(), &[]).saw(B, primary(2, 1), &[]);
        assert_eq!(pair.0.current_index(), Some(A));
        pair.saw(A, silent(), &[serve(B, 2, true)]);
        let mut pair = Pair::running();
        pair.saw(A, mute(), &[]).saw(B, primary(2, 2), &[serve(B, 2, false)]);
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_another_server() {
        let mut one = Pair(Targets::new(Wants::ReadWrite, vec!["db:5432".to_owned()], at(0)), 0);
        one.saw(A, primary(1, 1), &[serve(A, 1, false)]).saw(A, primary(2, 2), &[serve(A, 2, false)]);
        one.saw(A, silent(), &[]).saw(A, primary(1, 3), &[serve(A, 1, true)]);
    }

    #[test]
    fn any_takes_what_answers_and_a_fixed_one_decides_nothing() {
        let mut pair = Pair::new(Wants::Any);
        pair.saw(B, standby(2), &[serve(B, 2, false)]).saw(A, primary(1, 1), &[]);
        pair.saw(B, silent(), &[serve(A, 1, true)]);
        let mut only = Pair(Targets::fixed("a:5432".to_owned(), at(0)), 0);
        only.saw(A, standby(1), &[]).saw(A, silent(), &[]).saw(A, primary(9, 1), &[]);
        assert_eq!(only.0.current_index(), Some(A));
    }

    #[test]
    fn a_changed_configuration_goes_on_with_the_server_it_had() {
        let pair = Pair::running();
        let names = vec!["c:5432".to_owned(), "a:5432".to_owned()];
        let mut new = Pair(Targets::new(Wants::ReadWrite, names, at(9)), 9);
        new.0.inherit(&pair.0);
        assert_eq!(new.0.current_index(), Some(1));
        new.saw(0, primary(3, 1), &[]).saw(1, primary(1, 1), &[Decision::Split(vec![0, 1])]);
    }

    #[test]
    fn wants_and_roles() {
        let roles = [Role::Primary { timeline: 1 }, Role::ReadOnly { timeline: 1 }, Role::Standby];
        for (wants, expected) in [
            (Wants::Any, [true, true, true]),
            (Wants::ReadWrite, [true, false, false]),
            (Wants::ReadOnly, [false, true, true]),
            (Wants::Primary, [true, true, false]),
            (Wants::Standby, [false, false, true]),
        ] {
            assert_eq!(roles.map(|role| wants.suits(role)), expected, "{wants:?}");
        }
    }

    fn any_seen() -> impl Strategy<Value = Seen> {
        let role = prop_oneof![
            (0_u32..4).prop_map(|timeline| Role::Primary { timeline }),
            (0_u32..4).prop_map(|timeline| Role::ReadOnly { timeline }),
            Just(Role::Standby),
        ];
        prop_oneof![
            6 => (role, 1_u8..3).prop_map(|(role, last)| Seen::Is(role, ip(last))),
            2 => Just(silent()),
            1 => Just(mute()),
        ]
    }

    fn any_wants() -> impl Strategy<Value = Wants> {
        let all = [Wants::Any, Wants::ReadWrite, Wants::ReadOnly, Wants::Primary, Wants::Standby];
        proptest::sample::select(all.to_vec())
    }

    proptest! {
        #[test]
        fn whatever_is_seen(wants in any_wants(), events in proptest::collection::vec((0_usize..3, any_seen()), 1..60)) {
            let names = ["a", "b", "c"].map(str::to_owned).to_vec();
            let mut targets = Targets::new(wants, names, at(0));
            // What a shell that does as it is told would dial.
            let mut dialled: Option<(usize, Option<IpAddr>)> = None;
            let mut highest = 0;
            for (n, (index, seen)) in events.into_iter().enumerate() {
                let before = dialled;
                let (_, decisions) = targets.saw(at(n as u64 + 1), index, seen);
                for decision in &decisions {
                    match decision {
                        Decision::Serve { target, at, .. } => dialled = Some((*target, *at)),
                        Decision::Hold => dialled = None,
                        Decision::Split(_) | Decision::SplitOver | Decision::Stale(_) => {}
                    }
                }
                prop_assert_eq!(dialled.map(|(target, _)| target), targets.current_index());
                let seen_now = targets.all()[index].seen.role();
                if let Some(role) = seen_now.filter(|role| wants.is_unique() && wants.suits(*role)) {
                    highest = highest.max(role.timeline());
                }
                let suits = |target: usize| match &targets.all()[target].seen {
                    Seen::Is(role, _) => wants.suits(*role) && (role.timeline() == 0 || role.timeline() >= highest),
                    _ => false,
                };
                let seen_of = |target: usize| &targets.all()[target].seen;
                // Nobody is dialled who is known not to suit.
                if let Some((target, at)) = dialled
                    && let Seen::Is(role, there) = seen_of(target)
                {
                    prop_assert!(suits(target) && *there == at, "{role:?} {}", targets.summary());
                }
                // Where one suits, one is dialled that suits, or that does not tell.
                if (0..3).any(suits) {
                    let ok = dialled.is_some_and(|(t, _)| suits(t) || matches!(seen_of(t), Seen::Mute(_)));
                    prop_assert!(ok, "{}", targets.summary());
                }
                // Who suits is left for nobody else; nor who does not tell, but for one promoted later.
                let promoted = seen_now.is_some_and(|role| wants.is_unique() && role.timeline() >= highest);
                if let Some((target, _)) = before
                    && (suits(target) || matches!(seen_of(target), Seen::Mute(_)) && !promoted)
                {
                    prop_assert_eq!(dialled.map(|(target, _)| target), Some(target));
                }
            }
        }
    }
}
