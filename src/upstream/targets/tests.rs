use proptest::prelude::*;

use super::*;

mod kept;

const A: usize = 0;
const B: usize = 1;

fn at(second: u64) -> Moment {
    Moment::from_micros(second * 1_000_000)
}

fn ip(last: u8) -> Option<IpAddr> {
    Some(IpAddr::from([10, 0, 0, last]))
}

fn is(role: Role, last: u8) -> Seen {
    Seen::Is { role, at: ip(last), system: None }
}

fn primary(last: u8, timeline: u32) -> Seen {
    is(Role::Primary { timeline }, last)
}

fn standby(last: u8) -> Seen {
    is(Role::Standby, last)
}

/// The same, of a cluster that tells its system identifier.
fn of(cluster: u64, seen: Seen) -> Seen {
    let Seen::Is { role, at, .. } = seen else { return seen };
    Seen::Is { role, at, system: Some(cluster) }
}

fn silent() -> Seen {
    Seen::Silent("connection refused".to_owned())
}

fn hung() -> Seen {
    Seen::Hung("PostgreSQL did not answer within 3000 ms".to_owned())
}

fn mute() -> Seen {
    Seen::Mute("FATAL 53300: sorry, too many clients already".to_owned())
}

impl Targets {
    /// Trouble is that of the one that is dialled.
    fn saw(&mut self, now: Moment, index: usize, seen: Seen) -> (bool, Vec<Decision>) {
        self.saw_at(now, index, seen, None)
    }

    fn primaries(&self) -> usize {
        self.all().iter().filter(|target| is_primary(target)).count()
    }
}

fn serve(target: usize, last: u8, lost: bool) -> Decision {
    Decision::Serve { target, at: ip(last), lost }
}

