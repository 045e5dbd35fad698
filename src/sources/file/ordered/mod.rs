//! One file that is complete, read in order of event time (`order = "event_time"`).
//!
//! An offset is an ordinal in the sorted order. It is valid only while the file is the same, to the
//! byte, and its records are sorted the same way: each frame stores the file's size and CRC-32C, and
//! a CRC-32C of the order up to its offset ([`Sorted`]). A start sorts again, skips what was read,
//! and resumes if both agree; otherwise the source halts.
//!
//! Records that will be dead letters sort after the event that precedes them; records with equal
//! times remain in the order of the file.

mod resume;
mod runs;
mod sort;

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::batcher::RecordBatcher;
use super::super::compression::PlainReader;
use super::super::lines::{Item, Reader};
use super::super::{Context, SourceError};
use super::content::{PositionalReader, READ_BYTES};
use super::decision::path_of;
use super::discover::Stamp;
use super::frame::{
    FrameBuilder, FramePosition, InFlight, Record, batch_limits, each_record, partition_end,
};
use crate::config::FileDef;
use crate::event::{Micros, SourceState};
use crate::ingest::SortTimes;
use crate::operators::PartitionState;
use crate::wal::{FileIdentity, Sorted};
use resume::{ResumeError, ResumePoint};
use sort::{Key, SortError, Sortable, SortedRecords, Sorter};

/// How often a waiting source checks its file, and how often progress is published.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// A file that has not changed for this long is considered complete.
const SETTLE: Duration = Duration::from_secs(1);
/// A file that could not be read is retried after this time, unless it changes before.
const RETRY_DELAY: Duration = Duration::from_secs(30);

/// Reads the file in order of its events, once; then, unless the run is bounded, watches for
/// changes, which it cannot read.
pub(super) fn run(context: &Context, def: &FileDef) -> Result<(), SourceError> {
    let mut source = OrderedSource {
        context,
        path: def.path.clone(),
        partitions: context.partitions.clone(),
    };
    while !context.stop.is_requested() {
        let stamp = source.stamp();
        match source.attempt() {
            Ok(()) if context.stop.is_requested() => return Ok(()),
            Ok(()) => {
                context.set_state(SourceState::Ended, None);
                if context.once {
                    return Ok(());
                }
                source.wait_for_change(stamp, None);
            }
            Err(Failure::Source(error)) => return Err(error),
            Err(Failure::Sort(SortError::Stopped)) => return Ok(()),
            Err(Failure::Sort(error)) => return Err(source.error(&error.to_string())),
            Err(Failure::Missing) if context.once => {
                return Err(SourceError::Missing {
                    path: source.label(),
                });
            }
            Err(Failure::Missing) => {
                let reason = format!(
                    "{} does not exist; it is read as soon as it does",
                    source.label()
                );
                tracing::warn!(source = context.name, reason, "the source waits");
                context.set_state(SourceState::Waiting, Some(reason));
                source.wait_for_change(None, None);
            }
            Err(Failure::Read(error)) if context.once => return Err(source.error(&error)),
            Err(Failure::Read(error)) => {
                let reason = format!("{}: {error}; retrying", source.label());
                tracing::error!(source = context.name, reason, "the source is halted");
                context.set_state(SourceState::Halted, Some(reason));
                source.wait_for_change(stamp, Some(RETRY_DELAY));
            }
        }
    }
    Ok(())
}

/// Checks that a source of files in file order has no offsets in order of event time.
pub(super) fn check_not_ordered(context: &Context) -> Result<(), SourceError> {
    match resume::sorted(&context.partitions).next() {
        None => Ok(()),
        Some((_, name, ..)) => {
            let reason = "this source has read it in order of event time, and does not read a record twice; set `order = \"event_time\"` again, or give the source another name";
            Err(SourceError::Order {
                path: path_of(name).to_owned(),
                reason: reason.into(),
            })
        }
    }
}

/// Why an attempt to read the file ended.
enum Failure {
    Missing,
    /// This attempt stored no record; another one may succeed.
    Read(String),
    Sort(SortError),
    Source(SourceError),
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}

