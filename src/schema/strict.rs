//! Rejects clauses that DataFusion's planner ignores without an error: they change the meaning of a
//! query, so ignoring them gives a wrong result.

use std::ops::ControlFlow;

use datafusion::common::{Diagnostic, Span};
use datafusion::error::DataFusionError;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, JoinOperator, Query, Select,
    Spanned, TableFactor, Value, Visit, Visitor,
};
use datafusion::sql::sqlparser::tokenizer;

/// Rejects a statement with a clause that would be ignored.
pub fn check(statement: &Statement) -> Result<(), DataFusionError> {
    let found = match statement {
        Statement::Statement(inner) => inner.visit(&mut Clauses),
        Statement::Explain(explained) => return check(&explained.statement),
        _ => return Ok(()),
    };
    match found {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break((span, message)) => {
            let diagnostic =
                Diagnostic::new_error(message.clone(), Span::try_from_sqlparser_span(span));
            Err(DataFusionError::NotImplemented(message).with_diagnostic(diagnostic))
        }
    }
}

struct Clauses;

/// Ends with the location and message of the first rejected clause.
type Walk = ControlFlow<(tokenizer::Span, String)>;

fn reject(part: &impl Spanned, message: impl Into<String>) -> Walk {
    ControlFlow::Break((part.span(), message.into()))
}

impl Visitor for Clauses {
    type Break = (tokenizer::Span, String);

    fn pre_visit_query(&mut self, query: &Query) -> Walk {
        let clause = match query {
            Query { locks, .. } if !locks.is_empty() => "`for update` and `for share` are",
            Query {
                for_clause: Some(_),
                ..
            } => "`for xml`, `for json` and `for browse` are",
            Query {
                settings: Some(_), ..
            } => "`settings` is",
            Query {
                format_clause: Some(_),
                ..
            } => "`format` is",
            _ => return ControlFlow::Continue(()),
        };
        reject(query, format!("{clause} not supported"))
    }

