//! Four times a second: judge what is idle in transaction, find idle links for those who wait, look after clients not being read.

use std::cell::LazyCell;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::App;
use super::rows::{blocked_by_pid, policy, reading_from_client};
use crate::clock::{self, Moment};
use crate::config::settings::BypassAction;
use crate::lanes::sample::Sample;
use crate::lanes::settings::LeakSettings;
use crate::leaks::judge::{Judged, LeakFacts, Verdict};
use crate::leaks::reclaim::{self, BusyLink, IdleLink};
use crate::link::hub::Lane;
use crate::link::shared::{Command, Labels, LinkShared, LinkState, flag};
use crate::reason::{Reason, Refusal};
use crate::wire::statement;

const EVERY: Duration = Duration::from_millis(250);
/// The same while somebody waits whom a closed idle link would help.
const EVERY_WITH_WAITERS: Duration = Duration::from_millis(50);
/// With ten thousand links a sweep takes milliseconds, in which a worker may wait for the core: it rests so many times as long.
const REST_PER_WORK: u32 = 200;
const EVERY_AT_MOST: Duration = Duration::from_secs(1);
/// Growth is recorded once in so many sweeps.
const GROWTH_EVERY: u32 = 20;
/// Links reclaimed are put on record once in so many sweeps.
const RECLAIMED_EVERY: u32 = 4;
/// Sessions that bypass pgweir terminated for one sample.
const TERMINATIONS_MAX: usize = 5;

impl App {
    /// Sweeps until the process ends.
    pub(super) async fn sweep(self: Arc<Self>) {
        let mut reclaimed: Vec<u64> = Vec::new();
        for round in 0_u32.. {
            let began = clock::now();
            let busy = self.sweep_once();
            let took = clock::now().since(began);
            if round % RECLAIMED_EVERY == 0 {
                self.note_reclaimed(&mut reclaimed);
                self.hub.log_left_out();
            }
            if round % GROWTH_EVERY == 0 {
                self.hub.forget_processes();
                self.close_period(clock::now());
                let counts = self.growth_counts();
                self.growth.lock().record(clock::now(), &counts);
            }
            let every = if busy { EVERY_WITH_WAITERS } else { EVERY };
            tokio::time::sleep(every.max(took * REST_PER_WORK).min(EVERY_AT_MOST)).await;
        }
    }

    /// Puts on record how many idle links were closed since the last time: one entry a lane, not one a link.
    fn note_reclaimed(&self, known: &mut Vec<u64>) {
        for (n, lane) in self.hub.lanes.load().iter().enumerate() {
            let total = lane.meter.reclaimed.load(Ordering::Relaxed);
            if n >= known.len() {
                known.push(0);
            }
            let new = total - std::mem::replace(&mut known[n], total).min(total);
            if new > 0 {
                self.note(
                    "reclaim",
                    &lane.name,
                    None,
                    &format!("{new} idle links were closed for clients that waited"),
                );
            }
        }
    }

    /// True if somebody waits whom closing an idle link would help.
    fn sweep_once(&self) -> bool {
        let now = clock::now();
        let sample = self.sample.load_full();
        self.judge_leaks(now, sample.as_deref());
        self.end_left_links(now);
        self.reclaim(now, sample.as_deref())
    }

    // ------------------------------------------------------------ leaks

