//! Which segments may be deleted: what recovery does not need, once it is old or the log is large.

use std::time::Duration;

/// The facts about a segment that retention depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentAge {
    pub first_lsn: u64,
    /// Allocated size of its file.
    pub bytes: u64,
    /// Time since it was last written.
    pub age: Duration,
}

/// First LSNs of the segments to remove, oldest first: those whose records are all at or below
/// `needed_above` (the newest snapshot of which no view lacks a row, from which recovery starts)
/// and that are older than `keep`, or must go to bring the log under `budget` bytes. The last
/// segment stays, and removal stops at the first segment that stays: the log has no holes.
///
/// Segments of 64 bytes begin at LSN 1, 100 and 200 and were last written 50, 40 and 10 hours ago:
///
/// | snapshot | keep | budget | removed | because |
/// |---|---|---|---|---|
/// | 150 | 24 h | none | 1 | 100 still holds 151 to 199, which recovery replays |
/// | 98 | 24 h | none | none | 1 holds 99 |
/// | 500 | 24 h | none | 1, 100 | the last segment stays |
/// | 500 | 100 h | 150 | 1 | 192 bytes are too many, 128 are not |
pub(crate) fn plan_trim(
    segments: &[SegmentAge],
    needed_above: u64,
    keep: Duration,
    budget: Option<u64>,
) -> Vec<u64> {
    let mut total: u64 = segments.iter().map(|s| s.bytes).sum();
    let mut removed = Vec::new();
    for pair in segments.windows(2) {
        let [segment, next] = pair else { break };
        let is_over_budget = budget.is_some_and(|budget| total > budget);
        if next.first_lsn > needed_above + 1 || !(segment.age > keep || is_over_budget) {
            break;
        }
        total -= segment.bytes;
        removed.push(segment.first_lsn);
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments() -> Vec<SegmentAge> {
        [(1, 50), (100, 40), (200, 10)]
            .map(|(first_lsn, hours)| SegmentAge {
                first_lsn,
                bytes: 64,
                age: Duration::from_secs(hours * 3600),
            })
            .to_vec()
    }

    #[test]
    fn segments_that_a_view_may_need_stay() {
        let keep = Duration::from_secs(24 * 3600);
        assert_eq!(plan_trim(&segments(), 98, keep, None), Vec::<u64>::new());
        assert_eq!(plan_trim(&segments(), 99, keep, None), vec![1]);
        assert_eq!(plan_trim(&segments(), 150, keep, None), vec![1]);
        assert_eq!(plan_trim(&segments(), 500, keep, None), vec![1, 100]);
    }

    #[test]
    fn young_segments_go_only_for_the_budget() {
        let keep = Duration::from_secs(100 * 3600);
        assert_eq!(plan_trim(&segments(), 500, keep, None), Vec::<u64>::new());
        assert_eq!(plan_trim(&segments(), 500, keep, Some(150)), vec![1]);
        assert_eq!(plan_trim(&segments(), 500, keep, Some(1)), vec![1, 100]);
    }
}
