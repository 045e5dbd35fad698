//! How a content is divided into records. Its first bytes alone decide that, so that reading can
//! resume anywhere in it.

use super::scan::{Progress, Scanner};
use super::{BOM, HEAD_BYTES, is_padding, padding};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// A record is a line.
    Lines,
    /// A record is a JSON value, on one line or several: pretty-printed objects, elements of an
    /// array.
    Values,
}

/// The layout of a content that begins with `head`; none if that is too little to decide it. Only
/// the first [`HEAD_BYTES`] bytes count.
pub(super) fn detect(head: &[u8], is_unwrapped: bool) -> Option<Layout> {
    let (head, is_full) = (
        &head[..head.len().min(HEAD_BYTES)],
        head.len() >= HEAD_BYTES,
    );
    let text = &head[padding(head)..];
    if BOM.starts_with(text) {
        return is_full.then_some(Layout::Lines);
    }
    if is_unwrapped {
        return Some(Layout::Values);
    }
    match text[0] {
        b'[' => match text[1..]
            .iter()
            .find(|b| !matches!(b, b' ' | b'\t' | b'\r'))
        {
            Some(b'{' | b'[' | b'"' | b']' | b'\n') => Some(Layout::Values),
            // Text that begins with a bracket, such as a time.
            Some(_) => Some(Layout::Lines),
            None => is_full.then_some(Layout::Values),
        },
        b'{' => detect_object(text, is_full),
        _ => Some(Layout::Lines),
    }
}

/// The layout is lines if the first object ends on its line, or if that line is damaged; else
/// values span lines.
fn detect_object(text: &[u8], is_full: bool) -> Option<Layout> {
    let (consumed, progress) = Scanner::new().feed(text);
    let Some(newline) = memchr::memchr(b'\n', &text[..consumed]) else {
        return (progress != Progress::More || is_full).then_some(Layout::Lines);
    };
    let second = text[newline..].iter().find(|b| !is_padding(**b));
    match progress {
        // The next line begins an object of its own: the first one is truncated.
        Progress::Invalid if second == Some(&b'{') => Some(Layout::Lines),
        Progress::Invalid if second.is_none() && !is_full => None,
        Progress::More if !is_full => None,
        _ => Some(Layout::Values),
    }
}

/// What the first bytes of all records have in common, to find the next record after damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Style {
    /// Records that begin a line have at most this many bytes before them on it.
    pub column: usize,
    /// Records do not span lines.
    pub is_compact: bool,
}

impl Style {
    /// By the first record in `head`.
    pub fn detect(head: &[u8], unwrap: Option<&str>) -> Self {
        let start = first_record(head, unwrap);
        let line = memchr::memrchr(b'\n', &head[..start]).map_or(bom(head), |at| at + 1);
        let before = &head[line..start];
        let is_first = before
            .iter()
            .all(|b| matches!(b, b' ' | b'\t' | b'[' | b','));
        let indent = before
            .iter()
            .take_while(|b| matches!(b, b' ' | b'\t'))
            .count();
        let (length, _) = Scanner::new().feed(&head[start..]);
        Self {
            column: if is_first { before.len() } else { indent + 1 },
            is_compact: !head[start..start + length].contains(&b'\n'),
        }
    }
}

fn bom(head: &[u8]) -> usize {
    if head.starts_with(&BOM) { BOM.len() } else { 0 }
}

fn first_record(head: &[u8], unwrap: Option<&str>) -> usize {
    let mut at = padding(head);
    let mut in_array = false;
    while let Some(byte) = head.get(at) {
        match (byte, unwrap) {
            (b'[', _) if !in_array => in_array = true,
            (b'{', Some(name)) if !in_array => match Scanner::unwrapping(name).feed(&head[at..]) {
                (consumed, Progress::Unwrapped) => {
                    at += consumed - 1;
                    in_array = true;
                }
                _ => return at,
            },
            (byte, _) if is_padding(*byte) => {}
            _ => return at,
        }
        at += 1;
    }
    head.len()
}

/// Where records may begin in some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Starts {
    pub first: usize,
    pub last: usize,
    pub count: usize,
}

/// Lines after the first one that may begin a record.
pub(super) fn record_starts(bytes: &[u8], column: usize) -> Option<Starts> {
    let mut starts: Option<Starts> = None;
    for newline in memchr::memchr_iter(b'\n', bytes) {
        let line = &bytes[newline + 1..];
        let indent = line
            .iter()
            .take_while(|b| matches!(b, b' ' | b'\t'))
            .count();
        if indent <= column && matches!(line.get(indent), Some(b'{' | b'[')) {
            let at = newline + 1 + indent;
            let (first, count) = starts.map_or((at, 0), |starts| (starts.first, starts.count));
            starts = Some(Starts {
                first,
                last: at,
                count: count + 1,
            });
        }
    }
    starts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_decides() {
        let long = format!("{{\"a\":\"{}\"", "x".repeat(HEAD_BYTES));
        let pretty = format!("{{\n\"a\":\"{}\"", "x".repeat(HEAD_BYTES));
        for (head, layout) in [
            ("", None),
            ("\u{feff}", None),
            ("{", None),
            ("{\"a\":1,\n", None),
            ("[", None),
            ("{\"a\":1}", Some(Layout::Lines)),
            ("\0\0 {\"a\":1}\n", Some(Layout::Lines)),
            ("{\"a\":1}{\"a\"", Some(Layout::Lines)),
            ("{\"a\":\"x\n", Some(Layout::Lines)),
            ("{\"a\":1,\n{\"a\":1}\n", Some(Layout::Lines)),
            (&long, Some(Layout::Lines)),
            ("[2024-01-01 10:00:00] text\n", Some(Layout::Lines)),
            ("[\na\"", Some(Layout::Values)),
            ("a,b\n", Some(Layout::Lines)),
            ("{\n  \"a\": 1\n}", Some(Layout::Values)),
            ("{\n  \"a\": 1 2", Some(Layout::Values)),
            (&pretty, Some(Layout::Values)),
            ("\u{feff}[\n {", Some(Layout::Values)),
        ] {
            assert_eq!(detect(head.as_bytes(), false), layout, "{head}");
        }
        assert_eq!(detect(b"{\"a\":1}", true), Some(Layout::Values));
    }

    #[test]
    fn the_first_record_shows_where_others_begin() {
        let style = |text: &str, unwrap| {
            let Style { column, is_compact } = Style::detect(text.as_bytes(), unwrap);
            (column, is_compact)
        };
        assert_eq!(style("{\n  \"a\": 1\n}", None), (0, false));
        assert_eq!(style("[\n  {\n  \"a\": 1\n}", None), (2, false));
        assert_eq!(style("\u{feff}[{\"a\":1},\n", None), (1, true));
        assert_eq!(
            style("{\"n\":1,\"rows\":[{\"a\":1},\n", Some("rows")),
            (1, true)
        );
        assert_eq!(
            style("{\n \"rows\": [\n  {\"a\":1},\n", Some("rows")),
            (2, true)
        );
        assert_eq!(style("", None), (0, true));
    }

    #[test]
    fn lines_that_may_begin_a_record_are_found() {
        let (first, last, count) = (11, 14, 2);
        assert_eq!(
            record_starts(b"{\"a\":\n  {\n {}\n{", 1),
            Some(Starts { first, last, count })
        );
        assert_eq!(record_starts(b"{\n  {}", 1), None);
    }
}
