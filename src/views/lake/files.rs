//! Parquet files of a table: rows sorted by time and LSN, one file per partition, synced before
//! their Delta entry.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, RecordBatch, TimestampMicrosecondArray};
use arrow::compute::{CastOptions, cast_with_options, interleave_record_batch};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;
use chrono::{DateTime, Datelike, Timelike};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::{ColumnPath, SchemaDescriptor};

use super::checked::{BlockChecksums, CheckedFile, ChecksumWriter};
use super::error::AtPath;
use super::footers::rows_at_once;
use super::{LakeError, RowClass, TableSpec, entities};
use crate::event::{Lsn, Micros, bucket, lsn_sequence};
use crate::schema::Layout;

/// Rows of a row group.
const ROW_GROUP_ROWS: usize = 128 << 10;
/// Files from which on a commit uses several threads, and their number.
const MANY_FILES: usize = 32;
const WRITERS: usize = 4;
/// Rows of a file that is small.
const SMALL_ROWS: usize = 256;
/// Rows of a page, approximately: what a query of one row decompresses of each column.
const PAGE_ROWS: usize = 2 << 10;
/// Bytes of distinct values after which a column is written without a dictionary.
const DICTIONARY_BYTES: usize = 256 << 10;
/// Rows sorted and passed to the Parquet writer at once.
const WRITE_ROWS: usize = 8 << 10;
/// Bytes of a file above which a merge begins another one.
pub(super) const MAX_FILE_BYTES: u64 = 256 << 20;

/// A file of the table's current version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Relative to the table's folder.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Its number of rows.
    pub rows: u64,
    /// Hours (or days) since 1970; of an entity table, the hash bucket.
    pub bucket: i64,
    /// That of all of its rows.
    pub class: RowClass,
    /// The bounds of its rows' times, both inclusive.
    pub min_time: Micros,
    /// See `min_time`.
    pub max_time: Micros,
    /// The bounds of its rows' LSNs, both inclusive.
    pub min_lsn: Lsn,
    /// See `min_lsn`.
    pub max_lsn: Lsn,
    /// When it was written, milliseconds since 1970.
    pub written_ms: i64,
    /// The checksums of its blocks.
    pub checks: BlockChecksums,
}

#[cfg(test)]
impl FileEntry {
    /// A file of one row and no bytes, for tests to override.
    pub fn sample() -> Self {
        Self {
            path: String::new(),
            bytes: 0,
            rows: 1,
            bucket: 0,
            class: RowClass::Recent,
            min_time: 0,
            max_time: 0,
            min_lsn: 0,
            max_lsn: 0,
            written_ms: 0,
            checks: BlockChecksums::default(),
        }
    }
}

/// Values of the partition columns of a bucket, in their order.
pub(super) fn partition_values(bucket: i64, layout: Layout) -> Vec<(&'static str, i32)> {
    let Some(width) = layout.width() else {
        return vec![("bucket", bucket as i32)];
    };
    let time = DateTime::from_timestamp_micros(bucket.saturating_mul(width)).unwrap_or_default();
    let mut values = vec![
        ("year", time.year()),
        ("month", time.month() as i32),
        ("day", time.day() as i32),
    ];
    if layout == Layout::Hours {
        values.push(("hour", time.hour() as i32));
    }
    values
}

/// Folder of a bucket inside the table's: `year=2016/month=6/day=10/hour=1`.
pub fn partition_folder(bucket: i64, layout: Layout) -> String {
    partition_values(bucket, layout)
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect::<Vec<_>>()
        .join("/")
}

/// The bucket of each row.
pub(super) fn buckets(spec: &TableSpec, batch: &RecordBatch) -> Vec<i64> {
    if let Some(width) = spec.layout.width() {
        return times(spec, batch)
            .iter()
            .map(|time| bucket(*time, width))
            .collect();
    }
    entities::leaves::places(spec, batch)
        .into_iter()
        .map(entities::leaves::bucket_of)
        .collect()
}

/// Times of a batch, by the column that partitions the table.
pub(super) fn times<'a>(spec: &TableSpec, batch: &'a RecordBatch) -> &'a [Micros] {
    batch
        .column(spec.time_column)
        .as_any()
        .downcast_ref::<TimestampMicrosecondArray>()
        .expect("the time column is a timestamp")
        .values()
}

