//! Files: NDJSON or a JSON array, plain or compressed; one, those of a folder, or those that a glob
//! names.
//!
//! Each record is taken exactly once, whatever happens to the file meanwhile. What a partition is,
//! is a *content*: known by how it begins, by the inode that held it last, and by the checksum of
//! everything that was read of it. A file that is renamed, compressed or copied continues its
//! partition; another content in the same file, or a file that became shorter, begins a new one.
//!
//! In the order in which data flows: `discover` finds files, `watch` hears of changes, `look` notes
//! what changed; `compare` and `identity` decide which partition a file is, with what `known` has
//! of them; `examine` acts on it, within the `extent` of a run that ends, also on `generations` of
//! a single file that nobody looked at in time; `follow` reads with `content`, `frame` sends to the
//! log. `ordered` is a source of its own beside these: one complete file in order of event time.
//!
//! A file that cannot be read waits and is tried again, and the others are read; nothing that
//! happens to one file ends the source.

mod compare;
mod content;
mod discover;
mod examine;
mod extent;
mod follow;
pub(super) mod frame;
mod generations;
mod identity;
mod known;
mod look;
mod ordered;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Context, SourceError};
use crate::clock::Clock;
use crate::config::{FileDef, ReadOrder};
use crate::event::{SourceHealth, SourceState};
use compare::is_still;
use discover::{Pattern, Role, Stamp};
use extent::Extent;
use follow::{Follower, ReadError, note_end};
use frame::InFlight;
use generations::Generations;
use known::{Id, Known};
use watch::Watch;

/// How long a run that ends waits for files to come to rest.
const LATE: Duration = Duration::from_secs(30);
/// Waiting parts that are listed by name.
const LISTED: usize = 1_000;
/// Descriptors kept open: of files that grow, so that one that is renamed or removed is read to its
/// end.
const MAX_OPEN: usize = 64;
/// Descriptors kept of files to which no path of the source leads any more.
const MAX_LEAVING: usize = 16;

/// How long things take; tests wait less.
#[derive(Debug, Clone, Copy)]
struct Timing {
    /// How often the source looks around when it is idle.
    poll: Duration,
    /// A file that has not changed for this long is at rest.
    settle: Duration,
    /// A file to which no path leads any more is let go after so long without growth.
    linger: Duration,
    /// Between two tries of a file that cannot be read.
    first_retry: Duration,
    last_retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            poll: Duration::from_millis(200),
            settle: Duration::from_secs(1),
            linger: Duration::from_secs(30),
            first_retry: Duration::from_millis(500),
            last_retry: Duration::from_secs(30),
        }
    }
}

/// Reads files until asked to stop; with `once`, to the end of what is there.
pub fn run(context: &Context, def: &FileDef, clock: &dyn Clock) -> Result<(), SourceError> {
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
        });
    }
    result
}

/// What is known of a file that a path leads to.
struct Tracked {
    stamp: Stamp,
    role: Role,
    state: Tracking,
    /// The partition that it was last.
    bound: Option<Id>,
    /// Its stamp is another one than when it was looked at last.
    is_changed: bool,
    /// Since when its stamp is what it is, as seen from here.
    since: Instant,
    retry: Retry,
    /// Why it waits; told once.
    reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tracking {
    New,
    Bound,
    /// Which partition it is cannot be told yet.
    Undecided,
    /// It could not be read.
    Failed,
    /// Nothing of it is to be read: it is empty, or no part of this source.
    Passed,
}

/// When a file that could not be read is tried again.
#[derive(Debug, Clone, Copy, Default)]
struct Retry {
    tries: u32,
    at: Option<Instant>,
    /// Only once the file has changed: its content was at fault.
    on_change: bool,
}

/// A source of files at work.
struct Source<'a> {
    context: &'a Context,
    clock: &'a dyn Clock,
    pattern: Pattern,
    timing: Timing,
    known: Known,
    files: BTreeMap<PathBuf, Tracked>,
    followers: BTreeMap<Id, Follower>,
    generations: Generations,
    in_flight: InFlight,
    watch: Watch,
    /// Folders with their time of change at the last walk.
    folders: BTreeMap<PathBuf, u64>,
    walked: Option<Instant>,
    is_walk_due: bool,
    walk_every: Duration,
    /// What changes meanwhile is noted together.
    walk_soonest: Duration,
    /// What could not be looked at in the last walk.
    failed: BTreeMap<PathBuf, String>,
    is_missing: bool,
    is_cut: bool,
    /// Subfolders that are not entered were reported.
    is_subfolder_reported: bool,
    /// Of a run that ends.
    extent: Extent,
    started: Instant,
    told: SourceHealth,
}