    /// Facts on every link that is idle in transaction or stalled. The sweep wants `due_only`: those of which something might have to be said
    /// by now (most are young, or nobody's business); and on its way it has links that are not being read look for a hang-up.
    pub(super) fn leak_facts(
        &self,
        now: Moment,
        sample: Option<&Sample>,
        due_only: bool,
    ) -> Vec<(Arc<LinkShared>, LeakFacts)> {
        // Made only where somebody asks: a sample may have thousands of rows.
        let reading = LazyCell::new(|| sample.map(reading_from_client).unwrap_or_default());
        let blockers: LazyCell<HashSet<i32>, _> =
            LazyCell::new(|| sample.map(blocked_by_pid).unwrap_or_default().into_keys().collect());
        let lanes = self.hub.lanes.load();
        let mut found = Vec::new();
        for entry in &self.hub.links {
            let link = entry.value();
            let (state, since) = link.state();
            let flags = link.flags();
            if due_only && flags & flag::BLOCKED != 0 {
                link.post(Command::Probe);
            }
            if state != LinkState::IdleInTransaction && state != LinkState::Active {
                continue;
            }
            let generation = u64::from(link.generation());
            let pid = link.pid.load(Ordering::Relaxed);
            let stalled = state == LinkState::Active
                && (flags & flag::STALLED != 0 || flags & flag::MAYBE_STALLED != 0 && reading.contains(&pid));
            if state != LinkState::IdleInTransaction && !stalled {
                continue;
            }
            let lane = link.with_labels(|labels| labels.lane);
            let Some(lane) = lanes.get(usize::from(lane.0)) else { continue };
            let reset_at = link.reset_at.load(Ordering::Relaxed);
            let earliest = lane.settings.idle_in_transaction.as_ref().and_then(LeakSettings::earliest);
            let may_be_due = reset_at != 0 || earliest.is_some_and(|age| now.since(since) >= age);
            if due_only && !may_be_due {
                continue;
            }
            let (application, key) = link.with_labels(|l| (l.application_name.clone(), request_of(l)));
            let facts = LeakFacts {
                link: link.id,
                lane: lane.id,
                generation,
                idle_since: since,
                transaction_since: link.transaction_since(),
                stalled,
                exempt: flags & flag::EXEMPT != 0,
                protected: lane.settings.protected,
                watch_only: flags & flag::WATCH_ONLY != 0,
                blocks: blockers.contains(&pid),
                full_with_waiters: false,
                usage_above_shed_below: false,
                reset_at: (reset_at != 0).then(|| Moment::from_micros(reset_at)),
                process_key: key,
            };
            found.push((link.clone(), application, facts, lane.clone()));
        }
        // The guard is asked only of those whose time has come.
        let is_old = |facts: &LeakFacts, lane: &Lane| {
            let leak = lane.settings.idle_in_transaction.as_ref();
            leak.and_then(|leak| leak.reset).is_some_and(|reset| now.since(facts.idle_since) >= reset)
        };
        let old: Vec<_> = found.iter_mut().filter(|(_, _, facts, lane)| is_old(facts, lane)).collect();
        if !old.is_empty() {
            self.hub.guard(|guard, _| {
                for (_, application, facts, lane) in old {
                    let harm = guard.harm(lane.id, application);
                    facts.full_with_waiters = harm.full_with_waiters;
                    facts.usage_above_shed_below = harm.usage_above_shed_below;
                }
            });
        }
        found.into_iter().map(|(link, _, facts, _)| (link, facts)).collect()
    }

    /// Judges at once, where a sample was asked for so that this could be done.
    pub(super) fn judge_by_fresh_sample(&self, sample: &Sample) {
        if self.seeks_harm.swap(false, Ordering::Relaxed) {
            self.judge_leaks(clock::now(), Some(sample));
        }
    }

    fn judge_leaks(&self, now: Moment, sample: Option<&Sample>) {
        let facts = self.leak_facts(now, sample, true);
        let lanes = self.hub.lanes.load_full();
        let only: Vec<LeakFacts> = facts.iter().map(|(_, facts)| *facts).collect();
        let looked_at = sample.map(|sample| sample.asked_at);
        if self.judge.lock().wants_look(now, looked_at, &only, |lane| policy(&lanes, lane))
            && let Some(monitor) = self.monitor.load_full()
        {
            self.seeks_harm.store(true, Ordering::Relaxed);
            monitor.sample_now();
        }
        let verdicts = self.judge.lock().sweep(now, &only, |lane| policy(&lanes, lane));
        for judged in verdicts {
            if let Some((link, facts)) = facts.iter().find(|(link, _)| link.id == judged.link) {
                self.carry_out_verdict(link, facts, &judged, &lanes);
            }
        }
    }

    fn carry_out_verdict(&self, link: &LinkShared, facts: &LeakFacts, judged: &Judged, lanes: &[Arc<Lane>]) {
        let literals = self.hub.settings.load().log_literals;
        let lane = lanes.get(usize::from(facts.lane.0)).map_or_else(|| "".into(), |lane| lane.name.clone());
        let text = format!("{}; {}", judged.text, link.describe(literals));
        let id = Some(link.id.0);
        let hint = "keep transactions short: no waiting for people or other services inside one";
        let generation = u32::try_from(judged.generation).ok();
        match judged.verdict {
            Verdict::Warn => self.note("leak_warn", &lane, id, &text),
            Verdict::LimitReached => {
                tracing::error!(client = link.id.0, lane = %lane, "max_resets_per_minute is reached: a leak is left to the operator");
                if let Some(lane) = lanes.get(usize::from(facts.lane.0)) {
                    lane.meter.resets_stopped.fetch_add(1, Ordering::Relaxed);
                }
                self.note("reset_limit", &lane, id, &text);
            }
            Verdict::WouldReset => self.note("would_reset", &lane, id, &text),
            Verdict::WouldDisconnect => self.note("would_disconnect", &lane, id, &text),
            Verdict::Reset { sqlstate } => {
                let refusal = Refusal::new(Reason::LeakReset, judged.text.clone(), hint);
                link.post(Command::Reset { generation, sqlstate, refusal });
            }
            Verdict::Disconnect => {
                let refusal = Refusal::new(Reason::LeakDisconnect, judged.text.clone(), hint);
                link.post(Command::Close { generation, refusal });
            }
        }
    }

