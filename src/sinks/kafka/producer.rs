//! A transactional producer that commits the sink's cursor with its messages.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::executor::block_on;
use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::messages::{Message, MessageId};
use crate::config::sinks::KafkaSink;
use crate::sinks::lock_of;
use crate::sinks::{Cursor, SinkError};
use crate::sources::kafka::client;

/// How long the broker may take to begin or end a transaction, or to say where the sink is.
const TIMEOUT: Duration = Duration::from_secs(25);
/// How long it may take to say where the sink is before the sink is taken. With two more of
/// [`TIMEOUT`] it is within the time that a command to the sink waits.
const LOOK_TIMEOUT: Duration = Duration::from_secs(8);
/// Limits of a batch of messages, at first. The broker works on one request of a connection at a
/// time, so that small ones are slow, however many are on their way.
pub const BATCHES: Batches = Batches {
    bytes: 512 << 10,
    messages: 10_000,
};
/// How long a full queue may take to get room.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(25);
/// The broker ends a transaction that takes longer, and fences its producer.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);
/// How long one call waits for delivery reports. It always waits that long.
const POLL: Duration = Duration::from_millis(5);
/// How long reports of the client library are waited for after an error, and how many are taken.
const REPORT_WAIT: Duration = Duration::from_millis(50);
const MAX_REPORTS: usize = 64;
/// Sending polls the library for delivery reports after so many messages. A report is of a whole
/// batch; its messages count as queued until it is taken.
const POLL_EVERY: usize = 32;
/// The partition in whose name the cursor is committed; every topic has it.
const CURSOR_PARTITION: i32 = 0;
/// Reasons of refused messages that one attempt keeps.
const MAX_REFUSED: usize = 1_000;

/// Limits of a batch of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batches {
    /// A message of more bytes is sent alone.
    pub bytes: usize,
    pub messages: usize,
}

impl Default for Batches {
    fn default() -> Self {
        BATCHES
    }
}

/// Why a transaction failed.
#[derive(Debug)]
pub enum TransactionError {
    /// Another producer of the name has taken its place.
    Fenced,
    Sink(SinkError),
}

impl From<SinkError> for TransactionError {
    fn from(error: SinkError) -> Self {
        Self::Sink(error)
    }
}

/// A transaction that was not committed.
pub struct Failed {
    pub error: TransactionError,
    /// Rows that the broker refuses for good, with its reasons.
    pub refused: Vec<(MessageId, String)>,
    /// Messages were refused together: each may be small enough.
    pub is_batch_refused: bool,
    /// The topic takes no message without a key.
    pub needs_keys: bool,
    /// The last row of a batch in which a message is invalid, it is not known which.
    pub last_suspect: Option<usize>,
}

/// What the broker said of messages.
#[derive(Default)]
struct Reports {
    refused: Vec<(MessageId, String)>,
    is_batch_refused: bool,
    /// Of a batch in which a message is invalid; and whether one of its messages has no key.
    last_suspect: Option<usize>,
    lacks_key: bool,
    first_error: Option<KafkaError>,
    /// The last error of the client itself.
    problem: Option<String>,
}

/// Collects the reports of messages, and the last error of a connection.
#[derive(Clone, Default)]
struct Callbacks {
    reports: Arc<Mutex<Reports>>,
    batches: Batches,
}

impl Callbacks {
    /// An error with what the client library said of its cause, such as a wrong password: the error
    /// itself only says that there was no answer.
    fn explain(&self, error: TransactionError) -> TransactionError {
        let problem = lock_of(&self.reports).problem.take();
        match (error, problem) {
            (TransactionError::Sink(SinkError::Unavailable(reason)), Some(problem)) => {
                SinkError::Unavailable(format!("{reason}: {problem}")).into()
            }
            (error, _) => error,
        }
    }
}

impl ClientContext for Callbacks {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "kafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka");
        let mut reports = lock_of(&self.reports);
        // That all brokers are down says less than the error of the last one before it.
        let says_less = error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown);
        if !says_less || reports.problem.is_none() {
            reports.problem = Some(reason.to_owned());
        }
    }
}

impl ConsumerContext for Callbacks {}

