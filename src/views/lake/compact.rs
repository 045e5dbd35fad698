//! Merges a table's files: a past hour is one file soon after its last recent row; late files merge
//! among themselves and, when they are worth it, into the hour's file. [`plan`] decides, as a pure
//! function.
//!
//! A merge only moves rows: it is one Delta commit that adds and removes, without data change, and
//! queries see the files before or after it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::physical_expr::expressions::col;
use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use futures::StreamExt;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaDataReader};

use super::checked::CheckedFile;
use super::error::InView;
use super::files::{Attempt, FileEntry, FileWriter, MAX_FILE_BYTES, sync_files};
use super::footers::{LakeFile, widest_row};
use super::provider::scan_files;
use super::{Change, LakeError, LakeTable, RowClass, entities};
use crate::schema::Layout;
use crate::storage::free;
use crate::views::ViewError;

/// A partition's recent files become one when they are this old.
const QUIET: Duration = Duration::from_secs(300);
/// Files of one class that merge even while rows still arrive.
const MANY: usize = 8;
/// Late files merge into the hour's big file at this fraction of its size, or at this age.
const LATE_SHARE: u64 = 10;
const MAX_LATE_AGE: Duration = Duration::from_secs(86_400);
/// Files that one merge reads at once.
const MAX_MERGED_FILES: usize = 64;
/// Rows of a merge's batches: few, where many files are read in little memory, or rows are large.
const MERGE_ROWS: std::ops::RangeInclusive<usize> = 4..=8_192;
/// Memory of a row in a merge: at least this, or so many times its compressed size. The file's
/// reader, the merge and the writer have a copy each.
const MERGE_ROW_BYTES: usize = 8 << 10;
const EXPANSION: usize = 24;
const COPIES: usize = 3;
/// Compressed bytes that a reader of a large file holds: those of a row group.
const GROUP_BYTES: u64 = 32 << 20;
/// A merge writes at most this fraction of the free disk space.
const FREE_SHARE: u64 = 4;
/// A file that a merge replaced is retained this long, for queries that began before.
pub(crate) const GRACE: Duration = Duration::from_secs(120);

/// Files to merge into one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Job {
    files: Vec<FileEntry>,
    /// That of the file that they become.
    class: RowClass,
}

/// When files are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergeMode {
    /// Only in hours that no longer get recent rows; also at the end of a run.
    Quiet,
    /// Also while rows arrive, so that an hour never has many files.
    Running,
    /// Regardless of age, on demand.
    Now,
}

/// The merges that are due and fit into `memory` bytes.
fn plan(files: &[FileEntry], now_ms: i64, mode: MergeMode, memory: usize) -> Vec<Job> {
    let mut partitions: BTreeMap<i64, Vec<&FileEntry>> = BTreeMap::new();
    for file in files {
        partitions.entry(file.bucket).or_default().push(file);
    }
    partitions
        .values()
        .filter_map(|files| plan_partition(files, now_ms, mode, memory))
        .collect()
}

fn plan_partition(
    files: &[&FileEntry],
    now_ms: i64,
    mode: MergeMode,
    memory: usize,
) -> Option<Job> {
    let is_older =
        |file: &FileEntry, age: Duration| now_ms - file.written_ms >= age.as_millis() as i64;
    let small_files = |class: RowClass| -> Vec<&FileEntry> {
        files
            .iter()
            .copied()
            .filter(|f| f.class == class && f.bytes < MAX_FILE_BYTES / 2)
            .collect()
    };
    let bytes = |files: &[&FileEntry]| files.iter().map(|f| f.bytes).sum::<u64>();
    let (recent, late) = (small_files(RowClass::Recent), small_files(RowClass::Late));
    let job = |mut files: Vec<&FileEntry>, class: RowClass| {
        files.sort_by_key(|f| f.bytes);
        files.truncate(MAX_MERGED_FILES);
        let mut held = 0;
        let fitting = files.iter().take_while(|f| {
            held += f.bytes.min(GROUP_BYTES);
            held <= memory as u64 / 2
        });
        files.truncate(fitting.count().max(2));
        (files.len() > 1).then(|| Job {
            files: files.into_iter().cloned().collect(),
            class,
        })
    };
    if mode == MergeMode::Now {
        return job([recent, late].concat(), RowClass::Recent);
    }
    let is_quiet = recent.iter().all(|f| is_older(f, QUIET));
    if recent.len() > 1 && is_quiet {
        return job(recent, RowClass::Recent);
    }
    // While rows arrive, only files of similar size merge, so that each row is rewritten a few times
    // at most.
    let smallest = recent.iter().map(|f| f.bytes).min().unwrap_or(0);
    let similar: Vec<&FileEntry> = recent
        .iter()
        .copied()
        .filter(|f| f.bytes <= smallest.saturating_mul(4))
        .collect();
    if similar.len() >= MANY && mode == MergeMode::Running {
        return job(similar, RowClass::Recent);
    }
    if let [big] = recent.as_slice()
        && !late.is_empty()
        && is_quiet
        && (bytes(&late) * LATE_SHARE >= big.bytes
            || late.iter().any(|f| is_older(f, MAX_LATE_AGE)))
    {
        return job([recent, late].concat(), RowClass::Recent);
    }
    if late.len() >= MANY {
        job(late, RowClass::Late)
    } else {
        None
    }
}

