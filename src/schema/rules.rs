//! What Weir's SQL adds to DataFusion's: `time_bucket`, times without seconds, and lateral `unnest`
//! of a table's lists in `from`. It applies to queries and declarations alike.

use std::ops::ControlFlow;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchemaRef, ScalarValue, UnnestOptions};
use datafusion::config::ConfigOptions;
use datafusion::error::DataFusionError;
use datafusion::execution::FunctionRegistry;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{
    Expr, ExprSchemable, Join, JoinType, LogicalPlan, LogicalPlanBuilder, Unnest, lit, when,
};
use datafusion::optimizer::AnalyzerRule;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    FunctionArg, FunctionArgExpr, TableAliasColumnDef, TableFactor, VisitMut, VisitorMut,
};

/// Registers Weir's additions in a session.
pub fn register(state: &mut SessionState) -> Result<(), DataFusionError> {
    let date_bin = FunctionRegistry::udf(state, "date_bin")?;
    state.register_udf(Arc::new(
        date_bin.as_ref().clone().with_aliases(["time_bucket"]),
    ))?;
    state.add_analyzer_rule(Arc::new(ShortTimes));
    state.add_analyzer_rule(Arc::new(LateralUnnest));
    Ok(())
}

/// Rewrites `unnest(…)` in `from`, which the parser reads as a table function, to the planner's
/// `UNNEST`.
pub fn rewrite_unnest(statement: &mut Statement) {
    match statement {
        Statement::Statement(inner) => {
            let _ = inner.as_mut().visit(&mut UnnestRewriter);
        }
        Statement::Explain(explained) => rewrite_unnest(&mut explained.statement),
        _ => {}
    }
}

struct UnnestRewriter;

impl VisitorMut for UnnestRewriter {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        let (name, arguments, alias) = match factor {
            TableFactor::Table {
                name,
                args: Some(call),
                alias,
                with_ordinality: false,
                ..
            } => (name, &call.args, alias),
            TableFactor::Function {
                name,
                args,
                alias,
                with_ordinality: false,
                ..
            } => (name, &*args, alias),
            _ => return ControlFlow::Continue(()),
        };
        let lists = arguments.iter().map(|argument| match argument {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(list)) => Some(list.clone()),
            _ => None,
        });
        let lists = lists
            .collect::<Option<Vec<_>>>()
            .filter(|_| name.to_string().eq_ignore_ascii_case("unnest"));
        if let Some(array_exprs) = lists {
            let mut alias = alias.take();
            // A single name names the column too.
            if let Some(alias) = alias
                .as_mut()
                .filter(|a| a.columns.is_empty() && array_exprs.len() == 1)
            {
                alias
                    .columns
                    .push(TableAliasColumnDef::from_name(&alias.name.value));
                alias.columns[0].name.quote_style = alias.name.quote_style;
            }
            *factor = TableFactor::UNNEST {
                alias,
                array_exprs,
                with_offset: false,
                with_offset_alias: None,
                with_ordinality: false,
            };
        }
        ControlFlow::Continue(())
    }
}

/// `2024-05-01 12:00` is a time wherever text is converted to one.
#[derive(Debug)]
struct ShortTimes;

impl AnalyzerRule for ShortTimes {
    fn analyze(
        &self,
        plan: LogicalPlan,
        _: &ConfigOptions,
    ) -> Result<LogicalPlan, DataFusionError> {
        let rewritten = plan.transform_up_with_subqueries(|node| {
            let names = NamePreserver::new(&node);
            node.map_expressions(|expression| {
                let name = names.save(&expression);
                Ok(expression
                    .transform_up(|e| Ok(with_seconds(e)))?
                    .update_data(|e| name.restore(e)))
            })
        });
        rewritten.map(|rewritten| rewritten.data)
    }

    fn name(&self) -> &str {
        "times_without_seconds"
    }
}

