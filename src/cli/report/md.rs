//! The incident as Markdown.

use std::fmt::Write;

use super::{is_act, lanes, nobody, observed, span, summary, utc};
use crate::incident::record::{At, Incident, Said};

/// Bars of the usage over time at most.
const BARS: usize = 60;

/// The report.
pub fn page(incident: &Incident) -> String {
    let mut out = format!("# Incident {}\n\n{}\n", incident.id, cell(&summary(incident)));
    if let Some(observed) = observed(incident.modes) {
        let _ = write!(out, "\n{observed}\n");
    }
    acts(&mut out, incident);
    figures(&mut out, incident);
    criteria(&mut out, "What the criteria say", &incident.criteria);
    criteria(&mut out, "How that came about", &incident.changes);
    timeline(&mut out, incident);
    out
}

/// A text that breaks no table and is no markup.
fn cell(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    text.replace('\\', "\\\\")
        .replace('|', "\\|")
        .replace('<', "&lt;")
        .replace('`', "\\`")
        .replace('*', "\\*")
}

fn acts(out: &mut String, incident: &Incident) {
    out.push_str("\n## Who did what\n\n");
    let mut none = true;
    for event in incident.events.iter().filter(|event| is_act(&event.who)) {
        none = false;
        let lane = if event.lane.is_empty() { String::new() } else { format!(" {}", cell(&event.lane)) };
        let _ = writeln!(
            out,
            "- {} **{}** {}{lane}: {}",
            utc(At(event.at)),
            cell(&event.who),
            cell(&event.event),
            cell(&event.text)
        );
    }
    if none {
        let _ = writeln!(out, "{}", nobody(incident.modes));
    }
}

fn figures(out: &mut String, incident: &Incident) {
    let rows = &incident.figures.rows;
    if rows.is_empty() {
        return;
    }
    out.push_str("\n## Figures\n\n| lane | slots at most | waiting at most | committed | failed |\n| --- | ---: | ---: | ---: | ---: |\n");
    for lane in lanes(incident) {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} |",
            cell(lane.name),
            lane.slots_max,
            lane.waiting_max,
            lane.committed,
            lane.failed
        );
    }
    let step = rows.len().div_ceil(BARS);
    let length = span(incident.figures.every_ms.saturating_mul(step as u64));
    let _ = writeln!(out, "\nUsage in percent, the highest of each {length}:\n\n```");
    for chunk in rows.chunks(step) {
        let usage = chunk.iter().filter_map(|row| row.usage).reduce(f64::max);
        let Some(at) = chunk.first().map(|row| utc(row.at)) else { continue };
        let time = at.get(11..19).unwrap_or(&at);
        match usage {
            None => _ = writeln!(out, "{time}      ? unknown"),
            Some(usage) => {
                // Above 100 where PostgreSQL was full of others.
                let bar = "#".repeat((usage.clamp(0.0, 120.0) / 2.0).round() as usize);
                _ = writeln!(out, "{time} {usage:6.1} {bar}");
            }
        }
    }
    out.push_str("```\n");
    for (n, name) in incident.figures.probes.iter().enumerate() {
        let numbers: Vec<f64> = rows.iter().filter_map(|row| row.probes.get(n).copied().flatten()).collect();
        if let (Some(first), Some(last)) = (numbers.first(), numbers.last()) {
            let most = numbers.iter().copied().fold(f64::MIN, f64::max);
            let _ =
                writeln!(out, "\nProbe {}: {first} at first, {most} at most, {last} in the end.", cell(name));
        }
    }
}

fn criteria(out: &mut String, heading: &str, said: &[Said]) {
    if said.is_empty() {
        return;
    }
    let _ = write!(
        out,
        "\n## {heading}\n\n| when | criterion | | measured | wanted | why |\n| --- | --- | --- | --- | --- | --- |\n"
    );
    for said in said {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} |",
            utc(said.at),
            cell(&said.criterion),
            cell(&said.state),
            cell(&said.measured),
            cell(&said.wanted),
            cell(&said.reason)
        );
    }
}

fn timeline(out: &mut String, incident: &Incident) {
    out.push_str(
        "\n## Timeline\n\n| when | usage | who | what | lane | |\n| --- | ---: | --- | --- | --- | --- |\n",
    );
    for event in &incident.events {
        let usage = event.usage.map_or_else(String::new, |usage| format!("{usage:.1} %"));
        let _ = writeln!(
            out,
            "| {} | {usage} | {} | {} | {} | {} |",
            utc(At(event.at)),
            cell(&event.who),
            cell(&event.event),
            cell(&event.lane),
            cell(&event.text)
        );
    }
    if incident.events_left_out > 0 {
        let _ = writeln!(out, "\n{} more entries of pgweir's own were left out.", incident.events_left_out);
    }
}
