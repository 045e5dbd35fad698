//! An external merge sort of records by event time: sorted runs are written to files of the data
//! folder, and then merged. Records that fit into memory are not written. The order is total, so
//! that it does not depend on memory and disk.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};

use super::super::super::SortSpace;
use super::super::frame::Record;
use super::runs::{BLOCK_BYTES, Run, RunReader, RunWriter};
use crate::event::Micros;
use crate::storage::{create_folders, explain};

/// Runs that are merged at once.
const MAX_FAN_IN: usize = 64;
/// Records between two checks whether to stop.
const STOP_CHECK_INTERVAL: u64 = 1_024;

/// The sort key: records with equal times remain in the order of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// The record's event time.
    pub time: Micros,
    /// Number of the record in the file.
    pub number: u64,
}

/// A record with the key by which it is sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sortable<'a> {
    /// Its place in the order.
    pub key: Key,
    /// Its place in the file, and its bytes.
    pub record: Record<'a>,
}

/// Why a sort failed or was stopped. Its files are removed in any case.
#[derive(Debug, thiserror::Error)]
pub(super) enum SortError {
    #[error("{}: {}", path.display(), explain(error))]
    Io { path: PathBuf, error: io::Error },
    #[error(
        "sorting needs more disk space than {limit} allows: raise it or free space, or sort the file before weir reads it; the files of this sort are removed"
    )]
    NoSpace { limit: String },
    #[error("weir is stopping")]
    Stopped,
}

impl SortError {
    /// An error of a run's file.
    pub fn io(path: &Path, error: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            error,
        }
    }
}

/// A folder that is removed when dropped.
struct RunFolder(PathBuf);

impl Drop for RunFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Accepts records in any order.
///
/// ```text
/// push ─► buffer (memory_bytes) ─► runs 1, 2, 3 … ─► merge fan_in at a time ─► SortedRecords
/// ```
pub(super) struct Sorter<'a> {
    space: &'a SortSpace,
    stop: &'a dyn Fn() -> bool,
    buffer: Buffer,
    runs: VecDeque<Run>,
    next_run: u64,
    folder: Option<RunFolder>,
}

impl<'a> Sorter<'a> {
    /// An empty sorter, which asks `stop` from time to time whether to give up.
    pub fn new(space: &'a SortSpace, stop: &'a dyn Fn() -> bool) -> Self {
        Self {
            space,
            stop,
            buffer: Buffer::new(space.memory_bytes),
            runs: VecDeque::new(),
            next_run: 0,
            folder: None,
        }
    }

    /// Adds a record; writes a run first where the memory does not suffice.
    pub fn push(&mut self, sortable: &Sortable<'_>) -> Result<(), SortError> {
        if !self.buffer.is_empty() && self.buffer.bytes_with(sortable) > self.space.memory_bytes {
            self.spill()?;
        }
        self.buffer.push(sortable);
        Ok(())
    }

    /// Runs written so far.
    pub fn runs(&self) -> u64 {
        self.next_run
    }

    /// Sorts what is in memory, or merges the runs until few enough are left to read at once.
    pub fn finish(mut self) -> Result<SortedRecords, SortError> {
        if self.runs.is_empty() {
            self.buffer.sort();
            return Ok(SortedRecords {
                origin: Origin::Memory {
                    buffer: self.buffer,
                    next: 0,
                },
                _folder: None,
            });
        }
        self.spill()?;
        self.buffer = Buffer::new(0);
        // The oldest runs are merged first, so that each record is rewritten about equally often.
        loop {
            let fan_in = self.fan_in();
            if self.runs.len() <= fan_in {
                break;
            }
            let runs = self.runs.drain(..fan_in).collect();
            let merged = self.merge(runs)?;
            self.runs.push_back(merged);
        }
        let merger = Merger::open(self.runs.drain(..).collect())?;
        Ok(SortedRecords {
            origin: Origin::Runs(merger),
            _folder: self.folder,
        })
    }

    /// As many runs as memory has room for a block of each, compressed and decompressed.
    fn fan_in(&self) -> usize {
        let block = self
            .runs
            .iter()
            .map(|run| run.max_block_bytes)
            .max()
            .unwrap_or(0)
            .max(BLOCK_BYTES);
        (self.space.memory_bytes / (2 * block)).clamp(2, MAX_FAN_IN)
    }

