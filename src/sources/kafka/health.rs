//! What status, readiness and metrics show of the source.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Source;
use super::callbacks::Errors;
use super::partitions::{Partition, Phase};
use crate::event::{SourceHealth, SourceState};

/// Partitions that status lists by name.
const MAX_LISTED: usize = 1_000;
/// How long an error is shown while everything seems well: the client library repeats errors of
/// topics when it refreshes its metadata, every 10 seconds.
const PROBLEM_TIME: Duration = Duration::from_secs(25);

/// Whether a broker is connected, and the last errors.
#[derive(Default)]
pub(super) struct Connection {
    is_up: bool,
    was_up: bool,
    /// No broker is connected after one was.
    is_lost: bool,
    /// Why no broker is connected.
    failure: Option<String>,
    /// What else is wrong, and since when.
    problem: Option<(String, Instant)>,
    /// Waiting was logged.
    is_reported: bool,
}

impl Connection {
    /// Takes reports of the client library.
    pub fn update(&mut self, is_connected: Option<bool>, errors: Errors) {
        if let Some(reason) = errors.connection {
            self.failure = Some(reason);
        }
        if let Some(reason) = errors.other {
            self.set_problem(&reason);
        }
        if let Some(is_up) = is_connected {
            self.is_lost |= self.is_up && !is_up;
            self.is_up = is_up;
        }
        if self.is_up {
            self.was_up = true;
            self.failure = None;
        }
    }

    /// A broker has answered.
    pub fn note_answer(&mut self) {
        self.update(Some(true), Errors::default());
        self.problem = None;
    }

    /// Whether, since the last call, the last connection to a broker was lost.
    pub fn take_loss(&mut self) -> bool {
        std::mem::take(&mut self.is_lost)
    }

    pub fn set_problem(&mut self, reason: &str) {
        self.problem = Some((reason.to_owned(), Instant::now()));
    }

    pub fn is_up(&self) -> bool {
        self.is_up
    }

    /// The last error.
    pub fn describe(&self) -> &str {
        let problem = self.problem.as_ref().map(|(reason, _)| reason);
        let reason = self.failure.as_ref().or(problem);
        reason.map_or("no answer", String::as_str)
    }

    /// Why the source waits, if it does.
    fn waits_for(&self, brokers: &[String], has_partitions: bool) -> Option<String> {
        let brokers = brokers.join(", ");
        if !self.is_up {
            return Some(match (&self.failure, self.was_up) {
                (Some(reason), _) => format!("{brokers}: not connected: {reason}; reconnecting"),
                (None, true) => format!("{brokers}: not connected; reconnecting"),
                (None, false) => format!("{brokers}: not connected yet"),
            });
        }
        let recent = |at: &Instant| at.elapsed() < PROBLEM_TIME;
        match &self.problem {
            Some((reason, at)) if !has_partitions || recent(at) => {
                Some(format!("{brokers}: {reason}"))
            }
            _ if !has_partitions => Some(format!("{brokers}: no partition is assigned yet")),
            _ => None,
        }
    }
}

/// The source's health from that of its partitions. Pure.
fn summarize<'a>(
    partitions: impl Iterator<Item = &'a Partition>,
    waits_for: Option<String>,
    registry_failure: Option<&str>,
) -> SourceHealth {
    let mut health = SourceHealth {
        state: SourceState::Running,
        ..SourceHealth::default()
    };
    for partition in partitions {
        let reason = match &partition.phase {
            Phase::Halted(reason) => {
                health.halted_total += 1;
                Some(reason.clone())
            }
            Phase::AwaitingSchema(id) => {
                registry_failure.map(|failure| format!("waits for schema {id}: {failure}"))
            }
            _ => None,
        };
        if let Some(reason) = reason {
            health.waiting_total += 1;
            health.reason.get_or_insert_with(|| reason.clone());
            if health.waiting.len() < MAX_LISTED {
                health.waiting.insert(partition.label.clone(), reason);
            }
        }
        if let Some(lag) = partition.lag().filter(|_| partition.phase != Phase::Idle)
            && health.lag.len() < MAX_LISTED
        {
            health.lag.insert(partition.label.clone(), lag);
        }
    }
    if let Some(reason) = waits_for {
        health.state = SourceState::Waiting;
        health.reason = Some(reason);
    }
    health
}

