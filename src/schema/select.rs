//! `select` and `require` as physical expressions: planned by DataFusion once, evaluated on batches
//! of columns. Only deterministic expressions on single rows are accepted.

use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::{Array, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::compute::{CastOptions, cast_with_options, filter_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use datafusion::common::DFSchemaRef;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::config::Dialect;
use datafusion::datasource::empty::EmptyTable;
use datafusion::error::DataFusionError;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};
use datafusion::optimizer::simplify_expressions::{ExprSimplifier, SimplifyContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::parser::Parser;

use super::bounds as sql_bounds;
use super::dialect::{self, WeirDialect};
use super::functions::Limits;
use super::{EvaluationError, PlanError, functions, names, types};
use crate::config::SqlBounds;

/// Longest SQL that is planned; nesting is bounded by the parser.
pub const MAX_SQL_BYTES: usize = 64 << 10;

/// Settings under which all of Weir's SQL is parsed and planned.
pub fn session_config(partitions: usize) -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_target_partitions(partitions)
        .with_information_schema(true);
    let options = config.options_mut();
    options.sql_parser.dialect = Dialect::DuckDB;
    options.sql_parser.collect_spans = true;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.execution.time_zone = Some("UTC".into());
    options.execution.enable_recursive_ctes = false;
    options.execution.parquet.schema_force_view_types = false;
    config
}

/// A context in which declarations are planned.
pub fn planning(bounds: SqlBounds) -> Result<SessionContext, PlanError> {
    let mut state = SessionContext::new_with_config(session_config(1)).state();
    functions::register(&mut state, Limits::Declared(bounds))?;
    Ok(SessionContext::new_with_state(state))
}

/// DataFusion's message without its internals, with line and column if known.
pub fn strip_internals(error: &DataFusionError) -> String {
    PlanError::from_planner(error).to_string()
}

/// A `select`, planned.
#[derive(Debug)]
pub struct Planned {
    filter: Option<Arc<dyn PhysicalExpr>>,
    columns: Vec<(String, Arc<dyn PhysicalExpr>, DataType)>,
    schema: SchemaRef,
    /// `schema`, with marks on the fields that hold JSON text.
    marked: SchemaRef,
}

/// Result of a `select`.
pub struct Filtered {
    /// The selected columns of the rows that `where` let through.
    pub rows: RecordBatch,
    /// Per row of the input whether `where` let it through; none without a `where`.
    pub passed: Option<Vec<bool>>,
}

struct Expressions {
    /// The condition of a `where`.
    filter: Option<Arc<dyn PhysicalExpr>>,
    /// The columns with their names, and the input field of each that selects one unchanged.
    columns: Vec<(String, Arc<dyn PhysicalExpr>, Option<Field>)>,
}

/// `marked` is the input's schema with marks on the fields that hold JSON text.
fn plan_rows(
    stream: &str,
    input: &SchemaRef,
    marked: &Schema,
    sql: &str,
    bounds: SqlBounds,
) -> Result<Expressions, PlanError> {
    if sql.len() > MAX_SQL_BYTES {
        return Err(format!("the text has more than {MAX_SQL_BYTES} bytes").into());
    }
    sql_bounds::text::check_tokens(sql).map_err(|e| e.0)?;
    check_has_from(stream, sql)?;
    let context = planning(bounds)?;
    let table = Arc::new(EmptyTable::new(input.clone()));
    context.register_table(stream, table)?;
    let state = context.state();
    let statement = dialect::parse(&state, sql)?;
    // Planning over a table in memory does no I/O, so it needs no runtime.
    let plan =
        futures::executor::block_on(state.statement_to_plan(statement.clone())).map_err(|e| {
            // For an aggregate the planner would suggest `group by`, which is not allowed either.
            let call = first_call(sql, |name| state.aggregate_functions().contains_key(name));
            call.map_or_else(
                || PlanError::from_planner(&e),
                |name| not_row_by_row(stream, PlanError::at_words(&[&name], format!("`{name}`"))),
            )
        })?;
    sql_bounds::plan::check(&plan)?;
    // Before the analyzer, which would fold `now()` into a constant.
    split(&plan, stream)?;
    names::check_named(&statement, input)?;
    let plan = state
        .analyzer()
        .execute_and_check(plan, state.config_options(), |_, _| {})?;
    let (filter, projection) = split(&plan, stream)?;
    let filter = filter
        .map(|f| physical(&state, &f.predicate, f.input.schema()))
        .transpose()?;
    let columns = projection
        .expr
        .iter()
        .zip(projection.schema.fields())
        .map(|(e, f)| {
            Ok((
                f.name().clone(),
                physical(&state, e, projection.input.schema())?,
                source_field(e, marked),
            ))
        })
        .collect::<Result<_, PlanError>>()?;
    Ok(Expressions { filter, columns })
}

/// The input field that an expression selects unchanged: a column, a member or an item of one.
pub fn source_field(expression: &Expr, marked: &Schema) -> Option<Field> {
    match expression {
        Expr::Alias(alias) => source_field(&alias.expr, marked),
        Expr::Column(column) => marked.field_with_name(&column.name).ok().cloned(),
        Expr::ScalarFunction(call) => match (call.func.name(), call.args.as_slice()) {
            ("get_field", [of, names @ ..]) => {
                names
                    .iter()
                    .try_fold(source_field(of, marked)?, |of, name| {
                        let (DataType::Struct(fields), Expr::Literal(name, _)) =
                            (of.data_type(), name)
                        else {
                            return None;
                        };
                        let name = name.try_as_str().flatten()?;
                        fields
                            .iter()
                            .find(|field| field.name() == name)
                            .map(|field| field.as_ref().clone())
                    })
            }
            ("array_element", [list, _]) => match source_field(list, marked)?.data_type() {
                DataType::List(item) => Some(item.as_ref().clone()),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}

/// The message for JSON text as a key: equal values can be written differently.
pub fn json_is_not_a_key(column: &str) -> String {
    format!(
        "`{column}` is json, which cannot be a key, version, count or group; take a value out of it, such as `{column} ->> 'id'`"
    )
}

/// The message for a function whose result can differ between calls with the same arguments.
pub fn not_deterministic(function: &str) -> PlanError {
    let message =
        format!("`{function}` is not deterministic; replayed records must give the same rows");
    PlanError::at_words(&[function], message)
}

type FilterAndProjection<'a> = (
    Option<&'a datafusion::logical_expr::Filter>,
    &'a datafusion::logical_expr::Projection,
);

/// Accepts `select … from stream [where …]` and nothing else.
fn split<'a>(plan: &'a LogicalPlan, stream: &str) -> Result<FilterAndProjection<'a>, PlanError> {
    let not_row_by_row = |what| not_row_by_row(stream, what);
    let LogicalPlan::Projection(projection) = plan else {
        return Err(not_row_by_row(multi_row_operation(plan)));
    };
    for expression in &projection.expr {
        check_row_by_row(expression, stream)?;
    }
    let mut filter = None;
    let mut input = projection.input.as_ref();
    loop {
        match input {
            LogicalPlan::SubqueryAlias(alias) => input = alias.input.as_ref(),
            LogicalPlan::Filter(found) if filter.is_none() => {
                check_row_by_row(&found.predicate, stream)?;
                filter = Some(found);
                input = found.input.as_ref();
            }
            LogicalPlan::TableScan(scan) if scan.table_name.table() == stream => {
                return Ok((filter, projection));
            }
            other => return Err(not_row_by_row(multi_row_operation(other))),
        }
    }
}

fn not_row_by_row(stream: &str, what: PlanError) -> PlanError {
    what.map(|what| {
        format!("{what} is not row by row: write `select <expressions> from {stream} [where …]`")
    })
}

/// Rejects a `select` without `from`; the planner would only report that it has no columns.
fn check_has_from(stream: &str, sql: &str) -> Result<(), PlanError> {
    // The planner reports syntax errors.
    let Ok(statements) = Parser::parse_sql(&WeirDialect, sql) else {
        return Ok(());
    };
    let Some(ast::Statement::Query(query)) = statements.first() else {
        return Ok(());
    };
    let ast::SetExpr::Select(select) = query.body.as_ref() else {
        return Ok(());
    };
    match select.projection.last() {
        Some(last) if select.from.is_empty() => Err(PlanError::after(
            last,
            format!("`from {stream}` is missing after the columns"),
        )),
        _ => Ok(()),
    }
}

/// The first function that SQL calls among the wanted ones.
fn first_call(sql: &str, is_wanted: impl Fn(&str) -> bool) -> Option<String> {
    let statements = Parser::parse_sql(&WeirDialect, sql).ok()?;
    let call = ast::visit_expressions(&statements, |expression| match expression {
        ast::Expr::Function(function) => {
            let name = function.name.to_string().to_lowercase();
            if is_wanted(&name) {
                ControlFlow::Break(name)
            } else {
                ControlFlow::Continue(())
            }
        }
        _ => ControlFlow::Continue(()),
    });
    call.break_value()
}

/// The operation of a plan that needs more than one row, located by its SQL keyword.
fn multi_row_operation(plan: &LogicalPlan) -> PlanError {
    let (what, words): (String, &[&str]) = match plan {
        LogicalPlan::Aggregate(aggregate) => match aggregate.aggr_expr.first() {
            Some(Expr::AggregateFunction(call)) => {
                return PlanError::at_words(
                    &[call.func.name(), "group"],
                    format!("`{}`", call.func.name()),
                );
            }
            _ => ("group by".into(), &["group"]),
        },
        LogicalPlan::Limit(_) => ("limit".into(), &["limit", "fetch", "offset"]),
        LogicalPlan::Sort(_) => ("order by".into(), &["order"]),
        LogicalPlan::Distinct(_) => ("distinct".into(), &["distinct"]),
        LogicalPlan::Union(_) => ("union".into(), &["union"]),
        LogicalPlan::Window(_) => ("over".into(), &["over"]),
        LogicalPlan::Join(_) => ("join".into(), &["join", "from"]),
        LogicalPlan::Unnest(_) => ("unnest".into(), &["unnest"]),
        other => {
            let text = other.display().to_string();
            (
                text.split([':', ' ']).next().unwrap_or(&text).to_owned(),
                &["from"],
            )
        }
    };
    PlanError::at_words(words, format!("`{what}`"))
}

/// Rejects what needs more than one row, and what is not deterministic.
fn check_row_by_row(expression: &Expr, stream: &str) -> Result<(), PlanError> {
    let mut error = None;
    let walked = expression.apply(|e| {
        let shown = || format!("`{e}`");
        let operation = match e {
            Expr::AggregateFunction(call) => {
                Some(PlanError::at_words(&[call.func.name()], shown()))
            }
            Expr::WindowFunction(_) => Some(PlanError::at_words(&["over"], shown())),
            Expr::Exists(_)
            | Expr::InSubquery(_)
            | Expr::SetComparison(_)
            | Expr::ScalarSubquery(_) => Some(PlanError::at_words(&["select"], "a subquery")),
            Expr::Unnest(_) => Some(PlanError::at_words(&["unnest"], shown())),
            Expr::GroupingSet(_) => Some(PlanError::at_words(&["group"], shown())),
            Expr::Placeholder(_) | Expr::OuterReferenceColumn(..) | Expr::ScalarVariable(..) => {
                Some(shown().into())
            }
            _ => None,
        };
        error = match e {
            Expr::ScalarFunction(f) if f.func.signature().volatility != Volatility::Immutable => {
                Some(not_deterministic(f.func.name()))
            }
            _ => operation.map(|operation| not_row_by_row(stream, operation)),
        };
        Ok(if error.is_some() {
            TreeNodeRecursion::Stop
        } else {
            TreeNodeRecursion::Continue
        })
    });
    match (walked, error) {
        (Ok(_), None) => Ok(()),
        (_, Some(error)) => Err(error),
        (Err(e), None) => Err(e.into()),
    }
}

/// An expression simplified and ready to evaluate on batches of a schema.
pub fn physical(
    state: &SessionState,
    expression: &Expr,
    schema: &DFSchemaRef,
) -> Result<Arc<dyn PhysicalExpr>, PlanError> {
    let context = SimplifyContext::builder()
        .with_schema(schema.clone())
        .with_config_options(state.config_options().clone())
        .build();
    let simplified = ExprSimplifier::new(context).simplify(expression.clone().unalias())?;
    Ok(state.create_physical_expr(simplified, schema)?)
}

/// Plans a stream's `select`.
pub fn plan(
    stream: &str,
    input: &SchemaRef,
    marked: &Schema,
    sql: &str,
    bounds: SqlBounds,
) -> Result<Planned, PlanError> {
    let Expressions { filter, columns } = plan_rows(stream, input, marked, sql, bounds)?;
    let sources: Vec<Option<Field>> = columns.iter().map(|(_, _, field)| field.clone()).collect();
    let columns = columns
        .into_iter()
        .map(|(name, e, _)| {
            let ty = e.data_type(input)?;
            let stored = stored_type(&ty).ok_or_else(|| {
                let message = match ty {
                    DataType::Union(..) => format!("the column `{name}` has values of many types, which a table cannot store; cast it, or use `->>` instead of json_get"),
                    _ => format!("the column `{name}` is {ty}, which a table cannot store; cast it"),
                };
                PlanError::at_words(&[&name], message)
            })?;
            Ok((name, e, stored))
        })
        .collect::<Result<Vec<_>, PlanError>>()?;
    for (i, (name, ..)) in columns.iter().enumerate() {
        if columns[..i].iter().any(|(n, ..)| n == name) {
            let message =
                format!("there are two columns `{name}`; give one of them another name with `as`");
            return Err(PlanError::at_words(&[name], message));
        }
    }
    let schema = Arc::new(Schema::new(
        columns
            .iter()
            .map(|(name, _, ty)| Field::new(name, ty.clone(), true))
            .collect::<Vec<_>>(),
    ));
    let marked = schema
        .fields()
        .iter()
        .zip(sources)
        .map(|(field, source)| match source {
            Some(source) => source.with_name(field.name()),
            None => field.as_ref().clone(),
        });
    let marked = Arc::new(Schema::new(marked.collect::<Vec<_>>()));
    Ok(Planned {
        filter,
        columns,
        schema,
        marked,
    })
}

/// The type as which a table stores values of this type; none if it cannot.
pub fn stored_type(ty: &DataType) -> Option<DataType> {
    Some(match ty {
        DataType::Boolean
        | DataType::Int32
        | DataType::Int64
        | DataType::Float64
        | DataType::Utf8 => ty.clone(),
        DataType::Int8 | DataType::Int16 | DataType::UInt8 | DataType::UInt16 => DataType::Int32,
        DataType::UInt32 | DataType::UInt64 => DataType::Int64,
        DataType::Float16 | DataType::Float32 | DataType::Decimal128(..) => DataType::Float64,
        DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => DataType::Utf8,
        DataType::Dictionary(_, value) => stored_type(value)?,
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => types::timestamp(),
        DataType::List(item) | DataType::LargeList(item) => DataType::List(Arc::new(Field::new(
            "item",
            stored_type(item.data_type())?,
            true,
        ))),
        DataType::Map(..) if *ty == types::map() => ty.clone(),
        DataType::Struct(fields) => DataType::Struct(
            fields
                .iter()
                .map(|f| Some(Field::new(f.name(), stored_type(f.data_type())?, true)))
                .collect::<Option<_>>()?,
        ),
        _ => return None,
    })
}

impl Planned {
    /// Names and stored types of the selected columns.
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// [`Self::schema`], with marks on the fields that hold JSON text.
    pub fn marked(&self) -> SchemaRef {
        self.marked.clone()
    }

    /// Names of the selected columns, in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(|(name, ..)| name.as_str())
    }

    /// The same columns with `event_time` first, as a time.
    pub fn with_event_time_first(mut self) -> Result<Self, PlanError> {
        let at = self.columns.iter().position(|(name, ..)| name == "event_time").ok_or_else(|| {
            "the column `event_time` is missing: write for example `to_timestamp_millis(ts) as event_time`".to_owned()
        })?;
        if self.columns[at].2 != types::timestamp() {
            let message = format!(
                "`event_time` is {}; it must be a timestamp",
                self.columns[at].2
            );
            return Err(PlanError::at_words(&["event_time"], message));
        }
        self.columns[..=at].rotate_right(1);
        for schema in [&mut self.schema, &mut self.marked] {
            let mut fields: Vec<_> = schema.fields().iter().cloned().collect();
            fields[..=at].rotate_right(1);
            *schema = Arc::new(Schema::new(fields));
        }
        Ok(self)
    }

    /// Whether every expression has a value for every row, cast to its stored type.
    pub fn has_values(&self, input: &RecordBatch) -> bool {
        self.evaluate(input).is_ok()
    }

    /// Evaluates on a batch of the input's schema.
    pub fn evaluate(&self, input: &RecordBatch) -> Result<Filtered, EvaluationError> {
        let batch_error = |e: ArrowError| EvaluationError::Batch(e.into());
        let mut input = input.clone();
        let mut passed = None;
        if let Some(filter) = &self.filter {
            let mask = booleans(filter, &input).map_err(EvaluationError::Batch)?;
            let true_only: Vec<bool> = mask.iter().map(|v| v == Some(true)).collect();
            input = filter_record_batch(&input, &mask).map_err(batch_error)?;
            passed = Some(true_only);
        }
        let rows = input.num_rows();
        let options = CastOptions {
            safe: false,
            ..CastOptions::default()
        };
        let arrays = self.columns.iter().map(|(name, e, ty)| {
            let column_error = |source| EvaluationError::Column {
                column: name.clone(),
                source,
            };
            let array = e
                .evaluate(&input)
                .and_then(|v| v.into_array(rows))
                .map_err(column_error)?;
            if array.data_type() == ty {
                return Ok(array);
            }
            cast_with_options(&array, ty, &options).map_err(|e| column_error(e.into()))
        });
        let arrays = arrays.collect::<Result<Vec<_>, EvaluationError>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let rows = RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options)
            .map_err(batch_error)?;
        Ok(Filtered { rows, passed })
    }
}

