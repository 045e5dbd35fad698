//! What has changed since the last scan: a walk of all folders from time to time, and between walks
//! the system's notifications, files that are being read, and folders' modification times.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::discover::{Discovery, Role, Stamp};
use super::{FileState, Retry, Source, TrackedFile};
use crate::sources::SourceError;

/// The interval between walks is this multiple of the time that a walk takes,
const INTERVAL_FACTOR: u32 = 50;
/// and this one if there is a sign of changes.
const DUE_INTERVAL_FACTOR: u32 = 10;
const MAX_WALK_INTERVAL: Duration = Duration::from_secs(30);
const MIN_WALK_INTERVAL: Duration = Duration::from_secs(1);

impl Source<'_> {
    /// Updates the tracked files.
    pub(super) fn scan(&mut self) -> Result<(), SourceError> {
        let changes = self.watch.take();
        self.report_missed(changes.appearances)?;
        self.is_walk_due |= changes.is_incomplete || self.have_folders_changed();
        let wait = if self.is_walk_due {
            self.due_walk_interval
        } else {
            self.walk_interval
        };
        if self.walked_at.is_none_or(|at| at.elapsed() >= wait) {
            self.walk();
            return Ok(());
        }
        let followed = self.followers.values().filter_map(|f| f.path.clone());
        let paths: BTreeSet<PathBuf> = changes.paths.into_iter().chain(followed).collect();
        for path in paths {
            let Some(file) = self.files.get_mut(&path) else {
                continue;
            };
            match std::fs::metadata(&path).map(|metadata| Stamp::from(&metadata)) {
                Ok(stamp) if stamp.is_same_file(&file.stamp) => file.update(stamp),
                // Renamed, replaced or removed: a walk finds where its content is now.
                _ => self.is_walk_due = true,
            }
        }
        Ok(())
    }

    fn have_folders_changed(&self) -> bool {
        let is_changed = |(folder, before): (&PathBuf, &u64)| {
            std::fs::metadata(folder)
                .map_or(true, |metadata| Stamp::from(&metadata).modified != *before)
        };
        self.folders.iter().any(is_changed)
    }

    fn walk(&mut self) {
        let started = Instant::now();
        let Discovery {
            mut files,
            folders,
            failed,
            is_missing,
            has_too_many_files,
            skipped_subfolder,
        } = self
            .pattern
            .discover(&|inode| self.registry.has_inode(inode));
        if self.context.once {
            let is_read = |path: &Path| {
                self.files
                    .get(path)
                    .is_some_and(|file| file.state == FileState::Bound)
            };
            self.extent.limit(&mut files, is_read);
        }
        if let Some(folder) = skipped_subfolder
            && !std::mem::replace(&mut self.is_subfolder_reported, true)
        {
            let (source, folder) = (&self.context.name, folder.display());
            tracing::warn!(source, %folder, "subfolders are skipped; set `recursive = true` to read them");
        }
        self.rotations.has_walked = true;
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
                Some(file) => file.update(stamp),
                None => {
                    self.files.insert(path, TrackedFile::new(stamp, role));
                }
            }
        }
        self.watch.set_folders(folders.keys().map(PathBuf::as_path));
        (self.folders, self.failed) = (folders, failed);
        (self.is_missing, self.has_too_many_files) = (is_missing, has_too_many_files);
        (self.walked_at, self.is_walk_due) = (Some(Instant::now()), false);
        let took = started.elapsed();
        self.due_walk_interval = (took * DUE_INTERVAL_FACTOR).min(MIN_WALK_INTERVAL);
        self.walk_interval = (took * INTERVAL_FACTOR).clamp(MIN_WALK_INTERVAL, MAX_WALK_INTERVAL);
    }
}

impl TrackedFile {
    fn new(stamp: Stamp, role: Role) -> Self {
        Self {
            stamp,
            role,
            state: FileState::New,
            bound: None,
            is_changed: true,
            unchanged_since: Instant::now(),
            retry: Retry::default(),
            reason: None,
        }
    }

    /// Notices a change by its stamp.
    fn update(&mut self, stamp: Stamp) {
        if self.stamp != stamp {
            (self.stamp, self.is_changed) = (stamp, true);
            self.unchanged_since = Instant::now();
        }
    }
}
