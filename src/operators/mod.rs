//! Deterministic state between log and views: advanced record by record, by nothing but the log's frames.
//!
//! [`Operators::apply`] turns a frame into rows of tables, each stamped with its LSN; [`snapshot`] saves the whole state at one
//! LSN. There is no clock, no randomness and no map order in here, so a replay gives the same rows.

pub mod repeats;
pub mod snapshot;
pub mod watermark;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::TimestampMicrosecondType;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::decode::{Decoded, decode};
use crate::event::{Gap, Lsn, MICROS_PER_HOUR, Micros, bucket, rfc3339};
use crate::schema::{Catalog, REPEAT_KEY_BYTES, Stream};
use crate::wal::{FileIdentity, Frame, Kind};
use repeats::Repeats;
use watermark::Watermark;

/// Answers to POSTs with an idempotency key that are remembered.
const IDEMPOTENCY_KEYS: usize = 100_000;
/// Gaps remembered for `weir.gaps`; all of them stay in `raw`.
const GAPS: usize = 10_000;
/// Dead letters remembered as retried; the newest.
const RETRIED: usize = 100_000;
/// Unknown keys remembered per stream.
const DRIFT_KEYS: usize = 1_000;
/// Rejections told one by one in the answer to a POST.
pub const TOLD_REJECTIONS: usize = 100;

/// Why a frame cannot be applied: the log and this program disagree, which ends the process.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    #[error("record {lsn}: the stored frame cannot be read: {reason}")]
    Frame { lsn: Lsn, reason: String },
    #[error("record {lsn}: the stored configuration cannot be used: {reason}")]
    Configuration { lsn: Lsn, reason: String },
    #[error("{path}: {reason}")]
    Snapshot { path: std::path::PathBuf, reason: String },
    #[error("{path} was written by a newer version of weir (snapshot format {version}); use that version")]
    Newer { path: std::path::PathBuf, version: u32 },
}

/// Where a partition of a source goes on, and what is known of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionState {
    pub next_position: u64,
    pub file: Option<FileIdentity>,
    /// Arrival of its last record, for the gap that a restart makes.
    pub received_at: Micros,
    /// A last line without its end that was told as a dead letter: (offset, length).
    pub cut_line: Option<(u64, u64)>,
    /// The dead letters that told it, one for each length it had.
    #[serde(default)]
    pub cut_lsns: Vec<Lsn>,
}

/// What a POST was answered, kept under its idempotency key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub accepted: u64,
    pub rejected_total: u64,
    /// The first hundred: (index, reason).
    pub rejected: Vec<(u32, String)>,
}

impl Answer {
    pub fn new(decoded: &Decoded) -> Self {
        Self {
            accepted: decoded.index.len() as u64,
            rejected_total: decoded.rejected.len() as u64,
            rejected: decoded.rejected.iter().take(TOLD_REJECTIONS).map(|r| (r.index, r.reason.clone())).collect(),
        }
    }
}

/// Sums over a stream since the log began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub events: u64,
    pub late: u64,
    pub repeats: u64,
    pub dead_letters: u64,
}

/// A record that became no event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    pub lsn: Lsn,
    /// Its place in the frame.
    pub index: u32,
    pub reason: String,
}

/// Rows of a stream table.
#[derive(Debug, Clone)]
pub struct StreamRows {
    pub stream: Arc<Stream>,
    /// In the table's schema without partition columns; LSNs ascend.
    pub batch: RecordBatch,
    /// Per row: its hour is more than one before its partition's watermark just before its record. None where no row is.
    pub old: Option<Vec<bool>>,
    /// Rows below this time are no longer part of the table.
    pub floor: Option<Micros>,
    /// The stream's watermark behind these rows.
    pub watermark: Option<Micros>,
}

impl StreamRows {
    pub fn lsns(&self) -> &[i64] {
        lsns(&self.batch)
    }
}

/// The LSN column of a stamped batch.
pub fn lsns(batch: &RecordBatch) -> &[i64] {
    batch
        .column(0)
        .as_any()
        .downcast_ref::<Int64Array>()
        .expect("the first column of stamped rows is their LSN")
        .values()
}

