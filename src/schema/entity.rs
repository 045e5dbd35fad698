//! An entity table, planned: which rows an event of its stream gives, which columns identify them,
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
use super::{EvaluationError, PlanError, Stream, dialect, names, types};

use crate::config::{SqlBounds, TableDef};

/// Columns that Weir puts before an entity's own.
pub const ENTITY_COLUMNS: [&str; 3] = ["lsn", "updated", "version"];

/// An entity table, ready to run.
#[derive(Debug)]
pub struct Entity {
    /// `<stream>.<name>`
    pub name: String,
    /// Its declaration.
    pub def: TableDef,
    /// The stream whose events it reads.
    pub stream: String,
    /// Columns of the stream's table that the select reads.
    columns: Vec<usize>,
    /// List columns of the stream's table that are unnested in parallel, one row per item.
    lists: Vec<usize>,
    input: SchemaRef,
    planned: Planned,
    version: usize,
    /// lsn, updated, version, then the select's columns.
    pub schema: SchemaRef,
    /// Columns of `schema` that identify a row.
    pub keys: Vec<usize>,
}

const FORM: &str = "write `select <columns> [where …]`, with `unnest(list)` for a row per item";

impl Entity {
    /// Plans a table over its stream.
    pub fn plan(name: &str, def: &TableDef, stream: &Stream) -> Result<Self, PlanError> {
        let mut statement = parse(&def.select, &stream.name, stream.sql)?;
        names::check_named(&statement, &stream.table_schema)?;
        let lists = take_lists(&mut statement)?
            .iter()
            .map(|list| stream_column(stream, list))
            .collect::<Result<Vec<_>, _>>()?;
        let table = &stream.table_schema;
        let used = identifiers(&statement);
        let columns: Vec<usize> = (0..table.fields().len())
            .filter(|c| used.contains(&table.field(*c).name().to_lowercase()))
            .collect();
        let input = input_schema(table, &columns, &lists)?;
        let sql = statement.to_string();
        let marked = marked(stream, &input, &lists);
        let planned = select::plan(&stream.name, &input, &marked, &sql, stream.sql)
            .map_err(|e| e.remap_location(&sql, &def.select))?;
        let mut fields = vec![
            Field::new("lsn", DataType::Int64, true),
            Field::new("updated", types::timestamp(), true),
            Field::new("version", DataType::Int64, true),
        ];
        for field in planned.schema().fields() {
            names::check_not_reserved(ENTITY_COLUMNS.iter().chain(&["bucket"]), field.name())?;
            fields.push(field.as_ref().clone());
        }
        Ok(Self {
            name: name.to_owned(),
            def: def.clone(),
            stream: stream.name.clone(),
            columns,
            lists,
            input,
            keys: key_columns(def, &planned)?,
            planned,
            version: version_column(def, stream)?,
            schema: Arc::new(Schema::new(fields)),
        })
    }

    /// Whether an event gives a row per item of a list.
    pub fn has_lists(&self) -> bool {
        !self.lists.is_empty()
    }

    /// The version of each of a stream's rows.
    pub fn versions(&self, batch: &RecordBatch) -> Result<ArrayRef, EvaluationError> {
        Ok(cast(batch.column(self.version), &DataType::Int64)?)
    }

    /// Some of a stream's rows; columns that the table does not read become null.
    pub fn pick(
        &self,
        batch: &RecordBatch,
        rows: &UInt32Array,
    ) -> Result<RecordBatch, EvaluationError> {
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
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let fields: Vec<Field> = columns
            .iter()
            .enumerate()
            .map(|(c, a)| Field::new(format!("c{c}"), a.data_type().clone(), true))
            .collect();
        Ok(RecordBatch::try_new(
            Arc::new(Schema::new(fields)),
            columns,
        )?)
    }

