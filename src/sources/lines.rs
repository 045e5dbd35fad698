//! A byte stream → records with their positions. A record is a line of NDJSON, each of several
//! objects on a line, a value that spans lines, an element of an array, or an element of an array
//! that is a member of an object (`unwrap`).
//!
//! Which of these it is, the content's first bytes decide alone, so that reading can go on behind
//! any record. No record takes more memory than the limit. A damaged line is one record, and so is
//! a damaged value up to the next line that may begin one. Among lines of NDJSON a value may span
//! several, where the lines after its first begin no record.
//!
//! NDJSON is the hot path: its lines are found by their newlines, without a look at the JSON.

mod elements;
mod input;
mod layout;
mod open;
mod scan;

use std::io::{self, BufRead, Read};

use super::compression::PlainReader;
use elements::Between;
use input::Input;
use layout::{Layout, detect};
use open::is_open;
use scan::{Progress, Scanner};

/// First bytes of a content that decide how it is read.
pub const HEAD: usize = 1 << 10;
/// Names of dropped members that are noted.
const DROPPED: usize = 16;
const BOM: [u8; 3] = [0xef, 0xbb, 0xbf];

/// A record as it lies in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Where it begins and where the next one is looked for.
    pub start: u64,
    pub end: u64,
    /// Its bytes, at most the limit of them.
    pub bytes: Vec<u8>,
    /// Its length.
    pub length: u64,
    /// Its end was seen: a newline, the closing bracket or quote, or what follows it.
    pub is_terminated: bool,
}

impl Item {
    fn is_kept_whole(&self) -> bool {
        self.length == self.bytes.len() as u64
    }
}

/// Reads records. After an error, or a record whose end was not seen, it is of no use: a new one
/// goes on from the position of the last record that was whole.
pub struct Reader<R> {
    input: Input<R>,
    /// None until enough was read to tell.
    layout: Option<Layout>,
    unwrap: Option<String>,
    limit: usize,
    line: Line,
    between: Between,
    dropped: Vec<String>,
    /// A line before this position begins no value that spans lines.
    tried: u64,
}

/// A line that is not taken at once: it is long, or has several records.
#[derive(Default)]
struct Line {
    bytes: Vec<u8>,
    used: usize,
    /// The position of its first byte that is not used.
    start: u64,
    /// Its end was read: whether that was a newline.
    ended: Option<bool>,
}

impl Line {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.used..]
    }

    fn pass(&mut self, bytes: usize) {
        self.used += bytes;
        self.start += bytes as u64;
    }

    fn compact(&mut self) {
        self.bytes.drain(..self.used);
        self.used = 0;
    }
}

impl<R: BufRead> Reader<R> {
    /// Reads from `position` of the content on, which is where `input` stands, and keeps at most
    /// `limit` bytes of a record. `head` holds the content's first [`HEAD`] bytes, as far as there
    /// are any; at position 0 it is not needed. With `unwrap`, elements of the array that is this
    /// member of a top-level object are the records.
    pub fn new(input: R, offset: u64, head: &[u8], unwrap: Option<&str>, limit: usize) -> Self {
        let layout = if offset > 0 {
            detect(head, unwrap.is_some()).or(Some(Layout::Values))
        } else {
            None
        };
        Self {
            input: Input::new(input, offset, head),
            layout,
            unwrap: unwrap.map(str::to_owned),
            limit,
            line: Line::default(),
            between: Between::default(),
            dropped: Vec::new(),
            tried: 0,
        }
    }

    /// Reads values, whatever `input` begins with, from its beginning.
    pub fn of_values(input: R, unwrap: Option<&str>) -> Self {
        let layout = Some(Layout::Values);
        Self {
            layout,
            ..Self::new(input, 0, b"", unwrap, usize::MAX)
        }
    }

    /// The first names of members beside the one unwrapped, which are no part of any record.
    pub fn dropped(&self) -> &[String] {
        &self.dropped
    }

    /// The next record; none at the end of the input. Blank lines, and zeros beside records, are
    /// passed over.
    pub fn next_item(&mut self) -> io::Result<Option<Item>> {
        match self.layout()? {
            Layout::Lines => self.next_line(),
            Layout::Values => self.next_element(),
        }
    }

    fn layout(&mut self) -> io::Result<Layout> {
        while self.layout.is_none() {
            self.layout = detect(self.input.ahead(), self.unwrap.is_some());
            if self.layout.is_none() && !self.input.read_ahead()? {
                // The first value is not whole yet: by lines or not, it is no record.
                self.layout = Some(Layout::Values);
            }
        }
        Ok(self.layout.unwrap_or(Layout::Values))
    }

