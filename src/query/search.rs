//! Full-text search: words, `"phrases"`, `prefix*`, `field:value`, over all indexes of a stream; newest first, or by rank.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound::{Excluded, Included, Unbounded};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, SchemaRef};
use serde_json::{Map, Value, json};
use tantivy::collector::sort_key::SortByStaticFastValue;
use tantivy::collector::{Count, TopDocs};
use tantivy::query::doc_predicate_query::{DocPredicateQuery, FunctionPredicate};
use tantivy::query::{BooleanQuery, InvertedIndexRangeQuery, PhraseQuery, Query, RangeQuery, TermQuery};
use tantivy::schema::{Field, IndexRecordOption};
use tantivy::snippet::SnippetGenerator;
use tantivy::{DocId, Order, Searcher, SegmentReader, TantivyError, Term};

use super::encode::{each_row, write_object};
use super::spool::{Spools, Whole};
use super::sql::SqlEngine;
use super::{Handles, QueryError};
use crate::event::{Lsn, Micros, is_place, rfc3339};
use crate::operators::positions;
use crate::schema::MAP_SUFFIX;
use crate::views::lake::fetch::fetch;
use crate::views::places::sphere::{EARTH_RADIUS_M, distance_m};
use crate::views::search::SearchIndex;
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
pub struct SearchQuestion {
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

/// The field that a part of a question names, if it does, and the rest of the question. A name with nothing behind its colon is text.
fn field_named<'a>(rest: &'a str, def: &crate::schema::SearchDef) -> (Option<String>, &'a str) {
    let stop = rest.find(|c: char| c.is_whitespace() || c == '"').unwrap_or(rest.len());
    let Some((name, _)) = rest[..stop].split_once(':') else { return (None, rest) };
    let behind = &rest[name.len() + 1..];
    if behind.is_empty() || behind.starts_with(char::is_whitespace) {
        return (None, rest);
    }
    let of_map = name.split_once('.').is_some_and(|(map, _)| def.text.contains(&format!("{map}{MAP_SUFFIX}")));
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
        return Err(QueryError::Limit(format!("the question has more than {MAX_TEXT_BYTES} bytes")));
    }
    let mut parts = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (field, behind) = field_named(rest, def);
        // A quote that is not closed is a character like others.
        let quoted = behind.strip_prefix('"').and_then(|inner| inner.split_once('"'));
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
    if let Some((map, key)) = field.as_ref().filter(|f| !def.text.contains(f)).and_then(|f| f.split_once('.')) {
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
    Box::new(InvertedIndexRangeQuery::new(Included(Term::from_field_text(field, prefix)), Excluded(high)))
}

fn phrase_query(field: Field, terms: &[(usize, String)]) -> Box<dyn Query> {
    match terms {
        [(_, term)] => Box::new(TermQuery::new(Term::from_field_text(field, term), IndexRecordOption::WithFreqs)),
        _ => {
            let at = |(position, term): &(usize, String)| (*position, Term::from_field_text(field, term));
            Box::new(PhraseQuery::new_with_offset(terms.iter().map(at).collect()))
        }
    }
}

fn any_of(mut queries: Vec<Box<dyn Query>>) -> Box<dyn Query> {
    if queries.len() == 1 {
        return queries.remove(0);
    }
    Box::new(BooleanQuery::union(queries))
}

fn query_of(part: &Part, index: &SearchIndex) -> Box<dyn Query> {
    let fields = |named: &Option<String>| -> Vec<Field> {
        let all = index.def.text.iter().zip(&index.fields.text);
        all.filter(|(name, _)| named.as_ref().is_none_or(|n| n == *name)).map(|(_, f)| *f).collect()
    };
    match part {
        Part::Phrase(field, words) => any_of(fields(field).into_iter().map(|f| phrase_query(f, words)).collect()),
        Part::Prefix(field, prefix) => any_of(fields(field).into_iter().map(|f| prefix_query(f, prefix)).collect()),
        Part::Exact(name, value) => {
            let at = index.def.exact.iter().position(|n| n == name).unwrap_or(0);
            Box::new(TermQuery::new(Term::from_field_text(index.fields.exact[at], value), IndexRecordOption::Basic))
        }
        Part::Pair(map, term) => {
            let fields = index.fields.pairs.iter().filter(|(name, _)| name == map).map(|(_, field)| *field);
            let term = |field| Term::from_field_text(field, term);
            any_of(fields.map(|f| Box::new(TermQuery::new(term(f), IndexRecordOption::Basic)) as _).collect())
        }
    }
}

