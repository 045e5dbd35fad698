//! Turns fired windows into rows of their table. A sliding window emits only if it differs from the
//! slide before, and a retraction of that one where no row is left:
//!
//! ```text
//! slide     rows          emitted
//! 0..30     a: 2, b: 1    a: 2, b: 1   final
//! 10..40    a: 2, b: 1    nothing
//! 20..50    none          a: 2, b: 1   retracted, with the times 20..50
//! ```
//!
//! A reader of NAME_versions thus knows the rows at any time: those of the last slide that was
//! stored. Each tumbling window emits its rows, or nothing if it has none.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::compute::concat_batches;

use super::panes::{PaneRows, Panes};
use super::update::RetainedResult;
use super::{WindowError, WindowOutput};
use crate::event::{Lsn, Micros};
use crate::schema::window::{Shape, WINDOW_COLUMNS};
use crate::schema::{Late, Window};

/// The column `status` of a window's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResultStatus {
    Open,
    Final,
    Updated,
    Abandoned,
    Retracted,
}

impl ResultStatus {
    fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Final => "final",
            Self::Updated => "updated",
            Self::Abandoned => "abandoned",
            Self::Retracted => "retracted",
        }
    }
}

/// A window that has fired, with rows that the rest of its SQL has still to be applied to.
pub(super) struct FiredWindow {
    pub(super) start: Micros,
    pub(super) end: Micros,
    pub(super) lsn: Lsn,
    pub(super) status: ResultStatus,
    pub(super) rows: PaneRows,
    /// Known to equal the slide before, so that it emits nothing.
    pub(super) is_same: bool,
}

/// What a window has fired and not emitted yet.
pub(super) struct Emitter {
    window: Arc<Window>,
    pub(super) slides: bool,
    emits_updates: bool,
    /// Another window reads this one's final rows (Flink: a downstream operator).
    pub(super) has_downstream: bool,
    /// Emitted together where they do not depend on each other: one evaluation for all.
    fired: Vec<FiredWindow>,
    /// The slide before, as it was stored last; none where that has no rows.
    pub(super) previous: Option<RecordBatch>,
    /// Rows for NAME_versions.
    stored: Vec<RecordBatch>,
    /// Final rows for the windows that read this one, with the LSN at which they became final.
    finals: Vec<RecordBatch>,
    /// Windows left out because an expression has no value.
    pub(super) failed: u64,
    /// Windows with rows that were closed early.
    pub(super) abandoned: u64,
}

impl Emitter {
    pub(super) fn new(window: &Arc<Window>) -> Self {
        let slides = matches!(window.shape, Shape::Aligned(windows) if windows.is_sliding());
        Self {
            window: window.clone(),
            slides,
            emits_updates: window.def.late == Late::Update,
            has_downstream: false,
            fired: Vec::new(),
            previous: None,
            stored: Vec::new(),
            finals: Vec::new(),
            failed: 0,
            abandoned: 0,
        }
    }

    /// The columns that identify a row in its window.
    pub(super) fn keys(&self) -> &[usize] {
        &self.window.keys
    }

    pub(super) fn push(&mut self, fired: FiredWindow) {
        let is_abandoned = fired.status == ResultStatus::Abandoned && !fired.rows.is_empty();
        self.abandoned += u64::from(is_abandoned);
        self.fired.push(fired);
    }

    /// The end of the first window that has fired and is not emitted.
    pub(super) fn first_end(&self) -> Option<Micros> {
        self.fired.first().map(|f| f.end)
    }

    /// Whether the last slide that fired has rows, so that the next one must be compared with it.
    pub(super) fn follows_rows(&self) -> bool {
        self.previous.as_ref().is_some_and(|b| b.num_rows() > 0)
            || self.slides && self.fired.last().is_some_and(|f| !f.rows.is_empty())
    }

    /// Whether the last window that fired has no rows.
    pub(super) fn ends_with_empty(&self) -> bool {
        self.fired.last().is_some_and(|f| f.rows.is_empty())
    }

    pub(super) fn store(&mut self, rows: RecordBatch) {
        self.stored.push(rows);
    }

    /// Emits final rows to the windows that read this one.
    pub(super) fn finalize(&mut self, rows: RecordBatch) {
        self.finals.push(rows);
    }

    /// Emits what has fired, in the order in which it fired. Returns what late rows may update.
    pub(super) fn flush(
        &mut self,
        panes: &mut Panes,
    ) -> Result<Vec<(Micros, RetainedResult)>, WindowError> {
        let fired = std::mem::take(&mut self.fired);
        if fired.is_empty() {
            return Ok(Vec::new());
        }
        if !self.slides && !self.emits_updates && !self.window.has_order_or_limit() {
            self.flush_together(panes, &fired)?;
            return Ok(Vec::new());
        }
        let mut retained = Vec::new();
        for window in fired.iter().filter(|window| !window.is_same) {
            let rows = self.finish_or_skip(panes, window);
            if self.has_downstream && !self.emits_updates && rows.num_rows() > 0 {
                self.finals.push(rows.clone());
            }
            let was_stored = if self.slides {
                self.emit_slide(window, &rows)?
            } else {
                rows.num_rows() > 0
            };
            if !self.slides && was_stored {
                self.stored.push(rows.clone());
            }
            if self.emits_updates && window.status != ResultStatus::Abandoned {
                let result = RetainedResult {
                    rows,
                    version: was_stored.into(),
                    is_changed: false,
                    was_stored,
                };
                retained.push((window.end, result));
            }
        }
        // An empty slide is not compared with.
        if self.previous.as_ref().is_some_and(|b| b.num_rows() == 0) {
            self.previous = None;
            panes.forget_previous_slide();
        }
        Ok(retained)
    }

