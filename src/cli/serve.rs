//! What `run` and `demo` share: a pipeline with its HTTP server, until a signal.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::config::Config;
use crate::runtime::data_dir::Address;
use crate::runtime::{Options, POLL, Running, RuntimeError, stop_signal};
use crate::server::{Parts, Server};

/// How often metrics are brought up to date.
const METRICS_EVERY: Duration = Duration::from_secs(1);

/// How long what was asked of a server may still run when everything else has ended.
pub const LEAVE: Duration = Duration::from_secs(1);

/// Binds the configured address; a taken port is a message.
pub fn bind(config: &Config) -> Result<TcpListener, RuntimeError> {
    let address = config.server.http;
    TcpListener::bind(address).map_err(|e| {
        RuntimeError::Failed(format!(
            "{address}: {e}; stop what listens there, or choose another port (`[server] http`, or --port for the demo)"
        ))
    })
}

/// Runs until asked to stop; `tick` is called about every 50 ms. Where a rebuilt view is to take
/// its place, everything stops and starts once more, while the port stays open.
pub fn serve(
    config: &Config,
    listener: &TcpListener,
    runtime: &tokio::runtime::Runtime,
    mut tick: impl FnMut(&Running),
) -> Result<(), RuntimeError> {
    let signal = stop_signal(runtime);
    let metrics = PrometheusBuilder::new()
        .set_buckets_for_metric(
            Matcher::Suffix("_seconds".into()),
            &[0.001, 0.005, 0.02, 0.1, 0.5, 2.0],
        )
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(|e| RuntimeError::Failed(format!("metrics: {e}")))?;
    loop {
        let own = listener
            .try_clone()
            .map_err(|e| RuntimeError::Failed(e.to_string()))?;
        let is_over = || signal.is_finished();
        if !serve_once(config, own, runtime, &metrics, &is_over, &mut tick)? {
            return Ok(());
        }
        tracing::info!("starting anew");
    }
}

/// Runs until asked to stop, or to start anew, which is true.
fn serve_once(
    config: &Config,
    listener: TcpListener,
    runtime: &tokio::runtime::Runtime,
    metrics: &PrometheusHandle,
    is_over: &dyn Fn() -> bool,
    tick: &mut dyn FnMut(&Running),
) -> Result<bool, RuntimeError> {
    // In a thread that ends: the memory that opening takes and gives back returns to the system
    // with it.
    let mut running = std::thread::scope(|scope| {
        let opening = scope.spawn(|| Running::start(config, Options::default(), runtime.handle()));
        opening.join().unwrap_or_else(|_| {
            Err(RuntimeError::Failed(
                "opening the data folder panicked".into(),
            ))
        })
    })?;
    let address = listener
        .local_addr()
        .map_err(|e| RuntimeError::Failed(e.to_string()))?;
    let restart = Arc::new(AtomicBool::new(false));
    let folder_key = format!("{:032x}", rand::random::<u128>());
    let parts = Parts {
        answers: running.answers.clone(),
        readiness: running.readiness(),
        metrics: metrics.clone(),
        live: running.live(),
        backup: running.backup(config),
        backups: config.server.backups.clone(),
        folder_key: folder_key.clone(),
        restart: restart.clone(),
        body_bytes: config.limits.body,
        bodies_bytes: config.limits.shares().queues,
        record_bytes: config.limits.record,
        cut_bytes: config.limits.dead_letter,
        connections: config.limits.connections,
        tokens: read_tokens(config)?,
        tls: config.server.tls.clone(),
        host: address.ip().to_string(),
        is_public: !address.ip().is_loopback(),
    };
    let server = runtime
        .block_on(Server::start(listener, parts))
        .map_err(|e| RuntimeError::Failed(format!("{address}: {e}")))?;
    let own = Address {
        pid: std::process::id(),
        http: address,
        tls: config.server.tls.is_some(),
        key: folder_key,
    };
    let mut published = running.folder.publish_address(&own);
    if let Err(error) = &published {
        // A full disk does not keep queries from being answered.
        tracing::warn!(%error, "verbs do not find this server until its address can be written; HTTP answers");
    }
    tracing::info!(%address, "ready");
    let mut since_metrics = METRICS_EVERY;
    while !is_over()
        && !running.has_failed()
        && !server.has_ended()
        && !restart.load(Ordering::Acquire)
    {
        if running.resume(config)? && config.server.ingest {
            server.open_intake(running.ingest()?);
        }
        tick(&running);
        since_metrics += POLL;
        if since_metrics >= METRICS_EVERY {
            if published.is_err() {
                published = running.folder.publish_address(&own);
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
        .map_err(RuntimeError::Failed);
    let goes_on = end(running, restart.load(Ordering::Acquire), is_over)?;
    served.map(|()| goes_on)
}

/// Ends what runs; whether it is to start anew. The address stays while it does.
fn end(running: Running, restart: bool, is_over: &dyn Fn() -> bool) -> Result<bool, RuntimeError> {
    let is_to_restart = restart && !running.has_failed();
    let folder = running.folder.clone();
    if is_to_restart {
        running.stop_for_restart()?;
    } else {
        running.stop()?;
    }
    let goes_on = is_to_restart && !is_over();
    if !goes_on {
        folder.remove_address();
    }
    Ok(goes_on)
}

/// Refuses a secret that others can exchange, and warns of one that they can read.
fn check_rights(path: &std::path::Path, what: &str) -> Result<(), RuntimeError> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = std::fs::metadata(path)
        .map_err(|e| RuntimeError::Config(format!("{}: {e}", path.display())))?;
    let mode = metadata.permissions().mode();
    if mode & 0o022 != 0 {
        let path = path.display();
        return Err(RuntimeError::Config(format!(
            "{path}: others can write {what}; run `chmod 600 {path}`"
        )));
    }
    if mode & 0o044 != 0 {
        tracing::warn!(path = %path.display(), "others can read {what}; run `chmod 600` on it");
    }
    Ok(())
}

/// Lines of `<SHA-256 in hexadecimal> read|write`, as `weir token create` writes them.
fn read_tokens(config: &Config) -> Result<Vec<([u8; 32], bool)>, RuntimeError> {
    if let Some((_, key)) = &config.server.tls {
        check_rights(key, "the private key")?;
    }
    let Some(path) = &config.server.token_file else {
        return Ok(Vec::new());
    };
    check_rights(path, "the token file")?;
    let wrong = |what: &str| {
        RuntimeError::Config(format!(
            "{}: {what}; make one with `weir token create`",
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
                .ok_or_else(|| wrong("a line is no token"))?;
            let bytes: Vec<u8> = (0..hash.len() / 2)
                .filter_map(|i| u8::from_str_radix(hash.get(2 * i..2 * i + 2)?, 16).ok())
                .collect();
            let hash: [u8; 32] = bytes.try_into().map_err(|_| wrong("a line is no token"))?;
            Ok((hash, rights.trim() == "write"))
        })
        .collect::<Result<_, RuntimeError>>()?;
    if tokens.is_empty() {
        Err(wrong("holds no token"))
    } else {
        Ok(tokens)
    }
}
