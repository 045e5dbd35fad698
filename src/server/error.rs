//! Errors as `{"error":{"code","message","hint"}}`.

use axum::Json;
use axum::body::to_bytes;
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

use crate::ingest::IngestError;
use crate::query::QueryError;
use crate::storage::{IoKind, damage_in};

/// A rejected request, as the client reads it.
#[derive(Debug, Clone)]
pub struct ApiError {
    pub status: StatusCode,
    /// A word for programs, such as `busy`.
    pub code: &'static str,
    /// What is wrong, for people.
    pub message: String,
    /// What to do next; may be empty.
    pub hint: &'static str,
}

impl ApiError {
    pub fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
        hint: &'static str,
    ) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            hint,
        }
    }

    /// An idempotency key was used before, for another body.
    pub fn key_reused() -> Self {
        let message = IngestError::KeyReused.to_string();
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "key_reused",
            message,
            "choose a new key for each body",
        )
    }

    /// A fault of the process: 500.
    pub fn failed(message: impl Into<String>) -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self::new(status, "failed", message, "see the log")
    }

    /// While the intake is closed.
    pub fn not_ingesting() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "not_taking",
            "no records are accepted now: weir is starting, stopping, or configured so",
            "try again in a moment",
        )
    }

    pub fn conflict(message: impl Into<String>, hint: &'static str) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message, hint)
    }

    pub fn bad_request(message: impl Into<String>, hint: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message, hint)
    }
}

impl ApiError {
    /// `{"code", "message", "hint"}`.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({"code": self.code, "message": self.message, "hint": self.hint})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = serde_json::json!({"error": self.to_json()});
        let mut response = (self.status, Json(body)).into_response();
        if matches!(
            self.status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        ) {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<QueryError> for ApiError {
    fn from(error: QueryError) -> Self {
        let message = error.to_string();
        if damage_in(&message).is_some() {
            return Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "damaged",
                message,
                "see the message",
            );
        }
        match error {
            QueryError::Invalid(_) => Self::bad_request(message, "see /docs for the parameters"),
            QueryError::NotFound(_) => Self::new(StatusCode::NOT_FOUND, "not_found", message, ""),
            QueryError::Limit(_) => Self::new(
                StatusCode::BAD_REQUEST,
                "limit",
                message,
                "narrow the query",
            ),
            QueryError::Overloaded(_) | QueryError::Busy { .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", message, "try again")
            }
            QueryError::Failed(_) => Self::failed(message),
        }
    }
}

impl From<IngestError> for ApiError {
    fn from(error: IngestError) -> Self {
        let message = error.to_string();
        let hint = "nothing was stored; send it again";
        match error {
            IngestError::Full { .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message, hint)
            }
            IngestError::NoSpace { kind, .. } => {
                let code = match kind {
                    IoKind::Full => "log_full",
                    IoKind::ReadOnly => "disk_read_only",
                    IoKind::Broken => "disk_failed",
                };
                Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message, hint)
            }
            IngestError::Stopping => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", message, hint)
            }
            IngestError::TooManyRejected { .. } => Self::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too_large",
                message,
                "send it in parts",
            ),
            IngestError::Refused(_) => Self::bad_request(message, hint),
            IngestError::KeyReused => Self::key_reused(),
            IngestError::Unknown => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "unknown",
                message,
                "send it again",
            ),
        }
    }
}

/// Maximum text of a library's error response.
const MAX_ERROR_BYTES: usize = 16 << 10;

/// Rewrites an error that a library responds with as plain text, such as for a path that is not
/// UTF-8, in the form of all others.
pub async fn unify(response: Response) -> Response {
    let status = response.status();
    let kind = response
        .headers()
        .get(header::CONTENT_TYPE)
        .map(HeaderValue::as_bytes);
    if !(status.is_client_error() || status.is_server_error())
        || kind.is_some_and(|k| !k.starts_with(b"text/plain"))
    {
        return response;
    }
    let code = match status {
        StatusCode::NOT_FOUND => "not_found",
        StatusCode::PAYLOAD_TOO_LARGE => "too_large",
        StatusCode::UNSUPPORTED_MEDIA_TYPE => "media_type",
        _ if status.is_client_error() => "bad_request",
        _ => "failed",
    };
    let text = to_bytes(response.into_body(), MAX_ERROR_BYTES)
        .await
        .unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let message = if text.is_empty() {
        status.canonical_reason().unwrap_or_default()
    } else {
        &*text
    };
    ApiError::new(status, code, message, "see /docs").into_response()
}

/// The answer to a path that no route has.
pub async fn not_found(uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "not_found",
        format!("{} does not exist", uri.path()),
        "see /docs",
    )
}

/// The answer to a method that the path's route does not have.
pub async fn bad_method() -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        "this path takes another method",
        "see /docs",
    )
}
