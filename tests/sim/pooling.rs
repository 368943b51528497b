//! Session pooling: whose connection is kept, and for whom it is given up.

use std::time::Duration;

use pgweir::lanes::guard::{Action, Arrival, Arrived, DialFailure};
use pgweir::lanes::ids::LinkId;
use pgweir::lanes::sample::Session;
use pgweir::lanes::settings::{LaneSettings, Pooling};
use pgweir::reason::Reason;

use crate::scenario::{Sim, lane, packet, session, settings};

fn pooling(lane: &mut LaneSettings) {
    lane.pooling = Some(Pooling {
        lifetime: Duration::from_secs(100),
        idle_timeout: Duration::from_secs(10),
        check_after: Duration::ZERO,
        min_size: 0,
        keeps_reserve: false,
        normalises: false,
    });
}

fn one(quota: u32) -> Sim {
    Sim::new(vec![lane("web", quota, pooling)])
}

fn closed(sim: &Sim) -> Vec<u64> {
    let closed = |action: &Action| match action {
        Action::ClosePooled(link) => Some(link.0),
        _ => None,
    };
    sim.actions.iter().filter_map(closed).collect()
}

fn slots(sim: &Sim, lane: &str) -> u32 {
    let rows = sim.guard.rows(sim.now);
    rows.iter().find(|row| &*row.lane == lane).map_or(0, |row| row.slots)
}

#[test]
fn the_slot_goes_from_link_to_link_and_is_counted_all_the_way() {
    let sim = one(1).key("k").connect("web", 1).pool("web", 1);
    assert!(sim.pooled && slots(&sim, "web") == 1);
    let sim = sim.arrive("web", 1);
    assert_eq!(sim.last, Some(Arrived::Reused(LinkId(1))));
    assert_eq!((slots(&sim, "web"), sim.guard.logins()), (1, 0));
    let mut sim = sim.arrive("web", 1);
    assert_eq!(sim.last, Some(Arrived::Waiting(Reason::LaneFull)));
    sim.guard.revived(sim.now, LinkId(2));
    // The one who waits gets it without a dial.
    let sim = sim.pool("web", 2);
    assert!(sim.actions.contains(&Action::GrantPooled(LinkId(3), LinkId(2))));
    assert_eq!((slots(&sim, "web"), sim.guard.audit()), (1, Ok(())));
}

#[test]
fn another_key_evicts_the_one_unused_for_longest_and_waits_for_its_end() {
    let sim = one(2).key("a").connect("web", 1).pool("web", 1);
    let sim = sim.advance_ms(10).key("b").connect("web", 1).pool("web", 2);
    let sim = sim.key("c").arrive("web", 1);
    assert_eq!(sim.last, Some(Arrived::Waiting(Reason::LaneFull)));
    assert_eq!((closed(&sim), slots(&sim, "web")), (vec![1], 2));
    let sim = sim.close(1);
    assert!(sim.actions.contains(&Action::Grant(LinkId(3))));
    assert_eq!((closed(&sim), slots(&sim, "web")), (vec![1], 2));
}

#[test]
fn one_waiter_evicts_one() {
    let sim = one(3).key("a").connect("web", 3).pool("web", 1).pool("web", 2).pool("web", 3);
    let sim = sim.key("b").arrive("web", 1).advance_ms(100).arrive("web", 1).advance_ms(100);
    assert_eq!(closed(&sim), [1, 2]);
}

#[test]
fn a_full_budget_is_relieved_across_lanes_but_not_below_a_reserve() {
    let batch = lane("batch", 5, |lane| {
        pooling(lane);
        lane.priority = 8;
        lane.reserve = 1;
    });
    let mut settings = settings(vec![lane("web", 12, |lane| lane.priority = 0), batch]);
    settings.limits.monitored = true;
    let sim = Sim::with(settings).sample(3, 0);
    let sim = sim.key("a").connect("batch", 3).pool("batch", 1).pool("batch", 2).pool("batch", 3);
    assert!(sim.pooled);
    let sim = sim.key("b").arrive("web", 3);
    assert_eq!((closed(&sim), slots(&sim, "batch")), (vec![1, 2], 3));
    // One login at a time: so small is the budget.
    let sim = sim.close(1).close(2).log_in(4);
    assert_eq!((slots(&sim, "batch"), slots(&sim, "web")), (1, 2));
}

