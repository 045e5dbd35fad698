//! `POST /api/v1/streams/{stream}/events`: one body is one frame, accepted with its 200.
//!
//! A body that has been received completely is stored by a task of its own: if the client gives up,
//! it finds the body stored when it repeats the request with the same idempotency key.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::task::spawn_blocking;

use super::App;
use super::body::{self, Coding};
use super::connections::Activity;
use super::error::ApiError;
use super::in_flight::Outcome;
use super::receive::{Received, Room, receive};
use crate::idempotency::{BodyHash, IngestResponse, RequestKey};
use crate::ingest::{Ingest, IngestError};
use crate::threads::Pace;

const MAX_KEY_BYTES: usize = 128;

#[derive(Debug, serde::Deserialize, utoipa::IntoParams)]
pub struct IntakeQuery {
    /// The member of the body's objects whose elements are the records, such as `Records`.
    unwrap: Option<String>,
}

/// Ingests events: objects, one per line or pretty-printed, or an array of them; also compressed
/// with gzip, deflate or zstd. With the header `Idempotency-Key`, a repeated request to the same
/// stream gets the first one's answer and adds nothing.
#[utoipa::path(post, path = "/api/v1/streams/{stream}/events", params(("stream" = String, Path), IntakeQuery),
    request_body(content = String, content_type = "application/json"),
    responses((status = 200, description = "durably stored: {accepted, rejected_total, rejected}"), (status = 400), (status = 404),
        (status = 408), (status = 413), (status = 415), (status = 422), (status = 429), (status = 503)))]
pub async fn post_events(
    State(app): State<App>,
    Path(stream): Path<String>,
    Query(IntakeQuery { unwrap }): Query<IntakeQuery>,
    activity: Option<Extension<Arc<Activity>>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let ingest = app.ingest().ok_or_else(ApiError::not_ingesting)?;
    if !ingest.catalog().streams.contains_key(&stream) {
        let known = ingest
            .catalog()
            .streams
            .keys()
            .cloned()
            .collect::<Vec<_>>()
            .join(", ");
        let message = format!("the stream `{stream}` does not exist; available: {known}");
        return Err(ApiError::new(
            StatusCode::NOT_FOUND,
            "no_stream",
            message,
            "",
        ));
    }
    body::check_type(&headers)?;
    let coding = Coding::of(&headers)?;
    let key = idempotency_key(&headers)?;
    let limit = app.0.parts.body_bytes;
    let activity = activity.map(|Extension(activity)| activity);
    let Received {
        bytes: wire,
        mut room,
    } = receive(&app, activity, &headers, body, limit).await?;
    if coding != Coding::Identity {
        // Decompressed, it may be as large as the limit.
        room.grow_to(limit).await?;
    }
    let request = Request {
        stream,
        unwrap,
        key,
        coding,
        wire,
    };
    // The task continues if this future is dropped with its connection.
    let task = tokio::spawn(async move {
        let _room: Room = room;
        request.store(&app, &ingest).await
    });
    match task
        .await
        .unwrap_or_else(|e| Outcome::Rejected(ApiError::failed(e.to_string())))
    {
        Outcome::Stored(answer) => Ok(Json(to_json(&answer))),
        Outcome::Rejected(error) => Err(error),
        // Once the log's writer has the frame, only a 200 or a broken connection is true: the
        // process ends, and the connection with it.
        Outcome::Unknown => std::future::pending().await,
    }
}

fn to_json(answer: &IngestResponse) -> Value {
    let rejected: Vec<Value> = answer
        .rejected
        .iter()
        .map(|(index, reason)| json!({"index": index, "reason": reason}))
        .collect();
    json!({"accepted": answer.accepted, "rejected_total": answer.rejected_total, "rejected": rejected})
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(key) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let key = key.to_str().unwrap_or_default();
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(ApiError::bad_request(
            format!("an Idempotency-Key has 1 to {MAX_KEY_BYTES} visible ASCII characters"),
            "",
        ));
    }
    Ok(Some(key.to_owned()))
}

/// A request whose body has been received.
struct Request {
    stream: String,
    unwrap: Option<String>,
    key: Option<String>,
    coding: Coding,
    wire: Bytes,
}

impl Request {
    async fn store(self, app: &App, ingest: &Ingest) -> Outcome {
        let Self {
            stream,
            unwrap,
            key,
            coding,
            wire,
        } = self;
        let limit = app.0.parts.body_bytes;
        let decompress = move || {
            let body = body::decompress(coding, wire, limit)?;
            let hash = hash(&body, unwrap.as_deref());
            Ok((body, unwrap, hash))
        };
        let (body, unwrap, hash) = match spawn_blocking(decompress)
            .await
            .unwrap_or_else(|e| Err(ApiError::failed(e.to_string())))
        {
            Ok(decompressed) => decompressed,
            Err(error) => return Outcome::Rejected(error),
        };
        let Some(key) = key else {
            return store(app, ingest, stream, body, unwrap, None).await;
        };
        let request_key = RequestKey {
            stream: stream.clone(),
            key: key.clone(),
        };
        let first = || store(app, ingest, stream, body, unwrap, Some((hash, key)));
        app.0
            .in_flight
            .once(
                &request_key,
                &hash,
                || ingest.key_state(&request_key, &hash),
                first,
            )
            .await
    }
}

/// Hash of what a key is bound to: the body, and how it is split.
fn hash(body: &[u8], unwrap: Option<&str>) -> BodyHash {
    let (mut hash, mut pace) = (Sha256::new(), Pace::default());
    for piece in body.chunks(Pace::PIECE) {
        hash.update(piece);
        pace.did(piece.len());
    }
    if let Some(member) = unwrap {
        hash.update(b"\0unwrap=");
        hash.update(member);
    }
    hash.finalize().into()
}

/// Splits a body, submits it to the log and waits until it is synced.
async fn store(
    app: &App,
    ingest: &Ingest,
    stream: String,
    body: Bytes,
    unwrap: Option<String>,
    idempotency: Option<(BodyHash, String)>,
) -> Outcome {
    let (app, ingest) = (app.clone(), ingest.clone());
    let stored = spawn_blocking(move || {
        let parts = &app.0.parts;
        let batch = match body::split(
            &body,
            unwrap.as_deref(),
            parts.record_bytes,
            parts.cut_bytes,
        ) {
            Ok(batch) => batch,
            Err(error) => return Outcome::Rejected(error),
        };
        if batch.records.is_empty() {
            return Outcome::Stored(IngestResponse::default());
        }
        let mut submission = batch.into_submission("http", &stream);
        submission.attributes.idempotency = idempotency;
        match ingest
            .submit(submission, false)
            .and_then(|receipt| receipt.wait())
        {
            Ok(accepted) => Outcome::Stored(accepted.answer()),
            Err(IngestError::Unknown) => Outcome::Unknown,
            Err(error) => Outcome::Rejected(error.into()),
        }
    });
    stored
        .await
        .unwrap_or_else(|e| Outcome::Rejected(ApiError::failed(e.to_string())))
}
