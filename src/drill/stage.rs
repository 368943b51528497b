//! What all actors of one run share: the way in, the clock, the measurements, the permits, the end.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use super::client::{Failure, Link};
use super::odoo;
use super::queue::Queue;
use super::scenario::{Actor, NOTIFY};
use super::schedule::{Arrival, Dice, dice};
use super::tally::{Ending, Tally, Times};
use super::way::Way;
use crate::clock::{self, Moment};

/// Orders remembered to be looked for after the run; beyond it none are added.
const TOLD_MAX: usize = 5_000_000;
/// The database of bus and cron notifications.
pub const COMMON_DATABASE: &str = "postgres";

/// One run's common ground.
pub struct Stage {
    /// The way this run comes in.
    pub way: Way,
    /// The target itself, for those who bypass.
    pub direct: Way,
    /// Decides all choices.
    pub seed: u64,
    /// When the schedule began.
    pub began: Moment,
    /// The figures.
    pub tally: Mutex<Tally>,
    /// Bus messages that PostgreSQL took.
    pub bus_sent: AtomicU64,
    /// Bus messages that the first listener got.
    pub bus_received: AtomicU64,
    /// Connections that had to wait for `--max-connections`.
    pub held_back: AtomicU64,
    /// Requests with a user that are due and not over.
    pub open: AtomicI64,
    /// Most connections that were logged in at once.
    pub connections_peak: AtomicUsize,
    max_connections: usize,
    permits: Arc<Semaphore>,
    told: Mutex<Vec<u64>>,
    over: watch::Receiver<bool>,
}

impl Stage {
    /// A run that begins at `began` and ends when `over` becomes true.
    pub fn new(
        (way, direct): (Way, Way),
        seed: u64,
        began: Moment,
        tally: Tally,
        max_connections: usize,
        over: watch::Receiver<bool>,
    ) -> Self {
        Self {
            way,
            direct,
            seed,
            began,
            tally: Mutex::new(tally),
            bus_sent: AtomicU64::new(0),
            bus_received: AtomicU64::new(0),
            held_back: AtomicU64::new(0),
            open: AtomicI64::new(0),
            connections_peak: AtomicUsize::new(0),
            max_connections,
            permits: Arc::new(Semaphore::new(max_connections)),
            told: Mutex::default(),
            over,
        }
    }

    /// Time since the start of the run; zero before it.
    pub fn now(&self) -> Duration {
        clock::now().since(self.began)
    }

    /// Sleeps until this time of the run.
    pub async fn until(&self, at: Duration) {
        tokio::time::sleep(at.saturating_sub(self.now())).await;
    }

    /// What `work` yields, or `None` if the run is over first.
    pub async fn unless_over<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut over = self.over.clone();
        tokio::select! {
            done = work => Some(done),
            _ = over.wait_for(|over| *over) => None,
        }
    }

    /// Connects, on this run's way or directly, once `--max-connections` allows it.
    ///
    /// # Errors
    /// As [`Link::connect`].
    pub async fn connect(&self, direct: bool, database: &str, application: &str) -> Result<Link, Failure> {
        let permit = match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                self.held_back.fetch_add(1, Ordering::Relaxed);
                let closed = |_| Failure {
                    label: "08001".into(),
                    message: "the drill is over".into(),
                    lost: true,
                    established: false,
                };
                Arc::clone(&self.permits).acquire_owned().await.map_err(closed)?
            }
        };
        let way = if direct { &self.direct } else { &self.way };
        let link = Link::connect(way, database, application, Some(permit)).await?;
        let open = self.max_connections.saturating_sub(self.permits.available_permits());
        self.connections_peak.fetch_max(open, Ordering::Relaxed);
        Ok(link)
    }

    /// Odoo's BEGIN on this way.
    pub fn begin(&self) -> &'static str {
        if self.way.options { odoo::BEGIN } else { odoo::BEGIN_WITH_PATH }
    }

    /// Remembers that a user was told this order is saved.
    pub fn told(&self, reference: u64) {
        let mut told = self.told.lock();
        if told.len() < TOLD_MAX {
            told.push(reference);
        }
    }

    /// The orders users were told are saved.
    pub fn take_told(&self) -> Vec<u64> {
        std::mem::take(&mut self.told.lock())
    }
}

