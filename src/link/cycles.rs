//! Which replies PostgreSQL still owes: one entry per request cycle, that is per Query, FunctionCall or run of extended
//! messages up to a Sync. Pure.
//!
//! Invariant: a cycle's `extended` counts its extended messages (Parse, Bind, Describe, Execute, Close) whose terminal reply has not
//! been seen. It tells whose error an ErrorResponse is: with `extended > 0` PostgreSQL skips to the next Sync and ignores what it
//! meets on the way; with 0 it is the Query's own.

use std::collections::VecDeque;

/// What ends a cycle with ReadyForQuery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing yet: the client has not sent its Sync.
    Open,
    /// Query or FunctionCall.
    Query,
    /// Sync.
    Sync,
}

#[derive(Clone, Copy, Debug)]
struct Cycle {
    extended: u32,
    end: End,
}

/// Cycles at most; beyond it the client is not read until replies came.
pub const CYCLES_MAX: usize = 8192;

/// The cycles in flight, oldest first; only the last can be open.
#[derive(Debug, Default)]
pub struct Cycles {
    queue: VecDeque<Cycle>,
    /// Cycles that have an end: ReadyForQuery messages owed.
    ended: u32,
    /// An extended message failed and its Sync was not sent yet.
    skipping: bool,
}

impl Cycles {
    /// Nothing sent that is not answered for good.
    pub fn is_quiet(&self) -> bool {
        self.queue.is_empty() && !self.skipping
    }

    /// Whether a new message would begin a cycle.
    pub fn at_start(&self) -> bool {
        self.queue.back().is_none_or(|last| last.end != End::Open) && !self.skipping
    }

    /// Whether any ReadyForQuery is owed.
    pub fn owes_ready(&self) -> bool {
        self.ended > 0
    }

    /// At the bound: no more requests until replies come.
    pub fn is_full(&self) -> bool {
        self.queue.len() >= CYCLES_MAX
    }

    /// Unsynced extended messages and nothing else, all of them answered.
    pub fn is_unsynced_and_answered(&self) -> bool {
        self.ended == 0 && self.queue.front().is_none_or(|c| c.extended == 0) && !self.is_quiet()
    }

    /// Unsynced extended messages and nothing else.
    pub fn is_unsynced(&self) -> bool {
        self.ended == 0 && !self.is_quiet()
    }

    /// Nothing is owed but the answer to the last message: what came before it is answered.
    pub fn owes_the_last_only(&self) -> bool {
        let its_own = |c: &Cycle| c.extended == u32::from(c.end == End::Open);
        self.queue.len() == 1 && self.queue.front().is_some_and(its_own)
    }

    /// An extended message that gets a terminal reply was forwarded.
    pub fn extended(&mut self) {
        if self.skipping {
            return;
        }
        match self.queue.back_mut() {
            Some(cycle) if cycle.end == End::Open => cycle.extended += 1,
            _ => self.queue.push_back(Cycle { extended: 1, end: End::Open }),
        }
    }

    /// Query or FunctionCall was forwarded.
    pub fn query(&mut self) {
        if !self.skipping {
            self.close_with(End::Query);
        }
    }

    /// Sync was forwarded.
    pub fn sync(&mut self) {
        self.skipping = false;
        self.close_with(End::Sync);
    }

    fn close_with(&mut self, end: End) {
        self.ended += 1;
        match self.queue.back_mut() {
            Some(cycle) if cycle.end == End::Open => cycle.end = end,
            _ => self.queue.push_back(Cycle { extended: 0, end }),
        }
    }

    /// A terminal reply of an extended message arrived (or CommandComplete of a Query, which counts for nothing here).
    #[inline]
    pub fn answered(&mut self) {
        if let Some(cycle) = self.queue.front_mut() {
            cycle.extended = cycle.extended.saturating_sub(1);
        }
    }

    /// An ErrorResponse arrived. True if PostgreSQL now skips to a Sync.
    pub fn failed(&mut self) -> bool {
        match self.queue.front() {
            Some(cycle) if cycle.extended > 0 => {}
            _ => return false,
        }
        while let Some(cycle) = self.queue.pop_front() {
            match cycle.end {
                End::Sync => {
                    self.queue.push_front(Cycle { extended: 0, end: End::Sync });
                    return true;
                }
                End::Query => self.ended -= 1,
                End::Open => {}
            }
        }
        self.skipping = true;
        true
    }

