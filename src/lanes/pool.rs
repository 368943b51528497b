//! Upstream connections that wait for their next client: which there are, for whom, and since when. Bookkeeping only; what may be done
//! with them is decided in `lanes/rest`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use foldhash::quality::RandomState;

use super::ids::{LaneId, LinkId};
use crate::clock::Moment;

/// Databases barred at once at most; the one whose bar ends first gives way.
const BARRED_MAX: usize = 256;

/// What a client and a pooled connection must have in common: the startup packet without its length, byte for byte. So user, database,
/// application_name, options and every other parameter whose value a reset would bring back are those of the client.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolKey(Arc<[u8]>);

impl PoolKey {
    /// Of a whole startup packet.
    pub fn new(packet: &[u8]) -> Self {
        Self(packet.get(4..).unwrap_or_default().into())
    }
}

/// A pooled connection.
#[derive(Clone, Debug)]
pub(super) struct Resting {
    pub lane: LaneId,
    pub key: PoolKey,
    /// Idle since then.
    pub since: Moment,
    /// Of those pooled at the same moment, in order.
    seq: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pool {
    resting: BTreeMap<LinkId, Resting>,
    /// The most recently used last.
    by_key: HashMap<(LaneId, PoolKey), Vec<LinkId>, RandomState>,
    by_lane: BTreeMap<LaneId, u32>,
    /// Databases whose connections are closed, and until when.
    barred: BTreeMap<Arc<str>, Moment>,
    /// Nothing is pooled any more.
    pub closed: bool,
    seq: u64,
}

impl Pool {
    pub fn is_empty(&self) -> bool {
        self.resting.is_empty()
    }

    /// How many of a lane.
    pub fn count(&self, lane: LaneId) -> u32 {
        self.by_lane.get(&lane).copied().unwrap_or(0)
    }

    /// Lanes that have some.
    pub fn lanes(&self) -> impl Iterator<Item = LaneId> {
        self.by_lane.keys().copied()
    }

    pub fn get(&self, link: LinkId) -> Option<&Resting> {
        self.resting.get(&link)
    }

    pub fn iter(&self) -> impl Iterator<Item = (LinkId, &Resting)> {
        self.resting.iter().map(|(link, resting)| (*link, resting))
    }

    /// The most recently used of a key.
    pub fn find(&self, lane: LaneId, key: &PoolKey) -> Option<LinkId> {
        if self.resting.is_empty() {
            return None;
        }
        self.by_key.get(&(lane, key.clone()))?.last().copied()
    }

    /// How many of a key.
    pub fn count_of(&self, lane: LaneId, key: &PoolKey) -> u32 {
        let links = self.by_key.get(&(lane, key.clone())).map_or(0, Vec::len);
        u32::try_from(links).unwrap_or(u32::MAX)
    }

    /// In the order in which to do without them: those unused for longest first.
    pub fn age(&self, link: LinkId) -> Option<(Moment, u64)> {
        self.resting.get(&link).map(|resting| (resting.since, resting.seq))
    }

    pub fn insert(&mut self, link: LinkId, lane: LaneId, key: PoolKey, since: Moment) {
        self.remove(link);
        self.seq += 1;
        self.by_key.entry((lane, key.clone())).or_default().push(link);
        *self.by_lane.entry(lane).or_default() += 1;
        self.resting.insert(link, Resting { lane, key, since, seq: self.seq });
    }

    /// Forgets a connection; none if it is not pooled.
    pub fn remove(&mut self, link: LinkId) -> Option<Resting> {
        let resting = self.resting.remove(&link)?;
        let key = (resting.lane, resting.key.clone());
        if let Some(links) = self.by_key.get_mut(&key) {
            links.retain(|one| *one != link);
            if links.is_empty() {
                self.by_key.remove(&key);
            }
        }
        if let Some(count) = self.by_lane.get_mut(&resting.lane) {
            *count -= 1;
            if *count == 0 {
                self.by_lane.remove(&resting.lane);
            }
        }
        Some(resting)
    }

    /// Keeps none of a database until then.
    pub fn bar(&mut self, now: Moment, database: Arc<str>, until: Moment) {
        self.barred.retain(|_, until| *until > now);
        if self.barred.len() >= BARRED_MAX
            && let Some(first) = self.barred.iter().min_by_key(|(_, until)| **until)
        {
            let first = first.0.clone();
            self.barred.remove(&first);
        }
        self.barred.insert(database, until);
    }

    pub fn is_barred(&self, now: Moment, database: &str) -> bool {
        self.barred.get(database).is_some_and(|until| *until > now)
    }

    /// Whether the indices are those of the connections: for tests, slow.
    pub fn audit(&self) -> Result<(), String> {
        let keyed: usize = self.by_key.values().map(Vec::len).sum();
        let counted: u32 = self.by_lane.values().sum();
        if keyed == self.resting.len() && counted as usize == keyed {
            Ok(())
        } else {
            Err(format!("{} pooled, {keyed} by key, {counted} by lane", self.resting.len()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> PoolKey {
        PoolKey::new(format!("____{name}").as_bytes())
    }

    #[test]
    fn the_most_recently_used_of_the_same_key_and_lane_is_found() {
        let (mut pool, at) = (Pool::default(), Moment::from_micros);
        let (a, b) = (LaneId(1), LaneId(2));
        pool.insert(LinkId(1), a, key("x"), at(1));
        pool.insert(LinkId(2), a, key("x"), at(2));
        pool.insert(LinkId(3), b, key("x"), at(3));
        assert_eq!(pool.find(a, &key("x")), Some(LinkId(2)));
        assert_eq!(pool.find(a, &key("y")), None);
        assert!(pool.remove(LinkId(2)).is_some() && pool.remove(LinkId(2)).is_none());
        assert_eq!((pool.find(a, &key("x")), pool.count(a), pool.count(b)), (Some(LinkId(1)), 1, 1));
        assert!(pool.age(LinkId(1)) < pool.age(LinkId(3)));
        assert_eq!(pool.audit(), Ok(()));
        pool.remove(LinkId(1));
        assert_eq!((pool.count(a), pool.lanes().collect()), (0, vec![b]));
    }

    #[test]
    fn a_bar_ends_and_their_number_is_bounded() {
        let (mut pool, at) = (Pool::default(), Moment::from_micros);
        pool.bar(at(1), "a".into(), at(10));
        assert!(pool.is_barred(at(9), "a") && !pool.is_barred(at(10), "a") && !pool.is_barred(at(9), "b"));
        for n in 0..1000 {
            pool.bar(at(2), format!("db{n}").into(), at(20 + n));
        }
        assert_eq!(pool.barred.len(), BARRED_MAX);
        assert!(pool.is_barred(at(9), "db999"));
    }
}
