//! Queries, operations on the data folder, and the state of the process.

use std::collections::BTreeMap;
use std::collections::hash_map::Entry;
use std::path::Path as FilePath;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use serde::Deserialize;
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use tokio_util::io::ReaderStream;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use super::error::ApiError;
use super::guard::Client;
use super::receive::Small;
use super::{App, FOLDER_KEY, MAX_RETRIES};
use crate::event::rfc3339;
use crate::query::ClientId;
use crate::query::encode::Format;
use crate::query::spool::SpooledAnswer;
use crate::runtime::dead_letter_retry::{Retry, RetryRequest};
use crate::runtime::sink_threads::SinkCommandError;
use crate::runtime::{RuntimeError, rebuild};
use crate::sinks::{Command, InvalidReset};

const JSON: &str = "application/json";
/// Bytes per read of an answer's file.
const READ_BYTES: usize = 64 << 10;

/// The response with a complete answer, sent as fast as its client reads it.
pub fn respond(media_type: &'static str, answer: SpooledAnswer) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(media_type)),
        (header::CONTENT_LENGTH, answer.len().into()),
    ];
    body(answer).map_or_else(
        |error| ApiError::failed(format!("the answer cannot be read: {error}")).into_response(),
        |body| (headers, body).into_response(),
    )
}

fn body(mut answer: SpooledAnswer) -> std::io::Result<Body> {
    let Some(file) = answer.take_file() else {
        return Ok(Body::from(answer.into_bytes()?));
    };
    let reader = ReaderStream::with_capacity(tokio::fs::File::from_std(file), READ_BYTES);
    Ok(Body::from_stream(FileAnswer(Some((reader, answer)))))
}

/// An answer that is sent from its file.
struct FileAnswer(Option<(ReaderStream<tokio::fs::File>, SpooledAnswer)>);

impl Stream for FileAnswer {
    type Item = std::io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().map_or(Poll::Ready(None), |(reader, _)| {
            Pin::new(reader).poll_next(context)
        })
    }
}

impl Drop for FileAnswer {
    /// Closing deletes the unlinked file. For a large one this takes milliseconds, too long for one
    /// of the server's worker threads.
    fn drop(&mut self) {
        if let (Some(answer), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn_blocking(move || drop(answer));
        }
    }
}

type Params = Query<BTreeMap<String, String>>;

/// Maximum length of a query's id.
const MAX_QUERY_ID_BYTES: usize = 128;

/// Number of events, excluding duplicates unless asked for.
#[utoipa::path(get, path = "/api/v1/count", params(("stream" = Option<String>, Query), ("type" = Option<String>, Query),
    ("by" = Option<String>, Query), ("from" = Option<String>, Query), ("to" = Option<String>, Query), ("duplicates" = Option<bool>, Query)),
    responses((status = 200, description = "{count, groups, as_of}"), (status = 400), (status = 404)))]
pub async fn count(State(app): State<App>, Query(params): Params) -> Result<Response, ApiError> {
    Ok(respond(JSON, app.0.parts.queries.count(&params).await?))
}

/// Full-text search for events.
#[utoipa::path(get, path = "/api/v1/search", params(("q" = String, Query), ("stream" = Option<String>, Query),
    ("sort" = Option<String>, Query), ("limit" = Option<usize>, Query), ("from" = Option<String>, Query), ("to" = Option<String>, Query),
    ("near" = Option<String>, Query), ("within" = Option<String>, Query), ("after" = Option<String>, Query)),
    responses((status = 200, description = "{hits, total, next, as_of}"), (status = 400), (status = 404)))]
pub async fn search(State(app): State<App>, Query(params): Params) -> Result<Response, ApiError> {
    Ok(respond(JSON, app.0.parts.queries.search(&params).await?))
}

/// The most frequent values of some columns among the hits of a search. Of its `total` hits the
/// newest `counted` are read, at most 50,000; `matching` of them pass `where`. `distinct` is how many
/// different values a column has; if there were too many to count, `complete` is false.
#[utoipa::path(get, path = "/api/v1/search/facets", params(("q" = String, Query), ("stream" = Option<String>, Query),
    ("columns" = String, Query, description = "Columns of the stream's table, with commas between them, at most 16"),
    ("where" = Option<String>, Query,
        description = "Only hits with these values: JSON, `[[\"COLUMN\", VALUE], …]`; of a list, one item must be the value"),
    ("limit" = Option<usize>, Query, description = "Values of a column, at most 100 [default: 10]"),
    ("from" = Option<String>, Query), ("to" = Option<String>, Query),
    ("near" = Option<String>, Query), ("within" = Option<String>, Query)),
    responses((status = 200, description = "{total, counted, matching, facets: [{column, distinct, complete, values: [{value, n}]}], as_of}"),
        (status = 400), (status = 404)))]
