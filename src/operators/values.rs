//! Values of columns: LSNs, times, and bytes to compare.

use arrow::array::{
    Array, ArrayRef, BooleanArray, Int64Array, RecordBatch, TimestampMicrosecondArray,
};
use arrow::datatypes::TimestampMicrosecondType;

use crate::event::Micros;

/// The LSN column of a stamped batch: rows of every table begin with it.
pub(crate) fn lsns(batch: &RecordBatch) -> &[i64] {
    batch
        .column(0)
        .as_any()
        .downcast_ref::<Int64Array>()
        .expect("the first column of stamped rows is their LSN")
        .values()
}

/// Times of a batch by a column of it.
pub(super) fn column_times(batch: &RecordBatch, column: usize) -> &[Micros] {
    batch
        .column(column)
        .as_any()
        .downcast_ref::<arrow::array::PrimitiveArray<TimestampMicrosecondType>>()
        .expect("a window's time was checked to be one")
        .values()
}

/// A number or time as an integer; null is the smallest.
pub(super) fn number(array: &ArrayRef, row: usize) -> i64 {
    use arrow::array::Int32Array;
    if array.is_null(row) {
        return i64::MIN;
    }
    let any = array.as_any();
    if let Some(a) = any.downcast_ref::<Int64Array>() {
        a.value(row)
    } else if let Some(a) = any.downcast_ref::<Int32Array>() {
        a.value(row).into()
    } else if let Some(a) = any.downcast_ref::<TimestampMicrosecondArray>() {
        a.value(row)
    } else {
        0
    }
}

/// Appends bytes that are equal exactly for equal scalar values, the same in every version of Weir:
/// a tag, then the value. `"ab"` gives 1, 2 as u64, `ab`; null gives 0.
pub(crate) fn canonical(array: &ArrayRef, row: usize, out: &mut Vec<u8>) {
    use arrow::array::{Float64Array, StringArray};
    if array.is_null(row) {
        out.push(0);
        return;
    }
    let any = array.as_any();
    if let Some(a) = any.downcast_ref::<StringArray>() {
        out.push(1);
        out.extend_from_slice(&(a.value(row).len() as u64).to_le_bytes());
        out.extend_from_slice(a.value(row).as_bytes());
    } else if let Some(a) = any.downcast_ref::<Float64Array>() {
        out.push(2);
        out.extend_from_slice(&a.value(row).to_bits().to_le_bytes());
    } else if let Some(a) = any.downcast_ref::<BooleanArray>() {
        out.extend_from_slice(&[3, u8::from(a.value(row))]);
    } else {
        out.push(4);
        out.extend_from_slice(&number(array, row).to_le_bytes());
    }
}