    fn pre_visit_select(&mut self, select: &Select) -> Walk {
        let clause = match select {
            Select { top: Some(_), .. } => "`top` is not supported; write `limit` at the end",
            Select { into: Some(_), .. } => "`into` is not supported: SQL only reads here",
            Select {
                prewhere: Some(_), ..
            } => "`prewhere` is not supported; write `where`",
            Select {
                value_table_mode: Some(_),
                ..
            } => "`select as struct` and `as value` are not supported",
            Select { connect_by, .. } if !connect_by.is_empty() => "`connect by` is not supported",
            Select { distribute_by, .. } if !distribute_by.is_empty() => {
                "`distribute by` is not supported"
            }
            _ => return self.check_joins(select),
        };
        reject(select, clause)
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> Walk {
        const SAMPLE: &str = "`tablesample` is not supported; write `where random() < 0.1`";
        let clause = match factor {
            TableFactor::Table {
                sample: Some(_), ..
            }
            | TableFactor::Derived {
                sample: Some(_), ..
            } => SAMPLE,
            TableFactor::Table { with_hints, .. } if !with_hints.is_empty() => {
                "table hints are not supported"
            }
            TableFactor::Table { index_hints, .. } if !index_hints.is_empty() => {
                "index hints are not supported"
            }
            TableFactor::Table {
                version: Some(_), ..
            } => {
                "a table's earlier version cannot be read; write a condition on `event_time` or `lsn`"
            }
            TableFactor::Table {
                with_ordinality: true,
                ..
            }
            | TableFactor::Function {
                with_ordinality: true,
                ..
            }
            | TableFactor::UNNEST {
                with_ordinality: true,
                ..
            }
            | TableFactor::UNNEST {
                with_offset: true, ..
            } => {
                "`with ordinality` and `with offset` are not supported; write `unnest(range(1, cardinality(list) + 1))` next to it"
            }
            TableFactor::Table { partitions, .. } if !partitions.is_empty() => {
                "`partition` is not supported; write a condition on `event_time`"
            }
            TableFactor::Table {
                json_path: Some(_), ..
            } => "a path into a table is not supported; use `->`",
            TableFactor::Pivot { .. } => {
                "`pivot` is not supported; write `count(*) filter (where x = 'a') as a, …`"
            }
            TableFactor::Unpivot { .. } => {
                "`unpivot` is not supported; write a `union all` of the columns"
            }
            TableFactor::MatchRecognize { .. } => "`match_recognize` is not supported",
            _ => return ControlFlow::Continue(()),
        };
        reject(factor, clause)
    }

    fn pre_visit_expr(&mut self, expression: &Expr) -> Walk {
        let Expr::Function(call) = expression else {
            return ControlFlow::Continue(());
        };
        match time_format(call) {
            Some(format) if !format.contains('%') => reject(
                call,
                format!(
                    "the format '{format}' has no `%`, so the result would be the format itself; write '%Y-%m-%d %H:%M:%S'"
                ),
            ),
            _ => ControlFlow::Continue(()),
        }
    }
}

impl Clauses {
    fn check_joins(&self, select: &Select) -> Walk {
        for join in select.from.iter().flat_map(|table| &table.joins) {
            let clause = match &join.join_operator {
                JoinOperator::AsOf { .. } => {
                    "`asof join` is not supported; write a join on `<=` and `row_number() over (… order by time desc) = 1`"
                }
                JoinOperator::Semi(_) => "write `left semi join`",
                JoinOperator::Anti(_) => "write `left anti join`",
                JoinOperator::CrossApply | JoinOperator::OuterApply => {
                    "`apply` is not supported; write `lateral`"
                }
                JoinOperator::ArrayJoin
                | JoinOperator::LeftArrayJoin
                | JoinOperator::InnerArrayJoin => {
                    "`array join` is not supported; write `, unnest(list) as x(item)`"
                }
                _ => continue,
            };
            return reject(join, clause);
        }
        ControlFlow::Continue(())
    }
}

/// The constant format of a call that formats a time.
fn time_format(call: &Function) -> Option<&str> {
    let name = call.name.to_string();
    let FunctionArguments::List(list) = &call.args else {
        return None;
    };
    let formats_time = ["to_char", "date_format"]
        .iter()
        .any(|known| name.eq_ignore_ascii_case(known));
    let second = list.args.get(1).filter(|_| formats_time)?;
    let FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(value))) = second else {
        return None;
    };
    match &value.value {
        Value::SingleQuotedString(format) => Some(format),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::SessionContext;

    use crate::schema::dialect::parse;
    use crate::schema::plan_error::PlanError;

    fn outcome(sql: &str) -> String {
        let state = SessionContext::new().state();
        parse(&state, sql).map_or_else(
            |e| PlanError::from_planner(&e).to_string(),
            |_| "accepted".to_owned(),
        )
    }

    #[test]
    fn a_clause_that_would_be_ignored_is_rejected() {
        let rejections = [
            "select 1 from t tablesample bernoulli (10)",
            "select 1 from (select 1 from t tablesample system (1 rows)) x",
            "select 1 from t for update",
            "select 1 from t with (nolock)",
            "select top 1 a from t",
            "select a into b from t",
            "select 1 from t pivot (count(*) for a in ('x'))",
            "select 1 from t unpivot (v for n in (a, b))",
            "select 1 from t asof join s match_condition (t.a >= s.a)",
            "select 1 from t semi join s on true",
            "explain select 1 where exists (select 1 from t tablesample bernoulli (1))",
            "select to_char(a, 'YYYY-MM-DD') from t",
        ]
        .map(|sql| format!("{sql}\n  {}", outcome(sql)));
        insta::assert_snapshot!(rejections.join("\n"));
    }

    #[test]
    fn supported_clauses_are_accepted() {
        for sql in [
            "select to_char(a, '%Y') from t left semi join s using (a)",
            "select a from t, unnest(l) as x(i) cross join s limit 1",
            "select a from generate_series(1, 3) as g(a) order by a offset 1",
        ] {
            assert_eq!(outcome(sql), "accepted", "{sql}");
        }
    }
}
