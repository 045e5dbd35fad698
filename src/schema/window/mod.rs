//! A window's SQL, planned: one aggregation over `tumble`, `hop` or `session` of a stream or of
//! another window.
//!
//! ```text
//! select window_start, window_end, kind, count(*) as n      ─ after the aggregation: `finish`
//! from tumble(sensors, event_time, interval '1 minute')     ─ the call: `call`, `assigner`
//! where value > 0                                           ─ before it: `rows`
//! group by window_start, window_end, kind having count(*) > 1
//! ```
//!
//! What comes before and after the aggregation becomes physical expressions (`plan`); the
//! aggregation itself runs incrementally in `operators::windows`. For the SQL above:
//!
//! | field | value |
//! |---|---|
//! | `input`, `time` | `sensors`, the position of `event_time` |
//! | `filter`, `duplicates` | `value > 0`, the position of `is_duplicate` |
//! | `columns` | the positions of what the aggregation reads: `kind` |
//! | `groups`, `aggregates` | window_start, window_end, kind; count(*), counted by `counts_only` |
//! | `steps` | filter count(*) > 1, project window_start, window_end, kind, n |
//! | `keys` | the position of `kind` among the columns of NAME_versions |

pub(crate) mod assigner;
mod call;
mod finish;
mod plan;
mod rows;
mod zone;

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::execution::session_state::SessionState;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;

use super::select::{MAX_SQL_BYTES, json_is_not_a_key, planning};
use super::{PlanError, dialect, names, types};
use crate::config::{Late, SqlBounds, WindowDef};
use assigner::WindowAssigner;
pub(crate) use call::Shape;
use call::{Call, MAX_SIZE, shape, take_call};
use finish::{PostAggregateStep, identifying_columns, post_aggregate_steps, table_schema, top};
use plan::{
    Expressions, check_no_json_groups, columns_read, expressions, input_filter, plan_statement,
    references_column, split_at_aggregate, time_group_positions, visible_columns,
};
pub(crate) use rows::true_only;

const START: &str = "window_start";
const END: &str = "window_end";
/// Columns that Weir puts before those of the SQL.
pub(crate) const WINDOW_COLUMNS: [&str; 5] = ["lsn", START, END, "version", "status"];
/// Counts per group that the fast path (only plain counts) holds.
pub(crate) const FAST_COUNTS: usize = 4;

/// One aggregate of the select.
#[derive(Debug, Clone)]
pub(crate) struct AggregatePlan {
    /// The function with its arguments, on the projected columns.
    pub(crate) function: Arc<AggregateFunctionExpr>,
    /// Its `filter (where …)`: rows for which it is not true are not aggregated.
    pub(crate) filter: Option<Arc<dyn PhysicalExpr>>,
}

/// A window whose rows depend only on its largest counts: `order by n desc limit k`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Top {
    /// Which aggregate orders the rows.
    pub(crate) aggregate: usize,
    /// How many rows can be selected: `offset` and `limit` together.
    pub(crate) rows: usize,
    /// The count is the only sort key, so ties are broken by the group columns.
    pub(crate) is_exact: bool,
}

/// A window, ready to run.
#[derive(Debug)]
pub struct Window {
    pub(crate) name: String,
    /// The declaration that it was planned from.
    pub(crate) def: WindowDef,
    /// Name of the stream or window that it reads.
    pub(crate) input: String,
    /// The stream at the beginning of the chain.
    pub(crate) stream: String,
    /// Which windows a time belongs to.
    pub(crate) shape: Shape,
    /// Position of the time column in the input.
    pub(crate) time: usize,
    /// The input's `is_duplicate`: duplicates are skipped unless the SQL references the column.
    duplicates: Option<usize>,
    filter: Option<Arc<dyn PhysicalExpr>>,
    /// Columns of the input that the aggregation reads, before window_start and window_end.
    pub(crate) columns: Vec<usize>,
    /// `columns`, then window_start and window_end: the input of the aggregation's expressions.
    pub(crate) projected_schema: SchemaRef,
    /// The expressions of `group by` on the projected columns, each with a name.
    pub(crate) groups: Vec<(Arc<dyn PhysicalExpr>, String)>,
    /// Positions of window_start and window_end among the groups. The panes' own times are put
    /// there first, and the window's when it fires.
    pub(crate) start_at: usize,
    pub(crate) end_at: usize,
    pub(crate) aggregates: Vec<AggregatePlan>,
    /// Every aggregate is a plain count, and they are few: the fast path holds them.
    pub(crate) counts_only: bool,
    /// The rows with the largest counts are enough; only where `counts_only`.
    pub(crate) top: Option<Top>,
    steps: Vec<PostAggregateStep>,
    /// Position of each table column in the last step's output: window_start, window_end, the
    /// rest.
    output_columns: Vec<usize>,
    /// Columns of NAME_versions, without partition columns.
    pub(crate) schema: SchemaRef,
    /// Columns of `schema` that identify a row within its window.
    pub(crate) keys: Vec<usize>,
}

/// What a window reads: a stream's table, or another window's.
pub(crate) struct Input<'a> {
    /// Name of the stream or window.
    pub(crate) name: &'a str,
    /// The stream at the beginning of the chain; `name` itself if that is a stream.
    pub(crate) stream: &'a str,
    /// Columns of its rows, those that Weir adds included.
    pub(crate) schema: &'a SchemaRef,
    /// The columns, with marks on those that hold JSON text.
    pub(crate) marked: &'a SchemaRef,
}

