//! `GET /api/v1/live`: rows of a stream as they become visible, as server-sent events that resume.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::{Stream, StreamExt, stream};
use serde_json::Value;

use super::App;
use super::error::ApiError;
use crate::query::QueryError;

/// How often new rows are looked for, and how many are sent at once.
const POLL: Duration = Duration::from_millis(100);
const ROWS: usize = 500;

/// Rows of a stream as they come; each event's id is `LSN.ordinal`, by which a client resumes with Last-Event-ID.
#[utoipa::path(get, path = "/api/v1/live", params(("stream" = Option<String>, Query)),
    responses((status = 200, content_type = "text/event-stream", body = String), (status = 404)))]
pub async fn live(
    State(app): State<App>,
    Query(params): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let handles = &app.0.parts.answers.handles;
    let name = handles.stream(params.get("stream").map(String::as_str))?.name.clone();
    let resumed =
        headers.get("last-event-id").and_then(|v| v.to_str().ok()).and_then(|v| v.split('.').next()?.parse().ok());
    let start: u64 = resumed.unwrap_or_else(|| handles.tables.get(&name).map_or(0, |t| t.applied()));
    let stop = app.0.stop.clone().cancelled_owned();
    let rows = stream::unfold((app, name, start), |(app, name, after)| async move {
        loop {
            let visible = app.0.parts.answers.handles.tables.get(&name).map_or(0, |t| t.applied());
            if visible > after
                && let Ok(rows) = rows_above(&app, &name, after).await
            {
                let last = rows.last().and_then(|r| r["lsn"].as_u64()).unwrap_or(after);
                // Fewer rows than asked for: everything up to what was visible has been sent.
                let next = if rows.len() < ROWS { last.max(visible) } else { last };
                return Some((stream::iter(rows), (app, name, next)));
            }
            tokio::time::sleep(POLL).await;
        }
    });
    let events = rows.flatten().map(|row| {
        let event = Event::default().id(format!("{}.0", row["lsn"])).json_data(&row);
        Ok(event.unwrap_or_else(|_| Event::default().comment("a row that is no JSON")))
    });
    Ok(Sse::new(events.take_until(stop)).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))))
}

async fn rows_above(app: &App, stream: &str, after: u64) -> Result<Vec<Value>, QueryError> {
    let query = format!("select * from \"{stream}\" where lsn > {after} order by lsn limit {ROWS}");
    let answer = app.0.parts.answers.sql(&query).await?;
    let lines = answer.render("ndjson")?;
    Ok(lines.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}
