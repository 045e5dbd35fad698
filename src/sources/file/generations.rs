//! Files that were at the path of a source of one file and were rotated away before anyone looked:
//! they lie beside it, under names that rotation gives. Older files lie there too, of a time before
//! the source; these were changed last before it first began, a moment that is stored with each
//! partition.

use std::collections::HashSet;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use super::discover::{Role, Stamp};
use super::known::{Id, Known};
use super::{Source, Tracked, Tracking};
use crate::event::{Gap, Micros};
use crate::sources::SourceError;

/// Beginnings of older files that are remembered.
const MAX_OLDER: usize = 10_000;
/// Times of files come from a clock that ticks, and may be so much behind this process's, in µs.
const CLOCK_TICK: Micros = 20_000;

/// The files that were at the path of a source of one file.
#[derive(Default)]
pub struct Generations {
    /// Where the source reads a folder or a glob, every file is found anyway.
    path: Option<PathBuf>,
    /// When the source first began, in ns.
    since: u64,
    /// The file that was at the path when this process began, by device and inode.
    first: Option<(u64, u64)>,
    /// The path led to more than one file, or content: what has such a name without that is
    /// somebody else's.
    is_rotated: bool,
    /// Lengths and checksums of the beginnings of files that are older, for the time when they are
    /// compressed.
    older: HashSet<(usize, u32)>,
    /// The content that was read last before this process.
    last: Option<Id>,
    has_walked: bool,
    /// Files that began to be read beside the path since what is noted here was compared last.
    found: u64,
    /// Times that the path appeared, by the system's notifications, and files seen there.
    appeared: u64,
    seen: u64,
    at_path: Option<(u64, Option<SystemTime>)>,
    appeared_at: Option<Instant>,
    /// When nothing was missing.
    compared: Micros,
}

impl Generations {
    /// `path` is the one file's, `known` what was read of it in earlier runs.
    pub fn new(path: Option<PathBuf>, known: &Known, now: Micros) -> Self {
        let Some(path) = path else {
            return Self::default();
        };
        let ids = || known.of_path(&path.display().to_string()).iter().copied();
        let last = ids().max_by_key(|id| (known.get(*id).state.received_at, *id));
        let since = ids().filter_map(|id| known.get(id).file().since).min();
        let first = std::fs::metadata(&path)
            .ok()
            .map(|metadata| (metadata.dev(), metadata.ino()));
        let is_last = |id: Id| first.is_some_and(|(_, inode)| inode == known.get(id).file().inode);
        Self {
            is_rotated: ids().count() > 1 || last.is_some_and(|last| !is_last(last)),
            since: since.unwrap_or_else(|| {
                u64::try_from(now - CLOCK_TICK)
                    .unwrap_or(0)
                    .saturating_mul(1_000)
            }),
            first,
            last,
            compared: last.map_or(now, |last| known.get(last).state.received_at),
            at_path: std::fs::symlink_metadata(&path)
                .ok()
                .map(|metadata| of_link(&metadata)),
            path: Some(path),
            ..Self::default()
        }
    }

    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// When the source of one file first began.
    pub fn since(&self) -> Option<u64> {
        self.path.as_ref().map(|_| self.since)
    }

    pub fn note_walk(&mut self) {
        self.has_walked = true;
    }

    /// Whether a file under a rotated name, of which nothing is known, was at the path while the
    /// source existed.
    pub fn is_missed(&self, stamp: &Stamp, head: &[u8]) -> bool {
        self.is_rotated && !self.is_older(stamp) && !self.older.contains(&beginning(head))
    }

    fn is_older(&self, stamp: &Stamp) -> bool {
        stamp.modified < self.since && self.first != Some((stamp.device, stamp.inode))
    }

    pub fn note_found(&mut self) {
        self.found += 1;
    }

    /// A file beside the path that is not read.
    pub fn note_passed(&mut self, stamp: &Stamp, head: &[u8]) {
        if self.path.is_some()
            && self.is_older(stamp)
            && !head.is_empty()
            && self.older.len() < MAX_OLDER
        {
            self.older.insert(beginning(head));
        }
    }

    /// The path led to another content than before; whether that is news.
    fn note_rotated(&mut self) -> bool {
        self.path.is_some() && !std::mem::replace(&mut self.is_rotated, true)
    }

    /// Notes how often the path appeared; whether it led to more than one file.
    fn note_appeared(&mut self, times: u64) -> bool {
        let Some(path) = &self.path else { return false };
        if times > 0 {
            (self.appeared, self.appeared_at) = (self.appeared + times, Some(Instant::now()));
        }
        let now = std::fs::symlink_metadata(path)
            .ok()
            .map(|metadata| of_link(&metadata));
        let is_rotated = self.appeared > 1 || self.at_path.is_some() && now != self.at_path;
        if now.is_some() && now != self.at_path {
            (self.at_path, self.seen) = (now, self.seen + 1);
        }
        is_rotated
    }
}

impl Source<'_> {
    /// The path of a source of one file led to another content than before: what was passed over
    /// beside it is looked at again.
    pub(super) fn note_rotated(&mut self) {
        if self.generations.note_rotated() {
            let passed = self
                .files
                .values_mut()
                .filter(|file| file.state == Tracking::Passed && file.role == Role::Rotated);
            passed.for_each(|file| file.state = Tracking::New);
        }
    }

    /// Reports files that were at the path of a source of one file, and are nowhere to be found.
    pub(super) fn report_missed(&mut self, appeared: u64) -> Result<(), SourceError> {
        if self.generations.note_appeared(appeared) {
            self.note_rotated();
        }
        let waits =
            |file: &Tracked| file.state == Tracking::New || file.state == Tracking::Undecided;
        let settle = self.timing.settle;
        let generations = &self.generations;
        let is_settled = generations
            .appeared_at
            .is_none_or(|at| at.elapsed() >= settle);
        let is_settled = is_settled && generations.has_walked;
        let Some(path) = generations
            .path
            .as_ref()
            .filter(|_| is_settled && !self.files.values().any(waits))
        else {
            return Ok(());
        };
        let path = path.display();
        let missing = generations
            .appeared
            .saturating_sub(generations.seen + generations.found);
        let is_last_gone = generations
            .last
            .is_some_and(|id| !self.known.get(id).is_live);
        let reason = if missing > 0 {
            Some(format!(
                "{path} was replaced before it was looked at: {missing} of its files are not beside it"
            ))
        } else if generations.found > 0 && is_last_gone {
            Some(format!(
                "{path} was rotated more than once, and the file that was read last is not beside it"
            ))
        } else {
            None
        };
        let (now, from) = (self.clock.now(), generations.compared);
        let generations = &mut self.generations;
        (generations.appeared, generations.seen, generations.found) = (0, 0, 0);
        (
            generations.appeared_at,
            generations.last,
            generations.compared,
        ) = (None, None, now);
        let Some(reason) = reason else { return Ok(()) };
        tracing::warn!(
            source = self.context.name,
            reason,
            "records may be missing; weir.gaps has it"
        );
        let gap = Gap {
            source: self.context.name.clone(),
            from,
            to: now,
            reason,
        };
        self.in_flight
            .submit(self.context, gap.submission("", &self.context.stream))
    }
}

fn beginning(head: &[u8]) -> (usize, u32) {
    (head.len(), crc32c::crc32c(head))
}

fn of_link(metadata: &Metadata) -> (u64, Option<SystemTime>) {
    (metadata.ino(), metadata.created().ok())
}
