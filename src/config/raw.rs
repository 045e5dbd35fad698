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
    pub data: Option<PathBuf>,
    pub instance: Option<u16>,
    pub server: Server,
    pub limits: TypedLimits,
    pub log: Log,
    pub lake: Lake,
    pub sources: Vec<Source>,
    pub streams: BTreeMap<String, toml::Table>,
    pub tables: BTreeMap<String, toml::Table>,
    pub windows: BTreeMap<String, toml::Table>,
    pub sinks: Vec<Sink>,
}

/// `[server]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    pub http: Option<String>,
    pub ingest: Option<bool>,
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    pub token_file: Option<PathBuf>,
    pub backups: Option<PathBuf>,
}

/// `[log]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    pub segment: Option<Size>,
    pub keep: Option<Span>,
    pub budget: Option<Size>,
}

/// `[lake]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lake {
    pub url: Option<String>,
    pub partition: Option<String>,
}

/// What can be set for a system table, `raw` or `dead_letters`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemTable {
    pub retention: Option<Span>,
}

/// One of `[[sources]]`, with the keys of every type.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub stream: Option<String>,
    pub path: Option<String>,
    pub recursive: Option<bool>,
    pub include: Option<Vec<String>>,
    pub exclude: Option<Vec<String>>,
    pub order: Option<String>,
    pub url: Option<String>,
    pub unwrap: Option<String>,
    pub brokers: Option<Vec<String>>,
    pub topics: Option<BTreeMap<String, String>>,
    pub pattern: Option<String>,
    pub group: Option<String>,
    pub from: Option<String>,
    pub tombstone: Option<String>,
    pub security: Option<Security>,
    pub headers: Option<BTreeMap<String, Header>>,
    pub token_file: Option<PathBuf>,
    pub idle: Option<Span>,
    pub every: Option<Span>,
    pub next: Option<String>,
    pub cursor: Option<Cursor>,
    pub pages: Option<usize>,
    pub remember: Option<usize>,
    pub format: Option<String>,
    pub schema_file: Option<PathBuf>,
    pub registry: Option<String>,
    pub registry_user: Option<String>,
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
    pub file: PathBuf,
}

/// Where an answer has the cursor of the next page, and the parameter that asks for it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    pub path: String,
    pub parameter: String,
}

/// One of `[[sinks]]`, with the keys of every type.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sink {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub from: OneOrMany,
    pub start: Option<String>,
    pub brokers: Option<Vec<String>>,
    pub topic: Option<String>,
    pub key: Option<String>,
    pub format: Option<String>,
    pub security: Option<Security>,
    pub url: Option<String>,
    pub secret_file: Option<PathBuf>,
    pub headers: Option<BTreeMap<String, String>>,
    pub batch_rows: Option<usize>,
    pub allow_private: Option<bool>,
    pub index: Option<String>,
    pub user: Option<String>,
    pub password_file: Option<PathBuf>,
    pub api_key_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
    pub schema: Option<String>,
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
    pub protocol: String,
    pub mechanism: Option<String>,
    pub user: Option<String>,
    pub password_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
}
