//! The incident as one page: text and tables as plain HTML, plots drawn from the figures beside them.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{is_act, lanes, nobody, observed, summary, utc};
use crate::incident::record::{At, Incident, Said};
use crate::page::{Page, document, escape};

const PAGE_JS: &str = include_str!("page.js");

/// The report. Nothing in it is loaded from elsewhere.
pub fn page(incident: &Incident) -> String {
    let open = if incident.closed_at.is_none() { " broken" } else { "" };
    let mut out = format!(
        "<h1>Incident {}</h1>\n<p class=\"verdict{open}\">{}</p>\n",
        incident.id,
        escape(&summary(incident))
    );
    if let Some(observed) = observed(incident.modes) {
        let _ = write!(out, "<p>{}</p>", escape(observed));
    }
    acts(&mut out, incident);
    out.push_str(
        "<h2>Usage and connections</h2><div class=\"pair\" id=\"usage\"></div>\
         <h2>Lanes</h2><p class=\"soft key\">",
    );
    for state in ["open", "paused", "shedding", "ramping", "over"] {
        let _ = write!(out, "<i style=\"background:var(--{state})\"></i>{state}");
    }
    out.push_str(
        "</p><div class=\"pair\" id=\"states\"></div><div class=\"pair\" id=\"lanes\"></div>\
         <div id=\"probes-section\"><h2>Probes</h2><div class=\"pair\" id=\"probes\"></div></div>",
    );
    table_of_lanes(&mut out, incident);
    criteria(&mut out, "What the criteria say", &incident.criteria);
    criteria(&mut out, "How that came about", &incident.changes);
    timeline(&mut out, incident);
    let title = format!("Incident {}", incident.id);
    document(&Page { title: &title, body: &out, data: ("incident", &data(incident)), script: PAGE_JS })
}

fn acts(out: &mut String, incident: &Incident) {
    out.push_str("<h2>Who did what</h2><ol class=\"acts\">");
    let acts: Vec<_> = incident.events.iter().filter(|event| is_act(&event.who)).collect();
    for act in &acts {
        let _ = write!(
            out,
            "<li>{} <b>{}</b> {}{}{}: {}</li>",
            utc(At(act.at)),
            escape(&act.who),
            escape(&act.event),
            if act.lane.is_empty() { "" } else { " " },
            escape(&act.lane),
            escape(&act.text)
        );
    }
    out.push_str("</ol>");
    if acts.is_empty() {
        let _ = write!(out, "<p>{}</p>", escape(nobody(incident.modes)));
    } else {
        out.push_str(
            "<p class=\"soft\">The numbers are those of the dashed lines in the plots. Times are UTC.</p>",
        );
    }
}

fn table_of_lanes(out: &mut String, incident: &Incident) {
    out.push_str(
        "<div class=\"wide\"><table><tr><th>lane<th class=\"number\">slots at most<th>waiting at most<th>committed<th>failed</tr>",
    );
    for lane in lanes(incident) {
        let bad = if lane.failed > 0 { " class=\"bad\"" } else { "" };
        let _ = write!(
            out,
            "<tr><td>{}<td class=\"number\">{}<td>{}<td>{}<td{bad}>{}</tr>",
            escape(lane.name),
            lane.slots_max,
            lane.waiting_max,
            lane.committed,
            lane.failed
        );
    }
    out.push_str("</table></div>");
}

fn criteria(out: &mut String, heading: &str, said: &[Said]) {
    let _ = write!(
        out,
        "<h2>{heading}</h2><div class=\"wide\"><table class=\"rules log\"><tr><th class=\"text\">when<th class=\"text\">criterion\
         <th class=\"text\">state<th class=\"text\">measured<th class=\"text\">wanted<th class=\"text\">why</tr>"
    );
    for said in said {
        let class = if said.state == "met" { "good" } else { "bad" };
        let _ = write!(
            out,
            "<tr><td class=\"when\">{}<td>{}<td class=\"when {class}\">{}<td data-of=\"measured\">{}\
             <td data-of=\"wanted\">{}<td data-of=\"why\">{}</tr>",
            utc(said.at),
            escape(&said.criterion),
            escape(&said.state),
            escape(&said.measured),
            escape(&said.wanted),
            escape(&said.reason)
        );
    }
    out.push_str("</table></div>");
}

fn timeline(out: &mut String, incident: &Incident) {
    out.push_str(
        "<h2>Timeline</h2><div class=\"wide\"><table class=\"rules log\"><tr><th class=\"text\">when<th class=\"text\">usage\
         <th class=\"text\">who<th class=\"text\">what<th class=\"text\">lane<th class=\"text\"></tr>",
    );
    for event in &incident.events {
        let usage = event.usage.map_or_else(String::new, |usage| format!("{usage:.1} %"));
        let _ = write!(
            out,
            "<tr><td class=\"when\">{}<td class=\"when\">{usage}<td>{}<td>{}<td>{}<td>{}</tr>",
            utc(At(event.at)),
            escape(&event.who),
            escape(&event.event),
            escape(&event.lane),
            escape(&event.text)
        );
    }
    out.push_str("</table></div>");
    if incident.events_left_out > 0 {
        let _ = write!(
            out,
            "<p class=\"soft\">{} more entries of pgweir's own were left out.</p>",
            incident.events_left_out
        );
    }
}

/// What the plots are drawn from; times in seconds since 1970.
fn data(incident: &Incident) -> Value {
    let seconds = |at: At| at.0 as f64 / 1e3;
    let figures = &incident.figures;
    let rows = figures.rows.iter().map(|row| {
        let lanes = row
            .lanes
            .iter()
            .map(|lane| json!([lane.state, lane.slots, lane.waiting, lane.committed, lane.failed]));
        json!({
            "at": seconds(row.at),
            "usage": row.usage,
            "connections": row.connections,
            "bypass": row.bypass,
            "lanes": lanes.collect::<Vec<_>>(),
            "probes": row.probes,
        })
    });
    let acts = incident.events.iter().filter(|event| is_act(&event.who)).map(|event| seconds(At(event.at)));
    json!({
        "begin": seconds(incident.opened_at),
        "end": incident.closed_at.map(seconds),
        "step": figures.every_ms as f64 / 1e3,
        "lanes": figures.lanes,
        "probes": figures.probes,
        "rows": rows.collect::<Vec<_>>(),
        "acts": acts.collect::<Vec<_>>(),
    })
}