#[test]
fn a_pause_a_drain_and_a_smaller_quota_close_what_rests() {
    let mut sim = one(4).key("a").connect("web", 3).pool("web", 1).pool("web", 2);
    sim.guard.set_quota(sim.now, sim.lane("web"), 2).expect("a quota");
    let sim = sim.advance_ms(1);
    assert_eq!(closed(&sim), [1]);
    let web = sim.lane("web");
    let sim = sim.call(move |guard, now| guard.pause(now, web, None, None, "me", ""));
    assert_eq!(closed(&sim), [1, 2]);
    let sim = sim.pool("web", 3);
    assert!(!sim.pooled, "its lane is paused");
}

#[test]
fn time_and_bars_close_what_rests() {
    let sim = one(4).key("a").connect("web", 2).pool("web", 1);
    let sim = sim.advance_ms(9_000).pool("web", 2).advance_ms(2_000);
    assert_eq!(closed(&sim), [1]);
    let mut sim = sim;
    let until = sim.now + Duration::from_secs(5);
    assert_eq!(sim.guard.bar_database(sim.now, "elsewhere", until), 0);
    assert_eq!(sim.guard.bar_database(sim.now, "db", until), 1);
    let sim = sim.connect("web", 1).pool("web", 3);
    assert!(!sim.pooled, "its database is barred");
    let sim = sim.advance_ms(5_000).connect("web", 1).pool("web", 4);
    assert!(sim.pooled);
    let sim = sim.connect("web", 1).advance_ms(101_000).pool("web", 5);
    assert!(!sim.pooled, "too old");
}

#[test]
fn a_dead_connection_costs_its_client_its_place_and_nothing_else() {
    let mut sim = one(1).key("a").connect("web", 1).pool("web", 1).arrive("web", 2);
    let again = sim.guard.stale(sim.now, LinkId(2), true);
    assert_eq!(again, Arrived::Granted);
    let mut sim = sim.log_in(2).pool("web", 2);
    assert!(sim.actions.contains(&Action::GrantPooled(LinkId(3), LinkId(2))));
    // This one answers strangely: it is closed under its old name, and its slot is free when PostgreSQL says so.
    assert_eq!(sim.guard.stale(sim.now, LinkId(3), false), Arrived::Waiting(Reason::LaneFull));
    assert_eq!(slots(&sim, "web"), 1);
    let sim = sim.close(2);
    assert!(sim.actions.contains(&Action::Grant(LinkId(3))));
    assert_eq!(sim.guard.audit(), Ok(()));
}

#[test]
fn what_was_not_taken_goes_back() {
    let sim = one(1).key("a").connect("web", 1).pool("web", 1).arrive("web", 1);
    let sim = sim.call(|guard, now| guard.hang_up(now, LinkId(2)));
    assert_eq!((slots(&sim, "web"), sim.guard.pooled(sim.lane("web"))), (1, 1));
    let sim = sim.arrive("web", 1);
    assert_eq!(sim.last, Some(Arrived::Reused(LinkId(1))));
}

#[test]
fn nobody_is_shed_for_what_nobody_uses() {
    let cron = lane("cron", 2, |lane| {
        lane.priority = 5;
        lane.shed_above = Some(50.0);
        lane.shed_below = 40.0;
        lane.shed_dwell = Duration::ZERO;
    });
    let of = |resting: u64| {
        let web = lane("web", 12, |lane| {
            pooling(lane);
            lane.priority = 0;
        });
        let mut settings = settings(vec![web, cron.clone()]);
        settings.limits.monitored = true;
        // 10 usable.
        let mut sim = Sim::with(settings).sample(10, 0).key("a").connect("web", 6);
        for link in 1..=resting {
            sim = sim.pool("web", link);
        }
        sim.key("b").arrive("cron", 1)
    };
    // Five in use are too many without the one at rest.
    let sim = of(1);
    assert_eq!((closed(&sim), sim.last.clone()), (vec![], Some(Arrived::Waiting(Reason::Shed))));
    // Two are not: below 40 % is a slot less than four.
    let sim = of(4);
    assert_eq!(closed(&sim), [1, 2, 3]);
    let sim = sim.close(1).close(2).close(3).advance_ms(1);
    assert!(sim.actions.contains(&Action::Grant(LinkId(7))));
    assert_eq!(sim.guard.audit(), Ok(()));
}

