//! How many events of each type and group, per second: blocks of an hour and totals of days in redb, totals of the newest hours
//! in memory, so that any range of whole seconds is a sum over days, hours and two edges. Memory holds whole hours from some
//! hour on; that hour rises when the share is full.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use arrow::array::{Array, BooleanArray, StringArray, TimestampMicrosecondArray};
use redb::{ReadOnlyTable, ReadableTable, TableDefinition};

use super::database::{Origin, StateFile, copy_table, open_table};
use super::{View, ViewError};
use crate::event::{Lsn, MICROS_PER_DAY, MICROS_PER_HOUR, MICROS_PER_SECOND, Micros, bucket};
use crate::operators::{Output, StreamRows, positions};
use crate::schema::Stream;

/// Key: hour since 1970 (big-endian, sign flipped), then the group's text. Value: see [`encode`].
const BLOCKS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("blocks");
/// Key: as of blocks, with the day since 1970. Value: the day's acts and all, in whatever of its hours is kept.
const DAYS: TableDefinition<&[u8], (u64, u64)> = TableDefinition::new("days");
const HOURS_PER_DAY: i64 = 24;
const COMMIT_AFTER: Duration = Duration::from_secs(1);
/// Memory of a group's total of an hour, with its name's share, and of a block that waits for its commit.
const TOTAL_BYTES: usize = 96;
const WAITING_BYTES: usize = 384;

/// Joins a group's values; a null value is an empty text.
pub const SEPARATOR: char = '\u{1f}';

/// Events that said something new, and all with repeats.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub acts: u64,
    pub all: u64,
}

impl Tally {
    pub fn add(&mut self, other: Self) {
        self.acts += other.acts;
        self.all += other.all;
    }
}

type Block = BTreeMap<u16, Tally>;

/// How much may be held in memory.
#[derive(Debug, Clone, Copy)]
struct Room {
    totals: usize,
    waiting: usize,
}

impl Room {
    fn of(bytes: usize) -> Self {
        Self { totals: bytes * 2 / 3 / TOTAL_BYTES, waiting: (bytes / 3 / WAITING_BYTES).max(1) }
    }
}

#[derive(Default)]
struct State {
    /// Per hour and group, the whole hour's tally, commits and what waits together.
    totals: BTreeMap<i64, HashMap<Arc<str>, Tally>>,
    /// Totals held.
    held: usize,
    /// Hours before this one are not held.
    held_from: Option<i64>,
    /// What waits for its commit.
    waiting: HashMap<(i64, Arc<str>), Block>,
    applied: Lsn,
    /// What waits lies above this position.
    committed: Lsn,
}

impl State {
    fn is_held(&self, hour: i64) -> bool {
        self.held_from.is_none_or(|from| hour >= from)
    }

    /// Lets the oldest hours go until what is held has room.
    fn make_room(&mut self, most: usize) {
        while self.held > most {
            let Some((hour, groups)) = self.totals.pop_first() else { return };
            self.held -= groups.len();
            self.held_from = Some(hour + 1);
        }
    }

    /// Forgets the hours before one.
    fn forget_before(&mut self, hour: i64) {
        let kept = self.totals.split_off(&hour);
        let gone = std::mem::replace(&mut self.totals, kept);
        self.held -= gone.values().map(HashMap::len).sum::<usize>();
    }
}

/// What queries read.
pub struct Counts {
    file: StateFile,
    room: Room,
    state: RwLock<State>,
}

fn failed(error: impl Into<redb::Error>) -> ViewError {
    ViewError::Failed { view: "counts".into(), reason: error.into().to_string() }
}

fn key(hour: i64, group: &str) -> Vec<u8> {
    let mut key = (hour as u64 ^ (1 << 63)).to_be_bytes().to_vec();
    key.extend_from_slice(group.as_bytes());
    key
}

