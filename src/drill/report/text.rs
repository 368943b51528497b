//! The drill as text for a terminal.

use std::fmt::Write;

use super::{Drill, measured, show, show_ms, thousands};
use crate::drill::expect::Scope;
use crate::drill::operator::Outcome;
use crate::drill::run::Run;

/// The verdict, a table, the expectations, and what else must be known.
pub fn page(drill: &Drill<'_>) -> String {
    let mut out = format!("{}\n{}\n\n{}\n", drill.sentence(), drill.verdict(), drill.scenario.title);
    table(&mut out, drill);
    for (run, verdicts) in drill.runs.iter().zip(&drill.verdicts) {
        let must = if drill.judged.contains(&run.way) { "" } else { " (for comparison)" };
        let _ = writeln!(out, "\n{}{must}", run.way);
        for verdict in verdicts {
            let sign = if verdict.held { "held    " } else { "NOT HELD" };
            let limit = verdict
                .limit
                .map(|limit| format!(", limit {}", show(limit, verdict.unit)))
                .unwrap_or_default();
            let _ = writeln!(out, "  {sign}  {}  (measured {}{limit})", verdict.rule, measured(verdict));
        }
        remarks(&mut out, run);
    }
    out
}

const HEAD: [&str; 11] =
    ["lane", "way", "attempts", "ok", "failed", "unfinished", "retries", "p50", "p99", "max", "wait p99"];

fn table(out: &mut String, drill: &Drill<'_>) {
    let mut rows: Vec<Vec<String>> = vec![HEAD.map(str::to_owned).to_vec()];
    for name in drill.scenario.lanes() {
        for run in drill.runs {
            let Some(lane) = run.tally.lanes.iter().find(|lane| lane.name == name) else { continue };
            let all = run.latencies(lane, Scope::Whole);
            let ms = |histogram: &hdrhistogram::Histogram<u32>, quantile| {
                if histogram.is_empty() {
                    "–".into()
                } else {
                    show_ms(histogram.value_at_quantile(quantile) as f64 / 1e3)
                }
            };
            let mut row = vec![name.clone(), run.way.clone()];
            let counts = [lane.attempts(), lane.ok, lane.user_failures, lane.unfinished, lane.retries];
            row.extend(counts.map(thousands));
            row.extend([
                ms(&all.response, 0.5),
                ms(&all.response, 0.99),
                ms(&all.response, 1.0),
                ms(&all.wait, 0.99),
            ]);
            let failures: Vec<String> =
                lane.failures.iter().map(|(label, n)| format!("{label} × {n}")).collect();
            row.push(failures.join(", "));
            rows.push(row);
        }
    }
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..=HEAD.len()).map(|column| width(column).unwrap_or(0)).collect();
    for row in &rows {
        let cells = row.iter().enumerate().map(|(column, cell)| match column {
            0 | 1 => format!("{cell:<0$}", widths[column]),
            column if column == HEAD.len() => cell.clone(),
            _ => format!("{cell:>0$}", widths[column]),
        });
        let _ = writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

fn remarks(out: &mut String, run: &Run) {
    let peak = run.observed.peak().map_or("unknown".into(), |peak| peak.to_string());
    let _ = writeln!(
        out,
        "  upstream peak {peak} of {} ({} usable); orders told saved {}, lost {}; bus messages {}, heard {}",
        run.capacity.max_connections,
        run.capacity.usable,
        thousands(run.told),
        run.lost.map_or("unknown".into(), thousands),
        thousands(run.bus.0),
        thousands(run.bus.1)
    );
    if run.observed.leaks {
        let (held, blocked) = (run.observed.lock_held.as_secs_f64(), run.observed.lock_blocked.as_secs_f64());
        let _ = writeln!(
            out,
            "  a leak held its row lock for {held:.1} s; one that others waited for, {blocked:.1} s of that"
        );
    }
    for act in &run.acts {
        let outcome = match &act.outcome {
            Outcome::Done => "done".to_owned(),
            Outcome::Skipped => "skipped, this way has no console".to_owned(),
            Outcome::Failed(why) => format!("FAILED: {why}"),
        };
        let _ = writeln!(out, "  {:>6.1} s  {}: {outcome}", act.at.as_secs_f64(), act.text);
    }
    if run.left_over > 0 {
        let _ = writeln!(
            out,
            "  {} of its connections were still at the target 10 s after the run",
            run.left_over
        );
    }
    if run.interrupted {
        let _ = writeln!(out, "  interrupted: these are the figures so far");
    }
    if let Some(why) = &run.generator.bottleneck {
        let _ = writeln!(out, "  THE DRILL ITSELF MAY HAVE BEEN THE BOTTLENECK: {why}");
    }
}
