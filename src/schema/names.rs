//! Names of a table's columns: every reader of Delta tables must be able to distinguish them, at any
//! nesting depth.

use arrow::datatypes::{DataType, Field, Fields, Schema};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;

use super::PlanError;

/// Characters that readers of Delta and Parquet reject in a name.
const REJECTED_CHARS: [char; 11] = [' ', ',', ';', '{', '}', '(', ')', '\n', '\r', '\t', '='];
/// Characters of an expression that a message repeats.
const MAX_SHOWN_CHARS: usize = 60;

/// Column names, separated by commas.
pub fn join<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    let mut out = String::new();
    for name in names {
        if !out.is_empty() {
            out.push_str(", ");
        }
        out.push_str(name.as_ref());
    }
    out
}

/// The message for a column that a table does not have.
pub fn unknown_column(name: &str, table: &str, columns: &Schema) -> String {
    let available = join(columns.fields().iter().map(|f| f.name()));
    format!("`{name}` is not a column of {table}; available: {available}")
}

/// Words of SQL that are also common names of columns, and that every place of a statement accepts
/// unquoted.
const PLAIN_KEYWORDS: [&str; 14] = [
    "alert", "comment", "detail", "id", "level", "location", "name", "public", "state", "status",
    "text", "type", "url", "version",
];

/// Whether SQL has a word of this name, in any case: as the name of a table it would be read as
/// something else.
pub fn is_keyword(name: &str) -> bool {
    let name = name.to_uppercase();
    datafusion::sql::sqlparser::keywords::ALL_KEYWORDS
        .iter()
        .any(|keyword| *keyword == name)
}

/// A name as SQL and schemas take it: quoted, unless it reads the same without quotes.
pub fn quoted(name: &str) -> String {
    let is_plain = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if is_plain && (PLAIN_KEYWORDS.contains(&name) || !is_keyword(name)) {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

/// Whether readers of Delta tables accept the characters of a name.
pub fn has_readable_chars(name: &str) -> bool {
    !name.is_empty() && !name.contains(REJECTED_CHARS)
}

/// Whether two names are the same to a reader of Delta tables.
pub fn is_same_ignoring_case(a: &str, b: &str) -> bool {
    a == b || a.to_lowercase() == b.to_lowercase()
}

/// Rejects a reserved name, in any case.
pub fn check_not_reserved<'a>(
    mut reserved: impl Iterator<Item = &'a &'a str>,
    column: &str,
) -> Result<(), PlanError> {
    let Some(reserved) = reserved.find(|name| is_same_ignoring_case(name, column)) else {
        return Ok(());
    };
    let also = if *reserved == column {
        String::new()
    } else {
        format!(" (`{reserved}`)")
    };
    let message =
        format!("`{column}` is a reserved column name{also}; rename the column with `as`");
    Err(PlanError::at_words(&[column], message))
}

/// Rejects columns that some reader of a Delta table could not read.
pub fn check_readable(columns: &Schema) -> Result<(), PlanError> {
    let Some(NameError { name, message }) = name_error(columns.fields(), None) else {
        return Ok(());
    };
    // The SQL may name the field of a struct, or only the column that contains it.
    let column = columns
        .fields()
        .iter()
        .find(|f| f.name() == &name || contains_field(f.data_type(), &name));
    let column = column.map_or(name.as_str(), |f| f.name().as_str());
    Err(PlanError::at_words(&[&name, column], message))
}

/// A name that is rejected, and why.
struct NameError {
    name: String,
    message: String,
}

/// The fields of a nested type.
fn inner_fields(ty: &DataType) -> &[std::sync::Arc<Field>] {
    match ty {
        DataType::Struct(fields) => fields,
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            std::slice::from_ref(item)
        }
        DataType::Map(entries, _) => std::slice::from_ref(entries),
        _ => &[],
    }
}

fn contains_field(ty: &DataType, name: &str) -> bool {
    inner_fields(ty)
        .iter()
        .any(|f| f.name() == name || contains_field(f.data_type(), name))
}

