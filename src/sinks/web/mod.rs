//! What the targets that are reached by HTTP share: a client with time-outs that follows no
//! redirect, answers of bounded size, and the rows of a delivery as requests ([`Outbox`]).

mod outbox;
mod resolver;

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Certificate, Client, Response, Url, redirect};
use tokio::runtime::{Builder, Runtime};

pub use outbox::{EncodedRow, Outbox, RequestLimits, encode};

use super::{SinkError, TargetContext};
use crate::clock::Clock;
use crate::event::Micros;
use resolver::{NotPublic, PublicAddresses};

/// Includes the look-up of the name and the handshake of TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(8);
/// Of a whole request: a stop waits for it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(25);
/// Servers close connections that are idle for longer.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a target may ask for no requests.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);
/// Characters of an answer that an error shows.
const SHOWN_CHARS: usize = 300;

/// What a client connects to.
pub struct Endpoint<'a> {
    pub url: Url,
    /// Sent with every request.
    pub headers: HeaderMap,
    /// Certificates that may sign the server's; the system's without it.
    pub ca_file: Option<&'a Path>,
    /// Whether it may connect to public addresses alone.
    pub is_public_only: bool,
}

/// Sends requests to one URL.
pub struct WebClient {
    client: Client,
    url: Url,
    runtime: Option<Runtime>,
}

/// What a target answered.
#[derive(Debug, Default)]
pub struct WebAnswer {
    pub status: u16,
    /// Its beginning, up to the limit of the request.
    pub body: Vec<u8>,
    /// Whether that is all of it.
    pub is_complete: bool,
    location: Option<String>,
    retry_after: Option<String>,
}

impl WebClient {
    /// A client that has not connected yet.
    pub fn new(endpoint: Endpoint<'_>) -> Result<Self, SinkError> {
        let halted = |e: &dyn Error| SinkError::Halted(causes(e));
        let mut builder = Client::builder()
            .user_agent(concat!("weir/", env!("CARGO_PKG_VERSION")))
            .default_headers(endpoint.headers)
            // A proxy would resolve names itself, without the check of their addresses.
            .no_proxy()
            // A redirect could lead to another server, with the headers.
            .redirect(redirect::Policy::none())
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(1);
        if let Some(file) = endpoint.ca_file {
            builder = builder.tls_certs_only(certificates(file)?);
        } else if endpoint.url.scheme() == "http" {
            // Needs no certificates, which a small container lacks.
            builder = builder.tls_certs_only([]);
        }
        if endpoint.is_public_only {
            builder = builder.dns_resolver(PublicAddresses);
        }
        let runtime = Builder::new_current_thread().enable_all().build();
        Ok(Self {
            client: builder.build().map_err(|e| halted(&e))?,
            url: endpoint.url,
            runtime: Some(runtime.map_err(|e| SinkError::Unavailable(e.to_string()))?),
        })
    }

    /// Sends a body and waits for the answer, of which it reads at most so many bytes.
    pub fn post(
        &self,
        headers: HeaderMap,
        body: Vec<u8>,
        max_answer: usize,
    ) -> Result<WebAnswer, SinkError> {
        let closed = || SinkError::Unavailable("the client is closed".into());
        let runtime = self.runtime.as_ref().ok_or_else(closed)?;
        let request = self.client.post(self.url.clone());
        let request = request.headers(headers).body(body);
        runtime.block_on(async {
            let response = request.send().await.map_err(not_sent)?;
            Ok(read(response, max_answer).await)
        })
    }
}

impl Drop for WebClient {
    fn drop(&mut self) {
        // A name that is being looked up must not delay a stop.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl WebAnswer {
    /// Status and beginning of the answer, for a message.
    pub fn describe(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let shown: String = text.chars().take(SHOWN_CHARS).collect();
        match (&self.location, shown.as_str()) {
            (Some(location), _) if self.is_redirect() => {
                let location: String = location.chars().take(SHOWN_CHARS).collect();
                format!("status {}, to {location}", self.status)
            }
            (_, "") => format!("status {}", self.status),
            _ => format!("status {}: {shown}", self.status),
        }
    }

    /// Whether it refers to another URL.
    pub fn is_redirect(&self) -> bool {
        (300..400).contains(&self.status)
    }

    /// A redirect halts a sink.
    pub fn redirected(&self) -> SinkError {
        SinkError::Halted(format!(
            "the target redirects ({}), which is not followed; write the new address as `url` if \
             it is the right one, then restart weir",
            self.describe()
        ))
    }
}

/// Until when a target has asked for no requests.
#[derive(Debug, Default)]
pub struct RetryAfter(Option<Duration>);

impl RetryAfter {
    /// What a refused request says.
    pub fn note(&mut self, answer: &WebAnswer, clock: &dyn Clock) {
        let header = answer.retry_after.as_deref();
        let delay = header.and_then(|header| delay(header, clock.now()));
        self.0 = delay.map(|delay| clock.monotonic() + delay);
    }

