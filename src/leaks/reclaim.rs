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

/// A link that works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusyLink {
    /// Which.
    pub link: LinkId,
    /// Its lane.
    pub lane: LaneId,
    /// Since when it is in its transaction or idle.
    pub since: Moment,
    /// Whether it was told to end already.
    pub yielding: bool,
}

/// The links to be told to end with their transactions: of the lanes in their order, those first whose transaction is oldest, and so probably
/// over first. Those told before count; none of a lane gives more than the lane has to give.
pub fn choose_yielding(lanes: &[(LaneId, u32)], wanted: u32, busy: &[BusyLink]) -> Vec<LinkId> {
    let told = |lane: LaneId| busy.iter().filter(|link| link.lane == lane && link.yielding).count() as u32;
    let mut left = wanted.saturating_sub(lanes.iter().map(|(lane, _)| told(*lane)).sum());
    let mut chosen = Vec::new();
    for (lane, gives) in lanes {
        let mut mine: Vec<_> = busy.iter().filter(|link| link.lane == *lane && !link.yielding).collect();
        mine.sort_by_key(|link| (link.since, link.link));
        let count = left.min(gives.saturating_sub(told(*lane)));
        chosen.extend(mine.iter().take(count as usize).map(|link| link.link));
        left -= count.min(u32::try_from(mine.len()).unwrap_or(u32::MAX));
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

    #[test]
    fn the_worst_lane_gives_first_and_who_was_told_counts() {
        let busy = |link, lane, since, yielding| BusyLink {
            link: LinkId(link),
            lane: LaneId(lane),
            since: Moment::from_micros(since),
            yielding,
        };
        let all = [busy(1, 1, 30, false), busy(2, 1, 10, false), busy(3, 2, 5, false), busy(4, 3, 1, false)];
        let lanes = [(LaneId(1), 2), (LaneId(2), 1)];
        let ids = |chosen: Vec<LinkId>| chosen.into_iter().map(|link| link.0).collect::<Vec<_>>();
        assert_eq!(ids(choose_yielding(&lanes, 1, &all)), [2]);
        assert_eq!(ids(choose_yielding(&lanes, 9, &all)), [2, 1, 3]);
        assert_eq!(ids(choose_yielding(&[(LaneId(1), 1)], 9, &all)), [2], "the rest is its reserve");
        let told = [busy(1, 1, 30, false), busy(2, 1, 10, true)];
        assert!(choose_yielding(&lanes, 1, &told).is_empty());
        assert_eq!(ids(choose_yielding(&lanes, 2, &told)), [1]);
    }
}
