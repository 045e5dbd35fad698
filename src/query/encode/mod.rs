//! Answers as JSON, NDJSON, CSV, Arrow and Parquet, written a slice at a time. An answer that exceeds its
//! limit fails before the slice is written (`json_size`).

mod json_size;
mod parquet_file;
mod times;
mod values;

use std::io::Write;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow_json::EncoderOptions;
use arrow_json::writer::make_encoder;

use super::spool::{Spool, SpooledAnswer, Spools};
use super::sql::SqlAnswer;
use super::{AsOf, QueryError, time_zones};
use crate::views::lake::provider::is_binary;
use json_size::min_json_bytes;
use values::ValueEncoders;

/// Formats of timestamps: in UTC, and without a time zone.
const TIME_FORMAT: &str = "%Y-%m-%dT%H:%M:%S%.3fZ";
const LOCAL_TIME_FORMAT: &str = "%Y-%m-%dT%H:%M:%S%.3f";
/// Maximum rows of a slice, and approximate maximum bytes.
const SLICE_ROWS: usize = 1_024;
const SLICE_BYTES: usize = 1 << 20;

fn failed(error: &ArrowError) -> QueryError {
    QueryError::Failed(error.to_string())
}

/// The format of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `{"rows": […], "as_of": …}`.
    Json,
    Ndjson,
    Csv,
    /// An Arrow IPC stream.
    Arrow,
    /// A Parquet file.
    Parquet,
}

impl Format {
    /// The format by its name in a request.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        match text {
            "json" => Ok(Self::Json),
            "ndjson" => Ok(Self::Ndjson),
            "csv" => Ok(Self::Csv),
            "arrow" => Ok(Self::Arrow),
            "parquet" => Ok(Self::Parquet),
            _ => Err(QueryError::Invalid(format!(
                "format = `{text}`: write json, ndjson, csv, arrow or parquet"
            ))),
        }
    }

    /// The `Content-Type` of an answer in this format.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8",
            Self::Arrow => "application/vnd.apache.arrow.stream",
            Self::Parquet => "application/vnd.apache.parquet",
        }
    }
}

impl SqlAnswer {
    /// Writes the answer in a format.
    pub fn write(&self, format: Format, spools: &Spools) -> Result<SpooledAnswer, QueryError> {
        let mut out = spools.begin();
        match format {
            Format::Json => {
                out.text("{\"rows\":[")?;
                write_rows(&self.schema, &self.batches, &mut out, ",")?;
                out.text("],\"as_of\":")?;
                out.json(&self.as_of)?;
                out.text("}")?;
            }
            Format::Ndjson => {
                write_rows(&self.schema, &self.batches, &mut out, "\n")?;
                if out.has_begun() {
                    out.text("\n")?;
                }
            }
            Format::Csv => write_csv(&self.schema, &self.batches, &mut out)?,
            Format::Arrow => write_arrow(&self.schema, &self.batches, &mut out)?,
            Format::Parquet => parquet_file::write(&self.schema, &self.batches, &mut out)?,
        }
        out.finish()
    }
}

/// Writes `{NAME: VALUE, …, "ROWS": [row, …], "as_of": …}`, where `head` has the names and values,
/// `rows` is the name of the list, and `write` writes its items.
pub fn write_object(
    out: &mut Spool,
    head: &[(&str, serde_json::Value)],
    rows: &str,
    write: impl FnOnce(&mut Spool) -> Result<(), QueryError>,
    as_of: &AsOf,
) -> Result<(), QueryError> {
    out.text("{")?;
    for (name, value) in head {
        out.text(&format!("\"{name}\":"))?;
        out.json(value)?;
        out.text(",")?;
    }
    out.text(&format!("\"{rows}\":["))?;
    write(out)?;
    out.text("],\"as_of\":")?;
    out.json(as_of)?;
    out.text("}")
}

/// Writes rows as JSON objects with a separator.
pub fn write_rows(
    schema: &SchemaRef,
    batches: &[RecordBatch],
    out: &mut Spool,
    separator: &str,
) -> Result<(), QueryError> {
    let mut is_first = true;
    for slice in batches.iter().flat_map(slices) {
        let (_, printable) = printable(schema, &slice)?;
        out.check_room(min_json_bytes(&StructArray::from(printable.clone())))?;
        each_object(&printable, &mut |row| {
            if !std::mem::take(&mut is_first) {
                out.text(separator)?;
            }
            out.write_all(row).map_err(|e| out.take_error(e))
        })?;
    }
    Ok(())
}