    /// CopyInResponse: PostgreSQL ignores every Sync and Flush it meets until CopyDone or CopyFail. A Sync sent right behind the
    /// Execute is therefore not owed; the cycle ends with the one behind CopyDone.
    pub fn copy_in(&mut self) {
        let Some(front) = self.queue.front_mut() else { return };
        if front.end != End::Sync {
            return;
        }
        let copy_left = front.extended;
        while self
            .queue
            .front()
            .is_some_and(|c| c.end == End::Sync && (c.extended == copy_left || c.extended == 0))
        {
            self.queue.pop_front();
            self.ended -= 1;
            if self.queue.front().is_some_and(|c| c.extended > 0) {
                break;
            }
        }
        match self.queue.front_mut() {
            Some(next) if next.end != End::Query => next.extended += copy_left,
            _ => self.queue.push_front(Cycle { extended: copy_left, end: End::Open }),
        }
    }

    /// ReadyForQuery arrived; a surplus one is no harm.
    pub fn ready(&mut self) {
        if let Some(at) = self.queue.iter().position(|c| c.end != End::Open) {
            self.queue.drain(..=at);
            self.ended -= 1;
        } else {
            // One that was not counted on: a Sync during a COPY that had failed already. It proves that PostgreSQL skips no more and
            // has nothing left of what was sent before it.
            self.queue.clear();
            self.skipping = false;
        }
        if self.queue.is_empty() && self.queue.capacity() > 16 {
            self.queue = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipeline(steps: &str) -> Cycles {
        let mut cycles = Cycles::default();
        for step in steps.chars() {
            match step {
                'x' => cycles.extended(),
                'Q' => cycles.query(),
                'S' => cycles.sync(),
                'a' => cycles.answered(),
                'E' => {
                    cycles.failed();
                }
                'G' => cycles.copy_in(),
                'Z' => cycles.ready(),
                _ => panic!("unknown step {step}"),
            }
        }
        cycles
    }

    /// Each line was seen on a PostgreSQL 15: what was sent, what came back, and whether anything is still owed.
    #[test]
    fn replies_and_requests_balance() {
        for quiet in [
            "QaZ",
            "QEZ",
            "xxxSaaaZ",
            "QQaZaZ",
            "xQaEZ",  // Parse(ok) Query(1/0)
            "xxQSEZ", // Parse(bad) … Query Sync: one Z, the Query is ignored
            "xEQSZ",
            "xxxxSaaGaSaZ",  // Parse Bind Describe Execute(COPY IN) Sync, CopyDone, Sync
            "xxxxSSaaGaSaZ", // both Syncs were sent before CopyInResponse was seen
            "QGaZ",
            "SSZZ",
            "xxxaaGEZ", // Parse Bind Execute(COPY IN) Flush, bad CopyData, a Sync not counted because the COPY seemed open
            "Z",
        ] {
            assert!(pipeline(quiet).is_quiet(), "{quiet}");
        }
        for owing in ["Q", "x", "xS", "QaZQ", "xxxSaaa", "xE", "xxxxSaaGa", "QQaZ"] {
            assert!(!pipeline(owing).is_quiet(), "{owing}");
        }
    }

    #[test]
    fn unsynced_pipelines_are_told_from_running_ones() {
        assert!(pipeline("xxxaaa").is_unsynced_and_answered());
        assert!(!pipeline("xxxaa").is_unsynced_and_answered());
        assert!(pipeline("xxxaa").is_unsynced());
        assert!(!pipeline("xxxSaaa").is_unsynced());
        assert!(pipeline("xE").is_unsynced_and_answered());
        assert!(!pipeline("Q").is_unsynced());
    }

    #[test]
    fn what_the_last_message_asks_for_is_told_from_what_came_before() {
        for last_only in ["Q", "x", "xax", "QaZQ", "QaZx", "xSaZx", "xaS"] {
            assert!(pipeline(last_only).owes_the_last_only(), "{last_only}");
        }
        for more_or_less in ["", "QaZ", "QQ", "Qx", "xx", "xQ", "xS", "xSx"] {
            assert!(!pipeline(more_or_less).owes_the_last_only(), "{more_or_less}");
        }
    }

    #[test]
    fn the_queue_gives_its_memory_back() {
        let mut cycles = Cycles::default();
        (0..1000).for_each(|_| cycles.query());
        (0..1000).for_each(|_| cycles.ready());
        assert!(cycles.is_quiet() && cycles.queue.capacity() <= 16);
    }
}
