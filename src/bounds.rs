//! Limits on what is retained of a record's values: a bounded number of bytes, however long the
//! values are.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

/// Maximum number of records in an array on one line; a longer one is rejected as a whole.
pub const MAX_ELEMENTS: usize = 65_536;
/// Longest retained text of a key or group, in bytes.
pub const MAX_RETAINED_BYTES: usize = 128;
/// Bytes of the hash in a shortened text.
const HASH_BYTES: usize = 8;

/// Shortens a text over [`MAX_RETAINED_BYTES`] to its start and a hash of all of it, so that
/// different texts stay different.
pub fn truncate_with_hash(text: &str) -> Cow<'_, str> {
    if text.len() <= MAX_RETAINED_BYTES {
        return text.into();
    }
    let hash = hex(text.as_bytes());
    format!(
        "{}…{hash}",
        &text[..text.floor_char_boundary(MAX_RETAINED_BYTES - 24)]
    )
    .into()
}

/// Like [`truncate_with_hash`], for bytes.
pub fn truncate_bytes_with_hash(bytes: Vec<u8>) -> Vec<u8> {
    if bytes.len() <= MAX_RETAINED_BYTES {
        return bytes;
    }
    [
        &bytes[..MAX_RETAINED_BYTES - 2 * HASH_BYTES],
        hex(&bytes).as_bytes(),
    ]
    .concat()
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .take(HASH_BYTES)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Truncates a text to at most `max_bytes`, between characters, with an ellipsis.
pub fn truncate(text: &str, max_bytes: usize) -> Cow<'_, str> {
    const ELLIPSIS: &str = "…";
    if text.len() <= max_bytes {
        return text.into();
    }
    let end = text.floor_char_boundary(max_bytes.saturating_sub(ELLIPSIS.len()));
    format!("{}{ELLIPSIS}", &text[..end]).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_truncated_between_characters() {
        let text = "é".repeat(400);
        let short = truncate(&text, 255);
        assert!(short.len() <= 255, "{}", short.len());
        assert!(text.starts_with(short.trim_end_matches('…')) && short.ends_with('…'));
        assert_eq!(
            (truncate("short", 5), truncate("short", 4)),
            ("short".into(), "s…".into())
        );
    }

    #[test]
    fn long_texts_become_short_and_stay_different() {
        let long = |end: char| format!("{}{end}", "é".repeat(5_000));
        assert_ne!(
            truncate_with_hash(&long('a')),
            truncate_with_hash(&long('b'))
        );
        assert_eq!(
            truncate_with_hash(&long('a')),
            truncate_with_hash(&long('a'))
        );
        assert!(truncate_with_hash(&long('a')).len() <= MAX_RETAINED_BYTES);
        assert_eq!(truncate_with_hash("short"), "short");
        let bytes = |end: u8| truncate_bytes_with_hash([vec![1; 5_000], vec![end]].concat());
        assert_eq!((bytes(1), bytes(1).len()), (bytes(1), MAX_RETAINED_BYTES));
        assert_ne!(bytes(1), bytes(2));
        assert_eq!(truncate_bytes_with_hash(vec![7; 3]), [7; 3]);
    }
}