/// Whether a file will have few rows; false where that is unknown.
fn is_small(rows: Option<usize>) -> bool {
    rows.is_some_and(|rows| rows <= SMALL_ROWS)
}

/// Whether a column has the bounds of each page.
fn has_page_bounds(ty: &DataType) -> bool {
    ty.is_integer() || ty.is_temporal() || ty.is_decimal()
}

/// How a file of so many rows is written; `None` where that is unknown.
pub(super) fn properties(rows: Option<usize>) -> WriterProperties {
    let lsn = ColumnPath::from("lsn");
    // Building zstd's tables for each column is too costly for a few rows, which the next merge
    // rewrites.
    let is_small = is_small(rows);
    let compression = if is_small {
        Compression::SNAPPY
    } else {
        Compression::ZSTD(ZstdLevel::default())
    };
    WriterProperties::builder()
        // Ascending numbers are best encoded as differences; values that hardly repeat are not worth
        // a dictionary.
        .set_column_dictionary_enabled(lsn.clone(), false)
        .set_column_encoding(lsn, Encoding::DELTA_BINARY_PACKED)
        .set_dictionary_page_size_limit(DICTIONARY_BYTES)
        .set_compression(compression)
        .set_dictionary_enabled(!is_small)
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_offset_index_disabled(true)
        .build()
}

/// How a file of a table's rows is written.
pub fn properties_of(spec: &TableSpec, rows: Option<usize>) -> WriterProperties {
    let mut properties = properties(rows).into_builder();
    let path = |column: usize| ColumnPath::from(spec.schema.field(column).name().as_str());
    if !is_small(rows) {
        properties = properties
            .set_offset_index_disabled(false)
            .set_data_page_row_count_limit(PAGE_ROWS);
        // Numbers and times often ascend with time, by which rows are sorted: their bounds
        // distinguish pages.
        let fields = spec.schema.fields().iter().enumerate();
        for (column, _) in fields.filter(|(_, field)| has_page_bounds(field.data_type())) {
            properties =
                properties.set_column_statistics_enabled(path(column), EnabledStatistics::Page);
        }
    }
    // No query is answered by the bounds of a list's items.
    for field in spec
        .schema
        .fields()
        .iter()
        .filter(|field| field.data_type().is_nested())
    {
        let items = [field.name().as_str(), "list", "item"]
            .map(str::to_owned)
            .to_vec();
        properties = properties
            .set_column_statistics_enabled(ColumnPath::new(items), EnabledStatistics::None);
    }
    // Unique and nearly unique values only waste a dictionary.
    for column in spec
        .keys
        .iter()
        .copied()
        .chain([0, spec.time_column])
        .filter(|_| spec.layout == Layout::Buckets)
    {
        properties = properties.set_column_dictionary_enabled(path(column), false);
    }
    properties.build()
}

/// The files that one commit or one merge writes. Unless it is persisted for the commit that names
/// them, dropping it removes them, also partially written ones.
#[derive(Debug)]
pub(super) struct Attempt {
    root: PathBuf,
    files: Mutex<Vec<String>>,
}

impl Attempt {
    /// Without files.
    pub fn new(spec: &TableSpec) -> Self {
        Self {
            root: spec.root.clone(),
            files: Mutex::default(),
        }
    }

    fn add(&self, path: &str) {
        self.files
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(path.to_owned());
    }

    /// Transfers the files to the commit: it removes them if it fails.
    pub fn persist(self) {
        self.files
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        for path in self
            .files
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            let _ = fs::remove_file(self.root.join(path));
        }
    }
}

/// A file that is being written, under a new unique name: a file of an earlier attempt is never
/// committed.
pub(super) struct NewFile {
    target: PathBuf,
    /// Complete when the file is.
    pub entry: FileEntry,
}

impl NewFile {
    /// Begins a file in the bucket's folder.
    pub fn create(
        spec: &TableSpec,
        attempt: &Attempt,
        bucket: i64,
        class: RowClass,
        now_ms: i64,
    ) -> Result<(Self, ChecksumWriter<fs::File>), LakeError> {
        let folder = partition_folder(bucket, spec.layout);
        Self::create_as(
            spec,
            attempt,
            &folder,
            class.name(),
            (bucket, class, now_ms),
        )
    }

