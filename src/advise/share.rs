//! Who should have how many connections: reserves, quotas, and what applications may have. Pure.
//!
//! - **Reserve**: a quarter more than works at once in an ordinary hour. None is invented, none ever exceeds what PostgreSQL has.
//! - **Quota**: a quarter more than is asked for in an ordinary hour, and never more than the other lanes' reserves leave. A lane of the best
//!   priority is not lowered, because what is free is for it; nor is one of which nothing was seen.
//! - Quotas that fit together today, so that all lanes may be full at once, still do, as far as what was seen allows.

use super::suggest::{
    Advice, Application, ApplicationAdvice, CONNECTIONS_MAX, Draft, Evidence, Room, Setting,
};

/// Why nothing is suggested of a protected lane.
pub(super) const LEFT_ALONE: &str = "protected: left as it is";

/// A quarter more.
pub(super) fn more(usual: u64) -> u32 {
    u32::try_from(usual + usual.div_ceil(4)).unwrap_or(CONNECTIONS_MAX).min(CONNECTIONS_MAX)
}

/// Sets reserves and quotas.
pub(super) fn divide(drafts: &mut [Draft], room: Room, evidence: Evidence, notes: &mut Vec<String>) {
    drafts.iter_mut().for_each(|draft| reserve(draft, evidence));
    fit_reserves(drafts, room, notes);
    let best = drafts.iter().filter(|draft| is_shared(draft)).map(|draft| draft.now.priority).min();
    let reserves = reserves(drafts);
    for draft in drafts.iter_mut() {
        let others = reserves - counted(draft);
        quota(draft, u64::from(room.budget).saturating_sub(others), evidence, best);
    }
    fit_quotas(drafts, room, evidence, notes);
    for draft in drafts {
        draft.new.reserve = draft.new.reserve.min(draft.new.quota);
    }
}

/// Whether its quota is part of what lanes share.
fn is_shared(draft: &Draft) -> bool {
    !draft.now.protected && !draft.now.apart
}

/// Its reserve, where PostgreSQL must have it in the pool that all share.
fn counted(draft: &Draft) -> u64 {
    if draft.now.apart { 0 } else { draft.new.reserve.into() }
}

fn reserves(drafts: &[Draft]) -> u64 {
    drafts.iter().map(counted).sum()
}

fn reserve(draft: &mut Draft, evidence: Evidence) {
    let now = draft.now.reserve;
    let usual = draft.seen.in_use.usual;
    let want = more(usual).max(1);
    let works = format!("{usual} of its links work at once in ordinary hours, a quarter more is {want}");
    let (new, why) = match () {
        () if draft.now.apart => (now, "replication: another pool of PostgreSQL's".to_owned()),
        () if draft.now.protected => (now, LEFT_ALONE.to_owned()),
        () if now == 0 => (now, "none is kept free for it".to_owned()),
        () if !draft.is_known() => (now, "nothing was seen of it".to_owned()),
        () if want > now => (want, works),
        () if u64::from(want) * 4 > u64::from(now) * 3 => (now, format!("fits: {works}")),
        () if !evidence.may_lower() => (now, format!("{works}; too little was seen to lower it")),
        // A week is not a year: half of it at most at a time.
        () => (want.max(now.div_ceil(2)), works),
    };
    draft.new.reserve = new;
    draft.because("reserve", why);
}

/// Takes from the worst priority first: what would be raised, then what is there; a protected lane's last.
fn fit_reserves(drafts: &mut [Draft], room: Room, notes: &mut Vec<String>) {
    let mut order: Vec<usize> = (0..drafts.len()).filter(|at| !drafts[*at].now.apart).collect();
    order.sort_by_key(|at| (drafts[*at].now.protected, std::cmp::Reverse(drafts[*at].now.priority)));
    let mut cut = |max: u32, floor: &dyn Fn(&Draft) -> u32, why: &str| {
        let mut excess = reserves(drafts).saturating_sub(max.into());
        for at in &order {
            let spare = drafts[*at].new.reserve.saturating_sub(floor(&drafts[*at]));
            let taken = u64::from(spare).min(excess);
            if taken > 0 {
                excess -= taken;
                drafts[*at].new.reserve -= u32::try_from(taken).unwrap_or(spare);
                drafts[*at].because("reserve", why);
            }
        }
    };
    cut(
        room.budget,
        &|draft| draft.now.reserve,
        "it would need more: there is no room for it beside the other reserves",
    );
    let max = room.reserves_max();
    let too_much = "the reserves are more than PostgreSQL has: the worst priority gives first";
    cut(
        max,
        &|draft| if draft.now.protected { draft.new.reserve } else { draft.new.reserve.min(1) },
        too_much,
    );
    cut(max, &|draft| if draft.now.protected { draft.new.reserve } else { 0 }, too_much);
    cut(max, &|_| 0, too_much);
    let before: u64 =
        drafts.iter().filter(|draft| !draft.now.apart).map(|draft| u64::from(draft.now.reserve)).sum();
    if before > u64::from(max) {
        notes.push(format!(
            "the reserves sum to {before}, PostgreSQL has {max} for pgweir: they are lowered until they fit"
        ));
    }
}

