//! The composition root: [`Running`] puts log, operators, views, queries and sources of a data
//! folder together. `startup` opens the folder and switches it to another configuration, `shutdown`
//! stops everything in the order in which data flows, `rebuild` processes past records again.

mod backlog;
pub(crate) mod backup;
pub mod context;
pub mod data_dir;
pub(crate) mod dead_letter_retry;
pub(crate) mod disorder;
pub(crate) mod dry_run;
mod error;
mod idle_ticker;
pub(crate) mod inspect;
mod maintenance;
pub(crate) mod metrics;
pub(crate) mod notebooks;
pub(crate) mod notes;
pub(crate) mod offline;
mod pipeline;
pub(crate) mod query_service;
mod readiness;
pub(crate) mod rebuild;
mod reconfigure;
mod recovery;
mod reserve;
pub(crate) mod resources;
mod shutdown;
pub(crate) mod sink_threads;
pub mod snapshots;
mod sort_space;
mod source_threads;
mod startup;
mod trial;
pub mod views;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::Clock;
use crate::config::Config;
use crate::event::Lsn;
use crate::ids::ViewId;
use crate::ingest::{Ingest, Submission};
use crate::query::Handles;
use crate::query::live::Live;
use crate::query::spool::Spools;
use crate::query::sql::{SqlEngine, SqlLimits};
use crate::sources::Stop;
use crate::threads::Panics;
use crate::views::LogIdentity;
use crate::views::lake::compact::MergeMode;
use crate::wal::Kind;
use backup::Backup;
use context::FolderContext;
use data_dir::{DataDir, Lock};
use dead_letter_retry::Retry;
pub use error::{PartError, RuntimeError};
use maintenance::Maintenance;
pub use maintenance::compact;
use pipeline::Pipeline;
use query_service::QueryService;
use readiness::Readiness;
use resources::Resources;
use shutdown::{Callers, Ending, SourceThread, Stopped};
use sink_threads::SinkControls;

/// How to run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Read what the sources have now, commit and end.
    pub once: bool,
    /// Partitions, as sources name them, that continue although the records at their position are
    /// gone.
    pub accepted_resets: BTreeSet<String>,
}

/// A data folder at work.
pub struct Running {
    /// Locked for this process.
    pub folder: DataDir,
    /// What queries read: tables, indexes and progress.
    pub handles: Handles,
    /// Answers the queries of clients.
    pub queries: QueryService,
    /// Measures folder and process.
    pub(crate) resources: Arc<Resources>,
    /// Arrival times of records.
    pub clock: Arc<dyn Clock>,
    /// Asks sources, maintenance and backups to return, before or in [`Running::stop`].
    pub stop: Stop,
    pipeline: Pipeline,
    /// The log's past has been applied, and the sources have started.
    has_resumed: Arc<AtomicBool>,
    options: Options,
    sources: Vec<SourceThread>,
    sinks: Vec<JoinHandle<()>>,
    sink_controls: SinkControls,
    log: LogIdentity,
    maintenance: Option<JoinHandle<()>>,
    ticks: Option<JoinHandle<()>>,
    /// Panics of the threads of sources, ticks and maintenance.
    panics: Panics,
    _lock: Lock,
}

/// Where answers are written: files in this folder, or memory.
fn spools(config: &Config, folder: Option<PathBuf>) -> Spools {
    Spools::new(folder, config.limits.sql_result)
}

/// SQL's limits, as configured.
pub(crate) fn sql_limits(config: &Config) -> SqlLimits {
    SqlLimits {
        time: config.limits.sql_time,
        rows: config.limits.sql_rows,
        bytes: config.limits.sql_result,
        concurrent: config.limits.sql_concurrent,
        memory: config.limits.shares().sql,
        footers: config.limits.shares().footers(),
    }
}

