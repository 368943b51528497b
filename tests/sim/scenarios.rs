//! One behaviour each.

use std::sync::Arc;
use std::time::Duration;

use pgweir::lanes::guard::{Action, Arrived, Begun, DialFailure, Guard};
use pgweir::lanes::ids::LinkId;
use pgweir::lanes::sample::Session;
use pgweir::lanes::settings::{ApplicationSettings, Disposition, Glob};
use pgweir::reason::Reason;
use pgweir::snapshot::LaneState::{Open, Over, Paused, Shedding};

use crate::scenario::{Sim, lane, session, settings};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn a_full_lane_queues_and_a_freed_slot_goes_to_the_first() {
    Sim::new(vec![lane("web", 2, |_| {})])
        .connect("web", 4)
        .expect_waiting(Reason::LaneFull)
        .expect("web", 2, 2)
        .close(1)
        .expect_grants(&[3])
        .expect("web", 2, 1);
}

#[test]
fn the_better_lane_is_served_first() {
    let batch = lane("batch", 4, |lane| lane.priority = 7);
    let mut settings = settings(vec![batch, lane("web", 4, |lane| lane.priority = 0)]);
    settings.limits.monitored = true;
    Sim::with(settings)
        .sample(2, 0)
        .connect("batch", 3)
        .arrive("web", 1)
        .expect_waiting(Reason::UpstreamBudget)
        .close(1)
        .expect_grants(&[4])
        .log_in(4)
        .close(2)
        .expect_grants(&[4, 3]);
}

#[test]
fn max_waiting_bounds_the_queue() {
    Sim::new(vec![lane("web", 1, |lane| lane.max_waiting = 2)])
        .arrive("web", 3)
        .expect_waiting(Reason::LaneFull)
        .arrive("web", 1)
        .expect_refused(Reason::QueueFull)
        .expect("web", 1, 2);
}

#[test]
fn a_wait_ends_with_the_reason_and_its_figures() {
    let sim =
        Sim::new(vec![lane("web", 1, |lane| lane.wait_timeout = ms(500))]).connect("web", 1).arrive("web", 1);
    let sim = sim.advance_ms(499).expect("web", 1, 1).advance_ms(1).expect_refusals(&[(2, Reason::LaneFull)]);
    let Some(Action::Refuse(_, refusal)) = sim.actions.last() else { panic!("{:?}", sim.actions) };
    assert_eq!(&*refusal.detail, "lane web: 1 of 1 slots, 1 waiting; waited 0.5 s");
    assert!(refusal.hint.contains("pgweir"));
    sim.expect("web", 1, 0);
}

#[test]
fn who_may_not_wait_is_told_at_once() {
    Sim::new(vec![lane("web", 1, |lane| lane.wait_timeout = ms(0))])
        .connect("web", 1)
        .arrive("web", 1)
        .expect_refused(Reason::LaneFull)
        .expect("web", 1, 0);
}

#[test]
fn one_who_hangs_up_leaves_the_queue_at_once() {
    Sim::new(vec![lane("web", 1, |_| {})])
        .arrive("web", 3)
        .call(|guard, now| guard.hang_up(now, LinkId(2)))
        .expect("web", 1, 1)
        .call(|guard, now| guard.hang_up(now, LinkId(1)))
        .expect_grants(&[3]);
}

#[test]
fn a_reserve_is_there_whatever_other_lanes_do() {
    let mut settings = settings(vec![lane("live", 4, |lane| lane.reserve = 2), lane("batch", 9, |_| {})]);
    settings.limits.monitored = true;
    Sim::with(settings)
        .sample(6, 1)
        .connect("batch", 9)
        .expect("batch", 3, 6)
        .expect_waiting(Reason::UpstreamBudget)
        .advance_ms(1)
        .connect("live", 3)
        .expect("live", 2, 1)
        .close(1)
        .expect("live", 2, 1)
        .expect("batch", 3, 5);
}

