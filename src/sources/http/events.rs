//! Server-sent events, as the HTML standard interprets an event stream, from chunks of any size.
//!
//! ```text
//! id: 7              the event has the data "{\"n\":1}\n{\"n\":2}" and the id 7
//! data: {"n":1}
//! data: {"n":2}
//!
//! : a comment
//! retry: 2000
//! data: {"n":3}      an event that has the id 7, too: its server continues after 7
//!
//! data: {"n":4}      lost if the stream ends here: an event ends with a blank line
//! ```

use std::time::Duration;

/// The longest id that is remembered; a request has it in a header.
const MAX_ID_BYTES: usize = 4 << 10;
/// What a line may have beside the bytes of its value.
const MAX_NAME_BYTES: usize = 16;
const BOM: &[u8] = &[0xef, 0xbb, 0xbf];

/// An event with data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Event<'a> {
    /// Its data, or as many of the first bytes as the limit allows.
    pub data: &'a [u8],
    /// Length of its data.
    pub length: u64,
    /// The id of the last event that had one, with which the server continues; none if it cannot be
    /// sent in a header.
    pub last_id: Option<&'a str>,
    /// Whether it, or an event before it, set an id, also an empty one.
    pub has_ids: bool,
}

/// Reads events from chunks.
pub(super) struct EventParser {
    max_bytes: usize,
    line: Line,
    /// The last line ended with a carriage return: a line feed belongs to it.
    skips_line_feed: bool,
    /// A byte order mark may still come; this much of it came.
    bom: Option<usize>,
    data: Vec<u8>,
    data_length: u64,
    has_data: bool,
    last_id: Option<String>,
    /// Whether an event had an id, also an empty one.
    has_ids: bool,
    /// The id of the current event, which counts once the event ends.
    next_id: Option<Option<String>>,
    retry: Option<Duration>,
}

#[derive(Default)]
struct Line {
    bytes: Vec<u8>,
    length: u64,
}

