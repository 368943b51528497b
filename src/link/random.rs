//! Random bytes for logins: nonces, salts, cancel keys. All of them are the system's; a thread draws them for some forty logins at once,
//! because the call costs more than the bytes.

use std::cell::RefCell;

use zeroize::Zeroize;

/// Bytes drawn at once.
const DRAWN: usize = 1024;

struct Drawn {
    bytes: [u8; DRAWN],
    /// So many at the front have not been given out.
    left: usize,
}

impl Drop for Drawn {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

thread_local! {
    static HERE: RefCell<Drawn> = const { RefCell::new(Drawn { bytes: [0; DRAWN], left: 0 }) };
}

/// Fills `out` with bytes that nobody else is given. None when the system has no more; what is in `out` then is to be thrown away.
#[must_use]
pub fn fill(out: &mut [u8]) -> Option<()> {
    HERE.with_borrow_mut(|drawn| {
        for part in out.chunks_mut(DRAWN) {
            if part.len() > drawn.left {
                drawn.left = 0;
                getrandom::fill(&mut drawn.bytes).ok()?;
                drawn.left = DRAWN;
            }
            let rest = drawn.left - part.len();
            let given = &mut drawn.bytes[rest..drawn.left];
            part.copy_from_slice(given);
            // What is given out is kept by whoever asked, and nowhere else.
            given.zeroize();
            drawn.left = rest;
        }
        Some(())
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn nothing_is_given_out_twice_or_kept() {
        let mut seen = HashSet::new();
        for _ in 0..3 * DRAWN / 16 {
            let mut bytes = [0; 16];
            fill(&mut bytes).expect("bytes");
            assert!(seen.insert(bytes), "twice");
        }
        HERE.with_borrow(|drawn| assert!(drawn.bytes[drawn.left..].iter().all(|byte| *byte == 0)));
    }

    #[test]
    fn any_length_is_filled() {
        for len in [0, 1, 22, DRAWN - 1, DRAWN, DRAWN + 1, 3 * DRAWN] {
            let mut bytes = vec![0; len];
            fill(&mut bytes).expect("bytes");
            // Of a long run of zeroes nobody would believe that it is random.
            assert!(bytes.chunks_exact(16).all(|chunk| chunk.iter().any(|byte| *byte != 0)), "{len}");
        }
    }
}
