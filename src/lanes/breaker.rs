//! One probe at a time while PostgreSQL is down or full, instead of a storm of redials. None at all while no server is known that will do:
//! it is the monitor who finds one.
//!
//! ```text
//! closed ── a dial failed ──► open, waiting ── back-off over ──► open, a probe may go ── granted ──► open, probing
//!   ▲                             ▲                                   ▲                             │ │ │
//!   │                             └──────────── the probe failed ─────┼─────────────────────────────┘ │ │
//!   │                                                                 └──────── the probe went away ──┘ │
//!   └── upstream answered (down), a login succeeded or the latch was cleared (full) ────────────────────┘
//! ```

use super::ids::LinkId;
use super::rate::Jitter;
use crate::clock::Moment;
use crate::reason::Reason;

/// Why it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Cannot be reached, is starting up or shutting down.
    Down,
    /// "sorry, too many clients already".
    Full,
}

/// The breaker of the one upstream.
#[derive(Clone, Debug, Default)]
pub struct Breaker {
    open: Option<Trouble>,
    /// Kept when the latch alone closes it, so that the next failure goes on doubling.
    failures: u32,
    retry_at: Moment,
    probe: Option<LinkId>,
    /// No server is known that will do.
    homeless: bool,
}

impl Breaker {
    /// Whether no server is known that will do. Another server's troubles are over with it.
    pub fn set_homeless(&mut self, homeless: bool) {
        *self = Self { homeless, ..Self::default() };
    }

    /// Whether no server is known that will do.
    pub fn is_homeless(&self) -> bool {
        self.homeless
    }

    /// Why it is open; none when closed.
    pub fn trouble(&self) -> Option<Trouble> {
        self.open
    }

    /// Why nobody may dial now; none when closed or when a probe may go.
    pub fn stops(&self, now: Moment) -> Option<Reason> {
        if self.homeless {
            return Some(Reason::NoPrimary);
        }
        let probe_may_go = self.probe.is_none() && self.retry_at <= now;
        (!probe_may_go).then_some(self.open?).map(|trouble| match trouble {
            Trouble::Down => Reason::UpstreamDown,
            Trouble::Full => Reason::UpstreamFull,
        })
    }

    /// When the next probe may go; none when closed or while one is out.
    pub fn retry_at(&self) -> Option<Moment> {
        (self.open.is_some() && self.probe.is_none() && !self.homeless).then_some(self.retry_at)
    }

    /// A link dials: while open it is the probe.
    pub fn granted(&mut self, link: LinkId) {
        if self.open.is_some() {
            self.probe = Some(link);
        }
    }

    /// A dial failed. Dials that were under way when it opened do not count again. True if it was closed before.
    pub fn failed(
        &mut self,
        now: Moment,
        link: Option<LinkId>,
        trouble: Trouble,
        jitter: &mut Jitter,
    ) -> bool {
        let was_closed = self.open.is_none();
        let was_probe = link.is_some() && self.probe == link;
        self.open = Some(trouble);
        if was_closed || was_probe {
            self.failures = self.failures.saturating_add(1);
            self.retry_at = now + jitter.backoff(self.failures);
            self.probe = None;
        }
        was_closed
    }

    /// Upstream is well. True if it was open.
    pub fn healthy(&mut self) -> bool {
        let was_open = self.open.is_some();
        *self = Self { homeless: self.homeless, ..Self::default() };
        was_open
    }

    /// No longer full as far as anybody knows; the next to find out goes on with the back-off. True if that closed it.
    pub fn no_longer_full(&mut self, now: Moment) -> bool {
        let closes = self.open == Some(Trouble::Full) && self.retry_at <= now;
        if closes {
            self.open = None;
            self.probe = None;
        }
        closes
    }

    /// A link went away; where it was the probe the next one may go at once.
    pub fn gone(&mut self, now: Moment, link: LinkId) {
        if self.probe == Some(link) {
            self.probe = None;
            self.retry_at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn one_probe_at_a_time() {
        let (mut breaker, mut jitter) = (Breaker::default(), Jitter::new(1));
        let start = Moment::from_micros(1);
        assert!(breaker.failed(start, Some(LinkId(1)), Trouble::Down, &mut jitter));
        assert!(!breaker.failed(start, Some(LinkId(2)), Trouble::Down, &mut jitter), "was under way");
        assert_eq!(breaker.stops(start), Some(Reason::UpstreamDown));
        let later = start + Duration::from_millis(150);
        assert_eq!(breaker.stops(later), None);
        breaker.granted(LinkId(3));
        assert_eq!(breaker.stops(later), Some(Reason::UpstreamDown));
        breaker.gone(later, LinkId(3));
        assert_eq!(breaker.stops(later), None, "the next may probe at once");
        breaker.granted(LinkId(4));
        breaker.failed(later, Some(LinkId(4)), Trouble::Down, &mut jitter);
        assert!(breaker.retry_at().is_some_and(|at| at >= later + Duration::from_millis(200)), "doubled");
        assert!(breaker.healthy() && breaker.stops(later).is_none());
    }

    #[test]
    fn without_a_server_nobody_probes_and_a_new_one_begins_anew() {
        let (mut breaker, mut jitter) = (Breaker::default(), Jitter::new(1));
        let start = Moment::from_micros(1);
        breaker.failed(start, None, Trouble::Down, &mut jitter);
        breaker.set_homeless(true);
        let later = start + Duration::from_secs(60);
        assert_eq!((breaker.stops(later), breaker.retry_at()), (Some(Reason::NoPrimary), None));
        assert!(!breaker.healthy() && breaker.stops(later).is_some(), "a late login elsewhere opens nothing");
        breaker.set_homeless(false);
        assert_eq!((breaker.stops(start), breaker.trouble()), (None, None));
    }

    #[test]
    fn the_end_of_full_waits_for_the_back_off() {
        let (mut breaker, mut jitter) = (Breaker::default(), Jitter::new(1));
        let start = Moment::from_micros(1);
        breaker.failed(start, None, Trouble::Full, &mut jitter);
        assert!(!breaker.no_longer_full(start));
        assert!(breaker.no_longer_full(start + Duration::from_millis(150)));
        assert_eq!(breaker.trouble(), None);
    }
}
