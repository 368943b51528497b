//! Four times a second: judge what is idle in transaction, find idle links for those who wait, look after clients not being read.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::App;
use super::rows::policy;
use crate::clock::{self, Moment};
use crate::config::settings::BypassAction;
use crate::lanes::ids::LinkId;
use crate::lanes::sample::{Sample, Session};
use crate::leaks::judge::{Judged, LeakFacts, Verdict};
use crate::leaks::reclaim::{self, BusyLink, IdleLink};
use crate::link::hub::Lane;
use crate::link::shared::{Command, LinkShared, LinkState, flag};
use crate::reason::{Reason, Refusal};
use crate::upstream::monitor::{MonitorHandle, Whom};

const EVERY: Duration = Duration::from_millis(250);
/// The same while somebody waits whom a closed idle link would help.
const EVERY_WITH_WAITERS: Duration = Duration::from_millis(50);
/// So many times as long as it worked it rests.
const REST_PER_WORK: u32 = 200;
const EVERY_AT_MOST: Duration = Duration::from_secs(1);
/// Leaks told of one by one, of each kind and lane in each sweep.
const TOLD_MAX: u32 = 20;
/// Growth is recorded once in so many sweeps.
const GROWTH_EVERY: u32 = 20;
/// Links reclaimed are put on record once in so many sweeps.
const RECLAIMED_EVERY: u32 = 4;
/// Sessions that bypass pgweir terminated for one sample.
const TERMINATIONS_MAX: usize = 5;

