//! From the file to a checked scenario, or every problem with its line. Pure.

use std::time::Duration;

use toml::de::DeTable;

use super::document::{Problem, Problems, Section, boolean, count, number, text, texts, time, word};
use super::{Action, Actor, Deed, Kind, NOTIFY, Pace, Phase, Scenario};
use crate::drill::expect::{Figure, Rule, Subject};

/// Bounds of a scenario.
const ACTORS_MAX: usize = 64;
const PHASES_MAX: usize = 32;
const ACTIONS_MAX: usize = 100;
const RULES_MAX: usize = 100;
const RATE_MAX: f64 = 100_000.0;
const CLIENTS_MAX: u32 = 20_000;
/// Keys that some kind of actor knows.
const KEYS: [&str; 11] = [
    "workers",
    "rate",
    "count",
    "arrivals",
    "statements",
    "hot",
    "notify",
    "work",
    "hold",
    "timeout",
    "max_waiting",
];

/// The scenario in `source`.
///
/// # Errors
/// Everything that is wrong with it, in the order of the file; never empty.
pub fn read(source: &str) -> Result<Scenario, Vec<Problem>> {
    let mut problems = Problems::of(source);
    let table = match DeTable::parse(source) {
        Ok(table) => table,
        Err(error) => {
            let line = error.span().map_or(1, |span| problems.line_of(span.start));
            problems.add(line, "", error.message().to_owned(), "mend the TOML first");
            return Err(problems.finish());
        }
    };
    let mut root = Section::root(table.get_ref());
    let title = root.require(&mut problems, "title", "say in one line what is rehearsed", text);
    let description = root.read(&mut problems, "description", text).unwrap_or_default();
    let phases = read_phases(&mut root, &mut problems);
    let actors = read_actors(&mut root, &mut problems, &phases);
    let actions = read_actions(&mut root, &mut problems, &phases);
    let scenario = Scenario {
        title: title.unwrap_or_default(),
        description,
        phases,
        actors,
        actions,
        rules: Vec::new(),
        recover_within: None,
        reset: None,
    };
    let (rules, recover_within, reset) = read_expect(&mut root, &mut problems, &scenario);
    root.finish(&mut problems);
    if problems.none() {
        Ok(Scenario { rules, recover_within, reset, ..scenario })
    } else {
        Err(problems.finish())
    }
}

fn read_phases(root: &mut Section<'_>, problems: &mut Problems<'_>) -> Vec<Phase> {
    let mut phases: Vec<Phase> = Vec::new();
    let mut start = Duration::ZERO;
    for mut section in root.tables(problems, "phase") {
        let name = section.require(problems, "name", "call it steady, incident, recovery, …", word);
        let hint = "say how long it takes: \"20s\"";
        let length = section.require(problems, "duration", hint, |value| match time(value)? {
            length if length < Duration::from_millis(100) => Err("is shorter than 100ms".to_owned()),
            length => Ok(length),
        });
        let steady = section.read(problems, "steady", boolean).unwrap_or(false);
        let incident = section.read(problems, "incident", boolean).unwrap_or(false);
        let name = name.unwrap_or_default();
        if !name.is_empty() && phases.iter().any(|phase| phase.name == name) {
            problems.add(
                section.line(),
                &section.key("name"),
                format!("{name:?} is there already"),
                "rename one",
            );
        }
        let length = length.unwrap_or(Duration::from_secs(1));
        phases.push(Phase { name, start, length, steady, incident });
        start += length;
        section.finish(problems);
    }
    if phases.is_empty() {
        problems.add(1, "phase", "is missing", "write at least one [[phase]] with name and duration");
    }
    if phases.len() > PHASES_MAX {
        problems.add(1, "phase", format!("more than {PHASES_MAX}"), "merge some");
    }
    phases
}

fn read_actors(root: &mut Section<'_>, problems: &mut Problems<'_>, phases: &[Phase]) -> Vec<Actor> {
    let sections = root.tables(problems, "actor");
    if sections.is_empty() {
        problems.add(1, "actor", "is missing", "write at least one [[actor]] with its kind");
    }
    if sections.len() > ACTORS_MAX {
        problems.add(1, "actor", format!("more than {ACTORS_MAX}"), "merge some");
    }
    sections.into_iter().filter_map(|section| read_actor(section, problems, phases)).collect()
}

fn kind_of(word: &str) -> Result<Kind, String> {
    let known = || Kind::ALL.map(Kind::word).join(", ");
    Kind::ALL
        .into_iter()
        .find(|kind| kind.word() == word)
        .ok_or_else(|| format!("{word:?} is none of {}", known()))
}

