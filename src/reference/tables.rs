//! `tables.md`: the columns of every table, as a query sees them.

use std::path::Path;

use arrow::datatypes::{DataType, SchemaRef};

use super::markdown::{cell, code, paragraph, table};
use crate::event::STAMP_COLUMNS;
use crate::query::sql::SqlEngine;
use crate::query::{Handles, SYSTEM_TABLES};
use crate::runtime::context::FolderContext;
use crate::runtime::data_dir::DataDir;
use crate::runtime::{sql_limits, views};
use crate::views::LogIdentity;
use crate::{config, presets};

/// What tables have, and columns: of one table (`raw.kind`), or wherever they occur (`lsn`).
const MEANINGS: &[(&str, &str)] = &[
    (
        "raw",
        "Every record as it was received, and the control frames of the log.",
    ),
    (
        "dead_letters",
        "Records that were rejected, with their reasons.",
    ),
    ("weir.configuration", "Declarations in force."),
    (
        "weir.drift",
        "Keys of received JSON that the schema does not have.",
    ),
    ("weir.files", "Files of the lake."),
    (
        "weir.gaps",
        "Times in which a source may have lost records.",
    ),
    (
        "weir.sink_dead_letters",
        "Rows that the target of a sink refuses.",
    ),
    ("weir.sinks", "Sinks, and how far they are."),
    (
        "weir.sources",
        "Partitions of sources, and how far they are read.",
    ),
    ("weir.views", "Views, and how far they are."),
    (
        "lsn",
        "The record's number in the log; rows derived from a record have its number.",
    ),
    ("event_time", "The time that the record states."),
    ("received_at", "When the record arrived."),
    ("source", "The source's name; `http` for what was posted."),
    (
        "is_duplicate",
        "Whether an earlier event of the key says the same; where `duplicates` is declared.",
    ),
    (
        "session_id",
        "The session that the event belongs to; where `session` is declared.",
    ),
    (
        "year",
        "Of the folder of the row, in UTC: by event time, else by arrival.",
    ),
    ("month", "See `year`."),
    ("day", "See `year`."),
    ("hour", "See `year`; not with `[lake] partition = \"day\"`."),
    (
        "partition",
        "The file, connection or partition of Kafka within the source.",
    ),
    (
        "source_offset",
        "The record's place in the partition; bytes, messages or records, by the type of source.",
    ),
    ("stream", "The stream."),
    (
        "attributes",
        "What came with the record, such as key and headers of a Kafka message, as JSON.",
    ),
    ("raw.kind", "`record`, or the kind of control frame."),
    ("bytes", "The record as it was received."),
    ("reason", "The reason, as text."),
    (
        "retried_lsn",
        "The record that a successful retry made of it; else null.",
    ),
    (
        "weir.configuration.declaration",
        "The declaration as JSON, presets expanded.",
    ),
    ("weir.drift.field", "The key, with the keys above it."),
    ("weir.drift.records", "Records that have it."),
    ("table", "The table."),
    (
        "weir.files.partition",
        "The file's folder within the table.",
    ),
    (
        "weir.files.path",
        "The file, relative to the table's folder.",
    ),
    (
        "weir.files.class",
        "`recent`, or `old` for rows that came late.",
    ),
    ("weir.files.rows", "Rows of the file."),
    ("weir.files.bytes", "Bytes of the file."),
    ("weir.files.min_time", "The earliest time in the file."),
    ("weir.files.max_time", "The latest time in the file."),
    ("weir.files.written_at", "When the file was committed."),
    (
        "from",
        "The last moment before the gap from which records are known.",
    ),
    ("to", "The first moment after it."),
    ("sink", "The sink."),
    ("refused_at", "When the target refused the row."),
    ("row", "The row as JSON, truncated if it is long."),
    ("type", "The type of the sink's target."),
    ("tables", "The tables that it sends."),
    (
        "state",
        "`running`, or what it does instead; empty where no process runs it.",
    ),
    (
        "weir.sinks.lsn",
        "Its cursor: everything at or below it is delivered.",
    ),
    ("lag", "Records of the log that are above it."),
    ("weir.sinks.rows", "Rows delivered since the start."),
    ("retries", "Attempts that were repeated since the start."),
    ("weir.sinks.dead_letters", "Rows that the target refuses."),
    (
        "last_error",
        "Why the last attempt failed; null once the sink delivers again.",
    ),
    (
        "weir.sources.partition",
        "The file, connection or partition of Kafka.",
    ),
    (
        "weir.sources.source_offset",
        "The place from which it continues.",
    ),
    ("weir.sources.received_at", "When its last record arrived."),
    (
        "weir.sources.reason",
        "Why it waits or has halted; else null.",
    ),
    (
        "view",
        "The view: `lake/TABLE`, `search/STREAM`, `counts/STREAM` or `places/STREAM`.",
    ),
    ("weir.views.lsn", "The record up to which queries see it."),
    (
        "files_lsn",
        "The record up to which the files have it, which other readers of the lake see.",
    ),
];

const INTRODUCTION: &str = "Each stream is a table, and so is what is derived from it. Names with a dot are written as they are: \
`select * from clicks.sessions`. Types are those of SQL; `timestamp` has microseconds, in UTC.";

/// Names of the tables that every data folder has, and of the stamps of streams.
const DERIVED: &str = "| table | has |\n|---|---|\n\
| `STREAM` | the columns below, then those of `select` |\n\
| `STREAM.sessions` | sessions, open ones included; where `session` is declared |\n\
| `STREAM.late` | rows that came too late for a window, with the windows' names in `windows`; where a window reads the stream |\n\
| `STREAM.NAME` | an entity table: the latest version of each key |\n\
| `WINDOW` | the latest version of each window's rows, open windows included |\n\
| `WINDOW_versions` | every version that was stored |\n\
| `raw`, `dead_letters`, `weir.*` | below |\n\n";

