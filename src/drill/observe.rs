//! Looking on: connections at the target, locks of leaks, and, where there is a console, lanes and timeline.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_postgres::Config;

use super::console::{Console, ConsoleAddress, value};
use super::odoo::LEAK_MARK;
use super::stage::Stage;
use super::target::{APPLICATION, Session};

/// Shortest time between two looks at the target, and at the console.
const TARGET_LOOK: Duration = Duration::from_millis(250);
const CONSOLE_LOOK: Duration = Duration::from_millis(500);
/// The same where there are leaks: by so much a lock's figures may be too low.
const LEAK_LOOK: Duration = Duration::from_millis(100);
/// Looks at most in a run; a longer run is looked at more seldom.
const LOOKS_MAX: u32 = 2_400;
/// Entries of the timeline kept.
const EVENTS_MAX: usize = 1_000;
/// Time between tries to reach the target again.
const AGAIN: Duration = Duration::from_millis(500);

/// What was seen in a run. Times are since its start.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Client backends at the target, the drill's own sessions left out.
    pub upstream: Vec<(Duration, u32)>,
    /// The longest a `leak` actor was seen holding a transaction with locks.
    pub lock_held: Duration,
    /// The longest one of these locks was seen held while somebody waited for it, from the first who did.
    pub lock_blocked: Duration,
    /// The same past `reset`: from when the leak was idle for that long, or somebody began to wait, whichever came later.
    pub lock_late: Duration,
    /// Whether there was anything to hold.
    pub leaks: bool,
    /// pgweir's lanes: changes of state, slots and waiting clients, by lane.
    pub lanes: BTreeMap<String, Vec<LaneLook>>,
    /// pgweir's timeline: when it was seen, event, lane, text.
    pub events: Vec<(Duration, String)>,
}

/// A lane at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneLook {
    /// When.
    pub at: Duration,
    /// Its state in pgweir's words.
    pub state: String,
    /// Upstream connections.
    pub slots: u32,
    /// Waiting clients.
    pub waiting: u32,
}

impl Observed {
    /// Most client backends seen at once.
    pub fn peak(&self) -> Option<u32> {
        self.upstream.iter().map(|(_, count)| *count).max()
    }
}

/// Looks at the target until the run is over. A target that is away is a gap in the picture.
pub async fn target(
    stage: &Stage,
    config: &Config,
    (leaks, reset): (bool, Option<Duration>),
    length: Duration,
    seen: &Mutex<Observed>,
) {
    let sql = statement(leaks);
    seen.lock().leaks = leaks;
    let pause = if leaks { LEAK_LOOK } else { TARGET_LOOK }.max(length / LOOKS_MAX);
    let mut locks = Locks { reset, ..Locks::default() };
    let looking = async {
        loop {
            let Ok(session) = Session::open(config).await else {
                tokio::time::sleep(AGAIN).await;
                continue;
            };
            while let Ok(rows) = session.rows(&sql).await {
                let now = stage.now();
                let mut rows = rows.into_iter();
                let backends = rows.next().and_then(|row| row.first()?.as_ref()?.parse().ok());
                locks.look(now, &rows.filter_map(|row| Lock::read(&row)).collect::<Vec<_>>());
                {
                    let mut seen = seen.lock();
                    seen.upstream.push((now, backends.unwrap_or(0)));
                    (seen.lock_held, seen.lock_blocked, seen.lock_late) =
                        (locks.held, locks.blocked, locks.late);
                }
                tokio::time::sleep(pause).await;
            }
        }
    };
    let _: Option<()> = stage.unless_over(looking).await;
}

/// Backends; then each leak that holds locks: which, age of its transaction, time idle, and how long the first waits who waits for it.
fn statement(leaks: bool) -> String {
    let backends = format!(
        "SELECT count(*) FROM pg_catalog.pg_stat_activity WHERE application_name IS DISTINCT FROM '{APPLICATION}' \
         AND (backend_type = 'client backend' OR (backend_type IS NULL AND datid IS NOT NULL))"
    );
    if !leaks {
        return backends;
    }
    format!(
        "{backends}; \
         SELECT pid || ' ' || xact_start, extract(epoch FROM clock_timestamp() - xact_start), \
           extract(epoch FROM clock_timestamp() - state_change), \
           (SELECT max(extract(epoch FROM clock_timestamp() - w.query_start)) FROM pg_catalog.pg_stat_activity w \
             WHERE w.wait_event_type = 'Lock' AND a.pid = ANY (pg_blocking_pids(w.pid))) \
         FROM pg_catalog.pg_stat_activity a WHERE query LIKE '%{LEAK_MARK}' AND xact_start IS NOT NULL \
           AND EXISTS (SELECT FROM pg_catalog.pg_locks l WHERE l.pid = a.pid AND l.locktype = 'transactionid' AND l.granted)"
    )
}

/// A leak that holds locks, as seen in one look.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Lock {
    /// Its transaction.
    of: String,
    held: Duration,
    idle: Duration,
    /// How long somebody has been waiting; none if nobody is.
    waited: Option<Duration>,
}

impl Lock {
    fn read(row: &[Option<String>]) -> Option<Self> {
        let time = |n: usize| {
            let seconds = row.get(n)?.as_ref()?.parse::<f64>().ok()?;
            Some(Duration::try_from_secs_f64(seconds).unwrap_or_default())
        };
        Some(Self { of: row.first()?.clone()?, held: time(1)?, idle: time(2)?, waited: time(3) })
    }
}

