//! One file that is read: from its partition's position to its end, in slices, and on when it
//! grows.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::super::lines::Item;
use super::super::{Context, SourceError, message};
use super::content::{Content, HEAD_BYTES, Records, Trail};
use super::discover::Stamp;
use super::frame::{FrameBuilder, InFlight};
use super::known::{Id, Known};
use crate::wal::{FileIdentity, Kind};

/// Frames that are taken from one file before others have their turn.
const SLICE_FRAMES: usize = 16;

/// Why reading a file stopped.
#[derive(Debug)]
pub enum ReadError {
    /// It waits; other files are read.
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

/// What a slice came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    pub was_busy: bool,
    /// There is no more at present.
    pub is_end: bool,
}

/// A file with its descriptor.
pub struct Follower {
    pub id: Id,
    /// The path that leads to it; none once it was renamed, replaced or removed.
    pub path: Option<PathBuf>,
    content: Content,
    head: Vec<u8>,
    records: Option<Records>,
    /// Records that begin here or later are not read: a run that ends takes what was there when it
    /// began.
    end: Option<u64>,
    is_finished: bool,
    /// What the system said when reading began, and when the end was reached.
    opened: Option<Stamp>,
    read: Option<Stamp>,
    /// When it was opened, or last gave something.
    pub active: Instant,
    is_dropped_told: bool,
}

impl Follower {
    pub fn new(id: Id, path: PathBuf, content: Content, head: Vec<u8>, end: Option<u64>) -> Self {
        let (records, opened, read) = (None, None, None);
        Self {
            id,
            path: Some(path),
            content,
            head,
            records,
            end,
            is_finished: false,
            opened,
            read,
            active: Instant::now(),
            is_dropped_told: false,
        }
    }

    pub fn file(&self) -> &Arc<File> {
        self.content.file()
    }

    pub fn content(&self) -> &Content {
        &self.content
    }

    /// The beginning as it was when reading began.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// Everything that is there was read.
    pub fn is_at_end(&self) -> bool {
        self.records.is_none()
            && (self.is_finished || self.read.is_some() && self.read == self.stamp().ok())
    }

    /// It has to be read on, whatever the system says of it.
    pub fn is_begun(&self) -> bool {
        self.records.is_some() || self.read.is_none()
    }

    /// Its path leads to the same content still; there may be more of it.
    pub fn look_again(&mut self) {
        if !self.is_at_end() && self.records.is_none() {
            self.read = None;
        }
    }

    /// A part was read, and reading goes on where it stopped.
    pub fn is_in_slice(&self) -> bool {
        self.records.is_some()
    }

    pub fn stamp(&self) -> io::Result<Stamp> {
        Ok(Stamp::of(&self.file().metadata()?))
    }

    /// Takes a part of what is there.
    pub fn read_slice(
        &mut self,
        context: &Context,
        known: &mut Known,
        in_flight: &mut InFlight,
    ) -> Result<Slice, ReadError> {
        let result = self.take_slice(context, known, in_flight);
        match &result {
            Ok(slice) => {
                if slice.was_busy {
                    self.active = Instant::now();
                }
                if !slice.is_end {
                    return result;
                }
                self.read = self.opened;
                self.is_finished = context.once;
            }
            Err(_) => self.read = None,
        }
        self.records = None;
        result
    }

    fn take_slice(
        &mut self,
        context: &Context,
        known: &mut Known,
        in_flight: &mut InFlight,
    ) -> Result<Slice, ReadError> {
        let mut next = known.get(self.id).state.next_offset;
        let records = match self.records.take() {
            Some(records) => records,
            None => {
                let stamp = self.stamp()?;
                if self.is_finished || self.read == Some(stamp) {
                    return Ok(Slice {
                        was_busy: false,
                        is_end: true,
                    });
                }
                self.open(context, known, stamp)?
            }
        };
        let mut records = records;
        let mut frame = FrameBuilder::new(next);
        let (mut was_busy, mut frames, mut cut, mut is_past) = (false, 0, None, false);
        let ended = loop {
            if context.stop.is_asked() || frames == SLICE_FRAMES {
                break Ok(false);
            }
            let item = match records.reader.next_item() {
                Ok(Some(item)) => item,
                Ok(None) => break Ok(true),
                Err(error) => break Err(error),
            };
            if self.end.is_some_and(|end| item.start >= end) {
                is_past = true;
                break Ok(true);
            }
            if !item.is_terminated && !message::is_whole(&item.bytes) {
                cut = Some(item);
                break Ok(true);
            }
            was_busy = true;
            frame.push(&item, context);
            next = item.end;
            if frame.is_full() {
                let full = std::mem::replace(&mut frame, FrameBuilder::with_room(next));
                self.submit(
                    context,
                    known,
                    in_flight,
                    full,
                    (next, records.crc_at(next), None),
                )?;
                frames += 1;
            }
        };
        self.tell_dropped(context, records.reader.dropped());
        let is_whole = matches!(ended, Ok(true)) && cut.is_none() && !is_past;
        let complete = self
            .opened
            .filter(|stamp| is_whole && records.has_read(stamp.size));
        if !frame.is_empty() {
            let complete = complete.map(|stamp| (stamp.size, stamp.modified));
            self.submit(
                context,
                known,
                in_flight,
                frame,
                (next, records.crc_at(next), complete),
            )?;
        }
        if let Some(trail) = records.trail_at(next) {
            known.set_trail(self.id, trail);
        }
        if let Some(item) = cut {
            self.tell_cut_line(context, known, in_flight, &records, &item)?;
        }
        let is_end = matches!(ended, Ok(true));
        self.note_moved(context, known, in_flight, complete)?;
        match ended {
            Ok(true) if context.once => self.tell_end(context, known, in_flight, complete)?,
            Ok(false) => self.records = Some(records),
            Ok(true) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Slice { was_busy, is_end })
    }

