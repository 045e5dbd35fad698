//! What has changed since the last look: a walk now and then, and between walks what the system
//! tells, what grew lately, and folders whose time of change moved.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::discover::{Found, Role, Stamp};
use super::{Retry, Source, Tracked, Tracking};
use crate::sources::SourceError;

/// A walk may take this part of the time.
const WALK_SHARE: u32 = 50;
/// One for which there is a reason, this part.
const SOONEST_SHARE: u32 = 10;
const LONGEST_WALK_EVERY: Duration = Duration::from_secs(30);
const SHORTEST_WALK_EVERY: Duration = Duration::from_secs(1);

impl Source<'_> {
    /// Notes what is there and what has changed.
    pub(super) fn look(&mut self) -> Result<(), SourceError> {
        let changes = self.watch.take();
        self.report_missed(changes.appeared)?;
        self.is_walk_due |= changes.is_unknown || self.have_folders_changed();
        let wait = if self.is_walk_due {
            self.walk_soonest
        } else {
            self.walk_every
        };
        if self.walked.is_none_or(|at| at.elapsed() >= wait) {
            self.walk();
            return Ok(());
        }
        let followed = self.followers.values().filter_map(|f| f.path.clone());
        let paths: BTreeSet<PathBuf> = changes.paths.into_iter().chain(followed).collect();
        for path in paths {
            let Some(file) = self.files.get_mut(&path) else {
                continue;
            };
            match std::fs::metadata(&path).map(|metadata| Stamp::of(&metadata)) {
                Ok(stamp) if stamp.is_same_file(&file.stamp) => file.note(stamp),
                // Renamed, replaced or removed: where its content went is found by a walk.
                _ => self.is_walk_due = true,
            }
        }
        Ok(())
    }

    fn have_folders_changed(&self) -> bool {
        let is_changed = |(folder, before): (&PathBuf, &u64)| {
            std::fs::metadata(folder)
                .map_or(true, |metadata| Stamp::of(&metadata).modified != *before)
        };
        self.folders.iter().any(is_changed)
    }

    fn walk(&mut self) {
        let started = Instant::now();
        let found = self.pattern.find(&|inode| self.known.has_inode(inode));
        let Found {
            mut files,
            folders,
            failed,
            is_missing,
            is_cut,
            subfolder,
        } = found;
        if self.context.once {
            let is_read = |path: &Path| {
                self.files
                    .get(path)
                    .is_some_and(|file| file.state == Tracking::Bound)
            };
            self.extent.limit(&mut files, is_read);
        }
        if let Some(folder) = subfolder
            && !std::mem::replace(&mut self.is_subfolder_reported, true)
        {
            let (source, folder) = (&self.context.name, folder.display());
            tracing::warn!(source, %folder, "subfolders are passed over; the source reads them with `recursive = true`");
        }
        self.generations.note_walk();
        let gone: Vec<PathBuf> = self
            .files
            .iter()
            .filter(|(path, file)| {
                files
                    .get(*path)
                    .is_none_or(|(stamp, _)| !stamp.is_same_file(&file.stamp))
            })
            .map(|(path, _)| path.clone())
            .collect();
        for path in gone {
            self.release(&path);
        }
        for (path, (stamp, role)) in files {
            match self.files.get_mut(&path) {
                Some(file) => file.note(stamp),
                None => {
                    self.files.insert(path, Tracked::new(stamp, role));
                }
            }
        }
        self.watch.set_folders(folders.keys().map(PathBuf::as_path));
        (self.folders, self.failed, self.is_missing, self.is_cut) =
            (folders, failed, is_missing, is_cut);
        (self.walked, self.is_walk_due) = (Some(Instant::now()), false);
        self.walk_soonest = (started.elapsed() * SOONEST_SHARE).min(SHORTEST_WALK_EVERY);
        self.walk_every =
            (started.elapsed() * WALK_SHARE).clamp(SHORTEST_WALK_EVERY, LONGEST_WALK_EVERY);
    }
}

impl Tracked {
    fn new(stamp: Stamp, role: Role) -> Self {
        Self {
            stamp,
            role,
            state: Tracking::New,
            bound: None,
            is_changed: true,
            since: Instant::now(),
            retry: Retry::default(),
            reason: None,
        }
    }

    /// Notes what the system says of it.
    fn note(&mut self, stamp: Stamp) {
        if self.stamp != stamp {
            (self.stamp, self.is_changed, self.since) = (stamp, true, Instant::now());
        }
    }
}