fn split_key(key: &[u8]) -> Option<(i64, &str)> {
    let (hour, group) = key.split_first_chunk::<8>()?;
    Some(((u64::from_be_bytes(*hour) ^ (1 << 63)) as i64, std::str::from_utf8(group).ok()?))
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

fn decode(bytes: &[u8]) -> impl Iterator<Item = (u16, Tally)> {
    bytes.chunks_exact(10).map(|c| {
        let second = u16::from_le_bytes([c[0], c[1]]);
        let number = |at: usize| u64::from(u32::from_le_bytes([c[at], c[at + 1], c[at + 2], c[at + 3]]));
        (second, Tally { acts: number(2), all: number(6) })
    })
}

impl Counts {
    /// Opens the counts of a stream within `memory` bytes; none where there are none and `writable` is false.
    pub fn open(path: &Path, memory: usize, writable: bool) -> Result<Option<Self>, ViewError> {
        let Some(file) = StateFile::open_as(path, memory / 4, writable)? else { return Ok(None) };
        let counts = Self { file, room: Room::of(memory - memory / 4), state: RwLock::default() };
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
        let mut loaded = State::default();
        let mut names: HashMap<String, Arc<str>> = HashMap::new();
        if let Some(table) = open_table(&self.file.read()?, BLOCKS)? {
            for entry in table.iter().map_err(failed)?.rev() {
                let (key, value) = entry.map_err(failed)?;
                let Some((hour, group)) = split_key(key.value()) else { continue };
                if loaded.held >= self.room.totals && !loaded.totals.contains_key(&hour) {
                    loaded.held_from = Some(hour + 1);
                    break;
                }
                let group = names.entry(group.to_owned()).or_insert_with(|| group.into()).clone();
                let groups = loaded.totals.entry(hour).or_default();
                let before = groups.len();
                let tally = groups.entry(group).or_default();
                decode(value.value()).for_each(|(_, t)| tally.add(t));
                loaded.held += groups.len() - before;
            }
        }
        loaded.make_room(self.room.totals);
        let mut state = self.write();
        (state.totals, state.held, state.held_from) = (loaded.totals, loaded.held, loaded.held_from);
        state.waiting.clear();
        Ok(())
    }

    pub fn position(&self, origin: Origin) -> Result<Lsn, ViewError> {
        self.file.position(origin)
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
        state.held * TOTAL_BYTES + state.waiting.len() * WAITING_BYTES
    }

    /// Tallies by group of the seconds in `from..to`, both whole seconds, and the LSN they reach.
    pub fn count(&self, from: Micros, to: Micros) -> Result<(HashMap<Arc<str>, Tally>, Lsn), ViewError> {
        let mut sums = Sums::default();
        let state = self.read();
        if from < to {
            let (first, last) = (bucket(from, MICROS_PER_HOUR), bucket(to - 1, MICROS_PER_HOUR));
            let held_from = state.held_from.map_or(first, |from| from.clamp(first, last + 1));
            let stored = Stored::open(&self.file, &state)?;
            stored.add(first, held_from, from, to, &mut sums)?;
            for (hour, groups) in state.totals.range(held_from..last + 1) {
                let start = hour * MICROS_PER_HOUR;
                if from <= start && start + MICROS_PER_HOUR <= to {
                    groups.iter().for_each(|(group, tally)| sums.add(group, *tally));
                } else {
                    stored.add_hour(*hour, from, to, &mut sums)?;
                }
            }
        }
        Ok((sums.0, state.applied))
    }
}

#[derive(Default)]
struct Sums(HashMap<Arc<str>, Tally>);

impl Sums {
    fn add(&mut self, group: &str, tally: Tally) {
        match self.0.get_mut(group) {
            Some(sum) => sum.add(tally),
            None => drop(self.0.insert(group.into(), tally)),
        }
    }
}

/// What is in the file, and what waits above it.
struct Stored<'a> {
    blocks: Option<ReadOnlyTable<&'static [u8], &'static [u8]>>,
    days: Option<ReadOnlyTable<&'static [u8], (u64, u64)>>,
    waiting: Option<&'a HashMap<(i64, Arc<str>), Block>>,
}

impl<'a> Stored<'a> {
    fn open(file: &StateFile, state: &'a State) -> Result<Self, ViewError> {
        let transaction = file.read()?;
        // A commit may have happened since the state was locked: what waited is then in the file.
        let is_committed = super::database::position_in(&transaction)?.is_some_and(|p| p > state.committed);
        Ok(Self {
            blocks: open_table(&transaction, BLOCKS)?,
            days: open_table(&transaction, DAYS)?,
            waiting: (!is_committed).then_some(&state.waiting),
        })
    }

    /// Adds the seconds of the hours `first..end` that lie in the range: whole days by their totals.
    fn add(&self, first: i64, end: i64, from: Micros, to: Micros, sums: &mut Sums) -> Result<(), ViewError> {
        if first >= end {
            return Ok(());
        }
        let first_day = -(-from).div_euclid(MICROS_PER_DAY);
        let end_day = to.min(end * MICROS_PER_HOUR).div_euclid(MICROS_PER_DAY);
        // Without a whole day the range is shorter than two.
        let (before, after) = if first_day < end_day {
            self.add_days(first_day, end_day, sums)?;
            (first..first_day * HOURS_PER_DAY, end_day * HOURS_PER_DAY..end)
        } else {
            (first..end, end..end)
        };
        before.chain(after).try_for_each(|hour| self.add_hour(hour, from, to, sums))
    }

