//! A suggestion for people: what was seen, what should change, and why, lane by lane. Pure.

use std::fmt::Write as _;

use super::limits::plain;
use super::seen::{PERCENT, Peak, Seen};
use super::suggest::{Advice, Evidence, LaneAdvice, Setting, Suggestion};
use super::threshold::span;
use crate::clock::WallMs;
use crate::snapshot::utc;

/// Reasons of refusals told, of each lane.
const REASONS_MAX: usize = 3;

/// All of it.
pub fn text(suggestion: &Suggestion) -> String {
    let mut out = String::new();
    head(&mut out, suggestion);
    if suggestion.evidence == Evidence::None {
        briefly(&mut out, suggestion);
        return out;
    }
    suggestion.lanes.iter().for_each(|lane| one_lane(&mut out, lane, &suggestion.mode));
    for application in &suggestion.applications {
        let _ = writeln!(out, "\napplication {}", plain(&application.application));
        line(&mut out, &application.advice);
    }
    if !suggestion.notes.is_empty() {
        out.push_str("\nTo be known:\n");
        suggestion.notes.iter().for_each(|note| _ = writeln!(out, "- {}.", plain(note)));
    }
    let _ = match suggestion.changes() {
        0 => writeln!(out, "\nNothing is to be changed."),
        1 => writeln!(out, "\n1 change: pgweir suggest --write FILE writes the configuration with it."),
        n => writeln!(out, "\n{n} changes: pgweir suggest --write FILE writes the configuration with them."),
    };
    out
}

fn head(out: &mut String, suggestion: &Suggestion) {
    let Suggestion { hours_seen, hours_looked_at, mode, whole, .. } = suggestion;
    if suggestion.evidence == Evidence::None {
        let so_far = match whole.seen_s {
            0 => "nothing".to_owned(),
            seen_s => span(seen_s.saturating_mul(1000)),
        };
        let _ = writeln!(out, "Seen: {so_far} so far; mode {mode}. {}.", capital(&suggestion.evidence_text));
        return;
    }
    let since = if whole.since == 0 { String::new() } else { format!(", since {}", hour(whole.since)) };
    let _ = writeln!(
        out,
        "Seen: {hours_seen} of the last {hours_looked_at} hours{since}; mode {mode}. {}.",
        capital(&suggestion.evidence_text)
    );
    let _ = writeln!(
        out,
        "In ordinary hours: what {PERCENT} % of the hours had at most in which there was anything to do."
    );
    if let Some(room) = suggestion.room {
        let _ = writeln!(
            out,
            "PostgreSQL: max_connections {}; {} usable − {} headroom − {} that bypass pgweir in ordinary hours = {} for the lanes",
            room.max_connections, room.usable, room.headroom, room.bypass, room.budget
        );
    }
    let percent = |permille: u64| permille as f64 / 10.0;
    let (usage, own) = (whole.usage_permille, whole.own);
    let _ = writeln!(
        out,
        "Usage: {} % at its highest{}, {} % in ordinary hours; pgweir had {} connections at most, {} in ordinary hours",
        percent(usage.value),
        at(usage),
        percent(usage.usual),
        own.value,
        own.usual
    );
}

fn one_lane(out: &mut String, lane: &LaneAdvice, mode: &str) {
    let _ = writeln!(out, "\nlane {}: {}", plain(&lane.lane), seen(&lane.seen, mode));
    lane.advice.iter().for_each(|advice| line(out, advice));
}

/// So little that only what was there is told, and of no lane a figure to plan with.
fn briefly(out: &mut String, suggestion: &Suggestion) {
    let seen = suggestion.lanes.iter().filter(|lane| lane.seen.slots.value > 0 || lane.seen.transactions > 0);
    for lane in seen {
        let (slots, transactions) = (lane.seen.slots.value, lane.seen.transactions);
        let _ = writeln!(
            out,
            "lane {}: {} at most, {}",
            plain(&lane.lane),
            counted(slots, "slot"),
            counted(transactions, "transaction")
        );
    }
    out.push_str("Nothing is suggested yet.\n");
}

/// `1 slot`, `2 slots`.
fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn seen(seen: &Seen, mode: &str) -> String {
    if seen.hours == 0 {
        return "nothing was seen of it".to_owned();
    }
    let mut text = format!(
        "{} at most{}, {} in ordinary hours, {} of them at work at once; {} in {}",
        counted(seen.slots.value, "slot"),
        at(seen.slots),
        seen.slots.usual,
        seen.in_use.usual,
        counted(seen.transactions, "transaction"),
        counted(seen.hours.into(), "hour")
    );
    if seen.waiting.value > 0 {
        let _ = write!(
            text,
            "; {} waited at once{}, the longest for {}",
            seen.waiting.value,
            at(seen.waiting),
            span(seen.wait_ms.value)
        );
    }
    let all: u64 = seen.refused.iter().map(|(_, count)| count).sum();
    if all > 0 {
        let told =
            seen.refused.iter().take(REASONS_MAX).map(|(reason, count)| format!("{} {count}", plain(reason)));
        let would = if mode == "observe" { "would have been " } else { "" };
        let _ = write!(text, "; {all} {would}refused ({})", told.collect::<Vec<_>>().join(", "));
    }
    text
}

fn line(out: &mut String, advice: &Advice) {
    let value = |setting: &Setting| match setting {
        Setting::Time(time) => plain(time),
        other => other.literal(),
    };
    let shown = if advice.is_change() {
        format!("{} → {}", value(&advice.present), value(&advice.suggested))
    } else {
        value(&advice.present)
    };
    let _ = writeln!(out, "  {:<26}{shown:<14}{}", plain(&advice.key), plain(&advice.why));
}

fn at(peak: Peak) -> String {
    if peak.at == 0 { String::new() } else { format!(" ({})", hour(peak.at)) }
}

/// `2026-01-02 15:00 UTC`.
fn hour(at: u64) -> String {
    let text = utc(WallMs(at));
    let (day, time) = text.split_once('T').unwrap_or((&text, ""));
    format!("{day} {} UTC", time.get(..5).unwrap_or_default())
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
