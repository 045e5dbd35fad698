//! Why a table of the lake could not be read or written, with the library's error as the source.
//!
//! [`AtPath::at`] names the file, [`InView::in_view`] the view that stops. Damage is
//! distinguished from the rest by its variant: the process ends with another exit code.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use deltalake::DeltaTableError;
use parquet::errors::ParquetError;

use super::entities::levels;
use crate::event::Lsn;
use crate::storage::{damage, damage_in};
use crate::views::ViewError;
use crate::wal::DamagedFrame;

/// Why a table could not be read or written.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the messages say what each field is, the types whose errors are passed on"
)]
pub enum LakeError {
    /// At one file or folder.
    #[error("{path}: {source}")]
    File { path: PathBuf, source: FileError },
    /// A file is not as it was written.
    #[error("{}", damage(.path, .problem, .remedy))]
    Damaged {
        path: PathBuf,
        problem: String,
        remedy: Arc<str>,
    },
    /// The same, of which a library has left the text only.
    #[error("{0}")]
    DamageInText(String),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Arrow(#[from] ArrowError),
    #[error(transparent)]
    Parquet(#[from] ParquetError),
    #[error(transparent)]
    Delta(Box<DeltaTableError>),
    #[error(transparent)]
    DataFusion(DataFusionError),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// A frame of the log that waits in memory cannot be decompressed.
    #[error(transparent)]
    Frame(#[from] DamagedFrame),
    #[error("record {first_lsn}: {source}")]
    FrameOf {
        first_lsn: Lsn,
        source: DamagedFrame,
    },
    /// The levels that the table's metadata names.
    #[error("`{}` of the metadata: {source}", levels::KEY)]
    Levels { source: serde_json::Error },
    /// Rows that are not such as Weir writes.
    #[error("{0}")]
    Rows(String),
    #[error("`raw` has {found} and later records where {expected} should be")]
    MissingRecords { expected: Lsn, found: Lsn },
    #[error("a merge of {read} rows wrote {written}; nothing was changed")]
    MergedRows { read: u64, written: u64 },
    #[error("{0} that wrote files panicked")]
    WriterPanicked(&'static str),
    /// An error of another library.
    #[error(transparent)]
    Other(Box<dyn Error + Send + Sync>),
}

/// What is wrong at a file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Parquet(#[from] ParquetError),
    #[error(transparent)]
    Arrow(#[from] ArrowError),
    /// The index in the footer of a level.
    #[error("{}: {source}", levels::FOOTER)]
    LevelIndex { source: serde_json::Error },
}

impl LakeError {
    /// An error of a library that has no variant of its own.
    pub(super) fn other(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Other(error.into())
    }

    /// An error of the disk at a file.
    pub(super) fn at_file(path: &Path, error: io::Error) -> Self {
        Self::File {
            path: path.to_owned(),
            source: error.into(),
        }
    }

    /// Rows that are not such as Weir writes.
    pub(super) fn rows(what: impl Into<String>) -> Self {
        Self::Rows(what.into())
    }

    /// Whether a file is not as it was written.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::DamageInText(_))
    }
}

/// Delta's own libraries turn the error of a store into text.
impl From<DeltaTableError> for LakeError {
    fn from(error: DeltaTableError) -> Self {
        match damage_in(&error.to_string()) {
            Some(message) => Self::DamageInText(message.to_owned()),
            None => Self::Delta(Box::new(error)),
        }
    }
}

/// A merge reads through DataFusion.
impl From<DataFusionError> for LakeError {
    fn from(error: DataFusionError) -> Self {
        let message = error.to_string();
        match damage_in(&message) {
            Some(_) => Self::DamageInText(message),
            None => Self::DataFusion(error),
        }
    }
}

/// What a query shows of an error does not depend on where in its plan it came from.
impl From<LakeError> for DataFusionError {
    fn from(error: LakeError) -> Self {
        Self::Execution(error.to_string())
    }
}

impl From<LakeError> for ParquetError {
    fn from(error: LakeError) -> Self {
        Self::External(Box::new(error))
    }
}

impl From<LakeError> for object_store::Error {
    fn from(error: LakeError) -> Self {
        Self::Generic {
            store: "lake",
            source: Box::new(error),
        }
    }
}

/// Names the file of an error.
pub(super) trait AtPath<T> {
    fn at(self, path: &Path) -> Result<T, LakeError>;
}

impl<T, E: Into<FileError>> AtPath<T> for Result<T, E> {
    fn at(self, path: &Path) -> Result<T, LakeError> {
        self.map_err(|error| LakeError::File {
            path: path.to_owned(),
            source: error.into(),
        })
    }
}

/// Makes an error that of a view.
pub(super) trait InView<T> {
    fn in_view(self, view: impl fmt::Display) -> Result<T, ViewError>;

    /// Of the view whose table is in this folder.
    fn in_folder(self, folder: &Path) -> Result<T, ViewError>;
}

impl<T, E: Into<LakeError>> InView<T> for Result<T, E> {
    fn in_view(self, view: impl fmt::Display) -> Result<T, ViewError> {
        self.map_err(|error| ViewError::Lake {
            view: view.to_string(),
            source: Box::new(error.into()),
        })
    }

    fn in_folder(self, folder: &Path) -> Result<T, ViewError> {
        self.map_err(|error| ViewError::Lake {
            view: folder.display().to_string(),
            source: Box::new(error.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damaged() -> LakeError {
        LakeError::Damaged {
            path: "lake/t/a.parquet".into(),
            problem: "it is truncated".into(),
            remedy: "restore it".into(),
        }
    }

    const MESSAGE: &str = "damaged file: lake/t/a.parquet: it is truncated; restore it";

    #[test]
    fn damage_is_known_as_such_behind_every_library() {
        let parquet = || ParquetError::from(damaged());
        let through_delta = DeltaTableError::generic(format!("scan: {}\n", damaged()));
        for (error, message) in [
            (damaged(), MESSAGE.to_owned()),
            (through_delta.into(), MESSAGE.to_owned()),
            (
                DataFusionError::from(damaged()).into(),
                format!("Execution error: {MESSAGE}"),
            ),
            (
                DataFusionError::from(parquet()).into(),
                format!("Parquet error: External: {MESSAGE}"),
            ),
            (
                DataFusionError::from(object_store::Error::from(damaged())).into(),
                format!("Object Store error: Generic lake error: {MESSAGE}"),
            ),
        ] {
            assert!(error.is_damage(), "{error:?}");
            assert_eq!(error.to_string(), message);
            let error = Err::<(), _>(error).in_view("lake/t").expect_err("fails");
            // A retry may find the file restored.
            assert!(error.is_damage() && !error.is_final());
            assert_eq!(error.to_string(), format!("lake/t: {message}"));
        }
    }

    #[test]
    fn an_error_of_the_disk_names_its_file_and_has_its_cause() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let failed = Err::<(), _>(full()).at(Path::new("lake/t/a"));
        let error = failed.expect_err("it fails");
        assert!(!error.is_damage());
        assert_eq!(error.to_string(), format!("lake/t/a: {}", full()));
        let error = Err::<(), _>(error).in_folder(Path::new("lake/t"));
        let error = error.expect_err("it fails");
        assert_eq!(error.to_string(), format!("lake/t: lake/t/a: {}", full()));
        let mut causes = std::iter::successors(error.source(), |&cause| cause.source());
        assert!(causes.any(|cause| cause.downcast_ref::<FileError>().is_some()));
        assert!(!error.is_final() && !error.is_damage());
    }
}
