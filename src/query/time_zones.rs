//! Times with a time zone, as `at time zone` returns them, are shown as local times without one.

use std::sync::Arc;

use arrow::array::timezone::Tz;
use arrow::array::{
    Array, ArrayRef, AsArray, ListArray, RecordBatch, StructArray, TimestampMicrosecondArray,
};
use arrow::compute::{cast, max, min};
use arrow::datatypes::{DataType, Date32Type, FieldRef, Int64Type, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;

use chrono::{DateTime, Offset, TimeZone};

/// Converts times with a zone other than UTC to local times without a zone.
pub fn to_local(
    schema: &SchemaRef,
    batches: &[RecordBatch],
) -> Result<(SchemaRef, Vec<RecordBatch>), ArrowError> {
    if !schema.fields().iter().any(|f| has_zone(f.data_type())) {
        return Ok((schema.clone(), batches.to_vec()));
    }
    let fields: Vec<FieldRef> = schema.fields().iter().map(local_field).collect();
    let schema: SchemaRef = Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()));
    let batches = batches
        .iter()
        .map(|batch| {
            let columns = batch
                .columns()
                .iter()
                .map(local_column)
                .collect::<Result<Vec<_>, _>>()?;
            RecordBatch::try_new(schema.clone(), columns)
        })
        .collect::<Result<_, _>>()?;
    Ok((schema, batches))
}

/// Why a column cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum NotDisplayable {
    /// Outside the years that calendars are computed for.
    #[error("a time of the result is outside the years -262143 to 262142, which cannot be shown")]
    OutOfRange,
    #[error("`{0}` is not a time zone; write for example Europe/Berlin")]
    UnknownZone(Arc<str>),
    #[error(transparent)]
    Cast(ArrowError),
}

/// Checks the times of a column, also those within lists, maps and structs.
pub fn check_displayable(array: &ArrayRef) -> Result<(), NotDisplayable> {
    let out_of_range = || NotDisplayable::OutOfRange;
    let fits = |micros: Option<i64>| micros.and_then(DateTime::from_timestamp_micros).is_some();
    match array.data_type() {
        DataType::Timestamp(unit, zone) => {
            if let Some(zone) = zone {
                zone.parse::<Tz>()
                    .map_err(|_| NotDisplayable::UnknownZone(zone.clone()))?;
            }
            let factor = match unit {
                TimeUnit::Second => 1_000_000,
                TimeUnit::Millisecond => 1_000,
                TimeUnit::Microsecond => 1,
                // Nanoseconds end in the year 2262.
                TimeUnit::Nanosecond => return Ok(()),
            };
            let numbers = cast(array, &DataType::Int64).map_err(NotDisplayable::Cast)?;
            let numbers = numbers.as_primitive::<Int64Type>();
            let fits = |n: Option<i64>| n.is_none_or(|n| fits(n.checked_mul(factor)));
            [min(numbers), max(numbers)]
                .into_iter()
                .all(fits)
                .then_some(())
                .ok_or_else(out_of_range)
        }
        DataType::Date32 => {
            let days = array.as_primitive::<Date32Type>();
            let fits =
                |n: Option<i32>| n.is_none_or(|n| fits(i64::from(n).checked_mul(86_400_000_000)));
            [min(days), max(days)]
                .into_iter()
                .all(fits)
                .then_some(())
                .ok_or_else(out_of_range)
        }
        DataType::List(_) => check_displayable(array.as_list::<i32>().values()),
        DataType::LargeList(_) => check_displayable(array.as_list::<i64>().values()),
        DataType::FixedSizeList(..) => check_displayable(array.as_fixed_size_list().values()),
        DataType::Map(..) => array
            .as_map()
            .entries()
            .columns()
            .iter()
            .try_for_each(check_displayable),
        DataType::Struct(_) => array
            .as_struct()
            .columns()
            .iter()
            .try_for_each(check_displayable),
        _ => Ok(()),
    }
}

