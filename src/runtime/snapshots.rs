//! Operator snapshots on disk, and catching up from the log for a view that fell out of the ring.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::RuntimeError;
use super::recovery::Candidate;
use crate::event::Lsn;
use crate::ids::{CheckpointId, ViewId};
use crate::operators::snapshot::Summary;
use crate::operators::{OperatorError, Operators, snapshot};
use crate::schema::Catalog;
use crate::storage::{Storage, explain};
use crate::views::driver::{ApplyOutput, CatchUp, ReplayTarget};
use crate::views::{View, ViewError};
use crate::wal::{LogReader, WalError, segment};

/// Where snapshots are, and the log that they belong to.
#[derive(Clone)]
pub struct Snapshots {
    /// The disk of snapshots and log.
    pub storage: Arc<dyn Storage>,
    /// Folder of the snapshots, one file each.
    pub folder: PathBuf,
    /// Folder of the log's segments.
    pub log: PathBuf,
    /// The LSN before the log's first.
    pub start_lsn: Lsn,
    /// Names in the folder may not be on the disk: they are of an earlier process, or of a save
    /// whose last sync failed.
    pub unsynced: Arc<AtomicBool>,
}

impl Snapshots {
    fn failed(&self, error: &std::io::Error) -> OperatorError {
        OperatorError::Io {
            path: self.folder.clone(),
            reason: explain(error),
        }
    }

    /// LSNs of the existing snapshots, oldest first.
    pub fn list(&self) -> Result<Vec<Lsn>, OperatorError> {
        let names = self
            .storage
            .list(&self.folder)
            .map_err(|e| self.failed(&e))?;
        Ok(names.iter().filter_map(|n| snapshot::lsn_of(n)).collect())
    }

    /// Reads the snapshot at an LSN.
    ///
    /// # Errors
    ///
    /// A file that is missing, damaged, or of a newer version.
    pub fn load(&self, lsn: Lsn) -> Result<Operators, OperatorError> {
        let path = snapshot::path(&self.folder, lsn);
        let bytes = self.storage.read(&path).map_err(|e| self.failed(&e))?;
        snapshot::decode(&path, &bytes)
    }

    fn summary(&self, lsn: Lsn) -> Result<Summary, OperatorError> {
        let path = snapshot::path(&self.folder, lsn);
        let bytes = self.storage.read(&path).map_err(|e| self.failed(&e))?;
        snapshot::summary(&path, &bytes)
    }

    /// Saves the state durably; returns its size in bytes.
    pub fn save(&self, operators: &Operators) -> Result<usize, OperatorError> {
        let bytes = snapshot::encode(operators);
        let path = snapshot::path(&self.folder, operators.lsn());
        self.storage.replace(&path, &bytes).map_err(|e| {
            self.unsynced.store(true, Ordering::Release);
            self.failed(&e)
        })?;
        Ok(bytes.len())
    }

