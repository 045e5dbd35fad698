//! Which windows a time belongs to. All arithmetic with a window's slide and size is here: tumbling
//! and sliding windows aligned to 1970 in UTC, and those of a time zone, whose days have 23 to 25
//! hours.
//!
//! A window is identified by its end. A *pane* is a range of time whose points all belong to the
//! same windows: `hop` by 10 minutes with a size of 25 has panes of 5 minutes, and 10:07 is in the
//! pane that starts at 10:05 and in the windows that end at 10:15 and 10:25.
//!
//! For this `hop`, at 10:07 and with the window 9:50..10:15:
//!
//! | function | gives |
//! |---|---|
//! | `pane(10:07)` | 10:05 |
//! | `first_end(10:07)`, `last_end(10:07)` | 10:15, 10:25 |
//! | `next_start(10:07)` | 10:10 |
//! | `start(10:15)` | 9:50 |
//! | `next_end(10:15)`, `previous_end(10:15)` | 10:25, 10:05 |
//! | `passed(10:07)` | 10:05: the window 9:40..10:05 has ended |

use super::zone::LocalTime;
use crate::event::{MICROS_PER_DAY, Micros};

/// The earliest time used in arithmetic: far enough from the limits that sums do not overflow.
pub(crate) const EARLIEST: Micros = Micros::MIN / 4;

/// Tumbling or sliding windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WindowAssigner {
    /// One starts every `slide`, aligned to 1970, and lasts `size`; equal if tumbling.
    Fixed { slide: Micros, size: Micros },
    /// One starts with every step of the local calendar, and lasts `steps` of them.
    Local { calendar: Calendar, steps: usize },
}

impl WindowAssigner {
    /// Whether windows overlap.
    pub(crate) fn is_sliding(&self) -> bool {
        match self {
            Self::Fixed { slide, size } => slide < size,
            Self::Local { steps, .. } => *steps > 1,
        }
    }

    /// The start of the pane that contains a time.
    pub(crate) fn pane(&self, time: Micros) -> Micros {
        match self {
            Self::Fixed { slide, size } => truncate(time, gcd(*slide, *size)),
            Self::Local { calendar, .. } => calendar.cell(time).start,
        }
    }

    /// The end of the earliest window that contains a time.
    pub(crate) fn first_end(&self, time: Micros) -> Micros {
        match self {
            Self::Fixed { slide, size } => truncate(time - size, *slide) + slide + size,
            Self::Local { calendar, .. } => calendar.end(time),
        }
    }

    /// The end of the last window that contains a time.
    pub(crate) fn last_end(&self, time: Micros) -> Micros {
        match self {
            Self::Fixed { slide, size } => truncate(time, *slide) + size,
            Self::Local { calendar, steps } => calendar.forward(calendar.cell(time).start, *steps),
        }
    }

    /// The first window start after a time.
    pub(crate) fn next_start(&self, time: Micros) -> Micros {
        match self {
            Self::Fixed { slide, .. } => truncate(time, *slide) + slide,
            Self::Local { calendar, .. } => calendar.end(time),
        }
    }

    /// The start of the window with this end.
    pub(crate) fn start(&self, end: Micros) -> Micros {
        match self {
            Self::Fixed { size, .. } => end - size,
            Self::Local { calendar, steps } => calendar.back(end, *steps),
        }
    }

    /// The end of the window after the one with this end.
    pub(crate) fn next_end(&self, end: Micros) -> Micros {
        match self {
            Self::Fixed { slide, .. } => end + slide,
            Self::Local { calendar, .. } => calendar.end(end),
        }
    }

    /// The end of the window before the one with this end.
    pub(crate) fn previous_end(&self, end: Micros) -> Micros {
        match self {
            Self::Fixed { slide, .. } => end - slide,
            Self::Local { calendar, .. } => calendar.back(end, 1),
        }
    }

    /// The last window end at or before a time.
    pub(crate) fn passed(&self, limit: Micros) -> Micros {
        match self {
            Self::Fixed { slide, size } => {
                truncate(limit.saturating_sub(*size).max(EARLIEST), *slide) + size
            }
            Self::Local { calendar, .. } => calendar.cell(limit.max(EARLIEST)).start,
        }
    }

    /// How many windows contain a time.
    pub(crate) fn count(&self, time: Micros) -> i64 {
        match self {
            Self::Fixed { slide, .. } => (self.last_end(time) - self.first_end(time)) / slide + 1,
            Self::Local { steps, .. } => *steps as i64,
        }
    }

