//! Panes of a window that only counts: per pane and group up to four numbers. A sliding window
//! keeps a running sum, to which each slide adds the panes that enter and from which it subtracts
//! those that leave, and finds its largest counts without looking at the rest:
//!
//! ```text
//! slides of 10, windows of 30; per pane the counts of group a
//! panes      0: 2   10: 1   20: 4   30: 3
//! 0..30      7 = 2 + 1 + 4
//! 10..40     8 = 7 + 3 - 2
//! ```
//!
//! For `order by n desc limit 2` groups are also in levels by their count. With a: 1, b: 3, c: 3
//! and d: 5 the levels are 5 {d}, 3 {b, c}, 1 {a}: the first two levels have the rows. Where n is
//! the only sort key, b comes before c, so that d and b suffice; otherwise all three are sorted.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Int64Array, RecordBatch, TimestampMicrosecondArray,
};
use arrow::compute::and;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::row::{RowConverter, Rows, SortField};
use hashbrown::HashTable;

use super::panes::PaneSelection;
use super::{WindowError, state_units};
use crate::event::Micros;
use crate::operators::hashing::{ByNumber, hash};
use crate::schema::Window;
use crate::schema::window::{FAST_COUNTS, Top, true_only};

type Counts = [i64; FAST_COUNTS];

/// Groups by their numbers, ordered by their columns, with their counts.
pub(super) type GroupCounts = Vec<(u32, Counts)>;

#[derive(Debug, Clone)]
struct Group {
    /// The group columns in arrow's row format: compared as bytes they are in the columns' order.
    bytes: Box<[u8]>,
    hash: u64,
    /// References by panes and by the slide before; a group without any is forgotten.
    references: u32,
}

/// The batch whose rows are being added.
#[derive(Debug)]
struct PreparedBatch {
    /// Per row its group; none where the window has no group columns.
    groups: Option<Rows>,
    /// Per aggregate, which rows it counts; none for all.
    counts: Vec<Option<BooleanArray>>,
}

/// The sum of the panes in `from..to`.
#[derive(Debug, Clone, Default)]
struct RunningSum {
    from: Micros,
    to: Micros,
    /// Per group its counts, and its position in its level; `u32::MAX` without levels.
    counts: ByNumber<u32, (Counts, u32)>,
    /// For a top: groups by the count that orders them.
    levels: BTreeMap<i64, Vec<u32>>,
    top: Option<Top>,
}

/// Counts per pane and group. Groups are numbered; the numbers of forgotten ones are reused.
pub(super) struct CountAggregator {
    converter: Arc<RowConverter>,
    fields: Vec<Field>,
    top: Option<Top>,
    aggregates: usize,
    groups: Vec<Group>,
    free: Vec<u32>,
    by_bytes: HashTable<u32>,
    /// Groups that lost their last reference; forgotten at the end of the batch, when no result
    /// names them by number any more.
    unreferenced: Vec<u32>,
    panes: BTreeMap<Micros, ByNumber<u32, Counts>>,
    /// Pairs of pane and group; one with long texts is charged as several.
    state_units: usize,
    running: Option<RunningSum>,
    /// The slide before, to compare the next one with.
    previous_slide: Option<GroupCounts>,
    prepared: Option<PreparedBatch>,
}

fn add_counts(sum: &mut Counts, more: Counts, sign: i64) {
    sum.iter_mut().zip(more).for_each(|(s, m)| *s += sign * m);
}

impl RunningSum {
    /// Adds to a group's counts, or subtracts with `sign` -1.
    fn change(&mut self, group: u32, more: Counts, sign: i64) {
        let (counts, position) = self
            .counts
            .entry(group)
            .or_insert(([0; FAST_COUNTS], u32::MAX));
        let before = *counts;
        add_counts(counts, more, sign);
        let (after, is_gone) = (*counts, *counts == [0; FAST_COUNTS]);
        let position = *position;
        if let Some(top) = self.top {
            let (old, new) = (before[top.aggregate], after[top.aggregate]);
            if position == u32::MAX || old != new || is_gone {
                if position != u32::MAX {
                    self.remove_from_level(old, position);
                }
                if !is_gone {
                    let level = self.levels.entry(new).or_default();
                    level.push(group);
                    let position = level.len() as u32 - 1;
                    if let Some((_, at)) = self.counts.get_mut(&group) {
                        *at = position;
                    }
                }
            }
        }
        if is_gone {
            self.counts.remove(&group);
        }
    }

