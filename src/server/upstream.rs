//! A server with the protocol of the original stream: a websocket and chunked HTTP at one path, one
//! record per message, with `since_mtime` and `since_count` over HTTP; and server-sent events for a
//! client that accepts them, which continues after a `Last-Event-ID`.

mod follow;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::any;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

/// Records retained for `since_mtime`, `since_count` and `Last-Event-ID`.
const MAX_RETAINED: usize = 10_000;
/// Records that a slow client of the websocket may lag before it loses some.
const MAX_LAG: usize = 16_384;
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that may wait to be written to a client: records, and answers to its pings.
const WRITE_BYTES: usize = 4 << 20;
/// For how long clients may still read after the last record.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// All records from the first one on, for a client that continues after one that is not retained.
pub type Records = Box<dyn Iterator<Item = io::Result<String>> + Send>;

/// Opens the records again.
pub type History = Arc<dyn Fn() -> io::Result<Records> + Send + Sync>;

/// The records of a server with the original stream's protocol, and its connected clients.
#[derive(Clone)]
pub struct Upstream {
    sender: broadcast::Sender<Bytes>,
    shared: Arc<Shared>,
}

struct Shared {
    retained: Mutex<Retained>,
    progress: watch::Sender<Progress>,
    /// Before the number of a record in its event id.
    id_prefix: String,
    history: Option<History>,
    server: Mutex<Option<JoinHandle<io::Result<()>>>>,
}

/// The newest records. They are numbered from 1.
#[derive(Default)]
struct Retained {
    records: VecDeque<(i64, Bytes)>,
    /// The number of the newest one.
    last: u64,
}

/// How far the stream is.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    last: u64,
    /// No record follows.
    has_ended: bool,
}

impl Default for Upstream {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Upstream {
    /// With a history, a client continues after any record, also of an earlier process: their ids
    /// are the records' numbers. Without one, ids are valid for this process.
    pub fn new(history: Option<History>) -> Self {
        let id_prefix = match history {
            Some(_) => String::new(),
            None => format!("{:08x}-", rand::random::<u32>()),
        };
        Self {
            sender: broadcast::channel(MAX_LAG).0,
            shared: Arc::new(Shared {
                retained: Mutex::default(),
                progress: watch::Sender::default(),
                id_prefix,
                history,
                server: Mutex::default(),
            }),
        }
    }

    /// Sends a record to all clients; `mtime` is in milliseconds since 1970. A client of the
    /// websocket that lags too far behind loses records.
    pub fn send(&self, mtime: i64, record: &str) {
        let record = Bytes::copy_from_slice(record.as_bytes());
        let last = {
            let mut retained = self.retained();
            retained.records.push_back((mtime, record.clone()));
            retained.last += 1;
            if retained.records.len() > MAX_RETAINED {
                retained.records.pop_front();
            }
            retained.last
        };
        self.shared
            .progress
            .send_modify(|progress| progress.last = last);
        // It fails only without clients.
        let _ = self.sender.send(record);
    }

    fn retained(&self) -> MutexGuard<'_, Retained> {
        let retained = &self.shared.retained;
        retained.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves at `path` until the process ends; returns the bound address.
    pub async fn serve(self, address: SocketAddr, path: &str) -> io::Result<SocketAddr> {
        let listener = tokio::net::TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        let shared = self.shared.clone();
        let mut progress = shared.progress.subscribe();
        let router = Router::new().route(path, any(records)).with_state(self);
        let server = tokio::spawn(async move {
            let ended = async move { drop(progress.wait_for(|p| p.has_ended).await) };
            axum::serve(listener, router)
                .with_graceful_shutdown(ended)
                .await
        });
        *shared.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
        Ok(bound)
    }

    /// Ends every answer over HTTP after the last record, and waits until clients have read it.
    pub async fn finish(&self) {
        let progress = &self.shared.progress;
        progress.send_modify(|progress| progress.has_ended = true);
        let server = &self.shared.server;
        let server = server.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(server) = server {
            let _ = tokio::time::timeout(END_TIMEOUT, server).await;
        }
    }
}

async fn records(
    State(upstream): State<Upstream>,
    Query(params): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let Ok(upgrade) = upgrade else {
        return follow::answer(upstream, &params, &headers);
    };
    let mut receiver = upstream.sender.subscribe();
    upgrade.max_write_buffer_size(WRITE_BYTES).on_upgrade(async move |mut socket| {
        loop {
            tokio::select! {
                record = receiver.recv() => match record {
                    Ok(record) => {
                        let text = String::from_utf8_lossy(&record).into_owned();
                        let sent = tokio::time::timeout(SEND_TIMEOUT, socket.send(Message::Text(text.into()))).await;
                        if !matches!(sent, Ok(Ok(()))) { break }
                    }
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => break,
                },
                message = socket.recv() => if !matches!(message, Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Text(_) | Message::Binary(_)))) { break },
            }
        }
    })
}
