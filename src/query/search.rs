//! Full-text search: words, `"phrases"`, `prefix*`, `field:value`, over all indexes of a stream;
//! newest first, or by rank.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::Arc;

use arrow::compute::concat_batches;
use arrow::error::ArrowError;
use serde_json::{Map, Value, json};
use tantivy::collector::{Count, TopDocs};
use tantivy::columnar::Column;
use tantivy::query::doc_predicate_query::{DocPredicateQuery, FunctionPredicate};
use tantivy::query::{InvertedIndexRangeQuery, PhraseQuery, Query, RangeQuery, TermQuery};
use tantivy::schema::{Field, IndexRecordOption};
use tantivy::snippet::SnippetGenerator;
use tantivy::{DocAddress, DocId, SegmentReader, TantivyError, Term};

use super::encode::{each_row, write_object};
use super::spool::{Spools, Whole};
use super::{Handles, QueryError};
use crate::event::{Lsn, Micros, is_place, rfc3339};
use crate::operators::{checkpoints, lsns};
use crate::schema::MAP_SUFFIX;
use crate::views::lake::LakeTable;
use crate::views::lake::files::{in_columns_of, with_partition_columns};
use crate::views::places::sphere::{EARTH_RADIUS_M, distance_m};
use crate::views::search::SearchIndex;
use crate::views::search::index::PartSearcher;
use crate::views::search::newest::{Conditions, NewestHits};
use crate::views::search::rows::RowReader;
use crate::views::search::text::{NAME, asked, pair};

/// How hits are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sort {
    #[default]
    Time,
    Rank,
}

/// What is asked.
#[derive(Debug, Clone, Default)]
pub struct SearchQuery {
    pub stream: Option<String>,
    pub text: String,
    pub sort: Sort,
    pub limit: usize,
    pub from: Option<Micros>,
    pub to: Option<Micros>,
    pub near: Option<(f64, f64)>,
    pub within_m: Option<f64>,
    /// The cursor that the page before named as `next`.
    pub after: Option<String>,
}

/// Longest question.
const MAX_TEXT_BYTES: usize = 4 << 10;
/// Parts of a question.
const MAX_PARTS: usize = 64;
/// A cursor by rank lives so long, and reaches so far.
const RANK_CURSOR_MICROS: Micros = 300 * 1_000_000;
const RANK_CURSOR_HITS: usize = 1_000;
const HIGHLIGHT_CHARS: usize = 200;
/// Blocks of stored rows that are read before their hits are written take about this together.
const READ_BYTES: usize = 4 << 20;

/// One part of the question; all must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// Terms at their places in a phrase, in any text field or the one named.
    Phrase(Option<String>, Vec<(usize, String)>),
    Prefix(Option<String>, String),
    Exact(String, String),
    /// A map's column, and the term of an entry.
    Pair(String, String),
}

/// The field that a part of a question names, if it does, and the rest of the question. A name with
/// nothing behind its colon is text.
fn field_named<'a>(rest: &'a str, def: &crate::schema::SearchDef) -> (Option<String>, &'a str) {
    let stop = rest
        .find(|c: char| c.is_whitespace() || c == '"')
        .unwrap_or(rest.len());
    let Some((name, _)) = rest[..stop].split_once(':') else {
        return (None, rest);
    };
    let behind = &rest[name.len() + 1..];
    if behind.is_empty() || behind.starts_with(char::is_whitespace) {
        return (None, rest);
    }
    let of_map = name
        .split_once('.')
        .is_some_and(|(map, _)| def.text.contains(&format!("{map}{MAP_SUFFIX}")));
    let whole = format!("{name}{MAP_SUFFIX}");
    if def.text.contains(&whole) {
        (Some(whole), behind)
    } else if of_map || def.text.iter().chain(&def.exact).any(|f| f == name) {
        (Some(name.to_owned()), behind)
    } else {
        (None, rest)
    }
}

