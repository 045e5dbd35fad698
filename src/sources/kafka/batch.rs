//! Messages of one partition → one frame of the log.

use std::time::{Duration, Instant};

use super::super::batcher::{BatchLimits, RecordBatcher};
use super::super::{Context, message};
use crate::bounds::MAX_ELEMENTS;
use crate::ingest::Submission;
use crate::message::MessageMetadata;
use crate::wal::{FrameAttributes, Kind, LastRecord};

/// Records and bytes that fill a frame.
const FRAME_RECORDS: usize = 1_024;
const FRAME_BYTES: usize = 1 << 20;
/// Bytes of one message in a frame, with key and headers repeated in each of its records.
const MAX_STORED_BYTES: usize = 16 << 20;
/// How long the first message of a frame waits for others.
pub(super) const BATCH_DELAY: Duration = Duration::from_millis(50);

/// The records of consecutive messages of a partition, with their offsets.
pub(super) struct Batch {
    batcher: RecordBatcher,
    /// Per record the offset of its message: messages with several records repeat it.
    offsets: Vec<u64>,
    /// Per record what its message carries beside its value.
    messages: Vec<MessageMetadata>,
    /// The offset at which the batch begins, and the one after its last message. There may be
    /// offsets without a record between them: those of removed records and of transactions.
    previous_offset: u64,
    next_offset: u64,
    /// The last message.
    last_record: Option<LastRecord>,
    bytes: usize,
    started: Instant,
}

impl Batch {
    pub fn new(context: &Context, previous_offset: u64) -> Self {
        Self {
            batcher: RecordBatcher::new(BatchLimits {
                record: context.record_limits,
                frame_records: FRAME_RECORDS,
                frame_bytes: FRAME_BYTES,
            }),
            offsets: Vec::new(),
            messages: Vec::new(),
            previous_offset,
            next_offset: previous_offset,
            last_record: None,
            bytes: 0,
            started: Instant::now(),
        }
    }

    /// Adds a message. Without a payload it is a record without bytes, whose metadata says what
    /// becomes of it.
    pub fn push(
        &mut self,
        context: &Context,
        record: LastRecord,
        payload: &[u8],
        metadata: &MessageMetadata,
    ) {
        let size = payload.len() + metadata.heap_bytes();
        let is_rejected = metadata.rejected.is_some();
        let stored = match is_rejected {
            true => size,
            false => stored_bytes(context, payload, metadata.heap_bytes()),
        };
        let offset = record.offset;
        self.next_offset = offset + 1;
        self.last_record = Some(record);
        self.bytes += stored.min(MAX_STORED_BYTES);
        if context.record_limits.is_exceeded_by(size as u64) || stored > MAX_STORED_BYTES {
            // One record, without key and headers: they are part of what is too long.
            self.batcher.push_prefix(payload, size.max(stored) as u64);
            self.offsets.push(offset);
            self.messages.push(MessageMetadata {
                timestamp_ms: metadata.timestamp_ms,
                ..MessageMetadata::default()
            });
            return;
        }
        let (batcher, offsets, messages) =
            (&mut self.batcher, &mut self.offsets, &mut self.messages);
        let mut push = |record: &[u8]| {
            offsets.push(offset);
            messages.push(metadata.clone());
            batcher.push(record);
        };
        // A message with too many records is one record, which the decoder rejects with this reason,
        // and so is an empty one, and one that is not JSON.
        let is_one_record = is_rejected
            || payload.trim_ascii().is_empty()
            || message::has_more_than(payload, MAX_ELEMENTS);
        if is_one_record {
            push(payload);
        } else {
            message::each_at(payload, context.unwrap.as_deref(), &mut |_, record| {
                push(record);
            });
        }
    }

    /// Bytes of its messages, with keys and headers.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn is_full(&self) -> bool {
        self.batcher.is_full() || self.bytes >= FRAME_BYTES
    }

    /// Whether its first message has waited long enough for others.
    pub fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.started) >= BATCH_DELAY
    }

    /// The frame, after which the partition continues; none if all messages are empty arrays, which
    /// have no records.
    pub fn finish(self, context: &Context, stream: &str, partition: &str) -> Option<Submission> {
        if self.batcher.is_empty() {
            return None;
        }
        let frame = self.batcher.finish().into_submission(&context.name, stream);
        Some(Submission {
            partition: partition.to_owned(),
            first_offset: self
                .offsets
                .first()
                .copied()
                .unwrap_or(self.previous_offset),
            previous_offset: self.previous_offset,
            attributes: FrameAttributes {
                offsets: self.offsets,
                messages: self.messages,
                next_offset: Some(self.next_offset),
                last_record: self.last_record,
                ..frame.attributes
            },
            ..frame
        })
    }

    /// The offset after its last message.
    pub fn next_offset(&self) -> u64 {
        self.next_offset
    }
}

/// Bytes that a message takes in a frame: key and headers, of `metadata_bytes`, are stored with each
/// of its records, so that an array with a long key may become very large.
fn stored_bytes(context: &Context, payload: &[u8], metadata_bytes: usize) -> usize {
    // A record takes a byte and a comma at least.
    let max_records = payload.len() / 2 + 1;
    let most = payload.len() + max_records.saturating_mul(metadata_bytes);
    if most <= MAX_STORED_BYTES {
        return payload.len() + metadata_bytes;
    }
    let mut records = 0;
    message::each_at(payload, context.unwrap.as_deref(), &mut |_, _| records += 1);
    payload.len() + metadata_bytes.saturating_mul(records.max(1))
}

/// A control frame that stores where a partition continues, after which record.
pub(super) fn position_frame(
    context: &Context,
    stream: &str,
    partition: &str,
    next_offset: u64,
    last_record: Option<LastRecord>,
) -> Submission {
    Submission {
        source: context.name.clone(),
        partition: partition.to_owned(),
        first_offset: next_offset,
        previous_offset: next_offset,
        attributes: FrameAttributes {
            next_offset: Some(next_offset),
            last_record,
            ..FrameAttributes::default()
        },
        ..Submission::control(Kind::PartitionEnd, stream, b"")
    }
}
