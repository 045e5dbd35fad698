use std::io::{BufReader, Read};

use proptest::prelude::*;

use super::*;

const MAX_BYTES: usize = 100;

/// Reads at most as many bytes at once.
struct Parts<'a>(&'a [u8], usize);

impl Read for Parts<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.0.len().min(self.1).min(out.len());
        out[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        Ok(n)
    }
}

fn items(text: &[u8], unwrap: Option<&str>, from: u64, part: usize) -> Vec<Item> {
    let input = BufReader::with_capacity(part, Parts(&text[from as usize..], part));
    let mut reader = Reader::new(
        input,
        from,
        &text[..text.len().min(HEAD_BYTES)],
        unwrap,
        MAX_BYTES,
    );
    let mut out = Vec::new();
    while let Some(item) = reader.next_item().expect("memory") {
        out.push(item);
    }
    out
}

fn read_with(text: &str, unwrap: Option<&str>) -> Vec<(u64, String, bool)> {
    let text_of = |item: Item| {
        (
            item.start,
            String::from_utf8(item.bytes).expect("text"),
            item.is_terminated,
        )
    };
    items(text.as_bytes(), unwrap, 0, 1 << 16)
        .into_iter()
        .map(text_of)
        .collect()
}

fn read(text: &str) -> Vec<(u64, String, bool)> {
    read_with(text, None)
}

fn texts(text: &str, unwrap: Option<&str>) -> Vec<String> {
    read_with(text, unwrap)
        .into_iter()
        .map(|(_, text, _)| text)
        .collect()
}

#[test]
fn lines_have_their_offsets() {
    let got = read("{}\r\n\n  \n{\"a\":1}\n{\"b");
    assert_eq!(
        got,
        [
            (0, "{}".into(), true),
            (8, "{\"a\":1}".into(), true),
            (16, "{\"b".into(), false)
        ]
    );
}

#[test]
fn padding_between_records_is_skipped() {
    let got = read(
        "\u{feff}{\"a\":1}\0\0\0\r\n\0\0\0\n\0\0 {\"a\":2}\n\u{feff}{\"a\":3}\n\u{1e}{\"a\":4}\n",
    );
    assert_eq!(
        got,
        [
            (3, "{\"a\":1}".into(), true),
            (22, "{\"a\":2}".into(), true),
            (33, "{\"a\":3}".into(), true),
            (42, "{\"a\":4}".into(), true)
        ]
    );
    let zeros = "\0".repeat(3 * MAX_BYTES);
    let text = format!("{zeros}{{\"a\":1}}{zeros}\n{zeros}{{\"a\":2}}{zeros}");
    assert_eq!(texts(&text, None), ["{\"a\":1}", "{\"a\":2}"]);
}

#[test]
fn objects_on_one_line_are_records_of_their_own() {
    let got = read("{\"a\":\"}{\"}{\"b\":{}} \r{\"c\":1}\0{\"d\n{}\n");
    assert_eq!(
        got,
        [
            (0, "{\"a\":\"}{\"}".into(), true),
            (10, "{\"b\":{}}".into(), true),
            (20, "{\"c\":1}".into(), true),
            (28, "{\"d".into(), true),
            (32, "{}".into(), true)
        ]
    );
    // Written into each other, two objects cannot be separated.
    assert_eq!(
        read("{\"a\":{\"b\":1}{\"c\":2}\n{}\n")[0],
        (0, "{\"a\":{\"b\":1}{\"c\":2}".into(), true)
    );
    // On a line of any length.
    let line: String = (0..1000).map(|n| format!("{{\"n\":{n}}}")).collect();
    let got = texts(&line, None);
    assert_eq!((got.len(), got[999].as_str()), (1000, "{\"n\":999}"));
}

#[test]
fn a_prefix_of_a_long_line_is_held_and_all_of_it_measured() {
    let text = format!("{}\n{{}}\n", "x".repeat(1000));
    let got = items(text.as_bytes(), None, 0, 64);
    assert_eq!(
        (
            got[0].bytes.len(),
            got[0].length,
            got[0].end,
            got[0].is_terminated
        ),
        (MAX_BYTES, 1000, 1001, true)
    );
    assert_eq!(got[1].bytes, b"{}");
    let text = format!("{}\r\n", "x".repeat(MAX_BYTES));
    assert_eq!(
        items(text.as_bytes(), None, 0, 64)[0].length,
        MAX_BYTES as u64
    );
}

