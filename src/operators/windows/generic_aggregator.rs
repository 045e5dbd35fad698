//! Panes of a window with any aggregates: DataFusion's partial states as batches of columns, made,
//! merged and closed by its own aggregation. No accumulator outlives a batch. Rows wait for the
//! next cut, at fixed LSNs, so that sums of floats and sketches do not depend on how records came.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, TimestampMicrosecondArray, UInt32Array};
use arrow::compute::{SortColumn, concat_batches, lexsort_to_indices, take, take_record_batch};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy};
use datafusion::physical_plan::{ExecutionPlan, common::collect};

use super::{PaneSelection, weight};
use crate::event::{Lsn, Micros};
use crate::schema::Window;
use crate::schema::select::explain;

/// Rows wait until the next LSN that this divides.
const CUT: Lsn = 4_096;
/// States of a pane that are merged into one.
const MERGE: usize = 8;

#[derive(Clone)]
pub struct GenericAggregator {
    window: Arc<Window>,
    states: SchemaRef,
    waiting: Vec<RecordBatch>,
    /// Of the rows that wait, the chosen ones among them.
    waiting_weight: usize,
    cut: Lsn,
    panes: BTreeMap<Micros, Vec<RecordBatch>>,
    entries: usize,
    /// Rows of the batch being added, with the pane that each goes to.
    chosen: Vec<(u32, Micros)>,
    current: Option<RecordBatch>,
    failed: u64,
}

fn aggregate(
    window: &Window,
    mode: AggregateMode,
    input: Vec<RecordBatch>,
    schema: SchemaRef,
) -> Result<Vec<RecordBatch>, String> {
    let plan = plan(window, mode, input, schema)?;
    let stream = plan
        .execute(0, Arc::new(TaskContext::default()))
        .map_err(|e| explain(&e))?;
    futures::executor::block_on(collect(stream)).map_err(|e| explain(&e))
}

fn plan(
    window: &Window,
    mode: AggregateMode,
    input: Vec<RecordBatch>,
    schema: SchemaRef,
) -> Result<AggregateExec, String> {
    let source =
        MemorySourceConfig::try_new_exec(&[input], schema, None).map_err(|e| explain(&e))?;
    let groups = PhysicalGroupBy::new_single(window.groups.clone());
    let is_first = mode == AggregateMode::Partial;
    let groups = if is_first { groups } else { groups.as_final() };
    let filters = window
        .aggregates
        .iter()
        .map(|a| a.filter.clone().filter(|_| is_first))
        .collect();
    let functions = window
        .aggregates
        .iter()
        .map(|a| a.function.clone())
        .collect();
    AggregateExec::try_new(
        mode,
        groups,
        functions,
        filters,
        source,
        window.reduced.clone(),
    )
    .map_err(|e| explain(&e))
}

fn times(column: &ArrayRef) -> Result<&TimestampMicrosecondArray, String> {
    column
        .as_any()
        .downcast_ref()
        .ok_or_else(|| "a pane is no time".to_owned())
}

/// Bytes of an array's values beside those of fixed width: the same for the same values, however
/// they lie in memory.
fn value_bytes(array: &dyn Array) -> usize {
    let span = |offsets: &[i32]| (offsets[offsets.len() - 1] - offsets[0]) as usize;
    match array.data_type() {
        DataType::Utf8 => span(array.as_string::<i32>().value_offsets()),
        DataType::Binary => span(array.as_binary::<i32>().value_offsets()),
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let offsets = list.value_offsets();
            let (from, items) = (offsets[0] as usize, span(offsets));
            items * size_of::<u64>() + value_bytes(&list.values().slice(from, items))
        }
        DataType::Struct(_) => array
            .as_struct()
            .columns()
            .iter()
            .map(|c| size_of::<u64>() * c.len() + value_bytes(c))
            .sum(),
        _ => 0,
    }
}

/// As how many groups the rows of a batch count: each as one, and long values as several.
pub(super) fn batch_weight(batch: &RecordBatch) -> usize {
    let bytes: usize = batch.columns().iter().map(|c| value_bytes(c)).sum();
    batch.num_rows() + weight(bytes) - 1
}

fn row_weight(batch: &RecordBatch, row: usize) -> usize {
    weight(
        batch
            .columns()
            .iter()
            .filter(|c| !c.data_type().is_primitive())
            .map(|c| value_bytes(&c.slice(row, 1)))
            .sum(),
    )
}

impl GenericAggregator {
    pub fn new(window: &Arc<Window>) -> Result<Self, String> {
        let states = plan(
            window,
            AggregateMode::Partial,
            Vec::new(),
            window.reduced.clone(),
        )?
        .schema();
        Ok(Self {
            window: window.clone(),
            states,
            waiting: Vec::new(),
            waiting_weight: 0,
            cut: 0,
            panes: BTreeMap::new(),
            entries: 0,
            chosen: Vec::new(),
            current: None,
            failed: 0,
        })
    }

