//! Appends frames. One owner, no locks: frames are buffered, written together, and acknowledged
//! after one sync.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::storage::{File, Storage};

use super::frame::{self, Frame, Header, Kind};
use super::recovery::LogLocation;
use super::segment::{self, SegmentHeader};
use super::space::{DiskSpace, MIN_SEGMENT_BYTES, SMALL_FRAME_BYTES};
use super::{LastFrame, Recovered, WalError, recovery};

/// Size of the buffer above which it is written before the next sync.
const WRITE_BYTES: usize = 4 << 20;

/// Where the log is, and how large it may grow.
#[derive(Debug, Clone)]
pub struct WalOptions {
    /// The folder of the segments, created if it does not exist.
    pub folder: PathBuf,
    /// The instance whose LSNs the log has: 0 to 1023.
    pub instance: u16,
    /// The LSN before the instance's first one.
    pub start_lsn: u64,
    /// Size of a segment, allocated before use.
    pub segment_bytes: u64,
    /// Maximum size of all segments; the last segment's worth of it is reserved for control frames.
    /// `None`: limited by the disk only.
    pub budget: Option<u64>,
    /// Bytes of the disk that records must leave free, for snapshots and control frames.
    pub reserved_disk_bytes: u64,
}

impl WalOptions {
    fn location(&self) -> LogLocation<'_> {
        LogLocation {
            folder: &self.folder,
            instance: self.instance,
            start_lsn: self.start_lsn,
        }
    }
}

/// The log's writer.
pub struct Wal {
    storage: Arc<dyn Storage>,
    options: WalOptions,
    log_id: u64,
    segments: Vec<Segment>,
    current: Option<CurrentSegment>,
    buffer: Vec<u8>,
    next_lsn: u64,
    synced_lsn: u64,
    /// Every view has committed everything up to here, and a snapshot covers it.
    committed_lsn: u64,
    /// The frame appended last, if it is in the current segment.
    last_frame: Option<LastFrame>,
    /// A write or sync failed: what the disk holds is unknown.
    is_poisoned: bool,
}

struct Segment {
    first_lsn: u64,
    bytes: u64,
}

/// The segment that frames are appended to.
struct CurrentSegment {
    file: Arc<dyn File>,
    size: u64,
    /// Where the next byte of the buffer goes.
    at: u64,
    /// When it was allocated, the disk had space for the views to commit all of it: what fits into
    /// it needs no further check.
    has_view_space: bool,
}

impl Wal {
    /// Opens the log and truncates a torn tail. `new_log_id` becomes the id of a new log;
    /// `views_at` is the highest LSN that a view has committed.
    ///
    /// # Errors
    ///
    /// If records that were synced are missing or damaged; nothing has been changed then.
    pub fn open(
        storage: Arc<dyn Storage>,
        options: WalOptions,
        new_log_id: u64,
        views_at: u64,
    ) -> Result<(Self, Recovered), WalError> {
        storage
            .create_folder(&options.folder)
            .map_err(WalError::io(&options.folder))?;
        let mut recovered = recovery::open(&*storage, &options.location(), views_at, true)?;
        if recovered.segments.is_empty() {
            recovered.log_id = new_log_id;
        }
        let current = recovered.write_position.take().map(|p| CurrentSegment {
            file: p.file,
            size: p.size,
            at: p.at,
            has_view_space: true,
        });
        let segments = recovered.segments.iter().map(|first_lsn| {
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
            log_id: recovered.log_id,
            segments,
            current,
            buffer: Vec::new(),
            next_lsn: recovered.last_lsn + 1,
            synced_lsn: recovered.last_lsn,
            committed_lsn: options.start_lsn,
            last_frame: recovered.last_frame,
            is_poisoned: false,
            options,
        };
        Ok((wal, recovered))
    }

    /// Reads the log's end without changing anything, while no writer runs.
    ///
    /// # Errors
    ///
    /// As [`Wal::open`].
    pub fn peek(
        storage: &dyn Storage,
        options: &WalOptions,
        views_at: u64,
    ) -> Result<Recovered, WalError> {
        recovery::open(storage, &options.location(), views_at, false)
    }

    /// The id of the log in a folder; `None` if there is no log.
    pub fn log_id_of(storage: &dyn Storage, folder: &Path) -> Result<Option<u64>, WalError> {
        recovery::log_id(storage, folder)
    }

    /// Identifies the log: views recognize by it that they belong to another one.
    pub fn log_id(&self) -> u64 {
        self.log_id
    }

    /// Everything up to this LSN is on the disk.
    pub fn synced_lsn(&self) -> u64 {
        self.synced_lsn
    }

    /// Size of all segments in bytes.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.bytes).sum()
    }