    /// The newest snapshot up to `limit` that suits these checkpoints: each has all that was emitted
    /// up to the snapshot. True with it; false with the state before the first record.
    pub fn newest_for(
        &self,
        checkpoints: &BTreeMap<CheckpointId, Lsn>,
        limit: Lsn,
    ) -> Result<(Operators, bool), OperatorError> {
        for lsn in self.list()?.into_iter().rev().filter(|lsn| *lsn <= limit) {
            let found = self.summary(lsn).and_then(|summary| {
                let suits = !snapshot::is_ahead_of_views(&summary.emitted_through, checkpoints);
                suits.then(|| self.load(lsn)).transpose()
            });
            match found {
                Ok(Some(operators)) => return Ok((operators, true)),
                Ok(None) => {}
                Err(error @ OperatorError::Newer { .. }) => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "a snapshot cannot be read; an older one is used");
                }
            }
        }
        Ok((self.empty(), false))
    }

    /// The state before the first record.
    pub fn empty(&self) -> Operators {
        Operators::new(Arc::new(Catalog::default()), self.start_lsn)
    }

    /// The states that the live operators may start from, the newest first: the newest snapshot,
    /// and the one saved before it if it still exists.
    pub fn candidates(&self) -> Result<Vec<Candidate>, OperatorError> {
        let mut found: Vec<Candidate> = Vec::new();
        let mut wanted = None;
        for lsn in self.list()?.into_iter().rev() {
            if wanted.is_some_and(|wanted| lsn < wanted) {
                return Ok(found);
            }
            match self.summary(lsn) {
                Ok(Summary {
                    emitted_through,
                    before,
                    ..
                }) => {
                    found.push(Candidate {
                        snapshot: Some(lsn),
                        emitted_through,
                    });
                    match before {
                        Some(before) if found.len() < 2 => wanted = Some(before),
                        None if found.len() < 2 => break,
                        _ => return Ok(found),
                    }
                }
                Err(error @ OperatorError::Newer { .. }) => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "a snapshot cannot be read; an older one is used");
                }
            }
        }
        if wanted.is_none() {
            found.push(Candidate::empty());
        }
        Ok(found)
    }

    /// Refuses a view that cannot catch up because segments are missing; returns the record after
    /// which it reads.
    pub fn refuse_trimmed(
        &self,
        view: &ViewId,
        checkpoints: &BTreeMap<CheckpointId, Lsn>,
    ) -> Result<Lsn, RuntimeError> {
        let suits = |lsn: &Lsn| {
            self.summary(*lsn)
                .is_ok_and(|s| !snapshot::is_ahead_of_views(&s.emitted_through, checkpoints))
        };
        let from = self
            .list()?
            .into_iter()
            .rev()
            .find(suits)
            .unwrap_or(self.start_lsn);
        let names = self.storage.list(&self.log).map_err(|e| self.failed(&e))?;
        let first = names.iter().find_map(|name| segment::first_lsn(name));
        match first.filter(|first| *first > from + 1) {
            Some(first) => Err(RuntimeError::Damaged(format!(
                "{view} continues with record {}, but the log begins with record {first}: restore it from a backup that is not older than the log's beginning, or restore the whole data folder from one backup",
                from + 1
            ))),
            None => Ok(from),
        }
    }

    /// Refuses a snapshot of records that the log does not have.
    pub fn refuse_ahead(&self, end: Lsn) -> Result<(), OperatorError> {
        match self.list()?.pop().filter(|lsn| *lsn > end) {
            Some(lsn) => Err(OperatorError::Ahead {
                path: snapshot::path(&self.folder, lsn),
                lsn,
                end,
            }),
            None => Ok(()),
        }
    }

    /// The configuration in force at the newest snapshot up to `limit`, as JSON, and the snapshot's
    /// LSN.
    pub fn newest_configuration(&self, limit: Lsn) -> Result<Option<(Lsn, String)>, OperatorError> {
        for lsn in self.list()?.into_iter().rev().filter(|lsn| *lsn <= limit) {
            match self.summary(lsn) {
                Ok(summary) => return Ok(Some((lsn, summary.configuration))),
                Err(error @ OperatorError::Newer { .. }) => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "a snapshot cannot be read; an older one is used");
                }
            }
        }
        Ok(None)
    }

    /// Removes snapshots older than the newest one that suits every view; returns the LSN of that
    /// one.
    pub fn tidy(
        &self,
        checkpoints: &BTreeMap<CheckpointId, Lsn>,
    ) -> Result<Option<Lsn>, OperatorError> {
        if self.unsynced.load(Ordering::Acquire) {
            self.storage
                .sync_folder(&self.folder)
                .map_err(|e| self.failed(&e))?;
            self.unsynced.store(false, Ordering::Release);
        }
        let mut safe = None;
        for lsn in self.list()?.into_iter().rev() {
            if safe.is_some() {
                let path = snapshot::path(&self.folder, lsn);
                self.storage.remove(&path).map_err(|e| self.failed(&e))?;
            } else if self
                .summary(lsn)
                .is_ok_and(|s| !snapshot::is_ahead_of_views(&s.emitted_through, checkpoints))
            {
                safe = Some(lsn);
            }
        }
        Ok(safe)
    }
}

