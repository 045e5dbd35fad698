//! The `schema` of a stream: SQL types of the incoming JSON.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use arrow::datatypes::{DataType, Field, Fields, TimeUnit};
use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};

use super::PlanError;

/// A declared field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// The JSON key, which is case-sensitive.
    pub name: String,
    /// How its values are read.
    pub ty: Type,
    /// Whether a record without it is rejected.
    pub not_null: bool,
}

/// The type as which a JSON value is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Type {
    /// A whole number of 64 bits.
    BigInt,
    /// A whole number of 32 bits.
    Int,
    /// A number; the nearest double.
    Double,
    /// `true` or `false`.
    Boolean,
    /// A string, or the digits of a number.
    Varchar,
    /// A time as text, or a number in this unit.
    Timestamp(Ticks),
    /// Any value, as its compact JSON text.
    Json,
    /// An object with these keys; others count as drift.
    Struct(Vec<Column>),
    /// A list of items of one type.
    Array(Box<Column>),
    /// An object with any keys, whose values are text.
    Map(Box<Column>),
}

/// Unit of a number in a timestamp field. Times written as text are always read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ticks {
    /// Numbers are rejected: seconds and milliseconds cannot be distinguished safely.
    None,
    /// Since 1970.
    Seconds,
    /// Since 1970.
    Millis,
    /// Since 1970.
    Micros,
}

impl Ticks {
    const UNITS: [(&'static str, Self); 3] = [
        ("s", Self::Seconds),
        ("ms", Self::Millis),
        ("us", Self::Micros),
    ];

    /// The type's name in a schema.
    pub fn type_name(self) -> &'static str {
        match self {
            Self::None => "timestamp",
            Self::Seconds => "timestamp(s)",
            Self::Millis => "timestamp(ms)",
            Self::Micros => "timestamp(us)",
        }
    }

    /// The power of ten that converts a number to microseconds; none if numbers are rejected.
    pub fn power(self) -> Option<i64> {
        match self {
            Self::None => None,
            Self::Seconds => Some(6),
            Self::Millis => Some(3),
            Self::Micros => Some(0),
        }
    }
}

/// Metadata of the fields of a marked schema that hold JSON text. Tables do not have it.
const JSON_MARK: &str = "weir.json";

/// Bytes or items that columns of variable width had in the last frame, per 1,024 values of their
/// parent, so that the next frame's buffers are allocated at once. In the depth-first order of
/// [`Column::variable_width_columns`].
#[derive(Debug, Default)]
pub struct CapacityHints(pub Vec<AtomicUsize>);

impl CapacityHints {
    /// Hints that know nothing yet.
    pub fn for_columns(columns: &[Column]) -> Self {
        Self(
            (0..columns.iter().map(Column::variable_width_columns).sum())
                .map(|_| AtomicUsize::new(0))
                .collect(),
        )
    }
}

/// Microseconds in UTC, the one timestamp type of every table.
pub fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// Text to text, with the field names that Delta uses for maps.
pub fn map() -> DataType {
    let entries = vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("value", DataType::Utf8, true),
    ];
    DataType::Map(
        Arc::new(Field::new(
            "key_value",
            DataType::Struct(entries.into()),
            false,
        )),
        false,
    )
}

impl Type {
    /// The type of its Arrow array.
    pub fn arrow(&self) -> DataType {
        match self {
            Self::BigInt => DataType::Int64,
            Self::Int => DataType::Int32,
            Self::Double => DataType::Float64,
            Self::Boolean => DataType::Boolean,
            Self::Varchar | Self::Json => DataType::Utf8,
            Self::Timestamp(_) => timestamp(),
            Self::Struct(fields) => {
                DataType::Struct(fields.iter().map(Column::arrow).collect::<Fields>())
            }
            Self::Array(item) => {
                DataType::List(Arc::new(Field::new("item", item.ty.arrow(), true)))
            }
            Self::Map(_) => map(),
        }
    }
}

impl Column {
    /// How many columns of variable width it has, itself included.
    pub fn variable_width_columns(&self) -> usize {
        match &self.ty {
            Type::Varchar | Type::Json => 1,
            Type::Struct(fields) => fields.iter().map(Self::variable_width_columns).sum(),
            Type::Array(item) => 1 + item.variable_width_columns(),
            Type::Map(values) => values.variable_width_columns(),
            _ => 0,
        }
    }

    /// Its Arrow field. Always nullable: the decoder checks `not_null`.
    pub fn arrow(&self) -> Field {
        Field::new(&self.name, self.ty.arrow(), true)
    }