    /// The columns of a stream's rows that determine an event's rows, except for their version.
    pub fn inputs<'a>(
        &'a self,
        batch: &'a RecordBatch,
    ) -> impl Iterator<Item = &'a ArrayRef> + Clone {
        self.columns
            .iter()
            .chain(&self.lists)
            .map(|c| batch.column(*c))
    }

    /// The table rows of a stream's rows, in their order; a key may occur more than once. An event
    /// for which the select fails (a division by zero) gives none.
    pub fn rows(&self, batch: &RecordBatch) -> Result<RecordBatch, EvaluationError> {
        let mut error = match self.all_rows(batch) {
            Err(error) => error,
            rows => return rows,
        };
        let mut fails = vec![false; batch.num_rows()];
        self.find_failing(batch, &mut fails, &mut error);
        let events = fails.iter().filter(|fails| **fails).count();
        tracing::warn!(
            table = self.name,
            events,
            reason = error.to_string(),
            "events give no row of the table: the select failed"
        );
        let good: BooleanArray = fails.iter().map(|fails| Some(!fails)).collect();
        let good = arrow::compute::filter_record_batch(batch, &good)?;
        self.all_rows(&good)
    }

    /// Marks the events for which the select fails, by bisection; `error` becomes that of the last.
    fn find_failing(&self, batch: &RecordBatch, fails: &mut [bool], error: &mut EvaluationError) {
        let rows = batch.num_rows();
        let Err(why) = self.all_rows(batch) else {
            return;
        };
        if rows <= 1 {
            *error = why;
            return fails.fill(true);
        }
        let half = rows / 2;
        let (before, after) = fails.split_at_mut(half);
        self.find_failing(&batch.slice(0, half), before, error);
        self.find_failing(&batch.slice(half, rows - half), after, error);
    }

    fn all_rows(&self, batch: &RecordBatch) -> Result<RecordBatch, EvaluationError> {
        let (from, items) = self.items(batch)?;
        let pick = |array: &ArrayRef| match &from {
            Some(rows) => take(array, rows, None),
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
        let input = RecordBatch::try_new_with_options(self.input.clone(), columns, &options)?;
        let filtered = self.planned.evaluate(&input)?;
        let passed = filtered.passed.map(BooleanArray::from);
        let companion = |array: &ArrayRef| {
            let array = pick(array)?;
            passed
                .as_ref()
                .map_or(Ok(array.clone()), |mask| filter(&array, mask))
        };
        let version = companion(&self.versions(batch)?)?;
        let mut columns = vec![
            companion(batch.column(0))?,
            companion(batch.column(1))?,
            version,
        ];
        columns.extend(filtered.rows.columns().iter().cloned());
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }

    /// The lists unnested in parallel: per item its row, and the items of each list, with null where
    /// a list is shorter. None without lists.
    ///
    /// `a: [1, 2], b: [x]` and `a: [], b: [y]` give rows `0, 0, 1`, `a: 1, 2, null`, `b: x, null, y`.
    fn items(
        &self,
        batch: &RecordBatch,
    ) -> Result<(Option<UInt32Array>, Vec<ArrayRef>), EvaluationError> {
        if self.lists.is_empty() {
            return Ok((None, Vec::new()));
        }
        let lists = self.lists.iter().map(|c| {
            batch
                .column(*c)
                .as_any()
                .downcast_ref::<ListArray>()
                .ok_or(EvaluationError::NotAList)
        });
        let lists = lists.collect::<Result<Vec<_>, _>>()?;
        let mut rows: Vec<u32> = Vec::new();
        let mut positions: Vec<Vec<Option<u32>>> = vec![Vec::new(); lists.len()];
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
                for (list, positions) in lists.iter().zip(&mut positions) {
                    let start = list.value_offsets()[row] as u32;
                    positions.push((item < length(list)).then_some(start + item));
                }
            }
        }
        let items = lists
            .iter()
            .zip(positions)
            .map(|(list, positions)| take(list.values(), &UInt32Array::from(positions), None));
        Ok((
            Some(UInt32Array::from(rows)),
            items.collect::<Result<_, _>>()?,
        ))
    }
}

