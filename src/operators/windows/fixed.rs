//! Tumbling and sliding windows: fires them as the watermark passes, evicts them where there are
//! too many groups. [`FiringProgress`] decides when; [`super::emit`] and [`super::update`] make the
//! rows.

use super::emit::{FiredWindow, ResultStatus};
use super::panes::PaneSelection;
use super::progress::FiringProgress;
use super::update::{RetainedResult, RetainedResults};
use super::{Shared, WindowError};
use crate::event::{Lsn, Micros};

/// State of a window whose ends do not depend on the events.
pub(super) struct FixedWindows {
    pub(super) progress: FiringProgress,
    /// What late rows may still update; empty without updates.
    pub(super) retained: RetainedResults,
}

impl FixedWindows {
    pub(super) fn new(progress: FiringProgress) -> Self {
        Self {
            progress,
            retained: RetainedResults::default(),
        }
    }

    /// Whether the watermark has something to fire or to close.
    pub(super) fn is_open(&self) -> bool {
        self.progress.next_due < Micros::MAX || !self.retained.is_empty()
    }

    /// Accepts a row, by its position in the prepared batch; false where every window of its time
    /// is closed.
    pub(super) fn accept_row(
        &mut self,
        shared: &mut Shared,
        position: usize,
        time: Micros,
        lsn: Lsn,
    ) -> Result<bool, WindowError> {
        if !self.progress.admits(time, shared.watermark) {
            return Ok(false);
        }
        let pane = self.progress.assigner.pane(time);
        shared.panes.add(position, pane, lsn)?;
        for end in self.progress.ends_to_update(time, shared.watermark) {
            self.retained.mark_changed(end, &shared.window.schema);
        }
        self.progress.schedule_row(time);
        Ok(true)
    }

    /// Moves from a watermark to the next one.
    ///
    /// Changed windows are emitted again where the watermark enters another pane, so that many late
    /// rows make one update, and at the latest when their lateness is over. Tumbling windows of 10,
    /// lateness 15, `late = "update"`:
    ///
    /// ```text
    /// watermark 9 → 10    0..10 fires: version 1
    /// two late rows at 5  0..10 is marked as changed; nothing is emitted
    /// 12 → 19             nothing: still in the pane 10..20
    /// 19 → 20             another pane: 0..10 is emitted as version 2; 10..20 fires
    /// late row at 6       0..10 is marked again
    /// 24 → 25             25 = 10 + 15, its lateness is over: version 3, and it closes
    /// ```
    ///
    /// Updates are emitted twice: before windows fire, because a slide is compared with the one
    /// before it as that is now; and after, for windows that fire and whose lateness is over at
    /// once.
    pub(super) fn advance(
        &mut self,
        shared: &mut Shared,
        before: Micros,
        lsn: Lsn,
    ) -> Result<(), WindowError> {
        let watermark = shared.watermark;
        let enters_pane = self.progress.enters_pane(before, watermark);
        let emits_updates = self.progress.emits_updates;
        if emits_updates && (enters_pane || self.has_lateness_over(shared, watermark)) {
            self.flush(shared)?;
            self.emit_updates(shared, lsn, watermark, enters_pane)?;
            self.progress.schedule(self.next_window_end(shared));
        }
        if watermark >= self.progress.next_due {
            let limit = self.progress.firing_limit(watermark);
            while let Some(end) = self.next_window_end(shared).filter(|end| *end <= limit) {
                self.fire(shared, end, lsn, ResultStatus::Final)?;
            }
            self.progress.schedule(self.next_window_end(shared));
        }
        self.progress.advance_fired(watermark);
        if emits_updates && (enters_pane || self.has_lateness_over(shared, watermark)) {
            self.flush(shared)?;
            self.emit_updates(shared, lsn, watermark, enters_pane)?;
            self.progress.advance_closed(watermark);
            self.drop_panes(shared);
        }
        Ok(())
    }

    /// Whether the lateness of the first window that may still change is over.
    fn has_lateness_over(&self, shared: &Shared, watermark: Micros) -> bool {
        let first = self.retained.first_end().into_iter();
        let first = first.chain(shared.emitter.first_end()).min();
        first.is_some_and(|end| self.progress.is_lateness_over(end, watermark))
    }

