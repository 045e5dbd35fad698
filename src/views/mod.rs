//! Derived, committed state. A view stores its data and its own checkpoint in one atomic step, and
//! ignores what is at or below it.
//!
//! [`ring`] carries the operators' output to all views, [`driver`] moves one view along it; a view
//! that has fallen out of the ring reads the log again. [`lake`], [`search`], [`places`] and
//! [`counts`] are the views.

pub mod counts;
pub mod driver;
pub mod lake;
mod overlay;
pub mod places;
pub mod ring;
pub mod search;
pub mod state_store;

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::event::Lsn;
use crate::operators::Output;

/// Bytes of a view's own files up to which all of them are compared with their checksums when they
/// are opened.
const VERIFIED_BYTES: u64 = 512 << 20;

/// The error about a view's file that is not as it was written: what it follows from is still
/// there.
fn derived_damage(path: &Path, what: &str, view: &str, stream: &str) -> ViewError {
    ViewError::Damaged {
        path: path.to_owned(),
        reason: format!("{what}; {}", rebuild_hint(view, stream)),
    }
}

/// The command that repairs a damaged view of a stream.
fn rebuild_hint(view: &str, stream: &str) -> String {
    format!("`weir rebuild {view} --stream {stream}` makes it again from `raw` and the log")
}

/// Why a view could not go on.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// Worth another try from what is committed: a full disk, a lost race.
    #[error("{view}: {reason}")]
    Failed { view: String, reason: String },
    #[error("{path}: {reason}")]
    Damaged { path: PathBuf, reason: String },
    #[error("{path} was written by a newer version of weir ({what}); use that version")]
    Newer { path: PathBuf, what: String },
    #[error(
        "{path} stands at record {found} of log {log:x}, which this data folder's log does not reach: restore log and views from one backup"
    )]
    Ahead { path: PathBuf, found: Lsn, log: u64 },
}

impl ViewError {
    pub fn failed(view: impl Into<String>) -> impl FnOnce(String) -> Self {
        let view = view.into();
        move |reason| Self::Failed { view, reason }
    }

    /// Another try cannot help; the process ends with exit 65.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Failed { .. })
    }
}

/// What the driver asks of a view.
pub trait View: Send {
    fn name(&self) -> &str;

    /// In memory, everything up to this LSN is applied.
    fn applied(&self) -> Lsn;

    /// Committed checkpoints by the names that snapshots use.
    fn checkpoints(&self) -> Vec<(String, Lsn)>;

    /// Treats everything up to `lsn` as applied, where no row of this view lies between its
    /// checkpoint and there.
    fn skip_to(&mut self, lsn: Lsn);

    /// Takes the rows above what is applied.
    fn apply(&mut self, output: &Output, now: Instant) -> Result<(), ViewError>;

    /// Whether something should be committed now. `caught_up`: nothing more is waiting in the ring.
    fn is_due(&self, now: Instant, caught_up: bool) -> bool;

    /// Commits data with its checkpoint: what is due, or `all`.
    fn commit(&mut self, all: bool) -> Result<(), ViewError>;

    /// Commits all data, and the checkpoint of everything applied also where it has no row.
    fn settle(&mut self) -> Result<(), ViewError>;

    /// Gives up what is not committed, after an error.
    fn reopen(&mut self) -> Result<(), ViewError>;
}
