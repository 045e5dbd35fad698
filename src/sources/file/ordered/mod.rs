//! One file that is complete, read in order of event time (`order = "event_time"`).
//!
//! A position is an ordinal in the sorted order. It means something only as long as the file is the
//! same, to the byte, and as its records are sorted the same: each frame stores the file's size and
//! CRC-32C, and a CRC-32C of the order up to its position ([`Sorted`]). A start sorts again, passes
//! over what was taken in, and goes on where both agree; otherwise the source halts.
//!
//! Records that will be dead letters have the place of the event before them, equal times keep the
//! order of the file.

mod begin;
mod runs;
mod sort;

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::super::compression::PlainReader;
use super::super::lines::{Item, Reader};
use super::super::{Context, SourceError};
use super::content::{Positional, READ_BYTES};
use super::discover::Stamp;
use super::frame::{FrameBuilder, InFlight, Record, each_record};
use super::identity::path_of;
use crate::config::FileDef;
use crate::event::{Micros, SourceState};
use crate::ingest::SortTimes;
use crate::operators::PartitionState;
use crate::wal::{FileIdentity, Kind, RecordsBuilder, Sorted};
use begin::Begin;
use sort::{Key, SortError, Sortable, Sorter};

/// How often a source that waits looks at its file, and how often progress is shown.
const LOOK: Duration = Duration::from_millis(500);
/// A file that has not changed for this long is taken to be complete.
const SETTLE: Duration = Duration::from_secs(1);
/// A file that could not be read is tried again after this time, if it does not change before.
const RETRY: Duration = Duration::from_secs(30);
/// Records that are decoded at once, and their bytes.
const BATCH_RECORDS: usize = 1_024;
const BATCH_BYTES: usize = 1 << 20;

/// Reads the file in order of its events, once; then, unless it is to end, watches whether it stays
/// as it is.
pub fn run(context: &Context, def: &FileDef) -> Result<(), SourceError> {
    let mut source = Ordered {
        context,
        path: def.path.clone(),
        partitions: context.partitions.clone(),
    };
    while !context.stop.is_asked() {
        let seen = source.stamp();
        match source.attempt() {
            Ok(()) if context.stop.is_asked() => return Ok(()),
            Ok(()) => {
                context.set_state(SourceState::Ended, None);
                if context.once {
                    return Ok(());
                }
                source.wait_for_change(seen, None);
            }
            Err(Failure::Source(error)) => return Err(error),
            Err(Failure::Sort(SortError::Stopped)) => return Ok(()),
            Err(Failure::Sort(error)) => return Err(source.refuse(&error.to_string())),
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
            Err(Failure::Read(error)) if context.once => return Err(source.refuse(&error)),
            Err(Failure::Read(error)) => {
                let reason = format!("{}: {error}; it is tried again", source.label());
                tracing::error!(source = context.name, reason, "the source cannot go on");
                context.set_state(SourceState::Halted, Some(reason));
                source.wait_for_change(seen, Some(RETRY));
            }
        }
    }
    Ok(())
}