impl Source<'_> {
    pub(super) fn health(&self) -> SourceHealth {
        let has_partitions = self.partitions.iter().any(|p| p.phase != Phase::Idle);
        let waits_for = self.connection.waits_for(&self.def.brokers, has_partitions);
        let failure = self.registry_failure();
        let waits_for = waits_for.or_else(|| failure.clone());
        summarize(self.partitions.iter(), waits_for, failure.as_deref())
    }

    /// Publishes the health, and reports a change of it once.
    pub(super) fn publish_health(&mut self) {
        let health = self.health();
        let is_waiting = health.state == SourceState::Waiting;
        let reason = health.reason.clone().filter(|_| is_waiting);
        let source = &self.context.name;
        let has_cause = self.connection.failure.is_some()
            || self.connection.problem.is_some()
            || self.registry_failure().is_some();
        match reason {
            // Only the first reason is worth a warning.
            Some(reason) if has_cause && !self.connection.is_reported => {
                tracing::warn!(source, reason, "waiting");
                self.connection.is_reported = true;
            }
            None if self.connection.is_reported => {
                tracing::info!(source, "reading again");
                self.connection.is_reported = false;
            }
            Some(_) | None => {}
        }
        // Time passes in a silent partition only while it is known to be silent.
        let mut ours = self.partitions.iter().filter(|p| p.phase != Phase::Idle);
        let may_be_silent =
            !self.context.once && !is_waiting && !self.is_paused && self.outbox.is_empty();
        let is_silent = may_be_silent && ours.all(Partition::is_silent);
        self.context
            .is_connected
            .store(is_silent, Ordering::Release);
        self.context.set_health(health);
    }
}

#[cfg(test)]
mod tests {
    use super::super::partitions::PartitionTable;
    use super::super::topics::TopicPartition;
    use super::*;

    #[test]
    fn a_halted_partition_is_listed_and_the_source_runs() {
        let mut table = PartitionTable::default();
        let mut add = |number: i32, phase: Phase| {
            let id = table.add(TopicPartition::new("t", number), "s");
            let partition = table.get_mut(id);
            (partition.taken, partition.high) = (Some(5), Some(8));
            partition.phase = phase;
        };
        add(0, Phase::Reading);
        add(1, Phase::Halted("gone".into()));
        add(2, Phase::Idle);
        let health = summarize(table.iter(), None, None);
        assert_eq!(health.state, SourceState::Running);
        assert_eq!(
            (health.reason.as_deref(), health.waiting_total),
            (Some("gone"), 1)
        );
        assert_eq!(health.waiting["t/1"], "gone");
        assert_eq!(health.lag.get("t/0"), Some(&3));
        assert_eq!(health.lag.get("t/2"), None);
        let waiting = summarize(table.iter(), Some("down".into()), None);
        assert_eq!(waiting.state, SourceState::Waiting);
        assert_eq!(waiting.reason.as_deref(), Some("down"));
        // A partition that waits for the registry is listed once the registry fails.
        table.get_mut(0).phase = Phase::AwaitingSchema(7);
        assert_eq!(summarize(table.iter(), None, None).waiting_total, 1);
        let waiting = summarize(table.iter(), Some("down".into()), Some("down"));
        assert_eq!((waiting.waiting_total, waiting.halted_total), (2, 1));
        assert_eq!(waiting.waiting["t/0"], "waits for schema 7: down");
    }

    #[test]
    fn a_source_waits_for_a_connection_and_for_partitions() {
        let brokers = ["b:1".to_owned()];
        let mut connection = Connection::default();
        let mut shown = vec![connection.waits_for(&brokers, false)];
        let refused = || Errors {
            connection: Some("refused".into()),
            other: None,
        };
        connection.update(None, refused());
        shown.push(connection.waits_for(&brokers, false));
        connection.update(Some(true), Errors::default());
        shown.push(connection.waits_for(&brokers, false));
        assert_eq!(connection.waits_for(&brokers, true), None);
        // One connection of several.
        connection.update(Some(true), refused());
        assert_eq!(connection.waits_for(&brokers, true), None);
        connection.set_problem("not authorized");
        shown.push(connection.waits_for(&brokers, true));
        connection.note_answer();
        assert_eq!(connection.waits_for(&brokers, true), None);
        assert!(!connection.take_loss());
        connection.update(Some(false), Errors::default());
        assert!(connection.take_loss() && !connection.take_loss());
        shown.push(connection.waits_for(&brokers, true));
        connection.update(Some(true), Errors::default());
        assert!(!connection.take_loss());
        let shown: Vec<String> = shown.into_iter().flatten().collect();
        insta::assert_snapshot!(shown.join("\n"), @r#"
        b:1: not connected yet
        b:1: not connected: refused; reconnecting
        b:1: no partition is assigned yet
        b:1: not authorized
        b:1: not connected; reconnecting
        "#);
    }
}
