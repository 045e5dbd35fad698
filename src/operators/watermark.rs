//! Event time: how far each partition of a stream has come, and how a wrong clock is kept from
//! moving it.
//!
//! A watermark follows every record up to `max_ahead` above it. A record further ahead is a
//! *candidate*: it may be the first after a pause, or come from a device whose clock is fast.
//! Trusted wrongly, it makes every honest record that follows late, for good; not trusted, it costs
//! a delay. So a candidate waits for evidence from the records after it:
//!
//! | evidence | for |
//! |---|---|
//! | [`IN_A_ROW`] candidates in a row | a pause in a busy stream |
//! | [`CLIMBING`] that climb by more than `max_ahead` in all, before [`IN_A_ROW`] records were on time | a sparse stream: a record a day |
//! | 2 in a row that the arrival explains: the source was silent for as long as time jumps | a live stream after a night |
//!
//! Then the watermark follows the *earliest* of them, which all of them reach. A record between the
//! watermark and `max_ahead` above it, which the jump would have made late, refutes all candidates;
//! a late record proves nothing. At most `IN_A_ROW` candidates wait.
//!
//! With `max_ahead = 1h`, disorder 0, and a device (`!`) that is a day fast; the records come from
//! a file, all at once, so that arrivals explain nothing:
//!
//! ```text
//! … 10:00  10:01  10:02!+1d  10:03!+1d  10:04   refuted: the watermark is 10:04, nothing is late
//! Mon  Tue  Wed  Thu  Fri                       the first: Mon with Thu's record, Tue with Fri's
//! … Fri 18:00  Mon 08:00  08:01 … 08:15         busy on Friday: Mon 08:15, with the sixteenth
//! ```
//!
//! Live, two records are enough in the third line: the source was silent from Friday to Monday, for
//! as long as time jumps, so the watermark is Mon 08:01 with the record of 08:01.
//!
//! So bursts of up to `IN_A_ROW - 1` fast records, with at least one record on time between two of
//! them, make no honest record late. Before the partition has had as many records on time
//! since it began or jumped, bursts that climb by more than `max_ahead` may be `CLIMBING - 1` long.
//! A real jump is followed at its `IN_A_ROW`th record at the latest, unless a record in between is
//! on time by the old watermark.
//!
//! In a partition without a watermark the first records are candidates too, since they may be the
//! fast ones. There two in a row are enough if the arrival or the stream's own watermark supports
//! them, or if nothing can refute them any more: the file has ended, or the source is connected and
//! silent. Candidates above a watermark keep waiting in that case: silence does not distinguish a
//! pause from a fast clock. Their windows stay open, and `--final` closes them.
//!
//! All of this is a function of the partition's records, in the order of the log, of the arrival
//! times stored with them, and of the stream's watermark before them.

use serde::{Deserialize, Serialize};

use crate::event::Micros;

/// Candidates in a row, none of them refuted, that the watermark follows.
pub(super) const IN_A_ROW: usize = 16;
/// Candidates that climb by more than `max_ahead`, each above those before, that the watermark
/// follows in a partition that is not busy.
pub(super) const CLIMBING: usize = 4;
/// Candidates that are enough with other evidence.
const EXPLAINED: usize = 2;

/// How a stream's time moves, from its declaration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rules {
    /// How far event times may be out of order, in µs.
    disorder: Micros,
    /// How far above the watermark a record may be, in µs; one further ahead is a candidate.
    ahead: Micros,
}

impl Rules {
    /// From `disorder` and `max_ahead` of the declaration, in µs.
    pub fn new(disorder: Micros, max_ahead: Micros) -> Self {
        // A record in order is above its own watermark by the disorder.
        Self {
            disorder,
            ahead: max_ahead.max(disorder),
        }
    }

    fn is_ahead(&self, at: Option<Micros>, time: Micros) -> bool {
        at.is_none_or(|at| time > at.saturating_add(self.ahead))
    }
}

/// A record's time, and what decides whether it is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordTime {
    /// Its event time.
    pub time: Micros,
    /// Arrival of its frame.
    pub received_at: Micros,
    /// The stream's watermark before it.
    pub stream_watermark: Option<Micros>,
}

/// A time further ahead than `max_ahead`, or one of a partition's first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Candidate {
    time: Micros,
    /// The arrival or the stream's watermark supports it.
    is_explained: bool,
}

