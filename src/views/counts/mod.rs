//! How many events of each type and group, per second: blocks of an hour and totals of days in
//! redb, totals of the newest hours in memory, so that any range of whole seconds is a sum over
//! days, hours and two edges. Memory holds whole hours from some hour on; that hour rises when their
//! share of memory is full. Uncommitted blocks are committed when their share is full, within a
//! frame too.
//!
//! For example, 10:59:58 on Monday to 01:00 on Wednesday is two seconds of Monday's block of 10:00,
//! the thirteen hours of Monday from 11:00 on, Tuesday's total, and one hour of Wednesday.

pub(crate) mod group;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use arrow::array::{Array, BooleanArray, StringArray, TimestampMicrosecondArray};
use redb::{ReadOnlyTable, ReadableTable, TableDefinition};

use super::state_store::{StateStore, copy_table, open_table};
use super::{Cursor, LogIdentity, StreamView, View, ViewError};
use crate::event::{Lsn, MICROS_PER_DAY, MICROS_PER_HOUR, MICROS_PER_SECOND, Micros, bucket};
use crate::ids::ViewId;
use crate::operators::StreamRows;
use crate::schema::Stream;

/// Key: hour since 1970 (big-endian, sign flipped), then the group's text. Value: see [`encode`].
const BLOCKS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("blocks");
/// Key: as of blocks, with the day since 1970. Value: distinct and total of the day's hours that
/// are retained.
const DAYS: TableDefinition<&[u8], (u64, u64)> = TableDefinition::new("days");
const HOURS_PER_DAY: i64 = 24;
const SECONDS_PER_HOUR: i64 = 3_600;
const COMMIT_AFTER: Duration = Duration::from_secs(1);
/// Memory in addition to a group's text: of its total of an hour, of an uncommitted block with its
/// first second, of each further second of that, and of an interned text.
const HOUR_TOTAL_BYTES: usize = 96;
const PENDING_BLOCK_BYTES: usize = 384;
const SECOND_BYTES: usize = 40;
const NAME_BYTES: usize = 64;

/// Events without duplicates, and all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Without duplicates.
    pub distinct: u64,
    /// With duplicates.
    pub total: u64,
}

impl Count {
    /// Adds both numbers.
    pub fn add(&mut self, other: Self) {
        self.distinct += other.distinct;
        self.total += other.total;
    }
}

/// Counts by second of an hour.
type Block = BTreeMap<u16, Count>;

/// Uncommitted blocks by hour and group.
type PendingBlocks = HashMap<(i64, Arc<str>), Block>;

type EmitCount<'a> = &'a mut dyn FnMut(&str, Count);

/// Receives a group, the second since 1970 and its count.
type EmitSecond<'a> = &'a mut dyn FnMut(&str, i64, Count);

/// Shares of the memory, in bytes.
#[derive(Debug, Clone, Copy)]
struct MemoryLimits {
    hours_bytes: usize,
    pending_bytes: usize,
    names_bytes: usize,
}

impl MemoryLimits {
    fn from_total(bytes: usize) -> Self {
        Self {
            hours_bytes: bytes / 2,
            pending_bytes: bytes / 3,
            names_bytes: bytes / 6,
        }
    }
}

#[derive(Default)]
struct State {
    /// Per hour and group, the whole hour's count, committed and pending together.
    hours: BTreeMap<i64, HashMap<Arc<str>, Count>>,
    hours_bytes: usize,
    /// The newest second that has events, since 1970.
    newest: Option<i64>,
    /// Hours before this one are not in memory.
    hours_from: Option<i64>,
    pending: Arc<PendingBlocks>,
    pending_bytes: usize,
    /// Interned texts of groups.
    names: HashSet<Arc<str>>,
    names_bytes: usize,
    applied: Lsn,
    /// The pending blocks are above this checkpoint.
    committed: Lsn,
}

impl State {
    fn has_hour(&self, hour: i64) -> bool {
        self.hours_from.is_none_or(|from| hour >= from)
    }

