//! The composition root: opens a data folder, puts log, operators, views, queries and sources
//! together, and takes them apart in the order in which data flows.

mod backlog;
pub mod backup;
pub mod data_dir;
pub mod dead_letter_retry;
pub mod disorder;
pub mod dry_run;
mod error;
mod idle_ticker;
pub mod inspect;
mod maintenance;
mod metrics;
pub mod notes;
pub mod offline;
pub mod pipeline;
pub mod query_service;
pub mod rebuild;
mod recovery;
mod replay;
mod reserve;
mod retained_rows;
pub mod snapshots;
mod sort_space;
mod trial;
pub mod views;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use arrow::datatypes::SchemaRef;

use crate::clock::{Clock, SystemClock};
use crate::config::{Config, Declarations, SourceKind};
use crate::event::{Lsn, SharedHealth, SourceState, lsn_zero};
use crate::ingest::{Ingest, IngestError, Submission};
use crate::operators::checkpoints;
use crate::query::Handles;
use crate::query::live::Live;
use crate::query::spool::Spools;
use crate::query::sql::{SqlEngine, SqlLimits};
use crate::schema::{Catalog, names, versions_of};
use crate::sources::{self, SourceError, Stop};
use crate::storage::Disk;
use crate::threads::{self, Panics, panic_if_asked};
use crate::views::ViewError;
use crate::views::driver::Status;
use crate::views::lake::LogName;
use crate::views::lake::compact::When;
use crate::wal::{Frame, Header, Kind, LogReader, Wal, WalOptions};
use backup::Backup;
use data_dir::{DataDir, Lock};
use dead_letter_retry::Retry;
pub use error::RuntimeError;
use idle_ticker::{Connected, Ticker};
use maintenance::Maintenance;
use pipeline::{Pipeline, Resume};
use query_service::QueryService;
use snapshots::Snapshots;

/// The name of the source that POSTs come from.
const HTTP: &str = "http";

/// How to run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Take what is there, commit and end.
    pub once: bool,
}

/// A data folder at work.
pub struct Running {
    pub folder: DataDir,
    pub handles: Handles,
    pub answers: QueryService,
    pub clock: Arc<dyn Clock>,
    pub stop: Stop,
    pipeline: Pipeline,
    /// The log's past has been applied, and the sources have started.
    has_resumed: Arc<AtomicBool>,
    options: Options,
    sources: Vec<(String, JoinHandle<Result<(), SourceError>>)>,
    maintenance: Option<JoinHandle<()>>,
    ticks: Option<JoinHandle<()>>,
    /// Those of sources, ticks and maintenance.
    panics: Panics,
    _lock: Lock,
}

/// Where answers are written: files in this folder, or memory.
fn spools(config: &Config, folder: Option<PathBuf>) -> Spools {
    Spools::new(folder, config.limits.sql_result)
}

/// SQL's limits, as configured.
pub fn sql_limits(config: &Config) -> SqlLimits {
    SqlLimits {
        time: config.limits.sql_time,
        rows: config.limits.sql_rows,
        bytes: config.limits.sql_result,
        concurrent: config.limits.sql_concurrent,
        memory: config.limits.shares().sql,
        footers: config.limits.shares().footers(),
    }
}

fn wal_options(config: &Config, folder: &DataDir) -> WalOptions {
    WalOptions {
        folder: folder.log(),
        instance: config.instance,
        zero: lsn_zero(config.instance),
        segment_bytes: config.log.segment,
        budget: Some(config.log.budget),
        reserved_disk_bytes: reserve::bytes_of(config),
    }
}

fn snapshots(config: &Config, folder: &DataDir) -> Snapshots {
    Snapshots {
        storage: Arc::new(Disk),
        folder: folder.operators(),
        log: folder.log(),
        zero: lsn_zero(config.instance),
        unsynced: Arc::new(AtomicBool::new(true)),
    }
}

