//! `[[sinks]]`: which tables are sent where. One file per type has its keys.

pub(crate) mod address;
pub(crate) mod elasticsearch;
pub(crate) mod http;
pub(crate) mod kafka;
pub(crate) mod postgres;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::error::ConfigError;
use super::kafka::{KafkaKeyError, first_set};
use super::location::SourceText;
use super::raw;
use super::raw::OneOrMany;
use super::stream::Declarations;
use crate::ids::TableId;
pub(crate) use elasticsearch::ElasticsearchSink;
pub(crate) use http::HttpSink;
pub(crate) use kafka::KafkaSink;
pub(crate) use postgres::PostgresSink;

/// Each sink has a thread and a batch of rows in memory.
const MAX_SINKS: usize = 32;
/// Tables of one sink.
const MAX_TABLES: usize = 64;

/// Why a sink is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum InvalidSink {
    #[error("a name is lower-case letters, digits and _, and begins with a letter")]
    Name,
    #[error("the name is taken; give each sink its own")]
    NameTaken,
    #[error("there are more than {MAX_SINKS} sinks; remove some")]
    TooMany,
    #[error("from = []: name a table, or up to {MAX_TABLES}")]
    Tables,
    #[error("from: the table `{0}` is not declared, or is named twice")]
    Table(String),
    #[error(
        "from: `{0}` cannot be sent; name a stream, a window, sessions, an entity table or `dead_letters`"
    )]
    TableKind(String),
    #[error("from: a sink of type = \"{0}\" takes one table; declare a sink for each")]
    OneTable(&'static str),
    #[error("start = \"{0}\": write \"earliest\" or \"latest\"")]
    Start(String),
    #[error("type = \"{0}\": write \"kafka\", \"postgres\", \"http\" or \"elasticsearch\"")]
    UnknownType(String),
    #[error("the key `{0}` is missing")]
    MissingKey(&'static str),
    #[error("`{key}` is not a key of type = \"{kind}\"; remove the key")]
    OtherType {
        kind: &'static str,
        key: &'static str,
    },
    #[error("the file {0} does not exist")]
    NoFile(String),
    #[error("others can read the secret in {0}; run `chmod 600 {0}`")]
    Readable(String),
    #[error("{key} = \"{value}\": {expected}")]
    Value {
        key: &'static str,
        value: String,
        expected: String,
    },
    #[error(transparent)]
    Kafka(#[from] KafkaKeyError),
}

/// A sink of rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Sink {
    /// Unique among sinks.
    pub name: String,
    /// Names of the tables that it sends, in the order in which they are written.
    pub from: Vec<String>,
    /// Where it starts at first.
    pub start: SinkStart,
    /// Where it sends them.
    pub kind: SinkKind,
}

/// Where a sink without a cursor starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SinkStart {
    /// With the oldest row that the table has.
    Earliest,
    /// With the rows that are stored from now on.
    Latest,
}

/// Where a sink sends rows.
#[derive(Debug, Clone, PartialEq)]
pub enum SinkKind {
    /// A topic.
    Kafka(KafkaSink),
    /// Tables of a database.
    Postgres(PostgresSink),
    /// A webhook.
    Http(HttpSink),
    /// An index.
    Elasticsearch(ElasticsearchSink),
}

impl SinkKind {
    /// Its name in the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kafka(_) => "kafka",
            Self::Postgres(_) => "postgres",
            Self::Http(_) => "http",
            Self::Elasticsearch(_) => "elasticsearch",
        }
    }
}

/// The sinks of a file whose folder is `base`, to which their paths are relative.
pub(super) fn sinks(
    typed: &[raw::Sink],
    base: &Path,
    declared: &Declarations,
    at: &SourceText<'_>,
) -> Result<Vec<Sink>, ConfigError> {
    let mut names = BTreeSet::new();
    let mut sinks = Vec::new();
    for typed in typed {
        let name = &typed.name;
        let checked = if sinks.len() == MAX_SINKS {
            Err(InvalidSink::TooMany)
        } else if !super::declarations::is_name(name) {
            Err(InvalidSink::Name)
        } else if !names.insert(name) {
            Err(InvalidSink::NameTaken)
        } else {
            sink(typed, base, declared)
        };
        let line = at.line_of(&format!("name = \"{name}\""));
        sinks.push(checked.map_err(|e| at.error(line, format!("sink `{name}`: {e}")))?);
    }
    Ok(sinks)
}

