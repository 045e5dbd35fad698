//! A topic of Kafka as the destination of records: an idempotent producer, whose queue is bounded,
//! and which counts what the broker has confirmed.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};
use serde_json::value::RawValue;

/// How long brokers may take to answer for the first time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a topic that does not exist is asked for: the broker may create it now.
const TOPIC_TIMEOUT: Duration = Duration::from_secs(3);
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
const ASK_INTERVAL: Duration = Duration::from_millis(100);
/// How long a record is tried before it counts as not delivered.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(60);
/// In addition, at the end, for the last reports.
const FLUSH_MARGIN: Duration = Duration::from_secs(10);
/// How long a full queue is waited for before the next try.
const QUEUE_WAIT: Duration = Duration::from_millis(10);
/// Records between two looks at the reports.
const POLL_RECORDS: u64 = 256;
/// Between two lines of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);
/// Different reasons that are listed.
const MAX_REASONS: usize = 20;
const OTHER_REASONS: &str = "other reasons";

/// What is not an address of a topic, and how to write one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AddressError {
    #[error("write kafka://HOST:PORT/TOPIC, for example kafka://127.0.0.1:9092/orders")]
    Shape,
    #[error("`{0}` is not HOST:PORT, for example 127.0.0.1:9092")]
    Broker(String),
    #[error("`{0}` is not the name of a topic: letters, digits, `.`, `_` and `-`, at most 249")]
    Topic(String),
}

/// A topic with brokers that know where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicAddress {
    /// `HOST:PORT`, separated by commas.
    brokers: String,
    topic: String,
}

impl FromStr for TopicAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let rest = text.strip_prefix("kafka://").ok_or(AddressError::Shape)?;
        let (brokers, topic) = rest.split_once('/').ok_or(AddressError::Shape)?;
        let is_broker = |broker: &&str| {
            broker
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        };
        if let Some(broker) = brokers.split(',').find(|broker| !is_broker(broker)) {
            return Err(AddressError::Broker(broker.to_owned()));
        }
        let is_legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let is_topic = (1..=249).contains(&topic.len()) && topic.chars().all(is_legal);
        if !is_topic || matches!(topic, "." | "..") {
            return Err(AddressError::Topic(topic.to_owned()));
        }
        Ok(Self {
            brokers: brokers.to_owned(),
            topic: topic.to_owned(),
        })
    }
}

impl fmt::Display for TopicAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kafka://{}/{}", self.brokers, self.topic)
    }
}

/// Why records cannot be sent, or were not all delivered.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error("the producer cannot be started: {0}")]
    Start(#[source] KafkaError),
    #[error(
        "{brokers} did not answer within {} seconds: {reason}; start the broker, or correct the address in --to",
        CONNECT_TIMEOUT.as_secs()
    )]
    NoAnswer { brokers: String, reason: String },
    #[error("the topic `{topic}` does not exist at {brokers}; create it, or correct --to")]
    NoTopic { brokers: String, topic: String },
    #[error("{address}: {reason}; {delivered} records were delivered before")]
    Fatal {
        address: TopicAddress,
        reason: String,
        delivered: u64,
    },
    #[error("{failed} of {sent} records were not delivered to {address}: {reasons}")]
    NotDelivered {
        address: TopicAddress,
        sent: u64,
        failed: u64,
        reasons: String,
    },
}

/// What became of all records, if each was delivered.
pub struct DeliveryReport {
    address: TopicAddress,
    delivered: u64,
    time: Duration,
}

impl fmt::Display for DeliveryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (delivered, address) = (self.delivered, &self.address);
        let seconds = self.time.as_secs_f64();
        write!(
            f,
            "{delivered} records delivered to {address} in {seconds:.1} s"
        )
    }
}

/// How many records were confirmed, and why others were not.
#[derive(Debug, Default)]
struct Counts {
    delivered: u64,
    failed: u64,
    reasons: BTreeMap<String, u64>,
    /// The last error of the client library.
    error: Option<String>,
}