#[test]
fn an_application_has_a_quota_across_lanes() {
    let mut settings = settings(vec![lane("web", 9, |_| {}), lane("live", 9, |lane| lane.reserve = 1)]);
    settings.applications = vec![ApplicationSettings {
        pattern: Glob { text: "odoo*".into(), case_insensitive: false },
        name: "odoo".into(),
        quota: Some(3),
        lanes: vec!["web".into(), "live".into()],
    }];
    Sim::with(settings)
        .application("odoo")
        .connect("web", 3)
        .expect_waiting(Reason::ApplicationFull)
        .expect("web", 2, 1)
        .application("psql")
        .connect("web", 1)
        .expect("web", 3, 1)
        .application("odoo")
        .connect("live", 2)
        .expect("live", 1, 1);
}

#[test]
fn one_stopped_by_its_own_limit_does_not_stop_those_behind_it() {
    Sim::new(vec![lane("web", 9, |lane| lane.per_user = 1)])
        .user("a")
        .connect("web", 2)
        .expect_waiting(Reason::UserLimit)
        .user("b")
        .connect("web", 1)
        .expect("web", 2, 1);
}

#[test]
fn logins_are_a_quarter_of_the_quota() {
    Sim::new(vec![lane("web", 8, |_| {})])
        .arrive("web", 3)
        .expect_waiting(Reason::LoginLimit)
        .expect("web", 2, 1)
        .log_in(1)
        .expect_grants(&[3]);
}

#[test]
fn all_logins_have_a_limit_but_a_reserve_may_always_start_one() {
    let mut settings = settings(vec![lane("web", 40, |_| {}), lane("live", 8, |lane| lane.reserve = 2)]);
    settings.limits.max_logins = 2;
    let sim = Sim::with(settings)
        .arrive("web", 3)
        .expect_waiting(Reason::LoginLimit)
        .expect("web", 2, 1)
        .arrive("live", 2)
        .expect("live", 1, 1)
        .expect_waiting(Reason::LoginLimit);
    assert!(sim.guard.pressure(LinkId(1)), "others wait for its login");
    assert!(!sim.log_in(4).guard.pressure(LinkId(4)), "its login is over");
}

#[test]
fn an_earmark_holds_back_a_lane_that_could_log_in() {
    let web = lane("web", 3, |lane| lane.priority = 0);
    let mut settings = settings(vec![lane("batch", 8, |lane| lane.priority = 7), web]);
    settings.limits.monitored = true;
    let sim = Sim::with(settings).sample(20, 17).arrive("web", 3).expect("web", 1, 2);
    // 3 to give, 1 taken, 2 kept for web; batch waits though nothing of its own stops it.
    let sim = sim.log_in(1).expect("web", 2, 1).arrive("batch", 1).expect("batch", 0, 1);
    sim.log_in(2).log_in(3).expect("web", 3, 0).expect("batch", 0, 1).close(1).expect("batch", 1, 0);
}

#[test]
fn a_process_more_waits_outside_and_those_inside_find_room() {
    let cron = lane("cron", 9, |lane| lane.links_per_process = 3);
    let sim = Sim::new(vec![cron]).alone(true).connect("cron", 5).expect("cron", 3, 2);
    let sim = sim.expect_waiting(Reason::ProcessLimit);
    // Without the limit five first links would leave four slots for ten more: nobody would have its third.
    let sim = sim.alone(false).connect("cron", 6).expect("cron", 9, 2);
    let sim = sim.arrive("cron", 1).expect_waiting(Reason::LaneFull).expect("cron", 9, 3);
    let sim = sim.close(6).expect("cron", 9, 2);
    sim.close(1).expect("cron", 9, 1);
}

#[test]
fn a_process_that_needs_more_than_there_is_comes_in_alone() {
    let cron = lane("cron", 2, |lane| lane.links_per_process = 3);
    Sim::new(vec![cron])
        .alone(true)
        .connect("cron", 2)
        .expect("cron", 1, 1)
        .alone(false)
        .connect("cron", 1)
        .expect("cron", 2, 1);
}

#[test]
fn connect_rate_spreads_new_connections() {
    Sim::new(vec![lane("web", 40, |lane| lane.connect_rate = Some(2.0))])
        .connect("web", 4)
        .expect_waiting(Reason::ConnectRate)
        .expect("web", 2, 2)
        .advance_ms(499)
        .expect("web", 2, 2)
        .advance_ms(1)
        .expect("web", 3, 1)
        .advance_ms(500)
        .expect("web", 4, 0);
}

