//! What a lake table stores, and where.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::RowClass;
use crate::ids::{CheckpointId, TableId};
use crate::schema::{Entity, Layout, Stream, types};

/// A lake table's content, columns and folder.
#[derive(Debug, Clone)]
pub struct TableSpec {
    /// Which table it is, and so which part of the operators' output it stores.
    pub id: TableId,
    /// The text of `id`: its name in SQL.
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
}

impl TableSpec {
    /// A table, partitioned by the time in its second column.
    pub fn new(lake: &Path, id: TableId, schema: SchemaRef, layout: Layout) -> Self {
        let name = id.to_string();
        Self {
            root: folder(lake, &name),
            id,
            name,
            schema,
            time_column: 1,
            layout,
            keys: Vec::new(),
        }
    }

    /// The table of a stream's events.
    pub fn stream(lake: &Path, stream: &Stream, layout: Layout) -> Self {
        let id = TableId::stream(&stream.name);
        Self::new(lake, id, stream.table_schema.clone(), layout)
    }

    /// An entity table: the newest row of each key.
    pub fn entity(lake: &Path, entity: &Entity) -> Self {
        let id = TableId::entity(&entity.name);
        Self {
            keys: entity.keys.clone(),
            ..Self::new(lake, id, entity.schema.clone(), Layout::Buckets)
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
        Self::new(
            lake,
            TableId::DeadLetters,
            Arc::new(Schema::new(fields)),
            layout,
        )
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
        Self::new(lake, TableId::Raw, Arc::new(Schema::new(fields)), layout)
    }

    /// The classes that its rows may have.
    pub(super) fn classes(&self) -> &'static [RowClass] {
        match self.id {
            TableId::Stream(_) => &RowClass::ALL,
            _ => &[RowClass::Recent],
        }
    }

    /// Its checkpoints: of recent rows, and of late ones where it has them.
    pub(super) fn checkpoint_ids(&self) -> (CheckpointId, Option<CheckpointId>) {
        let late = matches!(self.id, TableId::Stream(_)).then(|| CheckpointId::late(&self.id));
        (CheckpointId::recent(&self.id), late)
    }
}

/// The folder of a table.
pub(super) fn folder(lake: &Path, name: &str) -> PathBuf {
    lake.join(name)
}
