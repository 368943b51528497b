//! What is kept of a user's password, in any of PostgreSQL's forms.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::keys::{Key, Keys};
use super::md5::Shadow;
use super::scram::{MECHANISM, Mock, Verifier};
use crate::clock::Moment;

/// A secret, with what was derived from it so far. Shared by all logins of the user.
pub struct Stored {
    secret: Secret,
    /// Of a plain password: what clients are checked against.
    verifier: OnceLock<Verifier>,
    /// Of a plain password: keys for what PostgreSQL asked for lately, the last one at the end. They are good whether or not the login
    /// succeeded: without them each failure would cost a derivation anew.
    upstream: Mutex<VecDeque<Derived>>,
    /// The ClientKey a client proved to have, and when, for logins upstream without a client of its own.
    proven: Mutex<Option<(Zeroizing<Key>, Moment)>>,
}

/// How long a ClientKey is remembered after its last proof.
pub const KEY_KEPT: Duration = Duration::from_secs(600);

/// Salts for which a user's keys are kept: a password changed, and changed back; several servers behind one address.
const DERIVED_MAX: usize = 4;

/// The forms.
#[derive(PartialEq, Eq)]
pub enum Secret {
    /// As typed.
    Plain(Zeroizing<String>),
    /// `md5` and 32 digits.
    Md5(Shadow),
    /// `SCRAM-SHA-256$…`.
    Scram(Verifier),
}

struct Derived {
    salt: Vec<u8>,
    iterations: u32,
    keys: Keys,
}

/// A text that begins like a verifier and is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("begins with SCRAM-SHA-256$ and is no verifier")]
pub struct BadVerifier;

impl Stored {
    /// Reads a secret as PostgreSQL tells its forms apart; none for an empty one, with which nobody logs in.
    ///
    /// # Errors
    /// [`BadVerifier`]: it must not be taken for a plain password.
    pub fn parse(text: &str) -> Result<Option<Arc<Self>>, BadVerifier> {
        let hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
        let secret = if text.is_empty() {
            return Ok(None);
        } else if text.strip_prefix(MECHANISM).is_some_and(|rest| rest.starts_with('$')) {
            Secret::Scram(Verifier::parse(text).ok_or(BadVerifier)?)
        } else if let Some(digits) = text.strip_prefix("md5").filter(|rest| rest.len() == 32 && hex(rest)) {
            let mut shadow = Zeroizing::new([0; 32]);
            shadow.copy_from_slice(digits.as_bytes());
            shadow.make_ascii_lowercase();
            Secret::Md5(shadow)
        } else {
            Secret::Plain(Zeroizing::new(text.to_owned()))
        };
        Ok(Some(Arc::new(Self::of(secret))))
    }

    fn of(secret: Secret) -> Self {
        Self { secret, verifier: OnceLock::new(), upstream: Mutex::default(), proven: Mutex::new(None) }
    }

    /// The secret itself.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// Whether it is the same secret.
    pub fn is_same(&self, other: &Self) -> bool {
        self.secret == other.secret
    }

    /// What SCRAM checks the user against; none for MD5. Of a plain password it is made once, with the salt the mock of that name
    /// would have: some milliseconds.
    pub fn verifier(&self, user: &str, mock: &Mock) -> Option<&Verifier> {
        match &self.secret {
            Secret::Scram(verifier) => Some(verifier),
            Secret::Md5(_) => None,
            Secret::Plain(password) => Some(self.verifier.get_or_init(|| {
                let salt = mock.salt(user);
                let keys = Keys::derive(password, &salt, mock.iterations());
                Verifier::from_keys(&keys, salt, mock.iterations())
            })),
        }
    }

    /// Whether checking a client means deriving first: see [`Self::verifier`].
    pub fn must_derive(&self) -> bool {
        matches!(self.secret, Secret::Plain(_)) && self.verifier.get().is_none()
    }

    /// Whether keys for a salt would have to be derived: see [`Self::keys_for`].
    pub fn must_derive_for(&self, salt: &[u8], iterations: u32) -> bool {
        matches!(self.secret, Secret::Plain(_)) && self.kept_for(salt, iterations).is_none()
    }

    fn kept_for(&self, salt: &[u8], iterations: u32) -> Option<Keys> {
        let kept = self.upstream.lock();
        let fits = |derived: &&Derived| derived.salt == salt && derived.iterations == iterations;
        kept.iter().find(fits).map(|derived| derived.keys.clone())
    }