/// Name of the stream or window that a window's SQL reads, found before anything is planned.
pub(crate) fn input_table(sql: &str, bounds: SqlBounds) -> Result<String, PlanError> {
    Ok(take_call(&mut parse(sql, bounds)?.1)?.input.value)
}

fn parse(sql: &str, bounds: SqlBounds) -> Result<(SessionState, Statement), PlanError> {
    if sql.len() > MAX_SQL_BYTES {
        return Err(format!("the text has more than {MAX_SQL_BYTES} bytes").into());
    }
    let state = planning(bounds)?.state();
    let statement = dialect::parse(&state, sql)?;
    Ok((state, statement))
}

/// A session has no key of type json, and never updates stored rows.
fn check_session(def: &WindowDef, input: &Input<'_>, key: usize) -> Result<(), PlanError> {
    let key = input.schema.field(key).name();
    if input.marked.field_with_name(key).is_ok_and(types::is_json) {
        return Err(PlanError::at_words(&[key], json_is_not_a_key(key)));
    }
    if def.late == Late::Update {
        let message =
            "late = \"update\" is for tumble and hop; a session is stored once, when it is closed";
        return Err(PlanError::at_words(&["session"], message));
    }
    Ok(())
}

/// The window's time column: any timestamp of a stream, window_start or window_end of a window.
fn time_column(call: &Call, input: &Input<'_>) -> Result<usize, PlanError> {
    let time = input_column(input, &call.time)?;
    let is_timestamp = input.schema.field(time).data_type() == &types::timestamp();
    if is_timestamp && (input.is_stream() || time <= 2) {
        return Ok(time);
    }
    let message = format!("`{}` is not a time column of {}", call.time, input.name);
    Err(PlanError::from(message).at_span(call.time.span))
}

fn input_column(input: &Input<'_>, column: &ast::Ident) -> Result<usize, PlanError> {
    input.schema.index_of(&column.value).map_err(|_| {
        let message = names::unknown_column(&column.value, input.name, input.schema);
        PlanError::from(message).at_span(column.span)
    })
}

/// Whether the fast path can hold the aggregates: a few plain counts.
fn is_counts_only(aggregates: &[AggregatePlan]) -> bool {
    aggregates.len() <= FAST_COUNTS
        && aggregates.iter().all(|a| {
            a.function.fun().name() == "count"
                && !a.function.is_distinct()
                && a.function.expressions().len() == 1
        })
}

impl Input<'_> {
    fn is_stream(&self) -> bool {
        self.name == self.stream
    }
}

impl Window {
    /// Plans a window that reads an input. An error names the part of the SQL that is wrong.
    pub(crate) fn plan(
        name: &str,
        def: &WindowDef,
        input: &Input<'_>,
        bounds: SqlBounds,
    ) -> Result<Self, PlanError> {
        let (_, mut statement) = parse(&def.sql, bounds)?;
        let mentions_duplicates = references_column(&statement, "is_duplicate");
        names::check_named(&statement, input.schema)?;
        let call = take_call(&mut statement)?;
        let visible = visible_columns(input);
        let time = time_column(&call, input)?;
        let shape = shape(&call, &|column| input_column(input, column))?;
        if let Shape::Session { key, .. } = shape {
            check_session(def, input, key)?;
        }
        if def.allowed_lateness.micros() > MAX_SIZE {
            return Err("allowed_lateness: at most 400 days".into());
        }
        let (state, plan) = plan_statement(statement, &visible, bounds)?;
        let (post_aggregate, aggregate) = split_at_aggregate(&plan)?;
        let filter = input_filter(&state, &aggregate.input, &visible)?;
        check_no_json_groups(aggregate, input.marked)?;
        let (start_at, end_at) = time_group_positions(aggregate)?;
        let (columns, projected) = columns_read(aggregate, visible.len())?;
        let Expressions { groups, aggregates } = expressions(&state, aggregate, &projected)?;
        let steps = post_aggregate_steps(&state, &post_aggregate, aggregate)?;
        let last = post_aggregate
            .first()
            .map_or(&aggregate.schema, |plan| plan.schema());
        let (output_columns, schema) = table_schema(last)?;
        let keys = identifying_columns(&steps, &output_columns, aggregate, [start_at, end_at])?;
        debug_assert!(keys.iter().all(|k| *k < schema.fields().len()));
        let counts_only = is_counts_only(&aggregates);
        let top = if counts_only {
            top(&steps, groups.len())
        } else {
            None
        };
        Ok(Self {
            name: name.to_owned(),
            def: def.clone(),
            input: input.name.to_owned(),
            stream: input.stream.to_owned(),
            shape,
            time,
            duplicates: (input.is_stream() && !mentions_duplicates)
                .then(|| input.schema.index_of("is_duplicate").ok())
                .flatten(),
            filter,
            columns: columns.iter().map(|n| visible[*n].0).collect(),
            projected_schema: Arc::new(projected.as_arrow().clone()),
            groups,
            start_at,
            end_at,
            aggregates,
            counts_only,
            top,
            steps,
            output_columns,
            schema,
            keys,
        })
    }

    /// Whether another version of the zone data gives other rows.
    pub(crate) fn depends_on_zones(&self) -> bool {
        let is_local = matches!(self.shape, Shape::Aligned(WindowAssigner::Local { .. }));
        is_local || self.def.sql.to_lowercase().contains("time zone")
    }
}

#[cfg(test)]
pub(crate) use call::FORM;
