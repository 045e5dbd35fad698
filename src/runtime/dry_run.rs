//! Running sample records through a configuration in memory: what each becomes, and what windows and
//! sessions then hold. Does not touch a data folder.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::Arc;

use arrow::array::{Array, RecordBatch, TimestampMicrosecondArray};
use serde_json::{Map, Value, json};

use super::RuntimeError;
use crate::event::{Micros, rfc3339};
use crate::ids::TableId;
use crate::ingest::SortTimes;
use crate::operators::{Operators, Output, Totals};
use crate::query::sql::to_ndjson;
use crate::schema::window::Shape;
use crate::schema::{Catalog, Stream};
use crate::sources::compression::PlainReader;
use crate::sources::lines::Reader;
use crate::sources::message;
use crate::wal::{Frame, FrameAttributes, Header, Kind, RecordsBuilder};

/// The most records of a frame, where many are counted at once.
const FRAME_RECORDS: usize = 1_024;

/// The records of a file, as a source of files reads it; only the first `sample_bytes`, if given.
pub fn read(
    file: impl Read,
    unwrap: Option<&str>,
    record_bytes: usize,
    sample_bytes: Option<usize>,
) -> io::Result<Vec<Vec<u8>>> {
    let mut reader = Reader::new(PlainReader::new(file)?, 0, b"", unwrap, record_bytes);
    let (mut records, mut bytes) = (Vec::new(), 0);
    while sample_bytes.is_none_or(|max| bytes < max)
        && let Some(item) = reader.next_item()?
    {
        bytes += item.bytes.len();
        message::each(&item.bytes, &mut |record| records.push(record.to_vec()));
    }
    Ok(records)
}

/// The records in order of event time, as a source with `order = "event_time"` takes them in.
pub fn in_order(stream: &Arc<Stream>, records: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut times = SortTimes::new(stream.clone());
    let mut keyed = Vec::with_capacity(records.len());
    let mut records = records.into_iter().peekable();
    while records.peek().is_some() {
        let part: Vec<Vec<u8>> = records.by_ref().take(FRAME_RECORDS).collect();
        let mut builder = RecordsBuilder::default();
        part.iter().for_each(|record| builder.push(record));
        keyed.extend(times.next(&builder.finish(), &[]).into_iter().zip(part));
    }
    // Stable: equal times keep the order of the file.
    keyed.sort_by_key(|(time, _)| *time);
    keyed.into_iter().map(|(_, record)| record).collect()
}

/// The operators' totals for records of one stream, in one partition.
pub fn count(
    catalog: &Arc<Catalog>,
    stream: &str,
    records: &[Vec<u8>],
    received_at: Micros,
) -> Result<Totals, RuntimeError> {
    let mut dry_run = DryRun {
        operators: Operators::new(catalog.clone(), 0),
        stored: BTreeMap::new(),
        received_at,
    };
    for part in records.chunks(FRAME_RECORDS) {
        dry_run.apply(Kind::Record, stream, part.iter().map(Vec::as_slice))?;
    }
    Ok(dry_run.totals(stream))
}

/// The error for a stream that is not declared.
pub fn unknown_stream(catalog: &Catalog, stream: &str) -> RuntimeError {
    let known = catalog
        .streams
        .keys()
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    RuntimeError::Config(format!(
        "the stream `{stream}` does not exist; available: {known}"
    ))
}

/// Runs records of one stream. `is_final` closes windows and sessions at the end. Returns what each
/// record became and the rows of windows and sessions as JSON, and the stream's totals.
pub fn run(
    catalog: &Arc<Catalog>,
    stream: &str,
    records: &[Vec<u8>],
    received_at: Micros,
    is_final: bool,
) -> Result<(Value, Totals), RuntimeError> {
    let Some(stream) = catalog.streams.get(stream) else {
        return Err(unknown_stream(catalog, stream));
    };
    let mut dry_run = DryRun {
        operators: Operators::new(catalog.clone(), 0),
        stored: BTreeMap::new(),
        received_at,
    };
    let mut shown = Vec::new();
    for record in records {
        let output = dry_run.apply(Kind::Record, &stream.name, [record.as_slice()])?;
        let mut sample = dry_run.show(stream, &output)?;
        sample["record"] = String::from_utf8_lossy(record).into_owned().into();
        shown.push(sample);
    }
    if is_final {
        dry_run.apply(Kind::CloseAll, "", [b"{}".as_slice()])?;
    }
    let windows = catalog.windows.iter().map(|w| TableId::window(&w.name));
    let sessions = catalog.streams.keys().map(|name| TableId::sessions(name));
    for table in windows.chain(sessions) {
        let open = dry_run
            .operators
            .open_rows(&table)
            .map_err(RuntimeError::Failed)?;
        dry_run.store(&table, open.as_ref())?;
    }
    let rows_of = |table: TableId| {
        let rows = dry_run.stored.get(&table);
        Value::from(rows.cloned().unwrap_or_default())
    };
    let windows: Map<String, Value> = catalog
        .windows
        .iter()
        .filter(|w| w.stream == stream.name)
        .map(|w| (w.name.clone(), rows_of(TableId::window(&w.name))))
        .collect();
    let answer = json!({
        "records": shown,
        "windows": windows,
        "sessions": rows_of(TableId::sessions(&stream.name)),
    });
    Ok((answer, dry_run.totals(&stream.name)))
}