impl Running {
    /// Opens the folder and switches to this configuration if the log holds another. Questions are
    /// answered from now on, while the log's past is still applied; [`Running::resume`] then starts
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
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        rebuild::place(config, &folder, runtime)?;
        let wal = open_wal(config, &folder, &catalog, runtime)?;
        let wal = rebuild::finish(config, &folder, wal, runtime, &clock)?;
        let (mut wal, is_new) =
            switch_configuration(config, &folder, &catalog, wal, runtime, &clock)?;
        let snapshots = snapshots(config, &folder);
        let log = log_name(config, &wal);
        let opened = views::open(config, &folder, &catalog, log, runtime, true)
            .and_then(|opened| refuse_views_ahead(&opened, wal.synced_lsn(), log).map(|()| opened));
        if is_new && opened.is_err() {
            // Nothing has seen it: the folder goes on under the old configuration.
            wal.remove_last_frame()?;
        }
        let opened = opened?;
        let pipeline = Pipeline::start(config, snapshots, wal, &catalog, opened, clock.clone())?;
        let sql = Arc::new(SqlEngine::new(
            &folder.lake(),
            &folder.spill(),
            sql_limits(config),
        )?);
        let handles = pipeline.handles.clone();
        let answers = QueryService {
            handles: handles.clone(),
            sql,
            clock: clock.clone(),
            search_limit: config.limits.search_limit,
            spools: spools(config, Some(folder.spill())),
        };
        let mut running = Self {
            folder,
            handles,
            answers,
            clock,
            stop: Stop::default(),
            pipeline,
            has_resumed: Arc::default(),
            options,
            sources: Vec::new(),
            maintenance: None,
            ticks: None,
            panics: Panics::default(),
            _lock: lock,
        };
        if !options.once {
            running.maintenance = Some(
                running
                    .maintenance(config)
                    .start(running.stop.clone(), running.panics.watch()),
            );
        }
        Ok(running)
    }

    fn maintenance(&self, config: &Config) -> Maintenance {
        let (handles, ingest) = (self.handles.clone(), self.pipeline.ingest.clone());
        Maintenance::new(config, handles, ingest, self.pipeline.trimming.clone())
    }

    /// One round of what a server does now and then, for a run that ends: merges that are due,
    /// retention, the disk's limit.
    pub fn maintain(&self, config: &Config) {
        if let Err(error) = self
            .maintenance(config)
            .round(When::Quiet, &|| self.stop.is_requested())
        {
            // Nothing was changed; the next run tries again.
            tracing::warn!(%error, "maintenance failed");
        }
    }

    /// Starts the sources once the log's past has been applied; true once, from when on requests
    /// can be taken in.
    pub fn resume(&mut self, config: &Config) -> Result<bool, RuntimeError> {
        if self.has_resumed.load(Ordering::Acquire) {
            return Ok(false);
        }
        let Some(mut resume) = self.pipeline.try_resume()? else {
            return Ok(false);
        };
        self.ingest()?
            .remember(std::mem::take(&mut resume.answered));
        self.start_sources(config, self.options, &resume)?;
        self.has_resumed.store(true, Ordering::Release);
        Ok(true)
    }

    fn start_sources(
        &mut self,
        config: &Config,
        options: Options,
        resume: &Resume,
    ) -> Result<(), RuntimeError> {
        let mut connected =
            Connected::from([(HTTP.to_owned(), Arc::new(AtomicBool::new(!options.once)))]);
        let mut healths = BTreeMap::new();
        for (place, source) in config.sources.iter().enumerate() {
            let is_connected = Arc::new(AtomicBool::new(false));
            connected.insert(source.name.clone(), is_connected.clone());
            let health = SharedHealth::default();
            healths.insert(source.name.clone(), health);
            let health = healths[&source.name].clone();
            let ring = self.pipeline.ring.clone();
            let context = sources::Context {
                name: source.name.clone(),
                stream: source.stream.clone(),
                ingest: self.ingest()?,
                stop: self.stop.clone(),
                once: options.once,
                record_limits: sources::RecordLimits {
                    max_bytes: config.limits.record,
                    truncated_bytes: config.limits.dead_letter,
                },
                wait_for_room: Arc::new(move |time| ring.wait_for_room(time)),
                is_connected,
                unwrap: source.unwrap.clone(),
                health: health.clone(),
                sort_space: sort_space::of_source(config, &self.folder, place),
                partitions: resume
                    .partitions
                    .iter()
                    .filter(|((name, _), _)| *name == source.name)
                    .map(|((_, partition), state)| (partition.clone(), state.clone()))
                    .collect(),
            };
            let (kind, clock, watch) =
                (source.kind.clone(), self.clock.clone(), self.panics.watch());
            let thread = std::thread::Builder::new()
                .name(format!("source/{}", source.name))
                .spawn(move || {
                    let _watch = watch;
                    panic_if_asked(&format!("source/{}", context.name));
                    let result = match kind {
                        SourceKind::File(def) if def.is_stdin() => sources::stdin::run(&context, &*clock),
                        SourceKind::File(def) => sources::file::run(&context, &def, &*clock),
                        SourceKind::WebSocket { url } => sources::websocket::run(&context, &url, &*clock),
                    };
                    match result {
                        // It waited for room in the log when everything stopped; it goes on from
                        // what was acknowledged.
                        Err(SourceError::Ingest(IngestError::Stopping | IngestError::NoSpace { .. }))
                            if context.stop.is_requested() =>
                        {
                            Ok(())
                        }
                        Err(error) => {
                            let way_out = "repair the cause and restart weir";
                            tracing::error!(source = context.name, %error, "the source has halted; {way_out}");
                            context.set_state(SourceState::Halted, Some(format!("{error}; {way_out}")));
                            Err(error)
                        }
                        Ok(()) => Ok(()),
                    }
                })
                .expect("the system can start a thread");
            self.sources.push((source.name.clone(), thread));
        }
        self.handles.progress.set_sources(healths);
        let (ingest, progress, stop) = (
            self.ingest()?,
            self.handles.progress.clone(),
            self.stop.clone(),
        );
        self.ticks = Some(
            Ticker {
                ingest,
                progress,
                connected,
                stop,
            }
            .start(self.panics.watch()),
        );
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

    /// Copies the folder while it is worked on.
    pub fn backup(&self, config: &Config) -> Backup {
        Backup {
            handles: self.handles.clone(),
            folder: self.folder.clone(),
            snapshots: snapshots(config, &self.folder),
            trimming: self.pipeline.trimming.clone(),
            stop: self.stop.clone(),
        }
    }

    /// Brings dead letters back.
    pub fn retry(&self) -> Result<Retry, RuntimeError> {
        Ok(Retry {
            answers: self.answers.clone(),
            clock: self.clock.clone(),
            ingest: self.ingest()?,
            turn: Arc::default(),
        })
    }

    /// Waits until the log's past has been applied, without starting a source.
    pub fn resume_alone(&mut self) -> Result<(), RuntimeError> {
        let resume = self.pipeline.resume()?;
        self.ingest()?.remember(resume.answered);
        Ok(())
    }

    /// A handle to take records in.
    pub fn ingest(&self) -> Result<Ingest, RuntimeError> {
        self.pipeline
            .ingest
            .clone()
            .ok_or_else(|| RuntimeError::Failed("weir is stopping".into()))
    }

    /// Records that were in the log and, since the last snapshot, not known to be in every view.
    pub fn recovered(&self) -> u64 {
        self.pipeline.recovered
    }

    /// Whether a thread ended that should not have; [`Running::stop`] tells why.
    pub fn has_failed(&self) -> bool {
        self.pipeline.has_failed() || self.panics.any()
    }

    /// What waits without keeping the rest from going on, or why not everything goes on; for a
    /// readiness probe that outlives this borrow.
    pub fn readiness(&self) -> Arc<dyn Fn() -> Result<Vec<String>, String> + Send + Sync> {
        let progress = self.handles.progress.clone();
        let views: Vec<(String, Arc<Status>)> = self
            .pipeline
            .view_names
            .iter()
            .cloned()
            .zip(self.pipeline.views.iter().cloned())
            .collect();
        let has_resumed = self.has_resumed.clone();
        let intake = self.pipeline.intake.clone();
        Arc::new(move || {
            if !has_resumed.load(Ordering::Acquire) {
                return Err("the log is still being read".into());
            }
            if let Some(reason) = intake.full() {
                return Err(reason);
            }
            if let Some(failed) = views
                .iter()
                .find_map(|(name, status)| Some(format!("{name}: {}", status.failure()?)))
            {
                return Err(failed);
            }
            let mut waiting = Vec::new();
            for (name, health) in progress.sources() {
                let reason = || {
                    format!(
                        "source `{name}` {}: {}",
                        health.state.name(),
                        health.reason.clone().unwrap_or_default()
                    )
                };
                match health.state {
                    SourceState::Halted => return Err(reason()),
                    SourceState::Waiting => waiting.push(reason()),
                    SourceState::Running | SourceState::Ended if health.waiting_total > 0 => {
                        waiting.push(format!(
                            "source `{name}`: {} files wait",
                            health.waiting_total
                        ));
                    }
                    SourceState::Running | SourceState::Ended => {}
                }
            }
            let synced = progress.synced_lsn();
            for (name, status) in views.iter().filter(|(_, status)| status.is_catching_up()) {
                let lag = synced.saturating_sub(status.applied());
                waiting.push(format!(
                    "{name} is {lag} records behind and reads them from the log"
                ));
            }
            Ok(waiting)
        })
    }

    /// Sets the gauges and counters that `/metrics` shows.
    pub fn publish_metrics(&self) {
        let parts = [
            ("queues", self.pipeline.intake.used()),
            (
                "idempotency",
                self.pipeline
                    .ingest
                    .as_ref()
                    .map_or(0, Ingest::answered_bytes),
            ),
            ("ring", self.pipeline.ring.level().0),
            ("operators", self.handles.progress.operators_bytes()),
            ("sql", self.answers.sql.memory_in_use()),
        ];
        metrics::publish(&self.handles, &self.views(), &self.folder.log(), &parts);
    }

    /// Whether every source has ended.
    pub fn sources_have_ended(&self) -> bool {
        self.has_resumed.load(Ordering::Acquire)
            && self.sources.iter().all(|(_, thread)| thread.is_finished())
    }

    /// Per view, its name, what it has applied, and why it does not go on, if so.
    pub fn views(&self) -> Vec<(String, Lsn, Option<String>)> {
        let states = self
            .pipeline
            .views
            .iter()
            .map(|s| (s.applied(), s.failure()));
        self.pipeline
            .view_names
            .iter()
            .cloned()
            .zip(states)
            .map(|(name, (lsn, failure))| (name, lsn, failure))
            .collect()
    }

    /// What the views have not read yet of the log is left for the next start, where the process is
    /// asked to end: it is safe there.
    pub fn leave_the_rest(&self) {
        self.pipeline.leave_the_rest();
    }

    /// Stops with the data: sources, log, operators, views with their last commit. A source that
    /// had halted is an error.
    pub fn stop(self) -> Result<(), RuntimeError> {
        let halted = self.end()?;
        if halted.is_empty() {
            Ok(())
        } else {
            Err(RuntimeError::Failed(halted.join("; ")))
        }
    }

    /// Stops with the data, to start again; a source that had halted starts again too.
    pub fn stop_to_go_on(self) -> Result<(), RuntimeError> {
        self.end().map(|halted| {
            halted
                .iter()
                .for_each(|error| tracing::warn!(error, "it had halted"));
        })
    }

    /// Stops everything; gives what halted sources said.
    fn end(mut self) -> Result<Vec<String>, RuntimeError> {
        self.stop.request();
        let mut failures = Vec::new();
        while self.sources.iter().any(|(_, thread)| !thread.is_finished()) {
            // A source that waits for room in a full log would wait for ever.
            if self.pipeline.intake.full().is_some() {
                self.pipeline.intake.close();
            }
            std::thread::sleep(POLL);
        }
        for (name, thread) in self.sources.drain(..) {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => failures.push(format!("source `{name}`: {error}")),
                Err(panic) => failures.push(threads::describe(&format!("source/{name}"), &*panic)),
            }
        }
        // Nobody gives more; frames of a source that has ended may still wait for room in a full
        // log.
        self.pipeline.intake.close();
        for thread in self.maintenance.take().into_iter().chain(self.ticks.take()) {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            failures.extend(
                thread
                    .join()
                    .err()
                    .map(|panic| threads::describe(&name, &*panic)),
            );
        }
        if !self.options.once {
            self.leave_the_rest();
        }
        // A backup breaks off at its next file; until then the folder is not given up.
        let trimming = self.pipeline.trimming.clone();
        self.pipeline.stop()?;
        drop(trimming.lock());
        Ok(failures)
    }
}

