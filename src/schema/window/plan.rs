//! A window's logical plan taken apart: the filter of the input, the aggregation with its groups,
//! and the nodes after it.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::datatypes::{Field, Schema};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, DFSchemaRef};
use datafusion::datasource::empty::EmptyTable;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Aggregate, Expr, LogicalPlan, Volatility};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::LoweredAggregateBuilder;
use datafusion::physical_expr::expressions::Column as PhysicalColumn;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;

use super::call::{FORM, INPUT};
use super::{AggregatePlan, END, Input, START, WINDOW_COLUMNS};
use crate::config::SqlBounds;
use crate::schema::select::{
    json_is_not_a_key, not_deterministic, physical, planning, source_field,
};
use crate::schema::{PlanError, bounds as sql_bounds, types};

/// The columns of its input that a window's SQL can reference, with their positions. The columns
/// that Weir adds to an inner window are hidden: the outer window has its own.
pub(super) fn visible_columns(input: &Input<'_>) -> Vec<(usize, Field)> {
    let fields = input.schema.fields().iter().enumerate();
    let is_visible = |name: &str| input.is_stream() || !WINDOW_COLUMNS.contains(&name);
    fields
        .filter(|(_, f)| is_visible(f.name()))
        .map(|(at, f)| (at, f.as_ref().clone()))
        .collect()
}

