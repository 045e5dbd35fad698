//! Keys of a source of type `kafka`: which topics it reads into which streams, where it begins, and
//! how it connects.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::avro::{self, FormatError, MessageFormat};
use super::raw;
use super::units::parse_time;
use crate::event::Micros;
use crate::message::Tombstone;

/// The consumer group where none is named.
const DEFAULT_GROUP: &str = "weir";

/// What a source of type `kafka` reads.
#[derive(Debug, Clone, PartialEq)]
pub struct KafkaDef {
    /// `HOST:PORT` of the brokers that are asked first.
    pub brokers: Vec<String>,
    pub topics: Topics,
    /// The consumer group that shares the partitions, and to which offsets are committed.
    pub group: String,
    /// Where a partition begins of which the log has no position.
    pub from: StartFrom,
    /// What becomes of messages without a value.
    pub tombstone: Tombstone,
    /// How values are written.
    pub format: MessageFormat,
    pub security: Security,
}

/// The topics of a source, with their streams.
#[derive(Debug, Clone, PartialEq)]
pub enum Topics {
    /// Topic → stream.
    Named(BTreeMap<String, String>),
    /// Every topic whose name matches the regular expression, also one that is created later.
    Pattern { pattern: String, stream: String },
}

impl Topics {
    /// The streams that records of the topics belong to.
    pub fn streams(&self) -> BTreeSet<&str> {
        match self {
            Self::Named(topics) => topics.values().map(String::as_str).collect(),
            Self::Pattern { stream, .. } => BTreeSet::from([stream.as_str()]),
        }
    }
}

/// Where a partition begins of which the log has no position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartFrom {
    Earliest,
    Latest,
    /// At the first record that the broker stamped at this time or later.
    Time(Micros),
}

/// How the source connects to its brokers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Security {
    pub is_encrypted: bool,
    pub sasl: Option<Sasl>,
    /// Certificates that may sign the brokers'; the system's without it.
    pub ca_file: Option<PathBuf>,
}

/// How the source authenticates itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sasl {
    pub mechanism: Mechanism,
    pub user: String,
    /// Its content without the newline at its end is the password.
    pub password_file: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    Plain,
    ScramSha256,
    ScramSha512,
}

impl Mechanism {
    const ALL: [Self; 3] = [Self::Plain, Self::ScramSha256, Self::ScramSha512];

    /// Its name in Kafka.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// What is wrong with the keys of such a source, and what to do.
#[derive(Debug, thiserror::Error)]
pub(in crate::config) enum KafkaKeyError {
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error("`{0}` is a key of type = \"kafka\"; remove the key")]
    OtherType(&'static str),
    #[error("`{0}` is not a key of type = \"kafka\"; remove the key")]
    NotOfKafka(&'static str),
    #[error("brokers: write a list of HOST:PORT, for example [\"127.0.0.1:9092\"]")]
    Brokers,
    #[error("brokers: `{0}` is not HOST:PORT, for example \"127.0.0.1:9092\"")]
    Broker(String),
    #[error(
        "write either topics = {{ \"TOPIC\" = \"STREAM\" }}, or `pattern` with `stream` for topics by a regular expression"
    )]
    Topics,
    #[error(
        "`stream` is for a `pattern`; `topics` names the stream of each topic; remove one of the two keys"
    )]
    StreamBesideTopics,
    #[error(
        "topics: `{0}` is not the name of a topic: letters, digits, `.`, `_` and `-`, at most 249"
    )]
    Topic(String),
    #[error("pattern: {0}")]
    Pattern(String),
    #[error("topics: [streams.{0}] is not declared")]
    Undeclared(String),
    #[error("group = \"\": name the consumer group, or remove the key for \"weir\"")]
    Group,
    #[error(
        "from = \"{0}\": write \"earliest\", \"latest\", or a time such as \"2016-06-10T01:00:00Z\""
    )]
    From(String),
    #[error("tombstone = \"{0}\": write \"dead_letter\", \"row\" or \"skip\"")]
    Tombstone(String),
    #[error(
        "security: protocol = \"{0}\": write \"plaintext\", \"ssl\", \"sasl_plaintext\" or \"sasl_ssl\""
    )]
    Protocol(String),
    #[error("security: protocol = \"{protocol}\" needs the key `{key}`")]
    Missing { protocol: String, key: &'static str },
    #[error("security: protocol = \"{protocol}\" has no use for the key `{key}`; remove the key")]
    Unused { protocol: String, key: &'static str },
    #[error(
        "security: mechanism = \"{0}\": write \"PLAIN\", \"SCRAM-SHA-256\" or \"SCRAM-SHA-512\""
    )]
    Mechanism(String),
    #[error("security: the file {0} does not exist")]
    NoFile(String),
    #[error("security: others can read the password in {0}; run `chmod 600 {0}`")]
    Readable(String),
}

