//! An actor's queue of arrivals: the schedule puts in, whoever is free takes the oldest out. Bounded.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::schedule::Arrival;

/// The queue. Closing it ends all who wait; what is left can be taken out for the record.
pub struct Queue {
    due: Mutex<VecDeque<Arrival>>,
    available: Semaphore,
    max: usize,
}

impl Queue {
    /// An empty queue for at most `max` arrivals.
    pub fn new(max: u32) -> Self {
        Self { due: Mutex::default(), available: Semaphore::new(0), max: max as usize }
    }

    /// Puts a new arrival at the end; false if the queue is full.
    pub fn arrive(&self, arrival: Arrival) -> bool {
        {
            let mut due = self.due.lock();
            if due.len() >= self.max {
                return false;
            }
            due.push_back(arrival);
        }
        self.available.add_permits(1);
        true
    }

    /// Puts an arrival that is still due to the front again: it has been in, so it is not refused.
    pub fn again(&self, arrival: Arrival) {
        self.due.lock().push_front(arrival);
        self.available.add_permits(1);
    }

    /// The oldest arrival, as soon as there is one; `None` once the queue is closed.
    pub async fn next(&self) -> Option<Arrival> {
        let permit = self.available.acquire().await.ok()?;
        permit.forget();
        self.due.lock().pop_front()
    }

    /// Lets nobody wait any longer.
    pub fn close(&self) {
        self.available.close();
    }

    /// What was never served.
    pub fn rest(&self) -> Vec<Arrival> {
        self.due.lock().drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn arrival(index: u64) -> Arrival {
        Arrival { at: Duration::ZERO, index }
    }

    #[tokio::test]
    async fn first_come_first_served_within_a_bound() {
        let queue = Queue::new(2);
        assert!(queue.arrive(arrival(1)) && queue.arrive(arrival(2)) && !queue.arrive(arrival(3)));
        queue.again(arrival(0));
        for index in 0..2 {
            assert_eq!(queue.next().await, Some(arrival(index)));
        }
        queue.close();
        assert_eq!(queue.next().await, None);
        assert_eq!(queue.rest(), [arrival(2)]);
    }
}
