//! Wiring: configuration in, threads and tasks out. The only place that knows every other.

mod accept;
mod auth;
mod commands;
mod control;
mod drain;
mod drill;
mod headroom;
mod incidents;
mod init;
mod metrics;
mod peaks;
mod persist;
mod probes;
mod reload;
mod rows;
mod seats;
mod secrecy;
mod setup;
mod suggest;
mod suspects;
mod sweep;
mod tls;
mod tongue;
mod upstreams;
mod watch;
mod workers;
mod writable;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use crate::admin::AdminTls;
use crate::clock::{self, Moment};
use crate::config::{self, checked::Config};
use crate::incident::growth::Growth;
use crate::incident::history::History;
use crate::incident::servers::ServersFile;
use crate::incident::state::StateFile;
use crate::incident::timeline::{Event as Entry, Timeline};
use crate::lanes::sample::Sample;
use crate::leaks::judge::Judge;
use crate::link::hub::{Event, Hub, Rest};
use crate::link::totals::Averages;
use crate::listen::notify::Notifier;
use crate::upstream::monitor::MonitorHandle;
use crate::upstream::targets::Targets;

use incidents::Incidents;
use peaks::PeakWatch;

pub use drill::drill;
pub use init::init;
pub use setup::{admin_endpoint, check};
pub use suggest::{present, suggest};

/// Shortest and longest pause between two ticks while something waits for time.
const TICK: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(50));
/// Pause between ticks while nothing does: pooled connections that are too old are noticed within it.
const TICK_AT_REST: Duration = Duration::from_millis(500);

/// Everything the control thread works with.
pub struct App {
    hub: Arc<Hub>,
    config: ArcSwap<Config>,
    timeline: Timeline,
    state_file: StateFile,
    servers_file: ServersFile,
    monitor: ArcSwapOption<MonitorHandle>,
    sample: ArcSwapOption<Sample>,
    judge: Mutex<Judge>,
    /// Held from looking at links to judging them: whoever judges by an older look would make the judge forget what is newer.
    judging: tokio::sync::Mutex<suspects::Watched>,
    /// A sample was asked for to see whether a leak does harm.
    seeks_harm: AtomicBool,
    growth: Mutex<Growth>,
    history: Mutex<History>,
    incidents: Incidents,
    /// What `pgweir suggest` reckons with.
    peak_watch: PeakWatch,
    /// SHOW STATS' averages.
    averages: Mutex<Averages>,
    /// Serialises commands that change pauses, so that the state file has the last word.
    saving: tokio::sync::Mutex<()>,
    /// Held while leaks that bypass pgweir are terminated.
    terminating: tokio::sync::Mutex<()>,
    shutdown: Notify,
    restart_monitor: Notify,
    /// The admin port's certificate: a reload changes it.
    admin_tls: Arc<ArcSwapOption<AdminTls>>,
    /// The names browsers may use for it: so does it change these.
    admin_hosts: Arc<ArcSwap<Vec<String>>>,
    /// Why the monitor cannot reach PostgreSQL, as long as it cannot.
    unreachable: ArcSwapOption<String>,
    /// What each server was seen as, and which one is dialled.
    targets: Mutex<Targets>,
    /// Held over each decision and what comes of it; before `targets`.
    choosing: Mutex<upstreams::Choosing>,
    /// How often another one was.
    switches: AtomicU64,
    /// Numbers of those chosen.
    servers: AtomicU32,
    /// Since when links are on servers that are not dialled any more; none where none are left.
    left: Mutex<Option<Moment>>,
    notifier: Notifier,
    started: Moment,
}

impl App {
    /// Puts an entry of pgweir's own into the timeline.
    fn note(&self, event: &str, lane: &str, client: Option<u64>, text: &str) {
        self.note_by("pgweir", event, lane, client, text);
    }

    fn note_by(&self, who: &str, event: &str, lane: &str, client: Option<u64>, text: &str) {
        let usage = self.hub.guard(|guard, _| guard.usage_percent());
        self.timeline.append(Entry { who, event, lane, client, text, usage }, clock::wall_now());
    }

    /// Takes what the links and the guard report.
    async fn take_events(self: Arc<Self>, mut events: mpsc::UnboundedReceiver<Event>) {
        while let Some(event) = events.recv().await {
            match event {
                Event::Timeline { event, lane, link, text, who, usage } => {
                    let lane = lane.as_deref().unwrap_or("");
                    let client = link.map(|link| link.0);
                    let entry = Entry { who: &who, event, lane, client, text: &text, usage };
                    self.timeline.append(entry, clock::wall_now());
                    if event == "freeze" {
                        self.incidents.stirred.notify_one();
                    }
                }
                Event::SampleNow => {
                    if let Some(monitor) = self.monitor.load_full() {
                        monitor.sample_now();
                    }
                }
                Event::PausesChanged => {
                    let app = self.clone();
                    // A slow disk must not keep the timeline behind what the console has answered. Each save writes what holds by then.
                    tokio::spawn(async move {
                        if let Err(error) = app.save_pauses().await {
                            tracing::error!(%error, "pauses could not be saved: they will not survive a restart");
                        }
                    });
                }
                Event::ResetOff { link, generation } => {
                    self.judge.lock().missed(link, u64::from(generation));
                }
            }
        }
    }

    /// Drives time in the guard.
    async fn tick(self: Arc<Self>) {
        let mut told = false;
        loop {
            match self.hub.tick(!told) {
                Rest::For(next) => {
                    told = false;
                    tokio::time::sleep(next.clamp(TICK.0, TICK.1)).await;
                }
                Rest::UntilTold(latest) => {
                    let latest = latest.map_or(TICK_AT_REST, |latest| latest.clamp(TICK.0, TICK_AT_REST));
                    told = tokio::time::timeout(latest, self.hub.ticker.notified()).await.is_ok();
                }
            }
        }
    }
}

/// Runs the proxy with a configuration file until it is told to stop.
pub fn run(path: &Path) -> ExitCode {
    let (config, warnings) = match config::load(path) {
        Ok(loaded) => loaded,
        Err(problems) => return not_started(&problems),
    };
    setup::start_log(&config);
    // Before any secret is read: the configuration holds none.
    secrecy::seal();
    let tls = match tls::Tls::read(&config) {
        Ok(tls) => tls,
        Err(problems) => return not_started(&problems),
    };
    warnings.iter().chain(&tls.expiries(&config)).for_each(|warning| tracing::warn!("{warning}"));
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            return ExitCode::from(1);
        }
    };
    match runtime.block_on(drain::live(config, tls)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The log is on standard error as well: it is said once, and where nothing is logged, too.
            if tracing::enabled!(tracing::Level::ERROR) {
                tracing::error!("cannot start: {error:#}");
            } else {
                eprintln!("pgweir: cannot start: {error:#}");
            }
            ExitCode::from(1)
        }
    }
}

fn not_started(problems: &[config::Problem]) -> ExitCode {
    problems.iter().for_each(|problem| eprintln!("{problem}"));
    eprintln!("pgweir: not started");
    ExitCode::from(1)
}