/// Merges a stopped folder's files without regard to their age; gives the numbers of merges and of
/// files left.
pub fn compact(
    config: &Config,
    runtime: &tokio::runtime::Handle,
) -> Result<(usize, usize), RuntimeError> {
    let folder = DataDir::existing(&config.data)?;
    let _lock = folder.lock()?;
    let wal = wal_options(config, &folder);
    let id = Wal::log_id_of(&Disk, &wal.folder)?.ok_or_else(|| {
        RuntimeError::Config(format!("{} holds no data yet", folder.root.display()))
    })?;
    let snapshots = snapshots(config, &folder);
    snapshots.refuse_ahead(Wal::peek(&Disk, &wal, wal.zero)?.last_lsn)?;
    let (newest, _) = snapshots.newest_for(&BTreeMap::new(), Lsn::MAX)?;
    let log = LogName {
        instance: config.instance,
        id,
        zero: wal.zero,
    };
    let opened = views::open(config, &folder, newest.catalog(), log, runtime, true)?;
    opened.handles.progress.set_operators(&newest);
    let tables = &opened.handles.tables;
    opened.handles.raise_floors(&newest.floors());
    let merges = Maintenance::new(config, opened.handles.clone(), None, Arc::default())
        .round(When::Now, &|| false)?;
    Ok((merges, tables.values().map(|t| t.files().len()).sum()))
}

