//! One run: one way in, one schedule, from the first arrival to the figures.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_postgres::Config;

use super::actors;
use super::console::ConsoleAddress;
use super::dispatch::Dispatcher;
use super::expect::{Figure, Measured, Scope, Subject, Verdict};
use super::generator::{Generator, Watch};
use super::observe::{self, Observed};
use super::operator::{self, Act, Outcome};
use super::progress::Progress;
use super::recovery::{recovered_after, slow_ms};
use super::scenario::{Actor, Kind, Scenario};
use super::schedule::Arrivals;
use super::stage::{Post, Stage};
use super::tally::{Ending, Lane, Latencies, Tally};
use super::target::{Capacity, Session};
use super::way::Way;
use crate::clock;

/// From the building of the stage to the first arrival: all workers are there by then.
const LEAD: Duration = Duration::from_millis(300);
/// Workers that are told to leave get so long.
const LEAVE_MAX: Duration = Duration::from_secs(5);

/// What all runs of a drill share.
pub struct Plan {
    /// What is played.
    pub scenario: Scenario,
    /// Decides all choices.
    pub seed: u64,
    /// The target itself.
    pub config: Config,
    /// Connections at once at most.
    pub max_connections: usize,
    /// Time for what is under way when the schedule ends.
    pub drain: Duration,
    /// Whether a scenario's commands are run.
    pub commands: bool,
    /// The console of one of the ways.
    pub console: Option<(String, ConsoleAddress)>,
    /// What the target's server allows.
    pub capacity: Capacity,
}

/// A run's figures.
pub struct Run {
    /// The way in.
    pub way: String,
    /// Per lane.
    pub tally: Tally,
    /// At the target and the console.
    pub observed: Observed,
    /// Of the drill itself.
    pub generator: Generator,
    /// What the operator did.
    pub acts: Vec<Act>,
    /// Time to recover; none where there was nothing to recover from, or nobody saw it.
    pub recovered_after: Option<Duration>,
    /// Orders users were told are saved.
    pub told: u64,
    /// Those of them that are not there; none if that could not be asked.
    pub lost: Option<u64>,
    /// Bus messages taken by PostgreSQL and got by the first listener.
    pub bus: (u64, u64),
    /// Backends of this run that were still there when it was over: a pooler's, or orphans.
    pub left_over: u32,
    /// Whether it was ended before its time.
    pub interrupted: bool,
    /// Of the target.
    pub capacity: Capacity,
    /// Which phases are steady.
    steady: Vec<bool>,
    names: Vec<String>,
}

/// Plays the scenario on one way. `interrupt` becomes true when the operator wants to see what there is.
///
/// # Errors
/// That the tables could not be built.
pub async fn play(
    plan: &Plan,
    way: Way,
    direct: Way,
    session: &Session,
    progress: &Progress,
    interrupt: &watch::Receiver<bool>,
) -> Result<Run, String> {
    let scenario = &plan.scenario;
    session.build(jobs(plan)).await?;
    let (over, is_over) = watch::channel(false);
    let tally = Tally::new(scenario, plan.drain);
    let name = way.name.clone();
    let began = clock::now() + LEAD;
    let stage = Arc::new(Stage::new((way, direct), plan.seed, began, tally, plan.max_connections, is_over));
    let console = plan.console.as_ref().filter(|(of, _)| *of == name).map(|(_, address)| address.clone());

    let seen = Arc::new(Mutex::new(Observed::default()));
    let acts = Arc::new(Mutex::new(Vec::new()));
    let mut around = spectators(plan, &stage, console, &seen, &acts);
    let watch = Watch::start();
    let mut cast = JoinSet::new();
    let mut posts = Vec::new();
    let mut schedules = Vec::new();
    for (ordinal, actor) in scenario.actors.iter().enumerate() {
        let windows = scenario.windows(actor);
        let post = Post::new(&stage, &Arc::new(actor.clone()), ordinal);
        actors::enter(&post, &windows, &mut cast);
        if actor.kind.is_scheduled() {
            schedules.push((post.clone(), Arrivals::new(plan.seed, ordinal, windows, actor.pace)));
        }
        posts.push(post);
    }
    let dispatcher =
        Dispatcher::start(schedules).map_err(|error| format!("no thread for the schedule: {error}"))?;

    let interrupted = AtomicBool::new(false);
    wait(&stage, scenario, progress, interrupt, &interrupted).await;
    let late = dispatcher.finish();
    drain(&stage, plan.drain).await;
    let (peak, held_back) = (&stage.connections_peak, &stage.held_back);
    let generator =
        watch.finish(late.as_ref(), peak.load(Ordering::Relaxed), held_back.load(Ordering::Relaxed));
    leave(&posts, &over, &mut cast, &mut around).await;

    let mut tally = stage.tally.lock().clone();
    tally.finish();
    let told = stage.take_told();
    let applications = applications(scenario);
    // One from before the run did not survive a restart of the target.
    let later = Session::open(&plan.config).await.ok();
    let session = later.as_ref().unwrap_or(session);
    let left_over = session.wait_clear(&applications).await;
    let lost = session.lost_orders(&told).await.ok();
    let bus = (stage.bus_sent.load(Ordering::Relaxed), stage.bus_received.load(Ordering::Relaxed));
    let (observed, acts) = (std::mem::take(&mut *seen.lock()), std::mem::take(&mut *acts.lock()));
    let mut run = Run {
        way: name,
        tally,
        observed,
        generator,
        acts,
        recovered_after: None,
        told: told.len() as u64,
        lost,
        bus,
        left_over,
        interrupted: interrupted.load(Ordering::Relaxed),
        capacity: plan.capacity,
        steady: scenario.phases.iter().map(|phase| phase.steady).collect(),
        names: scenario.phases.iter().map(|phase| phase.name.clone()).collect(),
    };
    run.recovered_after = run.recovery(scenario);
    Ok(run)
}

