//! Rows in the binary format of COPY, which PostgreSQL reads fastest.
//!
//! ```text
//! "PGCOPY\n\xff\r\n\0"  flags: i32  extension: i32
//! per row:   number of columns: i16, then per column its length: i32 (-1: null) and its bytes
//! -1: i16
//! ```
//!
//! What PostgreSQL cannot store is found here, row by row: U+0000 in a text, a time out of range.

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, Float64Array, Int32Array,
    Int64Array, ListArray, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{
    Date32Type, Field, Float64Type, Int32Type, Int64Type, Schema, TimestampMicrosecondType,
};
use bytes::{BufMut, Bytes, BytesMut};

use super::super::SinkError;
use super::schema::{ColumnType, Scalar, Table};
use crate::query::encode;

const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// PostgreSQL counts from 2000-01-01.
const EPOCH_MICROS: i64 = 946_684_800_000_000;
const EPOCH_DAYS: i32 = 10_957;
/// From 4714-11-24 BC to before 294277-01-01, as PostgreSQL counts.
const MICROS: std::ops::Range<i64> = -211_813_488_000_000_000..9_223_371_331_200_000_000;
const DAYS: std::ops::Range<i32> = -2_451_545..2_145_031_949;

/// Why PostgreSQL cannot store a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum InvalidValue {
    #[error("PostgreSQL cannot store the character U+0000")]
    Nul,
    #[error("the time is outside the range of PostgreSQL")]
    Time,
    #[error("the value is too long for PostgreSQL")]
    Long,
}

/// A row that cannot be stored.
#[derive(Debug, PartialEq, Eq)]
pub struct RefusedAt {
    /// Its index in the batch.
    pub row: usize,
    pub reason: String,
}

/// Rows of one table, encoded.
#[derive(Default)]
pub struct CopyBuffer {
    bytes: BytesMut,
    /// How many rows it has.
    pub rows: usize,
    /// Whether a row retracts another.
    pub has_retracted: bool,
    /// Whether one does whose key has a null.
    pub has_retracted_null: bool,
}

impl CopyBuffer {
    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// What COPY is sent. What the buffer says of its rows stays.
    pub fn take_bytes(&mut self) -> Bytes {
        self.bytes.put_i16(-1);
        std::mem::take(&mut self.bytes).freeze()
    }

    /// Adds the rows of a batch, with their places and whether each retracts another. Returns
    /// those that cannot be stored.
    pub fn add(
        &mut self,
        table: &Table,
        batch: &RecordBatch,
        first_place: i64,
        is_retracted: impl Fn(usize) -> bool,
    ) -> Result<Vec<RefusedAt>, SinkError> {
        let columns = table.columns.iter().zip(batch.columns());
        let columns = columns
            .map(|(column, array)| Values::of(column.ty, array))
            .collect::<Result<Vec<_>, _>>()?;
        let key: Vec<&ArrayRef> = table.key.iter().map(|c| batch.column(*c)).collect();
        if self.rows == 0 {
            self.bytes.put_slice(HEADER);
        }
        let mut refused = Vec::new();
        for row in 0..batch.num_rows() {
            let start = self.bytes.len();
            let is_retracted = is_retracted(row);
            self.bytes.put_i16(columns.len() as i16 + 2);
            let mut values = columns.iter();
            if let Err(reason) = values.try_for_each(|values| values.put(row, &mut self.bytes)) {
                self.bytes.truncate(start);
                let reason = reason.to_string();
                refused.push(RefusedAt { row, reason });
                continue;
            }
            self.bytes.put_i32(8);
            self.bytes.put_i64(first_place + row as i64);
            self.bytes.put_i32(1);
            self.bytes.put_u8(u8::from(is_retracted));
            self.rows += 1;
            self.has_retracted |= is_retracted;
            self.has_retracted_null |= is_retracted && key.iter().any(|array| array.is_null(row));
        }
        Ok(refused)
    }
}

