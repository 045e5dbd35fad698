//! A sink of type `http`: rows as webhooks, each request with an id and, if there is a secret, with
//! a signature (Standard Webhooks).
//!
//! | answer | means |
//! |---|---|
//! | 2xx | delivered |
//! | 408, 425, 429, 5xx, none | later again, not before `Retry-After` |
//! | 400, 409, 413, 422 | a row is refused: halves of the request are sent, until it is found |
//! | 3xx, any other 4xx | the sink halts |

mod signature;

use reqwest::Url;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use super::web::{
    EncodedRow, Endpoint, Outbox, RequestLimits, RetryAfter, WebAnswer, WebClient, check_stop,
    encode, secrets, sensitive,
};
use super::{Cursor, Delivery, SinkError, StoredCursor, Target, TargetContext};
use crate::config::sinks::HttpSink;
use signature::{Origin, SigningKey, delivery_id, signatures};

/// Bytes of a request's rows, unless one row is larger.
const MAX_REQUEST_BYTES: usize = 1 << 20;
/// Bytes of an answer that are read.
const MAX_ANSWER_BYTES: usize = 16 << 10;

/// Posts rows.
pub struct HttpTarget {
    context: TargetContext,
    def: HttpSink,
    open: Option<Open>,
    outbox: Outbox,
    retry_after: RetryAfter,
}

/// What exists between `open` and an error.
struct Open {
    client: WebClient,
    keys: Vec<SigningKey>,
    origin: Origin,
}

impl HttpTarget {
    /// Of this definition; connects when it is opened.
    pub fn new(def: &HttpSink, context: TargetContext) -> Result<Self, SinkError> {
        let limits = RequestLimits {
            rows: def.batch_rows,
            bytes: MAX_REQUEST_BYTES,
        };
        Ok(Self {
            context,
            def: def.clone(),
            open: None,
            outbox: Outbox::new(limits),
            retry_after: RetryAfter::default(),
        })
    }

    /// Sends rows, and halves of them where one is refused.
    fn send(&mut self, rows: &[EncodedRow]) -> Result<(), SinkError> {
        let mut parts = vec![rows];
        while let Some(part) = parts.pop() {
            check_stop(&self.context)?;
            let answer = self.post(part)?;
            match (verdict(answer.status), part) {
                (Verdict::Delivered, _) => part.iter().for_each(|row| self.outbox.settle(row)),
                (Verdict::Refused, [row]) => {
                    let now = self.context.clock.now();
                    let refused = row.refused(self.table(), answer.describe(), now);
                    self.context.dead_letters.add(vec![refused])?;
                    self.outbox.settle(row);
                }
                (Verdict::Refused, _) => {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
                (Verdict::Unavailable, _) => {
                    self.retry_after.note(&answer, &*self.context.clock);
                    return Err(SinkError::Unavailable(format!(
                        "the target answers with {}",
                        answer.describe()
                    )));
                }
                (Verdict::Halted, _) if answer.is_redirect() => return Err(answer.redirected()),
                (Verdict::Halted, _) => return Err(halted(&answer)),
            }
        }
        Ok(())
    }

    fn post(&self, rows: &[EncodedRow]) -> Result<WebAnswer, SinkError> {
        let closed = || SinkError::Unavailable("the sink is not open".into());
        let open = self.open.as_ref().ok_or_else(closed)?;
        let body = body(&self.context.name, self.table(), rows);
        let id = delivery_id(&open.origin, rows, &body);
        let timestamp = self.context.clock.now().div_euclid(1_000_000);
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", header(&id)?);
        headers.insert("webhook-timestamp", HeaderValue::from(timestamp));
        if !open.keys.is_empty() {
            let signatures = signatures(&open.keys, &id, timestamp, &body);
            headers.insert("webhook-signature", header(&signatures)?);
        }
        open.client.post(headers, body, MAX_ANSWER_BYTES)
    }

    fn table(&self) -> &str {
        self.context.tables.first().map_or("", |table| &table.name)
    }
}

impl Target for HttpTarget {
    fn open(&mut self, stored: StoredCursor) -> Result<Cursor, SinkError> {
        self.open = None;
        let def = &self.def;
        let keys = match &def.secret_file {
            Some(file) => SigningKey::parse(&secrets(file)?)?,
            None => Vec::new(),
        };
        let endpoint = Endpoint {
            url: url(&def.url)?,
            headers: headers(def)?,
            ca_file: def.ca_file.as_deref(),
            is_public_only: !def.allow_private,
        };
        self.open = Some(Open {
            client: WebClient::new(endpoint)?,
            keys,
            origin: Origin {
                sink: self.context.name.clone(),
                log: self.context.log,
                epoch: stored.cursor.epoch,
            },
        });
        self.outbox.continue_in(stored.cursor.epoch);
        Ok(stored.cursor)
    }

