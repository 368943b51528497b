//! PostgreSQL's MD5 passwords, for old users only.

use ::md5::{Digest, Md5};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// The 32 hexadecimal digits PostgreSQL keeps behind `md5`: of password and user name.
pub type Shadow = Zeroizing<[u8; 32]>;

/// What PostgreSQL keeps of a password.
pub fn shadow(password: &str, user: &str) -> Shadow {
    hex(&[password.as_bytes(), user.as_bytes()])
}

/// What a client answers to a salt: `md5` and 32 digits.
pub fn answer(shadow: &Shadow, salt: [u8; 4]) -> Zeroizing<Vec<u8>> {
    let digits = hex(&[shadow.as_ref(), &salt]);
    let mut out = Zeroizing::new(Vec::with_capacity(36));
    out.extend_from_slice(b"md5");
    out.extend_from_slice(digits.as_ref());
    out
}

/// Whether an answer is right, in constant time for answers of the right length.
pub fn fits(shadow: &Shadow, salt: [u8; 4], given: &[u8]) -> bool {
    bool::from(answer(shadow, salt).ct_eq(given))
}

fn hex(parts: &[&[u8]]) -> Shadow {
    let mut hash = Md5::new();
    parts.iter().for_each(|part| hash.update(part));
    let mut out = Zeroizing::new([0; 32]);
    for (digits, byte) in out.chunks_exact_mut(2).zip(hash.finalize()) {
        digits[0] = DIGITS[usize::from(byte >> 4)];
        digits[1] = DIGITS[usize::from(byte & 15)];
    }
    out
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_those_of_the_drivers_library() {
        let shadow = shadow("pässword", "old user");
        let theirs =
            postgres_protocol::authentication::md5_hash(b"old user", "pässword".as_bytes(), [1, 2, 3, 4]);
        assert_eq!(answer(&shadow, [1, 2, 3, 4]).as_slice(), theirs.as_bytes());
        assert!(fits(&shadow, [1, 2, 3, 4], theirs.as_bytes()));
        assert!(!fits(&shadow, [1, 2, 3, 5], theirs.as_bytes()));
        assert!(!fits(&shadow, [1, 2, 3, 4], b"md5"));
    }
}
