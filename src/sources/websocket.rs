//! A websocket: a message is an object, an array, or a string that holds either. The server sends
//! nothing twice, so what it sent while not connected is recorded as a gap. While the queue is full
//! the socket is not read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{self, Poll};
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::UrlError;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, client_async_tls_with_config};

use super::push::{IdleMessages, PushIntake};
use super::sample::{Sample, SampleLimits, Shape};
use super::{Context, SourceError, message};
use crate::clock::Clock;
use crate::config::public_address;
use crate::event::{Micros, SourceState};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A ping must be written by then, and only so much may wait to be written: the connection to a
/// server that reads nothing is closed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_WRITE_BUFFER_BYTES: usize = 256 << 10;
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// A connection on which nothing comes for this long, not even an answer to a ping, is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const MIN_RETRY_DELAY: Duration = Duration::from_millis(250);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(30);
/// A connection that lasted this long resets the retry delay.
const STABLE_AFTER: Duration = Duration::from_secs(60);

/// Receives until asked to stop, and reconnects whenever the connection is lost.
pub(crate) fn run(context: &Context, url: &str, clock: &dyn Clock) -> Result<(), SourceError> {
    let address = public_address(url);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| SourceError::Io {
            path: address.clone(),
            source,
        })?;
    // A restart is a gap too: from the last synced record to the first new one.
    let mut missed_since = context.partitions.iter().map(|(_, p)| p.received_at).max();
    let mut delay = MIN_RETRY_DELAY;
    context.set_state(
        SourceState::Waiting,
        Some(format!("{address}: not connected yet")),
    );
    let mut was_reported = false;
    while !context.stop.is_requested() {
        let started = Instant::now();
        let mut listener = Listener::new(context, clock, missed_since);
        let ended = runtime.block_on(listener.listen(url));
        context.is_connected.store(false, Ordering::Release);
        missed_since = listener.intake.missed_since;
        let reason = match ended {
            Ok(()) => return Ok(()),
            Err(ListenError::Source(error)) => return Err(error),
            Err(ListenError::Connection(error)) => error.to_string(),
        };
        let was_stable = started.elapsed() > STABLE_AFTER;
        if was_stable {
            delay = MIN_RETRY_DELAY;
        }
        // Only the first failure is worth a warning.
        if was_reported {
            tracing::debug!(source = context.name, reason, "not connected");
        } else {
            tracing::warn!(
                source = context.name,
                url = address,
                reason,
                "not connected; reconnecting"
            );
        }
        context.set_state(
            SourceState::Waiting,
            Some(format!("{address}: not connected: {reason}; reconnecting")),
        );
        was_reported = !was_stable;
        // Up to half as long again, so that many clients do not reconnect together.
        let jitter = delay.mul_f64(rand::random::<f64>() / 2.0);
        if context.stop.wait(delay + jitter) {
            break;
        }
        delay = (delay * 2).min(MAX_RETRY_DELAY);
    }
    Ok(())
}

/// The first messages of a websocket, for a look at its records: nothing is stored.
///
/// # Errors
///
/// The server cannot be reached.
pub(super) fn sample(url: &str, limits: &SampleLimits) -> Result<Sample, SourceError> {
    let failed = |reason: String| SourceError::Http {
        url: public_address(url),
        reason,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| failed(e.to_string()))?;
    let messages = runtime
        .block_on(first_messages(url, limits))
        .map_err(|e| failed(e.to_string()))?;
    Ok(Sample {
        shape: Shape::Messages(messages),
        has_ended: false,
    })
}

