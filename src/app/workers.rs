//! The threads: one receives clients and sees links off, on a tokio runtime; the workers carry established links, each a reactor.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle as Runtime;
use tokio::sync::mpsc;

use super::seats::Seats;
use crate::clock::{self, Moment};
use crate::link::ahead;
use crate::link::established::{End, Established, finish};
use crate::link::hub::{Client, Counters, Hub};
use crate::link::pool;
use crate::link::reactor::{Handle, Reactor};
use crate::link::serve::{Accepted, serve};
use crate::link::stream::Stream;
use crate::link::tally::Tally;
use crate::link::young::{self, Youth};
use crate::listen::threads;
use crate::reason::Reason;

/// Connections at most that have sent no startup packet yet, or are being refused.
const STRANGERS_MAX: u32 = 2000;
/// The same of one address: half of them, which is more than all workers of one Odoo, so that no single host takes every place.
const STRANGERS_OF_ADDRESS_MAX: u32 = 1000;
/// A worker busier than this gets no new link while another one is less busy, in ‰ of a core.
const FULL: u32 = 600;
/// Links that the reception relays at once: more of them are not as short-lived as they should be, or it has no time left.
const YOUNG_MAX: u32 = 32;
/// A worker busier than this hands links over to one that is less busy by half, in ‰ of a core.
const OVERLOADED: u32 = 800;
/// How often workers are measured.
const BALANCE_EVERY: Duration = Duration::from_secs(1);

type Link = Box<Established>;

/// A socket that no runtime knows yet.
pub enum Socket {
    /// TCP, with the client's address.
    Tcp(OwnedFd, Option<SocketAddr>),
    /// Unix.
    Unix(OwnedFd),
}

/// A connection to be served, counted already.
struct Come {
    accepted: Accepted,
    tally: Client,
    stranger: Tally,
}

/// The threads, from outside.
pub struct Workers {
    hub: Arc<Hub>,
    reception: Runtime,
    seats: Seats<Come>,
    /// Links relayed by the reception.
    young: AtomicU32,
    workers: Vec<Worker>,
    measured: Mutex<Moment>,
}

/// One of the links that the reception relays. Counted, not measured: where the reception has no time left they live longer, are more, and
/// the next ones go to workers at once.
struct Young<'a> {
    all: &'a AtomicU32,
    before: u32,
}

impl<'a> Young<'a> {
    fn count(all: &'a AtomicU32) -> Self {
        Self { all, before: all.fetch_add(1, Ordering::Relaxed) }
    }

    fn fits(&self) -> bool {
        self.before < YOUNG_MAX
    }
}

impl Drop for Young<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Worker {
    reactor: Handle<Link>,
    /// Its thread's id; 0 until it runs.
    thread: Arc<AtomicI32>,
    /// CPU time in µs at the last measurement.
    cpu_us: AtomicU64,
    /// ‰ of a core.
    load: AtomicU32,
    /// It was overloaded a moment ago.
    watched: AtomicBool,
}

impl Workers {
    /// Starts the reception and `count` workers.
    ///
    /// # Errors
    /// The system has no threads or descriptors left.
    pub fn start(hub: &Arc<Hub>, count: usize) -> std::io::Result<Arc<Self>> {
        let (over, finished) = mpsc::unbounded_channel();
        let workers = (0..count).map(|n| Worker::start(n, over.clone())).collect::<Result<_, _>>()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let reception = runtime.handle().clone();
        let for_reception = hub.clone();
        thread::Builder::new()
            .name("pgweir-reception".to_owned())
            .spawn(move || runtime.block_on(see_off(for_reception, finished)))?;
        let workers = Arc::new(Self {
            hub: hub.clone(),
            reception,
            seats: Seats::default(),
            young: AtomicU32::new(0),
            workers,
            measured: Mutex::new(clock::now()),
        });
        workers.reception.spawn(pool::keep(hub.clone()));
        workers.reception.spawn(ahead::run(hub.clone()));
        let balanced = workers.clone();
        workers.reception.spawn(async move {
            loop {
                tokio::time::sleep(BALANCE_EVERY).await;
                balanced.balance();
            }
        });
        Ok(workers)
    }

