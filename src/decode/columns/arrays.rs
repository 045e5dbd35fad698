//! Filled columns to Arrow arrays.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, ListArray, MapArray,
    StringArray, StructArray, TimestampMicrosecondArray,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Fields};

use super::{ColumnBuilder, Data, KeyTexts};
use crate::schema::types;

impl ColumnBuilder {
    /// The Arrow array; all its fields are nullable, as the table's are.
    pub fn finish(self) -> ArrayRef {
        let length = self.valid.len();
        let nulls = self
            .valid
            .contains(&false)
            .then(|| NullBuffer::from(self.valid));
        match self.data {
            Data::BigInt(v) => Arc::new(Int64Array::new(v.into(), nulls)),
            Data::Int(v) => Arc::new(Int32Array::new(v.into(), nulls)),
            Data::Double(v) => Arc::new(Float64Array::new(v.into(), nulls)),
            Data::Boolean(v) => Arc::new(BooleanArray::new(v.into(), nulls)),
            Data::Timestamp { values, .. } => {
                Arc::new(TimestampMicrosecondArray::new(values.into(), nulls).with_timezone("UTC"))
            }
            Data::Text { bytes, ends, .. } => {
                let offsets = offsets(ends);
                Arc::new(StringArray::new(offsets, Buffer::from_vec(bytes), nulls))
            }
            Data::Struct { columns, .. } => struct_array(columns, nulls, length),
            Data::Array { item, ends } => {
                let items = item.finish();
                let field = Arc::new(Field::new("item", items.data_type().clone(), true));
                Arc::new(ListArray::new(field, offsets(ends), items, nulls))
            }
            Data::Map { keys, values, ends } => map_array(keys, *values, ends, nulls),
        }
    }
}

fn struct_array(columns: Vec<ColumnBuilder>, nulls: Option<NullBuffer>, length: usize) -> ArrayRef {
    let names: Vec<String> = columns.iter().map(|c| c.name.clone()).collect();
    let arrays: Vec<ArrayRef> = columns.into_iter().map(ColumnBuilder::finish).collect();
    let fields: Fields = names
        .iter()
        .zip(&arrays)
        .map(|(n, a)| Field::new(n, a.data_type().clone(), true))
        .collect();
    Arc::new(
        StructArray::try_new_with_length(fields, arrays, nulls, length)
            .expect("every field has one value per row"),
    )
}

fn map_array(
    keys: KeyTexts,
    values: ColumnBuilder,
    ends: Vec<i32>,
    nulls: Option<NullBuffer>,
) -> ArrayRef {
    let DataType::Map(entries, ordered) = types::map() else {
        unreachable!("a map's type")
    };
    let DataType::Struct(fields) = entries.data_type() else {
        unreachable!("a map's entries")
    };
    let keys = StringArray::new(offsets(keys.ends), Buffer::from_vec(keys.bytes), None);
    let arrays: Vec<ArrayRef> = vec![Arc::new(keys), values.finish()];
    let items = StructArray::new(fields.clone(), arrays, None);
    Arc::new(MapArray::new(entries, offsets(ends), items, nulls, ordered))
}

/// Arrow's offsets: a zero, then each value's end.
fn offsets(ends: Vec<i32>) -> OffsetBuffer<i32> {
    let mut offsets = Vec::with_capacity(ends.len() + 1);
    offsets.push(0);
    offsets.extend(ends);
    OffsetBuffer::new(ScalarBuffer::from(offsets))
}
