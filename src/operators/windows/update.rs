//! Windows that have fired and may change: late rows make them tell again what differs, until their
//! lateness is over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow::compute::take_record_batch;
use arrow::row::{RowConverter, SortField};

use super::generic_aggregator::batch_weight;
use super::{FiredWindow, PaneSelection, Panes, Rows, WindowState, status};
use crate::event::{Lsn, Micros};
use crate::schema::window::assigner::WindowAssigner;
use crate::schema::window::{Shape, WINDOW_COLUMNS};

/// What a window said last, while late rows may change it.
#[derive(Debug, Clone)]
pub(super) struct RetainedResult {
    /// The table's own columns.
    pub(super) rows: RecordBatch,
    pub(super) version: i64,
    pub(super) is_changed: bool,
    pub(super) was_stored: bool,
}

impl RetainedResult {
    /// As how many groups it counts.
    pub(super) fn weight(&self) -> usize {
        1 + batch_weight(&self.rows)
    }
}

impl WindowState {
    /// The same rows with another LSN, version and status, and with other times if these are given.
    pub(super) fn stamp(
        &self,
        rows: &RecordBatch,
        times: Option<(Micros, Micros)>,
        lsn: Lsn,
        version: i64,
        status: &str,
    ) -> Result<RecordBatch, String> {
        let n = rows.num_rows();
        let mut columns = rows.columns().to_vec();
        columns[0] = Arc::new(Int64Array::from(vec![lsn as i64; n]));
        if let Some((start, end)) = times {
            let time = |t: Micros| {
                Arc::new(TimestampMicrosecondArray::from(vec![t; n]).with_timezone("UTC"))
                    as ArrayRef
            };
            (columns[1], columns[2]) = (time(start), time(end));
        }
        columns[3] = Arc::new(Int64Array::from(vec![version; n]));
        columns[4] = Arc::new(StringArray::from(vec![status; n]));
        RecordBatch::try_new(self.window.schema.clone(), columns).map_err(|e| e.to_string())
    }

    /// Whether two windows say the same, apart from their times.
    pub(super) fn is_equal(&self, a: &RecordBatch, b: &RecordBatch) -> bool {
        let mut own = WINDOW_COLUMNS.len()..self.window.schema.fields().len();
        a.num_rows() == b.num_rows() && own.all(|c| a.column(c).as_ref() == b.column(c).as_ref())
    }

    /// Fires again what late rows have changed: `all` of it, or only windows whose lateness is over
    /// at `mark`, which say their last.
    pub(super) fn emit_updates(&mut self, lsn: Lsn, mark: Micros, all: bool) -> Result<(), String> {
        let Shape::Aligned(windows) = self.window.shape else {
            return Ok(());
        };
        let ends: Vec<Micros> = self.standing.keys().copied().collect();
        // The window that went last, with what it said.
        let mut left: Option<(Micros, RecordBatch)> = None;
        for end in ends {
            let is_over = end.saturating_add(self.lateness()) <= mark;
            let Some(standing) = self.standing.get(&end) else {
                continue;
            };
            // What it is compared with goes now.
            let is_left = left
                .as_ref()
                .is_some_and(|(left, _)| windows.next_end(*left) == end);
            if standing.is_changed && (all || is_over || is_left) {
                let start = windows.start(end);
                let rows = match &mut self.panes {
                    Panes::CountAggregator(panes) => {
                        Rows::GroupCounts(panes.rows(&PaneSelection::Range(start, end), false))
                    }
                    Panes::GenericAggregator(panes) => {
                        Rows::Columns(panes.rows(&PaneSelection::Range(start, end), start, end)?)
                    }
                };
                let fired = FiredWindow {
                    start,
                    end,
                    lsn,
                    status: status::UPDATED,
                    rows,
                    is_same: false,
                };
                let now = self.finish_or_nothing(&fired);
                let before = self
                    .standing
                    .get(&windows.previous_end(end))
                    .map(|before| before.rows.clone());
                let before = before.or(left.take().filter(|_| is_left).map(|(_, rows)| rows));
                self.replace(end, windows, lsn, now, before.as_ref())?;
            }
            let last = if is_over {
                self.standing.remove(&end)
            } else {
                None
            };
            left = last.as_ref().map(|last| (end, last.rows.clone()));
            self.standing_rows -= last.as_ref().map_or(0, RetainedResult::weight);
            if let Some(last) = last.filter(|last| self.is_read && last.rows.num_rows() > 0) {
                let rows = self.stamp(&last.rows, None, lsn, last.version, status::FINAL)?;
                self.finals.push(rows);
            }
        }
        Ok(())
    }