fn booleans(
    expression: &Arc<dyn PhysicalExpr>,
    batch: &RecordBatch,
) -> Result<BooleanArray, DataFusionError> {
    let array = expression
        .evaluate(batch)
        .and_then(|v| v.into_array(batch.num_rows()))?;
    let booleans = array.as_any().downcast_ref::<BooleanArray>().cloned();
    booleans.ok_or_else(|| DataFusionError::Plan("is not a boolean condition".into()))
}

/// A `require` rule.
#[derive(Debug)]
pub struct Rule {
    text: String,
    expression: Arc<dyn PhysicalExpr>,
}

impl Rule {
    /// Plans a condition over the stream's `output` columns.
    pub fn plan(
        stream: &str,
        output: &SchemaRef,
        text: &str,
        bounds: SqlBounds,
    ) -> Result<Self, PlanError> {
        const BEFORE: &str = "select ";
        let sql = format!("{BEFORE}{text} as holds from {stream}");
        let Expressions { mut columns, .. } = plan_rows(stream, output, output, &sql, bounds)
            .map_err(|e| {
                e.locate_in(&sql)
                    .shift_column(BEFORE.len())
                    .map(|message| format!("`{text}`: {message}"))
            })?;
        let expression = match (columns.pop(), columns.len()) {
            (Some((_, expression, _)), 0) => expression,
            _ => return Err(format!("`{text}` is not a single condition").into()),
        };
        match expression.data_type(output) {
            Ok(DataType::Boolean) => Ok(Self {
                text: text.to_owned(),
                expression,
            }),
            _ => Err(format!("`{text}` is not a boolean condition").into()),
        }
    }

