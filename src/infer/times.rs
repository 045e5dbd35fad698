//! Which values are times: epoch seconds, milliseconds, microseconds, nanoseconds, and texts that
//! the decoder reads. Plausible are the years 2000 to 2099 for numbers, every year for texts.

use crate::event::{MICROS_PER_SECOND, Micros};

/// Seconds of plausible numbers: the years 2000 to 2099.
const SECONDS: std::ops::Range<i64> = 946_684_800..4_102_444_800;
/// Seconds of lateness by which times are counted; the first are what the default `disorder` of a
/// watermark allows.
pub(super) const LATENESS_BOUNDS: [i64; 8] = [10, 60, 300, 900, 3_600, 21_600, 86_400, 604_800];
/// Times of a path that are stored, evenly from all of them.
const MAX_STORED: usize = 256;

/// How a time is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TimeForm {
    Seconds,
    /// With a fraction, as a decimal number.
    DecimalSeconds,
    Millis,
    Micros,
    Nanos,
    /// That a column of type `timestamp` reads.
    Text,
    /// Text in this format, which `select` reads.
    Formatted(&'static str),
}

/// Formats of texts with an offset that programs write: access logs, mails and feeds, older APIs.
const FORMATS: [&str; 3] = [
    "%d/%b/%Y:%H:%M:%S %z",
    "%a, %d %b %Y %H:%M:%S %z",
    "%a %b %d %H:%M:%S %z %Y",
];

impl TimeForm {
    /// The form of two values; none if they have no common one. Some of the seconds with a fraction
    /// are written as whole numbers.
    fn merged(self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::Seconds, Self::DecimalSeconds) | (Self::DecimalSeconds, Self::Seconds) => {
                Some(Self::DecimalSeconds)
            }
            _ => (self == other).then_some(self),
        }
    }

    /// For people.
    pub fn described(self) -> &'static str {
        match self {
            Self::Seconds => "seconds since 1970",
            Self::DecimalSeconds => "seconds since 1970 with a fraction",
            Self::Millis => "milliseconds since 1970",
            Self::Micros => "microseconds since 1970",
            Self::Nanos => "nanoseconds since 1970",
            Self::Text => "a time as text",
            Self::Formatted(_) => "a time in a format of its own",
        }
    }
}

/// The times among the values of a path, in the order of the records.
#[derive(Debug, Default)]
pub(super) struct Times {
    /// How all of them are written.
    form: Option<TimeForm>,
    /// Values written in another form, or that are not times.
    others: u64,
    pub count: u64,
    pub range: Option<(Micros, Micros)>,
    last: Option<Micros>,
    /// Times that are not before, and not after, the one before them.
    pub ascending: u64,
    pub descending: u64,
    steps: u64,
    greatest: Option<Micros>,
    /// By the bound that contains how far they are behind an earlier one; the last are beyond.
    lateness: [u64; LATENESS_BOUNDS.len() + 1],
    pub max_lateness: Micros,
    /// Every time of this distance.
    stored: Vec<Micros>,
    stride: u64,
}

impl Times {
    /// Takes a value into account; none if it is not a time.
    pub fn observe(&mut self, found: Option<(TimeForm, Micros)>) {
        let before = self.form;
        let merged = found.and_then(|(form, time)| {
            let form = before.map_or(Some(form), |before| before.merged(form))?;
            Some((form, time))
        });
        let Some((form, time)) = merged else {
            self.others += 1;
            return;
        };
        self.form = Some(form);
        self.count += 1;
        let (first, last) = self.range.unwrap_or((time, time));
        self.range = Some((first.min(time), last.max(time)));
        if let Some(before) = self.last.replace(time) {
            self.steps += 1;
            self.ascending += u64::from(time >= before);
            self.descending += u64::from(time <= before);
        }
        let greatest = self.greatest.map_or(time, |greatest| greatest.max(time));
        self.greatest = Some(greatest);
        let lateness = greatest.saturating_sub(time);
        let is_within = |bound: &i64| lateness <= bound * MICROS_PER_SECOND;
        let bound = LATENESS_BOUNDS.iter().position(is_within);
        self.lateness[bound.unwrap_or(LATENESS_BOUNDS.len())] += 1;
        self.max_lateness = self.max_lateness.max(lateness);
        self.store(time);
    }

    /// Stores some of the times: when there are too many, every other one of them.
    fn store(&mut self, time: Micros) {
        let stride = self.stride.max(1);
        if (self.count - 1).is_multiple_of(stride) {
            self.stored.push(time);
        }
        if self.stored.len() > MAX_STORED {
            let halved = self.stored.iter().step_by(2).copied().collect();
            self.stored = halved;
            self.stride = stride * 2;
        }
    }

    /// Times further behind an earlier one than a watermark allows by default.
    pub fn late(&self) -> u64 {
        self.lateness[1..].iter().sum()
    }

    /// The seconds of the least bound that contains 19 of 20 times; none if no bound does.
    pub fn usual_lateness(&self) -> Option<i64> {
        let mut within = 0;
        for (bound, count) in LATENESS_BOUNDS.iter().zip(&self.lateness) {
            within += count;
            if within * 20 >= self.count * 19 {
                return Some(*bound);
            }
        }
        None
    }

