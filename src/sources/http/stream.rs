//! A request whose answer does not end. A server that gives its events ids continues after the last
//! one that is stored, also after a restart of Weir: nothing is lost or stored twice. What another
//! server sent while not connected is recorded as a gap.
//!
//! ```text
//! connection  sent            stored, with its frame     then the connection is lost
//! 1           id 7, id 8      7, 8: continue after 8     Last-Event-ID: 8
//! 2           id 9            9: continue after 9        no gap: the server continued
//! 3           no id           a gap from 9 on            the next request has no Last-Event-ID
//! ```

use std::sync::atomic::Ordering;
use std::time::Duration;

use reqwest::header::{self, HeaderName};
use reqwest::{Response, StatusCode};
use tokio::time::{Instant, sleep, timeout};

use super::body::Body;
use super::client::{Backoff, HttpError, Requester, Waited, check, source_error, wait};
use super::each_record;
use super::events::Event;
use crate::clock::Clock;
use crate::config::{HttpStreamDef, public_address};
use crate::event::{Micros, SourceState};
use crate::sources::lines::chunks::ChunkRecord;
use crate::sources::push::{IdleMessages, PushIntake};
use crate::sources::{Context, SourceError};

/// Events come first: they may have ids.
const ACCEPT: &str =
    "text/event-stream, application/x-ndjson;q=0.9, application/json;q=0.8, */*;q=0.5";
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// A connection that lasted this long resets the retry delay.
const STABLE_AFTER: Duration = Duration::from_secs(60);
/// The longest reconnection time that a server may set by `retry`.
const MAX_SERVER_RETRY: Duration = Duration::from_secs(5 * 60);
/// A chunk without the end of a record counts as idle if it is this short: a long record has many
/// chunks.
const IDLE_CHUNK_BYTES: usize = 1 << 10;

/// Receives until asked to stop, and reconnects whenever the connection is lost.
pub(crate) fn run(
    context: &Context,
    def: &HttpStreamDef,
    clock: &dyn Clock,
) -> Result<(), SourceError> {
    let url = public_address(&def.request.url);
    let runtime = super::runtime(&url)?;
    let requester = Requester::new(&def.request).map_err(|e| source_error(&url, &e))?;
    let mut session = Session::resume(context);
    let mut backoff = Backoff::new();
    let waiting = format!("{url}: not connected yet");
    context.set_state(SourceState::Waiting, Some(waiting));
    let mut was_reported = false;
    while !context.stop.is_requested() {
        let started = Instant::now();
        let mut listener = Listener::new(context, clock, &mut session);
        let ended = runtime.block_on(listener.listen(&requester, def.idle));
        context.is_connected.store(false, Ordering::Release);
        let had_records = listener.had_records;
        listener.end();
        let error = match ended {
            Ok(()) => return Ok(()),
            Err(ListenError::Source(error)) => return Err(error),
            Err(ListenError::Refused) => {
                let reason = format!(
                    "{url}: the server answered 204 No Content, which means: do not reconnect; \
                     restart weir to try again"
                );
                tracing::warn!(source = context.name, reason, "the source has ended");
                context.set_state(SourceState::Ended, Some(reason));
                return Ok(());
            }
            Err(ListenError::Connection(error)) => error,
        };
        let was_stable = had_records || started.elapsed() > STABLE_AFTER;
        if was_stable {
            backoff.reset();
        }
        let reason = error.to_string();
        // Only the first failure is worth a warning.
        if was_reported {
            tracing::debug!(source = context.name, reason, "not connected");
        } else {
            tracing::warn!(
                source = context.name,
                url,
                reason,
                "not connected; reconnecting"
            );
        }
        was_reported = !was_stable;
        let delay = backoff.next(error.retry_after().max(session.retry));
        context.set_state(
            SourceState::Waiting,
            Some(format!("{url}: not connected: {reason}; reconnecting")),
        );
        if context.stop.wait(delay) {
            break;
        }
    }
    Ok(())
}

/// What is known from one connection to the next.
struct Session {
    /// After which event the server is asked to continue.
    last_id: Option<String>,
    /// The place of the next record with an id.
    next_offset: u64,
    /// Since when records are missing, unless the server continues.
    missed_since: Option<Micros>,
    /// An id after which the server did not want to continue.
    refused_id: Option<String>,
    /// The reconnection time that the server set.
    retry: Option<Duration>,
}

impl Session {
    /// Continues after the last record that is stored.
    fn resume(context: &Context) -> Self {
        let last = context
            .partitions
            .iter()
            .map(|(_, partition)| partition)
            .max_by_key(|partition| partition.received_at);
        Self {
            last_id: last.and_then(|last| last.last_event_id.clone()),
            next_offset: last.map_or(0, |last| last.next_offset),
            // A restart is a gap too: from the last synced record to the first new one.
            missed_since: last.map(|last| last.received_at),
            refused_id: None,
            retry: None,
        }
    }

