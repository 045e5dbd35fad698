//! How large a new segment may be, so that the log never takes the space that views need to commit
//! its records: a log that filled the disk to the last byte could never be trimmed.
//!
//! Example: 300 MiB are free, 8 MiB are reserved, 20 MiB of log are pending. Views need up to
//! 3 × 20 MiB, which leaves 232 MiB. A segment of n needs n + 3 n, so at most 58 MiB are allocated.

/// Bytes of tables, indexes and state that views write for each byte of log: a rough maximum.
const VIEWS_RATIO: u64 = 3;
/// The smallest segment, unless `[log] segment` is smaller.
pub const MIN_SEGMENT_BYTES: u64 = 256 << 10;
/// If a frame of this size does not fit, the log counts as full: accepting only smaller ones would
/// be no help.
pub const SMALL_FRAME_BYTES: u64 = 64 << 10;

/// The space that the log shares with the views.
#[derive(Debug, Clone, Copy)]
pub(super) struct DiskSpace {
    /// Bytes free on the disk; `None` if the file system does not report them.
    pub free: Option<u64>,
    /// Bytes of log that some view has not committed yet.
    pub pending: u64,
    /// Bytes that records must not use: they are for snapshots and control frames.
    pub reserved: u64,
}

impl DiskSpace {
    /// The size of a new segment for records: `wanted`, or less on a disk that is nearly full, but
    /// at least `min`. `None`: not enough space.
    pub fn record_segment(&self, wanted: u64, min: u64) -> Option<u64> {
        let Some(free) = self.free else {
            return Some(wanted);
        };
        let needed = self
            .reserved
            .saturating_add(self.pending.saturating_mul(VIEWS_RATIO));
        let fits = free.saturating_sub(needed) / (1 + VIEWS_RATIO);
        (fits >= min).then(|| fits.min(wanted))
    }

    /// Whether so many more bytes of log leave the views enough space to commit them. For a segment
    /// that was allocated without that guarantee.
    pub fn fits(&self, bytes: u64) -> bool {
        let log = self.pending.saturating_add(bytes);
        self.free.is_none_or(|free| {
            free >= self
                .reserved
                .saturating_add(log.saturating_mul(VIEWS_RATIO))
        })
    }

    /// The size of a new segment for a control frame, which may use all space left.
    pub fn control_segment(&self, wanted: u64, min: u64) -> u64 {
        if self.free.is_none_or(|free| free >= wanted) {
            wanted
        } else {
            min
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn segment(free: u64, pending: u64) -> Option<u64> {
        DiskSpace {
            free: Some(free * MIB),
            pending: pending * MIB,
            reserved: 8 * MIB,
        }
        .record_segment(64 * MIB, MIB)
        .map(|bytes| bytes / MIB)
    }

    #[test]
    fn a_segment_leaves_space_for_the_views_to_commit_it_and_what_is_pending() {
        assert_eq!(segment(10_000, 0), Some(64));
        assert_eq!(segment(8 + 4 * 64, 0), Some(64));
        assert_eq!(segment(8 + 4 * 64 + 3 * 100, 100), Some(64));
        assert_eq!(segment(8 + 4 * 10 + 3 * 100, 100), Some(10));
        assert_eq!(segment(8 + 3, 0), None);
        assert_eq!(segment(300, 100), None);
    }

    #[test]
    fn a_small_frame_needs_less_than_a_segment() {
        let space = |kib: u64| DiskSpace {
            free: Some(8 * MIB + (kib << 10)),
            pending: 0,
            reserved: 8 * MIB,
        };
        let small = |kib: u64| {
            (
                space(kib)
                    .record_segment(64 * MIB, MIN_SEGMENT_BYTES)
                    .is_some(),
                space(kib).fits(SMALL_FRAME_BYTES),
            )
        };
        assert_eq!(
            [1024, 1023, 192, 191].map(small),
            [(true, true), (false, true), (false, true), (false, false)]
        );
        assert!(
            !DiskSpace {
                pending: 1 << 10,
                ..space(192)
            }
            .fits(SMALL_FRAME_BYTES)
        );
        assert!(
            DiskSpace {
                free: None,
                pending: MIB,
                reserved: MIB
            }
            .fits(MIB)
        );
    }

    #[test]
    fn control_frames_use_the_last_space_and_an_unknown_amount_counts_as_enough() {
        let space = DiskSpace {
            free: None,
            pending: 5,
            reserved: 5,
        };
        assert_eq!(
            (space.record_segment(64, 1), space.control_segment(64, 1)),
            (Some(64), 64)
        );
        let space = DiskSpace {
            free: Some(10),
            ..space
        };
        assert_eq!(
            (space.record_segment(64, 1), space.control_segment(64, 1)),
            (None, 1)
        );
    }
}
