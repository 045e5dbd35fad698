//! The lake: one Delta table per stream, `dead_letters` and `raw`, in folders by time, with the
//! rows above its last commit in memory. Two checkpoints where event time decides the folder:
//! *recent* rows commit often, *old* ones wait together.
//!
//! [`table`] is a Delta table and what queries see of it; `columns` its columns and folders as
//! Delta has them; [`memtable`] the rows in memory; [`checked`] the checksums of files; [`files`]
//! Parquet; [`footers`] how queries read it; [`raw`] copies the log's blocks; [`compact`] merges;
//! [`entities`] keeps the newest row of each key; [`provider`] is the table for SQL; [`store`]
//! makes Delta's commits durable; `orphans` removes files that no version names.

pub mod checked;
mod columns;
pub mod compact;
mod delta;
pub mod entities;
pub mod files;
pub mod footers;
mod live;
pub mod memtable;
mod orphans;
pub mod provider;
mod pruned;
pub mod raw;
pub mod replay;
pub mod scan_by_lsn;
pub mod store;
pub mod table;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::{View, ViewError};
use crate::event::{Lsn, Micros};
use crate::operators::{Output, checkpoints};
use crate::schema::{Entity, Layout, Stream, types};
use entities::{Merge, MergeScope, OVERDUE_CHECK_INTERVAL, STEP_INTERVAL, WrittenFiles};
use files::{Attempt, RowClass};
use memtable::UnflushedRows;
use raw::RawFrame;
pub use table::{Change, LakeTable};

/// The log whose LSNs a table's checkpoints are: Delta app id `weir/<instance>/<log id>/recent|old`.
#[derive(Debug, Clone, Copy)]
pub struct LogName {
    pub instance: u16,
    pub id: u64,
    /// The LSN before the log's first.
    pub zero: Lsn,
}

impl LogName {
    fn app(&self, class: RowClass) -> String {
        self.named(class.name())
    }

    /// Of an entity table's levels; its files alone have that of [`RowClass::Recent`], for outside
    /// readers.
    fn levels_app(&self) -> String {
        self.named("levels")
    }

    fn named(&self, name: &str) -> String {
        format!("weir/{}/{:x}/{name}", self.instance, self.id)
    }
}

/// What a lake table holds and where.
#[derive(Debug, Clone)]
pub struct TableSpec {
    pub name: String,
    /// Its folder.
    pub root: PathBuf,
    /// Columns of its files; the first is the LSN.
    pub schema: SchemaRef,
    /// The column whose time decides the folder.
    pub time_column: usize,
    pub layout: Layout,
    /// Of a table that is split by hash, the columns by which a row is known; of each the newest
    /// row stays.
    pub keys: Vec<usize>,
    pub feed: RowOrigin,
}

/// Which part of the operators' output a table takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowOrigin {
    Stream(String),
    /// A table that operators make: sessions, windows, late rows.
    Derived(String),
    /// Bytes kept of a record that is over its limit.
    DeadLetters,
    Raw,
}

impl TableSpec {
    pub fn stream(lake: &Path, stream: &Stream, layout: Layout) -> Self {
        Self {
            name: stream.name.clone(),
            root: table::root(lake, &stream.name),
            schema: stream.table_schema.clone(),
            time_column: 1,
            layout,
            keys: Vec::new(),
            feed: RowOrigin::Stream(stream.name.clone()),
        }
    }

    /// A table that operators make, by the time in its second column.
    pub fn derived(lake: &Path, name: &str, schema: SchemaRef, layout: Layout) -> Self {
        Self {
            name: name.to_owned(),
            root: table::root(lake, name),
            schema,
            time_column: 1,
            layout,
            keys: Vec::new(),
            feed: RowOrigin::Derived(name.to_owned()),
        }
    }

    /// An entity table: of each key the newest row.
    pub fn entity(lake: &Path, entity: &Entity) -> Self {
        let made = Self::derived(lake, &entity.name, entity.schema.clone(), Layout::Buckets);
        Self {
            keys: entity.keys.clone(),
            ..made
        }
    }

    pub fn dead_letters(lake: &Path, layout: Layout) -> Self {
        let fields = vec![
            Field::new("lsn", DataType::Int64, true),
            Field::new("received_at", types::timestamp(), true),
            Field::new("source", DataType::Utf8, true),
            Field::new("source_offset", DataType::Int64, true),
            Field::new("stream", DataType::Utf8, true),
            Field::new("reason", DataType::Utf8, true),
            Field::new("bytes", DataType::Binary, true),
            Field::new("retried_lsn", DataType::Int64, true),
        ];
        let name = "dead_letters";
        Self {
            name: name.into(),
            root: table::root(lake, name),
            schema: Arc::new(Schema::new(fields)),
            time_column: 1,
            layout,
            keys: Vec::new(),
            feed: RowOrigin::DeadLetters,
        }
    }

