//! Who was listed, so that PostgreSQL need not tell again of those who did nothing since.
//!
//! A look asks in full for the sessions that may have changed, and by pid only for the quiet ones. What "since the last look"
//! means is PostgreSQL's clock's business, which may lag behind what it stamps and may be set: [`OVERLAP`] and [`Roster::take`] see to that.
//! Invariant: a sample holds what a look at everything would have found; where that cannot be had, there is none and everything
//! is looked at again. Bounds: [`FULL_EVERY`], and twice as many sessions remembered as were listed last.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::row::Timestamp;
use super::targets::Role;
use crate::clock::Moment;
use crate::lanes::sample::{LockHolder, Sample, Session};

/// Told again in full: what changed in so long before the last look. A backend reads the clock first and shows its new state a little later,
/// on a busy machine perhaps much later.
const OVERLAP: Duration = Duration::from_secs(5);
/// Everything is told again in full after so long: changes that took longer than [`OVERLAP`] to show.
const FULL_EVERY: Duration = Duration::from_secs(60);
/// What two clocks may differ by from one look to the next, unless one of them was set.
const DRIFT: Duration = Duration::from_secs(1);
/// PostgreSQL goes through this many possible backends' locks in about 0.4 ms. With more it is asked for them less often.
const LOCKS_CHEAP_MAX: u32 = 1000;
/// How often then.
const LOCKS_EVERY: Duration = Duration::from_secs(5);
/// Sessions remembered beyond twice those listed.
const SPARE: usize = 64;

/// What to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Sessions that were as they are before this are asked for by pid only; none: all in full.
    pub quiet_since: Option<Timestamp>,
    /// Whether to ask who holds locks.
    pub locks: bool,
}

/// What the server says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// Pid of the monitor's own backend.
    pub monitor_pid: i32,
    /// Whether the role sees other roles' sessions. Where it does not, the sample is a low reading and must not be used.
    pub may_read: bool,
    /// max_connections.
    pub max_connections: u32,
    /// superuser_reserved_connections + reserved_connections (PostgreSQL 16).
    pub reserved_connections: u32,
    /// PostgreSQL's clock, after everything was listed.
    pub clock: Timestamp,
    /// Another number when any role's name is another.
    pub roles: i64,
    /// What it calls itself.
    pub role: Option<Role>,
}

/// What came back.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// What was asked.
    pub question: Question,
    /// When.
    pub asked_at: Moment,
    /// When it came back.
    pub taken_at: Moment,
    /// What the server says of itself.
    pub facts: Facts,
    /// Who holds locks, in any order; empty where it was not asked.
    pub lock_holders: Vec<LockHolder>,
    /// Pids of quiet sessions.
    pub quiet: Vec<i32>,
    /// All other sessions.
    pub others: Vec<Session>,
}

/// The last look.
#[derive(Clone, Copy, Debug)]
struct Last {
    clock: Timestamp,
    roles: i64,
    taken_at: Moment,
    /// When everything was last told in full.
    full_at: Moment,
}

/// The sessions of one server, as known to one monitor's connection.
#[derive(Debug, Default)]
pub struct Roster {
    sessions: HashMap<i32, Arc<Session>>,
    last: Option<Last>,
    locks: Option<Locks>,
}

#[derive(Clone, Debug)]
struct Locks {
    holders: Arc<[LockHolder]>,
    asked_at: Moment,
    max_connections: u32,
}

impl Roster {
    /// What to ask at `now`.
    pub fn question(&self, now: Moment) -> Question {
        let last = self.last.filter(|last| now.since(last.full_at) < FULL_EVERY);
        let known = self.locks.as_ref().is_some_and(|locks| {
            locks.max_connections > LOCKS_CHEAP_MAX && now.since(locks.asked_at) < LOCKS_EVERY
        });
        Question { quiet_since: last.map(|last| last.clock.before(OVERLAP)), locks: !known }
    }

