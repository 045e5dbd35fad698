//! Why the process cannot continue, and with which exit code.

use crate::config::ConfigError;
use crate::ingest::IngestError;
use crate::operators::OperatorError;
use crate::query::QueryError;
use crate::storage::damage_in;
use crate::views::ViewError;
use crate::views::lake::LakeError;
use crate::wal::WalError;

/// Why the process cannot continue.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Wrong usage, or a configuration that cannot apply to this folder.
    #[error("{0}")]
    Config(String),
    /// The configuration is wrong by itself.
    #[error(transparent)]
    ConfigFile(#[from] ConfigError),
    /// Data that is damaged, or from another backup than the rest.
    #[error("{0}")]
    Damaged(String),
    /// Another process works on the data folder.
    #[error("{0}")]
    InUse(String),
    /// Records were not accepted.
    #[error(transparent)]
    NotTaken(IngestError),
    /// Of the log.
    #[error(transparent)]
    Log(#[from] WalError),
    /// Of the operators or their snapshots.
    #[error(transparent)]
    Operators(#[from] OperatorError),
    /// Of a view, which stops.
    #[error(transparent)]
    View(#[from] ViewError),
    /// Of a table that is read outside its view.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// Of a query that the runtime or a verb asked.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
    /// Of several parts.
    #[error("{}", texts(.0))]
    Several(Vec<RuntimeError>),
}

fn texts(errors: &[RuntimeError]) -> String {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

/// A part of the process, and why it has not done its work.
#[derive(Debug)]
pub struct PartError {
    /// `source/NAME`, `sink/NAME`, `log`, `operators`, `view/KIND/NAME` or another thread's name.
    pub part: String,
    /// Complete without the part's name.
    pub error: RuntimeError,
}

impl PartError {
    pub(crate) fn new(part: &str, error: RuntimeError) -> Self {
        Self {
            part: part.to_owned(),
            error,
        }
    }

    /// Success if no part has failed, else all errors.
    pub(crate) fn all(parts: Vec<Self>) -> Result<(), RuntimeError> {
        if parts.is_empty() {
            Ok(())
        } else {
            Err(parts.into())
        }
    }
}

impl From<Vec<PartError>> for RuntimeError {
    /// All errors as one; there must be one.
    fn from(mut parts: Vec<PartError>) -> Self {
        if parts.len() == 1 {
            return parts.remove(0).error;
        }
        Self::Several(parts.into_iter().map(|part| part.error).collect())
    }
}

/// What an error means for the caller of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ErrorKind {
    Usage,
    Damage,
    InUse,
    Other,
}

impl RuntimeError {
    /// The exit code of the process, as the README lists them.
    pub fn exit_code(&self) -> u8 {
        match self.kind() {
            ErrorKind::Usage => 2,
            ErrorKind::Damage => 65,
            ErrorKind::InUse => 75,
            ErrorKind::Other => 1,
        }
    }

    /// Whether its caller asked for something impossible, and nothing failed.
    pub(crate) fn is_usage(&self) -> bool {
        self.kind() == ErrorKind::Usage
    }

    /// Whether data is damaged, newer than this version, or from another backup than the rest; also
    /// where a library has left nothing but the text that says so.
    pub(crate) fn is_damage(&self) -> bool {
        self.kind() == ErrorKind::Damage
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Config(_) | Self::ConfigFile(_) | Self::Query(QueryError::Invalid(_)) => {
                ErrorKind::Usage
            }
            Self::InUse(_) => ErrorKind::InUse,
            Self::Damaged(_) => ErrorKind::Damage,
            Self::NotTaken(_) | Self::Operators(OperatorError::Io { .. }) => ErrorKind::Other,
            Self::Operators(_) => ErrorKind::Damage,
            Self::Log(error) if is_damage_of_log(error) => ErrorKind::Damage,
            Self::View(error) if error.is_damage() => ErrorKind::Damage,
            Self::Lake(error) if error.is_damage() => ErrorKind::Damage,
            Self::Several(errors) => {
                let kinds = || errors.iter().map(Self::kind);
                let has_damage = kinds().any(|kind| kind == ErrorKind::Damage);
                let first = kinds().find(|kind| *kind != ErrorKind::Other);
                let other = first.unwrap_or(ErrorKind::Other);
                if has_damage { ErrorKind::Damage } else { other }
            }
            // A query or a rebuild found a damaged file; libraries leave the text alone.
            Self::Log(_) | Self::View(_) | Self::Lake(_) | Self::Query(_) | Self::Failed(_) => {
                match damage_in(&self.to_string()) {
                    Some(_) => ErrorKind::Damage,
                    None => ErrorKind::Other,
                }
            }
        }
    }
}

fn is_damage_of_log(error: &WalError) -> bool {
    match error {
        WalError::Newer { .. }
        | WalError::Older { .. }
        | WalError::SegmentHeader { .. }
        | WalError::Damaged { .. }
        | WalError::Missing { .. }
        | WalError::Instance { .. } => true,
        WalError::Io { .. }
        | WalError::Sync { .. }
        | WalError::TooLarge { .. }
        | WalError::Budget { .. }
        | WalError::NoSpace { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::storage::damage;

    #[test]
    fn every_kind_of_error_has_its_exit_code() {
        let damaged = damage(Path::new("lake/t"), "cut", "restore it");
        for (error, code) in [
            (RuntimeError::Config("wrong".into()), 2),
            (QueryError::Invalid("wrong".into()).into(), 2),
            (QueryError::Failed("no thread".into()).into(), 1),
            // What libraries made a text of is found again.
            (QueryError::Failed(damaged.clone()).into(), 65),
            (RuntimeError::Failed(damaged), 65),
            (RuntimeError::InUse("by 7".into()), 75),
            (RuntimeError::NotTaken(IngestError::Stopping), 1),
            (
                OperatorError::Frame {
                    lsn: 1,
                    reason: "cut".into(),
                }
                .into(),
                65,
            ),
            (
                OperatorError::Io {
                    path: "s".into(),
                    reason: "full".into(),
                }
                .into(),
                1,
            ),
        ] {
            assert_eq!(error.exit_code(), code, "{error}");
        }
    }

    #[test]
    fn errors_of_several_parts_are_all_shown_and_damage_decides_about_the_exit_code() {
        let part = PartError::new;
        let failed = |text: &str| RuntimeError::Failed(text.into());
        let error = RuntimeError::from(vec![part("sink/a", failed("a")), part("x", failed("b"))]);
        assert_eq!((error.to_string().as_str(), error.exit_code()), ("a; b", 1));
        let damaged = part("log", RuntimeError::Damaged("b".into()));
        let error = RuntimeError::from(vec![part("source/a", failed("a")), damaged]);
        assert_eq!(
            (error.to_string().as_str(), error.exit_code()),
            ("a; b", 65)
        );
        let error = RuntimeError::from(vec![part("sink/a", failed("alone"))]);
        assert!(matches!(error, RuntimeError::Failed(_)));
    }
}
