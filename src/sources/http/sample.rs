//! The beginning of the answer to one request, for a look at its records: nothing is stored, and
//! nothing is repeated.

use std::collections::BTreeMap;

use reqwest::Response;
use reqwest::header::{self, HeaderMap};
use tokio::time::{Instant, timeout_at};

use super::body::Body;
use super::client::{HttpError, Requester, check, source_error};
use crate::config::{HttpRequest, public_address};
use crate::sources::SourceError;
use crate::sources::message::is_complete_value;
use crate::sources::sample::{Sample, SampleLimits, Shape};

const ACCEPT: &str = "application/json, application/x-ndjson, text/event-stream;q=0.9, */*;q=0.5";
/// Bytes that are read to learn whether an answer ends. A longer document is not polled: it is what
/// `[limits] body` has by default.
const MAX_DOCUMENT_BYTES: usize = 16 << 20;

/// Where reading stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reached {
    /// The answer's end.
    End,
    /// There is enough for a sample.
    Limit,
    /// No more came in time, or the connection was lost.
    Silence,
}

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
    let address = public_address(url);
    let requester = Requester::new(&request).map_err(|e| source_error(&address, &e))?;
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
    let is_document = is_document(response.headers());
    let mut body = Body::new(content_type.and_then(|value| value.to_str().ok()));
    let (mut content, mut messages) = (Vec::new(), Vec::new());
    let mut reached = Reached::Limit;
    while content.len() < limits.bytes {
        // After the deadline, and after a lost connection, what came until then is the sample.
        let Ok(Ok(chunk)) = timeout_at(deadline, response.chunk()).await else {
            reached = Reached::Silence;
            break;
        };
        let Some(chunk) = chunk else {
            reached = Reached::End;
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
    if matches!(body, Body::Events(_)) {
        return Ok(Sample {
            shape: Shape::Messages(messages),
            has_ended: false,
        });
    }
    let mut has_ended = reached == Reached::End;
    // Lines of a document are looked at as if it ended after the last whole one: followed as a
    // stream, a document would be stored with every request.
    if !has_ended && is_lines(&content) {
        has_ended = is_document
            || reached == Reached::Limit && ends(&mut response, content.len(), deadline).await;
        if has_ended {
            let end = memchr::memrchr(b'\n', &content).map_or(0, |newline| newline + 1);
            content.truncate(end);
        }
    }
    Ok(Sample {
        shape: Shape::Content(content),
        has_ended,
    })
}

/// Whether an answer of which so many bytes were read ends before the deadline. What is left of it
/// is read, and not stored: no header says that a chunked answer is a document.
async fn ends(response: &mut Response, mut bytes: usize, deadline: Instant) -> bool {
    while bytes < MAX_DOCUMENT_BYTES && Instant::now() < deadline {
        match timeout_at(deadline, response.chunk()).await {
            Ok(Ok(Some(chunk))) => bytes += chunk.len(),
            Ok(Ok(None)) => return true,
            // The deadline, or a lost connection.
            _ => return false,
        }
    }
    false
}

/// Whether an answer is a document, which has an end: a stream has no length, no version, no time
/// of its last change, and no parts that can be requested.
fn is_document(headers: &HeaderMap) -> bool {
    [header::CONTENT_LENGTH, header::ETAG, header::LAST_MODIFIED]
        .into_iter()
        .any(|name| headers.contains_key(name))
        || headers
            .get(header::ACCEPT_RANGES)
            .is_some_and(|ranges| ranges.as_bytes().eq_ignore_ascii_case(b"bytes"))
}

/// Whether the first line is an object of its own.
fn is_lines(content: &[u8]) -> bool {
    let start = content.trim_ascii_start();
    let line = memchr::memchr(b'\n', start).map(|newline| &start[..newline]);
    start.first() == Some(&b'{') && line.is_some_and(is_complete_value)
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn headers_of_documents_are_those_that_a_stream_does_not_have() {
        for (name, value, expected) in [
            (header::CONTENT_LENGTH, "12", true),
            (header::ETAG, "\"a\"", true),
            (header::LAST_MODIFIED, "Wed, 01 May 2024 10:00:00 GMT", true),
            (header::ACCEPT_RANGES, "bytes", true),
            (header::ACCEPT_RANGES, "none", false),
            (header::TRANSFER_ENCODING, "chunked", false),
        ] {
            let header: (HeaderName, HeaderValue) = (name, HeaderValue::from_static(value));
            let headers: HeaderMap = [header].into_iter().collect();
            assert_eq!(is_document(&headers), expected, "{headers:?}");
        }
    }

    #[test]
    fn lines_begin_with_an_object_of_their_own() {
        for (content, expected) in [
            ("{\"a\":1}\n{\"a\"", true),
            ("\n{\"a\":1}\r\n", true),
            ("{\n\"a\":[", false),
            ("{\"a\":[{}", false),
            ("[{}\n", false),
            ("", false),
        ] {
            assert_eq!(is_lines(content.as_bytes()), expected, "{content}");
        }
    }
}
