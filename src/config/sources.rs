//! `[[sources]]`: where each source reads, and into which stream.

use std::collections::BTreeSet;
use std::path::Path;

use reqwest::Url;

use super::address::public_address;
use super::error::ConfigError;
use super::file::{self, FileDef};
use super::http::{self, HttpKeyError, HttpPollDef, HttpStreamDef};
use super::kafka::{self, KafkaDef, KafkaKeyError};
use super::location::SourceText;
use super::raw;
use super::stream::Declarations;

/// Why a source is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum InvalidSource {
    #[error("the name is taken; give each source its own (`http` is the server's)")]
    NameTaken,
    #[error("the key `{0}` is missing")]
    MissingKey(&'static str),
    #[error("[streams.{0}] is not declared")]
    UndeclaredStream(String),
    #[error("unwrap = \"\": name the member that holds the array of records")]
    EmptyUnwrap,
    #[error("url = \"{0}\": write ws://… or wss://…")]
    Url(String),
    #[error(transparent)]
    Kafka(#[from] KafkaKeyError),
    #[error(transparent)]
    Http(#[from] HttpKeyError),
    #[error(
        "type = \"{0}\": write \"file\", \"websocket\", \"http_stream\", \"http_poll\" or \"kafka\""
    )]
    UnknownType(String),
    #[error("`{key}`: {error}")]
    Glob {
        key: &'static str,
        error: globset::Error,
    },
    #[error("order = \"{0}\": write \"event_time\", or \"file\" for the order of the file itself")]
    UnknownOrder(String),
    #[error("`{0}` is for a folder, and {rule}; remove one of the two keys", rule = ORDER_IS_FOR)]
    OrderOfFolder(&'static str),
    #[error("{rule}, and `path` is {input}; {remedy}", rule = ORDER_IS_FOR)]
    OrderOfMany {
        input: &'static str,
        remedy: &'static str,
    },
    #[error("`order` is a key of type = \"file\": {rule}; remove the key", rule = ORDER_IS_FOR)]
    OrderOfOtherType,
    #[error("`{0}` is for a folder, and `path` is standard input")]
    FolderKeyOfStdin(&'static str),
    #[error(
        "`{0}` is for a folder, and `path` is a glob; use `**` for subfolders, and one pattern"
    )]
    FolderKeyOfGlob(&'static str),
    #[error("`{0}` is a key of type = \"file\"")]
    KeyOfFile(&'static str),
}

const ORDER_IS_FOR: &str = "order = \"event_time\" is for one file that is complete";

/// A source of records.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// Unique; never `http`, the source of the server's intake.
    pub name: String,
    /// The stream of its records; of several, which only Kafka has, the first.
    pub stream: String,
    /// What it reads.
    pub kind: SourceKind,
    /// The member of its objects that holds the records, in an array.
    pub unwrap: Option<String>,
}

/// What a source reads.
#[derive(Debug, Clone, PartialEq)]
pub enum SourceKind {
    /// Files, read again from the stored offset after a restart.
    File(FileDef),
    /// Messages of a websocket; what is sent while it is not connected may be lost (`weir.gaps`).
    WebSocket {
        /// `ws://…` or `wss://…`.
        url: String,
    },
    /// A request whose answer does not end; what is sent while it is not connected may be lost
    /// unless its events have ids.
    HttpStream(HttpStreamDef),
    /// A request that is repeated.
    HttpPoll(HttpPollDef),
    /// Topics of a Kafka cluster.
    Kafka(KafkaDef),
}

impl Source {
    /// Whether records of the source may belong to this stream.
    pub fn feeds(&self, stream: &str) -> bool {
        match &self.kind {
            SourceKind::Kafka(def) => def.topics.streams().contains(stream),
            SourceKind::File(_)
            | SourceKind::WebSocket { .. }
            | SourceKind::HttpStream(_)
            | SourceKind::HttpPoll(_) => self.stream == stream,
        }
    }
}

/// The sources of a file whose folder is `base`, to which their paths are relative.
pub(super) fn sources(
    typed: &[raw::Source],
    base: &Path,
    declared: &Declarations,
    at: &SourceText<'_>,
) -> Result<Vec<Source>, ConfigError> {
    let mut names = BTreeSet::new();
    let mut sources = Vec::new();
    for typed in typed {
        let name = &typed.name;
        let checked = if !names.insert(name) || name == "http" {
            Err(InvalidSource::NameTaken)
        } else {
            source(typed, base, declared)
        };
        let line = at.line_of(&format!("name = \"{name}\""));
        sources.push(checked.map_err(|e| at.error(line, format!("source `{name}`: {e}")))?);
    }
    Ok(sources)
}

fn source(
    typed: &raw::Source,
    base: &Path,
    declared: &Declarations,
) -> Result<Source, InvalidSource> {
    let kind = kind(typed, base, declared)?;
    if !matches!(kind, SourceKind::File(_)) {
        file::check_no_keys(typed)?;
    }
    http::check_keys(typed)?;
    let stream = match &kind {
        SourceKind::Kafka(def) => {
            let first = def.topics.streams().first().copied();
            first.unwrap_or_default().to_owned()
        }
        SourceKind::File(_)
        | SourceKind::WebSocket { .. }
        | SourceKind::HttpStream(_)
        | SourceKind::HttpPoll(_) => {
            kafka::check_no_keys(typed)?;
            stream(typed, declared)?
        }
    };
    if typed.unwrap.as_deref() == Some("") {
        return Err(InvalidSource::EmptyUnwrap);
    }
    Ok(Source {
        name: typed.name.clone(),
        stream,
        kind,
        unwrap: typed.unwrap.clone(),
    })
}

fn required(value: Option<&String>, key: &'static str) -> Result<String, InvalidSource> {
    value.cloned().ok_or(InvalidSource::MissingKey(key))
}

fn kind(
    typed: &raw::Source,
    base: &Path,
    declared: &Declarations,
) -> Result<SourceKind, InvalidSource> {
    match typed.kind.as_str() {
        "file" => {
            let path = required(typed.path.as_ref(), "path")?;
            let path = if path == "-" {
                path.into()
            } else {
                base.join(path)
            };
            Ok(SourceKind::File(file::def(typed, path)?))
        }
        "websocket" => {
            let url = required(typed.url.as_ref(), "url")?;
            let parsed = Url::parse(&url).ok().filter(Url::has_host);
            if !parsed.is_some_and(|parsed| matches!(parsed.scheme(), "ws" | "wss")) {
                return Err(InvalidSource::Url(public_address(&url)));
            }
            Ok(SourceKind::WebSocket { url })
        }
        "http_stream" => {
            let url = required(typed.url.as_ref(), "url")?;
            Ok(SourceKind::HttpStream(http::stream_def(typed, &url, base)?))
        }
        "http_poll" => {
            let url = required(typed.url.as_ref(), "url")?;
            Ok(SourceKind::HttpPoll(http::poll_def(typed, &url, base)?))
        }
        "kafka" => {
            let is_declared = |stream: &str| declared.streams.contains_key(stream);
            Ok(SourceKind::Kafka(kafka::def(typed, base, is_declared)?))
        }
        other => Err(InvalidSource::UnknownType(other.to_owned())),
    }
}

/// The stream that a source names; the only one where it names none.
fn stream(typed: &raw::Source, declared: &Declarations) -> Result<String, InvalidSource> {
    let stream = match &typed.stream {
        Some(stream) => stream.clone(),
        None if declared.streams.len() == 1 => {
            declared.streams.keys().next().cloned().unwrap_or_default()
        }
        None => return Err(InvalidSource::MissingKey("stream")),
    };
    if declared.streams.contains_key(&stream) {
        Ok(stream)
    } else {
        Err(InvalidSource::UndeclaredStream(stream))
    }
}