/// What one frame gave: everything in the range (after, to].
#[derive(Debug, Clone)]
pub struct Output {
    pub after: Lsn,
    pub to: Lsn,
    pub frame: Arc<Frame>,
    pub rows: Option<StreamRows>,
    pub dead_letters: Vec<DeadLetter>,
    /// Tables of which rows below a time are no longer part, as the disk's limit wants it.
    pub floors: Floors,
}

/// Times per table below which its rows are no longer part of it; what a floor frame says.
pub type Floors = BTreeMap<String, Micros>;

impl Output {
    /// Bytes it takes in memory, about.
    pub fn memory_bytes(&self) -> usize {
        let rows = self.rows.as_ref().map_or(0, |r| r.batch.get_array_memory_size());
        self.frame.memory_bytes() + rows + self.dead_letters.len() * 128 + 512
    }
}

/// Names of the positions that views commit, as snapshots list them.
pub mod positions {
    pub const RAW: &str = "raw";
    pub const DEAD_LETTERS: &str = "dead_letters";
    pub fn recent(table: &str) -> String {
        format!("{table}/recent")
    }
    pub fn old(table: &str) -> String {
        format!("{table}/old")
    }
    pub fn search(stream: &str) -> String {
        format!("search/{stream}")
    }
    pub fn places(stream: &str) -> String {
        format!("places/{stream}")
    }
    pub fn counts(stream: &str) -> String {
        format!("counts/{stream}")
    }
}

/// State of one stream.
#[derive(Debug, Clone, Default)]
struct StreamState {
    watermarks: BTreeMap<(String, String), Watermark>,
    /// Watermark of the partition that went idle last.
    last_idle: Option<Micros>,
    watermark: Option<Micros>,
    repeats: Option<Repeats>,
    floor: Option<Micros>,
    totals: Totals,
    drift: BTreeMap<String, u64>,
}

/// All operators, with what a trimmed log can no longer tell.
#[derive(Debug, Clone)]
pub struct Operators {
    catalog: Arc<Catalog>,
    lsn: Lsn,
    streams: BTreeMap<String, StreamState>,
    partitions: BTreeMap<(String, String), PartitionState>,
    /// Per position of a view, the LSN of the last row it was given.
    given: BTreeMap<String, Lsn>,
    answers: HashMap<String, ([u8; 32], Answer)>,
    answer_order: VecDeque<String>,
    gaps: VecDeque<Gap>,
    /// Dead letters that became events later, with the record that did.
    retried: BTreeMap<Lsn, Lsn>,
    /// Floors of the tables that are no stream's: `raw`, `dead_letters`.
    floors: Floors,
}

/// What queries and metrics show of a stream's operators.
#[derive(Debug, Clone, Default)]
pub struct StreamProgress {
    pub watermark: Option<Micros>,
    pub totals: Totals,
    pub drift: Vec<(String, u64)>,
    pub repeat_keys: usize,
}

impl Operators {
    pub fn new(catalog: Arc<Catalog>, zero: Lsn) -> Self {
        let mut operators = Self {
            catalog: Arc::new(Catalog::default()),
            lsn: zero,
            streams: BTreeMap::new(),
            partitions: BTreeMap::new(),
            given: BTreeMap::new(),
            answers: HashMap::new(),
            answer_order: VecDeque::new(),
            gaps: VecDeque::new(),
            retried: BTreeMap::new(),
            floors: Floors::new(),
        };
        operators.switch(catalog);
        operators
    }

