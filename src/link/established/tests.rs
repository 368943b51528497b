//! Real relays between sockets, on reactors that the tests turn by hand: what becomes of a link when something goes wrong.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::Duration;

use super::super::cycles::CYCLES_MAX;
use super::super::desk::{BUG, Desk};
use super::super::hub::{Event, tests as hubs};
use super::super::reactor::Reactor;
use super::super::shared::Command;
use super::super::side::Side;
use super::super::stream::Stream;
use super::*;
use crate::lanes::ids::{LaneId, LinkId};
use crate::lanes::sample::Sample;

const BEGIN: &[u8] = b"begin";

/// A link that may be such that epoll refuses it.
struct Odd {
    link: Box<Established>,
    refused: bool,
}

impl Member for Odd {
    type Scratch = Scratch;
    type End = End;

    fn sockets(&self) -> [BorrowedFd<'_>; 2] {
        let [client, upstream] = self.link.sockets();
        // The same descriptor twice is EEXIST.
        if self.refused { [client, client] } else { [client, upstream] }
    }
    fn carried(&mut self, wake: ReactorWake) {
        self.link.carried(wake);
    }
    fn ready(&mut self, side: usize, events: EventFlags) {
        self.link.ready(side, events);
    }
    fn run(&mut self, scratch: &mut Scratch) -> Run<End> {
        self.link.run(scratch)
    }
    fn wants_tick(&self) -> bool {
        self.link.wants_tick()
    }
    fn tick(&mut self) {
        self.link.tick();
    }
}

/// The far ends of a link.
pub(in crate::link) struct Far {
    pub id: LinkId,
    pub client: UnixStream,
    pub upstream: UnixStream,
}

impl Far {
    pub fn ask(&mut self, sql: &[u8]) {
        self.client.write_all(&query(sql)).expect("room");
    }

    pub fn answer(&mut self, requests: usize, status: u8) {
        self.upstream.write_all(&answer(status).repeat(requests)).expect("room");
    }
}

pub(in crate::link) fn query(sql: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    reply::message(&mut out, b'Q', |body| body.extend_from_slice(&[sql, b"\0"].concat()));
    out
}

pub(in crate::link) fn answer(status: u8) -> Vec<u8> {
    let mut out = Vec::new();
    reply::command_complete(&mut out, "OK");
    reply::ready_for_query(&mut out, status);
    out
}

/// What has arrived, and whether that was all there will ever be.
pub(in crate::link) fn heard(stream: &mut UnixStream) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    let ended = match stream.read_to_end(&mut bytes) {
        Ok(_) => true,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    };
    (bytes, ended)
}

pub(in crate::link) struct World {
    pub hub: Arc<Hub>,
    _events: tokio::sync::mpsc::UnboundedReceiver<Event>,
    reactors: [Reactor<Odd>; 2],
    pub over: mpsc::Receiver<(Box<Established>, End)>,
    lane: LaneId,
}

impl World {
    pub(in crate::link) fn new() -> Self {
        let (hub, events) = hubs::hub();
        let (tell, over) = mpsc::channel();
        let reactors = [tell.clone(), tell].map(|tell| {
            let done = move |odd: Odd, end| tell.send((odd.link, end)).expect("asked for");
            Reactor::new(done).expect("descriptors")
        });
        let lane = hub.guard(|guard, _| guard.lane("web")).expect("a lane web");
        Self { hub, _events: events, reactors, over, lane }
    }

    /// A link in the first moment of its life on a reactor.
    fn link(&self, pid: i32) -> (Box<Established>, Far) {
        self.link_of(pid, |near| Side::new(near).expect("taken out"))
    }

    /// One whose sockets the runtime keeps.
    pub(in crate::link) fn young(&self, pid: i32) -> (Box<Established>, Far) {
        self.link_of(pid, Side::kept)
    }

