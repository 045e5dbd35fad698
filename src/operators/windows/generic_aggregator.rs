//! Panes of a window with any aggregates: DataFusion's partial states as batches of columns, which
//! its own aggregation creates, merges and finalizes. No accumulator outlives a batch.
//!
//! Sums of floats and sketches depend on which rows are aggregated together. So rows are pending
//! until the log enters the next block of LSNs, whatever frames they came in:
//!
//! ```text
//! LSN        1 … 4,095      4,096 …                    8,192 …
//! rows       pending        the first row here makes   and so on
//!                           states of those before
//! ```
//!
//! A window that fires in between aggregates what is pending too; since it fires at the same
//! record in every run, the result is the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, TimestampMicrosecondArray, UInt32Array};
use arrow::compute::{SortColumn, concat_batches, lexsort_to_indices, take, take_record_batch};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy};
use datafusion::physical_plan::{ExecutionPlan, common::collect};

use super::panes::PaneSelection;
use super::{WindowError, state_units};
use crate::event::{Lsn, Micros};
use crate::schema::Window;
use crate::schema::select::strip_internals;

/// Rows are pending until the next LSN that is a multiple of this.
const FLUSH_INTERVAL_LSNS: Lsn = 4_096;
/// Batches of a pane's states that are merged into one.
const MERGED_BATCHES: usize = 8;

#[derive(Clone)]
pub(super) struct GenericAggregator {
    window: Arc<Window>,
    state_schema: SchemaRef,
    /// Rows that are not states yet, in batches of the window's projected columns.
    pending: Vec<RecordBatch>,
    /// Number of groups that pending and selected rows are charged as.
    pending_units: usize,
    /// The block of LSNs that pending rows are of.
    pending_block: Lsn,
    /// Per pane batches of states.
    panes: BTreeMap<Micros, Vec<RecordBatch>>,
    /// Number of groups that states are charged as.
    state_units: usize,
    /// The batch being added.
    current: Option<RecordBatch>,
    /// Rows of the current batch, with the pane that each goes to; pending at its end.
    selected: Vec<(u32, Micros)>,
    /// Rows left out because an aggregate failed.
    failed: u64,
}

fn aggregate(
    window: &Window,
    mode: AggregateMode,
    input: Vec<RecordBatch>,
    schema: SchemaRef,
) -> Result<Vec<RecordBatch>, WindowError> {
    let plan = plan(window, mode, input, schema)?;
    let stream = plan
        .execute(0, Arc::new(TaskContext::default()))
        .map_err(|e| strip_internals(&e))?;
    futures::executor::block_on(collect(stream)).map_err(|e| strip_internals(&e).into())
}

fn plan(
    window: &Window,
    mode: AggregateMode,
    input: Vec<RecordBatch>,
    schema: SchemaRef,
) -> Result<AggregateExec, WindowError> {
    let source = MemorySourceConfig::try_new_exec(&[input], schema, None)
        .map_err(|e| strip_internals(&e))?;
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
        window.projected_schema.clone(),
    )
    .map_err(|e| strip_internals(&e).into())
}

fn times(column: &ArrayRef) -> Result<&TimestampMicrosecondArray, WindowError> {
    column
        .as_any()
        .downcast_ref()
        .ok_or_else(|| "a pane is not a time".to_owned().into())
}

fn constant_time(time: Micros, rows: usize) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from(vec![time; rows]).with_timezone("UTC"))
}

/// Bytes of an array's values, without those of fixed width. Equal values have the same size,
/// however they are laid out in memory.
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

/// Number of groups that a batch's rows are charged as: each as one, and long values as several.
pub(super) fn batch_state_units(batch: &RecordBatch) -> usize {
    let bytes: usize = batch.columns().iter().map(|c| value_bytes(c)).sum();
    batch.num_rows() + state_units(bytes) - 1
}