/// What one sweep has told of leaks that nothing is done about. A thousand of them at once would push everything else out of the timeline.
#[derive(Default)]
struct Told(BTreeMap<(&'static str, Arc<str>), u32>);

impl Told {
    /// Counts it, and says whether it is one of the first.
    fn may_tell(&mut self, event: &'static str, lane: &Arc<str>) -> bool {
        let told = self.0.entry((event, Arc::clone(lane))).or_default();
        *told += 1;
        *told <= TOLD_MAX
    }

    /// How many more there were, by event and lane.
    fn untold(&self) -> impl Iterator<Item = (&'static str, &str, u32)> {
        let more =
            self.0.iter().map(|((event, lane), count)| (*event, &**lane, count.saturating_sub(TOLD_MAX)));
        more.filter(|(_, _, more)| *more > 0)
    }
}

impl App {
    /// Sweeps until the process ends.
    pub(super) async fn sweep(self: Arc<Self>) {
        let mut reclaimed: Vec<u64> = Vec::new();
        for round in 0_u32.. {
            let (busy, worked) = self.sweep_once().await;
            if round % RECLAIMED_EVERY == 0 {
                self.note_reclaimed(&mut reclaimed);
                self.hub.log_left_out();
            }
            if round % GROWTH_EVERY == 0 {
                self.hub.forget_processes();
                self.close_period(clock::now());
                let counts = self.growth_counts().await;
                self.growth.lock().record(clock::now(), &counts);
            }
            let every = if busy { EVERY_WITH_WAITERS } else { EVERY };
            tokio::time::sleep(every.max(worked * REST_PER_WORK).min(EVERY_AT_MOST)).await;
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

    /// Whether somebody waits whom closing an idle link would help, and how long it worked.
    async fn sweep_once(&self) -> (bool, Duration) {
        let sample = self.sample.load_full();
        let worked = self.judge_leaks(sample.as_deref()).await;
        let began = clock::now();
        self.end_left_links(began);
        let busy = self.reclaim(began, sample.as_deref());
        (busy, worked + clock::now().since(began))
    }

    // ------------------------------------------------------------ leaks

    /// Judges at once, where a sample was asked for so that this could be done.
    pub(super) async fn judge_by_fresh_sample(&self, sample: &Sample) {
        if self.seeks_harm.swap(false, Ordering::Relaxed) {
            self.judge_leaks(Some(sample)).await;
        }
    }

    /// Says how long it worked.
    async fn judge_leaks(&self, sample: Option<&Sample>) -> Duration {
        let mut watched = self.judging.lock().await;
        let now = clock::now();
        let (facts, worked) = self.leak_facts_due(now, sample, &mut watched).await;
        let began = clock::now();
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
        let by_link: HashMap<LinkId, _> = facts.iter().map(|found| (found.0.id, found)).collect();
        let mut told = Told::default();
        for judged in verdicts {
            if let Some((link, facts)) = by_link.get(&judged.link) {
                self.carry_out_verdict(link, facts, &judged, &lanes, &mut told);
            }
        }
        for (event, lane, more) in told.untold() {
            self.note(event, lane, None, &format!("{more} more at the same time: SHOW LEAKS lists them"));
        }
        worked + clock::now().since(began)
    }

    fn carry_out_verdict(
        &self,
        link: &LinkShared,
        facts: &LeakFacts,
        judged: &Judged,
        lanes: &[Arc<Lane>],
        told: &mut Told,
    ) {
        let literals = self.hub.settings.load().log_literals;
        let lane = lanes.get(usize::from(facts.lane.0)).map_or_else(|| "".into(), |lane| lane.name.clone());
        let event = match judged.verdict {
            Verdict::Warn => Some("leak_warn"),
            Verdict::WouldReset => Some("would_reset"),
            Verdict::WouldDisconnect => Some("would_disconnect"),
            Verdict::LimitReached | Verdict::Reset { .. } | Verdict::Disconnect => None,
        };
        if let Some(event) = event {
            if told.may_tell(event, &lane) {
                let text = format!("{}; {}", judged.text, link.describe(literals));
                self.note(event, &lane, Some(link.id.0), &text);
            }
            return;
        }
        let text = format!("{}; {}", judged.text, link.describe(literals));
        let id = Some(link.id.0);
        let hint = "keep transactions short: no waiting for people or other services inside one";
        let generation = u32::try_from(judged.generation).ok();
        match judged.verdict {
            Verdict::Warn | Verdict::WouldReset | Verdict::WouldDisconnect => {}
            Verdict::LimitReached => {
                tracing::error!(client = link.id.0, lane = %lane, "max_resets_per_minute is reached: a leak is left to the operator");
                if let Some(lane) = lanes.get(usize::from(facts.lane.0)) {
                    lane.meter.resets_stopped.fetch_add(1, Ordering::Relaxed);
                }
                self.note("reset_limit", &lane, id, &text);
            }
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
            let spared = link.flags() & flag::LISTENING != 0 || holds_lock(self.hub.pid_here(link));
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
                    advisory_lock: sample
                        .is_some_and(|sample| sample.may_hold_lock(self.hub.pid_here(link), since, now)),
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
            BypassAction::Terminate if self.config.load().settings.limits.observe => {
                "would be terminated".to_owned()
            }
            BypassAction::Terminate => "to be terminated".to_owned(),
        }
    }

    /// Leaks that bypass pgweir and are to be terminated, where the configuration says so, with words on each: a few at a time and oldest first.
    pub(super) fn bypass_leaks_to_terminate(&self, sample: &Sample) -> Vec<(Whom, String)> {
        if self.config.load().bypass.action != BypassAction::Terminate {
            return Vec::new();
        }
        let mut leaks = self.bypass_leaks(sample, clock::now());
        leaks.sort_by_key(|(_, idle)| std::cmp::Reverse(*idle));
        let words = |(session, idle): (&Arc<Session>, Duration)| {
            let (pid, user, application) = (session.pid, &session.user, &session.application);
            let whom = Whom::as_seen(session);
            (whom, format!("pid {pid} of {user} ({application}), idle for {} s", idle.as_secs()))
        };
        leaks.into_iter().take(TERMINATIONS_MAX).map(words).collect()
    }

    /// Terminates them, if by then they are who they were and have done nothing since.
    pub(super) async fn terminate_bypass_leaks(&self, leaks: Vec<(Whom, String)>, monitor: &MonitorHandle) {
        let observe = self.config.load().settings.limits.observe;
        for (whom, who) in leaks {
            if observe {
                self.note("would_terminate", "bypass", None, &who);
                continue;
            }
            match monitor.terminate_pid(whom).await {
                Ok(true) => self.note("terminate", "bypass", None, &who),
                Ok(false) => {}
                Err(error) => self.note("terminate_failed", "bypass", None, &format!("{who}: {error}")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_leaks_at_once_are_told_of_as_a_number() {
        let (web, cron): (Arc<str>, Arc<str>) = ("web".into(), "cron".into());
        let mut told = Told::default();
        let first: Vec<bool> = (0..TOLD_MAX + 3).map(|_| told.may_tell("leak_warn", &web)).collect();
        assert_eq!(first.iter().filter(|may| **may).count(), TOLD_MAX as usize);
        assert!(told.may_tell("leak_warn", &cron) && told.may_tell("would_reset", &web));
        assert_eq!(told.untold().collect::<Vec<_>>(), [("leak_warn", "web", 3)]);
    }
}