    pub fn raw(lake: &Path, layout: Layout) -> Self {
        let fields = vec![
            Field::new("lsn", DataType::Int64, true),
            Field::new("received_at", types::timestamp(), true),
            Field::new("source", DataType::Utf8, true),
            Field::new("partition", DataType::Utf8, true),
            Field::new("source_offset", DataType::Int64, true),
            Field::new("stream", DataType::Utf8, true),
            Field::new("kind", DataType::Utf8, true),
            Field::new("attributes", DataType::Utf8, true),
            Field::new("bytes", DataType::Binary, true),
        ];
        let name = "raw";
        Self {
            name: name.into(),
            root: table::root(lake, name),
            schema: Arc::new(Schema::new(fields)),
            time_column: 1,
            layout,
            keys: Vec::new(),
            feed: RowOrigin::Raw,
        }
    }

    /// Names of its checkpoints in snapshots: recent, and old where it has one.
    fn checkpoint_names(&self) -> (String, Option<String>) {
        match &self.feed {
            RowOrigin::Stream(name) => (checkpoints::recent(name), Some(checkpoints::old(name))),
            RowOrigin::Derived(name) => (checkpoints::recent(name), None),
            RowOrigin::DeadLetters => (checkpoints::DEAD_LETTERS.into(), None),
            RowOrigin::Raw => (checkpoints::RAW.into(), None),
        }
    }
}

/// When hot rows are committed.
#[derive(Debug, Clone)]
pub struct CommitPolicy {
    pub recent_every: Duration,
    pub old_every: Duration,
    pub rows: usize,
    /// Memory of the table's hot rows; half of it makes either class due.
    pub bytes: usize,
    /// Memory that the table shares with others: when most of it is used, those are due that use
    /// more than their part.
    pub pool: Option<Arc<Pool>>,
}

/// Memory of the hot rows of several tables, few of which have many.
#[derive(Debug)]
pub struct Pool {
    pub limit: usize,
    pub tables: usize,
    used: AtomicUsize,
}

impl Pool {
    pub fn new(limit: usize, tables: usize) -> Self {
        Self {
            limit,
            tables,
            used: AtomicUsize::new(0),
        }
    }

    fn is_due(&self, own: usize) -> bool {
        let used = self.used.load(Ordering::Relaxed);
        used * 4 >= self.limit * 3 && own * self.tables >= used
    }
}

/// Most partitions that one commit of old rows touches.
const MAX_LATE_PARTITIONS: usize = 1_000;

/// What of a class waits for its commit.
#[derive(Debug, Default)]
struct Waiting {
    rows: usize,
    bytes: usize,
    since: Option<Instant>,
}

impl Waiting {
    fn add(&mut self, rows: usize, bytes: usize, now: Instant) {
        self.rows += rows;
        self.bytes += bytes;
        if rows > 0 {
            self.since.get_or_insert(now);
        }
    }
}

/// Recent rows, old ones, and the floor they came with.
type SplitRows = (Option<UnflushedRows>, Option<RecordBatch>, Option<Micros>);

/// Writes one lake table.
pub struct LakeView {
    table: Arc<LakeTable>,
    policy: CommitPolicy,
    name: String,
    /// In memory, per class, everything up to here is applied.
    applied: [Lsn; 2],
    waiting: [Waiting; 2],
    writing: Option<Writing>,
    /// Its part of what the pool counts.
    pooled: usize,
    /// Of an entity table: rows behind the last time that each key's newest was picked, and how
    /// many make the next time.
    uncompacted_rows: usize,
    compacted_rows: usize,
    /// Of an entity table: a merge that goes in steps, and when it is looked whether one is due
    /// without rows.
    merge: Option<Merge>,
    next_step: Cell<Instant>,
}

/// Rows of an entity table that gather before each key's newest is picked.
const COMPACT_ROWS: usize = 8 << 10;

/// A commit that has begun: its files are being written.
struct Writing {
    class: RowClass,
    /// Hot parts that they hold, and the checkpoint that they bring.
    taken: usize,
    to: Lsn,
    files: JoinHandle<Result<WrittenFiles, String>>,
}

