//! Deterministic state between log and views: advanced record by record, by nothing but the log's frames.
//!
//! [`Operators::apply`] turns a frame into rows of tables, each stamped with its LSN; [`snapshot`] saves the whole state at one
//! LSN. There is no clock, no randomness and no map order in here, so a replay gives the same rows.

pub mod entities;
pub mod repeats;
pub mod sessions;
pub mod snapshot;
pub mod watermark;
pub mod windows;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::TimestampMicrosecondType;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::decode::{Decoded, decode};
use crate::event::{Gap, Lsn, MICROS_PER_HOUR, Micros, bucket, rfc3339};
use crate::schema::{Catalog, REPEAT_KEY_BYTES, Stream, Window};
use crate::wal::{FileIdentity, Frame, Kind};
use entities::EntityState;
use repeats::Repeats;
use sessions::{Seen, Sessions, Status};
use watermark::Watermark;
use windows::{Feed, WindowState};

/// Answers to POSTs with an idempotency key that are remembered.
const IDEMPOTENCY_KEYS: usize = 100_000;
/// Gaps remembered for `weir.gaps`; all of them stay in `raw`.
const GAPS: usize = 10_000;
/// Dead letters remembered as retried; the newest.
pub const RETRIED: usize = 100_000;
/// Reasons of dead letters counted one by one per stream; the others are counted together, as [`OTHER_REASONS`].
const REASONS: usize = 50;
const OTHER_REASONS: &str = "other";
/// Longest reason that is counted by itself, in characters.
const REASON_CHARS: usize = 120;
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
    #[error("record {lsn}: window `{window}` failed: {reason}")]
    Window { lsn: Lsn, window: String, reason: String },
    #[error("record {lsn}: the rows of `{table}` failed: {reason}")]
    Entity { lsn: Lsn, table: String, reason: String },
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

/// Rows of a table that operators make: sessions, windows, late rows.
#[derive(Debug, Clone)]
pub struct TableRows {
    pub table: Arc<str>,
    /// In the table's schema without partition columns; LSNs ascend.
    pub batch: RecordBatch,
    /// Rows below this time are no longer part of the table.
    pub floor: Option<Micros>,
}

/// Names of tables that operators make.
pub mod tables {
    pub use crate::schema::versions_of;

    pub fn sessions(stream: &str) -> String {
        format!("{stream}.sessions")
    }
    pub fn late(stream: &str) -> String {
        format!("{stream}.late")
    }
}

/// What one frame gave: everything in the range (after, to].
#[derive(Debug, Clone)]
pub struct Output {
    pub after: Lsn,
    pub to: Lsn,
    pub frame: Arc<Frame>,
    pub rows: Option<StreamRows>,
    /// One entry a table at most.
    pub tables: Vec<TableRows>,
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
        let tables: usize = self.tables.iter().map(|t| t.batch.get_array_memory_size()).sum();
        self.frame.memory_bytes() + rows + tables + self.dead_letters.len() * 128 + 512
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
    /// The partition that went idle last, and its watermark.
    last_idle: Option<Micros>,
    idle_partition: Option<(String, String)>,
    watermark: Option<Micros>,
    repeats: Option<Repeats>,
    sessions: Option<Sessions>,
    floor: Option<Micros>,
    totals: Totals,
    drift: BTreeMap<String, u64>,
    /// Dead letters by their reason.
    reasons: BTreeMap<String, u64>,
}

/// All operators, with what a trimmed log can no longer tell.
pub struct Operators {
    catalog: Arc<Catalog>,
    lsn: Lsn,
    streams: BTreeMap<String, StreamState>,
    /// In the catalog's order: a window comes behind every one that it reads.
    windows: Vec<WindowState>,
    /// In the catalog's order.
    entities: Vec<EntityState>,
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
    pub reasons: Vec<(String, u64)>,
    pub repeat_keys: usize,
    pub open_sessions: usize,
    /// Something waits for the watermark: a session or a window is open.
    pub is_open: bool,
}

/// What metrics show of a window.
#[derive(Debug, Clone, Default)]
pub struct WindowProgress {
    pub groups: usize,
    pub late: u64,
    /// Rows and windows left out because an expression had no value.
    pub failed: u64,
    pub memory_bytes: usize,
}

