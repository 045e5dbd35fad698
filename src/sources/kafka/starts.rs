//! Begins partitions: compares each position with what the broker has, and stores a first position
//! or an accepted reset before any record.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, KafkaResult};

use super::assignment::{FirstOffset, Position, Reset, Start, decide_start};
use super::batch::position_frame;
use super::client::{list_partitions, offset_of_time, watermarks};
use super::handoff::PartitionFrame;
use super::last_record::Check;
use super::partitions::{Partition, Phase};
use super::topics::TopicPartition;
use super::{Source, SourceError};
use crate::config::StartFrom;
use crate::event::Gap;
use crate::ingest::Submission;
use crate::wal::FrameAttributes;

/// How long partitions are begun before polling continues.
const ROUND: Duration = Duration::from_millis(300);
/// Between two tries while the broker does not answer. Each may take half a second, in which nothing
/// is polled: a partition without a leader must not keep others from being begun, nor read.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// The same for a partition that only gets its first position, as another member reads it.
const IDLE_RETRY_DELAY: Duration = Duration::from_secs(10);

impl Source<'_> {
    /// Begins partitions that were assigned, as many as there is time for.
    pub(super) fn begin_partitions(&mut self) -> Result<(), SourceError> {
        let started = Instant::now();
        if self.is_paused || self.revocation.is_some() || started < self.retry_starts_at {
            return Ok(());
        }
        if !self.list_first_partitions() {
            return Ok(());
        }
        // Those whose last record turned out to be another one are still fetched, and those that
        // were to begin again during a revocation.
        let is_fetched = |p: &Partition| p.phase == Phase::Starting && p.is_assigned;
        let fetched = self.partitions.select(is_fetched);
        if !fetched.is_empty() {
            self.unassign(&fetched)?;
        }
        let mut begun = Vec::new();
        for id in self.due_starts(started) {
            match self.start_of(id) {
                Ok(start) => {
                    self.connection.note_answer();
                    self.partitions.get_mut(id).retry_at = None;
                    if self.begin(id, start) {
                        begun.push(id);
                    }
                }
                Err(error) => self.note_failed_start(id, &error),
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

    /// Partitions whose start is to be asked for: ours first, and those that failed last after others.
    fn due_starts(&self, now: Instant) -> Vec<usize> {
        let mut waiting = self.partitions.select(|p| p.phase == Phase::Starting);
        waiting.extend(self.unplaced());
        let may_retry = now >= self.retry_failed_at;
        waiting.retain(|id| self.partitions.get(*id).is_due(now, may_retry));
        waiting.sort_by_key(|id| {
            let partition = self.partitions.get(*id);
            (partition.phase != Phase::Starting, partition.retry_at)
        });
        waiting
    }

    fn note_failed_start(&mut self, id: usize, error: &KafkaError) {
        let now = Instant::now();
        self.retry_failed_at = now + RETRY_DELAY;
        let partition = self.partitions.get_mut(id);
        let is_ours = partition.phase == Phase::Starting;
        let delay = if is_ours {
            RETRY_DELAY
        } else {
            IDLE_RETRY_DELAY
        };
        partition.note_failed_start(now + delay);
        let label = &partition.label;
        tracing::debug!(source = self.context.name, partition = label, %error, "no start yet");
        if is_ours {
            self.connection.set_problem(&format!("{label}: {error}"));
        }
    }

    /// Lists, at the first start of a source with `from = "latest"`, the partitions that there are;
    /// whether that is done.
    fn list_first_partitions(&mut self) -> bool {
        if self.first_partitions.is_some() {
            return true;
        }
        match list_partitions(self.consumer, &self.filter) {
            Ok(listing) => {
                for name in &listing.partitions {
                    if let Some(stream) = self.filter.stream_of(&name.topic) {
                        self.partitions.add(name.clone(), stream);
                    }
                }
                self.first_partitions = Some(listing.partitions.into_iter().collect());
                true
            }
            Err(error) => {
                let source = &self.context.name;
                tracing::debug!(source, %error, "topics cannot be listed");
                self.connection
                    .set_problem(&format!("topics cannot be listed: {error}"));
                self.retry_starts_at = Instant::now() + RETRY_DELAY;
                false
            }
        }
    }

    /// Partitions of the first start without a position, also those that the group has not assigned
    /// to this source: a later start could not tell them from partitions that were added since.
    fn unplaced(&self) -> Vec<usize> {
        let Some(first) = self.first_partitions.as_ref().filter(|f| !f.is_empty()) else {
            return Vec::new();
        };
        self.partitions.select(|partition| {
            partition.phase == Phase::Idle
                && partition.taken.is_none()
                && first.contains(&partition.name)
        })
    }

    /// Where a partition begins; asks the broker.
    fn start_of(&mut self, id: usize) -> KafkaResult<Start> {
        let partition = self.partitions.get(id);
        let broker = watermarks(self.consumer, &partition.name)?;
        let existed = |first: &BTreeSet<TopicPartition>| first.contains(&partition.name);
        let first = match self.def.from {
            StartFrom::Earliest => FirstOffset::Earliest,
            StartFrom::Latest if self.first_partitions.as_ref().is_some_and(existed) => {
                FirstOffset::Latest
            }
            // It was added after the first start: everything in it is newer.
            StartFrom::Latest => FirstOffset::Earliest,
            StartFrom::Time(_) if partition.taken.is_some() => FirstOffset::Latest,
            StartFrom::Time(time) => {
                FirstOffset::OfTime(offset_of_time(self.consumer, &partition.name, time)?)
            }
        };
        let position = partition.taken.map(|next| Position {
            next,
            last: partition.last_record,
            is_refuted: partition.is_refuted,
        });
        let start = decide_start(position, broker, first);
        let is_bounded = self.context.once;
        let partition = self.partitions.get_mut(id);
        // Without open transactions, which only the statistics include.
        partition.high_at_start = broker.high;
        partition.high = is_bounded.then_some(broker.high);
        if is_bounded {
            partition.end.get_or_insert(broker.high);
        }
        partition.is_refuted = false;
        let label = &partition.label;
        let is_accepted = matches!(start, Start::Halt(_)) && self.accepted_resets.remove(label);
        match start {
            // A reset that was accepted continues with the first record that the broker has.
            Start::Halt(reset) if is_accepted => {
                self.record_reset(id, reset, broker.low);
                return Ok(Start::Continue {
                    next: broker.low,
                    check: None,
                });
            }
            // Whether it continues is decided by the comparison.
            Start::Continue { check: Some(_), .. } | Start::Halt(_) => {}
            // It applies to the first start that is decided, whatever that is: not to a later one.
            Start::Continue { check: None, .. } | Start::Begin(_) => self.note_unused_reset(id),
        }
        Ok(start)
    }

    /// Sets a partition to its start; whether it has one.
    fn begin(&mut self, id: usize, start: Start) -> bool {
        let source = &self.context.name;
        let partition = self.partitions.get_mut(id);
        let label = &partition.label;
        match start {
            Start::Continue { next, check } => {
                tracing::debug!(source, partition = label, offset = next, "continues");
                partition.phase = Phase::Reading;
                partition.check = check.map(Check::new);
                partition.began_at.get_or_insert(next);
                true
            }
            Start::Begin(offset) => {
                tracing::info!(source, partition = label, offset, "begins");
                let stream = &partition.stream;
                let submission = position_frame(self.context, stream, label, offset, None);
                // One that another member reads only gets its position.
                let is_ours = partition.phase == Phase::Starting;
                if is_ours {
                    partition.phase = Phase::Reading;
                    partition.began_at = Some(offset);
                }
                self.send_position(id, offset, submission);
                is_ours
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
        (partition.last_record, partition.check) = (None, None);
        partition.reached = 0;
    }

    /// Begins every partition again after a delay, each where it is: one of them has an error.
    pub(super) fn restart_partitions(&mut self, delay: Duration) -> Result<(), SourceError> {
        let reading = self.partitions.select(|p| p.phase == Phase::Reading);
        // It would answer a revocation before that is done: then it follows with their start.
        if self.revocation.is_none() {
            self.unassign(&reading)?;
        }
        for id in reading {
            self.finish_batch(id);
            let partition = self.partitions.get_mut(id);
            partition.phase = Phase::Starting;
            partition.check = None;
        }
        self.retry_starts_at = Instant::now() + delay;
        Ok(())
    }
}
