//! Why a window fails.

use arrow::error::ArrowError;

/// Why a window's state cannot be advanced, read or restored.
#[derive(Debug, thiserror::Error)]
pub enum WindowError {
    /// An expression or aggregate of the window's SQL failed, in words.
    #[error("{0}")]
    Evaluation(String),
    /// Arrow could not build or combine the columns of its rows.
    #[error(transparent)]
    Arrow(#[from] ArrowError),
    /// What a snapshot holds is not this window's state.
    #[error("{0}")]
    Snapshot(&'static str),
    /// The JSON at the head of its part of a snapshot is not what was written.
    #[error(transparent)]
    Head(#[from] serde_json::Error),
}

impl From<String> for WindowError {
    fn from(reason: String) -> Self {
        Self::Evaluation(reason)
    }
}
