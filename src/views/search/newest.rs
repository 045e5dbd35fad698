//! The newest hits of a query, without visiting every matching document: spans are visited by their
//! last event time, newest first, until no remaining span can contain a newer hit. The total is
//! counted once per segment and cached, or counted within the spans that overlap the time range.
//!
//! For a word in a third of 10 million events, the first span or two contain 21 hits; visiting all
//! would take 35 ms. Example: spans end at 90, 70 and 40; the first gives the two hits wanted, at
//! 88 and 75; the next may have none above 70.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use tantivy::{DocAddress, SegmentOrdinal};

use super::part::PartSearcher;
pub use super::scan::{Alternatives, Conditions};
use super::scan::{SegmentScan, Selection};
use crate::event::{Lsn, Micros};

/// Spans of the first round; its number of hits decides how many the next one visits.
const FIRST_SPANS: usize = 4;
/// The next round visits this many times the spans that should suffice.
const SPANS_FACTOR: usize = 2;

/// A search for the newest hits.
pub struct NewestHits<'a> {
    pub conditions: &'a Conditions,
    /// Key under which totals are cached; only where all conditions are about words.
    pub cache_key: Option<&'a str>,
    /// Event times from this one on, and before that one.
    pub from: Option<Micros>,
    pub to: Option<Micros>,
    /// The greatest LSN of a hit.
    pub max_lsn: Option<Lsn>,
    /// Hits are older than this one, the last of the previous page.
    pub after: Option<(Micros, Lsn)>,
    pub limit: usize,
}

/// A hit and where its document is. Hits are ordered by time, then by LSN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HitAddress {
    pub time: Micros,
    pub lsn: Lsn,
    /// The number of the index, and the document in it.
    pub part: usize,
    pub document: DocAddress,
}

/// A selection of a segment, with its last event time and the number of the segment.
type Candidates = (Micros, usize, Selection);