    fn next_line(&mut self) -> io::Result<Option<Item>> {
        loop {
            if !self.line.rest().is_empty() || self.line.ended.is_some() {
                if let Some(item) = self.next_of_line()? {
                    return Ok(Some(item));
                }
                continue;
            }
            let offset = self.input.position();
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
            if record.len() > self.limit || has_several(record) {
                self.read_line()?;
                continue;
            }
            if is_open(record) && offset >= self.tried {
                self.input.consume(lead);
                return self.open_line(lead).map(Some);
            }
            let bytes = record.to_vec();
            self.input.consume(newline + 1);
            if length > 0 {
                let (start, end) = (offset + lead as u64, self.input.position());
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

    /// Reads on in a line until it ends, or more is kept than the limit.
    fn read_line(&mut self) -> io::Result<()> {
        if self.line.bytes.is_empty() {
            self.line.start = self.input.position();
        }
        while self.line.ended.is_none() && self.line.bytes.len() <= self.limit {
            let room = self.limit.saturating_add(1) - self.line.bytes.len();
            let available = self.input.fill()?;
            if available.is_empty() {
                self.line.ended = Some(false);
                break;
            }
            let content = &available[..available.len().min(room)];
            let newline = memchr::memchr(b'\n', content);
            self.line
                .bytes
                .extend_from_slice(&content[..newline.unwrap_or(content.len())]);
            let taken = newline.map_or(content.len(), |at| at + 1);
            self.line.ended = newline.map(|_| true);
            self.input.consume(taken);
        }
        Ok(())
    }

    /// The next record of a line that was read in part or whole; none when there is no other on it.
    fn next_of_line(&mut self) -> io::Result<Option<Item>> {
        loop {
            let lead = padding(self.line.rest());
            self.line.pass(lead);
            if let Some(end) = first_of_several(self.line.rest()) {
                let bytes = self.line.rest()[..end.min(self.limit)].to_vec();
                let (start, length) = (self.line.start, end as u64);
                self.line.pass(end);
                return Ok(Some(Item {
                    start,
                    end: start + length,
                    bytes,
                    length,
                    is_terminated: true,
                }));
            }
            if self.line.ended.is_some() || self.line.rest().len() > self.limit {
                return self.last_of_line();
            }
            self.line.compact();
            self.read_line()?;
        }
    }

    fn last_of_line(&mut self) -> io::Result<Option<Item>> {
        let mut line = std::mem::take(&mut self.line);
        line.compact();
        let mut length = line.bytes.len() as u64;
        let mut is_padded = true;
        while line.ended.is_none() {
            let available = self.input.fill()?;
            let newline = memchr::memchr(b'\n', available);
            let content = &available[..newline.unwrap_or(available.len())];
            is_padded = is_padded && content.iter().all(|b| is_padding(*b));
            length += content.len() as u64;
            line.ended = if available.is_empty() {
                Some(false)
            } else {
                newline.map(|_| true)
            };
            let taken = content.len() + usize::from(newline.is_some());
            self.input.consume(taken);
        }
        if is_padded {
            length = trim_end(&line.bytes).len() as u64;
        }
        let is_kept_whole = line.ended == Some(true) && line.bytes.len() <= self.limit;
        if is_kept_whole && line.start >= self.tried && is_open(trim_end(&line.bytes)) {
            line.bytes.push(b'\n');
            self.input.put_back(&line.bytes);
            return self.open_line(0).map(Some);
        }
        line.bytes.truncate(self.limit.min(length as usize));
        let (start, end, is_terminated) =
            (line.start, self.input.position(), line.ended == Some(true));
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
    /// Whether the end of a line is at hand, without waiting for input.
    pub fn has_line(&self) -> bool {
        let at_hand = self.input.source().at_hand();
        let ahead = self.input.ahead();
        let next = if ahead.is_empty() { at_hand } else { ahead };
        let line = &next[..memchr::memchr(b'\n', next).unwrap_or(0)];
        // The end of a value that spans lines may have to be waited for.
        !self.line.rest().is_empty()
            || self.input.has(b'\n', at_hand) && !is_open(trim_end(&line[padding(line)..]))
    }
}

/// What may lie beside records: blanks, zeros of a file that was not written to its end, separators
/// of JSON text sequences.
fn is_padding(byte: u8) -> bool {
    byte.is_ascii_whitespace() || matches!(byte, 0 | 0x1e)
}

/// The length of what may lie before a record; byte order marks too, of files that were put
/// together.
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

/// Whether a line may have an object behind another: one begins where one has ended. In strings
/// this may mean nothing.
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
    (progress == Progress::End && next == Some(&b'{')).then_some(end)
}

#[cfg(test)]
mod tests;
