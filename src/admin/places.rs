//! Places at the admin port: their number is bounded, and who has not shown yet what it wants gives way to newcomers, the oldest first.
//! So nobody shuts the port by holding connections open in silence.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// So many places.
#[derive(Debug)]
pub struct Places {
    max: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    /// By age.
    places: BTreeMap<u64, Arc<Seat>>,
}

#[derive(Debug, Default)]
struct Seat {
    settled: AtomicBool,
    taken: Notify,
}

/// One of them, given back when dropped.
#[derive(Debug)]
pub struct Place {
    of: Arc<Places>,
    number: u64,
    seat: Arc<Seat>,
}

impl Places {
    /// `max` places.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, held: Mutex::default() })
    }

    /// A place; where there is none, that of the oldest who is not settled. None where all are.
    pub fn enter(self: &Arc<Self>) -> Option<Place> {
        let mut held = self.held.lock();
        if held.places.len() >= self.max {
            let unsettled = |(_, seat): &(&u64, &Arc<Seat>)| !seat.settled.load(Ordering::Relaxed);
            let oldest = held.places.iter().find(unsettled).map(|(number, _)| *number)?;
            if let Some(seat) = held.places.remove(&oldest) {
                seat.taken.notify_one();
            }
        }
        let number = held.next;
        held.next += 1;
        let seat = Arc::new(Seat::default());
        held.places.insert(number, seat.clone());
        Some(Place { of: self.clone(), number, seat })
    }
}

impl Place {
    /// Whether nobody may take it from now on.
    pub fn settle(&self, settled: bool) {
        self.seat.settled.store(settled, Ordering::Relaxed);
    }

    /// Whether nobody may take it.
    pub fn is_settled(&self) -> bool {
        self.seat.settled.load(Ordering::Relaxed)
    }

    /// Returns when a newcomer was given the place. Who holds it ends its connection then.
    pub async fn taken(&self) {
        self.seat.taken.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.held.lock().places.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::task::{Context, Waker};

    use super::*;

    fn is_taken(place: &Place) -> bool {
        std::pin::pin!(place.taken()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn the_oldest_who_is_not_settled_gives_way() {
        let places = Places::new(3);
        let held: Vec<Place> = (0..3).filter_map(|_| places.enter()).collect();
        held[0].settle(true);
        let newcomer = places.enter().expect("the second gives way");
        assert_eq!(held.iter().map(is_taken).collect::<Vec<_>>(), [false, true, false]);
        newcomer.settle(true);
        held[2].settle(true);
        assert!(places.enter().is_none(), "all are settled");
        // Who is unsettled again may be replaced again; a place that was taken is not given back twice.
        held[2].settle(false);
        drop(held);
        let more: Vec<_> = (0..3).map_while(|_| places.enter()).collect();
        assert_eq!(more.len(), 3);
        assert!(is_taken(&more[0]) && !is_taken(&newcomer));
    }
}
