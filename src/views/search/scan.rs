//! Matches of a query in parts of a segment: in spans of documents and among outliers.

use std::ops::Range;
use std::sync::Arc;

use tantivy::columnar::Column;
use tantivy::query::{BooleanQuery, EnableScoring, Query, Scorer, Weight};
use tantivy::{DocId, Searcher, SegmentOrdinal, SegmentReader};

use super::spans::{SPAN_DOCUMENTS, SegmentSummary, Span};
use crate::event::{Lsn, Micros};

/// Outliers that are visited together.
const OUTLIER_BATCH: usize = 256;

/// Queries of which at least one must match.
pub type Alternatives = Vec<Box<dyn Query>>;

/// A conjunction: of each of these alternatives one must match.
pub struct Conditions(pub Vec<Alternatives>);

impl Conditions {
    /// The conditions as one query.
    pub fn query(&self) -> Box<dyn Query> {
        let any = |queries: &Alternatives| match queries.as_slice() {
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

    pub(super) fn weights(&self, searcher: &Searcher) -> tantivy::Result<Weights> {
        let weight =
            |query: &dyn Query| query.weight(EnableScoring::disabled_from_searcher(searcher));
        let any = |queries: &Alternatives| queries.iter().map(|query| weight(&**query)).collect();
        Ok(Weights {
            all: weight(&*self.query())?,
            conditions: self.0.iter().map(any).collect::<tantivy::Result<_>>()?,
        })
    }
}

/// The conditions as one query, and one by one.
pub(super) struct Weights {
    pub all: Box<dyn Weight>,
    conditions: Vec<Vec<Box<dyn Weight>>>,
}

/// Some documents of a segment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Selection {
    /// The span with this number, without its outliers.
    Span(usize),
    /// Outliers from a number on and before another, in the order of time.
    Outliers(usize, usize),
}

/// A segment that is searched.
pub(super) struct SegmentScan<'a> {
    /// The number of its index.
    pub part: usize,
    pub ordinal: SegmentOrdinal,
    pub reader: &'a SegmentReader,
    pub weights: Arc<Weights>,
    /// All conditions are about words, so that posting lists decide them.
    pub has_only_words: bool,
    pub summary: Arc<SegmentSummary>,
    pub times: Column<i64>,
    pub lsns: Column<i64>,
}

impl SegmentScan<'_> {
    /// Visits the matches in these selections, whose spans ascend.
    pub fn for_each_match(
        &self,
        selections: &[Selection],
        mut visit: impl FnMut(DocId, Micros),
    ) -> tantivy::Result<()> {
        let mut matches = self.weights.all.scorer(self.reader, 1.0)?;
        let mut document = matches.doc();
        let mut outliers = Vec::new();
        for selection in selections {
            match selection {
                Selection::Span(span) => {
                    let Range { start, end } = documents(*span);
                    if document < start {
                        document = matches.seek(start);
                    }
                    // `TERMINATED` is greater than every document.
                    while document < end {
                        let time = self.time(document);
                        if self.summary.spans[*span].contains(time) {
                            visit(document, time);
                        }
                        document = matches.advance();
                    }
                }
                Selection::Outliers(first, end) => {
                    outliers.extend(self.summary.outliers.documents(&(*first..*end)));
                }
            }
        }
        if outliers.is_empty() {
            return Ok(());
        }
        outliers.sort_unstable();
        self.for_each_matching_outlier(outliers, visit)
    }

    /// Visits the matches among these documents, which ascend.
    fn for_each_matching_outlier(
        &self,
        outliers: Vec<DocId>,
        mut visit: impl FnMut(DocId, Micros),
    ) -> tantivy::Result<()> {
        if !self.has_only_words {
            // The distance is computed only for documents that match the words.
            let mut matches = self.weights.all.scorer(self.reader, 1.0)?;
            for outlier in outliers {
                if seek_exact(&mut matches, outlier) {
                    visit(outlier, self.time(outlier));
                }
            }
            return Ok(());
        }
        // Outliers are far apart, so each is sought on the posting lists alone: a union would
        // decode thousands of documents around it.
        let scorers = |alternatives: &Vec<Box<dyn Weight>>| {
            alternatives
                .iter()
                .map(|one| one.scorer(self.reader, 1.0))
                .collect()
        };
        let conditions = self.weights.conditions.iter().map(scorers);
        let mut conditions = conditions.collect::<tantivy::Result<Vec<Vec<Box<dyn Scorer>>>>>()?;
        for outlier in outliers {
            let mut matches = |scorer: &mut Box<dyn Scorer>| seek_exact(scorer, outlier);
            if conditions
                .iter_mut()
                .all(|alternatives| alternatives.iter_mut().any(&mut matches))
            {
                visit(outlier, self.time(outlier));
            }
        }
        Ok(())
    }

    /// Selections that may have events between two times, each with its last event time.
    pub fn selections_between(
        &self,
        from: Option<Micros>,
        to: Option<Micros>,
    ) -> impl Iterator<Item = (Micros, Selection)> {
        let overlaps = move |span: &Span| {
            from.is_none_or(|from| span.last >= from) && to.is_none_or(|to| span.first < to)
        };
        let spans = self
            .summary
            .spans
            .iter()
            .enumerate()
            .filter(move |(_, span)| overlaps(span));
        let outliers = self.summary.outliers.between(from, to);
        let end = outliers.end;
        let batches = outliers
            .step_by(OUTLIER_BATCH)
            .map(move |first| first..(first + OUTLIER_BATCH).min(end));
        let batches = batches.map(|batch| {
            (
                self.summary.outliers.last(&batch),
                Selection::Outliers(batch.start, batch.end),
            )
        });
        spans
            .map(|(number, span)| (span.last, Selection::Span(number)))
            .chain(batches)
    }

    fn time(&self, document: DocId) -> Micros {
        self.times.first(document).unwrap_or(0)
    }

    pub fn lsn(&self, document: DocId) -> Lsn {
        self.lsns.first(document).unwrap_or(0) as Lsn
    }
}

/// Whether a document matches. Documents must be asked for in ascending order.
fn seek_exact(scorer: &mut Box<dyn Scorer>, document: DocId) -> bool {
    scorer.doc() == document || scorer.doc() < document && scorer.seek(document) == document
}

/// The documents of a span.
fn documents(span: usize) -> Range<DocId> {
    let start = span as DocId * SPAN_DOCUMENTS;
    start..start.saturating_add(SPAN_DOCUMENTS)
}