/// Reads a question's text. Whatever is pasted is a question: what has no meaning here is text.
fn parse(text: &str, def: &crate::schema::SearchDef) -> Result<Vec<Part>, QueryError> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(QueryError::Limit(format!(
            "the question has more than {MAX_TEXT_BYTES} bytes"
        )));
    }
    let mut parts = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (field, behind) = field_named(rest, def);
        // A quote that is not closed is a character like others.
        let quoted = behind
            .strip_prefix('"')
            .and_then(|inner| inner.split_once('"'));
        let (value, behind) = quoted.unwrap_or_else(|| {
            let value = behind.trim_start_matches('"');
            value.split_at(value.find(char::is_whitespace).unwrap_or(value.len()))
        });
        rest = behind.trim_start();
        push_part(&mut parts, field, value, quoted.is_some(), def);
    }
    match parts.len() {
        0 => Err(QueryError::Invalid(
            "the question has no word; write for example `jazz`, `\"open mic\"`, `jaz*` or `country:us`".into(),
        )),
        n if n > MAX_PARTS => Err(QueryError::Limit(format!("the question has more than {MAX_PARTS} words"))),
        _ => Ok(parts),
    }
}

fn push_part(
    parts: &mut Vec<Part>,
    field: Option<String>,
    value: &str,
    is_quoted: bool,
    def: &crate::schema::SearchDef,
) {
    if let Some(name) = field.as_ref().filter(|f| def.exact.contains(f)) {
        parts.push(Part::Exact(name.clone(), value.to_owned()));
        return;
    }
    if let Some((map, key)) = field
        .as_ref()
        .filter(|f| !def.text.contains(f))
        .and_then(|f| f.split_once('.'))
    {
        parts.push(Part::Pair(map.to_owned(), pair(key, value)));
        return;
    }
    let (terms, ends_in_word) = asked(value);
    let mut terms: Vec<(usize, String)> = terms.into_iter().map(|w| (w.position, w.text)).collect();
    // Of a script without spaces any part is found as it is.
    let is_prefix = !is_quoted && ends_in_word && value.ends_with('*');
    let prefix = if is_prefix { terms.pop() } else { None };
    // `well-known` is two words, and so is a run of CJK: both must occur, next to each other.
    if !terms.is_empty() {
        parts.push(Part::Phrase(field.clone(), terms));
    }
    parts.extend(prefix.map(|(_, p)| Part::Prefix(field, p)));
}

fn prefix_query(field: Field, prefix: &str) -> Box<dyn Query> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        // No byte of UTF-8 is 0xff.
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
            let at = |(position, term): &(usize, String)| {
                (*position, Term::from_field_text(field, term))
            };
            Box::new(PhraseQuery::new_with_offset(terms.iter().map(at).collect()))
        }
    }
}

