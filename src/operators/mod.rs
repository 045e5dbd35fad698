//! Deterministic state between log and views: advanced record by record, by nothing but the log's
//! frames.
//!
//! [`Operators::apply`] turns a frame into rows of tables, each stamped with its LSN; [`snapshot`]
//! saves the whole state at one LSN. There is no clock, no randomness and no map order in here, so
//! a replay gives the same rows.

pub mod arrivals;
mod derived;
pub mod duplicates;
pub mod entities;
mod hashing;
mod output;
pub mod sessions;
pub mod snapshot;
mod stream;
mod values;
pub mod watermark;
pub mod windows;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use serde::{Deserialize, Serialize};

use crate::decode::{Decoded, decode};
use crate::event::{Gap, Lsn, MICROS_PER_HOUR, Micros, bucket};
use crate::idempotency::{Answer, Answered, AnsweredRequests, RequestKey};
use crate::schema::{Catalog, DUPLICATE_KEY_BYTES, Stream, Window};
use crate::wal::{FileIdentity, Frame, Header, Kind};
use arrivals::Arrivals;
use derived::push_sessions;
use duplicates::Deduplicator;
use entities::EntityState;
pub use output::{DeadLetter, Floors, Output, StreamRows, TableRows, checkpoints, tables};
use sessions::Sessions;
use snapshot::Saved;
use stream::{Advanced, StreamState, refuse_below, rules, stamp, times};
pub(crate) use values::canonical;
pub use values::lsns;
use windows::WindowState;

/// The partition of records of which only rows are left.
pub const KEPT: &str = "\u{1}kept";

/// Gaps remembered for `weir.gaps`; all of them stay in `raw`.
const GAPS: usize = 10_000;
/// Dead letters remembered as retried; the newest.
pub const RETRIED: usize = 100_000;
/// In the place of the record that a dead letter became: it has not come back.
const REFUSED: Lsn = 0;

/// Why a frame cannot be applied: the log and this program disagree, which ends the process.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    #[error("record {lsn}: the stored frame cannot be read: {reason}")]
    Frame { lsn: Lsn, reason: String },
    #[error("record {lsn}: the stored configuration cannot be used: {reason}")]
    Configuration { lsn: Lsn, reason: String },
    #[error("record {lsn}: window `{window}` failed: {reason}")]
    Window {
        lsn: Lsn,
        window: String,
        reason: String,
    },
    #[error("record {lsn}: the rows of `{table}` failed: {reason}")]
    Entity {
        lsn: Lsn,
        table: String,
        reason: String,
    },
    #[error("{path}: {reason}")]
    Snapshot {
        path: std::path::PathBuf,
        reason: String,
    },
    /// The disk, not what lies there: another try may help.
    #[error("{path}: {reason}")]
    Io {
        path: std::path::PathBuf,
        reason: String,
    },
    #[error(
        "{path} is a snapshot of record {lsn}, but the log ends with record {end}: restore `log` and `operators` from one backup; nothing has been changed"
    )]
    Ahead {
        path: std::path::PathBuf,
        lsn: Lsn,
        end: Lsn,
    },
    #[error(
        "{path} was written by a newer version of weir (snapshot format {version}); use that version"
    )]
    Newer {
        path: std::path::PathBuf,
        version: u32,
    },
}

/// Where a partition of a source goes on, and what is known of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionState {
    pub next_offset: u64,
    pub file: Option<FileIdentity>,
    /// Arrival of its last record, for the gap that a restart makes.
    pub received_at: Micros,
    /// A last line without its end that was told as a dead letter: (offset, length).
    pub cut_line: Option<(u64, u64)>,
    /// The dead letters that told it, one for each length it had.
    #[serde(default)]
    pub cut_lsns: Vec<Lsn>,
}

/// Sums over a stream since the log began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub events: u64,
    pub late: u64,
    pub duplicates: u64,
    pub dead_letters: u64,
    /// The farthest that a late event lay below its partition's watermark, in µs.
    #[serde(default)]
    pub most_late: Micros,
}