impl Counts {
    /// Counts a record that was not delivered; whether the reason is a new one.
    fn fail(&mut self, reason: String, records: u64) -> bool {
        self.failed += records;
        let is_new = !self.reasons.contains_key(&reason);
        let is_listed = !is_new || self.reasons.len() < MAX_REASONS;
        let reason = if is_listed {
            reason
        } else {
            OTHER_REASONS.to_owned()
        };
        *self.reasons.entry(reason).or_default() += records;
        is_new && is_listed
    }

    fn describe(&self) -> String {
        let reasons = self.reasons.iter();
        let shown: Vec<String> = reasons
            .map(|(reason, n)| format!("{n} × {reason}"))
            .collect();
        shown.join("; ")
    }
}

/// Takes the reports of the client library, while it is polled.
#[derive(Debug, Default)]
struct Deliveries(Mutex<Counts>);

impl Deliveries {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts records that were not delivered, and reports a reason when it occurs first.
    fn fail(&self, reason: String, records: u64) {
        let message = format!("weir: not delivered: {reason}");
        if self.counts().fail(reason, records) {
            eprintln!("{message}");
        }
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // What matters is among the errors, or in the report of a delivery.
        tracing::debug!(?level, facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "an error of the client library");
        self.counts().error = Some(reason.to_owned());
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) => self.counts().delivered += 1,
            Err((error, _)) => self.fail(reason_of(error), 1),
        }
    }
}

fn reason_of(error: &KafkaError) -> String {
    let code = error.rdkafka_error_code();
    code.map_or_else(|| error.to_string(), |code| code.to_string())
}

/// A producer of one topic.
pub struct TopicProducer {
    address: TopicAddress,
    key: Option<String>,
    producer: BaseProducer<Deliveries>,
    sent: u64,
    started: Instant,
    shown_at: Instant,
}

impl TopicProducer {
    /// Connects, and looks whether the topic exists; `key` is the field whose text is a message's
    /// key.
    pub fn open(address: &TopicAddress, key: Option<&str>) -> Result<Self, SendError> {
        let mut config = ClientConfig::new();
        config.set_log_level(RDKafkaLogLevel::Info);
        for (name, value) in settings(address) {
            config.set(name, value);
        }
        let producer = config.create_with_context(Deliveries::default());
        let topic = Self {
            address: address.clone(),
            key: key.map(str::to_owned),
            producer: producer.map_err(SendError::Start)?,
            sent: 0,
            started: Instant::now(),
            shown_at: Instant::now(),
        };
        topic.find_topic()?;
        Ok(topic)
    }

    fn find_topic(&self) -> Result<(), SendError> {
        let TopicAddress { brokers, topic } = &self.address;
        let deadline = self.started + CONNECT_TIMEOUT;
        let mut answered_at = None;
        loop {
            let answer = self
                .producer
                .client()
                .fetch_metadata(Some(topic), ASK_TIMEOUT);
            let problem = match &answer {
                Ok(metadata) => {
                    let found = metadata.topics().iter().find(|t| t.name() == topic);
                    let error = found.and_then(|topic| topic.error());
                    if error.is_none() && found.is_some_and(|t| !t.partitions().is_empty()) {
                        return Ok(());
                    }
                    answered_at.get_or_insert_with(Instant::now);
                    error.map_or_else(
                        || "the topic has no partitions yet".to_owned(),
                        |code| RDKafkaErrorCode::from(code).to_string(),
                    )
                }
                Err(error) => reason_of(error),
            };
            // Errors of connections come by polling.
            self.producer.poll(ASK_INTERVAL);
            if answered_at.is_some_and(|at: Instant| at.elapsed() >= TOPIC_TIMEOUT) {
                return Err(SendError::NoTopic {
                    brokers: brokers.clone(),
                    topic: topic.clone(),
                });
            }
            if Instant::now() >= deadline {
                let error = self.producer.context().counts().error.take();
                return Err(SendError::NoAnswer {
                    brokers: brokers.clone(),
                    reason: error.unwrap_or(problem),
                });
            }
        }
    }