    /// A window says something else than it did: what differs is stored. `before` is what the slide
    /// before says now.
    pub(super) fn replace(
        &mut self,
        end: Micros,
        windows: WindowAssigner,
        lsn: Lsn,
        now: RecordBatch,
        before: Option<&RecordBatch>,
    ) -> Result<(), String> {
        let slides = windows.is_sliding();
        let Some(standing) = self.standing.get(&end).cloned() else {
            return Ok(());
        };
        let version = standing.version + 1;
        let (changed, gone) = self.difference(&standing.rows, &now)?;
        let is_other = changed.num_rows() > 0 || gone.num_rows() > 0;
        let none = || now.slice(0, 0);
        let (changed, gone) = match before {
            _ if !slides || standing.was_stored => (changed, gone),
            // A slide that was not stored says what the one before says.
            Some(before) if self.is_equal(before, &now) => (none(), none()),
            _ if now.num_rows() > 0 => (now.clone(), none()),
            before => (
                none(),
                self.stamp(
                    before.unwrap_or(&standing.rows),
                    Some((windows.start(end), end)),
                    lsn,
                    version,
                    status::RETRACTED,
                )?,
            ),
        };
        let is_told = changed.num_rows() > 0 || gone.num_rows() > 0;
        if changed.num_rows() > 0 {
            let status = if standing.version == 0 {
                status::FINAL
            } else {
                status::UPDATED
            };
            self.stored
                .push(self.stamp(&changed, None, lsn, version, status)?);
        }
        if gone.num_rows() > 0 {
            self.stored
                .push(self.stamp(&gone, None, lsn, version, status::RETRACTED)?);
        }
        if slides
            && is_other
            && let Some(after) = self.standing.get_mut(&windows.next_end(end))
        {
            after.is_changed = true;
        }
        if slides && end == self.fired_to {
            self.before = Some(now.clone());
        }
        // A version that was stored is counted, also where only the slide before has changed.
        let version = if is_told { version } else { standing.version };
        let was_stored = standing.was_stored || is_told;
        self.stand(
            end,
            RetainedResult {
                rows: now,
                version,
                is_changed: false,
                was_stored,
            },
        );
        Ok(())
    }

    /// Rows that are new or say something else, and rows whose group is gone.
    pub(super) fn difference(
        &self,
        before: &RecordBatch,
        now: &RecordBatch,
    ) -> Result<(RecordBatch, RecordBatch), String> {
        let failed = |e: arrow::error::ArrowError| e.to_string();
        let rows_of = |batch: &RecordBatch, columns: &[usize]| -> Result<Vec<Vec<u8>>, String> {
            if columns.is_empty() {
                return Ok(vec![Vec::new(); batch.num_rows()]);
            }
            let fields = columns
                .iter()
                .map(|c| SortField::new(batch.column(*c).data_type().clone()))
                .collect();
            let converter = RowConverter::new(fields).map_err(failed)?;
            let columns: Vec<ArrayRef> = columns.iter().map(|c| batch.column(*c).clone()).collect();
            let rows = converter.convert_columns(&columns).map_err(failed)?;
            Ok(rows.iter().map(|r| r.as_ref().to_vec()).collect())
        };
        let own: Vec<usize> = (WINDOW_COLUMNS.len()..self.window.schema.fields().len()).collect();
        let keys = &self.window.keys;
        let (old_keys, new_keys) = (rows_of(before, keys)?, rows_of(now, keys)?);
        let (old, new) = (rows_of(before, &own)?, rows_of(now, &own)?);
        let known: BTreeMap<&[u8], &[u8]> = old_keys
            .iter()
            .zip(&old)
            .map(|(k, r)| (k.as_slice(), r.as_slice()))
            .collect();
        let there: BTreeSet<&[u8]> = new_keys.iter().map(Vec::as_slice).collect();
        let changed: UInt64Array = (0..new.len())
            .filter(|n| known.get(new_keys[*n].as_slice()) != Some(&new[*n].as_slice()))
            .map(|n| Some(n as u64))
            .collect();
        let gone: UInt64Array = (0..old.len())
            .filter(|n| !there.contains(old_keys[*n].as_slice()))
            .map(|n| Some(n as u64))
            .collect();
        Ok((
            take_record_batch(now, &changed).map_err(failed)?,
            take_record_batch(before, &gone).map_err(failed)?,
        ))
    }
}