/// Refuses keys of Kafka for a source of another type.
pub(super) fn check_no_keys(typed: &raw::Source) -> Result<(), KafkaKeyError> {
    let keys = [
        ("brokers", typed.brokers.is_some()),
        ("topics", typed.topics.is_some()),
        ("pattern", typed.pattern.is_some()),
        ("group", typed.group.is_some()),
        ("from", typed.from.is_some()),
        ("tombstone", typed.tombstone.is_some()),
        ("security", typed.security.is_some()),
        ("format", typed.format.is_some()),
    ];
    let keys = [&keys[..], &avro::avro_keys(typed)].concat();
    first_set(&keys).map_or(Ok(()), |key| Err(KafkaKeyError::OtherType(key)))
}

pub(super) fn first_set(keys: &[(&'static str, bool)]) -> Option<&'static str> {
    keys.iter().find(|(_, is_set)| *is_set).map(|(key, _)| *key)
}

/// The keys of a source of type `kafka`; `base` is the folder of the file, `is_declared` knows the
/// streams.
pub(super) fn def(
    typed: &raw::Source,
    base: &Path,
    is_declared: impl Fn(&str) -> bool,
) -> Result<KafkaDef, KafkaKeyError> {
    let others = [("path", typed.path.is_some()), ("url", typed.url.is_some())];
    if let Some(key) = first_set(&others) {
        return Err(KafkaKeyError::NotOfKafka(key));
    }
    let topics = topics(typed)?;
    if let Some(stream) = topics.streams().into_iter().find(|s| !is_declared(s)) {
        return Err(KafkaKeyError::Undeclared(stream.to_owned()));
    }
    let group = typed.group.clone().unwrap_or_else(|| DEFAULT_GROUP.into());
    if group.is_empty() {
        return Err(KafkaKeyError::Group);
    }
    Ok(KafkaDef {
        brokers: brokers(typed.brokers.as_deref().unwrap_or_default())?,
        topics,
        group,
        tombstone: tombstone(typed.tombstone.as_deref())?,
        format: avro::format(typed, base)?,
        from: start_from(typed.from.as_deref().unwrap_or("earliest"))?,
        security: typed
            .security
            .as_ref()
            .map_or(Ok(Security::default()), |typed| security(typed, base))?,
    })
}

pub(super) fn brokers(typed: &[String]) -> Result<Vec<String>, KafkaKeyError> {
    let is_address = |broker: &String| {
        broker
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
            && !broker.contains([',', ' '])
    };
    match typed.iter().find(|broker| !is_address(broker)) {
        Some(broker) => Err(KafkaKeyError::Broker(broker.clone())),
        None if typed.is_empty() => Err(KafkaKeyError::Brokers),
        None => Ok(typed.to_vec()),
    }
}

fn topics(typed: &raw::Source) -> Result<Topics, KafkaKeyError> {
    match (&typed.topics, &typed.pattern, &typed.stream) {
        (Some(_), None, Some(_)) => Err(KafkaKeyError::StreamBesideTopics),
        (Some(topics), None, None) if !topics.is_empty() => {
            match topics.keys().find(|topic| !is_topic(topic)) {
                Some(topic) => Err(KafkaKeyError::Topic(topic.clone())),
                None => Ok(Topics::Named(topics.clone())),
            }
        }
        (None, Some(pattern), Some(stream)) => {
            let checked = regex::Regex::new(pattern);
            checked.map_err(|e| KafkaKeyError::Pattern(last_line(&e.to_string())))?;
            Ok(Topics::Pattern {
                pattern: pattern.clone(),
                stream: stream.clone(),
            })
        }
        _ => Err(KafkaKeyError::Topics),
    }
}

/// The reason in a message of the parser of regular expressions, which draws the place above it.
fn last_line(message: &str) -> String {
    let line = message.lines().last().unwrap_or_default();
    line.trim_start_matches("error: ").trim().to_owned()
}

/// Whether Kafka allows this name of a topic.
pub(super) fn is_topic(name: &str) -> bool {
    let is_legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=249).contains(&name.len()) && name.chars().all(is_legal) && !matches!(name, "." | "..")
}

fn tombstone(word: Option<&str>) -> Result<Tombstone, KafkaKeyError> {
    let Some(word) = word else {
        return Ok(Tombstone::default());
    };
    Tombstone::ALL
        .into_iter()
        .find(|tombstone| tombstone.name() == word)
        .ok_or_else(|| KafkaKeyError::Tombstone(word.to_owned()))
}

fn start_from(text: &str) -> Result<StartFrom, KafkaKeyError> {
    match text {
        "earliest" => Ok(StartFrom::Earliest),
        "latest" => Ok(StartFrom::Latest),
        // A time that moves with each start would not be a position.
        _ if text.starts_with("now") => Err(KafkaKeyError::From(text.to_owned())),
        _ => parse_time(text, 0)
            .map(StartFrom::Time)
            .map_err(|_| KafkaKeyError::From(text.to_owned())),
    }
}

pub(super) fn security(typed: &raw::Security, base: &Path) -> Result<Security, KafkaKeyError> {
    let protocol = typed.protocol.clone();
    let (is_encrypted, has_sasl) = match protocol.as_str() {
        "plaintext" => (false, false),
        "ssl" => (true, false),
        "sasl_plaintext" => (false, true),
        "sasl_ssl" => (true, true),
        _ => return Err(KafkaKeyError::Protocol(protocol)),
    };
    let unused = [
        ("ca_file", typed.ca_file.is_some() && !is_encrypted),
        ("mechanism", typed.mechanism.is_some() && !has_sasl),
        ("user", typed.user.is_some() && !has_sasl),
        ("password_file", typed.password_file.is_some() && !has_sasl),
    ];
    if let Some(key) = first_set(&unused) {
        return Err(KafkaKeyError::Unused { protocol, key });
    }
    let sasl = if has_sasl {
        Some(sasl(typed, base)?)
    } else {
        None
    };
    let ca_file = typed.ca_file.as_ref().map(|path| base.join(path));
    if let Some(path) = ca_file.as_ref().filter(|path| !path.exists()) {
        return Err(KafkaKeyError::NoFile(path.display().to_string()));
    }
    Ok(Security {
        is_encrypted,
        sasl,
        ca_file,
    })
}

fn sasl(typed: &raw::Security, base: &Path) -> Result<Sasl, KafkaKeyError> {
    let missing = |key| KafkaKeyError::Missing {
        protocol: typed.protocol.clone(),
        key,
    };
    let name = typed
        .mechanism
        .as_ref()
        .ok_or_else(|| missing("mechanism"))?;
    let mechanism = Mechanism::ALL
        .into_iter()
        .find(|mechanism| mechanism.name() == name)
        .ok_or_else(|| KafkaKeyError::Mechanism(name.clone()))?;
    let user = typed.user.clone().ok_or_else(|| missing("user"))?;
    let password_file = typed
        .password_file
        .as_ref()
        .map(|path| base.join(path))
        .ok_or_else(|| missing("password_file"))?;
    let shown = password_file.display().to_string();
    let metadata =
        std::fs::metadata(&password_file).map_err(|_| KafkaKeyError::NoFile(shown.clone()))?;
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(KafkaKeyError::Readable(shown));
    }
    Ok(Sasl {
        mechanism,
        user,
        password_file,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A source of type `kafka` with these keys beside its brokers.
    fn checked(keys: &str) -> Result<KafkaDef, String> {
        let text =
            format!("name = \"b\"\ntype = \"kafka\"\nbrokers = [\"127.0.0.1:9092\"]\n{keys}");
        let typed: raw::Source = toml::from_str(&text).expect("the keys are known");
        def(&typed, Path::new(""), |stream| stream == "s").map_err(|e| e.to_string())
    }

    #[test]
    fn topics_by_name_and_by_pattern_have_streams() {
        let named = checked("topics = { \"a.b\" = \"s\", c = \"s\" }").expect("valid");
        assert_eq!(named.topics.streams(), BTreeSet::from(["s"]));
        assert_eq!(
            (named.group.as_str(), named.from),
            ("weir", StartFrom::Earliest)
        );
        assert_eq!(named.tombstone, Tombstone::DeadLetter);
        let pattern = checked(
            "pattern = \"^a\\\\..*\"\nstream = \"s\"\nfrom = \"latest\"\ngroup = \"g\"\ntombstone = \"skip\"",
        );
        let pattern = pattern.expect("valid");
        assert_eq!(pattern.topics.streams(), BTreeSet::from(["s"]));
        assert_eq!(
            (pattern.group.as_str(), pattern.from),
            ("g", StartFrom::Latest)
        );
        assert_eq!(pattern.tombstone, Tombstone::Skip);
        let time = checked("topics = { c = \"s\" }\nfrom = \"1970-01-01T00:00:01Z\"");
        assert_eq!(time.expect("valid").from, StartFrom::Time(1_000_000));
    }

    #[test]
    fn a_password_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("password");
        std::fs::write(&path, "secret\n").expect("a file");
        let typed = raw::Security {
            protocol: "sasl_ssl".into(),
            mechanism: Some("SCRAM-SHA-512".into()),
            user: Some("u".into()),
            password_file: Some("password".into()),
            ca_file: None,
        };
        let set_mode = |mode| {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&path, permissions).expect("the file is ours");
        };
        set_mode(0o640);
        let shown = path.display().to_string();
        let refused = security(&typed, folder.path()).expect_err("readable");
        assert_eq!(
            refused.to_string(),
            KafkaKeyError::Readable(shown).to_string()
        );
        set_mode(0o600);
        let checked = security(&typed, folder.path()).expect("valid");
        assert!(checked.is_encrypted);
        assert_eq!(checked.sasl.map(|sasl| sasl.password_file), Some(path));
    }

    #[test]
    fn messages_name_the_key_and_the_fix() {
        let topics = "topics = { t = \"s\" }\n";
        let wrong = [
            String::new(),
            "topics = { t = \"s\" }\npattern = \"t\"\nstream = \"s\"".into(),
            "topics = { t = \"s\" }\nstream = \"s\"".into(),
            "topics = { \"t/0\" = \"s\" }".into(),
            "topics = { t = \"other\" }".into(),
            "pattern = \"^(t\"\nstream = \"s\"".into(),
            format!("{topics}path = \"x\""),
            format!("{topics}group = \"\""),
            format!("{topics}from = \"now-15m\""),
            format!("{topics}tombstone = \"drop\""),
            format!("{topics}security = {{ protocol = \"tls\" }}"),
            format!("{topics}security = {{ protocol = \"ssl\", user = \"u\" }}"),
            format!("{topics}security = {{ protocol = \"ssl\", ca_file = \"none.pem\" }}"),
            format!("{topics}security = {{ protocol = \"sasl_ssl\", mechanism = \"PLAIN\" }}"),
            format!("{topics}security = {{ protocol = \"sasl_ssl\", mechanism = \"GSSAPI\" }}"),
        ];
        let messages: Vec<String> = wrong
            .iter()
            .map(|w| checked(w).expect_err("wrong"))
            .collect();
        insta::assert_snapshot!(messages.join("\n"), @r#"
        write either topics = { "TOPIC" = "STREAM" }, or `pattern` with `stream` for topics by a regular expression
        write either topics = { "TOPIC" = "STREAM" }, or `pattern` with `stream` for topics by a regular expression
        `stream` is for a `pattern`; `topics` names the stream of each topic; remove one of the two keys
        topics: `t/0` is not the name of a topic: letters, digits, `.`, `_` and `-`, at most 249
        topics: [streams.other] is not declared
        pattern: unclosed group
        `path` is not a key of type = "kafka"; remove the key
        group = "": name the consumer group, or remove the key for "weir"
        from = "now-15m": write "earliest", "latest", or a time such as "2016-06-10T01:00:00Z"
        tombstone = "drop": write "dead_letter", "row" or "skip"
        security: protocol = "tls": write "plaintext", "ssl", "sasl_plaintext" or "sasl_ssl"
        security: protocol = "ssl" has no use for the key `user`; remove the key
        security: the file none.pem does not exist
        security: protocol = "sasl_ssl" needs the key `user`
        security: mechanism = "GSSAPI": write "PLAIN", "SCRAM-SHA-256" or "SCRAM-SHA-512"
        "#);
    }
}
