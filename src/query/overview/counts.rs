//! Panels of counts and of the line over time, from the counts view.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::{Value, json};

use crate::event::{Lsn, MICROS_PER_SECOND, Micros, rfc3339};
use crate::views::ViewError;
use crate::views::counts::{Count, Counts, group};

/// Values that a panel shows.
pub(super) const MAX_VALUES: usize = 12;
/// Different values that are summed at once. When more come, the smaller half is dropped.
const MAX_SUMS: usize = 50_000;
/// Types whose lines are computed; further ones are in the rest only.
const MAX_LINES: usize = 2_000;
/// Points of a line.
const BUCKETS: usize = 60;

/// Sums by value.
#[derive(Debug, Default)]
struct Sums {
    sums: HashMap<String, u64>,
    total: u64,
    /// By how much a sum may be too low, because its value was dropped before.
    max_error: u64,
}

impl Sums {
    fn add(&mut self, value: &str, count: u64) {
        self.total += count;
        if count == 0 {
            return;
        }
        if let Some(sum) = self.sums.get_mut(value) {
            *sum += count;
            return;
        }
        if self.sums.len() >= MAX_SUMS {
            self.drop_smaller_half();
        }
        self.sums.insert(value.to_owned(), count);
    }

    /// As in Misra and Gries, "Finding repeated elements" (1982): what is frequent stays, whenever
    /// it comes.
    fn drop_smaller_half(&mut self) {
        let mut counts: Vec<u64> = self.sums.values().copied().collect();
        let middle = counts.len() / 2;
        let (_, median, _) = counts.select_nth_unstable(middle);
        self.sums.retain(|_, count| *count > *median);
        self.max_error += *median;
    }

    /// `{"total", "values", "complete"}`, the greatest values first; `max_error` where the sums may
    /// be too low.
    fn into_json(self) -> Value {
        let mut values: Vec<(String, u64)> = self.sums.into_iter().collect();
        values.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let is_complete = values.len() <= MAX_VALUES && self.max_error == 0;
        values.truncate(MAX_VALUES);
        let values: Vec<Value> = values
            .iter()
            .map(|(value, count)| json!({"value": shown(value), "n": count}))
            .collect();
        let mut data = json!({"total": self.total, "values": values, "complete": is_complete});
        if self.max_error > 0 {
            data["max_error"] = self.max_error.into();
        }
        data
    }
}

/// A value of a group; an empty one is null, see [`group`].
fn shown(value: &str) -> Value {
    if value.is_empty() {
        Value::Null
    } else {
        value.into()
    }
}

/// The data of one panel per counted column, the type first: events without duplicates, from `from`
/// on or since the beginning. With the LSN that they reflect.
pub fn totals(
    counts: &Counts,
    columns: usize,
    from: Option<Micros>,
) -> Result<(Lsn, Vec<Value>), ViewError> {
    let mut sums: Vec<Sums> = (0..columns).map(|_| Sums::default()).collect();
    let mut add = |text: &str, count: Count| {
        let mut values = group::values(text);
        for sums in &mut sums {
            let value = values.next().unwrap_or(Cow::Borrowed(""));
            sums.add(&value, count.distinct);
        }
    };
    // Retention floors are at whole hours.
    let (first, last) = (from.unwrap_or(Micros::MIN / 2), Micros::MAX / 2);
    let whole = |time: Micros| time.div_euclid(MICROS_PER_SECOND) * MICROS_PER_SECOND;
    let lsn = counts.count(whole(first), whole(last), &mut add)?;
    Ok((lsn, sums.into_iter().map(Sums::into_json).collect()))
}

/// A line of these minutes has buckets of so many seconds.
fn bucket_seconds(minutes: u32) -> i64 {
    i64::from(minutes) * 60 / BUCKETS as i64
}

/// The points of a line, in buckets of whole seconds.
#[derive(Debug)]
struct Lines {
    /// Seconds since 1970.
    start: i64,
    bucket_seconds: i64,
    series: HashMap<String, [u64; BUCKETS]>,
    rest: [u64; BUCKETS],
}

impl Lines {
    /// Up to the second `newest`: its bucket is the last one.
    fn new(newest: i64, minutes: u32) -> Self {
        let bucket_seconds = bucket_seconds(minutes);
        let end = (newest.div_euclid(bucket_seconds) + 1) * bucket_seconds;
        Self {
            start: end - BUCKETS as i64 * bucket_seconds,
            bucket_seconds,
            series: HashMap::new(),
            rest: [0; BUCKETS],
        }
    }

    fn add(&mut self, kind: &str, second: i64, count: u64) {
        let at = (second - self.start).div_euclid(self.bucket_seconds);
        let Some(at) = usize::try_from(at).ok().filter(|at| *at < BUCKETS) else {
            return;
        };
        if let Some(series) = self.series.get_mut(kind) {
            series[at] += count;
        } else if self.series.len() < MAX_LINES {
            let mut series = [0; BUCKETS];
            series[at] = count;
            self.series.insert(kind.to_owned(), series);
        } else {
            self.rest[at] += count;
        }
    }

