//! An entity table, planned: which rows a stream's event gives it, by which columns they are known,
//! and which version wins.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Int64Array, ListArray, NullArray, RecordBatch,
    RecordBatchOptions, UInt32Array,
};
use arrow::compute::{cast, filter, take, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::select::{self, Planned};
use super::{PlanError, Stream, dialect, names, types};

use crate::config::{SqlBounds, TableDef};

/// Columns that Weir puts before an entity's own.
pub const ENTITY_COLUMNS: [&str; 3] = ["lsn", "updated", "version"];

/// An entity table, ready to run.
#[derive(Debug)]
pub struct Entity {
    /// `<stream>.<name>`
    pub name: String,
    pub def: TableDef,
    pub stream: String,
    /// Columns of the stream's table that the select reads.
    columns: Vec<usize>,
    /// Lists of the stream's table whose items are rows, gone through together.
    lists: Vec<usize>,
    input: SchemaRef,
    planned: Planned,
    version: usize,
    /// lsn, updated, version, then the select's columns.
    pub schema: SchemaRef,
    /// Columns of `schema` by which a row is known.
    pub keys: Vec<usize>,
}

const FORM: &str = "write `select <columns> [where …]`, with `unnest(list)` for a row per item";

impl Entity {
    /// Plans a table over its stream.
    pub fn plan(name: &str, def: &TableDef, stream: &Stream) -> Result<Self, PlanError> {
        let mut statement = parse(&def.select, &stream.name, stream.sql)?;
        names::refuse_unnamed(&statement, &stream.table_schema)?;
        let lists = take_lists(&mut statement)?;
        let table = &stream.table_schema;
        let column = |wanted: &str| {
            table.index_of(wanted).map_err(|_| {
                let known = table
                    .fields()
                    .iter()
                    .map(|f| f.name().as_str())
                    .collect::<Vec<_>>()
                    .join(", ");
                PlanError::about(
                    &[wanted],
                    format!(
                        "`{wanted}` is no column of {}; there are {known}",
                        stream.name
                    ),
                )
            })
        };
        let lists = lists
            .iter()
            .map(|list| column(list))
            .collect::<Result<Vec<_>, _>>()?;
        let used = names_in(&statement);
        let columns: Vec<usize> = (0..table.fields().len())
            .filter(|c| used.contains(&table.field(*c).name().to_lowercase()))
            .collect();
        let mut fields: Vec<Field> = columns.iter().map(|c| table.field(*c).clone()).collect();
        for list in &lists {
            let DataType::List(item) = table.field(*list).data_type() else {
                let name = table.field(*list).name();
                return Err(PlanError::about(
                    &["unnest"],
                    format!("`unnest({name})`: it is no list"),
                ));
            };
            fields.push(Field::new(
                item_of(table.field(*list).name()),
                item.data_type().clone(),
                true,
            ));
        }
        let input: SchemaRef = Arc::new(Schema::new(fields));
        let made = statement.to_string();
        let marked = marked(stream, &input, &lists);
        let planned = select::plan(&stream.name, &input, &marked, &made, stream.sql)
            .map_err(|e| e.moved(&made, &def.select))?;
        let own = planned.schema();
        let mut fields = vec![
            Field::new("lsn", DataType::Int64, true),
            Field::new("updated", types::timestamp(), true),
            Field::new("version", DataType::Int64, true),
        ];
        for field in own.fields() {
            names::refuse_own(ENTITY_COLUMNS.iter().chain(&["bucket"]), field.name())?;
            fields.push(field.as_ref().clone());
        }
        let known = || {
            own.fields()
                .iter()
                .map(|f| f.name().as_str())
                .collect::<Vec<_>>()
                .join(", ")
        };
        let marked = planned.marked();
        let keys = def.key.0.iter().map(|key| match own.index_of(key) {
            Ok(at) if types::is_json(marked.field(at)) => {
                Err(format!("key: {}", select::json_is_no_key(key)))
            }
            Ok(at) if !own.field(at).data_type().is_nested() => Ok(at + ENTITY_COLUMNS.len()),
            Ok(_) => Err(format!("key: `{key}` must be a number, text or time")),
            Err(_) => Err(format!(
                "key: `{key}` is no column of `select`; there are {}",
                known()
            )),
        });
        let keys = keys.collect::<Result<Vec<_>, String>>()?;
        if keys.is_empty() {
            return Err("key: it names no column".into());
        }
        let version = def
            .version
            .as_deref()
            .or(stream.def.version.as_deref())
            .unwrap_or("event_time");
        let version = column(version)?;
        if !matches!(
            table.field(version).data_type(),
            DataType::Int64 | DataType::Int32 | DataType::Timestamp(..)
        ) {
            return Err(format!(
                "version: `{}` must be a whole number or a time",
                table.field(version).name()
            )
            .into());
        }
        Ok(Self {
            name: name.to_owned(),
            def: def.clone(),
            stream: stream.name.clone(),
            columns,
            lists,
            input,
            planned,
            version,
            schema: Arc::new(Schema::new(fields)),
            keys,
        })
    }

    /// Whether an event gives a row for each item of a list.
    pub fn has_lists(&self) -> bool {
        !self.lists.is_empty()
    }

    /// The version that each of a stream's rows gives.
    pub fn versions(&self, batch: &RecordBatch) -> Result<ArrayRef, String> {
        cast(batch.column(self.version), &DataType::Int64).map_err(|e| e.to_string())
    }

    /// Some of a stream's rows, with only the columns that are read here.
    pub fn pick(&self, batch: &RecordBatch, rows: &UInt32Array) -> Result<RecordBatch, String> {
        let is_read = |c: usize| {
            c < 2 || c == self.version || self.columns.contains(&c) || self.lists.contains(&c)
        };
        let columns = batch.columns().iter().enumerate().map(|(c, array)| {
            if is_read(c) {
                take(array, rows, None)
            } else {
                Ok(Arc::new(NullArray::new(rows.len())) as ArrayRef)
            }
        });
        let columns = columns
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| e.to_string())?;
        let fields: Vec<Field> = columns
            .iter()
            .enumerate()
            .map(|(c, a)| Field::new(format!("c{c}"), a.data_type().clone(), true))
            .collect();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(|e| e.to_string())
    }

    /// The columns of a stream's rows that decide what an event gives, its version apart.
    pub fn inputs<'a>(
        &'a self,
        batch: &'a RecordBatch,
    ) -> impl Iterator<Item = &'a ArrayRef> + Clone {
        self.columns
            .iter()
            .chain(&self.lists)
            .map(|c| batch.column(*c))
    }

    /// The rows that a stream's rows give, in their order; a key may come more than once. A row of
    /// which the select has no value (a division by zero) gives none.
    pub fn rows(&self, batch: &RecordBatch) -> Result<RecordBatch, String> {
        let mut reason = match self.all_rows(batch) {
            Err(reason) => reason,
            rows => return rows,
        };
        let mut fails = vec![false; batch.num_rows()];
        self.find_failing(batch, &mut fails, &mut reason);
        let events = fails.iter().filter(|fails| **fails).count();
        tracing::warn!(
            table = self.name,
            events,
            reason,
            "events give the table no row"
        );
        let good: BooleanArray = fails.iter().map(|fails| Some(!fails)).collect();
        let good = arrow::compute::filter_record_batch(batch, &good).map_err(|e| e.to_string())?;
        self.all_rows(&good)
    }

    /// Marks the events of which the select has no value.
    fn find_failing(&self, batch: &RecordBatch, fails: &mut [bool], reason: &mut String) {
        let rows = batch.num_rows();
        let Err(why) = self.all_rows(batch) else {
            return;
        };
        if rows <= 1 {
            *reason = why;
            return fails.fill(true);
        }
        let half = rows / 2;
        let (before, after) = fails.split_at_mut(half);
        self.find_failing(&batch.slice(0, half), before, reason);
        self.find_failing(&batch.slice(half, rows - half), after, reason);
    }

    fn all_rows(&self, batch: &RecordBatch) -> Result<RecordBatch, String> {
        let failed = |e: arrow::error::ArrowError| e.to_string();
        let (from, items) = self.items(batch)?;
        let pick = |array: &ArrayRef| match &from {
            Some(rows) => take(array, rows, None).map_err(failed),
            None => Ok(array.clone()),
        };
        let mut columns = self
            .columns
            .iter()
            .map(|c| pick(batch.column(*c)))
            .collect::<Result<Vec<_>, _>>()?;
        columns.extend(items);
        let count = from.as_ref().map_or(batch.num_rows(), |rows| rows.len());
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        let input = RecordBatch::try_new_with_options(self.input.clone(), columns, &options)
            .map_err(failed)?;
        let filtered = self.planned.evaluate(&input)?;
        let passed = filtered.passed.map(BooleanArray::from);
        let beside = |array: &ArrayRef| {
            let array = pick(array)?;
            passed.as_ref().map_or(Ok(array.clone()), |mask| {
                filter(&array, mask).map_err(failed)
            })
        };
        let version = beside(&self.versions(batch)?)?;
        let mut columns = vec![beside(batch.column(0))?, beside(batch.column(1))?, version];
        columns.extend(filtered.rows.columns().iter().cloned());
        RecordBatch::try_new(self.schema.clone(), columns).map_err(failed)
    }

    /// Where lists are gone through: per item the row it lies in, and the items of each list.
    fn items(&self, batch: &RecordBatch) -> Result<(Option<UInt32Array>, Vec<ArrayRef>), String> {
        if self.lists.is_empty() {
            return Ok((None, Vec::new()));
        }
        let lists = self.lists.iter().map(|c| {
            batch
                .column(*c)
                .as_any()
                .downcast_ref::<ListArray>()
                .ok_or_else(|| "a list is no list".to_owned())
        });
        let lists = lists.collect::<Result<Vec<_>, _>>()?;
        let mut rows: Vec<u32> = Vec::new();
        let mut places: Vec<Vec<Option<u32>>> = vec![Vec::new(); lists.len()];
        for row in 0..batch.num_rows() {
            let length = |list: &ListArray| {
                if list.is_valid(row) {
                    list.value_length(row) as u32
                } else {
                    0
                }
            };
            let longest = lists.iter().map(|list| length(list)).max().unwrap_or(0);
            for item in 0..longest {
                rows.push(row as u32);
                for (list, places) in lists.iter().zip(&mut places) {
                    let start = list.value_offsets()[row] as u32;
                    places.push((item < length(list)).then_some(start + item));
                }
            }
        }
        let items = lists.iter().zip(places).map(|(list, places)| {
            take(list.values(), &UInt32Array::from(places), None).map_err(|e| e.to_string())
        });
        Ok((
            Some(UInt32Array::from(rows)),
            items.collect::<Result<_, _>>()?,
        ))
    }
}