    /// The LSN up to which everything is applied.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    pub fn partition(&self, source: &str, partition: &str) -> Option<&PartitionState> {
        self.partitions.get(&(source.to_owned(), partition.to_owned()))
    }

    pub fn partitions(&self) -> &BTreeMap<(String, String), PartitionState> {
        &self.partitions
    }

    /// Per position of a view, the LSN of the last row it was given.
    pub fn given(&self) -> &BTreeMap<String, Lsn> {
        &self.given
    }

    /// Remembered answers in the order they were given.
    pub fn answers(&self) -> impl Iterator<Item = (&String, &([u8; 32], Answer))> {
        self.answer_order.iter().filter_map(|key| Some((key, self.answers.get(key)?)))
    }

    pub fn gaps(&self) -> impl Iterator<Item = &Gap> {
        self.gaps.iter()
    }

    /// Dead letters that became events later, with the record that did.
    pub fn retried(&self) -> &BTreeMap<Lsn, Lsn> {
        &self.retried
    }

    /// Per table, the time below which rows are no longer part of it.
    pub fn floors(&self) -> Floors {
        let of_streams = self.streams.iter().filter_map(|(name, state)| Some((name.clone(), state.floor?)));
        of_streams.chain(self.floors.clone()).collect()
    }

    pub fn progress(&self) -> BTreeMap<String, StreamProgress> {
        let show = |state: &StreamState| StreamProgress {
            watermark: state.watermark,
            totals: state.totals,
            drift: state.drift.iter().map(|(k, n)| (k.clone(), *n)).collect(),
            repeat_keys: state.repeats.as_ref().map_or(0, Repeats::keys),
        };
        self.streams.iter().map(|(name, state)| (name.clone(), show(state))).collect()
    }

    /// Bytes of state, about.
    pub fn memory_bytes(&self) -> usize {
        let repeats: usize = self.streams.values().filter_map(|s| s.repeats.as_ref()).map(Repeats::keys).sum();
        repeats * REPEAT_KEY_BYTES + self.answers.len() * 256 + self.partitions.len() * 256
    }

    /// Goes over to another configuration. An operator whose stream is declared as before keeps its state.
    fn switch(&mut self, catalog: Arc<Catalog>) {
        let before = std::mem::replace(&mut self.catalog, catalog);
        self.streams.retain(|name, _| self.catalog.streams.contains_key(name));
        for (name, stream) in &self.catalog.streams {
            let state = self.streams.entry(name.clone()).or_default();
            let same = before.streams.get(name).is_some_and(|b| b.def == stream.def);
            if !same {
                state.repeats = stream.repeats().map(|r| Repeats::new(r.max_keys, r.within));
            }
        }
    }

    /// Reads the frame's records as rows, for a frame that did not bring them along.
    pub fn decode(&self, frame: &Frame) -> Result<Option<Decoded>, OperatorError> {
        let Some(stream) = self.catalog.streams.get(&frame.header.stream) else { return Ok(None) };
        if frame.header.kind != Kind::Record {
            return Ok(None);
        }
        let records =
            frame.records().map_err(|e| OperatorError::Frame { lsn: frame.header.first_lsn, reason: e.to_string() })?;
        Ok(Some(decode(stream, records.iter(), frame.header.received_at, &frame.about.cut)))
    }

    /// Applies the next frame of the log with its decoded rows. Records at or below the state's LSN must not come again.
    pub fn apply(&mut self, frame: &Arc<Frame>, decoded: Option<&Decoded>) -> Result<Output, OperatorError> {
        let header = &frame.header;
        let (after, to) = (self.lsn, header.last_lsn());
        let mut output =
            Output { after, to, frame: frame.clone(), rows: None, dead_letters: Vec::new(), floors: Floors::new() };
        match header.kind {
            Kind::Record => {
                self.note_partition(frame);
                if let (Some(decoded), Some(stream)) = (decoded, self.catalog.streams.get(&header.stream).cloned()) {
                    self.apply_records(&stream, frame, decoded, &mut output);
                    if let Some((hash, key)) = &frame.about.idempotency {
                        self.remember_answer(key.clone(), *hash, Answer::new(decoded));
                    }
                }
            }
            Kind::Configuration => {
                let wrong = |reason: String| OperatorError::Configuration { lsn: header.first_lsn, reason };
                let text = payload(frame)?;
                let catalog = Catalog::from_json(&text).map_err(wrong)?;
                self.switch(Arc::new(catalog));
            }
            Kind::Gap => {
                let text = payload(frame)?;
                if let Ok(gap) = serde_json::from_str(&text) {
                    self.gaps.push_back(gap);
                    if self.gaps.len() > GAPS {
                        self.gaps.pop_front();
                    }
                }
            }
            Kind::End => {
                self.note_partition(frame);
                self.end_partition(frame);
            }
            Kind::Floor => {
                let wrong =
                    |e: serde_json::Error| OperatorError::Frame { lsn: header.first_lsn, reason: e.to_string() };
                output.floors = serde_json::from_str(&payload(frame)?).map_err(wrong)?;
                self.raise_floors(&output.floors);
            }
            // Kinds that nothing here answers to yet; they count and are kept in `raw`.
            Kind::Tick | Kind::Retry | Kind::Final | Kind::Place => {}
        }
        self.lsn = to;
        self.given.insert(positions::RAW.into(), to);
        Ok(output)
    }

    fn raise_floors(&mut self, floors: &Floors) {
        for (table, floor) in floors {
            let before = match self.streams.get_mut(table) {
                Some(state) => state.floor.get_or_insert(*floor),
                None => self.floors.entry(table.clone()).or_insert(*floor),
            };
            *before = (*before).max(*floor);
        }
    }

    fn note_partition(&mut self, frame: &Frame) {
        let header = &frame.header;
        let state = self.partitions.entry((header.source.clone(), header.partition.clone())).or_default();
        state.received_at = header.received_at;
        if let Some(file) = frame.about.file {
            state.file = Some(file);
        }
        let Some(next) = frame.about.next_position else { return };
        state.next_position = next;
        if header.kind != Kind::Record {
            return;
        }
        let before = state.cut_line.take();
        // A frame that does not move its partition tells a line that is not whole yet.
        if next == header.first_position {
            let length = frame.about.cut.first().map_or(u64::from(frame.block_bytes.saturating_sub(4)), |(_, n)| *n);
            if before.is_none_or(|(offset, _)| offset != next) {
                state.cut_lsns.clear();
            }
            state.cut_line = Some((next, length));
            state.cut_lsns.push(header.first_lsn);
            return;
        }
        let told = std::mem::take(&mut state.cut_lsns);
        // The line is whole now: what told it as a dead letter has been retried.
        if let Some(at) = before.and_then(|(offset, _)| frame.about.positions.iter().position(|p| *p == offset)) {
            self.retried.extend(told.into_iter().map(|lsn| (lsn, header.first_lsn + at as u64)));
            while self.retried.len() > RETRIED {
                self.retried.pop_first();
            }
        }
    }

    fn end_partition(&mut self, frame: &Frame) {
        let Some(state) = self.streams.get_mut(&frame.header.stream) else { return };
        let key = (frame.header.source.clone(), frame.header.partition.clone());
        if let Some(watermark) = state.watermarks.get_mut(&key) {
            watermark.set_idle();
            state.last_idle = watermark.at();
        }
        state.advance();
    }

    fn remember_answer(&mut self, key: String, hash: [u8; 32], answer: Answer) {
        if self.answers.insert(key.clone(), (hash, answer)).is_none() {
            self.answer_order.push_back(key);
        }
        while self.answer_order.len() > IDEMPOTENCY_KEYS {
            if let Some(key) = self.answer_order.pop_front() {
                self.answers.remove(&key);
            }
        }
    }

    fn apply_records(&mut self, stream: &Arc<Stream>, frame: &Frame, decoded: &Decoded, output: &mut Output) {
        let header = &frame.header;
        let first = header.first_lsn;
        let state = self.streams.get_mut(&stream.name).expect("every stream of the catalog has a state");
        let rules = &stream.def.watermark;
        let (disorder, max_ahead) = (rules.disorder.micros(), rules.max_ahead.micros());
        let times = times(&decoded.rows);
        let mut hashes = RepeatHashes::new(stream, &decoded.rows);
        let watermark = state.watermarks.entry((header.source.clone(), header.partition.clone())).or_default();
        let rows = times.len();
        let mut repeats = Vec::with_capacity(rows);
        let mut old: Option<Vec<bool>> = None;
        let mut below: Vec<usize> = Vec::new();
        for (row, time) in times.iter().copied().enumerate() {
            let before = watermark.at();
            let is_late = before.is_some_and(|w| time < w);
            let is_old = before.is_some_and(|w| bucket(time, MICROS_PER_HOUR) + 1 < bucket(w, MICROS_PER_HOUR));
            if is_old {
                old.get_or_insert_with(|| vec![false; rows])[row] = true;
            }
            watermark.observe(time, disorder, max_ahead);
            // Without a watermark nothing is known of how far time has come, so the floor stays.
            if let (Some(retention), Some(reached)) = (stream.def.retention, watermark.at()) {
                let reach = reached.min(header.received_at);
                let floor = stream.partition_start(reach.saturating_sub(retention.micros()));
                state.floor = Some(state.floor.map_or(floor, |before| before.max(floor)));
            }
            if state.floor.is_some_and(|floor| time < floor) {
                below.push(row);
                repeats.push(false);
                continue;
            }
            state.totals.late += u64::from(is_late);
            let repeat = match (&mut hashes, &mut state.repeats) {
                (Some(hashes), Some(repeats)) => {
                    hashes.at(row).is_some_and(|(key, content, version)| repeats.observe(key, content, version))
                }
                _ => false,
            };
            state.totals.repeats += u64::from(repeat);
            repeats.push(repeat);
        }
        output.dead_letters = decoded
            .rejected
            .iter()
            .map(|r| DeadLetter { lsn: first + u64::from(r.index), index: r.index, reason: r.reason.clone() })
            .collect();
        let mut batch = stamp(stream, header, decoded, repeats);
        if !below.is_empty() {
            (batch, old) = refuse_below(&below, state.floor.unwrap_or_default(), times, decoded, (batch, old), output);
        }
        state.totals.events += batch.num_rows() as u64;
        state.totals.dead_letters += output.dead_letters.len() as u64;
        for (key, n) in &decoded.drift {
            if state.drift.len() < DRIFT_KEYS || state.drift.contains_key(key) {
                *state.drift.entry(key.clone()).or_default() += n;
            }
        }
        state.advance();
        let (floor, watermark) = (state.floor, state.watermark);
        self.note_given(stream, &batch, old.as_deref(), output);
        if batch.num_rows() > 0 {
            output.rows = Some(StreamRows { stream: stream.clone(), batch, old, floor, watermark });
        }
    }

    fn note_given(&mut self, stream: &Stream, batch: &RecordBatch, old: Option<&[bool]>, output: &Output) {
        if let Some(dead) = output.dead_letters.last() {
            self.given.insert(positions::DEAD_LETTERS.into(), dead.lsn);
        }
        let lsns = lsns(batch);
        let is_old = |row: usize| old.is_some_and(|o| o[row]);
        let last = |wanted: bool| (0..lsns.len()).rev().find(|row| is_old(*row) == wanted).map(|row| lsns[row] as u64);
        let name = &stream.name;
        if let Some(lsn) = last(false) {
            self.given.insert(positions::recent(name), lsn);
        }
        if let Some(lsn) = last(true) {
            self.given.insert(positions::old(name), lsn);
        }
        let Some(lsn) = lsns.last().map(|l| *l as u64) else { return };
        for (wanted, position) in [
            (stream.def.search.is_some(), positions::search(name)),
            (stream.def.places.is_some(), positions::places(name)),
            (stream.def.count.is_some(), positions::counts(name)),
        ] {
            if wanted {
                self.given.insert(position, lsn);
            }
        }
    }
}

