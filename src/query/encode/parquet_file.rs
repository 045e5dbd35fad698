//! An answer as a Parquet file.

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use super::{QueryError, Spool, slices};

/// Bytes of a row group that are held before it is written out.
const ROW_GROUP_BYTES: usize = 8 << 20;

/// Writes rows as a Parquet file. Times keep their zone as UTC; types that Parquet does not have
/// are an error that says what to do.
pub(super) fn write(
    schema: &SchemaRef,
    batches: &[RecordBatch],
    out: &mut Spool,
) -> Result<(), QueryError> {
    if let Some(field) = schema
        .fields()
        .iter()
        .find(|f| !is_supported(f.data_type()))
    {
        let (name, ty) = (field.name(), field.data_type());
        return Err(QueryError::Invalid(format!(
            "the column `{name}` is {ty}, which a Parquet file cannot hold; cast it, or choose another format"
        )));
    }
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .build();
    let written =
        ArrowWriter::try_new(&mut *out, schema.clone(), Some(properties)).and_then(|mut writer| {
            for slice in batches.iter().flat_map(slices) {
                writer.write(&slice)?;
                if writer.in_progress_size() >= ROW_GROUP_BYTES {
                    writer.flush()?;
                }
            }
            writer.close()
        });
    written.map(drop).map_err(|e| out.take_error(e))
}

/// Whether the writer has a type for the values.
fn is_supported(ty: &DataType) -> bool {
    match ty {
        DataType::Interval(_)
        | DataType::Union(..)
        | DataType::ListView(_)
        | DataType::LargeListView(_)
        | DataType::RunEndEncoded(..) => false,
        DataType::Struct(fields) => {
            !fields.is_empty() && fields.iter().all(|field| is_supported(field.data_type()))
        }
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::Map(item, _) => is_supported(item.data_type()),
        DataType::Dictionary(_, values) => is_supported(values),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, IntervalMonthDayNanoArray, StringArray};
    use bytes::Bytes;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::super::tests::{batch, nested};
    use super::*;
    use crate::query::spool::Spools;

    fn written(batches: &[RecordBatch], limit: usize) -> Result<Vec<u8>, QueryError> {
        let mut out = Spools::new(None, limit).begin();
        write(&batches[0].schema(), batches, &mut out)?;
        let answer = out.finish()?;
        answer
            .into_bytes()
            .map_err(|e| QueryError::Failed(e.to_string()))
    }

    #[test]
    fn every_row_is_read_back() {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..3_000));
        let plain = batch(vec![("n", numbers)]);
        for batches in [
            vec![plain.clone(), plain.slice(7, 900)],
            vec![batch(nested())],
        ] {
            let file = Bytes::from(written(&batches, 1 << 20).expect("a file"));
            let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("Parquet");
            let rows = reader.build().expect("a reader");
            let rows: Vec<RecordBatch> = rows.map(|rows| rows.expect("rows")).collect();
            let whole = |batches: &[RecordBatch]| {
                arrow::compute::concat_batches(&batches[0].schema(), batches).expect("rows")
            };
            assert_eq!(whole(&rows).columns(), whole(&batches).columns());
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error_that_says_so() {
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values(
            (0..4_000_u64).map(|n| format!("{:x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))),
        ));
        let error = written(&[batch(vec![("t", texts)])], 10_000).expect_err("too long");
        assert!(matches!(error, QueryError::Limit(_)), "{error}");
        let interval: ArrayRef = Arc::new(IntervalMonthDayNanoArray::from(vec![None; 2]));
        let error = written(&[batch(vec![("i", interval)])], 1 << 20).expect_err("no such type");
        assert!(error.to_string().contains("cast it"), "{error}");
    }
}
