//! Bounds on what records take: whatever is remembered of a record has a limit in bytes, however
//! long the record's values are.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

/// Records of an array on one line; of a longer one none is taken.
pub const MAX_ELEMENTS: usize = 65_536;
/// Longest text that is kept of a key or group, in bytes.
pub const KEPT_BYTES: usize = 128;
/// Bytes of a hash that is kept.
const HASH_BYTES: usize = 8;

/// A text short enough to be kept: of a longer one its beginning and a hash of all of it, so that
/// different ones stay different.
pub fn kept(text: &str) -> Cow<'_, str> {
    if text.len() <= KEPT_BYTES {
        return text.into();
    }
    let hash = hex(text.as_bytes());
    format!(
        "{}…{hash}",
        &text[..text.floor_char_boundary(KEPT_BYTES - 24)]
    )
    .into()
}

/// Bytes short enough to be kept, equal for equal ones.
pub fn kept_bytes(bytes: Vec<u8>) -> Vec<u8> {
    if bytes.len() <= KEPT_BYTES {
        return bytes;
    }
    [
        &bytes[..KEPT_BYTES - 2 * HASH_BYTES],
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

/// The beginning of a text, cut between characters to so many bytes.
pub fn cut(text: &str, bytes: usize) -> Cow<'_, str> {
    const ELLIPSIS: &str = "…";
    if text.len() <= bytes {
        return text.into();
    }
    let end = text.floor_char_boundary(bytes.saturating_sub(ELLIPSIS.len()));
    format!("{}{ELLIPSIS}", &text[..end]).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        let text = "é".repeat(400);
        let short = cut(&text, 255);
        assert!(short.len() <= 255, "{}", short.len());
        assert!(text.starts_with(short.trim_end_matches('…')) && short.ends_with('…'));
        assert_eq!(
            (cut("short", 5), cut("short", 4)),
            ("short".into(), "s…".into())
        );
    }

    #[test]
    fn long_texts_are_kept_short_and_apart() {
        let long = |end: char| format!("{}{end}", "é".repeat(5_000));
        assert_ne!(kept(&long('a')), kept(&long('b')));
        assert_eq!(kept(&long('a')), kept(&long('a')));
        assert!(kept(&long('a')).len() <= KEPT_BYTES);
        assert_eq!(kept("short"), "short");
        let bytes = |end: u8| kept_bytes([vec![1; 5_000], vec![end]].concat());
        assert_eq!((bytes(1), bytes(1).len()), (bytes(1), KEPT_BYTES));
        assert_ne!(bytes(1), bytes(2));
        assert_eq!(kept_bytes(vec![7; 3]), [7; 3]);
    }
}
