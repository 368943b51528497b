//! What the auth query answered, for a while.
//!
//! Unknown users are kept as well: a storm of logins under a wrong name is no storm of queries. A login that fails takes its user out,
//! so that a changed password is good at the next try.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::stored::Stored;
use crate::clock::Moment;

/// Users kept at most.
pub const ENTRIES_MAX: usize = 2000;
/// How long an answer is good.
pub const FRESH: Duration = Duration::from_secs(60);

/// How long it is kept for when PostgreSQL cannot be asked: clients shall be able to wait for it.
pub const KEPT: Duration = Duration::from_secs(600);

/// Answers by user.
#[derive(Debug, Default)]
pub struct Memory {
    entries: HashMap<Arc<str>, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// None: there is no such user, or it has no password.
    stored: Option<Arc<Stored>>,
    at: Moment,
}

impl Memory {
    /// What is known of a user, where that is fresh enough.
    pub fn get(&self, user: &str, now: Moment) -> Option<Option<Arc<Stored>>> {
        let entry = self.entries.get(user)?;
        (now.since(entry.at) < FRESH).then(|| entry.stored.clone())
    }

    /// What was known of a user before PostgreSQL went away. Only users that exist: the login upstream is what decides.
    pub fn get_stale(&self, user: &str, now: Moment) -> Option<Arc<Stored>> {
        let entry = self.entries.get(user).filter(|entry| now.since(entry.at) < KEPT)?;
        entry.stored.clone()
    }

    /// Keeps an answer; gives what is kept: an unchanged secret keeps what was derived from it.
    pub fn put(&mut self, user: &str, found: Option<Arc<Stored>>, now: Moment) -> Option<Arc<Stored>> {
        let before = self.entries.get(user).and_then(|entry| entry.stored.clone());
        let stored = match (found, before) {
            (Some(new), Some(old)) if new.is_same(&old) => Some(old),
            (found, _) => found,
        };
        if !self.entries.contains_key(user) {
            self.make_room(now);
        }
        self.entries.insert(user.into(), Entry { stored: stored.clone(), at: now });
        stored
    }

    /// Forgets a user.
    pub fn forget(&mut self, user: &str) {
        self.entries.remove(user);
    }

    /// Forgets everybody.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// Forgets what is kept no longer, secrets with it, and keys nobody has proved to have for long.
    pub fn clean(&mut self, now: Moment) {
        self.entries.values().filter_map(|entry| entry.stored.as_ref()).for_each(|stored| stored.clean(now));
        self.entries.retain(|_, entry| {
            let kept = if entry.stored.is_some() { KEPT } else { FRESH };
            now.since(entry.at) < kept
        });
    }

    /// Users kept.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// At the bound, users that do not exist go first: they are whatever somebody made up.
    fn make_room(&mut self, now: Moment) {
        if self.entries.len() < ENTRIES_MAX {
            return;
        }
        self.clean(now);
        if self.entries.len() == ENTRIES_MAX {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| (entry.stored.is_some(), entry.at));
            let oldest = oldest.map(|(user, _)| user.clone());
            oldest.map(|user| self.entries.remove(&user));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: u64) -> Moment {
        Moment::from_micros(s * 1_000_000)
    }

    fn secret(text: &str) -> Option<Arc<Stored>> {
        Stored::parse(text).expect("well-formed")
    }

    #[test]
    fn answers_grow_old_and_failures_forget() {
        let mut memory = Memory::default();
        memory.put("odoo", secret("one"), at(0));
        memory.put("nobody", None, at(0));
        assert!(memory.get("odoo", at(59)).flatten().is_some());
        assert!(memory.get("nobody", at(59)).expect("known not to exist").is_none());
        assert!(memory.get("odoo", at(60)).is_none() && memory.get("other", at(0)).is_none());
        assert!(memory.get_stale("odoo", at(599)).is_some() && memory.get_stale("odoo", at(600)).is_none());
        assert!(memory.get_stale("nobody", at(1)).is_none());
        memory.clean(at(60));
        assert_eq!(memory.len(), 1);
        memory.forget("odoo");
        assert!(memory.get("odoo", at(0)).is_none() && memory.get_stale("odoo", at(0)).is_none());
        memory.put("odoo", secret("one"), at(0));
        memory.clean(at(600));
        assert!(memory.is_empty());
    }

    #[test]
    fn an_unchanged_secret_keeps_what_was_derived() {
        let mut memory = Memory::default();
        let first = memory.put("odoo", secret("one"), at(0)).expect("a secret");
        assert!(Arc::ptr_eq(&first, &memory.put("odoo", secret("one"), at(70)).expect("a secret")));
        assert!(!Arc::ptr_eq(&first, &memory.put("odoo", secret("two"), at(71)).expect("a secret")));
    }

    #[test]
    fn made_up_names_do_not_displace_users() {
        let mut memory = Memory::default();
        memory.put("odoo", secret("one"), at(0));
        for n in 0..2 * ENTRIES_MAX {
            memory.put(&format!("guess{n}"), None, at(1));
        }
        assert_eq!(memory.len(), ENTRIES_MAX);
        assert!(memory.get("odoo", at(1)).flatten().is_some());
    }
}
