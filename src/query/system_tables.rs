//! System tables (`weir.*`): the state of the process as rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use datafusion::catalog::view::ViewTable;
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::datasource::provider_as_source;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{JoinType, LogicalPlanBuilder, ident};

use super::{Handles, QueryError};
use crate::event::{Lsn, Micros, RefusedRow, SinkHealth, SourceHealth, SourceState};
use crate::ids::{PartitionId, ViewId};
use crate::operators::PartitionState;

/// Names of the tables in the schema `weir`.
pub const TABLES: [&str; 8] = [
    "configuration",
    "drift",
    "files",
    "gaps",
    "sink_dead_letters",
    "sinks",
    "sources",
    "views",
];

fn text(values: impl Iterator<Item = String>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

fn number(values: impl Iterator<Item = u64>) -> ArrayRef {
    Arc::new(values.map(|v| Some(v as i64)).collect::<Int64Array>())
}

fn time(values: impl Iterator<Item = Micros>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_iter_values(values).with_timezone("UTC"))
}

/// The current rows of a system table.
pub fn table(name: &str, handles: &Handles) -> Result<Arc<dyn TableProvider>, QueryError> {
    let columns = match name {
        "configuration" => configuration(handles),
        "drift" => drift(handles),
        "files" => files(handles),
        "gaps" => gaps(handles),
        "sink_dead_letters" => sink_dead_letters(handles),
        "sinks" => sinks(handles),
        "sources" => sources(handles),
        _ => views(handles),
    };
    let failed = |e: String| QueryError::Failed(e);
    let batch = RecordBatch::try_from_iter(columns).map_err(|e| failed(e.to_string()))?;
    let table =
        MemTable::try_new(batch.schema(), vec![vec![batch]]).map_err(|e| failed(e.to_string()))?;
    Ok(Arc::new(table))
}

/// Joins dead letters with the records of their successful retries, which come from the operators:
/// files do not change.
pub fn with_retries(
    name: &str,
    dead_letters: Arc<dyn TableProvider>,
    retried: &BTreeMap<Lsn, Lsn>,
) -> Result<Arc<dyn TableProvider>, DataFusionError> {
    const RETRIED_LSN: &str = "retried_lsn";
    let retries = RecordBatch::try_from_iter([
        ("dead_lsn", number(retried.keys().copied())),
        ("by_lsn", number(retried.values().copied())),
    ])?;
    let retries = MemTable::try_new(retries.schema(), vec![vec![retries]])?;
    let retries = LogicalPlanBuilder::scan("retried", provider_as_source(Arc::new(retries)), None)?
        .build()?;
    let columns: Vec<_> = dead_letters
        .schema()
        .fields()
        .iter()
        .map(|f| {
            if f.name() == RETRIED_LSN {
                ident("by_lsn").alias(RETRIED_LSN)
            } else {
                ident(f.name())
            }
        })
        .collect();
    let plan = LogicalPlanBuilder::scan(name, provider_as_source(dead_letters), None)?
        .join(
            retries,
            JoinType::Left,
            (vec!["lsn"], vec!["dead_lsn"]),
            None,
        )?
        .project(columns)?
        .build()?;
    Ok(Arc::new(ViewTable::new(plan, None)))
}

