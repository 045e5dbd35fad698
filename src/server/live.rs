//! `GET /api/v1/live`: rows of a stream as they become visible, as server-sent events that resume.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::{Stream, StreamExt, stream};
use serde_json::json;

use super::App;
use super::error::ApiError;
use crate::event::Lsn;
use crate::query::QueryError;
use crate::query::live::{Cursor, RowId, Step};
use crate::schema::versions_of;

/// How often new rows are looked for.
const POLL: Duration = Duration::from_millis(100);
/// Above every place of a row among those of its record.
const MOST_ORDINAL: usize = 100_000_000;

/// The row of an id, `LSN.ordinal`.
fn row_of(id: &str) -> Option<RowId> {
    let (lsn, ordinal) = id.split_once('.').unwrap_or((id, "0"));
    let ordinal = ordinal
        .parse::<usize>()
        .ok()
        .filter(|n| *n <= MOST_ORDINAL)?;
    // An LSN is exact in JSON; what lies above is none.
    let lsn = lsn
        .parse::<Lsn>()
        .ok()
        .filter(|lsn| (1..1 << 53).contains(lsn))?;
    Some(RowId { lsn, ordinal })
}

/// Rows of a stream, or of a window as they are stored; each event's id is `LSN.ordinal`, by which
/// a client resumes with Last-Event-ID as long as the rows behind it are in memory. An event
/// `missed` names, once, the records whose rows no longer are: SQL has those.
#[utoipa::path(get, path = "/api/v1/live", params(("stream" = Option<String>, Query), ("window" = Option<String>, Query)),
    responses((status = 200, content_type = "text/event-stream", body = String), (status = 404),
        (status = 429, description = "half of the connections are live streams already")))]
pub async fn live(
    State(app): State<App>,
    Query(params): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let handles = &app.0.parts.answers.handles;
    let name = match params.get("window") {
        Some(window) => {
            let missing = || QueryError::NotFound(format!("there is no window `{window}`"));
            versions_of(&handles.catalog.window(window).ok_or_else(missing)?.name)
        }
        None => handles
            .stream(params.get("stream").map(String::as_str))?
            .name
            .clone(),
    };
    let table = handles.tables.get(&name).cloned();
    let table = table.ok_or_else(|| QueryError::NotFound(format!("there is no table `{name}`")))?;
    let place = app.0.live.clone().try_acquire_owned().map_err(|_| {
        let message = "half of the connections are live streams already (`[limits] connections`)";
        ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "busy",
            message,
            "close one, or raise the limit",
        )
    })?;
    let resumed = headers
        .get("last-event-id")
        .and_then(|v| v.to_str().ok())
        .and_then(row_of);
    let (visible, synced) = (table.applied(), handles.progress.synced_lsn());
    // A row that this log does not have yet is one of another log.
    let is_foreign = resumed.is_some_and(|row| row.lsn > synced);
    let is_last = |row: RowId| !params.contains_key("window") || row.ordinal == MOST_ORDINAL;
    let resumed = resumed.filter(|_| !is_foreign);
    let start = resumed.map_or(Cursor::after(visible), |row| {
        Cursor::resume_after(row, is_last(row))
    });
    let first = is_foreign.then(|| {
        missed(
            0,
            visible,
            "the log does not have the record of Last-Event-ID",
        )
    });
    let stop = app.0.stop.clone().cancelled_owned();
    let rows = stream::unfold(
        (app, table, start),
        move |(app, table, mut cursor)| async move {
            loop {
                if table.applied() > cursor.lsn() {
                    let (live, asked) = (app.0.parts.live.clone(), table.clone());
                    let step = tokio::task::spawn_blocking(move || live.next(&asked, cursor)).await;
                    match step
                        .map_err(|e| QueryError::Failed(e.to_string()))
                        .and_then(|step| step)
                    {
                        Ok(Step::Rows(page, next)) => {
                            let lacked = page.rows.iter().filter(|(id, _)| cursor.is_new(*id));
                            let event = |(id, row): &(RowId, String)| {
                                Event::default()
                                    .id(format!("{}.{}", id.lsn, id.ordinal))
                                    .data(row)
                            };
                            let events: Vec<Event> = lacked.map(event).collect();
                            return Some((stream::iter(events), (app, table, next)));
                        }
                        Ok(Step::Missed { after, upto, next }) => {
                            let event = missed(after, upto, "their rows are no longer in memory");
                            return Some((stream::iter(vec![event]), (app, table, next)));
                        }
                        Ok(Step::CaughtUp(next)) => cursor = next,
                        Err(error) => {
                            // It would be the same again: the client comes back, or not.
                            tracing::error!(%error, table = table.spec.name, "a live stream ends");
                            return None;
                        }
                    }
                }
                tokio::time::sleep(POLL).await;
            }
        },
    );
    let events = stream::iter(first).chain(rows.flatten()).map(move |event| {
        let _place = &place;
        Ok(event)
    });
    Ok(Sse::new(events.take_until(stop))
        .keep_alive(KeepAlive::new().interval(Duration::from_secs(15))))
}

/// Names the records whose rows a client does not get. Its id lets the client continue behind them.
fn missed(after: Lsn, upto: Lsn, why: &str) -> Event {
    let message = format!("{why}; ask SQL for the rows with lsn above {after} and up to {upto}");
    let data = json!({"after": after, "upto": upto, "message": message}).to_string();
    Event::default()
        .event("missed")
        .id(format!("{upto}.{MOST_ORDINAL}"))
        .data(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_names_a_row_and_nonsense_names_none() {
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