fn log_name(config: &Config, wal: &Wal) -> LogName {
    LogName {
        instance: config.instance,
        id: wal.log_id(),
        zero: lsn_zero(config.instance),
    }
}

/// Opens the log; views that stand above what a torn tail would leave keep it from being cut.
fn open_wal(
    config: &Config,
    folder: &DataDir,
    catalog: &Arc<Catalog>,
    runtime: &tokio::runtime::Handle,
) -> Result<Wal, RuntimeError> {
    let options = wal_options(config, folder);
    let zero = options.zero;
    let id = Wal::log_id_of(&Disk, &options.folder)?;
    let (mut views_at, mut unapplied) = (zero, None);
    if id.is_none() {
        snapshots(config, folder).refuse_ahead(zero)?;
        refuse_without_log(folder)?;
    }
    if let Some(id) = id {
        let log = LogName {
            instance: config.instance,
            id,
            zero,
        };
        // The views that are there are those of the configuration that the log ends under.
        let found = Wal::peek(&Disk, &options, zero)?;
        snapshots(config, folder).refuse_ahead(found.last_lsn)?;
        unapplied = trial::unapplied(config, folder, &found, log, runtime)?;
        let stored = match &unapplied {
            Some((_, before)) => Some(before.clone()),
            None => declarations_at(config, folder, found.last_lsn)?,
        };
        let stored = match stored {
            Some(stored) => Arc::new(
                Catalog::compile(&stored).map_err(|e| RuntimeError::Damaged(e.to_string()))?,
            ),
            None => catalog.clone(),
        };
        let there = views::open(config, folder, &stored, log, runtime, false)?;
        views_at = there.checkpoints.values().copied().max().unwrap_or(zero);
    }
    let new_id = rand::random::<u64>() >> 1;
    let (mut wal, recovered) = Wal::open(Arc::new(Disk), options, new_id, views_at)?;
    if let Some(torn) = recovered.torn {
        let what = "the log ended in bytes that are no whole frame and are cut: a write that was never synced, or synced ones \
                    that changed since; nothing that is left shows which. If the record was acknowledged, restore the file from a backup";
        tracing::warn!(path = %torn.path.display(), offset = torn.offset, lsn = torn.lsn, "{what}");
    }
    if let Some((lsn, _)) = unapplied {
        wal.remove_last_frame()?;
        tracing::warn!(
            lsn,
            "the log ended with a configuration that no start could apply; it was taken back"
        );
    }
    Ok(wal)
}

