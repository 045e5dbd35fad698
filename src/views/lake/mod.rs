//! The lake: one Delta table per stream, window, sessions and entity table, `dead_letters` and `raw`,
//! partitioned by time, with the rows above its last commit in memory. Where event time decides the partition, a table has two
//! checkpoints: *recent* rows are committed often, *late* ones are gathered for longer.
//!
//! [`spec`] says what a table stores; [`view`] writes it; [`table`] is a Delta table and what
//! queries see of it; `change` what a commit changes in it; `actions` its files and `columns` its columns as Delta has them; [`memtable`] the rows
//! in memory; [`checked`] the checksums of files; [`files`] Parquet; [`footers`] how queries read
//! it; [`raw`] copies the log's blocks; [`compact`] merges; [`entities`] retains the newest row of
//! each key; [`provider`] is the table for SQL; [`store`] makes Delta's commits durable; `orphans`
//! removes files that no version names.

mod actions;
mod change;
pub mod checked;
mod columns;
pub mod compact;
mod delta;
pub mod entities;
mod error;
pub mod files;
pub mod footers;
mod live;
pub mod memtable;
mod orphans;
pub mod provider;
mod pruned;
pub mod raw;
pub mod replay;
mod row_class;
pub mod scan_by_lsn;
pub mod spec;
pub mod store;
pub mod table;
pub mod view;

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

pub use change::Change;
pub use error::LakeError;
use memtable::UnflushedRows;
pub use row_class::{PerClass, RowClass};
pub use spec::{RowOrigin, TableSpec};
pub use table::LakeTable;
pub use view::{CommitPolicy, LakeView, Pool};

/// Unflushed rows in the table's own schema, or in the full one with its partition columns.
pub fn unflushed_batches(
    spec: &TableSpec,
    wanted: &SchemaRef,
    parts: &[Arc<UnflushedRows>],
) -> Result<Vec<RecordBatch>, LakeError> {
    let is_own = wanted.fields().len() == spec.schema.fields().len();
    let batch = |part: &Arc<UnflushedRows>| {
        let own = part.batch(&spec.schema)?;
        if is_own {
            Ok(own)
        } else {
            files::with_partition_columns(spec, &own, wanted)
        }
    };
    parts.iter().map(batch).collect()
}
