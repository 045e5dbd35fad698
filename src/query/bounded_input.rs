//! Input of operators within the limits of a query: split into pieces where the operator makes many
//! rows of one, counted where it buffers them, rejected where the rows of a batch are too wide to be
//! computed with at once.

use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::execution_plan::{CardinalityEffect, replace_children_if_necessary};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::unnest::UnnestExec;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, SendableRecordBatchStream,
};
use futures::{StreamExt, TryStreamExt, stream};

use crate::schema::bounds::{Exceeded, scope};
use crate::schema::functions::growth::sizes;

/// Maximum bytes that an operator computes with at once: of all rows of a batch, materialized.
const BATCH_BYTES: usize = 32 << 20;
/// Maximum rows that `unnest` makes of one piece.
const MAX_UNNEST_ROWS: usize = 8_192;

/// How an operator uses its input.
#[derive(Debug, Clone)]
enum InputUse {
    /// Each item of these list columns becomes a row.
    Unnest(Vec<usize>),
    /// Each row may be combined with each row of another input.
    Join,
    /// All rows are buffered.
    Buffer,
}

/// Bounds the inputs of a plan's `unnest`, join and window operators, and makes these cooperative.
pub fn bound_inputs(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
    let wrapped = plan.transform_up(|node| {
        let input_use = match node.name() {
            "UnnestExec" => node.downcast_ref::<UnnestExec>().map(|unnest| {
                InputUse::Unnest(
                    unnest
                        .list_column_indices()
                        .iter()
                        .map(|list| list.index_in_input_schema)
                        .collect(),
                )
            }),
            "WindowAggExec" => Some(InputUse::Buffer),
            name if name.ends_with("JoinExec") => Some(InputUse::Join),
            _ => None,
        };
        let Some(input_use) = input_use else {
            return Ok(Transformed::no(node));
        };
        let inputs = node.children().into_iter();
        let inputs = inputs
            .map(|input| Arc::new(BoundedInput::new(input.clone(), input_use.clone())) as _)
            .collect();
        let node = replace_children_if_necessary(node, inputs)?;
        Ok(Transformed::yes(Arc::new(CooperativeExec::new(node)) as _))
    });
    wrapped.map(|wrapped| wrapped.data)
}

#[derive(Debug)]
struct BoundedInput {
    input: Arc<dyn ExecutionPlan>,
    input_use: InputUse,
    properties: Arc<PlanProperties>,
}

impl BoundedInput {
    fn new(input: Arc<dyn ExecutionPlan>, input_use: InputUse) -> Self {
        let properties = input.properties().clone();
        Self {
            input,
            input_use,
            properties,
        }
    }
}

impl DisplayAs for BoundedInput {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BoundedInput")
    }
}

impl ExecutionPlan for BoundedInput {
    fn name(&self) -> &str {
        "BoundedInput"
    }

    fn schema(&self) -> SchemaRef {
        self.input.schema()
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = children.pop().unwrap_or_else(|| self.input.clone());
        Ok(Arc::new(Self::new(input, self.input_use.clone())))
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let rows = context.session_config().batch_size();
        let batches = self.input.execute(partition, context.clone())?;
        let schema = self.schema();
        let checked = batches.and_then(|batch| async move {
            scope::check()?;
            Ok(batch)
        });
        Ok(match &self.input_use {
            InputUse::Unnest(lists) => {
                let lists = lists.clone();
                let pieces = checked
                    .map(move |batch| stream::iter(split(batch, &lists)))
                    .flatten();
                Box::pin(RecordBatchStreamAdapter::new(schema, pieces))
            }
            InputUse::Join => {
                let checked =
                    checked.and_then(move |batch| async move { check_width(batch, rows) });
                Box::pin(RecordBatchStreamAdapter::new(schema, checked))
            }
            InputUse::Buffer => {
                let buffered =
                    MemoryConsumer::new("rows of a window").register(context.memory_pool());
                let counted = checked.and_then(move |batch| {
                    let grown = buffered.try_grow(batch.get_array_memory_size());
                    async move { grown.map(|()| batch) }
                });
                Box::pin(RecordBatchStreamAdapter::new(schema, counted))
            }
        })
    }
}

/// Bytes of a batch's rows, without those of the buffers around a slice.
pub fn row_bytes(batch: &RecordBatch) -> usize {
    let slice_bytes = |column: &ArrayRef| {
        column
            .to_data()
            .get_slice_memory_size()
            .unwrap_or(column.get_array_memory_size())
    };
    batch.columns().iter().map(slice_bytes).sum()
}

/// Approximate average bytes of a row.
fn width(batch: &RecordBatch) -> usize {
    row_bytes(batch) / batch.num_rows().max(1)
}

