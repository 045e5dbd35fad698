//! A pretty-printed value among lines of NDJSON, as where `jq .` was appended to a log: its first
//! line is `{` alone.
//!
//! Such a line may as well be one that was cut off. It begins a value that spans lines if the value
//! ends at the end of a line, and no line before that begins a record of its own. A longer line
//! that does not end its object was cut off, and is reported at once:
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
//! Either way a record ends where a line does, so that reading goes on by lines behind it.

use std::io::{self, BufRead};

use super::scan::{Progress, Scanner};
use super::{Item, Reader, padding};

/// What follows from a line that opens an object and holds nothing else.
enum Opened {
    /// The value's bytes, and those up to the end of its last line.
    Value(usize, usize),
    /// The input ends inside the value.
    More,
    /// The line is a record by itself.
    Line,
}

/// Whether a line is the first of a pretty-printed object.
pub(super) fn is_open(line: &[u8]) -> bool {
    line == b"{"
}

impl<R: BufRead> Reader<R> {
    /// The value that begins with a line, or the line. The input is at its first byte, `column`
    /// bytes behind the line's start.
    pub(super) fn open_line(&mut self, column: usize) -> io::Result<Item> {
        let start = self.input.position();
        let opened = self.opened(start, column)?;
        let ahead = self.input.ahead();
        let line = || memchr::memchr(b'\n', ahead).map_or(ahead.len(), |at| at + 1);
        let (length, taken, is_terminated) = match opened {
            Opened::Value(length, taken) => (length, taken, true),
            Opened::More => (ahead.len(), ahead.len(), false),
            Opened::Line => (super::trim_end(&ahead[..line()]).len(), line(), true),
        };
        let bytes = ahead[..length.min(self.limit)].to_vec();
        self.input.consume(taken);
        Ok(Item {
            start,
            end: self.input.position(),
            bytes,
            length: length as u64,
            is_terminated,
        })
    }

    /// Looks ahead, line by line, no further than a record may be long.
    fn opened(&mut self, start: u64, column: usize) -> io::Result<Opened> {
        let mut scanner = Scanner::new();
        let (mut at, mut seen, mut is_end) = (0, 0, false);
        let opened = loop {
            let ahead = self.input.ahead();
            let newline = memchr::memchr(b'\n', &ahead[seen..]).map(|newline| seen + newline + 1);
            if newline.is_none() && !is_end {
                seen = ahead.len();
                if seen > self.limit {
                    break Opened::Line;
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
                break Opened::Line;
            }
            let (taken, progress) = scanner.feed(line);
            match progress {
                Progress::More if newline.is_none() => break Opened::More,
                Progress::More => {}
                Progress::End if padding(&line[taken..]) == line.len() - taken => {
                    break Opened::Value(at + taken, at + line.len());
                }
                Progress::End | Progress::Wrong | Progress::Unwrapped => break Opened::Line,
            }
            at += line.len();
            seen = at;
            if at > self.limit {
                break Opened::Line;
            }
        };
        if matches!(opened, Opened::Line) {
            // So no byte is looked at for more than one line.
            self.tried = start + at as u64;
        }
        Ok(opened)
    }
}
