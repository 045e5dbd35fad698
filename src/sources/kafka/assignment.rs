//! Where a partition begins, decided from the log's own position and what the broker has. Pure.
//!
//! | position in the log | the broker has | start |
//! |---|---|---|
//! | none | anything | where `from` says |
//! | 120 | 100 … 200 | at 120, after the record before it is compared |
//! | 120 | 100 … 120 | at 120, once there is more |
//! | 80 | 100 … 200 | none: 80 to 99 were removed before they were read |
//! | 250 | 100 … 200 | none: it is another topic of that name, or the broker lost records |
//! | 120, and 119 was compared and differs | 100 … 200 | none, for the same reasons |
//!
//! A partition without a start halts until `--accept-reset` names it.

use super::topics::TopicPartition;
use crate::wal::LastRecord;

/// What the broker has of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Watermarks {
    /// Offset of the first record.
    pub low: u64,
    /// The offset after the last record that is committed.
    pub high: u64,
}

/// Where the log has a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub next: u64,
    /// The last record that was read, if it is known.
    pub last: Option<LastRecord>,
    /// The broker has another record in its place.
    pub is_refuted: bool,
}

/// Where `from` puts a partition of which the log has no position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FirstOffset {
    Earliest,
    Latest,
    /// Offset of the first record at the configured time or later, if there is one.
    OfTime(Option<u64>),
}

/// Why a partition cannot continue at its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reset {
    /// The broker removed records before they were read.
    Expired { next: u64, low: u64 },
    /// The broker has fewer records than were read.
    Shrunk { next: u64, high: u64 },
    /// The broker has another record than was read.
    Replaced { offset: u64 },
}

/// How a broker comes to have other records than were read.
const RECREATED: &str = "the topic was deleted and created again, or the broker lost records";

impl Reset {
    /// What happened to which offsets, for a gap or a message.
    pub fn describe(self, partition: &TopicPartition) -> String {
        match self {
            Self::Expired { next, low } => format!(
                "{partition}: offsets {next} to {} were removed by the broker before they were read",
                low.saturating_sub(1)
            ),
            Self::Shrunk { next, high: 0 } => format!(
                "{partition}: the broker has no records, and everything before offset {next} was read already: {RECREATED}"
            ),
            Self::Shrunk { next, high } => format!(
                "{partition}: the broker's last offset is before {high}, and everything before {next} was read already: {RECREATED}"
            ),
            Self::Replaced { offset } => format!(
                "{partition}: the broker's record at offset {offset} is not the one that was read there: {RECREATED}"
            ),
        }
    }

    /// Why the partition halts, and the way out.
    pub fn advice(self, partition: &TopicPartition) -> String {
        format!(
            "{}; `weir run --accept-reset {partition}` continues with the first record that the broker has, and records a gap",
            self.describe(partition)
        )
    }
}

/// Where a partition begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// At the log's position; before that, its last record is compared.
    Continue {
        next: u64,
        check: Option<LastRecord>,
    },
    /// For the first time, at an offset that the log has to store.
    Begin(u64),
    /// Nowhere: the position and the broker's records do not fit together.
    Halt(Reset),
}

/// Decides where a partition begins; `position` is the log's.
pub(super) fn decide_start(
    position: Option<Position>,
    broker: Watermarks,
    first: FirstOffset,
) -> Start {
    let Watermarks { low, high } = broker;
    match (position, first) {
        (Some(position), _) => continue_at(position, broker),
        (None, FirstOffset::Earliest) => Start::Begin(low),
        (None, FirstOffset::Latest | FirstOffset::OfTime(None)) => Start::Begin(high),
        (None, FirstOffset::OfTime(Some(offset))) => Start::Begin(offset),
    }
}

