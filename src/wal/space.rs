//! How large a new segment may be, so that the log never takes the room that views need to commit
//! what is in it: a log that filled the disk to its last byte could not be trimmed any more.

/// Bytes of tables, indexes and state that views write for each byte of log, at most, about.
const VIEWS_RATIO: u64 = 3;
/// Bytes of the smallest segment; smaller only where segments are declared smaller.
pub const LEAST_SEGMENT: u64 = 256 << 10;
/// Bytes of frames for which there is room, or records count as refused: a log that took only
/// smaller ones would be no help.
pub const SMALL_FRAME: u64 = 64 << 10;

/// What there is room for.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Bytes left on the disk; none where it does not say.
    pub free: Option<u64>,
    /// Bytes of log that some view has not committed.
    pub pending: u64,
    /// Bytes that are left alone, for snapshots and control frames.
    pub floor: u64,
}

impl Room {
    /// The size of a new segment for records: `wanted`, or less on a disk that is nearly full, at
    /// least `least`. None: no room.
    pub fn segment(&self, wanted: u64, least: u64) -> Option<u64> {
        let Some(free) = self.free else {
            return Some(wanted);
        };
        let needed = self
            .floor
            .saturating_add(self.pending.saturating_mul(VIEWS_RATIO));
        let fits = free.saturating_sub(needed) / (1 + VIEWS_RATIO);
        (fits >= least).then(|| fits.min(wanted))
    }

    /// Whether so many more bytes of log leave room for what views make of them. For a segment that
    /// was allocated without that.
    pub fn fits(&self, bytes: u64) -> bool {
        let log = self.pending.saturating_add(bytes);
        self.free
            .is_none_or(|free| free >= self.floor.saturating_add(log.saturating_mul(VIEWS_RATIO)))
    }

    /// The size of a new segment for a control frame, which may take all that is left.
    pub fn control_segment(&self, wanted: u64, least: u64) -> u64 {
        if self.free.is_none_or(|free| free >= wanted) {
            wanted
        } else {
            least
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn segment(free: u64, pending: u64) -> Option<u64> {
        Room {
            free: Some(free * MIB),
            pending: pending * MIB,
            floor: 8 * MIB,
        }
        .segment(64 * MIB, MIB)
        .map(|bytes| bytes / MIB)
    }

    #[test]
    fn a_segment_leaves_room_for_what_is_made_of_it_and_of_what_is_pending() {
        assert_eq!(segment(10_000, 0), Some(64));
        assert_eq!(segment(8 + 4 * 64, 0), Some(64));
        assert_eq!(segment(8 + 4 * 64 + 3 * 100, 100), Some(64));
        assert_eq!(segment(8 + 4 * 10 + 3 * 100, 100), Some(10));
        assert_eq!(segment(8 + 3, 0), None);
        assert_eq!(segment(300, 100), None);
    }

    #[test]
    fn a_small_frame_needs_less_than_a_segment() {
        let room = |kib: u64| Room {
            free: Some(8 * MIB + (kib << 10)),
            pending: 0,
            floor: 8 * MIB,
        };
        let small = |kib: u64| {
            (
                room(kib).segment(64 * MIB, LEAST_SEGMENT).is_some(),
                room(kib).fits(SMALL_FRAME),
            )
        };
        assert_eq!(
            [1024, 1023, 192, 191].map(small),
            [(true, true), (false, true), (false, true), (false, false)]
        );
        assert!(
            !Room {
                pending: 1 << 10,
                ..room(192)
            }
            .fits(SMALL_FRAME)
        );
        assert!(
            Room {
                free: None,
                pending: MIB,
                floor: MIB
            }
            .fits(MIB)
        );
    }

    #[test]
    fn a_disk_that_does_not_say_has_room_and_control_frames_take_the_last() {
        let room = Room {
            free: None,
            pending: 5,
            floor: 5,
        };
        assert_eq!(
            (room.segment(64, 1), room.control_segment(64, 1)),
            (Some(64), 64)
        );
        let room = Room {
            free: Some(10),
            ..room
        };
        assert_eq!(
            (room.segment(64, 1), room.control_segment(64, 1)),
            (None, 1)
        );
    }
}
