//! Counts that are given back whatever happens: whoever is counted holds the tally.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::hub::{Counters, Hub};

/// A tally on one of [`Counters`]' gauges, given back when it goes.
pub struct Tally(Arc<Hub>, fn(&Counters) -> &AtomicU32);

impl Tally {
    /// A connection of whom nothing is known.
    pub fn stranger(hub: Arc<Hub>) -> Self {
        Self::take(hub, |counters| &counters.strangers)
    }

    /// A link on its way out.
    pub fn leaving(hub: Arc<Hub>) -> Self {
        Self::take(hub, |counters| &counters.leaving)
    }

    fn take(hub: Arc<Hub>, of: fn(&Counters) -> &AtomicU32) -> Self {
        of(&hub.counters).fetch_add(1, Ordering::Relaxed);
        Self(hub, of)
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        (self.1)(&self.0.counters).fetch_sub(1, Ordering::Relaxed);
    }
}

/// A tally on client connections, taken at accept.
pub struct Client(Arc<Hub>);

impl Client {
    /// Counts a client in.
    pub fn new(hub: Arc<Hub>) -> Self {
        hub.counters.clients.fetch_add(1, Ordering::Relaxed);
        Self(hub)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.0.counters.clients.fetch_sub(1, Ordering::Relaxed);
    }
}
