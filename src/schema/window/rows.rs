//! Which rows of its input a window aggregates, and with which columns.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch};
use arrow::compute::{and, not, prep_null_mask_filter};
use datafusion::physical_expr::PhysicalExpr;

use super::Window;
use crate::schema::select::strip_internals;

impl Window {
    /// The rows of an input that `where` lets through, without duplicates unless the SQL
    /// references `is_duplicate`.
    pub(crate) fn filter_mask(&self, input: &RecordBatch) -> Result<BooleanArray, String> {
        let mut passes = match &self.filter {
            Some(condition) => {
                let array = condition
                    .evaluate(input)
                    .and_then(|v| v.into_array(input.num_rows()))
                    .map_err(|e| strip_internals(&e))?;
                let mask = array
                    .as_any()
                    .downcast_ref::<BooleanArray>()
                    .ok_or("where is not a boolean condition")?;
                true_only(mask)
            }
            None => BooleanArray::from(vec![true; input.num_rows()]),
        };
        if let Some(column) = self.duplicates
            && let Some(is_duplicate) = input.column(column).as_any().downcast_ref::<BooleanArray>()
        {
            let is_new = not(&true_only(is_duplicate)).map_err(|e| e.to_string())?;
            passes = and(&passes, &is_new).map_err(|e| e.to_string())?;
        }
        Ok(passes)
    }

    /// Whether every expression of the aggregation has a value for these rows.
    fn evaluates(&self, projected: &RecordBatch) -> bool {
        let groups = self.groups.iter().map(|(e, _)| e);
        let arguments: Vec<Arc<dyn PhysicalExpr>> = self
            .aggregates
            .iter()
            .flat_map(|a| a.function.expressions())
            .collect();
        let filters = self.aggregates.iter().filter_map(|a| a.filter.as_ref());
        groups
            .chain(&arguments)
            .chain(filters)
            .all(|e| e.evaluate(projected).is_ok())
    }

    /// The rows to aggregate, and the number of rows for which some expression has no value (a
    /// division by zero, a failing cast): those are left out.
    pub(crate) fn passing_mask(
        &self,
        input: &RecordBatch,
        projected: &RecordBatch,
    ) -> (BooleanArray, usize) {
        if let Ok(passes) = self.filter_mask(input)
            // Counting evaluates everything anyway; its caller retries row by row after an error.
            && (self.counts_only || self.evaluates(projected))
        {
            return (passes, 0);
        }
        self.passing_mask_by_row(input, projected)
    }

    /// As [`Self::passing_mask`], where some row is known to have no value.
    pub(crate) fn passing_mask_by_row(
        &self,
        input: &RecordBatch,
        projected: &RecordBatch,
    ) -> (BooleanArray, usize) {
        let row = |at: usize| {
            let passes = self.filter_mask(&input.slice(at, 1)).ok()?;
            (!passes.value(0) || self.evaluates(&projected.slice(at, 1))).then_some(passes.value(0))
        };
        let rows: Vec<Option<bool>> = (0..input.num_rows()).map(row).collect();
        let failed = rows.iter().filter(|r| r.is_none()).count();
        (
            rows.into_iter().map(|r| Some(r == Some(true))).collect(),
            failed,
        )
    }

    /// The columns that the aggregation reads, with `times` as window_start and window_end: each
    /// row's own time, until its pane is known.
    pub(crate) fn project(
        &self,
        input: &RecordBatch,
        times: &ArrayRef,
    ) -> Result<RecordBatch, String> {
        let mut columns: Vec<ArrayRef> = self
            .columns
            .iter()
            .map(|c| input.column(*c).clone())
            .collect();
        columns.extend([times.clone(), times.clone()]);
        RecordBatch::try_new(self.projected_schema.clone(), columns).map_err(|e| e.to_string())
    }
}

/// A condition's result with null as false.
pub(crate) fn true_only(mask: &BooleanArray) -> BooleanArray {
    if mask.null_count() == 0 {
        mask.clone()
    } else {
        prep_null_mask_filter(mask)
    }
}
