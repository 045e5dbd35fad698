//! Segment files: `<folder>/<LSN of the first frame, 16 hex digits>.seg`.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `WEIRLOG` and a zero byte |
//! | 8 | 4 | format version, 2 |
//! | 12 | 4 | instance |
//! | 16 | 8 | log id |
//! | 24 | 8 | LSN of the first frame |
//! | 32 | 28 | zero |
//! | 60 | 4 | CRC-32C of the bytes before it |
//! | 64 | … | frames, then zeros |

use std::path::{Path, PathBuf};

use super::WalError;

pub(super) const HEADER_BYTES: usize = 64;
pub(super) const VERSION: u32 = 2;
const MAGIC: [u8; 8] = *b"WEIRLOG\0";

/// The identity of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub instance: u16,
    pub log_id: u64,
    pub first_lsn: u64,
}

/// The path of the segment whose first frame has this LSN.
pub fn path(folder: &Path, first_lsn: u64) -> PathBuf {
    folder.join(format!("{first_lsn:016x}.seg"))
}

/// The first LSN of the segment with this file name; `None` if it is not a segment's.
pub fn first_lsn(name: &str) -> Option<u64> {
    u64::from_str_radix(name.strip_suffix(".seg").filter(|s| s.len() == 16)?, 16).ok()
}

pub(super) fn encode(header: &SegmentHeader) -> [u8; HEADER_BYTES] {
    let mut out = [0; HEADER_BYTES];
    out[..8].copy_from_slice(&MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[12..16].copy_from_slice(&u32::from(header.instance).to_le_bytes());
    out[16..24].copy_from_slice(&header.log_id.to_le_bytes());
    out[24..32].copy_from_slice(&header.first_lsn.to_le_bytes());
    let crc = crc32c::crc32c(&out[..60]);
    out[60..].copy_from_slice(&crc.to_le_bytes());
    out
}

pub(super) fn decode(path: &Path, bytes: &[u8; HEADER_BYTES]) -> Result<SegmentHeader, WalError> {
    let u32_at =
        |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().expect("inside the header"));
    let u64_at =
        |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().expect("inside the header"));
    let version = u32_at(8);
    if bytes[..8] == MAGIC && version > VERSION {
        return Err(WalError::Newer {
            path: path.to_owned(),
            version,
        });
    }
    if bytes[..8] == MAGIC && version < VERSION {
        return Err(WalError::Older {
            path: path.to_owned(),
            version,
        });
    }
    if bytes[..8] != MAGIC || crc32c::crc32c(&bytes[..60]) != u32_at(60) {
        return Err(WalError::SegmentHeader {
            path: path.to_owned(),
        });
    }
    Ok(SegmentHeader {
        instance: u32_at(12) as u16,
        log_id: u64_at(16),
        first_lsn: u64_at(24),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_decodes_to_the_same_and_other_versions_are_rejected() {
        let header = SegmentHeader {
            instance: 3,
            log_id: 77,
            first_lsn: 5,
        };
        let mut bytes = encode(&header);
        assert_eq!(decode(Path::new("x"), &bytes).expect("valid"), header);
        bytes[8] = 3;
        assert!(matches!(
            decode(Path::new("x"), &bytes),
            Err(WalError::Newer { version: 3, .. })
        ));
        bytes[8] = 1;
        assert!(matches!(
            decode(Path::new("x"), &bytes),
            Err(WalError::Older { version: 1, .. })
        ));
        bytes[8] = 2;
        bytes[20] ^= 1;
        assert!(matches!(
            decode(Path::new("x"), &bytes),
            Err(WalError::SegmentHeader { .. })
        ));
    }

    #[test]
    fn names_sort_as_their_numbers() {
        assert_eq!(first_lsn("0000000000000abc.seg"), Some(0xabc));
        assert_eq!(first_lsn("abc.seg"), None);
        assert_eq!(first_lsn("0000000000000abc.seg.tmp"), None);
    }
}
