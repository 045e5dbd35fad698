//! Summary of a segment: the event times of its documents per span of documents (a zone map), its
//! stored rows, and cached hit counts of earlier queries. Segments are immutable, so a summary
//! never becomes stale.

use std::collections::HashMap;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, PoisonError};

use tantivy::columnar::Cardinality;
use tantivy::error::DataCorruption;
use tantivy::{DocId, SegmentReader, TantivyError};

use super::rows::StoredRows;
use crate::event::{Lsn, Micros};

/// Documents of a span.
pub const SPAN_DOCUMENTS: DocId = 4_096;
/// At most one document in this many is an outlier, at 12 bytes each. A segment with more has none:
/// its spans cover all their documents.
const MIN_DOCUMENTS_PER_OUTLIER: DocId = 16;
/// Counts that are cached per segment, and the longest key of one.
const MAX_CACHED_COUNTS: usize = 256;
const MAX_KEY_BYTES: usize = 256;

/// The first and the last of some event times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub first: Micros,
    pub last: Micros,
}

impl Span {
    fn covering(times: impl Iterator<Item = Micros>) -> Self {
        let none = Self {
            first: Micros::MAX,
            last: Micros::MIN,
        };
        times.fold(none, |span, time| Self {
            first: span.first.min(time),
            last: span.last.max(time),
        })
    }

    pub fn contains(&self, time: Micros) -> bool {
        (self.first..=self.last).contains(&time)
    }

    /// The range of these times without outliers: a time is one if it is more than three times as
    /// far from the median as the first (last) sixteenth of the times is, so at most an eighth are.
    /// Example: for 100, 101, … 199 and 3, 5 and 9,000 it is 100 to 199.
    fn without_outliers(times: &[Micros]) -> Self {
        let mut sorted = times.to_vec();
        let (count, few) = (sorted.len(), sorted.len() / 16);
        if few == 0 {
            return Self::covering(sorted.into_iter());
        }
        let middle = *sorted.select_nth_unstable(count / 2).1;
        let low = *sorted[..count / 2].select_nth_unstable(few).1;
        let high = *sorted[count / 2..]
            .select_nth_unstable(count - count / 2 - 1 - few)
            .1;
        let low_fence = middle.saturating_sub(middle.saturating_sub(low).saturating_mul(3));
        let high_fence = middle.saturating_add(high.saturating_sub(middle).saturating_mul(3));
        Self::covering(
            times
                .iter()
                .copied()
                .filter(|time| (low_fence..=high_fence).contains(time)),
        )
    }
}

/// Documents whose event time is outside their span, sorted by time: late events, and events of
/// wrong clocks. If spans covered them, a span of four seconds would become one of hours, and no
/// span could be skipped.
#[derive(Debug, Default)]
pub struct Outliers {
    times: Vec<Micros>,
    documents: Vec<DocId>,
}

impl Outliers {
    fn new(mut outliers: Vec<(Micros, DocId)>) -> Self {
        outliers.sort_unstable();
        let (times, documents) = outliers.into_iter().unzip();
        Self { times, documents }
    }

    /// The numbers of the outliers from a time on and before another.
    pub fn between(&self, from: Option<Micros>, to: Option<Micros>) -> Range<usize> {
        let first = from.map_or(0, |from| self.times.partition_point(|time| *time < from));
        let end = to.map_or(self.times.len(), |to| {
            self.times.partition_point(|time| *time < to)
        });
        first..end.max(first)
    }

    /// The last time of these outliers.
    pub fn last(&self, numbers: &Range<usize>) -> Micros {
        self.times[numbers.clone()]
            .last()
            .copied()
            .unwrap_or(Micros::MIN)
    }

    /// The documents of these outliers, in ascending order.
    pub fn documents(&self, numbers: &Range<usize>) -> Vec<DocId> {
        let mut documents = self.documents[numbers.clone()].to_vec();
        documents.sort_unstable();
        documents
    }
}

fn corrupt() -> TantivyError {
    TantivyError::DataCorruption(DataCorruption::comment_only(
        "its columns are not those that were written",
    ))
}

/// A segment's summary and rows.
pub struct SegmentSummary {
    pub rows: StoredRows,
    pub spans: Vec<Span>,
    pub outliers: Outliers,
    /// The range of all event times.
    pub range: Span,
    pub last_lsn: Lsn,
    counts: Mutex<HashMap<String, u32>>,
}

