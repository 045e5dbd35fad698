//! Messages → records. A message may be an object, several of them, an array of them, an object
//! with an array of them, or a JSON string that holds one of these (encoded twice).

use serde::Deserializer;
use serde::de::{IgnoredAny, SeqAccess, Visitor};

use super::lines::{Reader, first_of_several, padding, trim_end};
use crate::threads::Pace;

/// Calls `visit` with each record of a message and its byte offset in the message. With `unwrap`,
/// the elements of the array that is this member of an object are its records. A message of any
/// other shape is one record, which the decoder rejects with its reason.
///
/// ```text
/// {"n":1} {"n":2}              two records, at 0 and 8
/// [{"n":1},{"n":2}]            two records, at 1 and 9
/// {"v":1,"rows":[{},{}]}       with `unwrap = "rows"` two, at 15 and 18
/// "[{\"n\":1}]"                one record, at the string's offset
/// ```
pub(crate) fn each_at(message: &[u8], unwrap: Option<&str>, visit: &mut dyn FnMut(usize, &[u8])) {
    let lead = padding(message);
    let text = trim_end(&message[lead..]);
    if text.first() == Some(&b'"')
        && let Ok(inner) = serde_json::from_slice::<String>(text)
        && (inner.trim_start().starts_with('[')
            || unwrap.is_some() && inner.trim_start().starts_with('{'))
    {
        return split_text(inner.trim().as_bytes(), unwrap, &mut |_, record| {
            visit(lead, record);
        });
    }
    split_text(text, unwrap, &mut |at, record| visit(lead + at, record));
}

/// Whether a message has more than `max` records; counts them only if it may.
pub(crate) fn has_more_than(message: &[u8], max: usize) -> bool {
    // Between two records is a comma or the end of an object.
    let ends = memchr::memchr2_iter(b',', b'}', message)
        .take(max + 1)
        .count();
    if ends < max {
        return false;
    }
    let mut count = 0;
    each_at(message, None, &mut |_, _| count += 1);
    count > max
}

/// Calls `visit` with each record of a message.
pub(crate) fn each(message: &[u8], visit: &mut dyn FnMut(&[u8])) {
    each_at(message, None, &mut |_, record| visit(record));
}

fn split_text(text: &[u8], unwrap: Option<&str>, visit: &mut dyn FnMut(usize, &[u8])) {
    match text.first() {
        Some(b'[') if is_json(text) => each_value(text, None, visit),
        Some(b'{') if unwrap.is_some() => each_value(text, unwrap, visit),
        Some(_) => {
            let mut at = 0;
            while let Some(end) = first_of_several(&text[at..]) {
                visit(at, &text[at..at + end]);
                at += end + padding(&text[at + end..]);
            }
            visit(at, &text[at..]);
        }
        None => {}
    }
}

fn each_value(text: &[u8], unwrap: Option<&str>, visit: &mut dyn FnMut(usize, &[u8])) {
    let mut reader = Reader::for_values(text, unwrap);
    while let Ok(Some(item)) = reader.next_item() {
        visit(item.start as usize, &item.bytes);
    }
}

/// The records of a message.
#[cfg(test)]
fn records(message: &[u8]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    each(message, &mut |record| out.push(record.to_vec()));
    out
}

/// Whether a last line without its newline is a complete JSON object, array or string.
pub(crate) fn is_complete_value(line: &[u8]) -> bool {
    let line = line.trim_ascii();
    matches!(line.first(), Some(b'{' | b'[' | b'"')) && is_json(line)
}

/// Whether these bytes are one JSON value. While it checks an array, which may be a large body, it
/// yields the CPU from time to time.
pub(crate) fn is_json(bytes: &[u8]) -> bool {
    if bytes.starts_with(b"[") {
        let mut json = serde_json::Deserializer::from_slice(bytes);
        return json
            .deserialize_seq(Elements)
            .and_then(|()| json.end())
            .is_ok();
    }
    serde_json::from_slice::<IgnoredAny>(bytes).is_ok()
}