/// Refuses what was made of a log that is gone, before another one is begun. A log's first segment
/// is there before any view.
fn refuse_without_log(folder: &DataDir) -> Result<(), RuntimeError> {
    let has_any = |path: &std::path::Path| {
        std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some())
    };
    match [folder.lake(), folder.search(), folder.state()]
        .into_iter()
        .find(|path| has_any(path))
    {
        None => Ok(()),
        Some(path) => Err(RuntimeError::Damaged(format!(
            "{} has no segment, and {} is made of one: restore the log from a backup, or begin with another data folder; nothing was changed",
            folder.log().display(),
            path.display()
        ))),
    }
}

fn refuse_views_ahead(opened: &views::Opened, end: Lsn, log: LogName) -> Result<(), RuntimeError> {
    match opened.checkpoints.iter().find(|(_, found)| **found > end) {
        Some((name, found)) => Err(ViewError::Ahead {
            path: name.into(),
            found: *found,
            log: log.id,
        }
        .into()),
        None => Ok(()),
    }
}

/// The declarations that the log is under at a record; none in an empty log.
fn declarations_at(
    config: &Config,
    folder: &DataDir,
    end: Lsn,
) -> Result<Option<Declarations>, RuntimeError> {
    let snapshots = snapshots(config, folder);
    let declared = |text: &str| {
        Declarations::from_json(text).map_err(|e| RuntimeError::Damaged(e.to_string()))
    };
    let newest = snapshots.newest_configuration(end)?;
    let mut stored = newest
        .as_ref()
        .map(|(_, text)| declared(text))
        .transpose()?;
    let after = newest.map_or(snapshots.zero, |(lsn, _)| lsn);
    let mut reader = LogReader::new(Arc::new(Disk), folder.log(), after);
    while let Some(frame) = reader.next(end)? {
        if frame.header.kind == Kind::Configuration {
            let records = frame
                .records()
                .map_err(|e| RuntimeError::Damaged(e.to_string()))?;
            stored = Some(declared(&String::from_utf8_lossy(records.get(0)))?);
        }
    }
    Ok(stored)
}

