//! Begins partitions: compares each position with what the broker has, and stores a first position
//! or an accepted reset before any record.

use std::time::{Duration, Instant};

use rdkafka::error::KafkaResult;

use super::assignment::{FirstOffset, Reset, Start, decide_start};
use super::batch::position_frame;
use super::client::{offset_of_time, watermarks};
use super::handoff::PartitionFrame;
use super::partitions::Phase;
use super::{Source, SourceError};
use crate::config::StartFrom;
use crate::event::Gap;
use crate::ingest::Submission;
use crate::wal::FrameAttributes;

/// How long partitions are begun before polling continues.
const ROUND: Duration = Duration::from_millis(300);
/// Between two tries while the broker does not answer.
const RETRY_DELAY: Duration = Duration::from_secs(1);

impl Source<'_> {
    /// Begins partitions that were assigned, as many as there is time for.
    pub(super) fn begin_partitions(&mut self) -> Result<(), SourceError> {
        let started = Instant::now();
        if self.is_paused || self.revocation.is_some() || started < self.retry_starts_at {
            return Ok(());
        }
        let mut begun = Vec::new();
        for id in self.partitions.select(|p| p.phase == Phase::Starting) {
            match self.start_of(id) {
                Ok(start) => {
                    self.connection.note_answer();
                    if self.begin(id, start) {
                        begun.push(id);
                    }
                }
                Err(error) => {
                    let partition = &self.partitions.get(id).label;
                    tracing::debug!(source = self.context.name, partition, %error, "no start yet");
                    self.connection
                        .set_problem(&format!("{partition}: {error}"));
                    self.retry_starts_at = Instant::now() + RETRY_DELAY;
                    break;
                }
            }
            if started.elapsed() >= ROUND {
                break;
            }
        }
        if begun.is_empty() {
            return Ok(());
        }
        self.assign(&begun)
    }

    /// Where a partition begins; asks the broker.
    fn start_of(&mut self, id: usize) -> KafkaResult<Start> {
        let partition = self.partitions.get(id);
        let broker = watermarks(self.consumer, &partition.name)?;
        let first = match self.def.from {
            StartFrom::Earliest => FirstOffset::Earliest,
            StartFrom::Latest => FirstOffset::Latest,
            StartFrom::Time(_) if partition.taken.is_some() => FirstOffset::Latest,
            StartFrom::Time(time) => {
                FirstOffset::OfTime(offset_of_time(self.consumer, &partition.name, time)?)
            }
        };
        let start = decide_start(partition.taken, broker, first);
        let is_bounded = self.context.once;
        let partition = self.partitions.get_mut(id);
        // Without open transactions, which only the statistics include.
        partition.high_at_start = broker.high;
        partition.high = is_bounded.then_some(broker.high);
        if is_bounded {
            partition.end.get_or_insert(broker.high);
        }
        // It applies to the first start that is decided, whatever that is: not to a later one.
        let is_reset_accepted = self.accepted_resets.remove(&self.partitions.get(id).label);
        // A reset that was accepted continues with the first record that the broker has.
        Ok(match start {
            Start::Halt(reset) if is_reset_accepted => {
                self.record_reset(id, reset, broker.low);
                Start::Continue(broker.low)
            }
            other => other,
        })
    }

    /// Sets a partition to its start; whether it has one.
    fn begin(&mut self, id: usize, start: Start) -> bool {
        let source = &self.context.name;
        let partition = self.partitions.get_mut(id);
        let label = &partition.label;
        match start {
            Start::Continue(offset) => {
                tracing::debug!(source, partition = label, offset, "continues");
                partition.phase = Phase::Reading;
                partition.began_at.get_or_insert(offset);
                true
            }
            Start::Begin(offset) => {
                tracing::info!(source, partition = label, offset, "begins");
                let submission = position_frame(self.context, &partition.stream, label, offset);
                partition.phase = Phase::Reading;
                partition.began_at = Some(offset);
                self.send_position(id, offset, submission);
                true
            }
            Start::Halt(reset) => {
                let reason = reset.advice(&partition.name);
                tracing::error!(
                    source,
                    partition = label,
                    reason,
                    "the partition has halted"
                );
                partition.phase = Phase::Halted(reason);
                false
            }
        }
    }

    /// Records that a partition continues at another offset, and which ones it lacks, in one frame.
    fn record_reset(&mut self, id: usize, reset: Reset, offset: u64) {
        let now = self.clock.now();
        let partition = self.partitions.get(id);
        let reason = reset.describe(&partition.name);
        let source = &self.context.name;
        tracing::warn!(source, reason, offset, "the reset was accepted");
        let gap = Gap {
            source: source.clone(),
            from: partition.received_at.unwrap_or(now),
            to: now,
            reason,
        };
        let submission = Submission {
            first_offset: offset,
            previous_offset: offset,
            attributes: FrameAttributes {
                next_offset: Some(offset),
                ..FrameAttributes::default()
            },
            ..gap.submission(&partition.label, &partition.stream)
        };
        self.send_position(id, offset, submission);
    }

    /// Sends a frame that stores where a partition continues, before its records.
    fn send_position(&mut self, id: usize, offset: u64, submission: Submission) {
        self.outbox.push_back(PartitionFrame {
            partition: id,
            next_offset: offset,
            submission,
        });
        let partition = self.partitions.get_mut(id);
        partition.taken = Some(offset);
        partition.reached = 0;
    }

    /// Begins every partition again after a delay, each where it is: one of them has an error.
    pub(super) fn restart_partitions(&mut self, delay: Duration) -> Result<(), SourceError> {
        let reading = self.partitions.select(|p| p.phase == Phase::Reading);
        self.unassign(&reading)?;
        for id in reading {
            self.finish_batch(id);
            self.partitions.get_mut(id).phase = Phase::Starting;
        }
        self.retry_starts_at = Instant::now() + delay;
        Ok(())
    }
}
