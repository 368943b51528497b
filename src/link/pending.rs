//! What a socket did not take at once.

use std::io;

use super::side::Side;

/// Bytes a socket did not take yet. Hardly any link has some, so that it is one pointer.
#[derive(Debug, Default)]
pub struct Pending(Option<Box<Backlog>>);

#[derive(Debug)]
struct Backlog {
    bytes: Vec<u8>,
    sent: usize,
}

impl Pending {
    /// Nothing is.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |backlog| backlog.bytes.len() - backlog.sent)
    }

    /// What it is.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0.map_or_else(Vec::new, |mut backlog| backlog.bytes.split_off(backlog.sent))
    }

    /// Writes `bytes` behind what is pending; keeps what the socket does not take.
    ///
    /// # Errors
    /// The connection broke.
    #[inline]
    pub fn send(&mut self, side: &mut Side, mut bytes: &[u8]) -> io::Result<()> {
        if let Some(backlog) = &mut self.0 {
            backlog.bytes.extend_from_slice(bytes);
            return Ok(());
        }
        while !bytes.is_empty() {
            match side.send(bytes)? {
                Some(n) => bytes = &bytes[n..],
                None => {
                    self.0 = Some(Box::new(Backlog { bytes: bytes.to_vec(), sent: 0 }));
                    break;
                }
            }
        }
        Ok(())
    }

    /// Writes what is pending. True if something moved.
    ///
    /// # Errors
    /// The connection broke.
    #[inline]
    pub fn flush(&mut self, side: &mut Side) -> io::Result<bool> {
        let Some(backlog) = &mut self.0 else { return Ok(false) };
        let before = backlog.sent;
        while backlog.sent < backlog.bytes.len() {
            match side.send(&backlog.bytes[backlog.sent..])? {
                Some(n) => backlog.sent += n,
                None => return Ok(backlog.sent > before),
            }
        }
        self.0 = None;
        Ok(true)
    }
}
