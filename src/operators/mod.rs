//! Deterministic state between log and views: advanced record by record, by nothing but the log's
//! frames.
//!
//! [`Operators::apply`] turns a frame into rows of tables, each stamped with its LSN; [`snapshot`]
//! saves the whole state at one LSN. Nothing in here depends on a clock, on randomness or on the
//! order of a map, so a replay gives the same rows.
//!
//! A frame of two records, applied to a state at LSN 119:
//!
//! ```text
//! frame 120..=121     duplicates, sessions, watermark    record by record, in `stream`
//!   120  event        → row 120 of the stream's table
//!   121  rejected     → dead letter 121
//!                     → rows of windows, sessions, entity tables, all with LSNs 120 or 121
//! afterwards          lsn 121; emitted_through: s/recent 120, dead_letters 121, raw 121
//! ```
//!
//! `emitted_through` says what a view can lack: a view of the stream with checkpoint 120 is
//! complete, also when the log is at 500 and nothing more was emitted to it.

pub(crate) mod arrivals;
mod derived;
mod duplicates;
pub(crate) mod entities;
mod hashing;
mod identities;
mod output;
mod partitions;
mod progress;
mod reconfigure;
mod retry_ledger;
pub(crate) mod sessions;
pub mod snapshot;
mod stream;
mod values;
mod watermark;
mod windows;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::RecordBatch;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::decode::{Decoded, Received, decode};
use crate::event::{Gap, Lsn, MICROS_PER_HOUR, Micros, bucket};
use crate::idempotency::{AnsweredRequest, AnsweredRequests, IngestResponse, RequestKey};
use crate::ids::{CheckpointId, PartitionId, TableId, ViewId};
use crate::schema::{Catalog, DUPLICATE_KEY_BYTES, Stream, Window};
use crate::wal::{Frame, Header, Kind};
use arrivals::Arrivals;
use derived::push_sessions;
use duplicates::Deduplicator;
use entities::EntityState;
pub use identities::SeenRecords;
pub use output::{DeadLetter, Output, RetentionFloors, StreamRows, TableRows};
pub use partitions::{PartitionState, RETAINED_PARTITION};
pub use progress::{StreamProgress, Totals, WaitingPartition, WindowProgress};
pub(crate) use retry_ledger::MAX_RETRIED;
use retry_ledger::RetryLedger;
use sessions::Sessions;
use snapshot::SavedSnapshots;
use stream::{Observation, StreamState, reject_below_retention, rules, stamp};
pub(crate) use values::canonical;
pub(crate) use values::lsns;
pub use windows::WindowError;
use windows::WindowState;

/// Gaps remembered for `weir.gaps`; all of them stay in `raw`.
const MAX_GAPS: usize = 10_000;

/// Why a frame cannot be applied: the log and this program disagree, which ends the process.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum OperatorError {
    /// Its bytes are not records, or a control frame's payload is not the JSON that it must be.
    #[error("record {lsn}: the stored frame cannot be read: {reason}")]
    Frame { lsn: Lsn, reason: String },
    /// Declarations that were valid when they were stored do not compile now.
    #[error("record {lsn}: the stored configuration cannot be used: {reason}")]
    Configuration { lsn: Lsn, reason: String },
    /// Not a row or window without a value: those are left out and counted.
    #[error("record {lsn}: window `{window}` failed: {reason}")]
    Window {
        lsn: Lsn,
        window: String,
        reason: WindowError,
    },
    /// An entity table's rows could not be derived or compared.
    #[error("record {lsn}: the rows of `{table}` failed: {reason}")]
    Entity {
        lsn: Lsn,
        table: String,
        reason: String,
    },
    /// A snapshot file that is damaged or of an unreleased format; recovery uses an older one.
    #[error("{path}: {reason}")]
    Snapshot { path: PathBuf, reason: String },
    /// The disk, not its content: another try may help.
    #[error("{path}: {reason}")]
    Io { path: PathBuf, reason: String },
    /// Snapshot and log are from different backups.
    #[error(
        "{path} is a snapshot of record {lsn}, but the log ends with record {end}: restore `log` and `operators` from one backup; nothing has been changed"
    )]
    Ahead { path: PathBuf, lsn: Lsn, end: Lsn },
    /// A downgrade.
    #[error(
        "{path} was written by a newer version of weir (snapshot format {version}); use that version"
    )]
    Newer { path: PathBuf, version: u32 },
}

