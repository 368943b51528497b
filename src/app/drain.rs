//! Life and end of the process: start, signals, drain.

use std::net::ToSocketAddrs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use super::accept::{Door, Listening, accept};
use super::incidents::Incidents;
use super::peaks::PeakWatch;
use super::tls::Tls;
use super::workers::Workers;
use super::{App, auth, setup, upstreams};
use crate::admin;
use crate::admin::control::Control;
use crate::clock;
use crate::config::checked::Config;
use crate::config::settings::Endpoint;
use crate::incident::growth::Growth;
use crate::incident::servers::ServersFile;
use crate::incident::state::StateFile;
use crate::incident::timeline::{BYTES_PER_FILE, ROTATED_FILES, Timeline};
use crate::lanes::classify::Rules;
use crate::lanes::guard::Guard;
use crate::leaks::judge::Judge;
use crate::link::hub::{Hub, Stage};
use crate::link::shared::{Command, LinkShared};
use crate::link::totals::Averages;
use crate::listen::activation::Inherited;
use crate::listen::files::{ReserveFd, raise_file_limit};
use crate::listen::notify::Notifier;
use crate::listen::socket::{bind_tcp, bind_unix, tune_tcp, unix_path};
use crate::reason::{Reason, Refusal};

/// How long the last links may take to say good-bye once their time is up.
const LAST_WORDS: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(20);
/// How long those who have just come may take, where the doors stay open for our successor: to say who they are, and what they came for.
/// Clients that connect do both at once.
const DOORSTEP: Duration = Duration::from_secs(1);

/// The whole life of a proxy.
pub(super) async fn live(config: Config, tls: Tls) -> anyhow::Result<()> {
    let (before, after) = raise_file_limit();
    tracing::info!(before, after, "file limit");
    let state_directory = config.state_directory.clone();
    std::fs::create_dir_all(&state_directory)
        .with_context(|| format!("[state] directory {}", state_directory.display()))?;
    let admin_settings = setup::admin_settings(&config)?;
    admin_settings.tls.store(tls.admin.clone());
    setup::monitor_settings(&config, None)?;
    let (users, doubts) =
        setup::users(&config).map_err(|problems| anyhow::anyhow!("{}", problems.join("\n")))?;
    doubts.iter().for_each(|doubt| tracing::warn!("{doubt}"));
    let (doors, admin_listener) = open_all(&config)?;
    let state_file = StateFile::new(&state_directory);
    let pauses = state_file.load()?;
    let (events, event_queue) = mpsc::unbounded_channel();
    let app = Arc::new(new_app(config, &tls, &admin_settings, state_file, events)?);
    count_panics(&app.hub);
    app.set_users(users);
    auth::connect(&app);
    app.restore_pauses(&pauses);
    app.recall_servers();
    app.choose_servers();
    app.note("start", "", None, &format!("pgweir {}", env!("CARGO_PKG_VERSION")));

    // Before anybody can know that it runs: a SIGHUP or SIGTERM without a handler would simply end it.
    let signals = Signals::new()?;
    let mut tasks = JoinSet::new();
    tasks.spawn(app.clone().take_events(event_queue));
    tasks.spawn(app.clone().tick());
    tasks.spawn(app.clone().watch());
    tasks.spawn(app.clone().sweep());
    tasks.spawn(app.clone().watch_incidents());
    tasks.spawn(app.clone().probe());
    let control: Arc<dyn Control> = app.clone();
    let admin_listener = match admin_listener {
        Listening::Tcp(listener) => tokio::net::TcpListener::from_std(listener)?,
        Listening::Unix(..) => anyhow::bail!("[admin] address must be host:port"),
    };
    tasks.spawn(async move {
        if let Err(error) = admin::serve(admin_listener, admin_settings, control).await {
            tracing::error!(%error, "the admin port ended");
        }
    });
    let workers = Workers::start(&app.hub, worker_count(&app.config.load()))?;
    let reserve = Arc::new(Mutex::new(ReserveFd::new()));
    let mut listeners = Listeners::default();
    for door in doors {
        tracing::info!(address = %door.name, inherited = door.inherited, "listening");
        let listeners = if door.inherited { &mut listeners.inherited } else { &mut listeners.own };
        listeners.spawn_on(accept(door, workers.clone(), reserve.clone()), workers.reception());
    }
    app.notifier.ready();
    app.wait_for_the_end(signals, &mut listeners).await;
    app.save_open_at_the_end();
    app.save_peaks_at_the_end();
    app.keep_servers_at_the_end();
    app.timeline.flush(Duration::from_secs(2));
    Ok(())
}