fn with_seconds(expression: Expr) -> Transformed<Expr> {
    let longer = |text: &Expr| match text {
        Expr::Literal(ScalarValue::Utf8(Some(text)), metadata) => add_seconds(text)
            .map(|text| Expr::Literal(ScalarValue::Utf8(Some(text)), metadata.clone())),
        _ => None,
    };
    match expression {
        Expr::Cast(mut cast) if cast.field.data_type().is_temporal() => match longer(&cast.expr) {
            Some(text) => {
                *cast.expr = text;
                Transformed::yes(Expr::Cast(cast))
            }
            None => Transformed::no(Expr::Cast(cast)),
        },
        Expr::TryCast(mut cast) if cast.field.data_type().is_temporal() => match longer(&cast.expr)
        {
            Some(text) => {
                *cast.expr = text;
                Transformed::yes(Expr::TryCast(cast))
            }
            None => Transformed::no(Expr::TryCast(cast)),
        },
        Expr::ScalarFunction(mut call)
            if call.func.name().starts_with("to_timestamp") && call.args.len() == 1 =>
        {
            match longer(&call.args[0]) {
                Some(text) => {
                    call.args[0] = text;
                    Transformed::yes(Expr::ScalarFunction(call))
                }
                None => Transformed::no(Expr::ScalarFunction(call)),
            }
        }
        other => Transformed::no(other),
    }
}

/// Adds seconds to a time that has only minutes, before its zone if it has one.
fn add_seconds(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let is_form = b"dddd-dd-dd dd:dd"
        .iter()
        .zip(bytes)
        .all(|(form, byte)| match form {
            b'd' => byte.is_ascii_digit(),
            b' ' => matches!(byte, b' ' | b'T' | b't'),
            other => byte == other,
        });
    let (minutes, rest) = text.split_at_checked(16).filter(|_| is_form)?;
    (!rest.starts_with([':', '.', ',']) && !rest.starts_with(|c: char| c.is_ascii_digit()))
        .then(|| format!("{minutes}:00{rest}"))
}

/// `from events, unnest(tags) as x(tag)`: each row of the table joined with the items of its list.
/// An empty list, or null, gives no rows.
#[derive(Debug)]
struct LateralUnnest;

impl AnalyzerRule for LateralUnnest {
    fn analyze(
        &self,
        plan: LogicalPlan,
        _: &ConfigOptions,
    ) -> Result<LogicalPlan, DataFusionError> {
        let rewritten = plan.transform_up_with_subqueries(|node| match &node {
            LogicalPlan::Join(join) => Ok(match plan_lateral_unnest(join)? {
                Some(plan) => Transformed::yes(plan),
                None => Transformed::no(node),
            }),
            _ => Ok(Transformed::no(node)),
        });
        rewritten.map(|rewritten| rewritten.data)
    }

    fn name(&self) -> &str {
        "lateral_unnest"
    }
}

/// Plans a lateral join with items of the left side's lists as an unnest of the left side; none for
/// any other join.
fn plan_lateral_unnest(join: &Join) -> Result<Option<LogicalPlan>, DataFusionError> {
    let mut right = join.right.as_ref();
    while let LogicalPlan::SubqueryAlias(alias) = right {
        right = alias.input.as_ref();
    }
    let LogicalPlan::Subquery(subquery) = right else {
        return Ok(None);
    };
    let Some(lists) = unnested_lists(&subquery.subquery).filter(|_| join.on.is_empty()) else {
        return Ok(None);
    };
    let left = join.left.schema();
    let is_true = |condition: &Expr| {
        matches!(
            condition,
            Expr::Literal(ScalarValue::Boolean(Some(true)), _)
        )
    };
    let condition = join.filter.as_ref().filter(|condition| !is_true(condition));
    // A left join retains rows without items. With a condition on the items it is not rewritten.
    let retains_all = match join.join_type {
        JoinType::Inner => false,
        JoinType::Left if condition.is_none() => true,
        _ => return Ok(None),
    };
    let items = join.schema.fields().len() - left.fields().len();
    let Some(lists) = lists
        .into_iter()
        .map(|list| resolve_outer_columns(list, left))
        .collect::<Option<Vec<_>>>()
    else {
        return Ok(None);
    };
    if items != lists.len() {
        return Ok(None);
    }
    let left_columns: Vec<Expr> = left.columns().into_iter().map(Expr::Column).collect();
    let names: Vec<String> = (0..items).map(|n| format!("__lateral_{n}")).collect();
    let full = |list: Expr| {
        if retains_all {
            null_for_empty(list, left)
        } else {
            Ok(list)
        }
    };
    let lists = lists.into_iter().map(full).collect::<Result<Vec<_>, _>>()?;
    let lists = lists
        .into_iter()
        .zip(&names)
        .map(|(list, name)| list.alias(name));
    let named = names
        .iter()
        .zip(join.schema.iter().skip(left.fields().len()))
        .map(|(name, (qualifier, field))| {
            Expr::Column(Column::new_unqualified(name))
                .alias_qualified(qualifier.cloned(), field.name())
        });
    let columns = names.iter().map(Column::new_unqualified).collect();
    let plan = LogicalPlanBuilder::from(join.left.as_ref().clone())
        .project(left_columns.iter().cloned().chain(lists))?
        .unnest_columns_with_options(
            columns,
            UnnestOptions::new().with_preserve_nulls(retains_all),
        )?
        .project(left_columns.iter().cloned().chain(named))?;
    let plan = match condition {
        Some(condition) => plan.filter(condition.clone())?,
        None => plan,
    };
    plan.build().map(Some)
}

