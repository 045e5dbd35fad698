//! How many bytes values take as JSON, known before they are written: names and escapes can make a
//! hundred times as many bytes of them.

use arrow::array::{Array, ArrayRef, AsArray, OffsetSizeTrait};
use arrow::datatypes::DataType;

/// A lower bound of the bytes of values as JSON.
pub(super) fn min_json_bytes(array: &dyn Array) -> u64 {
    fn texts<'a>(texts: impl Iterator<Item = Option<&'a str>>) -> u64 {
        texts.map(|text| text.map_or(4, escaped_bytes)).sum()
    }
    fn list<O: OffsetSizeTrait>(array: &dyn Array) -> u64 {
        let list = array.as_list::<O>();
        let (first, last) = (
            list.offsets()[0].as_usize(),
            list.offsets()[list.len()].as_usize(),
        );
        min_json_bytes(&list.values().slice(first, last - first)) + 2 * list.len() as u64
    }
    let rows = array.len() as u64;
    match array.data_type() {
        DataType::Utf8 => texts(array.as_string::<i32>().iter()),
        DataType::LargeUtf8 => texts(array.as_string::<i64>().iter()),
        DataType::Utf8View => texts(array.as_string_view().iter()),
        DataType::List(_) => list::<i32>(array),
        DataType::LargeList(_) => list::<i64>(array),
        DataType::FixedSizeList(..) => min_json_bytes(array.as_fixed_size_list().values()),
        DataType::Map(..) => {
            let map = array.as_map();
            let (first, last) = (map.offsets()[0] as usize, map.offsets()[map.len()] as usize);
            let entries = map.entries().slice(first, last - first);
            entries
                .columns()
                .iter()
                .map(|column| min_json_bytes(column))
                .sum::<u64>()
                + 2 * rows
        }
        DataType::Struct(_) => {
            let row = array.as_struct();
            // A null struct is written without names.
            let non_null = (array.len() - array.null_count()) as u64;
            let names: u64 = row
                .fields()
                .iter()
                .map(|f| escaped_bytes(f.name()) + 2)
                .sum();
            let values = |column: &ArrayRef| {
                if array.null_count() == 0 {
                    min_json_bytes(column)
                } else {
                    0
                }
            };
            non_null * names + row.columns().iter().map(values).sum::<u64>()
        }
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            let values = dictionary.values();
            let sizes: Vec<u64> = (0..values.len())
                .map(|at| min_json_bytes(&values.slice(at, 1)))
                .collect();
            let keys = dictionary.normalized_keys();
            let value_bytes = |(at, key): (usize, usize)| {
                if array.is_null(at) {
                    4
                } else {
                    sizes.get(key).copied().unwrap_or(0)
                }
            };
            keys.into_iter().enumerate().map(value_bytes).sum()
        }
        DataType::Timestamp(..) => rows * 4 + 20 * (array.len() - array.null_count()) as u64,
        _ => rows,
    }
}

/// Bytes of a text as JSON, with its quotes.
fn escaped_bytes(text: &str) -> u64 {
    let byte_length = |byte: u8| match byte {
        b'"' | b'\\' | 8 | 9 | 10 | 12 | 13 => 2,
        0..32 => 6,
        _ => 1,
    };
    text.bytes().map(byte_length).sum::<u64>() + 2
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{DictionaryArray, Int64Array, StructArray};
    use arrow::datatypes::Int32Type;

    use super::super::tests::{batch, nested};
    use super::super::to_ndjson;
    use super::*;

    #[test]
    fn the_minimum_is_between_half_and_all_of_the_written_bytes() {
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
            let min = min_json_bytes(&StructArray::from(part));
            assert!(min <= written && min * 2 > written, "{min} of {written}");
        }
    }
}
