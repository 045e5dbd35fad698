//! Opens what a crash left.
//!
//! A segment is synced whole before the next one is made, so only the last one can end in bytes
//! that never reached the disk. In it, damage is a torn tail, cut and reported, unless something
//! shows that the damaged records had been synced: a valid frame behind them that names a synced
//! LSN at or above them, or a view that stands there. Then nothing is changed and the caller is
//! told the range.
//!
//! Frames above the last LSN known synced may have been read from a cache that never reached the
//! disk: they are written again and synced before anyone may see them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::storage::{File, Storage};

use super::WalError;
use super::frame::{self, Frame, Kind};
use super::segment::{self, SegmentHeader};

/// Bytes that a crash left behind the last whole frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    pub path: PathBuf,
    pub offset: u64,
    /// LSN that the first lost, never acknowledged record would have had.
    pub lsn: u64,
}

/// The frame that the log ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastFrame {
    pub kind: Kind,
    pub first_lsn: u64,
    /// Where it begins in the last segment.
    pub offset: u64,
}

/// The log's state after opening.
pub struct Recovered {
    pub log_id: u64,
    /// The highest LSN in the log; everything up to it is synced.
    pub last_lsn: u64,
    pub torn: Option<TornTail>,
    /// The last frame, where the last segment holds one.
    pub last_frame: Option<LastFrame>,
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
pub(super) fn segments(
    storage: &dyn Storage,
    folder: &Path,
    writable: bool,
) -> Result<Vec<u64>, WalError> {
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

fn read_header(
    storage: &dyn Storage,
    path: &Path,
    writable: bool,
) -> Result<(Arc<dyn File>, SegmentHeader), WalError> {
    let file = if writable {
        storage.open(path)
    } else {
        storage.open_read_only(path)
    }
    .map_err(WalError::io(path))?;
    let mut head = [0; segment::HEADER_BYTES];
    if file.size().map_err(WalError::io(path))? < head.len() as u64 {
        return Err(WalError::SegmentHeader {
            path: path.to_owned(),
        });
    }
    file.read_exact_at(&mut head, 0)
        .map_err(WalError::io(path))?;
    Ok((file, segment::decode(path, &head)?))
}

/// The log's id, as its last segment tells it.
pub(super) fn log_id(storage: &dyn Storage, folder: &Path) -> Result<Option<u64>, WalError> {
    let Some(last) = segments(storage, folder, false)?.pop() else {
        return Ok(None);
    };
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
    last_frame: Option<LastFrame>,
    /// Something else than zeros follows the last whole frame.
    torn: bool,
}

/// Bytes read at once behind the last whole frame.
const CHUNK_BYTES: usize = 1 << 20;

/// A segment read in parts: a whole one would stay in memory long after it was looked at.
struct Scanned<'a> {
    path: &'a Path,
    file: &'a dyn File,
    size: u64,
}

impl Scanned<'_> {
    fn bytes(&self, at: u64, length: usize) -> Result<Vec<u8>, WalError> {
        let mut bytes = vec![0; length];
        self.file
            .read_exact_at(&mut bytes, at)
            .map_err(WalError::io(self.path))?;
        Ok(bytes)
    }

    /// The valid frame that begins at a byte, with its padded length.
    fn frame_at(&self, at: u64) -> Result<Option<(Frame, u64)>, WalError> {
        if at + frame::HEADER_BYTES as u64 > self.size {
            return Ok(None);
        }
        let head = self.bytes(at, frame::HEADER_BYTES)?;
        let length = head.first_chunk().and_then(frame::claimed_length);
        let Some(length) = length.filter(|length| at + *length as u64 <= self.size) else {
            return Ok(None);
        };
        let frame = frame::decode(&Bytes::from(self.bytes(at, length)?)).ok();
        Ok(frame.map(|frame| (frame, frame::padded(length) as u64)))
    }

    /// Calls `look` with each chunk from a byte on and its place, until it says that it has seen
    /// enough.
    fn chunks(
        &self,
        from: u64,
        mut look: impl FnMut(u64, &[u8]) -> Result<bool, WalError>,
    ) -> Result<(), WalError> {
        let mut at = from;
        while at < self.size {
            let chunk = self.bytes(at, CHUNK_BYTES.min((self.size - at) as usize))?;
            if look(at, &chunk)? {
                break;
            }
            at += chunk.len() as u64;
        }
        Ok(())
    }
}

