//! A sequence of values, on one line or several: pretty-printed objects, elements of arrays,
//! elements of an array that is a member of an object.
//!
//! Reading can resume after any value, because the byte that follows it says where it was: a comma
//! or a closing bracket follows an element, anything else follows a top-level value.
//!
//! Bytes that are not a value are one record, which the decoder rejects, up to the next line that
//! may begin a record.
//!
//! ```text
//! [{"n":1},
//!  {"n":2,          damaged: the next line begins a record
//!  {"n":3}]
//! ```

use std::io::{self, BufRead};

use super::layout::{Starts, Style, record_starts};
use super::scan::{ScanProgress, Scanner};
use super::{BOM, Item, Reader, is_padding, trim_end};

/// Where damage is detected late, reading resumes at the first line that may begin a record, or at
/// the last one if there are more than this: so no byte is scanned more often.
const MAX_RESUMES: usize = 8;

/// Bytes that are scanned together.
const CHUNK_BYTES: usize = 1 << 10;

/// Where the next value is, as far as is known.
#[derive(Default)]
pub(super) struct ArrayState {
    /// In an array: after its opening bracket or after a comma.
    is_inside: bool,
    /// After an array's closing bracket.
    is_closed: bool,
}

impl ArrayState {
    const INSIDE: Self = Self {
        is_inside: true,
        is_closed: false,
    };
    const CLOSED: Self = Self {
        is_inside: false,
        is_closed: true,
    };
}

/// What follows an unwrapped array in its object.
enum ObjectTail {
    /// Another such array, or the object's end.
    Skipped,
    EndOfInput,
    Damaged(Item),
}

impl<R: BufRead> Reader<R> {
    pub(super) fn next_element(&mut self) -> io::Result<Option<Item>> {
        while let Some(byte) = self.input.peek()? {
            match byte {
                byte if is_padding(byte) => {
                    let count = self
                        .input
                        .fill()?
                        .iter()
                        .take_while(|b| is_padding(**b))
                        .count();
                    self.input.consume(count);
                }
                0xef if self.input.starts_with(&BOM)? => self.input.consume(BOM.len()),
                b',' | b'}' if self.array.is_closed && self.unwrap.is_some() => {
                    match self.skip_object_tail()? {
                        ObjectTail::Skipped => {}
                        ObjectTail::EndOfInput => return Ok(None),
                        ObjectTail::Damaged(item) => return Ok(Some(item)),
                    }
                }
                b',' => {
                    self.array = ArrayState::INSIDE;
                    self.input.consume(1);
                }
                b'[' if !self.array.is_inside => {
                    self.array = ArrayState::INSIDE;
                    self.input.consume(1);
                }
                b']' => {
                    self.array = ArrayState::CLOSED;
                    self.input.consume(1);
                }
                _ => {
                    if let Some(item) = self.value()? {
                        return Ok(Some(item));
                    }
                }
            }
        }
        Ok(None)
    }

    /// The value that begins here; none where it is an object whose member is unwrapped.
    fn value(&mut self) -> io::Result<Option<Item>> {
        let mut scanner = match &self.unwrap {
            Some(name) if !self.array.is_inside => Scanner::unwrapping(name),
            _ => Scanner::new(),
        };
        // A comma after the value shows that it is in an array.
        self.array = ArrayState::default();
        let mut item = self.begin();
        match self.scan(&mut scanner, &mut item)? {
            ScanProgress::Unwrapped => {
                self.add_dropped_members(&scanner);
                self.array.is_inside = true;
                return Ok(None);
            }
            ScanProgress::More => {}
            ScanProgress::End if self.is_valid(&item)? => item.is_terminated = true,
            ScanProgress::End | ScanProgress::Invalid => return self.damaged(item).map(Some),
        }
        self.end(&mut item);
        Ok(Some(item))
    }

    /// Skips members after an unwrapped array, up to another one or the object's end.
    fn skip_object_tail(&mut self) -> io::Result<ObjectTail> {
        let mut scanner = Scanner::inside_object(self.unwrap.as_deref().unwrap_or_default());
        let mut item = self.begin();
        let progress = self.scan(&mut scanner, &mut item)?;
        self.add_dropped_members(&scanner);
        Ok(match progress {
            ScanProgress::Unwrapped => {
                self.array = ArrayState::INSIDE;
                ObjectTail::Skipped
            }
            ScanProgress::End => {
                self.array = ArrayState::default();
                ObjectTail::Skipped
            }
            ScanProgress::More => ObjectTail::EndOfInput,
            ScanProgress::Invalid => ObjectTail::Damaged(self.damaged(item)?),
        })
    }