/// Reads the log again with its own copy of the operators, for one view at a time.
pub struct LogCatchUp {
    /// Where reading begins; the log that is read is theirs.
    pub snapshots: Snapshots,
    one_at_a_time: Mutex<()>,
    /// Set: what is not read yet is left to the next start.
    skip_catch_up: Arc<AtomicBool>,
}

impl LogCatchUp {
    /// Reads from these snapshots on, until `skip_catch_up` is set.
    pub fn new(snapshots: Snapshots, skip_catch_up: Arc<AtomicBool>) -> Self {
        Self {
            snapshots,
            one_at_a_time: Mutex::new(()),
            skip_catch_up,
        }
    }
}

/// How a read of the log ended.
enum ReadOutcome {
    /// It has reached its target.
    Done,
    /// It was interrupted, because everything stops.
    Interrupted,
    /// The segment after this record is gone.
    Trimmed(Lsn, WalError),
}

impl LogCatchUp {
    /// The newest operators that suit the view: it has every row up to there, wherever its last row
    /// is.
    fn operators(&self, view: &mut dyn View) -> Result<Operators, ViewError> {
        let checkpoints = view.checkpoints().into_iter().collect();
        let (mut operators, is_saved) =
            self.snapshots
                .newest_for(&checkpoints, Lsn::MAX)
                .map_err(|error| match error {
                    OperatorError::Newer { .. } => self.damaged(&error),
                    // The folder could not be listed.
                    error => ViewError::failed(view.id().to_string())(error.to_string()),
                })?;
        operators.forget_answers();
        if is_saved {
            view.advance_to(operators.lsn());
        }
        Ok(operators)
    }

    fn damaged(&self, error: &dyn std::fmt::Display) -> ViewError {
        ViewError::Damaged {
            path: self.snapshots.log.clone(),
            reason: error.to_string(),
        }
    }

    fn read(
        &self,
        view: &mut dyn View,
        mut operators: Operators,
        to: ReplayTarget<'_>,
        demand: ApplyOutput<'_>,
    ) -> Result<ReadOutcome, ViewError> {
        let Snapshots { storage, log, .. } = &self.snapshots;
        let mut reader = LogReader::new(storage.clone(), log.clone(), operators.lsn());
        while let Some(limit) = to(operators.lsn()) {
            loop {
                if self.skip_catch_up.load(Ordering::Acquire) {
                    return Ok(ReadOutcome::Interrupted);
                }
                let frame = match reader.next(limit) {
                    Ok(Some(frame)) => frame,
                    Ok(None) => break,
                    Err(error @ WalError::Missing { .. }) => {
                        return Ok(ReadOutcome::Trimmed(operators.lsn(), error));
                    }
                    Err(error @ WalError::Io { .. }) => {
                        return Err(ViewError::failed(view.id().to_string())(error.to_string()));
                    }
                    Err(error) => return Err(self.damaged(&error)),
                };
                let decoded = operators.decode(&frame).map_err(|e| self.damaged(&e))?;
                let output = operators
                    .apply(&Arc::new(frame), decoded.as_ref())
                    .map_err(|e| self.damaged(&e))?;
                demand(view, &output)?;
            }
        }
        Ok(ReadOutcome::Done)
    }
}

impl CatchUp for LogCatchUp {
    fn replay(
        &self,
        view: &mut dyn View,
        to: ReplayTarget<'_>,
        demand: ApplyOutput<'_>,
    ) -> Result<bool, ViewError> {
        let _turn = self
            .one_at_a_time
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut operators = self.operators(view)?;
        loop {
            let (at, error) = match self.read(view, operators, to, demand)? {
                ReadOutcome::Done => return Ok(true),
                ReadOutcome::Interrupted => return Ok(false),
                ReadOutcome::Trimmed(at, error) => (at, error),
            };
            // The log is trimmed up to a snapshot that suits every view, which may be newer than
            // the one that reading began with.
            operators = self.operators(view)?;
            if operators.lsn() <= at {
                return Err(self.damaged(&error));
            }
        }
    }
}