    fn writer(&mut self) -> Result<RunWriter<'a>, SortError> {
        let path = &self.space.folder;
        if self.folder.is_none() {
            // Set first, so that the folder is removed if creating it fails halfway.
            self.folder = Some(RunFolder(path.clone()));
            create_folders(path).map_err(|error| SortError::io(path, error))?;
        }
        self.next_run += 1;
        RunWriter::new(self.space, self.next_run)
    }

    fn spill(&mut self) -> Result<(), SortError> {
        self.buffer.sort();
        let mut writer = self.writer()?;
        for at in 0..self.buffer.slots.len() {
            writer.push(&self.buffer.get(at))?;
        }
        self.buffer.clear();
        self.runs.push_back(writer.finish()?);
        Ok(())
    }

    fn merge(&mut self, runs: Vec<Run>) -> Result<Run, SortError> {
        let mut writer = self.writer()?;
        let mut merger = Merger::open(runs)?;
        let mut merged = 0;
        while let Some(sortable) = merger.next()? {
            writer.push(&sortable)?;
            merged += 1;
            if merged % STOP_CHECK_INTERVAL == 0 && (self.stop)() {
                return Err(SortError::Stopped);
            }
        }
        writer.finish()
    }
}

/// Records in memory: their concatenated bytes, and where each begins.
struct Buffer {
    bytes: Vec<u8>,
    slots: Vec<Slot>,
}

#[derive(Clone, Copy)]
struct Slot {
    key: Key,
    start: u64,
    length: u64,
    /// Position of the stored bytes in the buffer, and their number.
    at: usize,
    stored: usize,
}

impl Buffer {
    fn new(memory_bytes: usize) -> Self {
        // The system allocates the memory as it is used.
        Self {
            bytes: Vec::with_capacity(memory_bytes),
            slots: Vec::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Its memory with one more record.
    fn bytes_with(&self, sortable: &Sortable<'_>) -> usize {
        let slots = if self.slots.len() < self.slots.capacity() {
            1
        } else {
            2
        } * self.slots.capacity().max(4);
        self.bytes.len() + sortable.record.bytes.len() + slots * size_of::<Slot>()
    }

    fn push(&mut self, Sortable { key, record }: &Sortable<'_>) {
        let (at, stored) = (self.bytes.len(), record.bytes.len());
        self.bytes.extend_from_slice(record.bytes);
        self.slots.push(Slot {
            key: *key,
            start: record.start,
            length: record.length,
            at,
            stored,
        });
    }

    fn sort(&mut self) {
        self.slots.sort_unstable_by_key(|slot| slot.key);
    }

    fn get(&self, at: usize) -> Sortable<'_> {
        let Slot {
            key,
            start,
            length,
            at,
            stored,
        } = self.slots[at];
        Sortable {
            key,
            record: Record {
                start,
                length,
                bytes: &self.bytes[at..at + stored],
            },
        }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.slots.clear();
    }
}

/// Merges the records of several runs.
struct Merger {
    runs: Vec<RunReader>,
    /// The next record of each run that has one.
    heads: BinaryHeap<Reverse<(Key, usize)>>,
    /// The run of the record returned last.
    current: Option<usize>,
}

impl Merger {
    fn open(runs: Vec<Run>) -> Result<Self, SortError> {
        let runs = runs
            .into_iter()
            .map(RunReader::open)
            .collect::<Result<Vec<_>, _>>()?;
        let mut merger = Self {
            heads: BinaryHeap::with_capacity(runs.len()),
            runs,
            current: None,
        };
        (0..merger.runs.len()).for_each(|run| merger.push_head(run));
        Ok(merger)
    }

    fn push_head(&mut self, run: usize) {
        let head = self.runs[run]
            .current()
            .map(|sortable| Reverse((sortable.key, run)));
        self.heads.extend(head);
    }

    fn next(&mut self) -> Result<Option<Sortable<'_>>, SortError> {
        if let Some(run) = self.current.take() {
            self.runs[run].advance()?;
            self.push_head(run);
        }
        let Some(Reverse((_, run))) = self.heads.pop() else {
            return Ok(None);
        };
        self.current = Some(run);
        Ok(self.runs[run].current())
    }
}

