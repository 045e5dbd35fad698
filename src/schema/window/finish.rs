//! From the aggregation's rows to those of the window's table: `having`, projection, `order by` and
//! `limit`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{
    CastOptions, SortColumn, SortOptions, cast_with_options, filter, filter_record_batch,
    lexsort_to_indices, take,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::DFSchemaRef;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{Aggregate, FetchType, LogicalPlan, SkipType};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column as PhysicalColumn;

use super::call::{FORM, Shape};
use super::rows::true_only;
use super::{END, FAST_COUNTS, START, Top, WINDOW_COLUMNS, Window};
use crate::schema::select::{physical, stored_type, strip_internals};
use crate::schema::{PlanError, names, types};

/// A step applied to the aggregation's rows, in order.
#[derive(Debug, Clone)]
pub(super) enum PostAggregateStep {
    Filter(Arc<dyn PhysicalExpr>),
    Project(Vec<Arc<dyn PhysicalExpr>>),
    /// Stable: ties stay in the order of the group columns.
    Sort(Vec<(Arc<dyn PhysicalExpr>, SortOptions)>),
    Limit {
        skip: usize,
        fetch: Option<usize>,
    },
}

/// Rows in the middle of the steps. `companions` are columns that the SQL does not see (a row's
/// window, its version) and that are filtered and ordered along with the rows.
struct StepRows {
    batch: RecordBatch,
    companions: Vec<ArrayRef>,
}

impl StepRows {
    fn apply(self, step: &PostAggregateStep) -> Result<Self, String> {
        match step {
            PostAggregateStep::Filter(condition) => self.filter(condition),
            PostAggregateStep::Project(expressions) => {
                let columns = expressions
                    .iter()
                    .map(|e| evaluate(e, &self.batch))
                    .collect::<Result<Vec<_>, _>>()?;
                Ok(Self {
                    batch: as_batch(columns, self.batch.num_rows())?,
                    ..self
                })
            }
            PostAggregateStep::Sort(by) => self.sort(by),
            PostAggregateStep::Limit { skip, fetch } => {
                let rows = self.batch.num_rows();
                let from = (*skip).min(rows);
                let length = fetch.unwrap_or(usize::MAX).min(rows - from);
                let slice = |a: &ArrayRef| a.slice(from, length);
                Ok(Self {
                    batch: self.batch.slice(from, length),
                    companions: self.companions.iter().map(slice).collect(),
                })
            }
        }
    }

    fn filter(self, condition: &Arc<dyn PhysicalExpr>) -> Result<Self, String> {
        let mask = evaluate(condition, &self.batch)?;
        let mask = mask
            .as_any()
            .downcast_ref::<BooleanArray>()
            .ok_or("having is not a boolean condition")?;
        let mask = true_only(mask);
        Ok(Self {
            batch: filter_record_batch(&self.batch, &mask).map_err(|e| e.to_string())?,
            companions: map_columns(&self.companions, |a| filter(a, &mask))?,
        })
    }

    fn sort(self, by: &[(Arc<dyn PhysicalExpr>, SortOptions)]) -> Result<Self, String> {
        let rows = self.batch.num_rows();
        let mut columns = by
            .iter()
            .map(|(e, options)| {
                Ok(SortColumn {
                    values: evaluate(e, &self.batch)?,
                    options: Some(*options),
                })
            })
            .collect::<Result<Vec<_>, String>>()?;
        // The row number makes the sort stable.
        let order: UInt32Array = (0..rows as u32).collect();
        columns.push(SortColumn {
            values: Arc::new(order),
            options: None,
        });
        let order = lexsort_to_indices(&columns, None).map_err(|e| e.to_string())?;
        let columns = map_columns(self.batch.columns(), |a| take(a, &order, None))?;
        Ok(Self {
            batch: as_batch(columns, rows)?,
            companions: map_columns(&self.companions, |a| take(a, &order, None))?,
        })
    }
}

impl Window {
    /// From the aggregation's rows (groups, then aggregates, in the order of the group columns) to
    /// window_start, window_end and the table's other columns; `companions` are filtered and
    /// ordered along with them. If the SQL orders or limits, all rows must be of one window.
    pub(crate) fn finish(
        &self,
        rows: Vec<ArrayRef>,
        companions: Vec<ArrayRef>,
    ) -> Result<(Vec<ArrayRef>, Vec<ArrayRef>), String> {
        let count = rows.first().map_or(0, |a| a.len());
        let mut rows = StepRows {
            batch: as_batch(rows, count)?,
            companions,
        };
        for step in &self.steps {
            rows = rows.apply(step)?;
        }
        let StepRows { batch, companions } = rows;
        let options = CastOptions {
            safe: false,
            ..CastOptions::default()
        };
        let fields = self.schema.fields().iter().skip(WINDOW_COLUMNS.len());
        let others = self.output_columns.iter().skip(2).zip(fields);
        let others = others.map(|(at, f)| {
            cast_with_options(batch.column(*at), f.data_type(), &options).map_err(|e| e.to_string())
        });
        let times = self.output_columns[..2]
            .iter()
            .map(|at| Ok(batch.column(*at).clone()));
        Ok((
            times.chain(others).collect::<Result<_, String>>()?,
            companions,
        ))
    }

