//! The system's notifications of changed files, if it has any. They only make changes visible
//! sooner: the periodic walk finds what they miss.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use notify::event::{EventKind, ModifyKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};

/// Changed paths that are remembered between two scans; if there are more, everything is scanned.
const MAX_CHANGED: usize = 4_096;

/// What changed since the last scan.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Changed paths, as configured.
    pub paths: BTreeSet<PathBuf>,
    /// There are more changes, whose paths are unknown.
    pub is_incomplete: bool,
    /// How often a file was created at, or renamed to, the path of a source of one file.
    pub appearances: u64,
}

/// Notifications of the system about folders, collected until the next scan.
#[derive(Default)]
pub(super) struct Watch {
    changes: Arc<Mutex<Changes>>,
    watcher: Option<RecommendedWatcher>,
    /// By absolute path, as the system names them, the folders as configured.
    folders: BTreeMap<PathBuf, PathBuf>,
}

impl Watch {
    /// Counts how often a file appears at `single`, the path of a source of one file.
    pub fn new(single: Option<&Path>) -> Self {
        let single = single.and_then(|path| std::path::absolute(path).ok());
        let changes: Arc<Mutex<Changes>> = Arc::default();
        let shared = changes.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let mut changes = shared.lock().unwrap_or_else(PoisonError::into_inner);
            match event {
                Ok(event) if event.kind.is_access() => {}
                Ok(event) if !event.need_rescan() && changes.paths.len() < MAX_CHANGED => {
                    let is_single = single
                        .as_ref()
                        .is_some_and(|single| event.paths.contains(single));
                    changes.appearances += u64::from(is_single && is_appearance(event.kind));
                    changes.paths.extend(event.paths);
                }
                _ => changes.is_incomplete = true,
            }
        });
        // Without notifications (no watches left, a container that forbids them) the walks find
        // everything, later.
        Self {
            changes,
            watcher: watcher.ok(),
            folders: BTreeMap::new(),
        }
    }

    /// Watches exactly these folders.
    pub fn set_folders<'a>(&mut self, folders: impl Iterator<Item = &'a Path>) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        let absolute =
            |folder: &Path| std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        let folders: BTreeMap<PathBuf, PathBuf> =
            folders.map(|f| (absolute(f), f.to_owned())).collect();
        self.folders.retain(|folder, _| {
            let is_watched = folders.contains_key(folder);
            if !is_watched {
                let _ = watcher.unwatch(folder);
            }
            is_watched
        });
        for (folder, configured) in folders {
            if !self.folders.contains_key(&folder)
                && watcher.watch(&folder, RecursiveMode::NonRecursive).is_ok()
            {
                self.folders.insert(folder, configured);
            }
        }
    }

    /// What changed since the last call.
    pub fn take(&self) -> Changes {
        let mut changes =
            std::mem::take(&mut *self.changes.lock().unwrap_or_else(PoisonError::into_inner));
        changes.paths = changes
            .paths
            .iter()
            .map(|path| self.as_configured(path))
            .collect();
        changes
    }

    fn as_configured(&self, path: &Path) -> PathBuf {
        let folder = path.parent().and_then(|folder| self.folders.get(folder));
        match (folder, path.file_name()) {
            (Some(folder), Some(name)) => folder.join(name),
            _ => path.to_owned(),
        }
    }
}

fn is_appearance(kind: EventKind) -> bool {
    matches!(
        kind,
        EventKind::Create(_) | EventKind::Modify(ModifyKind::Name(RenameMode::To))
    )
}
