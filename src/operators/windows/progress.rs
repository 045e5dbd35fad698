//! How far tumbling or sliding windows have come: arithmetic on window ends, without rows.
//!
//! A window *fires* when its result is emitted first, and *closes* when it accepts no more rows.
//! Tumbling windows of 10, an allowed lateness of 5, `late` not `update`: a window waits for late
//! rows, then fires and closes at once. With `update` it fires at its end, takes late rows until
//! its lateness is over, and only then closes:
//!
//! ```text
//! watermark             9      10      14      15      20      25
//! drop    fired         -       -       -      10      10      20
//!         closed        -       -       -      10      10      20
//! update  fired         -      10      10      10      20      20
//!         closed        -       -       -      10      10      20
//! ```

use crate::event::Micros;
use crate::schema::window::assigner::{EARLIEST, WindowAssigner};

/// No window has fired or closed yet.
pub(super) const NO_WINDOW: Micros = EARLIEST;
/// No watermark yet.
pub(super) const NO_WATERMARK: Micros = Micros::MIN;

/// Slides of an open sliding window that are shown, the earliest.
const MAX_SHOWN_SLIDES: usize = 16;

/// Which windows have fired and which are closed. A window is known by its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FiringProgress {
    pub(super) assigner: WindowAssigner,
    pub(super) allowed_lateness: Micros,
    /// Late rows change windows that have fired.
    pub(super) emits_updates: bool,
    /// Windows up to this end have fired once.
    pub(super) fired_through: Micros,
    /// Windows up to this end accept no more rows.
    pub(super) closed_through: Micros,
    /// The watermark at which the next window fires, so that most watermarks need one comparison.
    pub(super) next_due: Micros,
}

impl FiringProgress {
    /// Windows that start after `greatest`, or all where it is none.
    pub(super) fn new(
        assigner: WindowAssigner,
        allowed_lateness: Micros,
        emits_updates: bool,
        greatest: Option<Micros>,
    ) -> Self {
        let through = greatest.map_or(NO_WINDOW, |time| assigner.last_end(time));
        Self {
            assigner,
            allowed_lateness,
            emits_updates,
            fired_through: through,
            closed_through: through,
            next_due: Micros::MAX,
        }
    }

    /// Whether some window of a time still accepts rows. In the table above, one at 9 is accepted
    /// at watermark 14 and too late at 15.
    pub(super) fn admits(&self, time: Micros, watermark: Micros) -> bool {
        self.assigner.last_end(time) > self.closed_at(watermark)
    }

    /// The end through which windows are closed at a watermark.
    fn closed_at(&self, watermark: Micros) -> Micros {
        self.closed_through.max(
            self.assigner
                .passed(watermark.saturating_sub(self.allowed_lateness)),
        )
    }

    /// Ends of the windows that have fired and that a row at this time changes. A sliding window
    /// also changes the slide after the row's last one, which is compared with that one, and may
    /// have to be emitted or retracted.
    ///
    /// Windows of 30 by 10, fired up to 60, none closed: a row at 15 is in those that end at 20, 30
    /// and 40, and changes these and 50.
    pub(super) fn ends_to_update(&self, time: Micros, watermark: Micros) -> Vec<Micros> {
        let windows = self.assigner;
        let first_end = windows.first_end(time);
        if !self.emits_updates || first_end > self.fired_through {
            return Vec::new();
        }
        let last_end = windows.last_end(time);
        let last = if windows.is_sliding() {
            windows.next_end(last_end)
        } else {
            last_end
        };
        let last = last.min(self.fired_through);
        let first_open = windows.next_end(windows.passed(self.closed_at(watermark)));
        let ends = std::iter::successors(Some(first_end.max(first_open)), |end| {
            Some(windows.next_end(*end))
        });
        ends.take_while(|end| *end <= last).collect()
    }

    /// Schedules the earliest window that a row at this time makes due.
    pub(super) fn schedule_row(&mut self, time: Micros) {
        let end = self.assigner.first_end(time).max(self.first_unfired_end());
        self.next_due = self.next_due.min(self.due(end));
    }

    /// Schedules the next window to fire; none is left where it is none.
    pub(super) fn schedule(&mut self, next_end: Option<Micros>) {
        self.next_due = next_end.map_or(Micros::MAX, |end| self.due(end));
    }

    fn due(&self, end: Micros) -> Micros {
        end.saturating_add(self.firing_delay())
    }

    /// How long after its end a window fires first.
    fn firing_delay(&self) -> Micros {
        if self.emits_updates {
            0
        } else {
            self.allowed_lateness
        }
    }

    /// The greatest end that fires at a watermark.
    pub(super) fn firing_limit(&self, watermark: Micros) -> Micros {
        watermark.saturating_sub(self.firing_delay())
    }

    /// The end of the first window that has not fired; without one that has, every end is after.
    fn first_unfired_end(&self) -> Micros {
        if self.fired_through == NO_WINDOW {
            NO_WINDOW
        } else {
            self.assigner.next_end(self.fired_through)
        }
    }

