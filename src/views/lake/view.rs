//! The view that writes one lake table.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::compute::filter_record_batch;
use arrow::datatypes::SchemaRef;

use super::entities::{
    self, Merge, MergeScope, OVERDUE_CHECK_INTERVAL, STEP_INTERVAL, WrittenFiles,
};
use super::error::InView;
use super::files::{self, Attempt};
use super::memtable::UnflushedRows;
use super::raw::{self, RawFrame};
use super::row_attributes::message_attributes;
use super::{Change, LakeError, LakeTable, PerClass, RowClass, TableSpec};
use crate::event::{Lsn, Micros};
use crate::ids::{CheckpointId, TableId, ViewId};
use crate::operators::{Output, StreamRows};
use crate::schema::Layout;
use crate::views::{View, ViewError};

/// When unflushed rows are committed.
#[derive(Debug, Clone)]
pub struct CommitPolicy {
    /// The age of the oldest row at which recent rows are due.
    pub recent_every: Duration,
    /// The same for late rows.
    pub late_every: Duration,
    /// Unflushed rows of a class that make it due.
    pub rows: usize,
    /// Memory of the table's unflushed rows; half of it makes either class due.
    pub bytes: usize,
    /// Memory that the table shares with others: when most of it is used, the tables that use more
    /// than their part are due.
    pub pool: Option<Arc<Pool>>,
}

/// Memory of the unflushed rows of several tables, most of which have few.
#[derive(Debug)]
pub struct Pool {
    limit_bytes: usize,
    tables: usize,
    used_bytes: AtomicUsize,
}

impl Pool {
    /// An unused pool of so many bytes, for so many tables.
    pub fn new(limit_bytes: usize, tables: usize) -> Self {
        Self {
            limit_bytes,
            tables,
            used_bytes: AtomicUsize::new(0),
        }
    }

    /// Whether three quarters are used, and a table of `own_bytes` uses more than the mean.
    fn is_due(&self, own_bytes: usize) -> bool {
        let used = self.used_bytes.load(Ordering::Relaxed);
        used * 4 >= self.limit_bytes * 3 && own_bytes * self.tables >= used
    }
}

/// Partitions that one commit of late rows touches at most.
const MAX_LATE_PARTITIONS: usize = 1_000;

/// Size and age of a class's unflushed rows.
#[derive(Debug, Default, Clone, Copy)]
struct UnflushedSize {
    rows: usize,
    bytes: usize,
    since: Option<Instant>,
}

impl UnflushedSize {
    fn add(&mut self, rows: usize, bytes: usize, now: Instant) {
        self.rows += rows;
        self.bytes += bytes;
        if rows > 0 {
            self.since.get_or_insert(now);
        }
    }
}

/// An output's rows of one table.
#[derive(Default)]
struct OutputRows {
    recent: Option<UnflushedRows>,
    late: Option<RecordBatch>,
    floor: Option<Micros>,
}

/// Writes one lake table.
pub struct LakeView {
    table: Arc<LakeTable>,
    policy: CommitPolicy,
    id: ViewId,
    /// In memory, everything up to here is applied.
    applied: PerClass<Lsn>,
    unflushed: PerClass<UnflushedSize>,
    flush: Option<Flush>,
    /// Its part of the pool's bytes.
    pooled_bytes: usize,
    /// Of an entity table: rows since the last compaction in memory, and how many cause the next.
    uncompacted_rows: usize,
    compact_at_rows: usize,
    /// Of an entity table: a merge that proceeds in steps, and when to look again whether one is
    /// due without new rows.
    merge: Option<Merge>,
    next_step: Cell<Instant>,
}

/// Rows of an entity table that cause a compaction in memory.
const COMPACT_ROWS: usize = 8 << 10;

/// A commit under way: its files are being written.
struct Flush {
    class: RowClass,
    /// Parts of the memtable that the files hold, and the checkpoint that they bring.
    parts: usize,
    to: Lsn,
    files: JoinHandle<Result<WrittenFiles, LakeError>>,
}