/// The queries of which one must hold for a part of the question: one for each field that it may be
/// in.
fn alternatives(part: &Part, index: &SearchIndex) -> Vec<Box<dyn Query>> {
    let fields = |named: &Option<String>| -> Vec<Field> {
        let all = index.def.text.iter().zip(&index.fields.text);
        all.filter(|(name, _)| named.as_ref().is_none_or(|n| n == *name))
            .map(|(_, f)| *f)
            .collect()
    };
    match part {
        Part::Phrase(field, words) => fields(field)
            .into_iter()
            .map(|f| phrase_query(f, words))
            .collect(),
        Part::Prefix(field, prefix) => fields(field)
            .into_iter()
            .map(|f| prefix_query(f, prefix))
            .collect(),
        Part::Exact(name, value) => {
            let at = index.def.exact.iter().position(|n| n == name).unwrap_or(0);
            let term = Term::from_field_text(index.fields.exact[at], value);
            vec![Box::new(TermQuery::new(term, IndexRecordOption::Basic))]
        }
        Part::Pair(map, term) => {
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

/// Where a page ends: the first page's LSN keeps newer records out of all later ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cursor {
    Time {
        time: Micros,
        lsn: Lsn,
        upto: Lsn,
    },
    Rank {
        offset: usize,
        made: Micros,
        upto: Lsn,
    },
}

impl Cursor {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let (kind, a, b, c) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        match kind {
            "t" => Some(Self::Time {
                time: a.parse().ok()?,
                lsn: b.parse().ok()?,
                upto: c.parse().ok()?,
            }),
            "r" => Some(Self::Rank {
                offset: a.parse().ok()?,
                made: b.parse().ok()?,
                upto: c.parse().ok()?,
            }),
            _ => None,
        }
    }

    fn show(self) -> String {
        match self {
            Self::Time { time, lsn, upto } => format!("t.{time}.{lsn}.{upto}"),
            Self::Rank { offset, made, upto } => format!("r.{offset}.{made}.{upto}"),
        }
    }
}

/// Only documents whose LSN and place satisfy the condition.
fn only(
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

/// A hit, before its event is read.
struct Hit {
    time: Micros,
    lsn: Lsn,
    score: Option<f32>,
    /// The index, and the document in it.
    at: (usize, DocAddress),
}

impl Hit {
    fn to_json(&self, event: &Value, highlighter: &Highlighter<'_>) -> Value {
        json!({
            "lsn": self.lsn,
            "event_time": rfc3339(self.time),
            "score": self.score,
            "highlights": highlighter.of(event),
            "event": event,
        })
    }
}

struct Found {
    hits: Vec<Hit>,
    total: usize,
    has_more: bool,
}

/// `{"hits": [{"lsn", "event_time", "score", "highlights", "event"}], "total", "next", "as_of"}`.
pub async fn search(
    question: &SearchQuery,
    handles: &Handles,
    limit: usize,
    spools: &Spools,
    now: Micros,
) -> Result<Whole, QueryError> {
    let stream = handles.stream(question.stream.as_deref())?.clone();
    let name = stream.name.clone();
    let index = handles
        .search
        .get(&name)
        .ok_or_else(|| QueryError::NotFound(format!("stream `{name}` declares no `search`")))?
        .clone();
    if question.limit == 0 || question.limit > limit {
        return Err(QueryError::Limit(format!(
            "limit = {}: from 1 to {limit} (`[limits] search_limit`)",
            question.limit
        )));
    }
    let cursor = match &question.after {
        None => None,
        Some(text) => Some(Cursor::parse(text).ok_or_else(|| {
            QueryError::Invalid(format!(
                "after = `{text}` is no cursor: use the `next` of the page before"
            ))
        })?),
    };
    let parts = parse(&question.text, &index.def)?;
    let (searchers, visible) = index.searchers();
    let upto = match cursor {
        Some(Cursor::Time { upto, .. } | Cursor::Rank { upto, .. }) => upto,
        None => visible,
    };
    let mut question = question.clone();
    // What lies below the retention's floor is no longer shown.
    question.from = question.from.max(handles.floor(&name));
    let question = &question;
    let matching = matching(question, &index, &parts)?;
    let missing = || QueryError::NotFound(format!("table `{name}` does not exist"));
    let table = handles.tables.get(&name).ok_or_else(missing)?;
    let searchers = Arc::new(searchers);
    let search = Search {
        question: question.clone(),
        index: index.clone(),
        searchers: searchers.clone(),
        matching,
        name: format!("{parts:?}"),
        cursor,
        upto,
        now,
    };
    let found = tokio::task::spawn_blocking(move || search.find());
    let found = found
        .await
        .map_err(|e| QueryError::Failed(e.to_string()))??;
    let as_of = handles.progress.as_of(
        visible,
        std::slice::from_ref(&name),
        &[checkpoints::search(&name)],
        now,
    );
    let next = next_cursor(&found, question, cursor, upto, now);
    let highlighter = Highlighter::new(&index, &parts);
    let mut out = spools.begin();
    let head = [("total", found.total.into()), ("next", next.into())];
    tokio::task::block_in_place(|| {
        let (rows, read) = (RowReader::default(), Vec::new().into_iter());
        let events = Events {
            searchers: &searchers,
            table,
            hits: &found.hits,
            rows,
            read,
        };
        let hits = found
            .hits
            .iter()
            .zip(events)
            .map(|(hit, event)| Ok(hit.to_json(&event?, &highlighter)));
        write_object(&mut out, &head, "hits", |out| out.list(hits), &as_of)
    })?;
    out.finish()
}

fn next_cursor(
    found: &Found,
    question: &SearchQuery,
    cursor: Option<Cursor>,
    upto: Lsn,
    now: Micros,
) -> Option<String> {
    let last = found.hits.last().filter(|_| found.has_more)?;
    let next = match question.sort {
        Sort::Time => Cursor::Time {
            time: last.time,
            lsn: last.lsn,
            upto,
        },
        Sort::Rank => {
            let (offset, made) = match cursor {
                Some(Cursor::Rank { offset, made, .. }) => (offset, made),
                _ => (0, now),
            };
            Cursor::Rank {
                offset: offset + found.hits.len(),
                made,
                upto,
            }
        }
    };
    Some(next.show())
}

/// The question's words and distance, of which all must hold.
fn matching(
    question: &SearchQuery,
    index: &SearchIndex,
    parts: &[Part],
) -> Result<Conditions, QueryError> {
    let mut must: Vec<Vec<Box<dyn Query>>> =
        parts.iter().map(|part| alternatives(part, index)).collect();
    match (question.near, question.within_m) {
        (None, None) => {}
        (Some(_), _) if index.fields.geo.is_empty() => {
            return Err(QueryError::Invalid(
                "this stream's search declares no `geo`".into(),
            ));
        }
        (Some(near), Some(within)) => {
            // A box of latitudes first; the distance decides.
            let reach = (within / EARTH_RADIUS_M).to_degrees() + 1e-9;
            let degrees = |d: f64| Term::from_field_f64(index.fields.geo[0], d);
            let range = RangeQuery::new(
                Included(degrees(near.0 - reach)),
                Included(degrees(near.0 + reach)),
            );
            must.push(vec![Box::new(range)]);
            let is_near = move |_, place: Option<(f64, f64)>| {
                place.is_some_and(|p| is_place(p) && distance_m(near, p) <= within)
            };
            must.push(vec![only(index, is_near)]);
        }
        _ => {
            return Err(QueryError::Invalid(
                "near and within go together: `--near 40.7,-74.0 --within 5km`".into(),
            ));
        }
    }
    Ok(Conditions(must))
}

/// How many hits by rank lie on the pages before; a cursor of the other order, or one that is over,
/// is refused.
fn rank_offset(sort: Sort, cursor: Option<Cursor>, now: Micros) -> Result<usize, QueryError> {
    match (sort, cursor) {
        (Sort::Time, Some(Cursor::Rank { .. })) | (Sort::Rank, Some(Cursor::Time { .. })) => Err(
            QueryError::Invalid("this cursor belongs to the other --sort".into()),
        ),
        (Sort::Rank, Some(Cursor::Rank { offset, made, .. })) => {
            if now - made > RANK_CURSOR_MICROS || offset >= RANK_CURSOR_HITS {
                let message = format!(
                    "a cursor by rank lives 5 minutes and {RANK_CURSOR_HITS} hits; ask again, or use --sort time"
                );
                return Err(QueryError::Invalid(message));
            }
            Ok(offset)
        }
        _ => Ok(0),
    }
}

/// What is asked of the indexes, on a thread that may wait for the disk.
struct Search {
    question: SearchQuery,
    index: Arc<SearchIndex>,
    searchers: Arc<Vec<PartSearcher>>,
    matching: Conditions,
    /// What the words are remembered by.
    name: String,
    cursor: Option<Cursor>,
    upto: Lsn,
    now: Micros,
}

impl Search {
    fn find(self) -> Result<Found, QueryError> {
        let offset = rank_offset(self.question.sort, self.cursor, self.now)?;
        let limit = self.question.limit;
        let (hits, total) = match self.question.sort {
            Sort::Time => self.newest(),
            Sort::Rank => self.best(offset + limit + 1),
        }
        .map_err(|e| QueryError::Failed(e.to_string()))?;
        let mut hits: Vec<Hit> = hits.into_iter().skip(offset).take(limit + 1).collect();
        let has_more = hits.len() > limit;
        hits.truncate(limit);
        Ok(Found {
            hits,
            total,
            has_more,
        })
    }

    fn newest(self) -> tantivy::Result<(Vec<Hit>, usize)> {
        let newest = NewestHits {
            conditions: &self.matching,
            name: self.question.near.is_none().then_some(self.name.as_str()),
            from: self.question.from,
            to: self.question.to,
            upto: self.cursor.map(|_| self.upto),
            after: match self.cursor {
                Some(Cursor::Time { time, lsn, .. }) => Some((time, lsn)),
                _ => None,
            },
            wanted: self.question.limit + 1,
        };
        let (hits, total) = newest.find(&self.searchers)?;
        let hit = |(time, lsn, part, document)| Hit {
            time,
            lsn,
            score: None,
            at: (part, document),
        };
        Ok((hits.into_iter().map(hit).collect(), total))
    }

    fn best(mut self, wanted: usize) -> tantivy::Result<(Vec<Hit>, usize)> {
        let (from, to, upto) = (self.question.from, self.question.to, self.upto);
        if from.is_some() || to.is_some() {
            let bound = |t: Micros| Term::from_field_i64(self.index.fields.event_time, t);
            let low = from.map_or(Unbounded, |t| Included(bound(t)));
            let high = to.map_or(Unbounded, |t| Excluded(bound(t)));
            self.matching
                .0
                .push(vec![Box::new(RangeQuery::new(low, high))]);
        }
        if self.cursor.is_some() {
            self.matching
                .0
                .push(vec![only(&self.index, move |lsn, _| lsn <= upto)]);
        }
        let query = self.matching.query();
        let (mut hits, mut total) = (Vec::new(), 0);
        for (part, PartSearcher { searcher, .. }) in self.searchers.iter().enumerate() {
            let best = TopDocs::with_limit(wanted).tweak_score(|reader: &SegmentReader| {
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
                at: (part, document),
            }));
        }
        hits.sort_by(|a, b| {
            let score = b.score.unwrap_or(0.0).total_cmp(&a.score.unwrap_or(0.0));
            score.then_with(|| (b.time, b.lsn).cmp(&(a.time, a.lsn)))
        });
        Ok((hits, total))
    }
}

/// The events of hits, as the index stores them. Some are read at a time: those are written before
/// more are read.
struct Events<'a> {
    searchers: &'a [PartSearcher],
    table: &'a LakeTable,
    /// Those that are not read yet.
    hits: &'a [Hit],
    rows: RowReader,
    read: std::vec::IntoIter<Value>,
}

