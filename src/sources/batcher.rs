//! Records → batches, each of which becomes one frame of the log: the only place that truncates
//! records that are too long, and that limits how many records and bytes a frame has.

use crate::ingest::Submission;
use crate::wal::{FrameAttributes, Kind, Records, RecordsBuilder};

/// How long a record may be, and what is stored of a longer one.
#[derive(Debug, Clone, Copy)]
pub struct RecordLimits {
    /// `[limits] record`: a longer record is truncated and becomes a dead letter.
    pub max_bytes: usize,
    /// `[limits] dead_letter`: bytes stored of a truncated record.
    pub truncated_bytes: usize,
}

impl RecordLimits {
    /// Whether a record of this length is truncated.
    pub(crate) fn is_exceeded_by(&self, length: u64) -> bool {
        length > self.max_bytes as u64
    }
}

/// Limits of one batch, which is full once it reaches one of them. The last record may exceed them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchLimits {
    /// Applied to each record.
    pub record: RecordLimits,
    /// Number of records at which a batch is full.
    pub frame_records: usize,
    /// Bytes of records, with their lengths, at which a batch is full.
    pub frame_bytes: usize,
}

impl BatchLimits {
    /// For a request, which is one frame however many records it has.
    pub fn unbounded(record: RecordLimits) -> Self {
        Self {
            record,
            frame_records: usize::MAX,
            frame_bytes: usize::MAX,
        }
    }
}

/// Room for the record that fills a batch, in bytes.
const LAST_RECORD_BYTES: usize = 64 << 10;

/// Collects the records of one frame.
pub(crate) struct RecordBatcher {
    limits: BatchLimits,
    records: RecordsBuilder,
    truncated: Vec<(u64, u64)>,
}

impl RecordBatcher {
    /// An empty batch.
    pub fn new(limits: BatchLimits) -> Self {
        Self {
            limits,
            records: RecordsBuilder::default(),
            truncated: Vec::new(),
        }
    }

    /// Allocates at once for a batch that will probably be full.
    pub fn with_capacity(limits: BatchLimits) -> Self {
        let bytes = limits.frame_bytes + LAST_RECORD_BYTES;
        Self {
            records: RecordsBuilder::with_capacity(bytes, limits.frame_records),
            ..Self::new(limits)
        }
    }

    /// Adds a record.
    pub fn push(&mut self, record: &[u8]) {
        self.push_prefix(record, record.len() as u64);
    }

    /// Adds a record of `length` bytes. Of one that is too long, its reader may hold only a prefix.
    pub fn push_prefix(&mut self, record: &[u8], length: u64) {
        let limits = self.limits.record;
        if limits.is_exceeded_by(length) {
            self.truncated.push((self.records.len() as u64, length));
            self.records
                .push(&record[..record.len().min(limits.truncated_bytes)]);
        } else {
            self.records.push(record);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Whether it has reached a limit, so that it should be submitted.
    pub fn is_full(&self) -> bool {
        self.records.len() >= self.limits.frame_records
            || self.records.bytes() >= self.limits.frame_bytes
    }

    /// The batch so far; the next one is empty.
    pub fn take(&mut self) -> RecordBatch {
        std::mem::replace(self, Self::new(self.limits)).finish()
    }

    /// The batch; use [`Self::take`] to continue with the next one.
    pub fn finish(self) -> RecordBatch {
        RecordBatch {
            records: self.records.finish(),
            truncated: self.truncated,
        }
    }
}

/// The records of one frame.
#[derive(Debug)]
pub(crate) struct RecordBatch {
    /// What is stored, truncated records included.
    pub records: Records,
    /// Index and original length of each truncated record.
    pub truncated: Vec<(u64, u64)>,
}

impl RecordBatch {
    /// The frame of a source without partitions and offsets.
    pub fn into_submission(self, source: &str, stream: &str) -> Submission {
        Submission {
            kind: Kind::Record,
            source: source.to_owned(),
            partition: String::new(),
            stream: stream.to_owned(),
            records: self.records,
            first_offset: 0,
            previous_offset: 0,
            attributes: FrameAttributes {
                truncated_records: self.truncated,
                ..FrameAttributes::default()
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(frame_records: usize, frame_bytes: usize) -> BatchLimits {
        BatchLimits {
            record: RecordLimits {
                max_bytes: 5,
                truncated_bytes: 2,
            },
            frame_records,
            frame_bytes,
        }
    }

    #[test]
    fn only_records_over_the_limit_are_truncated() {
        for (record, length, stored, truncated) in [
            ("", 0, "", None),
            ("12345", 5, "12345", None),
            ("123456", 6, "12", Some(6)),
            // Of a record that was read in part, even less than is stored may be there.
            ("123", 9, "12", Some(9)),
            ("1", 9, "1", Some(9)),
        ] {
            let mut batcher = RecordBatcher::new(limits(10, 100));
            batcher.push(b"{}");
            batcher.push_prefix(record.as_bytes(), length);
            let batch = batcher.finish();
            assert_eq!(batch.records.get(1), stored.as_bytes(), "{record}");
            let expected: Vec<_> = truncated.map(|length| (1, length)).into_iter().collect();
            assert_eq!(batch.truncated, expected, "{record}");
        }
    }

    #[test]
    fn a_batch_is_full_at_either_limit() {
        // Each record has four bytes before its own.
        for (frame_records, frame_bytes, pushes) in [(2, 100, 2), (10, 12, 2), (10, 13, 3)] {
            let mut batcher = RecordBatcher::with_capacity(limits(frame_records, frame_bytes));
            for n in 0..pushes {
                assert!(!batcher.is_full(), "{frame_records} {frame_bytes} {n}");
                batcher.push(b"{}");
            }
            assert!(batcher.is_full(), "{frame_records} {frame_bytes}");
            assert_eq!(batcher.take().records.len(), pushes);
            assert!(batcher.is_empty());
        }
    }
}
