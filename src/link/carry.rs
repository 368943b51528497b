//! Bytes a client sent that wait for their turn. Pure.
//!
//! They are taken from the front, a request at a time while replies come in: what is left is not moved for each of them, or megabytes of
//! short requests would cost the square of their number.

use crate::wire::frame::Header;

/// Bytes that wait; no memory when there are none.
#[derive(Debug, Default)]
pub struct Carry {
    bytes: Vec<u8>,
    head: usize,
}

impl From<Vec<u8>> for Carry {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, head: 0 }
    }
}

impl Carry {
    /// What waits.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[self.head..]
    }

    /// How many bytes wait.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.head
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts bytes behind those that wait.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Waits for these bytes only.
    #[inline]
    pub fn replace(&mut self, bytes: &[u8]) {
        self.bytes.clear();
        self.head = 0;
        if !bytes.is_empty() {
            self.bytes.extend_from_slice(bytes);
        } else if self.bytes.capacity() > 0 {
            self.bytes = Vec::new();
        }
    }

    /// The first `n` bytes have had their turn.
    pub fn take(&mut self, n: usize) {
        self.head += n.min(self.len());
        if self.is_empty() {
            *self = Self::default();
        } else if self.head > self.bytes.len() / 2 {
            // Moves fewer bytes than were taken since the last time.
            self.bytes.drain(..self.head);
            self.head = 0;
        }
    }

    /// Whether a Terminate is among the messages that wait, of which the first begins where they do.
    pub fn has_terminate(&self) -> bool {
        let mut rest = self.as_slice();
        while let Ok(Some(header)) = Header::read(rest) {
            if header.tag == b'X' {
                return true;
            }
            rest = rest.get(header.total_len()..).unwrap_or_default();
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::reply;

    #[test]
    fn bytes_come_out_as_they_went_in_and_leave_no_memory() {
        let mut carry = Carry::default();
        let (mut put, mut taken) = (0_u32, Vec::new());
        for step in 0..200 {
            (0..step % 7).for_each(|_| {
                carry.push(&put.to_be_bytes());
                put += 1;
            });
            let n = carry.len().min(step % 13);
            taken.extend_from_slice(&carry.as_slice()[..n]);
            carry.take(n);
        }
        taken.extend_from_slice(carry.as_slice());
        carry.take(usize::MAX);
        assert_eq!(taken, (0..put).flat_map(u32::to_be_bytes).collect::<Vec<_>>());
        assert_eq!((carry.is_empty(), carry.bytes.capacity(), carry.head), (true, 0, 0));
    }

    #[test]
    fn a_terminate_is_a_message_and_not_a_byte() {
        let mut bytes = Vec::new();
        reply::query(&mut bytes, "select 'X'");
        let has = |bytes: &[u8]| Carry::from(bytes.to_vec()).has_terminate();
        assert!(!has(&bytes));
        assert!(!has(&[&bytes[..], &reply::TERMINATE[..4]].concat()), "not whole");
        assert!(!has(&[&bytes[..bytes.len() - 1], &reply::TERMINATE].concat()), "inside a message");
        assert!(has(&[&bytes[..], &reply::TERMINATE].concat()));
        assert!(
            !has(&[&[b'Q', 0, 0, 0, 0][..], &reply::TERMINATE].concat()),
            "behind bytes that are no message"
        );
    }
}