/// Positions in order of event time mean nothing to a source that reads files as they are.
pub fn refuse_positions(context: &Context) -> Result<(), SourceError> {
    match begin::sorted(&context.partitions).next() {
        None => Ok(()),
        Some((_, name, ..)) => {
            let reason = "this source has read it in order of event time, and reads no record twice; write `order = \"event_time\"` again, or give the source another name";
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
    /// Nothing of it was taken in by this attempt; another one may help.
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

struct Ordered<'a> {
    context: &'a Context,
    path: PathBuf,
    partitions: Vec<(String, PartitionState)>,
}

/// The file as it is read: open, and not to change.
struct Whole {
    file: Arc<File>,
    stamp: Stamp,
    path: PathBuf,
}

impl Ordered<'_> {
    fn label(&self) -> String {
        self.path.display().to_string()
    }

    fn refuse(&self, reason: &str) -> SourceError {
        SourceError::Order {
            path: self.label(),
            reason: reason.to_owned(),
        }
    }

    fn stamp(&self) -> Option<Stamp> {
        std::fs::metadata(&self.path)
            .ok()
            .map(|metadata| Stamp::of(&metadata))
    }

    /// Waits until there is another file, or content, than was seen. One that was removed is no
    /// other.
    fn wait_for_change(&self, seen: Option<Stamp>, at_most: Option<Duration>) {
        let since = Instant::now();
        while !self.context.stop.wait(LOOK) {
            let is_changed = self.stamp().is_some_and(|stamp| Some(stamp) != seen);
            if is_changed || at_most.is_some_and(|most| since.elapsed() >= most) {
                return;
            }
        }
    }

    /// Brings everything of the file that is not in the log yet into it.
    fn attempt(&mut self) -> Result<(), Failure> {
        let whole = self.open()?;
        if begin::is_complete(&self.partitions, &whole.stamp) {
            return Ok(());
        }
        let Some(crc) = self.checksum(&whole)? else {
            return Ok(());
        };
        whole.refuse_changed()?;
        let content = (whole.stamp.size, crc);
        match begin::decide(&self.partitions, content, &whole)
            .map_err(|reason| self.refuse(&reason))?
        {
            Begin::Complete(partition) => self.note_end(partition, &whole.stamp)?,
            Begin::At(partition) => self.take_in(&whole, crc, Some(partition))?,
            Begin::Fresh => self.take_in(&whole, crc, None)?,
        }
        Ok(())
    }

    fn open(&self) -> Result<Whole, Failure> {
        let metadata = std::fs::metadata(&self.path)?;
        if !metadata.is_file() {
            let what = if metadata.is_dir() {
                "a folder"
            } else {
                "no regular file"
            };
            let reason =
                format!("it is {what}; `order = \"event_time\"` is for one file that is complete");
            return Err(self.refuse(&reason).into());
        }
        let file = Arc::new(File::open(&self.path)?);
        let mut stamp = Stamp::of(&file.metadata()?);
        // One that is being written would be taken in part, and halt the source afterwards.
        let mut since = Instant::now();
        let age = SystemTime::now()
            .duration_since(metadata.modified()?)
            .unwrap_or_default();
        while !self.context.once
            && age < SETTLE
            && since.elapsed() < SETTLE
            && !self.context.stop.wait(LOOK / 5)
        {
            let now = Stamp::of(&file.metadata()?);
            if now != stamp {
                (stamp, since) = (now, Instant::now());
            }
        }
        Ok(Whole {
            file,
            stamp,
            path: self.path.canonicalize()?,
        })
    }

    /// CRC-32C of the file as stored; none where everything stops.
    fn checksum(&self, whole: &Whole) -> io::Result<Option<u32>> {
        let mut input = whole.stored();
        let (mut crc, mut buffer) = (0, vec![0; READ_BYTES]);
        loop {
            match input.read(&mut buffer) {
                Ok(0) => return Ok(Some(crc)),
                Ok(read) => crc = crc32c::crc32c_append(crc, &buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if self.context.stop.is_asked() {
                return Ok(None);
            }
        }
    }

    /// Sorts the file and takes in what is behind the partition's position.
    fn take_in(
        &mut self,
        whole: &Whole,
        crc: u32,
        partition: Option<usize>,
    ) -> Result<(), Failure> {
        let stop = || self.context.stop.is_asked();
        let mut sorting = Sorting {
            context: self.context,
            times: self.context.ingest.sort_times(&self.context.stream),
            sorter: Sorter::new(&self.context.sort_space, &stop),
            batch: RecordsBuilder::default(),
            cut: Vec::new(),
            places: Vec::new(),
            number: 0,
            shown: Instant::now(),
        };
        sorting.read(whole)?;
        let records = sorting.number;
        let sorted = sorting.finish()?;
        // What was sorted is what the checksum is of.
        whole.refuse_changed()?;
        if records == 0 && partition.is_none() {
            return Ok(());
        }
        let partition = match partition {
            Some(partition) => partition,
            None => {
                self.partitions.push((
                    begin::partition_name(&whole.path),
                    PartitionState::default(),
                ));
                self.partitions.len() - 1
            }
        };
        let content = Sorted {
            size: whole.stamp.size,
            crc,
            records,
            order: 0,
        };
        self.send(sorted, content, partition, whole)?;
        if self.partitions[partition].1.next_offset == records {
            self.note_end(partition, &whole.stamp)?;
        }
        Ok(())
    }

    /// Sends what is behind the partition's position; the partition continues where it could be
    /// sent.
    fn send(
        &mut self,
        mut sorted: sort::Sorted,
        content: Sorted,
        partition: usize,
        whole: &Whole,
    ) -> Result<(), Failure> {
        let (name, state) = self.partitions[partition].clone();
        let resumed = (
            state.next_offset,
            state
                .file
                .and_then(|file| file.sorted)
                .map_or(0, |sorted| sorted.order),
        );
        let (mut next, mut order, mut shown) = (0, 0, Instant::now());
        let mut in_flight = InFlight::default();
        let mut frame = FrameBuilder::new(resumed.0);
        loop {
            if next == resumed.0 && order != resumed.1 {
                return Err(self.refuse(&begin::other_order(resumed.0)).into());
            }
            let given = sorted.next()?;
            if frame.is_full()
                || !frame.is_empty() && (given.is_none() || self.context.stop.is_asked())
            {
                let file = FileIdentity {
                    inode: whole.stamp.inode,
                    sorted: Some(Sorted { order, ..content }),
                    ..FileIdentity::default()
                };
                let full = std::mem::replace(&mut frame, FrameBuilder::with_room(next));
                in_flight.submit(
                    self.context,
                    full.submission(self.context, Kind::Record, &name, next, Some(file)),
                )?;
                let state = &mut self.partitions[partition].1;
                (state.next_offset, state.file) = (next, Some(file));
                if shown.elapsed() >= LOOK {
                    shown = Instant::now();
                    let progress =
                        format!("sorted, {next} of {} records are taken in", content.records);
                    self.context.set_state(SourceState::Running, Some(progress));
                }
            }
            let Some(Sortable { record, .. }) = given.filter(|_| !self.context.stop.is_asked())
            else {
                break;
            };
            if next >= resumed.0 {
                frame.add_record(next, &record, self.context);
            }
            order = begin::append_order(order, &record);
            next += 1;
        }
        if next < resumed.0 && !self.context.stop.is_asked() {
            return Err(self.refuse(&begin::other_order(resumed.0)).into());
        }
        Ok(in_flight.settle()?)
    }

    /// Notes that all of the partition was taken in, and of which file.
    fn note_end(&mut self, partition: usize, stamp: &Stamp) -> Result<(), SourceError> {
        let (name, state) = &mut self.partitions[partition];
        let file = FileIdentity {
            inode: stamp.inode,
            complete: Some((stamp.size, stamp.modified)),
            ..state.file.unwrap_or_default()
        };
        if state.file.replace(file) == Some(file) {
            return Ok(());
        }
        let mut end = FrameBuilder::new(state.next_offset);
        end.add_payload();
        let mut in_flight = InFlight::default();
        let submission = end.submission(
            self.context,
            Kind::PartitionEnd,
            name,
            state.next_offset,
            Some(file),
        );
        in_flight.submit(self.context, submission)?;
        in_flight.settle()
    }
}

impl Whole {
    /// Its bytes as stored, from the first on.
    fn stored(&self) -> io::Take<Positional> {
        Positional::new(self.file.clone()).take(self.stamp.size)
    }

    fn refuse_changed(&self) -> Result<(), Failure> {
        if Stamp::of(&self.file.metadata()?) == self.stamp {
            return Ok(());
        }
        let reason = "it changed while it was being read, and nothing of it was taken in; `order = \"event_time\"` is for a file that is complete";
        Err(Failure::Read(reason.into()))
    }
}

/// Records on their way into the sorter.
struct Sorting<'a> {
    context: &'a Context,
    /// None where there is no such stream, which has no events to sort by.
    times: Option<SortTimes>,
    sorter: Sorter<'a>,
    /// Records whose times are not known yet.
    batch: RecordsBuilder,
    cut: Vec<(u64, u64)>,
    /// Their starts and lengths.
    places: Vec<(u64, u64)>,
    /// Of the next record, in the order of the file.
    number: u64,
    shown: Instant,
}

impl Sorting<'_> {
    fn read(&mut self, whole: &Whole) -> Result<(), Failure> {
        let read = Rc::new(Cell::new(0));
        let input = Counted {
            input: whole.stored(),
            read: read.clone(),
        };
        let (unwrap, limit) = (
            self.context.unwrap.as_deref(),
            self.context.record_bytes + 1,
        );
        let mut reader = Reader::new(PlainReader::new(input)?, 0, b"", unwrap, limit);
        // A last line without its end is a record too: no more of it will come.
        while let Some(item) = reader.next_item()? {
            self.push(&item)?;
            if self.shown.elapsed() >= LOOK {
                self.show(&format!(
                    "sorting, {} of {} bytes are read",
                    read.get(),
                    whole.stamp.size
                ));
            }
        }
        self.sort_batch()?;
        if !reader.dropped().is_empty() {
            let (source, path, members) =
                (&self.context.name, whole.path.display(), reader.dropped());
            tracing::info!(source, %path, ?members, "members beside the unwrapped one are dropped");
        }
        Ok(())
    }

    fn show(&mut self, progress: &str) {
        self.shown = Instant::now();
        self.context
            .set_state(SourceState::Running, Some(progress.to_owned()));
    }

    fn push(&mut self, item: &Item) -> Result<(), SortError> {
        each_record(item, self.context, &mut |record| {
            if record.is_cut(self.context) {
                self.cut.push((self.batch.len() as u64, record.length));
            }
            self.places.push((record.start, record.length));
            self.batch.push(record.bytes);
        });
        if self.batch.len() >= BATCH_RECORDS || self.batch.bytes() >= BATCH_BYTES {
            self.sort_batch()
        } else {
            Ok(())
        }
    }

    fn sort_batch(&mut self) -> Result<(), SortError> {
        if self.context.stop.is_asked() {
            return Err(SortError::Stopped);
        }
        let records = std::mem::take(&mut self.batch).finish();
        let times = match &mut self.times {
            Some(times) => times.next(&records, &self.cut),
            None => vec![Micros::MIN; records.len()],
        };
        for ((time, (start, length)), bytes) in times
            .into_iter()
            .zip(self.places.drain(..))
            .zip(records.iter())
        {
            let key = Key {
                time,
                number: self.number,
            };
            self.sorter.push(&Sortable {
                key,
                record: Record {
                    start,
                    length,
                    bytes,
                },
            })?;
            self.number += 1;
        }
        self.cut.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<sort::Sorted, SortError> {
        let runs = self.sorter.runs();
        if runs > 0 {
            tracing::info!(
                source = self.context.name,
                runs,
                "the file is sorted in parts, which are merged"
            );
            self.show(&format!("sorting, {runs} sorted parts are merged"));
        }
        self.sorter.finish()
    }
}

/// Counts what is read through it.
struct Counted<R> {
    input: R,
    read: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.read.set(self.read.get() + read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod model;
