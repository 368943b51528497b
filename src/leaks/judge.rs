//! When a link idle in transaction is a leak, and what is done to it.
//!
//! The judge only speaks; the link itself checks the generation again and speaks last. Each verdict is given once per idle period.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::clock::Moment;
use crate::lanes::ids::{LaneId, LinkId};
use crate::lanes::settings::{LeakAction, LeakSettings, ResetWhen};
use crate::reason::SqlState;

/// A client process that is reset again within this time repeats the same thing.
const REPEATED_WITHIN: Duration = Duration::from_secs(600);
/// Client processes remembered for that; beyond it the one reset longest ago is forgotten.
const PROCESSES_MAX: usize = 4096;
/// What a repeater gets: Odoo does not retry it.
const REPEATED: SqlState = SqlState(*b"25P03");
/// While a leak past its `reset` was not seen doing harm, PostgreSQL is looked at so often: whoever comes to wait for it later waits no longer
/// than a second, this, the sweep's pace and a rollback together.
const LOOK_EVERY: Duration = Duration::from_millis(450);
/// `max_resets_per_minute` counts in this window.
const MINUTE: Duration = Duration::from_secs(60);

/// A link idle in transaction (or stalled, or rolled back by us with its client silent).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeakFacts {
    /// Which link.
    pub link: LinkId,
    /// Its lane now, whose policy holds.
    pub lane: LaneId,
    /// Of this idle period.
    pub generation: u64,
    /// Since when it is idle; of a stalled link, since its last byte.
    pub idle_since: Moment,
    /// Since when it is in a transaction.
    pub transaction_since: Option<Moment>,
    /// A pipeline without Sync, an open COPY or a message cut in the middle: only `disconnect` is possible.
    pub stalled: bool,
    /// Its last statement is one that idles for a living.
    pub exempt: bool,
    /// Its lane is protected.
    pub protected: bool,
    /// Its session switched off idle_in_transaction_session_timeout.
    pub watch_only: bool,
    /// Somebody waits for its locks.
    pub blocks: bool,
    /// Its lane or application is full, and others wait.
    pub full_with_waiters: bool,
    /// Usage is above its lane's `shed_below`.
    pub usage_above_shed_below: bool,
    /// When we rolled its transaction back, where we did.
    pub reset_at: Option<Moment>,
    /// The client process, so that one that comes back is known; 0 is unknown.
    pub process_key: u64,
}

impl LeakFacts {
    /// The harm it does, in words; none if nobody is harmed.
    fn harm(&self) -> Option<&'static str> {
        if self.blocks {
            Some("it blocks others")
        } else if self.full_with_waiters {
            Some("its lane or application is full and others wait")
        } else if self.usage_above_shed_below {
            Some("usage is above shed_below")
        } else {
            None
        }
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Put it on record.
    Warn,
    /// Roll its transaction back; its client gets this SQLSTATE.
    Reset {
        /// The lane's, or 25P03 for one that came back.
        sqlstate: SqlState,
    },
    /// FATAL 25P03 and close, both sides.
    Disconnect,
    /// It would be reset, but `max_resets_per_minute` are used up: say so loudly.
    LimitReached,
    /// Observe mode: it would have been rolled back.
    WouldReset,
    /// Observe mode: it would have been disconnected.
    WouldDisconnect,
}

/// A verdict on one idle period of one link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Which link.
    pub link: LinkId,
    /// Its lane.
    pub lane: LaneId,
    /// The idle period: void if the client spoke since.
    pub generation: u64,
    /// What.
    pub verdict: Verdict,
    /// Why, for people.
    pub text: String,
}

/// What was said of an idle period.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    generation: u64,
    warn: bool,
    act: bool,
    escalate: bool,
    limit: bool,
    would: bool,
}

/// A reset that was ordered: it counts until the link says it was off.
#[derive(Clone, Copy, Debug)]
struct Ordered {
    at: Moment,
    link: LinkId,
    generation: u64,
    process_key: u64,
    /// When that process had been reset before.
    before: Option<Moment>,
}

