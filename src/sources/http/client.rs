//! Requests of a source: its headers, redirects, time-outs, and what an answer's status means.

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use reqwest::header::{self, HeaderMap, HeaderName};
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use tokio::time::{Instant, timeout};

use crate::config::{HeaderValue, HttpRequest};
use crate::event::Micros;
use crate::sources::push::MAX_WAIT;
use crate::sources::{SourceError, Stop};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// After this time without a byte the system asks whether the server is there.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: usize = 5;
/// A secret is a line, not a file of any size.
const MAX_SECRET_BYTES: u64 = 16 << 10;
const MIN_RETRY_DELAY: Duration = Duration::from_millis(250);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(30);
/// The longest time that a server may ask to wait.
const MAX_ASKED_DELAY: Duration = Duration::from_secs(3_600);

/// Why a request failed. The source tries again.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    #[error("the client could not be set up: {0}")]
    Client(String),
    #[error("{path}: {reason}")]
    Secret { path: String, reason: String },
    #[error("{0}")]
    Connection(String),
    #[error("the server did not answer in time")]
    NoAnswer,
    #[error("the server answered {status}{hint}")]
    Status {
        status: StatusCode,
        hint: &'static str,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
    #[error("the answer is `{0}`, not JSON or server-sent events; is the URL right?")]
    NotRecords(String),
    #[error("the answer is compressed (`{0}`), which was not asked for")]
    Compressed(String),
}

impl HttpError {
    /// How long the server asks to wait before the next request.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl From<reqwest::Error> for HttpError {
    fn from(error: reqwest::Error) -> Self {
        // URLs may have secrets in their parameters.
        Self::Connection(causes(&error.without_url()))
    }
}

/// An error with its causes, of which the last says what happened.
fn causes(error: &dyn Error) -> String {
    let mut texts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if texts.last() != Some(&text) {
            texts.push(text);
        }
        source = cause.source();
    }
    texts.join(": ")
}

/// Sends the requests of a source.
pub(super) struct Requester {
    client: Client,
    pub url: Url,
    headers: BTreeMap<String, HeaderValue>,
}

impl Requester {
    pub fn new(request: &HttpRequest) -> Result<Self, HttpError> {
        let failed = |e: &dyn Error| HttpError::Client(causes(e));
        let url = Url::parse(&request.url).map_err(|e| failed(&e))?;
        let client = Client::builder()
            .user_agent(concat!("weir/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(TCP_KEEPALIVE)
            .redirect(redirects(!request.headers.is_empty()))
            .build()
            .map_err(|e| failed(&e))?;
        Ok(Self {
            client,
            url,
            headers: request.headers.clone(),
        })
    }

    /// A request with the source's headers, whose secrets are read now: they may have changed.
    pub fn get(&self, url: &Url, accept: &'static str) -> Result<RequestBuilder, HttpError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, header::HeaderValue::from_static(accept));
        for (name, value) in &self.headers {
            let name = HeaderName::from_bytes(name.as_bytes());
            let name = name.map_err(|e| HttpError::Client(e.to_string()))?;
            headers.insert(name, header_value(value)?);
        }
        // Compression of a stream would delay its records.
        headers.insert(
            header::ACCEPT_ENCODING,
            header::HeaderValue::from_static("identity"),
        );
        Ok(self.client.get(url.clone()).headers(headers))
    }
}

/// The error of a source that cannot continue.
pub(super) fn source_error(url: &str, reason: &dyn ToString) -> SourceError {
    SourceError::Http {
        url: url.to_owned(),
        reason: reason.to_string(),
    }
}

fn header_value(value: &HeaderValue) -> Result<header::HeaderValue, HttpError> {
    match value {
        HeaderValue::Text(text) => {
            header::HeaderValue::from_str(text).map_err(|e| HttpError::Client(e.to_string()))
        }
        HeaderValue::File { prefix, path } => {
            let wrong = |reason: String| HttpError::Secret {
                path: path.display().to_string(),
                reason,
            };
            let length = std::fs::metadata(path).map_err(|e| wrong(e.to_string()))?;
            if length.len() > MAX_SECRET_BYTES {
                return Err(wrong("it is longer than a header may be".into()));
            }
            let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
            let text = format!("{prefix}{}", text.trim_end_matches(['\n', '\r']));
            let mut value = header::HeaderValue::from_str(&text)
                .map_err(|_| wrong("it is not one line of text".into()))?;
            value.set_sensitive(true);
            Ok(value)
        }
    }
}

/// Follows a few redirects; with headers, which may be secrets, only on the same server.
fn redirects(has_headers: bool) -> Policy {
    Policy::custom(move |attempt| {
        let is_other = attempt
            .previous()
            .first()
            .is_some_and(|first| first.origin() != attempt.url().origin());
        if attempt.previous().len() > MAX_REDIRECTS {
            attempt.error("more than 5 redirects")
        } else if has_headers && is_other {
            attempt.error(
                "the redirect names another server, which must not get the headers; change `url`",
            )
        } else {
            attempt.follow()
        }
    })
}

/// Refuses an answer without records: an error's, a page for people, a compressed one.
pub(super) fn check(response: &Response, now: Micros) -> Result<(), HttpError> {
    let text = |name: HeaderName| response.headers().get(name).and_then(|v| v.to_str().ok());
    let status = response.status();
    if status != StatusCode::OK {
        let hint = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                "; check `token_file` and `headers`"
            }
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => "; check `url`",
            _ => "",
        };
        let retry_after = text(header::RETRY_AFTER).and_then(|value| retry_after(value, now));
        return Err(HttpError::Status {
            status,
            hint,
            retry_after,
        });
    }
    if let Some(encoding) = text(header::CONTENT_ENCODING)
        && !encoding.eq_ignore_ascii_case("identity")
    {
        return Err(HttpError::Compressed(encoding.to_owned()));
    }
    let media_type = text(header::CONTENT_TYPE).map(super::body::media_type);
    match media_type.filter(|of_answer| of_answer == "text/html") {
        Some(html) => Err(HttpError::NotRecords(html)),
        None => Ok(()),
    }
}

