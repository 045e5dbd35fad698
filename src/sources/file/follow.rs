//! Reads one file: from its partition's offset to its end, in slices, and on when it grows.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::super::lines::Item;
use super::super::{Context, SourceError, message};
use super::content::{Content, HEAD_BYTES, RecordReader, Trail};
use super::discover::Stamp;
use super::frame::{FrameBuilder, FramePosition, InFlight, partition_end};
use super::registry::{PartitionId, PartitionRegistry};
use crate::wal::FileIdentity;

/// Frames that are read from one file before it is another's turn.
const SLICE_FRAMES: usize = 16;

/// Why reading a file stopped.
#[derive(Debug)]
pub(super) enum ReadError {
    /// This file is retried later; other files are read.
    File(io::Error),
    /// The source ends.
    Source(SourceError),
}

impl From<SourceError> for ReadError {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::File(error)
    }
}

/// The result of reading a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slice {
    /// Records were read.
    pub was_busy: bool,
    /// Nothing more for now.
    pub is_end: bool,
}

/// Why a slice ended.
enum SliceEnd {
    /// It is full, or the source stops.
    Paused,
    EndOfContent,
    /// The next record begins after the part that a bounded run reads.
    EndOfExtent,
    /// The last line has no newline and is not a complete value.
    PartialLine(Item),
    Failed(io::Error),
}

/// What is stored with a frame: where the partition continues, the checksum of the content up to
/// there, and size and modification time of the file if that is all of it.
#[derive(Clone, Copy)]
struct PartitionProgress {
    next_offset: u64,
    content: Option<u32>,
    complete: Option<Stamp>,
}

/// A file with its descriptor.
pub(super) struct Follower {
    /// The partition that its records belong to.
    pub id: PartitionId,
    /// The path of the file; none once it was renamed, replaced or removed.
    pub path: Option<PathBuf>,
    content: Content,
    head: Vec<u8>,
    reader: Option<RecordReader>,
    /// A bounded run does not read records that begin at this offset or later.
    end: Option<u64>,
    is_finished: bool,
    /// The stamp when reading began, and when the end was reached.
    opened: Option<Stamp>,
    read_to_end: Option<Stamp>,
    /// When it was opened, or last had records.
    pub last_active: Instant,
    has_reported_dropped: bool,
}

impl Follower {
    /// Follows a file from its partition's offset, up to `end` where that is set.
    pub fn new(
        id: PartitionId,
        path: PathBuf,
        content: Content,
        head: Vec<u8>,
        end: Option<u64>,
    ) -> Self {
        Self {
            id,
            path: Some(path),
            content,
            head,
            reader: None,
            end,
            is_finished: false,
            opened: None,
            read_to_end: None,
            last_active: Instant::now(),
            has_reported_dropped: false,
        }
    }

    /// The descriptor, whatever is at the path by now.
    pub fn file(&self) -> &Arc<File> {
        self.content.file()
    }

    /// The file, read from any offset.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// The first bytes as they were when reading began.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// All of the file was read.
    pub fn is_at_end(&self) -> bool {
        self.reader.is_none()
            && (self.is_finished
                || self.read_to_end.is_some() && self.read_to_end == self.stamp().ok())
    }

    /// There is more to read, even if the file did not change.
    pub fn has_unread_content(&self) -> bool {
        self.reader.is_some() || self.read_to_end.is_none()
    }

    /// Its path still has the same content, of which there may be more.
    pub fn recheck(&mut self) {
        if !self.is_at_end() && self.reader.is_none() {
            self.read_to_end = None;
        }
    }

    /// A slice was read, and the next one continues there.
    pub fn is_between_slices(&self) -> bool {
        self.reader.is_some()
    }

    /// The file's metadata now.
    pub fn stamp(&self) -> io::Result<Stamp> {
        Ok(Stamp::from(&self.file().metadata()?))
    }

    /// Reads the next slice.
    pub fn read_slice(
        &mut self,
        context: &Context,
        registry: &mut PartitionRegistry,
        in_flight: &mut InFlight,
    ) -> Result<Slice, ReadError> {
        let result = self.read_frames(context, registry, in_flight);
        match &result {
            Ok(slice) => {
                if slice.was_busy {
                    self.last_active = Instant::now();
                }
                if !slice.is_end {
                    return result;
                }
                self.read_to_end = self.opened;
                self.is_finished = context.once;
            }
            Err(_) => self.read_to_end = None,
        }
        self.reader = None;
        result
    }