/// What a control frame says.
fn payload(frame: &Frame) -> Result<String, OperatorError> {
    let lsn = frame.header.first_lsn;
    let wrong = |reason: String| OperatorError::Frame { lsn, reason };
    let records = frame.records().map_err(|e| wrong(e.to_string()))?;
    let bytes = if records.is_empty() { &[][..] } else { records.get(0) };
    String::from_utf8(bytes.to_vec()).map_err(|e| wrong(e.to_string()))
}

impl StreamState {
    /// The stream's watermark: the least of the active partitions; where none is, that of the one that went idle last.
    fn advance(&mut self) {
        let mut active = self.watermarks.values().filter(|w| !w.is_idle()).peekable();
        let now = if active.peek().is_some() { active.map(Watermark::at).min().flatten() } else { self.last_idle };
        self.watermark = self.watermark.max(now);
    }
}

/// Takes rows below the retention's floor out of a batch: they become dead letters.
fn refuse_below(
    below: &[usize],
    floor: Micros,
    times: &[Micros],
    decoded: &Decoded,
    (batch, old): (RecordBatch, Option<Vec<bool>>),
    output: &mut Output,
) -> (RecordBatch, Option<Vec<bool>>) {
    let first = output.frame.header.first_lsn;
    let mut keep = vec![true; batch.num_rows()];
    for row in below {
        keep[*row] = false;
        let index = decoded.index[*row];
        let reason = format!("event_time {} is before the retention's floor {}", rfc3339(times[*row]), rfc3339(floor));
        output.dead_letters.push(DeadLetter { lsn: first + u64::from(index), index, reason });
    }
    output.dead_letters.sort_by_key(|d| d.lsn);
    let old = old.map(|o| o.into_iter().zip(&keep).filter_map(|(o, k)| k.then_some(o)).collect());
    let batch =
        arrow::compute::filter_record_batch(&batch, &BooleanArray::from(keep)).expect("the mask has one value per row");
    (batch, old)
}