/// The streams that the log ends under, compiled; those of the newest snapshot where it does not
/// say.
fn stored_catalog(
    config: &Config,
    folder: &DataDir,
    end: Lsn,
) -> Result<Arc<Catalog>, RuntimeError> {
    let stored =
        declarations_at(config, folder, end)?.unwrap_or_else(|| Catalog::default().declarations());
    Ok(Arc::new(
        Catalog::compile(&stored).map_err(|e| RuntimeError::Damaged(e.to_string()))?,
    ))
}

/// Brings everything to the end of the log under the configuration that it ends under: all views
/// have committed it then, and the operators are saved there.
fn drain(
    config: &Config,
    folder: &DataDir,
    catalog: &Arc<Catalog>,
    wal: Wal,
    runtime: &tokio::runtime::Handle,
    clock: &Arc<dyn Clock>,
) -> Result<Wal, RuntimeError> {
    let log = log_name(config, &wal);
    let opened = views::open(config, folder, catalog, log, runtime, true)?;
    refuse_views_ahead(&opened, wal.synced_lsn(), log)?;
    let pipeline = Pipeline::start(
        config,
        snapshots(config, folder),
        wal,
        catalog,
        opened,
        clock.clone(),
    )?;
    let resumed = pipeline.resume();
    // Why the operators ended, if they did, is said there.
    let wal = pipeline.stop()?;
    resumed.map(|_| wal)
}