type Columns = Vec<(&'static str, ArrayRef)>;

fn configuration(handles: &Handles) -> Columns {
    let streams = || handles.catalog.streams.values();
    vec![
        ("stream", text(streams().map(|s| s.name.clone()))),
        (
            "declaration",
            text(streams().map(|s| serde_json::to_string(&s.def).unwrap_or_default())),
        ),
    ]
}

fn drift(handles: &Handles) -> Columns {
    let streams = handles.progress.streams();
    let rows: Vec<(&String, &(String, u64))> = streams
        .iter()
        .flat_map(|(name, s)| s.drift.iter().map(move |d| (name, d)))
        .collect();
    vec![
        ("stream", text(rows.iter().map(|(s, _)| (*s).clone()))),
        ("field", text(rows.iter().map(|(_, (f, _))| f.clone()))),
        ("records", number(rows.iter().map(|(_, (_, n))| *n))),
    ]
}

fn files(handles: &Handles) -> Columns {
    let rows: Vec<_> = handles
        .tables
        .values()
        .flat_map(|t| {
            let files = t.all_files();
            files
                .into_iter()
                .map(|file| (t.spec.name.clone(), file))
                .collect::<Vec<_>>()
        })
        .collect();
    vec![
        ("table", text(rows.iter().map(|(t, _)| t.clone()))),
        ("partition", text(rows.iter().map(|(_, f)| folder(&f.path)))),
        ("path", text(rows.iter().map(|(_, f)| f.path.clone()))),
        (
            "class",
            text(rows.iter().map(|(_, f)| f.class.name().to_owned())),
        ),
        ("rows", number(rows.iter().map(|(_, f)| f.rows))),
        ("bytes", number(rows.iter().map(|(_, f)| f.bytes))),
        ("min_time", time(rows.iter().map(|(_, f)| f.min_time))),
        ("max_time", time(rows.iter().map(|(_, f)| f.max_time))),
        (
            "written_at",
            time(rows.iter().map(|(_, f)| f.written_ms.saturating_mul(1_000))),
        ),
    ]
}

/// The folder of a file within its table.
fn folder(path: &str) -> String {
    path.rsplit_once('/')
        .map_or("", |(folder, _)| folder)
        .to_owned()
}

fn gaps(handles: &Handles) -> Columns {
    let gaps = handles.progress.gaps();
    vec![
        ("source", text(gaps.iter().map(|g| g.source.clone()))),
        ("from", time(gaps.iter().map(|g| g.from))),
        ("to", time(gaps.iter().map(|g| g.to))),
        ("reason", text(gaps.iter().map(|g| g.reason.clone()))),
    ]
}

fn optional(values: impl Iterator<Item = Option<String>>) -> ArrayRef {
    Arc::new(values.collect::<StringArray>())
}

fn sinks(handles: &Handles) -> Columns {
    let synced = handles.progress.synced_lsn();
    let sinks = handles.progress.sinks();
    let healths = || sinks.values();
    let refused = |health: &SinkHealth| health.refused.len() as u64;
    vec![
        ("sink", text(sinks.keys().cloned())),
        ("type", text(healths().map(|h| h.kind.to_owned()))),
        ("tables", text(healths().map(|h| h.tables.join(", ")))),
        ("state", text(healths().map(|h| h.state.name().to_owned()))),
        ("lsn", number(healths().map(|h| h.lsn))),
        (
            "lag",
            number(healths().map(|h| synced.saturating_sub(h.lsn))),
        ),
        ("rows", number(healths().map(|h| h.rows))),
        ("retries", number(healths().map(|h| h.retries))),
        ("dead_letters", number(healths().map(refused))),
        (
            "last_error",
            optional(healths().map(|h| h.last_error.clone())),
        ),
    ]
}

fn sink_dead_letters(handles: &Handles) -> Columns {
    let sinks = handles.progress.sinks();
    let of_sink = |(name, health): (String, SinkHealth)| {
        let rows = health.refused.into_iter();
        rows.map(move |row| (name.clone(), row))
    };
    let rows: Vec<(String, RefusedRow)> = sinks.into_iter().flat_map(of_sink).collect();
    let each = || rows.iter().map(|(_, row)| row);
    vec![
        ("sink", text(rows.iter().map(|(sink, _)| sink.clone()))),
        ("table", text(each().map(|row| row.table.clone()))),
        ("lsn", number(each().map(|row| row.lsn))),
        ("refused_at", time(each().map(|row| row.refused_at))),
        ("reason", text(each().map(|row| row.reason.clone()))),
        ("row", text(each().map(|row| row.row.clone()))),
    ]
}

/// A partition, or a source or file that waits and has not been read yet.
struct SourceRow {
    source: String,
    partition: String,
    source_offset: Option<u64>,
    received_at: Option<Micros>,
    state: &'static str,
    reason: Option<String>,
}

fn sources(handles: &Handles) -> Columns {
    let rows = source_rows(&handles.progress.partitions(), &handles.progress.sources());
    let source_offset = rows
        .iter()
        .map(|r| r.source_offset.map(|p| p as i64))
        .collect::<Int64Array>();
    let received = rows
        .iter()
        .map(|r| r.received_at)
        .collect::<TimestampMicrosecondArray>()
        .with_timezone("UTC");
    vec![
        ("source", text(rows.iter().map(|r| r.source.clone()))),
        ("partition", text(rows.iter().map(|r| r.partition.clone()))),
        ("source_offset", Arc::new(source_offset)),
        ("received_at", Arc::new(received)),
        ("state", text(rows.iter().map(|r| r.state.to_owned()))),
        (
            "reason",
            Arc::new(
                rows.iter()
                    .map(|r| r.reason.clone())
                    .collect::<StringArray>(),
            ),
        ),
    ]
}

fn source_rows(
    partitions: &BTreeMap<PartitionId, PartitionState>,
    sources: &BTreeMap<String, SourceHealth>,
) -> Vec<SourceRow> {
    let mut rows = Vec::new();
    for (PartitionId { source, partition }, read) in partitions {
        let health = sources.get(&**source);
        let waiting = health.and_then(|h| h.waiting.get(path_of(partition)));
        let (state, reason) = match (health, waiting) {
            (_, Some(reason)) => (SourceState::Waiting.name(), Some(reason.clone())),
            (Some(health), None) => (health.state.name(), health.reason.clone()),
            // Not read: the source is no longer configured, is the server's own, or no process runs.
            (None, None) => ("", None),
        };
        rows.push(SourceRow {
            source: source.to_string(),
            partition: partition.to_string(),
            source_offset: Some(read.next_offset),
            received_at: Some(read.received_at),
            state,
            reason,
        });
    }
    for (source, health) in sources {
        let has_row = |rows: &[SourceRow], path: &str| {
            let mut of_source = rows.iter().filter(|row| row.source == *source);
            of_source.any(|row| path.is_empty() || path_of(&row.partition) == path)
        };
        let whole = (String::new(), health.reason.clone(), health.state);
        let files = health
            .waiting
            .iter()
            .map(|(path, reason)| (path.clone(), Some(reason.clone()), SourceState::Waiting));
        for (partition, reason, state) in std::iter::once(whole).chain(files) {
            if !has_row(&rows, &partition) {
                rows.push(SourceRow {
                    source: source.clone(),
                    partition,
                    source_offset: None,
                    received_at: None,
                    state: state.name(),
                    reason,
                });
            }
        }
    }
    rows
}

/// The path in a partition of files, which is named `PATH@…` after the path that was read first.
fn path_of(partition: &str) -> &str {
    partition
        .rsplit_once('@')
        .map_or(partition, |(path, _)| path)
}

fn views(handles: &Handles) -> Columns {
    let checkpoints = handles.checkpoints();
    let synced = handles.progress.synced_lsn();
    let in_files = |view: &ViewId| {
        let table = handles.tables.get(view.table()?);
        table.map(|table| table.files_lsn() as i64)
    };
    vec![
        (
            "view",
            text(checkpoints.iter().map(|(view, _)| view.to_string())),
        ),
        ("lsn", number(checkpoints.iter().map(|(_, lsn)| *lsn))),
        (
            "lag",
            number(
                checkpoints
                    .iter()
                    .map(|(_, lsn)| synced.saturating_sub(*lsn)),
            ),
        ),
        (
            "files_lsn",
            Arc::new(
                checkpoints
                    .iter()
                    .map(|(view, _)| in_files(view))
                    .collect::<Int64Array>(),
            ),
        ),
    ]
}