    /// Fires everything that is open, as at the end of all input.
    pub(super) fn close_all(&mut self, shared: &mut Shared, lsn: Lsn) -> Result<(), WindowError> {
        self.fire_all(shared, lsn, ResultStatus::Final)?;
        if self.progress.emits_updates {
            self.flush(shared)?;
            self.emit_updates(shared, lsn, Micros::MAX / 4, true)?;
        }
        let FiringProgress {
            fired_through,
            closed_through,
            ..
        } = self.progress;
        self.progress.closed_through = closed_through.max(fired_through);
        self.progress.next_due = Micros::MAX;
        Ok(())
    }

    /// Emits pending updates and fires every open window, before its time.
    pub(super) fn fire_all(
        &mut self,
        shared: &mut Shared,
        lsn: Lsn,
        status: ResultStatus,
    ) -> Result<(), WindowError> {
        if self.progress.emits_updates {
            self.flush(shared)?;
            self.emit_updates(shared, lsn, shared.watermark, true)?;
        }
        while let Some(end) = self.next_window_end(shared) {
            self.fire(shared, end, lsn, status)?;
        }
        Ok(())
    }

    /// Makes rows of what has fired.
    pub(super) fn flush(&mut self, shared: &mut Shared) -> Result<(), WindowError> {
        for (end, result) in shared.emitter.flush(&mut shared.panes)? {
            self.retained.insert(end, result);
        }
        Ok(())
    }

    /// The earliest window that has not fired and has rows, or follows a slide that had.
    pub(super) fn next_window_end(&self, shared: &Shared) -> Option<Micros> {
        let first_pane = || shared.panes.first_from(self.progress.first_unfired_start());
        let follows_rows = shared.emitter.follows_rows();
        let first_pane = if follows_rows { None } else { first_pane() };
        self.progress.next_window_end(first_pane, follows_rows)
    }

    fn fire(
        &mut self,
        shared: &mut Shared,
        end: Micros,
        lsn: Lsn,
        status: ResultStatus,
    ) -> Result<(), WindowError> {
        let start = self.progress.assigner.start(end);
        let slides = shared.emitter.slides;
        let (rows, is_same) = if slides {
            shared.panes.slide(start, end)?
        } else {
            let selection = PaneSelection::Range(start, end);
            (shared.panes.rows(selection, start, end)?, false)
        };
        self.progress.record_fired(end);
        if slides || !rows.is_empty() {
            shared.emitter.push(FiredWindow {
                start,
                end,
                lsn,
                status,
                rows,
                // A window that reads this one reads every slide, and each may be updated.
                is_same: is_same && !shared.emitter.has_downstream && !self.progress.emits_updates,
            });
        }
        // An empty slide ends a run of slides with rows.
        if slides && shared.emitter.ends_with_empty() {
            self.flush(shared)?;
        }
        if !self.progress.emits_updates {
            self.drop_panes(shared);
        }
        Ok(())
    }

    /// Closes the oldest window at once, because there are too many groups; false where nothing is
    /// left to close.
    ///
    /// With updates, results that are retained go first: their windows have fired, so that closing
    /// one early costs later updates only. Without, or where none is retained, the next window
    /// fires as abandoned before its time.
    pub(super) fn evict_oldest(
        &mut self,
        shared: &mut Shared,
        lsn: Lsn,
    ) -> Result<bool, WindowError> {
        let before = self.size(shared);
        let emits_updates = self.progress.emits_updates;
        if (!emits_updates || self.retained.is_empty())
            && let Some(end) = self.next_window_end(shared)
        {
            self.fire(shared, end, lsn, ResultStatus::Abandoned)?;
        }
        self.flush(shared)?;
        if emits_updates {
            let first = self.retained.first_end();
            let first = first.unwrap_or(self.progress.fired_through);
            let lateness_end = first.saturating_add(self.progress.allowed_lateness);
            self.emit_updates(shared, lsn, lateness_end, false)?;
            self.progress.closed_through = self.progress.closed_through.max(first);
            self.drop_panes(shared);
        }
        Ok(before != self.size(shared))
    }

    /// What an eviction must change, so that the next one finds another window.
    fn size(&self, shared: &Shared) -> (usize, Micros, Micros) {
        (
            shared.panes.groups() + self.retained.state_units(),
            self.progress.fired_through,
            self.progress.closed_through,
        )
    }