/// If the log ends under another configuration: brings everything to its end under that one, then
/// appends a frame that names the new one. No frame is applied under two configurations. Views that
/// were rebuilt for it take their place there. True: the log ends with that frame, and nothing has
/// applied it.
fn switch_configuration(
    config: &Config,
    folder: &DataDir,
    catalog: &Arc<Catalog>,
    mut wal: Wal,
    runtime: &tokio::runtime::Handle,
    clock: &Arc<dyn Clock>,
) -> Result<(Wal, bool), RuntimeError> {
    let stored = declarations_at(config, folder, wal.synced_lsn())?;
    let is_same = stored.as_ref().is_some_and(|s| *s == config.declared);
    let rebuilt = rebuild::ready(config, folder, catalog, log_name(config, &wal), runtime)?;
    if is_same && rebuilt.is_empty() {
        return Ok((wal, false));
    }
    let compile = |stored| {
        Catalog::compile(stored)
            .map(Arc::new)
            .map_err(|e| RuntimeError::Damaged(e.to_string()))
    };
    let before = stored.as_ref().map(compile).transpose()?;
    let names = rebuild::views_of(&rebuilt);
    if let Some(before) = &before {
        refuse_what_cannot_change(config, before, catalog, &names)?;
    }
    if !is_same {
        trial::refuse_what_cannot_open(
            config,
            folder,
            catalog,
            log_name(config, &wal),
            &names,
            runtime,
        )?;
    }
    if let Some(before) = &before {
        wal = drain(config, folder, before, wal, runtime, clock)?;
    }
    let rebuilt = rebuild::complete(rebuilt, config, wal.synced_lsn())?;
    if let Some(before) = before {
        refuse_what_cannot_change(config, &before, catalog, &rebuilt)?;
    }
    if !is_same {
        append_configuration(catalog, &mut wal, clock)?;
        tracing::info!("the configuration changed; it applies from here on");
        let (old, new) = (
            stored.as_ref().map_or("", |s| &s.zone_data),
            &config.declared.zone_data,
        );
        if stored.is_some() && old != new {
            tracing::warn!(
                old,
                new,
                "this version of weir has other time zone data, which counts as a changed configuration: windows with a zone begin again under it"
            );
        }
    }
    if !rebuilt.is_empty() {
        rebuild::place(config, folder, runtime)?;
        wal = rebuild::finish(config, folder, wal, runtime, clock)?;
    }
    Ok((wal, !is_same && rebuilt.is_empty()))
}

fn append_configuration(
    catalog: &Catalog,
    wal: &mut Wal,
    clock: &Arc<dyn Clock>,
) -> Result<(), RuntimeError> {
    let header = Header {
        received_at: clock.now(),
        configuration: catalog.id,
        ..Header::new(Kind::Configuration, "")
    };
    let mut frame = Frame::control(header, catalog.to_json().as_bytes())
        .map_err(|e| RuntimeError::Failed(e.to_string()))?;
    wal.append(&mut frame)?;
    wal.sync()?;
    Ok(())
}

