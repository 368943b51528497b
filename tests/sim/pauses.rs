//! One behaviour each: pauses, FREEZE, ramps, and who passes them.

use std::time::Duration;

use pgweir::lanes::guard::{Action, Begun};
use pgweir::lanes::ids::LinkId;
use pgweir::lanes::settings::Disposition;
use pgweir::reason::Reason;
use pgweir::snapshot::LaneState::{Open, Paused, Ramping, Shedding};

use crate::scenario::{Sim, lane, settings};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn a_pause_holds_new_links_without_their_clock_and_lets_nested_ones_pass() {
    let cron = lane("cron", 8, |lane| lane.wait_timeout = ms(1000));
    Sim::new(vec![cron])
        .pause("cron")
        .arrive("cron", 1)
        .expect_waiting(Reason::Paused)
        .nested(true)
        .arrive("cron", 1)
        .expect("cron", 1, 1)
        .advance_ms(60_000)
        .expect("cron", 1, 1)
        .resume("cron", 0)
        .expect_grants(&[1])
        .expect_state("cron", Open);
}

#[test]
fn nested_links_pass_a_pause_that_holds_and_nothing_else() {
    let reports = lane("reports", 8, |lane| lane.on_pause = Disposition::Reject);
    let cron = lane("cron", 8, |lane| lane.shed_above = Some(75.0));
    let mut settings = settings(vec![reports, cron, lane("web", 1, |_| {})]);
    settings.limits.monitored = true;
    let mut sim = Sim::with(settings).sample(20, 2).connect("reports", 1).pause("reports").nested(true);
    let begun = sim.guard.begin(sim.now, LinkId(1), true);
    assert!(
        matches!(begun, Begun::Reject(refusal) if refusal.reason == Reason::Paused),
        "a pause that refuses"
    );
    sim = sim.arrive("reports", 1).expect_refused(Reason::Paused);
    sim = sim.connect("web", 1).pause("web").arrive("web", 1).expect_waiting(Reason::LaneFull);
    sim = sim.connect("cron", 2).pause("cron").resume("cron", 10_000);
    assert_eq!(sim.guard.begin(sim.now, LinkId(4), true), Begun::Go { counted: false }, "not held by a ramp");
    sim = sim.arrive("cron", 1).expect_waiting(Reason::Paused).resume("cron", 0).expect("cron", 3, 0);
    sim = sim.log_in(6).sample(20, 19).expect_state("cron", Shedding);
    sim = sim.arrive("cron", 1).expect_waiting(Reason::Shed).pause("cron").expect("cron", 3, 1);
    assert_eq!(sim.row("cron").shed, 1);
}

#[test]
fn who_passes_a_pause_is_on_record_once_in_ten_seconds() {
    let mut sim = Sim::new(vec![lane("cron", 9, |_| {})]).connect("cron", 1).pause("cron").nested(true);
    let said = |sim: &Sim| sim.timeline("exempt");
    sim = sim.connect("cron", 3);
    assert_eq!(sim.guard.begin(sim.now, LinkId(1), true), Begun::Go { counted: false });
    sim = sim.advance_ms(9_999).connect("cron", 1);
    assert_eq!(said(&sim).len(), 1);
    sim = sim.advance_ms(1).connect("cron", 1);
    assert!(said(&sim)[1].contains("(6 links and transactions"), "{:?}", said(&sim));
}

#[test]
fn after_a_pause_the_wait_begins_anew() {
    let cron = lane("cron", 1, |lane| lane.wait_timeout = ms(1000));
    Sim::new(vec![cron])
        .connect("cron", 1)
        .arrive("cron", 1)
        .advance_ms(900)
        .pause("cron")
        .advance_ms(5000)
        .resume("cron", 0)
        .advance_ms(999)
        .expect("cron", 1, 1)
        .advance_ms(1)
        .expect_refusals(&[(2, Reason::LaneFull)]);
}

#[test]
fn pause_hold_timeout_bounds_links_and_transactions_alike() {
    let cron = lane("cron", 8, |lane| lane.pause_hold_timeout = Some(ms(2000)));
    let mut sim = Sim::new(vec![cron]).connect("cron", 1).advance_ms(5000).pause("cron");
    assert_eq!(sim.begin(1), Begun::Hold(Reason::Paused));
    let sim = sim.arrive("cron", 1).advance_ms(1999).expect("cron", 1, 2).advance_ms(1).expect("cron", 1, 0);
    let rejected = |action: &Action| matches!(action, Action::RejectHeld(LinkId(1), refusal) if refusal.reason == Reason::PauseHoldTimeout);
    assert!(sim.actions.iter().any(rejected));
    sim.expect_refusals(&[(2, Reason::PauseHoldTimeout)]);
}

