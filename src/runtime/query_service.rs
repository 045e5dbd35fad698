//! Queries of the CLI and HTTP: parameters with the same names, parsed in one place, answered from
//! one set of handles.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::notes;
use crate::clock::Clock;
use crate::config::units::{parse_distance, parse_time};
use crate::event::{Lsn, is_place, rfc3339};
use crate::ids::ViewId;
use crate::query::count::{CountQuery, count};
use crate::query::encode::Format;
use crate::query::nearby::{NearbyQuery, nearby};
use crate::query::search::{FacetQuery, SearchQuery, Sort, facets, search};
use crate::query::spool::{SpooledAnswer, Spools};
use crate::query::sql::{SqlAnswer, SqlEngine};
use crate::query::windows::{WindowsQuery, windows};
use crate::query::{ClientId, Handles, QueryError};

/// The most waiting files that the status lists per source; `weir.sources` has all.
const MAX_STATUS_FILES: usize = 20;

/// Parameters by name.
pub type Params = BTreeMap<String, String>;

/// Answers queries from live or committed views.
#[derive(Clone)]
pub struct QueryService {
    pub handles: Handles,
    pub sql: Arc<SqlEngine>,
    pub clock: Arc<dyn Clock>,
    pub search_limit: usize,
    /// Where answers are written, and how long they may be.
    pub spools: Spools,
}

/// Measures a query until it is answered or given up.
struct QueryTimer {
    kind: &'static str,
    begun: Instant,
}

impl QueryTimer {
    fn new(kind: &'static str) -> Self {
        Self {
            kind,
            begun: Instant::now(),
        }
    }
}

impl Drop for QueryTimer {
    fn drop(&mut self) {
        metrics::histogram!("weir_query_seconds", "kind" => self.kind).record(self.begun.elapsed());
    }
}

/// Parses parameters.
struct ParamReader<'a> {
    params: &'a Params,
    now: i64,
}

impl ParamReader<'_> {
    /// Refuses parameters with other names.
    fn check_names(&self, names: &[&str]) -> Result<(), QueryError> {
        match self.params.keys().find(|k| !names.contains(&k.as_str())) {
            Some(unknown) => Err(QueryError::Invalid(format!(
                "unknown parameter `{unknown}`; available: {}",
                names.join(", ")
            ))),
            None => Ok(()),
        }
    }

    fn text(&self, name: &str) -> Option<String> {
        self.params.get(name).filter(|v| !v.is_empty()).cloned()
    }

    fn read<T, E: std::fmt::Display>(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Option<T>, QueryError> {
        let value = self.text(name);
        value
            .map(|v| parse(&v).map_err(|e| QueryError::Invalid(format!("{name}: {e}"))))
            .transpose()
    }

    fn time(&self, name: &str) -> Result<Option<i64>, QueryError> {
        self.read(name, |text| parse_time(text, self.now))
    }

    fn number(&self, name: &str) -> Result<Option<f64>, QueryError> {
        self.read(name, |text| {
            text.parse::<f64>()
                .map_err(|_| format!("`{text}` is not a number"))
        })
    }

    fn limit(&self, default: usize) -> Result<usize, QueryError> {
        let limit = self.read("limit", |text| {
            text.parse::<usize>()
                .map_err(|_| format!("`{text}` is not a whole number"))
        })?;
        Ok(limit.unwrap_or(default))
    }

    /// What is searched for: words, times and a place.
    fn searched(&self) -> Result<SearchQuery, QueryError> {
        Ok(SearchQuery {
            stream: self.text("stream"),
            text: self.text("q").unwrap_or_default(),
            from: self.time("from")?,
            to: self.time("to")?,
            near: self.read("near", parse_place)?,
            within_m: self.read("within", parse_distance)?,
            ..SearchQuery::default()
        })
    }

    fn flag(&self, name: &str) -> Result<bool, QueryError> {
        let flag = self.read(name, |text| {
            text.parse::<bool>()
                .map_err(|_| format!("`{text}` is neither true nor false"))
        })?;
        Ok(flag.unwrap_or(false))
    }
}

