//! Files: NDJSON or a JSON array, plain or compressed; one, those of a folder, or those that a glob
//! names.
//!
//! Each record is read exactly once, even while files are renamed, copied, compressed or truncated.
//! A partition is a *content*: identified by its first bytes, by the inode that held it last, and by
//! the checksum of everything that was read of it. A file that is renamed, compressed or copied
//! continues its partition; another content in the same file, or a file that became shorter, begins
//! a new one.
//!
//! In the order in which data flows: `discover` finds files, `watch` is notified of changes, `scan`
//! tracks what changed; `matching` compares a file with the partitions of `registry`, `decision`
//! decides which of them it continues, and `identify` acts on that, within the `extent` of a bounded
//! run, also for `rotations` of a single file that happened between scans; `follow` reads with
//! `content`, `frame` sends to the log. `ordered` is a separate source: one complete file in order
//! of event time.
//!
//! A file that cannot be read is retried while the others are read; no failure of a single file ends
//! the source.

mod content;
mod decision;
mod discover;
mod extent;
mod follow;
pub(super) mod frame;
mod identify;
mod matching;
mod ordered;
mod registry;
mod rotations;
mod scan;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Context, SourceError};
use crate::clock::Clock;
use crate::config::{FileDef, ReadOrder};
use crate::event::{SourceHealth, SourceState};
use discover::{Pattern, Role, Stamp};
use extent::Extent;
use follow::{Follower, ReadError, record_end};
use frame::InFlight;
use matching::is_unchanged;
use registry::{PartitionId, PartitionRegistry};
use rotations::Rotations;
use watch::Watch;

/// How long a bounded run waits for files to come to rest.
const MAX_SETTLE_WAIT: Duration = Duration::from_secs(30);
/// Waiting files that status lists by name.
const MAX_LISTED: usize = 1_000;
/// Open descriptors: of files that grow, so that one that is renamed or removed is read to its end.
const MAX_OPEN: usize = 64;
/// Open descriptors of files that are at no path of the source any more.
const MAX_DETACHED: usize = 16;

/// The files that a source reads at present, in the order of their paths.
///
/// # Errors
///
/// A pattern of the source is not a glob.
pub(super) fn members(def: &FileDef) -> Result<Vec<PathBuf>, SourceError> {
    let pattern = Pattern::new(def).map_err(|error| SourceError::Pattern {
        path: def.path.display().to_string(),
        reason: error.to_string(),
    })?;
    let found = pattern.discover(&|_| false);
    let members = found.files.into_iter();
    let members = members.filter(|(_, (_, role))| *role == Role::Member);
    Ok(members.map(|(path, _)| path).collect())
}

/// Intervals, which tests shorten.
#[derive(Debug, Clone, Copy)]
struct Timing {
    /// How often an idle source scans.
    poll: Duration,
    /// A file that has not changed for this long is at rest.
    settle: Duration,
    /// A file that is at no path any more is closed after this long without growth.
    linger: Duration,
    /// Between two attempts at a file that cannot be read.
    min_retry_delay: Duration,
    max_retry_delay: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            poll: Duration::from_millis(200),
            settle: Duration::from_secs(1),
            linger: Duration::from_secs(30),
            min_retry_delay: Duration::from_millis(500),
            max_retry_delay: Duration::from_secs(30),
        }
    }
}

/// Reads files until asked to stop; a bounded run, to the end of what exists.
pub(crate) fn run(context: &Context, def: &FileDef, clock: &dyn Clock) -> Result<(), SourceError> {
    if def.order == ReadOrder::EventTime {
        return ordered::run(context, def);
    }
    let result = Source::new(context, def, Timing::default(), clock)?.run();
    if result.is_ok() {
        let (waiting, waiting_total) = {
            let health = context
                .health
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            (health.waiting.clone(), health.waiting_total)
        };
        context.set_health(SourceHealth {
            state: SourceState::Ended,
            reason: None,
            waiting,
            waiting_total,
            ..SourceHealth::default()
        });
    }
    result
}

/// The file at a path.
struct TrackedFile {
    stamp: Stamp,
    role: Role,
    state: FileState,
    /// Its partition, as identified last.
    bound: Option<PartitionId>,
    /// Its stamp has changed since it was identified.
    is_changed: bool,
    /// When its stamp was last observed to change.
    unchanged_since: Instant,
    retry: Retry,
    /// Why it cannot be read; reported once.
    reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileState {
    New,
    Bound,
    /// Its partition cannot be decided yet.
    Undecided,
    /// It could not be read.
    Failed,
    /// It is not read: it is empty, or does not belong to this source.
    Skipped,
}

/// When a file that could not be read is retried.
#[derive(Debug, Clone, Copy, Default)]
struct Retry {
    attempts: u32,
    at: Option<Instant>,
    /// Only once the file has changed: its content was at fault.
    on_change: bool,
}

/// A running source of files.
struct Source<'a> {
    context: &'a Context,
    clock: &'a dyn Clock,
    pattern: Pattern,
    timing: Timing,
    registry: PartitionRegistry,
    files: BTreeMap<PathBuf, TrackedFile>,
    followers: BTreeMap<PartitionId, Follower>,
    rotations: Rotations,
    in_flight: InFlight,
    watch: Watch,
    /// Folders with their modification time at the last walk.
    folders: BTreeMap<PathBuf, u64>,
    walked_at: Option<Instant>,
    is_walk_due: bool,
    walk_interval: Duration,
    /// The interval if a walk is due, during which changes accumulate.
    due_walk_interval: Duration,
    /// Paths that the last walk could not access.
    failed: BTreeMap<PathBuf, String>,
    is_missing: bool,
    has_too_many_files: bool,
    /// Skipped subfolders were reported.
    is_subfolder_reported: bool,
    /// Of a bounded run.
    extent: Extent,
    started: Instant,
    /// The health that was published last.
    published: SourceHealth,
}

