//! The table `raw`: every record as it arrived. Its unflushed rows are frames of the log, still
//! compressed: a frame's block is copied into Parquet as a page of the column `bytes` instead of
//! being decompressed and compressed again. Blocks too small for a page of their own are gathered.

use std::fs;
use std::mem;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{Field, Schema, SchemaRef};
use bytes::Bytes;
use parquet::arrow::ArrowSchemaConverter;
use parquet::arrow::arrow_writer::{ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::basic::Compression;
use parquet::basic::{Encoding, ZstdLevel};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::writer::SerializedFileWriter;

use super::checked::ChecksumWriter;
use super::error::AtPath;
use super::files::{Attempt, FileEntry, NewFile, properties};
use super::memtable::UnflushedRows;
use super::row_attributes::RowAttributes;
use super::{LakeError, RowClass, TableSpec};
use crate::event::{Lsn, bucket};
use crate::wal::{Frame, Records, frame};

/// A block of so many uncompressed bytes is copied as a page.
const PAGE_BYTES: usize = 64 << 10;
/// Smaller blocks are gathered up to this size.
const GATHERED_BYTES: usize = 1 << 20;
/// Uncompressed bytes of records in a row group.
const ROW_GROUP_BYTES: usize = 64 << 20;

/// The rows of `raw` of a frame of the log, above an LSN.
#[derive(Debug, Clone)]
pub struct RawFrame {
    /// The frame, compressed as in the log.
    pub frame: Arc<Frame>,
    /// Records up to this one are not among the rows.
    pub above: Lsn,
}

impl RawFrame {
    /// Records of the frame up to that LSN.
    fn skipped(&self) -> usize {
        (self.above + 1).saturating_sub(self.frame.header.first_lsn) as usize
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        let header = &self.frame.header;
        (header.last_lsn() + 1).saturating_sub(header.first_lsn.max(self.above + 1)) as usize
    }

    /// The rows in the table's schema (without partition columns).
    pub fn batch(&self, schema: &SchemaRef) -> Result<RecordBatch, LakeError> {
        let records = records_of(&self.frame)?;
        let mut columns = self.columns();
        let rows = self.skipped()..self.skipped() + self.rows();
        columns.push(Arc::new(BinaryArray::from_iter_values(
            rows.map(|i| records.get(i)),
        )));
        Ok(RecordBatch::try_new(schema.clone(), columns)?)
    }

    /// All columns except the last, the records' bytes.
    fn columns(&self) -> Vec<ArrayRef> {
        let header = &self.frame.header;
        let rows = self.skipped()..self.skipped() + self.rows();
        let n = rows.len();
        let text = |value: &str| {
            Arc::new(StringArray::from_iter_values(std::iter::repeat_n(value, n))) as ArrayRef
        };
        let offsets = &self.frame.attributes.offsets;
        let attributes = RowAttributes::new(&self.frame);
        vec![
            Arc::new(Int64Array::from_iter_values(
                rows.clone().map(|i| (header.first_lsn + i as u64) as i64),
            )),
            Arc::new(
                TimestampMicrosecondArray::from(vec![header.received_at; n]).with_timezone("UTC"),
            ),
            text(&header.source),
            text(&header.partition),
            Arc::new(
                rows.clone()
                    .map(|i| offsets.get(i).map(|p| *p as i64))
                    .collect::<Int64Array>(),
            ),
            text(&header.stream),
            text(header.kind.name()),
            Arc::new(rows.map(|i| attributes.row(i)).collect::<StringArray>()),
        ]
    }
}

/// A frame's records, decompressed.
fn records_of(frame: &Frame) -> Result<Records, LakeError> {
    frame.records().map_err(|source| LakeError::FrameOf {
        first_lsn: frame.header.first_lsn,
        source,
    })
}

/// Writes frames as rows of `raw`, one file per hour of arrival.
pub fn write_frames(
    spec: &TableSpec,
    attempt: &Attempt,
    parts: &[Arc<UnflushedRows>],
    now_ms: i64,
) -> Result<Vec<FileEntry>, LakeError> {
    let mut order: Vec<&RawFrame> = parts
        .iter()
        .filter_map(|part| match part.as_ref() {
            UnflushedRows::Frame(frame) => Some(frame),
            UnflushedRows::Rows(_) => None,
        })
        .collect();
    // Frames are in the order of their LSNs, which a stable sort preserves among equal times.
    order.sort_by_key(|part| part.frame.header.received_at);
    let width = spec.layout.width().unwrap_or(crate::event::MICROS_PER_HOUR);
    let (mut entries, mut file): (Vec<FileEntry>, Option<RawWriter>) = (Vec::new(), None);
    for part in order {
        let at = bucket(part.frame.header.received_at, width);
        if file
            .as_ref()
            .is_some_and(|open| open.new.entry.bucket != at)
            && let Some(full) = file.take()
        {
            entries.push(full.finish()?);
        }
        let writer = match &mut file {
            Some(open) => open,
            None => file.insert(RawWriter::create(spec, attempt, at, now_ms)?),
        };
        writer.push(part)?;
    }
    if let Some(last) = file {
        entries.push(last.finish()?);
    }
    Ok(entries)
}

/// A file of `raw` being written.
struct RawWriter {
    new: NewFile,
    writer: SerializedFileWriter<ChecksumWriter<fs::File>>,
    factory: ArrowRowGroupWriterFactory,
    schema: SchemaRef,
    group: Option<Group>,
    /// Uncompressed page of gathered records, and their number.
    gathered: (Vec<u8>, u32),
}

/// A row group being written: pages of `bytes`, and the other columns.
struct Group {
    columns: Vec<ArrowColumnWriter>,
    pages: Vec<u8>,
    rows: usize,
    plain_bytes: usize,
    /// Of the pages: compressed and uncompressed bytes.
    sizes: (usize, usize),
}

impl RawWriter {
    fn create(
        spec: &TableSpec,
        attempt: &Attempt,
        bucket: i64,
        now_ms: i64,
    ) -> Result<Self, LakeError> {
        let (new, file) = NewFile::create(spec, attempt, bucket, RowClass::Recent, now_ms)?;
        // A page of a nullable column would begin with levels, which a block does not have.
        let fields = spec.schema.fields().iter().map(|f| {
            let is_bytes = f.name() == spec.schema.field(spec.schema.fields().len() - 1).name();
            Field::new(
                f.name(),
                f.data_type().clone(),
                f.is_nullable() && !is_bytes,
            )
        });
        let schema: SchemaRef = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let columns = ArrowSchemaConverter::new().convert(&schema)?;
        let writer =
            SerializedFileWriter::new(file, columns.root_schema_ptr(), Arc::new(properties(None)));
        let writer = writer.at(new.path())?;
        let factory = ArrowRowGroupWriterFactory::new(&writer, schema.clone());
        Ok(Self {
            new,
            writer,
            factory,
            schema,
            group: None,
            gathered: (Vec::new(), 0),
        })
    }

    fn push(&mut self, part: &RawFrame) -> Result<(), LakeError> {
        let frame = &part.frame;
        let rows = part.rows();
        if rows == 0 {
            return Ok(());
        }
        let header = &frame.header;
        self.new.add_rows(
            header.received_at,
            header.last_lsn() + 1 - rows as u64..=header.last_lsn(),
        );
        if part.skipped() == 0 && frame.block_bytes as usize >= PAGE_BYTES {
            self.end_gathered()?;
            self.page(&frame.block, frame.block_bytes as usize, rows as u32)?;
        } else {
            let records = records_of(frame)?;
            self.gathered
                .0
                .extend_from_slice(records.page_from(part.skipped()));
            self.gathered.1 += rows as u32;
            if self.gathered.0.len() >= GATHERED_BYTES {
                self.end_gathered()?;
            }
        }
        let columns = part.columns();
        let schema = self.schema.clone();
        let group = self.group()?;
        for ((column, field), writer) in columns.iter().zip(schema.fields()).zip(&mut group.columns)
        {
            for leaf in compute_leaves(field, column)? {
                writer.write(&leaf)?;
            }
        }
        group.rows += rows;
        group.plain_bytes += frame.block_bytes as usize;
        if group.plain_bytes >= ROW_GROUP_BYTES {
            self.end_group()
        } else {
            Ok(())
        }
    }

    fn group(&mut self) -> Result<&mut Group, LakeError> {
        if self.group.is_none() {
            let mut columns = self
                .factory
                .create_column_writers(self.writer.flushed_row_groups().len())?;
            // The last column is written as pages.
            columns.pop();
            self.group = Some(Group {
                columns,
                pages: Vec::new(),
                rows: 0,
                plain_bytes: 0,
                sizes: (0, 0),
            });
        }
        Ok(self.group.as_mut().expect("created above"))
    }

    fn end_gathered(&mut self) -> Result<(), LakeError> {
        let (plain, rows) = mem::take(&mut self.gathered);
        if rows == 0 {
            return Ok(());
        }
        let block = frame::compress(&plain)?;
        self.page(&block, plain.len(), rows)
    }

    fn page(&mut self, block: &[u8], plain_bytes: usize, rows: u32) -> Result<(), LakeError> {
        let group = self.group()?;
        let header = page_header(plain_bytes, block, rows);
        group.sizes.0 += header.len() + block.len();
        group.sizes.1 += header.len() + plain_bytes;
        group.pages.extend_from_slice(&header);
        group.pages.extend_from_slice(block);
        Ok(())
    }

    fn end_group(&mut self) -> Result<(), LakeError> {
        self.end_gathered()?;
        let Some(group) = self.group.take() else {
            return Ok(());
        };
        self.write_group(group).at(self.new.path())
    }

    fn write_group(&mut self, group: Group) -> Result<(), ParquetError> {
        let bytes_column = self.writer.schema_descr().num_columns() - 1;
        let metadata =
            ColumnChunkMetaData::builder(self.writer.schema_descr().column(bytes_column))
                .set_compression(Compression::ZSTD(ZstdLevel::default()))
                .set_encodings(vec![Encoding::PLAIN, Encoding::RLE])
                .set_total_compressed_size(group.sizes.0 as i64)
                .set_total_uncompressed_size(group.sizes.1 as i64)
                .set_num_values(group.rows as i64)
                .set_data_page_offset(0)
                .build()?;
        let mut row_group = self.writer.next_row_group()?;
        for column in group.columns {
            column.close()?.append_to_row_group(&mut row_group)?;
        }
        let close = ColumnCloseResult {
            bytes_written: group.sizes.0 as u64,
            rows_written: group.rows as u64,
            metadata,
            bloom_filter: None,
            column_index: None,
            offset_index: None,
        };
        row_group.append_column(&Bytes::from(group.pages), close)?;
        row_group.close()?;
        Ok(())
    }

    fn finish(mut self) -> Result<FileEntry, LakeError> {
        self.end_group()?;
        self.writer.finish().at(self.new.path())?;
        self.new.finish(self.writer.inner())
    }
}

/// The header of a data page of PLAIN values that are never null, in Thrift's compact protocol as
/// Parquet's format defines it. It has the CRC-32 of the stored bytes, which the library's writer
/// leaves out, so that readers that verify pages find a damaged one.
fn page_header(plain_bytes: usize, stored: &[u8], rows: u32) -> Vec<u8> {
    /// A field whose number is one above the last one's: an i32, a struct; and a struct's end.
    const I32: u8 = 0x15;
    const STRUCT: u8 = 0x1c;
    const END: u8 = 0;
    const DATA_PAGE: i32 = 0;
    const PLAIN: i32 = 0;
    const RLE: i32 = 3;
    let mut header = Vec::with_capacity(40);
    let crc = crc32fast::hash(stored).cast_signed();
    for number in [DATA_PAGE, plain_bytes as i32, stored.len() as i32, crc] {
        header.push(I32);
        put_zigzag(&mut header, number);
    }
    header.push(STRUCT);
    // There are no levels; the format requires their encoding to be RLE.
    for number in [rows as i32, PLAIN, RLE, RLE] {
        header.push(I32);
        put_zigzag(&mut header, number);
    }
    header.extend([END, END]);
    header
}

fn put_zigzag(out: &mut Vec<u8>, number: i32) {
    let mut left = ((number << 1) ^ (number >> 31)).cast_unsigned();
    while left >= 0x80 {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes by hand from the Thrift compact protocol's specification.
    #[test]
    fn a_page_header_has_the_checksum_of_its_page() {
        let stored = b"123456789";
        assert_eq!(
            crc32fast::hash(stored),
            0xcbf4_3926,
            "the check value of CRC-32"
        );
        let header = page_header(300, stored, 2);
        let crc = [0xb3, 0x9b, 0xde, 0xc0, 0x06];
        let expected = [
            &[0x15, 0x00, 0x15, 0xd8, 0x04, 0x15, 0x12, 0x15][..],
            &crc,
            &[
                0x1c, 0x15, 0x04, 0x15, 0x00, 0x15, 0x06, 0x15, 0x06, 0x00, 0x00,
            ],
        ];
        assert_eq!(header, expected.concat());
    }
}
