//! Appends frames. One owner, no locks: frames are collected, written in one go, and acknowledged
//! after one sync.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::storage::{File, Storage};

use super::frame::{self, Frame, Header, Kind};
use super::segment::{self, SegmentHeader};
use super::space::{LEAST_SEGMENT, Room, SMALL_FRAME};
use super::{LastFrame, Recovered, WalError, recovery};

/// Collected bytes above which they are written before the sync.
const WRITE_BYTES: usize = 4 << 20;

/// How the log is kept.
#[derive(Debug, Clone)]
pub struct WalOptions {
    pub folder: PathBuf,
    pub instance: u16,
    /// The LSN before the instance's first one.
    pub zero: u64,
    /// Bytes of a segment, allocated before use.
    pub segment_bytes: u64,
    /// Bytes that all segments may take; the last segment's worth of them is for control frames
    /// alone. None: as many as the disk has.
    pub budget: Option<u64>,
    /// Bytes of the disk that records leave alone, for snapshots and control frames.
    pub floor: u64,
}

/// The log's writing end.
pub struct Wal {
    storage: Arc<dyn Storage>,
    options: WalOptions,
    log_id: u64,
    segments: Vec<Segment>,
    current: Option<Current>,
    buffer: Vec<u8>,
    next_lsn: u64,
    synced_lsn: u64,
    /// Every view has committed everything up to here, and the operators are saved.
    committed: u64,
    /// The frame appended last, where it lies in the present segment.
    last_frame: Option<LastFrame>,
    poisoned: bool,
}

struct Segment {
    first_lsn: u64,
    bytes: u64,
}

struct Current {
    file: Arc<dyn File>,
    size: u64,
    /// Where the next byte of the buffer goes.
    at: u64,
    /// When it was allocated there was room for what views make of it: what fits into it needs no
    /// other look at the disk.
    is_reserved: bool,
}

impl Wal {
    /// Opens the log, cutting a torn tail. `new_log_id` names the log if there is none yet;
    /// `views_at` is the highest position that a view has committed.
    pub fn open(
        storage: Arc<dyn Storage>,
        options: WalOptions,
        new_log_id: u64,
        views_at: u64,
    ) -> Result<(Self, Recovered), WalError> {
        storage
            .create_folder(&options.folder)
            .map_err(WalError::io(&options.folder))?;
        let mut found = recovery::open(
            &*storage,
            &options.folder,
            options.instance,
            options.zero,
            views_at,
            true,
        )?;
        if found.segments.is_empty() {
            found.log_id = new_log_id;
        }
        let current = found.tail.take().map(|t| Current {
            file: t.file,
            size: t.size,
            at: t.at,
            is_reserved: true,
        });
        let segments = found.segments.iter().map(|first_lsn| {
            let path = segment::path(&options.folder, *first_lsn);
            let bytes = storage
                .open_read_only(&path)
                .and_then(|f| f.size())
                .map_err(WalError::io(&path))?;
            Ok(Segment {
                first_lsn: *first_lsn,
                bytes,
            })
        });
        let segments = segments.collect::<Result<_, WalError>>()?;
        let wal = Self {
            storage,
            log_id: found.log_id,
            segments,
            current,
            buffer: Vec::new(),
            next_lsn: found.last_lsn + 1,
            synced_lsn: found.last_lsn,
            committed: options.zero,
            last_frame: found.last_frame,
            poisoned: false,
            options,
        };
        Ok((wal, found))
    }

    /// Reads the log's end without changing anything, for a reader beside a stopped writer.
    pub fn peek(
        storage: &dyn Storage,
        options: &WalOptions,
        views_at: u64,
    ) -> Result<Recovered, WalError> {
        recovery::open(
            storage,
            &options.folder,
            options.instance,
            options.zero,
            views_at,
            false,
        )
    }

    /// The id of the log in a folder; none where there is no log.
    pub fn log_id_of(storage: &dyn Storage, folder: &Path) -> Result<Option<u64>, WalError> {
        recovery::log_id(storage, folder)
    }

    pub fn log_id(&self) -> u64 {
        self.log_id
    }

