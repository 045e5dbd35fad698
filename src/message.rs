//! What a Kafka message carries beside its value: as the log stores it, as `raw` and `dead_letters`
//! show it, and as the columns that `select` reads. No I/O.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// The member of a row's `attributes` that holds its metadata.
const ATTRIBUTE: &str = "kafka";

/// Key, headers and time of a message. Its topic and partition are its frame's partition,
/// `TOPIC/NUMBER`; its offset is among the frame's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MessageMetadata {
    /// None for a message without one.
    #[serde(with = "optional_bytes", skip_serializing_if = "Option::is_none")]
    pub key: Option<Vec<u8>>,
    /// In the message's order; a name may occur more than once.
    #[serde(with = "named_bytes", skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// Milliseconds since 1970, set by the producer or the broker, as the topic is configured.
    #[serde(rename = "timestamp", skip_serializing_if = "Option::is_none")]
    pub timestamp_ms: Option<i64>,
    /// What becomes of the record if the message's value is null.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tombstone: Option<Tombstone>,
    /// Why the source could not read the value, which is stored as it arrived: a dead letter with
    /// this reason. Stored with the record, so that a replay needs nothing else to decide the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<String>,
}

/// What becomes of a message without a value, which deletes its key in a compacted topic. Stored
/// with the record, so that a replay under another configuration decides the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tombstone {
    /// A dead letter, whose reason says that the value is missing.
    #[default]
    DeadLetter,
    /// A row whose columns of the schema are null.
    Row,
    /// Neither; `raw` alone has it.
    Skip,
}

impl Tombstone {
    /// In the order of their numbers in the log.
    pub const ALL: [Self; 3] = [Self::DeadLetter, Self::Row, Self::Skip];

    /// The word in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::DeadLetter => "dead_letter",
            Self::Row => "row",
            Self::Skip => "skip",
        }
    }
}

impl MessageMetadata {
    /// Bytes in memory beside the struct itself.
    pub fn heap_bytes(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| {
            size_of::<(String, Option<Vec<u8>>)>() + name.len() + value.as_ref().map_or(0, Vec::len)
        });
        self.key.as_ref().map_or(0, Vec::len)
            + self.rejected.as_ref().map_or(0, String::len)
            + headers.sum::<usize>()
    }

    /// Adds itself to the members of a row's `attributes`.
    pub fn add_to_attributes(&self, attributes: &mut serde_json::Map<String, serde_json::Value>) {
        // A map of text and numbers always has a JSON value.
        if let Ok(value) = serde_json::to_value(self) {
            attributes.insert(ATTRIBUTE.to_owned(), value);
        }
    }

    /// Whether a row's `attributes` may hold metadata; false is certain.
    pub fn may_be_in(attributes: &str) -> bool {
        attributes.contains("\"kafka\":{")
    }

    /// Takes the metadata out of the members of a row's `attributes`.
    pub fn take_from_attributes(
        attributes: &mut serde_json::Map<String, serde_json::Value>,
    ) -> Option<Self> {
        serde_json::from_value(attributes.remove(ATTRIBUTE)?).ok()
    }
}

/// The messages of one frame.
#[derive(Debug, Clone, Copy, Default)]
pub struct Messages<'a> {
    /// One per record; empty for records that are not messages.
    pub metadata: &'a [MessageMetadata],
    /// `TOPIC/NUMBER`.
    pub partition: &'a str,
    /// One per record.
    pub offsets: &'a [u64],
}

impl Messages<'_> {
    /// What becomes of a record whose message has no value.
    pub fn tombstone(&self, index: usize) -> Option<Tombstone> {
        self.metadata.get(index)?.tombstone
    }

    /// Why the source could not read a record, if it could not.
    pub fn rejected(&self, index: usize) -> Option<&str> {
        self.metadata.get(index)?.rejected.as_deref()
    }
}