    /// Takes an answer; the sample it makes with what was known. None: it cannot be relied on, and the next question is for everything.
    /// An answer to such a question always makes a sample.
    pub fn take(&mut self, answer: Answer) -> Option<Sample> {
        let Answer { question, asked_at, taken_at, facts, lock_holders, quiet, others } = answer;
        let renamed = self.last.is_some_and(|last| last.roles != facts.roles);
        if question.quiet_since.is_some() && (renamed || self.was_clock_set(facts.clock, asked_at)) {
            *self = Self::default();
            return None;
        }
        let mut sessions = Vec::with_capacity(quiet.len() + others.len());
        for session in others {
            let session = Arc::new(session);
            self.sessions.insert(session.pid, session.clone());
            sessions.push(session);
        }
        for pid in quiet {
            let Some(session) = self.sessions.get(&pid) else {
                *self = Self::default();
                return None;
            };
            sessions.push(session.clone());
        }
        if self.sessions.len() > 2 * sessions.len() + SPARE {
            self.sessions = sessions.iter().map(|session| (session.pid, session.clone())).collect();
        }
        let full_at =
            self.last.filter(|_| question.quiet_since.is_some()).map_or(asked_at, |last| last.full_at);
        self.last = Some(Last { clock: facts.clock, roles: facts.roles, taken_at, full_at });
        let locks = self.take_locks(&question, asked_at, facts.max_connections, lock_holders);
        Some(Sample {
            asked_at,
            taken_at,
            max_connections: facts.max_connections,
            reserved_connections: facts.reserved_connections,
            monitor_pid: facts.monitor_pid,
            sessions,
            lock_holders: locks.holders,
            locks_asked_at: locks.asked_at,
        })
    }

    /// Whether PostgreSQL's clock went on by less than the time that passed for us: what changed since may bear an old stamp.
    fn was_clock_set(&self, clock: Timestamp, asked_at: Moment) -> bool {
        self.last.is_none_or(|last| clock.since(last.clock) + DRIFT < asked_at.since(last.taken_at))
    }