#[test]
fn shedding_has_two_thresholds_and_a_dwell() {
    let cron = lane("cron", 8, |lane| lane.shed_above = Some(75.0));
    let mut settings = settings(vec![cron, lane("web", 8, |_| {})]);
    settings.limits.monitored = true;
    Sim::with(settings)
        .sample(20, 15)
        .expect_state("cron", Shedding)
        .arrive("cron", 1)
        .expect_waiting(Reason::Shed)
        .connect("web", 1)
        .expect("web", 1, 0)
        .advance_ms(1000)
        .sample(20, 5)
        .expect_state("cron", Shedding)
        .advance_ms(3999)
        .sample(20, 13)
        .advance_ms(1000)
        .expect_state("cron", Shedding)
        .sample(20, 11)
        .expect_state("cron", Open)
        .expect("cron", 1, 0);
}

#[test]
fn an_open_lane_says_why_somebody_waits() {
    let sim = Sim::new(vec![lane("web", 1, |_| {})]).connect("web", 1);
    assert_eq!(sim.row("web").reason, "");
    let sim = sim.arrive("web", 1).expect_state("web", Open);
    assert_eq!(sim.row("web").reason, "waiting: lane_full, the lane's connection quota is used up");
}

#[test]
fn a_shed_lane_says_what_keeps_it_shed() {
    let cron = lane("cron", 8, |lane| lane.shed_above = Some(75.0));
    let mut settings = settings(vec![cron]);
    settings.limits.monitored = true;
    let sim = Sim::with(settings).sample(20, 15);
    assert_eq!(sim.row("cron").reason, "usage 75.0 %, shed_above 75");
    let sim = sim.advance_ms(2000).sample(20, 1);
    assert_eq!(sim.row("cron").reason, "usage 5.0 %, below shed_below 65, dwell for another 3 s");
    assert_eq!(sim.advance_ms(3000).advance_ms(2500).row("cron").reason, "the monitor is stale");
}

#[test]
fn own_slots_shed_between_samples() {
    let cron = lane("cron", 8, |lane| lane.shed_above = Some(75.0));
    let mut settings = settings(vec![cron, lane("web", 8, |_| {})]);
    settings.limits.monitored = true;
    Sim::with(settings)
        .sample(20, 13)
        .connect("web", 1)
        .expect_state("cron", Open)
        .connect("web", 1)
        .expect_state("cron", Shedding);
}

#[test]
fn shed_with_reject_refuses_those_who_wait_already() {
    let reports = lane("reports", 1, |lane| {
        lane.shed_above = Some(60.0);
        lane.on_shed = Disposition::Reject;
    });
    let mut settings = settings(vec![reports]);
    settings.limits.monitored = true;
    let sim = Sim::with(settings).sample(20, 1).connect("reports", 2).sample(20, 15);
    sim.expect_refusals(&[(2, Reason::Shed)]).arrive("reports", 1).expect_refused(Reason::Shed);
}

#[test]
fn a_stale_monitor_sheds_lanes_with_a_threshold_and_the_others_go_on() {
    let cron = lane("cron", 8, |lane| lane.shed_above = Some(75.0));
    let mut settings = settings(vec![cron, lane("web", 8, |_| {})]);
    settings.limits.monitored = true;
    Sim::with(settings)
        .arrive("web", 1)
        .expect_waiting(Reason::MonitorStale)
        .advance_ms(5000)
        .expect("web", 1, 0)
        .arrive("cron", 1)
        .expect_waiting(Reason::MonitorStale)
        .advance_ms(6000)
        .sample(20, 1)
        .expect("cron", 1, 0);
}

#[test]
fn a_stale_monitor_does_not_make_room() {
    let mut settings = settings(vec![lane("web", 40, |_| {})]);
    settings.limits.monitored = true;
    settings.limits.headroom = 3;
    Sim::with(settings)
        .sample(20, 12)
        .connect("web", 6)
        .expect("web", 5, 1)
        .advance_ms(6000)
        .expect("web", 5, 1)
        .connect("web", 1)
        .expect_waiting(Reason::UpstreamBudget);
}