    /// The table columns that a window's rows are ranked by, with whether they descend: those of an
    /// `order by` before a `limit`. Empty without both.
    pub(crate) fn ranking(&self) -> Vec<(&str, bool)> {
        let ranked = ranking(&self.steps);
        let name = |at: usize| {
            let at = self
                .output_columns
                .iter()
                .position(|output| *output == at)?;
            // In the table, the first two output columns are part of WINDOW_COLUMNS.
            let column = match at {
                0 | 1 => at + 1,
                _ => at - 2 + WINDOW_COLUMNS.len(),
            };
            Some(self.schema.field(column).name().as_str())
        };
        ranked
            .into_iter()
            .map_while(|(at, descends)| Some((name(at)?, descends)))
            .collect()
    }

    /// The names of the columns that identify a row within its window.
    pub(crate) fn key_names(&self) -> impl Iterator<Item = &str> {
        let name = |column: &usize| self.schema.field(*column).name().as_str();
        self.keys.iter().map(name)
    }

    /// Whether windows overlap, so that most open ones have a part of their time only.
    pub(crate) fn is_sliding(&self) -> bool {
        matches!(&self.shape, Shape::Aligned(assigner) if assigner.is_sliding())
    }

    /// Whether each key has windows of its own, which begin and end with its events.
    pub(crate) fn is_session(&self) -> bool {
        matches!(self.shape, Shape::Session { .. })
    }

    /// Whether the SQL orders or limits, so that each window must be finished by itself.
    pub(crate) fn has_order_or_limit(&self) -> bool {
        self.steps.iter().any(|s| {
            matches!(
                s,
                PostAggregateStep::Sort(_) | PostAggregateStep::Limit { .. }
            )
        })
    }
}

/// The nodes after the aggregation (outermost first) as steps.
pub(super) fn post_aggregate_steps(
    state: &SessionState,
    post_aggregate: &[&LogicalPlan],
    aggregate: &Aggregate,
) -> Result<Vec<PostAggregateStep>, PlanError> {
    let mut steps = Vec::new();
    let mut schema = &aggregate.schema;
    for node in post_aggregate.iter().rev() {
        match node {
            LogicalPlan::Filter(f) => {
                steps.push(PostAggregateStep::Filter(physical(
                    state,
                    &f.predicate,
                    schema,
                )?));
            }
            LogicalPlan::Projection(p) => {
                let expressions = p
                    .expr
                    .iter()
                    .map(|e| physical(state, e, schema))
                    .collect::<Result<_, _>>()?;
                steps.push(PostAggregateStep::Project(expressions));
                schema = &p.schema;
            }
            LogicalPlan::Sort(s) => {
                let by = s
                    .expr
                    .iter()
                    .map(|e| {
                        let options = SortOptions {
                            descending: !e.asc,
                            nulls_first: e.nulls_first,
                        };
                        Ok((physical(state, &e.expr, schema)?, options))
                    })
                    .collect::<Result<_, PlanError>>()?;
                steps.push(PostAggregateStep::Sort(by));
                if s.fetch.is_some() {
                    steps.push(PostAggregateStep::Limit {
                        skip: 0,
                        fetch: s.fetch,
                    });
                }
            }
            LogicalPlan::Limit(l) => {
                let constant = "the limit of a window must be a number";
                let SkipType::Literal(skip) = l.get_skip_type()? else {
                    return Err(PlanError::at_words(&["limit"], constant));
                };
                let FetchType::Literal(fetch) = l.get_fetch_type()? else {
                    return Err(PlanError::at_words(&["limit"], constant));
                };
                steps.push(PostAggregateStep::Limit { skip, fetch });
            }
            _ => return Err(FORM.into()),
        }
    }
    Ok(steps)
}

