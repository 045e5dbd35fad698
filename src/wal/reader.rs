//! Reads synced frames, from any LSN on, while the writer continues.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::storage::{File, Storage};

use super::frame::{self, Frame};
use super::{WalError, segment};

/// A cursor over the log.
pub struct LogReader {
    storage: Arc<dyn Storage>,
    folder: PathBuf,
    open: Option<OpenSegment>,
    /// The LSN up to which everything has been read.
    after: u64,
}

/// The segment after the one read.
enum NextSegment {
    /// It begins with the next LSN.
    Contiguous,
    /// It begins later: retention has removed the segments before it.
    AfterGap {
        path: PathBuf,
        first_lsn: u64,
    },
    None,
}

/// A segment and the read position in it.
pub(super) struct OpenSegment {
    pub path: PathBuf,
    pub file: Arc<dyn File>,
    pub size: u64,
    /// Byte offset of the next frame.
    pub at: u64,
}

impl LogReader {
    /// A reader that starts after the record `after`.
    pub fn new(storage: Arc<dyn Storage>, folder: PathBuf, after: u64) -> Self {
        Self {
            storage,
            folder,
            open: None,
            after,
        }
    }

    /// The LSN up to which everything has been read.
    pub fn after(&self) -> u64 {
        self.after
    }

    /// The next frame that holds a record above the cursor and begins at or below `limit`, an LSN
    /// known synced; `None` once the cursor has reached it. The first frame may begin at or below
    /// the cursor: the caller skips its first records.
    ///
    /// # Errors
    ///
    /// [`WalError::Missing`] if retention has removed the next record, [`WalError::Damaged`] if it
    /// cannot be read.
    pub fn next(&mut self, limit: u64) -> Result<Option<Frame>, WalError> {
        while self.after < limit {
            if self.open.is_none() {
                self.open = Some(self.open_segment()?);
            }
            let segment = self.open.as_mut().expect("opened above");
            match read_frame(segment)? {
                Some(bytes) => {
                    let frame = frame::decode(&bytes).map_err(|_| WalError::Damaged {
                        path: segment.path.clone(),
                        offset: segment.at,
                        from: self.after + 1,
                        to: limit,
                        evidence: format!("record {limit} is known synced"),
                    })?;
                    let header = &frame.header;
                    let last = header.last_lsn();
                    segment.at += frame::padded(bytes.len()) as u64;
                    if last <= self.after {
                        continue;
                    }
                    if header.first_lsn > self.after + 1 {
                        return Err(WalError::Missing {
                            path: segment.path.clone(),
                            from: self.after + 1,
                            to: header.first_lsn - 1,
                        });
                    }
                    self.after = last;
                    return Ok(Some(frame));
                }
                None => {
                    let (path, at) = (segment.path.clone(), segment.at);
                    match self.next_segment(&path)? {
                        NextSegment::Contiguous => self.open = None,
                        NextSegment::AfterGap { path, first_lsn } => {
                            return Err(WalError::Missing {
                                path,
                                from: self.after + 1,
                                to: first_lsn - 1,
                            });
                        }
                        NextSegment::None => {
                            return Err(WalError::Damaged {
                                path,
                                offset: at,
                                from: self.after + 1,
                                to: limit,
                                evidence: format!("record {limit} is known synced"),
                            });
                        }
                    }
                }
            }
        }
        Ok(None)
    }

    /// Looks for the segment that follows one that was read to its end.
    fn next_segment(&self, segment: &Path) -> Result<NextSegment, WalError> {
        let names = self
            .storage
            .list(&self.folder)
            .map_err(WalError::io(&self.folder))?;
        let still_exists = names.iter().any(|name| self.folder.join(name) == segment);
        let firsts = names.iter().filter_map(|name| segment::first_lsn(name));
        let next = firsts
            .filter(|first| segment::path(&self.folder, *first) != segment)
            .find(|f| *f > self.after);
        Ok(match next {
            Some(first) if first == self.after + 1 => NextSegment::Contiguous,
            // The oldest segments are removed first: if this one still exists, no later one was
            // removed, so its own end is damaged.
            Some(first_lsn) if !still_exists => NextSegment::AfterGap {
                path: segment::path(&self.folder, first_lsn),
                first_lsn,
            },
            _ => NextSegment::None,
        })
    }

    fn open_segment(&self) -> Result<OpenSegment, WalError> {
        let names = self
            .storage
            .list(&self.folder)
            .map_err(WalError::io(&self.folder))?;
        let firsts: Vec<u64> = names.iter().filter_map(|n| segment::first_lsn(n)).collect();
        let wanted = self.after + 1;
        let Some(first) = firsts.iter().rev().find(|first| **first <= wanted) else {
            let to = firsts.first().map_or(wanted, |first| first - 1);
            return Err(WalError::Missing {
                path: self.folder.clone(),
                from: wanted,
                to,
            });
        };
        let path = segment::path(&self.folder, *first);
        let file = match self.storage.open_read_only(&path) {
            // It was removed after it was listed.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(WalError::Missing {
                    path: self.folder.clone(),
                    from: wanted,
                    to: wanted,
                });
            }
            file => file.map_err(WalError::io(&path))?,
        };
        let size = file.size().map_err(WalError::io(&path))?;
        Ok(OpenSegment {
            path,
            file,
            size,
            at: segment::HEADER_BYTES as u64,
        })
    }
}

/// The bytes of the frame at the read position; `None` after the last one.
pub(super) fn read_frame(segment: &OpenSegment) -> Result<Option<Bytes>, WalError> {
    let mut head = [0; frame::HEADER_BYTES];
    if segment.at + head.len() as u64 > segment.size {
        return Ok(None);
    }
    segment
        .file
        .read_exact_at(&mut head, segment.at)
        .map_err(WalError::io(&segment.path))?;
    let Some(length) =
        frame::claimed_length(&head).filter(|l| segment.at + *l as u64 <= segment.size)
    else {
        return Ok(None);
    };
    let mut bytes = vec![0; length];
    segment
        .file
        .read_exact_at(&mut bytes, segment.at)
        .map_err(WalError::io(&segment.path))?;
    Ok(Some(bytes.into()))
}