    /// When a client that says nothing is taken for dead; zero leaves that to the system.
    pub fn dead_after(&self) -> Duration {
        self.hub.settings.load().dead_after
    }

    /// Where clients are received.
    pub fn reception(&self) -> &Runtime {
        &self.reception
    }

    /// Whether there are so many connections that have not said who they are, in all or of its address, that another one is closed
    /// unheard: that is counted, and logged sparingly.
    pub fn turns_away(&self, socket: &Socket, listener: &str) -> bool {
        let peer = match socket {
            Socket::Tcp(_, peer) => *peer,
            Socket::Unix(_) => None,
        };
        let crowded = is_crowded(&self.hub.counters, peer.map(|peer| peer.ip()));
        if crowded {
            let reason = Reason::LoginLimit;
            *self.hub.counters.strangers_refused.entry(reason).or_insert(0) += 1;
            if self.hub.may_log(&"".into(), reason) {
                tracing::warn!(
                    reason = reason.label(),
                    address = ?peer,
                    listener,
                    in_all = STRANGERS_MAX,
                    of_one_address = STRANGERS_OF_ADDRESS_MAX,
                    "closed unheard: too many connections have not said who they are"
                );
            }
        }
        crowded
    }

    /// Serves a connection. To be called on the reception.
    pub fn receive(self: &Arc<Self>, socket: Socket, listener: Arc<str>, lane: Option<Arc<str>>) {
        let tally = Client::new(self.hub.clone());
        let accepted = match adopt(socket, listener, lane) {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "a client was gone before it was served");
                return;
            }
        };
        // Counted before it is served: a burst is accepted in one go.
        let stranger = Tally::stranger(self.hub.clone(), accepted.peer.map(|peer| peer.ip()));
        let Some(come) = self.seats.call(Come { accepted, tally, stranger }) else { return };
        let workers = self.clone();
        // A panic in here ends this task, whose destructors give everything back.
        tokio::spawn(async move {
            let sitter = workers.seats.sit();
            let mut next = Some(come);
            while let Some(Come { accepted, tally, stranger }) = next {
                if let Some(link) = serve(&workers.hub, accepted, tally, stranger).await {
                    workers.take_over(link).await;
                }
                next = sitter.next().await;
            }
        });
    }

    /// A link has logged in: a young one is a worker's only when it has grown, and most never do.
    async fn take_over(&self, link: Link) {
        if !link.is_young() {
            return self.carry(link);
        }
        let lived = {
            let young = Young::count(&self.young);
            if young.fits() { young::live(link).await } else { Youth::Grown(link) }
        };
        match lived {
            Youth::Over(link, end) => finish(self.hub.clone(), link, end).await,
            Youth::Grown(link) => match link.grown() {
                Ok(link) => self.carry(link),
                Err(error) => tracing::error!(%error, "a link cannot leave its runtime, and is closed"),
            },
        }
    }

    /// Few busy workers are cheaper than many idle ones: each wake-up then finds more to do. So the first that has time to spare
    /// gets the link, else the one with the most.
    fn carry(&self, link: Link) {
        let load = |worker: &&Worker| worker.load.load(Ordering::Relaxed);
        let spare = self.workers.iter().find(|worker| load(worker) < FULL);
        if let Some(worker) = spare.or_else(|| self.workers.iter().min_by_key(load)) {
            worker.reactor.carry(link);
        }
    }

    /// Measures the workers, and relieves one that is overloaded twice in a row: the first time it is watched, to know who is busy.
    fn balance(&self) {
        let now = clock::now();
        let took = now.since(std::mem::replace(&mut *self.measured.lock(), now));
        self.workers.iter().for_each(|worker| worker.measure(took));
        let load = |worker: &&Worker| worker.load.load(Ordering::Relaxed);
        let Some(idlest) = self.workers.iter().min_by_key(load) else { return };
        for worker in &self.workers {
            let relievable = load(&worker) > OVERLOADED
                && load(&idlest) < load(&worker) / 2
                && worker.reactor.carried() > 1;
            let was_watched = worker.watched.swap(relievable, Ordering::Relaxed);
            if relievable && !was_watched {
                worker.reactor.watch();
            } else if relievable {
                worker.watched.store(false, Ordering::Relaxed);
                worker.reactor.share_with(&idlest.reactor);
                tracing::debug!(load = load(&worker), "a busy worker shares its links");
                return;
            }
        }
    }
}

