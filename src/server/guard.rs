//! Who may ask: Host on every route (a web page must not reach a local service under a name of its own), Origin on writes,
//! tokens where configured.

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::App;
use super::error::ApiError;

const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

pub async fn guard(State(app): State<App>, request: Request, next: Next) -> Result<Response, ApiError> {
    let parts = &app.0.parts;
    let headers = request.headers();
    let host = headers
        .get(header::HOST)
        .and_then(|h| h.to_str().ok())
        .and_then(|h| h.parse::<Authority>().ok())
        .or_else(|| request.uri().authority().cloned());
    let is_known = |name: &str| LOOPBACK.iter().any(|l| name.eq_ignore_ascii_case(l)) || name == parts.host;
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
        let own = origin.to_str().ok().and_then(|o| o.split_once("://")).map(|(_, authority)| authority);
        if own != host.as_ref().map(Authority::as_str) {
            let message = "a page of another origin may not write here";
            return Err(ApiError::new(StatusCode::FORBIDDEN, "bad_origin", message, ""));
        }
    }
    if !parts.tokens.is_empty() && request.uri().path() != "/healthz" {
        let given = headers.get(header::AUTHORIZATION).and_then(|v| v.as_bytes().strip_prefix(b"Bearer "));
        let hash = Sha256::digest(given.unwrap_or_default());
        let known = parts.tokens.iter().find(|(token, _)| bool::from(token.as_slice().ct_eq(hash.as_slice())));
        let is_question = request.uri().path().starts_with("/api/v1/sql");
        match known {
            None => {
                let message = "this server asks for a token";
                let hint = "send `Authorization: Bearer <token>`; `weir token create` makes one";
                return Err(ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", message, hint));
            }
            Some((_, false)) if is_write && !is_question => {
                return Err(ApiError::new(StatusCode::FORBIDDEN, "read_only", "this token only reads", ""));
            }
            Some(_) => {}
        }
    }
    Ok(next.run(request).await)
}