/// Visits each row as a JSON object.
pub fn each_row(
    schema: &SchemaRef,
    batches: &[RecordBatch],
    mut visit: impl FnMut(&[u8]) -> Result<(), QueryError>,
) -> Result<(), QueryError> {
    batches
        .iter()
        .flat_map(slices)
        .try_for_each(|slice| each_object(&printable(schema, &slice)?.1, &mut visit))
}

/// Few rows as JSON objects, one per line: in memory, without a limit.
pub fn to_ndjson(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<u8>, QueryError> {
    let mut out = Vec::new();
    each_row(schema, batches, |row| {
        out.extend_from_slice(row);
        out.push(b'\n');
        Ok(())
    })?;
    Ok(out)
}

fn options() -> EncoderOptions {
    EncoderOptions::default()
        .with_explicit_nulls(true)
        .with_timestamp_format(LOCAL_TIME_FORMAT.into())
        .with_timestamp_tz_format(TIME_FORMAT.into())
        .with_encoder_factory(Arc::new(ValueEncoders))
}

/// Appends each row as a JSON object; `end_row` is given everything so far.
pub fn append_rows(
    rows: &RecordBatch,
    out: &mut Vec<u8>,
    mut end_row: impl FnMut(&mut Vec<u8>),
) -> Result<(), QueryError> {
    encode_rows(&printable(&rows.schema(), rows)?.1, out, |out| {
        end_row(out);
        Ok(())
    })
}

fn each_object(
    batch: &RecordBatch,
    visit: &mut impl FnMut(&[u8]) -> Result<(), QueryError>,
) -> Result<(), QueryError> {
    encode_rows(batch, &mut Vec::new(), |row| {
        visit(row)?;
        row.clear();
        Ok(())
    })
}

fn encode_rows(
    batch: &RecordBatch,
    out: &mut Vec<u8>,
    mut end_row: impl FnMut(&mut Vec<u8>) -> Result<(), QueryError>,
) -> Result<(), QueryError> {
    let array = StructArray::from(batch.clone());
    let field: FieldRef = Arc::new(Field::new_struct(
        "",
        batch.schema().fields().clone(),
        false,
    ));
    let options = options();
    let mut encoder = make_encoder(&field, &array, &options).map_err(|e| failed(&e))?;
    (0..batch.num_rows()).try_for_each(|at| {
        encoder.encode(at, out);
        end_row(out)
    })
}

/// Bytes of a batch's values, without those of the buffers around a slice.
pub fn value_bytes(batch: &RecordBatch) -> usize {
    let column_bytes = |column: &ArrayRef| {
        let fixed = column.to_data().get_slice_memory_size().unwrap_or(0);
        let viewed: usize = match column.data_type() {
            DataType::Utf8View => column.as_string_view().lengths().map(|n| n as usize).sum(),
            DataType::BinaryView => column.as_binary_view().lengths().map(|n| n as usize).sum(),
            _ => 0,
        };
        fixed + viewed
    };
    batch.columns().iter().map(column_bytes).sum()
}

/// A batch in slices of at most `SLICE_ROWS` and about `SLICE_BYTES`.
pub fn slices(batch: &RecordBatch) -> impl Iterator<Item = RecordBatch> {
    let step = (SLICE_BYTES * batch.num_rows() / value_bytes(batch).max(1)).clamp(1, SLICE_ROWS);
    (0..batch.num_rows())
        .step_by(step)
        .map(move |from| batch.slice(from, step.min(batch.num_rows() - from)))
}

/// Converts what JSON and CSV cannot show: bytes to UTF-8 or else hexadecimal, times with a zone to
/// local ones.
fn printable(
    schema: &SchemaRef,
    batch: &RecordBatch,
) -> Result<(SchemaRef, RecordBatch), QueryError> {
    let (schema, mut batches) =
        time_zones::to_local(schema, std::slice::from_ref(batch)).map_err(|e| failed(&e))?;
    let batch = batches.pop().unwrap_or_else(|| batch.clone());
    let text = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|b| format!("{b:02x}")).collect(),
    };
    convert_columns(&schema, &batch, is_binary, |_, column| {
        let bytes = arrow::compute::cast(column, &DataType::Binary).map_err(|e| failed(&e))?;
        let bytes: &BinaryArray = bytes.as_binary();
        Ok(bytes.iter().map(|b| b.map(text)).collect())
    })
}