impl From<SortError> for Failure {
    fn from(error: SortError) -> Self {
        Self::Sort(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing,
            _ => Self::Read(error.to_string()),
        }
    }
}

struct OrderedSource<'a> {
    context: &'a Context,
    path: PathBuf,
    partitions: Vec<(String, PartitionState)>,
}

/// The open file, which must not change while it is read.
struct InputFile {
    file: Arc<File>,
    stamp: Stamp,
    path: PathBuf,
}

impl OrderedSource<'_> {
    fn label(&self) -> String {
        self.path.display().to_string()
    }

    fn error(&self, reason: &str) -> SourceError {
        SourceError::Order {
            path: self.label(),
            reason: reason.to_owned(),
        }
    }

    /// The error for records that are not in the order of those read before.
    fn other_order(&self, read: u64) -> SourceError {
        self.error(&ResumeError::OtherOrder { read }.to_string())
    }

    fn stamp(&self) -> Option<Stamp> {
        std::fs::metadata(&self.path)
            .ok()
            .map(|metadata| Stamp::from(&metadata))
    }

    /// Waits until a file with another stamp is at the path. Its removal is not a change.
    fn wait_for_change(&self, stamp: Option<Stamp>, timeout: Option<Duration>) {
        let since = Instant::now();
        while !self.context.stop.wait(POLL_INTERVAL) {
            let is_changed = self.stamp().is_some_and(|now| Some(now) != stamp);
            if is_changed || timeout.is_some_and(|timeout| since.elapsed() >= timeout) {
                return;
            }
        }
    }

    /// Reads everything of the file that is not in the log yet.
    fn attempt(&mut self) -> Result<(), Failure> {
        let input = self.open()?;
        if resume::is_complete(&self.partitions, &input.stamp) {
            return Ok(());
        }
        let Some(crc) = self.checksum(&input)? else {
            return Ok(());
        };
        input.check_unchanged()?;
        let identity = resume::Identity {
            path: &input.path,
            inode: input.stamp.inode,
            size: input.stamp.size,
            crc,
        };
        let resume_point = resume::decide(&self.partitions, &identity);
        match resume_point.map_err(|error| self.error(&error.to_string()))? {
            ResumePoint::Complete(partition) => self.record_end(partition, &input.stamp)?,
            ResumePoint::Partition(partition) => self.read(&input, crc, Some(partition))?,
            ResumePoint::Start => self.read(&input, crc, None)?,
        }
        Ok(())
    }

    fn open(&self) -> Result<InputFile, Failure> {
        let metadata = std::fs::metadata(&self.path)?;
        if !metadata.is_file() {
            let kind = if metadata.is_dir() {
                "a folder"
            } else {
                "not a regular file"
            };
            let reason =
                format!("it is {kind}; `order = \"event_time\"` is for one file that is complete");
            return Err(self.error(&reason).into());
        }
        let file = Arc::new(File::open(&self.path)?);
        let mut stamp = Stamp::from(&file.metadata()?);
        // A file that is still being written would be read in part, and halt the source afterwards.
        let mut since = Instant::now();
        let age = crate::clock::age(metadata.modified()?);
        while !self.context.once
            && age < SETTLE
            && since.elapsed() < SETTLE
            && !self.context.stop.wait(POLL_INTERVAL / 5)
        {
            let now = Stamp::from(&file.metadata()?);
            if now != stamp {
                (stamp, since) = (now, Instant::now());
            }
        }
        Ok(InputFile {
            file,
            stamp,
            path: self.path.canonicalize()?,
        })
    }

    /// CRC-32C of the file as stored; none if the source is to stop.
    fn checksum(&self, input: &InputFile) -> io::Result<Option<u32>> {
        let mut stored = input.stored();
        let (mut crc, mut buffer) = (0, vec![0; READ_BYTES]);
        loop {
            match stored.read(&mut buffer) {
                Ok(0) => return Ok(Some(crc)),
                Ok(read) => crc = crc32c::crc32c_append(crc, &buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if self.context.stop.is_requested() {
                return Ok(None);
            }
        }
    }

    /// Sorts the file and sends the records from the partition's offset on.
    fn read(
        &mut self,
        input: &InputFile,
        crc: u32,
        partition: Option<usize>,
    ) -> Result<(), Failure> {
        let stop = || self.context.stop.is_requested();
        let mut sort_input = SortInput {
            context: self.context,
            times: self.context.ingest.sort_times(&self.context.stream),
            sorter: Sorter::new(&self.context.sort_space, &stop),
            batcher: RecordBatcher::new(batch_limits(self.context)),
            extents: Vec::new(),
            next_number: 0,
            published_at: Instant::now(),
        };
        sort_input.read(input)?;
        let records = sort_input.next_number;
        let sorted = sort_input.finish()?;
        // The checksum must be that of the bytes that were sorted.
        input.check_unchanged()?;
        if records == 0 && partition.is_none() {
            return Ok(());
        }
        let partition = match partition {
            Some(partition) => partition,
            None => {
                self.partitions.push((
                    resume::partition_name(&input.path),
                    PartitionState::default(),
                ));
                self.partitions.len() - 1
            }
        };
        let content = Sorted {
            size: input.stamp.size,
            crc,
            records,
            order: 0,
        };
        self.send(sorted, content, partition, input)?;
        if self.partitions[partition].1.next_offset == records {
            self.record_end(partition, &input.stamp)?;
        }
        Ok(())
    }

    /// Sends the records from the partition's offset on, and advances the partition.
    fn send(
        &mut self,
        mut sorted: SortedRecords,
        content: Sorted,
        partition: usize,
        input: &InputFile,
    ) -> Result<(), Failure> {
        let (name, state) = self.partitions[partition].clone();
        let resume_offset = state.next_offset;
        let resume_order = state
            .file
            .and_then(|file| file.sorted)
            .map_or(0, |sorted| sorted.order);
        let (mut next, mut order, mut published_at) = (0, 0, Instant::now());
        let mut in_flight = InFlight::default();
        let mut frame = FrameBuilder::new(self.context, resume_offset);
        loop {
            if next == resume_offset && order != resume_order {
                return Err(self.other_order(resume_offset).into());
            }
            let record = sorted.next()?;
            let is_last = record.is_none() || self.context.stop.is_requested();
            if frame.is_full() || !frame.is_empty() && is_last {
                let file = FileIdentity {
                    inode: input.stamp.inode,
                    sorted: Some(Sorted { order, ..content }),
                    ..FileIdentity::default()
                };
                let full =
                    std::mem::replace(&mut frame, FrameBuilder::with_capacity(self.context, next));
                let position = FramePosition {
                    partition: &name,
                    next_offset: next,
                    file: Some(file),
                };
                in_flight.submit(self.context, full.finish(self.context, position))?;
                let state = &mut self.partitions[partition].1;
                (state.next_offset, state.file) = (next, Some(file));
                if published_at.elapsed() >= POLL_INTERVAL {
                    published_at = Instant::now();
                    let progress = format!("sorted, {next} of {} records read", content.records);
                    self.context.set_state(SourceState::Running, Some(progress));
                }
            }
            let is_stopping = self.context.stop.is_requested();
            let Some(Sortable { record, .. }) = record.filter(|_| !is_stopping) else {
                break;
            };
            if next >= resume_offset {
                frame.push_record(next, &record);
            }
            order = resume::append_order(order, &record);
            next += 1;
        }
        if next < resume_offset && !self.context.stop.is_requested() {
            return Err(self.other_order(resume_offset).into());
        }
        Ok(in_flight.wait_all()?)
    }

    /// Records that all of the partition was read, and the file that it was read from.
    fn record_end(&mut self, partition: usize, stamp: &Stamp) -> Result<(), SourceError> {
        let (name, state) = &mut self.partitions[partition];
        let file = FileIdentity {
            inode: stamp.inode,
            complete: Some((stamp.size, stamp.modified)),
            ..state.file.unwrap_or_default()
        };
        if state.file.replace(file) == Some(file) {
            return Ok(());
        }
        let position = FramePosition {
            partition: name,
            next_offset: state.next_offset,
            file: Some(file),
        };
        let mut in_flight = InFlight::default();
        let end = partition_end(self.context, state.next_offset, position);
        in_flight.submit(self.context, end)?;
        in_flight.wait_all()
    }
}

impl InputFile {
    /// Its bytes as stored.
    fn stored(&self) -> io::Take<PositionalReader> {
        PositionalReader::new(self.file.clone()).take(self.stamp.size)
    }

    fn check_unchanged(&self) -> Result<(), Failure> {
        if Stamp::from(&self.file.metadata()?) == self.stamp {
            return Ok(());
        }
        let reason = "it changed while it was being read, and no record of it was stored; `order = \"event_time\"` is for a file that is complete";
        Err(Failure::Read(reason.into()))
    }
}

/// Reads the file's records into the sorter.
struct SortInput<'a> {
    context: &'a Context,
    /// None if the stream does not exist, so that there are no events to sort by.
    times: Option<SortTimes>,
    sorter: Sorter<'a>,
    /// Records whose times are not determined yet.
    batcher: RecordBatcher,
    /// Start and length in the file of each record in the batch.
    extents: Vec<(u64, u64)>,
    /// Number of the next record, in the order of the file.
    next_number: u64,
    published_at: Instant,
}