/// Which columns of the last step the table has (window_start, window_end first), and the table's
/// schema.
pub(super) fn table_schema(last: &DFSchemaRef) -> Result<(Vec<usize>, SchemaRef), PlanError> {
    let named = |wanted: &str| {
        let position = last.fields().iter().position(|f| f.name() == wanted);
        position.ok_or_else(|| PlanError::from(format!("select {wanted} too; {FORM}")))
    };
    let (start, end) = (named(START)?, named(END)?);
    let mut output_columns = vec![start, end];
    let mut fields = vec![
        Field::new("lsn", DataType::Int64, true),
        Field::new(START, types::timestamp(), true),
        Field::new(END, types::timestamp(), true),
        Field::new("version", DataType::Int64, true),
        Field::new("status", DataType::Utf8, true),
    ];
    for (at, field) in last
        .fields()
        .iter()
        .enumerate()
        .filter(|(at, _)| *at != start && *at != end)
    {
        let column = field.name();
        names::check_not_reserved(
            WINDOW_COLUMNS
                .iter()
                .chain(&["year", "month", "day", "hour"]),
            column,
        )?;
        let ty = stored_type(field.data_type()).ok_or_else(|| {
            let message = format!(
                "the column `{column}` is {}, which a table cannot hold; cast it",
                field.data_type()
            );
            PlanError::at_words(&[column], message)
        })?;
        fields.push(Field::new(column, ty, true));
        output_columns.push(at);
    }
    Ok((output_columns, Arc::new(Schema::new(fields))))
}

/// Follows columns through the projections of the steps: per output column, the column of the
/// aggregation that it is, if it is one unchanged.
struct ColumnOrigins(Vec<Option<usize>>);

impl ColumnOrigins {
    fn of_aggregation(columns: usize) -> Self {
        Self((0..columns).map(Some).collect())
    }

    fn origin(&self, column: usize) -> Option<usize> {
        self.0.get(column).copied().flatten()
    }

    fn project(&mut self, expressions: &[Arc<dyn PhysicalExpr>]) {
        let origin = |e: &Arc<dyn PhysicalExpr>| {
            let column = e.downcast_ref::<PhysicalColumn>()?;
            self.origin(column.index())
        };
        self.0 = expressions.iter().map(origin).collect();
    }
}

/// The table columns that identify a row within its window: every group column, which must be
/// selected unchanged. `times` are the positions of window_start and window_end among the groups.
pub(super) fn identifying_columns(
    steps: &[PostAggregateStep],
    output_columns: &[usize],
    aggregate: &Aggregate,
    times: [usize; 2],
) -> Result<Vec<usize>, PlanError> {
    let mut origins = ColumnOrigins::of_aggregation(aggregate.schema.fields().len());
    for step in steps {
        if let PostAggregateStep::Project(expressions) = step {
            origins.project(expressions);
        }
    }
    let groups = aggregate.group_expr.iter().enumerate();
    groups
        .filter(|(group, _)| !times.contains(group))
        .map(|(group, expression)| {
            let position = output_columns
                .iter()
                .position(|at| origins.origin(*at) == Some(group));
            let position = position.ok_or_else(|| {
                let message = format!(
                    "select `{expression}` too; all `group by` columns must be selected: they identify the row"
                );
                PlanError::at_words(&["group"], message)
            })?;
            // In the table, the first two output columns are part of WINDOW_COLUMNS.
            Ok(position - 2 + WINDOW_COLUMNS.len())
        })
        .collect()
}

/// Whether only the rows with the largest counts remain: `order by n desc … limit k`, with nothing
/// before it that drops rows. `groups` is the number of group columns; counts follow them.
pub(super) fn top(steps: &[PostAggregateStep], groups: usize) -> Option<Top> {
    let mut origins = ColumnOrigins::of_aggregation(groups + FAST_COUNTS);
    let (mut sorted, mut is_exact) = (None, false);
    for step in steps {
        match step {
            PostAggregateStep::Filter(_) => return None,
            PostAggregateStep::Project(expressions) => origins.project(expressions),
            PostAggregateStep::Sort(by) => {
                let (first, options) = by.first()?;
                let column = first.downcast_ref::<PhysicalColumn>()?.index();
                sorted = origins.origin(column).filter(|_| options.descending);
                is_exact = by.len() == 1;
            }
            PostAggregateStep::Limit { skip, fetch } => {
                let aggregate = sorted?.checked_sub(groups)?;
                return Some(Top {
                    aggregate,
                    rows: skip + (*fetch)?,
                    is_exact,
                });
            }
        }
    }
    None
}

/// The columns of the last step's output that order the rows which a limit selects, with whether
/// they descend; as far as they are selected unchanged.
fn ranking(steps: &[PostAggregateStep]) -> Vec<(usize, bool)> {
    let (mut order, mut is_limited) = (Vec::new(), false);
    for step in steps {
        match step {
            PostAggregateStep::Filter(_) => {}
            PostAggregateStep::Limit { .. } => is_limited = true,
            PostAggregateStep::Sort(by) => {
                let column = |(e, options): &(Arc<dyn PhysicalExpr>, SortOptions)| {
                    Some((
                        e.downcast_ref::<PhysicalColumn>()?.index(),
                        options.descending,
                    ))
                };
                order = by.iter().map_while(column).collect();
            }
            PostAggregateStep::Project(expressions) => {
                let moved = |(at, descends): (usize, bool)| {
                    let is_it = |e: &Arc<dyn PhysicalExpr>| {
                        e.downcast_ref::<PhysicalColumn>()
                            .is_some_and(|column| column.index() == at)
                    };
                    Some((expressions.iter().position(is_it)?, descends))
                };
                order = order.into_iter().map_while(moved).collect();
            }
        }
    }
    if is_limited { order } else { Vec::new() }
}