    fn read_frames(
        &mut self,
        context: &Context,
        registry: &mut PartitionRegistry,
        in_flight: &mut InFlight,
    ) -> Result<Slice, ReadError> {
        let mut next = registry.get(self.id).state.next_offset;
        let mut reader = match self.reader.take() {
            Some(reader) => reader,
            None => {
                let stamp = self.stamp()?;
                if self.is_finished || self.read_to_end == Some(stamp) {
                    return Ok(Slice {
                        was_busy: false,
                        is_end: true,
                    });
                }
                self.open(context, registry, stamp)?
            }
        };
        let mut frame = FrameBuilder::new(context, next);
        let (mut was_busy, mut frames) = (false, 0);
        let end = loop {
            if context.stop.is_requested() || frames == SLICE_FRAMES {
                break SliceEnd::Paused;
            }
            let item = match self.next_record(&mut reader) {
                Ok(item) => item,
                Err(end) => break end,
            };
            was_busy = true;
            frame.push(&item);
            next = item.end;
            if frame.is_full() {
                let full =
                    std::mem::replace(&mut frame, FrameBuilder::with_capacity(context, next));
                let progress = PartitionProgress {
                    next_offset: next,
                    content: reader.crc_at(next),
                    complete: None,
                };
                self.submit(context, registry, in_flight, full, progress)?;
                frames += 1;
            }
        };
        self.report_dropped_members(context, reader.reader.dropped_members());
        let is_end_of_content = matches!(end, SliceEnd::EndOfContent);
        let complete = self
            .opened
            .filter(|stamp| is_end_of_content && reader.has_read_all(stamp.size));
        if !frame.is_empty() {
            let progress = PartitionProgress {
                next_offset: next,
                content: reader.crc_at(next),
                complete,
            };
            self.submit(context, registry, in_flight, frame, progress)?;
        }
        if let Some(trail) = reader.trail_at(next) {
            registry.set_trail(self.id, trail);
        }
        let is_end = self.end_slice(context, registry, in_flight, reader, end, complete)?;
        Ok(Slice { was_busy, is_end })
    }

    fn next_record(&self, reader: &mut RecordReader) -> Result<Item, SliceEnd> {
        let item = match reader.reader.next_item() {
            Ok(Some(item)) => item,
            Ok(None) => return Err(SliceEnd::EndOfContent),
            Err(error) => return Err(SliceEnd::Failed(error)),
        };
        if self.end.is_some_and(|end| item.start >= end) {
            return Err(SliceEnd::EndOfExtent);
        }
        if !item.is_terminated && !message::is_complete_value(&item.bytes) {
            return Err(SliceEnd::PartialLine(item));
        }
        Ok(item)
    }

    /// Records how a slice ended; whether nothing more is left for now.
    fn end_slice(
        &mut self,
        context: &Context,
        registry: &mut PartitionRegistry,
        in_flight: &mut InFlight,
        reader: RecordReader,
        end: SliceEnd,
        complete: Option<Stamp>,
    ) -> Result<bool, ReadError> {
        if let SliceEnd::PartialLine(item) = &end {
            self.report_partial_line(context, registry, in_flight, &reader, item)?;
        }
        self.record_new_file(context, registry, in_flight, complete)?;
        match end {
            SliceEnd::Paused => {
                self.reader = Some(reader);
                return Ok(false);
            }
            SliceEnd::Failed(error) => return Err(error.into()),
            SliceEnd::EndOfContent | SliceEnd::EndOfExtent | SliceEnd::PartialLine(_) => {}
        }
        if context.once {
            self.record_bounded_end(context, registry, in_flight, complete)?;
        }
        Ok(true)
    }

    fn open(
        &mut self,
        context: &Context,
        registry: &PartitionRegistry,
        stamp: Stamp,
    ) -> io::Result<RecordReader> {
        if self.head.len() < HEAD_BYTES {
            self.head = self.content.head()?.0;
        }
        let partition = registry.get(self.id);
        let trail = match &partition.trail {
            Some(trail) => trail.clone(),
            None if partition.state.next_offset == 0 => Trail::new(),
            None => Trail::at(partition.state.next_offset, partition.file().content),
        };
        self.opened = Some(stamp);
        self.content.reader(
            trail,
            &self.head,
            context.unwrap.as_deref(),
            context.record_limits.max_bytes + 1,
        )
    }

    /// Reports once which members other than the unwrapped one belong to no record.
    fn report_dropped_members(&mut self, context: &Context, members: &[String]) {
        if !members.is_empty() && !std::mem::replace(&mut self.has_reported_dropped, true) {
            let (source, path) = (&context.name, self.label());
            tracing::info!(
                source,
                path,
                ?members,
                "members other than the unwrapped one are dropped"
            );
        }
    }

    /// Sends a frame, after which the partition continues.
    fn submit(
        &self,
        context: &Context,
        registry: &mut PartitionRegistry,
        in_flight: &mut InFlight,
        frame: FrameBuilder,
        progress: PartitionProgress,
    ) -> Result<(), SourceError> {
        let next_offset = progress.next_offset;
        let file = FileIdentity {
            content: progress.content,
            complete: progress.complete.map(size_and_mtime),
            ..self.identity(registry, next_offset)?
        };
        registry.set_identity(self.id, file);
        let partition = registry.get_mut(self.id);
        partition.state.next_offset = next_offset;
        partition.state.partial_line = None;
        partition.has_unrecorded_end = true;
        let position = FramePosition {
            partition: &partition.name,
            next_offset,
            file: Some(file),
        };
        in_flight.submit(context, frame.finish(context, position))
    }

