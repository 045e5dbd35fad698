//! The latest rows of a stream: from the ring, and once from SQL where the ring has too few.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{PanelData, shortened, tables};
use crate::event::{Lsn, Micros, rfc3339};
use crate::ids::TableId;
use crate::query::encode::each_row;
use crate::query::live::Live;
use crate::query::sql::SqlEngine;
use crate::query::{Handles, QueryError};
use crate::schema::Stream;
use crate::schema::names::quoted;

/// Rows that are shown.
const MAX_ROWS: usize = 12;
/// Columns that are shown, beside the LSN.
const MAX_COLUMNS: usize = 8;
/// In how many of the last records SQL looks for rows; of a stream with few among many, in more.
const RECORDS_SEARCHED: [u64; 2] = [10_000, 1_000_000];

/// The latest rows, by LSN.
#[derive(Debug, Default)]
pub struct Latest {
    rows: BTreeMap<Lsn, Value>,
    /// The ring has been read up to this record.
    read_to: Lsn,
    /// Rows up to this LSN may be missing.
    lacks_up_to: Option<Lsn>,
}

/// The columns that are shown: the stream's first ones, the event time among them.
fn columns(stream: &Stream) -> Vec<&str> {
    let fields = stream.output.fields().iter().take(MAX_COLUMNS);
    fields.map(|field| field.name().as_str()).collect()
}

impl Latest {
    fn insert(&mut self, row: Map<String, Value>) {
        let Some(lsn) = row.get("lsn").and_then(Value::as_u64) else {
            return;
        };
        self.rows.insert(lsn, row.into());
        if self.rows.len() > MAX_ROWS {
            self.rows.pop_first();
        }
    }

    /// Adds the rows that became visible since the last call.
    pub fn read(
        &mut self,
        stream: &Stream,
        handles: &Handles,
        live: &Live,
    ) -> Result<(), QueryError> {
        let Some(table) = handles.stream_table(&stream.name) else {
            return Ok(());
        };
        let newest = live.newest(table, self.read_to, MAX_ROWS);
        if newest.may_lack_rows {
            self.rows.clear();
            self.lacks_up_to = Some(newest.visible);
        }
        for rows in newest.batches {
            let shown = std::iter::once("lsn").chain(columns(stream));
            let shown: Result<Vec<usize>, _> =
                shown.map(|name| rows.schema().index_of(name)).collect();
            let failed = |e: arrow::error::ArrowError| QueryError::Failed(e.to_string());
            let rows = shown
                .and_then(|shown| rows.project(&shown))
                .map_err(failed)?;
            each_row(&rows.schema(), std::slice::from_ref(&rows), |row| {
                let row: Map<String, Value> =
                    serde_json::from_slice(row).map_err(|e| QueryError::Failed(e.to_string()))?;
                self.insert(row.into_iter().map(|(k, v)| (k, shortened(v))).collect());
                Ok(())
            })?;
        }
        self.read_to = newest.visible;
        Ok(())
    }

    /// Whether rows that the ring no longer has must be read by [`stored`].
    pub fn is_incomplete(&self) -> bool {
        self.lacks_up_to.is_some()
    }

    /// Adds rows that were stored up to an LSN. Rows that left the ring while they were read are
    /// still missing.
    pub fn complete(&mut self, rows: Vec<Map<String, Value>>, upto: Lsn) {
        rows.into_iter().for_each(|row| self.insert(row));
        self.lacks_up_to = self.lacks_up_to.filter(|lsn| upto < *lsn);
    }

    /// The data of the panel, newest first.
    pub fn data(&self, stream: &Stream, handles: &Handles, now: Micros) -> PanelData {
        let name = &stream.name;
        let views = [TableId::stream(name).view()];
        let progress = &handles.progress;
        let as_of = progress.as_of(self.read_to, std::slice::from_ref(name), &views, now);
        let floor = handles.floor(name).map(rfc3339);
        // Both are texts of one form. Rows without a time have none to be compared.
        let is_shown = |row: &&Value| match (&floor, row["event_time"].as_str()) {
            (Some(floor), Some(time)) => time >= floor.as_str(),
            _ => true,
        };
        let rows: Vec<&Value> = self.rows.values().rev().filter(is_shown).collect();
        PanelData {
            as_of: Some(as_of),
            data: json!({"columns": columns(stream), "rows": rows}),
        }
    }
}

/// The latest stored rows of a stream, by SQL over the last records of the log, and the LSN that
/// they reflect.
pub async fn stored(
    stream: &Stream,
    handles: &Handles,
    sql: &SqlEngine,
    now: Micros,
) -> Result<(Vec<Map<String, Value>>, Lsn), QueryError> {
    let (mut rows, mut upto) = (Vec::new(), 0);
    for records in RECORDS_SEARCHED {
        let after = handles.progress.synced_lsn().saturating_sub(records);
        let answer = sql.run(&statement(stream, after), handles, now).await?;
        (rows, upto) = (tables::rows(&answer)?, answer.as_of.lsn);
        if rows.len() == MAX_ROWS {
            break;
        }
    }
    Ok((rows, upto))
}

fn statement(stream: &Stream, after: Lsn) -> String {
    let columns: Vec<String> = columns(stream).into_iter().map(quoted).collect();
    format!(
        "select lsn, {} from {} where lsn > {after} order by lsn desc limit {MAX_ROWS}",
        columns.join(", "),
        quoted(&stream.name)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(lsn: Lsn) -> Map<String, Value> {
        json!({"lsn": lsn}).as_object().cloned().expect("an object")
    }

    #[test]
    fn the_newest_rows_stay_and_each_is_there_once() {
        let mut latest = Latest {
            lacks_up_to: Some(29),
            ..Latest::default()
        };
        (20..30).for_each(|lsn| latest.insert(row(lsn)));
        assert!(latest.is_incomplete());
        latest.complete((15..26).map(row).collect(), 25);
        assert!(latest.is_incomplete());
        latest.complete((18..30).map(row).collect(), 29);
        assert!(!latest.is_incomplete());
        let lsns: Vec<Lsn> = latest.rows.keys().copied().collect();
        assert_eq!(lsns, (18..30).collect::<Vec<Lsn>>());
    }
}
