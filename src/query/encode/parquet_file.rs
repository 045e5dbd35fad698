//! An answer as a Parquet file.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use super::{QueryError, Spool, slices};

/// Bytes of a row group that are held before it is written out.
const ROW_GROUP_BYTES: usize = 8 << 20;

/// Writes rows as a Parquet file. Times keep their zone as UTC, those in seconds become milliseconds;
/// types that Parquet does not have are an error that says what to do.
pub(super) fn write(
    schema: &SchemaRef,
    batches: &[RecordBatch],
    out: &mut Spool,
) -> Result<(), QueryError> {
    let schema = stored_schema(schema);
    let unsupported = |field: &&FieldRef| !is_supported(field.data_type());
    if let Some(field) = schema.fields().iter().find(unsupported) {
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
                writer.write(&in_schema(&schema, &slice)?)?;
                if writer.in_progress_size() >= ROW_GROUP_BYTES {
                    writer.flush()?;
                }
            }
            writer.close()
        });
    written.map(drop).map_err(|e| out.take_error(e))
}

/// The schema of the file. The writer would store seconds, and dates in milliseconds, as integers.
fn stored_schema(schema: &SchemaRef) -> SchemaRef {
    let stored = |field: &FieldRef| {
        let ty = match field.data_type() {
            DataType::Timestamp(TimeUnit::Second, zone) => {
                DataType::Timestamp(TimeUnit::Millisecond, zone.clone())
            }
            DataType::Time32(TimeUnit::Second) => DataType::Time32(TimeUnit::Millisecond),
            DataType::Date64 => DataType::Timestamp(TimeUnit::Millisecond, None),
            _ => return field.clone(),
        };
        Arc::new(field.as_ref().clone().with_data_type(ty))
    };
    let fields: Vec<FieldRef> = schema.fields().iter().map(stored).collect();
    Arc::new(Schema::new(fields))
}

fn in_schema(schema: &SchemaRef, rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let columns = schema.fields().iter().zip(rows.columns());
    // A time that does not fit is an error rather than null.
    let options = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    let columns =
        columns.map(|(field, column)| cast_with_options(column, field.data_type(), &options));
    RecordBatch::try_new(schema.clone(), columns.collect::<Result<_, _>>()?)
}

/// Whether the writer has a type for the values.
fn is_supported(ty: &DataType) -> bool {
    match ty {
        DataType::Interval(_)
        | DataType::Duration(_)
        | DataType::Timestamp(TimeUnit::Second, _)
        | DataType::Time32(TimeUnit::Second)
        | DataType::Date64
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
    use arrow::array::{
        ArrayRef, Date64Array, DurationSecondArray, Int64Array, IntervalMonthDayNanoArray,
        StringArray, Time32SecondArray, TimestampMillisecondArray, TimestampSecondArray,
    };
    use bytes::Bytes;
    use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};

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
    fn times_that_parquet_lacks_are_written_as_those_that_it_has() {
        let columns: [(_, ArrayRef, DataType); 3] = [
            (
                "s",
                Arc::new(TimestampSecondArray::from(vec![Some(1), None]).with_timezone("UTC")),
                DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())),
            ),
            (
                "t",
                Arc::new(Time32SecondArray::from(vec![Some(2), None])),
                DataType::Time32(TimeUnit::Millisecond),
            ),
            (
                "d",
                Arc::new(Date64Array::from(vec![Some(86_400_001), None])),
                DataType::Timestamp(TimeUnit::Millisecond, None),
            ),
        ];
        let rows = columns
            .iter()
            .map(|(name, column, _)| (*name, column.clone()));
        let file = written(&[batch(rows.collect())], 1 << 20).expect("a file");
        // As a reader sees it that does not know of Arrow's schema in the file.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let builder =
            ParquetRecordBatchReaderBuilder::try_new_with_options(Bytes::from(file), options)
                .expect("Parquet");
        let mut rows = builder.build().expect("a reader");
        let rows = rows.next().expect("rows").expect("readable");
        for (name, _, ty) in columns {
            let column = rows.column_by_name(name).expect("the column");
            assert_eq!(column.data_type(), &ty, "{name}");
        }
        let dates = rows.column_by_name("d").expect("the column");
        let dates: Option<&TimestampMillisecondArray> = dates.as_any().downcast_ref();
        assert_eq!(dates.map(|dates| dates.value(0)), Some(86_400_001));
    }

    #[test]
    fn what_does_not_fit_is_an_error_that_says_so() {
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values(
            (0..4_000_u64).map(|n| format!("{:x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))),
        ));
        let error = written(&[batch(vec![("t", texts)])], 10_000).expect_err("too long");
        assert!(matches!(error, QueryError::Limit(_)), "{error}");
        let without_type: [ArrayRef; 2] = [
            Arc::new(IntervalMonthDayNanoArray::from(vec![None; 2])),
            Arc::new(DurationSecondArray::from(vec![None; 2])),
        ];
        for column in without_type {
            let error = written(&[batch(vec![("i", column)])], 1 << 20).expect_err("no such type");
            assert!(error.to_string().contains("cast it"), "{error}");
        }
    }
}
