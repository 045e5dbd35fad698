//! The system's notifications of changed files, where there are any. They only make a change seen
//! sooner: what they miss, the walk from time to time finds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use notify::event::{EventKind, ModifyKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};

/// Changed paths that are remembered between two looks; where there are more, everything is looked
/// at.
const MAX_CHANGED: usize = 4_096;

/// What changed since the last look.
#[derive(Debug, Default)]
pub struct Changes {
    pub paths: BTreeSet<PathBuf>,
    /// Something changed that no path tells.
    pub is_unknown: bool,
    /// How often the path of a source of one file was created or took the place of another.
    pub appeared: u64,
}

#[derive(Default)]
pub struct Watch {
    changes: Arc<Mutex<Changes>>,
    watcher: Option<RecommendedWatcher>,
    /// By absolute path, as the system names them, the paths by which they are known here.
    folders: BTreeMap<PathBuf, PathBuf>,
}

impl Watch {
    /// Counts how often `single`, the path of a source of one file, appears.
    pub fn new(single: Option<&Path>) -> Self {
        let single = single.and_then(|path| std::path::absolute(path).ok());
        let changes: Arc<Mutex<Changes>> = Arc::default();
        let noted = changes.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let mut changes = noted.lock().unwrap_or_else(PoisonError::into_inner);
            match event {
                Ok(event) if event.kind.is_access() => {}
                Ok(event) if !event.need_rescan() && changes.paths.len() < MAX_CHANGED => {
                    let is_single = single
                        .as_ref()
                        .is_some_and(|single| event.paths.contains(single));
                    changes.appeared += u64::from(is_single && is_appearance(event.kind));
                    changes.paths.extend(event.paths);
                }
                _ => changes.is_unknown = true,
            }
        });
        // Without notifications (none left, a container that forbids them) the walks see
        // everything, later.
        Self {
            changes,
            watcher: watcher.ok(),
            folders: BTreeMap::new(),
        }
    }

    /// Watches these folders and no others.
    pub fn set_folders<'a>(&mut self, folders: impl Iterator<Item = &'a Path>) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        let absolute =
            |folder: &Path| std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        let folders: BTreeMap<PathBuf, PathBuf> =
            folders.map(|f| (absolute(f), f.to_owned())).collect();
        self.folders.retain(|folder, _| {
            let stays = folders.contains_key(folder);
            if !stays {
                let _ = watcher.unwatch(folder);
            }
            stays
        });
        for (folder, known_as) in folders {
            if !self.folders.contains_key(&folder)
                && watcher.watch(&folder, RecursiveMode::NonRecursive).is_ok()
            {
                self.folders.insert(folder, known_as);
            }
        }
    }

    pub fn take(&self) -> Changes {
        let mut changes =
            std::mem::take(&mut *self.changes.lock().unwrap_or_else(PoisonError::into_inner));
        changes.paths = changes
            .paths
            .iter()
            .map(|path| self.known_as(path))
            .collect();
        changes
    }

    fn known_as(&self, path: &Path) -> PathBuf {
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