    /// The interned text of a group. All texts are dropped when they exceed `max_bytes`.
    fn intern(&mut self, text: &str, max_bytes: usize) -> Arc<str> {
        if let Some(name) = self.names.get(text) {
            return name.clone();
        }
        let name: Arc<str> = text.into();
        self.names_bytes += NAME_BYTES + text.len();
        if self.names_bytes > max_bytes {
            (self.names, self.names_bytes) = (HashSet::new(), 0);
        } else {
            self.names.insert(name.clone());
        }
        name
    }

    /// Adds to the total of an hour in memory; evicts the oldest hours beyond `max_bytes`.
    fn add_to_hour(&mut self, hour: i64, group: Arc<str>, count: Count, max_bytes: usize) {
        if !self.has_hour(hour) {
            return;
        }
        match self.hours.entry(hour).or_default().entry(group) {
            Entry::Occupied(mut known) => known.get_mut().add(count),
            Entry::Vacant(free) => {
                self.hours_bytes += HOUR_TOTAL_BYTES + free.key().len();
                free.insert(count);
            }
        }
        while self.hours_bytes > max_bytes {
            let Some((hour, groups)) = self.hours.pop_first() else {
                return;
            };
            self.hours_bytes -= hour_bytes(&groups);
            self.hours_from = Some(hour + 1);
        }
    }

    fn add_pending(&mut self, hour: i64, group: Arc<str>, second: u16, count: Count) {
        let block = match Arc::make_mut(&mut self.pending).entry((hour, group)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(free) => {
                self.pending_bytes += PENDING_BLOCK_BYTES + free.key().1.len();
                free.insert(Block::new())
            }
        };
        let seconds = block.len();
        block.entry(second).or_default().add(count);
        self.pending_bytes += (block.len() - seconds) * SECOND_BYTES;
    }

    fn clear_pending(&mut self) {
        (self.pending, self.pending_bytes) = (Arc::default(), 0);
    }

    /// Drops the hours before one.
    fn drop_hours_before(&mut self, hour: i64) {
        let retained = self.hours.split_off(&hour);
        let dropped = std::mem::replace(&mut self.hours, retained);
        self.hours_bytes -= dropped.values().map(hour_bytes).sum::<usize>();
    }
}

fn hour_bytes(groups: &HashMap<Arc<str>, Count>) -> usize {
    groups
        .keys()
        .map(|group| HOUR_TOTAL_BYTES + group.len())
        .sum()
}

/// The counts of one stream, for queries.
pub struct Counts {
    file: StateStore,
    limits: MemoryLimits,
    state: RwLock<State>,
}

fn failed(error: impl Into<redb::Error>) -> ViewError {
    let error: redb::Error = error.into();
    ViewError::failed("counts")(error)
}

fn key(hour: i64, group: &str) -> Vec<u8> {
    let mut key = (hour as u64 ^ (1 << 63)).to_be_bytes().to_vec();
    key.extend_from_slice(group.as_bytes());
    key
}

fn split_key(key: &[u8]) -> Option<(i64, &str)> {
    let (hour, group) = key.split_first_chunk::<8>()?;
    Some((
        (u64::from_be_bytes(*hour) ^ (1 << 63)) as i64,
        std::str::from_utf8(group).ok()?,
    ))
}

/// Per second that has events: u16 second, u32 distinct, u32 total, little-endian.
fn encode(block: &Block) -> Vec<u8> {
    let mut out = Vec::with_capacity(block.len() * 10);
    for (second, count) in block {
        out.extend_from_slice(&second.to_le_bytes());
        out.extend_from_slice(
            &u32::try_from(count.distinct)
                .unwrap_or(u32::MAX)
                .to_le_bytes(),
        );
        out.extend_from_slice(&u32::try_from(count.total).unwrap_or(u32::MAX).to_le_bytes());
    }
    out
}

fn decode(bytes: &[u8]) -> impl Iterator<Item = (u16, Count)> {
    bytes.chunks_exact(10).map(|c| {
        let second = u16::from_le_bytes([c[0], c[1]]);
        let number =
            |at: usize| u64::from(u32::from_le_bytes([c[at], c[at + 1], c[at + 2], c[at + 3]]));
        (
            second,
            Count {
                distinct: number(2),
                total: number(6),
            },
        )
    })
}

