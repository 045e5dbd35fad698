//! Blocks of rows, as an index stores them: an Arrow IPC stream of one batch, compressed as a whole
//! with zstd; its length, u32 little-endian, stands before it. Together a hundred rows take less
//! than alone, because values of a column are alike, and one is read by unpacking no more than its
//! block.

use std::io;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::buffer::Buffer;
use arrow::error::ArrowError;
use arrow::ipc::MetadataVersion;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};

/// Rows of a block; fewer where they are large.
pub const BLOCK_ROWS: usize = 128;
/// Bytes of a block's rows; more only of a single one.
pub const BLOCK_BYTES: usize = 256 << 10;
/// Level of zstd. On two cores lz4 was not faster, because it writes a third more bytes.
const LEVEL: i32 = 1;
/// Buffers begin at multiples of this: more would be zeros between the small buffers of a block.
const ALIGNMENT: usize = 8;

/// Approximately how many bytes a row takes, on average of a batch.
pub fn row_bytes(batch: &RecordBatch) -> usize {
    let of = |column: &ArrayRef| column.to_data().get_slice_memory_size().unwrap_or(0);
    batch.columns().iter().map(of).sum::<usize>() / batch.num_rows().max(1) + 1
}

/// Makes blocks, all with one context: a new one for each would cost as much as its compression.
pub struct Packer(zstd::bulk::Compressor<'static>);

impl Packer {
    pub fn new() -> io::Result<Self> {
        Ok(Self(zstd::bulk::Compressor::new(LEVEL)?))
    }

    /// Packs rows, into as many blocks as their bytes ask for; gives each with its number of rows.
    pub fn pack(&mut self, batch: &RecordBatch) -> Result<Vec<(Vec<u8>, usize)>, ArrowError> {
        let options = IpcWriteOptions::try_new(ALIGNMENT, false, MetadataVersion::V5)?;
        let mut writer =
            StreamWriter::try_new_with_options(Vec::new(), batch.schema_ref(), options)?;
        writer.write(batch)?;
        let (plain, rows) = (writer.into_inner()?, batch.num_rows());
        // Only now it is known: of a slice, the arrays themselves count values that lie beside it,
        // too.
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

/// The rows, and how many bytes they were unpacked to.
pub fn unpack(packed: &[u8]) -> Result<(RecordBatch, usize), ArrowError> {
    let cut = || ArrowError::IpcError("a block was cut".into());
    let (length, packed) = packed.split_first_chunk().ok_or_else(cut)?;
    let plain = zstd::bulk::decompress(packed, u32::from_le_bytes(*length) as usize)?;
    let bytes = plain.len();
    let (mut decoder, mut buffer) = (StreamDecoder::new(), Buffer::from_vec(plain));
    let rows = decoder.decode(&mut buffer)?;
    Ok((rows.ok_or_else(cut)?, bytes))
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
    fn what_is_unpacked_is_what_was_packed_also_of_a_slice() {
        let all = batch(&["a", "", "c", "d\u{1F389}", "e"]);
        for (from, rows) in [(0, 5), (1, 3), (4, 1)] {
            let part = all.slice(from, rows);
            let (read, bytes) = unpack(&pack(&part)[0].0).expect("unpacked");
            assert_eq!(read, part);
            assert!(bytes < 2_000, "{bytes}");
        }
    }

    #[test]
    fn broken_blocks_are_errors() {
        let packed = pack(&batch(&["a", "b"])).remove(0).0;
        for end in 0..packed.len() {
            assert!(unpack(&packed[..end]).is_err(), "the first {end} bytes");
        }
    }

    #[test]
    fn a_slice_of_whatever_type_takes_its_own_bytes_only() {
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
    fn blocks_are_bounded_but_for_a_single_row() {
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
