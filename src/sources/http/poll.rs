//! A request that is repeated. A server sends the same records again and again: each is stored
//! once, by its key and version. A poll that fails loses nothing, because the next one asks again.
//!
//! What is remembered of records is stored with them, so that a kill at any point neither loses nor
//! repeats one. What a server says to avoid an answer (`ETag`, `Last-Modified`) is remembered in
//! memory only: after a start the first poll reads every page.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use chrono::DateTime;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{StatusCode, Url};
use tokio::time::{Instant, timeout};

use super::client::{Backoff, HttpError, Requester, Waited, check, source_error, wait};
use super::pages::{self, PageError};
use super::{each_record, seen::Seen};
use crate::clock::Clock;
use crate::config::units::Size;
use crate::config::{HttpPollDef, NextPage, public_address};
use crate::event::SourceState;
use crate::ingest::{IngestError, Submission};
use crate::operators::Tick;
use crate::sources::batcher::{BatchLimits, RecordBatch, RecordBatcher};
use crate::sources::lines::Reader;
use crate::sources::{Context, SourceError};
use crate::wal::{Kind, RecordIdentities};

const ACCEPT: &str = "application/json, application/x-ndjson;q=0.9, */*;q=0.5";
/// How long a server may be silent within an answer, and take for all of it.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const PAGE_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// For how long a bounded run repeats a poll that fails.
const ONCE_TIMEOUT: Duration = Duration::from_secs(30);
/// Records of a frame.
const FRAME_RECORDS: usize = 512;
const FRAME_BYTES: usize = 1 << 20;

/// Polls until asked to stop; once, with all pages, in a bounded run.
pub(crate) fn run(
    context: &Context,
    def: &HttpPollDef,
    clock: &dyn Clock,
) -> Result<(), SourceError> {
    let url = public_address(&def.request.url);
    let runtime = super::runtime(&url)?;
    let requester = Requester::new(&def.request).map_err(|e| source_error(&url, &e))?;
    let mut poller = Poller {
        context,
        def,
        clock,
        requester,
        seen: Seen::new(def.remember, &context.seen),
        known: BTreeMap::new(),
        heard_until: None,
    };
    context.set_state(SourceState::Waiting, Some(format!("{url}: not polled yet")));
    let (mut backoff, mut was_reported) = (Backoff::new(), false);
    let started = Instant::now();
    loop {
        let delay = match runtime.block_on(poller.poll()) {
            Ok(summary) => {
                backoff.reset();
                was_reported = report(context, &url, def, &summary, was_reported);
                if context.once {
                    return Ok(());
                }
                def.every
            }
            Err(PollError::Stopped) => return Ok(()),
            Err(PollError::Source(error)) => return Err(error),
            Err(PollError::Failed(error)) => {
                let delay = backoff.next(error.retry_after());
                if context.once && started.elapsed() + delay > ONCE_TIMEOUT {
                    return Err(source_error(&url, &error));
                }
                was_reported = report_failure(context, &url, &error, was_reported);
                delay
            }
        };
        if context.stop.wait(delay) {
            return Ok(());
        }
    }
}

/// Publishes a poll that has read all its pages. Returns whether it has warned of a limit.
fn report(
    context: &Context,
    url: &str,
    def: &HttpPollDef,
    summary: &Summary,
    was_reported: bool,
) -> bool {
    tracing::debug!(
        source = context.name,
        pages = summary.pages,
        new = summary.new,
        known = summary.known,
        "polled"
    );
    let limit = summary
        .limit_reached(def)
        .map(|limit| format!("{url}: {limit}"));
    if let Some(reason) = limit.as_ref().filter(|_| !was_reported) {
        tracing::warn!(source = context.name, "{reason}");
    }
    let has_reason = limit.is_some();
    let state = match has_reason {
        _ if context.once => SourceState::Ended,
        true => SourceState::Waiting,
        false => SourceState::Running,
    };
    context.set_state(state, limit);
    has_reason
}

