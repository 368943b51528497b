//! Connections at rest, under a runtime that these tests turn by yielding to it.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use tokio::task::yield_now;

use super::*;
use crate::lanes::settings::Pooling;
use crate::link::hub::tests as hubs;

/// Whoever listens to a backend with this pid meets a bug.
pub(super) const BUG: i32 = 13;

/// Longer than any test.
const EVER: Duration = Duration::from_secs(3600);

struct World {
    hub: Arc<Hub>,
    _events: tokio::sync::mpsc::UnboundedReceiver<super::super::hub::Event>,
    lane: LaneId,
}

impl World {
    fn new() -> Self {
        let pooling = Pooling {
            lifetime: EVER,
            idle_timeout: EVER,
            check_after: EVER,
            min_size: 0,
            keeps_reserve: false,
            normalises: false,
        };
        let (hub, events) = hubs::hub_with(|settings| {
            settings.lanes.iter_mut().for_each(|lane| lane.pooling = Some(pooling.clone()));
        });
        let lane = hub.guard(|guard, _| guard.lane("web")).expect("a lane web");
        tokio::spawn(keep(hub.clone()));
        Self { hub, _events: events, lane }
    }

    /// Comes for a backend with this pid, or for one of its own.
    fn arrive(&self, pid: i32) -> (LinkId, Arrived) {
        let (id, who) = (self.hub.next_link(), hubs::odoo(self.lane, Some(key_of(pid))));
        (id, self.hub.guard(|guard, now| guard.arrive(now, id, who)))
    }

    /// A backend whose client has just ended; its far end.
    fn rests(&self, pid: i32) -> (LinkId, UnixStream) {
        let (id, arrived) = self.arrive(pid);
        assert_eq!(arrived, Arrived::Granted);
        let mut slot = Slot::new(self.hub.clone(), id);
        slot.dialled(None);
        self.hub.guard(|guard, now| guard.login_done(now, id, pid));
        let (near, far) = UnixStream::pair().expect("a pair");
        near.set_nonblocking(true).expect("an option");
        far.set_nonblocking(true).expect("an option");
        let upstream = Stream::from(tokio::net::UnixStream::from_std(near).expect("a runtime"));
        let ticket =
            Ticket::new(self.hub.pool.epoch(), key_of(pid), self.lane, "odoo".into(), Vec::new(), None);
        let key = (pid, CancelKeys::new(&[1], &[2]));
        rest(&self.hub, Resting { upstream, slot, key, ticket, since: clock::now() });
        (id, far)
    }

    fn slots(&self) -> u32 {
        self.hub.guard(|guard, _| guard.audit()).expect("a consistent ledger");
        hubs::slots(&self.hub)
    }
}

/// The startup packet that is the key to a backend.
fn key_of(pid: i32) -> PoolKey {
    PoolKey::new(format!("....{pid}").as_bytes())
}

/// All that is there to do.
async fn settle() {
    for _ in 0..20 {
        yield_now().await;
    }
}

#[tokio::test]
async fn one_that_ends_at_rest_frees_its_slot() {
    let world = World::new();
    let ((_, far), (other, _far)) = (world.rests(41), world.rests(42));
    settle().await;
    assert_eq!((world.slots(), world.hub.pool.kept()), (2, 2));
    drop(far);
    settle().await;
    assert_eq!((world.slots(), world.hub.pool.kept()), (1, 1));
    assert!(world.hub.pool.has(other));
}

#[tokio::test]
async fn one_that_speaks_at_rest_is_closed_and_counted_until_it_is() {
    let world = World::new();
    let (_, mut far) = world.rests(41);
    settle().await;
    far.write_all(b"N").expect("room");
    settle().await;
    let mut words = [0; 5];
    far.read_exact(&mut words).expect("a good-bye");
    assert_eq!(words, reply::TERMINATE);
    assert!(world.slots() == 1 && world.hub.pool.kept() >= 1, "PostgreSQL has not closed it");
    drop(far);
    settle().await;
    assert_eq!((world.slots(), world.hub.pool.kept()), (0, 0));
}

#[tokio::test]
async fn whoever_waits_for_the_last_of_them_never_sees_none_too_early() {
    let world = World::new();
    let fars: Vec<_> = (41..44).map(|pid| world.rests(pid)).collect();
    settle().await;
    world.hub.guard(|guard, now| guard.drain_pool(now, None, true));
    for step in 0..20 {
        assert!(world.hub.pool.kept() >= 3, "step {step}");
        yield_now().await;
    }
    drop(fars);
    settle().await;
    assert_eq!((world.slots(), world.hub.pool.kept()), (0, 0));
}

#[tokio::test]
async fn a_bug_in_one_closes_that_one_only() {
    let world = World::new();
    let (_, mut doomed) = world.rests(41);
    let (other, far) = world.rests(42);
    settle().await;
    world
        .hub
        .pool
        .shelf
        .lock()
        .resting
        .values_mut()
        .filter(|one| one.key.0 == 41)
        .for_each(|one| one.key.0 = BUG);
    doomed.write_all(b"N").expect("room");
    settle().await;
    assert!(world.hub.pool.has(other));
    let mut words = [0; 5];
    doomed.read_exact(&mut words).expect("a good-bye");
    assert_eq!(words, reply::TERMINATE);
    drop(doomed);
    settle().await;
    assert_eq!((world.slots(), world.hub.pool.kept()), (1, 1), "the other");
    drop(far);
    settle().await;
    assert_eq!((world.slots(), world.hub.pool.kept()), (0, 0), "the keeper goes on");
}

/// It ends when it is nobody's but the client's it was given to, and that client goes without having taken it.
#[tokio::test]
async fn one_that_ends_while_it_is_given_away_and_is_not_taken_is_no_slot_for_ever() {
    for paused in [false, true] {
        let world = World::new();
        let (pooled, far) = world.rests(41);
        settle().await;
        let (taker, arrived) = world.arrive(41);
        assert_eq!(arrived, Arrived::Reused(pooled));
        drop(far);
        settle().await;
        if paused {
            world.hub.guard(|guard, now| guard.pause(now, world.lane, None, None, "me", ""));
        }
        drop(Slot::new(world.hub.clone(), taker));
        assert_eq!(world.slots(), 1, "nobody has seen its end but a sample will");
        // Without a sample it is given up in time.
        world.hub.guard(|guard, now| guard.tick(now + Duration::from_secs(301)));
        assert_eq!((world.slots(), world.hub.pool.kept()), (0, 0));
    }
}
