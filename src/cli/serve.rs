//! A pipeline with its HTTP server, until a signal: shared by `run` and `demo`.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;

use super::Global;
use super::progress::{Progress, Unit};
use crate::config::Config;
use crate::runtime::data_dir::Address;
use crate::runtime::notebooks::Notebooks;
use crate::runtime::{
    Options, POLL, Running, RuntimeError, metrics as runtime_metrics, stop_signal,
};
use crate::server::{Parts, Server};

/// How often metrics are updated.
const METRICS_INTERVAL: Duration = Duration::from_secs(1);
/// A gauge expires that was not updated for this long: the lag of a revoked partition, for example.
const GAUGE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long requests may still run when everything else has stopped.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// Binds the configured address.
pub fn bind(config: &Config) -> Result<TcpListener, RuntimeError> {
    let address = config.server.http;
    TcpListener::bind(address).map_err(|e| {
        RuntimeError::Failed(format!(
            "{address}: {e}; stop the process that listens there, or choose another port (`[server] http`, or --port for the demo)"
        ))
    })
}

/// A bar of a start: while the folder is opened, then while the log's past is applied.
pub struct Recovery<'a> {
    global: &'a Global,
    opening: Option<Progress>,
    applying: Option<Progress>,
}

impl<'a> Recovery<'a> {
    /// Of a folder that is about to be opened.
    pub fn new(global: &'a Global) -> Self {
        let opening = Progress::new(global, "opening the data folder", Unit::None);
        Self {
            global,
            opening: Some(opening),
            applying: None,
        }
    }

    /// Shows how far it is, until it `has_resumed`.
    pub fn show(&mut self, running: &Running, has_resumed: bool) {
        self.opening = None;
        // A new log begins with one record, the configuration.
        if has_resumed || running.recovered() <= 1 {
            self.applying = None;
            return;
        }
        let new = || Progress::new(self.global, "applying the log", Unit::Records);
        let applying = self.applying.get_or_insert_with(new);
        applying.set(running.replayed(), Some(running.recovered()));
    }
}

/// Runs until a signal; `tick` is called about every 50 ms, with whether the log's past has been
/// applied. To install rebuilt views, everything stops and starts again while the port stays open;
/// `options` are those of the first start.
pub fn serve(
    config: &Config,
    listener: &TcpListener,
    runtime: &tokio::runtime::Runtime,
    mut options: Options,
    mut tick: impl FnMut(&Running, bool),
) -> Result<(), RuntimeError> {
    let signal = stop_signal(runtime);
    let metrics = PrometheusBuilder::new()
        .set_buckets_for_metric(
            Matcher::Suffix("_seconds".into()),
            &[0.001, 0.005, 0.02, 0.1, 0.5, 2.0],
        )
        .map(|builder| builder.idle_timeout(MetricKindMask::GAUGE, Some(GAUGE_TIMEOUT)))
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(|e| RuntimeError::Failed(format!("metrics: {e}")))?;
    runtime_metrics::describe();
    loop {
        let own_listener = listener
            .try_clone()
            .map_err(|e| RuntimeError::Failed(e.to_string()))?;
        let is_signalled = || signal.is_finished();
        if !serve_once(
            config,
            own_listener,
            runtime,
            std::mem::take(&mut options),
            &metrics,
            &is_signalled,
            &mut tick,
        )? {
            return Ok(());
        }
        tracing::info!("restarting");
    }
}

/// Runs until a signal or a request to restart; true for a restart.
fn serve_once(
    config: &Config,
    listener: TcpListener,
    runtime: &tokio::runtime::Runtime,
    options: Options,
    metrics: &PrometheusHandle,
    is_signalled: &dyn Fn() -> bool,
    tick: &mut dyn FnMut(&Running, bool),
) -> Result<bool, RuntimeError> {
    let mut running = start(config, options, runtime)?;
    let http = listener
        .local_addr()
        .map_err(|e| RuntimeError::Failed(e.to_string()))?;
    let restart = Arc::new(AtomicBool::new(false));
    let address = Address {
        pid: std::process::id(),
        http,
        tls: config.server.tls.is_some(),
        key: format!("{:032x}", rand::random::<u128>()),
    };
    let parts = parts(config, &running, metrics, &address, &restart)?;
    let server = runtime
        .block_on(Server::start(listener, parts))
        .map_err(|e| RuntimeError::Failed(format!("{http}: {e}")))?;
    let mut published = running.folder.publish_address(&address);
    if let Err(error) = &published {
        // A full disk does not keep queries from being answered.
        tracing::warn!(%error, "verbs do not find this server until its address can be written; HTTP answers");
    }
    tracing::info!(address = %http, "ready");
    let (mut since_metrics, mut has_resumed) = (METRICS_INTERVAL, false);
    while !is_signalled()
        && !running.has_failed()
        && !server.has_ended()
        && !restart.load(Ordering::Acquire)
    {
        if running.resume(config)? {
            has_resumed = true;
            if config.server.ingest {
                server.open_intake(running.ingest()?);
            }
        }
        tick(&running, has_resumed);
        since_metrics += POLL;
        if since_metrics >= METRICS_INTERVAL {
            if published.is_err() {
                published = running.folder.publish_address(&address);
            }
            running.publish_metrics();
            metrics.run_upkeep();
            since_metrics = Duration::ZERO;
        }
        std::thread::sleep(POLL);
    }
    tracing::info!("stopping");
    if !restart.load(Ordering::Acquire) {
        running.folder.remove_address();
    }
    running.stop.request();
    let served = runtime
        .block_on(server.stop())
        .map_err(|e| RuntimeError::Failed(e.to_string()));
    let stopped = stop(running, restart.load(Ordering::Acquire), is_signalled);
    match (served, stopped) {
        (Err(served), Err(stopped)) => Err(RuntimeError::Several(vec![served, stopped])),
        (served, stopped) => served.and(stopped),
    }
}