    /// Whether so many more bytes of segments exceed what a frame of this kind may use. Records
    /// leave the last segment's worth of the budget to control frames, even if one of these has
    /// started that segment.
    fn is_over_budget(&self, more_bytes: u64, kind: Kind) -> bool {
        let segment = self.options.segment_bytes;
        let reserved = if kind.holds_records() { segment } else { 0 };
        self.options
            .budget
            .is_some_and(|budget| self.bytes() + more_bytes + reserved > budget.max(3 * segment))
    }

    /// Whether a new segment for records fits within the budget and on the disk.
    fn has_space_for_segment(&self) -> bool {
        !self.is_over_budget(self.options.segment_bytes, Kind::Record)
            && self
                .disk_space()
                .record_segment(self.options.segment_bytes, self.min_segment_bytes(0))
                .is_some()
    }

    /// Whether records can be appended: to a new segment, or a small frame to the current one.
    pub(crate) fn has_space(&self) -> bool {
        let has_rest = self
            .current
            .as_ref()
            .is_some_and(|c| c.size - c.at >= SMALL_FRAME_BYTES);
        self.has_space_for_segment()
            || has_rest
                && !self.is_over_budget(0, Kind::Record)
                && self.may_grow(self.buffer.len(), SMALL_FRAME_BYTES, Kind::Record)
    }

    /// Whether the disk has space for a frame of `bytes` after the `buffered` bytes of the current
    /// segment.
    fn may_grow(&self, buffered: usize, bytes: u64, kind: Kind) -> bool {
        let has_view_space = self
            .current
            .as_ref()
            .is_some_and(|current| current.has_view_space);
        has_view_space || !kind.holds_records() || self.disk_space_with(buffered).fits(bytes)
    }

    /// Every view has committed everything up to here, and recovery starts there or later.
    pub(crate) fn set_committed(&mut self, lsn: u64) {
        self.committed_lsn = self.committed_lsn.max(lsn);
    }

    /// If there is no space for a segment of records and the current one is no longer needed,
    /// starts a small one, so that the current one can be removed. Returns whether it did.
    pub(crate) fn roll_past_committed_segment(&mut self) -> Result<bool, WalError> {
        let min_bytes = self.min_segment_bytes(0);
        let is_committed = self.committed_lsn + 1 >= self.next_lsn;
        let is_large = self
            .segments
            .last()
            .is_some_and(|s| s.bytes > 2 * min_bytes && s.first_lsn < self.next_lsn);
        if !is_committed || !is_large || self.has_space_for_segment() {
            return Ok(false);
        }
        self.roll(min_bytes, false)?;
        Ok(true)
    }

    fn min_segment_bytes(&self, frame_bytes: u64) -> u64 {
        self.options
            .segment_bytes
            .min(MIN_SEGMENT_BYTES)
            .max(frame_bytes + segment::HEADER_BYTES as u64)
    }

    fn disk_space(&self) -> DiskSpace {
        self.disk_space_with(self.buffer.len())
    }

    /// Space on the disk if the buffer holds `buffered` bytes.
    fn disk_space_with(&self, buffered: usize) -> DiskSpace {
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
            .filter(|(_, end)| *end > self.committed_lsn + 1);
        let pending = pending.map(|(segment, end)| match &self.current {
            Some(current) if end == self.next_lsn => current.at + buffered as u64,
            _ => segment.bytes,
        });
        DiskSpace {
            free: self.storage.free(&self.options.folder),
            pending: pending.sum(),
            reserved: self.options.reserved_disk_bytes,
        }
    }