/// Topic and number of a partition `TOPIC/NUMBER`; a topic's name has no slash.
pub fn topic_and_number(partition: &str) -> Option<(&str, i32)> {
    let (topic, number) = partition.rsplit_once('/')?;
    Some((topic, number.parse().ok()?))
}

/// Bytes in JSON: text if they are UTF-8, otherwise `{"base64": …}`.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum JsonBytes {
    Text(String),
    Binary { base64: String },
}

impl From<&[u8]> for JsonBytes {
    fn from(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Binary {
                base64: STANDARD.encode(bytes),
            },
        }
    }
}

impl JsonBytes {
    fn into_bytes<E: serde::de::Error>(self) -> Result<Vec<u8>, E> {
        match self {
            Self::Text(text) => Ok(text.into_bytes()),
            Self::Binary { base64 } => STANDARD.decode(base64).map_err(E::custom),
        }
    }
}

mod optional_bytes {
    use super::JsonBytes;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(
        bytes: &Option<Vec<u8>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        bytes.as_deref().map(JsonBytes::from).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Vec<u8>>, D::Error> {
        Option::<JsonBytes>::deserialize(deserializer)?
            .map(JsonBytes::into_bytes)
            .transpose()
    }
}

mod named_bytes {
    use super::JsonBytes;
    use serde::{Deserialize, Deserializer, Serializer};

    type Headers = Vec<(String, Option<Vec<u8>>)>;

    pub fn serialize<S: Serializer>(headers: &Headers, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(
            headers
                .iter()
                .map(|(name, value)| (name, value.as_deref().map(JsonBytes::from))),
        )
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Headers, D::Error> {
        Vec::<(String, Option<JsonBytes>)>::deserialize(deserializer)?
            .into_iter()
            .map(|(name, value)| Ok((name, value.map(JsonBytes::into_bytes).transpose()?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn metadata_survives_the_attributes_of_a_row(
            key in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20)),
            headers in proptest::collection::vec(
                (".{0,9}", proptest::option::of(proptest::collection::vec(any::<u8>(), 0..9))),
                0..4
            ),
            timestamp_ms in proptest::option::of(any::<i64>()),
            tombstone in proptest::option::of(proptest::sample::select(&Tombstone::ALL[..])),
            rejected in proptest::option::of(".{0,9}"),
        ) {
            let message = MessageMetadata { key, headers, timestamp_ms, tombstone, rejected };
            let mut attributes = serde_json::Map::new();
            attributes.insert("retry_of".into(), serde_json::json!([1]));
            message.add_to_attributes(&mut attributes);
            let text = serde_json::Value::Object(attributes).to_string();
            prop_assert!(MessageMetadata::may_be_in(&text));
            let mut read = serde_json::from_str(&text).expect("JSON");
            prop_assert_eq!(MessageMetadata::take_from_attributes(&mut read), Some(message));
            prop_assert_eq!(read.len(), 1);
        }
    }

    #[test]
    fn text_is_shown_as_text() {
        let message = MessageMetadata {
            key: Some(b"k".to_vec()),
            headers: vec![("h".into(), Some(vec![0xff])), ("e".into(), None)],
            timestamp_ms: Some(5),
            tombstone: Some(Tombstone::DeadLetter),
            rejected: Some("r".into()),
        };
        assert_eq!(
            serde_json::to_string(&message).expect("JSON"),
            r#"{"key":"k","headers":[["h",{"base64":"/w=="}],["e",null]],"timestamp":5,"tombstone":"dead_letter","rejected":"r"}"#
        );
    }

    #[test]
    fn a_partition_names_its_topic_and_number() {
        for (partition, expected) in [
            ("meetup.rsvps/12", Some(("meetup.rsvps", 12))),
            ("a/b/0", Some(("a/b", 0))),
            ("in.ndjson", None),
            ("a/b", None),
            ("", None),
        ] {
            assert_eq!(topic_and_number(partition), expected, "{partition}");
        }
    }
}