/// The judge: one for the process.
#[derive(Clone, Debug)]
pub struct Judge {
    max_per_minute: u32,
    observe: bool,
    said: BTreeMap<LinkId, Said>,
    /// Of the last minute, in order.
    ordered: VecDeque<Ordered>,
    processes: BTreeMap<u64, Moment>,
}

impl Judge {
    /// A judge that allows so many resets and disconnects a minute, all lanes together.
    pub fn new(max_resets_per_minute: u32) -> Self {
        Self {
            max_per_minute: max_resets_per_minute,
            observe: false,
            said: BTreeMap::new(),
            ordered: VecDeque::new(),
            processes: BTreeMap::new(),
        }
    }

    /// Takes other limits; what was ordered in the last minute still counts.
    pub fn configure(&mut self, max_resets_per_minute: u32, observe: bool) {
        self.max_per_minute = max_resets_per_minute;
        self.observe = observe;
    }

    /// Judges all links that are idle in transaction now; one that is missing is forgotten. Those that block others come first, then
    /// the oldest.
    pub fn sweep<'a>(
        &mut self,
        now: Moment,
        leaks: &[LeakFacts],
        policy: impl Fn(LaneId) -> Option<&'a LeakSettings>,
    ) -> Vec<Judged> {
        self.forget_old(now, leaks);
        let mut order: Vec<&LeakFacts> = leaks.iter().collect();
        order.sort_by_key(|leak| (!leak.blocks, leak.idle_since, leak.link));
        let mut verdicts = Vec::new();
        for leak in order {
            if let Some(policy) = policy(leak.lane) {
                self.warn(now, leak, policy, &mut verdicts);
                self.act(now, leak, policy, &mut verdicts);
            }
        }
        verdicts
    }

    /// Whether a fresh look at PostgreSQL could show that one of these blocks somebody: one past its `reset` that would be acted on if it did.
    /// `looked_at`: when the last look was asked for.
    pub fn wants_look<'a>(
        &self,
        now: Moment,
        looked_at: Option<Moment>,
        leaks: &[LeakFacts],
        policy: impl Fn(LaneId) -> Option<&'a LeakSettings>,
    ) -> bool {
        leaks.iter().any(|leak| {
            let Some(policy) = policy(leak.lane).filter(|_| !leak.blocks) else { return false };
            let Some(ripe_at) = policy.reset.map(|reset| leak.idle_since + reset) else { return false };
            let would_be = due(now, &LeakFacts { blocks: true, ..*leak }, policy).is_some();
            let undecided = leak.reset_at.is_none() && would_be && due(now, leak, policy).is_none();
            undecided && looked_at.is_none_or(|at| at < ripe_at || now.since(at) >= LOOK_EVERY)
        })
    }

    /// A reset or disconnect was off: the client spoke first. It does not count.
    pub fn missed(&mut self, link: LinkId, generation: u64) {
        let found = self.ordered.iter().position(|one| one.link == link && one.generation == generation);
        let Some(one) = found.and_then(|index| self.ordered.remove(index)) else { return };
        match one.before {
            Some(before) => drop(self.processes.insert(one.process_key, before)),
            None => drop(self.processes.remove(&one.process_key)),
        }
    }

    fn forget_old(&mut self, now: Moment, leaks: &[LeakFacts]) {
        let mut said = BTreeMap::new();
        for leak in leaks {
            let known = self.said.get(&leak.link).filter(|said| said.generation == leak.generation);
            let fresh = Said { generation: leak.generation, ..Said::default() };
            said.insert(leak.link, known.copied().unwrap_or(fresh));
        }
        self.said = said;
        self.ordered.retain(|one| now.since(one.at) < MINUTE);
        self.processes.retain(|_, at| now.since(*at) < REPEATED_WITHIN);
    }

    fn warn(&mut self, now: Moment, leak: &LeakFacts, policy: &LeakSettings, verdicts: &mut Vec<Judged>) {
        let idle = now.since(leak.idle_since);
        let Some(said) = self.said.get_mut(&leak.link) else { return };
        let due = policy.warn.is_some_and(|warn| idle >= warn);
        if due && !leak.exempt && leak.reset_at.is_none() && !std::mem::replace(&mut said.warn, true) {
            verdicts.push(judged(leak, Verdict::Warn, describe(now, leak, "warn")));
        }
    }

    fn act(&mut self, now: Moment, leak: &LeakFacts, policy: &LeakSettings, verdicts: &mut Vec<Judged>) {
        let Some((disconnect, why)) = due(now, leak, policy) else { return };
        let escalates = leak.reset_at.is_some();
        let Some(said) = self.said.get_mut(&leak.link) else { return };
        let done = if escalates { &mut said.escalate } else { &mut said.act };
        if *done {
            return;
        }
        if self.observe {
            if !std::mem::replace(&mut said.would, true) {
                let verdict = if disconnect { Verdict::WouldDisconnect } else { Verdict::WouldReset };
                verdicts.push(judged(leak, verdict, describe(now, leak, &why)));
            }
            return;
        }
        if self.ordered.len() >= self.max_per_minute as usize {
            if !std::mem::replace(&mut said.limit, true) {
                let limit = format!("max_resets_per_minute = {} reached; {why}", self.max_per_minute);
                verdicts.push(judged(leak, Verdict::LimitReached, describe(now, leak, &limit)));
            }
            return;
        }
        *done = true;
        let repeats = self.order(now, leak);
        let verdict = match disconnect {
            true => Verdict::Disconnect,
            false => Verdict::Reset { sqlstate: if repeats { REPEATED } else { policy.sqlstate } },
        };
        let again = if repeats { "; this client process was reset within 10 minutes before" } else { "" };
        verdicts.push(judged(leak, verdict, describe(now, leak, &format!("{why}{again}"))));
    }

    /// Counts a reset. True if its client process was reset within the last ten minutes.
    fn order(&mut self, now: Moment, leak: &LeakFacts) -> bool {
        let process_key = leak.process_key;
        let mut before = None;
        // The end of a silent client is not another attempt of it.
        if process_key != 0 && leak.reset_at.is_none() {
            before = self.processes.insert(process_key, now);
            if self.processes.len() > PROCESSES_MAX {
                let oldest = self.processes.iter().min_by_key(|(_, at)| **at).map(|(key, _)| *key);
                oldest.map(|key| self.processes.remove(&key));
            }
        }
        let (link, generation) = (leak.link, leak.generation);
        let process_key = if leak.reset_at.is_none() { process_key } else { 0 };
        self.ordered.push_back(Ordered { at: now, link, generation, process_key, before });
        before.is_some()
    }

    /// What SHOW LEAKS says of a link.
    pub fn verdict_text(&self, leak: &LeakFacts, policy: Option<&LeakSettings>, now: Moment) -> String {
        let Some(policy) = policy else { return "watch".to_owned() };
        let said = self.said.get(&leak.link).filter(|said| said.generation == leak.generation);
        let said = said.copied().unwrap_or_default();
        if leak.reset_at.is_some() {
            return "reset".to_owned();
        }
        if leak.exempt {
            return "exempt".to_owned();
        }
        if said.act {
            return if policy.action == LeakAction::Rollback && !leak.stalled {
                "reset"
            } else {
                "disconnect"
            }
            .to_owned();
        }
        if due(now, leak, policy).is_some() {
            return if said.limit { "limit" } else { "observed" }.to_owned();
        }
        let is_watched = leak.protected || leak.watch_only || policy.action == LeakAction::None;
        match next_due(leak, policy).filter(|_| !is_watched) {
            Some(at) if at > now => {
                let would = if self.observe { "would reset" } else { "reset" };
                format!("{would} in {} s", at.since(now).as_secs_f64().ceil())
            }
            Some(_) => "warn".to_owned(),
            None if said.warn => "warn".to_owned(),
            None => "watch".to_owned(),
        }
    }
}

