//! Limits of connections: their number, the time until the first byte, and the time for which an
//! answer may stay unread. HTTP/1 only: the sniffing of HTTP/2 has no time limit of its own.
//!
//! When all connections are taken, a new one evicts the one that has waited longest for its client:
//! a client that sends or reads nothing keeps no other client out. A reserve of a few more is for
//! what must always be answered (see [`super::guard`]).
//!
//! With two connections, one idle for 3 s and one computing an answer, a third evicts the idle one. If
//! both compute, it gets the reserve, where only intake and health checks are answered.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Extension;
use axum::middleware::AddExtension;
use axum_server::accept::Accept;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tower::Layer;

/// Bytes that count as progress of a client; its waiting time restarts after as many.
const PROGRESS_BYTES: usize = 64 << 10;
/// How long an answer may stay unread.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a connection waits for its client before it may be evicted.
const MIN_WAIT: Duration = Duration::from_secs(1);
/// What the system buffers of an answer: small, to tell a slow reader from one that reads nothing.
const SEND_BUFFER: usize = 256 << 10;
/// The reserve has one connection for each so many.
const CONNECTIONS_PER_RESERVE: usize = 8;

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    AwaitingRequest,
    ReadingBody,
    /// The client waits for the server, unless it does not read.
    Working,
}

/// Whether a connection waits for its client, and since when.
pub struct Activity {
    state: Mutex<State>,
    evicted: CancellationToken,
    /// Whether it belongs to the reserve.
    pub is_reserve: bool,
}

struct State {
    phase: Phase,
    /// Whether what was written is still unread.
    is_blocked: bool,
    since: Instant,
    /// Read or written since then.
    bytes: usize,
}

impl State {
    fn restart(&mut self) {
        (self.since, self.bytes) = (Instant::now(), 0);
    }

    fn awaits_client(&self) -> bool {
        self.is_blocked || self.phase != Phase::Working
    }
}

impl Activity {
    fn new(is_reserve: bool) -> Arc<Self> {
        let state = State {
            phase: Phase::AwaitingRequest,
            is_blocked: false,
            since: Instant::now(),
            bytes: 0,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            evicted: CancellationToken::new(),
            is_reserve,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a phase, from which time is measured.
    pub fn enter(&self, phase: Phase) {
        let mut state = self.lock();
        state.phase = phase;
        state.restart();
    }

    /// Its client has sent or read `bytes`.
    pub fn progress(&self, bytes: usize) {
        let mut state = self.lock();
        state.bytes += bytes;
        if state.bytes >= PROGRESS_BYTES {
            state.restart();
        }
    }

    fn set_blocked(&self, is_blocked: bool) {
        let mut state = self.lock();
        if state.is_blocked != is_blocked {
            state.is_blocked = is_blocked;
            state.restart();
        }
    }

    /// How long it has waited for its client, if it does.
    fn waited(&self) -> Option<(Duration, Phase)> {
        let state = self.lock();
        state
            .awaits_client()
            .then(|| (state.since.elapsed(), state.phase))
    }

    /// Completes when the connection is evicted.
    pub async fn must_close(&self) {
        self.evicted.cancelled().await;
    }
}

struct Open {
    peer: IpAddr,
    activity: Arc<Activity>,
}

/// All open connections.
pub struct Connections {
    max: usize,
    open: Mutex<(u64, HashMap<u64, Open>)>,
}

impl Connections {
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            open: Mutex::default(),
        })
    }

    /// Open connections at most, without the reserve.
    pub fn max(&self) -> usize {
        self.max
    }

    fn lock(&self) -> MutexGuard<'_, (u64, HashMap<u64, Open>)> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a connection, if there is room. One address has at most half of them; loopback has no
    /// such limit, because all clients of this machine share it.
    fn admit(self: &Arc<Self>, peer: IpAddr) -> Option<Slot> {
        let mut guard = self.lock();
        let (next, open) = &mut *guard;
        let reserve = open.values().filter(|c| c.activity.is_reserve).count();
        let own = open.values().filter(|c| c.peer == peer).count();
        let has_share = peer.is_loopback() || own < self.max.div_ceil(2);
        let is_reserve = if has_share && open.len() - reserve < self.max {
            false
        } else if let Some(evicted) = evict(open, |_, c| has_share || c.peer == peer) {
            evicted.is_reserve
        } else if has_share && reserve < self.max.div_ceil(CONNECTIONS_PER_RESERVE) {
            true
        } else {
            return None;
        };
        *next += 1;
        let activity = Activity::new(is_reserve);
        open.insert(
            *next,
            Open {
                peer,
                activity: activity.clone(),
            },
        );
        Some(Slot {
            id: *next,
            activity,
            connections: self.clone(),
        })
    }

    /// Evicts the connection whose body has stalled longest, if one has stalled long enough. Its
    /// memory is free soon.
    pub fn close_stalled_body(&self) -> bool {
        evict(&mut self.lock().1, |phase, _| phase == Phase::ReadingBody).is_some()
    }
}