fn row_state_units(batch: &RecordBatch, row: usize) -> usize {
    state_units(
        batch
            .columns()
            .iter()
            .filter(|c| !c.data_type().is_primitive())
            .map(|c| value_bytes(&c.slice(row, 1)))
            .sum(),
    )
}

impl GenericAggregator {
    pub(super) fn new(window: &Arc<Window>) -> Result<Self, WindowError> {
        let state_schema = plan(
            window,
            AggregateMode::Partial,
            Vec::new(),
            window.projected_schema.clone(),
        )?
        .schema();
        Ok(Self {
            window: window.clone(),
            state_schema,
            pending: Vec::new(),
            pending_units: 0,
            pending_block: 0,
            panes: BTreeMap::new(),
            state_units: 0,
            current: None,
            selected: Vec::new(),
            failed: 0,
        })
    }

    /// Rows of states, and pending rows; one with long values counts as several.
    pub(super) fn groups(&self) -> usize {
        self.state_units + self.pending_units
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let states = self.panes.values().flatten().chain(&self.pending);
        states.map(RecordBatch::get_array_memory_size).sum()
    }

    /// Begins a batch, the rows of which [`Self::add`] names.
    pub(super) fn prepare(&mut self, projected: RecordBatch) {
        self.current = Some(projected);
    }

    /// Adds a row of the prepared batch to a pane.
    pub(super) fn add(&mut self, row: usize, pane: Micros, lsn: Lsn) -> Result<(), WindowError> {
        let block = lsn / FLUSH_INTERVAL_LSNS;
        if block != self.pending_block {
            self.aggregate_pending()?;
            self.pending_block = block;
        }
        self.selected.push((row as u32, pane));
        self.pending_units += self
            .current
            .as_ref()
            .map_or(1, |batch| row_state_units(batch, row));
        Ok(())
    }

    /// Copies the selected rows of the current batch: they become pending.
    fn buffer_selected(&mut self) -> Result<(), WindowError> {
        let selected = std::mem::take(&mut self.selected);
        let Some(current) = self.current.as_ref().filter(|_| !selected.is_empty()) else {
            return Ok(());
        };
        let rows: UInt32Array = selected.iter().map(|(row, _)| Some(*row)).collect();
        let panes: Vec<Micros> = selected.iter().map(|(_, pane)| *pane).collect();
        let panes: ArrayRef = Arc::new(TimestampMicrosecondArray::from(panes).with_timezone("UTC"));
        let own = current.num_columns() - 2;
        let mut columns = current.columns()[..own]
            .iter()
            .map(|a| take(a, &rows, None))
            .collect::<Result<Vec<_>, _>>()?;
        columns.extend([panes.clone(), panes]);
        let schema = self.window.projected_schema.clone();
        self.pending.push(RecordBatch::try_new(schema, columns)?);
        Ok(())
    }

    /// States of rows. A row that makes an aggregate fail is found by halving, left out and counted.
    fn states_of(
        &mut self,
        rows: &RecordBatch,
        error: &mut Option<WindowError>,
    ) -> Vec<RecordBatch> {
        match aggregate(
            &self.window,
            AggregateMode::Partial,
            vec![rows.clone()],
            self.window.projected_schema.clone(),
        ) {
            Ok(states) => states,
            Err(_) if rows.num_rows() > 1 => {
                let half = rows.num_rows() / 2;
                let mut states = self.states_of(&rows.slice(0, half), error);
                states.extend(self.states_of(&rows.slice(half, rows.num_rows() - half), error));
                states
            }
            Err(reason) => {
                error.get_or_insert(reason);
                self.failed += 1;
                Vec::new()
            }
        }
    }

    /// Rows left out because an aggregate failed, since the last call.
    pub(super) fn take_failed(&mut self) -> u64 {
        std::mem::take(&mut self.failed)
    }

