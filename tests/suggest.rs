//! `pgweir suggest` as a whole: weeks that were seen, what is made of them, and whether the configuration with it passes the real checker.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used, reason = "a test may fail")]

use std::path::Path;

use pgweir::advise::peaks::{LaneLook, Peaks, Server, WholeLook};
use pgweir::advise::suggest::{Evidence, Setting, Suggestion, suggest};
use pgweir::advise::template::SHIPPED;
use pgweir::advise::{edit, letter};
use pgweir::app::present;
use pgweir::config::{Config, check, check_against};
use proptest::prelude::*;

const HOUR: u64 = 3_600_000;
const NOW: u64 = 490_000 * HOUR;

/// What one lane did in each hour.
#[derive(Clone, Copy, Default)]
struct Day {
    slots: u32,
    in_use: u32,
    waiting: u32,
    gap_ms: u64,
    cut_ms: u64,
}

fn server(usable: u32) -> Option<Server> {
    Some(Server { max_connections: usable + 3, usable })
}

/// So many hours up to now, all alike, with 1,000 transactions each.
fn week(hours: u64, usage: f64, usable: u32, lanes: &[(&str, Day)]) -> Peaks {
    let mut peaks = Peaks::default();
    for ago in 0..hours {
        let own = lanes.iter().map(|(_, day)| day.slots).sum();
        let whole = WholeLook { own, bypass: 2, usage, of_max: usage, server: server(usable) };
        let looks = lanes.iter().map(|(lane, day)| LaneLook {
            lane,
            slots: day.slots,
            demand: day.slots + day.waiting,
            in_use: day.in_use,
            waiting: day.waiting,
            gap_ms: day.gap_ms,
            cut_ms: day.cut_ms,
            cuts: u32::from(day.cut_ms > 0),
            transactions: 1000,
            ..LaneLook::default()
        });
        peaks.record(NOW - ago * HOUR, HOUR, &whole, looks);
    }
    peaks
}

fn config(text: &str) -> Config {
    check(text, Path::new("pgweir.toml")).unwrap_or_else(|problems| panic!("{problems:#?}\n{text}")).0
}

fn suggested(text: &str, peaks: &Peaks) -> Suggestion {
    suggest(&present(&config(text)), peaks, NOW)
}

/// `lane.key = value` of everything that is to change.
fn changes(suggestion: &Suggestion) -> Vec<String> {
    let lanes = suggestion.lanes.iter().flat_map(|lane| {
        let changes = lane.advice.iter().filter(|advice| advice.is_change());
        changes.map(|advice| format!("{}.{} = {}", lane.lane, advice.key, advice.suggested.literal()))
    });
    let applications = suggestion.applications.iter().filter(|one| one.advice.is_change());
    let applications =
        applications.map(|one| format!("{}.quota = {}", one.application, one.advice.suggested.literal()));
    lanes.chain(applications).collect()
}

fn why(suggestion: &Suggestion, lane: &str, key: &str) -> String {
    let lane = suggestion.lanes.iter().find(|one| one.lane == lane).unwrap();
    lane.advice.iter().find(|advice| advice.key == key).unwrap().why.clone()
}

/// The file with the suggestion in it, which the real checker has let pass.
fn applied(text: &str, suggestion: &Suggestion, usable: u32) -> String {
    let new = edit::apply(text, suggestion).unwrap_or_else(|problems| panic!("{problems:#?}\n{text}"));
    let found = check_against(&config(&new), usable + 3, 3);
    assert_eq!(found, Vec::new(), "{new}\n{}", letter::text(suggestion));
    new
}