/// Evicts the connection that has waited longest for its client, those of the reserve last.
fn evict(
    open: &mut HashMap<u64, Open>,
    is_evictable: impl Fn(Phase, &Open) -> bool,
) -> Option<Arc<Activity>> {
    let waiting = open.iter().filter_map(|(id, connection)| {
        let (waited, phase) = connection.activity.waited()?;
        (waited >= MIN_WAIT && is_evictable(phase, connection)).then_some((
            !connection.activity.is_reserve,
            waited,
            *id,
        ))
    });
    let (_, _, id) = waiting.max()?;
    let evicted = open.remove(&id)?.activity;
    evicted.evicted.cancel();
    Some(evicted)
}

/// Frees a connection's slot when it is dropped.
struct Slot {
    id: u64,
    activity: Arc<Activity>,
    connections: Arc<Connections>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.connections.lock().1.remove(&self.id);
    }
}

/// Accepts connections while there are slots; each request has its connection's [`Activity`].
#[derive(Clone)]
pub struct Limit<A> {
    /// Accepts plain or TLS connections.
    pub inner: A,
    pub connections: Arc<Connections>,
    /// How long a client may take to send its first byte.
    pub first_byte: Duration,
}

impl<A, S> Accept<TcpStream, S> for Limit<A>
where
    A: Accept<TcpStream, S> + 'static,
    A::Future: Send + 'static,
    A::Stream: Send + 'static,
    A::Service: Send + 'static,
    S: 'static,
{
    type Stream = Connection<A::Stream>;
    type Service = AddExtension<A::Service, Arc<Activity>>;
    type Future = Pin<Box<dyn Future<Output = io::Result<(Self::Stream, Self::Service)>> + Send>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let slot = stream
            .peer_addr()
            .ok()
            .and_then(|peer| self.connections.admit(peer.ip().to_canonical()));
        let Some(slot) = slot else {
            return Box::pin(async { Err(io::Error::other("too many connections")) });
        };
        // If it fails, the system's default is as good, only larger.
        let _ = socket2::SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER);
        let (accepted, wait) = (self.inner.accept(stream, service), self.first_byte);
        Box::pin(async move {
            let activity = slot.activity.clone();
            let (io, service) = tokio::select! {
                accepted = accepted => accepted?,
                () = activity.must_close() => return Err(evicted()),
            };
            let service = Extension(activity.clone()).layer(service);
            let is_evicted = Box::pin(activity.evicted.clone().cancelled_owned());
            let first_byte = Some(Box::pin(tokio::time::sleep(wait)));
            Ok((
                Connection {
                    io,
                    matched: 0,
                    first_byte,
                    unread: None,
                    is_evicted,
                    slot,
                },
                service,
            ))
        })
    }
}

fn evicted() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "the connection was closed in favour of another one",
    )
}

/// The preface of HTTP/2.
const HTTP2: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection that holds its slot.
pub struct Connection<T> {
    io: T,
    /// Bytes received that match [`HTTP2`].
    matched: usize,
    /// Runs until the first bytes that are not [`HTTP2`].
    first_byte: Option<Pin<Box<Sleep>>>,
    /// Runs while what was written is not read.
    unread: Option<Pin<Box<Sleep>>>,
    is_evicted: Pin<Box<WaitForCancellationFutureOwned>>,
    slot: Slot,
}

