//! How queries read the lake's files: footers with their page indexes are cached in memory within a
//! limit, so that a query which needs a few pages reads nothing else.
//!
//! A file never changes under its name, so a cached footer stays valid until the file is removed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{ParquetFileMetrics, ParquetFileReaderFactory};
use datafusion::error::DataFusionError;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::FutureExt;
use futures::future::BoxFuture;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::basic::Type;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use parquet::file::reader::{ChunkReader, Length};
use parquet::schema::types::SchemaDescriptor;

use super::LakeError;
use super::checked::CheckedFile;

/// Bytes of a number, at most.
const NUMBER_BYTES: i64 = 8;
/// Bytes of a page's header that are read at once.
const HEADER_BYTES: usize = 256;
/// Decompressed bytes of the rows that are read at once, approximately, and their number.
const READ_BYTES: u64 = 8 << 20;
const MAX_READ_ROWS: u64 = 4_096;

/// A cache of footers; evicts the least recently used.
#[derive(Debug)]
pub struct Footers {
    limit_bytes: usize,
    cache: Mutex<FooterCache>,
}

#[derive(Debug, Default)]
struct FooterCache {
    by_path: HashMap<PathBuf, Footer>,
    bytes: usize,
    /// Uses so far.
    uses: u64,
}

#[derive(Debug)]
struct Footer {
    metadata: Arc<ParquetMetaData>,
    bytes: usize,
    last_use: u64,
}

impl FooterCache {
    fn get(&mut self, path: &Path) -> Option<Arc<ParquetMetaData>> {
        self.uses += 1;
        let footer = self.by_path.get_mut(path)?;
        footer.last_use = self.uses;
        Some(footer.metadata.clone())
    }

    /// Caches a footer, and evicts the least recently used ones beyond the limit.
    fn insert(&mut self, path: &Path, metadata: Arc<ParquetMetaData>, limit: usize) {
        let bytes = metadata.memory_size() + path.as_os_str().len();
        if bytes > limit {
            return;
        }
        let footer = Footer {
            metadata,
            bytes,
            last_use: self.uses,
        };
        let before = self.by_path.insert(path.to_owned(), footer);
        self.bytes = self.bytes + bytes - before.map_or(0, |b| b.bytes);
        while self.bytes > limit {
            let oldest = self
                .by_path
                .iter()
                .min_by_key(|(_, footer)| footer.last_use)
                .map(|(path, _)| path.clone());
            let Some(evicted) = oldest.and_then(|path| self.by_path.remove(&path)) else {
                break;
            };
            self.bytes -= evicted.bytes;
        }
    }
}

impl Footers {
    /// An empty cache of at most so many bytes.
    pub fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            cache: Mutex::default(),
        }
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, FooterCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the footers in memory.
    #[cfg(test)]
    fn memory_bytes(&self) -> usize {
        self.cache().bytes
    }

    /// The footer of an open file.
    pub fn read(&self, file: &LakeFile) -> Result<Arc<ParquetMetaData>> {
        let path = file.entry.path();
        if let Some(found) = self.cache().get(path) {
            return Ok(found);
        }
        let read = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Optional);
        let metadata = Arc::new(without_floats(read.parse_and_finish(file)?)?);
        self.cache()
            .insert(path, metadata.clone(), self.limit_bytes);
        Ok(metadata)
    }
}