/// Does the merges that are due, within `memory` bytes, and removes files that no query reads any
/// more; returns the number of merges. Ends early where `stop` says so, between two merges.
pub fn maintain(
    table: &Arc<LakeTable>,
    memory: usize,
    mode: MergeMode,
    stop: &dyn Fn() -> bool,
) -> Result<usize, ViewError> {
    let now_ms = crate::clock::wall_clock_ms();
    let merges = match (table.spec.layout, mode) {
        // The view of an entity table merges its files itself.
        (Layout::Buckets, MergeMode::Running) => 0,
        (Layout::Buckets, MergeMode::Quiet) => {
            table.merge_on_close();
            0
        }
        (Layout::Buckets, MergeMode::Now) => entities::merge_all(table)?,
        _ => merge_files(table, memory, mode, stop, now_ms)?,
    };
    if stop() {
        return Ok(merges);
    }
    table.checkpoint_log(mode == MergeMode::Now)?;
    table.vacuum(now_ms, GRACE)?;
    Ok(merges)
}

fn merge_files(
    table: &Arc<LakeTable>,
    memory: usize,
    mode: MergeMode,
    stop: &dyn Fn() -> bool,
    now_ms: i64,
) -> Result<usize, ViewError> {
    let mut merges = 0;
    loop {
        let jobs = plan(&table.files(), now_ms, mode, memory);
        if jobs.is_empty() {
            return Ok(merges);
        }
        let mut is_done = true;
        for job in jobs {
            if stop() {
                return Ok(merges);
            }
            // On a nearly full disk, the replaced files would take the space of new rows.
            if !has_room_for(&job, free(&table.spec.root)) {
                is_done = true;
                continue;
            }
            let before = job.files.len();
            is_done &= merge(table, &job, memory)? >= before;
            merges += 1;
        }
        // A merge that wrote as many files as it read would be planned again and again.
        if is_done || mode != MergeMode::Now {
            return Ok(merges);
        }
    }
}

/// Whether a merge needs little of the free space: for a while its files exist in addition to those
/// that they replace.
fn has_room_for(job: &Job, free: Option<u64>) -> bool {
    let bytes: u64 = job.files.iter().map(|f| f.bytes).sum();
    free.is_none_or(|free| bytes <= free / FREE_SHARE)
}

/// Does one merge; returns the number of files that it wrote.
fn merge(table: &Arc<LakeTable>, job: &Job, memory: usize) -> Result<usize, ViewError> {
    let view = || table.spec.id.view();
    let bucket = job.files.first().map_or(0, |f| f.bucket);
    let now_ms = crate::clock::wall_clock_ms();
    // In a runtime of its own, whose threads end with it, so that its memory returns to the system.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .in_view(view())?;
    let attempt = Attempt::new(&table.spec);
    let written = runtime.block_on(rewrite(table, &attempt, job, (bucket, now_ms), memory));
    let add = written.in_view(view())?;
    let rows = |files: &[FileEntry]| files.iter().map(|f| f.rows).sum::<u64>();
    if rows(&add) != rows(&job.files) {
        let (read, written) = (rows(&job.files), rows(&add));
        return Err(LakeError::MergedRows { read, written }).in_view(view());
    }
    sync_files(&table.spec.root, &add).in_view(view())?;
    let written = add.len();
    let change = Change {
        add,
        remove: job.files.clone(),
        ..Change::default()
    };
    attempt.persist();
    table.commit(&change, &[])?;
    Ok(written)
}

async fn rewrite(
    table: &LakeTable,
    attempt: &Attempt,
    job: &Job,
    (bucket, now_ms): (i64, i64),
    memory: usize,
) -> Result<Vec<FileEntry>, DataFusionError> {
    let (plan, context) = merge_plan(table, &job.files, memory)?;
    let mut stream = plan.execute(0, context)?;
    let mut done = Vec::new();
    let mut file: Option<FileWriter> = None;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        let writer = match &mut file {
            Some(writer) => writer,
            None => {
                let begun =
                    FileWriter::create(&table.spec, attempt, bucket, job.class, now_ms, None);
                file.insert(begun?)
            }
        };
        writer.write(&table.spec, &batch)?;
        if writer.bytes() >= MAX_FILE_BYTES
            && let Some(full) = file.take()
        {
            done.push(full.finish()?);
        }
    }
    if let Some(last) = file {
        done.push(last.finish()?);
    }
    Ok(done)
}

type Merge = (Arc<dyn ExecutionPlan>, Arc<TaskContext>);

