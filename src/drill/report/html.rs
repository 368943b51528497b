//! The drill as one self-contained page: verdict, table and expectations as plain HTML, plots drawn by uPlot from the series beside them.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::{Drill, measured, show, show_ms, thousands};
use crate::drill::expect::Scope;
use crate::drill::operator::Outcome;
use crate::drill::run::Run;
use crate::page::{Page, document, escape};

const PAGE_JS: &str = include_str!("page.js");

/// The page. Nothing in it is loaded from elsewhere.
pub fn page(drill: &Drill<'_>) -> String {
    let title = escape(&drill.scenario.title);
    let broken = if drill.held() { "" } else { " broken" };
    let mut out = format!(
        "<h1>{title}</h1>\n<p>{}</p>\n<p class=\"verdict{broken}\">{}</p>\n<p class=\"soft\">Scenario {}, seed {}. {}</p>\n",
        escape(&drill.sentence()),
        escape(&drill.verdict()),
        escape(drill.name),
        drill.seed,
        escape(&drill.scenario.description),
    );
    for run in drill.runs {
        if let Some(why) = &run.generator.bottleneck {
            let why = format!("{}: the drill itself may have been the bottleneck: {why}", run.way);
            let _ = write!(out, "<p class=\"warning\">{}</p>", escape(&why));
        }
        if run.interrupted {
            let _ =
                write!(out, "<p class=\"warning\">{} was interrupted: figures so far.</p>", escape(&run.way));
        }
    }
    table(&mut out, drill);
    expectations(&mut out, drill);
    sections(&mut out, drill);
    let title = format!("Drill: {}", drill.scenario.title);
    document(&Page { title: &title, body: &out, data: ("drill", &data(drill)), script: PAGE_JS })
}

fn table(out: &mut String, drill: &Drill<'_>) {
    out.push_str(
        "<h2>Side by side</h2><div class=\"wide\"><table><tr><th>lane<th>way<th>users failed<th>p50<th>p90<th>p99<th>slowest\
         <th>wait p99<th>attempts<th>ok<th>unfinished<th>retries<th class=\"text\">failed attempts</tr>",
    );
    for name in drill.scenario.lanes() {
        for (at, run) in drill.runs.iter().enumerate() {
            let Some(lane) = run.tally.lanes.iter().find(|lane| lane.name == name) else { continue };
            let all = run.latencies(lane, Scope::Whole);
            let ms = |histogram: &hdrhistogram::Histogram<u32>, quantile| match histogram.is_empty() {
                true => "–".into(),
                false => show_ms(histogram.value_at_quantile(quantile) as f64 / 1e3),
            };
            let failures: Vec<String> =
                lane.failures.iter().map(|(label, n)| format!("{label} × {n}")).collect();
            let _ = write!(
                out,
                "<tr{}><td>{}<td>{}<td{}>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td class=\"text\">{}</tr>",
                if at == 0 { " class=\"first\"" } else { "" },
                escape(&name),
                escape(&run.way),
                if lane.user_failures > 0 { " class=\"bad\"" } else { "" },
                thousands(lane.user_failures),
                ms(&all.response, 0.5),
                ms(&all.response, 0.9),
                ms(&all.response, 0.99),
                ms(&all.response, 1.0),
                ms(&all.wait, 0.99),
                thousands(lane.attempts()),
                thousands(lane.ok),
                thousands(lane.unfinished),
                thousands(lane.retries),
                escape(&failures.join(", ")),
            );
        }
    }
    out.push_str("</table></div><p class=\"soft\">Times count from the scheduled arrival, waiting for a worker and a connection included; \
        what was refused is counted, not timed.</p>");
}

fn expectations(out: &mut String, drill: &Drill<'_>) {
    out.push_str("<h2>What had to hold</h2><div class=\"wide\"><table class=\"rules\"><tr><th class=\"text\">rule<th class=\"text\">way\
        <th class=\"text\">held<th class=\"text\">measured<th class=\"text\">limit</tr>");
    for (run, verdicts) in drill.runs.iter().zip(&drill.verdicts) {
        let note = if drill.judged.contains(&run.way) {
            ""
        } else {
            " <span class=\"soft\">(for comparison)</span>"
        };
        for verdict in verdicts {
            let (class, word) = if verdict.held { ("good", "held") } else { ("bad", "not held") };
            let _ = write!(
                out,
                "<tr><td><code>{}</code><td>{}{note}<td class=\"{class}\">{word}<td>{}<td>{}</tr>",
                escape(&verdict.rule),
                escape(&run.way),
                escape(&measured(verdict)),
                verdict.limit.map_or("–".into(), |limit| escape(&show(limit, verdict.unit))),
            );
        }
    }
    out.push_str("</table></div>");
}

