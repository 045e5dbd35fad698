//! Messages → records. A message may be an object, several of them, an array of them, an object
//! with an array of them, or a JSON string that holds one of these (encoded twice).

use serde::Deserializer;
use serde::de::{IgnoredAny, SeqAccess, Visitor};

use super::lines::{Reader, first_of_several, padding, trim_end};
use crate::threads::Pace;

/// Gives each record of a message with its offset in it. With `unwrap`, the elements of the array
/// that is this member of an object are its records. What is no such shape is one record, for the
/// decoder to refuse with its reason.
pub fn each_at(message: &[u8], unwrap: Option<&str>, give: &mut dyn FnMut(usize, &[u8])) {
    let lead = padding(message);
    let text = trim_end(&message[lead..]);
    if text.first() == Some(&b'"')
        && let Ok(inner) = serde_json::from_slice::<String>(text)
        && (inner.trim_start().starts_with('[')
            || unwrap.is_some() && inner.trim_start().starts_with('{'))
    {
        return split_text(inner.trim().as_bytes(), unwrap, &mut |_, record| {
            give(lead, record);
        });
    }
    split_text(text, unwrap, &mut |at, record| give(lead + at, record));
}

/// Whether a message has more records than these; looks no further than it must.
pub fn has_more_than(message: &[u8], most: usize) -> bool {
    // Each record but the last has an end before it.
    let ends = memchr::memchr2_iter(b',', b'}', message)
        .take(most + 1)
        .count();
    if ends < most {
        return false;
    }
    let mut count = 0;
    each_at(message, None, &mut |_, _| count += 1);
    count > most
}

/// Gives each record of a message.
pub fn each(message: &[u8], give: &mut dyn FnMut(&[u8])) {
    each_at(message, None, &mut |_, record| give(record));
}

fn split_text(text: &[u8], unwrap: Option<&str>, give: &mut dyn FnMut(usize, &[u8])) {
    match text.first() {
        Some(b'[') if is_json(text) => values(text, None, give),
        Some(b'{') if unwrap.is_some() => values(text, unwrap, give),
        Some(_) => {
            let mut at = 0;
            while let Some(end) = first_of_several(&text[at..]) {
                give(at, &text[at..at + end]);
                at += end + padding(&text[at + end..]);
            }
            give(at, &text[at..]);
        }
        None => {}
    }
}

fn values(text: &[u8], unwrap: Option<&str>, give: &mut dyn FnMut(usize, &[u8])) {
    let mut reader = Reader::of_values(text, unwrap);
    while let Ok(Some(item)) = reader.next_item() {
        give(item.start as usize, &item.bytes);
    }
}

/// The records of a message.
pub fn records(message: &[u8]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    each(message, &mut |record| out.push(record.to_vec()));
    out
}

/// Whether a last line without its newline is a whole JSON object, array or string.
pub fn is_whole(line: &[u8]) -> bool {
    let line = line.trim_ascii();
    matches!(line.first(), Some(b'{' | b'[' | b'"')) && is_json(line)
}

/// Whether these bytes are one JSON value. An array, which may be a large body, lets other threads
/// run now and then.
pub fn is_json(bytes: &[u8]) -> bool {
    if bytes.starts_with(b"[") {
        let mut json = serde_json::Deserializer::from_slice(bytes);
        return json
            .deserialize_seq(Elements)
            .and_then(|()| json.end())
            .is_ok();
    }
    serde_json::from_slice::<IgnoredAny>(bytes).is_ok()
}

/// The elements of an array, whatever they are.
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
    fn json_is_what_serde_json_takes() {
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
    fn every_shape_gives_its_records() {
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
    fn too_many_records_are_noticed() {
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
    fn whole_lines_are_told_from_cut_ones() {
        assert!(is_whole(b"{\"a\":1}"));
        assert!(is_whole(b"[]"));
        assert!(!is_whole(b"{\"a\":"));
        assert!(!is_whole(b"12"));
    }
}
