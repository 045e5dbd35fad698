//! Records of one partition → frames, and frames on their way to the disk.

use std::collections::VecDeque;
use std::time::Duration;

use super::super::lines::Item;
use super::super::{Context, SourceError, message};
use crate::bounds::MAX_ELEMENTS;
use crate::ingest::{Receipt, Submission};
use crate::wal::{FileIdentity, FrameAttributes, Kind, RecordsBuilder};

/// Bytes and records that make a frame.
const FRAME_BYTES: usize = 1 << 20;
const FRAME_RECORDS: usize = 1_024;
/// Frames, and their bytes, on their way to the disk before the source waits for the first: many
/// small files share a sync.
const IN_FLIGHT_FRAMES: usize = 128;
const IN_FLIGHT_BYTES: usize = 8 << 20;

/// A record of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// Where it begins in the content, and its length there.
    pub start: u64,
    pub length: u64,
    /// Its bytes, or the first of them, where there are more than `[limits] record` allows.
    pub bytes: &'a [u8],
}

impl Record<'_> {
    pub fn is_cut(&self, context: &Context) -> bool {
        self.length > context.record_bytes as u64
    }
}

/// Gives the records of a line or element; of one over the limit its beginning.
pub fn each_record(item: &Item, context: &Context, give: &mut dyn FnMut(Record<'_>)) {
    let Item { start, length, .. } = *item;
    if length > context.record_bytes as u64 {
        let bytes = &item.bytes[..item.bytes.len().min(context.cut_bytes)];
        return give(Record {
            start,
            length,
            bytes,
        });
    }
    // A position lies between lines, so a line's records share a frame. Of one that holds too many
    // the decoder says so.
    if message::has_more_than(&item.bytes, MAX_ELEMENTS) {
        return give(Record {
            start,
            length,
            bytes: &item.bytes,
        });
    }
    message::each_at(&item.bytes, None, &mut |at, bytes| {
        give(Record {
            start: start + at as u64,
            length: bytes.len() as u64,
            bytes,
        });
    });
}

/// Records of the next frame.
pub struct FrameBuilder {
    records: RecordsBuilder,
    offsets: Vec<u64>,
    cut: Vec<(u64, u64)>,
    first_offset: u64,
}

impl FrameBuilder {
    pub fn new(first_offset: u64) -> Self {
        Self {
            records: RecordsBuilder::default(),
            offsets: Vec::new(),
            cut: Vec::new(),
            first_offset,
        }
    }

    /// For a frame that will probably be full.
    pub fn with_room(first_offset: u64) -> Self {
        let records = RecordsBuilder::with_capacity(FRAME_BYTES + (64 << 10), FRAME_RECORDS);
        Self {
            records,
            offsets: Vec::with_capacity(FRAME_RECORDS),
            cut: Vec::new(),
            first_offset,
        }
    }

    /// Adds the records of a line or element; of one over the limit its beginning.
    pub fn push(&mut self, item: &Item, context: &Context) {
        each_record(item, context, &mut |record| {
            self.add_record(record.start, &record, context);
        });
    }

    /// Adds a record, or the beginning of one over the limit.
    pub fn add_record(&mut self, offset: u64, record: &Record<'_>, context: &Context) {
        if record.is_cut(context) {
            self.cut.push((self.records.len() as u64, record.length));
        }
        self.add(offset, record.bytes);
    }

    pub fn add(&mut self, offset: u64, record: &[u8]) {
        self.offsets.push(offset);
        self.records.push(record);
    }

    /// Adds the empty payload of a control frame.
    pub fn add_payload(&mut self) {
        self.records.push(b"");
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.records.len() >= FRAME_RECORDS || self.records.bytes() >= FRAME_BYTES
    }

    /// The frame as the log's writer takes it; the partition continues at `next`.
    pub fn submission(
        self,
        context: &Context,
        kind: Kind,
        partition: &str,
        next: u64,
        file: Option<FileIdentity>,
    ) -> Submission {
        Submission {
            kind,
            source: context.name.clone(),
            partition: partition.to_owned(),
            stream: context.stream.clone(),
            first_offset: self.first_offset,
            previous_offset: self.first_offset,
            records: self.records.finish(),
            attributes: FrameAttributes {
                offsets: self.offsets,
                next_offset: Some(next),
                file,
                cut: self.cut,
                ..FrameAttributes::default()
            },
        }
    }
}

/// Frames on their way to the disk, in order.
#[derive(Default)]
pub struct InFlight {
    receipts: VecDeque<(Receipt, usize)>,
    bytes: usize,
}

impl InFlight {
    /// Sends a frame to the log; waits while too much is on its way, or views are too far behind.
    pub fn submit(&mut self, context: &Context, submission: Submission) -> Result<(), SourceError> {
        // Whoever writes into a pipe can wait as a file can.
        while !(context.wait_for_room)(Duration::from_secs(1)) && !context.stop.is_asked() {}
        let bytes = submission.records.page().len();
        self.receipts
            .push_back((context.ingest.submit(submission, true)?, bytes));
        self.bytes += bytes;
        while self.receipts.len() >= IN_FLIGHT_FRAMES || self.bytes >= IN_FLIGHT_BYTES {
            self.settle_oldest()?;
        }
        Ok(())
    }

    /// Waits until all of it is on the disk.
    pub fn settle(&mut self) -> Result<(), SourceError> {
        while !self.receipts.is_empty() {
            self.settle_oldest()?;
        }
        Ok(())
    }

    fn settle_oldest(&mut self) -> Result<(), SourceError> {
        if let Some((receipt, bytes)) = self.receipts.pop_front() {
            self.bytes -= bytes;
            receipt.wait()?;
        }
        Ok(())
    }
}