    fn remove_from_level(&mut self, count: i64, position: u32) {
        let Some(level) = self.levels.get_mut(&count) else {
            return;
        };
        level.swap_remove(position as usize);
        if let Some(moved) = level.get(position as usize).copied() {
            if let Some((_, at)) = self.counts.get_mut(&moved) {
                *at = position;
            }
        } else if level.is_empty() {
            self.levels.remove(&count);
        }
    }

    /// The groups whose rows can be among the first: down to the count of the last of them. Of
    /// groups with equal counts all, or the smallest by their bytes where nothing else orders them.
    fn first(&self, top: Top, groups: &[Group]) -> GroupCounts {
        let mut selected: Vec<u32> = Vec::new();
        for level in self.levels.values().rev() {
            let room = top.rows - selected.len();
            if top.is_exact && level.len() > room {
                let mut level = level.clone();
                level.select_nth_unstable_by(room, |a, b| {
                    groups[*a as usize].bytes.cmp(&groups[*b as usize].bytes)
                });
                selected.extend_from_slice(&level[..room]);
            } else {
                selected.extend_from_slice(level);
            }
            if selected.len() >= top.rows {
                break;
            }
        }
        selected
            .into_iter()
            .map(|group| (group, self.counts[&group].0))
            .collect()
    }
}