#[test]
fn a_pause_with_reject_refuses_links_and_transactions() {
    let mut sim =
        Sim::new(vec![lane("cron", 8, |lane| lane.on_pause = Disposition::Reject)]).connect("cron", 1);
    assert!(sim.guard.gate(sim.lane("cron")).is_open());
    sim = sim.pause("cron");
    assert!(!sim.guard.gate(sim.lane("cron")).is_open());
    assert!(matches!(sim.begin(1), Begun::Reject(refusal) if refusal.reason == Reason::Paused));
    sim.arrive("cron", 1).expect_refused(Reason::Paused);
}

#[test]
fn a_pause_ends_by_itself() {
    let sim = Sim::new(vec![lane("cron", 8, |_| {})]);
    let cron = sim.lane("cron");
    let sim = sim.call(|guard, now| guard.pause(now, cron, None, Some(now + ms(3000)), "me", "why"));
    assert_eq!(sim.guard.pauses().len(), 1);
    let sim = sim
        .arrive("cron", 1)
        .advance_ms(2999)
        .expect_state("cron", Paused)
        .advance_ms(1)
        .expect("cron", 1, 0);
    assert!(sim.guard.pauses().is_empty() && sim.actions.contains(&Action::PausesChanged));
}

#[test]
fn freeze_spares_protected_lanes_and_tells_what_it_does_not_reach() {
    let admin = lane("admin", 2, |lane| {
        lane.protected = true;
        lane.freeze = true;
    });
    let mut sim = Sim::new(vec![admin, lane("cron", 8, |lane| lane.freeze = true), lane("web", 8, |_| {})]);
    let frozen = sim.guard.freeze(sim.now, None, "me", "incident");
    let names: Vec<_> = frozen.beyond.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["admin", "web", "other"]);
    sim.expect_state("cron", Paused).expect_state("admin", Open).expect_state("web", Open);
}

#[test]
fn a_freeze_neither_replaces_nor_shortens_a_pause() {
    let lanes = vec![lane("cron", 8, |lane| lane.freeze = true), lane("queue", 8, |lane| lane.freeze = true)];
    let mut sim = Sim::new(lanes).pause("cron");
    let frozen = sim.guard.freeze(sim.now, Some(sim.now + ms(600_000)), "they", "incident");
    let pauses = sim.guard.pauses();
    assert_eq!((&*pauses[0].by, pauses[0].until), ("me", None));
    assert_eq!(
        (&*frozen.paused, &*frozen.already),
        (&["queue".into()][..], &[("cron".into(), "me".to_owned())][..])
    );
    let sim = sim.advance_ms(1);
    assert_eq!(sim.timeline("freeze"), ["paused queue for 600 s: incident; paused already: cron (by me)"]);
    assert_eq!(
        (&*sim.row("cron").reason, &*sim.row("queue").reason),
        ("", "incident (for 600 s, 600 s left)")
    );
}

#[test]
fn a_pause_with_an_end_says_when_and_a_ramp_how_long() {
    let sim = Sim::new(vec![lane("cron", 8, |_| {}), lane("web", 8, |_| {}), lane("live", 8, |_| {})]);
    let cron = sim.lane("cron");
    let until = Some(sim.now + ms(90_000));
    let sim = sim.call(|guard, now| guard.pause(now, cron, None, until, "me", "why")).advance_ms(30_500);
    assert_eq!(sim.timeline("pause"), ["new links and transactions are held for 90 s: why"]);
    assert_eq!(sim.row("cron").reason, "why (for 90 s, 59.5 s left)");
    let sim = sim.pause("web").pause("live").call(|guard, now| guard.resume_all(now, Some(ms(8_000)), "me"));
    let texts = ["one after the other over 8 s: cron, web, live", "in 10 steps over 2.7 s"];
    assert_eq!(sim.timeline("resume"), texts);
}

#[test]
fn a_lane_that_is_not_stopped_is_not_resumed() {
    let mut sim = Sim::new(vec![lane("cron", 8, |_| {}), lane("web", 8, |_| {})]).pause("cron");
    let (cron, web) = (sim.lane("cron"), sim.lane("web"));
    assert!(!sim.guard.resume(sim.now, web, None, "me") && sim.guard.resume(sim.now, cron, None, "me"));
    assert_eq!(sim.guard.resume_all(sim.now, None, "me"), 0);
    sim = sim.pause("cron").pause("web");
    assert_eq!(sim.guard.resume_all(sim.now, Some(ms(1000)), "me"), 2);
    let sim = sim.advance_ms(1);
    assert_eq!(sim.timeline("resume").len(), 3, "{:?}", sim.timeline("resume"));
}