/// How many queue jobs the schedule will want.
fn jobs(plan: &Plan) -> u64 {
    let of = |(ordinal, actor): (usize, &Actor)| {
        let arrivals = Arrivals::new(plan.seed, ordinal, plan.scenario.windows(actor), actor.pace);
        if actor.kind == Kind::Queue { arrivals.count() as u64 } else { 0 }
    };
    plan.scenario.actors.iter().enumerate().map(of).max().unwrap_or(0)
}

/// application_name of every link.
fn applications(scenario: &Scenario) -> Vec<String> {
    let actors = scenario.actors.iter().enumerate();
    actors.flat_map(|(ordinal, actor)| actor.applications(ordinal)).collect()
}

fn spectators(
    plan: &Plan,
    stage: &Arc<Stage>,
    console: Option<ConsoleAddress>,
    seen: &Arc<Mutex<Observed>>,
    acts: &Arc<Mutex<Vec<Act>>>,
) -> JoinSet<()> {
    let mut around = JoinSet::new();
    let length = plan.scenario.length();
    let leaks = plan.scenario.actors.iter().any(|actor| actor.kind == Kind::Leak);
    let reset = plan.scenario.reset;
    let (on, config, record) = (Arc::clone(stage), plan.config.clone(), Arc::clone(seen));
    around.spawn(async move { observe::target(&on, &config, (leaks, reset), length, &record).await });
    if let Some(address) = console.clone() {
        let (on, record) = (Arc::clone(stage), Arc::clone(seen));
        around.spawn(async move { observe::console(&on, &address, length, &record).await });
    }
    let (on, actions, commands, record) =
        (Arc::clone(stage), plan.scenario.actions.clone(), plan.commands, Arc::clone(acts));
    around.spawn(async move { operator::operate(&on, &actions, console.as_ref(), commands, &record).await });
    around
}

/// Until the end of the scenario, or of the operator's patience.
async fn wait(
    stage: &Stage,
    scenario: &Scenario,
    progress: &Progress,
    interrupt: &watch::Receiver<bool>,
    interrupted: &AtomicBool,
) {
    let length = scenario.length();
    let mut interrupt = interrupt.clone();
    let showing = async {
        while stage.now() < length {
            let phase = scenario.phases.get(scenario.phase_at(stage.now()));
            progress.show(
                &stage.way.name,
                phase.map_or("", |phase| &phase.name),
                stage.now(),
                &stage.tally.lock(),
            );
            tokio::time::sleep(Duration::from_millis(200).min(length.saturating_sub(stage.now()))).await;
        }
    };
    tokio::select! {
        () = showing => {}
        _ = interrupt.wait_for(|now| *now) => interrupted.store(true, Ordering::Relaxed),
    }
}

