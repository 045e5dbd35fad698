//! Bytes and items of a function's arguments, row by row.

use arrow::array::{Array, ArrayRef, AsArray, GenericListArray, OffsetSizeTrait};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::ColumnarValue;
use datafusion::scalar::ScalarValue;

/// An upper bound on the bytes of a value of a fixed-width type.
const FIXED_BYTES: u64 = 16;

/// A number for each row, or one for all.
pub enum RowNumbers {
    /// The same for all rows.
    One(u64),
    /// By row.
    Each(Vec<u64>),
}

impl RowNumbers {
    /// The number for a row; 0 beyond the last one.
    pub fn at(&self, row: usize) -> u64 {
        match self {
            Self::One(number) => *number,
            Self::Each(numbers) => numbers.get(row).copied().unwrap_or(0),
        }
    }
}

/// The properties of an argument that the size of a result depends on.
pub struct Argument {
    /// Bytes of the value in memory.
    pub bytes: RowNumbers,
    /// The items of a list, the value of a number, the bytes of a text.
    pub count: RowNumbers,
}

impl Argument {
    /// Measures an argument; a literal is measured once.
    pub fn from_value(value: &ColumnarValue) -> Result<Self> {
        match value {
            ColumnarValue::Scalar(scalar) => {
                let array = scalar.to_array()?;
                let one =
                    |numbers: Vec<u64>| RowNumbers::One(numbers.first().copied().unwrap_or(0));
                Ok(Self {
                    bytes: one(bytes(&array)),
                    count: one(counts(&array)?),
                })
            }
            ColumnarValue::Array(array) => Ok(Self {
                bytes: RowNumbers::Each(bytes(array)),
                count: RowNumbers::Each(counts(array)?),
            }),
        }
    }
}

/// Bytes of each value.
pub fn bytes(array: &ArrayRef) -> Vec<u64> {
    let rows = array.len();
    match array.data_type() {
        DataType::Utf8 => lengths(array.as_string::<i32>().value_offsets()),
        DataType::LargeUtf8 => lengths(array.as_string::<i64>().value_offsets()),
        DataType::Binary => lengths(array.as_binary::<i32>().value_offsets()),
        DataType::LargeBinary => lengths(array.as_binary::<i64>().value_offsets()),
        DataType::Utf8View => array
            .as_string_view()
            .views()
            .iter()
            .map(|view| u64::from(*view as u32))
            .collect(),
        DataType::BinaryView => array
            .as_binary_view()
            .views()
            .iter()
            .map(|view| u64::from(*view as u32))
            .collect(),
        DataType::FixedSizeBinary(width) => vec![*width as u64; rows],
        DataType::List(_) => list_bytes(array.as_list::<i32>()),
        DataType::LargeList(_) => list_bytes(array.as_list::<i64>()),
        DataType::FixedSizeList(_, width) => {
            let (items, width) = (bytes(array.as_fixed_size_list().values()), *width as usize);
            (0..rows)
                .map(|row| items.iter().skip(row * width).take(width).sum())
                .collect()
        }
        DataType::Map(..) => {
            let map = array.as_map();
            let entries: ArrayRef = std::sync::Arc::new(map.entries().clone());
            ranges(map.value_offsets(), &bytes(&entries))
        }
        DataType::Struct(_) => {
            let columns: Vec<Vec<u64>> = array.as_struct().columns().iter().map(bytes).collect();
            (0..rows)
                .map(|row| {
                    columns
                        .iter()
                        .map(|column| column.get(row).copied().unwrap_or(0))
                        .sum()
                })
                .collect()
        }
        DataType::Dictionary(_, value) => match cast(array, value) {
            Ok(values) => bytes(&values),
            Err(_) => vec![array.get_array_memory_size() as u64; rows],
        },
        // JSON values of several types: the array's memory, divided evenly.
        DataType::Union(..) => {
            vec![array.get_array_memory_size() as u64 / rows.max(1) as u64 + FIXED_BYTES; rows]
        }
        _ => vec![FIXED_BYTES; rows],
    }
}

fn lengths<O: OffsetSizeTrait>(offsets: &[O]) -> Vec<u64> {
    offsets
        .windows(2)
        .map(|ends| (ends[1] - ends[0]).as_usize() as u64)
        .collect()
}

fn list_bytes<O: OffsetSizeTrait>(list: &GenericListArray<O>) -> Vec<u64> {
    ranges(list.value_offsets(), &bytes(list.values()))
}

/// Sums of the items' bytes.
fn ranges<O: OffsetSizeTrait>(offsets: &[O], items: &[u64]) -> Vec<u64> {
    let mut sums = Vec::with_capacity(items.len() + 1);
    sums.push(0_u64);
    for item in items {
        sums.push(sums.last().copied().unwrap_or(0).saturating_add(*item));
    }
    let at = |offset: O| sums.get(offset.as_usize()).copied().unwrap_or(0);
    offsets
        .windows(2)
        .map(|ends| at(ends[1]) - at(ends[0]))
        .collect()
}

/// Items of lists, values of whole numbers (0 if negative), bytes of texts.
pub fn counts(array: &ArrayRef) -> Result<Vec<u64>> {
    Ok(match array.data_type() {
        DataType::List(_) => lengths(array.as_list::<i32>().value_offsets()),
        DataType::LargeList(_) => lengths(array.as_list::<i64>().value_offsets()),
        DataType::FixedSizeList(_, width) => vec![*width as u64; array.len()],
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => bytes(array),
        ty if ty.is_integer() => {
            let numbers = cast(array, &DataType::Decimal128(38, 0))?;
            let numbers = numbers.as_primitive::<arrow::datatypes::Decimal128Type>();
            // A negative number gives an empty result, except in ranges, which use `signed`.
            numbers
                .iter()
                .map(|n| u64::try_from(n.unwrap_or(0).max(0)).unwrap_or(u64::MAX))
                .collect()
        }
        _ => vec![0; array.len()],
    })
}

/// The whole number of a row; times and dates in nanoseconds, intervals as the fewest nanoseconds
/// that they can last.
pub fn signed(value: &ColumnarValue, row: usize) -> Result<Option<i128>> {
    const DAY: i128 = 86_400_000_000_000;
    let scalar = match value {
        ColumnarValue::Scalar(scalar) => scalar.clone(),
        ColumnarValue::Array(array) => ScalarValue::try_from_array(array, row)?,
    };
    Ok(match scalar {
        ScalarValue::IntervalMonthDayNano(Some(interval)) => {
            let parts = [
                i128::from(interval.months) * 28 * DAY,
                i128::from(interval.days) * DAY,
            ];
            let parts = [parts[0], parts[1], i128::from(interval.nanoseconds)];
            let is_mixed = parts.iter().any(|p| *p < 0) && parts.iter().any(|p| *p > 0);
            // Parts of both signs may add up to zero in some months.
            Some(if is_mixed { 1 } else { parts.iter().sum() })
        }
        ScalarValue::Date32(Some(days)) => Some(i128::from(days) * DAY),
        ScalarValue::TimestampNanosecond(Some(time), _) => Some(i128::from(time)),
        ScalarValue::TimestampMicrosecond(Some(time), _) => Some(i128::from(time) * 1_000),
        ScalarValue::TimestampMillisecond(Some(time), _) => Some(i128::from(time) * 1_000_000),
        ScalarValue::TimestampSecond(Some(time), _) => Some(i128::from(time) * 1_000_000_000),
        other => match other.cast_to(&DataType::Int64) {
            Ok(ScalarValue::Int64(number)) => number.map(i128::from),
            _ => None,
        },
    })
}
