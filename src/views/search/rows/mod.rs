//! The rows of an index's documents, in a file per segment (`SEGMENT.rows`) next to tantivy's own:
//! hits are shown without the lake, where a row is spread over a page of each of its columns, a
//! hundred times as many bytes.
//!
//! ```text
//! block*     rows in the order of the documents, as [`block`] packs them
//! entry*     per block: u32 documents up to its end, u64 bytes up to its end, u32 CRC-32C of its bytes
//! u32        number of blocks
//! ```
//! Numbers are little-endian. Tantivy writes, checksums and removes the file with its segment; a
//! merge copies blocks unchanged and joins small ones, of which a slow stream has many.

mod reader;
mod writer;

use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use tantivy::index::SegmentComponent;
use tantivy::indexer::doc_id_mapping::MappingType;
use tantivy::{PluginMergeContext, PluginWriter, PluginWriterContext, SegmentPlugin, TantivyError};

use super::block::{self, BLOCK_BYTES, BLOCK_ROWS};
pub use reader::{RowReader, StoredRows};
use writer::RowWriter;

const EXTENSION: &str = "rows";
const CHECKSUM_BYTES: usize = 4;
const ENTRY_BYTES: usize = 4 + 8 + CHECKSUM_BYTES;
const COUNT_BYTES: usize = 4;
/// A merge joins blocks with fewer rows and fewer packed bytes.
const SMALL_ROWS: u32 = BLOCK_ROWS as u32 / 2;
const SMALL_BYTES: usize = BLOCK_BYTES / 16;

fn component() -> SegmentComponent {
    SegmentComponent::Custom(EXTENSION.to_owned())
}

/// Tantivy plugin that stores the rows of a `SearchView`'s documents.
pub struct RowStore;

impl RowStore {
    /// Whether a file of an index has rows.
    pub fn is_file(path: &Path) -> bool {
        path.extension()
            .is_some_and(|extension| extension == EXTENSION)
    }

    /// Whether an index stores rows, by its `meta.json`.
    pub fn is_used_in(meta: &serde_json::Value) -> bool {
        meta["persisted_custom_extensions"]
            .as_array()
            .is_some_and(|all| all.iter().any(|name| name == EXTENSION))
    }
}

impl SegmentPlugin for RowStore {
    fn extensions(&self) -> &[&str] {
        &[EXTENSION]
    }

    fn create_writer(
        &self,
        context: &PluginWriterContext<'_>,
    ) -> tantivy::Result<Box<dyn PluginWriter>> {
        Ok(Box::new(RowWriter::new(context.segment)?))
    }

    fn merge(&self, context: PluginMergeContext<'_>) -> tantivy::Result<()> {
        if context.doc_id_mapping.mapping_type() != MappingType::Stacked {
            return Err(TantivyError::InternalError(
                "documents of an index are neither deleted nor sorted".into(),
            ));
        }
        let mut writer = RowWriter::new(context.target_segment)?;
        for reader in context.readers {
            let rows = StoredRows::open(reader)?;
            for number in 0..rows.count {
                let block = rows.block(number)?;
                // A damaged block is copied with its old checksum: readers report it, merges go
                // through.
                if block.checksum_matches()
                    && block.rows < SMALL_ROWS
                    && block.packed.len() < SMALL_BYTES
                {
                    let batch = Arc::new(StoredBatch::new(block.unpack()?.0));
                    (0..batch.batch.num_rows()).try_for_each(|row| writer.add(&batch, row))?;
                } else {
                    writer.flush()?;
                    writer.write(&block.packed, block.rows, block.checksum)?;
                }
            }
        }
        writer.finish()
    }
}

/// A batch whose rows are stored.
pub struct StoredBatch {
    pub batch: RecordBatch,
    row_bytes: usize,
}

impl StoredBatch {
    pub fn new(batch: RecordBatch) -> Self {
        Self {
            row_bytes: block::row_bytes(&batch),
            batch,
        }
    }

    /// Approximate average bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use arrow::array::{ArrayRef, Int64Array, StringArray};
    use tantivy::indexer::NoMergePolicy;
    use tantivy::{DocAddress, Index, IndexBuilder, IndexWriter};

    use super::super::document::{Backlog, Columns, Row};
    use super::super::format::schema;
    use super::*;
    use crate::schema::SearchDef;