/// A column that is there with another type, or in another case, than it would have.
fn changed_type(before: &SchemaRef, after: &SchemaRef, table: &str) -> Option<String> {
    after.fields().iter().find_map(|field| {
        let there = before.fields().iter().find(|f| names::is_same_ignoring_case(f.name(), field.name()))?;
        if there.name() != field.name() {
            return Some(format!(
                "the column `{}` is `{}` in the table, and readers of Delta tables do not tell them apart; write `as \"{}\"`, `weir rebuild {table}` makes the table anew, or give the column another name",
                field.name(),
                there.name(),
                there.name()
            ));
        }
        (there.data_type() != field.data_type()).then(|| {
            format!(
                "the column `{}` is {} in the table and would be {}; `weir rebuild {table}` makes the table anew, or give the changed column another name",
                field.name(),
                there.data_type(),
                field.data_type()
            )
        })
    })
}

/// Changes that existing tables and indexes cannot take.
fn refuse_what_cannot_change(
    config: &Config,
    before: &Catalog,
    after: &Catalog,
    rebuilt: &[String],
) -> Result<(), RuntimeError> {
    let is_rebuilt = |view: &str| rebuilt.iter().any(|v| v == view);
    let is_table_rebuilt = |table: &str| is_rebuilt(&views::of_table(table));
    for (name, new) in &after.streams {
        let Some(old) = before.streams.get(name) else {
            continue;
        };
        if let Some(changed) = changed_type(&old.table_schema, &new.table_schema, name)
            .filter(|_| !is_table_rebuilt(name))
        {
            return Err(config
                .stream_error(name, "select", format!("stream `{name}`: {changed}"))
                .into());
        }
        let (old, new) = (&old.def, &new.def);
        for (key, what, view, is_same) in [
            (
                "search",
                "search",
                checkpoints::search(name),
                old.search.is_none() || old.search == new.search,
            ),
            (
                "places",
                "places",
                checkpoints::places(name),
                old.places.is_none() || old.places == new.places,
            ),
            (
                "count",
                "counts",
                checkpoints::counts(name),
                old.count.is_none() || old.count == new.count,
            ),
        ] {
            if !is_same && !is_rebuilt(&view) {
                let message = format!(
                    "stream `{name}`: `{key}` has changed; `weir rebuild {what} --stream {name}` makes what is there anew, or declare the changed stream under another name"
                );
                return Err(config.stream_error(name, key, message).into());
            }
        }
    }
    for window in &after.windows {
        let changed = before
            .window(&window.name)
            .and_then(|old| changed_type(&old.schema, &window.schema, &window.name));
        let changed = changed.filter(|_| !is_table_rebuilt(&versions_of(&window.name)));
        if let Some(changed) = changed {
            let name = &window.name;
            return Err(config
                .window_error(name, format!("window `{name}`: {changed}"))
                .into());
        }
    }
    for entity in &after.entities {
        let Some(old) = before.entities.iter().find(|e| e.name == entity.name) else {
            continue;
        };
        let name = &entity.name;
        if is_table_rebuilt(name) {
            continue;
        }
        if old.def.key != entity.def.key || old.def.version != entity.def.version {
            let message = "`key` or `version` has changed; `weir rebuild` makes the table anew, or declare the changed one under another name";
            return Err(config
                .table_error(name, format!("table `{name}`: {message}"))
                .into());
        }
        if let Some(changed) = changed_type(&old.schema, &entity.schema, name) {
            return Err(config
                .table_error(name, format!("table `{name}`: {changed}"))
                .into());
        }
    }
    Ok(())
}

/// How often a waiting run looks whether it is over.
pub const POLL: Duration = Duration::from_millis(50);

/// Ends when the process is asked to stop: SIGINT or SIGTERM. From this call on neither ends the
/// process at once.
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
