//! Whether tables that exist are what the sink writes: all differences, each with the statement
//! that removes it. Pure.

use super::super::SinkError;
use super::schema::{ColumnType, Scalar, Table, qualified, quoted};

/// A table as the database has it.
#[derive(Debug, Clone, Default)]
pub struct Existing {
    pub columns: Vec<ExistingColumn>,
    pub unique: Vec<UniqueIndex>,
}

/// One of its columns.
#[derive(Debug, Clone)]
pub struct ExistingColumn {
    pub name: String,
    /// As `format_type` writes it.
    pub ty: String,
    pub not_null: bool,
    pub has_default: bool,
}

/// A unique index that `on conflict` can use.
#[derive(Debug, Clone)]
pub struct UniqueIndex {
    pub columns: Vec<String>,
    pub nulls_not_distinct: bool,
}

/// All differences of a table, each with what removes it.
pub fn differences(schema: &str, table: &Table, existing: &Existing) -> Vec<String> {
    let alter = format!("alter table {}", qualified(schema, &table.name));
    let name = &table.name;
    let mut found = Vec::new();
    for column in &table.columns {
        let (quoted, ty) = (quoted(&column.name), column.ty.name());
        let of_name = existing.columns.iter().find(|c| c.name == column.name);
        match of_name {
            None => found.push(format!(
                "`{name}` lacks the column `{}`: {alter} add column {quoted} {ty}",
                column.name
            )),
            Some(other) if !accepts(&other.ty, column.ty) => found.push(format!(
                "`{name}.{}` is {}, not {ty}: {alter} alter column {quoted} type {ty} using {quoted}::{ty}",
                column.name, other.ty
            )),
            Some(_) => {}
        }
    }
    if !has_key(table, existing) {
        let what = if table.has_nullable_key() {
            "a unique index whose nulls are equal"
        } else {
            "a primary key"
        };
        found.push(format!(
            "`{name}` lacks {what} over ({}): {alter} add {}",
            table.key_list(),
            table.key_constraint()
        ));
    }
    let is_own = |name: &str| table.columns.iter().any(|column| column.name == name);
    let others = existing.columns.iter().filter(|c| !is_own(&c.name));
    for column in others.filter(|c| c.not_null && !c.has_default) {
        found.push(format!(
            "`{name}.{}` is not a column of the sink, and must not be null: {alter} alter column {} drop not null",
            column.name,
            quoted(&column.name)
        ));
    }
    found
}

fn accepts(existing: &str, ty: ColumnType) -> bool {
    let is_varchar = existing.starts_with("character varying") && !existing.ends_with("[]");
    existing == ty.name() || (is_varchar && ty == ColumnType::Scalar(Scalar::Text))
}

/// Whether `on conflict` finds a row by its key.
fn has_key(table: &Table, existing: &Existing) -> bool {
    let mut key: Vec<&str> = table
        .key
        .iter()
        .map(|c| table.columns[*c].name.as_str())
        .collect();
    key.sort_unstable();
    let is_not_null = |name: &str| {
        let mut columns = existing.columns.iter();
        columns.any(|column| column.name == name && column.not_null)
    };
    existing.unique.iter().any(|index| {
        let mut columns: Vec<&str> = index.columns.iter().map(String::as_str).collect();
        columns.sort_unstable();
        let finds_nulls = index.nulls_not_distinct || key.iter().all(|name| is_not_null(name));
        columns == key && (finds_nulls || !table.has_nullable_key())
    })
}

/// One error of all differences.
pub fn check(differences: &[String]) -> Result<(), SinkError> {
    if differences.is_empty() {
        return Ok(());
    }
    Err(SinkError::Halted(format!(
        "the tables of the database are not those of the sink; run these statements, or let the sink create the tables, then `weir sinks resume NAME`:\n{}",
        differences.join(";\n")
    )))
}

#[cfg(test)]
mod tests {
    use super::super::schema::{Column, Kind};
    use super::*;

    fn column(name: &str, ty: &str, not_null: bool, has_default: bool) -> ExistingColumn {
        ExistingColumn {
            name: name.to_owned(),
            ty: ty.to_owned(),
            not_null,
            has_default,
        }
    }

    fn table(kind: Kind) -> Table {
        let number = ColumnType::Scalar(Scalar::BigInt);
        let text = ColumnType::Scalar(Scalar::Text);
        let columns = [("lsn", number), ("k", number), ("v", text)];
        Table {
            name: "t".into(),
            kind,
            columns: columns
                .map(|(name, ty)| Column {
                    name: name.into(),
                    ty,
                })
                .into(),
            key: vec![1],
            foreign_keys: Vec::new(),
        }
    }

    #[test]
    fn all_differences_are_listed_with_the_statements_that_remove_them() {
        let existing = Existing {
            columns: vec![
                column("lsn", "integer", false, false),
                column("k", "bigint", false, false),
                column("extra", "text", true, false),
                column("id", "bigint", true, true),
                column("note", "text", false, false),
            ],
            unique: vec![UniqueIndex {
                columns: vec!["id".into()],
                nulls_not_distinct: false,
            }],
        };
        let found = differences("s", &table(Kind::Entity("x".into())), &existing);
        insta::assert_snapshot!(check(&found).expect_err("different"), @r#"
        the tables of the database are not those of the sink; run these statements, or let the sink create the tables, then `weir sinks resume NAME`:
        `t.lsn` is integer, not bigint: alter table "s"."t" alter column "lsn" type bigint using "lsn"::bigint;
        `t` lacks the column `v`: alter table "s"."t" add column "v" text;
        `t` lacks a primary key over ("k"): alter table "s"."t" add primary key ("k");
        `t.extra` is not a column of the sink, and must not be null: alter table "s"."t" alter column "extra" drop not null
        "#);
    }

    #[test]
    fn a_table_with_more_columns_and_a_shorter_text_is_accepted() {
        let mut existing = Existing {
            columns: vec![
                column("k", "bigint", true, false),
                column("lsn", "bigint", false, false),
                column("v", "character varying(10)", false, false),
                column("at", "timestamp with time zone", true, true),
            ],
            unique: vec![UniqueIndex {
                columns: vec!["k".into()],
                nulls_not_distinct: false,
            }],
        };
        let entity = table(Kind::Entity("x".into()));
        assert_eq!(differences("s", &entity, &existing), Vec::<String>::new());
        // Rows whose group has a null would not be found by it.
        let mut window = table(Kind::Window);
        window.key = vec![0, 1];
        existing.unique[0].columns = vec!["k".into(), "lsn".into()];
        assert_eq!(differences("s", &window, &existing).len(), 1);
        existing.unique[0].nulls_not_distinct = true;
        assert_eq!(differences("s", &window, &existing), Vec::<String>::new());
    }
}
