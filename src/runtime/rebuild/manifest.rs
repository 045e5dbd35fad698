//! How far a build is: the manifest in its folder, and the lock of the process that works on it.
//!
//! ```text
//!          Built        LogEndReached         ConfigurationRead         Moved
//! Building ─────► Ready ─────────────► Complete ──────────────► CaughtUp ─────► Installed
//!    ▲              │                     │
//!    └──────────────┴──────◄──────────────┘
//!              CompletionFailed
//! ```
//!
//! A build that is taken up again after `Ready` becomes `Ready` once more; in a stopped folder
//! `Building` may become `Complete` at once.
//!
//! Each state is durable before the next step begins, so that a killed step is repeated. From
//! `Complete` on the next start installs the view in any case. The folder of an `Installed` one is
//! removed once the operators continue from what built it.

use std::fs::{self, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::RuntimeError;
use super::super::data_dir::DataDir;
use crate::event::{Lsn, Micros};
use crate::ids::ViewId;
use crate::storage::{Disk, Storage, sync_folder};

const MANIFEST: &str = "rebuild.json";
const LOCK: &str = "lock";

/// How far a build is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum State {
    /// A verb builds it, or was killed doing so.
    #[serde(rename = "building")]
    Building,
    /// It waits for the next start.
    #[serde(rename = "ready")]
    Ready,
    /// It has reached the end of the log, where every view has committed.
    #[serde(rename = "whole")]
    Complete,
    /// It has read the frame of a changed configuration too.
    #[serde(rename = "settled")]
    CaughtUp,
    /// It is where the old view was.
    #[serde(rename = "placed")]
    Installed,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 5] = [
        Self::Building,
        Self::Ready,
        Self::Complete,
        Self::CaughtUp,
        Self::Installed,
    ];
    /// States of a build that the next start under its configuration takes up.
    pub const WAITING: [Self; 2] = [Self::Ready, Self::Complete];
    /// States of a build that is to be moved into place.
    pub const INSTALLING: [Self; 2] = [Self::Complete, Self::CaughtUp];
}

/// What happened to a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// The verb has brought it near the end of the log.
    Built,
    /// It was brought to the end of the log, where nothing else works on the folder.
    LogEndReached,
    /// That failed.
    CompletionFailed,
    /// It was brought to the end of the log once more, after a configuration was appended.
    ConfigurationRead,
    /// Its files were moved to where the old view was.
    Moved,
}

/// The state after an event; none where the event is impossible. Pure.
pub(super) fn next(state: State, event: Event) -> Option<State> {
    use State::{Building, CaughtUp, Complete, Installed, Ready};
    match (state, event) {
        (Building | Ready | Complete, Event::Built) => Some(Ready),
        (Building | Ready | Complete, Event::LogEndReached) => Some(Complete),
        (Ready | Complete, Event::CompletionFailed) => Some(Building),
        (Complete, Event::ConfigurationRead) => Some(CaughtUp),
        (CaughtUp, Event::Moved) => Some(Installed),
        _ => None,
    }
}

/// What a build is of, and how far it is. Field names are those of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BuildManifest {
    pub view: ViewId,
    /// The id of the catalog that it is built under.
    pub configuration: u64,
    /// The id of the log that it is built from.
    pub log: u64,
    /// How a table is partitioned: the value of `[lake] partition`.
    #[serde(default)]
    pub partition: String,
    pub state: State,
    /// The first record that was intact when the build was begun. Earlier ones are taken from the
    /// rows that are left of them.
    #[serde(rename = "first")]
    pub first_intact: Lsn,
    /// Where rows of the stream have left too: the time from which on the build has everything.
    /// Earlier rows are carried over from the old view.
    #[serde(rename = "whole_from")]
    pub complete_since: Option<Micros>,
}

impl BuildManifest {
    /// Whether both are builds of the same view from the same declarations.
    pub fn is_same_build(&self, other: &Self) -> bool {
        (&self.view, self.configuration, self.log, &self.partition)
            == (
                &other.view,
                other.configuration,
                other.log,
                &other.partition,
            )
    }

    /// The manifest in a build's folder; none where it is missing or unreadable.
    pub fn read(root: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(root.join(MANIFEST)).ok()?).ok()
    }

    /// Replaces the manifest in a build's folder, durably.
    pub fn save(&self, root: &Path) -> Result<(), RuntimeError> {
        let path = root.join(MANIFEST);
        let text = serde_json::to_vec(self).expect("plain data becomes JSON");
        Disk.replace(&path, &text).map_err(failed(&path))
    }
}

/// The folder of a view's build.
pub(super) fn build_folder(folder: &DataDir, view: &ViewId) -> PathBuf {
    folder.rebuilds().join(folder_name(view))
}

