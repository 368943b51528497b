//! `pgweir drill`: from its options to its report and exit status.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use tokio::sync::watch;
use tokio_postgres::Config;

use super::console::ConsoleAddress;
use super::progress::Progress;
use super::report::{Drill, html, json, text};
use super::run::{Plan, Run, play};
use super::scenario::{self, Deed, Scenario};
use super::target::Session;
use super::way::{self, Way};

/// What the operator asked for.
pub struct Options {
    /// A file, or the name of a scenario that is built in.
    pub scenario: String,
    /// URL of the staging database.
    pub target: String,
    /// Proxies, HOST:PORT or NAME=HOST:PORT.
    pub through: Vec<String>,
    /// Leaves the direct run out.
    pub skip_direct: bool,
    /// Length of each run.
    pub duration: Option<Duration>,
    /// Decides all choices.
    pub seed: u64,
    /// HTML file to write.
    pub report: Option<PathBuf>,
    /// One object on standard output instead of the table.
    pub json: bool,
    /// The operator vouches for the target.
    pub is_staging: bool,
    /// Connections at once at most.
    pub max_connections: usize,
    /// Time for what is under way at the end.
    pub drain: Duration,
    /// Whether a scenario's commands are run.
    pub commands: bool,
    /// pgweir's console, if there is one.
    pub console: Option<ConsoleAddress>,
    /// Which `through` it belongs to.
    pub console_of: Option<String>,
    /// Ways that must hold the expectations.
    pub judge: Vec<String>,
}

/// Scenarios that are built in, by name.
const SHIPPED: [(&str, &str); 10] = [
    ("bypass", include_str!("../../config/drills/bypass.toml")),
    ("connect-storm", include_str!("../../config/drills/connect-storm.toml")),
    ("cron-storm", include_str!("../../config/drills/cron-storm.toml")),
    ("leak", include_str!("../../config/drills/leak.toml")),
    ("runbook", include_str!("../../config/drills/runbook.toml")),
    ("slow-upstream", include_str!("../../config/drills/slow-upstream.toml")),
    ("soak", include_str!("../../config/drills/soak.toml")),
    ("steady", include_str!("../../config/drills/steady.toml")),
    ("upstream-restart", include_str!("../../config/drills/upstream-restart.toml")),
    ("worker-massacre", include_str!("../../config/drills/worker-massacre.toml")),
];
/// A scenario file is this long at most.
const SCENARIO_BYTES_MAX: u64 = 1 << 20;
/// A run is this long at most: a day.
const LENGTH_MAX: Duration = Duration::from_secs(86_400);

/// Carries it out. Exit status: 0 what had to hold held, 1 it did not, 2 refused.
pub fn drill(options: &Options) -> ExitCode {
    let played = load(options).and_then(|scenario| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
        let held = runtime.block_on(rehearse(options, scenario));
        // Whatever still hangs in a socket is not waited for.
        runtime.shutdown_timeout(Duration::from_secs(1));
        held
    });
    match played {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(why) => {
            eprintln!("pgweir: {}", why.trim_end());
            ExitCode::from(2)
        }
    }
}

fn load(options: &Options) -> Result<Scenario, String> {
    let path = Path::new(&options.scenario);
    let (name, source) = if path.exists() {
        let size = path.metadata().map_err(|error| format!("{}: {error}", path.display()))?.len();
        if size > SCENARIO_BYTES_MAX {
            return Err(format!("{} is no scenario: it has {size} bytes", path.display()));
        }
        let source = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        (path.display().to_string(), source)
    } else {
        let shipped = SHIPPED.iter().find(|(name, _)| *name == options.scenario);
        let names = SHIPPED.map(|(name, _)| name).join(", ");
        let (name, source) = shipped
            .ok_or_else(|| format!("there is no file {:?}; built in are {names}", options.scenario))?;
        ((*name).to_owned(), (*source).to_owned())
    };
    let scenario = scenario::read(&source).map_err(|problems| {
        problems.iter().map(|problem| format!("{name}:{problem}\n")).collect::<String>()
    })?;
    let scenario = match options.duration {
        Some(length) => scenario.stretched(length),
        None => scenario,
    };
    if scenario.length() > LENGTH_MAX {
        return Err(format!("{name} takes more than a day"));
    }
    Ok(scenario)
}