impl LakeView {
    pub fn new(table: Arc<LakeTable>, policy: CommitPolicy) -> Self {
        let applied = table.committed();
        let name = format!("lake/{}", table.spec.name);
        let view = Self {
            table,
            policy,
            name,
            applied,
            waiting: Default::default(),
            writing: None,
            pooled: 0,
            uncompacted_rows: 0,
            compacted_rows: 0,
            merge: None,
            next_step: Cell::new(Instant::now()),
        };
        view.table.set_applied(view.applied());
        view
    }

    fn two_classes(&self) -> bool {
        self.table.spec.checkpoint_names().1.is_some()
    }

    /// Tells the pool what waits here.
    fn count(&mut self) {
        let Some(pool) = &self.policy.pool else {
            return;
        };
        let now = self.waiting.iter().map(|w| w.bytes).sum();
        let before = std::mem::replace(&mut self.pooled, now);
        pool.used.fetch_add(now, Ordering::Relaxed);
        pool.used.fetch_sub(before, Ordering::Relaxed);
    }

    /// Of an entity table, keeps in memory the newest row of each key, once enough have come.
    fn compact_in_memory(&mut self, new_rows: usize) -> Result<(), ViewError> {
        self.uncompacted_rows += new_rows;
        if !self.is_entity() || self.uncompacted_rows < COMPACT_ROWS.max(self.compacted_rows) {
            return Ok(());
        }
        let failed = |e: String| ViewError::Failed {
            view: self.name.clone(),
            reason: e,
        };
        let before = self.waiting[RowClass::Recent as usize].rows;
        let (rows, bytes) = self.table.compact_in_memory().map_err(failed)?;
        // Where hardly a key comes twice, it is not looked for so often.
        let is_worth_it = rows < before / 2;
        (self.uncompacted_rows, self.compacted_rows) =
            (0, if is_worth_it { rows } else { 4 * rows });
        let waiting = &mut self.waiting[RowClass::Recent as usize];
        (waiting.rows, waiting.bytes) = (rows, bytes);
        Ok(())
    }

    fn is_class_due(&self, class: RowClass, now: Instant) -> bool {
        let waiting = &self.waiting[class as usize];
        let every = if class == RowClass::Recent {
            self.policy.recent_every
        } else {
            self.policy.old_every
        };
        waiting.rows >= self.policy.rows
            || waiting.bytes * 2 >= self.policy.bytes
            || self
                .policy
                .pool
                .as_ref()
                .is_some_and(|pool| pool.is_due(waiting.bytes))
            || waiting
                .since
                .is_some_and(|since| now.duration_since(since) >= every)
    }

    /// Rows wait that have no room beside those being written.
    fn is_overfull(&self) -> bool {
        self.waiting.iter().map(|w| w.bytes).sum::<usize>() >= self.policy.bytes
    }

    fn is_entity(&self) -> bool {
        self.table.spec.layout == Layout::Buckets
    }

    /// Whether an entity table's rows that wait in levels are merged now, though no new ones are
    /// due.
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

    /// Begins a commit of what a class has in memory: its files are written beside this thread, so
    /// that rows go on being seen.
    fn begin(&mut self, class: RowClass, how: MergeScope) -> Result<(), ViewError> {
        let failed = |e: String| ViewError::Failed {
            view: self.name.clone(),
            reason: e,
        };
        let mut parts = self.table.seal(class);
        let all = parts.len();
        if class == RowClass::Late {
            let fitting = partitions_fitting(&self.table.spec, &parts).map_err(failed)?;
            parts.truncate(fitting);
        }
        // Everything up to the last part taken; all of it: up to what is applied.
        let last = parts.last().map_or(0, |part| part.last_lsn());
        let to = if parts.len() == all {
            self.applied[class as usize]
        } else {
            last
        };
        let (table, taken, merge) = (self.table.clone(), parts.len(), self.merge.take());
        self.next_step.set(Instant::now() + STEP_INTERVAL);
        let write = move || match table.spec.layout {
            Layout::Buckets => {
                let batches = parts
                    .iter()
                    .map(|part| part.batch(&table.spec.schema))
                    .collect::<Result<Vec<_>, _>>()?;
                entities::write(&table, batches, merge, how, to)
            }
            _ => write_files(&table, &parts, class),
        };
        let files = std::thread::Builder::new()
            .name(format!("{}/files", self.name))
            .spawn(write)
            .map_err(|e| failed(e.to_string()))?;
        self.writing = Some(Writing {
            class,
            taken,
            to,
            files,
        });
        Ok(())
    }