/// A footer without the statistics of float columns. Parquet's bounds leave out NaN, which SQL
/// orders above all numbers: pruning by them would lose NaN that a filter selects, and show NaN
/// where the bounds let a filter be skipped.
fn without_floats(metadata: ParquetMetaData) -> Result<ParquetMetaData> {
    let schema = metadata.file_metadata().schema_descr_ptr();
    let is_float = |column: usize| is_float(&schema, column);
    if !(0..schema.num_columns()).any(is_float) {
        return Ok(metadata);
    }
    let mut builder = metadata.into_builder();
    let groups = builder.take_row_groups().into_iter().map(|group| {
        let columns = group.columns().iter().enumerate().map(|(at, column)| {
            let builder = column.clone().into_builder();
            if is_float(at) {
                builder.clear_statistics().build()
            } else {
                builder.build()
            }
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        group.into_builder().set_column_metadata(columns).build()
    });
    let groups = groups.collect::<Result<Vec<_>>>()?;
    let index = builder.take_column_index().map(|mut groups| {
        for group in &mut groups {
            let floats = group.iter_mut().enumerate().filter(|(at, _)| is_float(*at));
            floats.for_each(|(_, column)| *column = ColumnIndexMetaData::NONE);
        }
        groups
    });
    Ok(builder
        .set_row_groups(groups)
        .set_column_index(index)
        .build())
}

fn is_float(schema: &SchemaDescriptor, column: usize) -> bool {
    matches!(
        schema.column(column).physical_type(),
        Type::FLOAT | Type::DOUBLE
    )
}

/// Bytes of a decompressed row, estimated from the footer: the mean of the page, or else the row
/// group, with the widest rows. The compressed size does not show it: a text of 100 kB of one
/// letter is compressed to a hundred bytes, and a number that is the same in all rows takes a few
/// bits.
pub fn widest_row(metadata: &ParquetMetaData) -> u64 {
    let average = |bytes: i64, rows: i64| bytes.max(0) as u64 / rows.max(1) as u64 + 1;
    let pages = |group: usize, column: usize, rows: i64| {
        let index = metadata.offset_index()?.get(group)?.get(column)?;
        let first_rows = index
            .page_locations()
            .iter()
            .map(|page| page.first_row_index);
        let ends = first_rows.clone().skip(1).chain([rows]);
        let bytes = index.unencoded_byte_array_data_bytes()?.iter();
        first_rows
            .zip(ends)
            .zip(bytes)
            .map(|((first, end), bytes)| average(*bytes, end - first))
            .max()
    };
    let groups = metadata.row_groups().iter().enumerate().map(|(at, group)| {
        let rows = group.num_rows();
        let columns = group.columns().iter().enumerate().map(|(column, chunk)| {
            let bytes = chunk
                .unencoded_byte_array_data_bytes()
                .unwrap_or(0)
                .max(chunk.uncompressed_size())
                .max(NUMBER_BYTES * chunk.num_values());
            average(bytes, rows).max(pages(at, column, rows).unwrap_or(0))
        });
        columns.sum::<u64>()
    });
    groups.max().unwrap_or(1)
}

/// How many rows of a file are read at once.
pub fn rows_at_once(metadata: &ParquetMetaData) -> usize {
    (READ_BYTES / widest_row(metadata)).clamp(1, MAX_READ_ROWS) as usize
}

/// A file of the lake that is read in parts, each verified first.
#[derive(Debug, Clone)]
pub struct LakeFile {
    file: Arc<File>,
    entry: CheckedFile,
}

impl LakeFile {
    /// Opens a file without reading it.
    pub fn open(entry: &CheckedFile) -> std::result::Result<Self, LakeError> {
        Ok(Self {
            file: Arc::new(entry.open_in_parts()?),
            entry: entry.clone(),
        })
    }
}

impl Length for LakeFile {
    fn len(&self) -> u64 {
        self.entry.bytes()
    }
}

impl ChunkReader for LakeFile {
    type T = BufReader<FileTail>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        Ok(BufReader::with_capacity(
            HEADER_BYTES,
            FileTail {
                file: self.clone(),
                at: start,
            },
        ))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        self.entry
            .check(start..start.saturating_add(length as u64))?;
        let mut bytes = vec![0; length];
        self.file
            .read_exact_at(&mut bytes, start)
            .map_err(|e| self.entry.explain(e))?;
        Ok(bytes.into())
    }
}

/// A file from an offset on.
#[derive(Debug)]
pub struct FileTail {
    file: LakeFile,
    at: u64,
}

impl Read for FileTail {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let end = self
            .file
            .len()
            .min(self.at.saturating_add(into.len() as u64));
        let bytes = self
            .file
            .get_bytes(self.at, end.saturating_sub(self.at) as usize);
        let bytes = bytes.map_err(std::io::Error::other)?;
        into[..bytes.len()].copy_from_slice(&bytes);
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }
}

/// Creates the readers of a scan, which share footers. Its files carry a [`CheckedFile`] each.
#[derive(Debug)]
pub struct FooterReaders(pub Arc<Footers>);

impl ParquetFileReaderFactory for FooterReaders {
    fn create_reader(
        &self,
        partition_index: usize,
        file: PartitionedFile,
        _metadata_size_hint: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> datafusion::error::Result<Box<dyn AsyncFileReader + Send>> {
        let entry = file.extension::<CheckedFile>().cloned();
        let entry =
            entry.ok_or_else(|| DataFusionError::Internal("a file without its entry".into()))?;
        let metrics =
            ParquetFileMetrics::new(partition_index, file.object_meta.location.as_ref(), metrics);
        Ok(Box::new(Reader {
            footers: self.0.clone(),
            entry,
            file: None,
            metrics,
        }))
    }
}

/// Reads one file of the lake.
struct Reader {
    footers: Arc<Footers>,
    entry: CheckedFile,
    file: Option<LakeFile>,
    metrics: ParquetFileMetrics,
}

impl Reader {
    /// Runs work on the open file, on a thread that may wait for the disk.
    fn with_file<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&LakeFile) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'_, Result<T>> {
        async move {
            let (open, entry) = (self.file.clone(), self.entry.clone());
            let done = tokio::task::spawn_blocking(move || {
                let file = open.map_or_else(|| LakeFile::open(&entry), Ok)?;
                let done = work(&file)?;
                Ok::<_, ParquetError>((file, done))
            });
            let (file, done) = done.await.map_err(|e| ParquetError::External(e.into()))??;
            self.file = Some(file);
            Ok(done)
        }
        .boxed()
    }
}

/// A range of a file.
fn read_range(file: &LakeFile, range: &Range<u64>) -> Result<Bytes> {
    file.get_bytes(
        range.start,
        usize::try_from(range.end.saturating_sub(range.start))?,
    )
}

