//! The tables of a sink as PostgreSQL has them: names, types, keys, and which refers to which.
//! Pure.
//!
//! | in Weir | in PostgreSQL | key |
//! |---|---|---|
//! | `clicks`, `clicks.late` | `clicks`, `clicks_late` | `lsn` |
//! | `clicks.sessions` | `clicks_sessions` | `session_id` |
//! | the window `minutes` | `minutes` | `window_start` and the columns of `group by` |
//! | the entity table `clicks.users` | `users` | its own |
//!
//! If the sink has two tables `users`, this one is `clicks_users`.
//!
//! A group's column may be null, so a window with groups has `unique nulls not distinct` instead of
//! a primary key.

use arrow::datatypes::{DataType, Schema, TimeUnit};

use super::super::SinkError;

/// The table of the cursors.
pub const CURSORS: &str = "weir_sinks";
/// Longer names are truncated by PostgreSQL.
const MAX_NAME_BYTES: usize = 63;

/// A type with a binary format that is written here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scalar {
    Boolean,
    Integer,
    BigInt,
    Double,
    Text,
    Timestamp,
    Date,
    Bytes,
}

impl Scalar {
    fn of(ty: &DataType) -> Option<Self> {
        Some(match ty {
            DataType::Boolean => Self::Boolean,
            DataType::Int32 => Self::Integer,
            DataType::Int64 => Self::BigInt,
            DataType::Float64 => Self::Double,
            DataType::Utf8 => Self::Text,
            DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => Self::Timestamp,
            DataType::Date32 => Self::Date,
            DataType::Binary => Self::Bytes,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Boolean => "boolean",
            Self::Integer => "integer",
            Self::BigInt => "bigint",
            Self::Double => "double precision",
            Self::Text => "text",
            Self::Timestamp => "timestamp with time zone",
            Self::Date => "date",
            Self::Bytes => "bytea",
        }
    }

    /// The type's OID, which the binary format of an array has.
    pub fn oid(self) -> i32 {
        match self {
            Self::Boolean => 16,
            Self::Bytes => 17,
            Self::BigInt => 20,
            Self::Integer => 23,
            Self::Text => 25,
            Self::Double => 701,
            Self::Date => 1082,
            Self::Timestamp => 1184,
        }
    }
}

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    Scalar(Scalar),
    Array(Scalar),
    /// Structs, maps, lists of them, and whatever else.
    Json,
}

impl ColumnType {
    /// For values of an Arrow type.
    pub fn of(ty: &DataType) -> Self {
        let item = match ty {
            DataType::List(item) => Scalar::of(item.data_type()).map(Self::Array),
            _ => Scalar::of(ty).map(Self::Scalar),
        };
        item.unwrap_or(Self::Json)
    }

    /// As `format_type` of PostgreSQL writes it.
    pub fn name(self) -> String {
        match self {
            Self::Scalar(scalar) => scalar.name().to_owned(),
            Self::Array(scalar) => format!("{}[]", scalar.name()),
            Self::Json => "jsonb".to_owned(),
        }
    }
}

/// What kind of rows a table has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The newest row of each key, of this stream.
    Entity(String),
    /// Events of this stream.
    Stream(String),
    /// Versions of windows, which may be retracted.
    Window,
    /// Sessions, late rows, dead letters.
    Other,
}

/// A table of the sink, as the plan reads it.
pub struct Source<'a> {
    /// As the sink names it.
    pub name: &'a str,
    pub kind: Kind,
    pub schema: &'a Schema,
    pub key: &'a [usize],
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub ty: ColumnType,
}

/// A column that has a key of another table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForeignKey {
    pub column: usize,
    /// The index of the table, whose key is one column of the same name.
    pub parent: usize,
}

/// A table of the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub name: String,
    pub kind: Kind,
    pub columns: Vec<Column>,
    /// Columns that identify a row, in the order of the index.
    pub key: Vec<usize>,
    pub foreign_keys: Vec<ForeignKey>,
}

impl Table {
    /// Whether a column of its key may be null: one that a window groups by.
    pub fn has_nullable_key(&self) -> bool {
        self.kind == Kind::Window && self.key.len() > 1
    }

