//! Windows: rows go into panes, the watermark fires and closes windows.
//!
//! ```text
//!  rows ──► WindowState ──► panes ──► emit ──► rows of NAME_versions, final rows
//!           fixed, session  counts,   stored, previous slide
//!           progress        generic   update: retained results
//! ```
//!
//! [`fixed`] and [`session`] decide when a window fires; for fixed windows [`progress`] is the
//! arithmetic. [`panes`] hold what is aggregated: [`count_aggregator`] where a window only counts,
//! [`generic_aggregator`] for every other aggregate. [`emit`] makes rows of windows that have
//! fired, [`update`] rows of those that late rows change.
//!
//! Everything goes row by row in the order of LSNs, so that the result does not depend on how
//! records were cut into frames. A row is accepted under the watermark before it, and may then move
//! it. Tumbling windows of 10, no lateness, no disorder:
//!
//! ```text
//! LSN  time  watermark after it   window 0..10          window 10..20
//! 1    3     3                    accepts it            -
//! 2    12    12                   fires with one row    accepts it
//! 3    9     12                   closed: too late      -
//! ```
//!
//! Record 3 is too late whether the three came in one frame or in three, also after a restart.

mod count_aggregator;
mod emit;
mod error;
mod fixed;
mod generic_aggregator;
mod panes;
mod progress;
mod session;
mod snapshot;
mod update;

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};

use super::canonical;
use crate::bounds::truncate_bytes_with_hash;
use crate::event::{Lsn, Micros};
use crate::schema::window::Shape;
use crate::schema::{Late, WINDOW_GROUP_BYTES, Window};
use emit::{Emitter, FiredWindow, ResultStatus};
pub use error::WindowError;
use fixed::FixedWindows;
use panes::Panes;
use progress::{FiringProgress, NO_WATERMARK, NO_WINDOW};
use session::SessionWindows;

/// Rows in the order of their LSNs, and how far time has come.
pub(super) struct WindowInput<'a> {
    pub(super) batch: &'a RecordBatch,
    pub(super) times: &'a [Micros],
    pub(super) lsns: &'a [i64],
    /// Watermark changes as (LSN, new watermark): each takes effect after that record; some fall
    /// between rows, some after the last.
    pub(super) watermark_updates: &'a [(Lsn, Micros)],
}

/// What an input made a window emit.
pub(super) struct WindowOutput {
    /// Rows for NAME_versions.
    pub(super) stored: Option<RecordBatch>,
    /// Final rows, for the windows that read this one.
    pub(super) finals: Option<RecordBatch>,
}

/// Which rows of an input a window has accepted, by their positions in it. Rows that it does not
/// count (by `where`, as duplicates, or before it was declared) are in neither list.
#[derive(Debug, Default)]
pub(super) struct RowAdmission {
    pub(super) accepted: Vec<u32>,
    /// Rows whose windows are all closed: they came later than the lateness allows.
    pub(super) too_late: Vec<u32>,
}

/// Number of groups that a value of this size is charged as: one, and one more for each
/// [`WINDOW_GROUP_BYTES`], so that `max_groups` bounds memory also where texts are long.
fn state_units(bytes: usize) -> usize {
    1 + bytes / WINDOW_GROUP_BYTES
}

/// The state that fixed windows and session windows have in common.
struct Shared {
    window: Arc<Window>,
    watermark: Micros,
    panes: Panes,
    emitter: Emitter,
}

/// The state by which a window decides what fires.
enum WindowKind {
    Fixed(FixedWindows),
    Session(SessionWindows),
}

/// State of one declared window.
pub(super) struct WindowState {
    shared: Shared,
    kind: WindowKind,
    /// Rows before this time are ignored: windows that start earlier would lack rows from before
    /// the window was declared. A window of an hour that is declared when the greatest event time
    /// is 12:34 begins with 13:00..14:00.
    ignore_starts_before: Micros,
    /// Rows that came when every window they belong to was closed.
    too_late: u64,
    /// Rows left out because an expression or aggregate has no value.
    failed_rows: u64,
}

/// A batch's rows, as far as they are prepared for the panes.
struct PreparedRows {
    /// Rows that the window counts.
    passes: BooleanArray,
    /// Only the rows that pass are prepared, so that they are numbered among themselves.
    is_filtered: bool,
}

