//! The configuration file as typed: every key optional, unknown keys refused. [`super::Config`] is
//! what it means. `[limits]` is declared in [`super::limits`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::limits::TypedLimits;
use super::units::{Size, Span};

/// The whole file. Streams, windows and tables stay TOML until presets are expanded.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigFile {
    /// The folder with everything that Weir stores.
    pub data: Option<PathBuf>,
    /// From 0 to 1023: keeps the LSNs of this log apart from those of other instances.
    pub instance: Option<u16>,
    /// The HTTP server.
    pub server: Server,
    /// How much the process may take.
    pub limits: TypedLimits,
    /// The log of accepted records.
    pub log: Log,
    /// The tables of Parquet files.
    pub lake: Lake,
    /// What is read, one section for each source.
    pub sources: Vec<Source>,
    /// What an event is, one section for each stream.
    pub streams: BTreeMap<String, toml::Table>,
    /// Entity tables, one section for each, and the retention of `raw` and `dead_letters`.
    pub tables: BTreeMap<String, toml::Table>,
    /// Aggregates over event time, one section for each window.
    pub windows: BTreeMap<String, toml::Table>,
    /// What is sent on, one section for each sink.
    pub sinks: Vec<Sink>,
}

/// `[server]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// The listening address. One that other machines can reach needs `tls_cert`, `tls_key` and
    /// `token_file`.
    pub http: Option<String>,
    /// Whether events may be posted.
    pub ingest: Option<bool>,
    /// The certificate, with its chain, in PEM.
    pub tls_cert: Option<PathBuf>,
    /// The private key of the certificate, in PEM.
    pub tls_key: Option<PathBuf>,
    /// Hashes of the accepted tokens, which `weir token create` adds; without it none is needed.
    pub token_file: Option<PathBuf>,
    /// The folder below which backups over HTTP may be written; without it they are refused.
    pub backups: Option<PathBuf>,
}

/// `[log]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Bytes of a file of the log; by default fewer where the budget is small.
    pub segment: Option<Size>,
    /// How long a segment stays although every view has committed it.
    pub keep: Option<Span>,
    /// Bytes that the log may take; at most a quarter of `[limits] disk`.
    pub budget: Option<Size>,
}

/// `[lake]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lake {
    /// A lake that several instances share: not built yet, and refused.
    pub url: Option<String>,
    /// How event time splits tables into folders: `hour`, or `day` where hours hold little.
    pub partition: Option<String>,
}

/// What can be set for a system table, `raw` or `dead_letters`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemTable {
    /// How long rows stay, by their arrival.
    pub retention: Option<Span>,
}

/// One of `[[sources]]`, with the keys of every type.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Unique; offsets are stored under it. `http` is the name of the server's own.
    pub name: String,
    /// `file`, `kafka`, `websocket`, `http_stream` or `http_poll`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The stream of its records; not needed where only one is declared, nor beside `topics`.
    pub stream: Option<String>,
    /// `file`: a file, a folder, a glob, or `-` for standard input.
    pub path: Option<String>,
    /// `file`: whether subfolders are read, too.
    pub recursive: Option<bool>,
    /// `file`: in a folder, only what matches one of these globs.
    pub include: Option<Vec<String>>,
    /// `file`: in a folder, not what matches one of these globs; by default names of unfinished
    /// files.
    pub exclude: Option<Vec<String>>,
    /// `file`: `file`, or `event_time` to sort one complete file.
    pub order: Option<String>,
    /// `websocket`: `ws://…` or `wss://…`; `http_stream`, `http_poll`: `http://…` or `https://…`.
    pub url: Option<String>,
    /// The member of each object that holds the records in an array.
    pub unwrap: Option<String>,
    /// `kafka`: `HOST:PORT` of the brokers that are asked first.
    pub brokers: Option<Vec<String>>,
    /// `kafka`: the stream of each topic.
    pub topics: Option<BTreeMap<String, String>>,
    /// `kafka`: a regular expression; every topic that matches it is read into `stream`.
    pub pattern: Option<String>,
    /// `kafka`: the consumer group.
    pub group: Option<String>,
    /// `kafka`: where a partition without a stored position begins: `earliest`, `latest` (of those
    /// that exist at the first start), or a time.
    pub from: Option<String>,
    /// `kafka`: what becomes of a message without a value: `dead_letter`, `row` or `skip`.
    pub tombstone: Option<String>,
    /// `kafka`: encryption and authentication.
    pub security: Option<Security>,
    /// `http_stream`, `http_poll`: headers of the request.
    pub headers: Option<BTreeMap<String, Header>>,
    /// `http_stream`, `http_poll`: the file with the bearer token.
    pub token_file: Option<PathBuf>,
    /// `http_stream`: how long a connection may be silent before it is opened again.
    pub idle: Option<Span>,
    /// `http_poll`: from the end of one poll to the beginning of the next.
    pub every: Option<Span>,
    /// `http_poll`: the member of an answer that is the URL of its next page.
    pub next: Option<String>,
    /// `http_poll`: the member of an answer that is the cursor of its next page.
    pub cursor: Option<Cursor>,
    /// `http_poll`: the most pages of one poll, at most 10000.
    pub pages: Option<usize>,
    /// `http_poll`: how many of the newest records are recognized when they come again, at most
    /// 1000000.
    pub remember: Option<usize>,
    /// `kafka`: `json` or `avro`.
    pub format: Option<String>,
    /// `kafka` with `avro`: the file with the writer's schema.
    pub schema_file: Option<PathBuf>,
    /// `kafka` with `avro`: the URL of the schema registry.
    pub registry: Option<String>,
    /// `kafka` with `avro`: the user at the registry.
    pub registry_user: Option<String>,
    /// `kafka` with `avro`: the file with the password of that user.
    pub registry_password_file: Option<PathBuf>,
}

