//! The thread that carries established links: one epoll(7), one loop, no runtime.
//!
//! A relay needs nothing of a runtime but readiness, and at tens of thousands of transactions a second what a runtime does between the
//! kernel and a task is what separates a proxy from its floor. The reactor knows nothing of PostgreSQL: it carries *members*, each with two
//! sockets, tells them what epoll said, and hands them back when they are done. A member that panics is dropped; its neighbours
//! notice nothing.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

use crate::clock::{self, Moment};

/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 256;
/// How often members that asked for it are ticked.
const TICK: Duration = Duration::from_millis(1);
const BELL: u64 = u64::MAX;
const SIDE_BIT: u32 = 1 << 31;

/// What a member is, to the reactor.
pub trait Member: Send {
    /// What all members of a thread share: buffers.
    type Scratch: Default;
    /// Why a member is done.
    type End: Send;

    /// Its two sockets, non-blocking.
    fn sockets(&self) -> [BorrowedFd<'_>; 2];
    /// It is carried from now on, and `wake` reaches it.
    fn carried(&mut self, wake: ReactorWake);
    /// What epoll said of a socket.
    fn ready(&mut self, side: usize, events: EventFlags);
    /// Works until nothing moves, or long enough.
    fn run(&mut self, scratch: &mut Self::Scratch) -> Run<Self::End>;
    /// Whether it wants to be ticked.
    fn wants_tick(&self) -> bool;
    /// Some milliseconds have passed.
    fn tick(&mut self);
}

/// How a member's run ended.
#[derive(Debug)]
pub enum Run<E> {
    /// Nothing moves any more.
    Waits,
    /// There is more to do; others get their turn first.
    Again,
    /// It is over.
    Done(E),
}

/// A member's place: index, and a generation, so that what is said of a predecessor is not taken for a successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Token {
    index: u32,
    generation: u32,
}

impl Token {
    fn data(self, side: usize) -> EventData {
        let side = if side == 0 { 0 } else { SIDE_BIT };
        EventData::new_u64(u64::from(self.generation) << 32 | u64::from(self.index | side))
    }

    fn from_data(data: u64) -> (Self, usize) {
        let low = data as u32;
        let token = Self { index: low & !SIDE_BIT, generation: (data >> 32) as u32 };
        (token, usize::from(low & SIDE_BIT != 0))
    }
}

/// Wakes a reactor's thread.
#[derive(Debug)]
struct Bell {
    event: OwnedFd,
    rung: AtomicBool,
    awake: Mutex<Vec<Token>>,
}

impl Bell {
    fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // The counter cannot overflow: it is read before it is rung again.
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }

    /// To be called before what was rung for is looked at.
    fn hush(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.event, &mut count);
        self.rung.store(false, Ordering::Release);
    }
}

/// Reaches one member from any thread.
#[derive(Clone, Debug)]
pub struct ReactorWake {
    bell: Arc<Bell>,
    token: Token,
}

impl ReactorWake {
    /// Has the member run soon.
    pub fn wake(&self) {
        self.bell.awake.lock().push(self.token);
        self.bell.ring();
    }
}

/// What others ask of a reactor.
enum Errand<M> {
    Carry(M),
    /// Note from now on who runs.
    Watch,
    /// Hand every second of the members that ran since over to another reactor.
    Share(Handle<M>),
}

struct Inbox<M> {
    bell: Arc<Bell>,
    errands: Mutex<Vec<Errand<M>>>,
    carried: AtomicU32,
}

/// A reactor, from outside.
pub struct Handle<M>(Arc<Inbox<M>>);

impl<M> Clone for Handle<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M> Handle<M> {
    /// Has the reactor carry a member.
    pub fn carry(&self, member: M) {
        self.0.carried.fetch_add(1, Ordering::Relaxed);
        self.errand(Errand::Carry(member));
    }

    /// Has the reactor note from now on who runs, for [`Handle::share_with`].
    pub fn watch(&self) {
        self.errand(Errand::Watch);
    }