struct DryRun {
    operators: Operators,
    stored: BTreeMap<TableId, Vec<Value>>,
    received_at: Micros,
}

impl DryRun {
    fn totals(&self, stream: &str) -> Totals {
        self.operators
            .progress()
            .get(stream)
            .map(|progress| progress.totals)
            .unwrap_or_default()
    }

    fn apply<'a>(
        &mut self,
        kind: Kind,
        stream: &str,
        parts: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Output, RuntimeError> {
        let mut records = RecordsBuilder::default();
        parts.into_iter().for_each(|bytes| records.push(bytes));
        let records = records.finish();
        let header = Header {
            first_lsn: self.operators.lsn() + 1,
            received_at: self.received_at,
            configuration: self.operators.catalog().id,
            source: "sample".into(),
            ..Header::new(kind, stream)
        };
        let frame = Frame::data(header, &records, FrameAttributes::default())
            .map_err(|e| RuntimeError::Failed(e.to_string()))?;
        let frame = Arc::new(frame);
        let decoded = self.operators.decode(&frame)?;
        let output = self.operators.apply(&frame, decoded.as_ref())?;
        for rows in &output.tables {
            self.store(&rows.table, Some(&rows.batch))?;
        }
        Ok(output)
    }

    fn store(&mut self, table: &TableId, rows: Option<&RecordBatch>) -> Result<(), RuntimeError> {
        let Some(rows) = rows else { return Ok(()) };
        let rows = as_json(rows)?;
        self.stored.entry(table.clone()).or_default().extend(rows);
        Ok(())
    }

    /// What one record became.
    fn show(&self, stream: &Stream, output: &Output) -> Result<Value, RuntimeError> {
        let rejected = output.dead_letters.first().map(|d| d.reason.clone());
        let Some(rows) = &output.rows else {
            return Ok(json!({"row": null, "rejected": rejected}));
        };
        let row = as_json(&rows.batch)?
            .into_iter()
            .next()
            .unwrap_or(Value::Null);
        let table = TableId::late(&stream.name);
        let late = output.tables.iter().find(|t| t.table == table);
        let late_for = match late {
            Some(late) => as_json(&late.batch)?
                .into_iter()
                .next()
                .map_or(Value::Null, |row| row["windows"].clone()),
            None => json!([]),
        };
        let mut sample =
            json!({"rejected": null, "windows": self.windows_of(stream, &rows.batch, &late_for)?});
        for (key, column) in [("duplicates", "is_duplicate"), ("session", "session_id")] {
            if let Some(value) = row.get(column) {
                sample[key] = value.clone();
            }
        }
        sample["row"] = row;
        sample["late_for"] = late_for;
        Ok(sample)
    }

    /// The windows that accept the row, each with the first start and the last end of those that
    /// contain it.
    fn windows_of(
        &self,
        stream: &Stream,
        row: &RecordBatch,
        late: &Value,
    ) -> Result<Vec<Value>, RuntimeError> {
        let mut out = Vec::new();
        let is_late = |name: &str| {
            late.as_array()
                .is_some_and(|all| all.iter().any(|n| n == name))
        };
        for window in &self.operators.catalog().windows {
            if window.input != stream.name || is_late(&window.name) {
                continue;
            }
            let passes = window.filter_mask(row).map_err(RuntimeError::Failed)?;
            let times = row
                .column(window.time)
                .as_any()
                .downcast_ref::<TimestampMicrosecondArray>();
            let Some(time) = times
                .filter(|t| t.is_valid(0) && passes.value(0))
                .map(|t| t.value(0))
            else {
                continue;
            };
            out.push(match window.shape {
                Shape::Aligned(windows) => json!({
                    "window": window.name,
                    "window_start": rfc3339(windows.start(windows.first_end(time))),
                    "window_end": rfc3339(windows.last_end(time)),
                    "windows": windows.count(time),
                }),
                Shape::Session { .. } => json!({"window": window.name}),
            });
        }
        Ok(out)
    }
}

/// Rows as JSON, without columns that differ from run to run.
fn as_json(batch: &RecordBatch) -> Result<Vec<Value>, RuntimeError> {
    let lines = to_ndjson(&batch.schema(), std::slice::from_ref(batch))?;
    let rows = lines
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|line| {
            let mut row: Value =
                serde_json::from_slice(line).map_err(|e| RuntimeError::Failed(e.to_string()))?;
            if let Some(row) = row.as_object_mut() {
                row.remove("received_at");
                row.remove("source");
            }
            Ok(row)
        });
    rows.collect()
}