pub fn is_utc(zone: &str) -> bool {
    matches!(zone, "UTC" | "Z" | "+00:00" | "+00")
}

fn has_zone(ty: &DataType) -> bool {
    match ty {
        DataType::Timestamp(_, Some(zone)) => !is_utc(zone),
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::Map(item, _) => has_zone(item.data_type()),
        DataType::Struct(fields) => fields.iter().any(|f| has_zone(f.data_type())),
        _ => false,
    }
}

fn local_field(field: &FieldRef) -> FieldRef {
    Arc::new(
        field
            .as_ref()
            .clone()
            .with_data_type(local_type(field.data_type())),
    )
}

/// The type that a column has after [`to_local`].
fn local_type(ty: &DataType) -> DataType {
    match ty {
        DataType::Timestamp(_, Some(zone)) if !is_utc(zone) => {
            DataType::Timestamp(TimeUnit::Microsecond, None)
        }
        DataType::List(item) => DataType::List(local_field(item)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(local_field).collect()),
        // Rare: shown in UTC, which is the same instant.
        other if has_zone(other) => in_utc(other),
        other => other.clone(),
    }
}

fn in_utc(ty: &DataType) -> DataType {
    let field_in_utc = |field: &FieldRef| {
        Arc::new(
            field
                .as_ref()
                .clone()
                .with_data_type(in_utc(field.data_type())),
        )
    };
    match ty {
        DataType::Timestamp(unit, Some(_)) => DataType::Timestamp(*unit, Some("UTC".into())),
        DataType::List(item) => DataType::List(field_in_utc(item)),
        DataType::LargeList(item) => DataType::LargeList(field_in_utc(item)),
        DataType::FixedSizeList(item, n) => DataType::FixedSizeList(field_in_utc(item), *n),
        DataType::Map(entries, sorted) => DataType::Map(field_in_utc(entries), *sorted),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(field_in_utc).collect()),
        other => other.clone(),
    }
}