#[test]
fn what_is_made_ahead_makes_nobody_shed() {
    let web = lane("web", 12, |lane| {
        pooling(lane);
        lane.pooling.as_mut().expect("set above").min_size = 9;
    });
    let cron = lane("cron", 2, |lane| {
        lane.shed_above = Some(50.0);
        lane.shed_below = 40.0;
    });
    let mut settings = settings(vec![web, cron]);
    settings.limits.monitored = true;
    // 10 usable.
    let mut sim = Sim::with(settings).sample(10, 0).key("a");
    for _ in 0..3 {
        sim = sim.make_ahead("web");
        assert_eq!(sim.last, Some(Arrived::Granted));
    }
    let sim = sim.make_ahead("web");
    assert_eq!((sim.last.clone(), slots(&sim, "web"), closed(&sim)), (None, 3, vec![]));
}

#[test]
fn a_connection_limit_is_relieved_of_the_one_unused_for_longest() {
    let sim = one(9).key("a").user("u").connect("web", 1).pool("web", 1);
    let sim = sim.advance_ms(1).key("b").user("v").connect("web", 1).pool("web", 2);
    let mut sim = sim.key("c").arrive("web", 1);
    assert_eq!(sim.guard.relieve_limit(sim.now, LinkId(3), true), Some(LinkId(2)));
    assert_eq!(sim.guard.relieve_limit(sim.now, LinkId(3), true), None);
    assert!(sim.guard.has_slot(LinkId(2)));
    assert_eq!(sim.guard.relieve_limit(sim.now, LinkId(3), false), Some(LinkId(1)));
    let sim = sim.call(|guard, now| drop(guard.dial_failed(now, LinkId(3), DialFailure::Limited, true)));
    assert_eq!((closed(&sim), slots(&sim, "web"), sim.guard.audit()), (vec![2, 1], 3, Ok(())));
}

#[test]
fn what_runs_under_another_name_than_it_logged_in_with_is_nobodys() {
    let sim = one(9).key("a").connect("web", 3).pool("web", 1);
    let row = |link, user: &str| Session { pid: 1000 + link, user: user.into(), ..session() };
    let same = [row(1, "u"), row(2, "u"), row(3, "u")];
    let sim = sim.sample_of(50, same.to_vec());
    assert!(closed(&sim).is_empty());
    let sim = sim.sample_of(50, vec![row(1, "renamed"), row(2, ""), row(3, "u")]);
    assert_eq!(closed(&sim), [1]);
    let sim = sim.pool("web", 2);
    assert!(!sim.pooled, "its role was dropped");
    assert!(sim.pool("web", 3).pooled);
}

/// Web with a reserve of 2 that is kept open, and batch; of 9 connections to PostgreSQL, pgweir may have those that strangers leave.
fn keeping() -> Sim {
    let web = lane("web", 6, |lane| {
        pooling(lane);
        lane.priority = 0;
        lane.reserve = 2;
        lane.pooling.as_mut().expect("it pools").keeps_reserve = true;
    });
    let batch = lane("batch", 6, |lane| {
        pooling(lane);
        lane.priority = 8;
    });
    let mut settings = settings(vec![web, batch]);
    settings.limits.monitored = true;
    Sim::with(settings).sample(12, 0)
}

/// Makes a connection ahead of clients; whether the guard wanted one.
fn ahead(mut sim: Sim, lane: &str, key: &'static str) -> (Sim, bool) {
    sim = sim.key(key);
    sim.links += 1;
    let link = sim.links;
    let who = Arrival {
        lane: sim.lane(lane),
        application: "app".into(),
        user: "u".into(),
        database: "db".into(),
        address: None,
        replication: false,
        nested: false,
        alone: false,
        key: Some(packet(key)),
    };
    let wanted = sim.guard.arrive_ahead(sim.now, LinkId(link), who);
    (if wanted { sim.log_in(link).pool(lane, link) } else { sim }, wanted)
}

#[test]
fn a_reserve_kept_open_is_there_when_strangers_have_taken_the_rest() {
    let sim = keeping().key("a").connect("web", 1).pool("web", 1);
    let (sim, first) = ahead(sim, "web", "a");
    let (sim, second) = ahead(sim, "web", "a");
    assert!(first && !second, "one more fills the reserve of 2");
    let mut sim = sim.key("b").connect("batch", 3);
    for second in 0..20 {
        // However long they rest, and whatever is left for pgweir: here minus one.
        sim = sim.advance_ms(1_000).sample(12, 8 + second % 2);
    }
    assert_eq!((closed(&sim), sim.guard.pooled(sim.lane("web"))), (vec![], 2));
    let sim = sim.key("a").arrive("web", 2);
    assert!(matches!(sim.last, Some(Arrived::Reused(_))), "{:?}", sim.last);
    let sim = sim.arrive("web", 1).expect_waiting(Reason::UpstreamBudget);
    let sim = sim.key("b").arrive("batch", 1).expect_waiting(Reason::UpstreamBudget);
    assert_eq!((slots(&sim, "web"), slots(&sim, "batch"), sim.guard.audit()), (2, 3, Ok(())));
}

