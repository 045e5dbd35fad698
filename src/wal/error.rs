//! Errors of the log.

use std::io;
use std::path::PathBuf;

use crate::storage::{IoKind, explain};

/// Bytes that are not a valid frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are not a valid frame")]
pub struct DamagedFrame;

/// Why the log cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// A file operation failed. Nothing is lost; it may be retried.
    #[error("{path}: {}", explain(.source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system reports.
        source: io::Error,
    },
    /// A write or sync of the log failed: what the disk holds is unknown.
    #[error(
        "syncing the log failed ({source}); how much of the last writes reached the disk is unknown, so no more records are accepted: restart to read the log from disk"
    )]
    Sync {
        /// What the operating system reports.
        source: io::Error,
    },
    /// The segment has a format that this version does not know.
    #[error(
        "{path} was written by a newer version of weir (log format {version}); use that version"
    )]
    Newer {
        /// The segment.
        path: PathBuf,
        /// The version in its header.
        version: u32,
    },
    /// The segment has a format that this version no longer reads.
    #[error(
        "{path} has the log format {version} of a version before the first release; move the data folder away and read the sources again"
    )]
    Older {
        /// The segment.
        path: PathBuf,
        /// The version in its header.
        version: u32,
    },
    /// The segment's first 64 bytes are not a valid header.
    #[error("{path}: the segment's header is damaged; restore the file from a backup")]
    SegmentHeader {
        /// The segment.
        path: PathBuf,
    },
    /// A synced record does not have a valid frame.
    #[error(
        "{path} at byte {offset}: records {from} to {to} are damaged although they were synced ({evidence}); restore the file from a backup, nothing has been changed"
    )]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where in it the first damaged frame begins, in bytes.
        offset: u64,
        /// LSN of the first damaged record.
        from: u64,
        /// LSN of the last record that may be damaged.
        to: u64,
        /// Why the records must have been synced.
        evidence: String,
    },
    /// The log has a hole, or begins above the wanted record.
    #[error(
        "records {from} to {to} of the log are missing: {path} begins later; restore the missing segment from a backup"
    )]
    Missing {
        /// The segment after the hole, or the log's folder.
        path: PathBuf,
        /// LSN of the first missing record.
        from: u64,
        /// LSN of the last missing record.
        to: u64,
    },
    /// The segment's LSNs are those of another instance.
    #[error(
        "{path} belongs to instance {found}, this one is {expected}: set `instance = {found}`, or use another data folder"
    )]
    Instance {
        /// The segment.
        path: PathBuf,
        /// The instance in its header.
        found: u16,
        /// The configured instance.
        expected: u16,
    },
    /// The log may not grow further, by configuration.
    #[error(
        "the log has {bytes} bytes and its budget is {budget} (`[log] budget`): views are behind, or it is too small"
    )]
    Budget {
        /// Size of all segments.
        bytes: u64,
        /// Their configured maximum.
        budget: u64,
    },
    /// The log may not grow further, because the views need the rest of the disk.
    #[error(
        "the disk has {free} bytes left, which the views may need for what is already in the log; free some space, records are then accepted again automatically"
    )]
    NoSpace {
        /// Bytes free on the file system: less than the views may need, and the reserve.
        free: u64,
    },
    /// A frame that no reader would accept.
    #[error("a frame of {bytes} bytes is over the limit of 64 MiB")]
    TooLarge {
        /// Its length when encoded.
        bytes: usize,
    },
}

impl WalError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// No space for another segment. Nothing is lost; it resolves itself once views have committed
    /// or files are removed.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => IoKind::of(source) == IoKind::Full,
            Self::Budget { .. } | Self::NoSpace { .. } => true,
            _ => false,
        }
    }

    /// The condition may pass: the disk is full, read-only, or failed while a segment was being
    /// created. The caller waits and retries; nothing is lost.
    pub(crate) fn is_transient(&self) -> bool {
        self.is_full() || matches!(self, Self::Io { .. })
    }

    /// The kind of disk trouble, reported to callers whose records are rejected.
    pub(crate) fn kind(&self) -> IoKind {
        match self {
            Self::Io { source, .. } | Self::Sync { source } => IoKind::of(source),
            Self::Budget { .. } | Self::NoSpace { .. } => IoKind::Full,
            _ => IoKind::Broken,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_classified_by_what_resolves_them() {
        // ENOSPC, EROFS, EIO.
        let io_error = |errno: i32| WalError::io("x")(io::Error::from_raw_os_error(errno));
        let sync_error = WalError::Sync {
            source: io::Error::from_raw_os_error(28),
        };
        let budget = WalError::Budget {
            bytes: 2,
            budget: 1,
        };
        let path = PathBuf::from("x");
        for (error, is_full, is_transient, kind) in [
            (io_error(28), true, true, IoKind::Full),
            (io_error(30), false, true, IoKind::ReadOnly),
            (io_error(5), false, true, IoKind::Broken),
            (budget, true, true, IoKind::Full),
            (WalError::NoSpace { free: 1 }, true, true, IoKind::Full),
            (sync_error, false, false, IoKind::Full),
            (
                WalError::SegmentHeader { path },
                false,
                false,
                IoKind::Broken,
            ),
        ] {
            let found = (error.is_full(), error.is_transient(), error.kind());
            assert_eq!(found, (is_full, is_transient, kind), "{error}");
        }
    }
}