/// Of rows of an entity table the newest of each key, in the order of their LSNs; rows without a
/// key are left out.
pub fn newest(rows: &RecordBatch, keys: &[usize]) -> Result<RecordBatch, String> {
    let failed = |e: arrow::error::ArrowError| e.to_string();
    let fields = keys
        .iter()
        .map(|c| SortField::new(rows.column(*c).data_type().clone()))
        .collect();
    let converter = RowConverter::new(fields).map_err(failed)?;
    let columns: Vec<ArrayRef> = keys.iter().map(|c| rows.column(*c).clone()).collect();
    let known_by = converter.convert_columns(&columns).map_err(failed)?;
    let number = |column: usize| rows.column(column).as_any().downcast_ref::<Int64Array>();
    let (Some(lsn), Some(version)) = (number(0), number(2)) else {
        return Err("a version is no number".into());
    };
    let rank = |row: u32| {
        let row = row as usize;
        (
            if version.is_valid(row) {
                version.value(row)
            } else {
                i64::MIN
            },
            lsn.value(row),
        )
    };
    let bytes = |row: u32| known_by.row(row as usize).data();
    // Spread over all bits, of which the table uses the highest and the lowest.
    let hash = |row: u32| u64::from(crc32c::crc32c(bytes(row))).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut best: HashTable<u32> = HashTable::with_capacity(rows.num_rows());
    for row in 0..rows.num_rows() as u32 {
        if columns.iter().any(|c| c.is_null(row as usize)) {
            continue;
        }
        match best.entry(
            hash(row),
            |known| bytes(*known) == bytes(row),
            |known| hash(*known),
        ) {
            Entry::Occupied(mut known) if rank(row) >= rank(*known.get()) => *known.get_mut() = row,
            Entry::Occupied(_) => {}
            Entry::Vacant(free) => drop(free.insert(row)),
        }
    }
    if best.len() == rows.num_rows() {
        return Ok(rows.clone());
    }
    let mut kept: Vec<u32> = best.into_iter().collect();
    kept.sort_unstable();
    take_record_batch(rows, &UInt32Array::from(kept)).map_err(failed)
}