    /// Whether each row is the newest of its key by version, then by LSN.
    pub fn has_versions(&self) -> bool {
        matches!(self.kind, Kind::Entity(_))
    }

    /// The key's columns, quoted.
    pub fn key_list(&self) -> String {
        let names = self.key.iter().map(|c| quoted(&self.columns[*c].name));
        names.collect::<Vec<_>>().join(", ")
    }

    /// The statement that creates it.
    pub fn create(&self, schema: &str, all: &[Self]) -> String {
        let mut parts: Vec<String> = Vec::new();
        for (at, column) in self.columns.iter().enumerate() {
            let is_key = self.key.contains(&at) && !self.has_nullable_key();
            let not_null = if is_key { " not null" } else { "" };
            let (name, ty) = (quoted(&column.name), column.ty.name());
            parts.push(format!("{name} {ty}{not_null}"));
        }
        parts.push(self.key_constraint());
        for key in &self.foreign_keys {
            let column = quoted(&self.columns[key.column].name);
            let parent = qualified(schema, &all[key.parent].name);
            parts.push(format!(
                "foreign key ({column}) references {parent} ({column}) deferrable initially deferred"
            ));
        }
        let name = qualified(schema, &self.name);
        format!("create table {name} (\n  {}\n)", parts.join(",\n  "))
    }

    /// Its key, as `create table` and `alter table … add` take it.
    pub fn key_constraint(&self) -> String {
        let kind = if self.has_nullable_key() {
            "unique nulls not distinct"
        } else {
            "primary key"
        };
        format!("{kind} ({})", self.key_list())
    }
}

/// An identifier as SQL has it.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A table's name with its schema.
pub fn qualified(schema: &str, table: &str) -> String {
    format!("{}.{}", quoted(schema), quoted(table))
}