/// Where a page ends: the first page's LSN keeps newer records out of all later ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cursor {
    Time { time: Micros, lsn: Lsn, upto: Lsn },
    Rank { offset: usize, made: Micros, upto: Lsn },
}

impl Cursor {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let (kind, a, b, c) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        match kind {
            "t" => Some(Self::Time { time: a.parse().ok()?, lsn: b.parse().ok()?, upto: c.parse().ok()? }),
            "r" => Some(Self::Rank { offset: a.parse().ok()?, made: b.parse().ok()?, upto: c.parse().ok()? }),
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

/// Only documents of which (event time, LSN, latitude, longitude) satisfy the condition.
fn only(
    index: &SearchIndex,
    holds: impl Fn(Micros, Lsn, Option<(f64, f64)>) -> bool + Send + Sync + Clone + 'static,
) -> Box<dyn Query> {
    let geo: Vec<String> = index.fields.geo.iter().map(|f| index.schema.get_field_name(*f).to_owned()).collect();
    let predicate = FunctionPredicate::from(move |reader: &SegmentReader| {
        let (times, lsns) = (reader.fast_fields().i64("event_time")?, reader.fast_fields().i64("lsn")?);
        let geo = match geo.as_slice() {
            [lat, lon] => Some((reader.fast_fields().f64(lat)?, reader.fast_fields().f64(lon)?)),
            _ => None,
        };
        let holds = holds.clone();
        Ok::<_, TantivyError>(move |document: DocId| {
            let place = geo.as_ref().and_then(|(lat, lon)| lat.first(document).zip(lon.first(document)));
            times.first(document).zip(lsns.first(document)).is_some_and(|(time, lsn)| holds(time, lsn as Lsn, place))
        })
    });
    Box::new(DocPredicateQuery::from(predicate))
}

/// A hit, before its event is read.
struct Hit {
    time: Micros,
    lsn: Lsn,
    score: Option<f32>,
}

struct Found {
    hits: Vec<Hit>,
    total: usize,
    has_more: bool,
}

/// `{"hits": [{"lsn", "event_time", "score", "highlights", "event"}], "total", "next", "as_of"}`.
pub async fn search(
    question: &SearchQuestion,
    handles: &Handles,
    sql: &SqlEngine,
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
            QueryError::Invalid(format!("after = `{text}` is no cursor: use the `next` of the page before"))
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
    let filters = filters(question, &index, &parts, cursor, upto)?;
    let asked = question.clone();
    let found = tokio::task::spawn_blocking(move || find(&asked, &searchers, &filters, cursor, now))
        .await
        .map_err(|e| QueryError::Failed(e.to_string()))??;
    let events = Events::read(&found.hits, &name, handles, sql).await?;
    let views = [positions::search(&name), positions::table(&name)];
    let as_of = handles.progress.as_of(visible.min(events.lsn), std::slice::from_ref(&name), &views, now);
    let next = next_cursor(&found, question, cursor, upto, now);
    let highlighter = Highlighter::new(&index, &parts);
    let hit = |hit: &Hit| -> Result<Value, QueryError> {
        let event = events.of(hit.lsn)?;
        Ok(json!({
            "lsn": hit.lsn,
            "event_time": rfc3339(hit.time),
            "score": hit.score,
            "highlights": event.as_ref().map_or(Value::Null, |e| highlighter.of(e)),
            "event": event,
        }))
    };
    let mut out = spools.begin();
    let head = [("total", found.total.into()), ("next", next.into())];
    tokio::task::block_in_place(|| {
        write_object(&mut out, &head, "hits", |out| out.list(found.hits.iter().map(hit)), &as_of)
    })?;
    out.finish()
}

fn next_cursor(
    found: &Found,
    question: &SearchQuestion,
    cursor: Option<Cursor>,
    upto: Lsn,
    now: Micros,
) -> Option<String> {
    let last = found.hits.last().filter(|_| found.has_more)?;
    let next = match question.sort {
        Sort::Time => Cursor::Time { time: last.time, lsn: last.lsn, upto },
        Sort::Rank => {
            let (offset, made) = match cursor {
                Some(Cursor::Rank { offset, made, .. }) => (offset, made),
                _ => (0, now),
            };
            Cursor::Rank { offset: offset + found.hits.len(), made, upto }
        }
    };
    Some(next.show())
}

/// The question's query, and the same restricted to what lies behind the cursor.
struct Filters {
    all: Box<dyn Query>,
    page: Box<dyn Query>,
}

fn filters(
    question: &SearchQuestion,
    index: &SearchIndex,
    parts: &[Part],
    cursor: Option<Cursor>,
    upto: Lsn,
) -> Result<Filters, QueryError> {
    let mut must: Vec<Box<dyn Query>> = parts.iter().map(|p| query_of(p, index)).collect();
    let bound = |t: Micros| Term::from_field_i64(index.fields.event_time, t);
    if question.from.is_some() || question.to.is_some() {
        let low = question.from.map_or(Unbounded, |t| Included(bound(t)));
        let high = question.to.map_or(Unbounded, |t| Excluded(bound(t)));
        must.push(Box::new(RangeQuery::new(low, high)));
    }
    match (question.near, question.within_m) {
        (None, None) => {}
        (Some(_), _) if index.fields.geo.is_empty() => {
            return Err(QueryError::Invalid("this stream's search declares no `geo`".into()));
        }
        (Some(near), Some(within)) => {
            // A box of latitudes first; the distance decides.
            let reach = (within / EARTH_RADIUS_M).to_degrees() + 1e-9;
            let degrees = |d: f64| Term::from_field_f64(index.fields.geo[0], d);
            must.push(Box::new(RangeQuery::new(Included(degrees(near.0 - reach)), Included(degrees(near.0 + reach)))));
            must.push(only(index, move |_, _, place| {
                place.is_some_and(|p| is_place(p) && distance_m(near, p) <= within)
            }));
        }
        _ => return Err(QueryError::Invalid("near and within go together: `--near 40.7,-74.0 --within 5km`".into())),
    }
    if cursor.is_some() {
        must.push(only(index, move |_, lsn, _| lsn <= upto));
    }
    let all: Box<dyn Query> = Box::new(BooleanQuery::intersection(must.iter().map(|q| q.box_clone()).collect()));
    if let Some(Cursor::Time { time, lsn, .. }) = cursor {
        must.push(Box::new(RangeQuery::new(Unbounded, Included(bound(time)))));
        must.push(only(index, move |t, l, _| (t, l) < (time, lsn)));
    }
    Ok(Filters { all, page: Box::new(BooleanQuery::intersection(must)) })
}

/// How many hits by rank lie on the pages before; a cursor of the other order, or one that is over, is refused.
fn rank_offset(sort: Sort, cursor: Option<Cursor>, now: Micros) -> Result<usize, QueryError> {
    match (sort, cursor) {
        (Sort::Time, Some(Cursor::Rank { .. })) | (Sort::Rank, Some(Cursor::Time { .. })) => {
            Err(QueryError::Invalid("this cursor belongs to the other --sort".into()))
        }
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

fn find(
    question: &SearchQuestion,
    searchers: &[Searcher],
    filters: &Filters,
    cursor: Option<Cursor>,
    now: Micros,
) -> Result<Found, QueryError> {
    let failed = |e: TantivyError| QueryError::Failed(e.to_string());
    let offset = rank_offset(question.sort, cursor, now)?;
    let wanted = question.limit + offset + 1;
    let mut hits: Vec<Hit> = Vec::new();
    let mut total = 0;
    for searcher in searchers {
        if cursor.is_some() && question.sort == Sort::Time {
            total += searcher.search(&*filters.all, &Count).map_err(failed)?;
        }
        let counted = match question.sort {
            Sort::Time => {
                let newest = TopDocs::with_limit(wanted).order_by((
                    (SortByStaticFastValue::<i64>::for_field("event_time"), Order::Desc),
                    (SortByStaticFastValue::<i64>::for_field("lsn"), Order::Desc),
                ));
                let (top, count) = searcher.search(&*filters.page, &(newest, Count)).map_err(failed)?;
                hits.extend(
                    top.into_iter()
                        .filter_map(|((time, lsn), _)| Some(Hit { time: time?, lsn: lsn? as Lsn, score: None })),
                );
                count
            }
            Sort::Rank => {
                let best = TopDocs::with_limit(wanted).tweak_score(|reader: &SegmentReader| {
                    let column = |name: &str| reader.fast_fields().i64(name).ok();
                    let (times, lsns) = (column("event_time"), column("lsn"));
                    let first = |column: &Option<tantivy::columnar::Column<i64>>, d| {
                        column.as_ref().and_then(|c| c.first(d)).unwrap_or(0)
                    };
                    move |d: DocId, score: tantivy::Score| (score, first(&times, d), first(&lsns, d))
                });
                let (top, count) = searcher.search(&*filters.page, &(best, Count)).map_err(failed)?;
                hits.extend(top.into_iter().map(|((score, time, lsn), _)| Hit {
                    time,
                    lsn: lsn as Lsn,
                    score: Some(score),
                }));
                count
            }
        };
        if cursor.is_none() || question.sort == Sort::Rank {
            total += counted;
        }
    }
    hits.sort_by(|a, b| {
        let score = b.score.unwrap_or(0.0).total_cmp(&a.score.unwrap_or(0.0));
        score.then_with(|| (b.time, b.lsn).cmp(&(a.time, a.lsn)))
    });
    let mut hits: Vec<Hit> = hits.into_iter().skip(offset).take(question.limit + 1).collect();
    let has_more = hits.len() > question.limit;
    hits.truncate(question.limit);
    Ok(Found { hits, total, has_more })
}

/// The events of hits, from a snapshot of the stream's table. Each is written out only when its turn comes.
struct Events {
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
    /// Batch and row by LSN.
    places: HashMap<Lsn, (usize, usize)>,
    /// What the snapshot reaches.
    lsn: Lsn,
}

impl Events {
    async fn read(hits: &[Hit], stream: &str, handles: &Handles, sql: &SqlEngine) -> Result<Self, QueryError> {
        let missing = || QueryError::NotFound(format!("there is no table `{stream}`"));
        let table = handles.tables.get(stream).ok_or_else(missing)?.clone();
        let schema = table.full_schema.clone();
        if hits.is_empty() {
            return Ok(Self { schema, batches: Vec::new(), places: HashMap::new(), lsn: Lsn::MAX });
        }
        let state = table.snapshot();
        let lsn = state.applied;
        let (rows, footers) = (hits.iter().map(|h| (h.time, h.lsn)).collect::<Vec<_>>(), sql.footers().clone());
        let found = tokio::task::spawn_blocking(move || fetch(&table, &state, &footers, &rows)).await;
        let batches = found.map_err(|e| QueryError::Failed(e.to_string()))?.map_err(QueryError::Failed)?;
        let mut places = HashMap::new();
        for (n, batch) in batches.iter().enumerate() {
            let lsns = batch.column_by_name("lsn").and_then(|column| column.as_primitive_opt::<Int64Type>());
            let lsns = lsns.ok_or_else(|| QueryError::Failed(format!("table `{stream}` has no `lsn`")))?;
            places.extend(lsns.values().iter().enumerate().map(|(row, lsn)| (*lsn as Lsn, (n, row))));
        }
        Ok(Self { schema, batches, places, lsn })
    }

    fn of(&self, lsn: Lsn) -> Result<Option<Value>, QueryError> {
        let Some((batch, row)) = self.places.get(&lsn) else { return Ok(None) };
        let mut event = None;
        each_row(&self.schema, &[self.batches[*batch].slice(*row, 1)], |row| {
            event = Some(serde_json::from_slice(row).map_err(|e| QueryError::Failed(e.to_string()))?);
            Ok(())
        })?;
        Ok(event)
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
        let Some(tokenizer) = tokenizer else { return Value::Null };
        let mut out = Map::new();
        for (name, field) in self.index.def.text.iter().zip(&self.index.fields.text) {
            let text = match &event[name.strip_suffix(MAP_SUFFIX).unwrap_or(name)] {
                Value::String(text) => text.clone(),
                Value::Object(map) => map.values().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
                Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
                _ => continue,
            };
            let snippet =
                SnippetGenerator::new(self.terms.clone(), tokenizer.clone(), *field, HIGHLIGHT_CHARS).snippet(&text);
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
        let def = SearchDef { text: vec!["title".into()], exact: vec!["country".into()], geo: Vec::new() };
        parse(text, &def).unwrap_or_default()
    }

    #[test]
    fn questions_are_read() {
        let of = |field: Option<&str>, words: &[&str]| {
            let words = words.iter().enumerate().map(|(at, w)| (at, (*w).to_owned())).collect();
            Part::Phrase(field.map(str::to_owned), words)
        };
        let phrase = |words: &[&str]| of(None, words);
        let exact = |value: &str| Part::Exact("country".into(), value.into());
        assert_eq!(read("Jazz café"), [phrase(&["jazz"]), phrase(&["cafe"])]);
        assert_eq!(read("\"open mic\" nigh*"), [phrase(&["open", "mic"]), Part::Prefix(None, "nigh".into())]);
        assert_eq!(read("country:us title:rust"), [exact("us"), of(Some("title"), &["rust"])]);
        assert_eq!(read("re:invent"), [phrase(&["re", "invent"])]);
        assert_eq!(read("title:\"a b\""), [of(Some("title"), &["a", "b"])]);
        assert_eq!(read("country:\"\""), [exact("")]);
        assert_eq!(read(" - "), []);
        assert_eq!(read("東京*"), [phrase(&["東京"])]);
        assert_eq!(read("a 東京 🎉"), [phrase(&["a"]), phrase(&["東京"]), phrase(&["🎉"])]);
    }

    #[test]
    fn what_is_pasted_is_text() {
        let words = |text: &str| {
            let word = |part: Part| match part {
                Part::Phrase(None, terms) => terms.into_iter().map(|(_, t)| t).collect::<Vec<_>>().join(" "),
                other => format!("{other:?}"),
            };
            read(text).into_iter().map(word).collect::<Vec<_>>()
        };
        assert_eq!(words("He said \"hello there"), ["he", "said", "hello", "there"]);
        assert_eq!(
            words("title:\"a b"),
            [format!("{:?}", Part::Phrase(Some("title".into()), vec![(0, "a".into())])), "b".into()]
        );
        assert_eq!(words("5\" disk\""), ["5", "disk"]);
        assert_eq!(words("country: us, title:"), ["country", "us", "title"]);
        assert_eq!(words("(foo AND] {\"a\": \"b\\\"}"), ["foo", "and", "a", "b"]);
    }

    #[test]
    fn cursors_read_back() {
        for cursor in [Cursor::Time { time: -5, lsn: 7, upto: 9 }, Cursor::Rank { offset: 20, made: 1, upto: 9 }] {
            assert_eq!(Cursor::parse(&cursor.show()), Some(cursor));
        }
        assert_eq!(Cursor::parse("x.1"), None);
    }
}
