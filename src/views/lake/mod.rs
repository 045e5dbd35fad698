//! The lake: one Delta table per stream, window, sessions and entity table, `dead_letters` and
//! `raw`, partitioned by time, with the rows above its last commit in memory. Where event time
//! decides the partition, a table has two checkpoints: *recent* rows are committed often, *late*
//! ones are gathered for longer ([`RowClass`]).
//!
//! | module | what |
//! |---|---|
//! | `spec` | what a table stores, and where |
//! | `view` | the view that writes one table; `memtable` has its rows above the last commit |
//! | `table` | a Delta table and what queries see of it: opening, committing |
//! | `version` | what a version of the table says of itself: files, checkpoints |
//! | `change` | what one commit changes; `actions`, `columns` as Delta has them; `delta` its log |
//! | `store` | makes Delta's commits durable; `checked` has the checksums of files |
//! | [`files`] | Parquet: `raw` copies the log's blocks into it, [`replay`] reads them again |
//! | [`compact`] | merges files; `orphans` removes those that no version names |
//! | `entities` | retains the newest row of each key |
//! | `provider` | a table for SQL; `pruned` chooses files, `footers` reads them, `live` follows |
//! | `scan_by_lsn` | rows in the order of their LSNs |
//! | `error` | why a table could not be read or written |

mod actions;
mod change;
mod checked;
mod columns;
pub mod compact;
mod delta;
pub(crate) mod entities;
mod error;
pub mod files;
pub(crate) mod footers;
mod live;
pub mod memtable;
pub mod open_file;
mod orphans;
pub(crate) mod provider;
mod pruned;
mod raw;
pub mod replay;
mod row_attributes;
mod row_class;
pub(crate) mod scan_by_lsn;
mod spec;
mod store;
mod table;
mod version;
mod view;

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

pub use change::Change;
pub use error::LakeError;
use memtable::UnflushedRows;
pub use row_class::{PerClass, RowClass};
pub use spec::TableSpec;
pub use table::{LakeTable, TableState};
pub use view::{CommitPolicy, LakeView, Pool};

/// Unflushed rows in the table's own schema, or in the full one with its partition columns.
fn unflushed_batches(
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