fn evaluate(expression: &Arc<dyn PhysicalExpr>, batch: &RecordBatch) -> Result<ArrayRef, String> {
    expression
        .evaluate(batch)
        .and_then(|v| v.into_array(batch.num_rows()))
        .map_err(|e| strip_internals(&e))
}

/// Columns as a batch; steps read them by position.
fn as_batch(columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch, String> {
    let fields: Vec<Field> = columns
        .iter()
        .enumerate()
        .map(|(n, a)| Field::new(format!("c{n}"), a.data_type().clone(), true))
        .collect();
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)
        .map_err(|e| e.to_string())
}

fn map_columns(
    columns: &[ArrayRef],
    kernel: impl Fn(&dyn Array) -> Result<ArrayRef, arrow::error::ArrowError>,
) -> Result<Vec<ArrayRef>, String> {
    columns
        .iter()
        .map(|a| kernel(a.as_ref()).map_err(|e| e.to_string()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(at: usize) -> Arc<dyn PhysicalExpr> {
        Arc::new(PhysicalColumn::new("", at))
    }

    fn sort(columns: &[(usize, bool)]) -> PostAggregateStep {
        let by = columns.iter().map(|(at, descending)| {
            let options = SortOptions {
                descending: *descending,
                nulls_first: true,
            };
            (column(*at), options)
        });
        PostAggregateStep::Sort(by.collect())
    }

    const LIMIT: PostAggregateStep = PostAggregateStep::Limit {
        skip: 1,
        fetch: Some(10),
    };

    #[test]
    fn rows_that_a_limit_selects_are_ranked_by_the_columns_that_the_table_has() {
        let sort = || sort(&[(2, true), (1, false)]);
        let project = |columns: &[usize]| {
            PostAggregateStep::Project(columns.iter().map(|at| column(*at)).collect())
        };
        assert!(ranking(&[sort()]).is_empty());
        assert_eq!(ranking(&[sort(), LIMIT]), [(2, true), (1, false)]);
        let reordered = [sort(), LIMIT, project(&[2, 0, 1])];
        assert_eq!(ranking(&reordered), [(0, true), (2, false)]);
        assert_eq!(ranking(&[sort(), project(&[0, 2]), LIMIT]), [(1, true)]);
        assert!(ranking(&[sort(), LIMIT, project(&[0, 1])]).is_empty());
    }

    #[test]
    fn a_limit_after_a_descending_count_selects_the_top_counts() {
        // Columns: window_start, window_end, kind, count.
        let top_of = |steps: Vec<PostAggregateStep>| {
            top(&steps, 3).map(|t| (t.aggregate, t.rows, t.is_exact))
        };
        let swapped = PostAggregateStep::Project(vec![column(3), column(0)]);
        for (steps, expected) in [
            (vec![sort(&[(3, true)]), LIMIT], Some((0, 11, true))),
            (
                vec![sort(&[(3, true), (2, false)]), LIMIT],
                Some((0, 11, false)),
            ),
            (
                vec![swapped, sort(&[(0, true)]), LIMIT],
                Some((0, 11, true)),
            ),
            (vec![sort(&[(3, false)]), LIMIT], None),
            (vec![sort(&[(2, true)]), LIMIT], None),
            (vec![sort(&[(3, true)])], None),
            (vec![LIMIT], None),
            (
                vec![
                    PostAggregateStep::Filter(column(3)),
                    sort(&[(3, true)]),
                    LIMIT,
                ],
                None,
            ),
        ] {
            assert_eq!(top_of(steps.clone()), expected, "{steps:?}");
        }
    }

    #[test]
    fn companions_are_ordered_and_limited_along_with_the_rows() {
        let array = |values: [i64; 4]| -> ArrayRef {
            Arc::new(arrow::array::Int64Array::from(values.to_vec()))
        };
        let mut rows = StepRows {
            batch: as_batch(vec![array([1, 3, 2, 3])], 4).expect("a batch"),
            companions: vec![array([10, 30, 20, 31])],
        };
        let limit = PostAggregateStep::Limit {
            skip: 1,
            fetch: Some(2),
        };
        for step in [sort(&[(0, true)]), limit] {
            rows = rows.apply(&step).expect("applied");
        }
        let expected: ArrayRef = Arc::new(arrow::array::Int64Array::from(vec![31, 20]));
        assert_eq!(rows.companions, [expected]);
    }
}
