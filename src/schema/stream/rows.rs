//! Evaluation of `select` and `require` on decoded rows, with rejection row by row.

use arrow::array::{BooleanArray, RecordBatch, TimestampMicrosecondArray};
use arrow::compute::filter_record_batch;

use super::Stream;
use crate::config::time_range::TimeRange;
use crate::event::{Micros, rfc3339};
use crate::schema::select::Filtered;

/// Receives a rejected row of the input with the reason; false stops the evaluation, because too
/// many rows were rejected.
pub type Reject<'a> = &'a mut dyn FnMut(u32, &str) -> bool;

/// Rows that `select` and `require` let through.
pub struct Selected {
    /// In the schema of [`Stream::output`].
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
            Err(error) => {
                let reason = format!("select: {error}");
                let continues = good.iter().all(|row| reject(*row, &reason));
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
        let range = &self.def.time_range;
        let max_ahead = self.def.watermark.max_ahead.micros();
        for (row, time) in time.iter().enumerate() {
            if let Some(reason) = time_error(time, received_at, range, max_ahead) {
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
}

/// Why an event time is rejected, if it is.
fn time_error(
    time: Option<Micros>,
    received_at: Micros,
    range: &TimeRange,
    max_ahead: Micros,
) -> Option<String> {
    match time {
        None => Some("event_time is null".to_owned()),
        Some(time) if !range.contains(time) => Some(outside_range(time, range)),
        Some(time) if time > received_at.saturating_add(max_ahead) => {
            Some(too_far_ahead(time, received_at))
        }
        Some(_) => None,
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

fn too_far_ahead(time: Micros, received_at: Micros) -> String {
    format!(
        "event_time {} is further ahead of its arrival at {} than max_ahead",
        rfc3339(time),
        rfc3339(received_at)
    )
}

fn outside_range(time: Micros, range: &TimeRange) -> String {
    format!(
        "event_time {} is outside the stream's time_range, {range}",
        rfc3339(time)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::MICROS_PER_DAY;

    #[test]
    fn an_event_time_is_rejected_if_missing_out_of_range_or_ahead() {
        let range = TimeRange::default();
        let (now, hour) = (20_000 * MICROS_PER_DAY, MICROS_PER_DAY / 24);
        for (time, expected) in [
            (None, Some("null")),
            (Some(now), None),
            (Some(now + hour), None),
            (Some(now + hour + 1), Some("further ahead")),
            (Some(-100 * 366 * MICROS_PER_DAY), Some("time_range")),
            (Some(Micros::MAX), Some("time_range")),
        ] {
            let reason = time_error(time, now, &range, hour);
            match expected {
                None => assert_eq!(reason, None, "{time:?}"),
                Some(part) => assert!(
                    reason
                        .as_deref()
                        .is_some_and(|reason| reason.contains(part)),
                    "{time:?}: {reason:?}"
                ),
            }
        }
    }

    #[test]
    fn rows_that_where_rejects_are_reported_until_the_receiver_stops() {
        let passed = [true, false, true, false];
        let mut rejected = Vec::new();
        let mut collect = |row, _: &str| {
            rejected.push(row);
            true
        };
        assert_eq!(
            passing_rows(vec![0, 2, 5, 7], &passed, &mut collect),
            Some(vec![0, 5])
        );
        assert_eq!(rejected, [2, 7]);
        assert_eq!(
            passing_rows(vec![0, 2, 5, 7], &passed, &mut |_, _| false),
            None
        );
    }
}