/// Event times of decoded rows.
fn times(rows: &RecordBatch) -> &[Micros] {
    rows.column(0)
        .as_any()
        .downcast_ref::<arrow::array::PrimitiveArray<TimestampMicrosecondType>>()
        .expect("the first decoded column is event_time")
        .values()
}

/// Puts a stream table's stamp before the decoded columns.
fn stamp(stream: &Stream, header: &crate::wal::Header, decoded: &Decoded, repeats: Vec<bool>) -> RecordBatch {
    let rows = decoded.index.len();
    let lsn: Vec<i64> = decoded.index.iter().map(|i| (header.first_lsn + u64::from(*i)) as i64).collect();
    let received = vec![header.received_at; rows];
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(lsn)),
        decoded.rows.column(0).clone(),
        Arc::new(TimestampMicrosecondArray::from(received).with_timezone("UTC")),
        Arc::new(StringArray::from_iter_values(std::iter::repeat_n(header.source.as_str(), rows))),
    ];
    if stream.repeats().is_some() {
        columns.push(Arc::new(BooleanArray::from(repeats)));
    }
    columns.extend(decoded.rows.columns()[1..].iter().cloned());
    RecordBatch::try_new(stream.table_schema.clone(), columns)
        .expect("the table's schema is the stamp and these columns")
}

