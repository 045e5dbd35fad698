//! Bounds on a statement before it is planned: its tokens, the nesting depth of expressions and
//! queries, the tables it reads with common table expressions expanded, its grouping sets.

use std::collections::BTreeMap;
use std::mem;
use std::ops::ControlFlow;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, GroupByExpr, GroupByWithModifier, Ident, ObjectName, Query, Select,
    SetExpr, Statement as Sql, Value, VisitMut, VisitorMut, visit_relations,
};
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

use super::Exceeded;
use crate::schema::dialect::WeirDialect;

/// Words, numbers and signs of a statement.
pub const MAX_TOKENS: usize = 50_000;
/// Nesting depth of expressions and queries. A long chain of `and` or `or` counts as a balanced
/// tree.
pub const MAX_DEPTH: usize = 200;
/// `select`s of a statement, including those of `union`.
pub const MAX_SELECTS: usize = 128;
/// Table reads, with common table expressions expanded.
pub const MAX_TABLES: u64 = 128;
/// Grouping sets of `group by`: those of `cube`, `rollup` and `grouping sets` multiply.
pub const MAX_GROUPING_SETS: u64 = 64;
/// Chains of `and` or `or` with at least this many terms are balanced.
const MIN_BALANCED_TERMS: usize = 64;

/// Rejects a text that is too long to be parsed.
pub fn check_tokens(sql: &str) -> Result<(), Exceeded> {
    // The parser reports text that is not SQL.
    let Ok(tokens) = Tokenizer::new(&WeirDialect, sql).tokenize() else {
        return Ok(());
    };
    let is_select =
        |token: &&Token| matches!(token, Token::Word(w) if w.value.eq_ignore_ascii_case("select"));
    let count = tokens
        .iter()
        .filter(|token| !matches!(token, Token::Whitespace(_)))
        .count();
    if count > MAX_TOKENS {
        return Err(Exceeded(format!(
            "the statement has {count} words and signs; at most {MAX_TOKENS} are parsed: put values into a table or send several statements"
        )));
    }
    let selects = tokens.iter().filter(is_select).count();
    if selects > MAX_SELECTS {
        return Err(Exceeded(format!(
            "the statement has {selects} `select`s; at most {MAX_SELECTS} are planned: send several statements"
        )));
    }
    Ok(())
}

/// Rejects a statement that is too large to be planned, and balances long chains of `and` and `or`,
/// so that planning takes linear time and shallow recursion.
pub fn check(statement: &mut Statement) -> Result<(), Exceeded> {
    match statement {
        Statement::Statement(inner) => {
            let mut walk = Walk::default();
            if let ControlFlow::Break(exceeded) = inner.visit(&mut walk) {
                return Err(exceeded);
            }
            check_tables(inner.as_mut())
        }
        Statement::Explain(explained) => check(&mut explained.statement),
        _ => Ok(()),
    }
}

#[derive(Default)]
struct Walk {
    depth: usize,
}

impl Walk {
    /// Enters a level; `spine` are levels below it that the visitor does not see separately.
    fn descend(&mut self, spine: usize) -> ControlFlow<Exceeded> {
        self.depth += 1;
        let depth = self.depth + spine;
        if depth > MAX_DEPTH {
            return ControlFlow::Break(Exceeded(format!(
                "expressions and queries nest {depth} levels deep, by operators, casts or parentheses; at most {MAX_DEPTH} are planned: write `in (…)` or a list for chains, or split the statement"
            )));
        }
        ControlFlow::Continue(())
    }
}

impl VisitorMut for Walk {
    type Break = Exceeded;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Exceeded> {
        self.descend(set_operation_spine(&query.body))
    }

    fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<Exceeded> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<Exceeded> {
        let sets = grouping_sets(&select.group_by);
        if sets > MAX_GROUPING_SETS {
            return ControlFlow::Break(Exceeded(format!(
                "`group by` makes {sets} grouping sets; at most {MAX_GROUPING_SETS} are planned: name fewer columns in cube, rollup and grouping sets"
            )));
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expression: &mut Expr) -> ControlFlow<Exceeded> {
        balance(expression);
        self.descend(spine(expression))
    }

    fn post_visit_expr(&mut self, _: &mut Expr) -> ControlFlow<Exceeded> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }
}