    /// Everything up to this LSN is on the disk.
    pub fn synced_lsn(&self) -> u64 {
        self.synced_lsn
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.bytes).sum()
    }

    /// Whether so many more bytes of segments are more than a frame of this kind may use: records
    /// leave the last segment's worth of the budget to control frames, also where one of these has
    /// begun that segment.
    fn is_over_budget(&self, more_bytes: u64, kind: Kind) -> bool {
        let segment = self.options.segment_bytes;
        let reserved = if kind.holds_records() { segment } else { 0 };
        self.options
            .budget
            .is_some_and(|budget| self.bytes() + more_bytes + reserved > budget.max(3 * segment))
    }

    /// Whether records find room in a new segment within the budget.
    fn has_room_for_segment(&self) -> bool {
        !self.is_over_budget(self.options.segment_bytes, Kind::Record)
            && self
                .room()
                .segment(self.options.segment_bytes, self.least_segment(0))
                .is_some()
    }

    /// Whether records find room: in a new segment, or a small frame in the present one.
    pub fn has_room(&self) -> bool {
        let has_rest = self
            .current
            .as_ref()
            .is_some_and(|c| c.size - c.at >= SMALL_FRAME);
        self.has_room_for_segment()
            || has_rest
                && !self.is_over_budget(0, Kind::Record)
                && self.may_grow(self.buffer.len(), SMALL_FRAME, Kind::Record)
    }

    /// Whether a frame of so many bytes may follow the `buffered` ones in the present segment, as
    /// far as the disk is concerned.
    fn may_grow(&self, buffered: usize, bytes: u64, kind: Kind) -> bool {
        let is_reserved = self
            .current
            .as_ref()
            .is_some_and(|current| current.is_reserved);
        is_reserved || !kind.holds_records() || self.room_beside(buffered).fits(bytes)
    }

    /// Everything up to here is in every view, and recovery begins there at the earliest.
    pub fn set_committed(&mut self, lsn: u64) {
        self.committed = self.committed.max(lsn);
    }

    /// Where records find no room for a segment and the present one holds nothing that is needed
    /// any more, a small one takes its place, so that it can be removed. True: it did.
    pub fn leave_committed_segment(&mut self) -> Result<bool, WalError> {
        let least = self.least_segment(0);
        let is_committed = self.committed + 1 >= self.next_lsn;
        let is_large = self
            .segments
            .last()
            .is_some_and(|s| s.bytes > 2 * least && s.first_lsn < self.next_lsn);
        if !is_committed || !is_large || self.has_room_for_segment() {
            return Ok(false);
        }
        self.roll(least, false)?;
        Ok(true)
    }

    fn least_segment(&self, frame_bytes: u64) -> u64 {
        self.options
            .segment_bytes
            .min(LEAST_SEGMENT)
            .max(frame_bytes + segment::HEADER_BYTES as u64)
    }

    fn room(&self) -> Room {
        self.room_beside(self.buffer.len())
    }

    fn room_beside(&self, buffered: usize) -> Room {
        let ends = self
            .segments
            .iter()
            .skip(1)
            .map(|s| s.first_lsn)
            .chain([self.next_lsn]);
        let pending = self
            .segments
            .iter()
            .zip(ends)
            .filter(|(_, end)| *end > self.committed + 1);
        let pending = pending.map(|(segment, end)| match &self.current {
            Some(current) if end == self.next_lsn => current.at + buffered as u64,
            _ => segment.bytes,
        });
        Room {
            free: self.storage.free(&self.options.folder),
            pending: pending.sum(),
            floor: self.options.floor,
        }
    }

    /// The size of a new segment for this frame, and whether there is room for what views make of a
    /// whole one.
    fn new_segment(&self, kind: Kind, frame_bytes: u64) -> Result<(u64, bool), WalError> {
        let least = self.least_segment(frame_bytes);
        let wanted = self.options.segment_bytes.max(least);
        let room = self.room();
        if self.is_over_budget(wanted, kind) {
            return Err(self.over_budget());
        }
        if !kind.holds_records() {
            let bytes = room.control_segment(wanted, least);
            return Ok((bytes, room.segment(bytes, bytes).is_some()));
        }
        room.segment(wanted, least)
            .map(|bytes| (bytes, true))
            .ok_or_else(|| no_room(&room))
    }

    fn over_budget(&self) -> WalError {
        WalError::Budget {
            bytes: self.bytes(),
            budget: self.options.budget.unwrap_or_default(),
        }
    }

    pub fn folder(&self) -> &Path {
        &self.options.folder
    }

    /// Numbers the frame's records and takes it into the next write. It is not durable before
    /// [`Wal::sync`].
    ///
    /// A full disk where a new segment should be allocated, or a budget that is spent, is an error
    /// that changes nothing ([`WalError::is_full`]).
    pub fn append(&mut self, frame: &mut Frame) -> Result<(), WalError> {
        let before = self.buffer.len();
        frame.header.first_lsn = self.next_lsn;
        frame.header.synced_lsn = self.synced_lsn;
        frame::encode(frame, &mut self.buffer);
        let length = self.buffer.len() - before;
        if length > frame::MAX_FRAME_BYTES {
            self.buffer.truncate(before);
            return Err(WalError::TooLarge { bytes: length });
        }
        let fits = self
            .current
            .as_ref()
            .is_some_and(|c| c.at + self.buffer.len() as u64 <= c.size);
        if fits && self.is_over_budget(0, frame.header.kind) {
            self.buffer.truncate(before);
            return Err(self.over_budget());
        }
        if fits && !self.may_grow(before, length as u64, frame.header.kind) {
            self.buffer.truncate(before);
            return Err(no_room(&self.room()));
        }
        if !fits {
            self.buffer.truncate(before);
            let (bytes, is_reserved) = self.new_segment(frame.header.kind, length as u64)?;
            self.roll(bytes, is_reserved)?;
            // The frames before it are synced now, which this one may say.
            frame.header.synced_lsn = self.synced_lsn;
            frame::encode(frame, &mut self.buffer);
        }
        let offset = self
            .current
            .as_ref()
            .map(|c| c.at + (self.buffer.len() - length) as u64);
        let Header {
            kind, first_lsn, ..
        } = frame.header;
        self.last_frame = offset.map(|offset| LastFrame {
            kind,
            first_lsn,
            offset,
        });
        self.next_lsn = frame.header.last_lsn() + 1;
        if self.buffer.len() >= WRITE_BYTES {
            self.write()?;
        }
        Ok(())
    }

    /// Writes and syncs what was appended; returns the LSN up to which everything is durable.
    pub fn sync(&mut self) -> Result<u64, WalError> {
        if self.synced_lsn + 1 == self.next_lsn {
            return Ok(self.synced_lsn);
        }
        self.write()?;
        if let Some(current) = &self.current
            && let Err(source) = current.file.sync()
        {
            self.poisoned = true;
            return Err(WalError::Sync { source });
        }
        self.synced_lsn = self.next_lsn - 1;
        Ok(self.synced_lsn)
    }

    /// Takes the last frame back, as if it had never been appended. Only while nothing has seen it:
    /// its numbers are given again.
    ///
    /// A crash before this is durable leaves the frame whole, or a torn tail that the next opening
    /// cuts.
    pub fn take_back(&mut self) -> Result<(), WalError> {
        self.sync()?;
        let (Some(last), Some(current)) = (self.last_frame.take(), &mut self.current) else {
            return Ok(());
        };
        let zeros = vec![0; current.at.saturating_sub(last.offset) as usize];
        if let Err(source) = current
            .file
            .write_all_at(&zeros, last.offset)
            .and_then(|()| current.file.sync())
        {
            self.poisoned = true;
            return Err(WalError::Sync { source });
        }
        current.at = last.offset;
        self.next_lsn = last.first_lsn;
        self.synced_lsn = last.first_lsn - 1;
        Ok(())
    }

    /// Removes the segment that begins with this LSN; never the last one.
    pub fn remove_segment(&mut self, first_lsn: u64) -> Result<(), WalError> {
        if self
            .segments
            .last()
            .is_some_and(|last| last.first_lsn == first_lsn)
        {
            return Ok(());
        }
        let path = segment::path(&self.options.folder, first_lsn);
        self.storage.remove(&path).map_err(WalError::io(&path))?;
        self.segments.retain(|s| s.first_lsn != first_lsn);
        Ok(())
    }

    fn write(&mut self) -> Result<(), WalError> {
        if self.poisoned {
            return Err(WalError::Sync {
                source: std::io::Error::other("an earlier write or sync failed"),
            });
        }
        if let Some(current) = self.current.as_mut().filter(|_| !self.buffer.is_empty()) {
            if let Err(source) = current.file.write_all_at(&self.buffer, current.at) {
                // What reached the file is unknown, and numbers have been given: only a fresh start
                // reads the truth.
                self.poisoned = true;
                return Err(WalError::Sync { source });
            }
            current.at += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Goes on to a new segment of this size, after syncing the present one whole.
    fn roll(&mut self, bytes: u64, is_reserved: bool) -> Result<(), WalError> {
        self.sync()?;
        // Should making the segment fail half way, the next frame must not go into the old one: it
        // would lie behind the new name.
        self.current = None;
        let header = SegmentHeader {
            instance: self.options.instance,
            log_id: self.log_id,
            first_lsn: self.next_lsn,
        };
        let path = segment::path(&self.options.folder, self.next_lsn);
        let file = self
            .storage
            .create(&path, bytes, &segment::encode(&header))
            .map_err(WalError::io(&path))?;
        // A segment that holds no frame has the same first LSN and was just replaced.
        self.segments.retain(|s| s.first_lsn != self.next_lsn);
        self.segments.push(Segment {
            first_lsn: self.next_lsn,
            bytes,
        });
        self.current = Some(Current {
            file,
            size: bytes,
            at: segment::HEADER_BYTES as u64,
            is_reserved,
        });
        Ok(())
    }
}

fn no_room(room: &Room) -> WalError {
    WalError::NoRoom {
        free: room.free.unwrap_or_default(),
    }
}
