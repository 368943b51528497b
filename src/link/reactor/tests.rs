//! The reactor with members that do what a byte tells them.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use super::*;

/// What a member does with the next byte it reads.
const ECHO: u8 = b'e';
const PANIC: u8 = b'p';
const END: u8 = b'x';
const MORE: u8 = b'm';

struct Echo {
    near: [UnixStream; 2],
    seen: mpsc::Sender<(u32, &'static str)>,
    name: u32,
    wake: Option<ReactorWake>,
    readable: bool,
    insatiable: bool,
    ticks: u32,
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.seen.send((self.name, "gone"));
    }
}

impl Member for Echo {
    type Scratch = ();
    type End = u8;

    fn sockets(&self) -> [BorrowedFd<'_>; 2] {
        [self.near[0].as_fd(), self.near[1].as_fd()]
    }
    fn carried(&mut self, wake: ReactorWake) {
        self.wake = Some(wake);
    }
    fn ready(&mut self, side: usize, events: EventFlags) {
        self.readable |= side == 0 && events.contains(EventFlags::IN);
    }
    fn run(&mut self, (): &mut ()) -> Run<u8> {
        let _ = self.seen.send((self.name, "ran"));
        if self.insatiable {
            return Run::Again;
        }
        if !std::mem::take(&mut self.readable) {
            return Run::Waits;
        }
        let mut byte = [0];
        let _ = io::Read::read(&mut self.near[0], &mut byte);
        match byte[0] {
            PANIC => panic!("a bug"),
            END => Run::Done(END),
            MORE => Run::Again,
            _ => {
                let _ = io::Write::write(&mut self.near[1], &byte);
                Run::Waits
            }
        }
    }
    fn wants_tick(&self) -> bool {
        self.ticks > 0
    }
    fn tick(&mut self) {
        self.ticks -= 1;
        let _ = self.seen.send((self.name, "tick"));
    }
}

