//! Windows that have fired and that late rows change: they emit what differs, until their lateness
//! is over. A row whose group is gone is retracted:
//!
//! ```text
//! window 0..10      emitted
//! a: 2, b: 1        a: 2   b: 1   version 1, final
//! a: 3, c: 1        a: 3   c: 1   version 2, updated
//!                   b: 1          version 2, retracted
//! ```
//!
//! A window that had no rows when it fired is retained as version 0, so that its first rows are
//! version 1 and final. A slide that equalled the one before it was not stored (`was_stored`): it
//! has the rows of that one until one of the two changes.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{ArrayRef, RecordBatch, UInt64Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, SortField};

use super::WindowError;
use super::emit::{Emitter, FiredWindow, ResultStatus, is_equal, stamp};
use super::generic_aggregator::batch_state_units;
use crate::event::{Lsn, Micros};
use crate::schema::window::WINDOW_COLUMNS;

/// What a window emitted last, while late rows may change it.
#[derive(Debug, Clone)]
pub(super) struct RetainedResult {
    /// In the table's own columns.
    pub(super) rows: RecordBatch,
    /// Number of the version that was stored last; 0 before any.
    pub(super) version: i64,
    /// Late rows have come since.
    pub(super) is_changed: bool,
    /// Some version was stored. A slide that equals the one before it is not.
    pub(super) was_stored: bool,
}

impl RetainedResult {
    /// Number of groups that it is charged as.
    fn state_units(&self) -> usize {
        1 + batch_state_units(&self.rows)
    }
}

/// Results that late rows may update, by their windows' ends.
#[derive(Debug, Default)]
pub(super) struct RetainedResults {
    by_end: BTreeMap<Micros, RetainedResult>,
    state_units: usize,
}

impl RetainedResults {
    pub(super) fn is_empty(&self) -> bool {
        self.by_end.is_empty()
    }

    /// Number of groups that all results are charged as.
    pub(super) fn state_units(&self) -> usize {
        self.state_units
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.by_end
            .values()
            .map(|result| result.rows.get_array_memory_size())
            .sum()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Micros, &RetainedResult)> {
        self.by_end.iter()
    }

    pub(super) fn ends(&self) -> Vec<Micros> {
        self.by_end.keys().copied().collect()
    }

    pub(super) fn first_end(&self) -> Option<Micros> {
        self.by_end.first_key_value().map(|(end, _)| *end)
    }

    pub(super) fn get(&self, end: Micros) -> Option<&RetainedResult> {
        self.by_end.get(&end)
    }

    pub(super) fn is_changed(&self, end: Micros) -> bool {
        self.get(end).is_some_and(|result| result.is_changed)
    }

    pub(super) fn insert(&mut self, end: Micros, result: RetainedResult) {
        self.state_units += result.state_units();
        if let Some(replaced) = self.by_end.insert(end, result) {
            self.state_units -= replaced.state_units();
        }
    }

    pub(super) fn remove(&mut self, end: Micros) -> Option<RetainedResult> {
        let result = self.by_end.remove(&end)?;
        self.state_units -= result.state_units();
        Some(result)
    }

    /// A late row changes a window that has fired; one that had no rows is retained as empty.
    pub(super) fn mark_changed(&mut self, end: Micros, schema: &SchemaRef) {
        if !self.mark_retained_changed(end) {
            let empty = RetainedResult {
                rows: RecordBatch::new_empty(schema.clone()),
                version: 0,
                is_changed: true,
                was_stored: false,
            };
            self.insert(end, empty);
        }
    }

    /// Marks a result as changed, if there is one.
    pub(super) fn mark_retained_changed(&mut self, end: Micros) -> bool {
        let result = self.by_end.get_mut(&end);
        result.map(|result| result.is_changed = true).is_some()
    }
}

/// What a window's late rows have changed.
pub(super) struct Revision {
    pub(super) result: RetainedResult,
    /// Its rows are not those that it had, so that the slide after it must be compared again.
    pub(super) differs: bool,
}

