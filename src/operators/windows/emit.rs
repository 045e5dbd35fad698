//! What a window that has fired tells: rows of its table, finished with its neighbours', and of a
//! sliding one only if they differ from the slide before.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::compute::concat_batches;

use super::count_aggregator::GroupCounts;
use super::update::RetainedResult;
use super::{FiredWindow, Panes, Rows, WindowState, status};
use crate::event::Micros;
use crate::schema::Window;
use crate::schema::window::Shape;

impl WindowState {
    /// Finishes what has fired: rows of the table, in the order in which they fired.
    pub(super) fn flush(&mut self) -> Result<(), String> {
        let fired = std::mem::take(&mut self.fired);
        if fired.is_empty() {
            return Ok(());
        }
        let slides = matches!(self.window.shape, Shape::Aligned(windows) if windows.is_sliding());
        if !slides && !self.is_updating() && !self.window.is_one_by_one() {
            return self.flush_together(&fired);
        }
        for window in &fired {
            if window.is_same {
                continue;
            }
            let batch = self.finish_or_nothing(window);
            if self.is_read && !self.is_updating() && batch.num_rows() > 0 {
                self.finals.push(batch.clone());
            }
            let (mut is_stored, mut is_gone) = (batch.num_rows() > 0, false);
            if slides {
                let before = self.before.take();
                if before
                    .as_ref()
                    .is_some_and(|before| self.is_equal(before, &batch))
                {
                    is_stored = false;
                }
                if batch.num_rows() == 0
                    && let Some(before) = before.filter(|b| b.num_rows() > 0)
                {
                    is_gone = true;
                    self.stored.push(self.stamp(
                        &before,
                        Some((window.start, window.end)),
                        window.lsn,
                        1,
                        status::RETRACTED,
                    )?);
                }
                self.before = Some(batch.clone());
            }
            if is_stored {
                self.stored.push(batch.clone());
            }
            if self.is_updating() && window.status != status::ABANDONED {
                let was_stored = is_stored || is_gone;
                let standing = RetainedResult {
                    rows: batch,
                    version: was_stored.into(),
                    is_changed: false,
                    was_stored,
                };
                self.stand(window.end, standing);
            }
        }
        // An empty slide is not compared with.
        if self.before.as_ref().is_some_and(|b| b.num_rows() == 0) {
            self.before = None;
            if let (Panes::CountAggregator(panes), Some(before)) =
                (&mut self.panes, self.before_counted.take())
            {
                panes.release(&before);
            }
        }
        Ok(())
    }

    /// Finishes windows that do not depend on each other in one evaluation.
    fn flush_together(&mut self, fired: &[FiredWindow]) -> Result<(), String> {
        let all: Vec<&FiredWindow> = fired.iter().collect();
        let batch = match self.finish(&all) {
            Ok(batch) => batch,
            Err(_) if all.len() > 1 => {
                let parts: Vec<RecordBatch> = all.iter().map(|f| self.finish_alone(f)).collect();
                self.failed += parts
                    .iter()
                    .zip(&all)
                    .filter(|(p, f)| p.num_rows() == 0 && f.rows.len() > 0)
                    .count() as u64;
                concat_batches(&self.window.schema, &parts).map_err(|e| e.to_string())?
            }
            Err(_) => self.finish_or_nothing(all[0]),
        };
        if batch.num_rows() > 0 {
            if self.is_read {
                self.finals.push(batch.clone());
            }
            self.stored.push(batch);
        }
        Ok(())
    }

    /// A window's rows; none where what is selected of them has no value.
    pub(super) fn finish_alone(&self, fired: &FiredWindow) -> RecordBatch {
        self.finish(&[fired]).unwrap_or_else(|reason| {
            tracing::error!(
                window = self.window.name,
                reason,
                "a window could not be told and is left out"
            );
            RecordBatch::new_empty(self.window.schema.clone())
        })
    }

    pub(super) fn finish_or_nothing(&mut self, fired: &FiredWindow) -> RecordBatch {
        let rows = self.finish_alone(fired);
        self.failed += u64::from(
            rows.num_rows() == 0 && fired.rows.len() > 0 && self.finish(&[fired]).is_err(),
        );
        rows
    }

    /// Rows in the table's columns.
    pub(super) fn finish(&self, fired: &[&FiredWindow]) -> Result<RecordBatch, String> {
        let lengths: Vec<usize> = fired.iter().map(|f| f.rows.len()).collect();
        let per_row = |value: &dyn Fn(&FiredWindow) -> i64| -> ArrayRef {
            let values = fired
                .iter()
                .zip(&lengths)
                .flat_map(|(f, n)| std::iter::repeat_n(value(f), *n));
            Arc::new(Int64Array::from(values.collect::<Vec<i64>>()))
        };
        let (lsns, versions) = (per_row(&|f| f.lsn as i64), per_row(&|_| 1));
        let statuses = fired
            .iter()
            .zip(&lengths)
            .flat_map(|(f, n)| std::iter::repeat_n(f.status, *n));
        let statuses: ArrayRef = Arc::new(StringArray::from(statuses.collect::<Vec<&str>>()));
        let columns = match &self.panes {
            Panes::CountAggregator(panes) => {
                let results: Vec<(Micros, Micros, &GroupCounts)> = fired
                    .iter()
                    .filter_map(|f| match &f.rows {
                        Rows::GroupCounts(counted) => Some((f.start, f.end, counted)),
                        Rows::Columns(_) => None,
                    })
                    .collect();
                panes.arrays(&self.window, &results)?
            }
            Panes::GenericAggregator(_) => concat_columns(fired)?,
        };
        let (own, beside) = self
            .window
            .finish(columns, vec![lsns, versions, statuses])?;
        assemble(&self.window, own, beside)
    }
}

fn concat_columns(fired: &[&FiredWindow]) -> Result<Vec<ArrayRef>, String> {
    let parts: Vec<&Vec<ArrayRef>> = fired
        .iter()
        .filter_map(|f| match &f.rows {
            Rows::Columns(columns) => Some(columns),
            Rows::GroupCounts(_) => None,
        })
        .collect();
    let Some(first) = parts.first() else {
        return Ok(Vec::new());
    };
    (0..first.len())
        .map(|n| {
            let columns: Vec<&dyn Array> = parts.iter().map(|p| p[n].as_ref()).collect();
            arrow::compute::concat(&columns).map_err(|e| e.to_string())
        })
        .collect()
}

/// The table's columns: lsn, the window's times, version and status, then the rest.
fn assemble(
    window: &Window,
    own: Vec<ArrayRef>,
    beside: Vec<ArrayRef>,
) -> Result<RecordBatch, String> {
    let (mut own, mut beside) = (own.into_iter(), beside.into_iter());
    let mut columns = Vec::with_capacity(window.schema.fields().len());
    columns.extend(beside.next());
    columns.extend(own.by_ref().take(2));
    columns.extend(beside);
    columns.extend(own);
    RecordBatch::try_new(window.schema.clone(), columns).map_err(|e| e.to_string())
}
