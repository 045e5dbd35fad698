//! An external merge sort of records by event time: sorted runs in files of the data folder, then
//! merged. What fits into memory writes nothing. The order is total, so that memory and disk do not
//! shape it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};

use super::super::super::SortSpace;
use super::super::frame::Record;
use super::runs::{BLOCK_BYTES, Run, RunReader, RunWriter};
use crate::event::Micros;
use crate::storage::{create_folders, explain};

/// Runs that are merged at once, at most.
const MAX_FAN_IN: usize = 64;
/// Records between two looks whether everything stops.
const LOOK_EVERY: u64 = 1_024;

/// What records are sorted by: equal times keep the order of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub time: Micros,
    /// Of the record in the file.
    pub number: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sortable<'a> {
    pub key: Key,
    pub record: Record<'a>,
}

#[derive(Debug, thiserror::Error)]
pub enum SortError {
    #[error("{}: {}", path.display(), explain(error))]
    Io { path: PathBuf, error: io::Error },
    #[error(
        "sorting needs more room than {bound} leaves: raise or free it, or sort the file before weir reads it; what was written is removed"
    )]
    NoRoom { bound: String },
    #[error("weir is stopping")]
    Stopped,
}

impl SortError {
    pub fn io(path: &Path, error: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            error,
        }
    }
}

/// A folder that leaves with what is in it.
struct RunFolder(PathBuf);

impl Drop for RunFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Takes records in any order.
pub struct Sorter<'a> {
    space: &'a SortSpace,
    stop: &'a dyn Fn() -> bool,
    buffer: Buffer,
    runs: VecDeque<Run>,
    next_run: u64,
    folder: Option<RunFolder>,
}

impl<'a> Sorter<'a> {
    pub fn new(space: &'a SortSpace, stop: &'a dyn Fn() -> bool) -> Self {
        Self {
            space,
            stop,
            buffer: Buffer::new(space.memory),
            runs: VecDeque::new(),
            next_run: 0,
            folder: None,
        }
    }

    pub fn push(&mut self, sortable: &Sortable<'_>) -> Result<(), SortError> {
        if !self.buffer.is_empty() && self.buffer.bytes_with(sortable) > self.space.memory {
            self.spill()?;
        }
        self.buffer.push(sortable);
        Ok(())
    }

    /// Runs written so far.
    pub fn runs(&self) -> u64 {
        self.next_run
    }

    pub fn finish(mut self) -> Result<Sorted, SortError> {
        if self.runs.is_empty() {
            self.buffer.sort();
            return Ok(Sorted {
                rest: Rest::Memory {
                    buffer: self.buffer,
                    next: 0,
                },
                _folder: None,
            });
        }
        self.spill()?;
        self.buffer = Buffer::new(0);
        // Every run is merged once, or once more than others.
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
        Ok(Sorted {
            rest: Rest::Runs(merger),
            _folder: self.folder,
        })
    }

    /// As many runs as have a block each, packed and unpacked, in memory.
    fn fan_in(&self) -> usize {
        let block = self
            .runs
            .iter()
            .map(|run| run.largest)
            .max()
            .unwrap_or(0)
            .max(BLOCK_BYTES);
        (self.space.memory / (2 * block)).clamp(2, MAX_FAN_IN)
    }

    fn writer(&mut self) -> Result<RunWriter<'a>, SortError> {
        let path = &self.space.folder;
        if self.folder.is_none() {
            // Made first, so that whatever fails next is removed.
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
            if merged % LOOK_EVERY == 0 && (self.stop)() {
                return Err(SortError::Stopped);
            }
        }
        writer.finish()
    }
}

/// Records in memory: their bytes one after the other, and where each lies.
struct Buffer {
    bytes: Vec<u8>,
    slots: Vec<Slot>,
}

#[derive(Clone, Copy)]
struct Slot {
    key: Key,
    start: u64,
    length: u64,
    at: usize,
    kept: usize,
}