fn stream_column(stream: &Stream, column: &str) -> Result<usize, PlanError> {
    stream.table_schema.index_of(column).map_err(|_| {
        let message = names::unknown_column(column, &stream.name, &stream.table_schema);
        PlanError::at_words(&[column], message)
    })
}

/// Columns that the select reads: those of the stream's table, then an item of each list.
fn input_schema(
    table: &Schema,
    columns: &[usize],
    lists: &[usize],
) -> Result<SchemaRef, PlanError> {
    let mut fields: Vec<Field> = columns.iter().map(|c| table.field(*c).clone()).collect();
    for list in lists {
        let list = table.field(*list);
        let name = list.name();
        let DataType::List(item) = list.data_type() else {
            let message = format!("`unnest({name})`: `{name}` is not a list");
            return Err(PlanError::at_words(&["unnest"], message));
        };
        fields.push(Field::new(item_name(name), item.data_type().clone(), true));
    }
    Ok(Arc::new(Schema::new(fields)))
}

/// Positions of the key columns in the table.
fn key_columns(def: &TableDef, planned: &Planned) -> Result<Vec<usize>, PlanError> {
    let wrong = |reason: String| PlanError::from(format!("key: {reason}"));
    let (columns, marked) = (planned.schema(), planned.marked());
    let keys = def.key.0.iter().map(|key| match columns.index_of(key) {
        Ok(at) if types::is_json(marked.field(at)) => Err(wrong(select::json_is_not_a_key(key))),
        Ok(at) if !columns.field(at).data_type().is_nested() => Ok(at + ENTITY_COLUMNS.len()),
        Ok(_) => Err(wrong(format!("`{key}` must be a number, text or time"))),
        Err(_) => Err(wrong(names::unknown_column(key, "`select`", &columns))),
    });
    let keys = keys.collect::<Result<Vec<_>, PlanError>>()?;
    if keys.is_empty() {
        return Err(wrong("no column is named".to_owned()));
    }
    Ok(keys)
}

/// Position of the version column in the stream's table.
fn version_column(def: &TableDef, stream: &Stream) -> Result<usize, PlanError> {
    let version = def
        .version
        .as_deref()
        .or(stream.def.version.as_deref())
        .unwrap_or("event_time");
    let version = stream_column(stream, version)?;
    let field = stream.table_schema.field(version);
    match field.data_type() {
        DataType::Int64 | DataType::Int32 | DataType::Timestamp(..) => Ok(version),
        _ => Err(format!(
            "version: `{}` must be a whole number or a time",
            field.name()
        )
        .into()),
    }
}

