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

use super::{Cause, Cursor, LogIdentity, StreamView, ViewError};
use crate::event::Lsn;
use crate::ids::ViewId;
use crate::operators::StreamRows;
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
    log: LogIdentity,
    cursor: Cursor,
    /// Documents that are not committed.
    waiting: usize,
    /// Bytes of those that are not indexed yet.
    backlog: Backlog,
}

impl SearchView {
    /// A view that continues at the committed checkpoint; an error where it belongs to another log.
    pub fn new(
        index: Arc<SearchIndex>,
        stream: Arc<Stream>,
        log: LogIdentity,
        memory: usize,
        roll: RollPolicy,
    ) -> Result<Self, ViewError> {
        index.sync_folders()?;
        let committed = index.checkpoint(log)?;
        index.set_visible(committed);
        let cursor = Cursor::new(ViewId::search(&stream.name), committed);
        // The rest is for merges, which read segments from the disk and take little.
        let memory = (memory / 4 * 3).max(MIN_MEMORY_BYTES);
        Ok(Self {
            index,
            stream,
            writer: None,
            memory,
            roll,
            log,
            cursor,
            waiting: 0,
            backlog: Backlog::default(),
        })
    }

    fn failed(&self, error: impl Into<Cause>) -> ViewError {
        ViewError::failed(self.cursor.view().to_string())(error)
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
        let applied = self.cursor.applied();
        let Some(writer) = &mut self.writer else {
            return Ok(());
        };
        let payload = Payload::new(self.log.id, applied);
        let mut commit = writer.prepare_commit()?;
        commit.set_payload(&serde_json::to_string(&payload).unwrap_or_default());
        commit.commit()?;
        let (index, number) = self.index.last();
        // The rename that publishes the commit is durable only with its folder.
        sync_folder(&part_folder(&self.index.folder, number))?;
        self.index.reload(applied)?;
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
            self.index.reload(applied)?;
            self.index.roll()?;
        }
        Ok(())
    }
}

impl StreamView for SearchView {
    fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    fn cursor_mut(&mut self) -> &mut Cursor {
        &mut self.cursor
    }

    fn stream(&self) -> &str {
        &self.stream.name
    }

    /// Unlike the rows of other views, a document is found only once it is committed. So while some
    /// are not, queries stay `as_of` the last commit. This includes a view that lags, which is
    /// advanced to the snapshot from which it catches up.
    fn publish_applied(&self) {
        if !self.cursor.is_dirty() {
            self.index.set_visible(self.cursor.applied());
        }
    }

