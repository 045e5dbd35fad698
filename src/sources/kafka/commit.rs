//! Commits durable offsets to the consumer group, so that the tools of Kafka show the lag. Nothing
//! reads them here: a commit that fails is repeated, and never stops intake.
//!
//! The client library does not report the result of a commit that is not waited for; its statistics
//! have the offset that the group confirmed last.

use std::time::{Duration, Instant};

use rdkafka::consumer::{CommitMode, Consumer as _};

use super::Source;
use super::client::offsets;

/// Between two commits.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
/// A commit that the statistics do not show after this long is repeated.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);

impl Source<'_> {
    /// Takes what became durable, and what the client library reported.
    pub(super) fn collect_reports(&mut self) {
        for (id, offset) in self.handoff.take_stored() {
            self.partitions.get_mut(id).stored = Some(offset);
        }
        let mut mailbox = self.consumer.context().mailbox();
        let statistics = std::mem::take(&mut mailbox.partitions);
        let is_connected = mailbox.is_connected.take();
        let errors = std::mem::take(&mut mailbox.errors);
        drop(mailbox);
        let is_overdue = self
            .committed_at
            .is_some_and(|at| at.elapsed() >= CONFIRM_TIMEOUT);
        for known in statistics {
            if let Some(id) = self.partitions.find(&known.name.topic, known.name.number) {
                let partition = self.partitions.get_mut(id);
                partition.is_led = known.is_led;
                partition.high = known.high.or(partition.high);
                // It may date from before the assignment, which a bounded run, which asks itself,
                // would take for the end.
                if partition.is_assigned && !self.context.once {
                    partition.passed = known.passed.unwrap_or(partition.passed);
                }
                if is_overdue && known.committed != partition.committed {
                    partition.committed = None;
                }
            }
        }
        self.connection.update(is_connected, errors);
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
        let changed: Vec<usize> = ids
            .iter()
            .copied()
            .filter(|id| self.partitions.get(*id).uncommitted().is_some())
            .collect();
        if changed.is_empty() {
            return;
        }
        self.committed_at = Some(Instant::now());
        let stored = changed.iter().filter_map(|id| {
            let partition = self.partitions.get(*id);
            Some((&partition.name, partition.stored?))
        });
        let sent = offsets(stored).and_then(|list| self.consumer.commit(&list, CommitMode::Async));
        if let Err(error) = sent {
            tracing::debug!(source = self.context.name, %error, "offsets were not committed");
            return;
        }
        for id in changed {
            let partition = self.partitions.get_mut(id);
            partition.committed = partition.stored;
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
