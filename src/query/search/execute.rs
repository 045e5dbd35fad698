//! Runs a compiled query on the indexes of a stream.

use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::Arc;

use tantivy::collector::{Count, TopDocs};
use tantivy::columnar::Column;
use tantivy::query::RangeQuery;
use tantivy::{DocAddress, DocId, SegmentReader, Term};

use super::cursor::{Cursor, rank_offset};
use super::{SearchQuery, Sort, compile};
use crate::event::{Lsn, Micros};
use crate::query::QueryError;
use crate::views::search::SearchIndex;
use crate::views::search::newest::{Conditions, HitAddress, NewestHits};
use crate::views::search::part::PartSearcher;

/// A hit, before its event is read.
pub(super) struct Hit {
    /// Event time.
    pub time: Micros,
    pub lsn: Lsn,
    /// Only where hits are sorted by rank.
    pub score: Option<f32>,
    /// The number of the index, and the document in it.
    pub address: (usize, DocAddress),
}

/// One page of hits, and the total of all pages.
pub(super) struct HitPage {
    pub hits: Vec<Hit>,
    /// Hits of all pages.
    pub total: usize,
    pub has_more: bool,
}

/// A search of a stream's indexes. It runs on a thread that may wait for the disk.
pub(super) struct Search {
    pub query: SearchQuery,
    pub index: Arc<SearchIndex>,
    pub searchers: Arc<Vec<PartSearcher>>,
    pub conditions: Conditions,
    /// Key under which totals of the clauses are cached.
    pub cache_key: String,
    pub cursor: Option<Cursor>,
    pub max_lsn: Lsn,
    pub now: Micros,
}

impl Search {
    pub fn run(self) -> Result<HitPage, QueryError> {
        let offset = rank_offset(self.query.sort, self.cursor, self.now)?;
        let limit = self.query.limit;
        let (hits, total) = match self.query.sort {
            Sort::Time => self.newest(),
            Sort::Rank => self.best_ranked(offset + limit + 1),
        }
        .map_err(|e| QueryError::Failed(e.to_string()))?;
        let mut hits: Vec<Hit> = hits.into_iter().skip(offset).take(limit + 1).collect();
        let has_more = hits.len() > limit;
        hits.truncate(limit);
        Ok(HitPage {
            hits,
            total,
            has_more,
        })
    }

    fn newest(self) -> tantivy::Result<(Vec<Hit>, usize)> {
        let newest = NewestHits {
            conditions: &self.conditions,
            cache_key: self.query.near.is_none().then_some(self.cache_key.as_str()),
            from: self.query.from,
            to: self.query.to,
            max_lsn: self.cursor.map(|_| self.max_lsn),
            after: match self.cursor {
                Some(Cursor::Time { time, lsn, .. }) => Some((time, lsn)),
                _ => None,
            },
            limit: self.query.limit + 1,
        };
        let (hits, total) = newest.find(&self.searchers)?;
        let hit = |found: HitAddress| Hit {
            time: found.time,
            lsn: found.lsn,
            score: None,
            address: (found.part, found.document),
        };
        Ok((hits.into_iter().map(hit).collect(), total))
    }

    fn best_ranked(mut self, limit: usize) -> tantivy::Result<(Vec<Hit>, usize)> {
        let (from, to, max_lsn) = (self.query.from, self.query.to, self.max_lsn);
        if from.is_some() || to.is_some() {
            let bound = |t: Micros| Term::from_field_i64(self.index.fields.event_time, t);
            let low = from.map_or(Unbounded, |t| Included(bound(t)));
            let high = to.map_or(Unbounded, |t| Excluded(bound(t)));
            self.conditions
                .0
                .push(vec![Box::new(RangeQuery::new(low, high))]);
        }
        if self.cursor.is_some() {
            self.conditions
                .0
                .push(vec![compile::filter(&self.index, move |lsn, _| {
                    lsn <= max_lsn
                })]);
        }
        let query = self.conditions.query();
        let (mut hits, mut total) = (Vec::new(), 0);
        for (part, PartSearcher { searcher, .. }) in self.searchers.iter().enumerate() {
            let best = TopDocs::with_limit(limit).tweak_score(|reader: &SegmentReader| {
                let column = |name: &str| reader.fast_fields().i64(name).ok();
                let (times, lsns) = (column("event_time"), column("lsn"));
                let first = |column: &Option<Column<i64>>, d| {
                    column.as_ref().and_then(|c| c.first(d)).unwrap_or(0)
                };
                move |d: DocId, score: tantivy::Score| (score, first(&times, d), first(&lsns, d))
            });
            let (top, count) = searcher.search(&*query, &(best, Count))?;
            total += count;
            hits.extend(top.into_iter().map(|((score, time, lsn), document)| Hit {
                time,
                lsn: lsn as Lsn,
                score: Some(score),
                address: (part, document),
            }));
        }
        hits.sort_by(|a, b| {
            let score = b.score.unwrap_or(0.0).total_cmp(&a.score.unwrap_or(0.0));
            score.then_with(|| (b.time, b.lsn).cmp(&(a.time, a.lsn)))
        });
        Ok((hits, total))
    }
}
