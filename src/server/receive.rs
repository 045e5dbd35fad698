//! Receives bodies, limited in time and size. A body reserves memory as it arrives, so that one that
//! is only announced holds none; if there is none left, the body that has stalled longest is given
//! up for it.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use futures::StreamExt;
use tokio::sync::OwnedSemaphorePermit;

use super::App;
use super::body::too_large;
use super::connections::{Activity, Phase};
use super::error::ApiError;
use crate::ingest::IngestError;

/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a body waits for the memory of one that was given up.
const ROOM_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum body of a request that is not intake.
const MAX_SMALL_BYTES: usize = 1 << 20;

/// A body's part of the memory for all bodies.
pub struct Room {
    app: App,
    permit: Option<OwnedSemaphorePermit>,
}

impl Room {
    fn new(app: &App) -> Self {
        Self {
            app: app.clone(),
            permit: None,
        }
    }

    /// Reserves memory for a body of `bytes` in total.
    pub async fn grow_to(&mut self, bytes: usize) -> Result<(), ApiError> {
        let inner = &self.app.0;
        let own = self
            .permit
            .as_ref()
            .map_or(0, OwnedSemaphorePermit::num_permits);
        let wanted = (bytes.min(inner.parts.bodies_bytes) >> 10).max(1);
        let Some(more) = wanted
            .checked_sub(own)
            .and_then(|more| u32::try_from(more).ok())
            .filter(|more| *more > 0)
        else {
            return Ok(());
        };
        let got = match inner.bodies.clone().try_acquire_many_owned(more) {
            Ok(permit) => Some(permit),
            Err(_) if inner.connections.close_stalled_body() => {
                let freed = inner.bodies.clone().acquire_many_owned(more);
                tokio::time::timeout(ROOM_TIMEOUT, freed)
                    .await
                    .ok()
                    .and_then(Result::ok)
            }
            Err(_) => None,
        };
        let got = got.ok_or(IngestError::Full {
            limit: inner.parts.bodies_bytes,
            unit: "bytes",
        })?;
        match &mut self.permit {
            Some(permit) => permit.merge(got),
            None => self.permit = Some(got),
        }
        Ok(())
    }
}

/// A received body and its memory.
pub struct Received {
    /// The body as received, possibly compressed.
    pub bytes: Bytes,
    /// Must live as long as the bytes.
    pub room: Room,
}

/// Reads a body of at most `limit` bytes.
pub async fn receive(
    app: &App,
    activity: Option<Arc<Activity>>,
    headers: &HeaderMap,
    body: Body,
    limit: usize,
) -> Result<Received, ApiError> {
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > limit as u64) {
        return Err(too_large(limit));
    }
    let mut room = Room::new(app);
    let given_up = async {
        match &activity {
            Some(activity) => activity.must_close().await,
            None => std::future::pending().await,
        }
    };
    let enter = |phase| activity.iter().for_each(|activity| activity.enter(phase));
    enter(Phase::ReadingBody);
    let read = async {
        let (mut stream, mut out) = (body.into_data_stream(), bytes::BytesMut::new());
        while let Some(chunk) = stream.next().await {
            let chunk = chunk
                .map_err(|e| ApiError::bad_request(format!("the body ended early: {e}"), ""))?;
            if out.len() + chunk.len() > limit {
                return Err(too_large(limit));
            }
            activity
                .iter()
                .for_each(|activity| activity.progress(chunk.len()));
            room.grow_to(out.len() + chunk.len()).await?;
            out.extend_from_slice(&chunk);
        }
        Ok(out.freeze())
    };
    let slow = |reason: &str| {
        ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "slow_body",
            reason,
            "send it again, without pauses",
        )
    };
    let bytes = tokio::select! {
        read = read => read?,
        () = tokio::time::sleep(BODY_TIMEOUT) => return Err(slow("the body took longer than 30 s")),
        () = given_up => return Err(slow("the body stalled while others need its memory (`[limits] connections`, `memory`)")),
    };
    enter(Phase::Working);
    Ok(Received { bytes, room })
}

/// The body of a request that is not intake.
pub struct Small(pub Bytes);

impl FromRequest<App> for Small {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let activity = parts.extensions.get::<Arc<Activity>>().cloned();
        let received = receive(app, activity, &parts.headers, body, MAX_SMALL_BYTES).await?;
        Ok(Self(received.bytes))
    }
}
