//! `time_range` of a stream: the event times that are plausible.

use std::fmt;

use chrono::{DateTime, NaiveDate, SecondsFormat};
use serde::{Deserialize, Serialize};

use crate::event::Micros;

/// Why two texts are not a range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimeRangeError {
    /// Neither a date nor an RFC 3339 time, or of a year that is not among 1 to 9999.
    #[error(
        "time_range: `{0}` is not a date of the years 1 to 9999; write for example [\"1900-01-01\", \"2200-01-01\"]"
    )]
    NotADate(String),
    /// The start is not before the end.
    #[error("time_range: `{from}` is not before `{to}`")]
    Empty {
        /// The start as typed.
        from: String,
        /// The end as typed.
        to: String,
    },
}

/// From a time up to another one, exclusive. Written and stored as two dates, or RFC 3339 times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "[String; 2]", into = "[String; 2]")]
pub struct TimeRange(std::ops::Range<Micros>);

/// 1900-01-01 to 2200-01-01.
const DEFAULT: std::ops::Range<Micros> = -2_208_988_800_000_000..7_258_118_400_000_000;

impl Default for TimeRange {
    fn default() -> Self {
        Self(DEFAULT)
    }
}

impl TimeRange {
    /// Whether an event time is plausible.
    pub fn contains(&self, time: Micros) -> bool {
        self.0.contains(&time)
    }
}

/// A date, or an RFC 3339 time, of the years 1 to 9999.
fn parse_bound(text: &str) -> Result<Micros, TimeRangeError> {
    let date = NaiveDate::parse_from_str(text, "%Y-%m-%d")
        .ok()
        .and_then(|date| date.and_hms_opt(0, 0, 0));
    let micros = match date {
        Some(midnight) => Some(midnight.and_utc().timestamp_micros()),
        None => DateTime::parse_from_rfc3339(text)
            .ok()
            .map(|time| time.timestamp_micros()),
    };
    micros
        .filter(|micros| YEARS.contains(micros))
        .ok_or_else(|| TimeRangeError::NotADate(text.to_owned()))
}

/// The years 1 to 9999, with the end of the last one.
const YEARS: std::ops::RangeInclusive<Micros> = -62_135_596_800_000_000..=253_402_300_800_000_000;

impl TryFrom<[String; 2]> for TimeRange {
    type Error = TimeRangeError;

    fn try_from([from, to]: [String; 2]) -> Result<Self, TimeRangeError> {
        let range = parse_bound(&from)?..parse_bound(&to)?;
        if range.is_empty() {
            return Err(TimeRangeError::Empty { from, to });
        }
        Ok(Self(range))
    }
}

impl From<TimeRange> for [String; 2] {
    fn from(TimeRange(range): TimeRange) -> Self {
        [range.start, range.end].map(|micros| {
            let Some(time) = DateTime::from_timestamp_micros(micros) else {
                return micros.to_string();
            };
            let text = time.to_rfc3339_opts(SecondsFormat::AutoSi, true);
            text.strip_suffix("T00:00:00Z")
                .map_or(text.clone(), str::to_owned)
        })
    }
}

impl fmt::Display for TimeRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [from, to] = self.clone().into();
        write!(f, "{from} to {to}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(from: &str, to: &str) -> Result<TimeRange, TimeRangeError> {
        [from.to_owned(), to.to_owned()].try_into()
    }

    #[test]
    fn ranges_survive_being_stored() {
        assert_eq!(TimeRange::default().to_string(), "1900-01-01 to 2200-01-01");
        for (from, to) in [
            ("1900-01-01", "2200-01-01"),
            ("0001-01-01", "9999-12-31T23:59:59.999999Z"),
        ] {
            let range = read(from, to).expect("valid");
            let stored: [String; 2] = range.clone().into();
            assert_eq!(stored, [from, to]);
            assert_eq!(stored.try_into(), Ok(range));
        }
    }

    #[test]
    fn the_end_is_exclusive_and_comes_after_the_start() {
        let range = read("2000-01-01", "2001-01-01").expect("valid");
        assert!(range.contains(946_684_800_000_000) && !range.contains(978_307_200_000_000));
        let not_a_date = |text: &str| {
            format!(
                "time_range: `{text}` is not a date of the years 1 to 9999; write for example [\"1900-01-01\", \"2200-01-01\"]"
            )
        };
        let not_before =
            |from: &str, to: &str| format!("time_range: `{from}` is not before `{to}`");
        for (from, to, message) in [
            (
                "2001-01-01",
                "2000-01-01",
                not_before("2001-01-01", "2000-01-01"),
            ),
            (
                "2000-01-01",
                "2000-01-01",
                not_before("2000-01-01", "2000-01-01"),
            ),
            ("2000", "2001", not_a_date("2000")),
            ("0000-01-01", "2000-01-01", not_a_date("0000-01-01")),
        ] {
            assert_eq!(read(from, to).expect_err("wrong").to_string(), message);
        }
    }
}
