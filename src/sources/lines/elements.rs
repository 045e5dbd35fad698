//! Values one after another, whatever lines they span: pretty-printed objects, elements of arrays,
//! elements of an array that is a member of an object.
//!
//! Between two of them nothing has to be remembered: what comes next tells where they are. A comma
//! or a bracket that closes follows an element, anything else a value of its own. So reading goes
//! on behind any of them.
//!
//! What is no value is one record, for the decoder to refuse, up to the next line that may begin a
//! record.

use std::io::{self, BufRead};

use super::layout::{Style, beginnings};
use super::scan::{Progress, Scanner};
use super::{BOM, Item, Reader, is_padding, trim_end};

/// Where damage is noticed late, lines that may begin a record are tried from the first of so many
/// on, else from the last: so no byte is looked at more often.
const BEGINNINGS: usize = 8;

/// Bytes that are looked at together.
const PART: usize = 1 << 10;

/// Where the next value is, as far as is known.
#[derive(Default)]
pub(super) struct Between {
    /// In an array: behind its bracket, or behind a comma.
    in_array: bool,
    /// Behind an array's end.
    is_closed: bool,
}

/// What follows an array in the object that it is a member of.
enum Rest {
    Passed,
    Ended,
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
                0xef if self.input.comes(&BOM)? => self.input.consume(BOM.len()),
                b',' | b'}' if self.between.is_closed && self.unwrap.is_some() => {
                    match self.rest()? {
                        Rest::Passed => {}
                        Rest::Ended => return Ok(None),
                        Rest::Damaged(item) => return Ok(Some(item)),
                    }
                }
                b',' => {
                    self.between = Between {
                        in_array: true,
                        is_closed: false,
                    };
                    self.input.consume(1);
                }
                b'[' if !self.between.in_array => {
                    self.between = Between {
                        in_array: true,
                        is_closed: false,
                    };
                    self.input.consume(1);
                }
                b']' => {
                    self.between = Between {
                        in_array: false,
                        is_closed: true,
                    };
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
            Some(name) if !self.between.in_array => Scanner::unwrapping(name),
            _ => Scanner::new(),
        };
        // Behind a value, a comma shows that it is in an array.
        self.between = Between::default();
        let mut item = self.begin();
        match self.scan(&mut scanner, &mut item)? {
            Progress::Unwrapped => {
                self.note_dropped(&scanner);
                self.between.in_array = true;
                return Ok(None);
            }
            Progress::More => {}
            Progress::End if self.is_whole(&item)? => item.is_terminated = true,
            Progress::End | Progress::Wrong => return self.damaged(item).map(Some),
        }
        self.end(&mut item);
        Ok(Some(item))
    }

    fn rest(&mut self) -> io::Result<Rest> {
        let mut scanner = Scanner::inside_object(self.unwrap.as_deref().unwrap_or_default());
        let mut item = self.begin();
        let progress = self.scan(&mut scanner, &mut item)?;
        self.note_dropped(&scanner);
        Ok(match progress {
            Progress::Unwrapped => {
                self.between = Between {
                    in_array: true,
                    is_closed: false,
                };
                Rest::Passed
            }
            Progress::End => {
                self.between = Between::default();
                Rest::Passed
            }
            Progress::More => Rest::Ended,
            Progress::Wrong => Rest::Damaged(self.damaged(item)?),
        })
    }

    /// Follows a value until it ends or cannot go on; `More` at the end of the input.
    fn scan(&mut self, scanner: &mut Scanner, item: &mut Item) -> io::Result<Progress> {
        let mut style = None;
        loop {
            let available = self.input.fill()?;
            if available.is_empty() {
                return Ok(Progress::More);
            }
            // A line at a time, so that no more than a line is put back; a part at a time, so that
            // what lies behind a short value is not searched again for each value before it.
            let part = &available[..available.len().min(PART)];
            let line = memchr::memchr(b'\n', part).map_or(part.len(), |at| at + 1);
            let (taken, progress) = scanner.feed(&available[..line]);
            let has_newline = available[..taken].last() == Some(&b'\n');
            self.keep(item, taken)?;
            if has_newline && style.is_none() {
                style = Some(Style::of(self.input.head(), self.unwrap.as_deref()));
            }
            if let Some(Style {
                is_compact: true,
                column,
            }) = style
                && item.is_kept_whole()
                && beginnings(&item.bytes, column).is_some()
            {
                return Ok(Progress::Wrong);
            }
            if progress != Progress::More {
                return Ok(progress);
            }
        }
    }

    /// Consumes bytes of an item, and keeps those that have room.
    fn keep(&mut self, item: &mut Item, bytes: usize) -> io::Result<()> {
        let room = self.limit.saturating_sub(item.bytes.len()).min(bytes);
        let available = self.input.fill()?;
        item.bytes.extend_from_slice(&available[..room]);
        item.length += bytes as u64;
        self.input.consume(bytes);
        Ok(())
    }

    /// Whether a value that has ended is followed by what may follow one.
    fn is_whole(&mut self, item: &Item) -> io::Result<bool> {
        let is_known = matches!(item.bytes.first(), Some(b'{' | b'[' | b'"'))
            || serde_json::from_slice::<serde::de::IgnoredAny>(&item.bytes).is_ok();
        let may_follow =
            |b: u8| is_padding(b) || matches!(b, b',' | b']' | b'{' | b'[' | b'"' | 0xef);
        Ok(is_known && self.input.peek()?.is_none_or(may_follow))
    }

    /// Ends a record that is no value where the next one may begin.
    fn damaged(&mut self, mut item: Item) -> io::Result<Item> {
        let Style { column, is_compact } = Style::of(self.input.head(), self.unwrap.as_deref());
        self.between = Between::default();
        if item.is_kept_whole() {
            let kept = item.bytes.len();
            item.bytes.extend(self.input.peek()?);
            let found = beginnings(&item.bytes, column);
            item.bytes.truncate(kept);
            if let Some((first, last, count)) = found {
                let at = if is_compact || count <= BEGINNINGS {
                    first
                } else {
                    last
                };
                self.input.put_back(&item.bytes[at.min(kept)..]);
                item.bytes.truncate(at);
                item.length = at as u64;
                item.is_terminated = true;
                self.end(&mut item);
                return Ok(item);
            }
        }
        item.is_terminated = self.skip_to_beginning(&mut item, column)?;
        self.end(&mut item);
        Ok(item)
    }

    /// Passes over everything before the next line that may begin a record; false if there is none
    /// yet.
    fn skip_to_beginning(&mut self, item: &mut Item, column: usize) -> io::Result<bool> {
        // Blanks since the line's beginning; none behind other bytes.
        let mut indent: Option<usize> = None;
        loop {
            let available = self.input.fill()?;
            let Some(&byte) = available.first() else {
                return Ok(false);
            };
            let taken = match (byte, indent) {
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
            self.keep(item, taken)?;
        }
    }

    fn begin(&self) -> Item {
        let at = self.input.position();
        Item {
            start: at,
            end: at,
            bytes: Vec::new(),
            length: 0,
            is_terminated: false,
        }
    }

    fn end(&mut self, item: &mut Item) {
        item.end = self.input.position();
        if item.is_kept_whole() {
            item.bytes.truncate(trim_end(&item.bytes).len());
            item.length = item.bytes.len() as u64;
        }
    }

    fn note_dropped(&mut self, scanner: &Scanner) {
        for name in scanner.others() {
            if self.dropped.len() < super::DROPPED && !self.dropped.contains(name) {
                self.dropped.push(name.clone());
            }
        }
    }
}