#[test]
fn elements_of_an_array_are_records() {
    let text = "\u{feff}[\n {\"a\": \"]}\\\"\"},\n {\"b\": [1, {}]}, \"x,y\", 12\n,[{}]]\n[{}]";
    assert_eq!(
        texts(text, None),
        [
            "{\"a\": \"]}\\\"\"}",
            "{\"b\": [1, {}]}",
            "\"x,y\"",
            "12",
            "[{}]",
            "{}"
        ]
    );
    assert_eq!(read("[{\"a\":"), [(1, "{\"a\":".into(), false)]);
    assert!(read("[]\n[ ]").is_empty());
}

#[test]
fn pretty_printed_values_are_records() {
    let text = "{\n  \"a\": 1,\n  \"b\": [\n    {}\n  ]\n}\n{\n  \"a\": 2\n}\n{ \"a\": 3 }";
    let got = read(text);
    let offsets: Vec<u64> = got.iter().map(|(start, ..)| *start).collect();
    assert_eq!(offsets, [0, 34, 47]);
    assert_eq!(got[1].1, "{\n  \"a\": 2\n}");
    assert_eq!(
        read("{\n  \"a\": 1,\n"),
        [(0, "{\n  \"a\": 1,".into(), false)]
    );
}

#[test]
fn reading_continues_after_a_damaged_value() {
    // A bracket is missing, an element is truncated in a string, and one in an array of its own.
    let text = "[\n  {\n    \"a\": [\n      {}\n  },\n  {\n    \"a\": 2\n  },\n  {\n    \"a\": \"x\n  },\n  {\n    \"a\": 4\n  }\n]";
    let got = texts(text, None);
    assert_eq!(got.len(), 4, "{got:?}");
    assert_eq!(
        (got[1].as_str(), got[3].as_str()),
        ("{\n    \"a\": 2\n  }", "{\n    \"a\": 4\n  }")
    );
    let text = "[{\"a\":1},\n{\"a\":[2,\n{\"a\":3},\n{\"a\":}},\nx\"a\":1,\"b\":2},\n{\"a\":6}\n]";
    let got = texts(text, None);
    assert_eq!(
        got,
        [
            "{\"a\":1}",
            "{\"a\":[2,",
            "{\"a\":3}",
            "{\"a\":}},\nx\"a\":1,\"b\":2},",
            "{\"a\":6}"
        ]
    );
}

#[test]
fn elements_of_a_member_are_records() {
    let text = "{\"v\":{\"Records\":[0]},\"Records\":[{\"a\":1},{\"a\":2,\"Records\":[3]}],\"w\":[]}\n{\"Records\":[]}\n{\"Records\":[{\"a\":3}]}{\"a\":4}\n[{\"a\":5}]";
    let got = texts(text, Some("Records"));
    assert_eq!(
        got,
        [
            "{\"a\":1}",
            "{\"a\":2,\"Records\":[3]}",
            "{\"a\":3}",
            "{\"a\":4}",
            "{\"a\":5}"
        ]
    );
    let mut reader = Reader::new(text.as_bytes(), 0, b"", Some("Records"), MAX_BYTES);
    while reader.next_item().expect("memory").is_some() {}
    assert_eq!(reader.dropped_members(), ["v", "w"]);
    // Of a long envelope nothing is held, of a long element a prefix.
    let text = format!(
        "{{\"v\":\"{0}\",\"r\":[{{\"a\":\"{0}\"}}, {{}}],\"w\":\"{0}\"}}",
        "x".repeat(1000)
    );
    let got = items(text.as_bytes(), Some("r"), 0, 1 << 16);
    assert_eq!(got.len(), 2);
    assert_eq!((got[0].bytes.len(), got[0].length), (MAX_BYTES, 1008));
}

#[test]
fn a_damaged_envelope_does_not_swallow_the_next() {
    let text = "{\"r\":[{\"a\":1}]}\n{\"r\":[{\"a\":2},{\"a\"\n{\"r\":[{\"a\":3}],\"x\"}\n{\"r\":[{\"a\":4}]}\n";
    let got = texts(text, Some("r"));
    assert_eq!(
        got,
        [
            "{\"a\":1}",
            "{\"a\":2}",
            "{\"a\"",
            "{\"a\":3}",
            ",\"x\"}",
            "{\"a\":4}"
        ]
    );
}

