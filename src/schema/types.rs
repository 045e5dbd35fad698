//! The `schema` of a stream: SQL types of the JSON that comes in.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use arrow::datatypes::{DataType, Field, Fields, TimeUnit};
use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;

/// A declared field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub ty: Type,
    pub not_null: bool,
}

/// What a JSON value is read as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Type {
    BigInt,
    Int,
    Double,
    Boolean,
    Varchar,
    /// RFC 3339 text.
    Timestamp,
    Struct(Vec<Column>),
    Array(Box<Column>),
    /// An object of any keys whose values are text.
    Map(Box<Column>),
}

/// Room that columns of no fixed width took the last time, per 1,024 values of what they lie in: so that the next frame's are made
/// as large at once. In the order of [`Column::rooms`].
#[derive(Debug, Default)]
pub struct Rooms(pub Vec<AtomicUsize>);

impl Rooms {
    pub fn of(columns: &[Column]) -> Self {
        Self((0..columns.iter().map(Column::rooms).sum()).map(|_| AtomicUsize::new(0)).collect())
    }
}

/// Microseconds in UTC, the one timestamp type of every table.
pub fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// Text by text, with the names that Delta gives a map's parts.
pub fn map() -> DataType {
    let entries = vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Utf8, true)];
    DataType::Map(Arc::new(Field::new("key_value", DataType::Struct(entries.into()), false)), false)
}

impl Type {
    pub fn arrow(&self) -> DataType {
        match self {
            Self::BigInt => DataType::Int64,
            Self::Int => DataType::Int32,
            Self::Double => DataType::Float64,
            Self::Boolean => DataType::Boolean,
            Self::Varchar => DataType::Utf8,
            Self::Timestamp => timestamp(),
            Self::Struct(fields) => DataType::Struct(fields.iter().map(Column::arrow).collect::<Fields>()),
            Self::Array(item) => DataType::List(Arc::new(Field::new("item", item.ty.arrow(), true))),
            Self::Map(_) => map(),
        }
    }
}

impl Column {
    /// How many columns of no fixed width it has, itself included, depth first.
    pub fn rooms(&self) -> usize {
        match &self.ty {
            Type::Varchar => 1,
            Type::Struct(fields) => fields.iter().map(Self::rooms).sum(),
            Type::Array(item) => 1 + item.rooms(),
            Type::Map(values) => values.rooms(),
            _ => 0,
        }
    }

    pub fn arrow(&self) -> Field {
        Field::new(&self.name, self.ty.arrow(), true)
    }
}

/// Reads `name type [not null], …`.
pub fn parse(schema: &str) -> Result<Vec<Column>, String> {
    // The SQL parser follows nested types without a bound of its own.
    if schema.len() > 64 << 10 || schema.matches('<').count() > 500 {
        return Err("longer than 64 KiB, or more than 500 nested types".into());
    }
    let sql = format!("create table t (\n{schema}\n)");
    let statements = Parser::parse_sql(&GenericDialect {}, &sql).map_err(|e| {
        // The place is one in the text around it.
        let text = e.to_string();
        text.split(" at Line: ").next().unwrap_or(&text).to_owned()
    })?;
    let [ast::Statement::CreateTable(table)] = statements.as_slice() else {
        return Err("write `name type [not null], …`".into());
    };
    let columns = table
        .columns
        .iter()
        .map(|c| {
            let not_null = c.options.iter().any(|o| matches!(o.option, ast::ColumnOption::NotNull));
            Ok(Column { name: c.name.value.clone(), ty: convert(&c.name.value, &c.data_type)?, not_null })
        })
        .collect::<Result<Vec<_>, String>>()?;
    unique("schema", &columns)?;
    if columns.is_empty() { Err("there is no column".into()) } else { Ok(columns) }
}

fn unique(place: &str, columns: &[Column]) -> Result<(), String> {
    for (i, column) in columns.iter().enumerate() {
        if columns[..i].iter().any(|c| c.name == column.name) {
            return Err(format!("{place}: `{}` is declared twice", column.name));
        }
    }
    Ok(())
}

fn convert(name: &str, ty: &ast::DataType) -> Result<Type, String> {
    use ast::DataType as Sql;
    Ok(match ty {
        Sql::BigInt(_) | Sql::Int8(_) | Sql::Int64 => Type::BigInt,
        Sql::Int(_) | Sql::Integer(_) | Sql::Int4(_) | Sql::Int32 | Sql::SmallInt(_) | Sql::TinyInt(_) => Type::Int,
        Sql::Double(_) | Sql::DoublePrecision | Sql::Float8 | Sql::Float64 | Sql::Float(_) | Sql::Real => Type::Double,
        Sql::Boolean | Sql::Bool => Type::Boolean,
        Sql::Varchar(_) | Sql::Text | Sql::String(_) | Sql::Char(_) | Sql::CharVarying(_) => Type::Varchar,
        Sql::Timestamp(..) | Sql::Datetime(_) => Type::Timestamp,
        Sql::Struct(fields, _) => {
            let columns = fields
                .iter()
                .map(|f| {
                    let field = f.field_name.as_ref().ok_or_else(|| format!("{name}: a field has no name"))?;
                    Ok(Column { name: field.value.clone(), ty: convert(&field.value, &f.field_type)?, not_null: false })
                })
                .collect::<Result<Vec<_>, String>>()?;
            unique(name, &columns)?;
            Type::Struct(columns)
        }
        Sql::Array(ast::ArrayElemTypeDef::AngleBracket(item) | ast::ArrayElemTypeDef::SquareBracket(item, _)) => {
            Type::Array(Box::new(Column { name: "[]".into(), ty: convert(name, item)?, not_null: false }))
        }
        Sql::Map(key, value) => match (convert(name, key)?, convert(name, value)?) {
            (Type::Varchar, ty @ Type::Varchar) => {
                Type::Map(Box::new(Column { name: "*".into(), ty, not_null: false }))
            }
            _ => return Err(format!("{name}: a map is map(varchar, varchar)")),
        },
        other => {
            return Err(format!(
                "{name}: the type {other} is not known; there are bigint, int, double, boolean, varchar, timestamp, struct<…>, array<…>, map(varchar, varchar)"
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_types_are_read() {
        let columns =
            parse("id bigint not null, v struct<time bigint, y double>, t array<struct<k varchar>>").expect("valid");
        assert!(columns[0].not_null && !columns[1].not_null);
        let Type::Struct(fields) = &columns[1].ty else { panic!("struct") };
        assert_eq!(fields[0].name, "time");
        assert!(matches!(&columns[2].ty, Type::Array(item) if matches!(item.ty, Type::Struct(_))));
    }

    #[test]
    fn wrong_schemas_say_what_is_wrong() {
        for (schema, part) in
            [("a decimal(3,2)", "DECIMAL"), ("a int, a int", "twice"), ("", "no column"), ("a", "type")]
        {
            let message = parse(schema).expect_err("wrong");
            assert!(message.contains(part), "{schema}: {message}");
        }
    }
}
