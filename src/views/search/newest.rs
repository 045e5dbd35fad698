//! The newest hits of a query, without visiting every matching document: spans are visited by their
//! last event time, newest first, until no remaining span can contain a newer hit. The total is
//! counted once per segment and cached, or counted within the spans that overlap the time range.
//!
//! For a word in a third of 10 million events, the first span or two contain 21 hits; visiting all
//! would take 35 ms. Example: spans end at 90, 70 and 40; the first gives the two hits wanted, at
//! 88 and 75; the next may have none above 70.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::Arc;

use tantivy::columnar::Column;
use tantivy::query::{BooleanQuery, EnableScoring, Query, Scorer, Weight};
use tantivy::{DocAddress, DocId, Searcher, SegmentOrdinal, SegmentReader};

use super::index::PartSearcher;
use super::spans::{SPAN_DOCUMENTS, SegmentSummary, Span};
use crate::event::{Lsn, Micros};

/// Spans of the first round; what they give says how many the next one needs.
const FIRST_SPANS: usize = 4;
/// The next round takes so many times what should be enough.
const RESERVE: usize = 2;
/// Outliers that are visited together.
const OUTLIER_BATCH: usize = 256;

/// What must hold: of each of these, one.
pub struct Conditions(pub Vec<Vec<Box<dyn Query>>>);

impl Conditions {
    pub fn query(&self) -> Box<dyn Query> {
        let any = |queries: &Vec<Box<dyn Query>>| match queries.as_slice() {
            [one] => one.box_clone(),
            _ => Box::new(BooleanQuery::union(
                queries.iter().map(|query| query.box_clone()).collect(),
            )),
        };
        match self.0.as_slice() {
            [one] => any(one),
            all => Box::new(BooleanQuery::intersection(all.iter().map(any).collect())),
        }
    }

    fn weights(&self, searcher: &Searcher) -> tantivy::Result<Weights> {
        let weight =
            |query: &dyn Query| query.weight(EnableScoring::disabled_from_searcher(searcher));
        let any =
            |queries: &Vec<Box<dyn Query>>| queries.iter().map(|query| weight(&**query)).collect();
        Ok(Weights {
            all: weight(&*self.query())?,
            each: self.0.iter().map(any).collect::<tantivy::Result<_>>()?,
        })
    }
}

/// The conditions as one, and one by one.
struct Weights {
    all: Box<dyn Weight>,
    each: Vec<Vec<Box<dyn Weight>>>,
}

/// What is looked for.
pub struct NewestHits<'a> {
    pub conditions: &'a Conditions,
    /// What the words are remembered by, where there are no other conditions.
    pub name: Option<&'a str>,
    pub from: Option<Micros>,
    pub to: Option<Micros>,
    /// Only records up to this one.
    pub upto: Option<Lsn>,
    /// Hits come after this one, which are older.
    pub after: Option<(Micros, Lsn)>,
    pub wanted: usize,
}

/// Where a hit is: its time, its LSN, the index, and the document in it.
pub type Place = (Micros, Lsn, usize, DocAddress);

struct Segment<'a> {
    part: usize,
    ordinal: SegmentOrdinal,
    reader: &'a SegmentReader,
    weights: Arc<Weights>,
    is_by_words: bool,
    known: Arc<SegmentSummary>,
    times: Column<i64>,
    lsns: Column<i64>,
}

/// Some documents of a segment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Selection {
    Span(usize),
    /// By their numbers among the outliers, in the order of time.
    Outliers(usize, usize),
}

