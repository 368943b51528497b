//! What is known of clusters and timelines, and what becomes of it with a reload and a restart.

use super::*;

#[test]
fn a_server_of_another_cluster_is_never_served_and_named_once() {
    for wants in [Wants::ReadWrite, Wants::Any] {
        let mut pair = Pair::new(wants);
        pair.saw(A, of(7, primary(1, 1)), &[serve(A, 1, false)]);
        pair.saw(B, of(8, primary(2, 9)), &[Decision::Foreign(B)]);
        pair.saw(A, silent(), &[]).saw(B, silent(), &[]).saw(B, of(8, primary(2, 9)), &[]);
        assert_eq!((pair.0.current_index(), pair.0.memory().timeline <= 1), (Some(A), true));
        assert!(pair.0.summary().contains("b:5432: primary of another cluster: its system identifier is 8"));
        // It was another one of its kind; and ours is there again.
        pair.saw(B, of(9, primary(2, 9)), &[Decision::Foreign(B)]);
        pair.saw(A, of(7, primary(1, 1)), &[]).saw(B, of(7, standby(2)), &[]);
        assert!(pair.0.is_settled());
    }
}

#[test]
fn the_one_in_use_that_comes_back_as_another_cluster_is_not_served_until_it_is_the_only_address() {
    let mut pair = Pair::new(Wants::ReadWrite);
    pair.saw(A, of(7, primary(1, 3)), &[serve(A, 1, false)]).saw(A, silent(), &[]);
    pair.saw(A, of(8, primary(1, 1)), &[Decision::Hold, Decision::Foreign(A)]);
    let mut again = Targets::new(Wants::ReadWrite, vec!["a:5432".to_owned(), "c:5432".to_owned()], at(99));
    again.inherit(&pair.0);
    assert_eq!(again.saw(at(101), A, of(8, primary(1, 1))).1, [], "it was said before");
    let mut only = Targets::fixed("a:5432".to_owned(), at(102));
    only.inherit(&again);
    assert_eq!(only.memory(), Memory::default());
    let mut list = Pair::new(Wants::ReadWrite);
    list.0.inherit(&only);
    list.saw(A, of(8, primary(1, 1)), &[Decision::Found(ip(1))]);
    assert_eq!(list.0.memory(), Memory { system: Some(8), timeline: 1 });
}

#[test]
fn the_first_of_the_list_says_which_cluster_it_is_and_other_timelines_are_nothing_to_it() {
    let names = || vec!["a:5432".to_owned(), "b:5432".to_owned(), "c:5432".to_owned()];
    let mut targets = Targets::new(Wants::ReadWrite, names(), at(0));
    assert_eq!(targets.saw(at(0), B, of(8, primary(2, 9))).1, []);
    assert_eq!(targets.saw(at(0), 2, of(7, primary(3, 3))).1, []);
    let all = targets.saw(at(0), A, of(7, primary(1, 2))).1;
    assert_eq!(all, [Decision::Split(vec![A, 2]), serve(2, 3, false), Decision::Foreign(B)]);
    assert_eq!(targets.memory(), Memory { system: Some(7), timeline: 3 });
    // One that does not tell may be of any.
    assert_eq!(targets.saw(at(9), A, primary(1, 4)).1, [serve(A, 1, false)]);
}