impl<'a> Source<'a> {
    fn new(
        context: &'a Context,
        def: &FileDef,
        timing: Timing,
        clock: &'a dyn Clock,
    ) -> Result<Self, SourceError> {
        let path = || def.path.display().to_string();
        ordered::check_not_ordered(context)?;
        let pattern = Pattern::new(def).map_err(|e| SourceError::Pattern {
            path: path(),
            reason: e.to_string(),
        })?;
        let watch = if context.once {
            Watch::default()
        } else {
            Watch::new(pattern.single())
        };
        let mut registry = PartitionRegistry::new(&context.partitions);
        let single = pattern.single().map(Path::to_owned);
        let rotations = Rotations::new(single, &registry, clock.now());
        registry.since = rotations.since();
        Ok(Self {
            context,
            clock,
            rotations,
            pattern,
            timing,
            registry,
            files: BTreeMap::new(),
            followers: BTreeMap::new(),
            in_flight: InFlight::default(),
            watch,
            folders: BTreeMap::new(),
            walked_at: None,
            is_walk_due: false,
            walk_interval: timing.poll,
            due_walk_interval: Duration::ZERO,
            failed: BTreeMap::new(),
            is_missing: false,
            has_too_many_files: false,
            is_subfolder_reported: false,
            extent: Extent::default(),
            started: Instant::now(),
            published: SourceHealth::default(),
        })
    }

    fn run(&mut self) -> Result<(), SourceError> {
        while !self.context.stop.is_requested() {
            self.scan()?;
            if self.context.once && self.is_missing {
                return Err(SourceError::Missing {
                    path: self.pattern.path().display().to_string(),
                });
            }
            let is_busy = self.identify_all()? | self.read_all()?;
            if is_busy {
                continue;
            }
            self.in_flight.wait_all()?;
            self.publish_health();
            if self.context.once && self.is_done() {
                self.report_missed(0)?;
                self.record_ends()?;
                break;
            }
            self.context.stop.wait(self.timing.poll);
        }
        self.in_flight.wait_all()
    }

    /// Reads a slice of every open file; whether any had records.
    fn read_all(&mut self) -> Result<bool, SourceError> {
        let mut is_busy = false;
        let ids: Vec<PartitionId> = self.followers.keys().copied().collect();
        for id in ids {
            is_busy |= self.read(id)?;
        }
        self.close_idle();
        Ok(is_busy)
    }

    /// Reads a slice of every file that is at no path any more, so that its content is recognized
    /// where it is now.
    fn read_detached(&mut self) -> Result<(), SourceError> {
        let detached: Vec<PartitionId> = self
            .followers
            .values()
            .filter(|f| f.path.is_none())
            .map(|f| f.id)
            .collect();
        for id in detached {
            self.read(id)?;
        }
        Ok(())
    }

    /// Reads a slice of a file; whether there may be more.
    fn read(&mut self, id: PartitionId) -> Result<bool, SourceError> {
        let Some(follower) = self.followers.get_mut(&id) else {
            return Ok(false);
        };
        // A file at a path is identified again before more of it is read.
        let is_due = follower.path.as_ref().is_none_or(|path| {
            follower.has_unread_content()
                && self
                    .files
                    .get(path)
                    .is_some_and(|file| file.state == FileState::Bound)
        });
        if !is_due {
            return Ok(false);
        }
        if follower.path.is_none() && !follower.is_between_slices() && !follower.is_at_end() {
            let partition = self.registry.get(id);
            let is_unchanged = follower
                .stamp()
                .and_then(|stamp| is_unchanged(follower.content(), stamp, partition, id));
            if !is_unchanged.unwrap_or(false) {
                self.followers.remove(&id);
                self.release_partition(id);
                return Ok(false);
            }
        }
        match follower.read_slice(self.context, &mut self.registry, &mut self.in_flight) {
            Ok(slice) => {
                if self.context.once && slice.is_end {
                    self.extent.finish(id);
                }
                Ok(slice.was_busy || !slice.is_end)
            }
            Err(ReadError::Source(error)) => Err(error),
            Err(ReadError::File(error)) => {
                let path = self
                    .followers
                    .remove(&id)
                    .and_then(|follower| follower.path);
                self.release_partition(id);
                let partition = &self.registry.get(id).name;
                match path {
                    Some(path) => self.fail(&path, &error),
                    None => {
                        tracing::warn!(source = self.context.name, partition, %error, "a removed file could not be read to its end");
                    }
                }
                Ok(true)
            }
        }
    }