    // ------------------------------------------------------------ reclaim

    /// Has links of worse lanes end with their transactions where a lane below its reserve waits and PostgreSQL has nothing left.
    fn yield_to_reserves(&self, sample: Option<&Sample>) {
        let Some((lanes, wanted)) = self.hub.guard(|guard, now| guard.wants_yield(now)) else { return };
        let holds_lock = |pid| sample.is_some_and(|sample| sample.holds_lock(pid));
        let mut busy = Vec::new();
        for entry in &self.hub.links {
            let link = entry.value();
            let (state, since) = link.state();
            let lane = link.with_labels(|labels| labels.lane);
            let works = matches!(state, LinkState::Idle | LinkState::Active | LinkState::IdleInTransaction);
            let spared = link.flags() & flag::LISTENING != 0 || holds_lock(link.pid.load(Ordering::Relaxed));
            if works && !spared && lanes.iter().any(|(one, _)| *one == lane) {
                let since = link.transaction_since().unwrap_or(since);
                busy.push(BusyLink {
                    link: link.id,
                    lane,
                    since,
                    yielding: link.flags() & flag::YIELDING != 0,
                });
            }
        }
        for id in reclaim::choose_yielding(&lanes, wanted, &busy) {
            if let Some(link) = self.hub.links.get(&id) {
                link.post(Command::Yield);
            }
        }
    }

    fn reclaim(&self, now: Moment, sample: Option<&Sample>) -> bool {
        let needs = self.hub.guard(|guard, now| guard.wants_reclaim(now));
        if needs.is_empty() {
            return false;
        }
        self.yield_to_reserves(sample);
        let mut idle = Vec::new();
        for entry in &self.hub.links {
            let link = entry.value();
            let generation = u64::from(link.generation());
            let (state, since) = link.state();
            if state != LinkState::Idle {
                continue;
            }
            let lane = link.with_labels(|labels| labels.lane);
            if needs.iter().any(|need| need.concerns(lane)) {
                idle.push(IdleLink {
                    link: link.id,
                    lane,
                    idle_since: since,
                    generation,
                    listening: link.flags() & flag::LISTENING != 0,
                    advisory_lock: sample.is_some_and(|sample| {
                        sample.may_hold_lock(link.pid.load(Ordering::Relaxed), since, now)
                    }),
                });
            }
        }
        for (link, generation) in reclaim::choose(now, &needs, &idle) {
            let refusal = Refusal::new(Reason::Reclaimed, "others wait for a connection", "connect again");
            self.hub.post(link, Command::Close { generation: u32::try_from(generation).ok(), refusal });
        }
        true
    }

    // ------------------------------------------------------------ bypass

    pub(super) fn bypass_verdict(&self) -> String {
        match self.config.load().bypass.action {
            BypassAction::List => "listed: it bypasses pgweir (TERMINATE PID ends it)".to_owned(),
            BypassAction::Terminate => "to be terminated".to_owned(),
        }
    }

    /// Terminates leaks that bypass pgweir, where the configuration says so, a few at a time and oldest first.
    pub(super) async fn terminate_bypass_leaks(&self, sample: &Sample) {
        let config = self.config.load_full();
        if config.bypass.action != BypassAction::Terminate {
            return;
        }
        let Some(monitor) = self.monitor.load_full() else { return };
        let mut leaks = self.bypass_leaks(sample, clock::now());
        leaks.sort_by_key(|(_, idle)| std::cmp::Reverse(*idle));
        for (session, idle) in leaks.into_iter().take(TERMINATIONS_MAX) {
            let who = format!(
                "pid {} of {} ({}), idle for {} s",
                session.pid,
                session.user,
                session.application,
                idle.as_secs()
            );
            if config.settings.limits.observe {
                self.note("would_terminate", "bypass", None, &who);
                continue;
            }
            match monitor.terminate_pid(session.pid).await {
                Ok(true) => self.note("terminate", "bypass", None, &who),
                Ok(false) => {}
                Err(error) => self.note("terminate_failed", "bypass", None, &format!("{who}: {error}")),
            }
        }
    }
}

/// Names a request that may come back: its client process, and the shape of its last statement. Behind one address and
/// application_name there may be many workers; the shape tells their requests apart.
fn request_of(labels: &Labels) -> u64 {
    let mut hasher = DefaultHasher::new();
    labels.process.as_ref().map(|process| &process.key).hash(&mut hasher);
    statement::shown(&String::from_utf8_lossy(&labels.statement), false).hash(&mut hasher);
    hasher.finish().max(1)
}
