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
    pub sinks: Vec<toml::Table>,
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
}

/// How a source connects to its brokers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Security {
    pub protocol: String,
    pub mechanism: Option<String>,
    pub user: Option<String>,
    pub password_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
}