    fn add_days(&self, first: i64, end: i64, sums: &mut Sums) -> Result<(), ViewError> {
        if let Some(days) = &self.days {
            let (low, high) = (key(first, ""), key(end, ""));
            for entry in days.range::<&[u8]>(low.as_slice()..high.as_slice()).map_err(failed)? {
                let (key, value) = entry.map_err(failed)?;
                let (acts, all) = value.value();
                if let Some((_, group)) = split_key(key.value()) {
                    sums.add(group, Tally { acts, all });
                }
            }
        }
        let hours = first * HOURS_PER_DAY..end * HOURS_PER_DAY;
        for ((_, group), block) in self.waiting.iter().copied().flatten().filter(|((h, _), _)| hours.contains(h)) {
            block.values().for_each(|tally| sums.add(group, *tally));
        }
        Ok(())
    }

    /// Adds those seconds of an hour that lie in the range.
    fn add_hour(&self, hour: i64, from: Micros, to: Micros, sums: &mut Sums) -> Result<(), ViewError> {
        let start = hour * MICROS_PER_HOUR;
        let is_inside = |second: u16| {
            let at = start + i64::from(second) * MICROS_PER_SECOND;
            from <= at && at < to
        };
        let mut add = |group: &str, (second, tally): (u16, Tally)| {
            if is_inside(second) {
                sums.add(group, tally);
            }
        };
        if let Some(blocks) = &self.blocks {
            let (low, high) = (key(hour, ""), key(hour + 1, ""));
            for entry in blocks.range::<&[u8]>(low.as_slice()..high.as_slice()).map_err(failed)? {
                let (key, value) = entry.map_err(failed)?;
                if let Some((_, group)) = split_key(key.value()) {
                    decode(value.value()).for_each(|part| add(group, part));
                }
            }
        }
        for ((_, group), block) in self.waiting.iter().copied().flatten().filter(|((h, _), _)| *h == hour) {
            block.iter().for_each(|(second, tally)| add(group, (*second, *tally)));
        }
        Ok(())
    }
}

/// Keeps the counts of one stream.
pub struct CountsView {
    counts: Arc<Counts>,
    stream: Arc<Stream>,
    origin: Origin,
    name: String,
    applied: Lsn,
    committed: Lsn,
    since: Option<Instant>,
    groups: HashMap<String, Arc<str>>,
    /// Hours before this one are below the retention's floor.
    floor: Option<i64>,
    /// The hour before which everything has been deleted.
    swept: Option<i64>,
}

impl CountsView {
    pub fn new(counts: Arc<Counts>, stream: Arc<Stream>, origin: Origin) -> Result<Self, ViewError> {
        let committed = counts.position(origin)?;
        counts.set_applied(committed);
        counts.write().committed = committed;
        let name = positions::counts(&stream.name);
        let groups = HashMap::new();
        let (floor, swept) = (None, None);
        Ok(Self { counts, stream, origin, name, applied: committed, committed, since: None, groups, floor, swept })
    }

    fn add(&mut self, rows: &StreamRows) {
        let Some(def) = &self.stream.def.count else { return };
        let batch = &rows.batch;
        let texts: Vec<Option<&StringArray>> = std::iter::once(&def.kind)
            .chain(&def.by)
            .map(|c| batch.column_by_name(c).and_then(|a| a.as_any().downcast_ref()))
            .collect();
        let times = batch.column(1).as_any().downcast_ref::<TimestampMicrosecondArray>();
        let repeats = batch.column_by_name("repeat").and_then(|a| a.as_any().downcast_ref::<BooleanArray>());
        let Some(times) = times else { return };
        let mut text = String::new();
        let mut state = self.counts.write();
        for (row, lsn) in rows.lsns().iter().enumerate() {
            if *lsn as u64 <= self.applied {
                continue;
            }
            text.clear();
            for (n, column) in texts.iter().enumerate() {
                if n > 0 {
                    text.push(SEPARATOR);
                }
                text.push_str(column.filter(|c| c.is_valid(row)).map_or("", |c| c.value(row)));
            }
            let group = match self.groups.get(&text) {
                Some(group) => group.clone(),
                None => self.groups.entry(text.clone()).or_insert_with(|| text.as_str().into()).clone(),
            };
            let time = times.value(row);
            let hour = bucket(time, MICROS_PER_HOUR);
            let second = ((time - hour * MICROS_PER_HOUR) / MICROS_PER_SECOND) as u16;
            let tally = Tally { acts: u64::from(!repeats.is_some_and(|r| r.value(row))), all: 1 };
            if state.is_held(hour) {
                let groups = state.totals.entry(hour).or_default();
                let before = groups.len();
                groups.entry(group.clone()).or_default().add(tally);
                state.held += usize::from(groups.len() > before);
            }
            state.waiting.entry((hour, group)).or_default().entry(second).or_default().add(tally);
        }
        state.make_room(self.counts.room.totals);
        if self.groups.len() > self.counts.room.waiting {
            self.groups.clear();
        }
    }