    /// Identity of the file by its first bytes, as far as `read_bytes` of them were read.
    fn identity(
        &self,
        registry: &PartitionRegistry,
        read_bytes: u64,
    ) -> Result<FileIdentity, SourceError> {
        let head = self
            .head
            .len()
            .min(usize::try_from(read_bytes).unwrap_or(HEAD_BYTES))
            .min(HEAD_BYTES);
        let stamp = self.stamp().map_err(|source| SourceError::Io {
            path: self.label(),
            source,
        })?;
        Ok(FileIdentity {
            inode: stamp.inode,
            head: head as u64,
            crc: crc32c::crc32c(&self.head[..head]),
            since: registry.since,
            ..FileIdentity::default()
        })
    }

    fn label(&self) -> String {
        self.path.as_ref().map_or_else(
            || "a renamed file".to_owned(),
            |path| path.display().to_string(),
        )
    }

    /// A last line without its newline waits for the rest. A bounded run reports it as a dead
    /// letter, once, and does not advance past it.
    fn report_partial_line(
        &self,
        context: &Context,
        registry: &mut PartitionRegistry,
        in_flight: &mut InFlight,
        reader: &RecordReader,
        item: &Item,
    ) -> Result<(), SourceError> {
        let line = Some((item.start, item.length));
        if !context.once || registry.get(self.id).state.partial_line == line {
            return Ok(());
        }
        let mut frame = FrameBuilder::new(context, item.start);
        frame.push_unsplit(item);
        // Between the last complete element of an array and this one is a separator: the offset
        // passes it, and so must the checksum that is stored with the offset.
        let trail = reader.trail_at(item.start);
        let progress = PartitionProgress {
            next_offset: item.start,
            content: trail.as_ref().and_then(|trail| trail.crc),
            complete: None,
        };
        self.submit(context, registry, in_flight, frame, progress)?;
        if let Some(trail) = trail {
            registry.set_trail(self.id, trail);
        }
        registry.get_mut(self.id).state.partial_line = line;
        Ok(())
    }

    /// Records that a content is in another file than before, or in a compressed one that need not
    /// be decompressed again.
    fn record_new_file(
        &self,
        context: &Context,
        registry: &mut PartitionRegistry,
        in_flight: &mut InFlight,
        complete: Option<Stamp>,
    ) -> Result<(), SourceError> {
        let Some(stamp) = complete else { return Ok(()) };
        let partition = registry.get(self.id);
        let (before, next) = (partition.file(), partition.state.next_offset);
        let complete = Some(size_and_mtime(stamp));
        let is_new_file = before.inode != stamp.inode
            || self.content.is_compressed() && before.complete != complete;
        if next > 0 && is_new_file {
            let file = FileIdentity {
                content: before.content,
                complete,
                ..self.identity(registry, next)?
            };
            self.record_identity(context, registry, in_flight, file)?;
        }
        Ok(())
    }

    /// Records that a bounded run reads no more, and with `complete` the file that it has read.
    fn record_bounded_end(
        &self,
        context: &Context,
        registry: &mut PartitionRegistry,
        in_flight: &mut InFlight,
        complete: Option<Stamp>,
    ) -> Result<(), SourceError> {
        if std::mem::take(&mut registry.get_mut(self.id).has_unrecorded_end) {
            let before = registry.get(self.id).file();
            let complete = complete.map(size_and_mtime).or(before.complete);
            let file = FileIdentity { complete, ..before };
            self.record_identity(context, registry, in_flight, file)?;
        }
        Ok(())
    }

    /// Records which file holds the partition.
    fn record_identity(
        &self,
        context: &Context,
        registry: &mut PartitionRegistry,
        in_flight: &mut InFlight,
        file: FileIdentity,
    ) -> Result<(), SourceError> {
        registry.set_identity(self.id, file);
        record_end(context, registry, self.id, in_flight)
    }
}

fn size_and_mtime(stamp: Stamp) -> (u64, u64) {
    (stamp.size, stamp.modified)
}

/// Records where a partition ends, and the identity of its file.
pub(super) fn record_end(
    context: &Context,
    registry: &PartitionRegistry,
    id: PartitionId,
    in_flight: &mut InFlight,
) -> Result<(), SourceError> {
    let partition = registry.get(id);
    let next_offset = partition.state.next_offset;
    let position = FramePosition {
        partition: &partition.name,
        next_offset,
        file: partition.state.file,
    };
    in_flight.submit(context, partition_end(context, next_offset, position))
}
