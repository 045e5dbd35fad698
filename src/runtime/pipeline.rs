//! The threads between log and views: one writes the log, one runs the operators, one drives each
//! view. What a stopped pipeline leaves is on the disk; starting one recovers from there.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::RuntimeError;
use super::recovery::{self, Checkpoints, Start};
use super::reserve::{self, Reserve};
use super::snapshots::{LogCatchUp, Snapshots};
use super::views::Opened;
use crate::clock::Clock;
use crate::config::{Config, Log};
use crate::event::Lsn;
use crate::idempotency::{AnsweredRequest, RequestKey};
use crate::ingest::{CommittedFrame, Ingest, Intake, LogMaintenance};
use crate::operators::{OperatorError, Operators, PartitionState};
use crate::query::{Handles, Progress};
use crate::schema::Catalog;
use crate::threads::{self, OnEnd, panic_if_asked};
use crate::views::driver::{self, Status};
use crate::views::ring::Ring;
use crate::views::{View, ViewError};
use crate::wal::retention::{SegmentAge, plan_trim};
use crate::wal::{Header, LogReader, Wal, segment};

/// Frames between the log's writer and the operators.
const HANDED_ON: usize = 16;
/// How often an idle stage looks whether the log can be trimmed.
const TRIM_EVERY: Duration = Duration::from_secs(1);
/// Partitions, gaps and retried dead letters are shown at least so often.
const PUBLISH_AT_LAST: Duration = Duration::from_secs(1);
/// A snapshot is worth writing after this many times its size of log.
const SNAPSHOT_LOG_RATIO: u64 = 4;

/// What sources need to know of the log's past before they go on.
pub struct Resume {
    pub partitions: BTreeMap<(String, String), PartitionState>,
    /// Requests with an idempotency key, oldest first.
    pub answered: Vec<(RequestKey, AnsweredRequest)>,
}

/// A running pipeline.
pub struct Pipeline {
    pub ingest: Option<Ingest>,
    pub intake: Intake,
    /// Who holds it keeps log, snapshots and files from being removed.
    pub trimming: Arc<Mutex<()>>,
    leave_the_rest: Arc<AtomicBool>,
    pub handles: Handles,
    pub ring: Arc<Ring>,
    pub views: Vec<Arc<Status>>,
    pub view_names: Vec<String>,
    writer: JoinHandle<Result<Wal, crate::wal::WalError>>,
    operators: OperatorThread,
    drivers: Vec<JoinHandle<Result<(), ViewError>>>,
    resume: Receiver<Resume>,
    /// Records of the log that no snapshot covers.
    pub recovered: u64,
}