/// The page.
pub fn page() -> String {
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let mut out = "# Tables\n\n".to_owned() + &paragraph(INTRODUCTION) + DERIVED;
    for (n, preset) in presets::names().enumerate() {
        let folder = tempfile::tempdir().expect("a folder");
        let tables = tables_of(preset, folder.path(), &runtime);
        if n == 0 {
            out += "## Columns of every stream's table\n\n";
            out += &stamps();
            for (name, schema) in tables.iter().filter(|(name, _)| is_own(name)) {
                out += &described(name, schema);
            }
        }
        let declared: Vec<_> = tables.iter().filter(|(name, _)| !is_own(name)).collect();
        out += &format!("## Tables of the preset `{preset}`\n\n");
        let rows: Vec<[String; 2]> = declared
            .iter()
            .map(|(name, schema)| [code(name), columns(schema)])
            .collect();
        out += &table(["table", "columns"], &rows);
    }
    out
}

/// Whether a table is Weir's own, with the same columns everywhere.
fn is_own(name: &str) -> bool {
    name == "raw" || name == "dead_letters" || name.starts_with("weir.")
}

/// Every table of a preset with its columns.
fn tables_of(
    preset: &str,
    root: &Path,
    runtime: &tokio::runtime::Runtime,
) -> Vec<(String, SchemaRef)> {
    let text = format!("[streams.{preset}]\npreset = \"{preset}\"\n");
    let config =
        config::parse(Some(&root.join("weir.toml")), text, None, &|_| None).expect("a preset");
    let catalog = views::compile(&config).expect("a preset");
    let folder = DataDir::create(&config.data).expect("a folder");
    let context = FolderContext::new(&config, folder, runtime.handle());
    let log = LogIdentity {
        instance: 0,
        id: 1,
        start_lsn: 0,
    };
    let handles = views::open(&context, &catalog, log, true)
        .expect("new tables")
        .handles;
    let folder = &context.folder;
    let engine =
        SqlEngine::new(&folder.lake(), &folder.spill(), sql_limits(&config)).expect("an engine");
    let schema = |name: String| {
        let sql = format!("select * from {name} limit 0");
        let answer = runtime
            .block_on(engine.run(&sql, &handles, 0))
            .expect("a table");
        (name, answer.schema)
    };
    names(&handles).into_iter().map(schema).collect()
}

fn names(handles: &Handles) -> Vec<String> {
    let stored = handles.tables.keys().map(ToString::to_string);
    let windows = handles
        .catalog
        .windows
        .iter()
        .map(|window| window.name.clone());
    let own = SYSTEM_TABLES.iter().map(|name| format!("weir.{name}"));
    let mut names: Vec<String> = stored.chain(windows).chain(own).collect();
    names.sort();
    names
}

fn meaning(table: &str, column: &str) -> String {
    let of = |name: &str| {
        MEANINGS
            .iter()
            .find(|(of, _)| *of == name)
            .map(|(_, text)| *text)
    };
    let found = of(&format!("{table}.{column}")).or_else(|| of(column));
    found.unwrap_or_default().to_owned()
}

/// The columns that every stream's table has beside its own.
fn stamps() -> String {
    let name = |column: &&str| [code(column), meaning("", column)];
    let mut rows: Vec<[String; 2]> = STAMP_COLUMNS.iter().map(name).collect();
    rows.insert(5, name(&"session_id"));
    table(["column", "meaning"], &rows)
}

/// A table of Weir's own.
fn described(name: &str, schema: &SchemaRef) -> String {
    let about = MEANINGS.iter().find(|(of, _)| of == &name);
    let (_, about) =
        about.unwrap_or_else(|| panic!("say in {} what the table {name} has", file!()));
    let row = |field: &std::sync::Arc<arrow::datatypes::Field>| {
        [
            code(field.name()),
            type_name(field.data_type()),
            meaning(name, field.name()),
        ]
    };
    let rows: Vec<[String; 3]> = schema.fields().iter().map(row).collect();
    format!(
        "## `{name}`\n\n{about}\n\n{}",
        table(["column", "type", "meaning"], &rows)
    )
}

/// The columns of a declared table, but the partitions of a lake's table.
fn columns(schema: &SchemaRef) -> String {
    let partitions = ["year", "month", "day", "hour"];
    let own = schema
        .fields()
        .iter()
        .filter(|field| !partitions.contains(&field.name().as_str()));
    let each = own.map(|field| format!("`{}` {}", field.name(), type_name(field.data_type())));
    cell(&each.collect::<Vec<_>>().join(", "))
}

/// A type's name in SQL.
fn type_name(ty: &DataType) -> String {
    match ty {
        DataType::Boolean => "boolean".into(),
        DataType::Int32 => "int".into(),
        DataType::Int64 => "bigint".into(),
        DataType::UInt64 => "bigint unsigned".into(),
        DataType::Float64 => "double".into(),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "varchar".into(),
        DataType::Binary | DataType::BinaryView => "varbinary".into(),
        DataType::Timestamp(..) => "timestamp".into(),
        DataType::List(item) => format!("array<{}>", type_name(item.data_type())),
        DataType::Map(..) => "map(varchar, varchar)".into(),
        DataType::Struct(fields) => {
            let each = fields
                .iter()
                .map(|f| format!("{} {}", f.name(), type_name(f.data_type())));
            format!("struct<{}>", each.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string().to_lowercase(),
    }
}