impl AsyncFileReader for Reader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes>> {
        self.metrics
            .bytes_scanned
            .add(range.end.saturating_sub(range.start) as usize);
        self.with_file(move |file| read_range(file, &range))
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>>> {
        let bytes: u64 = ranges
            .iter()
            .map(|range| range.end.saturating_sub(range.start))
            .sum();
        self.metrics.bytes_scanned.add(bytes as usize);
        self.with_file(move |file| ranges.iter().map(|range| read_range(file, range)).collect())
    }

    fn get_metadata<'a>(
        &'a mut self,
        _options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>>> {
        if let Some(found) = self.footers.cache().get(self.entry.path()) {
            return async move { Ok(found) }.boxed();
        }
        let footers = self.footers.clone();
        self.with_file(move |file| footers.read(file))
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
    use parquet::arrow::ArrowWriter;
    use parquet::basic::{Compression, ZstdLevel};
    use parquet::file::properties::WriterProperties;

    use super::super::TableSpec;
    use super::super::files::FileEntry;
    use super::*;
    use crate::schema::Layout;

    /// A file of two rows.
    fn write(folder: &Path, name: &str) -> LakeFile {
        let columns = [
            ("number", Arc::new(Int64Array::from(vec![1, 2])) as _),
            (
                "double",
                Arc::new(Float64Array::from(vec![1.0, f64::NAN])) as _,
            ),
        ];
        let rows = RecordBatch::try_from_iter(columns).expect("two columns");
        let spec = TableSpec::raw(folder, Layout::Hours);
        std::fs::create_dir_all(&spec.root).expect("a folder");
        let path = spec.root.join(name);
        let mut writer =
            ArrowWriter::try_new(File::create(&path).expect("a file"), rows.schema(), None)
                .expect("begun");
        writer.write(&rows).expect("written");
        writer.close().expect("ended");
        let entry = FileEntry {
            path: name.into(),
            bytes: std::fs::metadata(&path).expect("there").len(),
            rows: 2,
            min_lsn: 1,
            max_lsn: 2,
            ..FileEntry::sample()
        };
        LakeFile::open(&CheckedFile::new(&spec, &entry)).expect("opens")
    }

    #[test]
    fn a_row_is_as_wide_as_in_the_page_where_rows_are_widest() {
        let folder = tempfile::tempdir().expect("a folder");
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values((0..10_000).map(|n| {
            let length = if (5_000..5_010).contains(&n) {
                100_000
            } else {
                10
            };
            format!("{n}-{}", "x".repeat(length))
        })));
        let rows = RecordBatch::try_from_iter([("s", texts)]).expect("rows");
        let path = folder.path().join("wide");
        let file = File::create(&path).expect("a file");
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_data_page_row_count_limit(100)
            .set_write_batch_size(100)
            .build();
        let mut writer =
            ArrowWriter::try_new(file, rows.schema(), Some(properties)).expect("begun");
        writer.write(&rows).expect("written");
        let packed = writer
            .close()
            .expect("ended")
            .row_groups()
            .iter()
            .map(|g| g.compressed_size())
            .sum::<i64>();
        let read = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Required);
        let metadata = read
            .parse_and_finish(&File::open(&path).expect("there"))
            .expect("a footer");
        let widest = widest_row(&metadata);
        assert!(
            (10_000..100_100).contains(&widest) && packed < 200_000,
            "{widest} bytes a row, {packed} packed"
        );
    }

    #[test]
    fn footers_used_last_stay_within_the_limit() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = ["a", "b", "c"].map(|name| write(folder.path(), name));
        let all = Footers::new(usize::MAX);
        all.read(&files[0]).expect("a footer");
        let footers = Footers::new(all.memory_bytes() * 5 / 2);
        let first = footers.read(&files[0]).expect("a footer");
        [1, 0, 2]
            .iter()
            .for_each(|n| drop(footers.read(&files[*n]).expect("a footer")));
        assert!(footers.memory_bytes() <= footers.limit_bytes);
        assert!(
            Arc::ptr_eq(&first, &footers.read(&files[0]).expect("a footer")),
            "it was used after the second"
        );
        assert!(footers.cache().get(files[1].entry.path()).is_none());
        let none = Footers::new(10);
        none.read(&files[0]).expect("a footer");
        assert_eq!(none.memory_bytes(), 0);
    }

    #[test]
    fn bounds_of_floats_are_not_used() {
        let folder = tempfile::tempdir().expect("a folder");
        let footer = Footers::new(usize::MAX)
            .read(&write(folder.path(), "a"))
            .expect("a footer");
        let columns = footer.row_group(0).columns();
        assert_eq!(
            [0, 1].map(|c| columns[c].statistics().is_some()),
            [true, false]
        );
        let index = &footer.column_index().expect("an index")[0];
        assert_eq!(
            [0, 1].map(|c| matches!(index[c], ColumnIndexMetaData::NONE)),
            [false, true]
        );
    }
}