impl Events<'_> {
    fn read_more(&mut self) -> Result<(), QueryError> {
        let spec = &self.table.spec;
        let (mut rows, failed) = (Vec::new(), |e: ArrowError| {
            QueryError::Failed(e.to_string())
        });
        while let Some((hit, rest)) = self
            .hits
            .split_first()
            .filter(|_| self.rows.bytes < READ_BYTES)
        {
            let (part, document) = hit.at;
            let index = &self.searchers[part];
            let row = self.rows.read(
                part,
                &index.segments[document.segment_ord as usize].rows,
                document,
            );
            let row = row.map_err(|e| QueryError::Failed(index.damaged(&e.to_string())))?;
            if lsns(&row).first() != Some(&(hit.lsn as i64)) {
                return Err(QueryError::Failed(
                    index.damaged("the row of a document is another one's"),
                ));
            }
            rows.push(in_columns_of(spec, &row).map_err(failed)?);
            self.hits = rest;
        }
        self.rows.clear();
        let rows = concat_batches(&spec.schema, &rows).map_err(failed)?;
        let schema = &self.table.full_schema;
        let rows = with_partition_columns(spec, &rows, schema).map_err(QueryError::Failed)?;
        let mut events = Vec::with_capacity(rows.num_rows());
        each_row(schema, &[rows], |row| {
            events
                .push(serde_json::from_slice(row).map_err(|e| QueryError::Failed(e.to_string()))?);
            Ok(())
        })?;
        self.read = events.into_iter();
        Ok(())
    }
}

