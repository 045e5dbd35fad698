//! A server with the protocol of the original stream: a websocket and chunked HTTP at one path, one
//! record per message, with `since_mtime` and `since_count` over HTTP.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use futures::{StreamExt, stream};
use tokio::sync::broadcast;

/// Records retained for `since_mtime` and `since_count`.
const MAX_RETAINED: usize = 10_000;
/// Records that a slow client may lag before it loses some.
const MAX_LAG: usize = 16_384;
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that may wait to be written to a client: records, and answers to its pings.
const WRITE_BYTES: usize = 4 << 20;

/// The records of a server with the original stream's protocol, and its connected clients.
#[derive(Clone)]
pub struct Upstream {
    sender: broadcast::Sender<(i64, Bytes)>,
    retained: Arc<Mutex<VecDeque<(i64, Bytes)>>>,
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            sender: broadcast::channel(MAX_LAG).0,
            retained: Arc::default(),
        }
    }
}

impl Upstream {
    /// Sends a record to all clients; `mtime` is in milliseconds since 1970. A client that lags too
    /// far behind loses records.
    pub fn send(&self, mtime: i64, record: &str) {
        let record = Bytes::copy_from_slice(record.as_bytes());
        let mut retained = self.retained.lock().unwrap_or_else(PoisonError::into_inner);
        retained.push_back((mtime, record.clone()));
        if retained.len() > MAX_RETAINED {
            retained.pop_front();
        }
        // It fails only without clients.
        let _ = self.sender.send((mtime, record));
    }

    /// Serves at `path` until the process ends; returns the bound address.
    pub async fn serve(self, address: SocketAddr, path: &str) -> std::io::Result<SocketAddr> {
        let listener = tokio::net::TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        let router = Router::new().route(path, any(records)).with_state(self);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(bound)
    }

    fn past(&self, params: &BTreeMap<String, String>) -> Vec<(i64, Bytes)> {
        let retained = self.retained.lock().unwrap_or_else(PoisonError::into_inner);
        let number = |name: &str| params.get(name).and_then(|v| v.parse::<i64>().ok());
        match (number("since_mtime"), number("since_count")) {
            (Some(since), _) => retained
                .iter()
                .filter(|(mtime, _)| *mtime > since)
                .cloned()
                .collect(),
            (None, Some(count)) => {
                let count = usize::try_from(count).unwrap_or(0).min(retained.len());
                retained
                    .iter()
                    .skip(retained.len() - count)
                    .cloned()
                    .collect()
            }
            (None, None) => Vec::new(),
        }
    }
}

async fn records(
    State(upstream): State<Upstream>,
    Query(params): Query<BTreeMap<String, String>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let mut receiver = upstream.sender.subscribe();
    if let Ok(upgrade) = upgrade {
        return upgrade.max_write_buffer_size(WRITE_BYTES).on_upgrade(async move |mut socket| {
            loop {
                tokio::select! {
                    record = receiver.recv() => match record {
                        Ok((_, record)) => {
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
        });
    }
    let past = stream::iter(upstream.past(&params));
    let live = stream::unfold(receiver, |mut receiver| async move {
        loop {
            match receiver.recv().await {
                Ok(record) => return Some((record, receiver)),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    });
    let lines = past.chain(live).map(|(_, record)| {
        let mut line = record.to_vec();
        line.push(b'\n');
        Ok::<_, std::io::Error>(Bytes::from(line))
    });
    (
        [(header::CONTENT_TYPE, "application/json; charset=utf-8")],
        Body::from_stream(lines),
    )
        .into_response()
}
