//! Reads the rows of documents.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use arrow::array::RecordBatch;
use tantivy::directory::{FileSlice, OwnedBytes};
use tantivy::error::DataCorruption;
use tantivy::index::SegmentReader;
use tantivy::{DocAddress, DocId, HasLen, SegmentOrdinal, TantivyError};

use super::super::block;
use super::{COUNT_BYTES, ENTRY_BYTES, component};

fn corrupt(what: impl ToString) -> TantivyError {
    TantivyError::DataCorruption(DataCorruption::comment_only(what))
}

/// Reads the rows of a segment.
pub struct StoredRows {
    blocks: FileSlice,
    entries: OwnedBytes,
    pub(super) count: usize,
}

pub(super) struct Block {
    pub packed: OwnedBytes,
    pub rows: u32,
    /// Of the bytes as they were written.
    pub checksum: u32,
}

impl Block {
    /// Whether its bytes are those that were written.
    pub fn checksum_matches(&self) -> bool {
        crc32c::crc32c(&self.packed) == self.checksum
    }

    /// Its rows, and their uncompressed bytes; an error where it is damaged.
    pub fn unpack(&self) -> tantivy::Result<(RecordBatch, usize)> {
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
    /// Reads where the blocks of a segment are; an error where its file was truncated.
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

    pub(super) fn block(&self, number: usize) -> tantivy::Result<Block> {
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

    /// Drops the cached blocks.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.bytes = 0;
    }
}