    /// Why records may be missing.
    fn gap_reason(&mut self) -> String {
        match self.refused_id.take() {
            Some(id) => format!("the server does not continue after the event {id}"),
            None => "not connected".to_owned(),
        }
    }
}

/// Why listening ended before it was asked to.
enum ListenError {
    /// The source reconnects.
    Connection(ConnectionError),
    /// The server asks not to reconnect.
    Refused,
    Source(SourceError),
}

/// Why a connection ended, or could not be established.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("the server sent nothing for {0:?} (`idle`)")]
    Silent(Duration),
    #[error("the server closed the connection")]
    Closed,
}

impl ConnectionError {
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Http(error) => error.retry_after(),
            Self::Silent(_) | Self::Closed => None,
        }
    }
}

impl From<SourceError> for ListenError {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}

impl From<HttpError> for ListenError {
    fn from(error: HttpError) -> Self {
        Self::Connection(error.into())
    }
}

/// One connection, from its request to its last record.
struct Listener<'a> {
    context: &'a Context,
    clock: &'a dyn Clock,
    session: &'a mut Session,
    intake: PushIntake<'a>,
    /// Since when records are missing, unless the first event shows that the server continues.
    unconfirmed: Option<Micros>,
    had_records: bool,
}

impl<'a> Listener<'a> {
    fn new(context: &'a Context, clock: &'a dyn Clock, session: &'a mut Session) -> Self {
        let mut intake = PushIntake::new(context, clock, session.missed_since);
        intake.resume_at(session.next_offset);
        Self {
            context,
            clock,
            session,
            intake,
            unconfirmed: None,
            had_records: false,
        }
    }

    /// Hands over what the next connection has to know.
    fn end(self) {
        self.session.next_offset = self.intake.next_offset();
        self.session.missed_since = self.unconfirmed.or(self.intake.missed_since);
    }

    async fn listen(&mut self, requester: &Requester, idle: Duration) -> Result<(), ListenError> {
        let Some(mut response) = self.connect(requester, idle).await? else {
            return Ok(());
        };
        tracing::info!(
            source = self.context.name,
            url = public_address(requester.url.as_str()),
            "connected"
        );
        self.context.set_state(SourceState::Running, None);
        self.context.is_connected.store(true, Ordering::Release);
        self.intake.note_received();
        if self.session.last_id.is_some() {
            self.unconfirmed = self.intake.missed_since.take();
        } else {
            let reason = self.session.gap_reason();
            self.intake.record_gap(&reason)?;
        }
        let content_type = response.headers().get(header::CONTENT_TYPE);
        let mut body = Body::new(content_type.and_then(|value| value.to_str().ok()));
        let mut received = Instant::now();
        let mut idle_chunks = IdleMessages::new(received);
        loop {
            if self.context.stop.is_requested() {
                return Ok(self.intake.finish(self.session.last_id.as_deref())?);
            }
            self.intake.record_rejected()?;
            match timeout(self.intake.patience(), response.chunk()).await {
                Err(_) => self.flush()?,
                Ok(Ok(Some(chunk))) => {
                    received = Instant::now();
                    self.intake.note_received();
                    if self.receive(&mut body, &chunk)? {
                        idle_chunks.restart(received);
                    } else if chunk.len() <= IDLE_CHUNK_BYTES
                        && let Some(pause) = idle_chunks.pause_of(&self.context.name, received)
                    {
                        self.flush()?;
                        sleep(pause).await;
                    }
                }
                Ok(Ok(None)) => {
                    self.receive_rest(body)?;
                    return self.disconnect(ConnectionError::Closed);
                }
                Ok(Err(error)) => return self.disconnect(HttpError::from(error).into()),
            }
            if received.elapsed() > idle {
                return self.disconnect(ConnectionError::Silent(idle));
            }
        }
    }