    /// Emits a slide if it differs from the one before, or the retraction of that one. Returns
    /// whether it emitted anything.
    fn emit_slide(
        &mut self,
        window: &FiredWindow,
        rows: &RecordBatch,
    ) -> Result<bool, WindowError> {
        let previous = self.previous.replace(rows.clone());
        if rows.num_rows() > 0 {
            let is_equal = previous
                .as_ref()
                .is_some_and(|previous| is_equal(previous, rows));
            if !is_equal {
                self.stored.push(rows.clone());
            }
            return Ok(!is_equal);
        }
        let Some(previous) = previous.filter(|b| b.num_rows() > 0) else {
            return Ok(false);
        };
        let times = Some((window.start, window.end));
        let retracted = stamp(&previous, times, window.lsn, 1, ResultStatus::Retracted)?;
        self.stored.push(retracted);
        Ok(true)
    }

    /// Emits windows that do not depend on each other in one evaluation.
    fn flush_together(&mut self, panes: &Panes, fired: &[FiredWindow]) -> Result<(), WindowError> {
        let all: Vec<&FiredWindow> = fired.iter().collect();
        let rows = match self.finish(panes, &all) {
            Ok(rows) => rows,
            Err(_) if all.len() > 1 => {
                let parts: Vec<RecordBatch> =
                    all.iter().map(|f| self.finish_one(panes, f)).collect();
                self.failed += parts
                    .iter()
                    .zip(&all)
                    .filter(|(rows, f)| rows.num_rows() == 0 && !f.rows.is_empty())
                    .count() as u64;
                concat_batches(&self.window.schema, &parts)?
            }
            Err(_) => self.finish_or_skip(panes, all[0]),
        };
        if rows.num_rows() > 0 {
            if self.has_downstream {
                self.finals.push(rows.clone());
            }
            self.stored.push(rows);
        }
        Ok(())
    }

    /// A window's rows; none where an expression of its select has no value.
    fn finish_one(&self, panes: &Panes, fired: &FiredWindow) -> RecordBatch {
        self.finish(panes, &[fired]).unwrap_or_else(|error| {
            tracing::error!(
                window = self.window.name,
                reason = %error,
                "a window could not be evaluated and is left out"
            );
            RecordBatch::new_empty(self.window.schema.clone())
        })
    }

    /// As [`Self::finish_one`]; a window that is left out is counted.
    pub(super) fn finish_or_skip(&mut self, panes: &Panes, fired: &FiredWindow) -> RecordBatch {
        let rows = self.finish_one(panes, fired);
        self.failed += u64::from(
            rows.num_rows() == 0 && !fired.rows.is_empty() && self.finish(panes, &[fired]).is_err(),
        );
        rows
    }

    /// Applies the rest of the SQL: rows in the table's columns.
    pub(super) fn finish(
        &self,
        panes: &Panes,
        fired: &[&FiredWindow],
    ) -> Result<RecordBatch, WindowError> {
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
            .flat_map(|(f, n)| std::iter::repeat_n(f.status.name(), *n));
        let statuses: ArrayRef = Arc::new(StringArray::from(statuses.collect::<Vec<&str>>()));
        let columns = panes.columns(&self.window, fired)?;
        let (own, companions) = self
            .window
            .finish(columns, vec![lsns, versions, statuses])?;
        assemble(&self.window, own, companions)
    }

    /// What has been emitted since the last call, in one batch each.
    pub(super) fn take_output(&mut self) -> Result<WindowOutput, WindowError> {
        let schema = &self.window.schema;
        let join = |parts: &mut Vec<RecordBatch>| {
            let parts = std::mem::take(parts);
            (!parts.is_empty())
                .then(|| concat_batches(schema, &parts))
                .transpose()
        };
        Ok(WindowOutput {
            stored: join(&mut self.stored)?,
            finals: join(&mut self.finals)?,
        })
    }
}

/// The table's columns: lsn, the window's times, version and status, then the rest.
fn assemble(
    window: &Window,
    own: Vec<ArrayRef>,
    companions: Vec<ArrayRef>,
) -> Result<RecordBatch, WindowError> {
    let (mut own, mut companions) = (own.into_iter(), companions.into_iter());
    let mut columns = Vec::with_capacity(window.schema.fields().len());
    columns.extend(companions.next());
    columns.extend(own.by_ref().take(2));
    columns.extend(companions);
    columns.extend(own);
    Ok(RecordBatch::try_new(window.schema.clone(), columns)?)
}

/// The same rows with another LSN, version and status, and with other window times if any.
pub(super) fn stamp(
    rows: &RecordBatch,
    times: Option<(Micros, Micros)>,
    lsn: Lsn,
    version: i64,
    status: ResultStatus,
) -> Result<RecordBatch, WindowError> {
    let n = rows.num_rows();
    let mut columns = rows.columns().to_vec();
    columns[0] = Arc::new(Int64Array::from(vec![lsn as i64; n]));
    if let Some((start, end)) = times {
        let time = |t: Micros| {
            Arc::new(TimestampMicrosecondArray::from(vec![t; n]).with_timezone("UTC")) as ArrayRef
        };
        (columns[1], columns[2]) = (time(start), time(end));
    }
    columns[3] = Arc::new(Int64Array::from(vec![version; n]));
    columns[4] = Arc::new(StringArray::from(vec![status.name(); n]));
    Ok(RecordBatch::try_new(rows.schema(), columns)?)
}

/// Whether two windows have the same rows, apart from their times.
pub(super) fn is_equal(a: &RecordBatch, b: &RecordBatch) -> bool {
    let mut own = WINDOW_COLUMNS.len()..a.num_columns();
    a.num_rows() == b.num_rows() && own.all(|c| a.column(c).as_ref() == b.column(c).as_ref())
}