    /// Scans a value until it ends or turns out to be invalid; `More` at the end of the input.
    fn scan(&mut self, scanner: &mut Scanner, item: &mut Item) -> io::Result<ScanProgress> {
        let mut style = None;
        loop {
            let available = self.input.fill()?;
            if available.is_empty() {
                return Ok(ScanProgress::More);
            }
            // A line at a time, so that no more than a line is put back; a chunk at a time, so that
            // the bytes after a short value are not searched again for each value before them.
            let chunk = &available[..available.len().min(CHUNK_BYTES)];
            let line = memchr::memchr(b'\n', chunk).map_or(chunk.len(), |at| at + 1);
            let (length, progress) = scanner.feed(&available[..line]);
            let has_newline = available[..length].last() == Some(&b'\n');
            self.extend(item, length)?;
            if has_newline && style.is_none() {
                style = Some(Style::detect(self.input.head(), self.unwrap.as_deref()));
            }
            if let Some(Style {
                is_compact: true,
                column,
            }) = style
                && item.has_all_bytes()
                && record_starts(&item.bytes, column).is_some()
            {
                return Ok(ScanProgress::Invalid);
            }
            if progress != ScanProgress::More {
                return Ok(progress);
            }
        }
    }

    /// Consumes bytes of an item, and holds those within the limit.
    fn extend(&mut self, item: &mut Item, bytes: usize) -> io::Result<()> {
        let room = self.max_bytes.saturating_sub(item.bytes.len()).min(bytes);
        let available = self.input.fill()?;
        item.bytes.extend_from_slice(&available[..room]);
        item.length += bytes as u64;
        self.input.consume(bytes);
        Ok(())
    }

    /// Whether an item is a value, and is followed by a byte that may follow one.
    fn is_valid(&mut self, item: &Item) -> io::Result<bool> {
        let is_value = matches!(item.bytes.first(), Some(b'{' | b'[' | b'"'))
            || serde_json::from_slice::<serde::de::IgnoredAny>(&item.bytes).is_ok();
        let may_follow =
            |b: u8| is_padding(b) || matches!(b, b',' | b']' | b'{' | b'[' | b'"' | 0xef);
        Ok(is_value && self.input.peek()?.is_none_or(may_follow))
    }

    /// Ends a record that is not a value where the next one may begin.
    fn damaged(&mut self, mut item: Item) -> io::Result<Item> {
        let Style { column, is_compact } = Style::detect(self.input.head(), self.unwrap.as_deref());
        self.array = ArrayState::default();
        if item.has_all_bytes() {
            let length = item.bytes.len();
            item.bytes.extend(self.input.peek()?);
            let starts = record_starts(&item.bytes, column);
            item.bytes.truncate(length);
            if let Some(Starts { first, last, count }) = starts {
                let at = if is_compact || count <= MAX_RESUMES {
                    first
                } else {
                    last
                };
                self.input.put_back(&item.bytes[at.min(length)..]);
                item.bytes.truncate(at);
                item.length = at as u64;
                item.is_terminated = true;
                self.end(&mut item);
                return Ok(item);
            }
        }
        item.is_terminated = self.skip_to_record_start(&mut item, column)?;
        self.end(&mut item);
        Ok(item)
    }

    /// Adds everything before the next line that may begin a record to the item; false if there is
    /// no such line yet.
    fn skip_to_record_start(&mut self, item: &mut Item, column: usize) -> io::Result<bool> {
        // Blanks since the line's start; none after other bytes.
        let mut indent: Option<usize> = None;
        loop {
            let available = self.input.fill()?;
            let Some(&byte) = available.first() else {
                return Ok(false);
            };
            let length = match (byte, indent) {
                (b'{' | b'[', Some(blanks)) if blanks <= column => return Ok(true),
                (b' ' | b'\t', Some(blanks)) => {
                    indent = Some(blanks + 1);
                    1
                }
                _ => {
                    let newline = memchr::memchr(b'\n', available);
                    indent = newline.map(|_| 0);
                    newline.map_or(available.len(), |at| at + 1)
                }
            };
            self.extend(item, length)?;
        }
    }

    fn begin(&self) -> Item {
        let offset = self.input.offset();
        Item {
            start: offset,
            end: offset,
            bytes: Vec::new(),
            length: 0,
            is_terminated: false,
        }
    }

    fn end(&mut self, item: &mut Item) {
        item.end = self.input.offset();
        if item.has_all_bytes() {
            item.bytes.truncate(trim_end(&item.bytes).len());
            item.length = item.bytes.len() as u64;
        }
    }

    fn add_dropped_members(&mut self, scanner: &Scanner) {
        let dropped = &mut self.dropped_members;
        for name in scanner.other_members() {
            if dropped.len() < super::MAX_DROPPED_MEMBERS && !dropped.contains(name) {
                dropped.push(name.clone());
            }
        }
    }
}
