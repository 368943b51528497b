//! Who waits for a slot in a lane, in order.

use std::collections::BTreeMap;

use super::ids::LinkId;
use crate::clock::Moment;

/// A place in a lane's queue: nested arrivals first, then first come first served. A link keeps its place over redials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// False sorts first: nested.
    ordinary: bool,
    /// When it came.
    pub since: Moment,
    /// Arrivals of the same moment, in order.
    seq: u64,
}

impl Place {
    /// The place of those who do not wait: no arrival is the 0th.
    pub const NOWHERE: Self = Self { ordinary: true, since: Moment::from_micros(0), seq: 0 };

    /// The place of the `seq`th arrival.
    pub fn new(nested: bool, since: Moment, seq: u64) -> Self {
        Self { ordinary: !nested, since, seq }
    }

    /// Whether it is the place of a nested arrival.
    pub fn nested(&self) -> bool {
        !self.ordinary
    }
}

/// A lane's queue. Bounded by the lane's `max_waiting` where links arrive.
#[derive(Clone, Debug, Default)]
pub struct Queue(BTreeMap<Place, LinkId>);

impl Queue {
    /// Puts a link in its place.
    pub fn insert(&mut self, place: Place, link: LinkId) {
        self.0.insert(place, link);
    }

    /// Takes a link out; false if it was not there.
    pub fn remove(&mut self, place: Place) -> bool {
        self.0.remove(&place).is_some()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In order of service.
    pub fn iter(&self) -> impl Iterator<Item = (Place, LinkId)> + '_ {
        self.0.iter().map(|(place, link)| (*place, *link))
    }

    /// The nested arrival that came first.
    pub fn first_nested(&self) -> Option<Place> {
        self.0.first_key_value().map(|(place, _)| *place).filter(Place::nested)
    }

    /// The ordinary arrival that came first.
    pub fn first_ordinary(&self) -> Option<Place> {
        let from = Place { ordinary: true, since: Moment::default(), seq: 0 };
        self.0.range(from..).next().map(|(place, _)| *place)
    }

    fn oldest_place(&self) -> Option<Place> {
        let firsts = [self.first_nested(), self.first_ordinary()];
        firsts.into_iter().flatten().min_by_key(|place| (place.since, place.seq))
    }

    /// When the one who waits longest came.
    pub fn oldest(&self) -> Option<Moment> {
        self.oldest_place().map(|place| place.since)
    }

    /// Who waits longest.
    pub fn oldest_link(&self) -> Option<LinkId> {
        self.0.get(&self.oldest_place()?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_arrivals_go_first_and_the_rest_in_order() {
        let at = |micros| Moment::from_micros(micros);
        let mut queue = Queue::default();
        queue.insert(Place::new(false, at(1), 0), LinkId(1));
        queue.insert(Place::new(false, at(1), 1), LinkId(2));
        queue.insert(Place::new(true, at(9), 2), LinkId(3));
        assert_eq!(queue.iter().map(|(_, link)| link.0).collect::<Vec<_>>(), [3, 1, 2]);
        assert_eq!((queue.oldest(), queue.oldest_link()), (Some(at(1)), Some(LinkId(1))));
        assert_eq!(queue.first_nested().map(|place| place.since), Some(at(9)));
        assert!(queue.remove(Place::new(true, at(9), 2)) && !queue.remove(Place::new(true, at(9), 2)));
        assert_eq!((queue.first_nested(), queue.len()), (None, 2));
    }
}
