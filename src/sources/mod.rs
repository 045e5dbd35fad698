//! Where bytes enter. A *pull* source (file, Kafka, a polled request) is read again from any offset
//! and waits for the views; a *push* source (websocket, open request, standard input, HTTP) cannot be
//! read again, unless its events have ids. Each guarantees exactly-once intake, or records what is
//! missing as a gap.

pub(crate) mod batcher;
pub(crate) mod compression;
pub(crate) mod file;
pub(crate) mod http;
pub(crate) mod kafka;
pub(crate) mod lines;
pub(crate) mod message;
mod push;
pub(crate) mod sample;
pub(crate) mod stdin;
pub(crate) mod websocket;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

pub use batcher::RecordLimits;

use crate::event::{Gap, SharedHealth, SourceHealth, SourceState};
use crate::ingest::{Ingest, Submission};
use crate::operators::PartitionState;
use crate::wal::{Kind, RecordIdentity};

/// A request to every source to stop, shared by its clones.
#[derive(Clone, Default)]
pub struct Stop(Arc<(AtomicBool, Mutex<()>, Condvar)>);

impl Stop {
    /// Requests the stop, and wakes all that [`Self::wait`].
    pub fn request(&self) {
        let (is_requested, lock, waiters) = &*self.0;
        is_requested.store(true, Ordering::Release);
        let _guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        waiters.notify_all();
    }

    /// Whether the stop has been requested; it is never withdrawn.
    pub fn is_requested(&self) -> bool {
        self.0.0.load(Ordering::Acquire)
    }

    /// Sleeps, at most until the stop is requested; whether it is.
    pub fn wait(&self, timeout: Duration) -> bool {
        let (_, lock, waiters) = &*self.0;
        let guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_requested() {
            drop(
                waiters
                    .wait_timeout(guard, timeout)
                    .unwrap_or_else(PoisonError::into_inner),
            );
        }
        self.is_requested()
    }
}

/// What a source works with.
#[derive(Clone)]
pub struct Context {
    /// Its name, as configured.
    pub name: String,
    /// The stream that its records belong to.
    pub stream: String,
    /// Accepts frames for the log.
    pub ingest: Ingest,
    /// The request to end, to be checked at least after each frame.
    pub stop: Stop,
    /// Read what exists now, then end: a bounded run.
    pub once: bool,
    /// How long a record may be, and what is stored of a longer one.
    pub record_limits: RecordLimits,
    /// Bytes of the body of an answer.
    pub body_bytes: usize,
    /// Blocks while a view is too far behind; false when that timed out.
    pub wait_for_room: Arc<dyn Fn(Duration) -> bool + Send + Sync>,
    /// Set while a push source is connected, or a pull source knows that it has read everything.
    pub is_connected: Arc<AtomicBool>,
    /// The member of top-level objects whose elements are the records.
    pub unwrap: Option<String>,
    /// State of the source, for status, readiness and metrics.
    pub health: SharedHealth,
    /// Where, and within which limits, the source sorts.
    pub sort_space: SortSpace,
    /// Where this source's partitions continue.
    pub partitions: Vec<(String, PartitionState)>,
    /// What the newest records of a polled source are recognized by, oldest first.
    pub seen: Vec<RecordIdentity>,
}

/// Memory and disk that sorting may use.
#[derive(Clone)]
pub struct SortSpace {
    /// A folder of the source's own, which it creates and removes.
    pub folder: PathBuf,
    /// Bytes of records sorted in memory; more are written to disk as runs.
    pub memory_bytes: usize,
    /// Called from time to time while runs are written.
    pub disk: Arc<dyn Fn() -> DiskAllowance + Send + Sync>,
}

/// How many bytes may be written now, and which limit decides that.
pub struct DiskAllowance {
    /// May be zero: then nothing may be written.
    pub bytes: u64,
    /// The configuration key, or what else limits it, for the error's message.
    pub limit: String,
}

impl Gap {
    /// The frame that records it.
    fn submission(&self, partition: &str, stream: &str) -> Submission {
        let payload = serde_json::to_string(self).unwrap_or_default();
        Submission {
            source: self.source.clone(),
            partition: partition.to_owned(),
            ..Submission::control(Kind::Gap, stream, payload.as_bytes())
        }
    }
}

impl Context {
    /// Replaces its health, including the list of partitions that wait.
    pub fn set_health(&self, health: SourceHealth) {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = health;
    }

    /// Sets the state of the source as a whole.
    pub fn set_state(&self, state: SourceState, reason: Option<String>) {
        self.set_health(SourceHealth {
            state,
            reason,
            ..SourceHealth::default()
        });
    }
}

/// Why a source ended before it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file cannot be opened or read.
    #[error("{path}: {source}")]
    Io {
        path: String,
        source: std::io::Error,
    },
    /// A bounded run has nothing to read.
    #[error("{path} does not exist; nothing was read")]
    Missing { path: String },
    /// `path` is not a valid glob pattern.
    #[error("{path}: {reason}")]
    Pattern { path: String, reason: String },
    /// What was read before, or in which order, does not fit the file that is to be read.
    #[error("{path}: {reason}")]
    Order { path: String, reason: String },
    /// The brokers, or the client library, cannot be used.
    #[error("{brokers}: {reason}")]
    Kafka { brokers: String, reason: String },
    /// A request cannot be sent, or not answered.
    #[error("{url}: {reason}")]
    Http { url: String, reason: String },
    /// A schema registry cannot be used.
    #[error("{url}: {reason}")]
    Registry { url: String, reason: String },
    /// The log does not accept its frames.
    #[error(transparent)]
    Ingest(#[from] crate::ingest::IngestError),
}