    /// From the earliest to the latest time, without the outermost twentieths, which may be wrong.
    pub fn usual_span(&self) -> Micros {
        let mut times = self.stored.clone();
        times.sort_unstable();
        let margin = times.len() / 20;
        let (first, last) = (
            times.get(margin),
            times.get(times.len().saturating_sub(margin + 1)),
        );
        match (first, last) {
            (Some(first), Some(last)) => last.saturating_sub(*first),
            _ => 0,
        }
    }

    /// What follows has an order of its own.
    pub fn begin_file(&mut self) {
        (self.last, self.greatest) = (None, None);
    }

    /// The form, where all values are times of one form.
    pub fn form(&self) -> Option<TimeForm> {
        self.form.filter(|_| self.others == 0)
    }

    /// From 0 to 1: how many times follow the order of the records, forwards or backwards.
    pub fn order(&self) -> f64 {
        self.ascending.max(self.descending) as f64 / self.steps.max(1) as f64
    }
}

/// The time that a whole number may be.
pub(super) fn of_integer(value: i64) -> Option<(TimeForm, Micros)> {
    let forms = [
        (TimeForm::Seconds, 1, MICROS_PER_SECOND),
        (TimeForm::Millis, 1_000, 1_000),
        (TimeForm::Micros, 1_000_000, 1),
    ];
    for (form, per_second, micros) in forms {
        if SECONDS.contains(&value.div_euclid(per_second)) {
            return Some((form, value * micros));
        }
    }
    let is_nanos = SECONDS.contains(&value.div_euclid(1_000_000_000));
    is_nanos.then_some((TimeForm::Nanos, value / 1_000))
}

/// The time that a decimal number may be.
pub(super) fn of_decimal(value: f64) -> Option<(TimeForm, Micros)> {
    let is_plausible = value >= SECONDS.start as f64 && value < SECONDS.end as f64;
    is_plausible.then(|| {
        let micros = (value * MICROS_PER_SECOND as f64) as Micros;
        (TimeForm::DecimalSeconds, micros)
    })
}

/// The time that a text is.
pub(super) fn of_text(text: &str) -> Option<(TimeForm, Micros)> {
    let formatted = |format: &&'static str| {
        let time = chrono::DateTime::parse_from_str(text, format).ok()?;
        Some((TimeForm::Formatted(format), time.timestamp_micros()))
    };
    crate::decode::text_time(text)
        .map(|time| (TimeForm::Text, time))
        .or_else(|| FORMATS.iter().find_map(formatted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_follows_from_the_size_of_a_number() {
        for (value, form) in [
            (1_714_557_600, Some(TimeForm::Seconds)),
            (1_714_557_600_123, Some(TimeForm::Millis)),
            (1_714_557_600_123_456, Some(TimeForm::Micros)),
            (1_714_557_600_123_456_789, Some(TimeForm::Nanos)),
            (20_240_501, None),
            (-1, None),
            (i64::MAX, None),
            (i64::MIN, None),
        ] {
            assert_eq!(of_integer(value).map(|(form, _)| form), form, "{value}");
        }
        assert_eq!(
            of_decimal(1_714_557_600.5).map(|(_, t)| t),
            Some(1_714_557_600_500_000)
        );
        assert_eq!(of_text("1714557600"), None);
        let access_log = of_text("01/May/2024:12:00:00 +0200");
        assert_eq!(
            access_log.map(|(_, time)| time),
            Some(1_714_557_600_000_000)
        );
    }

    #[test]
    fn one_value_of_another_form_leaves_no_form() {
        let mut times = Times::default();
        times.observe(of_integer(1_714_557_600));
        assert_eq!(times.form(), Some(TimeForm::Seconds));
        times.observe(of_integer(1_714_557_600_123));
        assert_eq!(times.form(), None);
    }

    #[test]
    fn a_whole_number_among_seconds_with_a_fraction_is_one_of_them() {
        for values in [
            [1_714_557_600.5, 1_714_557_601.0],
            [1_714_557_600.0, 1_714_557_600.5],
        ] {
            let mut times = Times::default();
            for value in values {
                times.observe(if f64::fract(value) == 0.0 {
                    of_integer(value as i64)
                } else {
                    of_decimal(value)
                });
            }
            assert_eq!(times.form(), Some(TimeForm::DecimalSeconds));
            assert_eq!((times.count, times.ascending), (2, 1));
        }
    }

    #[test]
    fn the_order_of_each_file_is_its_own() {
        let mut times = Times::default();
        for day in [10, 9, 8] {
            times.observe(of_text(&format!("2024-05-{day:02}")));
        }
        assert_eq!((times.order(), times.late()), (1.0, 2));
        times.begin_file();
        times.observe(of_text("2024-05-01"));
        assert_eq!(times.late(), 2);
    }

    #[test]
    fn one_wrong_time_decides_neither_span_nor_lateness() {
        let mut times = Times::default();
        for n in 0..2_000 {
            let wrong = if n == 1_000 { 100_000_000 } else { 0 };
            times.observe(of_integer(1_714_557_600 + n - wrong));
        }
        assert_eq!((times.late(), times.usual_lateness()), (1, Some(10)));
        let seconds = times.usual_span() / MICROS_PER_SECOND;
        assert!((1_700..2_000).contains(&seconds), "{seconds}");
        assert!(times.stored.len() <= MAX_STORED);
    }
}