#[test]
fn a_week_of_a_busy_odoo_becomes_figures_with_reasons() {
    let peaks = week(
        168,
        82.0,
        97,
        &[
            ("web", Day { slots: 40, in_use: 26, waiting: 6, gap_ms: 9_000, cut_ms: 61_000 }),
            ("cron", Day { slots: 4, in_use: 2, gap_ms: 2_000, ..Day::default() }),
            ("live", Day { slots: 6, in_use: 1, ..Day::default() }),
            ("queue", Day { slots: 8, in_use: 7, gap_ms: 500_000, ..Day::default() }),
        ],
    );
    let found = suggested(SHIPPED, &peaks);
    assert_eq!((found.evidence, found.hours_seen), (Evidence::Week, 168));
    assert_eq!(
        changes(&found),
        [
            "cron.quota = 5",
            "cron.shed_above = 87",
            "cron.shed_below = 77",
            "cron.idle_in_transaction.reset = \"5m\"",
            "queue.quota = 10",
            "queue.shed_above = 87",
            "queue.shed_below = 77",
            "queue.idle_in_transaction.warn = \"11m\"",
            "queue.idle_in_transaction.reset = \"13m\"",
            "reports.shed_above = 87",
            "reports.shed_below = 77",
            "imports.shed_above = 87",
            "imports.shed_below = 77",
            "web.quota = 58",
            "web.reserve = 33",
            "odoo.quota = 105",
        ]
    );
    assert!(why(&found, "web", "quota").contains("46"), "{}", why(&found, "web", "quota"));
    let new = applied(SHIPPED, &found, 97);
    assert!(new.contains("# held, not refused: a refused cron worker exits"), "{new}");
}

#[test]
fn less_than_a_day_lowers_nothing_and_less_than_an_hour_says_nothing() {
    let lanes = [
        ("cron", Day { slots: 1, in_use: 1, ..Day::default() }),
        ("web", Day { slots: 3, in_use: 1, ..Day::default() }),
    ];
    let thin = suggested(SHIPPED, &week(23, 90.0, 97, &lanes));
    assert_eq!((thin.evidence, changes(&thin)), (Evidence::Thin, vec![]));
    assert!(letter::text(&thin).contains("Seen: 23 of the last 168 hours, since"), "{}", letter::text(&thin));
    assert!(why(&thin, "cron", "quota").contains("too little was seen to lower it"));
    let days = suggested(SHIPPED, &week(62, 30.0, 97, &lanes));
    assert_eq!((days.evidence, days.hours_seen), (Evidence::Days, 62));
    assert!(
        changes(&days).contains(&"cron.quota = 4".to_owned()),
        "one cron worker needs four: {:?}",
        changes(&days)
    );
    assert!(changes(&days).contains(&"web.reserve = 10".to_owned()), "half at most: {:?}", changes(&days));
    assert!(
        letter::text(&days).contains("Less than a week: the days that are missing may be the busy ones.")
    );
    // More than there is shows even in a day.
    let full = [("cron", Day { slots: 12, in_use: 3, waiting: 4, gap_ms: 500_000, ..Day::default() })];
    let raised = suggested(SHIPPED, &week(2, 30.0, 97, &full));
    assert_eq!(changes(&raised)[0], "cron.quota = 20", "{:?}", changes(&raised));
    assert!(
        changes(&raised).contains(&"cron.idle_in_transaction.reset = \"13m\"".to_owned()),
        "{:?}",
        changes(&raised)
    );
    let mut young = Peaks::default();
    young.record(NOW, 60_000, &WholeLook::default(), []);
    let nothing = suggested(SHIPPED, &young);
    assert_eq!((nothing.evidence, nothing.changes()), (Evidence::None, 0));
    let web = LaneLook { lane: "web", slots: 1, transactions: 7, ..LaneLook::default() };
    young.record(NOW, 60_000, &WholeLook::default(), [web]);
    let text = letter::text(&suggested(SHIPPED, &young));
    let told = "Seen: 2 min so far; mode enforce. That is too little";
    assert!(text.starts_with(told) && !text.contains("hours"), "{text}");
    assert!(
        text.ends_with("\nlane web: 1 slot at most, 7 transactions\nNothing is suggested yet.\n"),
        "{text}"
    );
    let text = letter::text(&suggested(SHIPPED, &Peaks::default()));
    assert!(
        text.starts_with(
            "Seen: nothing so far; mode enforce. That is too little: anything is suggested after an hour at the earliest, and a week tells most."
        ),
        "{text}"
    );
}

