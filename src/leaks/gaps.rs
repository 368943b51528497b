//! How long transactions idle before their clients go on: what a `reset` must not be shorter than. Pure.
//!
//! Whoever looks at all links tells which of them idle in a transaction; when one does so no more, its period says by its number how it ended.
//! Nothing is measured where requests pass. The price: a gap between two such looks is not seen (beside thousands of links they are seconds
//! apart), and one that ended is told up to a sweep too long where more than one request followed it, never too short.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Moment;
use crate::lanes::ids::{LaneId, LinkId};

/// Shorter gaps are nobody's business: no threshold lies there. They are not told of.
pub const LEAST: Duration = Duration::from_secs(1);
/// Links followed at once; more are not.
const OPEN_MAX: usize = 10_000;

/// A link that idles in a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idle {
    /// Which.
    pub link: LinkId,
    /// Where it counts.
    pub lane: LaneId,
    /// Number of this idle period.
    pub generation: u32,
    /// When it began.
    pub since: Moment,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Later {
    /// Number of the period it is in now.
    pub generation: u32,
    /// When that began.
    pub since: Moment,
    /// It is closing, or gone.
    pub ended: bool,
    /// When pgweir rolled its transaction back, if it did.
    pub reset_at: Option<Moment>,
    /// Number of the last period in which it did, also when the transaction is over.
    pub reset_period: Option<u32>,
}

/// A gap that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Where it counted.
    pub lane: LaneId,
    /// How long it was.
    pub lasted: Duration,
    /// Whether the client went on by itself: not reset, not disconnected, not hung up.
    pub honest: bool,
}

/// The gaps that are not over. `L` is whatever leads to a link.
#[derive(Debug)]
pub struct Gaps<L>(BTreeMap<LinkId, (Idle, L)>);

impl<L> Default for Gaps<L> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<L> Gaps<L> {
    /// Takes who idles now, as far as that is known, and says which gaps are over. `later` looks at a link.
    pub fn sweep(
        &mut self,
        now: Moment,
        idle: Vec<(Idle, L)>,
        later: impl Fn(LinkId, &L) -> Later,
    ) -> Vec<Gap> {
        let mut over = Vec::new();
        self.0.retain(|link, (idle, handle)| {
            let gap = ended(now, idle, later(*link, handle));
            over.extend(gap.filter(|gap| gap.lasted >= LEAST));
            gap.is_none()
        });
        for (one, handle) in idle {
            if self.0.len() < OPEN_MAX {
                self.0.entry(one.link).or_insert((one, handle));
            }
        }
        over
    }
}

/// None while it goes on.
fn ended(now: Moment, idle: &Idle, later: Later) -> Option<Gap> {
    let gap = |until: Moment, honest| Some(Gap { lane: idle.lane, lasted: until.since(idle.since), honest });
    match later.generation.wrapping_sub(idle.generation) {
        0 if later.ended => gap(now, false),
        0 => later.reset_at.and_then(|at| gap(at, false)),
        // Straight from idle to its end: the client left, or was sent away.
        1 if later.ended => gap(later.since, false),
        // A client that spoke right after it was reset has not gone on by itself.
        _ => gap(later.since, later.reset_period != Some(idle.generation)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_micros(1 + seconds * 1_000_000)
    }

    fn idle() -> Idle {
        Idle { link: LinkId(1), lane: LaneId(3), generation: 7, since: at(10) }
    }

    /// What is told of a link that idled from second 10 on, and is then found like this at second 40.
    fn told(later: Later) -> Vec<(u64, bool)> {
        let mut gaps = Gaps::default();
        let still = Later { generation: 7, since: at(10), ended: false, reset_at: None, reset_period: None };
        assert_eq!(gaps.sweep(at(12), vec![(idle(), ())], |_, ()| still), []);
        assert_eq!(gaps.sweep(at(13), vec![(idle(), ())], |_, ()| still), [], "it goes on");
        let over = gaps.sweep(at(40), Vec::new(), |_, ()| later);
        assert_eq!(gaps.sweep(at(41), Vec::new(), |_, ()| later), [], "told once");
        over.iter().map(|gap| (gap.lasted.as_secs(), gap.honest && gap.lane == LaneId(3))).collect()
    }

    #[test]
    fn a_client_that_goes_on_ends_its_gap_honestly() {
        let next = Later { generation: 8, since: at(30), ended: false, reset_at: None, reset_period: None };
        assert_eq!(told(next), [(20, true)]);
        // It has said more than one thing since, or is closing in good order after a COMMIT.
        assert_eq!(told(Later { generation: 12, since: at(31), ..next }), [(21, true)]);
        assert_eq!(told(Later { generation: 11, since: at(31), ended: true, ..next }), [(21, true)]);
        assert_eq!(told(Later { since: Moment::from_micros(10_900_000), ..next }), [], "not worth a word");
    }

    #[test]
    fn what_is_reset_disconnected_or_left_is_not_honest() {
        let later = Later {
            generation: 7,
            since: at(10),
            ended: false,
            reset_at: Some(at(25)),
            reset_period: Some(7),
        };
        assert_eq!(told(later), [(15, false)]);
        assert_eq!(
            told(Later { generation: 8, since: at(30), ended: true, reset_at: None, reset_period: None }),
            [(20, false)]
        );
        assert_eq!(
            told(Later { ended: true, reset_at: None, ..later }),
            [(30, false)],
            "gone without a word"
        );
    }

    #[test]
    fn a_client_that_speaks_right_after_its_reset_has_not_gone_on_by_itself() {
        // Between two sweeps it got its error, sent ROLLBACK, and perhaps began anew.
        for generation in [8, 9, 12] {
            let later =
                Later { generation, since: at(26), ended: false, reset_at: None, reset_period: Some(7) };
            assert_eq!(told(later), [(16, false)]);
            // That of another period says nothing of this one.
            for other in [6, 8, 10] {
                assert_eq!(told(Later { reset_period: Some(other), ..later }), [(16, true)]);
            }
        }
    }

    #[test]
    fn as_many_are_followed_as_there_is_room_for() {
        let mut gaps = Gaps::default();
        let links = (0..20_000).map(|n| (Idle { link: LinkId(n), ..idle() }, ())).collect();
        let still = Later { generation: 7, since: at(10), ended: false, reset_at: None, reset_period: None };
        gaps.sweep(at(12), links, |_, ()| still);
        assert_eq!(gaps.0.len(), OPEN_MAX);
        assert_eq!(
            gaps.sweep(at(13), Vec::new(), |_, ()| Later { generation: 8, since: at(12), ..still }).len(),
            OPEN_MAX
        );
    }
}