    /// Begins a file in a folder of the table; `name` comes before the unique part of its name.
    pub fn create_as(
        spec: &TableSpec,
        attempt: &Attempt,
        folder: &str,
        name: &str,
        (bucket, class, now_ms): (i64, RowClass, i64),
    ) -> Result<(Self, ChecksumWriter<fs::File>), LakeError> {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        let path = format!("{folder}/{name}-{:016x}.parquet", rand::random::<u64>());
        let target = spec.root.join(&path);
        // Their names are made durable by [`sync_files`].
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(spec.root.join(folder))
            .at(&target)?;
        attempt.add(&path);
        let file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&target)
            .at(&target)?;
        let entry = FileEntry {
            path,
            bytes: 0,
            rows: 0,
            bucket,
            class,
            min_time: Micros::MAX,
            max_time: Micros::MIN,
            min_lsn: Lsn::MAX,
            max_lsn: 0,
            written_ms: now_ms,
            checks: BlockChecksums::default(),
        };
        Ok((Self { target, entry }, ChecksumWriter::new(file)))
    }

    /// Its whole path, for messages.
    pub fn path(&self) -> &Path {
        &self.target
    }

    /// Counts rows of one time with these LSNs, and extends the file's bounds.
    pub fn add_rows(&mut self, time: Micros, lsns: RangeInclusive<Lsn>) {
        let entry = &mut self.entry;
        (entry.min_time, entry.max_time) = (entry.min_time.min(time), entry.max_time.max(time));
        (entry.min_lsn, entry.max_lsn) = (
            entry.min_lsn.min(*lsns.start()),
            entry.max_lsn.max(*lsns.end()),
        );
        entry.rows += lsns.end() + 1 - lsns.start();
    }

    /// Ends the written file; it is durable after [`sync_files`].
    pub fn finish(mut self, file: &ChecksumWriter<fs::File>) -> Result<FileEntry, LakeError> {
        self.entry.bytes = file.get_ref().metadata().at(&self.target)?.len();
        self.entry.checks = file.checks();
        Ok(self.entry)
    }
}

/// Writes rows into a file.
pub(super) struct FileWriter {
    writer: ArrowWriter<ChecksumWriter<fs::File>>,
    new: NewFile,
}

impl FileWriter {
    /// Begins a file of so many rows; `None` where that is unknown.
    pub fn create(
        spec: &TableSpec,
        attempt: &Attempt,
        bucket: i64,
        class: RowClass,
        now_ms: i64,
        rows: Option<usize>,
    ) -> Result<Self, LakeError> {
        Self::begin(
            spec,
            NewFile::create(spec, attempt, bucket, class, now_ms)?,
            rows,
            None,
        )
    }

    /// Likewise in a file that was created; `group_rows` limits the rows of a row group.
    pub fn begin(
        spec: &TableSpec,
        (new, file): (NewFile, ChecksumWriter<fs::File>),
        rows: Option<usize>,
        group_rows: Option<usize>,
    ) -> Result<Self, LakeError> {
        let mut properties = properties_of(spec, rows);
        if group_rows.is_some() {
            properties = properties
                .into_builder()
                .set_max_row_group_row_count(group_rows)
                .build();
        }
        let writer = ArrowWriter::try_new(file, spec.schema.clone(), Some(properties));
        let writer = writer.at(new.path())?;
        Ok(Self { writer, new })
    }

    /// Appends rows, which must be in the order of the file.
    pub fn write(&mut self, spec: &TableSpec, batch: &RecordBatch) -> Result<(), LakeError> {
        for (time, lsn) in times(spec, batch).iter().zip(crate::operators::lsns(batch)) {
            self.new.add_rows(*time, *lsn as Lsn..=*lsn as Lsn);
        }
        self.writer.write(batch).at(self.new.path())
    }

    /// Adds a key to the footer's metadata.
    pub fn add_footer_key(&mut self, key: &str, text: String) {
        self.writer
            .append_key_value_metadata(KeyValue::new(key.to_owned(), text));
    }

    /// Bytes so far, those not yet written included.
    pub fn bytes(&self) -> u64 {
        (self.writer.bytes_written() + self.writer.in_progress_size()) as u64
    }

