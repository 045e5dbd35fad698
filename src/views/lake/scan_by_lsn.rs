//! Rows of a table in the order of their LSNs: a replay where `raw` no longer has the records.

use arrow::array::{Array, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, sort_to_indices, take_record_batch};

use super::files::{FileEntry, read};
use super::{LakeError, LakeTable, TableSpec};
use crate::event::{Lsn, Micros};

/// LSNs whose rows are in memory at once, at first and at most.
const FIRST_RANGE: u64 = 64;
const MAX_RANGE: u64 = 4 << 10;
/// Target for the bytes of their rows. The size of a range follows from the one before, at most
/// doubled.
const RANGE_BYTES: u64 = 16 << 20;

/// Reads the rows of a range of LSNs.
pub struct LsnOrderedRows {
    spec: TableSpec,
    files: Vec<FileEntry>,
    after: Lsn,
    to: Lsn,
    range: u64,
}

impl LsnOrderedRows {
    /// The committed rows of a table above `after`, up to `to`.
    pub fn new(table: &LakeTable, after: Lsn, to: Lsn) -> Self {
        Self {
            spec: table.spec.clone(),
            files: table.all_files(),
            after,
            to,
            range: FIRST_RANGE,
        }
    }

    /// Skips files whose rows all have this time or a later one.
    pub fn only_before(&mut self, time: Micros) {
        self.files.retain(|file| file.min_time < time);
    }

    /// The next rows, in order; `None` at the end.
    pub fn next_rows(&mut self) -> Result<Option<RecordBatch>, LakeError> {
        loop {
            // Within a file rows are sorted by time, and the LSNs of files overlap.
            self.files.retain(|file| file.max_lsn > self.after);
            let Some(first) = self
                .files
                .iter()
                .map(|file| file.min_lsn.max(self.after + 1))
                .min()
            else {
                return Ok(None);
            };
            if first > self.to {
                return Ok(None);
            }
            let last = first.saturating_add(self.range - 1).min(self.to);
            let mut parts = Vec::new();
            for file in self.files.iter().filter(|file| file.min_lsn <= last) {
                parts.extend(read(&self.spec, file, first..=last)?);
            }
            self.after = last;
            let rows = concat_batches(&self.spec.schema, &parts)?;
            let bytes = rows.get_array_memory_size().max(1) as u64;
            self.range = (self.range.saturating_mul(RANGE_BYTES) / bytes)
                .clamp(1, (2 * self.range).min(MAX_RANGE));
            if rows.num_rows() > 0 {
                return by_lsn(&rows).map(Some);
            }
        }
    }
}

/// Rows in the order of their LSNs.
pub fn by_lsn(rows: &RecordBatch) -> Result<RecordBatch, LakeError> {
    let lsns = rows
        .column(0)
        .as_any()
        .downcast_ref::<Int64Array>()
        .ok_or_else(|| LakeError::rows("the first column is not an LSN"))?;
    if lsns.values().is_sorted() {
        return Ok(rows.clone());
    }
    let order: UInt32Array = sort_to_indices(lsns, None, None)?;
    debug_assert_eq!(order.null_count(), 0);
    Ok(take_record_batch(rows, &order)?)
}