impl OperatorError {
    /// A window's error, at a record.
    fn window(lsn: Lsn, window: &Window) -> impl Fn(WindowError) -> Self {
        let window = window.name.clone();
        move |reason| Self::Window {
            lsn,
            window: window.clone(),
            reason,
        }
    }
}

/// State of all operators, including facts that a trimmed log can no longer provide.
pub struct Operators {
    catalog: Arc<Catalog>,
    /// Where the configuration is pinned, and the log's own are ignored: the first complete record.
    /// Those before are known only from retained rows.
    pinned_from: Option<Lsn>,
    lsn: Lsn,
    streams: BTreeMap<String, StreamState>,
    /// In the catalog's order: a window comes after every one that it reads.
    windows: Vec<WindowState>,
    /// In the catalog's order.
    entities: Vec<EntityState>,
    partitions: BTreeMap<PartitionId, PartitionState>,
    /// Of partitions that are polled.
    seen: BTreeMap<PartitionId, SeenRecords>,
    /// Per checkpoint of a view, the LSN of the last row emitted to it; it lacks nothing from there
    /// on.
    emitted_through: BTreeMap<CheckpointId, Lsn>,
    /// Requests with an idempotency key, and their answers; none in a copy that is never asked.
    answered: Option<AnsweredRequests>,
    gaps: VecDeque<Gap>,
    retried: RetryLedger,
    /// Retention floors of the tables that do not belong to a stream: `raw`, `dead_letters`; and
    /// those of derived tables that the disk's limit has raised above their stream's.
    retention_floors: RetentionFloors,
    arrivals: Arrivals,
    saved: SavedSnapshots,
}

impl Operators {
    /// An empty state as of `lsn`: the start LSN for an empty log. The first frame to apply follows
    /// it.
    pub fn new(catalog: Arc<Catalog>, lsn: Lsn) -> Self {
        let mut operators = Self {
            catalog: Arc::new(Catalog::default()),
            pinned_from: None,
            lsn,
            streams: BTreeMap::new(),
            windows: Vec::new(),
            entities: Vec::new(),
            partitions: BTreeMap::new(),
            seen: BTreeMap::new(),
            emitted_through: BTreeMap::new(),
            answered: Some(AnsweredRequests::default()),
            gaps: VecDeque::new(),
            retried: RetryLedger::default(),
            retention_floors: RetentionFloors::new(),
            arrivals: Arrivals::default(),
            saved: SavedSnapshots::default(),
        };
        // In an empty state no window is open.
        operators
            .reconfigure(catalog, lsn)
            .expect("nothing is closed, and the windows were planned");
        operators
    }

    /// The LSN up to which everything is applied.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// The configuration in force at [`Self::lsn`].
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// Where a partition of a source continues; none before its first record.
    pub fn partition(&self, source: &str, partition: &str) -> Option<&PartitionState> {
        self.partitions.get(&PartitionId::new(source, partition))
    }

    /// Every partition so far.
    pub fn partitions(&self) -> &BTreeMap<PartitionId, PartitionState> {
        &self.partitions
    }

    /// Per polled partition, the newest records.
    pub fn seen(&self) -> &BTreeMap<PartitionId, SeenRecords> {
        &self.seen
    }

    /// Per checkpoint of a view, the LSN of the last row emitted to it. A view whose checkpoint has
    /// reached it lacks no row up to [`Self::lsn`].
    pub fn emitted_through(&self) -> &BTreeMap<CheckpointId, Lsn> {
        &self.emitted_through
    }

    /// Requests with an idempotency key, oldest first.
    pub fn answered(&self) -> impl Iterator<Item = (&RequestKey, &AnsweredRequest)> {
        self.answered.iter().flat_map(AnsweredRequests::iter)
    }

    /// This copy processes the log once more; it is never asked what a request was answered.
    pub fn forget_answers(&mut self) {
        self.answered = None;
    }

    /// The newest gaps that sources reported, oldest first; at most [`MAX_GAPS`].
    pub fn gaps(&self) -> impl Iterator<Item = &Gap> {
        self.gaps.iter()
    }

    /// Dead letters that became events later, with the record that did.
    pub fn retried(&self) -> &BTreeMap<Lsn, Lsn> {
        self.retried.records()
    }