impl NewestHits<'_> {
    /// The newest hits in descending order, and the total of all pages.
    pub fn find(&self, searchers: &[PartSearcher]) -> tantivy::Result<(Vec<HitAddress>, usize)> {
        let segments = self.segments(searchers)?;
        let mut total = 0;
        for segment in &segments {
            total += self.count(segment)? as usize;
        }
        let candidates = self.candidates(&segments);
        let (mut hits, mut rest, mut round) =
            (BinaryHeap::new(), candidates.as_slice(), FIRST_SPANS);
        while !rest.is_empty() {
            let oldest = hits
                .peek()
                .filter(|_| hits.len() >= self.limit)
                .map(|Reverse(hit): &Reverse<HitAddress>| hit.time);
            // At equal times the greater LSN is newer, so a span that ends at the oldest hit's time
            // is still visited.
            let left =
                rest.partition_point(|(last, ..)| oldest.is_none_or(|oldest| *last >= oldest));
            let (now, later) = rest.split_at(round.min(left));
            if now.is_empty() {
                break;
            }
            self.collect(&segments, now, &mut hits)?;
            rest = later;
            round = next_round(now.len(), hits.len(), self.limit, rest.len());
        }
        let mut hits: Vec<HitAddress> = hits.into_iter().map(|Reverse(hit)| hit).collect();
        hits.sort_unstable_by_key(|hit| Reverse(*hit));
        Ok((hits, total))
    }

    /// The selections that may have hits of this page, those that end last first.
    fn candidates(&self, segments: &[SegmentScan<'_>]) -> Vec<Candidates> {
        // Hits after the previous page are at most as new as its last hit.
        let end = self.after.map(|(time, _)| time.saturating_add(1));
        let to = self.to.into_iter().chain(end).min();
        let mut candidates: Vec<Candidates> = Vec::new();
        for (number, segment) in segments.iter().enumerate() {
            candidates.extend(
                segment
                    .selections_between(self.from, to)
                    .map(|(last, selection)| (last, number, selection)),
            );
        }
        candidates.sort_unstable_by_key(|(last, ..)| Reverse(*last));
        candidates
    }

    fn segments<'s>(&self, searchers: &'s [PartSearcher]) -> tantivy::Result<Vec<SegmentScan<'s>>> {
        let mut segments = Vec::new();
        for (
            part,
            PartSearcher {
                searcher,
                segments: summaries,
                ..
            },
        ) in searchers.iter().enumerate()
        {
            let weights = Arc::new(self.conditions.weights(searcher)?);
            let readers = searcher.segment_readers().iter().zip(summaries);
            for (ordinal, (reader, summary)) in readers.enumerate() {
                if !self.overlaps(summary.range.first, summary.range.last) {
                    continue;
                }
                let column = |name| reader.fast_fields().i64(name);
                segments.push(SegmentScan {
                    part,
                    ordinal: ordinal as SegmentOrdinal,
                    reader,
                    weights: weights.clone(),
                    has_only_words: self.cache_key.is_some(),
                    summary: summary.clone(),
                    times: column("event_time")?,
                    lsns: column("lsn")?,
                });
            }
        }
        Ok(segments)
    }

    fn contains(&self, time: Micros) -> bool {
        self.overlaps(time, time)
    }

    fn overlaps(&self, first: Micros, last: Micros) -> bool {
        self.from.is_none_or(|from| last >= from) && self.to.is_none_or(|to| first < to)
    }

    fn count(&self, segment: &SegmentScan<'_>) -> tantivy::Result<u32> {
        let summary = &segment.summary;
        let max_lsn = self.max_lsn.filter(|max| summary.last_lsn > *max);
        if max_lsn.is_none()
            && self.contains(summary.range.first)
            && self.contains(summary.range.last)
        {
            return summary.count(self.cache_key, || segment.weights.all.count(segment.reader));
        }
        let selections: Vec<Selection> = segment
            .selections_between(self.from, self.to)
            .map(|(_, selection)| selection)
            .collect();
        let mut number = 0;
        segment.for_each_match(&selections, |document, time| {
            number += u32::from(
                self.contains(time) && max_lsn.is_none_or(|max| segment.lsn(document) <= max),
            );
        })?;
        Ok(number)
    }

    /// Adds the hits in some selections; the newest `limit` remain.
    fn collect(
        &self,
        segments: &[SegmentScan<'_>],
        candidates: &[Candidates],
        hits: &mut BinaryHeap<Reverse<HitAddress>>,
    ) -> tantivy::Result<()> {
        let mut selections: Vec<(usize, Selection)> = candidates
            .iter()
            .map(|(_, segment, selection)| (*segment, selection.clone()))
            .collect();
        selections.sort_unstable();
        for of_segment in selections.chunk_by(|a, b| a.0 == b.0) {
            let segment = &segments[of_segment[0].0];
            let selections: Vec<Selection> = of_segment
                .iter()
                .map(|(_, selection)| selection.clone())
                .collect();
            segment.for_each_match(&selections, |document, time| {
                let lsn = segment.lsn(document);
                let is_on_page = self.contains(time)
                    && self.max_lsn.is_none_or(|max| lsn <= max)
                    && self.after.is_none_or(|after| (time, lsn) < after);
                if !is_on_page {
                    return;
                }
                let hit = Reverse(HitAddress {
                    time,
                    lsn,
                    part: segment.part,
                    document: DocAddress::new(segment.ordinal, document),
                });
                if hits.len() < self.limit {
                    hits.push(hit);
                } else if let Some(mut oldest) = hits.peek_mut()
                    && hit < *oldest
                {
                    *oldest = hit;
                }
            })?;
        }
        Ok(())
    }
}