fn read_actor(mut section: Section<'_>, problems: &mut Problems<'_>, phases: &[Phase]) -> Option<Actor> {
    let hint = "one of the table in docs/drill.md, Actors";
    let kind = section.require(problems, "kind", hint, |value| kind_of(&text(value)?))?;
    let lane = section.read(problems, "lane", word).unwrap_or_else(|| kind.word().to_owned());
    let application = section.read(problems, "application", text);
    let wanted = section.read(problems, "phases", texts);
    let phases = match wanted {
        None => (0..phases.len()).collect(),
        Some(names) => {
            let mut found = Vec::new();
            for name in names {
                match phases.iter().position(|phase| phase.name == name) {
                    Some(index) => found.push(index),
                    None => {
                        let line = section.line_of(problems, "phases");
                        let hint = "name a [[phase]] of this file";
                        problems.add(
                            line,
                            &section.key("phases"),
                            format!("no phase is called {name:?}"),
                            hint,
                        );
                    }
                }
            }
            found.sort_unstable();
            found.dedup();
            found
        }
    };
    for key in KEYS.into_iter().filter(|key| section.has(key) && !kind.keys().contains(key)) {
        let line = section.line_of(problems, key);
        let hint = format!("{} knows {}", kind.word(), kind.keys().join(", "));
        problems.add(line, &section.key(key), format!("means nothing to {}", kind.word()), hint);
    }
    let actor = read_figures(
        &mut section,
        problems,
        Actor {
            application: application.unwrap_or_else(|| kind.application().to_owned()),
            lane,
            phases,
            ..defaults(kind)
        },
    );
    section.finish(problems);
    Some(actor)
}

fn defaults(kind: Kind) -> Actor {
    let work = if kind == Kind::Killed { Duration::from_secs(20) } else { Duration::from_millis(300) };
    Actor {
        kind,
        lane: String::new(),
        application: String::new(),
        phases: Vec::new(),
        workers: match kind {
            Kind::Leak | Kind::Killed => 50,
            Kind::Storm => 40,
            _ => 2,
        },
        pace: Pace::Poisson(1.0),
        count: 10,
        statements: 5,
        hot: 0.1,
        notify: 0.25,
        work,
        hold: Duration::from_secs(30),
        timeout: Duration::from_secs(120),
        max_waiting: 1000,
    }
}

fn read_figures(section: &mut Section<'_>, problems: &mut Problems<'_>, or: Actor) -> Actor {
    let rate = section.read(problems, "rate", number(0.001, RATE_MAX));
    let total = section.read(problems, "count", count(1, CLIENTS_MAX));
    let even = section.read(problems, "arrivals", |value| match text(value)?.as_str() {
        "poisson" => Ok(false),
        "even" => Ok(true),
        other => Err(format!("{other:?} is neither poisson nor even")),
    });
    if or.kind.is_scheduled()
        && rate.is_none()
        && total.is_none()
        && !section.has("rate")
        && !section.has("count")
    {
        let hint = "say how many arrive a second";
        problems.add(section.line(), &section.key("rate"), "is missing", hint);
    }
    if or.kind.is_scheduled() && section.has("rate") && section.has("count") {
        let hint = "a rate a second, or a count in all";
        problems.add(section.line(), &section.key("count"), "stands beside rate", hint);
    }
    let pace = match (rate, total) {
        (None, Some(total)) => Pace::Count(total),
        (rate, _) if even.unwrap_or(false) => Pace::Even(rate.unwrap_or(1.0)),
        (rate, _) => Pace::Poisson(rate.unwrap_or(1.0)),
    };
    Actor {
        pace,
        count: total.unwrap_or(or.count),
        workers: section.read(problems, "workers", count(1, CLIENTS_MAX)).unwrap_or(or.workers),
        statements: section.read(problems, "statements", count(0, 1_000)).unwrap_or(or.statements),
        hot: section.read(problems, "hot", number(0.0, 1.0)).unwrap_or(or.hot),
        notify: section.read(problems, "notify", number(0.0, 1.0)).unwrap_or(or.notify),
        work: section.read(problems, "work", time).unwrap_or(or.work),
        hold: section.read(problems, "hold", time).unwrap_or(or.hold),
        timeout: section.read(problems, "timeout", time).unwrap_or(or.timeout),
        max_waiting: section.read(problems, "max_waiting", count(1, 100_000)).unwrap_or(or.max_waiting),
        ..or
    }
}

