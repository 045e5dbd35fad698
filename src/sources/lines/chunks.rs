//! A stream of bytes that does not end → records as soon as their last byte arrives, from chunks
//! of any size: lines of NDJSON, values one after the other without newlines, elements of an array
//! that stays open.
//!
//! [`super::Reader`] looks at what follows a record before it returns it, which a live stream may
//! send much later, or never. Here a value ends with its last bracket or quote.
//!
//! ```text
//! {"n":1}{"n":2}          two records, the second one although nothing follows it
//! {"n":3,"te⏎             damaged, up to the newline, if the first record did not span lines
//! {"n":4}x{"n":5}{"n":6}  a record; `x{"n":5}`, which is not one; a record
//! ```

use super::scan::{ScanProgress, Scanner};
use super::{is_padding, trim_end};

/// A record in a stream of chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChunkRecord<'a> {
    /// Its bytes, or as many of the first ones as the limit allows.
    pub bytes: &'a [u8],
    /// Its length in the stream.
    pub length: u64,
    /// It is an element of an array.
    pub is_element: bool,
}

/// Splits chunks into records.
pub(crate) struct ChunkSplitter {
    max_bytes: usize,
    state: State,
    is_in_array: bool,
    /// Whether values span lines, as the first one shows.
    spans_lines: Option<bool>,
    current: Current,
}

enum State {
    /// Before a value.
    Between,
    Value(Scanner),
    /// Bytes that are not a value, up to where the next one may begin.
    Damaged,
}

/// What was received of the current record.
#[derive(Default)]
struct Current {
    /// Within the limit.
    bytes: Vec<u8>,
    length: u64,
    /// The last byte that is not padding.
    last: u8,
    /// A newline is among the padding after it.
    has_newline_after: bool,
    /// A newline is anywhere in it.
    has_newline: bool,
}

