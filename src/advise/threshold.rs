//! Where queues, shedding and leak policies should begin. Pure.
//!
//! - **reset** comes half as much again after what honestly idles in ordinary hours, **warn** a quarter. A reset is lowered to half at most,
//!   never to less than a minute, and never below half as much again as the *longest* that went on by itself: a week has no month's end.
//! - **shed_above** stays above ordinary usage: a lane that is shed on every working day has no place of its own.

use super::seen::{Peak, WholeSeen};
use super::share::{LEFT_ALONE, more};
use super::suggest::{Draft, Evidence, Leak};

/// Idle times at the longest that a suggestion makes room for, in ms: what idles longer is for people to look at.
const RESET_MOST_MS: u64 = 3_600_000;
/// No reset is lowered below this, in ms.
const RESET_LEAST_MS: u64 = 60_000;
/// Nor where fewer transactions were seen.
const TRANSACTIONS_MIN: u64 = 1000;
/// Nothing is shed later than at this usage: logins begin to fail close above it.
const SHED_MOST: f64 = 90.0;
/// Above ordinary usage by so many percent.
const SHED_BAND: f64 = 5.0;
/// `max_waiting` at most.
const WAITING_MAX: u32 = 1_000_000;

/// A time for people.
pub(super) fn span(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..120_000 => format!("{:.1} s", ms as f64 / 1000.0),
        120_000..7_200_000 => format!("{:.0} min", ms as f64 / 60_000.0),
        _ => format!("{:.1} h", ms as f64 / 3_600_000.0),
    }
}

/// The next time that people would write: no less.
fn round_up(ms: u64) -> u64 {
    let step = match ms {
        0..=60_000 => 5_000,
        60_001..=300_000 => 15_000,
        300_001..=3_600_000 => 60_000,
        _ => 600_000,
    };
    ms.div_ceil(step).saturating_mul(step)
}

fn half_again(ms: u64) -> u64 {
    round_up(ms.saturating_add(ms.div_ceil(2)))
}

/// Length of the queue.
pub(super) fn waiting(draft: &mut Draft) {
    let now = draft.now.max_waiting;
    let waiting = draft.seen.waiting;
    let full: u64 =
        draft.seen.refused.iter().filter(|(reason, _)| reason == "queue_full").map(|(_, n)| n).sum();
    let twice = u32::try_from(waiting.value * 2).unwrap_or(WAITING_MAX).div_ceil(50) * 50;
    let (new, why) = match () {
        () if draft.now.protected => (now, LEFT_ALONE.to_owned()),
        () if now == 0 => (now, "nobody is to wait".to_owned()),
        () if full > 0 && twice > now => (
            twice,
            format!(
                "{full} were refused because the queue was full: twice the {} that waited",
                waiting.value
            ),
        ),
        () if waiting.value > 0 => (
            now,
            format!("{} waited at once, the longest for {}", waiting.value, span(draft.seen.wait_ms.value)),
        ),
        () => (now, "nobody waited".to_owned()),
    };
    draft.new.max_waiting = new.min(WAITING_MAX).max(now);
    draft.because("max_waiting", why);
}

/// When the lane is shed.
pub(super) fn shedding(draft: &mut Draft, whole: &WholeSeen, evidence: Evidence) {
    let Some((above, below)) = draft.now.shed else { return };
    let percent = |permille: u64| permille as f64 / 10.0;
    let (usual, peak) = (percent(whole.usage_permille.usual), percent(whole.usage_permille.value));
    let wanted = (usual + SHED_BAND).ceil().min(SHED_MOST);
    let seen = format!("usage is {usual} % in ordinary hours, {peak} % at its highest");
    let (new, why) = match () {
        () if draft.now.protected => (above, LEFT_ALONE.to_owned()),
        () if usual < above && peak < above => (above, format!("{seen}: it was never reached")),
        () if usual < above => (above, format!("{seen}: reached, but not in ordinary hours")),
        () if !evidence.may_lower() => {
            (above, format!("{seen}: above it then; too little was seen to raise it"))
        }
        () if wanted > above => (wanted, format!("{seen}: above it on ordinary days")),
        () => (above, format!("{seen}: above it on ordinary days, and rightly: PostgreSQL is full")),
    };
    draft.new.shed = Some((new, below + (new - above)));
    draft.because("shed_above", why);
    draft.because("shed_below", "as far below as it is now");
}