fn read_actions(root: &mut Section<'_>, problems: &mut Problems<'_>, phases: &[Phase]) -> Vec<Action> {
    let end = phases.last().map_or(Duration::ZERO, |last| last.start + last.length);
    let mut actions = Vec::new();
    for mut section in root.tables(problems, "action") {
        let at = section.read(problems, "at", time);
        let phase = section.read(problems, "phase", word);
        let after = section.read(problems, "after", time).unwrap_or_default();
        let at = match (at, phase) {
            (Some(at), None) if !section.has("after") => at,
            (None, Some(name)) => match phases.iter().find(|phase| phase.name == name) {
                Some(phase) => phase.start + after,
                None => {
                    let text = format!("no phase is called {name:?}");
                    problems.add(
                        section.line(),
                        &section.key("phase"),
                        text,
                        "name a [[phase]] of this file",
                    );
                    Duration::ZERO
                }
            },
            _ => {
                let hint = "write at = \"25s\", or phase = \"incident\" with after = \"5s\"";
                problems.add(section.line(), &section.key("at"), "when is not clear", hint);
                Duration::ZERO
            }
        };
        if at > end {
            problems.add(
                section.line(),
                &section.key("at"),
                "is after the last phase",
                "let the last phase be longer",
            );
        }
        let console = section.read(problems, "console", text);
        let run = section.read(problems, "run", text);
        let leaks = section.read(problems, "reset_leaks", time);
        let deeds = [
            console.map(Deed::Console),
            run.map(Deed::Run),
            leaks.map(|idle| {
                Deed::ResetLeaks(idle, format!("RESET CLIENT of leaks idle for {} s", idle.as_secs_f64()))
            }),
        ];
        let mut deeds = deeds.into_iter().flatten();
        match (deeds.next(), deeds.next()) {
            (Some(deed), None) => actions.push(Action { at, deed }),
            _ => problems.add(
                section.line(),
                &section.key("console"),
                "what is not clear",
                "write console = …, reset_leaks = … or run = …",
            ),
        }
        section.finish(problems);
    }
    if actions.len() > ACTIONS_MAX {
        problems.add(1, "action", format!("more than {ACTIONS_MAX}"), "leave some out");
    }
    actions.sort_by_key(|action| action.at);
    actions
}

