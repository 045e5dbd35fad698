//! Frames from the files of `raw`, in the order of their LSNs: the replay of records that the log no
//! longer has. The rows of a file are sorted by time of arrival; where a clock went back, frames are
//! buffered until those before them have been read.
//!
//! For example, records 1 to 4 arrived at 12:00 and then, after the clock went back, 5 to 8 at 11:59.
//! The file has 5 to 8 first: their frame is pending until that of 1 to 4 was returned.

use std::collections::{BTreeMap, VecDeque};

use arrow::array::{
    Array, BinaryArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::checked::CheckedFile;
use super::error::AtPath;
use super::files::FileEntry;
use super::footers::rows_at_once;
use super::row_attributes::ReadAttributes;
use super::{LakeError, TableSpec};
use crate::event::Lsn;
use crate::wal::{Frame, FrameAttributes, Header, Kind, RecordsBuilder};

/// Bytes of frames that wait for earlier ones.
const MAX_PENDING_BYTES: usize = 128 << 20;

/// Reads frames above an LSN.
pub struct RawFrames {
    spec: TableSpec,
    /// Files that are not read yet, by their first LSN.
    files: VecDeque<FileEntry>,
    open: Option<ParquetRecordBatchReader>,
    after: Lsn,
    /// The frame of the last row read, which may continue in the next rows.
    last: Option<FrameHead>,
    pending: BTreeMap<Lsn, Frame>,
    pending_bytes: usize,
}

/// What the rows of one frame share.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FrameHead {
    first: Lsn,
    /// The LSN after its last row so far.
    next: Lsn,
    received_at: i64,
    source: String,
    partition: String,
    stream: String,
    kind: String,
    /// Those that all of its rows share.
    attributes: Option<String>,
}

impl FrameHead {
    /// Whether a row with this head continues the frame.
    fn continues_with(&self, row: &Self) -> bool {
        let (retried, _) = self.attributes();
        self.next == row.first
            && (retried.is_empty() || self.next - self.first < retried.len() as u64)
            && (self.received_at, &self.attributes, &self.kind)
                == (row.received_at, &row.attributes, &row.kind)
            && (&self.source, &self.partition, &self.stream)
                == (&row.source, &row.partition, &row.stream)
    }

    /// LSNs of retried dead letters, and truncated records.
    fn attributes(&self) -> (Vec<u64>, Vec<(u64, u64)>) {
        let Some(attributes) = &self.attributes else {
            return Default::default();
        };
        let attributes: serde_json::Value = serde_json::from_str(attributes).unwrap_or_default();
        let part = |name: &str| attributes.get(name).cloned().unwrap_or_default();
        let retried = serde_json::from_value(part("retry_of")).unwrap_or_default();
        (
            retried,
            serde_json::from_value(part("cut")).unwrap_or_default(),
        )
    }
}

/// The columns of rows read at once.
struct RawColumns<'a> {
    lsn: &'a Int64Array,
    received_at: &'a TimestampMicrosecondArray,
    texts: [&'a StringArray; 4],
    attributes: Vec<ReadAttributes>,
    offset: &'a Int64Array,
    bytes: &'a BinaryArray,
}

impl<'a> RawColumns<'a> {
    fn from_batch(batch: &'a RecordBatch) -> Option<Self> {
        fn column<'a, T: Array + 'static>(batch: &'a RecordBatch, name: &str) -> Option<&'a T> {
            batch.column_by_name(name)?.as_any().downcast_ref()
        }
        let text = |name| column::<StringArray>(batch, name);
        let attributes = text("attributes")?;
        Some(Self {
            lsn: column(batch, "lsn")?,
            received_at: column(batch, "received_at")?,
            texts: [
                text("source")?,
                text("partition")?,
                text("stream")?,
                text("kind")?,
            ],
            attributes: attributes.iter().map(ReadAttributes::new).collect(),
            offset: column(batch, "source_offset")?,
            bytes: column(batch, "bytes")?,
        })
    }

    fn head(&self, row: usize) -> FrameHead {
        let [source, partition, stream, kind] =
            [0, 1, 2, 3].map(|t| self.texts[t].value(row).to_owned());
        let lsn = self.lsn.value(row) as Lsn;
        let attributes = self.attributes[row].shared.clone();
        let received_at = self.received_at.value(row);
        FrameHead {
            first: lsn,
            next: lsn + 1,
            received_at,
            source,
            partition,
            stream,
            kind,
            attributes,
        }
    }

    /// Whether a row has the same head as the one before, except for its LSN.
    fn has_same_head(&self, row: usize) -> bool {
        let same = |t: &&StringArray| {
            t.is_valid(row) == t.is_valid(row - 1) && t.value(row) == t.value(row - 1)
        };
        self.received_at.value(row) == self.received_at.value(row - 1)
            && self.attributes[row].shared == self.attributes[row - 1].shared
            && self.attributes[row].message.is_some() == self.attributes[row - 1].message.is_some()
            && self.texts.iter().all(same)
    }
}

impl RawFrames {
    /// Reads those files of `raw` that have records above `after`.
    pub fn new(spec: TableSpec, files: &[FileEntry], after: Lsn) -> Self {
        let mut files: Vec<FileEntry> = files
            .iter()
            .filter(|f| f.max_lsn > after)
            .cloned()
            .collect();
        files.sort_by_key(|f| f.min_lsn);
        Self {
            spec,
            files: files.into(),
            open: None,
            after,
            last: None,
            pending: BTreeMap::new(),
            pending_bytes: 0,
        }
    }