/// Visits and discards the elements of an array.
struct Elements;

impl<'de> Visitor<'de> for Elements {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let (mut pace, mut count) = (Pace::default(), 0_usize);
        while elements.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
            // Reading the clock costs as much as a small element.
            if count.is_multiple_of(16) {
                pace.tick();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_what_serde_json_accepts() {
        let long = format!("[{}1]", "1,".repeat(100_000));
        for text in [
            "[]",
            "[ ]",
            "[1,\"a\",null,{\"a\":[1]},[[]]]",
            "[1,]",
            "[1 2]",
            "[1]]",
            "[1",
            "[",
            "[1e999]",
            "{}",
            "{\"a\":1}x",
            " [1]",
            "1",
            "[\"\\ud800\"]",
            &long,
            &long[..long.len() - 1],
            &format!("{long} "),
            &format!("{long},"),
        ] {
            let expected = serde_json::from_slice::<IgnoredAny>(text.as_bytes()).is_ok();
            assert_eq!(
                is_json(text.as_bytes()),
                expected,
                "{}",
                &text[..text.len().min(40)]
            );
        }
    }

    #[test]
    fn every_shape_is_split_into_its_records() {
        let texts = |m: &str| {
            records(m.as_bytes())
                .into_iter()
                .map(|r| String::from_utf8(r).expect("text"))
                .collect::<Vec<_>>()
        };
        assert_eq!(texts(r#" {"a":1} "#), [r#"{"a":1}"#]);
        assert_eq!(
            texts(r#"[{"a":1}, {"b":[2]}]"#),
            [r#"{"a":1}"#, r#"{"b":[2]}"#]
        );
        assert_eq!(texts(r#""{\"a\":1}""#), [r#""{\"a\":1}""#]);
        assert_eq!(texts(r#""[{\"a\":1},{}]""#), [r#"{"a":1}"#, "{}"]);
        assert_eq!(texts("[{\"a\":"), ["[{\"a\":"]);
        assert!(texts("  ").is_empty());
    }

    #[test]
    fn records_have_their_offsets() {
        let all = |message: &str, unwrap| {
            let mut out = Vec::new();
            each_at(message.as_bytes(), unwrap, &mut |at, record| {
                out.push((at, String::from_utf8_lossy(record).into_owned()));
            });
            out
        };
        let pair = |at: usize, text: &str| (at, text.to_owned());
        assert_eq!(
            all("\u{feff} [1, {}]\n", None),
            [pair(5, "1"), pair(8, "{}")]
        );
        assert_eq!(
            all("{}\0{\"a\":1}\0", None),
            [pair(0, "{}"), pair(3, "{\"a\":1}")]
        );
        assert_eq!(
            all("{\"v\":1,\"r\":[{},2]}", Some("r")),
            [pair(12, "{}"), pair(15, "2")]
        );
        assert_eq!(all("{\"v\":1}", Some("r")), [pair(0, "{\"v\":1}")]);
        assert_eq!(all(r#""{\"r\":[{}]}""#, Some("r")), [pair(0, "{}")]);
        assert_eq!(all("[{},", None), [pair(0, "[{},")]);
    }

    #[test]
    fn too_many_records_are_detected() {
        for (message, records) in [
            ("[1,2,3]", 3),
            ("{}{}{}", 3),
            ("[{\"a\":[1,2,3],\"b\":{}}]", 1),
            ("{\"a\":[1,2,3,4]}", 1),
        ] {
            assert!(!has_more_than(message.as_bytes(), records), "{message}");
            assert!(has_more_than(message.as_bytes(), records - 1), "{message}");
        }
    }

    #[test]
    fn complete_lines_are_distinguished_from_partial_ones() {
        assert!(is_complete_value(b"{\"a\":1}"));
        assert!(is_complete_value(b"[]"));
        assert!(!is_complete_value(b"{\"a\":"));
        assert!(!is_complete_value(b"12"));
    }
}
