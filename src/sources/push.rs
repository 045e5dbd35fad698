//! What the sources have in common to which a server sends: batches of records that arrive
//! together, frames on their way to the disk, and the gap while nothing was received.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::batcher::{BatchLimits, RecordBatcher};
use super::{Context, SourceError};
use crate::clock::Clock;
use crate::event::{Gap, Micros};
use crate::ingest::{IngestError, Receipt};
use crate::wal::FrameAttributes;

/// Records that arrive together share a frame.
const FRAME_RECORDS: usize = 512;
const FRAME_BYTES: usize = 1 << 20;
/// Frames in flight before more is read.
const MAX_IN_FLIGHT: usize = 16;
/// How long a request to stop may wait.
pub(super) const MAX_WAIT: Duration = Duration::from_millis(200);
/// How long the first record of a frame waits for others.
const BATCH_DELAY: Duration = Duration::from_millis(10);
/// The reason of a gap of records that the log rejected.
const NO_ROOM: &str = "no room in the log";

/// A frame on its way to the disk.
struct FrameInFlight {
    receipt: Receipt,
    /// Arrival of its first record.
    since: Micros,
    /// The server sends its records again, so that they are not lost.
    is_resumable: bool,
}

/// Records of one connection on their way into the log.
pub(super) struct PushIntake<'a> {
    context: &'a Context,
    clock: &'a dyn Clock,
    /// Since when records may be missing.
    pub missed_since: Option<Micros>,
    /// Arrival of what was received last.
    pub last_received_at: Micros,
    batcher: RecordBatcher,
    in_flight: VecDeque<FrameInFlight>,
    batch_started_at: Micros,
    /// The place of the next record of a server that continues after event ids.
    next_offset: u64,
    /// Records are stored again after some were rejected.
    has_room_again: bool,
}

impl<'a> PushIntake<'a> {
    pub fn new(context: &'a Context, clock: &'a dyn Clock, missed_since: Option<Micros>) -> Self {
        Self {
            context,
            clock,
            missed_since,
            last_received_at: clock.now(),
            batcher: RecordBatcher::new(BatchLimits {
                record: context.record_limits,
                frame_records: FRAME_RECORDS,
                frame_bytes: FRAME_BYTES,
            }),
            in_flight: VecDeque::new(),
            batch_started_at: 0,
            next_offset: 0,
            has_room_again: false,
        }
    }

    /// Where the partition of a server that continues after event ids resumes.
    pub fn resume_at(&mut self, next_offset: u64) {
        self.next_offset = next_offset;
    }

    /// The place of the next record that is submitted with an event id.
    pub fn next_offset(&self) -> u64 {
        self.next_offset
    }

    /// Something was received just now.
    pub fn note_received(&mut self) {
        self.last_received_at = self.clock.now();
    }

    /// How long to wait for more before the batch is sent.
    pub fn patience(&self) -> Duration {
        if self.batcher.is_empty() {
            MAX_WAIT
        } else {
            BATCH_DELAY
        }
    }

    /// Adds a record of `length` bytes, of which a longer one than allowed may be a prefix.
    pub fn push(&mut self, record: &[u8], length: u64) {
        if self.batcher.is_empty() {
            self.batch_started_at = self.last_received_at;
        }
        self.batcher.push_prefix(record, length);
    }

    /// Whether the batch should be sent.
    pub fn is_full(&self) -> bool {
        self.batcher.is_full()
    }

    /// Sends the batch to the log. While the queue is full, nothing is read, and the server has to
    /// wait. After `last_event_id` the server continues, should the connection be lost: such a
    /// frame waits for room in the log instead of being rejected.
    pub fn flush(&mut self, last_event_id: Option<&str>) -> Result<(), SourceError> {
        if self.batcher.is_empty() {
            return Ok(());
        }
        let batch = self.batcher.take();
        let mut frame = batch.into_submission(&self.context.name, &self.context.stream);
        if let Some(id) = last_event_id {
            let (first, count) = (self.next_offset, frame.records.len() as u64);
            self.next_offset += count;
            (frame.first_offset, frame.previous_offset) = (first, first);
            frame.attributes = FrameAttributes {
                offsets: (first..self.next_offset).collect(),
                next_offset: Some(self.next_offset),
                last_event_id: Some(id.to_owned()),
                ..frame.attributes
            };
        }
        let receipt = self.context.ingest.submit(frame, true)?;
        self.in_flight.push_back(FrameInFlight {
            receipt,
            since: self.batch_started_at,
            is_resumable: last_event_id.is_some(),
        });
        while self.in_flight.len() > MAX_IN_FLIGHT {
            self.wait_oldest()?;
        }
        Ok(())
    }