    fn link_of(&self, pid: i32, of: fn(Stream) -> Side) -> (Box<Established>, Far) {
        let (registered, mut slot) = hubs::link(&self.hub, pid);
        let shared = registered.shared.clone();
        slot.dialled(None);
        self.hub.guard(|guard, now| guard.login_done(now, shared.id, pid));
        shared.pid.store(pid, Ordering::Relaxed);
        let (facts, process) = shared.with_labels(|labels| (labels.facts.clone(), labels.process.clone()));
        let lane = self.hub.lane(self.lane).expect("a lane web");
        let side = || {
            let (near, far) = UnixStream::pair().expect("a pair");
            near.set_nonblocking(true).expect("an option");
            far.set_nonblocking(true).expect("an option");
            let near = tokio::net::UnixStream::from_std(near).expect("a runtime");
            (of(Stream::from(near)), far)
        };
        let ((client, far_client), (upstream, far_upstream)) = (side(), side());
        let id = shared.id;
        let desk = Desk::new(self.hub.clone(), shared, lane, facts, process, 0);
        let relay = Relay::new(client, upstream, desk, Vec::new(), Vec::new());
        let keys = CancelKeys::new(&[1], &[2]);
        let mut link = Box::new(Established::new(relay, registered, slot, (pid, keys)));
        link.counted(Client::new(self.hub.clone()));
        (link, Far { id, client: far_client, upstream: far_upstream })
    }

    fn join(&mut self, pid: i32) -> Far {
        let (link, far) = self.link(pid);
        self.carry(link);
        far
    }

    /// The first reactor has it.
    pub(in crate::link) fn carry(&mut self, link: Box<Established>) {
        self.reactors[0].handle().carry(Odd { link, refused: false });
        self.go(0);
    }

    /// All that is there to do.
    pub(in crate::link) fn go(&mut self, which: usize) {
        let mut events = Vec::with_capacity(64);
        for _ in 0..10 {
            self.reactors[which].turn(&mut events, Some(Duration::ZERO)).expect("epoll");
        }
    }

    /// What is counted: slots, links, cancel keys, clients.
    pub(in crate::link) fn counts(&self) -> (u32, usize, usize, u32) {
        self.hub.guard(|guard, _| guard.audit()).expect("a consistent ledger");
        let clients = self.hub.counters.clients.load(Ordering::Relaxed);
        (hubs::slots(&self.hub), self.hub.links.len(), self.hub.keys.len(), clients)
    }

    /// PostgreSQL says that none of ours is left.
    pub(in crate::link) fn sample(&self) {
        self.hub.guard(|guard, now| {
            let sample = Sample {
                asked_at: now,
                taken_at: now,
                max_connections: 100,
                reserved_connections: 3,
                monitor_pid: 1,
                sessions: Vec::new(),
                lock_holders: [].into(),
                locks_asked_at: now,
            };
            guard.sample(now, &sample);
        });
    }

    fn state(&self, far: &Far) -> LinkState {
        self.hub.links.get(&far.id).expect("registered").state().0
    }
}