fn sections(out: &mut String, drill: &Drill<'_>) {
    out.push_str(
        "<h2>Latency of <select id=\"lane\"></select></h2><div class=\"pair\" id=\"latency\"></div>\
         <h2>Requests done a second, by lane</h2><div class=\"pair\" id=\"throughput\"></div>\
         <h2>Requests failed for users a second, by lane</h2><div class=\"pair\" id=\"failures\"></div>\
         <h2>Connections at PostgreSQL</h2><div class=\"pair\" id=\"upstream\"></div>\
         <div id=\"states-section\"><h2>pgweir's lanes</h2><p class=\"soft key\">",
    );
    for state in ["open", "paused", "shedding", "ramping", "over"] {
        let _ = write!(out, "<i style=\"background:var(--{state})\"></i>{state}");
    }
    out.push_str("</p><div class=\"pair\" id=\"states\"></div></div><h2>Events</h2>");
    for run in drill.runs {
        let _ = write!(out, "<h3>{}</h3><ol class=\"events\">", escape(&run.way));
        for (at, text) in events(run) {
            let _ = write!(out, "<li>{at:.1} s: {}</li>", escape(&text));
        }
        out.push_str("</ol>");
    }
}

/// The operator's acts and pgweir's timeline, in order.
fn events(run: &Run) -> Vec<(f64, String)> {
    let acts = run.acts.iter().map(|act| {
        let outcome = match &act.outcome {
            Outcome::Done => String::new(),
            Outcome::Skipped => " (skipped: no console)".into(),
            Outcome::Failed(why) => format!(" (failed: {why})"),
        };
        (act.at.as_secs_f64(), format!("operator: {}{outcome}", act.text))
    });
    let timeline = run.observed.events.iter().map(|(at, text)| (at.as_secs_f64(), format!("pgweir: {text}")));
    let mut events: Vec<(f64, String)> = acts.chain(timeline).collect();
    events.sort_by(|a, b| a.0.total_cmp(&b.0));
    events
}

/// What the plots are drawn from.
fn data(drill: &Drill<'_>) -> Value {
    let phases = drill.scenario.phases.iter().map(|phase| {
        json!({"name": phase.name, "start": phase.start.as_secs_f64(), "length": phase.length.as_secs_f64(), "incident": phase.incident})
    });
    let runs = drill.runs.iter().map(|run| {
        let lanes: Map<String, Value> = run
            .tally
            .lanes
            .iter()
            .map(|lane| {
                let points = lane.series.iter().map(|p| json!([p.ok, p.user_failures, p.errors, p.p50_ms, p.p99_ms, p.max_ms]));
                (lane.name.clone(), points.collect())
            })
            .collect();
        let states: Map<String, Value> = run
            .observed
            .lanes
            .iter()
            .map(|(name, looks)| {
                let looks = looks.iter().map(|look| json!([look.at.as_secs_f64(), look.state, look.slots, look.waiting]));
                (name.clone(), looks.collect())
            })
            .collect();
        json!({
            "way": run.way,
            "step": run.tally.step.as_secs_f64(),
            "lanes": lanes,
            "states": states,
            "upstream": run.observed.upstream.iter().map(|(at, n)| json!([at.as_secs_f64(), n])).collect::<Vec<_>>(),
            "usable": run.capacity.usable,
            "max_connections": run.capacity.max_connections,
            "events": events(run),
        })
    });
    json!({
        "lanes": drill.scenario.lanes(),
        "first": drill.first_lane(),
        "length": drill.scenario.length().as_secs_f64(),
        "phases": phases.collect::<Vec<_>>(),
        "runs": runs.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_nothing_is_still_a_page_and_loads_nothing() {
        let source = "title = \"</script><b>\"\n[[phase]]\nname = \"a\"\nduration = \"10s\"\n[[actor]]\nkind = \"web\"\nrate = 1";
        let scenario = crate::drill::scenario::read(source).unwrap();
        let page = page(&Drill::new(&scenario, "x", 1, &[], &[]));
        assert!(page.contains("&lt;/script&gt;&lt;b&gt;") && !page.contains("</script><b>"));
        assert!(!page.contains("src=") && !page.contains("@import") && !page.contains("<link"));
    }
}
