//! Panes of a window that only counts: per pane and group up to four numbers. A sliding window
//! keeps its sum, to which each slide adds the pane that comes in and from which it takes the one
//! that goes out, and knows its largest counts without looking at the rest.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Int64Array, RecordBatch, TimestampMicrosecondArray,
};
use arrow::compute::and;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::row::{RowConverter, Rows, SortField};
use hashbrown::HashTable;

use super::{PaneSelection, weight};
use crate::event::Micros;
use crate::operators::hashing::{ByNumber, hash};
use crate::schema::Window;
use crate::schema::window::{FAST_COUNTS, Top, true_only};

pub type Counts = [i64; FAST_COUNTS];

/// Groups by their numbers, ordered by their columns, with their counts.
pub type GroupCounts = Vec<(u32, Counts)>;

#[derive(Debug, Clone)]
struct Group {
    /// The group columns in arrow's row format: compared as bytes they are in the columns' order.
    bytes: Box<[u8]>,
    hash: u64,
    /// How many panes and remembered results name it.
    users: u32,
}

/// The rows of a batch being added, by number of row.
#[derive(Debug)]
struct Prepared {
    groups: Option<Rows>,
    /// Per aggregate, which rows it counts.
    counts: Vec<Option<BooleanArray>>,
}

/// The sum of the panes in `from..to`.
#[derive(Debug, Clone, Default)]
struct Running {
    from: Micros,
    to: Micros,
    counts: ByNumber<u32, (Counts, u32)>,
    /// For a top: groups by the count that orders them; each knows its place there.
    levels: BTreeMap<i64, Vec<u32>>,
    top: Option<Top>,
}

pub struct CountAggregator {
    converter: Arc<RowConverter>,
    fields: Vec<Field>,
    top: Option<Top>,
    aggregates: usize,
    slots: Vec<Group>,
    free: Vec<u32>,
    by_bytes: HashTable<u32>,
    /// Groups that lost their last user; forgotten when nothing refers to them by number any more.
    unused: Vec<u32>,
    panes: BTreeMap<Micros, ByNumber<u32, Counts>>,
    entries: usize,
    running: Option<Running>,
    prepared: Option<Prepared>,
}

fn add(sum: &mut Counts, more: Counts, sign: i64) {
    sum.iter_mut().zip(more).for_each(|(s, m)| *s += sign * m);
}

impl Running {
    fn change(&mut self, group: u32, more: Counts, sign: i64) {
        let (counts, place) = self
            .counts
            .entry(group)
            .or_insert(([0; FAST_COUNTS], u32::MAX));
        let before = *counts;
        add(counts, more, sign);
        let (after, is_gone) = (*counts, *counts == [0; FAST_COUNTS]);
        let place = *place;
        if let Some(top) = self.top {
            let (old, new) = (before[top.aggregate], after[top.aggregate]);
            if place == u32::MAX || old != new || is_gone {
                if place != u32::MAX {
                    self.leave(old, place);
                }
                if !is_gone {
                    let level = self.levels.entry(new).or_default();
                    level.push(group);
                    let place = level.len() as u32 - 1;
                    if let Some((_, at)) = self.counts.get_mut(&group) {
                        *at = place;
                    }
                }
            }
        }
        if is_gone {
            self.counts.remove(&group);
        }
    }

    fn leave(&mut self, count: i64, place: u32) {
        let Some(level) = self.levels.get_mut(&count) else {
            return;
        };
        level.swap_remove(place as usize);
        if let Some(moved) = level.get(place as usize).copied() {
            if let Some((_, at)) = self.counts.get_mut(&moved) {
                *at = place;
            }
        } else if level.is_empty() {
            self.levels.remove(&count);
        }
    }

    /// The groups whose rows can be among the first: down to the count of the last of them, of
    /// equal ones all, or the least by their bytes where nothing else orders them.
    fn first(&self, top: Top, slots: &[Group]) -> GroupCounts {
        let mut found: Vec<u32> = Vec::new();
        for level in self.levels.values().rev() {
            let room = top.rows - found.len();
            if top.is_exact && level.len() > room {
                let mut level = level.clone();
                level.select_nth_unstable_by(room, |a, b| {
                    slots[*a as usize].bytes.cmp(&slots[*b as usize].bytes)
                });
                found.extend_from_slice(&level[..room]);
            } else {
                found.extend_from_slice(level);
            }
            if found.len() >= top.rows {
                break;
            }
        }
        found
            .into_iter()
            .map(|group| (group, self.counts[&group].0))
            .collect()
    }
}