fn read_expect(
    root: &mut Section<'_>,
    problems: &mut Problems<'_>,
    scenario: &Scenario,
    // Rules, recover_within, reset.
) -> (Vec<Rule>, Option<Duration>, Option<Duration>) {
    let Some(mut section) = root.table(problems, "expect") else { return (Vec::new(), None, None) };
    let sources = section.read(problems, "rules", texts).unwrap_or_default();
    let line = section.line_of(problems, "rules");
    if sources.len() > RULES_MAX {
        problems.add(line, &section.key("rules"), format!("more than {RULES_MAX}"), "leave some out");
    }
    let lanes = scenario.lanes();
    let mut rules = Vec::new();
    for source in sources {
        let key = section.key("rules");
        match Rule::parse(&source) {
            Err(why) => problems.add(
                line,
                &key,
                format!("{source:?}: {why}"),
                "write web.failures == 0, web.p99 <= 1.5 * steady",
            ),
            Ok(rule) => {
                if let Subject::Lane(lane) = &rule.subject
                    && !lanes.contains(lane)
                {
                    let hint =
                        if lane == NOTIFY { "let a web actor notify" } else { "name the lane of an actor" };
                    problems.add(line, &key, format!("{source:?}: no actor has the lane {lane:?}"), hint);
                }
                if let Some(phase) = &rule.phase
                    && !scenario.phases.iter().any(|known| known.name == *phase)
                {
                    problems.add(
                        line,
                        &key,
                        format!("{source:?}: no phase is called {phase:?}"),
                        "name a [[phase]]",
                    );
                }
                if rule.of_steady() && !scenario.phases.iter().any(|phase| phase.steady) {
                    problems.add(
                        line,
                        &key,
                        format!("{source:?}: no phase is steady"),
                        "mark one steady = true",
                    );
                }
                rules.push(rule);
            }
        }
    }
    let recover_within = section.read(problems, "recover_within", time);
    if recover_within.is_some() && scenario.disturbed_until().is_none() {
        let line = section.line_of(problems, "recover_within");
        let hint = "mark a phase incident = true, or write an [[action]]";
        problems.add(line, &section.key("recover_within"), "there is nothing to recover from", hint);
    }
    let reset = section.read(problems, "reset", time);
    if reset.is_none() && !section.has("reset") && rules.iter().any(|rule| rule.figure == Figure::Late) {
        let hint = "say after how long the guard resets a leak: reset = \"5s\"";
        problems.add(line, &section.key("reset"), "is missing, and locks.late counts from it", hint);
    }
    section.finish(problems);
    (rules, recover_within, reset)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
title = "t"
[[phase]]
name = "steady"
duration = "10s"
steady = true
[[phase]]
name = "incident"
duration = "20s"
incident = true
[[actor]]
kind = "web"
workers = 6
rate = 40
[[actor]]
kind = "leak"
phases = ["incident"]
count = 2
hold = "5s"
[[action]]
phase = "incident"
after = "5s"
console = "FREEZE"
[expect]
rules = ["web.failures == 0", "web.p99 <= 1.5 * steady"]
recover_within = "20s"
"#;

    fn problems(source: &str) -> Vec<(usize, String)> {
        read(source).unwrap_err().into_iter().map(|p| (p.line, format!("{}: {}", p.key, p.message))).collect()
    }

    #[test]
    fn a_good_file_is_read() {
        let scenario = read(GOOD).unwrap();
        assert_eq!(scenario.length(), Duration::from_secs(30));
        assert_eq!(scenario.actors[0].pace, Pace::Poisson(40.0));
        assert_eq!(scenario.actors[0].phases, [0, 1]);
        assert_eq!(scenario.actors[1].pace, Pace::Count(2));
        assert_eq!(scenario.windows(&scenario.actors[0]), [(Duration::ZERO, Duration::from_secs(30))]);
        assert_eq!(
            scenario.windows(&scenario.actors[1]),
            [(Duration::from_secs(10), Duration::from_secs(30))]
        );
        assert_eq!(scenario.actions[0].at, Duration::from_secs(15));
        assert_eq!(scenario.lanes(), ["web", "notify", "leak"]);
        assert_eq!(scenario.disturbed_until(), Some(Duration::from_secs(15)));
        assert_eq!(scenario.rules.len(), 2);
    }

    #[test]
    fn stretching_moves_phases_and_actions_alone() {
        let scenario = read(GOOD).unwrap().stretched(Duration::from_secs(15));
        assert_eq!(scenario.length(), Duration::from_secs(15));
        assert_eq!(scenario.actions[0].at, Duration::from_millis(7500));
        assert_eq!(scenario.actors[1].hold, Duration::from_secs(5));
        assert_eq!(scenario.phase_at(Duration::from_secs(4)), 0);
        assert_eq!(scenario.phase_at(Duration::from_secs(5)), 1);
        assert_eq!(scenario.phase_at(Duration::from_secs(99)), 1);
    }

    #[test]
    fn everything_wrong_is_told_at_once_with_its_line() {
        let source = GOOD
            .replace("rate = 40", "rate = 0\ncolour = \"red\"")
            .replace("hold = \"5s\"", "hold = \"soon\"\nstatements = 4")
            .replace("phases = [\"incident\"]", "phases = [\"never\"]")
            .replace("web.failures == 0", "web.sadness == 0")
            .replace("web.p99 <=", "shop.p99 <=");
        let found = problems(&source);
        let keys = ["rate", "colour", "hold", "statements", "phases", "sadness", "shop"];
        for key in keys {
            assert!(found.iter().any(|(_, text)| text.contains(key)), "{key} is missing in {found:?}");
        }
        let line = 1 + source.lines().position(|line| line.starts_with("colour")).unwrap();
        assert!(found.contains(&(line, "actor[1].colour: unknown key".into())), "{found:?}");
        assert_eq!(found.len(), keys.len(), "{found:?}");
    }

    #[test]
    fn what_is_missing_is_told() {
        let found = problems("");
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(!problems("x = [").is_empty());
        let no_rate = GOOD.replace("rate = 40\n", "");
        assert_eq!(problems(&no_rate)[0].1, "actor[1].rate: is missing");
        let both = GOOD.replace("count = 2", "count = 2\nrate = 3");
        assert_eq!(problems(&both)[0].1, "actor[2].count: stands beside rate");
    }

    #[test]
    fn an_action_has_one_time_and_one_deed() {
        for wrong in [
            GOOD.replace("console = \"FREEZE\"", ""),
            GOOD.replace("console = \"FREEZE\"", "console = \"FREEZE\"\nrun = \"true\""),
            GOOD.replace("after = \"5s\"", "at = \"5s\""),
            GOOD.replace("after = \"5s\"", "after = \"50s\""),
        ] {
            assert_eq!(problems(&wrong).len(), 1, "{wrong}");
        }
    }

    #[test]
    fn a_yardstick_and_something_to_recover_from_are_needed() {
        assert!(problems(&GOOD.replace("steady = true", "")).iter().any(|(_, text)| text.contains("steady")));
        let calm = GOOD
            .replace("incident = true", "")
            .replace("[[action]]\nphase = \"incident\"\nafter = \"5s\"\nconsole = \"FREEZE\"\n", "");
        assert!(problems(&calm).iter().any(|(_, text)| text.contains("nothing to recover")));
    }
}
