//! Which idle links to close for those who wait.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::clock::Moment;
use crate::lanes::ids::{LaneId, LinkId};
use crate::lanes::needs::ReclaimNeed;

/// A link idle outside a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleLink {
    /// Which.
    pub link: LinkId,
    /// Its lane.
    pub lane: LaneId,
    /// Since when it is idle.
    pub idle_since: Moment,
    /// Of this idle period: the link is left alone if the client spoke in between.
    pub generation: u64,
    /// Whether it LISTENs: never closed, its notifications would be lost unseen.
    pub listening: bool,
    /// Whether the monitor sees it hold an advisory lock: never closed.
    pub advisory_lock: bool,
}

/// The links to close, oldest first, each with the generation for which that holds.
pub fn choose(now: Moment, needs: &[ReclaimNeed], idle: &[IdleLink]) -> Vec<(LinkId, u64)> {
    let mut oldest: Vec<&IdleLink> =
        idle.iter().filter(|link| !link.listening && !link.advisory_lock).collect();
    oldest.sort_by_key(|link| (link.idle_since, link.link));
    let mut taken = BTreeSet::new();
    let mut chosen = Vec::new();
    for need in needs {
        let patience = |lane: LaneId| -> Option<Duration> {
            need.lanes.iter().find(|(one, _)| *one == lane).map(|(_, after)| *after)
        };
        let fits = |link: &IdleLink| {
            patience(link.lane).is_some_and(|after| now.since(link.idle_since) >= after)
                && need.among.as_ref().is_none_or(|among| among.contains(&link.link))
        };
        let mut left = need.count;
        for link in &oldest {
            if left > 0 && fits(link) && taken.insert(link.link) {
                chosen.push((link.link, link.generation));
                left -= 1;
            }
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle(link: u64, lane: u16, since: u64) -> IdleLink {
        IdleLink {
            link: LinkId(link),
            lane: LaneId(lane),
            idle_since: Moment::from_micros(since),
            generation: link * 10,
            listening: false,
            advisory_lock: false,
        }
    }

    fn need(lanes: &[u16], count: u32) -> ReclaimNeed {
        let lanes = lanes.iter().map(|lane| (LaneId(*lane), Duration::from_micros(50))).collect();
        ReclaimNeed { lanes, among: None, count }
    }

    #[test]
    fn the_oldest_idle_links_of_the_lanes_concerned() {
        let mut links =
            [idle(1, 0, 30), idle(2, 0, 10), idle(3, 1, 5), idle(4, 0, 20), idle(5, 0, 80), idle(6, 0, 1)];
        links[5].listening = true;
        let now = Moment::from_micros(100);
        assert_eq!(choose(now, &[need(&[0], 2)], &links), [(LinkId(2), 20), (LinkId(4), 40)]);
        assert_eq!(
            choose(now, &[need(&[0], 9)], &links).len(),
            3,
            "5 is not idle for long enough, 6 listens"
        );
        links[1].advisory_lock = true;
        assert_eq!(choose(now, &[need(&[0], 1)], &links), [(LinkId(4), 40)]);
    }

    #[test]
    fn one_link_helps_one_waiter() {
        let links = [idle(1, 0, 1), idle(2, 0, 2)];
        let mut only_second = need(&[0], 1);
        only_second.among = Some([LinkId(2)].into());
        let chosen = choose(Moment::from_micros(100), &[need(&[0], 1), only_second, need(&[0], 1)], &links);
        assert_eq!(chosen, [(LinkId(1), 10), (LinkId(2), 20)]);
    }
}
