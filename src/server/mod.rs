//! HTTP: intake of records, queries, and health of the process. Loopback only unless tokens and TLS
//! are configured.

mod body;
mod connections;
mod error;
mod getsocial;
mod guard;
mod in_flight;
mod intake;
mod live;
mod notebooks;
mod overview;
mod page;
mod receive;
mod rendered;
mod routes;
pub mod upstream;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::http::header;
use axum::middleware;
use axum::routing::get;
use axum_server::Handle;
use axum_server::accept::DefaultAcceptor;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::{Config as SwaggerConfig, SwaggerUi};

use crate::event::Micros;
use crate::ingest::Ingest;
use crate::query::ClientId;
use crate::query::live::Live;
use crate::runtime::backup::Backup;
use crate::runtime::notebooks::Notebooks;
use crate::runtime::query_service::QueryService;
use crate::runtime::resources::Resources;
use crate::runtime::sink_threads::SinkControls;
use connections::{Connections, Limit};
use in_flight::InFlight;
use overview::Overviews;
use rendered::Rendered;

/// How long open requests may continue once the server stops.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);
/// How long a client may take to send its request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How old rendered metrics may be.
const MAX_METRICS_AGE: Duration = Duration::from_millis(100);
/// Retries of dead letters that may be open at once; they run one after the other.
const MAX_RETRIES: usize = 4;

/// The header with a server's [`Parts::folder_key`].
pub const FOLDER_KEY: &str = "weir-folder-key";

/// What a server needs of the process.
pub struct Parts {
    /// Answers queries on the views.
    pub queries: QueryService,
    /// Why the process is not ready, if it is not.
    pub readiness: Arc<dyn Fn() -> Result<Vec<String>, String> + Send + Sync>,
    /// Renders the process's metrics.
    pub metrics: PrometheusHandle,
    /// Rows for live streams.
    pub live: Arc<Live>,
    /// Commands to sinks.
    pub sinks: SinkControls,
    /// Copies the data folder while the process runs.
    pub backup: Backup,
    /// The folder below which backups over HTTP are written; without it there are none.
    pub backups: Option<PathBuf>,
    /// Saved notebooks.
    pub notebooks: Arc<Notebooks>,
    /// Measures the data folder and the process.
    pub resources: Arc<Resources>,
    /// The configuration in force, without secrets.
    pub configuration: serde_json::Value,
    /// A secret in the data folder. A client that knows it may read the folder, and so may write a
    /// backup anywhere.
    pub folder_key: String,
    /// If set, the process restarts without closing its port, which installs rebuilt views.
    pub restart: Arc<AtomicBool>,
    /// Maximum bytes of a body, also when it is decompressed.
    pub body_bytes: usize,
    /// Bytes of all open bodies together.
    pub bodies_bytes: usize,
    /// Maximum bytes of a record; an oversized one keeps its first `cut_bytes`.
    pub record_bytes: usize,
    pub cut_bytes: usize,
    /// Open connections; half of them may be live streams.
    pub connections: usize,
    /// SHA-256 of the accepted tokens, and whether they may write; if empty, none is needed.
    pub tokens: Vec<([u8; 32], bool)>,
    /// Files of the certificate and the private key; without them the server speaks plain HTTP.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// The listening address, which requests may name as their host.
    pub host: String,
    /// Whether other machines can reach it; tokens are needed then.
    pub is_public: bool,
}

/// State that routes share.
#[derive(Clone)]
pub struct App(Arc<Inner>);

pub(crate) struct Inner {
    parts: Parts,
    /// By which clients notice that the server was restarted, also within one process.
    started_at: Micros,
    metrics: Rendered,
    ingest: Mutex<Option<Ingest>>,
    in_flight: InFlight,
    /// Held by the retry of dead letters that runs.
    retry_turn: Arc<tokio::sync::Mutex<()>>,
    open_retries: Arc<Semaphore>,
    backups: Semaphore,
    /// Running queries that have a name.
    queries: Mutex<HashMap<String, (ClientId, CancellationToken)>>,
    /// Free KiB for bodies.
    bodies: Arc<Semaphore>,
    connections: Arc<Connections>,
    /// Free slots for live streams.
    live: Arc<Semaphore>,
    overviews: Overviews,
    stop: CancellationToken,
}

impl App {
    fn new(parts: Parts, stop: CancellationToken) -> Self {
        let bodies = Arc::new(Semaphore::new((parts.bodies_bytes >> 10).max(1)));
        let (ingest, in_flight, queries) =
            (Mutex::default(), InFlight::default(), Mutex::default());
        let retry_turn = Arc::default();
        let (open_retries, backups) = (Arc::new(Semaphore::new(MAX_RETRIES)), Semaphore::new(1));
        let live = Arc::new(Semaphore::new(parts.connections.div_ceil(2)));
        let connections = Connections::new(parts.connections);
        Self(Arc::new(Inner {
            started_at: parts.queries.clock.now(),
            parts,
            metrics: Rendered::new(MAX_METRICS_AGE),
            ingest,
            in_flight,
            retry_turn,
            open_retries,
            backups,
            queries,
            bodies,
            connections,
            live,
            overviews: Overviews::default(),
            stop,
        }))
    }

