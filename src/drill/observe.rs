//! Looking on: connections at the target, locks of leaks, and, where there is a console, lanes and timeline.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_postgres::Config;

use super::console::{Console, ConsoleAddress, value};
use super::stage::Stage;
use super::target::{APPLICATION, Session, literals};

/// Shortest time between two looks at the target, and at the console.
const TARGET_LOOK: Duration = Duration::from_millis(250);
const CONSOLE_LOOK: Duration = Duration::from_millis(500);
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
    /// The longest anybody was seen waiting for one.
    pub lock_blocked: Duration,
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
    leakers: &[String],
    length: Duration,
    seen: &Mutex<Observed>,
) {
    let sql = statement(leakers);
    seen.lock().leaks = !leakers.is_empty();
    let pause = TARGET_LOOK.max(length / LOOKS_MAX);
    let looking = async {
        loop {
            let Ok(session) = Session::open(config).await else {
                tokio::time::sleep(AGAIN).await;
                continue;
            };
            while let Ok(rows) = session.rows(&sql).await {
                let row = rows.into_iter().next().unwrap_or_default();
                let number =
                    |n: usize| row.get(n).and_then(|v| v.as_ref()?.parse::<f64>().ok()).unwrap_or(0.0);
                {
                    let mut seen = seen.lock();
                    seen.upstream.push((stage.now(), number(0) as u32));
                    let held = Duration::try_from_secs_f64(number(1)).unwrap_or_default();
                    seen.lock_held = seen.lock_held.max(held);
                    let blocked = Duration::try_from_secs_f64(number(2)).unwrap_or_default();
                    seen.lock_blocked = seen.lock_blocked.max(blocked);
                }
                tokio::time::sleep(pause).await;
            }
        }
    };
    let _: Option<()> = stage.unless_over(looking).await;
}

/// Backends; age of the oldest leak with locks; age of the oldest wait for one.
fn statement(leakers: &[String]) -> String {
    let leakers = literals(leakers);
    format!(
        "SELECT count(*) FILTER (WHERE application_name IS DISTINCT FROM '{APPLICATION}' \
           AND (backend_type = 'client backend' OR (backend_type IS NULL AND datid IS NOT NULL))), \
         coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)) FILTER (WHERE application_name IN ({leakers}) \
           AND EXISTS (SELECT FROM pg_catalog.pg_locks l WHERE l.pid = a.pid AND l.locktype = 'transactionid' AND l.granted)), 0), \
         coalesce(max(extract(epoch FROM clock_timestamp() - query_start)) FILTER (WHERE wait_event_type = 'Lock' \
           AND EXISTS (SELECT FROM unnest(pg_blocking_pids(a.pid)) b JOIN pg_catalog.pg_stat_activity l ON l.pid = b \
             WHERE l.application_name IN ({leakers}))), 0) \
         FROM pg_catalog.pg_stat_activity a"
    )
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