#[test]
fn who_was_let_in_is_not_told_as_refused() {
    let mut peaks = Peaks::default();
    let reports = LaneLook {
        lane: "reports",
        slots: 1,
        transactions: 1,
        refused: &[("shed", 3)],
        ..LaneLook::default()
    };
    peaks.record(NOW, 3_600_000, &WholeLook::default(), [reports]);
    let observe = SHIPPED.replace("mode = \"enforce\"", "mode = \"observe\"");
    let text = letter::text(&suggested(&observe, &peaks));
    assert!(text.contains("1 transaction in 1 hour; 3 would have been refused (shed 3)"), "{text}");
    assert!(letter::text(&suggested(SHIPPED, &peaks)).contains("; 3 refused (shed 3)"));
}

#[test]
fn the_week_in_observe_mode_shows_what_would_have_waited_been_shed_and_reset() {
    let observe = SHIPPED.replace("mode = \"enforce\"", "mode = \"observe\"");
    // Nothing holds them back: a lane grows over its quota, and idle transactions go on.
    let lanes = [("cron", Day { slots: 16, in_use: 9, gap_ms: 700_000, ..Day::default() })];
    let found = suggested(&observe, &week(168, 76.0, 97, &lanes));
    assert_eq!(found.mode, "observe");
    let changes = changes(&found);
    for change in [
        "cron.quota = 20",
        "cron.shed_above = 81",
        "cron.shed_below = 71",
        "cron.idle_in_transaction.reset = \"18m\"",
    ] {
        assert!(changes.iter().any(|one| one == change), "{change}: {changes:?}");
    }
    assert!(why(&found, "cron", "shed_above").contains("above it on ordinary days"));
    applied(&observe, &found, 97);
}

#[test]
fn a_reset_is_never_lowered_to_what_honestly_idles() {
    for (gap_ms, expected) in
        [(0, "5m"), (199_000, "5m"), (201_000, "10m"), (390_000, "10m"), (410_000, "11m")]
    {
        let found = suggested(
            SHIPPED,
            &week(168, 30.0, 97, &[("queue", Day { slots: 1, gap_ms, ..Day::default() })]),
        );
        let lane = found.lanes.iter().find(|lane| lane.lane == "queue").unwrap();
        let reset = lane.advice.iter().find(|advice| advice.key.ends_with("reset")).unwrap();
        assert_eq!(reset.suggested, Setting::Time(expected.to_owned()), "{gap_ms}: {}", reset.why);
    }
    // One transaction that somebody forgot for nine hours is not the plan, and is told of.
    let mut peaks = week(168, 30.0, 97, &[("web", Day { slots: 9, gap_ms: 4_000, ..Day::default() })]);
    let forgotten = LaneLook { lane: "web", gap_ms: 9 * HOUR, transactions: 1, ..LaneLook::default() };
    peaks.record(NOW - HOUR, 0, &WholeLook::default(), [forgotten]);
    let found = suggested(SHIPPED, &peaks);
    assert!(!changes(&found).iter().any(|change| change.starts_with("web.idle")), "{:?}", changes(&found));
    assert!(
        why(&found, "web", "idle_in_transaction.reset")
            .contains("9.0 h at most, after 4.0 s in ordinary hours")
    );
    // If every hour has one, no reset waits for it.
    let found = suggested(
        SHIPPED,
        &week(168, 30.0, 97, &[("web", Day { gap_ms: 9 * HOUR, slots: 1, ..Day::default() })]),
    );
    let resets: Vec<_> =
        changes(&found).into_iter().filter(|change| change.starts_with("web.idle")).collect();
    assert_eq!(
        resets,
        [
            "web.idle_in_transaction.warn = \"1h\"",
            "web.idle_in_transaction.reset = \"1h\"",
            "web.idle_in_transaction.cap = \"2h\""
        ]
    );
    applied(SHIPPED, &found, 97);
}

#[test]
fn what_others_take_is_not_given_away_twice() {
    let lanes = [("web", Day { slots: 40, in_use: 40, waiting: 100, ..Day::default() })];
    let found = suggested(SHIPPED, &week(168, 30.0, 97, &lanes));
    let room = found.room.unwrap();
    assert_eq!((room.usable, room.headroom, room.bypass, room.budget), (97, 3, 2, 92));
    assert!(changes(&found).contains(&"web.quota = 86".to_owned()), "{:?}", changes(&found));
    assert!(
        why(&found, "web", "quota")
            .contains("86 is all the others' reserves leave; at the peak of 140, 54 wait")
    );
    let note = "ask for 181, and 92 fit: nobody would wait with max_connections = 190";
    assert!(found.notes.iter().any(|told| told.contains(note)), "{:?}", found.notes);
    applied(SHIPPED, &found, 97);
}

