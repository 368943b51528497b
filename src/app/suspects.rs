//! The links that may have to be judged as leaks: those idle in transaction, and those stalled in the middle of a message.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::App;
use super::peaks::Pass;
use super::rows::{blocked_by_pid, reading_from_client};
use crate::admin::io::REST;
use crate::clock::{self, Moment};
use crate::lanes::ids::LinkId;
use crate::lanes::sample::Sample;
use crate::lanes::settings::LeakSettings;
use crate::leaks::judge::LeakFacts;
use crate::link::hub::{Hub, Lane};
use crate::link::shared::{Command, Labels, LinkShared, LinkState, flag};
use crate::wire::statement;

/// Links looked at at once where nobody waits for it: to look at ten thousand takes milliseconds, in which a worker may wait for the core.
pub(super) const PORTION: usize = 128;
/// And where somebody does: about 0.1 ms.
pub(super) const PORTION_AWAITED: usize = 1024;
/// So many times as long as a look at all links worked, nobody looks at all of them again.
pub(super) const REST_PER_WORK: u32 = 2000;
/// A link that is not being read is asked whether its client is there, from so long after that at the latest.
const REST_AT_MOST: Duration = Duration::from_secs(5);

/// Which links sweeps look at. A link that is active or idle outside a transaction when all are looked at cannot be due before the shortest time that
/// any lane gives, so all are looked at twice in that time, and in between only those that were suspects then, each from when it may be due.
#[derive(Default)]
pub(super) struct Watched {
    links: Vec<(LinkId, Moment)>,
    scanned_at: Option<Moment>,
    worked: Duration,
}

impl Watched {
    /// Whether all links are to be looked at, where the shortest time after which one is due is `earliest`.
    fn wants_scan(&self, now: Moment, earliest: Option<Duration>) -> bool {
        let rest = self.worked * REST_PER_WORK;
        let rest = earliest.map_or(rest, |earliest| rest.min(earliest / 2)).min(REST_AT_MOST);
        self.scanned_at.is_none_or(|at| now.since(at) >= rest)
    }
}

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

/// What facts are wanted for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    /// Only what is due, and whether it came back.
    Judge,
    /// All there are.
    Show,
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

    /// The shortest time after which a link of any lane may be due.
    fn earliest(&self) -> Option<Duration> {
        let leaks = self.lanes.iter().filter_map(|lane| lane.settings.idle_in_transaction.as_ref());
        leaks.filter_map(LeakSettings::earliest).min()
    }

    /// From when on a link is to be looked at, if it is to be before all are again.
    fn due_from(&self, link: &LinkShared) -> Option<Moment> {
        let ((state, since), flags) = (link.state(), link.flags());
        if flags & flag::BLOCKED != 0 || link.reset_at.load(Ordering::Relaxed) != 0 {
            return Some(self.now);
        }
        let stalled = flags & (flag::STALLED | flag::MAYBE_STALLED) != 0;
        if state != LinkState::IdleInTransaction && !stalled {
            return None;
        }
        let lane = link.with_labels(|labels| labels.lane);
        let leak = self.lanes.get(usize::from(lane.0))?.settings.idle_in_transaction.as_ref();
        leak.and_then(LeakSettings::earliest).map(|earliest| since + earliest)
    }

    /// Facts on a link, if it is one to be judged; to the judge, by now.
    fn at(&self, link: &Arc<LinkShared>, purpose: For) -> Option<Suspect> {
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
        if purpose == For::Judge && !may_be_due {
            return None;
        }
        let (application, process_key) = link.with_labels(|labels| {
            let key = if purpose == For::Judge { request_of(labels) } else { 0 };
            (labels.application_name.clone(), key)
        });
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
    pub(super) async fn leak_facts(
        &self,
        now: Moment,
        sample: Option<&Sample>,
    ) -> Vec<(Arc<LinkShared>, LeakFacts)> {
        let look = Look::new(&self.hub, now, sample);
        let mut found = Vec::new();
        self.each_link(PORTION_AWAITED, |link| found.extend(look.at(link, For::Show))).await;
        self.with_harm(now, found)
    }

    /// Looks at every link there is, with a rest behind each `portion` of them; how long it worked, its rests aside.
    pub(super) async fn each_link(&self, portion: usize, mut see: impl FnMut(&Arc<LinkShared>)) -> Duration {
        let (mut resumed, mut worked) = (clock::now(), Duration::ZERO);
        let all: Vec<LinkId> = self.hub.links.iter().map(|entry| *entry.key()).collect();
        for some in all.chunks(portion) {
            for id in some {
                if let Some(entry) = self.hub.links.get(id) {
                    see(entry.value());
                }
            }
            worked += clock::now().since(resumed);
            if some.len() == portion {
                tokio::time::sleep(REST).await;
            }
            resumed = clock::now();
        }
        worked
    }

    /// The same of those of which something might have to be said by now: most are young, or nobody's business. On its way it has links that
    /// are not being read look for a hang-up, and notes what is in use and idles (`peaks`). Also: how long it worked, its rests aside.
    pub(super) async fn leak_facts_due(
        &self,
        now: Moment,
        sample: Option<&Sample>,
        watched: &mut Watched,
    ) -> (Vec<(Arc<LinkShared>, LeakFacts)>, Duration) {
        let mut pass = Pass::default();
        let mut worked = Duration::ZERO;
        let look = Look::new(&self.hub, now, sample);
        if watched.wants_scan(now, look.earliest()) {
            *watched = self.scan(&look, &mut pass).await;
            worked = watched.worked;
        }
        let resumed = clock::now();
        let mut found = Vec::new();
        for (id, _) in watched.links.iter().filter(|(_, from)| *from <= now) {
            let Some(link) = self.hub.links.get(id).map(|entry| Arc::clone(entry.value())) else { continue };
            if link.flags() & flag::BLOCKED != 0 {
                link.post(Command::Probe);
            }
            found.extend(look.at(&link, For::Judge));
        }
        self.passed(now, pass);
        let found = self.with_harm(now, found);
        (found, worked + clock::now().since(resumed))
    }

    /// Looks at all links, with rests, and has `pass` see them.
    async fn scan(&self, look: &Look<'_>, pass: &mut Pass) -> Watched {
        let mut links = Vec::new();
        let see = |link: &Arc<LinkShared>| {
            pass.see(link);
            links.extend(look.due_from(link).map(|from| (link.id, from)));
        };
        let worked = self.each_link(PORTION, see).await;
        Watched { links, scanned_at: Some(look.now), worked }
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

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(ms: u64) -> Moment {
        Moment::from_micros(1_000_000 + ms * 1000)
    }

    fn scanned(worked: Duration) -> Watched {
        Watched { links: Vec::new(), scanned_at: Some(at(0)), worked }
    }

    #[test]
    fn all_links_are_looked_at_first_and_then_as_often_as_they_are_few() {
        assert!(Watched::default().wants_scan(at(0), None));
        assert!(scanned(Duration::from_micros(30)).wants_scan(at(60), None));
        assert!(!scanned(2 * MS).wants_scan(at(3_999), None) && scanned(2 * MS).wants_scan(at(4_000), None));
        assert!(
            scanned(60 * MS).wants_scan(at(5_000), None),
            "clients gone behind unread bytes are looked for"
        );
    }

    #[test]
    fn no_link_comes_of_age_between_two_looks_at_all() {
        let (worked, earliest) = (60 * MS, Some(800 * MS));
        assert!(
            !scanned(worked).wants_scan(at(399), earliest) && scanned(worked).wants_scan(at(400), earliest)
        );
    }
}