/// The newest row of each key of an entity table, in the order of their LSNs: the highest version,
/// then the highest LSN. Rows with a null in their key are left out.
pub fn newest(rows: &RecordBatch, keys: &[usize]) -> Result<RecordBatch, String> {
    let failed = |e: arrow::error::ArrowError| e.to_string();
    let fields = keys
        .iter()
        .map(|c| SortField::new(rows.column(*c).data_type().clone()))
        .collect();
    let converter = RowConverter::new(fields).map_err(failed)?;
    let columns: Vec<ArrayRef> = keys.iter().map(|c| rows.column(*c).clone()).collect();
    let row_keys = converter.convert_columns(&columns).map_err(failed)?;
    let number = |column: usize| rows.column(column).as_any().downcast_ref::<Int64Array>();
    let (Some(lsn), Some(version)) = (number(0), number(2)) else {
        return Err("an LSN or version is not a bigint".into());
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
    let bytes = |row: u32| row_keys.row(row as usize).data();
    // The hash table uses the highest and the lowest bits, so the CRC is spread over all.
    let hash = |row: u32| u64::from(crc32c::crc32c(bytes(row))).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut best: HashTable<u32> = HashTable::with_capacity(rows.num_rows());
    for row in 0..rows.num_rows() as u32 {
        if columns.iter().any(|c| c.is_null(row as usize)) {
            continue;
        }
        match best.entry(
            hash(row),
            |other| bytes(*other) == bytes(row),
            |other| hash(*other),
        ) {
            Entry::Occupied(mut other) if rank(row) >= rank(*other.get()) => *other.get_mut() = row,
            Entry::Occupied(_) => {}
            Entry::Vacant(free) => drop(free.insert(row)),
        }
    }
    if best.len() == rows.num_rows() {
        return Ok(rows.clone());
    }
    let mut best: Vec<u32> = best.into_iter().collect();
    best.sort_unstable();
    take_record_batch(rows, &UInt32Array::from(best)).map_err(failed)
}

/// The columns that a table's select reads, with marks on the fields that hold JSON text.
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
            Some(item.as_ref().clone().with_name(item_name(list.name())))
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

fn item_name(list: &str) -> String {
    format!("item_of_{list}")
}

/// A table's select with `from STREAM` inserted.
fn parse(select: &str, stream: &str, bounds: SqlBounds) -> Result<Statement, PlanError> {
    let context = select::planning(bounds)?;
    let parse = |sql: &str| {
        let statement = dialect::parse(&context.state(), sql);
        statement
            .map_err(|e| PlanError::from_planner(&e).map(|message| format!("{message}; {FORM}")))
    };
    let (mut statement, mut from) = (parse(select)?, parse(&format!("select 1 from {stream}"))?);
    let (Some(select), Some(stream)) = (select_of(&mut statement), select_of(&mut from)) else {
        return Err(FORM.into());
    };
    if !select.from.is_empty() {
        return Err(PlanError::at_words(
            &["from"],
            format!("leave out `from`: the table reads its stream; {FORM}"),
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

/// Replaces each `unnest(list)` by a column name; returns the lists.
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
        *expression = ast::Expr::Identifier(ast::Ident::new(item_name(&list)));
        if !lists.contains(&list) {
            lists.push(list);
        }
        ControlFlow::Continue(())
    });
    match walked {
        ControlFlow::Continue(()) => Ok(lists),
        ControlFlow::Break(call) => Err(PlanError::at_words(
            &["unnest"],
            format!("`{call}`: name one list column; {FORM}"),
        )),
    }
}

/// Identifiers that occur in a statement, in lower case.
fn identifiers(statement: &Statement) -> BTreeSet<String> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::StringArray;

    #[test]
    fn the_highest_version_of_a_key_wins_then_the_highest_lsn() {
        // (lsn, version, key)
        let newest_lsns = |rows: &[(i64, Option<i64>, Option<&str>)]| {
            let lsns: Int64Array = rows.iter().map(|r| Some(r.0)).collect();
            let versions: Int64Array = rows.iter().map(|r| r.1).collect();
            let keys: StringArray = rows.iter().map(|r| r.2).collect();
            let fields =
                ["lsn", "updated", "version"].map(|n| Field::new(n, DataType::Int64, true));
            let key = Field::new("key", DataType::Utf8, true);
            let schema = Schema::new(fields.into_iter().chain([key]).collect::<Vec<_>>());
            let columns: Vec<ArrayRef> = vec![
                Arc::new(lsns.clone()),
                Arc::new(lsns),
                Arc::new(versions),
                Arc::new(keys),
            ];
            let batch = RecordBatch::try_new(Arc::new(schema), columns).expect("a batch");
            let rows = newest(&batch, &[3]).expect("rows");
            let lsns = rows.column(0).as_any().downcast_ref::<Int64Array>();
            lsns.expect("LSNs").values().to_vec()
        };
        let a = Some("a");
        for (rows, expected) in [
            (&[(1, Some(5), a), (2, Some(4), a)][..], &[1][..]),
            (&[(1, Some(5), a), (2, Some(5), a)], &[2]),
            (&[(1, None, a), (2, Some(-9), a), (3, None, a)], &[2]),
            (
                &[(1, Some(1), a), (2, Some(1), Some("b")), (3, Some(0), a)],
                &[1, 2],
            ),
            (&[(1, Some(1), None), (2, Some(1), a)], &[2]),
        ] {
            assert_eq!(newest_lsns(rows), expected, "{rows:?}");
        }
    }
}
