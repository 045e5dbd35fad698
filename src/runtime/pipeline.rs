//! The threads between log and views: one writes the log, one runs the operators, one drives each
//! view. A stopped pipeline leaves everything on the disk; starting one recovers from there.
//!
//! `shutdown` has the states through which a pipeline stops.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::RuntimeError;
use super::context::FolderContext;
use super::recovery::{self, Checkpoints, Start};
use super::reserve::{self, Reserve};
use super::shutdown::{self, Callers, Ending, Stages, Stopped};
use super::snapshots::{LogCatchUp, Snapshots};
use super::views::OpenViews;
use crate::config::{Config, Log};
use crate::event::Lsn;
use crate::idempotency::{AnsweredRequest, RequestKey};
use crate::ids::{PartitionId, ViewId};
use crate::ingest::{CommittedFrame, Ingest, Intake, LogMaintenance};
use crate::operators::{OperatorError, Operators, PartitionState, SeenRecords};
use crate::query::{Handles, PipelineProgress};
use crate::schema::Catalog;
use crate::threads::{OnEnd, panic_if_asked};
use crate::views::driver::{self, Status};
use crate::views::ring::Ring;
use crate::views::{View, ViewError};
use crate::wal::retention::{SegmentAge, plan_trim};
use crate::wal::{Header, Kind, LogReader, Wal, WalError, segment};

/// The most frames between the log's writer and the operators.
const COMMITTED_QUEUE_LEN: usize = 16;
/// How often an idle stage checks whether the log can be trimmed.
const TRIM_INTERVAL: Duration = Duration::from_secs(1);
/// The longest time for which partitions, gaps and retried dead letters are not published.
const MAX_PUBLISH_INTERVAL: Duration = Duration::from_secs(1);
/// A snapshot is worth writing after this many times its size of log.
const SNAPSHOT_LOG_RATIO: u64 = 4;

/// What sources need of the log's past before they resume.
pub struct Resume {
    pub partitions: BTreeMap<PartitionId, PartitionState>,
    /// The newest records of polled partitions.
    pub seen: BTreeMap<PartitionId, SeenRecords>,
    /// Requests with an idempotency key, oldest first.
    pub answered: Vec<(RequestKey, AnsweredRequest)>,
}

/// A running pipeline.
pub struct Pipeline {
    pub ingest: Option<Ingest>,
    pub intake: Intake,
    /// While it is held, no part of the log, snapshot or file is removed.
    pub retention_lock: Arc<Mutex<()>>,
    skip_catch_up: Arc<AtomicBool>,
    pub handles: Handles,
    pub ring: Arc<Ring>,
    pub views: Vec<Arc<Status>>,
    pub view_ids: Vec<ViewId>,
    writer: JoinHandle<Result<Wal, WalError>>,
    operators: OperatorThread,
    drivers: Vec<JoinHandle<Result<(), ViewError>>>,
    resume: Receiver<Resume>,
    /// Records of the log above the snapshot that recovery started from.
    pub recovered: u64,
}

impl Pipeline {
    /// Starts from what is on the disk: the newest snapshot that suits every view, then the log.
    pub fn start(
        context: &FolderContext,
        mut wal: Wal,
        catalog: &Arc<Catalog>,
        opened: OpenViews,
    ) -> Result<Self, RuntimeError> {
        let config = &context.config;
        let snapshots = context.snapshots();
        let OpenViews {
            mut views, handles, ..
        } = opened;
        let (operators, catching_up) = start_state(&snapshots, &mut views)?;
        let end = wal.synced_lsn();
        tracing::debug!(from = operators.lsn(), to = end, "recovering");
        let recovered = end.saturating_sub(operators.lsn());
        handles.progress.set_synced(end);
        handles.raise_floors(&operators.retention_floors());
        let ring = Arc::new(Ring::new(config.limits.shares().ring, operators.lsn()));
        let skip_catch_up = Arc::new(AtomicBool::new(false));
        let catch_up = Arc::new(LogCatchUp::new(snapshots.clone(), skip_catch_up.clone()));
        let (statuses, view_ids, drivers) = start_drivers(views, &catching_up, &ring, &catch_up);
        wal.set_committed(operators.lsn());
        let writer = start_writer(context, wal, catalog, &handles.progress);
        let operators = Arc::new(Mutex::new(operators));
        handles.progress.attach_operators(operators.clone());
        let ids_and_statuses = view_ids.iter().cloned().zip(statuses.iter().cloned());
        handles.progress.attach_views(ids_and_statuses.collect());
        let (ready, resume) = channel();
        let retention_lock = Arc::new(Mutex::new(()));
        let intake = writer.ingest.intake();
        let stage = OperatorStage {
            operators,
            ring: ring.clone(),
            snapshots,
            progress: handles.progress.clone(),
            handles: handles.clone(),
            statuses: statuses.clone(),
            log_maintenance: writer.maintenance,
            limits: LogLimits::from_config(config),
            retention_lock: retention_lock.clone(),
            skip_catch_up: skip_catch_up.clone(),
            intake: intake.clone(),
            reserve: Reserve::open(&config.data, reserve::bytes_of(config)),
            relieved: Instant::now(),
            last_snapshot: Instant::now(),
            log_bytes: 0,
            snapshot_bytes: 0,
            published: Instant::now(),
        };
        let operators = stage.start(end, ready, writer.committed);
        Ok(Self {
            retention_lock,
            skip_catch_up,
            intake,
            ingest: Some(writer.ingest),
            handles,
            ring,
            views: statuses,
            view_ids,
            writer: writer.thread,
            operators,
            drivers,
            resume,
            recovered,
        })
    }

