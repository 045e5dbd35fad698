//! Every reason for which a record is rejected before `select` sees it. Their texts are what
//! clients and the table `dead_letters` get.

use std::fmt;

use super::json::{MAX_DEPTH, MAX_MAP_KEYS};
use crate::bounds::MAX_ELEMENTS;
use crate::schema::zone::Zone;

/// Characters of a value that a reason repeats.
const QUOTED_CHARS: usize = 60;

/// Why a record does not become a row of the input schema.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error("the record has {bytes} bytes, more than `[limits] record` allows")]
    TooLong { bytes: u64 },
    #[error("the message has no value (a tombstone)")]
    Tombstone,
    /// The source could not read the message's value.
    #[error("{partition}, offset {offset}: {reason}")]
    Unread {
        /// `TOPIC/NUMBER`.
        partition: String,
        offset: u64,
        reason: String,
    },
    #[error("invalid UTF-8")]
    Utf8,
    #[error("invalid JSON: {0}")]
    Json(#[source] serde_json::Error),
    /// It is JSON, but not an object.
    #[error("{}", without_position(.0))]
    NotAnObject(#[source] serde_json::Error),
    #[error(
        "an array of more than {} records; write shorter ones, or a record on each line",
        MAX_ELEMENTS
    )]
    TooManyRecords,
    #[error("{path}: {error}")]
    Value {
        /// The names of the enclosing objects and the key, as in `venue.lat`.
        path: String,
        error: ValueError,
    },
}

/// Why a value does not fit its column.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ValueError {
    #[error("missing")]
    Missing,
    #[error("null")]
    Null,
    #[error("{found} where the schema has {wanted}{hint}")]
    Mismatch {
        found: Found,
        /// The column's type, without those of its items or fields.
        wanted: &'static str,
        /// Empty, or a remedy that begins with a semicolon.
        hint: &'static str,
    },
    #[error("{} is outside the years 1 to 9999", quoted(.text))]
    OutsideYears { text: String },
    #[error(
        "{} is not a text that the type timestamp reads; write a time such as 2024-05-01T12:00:00Z or 2024-05-01 12:00:00+02:00, declare timestamp(s), timestamp(ms) or timestamp(us) for a number, or varchar to convert it in `select`",
        quoted(.text)
    )]
    NotATime { text: String },
    #[error(
        "the local time {} does not exist in {zone}, clocks were put forward over it; write it with its offset, such as +01:00",
        quoted(.text)
    )]
    SkippedTime { text: String, zone: Zone },
    #[error("objects and arrays are nested deeper than {} levels", MAX_DEPTH)]
    TooDeep,
    #[error("a map of more than {} keys", MAX_MAP_KEYS)]
    TooManyKeys,
}

/// What a record has where another type is declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Boolean,
    Integer,
    Decimal,
    /// An integer of more bits than the column has.
    Beyond {
        bits: u8,
    },
    /// A number that no double comes near to.
    OutOfRange,
    String,
    Object,
    Array,
    Value,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Boolean => "a boolean",
            Self::Integer => "an integer",
            Self::Decimal => "a decimal number",
            Self::Beyond { bits } => return write!(f, "a number beyond {bits} bits"),
            Self::OutOfRange => "a number out of range",
            Self::String => "a string",
            Self::Object => "an object",
            Self::Array => "an array",
            Self::Value => "a value",
        })
    }
}

/// The parser's message; a position would add nothing to what it names.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

/// The start of a value.
fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED_CHARS) {
        Some((end, _)) => format!("`{}…`", &text[..end]),
        None => format!("`{text}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_names_the_value_and_repeats_only_its_start() {
        let error = |text: String| RecordError::Value {
            path: "venue.at".into(),
            error: ValueError::OutsideYears { text },
        };
        for (text, quoted) in [
            ("9".repeat(60), format!("`{}`", "9".repeat(60))),
            ("é".repeat(61), format!("`{}…`", "é".repeat(60))),
        ] {
            assert_eq!(
                error(text).to_string(),
                format!("venue.at: {quoted} is outside the years 1 to 9999")
            );
        }
        let mismatch = ValueError::Mismatch {
            found: Found::Beyond { bits: 64 },
            wanted: "bigint",
            hint: "; varchar keeps its digits",
        };
        assert_eq!(
            mismatch.to_string(),
            "a number beyond 64 bits where the schema has bigint; varchar keeps its digits"
        );
    }

    #[test]
    fn what_is_not_an_object_is_named_without_its_position() {
        let parsed: Result<std::collections::HashMap<String, u8>, _> = serde_json::from_str("[]");
        let error = RecordError::NotAnObject(parsed.expect_err("an array"));
        assert_eq!(error.to_string(), "invalid type: sequence, expected a map");
    }
}
