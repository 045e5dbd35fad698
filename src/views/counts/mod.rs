//! How many events of each type and group, per second: blocks of an hour and totals of days in
//! redb, totals of the newest hours in memory, so that any range of whole seconds is a sum over
//! days, hours and two edges. Memory holds whole hours from some hour on; that hour rises when the
//! share is full. What waits for its commit is committed where its share is full, within a frame
//! too.

pub mod group;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use arrow::array::{Array, BooleanArray, StringArray, TimestampMicrosecondArray};
use redb::{ReadOnlyTable, ReadableTable, TableDefinition};

use super::state_store::{LogIdentity, StateStore, copy_table, open_table};
use super::{View, ViewError};
use crate::event::{Lsn, MICROS_PER_DAY, MICROS_PER_HOUR, MICROS_PER_SECOND, Micros, bucket};
use crate::operators::{Output, StreamRows, checkpoints};
use crate::schema::Stream;

/// Key: hour since 1970 (big-endian, sign flipped), then the group's text. Value: see [`encode`].
const BLOCKS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("blocks");
/// Key: as of blocks, with the day since 1970. Value: the day's acts and all, in whatever of its
/// hours is kept.
const DAYS: TableDefinition<&[u8], (u64, u64)> = TableDefinition::new("days");
const HOURS_PER_DAY: i64 = 24;
const COMMIT_AFTER: Duration = Duration::from_secs(1);
/// Memory beside a group's text: of its total of an hour, of a block that waits for its commit with
/// its first second, of each further second of that, and of a text that is remembered.
const TOTAL_BYTES: usize = 96;
const WAITING_BYTES: usize = 384;
const SECOND_BYTES: usize = 40;
const NAME_BYTES: usize = 64;

/// Events that said something new, and all with duplicates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    pub acts: u64,
    pub all: u64,
}

impl Count {
    pub fn add(&mut self, other: Self) {
        self.acts += other.acts;
        self.all += other.all;
    }
}

type Block = BTreeMap<u16, Count>;

type Waiting = HashMap<(i64, Arc<str>), Block>;

/// Bytes that may be held in memory.
#[derive(Debug, Clone, Copy)]
struct Room {
    totals: usize,
    waiting: usize,
    names: usize,
}

impl Room {
    fn of(bytes: usize) -> Self {
        Self {
            totals: bytes / 2,
            waiting: bytes / 3,
            names: bytes / 6,
        }
    }
}

#[derive(Default)]
struct State {
    /// Per hour and group, the whole hour's tally, commits and what waits together.
    totals: BTreeMap<i64, HashMap<Arc<str>, Count>>,
    /// Bytes of the totals held.
    held: usize,
    /// Hours before this one are not held.
    held_from: Option<i64>,
    /// What waits for its commit, and its bytes.
    waiting: Arc<Waiting>,
    waiting_bytes: usize,
    /// Texts of groups, so that each is in memory once, and their bytes.
    names: HashSet<Arc<str>>,
    names_bytes: usize,
    applied: Lsn,
    /// What waits lies above this checkpoint.
    committed: Lsn,
}

impl State {
    fn is_held(&self, hour: i64) -> bool {
        self.held_from.is_none_or(|from| hour >= from)
    }

    /// The text of a group, remembered within so many bytes.
    fn name(&mut self, text: &str, most: usize) -> Arc<str> {
        if let Some(name) = self.names.get(text) {
            return name.clone();
        }
        let name: Arc<str> = text.into();
        self.names_bytes += NAME_BYTES + text.len();
        if self.names_bytes > most {
            (self.names, self.names_bytes) = (HashSet::new(), 0);
        } else {
            self.names.insert(name.clone());
        }
        name
    }

    /// Adds to the total of an hour that is held; lets the oldest hours go until what is held has
    /// room.
    fn hold(&mut self, hour: i64, group: Arc<str>, tally: Count, most: usize) {
        if !self.is_held(hour) {
            return;
        }
        match self.totals.entry(hour).or_default().entry(group) {
            Entry::Occupied(mut known) => known.get_mut().add(tally),
            Entry::Vacant(free) => {
                self.held += TOTAL_BYTES + free.key().len();
                free.insert(tally);
            }
        }
        while self.held > most {
            let Some((hour, groups)) = self.totals.pop_first() else {
                return;
            };
            self.held -= held_bytes(&groups);
            self.held_from = Some(hour + 1);
        }
    }