    /// The first record that the files have.
    pub fn first(&self) -> Option<Lsn> {
        self.files.front().map(|file| file.min_lsn)
    }

    /// The frame with the record after the last one; `None` where the files do not have it.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, LakeError> {
        loop {
            if let Some(entry) = self.pending.first_entry()
                && *entry.key() <= self.after + 1
            {
                let frame = entry.remove();
                self.pending_bytes -= frame.block.len();
                self.after = self.after.max(frame.header.last_lsn());
                return Ok(Some(frame));
            }
            if self.pending_bytes > MAX_PENDING_BYTES {
                return Err(LakeError::MissingRecords {
                    expected: self.after + 1,
                    found: self.pending.keys().next().copied().unwrap_or_default(),
                });
            }
            if !self.read()? {
                return Ok(None);
            }
        }
    }

    /// Reads some more rows; false at the end of the files.
    fn read(&mut self) -> Result<bool, LakeError> {
        if self.open.is_none() {
            let Some(file) = self.files.pop_front() else {
                return Ok(false);
            };
            let path = self.spec.root.join(&file.path);
            let opened = CheckedFile::new(&self.spec, &file).open()?;
            let builder = ParquetRecordBatchReaderBuilder::try_new(opened).at(&path)?;
            let rows = rows_at_once(builder.metadata());
            self.open = Some(builder.with_batch_size(rows).build().at(&path)?);
        }
        match self.open.as_mut().and_then(Iterator::next) {
            Some(batch) => self.add_rows(&batch?)?,
            None => self.open = None,
        }
        Ok(true)
    }

    /// Splits rows into frames.
    fn add_rows(&mut self, batch: &RecordBatch) -> Result<(), LakeError> {
        let rows =
            RawColumns::from_batch(batch).ok_or_else(|| LakeError::rows("`raw` lacks a column"))?;
        let mut start = 0;
        while start < batch.num_rows() {
            let mut head = rows.head(start);
            match &self.last {
                Some(last) if last.continues_with(&head) => head.first = last.first,
                _ => {}
            }
            let (retried, truncated) = head.attributes();
            let end_of_frame = if retried.is_empty() {
                Lsn::MAX
            } else {
                head.first + retried.len() as u64
            };
            let mut end = start + 1;
            while end < batch.num_rows()
                && rows.lsn.value(end) == rows.lsn.value(end - 1) + 1
                && (rows.lsn.value(end) as Lsn) < end_of_frame
                && rows.has_same_head(end)
            {
                end += 1;
            }
            head.next = rows.lsn.value(end - 1) as Lsn + 1;
            // Records up to `after` were returned before.
            let fresh = (start..end).find(|row| rows.lsn.value(*row) as Lsn > self.after);
            if let Some(fresh) = fresh {
                let frame = frame(&rows, fresh..end, &head, &retried, &truncated)?;
                self.pending_bytes += frame.block.len();
                self.pending.insert(frame.header.first_lsn, frame);
            }
            self.last = Some(head);
            start = end;
        }
        Ok(())
    }
}

/// The frame of a range of rows.
fn frame(
    rows: &RawColumns<'_>,
    range: std::ops::Range<usize>,
    head: &FrameHead,
    retried: &[u64],
    truncated: &[(u64, u64)],
) -> Result<Frame, LakeError> {
    let first_lsn = rows.lsn.value(range.start) as Lsn;
    let skipped = first_lsn - head.first;
    let count = range.len() as u64;
    let mut records = RecordsBuilder::default();
    range
        .clone()
        .for_each(|row| records.push(rows.bytes.value(row)));
    let records = records.finish();
    let messages = rows.attributes[range.clone()].iter();
    let offsets: Vec<u64> = range
        .filter(|row| rows.offset.is_valid(*row))
        .map(|row| rows.offset.value(row) as u64)
        .collect();
    let has = |index: &u64| (skipped..skipped + count).contains(index);
    let attributes = FrameAttributes {
        messages: messages.filter_map(|row| row.message.clone()).collect(),
        offsets: if offsets.len() as u64 == count {
            offsets
        } else {
            Vec::new()
        },
        retry_of: retried
            .iter()
            .skip(skipped as usize)
            .take(count as usize)
            .copied()
            .collect(),
        truncated_records: truncated
            .iter()
            .filter(|(index, _)| has(index))
            .map(|(index, bytes)| (index - skipped, *bytes))
            .collect(),
        ..FrameAttributes::default()
    };
    let kind = Kind::from_name(&head.kind).ok_or_else(|| {
        let kind = &head.kind;
        LakeError::rows(format!("`raw` has a record of the unknown kind `{kind}`"))
    })?;
    let header = Header {
        first_lsn,
        first_offset: attributes.offsets.first().copied().unwrap_or(0),
        received_at: head.received_at,
        source: head.source.clone(),
        partition: head.partition.clone(),
        ..Header::new(kind, &head.stream)
    };
    Ok(Frame::data(header, &records, attributes)?)
}