/// `room`: what the other lanes' reserves leave of the budget.
fn quota(draft: &mut Draft, room: u64, evidence: Evidence, best: Option<u8>) {
    let now = draft.now.quota;
    let (usual, peak) = (draft.seen.demand.usual, draft.seen.demand.value);
    let want = more(usual).max(draft.now.quota_min).max(draft.new.reserve).max(1);
    let room = u32::try_from(room).unwrap_or(u32::MAX).min(CONNECTIONS_MAX);
    let asks = format!("ordinary hours ask for {usual}, a quarter more is {}", more(usual));
    let (new, why) = match () {
        () if draft.now.apart => (now, "replication: another pool of PostgreSQL's".to_owned()),
        () if draft.now.protected => (now, LEFT_ALONE.to_owned()),
        () if !draft.is_known() => (now, "nothing was seen of it".to_owned()),
        () if want > now && room <= now => {
            (now, format!("{asks}: no room for it beside the others' reserves"))
        }
        () if want > room && want > now => {
            (room, format!("{asks}; {room} is all the others' reserves leave"))
        }
        () if want > now => (want, asks),
        () if best == Some(draft.now.priority) => {
            (now, format!("fits: {asks}. Best priority: what is free is for it"))
        }
        () if now - want < 2 || u64::from(want) * 5 > u64::from(now) * 4 => (now, format!("fits: {asks}")),
        () if !evidence.may_lower() => (now, format!("{asks}; too little was seen to lower it")),
        () => (want, asks),
    };
    let would_wait = peak.saturating_sub(new.into());
    let waits = if is_shared(draft) && would_wait > 0 {
        format!("; at the peak of {peak}, {would_wait} wait")
    } else {
        String::new()
    };
    draft.new.quota = new;
    draft.because("quota", why + &waits);
}

/// Where all lanes could be full at once, they still can: who has most to spare gives first.
fn fit_quotas(drafts: &mut [Draft], room: Room, evidence: Evidence, notes: &mut Vec<String>) {
    let apart: u64 = drafts.iter().filter(|draft| !is_shared(draft)).map(counted).sum();
    let max = u64::from(room.budget).saturating_sub(apart);
    let sum = |of: fn(&Draft) -> u32, drafts: &[Draft]| -> u64 {
        drafts.iter().filter(|draft| is_shared(draft)).map(|draft| u64::from(of(draft))).sum()
    };
    let before = sum(|draft| draft.now.quota, drafts);
    let mut excess = sum(|draft| draft.new.quota, drafts).saturating_sub(max.max(before));
    let spare = |draft: &Draft| {
        let floor = more(draft.seen.demand.usual).max(draft.now.quota_min).max(draft.new.reserve).max(1);
        let may = is_shared(draft) && draft.is_known() && evidence.may_lower();
        if may { draft.new.quota.saturating_sub(floor) } else { 0 }
    };
    let mut order: Vec<usize> = (0..drafts.len()).collect();
    order.sort_by_key(|at| std::cmp::Reverse(spare(&drafts[*at])));
    for at in order {
        let taken = u64::from(spare(&drafts[at])).min(excess);
        if taken > 0 {
            excess -= taken;
            let draft = &mut drafts[at];
            draft.new.quota -= u32::try_from(taken).unwrap_or(0);
            let usual = draft.seen.demand.usual;
            draft.because(
                "quota",
                format!("gives {taken} to lanes that ask for more: ordinary hours ask for {usual}"),
            );
        }
    }
    let after = sum(|draft| draft.new.quota, drafts);
    if after > max {
        notes.push(format!(
            "the quotas sum to {after} where {max} fit: not all lanes can be full at once, and the best priority is served first"
        ));
    }
    fits_with(drafts, room, notes);
}

/// The max_connections with which every lane could have what ordinary hours ask for, where there is less.
fn fits_with(drafts: &[Draft], room: Room, notes: &mut Vec<String>) {
    let need = |draft: &Draft| {
        if is_shared(draft) {
            u64::from(more(draft.seen.demand.usual).max(draft.new.reserve))
        } else {
            counted(draft)
        }
    };
    let needs: u64 = drafts.iter().map(need).sum();
    let reserved = room.max_connections.saturating_sub(room.usable);
    let all = needs + u64::from(reserved) + u64::from(room.headroom) + u64::from(room.bypass);
    if all > u64::from(room.max_connections) {
        let max_connections = all.div_ceil(10) * 10;
        notes.push(format!(
            "ordinary hours of all lanes together ask for {needs}, and {} fit: nobody would wait with max_connections = \
             {max_connections}, if memory bears it (pgweir headroom)",
            room.budget
        ));
    }
}

/// Quotas of applications follow those of their lanes.
pub(super) fn applications(applications: &[Application], drafts: &[Draft]) -> Vec<ApplicationAdvice> {
    let one = |application: &Application| {
        let now = application.quota?;
        let own = || drafts.iter().filter(|draft| application.lanes.contains(&draft.now.name));
        let quotas = |of: fn(&Draft) -> u32| -> u64 {
            own().filter(|draft| !draft.now.protected).map(|draft| u64::from(of(draft))).sum()
        };
        let (before, after) = (quotas(|draft| draft.now.quota), quotas(|draft| draft.new.quota));
        let reserves: u64 = own().map(|draft| u64::from(draft.new.reserve)).sum();
        let follows = u64::from(now) == before || (u64::from(now) > before && after > u64::from(now));
        let wanted = if follows { after } else { now.into() }.max(reserves);
        let new = u32::try_from(wanted).unwrap_or(CONNECTIONS_MAX).min(CONNECTIONS_MAX);
        let why = match () {
            () if follows => "the sum of its lanes' quotas".to_owned(),
            () if new > now => "the sum of its lanes' reserves, at least".to_owned(),
            () => format!("its lanes' quotas sum to {after}"),
        };
        let (present, suggested) = (Setting::Count(now), Setting::Count(new));
        let advice = Advice { key: "quota".to_owned(), present, suggested, why };
        Some(ApplicationAdvice { application: application.name.clone(), advice })
    };
    applications.iter().filter_map(one).collect()
}