    /// Ends the commit that has begun, when its files are written: the Delta entry with the
    /// checkpoint.
    fn end(&mut self) -> Result<(), ViewError> {
        let Some(Writing {
            class,
            taken,
            to,
            files,
        }) = self.writing.take()
        else {
            return Ok(());
        };
        let failed = |e: String| ViewError::Failed {
            view: self.name.clone(),
            reason: e,
        };
        let mut written = files
            .join()
            .unwrap_or_else(|_| Err("the thread that wrote files panicked".into()))
            .map_err(failed)?;
        self.merge = written.merge.take();
        if taken == 0 && !written.is_some() {
            // A step of a merge, of which no version knows yet.
            return Ok(());
        }
        tracing::debug!(
            view = self.name,
            class = class.name(),
            files = written.add.len(),
            to,
            "commit"
        );
        let change = Change {
            checkpoints: vec![(class, to)],
            ..entities::change(written)
        };
        self.table.commit(&change, &[(class, taken)])?;
        let waiting = &mut self.waiting[class as usize];
        *waiting = Waiting::default();
        let rest = self.table.snapshot();
        let rest = if class == RowClass::Recent {
            &rest.recent
        } else {
            &rest.old
        };
        let now = Instant::now();
        for part in rest {
            waiting.add(part.rows(), part.memory_bytes(), now);
        }
        (self.uncompacted_rows, self.compacted_rows) = (waiting.rows, 0);
        self.count();
        Ok(())
    }

    /// Rows of an output above what is applied, split by class.
    fn rows(&self, output: &Output) -> Result<SplitRows, String> {
        let spec = &self.table.spec;
        match &spec.feed {
            RowOrigin::Raw => {
                let above = self.applied[0].max(output.after);
                let part = || {
                    UnflushedRows::Frame(RawFrame {
                        frame: output.frame.clone(),
                        above,
                    })
                };
                Ok(((output.to > above).then(part), None, None))
            }
            RowOrigin::DeadLetters => {
                let rows = dead_letter_rows(output, self.applied[0], &spec.schema)?;
                Ok((rows.map(UnflushedRows::Rows), None, None))
            }
            RowOrigin::Derived(name) => {
                let Some(made) = output.tables.iter().find(|t| *t.table == **name) else {
                    return Ok((None, None, None));
                };
                let above = self.applied[0] as i64;
                let from = crate::operators::lsns(&made.batch).partition_point(|lsn| *lsn <= above);
                let rows = made.batch.slice(from, made.batch.num_rows() - from);
                Ok((
                    (rows.num_rows() > 0).then_some(UnflushedRows::Rows(rows)),
                    None,
                    made.floor,
                ))
            }
            RowOrigin::Stream(name) => {
                let Some(rows) = output.rows.as_ref().filter(|r| r.stream.name == *name) else {
                    return Ok((None, None, None));
                };
                let is_old = |row: usize| rows.old.as_ref().is_some_and(|o| o[row]);
                let above = |class: RowClass| self.applied[class as usize] as i64;
                let pick = |class: RowClass| {
                    let wanted: Vec<bool> = rows
                        .lsns()
                        .iter()
                        .enumerate()
                        .map(|(row, lsn)| {
                            is_old(row) == (class == RowClass::Late) && *lsn > above(class)
                        })
                        .collect();
                    let count = wanted.iter().filter(|w| **w).count();
                    if count == 0 {
                        Ok(None)
                    } else if count == wanted.len() {
                        Ok(Some(rows.batch.clone()))
                    } else {
                        filter_record_batch(&rows.batch, &BooleanArray::from(wanted))
                            .map(Some)
                            .map_err(|e| e.to_string())
                    }
                };
                Ok((
                    pick(RowClass::Recent)?.map(UnflushedRows::Rows),
                    pick(RowClass::Late)?,
                    rows.floor,
                ))
            }
        }
    }
}

impl View for LakeView {
    fn name(&self) -> &str {
        &self.name
    }

    fn applied(&self) -> Lsn {
        if self.two_classes() {
            self.applied[0].min(self.applied[1])
        } else {
            self.applied[0]
        }
    }

    fn checkpoints(&self) -> Vec<(String, Lsn)> {
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
        let failed = |e: String| ViewError::Failed {
            view: self.name.clone(),
            reason: e,
        };
        let (recent, old, floor) = self.rows(output).map_err(failed)?;
        let size = |hot: &UnflushedRows| (hot.rows(), hot.memory_bytes());
        let (rows, bytes) = recent.as_ref().map_or((0, 0), size);
        self.waiting[0].add(rows, bytes, now);
        if let Some(old) = &old {
            self.waiting[1].add(old.num_rows(), old.get_array_memory_size(), now);
        }
        self.applied = self.applied.map(|a| a.max(output.to));
        let floor = floor.max(output.floors.get(&self.table.spec.name).copied());
        self.table.push(recent, old, output.to, floor);
        if rows > 0 {
            self.compact_in_memory(rows)?;
        }
        self.count();
        Ok(())
    }