/// All operators, with what a trimmed log can no longer tell.
pub struct Operators {
    catalog: Arc<Catalog>,
    /// Stays with its configuration, whatever the log says.
    is_pinned: bool,
    /// The first record that is whole: of those before only rows are left.
    first: Lsn,
    lsn: Lsn,
    streams: BTreeMap<String, StreamState>,
    /// In the catalog's order: a window comes behind every one that it reads.
    windows: Vec<WindowState>,
    /// In the catalog's order.
    entities: Vec<EntityState>,
    partitions: BTreeMap<(String, String), PartitionState>,
    /// Per checkpoint of a view, the LSN of the last row it was given.
    given: BTreeMap<String, Lsn>,
    /// Requests with an idempotency key, and what they were answered; none in a copy that nobody
    /// asks for them.
    answered: Option<AnsweredRequests>,
    gaps: VecDeque<Gap>,
    /// Dead letters that became events later, with the record that did.
    retried: BTreeMap<Lsn, Lsn>,
    /// Floors of the tables that are no stream's: `raw`, `dead_letters`.
    floors: Floors,
    arrivals: Arrivals,
    saved: Saved,
}

/// What queries and metrics show of a stream's operators.
#[derive(Debug, Clone, Default)]
pub struct StreamProgress {
    pub watermark: Option<Micros>,
    pub totals: Totals,
    pub drift: Vec<(String, u64)>,
    pub reasons: Vec<(String, u64)>,
    pub duplicate_keys: usize,
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
            is_pinned: false,
            first: 0,
            lsn: zero,
            streams: BTreeMap::new(),
            windows: Vec::new(),
            entities: Vec::new(),
            partitions: BTreeMap::new(),
            given: BTreeMap::new(),
            answered: Some(AnsweredRequests::default()),
            gaps: VecDeque::new(),
            retried: BTreeMap::new(),
            floors: Floors::new(),
            arrivals: Arrivals::default(),
            saved: Saved::default(),
        };
        // In an empty state no window is open.
        operators
            .switch(catalog, zero)
            .expect("nothing is closed, and the windows were planned");
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
        self.partitions
            .get(&(source.to_owned(), partition.to_owned()))
    }

    pub fn partitions(&self) -> &BTreeMap<(String, String), PartitionState> {
        &self.partitions
    }

    /// Per checkpoint of a view, the LSN of the last row it was given.
    pub fn given(&self) -> &BTreeMap<String, Lsn> {
        &self.given
    }

    /// Requests with an idempotency key, oldest first.
    pub fn answered(&self) -> impl Iterator<Item = (&RequestKey, &Answered)> {
        self.answered.iter().flat_map(AnsweredRequests::iter)
    }

    /// This copy processes the log once more; nobody asks it what a request was answered.
    pub fn forget_answers(&mut self) {
        self.answered = None;
    }

    pub fn gaps(&self) -> impl Iterator<Item = &Gap> {
        self.gaps.iter()
    }

    /// Dead letters that became events later, with the record that did.
    pub fn retried(&self) -> &BTreeMap<Lsn, Lsn> {
        &self.retried
    }

    /// How far arrival time has come, as far as it is believed.
    pub fn arrived(&self) -> Option<Micros> {
        self.arrivals.reached()
    }

    /// The state was saved as it is.
    pub fn note_saved(&mut self) {
        self.saved.note(self.lsn);
    }

    /// Per table, the time below which rows are no longer part of it.
    pub fn floors(&self) -> Floors {
        let of_streams = self
            .streams
            .iter()
            .filter_map(|(name, state)| Some((name.clone(), state.floor?)));
        let mut floors: Floors = of_streams.collect();
        for stream in self.catalog.streams.values() {
            let floor = self.streams.get(&stream.name).and_then(|s| s.floor);
            let beside = [tables::sessions(&stream.name), tables::late(&stream.name)];
            floors.extend(beside.into_iter().filter_map(|table| Some((table, floor?))));
        }
        for window in &self.catalog.windows {
            floors.extend(
                self.window_floor(window)
                    .map(|floor| (tables::versions_of(&window.name), floor)),
            );
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
            (Some(retention), Some(watermark)) => Some(
                bucket(
                    watermark.saturating_sub(retention.micros()),
                    MICROS_PER_HOUR,
                ) * MICROS_PER_HOUR,
            ),
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
        self.windows
            .iter()
            .map(|w| (w.window.name.clone(), show(w)))
            .collect()
    }

    /// Rows of what is still open in a window or in a stream's sessions, as of [`Self::lsn`]; none
    /// where nothing is.
    pub fn open_rows(&self, table: &str) -> Result<Option<RecordBatch>, String> {
        if let Some(window) = self
            .windows
            .iter()
            .find(|w| tables::versions_of(&w.window.name) == table)
        {
            return window.open_rows(self.lsn);
        }
        let of = |name: &str| self.streams.get(name).and_then(|s| s.sessions.as_ref());
        Ok(table
            .strip_suffix(".sessions")
            .and_then(of)
            .map(|sessions| sessions.open_rows(self.lsn)))
    }

    pub fn progress(&self) -> BTreeMap<String, StreamProgress> {
        let show = |state: &StreamState| StreamProgress {
            watermark: state.watermark,
            totals: state.totals,
            drift: state.drift.iter().map(|(k, n)| (k.clone(), *n)).collect(),
            reasons: state.reasons.iter().map(|(k, n)| (k.clone(), *n)).collect(),
            duplicate_keys: state.duplicates.as_ref().map_or(0, Deduplicator::keys),
            open_sessions: state.sessions.as_ref().map_or(0, Sessions::open),
            is_open: state.sessions.as_ref().is_some_and(|s| s.open() > 0),
        };
        let mut progress: BTreeMap<String, StreamProgress> = self
            .streams
            .iter()
            .map(|(name, state)| (name.clone(), show(state)))
            .collect();
        for window in self.windows.iter().filter(|w| w.is_open()) {
            if let Some(stream) = progress.get_mut(&window.window.stream) {
                stream.is_open = true;
            }
        }
        progress
    }

    /// Partitions that silence can move, of streams in which something is open: stream, source,
    /// partition, records so far.
    pub fn waiting_partitions(&self) -> Vec<(String, String, String, u64)> {
        let progress = self.progress();
        let is_open = |name: &str| progress.get(name).is_some_and(|p| p.is_open);
        let open = self.streams.iter().filter(|(name, _)| is_open(name));
        open.flat_map(|(name, state)| {
            let known = state.watermarks.iter().filter(|(_, w)| w.is_waiting());
            known.map(|((source, partition), w)| {
                (name.clone(), source.clone(), partition.clone(), w.seen())
            })
        })
        .collect()
    }

    /// Bytes of state, about.
    pub fn memory_bytes(&self) -> usize {
        let duplicates: usize = self
            .streams
            .values()
            .filter_map(|s| s.duplicates.as_ref())
            .map(Deduplicator::keys)
            .sum();
        let sessions = self.streams.values().filter_map(|s| s.sessions.as_ref());
        let open = sessions.map(Sessions::memory_bytes).sum::<usize>();
        let windows: usize = self.windows.iter().map(WindowState::memory_bytes).sum();
        let entities: usize = self.entities.iter().map(EntityState::memory_bytes).sum();
        entities
            + duplicates * DUPLICATE_KEY_BYTES
            + open
            + windows
            + self.answered.as_ref().map_or(0, AnsweredRequests::bytes)
            + self.partitions.len() * 256
    }

    /// Reads the frame's records as rows, for a frame that did not bring them along.
    pub fn decode(&self, frame: &Frame) -> Result<Option<Decoded>, OperatorError> {
        let Some(stream) = self.catalog.streams.get(&frame.header.stream) else {
            return Ok(None);
        };
        if !matches!(frame.header.kind, Kind::Record | Kind::Retry) {
            return Ok(None);
        }
        let records = frame.records().map_err(|e| OperatorError::Frame {
            lsn: frame.header.first_lsn,
            reason: e.to_string(),
        })?;
        Ok(Some(decode(
            stream,
            records.iter(),
            frame.header.received_at,
            &frame.attributes.cut,
        )))
    }

    /// Applies the next frame of the log with its decoded rows. Records at or below the state's LSN
    /// must not come again.
    pub fn apply(
        &mut self,
        frame: &Arc<Frame>,
        decoded: Option<&Decoded>,
    ) -> Result<Output, OperatorError> {
        let header = &frame.header;
        let (after, to) = (self.lsn, header.last_lsn());
        self.arrivals.observe(header.received_at);
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
                self.pass_kept_silence(header);
                self.note_partition(frame);
                if let (Some(decoded), Some(stream)) =
                    (decoded, self.catalog.streams.get(&header.stream).cloned())
                {
                    self.apply_records(&stream, frame, decoded, &mut output)?;
                    self.remember_answer(frame, decoded);
                }
            }
            Kind::Configuration if self.is_pinned => {}
            Kind::Configuration => {
                let wrong = |reason: String| OperatorError::Configuration {
                    lsn: header.first_lsn,
                    reason,
                };
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
            Kind::PartitionEnd => {
                self.note_partition(frame);
                self.end_partition(frame);
                self.time_moved(&header.stream.clone(), to, &mut output)?;
            }
            Kind::Tick => {
                let ticks: Vec<Tick> = from_payload(frame)?;
                self.tick(&header.stream, &ticks);
                self.time_moved(&header.stream.clone(), to, &mut output)?;
            }
            Kind::CloseAll => self.close_all(to, &mut output)?,
            Kind::RetentionFloor => {
                output.floors = from_payload(frame)?;
                self.raise_floors(&output.floors);
            }
            Kind::Retry => {
                if let (Some(decoded), Some(stream)) =
                    (decoded, self.catalog.streams.get(&header.stream).cloned())
                {
                    let fresh = self.not_retried(frame, decoded);
                    self.apply_records(&stream, frame, &fresh, &mut output)?;
                    self.mark_retried(frame, &output);
                }
            }
            // The log's writer decided that an earlier frame holds these records; this one is in
            // `raw` only.
            Kind::DuplicateRequest => {} // Kinds that nothing here answers to yet; they count and are kept in `raw`.
        }
        self.note_made(&output);
        self.lsn = to;
        self.given.insert(checkpoints::RAW.into(), to);
        Ok(output)
    }

    /// Notes the last rows of the tables made here.
    fn note_made(&mut self, output: &Output) {
        for table in &output.tables {
            if let Some(lsn) = lsns(&table.batch).last() {
                self.given
                    .insert(checkpoints::recent(&table.table), *lsn as Lsn);
            }
        }
    }

    /// Applies this configuration to everything from here on, whatever the log says: history is
    /// processed once more. Of what came before the record `first` only rows are left.
    pub fn pin(&mut self, first: Lsn) {
        self.is_pinned = true;
        self.first = first;
        self.forget_answers();
    }

    /// Whole records come from here on, in partitions that know how far time has come in them.
    pub fn end_kept(&mut self) {
        for state in self.streams.values_mut() {
            state
                .watermarks
                .retain(|(_, partition), _| partition != KEPT);
        }
    }

    /// Of records of which only rows are left no ticks are: a source is idle when others' arrivals
    /// say so.
    fn pass_kept_silence(&mut self, header: &Header) {
        let Some(stream) = self
            .catalog
            .streams
            .get(&header.stream)
            .filter(|_| header.partition == KEPT)
        else {
            return;
        };
        let Some(state) = self.streams.get_mut(&header.stream) else {
            return;
        };
        let since = header
            .received_at
            .saturating_sub(stream.def.watermark.idle.micros());
        for (key, watermark) in &mut state.watermarks {
            let is_other = key.1 == KEPT && key.0 != header.source;
            if is_other
                && self
                    .partitions
                    .get(key)
                    .is_none_or(|partition| partition.received_at < since)
            {
                watermark.set_idle();
            }
        }
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
        let state = self
            .partitions
            .entry((header.source.clone(), header.partition.clone()))
            .or_default();
        state.received_at = header.received_at;
        if let Some(file) = frame.attributes.file {
            state.file = Some(file);
        }
        let Some(next) = frame.attributes.next_offset else {
            return;
        };
        state.next_offset = next;
        if header.kind != Kind::Record {
            return;
        }
        let before = state.cut_line.take();
        // A frame that does not move its partition tells a line that is not whole yet.
        if next == header.first_offset {
            let length = frame
                .attributes
                .cut
                .first()
                .map_or(u64::from(frame.block_bytes.saturating_sub(4)), |(_, n)| *n);
            if before.is_none_or(|(offset, _)| offset != next) {
                state.cut_lsns.clear();
            }
            state.cut_line = Some((next, length));
            state.cut_lsns.push(header.first_lsn);
            return;
        }
        let told = std::mem::take(&mut state.cut_lsns);
        // The line is whole now: what told it as a dead letter has been retried.
        if let Some(at) = before
            .and_then(|(offset, _)| frame.attributes.offsets.iter().position(|p| *p == offset))
        {
            self.retried.extend(
                told.into_iter()
                    .map(|lsn| (lsn, header.first_lsn + at as u64)),
            );
            while self.retried.len() > RETRIED {
                self.retried.pop_first();
            }
        }
    }

    /// A retry's rows without those whose dead letter has come back already: by another retry, or
    /// twice in this one.
    fn not_retried(&self, frame: &Frame, decoded: &Decoded) -> Decoded {
        let dead = |index: u32| frame.attributes.retry_of.get(index as usize).copied();
        let mut seen = std::collections::BTreeSet::new();
        let keep: Vec<bool> = decoded
            .index
            .iter()
            .map(|index| {
                dead(*index).is_some_and(|dead| self.may_come_back(dead) && seen.insert(dead))
            })
            .collect();
        let index = decoded
            .index
            .iter()
            .zip(&keep)
            .filter_map(|(index, keep)| keep.then_some(*index))
            .collect();
        let rows = arrow::compute::filter_record_batch(&decoded.rows, &BooleanArray::from(keep));
        let rows = rows.expect("the mask has one value per row");
        Decoded {
            rows,
            index,
            rejected: decoded.rejected.clone(),
            drift: Vec::new(),
        }
    }

    /// Whether a dead letter has not come back. Under a pinned configuration it may never have been
    /// one: what was refused when it came may be accepted now, and is there already.
    fn may_come_back(&self, dead: Lsn) -> bool {
        match self.retried.get(&dead) {
            Some(became) => *became == REFUSED,
            None if !self.is_pinned || dead < self.first => true,
            // Refused longer ago than is remembered.
            None => {
                self.retried.len() >= RETRIED
                    && self
                        .retried
                        .keys()
                        .next()
                        .is_some_and(|first| dead < *first)
            }
        }
    }

    /// Notes what is refused under a pinned configuration.
    fn note_refused(&mut self, output: &Output) {
        self.retried
            .extend(output.dead_letters.iter().map(|dead| (dead.lsn, REFUSED)));
        while self.retried.len() > RETRIED {
            self.retried.pop_first();
        }
    }

    /// Notes which record each dead letter became.
    fn mark_retried(&mut self, frame: &Frame, output: &Output) {
        let first = frame.header.first_lsn;
        for lsn in output.rows.iter().flat_map(|rows| rows.lsns()) {
            if let Some(dead) = frame
                .attributes
                .retry_of
                .get((*lsn as Lsn - first) as usize)
            {
                self.retried.insert(*dead, *lsn as Lsn);
            }
        }
    }

    fn end_partition(&mut self, frame: &Frame) {
        let name = &frame.header.stream;
        let Some((state, stream)) = self
            .streams
            .get_mut(name)
            .zip(self.catalog.streams.get(name))
        else {
            return;
        };
        let key = (frame.header.source.clone(), frame.header.partition.clone());
        if let Some(watermark) = state.watermarks.get_mut(&key) {
            watermark.end(rules(stream));
            state.last_idle = watermark.at();
            state.idle_partition = Some(key);
        }
        state.advance();
    }

    /// Time passes in partitions that are silent.
    fn tick(&mut self, stream: &str, ticks: &[Tick]) {
        let Some((state, stream)) = self
            .streams
            .get_mut(stream)
            .zip(self.catalog.streams.get(stream))
        else {
            return;
        };
        let idle = stream.def.watermark.idle.micros();
        for Tick {
            source,
            partition,
            elapsed,
        } in ticks
        {
            let key = (source.clone(), partition.clone());
            let Some(watermark) = state.watermarks.get_mut(&key) else {
                continue;
            };
            if watermark.tick(*elapsed, idle, rules(stream)) {
                state.idle_partition = Some(key.clone());
            }
            if state.idle_partition.as_ref() == Some(&key) {
                state.last_idle = watermark.at();
            }
        }
        state.advance();
    }

    fn remember_answer(&mut self, frame: &Frame, decoded: &Decoded) {
        let Some((answered, (hash, key))) = self
            .answered
            .as_mut()
            .zip(frame.attributes.idempotency.as_ref())
        else {
            return;
        };
        let key = RequestKey {
            stream: frame.header.stream.clone(),
            key: key.clone(),
        };
        answered.insert(
            key,
            Answered {
                hash: *hash,
                answer: Answer::new(decoded),
                lsn: frame.header.last_lsn(),
            },
        );
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
        let state = self
            .streams
            .get_mut(&stream.name)
            .expect("every stream of the catalog has a state");
        let Advanced {
            duplicates,
            mut old,
            below,
            marks,
            session_ids,
            closed,
        } = state.observe(stream, header, decoded, self.arrivals.reached());
        output.dead_letters = decoded
            .rejected
            .iter()
            .map(|r| DeadLetter {
                lsn: first + u64::from(r.index),
                index: r.index,
                reason: r.reason.clone(),
            })
            .collect();
        let mut batch = stamp(stream, header, decoded, duplicates, session_ids);
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
        if self.is_pinned {
            self.note_refused(output);
        }
        if batch.num_rows() > 0 {
            output.rows = Some(StreamRows {
                stream: stream.clone(),
                batch,
                old,
                floor,
                watermark,
            });
        }
        Ok(())
    }

    fn note_given(
        &mut self,
        stream: &Stream,
        batch: &RecordBatch,
        old: Option<&[bool]>,
        output: &Output,
    ) {
        if let Some(dead) = output.dead_letters.last() {
            self.given
                .insert(checkpoints::DEAD_LETTERS.into(), dead.lsn);
        }
        let lsns = lsns(batch);
        let is_old = |row: usize| old.is_some_and(|o| o[row]);
        let last = |wanted: bool| {
            (0..lsns.len())
                .rev()
                .find(|row| is_old(*row) == wanted)
                .map(|row| lsns[row] as u64)
        };
        let name = &stream.name;
        if let Some(lsn) = last(false) {
            self.given.insert(checkpoints::recent(name), lsn);
        }
        if let Some(lsn) = last(true) {
            self.given.insert(checkpoints::old(name), lsn);
        }
        let Some(lsn) = lsns.last().map(|l| *l as u64) else {
            return;
        };
        for (wanted, checkpoint) in [
            (stream.def.search.is_some(), checkpoints::search(name)),
            (stream.def.places.is_some(), checkpoints::places(name)),
            (stream.def.count.is_some(), checkpoints::counts(name)),
        ] {
            if wanted {
                self.given.insert(checkpoint, lsn);
            }
        }
    }
}

/// Time that has passed in a partition without a record: what a tick's frame lists, in
/// microseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tick {
    pub source: String,
    pub partition: String,
    pub elapsed: Micros,
}

/// What a control frame says, as the JSON of something.
fn from_payload<T: serde::de::DeserializeOwned>(frame: &Frame) -> Result<T, OperatorError> {
    let lsn = frame.header.first_lsn;
    serde_json::from_str(&payload(frame)?).map_err(|e| OperatorError::Frame {
        lsn,
        reason: e.to_string(),
    })
}

/// What a control frame says.
fn payload(frame: &Frame) -> Result<String, OperatorError> {
    let lsn = frame.header.first_lsn;
    let wrong = |reason: String| OperatorError::Frame { lsn, reason };
    let records = frame.records().map_err(|e| wrong(e.to_string()))?;
    let bytes = if records.is_empty() {
        &[][..]
    } else {
        records.get(0)
    };
    String::from_utf8(bytes.to_vec()).map_err(|e| wrong(e.to_string()))
}
