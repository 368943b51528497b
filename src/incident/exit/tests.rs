use proptest::prelude::*;

use super::*;

const HOLD: Duration = Duration::from_secs(900);

fn at(second: u64) -> Moment {
    Moment::from_micros(1) + Duration::from_secs(second)
}

fn rules() -> Rules {
    Rules {
        usage_below: 75.0,
        hold_for: HOLD,
        lanes: Vec::new(),
        failures_below: 5.0,
        watches_log: false,
        probes: Vec::new(),
    }
}

fn facts(usage: Option<f64>) -> Facts {
    Facts { usage, too_many_clients: 0, refused: 0, logged: Ok(0), lanes: Vec::new() }
}

fn lane(committed: u64, failures: u64) -> LaneTotals {
    LaneTotals { name: "web".into(), committed, attempts: committed + failures, failures }
}

fn state(exit: &Exit, name: &str, second: u64) -> State {
    let criteria = exit.criteria(at(second));
    criteria.iter().find(|criterion| &*criterion.name == name).unwrap_or_else(|| panic!("no {name}")).state
}

fn probe(expect: Expect) -> (Rules, &'static str) {
    let rule = ProbeRule { name: "queue".into(), expect, fresh_for: Duration::from_secs(60) };
    (Rules { probes: vec![rule], ..rules() }, "probe queue")
}

/// Feeds numbers, one every 15 s from 0 on; the state at the last one.
fn numbers(expect: Expect, numbers: impl IntoIterator<Item = f64>) -> State {
    let (rules, name) = probe(expect);
    let mut exit = Exit::new(rules, at(0));
    let mut second = 0;
    for (n, number) in numbers.into_iter().enumerate() {
        second = 15 * n as u64;
        exit.answered(at(second), "queue", Ok(Measured::Number(number)));
    }
    state(&exit, name, second)
}

#[test]
fn everything_held_for_the_whole_window_is_met_and_not_a_second_earlier() {
    let mut exit = Exit::new(rules(), at(0));
    for second in 0..=900 {
        exit.observe(at(second), &facts(Some(60.0)));
        assert_eq!(exit.is_met(at(second)), second >= 900, "{second}");
    }
    let criterion = exit.criteria(at(950)).remove(0);
    assert_eq!((criterion.state, criterion.since), (State::Met, at(900)));
    assert_eq!(criterion.wanted, "below 75 % for 15 min");
    assert_eq!(criterion.reason, "below 75 % for 15 min 50 s");
}

#[test]
fn unknown_usage_is_not_met_and_restarts_the_window() {
    let mut exit = Exit::new(rules(), at(0));
    exit.observe(at(0), &facts(Some(60.0)));
    exit.observe(at(1000), &facts(None));
    assert_eq!(state(&exit, "usage", 1000), State::Unknown);
    exit.observe(at(1001), &facts(Some(60.0)));
    assert_eq!(state(&exit, "usage", 1900), State::NotMet);
    assert_eq!(state(&exit, "usage", 1901), State::Met);
}

#[test]
fn usage_on_the_line_is_not_below_it() {
    let mut exit = Exit::new(rules(), at(0));
    exit.observe(at(0), &facts(Some(75.0)));
    let criterion = exit.criteria(at(5000)).remove(0);
    assert_eq!(
        (criterion.state, criterion.reason.as_str()),
        (State::NotMet, "usage is 75.0 %, not below 75 %")
    );
}

#[test]
fn one_refusal_restarts_its_window_only() {
    let mut exit = Exit::new(rules(), at(0));
    exit.observe(at(0), &facts(Some(60.0)));
    exit.observe(at(900), &Facts { too_many_clients: 1, ..facts(Some(60.0)) });
    assert_eq!(state(&exit, "too_many_clients", 900), State::NotMet);
    assert_eq!(state(&exit, "refusals", 900), State::Met);
    assert_eq!(state(&exit, "too_many_clients", 1800), State::Met);
}

