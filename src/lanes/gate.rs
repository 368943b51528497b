//! The one thing a link reads of its lane without asking the guard.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether a lane is plainly open. Read at the start of each transaction; written by the guard inside its own methods, hence
/// under its lock. A link that read "open" a moment before a pause is one that began before it.
#[derive(Debug)]
pub struct LaneGate {
    open: AtomicBool,
}

impl LaneGate {
    /// An open gate.
    pub fn new() -> Self {
        Self { open: AtomicBool::new(true) }
    }

    /// Whether a transaction may begin without asking the guard.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    pub(super) fn set(&self, open: bool) {
        self.open.store(open, Ordering::Release);
    }
}

impl Default for LaneGate {
    fn default() -> Self {
        Self::new()
    }
}