    fn take_locks(
        &mut self,
        question: &Question,
        asked_at: Moment,
        max_connections: u32,
        mut holders: Vec<LockHolder>,
    ) -> Locks {
        if !question.locks
            && let Some(locks) = &self.locks
        {
            return locks.clone();
        }
        holders.sort_unstable_by_key(|holder| holder.pid);
        let locks = Locks { holders: holders.into(), asked_at, max_connections };
        self.locks = Some(locks.clone());
        locks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    fn at(second: u64) -> Moment {
        Moment::from_micros(second * S)
    }

    fn stamp(second: i64) -> Timestamp {
        Timestamp(second * 1_000_000)
    }

    fn session(pid: i32, query: &str, seen_at: Moment) -> Session {
        Session {
            pid,
            walsender: false,
            address: None,
            port: None,
            application: "".into(),
            user: "".into(),
            database: "".into(),
            state: "idle".into(),
            seen_at,
            started: 0,
            changed: 0,
            state_age: Duration::from_secs(10),
            transaction_age: None,
            wait_event: ("".into(), "".into()),
            query: query.into(),
            blocked_by: Vec::new(),
        }
    }

    /// An answer to the roster's own question, asked and answered at second `now`, when PostgreSQL's clock showed `clock`.
    fn answer(roster: &Roster, now: u64, clock: i64, quiet: &[i32], others: &[(i32, &str)]) -> Answer {
        Answer {
            question: roster.question(at(now)),
            asked_at: at(now),
            taken_at: at(now),
            facts: Facts {
                monitor_pid: 1,
                may_read: true,
                max_connections: 100,
                reserved_connections: 3,
                clock: stamp(clock),
                roles: 7,
                role: None,
            },
            lock_holders: Vec::new(),
            quiet: quiet.to_vec(),
            others: others.iter().map(|(pid, query)| session(*pid, query, at(now))).collect(),
        }
    }

    fn take(roster: &mut Roster, now: u64, quiet: &[i32], others: &[(i32, &str)]) -> Option<Sample> {
        roster.take(answer(roster, now, i64::try_from(now).expect("small"), quiet, others))
    }

    fn queries(sample: &Sample) -> Vec<(i32, &str)> {
        let mut all: Vec<_> = sample.sessions.iter().map(|s| (s.pid, &*s.query)).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn a_quiet_session_is_as_it_was_and_grows_older() {
        let mut roster = Roster::default();
        assert_eq!(roster.question(at(100)).quiet_since, None);
        take(&mut roster, 100, &[], &[(1, "a"), (2, "b"), (3, "c")]).expect("a sample");
        assert_eq!(roster.question(at(101)).quiet_since, Some(stamp(95)), "with the overlap");

        let sample = take(&mut roster, 101, &[3, 1], &[(2, "B"), (4, "d")]).expect("a sample");
        assert_eq!(queries(&sample), [(1, "a"), (2, "B"), (3, "c"), (4, "d")]);
        let ages: Vec<_> = sample.sessions.iter().map(|s| s.ages(at(101)).0.as_secs()).collect();
        assert_eq!(ages, [10, 10, 11, 11]);

        let sample = take(&mut roster, 102, &[4], &[]).expect("a sample");
        assert_eq!(queries(&sample), [(4, "d")], "the others are gone");
    }

    #[test]
    fn a_reused_pid_is_the_new_session() {
        let mut roster = Roster::default();
        take(&mut roster, 100, &[], &[(1, "old")]).expect("a sample");
        take(&mut roster, 101, &[], &[]).expect("a sample");
        take(&mut roster, 102, &[], &[(1, "new")]).expect("a sample");
        assert_eq!(queries(&take(&mut roster, 110, &[1], &[]).expect("a sample")), [(1, "new")]);
    }

    #[test]
    fn an_unknown_quiet_session_makes_no_sample_but_a_question_for_all() {
        let mut roster = Roster::default();
        take(&mut roster, 100, &[], &[(1, "a")]).expect("a sample");
        assert_eq!(take(&mut roster, 101, &[1, 9], &[]), None);
        assert_eq!(roster.question(at(101)), Question { quiet_since: None, locks: true });
        assert!(take(&mut roster, 101, &[], &[(1, "a"), (9, "z")]).is_some());
    }

    #[test]
    fn a_clock_set_back_makes_no_sample_but_a_question_for_all() {
        let mut roster = Roster::default();
        take(&mut roster, 100, &[], &[(1, "a")]).expect("a sample");
        let early = answer(&roster, 104, 102, &[1], &[]);
        assert_eq!(roster.take(early), None);
        assert_eq!(roster.question(at(104)).quiet_since, None);
        let full = answer(&roster, 104, 102, &[], &[(1, "a")]);
        assert!(roster.take(full).is_some());
        let ahead = answer(&roster, 105, 4000, &[1], &[]);
        assert!(roster.take(ahead).is_some(), "set forward, every later stamp is later still");
        let drifting = answer(&roster, 107, 4001, &[1], &[]);
        assert!(roster.take(drifting).is_some());
    }

    #[test]
    fn a_renamed_role_makes_no_sample_but_a_question_for_all() {
        let mut roster = Roster::default();
        take(&mut roster, 100, &[], &[(1, "a")]).expect("a sample");
        let mut renamed = answer(&roster, 101, 101, &[1], &[]);
        renamed.facts.roles = 8;
        assert_eq!(roster.take(renamed), None);
        assert_eq!(roster.question(at(101)).quiet_since, None);
        let mut full = answer(&roster, 101, 101, &[], &[(1, "a")]);
        full.facts.roles = 9;
        assert!(roster.take(full).is_some(), "what was told in full is true, whatever was before");
    }

    #[test]
    fn everything_is_asked_for_now_and_then() {
        let mut roster = Roster::default();
        for second in 100..160 {
            let full = roster.question(at(second)).quiet_since.is_none();
            assert_eq!(full, second == 100, "second {second}");
            let (quiet, others): (&[i32], &[_]) = if full { (&[], &[(1, "a")]) } else { (&[1], &[]) };
            take(&mut roster, second, quiet, others).expect("a sample");
        }
        assert_eq!(roster.question(at(160)).quiet_since, None);
        take(&mut roster, 160, &[], &[(1, "a")]).expect("a sample");
        assert!(roster.question(at(161)).quiet_since.is_some());
    }

    #[test]
    fn what_is_gone_is_forgotten_in_the_end() {
        let mut roster = Roster::default();
        for second in 0..10 {
            let pids = second * 100..second * 100 + 100;
            let others: Vec<_> = pids.map(|pid| (pid, "a")).collect();
            take(&mut roster, 100 + u64::try_from(second).expect("small"), &[], &others).expect("a sample");
            assert!(roster.sessions.len() <= 200 + SPARE);
        }
    }

    #[test]
    fn locks_are_asked_for_each_time_while_that_is_cheap() {
        let ask = |max_connections: u32, second: u64| {
            let mut roster = Roster::default();
            let mut first = answer(&roster, 100, 100, &[], &[(1, "a")]);
            first.facts.max_connections = max_connections;
            first.lock_holders =
                [9, 7].map(|pid| LockHolder { pid, advisory: true, held: "".into() }).to_vec();
            let sample = roster.take(first).expect("a sample");
            assert!(sample.holds_lock(7) && sample.holds_lock(9) && !sample.holds_lock(8));
            let mut next = answer(&roster, second, i64::try_from(second).expect("small"), &[1], &[]);
            next.facts.max_connections = max_connections;
            let sample = roster.take(next).expect("a sample");
            (sample.holds_lock(7), sample.locks_asked_at)
        };
        assert_eq!(ask(LOCKS_CHEAP_MAX, 101), (false, at(101)));
        assert_eq!(ask(LOCKS_CHEAP_MAX + 1, 101), (true, at(100)), "as last seen");
        assert_eq!(ask(LOCKS_CHEAP_MAX + 1, 105), (false, at(105)));
    }
}