impl WindowState {
    /// A window whose results begin with its first event, or with windows that start after
    /// `greatest`, the greatest event time so far.
    pub(super) fn new(window: &Arc<Window>, greatest: Option<Micros>) -> Result<Self, WindowError> {
        let lateness = window.def.allowed_lateness.micros();
        let (kind, start) = match window.shape {
            Shape::Aligned(windows) => {
                let emits_updates = window.def.late == Late::Update;
                let progress = FiringProgress::new(windows, lateness, emits_updates, greatest);
                let start = greatest.map(|time| windows.next_start(time));
                (WindowKind::Fixed(FixedWindows::new(progress)), start)
            }
            Shape::Session { gap, key } => {
                let sessions = SessionWindows::new(gap, key, lateness);
                (WindowKind::Session(sessions), greatest.map(|time| time + 1))
            }
        };
        Ok(Self {
            shared: Shared {
                window: window.clone(),
                watermark: NO_WATERMARK,
                panes: Panes::new(window)?,
                emitter: Emitter::new(window),
            },
            kind,
            ignore_starts_before: start.unwrap_or(NO_WINDOW),
            too_late: 0,
            failed_rows: 0,
        })
    }

    pub(super) fn window(&self) -> &Arc<Window> {
        &self.shared.window
    }

    /// Another window reads this one: it emits final rows for that one, too.
    pub(super) fn set_downstream(&mut self) {
        self.shared.emitter.has_downstream = true;
    }

    pub(super) fn has_downstream(&self) -> bool {
        self.shared.emitter.has_downstream
    }

    /// Rows so far that came when every window they belong to was closed.
    pub(super) fn too_late(&self) -> u64 {
        self.too_late
    }

    /// Rows and windows left out because an expression had no value.
    pub(super) fn failed(&self) -> u64 {
        self.failed_rows + self.shared.emitter.failed
    }

    /// Windows that were closed early, because there were too many groups.
    pub(super) fn abandoned(&self) -> u64 {
        self.shared.emitter.abandoned
    }

    /// Groups in memory, including those of results that may still be updated.
    pub(super) fn groups(&self) -> usize {
        let retained = match &self.kind {
            WindowKind::Fixed(windows) => windows.retained.state_units(),
            WindowKind::Session(_) => 0,
        };
        self.shared.panes.groups() + retained
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let kind = match &self.kind {
            WindowKind::Fixed(windows) => windows.retained.memory_bytes(),
            WindowKind::Session(sessions) => sessions.memory_bytes(),
        };
        self.shared.panes.memory_bytes() + kind
    }

    /// Whether the watermark has something to fire or to close.
    pub(super) fn is_open(&self) -> bool {
        match &self.kind {
            WindowKind::Fixed(windows) => windows.is_open(),
            WindowKind::Session(sessions) => !sessions.is_empty(),
        }
    }

    /// Accepts rows and fires what is due.
    pub(super) fn process(
        &mut self,
        input: &WindowInput<'_>,
    ) -> Result<(RowAdmission, WindowOutput), WindowError> {
        let mut admission = RowAdmission::default();
        let mut updates = input.watermark_updates.iter().copied().peekable();
        if input.batch.num_rows() > 0 {
            let PreparedRows {
                passes,
                is_filtered,
            } = self.prepare(input.batch)?;
            let mut passed = 0;
            for (row, time) in input.times.iter().copied().enumerate() {
                let lsn = input.lsns[row] as Lsn;
                while let Some((at, watermark)) = updates.next_if(|(at, _)| *at < lsn) {
                    self.advance(watermark, at)?;
                }
                let position = if is_filtered { passed } else { row };
                passed += usize::from(passes.value(row));
                if !passes.value(row) || time < self.ignore_starts_before {
                    continue;
                }
                if self.accept_row(input.batch, row, position, time, lsn)? {
                    admission.accepted.push(row as u32);
                    self.evict(lsn)?;
                } else {
                    self.too_late += 1;
                    admission.too_late.push(row as u32);
                }
            }
        }
        for (at, watermark) in updates {
            self.advance(watermark, at)?;
        }
        Ok((admission, self.take_output()?))
    }

    /// Evaluates what the panes need of a batch. Where some row has no value, those that have one
    /// are prepared alone, and the others counted as failed.
    fn prepare(&mut self, batch: &RecordBatch) -> Result<PreparedRows, WindowError> {
        let Shared { window, panes, .. } = &mut self.shared;
        let times: ArrayRef = batch.column(window.time).clone();
        let projected = window.project(batch, &times)?;
        let (mut passes, mut failed) = window.passing_mask(batch, &projected);
        let mut is_filtered = failed > 0;
        if !is_filtered && panes.prepare(window, &projected).is_err() {
            is_filtered = true;
            (passes, failed) = window.passing_mask_by_row(batch, &projected);
        }
        if is_filtered {
            let projected = filter_record_batch(&projected, &passes)?;
            panes.prepare(window, &projected)?;
        }
        self.failed_rows += failed as u64;
        Ok(PreparedRows {
            passes,
            is_filtered,
        })
    }

