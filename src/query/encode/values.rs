//! Values as JSON where the encoders of `arrow_json` are slow: times and texts.

use arrow::array::{Array, ArrayAccessor, AsArray, StringArray, StringViewArray};
use arrow::datatypes::{DataType, FieldRef};
use arrow::error::ArrowError;
use arrow_json::writer::NullableEncoder;
use arrow_json::{Encoder, EncoderFactory, EncoderOptions};

use super::times;

/// Encodes texts, and times of Weir's own type. Everything else is left to `arrow_json`.
#[derive(Debug)]
pub struct ValueEncoders;

impl EncoderFactory for ValueEncoders {
    fn make_default_encoder<'a>(
        &self,
        _field: &'a FieldRef,
        array: &'a dyn Array,
        _options: &'a EncoderOptions,
    ) -> Result<Option<NullableEncoder<'a>>, ArrowError> {
        let encoder: Option<Box<dyn Encoder + 'a>> = match array.data_type() {
            DataType::Utf8 => Some(Box::new(TextEncoder::<&StringArray>(array.as_string()))),
            DataType::Utf8View => {
                let texts = array.as_string_view();
                Some(Box::new(TextEncoder::<&StringViewArray>(texts)))
            }
            _ => times::encoder(array),
        };
        Ok(encoder.map(|encoder| NullableEncoder::new(encoder, array.nulls().cloned())))
    }
}

struct TextEncoder<T>(T);

impl<'a, T: ArrayAccessor<Item = &'a str>> Encoder for TextEncoder<T> {
    fn encode(&mut self, at: usize, out: &mut Vec<u8>) {
        append_text(self.0.value(at), out);
    }
}

/// Most texts need no escape, which is found many bytes at a time; `serde_json` looks at each byte.
fn append_text(text: &str, out: &mut Vec<u8>) {
    if has_escapes(text.as_bytes()) {
        let mut serializer = serde_json::Serializer::new(out);
        // Writing to memory does not fail.
        let _ = serde::Serializer::serialize_str(&mut serializer, text);
        return;
    }
    out.reserve(text.len() + 2);
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

/// Without a branch in the loop, so that it is compiled to instructions on vectors.
fn has_escapes(text: &[u8]) -> bool {
    let is_escaped = |byte: &u8| *byte < b' ' || *byte == b'"' || *byte == b'\\';
    text.iter()
        .fold(false, |found, byte| found | is_escaped(byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str) {
        let mut out = b"before".to_vec();
        append_text(text, &mut out);
        let expected = format!("before{}", serde_json::Value::from(text));
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }

    #[test]
    fn each_character_of_one_byte_is_as_serde_writes_it() {
        for byte in 0..128_u8 {
            for length in [0, 7, 8, 16, 40] {
                check(&format!("{}{}é", "x".repeat(length), char::from(byte)));
            }
        }
        check("");
    }

    proptest! {
        #[test]
        fn a_text_is_as_serde_writes_it(text in any::<String>()) {
            check(&text);
        }
    }
}
