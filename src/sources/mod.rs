//! Where bytes enter. A *pull* source (file) waits for the views and can go on anywhere; a *push*
//! source (websocket, HTTP) cannot wait. Each keeps the promise of the contract: exactly once, or
//! what is missing lies in a gap.

pub mod compression;
pub mod file;
pub mod lines;
pub mod message;
pub mod stdin;
pub mod websocket;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::event::{Gap, SharedHealth, SourceHealth, SourceState};
use crate::ingest::{Ingest, Submission};
use crate::operators::PartitionState;
use crate::wal::Kind;

/// Asks every source to end; waiting on it ends early when it is asked.
#[derive(Clone, Default)]
pub struct Stop(Arc<(AtomicBool, Mutex<()>, Condvar)>);

impl Stop {
    pub fn ask(&self) {
        self.0.0.store(true, Ordering::Release);
        let _guard = self.0.1.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.2.notify_all();
    }

    pub fn is_asked(&self) -> bool {
        self.0.0.load(Ordering::Acquire)
    }

    /// Waits; true if the source is to end.
    pub fn wait(&self, time: Duration) -> bool {
        let guard = self.0.1.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_asked() {
            drop(
                self.0
                    .2
                    .wait_timeout(guard, time)
                    .unwrap_or_else(PoisonError::into_inner),
            );
        }
        self.is_asked()
    }
}

/// What a source works with.
#[derive(Clone)]
pub struct Context {
    pub name: String,
    pub stream: String,
    pub ingest: Ingest,
    pub stop: Stop,
    /// Take what is there and end.
    pub once: bool,
    /// Longest record; a longer one is kept in part and refused.
    pub record_bytes: usize,
    /// Bytes kept of a record that is over the limit.
    pub cut_bytes: usize,
    /// Blocks while the views are behind; false when waiting timed out.
    pub wait_for_room: Arc<dyn Fn(Duration) -> bool + Send + Sync>,
    /// Set while a push source can be heard.
    pub is_connected: Arc<AtomicBool>,
    /// The member of top-level objects whose elements are the records.
    pub unwrap: Option<String>,
    /// How the source is, for status, readiness and metrics.
    pub health: SharedHealth,
    /// Where, and within which limits, the source sorts.
    pub sort_space: SortSpace,
    /// Where this source's partitions go on.
    pub partitions: Vec<(String, PartitionState)>,
}

/// What sorting may take.
#[derive(Clone)]
pub struct SortSpace {
    /// A folder of the source's own, made and removed by it.
    pub folder: PathBuf,
    /// Bytes of memory.
    pub memory: usize,
    /// Asked now and then: what may be written.
    pub room: Arc<dyn Fn() -> Room + Send + Sync>,
}

/// Bytes that may be written at present, and what bounds them.
pub struct Room {
    pub bytes: u64,
    pub bound: String,
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
    pub fn set_health(&self, health: SourceHealth) {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = health;
    }

    /// Sets how the source is as a whole.
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
    #[error("{path}: {source}")]
    Io {
        path: String,
        source: std::io::Error,
    },
    #[error("{path} does not exist; nothing was read")]
    Missing { path: String },
    #[error("{path}: {reason}")]
    Pattern { path: String, reason: String },
    /// What was read before, and how, does not fit what is to be read.
    #[error("{path}: {reason}")]
    Order { path: String, reason: String },
    #[error(transparent)]
    Ingest(#[from] crate::ingest::IngestError),
}