pub async fn search_facets(
    State(app): State<App>,
    Query(params): Params,
) -> Result<Response, ApiError> {
    Ok(respond(JSON, app.0.parts.queries.facets(&params).await?))
}

/// The venues nearest to a place.
#[utoipa::path(get, path = "/api/v1/nearby", params(("lat" = f64, Query), ("lon" = f64, Query), ("stream" = Option<String>, Query),
    ("limit" = Option<usize>, Query), ("within" = Option<String>, Query)),
    responses((status = 200, description = "{venues, as_of}"), (status = 400), (status = 404)))]
pub async fn nearby(State(app): State<App>, Query(params): Params) -> Result<Response, ApiError> {
    Ok(respond(JSON, app.0.parts.queries.nearby(&params).await?))
}

/// Rows of a window, the latest first, including open windows.
#[utoipa::path(get, path = "/api/v1/windows/{name}", params(("name" = String, Path), ("from" = Option<String>, Query),
    ("to" = Option<String>, Query), ("limit" = Option<usize>, Query)),
    responses((status = 200, description = "{window, rows, as_of}"), (status = 400), (status = 404)))]
pub async fn windows(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(mut params): Params,
) -> Result<Response, ApiError> {
    params.insert("name".into(), name);
    Ok(respond(JSON, app.0.parts.queries.windows(&params).await?))
}

/// Progress of the log and the views, since when the server runs, and whether the client may write.
#[utoipa::path(get, path = "/api/v1/status",
    responses((status = 200, description = "{synced_lsn, streams, views, sources, sinks, gaps, notes, started_at, may_write}")))]
pub async fn status(State(app): State<App>, Extension(client): Extension<Client>) -> Json<Value> {
    let mut status = app.0.parts.queries.status();
    status["started_at"] = json!(rfc3339(app.0.started_at));
    status["may_write"] = json!(client.may_write);
    Json(status)
}

/// The configuration in force: settings with their origins, declarations, and sources and sinks as
/// typed. Secrets are hidden.
#[utoipa::path(get, path = "/api/v1/configuration",
    responses((status = 200, description = "{settings: [{key, value, origin}], streams, windows, tables, sources, sinks}")))]
pub async fn configuration(State(app): State<App>) -> Json<Value> {
    Json(app.0.parts.configuration.clone())
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct SqlRequest {
    /// One statement that only reads.
    sql: String,
    /// json, ndjson, csv, arrow or parquet
    #[serde(default = "json_format")]
    format: String,
    /// An id of the client's choice, by which the query can be ended while it runs.
    id: Option<String>,
}

fn json_format() -> String {
    "json".into()
}

/// SQL, read-only.
#[utoipa::path(post, path = "/api/v1/sql", request_body = SqlRequest,
    responses((status = 200, description = "{rows, as_of} in json; rows alone in the other formats"), (status = 400),
        (status = 409, description = "the id is in use, or the query was ended"), (status = 429)))]
pub async fn sql(
    State(app): State<App>,
    Extension(client): Extension<Client>,
    Small(body): Small,
) -> Result<Response, ApiError> {
    let request: SqlRequest = serde_json::from_slice(&body).map_err(|e| {
        ApiError::bad_request(
            e.to_string(),
            "send {\"sql\": \"select …\", \"format\": \"json\"}",
        )
    })?;
    let format = Format::parse(&request.format)?;
    let conflict = |message: String| ApiError::conflict(message, "");
    if request
        .id
        .as_ref()
        .is_some_and(|id| id.is_empty() || id.len() > MAX_QUERY_ID_BYTES)
    {
        return Err(ApiError::bad_request(
            format!("a query's id has 1 to {MAX_QUERY_ID_BYTES} bytes"),
            "choose a shorter one",
        ));
    }
    let running = match &request.id {
        Some(id) => Some(
            RunningQuery::new(&app, id, client.asker)
                .ok_or_else(|| conflict(format!("a query `{id}` is running")))?,
        ),
        None => None,
    };
    let ended = async {
        match &running {
            Some(running) => running.end.cancelled().await,
            None => std::future::pending().await,
        }
    };
    let answer = tokio::select! {
        answer = app.0.parts.queries.ask(client.asker, &request.sql) => answer?,
        () = ended => return Err(conflict("the query was ended by its id".into())),
    };
    let whole = app.0.parts.queries.write(answer, format).await?;
    Ok(respond(format.media_type(), whole))
}

/// Registers a running query under its id until it is dropped.
struct RunningQuery {
    app: App,
    id: String,
    end: CancellationToken,
}

impl RunningQuery {
    /// `None` while another query has the id.
    fn new(app: &App, id: &str, asker: ClientId) -> Option<Self> {
        let end = CancellationToken::new();
        match app.queries().entry(id.to_owned()) {
            Entry::Occupied(_) => return None,
            Entry::Vacant(free) => free.insert((asker, end.clone())),
        };
        Some(Self {
            app: app.clone(),
            id: id.to_owned(),
            end,
        })
    }
}

