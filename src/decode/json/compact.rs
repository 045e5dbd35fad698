//! A JSON value as compact text, which makes values of different programs comparable: members in
//! received order, no insignificant blanks, digits of numbers as written, strings with the fewest
//! escapes, and only the last member of each key.

use std::ops::Range;

use super::keys::KeyPositions;
use super::surrogates;

/// Maximum nesting of objects and arrays.
pub const MAX_DEPTH: usize = 128;

/// The value is nested deeper than [`MAX_DEPTH`].
#[derive(Debug, PartialEq, Eq)]
pub struct TooDeep;

/// Appends the compact text of a JSON value, which the parser has accepted. It is never longer than
/// the value.
pub fn compact(json: &str, out: &mut Vec<u8>) -> Result<(), TooDeep> {
    Compactor { json, at: 0 }.value(out, 0)
}

struct Compactor<'a> {
    json: &'a str,
    at: usize,
}

impl<'a> Compactor<'a> {
    fn peek(&self) -> Option<u8> {
        self.json.as_bytes().get(self.at).copied()
    }

    /// The next byte that is not blank.
    fn next(&mut self) -> Option<u8> {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
        self.peek()
    }

    fn value(&mut self, out: &mut Vec<u8>, depth: usize) -> Result<(), TooDeep> {
        match self.next() {
            Some(b'{' | b'[') if depth == MAX_DEPTH => Err(TooDeep),
            Some(b'{') => self.object(out, depth + 1),
            Some(b'[') => self.array(out, depth + 1),
            Some(b'"') => {
                self.string(out);
                Ok(())
            }
            _ => {
                let start = self.at;
                while !matches!(
                    self.peek(),
                    None | Some(b',' | b']' | b'}' | b' ' | b'\t' | b'\n' | b'\r')
                ) {
                    self.at += 1;
                }
                out.extend_from_slice(&self.json.as_bytes()[start..self.at]);
                Ok(())
            }
        }
    }

    /// The string that begins here, with its quotes.
    fn literal(&mut self) -> &'a str {
        let start = self.at;
        self.at += 1;
        let bytes = self.json.as_bytes();
        while let Some(found) =
            memchr::memchr2(b'"', b'\\', bytes.get(self.at..).unwrap_or_default())
        {
            self.at += found;
            if bytes[self.at] == b'"' {
                break;
            }
            self.at += 2;
        }
        self.at = (self.at + 1).min(bytes.len());
        self.json.get(start..self.at).unwrap_or_default()
    }

    fn string(&mut self, out: &mut Vec<u8>) {
        let literal = self.literal();
        if memchr::memchr(b'\\', literal.as_bytes()).is_none() {
            out.extend_from_slice(literal.as_bytes());
        } else if let Ok(text) = serde_json::to_vec(&surrogates::unescape(literal)) {
            out.extend(text);
        }
    }

    fn array(&mut self, out: &mut Vec<u8>, depth: usize) -> Result<(), TooDeep> {
        self.at += 1;
        out.push(b'[');
        let mut is_first = true;
        while !matches!(self.next(), None | Some(b']')) {
            if !is_first {
                self.at += 1;
                out.push(b',');
            }
            is_first = false;
            self.value(out, depth)?;
        }
        self.at += 1;
        out.push(b']');
        Ok(())
    }

    fn object(&mut self, out: &mut Vec<u8>, depth: usize) -> Result<(), TooDeep> {
        self.at += 1;
        out.push(b'{');
        let start = out.len();
        // Per member, the ranges of its key and of all of it in `out`; empty if overridden.
        let mut members: Vec<(Range<usize>, Range<usize>)> = Vec::new();
        let (mut keys, mut has_overridden) = (KeyPositions::default(), false);
        while !matches!(self.next(), None | Some(b'}')) {
            if !members.is_empty() {
                self.at += 1;
                self.next();
                out.push(b',');
            }
            let from = out.len();
            self.string(out);
            let key = from..out.len();
            self.next();
            self.at += 1;
            out.push(b':');
            self.value(out, depth)?;
            members.push((key, from..out.len()));
            if let Some(earlier) = keys.add(members.len() - 1, |n| &out[members[n].0.clone()]) {
                members[earlier].1 = 0..0;
                has_overridden = true;
            }
        }
        self.at += 1;
        if has_overridden {
            let last: Vec<&[u8]> = members
                .iter()
                .filter(|m| !m.1.is_empty())
                .map(|m| &out[m.1.clone()])
                .collect();
            let last = last.join(&b","[..]);
            out.truncate(start);
            out.extend(last);
        }
        out.push(b'}');
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn compacted(json: &str) -> Result<String, TooDeep> {
        let mut out = Vec::new();
        compact(json, &mut out).map(|()| String::from_utf8(out).expect("text"))
    }

    #[test]
    fn order_and_digits_are_preserved_and_blanks_removed() {
        for (json, wanted) in [
            (" { \"b\" : 1.10 , \"a\" : [ ] } ", r#"{"b":1.10,"a":[]}"#),
            (
                "[1e400, -0, 100000000000000000001]",
                "[1e400,-0,100000000000000000001]",
            ),
            (
                r#"{"a": 1, "b": 2, "a": {"x": 3, "x": 4}}"#,
                r#"{"b":2,"a":{"x":4}}"#,
            ),
            (r#"{"a": 1, "\u0061": 2, "a": 3}"#, r#"{"a":3}"#),
            (
                r#""\u00e9 \/ \n \u0000 \ud83d \ud83c\udf89""#,
                "\"é / \\n \\u0000 \u{FFFD} 🎉\"",
            ),
            (r#"{"a\"b\\": "}"}"#, r#"{"a\"b\\":"}"}"#),
            ("true", "true"),
            ("{}", "{}"),
            ("\n[\t[ ] , { } ]\r\n", "[[],{}]"),
        ] {
            assert_eq!(compacted(json).as_deref(), Ok(wanted), "{json}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(compacted(&nested(MAX_DEPTH)).is_ok());
        assert_eq!(compacted(&nested(MAX_DEPTH + 1)), Err(TooDeep));
        assert_eq!(compacted(&nested(100_000)), Err(TooDeep));
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
                prop::collection::vec(("[ab\"\\\\é]{0,3}", inner), 0..40)
                    .prop_map(|members| members.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn compacting_preserves_the_value_and_is_idempotent(value in value()) {
            let pretty = serde_json::to_string_pretty(&value).expect("JSON");
            let once = compacted(&pretty).expect("shallow");
            prop_assert_eq!(serde_json::from_str::<Value>(&once).expect("JSON"), value);
            prop_assert!(once.len() <= pretty.len());
            prop_assert_eq!(compacted(&once), Ok(once));
        }
    }
}
