//! Blocks of rows, as an index stores them: the uncompressed length (u32 little-endian), then an
//! Arrow IPC stream of one batch, compressed as a whole with zstd. A hundred rows together compress
//! better than alone, because values of a column are alike, and reading one row decompresses only
//! its block.

use std::io;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::buffer::Buffer;
use arrow::error::ArrowError;
use arrow::ipc::MetadataVersion;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};

/// Rows of a block; fewer where they are large.
pub const BLOCK_ROWS: usize = 128;
/// Bytes of a block's rows, uncompressed; only a single row may have more.
pub const BLOCK_BYTES: usize = 256 << 10;
/// On two cores lz4 was not faster than this, because it writes a third more bytes.
const ZSTD_LEVEL: i32 = 1;
/// Alignment of buffers: more would be zeros between the small buffers of a block.
const ALIGNMENT: usize = 8;

/// Approximate average bytes of a row of a batch.
pub fn row_bytes(batch: &RecordBatch) -> usize {
    let column_bytes = |column: &ArrayRef| column.to_data().get_slice_memory_size().unwrap_or(0);
    batch.columns().iter().map(column_bytes).sum::<usize>() / batch.num_rows().max(1) + 1
}

/// Packs blocks with one zstd context: a new one for each would cost as much as its compression.
pub struct Packer(zstd::bulk::Compressor<'static>);

impl Packer {
    /// Fails if memory for the context cannot be allocated.
    pub fn new() -> io::Result<Self> {
        Ok(Self(zstd::bulk::Compressor::new(ZSTD_LEVEL)?))
    }

    /// Packs rows into as many blocks as their bytes need, each with its number of rows.
    pub fn pack(&mut self, batch: &RecordBatch) -> Result<Vec<(Vec<u8>, usize)>, ArrowError> {
        let options = IpcWriteOptions::try_new(ALIGNMENT, false, MetadataVersion::V5)?;
        let mut writer =
            StreamWriter::try_new_with_options(Vec::new(), batch.schema_ref(), options)?;
        writer.write(batch)?;
        let (plain, rows) = (writer.into_inner()?, batch.num_rows());
        // Only known now: the arrays of a slice also count values outside it.
        if rows > 1 && (rows > BLOCK_ROWS || plain.len() > BLOCK_BYTES * 2) {
            let (first, second) = (
                batch.slice(0, rows / 2),
                batch.slice(rows / 2, rows - rows / 2),
            );
            return Ok([self.pack(&first)?, self.pack(&second)?].concat());
        }
        let length = u32::try_from(plain.len())
            .map_err(|_| ArrowError::IpcError("a row of 4 GiB".into()))?;
        Ok(vec![(
            [&length.to_le_bytes(), self.0.compress(&plain)?.as_slice()].concat(),
            rows,
        )])
    }
}

/// The rows of a block, and their uncompressed bytes.
pub fn unpack(packed: &[u8]) -> Result<(RecordBatch, usize), ArrowError> {
    let truncated = || ArrowError::IpcError("a block was truncated".into());
    let (length, packed) = packed.split_first_chunk().ok_or_else(truncated)?;
    let plain = zstd::bulk::decompress(packed, u32::from_le_bytes(*length) as usize)?;
    let bytes = plain.len();
    let (mut decoder, mut buffer) = (StreamDecoder::new(), Buffer::from_vec(plain));
    let rows = decoder.decode(&mut buffer)?;
    Ok((rows.ok_or_else(truncated)?, bytes))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        Array, BooleanArray, Int64Array, ListArray, MapArray, StringArray, StructArray,
    };
    use arrow::buffer::OffsetBuffer;
    use arrow::compute::concat_batches;
    use arrow::datatypes::{DataType, Field};

    use super::*;

    fn pack(batch: &RecordBatch) -> Vec<(Vec<u8>, usize)> {
        Packer::new()
            .expect("a context")
            .pack(batch)
            .expect("packed")
    }

    fn batch(texts: &[&str]) -> RecordBatch {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..texts.len() as i64));
        let texts: ArrayRef = Arc::new(StringArray::from(texts.to_vec()));
        RecordBatch::try_from_iter([("n", numbers), ("s", texts)]).expect("a batch")
    }

    #[test]
    fn batches_and_slices_round_trip() {
        let all = batch(&["a", "", "c", "d\u{1F389}", "e"]);
        for (from, rows) in [(0, 5), (1, 3), (4, 1)] {
            let part = all.slice(from, rows);
            let (read, bytes) = unpack(&pack(&part)[0].0).expect("unpacked");
            assert_eq!(read, part);
            assert!(bytes < 2_000, "{bytes}");
        }
    }

    #[test]
    fn truncated_blocks_are_errors() {
        let packed = pack(&batch(&["a", "b"])).remove(0).0;
        for end in 0..packed.len() {
            assert!(unpack(&packed[..end]).is_err(), "the first {end} bytes");
        }
    }

    #[test]
    fn a_slice_of_any_type_takes_only_its_own_bytes() {
        let many = 10_000;
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values(
            (0..many).map(|n| format!("{n:>20}")),
        ));
        let offsets = OffsetBuffer::from_lengths(std::iter::repeat_n(2, many / 2));
        let item = Arc::new(Field::new("item", DataType::Utf8, true));
        let list: ArrayRef = Arc::new(ListArray::new(item, offsets.clone(), texts.clone(), None));
        let fields = ["keys", "values"].map(|n| {
            (
                Arc::new(Field::new(n, DataType::Utf8, n == "values")),
                texts.clone(),
            )
        });
        let row = StructArray::from(fields.to_vec());
        let entries = Arc::new(Field::new("entries", row.data_type().clone(), false));
        let map: ArrayRef = Arc::new(MapArray::new(
            entries.clone(),
            offsets.clone(),
            row.clone(),
            None,
            false,
        ));
        let rows: ArrayRef = Arc::new(ListArray::new(
            entries,
            offsets,
            Arc::new(row.clone()),
            None,
        ));
        let flags: ArrayRef = Arc::new(
            (0..many)
                .map(|n| Some(n % 3 == 0))
                .collect::<BooleanArray>(),
        );
        for (name, array) in [
            ("texts", texts),
            ("list", list),
            ("map", map),
            ("rows", rows),
            ("struct", Arc::new(row) as ArrayRef),
            ("flags", flags),
        ] {
            let part = RecordBatch::try_from_iter([(name, array)])
                .expect("a batch")
                .slice(1_001, 10);
            let (read, bytes) = unpack(&pack(&part)[0].0).expect("unpacked");
            assert_eq!(read, part);
            assert!(bytes < 2_500, "{name}: {bytes} bytes");
        }
    }

    #[test]
    fn blocks_are_bounded_except_single_rows() {
        let large = "x".repeat(BLOCK_BYTES * 3);
        let mut texts = vec!["small"; 1_000];
        texts[500] = &large;
        let all = batch(&texts);
        let blocks = pack(&all);
        let read: Vec<(RecordBatch, usize)> = blocks
            .iter()
            .map(|(packed, _)| unpack(packed).expect("unpacked"))
            .collect();
        for ((rows, bytes), (_, packed_rows)) in read.iter().zip(&blocks) {
            assert_eq!(rows.num_rows(), *packed_rows);
            assert!(*packed_rows == 1 || *packed_rows <= BLOCK_ROWS && *bytes <= BLOCK_BYTES * 2);
        }
        let rows: Vec<RecordBatch> = read.into_iter().map(|(rows, _)| rows).collect();
        assert_eq!(concat_batches(&all.schema(), &rows).expect("together"), all);
    }
}
