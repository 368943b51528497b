//! A map by [`LinkId`] for ids that mostly ascend, in order of id: pages of neighbours, filled to the brim. A B-tree filled in order
//! keeps half of every node empty.

use std::collections::BTreeMap;

use super::ids::LinkId;

/// Ids of a page, as a power of two.
const PAGE_BITS: u32 = 5;

/// A page with less room than this is left alone.
const SHRINK_FROM: usize = 8;

/// See the module. At most [`PAGE_BITS`]-many ids share a page, so that every step in one is bounded.
#[derive(Debug)]
pub struct Pages<T>(BTreeMap<u64, Vec<(LinkId, T)>>);

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

fn page_of(id: LinkId) -> u64 {
    id.0 >> PAGE_BITS
}

fn find<T>(page: &[(LinkId, T)], id: LinkId) -> Result<usize, usize> {
    page.binary_search_by_key(&id, |(known, _)| *known)
}

impl<T> Pages<T> {
    /// The value of an id.
    pub fn get(&self, id: LinkId) -> Option<&T> {
        let page = self.0.get(&page_of(id))?;
        Some(&page[find(page, id).ok()?].1)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, id: LinkId) -> Option<&mut T> {
        let page = self.0.get_mut(&page_of(id))?;
        let at = find(page, id).ok()?;
        Some(&mut page[at].1)
    }

    /// Sets the value of an id; gives back the one it had.
    pub fn insert(&mut self, id: LinkId, value: T) -> Option<T> {
        let page = self.0.entry(page_of(id)).or_default();
        match find(page, id) {
            Ok(at) => Some(std::mem::replace(&mut page[at].1, value)),
            Err(at) => {
                page.insert(at, (id, value));
                None
            }
        }
    }

    /// Takes an id out. A page that lost three quarters of what it has room for is made smaller.
    pub fn remove(&mut self, id: LinkId) -> Option<T> {
        let page = self.0.get_mut(&page_of(id))?;
        let (_, value) = page.remove(find(page, id).ok()?);
        if page.is_empty() {
            self.0.remove(&page_of(id));
        } else if page.capacity() >= SHRINK_FROM && page.len() <= page.capacity() / 4 {
            page.shrink_to_fit();
        }
        Some(value)
    }

    /// All of them, by id.
    pub fn iter(&self) -> impl Iterator<Item = (LinkId, &T)> {
        self.0.values().flatten().map(|(id, value)| (*id, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever is done, it holds what a map of the standard library would, in the same order.
        #[test]
        fn it_is_an_ordered_map(steps in prop::collection::vec((any::<bool>(), 0_u64..200), 0..400)) {
            let mut pages = Pages::default();
            let mut model = BTreeMap::new();
            for (n, (inserts, id)) in steps.into_iter().enumerate() {
                let id = LinkId(id);
                if inserts {
                    prop_assert_eq!(pages.insert(id, n), model.insert(id, n));
                } else {
                    prop_assert_eq!(pages.remove(id), model.remove(&id));
                }
                prop_assert_eq!(pages.get(id), model.get(&id));
                prop_assert_eq!(pages.get_mut(id), model.get_mut(&id));
            }
            let all: Vec<_> = pages.iter().map(|(id, value)| (id, *value)).collect();
            prop_assert_eq!(all, model.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_is_gone_takes_no_room() {
        let mut pages = Pages::default();
        (0..1000).for_each(|id| assert!(pages.insert(LinkId(id), ()).is_none()));
        let (kept, gone): (Vec<_>, Vec<_>) = (0..1000).map(LinkId).partition(|id| id.0 % 32 == 7);
        gone.into_iter().for_each(|id| assert!(pages.remove(id).is_some()));
        assert!(pages.0.values().all(|page| page.len() == 1 && page.capacity() < 4));
        kept.into_iter().for_each(|id| assert!(pages.remove(id).is_some()));
        assert!(pages.0.is_empty());
    }
}