/// The tables of a sink.
pub fn plan(sources: &[Source<'_>], foreign_keys: bool) -> Result<Vec<Table>, SinkError> {
    let mut tables: Vec<Table> = sources
        .iter()
        .zip(names(sources)?)
        .map(|(source, name)| table(source, name))
        .collect();
    for table in &tables {
        let columns = table.columns.iter().map(|c| &c.name);
        if let Some(name) = columns
            .chain([&table.name])
            .find(|name| name.len() > MAX_NAME_BYTES)
        {
            return Err(SinkError::Halted(format!(
                "the name `{name}` is longer than the {MAX_NAME_BYTES} bytes that PostgreSQL allows; select the column or name the table by a shorter one"
            )));
        }
    }
    if foreign_keys {
        for child in 0..tables.len() {
            add_foreign_keys(&mut tables, child);
        }
    }
    Ok(tables)
}

fn table(source: &Source<'_>, name: String) -> Table {
    let fields = source.schema.fields().iter();
    let mut key = source.key.to_vec();
    if source.kind == Kind::Window {
        // The window's start, which comes last, is never null: first in the index, it finds rows
        // of groups that have a null.
        key.rotate_right(1);
    }
    Table {
        name,
        kind: source.kind.clone(),
        columns: fields
            .map(|field| Column {
                name: field.name().clone(),
                ty: ColumnType::of(field.data_type()),
            })
            .collect(),
        key,
        foreign_keys: Vec::new(),
    }
}

/// The short name of each table where it is the only one, else the long one.
fn names(sources: &[Source<'_>]) -> Result<Vec<String>, SinkError> {
    let long = |source: &Source<'_>| source.name.replace('.', "_");
    let short = |source: &Source<'_>| match (&source.kind, source.name.split_once('.')) {
        (Kind::Entity(_), Some((_, name))) => name.to_owned(),
        _ => long(source),
    };
    let count = |name: &str| sources.iter().filter(|s| short(s) == name).count();
    let names: Vec<String> = sources
        .iter()
        .map(|source| match short(source) {
            name if count(&name) == 1 && name != CURSORS => name,
            _ => long(source),
        })
        .collect();
    for (at, name) in names.iter().enumerate() {
        if name == CURSORS || names[..at].contains(name) {
            return Err(SinkError::Halted(format!(
                "`{}` would be the table `{name}`, which is taken; give it a sink of its own with another schema",
                sources[at].name
            )));
        }
    }
    Ok(names)
}

/// Columns of a table that are named as the one key column of an entity table of the same stream.
fn add_foreign_keys(tables: &mut [Table], child: usize) {
    let stream = match &tables[child].kind {
        Kind::Entity(stream) | Kind::Stream(stream) => stream.clone(),
        Kind::Window | Kind::Other => return,
    };
    for column in 0..tables[child].columns.len() {
        if tables[child].key == [column] {
            continue;
        }
        let is_parent = |parent: &Table| {
            let own = &tables[child].columns[column];
            let key = parent.key.as_slice();
            parent.kind == Kind::Entity(stream.clone())
                && matches!(key, [key] if parent.columns[*key] == *own)
        };
        let parent = (0..tables.len()).find(|at| *at != child && is_parent(&tables[*at]));
        // A key that would close a circle is left out: one of its tables must come first.
        if let Some(parent) = parent.filter(|parent| !refers_to(tables, *parent, child)) {
            let key = ForeignKey { column, parent };
            tables[child].foreign_keys.push(key);
        }
    }
}

/// Whether a table refers to another, or to one that does.
fn refers_to(tables: &[Table], from: usize, to: usize) -> bool {
    let mut keys = tables[from].foreign_keys.iter();
    keys.any(|key| key.parent == to || refers_to(tables, key.parent, to))
}

/// The order in which tables are read: each after those that refer to it, else as they are.
pub fn read_order(tables: &[Table]) -> Vec<usize> {
    let mut order: Vec<usize> = Vec::new();
    while order.len() < tables.len() {
        let is_ready = |at: usize| {
            let mut others = (0..tables.len()).filter(|other| !order.contains(other));
            others.all(|other| {
                tables[other]
                    .foreign_keys
                    .iter()
                    .all(|key| key.parent != at)
            })
        };
        let next = (0..tables.len()).find(|at| !order.contains(at) && is_ready(*at));
        // Foreign keys have no circle, so one is always ready.
        let Some(next) = next else { break };
        order.push(next);
    }
    order
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{Field, Fields};

    use super::*;

    fn schema(columns: &[(&str, DataType)]) -> Schema {
        let fields = columns
            .iter()
            .map(|(name, ty)| Field::new(*name, ty.clone(), true));
        Schema::new(fields.collect::<Vec<_>>())
    }

    fn time() -> DataType {
        DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
    }

    fn entity(columns: &[(&str, DataType)]) -> Schema {
        let mut all = vec![
            ("lsn", DataType::Int64),
            ("updated", time()),
            ("version", DataType::Int64),
        ];
        all.extend(columns.iter().cloned());
        schema(&all)
    }

    fn source<'a>(name: &'a str, schema: &'a Schema, key: &'a [usize]) -> Source<'a> {
        let kind = match name.split_once('.') {
            Some((_, "late" | "sessions")) => Kind::Other,
            Some((stream, _)) => Kind::Entity(stream.to_owned()),
            None if schema.index_of("window_start").is_ok() => Kind::Window,
            None => Kind::Stream(name.to_owned()),
        };
        Source {
            name,
            kind,
            schema,
            key,
        }
    }

    #[test]
    fn tables_refer_to_the_entities_of_their_stream_and_come_before_them() {
        let (text, number) = (DataType::Utf8, DataType::Int64);
        let users = entity(&[("user_id", number.clone()), ("name", text.clone())]);
        let teams = entity(&[("team_id", number.clone()), ("owner", text.clone())]);
        let teams_users = entity(&[("team_id", number.clone()), ("user_id", number.clone())]);
        let others = entity(&[("user_id", text)]);
        let clicks = schema(&[("lsn", number.clone()), ("user_id", number)]);
        let sources = [
            source("clicks.users", &users, &[3]),
            source("clicks.teams", &teams, &[3]),
            source("clicks.teams_users", &teams_users, &[3, 4]),
            source("clicks", &clicks, &[0]),
            source("other.accounts", &others, &[3]),
        ];
        let tables = plan(&sources, true).expect("a plan");
        let keys: Vec<Vec<(usize, usize)>> = tables
            .iter()
            .map(|t| {
                t.foreign_keys
                    .iter()
                    .map(|k| (k.column, k.parent))
                    .collect()
            })
            .collect();
        assert_eq!(
            keys,
            [vec![], vec![], vec![(3, 1), (4, 0)], vec![(1, 0)], vec![]]
        );
        assert_eq!(read_order(&tables), [2, 1, 3, 0, 4]);
        let without = plan(&sources, false).expect("a plan");
        assert_eq!(read_order(&without), [0, 1, 2, 3, 4]);
        insta::assert_snapshot!(tables[2].create("public", &tables), @r#"
        create table "public"."teams_users" (
          "lsn" bigint,
          "updated" timestamp with time zone,
          "version" bigint,
          "team_id" bigint not null,
          "user_id" bigint not null,
          primary key ("team_id", "user_id"),
          foreign key ("team_id") references "public"."teams" ("team_id") deferrable initially deferred,
          foreign key ("user_id") references "public"."users" ("user_id") deferrable initially deferred
        )
        "#);
    }

    #[test]
    fn a_key_that_would_close_a_circle_is_left_out() {
        let number = DataType::Int64;
        let a = entity(&[("a", number.clone()), ("b", number.clone())]);
        let b = entity(&[("b", number.clone()), ("a", number)]);
        let sources = [source("s.a", &a, &[3]), source("s.b", &b, &[3])];
        let tables = plan(&sources, true).expect("a plan");
        assert_eq!(tables[0].foreign_keys.len(), 1);
        assert!(tables[1].foreign_keys.is_empty());
        assert_eq!(read_order(&tables), [0, 1]);
    }

    #[test]
    fn a_window_is_identified_by_its_start_and_its_groups_which_may_be_null() {
        let item = Arc::new(Field::new("item", DataType::Utf8, true));
        let object = DataType::Struct(Fields::from(vec![Field::new("x", DataType::Utf8, true)]));
        let columns = schema(&[
            ("lsn", DataType::Int64),
            ("window_start", time()),
            ("coun\"try", DataType::Utf8),
            ("n", DataType::Int32),
            ("share", DataType::Float64),
            ("names", DataType::List(item)),
            ("object", object),
            ("bytes", DataType::Binary),
            ("is_new", DataType::Boolean),
        ]);
        let window = source("minutes", &columns, &[2, 1]);
        let tables = plan(&[window], true).expect("a plan");
        insta::assert_snapshot!(tables[0].create("s", &tables), @r#"
        create table "s"."minutes" (
          "lsn" bigint,
          "window_start" timestamp with time zone,
          "coun""try" text,
          "n" integer,
          "share" double precision,
          "names" text[],
          "object" jsonb,
          "bytes" bytea,
          "is_new" boolean,
          unique nulls not distinct ("window_start", "coun""try")
        )
        "#);
    }

    #[test]
    fn names_are_short_where_that_is_unique() {
        let columns = entity(&[("id", DataType::Int64)]);
        let named = |names: &[&str]| {
            let sources: Vec<Source<'_>> =
                names.iter().map(|n| source(n, &columns, &[3])).collect();
            plan(&sources, true)
                .map(|tables| tables.into_iter().map(|t| t.name).collect::<Vec<_>>())
                .map_err(|e| e.to_string())
        };
        let names = ["a.users", "a", "a.late", "b.teams", "c.teams"];
        assert_eq!(
            named(&names),
            Ok(["users", "a", "a_late", "b_teams", "c_teams"]
                .map(String::from)
                .to_vec())
        );
        assert_eq!(
            named(&["s.weir_sinks"]),
            Ok(vec!["s_weir_sinks".to_owned()])
        );
        assert!(named(&["s.a", "a", "s_a"]).is_err());
        assert!(named(&[&format!("s.{}", "x".repeat(64))]).is_err());
    }
}
