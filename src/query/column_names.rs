//! Unique names of a result's columns, as the keys of a JSON object must be.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    Expr, Ident, Query, Select, SelectItem, SetExpr, Statement as Sql,
};

/// Renames columns of the outermost `select` whose name is taken: `n`, `n_2`, `n_3`. `None` if no
/// column needs it.
pub fn deduplicate_in_sql(statement: &Statement) -> Option<Statement> {
    let mut statement = statement.clone();
    let Statement::Statement(inner) = &mut statement else {
        return None;
    };
    let Sql::Query(query) = inner.as_mut() else {
        return None;
    };
    rename(outermost(query)?).then_some(statement)
}

fn outermost(query: &mut Query) -> Option<&mut Select> {
    let mut body = query.body.as_mut();
    loop {
        body = match body {
            SetExpr::Select(select) => return Some(select),
            SetExpr::Query(query) => query.body.as_mut(),
            SetExpr::SetOperation { left, .. } => left.as_mut(),
            _ => return None,
        };
    }
}

fn rename(select: &mut Select) -> bool {
    let is_wildcard = |item: &SelectItem| {
        matches!(
            item,
            SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..)
        )
    };
    // A bare column next to a wildcard may be one of the wildcard's.
    let has_wildcard = select.projection.iter().any(is_wildcard);
    let mut taken: BTreeSet<String> = select.projection.iter().filter_map(name).collect();
    let (mut seen, mut is_renamed) = (BTreeSet::new(), false);
    for item in &mut select.projection {
        let Some(current) = name(item) else { continue };
        let is_bare = matches!(
            item,
            SelectItem::UnnamedExpr(Expr::Identifier(_) | Expr::CompoundIdentifier(_))
        );
        if seen.insert(current.clone()) && !(has_wildcard && is_bare) {
            continue;
        }
        let free = free(&current, &taken);
        taken.insert(free.clone());
        let expression = match item {
            SelectItem::UnnamedExpr(expression)
            | SelectItem::ExprWithAlias {
                expr: expression, ..
            } => expression.clone(),
            _ => continue,
        };
        *item = SelectItem::ExprWithAlias {
            expr: expression,
            alias: Ident::with_quote('"', free),
        };
        is_renamed = true;
    }
    is_renamed
}

fn name(item: &SelectItem) -> Option<String> {
    let normalized = |ident: &Ident| {
        if ident.quote_style.is_some() {
            ident.value.clone()
        } else {
            ident.value.to_lowercase()
        }
    };
    match item {
        SelectItem::UnnamedExpr(Expr::Identifier(ident)) => Some(normalized(ident)),
        SelectItem::UnnamedExpr(Expr::CompoundIdentifier(parts)) => parts.last().map(normalized),
        SelectItem::UnnamedExpr(expression) => Some(expression.to_string()),
        SelectItem::ExprWithAlias { alias, .. } => Some(normalized(alias)),
        _ => None,
    }
}

/// The first of `name_2`, `name_3`, … that is not taken.
fn free(name: &str, taken: &BTreeSet<String>) -> String {
    (2..)
        .map(|n| format!("{name}_{n}"))
        .find(|name| !taken.contains(name))
        .unwrap_or_default()
}

/// Renames columns of a result whose name is taken, as a join's `*` can return.
pub fn deduplicate(schema: SchemaRef, batches: Vec<RecordBatch>) -> (SchemaRef, Vec<RecordBatch>) {
    let mut taken: BTreeSet<String> = schema.fields().iter().map(|f| f.name().clone()).collect();
    if taken.len() == schema.fields().len() {
        return (schema, batches);
    }
    let mut seen = BTreeSet::new();
    let fields: Vec<_> = schema
        .fields()
        .iter()
        .map(|field| {
            if seen.insert(field.name().clone()) {
                return field.clone();
            }
            let name = free(field.name(), &taken);
            taken.insert(name.clone());
            Arc::new(field.as_ref().clone().with_name(name))
        })
        .collect();
    let schema: SchemaRef = Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()));
    let renamed = batches.into_iter().map(|batch| {
        RecordBatch::try_new(schema.clone(), batch.columns().to_vec()).expect("only names differ")
    });
    let batches = renamed.collect();
    (schema, batches)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::{DataType, Field};
    use datafusion::sql::parser::DFParser;

    fn renamed(sql: &str) -> Option<String> {
        let statement = DFParser::parse_sql(sql)
            .expect("SQL")
            .pop_front()
            .expect("a statement");
        deduplicate_in_sql(&statement).map(|statement| statement.to_string())
    }

    #[test]
    fn a_name_that_is_taken_gets_a_number() {
        assert_eq!(renamed("SELECT n, m FROM t"), None);
        assert_eq!(
            renamed("SELECT n, n FROM t").as_deref(),
            Some("SELECT n, n AS \"n_2\" FROM t")
        );
        assert_eq!(
            renamed("SELECT n, t.n, n_2 FROM t").as_deref(),
            Some("SELECT n, t.n AS \"n_3\", n_2 FROM t")
        );
        assert_eq!(
            renamed("SELECT a AS x, b AS x FROM t").as_deref(),
            Some("SELECT a AS x, b AS \"x_2\" FROM t")
        );
        let counts = renamed("SELECT count(*), count(*) FROM t");
        assert_eq!(
            counts.as_deref(),
            Some("SELECT count(*), count(*) AS \"count(*)_2\" FROM t")
        );
        assert_eq!(
            renamed("SELECT *, n FROM t").as_deref(),
            Some("SELECT *, n AS \"n_2\" FROM t")
        );
    }

    #[test]
    fn columns_of_one_name_get_numbers() {
        let field = |name: &str| Field::new(name, DataType::Int64, true);
        let schema = Arc::new(Schema::new(vec![
            field("n"),
            field("m"),
            field("n"),
            field("n_2"),
            field("n"),
        ]));
        let (schema, batches) = deduplicate(schema.clone(), vec![RecordBatch::new_empty(schema)]);
        let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        assert_eq!(names, ["n", "m", "n_3", "n_2", "n_4"]);
        assert_eq!(batches[0].schema(), schema);
    }
}
