//! What operators emit for a frame: rows of tables, dead letters, retention floors.
//!
//! Three meanings of "late", each with its own word:
//!
//! | word | of | decided by | consequence |
//! |---|---|---|---|
//! | late | an event | its time is below its partition's watermark | it is counted: [`Totals::late`] |
//! | too late | an event, for a window | every window that it belongs to is closed | `<stream>.late` |
//! | late class | a stored row | its hour is more than one before that of the watermark | the lake commits it less often |
//!
//! With one partition, its watermark at 12:10, windows of ten minutes and a lateness of 30 minutes:
//! an event of 12:05 is late; one of 11:35 is too late for its window 11:30..11:40, which closed at
//! 12:10; one of 10:59 is also of the late class, one of 11:00 is not.
//!
//! [`Totals::late`]: super::Totals::late

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;

use super::values::lsns;
use crate::event::{Lsn, Micros};
use crate::ids::TableId;
use crate::schema::Stream;
use crate::wal::Frame;

/// A record that did not become an event: it goes to `dead_letters` with its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// LSN of the record.
    pub lsn: Lsn,
    /// Its position in the frame: the bytes are `frame.records()[index]`.
    pub index: u32,
    /// Why it was rejected, for the user. Consecutive equal reasons share one text.
    pub reason: Arc<str>,
}

/// Rows of a stream's table: the events of one frame.
#[derive(Debug, Clone)]
pub struct StreamRows {
    /// Declaration of the stream, which names the views that want the rows.
    pub stream: Arc<Stream>,
    /// In the table's schema without partition columns; LSNs ascend.
    pub batch: RecordBatch,
    /// Per row: it is of the lake's late class (`RowClass::Late`), because its hour is more than
    /// one before that of its partition's watermark just before its record. None if no row is.
    pub late_class: Option<Vec<bool>>,
    /// Rows with an event time below this, in µs, are no longer part of the table; none without
    /// retention.
    pub retention_floor: Option<Micros>,
    /// The stream's watermark after these rows, in µs; none before the first one.
    pub watermark: Option<Micros>,
}

impl StreamRows {
    /// The LSN of each row.
    pub fn lsns(&self) -> &[i64] {
        lsns(&self.batch)
    }
}

/// Rows of a derived table: sessions, windows, late rows, entities.
#[derive(Debug, Clone)]
pub struct TableRows {
    /// Which table they belong to.
    pub table: TableId,
    /// In the table's schema without partition columns; LSNs ascend.
    pub batch: RecordBatch,
    /// Rows with a time (of the table's partition column) below this, in µs, are no longer part of
    /// the table; none without retention.
    pub retention_floor: Option<Micros>,
}

/// What operators emit for one frame: everything in the range (after, to]. Views that have
/// committed `to` ignore it.
#[derive(Debug, Clone)]
pub struct Output {
    /// LSN of the last record before the frame.
    pub after: Lsn,
    /// LSN of the frame's last record, control frames included.
    pub to: Lsn,
    /// The frame itself, which `raw` stores.
    pub frame: Arc<Frame>,
    /// Rows of the frame's stream; none where no record became an event.
    pub rows: Option<StreamRows>,
    /// At most one entry per table.
    pub tables: Vec<TableRows>,
    /// Rejected records, in the order of LSNs.
    pub dead_letters: Vec<DeadLetter>,
    /// Retention floors that a `RetentionFloor` frame raised, because of the disk's limit. Those of
    /// `retention =` rise with the watermark, and are in the rows.
    pub retention_floors: RetentionFloors,
}

/// Per table its retention floor: the time in µs, at a partition's start, below which rows are no
/// longer part of it. Hidden at once, removed later by maintenance. As JSON it is the payload of a
/// `RetentionFloor` frame: `{"raw":1718000000000000}`.
pub type RetentionFloors = BTreeMap<TableId, Micros>;

impl Output {
    /// Bytes in memory, approximately: what the ring charges for it.
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
