//! Counts that are given back whatever happens: whoever is counted holds the tally.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use dashmap::Entry;

use super::hub::{Counters, Hub};

/// A tally on one of [`Counters`]' gauges, given back when it goes; a stranger's on its address as well.
pub struct Tally(Arc<Hub>, fn(&Counters) -> &AtomicU32, Option<IpAddr>);

impl Tally {
    /// A connection of whom nothing is known but its address, if it has one.
    pub fn stranger(hub: Arc<Hub>, address: Option<IpAddr>) -> Self {
        if let Some(address) = address {
            *hub.counters.strangers_by_address.entry(address).or_insert(0) += 1;
        }
        let mut tally = Self::take(hub, |counters| &counters.strangers);
        tally.2 = address;
        tally
    }

    /// A link on its way out.
    pub fn leaving(hub: Arc<Hub>) -> Self {
        Self::take(hub, |counters| &counters.leaving)
    }

    fn take(hub: Arc<Hub>, of: fn(&Counters) -> &AtomicU32) -> Self {
        of(&hub.counters).fetch_add(1, Ordering::Relaxed);
        Self(hub, of, None)
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let counters = &self.0.counters;
        (self.1)(counters).fetch_sub(1, Ordering::Relaxed);
        let Some(address) = self.2 else { return };
        if let Entry::Occupied(mut of_address) = counters.strangers_by_address.entry(address) {
            *of_address.get_mut() -= 1;
            if *of_address.get() == 0 {
                of_address.remove();
            }
        }
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