#[test]
fn counts_from_before_the_first_look_are_history() {
    let mut exit = Exit::new(rules(), at(0));
    exit.observe(at(0), &Facts { refused: 99, ..facts(Some(1.0)) });
    assert_eq!(state(&exit, "refusals", 900), State::Met);
}

#[test]
fn a_log_that_cannot_be_read_is_unknown() {
    let mut exit = Exit::new(Rules { watches_log: true, ..rules() }, at(0));
    exit.observe(at(0), &facts(Some(1.0)));
    exit.observe(at(899), &Facts { logged: Err("pg.log: denied".into()), ..facts(Some(1.0)) });
    let criteria = exit.criteria(at(900));
    assert_eq!((criteria[3].state, criteria[3].reason.as_str()), (State::Unknown, "pg.log: denied"));
    exit.observe(at(901), &facts(Some(1.0)));
    assert_eq!((state(&exit, "log", 1800), state(&exit, "log", 1801)), (State::NotMet, State::Met));
}

#[test]
fn what_a_log_got_while_it_could_not_be_read_counts() {
    let mut exit = Exit::new(Rules { watches_log: true, ..rules() }, at(0));
    let looks = [(0, Ok(1)), (10, Err("pg.log: No such file".to_owned())), (20, Ok(3))];
    for (second, logged) in looks {
        exit.observe(at(second), &Facts { logged, ..facts(Some(1.0)) });
    }
    assert_eq!(exit.criteria(at(21))[3].measured, "last 1 s ago, 2 in all");
    assert_eq!((state(&exit, "log", 919), state(&exit, "log", 920)), (State::NotMet, State::Met));
}

#[test]
fn an_incident_makes_everything_be_proved_anew() {
    let mut exit = Exit::new(rules(), at(0));
    exit.observe(at(0), &facts(Some(60.0)));
    exit.observe(at(900), &facts(Some(60.0)));
    assert!(exit.is_met(at(900)));
    exit.began(at(1000));
    assert!(!exit.is_met(at(1000)) && !exit.is_met(at(1899)) && exit.is_met(at(1900)));
}

fn lanes_over(per_step: impl Fn(u64) -> (u64, u64)) -> (State, String) {
    let mut exit = Exit::new(Rules { lanes: vec!["web".into()], ..rules() }, at(0));
    let (mut committed, mut failed) = (0, 0);
    for second in (0..=1800).step_by(5) {
        let (more, worse) = per_step(second);
        committed += more;
        failed += worse;
        exit.observe(at(second), &Facts { lanes: vec![lane(committed, failed)], ..facts(Some(1.0)) });
    }
    let criterion = exit.criteria(at(1800)).remove(3);
    (criterion.state, criterion.reason)
}

#[test]
fn a_critical_lane_must_commit_and_rarely_fail() {
    assert_eq!(lanes_over(|_| (10, 0)).0, State::Met);
    assert_eq!(lanes_over(|second| (100, u64::from(second % 50 == 0))).0, State::Met);
    let (state, reason) = lanes_over(|_| (9, 1));
    assert_eq!((state, reason.contains("10.0 % of")), (State::NotMet, true), "{reason}");
    let (state, reason) = lanes_over(|second| (u64::from(second < 800), 0));
    assert_eq!((state, reason.as_str()), (State::NotMet, "no transaction has committed in 15 min"));
    // What failed before the window is over.
    assert_eq!(lanes_over(|second| if second < 800 { (0, 10) } else { (1, 0) }).0, State::Met);
}