/// Publishes why a poll failed. Returns that it was reported: only the first failure is worth a
/// warning.
fn report_failure(context: &Context, url: &str, error: &PageFailure, was_reported: bool) -> bool {
    let reason = error.to_string();
    if was_reported {
        tracing::debug!(source = context.name, reason, "the poll failed");
    } else {
        tracing::warn!(
            source = context.name,
            url,
            reason,
            "the poll failed; trying again"
        );
    }
    let reason = format!("{url}: the poll failed: {reason}; trying again");
    context.set_state(SourceState::Waiting, Some(reason));
    true
}

/// What a poll has read.
#[derive(Debug, Default, PartialEq, Eq)]
struct Summary {
    pages: usize,
    /// Records that were stored.
    new: usize,
    /// Records that were seen before.
    known: usize,
    /// Another page follows the last one that may be read.
    has_more: bool,
}

impl Summary {
    fn records(&self) -> usize {
        self.new + self.known
    }

    /// Which limit was reached, and what that means. Pure.
    fn limit_reached(&self, def: &HttpPollDef) -> Option<String> {
        let (pages, remember, records) = (def.pages, def.remember, self.records());
        if self.has_more {
            Some(format!(
                "the poll ended at its limit of {pages} pages (`pages`); \
                 records on further pages are not read"
            ))
        } else if records > remember {
            Some(format!(
                "the answer has {records} records, and {remember} are remembered (`remember`): \
                 those that are forgotten are stored again at each poll"
            ))
        } else {
            None
        }
    }
}

/// Why a poll ended early.
enum PollError {
    Stopped,
    /// It is repeated.
    Failed(PageFailure),
    Source(SourceError),
}

/// Why a page could not be read or stored.
#[derive(Debug, thiserror::Error)]
enum PageFailure {
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error(transparent)]
    Page(#[from] PageError),
    #[error("the answer has more than {0} (`[limits] body`); ask for smaller pages")]
    TooLarge(Size),
    #[error("page {0} is followed by one that was read before it")]
    Loop(usize),
    #[error(
        "page {0} is the same as the page before it and names itself as the next one: \
         the server ignores which page is requested (`next`, `cursor`)"
    )]
    Repeated(usize),
    #[error("no room in the log: {0}")]
    NoRoom(String),
}

impl PageFailure {
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Http(error) => error.retry_after(),
            _ => None,
        }
    }
}

impl<E: Into<PageFailure>> From<E> for PollError {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// What a server said of a page, so that an unchanged one need not be sent again.
#[derive(Debug, Default)]
struct KnownPage {
    etag: Option<HeaderValue>,
    last_modified: Option<HeaderValue>,
    taken: TakenPage,
}

/// What reading the other pages needs of one that was stored.
#[derive(Debug, Clone, Default)]
struct TakenPage {
    next: Option<Url>,
    /// A hash of the body, if it has records.
    content: Option<u64>,
}

impl TakenPage {
    /// Whether the page at `url` names itself and has the content of the page before it. Its server
    /// ignores which page is requested, so the others would never be read. Pages without records
    /// are alike also at the end of a list.
    fn is_repeated(&self, url: &Url, before: Option<u64>) -> bool {
        self.next.as_ref() == Some(url) && self.content.is_some() && self.content == before
    }
}

/// A hash of a page's body, which is compared within the process only.
fn hash(body: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(body);
    hasher.finish()
}

/// When the page changed last, if an answer that it has not changed since would be true: within the
/// second in which it was sent it may have changed again (RFC 9110, section 8.8.2.2).
fn last_modified(headers: &HeaderMap) -> Option<&HeaderValue> {
    let time = |name| DateTime::parse_from_rfc2822(headers.get(name)?.to_str().ok()?).ok();
    let (modified, sent) = (time(header::LAST_MODIFIED)?, time(header::DATE)?);
    headers
        .get(header::LAST_MODIFIED)
        .filter(|_| sent > modified)
}

/// An answer.
enum Page {
    /// With the answer's headers: a server may link to a page that is new.
    Unchanged(Box<HeaderMap>),
    Empty,
    Changed(Box<ChangedPage>),
}

struct ChangedPage {
    /// Where it was, after redirects.
    url: Url,
    headers: HeaderMap,
    body: Vec<u8>,
}

struct Poller<'a> {
    context: &'a Context,
    def: &'a HttpPollDef,
    clock: &'a dyn Clock,
    requester: Requester,
    seen: Seen,
    /// The pages of the last poll.
    known: BTreeMap<Url, KnownPage>,
    /// When the last complete poll began: until then the server has sent everything.
    heard_until: Option<Instant>,
}