    /// How far arrival time has come, in µs, as far as it is trusted; none until arrivals
    /// have continued for a day.
    pub fn arrived(&self) -> Option<Micros> {
        self.arrivals.reached()
    }

    /// A snapshot of the state as it is was saved.
    pub fn record_saved(&mut self) {
        self.saved.record(self.lsn);
    }

    /// Per table its retention floor. A stream's floor is also that of its sessions and late rows,
    /// and of a window without a retention of its own; a floor that the disk's limit raised counts
    /// where it is higher.
    pub fn retention_floors(&self) -> RetentionFloors {
        let of_streams = self
            .streams
            .iter()
            .filter_map(|(name, state)| Some((TableId::stream(name), state.retention_floor?)));
        let mut retention_floors: RetentionFloors = of_streams.collect();
        for name in self.catalog.streams.keys() {
            let retention_floor = self.streams.get(name).and_then(|s| s.retention_floor);
            let derived = [TableId::sessions(name), TableId::late(name)];
            retention_floors.extend(
                derived
                    .into_iter()
                    .filter_map(|table| Some((table, retention_floor?))),
            );
        }
        for window in &self.catalog.windows {
            retention_floors.extend(
                self.window_retention_floor(window)
                    .map(|retention_floor| (TableId::window(&window.name), retention_floor)),
            );
        }
        for (table, retention_floor) in &self.retention_floors {
            let before = retention_floors
                .entry(table.clone())
                .or_insert(*retention_floor);
            *before = (*retention_floor).max(*before);
        }
        retention_floors
    }

    /// The time below which a window's rows are no longer part of its table.
    ///
    /// With `retention = 1d` of its own and the watermark at Tuesday 12:34: Monday 12:00, because
    /// only whole hours are dropped.
    fn window_retention_floor(&self, window: &Window) -> Option<Micros> {
        let state = self.streams.get(&window.stream)?;
        match (window.def.retention, state.watermark) {
            (Some(retention), Some(watermark)) => Some(
                bucket(
                    watermark.saturating_sub(retention.micros()),
                    MICROS_PER_HOUR,
                ) * MICROS_PER_HOUR,
            ),
            (Some(_), None) => None,
            (None, _) => state.retention_floor,
        }
    }

    /// Rows of what is still open in a window or in a stream's sessions, as of [`Self::lsn`]; none
    /// for every other table.
    pub fn open_rows(&self, table: &TableId) -> Result<Option<RecordBatch>, String> {
        match table {
            TableId::Window(name) => match self.windows.iter().find(|w| *w.window().name == **name)
            {
                Some(window) => window.open_rows(self.lsn).map_err(|e| e.to_string()),
                None => Ok(None),
            },
            TableId::Sessions(stream) => {
                let state = self.streams.get(&**stream);
                let sessions = state.and_then(|s| s.sessions.as_ref());
                Ok(sessions.map(|sessions| sessions.open_rows(self.lsn)))
            }
            TableId::Raw
            | TableId::DeadLetters
            | TableId::Stream(_)
            | TableId::Late(_)
            | TableId::Entity(_) => Ok(None),
        }
    }

