//! Evaluation of `select` and `require` on decoded rows, with rejection row by row.

use arrow::array::{BooleanArray, RecordBatch, TimestampMicrosecondArray};
use arrow::compute::filter_record_batch;

use super::Stream;
use crate::decode::{outside_range, too_far_ahead};
use crate::event::Micros;
use crate::schema::select::Filtered;

/// Receives a rejected row of the input with the reason; false stops the evaluation, because too
/// many rows were rejected.
pub type Reject<'a> = &'a mut dyn FnMut(u32, &str) -> bool;

/// Rows that `select` and `require` let through.
pub struct Selected {
    pub rows: RecordBatch,
    /// The input row that each comes from, ascending.
    pub input_rows: Vec<u32>,
}

impl Stream {
    /// Applies `select` and `require`, and rejects rows whose time is missing, outside
    /// `time_range`, or too far ahead. None if `reject` stopped.
    pub fn select(
        &self,
        input: &RecordBatch,
        received_at: Micros,
        reject: Reject<'_>,
    ) -> Option<Selected> {
        let all = (0..input.num_rows() as u32).collect::<Vec<_>>();
        if let Ok(batch) = self.columns.evaluate(input) {
            return self.require(batch, all, received_at, reject);
        }
        // Some record's value makes an expression fail: find each, to reject only those.
        let mut fails = vec![false; all.len()];
        if !self.find_failing(input, &mut fails, 0, reject) {
            return None;
        }
        let good: Vec<u32> = all
            .into_iter()
            .filter(|row| !fails[*row as usize])
            .collect();
        let mask = BooleanArray::from(fails.iter().map(|fails| !fails).collect::<Vec<_>>());
        let input = filter_record_batch(input, &mask).expect("the mask has one value per row");
        match self.columns.evaluate(&input) {
            Ok(batch) => self.require(batch, good, received_at, reject),
            // Each row has a value by itself, but not all together: too many bytes in one batch,
            // for example.
            Err(reason) => {
                let continues = good
                    .iter()
                    .all(|row| reject(*row, &format!("select: {reason}")));
                continues.then(|| Selected {
                    rows: RecordBatch::new_empty(self.output.clone()),
                    input_rows: Vec::new(),
                })
            }
        }
    }

    /// Marks the rows for which an expression has no value, by bisection; `first` is the number of
    /// the first row. The values of the others are dropped, so that a failing row costs no more
    /// than finding it.
    fn find_failing(
        &self,
        input: &RecordBatch,
        fails: &mut [bool],
        first: u32,
        reject: Reject<'_>,
    ) -> bool {
        let rows = input.num_rows();
        if rows == 1 {
            return match self.columns.evaluate(input) {
                Ok(_) => true,
                Err(reason) => {
                    fails[0] = true;
                    reject(first, &format!("select: {reason}"))
                }
            };
        }
        if rows == 0 || self.columns.has_values(input) {
            return true;
        }
        let half = rows / 2;
        let (before, after) = fails.split_at_mut(half);
        self.find_failing(&input.slice(0, half), before, first, reject)
            && self.find_failing(
                &input.slice(half, rows - half),
                after,
                first + half as u32,
                reject,
            )
    }

    /// Rejects rows that `where`, the time checks or `require` do not let through.
    fn require(
        &self,
        filtered: Filtered,
        all: Vec<u32>,
        received_at: Micros,
        reject: Reject<'_>,
    ) -> Option<Selected> {
        let Filtered {
            rows: batch,
            passed,
        } = filtered;
        let input_rows = match &passed {
            None => all,
            Some(passed) => passing_rows(all, passed, reject)?,
        };
        let mut keep = vec![true; batch.num_rows()];
        let time = batch
            .column(0)
            .as_any()
            .downcast_ref::<TimestampMicrosecondArray>()
            .expect("event_time comes first");
        for (row, time) in time.iter().enumerate() {
            if let Some(reason) = self.time_error(time, received_at) {
                keep[row] = false;
                if !reject(input_rows[row], &reason) {
                    return None;
                }
            }
        }
        for rule in &self.rules {
            if !rule.check(&batch, &mut keep, &mut |row| {
                reject(input_rows[row], rule.text())
            }) {
                return None;
            }
        }
        if keep.iter().all(|keep| *keep) {
            return Some(Selected {
                rows: batch,
                input_rows,
            });
        }
        let input_rows = input_rows
            .into_iter()
            .zip(&keep)
            .filter_map(|(row, keep)| keep.then_some(row))
            .collect();
        let rows = filter_record_batch(&batch, &BooleanArray::from(keep))
            .expect("the mask has one value per row");
        Some(Selected { rows, input_rows })
    }

    /// Why an event time is rejected, if it is.
    fn time_error(&self, time: Option<Micros>, received_at: Micros) -> Option<String> {
        let range = &self.def.time_range;
        let max_ahead = self.def.watermark.max_ahead.micros();
        match time {
            None => Some("event_time is null".to_owned()),
            Some(time) if !range.contains(time) => Some(outside_range(time, range)),
            Some(time) if time > received_at.saturating_add(max_ahead) => {
                Some(too_far_ahead(time, received_at))
            }
            Some(_) => None,
        }
    }
}

/// The rows that a `where` let through; rejects the others.
fn passing_rows(all: Vec<u32>, passed: &[bool], reject: Reject<'_>) -> Option<Vec<u32>> {
    let mut passing = Vec::with_capacity(all.len());
    for (row, passed) in all.into_iter().zip(passed) {
        if *passed {
            passing.push(row);
        } else if !reject(row, "where: not true") {
            return None;
        }
    }
    Some(passing)
}
