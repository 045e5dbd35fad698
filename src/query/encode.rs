//! Rows as JSON, NDJSON, CSV and Arrow, a slice at a time. What a slice becomes at least is known
//! before it is written: names and escapes make a hundred times as much of it.

use std::io::Write;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, OffsetSizeTrait, RecordBatch, StringArray, StructArray,
};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow_json::EncoderOptions;
use arrow_json::writer::make_encoder;

use super::spool::{Spool, Spools, Whole};
use super::sql::SqlAnswer;
use super::{AsOf, QueryError, local};
use crate::views::lake::provider::is_binary;

/// Formats of times: with the `Z` of UTC, and without an offset for timestamps without a time zone.
const TIME_FORMAT: &str = "%Y-%m-%dT%H:%M:%S%.3fZ";
const LOCAL_TIME_FORMAT: &str = "%Y-%m-%dT%H:%M:%S%.3f";
/// Rows that are written at once, and about how many bytes of them.
const SLICE_ROWS: usize = 1_024;
const SLICE_BYTES: usize = 1 << 20;

fn failed(error: &ArrowError) -> QueryError {
    QueryError::Failed(error.to_string())
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// With `as_of`.
    Json,
    Ndjson,
    Csv,
    /// An IPC stream.
    Arrow,
}

impl Format {
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        match text {
            "json" => Ok(Self::Json),
            "ndjson" => Ok(Self::Ndjson),
            "csv" => Ok(Self::Csv),
            "arrow" => Ok(Self::Arrow),
            _ => Err(QueryError::Invalid(format!(
                "format = `{text}`: write json, ndjson, csv or arrow"
            ))),
        }
    }

    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8",
            Self::Arrow => "application/vnd.apache.arrow.stream",
        }
    }
}

impl SqlAnswer {
    /// The whole answer in a format.
    pub fn write(&self, format: Format, spools: &Spools) -> Result<Whole, QueryError> {
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
        }
        out.finish()
    }
}

/// `{NAME: VALUE, …, "ROWS": [row, …], "as_of": …}` of rows that are made one by one.
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

/// Writes rows as JSON objects, with something between each two.
pub fn write_rows(
    schema: &SchemaRef,
    batches: &[RecordBatch],
    out: &mut Spool,
    between: &str,
) -> Result<(), QueryError> {
    let mut is_first = true;
    for slice in batches.iter().flat_map(slices) {
        let (_, shown) = printable(schema, &slice)?;
        out.expect(least_bytes(&StructArray::from(shown.clone())))?;
        each_shown(&shown, &mut |row| {
            if !std::mem::take(&mut is_first) {
                out.text(between)?;
            }
            out.write_all(row).map_err(|e| out.explain(e))
        })?;
    }
    Ok(())
}

/// Hands on each row as a JSON object.
pub fn each_row(
    schema: &SchemaRef,
    batches: &[RecordBatch],
    mut take: impl FnMut(&[u8]) -> Result<(), QueryError>,
) -> Result<(), QueryError> {
    batches
        .iter()
        .flat_map(slices)
        .try_for_each(|slice| each_shown(&printable(schema, &slice)?.1, &mut take))
}

/// Rows as JSON objects, one per line, for who knows that they are few.
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
}

fn each_shown(
    batch: &RecordBatch,
    take: &mut impl FnMut(&[u8]) -> Result<(), QueryError>,
) -> Result<(), QueryError> {
    let array = StructArray::from(batch.clone());
    let field: FieldRef = Arc::new(Field::new_struct(
        "",
        batch.schema().fields().clone(),
        false,
    ));
    let options = options();
    let mut encoder = make_encoder(&field, &array, &options).map_err(|e| failed(&e))?;
    let mut row = Vec::new();
    for at in 0..batch.num_rows() {
        row.clear();
        encoder.encode(at, &mut row);
        take(&row)?;
    }
    Ok(())
}