impl Buffer {
    fn new(memory: usize) -> Self {
        // Memory is taken from the system as it is used.
        Self {
            bytes: Vec::with_capacity(memory),
            slots: Vec::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// What it takes with one record more.
    fn bytes_with(&self, sortable: &Sortable<'_>) -> usize {
        let slots = if self.slots.len() < self.slots.capacity() {
            1
        } else {
            2
        } * self.slots.capacity().max(4);
        self.bytes.len() + sortable.record.bytes.len() + slots * size_of::<Slot>()
    }

    fn push(&mut self, Sortable { key, record }: &Sortable<'_>) {
        let (at, kept) = (self.bytes.len(), record.bytes.len());
        self.bytes.extend_from_slice(record.bytes);
        self.slots.push(Slot {
            key: *key,
            start: record.start,
            length: record.length,
            at,
            kept,
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
            kept,
        } = self.slots[at];
        Sortable {
            key,
            record: Record {
                start,
                length,
                bytes: &self.bytes[at..at + kept],
            },
        }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.slots.clear();
    }
}

/// Gives the records of several runs in their order.
struct Merger {
    runs: Vec<RunReader>,
    /// The next record of each run that has one.
    heads: BinaryHeap<Reverse<(Key, usize)>>,
    /// The run whose record was given last.
    given: Option<usize>,
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
            given: None,
        };
        (0..merger.runs.len()).for_each(|run| merger.note_head(run));
        Ok(merger)
    }

    fn note_head(&mut self, run: usize) {
        let head = self.runs[run]
            .present()
            .map(|sortable| Reverse((sortable.key, run)));
        self.heads.extend(head);
    }

    fn next(&mut self) -> Result<Option<Sortable<'_>>, SortError> {
        if let Some(run) = self.given.take() {
            self.runs[run].advance()?;
            self.note_head(run);
        }
        let Some(Reverse((_, run))) = self.heads.pop() else {
            return Ok(None);
        };
        self.given = Some(run);
        Ok(self.runs[run].present())
    }
}

/// All records in their order; its files leave with it.
pub struct Sorted {
    rest: Rest,
    _folder: Option<RunFolder>,
}

enum Rest {
    Memory { buffer: Buffer, next: usize },
    Runs(Merger),
}

impl Sorted {
    pub fn next(&mut self) -> Result<Option<Sortable<'_>>, SortError> {
        match &mut self.rest {
            Rest::Memory { buffer, next } if *next < buffer.slots.len() => {
                *next += 1;
                Ok(Some(buffer.get(*next - 1)))
            }
            Rest::Memory { .. } => Ok(None),
            Rest::Runs(merger) => merger.next(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use proptest::prelude::*;

    use super::super::super::super::Room;
    use super::*;

    fn space(folder: &Path, memory: usize, room: u64) -> SortSpace {
        let left = AtomicU64::new(room);
        let room = move || Room {
            bytes: left.load(Ordering::Relaxed),
            bound: "`[limits] disk` (1KiB)".into(),
        };
        SortSpace {
            folder: folder.join("sort/0"),
            memory,
            room: Arc::new(room),
        }
    }

    /// The numbers of the records in the order that comes out, and how many runs were written.
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
        // Stable: equal times keep their order.
        numbers.sort_by_key(|number| records[*number as usize].0);
        numbers
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn memory_does_not_shape_the_order(
            times in proptest::collection::vec((0i64..20, 0usize..3_000), 0..300),
            memory in 1usize..100_000,
        ) {
            let records: Vec<(i64, Vec<u8>)> = times.into_iter().map(|(time, length)| (time, vec![time as u8; length])).collect();
            let folder = tempfile::tempdir().expect("a folder");
            let (numbers, _) = sort(&space(folder.path(), memory, u64::MAX), &records).expect("room");
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
            sort(&space(folder.path(), 20_000, u64::MAX), &records).expect("room");
        assert!(runs > 40, "{runs}");
        assert_eq!(numbers, expected(&records));
    }

    #[test]
    fn without_room_nothing_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let records: Vec<(i64, Vec<u8>)> = (0..400).map(|n| (n, vec![b'x'; 2_000])).collect();
        let error = sort(&space(folder.path(), 100_000, 100), &records)
            .expect_err("no room")
            .to_string();
        assert!(error.contains("`[limits] disk` (1KiB)"), "{error}");
        assert!(!folder.path().join("sort/0").exists());
        let stopped = Sorter::new(&space(folder.path(), 20_000, u64::MAX), &|| true)
            .finish()
            .map(|_| ());
        assert!(stopped.is_ok(), "nothing was to be merged");
    }
}