impl CountAggregator {
    pub(super) fn new(window: &Window) -> Self {
        let others = |n: &usize| *n != window.start_at && *n != window.end_at;
        let fields: Vec<Field> = (0..window.groups.len())
            .filter(others)
            .map(|n| {
                let ty = window.groups[n]
                    .0
                    .data_type(&window.projected_schema)
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
            groups: Vec::new(),
            free: Vec::new(),
            by_bytes: HashTable::new(),
            unreferenced: Vec::new(),
            panes: BTreeMap::new(),
            state_units: 0,
            running: None,
            previous_slide: None,
            prepared: None,
        }
    }

    /// Pairs of pane and group in memory; one with long texts counts as several.
    pub(super) fn groups(&self) -> usize {
        self.state_units
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let groups: usize = self.groups.iter().map(|g| g.bytes.len()).sum();
        let running = self
            .running
            .as_ref()
            .map_or(0, |r| r.counts.capacity() * 48);
        self.state_units * 64 + self.groups.len() * 56 + groups + running
    }

    /// Evaluates what [`Self::add`] needs of a batch; an error where some row has no value.
    pub(super) fn prepare(
        &mut self,
        window: &Window,
        projected: &RecordBatch,
    ) -> Result<(), WindowError> {
        let rows = projected.num_rows();
        let evaluate = |e: &Arc<dyn datafusion::physical_expr::PhysicalExpr>| {
            e.evaluate(projected)
                .and_then(|v| v.into_array(rows))
                .map_err(|e| crate::schema::select::strip_internals(&e))
        };
        let groups = (0..window.groups.len())
            .filter(|n| *n != window.start_at && *n != window.end_at)
            .map(|n| evaluate(&window.groups[n].0))
            .collect::<Result<Vec<_>, _>>()?;
        let groups = if groups.is_empty() {
            None
        } else {
            Some(self.converter.convert_columns(&groups)?)
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
                    let matches = evaluate(filter)?;
                    let matches = matches
                        .as_any()
                        .downcast_ref::<BooleanArray>()
                        .ok_or_else(|| "a filter is not a condition".to_owned())?;
                    let matches = true_only(matches);
                    mask = Some(match mask {
                        Some(mask) => and(&mask, &matches)?,
                        None => matches,
                    });
                }
                Ok(mask)
            })
            .collect::<Result<Vec<_>, WindowError>>()?;
        self.prepared = Some(PreparedBatch { groups, counts });
        Ok(())
    }

    /// Counts a row of the prepared batch in a pane.
    pub(super) fn add(&mut self, row: usize, pane: Micros) {
        let Some(prepared) = self.prepared.take() else {
            return;
        };
        let mut more = [0; FAST_COUNTS];
        for (count, mask) in more.iter_mut().zip(&prepared.counts) {
            *count = i64::from(mask.as_ref().is_none_or(|m| m.value(row)));
        }
        let group = match &prepared.groups {
            Some(rows) => self.number(rows.row(row).as_ref()),
            None => self.number(&[]),
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
                let group = &mut self.groups[group as usize];
                self.state_units += state_units(group.bytes.len());
                group.references += 1;
                // A group in which nothing is counted is a row too.
                [0; FAST_COUNTS]
            });
        add_counts(sums, more, 1);
        if let Some(running) = self
            .running
            .as_mut()
            .filter(|r| r.from <= pane && pane < r.to)
        {
            running.change(group, more, 1);
        }
    }

    /// The number of a group, which may be new.
    fn number(&mut self, bytes: &[u8]) -> u32 {
        let hash = hash(bytes);
        if let Some(found) = self
            .by_bytes
            .find(hash, |g| *self.groups[*g as usize].bytes == *bytes)
        {
            return *found;
        }
        let group = Group {
            bytes: bytes.into(),
            hash,
            references: 0,
        };
        let at = match self.free.pop() {
            Some(at) => {
                self.groups[at as usize] = group;
                at
            }
            None => {
                self.groups.push(group);
                self.groups.len() as u32 - 1
            }
        };
        let groups = &self.groups;
        self.by_bytes
            .insert_unique(hash, at, |g| groups[*g as usize].hash);
        at
    }

    fn release(&mut self, group: u32) {
        let references = &mut self.groups[group as usize].references;
        *references -= 1;
        if *references == 0 {
            self.unreferenced.push(group);
        }
    }

    /// Ends the prepared batch: no result names groups by number any more, except the slide before.
    pub(super) fn end_batch(&mut self) {
        self.prepared = None;
        for number in std::mem::take(&mut self.unreferenced) {
            let group = &mut self.groups[number as usize];
            if group.references > 0 {
                continue;
            }
            if let Ok(entry) = self.by_bytes.find_entry(group.hash, |g| *g == number) {
                entry.remove();
                group.bytes = Box::default();
                self.free.push(number);
            }
        }
    }

    /// The first pane that starts at a time or later.
    pub(super) fn first_from(&self, time: Micros) -> Option<Micros> {
        self.panes.range(time..).next().map(|(pane, _)| *pane)
    }

    pub(super) fn last(&self) -> Option<Micros> {
        self.panes.last_key_value().map(|(pane, _)| *pane)
    }

    /// The groups of some panes together, in the order of their columns.
    pub(super) fn rows(&self, selection: PaneSelection<'_>) -> GroupCounts {
        self.sorted(self.sum(selection))
    }

    /// The groups of the next slide, and whether they equal those of the slide before, which they
    /// replace.
    pub(super) fn slide(&mut self, from: Micros, to: Micros) -> (GroupCounts, bool) {
        let moved = self.move_sum(from, to);
        let rows = self.sorted(moved);
        let is_same = self.previous_slide.as_ref() == Some(&rows);
        if !is_same {
            for (group, _) in &rows {
                self.groups[*group as usize].references += 1;
            }
            self.forget_previous_slide();
            self.previous_slide = Some(rows.clone());
        }
        (rows, is_same)
    }

    /// The next slide has none before it to compare with.
    pub(super) fn forget_previous_slide(&mut self) {
        for (group, _) in self.previous_slide.take().into_iter().flatten() {
            self.release(group);
        }
    }

    fn sorted(&self, mut counts: GroupCounts) -> GroupCounts {
        counts.sort_unstable_by(|a, b| {
            let bytes = |(group, _): &(u32, Counts)| &self.groups[*group as usize].bytes;
            bytes(a).cmp(bytes(b))
        });
        counts
    }

    fn sum(&self, selection: PaneSelection<'_>) -> GroupCounts {
        let mut panes: Vec<&ByNumber<u32, Counts>> = match selection {
            PaneSelection::Range(from, to) => {
                self.panes.range(from..to).map(|(_, pane)| pane).collect()
            }
            PaneSelection::Ids(ids) => ids.iter().filter_map(|id| self.panes.get(id)).collect(),
        };
        if panes.len() == 1 {
            return panes.remove(0).iter().map(|(g, c)| (*g, *c)).collect();
        }
        let mut sums: ByNumber<u32, Counts> = ByNumber::default();
        for (group, counts) in panes.into_iter().flatten() {
            add_counts(sums.entry(*group).or_default(), *counts, 1);
        }
        sums.into_iter().collect()
    }

    /// Moves the running sum to the panes in `from..to`; it starts again where they go back.
    fn move_sum(&mut self, from: Micros, to: Micros) -> GroupCounts {
        let mut running = match self.running.take() {
            Some(running) if running.from <= from && from < running.to && running.to <= to => {
                running
            }
            _ => RunningSum {
                from,
                to: from,
                top: self.top,
                ..RunningSum::default()
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
        let counts = match self.top {
            Some(top) => running.first(top, &self.groups),
            None => running.counts.iter().map(|(g, (c, _))| (*g, *c)).collect(),
        };
        self.running = Some(running);
        counts
    }

    /// Drops the panes that start before a time.
    pub(super) fn drop_before(&mut self, time: Micros) {
        while let Some(pane) = self.first_from(Micros::MIN).filter(|pane| *pane < time) {
            self.remove(pane);
        }
    }

    pub(super) fn remove(&mut self, pane: Micros) {
        let Some(groups) = self.panes.remove(&pane) else {
            return;
        };
        self.state_units -= groups
            .keys()
            .map(|group| state_units(self.groups[*group as usize].bytes.len()))
            .sum::<usize>();
        let is_in = self
            .running
            .as_ref()
            .is_some_and(|r| r.from <= pane && pane < r.to);
        for (group, counts) in groups {
            if let Some(running) = self.running.as_mut().filter(|_| is_in) {
                running.change(group, counts, -1);
            }
            self.release(group);
        }
    }

    /// The aggregation's columns of results: groups with their window's times among them, then
    /// counts.
    pub(super) fn columns(
        &self,
        window: &Window,
        results: &[(Micros, Micros, &GroupCounts)],
    ) -> Result<Vec<ArrayRef>, WindowError> {
        let rows = || {
            results
                .iter()
                .flat_map(|(start, end, counts)| counts.iter().map(move |c| (*start, *end, c)))
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

    fn group_columns(
        &self,
        groups: impl Iterator<Item = u32>,
    ) -> Result<Vec<ArrayRef>, WindowError> {
        if self.fields.is_empty() {
            return Ok(Vec::new());
        }
        let parser = self.converter.parser();
        let rows = groups.map(|g| parser.parse(&self.groups[g as usize].bytes));
        Ok(self.converter.convert_rows(rows)?)
    }

    /// Every pane's groups for a snapshot: pane, group columns, counts.
    pub(super) fn save(&self) -> Result<RecordBatch, WindowError> {
        let mut entries: Vec<(Micros, u32, Counts)> = self
            .panes
            .iter()
            .flat_map(|(pane, groups)| groups.iter().map(move |(g, c)| (*pane, *g, *c)))
            .collect();
        let bytes = |group: u32| &self.groups[group as usize].bytes;
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
        Ok(RecordBatch::try_new(
            Arc::new(self.saved_schema()),
            columns,
        )?)
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

    /// Reads what [`Self::save`] gave into empty panes.
    pub(super) fn load(&mut self, saved: &RecordBatch) -> Result<(), WindowError> {
        if *saved.schema() != self.saved_schema() {
            return Err(WindowError::Snapshot("the saved groups have other columns"));
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
            Some(self.converter.convert_columns(&saved.columns()[groups])?)
        };
        for row in 0..saved.num_rows() {
            let mut counts = [0; FAST_COUNTS];
            for (n, count) in counts.iter_mut().enumerate().take(self.aggregates) {
                *count = number(1 + self.fields.len() + n).value(row);
            }
            let group = match &rows {
                Some(rows) => self.number(rows.row(row).as_ref()),
                None => self.number(&[]),
            };
            self.count(group, counts, number(0).value(row));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum of (group, count).
    fn sum(top: Option<Top>, counts: &[(u32, i64)]) -> RunningSum {
        let mut sum = RunningSum {
            top,
            ..RunningSum::default()
        };
        for (group, count) in counts {
            sum.change(*group, [*count, 0, 0, 0], 1);
        }
        sum
    }

    #[test]
    fn a_group_leaves_the_sum_with_its_last_count() {
        let top = Top {
            aggregate: 0,
            rows: 1,
            is_exact: false,
        };
        for top in [None, Some(top)] {
            let mut sum = sum(top, &[(0, 2), (1, 2), (0, 1)]);
            assert_eq!(sum.counts[&0].0[0], 3);
            sum.change(0, [3, 0, 0, 0], -1);
            assert_eq!(sum.counts.keys().collect::<Vec<_>>(), [&1]);
            let levels = top.map_or(vec![], |_| vec![(2, vec![1])]);
            assert_eq!(sum.levels.into_iter().collect::<Vec<_>>(), levels);
        }
    }

    #[test]
    fn the_largest_counts_come_first_with_their_ties() {
        let group = |name: &str| Group {
            bytes: name.as_bytes().into(),
            hash: 0,
            references: 1,
        };
        let groups = ["d", "c", "b", "a"].map(group);
        let counts = [(0, 5), (1, 3), (2, 3), (3, 1)];
        for (rows, is_exact, want) in [
            (1, true, vec![0]),
            (2, false, vec![0, 1, 2]),
            // Of `c` and `b` the smaller.
            (2, true, vec![0, 2]),
            (9, true, vec![0, 1, 2, 3]),
        ] {
            let top = Top {
                aggregate: 0,
                rows,
                is_exact,
            };
            let first = sum(Some(top), &counts).first(top, &groups);
            let mut first: Vec<u32> = first.into_iter().map(|(group, _)| group).collect();
            first.sort_unstable();
            assert_eq!(first, want, "{rows} rows, exact: {is_exact}");
        }
    }
}