    /// Aggregates pending rows into states.
    fn aggregate_pending(&mut self) -> Result<(), WindowError> {
        self.buffer_selected()?;
        if self.pending.is_empty() {
            return Ok(());
        }
        let pending = std::mem::take(&mut self.pending);
        self.pending_units = 0;
        // One batch, so that the states do not depend on the frames that rows came in.
        let pending = concat_batches(&self.window.projected_schema, &pending)?;
        let (mut error, before) = (None, self.failed);
        let states = self.states_of(&pending, &mut error);
        if let Some(reason) = error {
            let rows = self.failed - before;
            tracing::error!(
                window = self.window.name,
                rows,
                %reason,
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
                self.push_state(pane, take_record_batch(&state, &UInt32Array::from(rows))?)?;
            }
        }
        Ok(())
    }

    /// Adds states to a pane, and merges the pane's batches where there are many.
    fn push_state(&mut self, pane: Micros, state: RecordBatch) -> Result<(), WindowError> {
        self.state_units += batch_state_units(&state);
        let batches = self.panes.entry(pane).or_default();
        batches.push(state);
        if batches.len() < MERGED_BATCHES {
            return Ok(());
        }
        let before: usize = batches.iter().map(batch_state_units).sum();
        let merged = aggregate(
            &self.window,
            AggregateMode::PartialReduce,
            batches.clone(),
            self.state_schema.clone(),
        )?;
        let merged = concat_batches(&self.state_schema, &merged)?;
        self.state_units = (self.state_units + batch_state_units(&merged)).saturating_sub(before);
        *batches = vec![merged];
        Ok(())
    }

    /// Ends the prepared batch.
    pub(super) fn end_batch(&mut self) -> Result<(), WindowError> {
        self.buffer_selected()?;
        self.current = None;
        Ok(())
    }

    /// The first pane that starts at a time or later.
    pub(super) fn first_from(&self, time: Micros) -> Option<Micros> {
        let aggregated = self.panes.range(time..).next().map(|(pane, _)| *pane);
        aggregated
            .into_iter()
            .chain(self.pending_panes().filter(|pane| *pane >= time))
            .min()
    }

    pub(super) fn last(&self) -> Option<Micros> {
        self.panes
            .last_key_value()
            .map(|(pane, _)| *pane)
            .into_iter()
            .chain(self.pending_panes())
            .max()
    }

    /// Panes of pending and selected rows.
    fn pending_panes(&self) -> impl Iterator<Item = Micros> {
        let pending = self
            .pending
            .iter()
            .filter_map(|batch| times(batch.column(batch.num_columns() - 2)).ok());
        let pending = pending.flat_map(|panes| panes.values().iter().copied());
        self.selected.iter().map(|(_, pane)| *pane).chain(pending)
    }

    /// The aggregation's columns of some panes together as one window, in the order of the group
    /// columns.
    pub(super) fn rows(
        &mut self,
        selection: PaneSelection<'_>,
        start: Micros,
        end: Micros,
    ) -> Result<Vec<ArrayRef>, WindowError> {
        self.aggregate_pending()?;
        self.finalize(selection, start, end)
    }

    /// A copy without pending rows, to read windows without changing anything.
    pub(super) fn aggregated_copy(&self) -> Result<Self, WindowError> {
        let mut copy = self.clone();
        copy.aggregate_pending()?;
        Ok(copy)
    }