    /// Where the panes of windows that have not fired begin; those before stay for updates.
    pub(super) fn first_unfired_start(&self) -> Micros {
        if self.fired_through == NO_WINDOW {
            NO_WINDOW
        } else {
            self.assigner.start(self.first_unfired_end())
        }
    }

    /// The end of the earliest window that has not fired and has rows, or that follows a slide with
    /// rows. `first_pane`: the first pane from [`Self::first_unfired_start`] on.
    pub(super) fn next_window_end(
        &self,
        first_pane: Option<Micros>,
        follows_rows: bool,
    ) -> Option<Micros> {
        if follows_rows {
            return Some(self.assigner.next_end(self.fired_through));
        }
        first_pane.map(|pane| self.assigner.first_end(pane).max(self.first_unfired_end()))
    }

    /// A window has fired. Without updates it accepts nothing more.
    pub(super) fn record_fired(&mut self, end: Micros) {
        self.fired_through = end;
        if !self.emits_updates {
            self.closed_through = end;
        }
    }

    /// The watermark has passed the ends of windows without rows, too: they count as fired.
    pub(super) fn advance_fired(&mut self, watermark: Micros) {
        let passed = self.assigner.passed(self.firing_limit(watermark));
        self.fired_through = self.fired_through.max(passed);
        if !self.emits_updates {
            self.closed_through = self.fired_through;
        }
    }

    /// The lateness of some windows is over.
    pub(super) fn advance_closed(&mut self, watermark: Micros) {
        self.closed_through = self.closed_at(watermark);
    }

    /// Whether the lateness of the window with this end is over.
    pub(super) fn is_lateness_over(&self, end: Micros, watermark: Micros) -> bool {
        end.saturating_add(self.allowed_lateness) <= watermark
    }

    /// Whether a step of the watermark enters another pane.
    pub(super) fn enters_pane(&self, before: Micros, watermark: Micros) -> bool {
        before == NO_WATERMARK || self.assigner.pane(watermark) > self.assigner.pane(before)
    }

    /// The first pane that a window still needs; none where no window has fired yet. With windows
    /// of 30 by 10 that have fired up to 110, the next one is 90..120: panes before 90 can go.
    pub(super) fn first_needed_pane(&self) -> Option<Micros> {
        let done = if self.emits_updates {
            self.closed_through.min(self.fired_through)
        } else {
            self.fired_through
        };
        (done != NO_WINDOW).then(|| self.assigner.start(self.assigner.next_end(done)))
    }

