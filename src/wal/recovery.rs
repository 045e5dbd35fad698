//! Opens the log after a crash.
//!
//! A segment is synced completely before the next one is created, so only the last one can end in
//! bytes that never reached the disk. Damage there is a torn tail, which is truncated and reported,
//! unless there is evidence that the damaged records had been synced: a valid frame after them that
//! names a synced LSN at or above them, or a view that has committed them. Then nothing is changed,
//! and the error names the range.
//!
//! Records 1 to 7 are valid, then the segment holds:
//!
//! | after record 7 | views committed | opening |
//! |---|---|---|
//! | zeros | up to 7 | the log ends with 7 |
//! | bytes that are not a frame, nothing valid after them | up to 7 | a torn tail at 8 |
//! | damage, then a frame that names 7 as synced | up to 7 | a torn tail at 8: one sync was to cover both |
//! | damage, then a frame that names 8 as synced | up to 7 | error: record 8 is damaged |
//! | anything else | up to 9 | error: records 8 to 9 are damaged |
//!
//! A frame names what was synced when it was appended, so nothing vouches for the last frames that
//! were synced: if the disk loses these later, and no view has committed them, they are taken for a
//! torn tail.
//!
//! Frames above the last LSN known synced may have been read from a cache that never reached the
//! disk: they are rewritten and synced before anyone may see them. With the frames 1 to 5 and 6 to
//! 7, the latter naming 5 as synced, these are 6 and 7.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::storage::{File, Storage};

use super::WalError;
use super::frame::{self, Frame, Kind};
use super::segment::{self, SegmentHeader};

/// Bytes that a crash left after the last complete frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// The last segment.
    pub path: PathBuf,
    /// Where its last complete frame ends, in bytes.
    pub offset: u64,
    /// LSN of the first lost record, which was not acknowledged as far as the log shows.
    pub lsn: u64,
}

/// The frame that the log ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastFrame {
    /// What it carries.
    pub kind: Kind,
    /// LSN of its first record.
    pub first_lsn: u64,
    /// Its byte offset in the last segment.
    pub offset: u64,
}

/// The log's state after opening.
pub struct Recovered {
    /// Identifies the log: views recognize by it that they belong to another one.
    pub log_id: u64,
    /// The highest LSN in the log; everything up to it is synced.
    pub last_lsn: u64,
    /// What a crash left; truncated unless the log was only read.
    pub torn: Option<TornTail>,
    /// The last frame; `None` if the last segment is empty.
    pub last_frame: Option<LastFrame>,
    pub(super) segments: Vec<u64>,
    /// Where writing continues in the last segment.
    pub(super) write_position: Option<WritePosition>,
}

pub(super) struct WritePosition {
    pub file: Arc<dyn File>,
    pub size: u64,
    /// Byte offset after the last frame.
    pub at: u64,
}

/// Which log is expected in a folder.
pub(super) struct LogLocation<'a> {
    pub folder: &'a Path,
    pub instance: u16,
    /// The LSN before the instance's first one.
    pub start_lsn: u64,
}

/// Lists the segments' first LSNs, oldest first; if `writable`, removes files that a crash left
/// incomplete.
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

/// The log's id, from its last segment; `None` if there is no log.
pub(super) fn log_id(storage: &dyn Storage, folder: &Path) -> Result<Option<u64>, WalError> {
    let Some(last) = segments(storage, folder, false)?.pop() else {
        return Ok(None);
    };
    read_header(storage, &segment::path(folder, last), false).map(|(_, header)| Some(header.log_id))
}

/// The result of scanning the last segment.
struct TailScan {
    /// Byte after the last complete frame.
    end: u64,
    last_lsn: u64,
    /// Highest LSN that a frame names as synced.
    synced_lsn: u64,
    /// Byte at which the first frame above `synced_lsn` begins.
    unsynced_from: u64,
    last_frame: Option<LastFrame>,
    /// Whether bytes other than zeros follow the last complete frame.
    is_torn: bool,
}

/// Bytes read or written at once.
const CHUNK_BYTES: usize = 1 << 20;

/// A segment, read in chunks to bound the memory.
struct SegmentReader<'a> {
    path: &'a Path,
    file: &'a dyn File,
    size: u64,
}

