//! Bytes → rows or rejections. Driven by the stream's schema: one parse, no tree, values go
//! straight into columns. A record that does not fit is removed from every column and reported with
//! its reason.
//!
//! As the schema requires, numbers become doubles (the nearest), text (with their digits as
//! written) or integers (however they are written, such as `1e3`, but exactly or not at all). Every
//! other mismatch rejects the record. If an object has a key twice, the last one counts. A lone
//! surrogate becomes U+FFFD. Unknown keys are counted, never rejected.

mod columns;
mod json;
mod messages;
mod numbers;
mod reason;
mod rejections;
#[cfg(test)]
mod tests;
mod time;

use std::borrow::Cow;
use std::collections::HashMap;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};

use crate::event::Micros;
use crate::message::{Messages, Tombstone};
use crate::schema::{Selected, Stream};
use columns::ColumnBuilder;
use json::Target;
use reason::RecordError;
#[cfg(test)]
pub(crate) use rejections::REASON_BYTES;
use rejections::{ReasonPool, Rejections};
pub use rejections::{Rejected, TooManyRejected};

/// The time that a text is to a column of type `timestamp` without a zone; none if such a column
/// rejects it.
pub(crate) fn text_time(text: &str) -> Option<Micros> {
    let time = time::parse(text, None).ok()?;
    time::YEARS.contains(&time).then_some(time)
}

/// A record's text with U+FFFD for halves of surrogate pairs; none where it has none.
pub(crate) fn without_lone_surrogates(text: &str) -> Option<String> {
    json::replace_lone_surrogates(text)
}

/// What is known of a frame's records beside their bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Received<'a> {
    pub at: Micros,
    /// Records that were stored shortened: index, original length in bytes. They are rejected.
    pub truncated: &'a [(u64, u64)],
    pub messages: Messages<'a>,
}

impl Received<'_> {
    /// Why a record is rejected whatever its bytes are.
    fn problem(&self, index: u32) -> Option<RecordError> {
        let mut truncated = self.truncated.iter();
        if let Some((_, bytes)) = truncated.find(|(at, _)| *at == u64::from(index)) {
            return Some(RecordError::TooLong { bytes: *bytes });
        }
        let index = index as usize;
        let reason = self.messages.rejected(index)?;
        Some(RecordError::Unread {
            partition: self.messages.partition.to_owned(),
            offset: self.messages.offsets.get(index).copied().unwrap_or(0),
            reason: reason.to_owned(),
        })
    }
}

/// A frame's records as rows of their stream.
#[derive(Debug, Clone)]
pub struct Decoded {
    /// The stream's own columns, `event_time` first.
    pub rows: RecordBatch,
    /// Per row, the index of its record in the frame; ascending.
    pub index: Vec<u32>,
    /// By index, ascending.
    pub rejected: Vec<Rejected>,
    /// Keys that the schema does not know, with their number of occurrences.
    pub drift: Vec<(String, u64)>,
}

impl Decoded {
    /// Memory that it takes, approximately, including the dead letters that it leads to.
    pub(crate) fn memory_bytes(&self) -> usize {
        let mut reasons = ReasonPool::default();
        self.rejected
            .iter()
            .for_each(|rejected| drop(reasons.intern(&rejected.reason)));
        self.rows.get_array_memory_size() + self.index.len() * size_of::<u32>() + reasons.bytes
    }
}

/// Decodes the records of one frame. Pure: the same bytes give the same rows, live and in replay.
pub fn decode<'a>(
    stream: &Stream,
    records: impl Iterator<Item = &'a [u8]>,
    received: Received<'_>,
) -> Decoded {
    decode_within(stream, records, received, usize::MAX)
        .expect("the memory for rejected records is not limited")
}

