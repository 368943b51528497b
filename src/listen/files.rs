//! File descriptors: as many as allowed, and one in reserve.

use std::fs::File;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one. Returns the soft limit before and after; `u64::MAX` is no limit. Where the
/// system refuses, both are the same.
pub fn raise_file_limit() -> (u64, u64) {
    let before = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: before.maximum, maximum: before.maximum };
    let after = match setrlimit(Resource::Nofile, wanted) {
        Ok(()) => wanted.current,
        Err(_) => before.current,
    };
    (before.current.unwrap_or(u64::MAX), after.unwrap_or(u64::MAX))
}

/// A descriptor kept for the moment when there is none left (EMFILE, ENFILE). A connection that cannot be accepted stays in the
/// backlog and wakes the acceptor for ever; with this one it is accepted and closed.
#[derive(Debug)]
pub struct ReserveFd {
    held: Option<File>,
}

impl ReserveFd {
    /// Takes one. Without one to take, [`Self::spend`] still works as far as the system lets it.
    pub fn new() -> Self {
        Self { held: open() }
    }

    /// Whether one is held.
    pub fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Frees the descriptor, runs `accept_and_close`, takes a descriptor again.
    pub fn spend(&mut self, accept_and_close: impl FnOnce()) {
        self.held = None;
        accept_and_close();
        self.held = open();
    }
}

impl Default for ReserveFd {
    fn default() -> Self {
        Self::new()
    }
}

fn open() -> Option<File> {
    File::open("/dev/null").ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_ends_at_the_hard_one() {
        let (before, after) = raise_file_limit();
        assert!(after >= before);
        assert_eq!(after, getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX));
    }

    #[test]
    fn the_descriptor_is_free_while_spent() {
        let mut reserve = ReserveFd::new();
        let fd = std::os::fd::AsRawFd::as_raw_fd(reserve.held.as_ref().expect("one held"));
        let mut target = None;
        reserve.spend(|| target = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok());
        // Another test's thread may have taken the number; it is not ours any more.
        assert_ne!(target.as_deref(), Some(std::path::Path::new("/dev/null")));
        assert!(reserve.is_held());
    }
}