    /// Has the reactor hand half of the members that ran since [`Handle::watch`] over to another one.
    pub fn share_with(&self, other: &Self) {
        self.errand(Errand::Share(other.clone()));
    }

    /// Members it carries.
    pub fn carried(&self) -> u32 {
        self.0.carried.load(Ordering::Relaxed)
    }

    fn errand(&self, errand: Errand<M>) {
        self.0.errands.lock().push(errand);
        self.0.bell.ring();
    }
}

struct Place<M> {
    generation: u32,
    /// It ran since it is watched.
    busy: bool,
    ticked: bool,
    /// It has more to do, and its turn comes when the others had theirs: an event meanwhile gives it no second one.
    again: bool,
    member: Option<M>,
}

/// The loop and its members.
pub struct Reactor<M: Member> {
    epoll: OwnedFd,
    inbox: Arc<Inbox<M>>,
    places: Vec<Place<M>>,
    free: Vec<u32>,
    again: Vec<Token>,
    ticked: Vec<Token>,
    next_tick: Moment,
    scratch: M::Scratch,
    done: Box<dyn FnMut(M, M::End) + Send>,
}

impl<M: Member> Reactor<M> {
    /// A reactor; `done` takes the members that are over.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new(done: impl FnMut(M, M::End) + Send + 'static) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &event, EventData::new_u64(BELL), EventFlags::IN)?;
        let bell = Arc::new(Bell { event, rung: AtomicBool::new(false), awake: Mutex::new(Vec::new()) });
        let inbox = Inbox { bell, errands: Mutex::new(Vec::new()), carried: AtomicU32::new(0) };
        Ok(Self {
            epoll,
            inbox: Arc::new(inbox),
            places: Vec::new(),
            free: Vec::new(),
            again: Vec::new(),
            ticked: Vec::new(),
            next_tick: Moment::from_micros(0),
            scratch: M::Scratch::default(),
            done: Box::new(done),
        })
    }

    /// How others reach it.
    pub fn handle(&self) -> Handle<M> {
        Handle(self.inbox.clone())
    }

    /// Carries members for as long as the process lives.
    ///
    /// # Errors
    /// epoll itself failed: nothing can be carried any more.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            self.turn(&mut events, self.patience())?;
        }
    }

    fn patience(&self) -> Option<Duration> {
        if !self.again.is_empty() {
            Some(Duration::ZERO)
        } else if !self.ticked.is_empty() {
            Some(TICK)
        } else {
            None
        }
    }

    /// One wait, and all it brought.
    pub(super) fn turn(&mut self, events: &mut Vec<Event>, patience: Option<Duration>) -> io::Result<()> {
        events.clear();
        let patience =
            patience.map(|patience| Timespec { tv_sec: 0, tv_nsec: i64::from(patience.subsec_nanos()) });
        match epoll::wait(&self.epoll, spare_capacity(events), patience.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut rung = false;
        for event in events.iter() {
            let data = event.data;
            if data.u64() == BELL {
                rung = true;
                continue;
            }
            let (token, side) = Token::from_data(data.u64());
            let flags = event.flags;
            if let Some(place) = self.place(token)
                && let Some(member) = &mut place.member
            {
                member.ready(side, flags);
                if !place.again {
                    self.step(token);
                }
            }
        }
        if !self.again.is_empty() {
            for token in std::mem::take(&mut self.again) {
                if let Some(place) = self.place(token) {
                    place.again = false;
                    self.step(token);
                }
            }
        }
        if rung {
            self.answer();
        }
        if !self.ticked.is_empty() {
            self.tick();
        }
        Ok(())
    }

    fn place(&mut self, token: Token) -> Option<&mut Place<M>> {
        self.places.get_mut(token.index as usize).filter(|place| place.generation == token.generation)
    }

    /// Runs one member.
    fn step(&mut self, token: Token) {
        let Some(place) = self.places.get_mut(token.index as usize) else { return };
        if place.generation != token.generation {
            return;
        }
        let Some(member) = place.member.as_mut() else { return };
        place.busy = true;
        let scratch = &mut self.scratch;
        let ran = catch_unwind(AssertUnwindSafe(|| member.run(scratch)));
        if !place.ticked && member.wants_tick() {
            place.ticked = true;
            if self.ticked.is_empty() {
                self.next_tick = clock::now() + TICK;
            }
            self.ticked.push(token);
        }
        match ran {
            Ok(Run::Waits) => {}
            Ok(Run::Again) => {
                if !std::mem::replace(&mut place.again, true) {
                    self.again.push(token);
                }
            }
            Ok(Run::Done(end)) => {
                if let Some(member) = self.take(token) {
                    (self.done)(member, end);
                }
            }
            Err(_) => {
                // Its destructors give back what it held. The buffers may have been left in any state.
                let member = self.take(token);
                let _ = catch_unwind(AssertUnwindSafe(|| drop(member)));
                self.scratch = M::Scratch::default();
            }
        }
    }

    fn tick(&mut self) {
        let now = clock::now();
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + TICK;
        let mut ticked = std::mem::take(&mut self.ticked);
        ticked.retain(|token| {
            let Some(place) = self.places.get_mut(token.index as usize) else { return false };
            if place.generation != token.generation {
                return false;
            }
            let Some(member) = place.member.as_mut() else { return false };
            member.tick();
            place.ticked = member.wants_tick();
            place.ticked
        });
        self.ticked = ticked;
    }

    /// Takes errands and wakes.
    fn answer(&mut self) {
        self.inbox.bell.hush();
        let errands = std::mem::take(&mut *self.inbox.errands.lock());
        let awake = std::mem::take(&mut *self.inbox.bell.awake.lock());
        for errand in errands {
            match errand {
                Errand::Carry(member) => self.carry(member),
                Errand::Watch => self.places.iter_mut().for_each(|place| place.busy = false),
                Errand::Share(other) => self.share(&other),
            }
        }
        for token in awake {
            self.step(token);
        }
    }

    fn carry(&mut self, mut member: M) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { generation: 0, busy: false, ticked: false, again: false, member: None });
            (self.places.len() - 1) as u32
        });
        let place = &mut self.places[index as usize];
        let token = Token { index, generation: place.generation };
        let interest = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let mut sockets = member.sockets().into_iter().enumerate();
        let failed = sockets
            .find_map(|(side, socket)| epoll::add(&self.epoll, socket, token.data(side), interest).err());
        drop(sockets);
        if let Some(error) = failed {
            tracing::error!(%error, "a link cannot be watched, and is closed");
            self.inbox.carried.fetch_sub(1, Ordering::Relaxed);
            self.free.push(index);
            let _ = catch_unwind(AssertUnwindSafe(|| drop(member)));
            return;
        }
        member.carried(ReactorWake { bell: self.inbox.bell.clone(), token });
        place.busy = false;
        place.ticked = false;
        place.again = false;
        place.member = Some(member);
        self.step(token);
    }

    /// Takes a member out of its place.
    fn take(&mut self, token: Token) -> Option<M> {
        let place = &mut self.places[token.index as usize];
        let member = place.member.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(token.index);
        self.inbox.carried.fetch_sub(1, Ordering::Relaxed);
        for socket in member.sockets() {
            let _ = epoll::delete(&self.epoll, socket);
        }
        Some(member)
    }

    fn share(&mut self, other: &Handle<M>) {
        let mut stays = false;
        for index in 0..self.places.len() {
            let place = &mut self.places[index];
            if !std::mem::take(&mut place.busy) || place.member.is_none() {
                continue;
            }
            stays = !stays;
            let token = Token { index: index as u32, generation: place.generation };
            if !stays && let Some(member) = self.take(token) {
                other.carry(member);
            }
        }
    }
}

#[cfg(test)]
mod tests;
