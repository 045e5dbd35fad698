//! A byte stream → records with their offsets. A record is a line of NDJSON, each of several
//! objects on a line, a value that spans lines, an element of an array, or an element of an array
//! that is a member of an object (`unwrap`).
//!
//! The first bytes of the content alone decide which of these it is, so that reading can resume
//! after any record. No record takes more memory than the limit. A damaged line is one record, and
//! so is a damaged value up to the next line that may begin one. Among lines of NDJSON a value may
//! span several lines if none after the first begins a record.
//!
//! NDJSON is the hot path: its lines are found by their newlines, without parsing the JSON.

pub(crate) mod chunks;
mod elements;
mod input;
mod layout;
mod open;
mod scan;

use std::io::{self, BufRead, Read};

use super::compression::PlainReader;
use elements::ArrayState;
use input::Input;
use layout::{ContentLayout, detect};
use open::is_open;
use scan::{ScanProgress, Scanner};

/// The first bytes of a content that decide how it is read.
pub(crate) const HEAD_BYTES: usize = 1 << 10;
/// Names of dropped members that are remembered.
const MAX_DROPPED_MEMBERS: usize = 16;
const BOM: [u8; 3] = [0xef, 0xbb, 0xbf];

/// A record in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    /// Offset of its first byte, and where the search for the next record begins.
    pub start: u64,
    pub end: u64,
    /// Its bytes, or a prefix of them of the limit's length.
    pub bytes: Vec<u8>,
    /// Its length in the stream.
    pub length: u64,
    /// Its end was read: a newline, the closing bracket or quote, or what follows it.
    pub is_terminated: bool,
}

impl Item {
    fn has_all_bytes(&self) -> bool {
        self.length == self.bytes.len() as u64
    }
}

/// Reads records. It cannot be used after an error or a record that is not terminated: a new reader
/// resumes at the end of the last terminated record.
pub(crate) struct Reader<R> {
    input: Input<R>,
    /// None until enough was read to decide it.
    layout: Option<ContentLayout>,
    unwrap: Option<String>,
    max_bytes: usize,
    line: Line,
    array: ArrayState,
    dropped_members: Vec<String>,
    /// No line that starts before this offset begins a value that spans lines.
    spanning_searched_to: u64,
}

/// A line that cannot be read in one step: it is long, or has several records.
#[derive(Default)]
struct Line {
    bytes: Vec<u8>,
    consumed: usize,
    /// The offset of its first byte that is not consumed.
    start: u64,
    /// How it ended; none while more of it may follow.
    end: Option<LineEnd>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LineEnd {
    Newline,
    EndOfInput,
}

impl Line {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.consumed..]
    }

    fn consume(&mut self, bytes: usize) {
        self.consumed += bytes;
        self.start += bytes as u64;
    }

    fn compact(&mut self) {
        self.bytes.drain(..self.consumed);
        self.consumed = 0;
    }
}

impl<R: BufRead> Reader<R> {
    /// Reads from `offset` of the content, which is where `input` is positioned, and holds at most
    /// `max_bytes` of a record. `head` is the first [`HEAD_BYTES`] bytes of the content, or all of a
    /// shorter one; at offset 0 it is not needed. With `unwrap`, elements of the array that is this
    /// member of a top-level object are the records.
    pub fn new(input: R, offset: u64, head: &[u8], unwrap: Option<&str>, max_bytes: usize) -> Self {
        let layout = if offset > 0 {
            detect(head, unwrap.is_some()).or(Some(ContentLayout::Values))
        } else {
            None
        };
        Self {
            input: Input::new(input, offset, head),
            layout,
            unwrap: unwrap.map(str::to_owned),
            max_bytes,
            line: Line::default(),
            array: ArrayState::default(),
            dropped_members: Vec::new(),
            spanning_searched_to: 0,
        }
    }