impl LakeView {
    /// A view that continues at the table's checkpoints.
    pub fn new(table: Arc<LakeTable>, policy: CommitPolicy) -> Self {
        let applied = table.committed();
        let id = table.spec.id.view();
        let view = Self {
            table,
            policy,
            id,
            applied,
            unflushed: PerClass::default(),
            flush: None,
            pooled_bytes: 0,
            uncompacted_rows: 0,
            compact_at_rows: 0,
            merge: None,
            next_step: Cell::new(Instant::now()),
        };
        view.table.set_applied(view.applied());
        view
    }

    fn unflushed_bytes(&self) -> usize {
        self.unflushed.iter().map(|size| size.bytes).sum()
    }

    /// Updates this table's part of the pool.
    fn update_pool(&mut self) {
        let Some(pool) = &self.policy.pool else {
            return;
        };
        let now = self.unflushed_bytes();
        let before = std::mem::replace(&mut self.pooled_bytes, now);
        pool.used_bytes.fetch_add(now, Ordering::Relaxed);
        pool.used_bytes.fetch_sub(before, Ordering::Relaxed);
    }

    /// Of an entity table, retains the newest row of each key in memory, once enough rows have
    /// come.
    fn compact_in_memory(&mut self, new_rows: usize) -> Result<(), ViewError> {
        self.uncompacted_rows += new_rows;
        if !self.is_entity() || self.uncompacted_rows < COMPACT_ROWS.max(self.compact_at_rows) {
            return Ok(());
        }
        let compacted = self.table.compact_in_memory();
        let (rows, bytes) = compacted.in_view(&self.id)?;
        self.compact_at_rows = next_compaction(self.unflushed.recent.rows, rows);
        self.uncompacted_rows = 0;
        let unflushed = &mut self.unflushed.recent;
        (unflushed.rows, unflushed.bytes) = (rows, bytes);
        Ok(())
    }

    fn is_class_due(&self, class: RowClass, now: Instant) -> bool {
        let size = &self.unflushed[class];
        let every = match class {
            RowClass::Recent => self.policy.recent_every,
            RowClass::Late => self.policy.late_every,
        };
        let pool = self.policy.pool.as_ref();
        size.rows >= self.policy.rows
            || size.bytes * 2 >= self.policy.bytes
            || pool.is_some_and(|pool| pool.is_due(size.bytes))
            || size
                .since
                .is_some_and(|since| now.duration_since(since) >= every)
    }

    /// Whether no more rows fit in memory until a commit under way has ended.
    fn is_full(&self) -> bool {
        self.unflushed_bytes() >= self.policy.bytes
    }

    fn is_entity(&self) -> bool {
        self.table.spec.layout == Layout::Buckets
    }

    /// Whether a merge of an entity table's levels is to proceed, though no new rows are due.
    fn is_step_due(&self, now: Instant) -> bool {
        if !self.is_entity() || now < self.next_step.get() {
            return false;
        }
        let is_due = self.merge.is_some() || entities::is_overdue(&self.table);
        if !is_due {
            self.next_step.set(now + OVERDUE_CHECK_INTERVAL);
        }
        is_due
    }

    /// Begins a commit of a class's unflushed rows: a thread of its own writes the files, so that
    /// this one continues to apply rows.
    fn begin_flush(&mut self, class: RowClass, scope: MergeScope) -> Result<(), ViewError> {
        let mut parts = self.table.seal(class);
        let all = parts.len();
        if class == RowClass::Late {
            let fitting = parts_within_limit(&self.table.spec, &parts);
            parts.truncate(fitting.in_view(&self.id)?);
        }
        // All of them reach what is applied; some of them their last row.
        let last = parts.last().map_or(0, |part| part.last_lsn());
        let to = if parts.len() == all {
            self.applied[class]
        } else {
            last
        };
        let (table, flushed, merge) = (self.table.clone(), parts.len(), self.merge.take());
        self.next_step.set(Instant::now() + STEP_INTERVAL);
        let write = move || match table.spec.layout {
            Layout::Buckets => {
                let batches = parts
                    .iter()
                    .map(|part| part.batch(&table.spec.schema))
                    .collect::<Result<Vec<_>, _>>()?;
                entities::write(&table, batches, merge, scope, to)
            }
            _ => write_files(&table, &parts, class),
        };
        let files = std::thread::Builder::new()
            .name(format!("{}/files", self.id))
            .spawn(write)
            .in_view(&self.id)?;
        self.flush = Some(Flush {
            class,
            parts: flushed,
            to,
            files,
        });
        Ok(())
    }