    /// Sends the request, and waits for the beginning of an answer with records; none if asked to
    /// stop. A server may send it with the first record only.
    async fn connect(
        &mut self,
        requester: &Requester,
        idle: Duration,
    ) -> Result<Option<Response>, ListenError> {
        let mut request = requester.get(&requester.url, ACCEPT)?;
        if let Some(id) = &self.session.last_id {
            let id = header::HeaderValue::from_bytes(id.as_bytes());
            let id = id.map_err(|e| HttpError::Client(e.to_string()))?;
            request = request.header(LAST_EVENT_ID, id);
        }
        let response = match wait(&self.context.stop, idle, request.send()).await {
            Waited::Stopped => return Ok(None),
            Waited::TimedOut => return Err(HttpError::NoAnswer.into()),
            Waited::Done(response) => response.map_err(HttpError::from)?,
        };
        if response.status() == StatusCode::NO_CONTENT {
            return Err(ListenError::Refused);
        }
        let checked = check(&response, self.clock.now());
        if let Err(HttpError::Status { status, .. }) = &checked
            && cannot_continue(*status)
            && let Some(id) = self.session.last_id.take()
        {
            // Without it, the server sends what is new: the gap says what is missing.
            tracing::error!(
                source = self.context.name,
                id,
                "the server does not continue after this event"
            );
            self.session.refused_id = Some(id);
        }
        checked?;
        Ok(Some(response))
    }

    fn flush(&mut self) -> Result<(), SourceError> {
        self.intake.flush(self.session.last_id.as_deref())
    }

    /// Stores what was received, and ends the connection with this error.
    fn disconnect(&mut self, error: ConnectionError) -> Result<(), ListenError> {
        self.intake.disconnect(self.session.last_id.as_deref())?;
        Err(ListenError::Connection(error))
    }

    /// Adds the records that end in a chunk to the batch; whether it has any.
    fn receive(&mut self, body: &mut Body, chunk: &[u8]) -> Result<bool, SourceError> {
        let max_bytes = self.context.record_limits.max_bytes;
        let Some(bytes) = body.decide(chunk, max_bytes) else {
            return Ok(false);
        };
        let (mut count, mut result) = (0_usize, Ok(()));
        match body {
            Body::Undecided { .. } => {}
            Body::Events(parser) => {
                parser.feed(&bytes, &mut |event| {
                    count += 1;
                    if result.is_ok() {
                        result = self.add_event(event);
                    }
                });
                let retry = parser.retry().map(|retry| retry.min(MAX_SERVER_RETRY));
                self.session.retry = retry.or(self.session.retry);
            }
            Body::Values(splitter) => splitter.feed(&bytes, &mut |record| {
                count += 1;
                if result.is_ok() {
                    result = self.add_value(record);
                }
            }),
        }
        self.had_records |= count > 0;
        result.map(|()| count > 0)
    }

    /// The end of the body is the end of a last record without a newline. An event without its
    /// blank line is none, as the standard says.
    fn receive_rest(&mut self, body: Body) -> Result<(), SourceError> {
        let mut result = Ok(());
        if let Body::Values(mut splitter) = body {
            splitter.finish(&mut |record| result = self.add_value(record));
        }
        result
    }

    fn add_event(&mut self, event: Event<'_>) -> Result<(), SourceError> {
        // Until the server has sent an id on this connection, the last one of before counts.
        if event.has_ids && self.session.last_id.as_deref() != event.last_id {
            self.session.last_id = event.last_id.map(str::to_owned);
        }
        let unconfirmed = self.unconfirmed.take();
        if event.last_id.is_none() {
            self.record_unconfirmed(unconfirmed)?;
        }
        self.add(event.data, event.length, self.context.unwrap.as_deref());
        self.flush_if_full()
    }

    fn add_value(&mut self, record: ChunkRecord<'_>) -> Result<(), SourceError> {
        if let Some(id) = self.session.last_id.take() {
            tracing::debug!(id, "the server no longer sends events");
        }
        let unconfirmed = self.unconfirmed.take();
        self.record_unconfirmed(unconfirmed)?;
        let unwrap = self
            .context
            .unwrap
            .as_deref()
            .filter(|_| !record.is_element);
        self.add(record.bytes, record.length, unwrap);
        self.flush_if_full()
    }

    /// The server did not continue: what it sent while not connected is missing.
    fn record_unconfirmed(&mut self, since: Option<Micros>) -> Result<(), SourceError> {
        if let Some(since) = since {
            self.intake.missed_since.get_or_insert(since);
            self.intake
                .record_gap("the server does not continue after event ids")?;
        }
        Ok(())
    }

    /// All records of a message share a frame, with the id of the message.
    fn add(&mut self, message: &[u8], length: u64, unwrap: Option<&str>) {
        let limits = self.context.record_limits;
        each_record(message, length, unwrap, limits, &mut |record, length| {
            self.intake.push(record, length);
        });
    }

    fn flush_if_full(&mut self) -> Result<(), SourceError> {
        if self.intake.is_full() {
            self.flush()
        } else {
            Ok(())
        }
    }
}

/// Whether a status says that the server cannot continue after the id that it was sent.
fn cannot_continue(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST
            | StatusCode::GONE
            | StatusCode::PRECONDITION_FAILED
            | StatusCode::RANGE_NOT_SATISFIABLE
    )
}