    /// Accepts a row; false where every window that it belongs to is closed. `position`: which of
    /// the prepared rows it is.
    fn accept_row(
        &mut self,
        batch: &RecordBatch,
        row: usize,
        position: usize,
        time: Micros,
        lsn: Lsn,
    ) -> Result<bool, WindowError> {
        let shared = &mut self.shared;
        match &mut self.kind {
            WindowKind::Fixed(windows) => windows.accept_row(shared, position, time, lsn),
            WindowKind::Session(sessions) => {
                let mut key = Vec::new();
                canonical(batch.column(sessions.key), row, &mut key);
                sessions.accept_row(shared, position, truncate_bytes_with_hash(key), time, lsn)
            }
        }
    }

    /// Closes the oldest windows while there are too many groups. They are stored as abandoned, and
    /// are not updated any more.
    fn evict(&mut self, lsn: Lsn) -> Result<(), WindowError> {
        let max_groups = self.shared.window.def.max_groups;
        while self.groups() > max_groups {
            let shared = &mut self.shared;
            let has_evicted = match &mut self.kind {
                WindowKind::Fixed(windows) => windows.evict_oldest(shared, lsn)?,
                WindowKind::Session(sessions) => sessions.evict_oldest(shared, lsn)?,
            };
            if !has_evicted {
                break;
            }
        }
        Ok(())
    }

    /// Fires and closes what the watermark has passed.
    fn advance(&mut self, watermark: Micros, lsn: Lsn) -> Result<(), WindowError> {
        if watermark <= self.shared.watermark {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.shared.watermark, watermark);
        let shared = &mut self.shared;
        match &mut self.kind {
            WindowKind::Fixed(windows) => windows.advance(shared, before, lsn),
            WindowKind::Session(sessions) => {
                sessions.close(shared, watermark, lsn, ResultStatus::Final)
            }
        }
    }

    /// Closes everything, as at the end of all input.
    pub(super) fn close_all(&mut self, lsn: Lsn) -> Result<WindowOutput, WindowError> {
        let shared = &mut self.shared;
        match &mut self.kind {
            WindowKind::Fixed(windows) => windows.close_all(shared, lsn)?,
            WindowKind::Session(sessions) => {
                sessions.close(shared, Micros::MAX / 4, lsn, ResultStatus::Final)?;
            }
        }
        self.take_output()
    }

    /// Stores everything open as it is, because the window is no longer declared like this.
    pub(super) fn abandon(&mut self, lsn: Lsn) -> Result<Option<RecordBatch>, WindowError> {
        let (shared, status) = (&mut self.shared, ResultStatus::Abandoned);
        match &mut self.kind {
            WindowKind::Fixed(windows) => windows.fire_all(shared, lsn, status)?,
            WindowKind::Session(sessions) => {
                sessions.close(shared, Micros::MAX / 4, lsn, status)?;
            }
        }
        self.take_output().map(|output| output.stored)
    }

    fn take_output(&mut self) -> Result<WindowOutput, WindowError> {
        let shared = &mut self.shared;
        match &mut self.kind {
            WindowKind::Fixed(windows) => windows.flush(shared)?,
            // A session is stored once, when it is closed: nothing is retained for updates.
            WindowKind::Session(_) => {
                shared.emitter.flush(&mut shared.panes)?;
            }
        }
        self.failed_rows += shared.panes.end_batch()?;
        shared.emitter.take_output()
    }

    /// Rows of the windows that have not fired, as they are now; none where there are none.
    pub(super) fn open_rows(&self, lsn: Lsn) -> Result<Option<RecordBatch>, WindowError> {
        let Shared {
            window,
            panes,
            emitter,
            ..
        } = &self.shared;
        let mut open = match &self.kind {
            WindowKind::Fixed(windows) => windows.open(&self.shared, lsn)?,
            WindowKind::Session(sessions) => sessions.open(&self.shared, lsn)?,
        };
        open.retain(|f| !f.rows.is_empty());
        if open.is_empty() {
            return Ok(None);
        }
        if !window.has_order_or_limit() {
            let open: Vec<&FiredWindow> = open.iter().collect();
            return emitter.finish(panes, &open).map(Some);
        }
        let parts = open
            .iter()
            .map(|f| emitter.finish(panes, &[f]))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Some(concat_batches(&window.schema, &parts)?))
    }
}