    /// Ends the commit under way when its files are written: the Delta entry with the checkpoint.
    fn end_flush(&mut self) -> Result<(), ViewError> {
        let Some(flush) = self.flush.take() else {
            return Ok(());
        };
        let Flush {
            class, parts, to, ..
        } = flush;
        let written = flush
            .files
            .join()
            .unwrap_or_else(|_| Err(LakeError::WriterPanicked("the thread")));
        let mut written = written.in_view(&self.id)?;
        self.merge = written.merge.take();
        if parts == 0 && !written.is_some() {
            // A step of a merge, whose files no version names yet.
            return Ok(());
        }
        tracing::debug!(
            view = %self.id,
            class = class.name(),
            files = written.add.len(),
            to,
            "commit"
        );
        let change = Change {
            checkpoints: vec![(class, to)],
            ..entities::change(written)
        };
        self.table.commit(&change, &[(class, parts)])?;
        let now = Instant::now();
        let mut size = UnflushedSize::default();
        for part in &self.table.snapshot().unflushed[class] {
            size.add(part.rows(), part.memory_bytes(), now);
        }
        self.unflushed[class] = size;
        (self.uncompacted_rows, self.compact_at_rows) = (size.rows, 0);
        self.update_pool();
        Ok(())
    }

    /// The rows of an output above what is applied, by class.
    fn rows_of(&self, output: &Output) -> Result<OutputRows, LakeError> {
        let spec = &self.table.spec;
        let recent = |rows| OutputRows {
            recent: rows,
            ..OutputRows::default()
        };
        match &spec.id {
            TableId::Raw => {
                let above = self.applied.recent.max(output.after);
                let frame = || {
                    UnflushedRows::Frame(RawFrame {
                        frame: output.frame.clone(),
                        above,
                    })
                };
                Ok(recent((output.to > above).then(frame)))
            }
            TableId::DeadLetters => {
                let rows = dead_letter_rows(output, self.applied.recent, &spec.schema)?;
                Ok(recent(rows.map(UnflushedRows::Rows)))
            }
            TableId::Sessions(_) | TableId::Late(_) | TableId::Window(_) | TableId::Entity(_) => {
                let Some(derived) = output.tables.iter().find(|t| t.table == spec.id) else {
                    return Ok(OutputRows::default());
                };
                let above = self.applied.recent as i64;
                let batch = &derived.batch;
                let from = crate::operators::lsns(batch).partition_point(|lsn| *lsn <= above);
                let rows = batch.slice(from, batch.num_rows() - from);
                let rows = (rows.num_rows() > 0).then_some(UnflushedRows::Rows(rows));
                Ok(OutputRows {
                    floor: derived.retention_floor,
                    ..recent(rows)
                })
            }
            TableId::Stream(name) => {
                let Some(rows) = output.rows.as_ref().filter(|r| r.stream.name == **name) else {
                    return Ok(OutputRows::default());
                };
                let of_class = |class| rows_of_class(rows, class, self.applied[class]);
                Ok(OutputRows {
                    recent: of_class(RowClass::Recent)?.map(UnflushedRows::Rows),
                    late: of_class(RowClass::Late)?,
                    floor: rows.retention_floor,
                })
            }
        }
    }
}

/// The rows of a class above an LSN.
fn rows_of_class(
    rows: &StreamRows,
    class: RowClass,
    above: Lsn,
) -> Result<Option<RecordBatch>, LakeError> {
    let is_late = |row: usize| rows.late_class.as_ref().is_some_and(|late| late[row]);
    let wanted: Vec<bool> = rows
        .lsns()
        .iter()
        .enumerate()
        .map(|(row, lsn)| is_late(row) == (class == RowClass::Late) && *lsn > above as i64)
        .collect();
    let count = wanted.iter().filter(|w| **w).count();
    if count == 0 {
        Ok(None)
    } else if count == wanted.len() {
        Ok(Some(rows.batch.clone()))
    } else {
        let wanted = BooleanArray::from(wanted);
        Ok(Some(filter_record_batch(&rows.batch, &wanted)?))
    }
}