    /// As [`Self::arrow`], with a mark on every field that holds JSON text.
    pub fn marked(&self) -> Field {
        let ty = match &self.ty {
            Type::Struct(fields) => {
                DataType::Struct(fields.iter().map(Self::marked).collect::<Fields>())
            }
            Type::Array(item) => DataType::List(Arc::new(item.marked().with_name("item"))),
            other => other.arrow(),
        };
        let field = Field::new(&self.name, ty, true);
        if self.ty == Type::Json {
            return field.with_metadata([(JSON_MARK.to_owned(), String::new())].into());
        }
        field
    }
}

/// Whether a field of a marked schema holds JSON text.
pub fn is_json(field: &Field) -> bool {
    field.metadata().contains_key(JSON_MARK)
}

/// Parses `name type [not null], …`.
pub fn parse(schema: &str) -> Result<Vec<Column>, PlanError> {
    // The SQL parser does not bound nested types.
    if schema.len() > 64 << 10 || schema.matches('<').count() > 500 {
        return Err("longer than 64 KiB, or more than 500 nested types".into());
    }
    let sql = format!("create table t (\n{schema}\n)");
    // The location of an error is one in the generated statement.
    let without_location =
        |text: String| text.split(" at Line: ").next().unwrap_or(&text).to_owned();
    let tokens = Tokenizer::new(&GenericDialect {}, &sql)
        .tokenize()
        .map_err(|e| without_location(e.to_string()))?;
    let mut parser = Parser::new(&GenericDialect {}).with_tokens(with_ticks(tokens));
    let statements = parser
        .parse_statements()
        .map_err(|e| without_location(e.to_string()))?;
    let [ast::Statement::CreateTable(table)] = statements.as_slice() else {
        return Err("write `name type [not null], …`".into());
    };
    let columns = table
        .columns
        .iter()
        .map(|c| {
            let not_null = c
                .options
                .iter()
                .any(|o| matches!(o.option, ast::ColumnOption::NotNull));
            Ok(Column {
                name: c.name.value.clone(),
                ty: from_sql(&c.name.value, &c.data_type)?,
                not_null,
            })
        })
        .collect::<Result<Vec<_>, PlanError>>()?;
    check_unique("schema", &columns)?;
    if columns.is_empty() {
        Err("no column is declared".into())
    } else {
        Ok(columns)
    }
}

/// Replaces `timestamp(s)`, `timestamp(ms)` and `timestamp(us)` by one quoted name each: SQL allows
/// only digits there.
fn with_ticks(tokens: Vec<Token>) -> Vec<Token> {
    let tokens: Vec<Token> = tokens
        .into_iter()
        .filter(|t| !matches!(t, Token::Whitespace(_)))
        .collect();
    let is_word = |token: Option<&Token>, word: &str| matches!(token, Some(Token::Word(w)) if w.quote_style.is_none() && w.value.eq_ignore_ascii_case(word));
    let mut out = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while at < tokens.len() {
        let unit = Ticks::UNITS.iter().find(|(unit, _)| {
            is_word(tokens.get(at), "timestamp")
                && tokens.get(at + 1) == Some(&Token::LParen)
                && is_word(tokens.get(at + 2), unit)
                && tokens.get(at + 3) == Some(&Token::RParen)
        });
        match unit {
            Some((_, ticks)) => {
                out.push(Token::make_word(ticks.type_name(), Some('"')));
                at += 4;
            }
            None => {
                out.push(tokens[at].clone());
                at += 1;
            }
        }
    }
    out
}

fn check_unique(parent: &str, columns: &[Column]) -> Result<(), PlanError> {
    for (i, column) in columns.iter().enumerate() {
        if columns[..i].iter().any(|c| c.name == column.name) {
            return Err(format!("{parent}: `{}` is declared twice", column.name).into());
        }
    }
    Ok(())
}