/// Each file is sorted by time and LSN: merging them keeps the order without sorting again.
fn merge_plan(
    table: &LakeTable,
    files: &[FileEntry],
    memory: usize,
) -> Result<Merge, DataFusionError> {
    let compressed = files
        .iter()
        .map(|f| f.bytes / f.rows.max(1))
        .max()
        .unwrap_or(0) as usize;
    let mut widest = 0;
    for file in files {
        let file = LakeFile::open(&CheckedFile::new(&table.spec, file))?;
        let footer = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Optional);
        widest = widest.max(widest_row(&footer.parse_and_finish(&file)?) as usize);
    }
    let row_bytes = MERGE_ROW_BYTES
        .max(compressed * EXPANSION)
        .max(widest * COPIES);
    let rows =
        (memory / row_bytes / files.len().max(1)).clamp(*MERGE_ROWS.start(), *MERGE_ROWS.end());
    let (scan, context) = scan_files(table, files, memory, rows)?;
    let schema = scan.schema();
    let order = [table.spec.time_column, 0]
        .iter()
        .map(|c| {
            let name = table.spec.schema.field(*c).name();
            Ok(PhysicalSortExpr::new_default(col(name, &schema)?))
        })
        .collect::<Result<Vec<_>, DataFusionError>>()?;
    let order = LexOrdering::new(order)
        .ok_or_else(|| DataFusionError::Internal("an order of two columns".into()))?;
    Ok((Arc::new(SortPreservingMergeExec::new(order, scan)), context))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(class: RowClass, kib: u64, minutes_old: i64) -> FileEntry {
        FileEntry {
            path: format!("{class:?}-{kib}-{minutes_old}"),
            bytes: kib << 10,
            bucket: 7,
            class,
            written_ms: -minutes_old * 60_000,
            ..FileEntry::sample()
        }
    }

    const MEMORY: usize = 1 << 30;

    fn planned(files: &[FileEntry], mode: MergeMode) -> Vec<(usize, RowClass)> {
        plan(files, 0, mode, MEMORY)
            .into_iter()
            .map(|j| (j.files.len(), j.class))
            .collect()
    }

    #[test]
    fn a_quiet_hour_becomes_one_file() {
        use RowClass::{Late, Recent};
        assert_eq!(
            planned(
                &[file(Recent, 100, 6), file(Recent, 50, 20)],
                MergeMode::Running
            ),
            [(2, Recent)]
        );
        assert_eq!(
            planned(
                &[file(Recent, 100, 1), file(Recent, 50, 20)],
                MergeMode::Running
            ),
            []
        );
        assert_eq!(planned(&[file(Recent, 100, 6)], MergeMode::Running), []);
        assert_eq!(
            planned(
                &[file(Recent, 200 << 10, 6), file(Recent, 50, 20)],
                MergeMode::Running
            ),
            []
        );
        // Late files are merged when they are many, large or a day old.
        assert_eq!(
            planned(
                &[file(Recent, 100, 6), file(Late, 5, 6)],
                MergeMode::Running
            ),
            []
        );
        assert_eq!(
            planned(
                &[file(Recent, 100, 6), file(Late, 11, 6)],
                MergeMode::Running
            ),
            [(2, Recent)]
        );
        assert_eq!(
            planned(
                &[file(Recent, 100, 6), file(Late, 1, 1_441)],
                MergeMode::Running
            ),
            [(2, Recent)]
        );
        assert_eq!(
            planned(&vec![file(Late, 1, 0); 8], MergeMode::Running),
            [(8, Late)]
        );
        assert_eq!(planned(&vec![file(Late, 1, 0); 7], MergeMode::Running), []);
        assert_eq!(
            planned(&[file(Recent, 1, 0), file(Late, 1, 0)], MergeMode::Now),
            [(2, Recent)]
        );
    }

    #[test]
    fn a_merge_reads_no_more_at_once_than_fits_into_its_memory() {
        let files = vec![file(RowClass::Recent, 4 << 10, 6); 50];
        let counts = |memory: usize| {
            plan(&files, 0, MergeMode::Quiet, memory)
                .iter()
                .map(|j| j.files.len())
                .sum::<usize>()
        };
        assert_eq!(
            (counts(MEMORY), counts(80 << 20), counts(1 << 20)),
            (50, 10, 2)
        );
        assert_eq!(
            plan(
                &[file(RowClass::Recent, 10, 0), file(RowClass::Recent, 10, 0)],
                0,
                MergeMode::Quiet,
                MEMORY
            ),
            []
        );
    }

    #[test]
    fn a_merge_needs_a_quarter_of_the_free_space_at_most() {
        let job = Job {
            files: vec![file(RowClass::Recent, 10, 0), file(RowClass::Recent, 15, 0)],
            class: RowClass::Recent,
        };
        let has_room = |kib: u64| has_room_for(&job, Some(kib << 10));
        assert_eq!(
            (has_room(99), has_room(100), has_room_for(&job, None)),
            (false, true, true)
        );
    }

    #[test]
    fn while_rows_arrive_only_similar_files_merge() {
        let mut files = vec![file(RowClass::Recent, 1_000, 0)];
        files.extend(vec![file(RowClass::Recent, 10, 0); 8]);
        assert_eq!(planned(&files, MergeMode::Running), [(8, RowClass::Recent)]);
    }
}