/// The value of a header of a request.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "a header is a text, or { file = \"PATH\" }")]
pub enum Header {
    Text(String),
    File(HeaderFile),
}

/// The file that holds the value of a header.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderFile {
    /// The file, which only its owner may read.
    pub file: PathBuf,
}

/// Where an answer has the cursor of the next page, and the parameter that asks for it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The names of members on the way to the cursor, with a dot between two.
    pub path: String,
    /// The parameter of the URL that takes it.
    pub parameter: String,
}

/// One of `[[sinks]]`, with the keys of every type.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sink {
    /// Unique: lower-case letters, digits and `_`; the cursor is stored under it.
    pub name: String,
    /// `kafka`, `postgres`, `http` or `elasticsearch`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The table that is sent; for `postgres` also several, written in one transaction.
    pub from: OneOrMany,
    /// Where a sink without a cursor begins: `earliest` or `latest`.
    pub start: Option<String>,
    /// `kafka`: `HOST:PORT` of the brokers that are asked first.
    pub brokers: Option<Vec<String>>,
    /// `kafka`: the topic, which must exist.
    pub topic: Option<String>,
    /// `kafka`: SQL of the message's key over the columns of the table; by default the table's key.
    pub key: Option<String>,
    /// `kafka`: `json`, the only one.
    pub format: Option<String>,
    /// `kafka`: how batches of messages are compressed: `none`, `gzip`, `snappy`, `lz4` or `zstd`.
    pub compression: Option<String>,
    /// `kafka`: encryption and authentication.
    pub security: Option<Security>,
    /// `postgres`: `postgres://USER@HOST:PORT/DATABASE`; `http`: the webhook; `elasticsearch`: the
    /// server.
    pub url: Option<String>,
    /// `http`: the keys with which requests are signed, one a line; without it they are not signed.
    pub secret_file: Option<PathBuf>,
    /// `http`: headers of each request.
    pub headers: Option<BTreeMap<String, String>>,
    /// `http`, `elasticsearch`: the most rows of a request, at most 10000.
    pub batch_rows: Option<usize>,
    /// `http`: whether the address may be one that is not on the public internet.
    pub allow_private: Option<bool>,
    /// `elasticsearch`: the index.
    pub index: Option<String>,
    /// `elasticsearch`: the user.
    pub user: Option<String>,
    /// `elasticsearch`, `postgres`: the file with the password.
    pub password_file: Option<PathBuf>,
    /// `elasticsearch`: the file with an API key, instead of user and password.
    pub api_key_file: Option<PathBuf>,
    /// `http`, `elasticsearch`, `postgres`: certificates that may sign the server's; by default the
    /// system's.
    pub ca_file: Option<PathBuf>,
    /// `postgres`: the schema of its tables.
    pub schema: Option<String>,
    /// `postgres`: whether tables that the sink creates refer to one another.
    pub foreign_keys: Option<bool>,
}

/// `"a"` or `["a", "b"]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// How a source or a sink connects to its brokers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Security {
    /// `plaintext`, `ssl`, `sasl_plaintext` or `sasl_ssl`.
    pub protocol: String,
    /// `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`.
    pub mechanism: Option<String>,
    /// The user.
    pub user: Option<String>,
    /// The file with the password, which only its owner may read.
    pub password_file: Option<PathBuf>,
    /// Certificates that may sign the brokers'; by default the system's.
    pub ca_file: Option<PathBuf>,
}