impl<'a> Source<'a> {
    fn new(
        context: &'a Context,
        def: &FileDef,
        timing: Timing,
        clock: &'a dyn Clock,
    ) -> Result<Self, SourceError> {
        let path = || def.path.display().to_string();
        ordered::refuse_positions(context)?;
        let pattern = Pattern::new(def).map_err(|e| SourceError::Pattern {
            path: path(),
            reason: e.to_string(),
        })?;
        let watch = if context.once {
            Watch::default()
        } else {
            Watch::new(pattern.single())
        };
        let mut known = Known::new(&context.partitions);
        let generations =
            Generations::new(pattern.single().map(Path::to_owned), &known, clock.now());
        known.since = generations.since();
        Ok(Self {
            context,
            clock,
            generations,
            pattern,
            timing,
            known,
            files: BTreeMap::new(),
            followers: BTreeMap::new(),
            in_flight: InFlight::default(),
            watch,
            folders: BTreeMap::new(),
            walked: None,
            is_walk_due: false,
            walk_every: timing.poll,
            walk_soonest: Duration::ZERO,
            failed: BTreeMap::new(),
            is_missing: false,
            is_cut: false,
            is_subfolder_reported: false,
            extent: Extent::default(),
            started: Instant::now(),
            told: SourceHealth::default(),
        })
    }

    fn run(&mut self) -> Result<(), SourceError> {
        while !self.context.stop.is_asked() {
            self.look()?;
            if self.context.once && self.is_missing {
                return Err(SourceError::Missing {
                    path: self.pattern.path().display().to_string(),
                });
            }
            let is_busy = self.examine_all()? | self.read_all()?;
            if is_busy {
                continue;
            }
            self.in_flight.settle()?;
            self.report();
            if self.context.once && self.is_done() {
                self.report_missed(0)?;
                self.end_all()?;
                break;
            }
            self.context.stop.wait(self.timing.poll);
        }
        self.in_flight.settle()
    }

    /// Reads a part of every file that has something; whether there was any.
    fn read_all(&mut self) -> Result<bool, SourceError> {
        let mut is_busy = false;
        let ids: Vec<Id> = self.followers.keys().copied().collect();
        for id in ids {
            is_busy |= self.read(id)?;
        }
        self.let_go();
        Ok(is_busy)
    }

    /// Reads a part of every file that no path leads to any more, so that what became of it is
    /// recognized by its content.
    fn read_leaving(&mut self) -> Result<(), SourceError> {
        let leaving: Vec<Id> = self
            .followers
            .values()
            .filter(|f| f.path.is_none())
            .map(|f| f.id)
            .collect();
        for id in leaving {
            self.read(id)?;
        }
        Ok(())
    }

