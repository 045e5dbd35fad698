//! What operators emit for a frame: rows of tables, dead letters, floors; and the names of the
//! tables and checkpoints that they go to.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;

use super::values::lsns;
use crate::event::{Lsn, Micros};
use crate::schema::Stream;
use crate::wal::Frame;

/// A record that did not become an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    pub lsn: Lsn,
    /// Its position in the frame.
    pub index: u32,
    pub reason: Arc<str>,
}

/// Rows of a stream table.
#[derive(Debug, Clone)]
pub struct StreamRows {
    pub stream: Arc<Stream>,
    /// In the table's schema without partition columns; LSNs ascend.
    pub batch: RecordBatch,
    /// Per row: its hour is more than one before its partition's watermark just before its record.
    /// None if no row's is.
    pub old: Option<Vec<bool>>,
    /// Rows below this time are no longer part of the table.
    pub floor: Option<Micros>,
    /// The stream's watermark after these rows.
    pub watermark: Option<Micros>,
}

impl StreamRows {
    pub fn lsns(&self) -> &[i64] {
        lsns(&self.batch)
    }
}

/// Rows of a derived table: sessions, windows, late rows, entities.
#[derive(Debug, Clone)]
pub struct TableRows {
    pub table: Arc<str>,
    /// In the table's schema without partition columns; LSNs ascend.
    pub batch: RecordBatch,
    /// Rows below this time are no longer part of the table.
    pub floor: Option<Micros>,
}

/// Names of derived tables.
pub mod tables {
    pub use crate::schema::versions_of;

    pub fn sessions(stream: &str) -> String {
        format!("{stream}.sessions")
    }
    pub fn late(stream: &str) -> String {
        format!("{stream}.late")
    }
}

/// What operators emit for one frame: everything in the range (after, to].
#[derive(Debug, Clone)]
pub struct Output {
    pub after: Lsn,
    pub to: Lsn,
    pub frame: Arc<Frame>,
    pub rows: Option<StreamRows>,
    /// At most one entry per table.
    pub tables: Vec<TableRows>,
    pub dead_letters: Vec<DeadLetter>,
    /// Floors raised because of the disk's limit.
    pub floors: Floors,
}

/// Per table the time below which rows are no longer part of it; the payload of a floor frame.
pub type Floors = BTreeMap<String, Micros>;

impl Output {
    /// Bytes in memory, approximately.
    pub fn memory_bytes(&self) -> usize {
        let rows = self
            .rows
            .as_ref()
            .map_or(0, |r| r.batch.get_array_memory_size());
        let tables: usize = self
            .tables
            .iter()
            .map(|t| t.batch.get_array_memory_size())
            .sum();
        // Equal reasons that follow each other share one text.
        let has_own_text = |n: &usize| {
            *n == 0
                || !Arc::ptr_eq(
                    &self.dead_letters[*n].reason,
                    &self.dead_letters[*n - 1].reason,
                )
        };
        let reasons: usize = (0..self.dead_letters.len())
            .filter(has_own_text)
            .map(|n| self.dead_letters[n].reason.len())
            .sum();
        self.frame.memory_bytes()
            + rows
            + tables
            + self.dead_letters.len() * size_of::<DeadLetter>()
            + reasons
            + 512
    }
}

/// Names of the checkpoints that views commit, as snapshots list them.
pub mod checkpoints {
    pub const RAW: &str = "raw";
    pub const DEAD_LETTERS: &str = "dead_letters";
    pub fn recent(table: &str) -> String {
        format!("{table}/recent")
    }
    pub fn old(table: &str) -> String {
        format!("{table}/old")
    }
    /// The view that writes a table of the lake, which has one or two of the checkpoints above.
    pub fn table(table: &str) -> String {
        format!("lake/{table}")
    }
    pub fn search(stream: &str) -> String {
        format!("search/{stream}")
    }
    pub fn places(stream: &str) -> String {
        format!("places/{stream}")
    }
    pub fn counts(stream: &str) -> String {
        format!("counts/{stream}")
    }
}
