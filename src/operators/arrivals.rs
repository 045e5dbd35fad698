//! How far arrival time has come, as far as the log gives evidence of it.
//!
//! Retention by arrival time deletes rows for good, so a machine's clock that is wrong for a while
//! must not move it: a step of up to [`STEP`] is trusted at once, a longer one only when later
//! arrivals have continued from there for [`CONFIRMED`]. A clock that goes back is trusted at once:
//! rows that are retained for longer are not lost.
//!
//! ```text
//! arrivals                                       trusted
//! days 100 to 103, a frame a minute              day 103
//! then one frame on day 503                      day 103: an unconfirmed step
//! then day 103 again                             day 104 a day later; the step is forgotten
//! or day 503 on, for a day                       day 504
//! one frame a day, on days 100, 101, 102         day 101: each confirms the one before
//! ```
//!
//! After a long step only time in short steps counts, because a clock that jumps again looks like a
//! long silence: frames from 00:00 to 02:00 on day 503, one each minute, and then one at 00:00 on
//! day 504 confirm no more than day 503, 02:00.

use serde::{Deserialize, Serialize};

use crate::event::{MICROS_PER_DAY, MICROS_PER_HOUR, Micros};

/// Longest step between two arrivals that is trusted without further evidence. Retention by arrival
/// time allows for it, so that it deletes nothing too early.
pub(crate) const STEP: Micros = MICROS_PER_HOUR;
/// How long arrivals must continue after a longer step, or after a start, until it is trusted.
const CONFIRMED: Micros = MICROS_PER_DAY;

/// Arrival time as far as it is trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Arrivals {
    /// None while too little is known.
    reached: Option<Micros>,
    #[serde(rename = "doubtful")]
    unconfirmed: Option<UnconfirmedStep>,
}

/// Arrivals since a step that is not trusted yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct UnconfirmedStep {
    /// The first arrival after the step.
    first: Micros,
    /// The latest arrival since.
    last: Micros,
    /// Time that passed among them in steps of up to [`STEP`].
    steady: Micros,
}

impl UnconfirmedStep {
    fn begin(at: Micros) -> Self {
        Self {
            first: at,
            last: at,
            steady: 0,
        }
    }
}

impl Arrivals {
    /// The time up to which arrivals are trusted; none while too little is known.
    pub fn reached(&self) -> Option<Micros> {
        self.reached
    }