/// All records in order; its files are removed when it is dropped.
pub(super) struct SortedRecords {
    origin: Origin,
    _folder: Option<RunFolder>,
}

enum Origin {
    Memory { buffer: Buffer, next: usize },
    Runs(Merger),
}

impl SortedRecords {
    /// The next record, valid until the following call.
    pub fn next(&mut self) -> Result<Option<Sortable<'_>>, SortError> {
        match &mut self.origin {
            Origin::Memory { buffer, next } if *next < buffer.slots.len() => {
                *next += 1;
                Ok(Some(buffer.get(*next - 1)))
            }
            Origin::Memory { .. } => Ok(None),
            Origin::Runs(merger) => merger.next(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::super::super::DiskAllowance;
    use super::*;

    fn space(folder: &Path, memory_bytes: usize, disk_bytes: u64) -> SortSpace {
        let allowance = move || DiskAllowance {
            bytes: disk_bytes,
            limit: "`[limits] disk` (1KiB)".into(),
        };
        SortSpace {
            folder: folder.join("sort/0"),
            memory_bytes,
            disk: Arc::new(allowance),
        }
    }

    /// The numbers of the records in sorted order, and how many runs were written.
    fn sort(space: &SortSpace, records: &[(i64, Vec<u8>)]) -> Result<(Vec<u64>, u64), SortError> {
        let mut sorter = Sorter::new(space, &|| false);
        for (number, (time, bytes)) in records.iter().enumerate() {
            let key = Key {
                time: *time,
                number: number as u64,
            };
            let record = Record {
                start: number as u64 * 10,
                length: bytes.len() as u64,
                bytes,
            };
            sorter.push(&Sortable { key, record })?;
        }
        let runs = sorter.runs();
        let mut sorted = sorter.finish()?;
        let mut numbers = Vec::new();
        while let Some(Sortable { key, record }) = sorted.next()? {
            let (time, bytes) = &records[key.number as usize];
            assert_eq!(
                (key.time, record.bytes, record.start),
                (*time, bytes.as_slice(), key.number * 10)
            );
            numbers.push(key.number);
        }
        Ok((numbers, runs))
    }

    fn expected(records: &[(i64, Vec<u8>)]) -> Vec<u64> {
        let mut numbers: Vec<u64> = (0..records.len() as u64).collect();
        // Stable: records with equal times keep their order.
        numbers.sort_by_key(|number| records[*number as usize].0);
        numbers
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_order_does_not_depend_on_memory(
            times in proptest::collection::vec((0i64..20, 0usize..3_000), 0..300),
            memory in 1usize..100_000,
        ) {
            let records: Vec<(i64, Vec<u8>)> = times.into_iter().map(|(time, length)| (time, vec![time as u8; length])).collect();
            let folder = tempfile::tempdir().expect("a folder");
            let (numbers, _) = sort(&space(folder.path(), memory, u64::MAX), &records).expect("disk space");
            prop_assert_eq!(numbers, expected(&records));
            prop_assert!(!folder.path().join("sort/0").exists());
        }
    }

    #[test]
    fn many_runs_are_merged_in_several_passes() {
        let folder = tempfile::tempdir().expect("a folder");
        let records: Vec<(i64, Vec<u8>)> = (0..4_000i64)
            .map(|n| (n * 7_919 % 4_001, vec![b'x'; 200]))
            .collect();
        // A run holds less than a block: two are merged at once.
        let (numbers, runs) =
            sort(&space(folder.path(), 20_000, u64::MAX), &records).expect("disk space");
        assert!(runs > 40, "{runs}");
        assert_eq!(numbers, expected(&records));
    }

    #[test]
    fn without_disk_space_no_file_remains() {
        let folder = tempfile::tempdir().expect("a folder");
        let records: Vec<(i64, Vec<u8>)> = (0..400).map(|n| (n, vec![b'x'; 2_000])).collect();
        let error = sort(&space(folder.path(), 100_000, 100), &records)
            .expect_err("no disk space")
            .to_string();
        assert!(error.contains("`[limits] disk` (1KiB)"), "{error}");
        assert!(!folder.path().join("sort/0").exists());
        let stopped = Sorter::new(&space(folder.path(), 20_000, u64::MAX), &|| true)
            .finish()
            .map(|_| ());
        assert!(stopped.is_ok(), "there was nothing to merge");
    }
}