async fn first_messages(url: &str, limits: &SampleLimits) -> Result<Vec<Vec<u8>>, ConnectionError> {
    let allowance = Arc::<MessageAllowance>::default();
    let deadline = Instant::now() + limits.time;
    let connected = connect(url, limits.record_bytes * 4, &allowance);
    let mut socket = timeout(CONNECT_TIMEOUT, connected)
        .await
        .map_err(|_| ConnectionError::NoAnswer)??;
    let (mut messages, mut bytes) = (Vec::new(), 0);
    while messages.len() < limits.records && bytes < limits.bytes {
        // After the deadline, and after a lost connection, what came until then is the sample.
        let Ok(Some(Ok(message))) = timeout_at(deadline, socket.next()).await else {
            break;
        };
        let payload = match message {
            Message::Text(text) => text.as_bytes().to_vec(),
            Message::Binary(bytes) => bytes.to_vec(),
            Message::Close(_) => break,
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
        };
        allowance.restart();
        bytes += payload.len();
        messages.push(payload);
    }
    let _ = timeout(Duration::from_secs(1), socket.close(None)).await;
    Ok(messages)
}

/// Why a connection ended, or could not be established.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("the server did not answer in time")]
    NoAnswer,
    #[error("the server reads nothing")]
    ReadsNothing,
    /// For [`IDLE_TIMEOUT`].
    #[error("the server sent nothing for 60 seconds")]
    Silent,
    #[error("the server closed the connection")]
    Closed,
    /// Without the closing handshake.
    #[error("the connection ended")]
    Ended,
    #[error(transparent)]
    WebSocket(Box<Error>),
}

impl From<Error> for ConnectionError {
    fn from(error: Error) -> Self {
        Self::WebSocket(Box::new(error))
    }
}

/// Why listening ended before it was asked to.
enum ListenError {
    /// The source reconnects.
    Connection(ConnectionError),
    Source(SourceError),
}

impl From<SourceError> for ListenError {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}

/// One connection, from its first message to its last.
struct Listener<'a> {
    context: &'a Context,
    intake: PushIntake<'a>,
}

/// Limits on what is read and written: answers to pings wait in memory until the server reads them.
fn socket_config(message_bytes: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(Some(message_bytes))
        .max_frame_size(Some(message_bytes))
        .max_write_buffer_size(MAX_WRITE_BUFFER_BYTES)
}

/// The frames of a message may have this many times the bytes that a message may have.
const FRAMING_FACTOR: u64 = 4;

/// What frame headers and TLS add to a message without records.
const MESSAGE_OVERHEAD: u64 = 64;

/// Counts the bytes received since the last message with records.
///
/// A message may come in any number of frames, and the library bounds only the sum of their
/// payloads: a server that sends empty frames and never ends the message would keep a core busy. A
/// message without records, such as a ping, may come between the frames of another, so it is
/// discounted by its own bytes alone.
#[derive(Default)]
struct MessageAllowance(AtomicU64);

impl MessageAllowance {
    fn restart(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn discount(&self, payload_bytes: usize) {
        let own = payload_bytes as u64 + MESSAGE_OVERHEAD;
        let received = self.0.load(Ordering::Relaxed);
        self.0
            .store(received.saturating_sub(own), Ordering::Relaxed);
    }
}

/// A connection that fails once `limit` bytes came that belong to no complete message.
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
        client_async_tls_with_config(request, stream, Some(socket_config(message_bytes)), None)
            .await?;
    Ok(socket)
}

async fn ping<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
) -> Result<(), ConnectionError> {
    match timeout(WRITE_TIMEOUT, socket.send(Message::Ping(Vec::new().into()))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Error::WriteBufferFull(_))) | Err(_) => Err(ConnectionError::ReadsNothing),
        Ok(Err(error)) => Err(error.into()),
    }
}

impl<'a> Listener<'a> {
    fn new(context: &'a Context, clock: &'a dyn Clock, missed_since: Option<Micros>) -> Self {
        Self {
            context,
            intake: PushIntake::new(context, clock, missed_since),
        }
    }

