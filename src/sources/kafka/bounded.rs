//! A bounded run: everything that the partitions have when it begins, then it ends. It assigns all
//! partitions to itself, so that other members of the group do not keep some from it.

use std::time::{Duration, Instant};

use super::batch::position_frame;
use super::client::{Listing, broker_error, list_partitions};
use super::handoff::PartitionFrame;
use super::partitions::{Partition, Phase};
use super::topics::TopicPartition;
use super::{POLL_INTERVAL, Source, SourceError};
use crate::event::SourceState;

/// How long brokers that cannot be reached are retried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const RETRY_DELAY: Duration = Duration::from_millis(250);
/// How long the last commit may take.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);

impl Source<'_> {
    pub(super) fn run_bounded(mut self) -> Result<(), SourceError> {
        let Some(listing) = self.list()? else {
            return Ok(());
        };
        if let Some(topic) = listing.missing.first() {
            let reason = format!("the topic `{topic}` does not exist; nothing was read");
            return Err(broker_error(self.def, &reason));
        }
        if listing.partitions.is_empty() {
            tracing::warn!(source = self.context.name, "no topic matches the pattern");
        }
        for name in listing.partitions {
            if let Some(stream) = self.filter.stream_of(&name.topic) {
                let id = self.partitions.add(name, stream);
                self.partitions.get_mut(id).phase = Phase::Starting;
            }
        }
        let ((mut fewest, mut read), mut moved_at) = (self.progress(), Instant::now());
        while self.is_to_continue() {
            self.round()?;
            if self.is_complete() {
                return self.finish();
            }
            let (starting, now) = self.progress();
            // Partitions that begin again and again are no progress.
            if starting < fewest || now != read || self.is_paused {
                (fewest, read) = (fewest.min(starting), now);
                moved_at = Instant::now();
            } else if moved_at.elapsed() >= CONNECT_TIMEOUT {
                return Err(self.unreachable());
            }
        }
        self.stop();
        Ok(())
    }

    /// Lists the partitions; none if the source was asked to stop.
    fn list(&mut self) -> Result<Option<Listing>, SourceError> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        while self.is_to_continue() {
            match list_partitions(self.consumer, &self.filter) {
                Ok(listing) => return Ok(Some(listing)),
                Err(error) => {
                    let source = &self.context.name;
                    tracing::debug!(source, %error, "topics cannot be listed");
                }
            }
            // Reports of errors come by polling.
            drop(self.consumer.poll(RETRY_DELAY));
            self.collect_reports();
            self.publish_health();
            if Instant::now() >= deadline {
                return Err(self.unreachable());
            }
        }
        Ok(None)
    }

    /// How many partitions have not begun, and a number that changes whenever one advances.
    fn progress(&self) -> (usize, u64) {
        let starting = self.partitions.select(|p| p.phase == Phase::Starting).len();
        let positions = self.partitions.iter().filter_map(Partition::position);
        (starting, positions.sum())
    }

    fn unreachable(&self) -> SourceError {
        if let Some(error) = self.missing_registry() {
            return error;
        }
        let reason = self.connection.describe();
        let seconds = CONNECT_TIMEOUT.as_secs();
        let reason = format!("the brokers sent nothing for {seconds} seconds: {reason}");
        broker_error(self.def, &reason)
    }

    fn is_complete(&self) -> bool {
        self.partitions
            .iter()
            .all(|partition| match partition.phase {
                Phase::Reading => partition.has_reached_end() && !partition.is_checking(),
                Phase::Idle | Phase::Halted(_) => true,
                Phase::Starting | Phase::AwaitingSchema(_) | Phase::Revoking => false,
            })
    }

    /// Stores everything and where each partition ends, commits, and ends.
    fn finish(mut self) -> Result<(), SourceError> {
        self.expire_resets();
        self.flush(true);
        for id in self.partitions.select(|p| p.phase == Phase::Reading) {
            let partition = self.partitions.get(id);
            if let Some(offset) = partition.bounded_end() {
                let (stream, label) = (&partition.stream, &partition.label);
                let last = partition.last_record;
                let submission = position_frame(self.context, stream, label, offset, last);
                self.outbox.push_back(PartitionFrame {
                    partition: id,
                    next_offset: offset,
                    submission,
                });
            }
        }
        while self.is_to_continue() && !self.outbox.is_empty() {
            self.hand_over()?;
            drop(self.consumer.poll(POLL_INTERVAL));
        }
        while self.is_to_continue() && !self.handoff.wait_idle(POLL_INTERVAL) {
            drop(self.consumer.poll(Duration::ZERO));
        }
        let ids = self.partitions.select(|p| p.is_assigned);
        self.commit_and_wait(&ids, COMMIT_TIMEOUT);
        self.release();
        self.publish_end();
        self.report_unknown_resets();
        let halted = self.partitions.iter().find_map(|p| match &p.phase {
            Phase::Halted(reason) => Some(reason.clone()),
            _ => None,
        });
        // Everything else was read; a run that lacks records must not look complete.
        halted.map_or(Ok(()), |reason| Err(broker_error(self.def, &reason)))
    }

    /// Names accepted resets of partitions that do not exist.
    fn report_unknown_resets(&self) {
        let halted = self.partitions.iter();
        let halted: Vec<&str> = halted
            .filter(|p| matches!(p.phase, Phase::Halted(_)))
            .map(|p| p.label.as_str())
            .collect();
        for label in &self.accepted_resets {
            let Some(name) = TopicPartition::parse(label) else {
                continue;
            };
            let is_read = self.filter.stream_of(&name.topic).is_some();
            if is_read && self.partitions.find(&name.topic, name.number).is_none() {
                tracing::warn!(
                    source = self.context.name,
                    partition = label,
                    halted = halted.join(", "),
                    "--accept-reset had no effect: there is no such partition"
                );
            }
        }
    }

    fn publish_end(&mut self) {
        let mut health = self.health();
        health.state = SourceState::Ended;
        health.reason = None;
        self.context.set_health(health);
    }
}
