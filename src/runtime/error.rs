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
}
