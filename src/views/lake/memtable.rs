//! Rows above the last commit: in memory and queryable. Small batches are merged, so that one-row
//! frames do not cost a batch each.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;

use super::LakeError;
use super::raw::RawFrame;
use crate::event::Lsn;

/// Batches smaller than this are merged with adjacent ones; that of a full frame is as large.
const MERGE_ROWS: usize = 512;

/// Some rows in the order of their LSNs.
#[derive(Debug, Clone)]
pub enum UnflushedRows {
    /// In the table's own columns.
    Rows(RecordBatch),
    /// Rows of `raw`.
    Frame(RawFrame),
}

impl UnflushedRows {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        match self {
            Self::Rows(batch) => batch.num_rows(),
            Self::Frame(part) => part.rows(),
        }
    }

    /// Bytes in memory, approximately.
    pub fn memory_bytes(&self) -> usize {
        match self {
            Self::Rows(batch) => batch.get_array_memory_size(),
            Self::Frame(part) => part.frame.memory_bytes(),
        }
    }

    /// The LSN of the last row; 0 without rows.
    pub fn last_lsn(&self) -> Lsn {
        match self {
            Self::Rows(batch) => crate::operators::lsns(batch)
                .last()
                .map_or(0, |l| *l as u64),
            Self::Frame(part) => part.frame.header.last_lsn(),
        }
    }

    /// The rows in the table's schema (without partition columns).
    pub fn batch(&self, schema: &SchemaRef) -> Result<RecordBatch, LakeError> {
        match self {
            Self::Rows(batch) => Ok(batch.clone()),
            Self::Frame(part) => part.batch(schema),
        }
    }
}

/// Appends rows, merging small batches: each row is copied at most about log2(512) times. The first
/// `sealed` parts do not change.
///
/// For example, five batches of one row give parts of 1, then 2, 3, 3 and 1, and 5 rows: rows merge
/// with the part before them while it is at most twice as large.
pub(super) fn push(parts: &mut Vec<Arc<UnflushedRows>>, rows: RecordBatch, sealed: usize) {
    let mut rows = rows;
    while let Some(UnflushedRows::Rows(last)) = parts.last().map(AsRef::as_ref) {
        if parts.len() <= sealed
            || last.num_rows() > 2 * rows.num_rows()
            || last.num_rows() + rows.num_rows() > MERGE_ROWS
        {
            break;
        }
        let Ok(merged) = concat_batches(&rows.schema(), [last, &rows]) else {
            break;
        };
        rows = merged;
        parts.pop();
    }
    parts.push(Arc::new(UnflushedRows::Rows(rows)));
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array};

    use super::*;

    fn sizes(pushed: &[usize], sealed: usize) -> Vec<usize> {
        let mut parts = Vec::new();
        for rows in pushed {
            let column: ArrayRef = Arc::new(Int64Array::from(vec![1; *rows]));
            let batch = RecordBatch::try_from_iter([("lsn", column)]).expect("a column");
            push(&mut parts, batch, sealed);
        }
        parts.iter().map(|part| part.rows()).collect()
    }

    #[test]
    fn small_batches_merge_up_to_a_limit() {
        for (pushed, sealed, expected) in [
            (&[1, 1][..], 0, &[2][..]),
            (&[1, 1], 1, &[1, 1]),
            (&[5, 1], 0, &[5, 1]),
            (&[300, 250], 0, &[300, 250]),
            (&[300, 200], 0, &[500]),
        ] {
            assert_eq!(
                sizes(pushed, sealed),
                expected,
                "{pushed:?}, {sealed} sealed"
            );
        }
        let of_one_row = sizes(&[1; 1_000], 0);
        assert!(of_one_row.len() < 12, "{of_one_row:?}");
    }
}
