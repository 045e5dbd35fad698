//! Operator snapshots on disk, and the way back through the log for a view that fell out of the ring.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::event::Lsn;
use crate::operators::{OperatorError, Operators, snapshot};
use crate::schema::Catalog;
use crate::storage::{Storage, explain, sync_folder};
use crate::views::driver::{CatchUp, Give};
use crate::views::{View, ViewError};
use crate::wal::{LogReader, WalError};

/// Where snapshots lie and which log they belong to.
#[derive(Clone)]
pub struct Snapshots {
    pub storage: Arc<dyn Storage>,
    pub folder: PathBuf,
    pub log: PathBuf,
    /// The LSN before the log's first.
    pub zero: Lsn,
    /// The folder's names may not be on the disk: one of an earlier process, or of a save whose last sync failed.
    pub unsynced: Arc<AtomicBool>,
}

impl Snapshots {
    fn failed(&self, error: &std::io::Error) -> OperatorError {
        OperatorError::Io { path: self.folder.clone(), reason: explain(error) }
    }

    /// LSNs of the snapshots there are, oldest first.
    pub fn list(&self) -> Result<Vec<Lsn>, OperatorError> {
        let names = self.storage.list(&self.folder).map_err(|e| self.failed(&e))?;
        Ok(names.iter().filter_map(|n| snapshot::lsn_of(n)).collect())
    }

    pub fn load(&self, lsn: Lsn) -> Result<Operators, OperatorError> {
        let path = snapshot::path(&self.folder, lsn);
        let bytes = std::fs::read(&path).map_err(|e| self.failed(&e))?;
        snapshot::decode(&path, &bytes)
    }

    fn summary(&self, lsn: Lsn) -> Result<snapshot::Summary, OperatorError> {
        let path = snapshot::path(&self.folder, lsn);
        let bytes = std::fs::read(&path).map_err(|e| self.failed(&e))?;
        snapshot::summary(&path, &bytes)
    }

    /// Saves the state; gives its size.
    pub fn save(&self, operators: &Operators) -> Result<usize, OperatorError> {
        let bytes = snapshot::encode(operators);
        let path = snapshot::path(&self.folder, operators.lsn());
        self.storage.replace(&path, &bytes).map_err(|e| {
            self.unsynced.store(true, Ordering::Release);
            self.failed(&e)
        })?;
        Ok(bytes.len())
    }

    /// The newest snapshot up to `limit` that none of these positions is behind; without one, the state before the first record.
    pub fn newest_for(
        &self,
        positions: &BTreeMap<String, Lsn>,
        limit: Lsn,
    ) -> Result<(Operators, bool), OperatorError> {
        for lsn in self.list()?.into_iter().rev().filter(|lsn| *lsn <= limit) {
            match self.load(lsn) {
                Ok(operators) if !snapshot::is_behind(operators.given(), positions) => return Ok((operators, true)),
                Ok(_) => {}
                Err(error @ OperatorError::Newer { .. }) => return Err(error),
                Err(error) => tracing::warn!(%error, "a snapshot cannot be read; an older one is used"),
            }
        }
        Ok((Operators::new(Arc::new(Catalog::default()), self.zero), false))
    }

    /// The configuration in force at the newest snapshot up to `limit`, as JSON, and the snapshot's LSN.
    pub fn newest_configuration(&self, limit: Lsn) -> Result<Option<(Lsn, String)>, OperatorError> {
        for lsn in self.list()?.into_iter().rev().filter(|lsn| *lsn <= limit) {
            match self.summary(lsn) {
                Ok(summary) => return Ok(Some((lsn, summary.configuration))),
                Err(error @ OperatorError::Newer { .. }) => return Err(error),
                Err(error) => tracing::warn!(%error, "a snapshot cannot be read; an older one is used"),
            }
        }
        Ok(None)
    }

    /// Removes snapshots older than the newest one that no view is behind, and names that one.
    pub fn tidy(&self, positions: &BTreeMap<String, Lsn>) -> Result<Option<Lsn>, OperatorError> {
        if self.unsynced.load(Ordering::Acquire) {
            sync_folder(&self.folder).map_err(|e| self.failed(&e))?;
            self.unsynced.store(false, Ordering::Release);
        }
        let mut keep = None;
        for lsn in self.list()?.into_iter().rev() {
            if keep.is_some() {
                let path = snapshot::path(&self.folder, lsn);
                self.storage.remove(&path).map_err(|e| self.failed(&e))?;
            } else if self.summary(lsn).is_ok_and(|s| !snapshot::is_behind(&s.given, positions)) {
                keep = Some(lsn);
            }
        }
        Ok(keep)
    }
}

/// Reads the log again with its own copy of the operators, for one view at a time.
pub struct LogCatchUp {
    pub snapshots: Snapshots,
    pub one_at_a_time: Mutex<()>,
    /// What is not read yet is left for the next start.
    pub leave_the_rest: Arc<AtomicBool>,
}

impl CatchUp for LogCatchUp {
    fn replay(&self, view: &mut dyn View, to: Lsn, give: Give<'_>) -> Result<bool, ViewError> {
        let _turn = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        let name = view.name().to_owned();
        let failed = |reason: String| ViewError::Failed { view: name.clone(), reason };
        let damaged = |reason: String| ViewError::Damaged { path: self.snapshots.log.clone(), reason };
        let positions = view.positions().into_iter().collect();
        let (mut operators, from_snapshot) =
            self.snapshots.newest_for(&positions, Lsn::MAX).map_err(|error| match error {
                OperatorError::Newer { .. } => damaged(error.to_string()),
                // The folder could not be listed.
                error => failed(error.to_string()),
            })?;
        operators.forget_answers();
        if from_snapshot {
            // It has every row up to there, wherever its own rows end.
            view.skip_to(operators.lsn());
        }
        let mut reader = LogReader::new(self.snapshots.storage.clone(), self.snapshots.log.clone(), operators.lsn());
        while !self.leave_the_rest.load(Ordering::Acquire) {
            let frame = match reader.next(to) {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(true),
                // The log may have been trimmed behind a newer snapshot meanwhile, which the next try begins with.
                Err(error @ (WalError::Missing { .. } | WalError::Io { .. })) => return Err(failed(error.to_string())),
                Err(error) => return Err(damaged(error.to_string())),
            };
            let decoded = operators.decode(&frame).map_err(|e| damaged(e.to_string()))?;
            let output = operators.apply(&Arc::new(frame), decoded.as_ref()).map_err(|e| damaged(e.to_string()))?;
            give(view, &output)?;
        }
        Ok(false)
    }
}