/// Bytes of a batch's own values: a few rows may hold the buffers of many.
pub fn value_bytes(batch: &RecordBatch) -> usize {
    let of = |column: &ArrayRef| {
        let fixed = column.to_data().get_slice_memory_size().unwrap_or(0);
        let viewed: usize = match column.data_type() {
            DataType::Utf8View => column.as_string_view().lengths().map(|n| n as usize).sum(),
            DataType::BinaryView => column.as_binary_view().lengths().map(|n| n as usize).sum(),
            _ => 0,
        };
        fixed + viewed
    };
    batch.columns().iter().map(of).sum()
}

/// A batch in slices that are small, whatever is made of them.
fn slices(batch: &RecordBatch) -> impl Iterator<Item = RecordBatch> {
    let step = (SLICE_BYTES * batch.num_rows() / value_bytes(batch).max(1)).clamp(1, SLICE_ROWS);
    (0..batch.num_rows())
        .step_by(step)
        .map(move |from| batch.slice(from, step.min(batch.num_rows() - from)))
}

/// Bytes that values have at least when they are written as JSON.
fn least_bytes(array: &dyn Array) -> u64 {
    fn texts<'a>(texts: impl Iterator<Item = Option<&'a str>>) -> u64 {
        texts.map(|text| text.map_or(4, escaped_bytes)).sum()
    }
    fn list<O: OffsetSizeTrait>(array: &dyn Array) -> u64 {
        let list = array.as_list::<O>();
        let (first, last) = (
            list.offsets()[0].as_usize(),
            list.offsets()[list.len()].as_usize(),
        );
        least_bytes(&list.values().slice(first, last - first)) + 2 * list.len() as u64
    }
    let rows = array.len() as u64;
    match array.data_type() {
        DataType::Utf8 => texts(array.as_string::<i32>().iter()),
        DataType::LargeUtf8 => texts(array.as_string::<i64>().iter()),
        DataType::Utf8View => texts(array.as_string_view().iter()),
        DataType::List(_) => list::<i32>(array),
        DataType::LargeList(_) => list::<i64>(array),
        DataType::FixedSizeList(..) => least_bytes(array.as_fixed_size_list().values()),
        DataType::Map(..) => {
            let map = array.as_map();
            let (first, last) = (map.offsets()[0] as usize, map.offsets()[map.len()] as usize);
            let entries = map.entries().slice(first, last - first);
            entries
                .columns()
                .iter()
                .map(|column| least_bytes(column))
                .sum::<u64>()
                + 2 * rows
        }
        DataType::Struct(_) => {
            let row = array.as_struct();
            // A row without a value is written without names.
            let named = (array.len() - array.null_count()) as u64;
            let names: u64 = row
                .fields()
                .iter()
                .map(|f| escaped_bytes(f.name()) + 2)
                .sum();
            let values = |column: &ArrayRef| {
                if array.null_count() == 0 {
                    least_bytes(column)
                } else {
                    0
                }
            };
            named * names + row.columns().iter().map(values).sum::<u64>()
        }
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            let values = dictionary.values();
            let sizes: Vec<u64> = (0..values.len())
                .map(|at| least_bytes(&values.slice(at, 1)))
                .collect();
            let keys = dictionary.normalized_keys();
            let of = |(at, key): (usize, usize)| {
                if array.is_null(at) {
                    4
                } else {
                    sizes.get(key).copied().unwrap_or(0)
                }
            };
            keys.into_iter().enumerate().map(of).sum()
        }
        DataType::Timestamp(..) => rows * 4 + 20 * (array.len() - array.null_count()) as u64,
        _ => rows,
    }
}

/// Bytes of a text in JSON, with its quotes.
fn escaped_bytes(text: &str) -> u64 {
    let of = |byte: u8| match byte {
        b'"' | b'\\' | 8 | 9 | 10 | 12 | 13 => 2,
        0..32 => 6,
        _ => 1,
    };
    text.bytes().map(of).sum::<u64>() + 2
}

/// A batch with what JSON and CSV cannot show: bytes as UTF-8 where they are, else as hexadecimal,
/// and times of a zone as local ones.
fn printable(
    schema: &SchemaRef,
    batch: &RecordBatch,
) -> Result<(SchemaRef, RecordBatch), QueryError> {
    let (schema, mut batches) =
        local::times(schema, std::slice::from_ref(batch)).map_err(|e| failed(&e))?;
    let batch = batches.pop().unwrap_or_else(|| batch.clone());
    let show = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|b| format!("{b:02x}")).collect(),
    };
    texts_of(&schema, &batch, is_binary, |_, column| {
        let bytes = arrow::compute::cast(column, &DataType::Binary).map_err(|e| failed(&e))?;
        let bytes: &BinaryArray = bytes.as_binary();
        Ok(bytes.iter().map(|b| b.map(show)).collect())
    })
}