impl Drop for RunningQuery {
    fn drop(&mut self) {
        self.app.queries().remove(&self.id);
    }
}

/// Ends a running query.
#[utoipa::path(delete, path = "/api/v1/sql/{id}", params(("id" = String, Path)), responses((status = 200), (status = 404)))]
pub async fn end_sql(
    State(app): State<App>,
    Extension(client): Extension<Client>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    // A read-only token does not see queries of other tokens.
    let is_own =
        |(asker, _): &&(ClientId, CancellationToken)| client.may_write || *asker == client.asker;
    let Some((_, end)) = app.queries().get(&id).filter(is_own).cloned() else {
        let message = format!("no query `{id}` is running");
        return Err(ApiError::new(
            StatusCode::NOT_FOUND,
            "not_found",
            message,
            "name queries by `id` in POST /api/v1/sql",
        ));
    };
    end.cancel();
    Ok(Json(json!({"ended": id})))
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct BackupRequest {
    /// An absolute path on the server's machine: an empty folder, or one that does not exist yet.
    to: String,
}

/// Copies the data folder of the running server into a new folder below `[server] backups`; answers
/// when the copy is complete.
#[utoipa::path(post, path = "/api/v1/backup", request_body = BackupRequest,
    responses((status = 200, description = "{to, files, bytes, lsn}"), (status = 400),
        (status = 403, description = "the configuration names no folder for backups"),
        (status = 409, description = "a backup is running"), (status = 500)))]
pub async fn backup(
    State(app): State<App>,
    headers: HeaderMap,
    Small(body): Small,
) -> Result<Json<Value>, ApiError> {
    let parts = &app.0.parts;
    let key = headers
        .get(FOLDER_KEY)
        .map(HeaderValue::as_bytes)
        .unwrap_or_default();
    let knows_key = bool::from(key.ct_eq(parts.folder_key.as_bytes()));
    let below = parts.backups.clone().filter(|_| !knows_key);
    if below.is_none() && !knows_key {
        let message =
            "the configuration names no folder for backups over HTTP (`[server] backups`)";
        let hint = "name one, or run `weir backup` on the server's machine";
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "no_backups",
            message,
            hint,
        ));
    }
    let Ok(_permit) = app.0.backups.try_acquire() else {
        return Err(ApiError::conflict(
            "a backup is running",
            "try again when it has ended",
        ));
    };
    let request: BackupRequest = serde_json::from_slice(&body).map_err(|e| {
        ApiError::bad_request(e.to_string(), "send {\"to\": \"/an/absolute/path\"}")
    })?;
    let backup = app.0.parts.backup.clone();
    let copying = tokio::task::spawn_blocking(move || match below {
        Some(folder) => backup.run_below(&folder, FilePath::new(&request.to)),
        None => backup.run(FilePath::new(&request.to)),
    });
    let summary = copying
        .await
        .map_err(|e| ApiError::failed(e.to_string()))?
        .map_err(|e| match e {
            error if error.is_usage() => ApiError::bad_request(error.to_string(), ""),
            RuntimeError::NotTaken(error) => error.into(),
            other => ApiError::failed(other.to_string()),
        })?;
    Ok(Json(json!(summary)))
}

/// Ingests dead letters that are valid now.
#[utoipa::path(post, path = "/api/v1/dead-letters/retry", request_body = RetryRequest,
    responses((status = 200, description = "{retried, still_refused}"), (status = 400), (status = 429), (status = 503)))]
pub async fn retry(State(app): State<App>, Small(body): Small) -> Result<Json<Value>, ApiError> {
    let body = if body.is_empty() {
        &b"{}"[..]
    } else {
        &body[..]
    };
    let request: RetryRequest = serde_json::from_slice(body).map_err(|e| {
        ApiError::bad_request(
            e.to_string(),
            "send {\"reason\": …, \"since\": …, \"limit\": …}",
        )
    })?;
    let ingest = app.ingest().ok_or_else(ApiError::not_ingesting)?;
    let Ok(_permit) = app.0.open_retries.clone().try_acquire_owned() else {
        let message = format!("{MAX_RETRIES} retries are open already");
        return Err(ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "busy",
            message,
            "try again when they have ended",
        ));
    };
    let queries = app.0.parts.queries.clone();
    let turn = app.0.retry_turn.clone();
    let retry = Retry {
        clock: queries.clock.clone(),
        queries,
        ingest,
        turn,
    };
    let runtime = tokio::runtime::Handle::current();
    let done = tokio::task::spawn_blocking(move || runtime.block_on(retry.run(&request))).await;
    let done = done
        .map_err(|e| ApiError::failed(e.to_string()))?
        .map_err(|e| match e {
            error if error.is_usage() => ApiError::bad_request(error.to_string(), ""),
            other => ApiError::failed(other.to_string()),
        })?;
    Ok(Json(json!(done)))
}