#[test]
fn before_the_first_sample_only_protected_lanes_come_in() {
    let mut settings = settings(vec![lane("admin", 4, |lane| lane.protected = true)]);
    settings.limits.monitored = true;
    Sim::with(settings).arrive("admin", 1).expect("admin", 1, 0).arrive("other", 1).expect("other", 0, 1);
}

#[test]
fn a_redial_keeps_its_place_and_probes_one_at_a_time() {
    Sim::new(vec![lane("web", 40, |_| {})])
        .arrive("web", 3)
        .dial_fails(1, false)
        .expect_waiting(Reason::UpstreamDown)
        .dial_fails(2, false)
        .arrive("web", 1)
        .expect_waiting(Reason::UpstreamDown)
        .expect("web", 1, 3)
        .advance_ms(200)
        .expect_grants(&[1])
        .dial_fails(1, false)
        .advance_ms(350)
        .expect_grants(&[1, 1])
        .call(|guard, now| guard.upstream_answered(now, LinkId(1)))
        .expect_grants(&[1, 1, 2, 4]);
}

#[test]
fn without_a_server_all_wait_and_dial_at_once_when_there_is_one() {
    Sim::new(vec![lane("admin", 4, |lane| lane.protected = true), lane("web", 40, |_| {})])
        .call(|guard, now| guard.server_changed(now, None))
        .arrive("admin", 1)
        .arrive("web", 2)
        .expect_waiting(Reason::NoPrimary)
        .advance_ms(5000)
        .expect_grants(&[])
        .call(|guard, now| guard.server_changed(now, Some(&[])))
        .expect_grants(&[1, 2, 3]);
}

#[test]
fn nobody_waits_for_a_server_longer_than_for_anything_else() {
    let sim = Sim::new(vec![lane("web", 40, |lane| lane.wait_timeout = ms(1000))])
        .call(|guard, now| guard.server_changed(now, None))
        .arrive("web", 1);
    sim.advance_ms(999).expect_refusals(&[]).advance_ms(1).expect_refusals(&[(1, Reason::NoPrimary)]);
}

#[test]
fn a_dial_that_was_given_up_keeps_its_place_and_opens_no_breaker() {
    let moved = |guard: &mut Guard, now| guard.dial_failed(now, LinkId(1), DialFailure::Moved, true);
    Sim::new(vec![lane("web", 40, |_| {})])
        .arrive("web", 1)
        .call(|guard, now| guard.server_changed(now, Some(&[])))
        .call(moved)
        .expect("web", 1, 0)
        .arrive("web", 1)
        .expect("web", 2, 0);
}

#[test]
fn nobody_is_let_in_to_another_server_by_what_was_seen_of_the_last_one() {
    let mut settings =
        settings(vec![lane("admin", 4, |lane| lane.protected = true), lane("web", 40, |_| {})]);
    settings.limits.monitored = true;
    Sim::with(settings)
        .sample(20, 0)
        .connect("web", 1)
        .advance_ms(10)
        .call(|guard, now| guard.server_changed(now, Some(&[])))
        .arrive("web", 1)
        .expect_waiting(Reason::MonitorStale)
        .arrive("admin", 1)
        .expect("admin", 1, 0)
        .advance_ms(10)
        .sample(20, 19)
        .expect("web", 1, 1)
        .advance_ms(10)
        .sample(20, 0)
        .expect("web", 2, 0);
}

#[test]
fn what_fails_late_on_another_server_is_not_the_new_ones_trouble() {
    Sim::new(vec![lane("web", 40, |_| {})])
        .arrive("web", 3)
        .call(|guard, now| (1..=3).for_each(|link| guard.dialling(now, LinkId(link), None)))
        .advance_ms(1)
        .call(|guard, now| guard.server_changed(now, Some(&[])))
        .call(|guard, now| guard.dial_failed(now, LinkId(1), DialFailure::Full, false))
        .call(|guard, now| guard.dial_failed(now, LinkId(2), DialFailure::Down(String::new()), false))
        .arrive("web", 1)
        .expect("web", 2, 0)
        // Nor does a late success end it.
        .dial_fails(4, false)
        .expect("web", 1, 1)
        .call(|guard, now| guard.upstream_answered(now, LinkId(3)))
        .call(|guard, now| guard.login_done(now, LinkId(3), 7))
        .expect("web", 1, 1);
}

