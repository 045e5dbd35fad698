//! Partitions of sources: where each continues, and the incomplete last lines of files.
//!
//! A file that is read once, to its end, may end without a line feed and grow before the next
//! start. Its last line is taken in as a frame that does not move the partition, and usually
//! becomes a dead letter; when the line is complete, the record that it is counts as their retry:
//!
//! ```text
//! bytes from 100   frame               partial line   becomes
//! {"a":            1, next offset 100  (100, 5)       dead letter 1
//! {"a":1,"b        2, next offset 100  (100, 9)       dead letter 2
//! {"a":1,"b":2}⏎   3, next offset 114  none           event 3: 1 and 2 have come back as 3
//! ```

use serde::{Deserialize, Serialize};

use crate::event::{Lsn, Micros};
use crate::wal::{FileIdentity, Frame, Kind, LastRecord};

/// Partition of records known only from retained rows.
pub const RETAINED_PARTITION: &str = "\u{1}kept";

/// Where a partition of a source continues, and what is known of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionState {
    /// Offset of its next record, in the source's unit: for files and standard input, bytes.
    pub next_offset: u64,
    /// Which file it is; none for other sources.
    pub file: Option<FileIdentity>,
    /// Arrival of its last record, in µs, for the gap that a restart causes.
    pub received_at: Micros,
    /// A last line without its end that became a dead letter: (offset, length).
    #[serde(rename = "cut_line")]
    pub partial_line: Option<(u64, u64)>,
    /// The dead letters that it became, one for each length that it had.
    #[serde(default, rename = "cut_lsns")]
    pub partial_line_lsns: Vec<Lsn>,
    /// The last event id of its last frame of records, after which its server continues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_event_id: Option<String>,
    /// The last record before `next_offset`, which its source finds there again; none if that is
    /// not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_record: Option<LastRecord>,
}

/// Dead letters of a line that is complete now, and the record that it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CompletedLine {
    pub(super) dead_letters: Vec<Lsn>,
    pub(super) record: Lsn,
}

impl PartitionState {
    /// Takes a frame of the partition into account. Returns the partial line that it completes.
    pub(super) fn observe(&mut self, frame: &Frame) -> Option<CompletedLine> {
        let header = &frame.header;
        self.received_at = header.received_at;
        if let Some(file) = frame.attributes.file {
            self.file = Some(file);
        }
        if header.kind == Kind::Record {
            // Records without an id come after those with one: continuing there would repeat them.
            self.last_event_id
                .clone_from(&frame.attributes.last_event_id);
        }
        let next = frame.attributes.next_offset?;
        self.next_offset = next;
        // One of an earlier position says nothing about this one.
        self.last_record = frame.attributes.last_record;
        if header.kind != Kind::Record {
            return None;
        }
        // A frame that does not move its partition holds a line that is not complete yet.
        if next == header.first_offset {
            let length = frame
                .attributes
                .truncated_records
                .first()
                .map_or(u64::from(frame.block_bytes.saturating_sub(4)), |(_, n)| *n);
            self.record_partial_line(next, length, header.first_lsn);
            return None;
        }
        self.complete_line(&frame.attributes.offsets, header.first_lsn)
    }

    fn record_partial_line(&mut self, offset: u64, length: u64, lsn: Lsn) {
        if self.partial_line.is_none_or(|(before, _)| before != offset) {
            self.partial_line_lsns.clear();
        }
        self.partial_line = Some((offset, length));
        self.partial_line_lsns.push(lsn);
    }

    /// The partition has moved on: its partial line, if any, is one of the records at these
    /// offsets, or gone.
    fn complete_line(&mut self, offsets: &[u64], first_lsn: Lsn) -> Option<CompletedLine> {
        let dead_letters = std::mem::take(&mut self.partial_line_lsns);
        let (offset, _) = self.partial_line.take()?;
        let at = offsets.iter().position(|o| *o == offset)?;
        Some(CompletedLine {
            dead_letters,
            record: first_lsn + at as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{FrameAttributes, Header, Records};

    #[test]
    fn a_completed_line_is_the_record_of_its_dead_letters() {
        let mut partition = PartitionState::default();
        partition.record_partial_line(100, 5, 1);
        partition.record_partial_line(100, 9, 2);
        assert_eq!(partition.partial_line, Some((100, 9)));
        let completed = partition.complete_line(&[100, 120], 3);
        let want = CompletedLine {
            dead_letters: vec![1, 2],
            record: 3,
        };
        assert_eq!(completed, Some(want));
        assert_eq!(partition, PartitionState::default());
    }

    #[test]
    fn a_line_that_was_replaced_is_not_completed() {
        let mut partition = PartitionState::default();
        partition.record_partial_line(100, 5, 1);
        // Another one, at another place.
        partition.record_partial_line(200, 5, 2);
        assert_eq!(partition.partial_line_lsns, [2]);
        assert_eq!(partition.complete_line(&[100, 120], 3), None);
        assert_eq!(partition, PartitionState::default());
    }

    #[test]
    fn the_names_in_a_snapshot_are_the_formats() {
        let mut partition = PartitionState::default();
        partition.record_partial_line(100, 5, 1);
        assert_eq!(
            serde_json::to_string(&partition).expect("JSON"),
            r#"{"next_offset":0,"file":null,"received_at":0,"cut_line":[100,5],"cut_lsns":[1]}"#
        );
    }

    #[test]
    fn the_last_record_is_that_of_the_last_position() {
        let last_record = |offset| LastRecord {
            offset,
            fingerprint: 7,
        };
        let frame = |kind, next_offset, last_record| {
            let attributes = FrameAttributes {
                next_offset,
                last_record,
                ..FrameAttributes::default()
            };
            let records = Records::single(b"{}");
            Frame::data(Header::new(kind, "s"), &records, attributes).expect("memory")
        };
        let mut partition = PartitionState::default();
        partition.observe(&frame(Kind::Record, Some(5), Some(last_record(4))));
        assert_eq!(partition.last_record, Some(last_record(4)));
        // Markers of transactions follow it.
        partition.observe(&frame(Kind::PartitionEnd, Some(7), Some(last_record(4))));
        assert_eq!(
            (partition.next_offset, partition.last_record),
            (7, Some(last_record(4)))
        );
        // The end of a file says nothing of a position.
        partition.observe(&frame(Kind::PartitionEnd, None, None));
        assert_eq!(partition.last_record, Some(last_record(4)));
        let text = serde_json::to_string(&partition).expect("JSON");
        let end = r#""last_record":{"offset":4,"fingerprint":7}}"#;
        assert!(text.ends_with(end), "{text}");
        // An accepted reset, or a frame of a version without it.
        partition.observe(&frame(Kind::Gap, Some(0), None));
        assert_eq!((partition.next_offset, partition.last_record), (0, None));
    }
}
