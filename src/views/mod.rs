//! Derived, committed state. A view stores its data and its own checkpoint in one atomic step, and
//! ignores output at or below its checkpoint.
//!
//! [`ring`] carries the operators' output to all views, [`driver`] moves one view along it; a view
//! that has fallen out of the ring reads the log. [`lake`], [`search`], [`places`] and [`counts`]
//! are the views. Those that follow one stream with one checkpoint share [`Cursor`] and
//! [`StreamView`].

pub mod counts;
mod cursor;
pub mod driver;
pub mod lake;
mod overlay;
pub mod places;
pub mod ring;
pub(crate) mod search;
mod state_store;

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::event::Lsn;
use crate::ids::{CheckpointId, ViewId};
use crate::operators::Output;
pub(crate) use cursor::{Cursor, StreamView};
use lake::LakeError;

/// A view's own files are verified against their checksums on opening up to this size.
const VERIFIED_BYTES: u64 = 512 << 20;

/// The error for a damaged file of a view: its content can be derived again.
fn derived_damage(path: &Path, what: &str, view: &str, stream: &str) -> ViewError {
    ViewError::Damaged {
        path: path.to_owned(),
        reason: format!("{what}; {}", rebuild_hint(view, stream)),
    }
}

/// The command that repairs a damaged view of a stream.
fn rebuild_hint(view: &str, stream: &str) -> String {
    format!("`weir rebuild {view} --stream {stream}` rebuilds it from `raw` and the log")
}

/// The log that a view's checkpoints belong to: those of another log, as of a restored data folder,
/// mean other records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogIdentity {
    /// The number of the instance, the upper bits of its LSNs.
    pub instance: u16,
    /// Random, drawn when the log was created.
    pub id: u64,
    /// The LSN before the log's first record.
    pub start_lsn: Lsn,
}

/// The error of a library or of the disk.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a view stopped.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum ViewError {
    /// Worth a retry from the last commit: a full disk, a lost race.
    #[error("{view}: {source}")]
    Failed { view: String, source: Cause },
    /// The same for a table of the lake, also where one of its files was found damaged: it may be
    /// restored in the meantime.
    #[error("{view}: {source}")]
    Lake {
        view: String,
        source: Box<LakeError>,
    },
    /// A file of the view is not as it was written, or of another log.
    #[error("{path}: {reason}")]
    Damaged { path: PathBuf, reason: String },
    /// A file has a format that this version does not know.
    #[error("{path} was written by a newer version of weir ({what}); use that version")]
    Newer { path: PathBuf, what: String },
    /// A view has records that the log lacks.
    #[error(
        "{path} is at record {found} of log {log:x}, which this data folder's log does not reach: restore log and views from one backup"
    )]
    Ahead { path: PathBuf, found: Lsn, log: u64 },
}

impl ViewError {
    /// Maps an error of a view that is worth a retry.
    pub fn failed<E: Into<Cause>>(view: impl Into<String>) -> impl Fn(E) -> Self {
        let view = view.into();
        move |error| Self::Failed {
            view: view.clone(),
            source: error.into(),
        }
    }

    /// A retry cannot help.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Failed { .. } | Self::Lake { .. })
    }

    /// What is on the disk is damaged, or of another log or version: a process that ends for this
    /// exits with 65.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Failed { .. } => false,
            Self::Lake { source, .. } => source.is_damage(),
            Self::Damaged { .. } | Self::Newer { .. } | Self::Ahead { .. } => true,
        }
    }
}

/// Makes an error that of a view, worth a retry.
trait InView<T> {
    fn in_view(self, view: impl Into<String>) -> Result<T, ViewError>;
}

impl<T, E: Into<Cause>> InView<T> for Result<T, E> {
    fn in_view(self, view: impl Into<String>) -> Result<T, ViewError> {
        self.map_err(ViewError::failed(view))
    }
}

/// A view as the driver sees it.
pub trait View: Send {
    /// Which view it is.
    fn id(&self) -> &ViewId;

    /// In memory, everything up to this LSN is applied.
    fn applied(&self) -> Lsn;

    /// Committed checkpoints.
    fn checkpoints(&self) -> Vec<(CheckpointId, Lsn)>;

    /// Treats everything up to `lsn` as applied, where this view has no row between its checkpoint
    /// and `lsn`.
    fn advance_to(&mut self, lsn: Lsn);

    /// Applies the rows above [`Self::applied`].
    fn apply(&mut self, output: &Output, now: Instant) -> Result<(), ViewError>;

    /// Whether a commit is due. `caught_up`: the ring has no further output.
    fn is_due(&self, now: Instant, caught_up: bool) -> bool;

    /// Commits data with its checkpoint: what is due, or `all`.
    fn commit(&mut self, all: bool) -> Result<(), ViewError>;

    /// Commits all data, and the checkpoint of everything applied even without new rows.
    fn checkpoint(&mut self) -> Result<(), ViewError>;

    /// Discards what is not committed, after an error.
    fn reset_to_committed(&mut self) -> Result<(), ViewError>;
}
