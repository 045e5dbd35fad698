//! Whether a partition of the broker is the one that was read: the last record that was taken is
//! fetched again, and compared.
//!
//! | the broker has at the record's offset | then |
//! |---|---|
//! | the same content | the partition is read on |
//! | other content | it is another topic of that name, or another history: the partition halts |
//! | nothing, but records after it | not known, as retention and compaction remove records: read on |
//!
//! A record at an offset never changes, so only another history halts a partition. Fetching begins
//! at the record instead of after it: that costs no question, and no time if there is nothing.

use std::time::{Duration, Instant};

use rdkafka::Message as _;
use rdkafka::message::BorrowedMessage;

use super::Source;
use super::partitions::{Partition, Phase};
use crate::wal::LastRecord;

/// How long a bounded run that has nothing else to read waits for the record.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// A comparison that waits for the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Check {
    pub expected: LastRecord,
    started: Instant,
}

/// What a comparison has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Same,
    Different,
    /// The broker does not have the record any more.
    Removed,
}

impl Check {
    pub fn new(expected: LastRecord) -> Self {
        Self {
            expected,
            started: Instant::now(),
        }
    }

    /// Whether it is worth to wait for the record.
    pub fn is_awaited(&self) -> bool {
        self.started.elapsed() < CHECK_TIMEOUT
    }
}

/// Compares with what was fetched from the offset of the record on; none if that comes before it.
fn compare(expected: LastRecord, found: LastRecord) -> Option<Comparison> {
    if found.offset < expected.offset {
        return None;
    }
    Some(if found.offset > expected.offset {
        Comparison::Removed
    } else if found.fingerprint == expected.fingerprint {
        Comparison::Same
    } else {
        Comparison::Different
    })
}

/// What a message is recognized by.
pub(super) fn last_record_of(message: &BorrowedMessage<'_>, offset: u64) -> LastRecord {
    let timestamp_ms = message.timestamp().to_millis();
    LastRecord {
        offset,
        fingerprint: fingerprint(message.key(), message.payload(), timestamp_ms),
    }
}

/// The CRC-32C of the value, then that of everything else. It is in the log: it must not change.
/// Headers are left out: the client library cannot read those whose names are not UTF-8.
fn fingerprint(key: Option<&[u8]>, value: Option<&[u8]>, timestamp_ms: Option<i64>) -> u64 {
    let length = |bytes: Option<&[u8]>| bytes.map_or(0, |bytes| bytes.len() as u64 + 1);
    let mut rest = crc32c::crc32c(&timestamp_ms.unwrap_or(i64::MIN).to_le_bytes());
    for number in [length(key), length(value)] {
        rest = crc32c::crc32c_append(rest, &number.to_le_bytes());
    }
    rest = crc32c::crc32c_append(rest, key.unwrap_or_default());
    (u64::from(crc32c::crc32c(value.unwrap_or_default())) << 32) | u64::from(rest)
}

impl Source<'_> {
    /// Compares a message with the last record of its partition, which waits for that. One that is
    /// not of the history that was read begins again, which decides that it halts.
    pub(super) fn check_last_record(&mut self, id: usize, message: &BorrowedMessage<'_>) {
        let partition = self.partitions.get_mut(id);
        let Some(check) = partition.check else {
            return;
        };
        let Ok(offset) = u64::try_from(message.offset()) else {
            return;
        };
        let Some(compared) = compare(check.expected, last_record_of(message, offset)) else {
            return;
        };
        partition.check = None;
        match compared {
            Comparison::Same => {}
            Comparison::Removed => {
                let (source, partition) = (&self.context.name, &partition.label);
                tracing::debug!(source, partition, "the last record is not there to compare");
            }
            Comparison::Different => {
                partition.is_refuted = true;
                partition.has_dropped = true;
                partition.phase = Phase::Starting;
                return;
            }
        }
        self.note_unused_reset(id);
    }

    /// Resets that were accepted apply to what the broker has now. Where it has removed the last
    /// record and has nothing after it, nothing is compared, and a comparison of later records must
    /// not use them.
    pub(super) fn expire_resets(&mut self) {
        if self.accepted_resets.is_empty() || self.is_paused {
            return;
        }
        let is_over = |check: Check| !check.is_awaited();
        let lacks_record = |p: &Partition| {
            p.phase == Phase::Reading
                && p.check.is_some_and(is_over)
                && p.position() >= Some(p.high_at_start)
        };
        for id in self.partitions.select(lacks_record) {
            self.note_unused_reset(id);
        }
    }

    /// The partition continues where it was: a reset that was accepted for it is not needed.
    pub(super) fn note_unused_reset(&mut self, id: usize) {
        let label = &self.partitions.get(id).label;
        if self.accepted_resets.remove(label) {
            tracing::warn!(
                source = self.context.name,
                partition = label,
                "--accept-reset had no effect: the partition has not halted"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_other_content_at_the_same_offset_is_another_history() {
        let record = |offset, fingerprint| LastRecord {
            offset,
            fingerprint,
        };
        for (found, expected) in [
            (record(6, 1), None),
            (record(7, 1), Some(Comparison::Same)),
            (record(7, 2), Some(Comparison::Different)),
            (record(8, 1), Some(Comparison::Removed)),
            (record(8, 2), Some(Comparison::Removed)),
        ] {
            assert_eq!(compare(record(7, 1), found), expected, "{found:?}");
        }
    }

    #[test]
    fn a_fingerprint_depends_on_all_parts_and_never_changes() {
        let (a, b): (&[u8], &[u8]) = (b"a", b"b");
        let all = [
            fingerprint(Some(a), Some(b), Some(1)),
            fingerprint(Some(b), Some(a), Some(1)),
            fingerprint(Some(a), Some(b), Some(2)),
            fingerprint(Some(a), Some(b), None),
            fingerprint(Some(a), None, Some(1)),
            fingerprint(Some(a), Some(b""), Some(1)),
            fingerprint(None, Some(b), Some(1)),
            fingerprint(Some(b""), Some(b), Some(1)),
            fingerprint(None, None, None),
        ];
        let distinct: std::collections::BTreeSet<u64> = all.into_iter().collect();
        assert_eq!(distinct.len(), all.len());
        // The check value of CRC-32C.
        let known = fingerprint(None, Some(b"123456789"), None);
        assert_eq!(known >> 32, 0xe306_9283);
    }
}
