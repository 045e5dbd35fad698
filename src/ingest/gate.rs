//! Bounds the bytes in flight from sources to the operators, and stops records while the log cannot
//! grow.
//!
//! | state | records, `wait` | records, not `wait` | retries | control frames |
//! |---|---|---|---|---|
//! | open, below the limit | admitted | admitted | admitted | admitted |
//! | open, limit reached | wait | `Full` | wait or `Full` | wait or `Full`, by their own limit |
//! | log full | wait | `NoSpace` | `NoSpace` | as if it were open |
//! | closed | `Stopping` | `Stopping` | `Stopping` | `Stopping` |

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::IngestError;
use crate::storage::IoKind;
use crate::wal::{Kind, WalError};

/// Limit for control frames, in addition to the queue's: records that wait for space in the log
/// must not keep gaps, floors and ticks from using their part of it.
const CONTROL_BYTES: usize = 1 << 20;

/// Why the log accepts no records at present.
#[derive(Debug, Clone)]
pub(super) struct LogFullReason {
    pub kind: IoKind,
    pub reason: String,
}

impl LogFullReason {
    pub fn from_error(error: &WalError) -> Self {
        Self {
            kind: error.kind(),
            reason: error.to_string(),
        }
    }

    pub fn stopping() -> Self {
        Self {
            kind: IoKind::Full,
            reason: "weir is stopping".into(),
        }
    }
}

impl From<LogFullReason> for IngestError {
    fn from(LogFullReason { kind, reason }: LogFullReason) -> Self {
        Self::NoSpace { kind, reason }
    }
}

#[derive(Default)]
struct GateState {
    /// Bytes of frames of records.
    record_bytes: usize,
    control_bytes: usize,
    log_full: Option<LogFullReason>,
    is_closed: bool,
}

impl GateState {
    fn used(&mut self, holds_records: bool) -> &mut usize {
        if holds_records {
            &mut self.record_bytes
        } else {
            &mut self.control_bytes
        }
    }
}

pub(super) struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
    limit: usize,
}

impl Gate {
    pub fn new(limit: usize) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            limit,
        }
    }

    /// Bytes of records that may be in flight.
    pub fn limit(&self) -> usize {
        self.limit
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a submission of so many bytes. Control frames have space reserved in a full log.
    /// Retried dead letters do not wait for a full log: they remain dead letters.
    pub fn admit(
        self: &Arc<Self>,
        bytes: usize,
        wait: bool,
        kind: Kind,
    ) -> Result<Charge, IngestError> {
        let holds_records = kind.holds_records();
        let limit = if holds_records {
            self.limit
        } else {
            CONTROL_BYTES
        };
        let mut state = self.lock();
        loop {
            if state.is_closed {
                return Err(IngestError::Stopping);
            }
            let log_full = state.log_full.as_ref().filter(|_| holds_records);
            if let Some(reason) = log_full
                && (!wait || kind == Kind::Retry)
            {
                return Err(reason.clone().into());
            }
            let is_log_full = log_full.is_some();
            let used = state.used(holds_records);
            // One submission always fits into an empty queue.
            let is_over = *used > 0 && *used + bytes > limit;
            if !is_log_full && !is_over {
                *used += bytes;
                return Ok(Charge {
                    gate: self.clone(),
                    bytes,
                    holds_records,
                });
            }
            if !wait {
                return Err(IngestError::Full {
                    limit,
                    unit: "bytes",
                });
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Why the log accepts no records, if it does not.
    pub fn log_full(&self) -> Option<LogFullReason> {
        self.lock().log_full.clone()
    }

    /// Stops records, or admits them again with `None`.
    pub fn set_log_full(&self, reason: Option<LogFullReason>) {
        self.lock().log_full = reason;
        self.changed.notify_all();
    }

    pub fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Rejects all callers from now on: the writer has ended, or the process stops.
    pub fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }
}

/// Bytes in flight. Dropped once the operators have applied the frame, or when it is rejected.
pub struct Charge {
    gate: Arc<Gate>,
    bytes: usize,
    holds_records: bool,
}

impl Charge {
    /// Corrects the charge once the actual size is known.
    pub(super) fn set(&mut self, bytes: usize) {
        let before = std::mem::replace(&mut self.bytes, bytes);
        let mut state = self.gate.lock();
        let used = state.used(self.holds_records);
        *used = *used + bytes - before;
        drop(state);
        self.gate.changed.notify_all();
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        *self.gate.lock().used(self.holds_records) -= self.bytes;
        self.gate.changed.notify_all();
    }
}

/// Shows whether the log accepts records, and can close it to them. Does not keep the writer
/// running.
#[derive(Clone)]
pub struct Intake(Arc<Gate>);

impl Intake {
    pub(super) fn new(gate: Arc<Gate>) -> Self {
        Self(gate)
    }

    /// Why the log is full, if it is.
    pub fn full(&self) -> Option<String> {
        self.0.log_full().map(|full| full.reason)
    }

    /// Bytes on their way to the log.
    pub(crate) fn used(&self) -> usize {
        let state = self.0.lock();
        state.record_bytes + state.control_bytes
    }

    /// Whether nothing is accepted any more: the process stops, or the writer has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Accepts nothing more; waiting callers get [`IngestError::Stopping`].
    pub fn close(&self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(log_full: bool) -> Arc<Gate> {
        let gate = Arc::new(Gate::new(100));
        gate.set_log_full(log_full.then(LogFullReason::stopping));
        gate
    }

    #[test]
    fn admission_depends_on_the_kind_and_the_state_of_the_log() {
        use Kind::{Record, Retry, Tick};
        // (log is full, kind, wait) and whether it is admitted.
        for (log_full, kind, wait, is_admitted) in [
            (false, Record, false, true),
            (false, Retry, true, true),
            (false, Tick, false, true),
            (true, Record, false, false),
            (true, Retry, false, false),
            (true, Retry, true, false),
            (true, Tick, false, true),
        ] {
            let result = gate(log_full).admit(10, wait, kind);
            assert_eq!(result.is_ok(), is_admitted, "{log_full} {kind:?} {wait}");
            let is_no_space = matches!(result, Err(IngestError::NoSpace { .. }));
            assert_eq!(is_no_space, !is_admitted, "{log_full} {kind:?} {wait}");
        }
        let closed = gate(false);
        closed.close();
        let result = closed.admit(10, true, Tick);
        assert!(matches!(result, Err(IngestError::Stopping)));
    }

    #[test]
    fn charges_count_until_they_are_dropped_and_one_frame_always_fits() {
        let gate = gate(false);
        let mut first = gate.admit(1_000, false, Kind::Record).expect("empty");
        let is_full = |result| matches!(result, Err(IngestError::Full { limit: 100, .. }));
        assert!(is_full(gate.admit(1, false, Kind::Record)));
        assert!(gate.admit(1, false, Kind::Gap).is_ok());
        first.set(60);
        let second = gate.admit(40, false, Kind::Record).expect("it fits");
        assert_eq!(Intake::new(gate.clone()).used(), 100);
        assert!(is_full(gate.admit(1, false, Kind::Record)));
        drop((first, second));
        assert_eq!(Intake::new(gate).used(), 0);
    }
}