/// Whether something is to be done: disconnect rather than roll back, and why.
fn due(now: Moment, leak: &LeakFacts, policy: &LeakSettings) -> Option<(bool, String)> {
    if leak.protected || leak.exempt || leak.watch_only || policy.action == LeakAction::None {
        return None;
    }
    if let Some(reset_at) = leak.reset_at {
        let silent = now.since(reset_at.max(leak.idle_since));
        let why = "rolled back, and its client stays silent".to_owned();
        return policy.disconnect_after.is_some_and(|after| silent >= after).then_some((true, why));
    }
    let idle = now.since(leak.idle_since);
    let capped = policy.cap.is_some_and(|cap| idle >= cap);
    let ripe = policy.reset.is_some_and(|reset| idle >= reset);
    let why = match (leak.harm(), policy.when) {
        (Some(harm), _) if ripe => harm,
        _ if capped => "it is past its cap",
        (_, ResetWhen::Always) if ripe => "it is past its reset time",
        _ => return None,
    };
    Some((policy.action == LeakAction::Disconnect || leak.stalled, why.to_owned()))
}

/// When the next threshold that may do something to it is reached.
fn next_due(leak: &LeakFacts, policy: &LeakSettings) -> Option<Moment> {
    let harmful = policy.when == ResetWhen::Always || leak.harm().is_some();
    let reset = policy.reset.filter(|_| harmful || policy.cap.is_none());
    [reset, policy.cap].into_iter().flatten().min().map(|after| leak.idle_since + after)
}

