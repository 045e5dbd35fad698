//! A stream's declaration, compiled: what is read from a record, the columns of its table, and what
//! the operators need of them.

mod columns;
mod message_columns;
mod rows;

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::select::{self, Planned, Rule};
use super::{DeclarationError, PlanError, names, types};
use crate::config::{SqlBounds, StreamDef};
use crate::event::{MICROS_PER_HOUR, Micros, STAMP_COLUMNS, bucket};
pub use columns::{DuplicateColumns, MAP_SUFFIX, SessionColumns};
pub use message_columns::MessageColumn;
pub use rows::Selected;

/// A stream, ready to decode records.
#[derive(Debug)]
pub struct Stream {
    /// Its name, which is also its table's.
    pub name: String,
    /// Its declaration.
    pub def: StreamDef,
    /// The JSON fields that are read.
    pub input: Vec<types::Column>,
    /// The columns of Kafka messages that `select` reads as well.
    pub(crate) message_columns: Vec<MessageColumn>,
    /// `input`, then `message_columns`, as Arrow fields, all nullable.
    pub input_schema: SchemaRef,
    /// Learned from each frame, for the next one; they affect no result.
    pub capacity_hints: types::CapacityHints,
    /// `event_time`, then the other columns of `select`.
    pub output: SchemaRef,
    /// `output`, with marks on the fields that hold JSON text.
    pub marked: SchemaRef,
    /// lsn, event_time, received_at, source, is_duplicate and session_id where declared, then the
    /// rest of `output`.
    pub table_schema: SchemaRef,
    /// Bounds on what functions may produce from a row.
    pub(super) sql: SqlBounds,
    columns: Planned,
    rules: Vec<Rule>,
    duplicates: Option<DuplicateColumns>,
    session: Option<SessionColumns>,
}

impl Stream {
    /// Compiles with the bounds that a new configuration is stored with.
    pub fn compile(name: &str, def: &StreamDef) -> Result<Self, DeclarationError> {
        Self::compile_with_bounds(name, def, SqlBounds::default())
    }

    pub(super) fn compile_with_bounds(
        name: &str,
        def: &StreamDef,
        sql: SqlBounds,
    ) -> Result<Self, DeclarationError> {
        let in_select =
            |e: PlanError| DeclarationError::new(name, "select", e.locate_in(&def.select));
        let input =
            types::parse(&def.schema).map_err(|e| DeclarationError::new(name, "schema", e))?;
        let message_columns = MessageColumn::named_in(&def.select, &input);
        let with_messages = |fields: Vec<Field>| {
            let messages = message_columns.iter().map(|column| column.field());
            Schema::new(fields.into_iter().chain(messages).collect::<Vec<_>>())
        };
        let input_schema: SchemaRef = Arc::new(with_messages(
            input.iter().map(types::Column::arrow).collect(),
        ));
        let marked = with_messages(input.iter().map(types::Column::marked).collect());
        let columns =
            select::plan(name, &input_schema, &marked, &def.select, sql).map_err(in_select)?;
        let columns = columns.with_event_time_first().map_err(in_select)?;
        for column in columns.names().filter(|c| *c != "event_time") {
            names::check_not_reserved(STAMP_COLUMNS.iter().chain(&["session_id"]), column)
                .map_err(in_select)?;
        }
        let output = columns.schema();
        let rules = plan_rules(name, def, &output, sql)?;
        let mut stream = Self {
            name: name.to_owned(),
            def: def.clone(),
            capacity_hints: types::CapacityHints::for_columns(&input),
            input,
            message_columns,
            input_schema,
            table_schema: table_schema(&output, def.duplicates.is_some(), def.session.is_some()),
            output,
            marked: columns.marked(),
            sql,
            columns,
            rules,
            duplicates: None,
            session: None,
        };
        stream.check_columns()?;
        stream.duplicates = stream.duplicate_columns()?;
        stream.session = stream.session_columns()?;
        Ok(stream)
    }

    /// What recognizes duplicates; none if not declared.
    pub fn duplicates(&self) -> Option<&DuplicateColumns> {
        self.duplicates.as_ref()
    }

    /// What delimits sessions; none if not declared.
    pub fn session(&self) -> Option<&SessionColumns> {
        self.session.as_ref()
    }

    /// Columns of `<stream>.late`: those of the table, and the names of the windows for which the
    /// row was too late.
    pub fn late_schema(&self) -> SchemaRef {
        let mut fields: Vec<_> = self.table_schema.fields().iter().cloned().collect();
        let item = Field::new("item", DataType::Utf8, true);
        fields.push(Arc::new(Field::new(
            "windows",
            DataType::List(Arc::new(item)),
            true,
        )));
        Arc::new(Schema::new(fields))
    }

    /// Start of the hour that contains a time.
    pub fn partition_start(&self, time: Micros) -> Micros {
        bucket(time, MICROS_PER_HOUR) * MICROS_PER_HOUR
    }
}

fn plan_rules(
    name: &str,
    def: &StreamDef,
    output: &SchemaRef,
    sql: SqlBounds,
) -> Result<Vec<Rule>, DeclarationError> {
    let rules = def.require.iter().enumerate();
    rules
        .map(|(item, rule)| {
            Rule::plan(name, output, rule, sql).map_err(|e| DeclarationError {
                item: Some(item),
                ..DeclarationError::new(name, "require", e)
            })
        })
        .collect()
}

fn table_schema(output: &Schema, has_duplicates: bool, has_sessions: bool) -> SchemaRef {
    let mut fields = vec![
        Field::new("lsn", DataType::Int64, true),
        output.field(0).clone(),
        Field::new("received_at", types::timestamp(), true),
        Field::new("source", DataType::Utf8, true),
    ];
    if has_duplicates {
        fields.push(Field::new("is_duplicate", DataType::Boolean, true));
    }
    if has_sessions {
        fields.push(Field::new("session_id", DataType::Utf8, true));
    }
    fields.extend(output.fields().iter().skip(1).map(|f| f.as_ref().clone()));
    Arc::new(Schema::new(fields))
}
