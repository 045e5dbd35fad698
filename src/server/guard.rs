//! Who may ask: Host on every route (a web page must not reach a local service under a name of its
//! own), Origin on writes, tokens where configured. And what a connection does, for the limits of
//! [`super::connections`].

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body::{Frame, SizeHint};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::App;
use super::connections::{Activity, Phase};
use super::error::{ApiError, in_usual_form};
use crate::query::ClientId;

const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// Who asks, for routes that answer one asker not as another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Client {
    pub asker: ClientId,
    pub may_write: bool,
}

pub async fn guard(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let activity = request.extensions().get::<Arc<Activity>>().cloned();
    activity
        .iter()
        .for_each(|activity| activity.enter(Phase::Works));
    let is_reserve = activity
        .as_ref()
        .is_some_and(|activity| activity.is_reserve);
    let allowed = if is_reserve {
        check_reserve(&app, &request)
    } else {
        Ok(())
    };
    let response = match allowed.and_then(|()| check(&app, &request)) {
        Ok(client) => {
            request.extensions_mut().insert(client);
            in_usual_form(next.run(request).await).await
        }
        Err(refused) => refused.into_response(),
    };
    let Some(activity) = activity else {
        return response;
    };
    let mut response = response.map(|body| Body::new(Answered { body, activity }));
    if is_reserve {
        // One request each: the next one that must be answered needs it.
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Where all connections are taken, records are still taken in, and the process is watched.
fn check_reserve(app: &App, request: &Request) -> Result<(), ApiError> {
    let path = request.uri().path();
    let is_intake = request.method() == Method::POST && path.starts_with("/api/v1/streams/");
    if is_intake || matches!(path, "/healthz" | "/readyz") {
        return Ok(());
    }
    let message = format!(
        "all {} connections are taken (`[limits] connections`)",
        app.0.connections.most()
    );
    Err(ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "too_many_connections",
        message,
        "try again in a moment",
    ))
}

/// An answer's body; when it has been handed on whole, its connection waits for the next request.
struct Answered {
    body: Body,
    activity: Arc<Activity>,
}

impl HttpBody for Answered {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        self.activity.enter(Phase::AwaitsRequest);
    }
}

fn check(app: &App, request: &Request) -> Result<Client, ApiError> {
    let parts = &app.0.parts;
    let headers = request.headers();
    let host = headers
        .get(header::HOST)
        .and_then(|h| h.to_str().ok())
        .and_then(|h| h.parse::<Authority>().ok())
        .or_else(|| request.uri().authority().cloned());
    let is_known =
        |name: &str| LOOPBACK.iter().any(|l| name.eq_ignore_ascii_case(l)) || name == parts.host;
    // Off loopback any name may lead here: there the token keeps a page of another origin out.
    if !parts.is_public && !host.as_ref().is_some_and(|h| is_known(h.host())) {
        let message = "the Host header names another machine";
        return Err(ApiError::new(
            StatusCode::MISDIRECTED_REQUEST,
            "bad_host",
            message,
            "ask by 127.0.0.1 or localhost",
        ));
    }
    let is_write = !matches!(*request.method(), Method::GET | Method::HEAD);
    if is_write && let Some(origin) = headers.get(header::ORIGIN) {
        let own = origin
            .to_str()
            .ok()
            .and_then(|o| o.split_once("://"))
            .map(|(_, authority)| authority);
        if own != host.as_ref().map(Authority::as_str) {
            let message = "a page of another origin may not write here";
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "bad_origin",
                message,
                "",
            ));
        }
    }
    let mut client = Client {
        asker: ClientId::default(),
        may_write: true,
    };
    if !parts.tokens.is_empty() && request.uri().path() != "/healthz" {
        let given = headers
            .get(header::AUTHORIZATION)
            .and_then(|v| v.as_bytes().strip_prefix(b"Bearer "));
        let hash = Sha256::digest(given.unwrap_or_default());
        let known = parts
            .tokens
            .iter()
            .find(|(token, _)| bool::from(token.as_slice().ct_eq(hash.as_slice())));
        let is_question = request.uri().path().starts_with("/api/v1/sql");
        match known {
            None => {
                let message = "this server asks for a token";
                let hint = "send `Authorization: Bearer <token>`; `weir token create` makes one";
                return Err(ApiError::new(
                    StatusCode::UNAUTHORIZED,
                    "unauthorized",
                    message,
                    hint,
                ));
            }
            Some((_, false)) if is_write && !is_question => {
                return Err(ApiError::new(
                    StatusCode::FORBIDDEN,
                    "read_only",
                    "this token only reads",
                    "",
                ));
            }
            Some((hash, may_write)) => {
                client = Client {
                    asker: ClientId::from_token_hash(hash),
                    may_write: *may_write,
                }
            }
        }
    }
    Ok(client)
}
