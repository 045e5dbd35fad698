//! Notebooks: list, read, save, delete. Their rules are those of the store in `runtime`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::App;
use super::error::ApiError;
use super::guard::Client;
use super::receive::Small;
use crate::runtime::notebooks::{Draft, Notebook, NotebookError, Notebooks};
use crate::storage::IoKind;

impl From<NotebookError> for ApiError {
    fn from(error: NotebookError) -> Self {
        let message = error.to_string();
        let (status, code, hint) = match (&error, error.io_kind()) {
            (NotebookError::NotFound(_), _) => (
                StatusCode::NOT_FOUND,
                "not_found",
                "see GET /api/v1/notebooks",
            ),
            (NotebookError::Invalid(_), _) => (
                StatusCode::BAD_REQUEST,
                "bad_request",
                "see /docs for its form",
            ),
            (NotebookError::TooMany, _) => (
                StatusCode::CONFLICT,
                "too_many",
                "delete one that is not needed",
            ),
            (NotebookError::Changed { .. }, _) => (
                StatusCode::PRECONDITION_FAILED,
                "changed",
                "read it again, or save under another name",
            ),
            (NotebookError::Damaged(_), _) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "damaged",
                "see the message",
            ),
            (NotebookError::Io { .. }, kind) => {
                let code = match kind {
                    Some(IoKind::Full) => "disk_full",
                    Some(IoKind::ReadOnly) => "disk_read_only",
                    _ => "disk_failed",
                };
                (
                    StatusCode::SERVICE_UNAVAILABLE,
                    code,
                    "it may be stored or not: read it again before you try again",
                )
            }
        };
        Self::new(status, code, message, hint)
    }
}

/// Works on the notebooks where it may block.
async fn on_notebooks<T: Send + 'static>(
    app: &App,
    work: impl FnOnce(&Notebooks) -> Result<T, NotebookError> + Send + 'static,
) -> Result<T, ApiError> {
    let notebooks: Arc<Notebooks> = app.0.parts.notebooks.clone();
    let done = tokio::task::spawn_blocking(move || work(&notebooks)).await;
    Ok(done.map_err(|e| ApiError::failed(e.to_string()))??)
}

/// A notebook with its version as the `ETag`.
fn answer(notebook: &Notebook) -> Response {
    let tag = HeaderValue::from_str(&format!("\"{}\"", notebook.version));
    let mut response = Json(notebook).into_response();
    if let Ok(tag) = tag {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// The version of a header `If-Match`, with or without quotation marks.
fn expected_version(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get(header::IF_MATCH) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default().trim();
    let inner = text.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
    let version = inner.unwrap_or(text).parse();
    version.map(Some).map_err(|_| {
        let message = "If-Match: write the version that you read, such as \"3\"";
        ApiError::bad_request(message, "leave the header out to replace any version")
    })
}

/// All notebooks, and whether the client's token may change them.
#[utoipa::path(get, path = "/api/v1/notebooks", responses((status = 200, description = "{notebooks: [{name, title, changed}], may_write}")))]
pub async fn list(
    State(app): State<App>,
    Extension(client): Extension<Client>,
) -> Result<Json<Value>, ApiError> {
    let entries = on_notebooks(&app, Notebooks::list).await?;
    Ok(Json(
        json!({"notebooks": entries, "may_write": client.may_write}),
    ))
}

/// A notebook, with its version as ETag.
#[utoipa::path(get, path = "/api/v1/notebooks/{name}", params(("name" = String, Path)),
    responses((status = 200, body = Notebook), (status = 400), (status = 404)))]
pub async fn read(State(app): State<App>, Path(name): Path<String>) -> Result<Response, ApiError> {
    let notebook = on_notebooks(&app, move |notebooks| notebooks.get(&name)).await?;
    Ok(answer(&notebook))
}

/// Saves a notebook: creates it, or replaces the one of this name.
#[utoipa::path(put, path = "/api/v1/notebooks/{name}", request_body = Draft,
    params(("name" = String, Path, description = "1 to 64 of a-z, 0-9, - and _"),
        ("If-Match" = Option<String>, Header, description = "the version that is replaced; \"0\" where there is none yet")),
    responses((status = 200, body = Notebook), (status = 400), (status = 403, description = "the token is read-only"),
        (status = 409, description = "there are too many notebooks"), (status = 412, description = "it has another version"), (status = 413), (status = 503)))]
pub async fn save(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Small(body): Small,
) -> Result<Response, ApiError> {
    let expected = expected_version(&headers)?;
    let draft: Draft = serde_json::from_slice(&body).map_err(|e| {
        let hint =
            "send {\"title\": \"…\", \"cells\": [{\"kind\": \"sql\", \"sql\": \"select …\"}]}";
        ApiError::bad_request(e.to_string(), hint)
    })?;
    let now = app.0.parts.queries.clock.now();
    let save = move |notebooks: &Notebooks| notebooks.save(&name, draft, expected, now);
    Ok(answer(&on_notebooks(&app, save).await?))
}

/// Deletes a notebook.
#[utoipa::path(delete, path = "/api/v1/notebooks/{name}",
    params(("name" = String, Path), ("If-Match" = Option<String>, Header, description = "the version that is deleted")),
    responses((status = 204), (status = 400), (status = 403, description = "the token is read-only"), (status = 404),
        (status = 412, description = "it has another version"), (status = 503)))]
pub async fn delete(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let expected = expected_version(&headers)?;
    on_notebooks(&app, move |notebooks| notebooks.delete(&name, expected)).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_with_and_without_quotation_marks() {
        let expected = |text: &'static str| {
            let headers =
                HeaderMap::from_iter([(header::IF_MATCH, HeaderValue::from_static(text))]);
            expected_version(&headers).map_err(|e| e.code)
        };
        assert_eq!(expected("\"3\""), Ok(Some(3)));
        assert_eq!(expected(" 0 "), Ok(Some(0)));
        for wrong in ["*", "", "-1", "\"3", "W/\"3\"", "3, 4"] {
            assert_eq!(expected(wrong), Err("bad_request"), "{wrong}");
        }
        assert_eq!(expected_version(&HeaderMap::new()).ok(), Some(None));
    }
}
