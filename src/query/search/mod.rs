//! Full-text search over all indexes of a stream, newest first or by rank.
//!
//! `parse` reads the query language, `compile` makes tantivy queries of its clauses, `execute` runs
//! them, `render` writes the hits; `cursor` continues on the next page; `facets` counts the values
//! of the hits.

mod compile;
mod cursor;
mod execute;
mod facets;
mod parse;
mod render;

use std::sync::Arc;

use super::encode::write_object;
use super::spool::{SpooledAnswer, Spools};
use super::{AsOf, Handles, QueryError};
use crate::event::{Lsn, Micros};
use crate::ids::ViewId;
use crate::views::lake::LakeTable;
use crate::views::search::SearchIndex;
use cursor::Cursor;
use execute::{HitPage, Search};
pub use facets::{FacetQuery, facets};
use parse::Clause;
use render::{Events, Highlighter};

/// The order of hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sort {
    #[default]
    Time,
    Rank,
}

/// A search.
#[derive(Debug, Clone, Default)]
pub struct SearchQuery {
    /// The first stream by default.
    pub stream: Option<String>,
    /// Words, `"phrases"`, `prefix*` and `field:value`, of which all must match.
    pub text: String,
    /// The order of the hits; the first ones are the page.
    pub sort: Sort,
    /// Maximum hits of a page.
    pub limit: usize,
    /// Only event times from this one on.
    pub from: Option<Micros>,
    /// Only event times before this one.
    pub to: Option<Micros>,
    /// Latitude and longitude, in degrees; set if and only if `within_m` is.
    pub near: Option<(f64, f64)>,
    /// The greatest distance from `near`, in metres.
    pub within_m: Option<f64>,
    /// The `next` of the previous page.
    pub after: Option<String>,
}

/// `{"hits": [{"lsn", "event_time", "score", "highlights", "event"}], "total", "next", "as_of"}`.
/// At most `max_hits` hits may be asked for.
pub async fn search(
    query: &SearchQuery,
    handles: &Handles,
    max_hits: usize,
    spools: &Spools,
    now: Micros,
) -> Result<SpooledAnswer, QueryError> {
    check_limit(query.limit, max_hits)?;
    let cursor = query.after.as_deref().map(Cursor::parse).transpose()?;
    let Plan {
        stream,
        table,
        visible,
        clauses,
        search,
    } = plan(query, handles, cursor, now)?;
    let (index, searchers) = (search.index.clone(), search.searchers.clone());
    let (sort, max_lsn) = (search.query.sort, search.max_lsn);
    let page = tokio::task::spawn_blocking(move || search.run());
    let page = page
        .await
        .map_err(|e| QueryError::Failed(e.to_string()))??;
    let as_of = as_of(handles, &stream, visible, now);
    let next = next_cursor(&page, sort, cursor, max_lsn, now).map(|cursor| cursor.to_string());
    let head = [("total", page.total.into()), ("next", next.into())];
    let highlighter = Highlighter::new(&index, &clauses);
    let mut out = spools.begin();
    tokio::task::block_in_place(|| {
        let events = Events::new(&searchers, &table, &page.hits);
        let hits = page.hits.iter().zip(events);
        let hits = hits.map(|(hit, event)| Ok(hit.to_json(&event?, &highlighter)));
        write_object(&mut out, &head, "hits", |out| out.list(hits), &as_of)
    })?;
    out.finish()
}

/// A search that is ready to run, and what its answer is made of.
struct Plan {
    stream: String,
    table: Arc<LakeTable>,
    /// Everything up to here can be found.
    visible: Lsn,
    clauses: Vec<Clause>,
    search: Search,
}

fn plan(
    query: &SearchQuery,
    handles: &Handles,
    cursor: Option<Cursor>,
    now: Micros,
) -> Result<Plan, QueryError> {
    let stream = handles.stream(query.stream.as_deref())?.name.clone();
    let index = index(handles, &stream)?;
    let clauses = parse::parse(&query.text, &index.def)?;
    let (searchers, visible) = index.searchers();
    let query = SearchQuery {
        // Events below the retention floor are not shown.
        from: query.from.max(handles.floor(&stream)),
        ..query.clone()
    };
    let conditions = compile::compile(&query, &index, &clauses)?;
    let missing = || QueryError::NotFound(format!("table `{stream}` does not exist"));
    let table = handles.stream_table(&stream).ok_or_else(missing)?.clone();
    let search = Search {
        query,
        index,
        searchers: Arc::new(searchers),
        conditions,
        cache_key: format!("{clauses:?}"),
        cursor,
        max_lsn: cursor.map_or(visible, |cursor| cursor.max_lsn()),
        now,
    };
    Ok(Plan {
        stream,
        table,
        visible,
        clauses,
        search,
    })
}

/// The freshness of an answer from a stream's index.
fn as_of(handles: &Handles, stream: &str, visible: Lsn, now: Micros) -> AsOf {
    let (streams, views) = ([stream.to_owned()], [ViewId::search(stream)]);
    handles.progress.as_of(visible, &streams, &views, now)
}

fn index(handles: &Handles, stream: &str) -> Result<Arc<SearchIndex>, QueryError> {
    let missing = || QueryError::NotFound(format!("stream `{stream}` declares no `search`"));
    handles.search.get(stream).cloned().ok_or_else(missing)
}

fn check_limit(limit: usize, max_hits: usize) -> Result<(), QueryError> {
    if limit == 0 || limit > max_hits {
        return Err(QueryError::Limit(format!(
            "limit = {limit}: from 1 to {max_hits} (`[limits] search_limit`)"
        )));
    }
    Ok(())
}

/// The cursor after a page; none after the last one.
fn next_cursor(
    page: &HitPage,
    sort: Sort,
    previous: Option<Cursor>,
    max_lsn: Lsn,
    now: Micros,
) -> Option<Cursor> {
    let last = page.hits.last().filter(|_| page.has_more)?;
    Some(match sort {
        Sort::Time => Cursor::Time {
            time: last.time,
            lsn: last.lsn,
            max_lsn,
        },
        Sort::Rank => Cursor::after_rank(previous, page.hits.len(), max_lsn, now),
    })
}