impl Pipeline {
    /// Starts from what is on the disk: the newest snapshot that no view is behind, then the log.
    pub fn start(
        config: &Config,
        snapshots: Snapshots,
        mut wal: Wal,
        catalog: &Arc<Catalog>,
        opened: Opened,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, RuntimeError> {
        let shares = config.limits.shares();
        let Opened {
            mut views, handles, ..
        } = opened;
        let (operators, in_reader) = start_state(&snapshots, &mut views)?;
        let end = wal.synced_lsn();
        tracing::debug!(from = operators.lsn(), to = end, "recovering");
        let recovered = end.saturating_sub(operators.lsn());
        handles.progress.set_synced(end);
        handles.raise_floors(&operators.floors());
        let ring = Arc::new(Ring::new(shares.ring, operators.lsn()));
        let leave_the_rest = Arc::new(AtomicBool::new(false));
        let catch_up = Arc::new(LogCatchUp::new(snapshots.clone(), leave_the_rest.clone()));
        let (statuses, names, drivers) = start_drivers(views, &in_reader, &ring, &catch_up);
        let (handed_on, committed) = sync_channel::<CommittedFrame>(HANDED_ON);
        let (upkeep, upkeep_receiver) = channel();
        let progress = handles.progress.clone();
        let note_synced =
            move |header: &Header| progress.note_synced(header.last_lsn(), header.received_at);
        // The operators end before the writer only when they failed, which the supervisor sees.
        let hand_on = move |frame: CommittedFrame| drop(handed_on.send(frame));
        wal.set_committed(operators.lsn());
        let (catalog, queues) = (catalog.clone(), shares.queues);
        let (ingest, writer) = Ingest::start(
            wal,
            catalog,
            clock,
            queues,
            upkeep_receiver,
            note_synced,
            hand_on,
        );
        let operators = Arc::new(Mutex::new(operators));
        handles.progress.attach_operators(operators.clone());
        let (ready, resume) = channel();
        let trimming = Arc::new(Mutex::new(()));
        let stage = OperatorStage {
            operators,
            ring: ring.clone(),
            snapshots,
            progress: handles.progress.clone(),
            handles: handles.clone(),
            statuses: statuses.clone(),
            upkeep,
            limits: LogLimits::of(config),
            trimming: trimming.clone(),
            leave_the_rest: leave_the_rest.clone(),
            intake: ingest.intake(),
            reserve: Reserve::open(&config.data, reserve::bytes_of(config)),
            relieved: Instant::now(),
            last_snapshot: Instant::now(),
            log_bytes: 0,
            snapshot_bytes: 0,
            published: Instant::now(),
        };
        let operators = stage.start(end, ready, committed);
        Ok(Self {
            trimming,
            leave_the_rest,
            intake: ingest.intake(),
            ingest: Some(ingest),
            handles,
            ring,
            views: statuses,
            view_names: names,
            writer,
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
            // If the operators ended, stopping tells why.
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => Ok(None),
        }
    }

    /// Whether a thread ended that should not have.
    pub fn has_failed(&self) -> bool {
        self.writer.is_finished()
            || self.operators.is_finished()
            || self.drivers.iter().any(JoinHandle::is_finished)
    }

    /// Commits at [`Pipeline::stop`] what has been applied until then, instead of reading the log
    /// to its end before.
    pub fn leave_the_rest(&self) {
        self.leave_the_rest.store(true, Ordering::Release);
    }

    /// Ends with the data: no more frames, operators, views with their last commit. Every other
    /// holder of `ingest` must be gone.
    pub fn stop(mut self) -> Result<Wal, RuntimeError> {
        self.ingest.take();
        let wal = join(self.writer).and_then(|ended| ended.map_err(RuntimeError::from));
        let operators = join(self.operators).and_then(|ended| ended);
        if operators.is_err() {
            self.ring.close();
        }
        let mut result = operators;
        for driver in self.drivers {
            result = result.and(join(driver).and_then(|ended| ended.map_err(RuntimeError::from)));
        }
        result.and(wal)
    }
}

fn join<T>(thread: JoinHandle<T>) -> Result<T, RuntimeError> {
    let name = thread.thread().name().unwrap_or_default().to_owned();
    thread
        .join()
        .map_err(|panic| RuntimeError::Failed(threads::describe(&name, &*panic)))
}

type Drivers = (
    Vec<Arc<Status>>,
    Vec<String>,
    Vec<JoinHandle<Result<(), ViewError>>>,
);

fn start_drivers(
    views: Vec<Box<dyn View>>,
    in_reader: &[String],
    ring: &Arc<Ring>,
    catch_up: &Arc<LogCatchUp>,
) -> Drivers {
    let (mut statuses, mut names, mut threads) = (Vec::new(), Vec::new(), Vec::new());
    for view in views {
        let status = Arc::new(Status::default());
        // Known before any snapshot asks what may be trimmed.
        status.publish(&*view);
        let name = view.name().to_owned();
        let (ring, catch_up, published) = (ring.clone(), catch_up.clone(), status.clone());
        if in_reader.contains(&name) {
            status.set_catching_up(true);
        } else {
            // Known to the ring from the start, so that no source runs ahead of a view that has not
            // begun.
            ring.join(&name, view.applied());
        }
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                let name = view.name().to_owned();
                // Nobody waits for a view that has ended, however.
                let _leaving = OnEnd(|| ring.leave(&name));
                driver::run(view, &ring, &*catch_up, &published)
            })
            .expect("the system can start a thread");
        statuses.push(status);
        names.push(name);
        threads.push(thread);
    }
    (statuses, names, threads)
}

