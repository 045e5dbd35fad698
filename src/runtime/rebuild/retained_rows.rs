//! Frames reconstructed from rows that outlived their raw records: those of a stream's table, and
//! dead letters. And rows of derived tables that cannot be derived again.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Int64Array, RecordBatch, StringArray,
};
use arrow::array::{TimestampMicrosecondArray, new_null_array};
use arrow::compute::{concat_batches, filter_record_batch};

use super::replay::ReplayFrame;
use crate::decode::{Decoded, Rejected};
use crate::event::{Lsn, Micros};
use crate::operators::{Output, RETAINED_PARTITION, TableRows, lsns};
use crate::schema::{Catalog, Layout, Stream};
use crate::views::lake::scan_by_lsn::{LsnOrderedRows, by_lsn};
use crate::views::lake::{LakeTable, TableSpec};
use crate::wal::{Frame, FrameAttributes, Header, Kind, Records};

/// The most records of a reconstructed frame.
const FRAME_RECORDS: usize = 1_024;

/// Rows as frames, as far as rows show what they came from.
pub(super) struct RetainedRows {
    rows: LsnOrderedRows,
    origin: RetainedOrigin,
    waiting: VecDeque<ReplayFrame>,
}

/// The table of the rows.
pub(super) enum RetainedOrigin {
    Stream(Arc<Stream>),
    /// Dead letters of these streams.
    DeadLetters(Arc<Catalog>),
}

impl RetainedRows {
    /// Rows of the records above `after`, up to `to`.
    pub fn new(table: &LakeTable, origin: RetainedOrigin, after: Lsn, to: Lsn) -> Self {
        Self {
            rows: LsnOrderedRows::new(table, after, to),
            origin,
            waiting: VecDeque::new(),
        }
    }

    /// The next frame in the order of LSNs; none at the end of the rows.
    pub fn next_frame(&mut self) -> Result<Option<ReplayFrame>, String> {
        while self.waiting.is_empty() {
            let Some(rows) = self.rows.next_rows().map_err(|e| e.to_string())? else {
                return Ok(None);
            };
            match &self.origin {
                RetainedOrigin::Stream(stream) => self.waiting.extend(frames_of(stream, &rows)?),
                RetainedOrigin::DeadLetters(catalog) => {
                    for row in 0..rows.num_rows() {
                        self.waiting
                            .extend(dead_letter(catalog, &rows.slice(row, 1))?);
                    }
                }
            }
        }
        Ok(self.waiting.pop_front())
    }
}

