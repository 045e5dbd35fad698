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
//! merge copies blocks as they are and joins small ones, of which a slow stream
//! has many.

use std::any::Any;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::error::ArrowError;
use tantivy::directory::{FileSlice, OwnedBytes, TerminatingWrite, WritePtr};
use tantivy::error::DataCorruption;
use tantivy::index::{SegmentComponent, SegmentReader};
use tantivy::indexer::doc_id_mapping::{DocIdMapping, MappingType};
use tantivy::schema::Schema;
use tantivy::schema::document::ErasedDocument;
use tantivy::{
    DocAddress, DocId, HasLen, PluginMergeContext, PluginWriter, PluginWriterContext, Segment,
    SegmentOrdinal, SegmentPlugin, TantivyError,
};

use super::block::{self, BLOCK_BYTES, BLOCK_ROWS, Packer};
use super::document::Row;

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

fn corrupt(what: impl ToString) -> TantivyError {
    TantivyError::DataCorruption(DataCorruption::comment_only(what))
}

fn failed(error: &ArrowError) -> TantivyError {
    TantivyError::InternalError(error.to_string())
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
    pub fn is_named(meta: &serde_json::Value) -> bool {
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

/// Writes a segment's rows.
struct RowWriter {
    out: WritePtr,
    packer: Packer,
    /// Documents and bytes in the blocks that are written.
    documents: u32,
    bytes: u64,
    entries: Vec<u8>,
    /// Ranges of batches that are not written yet.
    waiting: Vec<(Arc<StoredBatch>, Range<usize>)>,
    waiting_rows: usize,
    waiting_bytes: usize,
}

impl RowWriter {
    fn new(segment: &Segment) -> tantivy::Result<Self> {
        Ok(Self {
            out: segment.open_write(component())?,
            packer: Packer::new()?,
            documents: 0,
            bytes: 0,
            entries: Vec::new(),
            waiting: Vec::new(),
            waiting_rows: 0,
            waiting_bytes: 0,
        })
    }

    fn add(&mut self, rows: &Arc<StoredBatch>, row: usize) -> tantivy::Result<()> {
        match self.waiting.last_mut() {
            Some((last, range)) if Arc::ptr_eq(last, rows) && range.end == row => range.end += 1,
            Some((last, _)) if last.batch.schema_ref() != rows.batch.schema_ref() => {
                self.flush()?;
                self.waiting.push((rows.clone(), row..row + 1));
            }
            _ => self.waiting.push((rows.clone(), row..row + 1)),
        }
        self.waiting_rows += 1;
        self.waiting_bytes += rows.row_bytes;
        if self.waiting_rows >= BLOCK_ROWS || self.waiting_bytes >= BLOCK_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes the waiting rows as blocks.
    fn flush(&mut self) -> tantivy::Result<()> {
        let slices: Vec<RecordBatch> = self
            .waiting
            .drain(..)
            .map(|(rows, range)| rows.batch.slice(range.start, range.len()))
            .collect();
        (self.waiting_rows, self.waiting_bytes) = (0, 0);
        let Some(first) = slices.first() else {
            return Ok(());
        };
        let all = concat_batches(first.schema_ref(), &slices).map_err(|e| failed(&e))?;
        for (packed, rows) in self.packer.pack(&all).map_err(|e| failed(&e))? {
            self.write(&packed, rows as u32, crc32c::crc32c(&packed))?;
        }
        Ok(())
    }

    fn write(&mut self, packed: &[u8], rows: u32, checksum: u32) -> tantivy::Result<()> {
        self.out.write_all(packed)?;
        self.documents += rows;
        self.bytes += packed.len() as u64;
        self.entries
            .extend_from_slice(&self.documents.to_le_bytes());
        self.entries.extend_from_slice(&self.bytes.to_le_bytes());
        self.entries.extend_from_slice(&checksum.to_le_bytes());
        Ok(())
    }

    fn finish(mut self) -> tantivy::Result<()> {
        self.flush()?;
        self.out.write_all(&self.entries)?;
        self.out
            .write_all(&((self.entries.len() / ENTRY_BYTES) as u32).to_le_bytes())?;
        Ok(self.out.terminate()?)
    }
}

impl PluginWriter for RowWriter {
    fn add_document(
        &mut self,
        _: DocId,
        document: &dyn ErasedDocument,
        _: &Schema,
    ) -> tantivy::Result<()> {
        let row = document.as_any().downcast_ref::<Row>();
        let row =
            row.ok_or_else(|| TantivyError::InternalError("a document is not a row".into()))?;
        self.add(row.columns.rows(), row.row)
    }

    fn serialize(self: Box<Self>, _: &Segment, _: Option<&DocIdMapping>) -> tantivy::Result<()> {
        self.finish()
    }

    fn mem_usage(&self) -> usize {
        self.entries.capacity() + self.waiting_bytes
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

/// Reads the rows of a segment.
pub struct StoredRows {
    blocks: FileSlice,
    entries: OwnedBytes,
    count: usize,
}

struct Block {
    packed: OwnedBytes,
    rows: u32,
    /// Of the bytes as they were written.
    checksum: u32,
}

impl Block {
    fn checksum_matches(&self) -> bool {
        crc32c::crc32c(&self.packed) == self.checksum
    }

    fn unpack(&self) -> tantivy::Result<(RecordBatch, usize)> {
        if !self.checksum_matches() {
            return Err(corrupt(
                "stored rows are not those that were written (CRC-32C)",
            ));
        }
        let (batch, bytes) = block::unpack(&self.packed).map_err(corrupt)?;
        if batch.num_rows() != self.rows as usize {
            return Err(corrupt(
                "a block has another number of rows than was written",
            ));
        }
        Ok((batch, bytes))
    }
}

impl StoredRows {
    pub fn open(segment: &SegmentReader) -> tantivy::Result<Self> {
        let file = segment.open_read(component())?;
        let truncated = || corrupt("the file of its rows was truncated");
        let body = file.len().checked_sub(COUNT_BYTES).ok_or_else(truncated)?;
        let (body, count) = file.split(body);
        let count = count.read_bytes()?;
        let count =
            u32::from_le_bytes(count.as_slice().try_into().map_err(|_| truncated())?) as usize;
        let blocks = body
            .len()
            .checked_sub(count * ENTRY_BYTES)
            .ok_or_else(truncated)?;
        let (blocks, entries) = body.split(blocks);
        Ok(Self {
            blocks,
            entries: entries.read_bytes()?,
            count,
        })
    }

    /// The number of documents that have a row.
    pub fn documents(&self) -> u32 {
        self.end(self.count).0
    }

    /// The block that has a document's row, and the index of the row in it.
    fn locate(&self, document: DocId) -> tantivy::Result<(usize, usize)> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.end(middle + 1).0 <= document {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if low == self.count {
            return Err(corrupt(format!("document {document} has no row")));
        }
        Ok((low, document.saturating_sub(self.end(low).0) as usize))
    }

    /// Documents and bytes up to the end of this many blocks.
    fn end(&self, blocks: usize) -> (u32, u64) {
        match blocks.checked_sub(1) {
            None => (0, 0),
            Some(last) => {
                let mut numbers = self.entries[last * ENTRY_BYTES..].iter().copied();
                let mut next = |bytes| {
                    numbers
                        .by_ref()
                        .take(bytes)
                        .enumerate()
                        .fold(0, |n, (at, byte)| n | u64::from(byte) << (8 * at))
                };
                (next(4) as u32, next(8))
            }
        }
    }

    fn block(&self, number: usize) -> tantivy::Result<Block> {
        let ((first, from), (end, to)) = (self.end(number), self.end(number + 1));
        if first > end || from > to || to > self.blocks.len() as u64 {
            return Err(corrupt(
                "the offsets of its rows are not those that were written",
            ));
        }
        let packed = self.blocks.slice(from as usize..to as usize).read_bytes()?;
        let checksum = self.entries[..(number + 1) * ENTRY_BYTES]
            .last_chunk()
            .copied()
            .unwrap_or_default();
        Ok(Block {
            packed,
            rows: end - first,
            checksum: u32::from_le_bytes(checksum),
        })
    }
}

/// Reads rows of documents. Unpacked blocks are cached until `clear`: hits are often neighbours.
#[derive(Default)]
pub struct RowReader {
    /// By index, segment and block.
    blocks: HashMap<(usize, SegmentOrdinal, usize), RecordBatch>,
    /// Unpacked bytes of the blocks.
    pub bytes: usize,
}

impl RowReader {
    /// The row of a document as a batch of one row; `rows` is its segment, of the index `part`.
    pub fn read(
        &mut self,
        part: usize,
        rows: &StoredRows,
        document: DocAddress,
    ) -> tantivy::Result<RecordBatch> {
        let (number, row) = rows.locate(document.doc_id)?;
        let block = match self.blocks.entry((part, document.segment_ord, number)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let (block, bytes) = rows.block(number)?.unpack()?;
                self.bytes += bytes;
                new.insert(block)
            }
        };
        if row >= block.num_rows() {
            return Err(corrupt(
                "the offsets of its rows are not those that were written",
            ));
        }
        Ok(block.slice(row, 1))
    }

    pub fn clear(&mut self) {
        self.blocks.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, StringArray};
    use tantivy::indexer::NoMergePolicy;
    use tantivy::{Index, IndexBuilder, IndexWriter};

    use super::super::document::{Backlog, Columns};
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