    /// Ends of the open windows that a query sees, from the next one to fire on: all that have
    /// rows, or the first slides up to the one that begins with the last pane.
    pub(super) fn shown_ends(
        &self,
        next: Option<Micros>,
        last_pane: Option<Micros>,
    ) -> Vec<Micros> {
        let (Some(next), Some(last_pane)) = (next, last_pane) else {
            return Vec::new();
        };
        let windows = self.assigner;
        let (last, limit) = if windows.is_sliding() {
            (windows.next_start(last_pane), MAX_SHOWN_SLIDES)
        } else {
            (windows.last_end(last_pane), usize::MAX)
        };
        std::iter::successors(Some(next), |end| Some(windows.next_end(*end)))
            .take_while(|end| *end <= last)
            .take(limit)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tumbling(emits_updates: bool) -> FiringProgress {
        let assigner = WindowAssigner::Fixed {
            slide: 10,
            size: 10,
        };
        FiringProgress::new(assigner, 5, emits_updates, None)
    }

    fn sliding(emits_updates: bool) -> FiringProgress {
        let assigner = WindowAssigner::Fixed {
            slide: 10,
            size: 30,
        };
        FiringProgress::new(assigner, 5, emits_updates, None)
    }

    /// The table of the module's documentation.
    #[test]
    fn windows_fire_and_close_as_the_watermark_passes() {
        let none = 0;
        for (emits_updates, want) in [
            (
                false,
                [
                    (9, none, none),
                    (10, none, none),
                    (14, none, none),
                    (15, 10, 10),
                    (20, 10, 10),
                    (25, 20, 20),
                ],
            ),
            (
                true,
                [
                    (9, none, none),
                    (10, 10, none),
                    (14, 10, none),
                    (15, 10, 10),
                    (20, 20, 10),
                    (25, 20, 20),
                ],
            ),
        ] {
            let mut progress = tumbling(emits_updates);
            for (watermark, fired, closed) in want {
                progress.advance_fired(watermark);
                progress.advance_closed(watermark);
                assert_eq!(
                    (progress.fired_through, progress.closed_through),
                    (fired, closed),
                    "updates: {emits_updates}, watermark {watermark}"
                );
            }
        }
    }

    #[test]
    fn a_row_is_admitted_until_the_lateness_of_its_last_window_is_over() {
        for (progress, watermark, is_admitted) in [
            (tumbling(false), NO_WATERMARK, true),
            (tumbling(false), 14, true),
            (tumbling(false), 15, false),
            // The last window of time 9 is 0..30.
            (sliding(false), 34, true),
            (sliding(false), 35, false),
        ] {
            assert_eq!(
                progress.admits(9, watermark),
                is_admitted,
                "watermark {watermark}"
            );
        }
    }

    #[test]
    fn windows_that_start_up_to_the_greatest_time_are_left_out() {
        let assigner = WindowAssigner::Fixed {
            slide: 10,
            size: 30,
        };
        let progress = FiringProgress::new(assigner, 0, false, Some(42));
        assert_eq!(progress.fired_through, 70);
        assert_eq!(progress.first_unfired_start(), 50);
        assert!(!progress.admits(42, NO_WATERMARK) && progress.admits(50, NO_WATERMARK));
    }

    #[test]
    fn a_late_row_updates_the_fired_windows_that_are_not_closed() {
        let fired = |mut progress: FiringProgress, through| {
            progress.fired_through = through;
            progress
        };
        for (progress, time, watermark, want) in [
            (fired(tumbling(true), 20), 15, 21, vec![20]),
            (fired(tumbling(true), 20), 25, 21, vec![]),
            (fired(tumbling(false), 20), 15, 21, vec![]),
            // Windows with the row end at 20, 30 and 40; the slide after them is compared again.
            (fired(sliding(true), 60), 15, 0, vec![20, 30, 40, 50]),
            (fired(sliding(true), 30), 15, 0, vec![20, 30]),
            (fired(sliding(true), 60), 15, 35, vec![40, 50]),
        ] {
            assert_eq!(
                progress.ends_to_update(time, watermark),
                want,
                "{progress:?}, time {time}"
            );
        }
    }

    /// The example at `FixedWindows::emit_updates`.
    #[test]
    fn the_slide_after_one_that_closes_is_compared_with_it() {
        let assigner = WindowAssigner::Fixed {
            slide: 10,
            size: 30,
        };
        let mut progress = FiringProgress::new(assigner, 15, true, None);
        progress.advance_fired(44);
        progress.advance_closed(44);
        assert_eq!((progress.fired_through, progress.closed_through), (40, 20));
        assert_eq!(progress.ends_to_update(5, 44), [30, 40]);
        assert!(!progress.enters_pane(44, 45));
        assert!(progress.is_lateness_over(30, 45) && !progress.is_lateness_over(40, 54));
    }

    /// The example at `FixedWindows::advance`.
    #[test]
    fn updates_wait_for_the_next_pane_or_the_end_of_the_lateness() {
        let assigner = WindowAssigner::Fixed {
            slide: 10,
            size: 10,
        };
        let mut progress = FiringProgress::new(assigner, 15, true, None);
        progress.advance_fired(10);
        assert_eq!(progress.ends_to_update(5, 10), [10]);
        for (before, watermark, enters_pane, is_over) in [
            (10, 12, false, false),
            (12, 19, false, false),
            (19, 20, true, false),
            (24, 25, false, true),
        ] {
            assert_eq!(progress.enters_pane(before, watermark), enters_pane);
            assert_eq!(progress.is_lateness_over(10, watermark), is_over);
        }
    }

    #[test]
    fn the_next_window_has_rows_or_follows_a_slide_that_had() {
        let mut progress = sliding(false);
        assert_eq!(progress.next_window_end(None, false), None);
        assert_eq!(progress.next_window_end(Some(100), false), Some(110));
        progress.record_fired(110);
        assert_eq!(progress.closed_through, 110);
        assert_eq!(progress.first_unfired_start(), 90);
        assert_eq!(progress.next_window_end(Some(100), false), Some(120));
        assert_eq!(progress.next_window_end(Some(500), true), Some(120));
        assert_eq!(progress.next_window_end(Some(500), false), Some(510));
        assert_eq!(progress.first_needed_pane(), Some(90));
    }

    #[test]
    fn a_window_is_due_at_its_end_or_after_its_lateness() {
        for (emits_updates, due) in [(false, 25), (true, 20)] {
            let mut progress = tumbling(emits_updates);
            progress.schedule_row(12);
            progress.schedule_row(33);
            assert_eq!(progress.next_due, due);
            progress.schedule(None);
            assert_eq!(progress.next_due, Micros::MAX);
        }
    }

    #[test]
    fn open_windows_are_shown_up_to_the_last_pane() {
        assert_eq!(
            tumbling(false).shown_ends(Some(10), Some(30)),
            [10, 20, 30, 40]
        );
        assert_eq!(sliding(false).shown_ends(Some(10), Some(20)), [10, 20, 30]);
        let many = sliding(false).shown_ends(Some(10), Some(10_000));
        assert_eq!(many.len(), MAX_SHOWN_SLIDES);
        assert_eq!(tumbling(false).shown_ends(None, Some(30)), [0; 0]);
    }

    #[test]
    fn updates_keep_panes_until_their_lateness_is_over() {
        let mut progress = tumbling(true);
        assert_eq!(progress.first_needed_pane(), None);
        progress.record_fired(40);
        progress.advance_closed(26);
        assert_eq!(progress.first_needed_pane(), Some(20));
        assert!(progress.is_lateness_over(20, 25) && !progress.is_lateness_over(20, 24));
    }
}
