//! What a step of a session sends on: a run of the bytes just read, as they are, or, once anything had to be left out or put in, a
//! buffer of its own.

use std::ops::Range;

/// Collects output. The common case is one contiguous range of the input and copies nothing.
#[derive(Debug)]
pub struct Out<'a> {
    input: &'a [u8],
    range: Range<usize>,
    spilled: &'a mut Vec<u8>,
    is_spilled: bool,
}

impl<'a> Out<'a> {
    /// Output over `input`; `spare` is used only when ranges are not contiguous.
    pub fn new(input: &'a [u8], spare: &'a mut Vec<u8>) -> Self {
        spare.clear();
        Self { input, range: 0..0, spilled: spare, is_spilled: false }
    }

    /// Sends input bytes on as they are. Ranges come in order.
    #[inline]
    pub fn forward(&mut self, range: Range<usize>) {
        if self.is_spilled {
            self.spilled.extend_from_slice(&self.input[range]);
        } else if self.range.is_empty() {
            self.range = range;
        } else if self.range.end == range.start {
            self.range.end = range.end;
        } else {
            self.spill();
            self.spilled.extend_from_slice(&self.input[range]);
        }
    }

    /// Sends bytes of our own; what `write` appends goes out behind all that was sent so far.
    pub fn insert(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.spill();
        write(self.spilled);
    }

    fn spill(&mut self) {
        if !self.is_spilled {
            self.is_spilled = true;
            self.spilled.extend_from_slice(&self.input[self.range.clone()]);
        }
    }

    /// All that is to be sent.
    pub fn bytes(&self) -> &[u8] {
        if self.is_spilled { self.spilled } else { &self.input[self.range.clone()] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contiguous_ranges_are_not_copied_and_others_keep_their_order() {
        let input = b"abcdef";
        let mut spare = Vec::new();
        let mut out = Out::new(input, &mut spare);
        out.forward(0..2);
        out.forward(2..3);
        assert!(!out.is_spilled);
        out.forward(4..5);
        out.insert(|v| v.extend_from_slice(b"XY"));
        out.forward(5..6);
        assert_eq!(out.bytes(), b"abceXYf");
    }
}