fn sink(typed: &raw::Sink, base: &Path, declared: &Declarations) -> Result<Sink, InvalidSink> {
    let from = match &typed.from {
        OneOrMany::One(name) => vec![name.clone()],
        OneOrMany::Many(names) => names.clone(),
    };
    if from.is_empty() || from.len() > MAX_TABLES {
        return Err(InvalidSink::Tables);
    }
    let mut seen = BTreeSet::new();
    for name in &from {
        check_table(name, declared)?;
        if !seen.insert(name) {
            return Err(InvalidSink::Table(name.clone()));
        }
    }
    let start = match typed.start.as_deref() {
        None | Some("earliest") => SinkStart::Earliest,
        Some("latest") => SinkStart::Latest,
        Some(other) => return Err(InvalidSink::Start(other.to_owned())),
    };
    let kind = match typed.kind.as_str() {
        "kafka" => SinkKind::Kafka(kafka::def(typed, base)?),
        "postgres" => SinkKind::Postgres(postgres::def(typed, base)?),
        "http" => SinkKind::Http(http::def(typed, base)?),
        "elasticsearch" => SinkKind::Elasticsearch(elasticsearch::def(typed, base)?),
        other => return Err(InvalidSink::UnknownType(other.to_owned())),
    };
    if from.len() > 1 && !matches!(kind, SinkKind::Postgres(_)) {
        return Err(InvalidSink::OneTable(kind.name()));
    }
    Ok(Sink {
        name: typed.name.clone(),
        from,
        start,
        kind,
    })
}

/// A sink takes what has rows with an LSN: not `raw`, whose rows are records.
fn check_table(name: &str, declared: &Declarations) -> Result<(), InvalidSink> {
    let Ok(table) = name.parse();
    let is_declared = match &table {
        TableId::DeadLetters => true,
        TableId::Raw => return Err(InvalidSink::TableKind(name.to_owned())),
        TableId::Sessions(stream) => declared
            .streams
            .get(&**stream)
            .is_some_and(|stream| stream.session.is_some()),
        TableId::Late(stream) => declared.streams.contains_key(&**stream),
        TableId::Entity(name) => declared.tables.contains_key(&**name),
        TableId::Stream(name) | TableId::Window(name) => {
            declared.streams.contains_key(&**name) || declared.windows.contains_key(&**name)
        }
    };
    if is_declared {
        Ok(())
    } else {
        Err(InvalidSink::Table(name.to_owned()))
    }
}

/// Refuses the keys of other types: `used` are those of this one, beside the common ones.
fn check_keys(
    typed: &raw::Sink,
    kind: &'static str,
    used: &[&'static str],
) -> Result<(), InvalidSink> {
    let keys = [
        ("brokers", typed.brokers.is_some()),
        ("topic", typed.topic.is_some()),
        ("key", typed.key.is_some()),
        ("format", typed.format.is_some()),
        ("compression", typed.compression.is_some()),
        ("security", typed.security.is_some()),
        ("url", typed.url.is_some()),
        ("secret_file", typed.secret_file.is_some()),
        ("headers", typed.headers.is_some()),
        ("batch_rows", typed.batch_rows.is_some()),
        ("allow_private", typed.allow_private.is_some()),
        ("index", typed.index.is_some()),
        ("user", typed.user.is_some()),
        ("password_file", typed.password_file.is_some()),
        ("api_key_file", typed.api_key_file.is_some()),
        ("ca_file", typed.ca_file.is_some()),
        ("schema", typed.schema.is_some()),
        ("foreign_keys", typed.foreign_keys.is_some()),
    ];
    let others = keys.map(|(key, is_set)| (key, is_set && !used.contains(&key)));
    first_set(&others).map_or(Ok(()), |key| Err(InvalidSink::OtherType { kind, key }))
}

fn required<T: Clone>(value: Option<&T>, key: &'static str) -> Result<T, InvalidSink> {
    value.cloned().ok_or(InvalidSink::MissingKey(key))
}

/// A file beside the configuration that exists.
fn existing(path: Option<&PathBuf>, base: &Path) -> Result<Option<PathBuf>, InvalidSink> {
    let path = path.map(|path| base.join(path));
    match path {
        Some(path) if !path.exists() => Err(InvalidSink::NoFile(path.display().to_string())),
        path => Ok(path),
    }
}

/// A file with a secret, which only its owner may read.
fn secret(path: Option<&PathBuf>, base: &Path) -> Result<Option<PathBuf>, InvalidSink> {
    let Some(path) = existing(path, base)? else {
        return Ok(None);
    };
    let shown = path.display().to_string();
    let metadata = std::fs::metadata(&path).map_err(|_| InvalidSink::NoFile(shown.clone()))?;
    if metadata.permissions().mode() & 0o077 == 0 {
        Ok(Some(path))
    } else {
        Err(InvalidSink::Readable(shown))
    }
}
