//! Partitions that the group assigns to this source, and those that it takes away.
//!
//! A partition that is taken away is drained first: what was sent to the writer becomes durable,
//! then its offset is committed, then it is given back. The group waits for that, for
//! [`REVOKE_TIMEOUT`] at most.

use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;

use super::callbacks::Rebalance;
use super::client::{broker_error, offsets};
use super::handoff::PartitionFrame;
use super::partitions::Phase;
use super::topics::TopicPartition;
use super::{Source, SourceError};
use crate::wal::Kind;

const REVOKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long their last commit may take.
const COMMIT_TIMEOUT: Duration = Duration::from_millis(500);

/// Partitions that are being given back.
pub(super) struct Revocation {
    partitions: Vec<usize>,
    deadline: Instant,
}

impl Source<'_> {
    /// Answers changes of the assignment, one after the other.
    pub(super) fn rebalance(&mut self) -> Result<(), SourceError> {
        self.continue_revocation()?;
        while self.revocation.is_none() {
            let next = self.consumer.context().mailbox().rebalances.pop_front();
            match next {
                Some(Rebalance::Assigned(names)) => self.accept(&names)?,
                Some(Rebalance::Revoked(names)) => {
                    self.revoke(&names);
                    self.continue_revocation()?;
                }
                None => break,
            }
        }
        Ok(())
    }

    /// Accepts partitions. The group is answered at once; they are fetched from where each begins
    /// as soon as that is decided.
    fn accept(&mut self, names: &[TopicPartition]) -> Result<(), SourceError> {
        for name in names {
            if let Some(stream) = self.filter.stream_of(&name.topic) {
                let id = self.partitions.add(name.clone(), stream);
                let partition = self.partitions.get_mut(id);
                (partition.phase, partition.retry_at) = (Phase::Starting, None);
            }
        }
        let shown: Vec<String> = names.iter().map(TopicPartition::to_string).collect();
        tracing::info!(
            source = self.context.name,
            partitions = shown.join(", "),
            "assigned"
        );
        self.assign(&[])
    }

    fn revoke(&mut self, names: &[TopicPartition]) {
        let shown: Vec<String> = names.iter().map(TopicPartition::to_string).collect();
        tracing::info!(
            source = self.context.name,
            partitions = shown.join(", "),
            "revoked"
        );
        let ids: Vec<usize> = names
            .iter()
            .filter_map(|name| self.partitions.find(&name.topic, name.number))
            .collect();
        let is_dropped = |frame: &PartitionFrame| ids.contains(&frame.partition);
        // A reset that is not in the log yet is accepted again when the partition comes back.
        let resets = self.outbox.iter().filter(|frame| is_dropped(frame));
        let resets = resets.filter(|frame| frame.submission.kind == Kind::Gap);
        self.accepted_resets
            .extend(resets.map(|frame| frame.submission.partition.clone()));
        self.outbox.retain(|frame| !is_dropped(frame));
        for id in &ids {
            let partition = self.partitions.get_mut(*id);
            partition.discard_unsent();
            partition.phase = Phase::Revoking;
            partition.check = None;
        }
        self.revocation = Some(Revocation {
            partitions: ids,
            deadline: Instant::now() + REVOKE_TIMEOUT,
        });
    }

    /// Gives partitions back once they are drained and their offsets are committed.
    fn continue_revocation(&mut self) -> Result<(), SourceError> {
        let Some(revocation) = self.revocation.take() else {
            return Ok(());
        };
        let is_over = Instant::now() >= revocation.deadline;
        let is_drained = revocation
            .partitions
            .iter()
            .all(|id| self.partitions.get(*id).is_drained());
        if !is_drained && !is_over {
            self.revocation = Some(revocation);
            return Ok(());
        }
        self.commit_and_wait(&revocation.partitions, COMMIT_TIMEOUT);
        self.unassign(&revocation.partitions)?;
        for id in revocation.partitions {
            let partition = self.partitions.get_mut(id);
            partition.phase = Phase::Idle;
            // Another member may commit to it from now on.
            (partition.committed, partition.committed_at) = (None, None);
        }
        Ok(())
    }

    /// Gives every partition back before the consumer is closed, which waits for the answer to each
    /// change of the assignment.
    pub(super) fn release(&mut self) {
        let fetched = self.partitions.select(|p| p.is_assigned);
        if let Err(error) = self.assign(&[]).and_then(|()| self.unassign(&fetched)) {
            tracing::debug!(source = self.context.name, %error, "partitions were not given back");
        }
    }

    /// Fetches partitions from the offset at which each continues.
    pub(super) fn assign(&mut self, ids: &[usize]) -> Result<(), SourceError> {
        let starts = ids.iter().filter_map(|id| {
            let partition = self.partitions.get(*id);
            Some((&partition.name, partition.fetch_offset()?))
        });
        let assigned = offsets(starts).and_then(|list| {
            self.consumer.incremental_assign(&list)?;
            // The library keeps a pause beyond an assignment, which ends here.
            self.consumer.resume(&list)
        });
        assigned.map_err(|e| broker_error(self.def, &format!("cannot assign: {e}")))?;
        for id in ids {
            let partition = self.partitions.get_mut(*id);
            partition.is_assigned = true;
            partition.passed = 0;
        }
        // At once, before the library passes something.
        self.positions_read_at = None;
        Ok(())
    }

    /// Ceases to fetch partitions. The library refuses those that it does not fetch.
    pub(super) fn unassign(&mut self, ids: &[usize]) -> Result<(), SourceError> {
        let fetched = ids.iter().map(|id| self.partitions.get(*id));
        let fetched = fetched.filter(|p| p.is_assigned).map(|p| (&p.name, 0));
        let unassigned =
            offsets(fetched).and_then(|list| self.consumer.incremental_unassign(&list));
        unassigned.map_err(|e| broker_error(self.def, &format!("cannot unassign: {e}")))?;
        for id in ids {
            self.partitions.get_mut(*id).is_assigned = false;
        }
        Ok(())
    }
}
