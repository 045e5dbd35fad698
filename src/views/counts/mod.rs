//! How many events of each type and group, per second: blocks of an hour in redb, totals of hours in memory, so that any range
//! of whole seconds is a sum over hours and two edges.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use arrow::array::{Array, BooleanArray, StringArray, TimestampMicrosecondArray};
use redb::{ReadableTable, TableDefinition};

use super::database::{Origin, StateFile, copy_table};
use super::{View, ViewError};
use crate::event::{Lsn, MICROS_PER_HOUR, MICROS_PER_SECOND, Micros, bucket};
use crate::operators::{Output, StreamRows, positions};
use crate::schema::Stream;

/// Key: hour since 1970 (big-endian, sign flipped), then the group's text. Value: see [`encode`].
const BLOCKS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("blocks");
const COMMIT_AFTER: Duration = Duration::from_secs(1);
const COMMIT_BLOCKS: usize = 50_000;

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

#[derive(Default)]
struct State {
    /// Per hour and group, the whole hour's tally, commits and what waits together.
    totals: BTreeMap<i64, HashMap<Arc<str>, Tally>>,
    /// What waits for its commit.
    waiting: HashMap<(i64, Arc<str>), Block>,
    applied: Lsn,
    /// What waits lies above this position.
    committed: Lsn,
}

