//! Which value is the event time: by the name of its key, how many records have it, and whether it
//! follows the order of the records.

use super::columns::{Column, Layout, Type};
use super::naming;
use super::times::TimeForm;
use crate::config::units::Span;
use crate::event::{MICROS_PER_DAY, MICROS_PER_HOUR, MICROS_PER_SECOND, Micros, rfc3339};

/// The least share of records that must have it.
const MIN_PRESENCE: f64 = 0.5;
/// Other candidates that a comment names.
const MAX_ALTERNATIVES: usize = 4;
/// Where one record in so many is late, the input is sorted, or more disorder is declared.
const SORT_ONE_IN: u64 = 10;

/// Keys that name the time of an event, best first.
const BEST_NAMES: [&str; 12] = [
    "event_time",
    "event_timestamp",
    "occurred_at",
    "timestamp",
    "time_us",
    "ts",
    "time",
    "datetime",
    "mtime",
    "time_iso8601",
    "created_at",
    "at",
];
/// Words of keys that name another time than that of the event.
const OTHER_WORDS: [&str; 11] = [
    "updated", "modified", "expires", "end", "until", "birth", "received", "start", "indexed",
    "pushed", "deleted",
];

/// The event time of a stream.
pub(super) struct EventTime {
    /// The position of its column; none if no time was found.
    pub column: Option<usize>,
    /// Its value in `select`.
    pub expression: String,
    /// For a comment.
    pub reason: String,
    /// The times that were seen.
    pub range: Option<(Micros, Micros)>,
    /// How much time most of the sample covers.
    pub span: Micros,
    pub order: Order,
    /// How far a time may be ahead of its arrival, where the default is too little.
    pub max_ahead: Option<Span>,
}

/// How the order of the records fits a watermark.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Order {
    Fits,
    /// Many records are late: input that is complete is to be sorted, other input needs this
    /// disorder.
    Unsorted(Span),
    /// Some are late.
    Disorder(Span),
}

/// Chooses among the columns; `now` is the time of the sample.
pub(super) fn choose(layout: &Layout<'_>, records: u64, now: Micros) -> EventTime {
    let mut candidates: Vec<(f64, usize)> = layout
        .columns
        .iter()
        .enumerate()
        .filter(|(_, column)| is_candidate(column) && column.presence(records) >= MIN_PRESENCE)
        .map(|(at, column)| (score(column, records, now), at))
        .collect();
    // Of equal scores the first column counts.
    candidates.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let Some((_, at)) = candidates.first().copied() else {
        return none(records);
    };
    let column = &layout.columns[at];
    let times = &column.node.times;
    let others = candidates.iter().skip(1).take(MAX_ALTERNATIVES);
    let others: Vec<String> = others.map(|(_, at)| layout.columns[*at].shown()).collect();
    EventTime {
        column: Some(at),
        expression: expression(column),
        reason: reason(column, records, &others),
        range: times.range,
        span: times.usual_span(),
        order: order(column),
        max_ahead: times.range.and_then(|(_, last)| max_ahead(last, now)),
    }
}

fn none(records: u64) -> EventTime {
    EventTime {
        column: None,
        expression: "timestamp '2000-01-01 00:00:00Z'".into(),
        reason: format!(
            "no key of the {records} records has a time in half of them: every event gets this one; replace it by an expression of the columns"
        ),
        range: None,
        span: 0,
        order: Order::Fits,
        max_ahead: None,
    }
}

/// Whether all values of a column are times.
fn is_candidate(column: &Column<'_>) -> bool {
    let leaf = column.leaf();
    match (&column.ty, column.node.times.form()) {
        (Type::Timestamp(_), Some(_)) => true,
        (Type::BigInt, Some(TimeForm::Nanos)) => naming::is_time(&leaf),
        (Type::Double, Some(TimeForm::DecimalSeconds)) => naming::is_time(&leaf),
        (Type::Varchar, Some(TimeForm::Formatted(_))) => true,
        // A number of this size under a name that says nothing.
        (Type::BigInt, Some(TimeForm::Millis | TimeForm::Micros)) => !naming::is_id(&leaf),
        _ => false,
    }
}

fn score(column: &Column<'_>, records: u64, now: Micros) -> f64 {
    let leaf = column.leaf();
    let is_other = leaf.split('_').any(|word| OTHER_WORDS.contains(&word));
    let of_name = match BEST_NAMES.iter().position(|name| *name == leaf) {
        Some(at) => 60.0 - 2.0 * at as f64,
        None if is_other => 5.0,
        None if naming::is_time(&leaf) => 25.0,
        None => 0.0,
    };
    let is_ahead = column
        .node
        .times
        .range
        .is_some_and(|(_, last)| last > now.saturating_add(MICROS_PER_HOUR));
    of_name + 100.0 * column.presence(records) + 25.0 * column.node.times.order()
        - 8.0 * column.depth() as f64
        - if is_ahead { 60.0 } else { 0.0 }
}