    /// Waits until the log's past has been applied.
    pub fn resume(&self) -> Result<Resume, RuntimeError> {
        self.resume.recv().map_err(|_| {
            RuntimeError::Failed("the operators ended before they had read the log".into())
        })
    }

    /// Whether the log's past has been applied, with what sources need to know of it.
    pub fn try_resume(&self) -> Result<Option<Resume>, RuntimeError> {
        match self.resume.try_recv() {
            Ok(resume) => Ok(Some(resume)),
            // If the operators ended, stopping returns why.
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => Ok(None),
        }
    }

    /// Whether a thread ended that should not have.
    pub fn has_failed(&self) -> bool {
        self.writer.is_finished()
            || self.operators.is_finished()
            || self.drivers.iter().any(JoinHandle::is_finished)
    }

    /// Stops `callers`, then the pipeline with its data. Every holder of `ingest` that is not among
    /// them must be gone, or is rejected.
    pub fn stop(self, callers: Callers, ending: Ending) -> Stopped {
        let stages = Stages {
            ingest: self.ingest,
            intake: self.intake,
            skip_catch_up: self.skip_catch_up,
            retention_lock: self.retention_lock,
            writer: Some(self.writer),
            operators: Some(self.operators),
            views: self.drivers,
        };
        shutdown::run(callers, stages, ending)
    }
}

/// The log's writer, and its channels.
struct Writer {
    ingest: Ingest,
    thread: JoinHandle<Result<Wal, WalError>>,
    committed: Receiver<CommittedFrame>,
    maintenance: LogMaintenance,
}

fn start_writer(
    context: &FolderContext,
    wal: Wal,
    catalog: &Arc<Catalog>,
    progress: &Arc<PipelineProgress>,
) -> Writer {
    let (commit_sender, committed) = sync_channel::<CommittedFrame>(COMMITTED_QUEUE_LEN);
    let maintenance = LogMaintenance::default();
    let progress = progress.clone();
    let note_synced = move |header: &Header| {
        progress.note_synced(header.last_lsn(), header.received_at);
        if header.kind == Kind::Record {
            let records = u64::from(header.count);
            metrics::counter!("weir_source_received_total", "source" => header.source.clone())
                .increment(records);
            progress.note_records(&header.stream, records, header.received_at);
        }
    };
    // The operators end before the writer only when they failed, which the supervisor sees.
    let forward = move |frame: CommittedFrame| drop(commit_sender.send(frame));
    let (ingest, thread) = Ingest::start(
        wal,
        catalog.clone(),
        context.clock.clone(),
        context.config.limits.shares().queues,
        maintenance.clone(),
        note_synced,
        forward,
    );
    Writer {
        ingest,
        thread,
        committed,
        maintenance,
    }
}

type Drivers = (
    Vec<Arc<Status>>,
    Vec<ViewId>,
    Vec<JoinHandle<Result<(), ViewError>>>,
);

