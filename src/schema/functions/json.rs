//! JSON text in SQL: the functions of `datafusion-functions-json`, with `->` and `#>` returning JSON
//! text, as in PostgreSQL.

use std::sync::Arc;

use datafusion::common::{Column, DFSchema, Result};
use datafusion::execution::FunctionRegistry;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};
use datafusion::scalar::ScalarValue;
use datafusion::sql::sqlparser::ast::BinaryOperator;
use datafusion_functions_json::{JSON_UNION_DATA_TYPE, udfs};

/// Adds the functions and operators on JSON text.
pub fn register(state: &mut SessionState) -> Result<()> {
    // The first planner that supports an operator plans it.
    state.register_expr_planner(Arc::new(Operators))?;
    datafusion_functions_json::register_all(state)
}

#[derive(Debug)]
struct Operators;

impl ExprPlanner for Operators {
    fn plan_binary_op(
        &self,
        expr: RawBinaryExpr,
        _schema: &DFSchema,
    ) -> Result<PlannerResult<RawBinaryExpr>> {
        let function = match &expr.op {
            BinaryOperator::Arrow | BinaryOperator::HashArrow => udfs::json_get_json_udf(),
            BinaryOperator::LongArrow | BinaryOperator::HashLongArrow => udfs::json_as_text_udf(),
            _ => return Ok(PlannerResult::Original(expr)),
        };
        let name = format!(
            "{} {} {}",
            display_operand(&expr.left),
            expr.op,
            display_operand(&expr.right)
        );
        Ok(PlannerResult::Planned(
            function.call(vec![expr.left, expr.right]).alias(name),
        ))
    }
}

/// An operand as part of a generated column name.
fn display_operand(expr: &Expr) -> String {
    match expr {
        Expr::Column(Column { name, .. }) => name.clone(),
        Expr::Alias(alias) => alias.name.clone(),
        Expr::Literal(ScalarValue::Utf8(Some(text)), _) => format!("'{text}'"),
        Expr::Literal(value, _) => value.to_string(),
        other => other.to_string(),
    }
}

/// Converts the unions of `json_get` to text: no table and no output format supports values of
/// several types in one column.
pub fn unions_as_text(plan: LogicalPlan) -> Result<LogicalPlan> {
    let schema = plan.schema().clone();
    let is_union = |at: usize| schema.field(at).data_type() == &*JSON_UNION_DATA_TYPE;
    if !(0..schema.fields().len()).any(is_union) {
        return Ok(plan);
    }
    let columns = schema
        .columns()
        .into_iter()
        .enumerate()
        .map(|(at, column)| {
            let name = column.name.clone();
            let column = Expr::Column(column);
            if is_union(at) {
                udfs::json_union_to_text_udf()
                    .call(vec![column])
                    .alias(name)
            } else {
                column
            }
        });
    let columns: Vec<Expr> = columns.collect();
    LogicalPlanBuilder::from(plan).project(columns)?.build()
}
