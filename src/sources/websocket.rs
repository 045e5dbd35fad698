//! A websocket: one message is an object, an array, or a string that holds either. It cannot wait
//! and cannot be read again, so what passed while nobody listened is told as a gap.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{self, Poll};
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::UrlError;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, client_async_tls_with_config};

use super::{Context, SourceError, message};
use crate::clock::Clock;
use crate::event::{Gap, Micros, SourceState};
use crate::ingest::{IngestError, Receipt, Submission};
use crate::wal::{FrameAttributes, Kind, RecordsBuilder};

const CONNECT_TIME: Duration = Duration::from_secs(10);
/// A ping must be written by then, and no more may wait to be written: a server that reads nothing
/// is given up.
const WRITE_TIME: Duration = Duration::from_secs(10);
const WRITE_BYTES: usize = 256 << 10;
const PING_EVERY: Duration = Duration::from_secs(20);
/// A connection that says nothing, not even to a ping, for this long is given up.
const SILENCE: Duration = Duration::from_secs(60);
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// Messages that came together share a frame.
const FRAME_RECORDS: usize = 512;
const FRAME_BYTES: usize = 1 << 20;
/// How long a request to stop may wait.
const LONGEST_WAIT: Duration = Duration::from_millis(200);
/// How long the first message of a frame waits for others.
const GATHER: Duration = Duration::from_millis(10);
/// A connection this old ends the growth of the time between tries.
const STEADY: Duration = Duration::from_secs(60);

/// Listens until asked to stop, and connects again whenever it has to.
pub fn run(context: &Context, url: &str, clock: &dyn Clock) -> Result<(), SourceError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| SourceError::Io {
            path: url.to_owned(),
            source,
        })?;
    // A restart is a gap too: from the last record that was synced to the first one that comes.
    let mut missed_since = context.partitions.iter().map(|(_, p)| p.received_at).max();
    let mut retry = FIRST_RETRY;
    context.set_state(
        SourceState::Waiting,
        Some(format!("{url}: not connected yet")),
    );
    let mut told = false;
    while !context.stop.is_asked() {
        let started = Instant::now();
        let mut listener = Listener {
            context,
            clock,
            missed_since,
            records: RecordsBuilder::default(),
            in_flight: VecDeque::new(),
            heard_at: clock.now(),
            gathered_since: 0,
            has_room_again: false,
        };
        let ended = runtime.block_on(listener.listen(url));
        context.is_connected.store(false, Ordering::Release);
        missed_since = listener.missed_since;
        let reason = match ended {
            Ok(()) => return Ok(()),
            Err(Ended::Source(error)) => return Err(error),
            Err(Ended::Connection(reason)) => reason,
        };
        if started.elapsed() > STEADY {
            retry = FIRST_RETRY;
        }
        // The first failure is news, the others only details.
        if told {
            tracing::debug!(source = context.name, reason, "not connected");
        } else {
            tracing::warn!(
                source = context.name,
                url,
                reason,
                "not connected; trying again"
            );
        }
        context.set_state(
            SourceState::Waiting,
            Some(format!("{url}: not connected: {reason}; trying again")),
        );
        told = started.elapsed() < STEADY;
        // Up to half of it more, so that many clients do not come back together.
        let jitter = retry.mul_f64(rand::random::<f64>() / 2.0);
        if context.stop.wait(retry + jitter) {
            break;
        }
        retry = (retry * 2).min(LAST_RETRY);
    }
    Ok(())
}

enum Ended {
    Connection(String),
    Source(SourceError),
}

impl From<IngestError> for Ended {
    fn from(error: IngestError) -> Self {
        Self::Source(error.into())
    }
}

struct Listener<'a> {
    context: &'a Context,
    clock: &'a dyn Clock,
    /// Since when messages may have passed unheard.
    missed_since: Option<Micros>,
    records: RecordsBuilder,
    /// Frames on their way to the disk, each with when its first message came.
    in_flight: VecDeque<(Receipt, Micros)>,
    /// When the last message came, and the first one of the frame being gathered.
    heard_at: Micros,
    gathered_since: Micros,
    /// Records are stored again after some were not.
    has_room_again: bool,
}

