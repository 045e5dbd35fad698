//! Full-text search: documents of a stream's text columns in tantivy, visible within a second, each
//! with its row.
//!
//! [`text`] splits texts into words; `document` gives tantivy a batch's rows as documents;
//! [`index`] is a row of tantivy indexes; [`rows`] stores the documents' rows in blocks (`block`)
//! beside them; [`spans`] remembers what is known of a segment, from which [`newest`] finds the
//! newest hits.

mod block;
mod document;
mod held;
pub mod index;
pub mod newest;
pub mod rows;
mod script;
pub mod spans;
pub mod text;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tantivy::IndexWriter;
use tantivy::indexer::{IndexWriterOptions, LogMergePolicy, UserOperation};

use super::{View, ViewError};
use crate::event::Lsn;
use crate::operators::{Output, StreamRows, checkpoints};
use crate::schema::Stream;
use crate::storage::sync_folder;
use document::{Backlog, Columns, Row};
pub use index::SearchIndex;
use index::{Payload, part_folder};

/// A commit follows the first document that waits by this, once nothing more waits in the ring.
const COMMIT_AFTER: Duration = Duration::from_millis(400);
/// Behind, a commit comes every so many documents.
const COMMIT_DOCUMENTS: usize = 200_000;
/// Behind or not, a document does not wait longer.
const COMMIT_AT_LAST: Duration = Duration::from_secs(5);
/// Documents after which another index is begun: many, so that there are few indexes to ask.
const ROLL_DOCUMENTS: u64 = 10_000_000;
/// Where the disk is limited, an index has this share of it and no more, because only a whole index
/// gives its space back.
const INDEX_SHARE: u64 = 16;
/// No index is made for less.
const MIN_INDEX_BYTES: u64 = 1 << 20;

/// When another index is begun.
#[derive(Debug, Clone, Copy)]
pub struct Roll {
    documents: u64,
    bytes: Option<u64>,
}

impl Roll {
    /// Under this limit of the disk.
    pub fn within(disk: Option<u64>) -> Self {
        let bytes = disk.map(|disk| (disk / INDEX_SHARE).max(MIN_INDEX_BYTES));
        Self {
            documents: ROLL_DOCUMENTS,
            bytes,
        }
    }

    fn is_due(&self, documents: u64, bytes: impl FnOnce() -> u64) -> bool {
        documents > 0
            && (documents >= self.documents || self.bytes.is_some_and(|most| bytes() >= most))
    }
}

/// Rows handed to the writer at once; its memory is looked at between them.
const HAND_OVER: usize = 256;
/// Segments of about one size that become one: fewer are merged more often, more are longer to
/// search.
const MERGE_SEGMENTS: usize = 10;
/// The least memory tantivy works with.
const LEAST_MEMORY: usize = 16 << 20;

/// Feeds one stream's index.
pub struct SearchView {
    index: Arc<SearchIndex>,
    stream: Arc<Stream>,
    writer: Option<IndexWriter<Row>>,
    memory: usize,
    roll: Roll,
    name: String,
    log: u64,
    zero: Lsn,
    applied: Lsn,
    committed: Lsn,
    waiting: usize,
    backlog: Backlog,
    since: Option<Instant>,
}

impl SearchView {
    pub fn new(
        index: Arc<SearchIndex>,
        stream: Arc<Stream>,
        log: u64,
        zero: Lsn,
        memory: usize,
        roll: Roll,
    ) -> Result<Self, ViewError> {
        index.sync_names()?;
        let committed = index.checkpoint(log, zero)?;
        index.set_visible(committed);
        let name = checkpoints::search(&stream.name);
        // A merge beside it goes through its segments as they lie on the disk and takes little.
        let memory = (memory / 4 * 3).max(LEAST_MEMORY);
        Ok(Self {
            index,
            stream,
            writer: None,
            memory,
            roll,
            name,
            log,
            zero,
            applied: committed,
            committed,
            waiting: 0,
            backlog: Backlog::default(),
            since: None,
        })
    }

    fn failed(&self, error: impl std::fmt::Display) -> ViewError {
        ViewError::Failed {
            view: self.name.clone(),
            reason: error.to_string(),
        }
    }

    fn open_writer(&mut self) -> Result<(), ViewError> {
        if self.writer.is_some() {
            return Ok(());
        }
        let options = IndexWriterOptions::builder()
            .num_worker_threads(1)
            .memory_budget_per_thread(self.memory)
            .num_merge_threads(1)
            .build();
        let writer: IndexWriter<Row> = self
            .index
            .last()
            .0
            .writer_with_options(options)
            .map_err(|e| self.failed(e))?;
        let mut policy = LogMergePolicy::default();
        policy.set_min_num_segments(MERGE_SEGMENTS);
        policy.set_max_docs_before_merge(2_000_000);
        writer.set_merge_policy(Box::new(policy));
        self.writer = Some(writer);
        Ok(())
    }