impl ChunkSplitter {
    /// Holds at most `max_bytes` of a record.
    pub fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            state: State::Between,
            is_in_array: false,
            spans_lines: None,
            current: Current::default(),
        }
    }

    /// Calls `visit` with each record that ends in these bytes.
    pub fn feed(&mut self, chunk: &[u8], visit: &mut dyn FnMut(ChunkRecord<'_>)) {
        let mut rest = chunk;
        while !rest.is_empty() {
            let consumed = match &self.state {
                State::Between => self.begin(rest),
                State::Value(_) => self.scan(rest, visit),
                State::Damaged => self.skip_damage(rest, visit),
            };
            rest = &rest[consumed..];
        }
    }

    /// Calls `visit` with what is left at the end of the stream: a record without its end.
    pub fn finish(&mut self, visit: &mut dyn FnMut(ChunkRecord<'_>)) {
        self.end(visit);
    }

    /// Skips what may be between values, up to the first byte of one.
    fn begin(&mut self, bytes: &[u8]) -> usize {
        // Those of a byte order mark, which begin no value.
        let is_skipped = |b: &u8| is_padding(*b) || matches!(b, 0xef | 0xbb | 0xbf);
        let at = bytes.iter().take_while(|b| is_skipped(b)).count();
        let Some(byte) = bytes.get(at) else {
            return at;
        };
        match (byte, self.is_in_array) {
            (b'[', false) => self.is_in_array = true,
            (b']', true) => self.is_in_array = false,
            (b',', true) => {}
            (b'{' | b'"', _) | (_, true) => {
                self.state = State::Value(Scanner::new());
                return at;
            }
            (_, false) => {
                self.state = State::Damaged;
                return at;
            }
        }
        at + 1
    }

    fn scan(&mut self, bytes: &[u8], visit: &mut dyn FnMut(ChunkRecord<'_>)) -> usize {
        let State::Value(scanner) = &mut self.state else {
            return 0;
        };
        let (length, progress) = scanner.feed(bytes);
        let value = &bytes[..length];
        if self.spans_lines == Some(false)
            && let Some(newline) = memchr::memchr(b'\n', value)
        {
            self.take(&value[..newline]);
            self.end(visit);
            return newline;
        }
        self.take(value);
        match progress {
            ScanProgress::More | ScanProgress::Unwrapped => {}
            ScanProgress::End => {
                self.spans_lines.get_or_insert(self.current.has_newline);
                self.end(visit);
            }
            // The next line begins a value of its own: the first one was truncated.
            ScanProgress::Invalid
                if self.current.has_newline_after
                    && matches!(bytes.get(length), Some(b'{' | b'[')) =>
            {
                self.end(visit);
            }
            ScanProgress::Invalid => self.state = State::Damaged,
        }
        length
    }

    /// Damage ends with its line, or where an object begins after the end of another.
    fn skip_damage(&mut self, bytes: &[u8], visit: &mut dyn FnMut(ChunkRecord<'_>)) -> usize {
        let mut taken = 0;
        for at in memchr::memchr2_iter(b'\n', b'{', bytes) {
            self.take(&bytes[taken..at]);
            taken = at;
            if bytes[at] == b'\n' || self.current.last == b'}' {
                self.end(visit);
                return taken;
            }
        }
        self.take(&bytes[taken..]);
        bytes.len()
    }

    /// Adds bytes to the current record.
    fn take(&mut self, bytes: &[u8]) {
        let current = &mut self.current;
        let room = self.max_bytes.saturating_sub(current.bytes.len());
        current
            .bytes
            .extend_from_slice(&bytes[..room.min(bytes.len())]);
        current.length += bytes.len() as u64;
        let is_separator = |b: &u8| is_padding(*b) || self.is_in_array && *b == b',';
        let tail = bytes.iter().rev().take_while(|b| is_separator(b)).count();
        let (before, tail) = bytes.split_at(bytes.len() - tail);
        let has_newline = tail.contains(&b'\n');
        match before.last() {
            Some(last) => (current.last, current.has_newline_after) = (*last, has_newline),
            None => current.has_newline_after |= has_newline,
        }
        // It matters for the first value only.
        if self.spans_lines.is_none() {
            current.has_newline |= memchr::memchr(b'\n', bytes).is_some();
        }
    }

    /// Ends the current record, if it has any byte.
    fn end(&mut self, visit: &mut dyn FnMut(ChunkRecord<'_>)) {
        self.state = State::Between;
        let mut current = std::mem::take(&mut self.current);
        let mut bytes = &current.bytes[..];
        if current.length == bytes.len() as u64 {
            bytes = trim_end(bytes);
            current.length = bytes.len() as u64;
        }
        if !bytes.is_empty() {
            visit(ChunkRecord {
                bytes,
                length: current.length,
                is_element: self.is_in_array,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::any_value;
    use super::*;

    const MAX_BYTES: usize = 60;

    /// The records of chunks, the last of which may be incomplete, with their lengths.
    fn records<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<(String, u64)> {
        let mut out = Vec::new();
        let mut splitter = ChunkSplitter::new(MAX_BYTES);
        let mut visit = |record: ChunkRecord<'_>| {
            assert!(record.bytes.len() <= MAX_BYTES);
            let text = String::from_utf8_lossy(record.bytes).into_owned();
            out.push((text, record.length));
        };
        for chunk in chunks {
            splitter.feed(chunk, &mut visit);
        }
        splitter.finish(&mut visit);
        out
    }

    fn texts(text: &str) -> Vec<String> {
        let records = records([text.as_bytes()]).into_iter();
        records.map(|(text, _)| text).collect()
    }

    #[test]
    fn a_record_is_there_with_its_last_byte() {
        let mut splitter = ChunkSplitter::new(MAX_BYTES);
        for text in [
            "{\"a\":{}}",
            "{\"b\":\"}{\"}",
            "\n[{\"c\":1}",
            ",\"x\\\"y\"",
        ] {
            let mut count = 0;
            splitter.feed(&text.as_bytes()[..text.len() - 1], &mut |_| count += 1);
            assert_eq!(count, 0, "{text}");
            splitter.feed(&text.as_bytes()[text.len() - 1..], &mut |_| count += 1);
            assert_eq!(count, 1, "{text}");
        }
    }

    #[test]
    fn every_layout_is_split() {
        let three = ["{\"a\":1}", "{\"b\":[2,{}]}", "{\"c\":\"]\"}"];
        for text in [
            three.join("\n") + "\n",
            three.join("\r\n"),
            three.join(""),
            three.join(" \0"),
            format!("\u{feff}[{}]", three.join(",")),
            format!("[\n{}\n]\n[]", three.join(",\n")),
        ] {
            assert_eq!(texts(&text), three, "{text}");
        }
        let pretty = ["{\n  \"a\": 1\n}", "{\n  \"b\": [\n  ]\n}"];
        assert_eq!(texts(&pretty.join("\n")), pretty);
        assert_eq!(texts(&pretty.join("")), pretty);
        assert_eq!(texts("\"{\\\"a\\\":1}\"{}"), ["\"{\\\"a\\\":1}\"", "{}"]);
        assert!(texts(" \n\r\n\u{feff}").is_empty());
    }

    #[test]
    fn damage_takes_no_other_record() {
        assert_eq!(
            texts("{\"a\":1}\n{\"a\":2,\"b\n{\"a\":3}\nhello world\n{\"a\":4}\n"),
            [
                "{\"a\":1}",
                "{\"a\":2,\"b",
                "{\"a\":3}",
                "hello world",
                "{\"a\":4}"
            ]
        );
        // Already the first record, and without newlines.
        assert_eq!(texts("{\"a\":1,\n{\"a\":2}\n"), ["{\"a\":1,", "{\"a\":2}"]);
        assert_eq!(
            texts("{\"a\":1{\"b\":2}{\"c\":3}{\"d\":4}"),
            ["{\"a\":1{\"b\":2}", "{\"c\":3}", "{\"d\":4}"]
        );
        assert_eq!(
            texts("{\"a\":1}}{\"b\":2}"),
            ["{\"a\":1}", "}", "{\"b\":2}"]
        );
        assert_eq!(
            texts("[{\"a\":1},{\"b\":},{\"c\":3},12]"),
            ["{\"a\":1}", "{\"b\":},", "{\"c\":3}", "12"]
        );
        assert_eq!(texts("{\"a\":1}{\"b\":"), ["{\"a\":1}", "{\"b\":"]);
    }

    #[test]
    fn only_a_prefix_of_a_long_record_is_held() {
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(10 * MAX_BYTES));
        let text = format!("{long}{{\"b\":1}}\n{}\n{{}}", "y".repeat(1_000));
        let found = records([text.as_bytes()]);
        assert_eq!(found.len(), 4);
        assert_eq!(
            (found[0].0.len(), found[0].1),
            (MAX_BYTES, long.len() as u64)
        );
        assert_eq!(found[1], ("{\"b\":1}".to_owned(), 7));
        assert_eq!((found[2].0.len(), found[2].1), (MAX_BYTES, 1_000));
    }

    /// The bytes in pieces of these lengths, again and again.
    fn pieces<'a>(mut bytes: &'a [u8], lengths: &'a [usize]) -> Vec<&'a [u8]> {
        let mut out = Vec::new();
        for length in lengths.iter().cycle() {
            if bytes.is_empty() {
                break;
            }
            let (piece, rest) = bytes.split_at((*length).min(bytes.len()));
            out.push(piece);
            bytes = rest;
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Values are split wherever chunks begin and end, in every layout.
        #[test]
        fn records_are_the_values(
            values in proptest::collection::vec(any_value(), 1..8),
            separator in prop::sample::select(&["", "\n", "\r\n", " ", "\0\n", "\u{1e}"][..]),
            is_array in any::<bool>(),
            lengths in proptest::collection::vec(1usize..20, 1..5),
        ) {
            let values: Vec<String> = values.into_iter().filter(|v| v.len() <= MAX_BYTES).collect();
            let text = if is_array {
                format!("[{}]", values.join(&format!(",{separator}")))
            } else {
                values.join(separator)
            };
            let found = records(pieces(text.as_bytes(), &lengths));
            let found: Vec<String> = found.into_iter().map(|(text, _)| text).collect();
            prop_assert_eq!(found, values);
        }

        /// Of any bytes: chunks make no difference, and no byte is in two records.
        #[test]
        fn chunks_make_no_difference(
            text in "[\\[\\]{}\",:\\\\a1 \n\r\\x00]{0,120}",
            begin in prop::sample::select(&["", "[", "{}\n", "{\n}\n", "{}"][..]),
            lengths in proptest::collection::vec(1usize..9, 1..5),
        ) {
            let text = format!("{begin}{text}");
            let whole = records([text.as_bytes()]);
            prop_assert_eq!(&records(pieces(text.as_bytes(), &lengths)), &whole);
            let sum: u64 = whole.iter().map(|(_, length)| length).sum();
            prop_assert!(sum <= text.len() as u64);
        }
    }
}
