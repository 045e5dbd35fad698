//! `GET /api/v1/live`: rows of a stream as they become visible, as server-sent events that resume.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::{Stream, StreamExt, stream};
use serde_json::Value;

use super::App;
use super::error::ApiError;
use crate::query::QueryError;
use crate::query::encode::each_row;
use crate::schema::versions_of;

/// How often new rows are looked for, and how many are sent at once.
const POLL: Duration = Duration::from_millis(100);
const ROWS: usize = 500;
/// More rows than this of one record are not counted through for a client that comes back.
const MOST_ORDINAL: usize = 1_000_000;

/// Where a client is: everything up to this record, and so many rows of the next one that has some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    after: u64,
    sent: usize,
}

impl Position {
    /// The row after the one of this id, `LSN.ordinal`.
    fn behind(id: &str) -> Option<Self> {
        let (lsn, ordinal) = id.split_once('.').unwrap_or((id, "0"));
        let sent = ordinal.parse::<usize>().ok().filter(|n| *n < MOST_ORDINAL)? + 1;
        // An LSN is exact in JSON; what lies above is none.
        Some(Self { after: lsn.parse::<u64>().ok().filter(|lsn| *lsn < 1 << 53)?.checked_sub(1)?, sent })
    }
}

/// Rows of a stream, or of a window as they are stored; each event's id is `LSN.ordinal`, by which a client resumes with
/// Last-Event-ID.
#[utoipa::path(get, path = "/api/v1/live", params(("stream" = Option<String>, Query), ("window" = Option<String>, Query)),
    responses((status = 200, content_type = "text/event-stream", body = String), (status = 404)))]
pub async fn live(
    State(app): State<App>,
    Query(params): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let handles = &app.0.parts.answers.handles;
    let (name, order) = match params.get("window") {
        Some(window) => {
            let missing = || QueryError::NotFound(format!("there is no window `{window}`"));
            let window = handles.catalog.window(window).ok_or_else(missing)?;
            let keys = window.keys.iter().map(|c| format!(", \"{}\"", window.schema.field(*c).name()));
            (versions_of(&window.name), format!("lsn, window_start{}", keys.collect::<String>()))
        }
        None => (handles.stream(params.get("stream").map(String::as_str))?.name.clone(), "lsn".to_owned()),
    };
    let resumed = headers.get("last-event-id").and_then(|v| v.to_str().ok()).and_then(Position::behind);
    let applied = handles.tables.get(&name).map_or(0, |t| t.applied());
    let start = resumed.unwrap_or(Position { after: applied, sent: 0 });
    let streams = app.0.live.clone().try_acquire_owned().map_err(|_| {
        let message = "half of the connections are live streams already (`[limits] connections`)";
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, "busy", message, "close one, or raise the limit")
    })?;
    let stop = app.0.stop.clone().cancelled_owned();
    let rows = stream::unfold((app, name, order, start), |(app, name, order, at)| async move {
        loop {
            let visible = app.0.parts.answers.handles.tables.get(&name).map_or(0, |t| t.applied());
            if visible > at.after
                && let Ok((rows, next)) = rows_above(&app, &name, &order, at, visible).await
            {
                return Some((stream::iter(rows), (app, name, order, next)));
            }
            tokio::time::sleep(POLL).await;
        }
    });
    let events = rows.flatten().map(move |(id, row)| {
        let _place = &streams;
        let event = Event::default().id(id).json_data(&row);
        Ok(event.unwrap_or_else(|_| Event::default().comment("a row that is no JSON")))
    });
    Ok(Sse::new(events.take_until(stop)).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))))
}

/// Rows behind a position with their ids, and the position behind them. What was visible before they were asked for has been sent
/// then, unless there are more rows than are sent at once.
async fn rows_above(
    app: &App,
    table: &str,
    order: &str,
    at: Position,
    visible: u64,
) -> Result<(Vec<(String, Value)>, Position), QueryError> {
    let limit = at.sent + ROWS;
    let query = format!("select * from \"{table}\" where lsn > {} order by {order} limit {limit}", at.after);
    let answer = app.0.parts.answers.sql(&query).await?;
    let mut rows: Vec<Value> = Vec::new();
    each_row(&answer.schema, &answer.batches, |row| {
        rows.extend(serde_json::from_slice::<Value>(row));
        Ok(())
    })?;
    let (mut lsn, mut ordinal) = (0, 0);
    let mut out = Vec::with_capacity(rows.len());
    let is_all = rows.len() < limit;
    for (n, row) in rows.into_iter().enumerate() {
        let own = row["lsn"].as_u64().unwrap_or(0);
        ordinal = if own == lsn { ordinal + 1 } else { 0 };
        lsn = own;
        if n >= at.sent {
            out.push((format!("{lsn}.{ordinal}"), row));
        }
    }
    let next = if is_all {
        Position { after: lsn.max(visible), sent: 0 }
    } else {
        Position { after: lsn.saturating_sub(1), sent: ordinal + 1 }
    };
    Ok((out, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_names_the_row_behind_it_and_nonsense_names_none() {
        assert_eq!(Position::behind("7.2"), Some(Position { after: 6, sent: 3 }));
        assert_eq!(Position::behind("7"), Some(Position { after: 6, sent: 1 }));
        for wrong in ["", "x", "0.0", "7.x", "7.18446744073709551615", "18446744073709551615.0"] {
            assert_eq!(Position::behind(wrong), None, "{wrong}");
        }
    }
}
