//! A schema's text → what reads its data.

use std::collections::HashMap;
use std::panic::catch_unwind;

use apache_avro::schema::{
    FixedSchema, InnerDecimalSchema, Name, NamespaceRef, RecordSchema, Schema, UuidSchema,
};

/// The largest text of a schema.
const MAX_SCHEMA_BYTES: usize = 1 << 20;
/// Schemas that one schema may refer to.
const MAX_REFERENCES: usize = 64;
/// How deep objects and arrays of a schema and of what it refers to may be nested together: the
/// library parses them by recursion.
const MAX_SCHEMA_DEPTH: usize = 256;

/// Why a text is not a schema that data can be read by.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    #[error("it has more than {} bytes", MAX_SCHEMA_BYTES)]
    TooLong,
    #[error("it is nested deeper than {} levels", MAX_SCHEMA_DEPTH)]
    TooDeep,
    #[error("it refers to more than {} other schemas", MAX_REFERENCES)]
    TooManyReferences,
    #[error("it cannot be parsed")]
    Unreadable,
    #[error("{0}")]
    Invalid(#[from] Box<apache_avro::Error>),
    #[error("the type `{0}` is not declared in it")]
    Undeclared(String),
    #[error("its `{name}` has {size} bytes, where the logical type has {expected}")]
    Size {
        name: &'static str,
        size: usize,
        expected: usize,
    },
}

/// A type, with names resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Type {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    Fixed(usize),
    Decimal {
        /// Of a fixed decimal.
        size: Option<usize>,
        scale: usize,
    },
    BigDecimal,
    /// 16 bytes, preceded by their number if they are not fixed.
    Uuid {
        is_fixed: bool,
    },
    Duration,
    /// The symbols as JSON texts.
    Enum(Vec<String>),
    Array(Box<Type>),
    Map(Box<Type>),
    Union(Vec<Type>),
    Record(Vec<Field>),
    /// A named type, by its index: types may contain themselves.
    Named(usize),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    pub name: String,
    /// The name as a JSON text with its colon.
    pub key: String,
    pub kind: Type,
}

/// Reads data that were written by one schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatumReader {
    pub(super) root: Type,
    pub(super) named: Vec<Type>,
}

impl DatumReader {
    /// Compiles a schema; `references` are the texts of those whose names it uses.
    ///
    /// # Errors
    ///
    /// It is not a schema, or is larger than the limits.
    pub fn new(schema: &str, references: &[String]) -> Result<Self, SchemaError> {
        if references.len() > MAX_REFERENCES {
            return Err(SchemaError::TooManyReferences);
        }
        let texts = || references.iter().map(String::as_str).chain([schema]);
        if texts().map(str::len).sum::<usize>() > MAX_SCHEMA_BYTES {
            return Err(SchemaError::TooLong);
        }
        if texts().map(depth).sum::<usize>() > MAX_SCHEMA_DEPTH {
            return Err(SchemaError::TooDeep);
        }
        let (root, others) = parse(schema, references)?;
        let mut compiler = Compiler::default();
        // What a schema refers to may itself refer to what follows in the list.
        for other in &others {
            compiler.declare(other, None);
        }
        compiler.declare(&root, None);
        for other in &others {
            compiler.compile(other, None)?;
        }
        let root = compiler.compile(&root, None)?;
        Ok(Self {
            root,
            named: compiler.named,
        })
    }

    /// The type itself.
    pub(super) fn resolve<'a>(&'a self, kind: &'a Type) -> &'a Type {
        match kind {
            Type::Named(index) => &self.named[*index],
            other => other,
        }
    }
}

/// Parses texts that may come from a server: a panic of the library is an error like others.
fn parse(schema: &str, references: &[String]) -> Result<(Schema, Vec<Schema>), SchemaError> {
    let parsed = catch_unwind(|| Schema::parse_str_with_list(schema, references));
    let parsed = parsed.map_err(|_| SchemaError::Unreadable)?;
    Ok(parsed.map_err(Box::new)?)
}

/// How deep brackets are nested in a JSON text.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    let (mut is_in_text, mut is_escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_in_text => is_escaped = true,
            b'"' => is_in_text = !is_in_text,
            b'{' | b'[' if !is_in_text => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !is_in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[derive(Default)]
struct Compiler {
    names: HashMap<Name, usize>,
    named: Vec<Type>,
}

impl Compiler {
    /// Gives each named type its index.
    fn declare(&mut self, schema: &Schema, namespace: NamespaceRef<'_>) {
        if let Some(name) = name_of(schema) {
            let name = name.fully_qualified_name(namespace).into_owned();
            let named = &mut self.named;
            self.names.entry(name).or_insert_with(|| {
                named.push(Type::Null);
                named.len() - 1
            });
        }
        match schema {
            Schema::Array(array) => self.declare(&array.items, namespace),
            Schema::Map(map) => self.declare(&map.types, namespace),
            Schema::Union(union) => {
                for variant in union.variants() {
                    self.declare(variant, namespace);
                }
            }
            Schema::Record(record) => {
                let name = record.name.fully_qualified_name(namespace);
                for field in &record.fields {
                    self.declare(&field.schema, name.namespace());
                }
            }
            _ => {}
        }
    }

    fn compile(
        &mut self,
        schema: &Schema,
        namespace: NamespaceRef<'_>,
    ) -> Result<Type, SchemaError> {
        let kind = self.kind(schema, namespace)?;
        let Some(name) = name_of(schema) else {
            return Ok(kind);
        };
        let index = self.index_of(name, namespace)?;
        self.named[index] = kind;
        Ok(Type::Named(index))
    }