    fn add(&mut self, rows: &StreamRows) -> Result<(), ViewError> {
        let Some(def) = &self.stream.def.search else {
            return Ok(());
        };
        let columns = Arc::new(Columns::new(
            &rows.batch,
            &self.index.fields,
            def,
            &self.backlog,
        ));
        let lsns = rows.lsns();
        let first = lsns.partition_point(|lsn| *lsn as u64 <= self.applied);
        self.open_writer()?;
        let Some(writer) = &self.writer else {
            return Ok(());
        };
        let mut at = first;
        while at < lsns.len() {
            let end = (at + HAND_OVER).min(lsns.len());
            let documents = (at..end).map(|row| {
                UserOperation::Add(Row {
                    columns: columns.clone(),
                    row,
                })
            });
            writer
                .run(documents.collect::<Vec<_>>())
                .map_err(|e| self.failed(e))?;
            at = end;
        }
        self.waiting += lsns.len() - first;
        Ok(())
    }

    /// Files of a commit that failed leave at once, as far as a new writer can be had.
    fn remove_what_was_not_committed(&mut self) {
        let removed = self.open_writer().is_ok()
            && self
                .writer
                .as_ref()
                .is_some_and(|writer| writer.garbage_collect_files().wait().is_ok());
        if !removed {
            // Which another commit does.
            self.writer = None;
        }
    }

    fn try_commit(&mut self) -> Result<(), tantivy::TantivyError> {
        let Some(writer) = &mut self.writer else {
            return Ok(());
        };
        let payload = Payload::new(self.log, self.applied);
        let mut commit = writer.prepare_commit()?;
        commit.set_payload(&serde_json::to_string(&payload).unwrap_or_default());
        commit.commit()?;
        let (index, number) = self.index.last();
        // The rename that publishes the commit is durable only with its folder.
        sync_folder(&part_folder(&self.index.folder, number))?;
        self.index.reload(self.applied)?;
        let documents: u64 = index
            .searchable_segment_metas()?
            .iter()
            .map(|s| u64::from(s.num_docs()))
            .sum();
        if self.roll.is_due(documents, || self.index.bytes_of(number)) {
            if let Some(writer) = self.writer.take() {
                writer.wait_merging_threads()?;
            }
            self.index.reload(self.applied)?;
            self.index.roll()?;
        }
        Ok(())
    }
}

impl View for SearchView {
    fn name(&self) -> &str {
        &self.name
    }

    fn applied(&self) -> Lsn {
        self.applied
    }

    fn checkpoints(&self) -> Vec<(String, Lsn)> {
        vec![(self.name.clone(), self.committed)]
    }

    fn skip_to(&mut self, lsn: Lsn) {
        self.applied = self.applied.max(lsn);
        self.index.set_visible(self.applied);
    }

    fn apply(&mut self, output: &Output, now: Instant) -> Result<(), ViewError> {
        if output.to <= self.applied {
            return Ok(());
        }
        if let Some(rows) = output
            .rows
            .as_ref()
            .filter(|r| r.stream.name == self.stream.name)
        {
            self.add(rows)?;
            self.since.get_or_insert(now);
        }
        self.applied = output.to;
        if self.since.is_none() {
            // Nothing waits: everything up to here is found.
            self.index.set_visible(self.applied);
        }
        Ok(())
    }

    fn is_due(&self, now: Instant, caught_up: bool) -> bool {
        let age = self
            .since
            .map_or(Duration::ZERO, |since| now.duration_since(since));
        self.since.is_some()
            && (self.waiting >= COMMIT_DOCUMENTS
                || self.backlog.bytes() >= self.memory
                || caught_up && age >= COMMIT_AFTER
                || age >= COMMIT_AT_LAST)
    }

    fn commit(&mut self, all: bool) -> Result<(), ViewError> {
        if self.since.is_some() {
            if let Err(error) = self.try_commit() {
                // A writer that failed once may publish without its documents: never use it again.
                self.writer = None;
                return Err(self.failed(error));
            }
            self.committed = self.applied;
            self.waiting = 0;
            self.since = None;
        }
        if all && let Some(writer) = self.writer.take() {
            writer.wait_merging_threads().map_err(|e| self.failed(e))?;
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<(), ViewError> {
        self.open_writer()?;
        self.since.get_or_insert_with(Instant::now);
        self.commit(true)
    }

    fn reopen(&mut self) -> Result<(), ViewError> {
        self.writer = None;
        self.remove_what_was_not_committed();
        self.index.sync_names()?;
        self.committed = self.index.checkpoint(self.log, self.zero)?;
        self.applied = self.committed;
        self.waiting = 0;
        self.since = None;
        self.index.reload(self.applied).map_err(|e| self.failed(e))
    }
}
