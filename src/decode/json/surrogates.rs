//! A lone surrogate (half of a pair), written as an escape, is valid JSON text but not a character.
//! Producers that truncate text by its UTF-16 length write it.

use std::borrow::Cow;

/// The text with the escape of every lone surrogate replaced by that of U+FFFD, which is as long;
/// `None` if the text has no such escape.
pub fn replace_lone_surrogates(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut replaced: Option<Vec<u8>> = None;
    let mut at = 0;
    while let Some(found) = memchr::memchr(b'\\', &bytes[at.min(bytes.len())..]) {
        at += found;
        match escaped(bytes, at) {
            Some(0xD800..=0xDBFF) if matches!(escaped(bytes, at + 6), Some(0xDC00..=0xDFFF)) => {
                at += 12;
            }
            Some(0xD800..=0xDFFF) => {
                replaced.get_or_insert_with(|| bytes.to_vec())[at + 2..at + 6]
                    .copy_from_slice(b"fffd");
                at += 6;
            }
            _ => at += 2,
        }
    }
    replaced.and_then(|bytes| String::from_utf8(bytes).ok())
}

/// The UTF-16 code unit of the escape at `at`: a backslash, `u` and four hexadecimal digits.
fn escaped(bytes: &[u8], at: usize) -> Option<u16> {
    let escape = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
    escape.iter().try_fold(0, |code, digit| {
        Some(code << 4 | char::from(*digit).to_digit(16)? as u16)
    })
}

/// The characters of a JSON string literal, which has its quotes.
pub fn unescape(literal: &str) -> Cow<'_, str> {
    let inner = literal.get(1..literal.len() - 1).unwrap_or_default();
    if memchr::memchr(b'\\', inner.as_bytes()).is_none() {
        return Cow::Borrowed(inner);
    }
    let text =
        serde_json::from_str(literal).or_else(|error| match replace_lone_surrogates(literal) {
            Some(repaired) => serde_json::from_str(&repaired),
            None => Err(error),
        });
    // The parser has accepted the literal before.
    Cow::Owned(text.unwrap_or_else(|_| inner.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lone_surrogates_are_replaced() {
        for (text, wanted) in [
            (r"\ud83d", Some(r"\ufffd")),
            (r"a \uDC00 b", Some(r"a \ufffd b")),
            (r"\ud83d\ud83c\udf89", Some(r"\ufffd\ud83c\udf89")),
            (r"\ud83d\n", Some(r"\ufffd\n")),
            (r"\ud83c\udf89", None),
            (r"\\ud83d", None),
            (r"\\\ud83d", Some(r"\\\ufffd")),
            (r"\u0041", None),
            (r"\ud83", None),
            (r"end\", None),
        ] {
            assert_eq!(replace_lone_surrogates(text).as_deref(), wanted, "{text}");
        }
    }

    #[test]
    fn strings_lose_their_quotes_and_escapes() {
        assert_eq!(unescape(r#""plain""#), "plain");
        assert_eq!(unescape(r#""a\n\"\ud83d""#), "a\n\"\u{FFFD}");
        assert_eq!(unescape(r#""""#), "");
    }
}