/// Messages without a record, such as pings, with no record among them: beyond so many a second the
/// connection is not read until the second is over. A server that sends nothing else would
/// otherwise keep a core busy.
const IDLE_MESSAGES_PER_SECOND: u32 = 100;

/// Counts the messages without a record in the current second.
struct IdleMessages {
    since: Instant,
    count: u32,
}

impl IdleMessages {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            count: 0,
        }
    }

    /// After one more of them: how long to read nothing, if there were too many.
    fn pause(&mut self, now: Instant) -> Option<Duration> {
        const SECOND: Duration = Duration::from_secs(1);
        let elapsed = now.duration_since(self.since);
        if elapsed >= SECOND {
            *self = Self::new(now);
        }
        self.count += 1;
        (self.count > IDLE_MESSAGES_PER_SECOND)
            .then(|| SECOND.saturating_sub(elapsed).min(LONGEST_WAIT))
    }
}

/// Limits on what is read and written: answers to pings wait in memory until the server reads them.
fn limits(message_bytes: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(Some(message_bytes))
        .max_frame_size(Some(message_bytes))
        .max_write_buffer_size(WRITE_BYTES)
}

/// Frames of a message may take so many times the bytes that the message may have.
const FRAMING_FACTOR: u64 = 4;

/// Counts the bytes received since the last complete message.
///
/// A message may come in any number of frames, and the library bounds only the sum of their
/// payloads: a server that sends empty frames and never ends the message would keep a core busy.
#[derive(Default)]
struct MessageAllowance(AtomicU64);

impl MessageAllowance {
    fn restart(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// A connection that fails once `limit` bytes came without a complete message.
struct Metered<S> {
    inner: S,
    limit: u64,
    received: Arc<MessageAllowance>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buffer);
        let new = (buffer.filled().len() - before) as u64;
        if self.received.0.fetch_add(new, Ordering::Relaxed) + new > self.limit {
            let reason = format!(
                "more than {} bytes came without a complete message",
                self.limit
            );
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, reason)));
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Connects to the server, with TLS where the URL says `wss`.
async fn connect(
    url: &str,
    message_bytes: usize,
    received: &Arc<MessageAllowance>,
) -> Result<WebSocketStream<MaybeTlsStream<Metered<TcpStream>>>, Error> {
    let request = url.into_client_request()?;
    let host = request
        .uri()
        .host()
        .ok_or(Error::Url(UrlError::NoHostName))?;
    // An IPv6 address has brackets in a URL only.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = request
        .uri()
        .port_u16()
        .unwrap_or(if request.uri().scheme_str() == Some("wss") {
            443
        } else {
            80
        });
    let inner = TcpStream::connect((host, port)).await?;
    inner.set_nodelay(true)?;
    let limit = message_bytes as u64 * FRAMING_FACTOR;
    let stream = Metered {
        inner,
        limit,
        received: received.clone(),
    };
    let (socket, _) =
        client_async_tls_with_config(request, stream, Some(limits(message_bytes)), None).await?;
    Ok(socket)
}

async fn ping<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
) -> Result<(), String> {
    match timeout(WRITE_TIME, socket.send(Message::Ping(Vec::new().into()))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Error::WriteBufferFull(_))) | Err(_) => Err("the server reads nothing".into()),
        Ok(Err(error)) => Err(error.to_string()),
    }
}

