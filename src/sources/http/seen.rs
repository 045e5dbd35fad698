//! Records that a polled server sends again. What is remembered is the operators' `SeenRecords`:
//! each frame has the identities of its records, so that both are stored together or not at all.

use std::collections::{HashSet, VecDeque};

use crate::wal::RecordIdentity;

/// The newest records of a source.
pub(super) struct Seen {
    limit: usize,
    /// Oldest first.
    order: VecDeque<RecordIdentity>,
    known: HashSet<RecordIdentity>,
}

impl Seen {
    /// Continues with those that the log has, oldest first.
    pub fn new(limit: usize, stored: &[RecordIdentity]) -> Self {
        let mut seen = Self {
            limit,
            order: VecDeque::new(),
            known: HashSet::new(),
        };
        seen.extend(stored);
        seen
    }

    pub fn contains(&self, record: RecordIdentity) -> bool {
        self.known.contains(&record)
    }

    /// Adds records, and forgets the oldest ones beyond the limit.
    pub fn extend(&mut self, records: &[RecordIdentity]) {
        for record in records {
            if self.known.insert(*record) {
                self.order.push_back(*record);
            }
        }
        while self.order.len() > self.limit {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_records_are_forgotten() {
        let mut seen = Seen::new(3, &[1, 2, 3, 4]);
        assert!(!seen.contains(1) && seen.contains(2));
        seen.extend(&[2, 5]);
        assert!(!seen.contains(2) && seen.contains(3) && seen.contains(5));
    }
}