fn folder_name(view: &ViewId) -> String {
    view.to_string().replace('/', ".")
}

/// Locks a build's folder for this process; none while another one has it.
pub(super) fn lock(root: &Path) -> Result<Option<fs::File>, RuntimeError> {
    let path = root.join(LOCK);
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(failed(&path)(e)),
    }
}

/// Removes a build's folder. It is renamed first, so that half a folder is never taken for a build.
pub(super) fn remove(folder: &DataDir, root: &Path) -> Result<(), RuntimeError> {
    if root.exists() {
        let gone = folder.rebuilds().join(".gone");
        let _ = fs::remove_dir_all(&gone);
        fs::rename(root, &gone).map_err(failed(root))?;
        sync_folder(&folder.rebuilds()).map_err(failed(root))?;
        let _ = fs::remove_dir_all(&gone);
    }
    Ok(())
}

/// Folders of builds in one of these states, with their manifests, in a fixed order.
pub(super) fn in_state(folder: &DataDir, states: &[State]) -> Vec<(PathBuf, BuildManifest)> {
    let Ok(entries) = fs::read_dir(folder.rebuilds()) else {
        return Vec::new();
    };
    let roots = entries.filter_map(|e| Some(e.ok()?.path()));
    let mut found: Vec<(PathBuf, BuildManifest)> = roots
        .filter_map(|root| Some((root.clone(), BuildManifest::read(&root)?)))
        .collect();
    // One that is being removed has another name.
    let has_own_name = |root: &Path, manifest: &BuildManifest| {
        root.file_name()
            .is_some_and(|name| name == folder_name(&manifest.view).as_str())
    };
    found.retain(|(root, manifest)| {
        states.contains(&manifest.state) && has_own_name(root, manifest)
    });
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// An error of the file system, with the path.
pub(super) fn failed(path: &Path) -> impl Fn(io::Error) -> RuntimeError {
    let path = path.to_owned();
    move |e| RuntimeError::Failed(format!("{}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TableId;

    #[test]
    fn a_build_goes_from_building_to_installed_and_back_only_before_it_is_complete() {
        use Event::{Built, CompletionFailed, ConfigurationRead, LogEndReached, Moved};
        use State::{Building, CaughtUp, Complete, Installed, Ready};
        let events = [
            Built,
            LogEndReached,
            CompletionFailed,
            ConfigurationRead,
            Moved,
        ];
        for (state, nexts) in [
            (Building, [Some(Ready), Some(Complete), None, None, None]),
            (
                Ready,
                [Some(Ready), Some(Complete), Some(Building), None, None],
            ),
            (
                Complete,
                [
                    Some(Ready),
                    Some(Complete),
                    Some(Building),
                    Some(CaughtUp),
                    None,
                ],
            ),
            (CaughtUp, [None, None, None, None, Some(Installed)]),
            (Installed, [None; 5]),
        ] {
            assert_eq!(events.map(|event| next(state, event)), nexts, "{state:?}");
        }
    }

    #[test]
    fn manifests_are_written_and_read_by_the_names_of_the_file() {
        let text = r#"{"view":"lake/a","configuration":1,"log":2,"partition":"hour","state":"whole","first":7,"whole_from":-5}"#;
        let manifest = BuildManifest {
            view: TableId::stream("a").view(),
            configuration: 1,
            log: 2,
            partition: "hour".into(),
            state: State::Complete,
            first_intact: 7,
            complete_since: Some(-5),
        };
        assert_eq!(serde_json::to_string(&manifest).expect("plain"), text);
        assert_eq!(
            serde_json::from_str::<BuildManifest>(text).expect("reads"),
            manifest
        );
        let states = serde_json::to_string(&State::ALL).expect("plain");
        assert_eq!(states, r#"["building","ready","whole","settled","placed"]"#);
    }

    #[test]
    fn a_folder_that_is_being_removed_is_not_a_build() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = DataDir {
            root: root.path().to_owned(),
        };
        let manifest = BuildManifest {
            view: ViewId::search("a"),
            configuration: 1,
            log: 2,
            partition: String::new(),
            state: State::Ready,
            first_intact: 1,
            complete_since: None,
        };
        let own = build_folder(&folder, &manifest.view);
        for path in [&own, &folder.rebuilds().join(".gone")] {
            fs::create_dir_all(path).expect("created");
            manifest.save(path).expect("saved");
        }
        assert_eq!(
            in_state(&folder, &State::WAITING),
            [(own.clone(), manifest)]
        );
        assert!(in_state(&folder, &State::INSTALLING).is_empty());
        let held = lock(&own).expect("opens").expect("free");
        assert!(lock(&own).expect("opens").is_none());
        drop(held);
        remove(&folder, &own).expect("removed");
        assert!(in_state(&folder, &State::ALL).is_empty());
    }
}