#[test]
fn a_restored_pause_is_the_one_it_was_and_not_in_the_timeline() {
    let lanes = || vec![lane("cron", 8, |_| {}), lane("web", 10, |_| {})];
    let sim = Sim::new(lanes());
    let (cron, until) = (sim.lane("cron"), Some(sim.now + ms(600_000)));
    let sim = sim.call(|guard, now| guard.pause(now, cron, Some(Disposition::Reject), until, "me", "why"));
    let mut records = sim.pause("web").resume("web", 10_000).guard.pauses();
    records[0].before = ms(60_000);
    let mut new = Sim::new(lanes());
    for record in &records {
        assert!(new.guard.restore_pause(new.now, record));
    }
    assert_eq!(new.guard.pauses(), records);
    records[0].lane = "gone".into();
    assert!(!new.guard.restore_pause(new.now, &records[0]));
    let new = new.advance_ms(1).expect_state("web", Ramping);
    assert!(!new.actions.iter().any(|action| matches!(action, Action::Timeline { .. })), "{:?}", new.actions);
    assert_eq!(
        (&*new.row("cron").paused_by, &*new.row("cron").reason),
        ("me", "why (for 660 s, 600 s left)")
    );
    new.arrive("cron", 1).expect_refused(Reason::Paused);
}

#[test]
fn a_ramp_grows_in_steps_for_links_and_transactions() {
    let mut sim = Sim::new(vec![lane("cron", 10, |_| {})]).connect("cron", 3).pause("cron");
    for link in 1..=3 {
        assert_eq!(sim.begin(link), Begun::Hold(Reason::Paused));
    }
    sim = sim.resume("cron", 10_000).expect_state("cron", Ramping);
    assert_eq!(sim.released(), [1]);
    assert_eq!(sim.begin(1), Begun::Go { counted: true });
    sim = sim.advance_ms(1000);
    assert_eq!(sim.released(), [1, 2]);
    sim = sim.call(|guard, now| guard.end(now, LinkId(1)));
    assert_eq!(sim.released(), [1, 2, 3], "the end of one makes room for the next");
    sim = sim.arrive("cron", 1).expect_waiting(Reason::Paused).advance_ms(1000).expect("cron", 3, 1);
    sim = sim.advance_ms(1000).expect("cron", 4, 0).advance_ms(6999).expect_state("cron", Ramping);
    sim.advance_ms(1).expect_state("cron", Open);
}

#[test]
fn a_ramp_counts_what_was_under_way() {
    let mut sim = Sim::new(vec![lane("cron", 10, |_| {})]).connect("cron", 2).pause("cron");
    assert_eq!(sim.begin(2), Begun::Hold(Reason::Paused));
    let cron = sim.lane("cron");
    sim = sim.call(|guard, now| guard.unhold(now, LinkId(2)));
    sim = sim.call(|guard, now| {
        guard.resume(now, cron, Some(ms(10_000)), "me");
        guard.seed_transactions(now, &[LinkId(1)]);
    });
    assert_eq!(sim.begin(2), Begun::Hold(Reason::Paused), "the one step is taken");
    sim = sim.call(|guard, now| guard.end(now, LinkId(1)));
    assert_eq!(sim.released(), [2]);
}

#[test]
fn a_ramp_pauses_again_when_usage_grows_and_waits_for_samples() {
    let cron = lane("cron", 10, |lane| lane.shed_above = Some(75.0));
    let mut settings = settings(vec![cron]);
    settings.limits.monitored = true;
    let sim = Sim::with(settings).sample(20, 2).pause("cron").resume("cron", 10_000);
    let sim = sim.advance_ms(4000).expect_state("cron", Ramping);
    assert_eq!(sim.row("cron").quota, 1, "no sample of this step yet");
    let sim = sim.sample(20, 2).advance_ms(10);
    assert_eq!(sim.row("cron").quota, 2);
    let sim = sim.advance_ms(10).sample(20, 15).expect_state("cron", Paused);
    let row = sim.row("cron");
    assert_eq!((&*row.paused_by, &*row.reason), ("ramp", "usage 75.0 % reached 75 % in step 2 of 10"));
    assert_eq!(sim.guard.pauses().len(), 1);
}

#[test]
fn resume_all_opens_one_lane_after_the_other_best_first() {
    let lanes = vec![lane("late", 4, |lane| lane.priority = 7), lane("early", 4, |lane| lane.priority = 1)];
    Sim::new(lanes)
        .pause("late")
        .pause("early")
        .call(|guard, now| guard.resume_all(now, Some(ms(4000)), "me"))
        .expect_state("early", Ramping)
        .expect_state("late", Paused)
        .advance_ms(2000)
        .expect_state("early", Open)
        .expect_state("late", Ramping)
        .advance_ms(2000)
        .expect_state("late", Open);
}