impl CountAggregator {
    pub fn new(window: &Window) -> Self {
        let others = |n: &usize| *n != window.start_at && *n != window.end_at;
        let fields: Vec<Field> = (0..window.groups.len())
            .filter(others)
            .map(|n| {
                let ty = window.groups[n]
                    .0
                    .data_type(&window.reduced)
                    .unwrap_or(DataType::Null);
                Field::new(format!("group_{n}"), ty, true)
            })
            .collect();
        let sort = fields
            .iter()
            .map(|f| SortField::new(f.data_type().clone()))
            .collect();
        let converter =
            Arc::new(RowConverter::new(sort).expect("groups have types that can be compared"));
        Self {
            converter,
            fields,
            top: window.top,
            aggregates: window.aggregates.len(),
            slots: Vec::new(),
            free: Vec::new(),
            by_bytes: HashTable::new(),
            unused: Vec::new(),
            panes: BTreeMap::new(),
            entries: 0,
            running: None,
            prepared: None,
        }
    }

    /// Pairs of pane and group in memory; one with long texts counts as several.
    pub fn entries(&self) -> usize {
        self.entries
    }

    pub fn memory_bytes(&self) -> usize {
        let groups: usize = self.slots.iter().map(|g| g.bytes.len()).sum();
        let running = self
            .running
            .as_ref()
            .map_or(0, |r| r.counts.capacity() * 48);
        self.entries * 64 + self.slots.len() * 56 + groups + running
    }

    /// Evaluates what [`Self::add`] needs of a batch.
    pub fn prepare(&mut self, window: &Window, reduced: &RecordBatch) -> Result<(), String> {
        let rows = reduced.num_rows();
        let evaluate = |e: &Arc<dyn datafusion::physical_expr::PhysicalExpr>| {
            e.evaluate(reduced)
                .and_then(|v| v.into_array(rows))
                .map_err(|e| crate::schema::select::explain(&e))
        };
        let groups = (0..window.groups.len())
            .filter(|n| *n != window.start_at && *n != window.end_at)
            .map(|n| evaluate(&window.groups[n].0))
            .collect::<Result<Vec<_>, _>>()?;
        let groups = if groups.is_empty() {
            None
        } else {
            Some(
                self.converter
                    .convert_columns(&groups)
                    .map_err(|e| e.to_string())?,
            )
        };
        let counts = window
            .aggregates
            .iter()
            .map(|aggregate| {
                let argument = evaluate(&aggregate.function.expressions()[0])?;
                let mut mask = argument
                    .logical_nulls()
                    .map(|nulls| BooleanArray::new(nulls.into_inner(), None));
                if let Some(filter) = &aggregate.filter {
                    let wanted = evaluate(filter)?;
                    let wanted = wanted
                        .as_any()
                        .downcast_ref::<BooleanArray>()
                        .ok_or("filter is no condition")?;
                    let wanted = true_only(wanted);
                    mask = Some(match mask {
                        Some(mask) => and(&mask, &wanted).map_err(|e| e.to_string())?,
                        None => wanted,
                    });
                }
                Ok(mask)
            })
            .collect::<Result<Vec<_>, String>>()?;
        self.prepared = Some(Prepared { groups, counts });
        Ok(())
    }

    /// Counts a row of the prepared batch in a pane.
    pub fn add(&mut self, row: usize, pane: Micros) {
        let Some(prepared) = self.prepared.take() else {
            return;
        };
        let mut more = [0; FAST_COUNTS];
        for (count, mask) in more.iter_mut().zip(&prepared.counts) {
            *count = i64::from(mask.as_ref().is_none_or(|m| m.value(row)));
        }
        let group = match &prepared.groups {
            Some(rows) => self.group(rows.row(row).as_ref()),
            None => self.group(&[]),
        };
        self.count(group, more, pane);
        self.prepared = Some(prepared);
    }

    fn count(&mut self, group: u32, more: Counts, pane: Micros) {
        let sums = self
            .panes
            .entry(pane)
            .or_default()
            .entry(group)
            .or_insert_with(|| {
                let slot = &mut self.slots[group as usize];
                self.entries += weight(slot.bytes.len());
                slot.users += 1;
                // Also a group of which nothing is counted is a row.
                [0; FAST_COUNTS]
            });
        add(sums, more, 1);
        if let Some(running) = self
            .running
            .as_mut()
            .filter(|r| r.from <= pane && pane < r.to)
        {
            running.change(group, more, 1);
        }
    }

