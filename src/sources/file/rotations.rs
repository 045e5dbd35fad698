//! Files that were at the path of a source of one file and were rotated away before a scan saw them:
//! they are next to it, under names that rotation gives. So are older files, of a time before the
//! source; these were last modified before the source's first start, which is stored with each
//! partition.
//!
//! Files that were missed and are not next to the path either are reported as a gap:
//!
//! ```text
//! appearances at the path, by notifications    3
//! files that scans saw there                   1
//! rotated files that were found next to it     1
//! missing                                      1
//! ```

use std::collections::HashSet;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use super::discover::{Role, Stamp};
use super::registry::{PartitionId, PartitionRegistry};
use super::{FileState, Source, TrackedFile};
use crate::event::{Gap, Micros};
use crate::sources::SourceError;

/// Older files that are remembered.
const MAX_OLDER: usize = 10_000;
/// Modification times come from a clock that ticks, and may lag this process's clock by this much.
const CLOCK_TICK_MICROS: Micros = 20_000;

/// The files that were at the path of a source of one file.
#[derive(Default)]
pub(super) struct Rotations {
    /// None where the source reads a folder or a glob, whose files are all found anyway.
    path: Option<PathBuf>,
    /// The source's first start, in ns since 1970.
    since: u64,
    /// The file at the path when this process began, by device and inode.
    first: Option<(u64, u64)>,
    /// More than one file, or content, was at the path. Until then, files with rotated names belong
    /// to somebody else.
    is_rotated: bool,
    /// Lengths and checksums of the first bytes of older files, to recognize them once they are
    /// compressed.
    older: HashSet<(usize, u32)>,
    /// The content that an earlier process read last.
    last: Option<PartitionId>,
    /// The folder was walked at least once in this process.
    pub has_walked: bool,
    /// Counts since the last check: rotated files found next to the path, appearances of a file at
    /// the path by the system's notifications, and files that scans saw there.
    found: u64,
    appearances: u64,
    seen: u64,
    /// The file at the path in the last scan, by inode and time of creation.
    at_path: Option<(u64, Option<SystemTime>)>,
    appeared_at: Option<Instant>,
    /// The last check.
    checked_at: Micros,
}

impl Rotations {
    /// `path` is that of the single file, `registry` has what earlier runs read of it.
    pub fn new(path: Option<PathBuf>, registry: &PartitionRegistry, now: Micros) -> Self {
        let Some(path) = path else {
            return Self::default();
        };
        let label = path.display().to_string();
        let ids = || registry.by_path(&label).iter().copied();
        let last = ids().max_by_key(|id| (registry.get(*id).state.received_at, *id));
        let since = ids().filter_map(|id| registry.get(id).file().since).min();
        let first = std::fs::metadata(&path)
            .ok()
            .map(|metadata| (metadata.dev(), metadata.ino()));
        let is_at_path = |id: PartitionId| {
            first.is_some_and(|(_, inode)| inode == registry.get(id).file().inode)
        };
        Self {
            is_rotated: ids().count() > 1 || last.is_some_and(|last| !is_at_path(last)),
            since: since.unwrap_or_else(|| {
                u64::try_from(now - CLOCK_TICK_MICROS)
                    .unwrap_or(0)
                    .saturating_mul(1_000)
            }),
            first,
            last,
            checked_at: last.map_or(now, |last| registry.get(last).state.received_at),
            at_path: std::fs::symlink_metadata(&path)
                .ok()
                .map(|metadata| link_identity(&metadata)),
            path: Some(path),
            ..Self::default()
        }
    }

    /// The path of a source of one file; none for a pattern.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// First start of a source of one file, in ns since 1970.
    pub fn since(&self) -> Option<u64> {
        self.path.as_ref().map(|_| self.since)
    }

    /// Whether an unknown file with a rotated name was at the path while the source existed.
    pub fn is_missed(&self, stamp: &Stamp, head: &[u8]) -> bool {
        self.is_rotated && !self.is_older(stamp) && !self.older.contains(&head_key(head))
    }

    fn is_older(&self, stamp: &Stamp) -> bool {
        stamp.modified < self.since && self.first != Some((stamp.device, stamp.inode))
    }

    /// A file with a rotated name was found next to the path.
    pub fn count_found(&mut self) {
        self.found += 1;
    }

