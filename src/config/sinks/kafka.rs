//! Keys of a sink of type `kafka`.

use std::path::Path;

use super::{InvalidSink, check_keys, required};
use crate::config::kafka::{Security, brokers, is_topic, security};
use crate::config::raw;

/// Where such a sink sends rows.
#[derive(Debug, Clone, PartialEq)]
pub struct KafkaSink {
    /// `HOST:PORT` of the brokers that are asked first.
    pub brokers: Vec<String>,
    pub topic: String,
    /// SQL of the message's key, over the columns of the table; the table's own key without it.
    pub key: Option<String>,
    pub compression: Compression,
    pub security: Security,
}

/// How batches of messages are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Snappy,
    /// The least work for the size.
    #[default]
    Lz4,
    Zstd,
}

impl Compression {
    const ALL: [Self; 5] = [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];

    /// Its name, in Kafka's settings as well.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// The keys of such a sink; `base` is the folder of the file.
pub(super) fn def(typed: &raw::Sink, base: &Path) -> Result<KafkaSink, InvalidSink> {
    check_keys(
        typed,
        "kafka",
        &[
            "brokers",
            "topic",
            "key",
            "format",
            "compression",
            "security",
        ],
    )?;
    let topic = required(typed.topic.as_ref(), "topic")?;
    if !is_topic(&topic) {
        return Err(InvalidSink::Value {
            key: "topic",
            value: topic,
            expected: "letters, digits, `.`, `_` and `-`, at most 249".into(),
        });
    }
    if let Some(format) = typed.format.as_ref().filter(|format| *format != "json") {
        return Err(InvalidSink::Value {
            key: "format",
            value: format.clone(),
            expected: "write \"json\"".into(),
        });
    }
    let compression = typed.compression.as_deref();
    let security = typed.security.as_ref();
    Ok(KafkaSink {
        brokers: brokers(typed.brokers.as_deref().unwrap_or_default())?,
        topic,
        key: typed.key.clone(),
        compression: compression.map_or(Ok(Compression::default()), compression_of)?,
        security: security.map_or(Ok(Security::default()), |typed| security_of(typed, base))?,
    })
}

fn compression_of(name: &str) -> Result<Compression, InvalidSink> {
    let mut all = Compression::ALL.into_iter();
    let found = all.find(|compression| compression.name() == name);
    found.ok_or_else(|| InvalidSink::Value {
        key: "compression",
        value: name.to_owned(),
        expected: "write \"none\", \"gzip\", \"snappy\", \"lz4\" or \"zstd\"".into(),
    })
}

fn security_of(typed: &raw::Security, base: &Path) -> Result<Security, InvalidSink> {
    Ok(security(typed, base)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compression(keys: &str) -> String {
        let text = format!(
            "name = \"out\"\ntype = \"kafka\"\nfrom = \"a\"\nbrokers = [\"h:1\"]\ntopic = \"t\"\n{keys}"
        );
        let typed: raw::Sink = toml::from_str(&text).expect("TOML");
        match def(&typed, Path::new("/nowhere")) {
            Ok(sink) => sink.compression.name().to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn compression_is_one_that_kafka_has() {
        assert_eq!(compression(""), "lz4");
        for each in Compression::ALL {
            assert_eq!(
                compression(&format!("compression = \"{}\"", each.name())),
                each.name()
            );
        }
        insta::assert_snapshot!(
            compression("compression = \"LZ4\""),
            @r#"compression = "LZ4": write "none", "gzip", "snappy", "lz4" or "zstd""#
        );
    }
}
