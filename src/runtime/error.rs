//! Why the process cannot continue, and with which exit code.

use crate::config::ConfigError;
use crate::ingest::IngestError;
use crate::operators::OperatorError;
use crate::query::QueryError;
use crate::storage::damage_in;
use crate::views::ViewError;
use crate::views::lake::LakeError;
use crate::wal::WalError;

/// Why the process cannot continue; each kind has its exit code.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Usage or configuration: exit 2.
    #[error("{0}")]
    Config(String),
    /// Damaged or newer data: exit 65.
    #[error("{0}")]
    Damaged(String),
    /// The data folder is in use: exit 75.
    #[error("{0}")]
    InUse(String),
    /// Records were not accepted: exit 1.
    #[error(transparent)]
    NotTaken(IngestError),
    /// Anything else: exit 1.
    #[error("{0}")]
    Failed(String),
}

impl RuntimeError {
    /// The exit code of the process, as the README lists them.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            Self::Damaged(_) => 65,
            // A query or a rebuild found a damaged file; their errors are texts.
            Self::Failed(reason) if damage_in(reason).is_some() => 65,
            Self::InUse(_) => 75,
            Self::NotTaken(_) | Self::Failed(_) => 1,
        }
    }
}

impl From<ConfigError> for RuntimeError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error.to_string())
    }
}

impl From<WalError> for RuntimeError {
    fn from(error: WalError) -> Self {
        match error {
            WalError::Newer { .. }
            | WalError::Older { .. }
            | WalError::SegmentHeader { .. }
            | WalError::Damaged { .. }
            | WalError::Missing { .. }
            | WalError::Instance { .. } => Self::Damaged(error.to_string()),
            WalError::Io { .. }
            | WalError::Sync { .. }
            | WalError::TooLarge { .. }
            | WalError::Budget { .. }
            | WalError::NoSpace { .. } => Self::Failed(error.to_string()),
        }
    }
}

impl From<OperatorError> for RuntimeError {
    fn from(error: OperatorError) -> Self {
        match error {
            OperatorError::Io { .. } => Self::Failed(error.to_string()),
            error => Self::Damaged(error.to_string()),
        }
    }
}

impl From<ViewError> for RuntimeError {
    fn from(error: ViewError) -> Self {
        if error.is_damage() {
            Self::Damaged(error.to_string())
        } else {
            Self::Failed(error.to_string())
        }
    }
}

impl From<LakeError> for RuntimeError {
    fn from(error: LakeError) -> Self {
        if error.is_damage() {
            Self::Damaged(error.to_string())
        } else {
            Self::Failed(error.to_string())
        }
    }
}

impl From<QueryError> for RuntimeError {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::Invalid(_) => Self::Config(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}