/// An error if a batch of `rows` rows of this width would exceed `BATCH_BYTES`.
fn check_width(batch: RecordBatch, rows: usize) -> Result<RecordBatch> {
    let width = width(&batch);
    if rows > 1 && width.saturating_mul(rows) > BATCH_BYTES {
        scope::request_fewer_rows();
        return Err(Exceeded(format!(
            "a join computes with {rows} rows of {width} bytes at once, but with at most {BATCH_BYTES} bytes: join fewer columns"
        ))
        .into());
    }
    Ok(batch)
}

/// Splits a batch into pieces that each become at most `MAX_UNNEST_ROWS` rows and `BATCH_BYTES` bytes,
/// except single rows. Example: of 100 rows with lists of 1,000 items a piece has 8.
fn split(batch: Result<RecordBatch>, lists: &[usize]) -> Vec<Result<RecordBatch>> {
    let batch = match batch {
        Ok(batch) => batch,
        Err(error) => return vec![Err(error)],
    };
    let output_rows = |row: usize| {
        lists
            .iter()
            .map(|at| list_length(batch.column(*at).as_ref(), row))
            .max()
            .unwrap_or(1)
            .max(1)
    };
    // The other columns are repeated for each item.
    let others = batch
        .columns()
        .iter()
        .enumerate()
        .filter(|(at, _)| !lists.contains(at));
    let others: Vec<Vec<u64>> = others.map(|(_, column)| sizes::bytes(column)).collect();
    let width = |row: usize| {
        others
            .iter()
            .filter_map(|column| column.get(row))
            .sum::<u64>() as usize
    };
    let (mut pieces, mut from, mut total_rows, mut total_bytes) = (Vec::new(), 0, 0_usize, 0_usize);
    for row in 0..batch.num_rows() {
        let (rows, row_bytes) = (output_rows(row), width(row));
        let bytes = rows.saturating_mul(row_bytes);
        if bytes > 2 * BATCH_BYTES {
            let message = format!(
                "`unnest` would write {rows} rows of {row_bytes} bytes for one row; at most {} bytes are written: select fewer columns next to the list",
                2 * BATCH_BYTES
            );
            return vec![Err(Exceeded(message).into())];
        }
        let is_full =
            total_rows + rows > MAX_UNNEST_ROWS || total_bytes.saturating_add(bytes) > BATCH_BYTES;
        if is_full && row > from {
            pieces.push(Ok(batch.slice(from, row - from)));
            (from, total_rows, total_bytes) = (row, 0, 0);
        }
        (total_rows, total_bytes) = (total_rows + rows, total_bytes.saturating_add(bytes));
    }
    pieces.push(Ok(batch.slice(from, batch.num_rows() - from)));
    pieces
}

fn list_length(list: &dyn Array, row: usize) -> usize {
    match list.data_type() {
        DataType::List(_) => list.as_list::<i32>().value_length(row).unsigned_abs() as usize,
        DataType::LargeList(_) => list.as_list::<i64>().value_length(row).unsigned_abs() as usize,
        DataType::FixedSizeList(_, size) => size.unsigned_abs() as usize,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int64Array, ListArray, StringArray};
    use arrow::datatypes::Int64Type;

    fn batch(lists: &[usize], text: usize) -> RecordBatch {
        let values = lists.iter().map(|items| Some((0..*items as i64).map(Some)));
        let list = ListArray::from_iter_primitive::<Int64Type, _, _>(values);
        let ids = Int64Array::from_iter_values(0..lists.len() as i64);
        let texts = StringArray::from(vec!["x".repeat(text); lists.len()]);
        RecordBatch::try_from_iter([
            ("id", Arc::new(ids) as _),
            ("list", Arc::new(list) as _),
            ("x", Arc::new(texts) as _),
        ])
        .expect("a batch")
    }

    #[test]
    fn pieces_become_few_rows_and_lose_none() {
        let whole = batch(&vec![1_000; 100], 10);
        let pieces: Vec<RecordBatch> = split(Ok(whole.clone()), &[1])
            .into_iter()
            .map(|p| p.expect("a piece"))
            .collect();
        assert!(
            pieces
                .iter()
                .all(|p| p.num_rows() <= MAX_UNNEST_ROWS / 1_000)
        );
        assert_eq!(
            arrow::compute::concat_batches(&whole.schema(), &pieces).expect("one"),
            whole
        );
        let empty = batch(&[], 1);
        assert_eq!(split(Ok(empty), &[1]).len(), 1);
    }

    #[test]
    fn a_row_that_becomes_too_many_bytes_is_rejected() {
        let found = split(Ok(batch(&[100_000], 100_000)), &[1]);
        assert!(
            found[0]
                .as_ref()
                .is_err_and(|e| e.to_string().contains("unnest")),
            "{found:?}"
        );
    }
}
