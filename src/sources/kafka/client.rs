//! The client library: its configuration, and the questions that it answers.

use std::time::Duration;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::super::{RecordLimits, SourceError};
use super::assignment::Watermarks;
use super::callbacks::Callbacks;
use super::topics::{TopicFilter, TopicPartition};
use crate::config::{KafkaDef, Security};
use crate::event::Micros;

pub(super) type Consumer = BaseConsumer<Callbacks>;

/// How long one question to a broker may take: a consumer must be polled about every second. What
/// the answer needs, such as a connection, is established in the background and serves the next try.
const QUERY_TIMEOUT: Duration = Duration::from_millis(500);
/// The largest answer of a broker, at least: a batch of records comes whole, however large it is.
const MIN_ANSWER_BYTES: usize = 128 << 20;
/// What an answer has in addition to its records.
const ANSWER_MARGIN_BYTES: usize = 1 << 20;
/// The library accepts no less for all partitions together; more than the maximum is not faster.
const MIN_FETCH_BYTES: usize = 1 << 20;
const MAX_FETCH_BYTES: usize = 64 << 20;
/// Settings with a size are signed numbers of 32 bits.
const MAX_ANSWER_BYTES: usize = 1 << 30;

/// Settings of the client library except for the password; `fetch_bytes` bounds its memory for
/// messages that were fetched and not taken.
fn settings(
    def: &KafkaDef,
    limits: RecordLimits,
    fetch_bytes: usize,
) -> Vec<(&'static str, String)> {
    let fetch_bytes = fetch_bytes.clamp(MIN_FETCH_BYTES, MAX_FETCH_BYTES);
    let answer_bytes = (fetch_bytes.max(limits.max_bytes) + ANSWER_MARGIN_BYTES)
        .clamp(MIN_ANSWER_BYTES, MAX_ANSWER_BYTES);
    let text = str::to_owned;
    vec![
        ("group.id", def.group.clone()),
        ("client.id", text("weir")),
        // Positions are the log's: the library neither stores nor commits nor resets one by itself.
        ("enable.auto.commit", text("false")),
        ("enable.auto.offset.store", text("false")),
        ("auto.offset.reset", text("error")),
        ("isolation.level", text("read_committed")),
        ("partition.assignment.strategy", text("cooperative-sticky")),
        // After a kill the group keeps the partitions from the next start for this long.
        ("session.timeout.ms", text("10000")),
        ("allow.auto.create.topics", text("false")),
        ("topic.metadata.refresh.interval.ms", text("10000")),
        ("statistics.interval.ms", text("1000")),
        ("reconnect.backoff.max.ms", text("5000")),
        ("check.crcs", text("true")),
        (
            "queued.max.messages.kbytes",
            (fetch_bytes >> 10).to_string(),
        ),
        // The library counts values alone: this bounds keys and headers.
        ("queued.min.messages", text("10000")),
        ("fetch.max.bytes", fetch_bytes.to_string()),
        ("fetch.message.max.bytes", MIN_FETCH_BYTES.to_string()),
        ("receive.message.max.bytes", answer_bytes.to_string()),
        // By default a full queue stops fetching for a second.
        ("fetch.queue.backoff.ms", text("20")),
    ]
}

/// Settings of a client that connects as declared; the password is read now.
///
/// # Errors
///
/// The password cannot be read.
pub fn connection(
    brokers: &[String],
    def: &Security,
) -> Result<Vec<(&'static str, String)>, SourceError> {
    let mut settings = vec![("bootstrap.servers", brokers.join(","))];
    settings.extend(security(def));
    if let Some(sasl) = &def.sasl {
        let path = &sasl.password_file;
        let text = std::fs::read_to_string(path).map_err(|source| SourceError::Io {
            path: path.display().to_string(),
            source,
        })?;
        let password = text.trim_end_matches(['\r', '\n']).to_owned();
        settings.push(("sasl.password", password));
    }
    Ok(settings)
}

fn security(def: &Security) -> Vec<(&'static str, String)> {
    let protocol = match (def.is_encrypted, &def.sasl) {
        (false, None) => "plaintext",
        (true, None) => "ssl",
        (false, Some(_)) => "sasl_plaintext",
        (true, Some(_)) => "sasl_ssl",
    };
    let mut settings = vec![("security.protocol", protocol.to_owned())];
    if def.is_encrypted {
        let ca_file = def.ca_file.as_ref().map(|path| path.display().to_string());
        // The built-in OpenSSL does not know where the system's certificates are.
        settings.push(("ssl.ca.location", ca_file.unwrap_or_else(|| "probe".into())));
    }
    if let Some(sasl) = &def.sasl {
        settings.push(("sasl.mechanism", sasl.mechanism.name().to_owned()));
        settings.push(("sasl.username", sasl.user.clone()));
    }
    settings
}

/// A consumer, which connects in the background.
///
/// # Errors
///
/// The password cannot be read, or the library refuses a setting.
pub(super) fn connect(
    def: &KafkaDef,
    limits: RecordLimits,
    fetch_bytes: usize,
    source: &str,
) -> Result<Consumer, SourceError> {
    let mut config = ClientConfig::new();
    config.set_log_level(RDKafkaLogLevel::Info);
    let settings = settings(def, limits, fetch_bytes).into_iter();
    for (key, value) in settings.chain(connection(&def.brokers, &def.security)?) {
        config.set(key, value);
    }
    config
        .create_with_context(Callbacks::new(source))
        .map_err(|error| broker_error(def, &setting_error(&error)))
}

/// The reason of an error in a setting, without its value, which may be a secret.
pub fn setting_error(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, reason, key, _) => format!("{key}: {reason}"),
        other => other.to_string(),
    }
}