impl SegmentSummary {
    /// An error also where tantivy panics on bytes that it did not write.
    pub fn read(segment: &SegmentReader) -> tantivy::Result<Self> {
        let read = std::panic::catch_unwind(AssertUnwindSafe(|| Self::read_columns(segment)));
        read.unwrap_or_else(|_| Err(corrupt()))
    }

    fn read_columns(segment: &SegmentReader) -> tantivy::Result<Self> {
        let rows = StoredRows::open(segment)?;
        let times = segment.fast_fields().i64("event_time")?;
        let lsns = segment.fast_fields().i64("lsn")?;
        // `max_doc` comes from `meta.json`, which has no checksum.
        if [times.num_docs(), lsns.num_docs(), rows.documents()]
            .iter()
            .any(|number| *number != segment.max_doc())
        {
            return Err(corrupt());
        }
        let mut buffer = vec![0; SPAN_DOCUMENTS as usize];
        let (mut spans, mut full_spans, mut outliers) = (Vec::new(), Vec::new(), Vec::new());
        let max_outliers = (segment.max_doc() / MIN_DOCUMENTS_PER_OUTLIER) as usize;
        for start in (0..segment.max_doc()).step_by(SPAN_DOCUMENTS as usize) {
            let end = (start + SPAN_DOCUMENTS).min(segment.max_doc());
            let values = &mut buffer[..(end - start) as usize];
            if times.get_cardinality() == Cardinality::Full {
                times.values.get_range(u64::from(start), values);
            } else {
                (start..end)
                    .zip(values.iter_mut())
                    .for_each(|(document, time)| *time = times.first(document).unwrap_or(0));
            }
            full_spans.push(Span::covering(values.iter().copied()));
            if outliers.len() <= max_outliers {
                let span = Span::without_outliers(values);
                outliers.extend(
                    (start..end)
                        .zip(values.iter())
                        .filter(|(_, time)| !span.contains(**time))
                        .map(|(d, t)| (*t, d)),
                );
                spans.push(span);
            }
        }
        let range = Span::covering(full_spans.iter().flat_map(|span| [span.first, span.last]));
        // Without order in the stream no span can be skipped.
        let (spans, outliers) = if outliers.len() > max_outliers {
            (full_spans, Outliers::default())
        } else {
            (spans, Outliers::new(outliers))
        };
        let last_lsn = lsns.max_value() as Lsn;
        Ok(Self {
            rows,
            spans,
            outliers,
            range,
            last_lsn,
            counts: Mutex::default(),
        })
    }

    /// The number of matching documents, cached under a key.
    pub fn count(
        &self,
        key: Option<&str>,
        count: impl FnOnce() -> tantivy::Result<u32>,
    ) -> tantivy::Result<u32> {
        let Some(key) = key.filter(|key| key.len() <= MAX_KEY_BYTES) else {
            return count();
        };
        let counts = || self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = counts().get(key) {
            return Ok(*known);
        }
        let number = count()?;
        let mut counts = counts();
        if counts.len() >= MAX_CACHED_COUNTS {
            counts.clear();
        }
        counts.insert(key.to_owned(), number);
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_covers_its_times_without_outliers() {
        let span = |times: &[Micros]| {
            let span = Span::without_outliers(times);
            (span.first, span.last)
        };
        let ordered: Vec<Micros> = (100..200).collect();
        assert_eq!(span(&ordered), (100, 199));
        assert_eq!(span(&[&ordered[..], &[3, 5, 9_000]].concat()), (100, 199));
        assert_eq!(span(&[&ordered[..], &[90, 210]].concat()), (90, 210));
        assert_eq!(span(&[7; 100]), (7, 7));
        assert_eq!(span(&[1, 1_000]), (1, 1_000));
        assert_eq!(
            span(&[&[0; 100][..], &[i64::MIN, i64::MAX]].concat()),
            (0, 0)
        );
    }

    #[test]
    fn outliers_are_selected_by_time_and_returned_in_document_order() {
        let outliers = Outliers::new(vec![(30, 1), (10, 9), (20, 4), (20, 2)]);
        let between = |from, to| outliers.documents(&outliers.between(from, to));
        assert_eq!(between(None, None), [1, 2, 4, 9]);
        assert_eq!(between(Some(20), Some(30)), [2, 4]);
        assert!(between(Some(21), Some(20)).is_empty());
        assert_eq!(outliers.last(&(0..3)), 20);
    }
}