impl ProducerContext for Callbacks {
    /// The LSN of its row.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, lsn: Self::DeliveryOpaque) {
        let Err((error, message)) = result else {
            return;
        };
        let (key, value) = (message.key(), message.payload());
        let bytes: usize = [key, value].iter().flatten().map(|part| part.len()).sum();
        let mut reports = lock_of(&self.reports);
        let reason = match error.rdkafka_error_code() {
            // The broker compares a batch with the limit of the topic, and refuses all of it.
            Some(code) if is_too_large(code) && bytes < self.batches.bytes => {
                reports.is_batch_refused = true;
                return;
            }
            Some(code) if is_too_large(code) => too_large(value),
            // The broker names the invalid messages of a batch, but if it is a single one, the
            // library reports all of the batch as invalid. Sent alone, a message is the invalid one.
            Some(RDKafkaErrorCode::InvalidRecord) if self.batches.messages > 1 => {
                reports.lacks_key |= key.is_none();
                reports.last_suspect = reports.last_suspect.max(Some(lsn));
                return;
            }
            Some(RDKafkaErrorCode::InvalidRecord) => {
                format!("the broker refuses the message: {error}")
            }
            _ => {
                reports.first_error.get_or_insert_with(|| error.clone());
                return;
            }
        };
        if reports.refused.len() < MAX_REFUSED {
            let id = Message { lsn, key, value }.id();
            reports.refused.push((id, reason));
        }
    }
}

fn is_too_large(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::MessageBatchTooLarge
    )
}

fn too_large(value: Option<&[u8]>) -> String {
    let bytes = value.map_or(0, <[u8]>::len);
    format!("the message of {bytes} bytes is over the limit of the topic")
}

/// A producer that writes transactions.
pub struct Transactions {
    producer: BaseProducer<Callbacks>,
    reports: Callbacks,
    group: ConsumerGroupMetadata,
    topic: String,
    /// To ask what the topic takes.
    connection: ClientConfig,
    sent: usize,
}

impl Transactions {
    /// Ends what a producer of this name left open, and returns the cursor that is committed.
    pub fn begin(
        def: &KafkaSink,
        name: &str,
        batches: Batches,
    ) -> Result<(Self, Option<Cursor>), TransactionError> {
        let connection = connection(def)?;
        let group = CursorGroup::new(connection.clone(), name, "read_committed")?;
        let reports = Callbacks {
            batches,
            ..Callbacks::default()
        };
        let producer: BaseProducer<Callbacks> = connection
            .clone()
            .set("transactional.id", name)
            .set("client.id", "weir")
            .set(
                "transaction.timeout.ms",
                TRANSACTION_TIMEOUT.as_millis().to_string(),
            )
            .set("compression.type", def.compression.name())
            // The partitions that producers in Java choose for the same keys. One key, also the
            // empty one, is in one partition: a compacted topic then keeps its last message.
            .set("partitioner", "murmur2_random")
            .set("linger.ms", if batches.messages > 1 { "5" } else { "0" })
            .set("batch.size", batches.bytes.to_string())
            .set("batch.num.messages", batches.messages.to_string())
            .set("message.max.bytes", (4 << 20).to_string())
            .set("queue.buffering.max.kbytes", (16 << 10).to_string())
            .create_with_context(reports.clone())
            .map_err(|e| SinkError::Halted(client::setting_error(&e)))?;
        if let Err(error) = producer.init_transactions(TIMEOUT) {
            producer.poll(REPORT_WAIT);
            return Err(reports.explain(of_kafka(&error)));
        }
        let cursor = group.cursor(&def.topic, TIMEOUT)?;
        let transactions = Self {
            producer,
            reports,
            group: group.metadata()?,
            topic: def.topic.clone(),
            connection,
            sent: 0,
        };
        Ok((transactions, cursor))
    }

    /// Begins a transaction.
    pub fn start(&mut self) -> Result<(), TransactionError> {
        *lock_of(&self.reports.reports) = Reports::default();
        self.producer.begin_transaction().map_err(|e| of_kafka(&e))
    }