    /// Closes descriptors: of files that are at no path and no longer grow, and of idle ones if too
    /// many are open.
    fn close_idle(&mut self) {
        let linger = if self.context.once {
            Duration::ZERO
        } else {
            self.timing.linger
        };
        let mut detached: Vec<(Instant, PartitionId)> = self
            .followers
            .values()
            .filter(|f| f.path.is_none() && f.is_at_end())
            .map(|f| (f.last_active, f.id))
            .collect();
        detached.sort();
        let excess = detached.len().saturating_sub(MAX_DETACHED);
        for (n, (last_active, id)) in detached.into_iter().enumerate() {
            if n >= excess && last_active.elapsed() < linger {
                continue;
            }
            self.followers.remove(&id);
            self.release_partition(id);
        }
        let mut idle: Vec<(Instant, PartitionId)> = self
            .followers
            .values()
            .filter(|f| f.path.is_some() && f.is_at_end())
            .map(|f| (f.last_active, f.id))
            .collect();
        let excess = self.followers.len().saturating_sub(MAX_OPEN);
        idle.sort();
        for (_, id) in idle.into_iter().take(excess) {
            self.followers.remove(&id);
        }
    }

    /// Whether a bounded run has read everything that it waits for.
    fn is_done(&self) -> bool {
        // A file may never come to rest.
        let is_overdue = self.started.elapsed() > MAX_SETTLE_WAIT;
        let is_pending = |file: &TrackedFile| match file.state {
            FileState::New => true,
            FileState::Undecided => !is_overdue,
            FileState::Bound => file.is_changed && !self.extent.is_finished(file.bound),
            FileState::Skipped | FileState::Failed => false,
        };
        self.followers.values().all(Follower::is_at_end) && !self.files.values().any(is_pending)
    }

    /// Records the end of every partition that was read, but not to its end.
    fn record_ends(&mut self) -> Result<(), SourceError> {
        for id in self.registry.take_unrecorded_ends() {
            record_end(self.context, &self.registry, id, &mut self.in_flight)?;
        }
        Ok(())
    }

    /// Publishes the source's health, and logs what has changed in it.
    fn publish_health(&mut self) {
        let health = self.health();
        if health == self.published {
            return;
        }
        log_changes(&self.context.name, &self.published, &health);
        self.context.set_health(health.clone());
        self.published = health;
    }

    fn health(&self) -> SourceHealth {
        let path = self.pattern.path().display();
        let root = self.pattern.root();
        let file_reasons = || {
            self.files
                .iter()
                .filter_map(|(path, file)| Some((path, file.reason.as_ref()?)))
        };
        let root_failure = self.failed.get(root).or_else(|| {
            let file = self.files.get(root)?;
            file.reason.as_ref()
        });
        let (state, reason) = if let Some(reason) = root_failure {
            (
                SourceState::Halted,
                Some(format!("{path}: {reason}; retrying")),
            )
        } else if self.is_missing {
            (
                SourceState::Waiting,
                Some(format!(
                    "{path} does not exist; it is read as soon as it does"
                )),
            )
        } else if self.has_too_many_files {
            (
                SourceState::Running,
                Some(format!(
                    "{path} has more than 100000 files; the others are not read"
                )),
            )
        } else {
            (SourceState::Running, None)
        };
        let mut health = SourceHealth {
            state,
            reason,
            ..SourceHealth::default()
        };
        let waiting = self.failed.iter().chain(file_reasons());
        for (path, reason) in waiting.filter(|(path, _)| path.as_path() != root) {
            health.waiting_total += 1;
            if health.waiting.len() < MAX_LISTED {
                let path = path.display().to_string();
                health.waiting.insert(path, reason.clone());
            }
        }
        health
    }
}

/// Logs what has changed in the health of a source.
fn log_changes(source: &str, before: &SourceHealth, now: &SourceHealth) {
    if (now.state, &now.reason) != (before.state, &before.reason) {
        match (&now.reason, now.state) {
            (Some(reason), SourceState::Halted) => {
                tracing::error!(source, reason, "the source is halted");
            }
            (Some(reason), _) => tracing::warn!(source, reason, "the source waits"),
            (None, _) => tracing::info!(source, "the source continues"),
        }
    }
    for (path, reason) in &now.waiting {
        if !before.waiting.contains_key(path) {
            tracing::warn!(source, path, reason, "a file waits; the others are read");
        }
    }
    for path in before.waiting.keys() {
        if !now.waiting.contains_key(path) {
            tracing::info!(source, path, "a file no longer waits");
        }
    }
}

#[cfg(test)]
mod model;