fn new_app(
    config: Config,
    tls: &Tls,
    admin_settings: &admin::AdminSettings,
    state_file: StateFile,
    events: mpsc::UnboundedSender<crate::link::hub::Event>,
) -> anyhow::Result<App> {
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    let started = clock::now();
    let guard = Guard::new(config.settings.clone(), u64::from_le_bytes(seed), started);
    let hub = Hub::new(guard, Rules::new(&config.settings), setup::link_settings(&config, tls), events);
    let not_seen_yet =
        config.monitor.as_ref().map(|_| Arc::new("PostgreSQL has not been seen yet".to_owned()));
    let limits = &config.settings.limits;
    let mut judge = Judge::new(limits.max_resets_per_minute);
    judge.configure(limits.max_resets_per_minute, limits.observe);
    Ok(App {
        hub: Arc::new(hub),
        timeline: Timeline::open(Some(&config.state_directory), BYTES_PER_FILE, ROTATED_FILES),
        state_file,
        servers_file: ServersFile::new(&config.state_directory),
        monitor: ArcSwapOption::empty(),
        sample: ArcSwapOption::empty(),
        judge: Mutex::new(judge),
        judging: tokio::sync::Mutex::default(),
        seeks_harm: AtomicBool::new(false),
        growth: Mutex::new(Growth::new()),
        history: Mutex::default(),
        incidents: Incidents::new(&config, started),
        peak_watch: PeakWatch::new(&config.state_directory),
        averages: Mutex::new(Averages::new(clock::now())),
        saving: tokio::sync::Mutex::new(()),
        terminating: tokio::sync::Mutex::default(),
        shutdown: Notify::new(),
        restart_monitor: Notify::new(),
        admin_tls: admin_settings.tls.clone(),
        admin_hosts: admin_settings.hosts.clone(),
        unreachable: ArcSwapOption::from(not_seen_yet),
        targets: Mutex::new(upstreams::targets_of(&config)),
        choosing: Mutex::default(),
        switches: AtomicU64::new(0),
        servers: AtomicU32::new(0),
        left: Mutex::default(),
        notifier: Notifier::from_env(),
        started,
        config: ArcSwap::from_pointee(config),
    })
}

fn worker_count(config: &Config) -> usize {
    match config.process.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => usize::from(n),
    }
}

/// What the operator and the service manager tell the process; one that comes before it is waited for is kept.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }
}

/// Tasks that accept.
#[derive(Default)]
struct Listeners {
    own: JoinSet<()>,
    inherited: JoinSet<()>,
}

/// All listeners and that of the admin port, each taken from the service manager where it has opened one with this address.
fn open_all(config: &Config) -> anyhow::Result<(Vec<Door>, Listening)> {
    let dead_after = config.process.tcp_keepalive.unwrap_or_default();
    let mut inherited = Inherited::from_env()?;
    let mut doors = Vec::new();
    for listen in &config.listen {
        let (listening, inherited) = open(&listen.endpoint, dead_after, &mut inherited)
            .with_context(|| format!("[[listen]] address {}", listen.text))?;
        doors.push(Door { listening, name: listen.text.clone(), lane: listen.lane.clone(), inherited });
    }
    let (admin, _) = open(&config.admin.endpoint, dead_after, &mut inherited).context("[admin] address")?;
    let left = inherited.left();
    anyhow::ensure!(
        left.is_empty(),
        "the service manager listens on {}, and no [[listen]] has this address. Hint: write the same addresses in pgweir.socket and in {}",
        left.join(", "),
        config.path.display()
    );
    Ok((doors, admin))
}

/// A listener, and whether it was inherited.
fn open(
    endpoint: &Endpoint,
    dead_after: Duration,
    inherited: &mut Inherited,
) -> anyhow::Result<(Listening, bool)> {
    match endpoint {
        Endpoint::Tcp { host, port } => {
            let mut addresses = (&**host, *port).to_socket_addrs()?;
            let address = addresses.next().with_context(|| format!("{host} has no address"))?;
            if let Some(listener) = inherited.take_tcp(address) {
                tune_tcp(&listener, dead_after)?;
                return Ok((Listening::Tcp(listener), true));
            }
            anyhow::ensure!(
                !inherited.is_taken(address),
                "the service manager listens on [::]:{port}, IPv4 included, so that nobody else can listen on {address}. \
                 Hint: ListenStream={address} in pgweir.socket, in place of ListenStream={port}; or address = \"[::]:{port}\" here, and no other of that port"
            );
            Ok((Listening::Tcp(bind_tcp(address, dead_after)?), false))
        }
        Endpoint::Unix { directory, port } => {
            if let Some(listener) = inherited.take_unix(&unix_path(directory, *port)) {
                return Ok((Listening::Unix(listener, None), true));
            }
            make_directory(directory)?;
            let (listener, file) = bind_unix(directory, *port)?;
            Ok((Listening::Unix(listener, Some(file)), false))
        }
    }
}