impl Counts {
    /// Opens the counts of a stream within `memory` bytes; `None` where the file does not exist and
    /// `writable` is false.
    pub fn open(path: &Path, memory: usize, writable: bool) -> Result<Option<Self>, ViewError> {
        let Some(file) = StateStore::open_as(path, memory / 4, writable)? else {
            return Ok(None);
        };
        let counts = Self {
            file,
            limits: MemoryLimits::from_total(memory - memory / 4),
            state: RwLock::default(),
        };
        counts.load()?;
        Ok(Some(counts))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Discards what is not committed.
    fn reopen(&self) -> Result<(), ViewError> {
        self.file.reopen()?;
        self.load()
    }

    /// Reads totals from the newest hour back, up to the memory limit.
    fn load(&self) -> Result<(), ViewError> {
        let mut loaded = State::default();
        if let Some(table) = open_table(&self.file.read()?, BLOCKS)? {
            for entry in table.iter().map_err(failed)?.rev() {
                let (key, value) = entry.map_err(failed)?;
                let Some((hour, group)) = split_key(key.value()) else {
                    continue;
                };
                let mut count = Count::default();
                let mut last = None;
                for (second, in_second) in decode(value.value()) {
                    last = Some(hour * SECONDS_PER_HOUR + i64::from(second));
                    count.add(in_second);
                }
                loaded.newest = loaded.newest.max(last);
                let group = loaded.intern(group, self.limits.names_bytes);
                // The newest come first: beyond the limit the hour that is being read is evicted,
                // and all before it.
                loaded.add_to_hour(hour, group, count, self.limits.hours_bytes);
                if !loaded.has_hour(hour) {
                    break;
                }
            }
        }
        let mut state = self.write();
        *state = State {
            applied: state.applied,
            committed: state.committed,
            ..loaded
        };
        Ok(())
    }

    /// The committed checkpoint; an error where it belongs to another log.
    pub fn checkpoint(&self, log: LogIdentity) -> Result<Lsn, ViewError> {
        self.file.checkpoint(log)
    }

    /// Copies what is committed into a new file.
    pub fn copy_to(&self, path: &Path) -> Result<(), ViewError> {
        self.file.copy_to(path, |read, write| {
            copy_table(BLOCKS, read, write)?;
            copy_table(DAYS, read, write)
        })
    }

    /// In memory, everything up to this LSN is applied.
    pub fn applied(&self) -> Lsn {
        self.read().applied
    }

    /// Publishes how far the view is.
    pub fn set_applied(&self, lsn: Lsn) {
        self.write().applied = lsn;
    }

    /// Bytes in memory, approximately.
    pub fn memory_bytes(&self) -> usize {
        let state = self.read();
        state.hours_bytes + state.pending_bytes + state.names_bytes
    }

    /// Emits the counts of groups in the seconds of `from..to`, both whole seconds, in parts: a
    /// group may come more than once. Returns the LSN that they reflect.
    pub fn count(&self, from: Micros, to: Micros, emit: EmitCount<'_>) -> Result<Lsn, ViewError> {
        let state = self.read();
        let applied = state.applied;
        if from >= to {
            return Ok(applied);
        }
        let (first, last) = (
            bucket(from, MICROS_PER_HOUR),
            bucket(to - 1, MICROS_PER_HOUR),
        );
        let hours_from = state
            .hours_from
            .map_or(first, |from| from.clamp(first, last + 1));
        let mut partial = Vec::new();
        for (hour, groups) in state.hours.range(hours_from..last + 1) {
            let start = hour * MICROS_PER_HOUR;
            if from <= start && start + MICROS_PER_HOUR <= to {
                groups.iter().for_each(|(group, count)| emit(group, *count));
            } else {
                partial.push(*hour);
            }
        }
        let is_read = |hour| (first..hours_from).contains(&hour) || partial.contains(&hour);
        let stored = StoredCounts::open(&self.file, &state, is_read)?;
        // What is stored may be millions of groups and days, for which the view must not wait.
        drop(state);
        stored.add(first, hours_from, from, to, emit)?;
        for hour in partial {
            stored.add_hour(hour, from, to, emit)?;
        }
        Ok(applied)
    }

    /// The newest second that has events, since 1970.
    pub fn newest_second(&self) -> Option<i64> {
        self.read().newest
    }

    /// Emits the counts of groups by second, in the range `from..to` of whole seconds, in parts: a
    /// group and second may come more than once. Reads the blocks of each hour of the range, so it is
    /// for few hours. Returns the LSN that the counts reflect.
    pub fn by_second(
        &self,
        from: Micros,
        to: Micros,
        emit: EmitSecond<'_>,
    ) -> Result<Lsn, ViewError> {
        let state = self.read();
        let applied = state.applied;
        if from >= to {
            return Ok(applied);
        }
        let first = bucket(from, MICROS_PER_HOUR);
        let last = bucket(to - 1, MICROS_PER_HOUR);
        let is_read = |hour| (first..=last).contains(&hour);
        let stored = StoredCounts::open(&self.file, &state, is_read)?;
        drop(state);
        for hour in first..=last {
            stored.each_second(hour, from, to, emit)?;
        }
        Ok(applied)
    }
}

/// The file as one transaction sees it, and the pending blocks above it.
struct StoredCounts {
    blocks: Option<ReadOnlyTable<&'static [u8], &'static [u8]>>,
    days: Option<ReadOnlyTable<&'static [u8], (u64, u64)>>,
    pending: PendingBlocks,
}

impl StoredCounts {
    /// With the pending blocks of the hours that are read: a copy, since the view would copy all of
    /// them at its next row if they were shared.
    fn open(
        file: &StateStore,
        state: &State,
        is_read: impl Fn(i64) -> bool,
    ) -> Result<Self, ViewError> {
        let transaction = file.read()?;
        // A commit may have happened since the state was locked: what was pending is then in the
        // file.
        let is_committed =
            super::state_store::checkpoint_in(&transaction)?.is_some_and(|p| p > state.committed);
        let pending = state.pending.iter();
        let read = pending.filter(|((hour, _), _)| !is_committed && is_read(*hour));
        let copied = read.map(|(key, block)| (key.clone(), block.clone()));
        Ok(Self {
            blocks: open_table(&transaction, BLOCKS)?,
            days: open_table(&transaction, DAYS)?,
            pending: copied.collect(),
        })
    }