impl Emitter {
    /// Stores what differs between a window's retained result and its rows `now`. `slide_before`:
    /// what the slide before has now.
    pub(super) fn revise(
        &mut self,
        fired: &FiredWindow,
        before: &RetainedResult,
        now: RecordBatch,
        slide_before: Option<&RecordBatch>,
    ) -> Result<Revision, WindowError> {
        let version = before.version + 1;
        let Difference { changed, gone } = difference(&before.rows, &now, self.keys())?;
        let differs = changed.num_rows() > 0 || gone.num_rows() > 0;
        let none = || now.slice(0, 0);
        let (changed, gone) = match slide_before {
            _ if !self.slides || before.was_stored => (changed, gone),
            // A slide that was not stored has the rows of the slide before.
            Some(slide) if is_equal(slide, &now) => (none(), none()),
            _ if now.num_rows() > 0 => (now.clone(), none()),
            slide => {
                let times = Some((fired.start, fired.end));
                let rows = slide.unwrap_or(&before.rows);
                let retracted = stamp(rows, times, fired.lsn, version, ResultStatus::Retracted)?;
                (none(), retracted)
            }
        };
        let is_emitted = changed.num_rows() > 0 || gone.num_rows() > 0;
        if changed.num_rows() > 0 {
            let status = if before.version == 0 {
                ResultStatus::Final
            } else {
                ResultStatus::Updated
            };
            self.store(stamp(&changed, None, fired.lsn, version, status)?);
        }
        if gone.num_rows() > 0 {
            self.store(stamp(
                &gone,
                None,
                fired.lsn,
                version,
                ResultStatus::Retracted,
            )?);
        }
        // A version that was stored counts, also where only the slide before has changed.
        let result = RetainedResult {
            rows: now,
            version: if is_emitted { version } else { before.version },
            is_changed: false,
            was_stored: before.was_stored || is_emitted,
        };
        Ok(Revision { result, differs })
    }

    /// A retained result becomes final: the windows that read this one get it.
    pub(super) fn finalize_retained(
        &mut self,
        result: &RetainedResult,
        lsn: Lsn,
    ) -> Result<(), WindowError> {
        let rows = stamp(&result.rows, None, lsn, result.version, ResultStatus::Final)?;
        self.finalize(rows);
        Ok(())
    }
}

struct Difference {
    /// Rows that are new or have other values.
    changed: RecordBatch,
    /// Rows whose group is gone.
    gone: RecordBatch,
}

/// What differs between two results of a window. `keys`: the columns that identify a row.
fn difference(
    before: &RecordBatch,
    now: &RecordBatch,
    keys: &[usize],
) -> Result<Difference, WindowError> {
    let own: Vec<usize> = (WINDOW_COLUMNS.len()..now.num_columns()).collect();
    let (old_keys, new_keys) = (row_bytes(before, keys)?, row_bytes(now, keys)?);
    let (old_rows, new_rows) = (row_bytes(before, &own)?, row_bytes(now, &own)?);
    let old_by_key: BTreeMap<&[u8], &[u8]> = old_keys
        .iter()
        .zip(&old_rows)
        .map(|(key, row)| (key.as_slice(), row.as_slice()))
        .collect();
    let present: BTreeSet<&[u8]> = new_keys.iter().map(Vec::as_slice).collect();
    let changed: UInt64Array = (0..new_rows.len())
        .filter(|n| old_by_key.get(new_keys[*n].as_slice()) != Some(&new_rows[*n].as_slice()))
        .map(|n| Some(n as u64))
        .collect();
    let gone: UInt64Array = (0..old_rows.len())
        .filter(|n| !present.contains(old_keys[*n].as_slice()))
        .map(|n| Some(n as u64))
        .collect();
    Ok(Difference {
        changed: take_record_batch(now, &changed)?,
        gone: take_record_batch(before, &gone)?,
    })
}

