//! `pgweir report`: an incident as Markdown, or as one self-contained page.

mod html;
mod md;

use std::path::Path;

use super::args::{Format, Report, Which};
use super::console::{Console, Failure};
use super::print;
use crate::incident::record::{At, Incident, Modes};

/// Asks for the record and writes the report; false where nobody reads it any more.
pub async fn run(console: &Console, wanted: &Report) -> Result<bool, Failure> {
    let list = console.show("SHOW INCIDENTS").await?;
    let ids = (0..list.rows.len()).filter_map(|row| list.get(row, "id")?.parse::<u64>().ok());
    let id = match wanted.incident {
        Which::Number(id) => id,
        Which::Latest => ids
            .max()
            .ok_or_else(|| Failure::Refused("there was no incident yet: nothing to report".into()))?,
    };
    let record = console.show(&format!("SHOW INCIDENT {id}")).await?;
    let record = record.get(0, "incident").ok_or_else(|| {
        Failure::Refused(format!(
            "there is no incident {id}, or its record cannot be read: SHOW INCIDENTS lists them"
        ))
    })?;
    let incident: Incident = serde_json::from_str(record)
        .map_err(|error| Failure::Refused(format!("the record of incident {id} is none: {error}")))?;
    let text = match wanted.format {
        Format::Md => md::page(&incident),
        Format::Html => html::page(&incident),
    };
    match &wanted.output {
        None => print(&text),
        Some(file) => {
            write(file, &text)?;
            print(&format!("incident {id}: {}\n", file.display()))
        }
    }
}

fn write(file: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(file, text)
        .map_err(|error| Failure::Refused(format!("cannot write {}: {error}", file.display())))
}

/// What is to be said where nobody did anything.
fn nobody(modes: Modes) -> &'static str {
    if modes.observe && !modes.enforce {
        "Nobody did anything, nor did pgweir: in mode observe it only records what it would have done."
    } else {
        "Nobody did anything: what happened, pgweir did by itself."
    }
}

/// What the mode means for everything in the report; nothing where all that pgweir decided was carried out.
fn observed(modes: Modes) -> Option<&'static str> {
    match (modes.observe, modes.enforce) {
        (false, _) => None,
        (true, false) => Some(
            "pgweir was in mode observe: what its own entries say of shedding, holding, refusing and resetting is what it would have done; \
             it did none of it.",
        ),
        (true, true) => Some(
            "pgweir was in mode observe for a part of it: what its own entries say of shedding, holding, refusing and resetting in that time \
             is what it would have done. The entry enforce tells when it began to do it.",
        ),
    }
}

/// What was done by people: everything but pgweir's own entries.
fn is_act(who: &str) -> bool {
    who != "pgweir"
}

fn utc(at: At) -> String {
    crate::snapshot::utc(crate::clock::WallMs(at.0))
}

/// The incident in a sentence or two.
fn summary(incident: &Incident) -> String {
    let began = format!(
        "Incident {} began {} by {}: {}.",
        incident.id,
        utc(incident.opened_at),
        incident.trigger,
        incident.cause
    );
    let peak = incident.peak_percent.map_or_else(|| "unknown".into(), |peak| format!("{peak:.1} %"));
    let ended = match incident.closed_at {
        None => "It is still open.".to_owned(),
        Some(at) => format!(
            "It was over {}, {} later: every criterion was met for {}.",
            utc(at),
            span(at.0.saturating_sub(incident.opened_at.0)),
            span(incident.hold_for_ms)
        ),
    };
    format!("{began} Peak usage {peak}. {ended}")
}

/// Milliseconds as people say them.
fn span(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..120 => format!("{s} s"),
        120..7200 => format!("{} min {} s", s / 60, s % 60),
        _ => format!("{} h {} min", s / 3600, s / 60 % 60),
    }
}

/// Totals of a lane over the whole incident.
struct LaneSummary<'a> {
    name: &'a str,
    slots_max: u32,
    waiting_max: u32,
    committed: u64,
    failed: u64,
}

