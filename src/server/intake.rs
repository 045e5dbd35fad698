//! `POST /api/v1/streams/{stream}/events`: one body is one frame; accepted with its 200.

use std::collections::{HashMap, VecDeque};
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use futures::StreamExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::{OnceCell, OwnedSemaphorePermit};

use super::App;
use super::error::ApiError;
use crate::ingest::{Ingest, IngestError, Submission};
use crate::operators::Answer;
use crate::sources::message;
use crate::wal::{About, Kind, Records, RecordsBuilder};

/// Answers remembered under their keys.
const KEYS: usize = 100_000;
const KEY_BYTES: usize = 128;
/// A body must have come in by then.
const BODY_TIME: Duration = Duration::from_secs(30);

type Cell = Arc<OnceCell<Answer>>;

/// What was answered to POSTs with a key, or is about to be.
#[derive(Default)]
pub struct IdempotencyKeys(Mutex<Remembered>);

#[derive(Default)]
struct Remembered {
    cells: HashMap<String, ([u8; 32], Cell)>,
    order: VecDeque<String>,
}

impl IdempotencyKeys {
    pub fn remember(&self, before: Vec<(String, [u8; 32], Answer)>) {
        let mut remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, hash, answer) in before {
            remembered.order.push_back(key.clone());
            remembered.cells.insert(key, (hash, Arc::new(OnceCell::new_with(Some(answer)))));
        }
    }

    /// The cell in which the key's answer stands, or will stand; none if the key was used with another body.
    fn cell(&self, key: &str, hash: [u8; 32]) -> Option<Cell> {
        let mut remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((before, cell)) = remembered.cells.get(key) {
            return (*before == hash).then(|| cell.clone());
        }
        let cell = Cell::default();
        remembered.cells.insert(key.to_owned(), (hash, cell.clone()));
        remembered.order.push_back(key.to_owned());
        while remembered.order.len() > KEYS {
            if let Some(oldest) = remembered.order.pop_front() {
                remembered.cells.remove(&oldest);
            }
        }
        Some(cell)
    }
}

/// Takes events in: an object, an array of objects, or one object per line; also gzipped. With the header `Idempotency-Key`, a
/// repeated request gets the first one's answer and adds nothing.
#[utoipa::path(post, path = "/api/v1/streams/{stream}/events", params(("stream" = String, Path)),
    request_body(content = String, content_type = "application/json"),
    responses((status = 200, description = "durably stored: {accepted, rejected_total, rejected}"), (status = 400), (status = 404),
        (status = 413), (status = 415), (status = 422), (status = 429), (status = 503)))]
pub async fn post_events(
    State(app): State<App>,
    Path(stream): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let off = || {
        let message = "no records are taken in at present: weir is starting, stopping, or set so";
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_taking", message, "try again in a moment")
    };
    let ingest = app.ingest().ok_or_else(off)?;
    if !ingest.catalog().streams.contains_key(&stream) {
        let known = ingest.catalog().streams.keys().cloned().collect::<Vec<_>>().join(", ");
        let message = format!("there is no stream `{stream}`; there are: {known}");
        return Err(ApiError::new(StatusCode::NOT_FOUND, "no_stream", message, ""));
    }
    check_type(&headers)?;
    let key = idempotency_key(&headers)?;
    let _admitted = admit(&app, &headers)?;
    let body = read_body(&headers, body, app.0.parts.body_bytes).await?;
    let hash: [u8; 32] = Sha256::digest(&body).into();
    let store = || async {
        let (ingest, stream, key, app) = (ingest.clone(), stream.clone(), key.clone(), app.clone());
        let stored = tokio::task::spawn_blocking(move || store(&app, &ingest, stream, &body, key.map(|k| (hash, k))))
            .await
            .map_err(|e| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", e.to_string(), "see the log"))?;
        match stored {
            // Behind the log's writer only a 200 or a broken connection is true: the process ends, and the connection with it.
            Err(Refusal::Unknown) => std::future::pending().await,
            Err(Refusal::Told(error)) => Err(error),
            Ok(answer) => Ok(answer),
        }
    };
    let answer = match &key {
        None => store().await?,
        Some(key) => {
            let cell = app.0.keys.cell(key, hash).ok_or_else(|| {
                let message = "this Idempotency-Key was used with another body";
                ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "key_reused", message, "choose a new key for each body")
            })?;
            cell.get_or_try_init(store).await?.clone()
        }
    };
    let rejected: Vec<Value> =
        answer.rejected.iter().map(|(index, reason)| json!({"index": index, "reason": reason})).collect();
    Ok(Json(json!({"accepted": answer.accepted, "rejected_total": answer.rejected_total, "rejected": rejected})))
}

fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let known = [
        "application/json",
        "application/x-ndjson",
        "application/ndjson",
        "text/plain",
        "application/x-www-form-urlencoded",
    ];
    let Some(given) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let given = given.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if known.contains(&given.as_str()) {
        return Ok(());
    }
    let message = format!("the body is {given}");
    Err(ApiError::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "media_type",
        message,
        "send application/json or application/x-ndjson",
    ))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    let key = key.to_str().unwrap_or_default();
    if key.is_empty() || key.len() > KEY_BYTES {
        return Err(ApiError::bad_request(
            format!("an Idempotency-Key has 1 to {KEY_BYTES} visible ASCII characters"),
            "",
        ));
    }
    Ok(Some(key.to_owned()))
}

/// Takes the body's share of the queue before it is read, so that many clients cannot fill the memory together. A body that does
/// not tell its length, or is packed, may be as large as the limit.
fn admit(app: &App, headers: &HeaderMap) -> Result<OwnedSemaphorePermit, ApiError> {
    let parts = &app.0.parts;
    let told = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
    let is_plain = !headers.contains_key(header::CONTENT_ENCODING);
    let bytes = told.filter(|_| is_plain).unwrap_or(parts.body_bytes).min(parts.body_bytes).min(parts.bodies_bytes);
    let kib = u32::try_from(bytes >> 10).unwrap_or(u32::MAX).max(1);
    app.0.bodies.clone().try_acquire_many_owned(kib).map_err(|_| IngestError::Full { limit: parts.bodies_bytes }.into())
}

async fn read_body(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let too_large = move || {
        let message = format!("the body has more than {limit} bytes (`[limits] body`)");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message, "send it in parts")
    };
    let read = async {
        let (mut stream, mut out) = (body.into_data_stream(), bytes::BytesMut::new());
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|e| ApiError::bad_request(e.to_string(), ""))?;
            if out.len() + chunk.len() > limit {
                return Err(too_large());
            }
            out.extend_from_slice(&chunk);
        }
        Ok(out.freeze())
    };
    let slow = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "slow_body", "the body took too long", "");
    let wire = tokio::time::timeout(BODY_TIME, read).await.map_err(slow)??;
    match headers.get(header::CONTENT_ENCODING).map(|v| v.as_bytes()) {
        None | Some(b"identity") => Ok(wire),
        Some(b"gzip") => {
            let mut out = Vec::new();
            flate2::bufread::MultiGzDecoder::new(&wire[..])
                .take(limit as u64 + 1)
                .read_to_end(&mut out)
                .map_err(|e| ApiError::bad_request(format!("gzip: {e}"), ""))?;
            if out.len() > limit { Err(too_large()) } else { Ok(out.into()) }
        }
        Some(_) => {
            let message = "the body's Content-Encoding is not known";
            Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "encoding", message, "use gzip or none"))
        }
    }
}

/// The records of a body, those over the limit cut.
struct Split {
    records: Records,
    cut: Vec<(u64, u64)>,
}

fn split(body: &[u8], limit: usize, cut_bytes: usize) -> Result<Split, ApiError> {
    let no_json =
        || ApiError::bad_request("the body is no JSON", "send an object, an array of objects, or one object per line");
    let body = body.trim_ascii();
    let is_json = |bytes: &[u8]| serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok();
    let parts: Vec<Vec<u8>> = if is_json(body) {
        message::records(body)
    } else {
        let lines: Vec<&[u8]> = body.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).filter(|l| !l.is_empty()).collect();
        if lines.len() < 2 || !lines.iter().any(|l| is_json(l)) {
            return Err(no_json());
        }
        lines.into_iter().flat_map(message::records).collect()
    };
    let (mut records, mut cut) = (RecordsBuilder::default(), Vec::new());
    for part in parts {
        if part.len() > limit {
            cut.push((records.len() as u64, part.len() as u64));
            records.push(&part[..cut_bytes.min(part.len())]);
        } else {
            records.push(&part);
        }
    }
    Ok(Split { records: records.finish(), cut })
}

/// Why a body got no answer yet: nothing of it is stored, or nobody knows.
enum Refusal {
    Told(ApiError),
    Unknown,
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self::Told(error)
    }
}

fn store(
    app: &App,
    ingest: &Ingest,
    stream: String,
    body: &[u8],
    key: Option<([u8; 32], String)>,
) -> Result<Answer, Refusal> {
    let parts = &app.0.parts;
    let Split { records, cut } = split(body, parts.record_bytes, parts.cut_bytes)?;
    if records.is_empty() {
        return Ok(Answer::default());
    }
    let submission = Submission {
        kind: Kind::Record,
        source: "http".into(),
        partition: String::new(),
        stream,
        records,
        first_position: 0,
        previous_position: 0,
        about: About { idempotency: key, cut, ..About::default() },
    };
    let receipt = ingest.submit(submission, false).map_err(ApiError::from)?;
    let accepted = match receipt.wait() {
        Err(IngestError::Unknown) => return Err(Refusal::Unknown),
        accepted => accepted.map_err(ApiError::from)?,
    };
    Ok(accepted.decoded.as_deref().map(Answer::new).unwrap_or_default())
}