fn expression(column: &Column<'_>) -> String {
    let value = column.expression();
    match (&column.ty, column.node.times.form()) {
        (Type::BigInt, Some(TimeForm::Millis)) => format!("to_timestamp_millis({value})"),
        (Type::BigInt, Some(TimeForm::Micros)) => format!("to_timestamp_micros({value})"),
        (Type::BigInt, Some(TimeForm::Nanos)) => format!("to_timestamp_micros({value} / 1000)"),
        (_, Some(TimeForm::Formatted(format))) => {
            format!("to_timestamp({value}, '{format}')")
        }
        (Type::Double, _) => {
            format!("to_timestamp_micros(try_cast({value} * 1000000 as bigint))")
        }
        _ => value,
    }
}

fn reason(column: &Column<'_>, records: u64, others: &[String]) -> String {
    let times = &column.node.times;
    let form = times.form().map_or("a time", TimeForm::described);
    let mut text = format!(
        "`{}` is {form}, in {} of {records} records",
        column.shown(),
        column.node.present()
    );
    if let Some((first, last)) = times.range {
        text += &format!(", from {} to {}", rfc3339(first), rfc3339(last));
    }
    if times.count > 1 && times.ascending + 1 >= times.count {
        text += ", in the order of the records";
    } else if times.count > 1 && times.descending + 1 >= times.count {
        text += ", newest first";
    }
    if !others.is_empty() {
        text += &format!("; also times: {}", others.join(", "));
    }
    text
}

fn order(column: &Column<'_>) -> Order {
    let times = &column.node.times;
    let disorder = match times.usual_lateness() {
        Some(seconds) => Span::seconds(seconds.unsigned_abs()),
        None => round_up(times.max_lateness),
    };
    if times.late() * SORT_ONE_IN >= times.count {
        Order::Unsorted(disorder)
    } else if times.late() * 20 > times.count {
        Order::Disorder(disorder)
    } else {
        Order::Fits
    }
}

/// Whole units of at least seconds, rounded up, with room for as much again up to a minute.
fn round_up(micros: Micros) -> Span {
    let seconds = micros.max(0) / MICROS_PER_SECOND + 1;
    let unit = match seconds {
        0..=59 => 10,
        60..=3_599 => 60,
        3_600..=86_399 => 3_600,
        _ => 86_400,
    };
    Span::seconds((seconds as u64).div_ceil(unit) * unit)
}

fn max_ahead(last: Micros, now: Micros) -> Option<Span> {
    let ahead = last.saturating_sub(now);
    let days = ahead.max(0) / MICROS_PER_DAY + 2;
    (ahead > MICROS_PER_HOUR / 2).then(|| Span::seconds(days as u64 * 86_400))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::columns::layout;
    use crate::infer::profile::Profile;

    fn chosen(records: &[&str]) -> String {
        let mut profile = Profile::default();
        records.iter().for_each(|r| profile.observe(r.as_bytes()));
        let layout = layout(&profile);
        choose(&layout, profile.records, 1_800_000_000 * MICROS_PER_SECOND).expression
    }

    #[test]
    fn name_presence_and_order_decide() {
        for (records, expected) in [
            (
                &[r#"{"mtime":1425788568167,"event":{"time":1427551200000}}"#][..],
                "mtime",
            ),
            (
                &[r#"{"updated":"2024-05-01T10:00:00Z","time":"2024-05-01T09:00:00Z"}"#],
                "\"time\"",
            ),
            (
                &[r#"{"properties":{"time":1714557600000,"updated":1714557700000}}"#],
                "properties['time']",
            ),
            (
                &[r#"{"msec":1714557600.123}"#],
                "to_timestamp_micros(try_cast(msec * 1000000 as bigint))",
            ),
            (
                &[r#"{"time_local":"01/May/2024:12:00:00 +0200"}"#],
                "to_timestamp(time_local, '%d/%b/%Y:%H:%M:%S %z')",
            ),
            (&[r#"{"n":1714557600123}"#], "to_timestamp_millis(n)"),
            (
                &[r#"{"id":1714557600123}"#],
                "timestamp '2000-01-01 00:00:00Z'",
            ),
            (
                &[
                    r#"{"at":1714557600}"#,
                    r#"{"created":"2024-05-01T10:00:00Z"}"#,
                    r#"{"created":"2024-05-01T11:00:00Z"}"#,
                ],
                "created",
            ),
            // Tickets for a future date.
            (
                &[r#"{"date":"2099-05-01T10:00:00Z","sold":"2024-05-01T10:00:00Z"}"#],
                "sold",
            ),
        ] {
            assert_eq!(chosen(records), expected, "{records:?}");
        }
    }

    #[test]
    fn disorder_is_rounded_up() {
        let second = MICROS_PER_SECOND;
        for (micros, shown) in [
            (12 * second, "20s"),
            (61 * second, "2m"),
            (86_400 * second, "2d"),
        ] {
            assert_eq!(round_up(micros).to_string(), shown);
        }
        assert_eq!(max_ahead(0, 0), None);
        assert_eq!(
            max_ahead(MICROS_PER_DAY, 0).map(|s| s.to_string()),
            Some("3d".into())
        );
    }
}