/// What a sink is asked to do.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SinkRequest {
    /// Of `reset`: `earliest`, `latest` or an LSN.
    from: Option<String>,
    /// Of `resume`: whether the refused rows are removed.
    discard_dead_letters: bool,
}

/// Pauses, resumes or resets a sink.
#[utoipa::path(post, path = "/api/v1/sinks/{name}/{action}", request_body = SinkRequest,
    params(("name" = String, Path), ("action" = String, Path, description = "pause, resume or reset")),
    responses((status = 200, description = "{sink}"), (status = 400), (status = 404), (status = 409)))]
pub async fn command_sink(
    State(app): State<App>,
    Path((name, action)): Path<(String, String)>,
    Small(body): Small,
) -> Result<Json<Value>, ApiError> {
    let hint = "send {} or {\"from\": \"earliest\"}";
    let body = if body.is_empty() {
        &b"{}"[..]
    } else {
        &body[..]
    };
    let request: SinkRequest =
        serde_json::from_slice(body).map_err(|e| ApiError::bad_request(e.to_string(), hint))?;
    let command = match (action.as_str(), request.from.as_deref()) {
        ("pause", _) => Command::Pause,
        ("resume", _) => Command::Resume {
            discard_dead_letters: request.discard_dead_letters,
        },
        ("reset", Some(from)) => Command::Reset(
            from.parse()
                .map_err(|e: InvalidReset| ApiError::bad_request(e.to_string(), hint))?,
        ),
        _ => {
            let message = "a sink can be asked to pause, to resume, or to reset with `from`";
            return Err(ApiError::bad_request(message.to_owned(), hint));
        }
    };
    let (controls, sink) = (app.0.parts.sinks.clone(), name.clone());
    let sent = tokio::task::spawn_blocking(move || controls.send(&sink, command)).await;
    sent.map_err(|e| ApiError::failed(e.to_string()))?
        .map_err(|error| {
            let (status, code) = match error {
                SinkCommandError::Unknown { .. } => (StatusCode::NOT_FOUND, "not_found"),
                SinkCommandError::Failed(_) => (StatusCode::CONFLICT, "not_done"),
            };
            ApiError::new(status, code, error.to_string(), "see `weir sinks list`")
        })?;
    Ok(Json(json!({"sink": name})))
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct RebuildRequest {
    /// The id of the configuration that views were rebuilt under.
    configuration: String,
}

/// Installs the views that `weir rebuild` built: the server pauses for a moment.
#[utoipa::path(post, path = "/api/v1/rebuild", request_body = RebuildRequest,
    responses((status = 202, description = "{pausing}"), (status = 400), (status = 409, description = "another configuration is in force")))]
pub async fn install_rebuilt(
    State(app): State<App>,
    Small(body): Small,
) -> Result<Response, ApiError> {
    let request: RebuildRequest = serde_json::from_slice(&body)
        .map_err(|e| ApiError::bad_request(e.to_string(), "this is for `weir rebuild`"))?;
    if request.configuration != app.0.parts.queries.handles.catalog.id.to_string() {
        let message = "the views were rebuilt under another configuration than the server's; they are installed when the server is started with that one";
        let hint = "stop the server and start it again";
        return Err(ApiError::conflict(message, hint));
    }
    if !rebuild::has_waiting(
        &app.0.parts.backup.folder,
        app.0.parts.queries.handles.catalog.id,
    ) {
        return Err(ApiError::bad_request(
            "no rebuilt view is ready to be installed",
            "run `weir rebuild` first",
        ));
    }
    app.0.parts.restart.store(true, Ordering::Release);
    Ok((StatusCode::ACCEPTED, Json(json!({"pausing": true}))).into_response())
}

/// The process is alive.
#[utoipa::path(get, path = "/healthz", responses((status = 200, description = "{status, pid}")))]
pub async fn healthz() -> Json<Value> {
    Json(json!({"status": "alive", "pid": std::process::id()}))
}

/// The process accepts records and every view makes progress.
#[utoipa::path(get, path = "/readyz", responses((status = 200), (status = 503)))]
pub async fn readyz(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    match (app.0.parts.readiness)() {
        Ok(waiting) if waiting.is_empty() => Ok(Json(json!({"status": "ready"}))),
        Ok(waiting) => Ok(Json(json!({"status": "ready", "waiting": waiting}))),
        Err(reason) => Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "not_ready",
            reason,
            "see the log",
        )),
    }
}

/// Prometheus metrics.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String)))]
pub async fn metrics(State(app): State<App>) -> impl IntoResponse {
    let text = app
        .0
        .metrics
        .get(Instant::now(), || app.0.parts.metrics.render());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}