fn start_drivers(
    views: Vec<Box<dyn View>>,
    catching_up: &[ViewId],
    ring: &Arc<Ring>,
    catch_up: &Arc<LogCatchUp>,
) -> Drivers {
    let (mut statuses, mut ids, mut threads) = (Vec::new(), Vec::new(), Vec::new());
    for view in views {
        let status = Arc::new(Status::default());
        // Published before a snapshot decides what may be trimmed.
        status.publish(&*view);
        let (id, name) = (view.id().clone(), view.id().to_string());
        let (ring, catch_up, published) = (ring.clone(), catch_up.clone(), status.clone());
        if catching_up.contains(&id) {
            status.set_catching_up(true);
        } else {
            // It joins the ring before it runs, so that no source runs ahead of it.
            ring.join(&name, view.applied());
        }
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                let name = view.id().to_string();
                // However a view ends, the ring no longer waits for it.
                let _leaving = OnEnd(|| ring.leave(&name));
                driver::run(view, &ring, &*catch_up, &published)
            })
            .expect("the system can start a thread");
        statuses.push(status);
        ids.push(id);
        threads.push(thread);
    }
    (statuses, ids, threads)
}

/// The state that the live operators start from, and the views that catch up by themselves. The
/// others advance to that state: they have everything below it.
fn start_state(
    snapshots: &Snapshots,
    views: &mut [Box<dyn View>],
) -> Result<(Operators, Vec<ViewId>), RuntimeError> {
    let checkpoints: Vec<(ViewId, Checkpoints)> = views
        .iter()
        .map(|v| (v.id().clone(), v.checkpoints().into_iter().collect()))
        .collect();
    let mut candidates = snapshots.candidates()?;
    loop {
        let Start {
            snapshot,
            catching_up,
        } = recovery::plan(&candidates, &checkpoints);
        let loaded = match snapshot {
            Some(lsn) => snapshots.load(lsn),
            None if candidates.is_empty() => {
                // None of the newest snapshots can be read.
                let all = checkpoints
                    .iter()
                    .flat_map(|(_, own)| own.clone())
                    .collect();
                snapshots
                    .newest_for(&all, Lsn::MAX)
                    .map(|(operators, _)| operators)
            }
            None => Ok(snapshots.empty()),
        };
        let operators = match loaded {
            Ok(operators) => operators,
            Err(error @ OperatorError::Newer { .. }) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, "a snapshot cannot be read; an older one is used");
                candidates.retain(|candidate| candidate.snapshot != snapshot);
                continue;
            }
        };
        for (view, checkpoints) in checkpoints
            .iter()
            .filter(|(view, _)| catching_up.contains(view))
        {
            let from = snapshots.refuse_trimmed(view, checkpoints)?;
            tracing::warn!(
                %view,
                from,
                "the view lags by more than a snapshot interval; it catches up from the log"
            );
        }
        // Before the first record there is nothing to skip, and the view's own log may begin later.
        let is_near = |view: &&mut Box<dyn View>| {
            operators.lsn() > snapshots.start_lsn && !catching_up.contains(view.id())
        };
        views
            .iter_mut()
            .filter(is_near)
            .for_each(|view| view.advance_to(operators.lsn()));
        return Ok((operators, catching_up));
    }
}

type OperatorThread = JoinHandle<Result<(), RuntimeError>>;

struct OperatorStage {
    /// Shared with queries, which read between frames.
    operators: Arc<Mutex<Operators>>,
    ring: Arc<Ring>,
    snapshots: Snapshots,
    progress: Arc<PipelineProgress>,
    handles: Handles,
    statuses: Vec<Arc<Status>>,
    log_maintenance: LogMaintenance,
    limits: LogLimits,
    retention_lock: Arc<Mutex<()>>,
    skip_catch_up: Arc<AtomicBool>,
    intake: Intake,
    reserve: Reserve,
    /// When the disk was last checked.
    relieved: Instant,
    last_snapshot: Instant,
    log_bytes: u64,
    snapshot_bytes: u64,
    published: Instant,
}

/// How much of the log stays, and how often a snapshot lets it be trimmed.
#[derive(Debug, Clone, Copy)]
struct LogLimits {
    keep: Duration,
    budget: u64,
    segment: u64,
    snapshot_every: Duration,
}

impl LogLimits {
    fn from_config(config: &Config) -> Self {
        let Log {
            keep,
            budget,
            segment,
        } = config.log;
        Self {
            keep,
            budget,
            segment,
            snapshot_every: config.limits.snapshot,
        }
    }

    /// Bytes of log above which even young segments are removed, well before records find no room.
    fn trim_above(self) -> u64 {
        (self.budget / 4 * 3).min(self.budget.saturating_sub(3 * self.segment))
    }
}

