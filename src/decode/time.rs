//! Parses times as programs commonly write them, starting with a date `YYYY-MM-DD`.

use chrono::{Datelike, LocalResult, NaiveDate, Offset, TimeZone};

use crate::event::{MICROS_PER_DAY, MICROS_PER_SECOND, Micros};
use crate::schema::zone::Zone;

/// Times that a table can hold: the years 1 to 9999.
pub const YEARS: std::ops::Range<Micros> = -62_135_596_800_000_000..253_402_300_800_000_000;

/// Days from 0000-12-31 to 1970-01-01.
const EPOCH_FROM_CE: i64 = 719_163;

/// Why a text is not a time.
#[derive(Debug, PartialEq, Eq)]
pub enum TimeError {
    /// It is not a date and time.
    Form,
    /// The local time does not exist: clocks were put forward over it.
    Skipped,
}

/// Parses a date, or a date and a time of day separated by `T` or a blank. Seconds, their fraction,
/// and the offset (`Z`, `UTC`, `+02`, `+0200` or `+02:00`) are optional. Without an offset it is a
/// local time of the zone, or UTC if there is none. Truncated to microseconds.
pub fn parse(text: &str, zone: Option<Zone>) -> Result<Micros, TimeError> {
    let mut rest = Cursor(text.as_bytes());
    let (date, micros, offset) = rest.date_and_time().ok_or(TimeError::Form)?;
    if !rest.0.is_empty() {
        return Err(TimeError::Form);
    }
    let days = i64::from(date.num_days_from_ce()) - EPOCH_FROM_CE;
    let local = days * MICROS_PER_DAY + micros;
    let seconds = match (offset, zone) {
        (Some(seconds), _) => seconds,
        (None, None) => 0,
        (None, Some(zone)) => local_offset(zone, date, micros)?,
    };
    Ok(local - seconds * MICROS_PER_SECOND)
}

/// Seconds by which a local time is ahead of UTC; if it occurs twice, the first occurrence counts.
fn local_offset(zone: Zone, date: NaiveDate, micros: Micros) -> Result<i64, TimeError> {
    let second = (micros / MICROS_PER_SECOND).min(86_399) as u32;
    let time = date
        .and_hms_opt(second / 3_600, second / 60 % 60, second % 60)
        .ok_or(TimeError::Form)?;
    let offset = match zone.0.offset_from_local_datetime(&time) {
        LocalResult::Single(offset) | LocalResult::Ambiguous(offset, _) => offset,
        LocalResult::None => return Err(TimeError::Skipped),
    };
    Ok(i64::from(offset.fix().local_minus_utc()))
}

