//! Headers: one type byte and a length that counts itself ("Message Formats").

use crate::reason::Reason;

/// Bytes of a typed message's header.
pub const HEADER_LEN: usize = 5;

/// The largest message accepted from a peer, in bytes without its type byte: PostgreSQL's own PQ_LARGE_MESSAGE_LIMIT
/// (MaxAllocSize less one).
pub const MESSAGE_LEN_MAX: u32 = 0x3fff_ffff;

/// A header found in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Type byte.
    pub tag: u8,
    /// Body bytes behind the header.
    pub body_len: u32,
}

impl Header {
    /// Reads a header from the first bytes of `buf`; `None` while fewer than five are there.
    ///
    /// # Errors
    /// `Malformed` for a length below 4, `Oversized` above [`MESSAGE_LEN_MAX`].
    #[inline]
    pub fn read(buf: &[u8]) -> Result<Option<Self>, Reason> {
        let Some(head) = buf.first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        if len < 4 {
            return Err(Reason::Malformed);
        }
        if len > MESSAGE_LEN_MAX {
            return Err(Reason::Oversized);
        }
        Ok(Some(Self { tag: head[0], body_len: len - 4 }))
    }

    /// Header and body together, in bytes.
    #[inline]
    pub const fn total_len(self) -> usize {
        HEADER_LEN + self.body_len as usize
    }
}

/// Splits the string before the next NUL off `bytes`; `None` when there is no NUL.
#[inline]
pub fn split_cstr(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(0, bytes)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_needs_five_bytes() {
        assert_eq!(Header::read(b"Q\0\0\0"), Ok(None));
        assert_eq!(Header::read(b"Q\0\0\0\x05x"), Ok(Some(Header { tag: b'Q', body_len: 1 })));
    }

    #[test]
    fn lengths_out_of_bounds_are_refused() {
        assert_eq!(Header::read(b"Q\0\0\0\x03"), Err(Reason::Malformed));
        assert_eq!(Header::read(b"Q\xff\xff\xff\xff"), Err(Reason::Oversized));
    }
}