    fn into_json(self) -> Value {
        let sum = |series: &[u64; BUCKETS]| series.iter().sum::<u64>();
        let mut series: Vec<(String, [u64; BUCKETS])> = self.series.into_iter().collect();
        series.retain(|(_, counts)| sum(counts) > 0);
        series.sort_unstable_by(|a, b| sum(&b.1).cmp(&sum(&a.1)).then_with(|| a.0.cmp(&b.0)));
        let mut rest = self.rest;
        for (_, counts) in series.iter().skip(MAX_VALUES) {
            rest.iter_mut().zip(counts).for_each(|(sum, n)| *sum += n);
        }
        series.truncate(MAX_VALUES);
        let series: Vec<Value> = series
            .iter()
            .map(|(kind, counts)| json!({"value": shown(kind), "n": counts.to_vec()}))
            .collect();
        let start = rfc3339(self.start.saturating_mul(MICROS_PER_SECOND));
        let mut data = json!({"start": start, "bucket_s": self.bucket_seconds, "series": series});
        if sum(&rest) > 0 {
            data["rest"] = rest.to_vec().into();
        }
        data
    }
}

/// The newest second of event time that a panel reaches, since 1970. Events whose time is ahead of
/// the clock count once it is there: a single one would otherwise take the place of all others.
pub(super) fn newest_second(counts: &Counts, now: Micros) -> Option<i64> {
    let newest = counts.newest_second()?;
    Some(newest.min(now.div_euclid(MICROS_PER_SECOND)))
}

/// The data of the line: events without duplicates per type over the last minutes of event time,
/// with the LSN that they reflect.
pub fn line(
    counts: &Counts,
    minutes: u32,
    floor: Option<Micros>,
    now: Micros,
) -> Result<(Lsn, Value), ViewError> {
    let Some(newest) = newest_second(counts, now) else {
        let none = json!({"start": null, "bucket_s": bucket_seconds(minutes), "series": []});
        return Ok((counts.applied(), none));
    };
    let mut lines = Lines::new(newest, minutes);
    let from = (lines.start.saturating_mul(MICROS_PER_SECOND)).max(floor.unwrap_or(Micros::MIN));
    let to = (newest + 1).saturating_mul(MICROS_PER_SECOND);
    let mut add = |text: &str, second: i64, count: Count| {
        let kind = group::values(text).next().unwrap_or(Cow::Borrowed(""));
        lines.add(&kind, second, count.distinct);
    };
    let lsn = counts.by_second(from, to, &mut add)?;
    Ok((lsn, lines.into_json()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_values_are_shown_and_the_total_has_all() {
        let mut sums = Sums::default();
        for n in 0..20 {
            sums.add(&format!("v{n:02}"), n);
        }
        sums.add("", 100);
        let shown = sums.into_json();
        let values = shown["values"].as_array().expect("values");
        assert_eq!(values.len(), MAX_VALUES);
        assert_eq!(values[0], json!({"value": null, "n": 100}));
        assert_eq!(values[1], json!({"value": "v19", "n": 19}));
        assert_eq!(shown["total"], 290);
        assert_eq!(shown["complete"], false);
    }

    #[test]
    fn beyond_the_limit_frequent_values_stay_whenever_they_come() {
        let mut sums = Sums::default();
        sums.add("early", 1_000);
        for n in 0..3 * MAX_SUMS {
            sums.add(&n.to_string(), 1);
            if n == 2 * MAX_SUMS {
                sums.add("late", 900);
            }
        }
        assert!(sums.sums.len() <= MAX_SUMS);
        let shown = sums.into_json();
        assert_eq!(shown["values"][0], json!({"value": "early", "n": 1_000}));
        assert_eq!(shown["values"][1], json!({"value": "late", "n": 900}));
        assert_eq!(shown["total"], 3 * MAX_SUMS as u64 + 1_900);
        assert_eq!(shown["complete"], false);
        assert!(
            shown["max_error"].as_u64() <= Some(3),
            "{}",
            shown["max_error"]
        );
        let few = Sums::default().into_json();
        assert_eq!(few, json!({"total": 0, "values": [], "complete": true}));
    }

    #[test]
    fn a_line_ends_with_the_bucket_of_the_newest_second() {
        let mut lines = Lines::new(1_003, 5);
        assert_eq!((lines.start, lines.bucket_seconds), (705, 5));
        for (second, count) in [
            (704, 9),
            (705, 1),
            (709, 1),
            (1_000, 2),
            (1_004, 3),
            (1_005, 9),
        ] {
            lines.add("a", second, count);
        }
        let shown = lines.into_json();
        let points = shown["series"][0]["n"].as_array().expect("points");
        assert_eq!(
            (points.len(), &points[0], &points[59]),
            (60, &json!(2), &json!(5))
        );
        assert_eq!(points.iter().filter_map(Value::as_u64).sum::<u64>(), 7);
        assert_eq!(shown["start"], "1970-01-01T00:11:45.000Z");
        assert!(shown.get("rest").is_none());
        // Before 1970 too.
        assert_eq!(Lines::new(-1, 180).start, -180 * 60);
    }

    #[test]
    fn types_beyond_those_shown_are_in_the_rest() {
        let mut lines = Lines::new(59, 5);
        for n in 0..15 {
            lines.add(&format!("t{n:02}"), 59, 100 - n);
        }
        let shown = lines.into_json();
        assert_eq!(shown["series"].as_array().map(Vec::len), Some(MAX_VALUES));
        assert_eq!(shown["series"][0]["value"], "t00");
        assert_eq!(shown["rest"][59], 88 + 87 + 86);
    }
}