    /// Remembers a file next to the path that is not read.
    pub fn add_skipped(&mut self, stamp: &Stamp, head: &[u8]) {
        if self.path.is_some()
            && self.is_older(stamp)
            && !head.is_empty()
            && self.older.len() < MAX_OLDER
        {
            self.older.insert(head_key(head));
        }
    }

    /// Marks the path as rotated; true if it was not before.
    fn set_rotated(&mut self) -> bool {
        self.path.is_some() && !std::mem::replace(&mut self.is_rotated, true)
    }

    /// Adds appearances of a file at the path; whether there was more than one file.
    fn count_appearances(&mut self, times: u64) -> bool {
        let Some(path) = &self.path else { return false };
        if times > 0 {
            self.appearances += times;
            self.appeared_at = Some(Instant::now());
        }
        let now = std::fs::symlink_metadata(path)
            .ok()
            .map(|metadata| link_identity(&metadata));
        let is_rotated = self.appearances > 1 || self.at_path.is_some() && now != self.at_path;
        if now.is_some() && now != self.at_path {
            (self.at_path, self.seen) = (now, self.seen + 1);
        }
        is_rotated
    }

    /// Why records may be missing, if they may; and starts to count again.
    fn check(&mut self, is_last_gone: bool, now: Micros) -> Option<String> {
        let path = self.path.as_ref()?.display();
        let missing = self.appearances.saturating_sub(self.seen + self.found);
        let reason = if missing > 0 {
            Some(format!(
                "{path} was replaced before it was read: {missing} of its files are not next to it"
            ))
        } else if self.found > 0 && is_last_gone {
            Some(format!(
                "{path} was rotated more than once, and the last file that was read is not next to it"
            ))
        } else {
            None
        };
        (self.appearances, self.seen, self.found) = (0, 0, 0);
        (self.appeared_at, self.last, self.checked_at) = (None, None, now);
        reason
    }
}

impl Source<'_> {
    /// Another content is at the path of a source of one file: files next to it that were skipped
    /// are identified again.
    pub(super) fn set_rotated(&mut self) {
        if self.rotations.set_rotated() {
            let skipped = self
                .files
                .values_mut()
                .filter(|file| file.state == FileState::Skipped && file.role == Role::Rotated);
            skipped.for_each(|file| file.state = FileState::New);
        }
    }

    /// Reports files that were at the path of a source of one file and cannot be found, once all
    /// files are identified.
    pub(super) fn report_missed(&mut self, appearances: u64) -> Result<(), SourceError> {
        if self.rotations.count_appearances(appearances) {
            self.set_rotated();
        }
        let is_pending =
            |file: &TrackedFile| matches!(file.state, FileState::New | FileState::Undecided);
        let settle = self.timing.settle;
        let rotations = &self.rotations;
        let is_settled = rotations
            .appeared_at
            .is_none_or(|at| at.elapsed() >= settle);
        if rotations.path.is_none()
            || !is_settled
            || !rotations.has_walked
            || self.files.values().any(is_pending)
        {
            return Ok(());
        }
        let is_last_gone = rotations
            .last
            .is_some_and(|id| !self.registry.get(id).is_live);
        let (now, from) = (self.clock.now(), rotations.checked_at);
        let Some(reason) = self.rotations.check(is_last_gone, now) else {
            return Ok(());
        };
        tracing::warn!(
            source = self.context.name,
            reason,
            "records may be missing; see weir.gaps"
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

fn head_key(head: &[u8]) -> (usize, u32) {
    (head.len(), crc32c::crc32c(head))
}

fn link_identity(metadata: &Metadata) -> (u64, Option<SystemTime>) {
    (metadata.ino(), metadata.created().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_that_cannot_be_found_are_missing() {
        for (appearances, seen, found, is_last_gone, is_missing) in [
            (0, 0, 0, true, false),
            (2, 2, 0, false, false),
            (3, 1, 2, false, false),
            (3, 1, 1, false, true),
            (1, 1, 1, false, false),
            (1, 1, 1, true, true),
        ] {
            let mut rotations = Rotations {
                path: Some("a.log".into()),
                appearances,
                seen,
                found,
                ..Rotations::default()
            };
            let reason = rotations.check(is_last_gone, 7);
            assert_eq!(reason.is_some(), is_missing, "{appearances} {seen} {found}");
            // Nothing is reported twice.
            assert_eq!(rotations.check(is_last_gone, 8), None);
        }
    }
}