impl OperatorStage {
    fn operators(&self) -> MutexGuard<'_, Operators> {
        // A state that a panic left half applied is never saved: the stage ends with it.
        self.operators
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs in a thread of its own.
    fn start(
        self,
        end: Lsn,
        ready: Sender<Resume>,
        committed: Receiver<CommittedFrame>,
    ) -> OperatorThread {
        std::thread::Builder::new()
            .name("operators".into())
            .spawn(move || {
                // However the operators end, no view and no source waits for them. The only place
                // that closes the ring.
                let ring = self.ring.clone();
                let _closing = OnEnd(|| ring.close());
                self.run(end, &ready, &committed)
            })
            .expect("the system can start a thread")
    }

    /// Applies the log up to `end`, reports that by `ready`, then applies committed frames until the
    /// writer has ended.
    fn run(
        mut self,
        end: Lsn,
        ready: &Sender<Resume>,
        committed: &Receiver<CommittedFrame>,
    ) -> Result<(), RuntimeError> {
        self.progress.set_operators(&self.operators());
        if self.replay(end)? {
            let _ = ready.send(self.resume_point());
            // The run before left it: views commit after its last snapshot, and a short run has no
            // other.
            self.trim()?;
            self.apply_committed(committed)?;
        }
        self.snapshot()
    }

    /// Applies the log up to `end`; false where it was interrupted, because everything stops.
    fn replay(&mut self, end: Lsn) -> Result<bool, RuntimeError> {
        let mut reader = LogReader::new(
            self.snapshots.storage.clone(),
            self.snapshots.log.clone(),
            self.operators().lsn(),
        );
        while let Some(frame) = reader.next(end)? {
            let is_stopping = || self.skip_catch_up.load(Ordering::Acquire);
            while !self.ring.wait_for_room(TRIM_INTERVAL) && !is_stopping() {
                // Views may wait for room on the disk, which only the reserve can give them.
                self.reserve.adapt();
            }
            if is_stopping() {
                return Ok(false);
            }
            let decoded = self.operators().decode(&frame)?;
            self.apply(&CommittedFrame {
                frame: Arc::new(frame),
                decoded: decoded.map(Arc::new),
                charge: None,
            })?;
        }
        // It holds its last segment open, whose room would stay taken when it is removed.
        drop(reader);
        // A view that has a floor's frame already does not see it again.
        self.handles
            .raise_floors(&self.operators().retention_floors());
        Ok(true)
    }

    fn resume_point(&self) -> Resume {
        let operators = self.operators();
        let answered = operators
            .answered()
            .map(|(key, entry)| (key.clone(), entry.clone()))
            .collect();
        Resume {
            partitions: operators.partitions().clone(),
            seen: operators.seen().clone(),
            answered,
        }
    }

    fn apply_committed(
        &mut self,
        committed: &Receiver<CommittedFrame>,
    ) -> Result<(), RuntimeError> {
        while let Some(frame) = self.next(committed)? {
            let rejected = self.apply(&frame)?;
            let Header { kind, source, .. } = &frame.frame.header;
            if *kind == Kind::Record && rejected > 0 {
                metrics::counter!("weir_source_rejected_total", "source" => source.clone())
                    .increment(rejected as u64);
            }
            if self.relieved.elapsed() >= TRIM_INTERVAL {
                self.relieve()?;
            }
            let is_worth_it = self.log_bytes >= SNAPSHOT_LOG_RATIO * self.snapshot_bytes;
            if is_worth_it && self.last_snapshot.elapsed() >= self.limits.snapshot_every
                || self.log_bytes >= self.limits.budget / 8
            {
                self.snapshot()?;
            }
        }
        Ok(())
    }

    /// Returns how many records of the frame became dead letters.
    fn apply(&mut self, committed: &CommittedFrame) -> Result<usize, RuntimeError> {
        panic_if_asked("operators");
        self.log_bytes += committed.frame.block.len() as u64;
        let (output, streams) = {
            let mut operators = self.operators();
            let output = operators.apply(&committed.frame, committed.decoded.as_deref())?;
            (output, operators.progress())
        };
        if !output.retention_floors.is_empty() {
            self.handles.raise_floors(&output.retention_floors);
        }
        let rejected = output.dead_letters.len();
        self.ring.push(Arc::new(output));
        self.progress.set_streams(streams);
        Ok(rejected)
    }

