//! Event time: how far each partition of a stream has come, and what a clock gone wrong may not do to it.

use serde::{Deserialize, Serialize};

use crate::event::Micros;

/// The watermark of one partition: no event older than it is expected there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watermark {
    /// Greatest event time less the disorder; none before two records agree.
    at: Option<Micros>,
    /// The time of a record further ahead than `max_ahead`, or of the first one: it moves nothing before the next one confirms it.
    remembered: Option<Micros>,
    /// An ended file, or a partition silent for the stream's `idle`: it holds nobody back.
    idle: bool,
    /// Time told by ticks since the last record.
    #[serde(default)]
    silent: Micros,
    /// Records so far.
    #[serde(default)]
    seen: u64,
}

impl Watermark {
    /// One that stands where a stream's does.
    pub fn standing(at: Option<Micros>) -> Self {
        Self { at, ..Self::default() }
    }

    pub fn at(&self) -> Option<Micros> {
        self.at
    }

    /// Records so far.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    pub fn is_idle(&self) -> bool {
        self.idle
    }

    pub fn set_idle(&mut self) {
        self.idle = true;
    }

    /// So much time has passed without a record; from `idle_after` on the partition is idle. True if it became so just now.
    pub fn tick(&mut self, elapsed: Micros, idle_after: Micros) -> bool {
        self.at = self.at.map(|at| at.saturating_add(elapsed));
        self.silent = self.silent.saturating_add(elapsed);
        let was_idle = self.idle;
        self.idle |= self.silent >= idle_after;
        self.idle && !was_idle
    }

    /// Takes a record's event time into account.
    pub fn observe(&mut self, time: Micros, disorder: Micros, max_ahead: Micros) {
        (self.idle, self.silent, self.seen) = (false, 0, self.seen + 1);
        let is_ahead = |at: Option<Micros>, time: Micros| at.is_none_or(|at| time > at.saturating_add(max_ahead));
        if !is_ahead(self.at, time) {
            self.remembered = None;
            self.advance(time, disorder);
            return;
        }
        let Some(remembered) = self.remembered.take() else {
            self.remembered = Some(time);
            return;
        };
        self.advance(remembered.min(time), disorder);
        let greater = remembered.max(time);
        self.remembered = is_ahead(self.at, greater).then_some(greater);
    }

    fn advance(&mut self, time: Micros, disorder: Micros) {
        let at = time.saturating_sub(disorder);
        self.at = Some(self.at.map_or(at, |before| before.max(at)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DISORDER: Micros = 10;
    const AHEAD: Micros = 1_000;

    fn after(times: &[Micros]) -> Watermark {
        let mut watermark = Watermark::default();
        times.iter().for_each(|t| watermark.observe(*t, DISORDER, AHEAD));
        watermark
    }

    #[test]
    fn one_wrong_clock_among_good_ones_moves_nothing() {
        assert_eq!(after(&[100]).at(), None);
        assert_eq!(after(&[100, 110]).at(), Some(90));
        assert_eq!(after(&[100, 110, 120]).at(), Some(110));
        assert_eq!(after(&[100, 110, 999_999, 120]).at(), Some(110));
        assert_eq!(after(&[999_999, 110, 120]).at(), Some(110));
    }

    #[test]
    fn a_real_jump_is_believed_when_it_is_confirmed() {
        assert_eq!(after(&[100, 110, 50_000, 50_005]).at(), Some(49_990));
        assert_eq!(after(&[100, 110, 50_000, 90_000, 50_010]).at(), Some(50_000));
    }

    proptest! {
        #[test]
        fn it_never_goes_back(times in proptest::collection::vec(0i64..100_000, 0..60)) {
            let mut watermark = Watermark::default();
            let mut before = None;
            for time in times {
                watermark.observe(time, DISORDER, AHEAD);
                prop_assert!(watermark.at() >= before);
                before = watermark.at();
            }
        }
    }
}