impl SortInput<'_> {
    fn read(&mut self, input: &InputFile) -> Result<(), Failure> {
        let read_bytes = Rc::new(Cell::new(0));
        let stored = CountingReader {
            input: input.stored(),
            read_bytes: read_bytes.clone(),
        };
        let unwrap = self.context.unwrap.as_deref();
        let max_bytes = self.context.record_limits.max_bytes + 1;
        let mut reader = Reader::new(PlainReader::new(stored)?, 0, b"", unwrap, max_bytes);
        // A last line without its newline is a record too: the rest of it will never come.
        while let Some(item) = reader.next_item()? {
            self.push(&item)?;
            if self.published_at.elapsed() >= POLL_INTERVAL {
                self.publish(&format!(
                    "sorting, {} of {} bytes read",
                    read_bytes.get(),
                    input.stamp.size
                ));
            }
        }
        self.sort_batch()?;
        if !reader.dropped_members().is_empty() {
            let (source, path) = (&self.context.name, input.path.display());
            let members = reader.dropped_members();
            tracing::info!(source, %path, ?members, "members other than the unwrapped one are dropped");
        }
        Ok(())
    }

    fn publish(&mut self, progress: &str) {
        self.published_at = Instant::now();
        self.context
            .set_state(SourceState::Running, Some(progress.to_owned()));
    }

    fn push(&mut self, item: &Item) -> Result<(), SortError> {
        each_record(item, &self.context.record_limits, &mut |record| {
            self.extents.push((record.start, record.length));
            self.batcher.push_prefix(record.bytes, record.length);
        });
        if self.batcher.is_full() {
            self.sort_batch()
        } else {
            Ok(())
        }
    }

    fn sort_batch(&mut self) -> Result<(), SortError> {
        if self.context.stop.is_requested() {
            return Err(SortError::Stopped);
        }
        let batch = self.batcher.take();
        let times = match &mut self.times {
            Some(times) => times.next(&batch.records, &batch.truncated),
            None => vec![Micros::MIN; batch.records.len()],
        };
        for ((time, (start, length)), bytes) in times
            .into_iter()
            .zip(self.extents.drain(..))
            .zip(batch.records.iter())
        {
            let key = Key {
                time,
                number: self.next_number,
            };
            self.sorter.push(&Sortable {
                key,
                record: Record {
                    start,
                    length,
                    bytes,
                },
            })?;
            self.next_number += 1;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<SortedRecords, SortError> {
        let runs = self.sorter.runs();
        if runs > 0 {
            tracing::info!(
                source = self.context.name,
                runs,
                "merging the sorted runs of the file"
            );
            self.publish(&format!("sorting, merging {runs} sorted runs"));
        }
        self.sorter.finish()
    }
}

/// Counts the bytes that are read through it.
struct CountingReader<R> {
    input: R,
    read_bytes: Rc<Cell<u64>>,
}

impl<R: Read> Read for CountingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.read_bytes.set(self.read_bytes.get() + read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod model;
