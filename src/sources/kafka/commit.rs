//! Commits durable offsets to the consumer group, so that the tools of Kafka show the lag. Nothing
//! reads them here: a commit that fails is repeated with the next, and never stops intake.

use std::time::{Duration, Instant};

use rdkafka::consumer::{CommitMode, Consumer as _};

use super::client::offsets;
use super::{POLL_INTERVAL, Source};

/// Between two commits.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
/// A commit without an answer for this long is given up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Commits on their way; one at a time.
#[derive(Default)]
pub(super) struct Commits {
    /// Since when one waits for its answer, and which partitions it is of.
    pending: Option<(Instant, Vec<usize>)>,
    last: Option<Instant>,
    /// A failure was reported and none has succeeded since.
    was_reported: bool,
}

impl Commits {
    pub fn is_pending(&self) -> bool {
        self.pending.is_some()
    }
}

impl Source<'_> {
    /// Takes what became durable, and what the client library reported.
    pub(super) fn collect_reports(&mut self) {
        for (id, offset) in self.handoff.take_stored() {
            self.partitions.get_mut(id).stored = Some(offset);
        }
        let mut mailbox = self.consumer.context().mailbox();
        let commits = std::mem::take(&mut mailbox.commits);
        let statistics = std::mem::take(&mut mailbox.partitions);
        let (is_connected, errors) = (
            mailbox.is_connected.take(),
            std::mem::take(&mut mailbox.errors),
        );
        drop(mailbox);
        for result in commits {
            self.finish_commit(result.err().map(|e| e.to_string()));
        }
        for known in statistics {
            if let Some(id) = self.partitions.find(&known.name.topic, known.name.number) {
                let partition = self.partitions.get_mut(id);
                partition.high = known.high.or(partition.high);
                if partition.is_assigned {
                    partition.passed = known.passed.unwrap_or(partition.passed);
                }
            }
        }
        self.connection.update(is_connected, errors);
    }

    /// Commits what became durable since the last commit, once a second.
    pub(super) fn commit_stored(&mut self) {
        let is_due = self
            .commits
            .last
            .is_none_or(|at| at.elapsed() >= COMMIT_INTERVAL);
        let is_lost = |(since, _): &(Instant, _)| since.elapsed() >= ANSWER_TIMEOUT;
        if self.commits.pending.as_ref().is_some_and(is_lost) {
            self.finish_commit(Some("the broker did not answer".into()));
        }
        if is_due && !self.commits.is_pending() {
            let ids = self
                .partitions
                .select(|p| p.is_assigned && p.uncommitted().is_some());
            self.commit(&ids);
        }
    }

    /// Commits the durable offsets of these partitions; the answer comes later.
    pub(super) fn commit(&mut self, ids: &[usize]) {
        self.commits.last = Some(Instant::now());
        let changed: Vec<usize> = ids
            .iter()
            .copied()
            .filter(|id| self.partitions.get(*id).uncommitted().is_some())
            .collect();
        if changed.is_empty() {
            return;
        }
        let stored = changed.iter().filter_map(|id| {
            let partition = self.partitions.get(*id);
            Some((&partition.name, partition.stored?))
        });
        let sent = offsets(stored).and_then(|list| self.consumer.commit(&list, CommitMode::Async));
        for id in &changed {
            let partition = self.partitions.get_mut(*id);
            partition.committed = partition.stored;
        }
        self.commits.pending = Some((Instant::now(), changed));
        if let Err(error) = sent {
            self.finish_commit(Some(error.to_string()));
        }
    }

    fn finish_commit(&mut self, failure: Option<String>) {
        let pending = self.commits.pending.take();
        let Some(reason) = failure else {
            self.commits.was_reported = false;
            return;
        };
        for id in pending.into_iter().flat_map(|(_, ids)| ids) {
            self.partitions.get_mut(id).committed = None;
        }
        // Only the first failure is worth a warning.
        let source = &self.context.name;
        if std::mem::replace(&mut self.commits.was_reported, true) {
            tracing::debug!(source, reason, "offsets were not committed to the group");
        } else {
            tracing::warn!(
                source,
                reason,
                "offsets were not committed to the group, which shows too much lag; no record is affected"
            );
        }
    }

    /// Commits everything that is durable, and waits for the answer.
    pub(super) fn commit_all(&mut self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut was_sent = false;
        loop {
            self.collect_reports();
            if !self.commits.is_pending() && !std::mem::replace(&mut was_sent, true) {
                let ids = self.partitions.select(|p| p.is_assigned);
                self.commit(&ids);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || was_sent && !self.commits.is_pending() {
                return;
            }
            // Messages that come now are not taken: they are read by the next run.
            drop(self.consumer.poll(left.min(POLL_INTERVAL)));
        }
    }
}