/// Opens the data folder, in a thread that ends: the memory that opening takes and frees returns to
/// the system with it.
fn start(
    config: &Config,
    options: Options,
    runtime: &tokio::runtime::Runtime,
) -> Result<Running, RuntimeError> {
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| Running::start(config, options, runtime.handle()));
        opening.join().unwrap_or_else(|_| {
            Err(RuntimeError::Failed(
                "opening the data folder panicked".into(),
            ))
        })
    })
}

/// What the server needs of the running pipeline.
fn parts(
    config: &Config,
    running: &Running,
    metrics: &PrometheusHandle,
    address: &Address,
    restart: &Arc<AtomicBool>,
) -> Result<Parts, RuntimeError> {
    Ok(Parts {
        queries: running.queries.clone(),
        readiness: running.readiness(),
        metrics: metrics.clone(),
        live: running.live(),
        sinks: running.sink_controls(),
        backup: running.backup(config),
        backups: config.server.backups.clone(),
        notebooks: Arc::new(Notebooks::new(running.folder.notebooks())),
        resources: running.resources.clone(),
        configuration: config.shown(),
        folder_key: address.key.clone(),
        restart: restart.clone(),
        body_bytes: config.limits.body,
        bodies_bytes: config.limits.shares().queues,
        record_bytes: config.limits.record,
        cut_bytes: config.limits.dead_letter,
        connections: config.limits.connections,
        tokens: read_tokens(config)?,
        tls: config.server.tls.clone(),
        host: address.http.ip().to_string(),
        is_public: !address.http.ip().is_loopback(),
    })
}

/// Stops the pipeline; true if it is to be restarted. The address is published until the process
/// ends.
fn stop(
    running: Running,
    restart: bool,
    is_signalled: &dyn Fn() -> bool,
) -> Result<bool, RuntimeError> {
    let is_to_restart = restart && !running.has_failed();
    let folder = running.folder.clone();
    if is_to_restart {
        running.stop_for_restart()?;
    } else {
        running.stop()?;
    }
    let is_restarting = is_to_restart && !is_signalled();
    if !is_restarting {
        folder.remove_address();
    }
    Ok(is_restarting)
}

/// Refuses a secret that others can write, and warns of one that they can read.
fn check_permissions(path: &std::path::Path, secret: &str) -> Result<(), RuntimeError> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = std::fs::metadata(path).map_err(|e| {
        let path = path.display();
        RuntimeError::Config(format!(
            "{path}: {e}; {secret} must be a file that this user may read"
        ))
    })?;
    let mode = metadata.permissions().mode();
    if mode & 0o022 != 0 {
        let path = path.display();
        return Err(RuntimeError::Config(format!(
            "{path}: others can write {secret}; run `chmod 600 {path}`"
        )));
    }
    if mode & 0o044 != 0 {
        tracing::warn!(path = %path.display(), "others can read {secret}; run `chmod 600` on it");
    }
    Ok(())
}

/// Lines of `<SHA-256 in hexadecimal> read|write`, as `weir token create` writes them.
fn read_tokens(config: &Config) -> Result<Vec<([u8; 32], bool)>, RuntimeError> {
    if let Some((_, key)) = &config.server.tls {
        check_permissions(key, "the private key")?;
    }
    let Some(path) = &config.server.token_file else {
        return Ok(Vec::new());
    };
    check_permissions(path, "the token file")?;
    let wrong = |problem: &str| {
        RuntimeError::Config(format!(
            "{}: {problem}; create one with `weir token create`",
            path.display()
        ))
    };
    let text = std::fs::read_to_string(path).map_err(|e| wrong(&e.to_string()))?;
    let tokens: Vec<([u8; 32], bool)> = text
        .lines()
        .filter(|l| !l.trim().is_empty())
        .map(|line| {
            let (hash, rights) = line
                .split_once(' ')
                .ok_or_else(|| wrong("a line is not a token"))?;
            let bytes: Vec<u8> = (0..hash.len() / 2)
                .filter_map(|i| u8::from_str_radix(hash.get(2 * i..2 * i + 2)?, 16).ok())
                .collect();
            let hash: [u8; 32] = bytes
                .try_into()
                .map_err(|_| wrong("a line is not a token"))?;
            Ok((hash, rights.trim() == "write"))
        })
        .collect::<Result<_, RuntimeError>>()?;
    if tokens.is_empty() {
        Err(wrong("holds no token"))
    } else {
        Ok(tokens)
    }
}
