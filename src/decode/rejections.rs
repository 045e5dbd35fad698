//! Rejected records and their reasons, within a limit of memory.

use std::collections::HashSet;
use std::sync::Arc;

use crate::bounds;

/// A record that did not become an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Its index in the frame.
    pub index: u32,
    /// At most [`REASON_BYTES`].
    pub reason: Arc<str>,
}

/// Longest reason: it may repeat a value.
pub const REASON_BYTES: usize = 512;
/// Different reasons of one frame that are shared among their records.
const SHARED_REASONS: usize = 64;
/// Memory of a rejected record on its way into the table `dead_letters`, in addition to its bytes
/// and its reason.
pub(super) const REJECTED_BYTES: usize = 96;

/// The rejected records of a frame take more memory than allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyRejected;

/// Stores equal reasons once, and counts the memory of rejected records.
#[derive(Default)]
pub(super) struct ReasonPool {
    shared: HashSet<Arc<str>>,
    /// Memory of the rejected records with their reasons.
    pub bytes: usize,
}

impl ReasonPool {
    /// Counts a rejected record; returns its reason, truncated to [`REASON_BYTES`] and shared with
    /// equal ones.
    pub fn intern(&mut self, reason: &str) -> Arc<str> {
        self.bytes += REJECTED_BYTES;
        let reason = bounds::truncate(reason, REASON_BYTES);
        if let Some(known) = self.shared.get(reason.as_ref()) {
            return known.clone();
        }
        let new: Arc<str> = reason.as_ref().into();
        // It is copied once, into `dead_letters`.
        self.bytes += 2 * new.len();
        if self.shared.len() < SHARED_REASONS {
            self.shared.insert(new.clone());
        }
        new
    }
}

/// Collects the rejected records of a frame.
pub(super) struct Rejections {
    records: Vec<Rejected>,
    reasons: ReasonPool,
    max_bytes: usize,
}

impl Rejections {
    /// Collects up to so many bytes of memory, as [`ReasonPool`] counts them.
    pub fn new(max_bytes: usize) -> Self {
        Self {
            records: Vec::new(),
            reasons: ReasonPool::default(),
            max_bytes,
        }
    }

    /// Adds a record, by its index in the frame, in any order. The error comes after it is added.
    pub fn push(&mut self, index: u32, reason: &str) -> Result<(), TooManyRejected> {
        self.records.push(Rejected {
            index,
            reason: self.reasons.intern(reason),
        });
        if self.reasons.bytes > self.max_bytes {
            return Err(TooManyRejected);
        }
        Ok(())
    }

    /// The records, by index.
    pub fn finish(mut self) -> Vec<Rejected> {
        self.records.sort_by_key(|r| r.index);
        self.records
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_reasons_are_stored_once_and_memory_is_limited() {
        let mut rejections = Rejections::new(3 * REJECTED_BYTES + 2);
        assert_eq!(rejections.push(7, "a"), Ok(()));
        assert_eq!(rejections.push(2, "a"), Ok(()));
        assert_eq!(rejections.push(3, "b"), Err(TooManyRejected));
        let records = rejections.finish();
        assert_eq!(
            records.iter().map(|r| r.index).collect::<Vec<_>>(),
            [2, 3, 7]
        );
        assert!(Arc::ptr_eq(&records[0].reason, &records[2].reason));
    }
}
