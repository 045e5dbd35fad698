//! Entity tables: one file a bucket, with the newest row of each key. A commit writes the buckets anew that its rows touch; how large
//! the table is follows the number of entities.

use std::collections::BTreeMap;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::files::{Class, FileEntry, FileWriter, buckets};
use super::{LakeTable, Written};
use crate::schema::entity::newest;

/// Writes the buckets of these rows anew; gives the new files and those they replace.
pub fn rewrite(table: &LakeTable, rows: &[RecordBatch], class: Class, now_ms: i64) -> Result<Written, String> {
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
            parts.extend(read(table, file)?);
            replaced.push(file.clone());
        }
        // Of equal versions the last one wins, by its LSN.
        parts.extend(new);
        let all = concat_batches(&spec.schema, &parts).map_err(failed)?;
        let rows = newest(&all, &spec.keys)?;
        let mut file = FileWriter::create(spec, bucket, class, now_ms, Some(rows.num_rows()))?;
        file.write(spec, &rows)?;
        add.push(file.finish()?);
    }
    Ok((add, replaced))
}

fn read(table: &LakeTable, file: &FileEntry) -> Result<Vec<RecordBatch>, String> {
    let path = table.spec.root.join(&file.path);
    let wrong = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let opened = std::fs::File::open(&path).map_err(|e| wrong(&e))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(opened).and_then(|b| b.build()).map_err(|e| wrong(&e))?;
    reader
        .map(|batch| {
            let batch = batch.map_err(|e| wrong(&e))?;
            // A file may be older than a column of the table.
            let columns = table.spec.schema.fields().iter().map(|field| match batch.column_by_name(field.name()) {
                Some(column) => arrow::compute::cast(column, field.data_type()).map_err(|e| wrong(&e)),
                None => Ok(arrow::array::new_null_array(field.data_type(), batch.num_rows())),
            });
            let columns = columns.collect::<Result<Vec<_>, _>>()?;
            RecordBatch::try_new(table.spec.schema.clone(), columns).map_err(|e| wrong(&e))
        })
        .collect()
}
