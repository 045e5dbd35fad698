//! Where rows go: each sink reads its tables above its own durable cursor and writes the rows to a
//! target. One mechanism ([`worker`]) for all; one file per type of target.
//!
//! | module | what |
//! |---|---|
//! | `command` | what a sink can be asked to do |
//! | `cursor` | how far a sink is, and where that is stored |
//! | `table` | a table as sinks read it: key and retractions |
//! | `reader` | the next rows above a cursor, from files and from memory |
//! | `worker` | the thread of one sink: read, deliver, store the cursor, try again |
//! | `dead_letters` | rows that a target refuses for good |
//! | `kafka`, `postgres`, `http`, `elasticsearch` | the targets |
//! | `web` | what the targets that are reached by HTTP share |
//!
//! | target | promise |
//! |---|---|
//! | `kafka`, `postgres` | exactly once: the cursor is part of the target's transaction |
//! | `elasticsearch` | at least once, and a repeated row changes nothing |
//! | `http` | at least once, with a delivery id |
//!
//! A sink follows what queries see, which is synced. It never holds the log, a view or another sink:
//! it reads tables, as a query does. What it has not sent when retention removes it is lost to the
//! sink, which then halts and says so.

mod command;
mod cursor;
mod dead_letters;
pub(crate) mod elasticsearch;
pub(crate) mod http;
pub(crate) mod kafka;
pub(crate) mod postgres;
mod reader;
mod table;
mod web;
mod worker;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use command::{Command, CommandError, Control, InvalidReset, ResetTo, apply};
pub use cursor::{Cursor, StateError, StateFolder, StoredCursor};
pub use dead_letters::{DeadLetters, load as load_dead_letters, refused};
pub use reader::{Batch, Delivery};
pub use table::SinkTable;
pub use worker::{SinkContext, first_state, run};

use arrow::datatypes::SchemaRef;

use crate::config::{Sink, SinkKind, SqlBounds};
use crate::event::SharedSinkHealth;
use crate::sources::Stop;

/// Why rows are not delivered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SinkError {
    /// It passes: the sink tries again with a growing delay.
    #[error("{0}")]
    Unavailable(String),
    /// It does not pass before somebody acts; the text says how.
    #[error("{0}")]
    Halted(String),
}

impl SinkError {
    fn left_by_retention() -> Self {
        Self::Halted(
            "rows have left the table by its retention before they were sent; continue without them by `weir sinks reset NAME --from earliest`, which sends what the table has from its beginning, or `--from latest`"
                .into(),
        )
    }
}

impl From<StateError> for SinkError {
    fn from(error: StateError) -> Self {
        match error {
            StateError::Io { .. } => Self::Unavailable(error.to_string()),
            StateError::Damaged(_) => Self::Halted(error.to_string()),
        }
    }
}

/// Where a sink writes.
pub trait Target: Send {
    /// The cursor to continue from, as far as it is known without taking the target away from
    /// another process: one whose log lacks what the target has must not do that.
    fn look(&mut self, stored: StoredCursor) -> Result<Cursor, SinkError> {
        Ok(stored.cursor)
    }

    /// Connects, and creates or checks what it writes to. `stored` is the cursor of the data folder.
    /// Returns the one to continue from: its own, if it has one that counts
    /// ([`StoredCursor::or_of_target`]). Called again after each error.
    fn open(&mut self, stored: StoredCursor) -> Result<Cursor, SinkError>;

    /// Writes all rows of a delivery in their order. Once it returns, the target has them durably,
    /// and, if it has transactions, the next cursor with them. After an error it may have a part of
    /// the rows; the delivery is repeated.
    fn deliver(&mut self, delivery: &mut Delivery) -> Result<(), SinkError>;

    /// In which order the tables are read if they are several: each after those that refer to it.
    fn order(&self) -> Vec<usize>;

    /// Whether it extends deliveries ([`Delivery::extend`]).
    fn extends(&self) -> bool {
        false
    }
}

/// What a target works with.
pub struct TargetContext {
    /// The sink's name.
    pub name: String,
    /// The log of the data folder, for names that are unique in the target.
    pub log: u64,
    /// The tables that it gets rows of.
    pub tables: Vec<SinkTable>,
    /// Rows that it refuses.
    pub dead_letters: DeadLetters,
    /// Limits of the SQL of its keys.
    pub sql: SqlBounds,
    /// The request to end, for deliveries that take long.
    pub stop: Stop,
    /// For the times of refused rows.
    pub clock: std::sync::Arc<dyn crate::clock::Clock>,
}

/// What is wrong with a sink of a table with these columns, if something is.
pub fn check(sink: &Sink, schema: &SchemaRef, bounds: SqlBounds) -> Result<(), kafka::InvalidKey> {
    match &sink.kind {
        SinkKind::Kafka(def) => kafka::plan_key(def, schema, &[0], bounds).map(drop),
        SinkKind::Postgres(_) | SinkKind::Http(_) | SinkKind::Elasticsearch(_) => Ok(()),
    }
}

/// The target of a sink.
pub fn target(kind: &SinkKind, context: TargetContext) -> Result<Box<dyn Target>, SinkError> {
    Ok(match kind {
        SinkKind::Kafka(def) => Box::new(kafka::KafkaTarget::new(def, context)?),
        SinkKind::Postgres(def) => Box::new(postgres::PostgresTarget::new(def, context)?),
        SinkKind::Http(def) => Box::new(http::HttpTarget::new(def, context)?),
        SinkKind::Elasticsearch(def) => {
            Box::new(elasticsearch::ElasticsearchTarget::new(def, context)?)
        }
    })
}

fn lock(health: &SharedSinkHealth) -> MutexGuard<'_, crate::event::SinkHealth> {
    health.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lock_of<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}
