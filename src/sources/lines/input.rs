//! Bytes with their position, some of which can be put back or looked at ahead.

use std::io::{self, BufRead};

use super::HEAD;

pub(super) struct Input<R> {
    input: R,
    /// Put back, or read ahead.
    ahead: Vec<u8>,
    used: usize,
    offset: u64,
    /// The content's first bytes, as far as they were seen.
    head: Vec<u8>,
}

impl<R: BufRead> Input<R> {
    /// `input` stands at `position`; `head` holds the content's first bytes, unless it is read from
    /// there.
    pub fn new(input: R, offset: u64, head: &[u8]) -> Self {
        let head = if offset == 0 {
            Vec::new()
        } else {
            head[..head.len().min(HEAD)].to_vec()
        };
        Self {
            input,
            ahead: Vec::new(),
            used: 0,
            offset,
            head,
        }
    }

    pub fn position(&self) -> u64 {
        self.offset
    }

    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// The bytes that come next; none at the end.
    pub fn fill(&mut self) -> io::Result<&[u8]> {
        if self.used < self.ahead.len() {
            Ok(&self.ahead[self.used..])
        } else {
            self.input.fill_buf()
        }
    }

    pub fn consume(&mut self, bytes: usize) {
        let seen = self.head.len() as u64;
        if seen < HEAD as u64 && self.offset <= seen && seen < self.offset + bytes as u64 {
            self.note_head((seen - self.offset) as usize, bytes);
        }
        if self.used < self.ahead.len() {
            self.used += bytes;
            if self.used >= self.ahead.len() {
                self.ahead.clear();
                self.used = 0;
            }
        } else {
            self.input.consume(bytes);
        }
        self.offset += bytes as u64;
    }

    fn note_head(&mut self, from: usize, to: usize) {
        let next = if self.used < self.ahead.len() {
            &self.ahead[self.used..]
        } else {
            // What is consumed was filled before.
            self.input.fill_buf().unwrap_or_default()
        };
        let to = to.min(from + HEAD - self.head.len()).min(next.len());
        self.head
            .extend_from_slice(next.get(from..to).unwrap_or_default());
    }

    pub fn peek(&mut self) -> io::Result<Option<u8>> {
        Ok(self.fill()?.first().copied())
    }

    /// Bytes that were consumed last come again.
    pub fn put_back(&mut self, bytes: &[u8]) {
        self.ahead.splice(..self.used, bytes.iter().copied());
        self.used = 0;
        self.offset -= bytes.len() as u64;
    }

    /// Reads more ahead of what is there; false at the end.
    pub fn read_ahead(&mut self) -> io::Result<bool> {
        let more = self.input.fill_buf()?;
        let taken = more.len().min(HEAD);
        self.ahead.extend_from_slice(&more[..taken]);
        self.input.consume(taken);
        Ok(taken > 0)
    }

    /// Everything read ahead.
    pub fn ahead(&self) -> &[u8] {
        &self.ahead[self.used..]
    }

    /// What is read from, behind what was read ahead.
    pub fn source(&self) -> &R {
        &self.input
    }

    /// Whether a byte is among those read ahead and those at hand behind them.
    pub fn has(&self, byte: u8, at_hand: &[u8]) -> bool {
        memchr::memchr(byte, self.ahead()).is_some() || memchr::memchr(byte, at_hand).is_some()
    }

    /// Whether these bytes come next.
    pub fn comes(&mut self, bytes: &[u8]) -> io::Result<bool> {
        if self.peek()? != bytes.first().copied() {
            return Ok(false);
        }
        while self.ahead().len() < bytes.len() && self.read_ahead()? {}
        Ok(self.ahead().starts_with(bytes))
    }
}