fn make_directory(directory: &Path) -> anyhow::Result<()> {
    // Whoever asks names it.
    std::fs::create_dir_all(directory).context("its directory cannot be made")
}

/// A panic ends one link only; it is counted and logged.
fn count_panics(hub: &Arc<Hub>) {
    let hub = Arc::downgrade(hub);
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if let Some(hub) = hub.upgrade() {
            hub.counters.panics.fetch_add(1, Ordering::Relaxed);
        }
        tracing::error!(
            location = panic.location().map(tracing::field::display),
            "panic: a bug of pgweir; one link ends"
        );
        default(panic);
    }));
}

impl App {
    /// Serves until SIGTERM, SIGINT or SHUTDOWN, then drains; a second signal ends at once.
    async fn wait_for_the_end(self: &Arc<Self>, signals: Signals, listeners: &mut Listeners) {
        let Signals { mut terminate, mut interrupt, mut hang_up } = signals;
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                () = self.shutdown.notified() => break,
                _ = hang_up.recv() => {
                    // The outcome, good or bad, is logged and in the timeline.
                    let _ = self.reload("SIGHUP").await;
                }
            }
        }
        self.notifier.stopping();
        // New clients are still answered, with the reason; only the end of the process closes the doors. Where the service manager holds
        // them open, they wait for our successor.
        let handed_on = !listeners.inherited.is_empty();
        listeners.inherited.shutdown().await;
        tokio::select! {
            () = self.end(handed_on) => self.note("shutdown", "", None, "drained"),
            _ = terminate.recv() => self.note("shutdown", "", None, "second signal: ended at once"),
            _ = interrupt.recv() => self.note("shutdown", "", None, "second signal: ended at once"),
        }
        listeners.own.shutdown().await;
    }

    /// Where doors are handed on to our successor, nobody is refused: whoever was accepted is let in first, and has its time to ask.
    async fn end(&self, handed_on: bool) {
        let mut grace = Duration::ZERO;
        if handed_on {
            grace = DOORSTEP;
            let deadline = clock::now() + DOORSTEP;
            while clock::now() < deadline && self.hub.counters.strangers.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(LOOK).await;
            }
        }
        self.note("shutdown", "", None, "draining: no new links, transactions finish");
        self.drain(grace).await;
    }

    async fn drain(&self, grace: Duration) {
        self.hub.set_stage(Stage::Draining);
        self.hub.guard(|guard, now| guard.drain_pool(now, None, true));
        let deadline = clock::now() + self.config.load().process.drain_timeout;
        while clock::now() < deadline && !self.hub.links.is_empty() {
            // Repeated: it passes by those who have just come.
            let now = clock::now();
            self.tell(|link| !link.has_just_come(grace, now), || Command::Drain);
            tokio::time::sleep(LOOK).await;
        }
        self.hub.set_stage(Stage::Ending);
        let left = self.hub.links.len();
        if left > 0 {
            self.note("shutdown", "", None, &format!("drain_timeout is over: {left} links are closed"));
        }
        let deadline = clock::now() + LAST_WORDS;
        while clock::now() < deadline && !self.hub.links.is_empty() {
            let refusal = Refusal::new(Reason::Drained, "pgweir is shutting down", "connect again");
            self.tell(|_| true, || Command::Close { generation: None, refusal: refusal.clone() });
            tokio::time::sleep(LOOK).await;
        }
        // Links that are in no registry any more may still have words for a client that reads slowly, and pooled connections close.
        let deadline = clock::now() + LAST_WORDS;
        let leaving = || self.hub.counters.leaving.load(Ordering::Relaxed) + self.hub.pool.kept();
        while clock::now() < deadline && leaving() > 0 {
            tokio::time::sleep(LOOK).await;
        }
    }

    fn tell(&self, whom: impl Fn(&LinkShared) -> bool, command: impl Fn() -> Command) {
        for entry in &self.hub.links {
            if whom(entry.value()) {
                entry.value().post(command());
            }
        }
    }
}