impl Segment<'_> {
    /// Hands on the query's documents in these spans, which ascend, and among these outliers.
    fn each(&self, some: &[Selection], mut take: impl FnMut(DocId, Micros)) -> tantivy::Result<()> {
        let mut found = self.weights.all.scorer(self.reader, 1.0)?;
        let mut document = found.doc();
        let mut outliers = Vec::new();
        for among in some {
            match among {
                Selection::Span(span) => {
                    let Range { start, end } = documents(*span);
                    if document < start {
                        document = found.seek(start);
                    }
                    // `TERMINATED` is greater than every document.
                    while document < end {
                        let time = self.times.first(document).unwrap_or(0);
                        if self.known.spans[*span].has(time) {
                            take(document, time);
                        }
                        document = found.advance();
                    }
                }
                Selection::Outliers(first, end) => {
                    outliers.extend(self.known.outliers.documents(&(*first..*end)));
                }
            }
        }
        if outliers.is_empty() {
            return Ok(());
        }
        outliers.sort_unstable();
        if !self.is_by_words {
            // The distance is computed only for documents that match the words.
            let mut found = self.weights.all.scorer(self.reader, 1.0)?;
            for outlier in outliers {
                if found.doc() == outlier || found.doc() < outlier && found.seek(outlier) == outlier
                {
                    take(outlier, self.times.first(outlier).unwrap_or(0));
                }
            }
            return Ok(());
        }
        // Outliers are far apart, so each is sought on the posting lists alone: a union would
        // decode thousands of documents around it.
        let scorers = |any: &Vec<Box<dyn Weight>>| {
            any.iter().map(|one| one.scorer(self.reader, 1.0)).collect()
        };
        let conditions = self.weights.each.iter().map(scorers);
        let mut conditions = conditions.collect::<tantivy::Result<Vec<Vec<Box<dyn Scorer>>>>>()?;
        for outlier in outliers {
            let mut is_in = |found: &mut Box<dyn Scorer>| {
                found.doc() == outlier || found.doc() < outlier && found.seek(outlier) == outlier
            };
            if conditions
                .iter_mut()
                .all(|any| any.iter_mut().any(&mut is_in))
            {
                take(outlier, self.times.first(outlier).unwrap_or(0));
            }
        }
        Ok(())
    }

    /// What of the segment has events between two times, with the time of the last.
    fn between(
        &self,
        from: Option<Micros>,
        to: Option<Micros>,
    ) -> impl Iterator<Item = (Micros, Selection)> {
        let overlaps = move |span: &Span| {
            from.is_none_or(|from| span.last >= from) && to.is_none_or(|to| span.first < to)
        };
        let spans = self
            .known
            .spans
            .iter()
            .enumerate()
            .filter(move |(_, span)| overlaps(span));
        let outliers = self.known.outliers.between(from, to);
        let end = outliers.end;
        let outliers = outliers
            .step_by(OUTLIER_BATCH)
            .map(move |first| first..(first + OUTLIER_BATCH).min(end));
        let outliers = outliers.map(|some| {
            (
                self.known.outliers.last(&some),
                Selection::Outliers(some.start, some.end),
            )
        });
        spans
            .map(|(at, span)| (span.last, Selection::Span(at)))
            .chain(outliers)
    }

    fn lsn(&self, document: DocId) -> Lsn {
        self.lsns.first(document).unwrap_or(0) as Lsn
    }
}

fn documents(span: usize) -> Range<DocId> {
    let start = span as DocId * SPAN_DOCUMENTS;
    start..start.saturating_add(SPAN_DOCUMENTS)
}