/// An error that names the brokers.
pub(super) fn broker_error(def: &KafkaDef, reason: &str) -> SourceError {
    SourceError::Kafka {
        brokers: def.brokers.join(", "),
        reason: reason.to_owned(),
    }
}

/// A list of partitions with offsets, for the library.
pub(super) fn offsets<'a>(
    partitions: impl Iterator<Item = (&'a TopicPartition, u64)>,
) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (name, offset) in partitions {
        let offset = Offset::Offset(i64::try_from(offset).unwrap_or(i64::MAX));
        list.add_partition_offset(&name.topic, name.number, offset)?;
    }
    Ok(list)
}

/// What the broker has of a partition.
pub(super) fn watermarks(consumer: &Consumer, name: &TopicPartition) -> KafkaResult<Watermarks> {
    let (low, high) = consumer.fetch_watermarks(&name.topic, name.number, QUERY_TIMEOUT)?;
    let offset = |offset| u64::try_from(offset).unwrap_or(0);
    Ok(Watermarks {
        low: offset(low),
        high: offset(high),
    })
}

/// Offset of a partition's first record at a time or later, if there is one.
pub(super) fn offset_of_time(
    consumer: &Consumer,
    name: &TopicPartition,
    time: Micros,
) -> KafkaResult<Option<u64>> {
    let millis = u64::try_from(time.div_euclid(1_000)).unwrap_or(0);
    let list = offsets(std::iter::once((name, millis)))?;
    let found = consumer.offsets_for_times(list, QUERY_TIMEOUT)?;
    let Some(element) = found.find_partition(&name.topic, name.number) else {
        return Ok(None);
    };
    element.error()?;
    Ok(match element.offset() {
        Offset::Offset(offset) => u64::try_from(offset).ok(),
        _ => None,
    })
}

/// Partitions that exist of the source's topics, and named topics that do not exist.
pub(super) struct Listing {
    pub partitions: Vec<TopicPartition>,
    pub missing: Vec<String>,
}

/// Lists the partitions of the topics that a source reads.
pub(super) fn list_partitions(consumer: &Consumer, filter: &TopicFilter) -> KafkaResult<Listing> {
    let mut listing = Listing {
        partitions: Vec::new(),
        missing: Vec::new(),
    };
    // All topics only where the names are not known: a cluster may have very many.
    let questions: Vec<Option<&str>> = match filter.named() {
        Some(names) => names.into_iter().map(Some).collect(),
        None => vec![None],
    };
    for question in questions {
        let metadata = consumer.fetch_metadata(question, QUERY_TIMEOUT)?;
        for topic in metadata.topics() {
            if filter.stream_of(topic.name()).is_none() {
                continue;
            }
            let error = topic.error().map(RDKafkaErrorCode::from);
            match error {
                None => {
                    let numbers = topic.partitions().iter().map(|p| p.id());
                    let names = numbers.map(|number| TopicPartition::new(topic.name(), number));
                    listing.partitions.extend(names);
                }
                Some(RDKafkaErrorCode::UnknownTopicOrPartition) => {
                    listing.missing.push(topic.name().to_owned());
                }
                Some(code) => return Err(KafkaError::MetadataFetch(code)),
            }
        }
    }
    Ok(listing)
}

/// Closes a consumer in a thread of its own, for this long at most: it waits for the broker, which
/// may be gone.
pub(super) fn close(consumer: Consumer, timeout: Duration) {
    consumer.context().close();
    let (done, closed) = std::sync::mpsc::channel();
    let closing = std::thread::Builder::new()
        .name("kafka-close".into())
        .spawn(move || {
            drop(consumer);
            let _ = done.send(());
        });
    if closing.is_ok() && closed.recv_timeout(timeout).is_err() {
        tracing::debug!("the broker did not confirm that the consumer left its group");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::{MessageFormat, StartFrom, Topics};
    use crate::message::Tombstone;

    fn def(security: Security) -> KafkaDef {
        KafkaDef {
            brokers: vec!["a:1".into(), "b:2".into()],
            topics: Topics::Named(BTreeMap::new()),
            group: "g".into(),
            tombstone: Tombstone::default(),
            format: MessageFormat::default(),
            from: StartFrom::Earliest,
            security,
        }
    }

    const LIMITS: RecordLimits = RecordLimits {
        max_bytes: 1 << 20,
        truncated_bytes: 64 << 10,
    };

    #[test]
    fn the_library_keeps_no_position_of_its_own() {
        let def = def(Security::default());
        let connection = connection(&def.brokers, &def.security).expect("no password");
        let settings = settings(&def, LIMITS, 4 << 20).into_iter();
        let settings: BTreeMap<_, _> = settings.chain(connection).collect();
        for (key, value) in [
            ("bootstrap.servers", "a:1,b:2"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "error"),
            ("isolation.level", "read_committed"),
            ("security.protocol", "plaintext"),
            ("queued.max.messages.kbytes", "4096"),
            ("fetch.max.bytes", "4194304"),
            ("receive.message.max.bytes", "134217728"),
        ] {
            assert_eq!(settings[key], value, "{key}");
        }
        assert!(!settings.contains_key("ssl.ca.location"));
    }

    #[test]
    fn the_library_accepts_every_setting() {
        let encrypted = Security {
            is_encrypted: true,
            ..Security::default()
        };
        for (security, limits, fetch_bytes) in [
            (Security::default(), LIMITS, 0),
            (encrypted, LIMITS, 64 << 20),
            (
                Security::default(),
                RecordLimits {
                    max_bytes: 1 << 30,
                    truncated_bytes: 1,
                },
                1 << 31,
            ),
        ] {
            let consumer = connect(&def(security), limits, fetch_bytes, "s").expect("accepted");
            close(consumer, Duration::from_secs(10));
        }
    }
}