#[test]
fn what_was_known_before_a_restart_holds_after_it() {
    let names = || vec!["a:5432".to_owned(), "b:5432".to_owned()];
    let memory = Memory { system: Some(7), timeline: 2 };
    let restarted = |wants| {
        let mut targets = Targets::new(wants, names(), at(0));
        targets.restore(memory, &["b:5432".to_owned(), "z:5432".to_owned()]);
        assert_eq!(targets.memory().system, Some(7));
        targets
    };
    // Nothing is said of the old primary before the new one had its time.
    let mut targets = restarted(Wants::ReadWrite);
    assert_eq!(targets.saw(at(0), A, of(7, primary(1, 1))).1, []);
    assert_eq!(
        targets.saw(at(0), B, of(7, primary(2, 2))).1,
        [Decision::Split(vec![A, B]), serve(B, 2, false)]
    );
    let mut targets = restarted(Wants::ReadWrite);
    assert_eq!(targets.saw(at(0), A, of(7, primary(1, 1))).1, []);
    assert_eq!((targets.tick(at(2)), targets.tick(at(3))), (vec![Decision::Stale(vec![A])], vec![]));
    assert_eq!(targets.saw(at(4), B, of(8, primary(2, 9))).1, [Decision::Foreign(B)]);
    assert_eq!(targets.saw(at(5), B, primary(2, 2)).1, [Decision::Split(vec![A, B]), serve(B, 2, false)]);
    // Where there can be more than one, timelines are nothing.
    let mut any = restarted(Wants::Any);
    any.saw(at(0), B, silent());
    assert_eq!(any.saw(at(0), A, of(7, primary(1, 1))).1, [serve(A, 1, false)]);
    // Other addresses, or only one: begun anew.
    let mut others = Targets::new(Wants::ReadWrite, names(), at(0));
    others.restore(memory, &["z:5432".to_owned()]);
    let mut only = Targets::fixed("a:5432".to_owned(), at(0));
    only.restore(memory, &names());
    assert_eq!((others.memory(), only.memory()), (Memory::default(), Memory::default()));
}

#[test]
fn timelines_of_another_cluster_leave_nobody_behind() {
    let mut old = Pair::new(Wants::ReadWrite);
    old.saw(A, primary(1, 7), &[serve(A, 1, false)]);
    for (names, expected) in
        [(["a:5432", "c:5432"], Decision::Stale(vec![1])), (["c:5432", "d:5432"], serve(1, 3, false))]
    {
        let mut new = Targets::new(Wants::ReadWrite, names.map(str::to_owned).to_vec(), at(99));
        new.inherit(&old.0);
        new.saw(at(100), 0, silent());
        let decisions = new.saw(at(101), 1, primary(3, 1)).1;
        assert_eq!(decisions, [expected], "{names:?}");
    }
}

#[test]
fn a_reload_through_a_list_of_which_several_suit_forgets_no_timeline() {
    let names = || vec!["a:5432".to_owned(), "b:5432".to_owned()];
    for between in [Wants::Any, Wants::ReadOnly, Wants::Standby] {
        let mut pair = Pair::running();
        pair.saw(A, silent(), &[]).saw(B, of(7, primary(2, 2)), &[serve(B, 2, true)]);
        let known = pair.0.memory();
        assert_eq!(known, Memory { system: Some(7), timeline: 2 });
        let mut other = Targets::new(between, names(), at(100));
        other.inherit(&pair.0);
        other.saw(at(101), B, silent());
        other.saw(at(110), A, of(7, primary(1, 1)));
        // There it is nothing: the old primary suits as far as its role does.
        assert_eq!(other.current_index() == Some(A), between == Wants::Any, "{}", other.summary());
        assert_eq!(other.memory(), known);
        let mut restarted = Targets::new(between, names(), at(200));
        restarted.restore(known, &names());
        assert_eq!(restarted.memory(), known);
        for before in [other, restarted] {
            let mut again = Targets::new(Wants::ReadWrite, names(), at(300));
            again.inherit(&before);
            again.saw(at(301), B, silent());
            again.saw(at(302), A, of(7, primary(1, 1)));
            assert_ne!(again.current_index(), Some(A), "{}", again.summary());
            assert!(again.summary().contains("left behind by 2"), "{}", again.summary());
        }
    }
}

#[test]
fn as_long_as_the_cluster_is_not_known_timelines_of_those_that_tell_are_not_kept() {
    let mut targets = Targets::new(Wants::ReadWrite, vec!["a:5432".to_owned(), "b:5432".to_owned()], at(0));
    assert_eq!(targets.saw(at(0), B, of(8, primary(2, 9))).1, []);
    assert_eq!(targets.memory(), Memory::default(), "nobody is served yet");
    // What was kept of servers that do not tell theirs stays.
    let memory = Memory { system: None, timeline: 5 };
    targets.restore(memory, &["a:5432".to_owned()]);
    assert_eq!(targets.memory(), memory);
    assert_eq!(targets.tick(at(1)), [serve(B, 2, false)]);
    assert_eq!(targets.memory(), Memory { system: Some(8), timeline: 9 });
}