impl EventParser {
    /// Holds at most `max_bytes` of an event's data.
    pub fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            line: Line::default(),
            skips_line_feed: false,
            bom: Some(0),
            data: Vec::new(),
            data_length: 0,
            has_data: false,
            last_id: None,
            has_ids: false,
            next_id: None,
            retry: None,
        }
    }

    /// How long the server asked to wait before reconnecting.
    pub fn retry(&self) -> Option<Duration> {
        self.retry
    }

    /// Calls `visit` with each event that ends in these bytes.
    pub fn feed(&mut self, chunk: &[u8], visit: &mut dyn FnMut(Event<'_>)) {
        let mut rest = self.without_bom(chunk);
        while !rest.is_empty() {
            if std::mem::take(&mut self.skips_line_feed) && rest[0] == b'\n' {
                rest = &rest[1..];
                continue;
            }
            match memchr::memchr2(b'\n', b'\r', rest) {
                Some(end) => {
                    self.extend_line(&rest[..end]);
                    self.skips_line_feed = rest[end] == b'\r';
                    rest = &rest[end + 1..];
                    self.end_line(visit);
                }
                None => {
                    self.extend_line(rest);
                    return;
                }
            }
        }
    }

    /// Drops a byte order mark at the beginning of the stream.
    fn without_bom<'a>(&mut self, mut chunk: &'a [u8]) -> &'a [u8] {
        while let (Some(matched), Some(byte)) = (self.bom, chunk.first()) {
            if BOM.get(matched) == Some(byte) {
                chunk = &chunk[1..];
                self.bom = Some(matched + 1).filter(|matched| *matched < BOM.len());
            } else {
                self.bom = None;
                // What looked like the beginning of one is the beginning of the first line.
                self.extend_line(&BOM[..matched]);
            }
        }
        chunk
    }

    fn extend_line(&mut self, bytes: &[u8]) {
        let line = &mut self.line;
        let room = (self.max_bytes + MAX_NAME_BYTES).saturating_sub(line.bytes.len());
        line.bytes
            .extend_from_slice(&bytes[..room.min(bytes.len())]);
        line.length += bytes.len() as u64;
    }

    fn end_line(&mut self, visit: &mut dyn FnMut(Event<'_>)) {
        let line = std::mem::take(&mut self.line);
        if line.length == 0 {
            return self.end_event(visit);
        }
        let colon = memchr::memchr(b':', &line.bytes).unwrap_or(line.bytes.len());
        let (name, value) = line.bytes.split_at(colon);
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"data" => {
                // Of a long line, only the beginning was held.
                let unheld = line.length - line.bytes.len() as u64;
                self.add_data(value, value.len() as u64 + unheld);
            }
            b"id" if !value.contains(&0) => {
                let is_whole = line.length == line.bytes.len() as u64;
                self.next_id = Some(usable_id(value).filter(|_| is_whole));
            }
            b"retry" if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => {
                let ms = std::str::from_utf8(value).ok();
                // More digits than a number has are as long as can be.
                let ms = ms.map(|ms| ms.parse().unwrap_or(u64::MAX));
                self.retry = ms.map(Duration::from_millis);
            }
            // A comment, the event's type, or a field of a later standard.
            _ => {}
        }
        // The allocation serves the next line, unless it is large.
        if line.bytes.capacity() <= 1 << 16 {
            self.line.bytes = line.bytes;
            self.line.bytes.clear();
        }
    }

    fn add_data(&mut self, value: &[u8], length: u64) {
        if std::mem::replace(&mut self.has_data, true) {
            self.extend_data(b"\n", 1);
        }
        self.extend_data(value, length);
    }

    fn extend_data(&mut self, bytes: &[u8], length: u64) {
        // After what was not held, nothing is: the data would have a hole.
        if self.data_length == self.data.len() as u64 {
            let room = self.max_bytes.saturating_sub(self.data.len());
            self.data.extend_from_slice(&bytes[..room.min(bytes.len())]);
        }
        self.data_length += length;
    }

    fn end_event(&mut self, visit: &mut dyn FnMut(Event<'_>)) {
        if let Some(id) = self.next_id.take() {
            self.has_ids = true;
            self.last_id = id;
        }
        if std::mem::take(&mut self.has_data) {
            visit(Event {
                data: &self.data,
                length: self.data_length,
                last_id: self.last_id.as_deref(),
                has_ids: self.has_ids,
            });
        }
        self.data.clear();
        self.data.shrink_to(1 << 16);
        self.data_length = 0;
    }
}

