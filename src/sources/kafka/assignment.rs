//! Where a partition begins, decided from the log's own position and what the broker has. Pure.
//!
//! | position in the log | the broker has | start |
//! |---|---|---|
//! | none | anything | where `from` says |
//! | 120 | 100 … 200 | at 120 |
//! | 120 | 100 … 120 | at 120, once there is more |
//! | 80 | 100 … 200 | none: 80 to 99 were removed before they were read |
//! | 250 | 100 … 200 | none: it is another topic of that name, or the broker lost records |
//!
//! A partition without a start halts until `--accept-reset` names it.

use super::topics::TopicPartition;

/// What the broker has of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Watermarks {
    /// Offset of the first record.
    pub low: u64,
    /// The offset after the last record that is committed.
    pub high: u64,
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
}

impl Reset {
    /// What happened to which offsets, for a gap or a message.
    pub fn describe(self, partition: &TopicPartition) -> String {
        match self {
            Self::Expired { next, low } => format!(
                "{partition}: offsets {next} to {} were removed by the broker before they were read",
                low.saturating_sub(1)
            ),
            Self::Shrunk { next, high } => format!(
                "{partition}: the broker's last offset is before {high}, and everything before {next} was read already: the topic was deleted and created again, or the broker lost records"
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
    /// At the log's position.
    Continue(u64),
    /// For the first time, at an offset that the log has to store.
    Begin(u64),
    /// Nowhere: the position and the broker's records do not fit together.
    Halt(Reset),
}

/// Decides where a partition begins; `next` is the log's position.
pub(super) fn decide_start(next: Option<u64>, broker: Watermarks, first: FirstOffset) -> Start {
    let Watermarks { low, high } = broker;
    match (next, first) {
        (Some(next), _) if next < low => Start::Halt(Reset::Expired { next, low }),
        (Some(next), _) if next > high => Start::Halt(Reset::Shrunk { next, high }),
        (Some(next), _) => Start::Continue(next),
        (None, FirstOffset::Earliest) => Start::Begin(low),
        (None, FirstOffset::Latest | FirstOffset::OfTime(None)) => Start::Begin(high),
        (None, FirstOffset::OfTime(Some(offset))) => Start::Begin(offset),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_begins_at_its_own_position_or_where_from_says() {
        use FirstOffset::{Earliest, Latest, OfTime};
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
            (Some(100), Latest, Start::Continue(100)),
            (Some(150), OfTime(Some(180)), Start::Continue(150)),
            (Some(200), Earliest, Start::Continue(200)),
            (Some(99), Earliest, expired),
            (Some(201), Latest, shrunk),
        ] {
            let broker = Watermarks {
                low: 100,
                high: 200,
            };
            assert_eq!(
                decide_start(next, broker, first),
                expected,
                "{next:?} {first:?}"
            );
        }
        // A topic that was created again and is empty.
        let empty = Watermarks { low: 0, high: 0 };
        assert_eq!(decide_start(Some(0), empty, Earliest), Start::Continue(0));
        let shrunk = Start::Halt(Reset::Shrunk { next: 1, high: 0 });
        assert_eq!(decide_start(Some(1), empty, Earliest), shrunk);
    }

    #[test]
    fn a_reset_names_the_offsets_and_the_way_out() {
        let partition = TopicPartition::new("orders", 3);
        let expired = Reset::Expired { next: 80, low: 100 };
        let shrunk = Reset::Shrunk {
            next: 250,
            high: 200,
        };
        let messages = [expired.advice(&partition), shrunk.advice(&partition)];
        insta::assert_snapshot!(messages.join("\n"), @r#"
        orders/3: offsets 80 to 99 were removed by the broker before they were read; `weir run --accept-reset orders/3` continues with the first record that the broker has, and records a gap
        orders/3: the broker's last offset is before 200, and everything before 250 was read already: the topic was deleted and created again, or the broker lost records; `weir run --accept-reset orders/3` continues with the first record that the broker has, and records a gap
        "#);
    }
}