impl Operators {
    pub fn new(catalog: Arc<Catalog>, zero: Lsn) -> Self {
        let mut operators = Self {
            catalog: Arc::new(Catalog::default()),
            lsn: zero,
            streams: BTreeMap::new(),
            windows: Vec::new(),
            entities: Vec::new(),
            partitions: BTreeMap::new(),
            given: BTreeMap::new(),
            answers: HashMap::new(),
            answer_order: VecDeque::new(),
            gaps: VecDeque::new(),
            retried: BTreeMap::new(),
            floors: Floors::new(),
        };
        // In an empty state no window is open.
        operators.switch(catalog, zero).expect("nothing is closed, and the windows were planned");
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
        let mut floors: Floors = of_streams.collect();
        for stream in self.catalog.streams.values() {
            let floor = self.streams.get(&stream.name).and_then(|s| s.floor);
            let beside = [tables::sessions(&stream.name), tables::late(&stream.name)];
            floors.extend(beside.into_iter().filter_map(|table| Some((table, floor?))));
        }
        for window in &self.catalog.windows {
            floors.extend(self.window_floor(window).map(|floor| (tables::versions_of(&window.name), floor)));
        }
        for (table, floor) in &self.floors {
            let before = floors.entry(table.clone()).or_insert(*floor);
            *before = (*floor).max(*before);
        }
        floors
    }

    /// The time below which a window's rows are no longer part of its table.
    fn window_floor(&self, window: &Window) -> Option<Micros> {
        let state = self.streams.get(&window.stream)?;
        match (window.def.retention, state.watermark) {
            (Some(retention), Some(watermark)) => {
                Some(bucket(watermark.saturating_sub(retention.micros()), MICROS_PER_HOUR) * MICROS_PER_HOUR)
            }
            (Some(_), None) => None,
            (None, _) => state.floor,
        }
    }

    /// Per window, what it holds.
    pub fn window_progress(&self) -> BTreeMap<String, WindowProgress> {
        let show = |w: &WindowState| WindowProgress {
            groups: w.groups(),
            late: w.late(),
            failed: w.failed(),
            memory_bytes: w.memory_bytes(),
        };
        self.windows.iter().map(|w| (w.window.name.clone(), show(w))).collect()
    }

    /// Rows of what is still open in a window or in a stream's sessions, as of [`Self::lsn`]; none where nothing is.
    pub fn open_rows(&self, table: &str) -> Result<Option<RecordBatch>, String> {
        if let Some(window) = self.windows.iter().find(|w| tables::versions_of(&w.window.name) == table) {
            return window.open_rows(self.lsn);
        }
        let of = |name: &str| self.streams.get(name).and_then(|s| s.sessions.as_ref());
        Ok(table.strip_suffix(".sessions").and_then(of).map(|sessions| sessions.open_rows(self.lsn)))
    }

    pub fn progress(&self) -> BTreeMap<String, StreamProgress> {
        let show = |state: &StreamState| StreamProgress {
            watermark: state.watermark,
            totals: state.totals,
            drift: state.drift.iter().map(|(k, n)| (k.clone(), *n)).collect(),
            reasons: state.reasons.iter().map(|(k, n)| (k.clone(), *n)).collect(),
            repeat_keys: state.repeats.as_ref().map_or(0, Repeats::keys),
            open_sessions: state.sessions.as_ref().map_or(0, Sessions::open),
            is_open: state.sessions.as_ref().is_some_and(|s| s.open() > 0),
        };
        let mut progress: BTreeMap<String, StreamProgress> =
            self.streams.iter().map(|(name, state)| (name.clone(), show(state))).collect();
        for window in self.windows.iter().filter(|w| w.is_open()) {
            if let Some(stream) = progress.get_mut(&window.window.stream) {
                stream.is_open = true;
            }
        }
        progress
    }

    /// Partitions with a watermark, of streams in which something is open: stream, source, partition, records so far.
    pub fn waiting_partitions(&self) -> Vec<(String, String, String, u64)> {
        let progress = self.progress();
        let is_open = |name: &str| progress.get(name).is_some_and(|p| p.is_open);
        let open = self.streams.iter().filter(|(name, _)| is_open(name));
        open.flat_map(|(name, state)| {
            let known = state.watermarks.iter().filter(|(_, w)| w.at().is_some());
            known.map(|((source, partition), w)| (name.clone(), source.clone(), partition.clone(), w.seen()))
        })
        .collect()
    }

    /// Bytes of state, about.
    pub fn memory_bytes(&self) -> usize {
        let repeats: usize = self.streams.values().filter_map(|s| s.repeats.as_ref()).map(Repeats::keys).sum();
        let sessions = self.streams.values().filter_map(|s| s.sessions.as_ref());
        let open = sessions.map(Sessions::memory_bytes).sum::<usize>();
        let windows: usize = self.windows.iter().map(WindowState::memory_bytes).sum();
        let entities: usize = self.entities.iter().map(EntityState::memory_bytes).sum();
        entities + repeats * REPEAT_KEY_BYTES + open + windows + self.answers.len() * 256 + self.partitions.len() * 256
    }