    fn deliver(&mut self, delivery: &mut Delivery) -> Result<(), SinkError> {
        self.retry_after.check(&*self.context.clock)?;
        self.outbox.begin();
        loop {
            let batch = delivery.next_batch()?;
            let is_last = batch.is_none();
            if let Some(batch) = batch {
                self.outbox.add(encode(&batch.rows, |_| ())?);
            }
            while let Some(rows) = self.outbox.next_request(is_last) {
                self.send(&rows)?;
            }
            if is_last {
                break;
            }
        }
        self.outbox.finish();
        Ok(())
    }

    fn order(&self) -> Vec<usize> {
        vec![0]
    }
}

/// What a status means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Delivered,
    /// Another request with fewer rows may be accepted.
    Refused,
    Unavailable,
    Halted,
}

fn verdict(status: u16) -> Verdict {
    match status {
        200..=299 => Verdict::Delivered,
        400 | 409 | 413 | 422 => Verdict::Refused,
        408 | 425 | 429 => Verdict::Unavailable,
        300..=499 => Verdict::Halted,
        _ => Verdict::Unavailable,
    }
}

/// What any row would get.
fn halted(answer: &WebAnswer) -> SinkError {
    let remedy = match answer.status {
        401 | 403 | 407 => "check `headers` and `secret_file`, and what the target permits",
        404 | 410 => "check `url`: the target does not know it",
        405 => "the target must accept POST at `url`",
        _ => "the target refuses whatever is sent; check `url` and `headers`",
    };
    SinkError::Halted(format!(
        "the target answers with {}; {remedy}, then `weir sinks resume NAME`",
        answer.describe()
    ))
}

fn url(text: &str) -> Result<Url, SinkError> {
    Url::parse(text).map_err(|e| SinkError::Halted(format!("url: {e}")))
}

/// The headers of every request, which the configuration has checked.
fn headers(def: &HttpSink) -> Result<HeaderMap, SinkError> {
    let mut headers = HeaderMap::new();
    for (name, value) in &def.headers {
        let name = HeaderName::from_bytes(name.as_bytes())
            .map_err(|e| SinkError::Halted(format!("headers: {e}")))?;
        headers.insert(name, sensitive(value)?);
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(headers)
}

fn header(value: &str) -> Result<HeaderValue, SinkError> {
    HeaderValue::from_str(value).map_err(|e| SinkError::Halted(format!("{value}: {e}")))
}

/// `{"sink": …, "table": …, "rows": […]}`.
fn body(sink: &str, table: &str, rows: &[EncodedRow]) -> Vec<u8> {
    let bytes: usize = rows.iter().map(|row| row.json.len() + 1).sum();
    let mut body = Vec::with_capacity(bytes + 64);
    body.extend_from_slice(b"{\"sink\":");
    body.extend_from_slice(serde_json::Value::from(sink).to_string().as_bytes());
    body.extend_from_slice(b",\"table\":");
    body.extend_from_slice(serde_json::Value::from(table).to_string().as_bytes());
    body.extend_from_slice(b",\"rows\":[");
    for (at, row) in rows.iter().enumerate() {
        if at > 0 {
            body.push(b',');
        }
        body.extend_from_slice(&row.json);
    }
    body.extend_from_slice(b"]}");
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_delivers_refuses_waits_or_halts() {
        for (statuses, expected) in [
            (&[200, 201, 202, 204, 299][..], Verdict::Delivered),
            (&[400, 409, 413, 422], Verdict::Refused),
            (&[408, 425, 429, 500, 502, 503, 504], Verdict::Unavailable),
            (&[301, 302, 307, 308], Verdict::Halted),
            (&[401, 403, 404, 405, 410, 415], Verdict::Halted),
        ] {
            for status in statuses {
                assert_eq!(verdict(*status), expected, "{status}");
            }
        }
    }

    #[test]
    fn a_body_has_sink_table_and_rows() {
        let row = |json: &str| EncodedRow {
            lsn: 1,
            ordinal: 0,
            json: json.into(),
            extra: (),
        };
        let body = body("hook", "a\"b", &[row("{\"n\":1}"), row("{\"n\":2}")]);
        assert_eq!(
            String::from_utf8_lossy(&body),
            r#"{"sink":"hook","table":"a\"b","rows":[{"n":1},{"n":2}]}"#
        );
    }
}
