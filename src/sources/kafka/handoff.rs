//! From the thread that polls the broker to the one that writes: the log may make a source wait for
//! minutes, and a consumer that is not polled for long leaves its group.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::super::{Context, SourceError};
use crate::ingest::{Receipt, Submission};
use crate::threads::OnEnd;

/// Frames, and their bytes, that wait for the writer.
const MAX_FRAMES: usize = 64;
const MAX_BYTES: usize = 4 << 20;
/// Frames, and their bytes, on their way to the disk before the writer waits for the first.
const MAX_IN_FLIGHT_FRAMES: usize = 64;
const MAX_IN_FLIGHT_BYTES: usize = 8 << 20;

/// A frame of a partition, by its index in the table of partitions.
pub(super) struct PartitionFrame {
    pub partition: usize,
    /// Where the partition continues after it.
    pub next_offset: u64,
    pub submission: Submission,
}

impl PartitionFrame {
    fn bytes(&self) -> usize {
        self.submission.records.page().len() + self.submission.attributes.heap_bytes()
    }
}

/// A partition, and where it continues after what is durable.
pub(super) type Stored = (usize, u64);

#[derive(Default)]
struct State {
    frames: VecDeque<PartitionFrame>,
    bytes: usize,
    /// Frames that the writer holds.
    in_flight: usize,
    stored: Vec<Stored>,
    /// No more frames come.
    is_closed: bool,
    /// The writer has ended.
    has_ended: bool,
}

/// A bounded queue of frames, and the way back for what is durable.
#[derive(Default)]
pub(super) struct Handoff {
    state: Mutex<State>,
    changed: Condvar,
}

/// What the writer does next.
enum Next {
    Frame(Box<PartitionFrame>),
    /// Wait for what is on its way to the disk.
    Settle,
    End,
}

impl Handoff {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a frame; gives it back if there is still no room after `wait`.
    pub fn offer(&self, frame: PartitionFrame, wait: Duration) -> Result<(), Box<PartitionFrame>> {
        let deadline = Instant::now() + wait;
        let mut state = self.lock();
        while state.frames.len() >= MAX_FRAMES || state.bytes >= MAX_BYTES {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.has_ended {
                return Err(Box::new(frame));
            }
            state = self.wait(state, left);
        }
        state.bytes += frame.bytes();
        state.frames.push_back(frame);
        self.changed.notify_all();
        Ok(())
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, time);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// What became durable since the last call, in order.
    pub fn take_stored(&self) -> Vec<Stored> {
        std::mem::take(&mut self.lock().stored)
    }

    /// The writer ends once it has written what it was given.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// Whether the writer has ended: by an error, if no one closed the queue.
    pub fn has_ended(&self) -> bool {
        self.lock().has_ended
    }

    /// Waits until every frame is durable; whether they are.
    pub fn wait_idle(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            let is_idle = state.frames.is_empty() && state.in_flight == 0;
            let left = deadline.saturating_duration_since(Instant::now());
            if is_idle || left.is_zero() || state.has_ended {
                return is_idle;
            }
            state = self.wait(state, left);
        }
    }

    fn next(&self, has_in_flight: bool) -> Next {
        let mut state = self.lock();
        loop {
            if let Some(frame) = state.frames.pop_front() {
                state.bytes -= frame.bytes();
                state.in_flight += 1;
                self.changed.notify_all();
                return Next::Frame(Box::new(frame));
            }
            if has_in_flight {
                return Next::Settle;
            }
            if state.is_closed {
                return Next::End;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn settle(&self, stored: Stored) {
        let mut state = self.lock();
        state.in_flight -= 1;
        state.stored.push(stored);
        self.changed.notify_all();
    }

    /// Writes frames until the queue is closed and empty: the body of the writer's thread.
    ///
    /// # Errors
    ///
    /// The log takes no more frames of the source.
    pub fn write(&self, context: &Context) -> Result<(), SourceError> {
        let _ended = OnEnd(|| {
            self.lock().has_ended = true;
            self.changed.notify_all();
        });
        let mut in_flight = InFlight::default();
        loop {
            match self.next(!in_flight.receipts.is_empty()) {
                Next::Frame(frame) => {
                    in_flight.submit(context, *frame)?;
                    while in_flight.is_full() {
                        in_flight.settle_oldest(self)?;
                    }
                }
                Next::Settle => in_flight.settle_oldest(self)?,
                Next::End => return Ok(()),
            }
        }
    }
}

/// Frames on their way to the disk, in order.
#[derive(Default)]
struct InFlight {
    receipts: VecDeque<(Receipt, Stored, usize)>,
    bytes: usize,
}

impl InFlight {
    /// Sends a frame to the log; waits while a view is too far behind, or while the log is full.
    fn submit(&mut self, context: &Context, frame: PartitionFrame) -> Result<(), SourceError> {
        while !(context.wait_for_room)(Duration::from_secs(1)) && !context.stop.is_requested() {}
        let bytes = frame.bytes();
        let stored = (frame.partition, frame.next_offset);
        let receipt = context.ingest.submit(frame.submission, true)?;
        self.receipts.push_back((receipt, stored, bytes));
        self.bytes += bytes;
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.receipts.len() >= MAX_IN_FLIGHT_FRAMES || self.bytes >= MAX_IN_FLIGHT_BYTES
    }

    fn settle_oldest(&mut self, handoff: &Handoff) -> Result<(), SourceError> {
        if let Some((receipt, stored, bytes)) = self.receipts.pop_front() {
            self.bytes -= bytes;
            receipt.wait()?;
            handoff.settle(stored);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::Kind;

    fn frame(next_offset: u64) -> PartitionFrame {
        PartitionFrame {
            partition: 0,
            next_offset,
            submission: Submission::control(Kind::PartitionEnd, "s", b""),
        }
    }

    #[test]
    fn a_full_queue_gives_frames_back_and_keeps_their_order() {
        let handoff = Handoff::default();
        for n in 0..MAX_FRAMES as u64 {
            assert!(handoff.offer(frame(n), Duration::ZERO).is_ok());
        }
        let returned = handoff.offer(frame(99), Duration::ZERO).expect_err("full");
        assert_eq!(returned.next_offset, 99);
        for n in 0..MAX_FRAMES as u64 {
            let Next::Frame(frame) = handoff.next(false) else {
                panic!("a frame waits");
            };
            assert_eq!(frame.next_offset, n);
            assert!(handoff.take_stored().is_empty());
            assert!(!handoff.wait_idle(Duration::ZERO));
            handoff.settle((frame.partition, frame.next_offset));
            assert_eq!(handoff.take_stored(), [(0, n)]);
        }
        assert!(handoff.wait_idle(Duration::ZERO));
        assert!(matches!(handoff.next(true), Next::Settle));
        handoff.close();
        assert!(matches!(handoff.next(false), Next::End));
    }
}