#[test]
fn without_limits_quotas_are_left_alone() {
    let mut peaks = Peaks::default();
    let web =
        LaneLook { lane: "web", slots: 90, demand: 90, in_use: 90, transactions: 9, ..LaneLook::default() };
    (0..168).for_each(|ago| peaks.record(NOW - ago * HOUR, HOUR, &WholeLook::default(), [web.clone()]));
    let found = suggested(SHIPPED, &peaks);
    assert_eq!((found.room, changes(&found)), (None, vec![]));
    assert!(found.notes[0].contains("limits were never seen"), "{:?}", found.notes);
}

#[test]
fn a_lane_that_is_gone_is_told_of_and_changes_nothing() {
    let found =
        suggested(SHIPPED, &week(168, 30.0, 97, &[("shop\u{1b}[2J", Day { slots: 9, ..Day::default() })]));
    assert_eq!(found.changes(), 0);
    assert!(
        found.notes.iter().any(|note| note.ends_with("not configured any more: shop [2J")),
        "{:?}",
        found.notes
    );
}

#[test]
fn a_file_is_changed_where_it_says_so_and_nowhere_else() {
    let text = "[[lane]]\nname = \"web\" # users\nquota = 0x10  # hex\n[lane.idle_in_transaction]\ncap = \"10m\" # all\n\n[other]\nquota = 16\n";
    let advice = |key: &str, suggested| serde_json::json!({"key": key, "present": 1, "suggested": suggested, "why": ""});
    let mut found = suggested(SHIPPED, &Peaks::default());
    found.applications.clear();
    found.lanes.truncate(1);
    found.lanes[0].lane = "web".into();
    let advice = [
        advice("quota", serde_json::json!(20)),
        advice("reserve", serde_json::json!(5)),
        advice("shed_above", serde_json::json!(82.5)),
        // Where there is a cap only, the reset is that.
        advice("idle_in_transaction.reset", serde_json::json!("20m")),
        advice("idle_in_transaction.cap", serde_json::json!("20m")),
    ];
    found.lanes[0].advice = serde_json::from_value(advice.into()).unwrap();
    assert_eq!(
        edit::apply(text, &found).unwrap(),
        "[[lane]]\nname = \"web\" # users\nquota = 20  # hex\nreserve = 5\nshed_above = 82.5\n[lane.idle_in_transaction]\n\
         cap = \"20m\" # all\n\n[other]\nquota = 16\n"
    );
    found.lanes[0].lane = "nosuch".into();
    assert_eq!(edit::apply(text, &found).unwrap_err().len(), 5);
}

#[test]
fn what_a_running_pgweir_says_is_understood() {
    let lanes = [("web", Day { slots: 9, gap_ms: 4_000, waiting: 1, ..Day::default() })];
    let found = suggested(SHIPPED, &week(62, 81.5, 97, &lanes));
    let text = serde_json::to_string(&found).unwrap();
    assert_eq!(serde_json::from_str::<Suggestion>(&text).unwrap(), found);
    assert!(text.contains("\"since\":\"2025-"), "{text}");
}

/// A lane of some configuration: quota, reserve of it in percent, priority, protected, shed_above, warn, reset, cap in seconds.
type Drawn = (u32, u32, u32, bool, Option<u32>, Option<(u32, u32, u32)>, bool);

