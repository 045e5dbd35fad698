//! Full-text search: documents of a stream's text columns in tantivy, visible within a second, each
//! with its row.
//!
//! `text` splits texts into terms; `document` hands a batch's rows to tantivy; `index` is a
//! stream's sequence of tantivy indexes, each a `part` in a `format`; `rows` stores the
//! documents' rows in blocks (`block`); `spans` summarizes a segment, and `newest` uses the
//! summaries to find the newest hits without a full `scan`.

mod block;
mod document;
mod errors;
mod format;
pub(crate) mod index;
pub(crate) mod newest;
pub(crate) mod part;
pub(crate) mod rows;
mod scan;
mod spans;
pub(crate) mod text;
mod unlocked_directory;

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
use format::Payload;
pub use index::SearchIndex;
use part::part_folder;

/// Caught up, a commit follows the first uncommitted document after this time.
const COMMIT_AFTER: Duration = Duration::from_millis(400);
/// Catching up, a commit comes after this many documents.
const COMMIT_DOCUMENTS: usize = 200_000;
/// The longest time that a document waits for a commit.
const MAX_COMMIT_DELAY: Duration = Duration::from_secs(5);
/// Documents after which another index is started: many, so that searches read few indexes.
const ROLL_DOCUMENTS: u64 = 10_000_000;
/// With a limit of the disk, an index has at most this share of it, because retention frees only
/// whole indexes.
const INDEX_SHARE: u64 = 16;
/// An index with fewer bytes is not rolled for its share of the disk.
const MIN_INDEX_BYTES: u64 = 1 << 20;

/// When another index is started.
#[derive(Debug, Clone, Copy)]
pub struct RollPolicy {
    documents: u64,
    bytes: Option<u64>,
}

impl RollPolicy {
    /// `disk` is the limit of the disk in bytes, if any.
    pub fn for_disk_limit(disk: Option<u64>) -> Self {
        let bytes = disk.map(|disk| (disk / INDEX_SHARE).max(MIN_INDEX_BYTES));
        Self {
            documents: ROLL_DOCUMENTS,
            bytes,
        }
    }

    fn is_due(&self, documents: u64, bytes: impl FnOnce() -> u64) -> bool {
        documents > 0
            && (documents >= self.documents || self.bytes.is_some_and(|max| bytes() >= max))
    }
}

/// Rows handed to the writer at once; it checks its memory between them.
const WRITE_ROWS: usize = 256;
/// Segments of similar size that are merged: fewer are merged more often, more take longer to
/// search.
const MERGE_SEGMENTS: usize = 10;
/// The least memory that tantivy works with.
const MIN_MEMORY_BYTES: usize = 16 << 20;

/// Feeds one stream's index.
pub struct SearchView {
    index: Arc<SearchIndex>,
    stream: Arc<Stream>,
    writer: Option<IndexWriter<Row>>,
    memory: usize,
    roll: RollPolicy,
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
        roll: RollPolicy,
    ) -> Result<Self, ViewError> {
        index.sync_folders()?;
        let committed = index.checkpoint(log, zero)?;
        index.set_visible(committed);
        let name = checkpoints::search(&stream.name);
        // The rest is for merges, which read segments from the disk and take little.
        let memory = (memory / 4 * 3).max(MIN_MEMORY_BYTES);
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
            let end = (at + WRITE_ROWS).min(lsns.len());
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

    /// Removes the files of a failed commit, if a new writer can be opened.
    fn remove_uncommitted_files(&mut self) {
        let removed = self.open_writer().is_ok()
            && self
                .writer
                .as_ref()
                .is_some_and(|writer| writer.garbage_collect_files().wait().is_ok());
        if !removed {
            // The next commit removes them.
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
        if self
            .roll
            .is_due(documents, || self.index.part_bytes(number))
        {
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

    fn advance_to(&mut self, lsn: Lsn) {
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
            // Nothing is uncommitted: everything up to here can be found.
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
                || age >= MAX_COMMIT_DELAY)
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

    fn checkpoint(&mut self) -> Result<(), ViewError> {
        self.open_writer()?;
        self.since.get_or_insert_with(Instant::now);
        self.commit(true)
    }

    fn reset_to_committed(&mut self) -> Result<(), ViewError> {
        self.writer = None;
        self.remove_uncommitted_files();
        self.index.sync_folders()?;
        self.committed = self.index.checkpoint(self.log, self.zero)?;
        self.applied = self.committed;
        self.waiting = 0;
        self.since = None;
        self.index.reload(self.applied).map_err(|e| self.failed(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_rolled_by_documents_or_by_its_share_of_the_disk() {
        let unlimited = RollPolicy::for_disk_limit(None);
        let limited = RollPolicy::for_disk_limit(Some(160 << 20));
        let tiny = RollPolicy::for_disk_limit(Some(1 << 20));
        for (policy, documents, bytes, expected) in [
            (unlimited, ROLL_DOCUMENTS - 1, u64::MAX, false),
            (unlimited, ROLL_DOCUMENTS, 0, true),
            (limited, 1, (10 << 20) - 1, false),
            (limited, 1, 10 << 20, true),
            (limited, 0, 10 << 20, false),
            (tiny, 1, MIN_INDEX_BYTES - 1, false),
        ] {
            assert_eq!(policy.is_due(documents, || bytes), expected, "{policy:?}");
        }
    }
}
