//! Rows of a table in the order of their LSNs: for sinks, and for a replay where `raw` no longer has
//! the records.

use arrow::array::{Array, BooleanArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, filter_record_batch, take_record_batch};

use super::files::{FileEntry, read, times};
use super::table::TableState;
use super::{LakeError, LakeTable, TableSpec};
use crate::event::{Lsn, Micros};
use crate::operators::lsns;

/// LSNs whose rows are in memory at once, at first and at most.
const FIRST_RANGE: u64 = 64;
const MAX_RANGE: u64 = 4 << 10;
/// Target for the bytes of their rows. The size of a range follows from the one before, at most
/// doubled.
const RANGE_BYTES: u64 = 16 << 20;

/// How many rows are read at once.
#[derive(Debug, Clone, Copy)]
pub struct RangeLimits {
    /// LSNs at first.
    pub first: u64,
    /// LSNs at most.
    pub max: u64,
    /// Target for the bytes of their rows.
    pub bytes: u64,
}

/// Reads the rows of a range of LSNs.
pub struct LsnOrderedRows {
    spec: TableSpec,
    files: Vec<FileEntry>,
    /// Rows in memory, in the order of their LSNs within a batch.
    unflushed: Vec<RecordBatch>,
    /// Rows below this time are not part of the table.
    floor: Option<Micros>,
    /// The newest time of a row below the floor.
    newest_hidden: Option<Micros>,
    after: Lsn,
    to: Lsn,
    range: u64,
    limits: RangeLimits,
}

impl LsnOrderedRows {
    /// The committed rows of a table above `after`, up to `to`.
    pub fn new(table: &LakeTable, after: Lsn, to: Lsn) -> Self {
        Self {
            spec: table.spec.clone(),
            files: table.all_files(),
            unflushed: Vec::new(),
            floor: None,
            newest_hidden: None,
            after,
            to,
            range: FIRST_RANGE,
            limits: RangeLimits {
                first: FIRST_RANGE,
                max: MAX_RANGE,
                bytes: RANGE_BYTES,
            },
        }
    }

    /// All rows of a table above `after`, up to `to`, at one moment. Not for entity tables, in which
    /// a later row replaces an earlier one.
    pub fn of_snapshot(
        table: &LakeTable,
        state: &TableState,
        (after, to): (Lsn, Lsn),
        limits: RangeLimits,
    ) -> Result<Self, LakeError> {
        let parts = state.unflushed.iter().flatten();
        let parts = parts.filter(|part| part.last_lsn() > after);
        let unflushed = parts.map(|part| part.batch(&table.spec.schema));
        Ok(Self {
            unflushed: unflushed.collect::<Result<_, _>>()?,
            files: state.files.to_vec(),
            floor: state.floor(),
            range: limits.first,
            limits,
            ..Self::new(table, after, to)
        })
    }

    /// Skips files whose rows all have this time or a later one.
    pub fn only_before(&mut self, time: Micros) {
        self.files.retain(|file| file.min_time < time);
    }

    /// The LSN up to which all rows have been read.
    pub fn position(&self) -> Lsn {
        self.after
    }

    /// LSNs of the next range.
    pub fn range(&self) -> u64 {
        self.range
    }

    /// The next rows, in order; `None` at the end.
    pub fn next_rows(&mut self) -> Result<Option<RecordBatch>, LakeError> {
        loop {
            let Some(first) = self.next_lsn().filter(|first| *first <= self.to) else {
                self.after = self.to;
                return Ok(None);
            };
            let last = first.saturating_add(self.range - 1).min(self.to);
            let mut parts = Vec::new();
            for file in self.files.iter().filter(|file| file.min_lsn <= last) {
                parts.extend(read(&self.spec, file, first..=last)?);
            }
            let is_in = |lsn: &i64| (first..=last).contains(&(*lsn as Lsn));
            for rows in &self.unflushed {
                let lsns = lsns(rows);
                let from = lsns.partition_point(|lsn| (*lsn as Lsn) < first);
                let found = lsns[from..].iter().take_while(|lsn| is_in(lsn)).count();
                parts.push(rows.slice(from, found));
            }
            self.after = last;
            let rows = concat_batches(&self.spec.schema, &parts)?;
            let bytes = rows.get_array_memory_size().max(1) as u64;
            self.range = (self.range.saturating_mul(self.limits.bytes) / bytes)
                .clamp(1, (2 * self.range).min(self.limits.max));
            let rows = self.above_floor(rows)?;
            if rows.num_rows() > 0 {
                return by_lsn(&self.spec, &rows).map(Some);
            }
        }
    }

    /// The LSN of the next row, or one below it.
    fn next_lsn(&mut self) -> Option<Lsn> {
        let after = self.after;
        // Within a file rows are sorted by time, and the LSNs of files overlap.
        self.files.retain(|file| file.max_lsn > after);
        let first_above = |rows: &RecordBatch| {
            let lsns = lsns(rows);
            let at = lsns.partition_point(|lsn| *lsn as Lsn <= after);
            lsns.get(at).map(|lsn| *lsn as Lsn)
        };
        self.unflushed.retain(|rows| first_above(rows).is_some());
        let in_files = self.files.iter().map(|file| file.min_lsn.max(after + 1));
        let in_memory = self.unflushed.iter().filter_map(first_above);
        in_files.chain(in_memory).min()
    }

    /// The newest time of a row in the range that was skipped because it is below the floor.
    pub fn newest_hidden(&self) -> Option<Micros> {
        self.newest_hidden
    }

    fn above_floor(&mut self, rows: RecordBatch) -> Result<RecordBatch, LakeError> {
        let Some(floor) = self.floor else {
            return Ok(rows);
        };
        let times = times(&self.spec, &rows);
        let hidden = times.iter().filter(|time| **time < floor).max().copied();
        if hidden.is_none() {
            return Ok(rows);
        }
        self.newest_hidden = self.newest_hidden.max(hidden);
        let above: BooleanArray = times.iter().map(|time| Some(*time >= floor)).collect();
        Ok(filter_record_batch(&rows, &above)?)
    }
}

/// Rows in the order of their LSNs; those of one record in the order of their times, as files have
/// them, so that rows in memory and in files come in one order.
pub fn by_lsn(spec: &TableSpec, rows: &RecordBatch) -> Result<RecordBatch, LakeError> {
    let lsns = rows
        .column(0)
        .as_any()
        .downcast_ref::<Int64Array>()
        .ok_or_else(|| LakeError::rows("the first column is not an LSN"))?
        .values();
    let times = times(spec, rows);
    let key = |row: &u32| (lsns[*row as usize], times[*row as usize]);
    let rows_in_order = 0..rows.num_rows() as u32;
    if rows_in_order.clone().is_sorted_by_key(|row| key(&row)) {
        return Ok(rows.clone());
    }
    let mut order: Vec<u32> = rows_in_order.collect();
    order.sort_by_key(key);
    Ok(take_record_batch(rows, &UInt32Array::from(order))?)
}
