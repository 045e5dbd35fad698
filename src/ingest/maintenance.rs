//! What the writer does between groups of frames: trims the log, and while the log is full, retries
//! once there may be space.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::CommittedFrame;
use super::deferred::Deferrable;
use super::gate::LogFullReason;
use super::writer::{RETRY_INTERVAL, Writer};
use crate::event::Lsn;
use crate::wal::WalError;

/// What trimming the log requires of its writer, shared with the stage that decides it. Requests
/// that the writer has not taken yet are merged, so it holds at most one per segment, and the stage
/// never waits for the writer, which may be waiting for it.
#[derive(Debug, Clone, Default)]
pub struct LogMaintenance(Arc<Mutex<Requests>>);

/// The requests that the writer has not taken yet.
#[derive(Debug, Default, PartialEq, Eq)]
struct Requests {
    committed: Option<Lsn>,
    /// First LSNs of segments.
    removals: BTreeSet<Lsn>,
}

impl LogMaintenance {
    fn lock(&self) -> MutexGuard<'_, Requests> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every view has committed up to this LSN, and recovery starts there or later.
    pub fn set_committed(&self, lsn: Lsn) {
        let mut requests = self.lock();
        requests.committed = requests.committed.max(Some(lsn));
    }

    /// Asks to remove the segment that begins with this LSN.
    pub fn request_removal(&self, first_lsn: Lsn) {
        self.lock().removals.insert(first_lsn);
    }

    fn take(&self) -> Requests {
        std::mem::take(&mut *self.lock())
    }
}

impl Writer {
    /// Applies pending maintenance. While the log is full, retries deferred frames and reopens the
    /// gate once records can be appended.
    pub(super) fn maintain(
        &mut self,
        publish: &mut impl FnMut(CommittedFrame),
    ) -> Result<(), WalError> {
        let has_removed = self.apply_maintenance();
        if self.gate.log_full().is_none() {
            return Ok(());
        }
        let is_due =
            has_removed || self.last_attempt.elapsed() >= RETRY_INTERVAL || self.gate.is_closed();
        if !self.deferred.is_empty() && is_due {
            self.retry_deferred(publish)?;
        }
        match self.wal.roll_past_committed_segment() {
            Err(error @ WalError::Sync { .. }) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "cannot start a new log segment yet; will retry");
            }
            Ok(_) => {}
        }
        if self.deferred.is_empty() && self.wal.has_space() {
            self.gate.set_log_full(None);
        }
        Ok(())
    }

    /// Returns whether a segment was removed.
    fn apply_maintenance(&mut self) -> bool {
        let Requests {
            committed,
            removals,
        } = self.maintenance.take();
        if let Some(lsn) = committed {
            self.wal.set_committed(lsn);
        }
        let mut has_removed = false;
        for first_lsn in removals {
            match self.wal.remove_segment(first_lsn) {
                Ok(()) => has_removed = true,
                Err(error) => {
                    tracing::warn!(%error, "cannot remove a log segment; will retry");
                }
            }
        }
        has_removed
    }

    /// Appends deferred frames, oldest first, until one has no space.
    fn retry_deferred(&mut self, publish: &mut impl FnMut(CommittedFrame)) -> Result<(), WalError> {
        self.last_attempt = Instant::now();
        let mut appended = Vec::new();
        while let Some(prepared) = self.deferred.pop() {
            if self.deferred.is_source_rejected(prepared.info()) {
                self.reject(&prepared, LogFullReason::stopping());
                continue;
            }
            let Some((prepared, error)) = self.append(prepared, &mut appended)? else {
                continue;
            };
            if self.may_defer(&prepared, &error) {
                self.deferred.put_back(prepared);
                break;
            }
            self.reject(&prepared, LogFullReason::from_error(&error));
        }
        self.sync_and_publish(&mut appended, publish)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_wait_are_merged() {
        let maintenance = LogMaintenance::default();
        for (committed, first_lsn) in [(10, 1), (30, 11), (20, 1)] {
            maintenance.set_committed(committed);
            maintenance.clone().request_removal(first_lsn);
        }
        let merged = Requests {
            committed: Some(30),
            removals: [1, 11].into(),
        };
        assert_eq!(maintenance.take(), merged);
        assert_eq!(maintenance.take(), Requests::default());
    }
}
