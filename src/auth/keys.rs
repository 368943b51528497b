//! The keys of SCRAM-SHA-256 (RFC 5802, section 3), made by libraries.

use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// A key, or anything else of SHA-256's length.
pub type Key = [u8; 32];

/// HMAC-SHA-256 over the parts one after the other.
pub fn mac(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

/// StoredKey: what is kept of a ClientKey.
pub fn stored_key(client_key: &Key) -> Key {
    Sha256::digest(client_key).into()
}

/// Byte by byte exclusive or.
pub fn xor(a: &Key, b: &Key) -> Zeroizing<Key> {
    let mut out = Zeroizing::new(*a);
    out.iter_mut().zip(b).for_each(|(byte, mask)| *byte ^= mask);
    out
}

/// A password as it is compared: SASLprep (RFC 4013), or as it is where that refuses it, as PostgreSQL and libpq do.
pub fn prepared(password: &str) -> Zeroizing<String> {
    let done = stringprep::saslprep(password);
    let mut done = Zeroizing::new(done.map_or_else(|_| password.to_owned(), |text| text.into_owned()));
    if done.is_empty() {
        // PostgreSQL too takes a password as it is where nothing would be left of it.
        password.clone_into(&mut done);
    }
    done
}

/// Both sides' keys of a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    /// Proves the password to a server.
    pub client_key: Zeroizing<Key>,
    /// Proves the server to a client.
    pub server_key: Zeroizing<Key>,
}

impl Keys {
    /// Derives the keys of a password: some 0.5 µs of work an iteration.
    pub fn derive(password: &str, salt: &[u8], iterations: u32) -> Self {
        let prepared = prepared(password);
        let mut salted = Zeroizing::new(Key::default());
        pbkdf2::pbkdf2::<Hmac<Sha256>>(prepared.as_bytes(), salt, iterations, salted.as_mut())
            .expect("HMAC takes keys of any length");
        Self {
            client_key: Zeroizing::new(mac(salted.as_ref(), &[b"Client Key"])),
            server_key: Zeroizing::new(mac(salted.as_ref(), &[b"Server Key"])),
        }
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_prepared_as_postgresql_prepares_them() {
        let of = |password| Keys::derive(password, b"salt", 2);
        // RFC 4013: a soft hyphen goes, a ligature of compatibility is taken apart, a no-break space becomes a space.
        assert_eq!(of("I\u{ad}X"), of("IX"));
        assert_eq!(of("\u{2168}"), of("IX"));
        assert_eq!(of("a\u{a0}b"), of("a b"));
        assert_ne!(of("user"), of("USER"));
        // Prohibited: taken as it is.
        assert_ne!(of("\u{7}"), of(""));
        assert_eq!(format!("{:?}", of("x")), "Keys(…)");
    }
}
