//! A sink of type `elasticsearch`, also for OpenSearch: each row is a document under its key, and a
//! repeated row changes nothing (`bulk`).
//!
//! | answer | means |
//! |---|---|
//! | 200 | what is said of each row counts |
//! | 408, 429, 5xx, none | later again, not before `Retry-After` |
//! | 413 | halves of the request are sent, until the row is found that is too large |
//! | 3xx, any other 4xx | the sink halts |

mod bulk;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};

use super::web::{
    EncodedRow, Endpoint, Outbox, RequestLimits, RetryAfter, WebAnswer, WebClient, check_stop,
    encode, secrets, sensitive,
};
use super::{Batch, Cursor, Delivery, SinkError, SinkTable, StoredCursor, Target, TargetContext};
use crate::config::sinks::ElasticsearchSink;
use bulk::{Document, Item};

/// Bytes of a request's rows, unless one row is larger.
const MAX_REQUEST_BYTES: usize = 5 << 20;
/// Bytes of an answer: some hundred for a refused row. A request with a longer one is halved.
const MAX_ANSWER_BYTES: usize = 8 << 20;

/// Indexes documents.
pub struct ElasticsearchTarget {
    context: TargetContext,
    table: SinkTable,
    def: ElasticsearchSink,
    client: Option<WebClient>,
    epoch: u64,
    outbox: Outbox<Document>,
    retry_after: RetryAfter,
}

impl ElasticsearchTarget {
    /// Of this definition; connects when it is opened.
    pub fn new(def: &ElasticsearchSink, context: TargetContext) -> Result<Self, SinkError> {
        let missing = || SinkError::Halted("the sink has no table".into());
        let limits = RequestLimits {
            rows: def.batch_rows,
            bytes: MAX_REQUEST_BYTES,
        };
        Ok(Self {
            table: context.tables.first().cloned().ok_or_else(missing)?,
            context,
            def: def.clone(),
            client: None,
            epoch: 0,
            outbox: Outbox::new(limits),
            retry_after: RetryAfter::default(),
        })
    }

    fn encode(&self, batch: &Batch) -> Result<Vec<EncodedRow<Document>>, SinkError> {
        let (table, rows) = (&self.table, &batch.rows);
        let mut ids = bulk::ids(rows, &table.key)?;
        encode(rows, |at| Document {
            id: ids.get_mut(at).map(std::mem::take).unwrap_or_default(),
            is_deleted: table.is_retracted(rows, at),
        })
    }

    /// Sends rows, and halves of them where they are too large.
    fn send(&mut self, rows: &[EncodedRow<Document>]) -> Result<(), SinkError> {
        let mut parts = vec![rows];
        while let Some(part) = parts.pop() {
            check_stop(&self.context)?;
            let answer = self.post(part)?;
            let is_too_long = answer.status == 200 && answer.body.len() == MAX_ANSWER_BYTES;
            if (answer.status == 413 || is_too_long) && part.len() > 1 {
                let (first, second) = part.split_at(part.len() / 2);
                parts.extend([second, first]);
            } else if answer.status == 200 {
                self.settle(part, &answer)?;
            } else if let ([row], 413) = (part, answer.status) {
                self.refuse(&[(row, answer.describe())])?;
            } else {
                return Err(self.failed(&answer));
            }
        }
        Ok(())
    }

    fn post(&self, rows: &[EncodedRow<Document>]) -> Result<WebAnswer, SinkError> {
        let closed = || SinkError::Unavailable("the sink is not open".into());
        let client = self.client.as_ref().ok_or_else(closed)?;
        let body = bulk::body(rows, self.epoch);
        client.post(HeaderMap::new(), body, MAX_ANSWER_BYTES)
    }

    /// Does what the answer says of each row.
    fn settle(
        &mut self,
        rows: &[EncodedRow<Document>],
        answer: &WebAnswer,
    ) -> Result<(), SinkError> {
        let newest = bulk::version(self.epoch, self.table.table.applied());
        let items = bulk::items(&answer.body, newest).filter(|items| items.len() == rows.len());
        let Some(items) = items.filter(|_| answer.is_complete) else {
            return Err(SinkError::Unavailable(format!(
                "the answer is not one of `_bulk` to {} rows, check `url`: {}",
                rows.len(),
                answer.describe()
            )));
        };
        let (mut refused, mut error) = (Vec::new(), None);
        for (row, item) in rows.iter().zip(items) {
            match item {
                Item::Done => self.outbox.settle(row),
                Item::Refused(reason) => refused.push((row, reason)),
                Item::Unavailable(reason) => {
                    error.get_or_insert(SinkError::Unavailable(reason));
                }
                Item::Halted(reason) => error = Some(SinkError::Halted(reason)),
            }
        }
        self.refuse(&refused)?;
        error.map_or(Ok(()), Err)
    }