    fn wait_oldest(&mut self) -> Result<(), SourceError> {
        let Some(frame) = self.in_flight.pop_front() else {
            return Ok(());
        };
        match frame.receipt.wait() {
            Ok(_) => {
                self.has_room_again = self.missed_since.is_some();
                Ok(())
            }
            Err(IngestError::NoSpace { reason, .. }) if !frame.is_resumable => {
                // The gap is recorded as soon as the log has room for it.
                self.missed_since.get_or_insert(frame.since);
                tracing::error!(
                    source = self.context.name,
                    reason,
                    "records were lost: no room in the log"
                );
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until every frame is on the disk, or rejected.
    pub fn wait_all(&mut self) -> Result<(), SourceError> {
        while !self.in_flight.is_empty() {
            self.wait_oldest()?;
        }
        Ok(())
    }

    /// Stores what was received before a stop.
    pub fn finish(&mut self, last_event_id: Option<&str>) -> Result<(), SourceError> {
        self.flush(last_event_id)?;
        self.wait_all()?;
        self.record_gap(NO_ROOM)
    }

    /// Stores what was received before the connection was lost: from then on records are missing. A
    /// silent connection may have been lost since the last of them.
    pub fn disconnect(&mut self, last_event_id: Option<&str>) -> Result<(), SourceError> {
        self.flush(last_event_id)?;
        self.wait_all()?;
        // Otherwise a server that continues by ids would seem to have filled it.
        self.record_rejected()?;
        self.missed_since.get_or_insert(self.last_received_at);
        Ok(())
    }

    /// Records the gap of rejected records, if there is room again.
    pub fn record_rejected(&mut self) -> Result<(), SourceError> {
        if std::mem::take(&mut self.has_room_again) {
            self.record_gap(NO_ROOM)?;
        }
        Ok(())
    }

    /// Records that records may be missing, if so.
    pub fn record_gap(&mut self, reason: &str) -> Result<(), SourceError> {
        let Some(from) = self.missed_since else {
            return Ok(());
        };
        let gap = Gap {
            source: self.context.name.clone(),
            from,
            to: self.clock.now(),
            reason: reason.into(),
        };
        let frame = gap.submission("", &self.context.stream);
        match self.context.ingest.submit(frame, true)?.wait() {
            Ok(_) => self.missed_since = None,
            // Retried as soon as records are stored again.
            Err(IngestError::NoSpace { reason, .. }) => {
                tracing::error!(
                    source = self.context.name,
                    reason,
                    "a gap could not be recorded yet"
                );
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// After so many messages a second of which none has a record, such as pings, the connection is
/// not read until the second is over. A server that sends nothing else would otherwise keep a core
/// busy.
const IDLE_MESSAGES_PER_SECOND: u32 = 100;

/// Counts the messages without a record in the current second.
pub(super) struct IdleMessages {
    since: Instant,
    count: u32,
    was_reported: bool,
}

impl IdleMessages {
    pub fn new(now: Instant) -> Self {
        Self {
            since: now,
            count: 0,
            was_reported: false,
        }
    }

    pub fn restart(&mut self, now: Instant) {
        (self.since, self.count) = (now, 0);
    }

    /// Counts a message of this source without a record; how long to stop reading if there were too
    /// many.
    pub fn pause_of(&mut self, source: &str, now: Instant) -> Option<Duration> {
        let pause = self.pause(now);
        if pause.is_some() && !std::mem::replace(&mut self.was_reported, true) {
            tracing::warn!(
                source,
                "more than 100 messages a second, none with a record: reading no faster than that"
            );
        }
        pause
    }

    fn pause(&mut self, now: Instant) -> Option<Duration> {
        const SECOND: Duration = Duration::from_secs(1);
        let elapsed = now.duration_since(self.since);
        if elapsed >= SECOND {
            self.restart(now);
        }
        self.count += 1;
        (self.count > IDLE_MESSAGES_PER_SECOND)
            .then(|| SECOND.saturating_sub(elapsed).min(MAX_WAIT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_idle_messages_than_a_second_may_have_wait_for_the_next() {
        let start = Instant::now();
        let mut idle = IdleMessages::new(start);
        let at = |ms| start + Duration::from_millis(ms);
        assert!((0..IDLE_MESSAGES_PER_SECOND).all(|_| idle.pause(at(10)).is_none()));
        assert_eq!(idle.pause(at(10)), Some(MAX_WAIT));
        assert_eq!(idle.pause(at(900)), Some(Duration::from_millis(100)));
        assert_eq!(idle.pause(at(1_000)), None);
    }
}
