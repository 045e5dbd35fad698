//! Which segments may go.

use std::time::Duration;

/// A segment, as far as retention looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentAge {
    pub first_lsn: u64,
    pub bytes: u64,
    /// Time since it was last written.
    pub age: Duration,
}

/// First LSNs of the segments to remove, oldest first: those whose records are all at or below
/// `below` (the snapshot that no view is behind), and that are older than `keep` or needed to bring
/// the log under `budget`. The last segment stays.
pub fn plan_trim(
    segments: &[SegmentAge],
    below: u64,
    keep: Duration,
    budget: Option<u64>,
) -> Vec<u64> {
    let mut total: u64 = segments.iter().map(|s| s.bytes).sum();
    let mut gone = Vec::new();
    for pair in segments.windows(2) {
        let [segment, next] = pair else { break };
        let over_budget = budget.is_some_and(|budget| total > budget);
        if next.first_lsn > below + 1 || !(segment.age > keep || over_budget) {
            break;
        }
        total -= segment.bytes;
        gone.push(segment.first_lsn);
    }
    gone
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
    fn what_a_view_may_need_stays() {
        let keep = Duration::from_secs(24 * 3600);
        assert_eq!(plan_trim(&segments(), 98, keep, None), Vec::<u64>::new());
        assert_eq!(plan_trim(&segments(), 99, keep, None), vec![1]);
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
