//! How many records of a stream arrived in each of the last seconds.

use std::collections::BTreeMap;

use crate::event::{MICROS_PER_SECOND, Micros, bucket};

/// Whole seconds that are shown.
const SECONDS: i64 = 60;
/// Seconds over which the rate is the mean.
const MEAN_SECONDS: usize = 5;
/// By how many seconds the frames of one source may come after those of another.
const MAX_DISORDER: i64 = 5;
/// Seconds that are remembered: records arrive while the history is read.
const MAX_SECONDS: usize = 64;

/// Numbers of records by second of their arrival.
#[derive(Debug, Default)]
pub(crate) struct ArrivalRate {
    seconds: BTreeMap<i64, u64>,
}

impl ArrivalRate {
    pub fn add(&mut self, received_at: Micros, records: u64) {
        let second = bucket(received_at, MICROS_PER_SECOND);
        let newest = self.seconds.keys().next_back().copied();
        if newest.is_some_and(|newest| second + MAX_DISORDER < newest) {
            // The clock was set back: the seconds that come again are counted from 0.
            self.seconds.retain(|counted, _| *counted < second);
        }
        *self.seconds.entry(second).or_default() += records;
        if self.seconds.len() > MAX_SECONDS {
            self.seconds.pop_first();
        }
    }

    /// The whole seconds before `now`, oldest first; those without records too.
    pub fn history(&self, now: Micros) -> Vec<(i64, u64)> {
        let end = bucket(now, MICROS_PER_SECOND);
        let records = |second: i64| self.seconds.get(&second).copied().unwrap_or(0);
        (end - SECONDS..end)
            .map(|second| (second, records(second)))
            .collect()
    }
}

/// The mean of the last seconds of a history, in records per second.
pub(super) fn per_second(history: &[(i64, u64)]) -> f64 {
    let last = &history[history.len().saturating_sub(MEAN_SECONDS)..];
    let sum: u64 = last.iter().map(|(_, records)| records).sum();
    sum as f64 / last.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: i64 = 1_465_560_000;

    fn at(second: i64) -> Micros {
        (NOON + second) * MICROS_PER_SECOND + 999_999
    }

    #[test]
    fn the_history_is_that_of_the_whole_seconds_before_now() {
        let mut rate = ArrivalRate::default();
        for (second, records) in [(-70, 9), (-60, 1), (-5, 10), (-1, 4), (-1, 1), (0, 7)] {
            rate.add(at(second), records);
        }
        let history = rate.history(at(0));
        assert_eq!(history.len(), 60);
        assert_eq!(history[0], (NOON - 60, 1));
        assert_eq!(history[59], (NOON - 1, 5));
        assert_eq!(history.iter().map(|(_, n)| n).sum::<u64>(), 16);
        assert!((per_second(&history) - 3.0).abs() < 1e-9);
        assert!(per_second(&[]).abs() < 1e-9);
    }

    #[test]
    fn it_stays_small_and_survives_a_clock_that_is_set_back() {
        let mut rate = ArrivalRate::default();
        (0..1_000).for_each(|second| rate.add(at(second), 1));
        assert_eq!(rate.seconds.len(), MAX_SECONDS);
        for newest in [979, 0] {
            rate.add(at(newest), 3);
            // What was counted in a second that comes again is not added to.
            let history = rate.history(at(newest + 1));
            assert_eq!(history.last(), Some(&(NOON + newest, 3)));
            assert_eq!(rate.seconds.keys().next_back(), Some(&(NOON + newest)));
        }
    }
}