    /// Reads a part of a file; whether there was any.
    fn read(&mut self, id: Id) -> Result<bool, SourceError> {
        let Some(follower) = self.followers.get_mut(&id) else {
            return Ok(false);
        };
        // The content behind a path is compared before it is read on.
        let is_due = follower.path.as_ref().is_none_or(|path| {
            follower.is_begun()
                && self
                    .files
                    .get(path)
                    .is_some_and(|file| file.state == Tracking::Bound)
        });
        if !is_due {
            return Ok(false);
        }
        if follower.path.is_none() && !follower.is_in_slice() && !follower.is_at_end() {
            let is_still = follower
                .stamp()
                .and_then(|stamp| is_still(follower.content(), stamp, &self.known, id));
            if !is_still.unwrap_or(false) {
                self.followers.remove(&id);
                self.release_partition(id);
                return Ok(false);
            }
        }
        match follower.read_slice(self.context, &mut self.known, &mut self.in_flight) {
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
                let partition = &self.known.get(id).name;
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

    /// Lets go of descriptors: of files that no path leads to and that no longer grow, and of more
    /// than may be open.
    fn let_go(&mut self) {
        let linger = if self.context.once {
            Duration::ZERO
        } else {
            self.timing.linger
        };
        let mut leaving: Vec<(Instant, Id)> = self
            .followers
            .values()
            .filter(|f| f.path.is_none() && f.is_at_end())
            .map(|f| (f.active, f.id))
            .collect();
        leaving.sort();
        let over = leaving.len().saturating_sub(MAX_LEAVING);
        for (n, (active, id)) in leaving.into_iter().enumerate() {
            if n >= over && active.elapsed() < linger {
                continue;
            }
            self.followers.remove(&id);
            self.release_partition(id);
        }
        let mut idle: Vec<(Instant, Id)> = self
            .followers
            .values()
            .filter(|f| f.path.is_some() && f.is_at_end())
            .map(|f| (f.active, f.id))
            .collect();
        let over = self.followers.len().saturating_sub(MAX_OPEN);
        idle.sort();
        for (_, id) in idle.into_iter().take(over) {
            self.followers.remove(&id);
        }
    }

    /// Whether everything that is there was read, and what waits is not waited for by a run that
    /// ends.
    fn is_done(&self) -> bool {
        // A file that never comes to rest is not waited for without end.
        let is_late = self.started.elapsed() > LATE;
        let is_open = |file: &Tracked| match file.state {
            Tracking::New => true,
            Tracking::Undecided => !is_late,
            Tracking::Bound => file.is_changed && !self.extent.is_finished(file.bound),
            Tracking::Passed | Tracking::Failed => false,
        };
        self.followers.values().all(Follower::is_at_end) && !self.files.values().any(is_open)
    }

    /// Notes the end of every partition that was read and could not be read to its end.
    fn end_all(&mut self) -> Result<(), SourceError> {
        for id in self.known.moved() {
            note_end(self.context, &self.known, id, &mut self.in_flight)?;
        }
        Ok(())
    }

    /// Publishes how the source is, and says once what is wrong with it as a whole.
    fn report(&mut self) {
        let path = self.pattern.path().display().to_string();
        let whole = self.pattern.root().to_owned();
        let (state, reason) = if let Some(reason) = self.failed.get(&whole) {
            (
                SourceState::Halted,
                Some(format!("{path}: {reason}; it is tried again")),
            )
        } else if let Some(reason) = self.files.get(&whole).and_then(|file| file.reason.as_ref()) {
            (
                SourceState::Halted,
                Some(format!("{path}: {reason}; it is tried again")),
            )
        } else if self.is_missing {
            (
                SourceState::Waiting,
                Some(format!(
                    "{path} does not exist; it is read as soon as it does"
                )),
            )
        } else if self.is_cut {
            (
                SourceState::Running,
                Some(format!("{path} leads to more files than are read (100000)")),
            )
        } else {
            (SourceState::Running, None)
        };
        let of_files = self
            .files
            .iter()
            .filter_map(|(path, file)| Some((path, file.reason.as_ref()?)));
        let waiting = self
            .failed
            .iter()
            .chain(of_files)
            .filter(|(path, _)| **path != whole);
        let mut health = SourceHealth {
            state,
            reason,
            ..SourceHealth::default()
        };
        for (path, reason) in waiting {
            health.waiting_total += 1;
            if health.waiting.len() < LISTED {
                health
                    .waiting
                    .insert(path.display().to_string(), reason.clone());
            }
        }
        if health == self.told {
            return;
        }
        let source = &self.context.name;
        if (health.state, &health.reason) != (self.told.state, &self.told.reason) {
            match (&health.reason, health.state) {
                (Some(reason), SourceState::Halted) => {
                    tracing::error!(source, reason, "the source cannot go on");
                }
                (Some(reason), _) => tracing::warn!(source, reason, "the source waits"),
                (None, _) => tracing::info!(source, "the source continues"),
            }
        }
        let is_told = |path: &String| self.told.waiting.contains_key(path);
        for (path, reason) in health.waiting.iter().filter(|(path, _)| !is_told(path)) {
            tracing::warn!(source, path, reason, "a file waits; the others are read");
        }
        for path in self
            .told
            .waiting
            .keys()
            .filter(|path| !health.waiting.contains_key(*path))
        {
            tracing::info!(source, path, "a file does not wait any more");
        }
        self.context.set_health(health.clone());
        self.told = health;
    }
}

#[cfg(test)]
mod model;