    /// Ends the file; it is durable after [`sync_files`].
    pub fn finish(mut self) -> Result<FileEntry, LakeError> {
        self.writer.finish().at(self.new.path())?;
        self.new.finish(self.writer.inner())
    }
}

/// Some rows of a file, or why they cannot be read.
pub(super) type ReadRows = Result<RecordBatch, LakeError>;

/// The rows of a file, in the table's columns.
pub fn read(spec: &TableSpec, file: &FileEntry) -> Result<Vec<RecordBatch>, LakeError> {
    read_in_parts(spec, file, None)?.collect()
}

/// Likewise a few megabytes at a time, of all row groups or of some.
pub(super) fn read_in_parts<'a>(
    spec: &'a TableSpec,
    file: &FileEntry,
    groups: Option<Vec<usize>>,
) -> Result<impl Iterator<Item = ReadRows> + use<'a>, LakeError> {
    let path = spec.root.join(&file.path);
    let opened = CheckedFile::new(spec, file).open()?;
    let mut builder = ParquetRecordBatchReaderBuilder::try_new(opened).at(&path)?;
    let wanted = columns_of(spec, builder.schema(), builder.parquet_schema());
    let rows = rows_at_once(builder.metadata());
    builder = builder.with_projection(wanted).with_batch_size(rows);
    if let Some(groups) = groups {
        builder = builder.with_row_groups(groups);
    }
    let reader = builder.build().at(&path)?;
    Ok(reader.map(move |batch| {
        let batch = batch.at(&path)?;
        in_columns_of(spec, &batch).at(&path)
    }))
}

/// The columns of a file that the table has.
pub(super) fn columns_of(
    spec: &TableSpec,
    of_file: &SchemaRef,
    parquet: &SchemaDescriptor,
) -> ProjectionMask {
    let is_wanted = |name: &str| spec.schema.field_with_name(name).is_ok();
    let fields = of_file.fields().iter().enumerate();
    let wanted = fields.filter(|(_, field)| is_wanted(field.name()));
    ProjectionMask::roots(parquet, wanted.map(|(at, _)| at))
}

/// Rows of an older file in the table's columns; those that were added since are null.
pub fn in_columns_of(spec: &TableSpec, rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    // A value that does not fit the column's type is an error instead of null.
    let strict = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    let columns =
        spec.schema
            .fields()
            .iter()
            .map(|field| match rows.column_by_name(field.name()) {
                Some(column) => cast_with_options(column, field.data_type(), &strict),
                None => Ok(arrow::array::new_null_array(
                    field.data_type(),
                    rows.num_rows(),
                )),
            });
    RecordBatch::try_new(spec.schema.clone(), columns.collect::<Result<Vec<_>, _>>()?)
}

/// Makes new files durable, together: contents first, then their names. Syncing each right after it
/// was written would wait for the disk once per file.
pub(super) fn sync_files(root: &Path, entries: &[FileEntry]) -> Result<(), LakeError> {
    let paths: Vec<PathBuf> = entries.iter().map(|e| root.join(&e.path)).collect();
    let folders = |path: &PathBuf| {
        path.ancestors()
            .skip(1)
            .take_while(|a| a.starts_with(root))
            .map(Path::to_owned)
            .collect::<Vec<_>>()
    };
    let folders: BTreeSet<PathBuf> = paths.iter().flat_map(folders).collect();
    for names in [paths, folders.into_iter().collect()] {
        in_parallel(&names, |path| {
            let synced = fs::File::open(path).and_then(|file| file.sync_all());
            synced.at(path)
        })?;
    }
    Ok(())
}

/// Writes rows as one sorted file per partition.
pub(super) fn write_partitions(
    spec: &TableSpec,
    attempt: &Attempt,
    batches: &[RecordBatch],
    class: RowClass,
    now_ms: i64,
) -> Result<Vec<FileEntry>, LakeError> {
    let sources: Vec<&RecordBatch> = batches.iter().collect();
    let partitions: Vec<_> = partition_order(spec, batches).into_iter().collect();
    in_parallel(&partitions, |(bucket, order)| {
        let mut file =
            FileWriter::create(spec, attempt, *bucket, class, now_ms, Some(order.len()))?;
        for part in order.chunks(WRITE_ROWS) {
            let part: Vec<(usize, usize)> = part
                .iter()
                .map(|(_, batch, row)| (*batch as usize, *row as usize))
                .collect();
            let rows = interleave_record_batch(&sources, &part)?;
            file.write(spec, &rows)?;
        }
        file.finish()
    })
}