    /// Rows of states, and rows that wait; one with long values counts as several.
    pub fn entries(&self) -> usize {
        self.entries + self.waiting_weight
    }

    pub fn memory_bytes(&self) -> usize {
        let states = self.panes.values().flatten().chain(&self.waiting);
        states.map(RecordBatch::get_array_memory_size).sum()
    }

    pub fn prepare(&mut self, reduced: RecordBatch) {
        self.current = Some(reduced);
    }

    /// Takes a row of the prepared batch into a pane.
    pub fn add(&mut self, row: usize, pane: Micros, lsn: Lsn) -> Result<(), String> {
        if lsn / CUT != self.cut {
            self.flush()?;
            self.cut = lsn / CUT;
        }
        self.chosen.push((row as u32, pane));
        self.waiting_weight += self
            .current
            .as_ref()
            .map_or(1, |batch| row_weight(batch, row));
        Ok(())
    }

    /// The chosen rows of the prepared batch begin to wait.
    fn settle(&mut self) -> Result<(), String> {
        let chosen = std::mem::take(&mut self.chosen);
        let Some(current) = self.current.as_ref().filter(|_| !chosen.is_empty()) else {
            return Ok(());
        };
        let rows: UInt32Array = chosen.iter().map(|(row, _)| Some(*row)).collect();
        let panes: Vec<Micros> = chosen.iter().map(|(_, pane)| *pane).collect();
        let panes: ArrayRef = Arc::new(TimestampMicrosecondArray::from(panes).with_timezone("UTC"));
        let own = current.num_columns() - 2;
        let mut columns = current.columns()[..own]
            .iter()
            .map(|a| take(a, &rows, None))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| e.to_string())?;
        columns.extend([panes.clone(), panes]);
        let batch = RecordBatch::try_new(self.window.reduced.clone(), columns)
            .map_err(|e| e.to_string())?;
        self.waiting.push(batch);
        Ok(())
    }

    /// States of rows; a row that makes an aggregate fail is left out and counted.
    fn states_of(&mut self, rows: &RecordBatch, why: &mut Option<String>) -> Vec<RecordBatch> {
        match aggregate(
            &self.window,
            AggregateMode::Partial,
            vec![rows.clone()],
            self.window.reduced.clone(),
        ) {
            Ok(states) => states,
            Err(_) if rows.num_rows() > 1 => {
                let half = rows.num_rows() / 2;
                let mut states = self.states_of(&rows.slice(0, half), why);
                states.extend(self.states_of(&rows.slice(half, rows.num_rows() - half), why));
                states
            }
            Err(reason) => {
                why.get_or_insert(reason);
                self.failed += 1;
                Vec::new()
            }
        }
    }

    /// Rows left out because an aggregate failed, since the last time this was asked.
    pub fn take_failed(&mut self) -> u64 {
        std::mem::take(&mut self.failed)
    }

    /// What waits becomes states.
    fn flush(&mut self) -> Result<(), String> {
        self.settle()?;
        if self.waiting.is_empty() {
            return Ok(());
        }
        let waiting = std::mem::take(&mut self.waiting);
        self.waiting_weight = 0;
        // One batch, so that the states do not depend on where batches were cut.
        let waiting = concat_batches(&self.window.reduced, &waiting).map_err(|e| e.to_string())?;
        let (mut why, before) = (None, self.failed);
        let states = self.states_of(&waiting, &mut why);
        if let Some(reason) = why {
            let rows = self.failed - before;
            tracing::error!(
                window = self.window.name,
                rows,
                reason,
                "rows could not be aggregated and are left out"
            );
        }
        for state in states {
            let mut rows: BTreeMap<Micros, Vec<u32>> = BTreeMap::new();
            for (row, pane) in times(state.column(self.window.start_at))?
                .values()
                .iter()
                .enumerate()
            {
                rows.entry(*pane).or_default().push(row as u32);
            }
            for (pane, rows) in rows {
                let part = take_record_batch(&state, &UInt32Array::from(rows))
                    .map_err(|e| e.to_string())?;
                self.entries += batch_weight(&part);
                let parts = self.panes.entry(pane).or_default();
                parts.push(part);
                if parts.len() >= MERGE {
                    let before: usize = parts.iter().map(batch_weight).sum();
                    let merged = aggregate(
                        &self.window,
                        AggregateMode::PartialReduce,
                        parts.clone(),
                        self.states.clone(),
                    )?;
                    *parts =
                        vec![concat_batches(&self.states, &merged).map_err(|e| e.to_string())?];
                    self.entries = (self.entries + batch_weight(&parts[0])).saturating_sub(before);
                }
            }
        }
        Ok(())
    }

    pub fn end(&mut self) -> Result<(), String> {
        self.settle()?;
        self.current = None;
        Ok(())
    }

    /// The first pane at a time or behind it.
    pub fn pane_from(&self, time: Micros) -> Option<Micros> {
        let closed = self.panes.range(time..).next().map(|(pane, _)| *pane);
        closed
            .into_iter()
            .chain(self.waiting_panes().filter(|pane| *pane >= time))
            .min()
    }

    pub fn last_pane(&self) -> Option<Micros> {
        self.panes
            .last_key_value()
            .map(|(pane, _)| *pane)
            .into_iter()
            .chain(self.waiting_panes())
            .max()
    }

    /// Panes of the rows that are no states yet.
    fn waiting_panes(&self) -> impl Iterator<Item = Micros> {
        let waiting = self
            .waiting
            .iter()
            .filter_map(|batch| times(batch.column(batch.num_columns() - 2)).ok());
        let waiting = waiting.flat_map(|panes| panes.values().iter().copied());
        self.chosen.iter().map(|(_, pane)| *pane).chain(waiting)
    }

    /// The aggregation's columns of some panes together as one window, in the order of the group
    /// columns.
    pub fn rows(
        &mut self,
        which: &PaneSelection<'_>,
        start: Micros,
        end: Micros,
    ) -> Result<Vec<ArrayRef>, String> {
        self.flush()?;
        self.close(which, start, end)
    }

    /// A copy in which nothing waits, for a look that changes nothing.
    pub fn flushed(&self) -> Result<Self, String> {
        let mut copy = self.clone();
        copy.flush()?;
        Ok(copy)
    }

    /// As [`Self::rows`], where nothing waits.
    pub fn close(
        &self,
        which: &PaneSelection<'_>,
        start: Micros,
        end: Micros,
    ) -> Result<Vec<ArrayRef>, String> {
        let panes: Vec<&Vec<RecordBatch>> = match which {
            PaneSelection::Range(from, to) => self
                .panes
                .range(*from..*to)
                .map(|(_, parts)| parts)
                .collect(),
            PaneSelection::Panes(ids) => ids.iter().filter_map(|id| self.panes.get(id)).collect(),
        };
        let constant = |time: Micros, rows: usize| {
            Arc::new(TimestampMicrosecondArray::from(vec![time; rows]).with_timezone("UTC"))
                as ArrayRef
        };
        let inputs = panes
            .into_iter()
            .flatten()
            .map(|state| {
                let mut columns = state.columns().to_vec();
                columns[self.window.start_at] = constant(start, state.num_rows());
                columns[self.window.end_at] = constant(end, state.num_rows());
                RecordBatch::try_new(self.states.clone(), columns).map_err(|e| e.to_string())
            })
            .collect::<Result<Vec<_>, String>>()?;
        let rows = aggregate(
            &self.window,
            AggregateMode::Final,
            inputs,
            self.states.clone(),
        )?;
        let schema = plan(
            &self.window,
            AggregateMode::Final,
            Vec::new(),
            self.states.clone(),
        )?
        .schema();
        let rows = concat_batches(&schema, &rows).map_err(|e| e.to_string())?;
        let by: Vec<SortColumn> = (0..self.window.groups.len())
            .filter(|n| *n != self.window.start_at && *n != self.window.end_at)
            .map(|n| SortColumn {
                values: rows.column(n).clone(),
                options: None,
            })
            .collect();
        if by.is_empty() || rows.num_rows() < 2 {
            return Ok(rows.columns().to_vec());
        }
        let order = lexsort_to_indices(&by, None).map_err(|e| e.to_string())?;
        rows.columns()
            .iter()
            .map(|a| take(a, &order, None).map_err(|e| e.to_string()))
            .collect()
    }

    /// Forgets the panes before a time.
    pub fn drop_before(&mut self, time: Micros) {
        while let Some(pane) = self
            .panes
            .first_key_value()
            .map(|(p, _)| *p)
            .filter(|pane| *pane < time)
        {
            self.remove(pane);
        }
    }

    pub fn remove(&mut self, pane: Micros) {
        let parts = self.panes.remove(&pane).unwrap_or_default();
        self.entries = self
            .entries
            .saturating_sub(parts.iter().map(batch_weight).sum());
    }

    /// What waits, and the states with their panes: a snapshot is no cut.
    pub fn save(&self) -> (Vec<RecordBatch>, Vec<RecordBatch>, Lsn) {
        (
            self.waiting.clone(),
            self.panes.values().flatten().cloned().collect(),
            self.cut,
        )
    }

    pub fn schemas(&self) -> (SchemaRef, SchemaRef) {
        (self.window.reduced.clone(), self.states.clone())
    }

    pub fn load(
        &mut self,
        waiting: Vec<RecordBatch>,
        states: Vec<RecordBatch>,
        cut: Lsn,
    ) -> Result<(), String> {
        let rows = waiting
            .iter()
            .flat_map(|batch| (0..batch.num_rows()).map(move |row| row_weight(batch, row)));
        self.waiting_weight = rows.sum();
        (self.waiting, self.cut) = (waiting, cut);
        for state in states {
            let pane = times(state.column(self.window.start_at))?
                .values()
                .first()
                .copied();
            self.entries += batch_weight(&state);
            if let Some(pane) = pane {
                self.panes.entry(pane).or_default().push(state);
            }
        }
        Ok(())
    }
}