fn continue_at(position: Position, broker: Watermarks) -> Start {
    let Watermarks { low, high } = broker;
    let next = position.next;
    if next < low {
        return Start::Halt(Reset::Expired { next, low });
    }
    if next > high {
        return Start::Halt(Reset::Shrunk { next, high });
    }
    match position.last {
        // Known from a comparison before, also if the broker has removed the record since.
        Some(last) if position.is_refuted => Start::Halt(Reset::Replaced {
            offset: last.offset,
        }),
        last => Start::Continue {
            next,
            check: last.filter(|last| last.offset >= low),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_begins_at_its_own_position_or_where_from_says() {
        use FirstOffset::{Earliest, Latest, OfTime};
        let unknown = |next| Position {
            next,
            last: None,
            is_refuted: false,
        };
        let at = |next| Start::Continue { next, check: None };
        let expired = Start::Halt(Reset::Expired { next: 99, low: 100 });
        let shrunk = Start::Halt(Reset::Shrunk {
            next: 201,
            high: 200,
        });
        for (next, first, expected) in [
            (None, Earliest, Start::Begin(100)),
            (None, Latest, Start::Begin(200)),
            (None, OfTime(Some(150)), Start::Begin(150)),
            (None, OfTime(None), Start::Begin(200)),
            // `from` says nothing about a partition that has a position.
            (Some(100), Latest, at(100)),
            (Some(150), OfTime(Some(180)), at(150)),
            (Some(200), Earliest, at(200)),
            (Some(99), Earliest, expired),
            (Some(201), Latest, shrunk),
        ] {
            let broker = Watermarks {
                low: 100,
                high: 200,
            };
            assert_eq!(
                decide_start(next.map(unknown), broker, first),
                expected,
                "{next:?} {first:?}"
            );
        }
        // A topic that was created again and is empty.
        let empty = Watermarks { low: 0, high: 0 };
        assert_eq!(decide_start(Some(unknown(0)), empty, Earliest), at(0));
        let shrunk = Start::Halt(Reset::Shrunk { next: 1, high: 0 });
        assert_eq!(decide_start(Some(unknown(1)), empty, Earliest), shrunk);
    }

    #[test]
    fn a_last_record_is_compared_where_the_broker_may_have_it() {
        let broker = Watermarks {
            low: 100,
            high: 200,
        };
        let start = |next, offset, is_refuted| {
            let last = Some(LastRecord {
                offset,
                fingerprint: 1,
            });
            let position = Position {
                next,
                last,
                is_refuted,
            };
            decide_start(Some(position), broker, FirstOffset::Latest)
        };
        let compared = |next, offset| Start::Continue {
            next,
            check: Some(LastRecord {
                offset,
                fingerprint: 1,
            }),
        };
        assert_eq!(start(150, 149, false), compared(150, 149));
        // Markers of transactions follow it.
        assert_eq!(start(150, 140, false), compared(150, 140));
        assert_eq!(start(101, 100, false), compared(101, 100));
        // It was removed: that proves nothing.
        let uncompared = Start::Continue {
            next: 100,
            check: None,
        };
        assert_eq!(start(100, 99, false), uncompared);
        let replaced = Start::Halt(Reset::Replaced { offset: 149 });
        assert_eq!(start(150, 149, true), replaced);
        // It was removed after the comparison.
        let gone = Start::Halt(Reset::Replaced { offset: 99 });
        assert_eq!(start(100, 99, true), gone);
        // Less than was read says more.
        let shrunk = Start::Halt(Reset::Shrunk {
            next: 250,
            high: 200,
        });
        assert_eq!(start(250, 249, true), shrunk);
    }

    #[test]
    fn a_reset_names_the_offsets_and_the_way_out() {
        let partition = TopicPartition::new("orders", 3);
        let expired = Reset::Expired { next: 80, low: 100 };
        let shrunk = Reset::Shrunk {
            next: 250,
            high: 200,
        };
        let empty = Reset::Shrunk { next: 250, high: 0 };
        let replaced = Reset::Replaced { offset: 149 };
        let messages = [expired, shrunk, empty, replaced].map(|reset| reset.advice(&partition));
        insta::assert_snapshot!(messages.join("\n"), @r#"
        orders/3: offsets 80 to 99 were removed by the broker before they were read; `weir run --accept-reset orders/3` continues with the first record that the broker has, and records a gap
        orders/3: the broker's last offset is before 200, and everything before 250 was read already: the topic was deleted and created again, or the broker lost records; `weir run --accept-reset orders/3` continues with the first record that the broker has, and records a gap
        orders/3: the broker has no records, and everything before offset 250 was read already: the topic was deleted and created again, or the broker lost records; `weir run --accept-reset orders/3` continues with the first record that the broker has, and records a gap
        orders/3: the broker's record at offset 149 is not the one that was read there: the topic was deleted and created again, or the broker lost records; `weir run --accept-reset orders/3` continues with the first record that the broker has, and records a gap
        "#);
    }
}