/// Lets requests that somebody waits for come to their ends, within bounds.
async fn drain(stage: &Stage, bound: Duration) {
    let end = stage.now() + bound;
    while stage.open.load(Ordering::Relaxed) > 0 && stage.now() < end {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Ends all tasks and puts on record what nobody served.
async fn leave(posts: &[Post], over: &watch::Sender<bool>, cast: &mut JoinSet<()>, around: &mut JoinSet<()>) {
    for post in posts {
        post.queue.close();
    }
    let _ = over.send(true);
    for tasks in [cast, around] {
        let all = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(LEAVE_MAX, all).await.is_err() {
            tasks.shutdown().await;
        }
    }
    for post in posts {
        for arrival in post.queue.rest() {
            let user = post.actor.kind.has_a_user();
            post.ended(arrival.at, None, Ending::Unfinished { user });
        }
    }
}

impl Run {
    fn lane(&self, name: &str) -> Option<&Lane> {
        self.tally.lanes.iter().find(|lane| lane.name == name)
    }

    /// A lane's latencies in a scope.
    pub fn latencies(&self, lane: &Lane, scope: Scope<'_>) -> Latencies {
        lane.latencies(|phase| match scope {
            Scope::Whole => true,
            Scope::Steady => self.steady[phase],
            Scope::NotSteady => !self.steady[phase],
            Scope::Phase(name) => self.names[phase] == name,
        })
    }

    fn recovery(&self, scenario: &Scenario) -> Option<Duration> {
        let disturbed_until = scenario.disturbed_until()?;
        let is_web =
            |lane: &&Lane| scenario.actors.iter().any(|a| a.kind == Kind::Web && a.lane == lane.name);
        let lanes: Vec<&Lane> = self.tally.lanes.iter().filter(is_web).collect();
        let steady =
            lanes.iter().map(|lane| self.latencies(lane, Scope::Steady).response).reduce(|mut a, b| {
                let _ = a.add(b);
                a
            });
        let steady =
            steady.filter(|steady| !steady.is_empty()).map(|all| all.value_at_quantile(0.99) as f64 / 1e3);
        recovered_after(&lanes, self.tally.step, disturbed_until, slow_ms(steady))
    }

    /// What became of the scenario's expectations in this run.
    /// `all` are the runs of the same drill.
    pub fn judge(&self, scenario: &Scenario, all: &[Self]) -> Vec<Verdict> {
        let best =
            |rule: &super::expect::Rule| all.iter().filter_map(|run| rule.yardstick(run)).reduce(f64::min);
        let mut verdicts: Vec<Verdict> =
            scenario.rules.iter().map(|rule| rule.judge(self, best(rule))).collect();
        if let Some(bound) = scenario.recover_within {
            verdicts.push(Verdict {
                rule: format!("recover_within = \"{}s\"", bound.as_secs_f64()),
                held: self.recovered_after.is_some_and(|after| after <= bound),
                measured: self.recovered_after.map(|after| after.as_secs_f64()),
                limit: Some(bound.as_secs_f64()),
                unit: "s",
                note: None,
            });
        }
        // An operator's act that did not work makes the rehearsal another one.
        verdicts.extend(self.acts.iter().filter_map(|act| {
            let Outcome::Failed(why) = &act.outcome else { return None };
            let (rule, note) = (format!("action: {}", act.text), Some(why.clone()));
            Some(Verdict { rule, held: false, measured: None, limit: None, unit: "", note })
        }));
        verdicts
    }
}

impl Measured for Run {
    fn figure(&self, subject: &Subject, figure: Figure, scope: Scope<'_>) -> Option<f64> {
        let lane = match subject {
            Subject::Lane(name) => self.lane(name).filter(|lane| lane.attempts() > 0)?,
            Subject::Run(_) => {
                let peak = self.observed.peak().map(f64::from);
                let leaks = |time: Duration| self.observed.leaks.then_some(time.as_secs_f64() * 1e3);
                return match figure {
                    Figure::Peak => peak,
                    Figure::PeakPercent => {
                        peak.map(|peak| peak * 100.0 / f64::from(self.capacity.usable.max(1)))
                    }
                    Figure::Held => leaks(self.observed.lock_held),
                    Figure::Blocked => leaks(self.observed.lock_blocked),
                    Figure::Late => leaks(self.observed.lock_late),
                    Figure::Commits => self.lost.map(|lost| lost as f64),
                    _ => None,
                };
            }
        };
        let at = self.latencies(lane, scope);
        let ms = |histogram: &hdrhistogram::Histogram<u32>, quantile: f64| {
            (!histogram.is_empty()).then(|| histogram.value_at_quantile(quantile) as f64 / 1e3)
        };
        match figure {
            Figure::Attempts => Some(lane.attempts() as f64),
            Figure::Ok => Some(at.ok as f64),
            Figure::Failures => Some(at.user_failures as f64),
            Figure::Errors => Some(lane.errors() as f64),
            Figure::Retries => Some(lane.retries as f64),
            Figure::Unfinished => Some(lane.unfinished as f64),
            Figure::P50 => ms(&at.response, 0.5),
            Figure::P90 => ms(&at.response, 0.9),
            Figure::P99 => ms(&at.response, 0.99),
            Figure::Max => ms(&at.response, 1.0),
            Figure::WaitP99 => ms(&at.wait, 0.99),
            Figure::ServiceP99 => ms(&at.service, 0.99),
            Figure::Peak
            | Figure::PeakPercent
            | Figure::Held
            | Figure::Blocked
            | Figure::Late
            | Figure::Commits => None,
        }
    }
}
