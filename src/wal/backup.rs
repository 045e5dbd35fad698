//! Copies the log while its writer goes on: whole segments, and of the last one the frames that are
//! synced.

use std::path::Path;

use crate::storage::Storage;

use super::reader::{OpenSegment, read_frame};
use super::{WalError, frame, segment};

/// Bytes copied at once.
const COPY_BYTES: usize = 4 << 20;

/// Copies every frame up to `synced_lsn` into another folder, in segments of the same names and
/// sizes; gives their bytes.
pub fn copy(
    storage: &dyn Storage,
    folder: &Path,
    to: &Path,
    synced_lsn: u64,
) -> Result<u64, WalError> {
    storage.create_folder(to).map_err(WalError::io(to))?;
    let names = storage.list(folder).map_err(WalError::io(folder))?;
    let firsts: Vec<u64> = names
        .iter()
        .filter_map(|n| segment::first_lsn(n))
        .filter(|f| *f <= synced_lsn)
        .collect();
    let mut bytes = 0;
    for (at, first) in firsts.iter().enumerate() {
        let path = segment::path(folder, *first);
        let file = storage.open_read_only(&path).map_err(WalError::io(&path))?;
        let size = file.size().map_err(WalError::io(&path))?;
        let mut open = OpenSegment {
            path: path.clone(),
            file: file.clone(),
            size,
            at: segment::HEADER_BYTES as u64,
        };
        let end = if at + 1 < firsts.len() {
            size
        } else {
            synced_end(&mut open, synced_lsn)?
        };
        let mut head = vec![0; segment::HEADER_BYTES];
        file.read_exact_at(&mut head, 0)
            .map_err(WalError::io(&path))?;
        let target = segment::path(to, *first);
        let copy = storage
            .create(&target, size, &head)
            .map_err(WalError::io(&target))?;
        let mut offset = head.len() as u64;
        let mut part = vec![0; COPY_BYTES];
        while offset < end {
            let length = COPY_BYTES.min((end - offset) as usize);
            file.read_exact_at(&mut part[..length], offset)
                .map_err(WalError::io(&path))?;
            copy.write_all_at(&part[..length], offset)
                .map_err(WalError::io(&target))?;
            offset += length as u64;
        }
        copy.sync().map_err(|source| WalError::Sync { source })?;
        bytes += size;
    }
    Ok(bytes)
}

/// The byte behind the last frame that is synced.
fn synced_end(segment: &mut OpenSegment, synced_lsn: u64) -> Result<u64, WalError> {
    while let Some(bytes) = read_frame(segment)? {
        let Ok(frame) = frame::decode(&bytes) else {
            break;
        };
        if frame.header.last_lsn() > synced_lsn {
            break;
        }
        segment.at += frame::padded(bytes.len()) as u64;
    }
    Ok(segment.at)
}
