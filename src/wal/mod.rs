//! The write-ahead log: frames of opaque records in segment files, numbered, checked, synced.
//! Everything else in Weir is a function of a prefix of it.
//!
//! [`frame`] describes a frame's bytes, [`segment`] a file's; [`recovery`] opens what a crash
//! left; [`writer`] appends; [`reader`] reads what is synced; [`space`] and [`retention`] decide
//! what it may take and what may go; [`backup`] copies.

pub mod attributes;
pub mod backup;
pub mod frame;
pub mod reader;
pub mod recovery;
pub mod retention;
pub mod segment;
pub mod space;
pub mod writer;

use std::io;
use std::path::PathBuf;

use crate::storage::{IoKind, explain};
pub use attributes::{FileIdentity, FrameAttributes, Sorted};
pub use frame::{Frame, Header, Kind, Records, RecordsBuilder};
pub use reader::LogReader;
pub use recovery::{LastFrame, Recovered, TornTail};
pub use writer::{Wal, WalOptions};

/// Why the log cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    #[error("{path}: {}", explain(.source))]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "the log's sync failed ({source}); what was written since the last one is unknown, so nothing more is taken: restart to read again what the disk holds"
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
        "the disk has {free} bytes left, which the views may need for what is in the log already; make room, records are taken again by themselves"
    )]
    NoRoom { free: u64 },
    #[error("a frame of {bytes} bytes is over the limit of 64 MiB")]
    TooLarge { bytes: usize },
}

impl WalError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// No room for another segment: nothing is lost, and it passes when views have committed or
    /// something is removed.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => IoKind::of(source) == IoKind::Full,
            Self::Budget { .. } | Self::NoRoom { .. } => true,
            _ => false,
        }
    }

    /// What keeps the log from growing may pass: a disk that is full, read-only, or fails where a
    /// segment should be made. The caller waits and tries again; nothing is lost.
    pub fn may_pass(&self) -> bool {
        self.is_full() || matches!(self, Self::Io { .. })
    }

    /// What kind of trouble it is, for those who are refused.
    pub fn kind(&self) -> IoKind {
        match self {
            Self::Io { source, .. } | Self::Sync { source } => IoKind::of(source),
            Self::Budget { .. } | Self::NoRoom { .. } => IoKind::Full,
            _ => IoKind::Broken,
        }
    }
}