#[tokio::test]
async fn a_bug_in_one_relay_closes_that_link_only_and_gives_all_back() {
    let mut world = World::new();
    let (mut doomed, mut other) = (world.join(41), world.join(42));
    for far in [&mut doomed, &mut other] {
        far.ask(BEGIN);
    }
    world.go(0);
    for far in [&mut doomed, &mut other] {
        assert_eq!(heard(&mut far.upstream), (query(BEGIN), false));
        far.answer(1, b'T');
    }
    world.go(0);
    let process = world.hub.links.get(&other.id).and_then(|link| link.with_labels(|l| l.process.clone()));
    let process = process.expect("looked up");
    assert_eq!((world.counts(), process.in_transaction.load(Ordering::Relaxed)), ((2, 2, 2, 2), 2));
    heard(&mut doomed.client);
    doomed.ask(BUG);
    world.go(0);
    assert!(heard(&mut doomed.client).1 && heard(&mut doomed.upstream).1, "both sides are closed");
    assert_eq!(process.in_transaction.load(Ordering::Relaxed), 1, "nobody is nested in what is gone");
    assert_eq!(world.counts(), (2, 1, 1, 1), "its backend may live: the slot stays until a sample");
    assert_eq!(world.reactors[0].handle().carried(), 1);
    other.ask(b"commit");
    world.go(0);
    assert_eq!(heard(&mut other.upstream), (query(b"commit"), false));
    other.answer(1, b'I');
    world.go(0);
    assert!(!heard(&mut other.client).0.is_empty());
    assert_eq!(world.state(&other), LinkState::Idle);
    drop(other);
    world.go(0);
    let (link, end) = world.over.try_recv().expect("over");
    assert!(matches!(end, End::ClientGone | End::UpstreamClosed), "{end:?}");
    drop(link);
    world.sample();
    assert_eq!(world.counts(), (0, 0, 0, 0));
}

#[tokio::test]
async fn a_link_that_epoll_refuses_leaves_nothing_behind() {
    let mut world = World::new();
    let (link, mut far) = world.link(41);
    world.reactors[0].handle().carry(Odd { link, refused: true });
    world.go(0);
    assert!(heard(&mut far.client).1 && heard(&mut far.upstream).1, "both sides are closed");
    assert_eq!((world.counts(), world.reactors[0].handle().carried()), ((1, 0, 0, 0), 0));
    world.sample();
    assert_eq!(world.counts(), (0, 0, 0, 0));
    // Its place serves the next one.
    let mut next = world.join(42);
    next.ask(BEGIN);
    world.go(0);
    assert_eq!(heard(&mut next.upstream).0, query(BEGIN));
}

#[tokio::test]
async fn a_link_that_cannot_be_seen_off_leaves_nothing_behind() {
    for stuck in 0..2 {
        let world = World::new();
        let (link, mut far) = world.link(41);
        let raw = link.sockets()[stuck].as_fd().as_raw_fd();
        // Watched already: the runtime that is to close it gets EEXIST.
        #[allow(deprecated, reason = "a test needs no proof that the descriptor stays")]
        let watched = tokio::io::unix::AsyncFd::new(raw).expect("watched");
        finish(world.hub.clone(), link, End::ClientGone).await;
        drop(watched);
        assert!(heard(&mut far.client).1 && heard(&mut far.upstream).1, "both sides are closed");
        assert_eq!(world.counts(), (1, 0, 0, 0));
        assert_eq!(world.hub.counters.leaving.load(Ordering::Relaxed), 0);
        world.sample();
        assert_eq!(world.counts(), (0, 0, 0, 0));
    }
}

/// A restart of PostgreSQL ends thousands of links at once, and newcomers must be heard while those get their last words.
#[tokio::test]
async fn links_that_leave_are_no_strangers() {
    let mut world = World::new();
    let mut clients = Vec::new();
    for pid in 41..61 {
        let far = world.join(pid);
        clients.push(far.client);
    }
    world.go(0);
    let leaving: Vec<_> =
        world.over.try_iter().map(|(link, end)| tokio::spawn(finish(world.hub.clone(), link, end))).collect();
    assert_eq!(leaving.len(), 20);
    tokio::task::yield_now().await;
    assert_eq!(world.counts(), (0, 0, 0, 20), "they still listen");
    let of = |counter: &std::sync::atomic::AtomicU32| counter.load(Ordering::Relaxed);
    assert_eq!((of(&world.hub.counters.leaving), of(&world.hub.counters.strangers)), (20, 0));
    drop(clients);
    for one in leaving {
        one.await.expect("no panic");
    }
    assert_eq!((world.counts(), of(&world.hub.counters.leaving)), ((0, 0, 0, 0), 0));
}