async fn rehearse(options: &Options, scenario: Scenario) -> Result<bool, String> {
    let config: Config = options.target.parse().map_err(|_| "--target is no URL of a database".to_owned())?;
    let session = Session::open(&config).await?; // holds the lock to the end
    if !options.is_staging {
        session.must_be_staging().await?;
    }
    session.lock().await?;
    let (direct, ways) = ways(options, &config).await?;
    let judged = judged(options, &ways)?;
    let plan = Plan {
        seed: options.seed,
        max_connections: options.max_connections,
        drain: options.drain,
        commands: options.commands,
        console: console(options, &ways)?,
        capacity: session.capacity().await?,
        config,
        scenario,
    };
    warn(&plan, options);
    let interrupt = interrupts();
    let progress = Progress::new(plan.scenario.length(), ways.len());
    let mut runs: Vec<Run> = Vec::new();
    let mut broken = None;
    for (done, way) in ways.iter().enumerate() {
        if *interrupt.borrow() {
            break;
        }
        progress.begin(plan.scenario.length(), done, &way.name);
        // A target that is restarted takes its sessions with it: each run has its own.
        let session = match Session::open(&plan.config).await {
            Ok(session) => session,
            Err(why) => {
                broken = Some(why);
                break;
            }
        };
        match play(&plan, way.clone(), direct.clone(), &session, &progress, &interrupt).await {
            Ok(run) => runs.push(run),
            Err(why) => {
                broken = Some(why);
                break;
            }
        }
    }
    progress.finish();
    if let Some(why) = clear(&plan.config).await.err().or(broken) {
        return Err(why);
    }
    let name = Path::new(&options.scenario)
        .file_stem()
        .map_or(String::new(), |stem| stem.to_string_lossy().into_owned());
    tell(options, &Drill::new(&plan.scenario, &name, plan.seed, &runs, &judged))
}

async fn clear(config: &Config) -> Result<(), String> {
    Session::open(config).await?.clear().await
}

/// The target itself, and the ways to be played, all of them with or all without the startup parameter `options`.
async fn ways(options: &Options, config: &Config) -> Result<(Way, Vec<Way>), String> {
    let mut direct = Way::direct(config).await?;
    let mut ways = if options.skip_direct { Vec::new() } else { vec![direct.clone()] };
    for given in &options.through {
        let (name, _) = way::named(given)?;
        if ways.iter().any(|way| way.name == name) {
            return Err(format!("--through {name} is given twice"));
        }
        ways.push(direct.through(given).await?);
    }
    if ways.is_empty() {
        return Err("--skip-direct leaves nothing to play: give --through HOST:PORT".into());
    }
    let mut all_pass = true;
    for way in &ways {
        all_pass &= way.passes_options().await?;
    }
    direct.options = all_pass;
    for way in &mut ways {
        way.options = all_pass;
    }
    Ok((direct, ways))
}

fn judged(options: &Options, ways: &[Way]) -> Result<Vec<String>, String> {
    if let Some(unknown) = options.judge.iter().find(|name| !ways.iter().any(|way| way.name == **name)) {
        return Err(format!("--judge {unknown}: that way is not played"));
    }
    let names = |proxies: bool| {
        ways.iter().map(|way| way.name.clone()).filter(|n| !proxies || n != "direct").collect()
    };
    Ok(match (options.judge.is_empty(), options.through.is_empty()) {
        (false, _) => options.judge.clone(),
        (true, through_none) => names(!through_none),
    })
}

fn console(options: &Options, ways: &[Way]) -> Result<Option<(String, ConsoleAddress)>, String> {
    let Some(address) = options.console.clone() else { return Ok(None) };
    let of = options
        .console_of
        .clone()
        .or_else(|| ways.last().map(|way| way.name.clone()).filter(|_| !options.through.is_empty()));
    let of = of.ok_or("a console is given but no way through pgweir: --through HOST:PORT")?;
    if !ways.iter().any(|way| way.name == of) {
        return Err(format!("--console-of {of}: that way is not played"));
    }
    Ok(Some((of, address)))
}

fn warn(plan: &Plan, options: &Options) {
    let acts = &plan.scenario.actions;
    if plan.console.is_none()
        && acts.iter().any(|act| matches!(act.deed, Deed::Console(_) | Deed::ResetLeaks(..)))
    {
        eprintln!(
            "drill: no console is known (--admin HOST:PORT and PGWEIR_PASSWORD): the operator's acts there are skipped"
        );
    }
    if !options.commands && acts.iter().any(|act| matches!(act.deed, Deed::Run(_))) {
        eprintln!("drill: this scenario runs commands; without --allow-commands they fail");
    }
}

/// Becomes true at the first Ctrl-C or SIGTERM; the second ends the process.
fn interrupts() -> watch::Receiver<bool> {
    use tokio::signal::unix::{SignalKind, signal};
    let (asked, interrupt) = watch::channel(false);
    tokio::spawn(async move {
        let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
        loop {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            if asked.send_replace(true) {
                std::process::exit(1);
            }
            eprintln!("drill: ending; what there is will be reported. Again to leave at once");
        }
    });
    interrupt
}

fn tell(options: &Options, drill: &Drill<'_>) -> Result<bool, String> {
    use std::io::Write;
    if let Some(file) = &options.report {
        std::fs::write(file, html::page(drill)).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    let said = if options.json { format!("{:#}\n", json::object(drill)) } else { text::page(drill) };
    // Nobody reading any more is no failure of the drill.
    let _ = std::io::stdout().lock().write_all(said.as_bytes());
    Ok(drill.held())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_scenario_is_good() {
        for (name, source) in SHIPPED {
            if let Err(problems) = scenario::read(source) {
                panic!("{name}: {problems:#?}");
            }
        }
    }
}
