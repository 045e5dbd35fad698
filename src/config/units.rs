//! Durations (`500ms 10s 5m 2h 60d`), sizes (`64MiB`), distances (`500m 5km`) and times as users
//! write them.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

/// Why a text is not what it should be; displayed with the text and an example to follow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseUnitError {
    /// Not a number and ms, s, m, h or d, or too long for a [`Duration`].
    #[error("`{0}` is not a duration: write a number and ms, s, m, h or d, for example \"90s\"")]
    Duration(String),
    /// Not a number and a unit of bytes.
    #[error(
        "`{0}` is not a size: write a number and B, KiB, MiB, GiB or TiB, for example \"64MiB\""
    )]
    Size(String),
    /// Not a number and m or km.
    #[error("`{0}` is not a distance: write a number and m or km, for example \"5km\"")]
    Distance(String),
    /// It begins with `now`, and neither `+` nor `-` comes next.
    #[error("`{0}` is not a time: write `now`, or for example `now-15m`")]
    RelativeTime(String),
    /// Epoch milliseconds that do not fit in 64 bits as microseconds.
    #[error("`{0}` is not a time: too many milliseconds")]
    TooManyMillis(String),
    /// In no form that [`parse_time`] reads.
    #[error(
        "`{0}` is not a time: write RFC 3339 (2016-06-10T01:00:00Z), a date, epoch milliseconds, or now-15m"
    )]
    Time(String),
}

/// Splits `12.5km` into its number and its unit.
fn number_and_unit(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_'))
        .unwrap_or(text.len());
    let number: f64 = text[..end].replace('_', "").parse().ok()?;
    Some((number, text[end..].trim()))
}

/// A duration of a number and ms, s, m, h or d: `500ms`, `1.5h`.
pub fn parse_duration(text: &str) -> Result<Duration, ParseUnitError> {
    let wrong = || ParseUnitError::Duration(text.to_owned());
    let (number, unit) = number_and_unit(text).ok_or_else(wrong)?;
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())
}

/// Bytes, of a number and B, KiB, MiB, GiB or TiB; a number alone is bytes.
pub fn parse_size(text: &str) -> Result<u64, ParseUnitError> {
    let wrong = || ParseUnitError::Size(text.to_owned());
    let (number, unit) = number_and_unit(text).ok_or_else(wrong)?;
    let bytes = match unit {
        "B" | "" => 1u64,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(wrong()),
    };
    Ok((number * bytes as f64) as u64)
}

/// Metres, of a number and m or km.
pub fn parse_distance(text: &str) -> Result<f64, ParseUnitError> {
    let wrong = || ParseUnitError::Distance(text.to_owned());
    match number_and_unit(text).ok_or_else(wrong)? {
        (number, "m") => Ok(number),
        (number, "km") => Ok(number * 1_000.0),
        _ => Err(wrong()),
    }
}

/// A point in time in µs since 1970: RFC 3339, a date, a date and time (UTC), epoch milliseconds,
/// `now` or `now-15m`, where `now` is in µs since 1970 too.
pub fn parse_time(text: &str, now: i64) -> Result<i64, ParseUnitError> {
    use chrono::{DateTime, NaiveDate, NaiveDateTime};
    let text = text.trim();
    if let Some(rest) = text.strip_prefix("now") {
        let rest = rest.trim();
        if rest.is_empty() {
            return Ok(now);
        }
        let relative = || ParseUnitError::RelativeTime(text.to_owned());
        let (sign, duration) = if let Some(duration) = rest.strip_prefix('-') {
            (-1, duration)
        } else {
            (1, rest.strip_prefix('+').ok_or_else(relative)?)
        };
        let micros = i64::try_from(parse_duration(duration)?.as_micros());
        return micros
            .ok()
            .and_then(|micros| now.checked_add(sign * micros))
            .ok_or_else(relative);
    }
    if let Ok(ms) = text.parse::<i64>() {
        return ms
            .checked_mul(1_000)
            .ok_or_else(|| ParseUnitError::TooManyMillis(text.to_owned()));
    }
    if let Ok(t) = DateTime::parse_from_rfc3339(text) {
        return Ok(t.timestamp_micros());
    }
    for format in [
        "%Y-%m-%dT%H:%M:%S%.f",
        "%Y-%m-%d %H:%M:%S%.f",
        "%Y-%m-%dT%H:%M",
    ] {
        if let Ok(t) = NaiveDateTime::parse_from_str(text, format) {
            return Ok(t.and_utc().timestamp_micros());
        }
    }
    NaiveDate::parse_from_str(text, "%Y-%m-%d")
        .ok()
        .and_then(|d| d.and_hms_opt(0, 0, 0))
        .map(|t| t.and_utc().timestamp_micros())
        .ok_or_else(|| ParseUnitError::Time(text.to_owned()))
}