impl NewestHits<'_> {
    /// The newest hits, in order, and how many there are in all; those before `after` are counted,
    /// too.
    pub fn find(&self, searchers: &[PartSearcher]) -> tantivy::Result<(Vec<Place>, usize)> {
        let segments = self.segments(searchers)?;
        let mut total = 0;
        for segment in &segments {
            total += self.count(segment)? as usize;
        }
        // What comes after a hit is of its time, or older.
        let end = self.after.map(|(time, _)| time.saturating_add(1));
        let to = self.to.into_iter().chain(end).min();
        let mut spans: Vec<(Micros, usize, Selection)> = Vec::new();
        for (number, segment) in segments.iter().enumerate() {
            spans.extend(
                segment
                    .between(self.from, to)
                    .map(|(last, some)| (last, number, some)),
            );
        }
        spans.sort_unstable_by_key(|(last, ..)| Reverse(*last));
        let (mut hits, mut rest, mut round) = (BinaryHeap::new(), spans.as_slice(), FIRST_SPANS);
        while !rest.is_empty() {
            let oldest = hits
                .peek()
                .filter(|_| hits.len() >= self.wanted)
                .map(|Reverse((time, ..)): &Reverse<Place>| *time);
            // At equal times the greater LSN is newer, so a span that ends at the oldest hit's time
            // is still visited.
            let left =
                rest.partition_point(|(last, ..)| oldest.is_none_or(|oldest| *last >= oldest));
            let (now, later) = rest.split_at(round.min(left));
            if now.is_empty() {
                break;
            }
            self.look_into(&segments, now, &mut hits)?;
            rest = later;
            let needed = (now.len() * self.wanted)
                .checked_div(hits.len())
                .unwrap_or(rest.len());
            round = needed.saturating_mul(RESERVE).max(FIRST_SPANS);
        }
        let mut hits: Vec<Place> = hits.into_iter().map(|Reverse(hit)| hit).collect();
        hits.sort_unstable_by_key(|hit| Reverse(*hit));
        Ok((hits, total))
    }

    fn segments<'s>(&self, searchers: &'s [PartSearcher]) -> tantivy::Result<Vec<Segment<'s>>> {
        let mut segments = Vec::new();
        for (
            part,
            PartSearcher {
                searcher,
                segments: known,
                ..
            },
        ) in searchers.iter().enumerate()
        {
            let weights = Arc::new(self.conditions.weights(searcher)?);
            for (ordinal, (reader, known)) in
                searcher.segment_readers().iter().zip(known).enumerate()
            {
                if !self.overlaps(known.all.first, known.all.last) {
                    continue;
                }
                let column = |name| reader.fast_fields().i64(name);
                let (times, lsns) = (column("event_time")?, column("lsn")?);
                let ordinal = ordinal as SegmentOrdinal;
                segments.push(Segment {
                    part,
                    ordinal,
                    reader,
                    weights: weights.clone(),
                    is_by_words: self.name.is_some(),
                    known: known.clone(),
                    times,
                    lsns,
                });
            }
        }
        Ok(segments)
    }

    fn is_in(&self, time: Micros) -> bool {
        self.from.is_none_or(|from| time >= from) && self.to.is_none_or(|to| time < to)
    }

    fn overlaps(&self, first: Micros, last: Micros) -> bool {
        self.from.is_none_or(|from| last >= from) && self.to.is_none_or(|to| first < to)
    }

    fn count(&self, segment: &Segment<'_>) -> tantivy::Result<u32> {
        let known = &segment.known;
        let upto = self.upto.filter(|upto| known.last_lsn > *upto);
        if upto.is_none() && self.is_in(known.all.first) && self.is_in(known.all.last) {
            return known.count(self.name, || segment.weights.all.count(segment.reader));
        }
        let some: Vec<Selection> = segment
            .between(self.from, self.to)
            .map(|(_, some)| some)
            .collect();
        let mut number = 0;
        segment.each(&some, |document, time| {
            number += u32::from(
                self.is_in(time) && upto.is_none_or(|upto| segment.lsn(document) <= upto),
            );
        })?;
        Ok(number)
    }

    /// Adds the hits of some spans; the newest stay.
    fn look_into(
        &self,
        segments: &[Segment<'_>],
        spans: &[(Micros, usize, Selection)],
        hits: &mut BinaryHeap<Reverse<Place>>,
    ) -> tantivy::Result<()> {
        let mut spans: Vec<(usize, Selection)> = spans
            .iter()
            .map(|(_, segment, some)| (*segment, some.clone()))
            .collect();
        spans.sort_unstable();
        for spans in spans.chunk_by(|a, b| a.0 == b.0) {
            let segment = &segments[spans[0].0];
            let some: Vec<Selection> = spans.iter().map(|(_, some)| some.clone()).collect();
            segment.each(&some, |document, time| {
                let lsn = segment.lsn(document);
                let is_on_page = self.is_in(time)
                    && self.upto.is_none_or(|upto| lsn <= upto)
                    && self.after.is_none_or(|after| (time, lsn) < after);
                if !is_on_page {
                    return;
                }
                let hit = Reverse((
                    time,
                    lsn,
                    segment.part,
                    DocAddress::new(segment.ordinal, document),
                ));
                if hits.len() < self.wanted {
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

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};
    use tantivy::indexer::NoMergePolicy;
    use tantivy::query::{AllQuery, TermQuery};
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

    /// A stream in the order of arrival: most events in the order of time, some late, a few with
    /// clocks that are fast.
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
    fn what_is_found_is_what_a_look_at_every_document_finds() {
        compare(1);
    }

    #[test]
    fn so_it_is_of_a_stream_without_order() {
        compare(50);
    }

    #[test]
    fn hits_are_read_also_when_a_merge_has_replaced_their_segments() {
        let random = &mut SmallRng::seed_from_u64(7);
        let folder = tempfile::tempdir().expect("a folder");
        let def = SearchDef {
            text: vec!["s".into()],
            exact: Vec::new(),
            geo: Vec::new(),
        };
        let index = SearchIndex::open(&folder.path().join("s"), &def, true)
            .expect("opens")
            .expect("is there");
        let events = events(random, 300, 1);
        add(&index, &events[..200], 4, false);
        let searchers = index.searchers().0;
        // The rest, and a merge of all, after which nothing that was there before is left.
        add(&index, &events[200..], 1, true);
        let mut rows = RowReader::default();
        let mut lsns = Vec::new();
        for (segment, known) in searchers[0].segments.iter().enumerate() {
            for document in 0..searchers[0]
                .searcher
                .segment_reader(segment as u32)
                .max_doc()
            {
                let row = rows
                    .read(0, &known.rows, DocAddress::new(segment as u32, document))
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

    fn compare(disorder: i64) {
        let random = &mut SmallRng::seed_from_u64(5);
        let folder = tempfile::tempdir().expect("a folder");
        let def = SearchDef {
            text: vec!["s".into()],
            exact: Vec::new(),
            geo: Vec::new(),
        };
        let index = SearchIndex::open(&folder.path().join("s"), &def, true)
            .expect("opens")
            .expect("is there");
        let events = events(random, 40_000, disorder);
        add(&index, &events[..20_000], 3, true);
        add(&index, &events[20_000..28_000], 2, false);
        index.roll().expect("another part");
        add(&index, &events[28_000..], 5, false);
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
            let mut must: Vec<Vec<Box<dyn Query>>> = words
                .iter()
                .map(|word| vec![term(word), term("none")])
                .collect();
            must.push(vec![Box::new(AllQuery)]);
            let conditions = Conditions(must);
            let name = words.join(" ");
            let name = (round % 4 > 0).then_some(name.as_str());
            let mut maybe = |low: i64, high: i64| {
                let number = random.random_range(low..high);
                (random.random_range(0..2) == 0).then_some(number)
            };
            let from = maybe(-1, 13_500);
            let to = maybe(-1, 13_500).map(|to| to.max(from.unwrap_or(-1)) + 1);
            let upto = maybe(1, 41_000).map(|lsn| lsn as Lsn);
            let after = maybe(0, 14_000).map(|time| (time, 17_000));
            let wanted = maybe(1, 60).unwrap_or(21) as usize;
            let newest = NewestHits {
                conditions: &conditions,
                name,
                from,
                to,
                upto,
                after,
                wanted,
            };
            let (found, total) = newest.find(&searchers).expect("an answer");
            let is_found = |e: &&Event| {
                words.iter().all(|word| e.words.contains(word))
                    && newest.is_in(e.time)
                    && upto.is_none_or(|upto| e.lsn <= upto)
            };
            let all: Vec<(Micros, Lsn)> = events
                .iter()
                .filter(is_found)
                .map(|e| (e.time, e.lsn))
                .collect();
            assert_eq!(total, all.len(), "round {round}, {words:?}");
            let mut page: Vec<_> = all
                .into_iter()
                .filter(|at| after.is_none_or(|after| *at < after))
                .collect();
            page.sort_unstable_by_key(|at| Reverse(*at));
            page.truncate(wanted);
            assert_eq!(
                found.iter().map(|hit| (hit.0, hit.1)).collect::<Vec<_>>(),
                page,
                "round {round}, {words:?}"
            );
        }
    }
}