    fn queries(&self) -> MutexGuard<'_, HashMap<String, (ClientId, CancellationToken)>> {
        self.0
            .queries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn ingest(&self) -> Option<Ingest> {
        self.0
            .ingest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

#[derive(OpenApi)]
#[openapi(info(
    title = "Weir",
    description = "Live JSON events: ingested, stored, and queried.",
    license(name = "MIT OR Apache-2.0")
))]
struct Document;

fn api() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(intake::post_events))
        .routes(routes!(routes::count))
        .routes(routes!(routes::search))
        .routes(routes!(routes::search_facets))
        .routes(routes!(routes::nearby))
        .routes(routes!(routes::windows))
        .routes(routes!(routes::status))
        .routes(routes!(routes::sql))
        .routes(routes!(routes::end_sql))
        .routes(routes!(routes::backup))
        .routes(routes!(routes::retry))
        .routes(routes!(routes::command_sink))
        .routes(routes!(routes::install_rebuilt))
        .routes(routes!(live::live))
        .routes(routes!(overview::overview))
        .routes(routes!(routes::configuration))
        .routes(routes!(notebooks::list))
        .routes(routes!(notebooks::read, notebooks::save, notebooks::delete))
        .routes(routes!(getsocial::count))
        .routes(routes!(getsocial::all_events))
        .routes(routes!(routes::healthz))
        .routes(routes!(routes::readyz))
        .routes(routes!(routes::metrics))
        .routes(routes!(page::index))
        .routes(routes!(page::assets::asset))
}

fn router(app: App) -> Router {
    let (router, document) = api().split_for_parts();
    let docs =
        SwaggerUi::new("/docs").config(SwaggerConfig::new(["/openapi.json"]).validator_url("none"));
    let document = Bytes::from(document.to_json().expect("plain data"));
    let described = || async move { ([(header::CONTENT_TYPE, "application/json")], document) };
    router
        .merge(docs)
        .route("/openapi.json", get(described))
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::bad_method)
        .layer(middleware::from_fn_with_state(app.clone(), guard::guard))
        .with_state(app)
}

/// Why a server ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("the HTTP server ended: {0}")]
    Io(#[from] std::io::Error),
    /// Its task panicked.
    #[error("the HTTP server ended: {0}")]
    Panicked(#[from] tokio::task::JoinError),
}

/// A running server.
pub struct Server {
    app: App,
    handle: Handle<SocketAddr>,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Server {
    /// Serves on a bound listener; fails if the certificate or the key cannot be read.
    pub async fn start(listener: std::net::TcpListener, parts: Parts) -> std::io::Result<Self> {
        listener.set_nonblocking(true)?;
        let tls = match &parts.tls {
            None => None,
            Some((certificate, key)) => Some(RustlsConfig::from_pem_file(certificate, key).await?),
        };
        let app = App::new(parts, CancellationToken::new());
        let connections = app.0.connections.clone();
        let handle = Handle::new();
        let service = router(app.clone()).into_make_service();
        let serving = handle.clone();
        macro_rules! serve {
            ($acceptor:expr) => {{
                let acceptor = Limit {
                    inner: $acceptor,
                    connections,
                    first_byte: HEAD_TIMEOUT,
                };
                let mut server = axum_server::from_tcp(listener)?
                    .acceptor(acceptor)
                    .handle(serving);
                server
                    .http_builder()
                    .http1()
                    .timer(hyper_util::rt::TokioTimer::new())
                    .header_read_timeout(HEAD_TIMEOUT)
                    .max_buf_size(64 << 10);
                tokio::spawn(server.serve(service))
            }};
        }
        let task = match tls {
            None => serve!(DefaultAcceptor::new()),
            Some(config) => {
                let mut only_http1 = (*config.get_inner()).clone();
                only_http1.alpn_protocols = vec![b"http/1.1".to_vec()];
                config.reload_from_config(Arc::new(only_http1));
                serve!(RustlsAcceptor::new(config).handshake_timeout(Duration::from_secs(5)))
            }
        };
        Ok(Self { app, handle, task })
    }

    /// Accepts records from now on.
    pub fn open_intake(&self, ingest: Ingest) {
        *self
            .app
            .0
            .ingest
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(ingest);
    }

    /// Whether the server has ended, which before [`Server::stop`] only a fault causes.
    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Closes the intake, lets open requests end, and drops the ingest handle. The error is why the
    /// server had ended before.
    pub async fn stop(self) -> Result<(), ServerError> {
        self.app.0.stop.cancel();
        self.handle.graceful_shutdown(Some(SHUTDOWN_GRACE));
        let ended = self.task.await;
        self.app.0.overviews.ended().await;
        self.app
            .0
            .ingest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        Ok(ended??)
    }
}

/// The OpenAPI document, for the reference in `docs`.
#[cfg(test)]
pub(crate) fn document() -> serde_json::Value {
    let (_, document) = api().split_for_parts();
    serde_json::to_value(document).expect("plain data")
}