impl SegmentReader<'_> {
    fn bytes(&self, at: u64, length: usize) -> Result<Vec<u8>, WalError> {
        let mut bytes = vec![0; length];
        self.file
            .read_exact_at(&mut bytes, at)
            .map_err(WalError::io(self.path))?;
        Ok(bytes)
    }

    /// The valid frame that begins at this byte, with its padded length.
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

    /// Calls `inspect` with each chunk from byte `from` on and its offset, until it returns true.
    fn chunks(
        &self,
        from: u64,
        mut inspect: impl FnMut(u64, &[u8]) -> Result<bool, WalError>,
    ) -> Result<(), WalError> {
        let mut at = from;
        while at < self.size {
            let chunk = self.bytes(at, CHUNK_BYTES.min((self.size - at) as usize))?;
            if inspect(at, &chunk)? {
                break;
            }
            at += chunk.len() as u64;
        }
        Ok(())
    }

    fn has_bytes_after(&self, end: u64) -> Result<bool, WalError> {
        let mut found = false;
        self.chunks(end, |_, chunk| {
            found = chunk.iter().any(|b| *b != 0);
            Ok(found)
        })?;
        Ok(found)
    }

    /// The first valid frame after the damage that names `lsn` or a later record as synced: its
    /// byte and that record's LSN.
    ///
    /// The length of what is damaged is not known, so every byte at which a frame may begin is
    /// tried. Bytes of a record that look like a frame would need its checksum, too.
    fn sync_evidence(&self, damage_at: u64, lsn: u64) -> Result<Option<(u64, u64)>, WalError> {
        const MAGIC_BYTES: usize = frame::MAGIC.len();
        let mut evidence = None;
        // A frame begins at a multiple of 8, and so does each chunk.
        self.chunks(damage_at + 8, |from, chunk| {
            for start in (0..chunk.len().saturating_sub(MAGIC_BYTES - 1)).step_by(8) {
                if chunk[start..start + MAGIC_BYTES] != frame::MAGIC {
                    continue;
                }
                let start = from + start as u64;
                if let Some((frame, _)) = self.frame_at(start)?
                    && frame.header.synced_lsn >= lsn
                {
                    evidence = Some((start, frame.header.synced_lsn));
                    return Ok(true);
                }
            }
            Ok(false)
        })?;
        Ok(evidence)
    }
}

/// Reads the frames of a segment and decides whether bytes after them are a torn tail or damage.
/// A valid frame whose LSN is not the next one counts as damage.
fn scan(segment: &SegmentReader<'_>, first_lsn: u64, views_at: u64) -> Result<TailScan, WalError> {
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
    let damaged = |to: u64, evidence: String| WalError::Damaged {
        path: segment.path.to_owned(),
        offset: at,
        from: next_lsn,
        to,
        evidence,
    };
    let is_torn = segment.has_bytes_after(at)?;
    if is_torn && let Some((start, to)) = segment.sync_evidence(at, next_lsn)? {
        return Err(damaged(
            to,
            format!("the frame at byte {start} names record {to} as synced"),
        ));
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
    Ok(TailScan {
        end: at,
        last_lsn: next_lsn - 1,
        synced_lsn,
        unsynced_from,
        last_frame,
        is_torn,
    })
}

/// Opens the log. `views_at` is the highest LSN that any view has committed. Only if `writable`, a
/// torn tail is truncated and unsynced frames are synced.
pub(super) fn open(
    storage: &dyn Storage,
    location: &LogLocation<'_>,
    views_at: u64,
    writable: bool,
) -> Result<Recovered, WalError> {
    let LogLocation {
        folder,
        instance,
        start_lsn,
    } = *location;
    let segments = segments(storage, folder, writable)?;
    let Some(&last) = segments.last() else {
        if views_at > start_lsn {
            return Err(WalError::Missing {
                path: folder.to_owned(),
                from: start_lsn + 1,
                to: views_at,
            });
        }
        return Ok(Recovered {
            log_id: 0,
            last_lsn: start_lsn,
            torn: None,
            last_frame: None,
            segments,
            write_position: None,
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
    let reader = SegmentReader {
        path: &path,
        file: &*file,
        size,
    };
    let scan = scan(&reader, header.first_lsn, views_at)?;
    if writable && (scan.is_torn || scan.last_lsn > scan.synced_lsn) {
        repair(&reader, &scan)?;
    }
    Ok(Recovered {
        log_id: header.log_id,
        last_lsn: scan.last_lsn,
        torn: scan.is_torn.then(|| TornTail {
            path: path.clone(),
            offset: scan.end,
            lsn: scan.last_lsn + 1,
        }),
        last_frame: scan.last_frame,
        segments,
        write_position: Some(WritePosition {
            file,
            size,
            at: scan.end,
        }),
    })
}

/// Rewrites the frames that may not be synced, overwrites a torn tail with zeros, and syncs.
fn repair(segment: &SegmentReader<'_>, scan: &TailScan) -> Result<(), WalError> {
    let SegmentReader { path, file, size } = *segment;
    // A file that was truncated may lack the last frame's padding, which `scan.end` includes.
    let end = scan.end.min(size);
    let mut at = scan.unsynced_from;
    while at < end {
        let chunk = segment.bytes(at, CHUNK_BYTES.min((end - at) as usize))?;
        file.write_all_at(&chunk, at).map_err(WalError::io(path))?;
        at += chunk.len() as u64;
    }
    if scan.is_torn {
        let zeros = vec![0; CHUNK_BYTES];
        let mut at = scan.end;
        while at < size {
            let part = &zeros[..zeros.len().min((size - at) as usize)];
            file.write_all_at(part, at).map_err(WalError::io(path))?;
            at += part.len() as u64;
        }
    }
    file.sync().map_err(|source| WalError::Sync { source })
}