    /// Takes the arrival of the log's next frame into account.
    pub fn observe(&mut self, at: Micros) {
        if let Some(reached) = self.reached
            && at <= reached.saturating_add(STEP)
        {
            let has_gone_back = at < reached.saturating_sub(STEP);
            self.reached = Some(if has_gone_back { at } else { reached.max(at) });
            self.unconfirmed = None;
            return;
        }
        let Some(mut step) = self.unconfirmed.take() else {
            self.unconfirmed = Some(UnconfirmedStep::begin(at));
            return;
        };
        let (since_first, since_last) =
            (at.saturating_sub(step.first), at.saturating_sub(step.last));
        if since_last < -STEP || since_first < 0 {
            // The clock has gone back: nothing confirms what came before.
            self.unconfirmed = Some(UnconfirmedStep::begin(at));
        } else if since_last >= CONFIRMED {
            // This step is unconfirmed itself, but it confirms what came so long before it.
            self.reached = self.reached.max(Some(step.last));
            self.unconfirmed = Some(UnconfirmedStep::begin(at));
        } else {
            if since_last <= STEP {
                step.steady += since_last.max(0);
            }
            step.last = step.last.max(at);
            if since_first >= CONFIRMED {
                // Gaps between arrivals do not count: a clock that jumped looks like a long
                // silence.
                self.reached = self.reached.max(Some(step.first + step.steady));
            } else {
                self.unconfirmed = Some(step);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: Micros = MICROS_PER_HOUR / 60;

    fn after(times: impl IntoIterator<Item = Micros>) -> Arrivals {
        let mut arrivals = Arrivals::default();
        times.into_iter().for_each(|at| arrivals.observe(at));
        arrivals
    }

    /// A frame a minute for so many days, beginning with one.
    fn days(from: i64, number: i64) -> impl Iterator<Item = Micros> {
        (0..number * 24 * 60).map(move |n| from * MICROS_PER_DAY + n * MINUTE)
    }

    #[test]
    fn steady_arrivals_are_trusted_after_a_day_and_then_at_once() {
        assert_eq!(after(days(100, 1)).reached(), None);
        let three = after(days(100, 3));
        assert_eq!(three.reached(), Some(103 * MICROS_PER_DAY - MINUTE));
    }

    #[test]
    fn a_clock_that_is_400_days_ahead_for_a_while_moves_nothing() {
        let honest = after(days(100, 3)).reached();
        for frames in [1, 2, 500] {
            let wrong = (0..frames).map(|n| 503 * MICROS_PER_DAY + n * MINUTE);
            assert_eq!(
                after(days(100, 3).chain(wrong.clone())).reached(),
                honest,
                "{frames} frames"
            );
            let back = days(103, 1);
            assert_eq!(
                after(days(100, 3).chain(wrong).chain(back)).reached(),
                Some(104 * MICROS_PER_DAY - MINUTE)
            );
        }
        // Also where it is the log's beginning that is wrong.
        assert_eq!(
            after(days(500, 1).take(300).chain(days(100, 2))).reached(),
            Some(102 * MICROS_PER_DAY - MINUTE)
        );
    }

    #[test]
    fn after_a_long_step_only_short_steps_count() {
        let day = 503 * MICROS_PER_DAY;
        let morning = (0..=120).map(|n| day + n * MINUTE);
        let arrivals = after(days(100, 3).chain(morning).chain([day + MICROS_PER_DAY]));
        assert_eq!(arrivals.reached(), Some(day + 120 * MINUTE));
        let daily = [100, 101, 102].map(|day| day * MICROS_PER_DAY);
        assert_eq!(after(daily).reached(), Some(101 * MICROS_PER_DAY));
    }

    #[test]
    fn a_clock_that_goes_back_is_trusted_at_once() {
        let back = after(days(500, 3).chain(days(100, 1).take(1)));
        assert_eq!(back.reached(), Some(100 * MICROS_PER_DAY));
    }

    #[test]
    fn a_long_silence_is_trusted_when_arrivals_have_continued_for_a_day() {
        assert_eq!(
            after(days(100, 3).chain(days(400, 1))).reached(),
            Some(103 * MICROS_PER_DAY - MINUTE)
        );
        assert_eq!(
            after(days(100, 3).chain(days(400, 2))).reached(),
            Some(402 * MICROS_PER_DAY - MINUTE)
        );
        // One frame a day, with one that is far ahead among them.
        let daily = |from: i64, to: i64| (from..to).map(|day| day * MICROS_PER_DAY);
        let sparse = daily(100, 110)
            .chain([700 * MICROS_PER_DAY])
            .chain(daily(110, 120));
        assert_eq!(after(sparse).reached(), Some(118 * MICROS_PER_DAY));
    }

    proptest! {
        /// Honest arrivals, among them stretches of less than a day under a clock that is ahead:
        /// trust never exceeds the honest clock by more than a step.
        #[test]
        fn less_than_a_day_of_a_wrong_clock_is_never_trusted(
            stretches in prop::collection::vec((1i64..200, 0i64..600, 1i64..48_000, 1i64..23 * 60), 1..20)
        ) {
            let (mut arrivals, mut honest) = (Arrivals::default(), 100 * MICROS_PER_DAY);
            for (frames, silence, ahead, wrong) in stretches {
                for _ in 0..frames {
                    honest += MINUTE;
                    arrivals.observe(honest);
                    prop_assert!(arrivals.reached() <= Some(honest + STEP));
                }
                honest += silence * MINUTE;
                for n in 0..wrong {
                    arrivals.observe(honest + ahead * 15 * MINUTE + n * MINUTE);
                    prop_assert!(arrivals.reached() <= Some(honest + n * MINUTE + STEP));
                }
                honest += wrong * MINUTE;
                arrivals.observe(honest);
            }
        }
    }
}
