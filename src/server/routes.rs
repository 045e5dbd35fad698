//! Questions, and the state of the process.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::App;
use super::error::ApiError;

type Params = Query<BTreeMap<String, String>>;

/// How many events said something new.
#[utoipa::path(get, path = "/api/v1/count", params(("stream" = Option<String>, Query), ("type" = Option<String>, Query),
    ("by" = Option<String>, Query), ("from" = Option<String>, Query), ("to" = Option<String>, Query), ("repeats" = Option<bool>, Query)),
    responses((status = 200, description = "{count, groups, as_of}"), (status = 400), (status = 404)))]
pub async fn count(State(app): State<App>, Query(params): Params) -> Result<Json<Value>, ApiError> {
    Ok(Json(app.0.parts.answers.count(&params).await?))
}

/// Events by their words.
#[utoipa::path(get, path = "/api/v1/search", params(("q" = String, Query), ("stream" = Option<String>, Query),
    ("sort" = Option<String>, Query), ("limit" = Option<usize>, Query), ("from" = Option<String>, Query), ("to" = Option<String>, Query),
    ("near" = Option<String>, Query), ("within" = Option<String>, Query), ("after" = Option<String>, Query)),
    responses((status = 200, description = "{hits, total, next, as_of}"), (status = 400), (status = 404)))]
pub async fn search(State(app): State<App>, Query(params): Params) -> Result<Json<Value>, ApiError> {
    Ok(Json(app.0.parts.answers.search(&params).await?))
}

/// The venues nearest to a place.
#[utoipa::path(get, path = "/api/v1/nearby", params(("lat" = f64, Query), ("lon" = f64, Query), ("stream" = Option<String>, Query),
    ("limit" = Option<usize>, Query), ("within" = Option<String>, Query)),
    responses((status = 200, description = "{venues, as_of}"), (status = 400), (status = 404)))]
pub async fn nearby(State(app): State<App>, Query(params): Params) -> Result<Json<Value>, ApiError> {
    Ok(Json(app.0.parts.answers.nearby(&params).await?))
}

/// How far log and views are.
#[utoipa::path(get, path = "/api/v1/status", responses((status = 200, description = "{synced_lsn, streams, views, gaps}")))]
pub async fn status(State(app): State<App>) -> Json<Value> {
    Json(app.0.parts.answers.status())
}

#[derive(Debug, Deserialize, ToSchema)]
pub struct SqlRequest {
    sql: String,
    /// json, ndjson, csv or arrow
    #[serde(default = "json_format")]
    format: String,
}

fn json_format() -> String {
    "json".into()
}

/// SQL, read-only.
#[utoipa::path(post, path = "/api/v1/sql", request_body = SqlRequest,
    responses((status = 200, description = "{rows, as_of} in json; rows alone in the other formats"), (status = 400), (status = 429)))]
pub async fn sql(State(app): State<App>, body: axum::body::Bytes) -> Result<Response, ApiError> {
    let request: SqlRequest = serde_json::from_slice(&body)
        .map_err(|e| ApiError::bad_request(e.to_string(), "send {\"sql\": \"select …\", \"format\": \"json\"}"))?;
    let kind = match request.format.as_str() {
        "json" => "application/json",
        "ndjson" => "application/x-ndjson",
        "csv" => "text/csv; charset=utf-8",
        _ => "application/vnd.apache.arrow.stream",
    };
    let answer = app.0.parts.answers.sql(&request.sql).await?;
    let bytes = answer.render(&request.format)?;
    Ok(([(header::CONTENT_TYPE, kind)], bytes).into_response())
}

/// The process is alive.
#[utoipa::path(get, path = "/healthz", responses((status = 200, description = "{status, pid}")))]
pub async fn healthz() -> Json<Value> {
    Json(json!({"status": "alive", "pid": std::process::id()}))
}

/// The process takes records in and every view goes on.
#[utoipa::path(get, path = "/readyz", responses((status = 200), (status = 503)))]
pub async fn readyz(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    match (app.0.parts.readiness)() {
        Ok(()) => Ok(Json(json!({"status": "ready"}))),
        Err(why) => Err(ApiError::new(axum::http::StatusCode::SERVICE_UNAVAILABLE, "not_ready", why, "see the log")),
    }
}

/// Prometheus metrics.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String)))]
pub async fn metrics(State(app): State<App>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], app.0.parts.metrics.render())
}