/// After how many rows to compact in memory again: later where it dropped less than half of them,
/// since then few keys come twice.
fn next_compaction(rows_before: usize, rows_after: usize) -> usize {
    if rows_after < rows_before / 2 {
        rows_after
    } else {
        4 * rows_after
    }
}

impl View for LakeView {
    fn id(&self) -> &ViewId {
        &self.id
    }

    fn applied(&self) -> Lsn {
        let classes = self.table.spec.classes().iter();
        let applied = classes.map(|class| self.applied[*class]).min();
        applied.unwrap_or(self.applied.recent)
    }

    fn checkpoints(&self) -> Vec<(CheckpointId, Lsn)> {
        self.table.checkpoints()
    }

    fn advance_to(&mut self, lsn: Lsn) {
        self.applied = self.applied.map(|a| a.max(lsn));
        self.table.set_applied(self.applied());
    }

    fn apply(&mut self, output: &Output, now: Instant) -> Result<(), ViewError> {
        if output.to <= self.applied() {
            return Ok(());
        }
        let rows = self.rows_of(output).in_view(&self.id)?;
        let recent = rows.recent.as_ref();
        let (new_rows, bytes) = recent.map_or((0, 0), |r| (r.rows(), r.memory_bytes()));
        self.unflushed.recent.add(new_rows, bytes, now);
        if let Some(late) = &rows.late {
            let (rows, bytes) = (late.num_rows(), late.get_array_memory_size());
            self.unflushed.late.add(rows, bytes, now);
        }
        self.applied = self.applied.map(|a| a.max(output.to));
        let floor = output.retention_floors.get(&self.table.spec.id).copied();
        let floor = rows.floor.max(floor);
        self.table.push(rows.recent, rows.late, output.to, floor);
        if new_rows > 0 {
            self.compact_in_memory(new_rows)?;
        }
        self.update_pool();
        Ok(())
    }

    fn is_due(&self, now: Instant, _caught_up: bool) -> bool {
        match &self.flush {
            Some(flush) => flush.files.is_finished() || self.is_full(),
            None => {
                RowClass::ALL
                    .iter()
                    .any(|class| self.is_class_due(*class, now))
                    || self.is_step_due(now)
            }
        }
    }

    fn commit(&mut self, all: bool) -> Result<(), ViewError> {
        loop {
            if let Some(flush) = &self.flush {
                if !(all || flush.files.is_finished() || self.is_full()) {
                    return Ok(());
                }
                self.end_flush()?;
                continue;
            }
            let now = Instant::now();
            let is_due = |class: &RowClass| {
                self.unflushed[*class].rows > 0 && (all || self.is_class_due(*class, now))
            };
            let scope = if all && self.table.merges_on_close() {
                MergeScope::All
            } else {
                MergeScope::Due
            };
            match RowClass::ALL.into_iter().find(is_due) {
                Some(class) => self.begin_flush(class, scope)?,
                None if scope == MergeScope::All && self.table.has_levels() => {
                    self.begin_flush(RowClass::Recent, scope)?;
                }
                None if !all && self.is_step_due(now) => {
                    self.begin_flush(RowClass::Recent, scope)?;
                }
                None => return Ok(()),
            }
        }
    }

    fn checkpoint(&mut self) -> Result<(), ViewError> {
        self.commit(true)?;
        let classes = self.table.spec.classes().iter();
        let checkpoints = classes
            .map(|class| (*class, self.applied[*class]))
            .collect();
        self.table.commit(
            &Change {
                checkpoints,
                data_change: true,
                ..Change::default()
            },
            &[],
        )
    }

    fn reset_to_committed(&mut self) -> Result<(), ViewError> {
        if let Some(flush) = self.flush.take() {
            // Its files are never committed: they are removed with their attempt.
            let _ = flush.files.join();
        }
        self.merge = None;
        let committed = self.table.reload_committed()?;
        self.applied = committed;
        // Before the rows are gone: a reader must not take the table for further than it is.
        self.table.set_applied(self.applied());
        self.table.clear_unflushed();
        self.unflushed = PerClass::default();
        (self.uncompacted_rows, self.compact_at_rows) = (0, 0);
        self.update_pool();
        Ok(())
    }
}