    /// Keys for a salt PostgreSQL asks for, of a plain password; derived where they are not kept: some 0.5 µs an iteration.
    pub fn keys_for(&self, salt: &[u8], iterations: u32) -> Option<Keys> {
        let Secret::Plain(password) = &self.secret else { return None };
        if let Some(keys) = self.kept_for(salt, iterations) {
            return Some(keys);
        }
        // Not under the lock: others have theirs already.
        let keys = Keys::derive(password, salt, iterations);
        let mut kept = self.upstream.lock();
        if kept.len() >= DERIVED_MAX {
            kept.pop_front();
        }
        kept.push_back(Derived { salt: salt.to_vec(), iterations, keys: keys.clone() });
        Some(keys)
    }

    /// Keeps a ClientKey that a client has proved to have.
    pub fn remember(&self, client_key: &Zeroizing<Key>, now: Moment) {
        if matches!(self.secret, Secret::Scram(_)) {
            *self.proven.lock() = Some((client_key.clone(), now));
        }
    }

    /// The ClientKey remembered, if any.
    pub fn proven(&self) -> Option<Zeroizing<Key>> {
        self.proven.lock().as_ref().map(|(key, _)| key.clone())
    }

    /// Forgets a ClientKey that nobody has proved to have for [`KEY_KEPT`].
    pub fn clean(&self, now: Moment) {
        self.proven.lock().take_if(|(_, at)| now.since(*at) >= KEY_KEPT);
    }

    /// Forgets it: PostgreSQL did not take it.
    pub fn forget(&self) {
        *self.proven.lock() = None;
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = match self.secret {
            Secret::Plain(_) => "plain",
            Secret::Md5(_) => "md5",
            Secret::Scram(_) => "scram",
        };
        write!(f, "Stored({form})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Arc<Stored> {
        Stored::parse(text).expect("well-formed").expect("not empty")
    }

    #[test]
    fn forms_are_told_apart_as_postgresql_does() {
        assert!(matches!(of("secret").secret(), Secret::Plain(text) if text.as_str() == "secret"));
        assert!(
            matches!(of(&format!("md5{}", "0A".repeat(16))).secret(), Secret::Md5(digits) if digits[..2] == *b"0a")
        );
        // Too short, or no digits: a password like any other.
        assert!(matches!(of("md5abc").secret(), Secret::Plain(_)));
        assert!(matches!(of(&format!("md5{}", "zz".repeat(16))).secret(), Secret::Plain(_)));
        let verifier = postgres_protocol::password::scram_sha_256(b"secret");
        assert!(matches!(of(&verifier).secret(), Secret::Scram(_)));
        assert_eq!(Stored::parse("SCRAM-SHA-256$4096:x").err(), Some(BadVerifier));
        assert!(Stored::parse("").expect("well-formed").is_none());
        assert!(of("a").is_same(&of("a")) && !of("a").is_same(&of("b")));
    }

    #[test]
    fn nothing_shows_a_secret() {
        for text in ["hunter2", &format!("md5{}", "0a".repeat(16))] {
            assert!(!format!("{:?}", of(text)).contains(&text[..5]), "{text}");
        }
    }

    #[test]
    fn a_proven_key_is_kept_for_a_while_and_only_where_it_is_needed() {
        let key = Zeroizing::new([1; 32]);
        let at = |s: u64| Moment::from_micros(s * 1_000_000);
        let scram = of(&postgres_protocol::password::scram_sha_256(b"secret"));
        scram.remember(&key, at(0));
        scram.clean(at(599));
        assert!(scram.proven().is_some());
        scram.clean(at(600));
        assert!(scram.proven().is_none());
        scram.remember(&key, at(601));
        scram.forget();
        assert!(scram.proven().is_none());
        let plain = of("secret");
        plain.remember(&key, at(0));
        assert!(plain.proven().is_none());
    }

    #[test]
    fn keys_follow_the_salt() {
        let stored = of("secret");
        let first = stored.keys_for(b"one", 2).expect("plain");
        assert_eq!(stored.keys_for(b"one", 2).expect("plain"), first);
        assert_ne!(stored.keys_for(b"two", 2).expect("plain"), first);
        assert_eq!(first, Keys::derive("secret", b"one", 2));
        stored.forget();
        assert!(!stored.must_derive_for(b"one", 2), "a login that failed is no reason to derive again");
        assert!(stored.must_derive_for(b"one", 3) && stored.must_derive());
        for salt in 0..100_u8 {
            stored.keys_for(&[salt], 1);
        }
        assert_eq!(stored.upstream.lock().len(), DERIVED_MAX);
        assert!(stored.must_derive_for(b"one", 2) && !stored.must_derive_for(&[99], 1));
        assert!(of(&format!("md5{}", "0a".repeat(16))).keys_for(b"one", 2).is_none());
    }
}
