//! Copies the log while the writer continues: whole segments, and the synced frames of the last
//! one.

use std::path::{Path, PathBuf};

use crate::storage::Storage;

use super::reader::{OpenSegment, read_frame};
use super::{WalError, frame, segment};

/// Bytes copied per read.
const COPY_BYTES: usize = 4 << 20;

/// Copies every frame up to `synced_lsn` to the folder `to`, in segments of the same names and
/// sizes. Returns their total size in bytes.
pub(crate) fn copy(
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
    for (index, first) in firsts.iter().enumerate() {
        let is_last = index + 1 == firsts.len();
        let paths = (segment::path(folder, *first), segment::path(to, *first));
        bytes += copy_segment(storage, paths, is_last.then_some(synced_lsn))?;
    }
    Ok(bytes)
}

/// Copies a segment, of the last one only what is synced. Returns its size in bytes.
fn copy_segment(
    storage: &dyn Storage,
    (path, target): (PathBuf, PathBuf),
    synced_lsn: Option<u64>,
) -> Result<u64, WalError> {
    let file = storage.open_read_only(&path).map_err(WalError::io(&path))?;
    let size = file.size().map_err(WalError::io(&path))?;
    let mut head = vec![0; segment::HEADER_BYTES];
    let mut source = OpenSegment {
        path: path.clone(),
        file: file.clone(),
        size,
        at: head.len() as u64,
    };
    let end = match synced_lsn {
        Some(synced_lsn) => synced_end(&mut source, synced_lsn)?,
        None => size,
    };
    file.read_exact_at(&mut head, 0)
        .map_err(WalError::io(&path))?;
    let copy = storage
        .create(&target, size, &head)
        .map_err(WalError::io(&target))?;
    let mut offset = head.len() as u64;
    let mut chunk = vec![0; COPY_BYTES];
    while offset < end {
        let length = COPY_BYTES.min((end - offset) as usize);
        file.read_exact_at(&mut chunk[..length], offset)
            .map_err(WalError::io(&path))?;
        copy.write_all_at(&chunk[..length], offset)
            .map_err(WalError::io(&target))?;
        offset += length as u64;
    }
    copy.sync().map_err(|source| WalError::Sync { source })?;
    Ok(size)
}

/// The byte after the last synced frame.
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