    fn is_due(&self, now: Instant, _caught_up: bool) -> bool {
        match &self.writing {
            Some(writing) => writing.files.is_finished() || self.is_overfull(),
            None => {
                self.is_class_due(RowClass::Recent, now)
                    || self.is_class_due(RowClass::Late, now)
                    || self.is_step_due(now)
            }
        }
    }

    fn commit(&mut self, all: bool) -> Result<(), ViewError> {
        loop {
            if let Some(writing) = &self.writing {
                if !(all || writing.files.is_finished() || self.is_overfull()) {
                    return Ok(());
                }
                self.end()?;
                continue;
            }
            let now = Instant::now();
            let is_due = |c: &RowClass| {
                self.waiting[*c as usize].rows > 0 && (all || self.is_class_due(*c, now))
            };
            let how = if all && self.table.merges_on_close() {
                MergeScope::All
            } else {
                MergeScope::Due
            };
            match [RowClass::Recent, RowClass::Late].into_iter().find(is_due) {
                Some(class) => self.begin(class, how)?,
                None if how == MergeScope::All && self.table.has_levels() => {
                    self.begin(RowClass::Recent, how)?;
                }
                None if !all && self.is_step_due(now) => self.begin(RowClass::Recent, how)?,
                None => return Ok(()),
            }
        }
    }

    fn checkpoint(&mut self) -> Result<(), ViewError> {
        self.commit(true)?;
        let classes = if self.two_classes() {
            &[RowClass::Recent, RowClass::Late][..]
        } else {
            &[RowClass::Recent]
        };
        let checkpoints = classes
            .iter()
            .map(|class| (*class, self.applied[*class as usize]))
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
        if let Some(writing) = self.writing.take() {
            // Files of an attempt that was given up are never committed.
            let _ = writing.files.join();
        }
        self.merge = None;
        let committed = self.table.reload_committed()?;
        self.table.clear_unflushed();
        self.applied = committed;
        self.waiting = Default::default();
        (self.uncompacted_rows, self.compacted_rows) = (0, 0);
        self.count();
        self.table.set_applied(self.applied());
        Ok(())
    }
}

/// MergeScope many of the parts, from the first on, reach no more partitions than one commit may; at least
/// one.
fn partitions_fitting(spec: &TableSpec, parts: &[Arc<UnflushedRows>]) -> Result<usize, String> {
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
) -> Result<WrittenFiles, String> {
    let spec = &table.spec;
    let attempt = Attempt::new(spec);
    let now_ms = chrono::Utc::now().timestamp_millis();
    let add = if spec.feed == RowOrigin::Raw {
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

/// Longest part of a record that `dead_letters` duplicates; the whole record is in `raw`.
const DEAD_LETTER_BYTES: usize = 1 << 20;

fn dead_letter_rows(
    output: &Output,
    above: Lsn,
    schema: &SchemaRef,
) -> Result<Option<RecordBatch>, String> {
    let letters: Vec<_> = output
        .dead_letters
        .iter()
        .filter(|d| d.lsn > above)
        .collect();
    if letters.is_empty() {
        return Ok(None);
    }
    let header = &output.frame.header;
    let records = output.frame.records().map_err(|e| e.to_string())?;
    let n = letters.len();
    let text = |value: &str| {
        Arc::new(StringArray::from_iter_values(std::iter::repeat_n(value, n))) as ArrayRef
    };
    let checkpoints = &output.frame.attributes.offsets;
    let bytes = |index: u32| {
        let record = records.get(index as usize);
        &record[..record.len().min(DEAD_LETTER_BYTES)]
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
                .map(|d| checkpoints.get(d.index as usize).map(|p| *p as i64))
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
    ];
    RecordBatch::try_new(schema.clone(), columns)
        .map(Some)
        .map_err(|e| e.to_string())
}

/// Rows of hot parts in the table's own schema, or in the full one with its partition columns.
pub fn unflushed_batches(
    spec: &TableSpec,
    wanted: &SchemaRef,
    parts: &[Arc<UnflushedRows>],
) -> Result<Vec<RecordBatch>, String> {
    let is_own = wanted.fields().len() == spec.schema.fields().len();
    let batch = |part: &Arc<UnflushedRows>| {
        let own = part.batch(&spec.schema)?;
        if is_own {
            Ok(own)
        } else {
            files::with_partition_columns(spec, &own, wanted)
        }
    };
    parts.iter().map(batch).collect()
}