    /// Bytes of state, approximately.
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
            + self
                .seen
                .values()
                .map(SeenRecords::memory_bytes)
                .sum::<usize>()
    }

    /// Decodes a frame's records, for a frame that came without rows: one read from the log. None
    /// for a control frame, and for a stream that is not declared (any more).
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
            Received {
                at: frame.header.received_at,
                truncated: &frame.attributes.truncated_records,
                messages: frame.attributes.messages_of(&frame.header.partition),
            },
        )))
    }

    /// Applies the next frame of the log with its decoded rows. Frames at or below the state's LSN
    /// must not be applied again.
    ///
    /// # Errors
    ///
    /// The state is then partly changed and must not be used any more.
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
            retention_floors: RetentionFloors::new(),
        };
        match header.kind {
            Kind::Record => {
                self.advance_idle_retained_partitions(header);
                self.record_partition(frame);
                if let (Some(decoded), Some(stream)) =
                    (decoded, self.catalog.streams.get(&header.stream).cloned())
                {
                    self.apply_records(&stream, frame, decoded, &mut output)?;
                    self.remember_answer(frame, decoded);
                }
            }
            Kind::Configuration if self.pinned_from.is_some() => {}
            Kind::Configuration => output.tables = self.apply_configuration(frame)?,
            Kind::Gap => {
                // Offsets are missing at the broker; the partition continues after them.
                if frame.attributes.next_offset.is_some() {
                    self.record_partition(frame);
                }
                self.record_gap(&payload(frame)?);
            }
            Kind::PartitionEnd => {
                self.record_partition(frame);
                self.end_partition(frame);
                self.apply_watermark(&header.stream.clone(), to, &mut output)?;
            }
            Kind::Tick => {
                let ticks: Vec<Tick> = from_payload(frame)?;
                self.tick(&header.stream, &ticks);
                self.apply_watermark(&header.stream.clone(), to, &mut output)?;
            }
            Kind::CloseAll => self.close_all(to, &mut output)?,
            Kind::RetentionFloor => {
                output.retention_floors = from_payload(frame)?;
                self.raise_retention_floors(&output.retention_floors);
            }
            Kind::Retry => {
                if let (Some(decoded), Some(stream)) =
                    (decoded, self.catalog.streams.get(&header.stream).cloned())
                {
                    let fresh = self.without_retried(frame, decoded);
                    self.apply_records(&stream, frame, &fresh, &mut output)?;
                    self.record_retried(frame, &output);
                }
            }
            // An earlier frame holds these records; this one is in `raw` only.
            Kind::DuplicateRequest => {}
        }
        self.record_derived(&output);
        self.lsn = to;
        let raw = CheckpointId::recent(&TableId::Raw);
        self.emitted_through.insert(raw, to);
        Ok(output)
    }

    fn apply_configuration(&mut self, frame: &Frame) -> Result<Vec<TableRows>, OperatorError> {
        let lsn = frame.header.first_lsn;
        let catalog = Catalog::from_json(&payload(frame)?)
            .map_err(|reason| OperatorError::Configuration { lsn, reason })?;
        self.reconfigure(Arc::new(catalog), lsn)
    }

    /// Remembers a gap; one that cannot be read stays in `raw` only.
    fn record_gap(&mut self, text: &str) {
        if let Ok(gap) = serde_json::from_str(text) {
            self.gaps.push_back(gap);
            if self.gaps.len() > MAX_GAPS {
                self.gaps.pop_front();
            }
        }
    }

    /// Records the last rows emitted to derived tables.
    fn record_derived(&mut self, output: &Output) {
        for table in &output.tables {
            if let Some(lsn) = lsns(&table.batch).last() {
                self.emitted_through
                    .insert(CheckpointId::recent(&table.table), *lsn as Lsn);
            }
        }
    }

    /// Applies this configuration to everything from here on and ignores the log's own: records are
    /// processed once more. Those before `first` are known only from retained rows, so that a retry
    /// of one of their dead letters is believed; of later ones, the ledger knows which were
    /// rejected.
    pub fn pin(&mut self, first: Lsn) {
        self.pinned_from = Some(first);
        self.forget_answers();
    }

    /// Retained rows end here: complete records follow, in partitions with watermarks of their own.
    pub fn end_retained(&mut self) {
        for state in self.streams.values_mut() {
            state
                .watermarks
                .retain(|id, _| &*id.partition != RETAINED_PARTITION);
        }
    }

    /// Records known only from retained rows have no ticks, so a source counts as idle once other
    /// sources' arrival times have advanced past its idle timeout.
    fn advance_idle_retained_partitions(&mut self, header: &Header) {
        let Some(stream) = self
            .catalog
            .streams
            .get(&header.stream)
            .filter(|_| header.partition == RETAINED_PARTITION)
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
            let is_other = &*key.partition == RETAINED_PARTITION && *key.source != *header.source;
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

    fn raise_retention_floors(&mut self, retention_floors: &RetentionFloors) {
        for (table, retention_floor) in retention_floors {
            let of_stream = match table {
                TableId::Stream(name) => self.streams.get_mut(&**name),
                _ => None,
            };
            let before = match of_stream {
                Some(state) => state.retention_floor.get_or_insert(*retention_floor),
                None => self
                    .retention_floors
                    .entry(table.clone())
                    .or_insert(*retention_floor),
            };
            *before = (*before).max(*retention_floor);
        }
    }

    fn record_partition(&mut self, frame: &Frame) {
        let header = &frame.header;
        let id = PartitionId::new(&header.source, &header.partition);
        if let Some(identities) = &frame.attributes.identities {
            self.seen.entry(id.clone()).or_default().observe(identities);
        }
        let partition = self.partitions.entry(id).or_default();
        if let Some(line) = partition.observe(frame) {
            self.retried
                .record_completed(line.dead_letters, line.record);
        }
    }

    /// A partition has ended, as a file does that is read once.
    fn end_partition(&mut self, frame: &Frame) {
        let name = &frame.header.stream;
        let Some((state, stream)) = self
            .streams
            .get_mut(name)
            .zip(self.catalog.streams.get(name))
        else {
            return;
        };
        let key = PartitionId::new(&frame.header.source, &frame.header.partition);
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
            let key = PartitionId::new(source, partition);
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
            AnsweredRequest {
                hash: *hash,
                answer: IngestResponse::new(decoded),
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
        let Observation {
            duplicates,
            mut late_class,
            below_retention,
            watermark_updates,
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
        if !below_retention.is_empty() {
            let retention_floor = state.retention_floor.unwrap_or_default();
            (batch, late_class) = reject_below_retention(
                &below_retention,
                retention_floor,
                decoded,
                (batch, late_class),
                output,
            );
        }
        state.totals.events += batch.num_rows() as u64;
        state.count_rejected(decoded, output);
        state.advance();
        let (retention_floor, watermark) = (state.retention_floor, state.watermark);
        if let Some(sessions) = &state.sessions {
            push_sessions(output, stream, sessions, &closed, retention_floor);
        }
        self.process_windows(stream, &batch, &watermark_updates, output)?;
        self.process_entities(stream, &batch, output)?;
        self.record_emitted(stream, &batch, late_class.as_deref(), output);
        if self.pinned_from.is_some() {
            self.retried
                .record_rejected(output.dead_letters.iter().map(|dead| dead.lsn));
        }
        if batch.num_rows() > 0 {
            output.rows = Some(StreamRows {
                stream: stream.clone(),
                batch,
                late_class,
                retention_floor,
                watermark,
            });
        }
        Ok(())
    }

    /// Records the last rows emitted to the views of a stream.
    fn record_emitted(
        &mut self,
        stream: &Stream,
        batch: &RecordBatch,
        late_class: Option<&[bool]>,
        output: &Output,
    ) {
        if let Some(dead) = output.dead_letters.last() {
            let dead_letters = CheckpointId::recent(&TableId::DeadLetters);
            self.emitted_through.insert(dead_letters, dead.lsn);
        }
        let lsns = lsns(batch);
        let is_late_class = |row: usize| late_class.is_some_and(|o| o[row]);
        let last = |wanted: bool| {
            (0..lsns.len())
                .rev()
                .find(|row| is_late_class(*row) == wanted)
                .map(|row| lsns[row] as u64)
        };
        let (name, table) = (&stream.name, TableId::stream(&stream.name));
        if let Some(lsn) = last(false) {
            self.emitted_through
                .insert(CheckpointId::recent(&table), lsn);
        }
        if let Some(lsn) = last(true) {
            self.emitted_through.insert(CheckpointId::late(&table), lsn);
        }
        let Some(lsn) = lsns.last().map(|l| *l as u64) else {
            return;
        };
        for (wanted, view) in [
            (stream.def.search.is_some(), ViewId::search(name)),
            (stream.def.places.is_some(), ViewId::places(name)),
            (stream.def.count.is_some(), ViewId::counts(name)),
        ] {
            if wanted {
                self.emitted_through.insert((&view).into(), lsn);
            }
        }
    }
}

/// Time that has passed in a partition without a record. A tick's frame has a JSON list of them:
/// `[{"source":"s","partition":"p","elapsed":5000000}]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tick {
    /// The source whose partition was silent.
    pub source: String,
    /// The partition, as the source names it.
    pub partition: String,
    /// Time since its last record or tick, in µs.
    pub elapsed: Micros,
}

/// A control frame's payload, parsed from JSON.
fn from_payload<T: DeserializeOwned>(frame: &Frame) -> Result<T, OperatorError> {
    let lsn = frame.header.first_lsn;
    serde_json::from_str(&payload(frame)?).map_err(|e| OperatorError::Frame {
        lsn,
        reason: e.to_string(),
    })
}

/// A control frame's payload.
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
