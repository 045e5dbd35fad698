//! What a lake table stores, and where.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::RowClass;
use crate::operators::checkpoints;
use crate::schema::{Entity, Layout, Stream, types};

/// A lake table's content, columns and folder.
#[derive(Debug, Clone)]
pub struct TableSpec {
    /// Its name in SQL.
    pub name: String,
    /// Its folder.
    pub root: PathBuf,
    /// Columns of its files; the first is the LSN.
    pub schema: SchemaRef,
    /// The column by whose time the table is partitioned.
    pub time_column: usize,
    /// What its partitions are: hours, days or hash buckets.
    pub layout: Layout,
    /// The key columns of a table in hash buckets, which has the newest row of each key.
    pub keys: Vec<usize>,
    /// The rows that it stores.
    pub feed: RowOrigin,
}

/// Which part of the operators' output a table stores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowOrigin {
    /// The rows of a stream.
    Stream(String),
    /// A table that operators derive: sessions, windows, entities, rows too late for their windows.
    Derived(String),
    /// Rejected records.
    DeadLetters,
    /// All records, as they arrived.
    Raw,
}

impl TableSpec {
    /// The table of a stream, in its folder below the lake's.
    pub fn stream(lake: &Path, stream: &Stream, layout: Layout) -> Self {
        Self {
            name: stream.name.clone(),
            root: folder(lake, &stream.name),
            schema: stream.table_schema.clone(),
            time_column: 1,
            layout,
            keys: Vec::new(),
            feed: RowOrigin::Stream(stream.name.clone()),
        }
    }

    /// A table that operators derive, partitioned by the time in its second column.
    pub fn derived(lake: &Path, name: &str, schema: SchemaRef, layout: Layout) -> Self {
        Self {
            name: name.to_owned(),
            root: folder(lake, name),
            schema,
            time_column: 1,
            layout,
            keys: Vec::new(),
            feed: RowOrigin::Derived(name.to_owned()),
        }
    }

    /// An entity table: the newest row of each key.
    pub fn entity(lake: &Path, entity: &Entity) -> Self {
        Self {
            keys: entity.keys.clone(),
            ..Self::derived(lake, &entity.name, entity.schema.clone(), Layout::Buckets)
        }
    }

    /// The table `dead_letters`.
    pub fn dead_letters(lake: &Path, layout: Layout) -> Self {
        let fields = vec![
            Field::new("lsn", DataType::Int64, true),
            Field::new("received_at", types::timestamp(), true),
            Field::new("source", DataType::Utf8, true),
            Field::new("source_offset", DataType::Int64, true),
            Field::new("stream", DataType::Utf8, true),
            Field::new("reason", DataType::Utf8, true),
            Field::new("bytes", DataType::Binary, true),
            Field::new("retried_lsn", DataType::Int64, true),
            Field::new("partition", DataType::Utf8, true),
            Field::new("attributes", DataType::Utf8, true),
        ];
        let name = "dead_letters";
        Self {
            name: name.into(),
            root: folder(lake, name),
            schema: Arc::new(Schema::new(fields)),
            time_column: 1,
            layout,
            keys: Vec::new(),
            feed: RowOrigin::DeadLetters,
        }
    }

    /// The table `raw`.
    pub fn raw(lake: &Path, layout: Layout) -> Self {
        let fields = vec![
            Field::new("lsn", DataType::Int64, true),
            Field::new("received_at", types::timestamp(), true),
            Field::new("source", DataType::Utf8, true),
            Field::new("partition", DataType::Utf8, true),
            Field::new("source_offset", DataType::Int64, true),
            Field::new("stream", DataType::Utf8, true),
            Field::new("kind", DataType::Utf8, true),
            Field::new("attributes", DataType::Utf8, true),
            Field::new("bytes", DataType::Binary, true),
        ];
        let name = "raw";
        Self {
            name: name.into(),
            root: folder(lake, name),
            schema: Arc::new(Schema::new(fields)),
            time_column: 1,
            layout,
            keys: Vec::new(),
            feed: RowOrigin::Raw,
        }
    }

    /// The classes that its rows may have.
    pub(super) fn classes(&self) -> &'static [RowClass] {
        match self.feed {
            RowOrigin::Stream(_) => &RowClass::ALL,
            _ => &[RowClass::Recent],
        }
    }

    /// Names of its checkpoints in snapshots: of recent rows, and of late ones where it has them.
    pub(super) fn checkpoint_names(&self) -> (String, Option<String>) {
        match &self.feed {
            RowOrigin::Stream(name) => (checkpoints::recent(name), Some(checkpoints::old(name))),
            RowOrigin::Derived(name) => (checkpoints::recent(name), None),
            RowOrigin::DeadLetters => (checkpoints::DEAD_LETTERS.into(), None),
            RowOrigin::Raw => (checkpoints::RAW.into(), None),
        }
    }
}

/// The folder of a table.
pub(super) fn folder(lake: &Path, name: &str) -> PathBuf {
    lake.join(name)
}