/// The first name that is rejected; `parent` is the path of the struct that has the fields.
fn name_error(fields: &Fields, parent: Option<&str>) -> Option<NameError> {
    let (what, within) = match parent {
        None => ("column", String::new()),
        Some(parent) => ("field", format!(" of `{parent}`")),
    };
    for (at, field) in fields.iter().enumerate() {
        let name = field.name();
        let rejected = |message: String| {
            Some(NameError {
                name: name.clone(),
                message,
            })
        };
        if name.is_empty() {
            return rejected(format!(
                "a {what}{within} has an empty name; give it one with `as name`"
            ));
        }
        if let Some(c) = name.chars().find(|c| REJECTED_CHARS.contains(c)) {
            let message = format!(
                "the name of the {what} `{name}`{within} has the character {c:?}, which readers of Delta tables reject (blanks, line ends and any of , ; {{ }} ( ) =); write for example `as {}`",
                to_plain(name)
            );
            return rejected(message);
        }
        if let Some(before) = fields[..at]
            .iter()
            .map(|f| f.name())
            .find(|before| is_same_ignoring_case(before, name))
        {
            let why = if before == name {
                format!("there are two {what}s `{name}`{within}")
            } else {
                format!(
                    "the {what}s `{before}` and `{name}`{within} differ only by case, which readers of Delta tables ignore"
                )
            };
            let fix = if parent.is_some() {
                "select the fields one by one, each with a name of its own"
            } else {
                "give one of them another name with `as`"
            };
            return rejected(format!("{why}; {fix}"));
        }
        let path = parent.map_or_else(|| name.clone(), |parent| format!("{parent}.{name}"));
        if let Some(error) = nested_name_error(field.data_type(), &path, name) {
            return Some(error);
        }
    }
    None
}

fn nested_name_error(ty: &DataType, path: &str, name: &str) -> Option<NameError> {
    match ty {
        DataType::Struct(fields) if fields.is_empty() => {
            let message = format!(
                "`{path}` is a struct without fields, which a table cannot store; leave it out"
            );
            Some(NameError {
                name: name.to_owned(),
                message,
            })
        }
        DataType::Struct(fields) => name_error(fields, Some(path)),
        // The names of list items and map entries are not the user's.
        _ => inner_fields(ty)
            .iter()
            .find_map(|item| nested_name_error(item.data_type(), path, name)),
    }
}

/// An acceptable name similar to a rejected one.
pub fn to_plain(name: &str) -> String {
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

/// Rejects an expression of the outermost select without a name: the planner's name for it may
/// change between versions.
pub fn check_named(statement: &Statement, columns: &Schema) -> Result<(), PlanError> {
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
    let mut shown: String = text.chars().take(MAX_SHOWN_CHARS).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    Err(PlanError::at(
        expression,
        format!("`{shown}` has no name; write `{shown} as name`"),
    ))
}

/// Whether an expression is an unchanged column, and not a field of one.
fn is_column(expression: &ast::Expr, columns: &Schema) -> bool {
    let is_nested = |name: &ast::Ident| {
        let column = columns
            .fields()
            .iter()
            .find(|f| is_same_ignoring_case(f.name(), &name.value));
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

    fn rejection(fields: Vec<Field>) -> String {
        check_readable(&Schema::new(fields)).map_or_else(|e| e.message, |()| String::new())
    }

    fn text(name: &str) -> Field {
        Field::new(name, DataType::Utf8, true)
    }

    #[test]
    fn names_that_readers_cannot_distinguish_are_rejected_at_any_depth() {
        let nested = DataType::Struct(vec![text("Key"), text("key")].into());
        let list = DataType::List(Arc::new(Field::new("item", nested.clone(), true)));
        let deep = DataType::Struct(vec![Field::new("b", list.clone(), true)].into());
        let of = |ty: &DataType| rejection(vec![Field::new("a", ty.clone(), true)]);
        assert!(rejection(vec![text("userId"), text("userid")]).contains("differ only by case"));
        assert!(rejection(vec![text("Ä"), text("ä")]).contains("differ only by case"));
        assert!(rejection(vec![text("a"), text("a")]).contains("two columns"));
        assert!(of(&nested).contains("`Key` and `key` of `a` differ only by case"));
        assert!(of(&list).contains("of `a` differ"));
        assert!(of(&deep).contains("of `a.b` differ"), "{}", of(&deep));
        assert!(of(&DataType::Struct(Fields::empty())).contains("without fields"));
        assert_eq!(
            rejection(vec![
                text("a.b"),
                text("a-b"),
                text("température"),
                text("2024")
            ]),
            ""
        );
    }

    #[test]
    fn rejected_characters_are_named_with_a_fix() {
        for c in REJECTED_CHARS {
            assert!(
                rejection(vec![text(&format!("a{c}b"))]).contains("write for example `as a_b`")
            );
        }
        assert!(rejection(vec![text("temp (C)")]).contains("`as temp_c`"));
        assert!(rejection(vec![text("2 x")]).contains("`as c_2_x`"));
        assert!(rejection(vec![text("")]).contains("empty name"));
    }
}
