//! The beginning of the answer to one request, for a look at its records: nothing is stored, and
//! nothing is repeated.

use std::collections::BTreeMap;

use reqwest::header;
use tokio::time::{Instant, timeout_at};

use super::body::Body;
use super::client::{HttpError, Requester, check, shown, source_error, without_parameters};
use crate::config::HttpRequest;
use crate::sources::SourceError;
use crate::sources::sample::{Sample, SampleLimits, Shape};

const ACCEPT: &str = "application/json, application/x-ndjson, text/event-stream;q=0.9, */*;q=0.5";

/// Requests a URL, and reads until the answer ends or a limit is reached.
///
/// # Errors
///
/// The server cannot be reached, or answers without records.
pub(crate) fn sample(url: &str, limits: &SampleLimits) -> Result<Sample, SourceError> {
    let request = HttpRequest {
        url: url.to_owned(),
        headers: BTreeMap::new(),
    };
    let address = without_parameters(url);
    let requester = Requester::new(&request).map_err(|e| source_error(address, &e))?;
    let address = shown(&requester.url);
    super::runtime(&address)?
        .block_on(read(&requester, limits))
        .map_err(|e| source_error(&address, &e))
}

async fn read(requester: &Requester, limits: &SampleLimits) -> Result<Sample, HttpError> {
    let deadline = Instant::now() + limits.time;
    let request = requester.get(&requester.url, ACCEPT)?;
    let response = timeout_at(deadline, request.send()).await;
    let mut response = response
        .map_err(|_| HttpError::NoAnswer)?
        .map_err(HttpError::from)?;
    check(&response, 0)?;
    let content_type = response.headers().get(header::CONTENT_TYPE);
    let mut body = Body::new(content_type.and_then(|value| value.to_str().ok()));
    let (mut content, mut messages) = (Vec::new(), Vec::new());
    let mut has_ended = false;
    while content.len() < limits.bytes {
        // After the deadline, and after a lost connection, what came until then is the sample.
        let Ok(Ok(chunk)) = timeout_at(deadline, response.chunk()).await else {
            break;
        };
        let Some(chunk) = chunk else {
            has_ended = true;
            break;
        };
        content.extend_from_slice(&chunk);
        if let Some(bytes) = body.decide(&chunk, limits.record_bytes)
            && let Body::Events(events) = &mut body
        {
            events.feed(&bytes, &mut |event| messages.push(event.data.to_vec()));
        }
        let lines = memchr::memchr_iter(b'\n', &chunk).count();
        if messages.len() >= limits.records || limits.has_enough_lines(&content, lines) {
            break;
        }
    }
    let is_stream = matches!(body, Body::Events(_));
    Ok(Sample {
        shape: if is_stream {
            Shape::Messages(messages)
        } else {
            Shape::Content(content)
        },
        has_ended: has_ended && !is_stream,
    })
}
