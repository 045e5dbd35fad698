//! Topics of a source: which it reads, into which streams, and how their partitions are called.

use std::collections::BTreeMap;
use std::fmt;

use regex::Regex;

use crate::config::Topics;

/// A partition of a topic, displayed as `TOPIC/NUMBER`: its name in the log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TopicPartition {
    pub topic: String,
    pub number: i32,
}

impl TopicPartition {
    pub fn new(topic: &str, number: i32) -> Self {
        Self {
            topic: topic.to_owned(),
            number,
        }
    }

    /// The partition of this name, which is none of Kafka's if it has no number.
    pub fn parse(name: &str) -> Option<Self> {
        let (topic, number) = name.rsplit_once('/')?;
        Some(Self::new(topic, number.parse().ok()?))
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.number)
    }
}

/// The topics of a source.
///
/// A pattern is matched here, not by the client library or the broker: their regular expressions
/// differ from each other, and a bounded run has to list the topics itself.
pub(super) enum TopicFilter {
    Named(BTreeMap<String, String>),
    Pattern { pattern: Regex, stream: String },
}

impl TopicFilter {
    /// # Errors
    ///
    /// The pattern is not a regular expression; the configuration was checked for that.
    pub fn new(topics: &Topics) -> Result<Self, regex::Error> {
        Ok(match topics {
            Topics::Named(topics) => Self::Named(topics.clone()),
            Topics::Pattern { pattern, stream } => Self::Pattern {
                pattern: Regex::new(pattern)?,
                stream: stream.clone(),
            },
        })
    }

    /// The stream of a topic's records; none if the source does not read it.
    pub fn stream_of(&self, topic: &str) -> Option<&str> {
        match self {
            Self::Named(topics) => topics.get(topic).map(String::as_str),
            // Topics that begin so are the broker's own.
            Self::Pattern { .. } if topic.starts_with("__") => None,
            Self::Pattern { pattern, stream } => pattern.is_match(topic).then_some(stream.as_str()),
        }
    }

    /// The topics that are named; none of a pattern.
    pub fn named(&self) -> Option<Vec<&str>> {
        match self {
            Self::Named(topics) => Some(topics.keys().map(String::as_str).collect()),
            Self::Pattern { .. } => None,
        }
    }
}

/// Whether a source of these topics reads the topic of a partition, given as `TOPIC/NUMBER`.
pub(crate) fn reads_partition(topics: &Topics, label: &str) -> bool {
    let name = TopicPartition::parse(label);
    let filter = TopicFilter::new(topics).ok();
    let read = name.zip(filter);
    read.is_some_and(|(name, filter)| filter.stream_of(&name.topic).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_named_after_topic_and_number() {
        for (name, parsed) in [
            ("a.b-c_d/12", Some(TopicPartition::new("a.b-c_d", 12))),
            ("a/b/0", Some(TopicPartition::new("a/b", 0))),
            ("a", None),
            ("a/x", None),
            ("", None),
        ] {
            assert_eq!(TopicPartition::parse(name), parsed, "{name}");
            if let Some(parsed) = parsed {
                assert_eq!(parsed.to_string(), name);
            }
        }
    }

    #[test]
    fn topics_have_streams_by_name_or_by_pattern() {
        let named = Topics::Named(BTreeMap::from([
            ("a".into(), "s".into()),
            ("b".into(), "t".into()),
        ]));
        let pattern = |pattern: &str| Topics::Pattern {
            pattern: pattern.into(),
            stream: "s".into(),
        };
        for (topics, topic, stream) in [
            (&named, "a", Some("s")),
            (&named, "b", Some("t")),
            (&named, "ab", None),
            (&pattern("^a\\..*"), "a.x", Some("s")),
            (&pattern("^a\\..*"), "ba.x", None),
            (&pattern("^a\\..*"), "ax", None),
            // Without an anchor, anywhere in the name.
            (&pattern("a"), "bar", Some("s")),
            (&pattern(".*"), "__consumer_offsets", None),
        ] {
            let filter = TopicFilter::new(topics).expect("a regular expression");
            assert_eq!(filter.stream_of(topic), stream, "{topic}");
            let partition = format!("{topic}/0");
            assert_eq!(reads_partition(topics, &partition), stream.is_some());
        }
    }
}