/// Per row the bytes of some columns, equal exactly for equal values.
fn row_bytes(batch: &RecordBatch, columns: &[usize]) -> Result<Vec<Vec<u8>>, WindowError> {
    if columns.is_empty() {
        return Ok(vec![Vec::new(); batch.num_rows()]);
    }
    let fields = columns
        .iter()
        .map(|c| SortField::new(batch.column(*c).data_type().clone()))
        .collect();
    let columns: Vec<ArrayRef> = columns.iter().map(|c| batch.column(*c).clone()).collect();
    let rows = RowConverter::new(fields)?.convert_columns(&columns)?;
    Ok(rows.iter().map(|row| row.as_ref().to_vec()).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Array, Int64Array, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    /// Rows of a window that counts per key: Weir's columns, then `k` and `n`.
    fn counts(rows: &[(&str, i64)]) -> RecordBatch {
        let mut fields: Vec<Field> = WINDOW_COLUMNS
            .iter()
            .map(|name| Field::new(*name, DataType::Int64, true))
            .collect();
        fields.extend([
            Field::new("k", DataType::Utf8, true),
            Field::new("n", DataType::Int64, true),
        ]);
        let number = |values: Vec<i64>| Arc::new(Int64Array::from(values)) as ArrayRef;
        let mut columns = vec![number(vec![7; rows.len()]); WINDOW_COLUMNS.len()];
        columns.push(Arc::new(StringArray::from_iter_values(
            rows.iter().map(|(k, _)| *k),
        )));
        columns.push(number(rows.iter().map(|(_, n)| *n).collect()));
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("rows")
    }

    fn values(batch: &RecordBatch) -> Vec<(String, i64)> {
        let keys = batch.column(5).as_any().downcast_ref::<StringArray>();
        let numbers = batch.column(6).as_any().downcast_ref::<Int64Array>();
        let (keys, numbers) = (keys.expect("keys"), numbers.expect("numbers"));
        (0..batch.num_rows())
            .map(|row| (keys.value(row).to_owned(), numbers.value(row)))
            .collect()
    }

    #[test]
    fn only_rows_that_differ_are_emitted_and_missing_groups_retracted() {
        type Rows = &'static [(&'static str, i64)];
        let cases: [(Rows, Rows, Rows, Rows); 4] = [
            (&[("a", 1)], &[("a", 1)], &[], &[]),
            (&[], &[("a", 1)], &[("a", 1)], &[]),
            (&[("a", 1)], &[], &[], &[("a", 1)]),
            (
                &[("a", 2), ("b", 1), ("d", 4)],
                &[("a", 3), ("c", 1), ("d", 4)],
                &[("a", 3), ("c", 1)],
                &[("b", 1)],
            ),
        ];
        for (before, now, changed, gone) in cases {
            let found = difference(&counts(before), &counts(now), &[5]).expect("a difference");
            assert_eq!(values(&found.changed), values(&counts(changed)), "{now:?}");
            assert_eq!(values(&found.gone), values(&counts(gone)), "{now:?}");
        }
    }

    #[test]
    fn without_a_key_a_window_has_one_row() {
        let found = difference(&counts(&[("", 1)]), &counts(&[("", 2)]), &[]).expect("a row");
        assert_eq!(values(&found.changed), [(String::new(), 2)]);
        assert_eq!(found.gone.num_rows(), 0);
    }

    #[test]
    fn retained_results_count_what_they_hold() {
        let mut retained = RetainedResults::default();
        let schema = counts(&[]).schema();
        retained.mark_changed(10, &schema);
        assert!(retained.is_changed(10) && retained.state_units() == 1);
        let result = RetainedResult {
            rows: counts(&[("a", 1), ("b", 2)]),
            version: 1,
            is_changed: false,
            was_stored: true,
        };
        retained.insert(10, result);
        assert!(!retained.is_changed(10) && retained.state_units() == 3);
        retained.mark_changed(10, &schema);
        assert_eq!(
            retained.get(10).map(|r| (r.version, r.is_changed)),
            Some((1, true))
        );
        assert!(!retained.mark_retained_changed(20));
        assert!(retained.remove(10).is_some() && retained.is_empty());
        assert_eq!(retained.state_units(), 0);
    }
}