    /// Fails before that time.
    pub fn check(&self, clock: &dyn Clock) -> Result<(), SinkError> {
        let left = self
            .0
            .and_then(|until| until.checked_sub(clock.monotonic()));
        match left.filter(|left| !left.is_zero()) {
            None => Ok(()),
            Some(left) => Err(SinkError::Unavailable(format!(
                "the target wants no requests for {} s more (Retry-After)",
                left.as_secs() + 1
            ))),
        }
    }
}

/// The delay that a header asks for, in seconds or as a date, within bounds.
fn delay(header: &str, now: Micros) -> Option<Duration> {
    let seconds = match header.trim().parse::<u64>() {
        Ok(seconds) => seconds,
        Err(_) => {
            let date = chrono::DateTime::parse_from_rfc2822(header.trim()).ok()?;
            u64::try_from(date.timestamp() - now.div_euclid(1_000_000)).unwrap_or(0)
        }
    };
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

/// Fails once weir stops: the rest of a delivery comes after the next start.
pub fn check_stop(context: &TargetContext) -> Result<(), SinkError> {
    if context.stop.is_requested() {
        return Err(SinkError::Unavailable("weir stops".into()));
    }
    Ok(())
}

/// The secrets in a file, one a line.
pub fn secrets(file: &Path) -> Result<Vec<String>, SinkError> {
    let halted = |problem: &str| {
        SinkError::Halted(format!(
            "{}: {problem}; repair it, then `weir sinks resume NAME`",
            file.display()
        ))
    };
    let text = std::fs::read_to_string(file).map_err(|e| halted(&e.to_string()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let secrets: Vec<String> = lines.map(str::to_owned).collect();
    if secrets.is_empty() {
        return Err(halted("the file has no secret"));
    }
    Ok(secrets)
}

/// A header whose value is not shown in logs.
pub fn sensitive(value: &str) -> Result<HeaderValue, SinkError> {
    let mut header = HeaderValue::from_str(value).map_err(|_| {
        SinkError::Halted(
            "a secret has characters that a header cannot have; repair it, then \
             `weir sinks resume NAME`"
                .into(),
        )
    })?;
    header.set_sensitive(true);
    Ok(header)
}

fn certificates(file: &Path) -> Result<Vec<Certificate>, SinkError> {
    let halted = |problem: &dyn std::fmt::Display| {
        SinkError::Halted(format!(
            "ca_file: {}: {problem}; write the path of certificates in PEM, then restart weir",
            file.display()
        ))
    };
    let bytes = std::fs::read(file).map_err(|e| halted(&e))?;
    let certificates = Certificate::from_pem_bundle(&bytes).map_err(|e| halted(&causes(&e)))?;
    if certificates.is_empty() {
        return Err(halted(&"the file has no certificate"));
    }
    Ok(certificates)
}

/// A request without an answer.
fn not_sent(error: reqwest::Error) -> SinkError {
    // URLs of webhooks have secrets in them.
    let error = error.without_url();
    let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(error) = cause {
        if let Some(not_public) = error.downcast_ref::<NotPublic>() {
            return SinkError::Halted(not_public.to_string());
        }
        cause = error.source();
    }
    SinkError::Unavailable(causes(&error))
}

/// An error with its causes.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let shown = error.to_string();
        if !text.ends_with(&shown) {
            text = format!("{text}: {shown}");
        }
        cause = error.source();
    }
    text
}

/// The status is the answer: a body that breaks off is not complete.
async fn read(mut response: Response, max_bytes: usize) -> WebAnswer {
    let header = |name: HeaderName| {
        let value = response.headers().get(name);
        value
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned)
    };
    let mut answer = WebAnswer {
        status: response.status().as_u16(),
        location: header(LOCATION),
        retry_after: header(RETRY_AFTER),
        ..WebAnswer::default()
    };
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                let room = max_bytes - answer.body.len();
                answer
                    .body
                    .extend_from_slice(&chunk[..chunk.len().min(room)]);
                if chunk.len() > room {
                    return answer;
                }
            }
            Ok(None) => {
                answer.is_complete = true;
                return answer;
            }
            Err(_) => return answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_seconds_or_dates_within_bounds() {
        // Wed, 21 Oct 2015 07:28:00 GMT.
        let now = 1_445_412_480_000_000;
        for (header, expected) in [
            ("0", Some(0)),
            (" 17 ", Some(17)),
            ("86400", Some(300)),
            ("Wed, 21 Oct 2015 07:28:30 GMT", Some(30)),
            ("Wed, 21 Oct 2015 07:27:00 GMT", Some(0)),
            ("Thu, 22 Oct 2015 07:28:00 GMT", Some(300)),
            ("soon", None),
            ("-1", None),
        ] {
            let found = delay(header, now).map(|delay| delay.as_secs());
            assert_eq!(found, expected, "{header}");
        }
    }

    #[test]
    fn the_beginning_of_an_answer_is_shown_on_one_line() {
        let answer = |status, body: &str, location: Option<&str>| WebAnswer {
            status,
            body: body.into(),
            location: location.map(str::to_owned),
            ..WebAnswer::default()
        };
        insta::assert_snapshot!([
            answer(400, "{\n  \"error\": \"no\"\n}", None).describe(),
            answer(422, "", None).describe(),
            answer(200, &"é".repeat(400), None).describe().chars().count().to_string(),
            answer(302, "moved", Some("https://example.org/")).redirected().to_string(),
            answer(304, "", None).redirected().to_string(),
        ]
        .join("\n"), @r#"
        status 400: { "error": "no" }
        status 422
        312
        the target redirects (status 302, to https://example.org/), which is not followed; write the new address as `url` if it is the right one, then restart weir
        the target redirects (status 304), which is not followed; write the new address as `url` if it is the right one, then restart weir
        "#);
    }
}
