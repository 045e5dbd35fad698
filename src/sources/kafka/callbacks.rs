//! What the client library reports while it is polled: changes of the assignment, statistics, errors
//! and its log. All of it is put into a mailbox, from which the source takes it between two polls.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;

use super::topics::TopicPartition;

/// A change of the assignment. The group waits until the source has answered it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rebalance {
    Assigned(Vec<TopicPartition>),
    Revoked(Vec<TopicPartition>),
}

/// What the client library knows of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PartitionStatistics {
    pub name: TopicPartition,
    /// Its leader is connected: what is known of its end is up to date.
    pub is_led: bool,
    /// The offset after the last record, which may be part of an open transaction.
    pub high: Option<u64>,
    /// The offset that the group confirmed last.
    pub committed: Option<u64>,
}

/// Reports since the source took them last.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    pub rebalances: VecDeque<Rebalance>,
    pub partitions: Vec<PartitionStatistics>,
    /// A broker is connected, by the last statistics.
    pub is_connected: Option<bool>,
    /// By any of the statistics since they were taken the last time.
    pub was_disconnected: bool,
    pub errors: Errors,
}

/// The last error of each kind, other than those of a position.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Errors {
    /// Of a connection, which may be one of several.
    pub connection: Option<String>,
    /// Of anything else: a topic, a right, the group.
    pub other: Option<String>,
}

/// Whether an error is one of a connection.
fn is_of_connection(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{
        AllBrokersDown, Authentication, BrokerTransportFailure, OperationTimedOut, Resolve, SSL,
    };
    matches!(
        code,
        AllBrokersDown
            | Authentication
            | BrokerTransportFailure
            | OperationTimedOut
            | Resolve
            | SSL
    )
}

/// Whether the broker does not have a partition's position any more.
pub(super) fn is_of_position(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange
    )
}

/// Whether a batch of records could not be read.
pub(super) fn is_of_content(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::BadMessage
            | RDKafkaErrorCode::BadCompression
            | RDKafkaErrorCode::NotImplemented
    )
}

/// The callbacks of one consumer.
#[derive(Debug)]
pub(super) struct Callbacks {
    source: String,
    mailbox: Mutex<Mailbox>,
    /// The consumer is being closed: no one takes reports any more.
    is_closing: AtomicBool,
}

impl Callbacks {
    pub fn new(source: &str) -> Self {
        Self {
            source: source.to_owned(),
            mailbox: Mutex::default(),
            is_closing: AtomicBool::new(false),
        }
    }

    pub fn mailbox(&self) -> MutexGuard<'_, Mailbox> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on changes of the assignment are answered at once, by giving everything back.
    pub fn close(&self) {
        self.is_closing.store(true, Ordering::Release);
    }
}

impl ClientContext for Callbacks {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        use RDKafkaLogLevel::{Alert, Critical, Debug, Emerg, Error, Info, Notice, Warning};
        let source = &self.source;
        match level {
            Emerg | Alert | Critical => tracing::error!(source, facility, "{message}"),
            // A broker that cannot be reached is an error here once per attempt; the source
            // reports it once.
            Error if facility == "FAIL" => tracing::debug!(source, facility, "{message}"),
            Error | Warning => tracing::warn!(source, facility, "{message}"),
            Notice | Info => tracing::debug!(source, facility, "{message}"),
            Debug => tracing::trace!(source, facility, "{message}"),
        }
    }

    fn stats(&self, statistics: Statistics) {
        let is_connected = statistics.brokers.values().any(|b| b.state == "UP");
        let is_up = |node: i32| {
            let leader = statistics.brokers.values().find(|b| b.nodeid == node);
            leader.is_some_and(|broker| broker.state == "UP")
        };
        let offset = |value: i64| u64::try_from(value).ok();
        let partitions = statistics.topics.values().flat_map(|topic| {
            // A number below zero stands for messages without a partition.
            let known = topic.partitions.values().filter(|p| p.partition >= 0);
            known.map(|partition| PartitionStatistics {
                name: TopicPartition::new(&topic.topic, partition.partition),
                is_led: is_up(partition.leader),
                high: offset(partition.hi_offset),
                committed: offset(partition.committed_offset),
            })
        });
        let partitions = partitions.collect();
        let mut mailbox = self.mailbox();
        mailbox.partitions = partitions;
        mailbox.is_connected = Some(is_connected);
        mailbox.was_disconnected |= !is_connected;
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(source = self.source, %error, reason, "an error of the client library");
        let code = error.rdkafka_error_code();
        if code.is_some_and(is_of_position) {
            // Polling returns it too, and the source decides what follows.
            tracing::warn!(source = self.source, reason, "the broker lacks a position");
            return;
        }
        let errors = &mut self.mailbox().errors;
        // That all are down says less than the error of the last one before it.
        if code == Some(RDKafkaErrorCode::AllBrokersDown) && errors.connection.is_some() {
            return;
        }
        let kind = if code.is_some_and(is_of_connection) {
            &mut errors.connection
        } else {
            &mut errors.other
        };
        *kind = Some(reason.to_owned());
    }
}

impl ConsumerContext for Callbacks {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        error: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        if self.is_closing.load(Ordering::Acquire) {
            // While a consumer closes, this takes everything away.
            if let Err(error) = consumer.unassign() {
                tracing::debug!(source = self.source, %error, "partitions were not given back");
            }
            return;
        }
        let elements = list.elements();
        let names = elements
            .iter()
            .map(|element| TopicPartition::new(element.topic(), element.partition()))
            .collect();
        let is_assignment = error == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        self.mailbox().rebalances.push_back(if is_assignment {
            Rebalance::Assigned(names)
        } else {
            Rebalance::Revoked(names)
        });
    }
}