    /// Emits the seconds of the hours `first..end` that are in the range: whole days by their
    /// totals.
    fn add(
        &self,
        first: i64,
        end: i64,
        from: Micros,
        to: Micros,
        emit: EmitCount<'_>,
    ) -> Result<(), ViewError> {
        if first >= end {
            return Ok(());
        }
        let first_day = -(-from).div_euclid(MICROS_PER_DAY);
        let end_day = to.min(end * MICROS_PER_HOUR).div_euclid(MICROS_PER_DAY);
        // Without a whole day the range is shorter than two.
        let (before, after) = if first_day < end_day {
            self.add_days(first_day, end_day, emit)?;
            (
                first..first_day * HOURS_PER_DAY,
                end_day * HOURS_PER_DAY..end,
            )
        } else {
            (first..end, end..end)
        };
        before
            .chain(after)
            .try_for_each(|hour| self.add_hour(hour, from, to, emit))
    }

    fn add_days(&self, first: i64, end: i64, emit: EmitCount<'_>) -> Result<(), ViewError> {
        if let Some(days) = &self.days {
            let (low, high) = (key(first, ""), key(end, ""));
            for entry in days
                .range::<&[u8]>(low.as_slice()..high.as_slice())
                .map_err(failed)?
            {
                let (key, value) = entry.map_err(failed)?;
                let (distinct, total) = value.value();
                if let Some((_, group)) = split_key(key.value()) {
                    emit(group, Count { distinct, total });
                }
            }
        }
        let hours = first * HOURS_PER_DAY..end * HOURS_PER_DAY;
        for ((_, group), block) in self.pending.iter().filter(|((h, _), _)| hours.contains(h)) {
            block.values().for_each(|count| emit(group, *count));
        }
        Ok(())
    }

