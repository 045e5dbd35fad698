//! What is known of a segment without looking for anything: when the events of its documents were, a span of documents at a time,
//! and how many documents were found for questions asked before. A segment never changes, so all of it stays true.

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
/// One of so many documents may be a stray, which takes 12 bytes; of a segment with more, spans are as long as they are.
const STRAYS: DocId = 16;
/// Questions whose numbers are remembered of a segment, and the longest of them.
const REMEMBERED: usize = 256;
const LONGEST_BYTES: usize = 256;

/// The first and the last of some event times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub first: Micros,
    pub last: Micros,
}

impl Span {
    fn of(times: impl Iterator<Item = Micros>) -> Self {
        let none = Self { first: Micros::MAX, last: Micros::MIN };
        times.fold(none, |span, time| Self { first: span.first.min(time), last: span.last.max(time) })
    }

    pub fn has(&self, time: Micros) -> bool {
        (self.first..=self.last).contains(&time)
    }

    /// Where most of these times lie. On either side of the middle, those are left out that are more than three times as far from it
    /// as all but a sixteenth: at most an eighth together. Of 100, 101, … 199 with 3, 5 and 9,000 among them it is 100 to 199.
    fn of_most(times: &[Micros]) -> Self {
        let mut sorted = times.to_vec();
        let (count, few) = (sorted.len(), sorted.len() / 16);
        if few == 0 {
            return Self::of(sorted.into_iter());
        }
        let middle = *sorted.select_nth_unstable(count / 2).1;
        let low = *sorted[..count / 2].select_nth_unstable(few).1;
        let high = *sorted[count / 2..].select_nth_unstable(count - count / 2 - 1 - few).1;
        let least = middle.saturating_sub(middle.saturating_sub(low).saturating_mul(3));
        let most = middle.saturating_add(high.saturating_sub(middle).saturating_mul(3));
        Self::of(times.iter().copied().filter(|time| (least..=most).contains(time)))
    }
}

/// Documents whose time lies apart from their span's, by time: late events, and those of clocks that are wrong. Without them a span
/// of four seconds would be one of hours, and no span could be left out.
#[derive(Debug, Default)]
pub struct Strays {
    times: Vec<Micros>,
    documents: Vec<DocId>,
}

impl Strays {
    fn of(mut strays: Vec<(Micros, DocId)>) -> Self {
        strays.sort_unstable();
        let (times, documents) = strays.into_iter().unzip();
        Self { times, documents }
    }

    /// The numbers of those between two times.
    pub fn between(&self, from: Option<Micros>, to: Option<Micros>) -> Range<usize> {
        let first = from.map_or(0, |from| self.times.partition_point(|time| *time < from));
        let end = to.map_or(self.times.len(), |to| self.times.partition_point(|time| *time < to));
        first..end.max(first)
    }

    pub fn last(&self, numbers: &Range<usize>) -> Micros {
        self.times[numbers.clone()].last().copied().unwrap_or(Micros::MIN)
    }

    /// In ascending order.
    pub fn documents(&self, numbers: &Range<usize>) -> Vec<DocId> {
        let mut documents = self.documents[numbers.clone()].to_vec();
        documents.sort_unstable();
        documents
    }
}

fn corrupt() -> TantivyError {
    TantivyError::DataCorruption(DataCorruption::comment_only("its columns are not those that were written"))
}

/// What is known of one segment, and its rows.
pub struct Known {
    pub rows: StoredRows,
    pub spans: Vec<Span>,
    pub strays: Strays,
    pub all: Span,
    pub last_lsn: Lsn,
    counts: Mutex<HashMap<String, u32>>,
}

impl Known {
    /// Tantivy panics at some bytes that it did not write.
    pub fn read(segment: &SegmentReader) -> tantivy::Result<Self> {
        let read = std::panic::catch_unwind(AssertUnwindSafe(|| Self::read_columns(segment)));
        read.unwrap_or_else(|_| Err(corrupt()))
    }

    fn read_columns(segment: &SegmentReader) -> tantivy::Result<Self> {
        let rows = StoredRows::open(segment)?;
        let times = segment.fast_fields().i64("event_time")?;
        let lsns = segment.fast_fields().i64("lsn")?;
        // The number of documents lies in a file that nothing sums.
        if [times.num_docs(), lsns.num_docs(), rows.documents()].iter().any(|number| *number != segment.max_doc()) {
            return Err(corrupt());
        }
        let mut buffer = vec![0; SPAN_DOCUMENTS as usize];
        let (mut spans, mut whole, mut strays) = (Vec::new(), Vec::new(), Vec::new());
        let most_strays = (segment.max_doc() / STRAYS) as usize;
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
            whole.push(Span::of(values.iter().copied()));
            if strays.len() <= most_strays {
                let span = Span::of_most(values);
                strays.extend(
                    (start..end).zip(values.iter()).filter(|(_, time)| !span.has(**time)).map(|(d, t)| (*t, d)),
                );
                spans.push(span);
            }
        }
        let all = Span::of(whole.iter().flat_map(|span| [span.first, span.last]));
        // Of a stream without any order there is nothing to leave out.
        let (spans, strays) =
            if strays.len() > most_strays { (whole, Strays::default()) } else { (spans, Strays::of(strays)) };
        let last_lsn = lsns.max_value() as Lsn;
        Ok(Self { rows, spans, strays, all, last_lsn, counts: Mutex::default() })
    }

    /// How many documents a question finds, which is counted once.
    pub fn count(&self, question: Option<&str>, count: impl FnOnce() -> tantivy::Result<u32>) -> tantivy::Result<u32> {
        let Some(question) = question.filter(|question| question.len() <= LONGEST_BYTES) else { return count() };
        let counts = || self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = counts().get(question) {
            return Ok(*known);
        }
        let number = count()?;
        let mut counts = counts();
        if counts.len() >= REMEMBERED {
            counts.clear();
        }
        counts.insert(question.to_owned(), number);
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_where_most_of_its_times_lie() {
        let most = |times: &[Micros]| {
            let span = Span::of_most(times);
            (span.first, span.last)
        };
        let ordered: Vec<Micros> = (100..200).collect();
        assert_eq!(most(&ordered), (100, 199));
        assert_eq!(most(&[&ordered[..], &[3, 5, 9_000]].concat()), (100, 199));
        assert_eq!(most(&[&ordered[..], &[90, 210]].concat()), (90, 210));
        assert_eq!(most(&[7; 100]), (7, 7));
        assert_eq!(most(&[1, 1_000]), (1, 1_000));
        assert_eq!(most(&[&[0; 100][..], &[i64::MIN, i64::MAX]].concat()), (0, 0));
    }

    #[test]
    fn strays_are_found_by_time_and_given_by_number() {
        let strays = Strays::of(vec![(30, 1), (10, 9), (20, 4), (20, 2)]);
        let between = |from, to| strays.documents(&strays.between(from, to));
        assert_eq!(between(None, None), [1, 2, 4, 9]);
        assert_eq!(between(Some(20), Some(30)), [2, 4]);
        assert!(between(Some(21), Some(20)).is_empty());
        assert_eq!(strays.last(&(0..3)), 20);
    }
}