#[test]
fn a_lane_that_is_gone_is_unknown_and_one_that_came_anew_begins_anew() {
    let mut exit = Exit::new(Rules { lanes: vec!["web".into()], ..rules() }, at(0));
    for (second, committed) in [(0, 10), (900, 20)] {
        exit.observe(at(second), &Facts { lanes: vec![lane(committed, 0)], ..facts(Some(1.0)) });
    }
    assert_eq!(state(&exit, "lane web", 900), State::Met);
    exit.observe(at(901), &Facts { lanes: vec![lane(3, 0)], ..facts(Some(1.0)) });
    assert_eq!(state(&exit, "lane web", 901), State::NotMet);
    exit.observe(at(902), &facts(Some(1.0)));
    assert_eq!(state(&exit, "lane web", 902), State::Unknown);
}

#[test]
fn a_number_decreases_over_the_window_or_is_nothing_at_its_end() {
    let falling = (0..=60).map(|n| 200.0 - f64::from(n));
    assert_eq!(numbers(Expect::Decreasing, falling.clone()), State::Met);
    assert_eq!(numbers(Expect::Decreasing, falling.take(50)), State::NotMet, "not for long enough");
    assert_eq!(numbers(Expect::Decreasing, [5.0; 61]), State::NotMet);
    assert_eq!(numbers(Expect::Decreasing, (0..=60).map(f64::from)), State::NotMet);
    assert_eq!(numbers(Expect::Decreasing, [0.0; 61]), State::Met, "there is nothing left");
    // One low number among high ones is luck.
    let hovering = (0..=60).map(|n| if n == 60 { 1.0 } else { 50.0 });
    assert_eq!(numbers(Expect::Decreasing, hovering), State::NotMet);
}

#[test]
fn a_number_is_empty_or_below_without_a_break() {
    assert_eq!(numbers(Expect::Empty, [0.0; 61]), State::Met);
    assert_eq!(numbers(Expect::Empty, (0..=60).map(|n| f64::from(u8::from(n == 30)))), State::NotMet);
    assert_eq!(numbers(Expect::Below(10.0), [9.0; 61]), State::Met);
    assert_eq!(numbers(Expect::Below(10.0), [10.0; 61]), State::NotMet);
}

#[test]
fn no_answer_is_unknown_of_a_number_and_not_met_of_a_page() {
    for (expect, wanted) in [(Expect::Ok, State::NotMet), (Expect::Empty, State::Unknown)] {
        let (rules, name) = probe(expect);
        let mut exit = Exit::new(rules, at(0));
        assert_eq!(state(&exit, name, 0), State::Unknown, "not asked yet");
        exit.answered(at(1), "queue", Err("no answer within 5000 ms".into()));
        assert_eq!(state(&exit, name, 1), wanted);
    }
}

#[test]
fn an_answer_grows_old_and_a_gap_restarts_the_window() {
    let (rules, name) = probe(Expect::Ok);
    let mut exit = Exit::new(rules, at(0));
    exit.answered(at(0), "queue", Ok(Measured::Fine));
    assert_eq!((state(&exit, name, 60), state(&exit, name, 61)), (State::NotMet, State::Unknown));
    for second in (900..=1800).step_by(30) {
        exit.answered(at(second), "queue", Ok(Measured::Fine));
        assert_eq!(state(&exit, name, second) == State::Met, second == 1800, "{second}");
    }
}

#[test]
fn a_reload_keeps_what_is_known_of_rules_that_stay() {
    let (rules, name) = probe(Expect::Ok);
    let mut exit = Exit::new(rules.clone(), at(0));
    for second in (0..=900).step_by(30) {
        exit.observe(at(second), &facts(Some(60.0)));
        exit.answered(at(second), "queue", Ok(Measured::Fine));
    }
    exit.configure(Rules { failures_below: 1.0, ..rules.clone() }, at(900));
    assert!(exit.is_met(at(900)));
    exit.configure(Rules { usage_below: 70.0, ..rules.clone() }, at(901));
    assert_eq!((state(&exit, "usage", 901), state(&exit, name, 901)), (State::Unknown, State::Met));
    exit.configure(Rules { probes: Vec::new(), ..rules }, at(902));
    assert_eq!(exit.criteria(at(902)).len(), 3);
}