    /// Emits those seconds of an hour that are in the range.
    fn add_hour(
        &self,
        hour: i64,
        from: Micros,
        to: Micros,
        emit: EmitCount<'_>,
    ) -> Result<(), ViewError> {
        self.each_second(hour, from, to, &mut |group, _, count| emit(group, count))
    }

    /// Emits those seconds of an hour that are in the range, each with its time.
    fn each_second(
        &self,
        hour: i64,
        from: Micros,
        to: Micros,
        emit: EmitSecond<'_>,
    ) -> Result<(), ViewError> {
        let mut add = |group: &str, (second, count): (u16, Count)| {
            let since_epoch = hour * SECONDS_PER_HOUR + i64::from(second);
            let at = since_epoch * MICROS_PER_SECOND;
            if from <= at && at < to {
                emit(group, since_epoch, count);
            }
        };
        if let Some(blocks) = &self.blocks {
            let (low, high) = (key(hour, ""), key(hour + 1, ""));
            for entry in blocks
                .range::<&[u8]>(low.as_slice()..high.as_slice())
                .map_err(failed)?
            {
                let (key, value) = entry.map_err(failed)?;
                if let Some((_, group)) = split_key(key.value()) {
                    decode(value.value()).for_each(|part| add(group, part));
                }
            }
        }
        for ((_, group), block) in self.pending.iter().filter(|((h, _), _)| *h == hour) {
            block
                .iter()
                .for_each(|(second, count)| add(group, (*second, *count)));
        }
        Ok(())
    }
}

/// Maintains the counts of one stream.
pub struct CountsView {
    counts: Arc<Counts>,
    stream: Arc<Stream>,
    log: LogIdentity,
    cursor: Cursor,
    /// Hours before this one are below the retention floor.
    floor: Option<i64>,
    /// Hours before this one have been deleted from the file.
    deleted_before: Option<i64>,
}

impl CountsView {
    /// A view that continues at the committed checkpoint; an error where it belongs to another log.
    pub fn new(
        counts: Arc<Counts>,
        stream: Arc<Stream>,
        log: LogIdentity,
    ) -> Result<Self, ViewError> {
        let committed = counts.checkpoint(log)?;
        counts.set_applied(committed);
        counts.write().committed = committed;
        let cursor = Cursor::new(ViewId::counts(&stream.name), committed);
        Ok(Self {
            counts,
            stream,
            log,
            cursor,
            floor: None,
            deleted_before: None,
        })
    }

    /// Adds rows from `from` on, until the pending blocks are full; returns the row that follows.
    fn add_until_full(&mut self, rows: &StreamRows, from: usize) -> usize {
        let Some(def) = &self.stream.def.count else {
            return rows.batch.num_rows();
        };
        let batch = &rows.batch;
        let texts: Vec<Option<&StringArray>> = std::iter::once(&def.kind)
            .chain(&def.by)
            .map(|c| {
                batch
                    .column_by_name(c)
                    .and_then(|a| a.as_any().downcast_ref())
            })
            .collect();
        let times = batch
            .column(1)
            .as_any()
            .downcast_ref::<TimestampMicrosecondArray>();
        let duplicates = batch
            .column_by_name("is_duplicate")
            .and_then(|a| a.as_any().downcast_ref::<BooleanArray>());
        let Some(times) = times else {
            return batch.num_rows();
        };
        let (mut text, limits) = (String::new(), self.counts.limits);
        let mut state = self.counts.write();
        for (row, lsn) in rows.lsns().iter().enumerate().skip(from) {
            if *lsn as u64 <= self.cursor.applied() {
                continue;
            }
            if state.pending_bytes >= limits.pending_bytes.max(1) {
                return row;
            }
            text.clear();
            for (n, column) in texts.iter().enumerate() {
                let valid = column.filter(|c| c.is_valid(row));
                group::push(&mut text, n == 0, valid.map_or("", |c| c.value(row)));
            }
            let group = state.intern(&text, limits.names_bytes);
            let time = times.value(row);
            let hour = bucket(time, MICROS_PER_HOUR);
            let second = ((time - hour * MICROS_PER_HOUR) / MICROS_PER_SECOND) as u16;
            let count = Count {
                distinct: u64::from(!duplicates.is_some_and(|r| r.value(row))),
                total: 1,
            };
            let since_epoch = hour * SECONDS_PER_HOUR + i64::from(second);
            state.newest = state.newest.max(Some(since_epoch));
            state.add_to_hour(hour, group.clone(), count, limits.hours_bytes);
            state.add_pending(hour, group, second, count);
        }
        batch.num_rows()
    }

