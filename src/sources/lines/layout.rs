//! How a content is divided into records. Its first bytes alone decide that, so that reading can
//! resume anywhere in it.

use super::scan::{ScanProgress, Scanner};
use super::{BOM, HEAD_BYTES, is_padding, padding};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContentLayout {
    /// A record is a line.
    Lines,
    /// A record is a JSON value, on one line or several: pretty-printed objects, elements of an
    /// array.
    Values,
}

/// The layout of a content that begins with `head`; none if that is too little to decide it. Only
/// the first [`HEAD_BYTES`] bytes count.
pub(super) fn detect(head: &[u8], is_unwrapped: bool) -> Option<ContentLayout> {
    let (head, is_full) = (
        &head[..head.len().min(HEAD_BYTES)],
        head.len() >= HEAD_BYTES,
    );
    let text = &head[padding(head)..];
    if BOM.starts_with(text) {
        return is_full.then_some(ContentLayout::Lines);
    }
    if is_unwrapped {
        return Some(ContentLayout::Values);
    }
    match text[0] {
        b'[' => match text[1..]
            .iter()
            .find(|b| !matches!(b, b' ' | b'\t' | b'\r'))
        {
            Some(b'{' | b'[' | b'"' | b']' | b'\n') => Some(ContentLayout::Values),
            // Text that begins with a bracket, such as a time.
            Some(_) => Some(ContentLayout::Lines),
            None => is_full.then_some(ContentLayout::Values),
        },
        b'{' => detect_object(text, is_full),
        _ => Some(ContentLayout::Lines),
    }
}

/// The layout is lines if the first object ends on its line, or if that line is damaged; else
/// values span lines.
fn detect_object(text: &[u8], is_full: bool) -> Option<ContentLayout> {
    let (consumed, progress) = Scanner::new().feed(text);
    let Some(newline) = memchr::memchr(b'\n', &text[..consumed]) else {
        return (progress != ScanProgress::More || is_full).then_some(ContentLayout::Lines);
    };
    let second = text[newline..].iter().find(|b| !is_padding(**b));
    match progress {
        // The next line begins an object of its own: the first one is truncated.
        ScanProgress::Invalid if second == Some(&b'{') => Some(ContentLayout::Lines),
        ScanProgress::Invalid if second.is_none() && !is_full => None,
        ScanProgress::More if !is_full => None,
        _ => Some(ContentLayout::Values),
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
                (consumed, ScanProgress::Unwrapped) => {
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
    /// Index of the first start.
    pub first: usize,
    /// Index of the last start.
    pub last: usize,
    /// How many there are.
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
            ("{\"a\":1}", Some(ContentLayout::Lines)),
            ("\0\0 {\"a\":1}\n", Some(ContentLayout::Lines)),
            ("{\"a\":1}{\"a\"", Some(ContentLayout::Lines)),
            ("{\"a\":\"x\n", Some(ContentLayout::Lines)),
            ("{\"a\":1,\n{\"a\":1}\n", Some(ContentLayout::Lines)),
            (&long, Some(ContentLayout::Lines)),
            ("[2024-01-01 10:00:00] text\n", Some(ContentLayout::Lines)),
            ("[\na\"", Some(ContentLayout::Values)),
            ("a,b\n", Some(ContentLayout::Lines)),
            ("{\n  \"a\": 1\n}", Some(ContentLayout::Values)),
            ("{\n  \"a\": 1 2", Some(ContentLayout::Values)),
            (&pretty, Some(ContentLayout::Values)),
            ("\u{feff}[\n {", Some(ContentLayout::Values)),
        ] {
            assert_eq!(detect(head.as_bytes(), false), layout, "{head}");
        }
        assert_eq!(detect(b"{\"a\":1}", true), Some(ContentLayout::Values));
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
