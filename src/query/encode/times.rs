//! Times of Weir's own type as JSON, without a format string that is interpreted for each value.

use arrow::array::{Array, AsArray, PrimitiveArray};
use arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};
use arrow_json::Encoder;
use chrono::{DateTime, Datelike as _};

use super::LOCAL_TIME_FORMAT;
use crate::event::{MICROS_PER_DAY, MICROS_PER_SECOND, Micros};
use crate::query::time_zones::is_utc;

/// The years 0000 to 9999, which have four digits and no sign.
const FOUR_DIGIT_YEARS: std::ops::Range<Micros> = -62_167_219_200_000_000..253_402_300_800_000_000;

/// An encoder of times in microseconds that are in UTC or have no zone; none of other values, which
/// are left to the formats of the options.
pub fn encoder<'a>(array: &'a dyn Array) -> Option<Box<dyn Encoder + 'a>> {
    let end = match array.data_type() {
        DataType::Timestamp(TimeUnit::Microsecond, None) => "\"",
        DataType::Timestamp(TimeUnit::Microsecond, Some(zone)) if is_utc(zone) => "Z\"",
        _ => return None,
    };
    let times = array.as_primitive::<TimestampMicrosecondType>();
    let day = None;
    Some(Box::new(TimeEncoder { times, end, day }))
}

/// A day since 1970, and its text up to the time of day: a quote, the date, `T`.
type Day = (i64, [u8; 12]);

struct TimeEncoder<'a> {
    times: &'a PrimitiveArray<TimestampMicrosecondType>,
    /// What follows the milliseconds.
    end: &'static str,
    /// That of the last value: most rows have the one of the row before.
    day: Option<Day>,
}

impl Encoder for TimeEncoder<'_> {
    fn encode(&mut self, at: usize, out: &mut Vec<u8>) {
        let time = self.times.value(at);
        if !FOUR_DIGIT_YEARS.contains(&time) {
            out.push(b'"');
            out.extend_from_slice(far_away(time).as_bytes());
            out.extend_from_slice(self.end.as_bytes());
            return;
        }
        let number = time.div_euclid(MICROS_PER_DAY);
        let day = match self.day {
            Some(day) if day.0 == number => day,
            _ => (number, date(time)),
        };
        self.day = Some(day);
        out.extend_from_slice(&day.1);
        out.extend_from_slice(&time_of_day(time.rem_euclid(MICROS_PER_DAY)));
        out.extend_from_slice(self.end.as_bytes());
    }
}

/// A time whose year has a sign.
fn far_away(time: Micros) -> String {
    DateTime::from_timestamp_micros(time).map_or_else(
        || format!("{time} µs since 1970"),
        |time| time.format(LOCAL_TIME_FORMAT).to_string(),
    )
}

/// `"YYYY-MM-DDT` of a time in a year of four digits.
fn date(time: Micros) -> [u8; 12] {
    let date = DateTime::from_timestamp_micros(time).unwrap_or_default();
    let (year, month, day) = (
        i64::from(date.year()),
        i64::from(date.month()),
        i64::from(date.day()),
    );
    [
        b'"',
        digit(year / 1_000),
        digit(year / 100),
        digit(year / 10),
        digit(year),
        b'-',
        digit(month / 10),
        digit(month),
        b'-',
        digit(day / 10),
        digit(day),
        b'T',
    ]
}

/// The last decimal digit of a number.
fn digit(number: i64) -> u8 {
    b'0' + (number % 10) as u8
}

/// `HH:MM:SS.mmm` of microseconds since midnight.
fn time_of_day(micros: Micros) -> [u8; 12] {
    let (seconds, millis) = (
        micros / MICROS_PER_SECOND,
        micros % MICROS_PER_SECOND / 1_000,
    );
    let [hours, minutes, seconds] = [seconds / 3_600, seconds / 60 % 60, seconds % 60];
    [
        digit(hours / 10),
        digit(hours),
        b':',
        digit(minutes / 10),
        digit(minutes),
        b':',
        digit(seconds / 10),
        digit(seconds),
        b'.',
        digit(millis / 100),
        digit(millis / 10),
        digit(millis),
    ]
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, TimestampMicrosecondArray};
    use proptest::prelude::*;

    use crate::query::encode::{each_row, tests::batch};

    /// Times of which `chrono` knows the date, most of them in years of four digits.
    const SHOWN: std::ops::Range<i64> = -100_000_000_000_000_000..300_000_000_000_000_000;

    /// The values as JSON, and as the formats of the options would have them.
    fn check(times: &[Option<i64>], zone: Option<&str>) {
        let array = TimestampMicrosecondArray::from(times.to_vec()).with_timezone_opt(zone);
        let rows = batch(vec![("t", Arc::new(array) as ArrayRef)]);
        let mut encoded = Vec::new();
        each_row(&rows.schema(), std::slice::from_ref(&rows), |row| {
            encoded.push(String::from_utf8_lossy(row).into_owned());
            Ok(())
        })
        .expect("encoded");
        let end = if zone.is_some() { "Z" } else { "" };
        let expected = times.iter().map(|time| match time {
            None => "{\"t\":null}".to_owned(),
            Some(time) => {
                let time = chrono::DateTime::from_timestamp_micros(*time).expect("in range");
                format!(
                    "{{\"t\":\"{}{end}\"}}",
                    time.format("%Y-%m-%dT%H:%M:%S%.3f")
                )
            }
        });
        assert_eq!(encoded, expected.collect::<Vec<_>>());
    }

    #[test]
    fn times_at_the_ends_of_days_and_of_years_with_four_digits() {
        let (year_0, year_10000) = (-62_167_219_200_000_000, 253_402_300_800_000_000);
        for zone in [None, Some("UTC")] {
            check(&[Some(0), Some(-1), None, Some(86_399_999_999)], zone);
            check(&[Some(year_0), Some(year_10000 - 1)], zone);
            check(&[Some(year_0 - 1), Some(0), Some(year_10000)], zone);
            check(&[None], zone);
        }
    }

    proptest! {
        #[test]
        fn a_time_is_as_chrono_formats_it(
            times in prop::collection::vec(prop::option::of(SHOWN), 1..50),
        ) {
            check(&times, Some("UTC"));
        }
    }
}
