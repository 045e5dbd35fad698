//! A byte stream → records with their positions: one per line, or one per element of a JSON array that spans lines.

use std::io::{self, BufRead};

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
    /// Its end was seen: a newline, or the element's closing bracket or quote.
    pub is_terminated: bool,
}

/// How records are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    Lines,
    /// A JSON array of elements; brackets, commas and blanks between them are passed over.
    Array,
}

/// Reads records from `position` on, which is where `input` stands.
pub struct Reader<R> {
    input: R,
    layout: Layout,
    position: u64,
    limit: usize,
}

impl<R: BufRead> Reader<R> {
    /// Keeps at most `limit` bytes of a record.
    pub fn new(input: R, layout: Layout, position: u64, limit: usize) -> Self {
        Self { input, layout, position, limit }
    }

    /// The next record; none at the end of the input. Blank lines are passed over.
    pub fn next_item(&mut self) -> io::Result<Option<Item>> {
        match self.layout {
            Layout::Lines => self.next_line(),
            Layout::Array => self.next_element(),
        }
    }

    fn next_line(&mut self) -> io::Result<Option<Item>> {
        loop {
            let mut item = self.empty();
            while !item.is_terminated {
                let available = self.input.fill_buf()?;
                if available.is_empty() {
                    break;
                }
                let newline = memchr::memchr(b'\n', available);
                let taken = newline.map_or(available.len(), |at| at + 1);
                let content = &available[..newline.unwrap_or(taken)];
                let room = self.limit.saturating_sub(item.bytes.len()).min(content.len());
                item.bytes.extend_from_slice(&content[..room]);
                item.length += content.len() as u64;
                item.is_terminated = newline.is_some();
                self.input.consume(taken);
                self.position += taken as u64;
            }
            item.end = self.position;
            if item.length == 0 && !item.is_terminated {
                return Ok(None);
            }
            if item.bytes.last() == Some(&b'\r') && item.length == item.bytes.len() as u64 {
                item.bytes.pop();
                item.length -= 1;
            }
            if item.bytes.iter().any(|b| !b.is_ascii_whitespace()) {
                return Ok(Some(item));
            }
        }
    }

    fn empty(&self) -> Item {
        Item { start: self.position, end: self.position, bytes: Vec::new(), length: 0, is_terminated: false }
    }

    fn peek(&mut self) -> io::Result<Option<u8>> {
        Ok(self.input.fill_buf()?.first().copied())
    }

    fn skip_byte(&mut self) {
        self.input.consume(1);
        self.position += 1;
    }

    fn next_element(&mut self) -> io::Result<Option<Item>> {
        while self.peek()?.is_some_and(|b| b.is_ascii_whitespace() || matches!(b, b',' | b'[' | b']')) {
            self.skip_byte();
        }
        let Some(first) = self.peek()? else { return Ok(None) };
        let mut item = self.empty();
        let is_scalar = !matches!(first, b'{' | b'"');
        let (mut depth, mut in_string, mut is_escaped) = (0usize, false, false);
        while let Some(byte) = self.peek()? {
            if is_scalar && (byte.is_ascii_whitespace() || matches!(byte, b',' | b']')) {
                item.is_terminated = true;
                break;
            }
            self.skip_byte();
            item.length += 1;
            if item.bytes.len() < self.limit {
                item.bytes.push(byte);
            }
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' if in_string => is_escaped = true,
                b'"' => in_string = !in_string,
                b'{' | b'[' if !in_string => depth += 1,
                b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
                _ => {}
            }
            if !is_scalar && depth == 0 && !in_string {
                item.is_terminated = true;
                break;
            }
        }
        item.end = self.position;
        Ok(Some(item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str, layout: Layout, from: u64) -> Vec<(u64, String, bool)> {
        let mut reader = Reader::new(&text.as_bytes()[from as usize..], layout, from, 100);
        let mut out = Vec::new();
        while let Some(item) = reader.next_item().expect("memory") {
            out.push((item.start, String::from_utf8(item.bytes).expect("text"), item.is_terminated));
        }
        out
    }

    #[test]
    fn lines_have_their_positions() {
        let got = read("{}\r\n\n  \n{\"a\":1}\n{\"b", Layout::Lines, 0);
        assert_eq!(got, [(0, "{}".into(), true), (8, "{\"a\":1}".into(), true), (16, "{\"b".into(), false)]);
    }

    #[test]
    fn elements_of_an_array_are_records_wherever_reading_begins() {
        let text = "[\n {\"a\": \"]}\\\"\"},\n {\"b\": [1, {}]}, \"x,y\"\n]\n[{}]";
        let all = read(text, Layout::Array, 0);
        let bytes: Vec<&str> = all.iter().map(|(_, b, _)| b.as_str()).collect();
        assert_eq!(bytes, ["{\"a\": \"]}\\\"\"}", "{\"b\": [1, {}]}", "\"x,y\"", "{}"]);
        for (n, (start, ..)) in all.iter().enumerate() {
            assert_eq!(read(text, Layout::Array, *start), all[n..]);
        }
        assert_eq!(read("[{\"a\":", Layout::Array, 0), [(1, "{\"a\":".into(), false)]);
    }

    #[test]
    fn a_long_line_is_kept_in_part_and_measured_whole() {
        let text = format!("{}\n{{}}\n", "x".repeat(1000));
        let mut reader = Reader::new(text.as_bytes(), Layout::Lines, 0, 100);
        let item = reader.next_item().expect("memory").expect("a line");
        assert_eq!((item.bytes.len(), item.length, item.end), (100, 1000, 1001));
        assert_eq!(reader.next_item().expect("memory").expect("a line").bytes, b"{}");
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..300), is_array in any::<bool>()) {
            let layout = if is_array { Layout::Array } else { Layout::Lines };
            let mut reader = Reader::new(bytes.as_slice(), layout, 0, 50);
            let mut before = 0;
            while let Some(item) = reader.next_item().expect("memory") {
                prop_assert!(item.start >= before && item.end > item.start);
                before = item.end;
            }
        }
    }
}
