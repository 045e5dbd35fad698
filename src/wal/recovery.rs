//! Opens what a crash left.
//!
//! A segment is synced whole before the next one is made, so only the last one can end in bytes that never reached the disk.
//! In it, damage is a torn tail, cut and reported, unless something shows that the damaged records had been synced: a valid
//! frame behind them that names a synced LSN at or above them, or a view that stands there. Then nothing is changed and the
//! caller is told the range.
//!
//! Frames above the last LSN known synced may have been read from a cache that never reached the disk: they are written again
//! and synced before anyone may see them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::storage::{File, Storage};

use super::WalError;
use super::record::{self, Frame};
use super::segment::{self, SegmentHeader};

/// Bytes that a crash left behind the last whole frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    pub path: PathBuf,
    pub offset: u64,
    /// LSN that the first lost, never acknowledged record would have had.
    pub lsn: u64,
}

/// The log's state after opening.
pub struct Recovered {
    pub log_id: u64,
    /// The highest LSN in the log; everything up to it is synced.
    pub last_lsn: u64,
    pub torn: Option<TornTail>,
    pub(super) segments: Vec<u64>,
    /// Where the last segment goes on.
    pub(super) tail: Option<Tail>,
}

pub(super) struct Tail {
    pub file: Arc<dyn File>,
    pub size: u64,
    pub at: u64,
}

/// Lists the segments' first LSNs, oldest first, and removes what a crash left half made.
pub(super) fn segments(storage: &dyn Storage, folder: &Path, writable: bool) -> Result<Vec<u64>, WalError> {
    let mut firsts = Vec::new();
    for name in storage.list(folder).map_err(WalError::io(folder))? {
        if let Some(first) = segment::first_lsn(&name) {
            firsts.push(first);
        } else if writable && name.ends_with(".tmp") {
            let path = folder.join(name);
            storage.remove(&path).map_err(WalError::io(&path))?;
        }
    }
    Ok(firsts)
}

fn read_header(storage: &dyn Storage, path: &Path, writable: bool) -> Result<(Arc<dyn File>, SegmentHeader), WalError> {
    let file = if writable { storage.open(path) } else { storage.open_read_only(path) }.map_err(WalError::io(path))?;
    let mut head = [0; segment::HEADER_BYTES];
    if file.size().map_err(WalError::io(path))? < head.len() as u64 {
        return Err(WalError::SegmentHeader { path: path.to_owned() });
    }
    file.read_exact_at(&mut head, 0).map_err(WalError::io(path))?;
    Ok((file, segment::decode(path, &head)?))
}

/// The log's id, as its last segment tells it.
pub(super) fn log_id(storage: &dyn Storage, folder: &Path) -> Result<Option<u64>, WalError> {
    let Some(last) = segments(storage, folder, false)?.pop() else { return Ok(None) };
    read_header(storage, &segment::path(folder, last), false).map(|(_, header)| Some(header.log_id))
}

/// What a scan of the last segment's bytes finds.
struct Scan {
    /// Byte behind the last whole frame.
    end: u64,
    last_lsn: u64,
    /// Highest LSN that a frame names as synced.
    synced_lsn: u64,
    /// Where the first frame above `synced_lsn` begins.
    unsynced_from: u64,
    /// Something else than zeros follows the last whole frame.
    torn: bool,
}

fn frame_at(bytes: &Bytes, at: usize) -> Option<(Frame, usize)> {
    let head = bytes.get(at..)?.first_chunk()?;
    let length = record::claimed_length(head)?;
    let frame = record::decode(&bytes.get(at..at + length).map(|_| bytes.slice(at..at + length))?).ok()?;
    Some((frame, record::padded(length)))
}