/// When idle transactions are warned of and reset.
pub(super) fn leaks(draft: &mut Draft, evidence: Evidence) {
    let Some(now) = draft.now.leak else { return };
    let gap = draft.seen.gap_ms;
    let told = gaps(draft, gap);
    if draft.now.protected || !now.acts {
        let why = if draft.now.protected { LEFT_ALONE } else { "watched only" };
        for key in ["idle_in_transaction.warn", "idle_in_transaction.reset", "idle_in_transaction.cap"] {
            draft.because(key, why);
        }
    }
    if draft.now.protected {
        return;
    }
    let reset = if now.acts { reset(draft, now, evidence, &told) } else { now.reset_ms };
    let cap = cap(draft, now, reset);
    let usual_warn = round_up(gap.usual.saturating_add(gap.usual.div_ceil(4)));
    let warn = now.warn_ms.map(|warn| {
        let most = reset.or(cap).unwrap_or(RESET_MOST_MS.max(warn));
        let (new, why) = match () {
            () if warn > most => (most, "no later than the reset".to_owned()),
            () if gap.usual < warn => (warn, format!("fits: {told}")),
            () => (
                usual_warn.min(most).max(warn.min(most)),
                format!("{told}: a quarter more, so that not every hour warns"),
            ),
        };
        draft.because("idle_in_transaction.warn", why);
        new
    });
    draft.new.leak = Some(Leak { warn_ms: warn, reset_ms: reset, cap_ms: cap, acts: now.acts });
}

fn gaps(draft: &Draft, gap: Peak) -> String {
    let cuts = match draft.seen.cuts {
        0 => String::new(),
        n => format!(
            "; {n} were reset or left by their client, after {} at most",
            span(draft.seen.cut_ms.value)
        ),
    };
    match gap.value {
        0 if draft.seen.transactions == 0 => "nothing was seen of it".to_owned(),
        0 => format!("nobody idled for a second and went on{cuts}"),
        longest => format!(
            "clients went on by themselves after {} at most, after {} in ordinary hours{cuts}",
            span(longest),
            span(gap.usual)
        ),
    }
}

fn reset(draft: &mut Draft, now: Leak, evidence: Evidence, told: &str) -> Option<u64> {
    let reset = now.reset_ms?;
    let gap = draft.seen.gap_ms;
    let (honest, usual) = (half_again(gap.value), half_again(gap.usual));
    let lower = round_up(reset.div_ceil(2)).max(honest).max(RESET_LEAST_MS);
    let is_known = draft.seen.transactions >= TRANSACTIONS_MIN;
    let (new, why) = match () {
        () if usual > reset && reset >= RESET_MOST_MS => (
            reset,
            format!(
                "{told}: longer than any reset should wait. Look at them (pgweir leaks), or exempt their statement"
            ),
        ),
        () if usual > RESET_MOST_MS => (
            RESET_MOST_MS,
            format!(
                "{told}: more than an hour is for people to look at (pgweir leaks), or exempt the statement"
            ),
        ),
        () if usual > reset => (usual, format!("{told}: half as much again")),
        () if gap.value > reset => (reset, format!("{told}: the longest would be reset, if it does harm")),
        () if lower >= reset || honest.saturating_mul(2) > reset => (reset, format!("fits: {told}")),
        () if !evidence.may_lower() || !is_known => {
            (reset, format!("{told}; too little was seen to lower it"))
        }
        () => (lower, format!("{told}: half as much again, and half of what it was at most")),
    };
    draft.because("idle_in_transaction.reset", why);
    Some(new)
}

fn cap(draft: &mut Draft, now: Leak, reset: Option<u64>) -> Option<u64> {
    let cap = now.cap_ms?;
    let new = match reset {
        // Where the file has a cap only, the reset is that.
        Some(reset) if now.acts && now.reset_ms == now.cap_ms => reset.max(cap),
        Some(reset) if now.acts && reset > cap => reset.saturating_mul(2),
        _ => cap,
    };
    if now.acts {
        let why = if new > cap { "after the reset" } else { "fits: not before the reset" };
        draft.because("idle_in_transaction.cap", why);
    }
    Some(new)
}

/// What to do about PostgreSQL's own settings, and what lanes' peaks say together.
pub(super) fn told(drafts: &[Draft], whole: &WholeSeen, notes: &mut Vec<String>) {
    let last = |of: fn(&Draft) -> Option<Leak>| {
        drafts
            .iter()
            .filter_map(of)
            .flat_map(|leak| [leak.reset_ms, leak.cap_ms])
            .flatten()
            .max()
            .unwrap_or(0)
    };
    let (before, after) = (last(|draft| draft.now.leak), last(|draft| draft.new.leak));
    if after > before {
        notes.push(format!(
            "idle_in_transaction_session_timeout of the roles must come after the longest reset, now {}: pgweir check compares them",
            span(after)
        ));
    }
    let max = |permille: u64| permille as f64 / 10.0;
    if whole.of_max_permille.value >= 900 {
        notes.push(format!(
            "connections reached {} % of max_connections: {} of pgweir's, {} that bypass it, at their highest",
            max(whole.of_max_permille.value),
            whole.own.value,
            whole.bypass.value
        ));
    }
    for draft in drafts.iter().filter(|draft| draft.seen.in_use.value > 0 && !draft.now.protected) {
        let idle = draft.seen.slots.usual.saturating_sub(u64::from(more(draft.seen.in_use.usual)));
        if draft.seen.slots.usual >= 8 && idle * 2 > draft.seen.slots.usual {
            notes.push(format!(
                "lane {} has {} connections in ordinary hours and works with {} at once: reclaim_idle_after, or a smaller db_maxconn, frees the rest",
                draft.now.name, draft.seen.slots.usual, draft.seen.in_use.usual
            ));
        }
    }
}