    /// Drops the panes that no window needs any more.
    fn drop_panes(&self, shared: &mut Shared) {
        if let Some(first) = self.progress.first_needed_pane() {
            shared.panes.drop_before(first);
        }
    }

    /// The open windows that a query sees, without changing anything.
    pub(super) fn open(&self, shared: &Shared, lsn: Lsn) -> Result<Vec<FiredWindow>, WindowError> {
        let reader = shared.panes.reader()?;
        let next = self.next_window_end(shared);
        let ends = self.progress.shown_ends(next, shared.panes.last());
        ends.into_iter()
            .map(|end| {
                let start = self.progress.assigner.start(end);
                Ok(FiredWindow {
                    start,
                    end,
                    lsn,
                    status: ResultStatus::Open,
                    rows: reader.rows(PaneSelection::Range(start, end), start, end)?,
                    is_same: false,
                })
            })
            .collect()
    }

    /// Emits again what late rows have changed: `all` of it, or only windows whose lateness is over
    /// at `watermark`, which become final.
    ///
    /// In ascending order of ends, so that a slide is compared with the one before it as that is
    /// now. A window whose lateness is over leaves the retained results; the slide after it, if
    /// changed, is compared with it now or never:
    ///
    /// ```text
    /// windows of 30 by 10, lateness 15; a late row at 5, then the watermark moves from 44 to 45
    /// -10..20   closed at 35        does not accept the row any more
    /// 0..30     changed             emitted again; closed at 45, leaves the retained results
    /// 10..40    marked as changed   compared with 0..30, which it follows; retained until 55
    /// ```
    ///
    /// 10..40 lacks the row, and is marked all the same: it may have equalled 0..30 before, so that
    /// it was not stored, and differs from it now.
    fn emit_updates(
        &mut self,
        shared: &mut Shared,
        lsn: Lsn,
        watermark: Micros,
        all: bool,
    ) -> Result<(), WindowError> {
        let windows = self.progress.assigner;
        // The end and the result of the window before, if it was closed just now.
        let mut just_closed: Option<(Micros, RetainedResult)> = None;
        for end in self.retained.ends() {
            let is_over = self.progress.is_lateness_over(end, watermark);
            let follows_closed = just_closed
                .as_ref()
                .is_some_and(|(closed, _)| windows.next_end(*closed) == end);
            if self.retained.is_changed(end) && (all || is_over || follows_closed) {
                let closed = just_closed.take().filter(|_| follows_closed);
                self.emit_update(shared, end, lsn, closed.map(|(_, result)| result))?;
            }
            just_closed = None;
            if !is_over {
                continue;
            }
            let Some(last) = self.retained.remove(end) else {
                continue;
            };
            if shared.emitter.has_downstream && last.rows.num_rows() > 0 {
                shared.emitter.finalize_retained(&last, lsn)?;
            }
            just_closed = Some((end, last));
        }
        Ok(())
    }

    /// Evaluates a window once more and emits what differs. `just_closed`: the slide before, if it
    /// has just left the retained results.
    fn emit_update(
        &mut self,
        shared: &mut Shared,
        end: Micros,
        lsn: Lsn,
        just_closed: Option<RetainedResult>,
    ) -> Result<(), WindowError> {
        let windows = self.progress.assigner;
        let start = windows.start(end);
        let rows = shared
            .panes
            .rows(PaneSelection::Range(start, end), start, end)?;
        let fired = FiredWindow {
            start,
            end,
            lsn,
            status: ResultStatus::Updated,
            rows,
            is_same: false,
        };
        let now = shared.emitter.finish_or_skip(&shared.panes, &fired);
        let Some(before) = self.retained.get(end).cloned() else {
            return Ok(());
        };
        let slide_before = self.retained.get(windows.previous_end(end)).cloned();
        let slide_before = slide_before.or(just_closed);
        let revision = shared.emitter.revise(
            &fired,
            &before,
            now,
            slide_before.as_ref().map(|slide| &slide.rows),
        )?;
        if shared.emitter.slides {
            if revision.differs {
                self.retained.mark_retained_changed(windows.next_end(end));
            }
            if end == self.progress.fired_through {
                shared.emitter.previous = Some(revision.result.rows.clone());
            }
        }
        self.retained.insert(end, revision.result);
        Ok(())
    }
}