/// The watermark of one partition: no event older than it is expected there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Watermark {
    /// Greatest event time less the disorder; none before the first candidates are trusted.
    at: Option<Micros>,
    /// Arrival of the last record that was on time, moved by ticks as the watermark is.
    arrived: Micros,
    /// In the order of their records, at most [`IN_A_ROW`].
    candidates: Vec<Candidate>,
    /// Records on time since it began or jumped, up to [`IN_A_ROW`]. With that many the partition
    /// is busy, and does not climb by more than `max_ahead` regularly.
    steady: usize,
    /// An ended file, or a partition silent for the stream's `idle`: it does not hold the stream's
    /// watermark back.
    idle: bool,
    /// Time reported by ticks since the last record.
    silent: Micros,
    /// Records so far.
    seen: u64,
}

impl Watermark {
    /// A watermark at a given time, without candidates.
    pub fn fixed_at(at: Option<Micros>) -> Self {
        Self {
            at,
            ..Self::default()
        }
    }

    /// The watermark in µs; none before the first candidates are trusted.
    pub fn at(&self) -> Option<Micros> {
        self.at
    }

    /// Records so far.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Whether it does not hold the stream's watermark back.
    pub fn is_idle(&self) -> bool {
        self.idle
    }

    /// Nothing is expected in the partition for now; its next record ends that.
    pub fn set_idle(&mut self) {
        self.idle = true;
    }

    /// Whether silence can move it: it has a watermark, or candidates enough to begin with.
    pub fn is_waiting(&self) -> bool {
        self.at.is_some() || self.candidates.len() >= EXPLAINED
    }

    /// The partition has ended. First records that nothing has refuted are trusted.
    pub fn end(&mut self, rules: Rules) {
        self.idle = true;
        self.begin(rules);
    }

    /// Time has passed without a record; after `idle_after` the partition is idle. True if it has
    /// become idle just now.
    pub fn tick(&mut self, elapsed: Micros, idle_after: Micros, rules: Rules) -> bool {
        self.begin(rules);
        self.at = self.at.map(|at| at.saturating_add(elapsed));
        self.arrived = self.arrived.saturating_add(elapsed);
        self.silent = self.silent.saturating_add(elapsed);
        let was_idle = self.idle;
        self.idle |= self.silent >= idle_after;
        self.idle && !was_idle
    }

    /// Takes a record's event time into account.
    pub fn observe(&mut self, record: RecordTime, rules: Rules) {
        (self.idle, self.silent, self.seen) = (false, 0, self.seen + 1);
        let RecordTime {
            time, received_at, ..
        } = record;
        match self.at {
            Some(at) if time < at => {}
            at if rules.is_ahead(at, time) => {
                if self.candidates.len() == IN_A_ROW {
                    self.candidates.remove(0);
                }
                self.candidates.push(Candidate {
                    time,
                    is_explained: self.is_explained(record, rules),
                });
                // Each round removes at least the earliest candidate.
                while self.has_evidence(rules) {
                    self.arrived = received_at;
                    self.steady = 0;
                    self.follow(rules);
                }
            }
            _ => {
                self.candidates.clear();
                self.arrived = received_at;
                self.steady = (self.steady + 1).min(IN_A_ROW);
                self.advance(time, rules);
            }
        }
    }

    /// Whether anything but the partition's own records supports a record's time.
    fn is_explained(&self, record: RecordTime, rules: Rules) -> bool {
        let RecordTime {
            time,
            received_at,
            stream_watermark,
        } = record;
        match self.at {
            Some(at) => {
                let passed = received_at.saturating_sub(self.arrived).max(0);
                !rules.is_ahead(Some(at.saturating_add(passed)), time)
            }
            None => {
                let is_live = time.saturating_sub(received_at).saturating_abs() <= rules.ahead;
                let is_near = !rules.is_ahead(stream_watermark, time);
                is_live || stream_watermark.is_some() && is_near
            }
        }
    }

    /// Whether the candidates have one of the three kinds of evidence.
    fn has_evidence(&self, rules: Rules) -> bool {
        let explained = self
            .candidates
            .iter()
            .rev()
            .take(EXPLAINED)
            .filter(|c| c.is_explained);
        self.candidates.len() >= IN_A_ROW
            || explained.count() == EXPLAINED
            || self.steady < IN_A_ROW && self.is_climbing(rules)
    }

