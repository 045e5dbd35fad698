//! A window's SQL, planned: one aggregation over `tumble`, `hop` or `session` of a stream or of
//! another window. What lies below the aggregation and above it becomes physical expressions; the
//! aggregation itself runs in parts, as `operators::windows` says.

pub mod assigner;
mod call;
mod zone;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::{
    CastOptions, SortColumn, SortOptions, and, cast_with_options, filter, filter_record_batch,
    lexsort_to_indices, not, prep_null_mask_filter, take,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, DFSchemaRef};
use datafusion::datasource::empty::EmptyTable;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Aggregate, Expr, FetchType, LogicalPlan, SkipType, Volatility};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::{AggregateFunctionExpr, LoweredAggregateBuilder};
use datafusion::physical_expr::expressions::Column as PhysicalColumn;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;

use super::select::{
    MAX_SQL_BYTES, explain, json_is_no_key, physical, planning, stored_type, taken,
};
use super::{PlanError, bounds as sql_bounds, dialect, names, types};
use crate::config::{Late, SqlBounds, WindowDef};
use assigner::WindowAssigner;
pub use call::Shape;
use call::{FORM, INPUT, LONGEST, call, shape};

const START: &str = "window_start";
const END: &str = "window_end";
/// Columns that Weir puts before a window's own.
pub const WINDOW_COLUMNS: [&str; 5] = ["lsn", START, END, "version", "status"];
/// Counts that the fast way of counting keeps of a group.
pub const FAST_COUNTS: usize = 4;

/// One aggregate of the select.
#[derive(Debug, Clone)]
pub struct AggregatePlan {
    pub function: Arc<AggregateFunctionExpr>,
    pub filter: Option<Arc<dyn PhysicalExpr>>,
}

/// The largest counts of a window are all that its rows depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Top {
    pub aggregate: usize,
    pub rows: usize,
    /// Nothing but the count orders them, so that of equal ones the first by their group columns
    /// are taken.
    pub is_exact: bool,
}

/// What happens to the aggregation's rows, in order.
#[derive(Debug, Clone)]
enum Step {
    Filter(Arc<dyn PhysicalExpr>),
    Project(Vec<Arc<dyn PhysicalExpr>>),
    /// Ties stay in the order of the group columns.
    Sort(Vec<(Arc<dyn PhysicalExpr>, SortOptions)>),
    Limit {
        skip: usize,
        fetch: Option<usize>,
    },
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
    /// The time's column in the input.
    pub time: usize,
    /// The column that says whether a row is a repeat, where they are passed over because the SQL
    /// does not speak of it.
    repeat: Option<usize>,
    filter: Option<Arc<dyn PhysicalExpr>>,
    /// Columns of the input that the aggregation reads; window_start and window_end come behind
    /// them.
    pub columns: Vec<usize>,
    /// `columns` with window_start and window_end, which the aggregation's expressions are made
    /// for.
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
    /// Per own column of the table, which one of the last step's it is.
    own: Vec<usize>,
    /// Columns of NAME_versions, without partition columns.
    pub schema: SchemaRef,
    /// Columns of `schema` by which a row is known in its window.
    pub keys: Vec<usize>,
}

/// What a window reads: its name, the stream at the beginning, the columns, and which of them are
/// times.
pub struct Input<'a> {
    pub name: &'a str,
    pub stream: &'a str,
    pub schema: &'a SchemaRef,
    /// Columns with marks on what holds JSON text.
    pub marked: &'a SchemaRef,
}

/// What the SQL of a window reads, found before anything is planned; none where it has another
/// shape.
pub fn reads(sql: &str, bounds: SqlBounds) -> Result<String, PlanError> {
    Ok(call(&mut parse(sql, bounds)?.1)?.over.value)
}

fn parse(sql: &str, bounds: SqlBounds) -> Result<(SessionState, Statement), PlanError> {
    if sql.len() > MAX_SQL_BYTES {
        return Err(format!("the text has more than {MAX_SQL_BYTES} bytes").into());
    }
    let state = planning(bounds)?.state();
    let statement = dialect::parse(&state, sql)?;
    Ok((state, statement))
}