    fn wait(&mut self, hour: i64, group: Arc<str>, second: u16, tally: Count) {
        let block = match Arc::make_mut(&mut self.waiting).entry((hour, group)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(free) => {
                self.waiting_bytes += WAITING_BYTES + free.key().1.len();
                free.insert(Block::new())
            }
        };
        let seconds = block.len();
        block.entry(second).or_default().add(tally);
        self.waiting_bytes += (block.len() - seconds) * SECOND_BYTES;
    }

    fn end_waiting(&mut self) {
        (self.waiting, self.waiting_bytes) = (Arc::default(), 0);
    }

    /// Forgets the hours before one.
    fn forget_before(&mut self, hour: i64) {
        let kept = self.totals.split_off(&hour);
        let gone = std::mem::replace(&mut self.totals, kept);
        self.held -= gone.values().map(held_bytes).sum::<usize>();
    }
}

fn held_bytes(groups: &HashMap<Arc<str>, Count>) -> usize {
    groups.keys().map(|group| TOTAL_BYTES + group.len()).sum()
}

/// What queries read.
pub struct Counts {
    file: StateStore,
    room: Room,
    state: RwLock<State>,
}

fn failed(error: impl Into<redb::Error>) -> ViewError {
    ViewError::Failed {
        view: "counts".into(),
        reason: error.into().to_string(),
    }
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

/// Per second that has events: u16 second, u32 acts, u32 all, little-endian.
fn encode(block: &Block) -> Vec<u8> {
    let mut out = Vec::with_capacity(block.len() * 10);
    for (second, tally) in block {
        out.extend_from_slice(&second.to_le_bytes());
        out.extend_from_slice(&u32::try_from(tally.acts).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&u32::try_from(tally.all).unwrap_or(u32::MAX).to_le_bytes());
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
                acts: number(2),
                all: number(6),
            },
        )
    })
}