    /// The size of a new segment for this frame, and whether the disk has space for the views to
    /// commit a full one.
    fn new_segment(&self, kind: Kind, frame_bytes: u64) -> Result<(u64, bool), WalError> {
        let min_bytes = self.min_segment_bytes(frame_bytes);
        let wanted = self.options.segment_bytes.max(min_bytes);
        let space = self.disk_space();
        if self.is_over_budget(wanted, kind) {
            return Err(self.over_budget());
        }
        if !kind.holds_records() {
            let bytes = space.control_segment(wanted, min_bytes);
            return Ok((bytes, space.record_segment(bytes, bytes).is_some()));
        }
        space
            .record_segment(wanted, min_bytes)
            .map(|bytes| (bytes, true))
            .ok_or_else(|| no_space(&space))
    }

    fn over_budget(&self) -> WalError {
        WalError::Budget {
            bytes: self.bytes(),
            budget: self.options.budget.unwrap_or_default(),
        }
    }

    /// The folder of the segments.
    pub fn folder(&self) -> &Path {
        &self.options.folder
    }

    /// Numbers the frame's records and buffers it for the next write. It is durable only after
    /// [`Wal::sync`].
    ///
    /// # Errors
    ///
    /// A full disk when a new segment must be allocated, or an exhausted budget, changes nothing:
    /// the caller may retry. After [`WalError::Sync`] the log must be reopened.
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
            return Err(no_space(&self.disk_space()));
        }
        if !fits {
            self.buffer.truncate(before);
            let (bytes, has_view_space) = self.new_segment(frame.header.kind, length as u64)?;
            self.roll(bytes, has_view_space)?;
            // Rolling has synced the frames before it.
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
    ///
    /// # Errors
    ///
    /// [`WalError::Sync`]: what the disk holds is unknown, and the log must be reopened.
    pub fn sync(&mut self) -> Result<u64, WalError> {
        if self.synced_lsn + 1 == self.next_lsn {
            return Ok(self.synced_lsn);
        }
        self.write()?;
        if let Some(current) = &self.current
            && let Err(source) = current.file.sync()
        {
            self.is_poisoned = true;
            return Err(WalError::Sync { source });
        }
        self.synced_lsn = self.next_lsn - 1;
        Ok(self.synced_lsn)
    }

    /// Removes the last frame, as if it had never been appended. Only allowed while nothing has
    /// read it, because its LSNs are reused.
    ///
    /// A crash before this is durable leaves either the complete frame or a torn tail, which the
    /// next start truncates.
    ///
    /// # Errors
    ///
    /// As [`Wal::sync`].
    pub(crate) fn remove_last_frame(&mut self) -> Result<(), WalError> {
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
            self.is_poisoned = true;
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
        if self.is_poisoned {
            return Err(WalError::Sync {
                source: std::io::Error::other("an earlier write or sync failed"),
            });
        }
        if let Some(current) = self.current.as_mut().filter(|_| !self.buffer.is_empty()) {
            if let Err(source) = current.file.write_all_at(&self.buffer, current.at) {
                // What reached the file is unknown, and LSNs have been assigned: only reopening
                // the log finds out.
                self.is_poisoned = true;
                return Err(WalError::Sync { source });
            }
            current.at += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Continues in a new segment of this size, after syncing all of the current one.
    fn roll(&mut self, bytes: u64, has_view_space: bool) -> Result<(), WalError> {
        self.sync()?;
        // If creating the segment fails half way, the next frame must not go into the old one: its
        // LSN might be at or above the new file's first one.
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
        self.current = Some(CurrentSegment {
            file,
            size: bytes,
            at: segment::HEADER_BYTES as u64,
            has_view_space,
        });
        Ok(())
    }
}

fn no_space(space: &DiskSpace) -> WalError {
    WalError::NoSpace {
        free: space.free.unwrap_or_default(),
    }
}