/// A content of some kind, the member to unwrap, and its records.
fn content(kind: usize, values: &[String], indent: usize) -> (String, Option<&'static str>) {
    let pretty = |value: &String| {
        let value: serde_json::Value = serde_json::from_str(value).expect("a value");
        serde_json::to_string_pretty(&value).expect("a value")
    };
    let blanks = " ".repeat(indent);
    match kind {
        0 => (values.join("\n") + "\n", None),
        1 => (values.join(""), None),
        2 => (format!("[{}]", values.join(&format!(",{blanks}"))), None),
        3 => (
            format!(
                "\u{feff}[\n{blanks}{}\n]\n",
                values.join(&format!(",\n{blanks}"))
            ),
            None,
        ),
        4 => (
            values.iter().map(pretty).collect::<Vec<_>>().join("\n"),
            None,
        ),
        5 => (
            format!(
                "{{\"x\":{{\"r\":[1]}},\"r\":[{}],\"y\":0}}\n{{\"r\":[]}}",
                values.join(",")
            ),
            Some("r"),
        ),
        _ => (
            values
                .iter()
                .map(|v| format!("{{\"r\":[{v}]}}\n"))
                .collect(),
            Some("r"),
        ),
    }
}

pub(super) fn any_value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("1".to_owned()),
        Just("null".to_owned()),
        "[a-z\\[\\]{},: é]{0,8}".prop_map(|s| serde_json::to_string(&s).expect("text")),
        Just("\"\\\"}{\\\\\"".to_owned()),
    ];
    let inner = leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3)
                .prop_map(|v| format!("[{}]", v.join(","))),
            proptest::collection::vec(("[a-c]", inner), 0..3).prop_map(|v| format!(
                "{{{}}}",
                v.iter()
                    .map(|(k, v)| format!("\"{k}\":{v}"))
                    .collect::<Vec<_>>()
                    .join(",")
            )),
        ]
    });
    inner.prop_map(|value| format!("{{\"v\": {value}}}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Every value is read once, complete, with its offset, in chunks of any size; and reading
    /// resumes after any of them.
    #[test]
    fn records_are_the_values(
        values in proptest::collection::vec(any_value(), 1..8),
        kind in 0usize..7,
        indent in 0usize..3,
        part in 1usize..40,
    ) {
        let values: Vec<String> = values.into_iter().filter(|v| v.len() <= MAX_BYTES).collect();
        let (text, unwrap) = content(kind, &values, indent);
        let all = items(text.as_bytes(), unwrap, 0, 1 << 16);
        if all.iter().all(|i| i.length <= MAX_BYTES as u64) {
            let json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).expect("whole");
            let got: Vec<_> = all.iter().map(|i| json(&i.bytes)).collect();
            let expected: Vec<_> = values.iter().map(|v| json(v.as_bytes())).collect();
            prop_assert_eq!(got, expected, "{}", text);
        }
        for item in &all {
            prop_assert!(text.as_bytes()[item.start as usize..].starts_with(&item.bytes));
        }
        prop_assert_eq!(&items(text.as_bytes(), unwrap, 0, part), &all);
        for (n, item) in all.iter().enumerate() {
            prop_assert_eq!(&items(text.as_bytes(), unwrap, item.end, part), &all[n + 1..]);
        }
    }

    /// Damage in one line affects no other line.
    #[test]
    fn damage_stays_on_its_line(
        values in proptest::collection::vec(any_value(), 3..8),
        is_array in any::<bool>(),
        line in 0usize..8,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), "[\\[\\]{}\",:\\\\ax\\x00]"), 1..4),
        part in 1usize..40,
    ) {
        let values: Vec<String> = values.into_iter().filter(|v| v.len() <= MAX_BYTES - 20).collect();
        prop_assume!(values.len() > 2);
        let mut lines = values.clone();
        let at = line % lines.len();
        for (index, with) in damage {
            let index = index.index(lines[at].len());
            if lines[at].is_char_boundary(index) && lines[at].is_char_boundary(index + 1) {
                lines[at].replace_range(index..=index, &with);
            }
        }
        let text = if is_array { format!("[\n{}\n]\n", lines.join(",\n")) } else { lines.join("\n") + "\n" };
        let all = items(text.as_bytes(), None, 0, 1 << 16);
        let got: Vec<&[u8]> = all.iter().map(|i| &i.bytes[..]).collect();
        for (n, value) in values.iter().enumerate().filter(|(n, _)| *n != at) {
            prop_assert!(got.contains(&value.as_bytes()), "line {} is missing of {:?}: {:?}", n, text, all);
        }
        prop_assert_eq!(&items(text.as_bytes(), None, 0, part), &all);
        for (n, item) in all.iter().enumerate() {
            prop_assert_eq!(&items(text.as_bytes(), None, item.end, part), &all[n + 1..], "from {} of {:?}", item.end, text);
        }
    }

    /// Of any bytes: each record begins after the previous one, chunks make no difference, and
    /// reading resumes after any record.
    #[test]
    fn any_bytes_end(
        bytes in "[\\[\\]{}\",:\\\\a1 \n\r\\x00]{0,120}",
        kind in 0usize..5,
        is_unwrapped in any::<bool>(),
        part in 1usize..40,
    ) {
        let text = ["", "[\n", "{\n", "{}\n", "{\"r\":[\n"][kind].to_owned() + &bytes;
        let unwrap = is_unwrapped.then_some("r");
        let all = items(text.as_bytes(), unwrap, 0, 1 << 16);
        let mut before = 0;
        for item in &all {
            prop_assert!(item.start >= before && item.end > item.start);
            prop_assert!(item.bytes.len() <= MAX_BYTES && item.length >= item.bytes.len() as u64);
            before = item.end;
        }
        prop_assert_eq!(&items(text.as_bytes(), unwrap, 0, part), &all);
        for (n, item) in all.iter().enumerate().filter(|(_, item)| item.is_terminated) {
            prop_assert_eq!(&items(text.as_bytes(), unwrap, item.end, part), &all[n + 1..], "from {} of {:?}", item.end, text);
        }
    }
}