fn column<'a, T: Array + 'static>(rows: &'a RecordBatch, name: &str) -> Result<&'a T, String> {
    let column = rows
        .column_by_name(name)
        .and_then(|c| c.as_any().downcast_ref());
    column.ok_or_else(|| format!("the column `{name}` is missing"))
}

/// The header of a frame whose first record is this row's.
fn header(rows: &RecordBatch, row: usize, count: u32, stream: &str) -> Result<Header, String> {
    Ok(Header {
        count,
        first_lsn: lsns(rows)[row] as Lsn,
        received_at: column::<TimestampMicrosecondArray>(rows, "received_at")?.value(row),
        source: column::<StringArray>(rows, "source")?.value(row).to_owned(),
        partition: RETAINED_PARTITION.into(),
        ..Header::new(Kind::Record, stream)
    })
}

/// Rows of a stream as frames: one for those that arrived together.
///
/// Of the records 10 to 13 of one request, 11 may have been a dead letter: the frame has four
/// records, of which the rows are those at the indexes 0, 2 and 3.
fn frames_of(stream: &Stream, rows: &RecordBatch) -> Result<Vec<ReplayFrame>, String> {
    let received = column::<TimestampMicrosecondArray>(rows, "received_at")?;
    let source = column::<StringArray>(rows, "source")?;
    let own = stream
        .output
        .fields()
        .iter()
        .map(|field| match rows.column_by_name(field.name()) {
            Some(column) => column.clone(),
            None => new_null_array(field.data_type(), rows.num_rows()),
        });
    let own =
        RecordBatch::try_new(stream.output.clone(), own.collect()).map_err(|e| e.to_string())?;
    let all = lsns(rows);
    let mut frames = Vec::new();
    let mut start = 0;
    while start < all.len() {
        let together = (start..all.len()).take(FRAME_RECORDS).take_while(|row| {
            (received.value(*row), source.value(*row))
                == (received.value(start), source.value(start))
                && all[*row] - all[start] < FRAME_RECORDS as i64
        });
        let end = start + together.count();
        let index: Vec<u32> = all[start..end]
            .iter()
            .map(|lsn| (lsn - all[start]) as u32)
            .collect();
        let count = index.last().map_or(1, |last| last + 1);
        let frame = Frame {
            header: header(rows, start, count, &stream.name)?,
            block: Default::default(),
            block_bytes: 0,
            attributes: FrameAttributes::default(),
        };
        let decoded = Decoded {
            rows: own.slice(start, end - start),
            index,
            rejected: Vec::new(),
            drift: Vec::new(),
        };
        frames.push(ReplayFrame {
            frame,
            decoded: Some(decoded),
        });
        start = end;
    }
    Ok(frames)
}

/// A dead letter as the record that was refused; none for a stream that no longer exists.
fn dead_letter(catalog: &Catalog, row: &RecordBatch) -> Result<Option<ReplayFrame>, String> {
    let Some(stream) = catalog
        .streams
        .get(column::<StringArray>(row, "stream")?.value(0))
    else {
        return Ok(None);
    };
    let records = Records::single(column::<BinaryArray>(row, "bytes")?.value(0));
    let offset = column::<Int64Array>(row, "source_offset")?;
    let attributes = FrameAttributes {
        offsets: offset
            .is_valid(0)
            .then(|| offset.value(0) as u64)
            .into_iter()
            .collect(),
        ..FrameAttributes::default()
    };
    let frame = Frame::data(header(row, 0, 1, &stream.name)?, &records, attributes)
        .map_err(|e| e.to_string())?;
    let reason = column::<StringArray>(row, "reason")?.value(0).into();
    let rows = RecordBatch::new_empty(stream.output.clone());
    let rejected = vec![Rejected { index: 0, reason }];
    let decoded = Decoded {
        rows,
        index: Vec::new(),
        rejected,
        drift: Vec::new(),
    };
    Ok(Some(ReplayFrame {
        frame,
        decoded: Some(decoded),
    }))
}

/// Rows of a derived table whose input is gone: those with a time before the first one that can be
/// derived completely.
pub(super) struct CarriedOverRows {
    spec: TableSpec,
    rows: LsnOrderedRows,
    before: Micros,
    next: Option<RecordBatch>,
}

impl CarriedOverRows {
    /// Rows of the old table, in the new one's columns.
    pub fn new(old: &LakeTable, after: Lsn, before: Micros) -> Self {
        let mut rows = LsnOrderedRows::new(old, after, Lsn::MAX);
        if old.spec.layout != Layout::Buckets {
            rows.only_before(before);
        }
        Self {
            spec: old.spec.clone(),
            rows,
            before,
            next: None,
        }
    }

    /// Replaces the output's rows of early times by the old rows of its records. A failed read leaves
    /// the output as it was.
    ///
    /// With `before` 08:00, and the output of the records 700 to 710: it derives windows of 07:50
    /// (from the events that are left) and of 08:10, the old table has 07:50 and 08:10 at record
    /// 705. The old row of 07:50 and the new one of 08:10 remain.
    pub fn merge_into(&mut self, output: &mut Output) -> Result<(), String> {
        let mut parts = Vec::new();
        while let Some(rows) = self.take_up_to(output.to)? {
            parts.push(self.filter_time(&rows, |time| time < self.before)?);
        }
        // From here on nothing is read.
        if let Some(at) = output.tables.iter().position(|t| t.table == self.spec.id) {
            // An entity's newest row stays in any case.
            let is_current =
                |time: Micros| self.spec.layout == Layout::Buckets || time >= self.before;
            parts.push(self.filter_time(&output.tables.remove(at).batch, is_current)?);
        }
        let rows = concat_batches(&self.spec.schema, &parts).map_err(|e| e.to_string())?;
        if rows.num_rows() > 0 {
            output.tables.push(TableRows {
                table: self.spec.id.clone(),
                batch: by_lsn(&self.spec, &rows).map_err(|e| e.to_string())?,
                retention_floor: None,
            });
        }
        Ok(())
    }

    /// Old rows up to a record that were not taken before.
    fn take_up_to(&mut self, to: Lsn) -> Result<Option<RecordBatch>, String> {
        let rows = match self.next.take() {
            Some(rows) => rows,
            None => match self.rows.next_rows().map_err(|e| e.to_string())? {
                Some(rows) => rows,
                None => return Ok(None),
            },
        };
        let at = lsns(&rows).partition_point(|lsn| *lsn as Lsn <= to);
        if at < rows.num_rows() {
            self.next = Some(rows.slice(at, rows.num_rows() - at));
        }
        Ok((at > 0).then(|| rows.slice(0, at)))
    }

    fn filter_time(
        &self,
        rows: &RecordBatch,
        is_wanted: impl Fn(Micros) -> bool,
    ) -> Result<RecordBatch, String> {
        let time: &ArrayRef = rows.column(self.spec.time_column);
        let times = time
            .as_any()
            .downcast_ref::<TimestampMicrosecondArray>()
            .ok_or("the time column is not a timestamp")?;
        let wanted: BooleanArray = times
            .values()
            .iter()
            .map(|time| Some(is_wanted(*time)))
            .collect();
        filter_record_batch(rows, &wanted).map_err(|e| e.to_string())
    }
}