    fn open(&mut self, context: &Context, known: &Known, stamp: Stamp) -> io::Result<Records> {
        if self.head.len() < HEAD_BYTES {
            self.head = self.content.head()?.0;
        }
        let partition = known.get(self.id);
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
            context.record_bytes + 1,
        )
    }

    /// Says once which members beside the unwrapped one are no part of any record.
    fn tell_dropped(&mut self, context: &Context, members: &[String]) {
        if !members.is_empty() && !std::mem::replace(&mut self.is_dropped_told, true) {
            let (source, path) = (&context.name, self.label());
            tracing::info!(
                source,
                path,
                ?members,
                "members beside the unwrapped one are dropped"
            );
        }
    }

    /// Sends a frame; the partition continues behind it.
    fn submit(
        &self,
        context: &Context,
        known: &mut Known,
        in_flight: &mut InFlight,
        frame: FrameBuilder,
        (next, content, complete): (u64, Option<u32>, Option<(u64, u64)>),
    ) -> Result<(), SourceError> {
        let file = FileIdentity {
            content,
            complete,
            ..self.identity(known, next)?
        };
        known.set_identity(self.id, file);
        let partition = known.get_mut(self.id);
        partition.state.next_offset = next;
        partition.state.cut_line = None;
        partition.is_moved = true;
        in_flight.submit(
            context,
            frame.submission(context, Kind::Record, &partition.name, next, Some(file)),
        )
    }

    fn identity(&self, known: &Known, read: u64) -> Result<FileIdentity, SourceError> {
        let wrong = |source| SourceError::Io {
            path: self.label(),
            source,
        };
        let head = self
            .head
            .len()
            .min(usize::try_from(read).unwrap_or(HEAD_BYTES))
            .min(HEAD_BYTES);
        let inode = self.stamp().map_err(wrong)?.inode;
        Ok(FileIdentity {
            inode,
            head: head as u64,
            crc: crc32c::crc32c(&self.head[..head]),
            since: known.since,
            ..FileIdentity::default()
        })
    }

    fn label(&self) -> String {
        self.path.as_ref().map_or_else(
            || "a renamed file".to_owned(),
            |path| path.display().to_string(),
        )
    }

    /// An end without its newline waits for the rest. A run that ends tells it as a dead letter,
    /// once, and stays before it.
    fn tell_cut_line(
        &self,
        context: &Context,
        known: &mut Known,
        in_flight: &mut InFlight,
        records: &Records,
        item: &Item,
    ) -> Result<(), SourceError> {
        let told = Some((item.start, item.length));
        if !context.once || known.get(self.id).state.cut_line == told {
            return Ok(());
        }
        let mut frame = FrameBuilder::new(item.start);
        if item.length > context.record_bytes as u64 {
            frame.push(item, context);
        } else {
            frame.add(item.start, &item.bytes);
        }
        // Among elements a separator lies between the last whole record and this one: the position
        // passes it, and so must the checksum that is stored with the position.
        let trail = records.trail_at(item.start);
        let content = trail.as_ref().and_then(|trail| trail.crc);
        self.submit(
            context,
            known,
            in_flight,
            frame,
            (item.start, content, None),
        )?;
        if let Some(trail) = trail {
            known.set_trail(self.id, trail);
        }
        known.get_mut(self.id).state.cut_line = told;
        Ok(())
    }

    /// Notes that a content is in another file than before, or in a compressed one that need not be
    /// unpacked again.
    fn note_moved(
        &self,
        context: &Context,
        known: &mut Known,
        in_flight: &mut InFlight,
        complete: Option<Stamp>,
    ) -> Result<(), SourceError> {
        let Some(stamp) = complete else { return Ok(()) };
        let (before, next) = (
            known.get(self.id).file(),
            known.get(self.id).state.next_offset,
        );
        let complete = Some((stamp.size, stamp.modified));
        let is_news = before.inode != stamp.inode
            || self.content.is_compressed() && before.complete != complete;
        if next > 0 && is_news {
            let file = FileIdentity {
                content: before.content,
                complete,
                ..self.identity(known, next)?
            };
            self.note_identity(context, known, in_flight, file)?;
        }
        Ok(())
    }

    /// Notes that there is no more, and with `complete` of which file.
    fn tell_end(
        &self,
        context: &Context,
        known: &mut Known,
        in_flight: &mut InFlight,
        complete: Option<Stamp>,
    ) -> Result<(), SourceError> {
        if std::mem::take(&mut known.get_mut(self.id).is_moved) {
            let before = known.get(self.id).file();
            let complete = complete
                .map(|stamp| (stamp.size, stamp.modified))
                .or(before.complete);
            self.note_identity(
                context,
                known,
                in_flight,
                FileIdentity { complete, ..before },
            )?;
        }
        Ok(())
    }

    /// Notes which file holds the partition.
    fn note_identity(
        &self,
        context: &Context,
        known: &mut Known,
        in_flight: &mut InFlight,
        file: FileIdentity,
    ) -> Result<(), SourceError> {
        known.set_identity(self.id, file);
        note_end(context, known, self.id, in_flight)
    }
}

/// Notes where a partition ends, with what its file is.
pub fn note_end(
    context: &Context,
    known: &Known,
    id: Id,
    in_flight: &mut InFlight,
) -> Result<(), SourceError> {
    let partition = known.get(id);
    let next = partition.state.next_offset;
    let mut end = FrameBuilder::new(next);
    end.add_payload();
    in_flight.submit(
        context,
        end.submission(
            context,
            Kind::PartitionEnd,
            &partition.name,
            next,
            partition.state.file,
        ),
    )
}