    /// The next frame. State that changes less often than rows arrive is published while none waits,
    /// or after [`MAX_PUBLISH_INTERVAL`].
    fn next(
        &mut self,
        committed: &Receiver<CommittedFrame>,
    ) -> Result<Option<CommittedFrame>, RuntimeError> {
        let waiting = committed.try_recv();
        if matches!(waiting, Err(TryRecvError::Empty))
            || self.published.elapsed() >= MAX_PUBLISH_INTERVAL
        {
            self.progress.set_operators(&self.operators());
            self.published = Instant::now();
        }
        if let Ok(frame) = waiting {
            return Ok(Some(frame));
        }
        loop {
            match committed.recv_timeout(TRIM_INTERVAL) {
                Ok(frame) => return Ok(Some(frame)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => self.relieve()?,
            }
        }
    }

    /// Where the log or the disk is full, frees everything that recovery does not need: nothing is
    /// taken in until there is room.
    fn relieve(&mut self) -> Result<(), RuntimeError> {
        self.relieved = Instant::now();
        self.reserve.adapt();
        let is_above_limit =
            || self.segments().iter().map(|s| s.bytes).sum::<u64>() > self.limits.trim_above();
        if !self.is_disk_short() && !is_above_limit() {
            return Ok(());
        }
        if self.log_bytes > 0 {
            self.snapshot()
        } else {
            self.trim()
        }
    }

    fn is_disk_short(&self) -> bool {
        self.intake.full().is_some() || self.reserve.is_short()
    }

    /// Saves the operators, then trims what recovery no longer needs.
    fn snapshot(&mut self) -> Result<(), RuntimeError> {
        self.last_snapshot = Instant::now();
        let mut saved = self.snapshots.save(&self.operators());
        if saved.is_err() && self.reserve.is_short() && self.reserve.release() {
            saved = self.snapshots.save(&self.operators());
        }
        match saved {
            Ok(bytes) => {
                self.operators().record_saved();
                self.snapshot_bytes = bytes as u64;
                self.log_bytes = 0;
            }
            // The log keeps what the snapshot would have covered until the next one succeeds.
            Err(error) => tracing::error!(%error, "the snapshot could not be written"),
        }
        self.trim()
    }

    fn trim(&self) -> Result<(), RuntimeError> {
        // While a backup copies, everything stays.
        let _retention_lock = match self.retention_lock.try_lock() {
            Ok(held) => held,
            // A backup that panicked copies nothing any more.
            Err(TryLockError::Poisoned(held)) => held.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        let checkpoints = self.statuses.iter().flat_map(|s| s.checkpoints()).collect();
        let safe = match self.snapshots.tidy(&checkpoints) {
            Ok(Some(safe)) => safe,
            Ok(None) => self.snapshots.start_lsn,
            Err(error @ OperatorError::Newer { .. }) => return Err(error.into()),
            Err(error) => {
                tracing::error!(%error, "old snapshots could not be read; the log is not trimmed");
                return Ok(());
            }
        };
        self.log_maintenance.set_committed(safe);
        let is_short = self.is_disk_short();
        // Where room is needed, the log is not retained beyond what recovery needs.
        let (keep, above) = if is_short {
            (Duration::ZERO, 0)
        } else {
            (self.limits.keep, self.limits.trim_above())
        };
        let segments = self.segments();
        for first_lsn in plan_trim(&segments, safe, keep, Some(above)) {
            self.log_maintenance.request_removal(first_lsn);
        }
        let uncommitted_bytes = segments
            .iter()
            .filter(|s| s.first_lsn > safe)
            .map(|s| s.bytes)
            .sum::<u64>();
        if is_short && safe < self.operators().lsn() || uncommitted_bytes > self.limits.trim_above()
        {
            // Rows that wait in views for their commit hold the log back.
            self.ring.request_flush();
        }
        Ok(())
    }

    fn segments(&self) -> Vec<SegmentAge> {
        let names = self
            .snapshots
            .storage
            .list(&self.snapshots.log)
            .unwrap_or_default();
        let firsts = names.iter().filter_map(|n| segment::first_lsn(n));
        firsts
            .filter_map(|first_lsn| {
                let path = segment::path(&self.snapshots.log, first_lsn);
                let stat = self.snapshots.storage.stat(&path).ok()?;
                Some(SegmentAge {
                    first_lsn,
                    bytes: stat.bytes,
                    age: crate::clock::age(stat.modified),
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn young_segments_are_removed_well_before_the_budget_is_spent() {
        let limits = |budget, segment| LogLimits {
            keep: Duration::ZERO,
            budget,
            segment,
            snapshot_every: Duration::ZERO,
        };
        for (budget, segment, above) in [(64, 4, 48), (64, 8, 40), (8, 4, 0)] {
            assert_eq!(limits(budget, segment).trim_above(), above);
        }
    }
}