/// Refuses what a session cannot have: a key of type json, and updates of what is stored.
fn check_session(def: &WindowDef, input: &Input<'_>, key: usize) -> Result<(), PlanError> {
    let key = input.schema.field(key).name();
    if input.marked.field_with_name(key).is_ok_and(types::is_json) {
        return Err(PlanError::about(&[key], json_is_no_key(key)));
    }
    if def.late == Late::Update {
        let message =
            "late = \"update\" is for tumble and hop; a session is stored once, when it is closed";
        return Err(PlanError::about(&["session"], message));
    }
    Ok(())
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
        let mentions_duplicates = speaks_of(&statement, "is_duplicate");
        let call =
            names::refuse_unnamed(&statement, input.schema).and_then(|()| call(&mut statement))?;
        let is_stream = input.name == input.stream;
        let visible = visible_columns(input);
        let column = |wanted: &ast::Ident| {
            input.schema.index_of(&wanted.value).map_err(|_| {
                let known = input
                    .schema
                    .fields()
                    .iter()
                    .map(|f| f.name().as_str())
                    .collect::<Vec<_>>()
                    .join(", ");
                let message = format!(
                    "`{}` is no column of {}; there are {known}",
                    wanted.value, input.name
                );
                PlanError::from(message).placed(wanted.span)
            })
        };
        let time = column(&call.time)?;
        if input.schema.field(time).data_type() != &types::timestamp() || !is_stream && time > 2 {
            return Err(
                PlanError::from(format!("`{}` is no time of {}", call.time, input.name))
                    .placed(call.time.span),
            );
        }
        let shape = shape(&call, &column)?;
        if let Shape::Session { key, .. } = shape {
            check_session(def, input, key)?;
        }
        if def.allowed_lateness.micros() > LONGEST {
            return Err("allowed_lateness: at most 400 days".into());
        }
        let (state, plan) = logical(statement, &visible, bounds)?;
        let (above, aggregate) = split(&plan)?;
        let filter = below(&state, &aggregate.input, &visible)?;
        refuse_json_groups(aggregate, input.marked)?;
        let (start_at, end_at) = times_among_groups(aggregate)?;
        let (columns, reduced) = columns_read(aggregate, visible.len())?;
        let Expressions { groups, aggregates } = expressions(&state, aggregate, &reduced)?;
        let counts_only = aggregates.len() <= FAST_COUNTS
            && aggregates.iter().all(|a| {
                a.function.fun().name() == "count"
                    && !a.function.is_distinct()
                    && a.function.expressions().len() == 1
            });
        let steps = steps(&state, &above, aggregate)?;
        let last = above
            .first()
            .map_or(&aggregate.schema, |plan| plan.schema());
        let (own, schema) = table_schema(last)?;
        let keys = keys(&steps, &own, &schema, aggregate, start_at, end_at)?;
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
            repeat: (is_stream && !mentions_duplicates)
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
            own,
            schema,
            keys,
        })
    }

    /// Which rows of an input the window counts at all.
    pub fn passes(&self, input: &RecordBatch) -> Result<BooleanArray, String> {
        let mut passes = match &self.filter {
            Some(condition) => {
                let array = condition
                    .evaluate(input)
                    .and_then(|v| v.into_array(input.num_rows()));
                let array = array.map_err(|e| explain(&e))?;
                let mask = array
                    .as_any()
                    .downcast_ref::<BooleanArray>()
                    .ok_or("the condition is no condition")?;
                true_only(mask)
            }
            None => BooleanArray::from(vec![true; input.num_rows()]),
        };
        if let Some(repeat) = self.repeat
            && let Some(is_duplicate) = input.column(repeat).as_any().downcast_ref::<BooleanArray>()
        {
            let is_new = not(&true_only(is_duplicate)).map_err(|e| e.to_string())?;
            passes = and(&passes, &is_new).map_err(|e| e.to_string())?;
        }
        Ok(passes)
    }

    /// Whether every expression below the aggregation has a value for these rows.
    fn evaluates(&self, reduced: &RecordBatch) -> bool {
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
            .all(|e| e.evaluate(reduced).is_ok())
    }

    /// The rows that are counted, and the rows of which some expression has no value: a division by
    /// zero, a cast that fails.
    pub fn passing(&self, input: &RecordBatch, reduced: &RecordBatch) -> (BooleanArray, usize) {
        if let Ok(passes) = self.passes(input)
            // Counting evaluates everything once; what comes of an error there is found out row by
            // row.
            && (self.counts_only || self.evaluates(reduced))
        {
            return (passes, 0);
        }
        self.passing_one_by_one(input, reduced)
    }

    /// As [`Self::passing`], where some row is known to have no value.
    pub fn passing_one_by_one(
        &self,
        input: &RecordBatch,
        reduced: &RecordBatch,
    ) -> (BooleanArray, usize) {
        let row = |at: usize| {
            let passes = self.passes(&input.slice(at, 1)).ok()?;
            (!passes.value(0) || self.evaluates(&reduced.slice(at, 1))).then_some(passes.value(0))
        };
        let rows: Vec<Option<bool>> = (0..input.num_rows()).map(row).collect();
        let failed = rows.iter().filter(|r| r.is_none()).count();
        (
            rows.into_iter().map(|r| Some(r == Some(true))).collect(),
            failed,
        )
    }

    /// The columns that the aggregation reads, with window_start and window_end.
    pub fn reduce(&self, input: &RecordBatch, times: &ArrayRef) -> Result<RecordBatch, String> {
        let mut columns: Vec<ArrayRef> = self
            .columns
            .iter()
            .map(|c| input.column(*c).clone())
            .collect();
        columns.extend([times.clone(), times.clone()]);
        RecordBatch::try_new(self.reduced.clone(), columns).map_err(|e| e.to_string())
    }

    /// From the aggregation's rows (groups, then aggregates, in the order of the group columns) to
    /// the table's own columns. `beside` goes with the rows. Where the SQL orders or limits, all
    /// rows must be of one window.
    pub fn finish(
        &self,
        rows: Vec<ArrayRef>,
        beside: Vec<ArrayRef>,
    ) -> Result<(Vec<ArrayRef>, Vec<ArrayRef>), String> {
        let count = rows.first().map_or(0, |a| a.len());
        let (mut rows, mut beside) = (as_batch(rows, count)?, beside);
        for step in &self.steps {
            match step {
                Step::Filter(condition) => {
                    let mask = evaluate(condition, &rows)?;
                    let mask = mask
                        .as_any()
                        .downcast_ref::<BooleanArray>()
                        .ok_or("having is no condition")?;
                    let mask = true_only(mask);
                    rows = filter_record_batch(&rows, &mask).map_err(|e| e.to_string())?;
                    beside = pick(&beside, |a| filter(a, &mask))?;
                }
                Step::Project(expressions) => {
                    let columns = expressions
                        .iter()
                        .map(|e| evaluate(e, &rows))
                        .collect::<Result<Vec<_>, _>>()?;
                    rows = as_batch(columns, rows.num_rows())?;
                }
                Step::Sort(by) => {
                    let mut columns = by
                        .iter()
                        .map(|(e, options)| {
                            Ok(SortColumn {
                                values: evaluate(e, &rows)?,
                                options: Some(*options),
                            })
                        })
                        .collect::<Result<Vec<_>, String>>()?;
                    let order: UInt32Array = (0..rows.num_rows() as u32).collect();
                    columns.push(SortColumn {
                        values: Arc::new(order),
                        options: None,
                    });
                    let order = lexsort_to_indices(&columns, None).map_err(|e| e.to_string())?;
                    let columns = pick(rows.columns(), |a| take(a, &order, None))?;
                    rows = as_batch(columns, rows.num_rows())?;
                    beside = pick(&beside, |a| take(a, &order, None))?;
                }
                Step::Limit { skip, fetch } => {
                    let from = (*skip).min(rows.num_rows());
                    let length = fetch.unwrap_or(usize::MAX).min(rows.num_rows() - from);
                    rows = rows.slice(from, length);
                    beside = beside.iter().map(|a| a.slice(from, length)).collect();
                }
            }
        }
        let options = CastOptions {
            safe: false,
            ..CastOptions::default()
        };
        let fields = self.schema.fields().iter().skip(WINDOW_COLUMNS.len());
        let own = self.own.iter().skip(2).zip(fields).map(|(at, f)| {
            cast_with_options(rows.column(*at), f.data_type(), &options).map_err(|e| e.to_string())
        });
        let times = self.own[..2].iter().map(|at| Ok(rows.column(*at).clone()));
        Ok((times.chain(own).collect::<Result<_, String>>()?, beside))
    }

    /// Whether its rows are other ones by another version of the zone data.
    pub fn depends_on_zones(&self) -> bool {
        let is_local = matches!(self.shape, Shape::Aligned(WindowAssigner::Local { .. }));
        is_local || self.def.sql.to_lowercase().contains("time zone")
    }

    /// Whether the SQL orders or limits, so that windows must be finished one by one.
    pub fn is_one_by_one(&self) -> bool {
        self.steps
            .iter()
            .any(|s| matches!(s, Step::Sort(_) | Step::Limit { .. }))
    }
}

