//! Names of a table's columns: such that every reader of Delta tables can tell them apart, at any
//! depth.

use arrow::datatypes::{DataType, Field, Fields, Schema};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;

use super::PlanError;

/// Characters that readers of Delta and Parquet refuse in a name.
const REFUSED: [char; 11] = [' ', ',', ';', '{', '}', '(', ')', '\n', '\r', '\t', '='];
/// Characters of an expression that a message duplicates.
const SHOWN: usize = 60;

/// Whether two names are one to a reader of Delta tables.
pub fn is_same(a: &str, b: &str) -> bool {
    a == b || a.to_lowercase() == b.to_lowercase()
}

/// Refuses a name of Weir's own in whatever case.
pub fn refuse_own<'a>(
    mut own: impl Iterator<Item = &'a &'a str>,
    column: &str,
) -> Result<(), PlanError> {
    let Some(own) = own.find(|own| is_same(own, column)) else {
        return Ok(());
    };
    let also = if *own == column {
        String::new()
    } else {
        format!(" but for its case (`{own}`)")
    };
    let message =
        format!("the column `{column}` is weir's own{also}; name yours otherwise with `as`");
    Err(PlanError::about(&[column], message))
}

/// Refuses columns that some reader of a Delta table could not read.
pub fn refuse_unreadable(columns: &Schema) -> Result<(), PlanError> {
    let about = |(name, message): (String, String)| {
        // A field of a struct may stand in the text, or only the column that holds it.
        let column = columns
            .fields()
            .iter()
            .find(|f| f.name() == &name || holds(f.data_type(), &name));
        let column = column.map_or(name.as_str(), |f| f.name().as_str());
        PlanError::about(&[&name, column], message)
    };
    unreadable(columns.fields(), None).map_or(Ok(()), |wrong| Err(about(wrong)))
}

/// The fields of a nested type.
fn inner(ty: &DataType) -> &[std::sync::Arc<Field>] {
    match ty {
        DataType::Struct(fields) => fields,
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            std::slice::from_ref(item)
        }
        DataType::Map(entries, _) => std::slice::from_ref(entries),
        _ => &[],
    }
}

fn holds(ty: &DataType, name: &str) -> bool {
    inner(ty)
        .iter()
        .any(|f| f.name() == name || holds(f.data_type(), name))
}

/// The first name that is refused, and why; `of` is the struct that the fields are of.
fn unreadable(fields: &Fields, of: Option<&str>) -> Option<(String, String)> {
    let (what, within) = match of {
        None => ("column", String::new()),
        Some(of) => ("field", format!(" of `{of}`")),
    };
    for (at, field) in fields.iter().enumerate() {
        let name = field.name();
        let refused = |message: String| Some((name.clone(), message));
        if name.is_empty() {
            return refused(format!(
                "a {what}{within} has an empty name; give it one with `as name`"
            ));
        }
        if let Some(c) = name.chars().find(|c| REFUSED.contains(c)) {
            let message = format!(
                "the name of the {what} `{name}`{within} has the character {c:?}, which readers of Delta tables refuse (blanks, line ends and any of , ; {{ }} ( ) =); write for example `as {}`",
                plain(name)
            );
            return refused(message);
        }
        if let Some(before) = fields[..at]
            .iter()
            .map(|f| f.name())
            .find(|before| is_same(before, name))
        {
            let why = if before == name {
                format!("there are two {what}s `{name}`{within}")
            } else {
                format!(
                    "the {what}s `{before}` and `{name}`{within} differ only by case, by which readers of Delta tables do not tell them apart"
                )
            };
            let way_out = if of.is_some() {
                "select the fields one by one, each with a name of its own"
            } else {
                "give one of them another name with `as`"
            };
            return refused(format!("{why}; {way_out}"));
        }
        let of = of.map_or_else(|| name.clone(), |of| format!("{of}.{name}"));
        if let Some(wrong) = unreadable_inside(field.data_type(), &of, name) {
            return Some(wrong);
        }
    }
    None
}