    /// Goes over to another configuration at a record. An operator whose declaration and whose stream's are as before keeps its
    /// state; a changed one stores what is open once more, and a window answers for what starts behind the times seen so far.
    fn switch(&mut self, catalog: Arc<Catalog>, lsn: Lsn) -> Result<Vec<TableRows>, OperatorError> {
        let before = std::mem::replace(&mut self.catalog, catalog);
        let catalog = self.catalog.clone();
        let mut rows = Vec::new();
        let is_same_stream =
            |name: &str| before.streams.get(name).zip(catalog.streams.get(name)).is_some_and(|(b, a)| b.def == a.def);
        let (mut kept, mut windows) = (BTreeMap::new(), Vec::new());
        for mut window in std::mem::take(&mut self.windows) {
            let name = window.window.name.clone();
            if is_same_stream(&window.window.stream) && is_same_chain(&before, &catalog, &name) {
                kept.insert(name, window);
                continue;
            }
            let failed = |reason: String| OperatorError::Window { lsn, window: name.clone(), reason };
            let abandoned = window.abandon(lsn).map_err(failed)?;
            if let (Some(batch), Some(now)) = (abandoned, catalog.window(&name)) {
                let batch = fit(&batch, &now.schema);
                rows.extend(batch.map(|batch| TableRows {
                    table: tables::versions_of(&name).into(),
                    batch,
                    floor: None,
                }));
            }
        }
        for window in &catalog.windows {
            windows.push(match kept.remove(&window.name) {
                Some(state) => state,
                None => {
                    let greatest = self.streams.get(&window.stream).and_then(|s| s.greatest(&catalog, &window.stream));
                    let failed = |reason| OperatorError::Window { lsn, window: window.name.clone(), reason };
                    WindowState::new(window, greatest).map_err(failed)?
                }
            });
        }
        for window in &mut windows {
            if catalog.windows.iter().any(|outer| outer.over == window.window.name) {
                window.set_read();
            }
        }
        self.windows = windows;
        let is_same_entity = |state: &EntityState| {
            let now = catalog.entities.iter().find(|e| e.name == state.entity.name);
            is_same_stream(&state.entity.stream) && now.is_some_and(|e| e.def == state.entity.def)
        };
        let mut known: BTreeMap<String, EntityState> = std::mem::take(&mut self.entities)
            .into_iter()
            .filter(is_same_entity)
            .map(|state| (state.entity.name.clone(), state))
            .collect();
        self.entities =
            catalog.entities.iter().map(|e| known.remove(&e.name).unwrap_or_else(|| EntityState::new(e))).collect();
        self.streams.retain(|name, _| catalog.streams.contains_key(name));
        for (name, stream) in &catalog.streams {
            let state = self.streams.entry(name.clone()).or_default();
            if is_same_stream(name) {
                continue;
            }
            state.repeats = stream.repeats().map(|r| Repeats::new(r.max_keys, r.within));
            let fresh = stream.session().map(|s| Sessions::new(name, s.gap, s.max_open));
            if let Some(mut sessions) =
                std::mem::replace(&mut state.sessions, fresh).filter(|_| stream.session().is_some())
            {
                let mut closed = Vec::new();
                sessions.close_all(lsn, Status::Abandoned, &mut closed);
                if !closed.is_empty() {
                    let batch = sessions.rows(&closed);
                    rows.push(TableRows { table: tables::sessions(name).into(), batch, floor: state.floor });
                }
            }
        }
        Ok(rows)
    }