impl Worker {
    fn start(n: usize, over: mpsc::UnboundedSender<(Link, End)>) -> std::io::Result<Self> {
        let reactor = Reactor::new(move |link, end| {
            // The reception lives as long as the process.
            let _ = over.send((link, end));
        })?;
        let handle = reactor.handle();
        let id = Arc::new(AtomicI32::new(0));
        let tell_id = id.clone();
        thread::Builder::new().name(format!("pgweir-worker-{n}")).spawn(move || {
            tell_id.store(threads::current(), Ordering::Relaxed);
            // Whatever ends it, all its links are gone with it: better a new process than one that is half there.
            match catch_unwind(AssertUnwindSafe(|| reactor.run())) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "a worker cannot go on"),
                Err(_) => tracing::error!("a worker cannot go on"),
            }
            std::process::abort();
        })?;
        Ok(Self {
            reactor: handle,
            thread: id,
            cpu_us: AtomicU64::new(0),
            load: AtomicU32::new(0),
            watched: AtomicBool::new(false),
        })
    }

    fn measure(&self, took: Duration) {
        let Some(cpu) = threads::cpu_time(self.thread.load(Ordering::Relaxed)) else { return };
        let cpu_us = cpu.as_micros() as u64;
        let used = cpu_us.saturating_sub(self.cpu_us.swap(cpu_us, Ordering::Relaxed));
        let load = used.saturating_mul(1000) / (took.as_micros() as u64).max(1);
        self.load.store(u32::try_from(load).unwrap_or(u32::MAX), Ordering::Relaxed);
    }
}

fn is_crowded(counters: &Counters, address: Option<IpAddr>) -> bool {
    let of_address =
        address.and_then(|address| counters.strangers_by_address.get(&address).map(|count| *count));
    counters.strangers.load(Ordering::Relaxed) >= STRANGERS_MAX
        || of_address.is_some_and(|count| count >= STRANGERS_OF_ADDRESS_MAX)
}

/// Sees links off whose relay has ended.
async fn see_off(hub: Arc<Hub>, mut finished: mpsc::UnboundedReceiver<(Link, End)>) {
    while let Some((link, end)) = finished.recv().await {
        tokio::spawn(finish(hub.clone(), link, end));
    }
}

fn adopt(socket: Socket, listener: Arc<str>, listener_lane: Option<Arc<str>>) -> std::io::Result<Accepted> {
    match socket {
        Socket::Tcp(fd, peer) => {
            let stream = tokio::net::TcpStream::from_std(fd.into())?;
            Ok(Accepted { stream: Stream::from(stream), peer, listener, listener_lane })
        }
        Socket::Unix(fd) => {
            let stream = tokio::net::UnixStream::from_std(fd.into())?;
            Ok(Accepted { stream: Stream::from(stream), peer: None, listener, listener_lane })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All links end at once when PostgreSQL restarts, and are in no registry while they get their last words.
    #[test]
    fn only_those_who_have_not_said_who_they_are_make_a_crowd() {
        let counters = Counters::default();
        counters.clients.store(STRANGERS_MAX + 600, Ordering::Relaxed);
        counters.leaving.store(STRANGERS_MAX + 600, Ordering::Relaxed);
        assert!(!is_crowded(&counters, None), "they leave");
        counters.strangers.store(STRANGERS_MAX, Ordering::Relaxed);
        assert!(is_crowded(&counters, None));
        counters.strangers.store(STRANGERS_MAX - 1, Ordering::Relaxed);
        assert!(!is_crowded(&counters, None));
    }

    #[test]
    fn one_address_leaves_room_for_others() {
        let (counters, of) = (Counters::default(), |last| Some(IpAddr::from([192, 0, 2, last])));
        counters.strangers.store(STRANGERS_OF_ADDRESS_MAX, Ordering::Relaxed);
        counters.strangers_by_address.insert(IpAddr::from([192, 0, 2, 1]), STRANGERS_OF_ADDRESS_MAX);
        assert!(is_crowded(&counters, of(1)));
        assert!(!is_crowded(&counters, of(2)) && !is_crowded(&counters, None));
    }
}
