//! Writes the rows of a segment.

use std::any::Any;
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::error::ArrowError;
use tantivy::directory::{TerminatingWrite, WritePtr};
use tantivy::indexer::doc_id_mapping::DocIdMapping;
use tantivy::schema::Schema;
use tantivy::schema::document::ErasedDocument;
use tantivy::{DocId, PluginWriter, Segment, TantivyError};

use super::super::block::{BLOCK_BYTES, BLOCK_ROWS, Packer};
use super::super::document::Row;
use super::{ENTRY_BYTES, StoredBatch, component};

fn failed(error: &ArrowError) -> TantivyError {
    TantivyError::InternalError(error.to_string())
}

/// Writes a segment's rows.
pub(super) struct RowWriter {
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
    /// Begins the file of a new segment's rows.
    pub fn new(segment: &Segment) -> tantivy::Result<Self> {
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

    /// Adds the row of the next document.
    pub fn add(&mut self, rows: &Arc<StoredBatch>, row: usize) -> tantivy::Result<()> {
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
    pub fn flush(&mut self) -> tantivy::Result<()> {
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

    /// Writes a block of so many rows.
    pub fn write(&mut self, packed: &[u8], rows: u32, checksum: u32) -> tantivy::Result<()> {
        self.out.write_all(packed)?;
        self.documents += rows;
        self.bytes += packed.len() as u64;
        self.entries
            .extend_from_slice(&self.documents.to_le_bytes());
        self.entries.extend_from_slice(&self.bytes.to_le_bytes());
        self.entries.extend_from_slice(&checksum.to_le_bytes());
        Ok(())
    }

    /// Ends the file.
    pub fn finish(mut self) -> tantivy::Result<()> {
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