/// Processes items, many of them on a few threads, because each waits for the disk.
fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> Result<R, LakeError> + Sync,
) -> Result<Vec<R>, LakeError> {
    if items.len() < MANY_FILES {
        return items.iter().map(work).collect();
    }
    let parts: Vec<Result<Vec<R>, LakeError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = items
            .chunks(items.len().div_ceil(WRITERS))
            .map(|part| scope.spawn(|| part.iter().map(&work).collect()))
            .collect();
        let panicked = |_| Err(LakeError::WriterPanicked("a thread"));
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(panicked))
            .collect()
    });
    Ok(parts
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .flatten()
        .collect())
}

/// Times, batches and rows by partition, each in the order of time, then LSN.
fn partition_order(
    spec: &TableSpec,
    batches: &[RecordBatch],
) -> BTreeMap<i64, Vec<(Micros, u32, u32)>> {
    let mut order: BTreeMap<i64, Vec<(Micros, u32, u32)>> = BTreeMap::new();
    for (n, batch) in batches.iter().enumerate() {
        for (row, (time, bucket)) in times(spec, batch)
            .iter()
            .zip(buckets(spec, batch))
            .enumerate()
        {
            order
                .entry(bucket)
                .or_default()
                .push((*time, n as u32, row as u32));
        }
    }
    for rows in order.values_mut() {
        // Rows are in the order of their LSNs, which a stable sort preserves among equal times.
        rows.sort_by_key(|(time, ..)| *time);
    }
    order
}

/// Adds the partitions of the rows to `seen`; returns their number so far.
pub(super) fn count_partitions(
    spec: &TableSpec,
    batch: &RecordBatch,
    seen: &mut BTreeSet<i64>,
) -> usize {
    seen.extend(buckets(spec, batch));
    seen.len()
}

/// Delta's statistics of a file, as JSON.
pub(super) fn stats_json(spec: &TableSpec, entry: &FileEntry) -> String {
    let time = spec.schema.field(spec.time_column).name();
    // Delta compares at milliseconds: the lower bound is truncated, the upper one rounded up.
    let show = |t: Micros| crate::event::rfc3339(t);
    serde_json::json!({
        "numRecords": entry.rows,
        "minValues": {"lsn": entry.min_lsn, time: show(entry.min_time)},
        "maxValues": {"lsn": entry.max_lsn, time: show(entry.max_time.saturating_add(999))},
        "nullCount": {"lsn": 0, time: 0},
        "weir": {"min": entry.min_time, "max": entry.max_time, "sequence": lsn_sequence(entry.max_lsn), "crc32c": entry.checks.to_text()},
    })
    .to_string()
}

/// Unflushed rows as queries see them: the table's columns, then its partition columns.
pub fn with_partition_columns(
    spec: &TableSpec,
    batch: &RecordBatch,
    full: &SchemaRef,
) -> Result<RecordBatch, LakeError> {
    use arrow::array::Int32Array;
    let names = partition_values(0, spec.layout).len();
    let mut values: Vec<Vec<i32>> = vec![Vec::with_capacity(batch.num_rows()); names];
    let mut last: Option<(i64, Vec<i32>)> = None;
    for at in buckets(spec, batch) {
        if last.as_ref().is_none_or(|(b, _)| *b != at) {
            last = Some((
                at,
                partition_values(at, spec.layout)
                    .into_iter()
                    .map(|(_, v)| v)
                    .collect(),
            ));
        }
        if let Some((_, parts)) = &last {
            values
                .iter_mut()
                .zip(parts)
                .for_each(|(column, value)| column.push(*value));
        }
    }
    let mut columns = batch.columns().to_vec();
    columns.extend(
        values
            .into_iter()
            .map(|v| Arc::new(Int32Array::from(v)) as arrow::array::ArrayRef),
    );
    Ok(RecordBatch::try_new(full.clone(), columns)?)
}
