//! The lake: one Delta table per stream, `dead_letters` and `raw`, in folders by time, with the rows above its last commit in
//! memory. Two positions where event time decides the folder: *recent* rows commit often, *old* ones wait together.
//!
//! [`table`] is a Delta table and what queries see of it; [`hot`] the rows in memory; [`files`] Parquet; [`raw`] copies the log's blocks; [`compact`] merges;
//! [`provider`] is the table for SQL; [`store`] makes Delta's commits durable.

pub mod compact;
pub mod files;
pub mod hot;
pub mod provider;
pub mod raw;
pub mod store;
pub mod table;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::{View, ViewError};
use crate::event::{Lsn, Micros};
use crate::operators::{Output, positions};
use crate::schema::{Stream, types};
use files::Class;
use hot::Hot;
use raw::RawFrame;
pub use table::{Change, LakeTable};

/// The log whose LSNs a table's positions are: Delta app id `weir/<instance>/<log id>/recent|old`.
#[derive(Debug, Clone, Copy)]
pub struct LogName {
    pub instance: u16,
    pub id: u64,
    /// The LSN before the log's first.
    pub zero: Lsn,
}

impl LogName {
    fn app(&self, class: Class) -> String {
        format!("weir/{}/{:x}/{}", self.instance, self.id, class.name())
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
    pub by_hour: bool,
    pub feed: Feed,
}

/// Which part of the operators' output a table takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Feed {
    Stream(String),
    /// Bytes kept of a record that is over its limit.
    DeadLetters,
    Raw,
}

impl TableSpec {
    pub fn stream(lake: &Path, stream: &Stream, by_hour: bool) -> Self {
        Self {
            name: stream.name.clone(),
            root: table::root(lake, &stream.name),
            schema: stream.table_schema.clone(),
            time_column: 1,
            by_hour,
            feed: Feed::Stream(stream.name.clone()),
        }
    }

    pub fn dead_letters(lake: &Path, by_hour: bool) -> Self {
        let fields = vec![
            Field::new("lsn", DataType::Int64, true),
            Field::new("received_at", types::timestamp(), true),
            Field::new("source", DataType::Utf8, true),
            Field::new("position", DataType::Int64, true),
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
            by_hour,
            feed: Feed::DeadLetters,
        }
    }

    pub fn raw(lake: &Path, by_hour: bool) -> Self {
        let fields = vec![
            Field::new("lsn", DataType::Int64, true),
            Field::new("received_at", types::timestamp(), true),
            Field::new("source", DataType::Utf8, true),
            Field::new("partition", DataType::Utf8, true),
            Field::new("position", DataType::Int64, true),
            Field::new("stream", DataType::Utf8, true),
            Field::new("kind", DataType::Utf8, true),
            Field::new("about", DataType::Utf8, true),
            Field::new("bytes", DataType::Binary, true),
        ];
        let name = "raw";
        Self {
            name: name.into(),
            root: table::root(lake, name),
            schema: Arc::new(Schema::new(fields)),
            time_column: 1,
            by_hour,
            feed: Feed::Raw,
        }
    }

    /// Names of its positions in snapshots: recent, and old where it has one.
    fn position_names(&self) -> (String, Option<String>) {
        match &self.feed {
            Feed::Stream(name) => (positions::recent(name), Some(positions::old(name))),
            Feed::DeadLetters => (positions::DEAD_LETTERS.into(), None),
            Feed::Raw => (positions::RAW.into(), None),
        }
    }
}

/// When hot rows are committed.
#[derive(Debug, Clone, Copy)]
pub struct CommitPolicy {
    pub recent_every: Duration,
    pub old_every: Duration,
    pub rows: usize,
    /// Memory of the table's hot rows; half of it makes either class due.
    pub bytes: usize,
}

/// Most partitions that one commit of old rows touches.
const OLD_PARTITIONS: usize = 1_000;

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
type SplitRows = (Option<Hot>, Option<RecordBatch>, Option<Micros>);

/// Writes one lake table.
pub struct LakeView {
    table: Arc<LakeTable>,
    policy: CommitPolicy,
    name: String,
    /// In memory, per class, everything up to here is applied.
    applied: [Lsn; 2],
    waiting: [Waiting; 2],
}