fn parse_place(text: &str) -> Result<(f64, f64), String> {
    let wrong = || {
        format!(
            "`{text}` is not a place: write latitude,longitude, for example 40.7,-74.0 (0,0 means an unknown place)"
        )
    };
    let (lat, lon) = text.split_once(',').ok_or_else(wrong)?;
    let place = (
        lat.trim().parse::<f64>().map_err(|_| wrong())?,
        lon.trim().parse::<f64>().map_err(|_| wrong())?,
    );
    if is_place(place) {
        Ok(place)
    } else {
        Err(wrong())
    }
}

impl QueryService {
    fn reader<'a>(&self, params: &'a Params) -> ParamReader<'a> {
        ParamReader {
            params,
            now: self.clock.now(),
        }
    }

    /// `stream, type, by, from, to, duplicates`
    pub async fn count(&self, params: &Params) -> Result<SpooledAnswer, QueryError> {
        let _timer = QueryTimer::new("count");
        let reader = self.reader(params);
        reader.check_names(&["stream", "type", "by", "from", "to", "duplicates"])?;
        let query = CountQuery {
            stream: reader.text("stream"),
            kind: reader.text("type"),
            by: reader.text("by"),
            from: reader.time("from")?,
            to: reader.time("to")?,
            duplicates: reader.flag("duplicates")?,
        };
        count(&query, &self.handles, &self.sql, &self.spools, reader.now).await
    }

    /// `q, stream, sort, limit, from, to, near, within, after`
    pub async fn search(&self, params: &Params) -> Result<SpooledAnswer, QueryError> {
        let _timer = QueryTimer::new("search");
        let reader = self.reader(params);
        reader.check_names(&[
            "q", "stream", "sort", "limit", "from", "to", "near", "within", "after",
        ])?;
        let query = SearchQuery {
            sort: reader
                .read("sort", |text| match text {
                    "time" => Ok(Sort::Time),
                    "rank" => Ok(Sort::Rank),
                    _ => Err(format!("`{text}`: write time or rank")),
                })?
                .unwrap_or_default(),
            limit: reader.limit(20)?,
            after: reader.text("after"),
            ..reader.searched()?
        };
        search(
            &query,
            &self.handles,
            self.search_limit,
            &self.spools,
            reader.now,
        )
        .await
    }

    /// `q, stream, columns, where, limit, from, to, near, within`
    pub async fn facets(&self, params: &Params) -> Result<SpooledAnswer, QueryError> {
        let _timer = QueryTimer::new("facets");
        let reader = self.reader(params);
        reader.check_names(&[
            "q", "stream", "columns", "where", "limit", "from", "to", "near", "within",
        ])?;
        let columns = reader.text("columns").unwrap_or_default();
        let columns = columns.split(',').map(str::trim).filter(|c| !c.is_empty());
        let filters = reader.read("where", |text| {
            serde_json::from_str::<Vec<(String, Value)>>(text)
                .map_err(|_| format!("`{text}` is not a list of [\"COLUMN\", VALUE]"))
        })?;
        let query = FacetQuery {
            search: reader.searched()?,
            columns: columns.map(str::to_owned).collect(),
            filters: filters.unwrap_or_default(),
            values: reader.limit(10)?,
        };
        facets(&query, &self.handles, &self.spools, reader.now).await
    }

    /// `lat, lon, stream, limit, within`
    pub async fn nearby(&self, params: &Params) -> Result<SpooledAnswer, QueryError> {
        let _timer = QueryTimer::new("nearby");
        let reader = self.reader(params);
        reader.check_names(&["lat", "lon", "stream", "limit", "within"])?;
        let required = |name: &str| {
            reader
                .number(name)?
                .ok_or_else(|| QueryError::Invalid(format!("the parameter `{name}` is missing")))
        };
        let query = NearbyQuery {
            stream: reader.text("stream"),
            lat: required("lat")?,
            lon: required("lon")?,
            limit: reader.limit(10)?,
            within_m: reader.read("within", parse_distance)?,
        };
        let (handles, spools, now) = (self.handles.clone(), self.spools.clone(), reader.now);
        tokio::task::spawn_blocking(move || nearby(&query, &handles, &spools, now))
            .await
            .map_err(|e| QueryError::Failed(e.to_string()))?
    }

    /// `name, from, to, limit`
    pub async fn windows(&self, params: &Params) -> Result<SpooledAnswer, QueryError> {
        let _timer = QueryTimer::new("windows");
        let reader = self.reader(params);
        reader.check_names(&["name", "from", "to", "limit"])?;
        let query = WindowsQuery {
            name: reader.text("name").unwrap_or_default(),
            from: reader.time("from")?,
            to: reader.time("to")?,
            limit: reader.limit(1_000)?,
        };
        windows(&query, &self.handles, &self.sql, &self.spools, reader.now).await
    }

    /// Rows for Weir's own use, not for a client.
    pub async fn sql(&self, query: &str) -> Result<SqlAnswer, QueryError> {
        self.sql.run(query, &self.handles, self.clock.now()).await
    }

    /// Writes an answer out, on a thread that may block.
    pub async fn write(
        &self,
        answer: SqlAnswer,
        format: Format,
    ) -> Result<SpooledAnswer, QueryError> {
        let spools = self.spools.clone();
        let written = tokio::task::spawn_blocking(move || answer.write(format, &spools)).await;
        written.map_err(|e| QueryError::Failed(e.to_string()))?
    }

    /// A client's query.
    pub async fn ask(&self, asker: ClientId, query: &str) -> Result<SqlAnswer, QueryError> {
        let _timer = QueryTimer::new("sql");
        self.sql
            .run_for_client(asker, query, &self.handles, self.clock.now())
            .await
    }

    /// Per view, how far it is, what it does and why it fails.
    fn views(&self, synced: Lsn) -> Vec<Value> {
        let show = |(view, lsn): (ViewId, Lsn)| {
            let (state, reason) = self.handles.progress.view_state(&view).unzip();
            json!({
                "view": view,
                "lsn": lsn,
                "lag": synced.saturating_sub(lsn),
                "state": state,
                "reason": reason.flatten(),
            })
        };
        self.handles.checkpoints().into_iter().map(show).collect()
    }

    /// How far sources, streams and views are.
    pub fn status(&self) -> Value {
        let progress = &self.handles.progress;
        let synced = progress.synced_lsn();
        let streams: BTreeMap<String, Value> = progress
            .streams()
            .into_iter()
            .map(|(name, s)| {
                let t = s.totals;
                let state = json!({
                    "watermark": s.watermark.map(rfc3339),
                    "events": t.events,
                    "duplicates": t.duplicates,
                    "late": t.late,
                    "dead_letters": t.dead_letters,
                });
                (name, state)
            })
            .collect();
        let sources: Vec<Value> = progress
            .sources()
            .into_iter()
            .map(|(name, health)| {
                json!({
                    "source": name,
                    "state": health.state.name(),
                    "reason": health.reason,
                    "waiting": health.waiting_total,
                    "lag": (!health.lag.is_empty()).then(|| health.lag.values().sum::<u64>()),
                    "files": health.waiting.iter().take(MAX_STATUS_FILES).map(|(path, reason)| json!({"path": path, "reason": reason})).collect::<Vec<_>>(),
                })
            })
            .collect();
        let sinks: Vec<Value> = progress
            .sinks()
            .into_iter()
            .map(|(name, health)| {
                json!({
                    "sink": name,
                    "type": health.kind,
                    "tables": health.tables,
                    "state": health.state.name(),
                    "lsn": health.lsn,
                    "lag": synced.saturating_sub(health.lsn),
                    "rows": health.rows,
                    "retries": health.retries,
                    "dead_letters": health.refused.len(),
                    "last_error": health.last_error,
                })
            })
            .collect();
        json!({
            "synced_lsn": synced,
            "streams": streams,
            "views": self.views(synced),
            "sources": sources,
            "sinks": sinks,
            "gaps": progress.gaps().len(),
            "notes": notes::all(&self.handles).into_iter().map(|n| n.text).collect::<Vec<_>>(),
        })
    }
}
