//! A connection's limits: their number, the time until the first byte, and the time for which an
//! answer may stay unread. HTTP/1 only: the sniffing of HTTP/2 has no time limit of its own.
//!
//! Where all connections are taken, one that has waited for its client gives way to a new one: a
//! client that sends or reads nothing keeps nobody else out. Beside them there are a few for what
//! must always be answered ([`super::guard`] says what that is).

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

/// Bytes within which a client must make progress: less than these in a time is none.
const WINDOW_BYTES: usize = 64 << 10;
/// How long an answer may stay unread.
const WRITE_TIME: Duration = Duration::from_secs(20);
/// How long a connection waits for its client before it may have to give way.
const PATIENCE: Duration = Duration::from_secs(1);
/// What the system buffers of an answer: no more, so that a slow reader is told from one that reads
/// nothing.
const SEND_BUFFER: usize = 256 << 10;
/// Connections beside the others: one for each so many.
const RESERVE: usize = 8;

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    AwaitsRequest,
    ReadsBody,
    /// Its client waits, unless it does not read.
    Works,
}

/// Whether a connection waits for its client, and since when.
pub struct Activity {
    state: Mutex<State>,
    gives_way: CancellationToken,
    /// It is one of those beside the others.
    pub is_reserve: bool,
}

struct State {
    phase: Phase,
    /// What was written has not been read.
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
        self.is_blocked || self.phase != Phase::Works
    }
}

impl Activity {
    fn new(is_reserve: bool) -> Arc<Self> {
        let state = State {
            phase: Phase::AwaitsRequest,
            is_blocked: false,
            since: Instant::now(),
            bytes: 0,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            gives_way: CancellationToken::new(),
            is_reserve,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn enter(&self, phase: Phase) {
        let mut state = self.lock();
        state.phase = phase;
        state.restart();
    }

    /// Its client has sent or read so much.
    pub fn progress(&self, bytes: usize) {
        let mut state = self.lock();
        state.bytes += bytes;
        if state.bytes >= WINDOW_BYTES {
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

    /// How long it has waited for its client.
    fn waited(&self) -> Option<(Duration, Phase)> {
        let state = self.lock();
        state
            .awaits_client()
            .then(|| (state.since.elapsed(), state.phase))
    }

    /// Ends when the connection has to give way.
    pub async fn gave_way(&self) {
        self.gives_way.cancelled().await;
    }
}

struct Open {
    peer: IpAddr,
    activity: Arc<Activity>,
}

/// All open connections.
pub struct Connections {
    most: usize,
    open: Mutex<(u64, HashMap<u64, Open>)>,
}

impl Connections {
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            open: Mutex::default(),
        })
    }

    pub fn most(&self) -> usize {
        self.most
    }

    fn lock(&self) -> MutexGuard<'_, (u64, HashMap<u64, Open>)> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection. Another machine has half of them at most; of this machine's
    /// clients all come from one address.
    fn admit(self: &Arc<Self>, peer: IpAddr) -> Option<Admitted> {
        let mut guard = self.lock();
        let (next, open) = &mut *guard;
        let reserve = open.values().filter(|c| c.activity.is_reserve).count();
        let own = open.values().filter(|c| c.peer == peer).count();
        let has_share = peer.is_loopback() || own < self.most.div_ceil(2);
        let is_reserve = if has_share && open.len() - reserve < self.most {
            false
        } else if let Some(gone) = give_way(open, |_, c| has_share || c.peer == peer) {
            gone.is_reserve
        } else if has_share && reserve < self.most.div_ceil(RESERVE) {
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
        Some(Admitted {
            id: *next,
            activity,
            connections: self.clone(),
        })
    }

    /// Ends the body that has been waited for longest, if one has kept others waiting long enough.
    /// Its room is free soon.
    pub fn give_up_a_body(&self) -> bool {
        give_way(&mut self.lock().1, |phase, _| phase == Phase::ReadsBody).is_some()
    }
}

/// Lets the connection that has waited longest for its client give way, those of the reserve last.
fn give_way(
    open: &mut HashMap<u64, Open>,
    may: impl Fn(Phase, &Open) -> bool,
) -> Option<Arc<Activity>> {
    let waiting = open.iter().filter_map(|(id, connection)| {
        let (waited, phase) = connection.activity.waited()?;
        (waited >= PATIENCE && may(phase, connection)).then_some((
            !connection.activity.is_reserve,
            waited,
            *id,
        ))
    });
    let (_, _, id) = waiting.max()?;
    let gone = open.remove(&id)?.activity;
    gone.gives_way.cancel();
    Some(gone)
}

/// A connection's place, as long as it lives.
struct Admitted {
    id: u64,
    activity: Arc<Activity>,
    connections: Arc<Connections>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.connections.lock().1.remove(&self.id);
    }
}

/// Accepts connections while there are places; each request has its connection's [`Activity`].
#[derive(Clone)]
pub struct Limit<A> {
    pub inner: A,
    pub connections: Arc<Connections>,
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
        let admitted = stream
            .peer_addr()
            .ok()
            .and_then(|peer| self.connections.admit(peer.ip().to_canonical()));
        let Some(admitted) = admitted else {
            return Box::pin(async { Err(io::Error::other("too many connections")) });
        };
        // Without it the system's own size is as good, only larger.
        let _ = socket2::SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER);
        let (accepted, wait) = (self.inner.accept(stream, service), self.first_byte);
        Box::pin(async move {
            let activity = admitted.activity.clone();
            let (io, service) = tokio::select! {
                accepted = accepted => accepted?,
                () = activity.gave_way() => return Err(gave_way()),
            };
            let service = Extension(activity.clone()).layer(service);
            let gives_way = Box::pin(activity.gives_way.clone().cancelled_owned());
            let first = Some(Box::pin(tokio::time::sleep(wait)));
            Ok((
                Connection {
                    io,
                    seen: 0,
                    first,
                    unread: None,
                    gives_way,
                    admitted,
                },
                service,
            ))
        })
    }
}