    /// Writes the pending blocks and adds them to the totals of their days.
    fn write_pending(
        transaction: &redb::WriteTransaction,
        pending: &PendingBlocks,
    ) -> Result<(), redb::Error> {
        let mut blocks = transaction.open_table(BLOCKS)?;
        let mut days = transaction.open_table(DAYS)?;
        let mut day_counts: BTreeMap<(i64, &str), Count> = BTreeMap::new();
        // In the order of the file.
        let mut pending: Vec<(&(i64, Arc<str>), &Block)> = pending.iter().collect();
        pending.sort_unstable_by_key(|(key, _)| *key);
        for ((hour, group), added) in pending {
            let key = key(*hour, group);
            let mut block: Block = blocks
                .get(key.as_slice())?
                .map(|v| decode(v.value()).collect())
                .unwrap_or_default();
            let day = day_counts
                .entry((hour.div_euclid(HOURS_PER_DAY), group))
                .or_default();
            for (second, count) in added {
                block.entry(*second).or_default().add(*count);
                day.add(*count);
            }
            blocks.insert(key.as_slice(), encode(&block).as_slice())?;
        }
        for ((day, group), count) in day_counts {
            let key = key(day, group);
            let before = days.get(key.as_slice())?.map_or((0, 0), |v| v.value());
            let after = (before.0 + count.distinct, before.1 + count.total);
            days.insert(key.as_slice(), after)?;
        }
        Ok(())
    }

    /// Deletes the hours before `floor`. It may be within a day: the deleted hours are subtracted
    /// from that day's total.
    fn delete_before(transaction: &redb::WriteTransaction, floor: i64) -> Result<(), redb::Error> {
        let mut blocks = transaction.open_table(BLOCKS)?;
        let mut days = transaction.open_table(DAYS)?;
        let day = floor.div_euclid(HOURS_PER_DAY);
        let mut deleted: HashMap<String, Count> = HashMap::new();
        blocks.retain_in::<&[u8], _>(..key(floor, "").as_slice(), |key, value| {
            if let Some((_, group)) =
                split_key(key).filter(|(hour, _)| hour.div_euclid(HOURS_PER_DAY) == day)
            {
                let sum = deleted.entry(group.to_owned()).or_default();
                decode(value).for_each(|(_, count)| sum.add(count));
            }
            false
        })?;
        days.retain_in::<&[u8], _>(..key(day, "").as_slice(), |_, _| false)?;
        for (group, count) in deleted {
            let key = key(day, &group);
            let before = days.get(key.as_slice())?.map_or((0, 0), |v| v.value());
            let after = (
                before.0.saturating_sub(count.distinct),
                before.1.saturating_sub(count.total),
            );
            days.insert(key.as_slice(), after)?;
        }
        Ok(())
    }
}

impl StreamView for CountsView {
    fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    fn cursor_mut(&mut self) -> &mut Cursor {
        &mut self.cursor
    }

    fn stream(&self) -> &str {
        &self.stream.name
    }

    fn publish_applied(&self) {
        self.counts.set_applied(self.cursor.applied());
    }

