//! Local time of a zone: its offsets from UTC and where they change.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, NaiveDate, Offset, TimeZone};
use chrono_tz::Tz;

use crate::config::zone::Zone;
use crate::event::{MICROS_PER_DAY, MICROS_PER_SECOND, Micros};

/// Years that are searched for offset changes; the database ends before the last one.
const YEARS: std::ops::RangeInclusive<i32> = 1900..=2101;

/// A zone with the times at which its offset changes.
#[derive(Debug)]
pub(crate) struct LocalTime {
    name: &'static str,
    /// Start of each span, and its offset: how far local time is ahead of UTC. The first span
    /// begins before all times.
    spans: Vec<(Micros, Micros)>,
}

impl PartialEq for LocalTime {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for LocalTime {}

impl LocalTime {
    /// The local time of a zone, computed once and leaked: there are a few hundred zones.
    pub(crate) fn from_zone(zone: Zone) -> &'static Self {
        static ZONES: Mutex<BTreeMap<&'static str, &'static LocalTime>> =
            Mutex::new(BTreeMap::new());
        let mut zones = ZONES.lock().unwrap_or_else(PoisonError::into_inner);
        zones
            .entry(zone.0.name())
            .or_insert_with(|| Box::leak(Box::new(Self::compute(zone.0))))
    }

    fn compute(tz: Tz) -> Self {
        let second = |year: i32| {
            NaiveDate::from_ymd_opt(year, 1, 1)
                .map_or(0, |d| d.and_time(Default::default()).and_utc().timestamp())
        };
        let (first, last) = (second(*YEARS.start()), second(*YEARS.end()));
        let mut spans = vec![(Micros::MIN, offset(tz, first))];
        let mut day = first;
        while day < last {
            let (before, after) = (offset(tz, day), offset(tz, day + SECONDS_PER_DAY));
            if before != after {
                // At most one change a day.
                let (mut low, mut high) = (day, day + SECONDS_PER_DAY);
                while high - low > 1 {
                    let middle = low + (high - low) / 2;
                    if offset(tz, middle) == before {
                        low = middle;
                    } else {
                        high = middle;
                    }
                }
                spans.push((high * MICROS_PER_SECOND, after));
            }
            day += SECONDS_PER_DAY;
        }
        Self {
            name: tz.name(),
            spans,
        }
    }

    /// Index of the span that contains a time.
    pub(crate) fn span_of(&self, time: Micros) -> usize {
        self.spans
            .partition_point(|(from, _)| *from <= time)
            .saturating_sub(1)
    }

    /// Start and offset of a span.
    pub(crate) fn span(&self, n: usize) -> Option<(Micros, Micros)> {
        self.spans.get(n).copied()
    }
}

const SECONDS_PER_DAY: i64 = MICROS_PER_DAY / MICROS_PER_SECOND;

/// How far local time is ahead of UTC; `second` counts from 1970.
fn offset(tz: Tz, second: i64) -> Micros {
    let utc = DateTime::from_timestamp(second, 0)
        .unwrap_or_default()
        .naive_utc();
    i64::from(tz.offset_from_utc_datetime(&utc).fix().local_minus_utc()) * MICROS_PER_SECOND
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_match_the_time_zone_database() {
        for name in [
            "Europe/Berlin",
            "America/New_York",
            "Asia/Kolkata",
            "Australia/Lord_Howe",
            "America/St_Johns",
            "UTC",
        ] {
            let tz: Tz = name.parse().expect("a zone");
            let zone = LocalTime::from_zone(Zone(tz));
            for n in 0..20_000 {
                let second = -2_000_000_000 + n * 250_007;
                let (_, found) = zone
                    .span(zone.span_of(second * MICROS_PER_SECOND))
                    .expect("a span");
                assert_eq!(found, offset(tz, second), "{name} {second}");
            }
        }
    }
}