    fn refuse(&mut self, rows: &[(&EncodedRow<Document>, String)]) -> Result<(), SinkError> {
        if rows.is_empty() {
            return Ok(());
        }
        let (table, now) = (&self.table.name, self.context.clock.now());
        let mut letters = Vec::new();
        for (row, reason) in rows {
            letters.push(row.refused(table, reason.clone(), now));
        }
        self.context.dead_letters.add(letters)?;
        rows.iter().for_each(|(row, _)| self.outbox.settle(row));
        Ok(())
    }

    /// A request that was refused as a whole.
    fn failed(&mut self, answer: &WebAnswer) -> SinkError {
        let shown = answer.describe();
        let remedy = match answer.status {
            408 | 425 | 429 | 500.. => {
                self.retry_after.note(answer, &*self.context.clock);
                return SinkError::Unavailable(format!("the server answers with {shown}"));
            }
            300..=399 => return answer.redirected(),
            401 => "check `user` and `password_file`, or `api_key_file`",
            403 => "give the user the right to index and delete documents",
            404 | 405 => "check `url`: it must be that of Elasticsearch or OpenSearch",
            _ => "check `url` and `index`",
        };
        SinkError::Halted(format!(
            "the server answers with {shown}; {remedy}, then `weir sinks resume NAME`"
        ))
    }
}

impl Target for ElasticsearchTarget {
    fn open(&mut self, stored: StoredCursor) -> Result<Cursor, SinkError> {
        self.client = None;
        let endpoint = Endpoint {
            url: url(&self.def)?,
            headers: headers(&self.def)?,
            ca_file: self.def.ca_file.as_deref(),
            is_public_only: false,
        };
        self.client = Some(WebClient::new(endpoint)?);
        self.epoch = stored.cursor.epoch;
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
                let rows = self.encode(&batch)?;
                self.outbox.add(rows);
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

/// `URL/INDEX/_bulk`.
fn url(def: &ElasticsearchSink) -> Result<Url, SinkError> {
    let halted = |problem: &dyn std::fmt::Display| SinkError::Halted(format!("url: {problem}"));
    let mut url = Url::parse(&def.url).map_err(|e| halted(&e))?;
    url.path_segments_mut()
        .map_err(|()| halted(&"it cannot have a path"))?
        .pop_if_empty()
        .extend([&def.index, "_bulk"]);
    url.set_query(Some(&format!("filter_path={}", bulk::FILTER)));
    Ok(url)
}

fn headers(def: &ElasticsearchSink) -> Result<HeaderMap, SinkError> {
    let first = |file| -> Result<String, SinkError> { Ok(secrets(file)?.swap_remove(0)) };
    let authorization = match (&def.api_key_file, &def.user, &def.password_file) {
        (Some(file), ..) => Some(format!("ApiKey {}", first(file)?)),
        (None, Some(user), Some(file)) => {
            let pair = format!("{user}:{}", first(file)?);
            Some(format!("Basic {}", STANDARD.encode(pair)))
        }
        _ => None,
    };
    let mut headers = HeaderMap::new();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/x-ndjson"),
    );
    if let Some(authorization) = authorization {
        headers.insert(AUTHORIZATION, sensitive(&authorization)?);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_sent_to_the_index_below_the_url() {
        let shown = |server: &str, index: &str| {
            let def = ElasticsearchSink {
                url: server.to_owned(),
                index: index.to_owned(),
                user: None,
                password_file: None,
                api_key_file: None,
                ca_file: None,
                batch_rows: 1,
            };
            url(&def).expect("a URL").path().to_owned()
        };
        assert_eq!(shown("http://h:9200", "events"), "/events/_bulk");
        assert_eq!(shown("http://h:9200/", "events"), "/events/_bulk");
        assert_eq!(shown("https://h/es", "é%"), "/es/%C3%A9%25/_bulk");
    }
}
