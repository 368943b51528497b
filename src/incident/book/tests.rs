use proptest::prelude::*;

use super::*;
use crate::incident::record::{At, EVENTS_MAX, LaneFigures, ROWS_MAX};

fn facts(usage: f64) -> Facts {
    Facts { usage: Some(usage), opens_at: 75.0, hold_for_ms: 900_000, ..Facts::default() }
}

fn entry(seq: u64, who: &str, event: &str) -> TimelineEntry {
    TimelineEntry {
        seq,
        at: seq * 1000,
        who: who.into(),
        event: event.into(),
        lane: String::new(),
        client: None,
        text: "sale".into(),
        usage: None,
    }
}

fn opened(act: Option<Act>) -> String {
    match act {
        Some(Act::Opened(summary)) => summary.trigger,
        other => panic!("{other:?}"),
    }
}

#[test]
fn usage_opens_by_crossing_and_only_the_criteria_close() {
    let mut book = Book::default();
    assert_eq!(book.step(WallMs(0), &facts(74.9), &[], 1), None);
    assert_eq!(opened(book.step(WallMs(1), &facts(75.0), &[], 1)), "usage");
    assert_eq!(book.step(WallMs(2), &facts(10.0), &[], 1), None, "low usage alone is no end");
    let Some(Act::Closed(incident)) = book.step(WallMs(3), &Facts { met: true, ..facts(10.0) }, &[], 1)
    else {
        panic!("every criterion is met");
    };
    assert_eq!((incident.id, incident.closed_at, incident.peak_percent), (1, Some(At(3)), Some(75.0)));
    assert!(book.open().is_none());
}

#[test]
fn an_incident_that_ends_above_the_line_does_not_begin_again_at_once() {
    let mut book = Book::default();
    book.step(WallMs(1), &facts(80.0), &[], 1);
    book.step(WallMs(2), &Facts { met: true, ..facts(80.0) }, &[], 1);
    assert_eq!(book.step(WallMs(3), &facts(80.0), &[], 1), None);
    assert_eq!(book.step(WallMs(4), &Facts { usage: None, ..facts(0.0) }, &[], 1), None);
    assert_eq!(book.step(WallMs(5), &facts(80.0), &[], 1), None, "unknown is not below");
    book.step(WallMs(6), &facts(70.0), &[], 1);
    assert_eq!(opened(book.step(WallMs(7), &facts(80.0), &[], 1)), "usage");
}

#[test]
fn freeze_and_too_many_clients_open_one_and_older_ones_do_not() {
    let mut book = Book::default();
    let freeze = [entry(4, "alice", "note"), entry(5, "alice", "freeze")];
    assert_eq!(book.step(WallMs(1), &facts(1.0), &freeze, 6), None, "seen before");
    assert_eq!(opened(book.step(WallMs(2), &facts(1.0), &freeze, 5)), "freeze");
    assert!(book.open().expect("open").cause.contains("alice"));
    assert_eq!(book.open().expect("open").events.len(), 2, "with what came before");
    let mut book = Book::default();
    assert_eq!(
        opened(book.step(WallMs(1), &Facts { too_many_clients: 1, ..facts(1.0) }, &[], 1)),
        "too_many_clients"
    );
    let mut book = Book::default();
    assert_eq!(opened(book.step(WallMs(1), &Facts { logged: 3, ..facts(1.0) }, &[], 1)), "log");
    let closed = book.step(WallMs(2), &Facts { logged: 3, met: true, ..facts(1.0) }, &[], 1);
    assert!(matches!(closed, Some(Act::Closed(_))));
    assert_eq!(book.step(WallMs(3), &Facts { logged: 3, ..facts(1.0) }, &[], 1), None);
}

#[test]
fn a_restart_goes_on_with_the_open_one_and_with_the_numbers() {
    let open = Incident { id: 9, ..Incident::default() };
    let mut book = Book::new(Some(open), vec![Summary { id: 4, ..Summary::default() }]);
    assert_eq!(book.list().iter().map(|summary| summary.id).collect::<Vec<_>>(), [4, 9]);
    book.step(WallMs(1), &Facts { met: true, ..facts(1.0) }, &[], 1);
    book.step(WallMs(2), &facts(80.0), &[], 1);
    assert_eq!(book.open().map(|incident| incident.id), Some(10));
}

#[test]
fn an_event_is_kept_once_and_people_are_kept_before_pgweir() {
    let mut incident = Incident::default();
    incident.take(&[entry(1, "alice", "freeze")]);
    incident.take(&[entry(1, "alice", "freeze"), entry(2, "pgweir", "shed")]);
    assert_eq!(incident.events.len(), 2);
    let many: Vec<_> = (3..EVENTS_MAX as u64 + 10).map(|seq| entry(seq, "pgweir", "shed")).collect();
    incident.take(&many);
    assert_eq!((incident.events.len(), incident.events_left_out), (EVENTS_MAX, 9));
    assert_eq!(incident.events[0].who, "alice");
}

#[test]
fn what_the_criteria_say_is_kept_when_it_changes() {
    let said = |state: &str| Said {
        at: At(0),
        criterion: "usage".into(),
        state: state.into(),
        measured: String::new(),
        wanted: String::new(),
        reason: String::new(),
    };
    let mut incident = Incident::default();
    for state in ["unknown", "not met", "not met", "met"] {
        incident.hear(vec![said(state)]);
    }
    let states: Vec<&str> = incident.changes.iter().map(|said| said.state.as_str()).collect();
    assert_eq!(states, ["unknown", "not met", "met"]);
    for n in 0..10_000 {
        incident.hear(vec![said(if n % 2 == 0 { "not met" } else { "met" })]);
    }
    assert_eq!((incident.changes.len(), incident.changes[0].state.as_str()), (400, "unknown"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 50, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..ProptestConfig::default() })]

    /// However long it lasts: rows are bounded, in order, and no count is lost.
    #[test]
    fn figures_are_bounded_and_sums_are_kept(
        steps in proptest::collection::vec((1_u64..60_000, 0_u64..100, 0_u32..50), 1..3000),
        jump in 0_usize..3000,
    ) {
        let mut book = Book::default();
        book.step(WallMs(0), &facts(80.0), &[], 1);
        let (mut at, mut committed, mut most) = (0, 0, 0);
        for (n, (step, more, slots)) in steps.into_iter().enumerate() {
            at += if n == jump { 10_000_000 } else { step };
            let lane = LaneFigures { slots, committed: more, ..LaneFigures::default() };
            let look = Look { lanes: vec![("web".into(), lane)], ..Look::default() };
            book.record(WallMs(at), &look, Vec::new());
            committed += more;
            most = most.max(slots);
        }
        let figures = &book.open().expect("open").figures;
        let rows = &figures.rows;
        prop_assert!(rows.len() <= ROWS_MAX);
        prop_assert!(rows.windows(2).all(|two| two[0].at < two[1].at));
        prop_assert_eq!(rows.iter().map(|row| row.lanes[0].committed).sum::<u64>(), committed);
        prop_assert_eq!(rows.iter().map(|row| row.lanes[0].slots).max(), Some(most));
        let text = serde_json::to_string(&book.open()).expect("JSON");
        let back: Option<Incident> = serde_json::from_str(&text).expect("what was written");
        prop_assert_eq!(back.as_ref(), book.open());
    }
}