fn local_column(array: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    if !has_zone(array.data_type()) {
        return Ok(array.clone());
    }
    match array.data_type() {
        DataType::Timestamp(_, Some(zone)) => {
            let zone: Tz = zone.parse()?;
            let times = cast(
                array,
                &DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            )?;
            let times = times.as_any().downcast_ref::<TimestampMicrosecondArray>();
            let times = times.ok_or_else(|| {
                ArrowError::CastError("a time column is not a timestamp array".into())
            })?;
            let offset = |time: i64| {
                let utc = DateTime::from_timestamp_micros(time)
                    .unwrap_or_default()
                    .naive_utc();
                i64::from(zone.offset_from_utc_datetime(&utc).fix().local_minus_utc()) * 1_000_000
            };
            let local = times
                .iter()
                .map(|time| time.map(|time| time.saturating_add(offset(time))));
            Ok(Arc::new(local.collect::<TimestampMicrosecondArray>()))
        }
        DataType::List(_) => {
            let list = array.as_any().downcast_ref::<ListArray>();
            let list = list
                .ok_or_else(|| ArrowError::CastError("a list column is not a list array".into()))?;
            let items = local_column(list.values())?;
            let DataType::List(item) = local_type(array.data_type()) else {
                return Ok(array.clone());
            };
            Ok(Arc::new(ListArray::try_new(
                item,
                list.offsets().clone(),
                items,
                list.nulls().cloned(),
            )?))
        }
        DataType::Struct(_) => {
            let row = array.as_any().downcast_ref::<StructArray>();
            let row = row.ok_or_else(|| {
                ArrowError::CastError("a struct column is not a struct array".into())
            })?;
            let columns = row
                .columns()
                .iter()
                .map(local_column)
                .collect::<Result<Vec<_>, _>>()?;
            let DataType::Struct(fields) = local_type(array.data_type()) else {
                return Ok(array.clone());
            };
            Ok(Arc::new(StructArray::try_new(
                fields,
                columns,
                row.nulls().cloned(),
            )?))
        }
        other => cast(array, &local_type(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::TimestampNanosecondArray;
    use arrow::datatypes::Field;

    fn column(array: ArrayRef) -> (SchemaRef, Vec<RecordBatch>) {
        let schema = Arc::new(Schema::new(vec![Field::new(
            "t",
            array.data_type().clone(),
            true,
        )]));
        (
            schema.clone(),
            vec![RecordBatch::try_new(schema, vec![array]).expect("a batch")],
        )
    }

    fn json(array: ArrayRef) -> String {
        let (schema, batches) = column(array);
        String::from_utf8(crate::query::encode::to_ndjson(&schema, &batches).expect("JSON"))
            .expect("text")
    }

    #[test]
    fn a_time_is_shown_in_utc_or_as_a_local_one() {
        // Half an hour before and after the start of daylight saving time in Brussels.
        let times = [1_616_891_400_000_000_000, 1_616_895_000_000_000_000];
        let in_zone = |zone: Option<&str>| -> ArrayRef {
            let times = TimestampNanosecondArray::from(vec![Some(times[0]), Some(times[1]), None]);
            Arc::new(times.with_timezone_opt(zone.map(Arc::<str>::from)))
        };
        let lines =
            |a: &str, b: &str| format!("{{\"t\":\"{a}\"}}\n{{\"t\":\"{b}\"}}\n{{\"t\":null}}\n");
        assert_eq!(
            json(in_zone(Some("UTC"))),
            lines("2021-03-28T00:30:00.000Z", "2021-03-28T01:30:00.000Z")
        );
        assert_eq!(
            json(in_zone(None)),
            lines("2021-03-28T00:30:00.000", "2021-03-28T01:30:00.000")
        );
        assert_eq!(
            json(in_zone(Some("Europe/Brussels"))),
            lines("2021-03-28T01:30:00.000", "2021-03-28T03:30:00.000")
        );
        assert_eq!(
            json(in_zone(Some("+05:30"))),
            lines("2021-03-28T06:00:00.000", "2021-03-28T07:00:00.000")
        );
    }

    #[test]
    fn times_that_cannot_be_shown_are_rejected() {
        let micros = |times: Vec<i64>, zone: &str| -> ArrayRef {
            Arc::new(TimestampMicrosecondArray::from(times).with_timezone(zone))
        };
        let shown = |array: &ArrayRef| check_displayable(array).map_err(|e| e.to_string());
        assert_eq!(
            shown(&micros(vec![0, 253_402_300_799_000_000], "Europe/Berlin")),
            Ok(())
        );
        assert!(shown(&micros(vec![0], "Mars/Phobos")).is_err_and(|e| e.contains("Mars/Phobos")));
        let far = micros(vec![0, i64::MAX], "UTC");
        let item = Arc::new(Field::new("item", far.data_type().clone(), true));
        let offsets = arrow::buffer::OffsetBuffer::from_lengths([2]);
        let list: ArrayRef = Arc::new(ListArray::new(item, offsets, far, None));
        assert!(shown(&list).is_err_and(|e| e.contains("cannot be shown")));
    }

    #[test]
    fn times_within_lists_and_structs_are_shown_alike() {
        let times: ArrayRef =
            Arc::new(TimestampMicrosecondArray::from(vec![0]).with_timezone("Asia/Kolkata"));
        let item = Arc::new(Field::new("item", times.data_type().clone(), true));
        let offsets = arrow::buffer::OffsetBuffer::from_lengths([1]);
        let list: ArrayRef = Arc::new(ListArray::new(item.clone(), offsets, times.clone(), None));
        assert_eq!(json(list), "{\"t\":[\"1970-01-01T05:30:00.000\"]}\n");
        let row: ArrayRef = Arc::new(StructArray::new(vec![item].into(), vec![times], None));
        assert_eq!(
            json(row),
            "{\"t\":{\"item\":\"1970-01-01T05:30:00.000\"}}\n"
        );
    }
}