    /// Reads values from the beginning of `input`, without detecting its layout.
    pub fn for_values(input: R, unwrap: Option<&str>) -> Self {
        let layout = Some(ContentLayout::Values);
        Self {
            layout,
            ..Self::new(input, 0, b"", unwrap, usize::MAX)
        }
    }

    /// Names of members other than the unwrapped one, which belong to no record; the first few.
    pub fn dropped_members(&self) -> &[String] {
        &self.dropped_members
    }

    /// The next record; none at the end of the input. Blank lines, and zeros between records, are
    /// skipped.
    pub fn next_item(&mut self) -> io::Result<Option<Item>> {
        match self.layout()? {
            ContentLayout::Lines => self.next_line(),
            ContentLayout::Values => self.next_element(),
        }
    }

    fn layout(&mut self) -> io::Result<ContentLayout> {
        while self.layout.is_none() {
            self.layout = detect(self.input.ahead(), self.unwrap.is_some());
            if self.layout.is_none() && !self.input.read_ahead()? {
                // The first value is incomplete: in either layout it is not a record yet.
                self.layout = Some(ContentLayout::Values);
            }
        }
        Ok(self.layout.unwrap_or(ContentLayout::Values))
    }

    fn next_line(&mut self) -> io::Result<Option<Item>> {
        loop {
            if !self.line.rest().is_empty() || self.line.end.is_some() {
                if let Some(item) = self.next_in_line()? {
                    return Ok(Some(item));
                }
                continue;
            }
            let offset = self.input.offset();
            let available = self.input.fill()?;
            if available.is_empty() {
                return Ok(None);
            }
            let Some(newline) = memchr::memchr(b'\n', available) else {
                self.read_line()?;
                continue;
            };
            let lead = padding(&available[..newline]);
            let record = trim_end(&available[lead..newline]);
            let length = record.len() as u64;
            if record.len() > self.max_bytes || has_several(record) {
                self.read_line()?;
                continue;
            }
            if is_open(record) && offset >= self.spanning_searched_to {
                self.input.consume(lead);
                return self.open_line(lead).map(Some);
            }
            let bytes = record.to_vec();
            self.input.consume(newline + 1);
            if length > 0 {
                let (start, end) = (offset + lead as u64, self.input.offset());
                return Ok(Some(Item {
                    start,
                    end,
                    bytes,
                    length,
                    is_terminated: true,
                }));
            }
        }
    }

    /// Reads more of a line, until it ends or more than the limit of it is in memory.
    fn read_line(&mut self) -> io::Result<()> {
        if self.line.bytes.is_empty() {
            self.line.start = self.input.offset();
        }
        while self.line.end.is_none() && self.line.bytes.len() <= self.max_bytes {
            let room = self.max_bytes.saturating_add(1) - self.line.bytes.len();
            let available = self.input.fill()?;
            if available.is_empty() {
                self.line.end = Some(LineEnd::EndOfInput);
                break;
            }
            let content = &available[..available.len().min(room)];
            let newline = memchr::memchr(b'\n', content);
            self.line
                .bytes
                .extend_from_slice(&content[..newline.unwrap_or(content.len())]);
            let consumed = newline.map_or(content.len(), |at| at + 1);
            self.line.end = newline.map(|_| LineEnd::Newline);
            self.input.consume(consumed);
        }
        Ok(())
    }

    /// The next record of a line that is in memory, all of it or its beginning; none after the last.
    fn next_in_line(&mut self) -> io::Result<Option<Item>> {
        loop {
            let lead = padding(self.line.rest());
            self.line.consume(lead);
            if let Some(end) = first_of_several(self.line.rest()) {
                let bytes = self.line.rest()[..end.min(self.max_bytes)].to_vec();
                let (start, length) = (self.line.start, end as u64);
                self.line.consume(end);
                return Ok(Some(Item {
                    start,
                    end: start + length,
                    bytes,
                    length,
                    is_terminated: true,
                }));
            }
            if self.line.end.is_some() || self.line.rest().len() > self.max_bytes {
                return self.last_in_line();
            }
            self.line.compact();
            self.read_line()?;
        }
    }