fn from_sql(name: &str, ty: &ast::DataType) -> Result<Type, PlanError> {
    use ast::DataType as Sql;
    Ok(match ty {
        Sql::BigInt(_) | Sql::Int8(_) | Sql::Int64 => Type::BigInt,
        Sql::Int(_)
        | Sql::Integer(_)
        | Sql::Int4(_)
        | Sql::Int32
        | Sql::SmallInt(_)
        | Sql::TinyInt(_) => Type::Int,
        Sql::Double(_)
        | Sql::DoublePrecision
        | Sql::Float8
        | Sql::Float64
        | Sql::Float(_)
        | Sql::Real => Type::Double,
        Sql::Boolean | Sql::Bool => Type::Boolean,
        Sql::Varchar(_) | Sql::Text | Sql::String(_) | Sql::Char(_) | Sql::CharVarying(_) => {
            Type::Varchar
        }
        Sql::Timestamp(..) | Sql::Datetime(_) => Type::Timestamp(Ticks::None),
        Sql::JSON | Sql::JSONB => Type::Json,
        Sql::Custom(of, modifiers) if modifiers.is_empty() && ticks(of).is_some() => {
            Type::Timestamp(ticks(of).unwrap_or(Ticks::None))
        }
        Sql::Struct(fields, _) => {
            let columns = fields
                .iter()
                .map(|f| {
                    let field = f
                        .field_name
                        .as_ref()
                        .ok_or_else(|| format!("{name}: a field has no name"))?;
                    Ok(Column {
                        name: field.value.clone(),
                        ty: from_sql(&field.value, &f.field_type)?,
                        not_null: false,
                    })
                })
                .collect::<Result<Vec<_>, PlanError>>()?;
            check_unique(name, &columns)?;
            Type::Struct(columns)
        }
        Sql::Array(
            ast::ArrayElemTypeDef::AngleBracket(item)
            | ast::ArrayElemTypeDef::SquareBracket(item, _),
        ) => Type::Array(Box::new(Column {
            name: "[]".into(),
            ty: from_sql(name, item)?,
            not_null: false,
        })),
        Sql::Map(key, value) => match (from_sql(name, key)?, from_sql(name, value)?) {
            (Type::Varchar, ty @ Type::Varchar) => Type::Map(Box::new(Column {
                name: "*".into(),
                ty,
                not_null: false,
            })),
            _ => return Err(format!("{name}: the only map is map(varchar, varchar)").into()),
        },
        other => {
            return Err(format!(
                "{name}: unknown type {other}; available: bigint, int, double, boolean, varchar, timestamp, timestamp(s), timestamp(ms), timestamp(us), json, struct<…>, array<…>, map(varchar, varchar)"
            )
            .into());
        }
    })
}

/// The unit of a name that [`with_ticks`] inserted.
fn ticks(name: &ast::ObjectName) -> Option<Ticks> {
    let [ast::ObjectNamePart::Identifier(name)] = name.0.as_slice() else {
        return None;
    };
    let known = Ticks::UNITS.iter().map(|(_, ticks)| *ticks);
    known
        .filter(|_| name.quote_style.is_some())
        .find(|ticks| ticks.type_name() == name.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_types_are_parsed() {
        let columns = parse(
            "id bigint not null, v struct<time bigint, y double>, t array<struct<k varchar>>",
        )
        .expect("valid");
        assert!(columns[0].not_null && !columns[1].not_null);
        let Type::Struct(fields) = &columns[1].ty else {
            panic!("struct")
        };
        assert_eq!(fields[0].name, "time");
        assert!(matches!(&columns[2].ty, Type::Array(item) if matches!(item.ty, Type::Struct(_))));
    }

    #[test]
    fn units_of_numbers_are_declared_with_the_type() {
        let columns = parse(
            "a timestamp, b timestamp( S ) not null, c struct<d timestamp(ms)>, e array<timestamp(us)>, f json",
        );
        let columns = columns.expect("valid");
        assert_eq!(columns[0].ty, Type::Timestamp(Ticks::None));
        assert!(columns[1].not_null && columns[1].ty == Type::Timestamp(Ticks::Seconds));
        assert!(
            matches!(&columns[2].ty, Type::Struct(f) if f[0].ty == Type::Timestamp(Ticks::Millis))
        );
        assert!(
            matches!(&columns[3].ty, Type::Array(item) if item.ty == Type::Timestamp(Ticks::Micros))
        );
        assert!(
            columns[4].ty == Type::Json
                && is_json(&columns[4].marked())
                && !is_json(&columns[4].arrow())
        );
        assert!(parse("a timestamp(ns)").is_err());
    }

    #[test]
    fn errors_name_what_is_wrong() {
        for (schema, part) in [
            ("a decimal(3,2)", "DECIMAL"),
            ("a int, a int", "twice"),
            ("", "no column"),
            ("a", "type"),
        ] {
            let message = parse(schema).expect_err("wrong").message;
            assert!(message.contains(part), "{schema}: {message}");
        }
    }
}