/// Reads the frames of a segment and decides what damage means.
fn scan(segment: &Scanned<'_>, first_lsn: u64, views_at: u64) -> Result<Scan, WalError> {
    let mut at = segment::HEADER_BYTES as u64;
    let mut next_lsn = first_lsn;
    let mut synced_lsn = first_lsn - 1;
    let mut starts = Vec::new();
    let mut last_frame = None;
    while let Some((frame, length)) = segment
        .frame_at(at)?
        .filter(|(f, _)| f.header.first_lsn == next_lsn)
    {
        starts.push((at, frame.header.last_lsn()));
        last_frame = Some(LastFrame {
            kind: frame.header.kind,
            first_lsn: next_lsn,
            offset: at,
        });
        synced_lsn = synced_lsn.max(frame.header.synced_lsn);
        next_lsn = frame.header.last_lsn() + 1;
        at += length;
    }
    let mut torn = false;
    segment.chunks(at, |_, chunk| {
        torn = chunk.iter().any(|b| *b != 0);
        Ok(torn)
    })?;
    let damaged = |to: u64, evidence: String| WalError::Damaged {
        path: segment.path.to_owned(),
        offset: at,
        from: next_lsn,
        to,
        evidence,
    };
    if torn {
        // A frame begins at a multiple of 8, and so does each chunk.
        segment.chunks(at + 8, |from, chunk| {
            for start in (0..chunk.len().saturating_sub(frame::MAGIC.len() - 1)).step_by(8) {
                if chunk[start..start + frame::MAGIC.len()] != frame::MAGIC {
                    continue;
                }
                let start = from + start as u64;
                if let Some((frame, _)) = segment.frame_at(start)?
                    && frame.header.synced_lsn >= next_lsn
                {
                    let to = frame.header.synced_lsn;
                    return Err(damaged(
                        to,
                        format!("the frame at byte {start} names record {to} as synced"),
                    ));
                }
            }
            Ok(false)
        })?;
    }
    if views_at >= next_lsn {
        return Err(damaged(
            views_at,
            format!("a view has committed up to record {views_at}"),
        ));
    }
    let unsynced_from = starts
        .iter()
        .find(|(_, last)| *last > synced_lsn)
        .map_or(at, |(start, _)| *start);
    Ok(Scan {
        end: at,
        last_lsn: next_lsn - 1,
        synced_lsn,
        unsynced_from,
        last_frame,
        torn,
    })
}

/// Opens the log for reading and appending. `views_at` is the highest position that any view has
/// committed; `zero` the LSN before the first one of this instance.
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
            return Err(WalError::Missing {
                path,
                from: zero + 1,
                to: views_at,
            });
        }
        return Ok(Recovered {
            log_id: 0,
            last_lsn: zero,
            torn: None,
            last_frame: None,
            segments,
            tail: None,
        });
    };
    let path = segment::path(folder, last);
    let (file, header) = read_header(storage, &path, writable)?;
    if header.instance != instance {
        return Err(WalError::Instance {
            path,
            found: header.instance,
            expected: instance,
        });
    }
    let size = file.size().map_err(WalError::io(&path))?;
    let scanned = Scanned {
        path: &path,
        file: &*file,
        size,
    };
    let found = scan(&scanned, header.first_lsn, views_at)?;
    let torn = found.torn.then(|| TornTail {
        path: path.clone(),
        offset: found.end,
        lsn: found.last_lsn + 1,
    });
    if writable && (torn.is_some() || found.last_lsn > found.synced_lsn) {
        // A file that was cut short may lack the last frame's padding.
        let end = found.end.min(size);
        let mut at = found.unsynced_from;
        while at < end {
            let again = scanned.bytes(at, CHUNK_BYTES.min((end - at) as usize))?;
            file.write_all_at(&again, at).map_err(WalError::io(&path))?;
            at += again.len() as u64;
        }
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
        last_frame: found.last_frame,
        segments,
        tail: Some(Tail {
            file,
            size,
            at: found.end,
        }),
    })
}