/// Reads the frames of a segment. Pure: the decision what damage means is here, without I/O.
fn scan(path: &Path, bytes: &Bytes, first_lsn: u64, views_at: u64) -> Result<Scan, WalError> {
    let mut at = segment::HEADER_BYTES;
    let mut next_lsn = first_lsn;
    let mut synced_lsn = first_lsn - 1;
    let mut starts = Vec::new();
    while let Some((frame, length)) = frame_at(bytes, at).filter(|(f, _)| f.header.first_lsn == next_lsn) {
        starts.push((at as u64, frame.header.last_lsn()));
        synced_lsn = synced_lsn.max(frame.header.synced_lsn);
        next_lsn = frame.header.last_lsn() + 1;
        at += length;
    }
    let rest = bytes.get(at..).unwrap_or_default();
    let torn = rest.iter().any(|b| *b != 0);
    let damaged = |to: u64, evidence: String| WalError::Damaged {
        path: path.to_owned(),
        offset: at as u64,
        from: next_lsn,
        to,
        evidence,
    };
    if torn {
        for start in (at + 8..bytes.len().saturating_sub(record::HEADER_BYTES)).step_by(8) {
            if bytes[start..start + 4] != record::MAGIC {
                continue;
            }
            if let Some((frame, _)) = frame_at(bytes, start)
                && frame.header.synced_lsn >= next_lsn
            {
                let to = frame.header.synced_lsn;
                return Err(damaged(to, format!("the frame at byte {start} names record {to} as synced")));
            }
        }
    }
    if views_at >= next_lsn {
        return Err(damaged(views_at, format!("a view has committed up to record {views_at}")));
    }
    let unsynced_from = starts.iter().find(|(_, last)| *last > synced_lsn).map_or(at as u64, |(start, _)| *start);
    Ok(Scan { end: at as u64, last_lsn: next_lsn - 1, synced_lsn, unsynced_from, torn })
}

/// Opens the log for reading and appending. `views_at` is the highest position that any view has committed; `zero` the LSN
/// before the first one of this instance.
pub(super) fn open(
    storage: &dyn Storage,
    folder: &Path,
    instance: u16,
    zero: u64,
    views_at: u64,
    writable: bool,
) -> Result<Recovered, WalError> {
    let segments = segments(storage, folder, writable)?;
    let Some(&last) = segments.last() else {
        if views_at > zero {
            let path = folder.to_owned();
            return Err(WalError::Missing { path, from: zero + 1, to: views_at });
        }
        return Ok(Recovered { log_id: 0, last_lsn: zero, torn: None, segments, tail: None });
    };
    let path = segment::path(folder, last);
    let (file, header) = read_header(storage, &path, writable)?;
    if header.instance != instance {
        return Err(WalError::Instance { path, found: header.instance, expected: instance });
    }
    let size = file.size().map_err(WalError::io(&path))?;
    let mut bytes = vec![0; usize::try_from(size).expect("64-bit")];
    file.read_exact_at(&mut bytes, 0).map_err(WalError::io(&path))?;
    let bytes = Bytes::from(bytes);
    let found = scan(&path, &bytes, header.first_lsn, views_at)?;
    let torn = found.torn.then(|| TornTail { path: path.clone(), offset: found.end, lsn: found.last_lsn + 1 });
    if writable && (torn.is_some() || found.last_lsn > found.synced_lsn) {
        // A file that was cut short may lack the last frame's padding.
        let again = &bytes[found.unsynced_from as usize..(found.end as usize).min(bytes.len())];
        file.write_all_at(again, found.unsynced_from).map_err(WalError::io(&path))?;
        if found.torn {
            let zeros = vec![0; 1 << 20];
            let mut at = found.end;
            while at < size {
                let part = &zeros[..zeros.len().min((size - at) as usize)];
                file.write_all_at(part, at).map_err(WalError::io(&path))?;
                at += part.len() as u64;
            }
        }
        file.sync().map_err(|source| WalError::Sync { source })?;
    }
    Ok(Recovered {
        log_id: header.log_id,
        last_lsn: found.last_lsn,
        torn,
        segments,
        tail: Some(Tail { file, size, at: found.end }),
    })
}
