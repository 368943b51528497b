//! Tasks that serve one connection after the other. A task costs more to make and to take down than a short login costs otherwise; one that
//! is free is called in place of a new one.

use std::sync::Arc;
use std::task::{Poll, Waker};

use parking_lot::Mutex;

/// Tasks that wait for a connection at most: a few kilobytes each. Those that are busy have no bound here.
const FREE_MAX: usize = 16;

/// Where a free task is called.
struct Seat<J>(Mutex<Call<J>>);

struct Call<J> {
    job: Option<J>,
    waker: Option<Waker>,
}

/// The tasks that are free.
pub struct Seats<J>(Mutex<Vec<Arc<Seat<J>>>>);

/// A task's own end.
pub struct Sitter<'a, J> {
    seats: &'a Seats<J>,
    seat: Arc<Seat<J>>,
}

impl<J> Default for Seats<J> {
    fn default() -> Self {
        Self(Mutex::new(Vec::with_capacity(FREE_MAX)))
    }
}

impl<J> Seats<J> {
    /// Gives a job to a task that is free, the one that was busy last; gives it back where none is.
    pub fn call(&self, job: J) -> Option<J> {
        let Some(seat) = self.0.lock().pop() else { return Some(job) };
        let mut call = seat.0.lock();
        call.job = Some(job);
        let waker = call.waker.take();
        drop(call);
        if let Some(waker) = waker {
            waker.wake();
        }
        None
    }

    /// For a task that has just been made.
    pub fn sit(&self) -> Sitter<'_, J> {
        Sitter { seats: self, seat: Arc::new(Seat(Mutex::new(Call { job: None, waker: None }))) }
    }
}

impl<J> Sitter<'_, J> {
    /// Waits for the next job; none where enough others wait already.
    pub async fn next(&self) -> Option<J> {
        {
            let mut free = self.seats.0.lock();
            if free.len() >= FREE_MAX {
                return None;
            }
            free.push(self.seat.clone());
        }
        let job = std::future::poll_fn(|cx| {
            let mut call = self.seat.0.lock();
            if let Some(job) = call.job.take() {
                return Poll::Ready(job);
            }
            call.waker = Some(cx.waker().clone());
            Poll::Pending
        });
        Some(job.await)
    }
}

impl<J> Drop for Sitter<'_, J> {
    /// Only the end of its runtime takes down a task that is free; nobody is called there.
    fn drop(&mut self) {
        self.seats.0.lock().retain(|free| !Arc::ptr_eq(free, &self.seat));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::task::yield_now;

    use super::*;

    struct World {
        seats: Seats<u32>,
        made: AtomicU32,
        served: Mutex<Vec<u32>>,
    }

    const BUG: u32 = 13;

    fn serve(world: &Arc<World>, job: u32) {
        let Some(job) = world.seats.call(job) else { return };
        world.made.fetch_add(1, Ordering::Relaxed);
        let world = world.clone();
        tokio::spawn(async move {
            let sitter = world.seats.sit();
            let mut job = Some(job);
            while let Some(number) = job {
                yield_now().await;
                assert!(number != BUG, "a bug");
                world.served.lock().push(number);
                job = sitter.next().await;
            }
        });
    }

    fn world() -> Arc<World> {
        Arc::new(World { seats: Seats::default(), made: AtomicU32::new(0), served: Mutex::default() })
    }

    async fn settle() {
        for _ in 0..10 {
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn one_task_serves_those_who_come_one_after_the_other() {
        let world = world();
        for job in 100..200 {
            serve(&world, job);
            settle().await;
        }
        assert_eq!(*world.served.lock(), (100..200).collect::<Vec<_>>());
        assert_eq!(world.made.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_crowd_is_served_at_once_and_leaves_only_so_many_tasks() {
        let world = world();
        for _ in 0..3 {
            (100..200).for_each(|job| serve(&world, job));
            settle().await;
        }
        assert_eq!(world.served.lock().len(), 300);
        assert_eq!(world.seats.0.lock().len(), FREE_MAX);
        assert_eq!(world.made.load(Ordering::Relaxed), 100 + 2 * (100 - FREE_MAX as u32));
    }

    #[tokio::test]
    async fn a_bug_ends_its_task_and_nobody_is_lost_for_it() {
        let world = world();
        for job in [100, BUG, 101, BUG, BUG, 102] {
            serve(&world, job);
            settle().await;
        }
        assert_eq!(*world.served.lock(), [100, 101, 102]);
        serve(&world, 103);
        serve(&world, BUG);
        serve(&world, 104);
        settle().await;
        let mut last = world.served.lock().split_off(3);
        last.sort();
        assert_eq!(last, [103, 104]);
    }
}
