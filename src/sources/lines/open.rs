//! A pretty-printed value among lines of NDJSON, as where `jq .` was appended to a log: its first
//! line is `{` alone.
//!
//! Such a line may also be a truncated one. It begins a value that spans lines if the value ends at
//! the end of a line, and no line before that begins a record of its own. A longer line that does
//! not end its object is truncated, and is reported at once:
//!
//! ```text
//! {"n":1}
//! {               one record, of three lines
//!   "n": 2
//! }
//! {"n":3,"te      damaged: the next line begins a record
//! {"n":4}
//! ```
//!
//! Either way a record ends where a line does, so that reading continues by lines.

use std::io::{self, BufRead};

use super::scan::{ScanProgress, Scanner};
use super::{Item, Reader, padding};

/// What a line that has only the opening brace of an object turns out to be.
enum OpenLine {
    /// The value's bytes, and those up to the end of its last line.
    Value(usize, usize),
    /// The input ends inside the value.
    Incomplete,
    /// The line is a record by itself.
    SingleLine,
}

/// Whether a line is the first of a pretty-printed object.
pub(super) fn is_open(line: &[u8]) -> bool {
    line == b"{"
}

impl<R: BufRead> Reader<R> {
    /// The value that begins with a line, or the line. The input is at its first byte, `column`
    /// bytes after the line's start.
    pub(super) fn open_line(&mut self, column: usize) -> io::Result<Item> {
        let start = self.input.offset();
        let open_line = self.classify_open_line(start, column)?;
        let ahead = self.input.ahead();
        let line = || memchr::memchr(b'\n', ahead).map_or(ahead.len(), |at| at + 1);
        let (length, consumed, is_terminated) = match open_line {
            OpenLine::Value(length, consumed) => (length, consumed, true),
            OpenLine::Incomplete => (ahead.len(), ahead.len(), false),
            OpenLine::SingleLine => (super::trim_end(&ahead[..line()]).len(), line(), true),
        };
        let bytes = ahead[..length.min(self.max_bytes)].to_vec();
        self.input.consume(consumed);
        Ok(Item {
            start,
            end: self.input.offset(),
            bytes,
            length: length as u64,
            is_terminated,
        })
    }

    /// Reads ahead, line by line, at most as far as a record may be long.
    fn classify_open_line(&mut self, start: u64, column: usize) -> io::Result<OpenLine> {
        let mut scanner = Scanner::new();
        let (mut at, mut searched, mut is_end) = (0, 0, false);
        let open_line = loop {
            let ahead = self.input.ahead();
            let newline =
                memchr::memchr(b'\n', &ahead[searched..]).map(|newline| searched + newline + 1);
            if newline.is_none() && !is_end {
                searched = ahead.len();
                if searched > self.max_bytes {
                    break OpenLine::SingleLine;
                }
                is_end = !self.input.read_ahead()?;
                continue;
            }
            let line = &ahead[at..newline.unwrap_or(ahead.len())];
            let indent = line
                .iter()
                .take_while(|b| matches!(b, b' ' | b'\t'))
                .count();
            if at > 0 && indent <= column && matches!(line.get(indent), Some(b'{' | b'[')) {
                break OpenLine::SingleLine;
            }
            let (consumed, progress) = scanner.feed(line);
            match progress {
                ScanProgress::More if newline.is_none() => break OpenLine::Incomplete,
                ScanProgress::More => {}
                ScanProgress::End if padding(&line[consumed..]) == line.len() - consumed => {
                    break OpenLine::Value(at + consumed, at + line.len());
                }
                ScanProgress::End | ScanProgress::Invalid | ScanProgress::Unwrapped => {
                    break OpenLine::SingleLine;
                }
            }
            at += line.len();
            searched = at;
            if at > self.max_bytes {
                break OpenLine::SingleLine;
            }
        };
        if matches!(open_line, OpenLine::SingleLine) {
            // So no byte is scanned for more than one line.
            self.spanning_searched_to = start + at as u64;
        }
        Ok(open_line)
    }
}