fn gave_way() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "the connection gave way to another one",
    )
}

const HTTP2: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection that holds its place.
pub struct Connection<T> {
    io: T,
    /// Bytes that could begin HTTP/2.
    seen: usize,
    first: Option<Pin<Box<Sleep>>>,
    /// Runs while what was written is not read.
    unread: Option<Pin<Box<Sleep>>>,
    gives_way: Pin<Box<WaitForCancellationFutureOwned>>,
    admitted: Admitted,
}

impl<T> Connection<T> {
    /// What becomes of a read that has to wait. One of a body is ended by who reads it, with an
    /// answer.
    fn waits_to_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self
            .first
            .as_mut()
            .is_some_and(|time| time.as_mut().poll(context).is_ready())
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let gives_way = self.gives_way.as_mut().poll(context).is_ready();
        if gives_way && self.admitted.activity.lock().phase == Phase::AwaitsRequest {
            return Poll::Ready(Err(gave_way()));
        }
        Poll::Pending
    }

    fn waits_to_write<R>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<R>> {
        let activity = &self.admitted.activity;
        activity.set_blocked(true);
        if self.gives_way.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(gave_way()));
        }
        let unread = self
            .unread
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_TIME)));
        while unread.as_mut().poll(context).is_ready() {
            let waited = activity
                .waited()
                .map_or(Duration::ZERO, |(waited, _)| waited);
            let Some(rest) = WRITE_TIME
                .checked_sub(waited)
                .filter(|rest| !rest.is_zero())
            else {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            };
            unread.as_mut().reset(tokio::time::Instant::now() + rest);
        }
        Poll::Pending
    }

    fn all_written(&mut self) {
        self.unread = None;
        self.admitted.activity.set_blocked(false);
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
            Poll::Pending => this.waits_to_read(context),
            done => {
                for byte in &buffer.filled()[before..] {
                    if this.first.is_none() {
                        break;
                    }
                    if *byte != HTTP2[this.seen] {
                        this.first = None;
                    } else {
                        this.seen += 1;
                        if this.seen == HTTP2.len() {
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
            Poll::Pending => this.waits_to_write(context),
            written => {
                if let Poll::Ready(Ok(bytes)) = &written {
                    this.admitted.activity.progress(*bytes);
                }
                written
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.io).poll_flush(context) {
            Poll::Pending => this.waits_to_write(context),
            flushed => {
                this.all_written();
                flushed
            }
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.io).poll_shutdown(context) {
            Poll::Pending => this.waits_to_write(context),
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
    fn wait(admitted: &Admitted, time: Duration) {
        admitted.activity.lock().since -= time;
    }

    #[test]
    fn one_that_waits_for_its_client_gives_way_and_one_that_works_does_not() {
        let connections = Connections::new(2);
        let here = IpAddr::from([127, 0, 0, 1]);
        let (first, second) = (
            connections.admit(here).expect("free"),
            connections.admit(here).expect("free"),
        );
        wait(&first, PATIENCE);
        wait(&second, PATIENCE * 2);
        second.activity.enter(Phase::Works);
        let third = connections.admit(here).expect("the first gives way");
        assert!(
            first.activity.gives_way.is_cancelled() && !second.activity.gives_way.is_cancelled()
        );
        assert!(!third.activity.is_reserve);
        // Nobody has waited: what is left is kept for what must always be answered.
        let fourth = connections.admit(here).expect("one beside the others");
        assert!(fourth.activity.is_reserve && connections.admit(here).is_none());
        // An answer that nobody reads gives way too.
        second.activity.set_blocked(true);
        wait(&second, PATIENCE);
        assert!(
            !connections
                .admit(here)
                .expect("the second gives way")
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
        let own: Vec<Admitted> = (0..2)
            .map(|_| connections.admit(peer(1)).expect("free"))
            .collect();
        assert!(connections.admit(peer(1)).is_none());
        let other = connections.admit(peer(2)).expect("it has its own share");
        wait(&other, PATIENCE * 3);
        wait(&own[1], PATIENCE);
        let next = connections.admit(peer(1)).expect("its own gives way");
        assert!(
            own[1].activity.gives_way.is_cancelled() && !other.activity.gives_way.is_cancelled()
        );
        assert_eq!(connections.lock().1.len(), 3);
        drop((own, next, other));
        assert!(connections.lock().1.is_empty());
    }

    #[test]
    fn little_by_little_is_no_progress() {
        let connections = Connections::new(1);
        let admitted = connections.admit(peer(1)).expect("free");
        admitted.activity.enter(Phase::ReadsBody);
        wait(&admitted, PATIENCE);
        (0..10).for_each(|_| admitted.activity.progress(100));
        assert!(
            admitted
                .activity
                .waited()
                .is_some_and(|(waited, _)| waited >= PATIENCE)
        );
        admitted.activity.progress(WINDOW_BYTES);
        assert!(!connections.give_up_a_body());
        wait(&admitted, PATIENCE);
        assert!(connections.give_up_a_body() && !connections.give_up_a_body());
    }
}
