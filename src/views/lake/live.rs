//! A table's rows in the operators' output, before they are committed: for live queries.

use std::sync::Arc;

use arrow::array::RecordBatch;

use super::memtable::UnflushedRows;
use super::{LakeError, LakeTable, unflushed_batches};
use crate::event::Lsn;
use crate::ids::TableId;
use crate::operators::Output;

impl LakeTable {
    /// The rows that an output adds, in the order of their LSNs; `None` for `raw` and dead letters,
    /// which cannot be followed live.
    pub fn rows_of<'a>(&self, output: &'a Output) -> Option<&'a RecordBatch> {
        match &self.spec.id {
            TableId::Stream(name) => output
                .rows
                .as_ref()
                .filter(|rows| rows.stream.name == **name)
                .map(|rows| &rows.batch),
            TableId::Sessions(_) | TableId::Late(_) | TableId::Window(_) | TableId::Entity(_) => {
                let derived = output.tables.iter().find(|t| t.table == self.spec.id);
                derived.map(|table| &table.batch)
            }
            TableId::Raw | TableId::DeadLetters => None,
        }
    }

    /// Such rows with every column of the table, also its partition columns.
    pub fn full_rows(&self, rows: RecordBatch) -> Result<RecordBatch, LakeError> {
        let mut full = unflushed_batches(
            &self.spec,
            &self.full_schema,
            &[Arc::new(UnflushedRows::Rows(rows))],
        )?;
        full.pop().ok_or_else(|| LakeError::rows("no rows"))
    }

    /// Whether there may be rows of the records in `(after, upto]`.
    pub fn may_have(&self, after: Lsn, upto: Lsn) -> bool {
        let state = self.snapshot();
        let mut unflushed = state.unflushed.iter().flatten();
        state
            .files
            .iter()
            .any(|file| file.min_lsn <= upto && file.max_lsn > after)
            || unflushed.any(|part| part.last_lsn() > after)
    }
}
