//! Rows above the last commit: in memory, queryable, small batches merged so that one-row frames do not cost a batch each.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;

use crate::event::Lsn;
use crate::wal::Frame;

/// Batches smaller than this are merged with their neighbours.
const MERGE_ROWS: usize = 8_192;

/// Some rows in the order of their LSNs.
#[derive(Debug, Clone)]
pub enum Hot {
    Rows(RecordBatch),
    /// A frame of the log, still compressed, standing for its rows of `raw` above an LSN.
    Frame {
        frame: Arc<Frame>,
        above: Lsn,
    },
}

impl Hot {
    pub fn rows(&self) -> usize {
        match self {
            Self::Rows(batch) => batch.num_rows(),
            Self::Frame { frame, above } => {
                let first = frame.header.first_lsn.max(above + 1);
                (frame.header.last_lsn() + 1).saturating_sub(first) as usize
            }
        }
    }

    pub fn memory_bytes(&self) -> usize {
        match self {
            Self::Rows(batch) => batch.get_array_memory_size(),
            Self::Frame { frame, .. } => frame.memory_bytes(),
        }
    }

    pub fn last_lsn(&self) -> Lsn {
        match self {
            Self::Rows(batch) => crate::operators::lsns(batch).last().map_or(0, |l| *l as u64),
            Self::Frame { frame, .. } => frame.header.last_lsn(),
        }
    }

    /// The rows in the table's schema (without partition columns).
    pub fn batch(&self, schema: &SchemaRef) -> Result<RecordBatch, String> {
        match self {
            Self::Rows(batch) => Ok(batch.clone()),
            Self::Frame { frame, above } => raw_rows(frame, *above, schema),
        }
    }
}

/// Appends rows, merging small batches: each row is copied at most about log2(8192) times.
pub fn push(parts: &mut Vec<Arc<Hot>>, rows: RecordBatch) {
    let mut rows = rows;
    while let Some(Hot::Rows(last)) = parts.last().map(AsRef::as_ref) {
        if last.num_rows() > 2 * rows.num_rows() || last.num_rows() + rows.num_rows() > MERGE_ROWS {
            break;
        }
        let Ok(merged) = concat_batches(&rows.schema(), [last, &rows]) else { break };
        rows = merged;
        parts.pop();
    }
    parts.push(Arc::new(Hot::Rows(rows)));
}

/// The rows of `raw` that a frame stands for.
fn raw_rows(frame: &Frame, above: Lsn, schema: &SchemaRef) -> Result<RecordBatch, String> {
    let header = &frame.header;
    let records = frame.records().map_err(|e| format!("record {}: {e}", header.first_lsn))?;
    let skip = (above + 1).saturating_sub(header.first_lsn) as usize;
    let rows = skip..records.len().max(skip);
    let n = rows.len();
    let text = |value: &str| Arc::new(StringArray::from_iter_values(std::iter::repeat_n(value, n))) as ArrayRef;
    let positions = &frame.about.positions;
    let about = about_json(frame);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(rows.clone().map(|i| (header.first_lsn + i as u64) as i64))),
        Arc::new(TimestampMicrosecondArray::from(vec![header.received_at; n]).with_timezone("UTC")),
        text(&header.source),
        text(&header.partition),
        Arc::new(rows.clone().map(|i| positions.get(i).map(|p| *p as i64)).collect::<Int64Array>()),
        text(&header.stream),
        text(header.kind.name()),
        Arc::new(rows.clone().map(|_| about.as_deref()).collect::<StringArray>()),
        Arc::new(BinaryArray::from_iter_values(rows.map(|i| records.get(i)))),
    ];
    RecordBatch::try_new(schema.clone(), columns).map_err(|e| e.to_string())
}

/// What `about` says beside positions, as JSON; none where it says nothing.
fn about_json(frame: &Frame) -> Option<String> {
    let about = &frame.about;
    let mut out = serde_json::Map::new();
    if let Some((_, key)) = &about.idempotency {
        out.insert("idempotency_key".into(), key.as_str().into());
    }
    if let Some(lsn) = about.retry_of {
        out.insert("retry_of".into(), lsn.into());
    }
    if !about.cut.is_empty() {
        out.insert("cut".into(), about.cut.iter().map(|(i, n)| serde_json::json!([i, n])).collect());
    }
    (!out.is_empty()).then(|| serde_json::Value::Object(out).to_string())
}
