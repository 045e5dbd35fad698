//! How the caller of a submission learns its outcome.

use std::sync::Arc;
use std::sync::mpsc::Receiver;

use super::IngestError;
use crate::decode::Decoded;
use crate::event::Lsn;
use crate::idempotency::IngestResponse;

/// The writer's report on a durable frame.
pub(super) struct SyncReport {
    pub last_lsn: Lsn,
    pub duplicate_of: Option<IngestResponse>,
}

/// The outcome of a submission that is durable.
pub struct Acceptance {
    /// The LSN of its last record.
    pub last_lsn: Lsn,
    /// The rows and dead letters of its records; none for a control frame.
    pub decoded: Option<Arc<Decoded>>,
    /// The submission duplicates an earlier one under its idempotency key, which was answered with
    /// this: its records are not processed.
    pub duplicate_of: Option<IngestResponse>,
}

impl Acceptance {
    /// The response to the sender.
    pub fn answer(self) -> IngestResponse {
        self.duplicate_of
            .or_else(|| self.decoded.as_deref().map(IngestResponse::new))
            .unwrap_or_default()
    }
}

/// A submission on its way to the disk.
pub struct Receipt {
    outcome: Receiver<Result<SyncReport, IngestError>>,
    decoded: Option<Arc<Decoded>>,
}

impl Receipt {
    pub(super) fn new(
        outcome: Receiver<Result<SyncReport, IngestError>>,
        decoded: Option<Arc<Decoded>>,
    ) -> Self {
        Self { outcome, decoded }
    }

    /// Waits until the records are durable or rejected.
    ///
    /// # Errors
    ///
    /// The rejection; [`IngestError::Unknown`] if the writer ended before it synced them.
    pub fn wait(self) -> Result<Acceptance, IngestError> {
        let SyncReport {
            last_lsn,
            duplicate_of,
        } = self.outcome.recv().map_err(|_| IngestError::Unknown)??;
        Ok(Acceptance {
            last_lsn,
            decoded: self.decoded,
            duplicate_of,
        })
    }
}