/// Nesting depth of an expression's first operands. The parser builds these without recursion, so
/// they can be deeper than the stack.
fn spine(expression: &Expr) -> usize {
    let (mut depth, mut expression) = (0, expression);
    loop {
        expression = match expression {
            Expr::BinaryOp { left: inner, .. }
            | Expr::Cast { expr: inner, .. }
            | Expr::IsNull(inner)
            | Expr::IsNotNull(inner)
            | Expr::IsTrue(inner)
            | Expr::IsNotTrue(inner)
            | Expr::IsFalse(inner)
            | Expr::IsNotFalse(inner)
            | Expr::IsUnknown(inner)
            | Expr::IsNotUnknown(inner)
            | Expr::IsDistinctFrom(inner, _)
            | Expr::IsNotDistinctFrom(inner, _)
            | Expr::IsNormalized { expr: inner, .. }
            | Expr::Like { expr: inner, .. }
            | Expr::ILike { expr: inner, .. }
            | Expr::SimilarTo { expr: inner, .. }
            | Expr::RLike { expr: inner, .. }
            | Expr::Between { expr: inner, .. }
            | Expr::InList { expr: inner, .. }
            | Expr::InSubquery { expr: inner, .. }
            | Expr::InUnnest { expr: inner, .. }
            | Expr::AnyOp { left: inner, .. }
            | Expr::AllOp { left: inner, .. }
            | Expr::AtTimeZone {
                timestamp: inner, ..
            }
            | Expr::Collate { expr: inner, .. }
            | Expr::UnaryOp { expr: inner, .. }
            | Expr::JsonAccess { value: inner, .. }
            | Expr::Nested(inner) => inner,
            Expr::CompoundFieldAccess { root, access_chain } => {
                depth += access_chain.len();
                root
            }
            _ => return depth,
        };
        depth += 1;
    }
}

fn set_operation_spine(body: &SetExpr) -> usize {
    let (mut depth, mut body) = (0, body);
    while let SetExpr::SetOperation { left, .. } = body {
        (depth, body) = (depth + 1, left.as_ref());
    }
    // The sides of a set operation are planned next to each other.
    depth / 2
}

/// Rebuilds a long chain of `and` or `or` as a balanced tree: `((a or b) or c) or d` becomes
/// `(a or b) or (c or d)`.
fn balance(expression: &mut Expr) {
    let chained = |expression: &Expr| match expression {
        Expr::BinaryOp {
            op: op @ (BinaryOperator::And | BinaryOperator::Or),
            ..
        } => Some(op.clone()),
        _ => None,
    };
    let Some(op) = chained(expression) else {
        return;
    };
    let mut count = 1;
    let mut left = &*expression;
    while let Expr::BinaryOp {
        left: inner,
        op: own,
        ..
    } = left
        && *own == op
    {
        (count, left) = (count + 1, inner);
    }
    if count < MIN_BALANCED_TERMS {
        return;
    }
    let mut terms = Vec::with_capacity(count);
    let mut rest = mem::replace(expression, Expr::Identifier(Ident::new("")));
    loop {
        match rest {
            Expr::BinaryOp {
                left,
                op: own,
                right,
            } if own == op => {
                terms.push(*right);
                rest = *left;
            }
            first => {
                terms.push(first);
                break;
            }
        }
    }
    terms.reverse();
    terms = merge_into_lists(terms, &op);
    // Popped from the end, so the first term is last.
    terms.reverse();
    while terms.len() > 1 {
        let mut next = Vec::with_capacity(terms.len() / 2 + 1);
        while let Some(left) = terms.pop() {
            next.push(match terms.pop() {
                Some(right) => Expr::BinaryOp {
                    left: Box::new(left),
                    op: op.clone(),
                    right: Box::new(right),
                },
                None => left,
            });
        }
        next.reverse();
        terms = next;
    }
    if let Some(balanced) = terms.pop() {
        *expression = balanced;
    }
}

