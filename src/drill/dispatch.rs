//! The schedule's own thread: puts each arrival into its actor's queue at its time, whatever becomes of those before it.
//!
//! A thread rather than a task: a runtime that is busy with answers must not delay arrivals unseen.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;

use super::schedule::{Arrival, Arrivals};
use super::stage::Post;
use super::tally::Ending;
use crate::clock;

/// The longest sleep in one piece: the end of a run is noticed within it.
const NAP_MAX: Duration = Duration::from_millis(50);

/// The thread. It ends by itself when the schedule does, or when told to.
pub struct Dispatcher {
    thread: std::thread::JoinHandle<Histogram<u32>>,
    stop: Arc<AtomicBool>,
}

impl Dispatcher {
    /// Starts it. Times count from the stage's beginning.
    ///
    /// # Errors
    /// That the system gives no thread.
    pub fn start(actors: Vec<(Post, Arrivals)>) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread =
            std::thread::Builder::new().name("schedule".into()).spawn(move || dispatch(actors, &stopped))?;
        Ok(Self { thread, stop })
    }

    /// Ends it; how late arrivals were put into their queues, in microseconds.
    pub fn finish(self) -> Option<Histogram<u32>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok()
    }
}

fn dispatch(actors: Vec<(Post, Arrivals)>, stop: &AtomicBool) -> Histogram<u32> {
    let mut late = Histogram::new_with_max(60_000_000, 2).expect("a minute with two digits is a valid range");
    let (posts, mut schedules): (Vec<Post>, Vec<Arrivals>) = actors.into_iter().unzip();
    let mut next: BinaryHeap<Reverse<(Duration, usize, u64)>> = BinaryHeap::new();
    for (actor, schedule) in schedules.iter_mut().enumerate() {
        next.extend(schedule.next().map(|arrival| Reverse((arrival.at, actor, arrival.index))));
    }
    while let Some(Reverse((at, actor, index))) = next.pop() {
        let Some(post) = posts.get(actor) else { break };
        if !sleep_until(post, at, stop) {
            break;
        }
        let lag = clock::now().since(post.stage.began).saturating_sub(at);
        late.saturating_record(u64::try_from(lag.as_micros()).unwrap_or(u64::MAX));
        if !post.arrive(Arrival { at, index }) {
            post.failed_as("queue_full");
            let user = post.actor.kind.has_a_user();
            post.ended(at, None, if user { Ending::Failed } else { Ending::Unfinished { user } });
        }
        next.extend(schedules[actor].next().map(|arrival| Reverse((arrival.at, actor, arrival.index))));
    }
    late
}

/// Waits for a moment of the run; false if it is over first.
fn sleep_until(post: &Post, at: Duration, stop: &AtomicBool) -> bool {
    loop {
        if stop.load(Ordering::Relaxed) {
            return false;
        }
        let left = at.saturating_sub(post.stage.now());
        if left.is_zero() {
            return true;
        }
        std::thread::sleep(left.min(NAP_MAX));
    }
}
