//! The rows of one delivery on their way: encoded, cut into requests, and remembered once the
//! target has them, so that an attempt that is repeated sends only the others.

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use arrow::array::RecordBatch;

use crate::event::{Lsn, Micros, RefusedRow};
use crate::operators::lsns;
use crate::query::encode;
use crate::sinks::SinkError;

/// A row as JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedRow<T = ()> {
    /// Its record.
    pub lsn: Lsn,
    /// Which row of its record it is, within its batch.
    pub ordinal: usize,
    pub json: Vec<u8>,
    /// What its target adds.
    pub extra: T,
}

impl<T> EncodedRow<T> {
    /// As it is stored when the target refuses it.
    pub fn refused(&self, table: &str, reason: String, refused_at: Micros) -> RefusedRow {
        RefusedRow {
            table: table.to_owned(),
            lsn: self.lsn,
            reason,
            row: String::from_utf8_lossy(&self.json).into_owned(),
            refused_at,
        }
    }

    /// Distinguishes it from all other rows of a delivery, also where a later attempt cuts batches
    /// elsewhere. Of an entity table, the rows of one record are in several batches.
    fn mark(&self) -> Mark {
        let mut hasher = DefaultHasher::new();
        self.json.hash(&mut hasher);
        (self.lsn, self.ordinal, hasher.finish())
    }
}

type Mark = (Lsn, usize, u64);

/// Rows that are remembered; others are sent again.
const MAX_SETTLED: usize = 1 << 18;

/// How much one request takes.
#[derive(Debug, Clone, Copy)]
pub struct RequestLimits {
    pub rows: usize,
    /// Of the rows as JSON; a row that is larger is alone in its request.
    pub bytes: usize,
}

/// The rows of a batch as JSON; `extra` adds what the target needs of each.
pub fn encode<T>(
    rows: &RecordBatch,
    mut extra: impl FnMut(usize) -> T,
) -> Result<Vec<EncodedRow<T>>, SinkError> {
    let lsns = lsns(rows);
    let mut encoded: Vec<EncodedRow<T>> = Vec::with_capacity(rows.num_rows());
    encode::each_row(&rows.schema(), std::slice::from_ref(rows), |json| {
        let at = encoded.len();
        let lsn = lsns[at] as Lsn;
        let ordinal = match encoded.last() {
            Some(last) if last.lsn == lsn => last.ordinal + 1,
            _ => 0,
        };
        encoded.push(EncodedRow {
            lsn,
            ordinal,
            json: json.to_vec(),
            extra: extra(at),
        });
        Ok(())
    })
    .map_err(|e| SinkError::Unavailable(e.to_string()))?;
    Ok(encoded)
}

/// Rows that are sent in their order.
pub struct Outbox<T = ()> {
    limits: RequestLimits,
    rows: VecDeque<EncodedRow<T>>,
    /// Rows of the delivery that the target has, or that are dead letters.
    settled: HashSet<Mark>,
    /// How often the sink had been reset.
    epoch: u64,
}

impl<T> Outbox<T> {
    /// Without rows.
    pub fn new(limits: RequestLimits) -> Self {
        Self {
            limits,
            rows: VecDeque::new(),
            settled: HashSet::new(),
            epoch: 0,
        }
    }

    /// Forgets what is settled if the sink was reset: everything is to be sent again.
    pub fn continue_in(&mut self, epoch: u64) {
        if self.epoch != epoch {
            self.settled.clear();
            self.epoch = epoch;
        }
    }

    /// Begins an attempt of a delivery, perhaps another one.
    pub fn begin(&mut self) {
        self.rows.clear();
    }

    /// Adds rows, but for those that an attempt before has settled.
    pub fn add(&mut self, rows: Vec<EncodedRow<T>>) {
        let settled = &self.settled;
        let is_new = |row: &EncodedRow<T>| settled.is_empty() || !settled.contains(&row.mark());
        self.rows.extend(rows.into_iter().filter(is_new));
    }

    /// The rows of the next request; `None` while a later row may still be part of it.
    pub fn next_request(&mut self, is_last: bool) -> Option<Vec<EncodedRow<T>>> {
        let (mut rows, mut bytes) = (0, 0);
        let mut is_full = false;
        for row in &self.rows {
            bytes += row.json.len();
            is_full = rows == self.limits.rows || (rows > 0 && bytes > self.limits.bytes);
            if is_full {
                break;
            }
            rows += 1;
        }
        let is_due = is_full || is_last || rows == self.limits.rows;
        (rows > 0 && is_due).then(|| self.rows.drain(..rows).collect())
    }

    /// Remembers a row that the target has, or that is a dead letter.
    pub fn settle(&mut self, row: &EncodedRow<T>) {
        if self.settled.len() < MAX_SETTLED {
            self.settled.insert(row.mark());
        }
    }

    /// Ends a delivery that the target has.
    pub fn finish(&mut self) {
        self.settled.clear();
        self.rows.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(lsn: Lsn, bytes: usize) -> EncodedRow {
        EncodedRow {
            lsn,
            ordinal: 0,
            json: vec![b'x'; bytes],
            extra: (),
        }
    }

    /// LSNs of the requests of some rows.
    fn requests(outbox: &mut Outbox, is_last: bool) -> Vec<Vec<Lsn>> {
        let requests = std::iter::from_fn(|| outbox.next_request(is_last));
        let lsns = |rows: Vec<EncodedRow>| rows.iter().map(|row| row.lsn).collect();
        requests.map(lsns).collect()
    }

    #[test]
    fn requests_have_at_most_so_many_rows_and_bytes() {
        let mut outbox = Outbox::new(RequestLimits { rows: 3, bytes: 10 });
        outbox.add(vec![row(1, 1), row(2, 1), row(3, 1), row(4, 1)]);
        assert_eq!(requests(&mut outbox, false), [vec![1, 2, 3]]);
        outbox.add(vec![row(5, 9), row(6, 1), row(7, 25), row(8, 1)]);
        let expected = [vec![4, 5], vec![6], vec![7]];
        assert_eq!(requests(&mut outbox, false), expected);
        assert_eq!(requests(&mut outbox, true), [vec![8]]);
        assert!(requests(&mut outbox, true).is_empty());
    }

    #[test]
    fn a_repeated_attempt_leaves_out_what_is_settled() {
        let mut outbox = Outbox::new(RequestLimits { rows: 2, bytes: 10 });
        outbox.add(vec![row(1, 1), row(2, 1), row(3, 1)]);
        for row in outbox.next_request(true).expect("rows") {
            outbox.settle(&row);
        }
        outbox.begin();
        // The table has another row of record 2 now, and a later one.
        outbox.add(vec![row(1, 1), row(2, 2), row(3, 1), row(4, 1)]);
        assert_eq!(requests(&mut outbox, true), [vec![2, 3], vec![4]]);
        outbox.finish();
        outbox.add(vec![row(1, 1)]);
        assert_eq!(requests(&mut outbox, true), [vec![1]]);
    }
}