impl Running {
    /// Opens the folder and switches to this configuration if the log holds another. From now on
    /// queries are answered, while the log's past is still applied; [`Running::resume`] then starts
    /// the sources.
    pub fn start(
        config: &Config,
        options: Options,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Self, RuntimeError> {
        let catalog = views::compile(config)?;
        let folder = DataDir::create(&config.data)?;
        let lock = folder.lock()?;
        folder.remove_leftovers(&lock);
        let context = FolderContext::new(config, folder, runtime);
        let (wal, opened) = startup::open(&context, &catalog)?;
        let log = context.log_of(&wal);
        let pipeline = Pipeline::start(&context, wal, &catalog, opened)?;
        let FolderContext { folder, clock, .. } = context;
        let sql = Arc::new(SqlEngine::new(
            &folder.lake(),
            &folder.spill(),
            sql_limits(config),
        )?);
        let handles = pipeline.handles.clone();
        let queries = QueryService {
            handles: handles.clone(),
            sql,
            clock: clock.clone(),
            search_limit: config.limits.search_limit,
            spools: spools(config, Some(folder.spill())),
        };
        let resources = Arc::new(Resources::new(config, &folder.root));
        let mut running = Self {
            folder,
            handles,
            queries,
            resources,
            clock,
            stop: Stop::default(),
            pipeline,
            has_resumed: Arc::default(),
            options,
            sources: Vec::new(),
            sinks: Vec::new(),
            sink_controls: SinkControls::new(config),
            log,
            maintenance: None,
            ticks: None,
            panics: Panics::default(),
            _lock: lock,
        };
        if !running.options.once {
            let maintenance = running.maintenance(config);
            running.maintenance =
                Some(maintenance.start(running.stop.clone(), running.panics.watch()));
        }
        Ok(running)
    }

    fn maintenance(&self, config: &Config) -> Maintenance {
        let (handles, ingest) = (self.handles.clone(), self.pipeline.ingest.clone());
        Maintenance::new(
            config,
            handles,
            ingest,
            self.pipeline.retention_lock.clone(),
        )
    }

    /// One round of a server's periodic work, for a run that ends: merges that are due, retention,
    /// the disk's limit.
    pub fn maintain(&self, config: &Config) {
        if let Err(error) = self
            .maintenance(config)
            .round(MergeMode::Quiet, &|| self.stop.is_requested())
        {
            // Nothing was changed; the next run tries again.
            tracing::warn!(%error, "maintenance failed");
        }
    }

    /// Starts the sources once the log's past has been applied; true once, when requests can be
    /// taken in.
    pub fn resume(&mut self, config: &Config) -> Result<bool, RuntimeError> {
        if self.has_resumed.load(Ordering::Acquire) {
            return Ok(false);
        }
        let Some(mut resume) = self.pipeline.try_resume()? else {
            return Ok(false);
        };
        self.ingest()?
            .remember(std::mem::take(&mut resume.answered));
        let log_end = self.handles.progress.synced_lsn();
        self.start_sources(config, &resume)?;
        self.start_sinks(config, log_end);
        self.has_resumed.store(true, Ordering::Release);
        Ok(true)
    }

    /// Waits until the log's past has been applied, without starting a source.
    pub fn wait_recovered(&mut self) -> Result<(), RuntimeError> {
        let resume = self.pipeline.resume()?;
        self.ingest()?.remember(resume.answered);
        Ok(())
    }

    /// Closes every window and session, as if no event were to come: their last rows are stored.
    pub fn close_windows(&self) -> Result<(), RuntimeError> {
        let submission = Submission::control(Kind::CloseAll, "", b"{}");
        let stored = self
            .ingest()?
            .submit(submission, true)
            .and_then(|receipt| receipt.wait());
        stored
            .map(drop)
            .map_err(|e| RuntimeError::Failed(e.to_string()))
    }

    /// Rows as they become visible.
    pub fn live(&self) -> Arc<Live> {
        Arc::new(Live::new(self.pipeline.ring.clone()))
    }

    /// Copies the folder while the process works on it.
    pub fn backup(&self, config: &Config) -> Backup {
        Backup {
            handles: self.handles.clone(),
            folder: self.folder.clone(),
            snapshots: context::snapshots(config, &self.folder),
            retention_lock: self.pipeline.retention_lock.clone(),
            stop: self.stop.clone(),
        }
    }

    /// Resubmits dead letters.
    pub fn retry(&self) -> Result<Retry, RuntimeError> {
        Ok(Retry {
            queries: self.queries.clone(),
            clock: self.clock.clone(),
            ingest: self.ingest()?,
            turn: Arc::default(),
        })
    }

    /// A handle to take records in.
    pub fn ingest(&self) -> Result<Ingest, RuntimeError> {
        self.pipeline
            .ingest
            .clone()
            .ok_or_else(|| RuntimeError::Failed("weir is stopping".into()))
    }

    /// Records of the log above the snapshot that recovery started from.
    pub fn recovered(&self) -> u64 {
        self.pipeline.recovered
    }

    /// How many of them have been applied. More may follow, of a view that is far behind.
    pub fn replayed(&self) -> u64 {
        let remaining = self
            .handles
            .progress
            .synced_lsn()
            .saturating_sub(self.pipeline.ring.level().1);
        self.pipeline.recovered.saturating_sub(remaining)
    }

    /// Whether a thread ended that should not have; [`Running::stop`] returns why.
    pub fn has_failed(&self) -> bool {
        self.pipeline.has_failed() || self.panics.any()
    }

    /// A readiness probe that outlives this borrow: what waits without holding back the rest, or
    /// why the process is not ready.
    pub fn readiness(&self) -> Arc<dyn Fn() -> Result<Vec<String>, String> + Send + Sync> {
        let (ids, views) = (&self.pipeline.view_ids, &self.pipeline.views);
        let readiness = Readiness {
            progress: self.handles.progress.clone(),
            views: ids.iter().cloned().zip(views.iter().cloned()).collect(),
            has_resumed: self.has_resumed.clone(),
            intake: self.pipeline.intake.clone(),
        };
        Arc::new(move || readiness.check())
    }

    /// Sets the gauges and counters that `/metrics` shows.
    pub fn publish_metrics(&self) {
        let ingest = self.pipeline.ingest.as_ref();
        let parts = [
            ("queues", self.pipeline.intake.used()),
            ("idempotency", ingest.map_or(0, Ingest::answered_bytes)),
            ("ring", self.pipeline.ring.level().0),
            ("operators", self.handles.progress.operators_bytes()),
            ("sql", self.queries.sql.memory_in_use()),
        ];
        metrics::publish(&self.handles, &self.views(), &self.folder.log(), &parts);
        metrics::publish_usage(&self.resources.measure());
    }

    /// Whether every source has ended.
    pub fn sources_have_ended(&self) -> bool {
        self.has_resumed.load(Ordering::Acquire)
            && self.sources.iter().all(|(_, thread)| thread.is_finished())
    }

    /// Per view, the last LSN it has applied, and why it does not advance, if so.
    pub fn views(&self) -> Vec<(ViewId, Lsn, Option<String>)> {
        let (ids, statuses) = (&self.pipeline.view_ids, &self.pipeline.views);
        ids.iter()
            .zip(statuses)
            .map(|(id, status)| (id.clone(), status.applied(), status.failure()))
            .collect()
    }

    /// Stops with the data: sources, log, operators, views with their last commit. A source that
    /// had halted is an error.
    pub fn stop(self) -> Result<(), RuntimeError> {
        let ending = if self.options.once {
            Ending::Complete
        } else {
            Ending::Serving
        };
        self.stop_as(ending).into_result()
    }

    /// Ends a bounded run as [`Running::stop`] does, with its errors one by one. Once a signal asks
    /// to end soon (`is_interrupted`), what views have not read of the log's past is left to the
    /// next start.
    pub(crate) fn end(self, is_interrupted: bool) -> Ended {
        self.stop_as(if is_interrupted {
            Ending::Interrupted
        } else {
            Ending::Complete
        })
    }

    /// As [`Running::stop`], to start again: a source that had halted is only logged, because it
    /// starts again too.
    pub fn stop_for_restart(self) -> Result<(), RuntimeError> {
        let Ended { failed, halted } = self.stop_as(Ending::Restarting);
        for PartError { error, .. } in halted {
            tracing::warn!(%error, "source was stopped by an error");
        }
        PartError::all(failed)
    }

    fn stop_as(mut self, ending: Ending) -> Ended {
        let callers = Callers {
            stop: self.stop.clone(),
            sources: std::mem::take(&mut self.sources),
            services: (self.maintenance.take().into_iter())
                .chain(self.ticks.take())
                .chain(std::mem::take(&mut self.sinks))
                .collect(),
        };
        let Stopped { wal, halted } = self.pipeline.stop(callers, ending);
        let failed = wal.map(drop).err().unwrap_or_default();
        Ended { failed, halted }
    }
}

/// What had failed when a pipeline was stopped.
pub(crate) struct Ended {
    /// Of writer, operators and views: not everything is committed.
    pub failed: Vec<PartError>,
    /// Of sources that had halted, and of sources and services that panicked.
    pub halted: Vec<PartError>,
}

impl Ended {
    fn into_result(self) -> Result<(), RuntimeError> {
        let parts = self.failed.into_iter().chain(self.halted);
        PartError::all(parts.collect())
    }
}

/// How often a waiting run checks whether it is over.
pub const POLL: Duration = Duration::from_millis(50);

/// Completes when the process is asked to stop by SIGINT or SIGTERM. From this call on neither
/// ends the process at once.
pub fn stop_signal(runtime: &tokio::runtime::Runtime) -> tokio::task::JoinHandle<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let _inside = runtime.enter();
    let signals = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    );
    runtime.spawn(async move {
        let (Ok(mut interrupt), Ok(mut terminate)) = signals else {
            return std::future::pending().await;
        };
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
    })
}
