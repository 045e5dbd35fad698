//! Files as Delta's actions, and the files of a version as Weir's entries.

use std::collections::HashMap;

use deltalake::kernel::{Add, LogicalFileView, Remove};
use deltalake::{DeltaTable, DeltaTableError};

use super::checked::BlockChecksums;
use super::entities::levels::{self, Level};
use super::error::InView;
use super::files::{FileEntry, partition_values, stats_json};
use super::{RowClass, TableSpec};
use crate::event::{Lsn, Micros};
use crate::schema::Layout;
use crate::views::ViewError;

fn delta_partition_values(spec: &TableSpec, bucket: i64) -> HashMap<String, Option<String>> {
    partition_values(bucket, spec.layout)
        .into_iter()
        .map(|(k, v)| (k.to_owned(), Some(v.to_string())))
        .collect()
}

fn tags(file: &FileEntry) -> HashMap<String, Option<String>> {
    HashMap::from([("weir.class".to_owned(), Some(file.class.name().to_owned()))])
}

pub(super) fn add_action(spec: &TableSpec, file: &FileEntry, data_change: bool) -> Add {
    Add {
        path: file.path.clone(),
        partition_values: delta_partition_values(spec, file.bucket),
        size: file.bytes as i64,
        modification_time: file.written_ms,
        data_change,
        stats: Some(stats_json(spec, file)),
        tags: Some(tags(file)),
        ..Add::default()
    }
}

pub(super) fn remove_action(
    spec: &TableSpec,
    file: &FileEntry,
    data_change: bool,
    now_ms: i64,
) -> Remove {
    Remove {
        path: file.path.clone(),
        data_change,
        deletion_timestamp: Some(now_ms),
        extended_file_metadata: Some(true),
        partition_values: Some(delta_partition_values(spec, file.bucket)),
        size: Some(file.bytes as i64),
        tags: Some(tags(file)),
        deletion_vector: None,
        base_row_id: None,
        default_row_commit_version: None,
    }
}

/// The files of the loaded version.
pub(super) fn read_files(
    spec: &TableSpec,
    table: &DeltaTable,
) -> Result<Vec<FileEntry>, DeltaTableError> {
    Ok(table
        .snapshot()?
        .log_data()
        .iter()
        .map(|f| file_entry(spec, &f))
        .collect())
}

/// The levels that the loaded version names.
pub(super) fn read_levels(spec: &TableSpec, table: &DeltaTable) -> Result<Vec<Level>, ViewError> {
    let snapshot = table.snapshot().in_folder(&spec.root)?;
    let Some(text) = snapshot.metadata().configuration().get(levels::KEY) else {
        return Ok(Vec::new());
    };
    levels::from_text(spec, text).in_view(&spec.name)
}

fn file_entry(spec: &TableSpec, file: &LogicalFileView) -> FileEntry {
    let path = file.path().into_owned();
    let stats: serde_json::Value = file
        .stats()
        .and_then(|s| serde_json::from_str(&s).ok())
        .unwrap_or(serde_json::Value::Null);
    let lsn = |bound: &str, default: u64| stats[bound]["lsn"].as_u64().unwrap_or(default);
    let class = if path
        .rsplit('/')
        .next()
        .is_some_and(|n| n.starts_with("old-"))
    {
        RowClass::Late
    } else {
        RowClass::Recent
    };
    FileEntry {
        bytes: file.size() as u64,
        rows: stats["numRecords"].as_u64().unwrap_or(0),
        bucket: bucket_of(spec, file),
        class,
        min_time: stats["weir"]["min"].as_i64().unwrap_or(Micros::MIN),
        max_time: stats["weir"]["max"].as_i64().unwrap_or(Micros::MAX),
        min_lsn: lsn("minValues", 0),
        max_lsn: lsn("maxValues", Lsn::MAX),
        written_ms: file.modification_time(),
        checks: stats["weir"]["crc32c"]
            .as_str()
            .map(BlockChecksums::from_text)
            .unwrap_or_default(),
        path,
    }
}

fn bucket_of(spec: &TableSpec, file: &LogicalFileView) -> i64 {
    let values = file.partition_values_map();
    let value = |name: &str| {
        values
            .get(name)
            .cloned()
            .flatten()
            .and_then(|v| v.parse::<i64>().ok())
    };
    if spec.layout == Layout::Buckets {
        return value("bucket").unwrap_or(0);
    }
    let date = value("year")
        .zip(value("month"))
        .zip(value("day"))
        .and_then(|((y, m), d)| {
            chrono::NaiveDate::from_ymd_opt(
                i32::try_from(y).ok()?,
                u32::try_from(m).ok()?,
                u32::try_from(d).ok()?,
            )
        });
    let days = date
        .and_then(|d| d.and_hms_opt(0, 0, 0))
        .map_or(0, |t| t.and_utc().timestamp() / 86_400);
    if spec.layout == Layout::Hours {
        days * 24 + value("hour").unwrap_or(0)
    } else {
        days
    }
}