#[test]
fn one_pid_on_two_servers_is_two_backends() {
    let mut settings = settings(vec![lane("web", 40, |_| {})]);
    settings.limits.monitored = true;
    let own = |pid: i32| Session { pid, ..session() };
    Sim::with(settings)
        .sample(20, 0)
        .connect("web", 2)
        .advance_ms(1)
        .call(|guard, now| guard.server_changed(now, Some(&[])))
        // A stranger has the pid of a link on the other server.
        .sample_of(20, vec![own(1001)])
        .call(|guard, now| assert_eq!(guard.usage_row(now).bypass, 1))
        // A new link's backend has the pid of another one there.
        .arrive("web", 1)
        .call(|guard, now| {
            guard.dialling(now, LinkId(3), None);
            guard.login_done(now, LinkId(3), 1002);
        })
        .expect("web", 3, 0);
}

#[test]
fn who_is_on_the_chosen_server_already_is_no_stranger_there() {
    let mut settings = settings(vec![lane("web", 40, |_| {})]);
    settings.limits.monitored = true;
    let own = |pid: i32| Session { pid, ..session() };
    // Left with nobody in its place, and chosen again; or another one, or one under another name, of which two are known to be on it.
    Sim::with(settings)
        .sample(20, 0)
        .connect("web", 3)
        .advance_ms(1)
        .call(|guard, now| guard.server_changed(now, None))
        .advance_ms(1)
        .call(|guard, now| {
            guard.server_changed(now, Some(&[(LinkId(1), 1001), (LinkId(3), 1003), (LinkId(9), 9)]))
        })
        .sample_of(20, vec![own(1001), own(1002), own(1003)])
        .call(|guard, now| assert_eq!(guard.usage_row(now).bypass, 1))
        // It ends where it is counted, and is counted until then.
        .call(|guard, now| guard.closing(now, LinkId(1)))
        .expect("web", 3, 0)
        .call(|guard, now| guard.closing(now, LinkId(2)))
        .expect("web", 2, 0)
        // From there to another one, and back.
        .advance_ms(1)
        .call(|guard, now| guard.server_changed(now, Some(&[])))
        .advance_ms(1)
        .call(|guard, now| guard.server_changed(now, Some(&[(LinkId(3), 1003)])))
        .sample_of(20, vec![own(1003)])
        .call(|guard, now| assert_eq!(guard.usage_row(now).bypass, 0));
}

#[test]
fn what_ends_on_another_server_is_not_counted() {
    Sim::new(vec![lane("web", 3, |_| {})])
        .connect("web", 3)
        .call(|guard, now| guard.closing(now, LinkId(1)))
        .expect("web", 3, 0)
        .advance_ms(1)
        .call(|guard, now| guard.server_changed(now, Some(&[])))
        .expect("web", 2, 0)
        .call(|guard, now| guard.zombie(now, LinkId(2)))
        .expect("web", 1, 0)
        .connect("web", 1)
        .call(|guard, now| guard.closing(now, LinkId(4)))
        .expect("web", 2, 0);
}

#[test]
fn a_redial_ends_with_the_wait() {
    let sim = Sim::new(vec![lane("web", 40, |lane| lane.wait_timeout = ms(1000))])
        .arrive("web", 1)
        .dial_fails(1, false);
    sim.advance_ms(999).dial_fails(1, false).advance_ms(1).expect_refusals(&[(1, Reason::UpstreamDown)]);
}

#[test]
fn a_protected_lane_dials_on_with_a_back_off_of_its_own() {
    Sim::new(vec![lane("admin", 4, |lane| lane.protected = true), lane("web", 9, |_| {})])
        .arrive("web", 1)
        .dial_fails(1, false)
        .arrive("admin", 1)
        .expect("admin", 1, 0)
        .dial_fails(2, false)
        .expect("admin", 0, 1)
        .advance_ms(151)
        .expect("admin", 1, 0);
}