/// The columns that a table's select reads, with marks on what holds JSON text.
fn marked(stream: &Stream, input: &SchemaRef, lists: &[usize]) -> Schema {
    let items: Vec<Field> = lists
        .iter()
        .filter_map(|list| {
            let list = stream
                .marked
                .field_with_name(stream.table_schema.field(*list).name())
                .ok()?;
            let DataType::List(item) = list.data_type() else {
                return None;
            };
            Some(item.as_ref().clone().with_name(item_of(list.name())))
        })
        .collect();
    let field = |field: &Field| {
        let item = items.iter().find(|item| item.name() == field.name());
        item.or(stream.marked.field_with_name(field.name()).ok())
            .unwrap_or(field)
            .clone()
    };
    Schema::new(input.fields().iter().map(|f| field(f)).collect::<Vec<_>>())
}

fn item_of(list: &str) -> String {
    format!("item_of_{list}")
}

/// A table's select, reading from its stream: `from` is put before its `where`, if there is one.
fn parse(select: &str, stream: &str, bounds: SqlBounds) -> Result<Statement, PlanError> {
    let context = select::planning(bounds)?;
    let parse = |sql: &str| {
        let statement = dialect::parse(&context.state(), sql);
        statement.map_err(|e| PlanError::of(&e).map(|message| format!("{message}; {FORM}")))
    };
    let (mut statement, mut from) = (parse(select)?, parse(&format!("select 1 from {stream}"))?);
    let (Some(select), Some(stream)) = (select_of(&mut statement), select_of(&mut from)) else {
        return Err(FORM.into());
    };
    if !select.from.is_empty() {
        return Err(PlanError::about(
            &["from"],
            format!("it reads its stream, which is not named: {FORM}"),
        ));
    }
    select.from = std::mem::take(&mut stream.from);
    Ok(statement)
}