    /// As [`Self::rows`], where no row is pending.
    pub(super) fn finalize(
        &self,
        selection: PaneSelection<'_>,
        start: Micros,
        end: Micros,
    ) -> Result<Vec<ArrayRef>, WindowError> {
        let panes: Vec<&Vec<RecordBatch>> = match selection {
            PaneSelection::Range(from, to) => self
                .panes
                .range(from..to)
                .map(|(_, batches)| batches)
                .collect(),
            PaneSelection::Ids(ids) => ids.iter().filter_map(|id| self.panes.get(id)).collect(),
        };
        let inputs = panes
            .into_iter()
            .flatten()
            .map(|state| {
                let mut columns = state.columns().to_vec();
                columns[self.window.start_at] = constant_time(start, state.num_rows());
                columns[self.window.end_at] = constant_time(end, state.num_rows());
                RecordBatch::try_new(self.state_schema.clone(), columns)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let rows = aggregate(
            &self.window,
            AggregateMode::Final,
            inputs,
            self.state_schema.clone(),
        )?;
        let schema = plan(
            &self.window,
            AggregateMode::Final,
            Vec::new(),
            self.state_schema.clone(),
        )?
        .schema();
        let rows = concat_batches(&schema, &rows)?;
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
        let order = lexsort_to_indices(&by, None)?;
        rows.columns()
            .iter()
            .map(|a| Ok(take(a, &order, None)?))
            .collect()
    }

    /// Drops the panes that start before a time.
    pub(super) fn drop_before(&mut self, time: Micros) {
        while let Some(pane) = self
            .panes
            .first_key_value()
            .map(|(p, _)| *p)
            .filter(|pane| *pane < time)
        {
            self.remove(pane);
        }
    }

    pub(super) fn remove(&mut self, pane: Micros) {
        let batches = self.panes.remove(&pane).unwrap_or_default();
        self.state_units = self
            .state_units
            .saturating_sub(batches.iter().map(batch_state_units).sum());
    }

    pub(super) fn pending_block(&self) -> Lsn {
        self.pending_block
    }

    /// Pending rows and states for a snapshot, which does not aggregate what is pending.
    pub(super) fn save(&self) -> (Vec<RecordBatch>, Vec<RecordBatch>) {
        (
            self.pending.clone(),
            self.panes.values().flatten().cloned().collect(),
        )
    }

    /// Schemas of pending rows and of states.
    pub(super) fn schemas(&self) -> (SchemaRef, SchemaRef) {
        (
            self.window.projected_schema.clone(),
            self.state_schema.clone(),
        )
    }

    /// Reads what [`Self::save`] gave into empty panes.
    pub(super) fn load(
        &mut self,
        pending: Vec<RecordBatch>,
        states: Vec<RecordBatch>,
        pending_block: Lsn,
    ) -> Result<(), WindowError> {
        let rows = pending
            .iter()
            .flat_map(|batch| (0..batch.num_rows()).map(move |row| row_state_units(batch, row)));
        self.pending_units = rows.sum();
        (self.pending, self.pending_block) = (pending, pending_block);
        for state in states {
            let pane = times(state.column(self.window.start_at))?
                .values()
                .first()
                .copied();
            self.state_units += batch_state_units(&state);
            if let Some(pane) = pane {
                self.panes.entry(pane).or_default().push(state);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, StringArray};
    use arrow::datatypes::{Field, Schema};

    use super::*;
    use crate::schema::WINDOW_GROUP_BYTES;

    fn texts(values: &[&str]) -> RecordBatch {
        let schema = Schema::new(vec![
            Field::new("k", DataType::Utf8, true),
            Field::new("n", DataType::Int64, true),
        ]);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(values.to_vec())),
            Arc::new(Int64Array::from(vec![0; values.len()])),
        ];
        RecordBatch::try_new(Arc::new(schema), columns).expect("two columns")
    }

    #[test]
    fn long_values_are_charged_as_several_groups() {
        let long = "x".repeat(WINDOW_GROUP_BYTES);
        for (values, units) in [
            (vec![], 0),
            (vec!["a", "b"], 2),
            (vec!["a", &long], 3),
            (vec![long.as_str(), &long], 4),
        ] {
            let batch = texts(&values);
            assert_eq!(batch_state_units(&batch), units, "{} values", values.len());
            let sliced = texts(&[values.as_slice(), &[&long]].concat()).slice(0, values.len());
            assert_eq!(
                batch_state_units(&sliced),
                units,
                "a part of a larger batch"
            );
        }
        assert_eq!(row_state_units(&texts(&["a", &long]), 0), 1);
        assert_eq!(row_state_units(&texts(&["a", &long]), 1), 2);
    }
}