/// Null instead of an empty list: unnesting null gives one row if nulls are preserved.
fn null_for_empty(list: Expr, schema: &DFSchemaRef) -> Result<Expr, DataFusionError> {
    let null = ScalarValue::try_from(&list.get_type(schema)?)?;
    let is_empty = datafusion::functions_nested::expr_fn::cardinality(list.clone()).eq(lit(0u64));
    when(is_empty, Expr::Literal(null, None)).otherwise(list)
}

/// The lists of a plan that is only an `unnest(…)` in `from`.
fn unnested_lists(plan: &LogicalPlan) -> Option<Vec<Expr>> {
    match plan {
        LogicalPlan::SubqueryAlias(alias) => unnested_lists(&alias.input),
        LogicalPlan::Projection(names)
            if names
                .expr
                .iter()
                .all(|e| matches!(e.clone().unalias(), Expr::Column(_))) =>
        {
            unnested_lists(&names.input)
        }
        LogicalPlan::Unnest(Unnest {
            input,
            struct_type_columns,
            ..
        }) if struct_type_columns.is_empty() => match input.as_ref() {
            LogicalPlan::Projection(lists)
                if matches!(*lists.input, LogicalPlan::EmptyRelation(_)) =>
            {
                Some(lists.expr.iter().map(|e| e.clone().unalias()).collect())
            }
            _ => None,
        },
        _ => None,
    }
}

/// Resolves an expression's outer columns in a schema; none if one is missing.
fn resolve_outer_columns(expression: Expr, schema: &DFSchemaRef) -> Option<Expr> {
    let mut has_all = true;
    let resolved = expression.transform_up(|e| {
        Ok(match e {
            Expr::OuterReferenceColumn(_, column) => {
                has_all &= schema.has_column(&column);
                Transformed::yes(Expr::Column(column))
            }
            other => Transformed::no(other),
        })
    });
    resolved
        .ok()
        .map(|resolved| resolved.data)
        .filter(|_| has_all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_added_to_times_without_them() {
        for (text, full) in [
            ("2024-05-01 12:00", "2024-05-01 12:00:00"),
            ("2024-05-01T12:00Z", "2024-05-01T12:00:00Z"),
            ("2024-05-01 12:00+02:00", "2024-05-01 12:00:00+02:00"),
            (
                "2024-05-01 12:00 Europe/Berlin",
                "2024-05-01 12:00:00 Europe/Berlin",
            ),
        ] {
            assert_eq!(add_seconds(text).as_deref(), Some(full));
        }
        for text in [
            "2024-05-01",
            "2024-05-01 12",
            "2024-05-01 12:00:01",
            "2024-05-01 1:00",
            "at 2024-05-01 12:00",
            "é",
        ] {
            assert_eq!(add_seconds(text), None, "{text}");
        }
    }
}
