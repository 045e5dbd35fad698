//! Entity tables: one file a bucket, with the newest row of each key. A commit writes the buckets anew that its rows touch; how large
//! the table is follows the number of entities.

use std::collections::BTreeMap;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};

use super::files::{Attempt, Class, FileWriter, buckets, read};
use super::{LakeTable, Written};
use crate::event::Lsn;
use crate::schema::entity::newest;

/// Writes the buckets of these rows anew; gives the new files and those they replace.
pub fn rewrite(
    table: &LakeTable,
    attempt: &Attempt,
    rows: &[RecordBatch],
    class: Class,
    now_ms: i64,
) -> Result<Written, String> {
    let spec = &table.spec;
    let failed = |e: arrow::error::ArrowError| e.to_string();
    let mut touched: BTreeMap<i64, Vec<RecordBatch>> = BTreeMap::new();
    for batch in rows {
        let mut own: BTreeMap<i64, Vec<u32>> = BTreeMap::new();
        for (row, bucket) in buckets(spec, batch).into_iter().enumerate() {
            own.entry(bucket).or_default().push(row as u32);
        }
        for (bucket, rows) in own {
            let part = take_record_batch(batch, &UInt32Array::from(rows)).map_err(failed)?;
            touched.entry(bucket).or_default().push(part);
        }
    }
    let there = table.files();
    let (mut add, mut replaced) = (Vec::new(), Vec::new());
    // One bucket at a time is in memory.
    for (bucket, new) in touched {
        let mut parts = Vec::new();
        for file in there.iter().filter(|f| f.bucket == bucket) {
            parts.extend(read(spec, file, 0..=Lsn::MAX)?);
            replaced.push(file.clone());
        }
        // Of equal versions the last one wins, by its LSN.
        parts.extend(new);
        let all = concat_batches(&spec.schema, &parts).map_err(failed)?;
        let rows = newest(&all, &spec.keys)?;
        let mut file = FileWriter::create(spec, attempt, bucket, class, now_ms, Some(rows.num_rows()))?;
        file.write(spec, &rows)?;
        add.push(file.finish()?);
    }
    Ok((add, replaced))
}