    /// Whether candidates, from the earliest on, climb by more than `max_ahead`. One that falls back
    /// does not count.
    fn is_climbing(&self, rules: Rules) -> bool {
        let Some(earliest) = self.candidates.iter().map(|c| c.time).min() else {
            return false;
        };
        let (mut count, mut top) = (0, earliest);
        for Candidate { time, .. } in self.candidates.iter().skip_while(|c| c.time > earliest) {
            count += usize::from(*time >= top);
            top = top.max(*time);
        }
        count >= CLIMBING && rules.is_ahead(Some(earliest), top)
    }

    /// Moves to the earliest candidate, and from there to the others, some of which may still be too
    /// far ahead.
    fn follow(&mut self, rules: Rules) {
        let candidates = std::mem::take(&mut self.candidates);
        if let Some(earliest) = candidates.iter().map(|c| c.time).min() {
            self.advance(earliest, rules);
        }
        for candidate in candidates {
            if rules.is_ahead(self.at, candidate.time) {
                self.candidates.push(candidate);
            } else {
                self.candidates.clear();
                self.advance(candidate.time, rules);
            }
        }
    }

    /// The watermark as it would be if the partition ended now.
    pub fn if_ended(&self, rules: Rules) -> Option<Micros> {
        let mut ended = self.clone();
        ended.begin(rules);
        ended.at
    }

    /// Trusts the first records, since nothing can refute them any more.
    fn begin(&mut self, rules: Rules) {
        if self.at.is_none() && self.candidates.len() >= EXPLAINED {
            self.follow(rules);
        }
    }