/// The id that an event sets; none for the empty one, which resets it, and for one that a header
/// cannot have.
fn usable_id(value: &[u8]) -> Option<String> {
    let is_sendable = !value.is_empty()
        && value.len() <= MAX_ID_BYTES
        && value.iter().all(|b| *b >= b' ' && *b != 0x7f);
    let text = std::str::from_utf8(value).ok().filter(|_| is_sendable)?;
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX_BYTES: usize = 20;

    type Found = (String, u64, Option<String>);

    fn events<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Found>, Option<Duration>) {
        let mut out = Vec::new();
        let mut parser = EventParser::new(MAX_BYTES);
        for chunk in chunks {
            parser.feed(chunk, &mut |event| {
                assert!(event.data.len() <= MAX_BYTES);
                let data = String::from_utf8_lossy(event.data).into_owned();
                out.push((data, event.length, event.last_id.map(str::to_owned)));
            });
        }
        (out, parser.retry())
    }

    fn data(text: &str) -> Vec<String> {
        let (events, _) = events([text.as_bytes()]);
        events.into_iter().map(|(data, ..)| data).collect()
    }

    fn ids(text: &str) -> Vec<Option<String>> {
        let (events, _) = events([text.as_bytes()]);
        events.into_iter().map(|(.., id)| id).collect()
    }

    /// The examples of the standard, and what it says beside them.
    #[test]
    fn events_are_those_of_the_standard() {
        assert_eq!(data("data: YHOO\ndata: +2\ndata: 10\n\n"), ["YHOO\n+2\n10"]);
        assert_eq!(
            ids(
                ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n"
            ),
            [Some("1".into()), None, None]
        );
        assert_eq!(
            data(
                ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n"
            ),
            ["first event", "second event", " third event"]
        );
        // An event with empty data, one with a newline, and one that does not end.
        assert_eq!(data("data\n\ndata\ndata\n\ndata:"), ["", "\n"]);
        assert_eq!(data("data:test\n\ndata: test\n\n"), ["test", "test"]);
        for end in ["\n", "\r", "\r\n"] {
            let text = ["\u{feff}data: 1", "", "event: x", "data: 2", "", ""].join(end);
            assert_eq!(data(&text), ["1", "2"], "{end:?}");
        }
        // Only the first mark is one, and half of it is not.
        assert_eq!(data("\u{feff}\u{feff}data: 1\n\ndata: 2\n\n"), ["2"]);
        let (found, _) = events([&b"\xef\xbbdata: 1\n\ndata: 2\n\n"[..]]);
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn ids_hold_for_later_events_and_count_when_theirs_ends() {
        let text = "id: 1\n\ndata: a\n\nid: 2\ndata: b\n\ndata: c\n\nid: x\0y\ndata: d\n\n";
        let id = |text: &str| Some(text.to_owned());
        assert_eq!(ids(text), [id("1"), id("2"), id("2"), id("2")]);
        // One that cannot be sent is none.
        let long = "9".repeat(MAX_ID_BYTES);
        let text = format!(
            "id: 1\ndata: a\n\nid: \u{7}\ndata: b\n\nid: é\ndata: c\n\nid: {long}\ndata: d\n\n"
        );
        assert_eq!(ids(&text), [id("1"), None, id("é"), None]);
    }

    #[test]
    fn the_server_says_how_long_to_wait() {
        let retry = |text: &str| events([text.as_bytes()]).1;
        assert_eq!(retry("retry: 2500\n"), Some(Duration::from_millis(2_500)));
        assert_eq!(retry("retry: 2s\nretry: -1\nretry:\n"), None);
        assert_eq!(
            retry(&format!("retry: {}\n", "9".repeat(30))),
            Some(Duration::from_millis(u64::MAX))
        );
    }

    #[test]
    fn only_a_prefix_of_long_data_is_held() {
        let long = "x".repeat(1_000);
        let text = format!("data: {long}\n\ndata: a\ndata: {long}\ndata: b\n\ndata: c\n\n");
        let (found, _) = events([text.as_bytes()]);
        let lengths: Vec<_> = found
            .iter()
            .map(|(data, length, _)| (data.len(), *length))
            .collect();
        assert_eq!(lengths, [(MAX_BYTES, 1_000), (MAX_BYTES, 1_004), (1, 1)]);
    }

    proptest! {
        #[test]
        fn chunks_make_no_difference(
            lines in proptest::collection::vec(
                prop::sample::select(&["", "", "data: ab", "data", "data:c", "id: 7", "id", ": d", "retry: 5", "dataset: e"][..]),
                0..20
            ),
            end in prop::sample::select(&["\n", "\r", "\r\n"][..]),
            mark in prop::sample::select(&["", "\u{feff}"][..]),
            lengths in proptest::collection::vec(1usize..9, 1..5),
        ) {
            let text = format!("{mark}{}{end}", lines.join(end));
            let mut rest = text.as_bytes();
            let mut chunks = Vec::new();
            for length in lengths.iter().cycle() {
                let (piece, after) = rest.split_at((*length).min(rest.len()));
                chunks.push(piece);
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(events(chunks), events([text.as_bytes()]));
        }
    }
}