    /// When the pending blocks are full within the frame, commits at the last record added.
    fn add(&mut self, rows: &StreamRows, now: Instant) -> Result<(), ViewError> {
        let mut next = 0;
        loop {
            next = self.add_until_full(rows, next);
            self.cursor.mark_dirty(now);
            if next == rows.batch.num_rows() {
                return Ok(());
            }
            if let Some(last) = next.checked_sub(1) {
                self.cursor.advance_to(rows.lsns()[last] as Lsn);
                self.publish_applied();
            }
            self.commit(true)?;
        }
    }

    fn raise_floor(&mut self, floor: Option<Micros>) {
        let hour = floor.map(|floor| bucket(floor, MICROS_PER_HOUR));
        self.floor = self.floor.max(hour);
    }

    fn is_commit_due(&self, age: Duration, _caught_up: bool) -> bool {
        age >= COMMIT_AFTER || self.counts.read().pending_bytes >= self.counts.limits.pending_bytes
    }

    fn write(&mut self) -> Result<(), ViewError> {
        // Only this thread changes the pending blocks, so they are written without the lock.
        let pending = self.counts.read().pending.clone();
        let floor = self.floor.filter(|_| self.floor > self.deleted_before);
        let applied = self.cursor.applied();
        self.counts.file.commit(self.log, applied, |transaction| {
            Self::write_pending(transaction, &pending)?;
            floor.map_or(Ok(()), |floor| Self::delete_before(transaction, floor))
        })?;
        let mut state = self.counts.write();
        if let Some(floor) = floor {
            state.drop_hours_before(floor);
            self.deleted_before = self.floor;
        }
        state.clear_pending();
        state.committed = applied;
        Ok(())
    }

    fn reload(&mut self) -> Result<Lsn, ViewError> {
        self.counts.reopen()?;
        let committed = self.counts.checkpoint(self.log)?;
        self.counts.write().committed = committed;
        Ok(committed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Count = Count {
        distinct: 1,
        total: 1,
    };

    #[test]
    fn the_oldest_hours_leave_memory_when_it_is_full() {
        let mut state = State::default();
        let max = 2 * (HOUR_TOTAL_BYTES + 1);
        for hour in [10, 11, 11, 12] {
            state.add_to_hour(hour, "a".into(), ONE, max);
        }
        assert_eq!(state.hours.keys().copied().collect::<Vec<_>>(), [11, 12]);
        assert_eq!((state.hours_from, state.hours_bytes), (Some(11), max));
        // An hour that left does not come back in part.
        state.add_to_hour(10, "a".into(), ONE, max);
        assert!(!state.has_hour(10) && !state.hours.contains_key(&10));
        state.drop_hours_before(12);
        assert_eq!(state.hours_bytes, max / 2);
    }

    #[test]
    fn pending_bytes_grow_with_blocks_and_seconds() {
        let mut state = State::default();
        let first = PENDING_BLOCK_BYTES + 1 + SECOND_BYTES;
        for (hour, second, bytes) in [
            (7, 1, first),
            (7, 1, first),
            (7, 2, first + SECOND_BYTES),
            (8, 2, 2 * first + SECOND_BYTES),
        ] {
            state.add_pending(hour, "a".into(), second, ONE);
            assert_eq!(state.pending_bytes, bytes, "hour {hour}, second {second}");
        }
        state.clear_pending();
        assert_eq!((state.pending.len(), state.pending_bytes), (0, 0));
    }

    #[test]
    fn keys_and_blocks_read_back_and_keys_are_in_the_order_of_time() {
        for (hour, group) in [(i64::MIN, "a"), (-1, ""), (0, "b\u{1f}c"), (i64::MAX, "é")] {
            assert_eq!(split_key(&key(hour, group)), Some((hour, group)));
        }
        assert!(key(-1, "z") < key(0, "a") && key(0, "z") < key(1, ""));
        let count = |distinct, total| Count { distinct, total };
        let block = Block::from([(0, count(1, 2)), (3_599, count(0, 9))]);
        assert_eq!(decode(&encode(&block)).collect::<Block>(), block);
    }
}