#[test]
fn too_many_clients_is_full_until_a_later_sample() {
    let cron = lane("cron", 8, |lane| lane.shed_above = Some(75.0));
    let mut settings = settings(vec![cron, lane("web", 8, |_| {})]);
    settings.limits.monitored = true;
    let sim = Sim::with(settings).sample(20, 2).advance_ms(10).arrive("web", 1).dial_fails(1, true);
    assert_eq!(sim.guard.usage_percent(), Some(100.0));
    assert_eq!(sim.actions.iter().filter(|action| **action == Action::SampleNow).count(), 1);
    let sim =
        sim.expect_waiting(Reason::UpstreamFull).expect_state("cron", Shedding).advance_ms(10).sample(20, 2);
    assert_eq!(sim.guard.usage_percent(), Some(10.0));
    sim.advance_ms(200).expect("web", 1, 0);
}

#[test]
fn without_a_monitor_too_many_clients_ends_after_ten_seconds() {
    let sim = Sim::new(vec![lane("web", 8, |_| {})]).call(|guard, now| guard.too_many_clients(now));
    let sim = sim.advance_ms(9_999);
    assert_eq!(sim.guard.usage_percent(), Some(100.0));
    assert_eq!(sim.advance_ms(1).guard.usage_percent(), None);
}

#[test]
fn a_visit_keeps_its_place_at_home_and_may_put_the_lane_over() {
    let sim =
        Sim::new(vec![lane("web", 2, |_| {}), lane("cron", 1, |_| {})]).connect("cron", 1).connect("web", 2);
    let cron = sim.lane("cron");
    let sim = sim
        .call(|guard, now| guard.visit(now, LinkId(2), cron))
        .expect("cron", 2, 0)
        .expect_state("cron", Over);
    sim.arrive("web", 1)
        .expect_waiting(Reason::LaneFull)
        .expect("web", 1, 1)
        .call(|guard, now| guard.leave(now, LinkId(2)))
        .expect("web", 2, 1)
        .expect("cron", 1, 0);
}

#[test]
fn a_move_for_good_takes_the_slot_along() {
    let sim = Sim::new(vec![lane("web", 1, |_| {}), lane("live", 1, |_| {})]).connect("web", 2);
    let live = sim.lane("live");
    sim.call(|guard, now| guard.move_link(now, LinkId(1), live, None))
        .expect("live", 1, 0)
        .expect_grants(&[2]);
}

#[test]
fn a_held_link_that_moves_asks_again() {
    let mut sim =
        Sim::new(vec![lane("web", 1, |_| {}), lane("cron", 1, |_| {})]).connect("cron", 1).pause("cron");
    assert_eq!(sim.begin(1), Begun::Hold(Reason::Paused));
    let web = sim.lane("web");
    let sim = sim.call(|guard, now| guard.move_link(now, LinkId(1), web, None));
    assert_eq!(sim.released(), [1]);
}

#[test]
fn a_closing_slot_counts_until_it_is_closed_and_a_zombie_until_a_sample() {
    let mut settings = settings(vec![lane("web", 1, |_| {})]);
    settings.limits.monitored = true;
    Sim::with(settings)
        .sample(20, 1)
        .connect("web", 2)
        .call(|guard, now| guard.closing(now, LinkId(1)))
        .expect("web", 1, 1)
        .call(|guard, now| guard.zombie(now, LinkId(1)))
        .expect("web", 1, 1)
        .advance_ms(10)
        .sample(20, 1)
        .expect_grants(&[2]);
}

#[test]
fn without_samples_a_zombie_lives_five_minutes() {
    Sim::new(vec![lane("web", 1, |lane| lane.wait_timeout = ms(600_000))])
        .connect("web", 2)
        .call(|guard, now| guard.zombie(now, LinkId(1)))
        .advance_ms(299_999)
        .expect("web", 1, 1)
        .advance_ms(1)
        .expect_grants(&[2]);
}

#[test]
fn a_lower_quota_admits_nobody_until_below() {
    let sim = Sim::new(vec![lane("web", 3, |_| {})]).connect("web", 3);
    let web = sim.lane("web");
    let sim = sim.call(|guard, now| guard.set_quota(now, web, 2)).expect_state("web", Over).connect("web", 1);
    sim.close(1).expect("web", 2, 1).close(2).expect("web", 2, 0);
}

