//! Young links under a runtime that these tests turn by yielding to it.

use std::io::{Read as _, Write as _};

use tokio::task::{JoinHandle, yield_now};

use super::*;
use crate::link::desk::BUG;
use crate::link::established::tests::{Far, World, answer, heard, query};
use crate::link::shared::Command;
use crate::wire::reply;

const ASKED: &[u8] = b"select 1";

/// Longer than any test: what grows, grows for another reason, however busy the machine is.
const ITS_TIME: Duration = Duration::from_secs(3600);

fn begin(world: &World, pid: i32) -> (JoinHandle<Youth>, Far) {
    let (link, far) = world.young(pid);
    (tokio::spawn(live_for(ITS_TIME, link)), far)
}

/// All that is there to do.
async fn settle() {
    for _ in 0..10 {
        yield_now().await;
    }
}

/// A request and its answer.
async fn ask(far: &mut Far) {
    far.ask(ASKED);
    settle().await;
    assert_eq!(heard(&mut far.upstream), (query(ASKED), false));
    far.answer(1, b'I');
    settle().await;
    assert_eq!(heard(&mut far.client), (answer(b'I'), false));
}

#[tokio::test]
async fn a_client_that_asks_and_leaves_is_served_to_its_end() {
    let world = World::new();
    let (life, mut far) = begin(&world, 41);
    ask(&mut far).await;
    ask(&mut far).await;
    far.client.write_all(&reply::TERMINATE).expect("room");
    let Youth::Over(link, end) = life.await.expect("no panic") else { panic!("it had no time to grow") };
    assert!(matches!(end, End::Terminated), "{end:?}");
    assert!(link.is_young());
}

#[tokio::test]
async fn either_side_that_goes_away_ends_it() {
    for of_client in [true, false] {
        let world = World::new();
        let (life, mut far) = begin(&world, 41);
        ask(&mut far).await;
        if of_client {
            drop(far.client)
        } else {
            drop(far.upstream)
        }
        let Youth::Over(_, end) = life.await.expect("no panic") else { panic!("it had no time to grow") };
        match end {
            End::ClientGone => assert!(of_client),
            End::UpstreamClosed => assert!(!of_client),
            end => panic!("{end:?}"),
        }
    }
}

#[tokio::test]
async fn one_that_goes_on_asking_grows_and_loses_nothing_on_its_way() {
    let mut world = World::new();
    let (life, mut far) = begin(&world, 41);
    let (mut asked, mut came, mut told) = (0, 0, 0);
    let mut pass_on = |far: &mut Far| {
        let requests = heard(&mut far.upstream).0.len() / query(ASKED).len();
        came += requests;
        far.answer(requests, b'I');
        told += heard(&mut far.client).0.len() / answer(b'I').len();
        (came, told)
    };
    while !life.is_finished() {
        assert!(asked <= WAKES_MAX as usize, "it must grow");
        far.ask(ASKED);
        asked += 1;
        settle().await;
        pass_on(&mut far);
        settle().await;
    }
    let Youth::Grown(link) = life.await.expect("no panic") else { panic!("nobody ended it") };
    // Nobody watches it now: what comes is there for who watches next.
    far.ask(ASKED);
    let link = link.grown().expect("let go");
    assert!(!link.is_young());
    far.ask(ASKED);
    settle().await;
    world.carry(link);
    asked += 2;
    for _ in 0..3 {
        world.go(0);
        pass_on(&mut far);
    }
    assert_eq!(pass_on(&mut far), (asked, asked));
    world.hub.post(far.id, Command::Drain);
    world.go(0);
    assert!(world.over.try_recv().is_ok(), "its new place is where it is reached");
}

#[tokio::test]
async fn one_that_stays_grows_without_a_word() {
    let mut world = World::new();
    let (link, mut far) = world.young(41);
    let Youth::Grown(link) = live_for(Duration::ZERO, link).await else { panic!("nobody ended it") };
    world.carry(link.grown().expect("let go"));
    far.ask(ASKED);
    world.go(0);
    assert_eq!(heard(&mut far.upstream), (query(ASKED), false));
}

#[tokio::test]
async fn one_with_much_to_move_grows_and_each_byte_arrives_once() {
    let mut world = World::new();
    let (life, mut far) = begin(&world, 41);
    far.ask(ASKED);
    settle().await;
    let mut row = Vec::new();
    reply::message(&mut row, b'D', |body| body.extend((0..8_000_u32).flat_map(u32::to_be_bytes)));
    let reply = [row.repeat(100), answer(b'I')].concat();
    let (mut sent, mut got, mut life) = (0, Vec::new(), Some(life));
    for step in 0.. {
        sent += far.upstream.write(&reply[sent..reply.len().min(sent + 10_000)]).unwrap_or(0);
        settle().await;
        if let Some(grown) = life.take_if(|life| life.is_finished()) {
            let Youth::Grown(link) = grown.await.expect("no panic") else { panic!("nobody ended it") };
            world.carry(link.grown().expect("let go"));
        }
        world.go(0);
        // A client that reads now and then, so that neither socket takes all it is given.
        let mut piece = [0; 50_000];
        while step % 40 == 0
            && let Ok(n) = far.client.read(&mut piece)
        {
            got.extend_from_slice(&piece[..n]);
        }
        if got.len() == reply.len() {
            break;
        }
        assert!(step < 10_000, "it hangs");
    }
    assert!(got == reply);
    assert!(life.is_none(), "three megabytes in hundreds of pieces are no short answer");
}

#[tokio::test]
async fn a_command_reaches_it_while_nothing_moves() {
    let world = World::new();
    let (life, mut far) = begin(&world, 41);
    ask(&mut far).await;
    world.hub.post(far.id, Command::Drain);
    let Youth::Over(_, end) = life.await.expect("no panic") else { panic!("it had no time to grow") };
    assert!(matches!(end, End::ByUs(_)), "{end:?}");
}

#[tokio::test]
async fn a_bug_in_one_closes_that_link_only_and_gives_all_back() {
    let world = World::new();
    let ((doomed, mut far), (_other, mut other)) = (begin(&world, 41), begin(&world, 42));
    ask(&mut other).await;
    far.ask(BUG);
    assert!(doomed.await.is_err_and(|error| error.is_panic()));
    assert!(heard(&mut far.client).1 && heard(&mut far.upstream).1, "both sides are closed");
    assert_eq!(world.counts(), (2, 1, 1, 1), "its backend may live: the slot stays until a sample");
    ask(&mut other).await;
    world.sample();
}