impl Counts {
    /// Opens the counts of a stream within `memory` bytes; none where there are none and `writable`
    /// is false.
    pub fn open(path: &Path, memory: usize, writable: bool) -> Result<Option<Self>, ViewError> {
        let Some(file) = StateStore::open_as(path, memory / 4, writable)? else {
            return Ok(None);
        };
        let counts = Self {
            file,
            room: Room::of(memory - memory / 4),
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

    /// Gives up what is not committed.
    fn reopen(&self) -> Result<(), ViewError> {
        self.file.reopen()?;
        self.load()
    }

    /// Reads totals from the newest hour on, as many as have room.
    fn load(&self) -> Result<(), ViewError> {
        let (mut loaded, most) = (State::default(), self.room.totals);
        if let Some(table) = open_table(&self.file.read()?, BLOCKS)? {
            for entry in table.iter().map_err(failed)?.rev() {
                let (key, value) = entry.map_err(failed)?;
                let Some((hour, group)) = split_key(key.value()) else {
                    continue;
                };
                let mut tally = Count::default();
                decode(value.value()).for_each(|(_, t)| tally.add(t));
                let group = loaded.name(group, self.room.names);
                // The newest come first: where they have no room, the hour that is being read goes,
                // with all before it.
                loaded.hold(hour, group, tally, most);
                if !loaded.is_held(hour) {
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

    pub fn checkpoint(&self, origin: LogIdentity) -> Result<Lsn, ViewError> {
        self.file.checkpoint(origin)
    }

    /// Copies what is committed into a new file.
    pub fn copy_to(&self, path: &Path) -> Result<(), ViewError> {
        self.file.copy_to(path, |read, write| {
            copy_table(BLOCKS, read, write)?;
            copy_table(DAYS, read, write)
        })
    }

    pub fn applied(&self) -> Lsn {
        self.read().applied
    }

    pub fn set_applied(&self, lsn: Lsn) {
        self.write().applied = lsn;
    }

    /// Bytes held in memory, about.
    pub fn memory_bytes(&self) -> usize {
        let state = self.read();
        state.held + state.waiting_bytes + state.names_bytes
    }

    /// Gives the tallies of groups in the seconds of `from..to`, both whole seconds, in parts: a
    /// group may come more than once. Returns the LSN that they reach.
    pub fn count(
        &self,
        from: Micros,
        to: Micros,
        give: &mut dyn FnMut(&str, Count),
    ) -> Result<Lsn, ViewError> {
        let state = self.read();
        if from < to {
            let (first, last) = (
                bucket(from, MICROS_PER_HOUR),
                bucket(to - 1, MICROS_PER_HOUR),
            );
            let held_from = state
                .held_from
                .map_or(first, |from| from.clamp(first, last + 1));
            let stored = Stored::open(&self.file, &state)?;
            stored.add(first, held_from, from, to, give)?;
            for (hour, groups) in state.totals.range(held_from..last + 1) {
                let start = hour * MICROS_PER_HOUR;
                if from <= start && start + MICROS_PER_HOUR <= to {
                    groups.iter().for_each(|(group, tally)| give(group, *tally));
                } else {
                    stored.add_hour(*hour, from, to, give)?;
                }
            }
        }
        Ok(state.applied)
    }
}

type Give<'a> = &'a mut dyn FnMut(&str, Count);

/// What is in the file, and what waits above it.
struct Stored<'a> {
    blocks: Option<ReadOnlyTable<&'static [u8], &'static [u8]>>,
    days: Option<ReadOnlyTable<&'static [u8], (u64, u64)>>,
    waiting: Option<&'a Waiting>,
}

impl<'a> Stored<'a> {
    fn open(file: &StateStore, state: &'a State) -> Result<Self, ViewError> {
        let transaction = file.read()?;
        // A commit may have happened since the state was locked: what waited is then in the file.
        let is_committed =
            super::state_store::checkpoint_in(&transaction)?.is_some_and(|p| p > state.committed);
        Ok(Self {
            blocks: open_table(&transaction, BLOCKS)?,
            days: open_table(&transaction, DAYS)?,
            waiting: (!is_committed).then_some(state.waiting.as_ref()),
        })
    }

    /// Adds the seconds of the hours `first..end` that lie in the range: whole days by their
    /// totals.
    fn add(
        &self,
        first: i64,
        end: i64,
        from: Micros,
        to: Micros,
        give: Give<'_>,
    ) -> Result<(), ViewError> {
        if first >= end {
            return Ok(());
        }
        let first_day = -(-from).div_euclid(MICROS_PER_DAY);
        let end_day = to.min(end * MICROS_PER_HOUR).div_euclid(MICROS_PER_DAY);
        // Without a whole day the range is shorter than two.
        let (before, after) = if first_day < end_day {
            self.add_days(first_day, end_day, give)?;
            (
                first..first_day * HOURS_PER_DAY,
                end_day * HOURS_PER_DAY..end,
            )
        } else {
            (first..end, end..end)
        };
        before
            .chain(after)
            .try_for_each(|hour| self.add_hour(hour, from, to, give))
    }

    fn add_days(&self, first: i64, end: i64, give: Give<'_>) -> Result<(), ViewError> {
        if let Some(days) = &self.days {
            let (low, high) = (key(first, ""), key(end, ""));
            for entry in days
                .range::<&[u8]>(low.as_slice()..high.as_slice())
                .map_err(failed)?
            {
                let (key, value) = entry.map_err(failed)?;
                let (acts, all) = value.value();
                if let Some((_, group)) = split_key(key.value()) {
                    give(group, Count { acts, all });
                }
            }
        }
        let hours = first * HOURS_PER_DAY..end * HOURS_PER_DAY;
        for ((_, group), block) in self
            .waiting
            .iter()
            .copied()
            .flatten()
            .filter(|((h, _), _)| hours.contains(h))
        {
            block.values().for_each(|tally| give(group, *tally));
        }
        Ok(())
    }

    /// Adds those seconds of an hour that lie in the range.
    fn add_hour(
        &self,
        hour: i64,
        from: Micros,
        to: Micros,
        give: Give<'_>,
    ) -> Result<(), ViewError> {
        let start = hour * MICROS_PER_HOUR;
        let is_inside = |second: u16| {
            let at = start + i64::from(second) * MICROS_PER_SECOND;
            from <= at && at < to
        };
        let mut add = |group: &str, (second, tally): (u16, Count)| {
            if is_inside(second) {
                give(group, tally);
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
        for ((_, group), block) in self
            .waiting
            .iter()
            .copied()
            .flatten()
            .filter(|((h, _), _)| *h == hour)
        {
            block
                .iter()
                .for_each(|(second, tally)| add(group, (*second, *tally)));
        }
        Ok(())
    }
}

/// Keeps the counts of one stream.
pub struct CountsView {
    counts: Arc<Counts>,
    stream: Arc<Stream>,
    origin: LogIdentity,
    name: String,
    applied: Lsn,
    committed: Lsn,
    since: Option<Instant>,
    /// Hours before this one are below the retention's floor.
    floor: Option<i64>,
    /// The hour before which everything has been deleted.
    swept: Option<i64>,
}

impl CountsView {
    pub fn new(
        counts: Arc<Counts>,
        stream: Arc<Stream>,
        origin: LogIdentity,
    ) -> Result<Self, ViewError> {
        let committed = counts.checkpoint(origin)?;
        counts.set_applied(committed);
        counts.write().committed = committed;
        let name = checkpoints::counts(&stream.name);
        let (floor, swept) = (None, None);
        Ok(Self {
            counts,
            stream,
            origin,
            name,
            applied: committed,
            committed,
            since: None,
            floor,
            swept,
        })
    }

    /// Adds rows from one on, until too much waits; gives the row that follows.
    fn add(&mut self, rows: &StreamRows, from: usize) -> usize {
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
        let (mut text, room) = (String::new(), self.counts.room);
        let mut state = self.counts.write();
        for (row, lsn) in rows.lsns().iter().enumerate().skip(from) {
            if *lsn as u64 <= self.applied {
                continue;
            }
            if state.waiting_bytes >= room.waiting.max(1) {
                return row;
            }
            text.clear();
            for (n, column) in texts.iter().enumerate() {
                group::push(
                    &mut text,
                    n == 0,
                    column
                        .filter(|c| c.is_valid(row))
                        .map_or("", |c| c.value(row)),
                );
            }
            let group = state.name(&text, room.names);
            let time = times.value(row);
            let hour = bucket(time, MICROS_PER_HOUR);
            let second = ((time - hour * MICROS_PER_HOUR) / MICROS_PER_SECOND) as u16;
            let tally = Count {
                acts: u64::from(!duplicates.is_some_and(|r| r.value(row))),
                all: 1,
            };
            state.hold(hour, group.clone(), tally, room.totals);
            state.wait(hour, group, second, tally);
        }
        batch.num_rows()
    }

    /// Adds a frame's rows. Where too much waits, what was added of them is committed at its last
    /// record.
    fn add_all(&mut self, rows: &StreamRows, now: Instant) -> Result<(), ViewError> {
        let mut next = 0;
        loop {
            next = self.add(rows, next);
            self.since.get_or_insert(now);
            if next == rows.batch.num_rows() {
                return Ok(());
            }
            if let Some(last) = next.checked_sub(1) {
                self.applied = self.applied.max(rows.lsns()[last] as Lsn);
                self.counts.set_applied(self.applied);
            }
            self.commit(true)?;
        }
    }

    /// Writes the blocks that wait and the totals of their days.
    fn write(
        &self,
        transaction: &redb::WriteTransaction,
        waiting: &Waiting,
    ) -> Result<(), redb::Error> {
        let mut blocks = transaction.open_table(BLOCKS)?;
        let mut days = transaction.open_table(DAYS)?;
        let mut added_to: BTreeMap<(i64, &str), Count> = BTreeMap::new();
        // In the order of the file.
        let mut waiting: Vec<(&(i64, Arc<str>), &Block)> = waiting.iter().collect();
        waiting.sort_unstable_by_key(|(key, _)| *key);
        for ((hour, group), added) in waiting {
            let key = key(*hour, group);
            let mut block: Block = blocks
                .get(key.as_slice())?
                .map(|v| decode(v.value()).collect())
                .unwrap_or_default();
            let day = added_to
                .entry((hour.div_euclid(HOURS_PER_DAY), group))
                .or_default();
            for (second, tally) in added {
                block.entry(*second).or_default().add(*tally);
                day.add(*tally);
            }
            blocks.insert(key.as_slice(), encode(&block).as_slice())?;
        }
        for ((day, group), tally) in added_to {
            let key = key(day, group);
            let before = days.get(key.as_slice())?.map_or((0, 0), |v| v.value());
            days.insert(
                key.as_slice(),
                (before.0 + tally.acts, before.1 + tally.all),
            )?;
        }
        let Some(floor) = self.floor.filter(|_| self.floor > self.swept) else {
            return Ok(());
        };
        // The floor may lie within a day: what leaves of it leaves its total.
        let day = floor.div_euclid(HOURS_PER_DAY);
        let mut left: HashMap<String, Count> = HashMap::new();
        blocks.retain_in::<&[u8], _>(..key(floor, "").as_slice(), |key, value| {
            if let Some((_, group)) =
                split_key(key).filter(|(hour, _)| hour.div_euclid(HOURS_PER_DAY) == day)
            {
                let sum = left.entry(group.to_owned()).or_default();
                decode(value).for_each(|(_, tally)| sum.add(tally));
            }
            false
        })?;
        days.retain_in::<&[u8], _>(..key(day, "").as_slice(), |_, _| false)?;
        for (group, tally) in left {
            let key = key(day, &group);
            let before = days.get(key.as_slice())?.map_or((0, 0), |v| v.value());
            days.insert(
                key.as_slice(),
                (
                    before.0.saturating_sub(tally.acts),
                    before.1.saturating_sub(tally.all),
                ),
            )?;
        }
        Ok(())
    }
}

impl View for CountsView {
    fn name(&self) -> &str {
        &self.name
    }

    fn applied(&self) -> Lsn {
        self.applied
    }

    fn checkpoints(&self) -> Vec<(String, Lsn)> {
        vec![(self.name.clone(), self.committed)]
    }

    fn skip_to(&mut self, lsn: Lsn) {
        self.applied = self.applied.max(lsn);
        self.counts.set_applied(self.applied);
    }

    fn apply(&mut self, output: &Output, now: Instant) -> Result<(), ViewError> {
        if output.to <= self.applied {
            return Ok(());
        }
        let mut floor = output.floors.get(&self.stream.name).copied();
        if let Some(rows) = output
            .rows
            .as_ref()
            .filter(|r| r.stream.name == self.stream.name)
        {
            self.add_all(rows, now)?;
            floor = floor.max(rows.floor);
        }
        self.floor = self
            .floor
            .max(floor.map(|floor| bucket(floor, MICROS_PER_HOUR)));
        self.applied = output.to;
        self.counts.set_applied(output.to);
        Ok(())
    }

    fn is_due(&self, now: Instant, _caught_up: bool) -> bool {
        self.since
            .is_some_and(|since| now.duration_since(since) >= COMMIT_AFTER)
            || self.counts.read().waiting_bytes >= self.counts.room.waiting
    }

    fn commit(&mut self, _all: bool) -> Result<(), ViewError> {
        if self.since.is_none() {
            return Ok(());
        }
        // Only this thread changes what waits, so the lock need not be held while it is written.
        let waiting = self.counts.read().waiting.clone();
        self.counts
            .file
            .commit(self.origin, self.applied, |transaction| {
                self.write(transaction, &waiting)
            })?;
        let mut state = self.counts.write();
        if let Some(floor) = self.floor.filter(|_| self.floor > self.swept) {
            state.forget_before(floor);
            self.swept = self.floor;
        }
        state.end_waiting();
        state.committed = self.applied;
        drop(state);
        self.committed = self.applied;
        self.since = None;
        Ok(())
    }

    fn settle(&mut self) -> Result<(), ViewError> {
        self.since.get_or_insert_with(Instant::now);
        self.commit(true)
    }

    fn reopen(&mut self) -> Result<(), ViewError> {
        self.counts.reopen()?;
        self.committed = self.counts.checkpoint(self.origin)?;
        self.applied = self.committed;
        self.since = None;
        self.counts.set_applied(self.applied);
        self.counts.write().committed = self.committed;
        Ok(())
    }
}
