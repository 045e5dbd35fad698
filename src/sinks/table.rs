//! A table as sinks read it: its rows, what identifies one, and which of them retract another.

use std::sync::Arc;

use arrow::array::{Array, RecordBatch, StringArray};
use arrow::datatypes::SchemaRef;

use crate::ids::TableId;
use crate::query::Handles;
use crate::views::lake::LakeTable;

/// The status of a window's row that retracts the one before.
const RETRACTED: &str = "retracted";

/// A table of a sink.
#[derive(Clone)]
pub struct SinkTable {
    /// As the sink names it.
    pub name: String,
    /// Where its rows are.
    pub table: Arc<LakeTable>,
    /// Columns of its rows that identify what they are about: a later row with the same values
    /// replaces an earlier one.
    pub key: Vec<usize>,
    /// Of a window: the column that says whether a row retracts the one before.
    status: Option<usize>,
}

impl SinkTable {
    /// The table of a name; `None` if it does not exist.
    pub fn find(handles: &Handles, name: &str) -> Option<Self> {
        let id = handles.catalog.table_id(name)?;
        let table = handles.tables.get(&id)?.clone();
        let schema = &table.spec.schema;
        let at = |name: &str| schema.index_of(name).ok();
        let (key, status) = match &id {
            TableId::Window(window) => {
                let window = handles.catalog.window(window)?;
                let key = window.keys.iter().copied().chain(at("window_start"));
                (key.collect(), at("status"))
            }
            TableId::Entity(_) => (table.spec.keys.clone(), None),
            TableId::Sessions(_) => (at("session_id").into_iter().collect(), None),
            TableId::Stream(_) | TableId::Late(_) | TableId::DeadLetters | TableId::Raw => {
                (vec![0], None)
            }
        };
        Some(Self {
            name: name.to_owned(),
            key,
            status,
            table,
        })
    }

    /// Columns of its rows; the first is the LSN.
    pub fn schema(&self) -> &SchemaRef {
        &self.table.spec.schema
    }

    /// Whether it has the newest row of each key, and no other.
    pub fn is_entity(&self) -> bool {
        matches!(self.table.spec.id, TableId::Entity(_))
    }

    /// Whether a row says that the group of its key no longer has a row.
    pub fn is_retracted(&self, rows: &RecordBatch, row: usize) -> bool {
        self.status.is_some_and(|status| {
            let status = rows.column(status).as_any().downcast_ref::<StringArray>();
            status.is_some_and(|status| status.is_valid(row) && status.value(row) == RETRACTED)
        })
    }
}