macro_rules! unit {
    ($name:ident($inner:ty), $parse:path, $format:expr, $doc:literal) => {
        #[doc = $doc]
        ///
        /// In configuration files it is a text, displayed in the largest unit that divides it.
        #[derive(Debug, Clone, Copy, PartialEq)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let format: fn($inner) -> String = $format;
                f.write_str(&format(self.0))
            }
        }

        impl std::str::FromStr for $name {
            type Err = ParseUnitError;

            fn from_str(text: &str) -> Result<Self, ParseUnitError> {
                $parse(text).map(Self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

fn format_duration(d: Duration) -> String {
    let ms = d.as_millis();
    for (unit, length) in [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1_000),
    ] {
        if ms >= length && ms.is_multiple_of(length) {
            return format!("{}{unit}", ms / length);
        }
    }
    format!("{ms}ms")
}

fn format_size(bytes: u64) -> String {
    for (unit, length) in [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= length && bytes.is_multiple_of(length) {
            return format!("{}{unit}", bytes / length);
        }
    }
    format!("{bytes}B")
}

unit!(
    Span(Duration),
    parse_duration,
    format_duration,
    "A duration, written `90s`."
);
unit!(
    Size(u64),
    parse_size,
    format_size,
    "A number of bytes, written `64MiB`."
);

impl Span {
    /// A whole number of seconds, for defaults.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// Microseconds, the unit of event times; at most `i64::MAX`.
    pub fn micros(self) -> i64 {
        i64::try_from(self.0.as_micros()).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_parsed_and_displayed_the_same() {
        for text in ["500ms", "90s", "5m", "2h", "60d"] {
            assert_eq!(text.parse::<Span>().expect("valid").to_string(), text);
        }
        for text in ["64MiB", "20GiB", "512KiB", "17B"] {
            assert_eq!(text.parse::<Size>().expect("valid").to_string(), text);
        }
        assert_eq!(parse_distance("5km"), Ok(5_000.0));
        let message = |error: Option<ParseUnitError>| error.expect("wrong").to_string();
        assert_eq!(
            message(parse_duration("5 parsecs").err()),
            "`5 parsecs` is not a duration: write a number and ms, s, m, h or d, for example \"90s\""
        );
        assert_eq!(
            message(parse_size("many").err()),
            "`many` is not a size: write a number and B, KiB, MiB, GiB or TiB, for example \"64MiB\""
        );
        assert_eq!(
            message(parse_distance("5").err()),
            "`5` is not a distance: write a number and m or km, for example \"5km\""
        );
    }

    #[test]
    fn times_are_utc_in_every_form() {
        let want = 1_465_520_400_000_000;
        for text in [
            "2016-06-10T01:00:00Z",
            "2016-06-10T03:00:00+02:00",
            "2016-06-10 01:00:00",
            "1465520400000",
        ] {
            assert_eq!(parse_time(text, 0), Ok(want), "{text}");
        }
        assert_eq!(parse_time("2016-06-10", 0), Ok(want - 3_600_000_000));
        assert_eq!(parse_time("now-15m", 900_000_001), Ok(1));
        assert_eq!(parse_time("now", 7), Ok(7));
        for (text, reason) in [
            // A minus sign of typography.
            ("now\u{2212}15m", "write `now`, or for example `now-15m`"),
            ("now-106751992d", "write `now`, or for example `now-15m`"),
            (
                "yesterday-ish",
                "write RFC 3339 (2016-06-10T01:00:00Z), a date, epoch milliseconds, or now-15m",
            ),
            ("now~15m", "write `now`, or for example `now-15m`"),
            ("9223372036854775807", "too many milliseconds"),
        ] {
            assert_eq!(
                parse_time(text, 0).expect_err("wrong").to_string(),
                format!("`{text}` is not a time: {reason}")
            );
        }
        // The message names the duration alone.
        assert_eq!(
            parse_time("now-soon", 0),
            Err(ParseUnitError::Duration("soon".into()))
        );
    }
}
