//! `GET /api/v1/live`: rows of a stream as they become visible, as server-sent events that resume.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::{Stream, StreamExt, stream};
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;

use super::App;
use super::error::ApiError;
use crate::event::Lsn;
use crate::ids::TableId;
use crate::query::QueryError;
use crate::query::live::{Cursor, NextPage, RowId};

/// How often to look for new rows.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Above the ordinal of every row within its record.
const MAX_ORDINAL: usize = 100_000_000;

/// The row of an id, `LSN.ordinal`.
fn row_of(id: &str) -> Option<RowId> {
    let (lsn, ordinal) = id.split_once('.').unwrap_or((id, "0"));
    let ordinal = ordinal
        .parse::<usize>()
        .ok()
        .filter(|n| *n <= MAX_ORDINAL)?;
    // An LSN is exact in JSON; greater numbers are not LSNs.
    let lsn = lsn
        .parse::<Lsn>()
        .ok()
        .filter(|lsn| (1..1 << 53).contains(lsn))?;
    Some(RowId { lsn, ordinal })
}

/// Rows of a stream, or of a window as they are stored. Each event's id is `LSN.ordinal`, by which a
/// client resumes with Last-Event-ID while the rows after it are in memory. If they no longer are,
/// one event `missed` names the records, whose rows SQL has.
#[utoipa::path(get, path = "/api/v1/live", params(("stream" = Option<String>, Query), ("window" = Option<String>, Query, description = "the rows of this window instead")),
    responses((status = 200, content_type = "text/event-stream", body = String), (status = 404),
        (status = 429, description = "half of the connections are live streams already")))]
pub async fn live(
    State(app): State<App>,
    Query(params): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let id = requested_table(&app, &params)?;
    let table = app.0.parts.queries.handles.tables.get(&id);
    let table =
        table.ok_or_else(|| QueryError::NotFound(format!("the table `{id}` does not exist")))?;
    let visible = table.applied();
    let slot = live_slot(&app)?;
    let last_event_id = headers
        .get("last-event-id")
        .and_then(|v| v.to_str().ok())
        .and_then(row_of);
    let synced = app.0.parts.queries.handles.progress.synced_lsn();
    // A row that this log does not have yet is one of another log.
    let is_foreign = last_event_id.is_some_and(|row| row.lsn > synced);
    let is_last = |row: RowId| !params.contains_key("window") || row.ordinal == MAX_ORDINAL;
    let start = last_event_id
        .filter(|_| !is_foreign)
        .map_or(Cursor::after(visible), |row| {
            Cursor::resume_after(row, is_last(row))
        });
    let reason = "the log does not have the record of Last-Event-ID";
    let first = is_foreign.then(|| missed(0, visible, reason));
    let stop = app.0.stop.clone().cancelled_owned();
    let pages = stream::unfold((app, id, start), |(app, id, cursor)| async move {
        let (events, next) = next_events(&app, &id, cursor).await?;
        Some((stream::iter(events), (app, id, next)))
    });
    let events = stream::iter(first)
        .chain(pages.flatten())
        .map(move |event| {
            let _slot = &slot;
            Ok(event)
        });
    Ok(Sse::new(events.take_until(stop))
        .keep_alive(KeepAlive::new().interval(Duration::from_secs(15))))
}

/// One of the connections that may be live streams, until it is dropped.
pub(super) fn live_slot(app: &App) -> Result<OwnedSemaphorePermit, ApiError> {
    app.0.live.clone().try_acquire_owned().map_err(|_| {
        let message = "half of the connections are live streams already (`[limits] connections`)";
        ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "busy",
            message,
            "close one, or raise the limit",
        )
    })
}

/// The table of the requested stream or window.
fn requested_table(app: &App, params: &BTreeMap<String, String>) -> Result<TableId, QueryError> {
    let handles = &app.0.parts.queries.handles;
    match params.get("window") {
        Some(window) => {
            let missing = || QueryError::NotFound(format!("the window `{window}` does not exist"));
            let window = handles.catalog.window(window).ok_or_else(missing)?;
            Ok(TableId::window(&window.name))
        }
        None => {
            let stream = handles.stream(params.get("stream").map(String::as_str))?;
            Ok(TableId::stream(&stream.name))
        }
    }
}

/// Waits for events after the cursor; `None` ends the stream.
async fn next_events(
    app: &App,
    table: &TableId,
    mut cursor: Cursor,
) -> Option<(Vec<Event>, Cursor)> {
    let table = app.0.parts.queries.handles.tables.get(table)?;
    loop {
        if table.applied() > cursor.lsn() {
            let (live, table_read) = (app.0.parts.live.clone(), table.clone());
            let page = tokio::task::spawn_blocking(move || live.next(&table_read, cursor)).await;
            match page
                .map_err(|e| QueryError::Failed(e.to_string()))
                .and_then(|page| page)
            {
                Ok(NextPage::Rows(page, next)) => {
                    let new = page.rows.iter().filter(|(id, _)| cursor.is_new(*id));
                    let event = |(id, row): &(RowId, String)| {
                        Event::default()
                            .id(format!("{}.{}", id.lsn, id.ordinal))
                            .data(row)
                    };
                    return Some((new.map(event).collect(), next));
                }
                Ok(NextPage::Missed { after, upto, next }) => {
                    let event = missed(after, upto, "their rows are no longer in memory");
                    return Some((vec![event], next));
                }
                Ok(NextPage::CaughtUp(next)) => cursor = next,
                Err(error) => {
                    // A retry would fail again; the client may reconnect.
                    tracing::error!(%error, table = table.spec.name, "a live stream ends");
                    return None;
                }
            }
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Names the records whose rows a client does not get. Its id lets the client continue after them.
fn missed(after: Lsn, upto: Lsn, reason: &str) -> Event {
    let message =
        format!("{reason}; query the rows with lsn above {after} and up to {upto} in SQL");
    let data = json!({"after": after, "upto": upto, "message": message}).to_string();
    Event::default()
        .event("missed")
        .id(format!("{upto}.{MAX_ORDINAL}"))
        .data(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_parsed_or_ignored() {
        assert_eq!(row_of("7.2"), Some(RowId { lsn: 7, ordinal: 2 }));
        assert_eq!(row_of("7"), Some(RowId { lsn: 7, ordinal: 0 }));
        for wrong in [
            "",
            "x",
            "0.0",
            "7.x",
            "7.18446744073709551615",
            "18446744073709551615.0",
        ] {
            assert_eq!(row_of(wrong), None, "{wrong}");
        }
    }
}