/// Two servers, as seen one after the other, ten seconds each.
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
        self.1 += 10;
        let (_, decisions) = self.0.saw(at(self.1), index, seen.clone());
        assert_eq!(decisions, expected, "{index} was seen as {seen:?}: {}", self.0.summary());
        self
    }

    /// Trouble of one of the servers that the name of A leads to.
    fn saw_at(&mut self, last: u8, seen: Seen, expected: &[Decision]) -> &mut Self {
        self.1 += 10;
        let (_, decisions) = self.0.saw_at(at(self.1), A, seen.clone(), ip(last));
        assert_eq!(decisions, expected, "{last} was seen as {seen:?}: {}", self.0.summary());
        self
    }

    /// Where the name of A leads.
    fn leads(&mut self, addresses: &[u8], expected: &[Decision]) -> &mut Self {
        let addresses = addresses.iter().filter_map(|last| ip(*last)).collect();
        assert_eq!(self.0.leads(at(self.1), A, addresses), expected);
        self
    }

    fn one_name() -> Self {
        let mut one = Self(Targets::new(Wants::ReadWrite, vec!["db:5432".to_owned()], at(0)), 0);
        one.leads(&[1, 2], &[]).saw(A, primary(1, 1), &[serve(A, 1, false)]);
        one
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
    for demoted in [standby(1), is(Role::ReadOnly { timeline: 1 }, 1)] {
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
fn one_that_lets_in_and_does_not_answer_is_left_and_its_transactions_are_not_cut() {
    let mut pair = Pair::new(Wants::Any);
    pair.saw(A, primary(1, 1), &[serve(A, 1, false)]).saw(A, hung(), &[]);
    assert!(!pair.0.is_settled());
    pair.saw(B, standby(2), &[serve(B, 2, false)]);
}

#[test]
fn between_two_losses_is_some_time_but_a_promotion_is_followed_at_once() {
    let names = || vec!["a:5432".to_owned(), "b:5432".to_owned()];
    let mut targets = Targets::new(Wants::Any, names(), at(0));
    targets.saw(at(1), A, primary(1, 1));
    targets.saw(at(1), B, standby(2));
    assert_eq!(targets.current_index(), Some(A));
    assert_eq!(targets.saw(at(2), A, silent()).1, [serve(B, 2, true)]);
    targets.saw(at(3), A, primary(1, 1));
    assert_eq!(targets.saw(at(4), B, silent()).1, []);
    assert_eq!((targets.tick(at(6)), targets.tick(at(7))), (vec![], vec![serve(A, 1, true)]));

    let mut targets = Targets::new(Wants::ReadWrite, names(), at(0));
    targets.saw(at(1), A, primary(1, 1));
    targets.saw(at(2), B, primary(2, 2));
    targets.saw(at(3), B, silent());
    assert_eq!(targets.saw(at(4), A, primary(1, 3)).1, [serve(A, 1, true)]);
}

#[test]
fn a_name_that_leads_elsewhere_is_another_server() {
    let mut one = Pair(Targets::new(Wants::ReadWrite, vec!["db:5432".to_owned()], at(0)), 0);
    one.saw(A, primary(1, 1), &[serve(A, 1, false)]).saw(A, primary(2, 2), &[serve(A, 2, false)]);
    one.saw(A, silent(), &[]).saw(A, primary(1, 3), &[serve(A, 1, true)]);
}

#[test]
fn a_name_of_several_servers_whose_primary_only_restarts_holds_nobody() {
    let mut one = Pair(Targets::new(Wants::ReadWrite, vec!["db:5432".to_owned()], at(0)), 0);
    one.saw(A, primary(1, 1), &[serve(A, 1, false)]);
    one.saw(A, silent(), &[]).saw(A, standby(2), &[]).saw(A, silent(), &[]).saw(A, standby(2), &[]);
    assert_eq!((one.0.tick(at(99)), one.0.current_at()), (vec![], ip(1)));
    assert!(one.0.is_seen_elsewhere(), "its usage is not that of the one that is dialled");
    one.saw(A, primary(1, 1), &[]);
    assert!(!one.0.is_seen_elsewhere());
    one.saw(A, standby(1), &[Decision::Hold]);
    // And another one of them was promoted.
    one.saw(A, primary(1, 1), &[serve(A, 1, false)]).saw(A, silent(), &[]).saw(A, standby(2), &[]);
    one.saw(A, primary(2, 2), &[serve(A, 2, true)]);
}

#[test]
fn what_others_of_its_name_say_is_no_word_on_a_server_that_does_not_let_the_monitor_in() {
    let mut one = Pair::one_name();
    one.saw_at(1, mute(), &[]).saw(A, standby(2), &[]).saw(A, is(Role::ReadOnly { timeline: 1 }, 2), &[]);
    one.saw(A, primary(2, 1), &[]).saw_at(2, silent(), &[]).saw_at(2, hung(), &[]);
    assert_eq!((one.0.current_index(), one.0.current_at()), (Some(A), ip(1)));
    assert!(!one.0.is_settled(), "nothing is known of it");
    // It is left for one that was promoted, and for one that suits when it is silent itself.
    let (mut promoted, mut died) = (one.0.clone(), one);
    assert_eq!(promoted.saw(at(999), A, primary(2, 2)).1, [serve(A, 2, false)]);
    died.saw_at(1, silent(), &[]).saw_at(2, mute(), &[]).saw(A, primary(2, 1), &[serve(A, 2, true)]);
    let mut hangs = Pair::one_name();
    hangs.saw_at(1, hung(), &[]).saw(A, standby(2), &[]).saw(A, primary(2, 1), &[serve(A, 2, false)]);
}

#[test]
fn a_name_that_leads_elsewhere_each_time_drives_nobody_away() {
    for wants in [Wants::Any, Wants::ReadWrite, Wants::Primary, Wants::Standby, Wants::ReadOnly] {
        let role = if wants.suits(Role::Standby) { Role::Standby } else { Role::Primary { timeline: 1 } };
        let mut one = Pair(Targets::new(wants, vec!["db:5432".to_owned()], at(0)), 0);
        one.leads(&[1], &[]).saw(A, is(role, 1), &[serve(A, 1, false)]);
        for last in 2..20 {
            one.leads(&[last], &[]).saw(A, is(role, last), &[]);
            assert_eq!((one.0.tick(at(one.1)), one.0.current_at()), (vec![], ip(1)));
        }
    }
}

#[test]
fn where_a_name_leads_now_is_followed_when_its_server_does_not_answer_the_monitor() {
    for (trouble, lost) in [(mute(), false), (hung(), false), (silent(), true)] {
        let mut one = Pair::one_name();
        one.leads(&[2], &[]).saw_at(1, trouble.clone(), &[]).saw(A, standby(2), &[]);
        one.saw(A, primary(2, 1), &[serve(A, 2, lost)]);
        // It answers again: nothing stands against it.
        let mut again = Pair::one_name();
        again.leads(&[2], &[]).saw_at(1, trouble, &[]).saw(A, primary(1, 1), &[]);
        again.saw(A, primary(2, 1), &[]);
    }
    // Where there are several it may only be full, and its name leads elsewhere each time.
    for wants in [Wants::Any, Wants::ReadOnly, Wants::Standby] {
        let mut reader = Pair(Targets::new(wants, vec!["db:5432".to_owned()], at(0)), 0);
        reader.leads(&[1, 2], &[]).saw(A, standby(1), &[serve(A, 1, false)]).leads(&[2], &[]);
        reader.saw_at(1, mute(), &[]).saw(A, standby(2), &[]).saw_at(1, mute(), &[]);
        assert_eq!((reader.0.tick(at(999)), reader.0.current_at()), (vec![], ip(1)), "{wants:?}");
        reader.saw_at(1, silent(), &[]).saw(A, standby(2), &[serve(A, 2, true)]);
    }
    // A resolver that says something else each time does not drive links to and fro.
    let mut one = Pair::one_name();
    one.leads(&[2], &[]).saw_at(1, mute(), &[]).saw(A, primary(2, 1), &[serve(A, 2, false)]);
    one.leads(&[1], &[]);
    let soon = at(one.1 + 1);
    one.0.saw_at(soon, A, mute(), ip(2));
    assert_eq!(one.0.saw(soon, A, primary(1, 1)).1, []);
    assert_eq!(one.0.tick(soon + DWELL), [serve(A, 1, false)]);
}

#[test]
fn the_only_one_is_not_held_for_a_standby_of_its_name() {
    let mut one = Pair(Targets::new(Wants::ReadWrite, vec!["db:5432".to_owned()], at(0)), 0);
    one.0.inherit(&Targets::fixed("db:5432".to_owned(), at(0)));
    one.leads(&[1, 2], &[]).saw(A, standby(2), &[]).saw(A, primary(1, 1), &[Decision::Found(ip(1))]);
    one.saw(A, standby(1), &[Decision::Hold]);
}

#[test]
fn an_old_primary_of_the_same_name_neither_ends_nor_takes_the_new_ones_place() {
    let mut one = Pair(Targets::new(Wants::ReadWrite, vec!["db:5432".to_owned()], at(0)), 0);
    one.saw(A, primary(2, 2), &[serve(A, 2, false)]).saw(A, silent(), &[]);
    one.saw(A, primary(1, 1), &[Decision::Stale(vec![A])]).saw(A, silent(), &[]).saw(A, primary(1, 1), &[]);
    one.saw(A, primary(2, 2), &[]);
    assert!(one.0.is_settled());
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
fn the_only_one_stays_when_others_join_it_and_when_they_leave() {
    let mut only = Targets::fixed("a:5432".to_owned(), at(0));
    only.saw(at(1), A, mute());
    let mut pair = Pair::new(Wants::ReadWrite);
    pair.0.inherit(&only);
    assert_eq!(pair.0.current_index(), Some(A));
    pair.saw(B, standby(2), &[]).saw(A, primary(1, 1), &[Decision::Found(ip(1))]).saw(A, primary(1, 1), &[]);
    // Behind the one that was chosen by hand nobody was left.
    let mut again = Targets::fixed("a:5432".to_owned(), at(9));
    again.inherit(&pair.0);
    let mut pair = Pair::new(Wants::ReadWrite);
    pair.0.inherit(&again);
    pair.saw(A, standby(1), &[Decision::Hold]);
}

#[test]
fn who_is_silent_and_not_dialled_is_known_with_where_it_was_tried() {
    let mut pair = Pair::running();
    let silent_ones = |pair: &Pair| {
        pair.0.silent_elsewhere().map(|(target, at)| (target.name.clone(), at)).collect::<Vec<_>>()
    };
    pair.saw_at(1, silent(), &[]);
    assert_eq!(silent_ones(&pair), [], "it is dialled");
    pair.saw(B, primary(2, 2), &[serve(B, 2, true)]);
    assert_eq!(silent_ones(&pair), [("a:5432".to_owned(), ip(1))]);
    for seen in [hung(), mute(), standby(1)] {
        pair.saw_at(1, seen, &[]);
        assert_eq!(silent_ones(&pair), []);
    }
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
        6 => (role, 1_u8..3).prop_map(|(role, last)| is(role, last)),
        2 => Just(silent()),
        1 => Just(hung()),
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
            let (_, decisions) = targets.saw(at(10 * n as u64 + 1), index, seen);
            for decision in &decisions {
                match decision {
                    Decision::Serve { target, at, .. } => dialled = Some((*target, *at)),
                    Decision::Hold => dialled = None,
                    Decision::Found(at) => prop_assert!(false, "{at:?}: it was known"),
                    Decision::Split(_) | Decision::SplitOver | Decision::Stale(_) | Decision::Foreign(_) => {}
                }
            }
            prop_assert_eq!(dialled.map(|(target, _)| target), targets.current_index());
            let seen_now = targets.all()[index].seen.role();
            if let Some(role) = seen_now.filter(|role| wants.is_unique() && wants.suits(*role)) {
                highest = highest.max(role.timeline());
            }
            let suits = |target: usize| match &targets.all()[target].seen {
                Seen::Is { role, .. } => wants.suits(*role) && (role.timeline() == 0 || role.timeline() >= highest),
                _ => false,
            };
            let seen_of = |target: usize| &targets.all()[target].seen;
            // Nobody is dialled who is known not to suit.
            if let Some((target, at)) = dialled
                && let Seen::Is { role, at: there, .. } = seen_of(target)
            {
                // Elsewhere under its name is another server.
                prop_assert!(*there != at || suits(target), "{:?} {}", role, targets.summary());
                prop_assert!(*there == at || !suits(target) || !matches!(targets.ails, Ails::Silent | Ails::Hung));
            }
            // Where one suits, one is dialled that suits, or that does not tell.
            if (0..3).any(suits) {
                let elsewhere = targets.is_seen_elsewhere() && !matches!(targets.ails, Ails::Silent | Ails::Hung);
                let ok = dialled.is_some_and(|(t, _)| suits(t) || matches!(seen_of(t), Seen::Mute(_)) || elsewhere);
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

    #[test]
    fn nobody_is_served_of_another_cluster_than_the_first(
        wants in any_wants(),
        events in proptest::collection::vec((0_u64..3, 0_usize..3, proptest::option::of(7_u64..10), any_seen()), 1..60)
    ) {
        let names = ["a", "b", "c"].map(str::to_owned).to_vec();
        let mut targets = Targets::new(wants, names, at(0));
        let (mut now, mut cluster, mut told) = (1, None, [None; 3]);
        for (pause, index, system, seen) in events {
            now += pause;
            let seen = system.map_or(seen.clone(), |system| of(system, seen));
            for step in 0..2 {
                let decisions =
                    if step == 0 { targets.tick(at(now)) } else { targets.saw(at(now), index, seen.clone()).1 };
                for decision in decisions {
                    if let Decision::Serve { target, .. } = decision {
                        let its = targets.all()[target].seen.system();
                        prop_assert!(!differ(cluster, its), "{cluster:?} {}", targets.summary());
                        cluster = cluster.or(its);
                    } else if let Decision::Foreign(target) = decision {
                        let its = targets.all()[target].seen.system();
                        prop_assert!(differ(cluster.or(targets.system()), its));
                        // Again only when it is yet another one.
                        prop_assert!(differ(Some(0), its) && std::mem::replace(&mut told[target], its) != its);
                    }
                }
            }
            // The one that is dialled tells it later, too.
            cluster = cluster.or(targets.system());
            prop_assert_eq!(cluster, targets.system());
            if let Some(target) = targets.current() && !targets.is_seen_elsewhere() {
                prop_assert!(!differ(cluster, target.seen.system()));
            }
        }
    }

    #[test]
    fn a_server_in_trouble_is_not_left_again_and_again(
        wants in any_wants(), events in proptest::collection::vec((0_u64..3, 0_usize..3, any_seen()), 1..60)
    ) {
        let names = ["a", "b", "c"].map(str::to_owned).to_vec();
        let mut targets = Targets::new(wants, names, at(0));
        let (mut now, mut left_at): (u64, Option<u64>) = (1, None);
        for (pause, index, seen) in events {
            now += pause;
            let before = (targets.current_index(), targets.timeline);
            let ails = |targets: &Targets| targets.current().is_some_and(|t| matches!(t.seen, Seen::Silent(_) | Seen::Hung(_)));
            let mut decisions = targets.tick(at(now));
            let ailed = ails(&targets) || matches!(seen, Seen::Silent(_) | Seen::Hung(_));
            decisions.extend(targets.saw(at(now), index, seen).1);
            for decision in decisions {
                let Decision::Serve { target, .. } = decision else { continue };
                let Some(old) = before.0.filter(|old| *old != target) else { continue };
                let old = &targets.all()[old].seen;
                if ailed && matches!(old, Seen::Silent(_) | Seen::Hung(_)) && !targets.is_behind(before.1) {
                    prop_assert!(left_at.is_none_or(|then| at(now).since(at(then)) >= DWELL));
                }
                left_at = Some(now);
            }
        }
    }
}