/// The locks of leaks over time. Pure.
#[derive(Debug, Default)]
struct Locks {
    /// When the guard resets, if the scenario says so.
    reset: Option<Duration>,
    /// Since when somebody waits, by transaction, where anybody did: one who gives up and one who comes after wait for the same leak.
    since: BTreeMap<String, Duration>,
    held: Duration,
    blocked: Duration,
    late: Duration,
}

impl Locks {
    fn look(&mut self, now: Duration, locks: &[Lock]) {
        self.since.retain(|of, _| locks.iter().any(|lock| lock.of == *of));
        for lock in locks {
            self.held = self.held.max(lock.held);
            let Some(waited) = lock.waited else { continue };
            let began = now.saturating_sub(waited);
            let since = self.since.entry(lock.of.clone()).or_insert(began);
            *since = began.min(*since);
            let blocked = now.saturating_sub(*since);
            self.blocked = self.blocked.max(blocked);
            let past = lock.idle.saturating_sub(self.reset.unwrap_or_default());
            self.late = self.late.max(blocked.min(past));
        }
    }
}

/// Looks at pgweir's lanes and timeline until the run is over.
pub async fn console(stage: &Stage, address: &ConsoleAddress, length: Duration, seen: &Mutex<Observed>) {
    let pause = CONSOLE_LOOK.max(length / LOOKS_MAX);
    let looking = async {
        let mut last = None;
        loop {
            let Ok(console) = Console::open(address).await else {
                tokio::time::sleep(AGAIN).await;
                continue;
            };
            while look(stage, &console, &mut last, seen).await.is_ok() {
                tokio::time::sleep(pause).await;
            }
        }
    };
    let _: Option<()> = stage.unless_over(looking).await;
}

async fn look(
    stage: &Stage,
    console: &Console,
    last: &mut Option<u64>,
    seen: &Mutex<Observed>,
) -> Result<(), String> {
    let lanes = console.say("SHOW LANES").await?;
    let timeline = console.say("SHOW TIMELINE").await?;
    let at = stage.now();
    let mut seen = seen.lock();
    for row in &lanes {
        let number = |column| value(row, column).parse().unwrap_or(0);
        let look = LaneLook {
            at,
            state: value(row, "state").to_owned(),
            slots: number("slots"),
            waiting: number("waiting"),
        };
        let looks = seen.lanes.entry(value(row, "lane").to_owned()).or_default();
        let same =
            |a: &LaneLook| (a.state == look.state, a.slots, a.waiting) == (true, look.slots, look.waiting);
        if !looks.last().is_some_and(same) {
            looks.push(look);
        }
    }
    let newest = timeline.iter().filter_map(|row| value(row, "seq").parse::<u64>().ok()).max();
    // What is there at the first look is from before the run.
    if let Some(before) = *last {
        for row in
            timeline.iter().filter(|row| value(row, "seq").parse::<u64>().is_ok_and(|seq| seq > before))
        {
            if seen.events.len() < EVENTS_MAX {
                let text = [value(row, "event"), value(row, "lane"), value(row, "text")];
                seen.events.push((
                    at,
                    text.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" "),
                ));
            }
        }
    }
    *last = newest.max(*last).or(Some(0));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(tenths: u64) -> Duration {
        Duration::from_millis(100 * tenths)
    }

    fn lock(of: &str, idle: u64, waited: Option<u64>) -> Lock {
        Lock { of: of.into(), held: s(idle + 1), idle: s(idle), waited: waited.map(s) }
    }

    #[test]
    fn a_lock_is_late_from_its_reset_or_from_its_first_victim() {
        let mut locks = Locks { reset: Some(s(50)), ..Locks::default() };
        locks.look(s(100), &[lock("1", 40, Some(10)), lock("2", 90, None)]);
        assert_eq!(
            (locks.held, locks.blocked, locks.late),
            (s(91), s(10), s(0)),
            "nobody waits for the older one"
        );
        locks.look(s(112), &[lock("1", 52, Some(22)), lock("2", 102, Some(1))]);
        assert_eq!((locks.blocked, locks.late), (s(22), s(2)));
        locks.look(s(116), &[lock("2", 106, Some(5))]);
        assert_eq!((locks.blocked, locks.late), (s(22), s(5)), "its victim came after its reset");
    }

    #[test]
    fn victims_that_follow_one_another_wait_for_one_leak() {
        let mut locks = Locks::default();
        locks.look(s(10), &[lock("1", 9, Some(5))]);
        locks.look(s(20), &[lock("1", 19, None)]);
        locks.look(s(30), &[lock("1", 29, Some(1))]);
        assert_eq!((locks.blocked, locks.late), (s(25), s(25)), "without a reset all of it is late");
    }

    #[test]
    fn rows_are_read() {
        let row = |cells: [Option<&str>; 4]| cells.map(|cell| cell.map(str::to_owned)).to_vec();
        assert_eq!(
            Lock::read(&row([Some("7 x"), Some("1.1"), Some("1"), None])),
            Some(lock("7 x", 10, None))
        );
        assert_eq!(Lock::read(&row([Some("9"), None, None, None])), None);
    }
}
