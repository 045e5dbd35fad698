//! Commits durable offsets to the consumer group, so that the tools of Kafka show the lag. Nothing
//! reads them here: a commit that fails is repeated, and never stops intake.
//!
//! The client library does not report the result of a commit that is not waited for; its statistics
//! have the offset that the group confirmed last.

use std::time::{Duration, Instant};

use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::topic_partition_list::Offset;

use super::Source;
use super::callbacks::Errors;
use super::client::offsets;

/// Between two commits.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
/// Between two looks at how far the client library has come.
const POSITIONS_INTERVAL: Duration = Duration::from_millis(100);
/// A commit that the statistics, which come once a second, do not show after this long is repeated:
/// the group refuses commits while it rebalances.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(3);

impl Source<'_> {
    /// Takes what became durable, and what the client library reported.
    pub(super) fn collect_reports(&mut self) {
        for (id, offset) in self.handoff.take_stored() {
            self.partitions.get_mut(id).stored = Some(offset);
        }
        let mut mailbox = self.consumer.context().mailbox();
        let statistics = std::mem::take(&mut mailbox.partitions);
        let is_connected = mailbox.is_connected.take();
        let was_disconnected = std::mem::take(&mut mailbox.was_disconnected);
        let errors = std::mem::take(&mut mailbox.errors);
        drop(mailbox);
        for known in statistics {
            if let Some(id) = self.partitions.find(&known.name.topic, known.name.number) {
                let partition = self.partitions.get_mut(id);
                partition.is_led = known.is_led;
                let high = known.high.map(|high| high.max(partition.high_at_start));
                partition.high = high.or(partition.high);
                let is_overdue = partition
                    .committed_at
                    .is_some_and(|at| at.elapsed() >= CONFIRM_TIMEOUT);
                if is_overdue && known.committed != partition.committed {
                    partition.committed = None;
                }
            }
        }
        if was_disconnected {
            self.connection.update(Some(false), Errors::default());
        }
        self.connection.update(is_connected, errors);
    }

    /// Takes how far the client library has come, which passes markers of transactions, also at the
    /// end of a partition, where no record follows them.
    pub(super) fn update_positions(&mut self) {
        let is_due = self
            .positions_read_at
            .is_none_or(|at| at.elapsed() >= POSITIONS_INTERVAL);
        if !is_due {
            return;
        }
        self.positions_read_at = Some(Instant::now());
        let Ok(positions) = self.consumer.position() else {
            return;
        };
        for element in positions.elements() {
            let id = self.partitions.find(element.topic(), element.partition());
            let Some(partition) = id.map(|id| self.partitions.get_mut(id)) else {
                continue;
            };
            if let Offset::Offset(offset) = element.offset() {
                partition.passed = u64::try_from(offset).unwrap_or(0);
            } else {
                // It has been assigned again, and nothing was passed since.
                (partition.passed, partition.has_dropped) = (0, false);
            }
        }
    }

    /// Commits what became durable since the last commit, once a second.
    pub(super) fn commit_stored(&mut self) {
        let is_due = self
            .committed_at
            .is_none_or(|at| at.elapsed() >= COMMIT_INTERVAL);
        if is_due {
            let ids = self.partitions.select(|p| p.is_assigned);
            self.commit(&ids);
        }
    }

    /// Commits the durable offsets of these partitions, without waiting for the answer. The client
    /// library logs a failure.
    fn commit(&mut self, ids: &[usize]) {
        let is_outbox_empty = self.outbox.is_empty();
        let changed: Vec<(usize, u64)> = ids
            .iter()
            .filter_map(|id| {
                let partition = self.partitions.get_mut(*id);
                partition.update_reached(is_outbox_empty);
                Some((*id, partition.uncommitted()?))
            })
            .collect();
        if changed.is_empty() {
            return;
        }
        let now = Instant::now();
        self.committed_at = Some(now);
        let durable = changed
            .iter()
            .map(|(id, offset)| (&self.partitions.get(*id).name, *offset));
        let sent = offsets(durable).and_then(|list| self.consumer.commit(&list, CommitMode::Async));
        if let Err(error) = sent {
            tracing::debug!(source = self.context.name, %error, "offsets were not committed");
            return;
        }
        for (id, offset) in changed {
            let partition = self.partitions.get_mut(id);
            (partition.committed, partition.committed_at) = (Some(offset), Some(now));
        }
    }

    /// Commits the durable offsets of these partitions, and waits for the answer.
    pub(super) fn commit_and_wait(&mut self, ids: &[usize], timeout: Duration) {
        self.collect_reports();
        self.commit(ids);
        let stored = ids.iter().filter_map(|id| {
            let partition = self.partitions.get(*id);
            Some((&partition.name, partition.stored?))
        });
        // The coordinator answers in order: once it has said what is committed, it has committed.
        let confirmed =
            offsets(stored).and_then(|list| self.consumer.committed_offsets(list, timeout));
        if let Err(error) = confirmed {
            let source = &self.context.name;
            tracing::debug!(source, %error, "the group did not confirm the last offsets");
        }
    }
}
