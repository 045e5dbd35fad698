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
//! aggregation itself runs incrementally in `operators::windows`.

pub mod assigner;
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
pub use call::Shape;
use call::{Call, MAX_SIZE, shape, take_call};
use finish::{Step, identifying_columns, post_aggregate_steps, table_schema, top};
use plan::{
    Expressions, check_no_json_groups, columns_read, expressions, input_filter, plan_statement,
    references_column, split_at_aggregate, time_group_positions, visible_columns,
};
pub use rows::true_only;

const START: &str = "window_start";
const END: &str = "window_end";
/// Columns that Weir puts before those of the SQL.
pub const WINDOW_COLUMNS: [&str; 5] = ["lsn", START, END, "version", "status"];
/// Counts per group that the fast path (only plain counts) holds.
pub const FAST_COUNTS: usize = 4;

/// One aggregate of the select.
#[derive(Debug, Clone)]
pub struct AggregatePlan {
    pub function: Arc<AggregateFunctionExpr>,
    pub filter: Option<Arc<dyn PhysicalExpr>>,
}

/// A window whose rows depend only on its largest counts: `order by n desc limit k`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Top {
    /// Which aggregate orders the rows.
    pub aggregate: usize,
    pub rows: usize,
    /// The count is the only sort key, so ties are broken by the group columns.
    pub is_exact: bool,
}

/// A window, ready to run.
#[derive(Debug)]
pub struct Window {
    pub name: String,
    pub def: WindowDef,
    /// The stream or window that it reads.
    pub over: String,
    /// The stream at the beginning of the chain.
    pub stream: String,
    pub shape: Shape,
    /// The time column in the input.
    pub time: usize,
    /// The input's `is_duplicate`: duplicates are skipped unless the SQL references the column.
    duplicates: Option<usize>,
    filter: Option<Arc<dyn PhysicalExpr>>,
    /// Columns of the input that the aggregation reads, before window_start and window_end.
    pub columns: Vec<usize>,
    /// `columns`, then window_start and window_end: the input of the aggregation's expressions.
    pub reduced: SchemaRef,
    pub groups: Vec<(Arc<dyn PhysicalExpr>, String)>,
    /// Where window_start and window_end are among the groups.
    pub start_at: usize,
    pub end_at: usize,
    pub aggregates: Vec<AggregatePlan>,
    /// Every aggregate is a plain count.
    pub counts_only: bool,
    pub top: Option<Top>,
    steps: Vec<Step>,
    /// Position of each table column in the last step's output: window_start, window_end, the
    /// rest.
    output_columns: Vec<usize>,
    /// Columns of NAME_versions, without partition columns.
    pub schema: SchemaRef,
    /// Columns of `schema` that identify a row within its window.
    pub keys: Vec<usize>,
}

/// What a window reads: a stream's table, or another window's.
pub struct Input<'a> {
    pub name: &'a str,
    /// The stream at the beginning of the chain; `name` itself if that is a stream.
    pub stream: &'a str,
    pub schema: &'a SchemaRef,
    /// The columns, with marks on those that hold JSON text.
    pub marked: &'a SchemaRef,
}

/// Name of the stream or window that a window's SQL reads, found before anything is planned.
pub fn input_table(sql: &str, bounds: SqlBounds) -> Result<String, PlanError> {
    Ok(take_call(&mut parse(sql, bounds)?.1)?.over.value)
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
    /// Plans a window over an input.
    pub fn plan(
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
        let (columns, reduced) = columns_read(aggregate, visible.len())?;
        let Expressions { groups, aggregates } = expressions(&state, aggregate, &reduced)?;
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
            over: input.name.to_owned(),
            stream: input.stream.to_owned(),
            shape,
            time,
            duplicates: (input.is_stream() && !mentions_duplicates)
                .then(|| input.schema.index_of("is_duplicate").ok())
                .flatten(),
            filter,
            columns: columns.iter().map(|n| visible[*n].0).collect(),
            reduced: Arc::new(reduced.as_arrow().clone()),
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
    pub fn depends_on_zones(&self) -> bool {
        let is_local = matches!(self.shape, Shape::Aligned(WindowAssigner::Local { .. }));
        is_local || self.def.sql.to_lowercase().contains("time zone")
    }
}