fn lanes(incident: &Incident) -> Vec<LaneSummary<'_>> {
    let rows = &incident.figures.rows;
    let summary = incident.figures.lanes.iter().enumerate().map(|(n, name)| {
        let figures = || rows.iter().filter_map(move |row| row.lanes.get(n));
        LaneSummary {
            name,
            slots_max: figures().map(|figures| figures.slots).max().unwrap_or(0),
            waiting_max: figures().map(|figures| figures.waiting).max().unwrap_or(0),
            committed: figures().map(|figures| figures.committed).sum(),
            failed: figures().map(|figures| figures.failed).sum(),
        }
    });
    summary.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::record::{Figures, LaneFigures, Row, Said};
    use crate::snapshot::TimelineEntry;

    fn entry(seq: u64, who: &str, event: &str, text: &str) -> TimelineEntry {
        TimelineEntry {
            seq,
            at: 1_700_000_000_000 + seq * 1000,
            who: who.into(),
            event: event.into(),
            lane: "cron".into(),
            client: None,
            text: text.into(),
            usage: Some(91.0),
        }
    }

    fn incident() -> Incident {
        let lane = |slots, committed, failed| LaneFigures {
            state: "paused".into(),
            slots,
            waiting: 2,
            committed,
            failed,
        };
        let row = |at, slots| Row {
            at: At(at),
            usage: Some(80.0),
            connections: 40,
            bypass: 1,
            lanes: vec![lane(slots, 5, 1)],
            probes: vec![Some(7.0)],
        };
        let said = Said {
            at: At(1_700_000_060_000),
            criterion: "usage".into(),
            state: "met".into(),
            measured: "60 %".into(),
            wanted: "below 75 %".into(),
            reason: "below 75 % for 15 min".into(),
        };
        Incident {
            id: 7,
            opened_at: At(1_700_000_000_000),
            trigger: "usage".into(),
            cause: "usage 91.0 %, from 75 % on".into(),
            closed_at: Some(At(1_700_001_000_000)),
            peak_percent: Some(91.0),
            hold_for_ms: 900_000,
            events: vec![
                entry(1, "pgweir", "shed", "usage 91.0 %"),
                entry(2, "admin (alice)", "freeze", "sale | on </script><b>"),
            ],
            changes: vec![said.clone()],
            criteria: vec![said],
            figures: Figures {
                lanes: vec!["cron".into()],
                probes: vec!["queue".into()],
                every_ms: 5000,
                rows: vec![row(1_700_000_000_000, 4), row(1_700_000_005_000, 9)],
            },
            ..Incident::default()
        }
    }

    #[test]
    fn both_formats_tell_when_who_what_and_what_the_criteria_said() {
        for text in [md::page(&incident()), html::page(&incident())] {
            for part in [
                "Incident 7",
                "2023-11-14T22:13:20.000Z",
                "admin (alice)",
                "freeze",
                "below 75 % for 15 min",
                "91.0 %",
                "16 min 40 s",
                "queue",
            ] {
                assert!(text.contains(part), "{part} is not in {text}");
            }
        }
    }

    #[test]
    fn what_others_wrote_is_no_markup() {
        let page = html::page(&incident());
        assert!(!page.contains("</script><b>") && !page.contains("src="));
        assert!(md::page(&incident()).contains("sale \\| on &lt;/script>&lt;b>"));
    }

    #[test]
    fn what_was_only_observed_is_told_as_what_would_have_been_done() {
        let of = |observe, enforce| {
            let mut seen = incident();
            seen.events.retain(|event| !is_act(&event.who));
            seen.modes = Modes { observe, enforce };
            [md::page(&seen), html::page(&seen)]
        };
        let says = |texts: &[String], words: &str| texts.iter().all(|text| text.contains(words));
        let silent = |texts: &[String], words: &str| texts.iter().all(|text| !text.contains(words));
        for enforced in [of(false, true), of(false, false)] {
            assert!(says(&enforced, "pgweir did by itself") && silent(&enforced, "would have"));
        }
        let observed = of(true, false);
        assert!(
            silent(&observed, "did by itself") && says(&observed, "what it would have done; it did none")
        );
        let both = of(true, true);
        assert!(says(&both, "did by itself") && says(&both, "observe for a part of it"));
    }

    #[test]
    fn an_incident_of_nothing_can_be_reported() {
        let bare = Incident { id: 1, ..Incident::default() };
        assert!(md::page(&bare).contains("still open") && html::page(&bare).contains("still open"));
    }
}