#[test]
fn memory_is_bounded_however_often_it_is_fed() {
    let (mut rules, _) = probe(Expect::Decreasing);
    rules.lanes = vec!["web".into()];
    let mut exit = Exit::new(rules, at(0));
    for n in 0..20_000_u64 {
        let now = at(0) + Duration::from_millis(n * 200);
        exit.observe(now, &Facts { lanes: vec![lane(n, 0)], ..facts(Some(1.0)) });
        exit.answered(now, "queue", Ok(Measured::Number(1.0)));
    }
    let Watch::Lane(lane) = &exit.watched[3].watch else { panic!("the lane") };
    let Watch::Probe(probe) = &exit.watched[4].watch else { panic!("the probe") };
    assert!(
        lane.points.len() <= 63 && probe.points.len() <= 123,
        "{} {}",
        lane.points.len(),
        probe.points.len()
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..ProptestConfig::default() })]

    /// The checklist against a model that keeps every look: usage and refusals are met exactly if each look of the window was good.
    #[test]
    fn met_means_that_every_look_of_the_window_was_good(
        looks in proptest::collection::vec((1_u64..200, proptest::option::of(50.0_f64..90.0), 0_u64..10), 1..80),
        begins in proptest::option::of(0_u64..4000),
    ) {
        let mut exit = Exit::new(rules(), at(0));
        let (mut second, mut refused, mut floor) = (0, 0, 0);
        let mut seen: Vec<(u64, bool, bool)> = Vec::new();
        for (step, usage, more) in looks {
            second += step;
            if let Some(begin) = begins.filter(|begin| floor == 0 && *begin > 0 && *begin <= second) {
                floor = begin;
                exit.began(at(begin));
            }
            let moved = more == 9;
            refused += u64::from(moved);
            exit.observe(at(second), &Facts { refused, ..facts(usage) });
            // The first look's total is history.
            seen.push((second, usage.is_some_and(|usage| usage < 75.0), moved && !seen.is_empty()));
            let since = |bad: &dyn Fn(&(u64, bool, bool)) -> bool, next: bool| {
                let after = seen.iter().rposition(bad).map_or(0, |at| at + usize::from(next));
                seen.get(after).map(|look| look.0.max(floor))
            };
            let usage_since = since(&|look| !look.1, true);
            let met = usage_since.is_some_and(|since| second - since >= 900);
            prop_assert_eq!(state(&exit, "usage", second) == State::Met, met, "usage at {}", second);
            let quiet_since = since(&|look| look.2, false).unwrap_or(0);
            prop_assert_eq!(state(&exit, "refusals", second) == State::Met, second - quiet_since >= 900, "refusals at {}", second);
        }
    }

    /// Whatever comes: no panic, nothing is met before the window has passed, and `since` never lies in the future.
    #[test]
    fn nothing_is_met_before_its_time(
        steps in proptest::collection::vec((0_u64..100, 0_u8..6, -5.0_f64..5.0), 1..120),
    ) {
        let (mut rules, _) = probe(Expect::Decreasing);
        rules.lanes = vec!["web".into()];
        let mut exit = Exit::new(rules, at(0));
        let (mut second, mut floor, mut committed) = (0, 0, 0);
        for (step, what, number) in steps {
            second += step;
            committed += step;
            match what {
                0 => exit.answered(at(second), "queue", Err("x".into())),
                1..=3 => exit.answered(at(second), "queue", Ok(Measured::Number(number))),
                4 => {
                    exit.began(at(second));
                    floor = second;
                }
                _ => exit.observe(at(second), &Facts { lanes: vec![lane(committed, 0)], ..facts(Some(number * 20.0)) }),
            }
            for criterion in exit.criteria(at(second)) {
                prop_assert!(criterion.state != State::Met || second - floor >= 900, "{criterion:?}");
                prop_assert!(criterion.since <= at(second) && !criterion.reason.is_empty());
            }
        }
    }
}