/// Whether a name occurs as a column anywhere in a statement.
pub(super) fn references_column(statement: &Statement, name: &str) -> bool {
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

fn references_window_times(expression: &Expr) -> bool {
    let mut columns = expression.column_refs().into_iter();
    columns.any(|c| [START, END].contains(&c.name.as_str()))
}

fn is_column(expression: &Expr, name: &str) -> bool {
    matches!(expression, Expr::Column(column) if column.name == name)
}

/// Plans a statement over the visible columns, followed by window_start and window_end.
pub(super) fn plan_statement(
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
    check_deterministic(&plan)?;
    let plan = state
        .analyzer()
        .execute_and_check(plan, state.config_options(), |_, _| {})?;
    Ok((state, plan))
}

/// Equal JSON values can be written differently, so they cannot form groups.
pub(super) fn check_no_json_groups(
    aggregate: &Aggregate,
    marked: &Schema,
) -> Result<(), PlanError> {
    let json = aggregate
        .group_expr
        .iter()
        .filter_map(|e| source_field(e, marked))
        .find(types::is_json);
    json.map_or(Ok(()), |field| {
        Err(PlanError::at_words(
            &["group"],
            json_is_not_a_key(field.name()),
        ))
    })
}

/// Positions of window_start and window_end among the groups; no other expression may use them.
pub(super) fn time_group_positions(aggregate: &Aggregate) -> Result<(usize, usize), PlanError> {
    let at = |wanted: &str| {
        let position = aggregate
            .group_expr
            .iter()
            .position(|e| is_column(e, wanted));
        position.ok_or_else(|| {
            let message = format!("`group by` must contain {wanted} unchanged; {FORM}");
            PlanError::at_words(&["group"], message)
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
            return Err(PlanError::at_words(&["group"], message));
        }
        if references_window_times(expression) {
            let message = format!(
                "`{expression}`: use the time column instead of {START} and {END} inside expressions"
            );
            return Err(PlanError::at_words(&["group"], message));
        }
    }
    Ok((start_at, end_at))
}

/// The columns that the aggregation reads, by position among the visible ones, and their schema
/// followed by window_start and window_end.
pub(super) fn columns_read(
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
    let read: Vec<usize> = (0..visible).filter(is_used).collect();
    let fields = read
        .iter()
        .copied()
        .chain([visible, visible + 1])
        .map(qualified)
        .collect();
    let projected = DFSchema::new_with_metadata(fields, Default::default())?;
    Ok((read, Arc::new(projected)))
}

/// Groups and aggregates, evaluated on the columns of [`columns_read`].
pub(super) struct Expressions {
    pub(crate) groups: Vec<(Arc<dyn PhysicalExpr>, String)>,
    pub(crate) aggregates: Vec<AggregatePlan>,
}

pub(super) fn expressions(
    state: &SessionState,
    aggregate: &Aggregate,
    projected: &DFSchemaRef,
) -> Result<Expressions, PlanError> {
    let groups = aggregate
        .group_expr
        .iter()
        .enumerate()
        .map(|(n, e)| Ok((physical(state, e, projected)?, format!("group_{n}"))))
        .collect::<Result<_, PlanError>>()?;
    let planning = PhysicalPlanningContext::default();
    let aggregates = aggregate
        .aggr_expr
        .iter()
        .enumerate()
        .map(|(n, e)| {
            let lowered = LoweredAggregateBuilder::new(
                e,
                projected,
                projected.as_arrow(),
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

/// The nodes after the aggregation, outermost first, and the aggregation.
pub(super) fn split_at_aggregate(
    plan: &LogicalPlan,
) -> Result<(Vec<&LogicalPlan>, &Aggregate), PlanError> {
    let (mut post_aggregate, mut node) = (Vec::new(), plan);
    loop {
        let input = match node {
            LogicalPlan::Aggregate(aggregate) => return Ok((post_aggregate, aggregate)),
            LogicalPlan::Projection(p) => &p.input,
            LogicalPlan::Filter(f) => &f.input,
            LogicalPlan::Sort(s) => &s.input,
            LogicalPlan::Limit(l) => &l.input,
            LogicalPlan::Window(_) => {
                let message = "functions with `over` are not allowed here; `order by … limit n` gives the first n rows of each window";
                return Err(PlanError::at_words(&["over"], message));
            }
            LogicalPlan::Distinct(_) => {
                return Err(PlanError::at_words(
                    &["distinct"],
                    format!("`distinct` is not allowed here; {FORM}"),
                ));
            }
            _ => return Err(format!("`group by` is missing; {FORM}").into()),
        };
        post_aggregate.push(node);
        node = input;
    }
}

/// The condition on the rows that are aggregated, evaluated on the input's columns.
pub(super) fn input_filter(
    state: &SessionState,
    mut node: &LogicalPlan,
    visible: &[(usize, Field)],
) -> Result<Option<Arc<dyn PhysicalExpr>>, PlanError> {
    let mut filter = None;
    loop {
        match node {
            LogicalPlan::SubqueryAlias(alias) => node = alias.input.as_ref(),
            LogicalPlan::Filter(found) if filter.is_none() => {
                if references_window_times(&found.predicate) {
                    let message =
                        format!("`where` uses {START} or {END}; use the time column, or `having`");
                    return Err(PlanError::at_words(&["where"], message));
                }
                let condition = physical(state, &found.predicate, found.input.schema())?;
                filter = Some(rebase_columns(condition, visible)?);
                node = found.input.as_ref();
            }
            LogicalPlan::TableScan(_) => return Ok(filter),
            _ => return Err(FORM.into()),
        }
    }
}

/// A condition on visible columns as one on the input's columns.
fn rebase_columns(
    condition: Arc<dyn PhysicalExpr>,
    visible: &[(usize, Field)],
) -> Result<Arc<dyn PhysicalExpr>, PlanError> {
    let rebased = condition.transform(|e| {
        let Some(column) = e.downcast_ref::<PhysicalColumn>() else {
            return Ok(Transformed::no(e));
        };
        let (at, _) = &visible[column.index()];
        Ok(Transformed::yes(
            Arc::new(PhysicalColumn::new(column.name(), *at)) as _,
        ))
    });
    Ok(rebased?.data)
}

/// Replayed records must give the same rows: no function that changes from call to call, and no
/// subquery, which would read other rows.
fn check_deterministic(plan: &LogicalPlan) -> Result<(), PlanError> {
    let mut wrong = None;
    let _ = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Subquery(_) = node {
            wrong = Some(PlanError::at_words(
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
                        wrong = Some(not_deterministic(name));
                    }
                    Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) => {
                        wrong = Some(PlanError::at_words(
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
