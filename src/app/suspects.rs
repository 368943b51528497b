//! The links that may have to be judged as leaks: those idle in transaction, and those stalled in the middle of a message.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::App;
use super::rows::{blocked_by_pid, reading_from_client};
use crate::clock::{self, Moment};
use crate::lanes::ids::LinkId;
use crate::lanes::sample::Sample;
use crate::lanes::settings::LeakSettings;
use crate::leaks::judge::LeakFacts;
use crate::link::hub::{Hub, Lane};
use crate::link::shared::{Command, Labels, LinkShared, LinkState, flag};
use crate::wire::statement;

/// Links looked at at once, and the rest after them: with ten thousand a sweep takes milliseconds, in which a worker may wait for the core.
const PORTION: usize = 128;
const PORTION_REST: Duration = Duration::from_millis(1);

/// A link that is idle in transaction or stalled.
struct Suspect {
    link: Arc<LinkShared>,
    application: Arc<str>,
    facts: LeakFacts,
    lane: Arc<Lane>,
}

/// What it takes to look at links.
struct Look<'a> {
    hub: &'a Hub,
    now: Moment,
    sample: Option<&'a Sample>,
    lanes: Arc<Vec<Arc<Lane>>>,
    // Made only where somebody asks: a sample may have thousands of rows.
    reading: OnceLock<HashSet<i32>>,
    blockers: OnceLock<HashSet<i32>>,
}

impl<'a> Look<'a> {
    fn new(hub: &'a Hub, now: Moment, sample: Option<&'a Sample>) -> Self {
        Self {
            hub,
            now,
            sample,
            lanes: hub.lanes.load_full(),
            reading: OnceLock::new(),
            blockers: OnceLock::new(),
        }
    }

    fn reads(&self, pid: i32) -> bool {
        self.reading.get_or_init(|| self.sample.map(reading_from_client).unwrap_or_default()).contains(&pid)
    }

    fn blocks(&self, pid: i32) -> bool {
        let all = || self.sample.map(blocked_by_pid).unwrap_or_default().into_keys().collect();
        self.blockers.get_or_init(all).contains(&pid)
    }

    /// Facts on a link, if it is one to be judged; by now, if only what is due is of interest.
    fn at(&self, link: &Arc<LinkShared>, due_only: bool) -> Option<Suspect> {
        let (state, since) = link.state();
        let flags = link.flags();
        let pid = self.hub.pid_here(link);
        let stalled = state == LinkState::Active
            && (flags & flag::STALLED != 0 || flags & flag::MAYBE_STALLED != 0 && self.reads(pid));
        if state != LinkState::IdleInTransaction && !stalled {
            return None;
        }
        let generation = u64::from(link.generation());
        let lane = link.with_labels(|labels| labels.lane);
        let lane = self.lanes.get(usize::from(lane.0))?;
        let reset_at = link.reset_at.load(Ordering::Relaxed);
        let earliest = lane.settings.idle_in_transaction.as_ref().and_then(LeakSettings::earliest);
        let may_be_due = reset_at != 0 || earliest.is_some_and(|age| self.now.since(since) >= age);
        if due_only && !may_be_due {
            return None;
        }
        let (application, process_key) =
            link.with_labels(|labels| (labels.application_name.clone(), request_of(labels)));
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
            blocks: self.blocks(pid),
            full_with_waiters: false,
            usage_above_shed_below: false,
            reset_at: (reset_at != 0).then(|| Moment::from_micros(reset_at)),
            process_key,
        };
        Some(Suspect { link: Arc::clone(link), application, facts, lane: Arc::clone(lane) })
    }
}

impl App {
    /// Facts on every link that is idle in transaction or stalled.
    pub(super) fn leak_facts(
        &self,
        now: Moment,
        sample: Option<&Sample>,
    ) -> Vec<(Arc<LinkShared>, LeakFacts)> {
        let look = Look::new(&self.hub, now, sample);
        let found = self.hub.links.iter().filter_map(|entry| look.at(entry.value(), false)).collect();
        self.with_harm(now, found)
    }

    /// The same of those of which something might have to be said by now: most are young, or nobody's business. On its way it has links that
    /// are not being read look for a hang-up. Also: how long it worked, its rests aside.
    pub(super) async fn leak_facts_due(
        &self,
        now: Moment,
        sample: Option<&Sample>,
    ) -> (Vec<(Arc<LinkShared>, LeakFacts)>, Duration) {
        let mut resumed = clock::now();
        let look = Look::new(&self.hub, now, sample);
        let links: Vec<LinkId> = self.hub.links.iter().map(|entry| *entry.key()).collect();
        let mut found = Vec::new();
        let mut worked = Duration::ZERO;
        for (n, id) in links.into_iter().enumerate() {
            if n > 0 && n % PORTION == 0 {
                worked += clock::now().since(resumed);
                tokio::time::sleep(PORTION_REST).await;
                resumed = clock::now();
            }
            let Some(link) = self.hub.links.get(&id).map(|entry| Arc::clone(entry.value())) else { continue };
            if link.flags() & flag::BLOCKED != 0 {
                link.post(Command::Probe);
            }
            found.extend(look.at(&link, true));
        }
        let found = self.with_harm(now, found);
        (found, worked + clock::now().since(resumed))
    }

    /// Completes the facts. The guard is asked only of those whose time has come.
    fn with_harm(&self, now: Moment, mut found: Vec<Suspect>) -> Vec<(Arc<LinkShared>, LeakFacts)> {
        let is_old = |suspect: &Suspect| {
            let leak = suspect.lane.settings.idle_in_transaction.as_ref();
            let reset = leak.and_then(|leak| leak.reset);
            reset.is_some_and(|reset| now.since(suspect.facts.idle_since) >= reset)
        };
        let old: Vec<_> = found.iter_mut().filter(|suspect| is_old(suspect)).collect();
        if !old.is_empty() {
            self.hub.guard(|guard, _| {
                for suspect in old {
                    let harm = guard.harm(suspect.lane.id, &suspect.application);
                    suspect.facts.full_with_waiters = harm.full_with_waiters;
                    suspect.facts.usage_above_shed_below = harm.usage_above_shed_below;
                }
            });
        }
        found.into_iter().map(|suspect| (suspect.link, suspect.facts)).collect()
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