#[tokio::test]
async fn a_held_link_that_moves_to_another_thread_is_released_there() {
    for resumed_on_the_way in [true, false] {
        let mut world = World::new();
        let mut links = [world.join(41), world.join(42)];
        let lane = world.lane;
        world.hub.guard(|guard, now| guard.pause(now, lane, None, None, "test", ""));
        links.iter_mut().for_each(|far| far.ask(BEGIN));
        world.go(0);
        let handles = [world.reactors[0].handle(), world.reactors[1].handle()];
        handles[0].watch();
        world.go(0);
        for far in &links {
            assert_eq!(world.state(far), LinkState::Held);
            // A sweep's question is reason enough to run.
            world.hub.post(far.id, Command::Probe);
        }
        world.go(0);
        handles[0].share_with(&handles[1]);
        world.go(0);
        let resume = |world: &World| {
            assert!(world.hub.guard(|guard, now| guard.resume(now, lane, None, "test")));
        };
        if resumed_on_the_way {
            resume(&world);
            world.go(1);
        } else {
            world.go(1);
            resume(&world);
            world.go(1);
        }
        assert_eq!((handles[0].carried(), handles[1].carried()), (1, 1), "one has moved");
        world.go(0);
        for far in &mut links {
            assert_eq!(heard(&mut far.upstream), (query(BEGIN), false), "{resumed_on_the_way}");
        }
        assert!(links.iter().all(|far| world.state(far) == LinkState::Active));
    }
}

/// Answers all that reaches upstream until the link is over: the end, and how many requests came.
fn serve(world: &mut World, far: &mut Far, one: &[u8]) -> (End, usize, bool) {
    let mut all = Vec::new();
    loop {
        world.go(0);
        let bytes = heard(&mut far.upstream).0;
        let before = all.len() / one.len();
        all.extend_from_slice(&bytes);
        if let Ok((_link, end)) = world.over.try_recv() {
            let rest = all.len() % one.len();
            return (end, all.len() / one.len(), all[all.len() - rest..] == reply::TERMINATE);
        }
        assert!(!bytes.is_empty(), "it hangs after {before} requests");
        far.answer(all.len() / one.len() - before, b'I');
    }
}

#[tokio::test]
async fn the_end_of_a_client_overtakes_no_request_that_a_terminate_is_behind() {
    let one = query(b"insert");
    let asked = CYCLES_MAX + 1000;
    for terminated in [true, false] {
        let mut world = World::new();
        let mut far = world.join(41);
        far.client.write_all(&one.repeat(asked)).expect("room");
        if terminated {
            far.client.write_all(&reply::TERMINATE).expect("room");
        }
        far.client.shutdown(Shutdown::Write).expect("open");
        let (end, came, and_terminate) = serve(&mut world, &mut far, &one);
        if terminated {
            assert!(matches!(end, End::Terminated), "{end:?} after {came}");
            assert_eq!((came, and_terminate), (asked, true));
        } else {
            assert!(matches!(end, End::ClientGone), "{end:?}");
            assert!(came <= CYCLES_MAX, "what nobody waits for is not begun");
        }
    }
}

#[tokio::test]
async fn one_that_hung_up_behind_a_terminate_is_given_its_replies() {
    let one = query(b"insert");
    let asked = CYCLES_MAX + 10;
    let mut world = World::new();
    let mut far = world.join(41);
    far.client.write_all(&[&one.repeat(asked)[..], &reply::TERMINATE].concat()).expect("room");
    far.client.shutdown(Shutdown::Write).expect("open");
    world.hub.post(far.id, Command::Probe);
    let mut reader = far.client.try_clone().expect("a descriptor");
    world.go(0);
    let came = heard(&mut far.upstream).0.len() / one.len();
    far.answer(100, b'I');
    world.go(0);
    assert_eq!((came, heard(&mut reader).0), (CYCLES_MAX, answer(b'I').repeat(100)));
}
