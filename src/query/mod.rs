//! Answers, each with how true it is. Queries read a snapshot of live and committed state together
//! and never write.

pub mod count;
mod derived_tables;
pub mod encode;
mod guarded;
pub mod live;
mod local;
mod memory;
mod names;
pub mod nearby;
mod pieces;
mod running;
pub mod search;
mod slots;
pub mod snapshot;
pub mod spool;
pub mod sql;
pub mod system;
pub mod windows;

pub use slots::Asker;
pub use snapshot::{AsOf, Handles, Missing, Progress};

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QueryError {
    /// The question is wrong; the message says how to mend it.
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    NotFound(String),
    /// The answer would be over a limit, which the message names.
    #[error("{0}")]
    Limit(String),
    #[error(
        "{running} queries are running already (`[limits] sql_concurrent`); try again in a moment"
    )]
    Busy { running: usize },
    /// Too many answers are being sent.
    #[error("{0}")]
    Crowded(String),
    #[error("{0}")]
    Failed(String),
}
