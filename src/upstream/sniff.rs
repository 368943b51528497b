//! Reads the backend's pid off the startup messages while a driver consumes them. Pure.
//!
//! The driver keeps BackendKeyData to itself. Compared with `pg_backend_pid()` it betrays a pooler: poolers hand out an
//! invented pid, and a monitor behind one would count its own pool instead of PostgreSQL.

use crate::wire::frame::{HEADER_LEN, Header};

/// Bytes of the pid at the head of BackendKeyData.
const PID_LEN: usize = 4;

/// Where the scan is.
///
/// ```text
/// Header ─ whole, not K ─► Body(n) ─ n bytes ─► Header
///   │ K                      any: nonsense, or ReadyForQuery first ─► Done
///   ▼
///  Pid ─ four bytes ─► Done
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Header,
    Body(usize),
    Pid,
    Done,
}

/// Scans a stream of backend messages up to BackendKeyData; holds at most five bytes.
#[derive(Clone, Debug)]
pub struct KeyScan {
    at: At,
    held: [u8; HEADER_LEN],
    held_len: usize,
}

impl Default for KeyScan {
    fn default() -> Self {
        Self { at: At::Header, held: [0; HEADER_LEN], held_len: 0 }
    }
}

impl KeyScan {
    /// Whether more bytes would be looked at.
    pub fn is_done(&self) -> bool {
        self.at == At::Done
    }

    /// Takes the next bytes of the stream; returns the pid once, when its last byte is there.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Option<i32> {
        while !bytes.is_empty() {
            match self.at {
                At::Done => return None,
                At::Body(left) => {
                    let skipped = left.min(bytes.len());
                    bytes = &bytes[skipped..];
                    self.at = if skipped == left { At::Header } else { At::Body(left - skipped) };
                }
                At::Pid => {
                    bytes = self.hold(bytes, PID_LEN);
                    if let Some(pid) = self.held.first_chunk::<PID_LEN>()
                        && self.held_len == PID_LEN
                    {
                        self.at = At::Done;
                        return Some(i32::from_be_bytes(*pid));
                    }
                }
                At::Header => {
                    bytes = self.hold(bytes, HEADER_LEN);
                    if self.held_len == HEADER_LEN {
                        self.held_len = 0;
                        self.at = Self::behind(&self.held);
                    }
                }
            }
        }
        None
    }

    /// Moves bytes into the holding place until `want` are there; returns the rest.
    fn hold<'a>(&mut self, bytes: &'a [u8], want: usize) -> &'a [u8] {
        let taken = (want - self.held_len).min(bytes.len());
        self.held[self.held_len..self.held_len + taken].copy_from_slice(&bytes[..taken]);
        self.held_len += taken;
        &bytes[taken..]
    }

    /// What follows a header. Nonsense ends the scan: the driver will say what is wrong with it.
    fn behind(head: &[u8]) -> At {
        match Header::read(head) {
            Ok(Some(Header { tag: b'K', body_len })) if body_len as usize >= PID_LEN => At::Pid,
            Ok(Some(Header { tag: b'K' | b'Z', .. }) | None) | Err(_) => At::Done,
            Ok(Some(Header { body_len: 0, .. })) => At::Header,
            Ok(Some(header)) => At::Body(header.body_len as usize),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(body.len() + 4).expect("small").to_be_bytes();
        [&[tag][..], &len, body].concat()
    }

    #[test]
    fn the_pid_is_found_under_any_split() {
        let stream = [
            message(b'R', &[0, 0, 0, 0]),
            message(b'S', b"TimeZone\0UTC\0"),
            message(b'N', b""),
            message(b'K', &[0, 0, 0x30, 0x39, 1, 2, 3, 4]),
            message(b'Z', b"I"),
        ]
        .concat();
        for size in 1..=stream.len() {
            let mut scan = KeyScan::default();
            let found: Vec<i32> = stream.chunks(size).filter_map(|chunk| scan.feed(chunk)).collect();
            assert_eq!(found, [12_345], "chunks of {size}");
            assert!(scan.is_done());
        }
    }

    #[test]
    fn nonsense_and_a_missing_key_end_the_scan() {
        for stream in [message(b'Z', b"I"), message(b'K', b"ab"), b"R\0\0\0\x01".to_vec(), vec![0xff; 64]] {
            let mut scan = KeyScan::default();
            assert_eq!(scan.feed(&stream), None);
            assert!(scan.is_done(), "{stream:?}");
        }
    }
}
