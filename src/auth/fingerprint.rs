//! What is kept of a password that comes in the clear with every request (HTTP's Basic and Bearer): a keyed hash, compared in constant
//! time. Deriving SCRAM's keys each time would cost milliseconds a request. The key is the process's own and never leaves its memory, so
//! that the hash is worth nothing without it. Pure: the key comes from outside.

use std::fmt;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::keys::{Key, mac, prepared};

/// A password as it is compared: prepared by SASLprep, as SCRAM would.
pub struct Given(Zeroizing<String>);

impl Given {
    /// Of what a client sent.
    pub fn new(password: &str) -> Self {
        Self(prepared(password))
    }
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Given(…)")
    }
}

/// What is kept of a password.
#[derive(Clone)]
pub struct Fingerprint {
    key: Zeroizing<Key>,
    print: Zeroizing<Key>,
}

impl Fingerprint {
    /// Of a password, under a key made of random bytes for it alone.
    pub fn new(key: Key, password: &str) -> Self {
        let print = Zeroizing::new(mac(&key, &[prepared(password).as_bytes()]));
        Self { key: Zeroizing::new(key), print }
    }

    /// Whether it is of this password. Takes the same time for each password of one length.
    pub fn fits(&self, given: &Given) -> bool {
        let print = Zeroizing::new(mac(self.key.as_ref(), &[given.0.as_bytes()]));
        bool::from(print[..].ct_eq(&self.print[..]))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprint(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fits_its_own_password_and_no_other() {
        let one = Fingerprint::new([7; 32], "pa ss'wörd");
        assert!(one.fits(&Given::new("pa ss'wörd")));
        // As in SCRAM: a no-break space is a space.
        assert!(one.fits(&Given::new("pa\u{a0}ss'wörd")));
        for wrong in ["", "pa ss'word", "pa ss'wörd ", "Pa ss'wörd"] {
            assert!(!one.fits(&Given::new(wrong)), "{wrong}");
        }
        assert_ne!(one.print, Fingerprint::new([8; 32], "pa ss'wörd").print);
        assert_eq!(format!("{one:?} {:?}", Given::new("x")), "Fingerprint(…) Given(…)");
    }
}