    /// The declared SQL.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Rejects every row of `keep` for which the rule is false or null. False if `reject` stopped.
    pub fn check(
        &self,
        batch: &RecordBatch,
        keep: &mut [bool],
        reject: &mut dyn FnMut(usize) -> bool,
    ) -> bool {
        self.check_from(batch, keep, 0, reject)
    }

    /// `first` is the number of the first row.
    fn check_from(
        &self,
        batch: &RecordBatch,
        keep: &mut [bool],
        first: usize,
        reject: &mut dyn FnMut(usize) -> bool,
    ) -> bool {
        let mut decide = |row: usize, keep: &mut bool, holds: Option<bool>| {
            let is_rejected = *keep && holds != Some(true);
            *keep &= !is_rejected;
            !is_rejected || reject(first + row)
        };
        match booleans(&self.expression, batch) {
            Ok(holds) if holds.null_count() == 0 && holds.true_count() == holds.len() => true,
            Ok(holds) => keep
                .iter_mut()
                .zip(&holds)
                .enumerate()
                .all(|(row, (keep, holds))| decide(row, keep, holds)),
            // Some row makes the rule fail: find which.
            Err(_) if batch.num_rows() > 1 => {
                let half = batch.num_rows() / 2;
                let (before, after) = keep.split_at_mut(half);
                self.check_from(&batch.slice(0, half), before, first, reject)
                    && self.check_from(
                        &batch.slice(half, batch.num_rows() - half),
                        after,
                        first + half,
                        reject,
                    )
            }
            Err(_) => keep
                .iter_mut()
                .enumerate()
                .all(|(row, keep)| decide(row, keep, None)),
        }
    }
}
