//! Queries: SQL, count, search, nearby and windows, each answer with its freshness (`as_of`). A
//! query reads a snapshot of live and committed state together and never writes.

mod admission;
mod bounded_input;
mod cancellation;
mod column_names;
pub(crate) mod count;
mod derived_tables;
pub(crate) mod encode;
mod handles;
pub(crate) mod live;
mod memory;
pub(crate) mod nearby;
pub(crate) mod overview;
mod progress;
mod query_threads;
pub(crate) mod search;
pub(crate) mod spool;
pub mod sql;
mod system_tables;
mod time_zones;
pub(crate) mod windows;

pub(crate) use admission::ClientId;
pub use handles::Handles;
pub(crate) use progress::MissingRecords;
pub use progress::{AsOf, PipelineProgress};

/// Why a query has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QueryError {
    /// The query is invalid; the message says how to correct it.
    #[error("{0}")]
    Invalid(String),
    /// A stream, table or window does not exist, or does not declare what the query needs; the
    /// message lists what is available.
    #[error("{0}")]
    NotFound(String),
    /// A limit was exceeded, which the message names.
    #[error("{0}")]
    Limit(String),
    /// Too many queries run or wait; nothing was computed.
    #[error(
        "{running} queries are running already (`[limits] sql_concurrent`); try again in a moment"
    )]
    Busy {
        /// How many queries may run at once.
        running: usize,
    },
    /// The answers that are being sent take too much of the disk.
    #[error("{0}")]
    Overloaded(String),
    /// A fault of the process or its files, not of the query.
    #[error("{0}")]
    Failed(String),
}

#[cfg(test)]
pub(crate) use system_tables::TABLES as SYSTEM_TABLES;