    fn index_of(&self, name: &Name, namespace: NamespaceRef<'_>) -> Result<usize, SchemaError> {
        let name = name.fully_qualified_name(namespace);
        let index = self.names.get(name.as_ref()).copied();
        index.ok_or_else(|| SchemaError::Undeclared(name.fullname(None)))
    }

    fn kind(&mut self, schema: &Schema, namespace: NamespaceRef<'_>) -> Result<Type, SchemaError> {
        Ok(match schema {
            Schema::Null => Type::Null,
            Schema::Boolean => Type::Boolean,
            Schema::Int | Schema::Date | Schema::TimeMillis => Type::Int,
            Schema::Long
            | Schema::TimeMicros
            | Schema::TimestampMillis
            | Schema::TimestampMicros
            | Schema::TimestampNanos
            | Schema::LocalTimestampMillis
            | Schema::LocalTimestampMicros
            | Schema::LocalTimestampNanos => Type::Long,
            Schema::Float => Type::Float,
            Schema::Double => Type::Double,
            Schema::Bytes => Type::Bytes,
            Schema::String | Schema::Uuid(UuidSchema::String) => Type::String,
            Schema::Fixed(fixed) => Type::Fixed(fixed.size),
            Schema::Decimal(decimal) => Type::Decimal {
                size: match &decimal.inner {
                    InnerDecimalSchema::Bytes => None,
                    InnerDecimalSchema::Fixed(fixed) => Some(fixed.size),
                },
                scale: decimal.scale,
            },
            Schema::BigDecimal => Type::BigDecimal,
            Schema::Uuid(UuidSchema::Bytes) => Type::Uuid { is_fixed: false },
            Schema::Uuid(UuidSchema::Fixed(fixed)) => {
                check_size("uuid", fixed, 16)?;
                Type::Uuid { is_fixed: true }
            }
            Schema::Duration(fixed) => {
                check_size("duration", fixed, 12)?;
                Type::Duration
            }
            Schema::Enum(declared) => {
                let symbols = declared.symbols.iter();
                Type::Enum(symbols.map(|symbol| quoted(symbol)).collect())
            }
            Schema::Array(array) => Type::Array(Box::new(self.compile(&array.items, namespace)?)),
            Schema::Map(map) => Type::Map(Box::new(self.compile(&map.types, namespace)?)),
            Schema::Union(union) => {
                let variants = union.variants().iter();
                let kinds: Result<_, _> = variants.map(|v| self.compile(v, namespace)).collect();
                Type::Union(kinds?)
            }
            Schema::Record(record) => self.record(record, namespace)?,
            Schema::Ref { name } => Type::Named(self.index_of(name, namespace)?),
        })
    }

    fn record(
        &mut self,
        record: &RecordSchema,
        namespace: NamespaceRef<'_>,
    ) -> Result<Type, SchemaError> {
        let name = record.name.fully_qualified_name(namespace);
        let fields: Result<_, _> = record
            .fields
            .iter()
            .map(|field| {
                Ok::<_, SchemaError>(Field {
                    key: quoted(&field.name) + ":",
                    name: field.name.clone(),
                    kind: self.compile(&field.schema, name.namespace())?,
                })
            })
            .collect();
        Ok(Type::Record(fields?))
    }
}

/// The name that a schema declares.
fn name_of(schema: &Schema) -> Option<&Name> {
    match schema {
        Schema::Record(record) => Some(&record.name),
        Schema::Enum(symbols) => Some(&symbols.name),
        Schema::Fixed(fixed) | Schema::Duration(fixed) | Schema::Uuid(UuidSchema::Fixed(fixed)) => {
            Some(&fixed.name)
        }
        Schema::Decimal(decimal) => match &decimal.inner {
            InnerDecimalSchema::Fixed(fixed) => Some(&fixed.name),
            InnerDecimalSchema::Bytes => None,
        },
        _ => None,
    }
}

fn check_size(name: &'static str, fixed: &FixedSchema, expected: usize) -> Result<(), SchemaError> {
    if fixed.size == expected {
        return Ok(());
    }
    Err(SchemaError::Size {
        name,
        size: fixed.size,
        expected,
    })
}

/// A JSON text.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(schema: &str, references: &[&str]) -> String {
        let references: Vec<String> = references.iter().map(|r| (*r).to_owned()).collect();
        let error = DatumReader::new(schema, &references).expect_err("wrong");
        error.to_string()
    }

    #[test]
    fn what_is_not_a_schema_is_refused_with_a_reason() {
        let deep = "[".repeat(300);
        let messages = [
            error("{", &[]),
            error(r#"{"type":"record","name":"R"}"#, &[]),
            error(r#""other.Type""#, &[]),
            error(&deep, &[]),
            error(&" ".repeat(MAX_SCHEMA_BYTES + 1), &[]),
            error("\"int\"", &["1"; MAX_REFERENCES + 1]),
        ];
        insta::assert_snapshot!(messages.join("\n"), @r#"
        Failed to parse schema from JSON
        No `fields` in record
        Unknown primitive type: other.Type
        it is nested deeper than 256 levels
        it has more than 1048576 bytes
        it refers to more than 64 other schemas
        "#);
    }

    #[test]
    fn brackets_in_texts_do_not_count_as_depth() {
        assert_eq!(depth(r#"{"a":["[[\"[[",{}]}"#), 3);
        assert_eq!(depth("\"int\""), 0);
    }
}