/// The state that the live operators start from, and the views that start in the reader. The others
/// know then that nothing below it is theirs.
fn start_state(
    snapshots: &Snapshots,
    views: &mut [Box<dyn View>],
) -> Result<(Operators, Vec<String>), RuntimeError> {
    let checkpoints: Vec<(String, Checkpoints)> = views
        .iter()
        .map(|v| (v.name().to_owned(), v.checkpoints().into_iter().collect()))
        .collect();
    let mut candidates = snapshots.candidates()?;
    loop {
        let Start {
            snapshot,
            in_reader,
        } = recovery::plan(&candidates, &checkpoints);
        let loaded = match snapshot {
            Some(lsn) => snapshots.load(lsn),
            None if candidates.is_empty() => {
                // None of the newest can be read.
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
        for (name, checkpoints) in checkpoints
            .iter()
            .filter(|(name, _)| in_reader.contains(name))
        {
            let from = snapshots.refuse_trimmed(name, checkpoints)?;
            tracing::warn!(
                view = name,
                from,
                "it is more than a snapshot interval behind and reads the log by itself"
            );
        }
        // Before the first record there is nothing to skip, and a view's own log may begin later.
        let is_near = |view: &&mut Box<dyn View>| {
            operators.lsn() > snapshots.zero && !in_reader.iter().any(|n| n == view.name())
        };
        views
            .iter_mut()
            .filter(is_near)
            .for_each(|view| view.skip_to(operators.lsn()));
        return Ok((operators, in_reader));
    }
}

type OperatorThread = JoinHandle<Result<(), RuntimeError>>;

struct OperatorStage {
    /// Shared with queries, which look between frames.
    operators: Arc<Mutex<Operators>>,
    ring: Arc<Ring>,
    snapshots: Snapshots,
    progress: Arc<Progress>,
    handles: Handles,
    statuses: Vec<Arc<Status>>,
    upkeep: Sender<LogMaintenance>,
    limits: LogLimits,
    trimming: Arc<Mutex<()>>,
    leave_the_rest: Arc<AtomicBool>,
    intake: Intake,
    reserve: Reserve,
    /// When the disk was looked at.
    relieved: Instant,
    last_snapshot: Instant,
    log_bytes: u64,
    snapshot_bytes: u64,
    published: Instant,
}

/// How much of the log stays, and when a snapshot lets go of it.
#[derive(Debug, Clone, Copy)]
struct LogLimits {
    keep: Duration,
    budget: u64,
    segment: u64,
    snapshot_every: Duration,
}

impl LogLimits {
    fn of(config: &Config) -> Self {
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

    /// Bytes of log above which even young segments leave, well before records find no room.
    fn trim_above(self) -> u64 {
        (self.budget / 4 * 3).min(self.budget.saturating_sub(3 * self.segment))
    }
}

impl OperatorStage {
    fn operators(&self) -> MutexGuard<'_, Operators> {
        // What a panic leaves half applied is never snapshotted: the stage ends with it.
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
                // However they end, no view and no source waits for them.
                let ring = self.ring.clone();
                let _closing = OnEnd(|| ring.close());
                self.run(end, &ready, &committed)
            })
            .expect("the system can start a thread")
    }

    /// Applies the log up to `end`, says so, then applies what is handed on until nobody is left to
    /// do so.
    fn run(
        mut self,
        end: Lsn,
        ready: &Sender<Resume>,
        committed: &Receiver<CommittedFrame>,
    ) -> Result<(), RuntimeError> {
        let mut reader = LogReader::new(
            self.snapshots.storage.clone(),
            self.snapshots.log.clone(),
            self.operators().lsn(),
        );
        self.progress.set_operators(&self.operators());
        while let Some(frame) = reader.next(end)? {
            let is_to_end = || self.leave_the_rest.load(Ordering::Acquire);
            while !self.ring.wait_for_room(TRIM_EVERY) && !is_to_end() {
                // Views that find no room would be waited for, and they for it.
                self.reserve.adapt();
            }
            if is_to_end() {
                self.snapshot()?;
                self.ring.close();
                return Ok(());
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
        // A view that had a floor's frame already did not see it again.
        self.handles.raise_floors(&self.operators().floors());
        let resume = {
            let operators = self.operators();
            let answered = operators
                .answered()
                .map(|(key, entry)| (key.clone(), entry.clone()))
                .collect();
            Resume {
                partitions: operators.partitions().clone(),
                answered,
            }
        };
        let _ = ready.send(resume);
        while let Some(frame) = self.next(committed)? {
            self.apply(&frame)?;
            if self.relieved.elapsed() >= TRIM_EVERY {
                self.relieve()?;
            }
            let is_worth_it = self.log_bytes >= SNAPSHOT_LOG_RATIO * self.snapshot_bytes;
            if is_worth_it && self.last_snapshot.elapsed() >= self.limits.snapshot_every
                || self.log_bytes >= self.limits.budget / 8
            {
                self.snapshot()?;
            }
        }
        self.snapshot()?;
        self.ring.close();
        Ok(())
    }

    fn apply(&mut self, committed: &CommittedFrame) -> Result<(), RuntimeError> {
        panic_if_asked("operators");
        self.log_bytes += committed.frame.block.len() as u64;
        let (output, streams) = {
            let mut operators = self.operators();
            let output = operators.apply(&committed.frame, committed.decoded.as_deref())?;
            (output, operators.progress())
        };
        if !output.floors.is_empty() {
            self.handles.raise_floors(&output.floors);
        }
        self.ring.push(Arc::new(output));
        self.progress.set_streams(streams);
        Ok(())
    }

    /// The next frame; what changes less often than rows come is published while none waits, or
    /// once in a while.
    fn next(
        &mut self,
        committed: &Receiver<CommittedFrame>,
    ) -> Result<Option<CommittedFrame>, RuntimeError> {
        let waiting = committed.try_recv();
        if matches!(waiting, Err(TryRecvError::Empty))
            || self.published.elapsed() >= PUBLISH_AT_LAST
        {
            self.progress.set_operators(&self.operators());
            self.published = Instant::now();
        }
        if let Ok(frame) = waiting {
            return Ok(Some(frame));
        }
        loop {
            match committed.recv_timeout(TRIM_EVERY) {
                Ok(frame) => return Ok(Some(frame)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => self.relieve()?,
            }
        }
    }

    /// Where the log or the disk is full, lets go of everything that recovery does not need:
    /// nothing is taken in before.
    fn relieve(&mut self) -> Result<(), RuntimeError> {
        self.relieved = Instant::now();
        self.reserve.adapt();
        let is_over =
            || self.segments().iter().map(|s| s.bytes).sum::<u64>() > self.limits.trim_above();
        if !self.is_disk_short() && !is_over() {
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

    /// Saves the operators, then lets go of what recovery no longer needs.
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
            // A full disk: the log keeps what the snapshot would have covered, and the next one is
            // tried in its time.
            Err(error) => tracing::error!(%error, "no snapshot could be written"),
        }
        self.trim()
    }

    fn trim(&self) -> Result<(), RuntimeError> {
        // While a backup copies, everything stays.
        let _trimming = match self.trimming.try_lock() {
            Ok(held) => held,
            // One that panicked copies nothing any more.
            Err(TryLockError::Poisoned(held)) => held.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        let checkpoints = self.statuses.iter().flat_map(|s| s.checkpoints()).collect();
        let safe = match self.snapshots.tidy(&checkpoints) {
            Ok(Some(safe)) => safe,
            Ok(None) => self.snapshots.zero,
            Err(error @ OperatorError::Newer { .. }) => return Err(error.into()),
            Err(error) => {
                tracing::error!(%error, "old snapshots could not be looked at; the log is not trimmed");
                return Ok(());
            }
        };
        let _ = self.upkeep.send(LogMaintenance::Committed(safe));
        let is_short = self.is_disk_short();
        // Of a log that is kept for its own sake nothing stays where its room is needed.
        let (keep, above) = if is_short {
            (Duration::ZERO, 0)
        } else {
            (self.limits.keep, self.limits.trim_above())
        };
        let segments = self.segments();
        for first_lsn in plan_trim(&segments, safe, keep, Some(above)) {
            let _ = self.upkeep.send(LogMaintenance::Remove(first_lsn));
        }
        let kept = segments
            .iter()
            .filter(|s| s.first_lsn > safe)
            .map(|s| s.bytes)
            .sum::<u64>();
        if is_short && safe < self.operators().lsn() || kept > self.limits.trim_above() {
            // Rows that wait in a view for their time keep the log.
            self.ring.hurry();
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
                let metadata =
                    std::fs::metadata(segment::path(&self.snapshots.log, first_lsn)).ok()?;
                let age = metadata.modified().ok()?.elapsed().unwrap_or_default();
                Some(SegmentAge {
                    first_lsn,
                    bytes: metadata.len(),
                    age,
                })
            })
            .collect()
    }
}