struct World {
    reactor: Reactor<Echo>,
    done: mpsc::Receiver<u8>,
    seen: mpsc::Receiver<(u32, &'static str)>,
    tell: mpsc::Sender<(u32, &'static str)>,
    far: Vec<[UnixStream; 2]>,
}

impl World {
    fn new() -> Self {
        let (over, done) = mpsc::channel();
        let (tell, seen) = mpsc::channel();
        let reactor = Reactor::new(move |_, end| over.send(end).expect("asked for")).expect("descriptors");
        Self { reactor, done, seen, tell, far: Vec::new() }
    }

    fn join(&mut self) -> u32 {
        let name = self.far.len() as u32;
        let (a, b) = (UnixStream::pair().expect("a pair"), UnixStream::pair().expect("a pair"));
        let near = [a.0, b.0];
        self.far.push([a.1, b.1]);
        let member = Echo {
            near,
            seen: self.tell.clone(),
            name,
            wake: None,
            readable: false,
            insatiable: false,
            ticks: 0,
        };
        self.reactor.handle().carry(member);
        self.go();
        name
    }

    /// All that is there to do.
    fn go(&mut self) {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        for _ in 0..10 {
            self.reactor.turn(&mut events, Some(Duration::ZERO)).expect("epoll");
        }
    }

    fn say(&mut self, name: u32, byte: u8) {
        io::Write::write_all(&mut self.far[name as usize][0], &[byte]).expect("room");
        self.go();
    }

    fn heard(&mut self, name: u32) -> bool {
        let far = &mut self.far[name as usize][1];
        far.set_nonblocking(true).expect("an option");
        matches!(io::Read::read(far, &mut [0]), Ok(1))
    }

    fn saw(&self) -> Vec<(u32, &'static str)> {
        self.seen.try_iter().collect()
    }
}

#[test]
fn a_panic_ends_its_member_and_no_other() {
    let mut world = World::new();
    let (first, second) = (world.join(), world.join());
    world.saw();
    world.say(first, PANIC);
    assert_eq!(world.saw(), [(first, "ran"), (first, "gone")]);
    world.say(second, ECHO);
    assert!(world.heard(second));
    assert_eq!(world.reactor.handle().carried(), 1);
}

#[test]
fn one_that_is_over_is_handed_back_and_its_place_is_given_away() {
    let mut world = World::new();
    let first = world.join();
    world.say(first, END);
    assert_eq!(world.done.try_recv(), Ok(END));
    let stale = Token { index: 0, generation: 0 };
    let second = world.join();
    world.saw();
    world.reactor.step(stale);
    assert_eq!(world.saw(), [], "what was meant for the first does not reach the second");
    world.say(second, ECHO);
    assert!(world.heard(second));
    assert_eq!((world.reactor.places.len(), world.reactor.handle().carried()), (1, 1));
}

#[test]
fn one_that_wants_more_runs_again_without_an_event() {
    let mut world = World::new();
    let first = world.join();
    world.saw();
    world.say(first, MORE);
    assert_eq!(world.saw(), [(first, "ran"), (first, "ran")]);
}

#[test]
fn events_give_one_that_has_more_to_do_no_second_turn() {
    let mut world = World::new();
    let first = world.join();
    if let Some(member) = world.reactor.places[0].member.as_mut() {
        member.insatiable = true;
    }
    world.saw();
    let mut events = Vec::with_capacity(EVENTS_MAX);
    for turn in 0..5 {
        io::Write::write_all(&mut world.far[first as usize][0], &[ECHO]).expect("room");
        world.reactor.turn(&mut events, Some(Duration::ZERO)).expect("epoll");
        assert_eq!((world.reactor.again.len(), world.saw().len()), (1, if turn == 0 { 2 } else { 1 }));
    }
}

#[test]
fn a_wake_from_another_thread_runs_its_member_once_or_more() {
    let mut world = World::new();
    let (first, second) = (world.join(), world.join());
    world.saw();
    let wake =
        world.reactor.places[1].member.as_ref().and_then(|member| member.wake.clone()).expect("carried");
    std::thread::spawn(move || wake.wake()).join().expect("woken");
    world.go();
    assert_eq!(world.saw(), [(second, "ran")]);
    let _ = first;
}

#[test]
fn half_of_the_busy_members_are_shared() {
    let (mut world, other) = (World::new(), World::new());
    let names: Vec<u32> = (0..4).map(|_| world.join()).collect();
    let idle = world.join();
    world.reactor.handle().watch();
    world.go();
    names.iter().for_each(|name| world.say(*name, ECHO));
    world.reactor.handle().share_with(&other.reactor.handle());
    world.go();
    assert_eq!((world.reactor.handle().carried(), other.reactor.handle().carried()), (3, 2));
    assert!(world.reactor.places[idle as usize].member.is_some());
    // The bytes of one that moved go through the other thread, and nothing is lost on the way.
    let mut other = World { far: std::mem::take(&mut world.far), ..other };
    names.iter().for_each(|name| assert!(other.heard(*name)));
    names.iter().for_each(|name| other.say(*name, ECHO));
    world.go();
    names.iter().for_each(|name| assert!(other.heard(*name), "{name}"));
}

#[test]
fn ticks_come_until_they_are_no_longer_wanted() {
    let mut world = World::new();
    let first = world.join();
    if let Some(member) = world.reactor.places[0].member.as_mut() {
        member.ticks = 2;
    }
    world.say(first, ECHO);
    world.saw();
    let mut seen = Vec::new();
    while !world.reactor.ticked.is_empty() {
        world.go();
        seen.extend(world.saw());
    }
    seen.extend(world.saw());
    assert!(seen.iter().filter(|(_, what)| *what == "tick").count() <= 2);
    assert_eq!(world.reactor.places[0].member.as_ref().map(|member| member.ticks), Some(0));
}