/// An actor's place on the stage.
#[derive(Clone)]
pub struct Post {
    /// The run's common ground.
    pub stage: Arc<Stage>,
    /// What it is.
    pub actor: Arc<Actor>,
    /// Its place in the scenario, which makes its dice its own.
    pub ordinal: usize,
    /// application_name of its links.
    pub application: String,
    /// Its lane's index in the tally.
    pub lane: usize,
    /// The lane of bus connections, if there is one.
    pub notify_lane: usize,
    /// Its due requests.
    pub queue: Arc<Queue>,
}

impl Post {
    /// The place of `actor`, the `ordinal`-th.
    pub fn new(stage: &Arc<Stage>, actor: &Arc<Actor>, ordinal: usize) -> Self {
        let tally = stage.tally.lock();
        let index = |name: &str| tally.lanes.iter().position(|lane| lane.name == name).unwrap_or(usize::MAX);
        Self {
            stage: Arc::clone(stage),
            actor: Arc::clone(actor),
            ordinal,
            application: actor.application_of(ordinal, 0),
            lane: index(&actor.lane),
            notify_lane: index(NOTIFY),
            queue: Arc::new(Queue::new(actor.max_waiting)),
        }
    }

    /// The place of its `number`-th worker.
    pub fn of_worker(&self, number: u32) -> Self {
        Self { application: self.actor.application_of(self.ordinal, number), ..self.clone() }
    }

    /// The dice of a request.
    pub fn dice(&self, arrival: &Arrival) -> Dice {
        dice(self.stage.seed, self.ordinal, arrival.index)
    }

    /// The dice of the `worker`-th of the actor, for choices that belong to no request.
    pub fn worker_dice(&self, worker: u32) -> Dice {
        dice(self.stage.seed, self.ordinal, u64::MAX - 1 - u64::from(worker))
    }

    /// A connection of this actor to the Odoo database.
    ///
    /// # Errors
    /// As [`Link::connect`].
    pub async fn connect(&self) -> Result<Link, Failure> {
        let database = self.stage.way.account.database.clone();
        self.stage.connect(false, &database, &self.application).await
    }

    /// One to the common database.
    ///
    /// # Errors
    /// As [`Link::connect`].
    pub async fn connect_common(&self) -> Result<Link, Failure> {
        self.stage.connect(false, COMMON_DATABASE, &self.application).await
    }

    /// A request is due, and goes into the queue; false if that is full.
    pub fn arrive(&self, arrival: Arrival) -> bool {
        let taken = self.queue.arrive(arrival);
        if taken && self.actor.kind.has_a_user() {
            self.stage.open.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    /// A request that was in the queue is over.
    pub fn over(&self, arrived: Duration, ready: Option<Duration>, ending: Ending) {
        self.ended(arrived, ready, ending);
        if self.actor.kind.has_a_user() {
            self.stage.open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Counts a failed attempt.
    pub fn failed(&self, failure: &Failure) {
        self.failed_as(&failure.label);
    }

    /// The same by its label.
    pub fn failed_as(&self, label: &str) {
        let now = self.stage.now();
        self.stage.tally.lock().failed(self.lane, label, now);
    }

    /// Counts a repeated attempt.
    pub fn retried(&self) {
        self.stage.tally.lock().retried(self.lane);
    }

    /// Counts a request that is over now.
    pub fn ended(&self, arrived: Duration, ready: Option<Duration>, ending: Ending) {
        let times = Times { arrived, ready, ended: self.stage.now() };
        self.stage.tally.lock().ended(self.lane, &times, ending);
    }
}