    /// An upper bound on the length of a window.
    pub(crate) fn longest(&self) -> Micros {
        match self {
            Self::Fixed { size, .. } => *size,
            Self::Local { calendar, steps } => {
                calendar.step.longest() * *steps as i64 + MICROS_PER_DAY
            }
        }
    }
}

/// A step of local time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CalendarStep {
    /// By the clock, aligned to local midnight of 1970-01-01.
    Clock(Micros),
    /// Multiples of 7 days begin on Monday.
    Days(i64),
    /// Calendar months, aligned to January 1970.
    Months(i64),
}

/// 1970-01-05, the Monday that weeks are aligned to, in days since 1970.
const MONDAY: i64 = 4;

impl CalendarStep {
    /// Index of the step that contains a local time.
    fn index(self, local: Micros) -> i64 {
        let day = local.div_euclid(MICROS_PER_DAY);
        match self {
            Self::Clock(length) => local.div_euclid(length),
            Self::Days(days) => (day - first_day(days)).div_euclid(days),
            Self::Months(months) => month_of(day).div_euclid(months),
        }
    }

    /// The local time at which a step begins.
    fn begin(self, index: i64) -> Micros {
        match self {
            Self::Clock(length) => index * length,
            Self::Days(days) => (first_day(days) + index * days) * MICROS_PER_DAY,
            Self::Months(months) => first_of(index * months) * MICROS_PER_DAY,
        }
    }

    /// Its length while the clock is not changed; none for months.
    fn length(self) -> Option<Micros> {
        match self {
            Self::Clock(length) => Some(length),
            Self::Days(days) => Some(days * MICROS_PER_DAY),
            Self::Months(_) => None,
        }
    }

    /// A lower bound on its length while the clock is not changed.
    fn shortest(self) -> Micros {
        match self {
            Self::Months(months) => months * 28 * MICROS_PER_DAY,
            other => other.length().unwrap_or(MICROS_PER_DAY),
        }
    }

    /// An upper bound on its length while the clock is not changed.
    fn longest(self) -> Micros {
        match self {
            Self::Months(months) => months * 31 * MICROS_PER_DAY,
            other => other.length().unwrap_or(MICROS_PER_DAY),
        }
    }
}

/// The day since 1970 that steps of so many days are aligned to.
fn first_day(days: i64) -> i64 {
    if days % 7 == 0 { MONDAY } else { 0 }
}

/// The month of a day since 1970, counted from January 1970.
fn month_of(day: i64) -> i64 {
    // Years that begin in March have their leap day at the end; 400 of them have 146,097 days.
    let day = day + 719_468;
    let (era, day) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let month = (5 * (day - (365 * year + year / 4 - year / 100)) + 2) / 153;
    (era * 400 + year) * 12 + month + 2 - 1970 * 12
}

/// The first day of a month that is counted from January 1970, in days since 1970.
fn first_of(month: i64) -> i64 {
    let month = month + 1970 * 12 - 2;
    let (year, month) = (month.div_euclid(12), month.rem_euclid(12));
    let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
    era * 146_097 + year * 365 + year / 4 - year / 100 + (153 * month + 2) / 5 - 719_468
}

/// Time in a zone, divided into steps without a gap or an overlap. Where the clock is put forward,
/// a step that it jumps over is left out, and one that it jumps into begins there. Where it is put
/// back by at least a step (hours, in most zones), each pass through the repeated time has its own
/// steps; by less (days), the step continues, so that no day occurs twice.
///
/// Berlin, 2024-10-27: at 03:00 the clock goes back to 02:00. The hour from 02:00 occurs twice and
/// gives two windows; the day occurs once and has 25 hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Calendar {
    pub(crate) zone: &'static LocalTime,
    pub(crate) step: CalendarStep,
}

/// A step of a calendar, as far as it is known from a time in it.
struct Cell {
    start: Micros,
    index: i64,
}

impl Calendar {
    /// The step that contains a time.
    fn cell(&self, time: Micros) -> Cell {
        let mut time = time;
        loop {
            let n = self.zone.span_of(time);
            let (from, offset) = self.zone.span(n).unwrap_or_default();
            let index = self.step.index(time.saturating_add(offset));
            let start = self.step.begin(index) - offset;
            let Some((_, before)) = n.checked_sub(1).and_then(|n| self.zone.span(n)) else {
                return Cell { start, index };
            };
            let put_back = before - offset;
            let reached = self.step.index(from - 1 + before);
            let continues = if put_back > 0 {
                put_back < self.step.shortest() && reached >= index
            } else {
                start < from && reached == index
            };
            if !continues {
                return Cell {
                    start: start.max(from),
                    index,
                };
            }
            time = from - 1;
        }
    }