impl Listener<'_> {
    async fn listen(&mut self, url: &str) -> Result<(), Ended> {
        let limit = self.context.record_bytes * 4;
        let allowance = Arc::default();
        let mut socket = timeout(CONNECT_TIME, connect(url, limit, &allowance))
            .await
            .map_err(|_| Ended::Connection("no answer in time".into()))?
            .map_err(|e| Ended::Connection(e.to_string()))?;
        tracing::info!(source = self.context.name, url, "connected");
        self.context.set_state(SourceState::Running, None);
        self.context.is_connected.store(true, Ordering::Release);
        self.heard_at = self.clock.now();
        self.tell_gap("not connected")?;
        let mut heard = Instant::now();
        let mut pinged = Instant::now();
        let (mut idle, mut is_slowed) = (IdleMessages::new(heard), false);
        loop {
            if self.context.stop.is_asked() {
                self.flush()?;
                let _ = timeout(Duration::from_secs(1), socket.close(None)).await;
                self.settle()?;
                return self.tell_gap("no room in the log");
            }
            if std::mem::take(&mut self.has_room_again) {
                self.tell_gap("no room in the log")?;
            }
            let wait = if self.records.is_empty() {
                LONGEST_WAIT
            } else {
                GATHER
            };
            match timeout(wait, socket.next()).await {
                Err(_) => self.flush()?,
                Ok(Some(Ok(message))) => {
                    allowance.restart();
                    heard = Instant::now();
                    self.heard_at = self.clock.now();
                    let has_records = match message {
                        Message::Text(text) => self.take(text.as_bytes())?,
                        Message::Binary(bytes) => self.take(&bytes)?,
                        Message::Close(_) => {
                            return self.lost("the server closed the connection".into());
                        }
                        Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => false,
                    };
                    if has_records {
                        // What comes with records does not keep them waiting.
                        idle = IdleMessages::new(heard);
                    } else if let Some(pause) = idle.pause(heard) {
                        if !std::mem::replace(&mut is_slowed, true) {
                            let reason = "more than 100 messages a second, none with a record: read no faster than that";
                            tracing::warn!(source = self.context.name, url, reason, "slowed down");
                        }
                        self.flush()?;
                        sleep(pause).await;
                    }
                }
                Ok(Some(Err(error))) => return self.lost(error.to_string()),
                Ok(None) => return self.lost("the connection ended".into()),
            }
            if heard.elapsed() > SILENCE {
                return self.lost("silence".into());
            }
            if pinged.elapsed() > PING_EVERY {
                pinged = Instant::now();
                if let Err(reason) = ping(&mut socket).await {
                    return self.lost(reason);
                }
            }
        }
    }

    /// Whether there was a record in it.
    fn take(&mut self, bytes: &[u8]) -> Result<bool, Ended> {
        if self.records.is_empty() {
            self.gathered_since = self.heard_at;
        }
        let (context, mut flushed) = (self.context, Ok(()));
        let mut has_records = false;
        message::each_at(bytes, context.unwrap.as_deref(), &mut |_, record| {
            has_records = true;
            if flushed.is_ok() {
                self.records.push(record);
                if self.records.len() >= FRAME_RECORDS || self.records.bytes() >= FRAME_BYTES {
                    flushed = self.flush();
                }
            }
        });
        flushed.map(|()| has_records)
    }

    fn submission(&self, records: RecordsBuilder) -> Submission {
        let limit = self.context.record_bytes;
        let records = records.finish();
        let (mut kept, mut cut) = (RecordsBuilder::default(), Vec::new());
        for (n, record) in records.iter().enumerate() {
            if record.len() > limit {
                cut.push((n as u64, record.len() as u64));
                kept.push(&record[..self.context.cut_bytes.min(record.len())]);
            } else {
                kept.push(record);
            }
        }
        Submission {
            kind: Kind::Record,
            source: self.context.name.clone(),
            partition: String::new(),
            stream: self.context.stream.clone(),
            records: kept.finish(),
            first_offset: 0,
            previous_offset: 0,
            attributes: FrameAttributes {
                cut,
                ..FrameAttributes::default()
            },
        }
    }

    /// Sends what was gathered to the log. A queue that is full makes the socket wait, and its
    /// sender.
    fn flush(&mut self) -> Result<(), Ended> {
        if self.records.is_empty() {
            return Ok(());
        }
        let records = std::mem::take(&mut self.records);
        let submission = self.submission(records);
        self.in_flight.push_back((
            self.context.ingest.submit(submission, true)?,
            self.gathered_since,
        ));
        while self.in_flight.len() > 16 {
            self.settle_oldest()?;
        }
        Ok(())
    }

    fn settle_oldest(&mut self) -> Result<(), Ended> {
        let Some((receipt, since)) = self.in_flight.pop_front() else {
            return Ok(());
        };
        match receipt.wait() {
            Ok(_) => {
                self.has_room_again = self.missed_since.is_some();
                Ok(())
            }
            Err(IngestError::NoSpace { reason, .. }) => {
                // What was not stored is told as a gap as soon as there is room for it.
                self.missed_since.get_or_insert(since);
                tracing::error!(
                    source = self.context.name,
                    reason,
                    "records were lost: no room in the log"
                );
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn settle(&mut self) -> Result<(), Ended> {
        while !self.in_flight.is_empty() {
            self.settle_oldest()?;
        }
        Ok(())
    }

    fn lost(&mut self, reason: String) -> Result<(), Ended> {
        self.flush()?;
        self.settle()?;
        // From the last message heard: a silent connection may have been dead since then.
        self.missed_since.get_or_insert(self.heard_at);
        Err(Ended::Connection(reason))
    }

    /// Writes down that messages may be missing since the connection was lost.
    fn tell_gap(&mut self, reason: &str) -> Result<(), Ended> {
        let Some(from) = self.missed_since else {
            return Ok(());
        };
        let gap = Gap {
            source: self.context.name.clone(),
            from,
            to: self.clock.now(),
            reason: reason.into(),
        };
        match self
            .context
            .ingest
            .submit(gap.submission("", &self.context.stream), true)?
            .wait()
        {
            Ok(_) => self.missed_since = None,
            // It is written down as soon as records are stored again.
            Err(IngestError::NoSpace { reason, .. }) => {
                tracing::error!(
                    source = self.context.name,
                    reason,
                    "a gap could not be written down yet"
                );
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;

    #[test]
    fn more_idle_messages_than_a_second_may_have_wait_for_the_next() {
        let start = Instant::now();
        let mut idle = IdleMessages::new(start);
        let at = |ms| start + Duration::from_millis(ms);
        assert!((0..IDLE_MESSAGES_PER_SECOND).all(|_| idle.pause(at(10)).is_none()));
        assert_eq!(idle.pause(at(10)), Some(LONGEST_WAIT));
        assert_eq!(idle.pause(at(900)), Some(Duration::from_millis(100)));
        assert_eq!(idle.pause(at(1_000)), None);
    }

    #[tokio::test]
    async fn a_message_that_never_ends_closes_the_connection() {
        let (mut server, inner) = tokio::io::duplex(4 << 10);
        let stream = Metered {
            inner,
            limit: 64 << 10,
            received: Arc::default(),
        };
        let mut socket =
            WebSocketStream::from_raw_socket(stream, Role::Client, Some(limits(1 << 20))).await;
        let flood = tokio::spawn(async move {
            // A text message, continued by empty frames without end.
            let _ = server.write_all(&[0x01, 0]).await;
            let empty = [0x00, 0].repeat(1_000);
            while server.write_all(&empty).await.is_ok() {}
        });
        let ended = socket
            .next()
            .await
            .expect("an error")
            .expect_err("no message is complete");
        insta::assert_snapshot!(ended, @"IO error: more than 65536 bytes came without a complete message");
        drop(socket);
        flood.await.expect("it ends");
    }

    #[tokio::test]
    async fn a_server_that_pings_and_never_reads_is_given_up() {
        let (mut server, client) = tokio::io::duplex(4 << 10);
        let mut socket =
            WebSocketStream::from_raw_socket(client, Role::Client, Some(limits(1 << 20))).await;
        let flood = tokio::spawn(async move {
            let one = [&[0x89, 125], [b'p'; 125].as_slice()].concat();
            while server.write_all(&one).await.is_ok() {}
        });
        // Four times what may wait.
        for _ in 0..4 * WRITE_BYTES / 125 {
            assert!(matches!(socket.next().await, Some(Ok(Message::Ping(_)))));
        }
        assert_eq!(
            ping(&mut socket).await,
            Err("the server reads nothing".to_owned())
        );
        drop(socket);
        flood.await.expect("it ends");
    }
}
