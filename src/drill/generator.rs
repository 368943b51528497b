//! Was the drill itself what was measured? It watches how late its schedule and its timers are, and how much of the machine it uses.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::task::JoinHandle;

use crate::clock;

/// Time between two looks at the runtime's timers.
const LOOK: Duration = Duration::from_millis(20);
/// Lateness of the schedule's 99th percentile above which figures are doubtful.
const SCHEDULE_LATE_MS_MAX: f64 = 10.0;
/// The same for the runtime's timers, whose resolution is a millisecond.
const TIMER_LATE_MS_MAX: f64 = 25.0;
/// Share of all cores above which the drill has no air to breathe.
const CPU_SHARE_MAX: f64 = 0.9;
/// The machine has no core to spare below this share of idle time, and a drill that uses as much as this of it is a reason why.
const IDLE_SHARE_MIN: f64 = 0.05;
const CPU_SHARE_MUCH: f64 = 0.2;

/// What the drill knows of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Generator {
    /// 99th percentile of how late arrivals were put into their queues.
    pub schedule_late_p99_ms: f64,
    /// The latest.
    pub schedule_late_max_ms: f64,
    /// 99th percentile of how late its runtime's timers fired: what every measured time may be wrong by.
    pub timers_late_p99_ms: f64,
    /// CPU time of this process, as a share of all cores.
    pub cpu_share: f64,
    /// Idle time of the whole machine, as a share of all cores; none where it does not tell.
    pub machine_idle_share: Option<f64>,
    /// Most connections that were open at once.
    pub connections_peak: usize,
    /// Connections that had to wait for `--max-connections`.
    pub held_back: u64,
    /// Why the figures may say more of the drill than of the target; none if they do not.
    pub bottleneck: Option<String>,
}

/// Watches one run.
pub struct Watch {
    timers: JoinHandle<()>,
    late: std::sync::Arc<parking_lot::Mutex<Histogram<u32>>>,
    cpu: Duration,
    machine: Option<(u64, u64)>,
    since: clock::Moment,
}

impl Watch {
    /// Begins.
    pub fn start() -> Self {
        let histogram =
            Histogram::new_with_max(60_000_000, 2).expect("a minute with two digits is a valid range");
        let late = std::sync::Arc::new(parking_lot::Mutex::new(histogram));
        let record = std::sync::Arc::clone(&late);
        let timers = tokio::spawn(async move {
            loop {
                let due = clock::now() + LOOK;
                tokio::time::sleep(LOOK).await;
                let lag = clock::now().since(due).as_micros();
                record.lock().saturating_record(u64::try_from(lag).unwrap_or(u64::MAX));
            }
        });
        Self { timers, late, cpu: cpu_time(), machine: machine_time(), since: clock::now() }
    }

    /// Ends; with the schedule's lateness, the most connections open at once and the number of those held back.
    pub fn finish(
        self,
        schedule: Option<&Histogram<u32>>,
        connections_peak: usize,
        held_back: u64,
    ) -> Generator {
        self.timers.abort();
        let ms = |micros: u64| micros as f64 / 1e3;
        let cores = std::thread::available_parallelism().map_or(1.0, |cores| cores.get() as f64);
        let wall = clock::now().since(self.since).as_secs_f64() * cores;
        let cpu = cpu_time().saturating_sub(self.cpu).as_secs_f64();
        let mut found = Generator {
            schedule_late_p99_ms: schedule.map_or(0.0, |late| ms(late.value_at_quantile(0.99))),
            schedule_late_max_ms: schedule.map_or(0.0, |late| ms(late.max())),
            timers_late_p99_ms: ms(self.late.lock().value_at_quantile(0.99)),
            cpu_share: if wall > 0.0 { cpu / wall } else { 0.0 },
            machine_idle_share: self.machine.zip(machine_time()).and_then(|(from, to)| {
                let all = to.1.saturating_sub(from.1);
                (all > 0).then(|| to.0.saturating_sub(from.0) as f64 / all as f64)
            }),
            connections_peak,
            held_back,
            bottleneck: None,
        };
        found.bottleneck = verdict(&found);
        found
    }
}

/// What, if anything, makes the figures doubtful.
fn verdict(seen: &Generator) -> Option<String> {
    let mut why = Vec::new();
    if seen.schedule_late_p99_ms > SCHEDULE_LATE_MS_MAX {
        why.push(format!("its schedule was up to {:.0} ms late (p99)", seen.schedule_late_p99_ms));
    }
    if seen.timers_late_p99_ms > TIMER_LATE_MS_MAX {
        why.push(format!("its timers were up to {:.0} ms late (p99)", seen.timers_late_p99_ms));
    }
    if seen.cpu_share > CPU_SHARE_MAX {
        why.push(format!("it used {:.0} % of all cores", seen.cpu_share * 100.0));
    }
    if let Some(idle) = seen.machine_idle_share.filter(|idle| *idle < IDLE_SHARE_MIN)
        && (CPU_SHARE_MUCH..=CPU_SHARE_MAX).contains(&seen.cpu_share)
    {
        let (idle, own) = (idle * 100.0, seen.cpu_share * 100.0);
        why.push(format!("the machine's cores were {idle:.0} % idle, and it used {own:.0} % of them"));
    }
    if seen.held_back > 0 {
        why.push(format!("--max-connections made {} connections wait", seen.held_back));
    }
    (!why.is_empty()).then(|| why.join("; "))
}

/// CPU time of this process so far.
fn cpu_time() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(spent.tv_sec).unwrap_or(0), u32::try_from(spent.tv_nsec).unwrap_or(0))
}

/// Idle and all time of the machine's cores so far, in ticks.
fn machine_time() -> Option<(u64, u64)> {
    machine_times(&std::fs::read_to_string("/proc/stat").ok()?)
}

/// proc_stat(5): user nice system idle iowait irq softirq steal …; guests are in user already.
fn machine_times(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_whitespace().take(8).map_while(|word| word.parse().ok()).collect();
    Some((ticks.get(3)? + ticks.get(4)?, ticks.iter().sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drill_that_kept_up_says_nothing_and_one_that_did_not_says_why() {
        let calm = Generator {
            schedule_late_p99_ms: 1.0,
            timers_late_p99_ms: 2.0,
            cpu_share: 0.3,
            ..Generator::default()
        };
        assert_eq!(verdict(&calm), None);
        for (seen, word) in [
            (Generator { schedule_late_p99_ms: 11.0, ..calm.clone() }, "schedule"),
            (Generator { timers_late_p99_ms: 26.0, ..calm.clone() }, "timers"),
            (Generator { cpu_share: 0.95, ..calm.clone() }, "cores"),
            (
                Generator { machine_idle_share: Some(0.01), cpu_share: 0.4, ..calm.clone() },
                "cores were 1 % idle",
            ),
            (Generator { held_back: 1, ..calm.clone() }, "--max-connections"),
        ] {
            assert!(verdict(&seen).unwrap().contains(word), "{word}");
        }
        let beside = Generator { machine_idle_share: Some(0.01), cpu_share: 0.1, ..calm };
        assert_eq!(verdict(&beside), None, "others kept it busy");
    }

    #[test]
    fn the_machines_time_is_read() {
        let stat = "cpu  10 1 4 80 5 0 0 2 9 9\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(machine_times(stat), Some((85, 102)));
        assert_eq!(machine_times("cpu  1 2"), None);
    }
}