    fn group(&mut self, bytes: &[u8]) -> u32 {
        let hash = hash(bytes);
        if let Some(found) = self
            .by_bytes
            .find(hash, |g| *self.slots[*g as usize].bytes == *bytes)
        {
            return *found;
        }
        let group = Group {
            bytes: bytes.into(),
            hash,
            users: 0,
        };
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at as usize] = group;
                at
            }
            None => {
                self.slots.push(group);
                self.slots.len() as u32 - 1
            }
        };
        let slots = &self.slots;
        self.by_bytes
            .insert_unique(hash, at, |g| slots[*g as usize].hash);
        at
    }

    /// Results that are remembered keep the numbers of their groups.
    pub fn hold(&mut self, counted: &GroupCounts) {
        counted
            .iter()
            .for_each(|(g, _)| self.slots[*g as usize].users += 1);
    }

    pub fn release(&mut self, counted: &GroupCounts) {
        counted.iter().for_each(|(g, _)| self.lose(*g));
    }

    fn lose(&mut self, group: u32) {
        let slot = &mut self.slots[group as usize];
        slot.users -= 1;
        if slot.users == 0 {
            self.unused.push(group);
        }
    }

    /// No result refers to groups by number any more, except those held.
    pub fn end(&mut self) {
        self.prepared = None;
        for group in std::mem::take(&mut self.unused) {
            let slot = &self.slots[group as usize];
            if slot.users > 0 {
                continue;
            }
            let hash = slot.hash;
            if let Ok(found) = self.by_bytes.find_entry(hash, |g| *g == group) {
                found.remove();
                self.slots[group as usize].bytes = Box::default();
                self.free.push(group);
            }
        }
    }

    /// The first pane at a time or behind it.
    pub fn pane_from(&self, time: Micros) -> Option<Micros> {
        self.panes.range(time..).next().map(|(pane, _)| *pane)
    }

    pub fn last_pane(&self) -> Option<Micros> {
        self.panes.last_key_value().map(|(pane, _)| *pane)
    }

    /// The groups of some panes together, in the order of their columns. `slides`: the same is
    /// asked a little later again and again.
    pub fn rows(&mut self, which: &PaneSelection<'_>, slides: bool) -> GroupCounts {
        let mut found = match which {
            PaneSelection::Range(from, to) if slides => self.slide(*from, *to),
            which => self.sum(which),
        };
        found.sort_unstable_by(|a, b| {
            self.slots[a.0 as usize]
                .bytes
                .cmp(&self.slots[b.0 as usize].bytes)
        });
        found
    }

    /// As [`Self::rows`], for a look that changes nothing.
    pub fn look(&self, which: &PaneSelection<'_>) -> GroupCounts {
        let mut found = self.sum(which);
        found.sort_unstable_by(|a, b| {
            self.slots[a.0 as usize]
                .bytes
                .cmp(&self.slots[b.0 as usize].bytes)
        });
        found
    }

    fn sum(&self, which: &PaneSelection<'_>) -> GroupCounts {
        let mut panes: Vec<&ByNumber<u32, Counts>> = match which {
            PaneSelection::Range(from, to) => {
                self.panes.range(*from..*to).map(|(_, pane)| pane).collect()
            }
            PaneSelection::Panes(ids) => ids.iter().filter_map(|id| self.panes.get(id)).collect(),
        };
        if panes.len() == 1 {
            return panes.remove(0).iter().map(|(g, c)| (*g, *c)).collect();
        }
        let mut sums: ByNumber<u32, Counts> = ByNumber::default();
        for (group, counts) in panes.into_iter().flatten() {
            add(sums.entry(*group).or_default(), *counts, 1);
        }
        sums.into_iter().collect()
    }

    fn slide(&mut self, from: Micros, to: Micros) -> GroupCounts {
        let mut running = match self.running.take() {
            Some(running) if running.from <= from && from < running.to && running.to <= to => {
                running
            }
            _ => Running {
                from,
                to: from,
                top: self.top,
                ..Running::default()
            },
        };
        for (group, counts) in self
            .panes
            .range(running.from..from)
            .flat_map(|(_, pane)| pane)
        {
            running.change(*group, *counts, -1);
        }
        for (group, counts) in self.panes.range(running.to..to).flat_map(|(_, pane)| pane) {
            running.change(*group, *counts, 1);
        }
        (running.from, running.to) = (from, to);
        let found = match self.top {
            Some(top) => running.first(top, &self.slots),
            None => running.counts.iter().map(|(g, (c, _))| (*g, *c)).collect(),
        };
        self.running = Some(running);
        found
    }

    /// Forgets the panes before a time.
    pub fn drop_before(&mut self, time: Micros) {
        while let Some(pane) = self.pane_from(Micros::MIN).filter(|pane| *pane < time) {
            self.remove(pane);
        }
    }

    pub fn remove(&mut self, pane: Micros) {
        let Some(groups) = self.panes.remove(&pane) else {
            return;
        };
        self.entries -= groups
            .keys()
            .map(|group| weight(self.slots[*group as usize].bytes.len()))
            .sum::<usize>();
        let is_in = self
            .running
            .as_ref()
            .is_some_and(|r| r.from <= pane && pane < r.to);
        for (group, counts) in groups {
            if let Some(running) = self.running.as_mut().filter(|_| is_in) {
                running.change(group, counts, -1);
            }
            self.lose(group);
        }
    }

    /// The aggregation's columns of results: groups with their window's times among them, then
    /// counts.
    pub fn arrays(
        &self,
        window: &Window,
        results: &[(Micros, Micros, &GroupCounts)],
    ) -> Result<Vec<ArrayRef>, String> {
        let rows = || {
            results
                .iter()
                .flat_map(|(start, end, counted)| counted.iter().map(move |c| (*start, *end, c)))
        };
        let mut groups = self
            .group_columns(rows().map(|(.., (g, _))| *g))?
            .into_iter();
        let time = |times: Vec<Micros>| {
            Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC")) as ArrayRef
        };
        let mut columns: Vec<ArrayRef> = (0..window.groups.len())
            .filter_map(|n| {
                if n == window.start_at {
                    Some(time(rows().map(|(start, ..)| start).collect()))
                } else if n == window.end_at {
                    Some(time(rows().map(|(_, end, _)| end).collect()))
                } else {
                    groups.next()
                }
            })
            .collect();
        columns.extend((0..self.aggregates).map(|n| {
            let counts: Int64Array = rows().map(|(.., (_, counts))| Some(counts[n])).collect();
            Arc::new(counts) as ArrayRef
        }));
        Ok(columns)
    }

    fn group_columns(&self, groups: impl Iterator<Item = u32>) -> Result<Vec<ArrayRef>, String> {
        if self.fields.is_empty() {
            return Ok(Vec::new());
        }
        let parser = self.converter.parser();
        self.converter
            .convert_rows(groups.map(|g| parser.parse(&self.slots[g as usize].bytes)))
            .map_err(|e| e.to_string())
    }

    /// Every pane's groups: pane, group columns, counts.
    pub fn save(&self) -> Result<RecordBatch, String> {
        let mut entries: Vec<(Micros, u32, Counts)> = self
            .panes
            .iter()
            .flat_map(|(pane, groups)| groups.iter().map(move |(g, c)| (*pane, *g, *c)))
            .collect();
        let bytes = |group: u32| &self.slots[group as usize].bytes;
        entries.sort_unstable_by(|a, b| (a.0, bytes(a.1)).cmp(&(b.0, bytes(b.1))));
        let mut columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from_iter_values(
            entries.iter().map(|e| e.0),
        ))];
        columns.extend(self.group_columns(entries.iter().map(|e| e.1))?);
        for n in 0..self.aggregates {
            columns.push(Arc::new(Int64Array::from_iter_values(
                entries.iter().map(|e| e.2[n]),
            )));
        }
        RecordBatch::try_new(Arc::new(self.saved_schema()), columns).map_err(|e| e.to_string())
    }

    fn saved_schema(&self) -> Schema {
        let number = |name: String| Field::new(name, DataType::Int64, false);
        let counts = (0..self.aggregates).map(|n| number(format!("count_{n}")));
        let pane = std::iter::once(number("pane".into()));
        Schema::new(
            pane.chain(self.fields.iter().cloned())
                .chain(counts)
                .collect::<Vec<_>>(),
        )
    }

    pub fn load(&mut self, saved: &RecordBatch) -> Result<(), String> {
        if *saved.schema() != self.saved_schema() {
            return Err("the saved groups have other columns".into());
        }
        let number = |column: usize| {
            saved
                .column(column)
                .as_any()
                .downcast_ref::<Int64Array>()
                .expect("the schema was compared")
        };
        let groups = 1..1 + self.fields.len();
        let rows = if groups.is_empty() {
            None
        } else {
            Some(
                self.converter
                    .convert_columns(&saved.columns()[groups])
                    .map_err(|e| e.to_string())?,
            )
        };
        for row in 0..saved.num_rows() {
            let mut counts = [0; FAST_COUNTS];
            for (n, count) in counts.iter_mut().enumerate().take(self.aggregates) {
                *count = number(1 + self.fields.len() + n).value(row);
            }
            let group = match &rows {
                Some(rows) => self.group(rows.row(row).as_ref()),
                None => self.group(&[]),
            };
            self.count(group, counts, number(0).value(row));
        }
        Ok(())
    }
}