impl LakeView {
    pub fn new(table: Arc<LakeTable>, policy: CommitPolicy) -> Self {
        let applied = table.committed();
        let name = format!("lake/{}", table.spec.name);
        let view = Self { table, policy, name, applied, waiting: Default::default() };
        view.table.set_applied(view.applied());
        view
    }

    fn two_classes(&self) -> bool {
        self.table.spec.position_names().1.is_some()
    }

    fn is_class_due(&self, class: Class, now: Instant) -> bool {
        let waiting = &self.waiting[class as usize];
        let every = if class == Class::Recent { self.policy.recent_every } else { self.policy.old_every };
        waiting.rows >= self.policy.rows
            || waiting.bytes * 2 >= self.policy.bytes
            || waiting.since.is_some_and(|since| now.duration_since(since) >= every)
    }

    /// Commits what a class has in memory: files first, synced, then the Delta entry with the position.
    fn commit_class(&mut self, class: Class) -> Result<(), ViewError> {
        let failed = |e: String| ViewError::Failed { view: self.name.clone(), reason: e };
        let state = self.table.snapshot();
        let parts = if class == Class::Recent { &state.recent } else { &state.old };
        let spec = &self.table.spec;
        let now_ms = chrono::Utc::now().timestamp_millis();
        let (taken, add) = if spec.feed == Feed::Raw {
            (parts.len(), raw::write_frames(spec, parts, now_ms).map_err(failed)?)
        } else {
            let mut reached = BTreeSet::new();
            let mut batches: Vec<RecordBatch> = Vec::new();
            for part in parts {
                let batch = part.batch(&spec.schema).map_err(failed)?;
                let partitions = files::count_partitions(spec, &batch, &mut reached);
                if class == Class::Old && !batches.is_empty() && partitions > OLD_PARTITIONS {
                    break;
                }
                batches.push(batch);
            }
            (batches.len(), files::write_partitions(spec, &batches, class, now_ms).map_err(failed)?)
        };
        // Everything up to the last part taken; all of it: up to what is applied.
        let to = if taken == parts.len() { self.applied[class as usize] } else { parts[taken - 1].last_lsn() };
        files::sync_files(&spec.root, &add).map_err(failed)?;
        tracing::debug!(view = self.name, class = class.name(), files = add.len(), to, "commit");
        let change = Change { add, remove: Vec::new(), positions: vec![(class, to)], data_change: true };
        self.table.commit(&change, &[(class, taken)])?;
        let waiting = &mut self.waiting[class as usize];
        *waiting = Waiting::default();
        let rest = self.table.snapshot();
        let rest = if class == Class::Recent { &rest.recent } else { &rest.old };
        let now = Instant::now();
        for part in rest {
            waiting.add(part.rows(), part.memory_bytes(), now);
        }
        Ok(())
    }

    /// Rows of an output above what is applied, split by class.
    fn rows(&self, output: &Output) -> Result<SplitRows, String> {
        let spec = &self.table.spec;
        match &spec.feed {
            Feed::Raw => {
                let above = self.applied[0].max(output.after);
                let part = || Hot::Frame(RawFrame { frame: output.frame.clone(), above });
                Ok(((output.to > above).then(part), None, None))
            }
            Feed::DeadLetters => {
                let rows = dead_letter_rows(output, self.applied[0], &spec.schema)?;
                Ok((rows.map(Hot::Rows), None, None))
            }
            Feed::Stream(name) => {
                let Some(rows) = output.rows.as_ref().filter(|r| r.stream.name == *name) else {
                    return Ok((None, None, None));
                };
                let is_old = |row: usize| rows.old.as_ref().is_some_and(|o| o[row]);
                let above = |class: Class| self.applied[class as usize] as i64;
                let pick = |class: Class| {
                    let wanted: Vec<bool> = rows
                        .lsns()
                        .iter()
                        .enumerate()
                        .map(|(row, lsn)| is_old(row) == (class == Class::Old) && *lsn > above(class))
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
                Ok((pick(Class::Recent)?.map(Hot::Rows), pick(Class::Old)?, rows.floor))
            }
        }
    }
}

impl View for LakeView {
    fn name(&self) -> &str {
        &self.name
    }