/// Merges terms that compare a column with literals of one kind: `x = 1 or x = 2` becomes
/// `x in (1, 2)`.
fn merge_into_lists(terms: Vec<Expr>, op: &BinaryOperator) -> Vec<Expr> {
    let wanted = if *op == BinaryOperator::Or {
        BinaryOperator::Eq
    } else {
        BinaryOperator::NotEq
    };
    let mut lists: BTreeMap<(String, Option<LiteralKind>), usize> = BTreeMap::new();
    let mut out: Vec<Expr> = Vec::with_capacity(terms.len());
    for term in terms {
        let (column, literal) = match term {
            Expr::BinaryOp { left, op, right }
                if op == wanted && is_column(&left) && literal_kind(&right).is_some() =>
            {
                (left, right)
            }
            other => {
                out.push(other);
                continue;
            }
        };
        let key = (column.to_string(), literal_kind(&literal));
        if let Some(Expr::InList { list, .. }) = lists.get(&key).and_then(|at| out.get_mut(*at)) {
            list.push(*literal);
            continue;
        }
        lists.insert(key, out.len());
        out.push(Expr::InList {
            expr: column,
            list: vec![*literal],
            negated: *op == BinaryOperator::And,
        });
    }
    out
}

fn is_column(expression: &Expr) -> bool {
    matches!(
        expression,
        Expr::Identifier(_) | Expr::CompoundIdentifier(_)
    )
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum LiteralKind {
    Text,
    WholeNumber,
}

/// The kind of a literal that can be merged into a list.
fn literal_kind(expression: &Expr) -> Option<LiteralKind> {
    let Expr::Value(value) = expression else {
        return None;
    };
    match &value.value {
        Value::SingleQuotedString(_) => Some(LiteralKind::Text),
        Value::Number(digits, _) if digits.parse::<i64>().is_ok() => Some(LiteralKind::WholeNumber),
        _ => None,
    }
}

fn grouping_sets(group_by: &GroupByExpr) -> u64 {
    let power = |n: usize| {
        1_u64
            .checked_shl(n as u32)
            .filter(|_| n < 64)
            .unwrap_or(u64::MAX)
    };
    let sets = |expression: &Expr| match expression {
        Expr::Cube(columns) => power(columns.len()),
        Expr::Rollup(columns) => columns.len() as u64 + 1,
        Expr::GroupingSets(sets) => sets.len().max(1) as u64,
        _ => 1,
    };
    let (columns, modifiers) = match group_by {
        GroupByExpr::All(modifiers) => (&[][..], modifiers),
        GroupByExpr::Expressions(columns, modifiers) => (columns.as_slice(), modifiers),
    };
    let modified = modifiers.iter().map(|modifier| match modifier {
        GroupByWithModifier::Cube => power(columns.len()),
        GroupByWithModifier::Rollup | GroupByWithModifier::Totals => columns.len() as u64 + 1,
        GroupByWithModifier::GroupingSets(expression) => sets(expression),
    });
    columns
        .iter()
        .map(sets)
        .chain(modified)
        .fold(1, u64::saturating_mul)
}

/// Rejects a statement that reads too many tables, with common table expressions expanded where they
/// are read: `c1` read twice by `c2`, read twice by `c3`, … doubles with each.
fn check_tables(statement: &mut Sql) -> Result<(), Exceeded> {
    let mut tables = Tables::default();
    // One pass is enough if each expression reads earlier ones; names of inner queries need more.
    for _ in 0..=MAX_DEPTH {
        tables.has_changed = false;
        let _ = statement.visit(&mut tables);
        if !tables.has_changed {
            break;
        }
    }
    let read = match &*statement {
        Sql::Query(query) => tables.read_by(query),
        _ => 0,
    };
    if read > MAX_TABLES {
        return Err(Exceeded(format!(
            "the statement reads more than {MAX_TABLES} tables with its common table expressions written out where they are read; join fewer, or send several statements"
        )));
    }
    Ok(())
}

#[derive(Default)]
struct Tables {
    /// Table reads of each common table expression.
    by_name: BTreeMap<String, u64>,
    has_changed: bool,
}

impl Tables {
    /// Table reads of a relation: 1 for a table.
    fn reads_of(&self, name: &ObjectName) -> u64 {
        match name.0.as_slice() {
            [only] => only
                .as_ident()
                .and_then(|ident| self.by_name.get(&ident.value.to_lowercase()))
                .copied()
                .unwrap_or(1),
            _ => 1,
        }
    }

    /// Table reads of a query, apart from those of its own common table expressions.
    fn read_by(&self, query: &Query) -> u64 {
        let mut read = 0_u64;
        let _ = visit_relations(query.body.as_ref(), |name| {
            read = read.saturating_add(self.reads_of(name));
            ControlFlow::<()>::Continue(())
        });
        read
    }
}

impl VisitorMut for Tables {
    type Break = ();

    fn post_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        for table in query.with.iter().flat_map(|with| &with.cte_tables) {
            // Clamped, because one that reads itself would grow without end.
            let read = self.read_by(&table.query).clamp(1, MAX_TABLES + 1);
            let known = self
                .by_name
                .entry(table.alias.name.value.to_lowercase())
                .or_insert(0);
            if read > *known {
                (*known, self.has_changed) = (read, true);
            }
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::sql::parser::DFParserBuilder;

    fn checked(sql: &str) -> Result<String, Exceeded> {
        check_tokens(sql)?;
        let parser = DFParserBuilder::new(sql).with_dialect(&WeirDialect).build();
        let mut statement = parser
            .expect("tokens")
            .parse_statements()
            .expect("SQL")
            .pop_front()
            .expect("one");
        check(&mut statement)?;
        Ok(statement.to_string())
    }

    #[test]
    fn long_chains_become_equivalent_lists_and_trees() {
        let terms =
            |form: fn(usize) -> String, by: &str| (0..200).map(form).collect::<Vec<_>>().join(by);
        let sql = format!(
            "SELECT 1 FROM t WHERE {}",
            terms(|n| format!("a = {n} OR b = '{n}' OR c > {n}"), " OR ")
        );
        let found = checked(&sql).expect("within the bounds");
        assert!(
            found.contains("a IN (0, 1, 2,") && found.contains("b IN ('0', '1', '2',"),
            "{found}"
        );
        assert_eq!(found.matches("c > ").count(), 200);
        let sql = format!(
            "SELECT 1 FROM t WHERE {}",
            terms(|n| format!("t.a <> {n}"), " AND ")
        );
        assert!(
            checked(&sql)
                .expect("within the bounds")
                .contains("t.a NOT IN (0, 1,")
        );
        let sql = format!(
            "SELECT 1 FROM t WHERE {}",
            terms(|n| format!("f({n}) > a"), " AND ")
        );
        assert_eq!(
            checked(&sql).expect("balanced"),
            sql,
            "the order of terms stays"
        );
        let short = "SELECT 1 FROM t WHERE a = 1 OR a = 2 OR a = 3";
        assert_eq!(checked(short).as_deref(), Ok(short));
    }

    #[test]
    fn each_exceeded_bound_is_named() {
        let rejected = |sql: &str, part: &str| {
            let error = checked(sql).expect_err("above a bound").0;
            assert!(error.contains(part) && error.contains("at most"), "{error}");
        };
        rejected(
            &format!("select 1{}", " + 1".repeat(30_000)),
            "words and signs",
        );
        rejected(&format!("select 1{}", " + 1".repeat(300)), "nest");
        rejected(
            &format!("select {}", vec!["(select 1)"; 200].join(", ")),
            "`select`s",
        );
        rejected(
            "select 1 from t group by cube(a, b, c, d, e, f, g)",
            "grouping sets",
        );
        rejected(
            "select 1 from t group by rollup(a, b, c, d, e, f, g, h), rollup(i, j, k, l, m, n, o, p)",
            "grouping sets",
        );
        let doubled: Vec<String> = (1..9)
            .map(|n| format!("c{n} as (select 1 from c{0} a, c{0} b)", n - 1))
            .collect();
        let sql = format!(
            "with c0 as (select 1), {} select 1 from c8",
            doubled.join(", ")
        );
        let error = checked(&sql).expect_err("above a bound").0;
        assert!(error.contains("common table expressions"), "{error}");
    }

    #[test]
    fn common_table_expressions_count_where_they_are_read() {
        let linear: Vec<String> = (1..100)
            .map(|n| format!("c{n} as (select * from c{})", n - 1))
            .collect();
        let sql = format!(
            "with c0 as (select 1), {} select 1 from c99",
            linear.join(", ")
        );
        assert!(checked(&sql).is_ok());
        let nested = "with a as (with b as (select 1 from t, t) select 1 from b, b, b) select 1 from a, a, a, a, a";
        assert!(checked(nested).is_ok());
    }
}