impl Poller<'_> {
    /// Reads and stores all pages.
    async fn poll(&mut self) -> Result<Summary, PollError> {
        let started = Instant::now();
        let (mut summary, mut visited) = (Summary::default(), BTreeSet::new());
        let read = self.read_pages(&mut summary, &mut visited).await;
        self.known.retain(|url, _| visited.contains(url));
        read?;
        // With pages left, the server may have more that is new.
        let until = (!summary.has_more).then_some(started);
        let heard_until = std::mem::replace(&mut self.heard_until, until);
        if let Some(before) = heard_until.filter(|_| summary.new == 0 && !summary.has_more) {
            self.tick(started - before);
        }
        Ok(summary)
    }

    async fn read_pages(
        &mut self,
        summary: &mut Summary,
        visited: &mut BTreeSet<Url>,
    ) -> Result<(), PollError> {
        let (mut next, mut before) = (Some(self.requester.url.clone()), None);
        while let Some(url) = next {
            if summary.pages >= self.def.pages {
                summary.has_more = true;
                return Ok(());
            }
            if !visited.insert(url.clone()) {
                return Err(PageFailure::Loop(summary.pages).into());
            }
            // As it can be asked again, it waits for views as a file does.
            while !(self.context.wait_for_room)(Duration::from_secs(1)) {
                self.check_stop()?;
            }
            let page = match wait(&self.context.stop, PAGE_TIMEOUT, self.fetch(&url)).await {
                Waited::Stopped => return Err(PollError::Stopped),
                Waited::TimedOut => return Err(HttpError::NoAnswer.into()),
                Waited::Done(page) => page?,
            };
            summary.pages += 1;
            let taken = self.take_page(&url, page, summary)?;
            if taken.is_repeated(&url, before) {
                return Err(PageFailure::Repeated(summary.pages).into());
            }
            before = taken.content;
            // At its end a server may name the page again that it has just sent.
            next = taken.next.filter(|next| *next != url);
        }
        Ok(())
    }

    /// Stores the records of a page.
    fn take_page(
        &mut self,
        url: &Url,
        page: Page,
        summary: &mut Summary,
    ) -> Result<TakenPage, PollError> {
        let ChangedPage {
            url: at,
            headers,
            body,
        } = match page {
            Page::Empty => return Ok(TakenPage::default()),
            Page::Unchanged(headers) => return self.take_unchanged(url, &headers),
            Page::Changed(page) => *page,
        };
        let records_before = summary.records();
        self.store(&body, summary)?;
        let has_records = summary.records() > records_before;
        let links = headers.get_all(header::LINK);
        let links = links.iter().filter_map(|link| link.to_str().ok());
        let next = pages::after(&self.def.next, &self.requester.url, &at, links, &body)?;
        let taken = TakenPage {
            next,
            content: has_records.then(|| hash(&body)),
        };
        // Only now nothing of the page is missing.
        let known = KnownPage {
            etag: headers.get(header::ETAG).cloned(),
            last_modified: last_modified(&headers).cloned(),
            taken: taken.clone(),
        };
        self.known.insert(url.clone(), known);
        Ok(taken)
    }

    /// An unchanged page: its content is as it was, and its links may not be.
    fn take_unchanged(&mut self, url: &Url, headers: &HeaderMap) -> Result<TakenPage, PollError> {
        let Some(known) = self.known.get_mut(url) else {
            return Ok(TakenPage::default());
        };
        if let NextPage::Link = self.def.next
            && headers.contains_key(header::LINK)
        {
            let links = headers.get_all(header::LINK);
            let links = links.iter().filter_map(|link| link.to_str().ok());
            known.taken.next = pages::after(&self.def.next, &self.requester.url, url, links, b"")?;
        }
        Ok(known.taken.clone())
    }

    async fn fetch(&self, url: &Url) -> Result<Page, PageFailure> {
        let mut request = self.requester.get(url, ACCEPT)?;
        let known = self.known.get(url);
        if let Some(etag) = known.and_then(|page| page.etag.as_ref()) {
            request = request.header(header::IF_NONE_MATCH, etag);
        }
        if let Some(time) = known.and_then(|page| page.last_modified.as_ref()) {
            request = request.header(header::IF_MODIFIED_SINCE, time);
        }
        let sent = timeout(READ_TIMEOUT, request.send()).await;
        let mut response = sent
            .map_err(|_| HttpError::NoAnswer)?
            .map_err(HttpError::from)?;
        match response.status() {
            StatusCode::NOT_MODIFIED if known.is_some() => {
                let headers = std::mem::take(response.headers_mut());
                return Ok(Page::Unchanged(Box::new(headers)));
            }
            StatusCode::NO_CONTENT => return Ok(Page::Empty),
            _ => check(&response, self.clock.now())?,
        }
        let mut body = Vec::new();
        loop {
            let chunk = timeout(READ_TIMEOUT, response.chunk()).await;
            let chunk = chunk.map_err(|_| HttpError::NoAnswer)?;
            let Some(chunk) = chunk.map_err(HttpError::from)? else {
                break;
            };
            if body.len() + chunk.len() > self.context.body_bytes {
                return Err(PageFailure::TooLarge(Size(self.context.body_bytes as u64)));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Page::Changed(Box::new(ChangedPage {
            url: response.url().clone(),
            headers: std::mem::take(response.headers_mut()),
            body,
        })))
    }

    /// Stores the records of a page that are new.
    fn store(&mut self, body: &[u8], summary: &mut Summary) -> Result<(), PollError> {
        let (context, limits) = (self.context, self.context.record_limits);
        let mut batcher = RecordBatcher::new(BatchLimits {
            record: limits,
            frame_records: FRAME_RECORDS,
            frame_bytes: FRAME_BYTES,
        });
        let unwrap = context.unwrap.as_deref();
        let mut reader = Reader::new(body, 0, b"", unwrap, limits.max_bytes);
        // Reading from memory does not fail.
        while let Ok(Some(item)) = reader.next_item() {
            let mut stored = Ok(());
            // An unwrapped array was split by the reader.
            each_record(
                &item.bytes,
                item.length,
                None,
                limits,
                &mut |record, length| {
                    batcher.push_prefix(record, length);
                    if batcher.is_full() && stored.is_ok() {
                        stored = self.store_batch(&batcher.take(), summary);
                    }
                },
            );
            stored?;
        }
        self.store_batch(&batcher.finish(), summary)
    }

    fn store_batch(&mut self, batch: &RecordBatch, summary: &mut Summary) -> Result<(), PollError> {
        self.check_stop()?;
        let (context, records) = (self.context, &batch.records);
        let identities = context
            .ingest
            .identities(&context.stream, records, &batch.truncated);
        let original = |index: u64, bytes: usize| {
            let truncated = batch.truncated.iter().find(|(at, _)| *at == index);
            truncated.map_or(bytes as u64, |(_, length)| *length)
        };
        let mut fresh = RecordBatcher::new(BatchLimits::unbounded(context.record_limits));
        let (mut of_records, mut in_batch) = (Vec::new(), HashSet::new());
        for (index, (record, identity)) in records.iter().zip(identities).enumerate() {
            if self.seen.contains(identity) || !in_batch.insert(identity) {
                summary.known += 1;
                continue;
            }
            fresh.push_prefix(record, original(index as u64, record.len()));
            of_records.push(identity);
        }
        if of_records.is_empty() {
            return Ok(());
        }
        let mut frame = fresh
            .finish()
            .into_submission(&context.name, &context.stream);
        frame.attributes.identities = Some(RecordIdentities {
            remembered: self.def.remember as u64,
            of_records: of_records.clone(),
        });
        let stored = context.ingest.submit(frame, true);
        match stored.and_then(|receipt| receipt.wait()) {
            Ok(_) => {}
            Err(IngestError::NoSpace { reason, .. }) => {
                return Err(PageFailure::NoRoom(reason).into());
            }
            Err(error) => return Err(PollError::Source(error.into())),
        }
        summary.new += of_records.len();
        self.seen.extend(&of_records);
        Ok(())
    }

    /// The server had nothing new for this long: watermarks advance. Between polls they do not,
    /// because nothing is known.
    fn tick(&self, elapsed: Duration) {
        let context = self.context;
        let tick = Tick {
            source: context.name.clone(),
            partition: String::new(),
            elapsed: i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX),
        };
        let payload = serde_json::to_vec(&[tick]).unwrap_or_default();
        // What is refused is lost time, by which windows close a little later.
        let _ = context.ingest.submit(
            Submission::control(Kind::Tick, &context.stream, &payload),
            false,
        );
    }

    fn check_stop(&self) -> Result<(), PollError> {
        if self.context.stop.is_requested() {
            Err(PollError::Stopped)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{HttpRequest, NextPage};

    #[test]
    fn a_page_is_repeated_if_it_names_itself_and_has_the_records_of_the_one_before() {
        let url = |text: &str| Url::parse(text).expect("a URL");
        let (page, other) = (url("http://a/?after=2"), url("http://a/?after=4"));
        let (content, different) = (Some(hash(b"[1]")), Some(hash(b"[2]")));
        assert_ne!(content, different);
        let is_repeated = |next: Option<&Url>, content, before| {
            let next = next.cloned();
            TakenPage { next, content }.is_repeated(&page, before)
        };
        assert!(is_repeated(Some(&page), content, content));
        // The last page of a server that repeats its last cursor, and one without records.
        assert!(!is_repeated(Some(&page), content, different));
        assert!(!is_repeated(Some(&page), None, None));
        // The only page.
        assert!(!is_repeated(Some(&page), content, None));
        // Two pages may have the same records.
        assert!(!is_repeated(Some(&other), content, content));
        assert!(!is_repeated(None, content, content));
    }

    #[test]
    fn a_limit_that_is_reached_is_named_with_its_key() {
        let def = HttpPollDef {
            request: HttpRequest {
                url: "http://a/".into(),
                headers: BTreeMap::new(),
            },
            every: Duration::from_secs(1),
            next: NextPage::Link,
            pages: 7,
            remember: 10,
        };
        let limit = |pages, records, has_more| {
            let summary = Summary {
                pages,
                new: records,
                known: 1,
                has_more,
            };
            summary.limit_reached(&def).unwrap_or_default()
        };
        assert_eq!(limit(7, 9, false), "");
        insta::assert_snapshot!(limit(7, 9, true), @"the poll ended at its limit of 7 pages (`pages`); records on further pages are not read");
        insta::assert_snapshot!(limit(1, 10, false), @"the answer has 11 records, and 10 are remembered (`remember`): those that are forgotten are stored again at each poll");
    }
}