    /// The end of the step that contains a time.
    fn end(&self, time: Micros) -> Micros {
        let index = self.cell(time).index;
        let mut n = self.zone.span_of(time);
        loop {
            let offset = self.zone.span(n).map_or(0, |(_, offset)| offset);
            let end = self.step.begin(index + 1) - offset;
            match self.zone.span(n + 1) {
                Some((from, _)) if end >= from => {
                    if self.cell(from).start == from {
                        return from;
                    }
                }
                _ => return end,
            }
            n += 1;
        }
    }

    /// `steps` after the start of one. Between clock changes they are taken all at once.
    fn forward(&self, start: Micros, steps: usize) -> Micros {
        let (mut at, mut left) = (start, steps as i64);
        while left > 0 {
            let n = self.zone.span_of(at);
            let offset = self.zone.span(n).map_or(0, |(_, offset)| offset);
            let to = self.zone.span(n + 1).map_or(Micros::MAX, |(from, _)| from);
            let room = self
                .regular(at, offset)
                .map_or(0, |length| ((to - 1).saturating_sub(at) / length).min(left));
            match self.step.length() {
                Some(length) if room > 0 => (at, left) = (at + room * length, left - room),
                _ => (at, left) = (self.end(at), left - 1),
            }
        }
        at
    }

    /// `steps` before the start of one.
    fn back(&self, start: Micros, steps: usize) -> Micros {
        let (mut at, mut left) = (start, steps as i64);
        while left > 0 {
            let n = self.zone.span_of(at - 1);
            let (from, offset) = self.zone.span(n).unwrap_or_default();
            let before = n
                .checked_sub(1)
                .and_then(|n| self.zone.span(n))
                .map_or(offset, |(_, before)| before);
            // Local times below are a repetition of earlier ones.
            let from = from.saturating_add((before - offset).max(0));
            let room = self
                .regular(at, offset)
                .map_or(0, |length| (at.saturating_sub(from) / length).min(left));
            match self.step.length() {
                Some(length) if room > 0 => (at, left) = (at - room * length, left - room),
                _ => (at, left) = (self.cell(at - 1).start, left - 1),
            }
        }
        at
    }

    /// The length of the step that begins here, if `start` is aligned by the local clock.
    fn regular(&self, start: Micros, offset: Micros) -> Option<Micros> {
        let local = start.saturating_add(offset);
        self.step
            .length()
            .filter(|_| self.step.begin(self.step.index(local)) == local)
    }
}

fn truncate(time: Micros, width: Micros) -> Micros {
    time.div_euclid(width) * width
}