/// The batch with its columns of some types as texts.
fn texts_of(
    schema: &SchemaRef,
    batch: &RecordBatch,
    is_wanted: impl Fn(&DataType) -> bool,
    text: impl Fn(&FieldRef, &ArrayRef) -> Result<StringArray, QueryError>,
) -> Result<(SchemaRef, RecordBatch), QueryError> {
    if !schema.fields().iter().any(|f| is_wanted(f.data_type())) {
        return Ok((schema.clone(), batch.clone()));
    }
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        if is_wanted(field.data_type()) {
            fields.push(Arc::new(Field::new(field.name(), DataType::Utf8, true)));
            columns.push(Arc::new(text(field, column)?) as ArrayRef);
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
        let (schema, shown) = printable(schema, &slice)?;
        let nested = shown
            .columns()
            .iter()
            .filter(|column| column.data_type().is_nested());
        out.expect(nested.map(|column| least_bytes(column)).sum())?;
        let (_, shown) = texts_of(&schema, &shown, DataType::is_nested, json_texts)?;
        let builder = arrow_csv::WriterBuilder::new()
            .with_header(std::mem::take(&mut has_header))
            .with_timestamp_format(LOCAL_TIME_FORMAT.into())
            .with_timestamp_tz_format(TIME_FORMAT.into());
        let written = builder.build(&mut *out).write(&shown);
        written.map_err(|e| out.explain(e))?;
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
    written.map_err(|e| out.explain(e))
}

#[cfg(test)]
mod tests {
    use arrow::array::{DictionaryArray, Int64Array, ListArray, MapArray};
    use arrow::buffer::OffsetBuffer;
    use arrow::datatypes::Int32Type;

    use super::*;

    fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true)))
            .expect("a batch")
    }

    fn csv(batch: &RecordBatch) -> String {
        let mut out = Spools::new(None, 1 << 20).begin();
        write_csv(&batch.schema(), std::slice::from_ref(batch), &mut out).expect("CSV");
        String::from_utf8(
            out.finish()
                .map(|w| w.into_bytes().expect("memory"))
                .expect("whole"),
        )
        .expect("text")
    }

    fn nested() -> Vec<(&'static str, ArrayRef)> {
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
    fn what_values_take_at_least_is_never_more_than_they_take() {
        let mut columns = nested();
        let words: DictionaryArray<Int32Type> =
            [Some("x\n"), None, Some("long\u{2}")].into_iter().collect();
        let times = arrow::array::TimestampMicrosecondArray::from(vec![Some(0), None, Some(1)])
            .with_timezone("UTC");
        columns.push(("d", Arc::new(words)));
        columns.push(("t", Arc::new(times)));
        columns.push((
            "n",
            Arc::new(Int64Array::from(vec![Some(1), None, Some(-12)])),
        ));
        let all = batch(columns);
        for (from, rows) in [(0, 3), (0, 1), (1, 2), (2, 1)] {
            let part = all.slice(from, rows);
            let written = to_ndjson(&part.schema(), std::slice::from_ref(&part))
                .expect("JSON")
                .len() as u64;
            let least = least_bytes(&StructArray::from(part));
            assert!(
                least <= written && least * 2 > written,
                "{least} of {written}"
            );
        }
    }

    #[test]
    fn one_row_that_grows_beyond_the_limit_is_refused_before_it_is_written() {
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
        let bytes = out.finish().expect("whole").into_bytes().expect("memory");
        let reader = arrow::ipc::reader::StreamReader::try_new(&bytes[..], None).expect("a stream");
        let rows: usize = reader.map(|batch| batch.expect("a batch").num_rows()).sum();
        assert_eq!(rows, 3_000);
        assert_eq!(csv(&batches[0].slice(0, 300)).lines().count(), 301);
    }
}
