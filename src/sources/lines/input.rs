//! Bytes with their offset, which can be put back or read ahead.

use std::io::{self, BufRead};

use super::HEAD_BYTES;

pub(super) struct Input<R> {
    input: R,
    /// Put back, or read ahead.
    ahead: Vec<u8>,
    consumed: usize,
    offset: u64,
    /// The content's first bytes, as far as they were read.
    head: Vec<u8>,
}

impl<R: BufRead> Input<R> {
    /// `input` is at `offset` of the content; `head` holds the content's first bytes, unless
    /// `offset` is 0.
    pub fn new(input: R, offset: u64, head: &[u8]) -> Self {
        let head = if offset == 0 {
            Vec::new()
        } else {
            head[..head.len().min(HEAD_BYTES)].to_vec()
        };
        Self {
            input,
            ahead: Vec::new(),
            consumed: 0,
            offset,
            head,
        }
    }

    /// Offset of the next byte in the content.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The first bytes of the content, as far as they are known.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// The bytes that come next; none at the end.
    pub fn fill(&mut self) -> io::Result<&[u8]> {
        if self.consumed < self.ahead.len() {
            Ok(&self.ahead[self.consumed..])
        } else {
            self.input.fill_buf()
        }
    }

    /// Moves on by bytes that [`Self::fill`] returned.
    pub fn consume(&mut self, bytes: usize) {
        let known = self.head.len() as u64;
        if known < HEAD_BYTES as u64 && self.offset <= known && known < self.offset + bytes as u64 {
            self.extend_head((known - self.offset) as usize, bytes);
        }
        if self.consumed < self.ahead.len() {
            self.consumed += bytes;
            if self.consumed >= self.ahead.len() {
                self.ahead.clear();
                self.consumed = 0;
            }
        } else {
            self.input.consume(bytes);
        }
        self.offset += bytes as u64;
    }

    fn extend_head(&mut self, from: usize, to: usize) {
        let next = if self.consumed < self.ahead.len() {
            &self.ahead[self.consumed..]
        } else {
            // Bytes that are consumed were filled before.
            self.input.fill_buf().unwrap_or_default()
        };
        let to = to.min(from + HEAD_BYTES - self.head.len()).min(next.len());
        self.head
            .extend_from_slice(next.get(from..to).unwrap_or_default());
    }

    /// The next byte; none at the end.
    pub fn peek(&mut self) -> io::Result<Option<u8>> {
        Ok(self.fill()?.first().copied())
    }

    /// Returns the bytes that were consumed last to the input.
    pub fn put_back(&mut self, bytes: &[u8]) {
        self.ahead.splice(..self.consumed, bytes.iter().copied());
        self.consumed = 0;
        self.offset -= bytes.len() as u64;
    }

    /// Reads more bytes ahead; false at the end.
    pub fn read_ahead(&mut self) -> io::Result<bool> {
        let more = self.input.fill_buf()?;
        let length = more.len().min(HEAD_BYTES);
        self.ahead.extend_from_slice(&more[..length]);
        self.input.consume(length);
        Ok(length > 0)
    }

    /// The bytes read ahead.
    pub fn ahead(&self) -> &[u8] {
        &self.ahead[self.consumed..]
    }

    /// The underlying input, which is positioned after the bytes read ahead.
    pub fn source(&self) -> &R {
        &self.input
    }

    /// Whether a byte is among those read ahead or those buffered after them.
    pub fn has_byte(&self, byte: u8, buffered: &[u8]) -> bool {
        memchr::memchr(byte, self.ahead()).is_some() || memchr::memchr(byte, buffered).is_some()
    }

    /// Whether these bytes come next.
    pub fn starts_with(&mut self, bytes: &[u8]) -> io::Result<bool> {
        if self.peek()? != bytes.first().copied() {
            return Ok(false);
        }
        while self.ahead().len() < bytes.len() && self.read_ahead()? {}
        Ok(self.ahead().starts_with(bytes))
    }
}