/// How many of the parts, from the first on, are within [`MAX_LATE_PARTITIONS`]; at least one.
fn parts_within_limit(spec: &TableSpec, parts: &[Arc<UnflushedRows>]) -> Result<usize, LakeError> {
    let mut reached = BTreeSet::new();
    for (n, part) in parts.iter().enumerate() {
        let partitions = files::count_partitions(spec, &part.batch(&spec.schema)?, &mut reached);
        if n > 0 && partitions > MAX_LATE_PARTITIONS {
            return Ok(n);
        }
    }
    Ok(parts.len())
}

/// Writes parts into files and syncs them.
fn write_files(
    table: &LakeTable,
    parts: &[Arc<UnflushedRows>],
    class: RowClass,
) -> Result<WrittenFiles, LakeError> {
    let spec = &table.spec;
    let attempt = Attempt::new(spec);
    let now_ms = crate::clock::wall_clock_ms();
    let add = if spec.id == TableId::Raw {
        raw::write_frames(spec, &attempt, parts, now_ms)?
    } else {
        let batches = parts
            .iter()
            .map(|part| part.batch(&spec.schema))
            .collect::<Result<Vec<_>, _>>()?;
        files::write_partitions(spec, &attempt, &batches, class, now_ms)?
    };
    files::sync_files(&spec.root, &add)?;
    Ok(WrittenFiles {
        add,
        attempts: vec![attempt],
        ..WrittenFiles::default()
    })
}

/// Bytes of a record that `dead_letters` repeats at most; the whole record is in `raw`.
const MAX_DEAD_LETTER_BYTES: usize = 1 << 20;

fn dead_letter_rows(
    output: &Output,
    above: Lsn,
    schema: &SchemaRef,
) -> Result<Option<RecordBatch>, LakeError> {
    let letters: Vec<_> = output
        .dead_letters
        .iter()
        .filter(|d| d.lsn > above)
        .collect();
    if letters.is_empty() {
        return Ok(None);
    }
    let header = &output.frame.header;
    let records = output.frame.records()?;
    let n = letters.len();
    let text = |value: &str| {
        Arc::new(StringArray::from_iter_values(std::iter::repeat_n(value, n))) as ArrayRef
    };
    let offsets = &output.frame.attributes.offsets;
    let bytes = |index: u32| {
        let record = records.get(index as usize);
        &record[..record.len().min(MAX_DEAD_LETTER_BYTES)]
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(
            letters.iter().map(|d| d.lsn as i64),
        )),
        Arc::new(TimestampMicrosecondArray::from(vec![header.received_at; n]).with_timezone("UTC")),
        text(&header.source),
        Arc::new(
            letters
                .iter()
                .map(|d| offsets.get(d.index as usize).map(|p| *p as i64))
                .collect::<Int64Array>(),
        ),
        text(&header.stream),
        Arc::new(StringArray::from_iter_values(
            letters.iter().map(|d| &*d.reason),
        )),
        Arc::new(BinaryArray::from_iter_values(
            letters.iter().map(|d| bytes(d.index)),
        )),
        Arc::new(Int64Array::from(vec![None; n])),
        text(&header.partition),
        Arc::new(
            letters
                .iter()
                .map(|d| message_attributes(&output.frame, d.index as usize))
                .collect::<StringArray>(),
        ),
    ];
    Ok(Some(RecordBatch::try_new(schema.clone(), columns)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_asks_those_above_the_mean_when_it_is_nearly_full() {
        for (used, own, is_due) in [
            (74, 74, false),
            (75, 25, true),
            (75, 24, false),
            (100, 0, false),
        ] {
            let pool = Pool::new(100, 3);
            pool.used_bytes.store(used, Ordering::Relaxed);
            assert_eq!(pool.is_due(own), is_due, "{own} of {used} bytes");
        }
    }

    #[test]
    fn rows_that_are_hardly_compacted_are_compacted_less_often() {
        for (before, after, next) in [(10_000, 4_999, 4_999), (10_000, 5_000, 20_000), (0, 0, 0)] {
            assert_eq!(next_compaction(before, after), next, "{before} to {after}");
        }
    }
}