/// Like [`decode`], but gives up once the rejected records take more than `max_rejected_bytes`. For
/// frames that can be rejected as a whole.
pub(crate) fn decode_within<'a>(
    stream: &Stream,
    records: impl Iterator<Item = &'a [u8]>,
    received: Received<'_>,
    max_rejected_bytes: usize,
) -> Result<Decoded, TooManyRejected> {
    let mut rejections = Rejections::new(max_rejected_bytes);
    let Input { rows, index, drift } = read_records(stream, records, received, &mut rejections)?;
    let mut reject = |row: u32, reason: &str| rejections.push(index[row as usize], reason).is_ok();
    let Selected { rows, input_rows } = stream
        .select(&rows, received.at, &mut reject)
        .ok_or(TooManyRejected)?;
    let mut drift: Vec<_> = drift.into_iter().collect();
    drift.sort();
    Ok(Decoded {
        rows,
        index: input_rows.iter().map(|row| index[*row as usize]).collect(),
        rejected: rejections.finish(),
        drift,
    })
}

/// Records as rows of the stream's input schema, before `select`.
struct Input {
    rows: RecordBatch,
    /// Per row, the index of its record.
    index: Vec<u32>,
    drift: HashMap<String, u64>,
}

fn read_records<'a>(
    stream: &Stream,
    records: impl Iterator<Item = &'a [u8]>,
    received: Received<'_>,
    rejections: &mut Rejections,
) -> Result<Input, TooManyRejected> {
    let mut hints = stream.capacity_hints.0.iter();
    let expected = records.size_hint().0;
    let mut columns: Vec<ColumnBuilder> = stream
        .input
        .iter()
        .map(|c| ColumnBuilder::new(c, "", stream.def.time_zone, expected, &mut hints))
        .collect();
    let mut first_column = 0;
    let mut drift = HashMap::new();
    let mut index = Vec::new();
    for (i, record) in records.enumerate() {
        let i = i as u32;
        let mut target = Target {
            columns: &mut columns,
            first: &mut first_column,
            drift: &mut drift,
        };
        let result = match received.problem(i) {
            Some(problem) => Err(problem),
            None => match received.messages.tombstone(i as usize) {
                None => read_record(record, &mut target, index.len()),
                Some(Tombstone::DeadLetter) => Err(RecordError::Tombstone),
                Some(Tombstone::Row) => read_record(b"{}", &mut target, index.len()),
                Some(Tombstone::Skip) => continue,
            },
        };
        match result {
            Ok(()) => index.push(i),
            Err(reason) => {
                columns.iter_mut().for_each(|c| c.truncate(index.len()));
                rejections.push(i, &reason.to_string())?;
            }
        }
    }
    let mut hints = stream.capacity_hints.0.iter();
    for column in &mut columns {
        column.collect_drift(&mut drift);
        column.record_capacity(index.len(), &mut hints);
    }
    let mut arrays: Vec<ArrayRef> = columns.into_iter().map(ColumnBuilder::finish).collect();
    let of_messages = stream.message_columns.iter();
    arrays.extend(of_messages.map(|column| messages::array(*column, received.messages, &index)));
    let options = RecordBatchOptions::new().with_row_count(Some(index.len()));
    let rows = RecordBatch::try_new_with_options(stream.input_schema.clone(), arrays, &options)
        .expect("the columns follow this schema and have one value per row");
    Ok(Input { rows, index, drift })
}

/// Appends a record as row number `rows`, or returns why it is rejected.
fn read_record(record: &[u8], target: &mut Target<'_>, rows: usize) -> Result<(), RecordError> {
    let text = simdutf8::basic::from_utf8(record).map_err(|_| RecordError::Utf8)?;
    let text: Cow<'_, str> = if text.trim_start().starts_with('"') {
        // JSON that was encoded twice: a string that holds the object.
        let text = json::replace_lone_surrogates(text).map_or(Cow::Borrowed(text), Cow::Owned);
        serde_json::from_str(&text)
            .map(Cow::Owned)
            .map_err(RecordError::Json)?
    } else {
        Cow::Borrowed(text)
    };
    json::read(&text, target, rows)
}