/// Greatest common divisor of two positive lengths.
pub(crate) fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{DateTime, Datelike, Offset, TimeZone, Timelike};
    use chrono_tz::Tz;
    use proptest::prelude::*;

    const MINUTE: Micros = 60_000_000;
    const HOUR: Micros = 60 * MINUTE;
    const ZONES: [&str; 4] = [
        "Europe/Berlin",
        "America/New_York",
        "Asia/Kolkata",
        "Australia/Lord_Howe",
    ];

    fn local(zone: &str, step: CalendarStep, steps: usize) -> WindowAssigner {
        WindowAssigner::Local {
            calendar: Calendar {
                zone: LocalTime::from_zone(zone.parse().expect("a zone")),
                step,
            },
            steps,
        }
    }

    fn at(text: &str) -> Micros {
        DateTime::parse_from_rfc3339(text)
            .expect("a time")
            .timestamp_micros()
    }

    /// Window starts by looking at every minute: a window begins where the label changes.
    fn scanned<L: PartialEq>(
        zone: &str,
        from: Micros,
        to: Micros,
        label: impl Fn(DateTime<Tz>) -> L,
    ) -> Vec<Micros> {
        let tz: Tz = zone.parse().expect("a zone");
        let of = |t: Micros| {
            label(
                tz.from_utc_datetime(
                    &DateTime::from_timestamp_micros(t)
                        .expect("a time")
                        .naive_utc(),
                ),
            )
        };
        let mut starts = Vec::new();
        let mut before = of(from - MINUTE);
        for t in (from..to).step_by(MINUTE as usize) {
            let now = of(t);
            if now != before {
                starts.push(t);
            }
            before = now;
        }
        starts
    }

    fn starts(windows: WindowAssigner, from: Micros, to: Micros) -> Vec<Micros> {
        let mut starts: Vec<Micros> = (from..to)
            .step_by(MINUTE as usize)
            .map(|t| windows.pane(t))
            .collect();
        starts.dedup();
        starts.retain(|start| *start >= from);
        starts
    }

    /// Days around every clock change of these zones in 2024.
    const CHANGES: [(&str, &str); 4] = [
        ("2024-03-08T00:00:00Z", "2024-03-13T00:00:00Z"),
        ("2024-03-28T00:00:00Z", "2024-04-10T00:00:00Z"),
        ("2024-10-03T00:00:00Z", "2024-10-09T00:00:00Z"),
        ("2024-10-25T00:00:00Z", "2024-11-06T00:00:00Z"),
    ];

    /// The table of the module's documentation, in minutes.
    #[test]
    fn a_hop_assigns_panes_and_ends() {
        let hop = WindowAssigner::Fixed {
            slide: 10,
            size: 25,
        };
        let at = |hour: i64, minute: i64| hour * 60 + minute;
        let time = at(10, 7);
        assert_eq!(hop.pane(time), at(10, 5));
        assert_eq!(hop.first_end(time), at(10, 15));
        assert_eq!(hop.last_end(time), at(10, 25));
        assert_eq!(hop.next_start(time), at(10, 10));
        assert_eq!(hop.start(at(10, 15)), at(9, 50));
        assert_eq!(hop.next_end(at(10, 15)), at(10, 25));
        assert_eq!(hop.previous_end(at(10, 15)), at(10, 5));
        assert_eq!(hop.passed(time), at(10, 5));
    }

    #[test]
    fn days_weeks_and_months_are_those_of_the_local_calendar() {
        for zone in ZONES {
            for (from, to) in CHANGES.map(|(from, to)| (at(from), at(to))) {
                let days = scanned(zone, from, to, |t| t.num_days_from_ce());
                assert_eq!(
                    starts(local(zone, CalendarStep::Days(1), 1), from, to),
                    days,
                    "{zone}"
                );
                let weeks = scanned(zone, from, to, |t| t.iso_week());
                assert_eq!(
                    starts(local(zone, CalendarStep::Days(7), 1), from, to),
                    weeks,
                    "{zone}"
                );
                let months = scanned(zone, from, to, |t| t.month());
                assert_eq!(
                    starts(local(zone, CalendarStep::Months(1), 1), from, to),
                    months,
                    "{zone}"
                );
            }
        }
        let berlin = local("Europe/Berlin", CalendarStep::Days(1), 1);
        let hours = |day: &str| (berlin.first_end(at(day)) - berlin.pane(at(day))) / HOUR;
        assert_eq!(
            [
                "2024-03-31T12:00:00Z",
                "2024-10-27T12:00:00Z",
                "2024-10-28T12:00:00Z"
            ]
            .map(hours),
            [23, 25, 24]
        );
        let quarter = local("Europe/Berlin", CalendarStep::Months(3), 1);
        assert_eq!(
            quarter.pane(at("2024-05-17T00:00:00Z")),
            at("2024-03-31T22:00:00Z")
        );
        assert_eq!(
            quarter.first_end(at("2024-05-17T00:00:00Z")),
            at("2024-06-30T22:00:00Z")
        );
    }

    #[test]
    fn hours_are_those_of_the_local_clock() {
        for zone in ZONES {
            for (from, to) in CHANGES.map(|(from, to)| (at(from), at(to))) {
                // An hour that occurs twice is two hours; where the clock is put back by half an
                // hour, it is a longer one.
                let hours = scanned(zone, from, to, |t| {
                    let offset = if zone == "Australia/Lord_Howe" {
                        0
                    } else {
                        t.offset().fix().local_minus_utc()
                    };
                    (t.num_days_from_ce(), t.hour(), offset)
                });
                assert_eq!(
                    starts(local(zone, CalendarStep::Clock(HOUR), 1), from, to),
                    hours,
                    "{zone}"
                );
                let quarters = scanned(zone, from, to, |t| (t.num_days_from_ce(), t.hour() / 6));
                assert_eq!(
                    starts(local(zone, CalendarStep::Clock(6 * HOUR), 1), from, to),
                    quarters,
                    "{zone}"
                );
            }
        }
    }

    #[test]
    fn a_day_whose_midnight_is_skipped_or_repeated_is_one_day() {
        // Midnight is skipped, and the last hour occurs twice.
        let beirut = local("Asia/Beirut", CalendarStep::Days(1), 1);
        assert_eq!(
            beirut.pane(at("2022-03-27T10:00:00Z")),
            at("2022-03-26T22:00:00Z")
        );
        assert_eq!(
            beirut.first_end(at("2022-10-29T10:00:00Z")) - beirut.pane(at("2022-10-29T10:00:00Z")),
            25 * HOUR
        );
        // The first hour occurs twice.
        let havana = local("America/Havana", CalendarStep::Days(1), 1);
        assert_eq!(
            havana.first_end(at("2024-11-03T12:00:00Z")) - havana.pane(at("2024-11-03T12:00:00Z")),
            25 * HOUR
        );
        // At a minute past midnight the clock was put back into the day before, which does not
        // continue.
        let st_johns = local("America/St_Johns", CalendarStep::Days(1), 1);
        let midnight = at("2006-10-29T02:30:00Z");
        assert_eq!(st_johns.pane(midnight), midnight);
        assert_eq!(st_johns.pane(midnight + 30 * MINUTE), midnight);
        assert_eq!(st_johns.first_end(midnight), midnight + 25 * HOUR);
        // A zone skipped a whole day.
        let apia = local("Pacific/Apia", CalendarStep::Days(1), 1);
        assert_eq!(
            apia.first_end(at("2011-12-30T09:00:00Z")),
            at("2011-12-30T10:00:00Z")
        );
        assert_eq!(
            apia.pane(at("2011-12-30T11:00:00Z")),
            at("2011-12-30T10:00:00Z")
        );
    }

    #[test]
    fn months_are_counted_as_the_calendar_does() {
        for day in (-800_000..800_000).step_by(17) {
            let date = DateTime::from_timestamp(day * 86_400, 0)
                .expect("a day")
                .date_naive();
            assert_eq!(
                month_of(day),
                (i64::from(date.year()) - 1970) * 12 + i64::from(date.month0()),
                "{date}"
            );
            let first = date
                .with_day(1)
                .expect("a first")
                .and_time(Default::default())
                .and_utc()
                .timestamp()
                / 86_400;
            assert_eq!(first_of(month_of(day)), first, "{date}");
        }
    }

    fn any_windows() -> impl Strategy<Value = WindowAssigner> {
        let zone = prop::sample::select(
            [
                ZONES.as_slice(),
                &["America/St_Johns", "America/Havana", "UTC"],
            ]
            .concat(),
        );
        let step = prop_oneof![
            (1i64..5).prop_map(CalendarStep::Days),
            Just(CalendarStep::Days(7)),
            (1i64..5).prop_map(CalendarStep::Months),
            prop::sample::select(vec![15 * MINUTE, 20 * MINUTE, HOUR, 6 * HOUR, 7 * HOUR])
                .prop_map(CalendarStep::Clock),
        ];
        let in_zone =
            (zone, step, 1usize..40).prop_map(|(zone, step, steps)| local(zone, step, steps));
        let fixed = (1i64..100, 0i64..300).prop_map(|(slide, more)| WindowAssigner::Fixed {
            slide: slide * MINUTE,
            size: (slide + more) * MINUTE,
        });
        prop_oneof![in_zone, fixed]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn windows_follow_each_other_and_agree(windows in any_windows(), time in 0i64..2_000_000_000_000_000) {
            let (first, last) = (windows.first_end(time), windows.last_end(time));
            prop_assert!(windows.start(first) <= time && time < first);
            prop_assert!(windows.start(last) <= time && time < last);
            prop_assert!(windows.passed(time) <= time && windows.next_end(windows.passed(time)) == first);
            prop_assert!(windows.start(windows.next_end(last)) > time);
            prop_assert_eq!(windows.next_start(time), windows.start(windows.next_end(last)));
            prop_assert!(windows.start(windows.previous_end(first)) < windows.pane(time));
            prop_assert!(windows.previous_end(first) <= time);
            let (mut end, mut count) = (first, 1);
            while end < last {
                prop_assert!(end - windows.start(end) <= windows.longest());
                prop_assert_eq!(windows.previous_end(windows.next_end(end)), end);
                prop_assert_eq!(windows.passed(end), end);
                (end, count) = (windows.next_end(end), count + 1);
            }
            prop_assert_eq!((end, count), (last, windows.count(time)));
            // A pane is in the same windows throughout, and begins where some window begins or
            // ends.
            let pane = windows.pane(time);
            prop_assert!(pane <= time);
            prop_assert_eq!((windows.first_end(pane), windows.last_end(pane)), (first, last));
        }
    }
}