/// Key, content and version of rows, as the repeats operator compares them.
struct RepeatHashes<'a> {
    key: &'a ArrayRef,
    same: Vec<&'a ArrayRef>,
    version: Option<&'a ArrayRef>,
    scratch: Vec<u8>,
}

impl<'a> RepeatHashes<'a> {
    fn new(stream: &Stream, rows: &'a RecordBatch) -> Option<Self> {
        let columns = stream.repeats()?;
        Some(Self {
            key: rows.column(columns.key),
            same: columns.same.iter().map(|c| rows.column(*c)).collect(),
            version: columns.version.map(|c| rows.column(c)),
            scratch: Vec::new(),
        })
    }

    /// None for an event without a key, which is never a repeat.
    fn at(&mut self, row: usize) -> Option<(u64, u64, i64)> {
        if self.key.is_null(row) {
            return None;
        }
        let key = match self.key.as_any().downcast_ref::<Int64Array>() {
            Some(numbers) => numbers.value(row) as u64,
            None => {
                self.scratch.clear();
                canonical(self.key, row, &mut self.scratch);
                hash(&self.scratch)
            }
        };
        self.scratch.clear();
        for column in &self.same {
            canonical(column, row, &mut self.scratch);
        }
        let version = self.version.map_or(0, |column| number(column, row));
        Some((key, hash(&self.scratch), version))
    }
}

fn hash(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(*Sha256::digest(bytes).first_chunk().expect("32 bytes"))
}

/// A number or time as an integer; null is the least.
fn number(array: &ArrayRef, row: usize) -> i64 {
    use arrow::array::Int32Array;
    if array.is_null(row) {
        return i64::MIN;
    }
    let any = array.as_any();
    if let Some(a) = any.downcast_ref::<Int64Array>() {
        a.value(row)
    } else if let Some(a) = any.downcast_ref::<Int32Array>() {
        a.value(row).into()
    } else if let Some(a) = any.downcast_ref::<TimestampMicrosecondArray>() {
        a.value(row)
    } else {
        0
    }
}

/// Bytes that are equal exactly for equal scalar values, the same in every version.
fn canonical(array: &ArrayRef, row: usize, out: &mut Vec<u8>) {
    use arrow::array::{Float64Array, StringArray};
    if array.is_null(row) {
        out.push(0);
        return;
    }
    let any = array.as_any();
    if let Some(a) = any.downcast_ref::<StringArray>() {
        out.push(1);
        out.extend_from_slice(&(a.value(row).len() as u64).to_le_bytes());
        out.extend_from_slice(a.value(row).as_bytes());
    } else if let Some(a) = any.downcast_ref::<Float64Array>() {
        out.push(2);
        out.extend_from_slice(&a.value(row).to_bits().to_le_bytes());
    } else if let Some(a) = any.downcast_ref::<BooleanArray>() {
        out.extend_from_slice(&[3, u8::from(a.value(row))]);
    } else {
        out.push(4);
        out.extend_from_slice(&number(array, row).to_le_bytes());
    }
}