/// The columns that a window's SQL may speak of. A window's own times are named anew by the window
/// over it.
fn visible_columns(input: &Input<'_>) -> Vec<(usize, Field)> {
    let fields = input.schema.fields().iter().enumerate();
    let is_visible = |name: &str| input.name == input.stream || !WINDOW_COLUMNS.contains(&name);
    fields
        .filter(|(_, f)| is_visible(f.name()))
        .map(|(at, f)| (at, f.as_ref().clone()))
        .collect()
}

/// Whether a name occurs as a column anywhere in a statement.
fn speaks_of(statement: &Statement, name: &str) -> bool {
    let Statement::Statement(inner) = statement else {
        return false;
    };
    ast::visit_expressions(inner.as_ref(), |expression| match expression {
        ast::Expr::Identifier(found) if found.value.eq_ignore_ascii_case(name) => {
            ControlFlow::Break(())
        }
        ast::Expr::CompoundIdentifier(parts)
            if parts
                .last()
                .is_some_and(|p| p.value.eq_ignore_ascii_case(name)) =>
        {
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    })
    .is_break()
}

fn is_column(expression: &Expr, name: &str) -> bool {
    matches!(expression, Expr::Column(column) if column.name == name)
}

/// Plans a statement over the visible columns with window_start and window_end behind them.
fn logical(
    statement: Statement,
    visible: &[(usize, Field)],
    bounds: SqlBounds,
) -> Result<(SessionState, LogicalPlan), PlanError> {
    let mut fields: Vec<Field> = visible.iter().map(|(_, f)| f.clone()).collect();
    fields.extend([START, END].map(|name| Field::new(name, types::timestamp(), true)));
    let context = planning(bounds)?;
    let table = Arc::new(EmptyTable::new(Arc::new(Schema::new(fields))));
    context.register_table(INPUT, table)?;
    let state = context.state();
    // Planning over a table in memory does no I/O, so it needs no runtime.
    let plan = futures::executor::block_on(state.statement_to_plan(statement))?;
    sql_bounds::plan::check(&plan)?;
    refuse_what_changes(&plan)?;
    let plan = state
        .analyzer()
        .execute_and_check(plan, state.config_options(), |_, _| {})?;
    Ok((state, plan))
}

fn refuse_json_groups(aggregate: &Aggregate, marked: &Schema) -> Result<(), PlanError> {
    let json = aggregate
        .group_expr
        .iter()
        .filter_map(|e| taken(e, marked))
        .find(types::is_json);
    json.map_or(Ok(()), |field| {
        Err(PlanError::about(&["group"], json_is_no_key(field.name())))
    })
}

/// Where window_start and window_end are among the groups; nothing else may speak of them.
fn times_among_groups(aggregate: &Aggregate) -> Result<(usize, usize), PlanError> {
    let at = |wanted: &str| {
        let position = aggregate
            .group_expr
            .iter()
            .position(|e| is_column(e, wanted));
        position.ok_or_else(|| {
            let message = format!("group by {wanted} too, as it stands; {FORM}");
            PlanError::about(&["group"], message)
        })
    };
    let (start_at, end_at) = (at(START)?, at(END)?);
    let others = aggregate
        .group_expr
        .iter()
        .enumerate()
        .filter(|(n, _)| *n != start_at && *n != end_at);
    for expression in others.map(|(_, e)| e).chain(&aggregate.aggr_expr) {
        if matches!(expression, Expr::GroupingSet(_)) {
            let message = "grouping sets are not allowed here; declare one window for each";
            return Err(PlanError::about(&["group"], message));
        }
        if expression
            .column_refs()
            .iter()
            .any(|c| [START, END].contains(&c.name.as_str()))
        {
            let message = format!(
                "`{expression}`: use the time column instead of {START} and {END} inside expressions"
            );
            return Err(PlanError::about(&["group"], message));
        }
    }
    Ok((start_at, end_at))
}

/// The columns that the aggregation reads, by their places among the visible ones, and their schema
/// with window_start and window_end.
fn columns_read(
    aggregate: &Aggregate,
    visible: usize,
) -> Result<(Vec<usize>, DFSchemaRef), PlanError> {
    let inner = aggregate.input.schema();
    let used: BTreeSet<&Column> = aggregate
        .group_expr
        .iter()
        .chain(&aggregate.aggr_expr)
        .flat_map(Expr::column_refs)
        .collect();
    let qualified = |n: usize| {
        let (qualifier, field) = inner.qualified_field(n);
        (qualifier.cloned(), field.clone())
    };
    let is_used = |n: &usize| {
        let (qualifier, field) = qualified(*n);
        used.contains(&Column::new(qualifier, field.name()))
    };
    let wanted: Vec<usize> = (0..visible).filter(is_used).collect();
    let kept = wanted
        .iter()
        .copied()
        .chain([visible, visible + 1])
        .map(qualified)
        .collect();
    let reduced = DFSchema::new_with_metadata(kept, Default::default())?;
    Ok((wanted, Arc::new(reduced)))
}

/// Groups and aggregates on the columns that are read.
struct Expressions {
    groups: Vec<(Arc<dyn PhysicalExpr>, String)>,
    aggregates: Vec<AggregatePlan>,
}

fn expressions(
    state: &SessionState,
    aggregate: &Aggregate,
    reduced: &DFSchemaRef,
) -> Result<Expressions, PlanError> {
    let groups = aggregate
        .group_expr
        .iter()
        .enumerate()
        .map(|(n, e)| Ok((physical(state, e, reduced)?, format!("group_{n}"))))
        .collect::<Result<_, PlanError>>()?;
    let planning = PhysicalPlanningContext::default();
    let aggregates = aggregate
        .aggr_expr
        .iter()
        .enumerate()
        .map(|(n, e)| {
            let lowered = LoweredAggregateBuilder::new(
                e,
                reduced,
                reduced.as_arrow(),
                state.execution_props(),
                &planning,
            )
            .with_name(format!("aggregate_{n}"))
            .build()?;
            Ok(AggregatePlan {
                function: lowered.aggregate,
                filter: lowered.filter,
            })
        })
        .collect::<Result<_, PlanError>>()?;
    Ok(Expressions { groups, aggregates })
}

/// The nodes above the aggregation, outermost first, and the aggregation.
fn split(plan: &LogicalPlan) -> Result<(Vec<&LogicalPlan>, &Aggregate), PlanError> {
    let (mut above, mut node) = (Vec::new(), plan);
    loop {
        let input = match node {
            LogicalPlan::Aggregate(aggregate) => return Ok((above, aggregate)),
            LogicalPlan::Projection(p) => &p.input,
            LogicalPlan::Filter(f) => &f.input,
            LogicalPlan::Sort(s) => &s.input,
            LogicalPlan::Limit(l) => &l.input,
            LogicalPlan::Window(_) => {
                let message = "functions with `over` are not allowed here; `order by … limit n` gives the first n rows of each window";
                return Err(PlanError::about(&["over"], message));
            }
            LogicalPlan::Distinct(_) => {
                return Err(PlanError::about(
                    &["distinct"],
                    format!("`distinct` is not allowed here; {FORM}"),
                ));
            }
            _ => return Err(format!("there is no `group by`; {FORM}").into()),
        };
        above.push(node);
        node = input;
    }
}

/// The condition on the rows that are aggregated, made for the input's columns.
fn below(
    state: &SessionState,
    mut node: &LogicalPlan,
    visible: &[(usize, Field)],
) -> Result<Option<Arc<dyn PhysicalExpr>>, PlanError> {
    let mut filter = None;
    loop {
        match node {
            LogicalPlan::SubqueryAlias(alias) => node = alias.input.as_ref(),
            LogicalPlan::Filter(found) if filter.is_none() => {
                if found
                    .predicate
                    .column_refs()
                    .iter()
                    .any(|c| [START, END].contains(&c.name.as_str()))
                {
                    let message = format!(
                        "`where` speaks of {START} or {END}; use the time column, or `having`"
                    );
                    return Err(PlanError::about(&["where"], message));
                }
                let condition = physical(state, &found.predicate, found.input.schema())?;
                filter = Some(on_input(condition, visible)?);
                node = found.input.as_ref();
            }
            LogicalPlan::TableScan(_) => return Ok(filter),
            _ => return Err(FORM.into()),
        }
    }
}

/// The same condition with the columns where the input has them.
fn on_input(
    condition: Arc<dyn PhysicalExpr>,
    visible: &[(usize, Field)],
) -> Result<Arc<dyn PhysicalExpr>, PlanError> {
    use datafusion::common::tree_node::Transformed;
    let moved = condition.transform(|e| {
        let Some(column) = e.downcast_ref::<PhysicalColumn>() else {
            return Ok(Transformed::no(e));
        };
        let (at, _) = &visible[column.index()];
        Ok(Transformed::yes(
            Arc::new(PhysicalColumn::new(column.name(), *at)) as _,
        ))
    });
    Ok(moved?.data)
}

fn refuse_what_changes(plan: &LogicalPlan) -> Result<(), PlanError> {
    let mut wrong = None;
    let _ = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Subquery(_) = node {
            wrong = Some(PlanError::about(
                &["select"],
                "subqueries are not allowed here",
            ));
        }
        node.apply_expressions(|outer| {
            outer.apply(|e| {
                match e {
                    Expr::ScalarFunction(f)
                        if f.func.signature().volatility != Volatility::Immutable =>
                    {
                        let name = f.func.name();
                        wrong = Some(PlanError::about(
                            &[name],
                            format!("`{name}` differs from call to call"),
                        ));
                    }
                    Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) => {
                        wrong = Some(PlanError::about(
                            &["select"],
                            "subqueries are not allowed here",
                        ));
                    }
                    _ => {}
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    wrong.map_or(Ok(()), Err)
}

fn steps(
    state: &SessionState,
    above: &[&LogicalPlan],
    aggregate: &Aggregate,
) -> Result<Vec<Step>, PlanError> {
    let mut steps = Vec::new();
    let mut schema = &aggregate.schema;
    for node in above.iter().rev() {
        match node {
            LogicalPlan::Filter(f) => {
                steps.push(Step::Filter(physical(state, &f.predicate, schema)?));
            }
            LogicalPlan::Projection(p) => {
                let expressions = p
                    .expr
                    .iter()
                    .map(|e| physical(state, e, schema))
                    .collect::<Result<_, _>>()?;
                steps.push(Step::Project(expressions));
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
                steps.push(Step::Sort(by));
                if s.fetch.is_some() {
                    steps.push(Step::Limit {
                        skip: 0,
                        fetch: s.fetch,
                    });
                }
            }
            LogicalPlan::Limit(l) => {
                let constant = "the limit of a window is a number";
                let SkipType::Literal(skip) = l.get_skip_type()? else {
                    return Err(PlanError::about(&["limit"], constant));
                };
                let FetchType::Literal(fetch) = l.get_fetch_type()? else {
                    return Err(PlanError::about(&["limit"], constant));
                };
                steps.push(Step::Limit { skip, fetch });
            }
            _ => return Err(FORM.into()),
        }
    }
    Ok(steps)
}

/// Which columns of the last step the table has (window_start, window_end first), and the table's
/// schema.
fn table_schema(last: &DFSchemaRef) -> Result<(Vec<usize>, SchemaRef), PlanError> {
    let named = |wanted: &str| {
        let position = last.fields().iter().position(|f| f.name() == wanted);
        position.ok_or_else(|| PlanError::from(format!("select {wanted} too; {FORM}")))
    };
    let (start, end) = (named(START)?, named(END)?);
    let mut own = vec![start, end];
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
        names::refuse_own(
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
            PlanError::about(&[column], message)
        })?;
        fields.push(Field::new(column, ty, true));
        own.push(at);
    }
    Ok((own, Arc::new(Schema::new(fields))))
}

/// The columns by which a row is known in its window: every group column must be selected as it is.
fn keys(
    steps: &[Step],
    own: &[usize],
    schema: &SchemaRef,
    aggregate: &Aggregate,
    start_at: usize,
    end_at: usize,
) -> Result<Vec<usize>, PlanError> {
    // Per column, which of the aggregation's it is, if one.
    let mut from: Vec<Option<usize>> = (0..aggregate.schema.fields().len()).map(Some).collect();
    for step in steps {
        if let Step::Project(expressions) = step {
            from = expressions
                .iter()
                .map(|e| {
                    e.downcast_ref::<PhysicalColumn>()
                        .and_then(|c| from.get(c.index()).copied().flatten())
                })
                .collect();
        }
    }
    let mut keys = Vec::new();
    for (group, expression) in aggregate
        .group_expr
        .iter()
        .enumerate()
        .filter(|(n, _)| *n != start_at && *n != end_at)
    {
        let position = own.iter().position(|at| from[*at] == Some(group));
        let position = position.ok_or_else(|| {
            let message =
                format!("select `{expression}` too: rows are known by all columns of `group by`");
            PlanError::about(&["group"], message)
        })?;
        // The table's own columns come behind those of every window; its first two are the window's
        // times.
        keys.push(position - 2 + WINDOW_COLUMNS.len());
    }
    debug_assert!(keys.iter().all(|k| *k < schema.fields().len()));
    Ok(keys)
}

/// Whether the rows are those of the greatest counts: `order by n desc … limit k` and nothing that
/// drops rows before.
fn top(steps: &[Step], groups: usize) -> Option<Top> {
    let mut from: Vec<Option<usize>> = (0..groups + FAST_COUNTS).map(Some).collect();
    let (mut sorted, mut is_exact) = (None, false);
    for step in steps {
        match step {
            Step::Filter(_) => return None,
            Step::Project(expressions) => {
                from = expressions
                    .iter()
                    .map(|e| {
                        e.downcast_ref::<PhysicalColumn>()
                            .and_then(|c| from.get(c.index()).copied().flatten())
                    })
                    .collect();
            }
            Step::Sort(by) => {
                let (first, options) = by.first()?;
                let column = first.downcast_ref::<PhysicalColumn>()?.index();
                sorted = from
                    .get(column)
                    .copied()
                    .flatten()
                    .filter(|_| options.descending);
                is_exact = by.len() == 1;
            }
            Step::Limit { skip, fetch } => {
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

/// A condition's result with null as false.
pub fn true_only(mask: &BooleanArray) -> BooleanArray {
    if mask.null_count() == 0 {
        mask.clone()
    } else {
        prep_null_mask_filter(mask)
    }
}

fn evaluate(expression: &Arc<dyn PhysicalExpr>, batch: &RecordBatch) -> Result<ArrayRef, String> {
    expression
        .evaluate(batch)
        .and_then(|v| v.into_array(batch.num_rows()))
        .map_err(|e| explain(&e))
}

/// Columns as a batch, whatever their names.
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

fn pick(
    columns: &[ArrayRef],
    kernel: impl Fn(&dyn Array) -> Result<ArrayRef, arrow::error::ArrowError>,
) -> Result<Vec<ArrayRef>, String> {
    columns
        .iter()
        .map(|a| kernel(a.as_ref()).map_err(|e| e.to_string()))
        .collect()
}