    fn advance(&mut self, time: Micros, rules: Rules) {
        let at = time.saturating_sub(rules.disorder);
        self.at = Some(self.at.map_or(at, |before| before.max(at)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULES: Rules = Rules {
        disorder: 10,
        ahead: 1_000,
    };
    /// Arrival of a replay: all at once, and long after.
    const REPLAY: Micros = 1_000_000_000;
    const DAY: Micros = 86_400;

    fn observe(watermark: &mut Watermark, time: Micros, received_at: Micros) {
        watermark.observe(
            RecordTime {
                time,
                received_at,
                stream_watermark: None,
            },
            RULES,
        );
    }

    fn replayed(times: impl IntoIterator<Item = Micros>) -> Watermark {
        let mut watermark = Watermark::default();
        times
            .into_iter()
            .for_each(|t| observe(&mut watermark, t, REPLAY));
        watermark
    }

    /// The watermark after records with a time and an arrival.
    fn after(rules: Rules, records: impl Iterator<Item = (Micros, Micros)>) -> Option<Micros> {
        let mut watermark = Watermark::default();
        for (time, received_at) in records {
            let record = RecordTime {
                time,
                received_at,
                stream_watermark: None,
            };
            watermark.observe(record, rules);
        }
        watermark.at()
    }

    /// A busy stream up to a time.
    fn busy(to: Micros) -> Vec<Micros> {
        (to - 40..=to).collect()
    }

    #[test]
    fn first_records_are_trusted_together() {
        assert_eq!(replayed(100..115).at(), None);
        assert_eq!(replayed(100..116).at(), Some(105));
        // The first may be the fast ones.
        assert_eq!(
            replayed([DAY; 15].into_iter().chain([100, 101])).at(),
            Some(91)
        );
        assert_eq!(
            replayed([100].into_iter().chain([DAY; 15]).chain([101])).at(),
            Some(91)
        );
    }

    #[test]
    fn first_records_of_a_live_stream_are_trusted_at_once() {
        let mut watermark = Watermark::default();
        observe(&mut watermark, 5_000, 5_010);
        assert_eq!(watermark.at(), None);
        observe(&mut watermark, 5_020, 5_030);
        assert_eq!(watermark.at(), Some(5_010));
    }

    #[test]
    fn first_records_near_the_streams_watermark_are_trusted_at_once() {
        let mut watermark = Watermark::default();
        for time in [500, 510] {
            watermark.observe(
                RecordTime {
                    time,
                    received_at: REPLAY,
                    stream_watermark: Some(300),
                },
                RULES,
            );
        }
        assert_eq!(watermark.at(), Some(500));
    }

    #[test]
    fn the_end_of_a_file_confirms_its_first_records_but_not_a_jump() {
        let mut watermark = replayed([100, 110]);
        watermark.end(RULES);
        assert_eq!((watermark.at(), watermark.is_idle()), (Some(100), true));
        let mut watermark = replayed(busy(100).into_iter().chain([DAY, DAY + 1]));
        watermark.end(RULES);
        assert_eq!(watermark.at(), Some(90));
        let mut single = replayed([100]);
        single.end(RULES);
        assert_eq!(single.at(), None);
    }

    #[test]
    fn silence_confirms_first_records_but_not_a_jump() {
        let mut watermark = replayed([100, 110]);
        assert!(watermark.is_waiting() && !watermark.tick(50, 60, RULES));
        assert_eq!(watermark.at(), Some(150));
        let mut single = replayed([100]);
        assert!(!single.is_waiting() && single.tick(100, 60, RULES));
        assert_eq!(single.at(), None);
        let mut watermark = replayed(busy(100).into_iter().chain([DAY, DAY + 1]));
        assert!(watermark.tick(100, 60, RULES));
        assert_eq!(watermark.at(), Some(190));
    }

    #[test]
    fn a_jump_is_followed_at_its_sixteenth_record() {
        let jump = |n: usize| {
            replayed(
                busy(100)
                    .into_iter()
                    .chain((0..n as Micros).map(|t| DAY + t)),
            )
        };
        assert_eq!(jump(IN_A_ROW - 1).at(), Some(90));
        assert_eq!(jump(IN_A_ROW).at(), Some(DAY + 5));
        // Late records neither refute it nor count for it.
        let late = |n: Micros| {
            busy(100)
                .into_iter()
                .chain((0..n).flat_map(|t| [DAY + t, 50]))
        };
        assert_eq!(replayed(late(IN_A_ROW as Micros)).at(), Some(DAY + 5));
    }

    #[test]
    fn a_jump_that_the_arrival_explains_is_followed_at_its_second_record() {
        let mut watermark = Watermark::default();
        (0..50).for_each(|t| observe(&mut watermark, 5_000 + t, 5_000 + t));
        // The source was silent for a day, and is ten minutes behind.
        observe(&mut watermark, 5_000 + DAY - 600, 5_000 + DAY);
        assert_eq!(watermark.at(), Some(5_039));
        observe(&mut watermark, 5_001 + DAY - 600, 5_001 + DAY);
        assert_eq!(watermark.at(), Some(5_000 + DAY - 609));
        // Ticks have reported some of the silence already.
        watermark.tick(DAY, 60, RULES);
        assert!(watermark.at().is_some_and(|at| at < 5_000 + 2 * DAY));
        (0..2).for_each(|_| observe(&mut watermark, 5_000 + 3 * DAY, 5_000 + 2 * DAY));
        assert!(
            watermark.at().is_some_and(|at| at < 5_000 + 2 * DAY),
            "a day more than has passed"
        );
    }

    #[test]
    fn a_sparse_stream_is_three_records_behind() {
        let days = |n: Micros| replayed((1..=n).map(|day| day * DAY)).at();
        assert_eq!(days(3), None);
        assert_eq!(days(4), Some(DAY - 10));
        assert_eq!(days(100), Some(97 * DAY - 10));
        // Two close together are as good as one that falls behind.
        assert_eq!(replayed([1, 2, 1, 3].map(|day| day * DAY)).at(), None);
        assert_eq!(
            replayed([1, 2, 1, 3, 4].map(|day| day * DAY)).at(),
            Some(DAY - 10)
        );
        // One that was busy before is, once sixteen in a row have shown it.
        let was_busy =
            |n: Micros| replayed(busy(100).into_iter().chain((1..=n).map(|day| day * DAY))).at();
        assert_eq!(was_busy(15), Some(90));
        assert_eq!(was_busy(16), Some(13 * DAY - 10));
    }

    /// The examples of the module's documentation, in minutes.
    #[test]
    fn a_pause_is_followed_after_as_many_records_as_its_evidence_needs() {
        const HOUR: Micros = 60;
        const DAY: Micros = 24 * HOUR;
        let rules = Rules {
            disorder: 0,
            ahead: HOUR,
        };
        let replayed = |times: &[Micros]| after(rules, times.iter().map(|t| (*t, 1_000 * DAY)));
        let live = |times: &[Micros]| after(rules, times.iter().map(|t| (*t, *t)));
        let friday: Vec<Micros> = (17 * HOUR..=18 * HOUR).collect();
        let with = |more: &[Micros]| [friday.as_slice(), more].concat();
        let fast = 18 * HOUR + 2 + DAY;
        let refuted = with(&[18 * HOUR + 1, fast, fast + 1, 18 * HOUR + 4]);
        assert_eq!(replayed(&refuted), Some(18 * HOUR + 4));
        let days = [DAY, 2 * DAY, 3 * DAY, 4 * DAY, 5 * DAY];
        assert_eq!(replayed(&days[..3]), None);
        assert_eq!(replayed(&days[..4]), Some(DAY));
        assert_eq!(replayed(&days), Some(2 * DAY));
        let monday: Vec<Micros> = (0..16).map(|n| 3 * DAY + 8 * HOUR + n).collect();
        assert_eq!(replayed(&with(&monday[..15])), Some(18 * HOUR));
        assert_eq!(replayed(&with(&monday)), Some(monday[15]));
        assert_eq!(live(&with(&monday[..1])), Some(18 * HOUR));
        assert_eq!(live(&with(&monday[..2])), Some(monday[1]));
    }

    #[test]
    fn candidates_are_bounded_and_saved() {
        let watermark = replayed(busy(100).into_iter().chain([DAY; 12]));
        assert_eq!(watermark.candidates.len(), 12);
        let text = serde_json::to_string(&watermark).expect("JSON");
        assert_eq!(
            serde_json::from_str::<Watermark>(&text).expect("its own text"),
            watermark
        );
        let down = replayed((1..1_000).map(|n| -n * DAY));
        assert!(down.candidates.len() <= IN_A_ROW);
    }

    proptest! {
        #[test]
        fn it_never_goes_back(times in proptest::collection::vec(0i64..100_000, 0..80)) {
            let mut watermark = Watermark::default();
            let mut before = None;
            for time in times {
                observe(&mut watermark, time, REPLAY);
                prop_assert!(watermark.at() >= before);
                prop_assert!(watermark.candidates.len() <= IN_A_ROW);
                before = watermark.at();
            }
        }

        /// Bursts of fast records, each up to the bound and of any times ahead, between honest
        /// records within the disorder.
        #[test]
        fn bursts_up_to_the_bound_make_no_honest_record_late(
            parts in proptest::collection::vec(
                (1usize..4, 0i64..=10, proptest::collection::vec(3_000i64..900_000, 0..IN_A_ROW)),
                1..60,
            ),
        ) {
            // A stream that is not all steps of more than `max_ahead` has two records closer than
            // that.
            let (mut watermark, mut now) = (replayed(busy(1_000)), 1_000);
            for (honest, back, burst) in parts {
                for _ in 0..honest {
                    now += 7;
                    let time = now - back;
                    prop_assert!(watermark.at().is_none_or(|at| time >= at), "{time} is late after {watermark:?}");
                    observe(&mut watermark, time, REPLAY);
                }
                burst.into_iter().for_each(|ahead| observe(&mut watermark, now + ahead, REPLAY));
            }
        }

        /// The same at the very beginning, where the fast records have roughly one clock.
        #[test]
        fn a_burst_at_the_beginning_makes_no_honest_record_late(
            before in 0usize..4,
            burst in proptest::collection::vec(50_000i64..50_900, 0..IN_A_ROW),
        ) {
            let mut watermark = Watermark::default();
            let honest = (0..before as Micros).map(|n| 100 + n);
            let after = (0..50).map(|n| 110 + n);
            for time in honest.chain(burst).chain(after) {
                prop_assert!(time > 40_000 || watermark.at().is_none_or(|at| time >= at));
                observe(&mut watermark, time, REPLAY);
            }
            prop_assert!(watermark.at().is_some_and(|at| at < 200));
        }

        /// Sorted history with any gaps: nothing is late, and the watermark is at most `IN_A_ROW`
        /// records behind.
        #[test]
        fn sorted_history_advances_with_a_bounded_delay(gaps in proptest::collection::vec(
            prop_oneof![0i64..5, 0i64..2_000, 50_000i64..5_000_000], 1..200,
        )) {
            let mut times = vec![1_000];
            gaps.into_iter().for_each(|gap| times.push(times[times.len() - 1] + gap));
            let mut watermark = Watermark::default();
            for (n, time) in times.iter().copied().enumerate() {
                prop_assert!(watermark.at().is_none_or(|at| time >= at));
                observe(&mut watermark, time, REPLAY);
                if let Some(earlier) = (n + 1).checked_sub(IN_A_ROW) {
                    prop_assert!(watermark.at() >= Some(times[earlier] - 10));
                }
            }
        }
    }
}