    fn last_in_line(&mut self) -> io::Result<Option<Item>> {
        let mut line = std::mem::take(&mut self.line);
        line.compact();
        let mut length = line.bytes.len() as u64;
        let mut is_padded = true;
        while line.end.is_none() {
            let available = self.input.fill()?;
            let newline = memchr::memchr(b'\n', available);
            let content = &available[..newline.unwrap_or(available.len())];
            is_padded = is_padded && content.iter().all(|b| is_padding(*b));
            length += content.len() as u64;
            line.end = if available.is_empty() {
                Some(LineEnd::EndOfInput)
            } else {
                newline.map(|_| LineEnd::Newline)
            };
            let consumed = content.len() + usize::from(newline.is_some());
            self.input.consume(consumed);
        }
        if is_padded {
            length = trim_end(&line.bytes).len() as u64;
        }
        let is_terminated = line.end == Some(LineEnd::Newline);
        let has_all_bytes = is_terminated && line.bytes.len() <= self.max_bytes;
        if has_all_bytes
            && line.start >= self.spanning_searched_to
            && is_open(trim_end(&line.bytes))
        {
            line.bytes.push(b'\n');
            self.input.put_back(&line.bytes);
            return self.open_line(0).map(Some);
        }
        line.bytes.truncate(self.max_bytes.min(length as usize));
        let (start, end) = (line.start, self.input.offset());
        Ok((length > 0).then_some(Item {
            start,
            end,
            bytes: line.bytes,
            length,
            is_terminated,
        }))
    }
}

impl<R: Read> Reader<PlainReader<R>> {
    /// Whether the end of a line is buffered, so that the next record needs no input.
    pub fn has_line(&self) -> bool {
        let buffered = self.input.source().buffered();
        let ahead = self.input.ahead();
        let next = if ahead.is_empty() { buffered } else { ahead };
        let line = &next[..memchr::memchr(b'\n', next).unwrap_or(0)];
        // The end of a value that spans lines may have to be waited for.
        !self.line.rest().is_empty()
            || self.input.has_byte(b'\n', buffered) && !is_open(trim_end(&line[padding(line)..]))
    }
}

/// What may precede or follow a record: blanks, zeros of a file that was not written to its end,
/// separators of JSON text sequences.
fn is_padding(byte: u8) -> bool {
    byte.is_ascii_whitespace() || matches!(byte, 0 | 0x1e)
}

/// The length of the padding before a record, with byte order marks of concatenated files.
pub(super) fn padding(bytes: &[u8]) -> usize {
    let mut at = 0;
    loop {
        at += bytes[at..].iter().take_while(|b| is_padding(**b)).count();
        if !bytes[at..].starts_with(&BOM) {
            return at;
        }
        at += BOM.len();
    }
}

pub(super) fn trim_end(bytes: &[u8]) -> &[u8] {
    let padding = bytes.iter().rev().take_while(|b| is_padding(**b)).count();
    &bytes[..bytes.len() - padding]
}

/// Whether a line may have two objects: one begins where another ends. Inside a string, that means
/// nothing.
fn has_several(line: &[u8]) -> bool {
    let ends_before = |at: usize| trim_end(&line[..at]).last() == Some(&b'}');
    line.first() == Some(&b'{') && memchr::memchr_iter(b'{', line).any(ends_before)
}

/// The length of the first value, where another object follows it.
pub(super) fn first_of_several(line: &[u8]) -> Option<usize> {
    if !has_several(line) {
        return None;
    }
    let (end, progress) = Scanner::new().feed(line);
    let next = line.get(end + padding(&line[end..]));
    (progress == ScanProgress::End && next == Some(&b'{')).then_some(end)
}

#[cfg(test)]
mod tests;
