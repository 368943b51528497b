//! Values that many links have in common, kept once.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

/// Entries from which on an insertion cleans up first.
const CLEAN_FROM: usize = 16;

/// A table of shared values. It holds at most [`CLEAN_FROM`] or twice the values that were in use at the last clean-up, whichever is
/// more; [`Interner::clean`] leaves exactly those in use.
#[derive(Debug)]
pub struct Interner<T>(Mutex<Table<T>>);

#[derive(Debug)]
struct Table<T> {
    known: HashSet<Arc<T>>,
    clean_at: usize,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self(Mutex::new(Table { known: HashSet::new(), clean_at: CLEAN_FROM }))
    }
}

impl<T: Eq + Hash> Table<T> {
    fn clean(&mut self) {
        self.known.retain(|value| Arc::strong_count(value) > 1);
        self.known.shrink_to(CLEAN_FROM);
        self.clean_at = CLEAN_FROM.max(2 * self.known.len());
    }
}

impl<T: Eq + Hash> Interner<T> {
    /// The shared copy of a value.
    pub fn share(&self, value: T) -> Arc<T> {
        let mut table = self.0.lock();
        if let Some(known) = table.known.get(&value) {
            return known.clone();
        }
        if table.known.len() >= table.clean_at {
            table.clean();
        }
        let value = Arc::new(value);
        table.known.insert(value.clone());
        value
    }

    /// Forgets what nobody uses.
    pub fn clean(&self) {
        self.0.lock().clean();
    }

    /// Values kept now.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().known.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_while_somebody_uses_them() {
        let table = Interner::default();
        let first = table.share("odoo".to_owned());
        assert!(Arc::ptr_eq(&first, &table.share("odoo".to_owned())));
        drop(table.share("gone".to_owned()));
        table.clean();
        assert_eq!(table.len(), 1);
        drop(first);
        table.clean();
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn it_stays_bounded_without_being_told() {
        let table = Interner::default();
        let kept: Vec<_> = (0..100).map(|n| table.share(n)).collect();
        (100..10_000).for_each(|n| drop(table.share(n)));
        assert!(table.len() <= 2 * kept.len() + CLEAN_FROM, "{}", table.len());
        assert!(kept.iter().enumerate().all(|(n, value)| Arc::ptr_eq(value, &table.share(n))));
    }
}