    fn batch(lsns: Range<i64>, name: &str, bytes: usize) -> RecordBatch {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(lsns.clone()));
        let texts = lsns
            .map(|lsn| " ".repeat(bytes) + &lsn.to_string())
            .collect::<Vec<_>>();
        RecordBatch::try_from_iter([("lsn", numbers), (name, Arc::new(StringArray::from(texts)))])
            .expect("a batch")
    }

    struct TestIndex {
        index: Index,
        writer: IndexWriter<Row>,
        batches: Vec<RecordBatch>,
    }

    impl TestIndex {
        fn new() -> Self {
            Self::create(|builder| builder.create_in_ram())
        }

        fn create(make: impl FnOnce(IndexBuilder) -> tantivy::Result<Index>) -> Self {
            let def = SearchDef {
                text: vec!["s".into()],
                exact: Vec::new(),
                geo: Vec::new(),
            };
            let builder = Index::builder()
                .schema(schema(&def).0)
                .register_plugin(Arc::new(RowStore));
            let index = make(builder).expect("an index");
            index.tokenizers().register(
                super::super::text::TOKENIZER_NAME,
                super::super::text::TextTokenizer::default(),
            );
            let writer: IndexWriter<Row> = index
                .writer_with_num_threads(1, 16 << 20)
                .expect("a writer");
            writer.set_merge_policy(Box::new(NoMergePolicy));
            Self {
                index,
                writer,
                batches: Vec::new(),
            }
        }

        fn add(&mut self, batch: RecordBatch) {
            let def = SearchDef {
                text: vec!["s".into()],
                exact: Vec::new(),
                geo: Vec::new(),
            };
            let columns = Arc::new(Columns::new(
                &batch,
                &schema(&def).1,
                &def,
                &Backlog::default(),
            ));
            for row in 0..batch.num_rows() {
                self.writer
                    .add_document(Row {
                        columns: columns.clone(),
                        row,
                    })
                    .expect("added");
            }
            self.batches.push(batch);
        }

        fn commit(&mut self) {
            self.writer.commit().expect("committed");
        }

        fn merge(&mut self) {
            let segments = self.index.searchable_segment_ids().expect("segments");
            self.writer.merge(&segments).wait().expect("merged");
        }

        /// Every stored row, in the order of LSNs, and the number of blocks.
        fn rows(&self) -> (Vec<RecordBatch>, usize) {
            let searcher = self.index.reader().expect("a reader").searcher();
            let (mut rows, mut blocks) = (Vec::new(), 0);
            let mut reader = RowReader::default();
            for (number, segment) in searcher.segment_readers().iter().enumerate() {
                let stored = StoredRows::open(segment).expect("its rows");
                blocks += stored.count;
                for document in 0..segment.max_doc() {
                    let at = DocAddress::new(number as u32, document);
                    rows.push(reader.read(0, &stored, at).expect("a row"));
                }
            }
            rows.sort_by_key(|row| crate::operators::lsns(row)[0]);
            (rows, blocks)
        }

        fn check(&self) -> usize {
            let (found, blocks) = self.rows();
            let expected: Vec<RecordBatch> = self
                .batches
                .iter()
                .flat_map(|batch| (0..batch.num_rows()).map(|row| batch.slice(row, 1)))
                .collect();
            assert_eq!(found, expected);
            blocks
        }
    }

    #[test]
    fn rows_are_those_that_were_added_in_any_segments() {
        let mut test = TestIndex::new();
        test.add(batch(0..300, "s", 10));
        // From a configuration with other columns.
        test.add(batch(300..310, "other", 10));
        test.commit();
        test.add(batch(310..311, "s", 1));
        test.commit();
        test.add(batch(311..315, "s", 100_000));
        test.commit();
        test.check();
        test.merge();
        test.check();
        test.add(batch(315..316, "s", 1));
        test.commit();
        test.merge();
        test.check();
    }

    #[test]
    fn a_merge_joins_the_blocks_of_a_slow_stream() {
        let mut test = TestIndex::new();
        for lsn in 0..200 {
            test.add(batch(lsn..lsn + 1, "s", 10));
            test.commit();
        }
        assert_eq!(test.check(), 200);
        test.merge();
        assert_eq!(test.check(), 2);
    }

    #[test]
    fn a_damaged_block_does_not_block_a_merge() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut test = TestIndex::create(|builder| builder.create_in_dir(&folder));
        test.add(batch(0..10, "s", 10));
        test.commit();
        let mut files = std::fs::read_dir(&folder)
            .expect("a folder")
            .flatten()
            .map(|file| file.path());
        let file = files
            .find(|file| RowStore::is_file(file))
            .expect("its rows");
        let mut bytes = std::fs::read(&file).expect("bytes");
        bytes[60] ^= 1;
        std::fs::write(&file, bytes).expect("written");
        test.add(batch(10..30, "s", 10));
        test.commit();
        test.merge();
        let searcher = test.index.reader().expect("a reader").searcher();
        let stored = StoredRows::open(searcher.segment_reader(0)).expect("its rows");
        let read = |document| RowReader::default().read(0, &stored, DocAddress::new(0, document));
        assert_eq!(searcher.segment_readers().len(), 1);
        let damaged = (0..30).filter(|document| read(*document).is_err()).count();
        assert_eq!(damaged, 10);
    }

    #[test]
    fn a_block_is_bounded_by_bytes() {
        let mut test = TestIndex::new();
        test.add(batch(0..100, "s", BLOCK_BYTES / 8));
        test.commit();
        let blocks = test.check();
        assert!((12..=25).contains(&blocks), "{blocks} blocks");
    }
}
