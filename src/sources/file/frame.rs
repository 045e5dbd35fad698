//! Records of one partition → frames, and frames on their way to the disk.

use std::collections::VecDeque;
use std::time::Duration;

use super::super::batcher::{BatchLimits, RecordBatcher, RecordLimits};
use super::super::lines::Item;
use super::super::{Context, SourceError, message};
use crate::bounds::MAX_ELEMENTS;
use crate::ingest::{Receipt, Submission};
use crate::wal::{FileIdentity, FrameAttributes, Kind};

/// Bytes and records that fill a frame.
const FRAME_BYTES: usize = 1 << 20;
const FRAME_RECORDS: usize = 1_024;
/// Frames, and their bytes, on their way to the disk before the source waits for the first: many
/// small files share a sync.
const MAX_IN_FLIGHT_FRAMES: usize = 128;
const MAX_IN_FLIGHT_BYTES: usize = 8 << 20;

/// Limits of the frames of files.
pub(in crate::sources) fn batch_limits(context: &Context) -> BatchLimits {
    BatchLimits {
        record: context.record_limits,
        frame_records: FRAME_RECORDS,
        frame_bytes: FRAME_BYTES,
    }
}

/// A record of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record<'a> {
    /// Offset of its first byte in the content, and its length there.
    pub start: u64,
    pub length: u64,
    /// Its bytes, or a prefix of them where there are more than `[limits] record` allows.
    pub bytes: &'a [u8],
}

/// Calls `visit` with each record of a line or element; of one over the limit with its prefix.
pub(super) fn each_record(item: &Item, limits: &RecordLimits, visit: &mut dyn FnMut(Record<'_>)) {
    let Item { start, length, .. } = *item;
    if limits.is_exceeded_by(length) {
        let bytes = &item.bytes[..item.bytes.len().min(limits.truncated_bytes)];
        return visit(Record {
            start,
            length,
            bytes,
        });
    }
    // Offsets are resumed between lines only, so a line's records share a frame. A line with too
    // many records is one record, which the decoder rejects with this reason.
    if message::has_more_than(&item.bytes, MAX_ELEMENTS) {
        return visit(Record {
            start,
            length,
            bytes: &item.bytes,
        });
    }
    message::each_at(&item.bytes, None, &mut |at, bytes| {
        visit(Record {
            start: start + at as u64,
            length: bytes.len() as u64,
            bytes,
        });
    });
}

/// Where a frame belongs in its partition.
pub(in crate::sources) struct FramePosition<'a> {
    /// Name of the partition.
    pub partition: &'a str,
    /// Where the partition continues after the frame.
    pub next_offset: u64,
    /// What recognizes the file when reading resumes after the frame.
    pub file: Option<FileIdentity>,
}

/// Records of the next frame, with their offsets.
pub(in crate::sources) struct FrameBuilder {
    batcher: RecordBatcher,
    limits: RecordLimits,
    offsets: Vec<u64>,
    first_offset: u64,
}

impl FrameBuilder {
    /// An empty frame of which the first record would be at this offset.
    pub fn new(context: &Context, first_offset: u64) -> Self {
        Self {
            batcher: RecordBatcher::new(batch_limits(context)),
            limits: context.record_limits,
            offsets: Vec::new(),
            first_offset,
        }
    }

    /// For a frame that will probably be full.
    pub fn with_capacity(context: &Context, first_offset: u64) -> Self {
        Self {
            batcher: RecordBatcher::with_capacity(batch_limits(context)),
            offsets: Vec::with_capacity(FRAME_RECORDS),
            ..Self::new(context, first_offset)
        }
    }

    /// Adds the records of a line or element.
    pub fn push(&mut self, item: &Item) {
        let limits = self.limits;
        each_record(item, &limits, &mut |record| {
            self.push_record(record.start, &record);
        });
    }

    /// Adds a line or element as one record.
    pub(super) fn push_unsplit(&mut self, item: &Item) {
        self.offsets.push(item.start);
        self.batcher.push_prefix(&item.bytes, item.length);
    }

    pub(super) fn push_record(&mut self, offset: u64, record: &Record<'_>) {
        self.offsets.push(offset);
        self.batcher.push_prefix(record.bytes, record.length);
    }

    pub fn is_empty(&self) -> bool {
        self.batcher.is_empty()
    }

    /// Whether it has as many records or bytes as a frame may have.
    pub fn is_full(&self) -> bool {
        self.batcher.is_full()
    }

    /// The frame, ready for the log.
    pub fn finish(self, context: &Context, position: FramePosition<'_>) -> Submission {
        let first_offset = self.first_offset;
        let batch = self.batcher.finish();
        let frame = batch.into_submission(&context.name, &context.stream);
        let attributes = FrameAttributes {
            offsets: self.offsets,
            ..frame.attributes
        };
        position.apply(Submission {
            first_offset,
            attributes,
            ..frame
        })
    }
}

impl FramePosition<'_> {
    fn apply(self, frame: Submission) -> Submission {
        Submission {
            partition: self.partition.to_owned(),
            previous_offset: frame.first_offset,
            attributes: FrameAttributes {
                next_offset: Some(self.next_offset),
                file: self.file,
                ..frame.attributes
            },
            ..frame
        }
    }
}

/// The control frame that records the end of a partition, which was read up to `offset`.
pub(in crate::sources) fn partition_end(
    context: &Context,
    offset: u64,
    position: FramePosition<'_>,
) -> Submission {
    position.apply(Submission {
        source: context.name.clone(),
        first_offset: offset,
        ..Submission::control(Kind::PartitionEnd, &context.stream, b"")
    })
}

/// Frames on their way to the disk, in order.
#[derive(Default)]
pub(in crate::sources) struct InFlight {
    receipts: VecDeque<(Receipt, usize)>,
    bytes: usize,
}

impl InFlight {
    /// Sends a frame to the log; waits while too much is in flight, or while a view is too far
    /// behind.
    pub fn submit(&mut self, context: &Context, submission: Submission) -> Result<(), SourceError> {
        // A program that writes into a pipe can wait as a file can.
        while !(context.wait_for_room)(Duration::from_secs(1)) && !context.stop.is_requested() {}
        let bytes = submission.records.page().len();
        self.receipts
            .push_back((context.ingest.submit(submission, true)?, bytes));
        self.bytes += bytes;
        while self.receipts.len() >= MAX_IN_FLIGHT_FRAMES || self.bytes >= MAX_IN_FLIGHT_BYTES {
            self.wait_oldest()?;
        }
        Ok(())
    }

    /// Waits until every frame is on the disk.
    pub fn wait_all(&mut self) -> Result<(), SourceError> {
        while !self.receipts.is_empty() {
            self.wait_oldest()?;
        }
        Ok(())
    }

    fn wait_oldest(&mut self) -> Result<(), SourceError> {
        if let Some((receipt, bytes)) = self.receipts.pop_front() {
            self.bytes -= bytes;
            receipt.wait()?;
        }
        Ok(())
    }
}