/// The rest of a text.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    /// The date, microseconds of its day, and seconds ahead of UTC.
    fn date_and_time(&mut self) -> Option<(NaiveDate, Micros, Option<i64>)> {
        let year = self.digits(4)?;
        self.take(b"-")?;
        let month = self.digits(2)?;
        self.take(b"-")?;
        let date = NaiveDate::from_ymd_opt(year as i32, month as u32, self.digits(2)? as u32)?;
        if self.0.is_empty() {
            return Some((date, 0, None));
        }
        self.take(b"Tt ")?;
        let hour = self.digits(2).filter(|hour| *hour < 24)?;
        self.take(b":")?;
        let minute = self.digits(2).filter(|minute| *minute < 60)?;
        let (mut second, mut fraction) = (0, 0);
        if self.take(b":").is_some() {
            // A leap second reads as the first second of the next minute.
            second = self.digits(2).filter(|second| *second <= 60)?;
            if self.take(b".,").is_some() {
                fraction = self.fraction()?;
            }
        }
        let micros = ((hour * 60 + minute) * 60 + second) * MICROS_PER_SECOND + fraction;
        Some((date, micros, self.offset()?))
    }

    /// Microseconds of a fraction.
    fn fraction(&mut self) -> Option<Micros> {
        let length = self
            .0
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        let (digits, rest) = self.0.split_at(length);
        self.0 = rest;
        let digit = |at: usize| digits.get(at).map_or(0, |digit| i64::from(digit - b'0'));
        (length > 0).then(|| (0..6).fold(0, |micros, at| micros * 10 + digit(at)))
    }

    /// Seconds ahead of UTC: `Some(None)` if the text has no offset, `None` if it is malformed.
    fn offset(&mut self) -> Option<Option<i64>> {
        if self.0.is_empty() {
            return Some(None);
        }
        let _ = self.take(b" ");
        if self.take(b"Zz").is_some() {
            return Some(Some(0));
        }
        if let Some(rest) = self.0.strip_prefix(b"UTC") {
            self.0 = rest;
            return Some(Some(0));
        }
        const MINUS_SIGN: &[u8] = "\u{2212}".as_bytes();
        let sign = if let Some(rest) = self.0.strip_prefix(MINUS_SIGN) {
            self.0 = rest;
            -1
        } else if self.take(b"-").is_some() {
            -1
        } else {
            self.take(b"+")?;
            1
        };
        let hours = self.digits(2).filter(|hours| *hours < 24)?;
        let minutes = match (self.take(b":"), self.0) {
            (None, []) => 0,
            _ => self.digits(2).filter(|minutes| *minutes < 60)?,
        };
        Some(Some(sign * (hours * 60 + minutes) * 60))
    }

    fn take(&mut self, any: &[u8]) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        any.contains(first).then(|| {
            self.0 = rest;
            *first
        })
    }

    fn digits(&mut self, count: usize) -> Option<i64> {
        let (digits, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        digits.iter().try_fold(0, |number, digit| {
            digit
                .is_ascii_digit()
                .then(|| number * 10 + i64::from(digit - b'0'))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Micros {
        chrono::DateTime::parse_from_rfc3339(text)
            .expect("a time")
            .timestamp_micros()
    }

    #[test]
    fn common_texts_are_read() {
        for (text, wanted) in [
            ("2024-05-01 12:00:00", "2024-05-01T12:00:00Z"),
            ("2024-05-01T12:00:00", "2024-05-01T12:00:00Z"),
            ("2024-05-01 12:00", "2024-05-01T12:00:00Z"),
            ("2024-05-01T12:00Z", "2024-05-01T12:00:00Z"),
            ("2024-05-01", "2024-05-01T00:00:00Z"),
            ("2024-05-01T12:00:00+0200", "2024-05-01T10:00:00Z"),
            ("2024-05-01T12:00:00+02:00", "2024-05-01T10:00:00Z"),
            ("2024-05-01 12:00:00-02", "2024-05-01T14:00:00Z"),
            ("2024-05-01 12:00:00 +0530", "2024-05-01T06:30:00Z"),
            ("2024-05-01 12:00:00 UTC", "2024-05-01T12:00:00Z"),
            ("2024-05-01t12:00:00.5z", "2024-05-01T12:00:00.5Z"),
            ("2024-05-01 12:00:00,123", "2024-05-01T12:00:00.123Z"),
            (
                "2024-05-01T12:00:00.123456789Z",
                "2024-05-01T12:00:00.123456Z",
            ),
            ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
            ("0000-01-01T00:00:00Z", "0000-01-01T00:00:00Z"),
        ] {
            assert_eq!(parse(text, None), Ok(at(wanted)), "{text}");
        }
    }

    #[test]
    fn other_texts_are_rejected() {
        for text in [
            "",
            "today",
            "2024",
            "2024-05",
            "2024-5-1",
            "01/05/2024",
            "2024-02-30",
            "2024-05-01T",
            "2024-05-01T12",
            "2024-05-01T24:00:00Z",
            "2024-05-01T12:60:00Z",
            "2024-05-01T12:00:61Z",
            "2024-05-01T12:00:00.Z",
            "2024-05-01T12:00:00+2",
            "2024-05-01T12:00:00+24:00",
            "2024-05-01T12:00:00+02:",
            "2024-05-01T12:00:00+02:60",
            "2024-05-01T12:00:00ZZ",
            "2024-05-01T12:00:00 ",
            "2024-05-01T12:00:00 CET",
            "12024-05-01T12:00:00Z",
            "2024-05-01T12:00:00Z ",
            "2024-05-01é",
            "1714557600",
        ] {
            assert_eq!(parse(text, None), Err(TimeError::Form), "{text}");
        }
    }

    #[test]
    fn local_times_follow_the_zone() {
        let zone = Some("Europe/Berlin".parse().expect("a zone"));
        for (text, wanted) in [
            ("2024-05-01 12:00:00", "2024-05-01T10:00:00Z"),
            ("2024-01-01 12:00:00", "2024-01-01T11:00:00Z"),
            ("2024-05-01 12:00:00Z", "2024-05-01T12:00:00Z"),
            ("2024-05-01", "2024-04-30T22:00:00Z"),
            // Occurs twice: the earlier one.
            ("2024-10-27 02:30:00", "2024-10-27T00:30:00Z"),
            ("2024-10-27 03:00:00", "2024-10-27T02:00:00Z"),
        ] {
            assert_eq!(parse(text, zone), Ok(at(wanted)), "{text}");
        }
        assert_eq!(parse("2024-03-31 02:30:00", zone), Err(TimeError::Skipped));
    }

    proptest! {
        #[test]
        fn rfc_3339_is_read_as_chrono_reads_it(
            micros in YEARS.start..YEARS.end, offset in -1_439_i32..=1_439, digits in 0_usize..=9, style in 0_usize..4
        ) {
            let time = chrono::DateTime::from_timestamp_micros(micros).expect("in range");
            let time = time.with_timezone(&chrono::FixedOffset::east_opt(offset * 60).expect("an offset"));
            prop_assume!((0..=9_999).contains(&time.year()));
            let fraction = format!("{:09}", time.timestamp_subsec_nanos());
            let fraction = if digits == 0 { String::new() } else { format!(".{}", &fraction[..digits]) };
            let separator = ["T", "t", " ", "T"][style];
            let offset = time.format("%:z").to_string();
            let text = format!("{}{separator}{}{fraction}{offset}", time.format("%Y-%m-%d"), time.format("%H:%M:%S"));
            let wanted = chrono::DateTime::parse_from_rfc3339(&text).map(|t| t.timestamp_micros());
            prop_assert_eq!(parse(&text, None).ok(), wanted.ok(), "{}", text);
        }

        #[test]
        fn times_that_chrono_reads_are_read(text in "[0-9]{4}-[01][0-9]-[0-3][0-9][Tt ][0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{1,12})?([zZ]|[+-][0-2][0-9]:[0-6][0-9])") {
            if let Ok(time) = chrono::DateTime::parse_from_rfc3339(&text) {
                prop_assert_eq!(parse(&text, None), Ok(time.timestamp_micros()));
            }
        }

        #[test]
        fn no_text_panics(text: String) {
            let _ = parse(&text, Some("America/Sao_Paulo".parse().expect("a zone")));
        }
    }
}