/// Converts the columns of some types to texts.
fn convert_columns(
    schema: &SchemaRef,
    batch: &RecordBatch,
    is_converted: impl Fn(&DataType) -> bool,
    to_text: impl Fn(&FieldRef, &ArrayRef) -> Result<StringArray, QueryError>,
) -> Result<(SchemaRef, RecordBatch), QueryError> {
    if !schema.fields().iter().any(|f| is_converted(f.data_type())) {
        return Ok((schema.clone(), batch.clone()));
    }
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        if is_converted(field.data_type()) {
            fields.push(Arc::new(Field::new(field.name(), DataType::Utf8, true)));
            columns.push(Arc::new(to_text(field, column)?) as ArrayRef);
        } else {
            fields.push(field.clone());
            columns.push(column.clone());
        }
    }
    let schema: SchemaRef = Arc::new(Schema::new(fields));
    RecordBatch::try_new(schema.clone(), columns)
        .map(|batch| (schema, batch))
        .map_err(|e| failed(&e))
}

/// Writes rows as CSV with a header; lists, structs and maps as JSON.
fn write_csv(
    schema: &SchemaRef,
    batches: &[RecordBatch],
    out: &mut Spool,
) -> Result<(), QueryError> {
    let empty = RecordBatch::new_empty(schema.clone());
    let mut has_header = true;
    for slice in std::iter::once(empty).chain(batches.iter().flat_map(slices)) {
        let (schema, printable) = printable(schema, &slice)?;
        let nested = printable
            .columns()
            .iter()
            .filter(|column| column.data_type().is_nested());
        out.check_room(nested.map(|column| min_json_bytes(column)).sum())?;
        let (_, flat) = convert_columns(&schema, &printable, DataType::is_nested, json_texts)?;
        let builder = arrow_csv::WriterBuilder::new()
            .with_header(std::mem::take(&mut has_header))
            .with_timestamp_format(LOCAL_TIME_FORMAT.into())
            .with_timestamp_tz_format(TIME_FORMAT.into());
        let written = builder.build(&mut *out).write(&flat);
        written.map_err(|e| out.take_error(e))?;
    }
    Ok(())
}

fn json_texts(field: &FieldRef, column: &ArrayRef) -> Result<StringArray, QueryError> {
    let options = options();
    let mut encoder = make_encoder(field, column, &options).map_err(|e| failed(&e))?;
    let text = |at: usize| {
        (!column.is_null(at)).then(|| {
            let mut text = Vec::new();
            encoder.encode(at, &mut text);
            String::from_utf8_lossy(&text).into_owned()
        })
    };
    Ok((0..column.len()).map(text).collect())
}

