//! `/getsocial/events/…`: an older API of event counts and lists, for its existing clients. Times are
//! whole seconds since 1970, ranges include both ends; every answer is `{result, status,
//! timeStamp}`, every error `{status, timeStamp, reason}`.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::App;
use super::routes::respond;
use crate::event::{MICROS_PER_SECOND, Micros, rfc3339};
use crate::query::QueryError;
use crate::query::encode::each_row;
use crate::query::spool::{SpooledAnswer, Spools};
use crate::query::sql::SqlAnswer;
use crate::runtime::query_service::Params;

const INVALID: &str =
    "Event Type / Start time / End time is missing /invalid. please check input parameters again";
const ORDER: &str = "Start time must be less than end time. Please check input params";
/// The column that the API's stream counts by.
const TYPE_COLUMN: &str = "event_type";
/// Events of one answer; `next` continues.
const PAGE_EVENTS: usize = 10_000;
/// Seconds whose microseconds do not overflow.
const VALID_SECONDS: std::ops::RangeInclusive<i64> = -60_000_000_000..=250_000_000_000;

/// An error in this API's form.
pub struct GetSocialError(StatusCode, String);

impl IntoResponse for GetSocialError {
    fn into_response(self) -> Response {
        (
            self.0,
            Json(json!({"status": "FAILURE", "timeStamp": now_ms(), "reason": self.1})),
        )
            .into_response()
    }
}

impl From<QueryError> for GetSocialError {
    fn from(error: QueryError) -> Self {
        let status = match &error {
            QueryError::Busy { .. } | QueryError::Overloaded(_) => StatusCode::TOO_MANY_REQUESTS,
            QueryError::NotFound(_) => StatusCode::NOT_FOUND,
            QueryError::Invalid(_) | QueryError::Limit(_) => StatusCode::BAD_REQUEST,
            QueryError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error.to_string())
    }
}

fn now_ms() -> i64 {
    crate::clock::wall_clock_ms()
}

fn answer(result: Value) -> Map<String, Value> {
    Map::from_iter([
        ("result".to_owned(), result),
        ("status".to_owned(), "SUCCESS".into()),
        ("timeStamp".to_owned(), now_ms().into()),
    ])
}

fn invalid() -> GetSocialError {
    GetSocialError(StatusCode::BAD_REQUEST, INVALID.into())
}

/// The stream that the API serves: the first that counts by [`TYPE_COLUMN`].
fn stream(app: &App) -> Result<String, GetSocialError> {
    let mut streams = app.0.parts.queries.handles.catalog.streams.values();
    let found = streams.find(|s| s.def.count.as_ref().is_some_and(|c| c.kind == TYPE_COLUMN));
    let none = || {
        GetSocialError(
            StatusCode::NOT_FOUND,
            format!("no stream counts by `{TYPE_COLUMN}`; preset = \"events\" does"),
        )
    };
    found.map(|s| s.name.clone()).ok_or_else(none)
}

/// The range in microseconds, its end exclusive: from the start of `start_time` to the end of
/// `end_time`.
fn range(params: &Params) -> Result<(Micros, Micros), GetSocialError> {
    let second = |name: &str| {
        let number = params
            .get(name)
            .and_then(|text| text.trim().parse::<i64>().ok());
        number
            .filter(|n| VALID_SECONDS.contains(n))
            .ok_or_else(invalid)
    };
    let (start, end) = (second("start_time")?, second("end_time")?);
    if start > end {
        return Err(GetSocialError(StatusCode::BAD_REQUEST, ORDER.into()));
    }
    Ok((start * MICROS_PER_SECOND, (end + 1) * MICROS_PER_SECOND))
}

fn text<'a>(params: &'a Params, name: &str) -> Option<&'a str> {
    params.get(name).map(|t| t.trim()).filter(|t| !t.is_empty())
}

/// Number of events of a type in a range of seconds.
#[utoipa::path(get, path = "/getsocial/events/count/", params(("event_type" = String, Query, description = "the type"),
    ("start_time" = i64, Query, description = "seconds since 1970, inclusive"), ("end_time" = i64, Query, description = "seconds since 1970, inclusive")), responses((status = 200, description = "{result, status, timeStamp}"), (status = 400)))]
pub async fn count(
    State(app): State<App>,
    Query(params): Query<BTreeMap<String, String>>,
) -> Result<Json<Value>, GetSocialError> {
    count_answer(&app, &params).await.map(Json)
}