    fn add(&mut self, rows: &StreamRows, _now: Instant) -> Result<(), ViewError> {
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
        let first = lsns.partition_point(|lsn| *lsn as u64 <= self.cursor.applied());
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

    fn is_commit_due(&self, age: Duration, caught_up: bool) -> bool {
        self.waiting >= COMMIT_DOCUMENTS
            || self.backlog.bytes() >= self.memory
            || caught_up && age >= COMMIT_AFTER
            || age >= MAX_COMMIT_DELAY
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

    fn write(&mut self) -> Result<(), ViewError> {
        if let Err(error) = self.try_commit() {
            // A writer that failed once may publish without its documents: never use it again.
            self.writer = None;
            return Err(self.failed(error));
        }
        self.waiting = 0;
        Ok(())
    }

    fn release_writer(&mut self) -> Result<(), ViewError> {
        match self.writer.take() {
            Some(writer) => writer.wait_merging_threads().map_err(|e| self.failed(e)),
            None => Ok(()),
        }
    }

    fn reload(&mut self) -> Result<Lsn, ViewError> {
        self.writer = None;
        self.remove_uncommitted_files();
        self.index.sync_folders()?;
        let committed = self.index.checkpoint(self.log)?;
        self.waiting = 0;
        self.index.reload(committed).map_err(|e| self.failed(e))?;
        Ok(committed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::operators::{Operators, Output};
    use crate::schema::Catalog;
    use crate::views::View;
    use crate::wal::{Frame, FrameAttributes, Header, Kind, RecordsBuilder};

    const NOTES: &str = r#"
[streams.notes]
schema = "at bigint, note varchar"
select = "select to_timestamp_millis(at) as event_time, note from notes"
search = { text = ["note"] }
"#;

    const LOG: LogIdentity = LogIdentity {
        instance: 0,
        id: 7,
        start_lsn: 0,
    };

    /// A view of notes in a folder, and the output of one record each.
    fn view_and_outputs(folder: &std::path::Path, records: u64) -> (SearchView, Vec<Output>) {
        let config = config::parse(None, NOTES.into(), None, &|_| None).expect("valid");
        let catalog = Arc::new(Catalog::from_config(&config).expect("valid"));
        let stream = catalog.streams["notes"].clone();
        let def = stream.def.search.clone().expect("a search");
        let index = SearchIndex::open(&folder.join("notes"), &def, true)
            .expect("opens")
            .expect("is created");
        let mut operators = Operators::new(catalog, 0);
        let output = |lsn| {
            let mut builder = RecordsBuilder::default();
            builder.push(br#"{"at": 1465520400000, "note": "glass"}"#);
            let header = Header {
                first_lsn: lsn,
                received_at: 1_465_520_400_000_000,
                source: "s".into(),
                ..Header::new(Kind::Record, "notes")
            };
            let records = builder.finish();
            let frame = Frame::data(header, &records, FrameAttributes::default()).expect("memory");
            let frame = Arc::new(frame);
            let decoded = operators.decode(&frame).expect("readable");
            operators.apply(&frame, decoded.as_ref()).expect("applies")
        };
        let outputs = (1..=records).map(output).collect();
        let roll = RollPolicy::for_disk_limit(None);
        let view = SearchView::new(Arc::new(index), stream, LOG, 0, roll).expect("a new index");
        (view, outputs)
    }

    /// Documents that can be found, and the record that answers are as of.
    fn found(view: &SearchView) -> (u64, Lsn) {
        let (parts, visible) = view.index.searchers();
        let documents = parts.iter().map(|part| part.searcher.num_docs()).sum();
        (documents, visible)
    }

    /// A view that lags has documents in memory when it is advanced to the snapshot from which it
    /// catches up; that may be one below what it has applied.
    #[test]
    fn no_answer_is_as_of_a_record_above_uncommitted_documents() {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut view, outputs) = view_and_outputs(folder.path(), 3);
        view.advance_to(0);
        view.apply(&outputs[0], Instant::now()).expect("applies");
        view.commit(false).expect("commits");
        assert_eq!(found(&view), (1, 1));
        view.apply(&outputs[1], Instant::now()).expect("applies");
        for lsn in [1, 2] {
            view.advance_to(lsn);
            assert_eq!((view.applied(), found(&view)), (2, (1, 1)));
        }
        view.commit(true).expect("commits");
        assert_eq!(found(&view), (2, 2));
        // Nothing is uncommitted: records without documents are visible at once.
        view.advance_to(9);
        assert_eq!((view.applied(), found(&view)), (9, (2, 9)));
    }

    #[test]
    fn a_view_that_is_reset_finds_what_was_committed_and_takes_the_rest_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut view, outputs) = view_and_outputs(folder.path(), 3);
        view.apply(&outputs[0], Instant::now()).expect("applies");
        view.commit(false).expect("commits");
        view.apply(&outputs[1], Instant::now()).expect("applies");
        view.reset_to_committed().expect("resets");
        assert_eq!((view.applied(), found(&view)), (1, (1, 1)));
        for output in &outputs[1..] {
            view.apply(output, Instant::now()).expect("applies");
        }
        view.checkpoint().expect("commits");
        assert_eq!((view.checkpoints()[0].1, found(&view)), (3, (3, 3)));
        // A checkpoint is committed also without new documents.
        view.advance_to(20);
        view.checkpoint().expect("commits");
        assert_eq!(view.checkpoints()[0].1, 20);
    }

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