    fn applied(&self) -> Lsn {
        if self.two_classes() { self.applied[0].min(self.applied[1]) } else { self.applied[0] }
    }

    fn positions(&self) -> Vec<(String, Lsn)> {
        self.table.positions()
    }

    fn skip_to(&mut self, lsn: Lsn) {
        self.applied = self.applied.map(|a| a.max(lsn));
        self.table.set_applied(self.applied());
    }

    fn apply(&mut self, output: &Output, now: Instant) -> Result<(), ViewError> {
        if output.to <= self.applied() {
            return Ok(());
        }
        let failed = |e: String| ViewError::Failed { view: self.name.clone(), reason: e };
        let (recent, old, floor) = self.rows(output).map_err(failed)?;
        let size = |hot: &Hot| (hot.rows(), hot.memory_bytes());
        let (rows, bytes) = recent.as_ref().map_or((0, 0), size);
        self.waiting[0].add(rows, bytes, now);
        if let Some(old) = &old {
            self.waiting[1].add(old.num_rows(), old.get_array_memory_size(), now);
        }
        self.applied = self.applied.map(|a| a.max(output.to));
        let floor = floor.max(output.floors.get(&self.table.spec.name).copied());
        self.table.push(recent, old, output.to, floor);
        Ok(())
    }

    fn is_due(&self, now: Instant, _caught_up: bool) -> bool {
        self.is_class_due(Class::Recent, now) || self.is_class_due(Class::Old, now)
    }

    fn commit(&mut self, all: bool) -> Result<(), ViewError> {
        let now = Instant::now();
        for class in [Class::Recent, Class::Old] {
            while self.waiting[class as usize].rows > 0 && (all || self.is_class_due(class, now)) {
                self.commit_class(class)?;
            }
        }
        Ok(())
    }

    fn reopen(&mut self) -> Result<(), ViewError> {
        let committed = self.table.committed_for_sure()?;
        self.table.clear_hot();
        self.applied = committed;
        self.waiting = Default::default();
        self.table.set_applied(self.applied());
        Ok(())
    }
}

/// Longest part of a record that `dead_letters` repeats; the whole record is in `raw`.
const DEAD_LETTER_BYTES: usize = 1 << 20;

fn dead_letter_rows(output: &Output, above: Lsn, schema: &SchemaRef) -> Result<Option<RecordBatch>, String> {
    let letters: Vec<_> = output.dead_letters.iter().filter(|d| d.lsn > above).collect();
    if letters.is_empty() {
        return Ok(None);
    }
    let header = &output.frame.header;
    let records = output.frame.records().map_err(|e| e.to_string())?;
    let n = letters.len();
    let text = |value: &str| Arc::new(StringArray::from_iter_values(std::iter::repeat_n(value, n))) as ArrayRef;
    let positions = &output.frame.about.positions;
    let bytes = |index: u32| {
        let record = records.get(index as usize);
        &record[..record.len().min(DEAD_LETTER_BYTES)]
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(letters.iter().map(|d| d.lsn as i64))),
        Arc::new(TimestampMicrosecondArray::from(vec![header.received_at; n]).with_timezone("UTC")),
        text(&header.source),
        Arc::new(letters.iter().map(|d| positions.get(d.index as usize).map(|p| *p as i64)).collect::<Int64Array>()),
        text(&header.stream),
        Arc::new(StringArray::from_iter_values(letters.iter().map(|d| d.reason.as_str()))),
        Arc::new(BinaryArray::from_iter_values(letters.iter().map(|d| bytes(d.index)))),
        Arc::new(Int64Array::from(vec![None; n])),
    ];
    RecordBatch::try_new(schema.clone(), columns).map(Some).map_err(|e| e.to_string())
}

/// Rows of hot parts, with the table's partition columns.
pub fn hot_batches(spec: &TableSpec, full: &SchemaRef, parts: &[Arc<Hot>]) -> Result<Vec<RecordBatch>, String> {
    parts.iter().map(|p| files::with_partition_columns(spec, &p.batch(&spec.schema)?, full)).collect()
}