impl<T> Connection<T> {
    /// The result of a read that has to wait. A stalled body is ended by its reader, with an answer.
    fn poll_idle_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self
            .first_byte
            .as_mut()
            .is_some_and(|time| time.as_mut().poll(context).is_ready())
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let is_evicted = self.is_evicted.as_mut().poll(context).is_ready();
        if is_evicted && self.slot.activity.lock().phase == Phase::AwaitingRequest {
            return Poll::Ready(Err(evicted()));
        }
        Poll::Pending
    }

    /// The result of a write that has to wait.
    fn poll_blocked_write<R>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<R>> {
        let activity = &self.slot.activity;
        activity.set_blocked(true);
        if self.is_evicted.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(evicted()));
        }
        let unread = self
            .unread
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_TIMEOUT)));
        while unread.as_mut().poll(context).is_ready() {
            let waited = activity
                .waited()
                .map_or(Duration::ZERO, |(waited, _)| waited);
            let Some(rest) = WRITE_TIMEOUT
                .checked_sub(waited)
                .filter(|rest| !rest.is_zero())
            else {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            };
            unread.as_mut().reset(tokio::time::Instant::now() + rest);
        }
        Poll::Pending
    }

    fn set_flushed(&mut self) {
        self.unread = None;
        self.slot.activity.set_blocked(false);
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Connection<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        match Pin::new(&mut this.io).poll_read(context, buffer) {
            Poll::Pending => this.poll_idle_read(context),
            done => {
                for byte in &buffer.filled()[before..] {
                    if this.first_byte.is_none() {
                        break;
                    }
                    if *byte != HTTP2[this.matched] {
                        this.first_byte = None;
                    } else {
                        this.matched += 1;
                        if this.matched == HTTP2.len() {
                            return Poll::Ready(Err(io::Error::other("HTTP/2 is not served")));
                        }
                    }
                }
                done
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Connection<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match Pin::new(&mut this.io).poll_write(context, bytes) {
            Poll::Pending => this.poll_blocked_write(context),
            written => {
                if let Poll::Ready(Ok(bytes)) = &written {
                    this.slot.activity.progress(*bytes);
                }
                written
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.io).poll_flush(context) {
            Poll::Pending => this.poll_blocked_write(context),
            flushed => {
                this.set_flushed();
                flushed
            }
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.io).poll_shutdown(context) {
            Poll::Pending => this.poll_blocked_write(context),
            shut => shut,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    /// As if the connection had waited so long already.
    fn wait(slot: &Slot, time: Duration) {
        slot.activity.lock().since -= time;
    }

    #[test]
    fn a_waiting_connection_is_evicted_and_a_working_one_is_not() {
        let connections = Connections::new(2);
        let here = IpAddr::from([127, 0, 0, 1]);
        let (first, second) = (
            connections.admit(here).expect("free"),
            connections.admit(here).expect("free"),
        );
        wait(&first, MIN_WAIT);
        wait(&second, MIN_WAIT * 2);
        second.activity.enter(Phase::Working);
        let third = connections.admit(here).expect("the first is evicted");
        assert!(first.activity.evicted.is_cancelled() && !second.activity.evicted.is_cancelled());
        assert!(!third.activity.is_reserve);
        // None has waited long enough: only the reserve is left.
        let fourth = connections.admit(here).expect("one of the reserve");
        assert!(fourth.activity.is_reserve && connections.admit(here).is_none());
        // A connection with an unread answer is evicted too.
        second.activity.set_blocked(true);
        wait(&second, MIN_WAIT);
        assert!(
            !connections
                .admit(here)
                .expect("the second is evicted")
                .activity
                .is_reserve
        );
        drop((first, second, third));
        assert!(
            !connections
                .admit(here)
                .expect("free again")
                .activity
                .is_reserve
        );
    }

    #[test]
    fn another_machine_has_half_of_them_at_most() {
        let connections = Connections::new(4);
        let own: Vec<Slot> = (0..2)
            .map(|_| connections.admit(peer(1)).expect("free"))
            .collect();
        assert!(connections.admit(peer(1)).is_none());
        let other = connections.admit(peer(2)).expect("it has its own share");
        wait(&other, MIN_WAIT * 3);
        wait(&own[1], MIN_WAIT);
        let next = connections.admit(peer(1)).expect("its own gives way");
        assert!(own[1].activity.evicted.is_cancelled() && !other.activity.evicted.is_cancelled());
        assert_eq!(connections.lock().1.len(), 3);
        drop((own, next, other));
        assert!(connections.lock().1.is_empty());
    }

    #[test]
    fn little_by_little_is_no_progress() {
        let connections = Connections::new(1);
        let slot = connections.admit(peer(1)).expect("free");
        slot.activity.enter(Phase::ReadingBody);
        wait(&slot, MIN_WAIT);
        (0..10).for_each(|_| slot.activity.progress(100));
        assert!(
            slot.activity
                .waited()
                .is_some_and(|(waited, _)| waited >= MIN_WAIT)
        );
        slot.activity.progress(PROGRESS_BYTES);
        assert!(!connections.close_stalled_body());
        wait(&slot, MIN_WAIT);
        assert!(connections.close_stalled_body() && !connections.close_stalled_body());
    }
}
