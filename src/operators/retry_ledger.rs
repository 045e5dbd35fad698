//! Dead letters that came back: each may become an event once, by a retry or because the line that
//! it was a part of is complete.
//!
//! While records are processed once more under a pinned configuration, what was rejected when it
//! came may be accepted, so that its retry must be ignored. The ledger then lists what is rejected
//! now, and only that may come back:
//!
//! ```text
//! ledger               may come back
//! 7 → NOT_RETRIED      7: rejected, and not retried yet
//! 8 → 120              not 8: it is record 120
//!                      not 9: it was accepted at once
//! ```

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::BooleanArray;

use super::{Operators, Output};
use crate::decode::Decoded;
use crate::event::Lsn;
use crate::wal::Frame;

/// Dead letters remembered as retried; the newest. A retry of more is refused.
pub(crate) const MAX_RETRIED: usize = 100_000;
/// In the place of the record that a dead letter became: it has not come back.
const NOT_RETRIED: Lsn = 0;

/// Dead letters with the records that they became.
#[derive(Debug, Clone, Default)]
pub(super) struct RetryLedger {
    records: BTreeMap<Lsn, Lsn>,
}

impl RetryLedger {
    pub(super) fn new(records: impl IntoIterator<Item = (Lsn, Lsn)>) -> Self {
        Self {
            records: records.into_iter().collect(),
        }
    }

    pub(super) fn records(&self) -> &BTreeMap<Lsn, Lsn> {
        &self.records
    }

    /// A retry made a record of a dead letter. The sender of retries keeps to [`MAX_RETRIED`].
    pub(super) fn record(&mut self, dead: Lsn, record: Lsn) {
        self.records.insert(dead, record);
    }

    /// Dead letters became a record because the line that they were a part of is complete.
    pub(super) fn record_completed(&mut self, dead: impl IntoIterator<Item = Lsn>, record: Lsn) {
        self.records
            .extend(dead.into_iter().map(|dead| (dead, record)));
        self.drop_oldest();
    }

    /// Records were rejected under a pinned configuration.
    pub(super) fn record_rejected(&mut self, dead: impl IntoIterator<Item = Lsn>) {
        self.record_completed(dead, NOT_RETRIED);
    }

    fn drop_oldest(&mut self) {
        while self.records.len() > MAX_RETRIED {
            self.records.pop_first();
        }
    }

    /// Whether a dead letter has not come back. `pinned_from`: the first record that was rejected
    /// or accepted under a pinned configuration.
    pub(super) fn may_come_back(&self, dead: Lsn, pinned_from: Option<Lsn>) -> bool {
        if let Some(record) = self.records.get(&dead) {
            return *record == NOT_RETRIED;
        }
        if pinned_from.is_none_or(|from| dead < from) {
            return true;
        }
        // It may have been rejected longer ago than is remembered.
        let oldest = self.records.first_key_value();
        self.records.len() >= MAX_RETRIED && oldest.is_some_and(|(oldest, _)| dead < *oldest)
    }
}

impl Operators {
    /// A retry's rows without those whose dead letter has come back already: by another retry, or
    /// twice in this one.
    pub(super) fn without_retried(&self, frame: &Frame, decoded: &Decoded) -> Decoded {
        let dead = |index: u32| frame.attributes.retry_of.get(index as usize).copied();
        let may_come_back = |dead| self.retried.may_come_back(dead, self.pinned_from);
        let mut seen = BTreeSet::new();
        let keep: Vec<bool> = decoded
            .index
            .iter()
            .map(|index| dead(*index).is_some_and(|dead| may_come_back(dead) && seen.insert(dead)))
            .collect();
        let index = decoded
            .index
            .iter()
            .zip(&keep)
            .filter_map(|(index, keep)| keep.then_some(*index))
            .collect();
        let rows = arrow::compute::filter_record_batch(&decoded.rows, &BooleanArray::from(keep));
        let rows = rows.expect("the mask has one value per row");
        Decoded {
            rows,
            index,
            rejected: decoded.rejected.clone(),
            drift: Vec::new(),
        }
    }

    /// Records which event each dead letter became.
    pub(super) fn record_retried(&mut self, frame: &Frame, output: &Output) {
        let first = frame.header.first_lsn;
        for lsn in output.rows.iter().flat_map(|rows| rows.lsns()) {
            if let Some(dead) = frame
                .attributes
                .retry_of
                .get((*lsn as Lsn - first) as usize)
            {
                self.retried.record(*dead, *lsn as Lsn);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letter_comes_back_once() {
        let mut ledger = RetryLedger::new([(7, NOT_RETRIED), (8, 120)]);
        for (dead, pinned_from, may) in [
            (7, None, true),
            (8, None, false),
            (9, None, true),
            (7, Some(5), true),
            (8, Some(5), false),
            (9, Some(5), false),
            (4, Some(5), true),
        ] {
            assert_eq!(
                ledger.may_come_back(dead, pinned_from),
                may,
                "{dead}, pinned from {pinned_from:?}"
            );
        }
        ledger.record(7, 130);
        assert!(!ledger.may_come_back(7, None));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut ledger = RetryLedger::default();
        ledger.record_rejected(10..10 + MAX_RETRIED as Lsn + 5);
        assert_eq!(ledger.records().len(), MAX_RETRIED);
        assert!(ledger.may_come_back(12, Some(1)), "forgotten");
        assert!(!ledger.may_come_back(10 + MAX_RETRIED as Lsn + 9, Some(1)));
    }
}