fn select_of(statement: &mut Statement) -> Option<&mut ast::Select> {
    let Statement::Statement(inner) = statement else {
        return None;
    };
    let ast::Statement::Query(query) = inner.as_mut() else {
        return None;
    };
    if let ast::SetExpr::Select(select) = query.body.as_mut() {
        Some(select)
    } else {
        None
    }
}

/// Puts a name in the place of each `unnest(list)`; gives the lists.
fn take_lists(statement: &mut Statement) -> Result<Vec<String>, PlanError> {
    let Statement::Statement(inner) = statement else {
        return Err(FORM.into());
    };
    let mut lists: Vec<String> = Vec::new();
    let walked = ast::visit_expressions_mut(inner.as_mut(), |expression| {
        let ast::Expr::Function(function) = expression else {
            return ControlFlow::Continue(());
        };
        if !function.name.to_string().eq_ignore_ascii_case("unnest") {
            return ControlFlow::Continue(());
        }
        let list = match &function.args {
            ast::FunctionArguments::List(arguments) => match arguments.args.as_slice() {
                [
                    ast::FunctionArg::Unnamed(ast::FunctionArgExpr::Expr(ast::Expr::Identifier(
                        name,
                    ))),
                ] => name.value.clone(),
                _ => return ControlFlow::Break(function.to_string()),
            },
            _ => return ControlFlow::Break(function.to_string()),
        };
        *expression = ast::Expr::Identifier(ast::Ident::new(item_of(&list)));
        if !lists.contains(&list) {
            lists.push(list);
        }
        ControlFlow::Continue(())
    });
    match walked {
        ControlFlow::Continue(()) => Ok(lists),
        ControlFlow::Break(wrong) => Err(PlanError::about(
            &["unnest"],
            format!("`{wrong}`: name one list column; {FORM}"),
        )),
    }
}

/// Names that occur in a statement, in lower case.
fn names_in(statement: &Statement) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    let Statement::Statement(inner) = statement else {
        return out;
    };
    let _ = ast::visit_expressions(inner.as_ref(), |expression| {
        match expression {
            ast::Expr::Identifier(name) => drop(out.insert(name.value.to_lowercase())),
            ast::Expr::CompoundIdentifier(parts) => {
                out.extend(parts.iter().map(|p| p.value.to_lowercase()));
            }
            _ => {}
        }
        ControlFlow::<()>::Continue(())
    });
    out
}