    /// Hands a message over; returns the reason if it is refused for good.
    pub fn send(&mut self, message: &Message<'_>) -> Result<Option<String>, TransactionError> {
        let deadline = Instant::now() + QUEUE_TIMEOUT;
        let mut record: BaseRecord<'_, [u8], [u8], usize> =
            BaseRecord::with_opaque_to(&self.topic, message.lsn);
        record.key = message.key;
        record.payload = message.value;
        self.sent += 1;
        if self.sent.is_multiple_of(POLL_EVERY) {
            self.producer.poll(Duration::ZERO);
        }
        loop {
            let (error, returned) = match self.producer.send(record) {
                Ok(()) => return Ok(None),
                Err(refused) => refused,
            };
            match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::QueueFull) if Instant::now() < deadline => {
                    self.producer.poll(POLL);
                    record = returned;
                }
                Some(RDKafkaErrorCode::MessageSizeTooLarge) => {
                    return Ok(Some(too_large(message.value)));
                }
                _ => return Err(self.of_transaction(&error)),
            }
        }
    }

    /// Waits until the broker has all messages; an error if it lacks one, of which [`Self::fail`]
    /// says why.
    pub fn flush(&mut self) -> Result<(), TransactionError> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            match self.producer.flush(Duration::ZERO) {
                Err(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut))
                    if Instant::now() < deadline =>
                {
                    self.producer.poll(POLL);
                }
                flushed => {
                    flushed.map_err(|e| self.of_transaction(&e))?;
                    break;
                }
            }
        }
        let reports = lock_of(&self.reports.reports);
        let is_refused = !reports.refused.is_empty()
            || reports.is_batch_refused
            || reports.last_suspect.is_some();
        if !is_refused && reports.first_error.is_none() {
            return Ok(());
        }
        Err(SinkError::Unavailable("messages were not written".into()).into())
    }

    /// Ends a transaction that has failed, with what the broker said of its messages. Once it has
    /// refused one, the library takes no more, and only says that it is in the wrong state.
    pub fn fail(self, error: TransactionError) -> Failed {
        self.producer.poll(REPORT_WAIT);
        let Reports {
            refused,
            is_batch_refused,
            last_suspect,
            lacks_key,
            first_error,
            ..
        } = std::mem::take(&mut *lock_of(&self.reports.reports));
        let passes = matches!(error, TransactionError::Sink(SinkError::Unavailable(_)));
        let needs_keys = lacks_key && is_compacted(&self.connection, &self.topic);
        let error = match (refused.first(), first_error) {
            // The rest is sent again without these.
            (Some((_, reason)), _) if passes => SinkError::Unavailable(reason.clone()).into(),
            (None, _) if passes && is_batch_refused => {
                let bytes = self.reports.batches.bytes;
                let reason =
                    format!("the topic takes no batch of {bytes} bytes; smaller ones are sent");
                SinkError::Unavailable(reason).into()
            }
            (None, _) if passes && last_suspect.is_some() => {
                let reason = if needs_keys {
                    "the topic is compacted and takes no message without a key"
                } else {
                    "the broker refuses an invalid message; each is sent alone to find it"
                };
                SinkError::Unavailable(reason.into()).into()
            }
            (None, Some(first)) if passes => self.of_transaction(&first),
            _ => error,
        };
        Failed {
            error,
            refused,
            is_batch_refused,
            last_suspect,
            needs_keys,
        }
    }

    /// What an error within a transaction means. Messages of a producer that another one has
    /// replaced fail in many ways; why, its fatal error says.
    fn of_transaction(&self, error: &KafkaError) -> TransactionError {
        match self.producer.client().fatal_error() {
            Some((code, _)) if is_fenced(code) => TransactionError::Fenced,
            _ => of_kafka(error),
        }
    }

    /// Commits the messages, which the broker has, together with the cursor after them.
    pub fn commit(&mut self, cursor: &Cursor) -> Result<(), TransactionError> {
        let mut offsets = TopicPartitionList::new();
        let mut cursor_offset = offsets.add_partition(&self.topic, CURSOR_PARTITION);
        let offset = Offset::Offset(i64::try_from(cursor.lsn).unwrap_or(i64::MAX));
        cursor_offset.set_offset(offset).map_err(|e| of_kafka(&e))?;
        cursor_offset.set_metadata(cursor.to_json());
        self.producer
            .send_offsets_to_transaction(&offsets, &self.group, TIMEOUT)
            .map_err(|e| self.of_transaction(&e))?;
        self.producer
            .commit_transaction(TIMEOUT)
            .map_err(|e| self.of_transaction(&e))
    }
}