#[test]
fn a_value_among_lines_may_span_several() {
    let pretty = "{\n  \"b\": {\n    \"c\": [\n      1\n    ]\n  }\n}";
    let text =
        format!("{{\"a\":1}}\n{pretty}\n{{\"a\":2}}\n  {{\n    \"a\": 3\n  }}\n{{\"a\":4}}\n");
    let all = [
        "{\"a\":1}",
        pretty,
        "{\"a\":2}",
        "{\n    \"a\": 3\n  }",
        "{\"a\":4}",
    ];
    assert_eq!(texts(&text, None), all);
    // A truncated line takes none of the records after it.
    for line in ["{", "{\"a\":[1,", "{\"a\":\"x", "{\"a\":", "{\"a\":1} x"] {
        let text = format!("{{\"a\":1}}\n{line}\n{{\"a\":2}}\n");
        assert_eq!(
            texts(&text, None),
            ["{\"a\":1}", line, "{\"a\":2}"],
            "{line}"
        );
    }
    let long = "\"x\",\n".repeat(MAX_BYTES);
    let got = texts(
        &format!("{{\"a\":1}}\n{{\n\"b\":[\n{long}1]}}\n{{\"a\":2}}\n"),
        None,
    );
    assert_eq!(
        (got.len(), got[1].as_str(), got[MAX_BYTES + 4].as_str()),
        (MAX_BYTES + 5, "{", "{\"a\":2}")
    );
    // A damaged last line waits for nothing.
    assert_eq!(read("{\"a\":1}\n{\"a\":\n")[1], (8, "{\"a\":".into(), true));
}

#[test]
fn a_value_that_spans_lines_waits_for_its_end() {
    let got = read("{\"a\":1}\n{\n  \"b\":\n");
    assert_eq!(got[1], (8, "{\n  \"b\":\n".into(), false));
    let whole = "{\"a\":1}\n{\n  \"b\": 2\n}\n{\"a\":2}\n";
    for part in 1..whole.len() {
        let got: Vec<u64> = items(whole.as_bytes(), None, 0, part)
            .iter()
            .map(|item| item.start)
            .collect();
        assert_eq!(got, [0, 8, 21], "{part}");
    }
    assert_eq!(items(whole.as_bytes(), None, 21, 9)[0].start, 21);
}