#[test]
fn a_quota_below_the_reserve_is_refused() {
    let mut sim = Sim::new(vec![lane("web", 8, |lane| lane.reserve = 3)]);
    let web = sim.lane("web");
    let refused = sim.guard.set_quota(sim.now, web, 2).expect_err("below the reserve");
    assert!(refused.ends_with("below its reserve 3: lower the reserve in the configuration"), "{refused}");
    assert_eq!((sim.guard.set_quota(sim.now, web, 3), sim.row("web").quota), (Ok(()), 3));
}

#[test]
fn reserves_beyond_the_budget_are_on_record_once_per_change_and_refused_at_a_reload() {
    let with_reserve = |reserve| {
        let mut settings = settings(vec![
            lane("web", 20, |lane| lane.reserve = reserve),
            lane("live", 9, |lane| lane.reserve = 2),
        ]);
        settings.limits.monitored = true;
        settings.limits.headroom = 2;
        settings
    };
    let sim = Sim::with(with_reserve(10));
    assert_eq!(sim.guard.reserve_problem(), None, "not known yet");
    let mut sim = sim.sample(14, 1);
    assert_eq!(sim.guard.reserve_problem(), None);
    sim.guard.reload(sim.now, with_reserve(11)).expect_err("13 of 12");
    sim = sim.sample(13, 1).advance_ms(1).sample(13, 2);
    let text = "the reserves sum to 12 (web 10, live 2), more than the budget 11: max_connections 13 less 0 reserved less headroom 2";
    assert_eq!(sim.timeline("reserves_exceed_budget"), [text]);
    assert_eq!(sim.guard.reserve_problem().as_deref(), Some(text));
    sim = sim.sample(12, 1);
    assert_eq!(sim.timeline("reserves_exceed_budget").len(), 2);
    sim.guard.reload(sim.now, with_reserve(8)).expect("10 of 10");
    assert_eq!(sim.guard.reserve_problem(), None);
    let blind = |mut settings: pgweir::lanes::settings::Settings| {
        settings.limits.monitored = false;
        settings
    };
    sim.guard.reload(sim.now, blind(with_reserve(20))).expect("without a monitor nothing is known");
}

#[test]
fn a_reload_keeps_ids_retires_lanes_and_refuses_to_drop_a_pause() {
    let old = || vec![lane("web", 2, |_| {}), lane("cron", 2, |_| {})];
    let mut sim = Sim::new(old()).connect("cron", 1).pause("cron");
    let cron = sim.lane("cron");
    let errors =
        sim.guard.reload(sim.now, settings(vec![lane("web", 9, |_| {})])).expect_err("a pause is dropped");
    assert!(errors[0].contains("cron"), "{errors:?}");
    let mut sim = sim.expect_state("cron", Paused).resume("cron", 0).expect("web", 0, 0);
    let plan = sim.guard.reload(sim.now, settings(vec![lane("web", 9, |_| {})])).expect("nothing is paused");
    assert_eq!((plan.reclassify, sim.guard.lane("cron")), (vec![LinkId(1)], None));
    let mut sim = sim.expect("cron", 1, 0).expect_state("cron", Over);
    sim.guard.reload(sim.now, settings(old())).expect("a lane comes back");
    assert_eq!(sim.guard.lane("cron"), Some(cron));
}

#[test]
fn reclaim_counts_closing_slots_and_asks_worse_lanes_only_for_the_budget() {
    let idle = |lane: &mut pgweir::lanes::settings::LaneSettings| lane.reclaim_idle_after = Some(ms(1000));
    let sim =
        Sim::new(vec![lane("web", 2, idle), lane("batch", 2, idle)]).connect("batch", 1).connect("web", 4);
    let needs = sim.guard.wants_reclaim(sim.now);
    assert_eq!((needs.len(), needs[0].count), (1, 2));
    assert!(needs[0].concerns(sim.lane("web")) && !needs[0].concerns(sim.lane("batch")));
    let sim = sim.call(|guard, now| guard.closing(now, LinkId(2)));
    assert_eq!(sim.guard.wants_reclaim(sim.now)[0].count, 1);
}