impl Iterator for Events<'_> {
    type Item = Result<Value, QueryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.read.len() == 0
            && !self.hits.is_empty()
            && let Err(error) = self.read_more()
        {
            return Some(Err(error));
        }
        self.read.next().map(Ok)
    }
}

/// Marks the question's words in the text columns of an event.
struct Highlighter<'a> {
    index: &'a SearchIndex,
    terms: BTreeMap<String, f32>,
}

impl<'a> Highlighter<'a> {
    fn new(index: &'a SearchIndex, parts: &[Part]) -> Self {
        let mut terms = BTreeMap::new();
        for part in parts {
            match part {
                Part::Phrase(_, words) => terms.extend(words.iter().map(|(_, w)| (w.clone(), 1.0))),
                Part::Prefix(..) | Part::Exact(..) | Part::Pair(..) => {}
            }
        }
        Self { index, terms }
    }

    fn of(&self, event: &Value) -> Value {
        let tokenizer = self.index.last().0.tokenizers().get(NAME);
        let Some(tokenizer) = tokenizer else {
            return Value::Null;
        };
        let mut out = Map::new();
        for (name, field) in self.index.def.text.iter().zip(&self.index.fields.text) {
            let text = match &event[name.strip_suffix(MAP_SUFFIX).unwrap_or(name)] {
                Value::String(text) => text.clone(),
                Value::Object(map) => map
                    .values()
                    .filter_map(Value::as_str)
                    .collect::<Vec<_>>()
                    .join(", "),
                Value::Array(items) => items
                    .iter()
                    .filter_map(Value::as_str)
                    .collect::<Vec<_>>()
                    .join(", "),
                _ => continue,
            };
            let snippet = SnippetGenerator::new(
                self.terms.clone(),
                tokenizer.clone(),
                *field,
                HIGHLIGHT_CHARS,
            )
            .snippet(&text);
            if !snippet.is_empty() {
                out.insert(name.clone(), snippet.to_html().into());
            }
        }
        Value::Object(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::SearchDef;

    fn read(text: &str) -> Vec<Part> {
        let def = SearchDef {
            text: vec!["title".into()],
            exact: vec!["country".into()],
            geo: Vec::new(),
        };
        parse(text, &def).unwrap_or_default()
    }

    #[test]
    fn questions_are_read() {
        let of = |field: Option<&str>, words: &[&str]| {
            let words = words
                .iter()
                .enumerate()
                .map(|(at, w)| (at, (*w).to_owned()))
                .collect();
            Part::Phrase(field.map(str::to_owned), words)
        };
        let phrase = |words: &[&str]| of(None, words);
        let exact = |value: &str| Part::Exact("country".into(), value.into());
        assert_eq!(read("Jazz café"), [phrase(&["jazz"]), phrase(&["cafe"])]);
        assert_eq!(
            read("\"open mic\" nigh*"),
            [phrase(&["open", "mic"]), Part::Prefix(None, "nigh".into())]
        );
        assert_eq!(
            read("country:us title:rust"),
            [exact("us"), of(Some("title"), &["rust"])]
        );
        assert_eq!(read("re:invent"), [phrase(&["re", "invent"])]);
        assert_eq!(read("title:\"a b\""), [of(Some("title"), &["a", "b"])]);
        assert_eq!(read("country:\"\""), [exact("")]);
        assert_eq!(read(" - "), []);
        assert_eq!(read("東京*"), [phrase(&["東京"])]);
        assert_eq!(
            read("a 東京 🎉"),
            [phrase(&["a"]), phrase(&["東京"]), phrase(&["🎉"])]
        );
    }

    #[test]
    fn what_is_pasted_is_text() {
        let words = |text: &str| {
            let word = |part: Part| match part {
                Part::Phrase(None, terms) => terms
                    .into_iter()
                    .map(|(_, t)| t)
                    .collect::<Vec<_>>()
                    .join(" "),
                other => format!("{other:?}"),
            };
            read(text).into_iter().map(word).collect::<Vec<_>>()
        };
        assert_eq!(
            words("He said \"hello there"),
            ["he", "said", "hello", "there"]
        );
        assert_eq!(
            words("title:\"a b"),
            [
                format!(
                    "{:?}",
                    Part::Phrase(Some("title".into()), vec![(0, "a".into())])
                ),
                "b".into()
            ]
        );
        assert_eq!(words("5\" disk\""), ["5", "disk"]);
        assert_eq!(words("country: us, title:"), ["country", "us", "title"]);
        assert_eq!(
            words("(foo AND] {\"a\": \"b\\\"}"),
            ["foo", "and", "a", "b"]
        );
    }

    #[test]
    fn cursors_read_back() {
        for cursor in [
            Cursor::Time {
                time: -5,
                lsn: 7,
                upto: 9,
            },
            Cursor::Rank {
                offset: 20,
                made: 1,
                upto: 9,
            },
        ] {
            assert_eq!(Cursor::parse(&cursor.show()), Some(cursor));
        }
        assert_eq!(Cursor::parse("x.1"), None);
    }
}