fn write_arrow(
    schema: &SchemaRef,
    batches: &[RecordBatch],
    out: &mut Spool,
) -> Result<(), QueryError> {
    let written =
        arrow::ipc::writer::StreamWriter::try_new(&mut *out, schema).and_then(|mut writer| {
            batches
                .iter()
                .flat_map(slices)
                .try_for_each(|slice| writer.write(&slice))?;
            writer.finish()
        });
    written.map_err(|e| out.take_error(e))
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, ListArray, MapArray};
    use arrow::buffer::OffsetBuffer;

    use super::*;

    pub fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true)))
            .expect("a batch")
    }

    fn csv(batch: &RecordBatch) -> String {
        let mut out = Spools::new(None, 1 << 20).begin();
        write_csv(&batch.schema(), std::slice::from_ref(batch), &mut out).expect("CSV");
        String::from_utf8(
            out.finish()
                .map(|answer| answer.into_bytes().expect("memory"))
                .expect("complete"),
        )
        .expect("text")
    }

    pub fn nested() -> Vec<(&'static str, ArrayRef)> {
        let list = ListArray::from_iter_primitive::<arrow::datatypes::Int64Type, _, _>([
            Some(vec![Some(1), None]),
            None,
            Some(vec![]),
        ]);
        let texts: ArrayRef =
            Arc::new(StringArray::from(vec![Some("a\"\u{1}"), Some("b,c"), None]));
        let row = StructArray::from(vec![(
            Arc::new(Field::new("s", DataType::Utf8, true)),
            texts.clone(),
        )]);
        let keys: ArrayRef = Arc::new(StringArray::from(vec!["k", "l", "m"]));
        let entries = StructArray::from(vec![
            (Arc::new(Field::new("keys", DataType::Utf8, false)), keys),
            (Arc::new(Field::new("values", DataType::Utf8, true)), texts),
        ]);
        let field = Arc::new(Field::new("entries", entries.data_type().clone(), false));
        let map = MapArray::new(
            field,
            OffsetBuffer::from_lengths([2, 0, 1]),
            entries,
            None,
            false,
        );
        vec![
            ("l", Arc::new(list)),
            ("r", Arc::new(row)),
            ("m", Arc::new(map)),
        ]
    }

    #[test]
    fn lists_structs_and_maps_are_json_in_csv() {
        let expected = "l,r,m\n\
            \"[1,null]\",\"{\"\"s\"\":\"\"a\\\"\"\\u0001\"\"}\",\"{\"\"k\"\":\"\"a\\\"\"\\u0001\"\",\"\"l\"\":\"\"b,c\"\"}\"\n\
            ,\"{\"\"s\"\":\"\"b,c\"\"}\",{}\n\
            [],\"{\"\"s\"\":null}\",\"{\"\"m\"\":null}\"\n";
        assert_eq!(csv(&batch(nested())), expected);
        assert_eq!(csv(&batch(nested()).slice(0, 0)), "l,r,m\n");
    }

    #[test]
    fn one_row_that_would_exceed_the_limit_fails_before_it_is_written() {
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["\u{1}".repeat(1 << 20)]));
        let item = StructArray::from(vec![(
            Arc::new(Field::new("n".repeat(5_000), DataType::Int64, true)),
            Arc::new(Int64Array::from(vec![1; 10_000])) as ArrayRef,
        )]);
        let field = Arc::new(Field::new("item", item.data_type().clone(), true));
        let list: ArrayRef = Arc::new(ListArray::new(
            field,
            OffsetBuffer::from_lengths([10_000]),
            Arc::new(item),
            None,
        ));
        for column in [texts, list] {
            let batch = batch(vec![("x", column)]);
            let mut out = Spools::new(None, 4 << 20).begin();
            let error = write_rows(&batch.schema(), std::slice::from_ref(&batch), &mut out, ",")
                .expect_err("too long");
            assert!(
                matches!(error, QueryError::Limit(_)) && !out.has_begun(),
                "{error}"
            );
        }
    }

    #[test]
    fn every_format_writes_each_row_once_however_it_is_sliced() {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..3_000));
        let wide: ArrayRef = Arc::new(StringArray::from_iter_values(
            (0..3_000).map(|n| format!("{n:>999}")),
        ));
        let batches = [batch(vec![("n", numbers), ("s", wide)])];
        let schema = batches[0].schema();
        let mut seen = Vec::new();
        each_row(&schema, &batches, |row| {
            seen.push(
                serde_json::from_slice::<serde_json::Value>(row).expect("JSON")["n"]
                    .as_i64()
                    .expect("a number"),
            );
            Ok(())
        })
        .expect("rows");
        assert_eq!(seen, (0..3_000).collect::<Vec<_>>());
        let mut out = Spools::new(None, 4 << 20).begin();
        write_arrow(&schema, &batches, &mut out).expect("Arrow");
        let bytes = out
            .finish()
            .expect("complete")
            .into_bytes()
            .expect("memory");
        let reader = arrow::ipc::reader::StreamReader::try_new(&bytes[..], None).expect("a stream");
        let rows: usize = reader.map(|batch| batch.expect("a batch").num_rows()).sum();
        assert_eq!(rows, 3_000);
        assert_eq!(csv(&batches[0].slice(0, 300)).lines().count(), 301);
    }
}
