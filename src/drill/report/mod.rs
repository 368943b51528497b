//! What a drill says when it is over: a table for people, one object for programs, one page for everybody. Only reads.

pub mod html;
pub mod json;
pub mod text;

use super::expect::{Scope, Verdict};
use super::run::Run;
use super::scenario::{Kind, Scenario};
use super::tally::Lane;

/// A drill's runs and what became of its expectations.
pub struct Drill<'a> {
    /// What was played.
    pub scenario: &'a Scenario,
    /// Its name on the command line.
    pub name: &'a str,
    /// Decided all choices.
    pub seed: u64,
    /// In the order they were played.
    pub runs: &'a [Run],
    /// Per run, in the order of `runs`.
    pub verdicts: Vec<Vec<Verdict>>,
    /// Ways that must hold the expectations.
    pub judged: &'a [String],
}

impl<'a> Drill<'a> {
    /// Judges the runs.
    pub fn new(
        scenario: &'a Scenario,
        name: &'a str,
        seed: u64,
        runs: &'a [Run],
        judged: &'a [String],
    ) -> Self {
        let verdicts = runs.iter().map(|run| run.judge(scenario, runs)).collect();
        Self { scenario, name, seed, runs, verdicts, judged }
    }

    /// Whether every way that must hold the expectations was played to its end and holds them.
    pub fn held(&self) -> bool {
        self.judged.iter().all(|way| {
            let run = self.runs.iter().zip(&self.verdicts).find(|(run, _)| run.way == *way);
            run.is_some_and(|(run, verdicts)| !run.interrupted && verdicts.iter().all(|verdict| verdict.held))
        })
    }

    /// The lane people look at first: that of the first web actor, or the first of all.
    pub fn first_lane(&self) -> &str {
        let actors = &self.scenario.actors;
        let web = actors.iter().find(|actor| actor.kind == Kind::Web).or(actors.first());
        web.map_or("", |actor| actor.lane.as_str())
    }

    /// What happened to users, in one sentence.
    pub fn sentence(&self) -> String {
        let lane = self.first_lane();
        let parts = self.runs.iter().filter_map(|run| {
            let found = run.tally.lanes.iter().find(|found| found.name == lane)?;
            let way = if run.way == "direct" { "direct".to_owned() } else { format!("through {}", run.way) };
            Some(format!("{way}: {}", outcome(run, found)))
        });
        let parts: Vec<String> = parts.collect();
        if parts.is_empty() {
            "Nothing was played.".into()
        } else {
            format!("{lane} requests, {}.", parts.join("; "))
        }
    }

    /// Whether what had to hold held, in one sentence.
    pub fn verdict(&self) -> String {
        if self.held() {
            return format!("Every expectation held ({}).", self.judged.join(", "));
        }
        let mut broken = Vec::new();
        for way in self.judged {
            match self.runs.iter().zip(&self.verdicts).find(|(run, _)| run.way == *way) {
                None => broken.push(format!("{way} was not played")),
                Some((run, _)) if run.interrupted => broken.push(format!("{way} was interrupted")),
                Some((_, verdicts)) => {
                    let of_way = verdicts.iter().filter(|verdict| !verdict.held);
                    broken.extend(
                        of_way.map(|verdict| {
                            format!("{way}: {}, measured {}", verdict.rule, measured(verdict))
                        }),
                    );
                }
            }
        }
        format!("Not held: {}.", broken.join("; "))
    }
}

fn outcome(run: &Run, lane: &Lane) -> String {
    let requests = lane.ok + lane.user_failures;
    let failed = if lane.user_failures == 0 {
        format!("none of {} failed", thousands(requests))
    } else {
        let share = lane.user_failures as f64 * 100.0 / requests.max(1) as f64;
        format!("{} of {} failed ({share:.1} %)", thousands(lane.user_failures), thousands(requests))
    };
    let response = run.latencies(lane, Scope::Whole).response;
    let time = |quantile| show_ms(response.value_at_quantile(quantile) as f64 / 1e3);
    let lost = run.lost.filter(|lost| *lost > 0).map(|lost| format!(", {lost} told saved and not there"));
    format!("{failed}, p99 {}, slowest {}{}", time(0.99), time(1.0), lost.unwrap_or_default())
}

/// A measured figure with its unit.
pub fn measured(verdict: &Verdict) -> String {
    let value = verdict.measured.map_or_else(|| "nothing".to_owned(), |value| show(value, verdict.unit));
    verdict.note.as_ref().map_or(value.clone(), |note| format!("{value}: {note}"))
}

/// A figure with its unit.
pub fn show(value: f64, unit: &str) -> String {
    match unit {
        "ms" => show_ms(value),
        "s" => format!("{value:.1} s"),
        _ => thousands(value.round() as u64),
    }
}

/// Milliseconds as people read them.
pub fn show_ms(ms: f64) -> String {
    match ms {
        ms if ms >= 10_000.0 => format!("{:.1} s", ms / 1e3),
        ms if ms >= 1_000.0 => format!("{:.2} s", ms / 1e3),
        ms if ms >= 10.0 => format!("{ms:.0} ms"),
        ms => format!("{ms:.1} ms"),
    }
}

/// A count as people read it.
pub fn thousands(count: u64) -> String {
    let digits = count.to_string();
    let groups: Vec<&str> = {
        let first = digits.len() % 3;
        let (head, tail) = digits.split_at(first);
        let rest = tail.as_bytes().chunks(3).map(|chunk| std::str::from_utf8(chunk).unwrap_or_default());
        std::iter::once(head).filter(|head| !head.is_empty()).chain(rest).collect()
    };
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_shown_as_people_read_them() {
        assert_eq!(
            ["0", "999", "1,000", "1,234,567"],
            [0, 999, 1000, 1_234_567].map(thousands).each_ref().map(String::as_str)
        );
        assert_eq!(show_ms(1.23), "1.2 ms");
        assert_eq!(show_ms(123.4), "123 ms");
        assert_eq!(show_ms(1234.0), "1.23 s");
        assert_eq!(show_ms(20_400.0), "20.4 s");
    }
}