/// The values of a column.
enum Values<'a> {
    Boolean(&'a BooleanArray),
    Integer(&'a Int32Array),
    BigInt(&'a Int64Array),
    Double(&'a Float64Array),
    Text(&'a StringArray),
    Timestamp(&'a TimestampMicrosecondArray),
    Date(&'a Date32Array),
    Bytes(&'a BinaryArray),
    Array(&'a ListArray, Scalar, Box<Values<'a>>),
    Json(&'a ArrayRef, Vec<Vec<u8>>),
}

impl<'a> Values<'a> {
    fn of(ty: ColumnType, array: &'a ArrayRef) -> Result<Self, SinkError> {
        let differs = || {
            SinkError::Halted(format!(
                "a column of type {} has values of type {}",
                ty.name(),
                array.data_type()
            ))
        };
        match ty {
            ColumnType::Scalar(scalar) => Self::scalar(scalar, array).ok_or_else(differs),
            ColumnType::Array(scalar) => {
                let list = array.as_list_opt::<i32>().ok_or_else(differs)?;
                let items = Self::scalar(scalar, list.values()).ok_or_else(differs)?;
                Ok(Self::Array(list, scalar, Box::new(items)))
            }
            ColumnType::Json => Ok(Self::Json(array, json_texts(array)?)),
        }
    }

    fn scalar(scalar: Scalar, array: &'a ArrayRef) -> Option<Self> {
        Some(match scalar {
            Scalar::Boolean => Self::Boolean(array.as_boolean_opt()?),
            Scalar::Integer => Self::Integer(array.as_primitive_opt::<Int32Type>()?),
            Scalar::BigInt => Self::BigInt(array.as_primitive_opt::<Int64Type>()?),
            Scalar::Double => Self::Double(array.as_primitive_opt::<Float64Type>()?),
            Scalar::Text => Self::Text(array.as_string_opt()?),
            Scalar::Timestamp => {
                Self::Timestamp(array.as_primitive_opt::<TimestampMicrosecondType>()?)
            }
            Scalar::Date => Self::Date(array.as_primitive_opt::<Date32Type>()?),
            Scalar::Bytes => Self::Bytes(array.as_binary_opt()?),
        })
    }

    fn is_null(&self, row: usize) -> bool {
        match self {
            Self::Boolean(array) => array.is_null(row),
            Self::Integer(array) => array.is_null(row),
            Self::BigInt(array) => array.is_null(row),
            Self::Double(array) => array.is_null(row),
            Self::Text(array) => array.is_null(row),
            Self::Timestamp(array) => array.is_null(row),
            Self::Date(array) => array.is_null(row),
            Self::Bytes(array) => array.is_null(row),
            Self::Array(array, ..) => array.is_null(row),
            Self::Json(array, _) => array.is_null(row),
        }
    }

    /// The length of a value, then its bytes.
    fn put(&self, row: usize, out: &mut BytesMut) -> Result<(), InvalidValue> {
        if self.is_null(row) {
            out.put_i32(-1);
            return Ok(());
        }
        let start = out.len();
        out.put_i32(0);
        self.put_bytes(row, out)?;
        let length = i32::try_from(out.len() - start - 4).map_err(|_| InvalidValue::Long)?;
        out[start..start + 4].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }

    fn put_bytes(&self, row: usize, out: &mut BytesMut) -> Result<(), InvalidValue> {
        match self {
            Self::Boolean(array) => out.put_u8(u8::from(array.value(row))),
            Self::Integer(array) => out.put_i32(array.value(row)),
            Self::BigInt(array) => out.put_i64(array.value(row)),
            Self::Double(array) => out.put_f64(array.value(row)),
            Self::Bytes(array) => out.put_slice(array.value(row)),
            Self::Text(array) => {
                let text = array.value(row).as_bytes();
                if memchr::memchr(0, text).is_some() {
                    return Err(InvalidValue::Nul);
                }
                out.put_slice(text);
            }
            Self::Timestamp(array) => {
                let micros = array.value(row).checked_sub(EPOCH_MICROS);
                let micros = micros.filter(|micros| MICROS.contains(micros));
                out.put_i64(micros.ok_or(InvalidValue::Time)?);
            }
            Self::Date(array) => {
                let days = array.value(row).checked_sub(EPOCH_DAYS);
                let days = days.filter(|days| DAYS.contains(days));
                out.put_i32(days.ok_or(InvalidValue::Time)?);
            }
            Self::Array(array, scalar, items) => {
                let (from, length) = (array.value_offsets()[row], array.value_length(row));
                let items_of_row = from as usize..(from + length) as usize;
                out.put_i32(i32::from(length > 0));
                out.put_i32(i32::from(items_of_row.clone().any(|at| items.is_null(at))));
                out.put_i32(scalar.oid());
                if length > 0 {
                    out.put_i32(length);
                    out.put_i32(1);
                }
                for item in items_of_row {
                    items.put(item, out)?;
                }
            }
            Self::Json(_, texts) => {
                if has_escaped_nul(&texts[row]) {
                    return Err(InvalidValue::Nul);
                }
                // The version of the format.
                out.put_u8(1);
                out.put_slice(&texts[row]);
            }
        }
        Ok(())
    }
}

/// The JSON of each value.
fn json_texts(array: &ArrayRef) -> Result<Vec<Vec<u8>>, SinkError> {
    const BEFORE: usize = "{\"v\":".len();
    let field = Field::new("v", array.data_type().clone(), true);
    let schema = std::sync::Arc::new(Schema::new(vec![field]));
    let failed = SinkError::Unavailable;
    let column = RecordBatch::try_new(schema.clone(), vec![array.clone()]);
    let column = column.map_err(|e| failed(e.to_string()))?;
    let mut texts = Vec::with_capacity(array.len());
    encode::each_row(&schema, &[column], |row| {
        texts.push(row.get(BEFORE..row.len() - 1).unwrap_or(b"null").to_vec());
        Ok(())
    })
    .map_err(|e| failed(e.to_string()))?;
    Ok(texts)
}

/// Whether a text of JSON has the escape of U+0000, and not a backslash before `u0000`.
fn has_escaped_nul(json: &[u8]) -> bool {
    memchr::memmem::find_iter(json, b"\\u0000").any(|at| {
        let before = json[..at].iter().rev();
        before.take_while(|byte| **byte == b'\\').count() % 2 == 0
    })
}

/// The rows of a table with null in all columns except the key and the first ones.
pub fn keys_only(table: &Table, batch: &RecordBatch, first: usize) -> Option<RecordBatch> {
    let columns = batch.columns().iter().enumerate().map(|(at, array)| {
        if at < first || table.key.contains(&at) {
            array.clone()
        } else {
            arrow::array::new_null_array(array.data_type(), array.len())
        }
    });
    let fields = batch.schema();
    let nullable = fields
        .fields()
        .iter()
        .map(|field| field.as_ref().clone().with_nullable(true));
    let schema = Schema::new(nullable.collect::<Vec<_>>());
    RecordBatch::try_new(schema.into(), columns.collect()).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::StructArray;
    use arrow::buffer::OffsetBuffer;
    use arrow::datatypes::DataType;

    use super::super::schema::{Column, Kind};
    use super::*;

    fn table(batch: &RecordBatch) -> Table {
        let schema = batch.schema();
        let columns = schema.fields().iter().map(|field| Column {
            name: field.name().clone(),
            ty: ColumnType::of(field.data_type()),
        });
        Table {
            name: "t".into(),
            kind: Kind::Window,
            columns: columns.collect(),
            key: vec![0],
            foreign_keys: Vec::new(),
        }
    }

    fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true)))
            .expect("a batch")
    }

    #[test]
    fn rows_are_encoded_and_those_that_cannot_be_stored_are_left_out() {
        let texts = StringArray::from(vec![Some("a"), None, Some("x\0y"), Some("b")]);
        let times = TimestampMicrosecondArray::from(vec![EPOCH_MICROS, 0, 0, i64::MIN]);
        let rows = batch(vec![
            ("k", Arc::new(texts)),
            ("t", Arc::new(times.with_timezone("UTC"))),
        ]);
        let mut buffer = CopyBuffer::default();
        let refused = buffer
            .add(&table(&rows), &rows, 7, |row| row == 1)
            .expect("encoded");
        let refused: Vec<(usize, &str)> = refused
            .iter()
            .map(|refused| (refused.row, refused.reason.as_str()))
            .collect();
        assert_eq!(
            refused,
            [
                (2, "PostgreSQL cannot store the character U+0000"),
                (3, "the time is outside the range of PostgreSQL"),
            ]
        );
        assert_eq!(buffer.rows, 2);
        assert!(buffer.has_retracted && buffer.has_retracted_null);
        let mut expected = HEADER.to_vec();
        expected.extend([0, 4, 0, 0, 0, 1, b'a', 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1, 0]);
        expected.extend([0, 4, 255, 255, 255, 255, 0, 0, 0, 8]);
        expected.extend((-EPOCH_MICROS).to_be_bytes());
        expected.extend([0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 1, 1]);
        expected.extend([255, 255]);
        assert_eq!(buffer.take_bytes(), expected);
        assert_eq!((buffer.rows, buffer.len()), (2, 0));
    }

    #[test]
    fn lists_are_arrays_and_structs_are_json() {
        let items = Arc::new(Field::new("item", DataType::Int32, true));
        let values = Int32Array::from(vec![Some(1), None]);
        let offsets = OffsetBuffer::new(vec![0, 2, 2].into());
        let list = ListArray::new(items, offsets, Arc::new(values), None);
        let field = Arc::new(Field::new("x", DataType::Utf8, true));
        let text: ArrayRef = Arc::new(StringArray::from(vec!["\\u0000", "\0"]));
        let object = StructArray::from(vec![(field, text)]);
        let rows = batch(vec![("l", Arc::new(list)), ("o", Arc::new(object))]);
        let mut buffer = CopyBuffer::default();
        let refused = buffer
            .add(&table(&rows), &rows, 0, |_| false)
            .expect("encoded");
        assert_eq!(refused.len(), 1);
        assert_eq!(refused[0].row, 1);
        let bytes = buffer.take_bytes();
        let list = [
            0, 0, 0, 32, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 23, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 4,
            0, 0, 0, 1, 255, 255, 255, 255,
        ];
        let start = HEADER.len() + 2;
        assert_eq!(bytes[start..start + list.len()], list);
        let json = b"\x01{\"x\":\"\\\\u0000\"}";
        assert!(memchr::memmem::find(&bytes, json).is_some(), "{bytes:?}");
    }
}