/// What queries read.
pub struct Counts {
    file: StateFile,
    state: RwLock<State>,
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
    /// Opens the counts of a stream; none where there are none and `writable` is false.
    pub fn open(path: &Path, cache_bytes: usize, writable: bool) -> Result<Option<Self>, ViewError> {
        let file = if writable {
            Some(StateFile::open(path, cache_bytes)?)
        } else {
            StateFile::open_read_only(path, cache_bytes)?
        };
        let Some(file) = file else { return Ok(None) };
        let counts = Self { file, state: RwLock::default() };
        counts.load()?;
        Ok(Some(counts))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn load(&self) -> Result<(), ViewError> {
        let failed = |e: redb::Error| ViewError::Failed { view: "counts".into(), reason: e.to_string() };
        let mut totals: BTreeMap<i64, HashMap<Arc<str>, Tally>> = BTreeMap::new();
        let mut names: HashMap<String, Arc<str>> = HashMap::new();
        match self.file.read()?.open_table(BLOCKS) {
            Ok(table) => {
                for entry in table.iter().map_err(|e| failed(e.into()))? {
                    let (key, value) = entry.map_err(|e| failed(e.into()))?;
                    let Some((hour, group)) = split_key(key.value()) else { continue };
                    let group = names.entry(group.to_owned()).or_insert_with(|| group.into()).clone();
                    let tally = totals.entry(hour).or_default().entry(group).or_default();
                    decode(value.value()).for_each(|(_, t)| tally.add(t));
                }
            }
            Err(redb::TableError::TableDoesNotExist(_)) => {}
            Err(e) => return Err(failed(e.into())),
        }
        let mut state = self.write();
        state.totals = totals;
        state.waiting.clear();
        Ok(())
    }

    pub fn position(&self, origin: Origin) -> Result<Lsn, ViewError> {
        self.file.position(origin)
    }

    /// Copies what is committed into a new file.
    pub fn copy_to(&self, path: &Path) -> Result<(), ViewError> {
        self.file.copy_to(path, |read, write| copy_table(BLOCKS, read, write))
    }

    pub fn applied(&self) -> Lsn {
        self.read().applied
    }

    pub fn set_applied(&self, lsn: Lsn) {
        self.write().applied = lsn;
    }

    /// Tallies by group of the seconds in `from..to`, both whole seconds, and the LSN they reach.
    pub fn count(&self, from: Micros, to: Micros) -> Result<(HashMap<Arc<str>, Tally>, Lsn), ViewError> {
        let mut sums: HashMap<Arc<str>, Tally> = HashMap::new();
        let state = self.read();
        if from < to {
            let (first, last) = (bucket(from, MICROS_PER_HOUR), bucket(to - 1, MICROS_PER_HOUR));
            for (hour, groups) in state.totals.range(first..=last) {
                let start = hour * MICROS_PER_HOUR;
                if from <= start && start + MICROS_PER_HOUR <= to {
                    groups.iter().for_each(|(group, tally)| sums.entry(group.clone()).or_default().add(*tally));
                } else {
                    self.add_part(&state, *hour, from, to, &mut sums)?;
                }
            }
        }
        Ok((sums, state.applied))
    }

    /// Adds those seconds of an hour that lie in the range.
    fn add_part(
        &self,
        state: &State,
        hour: i64,
        from: Micros,
        to: Micros,
        sums: &mut HashMap<Arc<str>, Tally>,
    ) -> Result<(), ViewError> {
        let failed = |e: redb::Error| ViewError::Failed { view: "counts".into(), reason: e.to_string() };
        let start = hour * MICROS_PER_HOUR;
        let is_inside = |second: u16| {
            let at = start + i64::from(second) * MICROS_PER_SECOND;
            from <= at && at < to
        };
        let mut add = |group: &str, second: u16, tally: Tally| {
            if is_inside(second) {
                match sums.get_mut(group) {
                    Some(sum) => sum.add(tally),
                    None => drop(sums.insert(group.into(), tally)),
                }
            }
        };
        let transaction = self.file.read()?;
        match transaction.open_table(BLOCKS) {
            Ok(table) => {
                let (low, high) = (key(hour, ""), key(hour + 1, ""));
                for entry in table.range::<&[u8]>(low.as_slice()..high.as_slice()).map_err(|e| failed(e.into()))? {
                    let (key, value) = entry.map_err(|e| failed(e.into()))?;
                    if let Some((_, group)) = split_key(key.value()) {
                        decode(value.value()).for_each(|(second, tally)| add(group, second, tally));
                    }
                }
            }
            Err(redb::TableError::TableDoesNotExist(_)) => {}
            Err(e) => return Err(failed(e.into())),
        }
        // A commit may have happened since the state was locked: what waited is then in the file.
        if super::database::position_in(&transaction)?.is_some_and(|p| p > state.committed) {
            return Ok(());
        }
        for ((_, group), block) in state.waiting.iter().filter(|((h, _), _)| *h == hour) {
            block.iter().for_each(|(second, tally)| add(group, *second, *tally));
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
            state.totals.entry(hour).or_default().entry(group.clone()).or_default().add(tally);
            state.waiting.entry((hour, group)).or_default().entry(second).or_default().add(tally);
        }
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
            || self.counts.read().waiting.len() >= COMMIT_BLOCKS
    }

    fn commit(&mut self, _all: bool) -> Result<(), ViewError> {
        if self.since.is_none() {
            return Ok(());
        }
        // Only this thread changes what waits, so the lock need not be held while it is written.
        let waiting = self.counts.read().waiting.clone();
        self.counts.file.commit(self.origin, self.applied, |transaction| {
            let mut table = transaction.open_table(BLOCKS)?;
            for ((hour, group), added) in &waiting {
                let key = key(*hour, group);
                let mut block: Block =
                    table.get(key.as_slice())?.map(|v| decode(v.value()).collect()).unwrap_or_default();
                added.iter().for_each(|(second, tally)| block.entry(*second).or_default().add(*tally));
                table.insert(key.as_slice(), encode(&block).as_slice())?;
            }
            if let Some(floor) = self.floor.filter(|_| self.floor > self.swept) {
                table.retain_in::<&[u8], _>(..key(floor, "").as_slice(), |_, _| false)?;
            }
            Ok(())
        })?;
        let mut state = self.counts.write();
        if let Some(floor) = self.floor.filter(|_| self.floor > self.swept) {
            state.totals = state.totals.split_off(&floor);
            self.swept = self.floor;
        }
        state.waiting.clear();
        state.committed = self.applied;
        drop(state);
        self.committed = self.applied;
        self.since = None;
        Ok(())
    }

    fn reopen(&mut self) -> Result<(), ViewError> {
        self.counts.load()?;
        self.committed = self.counts.position(self.origin)?;
        self.applied = self.committed;
        self.since = None;
        self.counts.set_applied(self.applied);
        self.counts.write().committed = self.committed;
        Ok(())
    }
}