    /// Queues a record; waits while the queue is full. A record that cannot be sent is counted.
    ///
    /// # Errors
    ///
    /// The producer has failed as a whole.
    pub fn send(&mut self, record: &str) -> Result<(), SendError> {
        let key = self.key.as_deref().and_then(|key| key_of(record, key));
        self.sent += 1;
        loop {
            let mut message = BaseRecord::<str, str>::to(&self.address.topic).payload(record);
            if let Some(key) = &key {
                message = message.key(key);
            }
            let Err((error, _)) = self.producer.send(message) else {
                break;
            };
            match error.rdkafka_error_code() {
                Some(RDKafkaErrorCode::QueueFull) => self.producer.poll(QUEUE_WAIT),
                Some(RDKafkaErrorCode::Fatal) => return Err(self.fatal()),
                _ => {
                    self.producer.context().fail(reason_of(&error), 1);
                    break;
                }
            }
        }
        if self.sent.is_multiple_of(POLL_RECORDS) {
            self.producer.poll(Duration::ZERO);
            self.show_progress();
        }
        Ok(())
    }

    fn fatal(&self) -> SendError {
        let error = self.producer.client().fatal_error();
        let reason = error.map_or_else(
            || "the producer has failed".to_owned(),
            |(code, reason)| format!("{code}: {reason}"),
        );
        SendError::Fatal {
            address: self.address.clone(),
            reason,
            delivered: self.producer.context().counts().delivered,
        }
    }

    fn show_progress(&mut self) {
        if self.shown_at.elapsed() >= PROGRESS_INTERVAL {
            self.shown_at = Instant::now();
            let delivered = self.producer.context().counts().delivered;
            crate::cli::progress::line(&format!("weir: {delivered} records delivered"));
        }
    }

    /// Takes reports for this long.
    pub fn wait(&mut self, time: Duration) {
        self.producer.poll(time);
        self.show_progress();
    }

    /// Waits until each record is delivered or is not.
    ///
    /// # Errors
    ///
    /// At least one was not.
    pub fn finish(&mut self) -> Result<DeliveryReport, SendError> {
        let deadline = Instant::now() + DELIVERY_TIMEOUT + FLUSH_MARGIN;
        if let Err(error) = self.producer.flush(DELIVERY_TIMEOUT + FLUSH_MARGIN) {
            tracing::debug!(%error, "the queue was not flushed");
        }
        let context = self.producer.context();
        let reported = || {
            let counts = context.counts();
            counts.delivered + counts.failed
        };
        while reported() < self.sent && Instant::now() < deadline {
            self.producer.poll(QUEUE_WAIT);
        }
        let unknown = self.sent.saturating_sub(reported());
        if unknown > 0 {
            context.fail("the broker did not confirm it".to_owned(), unknown);
        }
        let counts = context.counts();
        if counts.failed > 0 {
            return Err(SendError::NotDelivered {
                address: self.address.clone(),
                sent: self.sent,
                failed: counts.failed,
                reasons: counts.describe(),
            });
        }
        Ok(DeliveryReport {
            address: self.address.clone(),
            delivered: counts.delivered,
            time: self.started.elapsed(),
        })
    }
}

/// Settings of the client library. An idempotent producer repeats what was not confirmed, without
/// duplicates and in order.
fn settings(address: &TopicAddress) -> Vec<(&'static str, String)> {
    vec![
        ("bootstrap.servers", address.brokers.clone()),
        ("client.id", "weir".into()),
        ("enable.idempotence", "true".into()),
        ("acks", "all".into()),
        ("compression.codec", "lz4".into()),
        ("linger.ms", "20".into()),
        // The partitions that producers in Java choose for the same keys.
        ("partitioner", "murmur2_random".into()),
        ("queue.buffering.max.messages", "100000".into()),
        ("queue.buffering.max.kbytes", (64 << 10).to_string()),
        // The topic says how long a message may be.
        ("message.max.bytes", (16 << 20).to_string()),
        (
            "message.timeout.ms",
            DELIVERY_TIMEOUT.as_millis().to_string(),
        ),
        ("reconnect.backoff.max.ms", "1000".into()),
    ]
}