/// How long a header `Retry-After` asks to wait: a number of seconds, or a date.
fn retry_after(value: &str, now: Micros) -> Option<Duration> {
    let value = value.trim();
    let wait = match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let at = chrono::DateTime::parse_from_rfc2822(value).ok()?;
            let wait = at.timestamp_micros().saturating_sub(now);
            Duration::from_micros(u64::try_from(wait).unwrap_or(0))
        }
    };
    Some(wait.min(MAX_ASKED_DELAY))
}

/// Delays between attempts, each twice as long as the one before.
pub(super) struct Backoff(Duration);

impl Backoff {
    pub fn new() -> Self {
        Self(MIN_RETRY_DELAY)
    }

    /// The last attempt succeeded.
    pub fn reset(&mut self) {
        self.0 = MIN_RETRY_DELAY;
    }

    /// The next delay: at least what the server asked for, and up to half as long again, so that
    /// many clients do not come back together.
    pub fn next(&mut self, asked: Option<Duration>) -> Duration {
        let asked = asked.unwrap_or_default().min(MAX_ASKED_DELAY);
        let delay = self.0.max(asked);
        self.0 = (self.0 * 2).min(MAX_RETRY_DELAY);
        delay
            + delay
                .min(MAX_RETRY_DELAY)
                .mul_f64(rand::random::<f64>() / 2.0)
    }
}

/// How waiting for something ended.
pub(super) enum Waited<T> {
    Done(T),
    TimedOut,
    /// The source is to stop.
    Stopped,
}

/// Waits for a future, but not longer than `limit`, and not after the source is to stop.
pub(super) async fn wait<T>(
    stop: &Stop,
    limit: Duration,
    future: impl Future<Output = T>,
) -> Waited<T> {
    let mut future = std::pin::pin!(future);
    let started = Instant::now();
    loop {
        if stop.is_requested() {
            return Waited::Stopped;
        }
        match timeout(MAX_WAIT, &mut future).await {
            Ok(done) => return Waited::Done(done),
            Err(_) if started.elapsed() >= limit => return Waited::TimedOut,
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = 1_445_412_480_000_000;
        for (value, seconds) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Wed, 21 Oct 2015 07:29:30 GMT", Some(90)),
            ("Wed, 21 Oct 2015 07:00:00 GMT", Some(0)),
            ("9999999", Some(3_600)),
            ("soon", None),
            ("-1", None),
        ] {
            assert_eq!(
                retry_after(value, now),
                seconds.map(Duration::from_secs),
                "{value}"
            );
        }
    }

    #[test]
    fn delays_grow_and_are_at_least_what_is_asked() {
        let mut backoff = Backoff::new();
        let delays: Vec<Duration> = (0..9).map(|_| backoff.next(None)).collect();
        assert!(delays[0] >= MIN_RETRY_DELAY && delays[0] <= MIN_RETRY_DELAY * 3 / 2);
        assert!(delays[8] >= MAX_RETRY_DELAY && delays[8] <= MAX_RETRY_DELAY * 3 / 2);
        let asked = Duration::from_secs(600);
        let delay = backoff.next(Some(asked));
        assert!(delay >= asked && delay <= asked + MAX_RETRY_DELAY / 2);
        assert!(backoff.next(Some(Duration::MAX)) <= MAX_ASKED_DELAY + MAX_RETRY_DELAY / 2);
        backoff.reset();
        assert!(backoff.next(None) <= MIN_RETRY_DELAY * 3 / 2);
    }
}