    /// Writes the blocks that wait and the totals of their days.
    fn write(
        &self,
        transaction: &redb::WriteTransaction,
        waiting: &HashMap<(i64, Arc<str>), Block>,
    ) -> Result<(), redb::Error> {
        let mut blocks = transaction.open_table(BLOCKS)?;
        let mut days = transaction.open_table(DAYS)?;
        let mut added_to: BTreeMap<(i64, &str), Tally> = BTreeMap::new();
        for ((hour, group), added) in waiting {
            let key = key(*hour, group);
            let mut block: Block = blocks.get(key.as_slice())?.map(|v| decode(v.value()).collect()).unwrap_or_default();
            let day = added_to.entry((hour.div_euclid(HOURS_PER_DAY), group)).or_default();
            for (second, tally) in added {
                block.entry(*second).or_default().add(*tally);
                day.add(*tally);
            }
            blocks.insert(key.as_slice(), encode(&block).as_slice())?;
        }
        for ((day, group), tally) in added_to {
            let key = key(day, group);
            let before = days.get(key.as_slice())?.map_or((0, 0), |v| v.value());
            days.insert(key.as_slice(), (before.0 + tally.acts, before.1 + tally.all))?;
        }
        let Some(floor) = self.floor.filter(|_| self.floor > self.swept) else { return Ok(()) };
        // The floor may lie within a day: what leaves of it leaves its total.
        let day = floor.div_euclid(HOURS_PER_DAY);
        let mut left: HashMap<String, Tally> = HashMap::new();
        blocks.retain_in::<&[u8], _>(..key(floor, "").as_slice(), |key, value| {
            if let Some((_, group)) = split_key(key).filter(|(hour, _)| hour.div_euclid(HOURS_PER_DAY) == day) {
                let sum = left.entry(group.to_owned()).or_default();
                decode(value).for_each(|(_, tally)| sum.add(tally));
            }
            false
        })?;
        days.retain_in::<&[u8], _>(..key(day, "").as_slice(), |_, _| false)?;
        for (group, tally) in left {
            let key = key(day, &group);
            let before = days.get(key.as_slice())?.map_or((0, 0), |v| v.value());
            days.insert(key.as_slice(), (before.0.saturating_sub(tally.acts), before.1.saturating_sub(tally.all)))?;
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

    fn positions(&self) -> Vec<(String, Lsn)> {
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
        if let Some(rows) = output.rows.as_ref().filter(|r| r.stream.name == self.stream.name) {
            self.add(rows);
            self.since.get_or_insert(now);
            floor = floor.max(rows.floor);
        }
        self.floor = self.floor.max(floor.map(|floor| bucket(floor, MICROS_PER_HOUR)));
        self.applied = output.to;
        self.counts.set_applied(output.to);
        Ok(())
    }

    fn is_due(&self, now: Instant, _caught_up: bool) -> bool {
        self.since.is_some_and(|since| now.duration_since(since) >= COMMIT_AFTER)
            || self.counts.read().waiting.len() >= self.counts.room.waiting
    }

    fn commit(&mut self, _all: bool) -> Result<(), ViewError> {
        if self.since.is_none() {
            return Ok(());
        }
        // Only this thread changes what waits, so the lock need not be held while it is written.
        let waiting = self.counts.read().waiting.clone();
        self.counts.file.commit(self.origin, self.applied, |transaction| self.write(transaction, &waiting))?;
        let mut state = self.counts.write();
        if let Some(floor) = self.floor.filter(|_| self.floor > self.swept) {
            state.forget_before(floor);
            self.swept = self.floor;
        }
        state.waiting.clear();
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
        self.committed = self.counts.position(self.origin)?;
        self.applied = self.committed;
        self.since = None;
        self.counts.set_applied(self.applied);
        self.counts.write().committed = self.committed;
        Ok(())
    }
}