#[test]
fn batch_gives_its_links_back_where_strangers_took_what_is_reserved() {
    let web = |lane: &mut pgweir::lanes::settings::LaneSettings| (lane.priority, lane.reserve) = (0, 4);
    let batch = |lane: &mut pgweir::lanes::settings::LaneSettings| lane.reclaim_idle_after = Some(ms(60_000));
    let mut settings = settings(vec![lane("web", 10, web), lane("batch", 10, batch)]);
    settings.limits.monitored = true;
    let sim = Sim::with(settings).sample(20, 2).connect("batch", 8).sample(20, 14);
    assert_eq!(sim.guard.wants_yield(sim.now), None, "nobody waits");
    let sim = sim.arrive("batch", 1).expect_waiting(Reason::UpstreamBudget);
    assert_eq!(sim.guard.wants_yield(sim.now), None, "nobody better waits");
    let sim = sim.arrive("web", 6).expect_waiting(Reason::UpstreamBudget);
    let batch = sim.lane("batch");
    assert_eq!(sim.guard.wants_yield(sim.now), Some((vec![(batch, 8)], 4)), "no more than the reserve");
    let sim = sim.call(|guard, now| guard.closing(now, LinkId(1)));
    assert_eq!(sim.guard.wants_yield(sim.now), Some((vec![(batch, 8)], 3)));
    // Two are too many for the budget; the third makes room.
    let sim = sim.close(1).close(2).expect("web", 0, 6).close(3).expect("web", 1, 5);
    assert_eq!(sim.guard.wants_yield(sim.now), Some((vec![(batch, 5)], 3)));
}

#[test]
fn harm_is_a_full_lane_with_waiters_or_usage() {
    let sim = Sim::new(vec![lane("web", 1, |_| {})]).connect("web", 1);
    let web = sim.lane("web");
    assert!(!sim.guard.harm(web, "app").full_with_waiters);
    let sim = sim.arrive("web", 1);
    assert!(sim.guard.harm(web, "app").full_with_waiters);
}

#[test]
fn observe_mode_records_and_lets_everybody_in() {
    let mut settings = settings(vec![lane("web", 1, |_| {})]);
    settings.limits.observe = true;
    let mut sim = Sim::with(settings).pause("web").arrive("web", 3).expect("web", 3, 0);
    assert_eq!(sim.last, Some(Arrived::Granted));
    assert!(sim.guard.gate(sim.lane("web")).is_open());
    assert_eq!(sim.begin(1), Begun::Go { counted: false });
    let observed =
        sim.actions.iter().filter(|action| matches!(action, Action::Timeline { event: "observed", .. }));
    assert_eq!(observed.count(), 1, "one entry stands for all");
}

#[test]
fn observe_mode_tells_what_would_be_done_and_counts_nobody_as_refused() {
    let reports = lane("reports", 5, |lane| {
        (lane.shed_above, lane.shed_below, lane.freeze) = (Some(70.0), 60.0, true);
        lane.on_shed = Disposition::Reject;
    });
    let mut settings = settings(vec![reports]);
    settings.limits.monitored = true;
    let enforcing = settings.clone();
    settings.limits.observe = true;
    let sim = Sim::with(settings).sample(100, 80).arrive("reports", 2);
    let texts = sim.timeline("shed");
    assert!(texts.len() == 1 && texts[0].starts_with("would shed: usage "), "{texts:?}");
    assert!(sim.row("reports").reason.starts_with("would shed: usage "), "{}", sim.row("reports").reason);
    let sum = |rows: Vec<(Arc<str>, Reason, u64)>| rows.iter().map(|(.., count)| count).sum::<u64>();
    assert_eq!((sum(sim.guard.refusals()), sum(sim.guard.refusals_carried_out())), (2, 0));
    let sim = sim.call(|guard, now| guard.freeze(now, None, "me", "why"));
    assert_eq!(sim.timeline("freeze"), ["would pause reports: why"]);
    let sim = sim.call(|guard, now| guard.reload(now, enforcing).expect("a reload"));
    assert!(
        sim.timeline("enforce")[0].ends_with("paused, as somebody asked while nothing was held: reports")
    );
}
