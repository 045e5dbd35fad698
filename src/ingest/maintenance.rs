//! What the writer does between groups of frames: trims the log, and while the log is full, retries
//! once there may be space.

use std::time::Instant;

use super::CommittedFrame;
use super::deferred::Deferrable;
use super::gate::LogFullReason;
use super::writer::{RETRY_INTERVAL, Writer};
use crate::event::Lsn;
use crate::wal::WalError;

/// What trimming the log requires of its writer.
pub enum LogMaintenance {
    /// Remove the segment that begins with this LSN.
    Remove(Lsn),
    /// Every view has committed up to here, and recovery starts at this LSN or later.
    Committed(Lsn),
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
        let mut has_removed = false;
        while let Ok(task) = self.maintenance.try_recv() {
            match task {
                LogMaintenance::Committed(lsn) => self.wal.set_committed(lsn),
                LogMaintenance::Remove(first_lsn) => match self.wal.remove_segment(first_lsn) {
                    Ok(()) => has_removed = true,
                    Err(error) => {
                        tracing::warn!(%error, "cannot remove a log segment; will retry");
                    }
                },
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