/// How many of the `left` spans are visited next, after `visited` ones gave `hits`.
fn next_round(visited: usize, hits: usize, limit: usize, left: usize) -> usize {
    let needed = (visited * limit).checked_div(hits).unwrap_or(left);
    needed.saturating_mul(SPANS_FACTOR).max(FIRST_SPANS)
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};
    use tantivy::indexer::NoMergePolicy;
    use tantivy::query::{AllQuery, Query, TermQuery};
    use tantivy::schema::IndexRecordOption;
    use tantivy::{IndexWriter, Term};

    use super::super::document::{Backlog, Columns, Row};
    use super::super::index::SearchIndex;
    use super::super::rows::RowReader;
    use super::*;
    use crate::schema::SearchDef;

    struct Event {
        time: Micros,
        lsn: Lsn,
        words: Vec<&'static str>,
    }

    /// A stream in the order of arrival: most events in the order of time, some late, a few from
    /// fast clocks.
    fn events(random: &mut SmallRng, count: i64, disorder: i64) -> Vec<Event> {
        let event = |lsn: i64| {
            let time = match random.random_range(0..100 / disorder) {
                0 => random.random_range(0..count),
                1 => lsn + random.random_range(0..count / 4),
                _ => lsn + random.random_range(-5..5),
            };
            let chances = [("every", 1), ("third", 3), ("tenth", 10), ("rare", 2_000)];
            let words = chances
                .into_iter()
                .filter(|(_, of)| random.random_range(0..*of) == 0)
                .map(|(w, _)| w);
            Event {
                time: time / 3,
                lsn: lsn as Lsn,
                words: words.collect(),
            }
        };
        (1..=count).map(event).collect()
    }

    fn add(index: &SearchIndex, events: &[Event], segments: usize, is_merged: bool) {
        let mut writer: IndexWriter<Row> = index
            .last()
            .0
            .writer_with_num_threads(1, 64 << 20)
            .expect("a writer");
        writer.set_merge_policy(Box::new(NoMergePolicy));
        for events in events.chunks(events.len().div_ceil(segments)) {
            let columns: [(&str, ArrayRef); 3] = [
                (
                    "lsn",
                    Arc::new(Int64Array::from_iter_values(
                        events.iter().map(|e| e.lsn as i64),
                    )),
                ),
                (
                    "event_time",
                    Arc::new(TimestampMicrosecondArray::from_iter_values(
                        events.iter().map(|e| e.time),
                    )),
                ),
                (
                    "s",
                    Arc::new(StringArray::from_iter_values(
                        events.iter().map(|e| e.words.join(" ")),
                    )),
                ),
            ];
            let batch = RecordBatch::try_from_iter(columns).expect("a batch");
            let columns = Arc::new(Columns::new(
                &batch,
                &index.fields,
                &index.def,
                &Backlog::default(),
            ));
            for row in 0..batch.num_rows() {
                writer
                    .add_document(Row {
                        columns: columns.clone(),
                        row,
                    })
                    .expect("added");
            }
            writer.commit().expect("committed");
        }
        if is_merged {
            let segments = index.last().0.searchable_segment_ids().expect("segments");
            // As a policy would: not in the order of time.
            writer
                .merge(&segments.into_iter().rev().collect::<Vec<_>>())
                .wait()
                .expect("merged");
        }
        writer.wait_merging_threads().expect("no merges");
        index
            .reload(events.last().map_or(0, |e| e.lsn))
            .expect("reloaded");
    }

    #[test]
    fn hits_are_those_of_a_full_scan() {
        compare(1);
    }

    #[test]
    fn hits_are_those_of_a_full_scan_without_order_in_the_stream() {
        compare(50);
    }

    #[test]
    fn hits_are_readable_after_a_merge_has_replaced_their_segments() {
        let random = &mut SmallRng::seed_from_u64(7);
        let folder = tempfile::tempdir().expect("a folder");
        let def = SearchDef {
            text: vec!["s".into()],
            exact: Vec::new(),
            geo: Vec::new(),
        };
        let index = SearchIndex::open(&folder.path().join("s"), &def, true)
            .expect("opens")
            .expect("exists");
        let events = events(random, 300, 1);
        add(&index, &events[..200], 4, false);
        let searchers = index.searchers().0;
        // The rest, and a merge of everything, which replaces all segments.
        add(&index, &events[200..], 1, true);
        let mut rows = RowReader::default();
        let mut lsns = Vec::new();
        for (segment, summary) in searchers[0].segments.iter().enumerate() {
            for document in 0..searchers[0]
                .searcher
                .segment_reader(segment as u32)
                .max_doc()
            {
                let row = rows
                    .read(0, &summary.rows, DocAddress::new(segment as u32, document))
                    .expect("a row");
                lsns.push(crate::operators::lsns(&row)[0]);
            }
        }
        lsns.sort_unstable();
        assert_eq!(lsns, (1..=200).collect::<Vec<_>>());
        let files = std::fs::read_dir(folder.path().join("s/000000"))
            .expect("a folder")
            .flatten();
        let stored = files
            .filter(|file| file.path().extension().is_some_and(|e| e == "rows"))
            .count();
        assert_eq!(stored, 1, "the merge has removed the others");
    }

    /// An index of two parts with segments of several sizes.
    fn index_of(folder: &std::path::Path, events: &[Event]) -> SearchIndex {
        let def = SearchDef {
            text: vec!["s".into()],
            exact: Vec::new(),
            geo: Vec::new(),
        };
        let index = SearchIndex::open(&folder.join("s"), &def, true)
            .expect("opens")
            .expect("exists");
        add(&index, &events[..20_000], 3, true);
        add(&index, &events[20_000..28_000], 2, false);
        index.roll().expect("another part");
        add(&index, &events[28_000..], 5, false);
        index
    }

    fn compare(disorder: i64) {
        let random = &mut SmallRng::seed_from_u64(5);
        let folder = tempfile::tempdir().expect("a folder");
        let events = events(random, 40_000, disorder);
        let index = index_of(folder.path(), &events);
        let searchers = index.searchers().0;
        let term = |word: &str| -> Box<dyn Query> {
            Box::new(TermQuery::new(
                Term::from_field_text(index.fields.text[0], word),
                IndexRecordOption::Basic,
            ))
        };
        for round in 0..120 {
            let words: Vec<&str> = ["every", "third", "tenth", "rare", "none"]
                .into_iter()
                .filter(|_| random.random_range(0..3) == 0)
                .collect();
            let mut clauses: Vec<Vec<Box<dyn Query>>> = words
                .iter()
                .map(|word| vec![term(word), term("none")])
                .collect();
            clauses.push(vec![Box::new(AllQuery)]);
            let conditions = Conditions(clauses);
            let key = words.join(" ");
            let cache_key = (round % 4 > 0).then_some(key.as_str());
            let mut maybe = |low: i64, high: i64| {
                let number = random.random_range(low..high);
                (random.random_range(0..2) == 0).then_some(number)
            };
            let from = maybe(-1, 13_500);
            let to = maybe(-1, 13_500).map(|to| to.max(from.unwrap_or(-1)) + 1);
            let max_lsn = maybe(1, 41_000).map(|lsn| lsn as Lsn);
            let after = maybe(0, 14_000).map(|time| (time, 17_000));
            let limit = maybe(1, 60).unwrap_or(21) as usize;
            let newest = NewestHits {
                conditions: &conditions,
                cache_key,
                from,
                to,
                max_lsn,
                after,
                limit,
            };
            let (found, total) = newest.find(&searchers).expect("an answer");
            let matches = |e: &&Event| {
                words.iter().all(|word| e.words.contains(word))
                    && newest.contains(e.time)
                    && max_lsn.is_none_or(|max| e.lsn <= max)
            };
            let all: Vec<(Micros, Lsn)> = events
                .iter()
                .filter(matches)
                .map(|e| (e.time, e.lsn))
                .collect();
            assert_eq!(total, all.len(), "round {round}, {words:?}");
            let mut page: Vec<_> = all
                .into_iter()
                .filter(|at| after.is_none_or(|after| *at < after))
                .collect();
            page.sort_unstable_by_key(|at| Reverse(*at));
            page.truncate(limit);
            let found: Vec<_> = found.iter().map(|hit| (hit.time, hit.lsn)).collect();
            assert_eq!(found, page, "round {round}, {words:?}");
        }
    }

    #[test]
    fn the_next_round_visits_twice_what_should_suffice() {
        for (visited, hits, limit, left, expected) in [
            (4, 2, 20, 100, 80),
            (4, 20, 20, 100, 8),
            (4, 0, 20, 100, 200),
            (4, 20, 1, 0, FIRST_SPANS),
        ] {
            assert_eq!(next_round(visited, hits, limit, left), expected);
        }
    }
}
