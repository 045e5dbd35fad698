//! The configuration file as typed: every key optional, unknown keys refused. [`super::Config`] is
//! what it means.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::units::{Size, Span};

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    pub data: Option<PathBuf>,
    pub instance: Option<u16>,
    pub server: Server,
    pub limits: Limits,
    pub log: Log,
    pub lake: Lake,
    pub sources: Vec<Source>,
    pub streams: BTreeMap<String, toml::Table>,
    pub tables: BTreeMap<String, toml::Table>,
    pub windows: BTreeMap<String, toml::Table>,
    pub sinks: Vec<toml::Table>,
}

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

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    pub memory: Option<Size>,
    pub disk: Option<Size>,
    pub record: Option<Size>,
    pub body: Option<Size>,
    pub connections: Option<usize>,
    pub sql_time: Option<Span>,
    pub sql_rows: Option<usize>,
    pub sql_result: Option<Size>,
    pub sql_concurrent: Option<usize>,
    pub search_limit: Option<usize>,
    pub dead_letter: Option<Size>,
    pub lake_rows: Option<usize>,
    pub lake_recent: Option<Span>,
    pub lake_old: Option<Span>,
    pub snapshot: Option<Span>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    pub segment: Option<Size>,
    pub keep: Option<Span>,
    pub budget: Option<Size>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lake {
    pub url: Option<String>,
    pub partition: Option<String>,
}

/// What can be set of a table of Weir's own.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnTable {
    pub retention: Option<Span>,
}

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
    pub security: Option<toml::Table>,
}