fn judged(leak: &LeakFacts, verdict: Verdict, text: String) -> Judged {
    Judged { link: leak.link, lane: leak.lane, generation: leak.generation, verdict, text }
}

fn describe(now: Moment, leak: &LeakFacts, why: &str) -> String {
    let idle = now.since(leak.idle_since).as_secs_f64();
    let state = if leak.stalled { "stalled in a pipeline" } else { "idle in transaction" };
    let transaction = leak.transaction_since.map_or_else(String::new, |since| {
        format!(", transaction {:.1} s old", now.since(since).as_secs_f64())
    });
    format!("{state} for {idle:.1} s{transaction}: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Moment {
        Moment::from_micros(1 + secs * 1_000_000)
    }

    fn policy() -> LeakSettings {
        LeakSettings {
            warn: Some(Duration::from_secs(15)),
            reset: Some(Duration::from_secs(60)),
            when: ResetWhen::Harm,
            cap: Some(Duration::from_secs(600)),
            action: LeakAction::Rollback,
            sqlstate: SqlState(*b"40001"),
            exempt: Vec::new(),
            disconnect_after: Some(Duration::from_secs(30)),
        }
    }

    /// Idle since second 0, harming nobody.
    fn leak(link: u64) -> LeakFacts {
        LeakFacts {
            link: LinkId(link),
            lane: LaneId(0),
            generation: 1,
            idle_since: at(0),
            transaction_since: None,
            stalled: false,
            exempt: false,
            protected: false,
            watch_only: false,
            blocks: false,
            full_with_waiters: false,
            usage_above_shed_below: false,
            reset_at: None,
            process_key: 0,
        }
    }

    fn sweep(
        judge: &mut Judge,
        secs: u64,
        leaks: &[LeakFacts],
        policy: &LeakSettings,
    ) -> Vec<(u64, Verdict)> {
        let verdicts = judge.sweep(at(secs), leaks, |_| Some(policy));
        verdicts.into_iter().map(|judged| (judged.link.0, judged.verdict)).collect()
    }

    const RESET: Verdict = Verdict::Reset { sqlstate: SqlState(*b"40001") };

    #[test]
    fn a_harmless_leak_is_warned_of_once_and_reset_at_its_cap() {
        let (mut judge, policy) = (Judge::new(10), policy());
        assert_eq!(sweep(&mut judge, 14, &[leak(1)], &policy), []);
        assert_eq!(sweep(&mut judge, 15, &[leak(1)], &policy), [(1, Verdict::Warn)]);
        assert_eq!(sweep(&mut judge, 599, &[leak(1)], &policy), []);
        assert_eq!(sweep(&mut judge, 600, &[leak(1)], &policy), [(1, RESET)]);
        assert_eq!(sweep(&mut judge, 700, &[leak(1)], &policy), []);
    }

    #[test]
    fn a_harmful_leak_is_reset_in_time_whatever_the_harm() {
        let harms: [fn(&mut LeakFacts); 3] =
            [|l| l.blocks = true, |l| l.full_with_waiters = true, |l| l.usage_above_shed_below = true];
        for harm in harms {
            let (mut judge, policy, mut leak) = (Judge::new(10), policy(), leak(1));
            harm(&mut leak);
            assert_eq!(sweep(&mut judge, 59, &[leak], &policy), [(1, Verdict::Warn)]);
            assert_eq!(sweep(&mut judge, 60, &[leak], &policy), [(1, RESET)]);
        }
        let always = LeakSettings { when: ResetWhen::Always, warn: None, ..policy() };
        assert_eq!(sweep(&mut Judge::new(10), 60, &[leak(1)], &always), [(1, RESET)]);
    }

    #[test]
    fn a_look_is_wanted_when_a_leak_gets_old_enough_and_again_until_it_is_decided() {
        let (judge, policy) = (Judge::new(10), policy());
        let wants = |leak: LeakFacts, looked_secs: u64, secs: u64| {
            judge.wants_look(at(secs), Some(at(looked_secs)), &[leak], |_| Some(&policy))
        };
        assert!(!wants(leak(1), 50, 59), "too young");
        assert!(wants(leak(1), 59, 60), "the last look was before its time");
        assert!(!wants(leak(1), 60, 60), "looked at");
        assert!(wants(leak(1), 60, 61), "somebody may have come to wait for it");
        assert!(judge.wants_look(at(60), None, &[leak(1)], |_| Some(&policy)));
        assert!(!wants(LeakFacts { blocks: true, ..leak(1) }, 59, 60), "known");
        assert!(!wants(leak(1), 590, 600), "its cap decides");
        assert!(!wants(LeakFacts { reset_at: Some(at(61)), ..leak(1) }, 59, 62), "done");
        for spared in [LeakFacts { exempt: true, ..leak(1) }, LeakFacts { protected: true, ..leak(1) }] {
            assert!(!wants(spared, 59, 60));
        }
    }

    #[test]
    fn those_that_must_not_be_touched_are_not() {
        let spared: [fn(&mut LeakFacts); 3] =
            [|l| l.protected = true, |l| l.exempt = true, |l| l.watch_only = true];
        for spare in spared {
            let mut leak = LeakFacts { blocks: true, ..leak(1) };
            spare(&mut leak);
            let said = sweep(&mut Judge::new(10), 10_000, &[leak], &policy());
            assert!(said.iter().all(|(_, verdict)| *verdict == Verdict::Warn), "{said:?}");
        }
        let watch = LeakSettings { action: LeakAction::None, ..policy() };
        assert_eq!(sweep(&mut Judge::new(10), 10_000, &[leak(1)], &watch), [(1, Verdict::Warn)]);
    }

    #[test]
    fn a_stalled_link_can_only_be_disconnected() {
        let stalled = LeakFacts { stalled: true, ..leak(1) };
        let said = sweep(&mut Judge::new(10), 600, &[stalled], &policy());
        assert_eq!(said, [(1, Verdict::Warn), (1, Verdict::Disconnect)]);
    }

    #[test]
    fn a_process_that_comes_back_within_ten_minutes_is_not_told_to_retry() {
        let (mut judge, policy) = (Judge::new(10), LeakSettings { warn: None, ..policy() });
        let of = |link, idle_since| LeakFacts { process_key: 7, blocks: true, idle_since, ..leak(link) };
        assert_eq!(sweep(&mut judge, 60, &[of(1, at(0))], &policy), [(1, RESET)]);
        let repeated = Verdict::Reset { sqlstate: REPEATED };
        assert_eq!(sweep(&mut judge, 659, &[of(2, at(599))], &policy), [(2, repeated)]);
        assert_eq!(sweep(&mut judge, 1259, &[of(3, at(1199))], &policy), [(3, RESET)]);
    }

    #[test]
    fn a_reset_that_was_off_counts_for_nothing() {
        let (mut judge, policy) = (Judge::new(1), LeakSettings { warn: None, ..policy() });
        let of = |link| LeakFacts { process_key: 7, blocks: true, ..leak(link) };
        assert_eq!(sweep(&mut judge, 60, &[of(1)], &policy), [(1, RESET)]);
        judge.missed(LinkId(1), 1);
        assert_eq!(sweep(&mut judge, 61, &[of(2)], &policy), [(2, RESET)]);
    }

    #[test]
    fn the_limit_spares_the_newest_of_those_that_block_nobody() {
        let (mut judge, policy) =
            (Judge::new(2), LeakSettings { warn: None, when: ResetWhen::Always, ..policy() });
        let blocker = LeakFacts { blocks: true, idle_since: at(5), ..leak(3) };
        let leaks = [leak(2), LeakFacts { idle_since: at(1), ..leak(1) }, blocker];
        let said = sweep(&mut judge, 70, &leaks, &policy);
        assert_eq!(said, [(3, RESET), (2, RESET), (1, Verdict::LimitReached)]);
        assert_eq!(sweep(&mut judge, 129, &leaks, &policy), [], "said once");
        assert_eq!(
            sweep(&mut judge, 130, &leaks, &policy),
            [(1, RESET)],
            "a minute later there is room again"
        );
    }

    #[test]
    fn observing_says_what_would_be_done_and_leaves_it_for_later() {
        let (mut judge, policy) = (Judge::new(1), LeakSettings { warn: None, ..policy() });
        judge.configure(1, true);
        assert_eq!(sweep(&mut judge, 600, &[leak(1)], &policy), [(1, Verdict::WouldReset)]);
        assert_eq!(judge.verdict_text(&leak(1), Some(&policy), at(600)), "observed");
        assert!(judge.verdict_text(&leak(1), Some(&policy), at(10)).starts_with("would reset in "));
        assert_eq!(sweep(&mut judge, 601, &[leak(1)], &policy), []);
        judge.configure(1, false);
        assert_eq!(sweep(&mut judge, 602, &[leak(1)], &policy), [(1, RESET)]);
    }

    #[test]
    fn a_silent_client_is_disconnected_after_its_rollback() {
        let (mut judge, policy) = (Judge::new(9), LeakSettings { warn: None, ..policy() });
        assert_eq!(sweep(&mut judge, 600, &[leak(1)], &policy), [(1, RESET)]);
        let rolled_back = LeakFacts { reset_at: Some(at(601)), ..leak(1) };
        assert_eq!(sweep(&mut judge, 630, &[rolled_back], &policy), []);
        assert_eq!(sweep(&mut judge, 631, &[rolled_back], &policy), [(1, Verdict::Disconnect)]);
        assert_eq!(sweep(&mut judge, 700, &[rolled_back], &policy), []);
        let spoke = LeakFacts { generation: 2, idle_since: at(690), ..rolled_back };
        assert_eq!(sweep(&mut judge, 719, &[spoke], &policy), [], "silent since it spoke last");
    }

    #[test]
    fn show_leaks_tells_what_comes_next() {
        let (mut judge, policy) = (Judge::new(1), policy());
        let text = |judge: &Judge, leak: LeakFacts, secs| judge.verdict_text(&leak, Some(&policy), at(secs));
        assert_eq!(text(&judge, leak(1), 1), "reset in 599 s");
        assert_eq!(text(&judge, LeakFacts { blocks: true, ..leak(1) }, 1), "reset in 59 s");
        assert_eq!(text(&judge, LeakFacts { exempt: true, ..leak(1) }, 1), "exempt");
        assert_eq!(text(&judge, LeakFacts { protected: true, ..leak(1) }, 1), "watch");
        sweep(&mut judge, 600, &[leak(1), leak(2)], &policy);
        assert_eq!(text(&judge, leak(1), 600), "reset");
        assert_eq!(text(&judge, leak(2), 600), "limit");
        assert_eq!(judge.verdict_text(&leak(1), None, at(1)), "watch");
    }
}
