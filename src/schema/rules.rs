//! What Weir's SQL has beyond what DataFusion plans by itself: `time_bucket`, times without
//! seconds, and `unnest` of a table's own list beside it in `from`. Queries and declarations are
//! planned alike.

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

/// Adds to a session what Weir's SQL has of its own.
pub fn register(state: &mut SessionState) -> Result<(), DataFusionError> {
    let date_bin = FunctionRegistry::udf(state, "date_bin")?;
    state.register_udf(Arc::new(
        date_bin.as_ref().clone().with_aliases(["time_bucket"]),
    ))?;
    state.add_analyzer_rule(Arc::new(ShortTimes));
    state.add_analyzer_rule(Arc::new(LateralUnnest));
    Ok(())
}

/// Reads `unnest(…)` in `from` as what it is; the parser takes it for a function that gives a
/// table.
pub fn read_unnest(statement: &mut Statement) {
    match statement {
        Statement::Statement(inner) => {
            let _ = inner.as_mut().visit(&mut ReadUnnest);
        }
        Statement::Explain(explained) => read_unnest(&mut explained.statement),
        _ => {}
    }
}

struct ReadUnnest;

impl VisitorMut for ReadUnnest {
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
            // One name is that of the column too.
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

/// `2024-05-01 12:00` is a time wherever a text is read as one.
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
        Expr::Literal(ScalarValue::Utf8(Some(text)), metadata) => full_time(text)
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

/// A time that ends with its minutes, or has its zone behind them, with seconds.
fn full_time(text: &str) -> Option<String> {
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

/// `from events, unnest(tags) as x(tag)`: every row of the table with each item of its list. A list
/// that is empty or null gives none.
#[derive(Debug)]
struct LateralUnnest;

impl AnalyzerRule for LateralUnnest {
    fn analyze(
        &self,
        plan: LogicalPlan,
        _: &ConfigOptions,
    ) -> Result<LogicalPlan, DataFusionError> {
        let rewritten = plan.transform_up_with_subqueries(|node| match &node {
            LogicalPlan::Join(join) => Ok(match unnested(join)? {
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

/// A join with the items of lists that its left side has, as a plan that takes the lists apart;
/// none where it is another join.
fn unnested(join: &Join) -> Result<Option<LogicalPlan>, DataFusionError> {
    let mut right = join.right.as_ref();
    while let LogicalPlan::SubqueryAlias(alias) = right {
        right = alias.input.as_ref();
    }
    let LogicalPlan::Subquery(subquery) = right else {
        return Ok(None);
    };
    let Some(lists) = lists(&subquery.subquery).filter(|_| join.on.is_empty()) else {
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
    // Of a left join the rows without an item stay, unless a condition chooses among the items.
    let keeps_all = match join.join_type {
        JoinType::Inner => false,
        JoinType::Left if condition.is_none() => true,
        _ => return Ok(None),
    };
    let items = join.schema.fields().len() - left.fields().len();
    let Some(lists) = lists
        .into_iter()
        .map(|list| on(list, left))
        .collect::<Option<Vec<_>>>()
    else {
        return Ok(None);
    };
    if items != lists.len() {
        return Ok(None);
    }
    let own: Vec<Expr> = left.columns().into_iter().map(Expr::Column).collect();
    let names: Vec<String> = (0..items).map(|n| format!("__lateral_{n}")).collect();
    let full = |list: Expr| {
        if keeps_all {
            null_for_empty(list, left)
        } else {
            Ok(list)
        }
    };
    let taken = lists.into_iter().map(full).collect::<Result<Vec<_>, _>>()?;
    let taken = taken
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
        .project(own.iter().cloned().chain(taken))?
        .unnest_columns_with_options(columns, UnnestOptions::new().with_preserve_nulls(keeps_all))?
        .project(own.iter().cloned().chain(named))?;
    let plan = match condition {
        Some(condition) => plan.filter(condition.clone())?,
        None => plan,
    };
    plan.build().map(Some)
}

/// A list, or null where it is empty: of that one row is made.
fn null_for_empty(list: Expr, schema: &DFSchemaRef) -> Result<Expr, DataFusionError> {
    let null = ScalarValue::try_from(&list.get_type(schema)?)?;
    let is_empty = datafusion::functions_nested::expr_fn::cardinality(list.clone()).eq(lit(0u64));
    when(is_empty, Expr::Literal(null, None)).otherwise(list)
}

/// The lists that `unnest(…)` in `from` takes apart, if the plan is nothing else.
fn lists(plan: &LogicalPlan) -> Option<Vec<Expr>> {
    match plan {
        LogicalPlan::SubqueryAlias(alias) => lists(&alias.input),
        LogicalPlan::Projection(names)
            if names
                .expr
                .iter()
                .all(|e| matches!(e.clone().unalias(), Expr::Column(_))) =>
        {
            lists(&names.input)
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

/// An expression on outer columns as one on these; none where they do not have them.
fn on(expression: Expr, schema: &DFSchemaRef) -> Option<Expr> {
    let mut has_all = true;
    let moved = expression.transform_up(|e| {
        Ok(match e {
            Expr::OuterReferenceColumn(_, column) => {
                has_all &= schema.has_column(&column);
                Transformed::yes(Expr::Column(column))
            }
            other => Transformed::no(other),
        })
    });
    moved.ok().map(|moved| moved.data).filter(|_| has_all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_added_to_times_that_have_none() {
        for (text, full) in [
            ("2024-05-01 12:00", "2024-05-01 12:00:00"),
            ("2024-05-01T12:00Z", "2024-05-01T12:00:00Z"),
            ("2024-05-01 12:00+02:00", "2024-05-01 12:00:00+02:00"),
            (
                "2024-05-01 12:00 Europe/Berlin",
                "2024-05-01 12:00:00 Europe/Berlin",
            ),
        ] {
            assert_eq!(full_time(text).as_deref(), Some(full));
        }
        for text in [
            "2024-05-01",
            "2024-05-01 12",
            "2024-05-01 12:00:01",
            "2024-05-01 1:00",
            "at 2024-05-01 12:00",
            "é",
        ] {
            assert_eq!(full_time(text), None, "{text}");
        }
    }
}
