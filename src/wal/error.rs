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
    #[error("{path}: {}", explain(.source))]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "syncing the log failed ({source}); how much of the last writes reached the disk is unknown, so no more records are accepted: restart to read the log from disk"
    )]
    Sync { source: io::Error },
    #[error(
        "{path} was written by a newer version of weir (log format {version}); use that version"
    )]
    Newer { path: PathBuf, version: u32 },
    #[error(
        "{path} has the log format {version} of a version before the first release; move the data folder away and read the sources again"
    )]
    Older { path: PathBuf, version: u32 },
    #[error("{path}: the segment's header is damaged; restore the file from a backup")]
    SegmentHeader { path: PathBuf },
    #[error(
        "{path} at byte {offset}: records {from} to {to} are damaged although they were synced ({evidence}); restore the file from a backup, nothing has been changed"
    )]
    Damaged {
        path: PathBuf,
        offset: u64,
        from: u64,
        to: u64,
        evidence: String,
    },
    #[error(
        "records {from} to {to} of the log are missing: {path} begins later; restore the missing segment from a backup"
    )]
    Missing { path: PathBuf, from: u64, to: u64 },
    #[error(
        "{path} belongs to instance {found}, this one is {expected}: set `instance = {found}`, or use another data folder"
    )]
    Instance {
        path: PathBuf,
        found: u16,
        expected: u16,
    },
    #[error(
        "the log has {bytes} bytes and its budget is {budget} (`[log] budget`): views are behind, or it is too small"
    )]
    Budget { bytes: u64, budget: u64 },
    #[error(
        "the disk has {free} bytes left, which the views may need for what is already in the log; free some space, records are then accepted again automatically"
    )]
    NoSpace { free: u64 },
    #[error("a frame of {bytes} bytes is over the limit of 64 MiB")]
    TooLarge { bytes: usize },
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