    /// Reads the frame's records as rows, for a frame that did not bring them along.
    pub fn decode(&self, frame: &Frame) -> Result<Option<Decoded>, OperatorError> {
        let Some(stream) = self.catalog.streams.get(&frame.header.stream) else { return Ok(None) };
        if !matches!(frame.header.kind, Kind::Record | Kind::Retry) {
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
        let mut output = Output {
            after,
            to,
            frame: frame.clone(),
            rows: None,
            tables: Vec::new(),
            dead_letters: Vec::new(),
            floors: Floors::new(),
        };
        match header.kind {
            Kind::Record => {
                self.note_partition(frame);
                if let (Some(decoded), Some(stream)) = (decoded, self.catalog.streams.get(&header.stream).cloned()) {
                    self.apply_records(&stream, frame, decoded, &mut output)?;
                    if let Some((hash, key)) = &frame.about.idempotency {
                        self.remember_answer(key.clone(), *hash, Answer::new(decoded));
                    }
                }
            }
            Kind::Configuration => {
                let wrong = |reason: String| OperatorError::Configuration { lsn: header.first_lsn, reason };
                let text = payload(frame)?;
                let catalog = Catalog::from_json(&text).map_err(wrong)?;
                output.tables = self.switch(Arc::new(catalog), header.first_lsn)?;
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
                self.time_moved(&header.stream.clone(), to, &mut output)?;
            }
            Kind::Tick => {
                let ticks: Vec<Tick> = from_payload(frame)?;
                self.tick(&header.stream, &ticks);
                self.time_moved(&header.stream.clone(), to, &mut output)?;
            }
            Kind::Final => self.close_all(to, &mut output)?,
            Kind::Floor => {
                output.floors = from_payload(frame)?;
                self.raise_floors(&output.floors);
            }
            Kind::Retry => {
                if let (Some(decoded), Some(stream)) = (decoded, self.catalog.streams.get(&header.stream).cloned()) {
                    let fresh = self.not_retried(frame, decoded);
                    self.apply_records(&stream, frame, &fresh, &mut output)?;
                    self.mark_retried(frame, &output);
                }
            }
            // Kinds that nothing here answers to yet; they count and are kept in `raw`.
            Kind::Place => {}
        }
        for table in &output.tables {
            if let Some(lsn) = lsns(&table.batch).last() {
                self.given.insert(positions::recent(&table.table), *lsn as Lsn);
            }
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

    /// A retry's rows without those whose dead letter has come back already: by another retry, or twice in this one.
    fn not_retried(&self, frame: &Frame, decoded: &Decoded) -> Decoded {
        let dead = |index: u32| frame.about.retry_of.get(index as usize).copied();
        let mut seen = std::collections::BTreeSet::new();
        let keep: Vec<bool> = decoded
            .index
            .iter()
            .map(|index| dead(*index).is_some_and(|dead| !self.retried.contains_key(&dead) && seen.insert(dead)))
            .collect();
        let index = decoded.index.iter().zip(&keep).filter_map(|(index, keep)| keep.then_some(*index)).collect();
        let rows = arrow::compute::filter_record_batch(&decoded.rows, &BooleanArray::from(keep));
        let rows = rows.expect("the mask has one value per row");
        Decoded { rows, index, rejected: decoded.rejected.clone(), drift: Vec::new() }
    }

    /// Notes which record each dead letter became.
    fn mark_retried(&mut self, frame: &Frame, output: &Output) {
        let first = frame.header.first_lsn;
        for lsn in output.rows.iter().flat_map(|rows| rows.lsns()) {
            if let Some(dead) = frame.about.retry_of.get((*lsn as Lsn - first) as usize) {
                self.retried.insert(*dead, *lsn as Lsn);
            }
        }
    }

    fn end_partition(&mut self, frame: &Frame) {
        let Some(state) = self.streams.get_mut(&frame.header.stream) else { return };
        let key = (frame.header.source.clone(), frame.header.partition.clone());
        if let Some(watermark) = state.watermarks.get_mut(&key) {
            watermark.set_idle();
            state.last_idle = watermark.at();
            state.idle_partition = Some(key);
        }
        state.advance();
    }

    /// Time passes in partitions that are silent.
    fn tick(&mut self, stream: &str, ticks: &[Tick]) {
        let Some((state, stream)) = self.streams.get_mut(stream).zip(self.catalog.streams.get(stream)) else { return };
        let idle = stream.def.watermark.idle.micros();
        for Tick { source, partition, elapsed } in ticks {
            let key = (source.clone(), partition.clone());
            let Some(watermark) = state.watermarks.get_mut(&key) else { continue };
            if watermark.tick(*elapsed, idle) {
                state.idle_partition = Some(key.clone());
            }
            if state.idle_partition.as_ref() == Some(&key) {
                state.last_idle = watermark.at();
            }
        }
        state.advance();
    }

    /// A stream's watermark may have moved without a row.
    fn time_moved(&mut self, name: &str, lsn: Lsn, output: &mut Output) -> Result<(), OperatorError> {
        let Some((state, stream)) = self.streams.get_mut(name).zip(self.catalog.streams.get(name).cloned()) else {
            return Ok(());
        };
        let Some(mark) = state.watermark else { return Ok(()) };
        let floor = state.floor;
        if let Some(sessions) = &mut state.sessions {
            let mut closed = Vec::new();
            sessions.advance(mark, lsn, &mut closed);
            push_sessions(output, &stream, sessions, &closed, floor);
        }
        let nothing = RecordBatch::new_empty(stream.table_schema.clone());
        self.feed_windows(&stream, &nothing, &[(lsn, mark)], output)
    }

    /// Closes every session and window, as at the end of all input.
    fn close_all(&mut self, lsn: Lsn, output: &mut Output) -> Result<(), OperatorError> {
        for (name, state) in &mut self.streams {
            let (Some(sessions), Some(stream)) = (&mut state.sessions, self.catalog.streams.get(name)) else {
                continue;
            };
            let mut closed = Vec::new();
            sessions.close_all(lsn, Status::ClosedTimeout, &mut closed);
            push_sessions(output, stream, sessions, &closed, state.floor);
        }
        let mut finals: BTreeMap<String, RecordBatch> = BTreeMap::new();
        for at in 0..self.windows.len() {
            let window = self.windows[at].window.clone();
            let failed = |reason| OperatorError::Window { lsn, window: window.name.clone(), reason };
            let mut parts = Vec::new();
            if let Some(inner) = finals.get(&window.over) {
                let feed =
                    Feed { batch: inner, times: column_times(inner, window.time), lsns: lsns(inner), marks: &[] };
                parts.push(self.windows[at].feed(&feed).map_err(failed)?.1);
            }
            parts.push(self.windows[at].close_all(lsn).map_err(failed)?);
            let (stored, last): (Vec<_>, Vec<_>) = parts.into_iter().map(|o| (o.stored, o.finals)).unzip();
            let join = |parts: Vec<Option<RecordBatch>>| {
                let parts: Vec<RecordBatch> = parts.into_iter().flatten().collect();
                (!parts.is_empty()).then(|| {
                    arrow::compute::concat_batches(&window.schema, &parts).expect("both are of the window's schema")
                })
            };
            if let Some(batch) = join(stored) {
                let floor = self.window_floor(&window);
                output.tables.push(TableRows { table: tables::versions_of(&window.name).into(), batch, floor });
            }
            if let Some(batch) = join(last) {
                finals.insert(window.name.clone(), batch);
            }
        }
        Ok(())
    }

    /// Feeds a stream's rows, and the watermarks behind them, to its windows, and theirs to the windows over them.
    fn feed_windows(
        &mut self,
        stream: &Arc<Stream>,
        batch: &RecordBatch,
        marks: &[(Lsn, Micros)],
        output: &mut Output,
    ) -> Result<(), OperatorError> {
        let mut finals: BTreeMap<String, (RecordBatch, Micros)> = BTreeMap::new();
        let mut accepted = vec![false; batch.num_rows()];
        let mut late: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for at in 0..self.windows.len() {
            let window = self.windows[at].window.clone();
            if window.stream != stream.name {
                continue;
            }
            let lsn = output.to;
            let failed = |reason| OperatorError::Window { lsn, window: window.name.clone(), reason };
            let is_first = window.over == stream.name;
            let (verdict, given) = if is_first {
                let feed = Feed { batch, times: column_times(batch, window.time), lsns: lsns(batch), marks };
                self.windows[at].feed(&feed).map_err(failed)?
            } else {
                // The inner window's rows are final behind its lateness.
                let Some((inner, lateness)) = finals.get(&window.over) else { continue };
                let marks: Vec<(Lsn, Micros)> = marks.iter().map(|(l, m)| (*l, m.saturating_sub(*lateness))).collect();
                let times = column_times(inner, window.time);
                self.windows[at]
                    .feed(&Feed { batch: inner, times, lsns: lsns(inner), marks: &marks })
                    .map_err(failed)?
            };
            if is_first {
                verdict.accepted.iter().for_each(|row| accepted[*row as usize] = true);
                for row in verdict.late {
                    late.entry(row).or_default().push(window.name.clone());
                }
            }
            let outer = finals.get(&window.over).map_or(0, |(_, lateness)| *lateness);
            let last = given.finals.unwrap_or_else(|| RecordBatch::new_empty(window.schema.clone()));
            finals.insert(window.name.clone(), (last, outer + window.def.allowed_lateness.micros()));
            if let Some(batch) = given.stored {
                let floor = self.window_floor(&window);
                output.tables.push(TableRows { table: tables::versions_of(&window.name).into(), batch, floor });
            }
        }
        late.retain(|row, _| !accepted[*row as usize]);
        if !late.is_empty() {
            let floor = self.streams.get(&stream.name).and_then(|s| s.floor);
            let batch = late_rows(stream, batch, &late);
            output.tables.push(TableRows { table: tables::late(&stream.name).into(), batch, floor });
        }
        Ok(())
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

    fn apply_records(
        &mut self,
        stream: &Arc<Stream>,
        frame: &Frame,
        decoded: &Decoded,
        output: &mut Output,
    ) -> Result<(), OperatorError> {
        let header = &frame.header;
        let first = header.first_lsn;
        let state = self.streams.get_mut(&stream.name).expect("every stream of the catalog has a state");
        let Advanced { repeats, mut old, below, marks, session_ids, closed } = state.observe(stream, header, decoded);
        output.dead_letters = decoded
            .rejected
            .iter()
            .map(|r| DeadLetter { lsn: first + u64::from(r.index), index: r.index, reason: r.reason.clone() })
            .collect();
        let mut batch = stamp(stream, header, decoded, repeats, session_ids);
        if !below.is_empty() {
            let (floor, times) = (state.floor.unwrap_or_default(), times(&decoded.rows));
            (batch, old) = refuse_below(&below, floor, times, decoded, (batch, old), output);
        }
        state.totals.events += batch.num_rows() as u64;
        state.count_refused(decoded, output);
        state.advance();
        let (floor, watermark) = (state.floor, state.watermark);
        if let Some(sessions) = &state.sessions {
            push_sessions(output, stream, sessions, &closed, floor);
        }
        self.feed_windows(stream, &batch, &marks, output)?;
        self.feed_entities(stream, &batch, output)?;
        self.note_given(stream, &batch, old.as_deref(), output);
        if batch.num_rows() > 0 {
            output.rows = Some(StreamRows { stream: stream.clone(), batch, old, floor, watermark });
        }
        Ok(())
    }

    fn feed_entities(
        &mut self,
        stream: &Stream,
        batch: &RecordBatch,
        output: &mut Output,
    ) -> Result<(), OperatorError> {
        for state in self.entities.iter_mut().filter(|e| e.entity.stream == stream.name) {
            let (name, lsn) = (state.entity.name.clone(), output.to);
            let table = name.as_str().into();
            let failed = |reason| OperatorError::Entity { lsn, table: name, reason };
            let rows = state.rows(batch).map_err(failed)?;
            if rows.num_rows() > 0 {
                output.tables.push(TableRows { table, batch: rows, floor: None });
            }
        }
        Ok(())
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

/// Time that has passed in a partition without a record: what a tick's frame lists, in microseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tick {
    pub source: String,
    pub partition: String,
    pub elapsed: Micros,
}

/// Whether a window and every one that it reads are declared as before.
fn is_same_chain(before: &Catalog, after: &Catalog, name: &str) -> bool {
    let (Some(old), Some(new)) = (before.window(name), after.window(name)) else { return false };
    old.def == new.def && (old.over == old.stream || is_same_chain(before, after, &old.over))
}

/// Rows in another version of their table's schema; none where a column has another type.
fn fit(batch: &RecordBatch, schema: &arrow::datatypes::SchemaRef) -> Option<RecordBatch> {
    let column = |field: &Arc<arrow::datatypes::Field>| match batch.column_by_name(field.name()) {
        Some(column) if column.data_type() == field.data_type() => Some(column.clone()),
        Some(_) => None,
        None => Some(arrow::array::new_null_array(field.data_type(), batch.num_rows())),
    };
    let columns = schema.fields().iter().map(column).collect::<Option<Vec<_>>>()?;
    RecordBatch::try_new(schema.clone(), columns).ok()
}

/// The sessions of a frame's rows.
struct SessionRows<'a> {
    sessions: Option<(&'a mut Sessions, ArrayRef, Option<ArrayRef>, Vec<bool>)>,
    ids: Vec<Option<String>>,
    closed: Vec<sessions::Closed>,
}

impl<'a> SessionRows<'a> {
    fn new(stream: &Stream, rows: &RecordBatch, sessions: Option<&'a mut Sessions>) -> Self {
        let text = |column: usize| {
            arrow::compute::cast(rows.column(column), &arrow::datatypes::DataType::Utf8)
                .expect("what is not nested becomes text")
        };
        let sessions = stream
            .session()
            .zip(sessions)
            .map(|(columns, sessions)| (sessions, text(columns.key), columns.what.map(text), columns.opens(rows)));
        Self { sessions, ids: Vec::new(), closed: Vec::new() }
    }

    /// The next row belongs to no session.
    fn skip(&mut self) {
        if self.sessions.is_some() {
            self.ids.push(None);
        }
    }

    fn observe(&mut self, row: usize, time: Micros, lsn: Lsn) {
        let Some((sessions, keys, what, opens)) = &mut self.sessions else { return };
        let text = |array: &ArrayRef| {
            let array = array.as_any().downcast_ref::<StringArray>()?;
            array.is_valid(row).then(|| array.value(row).to_owned())
        };
        // An event without a key is in no session.
        let Some(key) = text(keys) else { return self.ids.push(None) };
        let what = what.as_ref().and_then(text);
        let seen = Seen { lsn, key: &key, time, what: what.as_deref(), opens: opens[row] };
        let begun = sessions.observe(&seen, &mut self.closed);
        self.ids.push(Some(sessions.id(&key, begun)));
    }

    fn advance(&mut self, mark: Micros, lsn: Lsn) {
        if let Some((sessions, ..)) = &mut self.sessions {
            sessions.advance(mark, lsn, &mut self.closed);
        }
    }

    /// Per row its session's id, where there are sessions, and the sessions that are over.
    fn finish(self) -> (Option<Vec<Option<String>>>, Vec<sessions::Closed>) {
        (self.sessions.is_some().then_some(self.ids), self.closed)
    }
}

fn push_sessions(
    output: &mut Output,
    stream: &Stream,
    sessions: &Sessions,
    closed: &[sessions::Closed],
    floor: Option<Micros>,
) {
    if !closed.is_empty() {
        let table = tables::sessions(&stream.name).into();
        output.tables.push(TableRows { table, batch: sessions.rows(closed), floor });
    }
}

/// Rows that no window took, with the names of those that would have.
fn late_rows(stream: &Stream, batch: &RecordBatch, late: &BTreeMap<u32, Vec<String>>) -> RecordBatch {
    use arrow::array::{ListBuilder, StringBuilder, UInt32Array};
    let rows = UInt32Array::from_iter_values(late.keys().copied());
    let rows = arrow::compute::take_record_batch(batch, &rows).expect("the rows are there");
    let mut names = ListBuilder::new(StringBuilder::new());
    for windows in late.values() {
        windows.iter().for_each(|name| names.values().append_value(name));
        names.append(true);
    }
    let mut columns = rows.columns().to_vec();
    columns.push(Arc::new(names.finish()));
    RecordBatch::try_new(stream.late_schema(), columns).expect("the columns are the schema's")
}

/// Times of a batch by a column of it.
fn column_times(batch: &RecordBatch, column: usize) -> &[Micros] {
    batch
        .column(column)
        .as_any()
        .downcast_ref::<arrow::array::PrimitiveArray<TimestampMicrosecondType>>()
        .expect("a window's time was checked to be one")
        .values()
}

/// What a control frame says, as the JSON of something.
fn from_payload<T: serde::de::DeserializeOwned>(frame: &Frame) -> Result<T, OperatorError> {
    let lsn = frame.header.first_lsn;
    serde_json::from_str(&payload(frame)?).map_err(|e| OperatorError::Frame { lsn, reason: e.to_string() })
}

/// What a control frame says.
fn payload(frame: &Frame) -> Result<String, OperatorError> {
    let lsn = frame.header.first_lsn;
    let wrong = |reason: String| OperatorError::Frame { lsn, reason };
    let records = frame.records().map_err(|e| wrong(e.to_string()))?;
    let bytes = if records.is_empty() { &[][..] } else { records.get(0) };
    String::from_utf8(bytes.to_vec()).map_err(|e| wrong(e.to_string()))
}

/// What a frame's rows did to their stream's state.
struct Advanced {
    /// Per row, whether it says nothing new.
    repeats: Vec<bool>,
    /// Per row, whether its hour is more than one before its partition's watermark; none where no row is.
    old: Option<Vec<bool>>,
    /// Rows below the retention's floor.
    below: Vec<usize>,
    /// Records behind which the stream's watermark is another one.
    marks: Vec<(Lsn, Micros)>,
    session_ids: Option<Vec<Option<String>>>,
    closed: Vec<sessions::Closed>,
}

impl StreamState {
    /// Takes rows in, one by one: watermark, floor, repeats, sessions.
    fn observe(&mut self, stream: &Stream, header: &crate::wal::Header, decoded: &Decoded) -> Advanced {
        let rules = &stream.def.watermark;
        let (disorder, max_ahead) = (rules.disorder.micros(), rules.max_ahead.micros());
        let times = times(&decoded.rows);
        let mut hashes = RepeatHashes::new(stream, &decoded.rows);
        let key = (header.source.clone(), header.partition.clone());
        // The other partitions stand still during a frame.
        let others = self.watermarks.iter().filter(|(k, w)| **k != key && !w.is_idle());
        let others = others.map(|(_, w)| w.at()).min();
        // What comes back says nothing of how far time has come.
        let is_retry = header.kind == Kind::Retry;
        let mut aside = Watermark::standing(self.watermark);
        let watermark = if is_retry { &mut aside } else { self.watermarks.entry(key).or_default() };
        let rows = times.len();
        let (mut repeats, mut old, mut below) = (Vec::with_capacity(rows), None, Vec::new());
        let (mut marks, mut mark) = (Vec::new(), self.watermark);
        let mut sessions = SessionRows::new(stream, &decoded.rows, self.sessions.as_mut());
        for (row, time) in times.iter().copied().enumerate() {
            let lsn = header.first_lsn + u64::from(decoded.index[row]);
            let before = watermark.at();
            let is_late = before.is_some_and(|w| time < w);
            if before.is_some_and(|w| bucket(time, MICROS_PER_HOUR) + 1 < bucket(w, MICROS_PER_HOUR)) {
                old.get_or_insert_with(|| vec![false; rows])[row] = true;
            }
            if !is_retry {
                watermark.observe(time, disorder, max_ahead);
            }
            let now = others.map_or(watermark.at(), |others| others.min(watermark.at()));
            let has_moved = now > mark && !is_retry;
            if has_moved {
                mark = now;
                marks.extend(now.map(|now| (lsn, now)));
            }
            // Without a watermark nothing is known of how far time has come, so the floor stays.
            if let (Some(retention), Some(reached)) = (stream.def.retention, watermark.at()) {
                let reach = reached.min(header.received_at);
                let floor = stream.partition_start(reach.saturating_sub(retention.micros()));
                self.floor = Some(self.floor.map_or(floor, |before| before.max(floor)));
            }
            if self.floor.is_some_and(|floor| time < floor) {
                below.push(row);
                repeats.push(false);
                sessions.skip();
            } else {
                self.totals.late += u64::from(is_late);
                let repeat = match (&mut hashes, &mut self.repeats) {
                    (Some(hashes), Some(repeats)) => {
                        hashes.at(row).is_some_and(|(key, content, version)| repeats.observe(key, content, version))
                    }
                    _ => false,
                };
                self.totals.repeats += u64::from(repeat);
                repeats.push(repeat);
                sessions.observe(row, time, lsn);
            }
            if let Some(mark) = mark.filter(|_| has_moved) {
                sessions.advance(mark, lsn);
            }
        }
        let (session_ids, closed) = sessions.finish();
        Advanced { repeats, old, below, marks, session_ids, closed }
    }

    /// Counts dead letters by their reasons, and keys that the schema does not know.
    fn count_refused(&mut self, decoded: &Decoded, output: &Output) {
        self.totals.dead_letters += output.dead_letters.len() as u64;
        for letter in &output.dead_letters {
            let reason: String = letter.reason.chars().take(REASON_CHARS).collect();
            let is_told = self.reasons.len() < REASONS || self.reasons.contains_key(&reason);
            *self.reasons.entry(if is_told { reason } else { OTHER_REASONS.into() }).or_default() += 1;
        }
        for (key, n) in &decoded.drift {
            if self.drift.len() < DRIFT_KEYS || self.drift.contains_key(key) {
                *self.drift.entry(key.clone()).or_default() += n;
            }
        }
    }

    /// The greatest event time that the watermarks rest on.
    fn greatest(&self, catalog: &Catalog, stream: &str) -> Option<Micros> {
        let disorder = catalog.streams.get(stream)?.def.watermark.disorder.micros();
        Some(self.watermarks.values().filter_map(Watermark::at).max()?.saturating_add(disorder))
    }

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
    column_times(rows, 0)
}

/// Puts a stream table's stamp before the decoded columns.
fn stamp(
    stream: &Stream,
    header: &crate::wal::Header,
    decoded: &Decoded,
    repeats: Vec<bool>,
    sessions: Option<Vec<Option<String>>>,
) -> RecordBatch {
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
    if let Some(sessions) = sessions {
        columns.push(Arc::new(StringArray::from(sessions)));
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
pub(crate) fn canonical(array: &ArrayRef, row: usize, out: &mut Vec<u8>) {
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