fn unreadable_inside(ty: &DataType, of: &str, name: &str) -> Option<(String, String)> {
    match ty {
        DataType::Struct(fields) if fields.is_empty() => {
            let message = format!(
                "`{of}` is a struct without fields, which a table cannot hold; leave it out"
            );
            Some((name.to_owned(), message))
        }
        DataType::Struct(fields) => unreadable(fields, Some(of)),
        // Items and entries have names that no text gives them.
        _ => inner(ty)
            .iter()
            .find_map(|item| unreadable_inside(item.data_type(), of, name)),
    }
}

/// A name made of one that is refused.
fn plain(name: &str) -> String {
    let letters = name.to_lowercase();
    let words: Vec<&str> = letters
        .split(|c: char| !c.is_alphanumeric())
        .filter(|w| !w.is_empty())
        .collect();
    let joined = words.join("_");
    if joined.starts_with(|c: char| c.is_alphabetic()) {
        joined
    } else {
        format!("c_{joined}")
    }
}

/// Refuses an expression of the outermost select that has no name of its own: what a planner calls
/// it may change.
pub fn refuse_unnamed(statement: &Statement, columns: &Schema) -> Result<(), PlanError> {
    let Statement::Statement(inner) = statement else {
        return Ok(());
    };
    let ast::Statement::Query(query) = inner.as_ref() else {
        return Ok(());
    };
    let ast::SetExpr::Select(select) = query.body.as_ref() else {
        return Ok(());
    };
    let unnamed = select.projection.iter().find_map(|item| match item {
        ast::SelectItem::UnnamedExpr(expression) if !is_column(expression, columns) => {
            Some(expression)
        }
        _ => None,
    });
    let Some(expression) = unnamed else {
        return Ok(());
    };
    let text = expression.to_string();
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    Err(PlanError::at(
        expression,
        format!("`{shown}` has no name; write `{shown} as name`"),
    ))
}

/// Whether an expression is a column as it is, and not a field of one.
fn is_column(expression: &ast::Expr, columns: &Schema) -> bool {
    let is_nested = |name: &ast::Ident| {
        let column = columns
            .fields()
            .iter()
            .find(|f| is_same(f.name(), &name.value));
        column.is_some_and(|f| f.data_type().is_nested())
    };
    match expression {
        ast::Expr::Identifier(_) => true,
        ast::Expr::Nested(inner) => is_column(inner, columns),
        ast::Expr::CompoundIdentifier(parts) => {
            matches!(parts.as_slice(), [table, _] if !is_nested(table))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn refusal(fields: Vec<Field>) -> String {
        refuse_unreadable(&Schema::new(fields)).map_or_else(|e| e.message, |()| String::new())
    }

    fn text(name: &str) -> Field {
        Field::new(name, DataType::Utf8, true)
    }

    #[test]
    fn names_that_readers_cannot_tell_apart_are_refused_at_any_depth() {
        let nested = DataType::Struct(vec![text("Key"), text("key")].into());
        let list = DataType::List(Arc::new(Field::new("item", nested.clone(), true)));
        let deep = DataType::Struct(vec![Field::new("b", list.clone(), true)].into());
        let of = |ty: &DataType| refusal(vec![Field::new("a", ty.clone(), true)]);
        assert!(refusal(vec![text("userId"), text("userid")]).contains("differ only by case"));
        assert!(refusal(vec![text("Ä"), text("ä")]).contains("differ only by case"));
        assert!(refusal(vec![text("a"), text("a")]).contains("two columns"));
        assert!(of(&nested).contains("`Key` and `key` of `a` differ only by case"));
        assert!(of(&list).contains("of `a` differ"));
        assert!(of(&deep).contains("of `a.b` differ"), "{}", of(&deep));
        assert!(of(&DataType::Struct(Fields::empty())).contains("without fields"));
        assert_eq!(
            refusal(vec![
                text("a.b"),
                text("a-b"),
                text("température"),
                text("2024")
            ]),
            ""
        );
    }

    #[test]
    fn characters_that_readers_refuse_are_named_with_a_way_out() {
        for c in REFUSED {
            assert!(refusal(vec![text(&format!("a{c}b"))]).contains("write for example `as a_b`"));
        }
        assert!(refusal(vec![text("temp (C)")]).contains("`as temp_c`"));
        assert!(refusal(vec![text("2 x")]).contains("`as c_2_x`"));
        assert!(refusal(vec![text("")]).contains("empty name"));
    }
}