fn drawn(lanes: &[Drawn], application: u32) -> String {
    let mut text = "mode = \"observe\"\n[[listen]]\naddress = \"127.0.0.1:6432\"\n[upstream]\naddress = \"127.0.0.1:5432\"\nheadroom = 3\n\
                    [monitor]\n"
        .to_owned();
    text += &format!("[[application]]\nname = \"odoo\"\nmatch = \"odoo*\"\nquota = {application}\n");
    for (n, (quota, share, priority, protected, shed, leak, cap_only)) in lanes.iter().enumerate() {
        let reserve = quota * share / 100;
        text += &format!(
            "[[lane]]\nname = \"l{n}\"\nquota = {quota}\nreserve = {reserve}\npriority = {priority}\n"
        );
        text += &if n == 0 {
            "default = true\n".to_owned()
        } else {
            format!("match = [{{ user = \"u{n}\" }}]\n")
        };
        if *protected && n > 0 {
            text += "protected = true\n";
        } else if let Some(above) = shed {
            text += &format!("shed_above = {above}\n");
        }
        if let Some((warn, reset, cap)) = leak {
            let (warn, reset, cap) = (1 + warn, 1 + warn + reset, 1 + warn + reset + cap);
            let reset = if *cap_only { String::new() } else { format!("reset = \"{reset}s\", ") };
            text += &format!("idle_in_transaction = {{ warn = \"{warn}s\", {reset}cap = \"{cap}s\" }}\n");
        }
    }
    text
}

fn drawn_lane() -> impl Strategy<Value = Drawn> {
    (
        1_u32..200,
        0_u32..=100,
        0_u32..10,
        any::<bool>(),
        proptest::option::of(11_u32..=100),
        proptest::option::of((0_u32..900, 0_u32..900, 0_u32..900)),
        any::<bool>(),
    )
}

fn drawn_days() -> impl Strategy<Value = Vec<(u64, usize, u32, u32, u32, u64, u64)>> {
    proptest::collection::vec(
        (0_u64..170, 0_usize..8, 0_u32..300, 0_u32..300, 0_u32..2000, 0_u64..40_000_000, 0_u64..3000),
        0..60,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever is configured and whatever was seen: the file with the suggestion passes, what it promises holds, and every word is told.
    #[test]
    fn any_week_leads_to_a_configuration_that_passes(
        lanes in proptest::collection::vec(drawn_lane(), 1..8),
        application in 1_u32..900,
        days in drawn_days(),
        hours in 0_u64..170,
        usage in 0.0_f64..200.0,
        usable in 0_u32..500,
        bypass in 0_u32..300,
    ) {
        let text = drawn(&lanes, application);
        let Ok((config, _)) = check(&text, Path::new("pgweir.toml")) else { return Ok(()) };
        let mut peaks = Peaks::default();
        let whole = WholeLook { own: bypass, bypass, usage, of_max: usage, server: server(usable) };
        (0..hours).for_each(|ago| peaks.record(NOW - ago * HOUR, HOUR, &whole, []));
        for (ago, lane, slots, more, in_use, gap_ms, transactions) in days {
            let name = format!("l{lane}");
            let refused = [("queue_full", u64::from(more))];
            let look = LaneLook {
                lane: &name, slots, demand: slots + more, in_use, waiting: more, wait_ms: gap_ms, transactions, gap_ms, cut_ms: gap_ms,
                cuts: more, refused: &refused,
            };
            peaks.record(NOW - ago * HOUR, 0, &whole, [look]);
        }
        let now = present(&config);
        let found = suggest(&now, &peaks, NOW);
        let told = letter::text(&found);
        let new = edit::apply(&text, &found).map_err(|problems| TestCaseError::fail(problems.join("\n")))?;
        let checked = check(&new, Path::new("pgweir.toml"));
        prop_assert!(checked.is_ok(), "{:#?}\n{new}\n{told}", checked.err());
        let (after, _) = checked.unwrap();
        if hours > 0 && usable > 3 {
            prop_assert_eq!(check_against(&after, usable + 3, 3), Vec::new(), "{}\n{}", new, told);
        }
        let after = present(&after);
        for (before, after) in now.lanes.iter().zip(&after.lanes) {
            let seen = &found.lanes.iter().find(|lane| lane.lane == before.name).unwrap().seen;
            if hours < 24 {
                prop_assert!(after.quota >= before.quota, "{told}");
            }
            if before.protected || hours == 0 {
                prop_assert_eq!((before.quota, before.shed, before.leak), (after.quota, after.shed, after.leak), "{}", told);
            }
            if let (Some(before), Some(after)) = (before.leak, after.leak)
                && after.reset_ms < before.reset_ms
            {
                prop_assert!(after.reset_ms.unwrap() >= seen.gap_ms.value + seen.gap_ms.value / 2, "{told}");
                prop_assert!(hours >= 24, "{told}");
            }
        }
    }
}