    async fn listen(&mut self, url: &str) -> Result<(), ListenError> {
        let message_bytes = self.context.record_limits.max_bytes * 4;
        let allowance = Arc::<MessageAllowance>::default();
        let mut socket = timeout(CONNECT_TIMEOUT, connect(url, message_bytes, &allowance))
            .await
            .map_err(|_| ListenError::Connection(ConnectionError::NoAnswer))?
            .map_err(|error| ListenError::Connection(error.into()))?;
        let address = public_address(url);
        tracing::info!(source = self.context.name, url = address, "connected");
        self.context.set_state(SourceState::Running, None);
        self.context.is_connected.store(true, Ordering::Release);
        self.intake.note_received();
        self.intake.record_gap("not connected")?;
        let mut received = Instant::now();
        let mut pinged = Instant::now();
        let mut idle = IdleMessages::new(received);
        loop {
            if self.context.stop.is_requested() {
                self.intake.flush(None)?;
                let _ = timeout(Duration::from_secs(1), socket.close(None)).await;
                return Ok(self.intake.finish(None)?);
            }
            self.intake.record_rejected()?;
            match timeout(self.intake.patience(), socket.next()).await {
                Err(_) => self.intake.flush(None)?,
                Ok(Some(Ok(message))) => {
                    received = Instant::now();
                    let payload_bytes = message.len();
                    if self.receive(message)? {
                        allowance.restart();
                        // Idle messages among records must not delay them.
                        idle.restart(received);
                    } else {
                        allowance.discount(payload_bytes);
                        if let Some(pause) = idle.pause_of(&self.context.name, received) {
                            self.intake.flush(None)?;
                            sleep(pause).await;
                        }
                    }
                }
                Ok(Some(Err(error))) => return self.disconnect(error.into()),
                Ok(None) => return self.disconnect(ConnectionError::Ended),
            }
            if received.elapsed() > IDLE_TIMEOUT {
                return self.disconnect(ConnectionError::Silent);
            }
            if pinged.elapsed() > PING_INTERVAL {
                pinged = Instant::now();
                if let Err(error) = ping(&mut socket).await {
                    return self.disconnect(error);
                }
            }
        }
    }

    /// Handles a message; whether it has a record.
    fn receive(&mut self, message: Message) -> Result<bool, ListenError> {
        self.intake.note_received();
        match message {
            Message::Text(text) => self.add_message(text.as_bytes()),
            Message::Binary(bytes) => self.add_message(&bytes),
            Message::Close(_) => self.disconnect(ConnectionError::Closed).map(|()| false),
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => Ok(false),
        }
    }

    /// Adds the records of a message to the batch; whether it has any.
    fn add_message(&mut self, bytes: &[u8]) -> Result<bool, ListenError> {
        let (intake, mut flushed) = (&mut self.intake, Ok(()));
        let mut has_records = false;
        message::each_at(bytes, self.context.unwrap.as_deref(), &mut |_, record| {
            has_records = true;
            if flushed.is_ok() {
                intake.push(record, record.len() as u64);
                if intake.is_full() {
                    flushed = intake.flush(None);
                }
            }
        });
        flushed?;
        Ok(has_records)
    }

    /// Stores what was received, and ends the connection with this error.
    fn disconnect(&mut self, error: ConnectionError) -> Result<(), ListenError> {
        self.intake.disconnect(None)?;
        Err(ListenError::Connection(error))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;

    #[test]
    fn messages_without_records_are_discounted_by_their_own_bytes() {
        let allowance = MessageAllowance(AtomicU64::new(1_000));
        allowance.discount(100);
        assert_eq!(allowance.0.load(Ordering::Relaxed), 836);
        allowance.discount(10_000);
        assert_eq!(allowance.0.load(Ordering::Relaxed), 0);
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
            WebSocketStream::from_raw_socket(stream, Role::Client, Some(socket_config(1 << 20)))
                .await;
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
            WebSocketStream::from_raw_socket(client, Role::Client, Some(socket_config(1 << 20)))
                .await;
        let flood = tokio::spawn(async move {
            let one = [&[0x89, 125], [b'p'; 125].as_slice()].concat();
            while server.write_all(&one).await.is_ok() {}
        });
        // Four times what may wait.
        for _ in 0..4 * MAX_WRITE_BUFFER_BYTES / 125 {
            assert!(matches!(socket.next().await, Some(Ok(Message::Ping(_)))));
        }
        assert!(matches!(
            ping(&mut socket).await,
            Err(ConnectionError::ReadsNothing)
        ));
        drop(socket);
        flood.await.expect("it ends");
    }
}
