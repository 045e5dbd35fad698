//! Which of a table's files a query reads, by their statistics. A table may have hundreds of
//! thousands: they are pruned in parts, and a query that would open too many is refused when it
//! begins to read. One that statistics answer, such as `count(*)`, reads none.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::Session;
use datafusion::common::pruning::PrunableStatistics;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{ColumnStatistics, DFSchema, ScalarValue, Statistics};
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::utils::conjunction;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_optimizer::pruning::{PruningPredicate, PruningPredicateBuilder};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::statistics::StatisticsArgs;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
};

use super::TableSpec;
use super::files::{FileEntry, partition_values};
use crate::schema::bounds::Exceeded;

/// Files that are pruned together.
const PART: usize = 1_024;
/// Files that one scan opens at most.
pub const MAX_SCANNED: usize = 20_000;

/// The files that may have a row for which all filters are true.
pub fn prune<'a>(
    spec: &TableSpec,
    files: &'a [FileEntry],
    state: &dyn Session,
    filters: &[Expr],
    schema: &SchemaRef,
) -> Result<Vec<&'a FileEntry>> {
    let Some(predicate) = predicate(state, filters, schema)? else {
        return Ok(files.iter().collect());
    };
    let mut kept = Vec::new();
    for part in files.chunks(PART) {
        let statistics = part
            .iter()
            .map(|file| Arc::new(statistics(spec, schema, [file])))
            .collect();
        let keep = predicate.prune(&PrunableStatistics::new(statistics, schema.clone()))?;
        kept.extend(
            part.iter()
                .zip(keep)
                .filter(|(_, keep)| *keep)
                .map(|(file, _)| file),
        );
    }
    Ok(kept)
}

fn predicate(
    state: &dyn Session,
    filters: &[Expr],
    schema: &SchemaRef,
) -> Result<Option<Arc<PruningPredicate>>> {
    let Some(filter) = conjunction(filters.to_vec()) else {
        return Ok(None);
    };
    let filter = state.create_physical_expr(filter, &DFSchema::try_from(schema.clone())?)?;
    let predicate = PruningPredicateBuilder::new()
        .with_file_schema(schema.clone())
        .build(filter);
    Ok(predicate.filter(|predicate| !predicate.always_true()))
}

/// Statistics of some files, for the columns of `schema`: the table's own, with or without the
/// partition columns.
pub fn statistics<'a>(
    spec: &TableSpec,
    schema: &SchemaRef,
    files: impl IntoIterator<Item = &'a FileEntry>,
) -> Statistics {
    let (mut rows, mut time, mut lsn) = (0, (i64::MAX, i64::MIN), (u64::MAX, u64::MIN));
    let mut folders: Vec<(i32, i32)> =
        vec![(i32::MAX, i32::MIN); schema.fields().len() - spec.schema.fields().len()];
    for file in files {
        rows += file.rows as usize;
        if !folders.is_empty() {
            for (bounds, (_, value)) in folders
                .iter_mut()
                .zip(partition_values(file.bucket, spec.layout))
            {
                *bounds = (bounds.0.min(value), bounds.1.max(value));
            }
        }
        time = (time.0.min(file.min_time), time.1.max(file.max_time));
        lsn = (lsn.0.min(file.min_lsn), lsn.1.max(file.max_lsn));
    }
    let mut statistics = Statistics::new_unknown(schema).with_num_rows(Precision::Exact(rows));
    let bounds = |low: ScalarValue, high: ScalarValue| {
        ColumnStatistics::new_unknown()
            .with_min_value(Precision::Exact(low))
            .with_max_value(Precision::Exact(high))
            .with_null_count(Precision::Exact(0))
    };
    let of_time = |t: i64| ScalarValue::TimestampMicrosecond(Some(t), Some("UTC".into()));
    statistics.column_statistics[spec.time_column] = bounds(of_time(time.0), of_time(time.1));
    let of_lsn = |l: u64| ScalarValue::Int64(Some(i64::try_from(l).unwrap_or(i64::MAX)));
    statistics.column_statistics[0] = bounds(of_lsn(lsn.0), of_lsn(lsn.1));
    let of_folder = |value: i32| ScalarValue::Int32(Some(value));
    for (column, (low, high)) in statistics.column_statistics[spec.schema.fields().len()..]
        .iter_mut()
        .zip(folders)
    {
        *column = bounds(of_folder(low), of_folder(high));
    }
    statistics
}

/// Replaces a scan of more files than are opened: it has their statistics, and fails when it is
/// read.
#[derive(Debug)]
pub struct TooManyFiles {
    table: String,
    files: usize,
    statistics: Arc<Statistics>,
    properties: Arc<PlanProperties>,
}

impl TooManyFiles {
    /// `statistics` are those of the columns of `schema`.
    pub fn new(table: &str, files: usize, schema: SchemaRef, statistics: Statistics) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self {
            table: table.to_owned(),
            files,
            statistics: Arc::new(statistics),
            properties: Arc::new(properties),
        }
    }
}

impl DisplayAs for TooManyFiles {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "TooManyFiles: table={}, files={}",
            self.table, self.files
        )
    }
}

impl ExecutionPlan for TooManyFiles {
    fn name(&self) -> &str {
        "TooManyFiles"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn statistics_from_inputs(
        &self,
        _: &[Arc<Statistics>],
        _: &StatisticsArgs,
    ) -> Result<Arc<Statistics>> {
        Ok(self.statistics.clone())
    }

    fn execute(&self, _: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let Self { table, files, .. } = self;
        let too_many = format!(
            "the table {table} would be read from {files} files, and a query opens at most {MAX_SCANNED}; narrow it by event_time, or have fewer: `[lake] partition = \"day\"` and `weir rebuild`"
        );
        Err(Exceeded(too_many).into())
    }
}
