//! The times to sort by, for a source that reads its records in order of event time.

use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::TimestampMicrosecondType;

use super::Ingest;
use crate::decode::{Received, decode};
use crate::event::Micros;
use crate::schema::Stream;
use crate::wal::Records;

/// Assigns a sort time to each record of a file: its event time. A record without one, which
/// becomes a dead letter, gets that of the record before it, or [`Micros::MIN`] before the first
/// event. Sorted stably, dead letters stay after the event that they follow.
pub struct SortTimes {
    stream: Arc<Stream>,
    last: Micros,
}

impl SortTimes {
    /// Before the first record of a file.
    pub(crate) fn new(stream: Arc<Stream>) -> Self {
        Self {
            stream,
            last: Micros::MIN,
        }
    }

    /// The times of the next records; `truncated` names those that are stored shortened (index,
    /// original length in bytes).
    pub fn next(&mut self, records: &Records, truncated: &[(u64, u64)]) -> Vec<Micros> {
        // Whether an event is too far ahead depends on the arrival time; the order must not.
        let received = Received {
            at: Micros::MAX,
            truncated,
            ..Received::default()
        };
        let decoded = decode(&self.stream, records.iter(), received);
        let times = decoded
            .rows
            .column(0)
            .as_primitive::<TimestampMicrosecondType>();
        let mut events = decoded.index.iter().zip(0..times.len()).peekable();
        (0..records.len() as u32)
            .map(|index| {
                if let Some((_, row)) = events.next_if(|(record, _)| **record == index)
                    && times.is_valid(row)
                {
                    self.last = times.value(row);
                }
                self.last
            })
            .collect()
    }
}

impl Ingest {
    /// Sort times for a stream's records; `None` if there is no such stream.
    pub(crate) fn sort_times(&self, stream: &str) -> Option<SortTimes> {
        self.catalog
            .streams
            .get(stream)
            .cloned()
            .map(SortTimes::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Declarations;
    use crate::schema::Catalog;
    use crate::wal::RecordsBuilder;

    #[test]
    fn a_record_without_a_time_has_that_of_the_one_before_it() {
        let text = r#"{"streams":{"s":{"schema":"t bigint not null, v int","select":"select to_timestamp_micros(t) as event_time, v from s","require":["v < 9"]}}}"#;
        let catalog = Catalog::compile(&Declarations::from_json(text).expect("declarations"))
            .expect("a catalog");
        let mut times = SortTimes::new(catalog.streams["s"].clone());
        let mut next = |records: &[&str], truncated: &[(u64, u64)]| {
            let mut builder = RecordsBuilder::default();
            records
                .iter()
                .for_each(|record| builder.push(record.as_bytes()));
            times.next(&builder.finish(), truncated)
        };
        let far = 7_000_000_000_000_000;
        assert_eq!(
            next(
                &[
                    "broken",
                    "{\"t\":5,\"v\":1}",
                    "{\"t\":3,\"v\":9}",
                    "{\"t\":4,\"v\":1}"
                ],
                &[]
            ),
            [Micros::MIN, 5, 5, 4]
        );
        // The last time carries over to the next batch, and the wall clock has no influence.
        assert_eq!(
            next(
                &[
                    "{}",
                    "{\"t\":1,\"v\":1}",
                    &format!("{{\"t\":{far},\"v\":2}}")
                ],
                &[(1, 99)]
            ),
            [4, 4, far]
        );
    }
}
