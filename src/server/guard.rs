//! Who may send requests: checks Host on every route (a web page must not reach a local service under
//! a name of its own), Origin on writes, and tokens where configured. Also records what a connection
//! does, for the limits of [`super::connections`].

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
use super::error::{ApiError, unify};
use super::page;
use crate::query::ClientId;

const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// The sender of a request, for routes whose answer depends on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Client {
    /// Known by the hash of its token.
    pub asker: ClientId,
    /// Its token allows writing, or none is needed.
    pub may_write: bool,
}

pub async fn guard(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let activity = request.extensions().get::<Arc<Activity>>().cloned();
    activity
        .iter()
        .for_each(|activity| activity.enter(Phase::Working));
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
            unify(next.run(request).await).await
        }
        Err(error) => error.into_response(),
    };
    let Some(activity) = activity else {
        return response;
    };
    let mut response = response.map(|body| Body::new(ResponseBody { body, activity }));
    if is_reserve {
        // One request per connection: the next important one needs it.
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// What is answered while all connections are taken: intake and health checks.
fn check_reserve(app: &App, request: &Request) -> Result<(), ApiError> {
    let path = request.uri().path();
    let is_intake = request.method() == Method::POST && path.starts_with("/api/v1/streams/");
    if is_intake || matches!(path, "/healthz" | "/readyz") {
        return Ok(());
    }
    let message = format!(
        "all {} connections are taken (`[limits] connections`)",
        app.0.connections.max()
    );
    Err(ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "too_many_connections",
        message,
        "try again in a moment",
    ))
}

/// A response's body; when it is dropped, its connection waits for the next request.
struct ResponseBody {
    body: Body,
    activity: Arc<Activity>,
}

impl HttpBody for ResponseBody {
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

impl Drop for ResponseBody {
    fn drop(&mut self) {
        self.activity.enter(Phase::AwaitingRequest);
    }
}

/// Checks a request's host, origin and token.
fn check(app: &App, request: &Request) -> Result<Client, ApiError> {
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|h| h.to_str().ok())
        .and_then(|h| h.parse::<Authority>().ok())
        .or_else(|| request.uri().authority().cloned());
    // Off loopback any name may lead here: there the token keeps a page of another origin out.
    if !app.0.parts.is_public {
        check_host(host.as_ref(), &app.0.parts.host)?;
    }
    let is_write = !matches!(*request.method(), Method::GET | Method::HEAD);
    if is_write && let Some(origin) = request.headers().get(header::ORIGIN) {
        check_origin(origin, host.as_ref())?;
    }
    check_token(&app.0.parts.tokens, request, is_write)
}

fn check_host(host: Option<&Authority>, listening: &str) -> Result<(), ApiError> {
    let is_own =
        |name: &str| LOOPBACK.iter().any(|l| name.eq_ignore_ascii_case(l)) || name == listening;
    if host.is_some_and(|h| is_own(h.host())) {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::MISDIRECTED_REQUEST,
        "bad_host",
        "the Host header names another machine",
        "use 127.0.0.1 or localhost",
    ))
}

fn check_origin(origin: &HeaderValue, host: Option<&Authority>) -> Result<(), ApiError> {
    let authority = origin
        .to_str()
        .ok()
        .and_then(|o| o.split_once("://"))
        .map(|(_, authority)| authority);
    if authority == host.map(Authority::as_str) {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::FORBIDDEN,
        "bad_origin",
        "a page of another origin may not write here",
        "",
    ))
}

/// The client of a token; without tokens, on `/healthz` and for the page itself, anyone.
fn check_token(
    tokens: &[([u8; 32], bool)],
    request: &Request,
    is_write: bool,
) -> Result<Client, ApiError> {
    let path = request.uri().path();
    if tokens.is_empty() || path == "/healthz" || (!is_write && page::is_public(path)) {
        return Ok(Client {
            asker: ClientId::default(),
            may_write: true,
        });
    }
    let token = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|v| v.as_bytes().strip_prefix(b"Bearer "));
    let sent = Sha256::digest(token.unwrap_or_default());
    let accepted = tokens
        .iter()
        .find(|(hash, _)| bool::from(hash.as_slice().ct_eq(sent.as_slice())));
    let Some((hash, may_write)) = accepted else {
        return Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "this server needs a token",
            "send `Authorization: Bearer <token>`; `weir token create` creates one",
        ));
    };
    // Queries are POSTs that do not write.
    if !may_write && is_write && !path.starts_with("/api/v1/sql") {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "read_only",
            "this token is read-only",
            "",
        ));
    }
    Ok(Client {
        asker: ClientId::from_token_hash(hash),
        may_write: *may_write,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(host: &str) -> Authority {
        host.parse().expect("an authority")
    }

    #[test]
    fn only_names_of_this_machine_are_its_host() {
        for (host, is_own) in [
            ("localhost:8080", true),
            ("LOCALHOST", true),
            ("[::1]:80", true),
            ("10.0.0.7:8080", true),
            ("10.0.0.8:8080", false),
            ("localhost.example.com", false),
        ] {
            let checked = check_host(Some(&authority(host)), "10.0.0.7");
            assert_eq!(checked.is_ok(), is_own, "{host}");
        }
        assert!(check_host(None, "127.0.0.1").is_err());
    }

    #[test]
    fn pages_write_to_their_own_origin_only() {
        let host = authority("localhost:8080");
        for (origin, is_own) in [
            ("http://localhost:8080", true),
            ("http://localhost", false),
            ("https://example.com", false),
            ("null", false),
        ] {
            let checked = check_origin(&HeaderValue::from_static(origin), Some(&host));
            assert_eq!(checked.is_ok(), is_own, "{origin}");
        }
    }

    #[test]
    fn tokens_decide_what_a_client_may_do() {
        let hash = |token: &str| Sha256::digest(token).into();
        let tokens = [(hash("w"), true), (hash("r"), false)];
        for (token, path, is_write, expected) in [
            (None, "/healthz", false, Ok(true)),
            (None, "/", false, Ok(true)),
            (None, "/assets/app.js", false, Ok(true)),
            (None, "/api/v1/count", false, Err("unauthorized")),
            (Some("x"), "/api/v1/count", false, Err("unauthorized")),
            (Some("r"), "/api/v1/count", false, Ok(false)),
            (Some("r"), "/api/v1/sql", true, Ok(false)),
            (Some("r"), "/api/v1/backup", true, Err("read_only")),
            (Some("w"), "/api/v1/backup", true, Ok(true)),
        ] {
            let mut request = Request::builder().uri(path);
            if let Some(token) = token {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            let request = request.body(Body::empty()).expect("a request");
            let checked = check_token(&tokens, &request, is_write);
            let checked = checked.map(|c| c.may_write).map_err(|e| e.code);
            assert_eq!(checked, expected, "{token:?} {path}");
        }
    }
}
