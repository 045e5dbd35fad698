//! Clauses as tantivy queries.

use std::ops::Bound::{Excluded, Included};

use tantivy::query::doc_predicate_query::{DocPredicateQuery, FunctionPredicate};
use tantivy::query::{InvertedIndexRangeQuery, PhraseQuery, Query, RangeQuery, TermQuery};
use tantivy::schema::{Field, IndexRecordOption};
use tantivy::{DocId, SegmentReader, TantivyError, Term};

use super::SearchQuery;
use super::parse::Clause;
use crate::event::{Lsn, is_place};
use crate::query::QueryError;
use crate::views::places::sphere::{EARTH_RADIUS_M, distance_m};
use crate::views::search::SearchIndex;
use crate::views::search::newest::{Alternatives, Conditions};

/// The conditions of a query's clauses and of its distance.
pub(super) fn compile(
    query: &SearchQuery,
    index: &SearchIndex,
    clauses: &[Clause],
) -> Result<Conditions, QueryError> {
    let mut conditions: Vec<Alternatives> = clauses
        .iter()
        .map(|clause| alternatives(clause, index))
        .collect();
    match (query.near, query.within_m) {
        (None, None) => {}
        (Some(_), _) if index.fields.geo.is_empty() => {
            return Err(QueryError::Invalid(
                "this stream's search declares no `geo`".into(),
            ));
        }
        (Some(near), Some(within)) => {
            // A range of latitudes excludes most documents; the distance decides.
            let reach = (within / EARTH_RADIUS_M).to_degrees() + 1e-9;
            let degrees = |d: f64| Term::from_field_f64(index.fields.geo[0], d);
            let range = RangeQuery::new(
                Included(degrees(near.0 - reach)),
                Included(degrees(near.0 + reach)),
            );
            conditions.push(vec![Box::new(range)]);
            let is_near = move |_, place: Option<(f64, f64)>| {
                place.is_some_and(|p| is_place(p) && distance_m(near, p) <= within)
            };
            conditions.push(vec![filter(index, is_near)]);
        }
        _ => {
            return Err(QueryError::Invalid(
                "near and within go together: `--near 40.7,-74.0 --within 5km`".into(),
            ));
        }
    }
    Ok(Conditions(conditions))
}

fn prefix_query(field: Field, prefix: &str) -> Box<dyn Query> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        // Cannot overflow: no byte of UTF-8 is 0xff.
        *last += 1;
    }
    let mut high = Term::from_field_text(field, "");
    high.append_bytes(&end);
    Box::new(InvertedIndexRangeQuery::new(
        Included(Term::from_field_text(field, prefix)),
        Excluded(high),
    ))
}

fn phrase_query(field: Field, terms: &[(usize, String)]) -> Box<dyn Query> {
    match terms {
        [(_, term)] => Box::new(TermQuery::new(
            Term::from_field_text(field, term),
            IndexRecordOption::WithFreqs,
        )),
        _ => {
            let positioned = |(position, term): &(usize, String)| {
                (*position, Term::from_field_text(field, term))
            };
            Box::new(PhraseQuery::new_with_offset(
                terms.iter().map(positioned).collect(),
            ))
        }
    }
}

/// A query for each field in which a clause may match.
fn alternatives(clause: &Clause, index: &SearchIndex) -> Alternatives {
    let fields = |named: &Option<String>| -> Vec<Field> {
        let all = index.def.text.iter().zip(&index.fields.text);
        all.filter(|(name, _)| named.as_ref().is_none_or(|n| n == *name))
            .map(|(_, f)| *f)
            .collect()
    };
    match clause {
        Clause::Phrase(field, words) => fields(field)
            .into_iter()
            .map(|f| phrase_query(f, words))
            .collect(),
        Clause::Prefix(field, prefix) => fields(field)
            .into_iter()
            .map(|f| prefix_query(f, prefix))
            .collect(),
        Clause::Exact(name, value) => {
            let at = index.def.exact.iter().position(|n| n == name).unwrap_or(0);
            let term = Term::from_field_text(index.fields.exact[at], value);
            vec![Box::new(TermQuery::new(term, IndexRecordOption::Basic))]
        }
        Clause::Pair(map, term) => {
            let fields = index
                .fields
                .pairs
                .iter()
                .filter(|(name, _)| name == map)
                .map(|(_, field)| *field);
            let term = |field| Term::from_field_text(field, term);
            fields
                .map(|f| Box::new(TermQuery::new(term(f), IndexRecordOption::Basic)) as _)
                .collect()
        }
    }
}

/// Matches the documents whose LSN and place satisfy a predicate.
pub(super) fn filter(
    index: &SearchIndex,
    holds: impl Fn(Lsn, Option<(f64, f64)>) -> bool + Send + Sync + Clone + 'static,
) -> Box<dyn Query> {
    let geo: Vec<String> = index
        .fields
        .geo
        .iter()
        .map(|f| index.schema.get_field_name(*f).to_owned())
        .collect();
    let predicate = FunctionPredicate::from(move |reader: &SegmentReader| {
        let lsns = reader.fast_fields().i64("lsn")?;
        let geo = match geo.as_slice() {
            [lat, lon] => Some((
                reader.fast_fields().f64(lat)?,
                reader.fast_fields().f64(lon)?,
            )),
            _ => None,
        };
        let holds = holds.clone();
        Ok::<_, TantivyError>(move |document: DocId| {
            let place = geo
                .as_ref()
                .and_then(|(lat, lon)| lat.first(document).zip(lon.first(document)));
            lsns.first(document)
                .is_some_and(|lsn| holds(lsn as Lsn, place))
        })
    });
    Box::new(DocPredicateQuery::from(predicate))
}