/// The text of a record's member, or of what a path of members leads to; none if the record lacks
/// it or has null there.
fn key_of(record: &str, field: &str) -> Option<String> {
    let found = member(record, field).or_else(|| {
        let mut names = field.split('.');
        let first = member(record, names.next()?)?;
        names.try_fold(first, |value, name| member(value.get(), name))
    })?;
    match found.get() {
        "null" => None,
        text if text.starts_with('"') => serde_json::from_str(text).ok(),
        text => Some(text.to_owned()),
    }
}

fn member<'a>(object: &'a str, name: &str) -> Option<&'a RawValue> {
    let members: HashMap<String, &RawValue> = serde_json::from_str(object).ok()?;
    members.get(name).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_brokers_and_a_topic() {
        let parsed: TopicAddress = "kafka://a:1,[::1]:2/shop.orders".parse().expect("valid");
        assert_eq!(parsed.brokers, "a:1,[::1]:2");
        assert_eq!(parsed.topic, "shop.orders");
        assert_eq!(parsed.to_string(), "kafka://a:1,[::1]:2/shop.orders");
        let wrong = [
            "http://a:1/t",
            "kafka://a:1",
            "kafka://a/t",
            "kafka://a:1,/t",
            "kafka://a:70000/t",
            "kafka://a:1/",
            "kafka://a:1/t/0",
            "kafka://a:1/..",
        ];
        let parse = |text: &str| text.parse::<TopicAddress>().expect_err("wrong").to_string();
        insta::assert_snapshot!(wrong.map(parse).join("\n"), @r#"
        write kafka://HOST:PORT/TOPIC, for example kafka://127.0.0.1:9092/orders
        write kafka://HOST:PORT/TOPIC, for example kafka://127.0.0.1:9092/orders
        `a` is not HOST:PORT, for example 127.0.0.1:9092
        `` is not HOST:PORT, for example 127.0.0.1:9092
        `a:70000` is not HOST:PORT, for example 127.0.0.1:9092
        `` is not the name of a topic: letters, digits, `.`, `_` and `-`, at most 249
        `t/0` is not the name of a topic: letters, digits, `.`, `_` and `-`, at most 249
        `..` is not the name of a topic: letters, digits, `.`, `_` and `-`, at most 249
        "#);
    }

    #[test]
    fn the_client_library_accepts_every_setting() {
        let address = "kafka://127.0.0.1:1/t".parse().expect("valid");
        let mut config = ClientConfig::new();
        for (name, value) in settings(&address) {
            config.set(name, value);
        }
        let created = config.create_with_context::<_, BaseProducer<_>>(Deliveries::default());
        assert!(created.is_ok());
    }

    #[test]
    fn a_key_is_the_text_of_a_member_or_a_path() {
        let record = r#"{"id":12,"name":"a\"b","venue":{"id":1.50,"none":null},"a.b":true,"a":{"b":1},"list":[1]}"#;
        for (field, key) in [
            ("id", Some("12")),
            ("name", Some("a\"b")),
            ("venue.id", Some("1.50")),
            ("venue.none", None),
            ("venue.id.x", None),
            // A member of this name has precedence over a path.
            ("a.b", Some("true")),
            ("list", Some("[1]")),
            ("other", None),
            ("", None),
        ] {
            assert_eq!(key_of(record, field).as_deref(), key, "{field}");
        }
        assert_eq!(key_of("not JSON", "id"), None);
        assert_eq!(key_of("[1]", "id"), None);
    }

    #[test]
    fn reasons_are_counted_and_their_number_is_limited() {
        let mut counts = Counts::default();
        assert!(counts.fail("a".into(), 1));
        assert!(!counts.fail("a".into(), 2));
        assert_eq!(counts.describe(), "3 × a");
        for n in 1..MAX_REASONS {
            assert!(counts.fail(n.to_string(), 1));
        }
        assert!(!counts.fail("beyond".into(), 1));
        assert!(!counts.fail("beyond as well".into(), 1));
        assert_eq!(counts.reasons[OTHER_REASONS], 2);
        assert_eq!(counts.failed, 3 + MAX_REASONS as u64 - 1 + 2);
    }
}