/// Whether the topic keeps the last message of each key, so that it takes none without one; false if
/// the broker does not say, or the user may not know.
fn is_compacted(connection: &ClientConfig, topic: &str) -> bool {
    let options = AdminOptions::new().request_timeout(Some(LOOK_TIMEOUT));
    let described = connection
        .create()
        .and_then(|admin: AdminClient<DefaultClientContext>| {
            block_on(admin.describe_configs(&[ResourceSpecifier::Topic(topic)], &options))
        });
    let topics = described.into_iter().flatten().flatten();
    let mut policies = topics.filter_map(|topic| topic.get("cleanup.policy")?.value.clone());
    policies.any(|policy| policy.contains("compact"))
}

/// Settings of a client that connects as declared.
fn connection(def: &KafkaSink) -> Result<ClientConfig, SinkError> {
    let connection = client::connection(&def.brokers, &def.security)
        .map_err(|e| SinkError::Halted(e.to_string()))?;
    let mut config = ClientConfig::new();
    config.set_log_level(RDKafkaLogLevel::Info);
    for (key, value) in &connection {
        config.set(*key, value);
    }
    Ok(config)
}

/// The cursor that is committed, while another producer of the name may work: what its transaction
/// commits is not waited for.
pub fn look(def: &KafkaSink, name: &str) -> Result<Option<Cursor>, TransactionError> {
    CursorGroup::new(connection(def)?, name, "read_uncommitted")?.cursor(&def.topic, LOOK_TIMEOUT)
}

/// The group whose committed offset has the cursor. Nothing joins it.
struct CursorGroup {
    consumer: BaseConsumer<Callbacks>,
    reports: Callbacks,
}

impl CursorGroup {
    fn new(mut config: ClientConfig, name: &str, isolation: &str) -> Result<Self, SinkError> {
        let reports = Callbacks::default();
        let consumer = config
            .set("group.id", name)
            .set("isolation.level", isolation)
            .set("enable.auto.commit", "false")
            .create_with_context(reports.clone())
            .map_err(|e| SinkError::Halted(client::setting_error(&e)))?;
        Ok(Self { consumer, reports })
    }

    fn metadata(&self) -> Result<ConsumerGroupMetadata, SinkError> {
        let missing = || SinkError::Unavailable("the client library has no group".into());
        self.consumer.group_metadata().ok_or_else(missing)
    }

    /// The cursor of the committed offset; none if nothing was ever committed.
    fn cursor(&self, topic: &str, timeout: Duration) -> Result<Option<Cursor>, TransactionError> {
        let mut asked = TopicPartitionList::new();
        asked.add_partition(topic, CURSOR_PARTITION);
        let committed = self
            .consumer
            .committed_offsets(asked, timeout)
            .map_err(|error| {
                // Takes the reports that wait: each poll returns after one.
                let is_report = |_: &usize| self.consumer.poll(REPORT_WAIT).is_some();
                (0..MAX_REPORTS).take_while(is_report).for_each(drop);
                self.reports.explain(of_kafka(&error))
            })?;
        let Some(found) = committed.find_partition(topic, CURSOR_PARTITION) else {
            return Ok(None);
        };
        match found.offset() {
            Offset::Offset(_) => {
                let not_ours = format!(
                    "the group of the sink has an offset for {topic} that is not a cursor of weir; give the sink another name"
                );
                let cursor = serde_json::from_str(found.metadata());
                Ok(Some(cursor.map_err(|_| SinkError::Halted(not_ours))?))
            }
            _ => Ok(None),
        }
    }
}

/// Whether another producer has taken the place of this one.
fn is_fenced(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::ProducerFenced
            | RDKafkaErrorCode::Fenced
            | RDKafkaErrorCode::InvalidProducerEpoch
    )
}

/// Without permission somebody must act; everything else passes.
fn of_kafka(error: &KafkaError) -> TransactionError {
    match error.rdkafka_error_code() {
        Some(code) if is_fenced(code) => TransactionError::Fenced,
        Some(
            RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::TransactionalIdAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed,
        ) => SinkError::Halted(format!(
            "{error}; give its user the right to write to the topic, to the transactional id and to the group"
        ))
        .into(),
        _ => SinkError::Unavailable(error.to_string()).into(),
    }
}
