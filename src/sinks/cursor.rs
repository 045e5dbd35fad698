//! How far a sink is, and where that is stored.
//!
//! The cursor is a file of the data folder, `sinks/NAME/state.json`, replaced atomically after each
//! delivery. A target with transactions stores it, too, within the transaction that writes the rows:
//! then that one counts, and each row is written exactly once. Example: the file has LSN 100, and
//! the process is killed after the target has committed the rows up to 150, before the file was
//! written. The next start reads 150 from the target.
//!
//! `weir sinks reset` begins a new epoch, in the file. A cursor in the target of an older epoch no
//! longer counts. Where the file was removed, epochs begin again at 0 and the target may have a
//! higher one: a reset then continues with the one after it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::event::{Lsn, Micros};
use crate::storage::{Disk, Storage, damage};

/// The format of the file.
const VERSION: u32 = 1;
const FILE: &str = "state.json";

/// Everything up to here has been delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The log that the LSNs belong to.
    pub log: u64,
    /// How often the sink has been reset.
    pub epoch: u64,
    /// The rows of all records up to here.
    pub lsn: Lsn,
    /// Of an entity table that is being read, which is not in the order of LSNs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scan: Option<EntityScan>,
}

/// Of the rows above the cursor's LSN, up to `to`: those below a place have been delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntityScan {
    pub to: Lsn,
    pub from_place: u64,
}

impl Cursor {
    /// Of a sink that has delivered everything up to `lsn`, and nothing after it.
    pub fn at(log: u64, epoch: u64, lsn: Lsn) -> Self {
        Self {
            log,
            epoch,
            lsn,
            scan: None,
        }
    }

    /// After a reset that the target does not know of yet: an epoch above the one it has.
    fn above(self, target: Option<Self>) -> Self {
        let of_target = target.filter(|target| target.log == self.log);
        let epoch = of_target.map_or(self.epoch, |target| self.epoch.max(target.epoch + 1));
        Self { epoch, ..self }
    }

    /// The text that targets store.
    pub fn to_json(self) -> String {
        serde_json::to_string(&self).unwrap_or_default()
    }
}

/// How a sink comes to its target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// It has been there.
    #[default]
    Continued,
    /// It has no state yet, or the state was removed.
    New,
    /// It was reset and has not been there since.
    Reset,
}

/// Where a sink continues unless its target knows better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredCursor {
    /// The file's.
    pub cursor: Cursor,
    /// How the sink comes to its target.
    pub start: Start,
}

impl StoredCursor {
    /// Of the file's cursor and the one that the target has, if it has one: the one that counts.
    pub fn or_of_target(self, target: Option<Cursor>) -> Cursor {
        let file = self.cursor;
        match target {
            _ if self.start == Start::Reset => file.above(target),
            Some(target) if target.log == file.log && target.epoch >= file.epoch => target,
            _ => file,
        }
    }
}

/// What is stored of a sink.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SinkState {
    /// The format of the file.
    pub version: u32,
    pub cursor: Cursor,
    /// Until it is resumed.
    pub is_paused: bool,
    /// How it comes to its target next.
    #[serde(default)]
    pub start: Start,
    /// The target has rows of records that the log did not have: until the sink is reset.
    #[serde(default)]
    pub must_reset: bool,
    /// What retention had removed of each table when the sink began or was reset, by the last
    /// record; none until it is known.
    #[serde(default)]
    pub known_dropped: Option<BTreeMap<String, Lsn>>,
    /// Rows of each table below this time had left when the cursor was stored.
    #[serde(default)]
    pub floors: BTreeMap<String, Option<Micros>>,
}

impl SinkState {
    /// Of a sink that runs.
    pub fn new(cursor: Cursor) -> Self {
        Self {
            version: VERSION,
            cursor,
            is_paused: false,
            start: Start::Continued,
            must_reset: false,
            known_dropped: None,
            floors: BTreeMap::new(),
        }
    }
}

/// Why the state of a sink cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("{path}: {source}")]
    Io { path: String, source: io::Error },
    #[error("{0}")]
    Damaged(String),
}

/// The folder of a sink's state.
#[derive(Debug, Clone)]
pub struct StateFolder(PathBuf);

impl StateFolder {
    /// That of the sink `name`, in the folder of all sinks.
    pub fn new(sinks: &Path, name: &str) -> Self {
        Self(sinks.join(name))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What is stored; `None` of a sink that never ran.
    pub fn load(&self) -> Result<Option<SinkState>, StateError> {
        let path = self.0.join(FILE);
        let bytes = match Disk.read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.io(source)),
            Ok(bytes) => bytes,
        };
        let damaged = |problem: &str| {
            let remedy = "restore it from a backup; or remove it: then the sink starts again where its target says, else as `start` says";
            StateError::Damaged(damage(&path, problem, remedy))
        };
        let state: SinkState =
            serde_json::from_slice(&bytes).map_err(|e| damaged(&e.to_string()))?;
        if state.version == VERSION {
            Ok(Some(state))
        } else {
            Err(damaged("it is of another version of weir"))
        }
    }

    /// Stores a state durably in place of the one before.
    pub fn store(&self, state: &SinkState) -> Result<(), StateError> {
        let text = serde_json::to_vec(state).unwrap_or_default();
        Disk.create_folder(&self.0)
            .and_then(|()| Disk.replace(&self.0.join(FILE), &text))
            .map_err(|source| self.io(source))
    }

    fn io(&self, source: io::Error) -> StateError {
        StateError::Io {
            path: self.0.display().to_string(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_targets_cursor_counts_unless_the_sink_was_reset() {
        let file = |start| StoredCursor {
            cursor: Cursor::at(1, 2, 100),
            start,
        };
        for (target, expected) in [
            (None, 100),
            (Some(Cursor::at(1, 2, 150)), 150),
            // After a restore from a backup, say, the file may be the newer one.
            (Some(Cursor::at(1, 2, 50)), 50),
            (Some(Cursor::at(1, 1, 150)), 100),
            (Some(Cursor::at(1, 3, 10)), 10),
            (Some(Cursor::at(9, 2, 150)), 100),
        ] {
            assert_eq!(
                file(Start::Continued).or_of_target(target).lsn,
                expected,
                "{target:?}"
            );
        }
        for (target, epoch) in [
            (None, 2),
            (Some(Cursor::at(1, 1, 150)), 2),
            // The file was removed and the sink reset before it met its target.
            (Some(Cursor::at(1, 2, 150)), 3),
            (Some(Cursor::at(1, 7, 150)), 8),
            (Some(Cursor::at(9, 7, 150)), 2),
        ] {
            let found = file(Start::Reset).or_of_target(target);
            assert_eq!(found, Cursor::at(1, epoch, 100), "{target:?}");
        }
    }

    #[test]
    fn a_state_is_read_as_it_was_stored() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = StateFolder::new(root.path(), "s");
        assert_eq!(folder.load().expect("readable"), None);
        let mut state = SinkState::new(Cursor::at(7, 0, 100));
        state.cursor.scan = Some(EntityScan {
            to: 120,
            from_place: 5,
        });
        state.floors = [("a".into(), None), ("b".into(), Some(3))].into();
        folder.store(&state).expect("writable");
        assert_eq!(folder.load().expect("readable"), Some(state));
        std::fs::write(folder.path().join(FILE), "{").expect("writable");
        let error = folder.load().expect_err("damaged").to_string();
        assert!(error.contains("the sink starts again"), "{error}");
    }
}