async fn count_answer(app: &App, params: &Params) -> Result<Value, GetSocialError> {
    let kind = text(params, "event_type").ok_or_else(invalid)?;
    let (from, to) = range(params)?;
    let request = Params::from([
        ("stream".to_owned(), stream(app)?),
        ("type".to_owned(), kind.to_owned()),
        ("from".to_owned(), rfc3339(from)),
        ("to".to_owned(), rfc3339(to)),
        ("duplicates".to_owned(), "true".to_owned()),
    ]);
    let count = app.0.parts.queries.count(&request).await?.into_value()?;
    Ok(Value::Object(answer(count["count"].clone())))
}

/// The events in a range of seconds, of one type or all, in order of time. `next` is the `after` of
/// the next page, if there is one.
#[utoipa::path(get, path = "/getsocial/events/getallevents/", params(("event_type" = Option<String>, Query, description = "the type; all without it"),
    ("start_time" = i64, Query, description = "seconds since 1970, inclusive"), ("end_time" = i64, Query, description = "seconds since 1970, inclusive"),
    ("after" = Option<String>, Query, description = "`next` of the page before")),
    responses((status = 200, description = "{result, status, timeStamp, next}"), (status = 400)))]
pub async fn all_events(
    State(app): State<App>,
    Query(params): Query<BTreeMap<String, String>>,
) -> Result<Response, GetSocialError> {
    events_answer(&app, &params)
        .await
        .map(|page| respond("application/json", page))
}

async fn events_answer(app: &App, params: &Params) -> Result<SpooledAnswer, GetSocialError> {
    // A blank type is an error, a missing one means all.
    if params
        .get("event_type")
        .is_some_and(|t| t.trim().is_empty())
    {
        return Err(invalid());
    }
    let (from, to) = range(params)?;
    let time = |at: Micros| {
        let time = chrono::DateTime::from_timestamp_micros(at).unwrap_or_default();
        format!(
            "timestamp '{}'",
            time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
        )
    };
    let mut conditions = vec![format!(
        "event_time >= {} and event_time < {}",
        time(from),
        time(to)
    )];
    if let Some(kind) = text(params, "event_type") {
        conditions.push(format!("{TYPE_COLUMN} = '{}'", kind.replace('\'', "''")));
    }
    if let Some(after) = text(params, "after") {
        let (at, lsn) = after.split_once('.').ok_or_else(invalid)?;
        let (at, lsn) = at
            .parse::<i64>()
            .ok()
            .zip(lsn.parse::<u64>().ok())
            .ok_or_else(invalid)?;
        conditions.push(format!(
            "(event_time > {0} or event_time = {0} and lsn > {lsn})",
            time(at)
        ));
    }
    let stream = stream(app)?;
    let query = format!(
        "select lsn, {TYPE_COLUMN}, params, ts, cast(event_time as bigint) as at \
         from \"{stream}\" where {} order by event_time, lsn limit {}",
        conditions.join(" and "),
        PAGE_EVENTS + 1
    );
    let page = app.0.parts.queries.sql(&query).await?;
    let spools = app.0.parts.queries.spools.clone();
    let written = tokio::task::spawn_blocking(move || write_events(&page, &spools)).await;
    Ok(written.map_err(|e| QueryError::Failed(e.to_string()))??)
}

/// Writes a page of events, one by one.
fn write_events(page: &SqlAnswer, spools: &Spools) -> Result<SpooledAnswer, QueryError> {
    let mut out = spools.begin();
    let (mut written, mut last) = (0, None);
    out.text("{\"result\":[")?;
    each_row(&page.schema, &page.batches, |row| {
        written += 1;
        if written > PAGE_EVENTS {
            return Ok(());
        }
        let row: Value =
            serde_json::from_slice(row).map_err(|e| QueryError::Failed(e.to_string()))?;
        let params = if row["params"].is_null() {
            json!({})
        } else {
            row["params"].clone()
        };
        if written > 1 {
            out.text(",")?;
        }
        last = Some(format!("{}.{}", row["at"], row["lsn"]));
        out.json(
            &json!({"event_type": row[TYPE_COLUMN], "id": row["lsn"].to_string(), "params": params, "ts": row["ts"]}),
        )
    })?;
    out.text("],\"status\":\"SUCCESS\",\"timeStamp\":")?;
    out.json(&now_ms())?;
    if let Some(next) = last.filter(|_| written > PAGE_EVENTS) {
        out.text(",\"next\":")?;
        out.json(&next)?;
    }
    out.text("}")?;
    out.finish()
}