#[test]
fn a_full_postgresql_takes_what_is_spare_and_no_reserve() {
    let sim = keeping().key("a").connect("web", 3).pool("web", 1).pool("web", 2).pool("web", 3);
    let sim = sim.key("b").arrive("batch", 1).dial_fails(4, true);
    assert_eq!(closed(&sim), [1], "one of three is beyond the reserve");
    let sim = sim.close(1).sample(12, 9);
    let sim = sim.call(|guard, now| guard.too_many_clients(now));
    assert_eq!((closed(&sim), sim.guard.pooled(sim.lane("web"))), (vec![1], 2));
}

#[test]
fn a_kept_reserve_is_renewed_one_by_one_and_while_there_is_room() {
    let sim = keeping().key("a").connect("web", 2).pool("web", 1).pool("web", 2);
    let mut sim = sim.sample(12, 11).advance_ms(1);
    for _ in 0..101 {
        sim = sim.advance_ms(1_000).sample(12, 11);
    }
    assert_eq!(closed(&sim), [0; 0], "too old, and PostgreSQL is full");
    let sim = sim.key("a").arrive("web", 1);
    let Some(Arrived::Reused(LinkId(taken))) = sim.last else { panic!("{:?}", sim.last) };
    let sim = sim.call(|guard, now| guard.revived(now, LinkId(3))).pool("web", 3);
    assert!(sim.pooled, "as old as {taken} was");
    let sim = sim.sample(12, 0).advance_ms(1);
    let sim = sim.call(|guard, now| guard.tick(now)).call(|guard, now| guard.tick(now));
    assert_eq!(closed(&sim).len(), 1, "the other one when this one is replaced");
    let gone = closed(&sim)[0];
    let (sim, wanted) = ahead(sim.close(gone), "web", "a");
    let sim = sim.call(|guard, now| guard.tick(now));
    assert!(wanted && closed(&sim).len() == 2);
}

#[test]
fn a_reserve_is_not_filled_over_a_waiter_below_his() {
    let sim = keeping().key("a").connect("web", 1).sample(12, 11);
    // Strangers left one, which is web's by its reserve; batch waits and has none.
    let sim = sim.key("b").arrive("batch", 1).expect_waiting(Reason::UpstreamBudget).sample(12, 10);
    let (sim, wanted) = ahead(sim, "web", "a");
    assert!(wanted, "who waits without a reserve is not passed over");
    let (_, wanted) = ahead(sim, "batch", "b");
    assert!(!wanted, "batch keeps nothing open");
}

#[test]
fn a_reserve_kept_open_is_no_waste_that_others_are_shed_for() {
    let web = lane("web", 12, |lane| {
        pooling(lane);
        lane.priority = 0;
        lane.reserve = 4;
        lane.pooling.as_mut().expect("it pools").keeps_reserve = true;
    });
    let cron = lane("cron", 2, |lane| {
        lane.priority = 5;
        lane.shed_above = Some(50.0);
        lane.shed_below = 40.0;
        lane.shed_dwell = Duration::ZERO;
    });
    let mut settings = settings(vec![web, cron]);
    settings.limits.monitored = true;
    // 10 usable, of which 5 rest: the one beyond the reserve is closed, and the reserve alone is not above the threshold that sheds.
    let mut sim = Sim::with(settings).sample(10, 0).key("a").connect("web", 5);
    for link in 1..=5 {
        sim = sim.pool("web", link);
    }
    let sim = sim.key("b").arrive("cron", 1);
    assert!(closed(&sim).len() <= 1, "{:?}", closed(&sim));
    assert!(sim.guard.pooled(sim.lane("web")) >= 4);
    // Nor is it given up when strangers shed cron for good.
    let sim = sim.sample(10, 4).advance_ms(1_000);
    assert_eq!((sim.guard.pooled(sim.lane("web")) >= 4, sim.guard.audit()), (true, Ok(())));
}
