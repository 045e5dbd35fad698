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
    pub security: Security,
}

/// The keys of such a sink; `base` is the folder of the file.
pub(super) fn def(typed: &raw::Sink, base: &Path) -> Result<KafkaSink, InvalidSink> {
    check_keys(
        typed,
        "kafka",
        &["brokers", "topic", "key", "format", "security"],
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
    let security = typed.security.as_ref();
    Ok(KafkaSink {
        brokers: brokers(typed.brokers.as_deref().unwrap_or_default())?,
        topic,
        key: typed.key.clone(),
        security: security.map_or(Ok(Security::default()), |typed| security_of(typed, base))?,
    })
}

fn security_of(typed: &raw::Security, base: &Path) -> Result<Security, InvalidSink> {
    Ok(security(typed, base)?)
}
