//! Windows: rows go into panes, the watermark closes them. A window's state is its panes
//! ([`count_aggregator`] where it only counts, [`generic_aggregator`] for every other aggregate) and, where late rows
//! amend, what it said last (`update`). `session` are session windows, `emit` makes rows of what has
//! fired.
//!
//! Everything goes row by row in the order of LSNs. A fixed window is known by its end: those up to
//! `fired_to` have been stored once, those up to `closed_to` take nothing more.

pub mod count_aggregator;
mod emit;
pub mod generic_aggregator;
mod session;
mod snapshot;
mod update;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch};
use arrow::compute::concat_batches;

use crate::event::{Lsn, Micros};
use crate::schema::window::Shape;
use crate::schema::window::assigner::{EARLIEST, WindowAssigner};
use crate::schema::{Late, WINDOW_GROUP_BYTES, Window};
use count_aggregator::{CountAggregator, GroupCounts};
use generic_aggregator::GenericAggregator;
use session::SessionWindows;
use update::RetainedResult;

/// Panes of one window.
pub enum PaneSelection<'a> {
    /// Those that start in from..to.
    Range(Micros, Micros),
    /// Those of these numbers.
    Panes(&'a [Micros]),
}

/// Rows in the order of their LSNs, and how far time has come.
pub struct WindowInput<'a> {
    pub batch: &'a RecordBatch,
    pub times: &'a [Micros],
    pub lsns: &'a [i64],
    /// Records behind which the watermark is another one, which may lie between rows and behind
    /// them.
    pub marks: &'a [(Lsn, Micros)],
}

/// No watermark yet.
const NEVER: Micros = Micros::MIN;
/// No window has fired yet.
const FIRST: Micros = EARLIEST;

/// Open windows shown of a hop, the earliest.
const SHOWN_SLIDES: usize = 16;

mod status {
    pub const OPEN: &str = "open";
    pub const FINAL: &str = "final";
    pub const UPDATED: &str = "updated";
    pub const ABANDONED: &str = "abandoned";
    pub const RETRACTED: &str = "retracted";
}

enum Panes {
    CountAggregator(Box<CountAggregator>),
    GenericAggregator(Box<GenericAggregator>),
}

/// An aggregation's rows, not yet finished.
enum Rows {
    GroupCounts(GroupCounts),
    Columns(Vec<ArrayRef>),
}

impl Rows {
    fn len(&self) -> usize {
        match self {
            Self::GroupCounts(counted) => counted.len(),
            Self::Columns(columns) => columns.first().map_or(0, |a| a.len()),
        }
    }
}

/// A window that has fired, to be finished with its neighbours.
struct FiredWindow {
    start: Micros,
    end: Micros,
    lsn: Lsn,
    status: &'static str,
    rows: Rows,
    /// Nothing changed since the slide before, which it duplicates.
    is_same: bool,
}

/// A window's state.
pub struct WindowState {
    pub window: Arc<Window>,
    mark: Micros,
    fired_to: Micros,
    closed_to: Micros,
    /// Windows that start before are not answered for.
    not_before: Micros,
    /// The next end that the watermark fires.
    next_due: Micros,
    panes: Panes,
    standing: BTreeMap<Micros, RetainedResult>,
    standing_rows: usize,
    /// Of a hop: the slide before as it was stored last, and the same by numbers where it counts.
    before: Option<RecordBatch>,
    before_counted: Option<GroupCounts>,
    sessions: SessionWindows,
    /// Another window reads this one's final rows.
    is_read: bool,
    late: u64,
    /// Rows and windows of which an expression has no value; they are left out.
    failed: u64,
    fired: Vec<FiredWindow>,
    /// Rows for NAME_versions.
    stored: Vec<RecordBatch>,
    /// Rows that say their last, for a window over this one: with the LSN at which they did.
    finals: Vec<RecordBatch>,
}

/// What a feed gave.
pub struct Output {
    /// Rows for NAME_versions.
    pub stored: Option<RecordBatch>,
    /// Final rows, for windows over this one.
    pub finals: Option<RecordBatch>,
}

/// Which rows of a feed a window took, and which it would have, had they come in time.
#[derive(Debug, Default)]
pub struct Admission {
    pub accepted: Vec<u32>,
    pub late: Vec<u32>,
}

/// As how many groups one counts whose values take so many bytes.
fn weight(bytes: usize) -> usize {
    1 + bytes / WINDOW_GROUP_BYTES
}

impl WindowState {
    /// A window that answers from its first event on, or for windows that start after `greatest`,
    /// the greatest event time so far.
    pub fn new(window: &Arc<Window>, greatest: Option<Micros>) -> Result<Self, String> {
        let panes = if window.counts_only {
            Panes::CountAggregator(Box::new(CountAggregator::new(window)))
        } else {
            Panes::GenericAggregator(Box::new(GenericAggregator::new(window)?))
        };
        let mut state = Self {
            window: window.clone(),
            mark: NEVER,
            fired_to: FIRST,
            closed_to: FIRST,
            not_before: FIRST,
            next_due: Micros::MAX,
            panes,
            standing: BTreeMap::new(),
            standing_rows: 0,
            before: None,
            before_counted: None,
            sessions: SessionWindows::default(),
            is_read: false,
            late: 0,
            failed: 0,
            fired: Vec::new(),
            stored: Vec::new(),
            finals: Vec::new(),
        };
        if let Some(greatest) = greatest {
            state.not_before = match window.shape {
                Shape::Aligned(windows) => {
                    state.fired_to = windows.last_end(greatest);
                    state.closed_to = state.fired_to;
                    windows.next_start(greatest)
                }
                Shape::Session { .. } => greatest + 1,
            };
        }
        Ok(state)
    }

    /// Another window reads this one.
    pub fn set_read(&mut self) {
        self.is_read = true;
    }

    pub fn is_read(&self) -> bool {
        self.is_read
    }

    /// Late rows so far.
    pub fn late(&self) -> u64 {
        self.late
    }

    /// Rows and windows left out because an expression had no value.
    pub fn failed(&self) -> u64 {
        self.failed
    }

    /// Groups in memory, those that were told and may be amended too.
    pub fn groups(&self) -> usize {
        let panes = match &self.panes {
            Panes::CountAggregator(panes) => panes.entries(),
            Panes::GenericAggregator(panes) => panes.entries(),
        };
        panes + self.standing_rows
    }

    pub fn memory_bytes(&self) -> usize {
        let panes = match &self.panes {
            Panes::CountAggregator(panes) => panes.memory_bytes(),
            Panes::GenericAggregator(panes) => panes.memory_bytes(),
        };
        let standing: usize = self
            .standing
            .values()
            .map(|s| s.rows.get_array_memory_size())
            .sum();
        panes + standing + self.sessions.ends.len() * 160
    }

    /// Whether the watermark has something to close.
    pub fn is_open(&self) -> bool {
        self.next_due < Micros::MAX || !self.standing.is_empty() || !self.sessions.ends.is_empty()
    }

    fn is_updating(&self) -> bool {
        self.window.def.late == Late::Update
    }

    fn lateness(&self) -> Micros {
        self.window.def.allowed_lateness.micros()
    }

    /// Takes rows in and fires what is due.
    pub fn feed(&mut self, feed: &WindowInput<'_>) -> Result<(Admission, Output), String> {
        let mut verdict = Admission::default();
        let window = self.window.clone();
        let mut marks = feed.marks.iter().peekable();
        if feed.batch.num_rows() > 0 {
            let times: ArrayRef = feed.batch.column(window.time).clone();
            let reduced = window.reduce(feed.batch, &times)?;
            let (mut passes, mut failed) = window.passing(feed.batch, &reduced);
            let prepared = match &mut self.panes {
                _ if failed > 0 => Ok(()),
                Panes::CountAggregator(panes) => panes.prepare(&window, &reduced),
                Panes::GenericAggregator(panes) => {
                    panes.prepare(reduced.clone());
                    Ok(())
                }
            };
            let is_filtered = failed > 0 || prepared.is_err();
            if prepared.is_err() {
                (passes, failed) = window.passing_one_by_one(feed.batch, &reduced);
            }
            // Where some row has no value, those that have are taken alone.
            if is_filtered {
                self.prepare_passing(&reduced, &passes)?;
            }
            self.failed += failed as u64;
            let mut passing = 0;
            for (row, time) in feed.times.iter().copied().enumerate() {
                let lsn = feed.lsns[row] as Lsn;
                while let Some((at, mark)) = marks.next_if(|(at, _)| *at < lsn) {
                    self.advance(*mark, *at)?;
                }
                let prepared = if is_filtered { passing } else { row };
                passing += usize::from(passes.value(row));
                if passes.value(row) && time >= self.not_before {
                    if self.take(row, prepared, time, lsn, feed.batch)? {
                        verdict.accepted.push(row as u32);
                        while self.groups() > window.def.max_groups && self.force(lsn)? {}
                    } else {
                        self.late += 1;
                        verdict.late.push(row as u32);
                    }
                }
            }
        }
        for (at, mark) in marks {
            self.advance(*mark, *at)?;
        }
        let output = self.output()?;
        Ok((verdict, output))
    }

    /// Closes everything, as at the end of all input.
    pub fn close_all(&mut self, lsn: Lsn) -> Result<Output, String> {
        match self.window.shape {
            Shape::Aligned(_) => {
                self.emit_all_updates(lsn)?;
                while let Some(end) = self.candidate() {
                    self.fire(end, lsn, status::FINAL)?;
                }
                if self.is_updating() {
                    self.flush()?;
                    self.emit_updates(lsn, Micros::MAX / 4, true)?;
                }
                self.closed_to = self.closed_to.max(self.fired_to);
                self.next_due = Micros::MAX;
            }
            Shape::Session { .. } => self.close_sessions(Micros::MAX / 4, lsn, status::FINAL)?,
        }
        self.output()
    }

    /// Stores everything open as it is, because the window is no longer declared like this.
    pub fn abandon(&mut self, lsn: Lsn) -> Result<Option<RecordBatch>, String> {
        match self.window.shape {
            Shape::Aligned(_) => {
                self.emit_all_updates(lsn)?;
                while let Some(end) = self.candidate() {
                    self.fire(end, lsn, status::ABANDONED)?;
                }
            }
            Shape::Session { .. } => {
                self.close_sessions(Micros::MAX / 4, lsn, status::ABANDONED)?;
            }
        }
        self.output().map(|output| output.stored)
    }

    fn prepare_passing(
        &mut self,
        reduced: &RecordBatch,
        passes: &BooleanArray,
    ) -> Result<(), String> {
        let reduced =
            arrow::compute::filter_record_batch(reduced, passes).map_err(|e| e.to_string())?;
        match &mut self.panes {
            Panes::CountAggregator(panes) => panes.prepare(&self.window, &reduced)?,
            Panes::GenericAggregator(panes) => panes.prepare(reduced),
        }
        Ok(())
    }

    fn output(&mut self) -> Result<Output, String> {
        self.flush()?;
        match &mut self.panes {
            Panes::CountAggregator(panes) => panes.end(),
            Panes::GenericAggregator(panes) => {
                panes.end()?;
                self.failed += panes.take_failed();
            }
        }
        let one = |parts: &mut Vec<RecordBatch>| {
            let parts = std::mem::take(parts);
            if parts.is_empty() {
                return Ok(None);
            }
            concat_batches(&self.window.schema, &parts)
                .map(Some)
                .map_err(|e| e.to_string())
        };
        Ok(Output {
            stored: one(&mut self.stored)?,
            finals: one(&mut self.finals)?,
        })
    }

    fn add(&mut self, row: usize, pane: Micros, lsn: Lsn) -> Result<(), String> {
        match &mut self.panes {
            Panes::CountAggregator(panes) => panes.add(row, pane),
            Panes::GenericAggregator(panes) => panes.add(row, pane, lsn)?,
        }
        Ok(())
    }

    /// Takes a row in, by its place among the prepared ones; false where every window it belongs to
    /// takes nothing more.
    fn take(
        &mut self,
        row: usize,
        prepared: usize,
        time: Micros,
        lsn: Lsn,
        batch: &RecordBatch,
    ) -> Result<bool, String> {
        let windows = match self.window.shape {
            Shape::Aligned(windows) => windows,
            Shape::Session { gap, key } => {
                return self.take_into_session((row, prepared), time, lsn, gap, batch.column(key));
            }
        };
        let last_end = windows.last_end(time);
        let closed_to = self
            .closed_to
            .max(windows.passed(self.mark.saturating_sub(self.lateness())));
        if last_end <= closed_to {
            return Ok(false);
        }
        self.add(prepared, windows.pane(time), lsn)?;
        let first_end = windows.first_end(time);
        if self.is_updating() && first_end <= self.fired_to {
            // It changes windows that have fired already.
            let mut end = first_end.max(windows.next_end(windows.passed(closed_to)));
            // A slide without the row says so behind one that has it.
            let last = if windows.is_sliding() {
                windows.next_end(last_end)
            } else {
                last_end
            };
            while end <= last.min(self.fired_to) {
                let empty = || RetainedResult {
                    rows: RecordBatch::new_empty(self.window.schema.clone()),
                    version: 0,
                    is_changed: true,
                    was_stored: false,
                };
                match self.standing.get_mut(&end) {
                    Some(standing) => standing.is_changed = true,
                    None => self.stand(end, empty()),
                }
                end = windows.next_end(end);
            }
        }
        self.next_due = self.next_due.min(
            first_end
                .max(self.next_end(windows))
                .saturating_add(self.wait()),
        );
        Ok(true)
    }

    fn stand(&mut self, end: Micros, standing: RetainedResult) {
        self.standing_rows += standing.weight();
        self.standing_rows -= self
            .standing
            .insert(end, standing)
            .as_ref()
            .map_or(0, RetainedResult::weight);
    }

    /// How long after its end a window fires first.
    fn wait(&self) -> Micros {
        if self.is_updating() {
            0
        } else {
            self.lateness()
        }
    }

    fn next_end(&self, windows: WindowAssigner) -> Micros {
        if self.fired_to == FIRST {
            FIRST
        } else {
            windows.next_end(self.fired_to)
        }
    }

    /// The earliest window that has not fired and has rows, or follows one that had.
    fn candidate(&self) -> Option<Micros> {
        let Shape::Aligned(windows) = self.window.shape else {
            return None;
        };
        let after_full = self.before.as_ref().is_some_and(|b| b.num_rows() > 0)
            || self.fired.last().is_some_and(|f| f.rows.len() > 0) && windows.is_sliding();
        if after_full {
            return Some(windows.next_end(self.fired_to));
        }
        // The first pane of a window that has not fired; those before it stay for amendments.
        let from = if self.fired_to == FIRST {
            FIRST
        } else {
            windows.start(windows.next_end(self.fired_to))
        };
        let first = match &self.panes {
            Panes::CountAggregator(panes) => panes.pane_from(from),
            Panes::GenericAggregator(panes) => panes.pane_from(from),
        };
        first.map(|first| windows.first_end(first).max(self.next_end(windows)))
    }

    fn advance(&mut self, mark: Micros, lsn: Lsn) -> Result<(), String> {
        if mark <= self.mark {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.mark, mark);
        let Shape::Aligned(windows) = self.window.shape else {
            let next = self.sessions.ends.first().map(|(end, _)| *end);
            return match next {
                Some(end) if self.is_session_over(end, mark) => {
                    self.close_sessions(mark, lsn, status::FINAL)
                }
                _ => Ok(()),
            };
        };
        let crosses = before == NEVER || windows.pane(mark) > windows.pane(before);
        if self.is_updating() && self.is_update_due(mark, crosses) {
            // Before others fire: a slide is compared with the one before it as that is now.
            self.flush()?;
            self.emit_updates(lsn, mark, crosses)?;
            self.next_due = self
                .candidate()
                .map_or(Micros::MAX, |end| end.saturating_add(self.wait()));
        }
        if mark >= self.next_due {
            let limit = mark.saturating_sub(self.wait());
            while let Some(end) = self.candidate().filter(|end| *end <= limit) {
                self.fire(end, lsn, status::FINAL)?;
            }
            self.next_due = self
                .candidate()
                .map_or(Micros::MAX, |end| end.saturating_add(self.wait()));
        }
        // Also where there was no row.
        self.fired_to = self
            .fired_to
            .max(windows.passed(mark.saturating_sub(self.wait())));
        if !self.is_updating() {
            self.closed_to = self.fired_to;
            return Ok(());
        }
        if self.is_update_due(mark, crosses) {
            self.flush()?;
            self.emit_updates(lsn, mark, crosses)?;
            self.closed_to = self
                .closed_to
                .max(windows.passed(mark.saturating_sub(self.lateness())));
            self.drop_panes(windows);
        }
        Ok(())
    }

    /// Whether a window may have changed, or its lateness is over.
    fn is_update_due(&self, mark: Micros, crosses: bool) -> bool {
        let first = self
            .standing
            .keys()
            .next()
            .copied()
            .into_iter()
            .chain(self.fired.first().map(|f| f.end))
            .min();
        crosses || first.is_some_and(|end| end.saturating_add(self.lateness()) <= mark)
    }

    /// Fires again what late rows have changed.
    fn emit_all_updates(&mut self, lsn: Lsn) -> Result<(), String> {
        if !self.is_updating() {
            return Ok(());
        }
        self.flush()?;
        self.emit_updates(lsn, self.mark, true)
    }

    /// Panes that no window needs any more.
    fn drop_panes(&mut self, windows: WindowAssigner) {
        let open = if self.is_updating() {
            self.closed_to.min(self.fired_to)
        } else {
            self.fired_to
        };
        if open == FIRST {
            return;
        }
        let needed = windows.start(windows.next_end(open));
        match &mut self.panes {
            Panes::CountAggregator(panes) => panes.drop_before(needed),
            Panes::GenericAggregator(panes) => panes.drop_before(needed),
        }
    }

    fn fire(&mut self, end: Micros, lsn: Lsn, status: &'static str) -> Result<(), String> {
        let Shape::Aligned(windows) = self.window.shape else {
            return Ok(());
        };
        let (start, slides) = (windows.start(end), windows.is_sliding());
        let which = PaneSelection::Range(start, end);
        let (rows, mut is_same) = match &mut self.panes {
            Panes::CountAggregator(panes) => {
                let rows = panes.rows(&which, slides);
                let is_same = slides
                    && self
                        .before_counted
                        .as_ref()
                        .is_some_and(|before| *before == rows);
                if slides && !is_same {
                    panes.hold(&rows);
                    if let Some(before) = self.before_counted.replace(rows.clone()) {
                        panes.release(&before);
                    }
                }
                (Rows::GroupCounts(rows), is_same)
            }
            Panes::GenericAggregator(panes) => {
                (Rows::Columns(panes.rows(&which, start, end)?), false)
            }
        };
        is_same &= !self.is_read && !self.is_updating();
        self.fired_to = end;
        if rows.len() > 0 || slides {
            self.fired.push(FiredWindow {
                start,
                end,
                lsn,
                status,
                rows,
                is_same,
            });
        }
        // An empty slide behind a full one ends the row of them.
        if slides && self.fired.last().is_some_and(|f| f.rows.len() == 0) {
            self.flush()?;
        }
        if !self.is_updating() {
            self.closed_to = end;
            self.drop_panes(windows);
        }
        Ok(())
    }

    /// The oldest window closes at once, because there are too many groups; false where nothing is
    /// left to close.
    fn force(&mut self, lsn: Lsn) -> Result<bool, String> {
        let before = (self.groups(), self.fired_to, self.closed_to);
        let Shape::Aligned(windows) = self.window.shape else {
            let Some((end, _)) = self.sessions.ends.first().cloned() else {
                return Ok(false);
            };
            let Shape::Session { gap, .. } = self.window.shape else {
                return Ok(false);
            };
            let over = end
                .saturating_add(gap)
                .saturating_add(self.lateness())
                .saturating_add(1);
            return self
                .close_sessions(over, lsn, status::ABANDONED)
                .map(|()| true);
        };
        match self.candidate() {
            Some(end) if !self.is_updating() || self.standing.is_empty() => {
                self.fire(end, lsn, status::ABANDONED)?;
            }
            _ => {}
        }
        self.flush()?;
        if self.is_updating() {
            let first = self
                .standing
                .keys()
                .next()
                .copied()
                .unwrap_or(self.fired_to);
            self.emit_updates(lsn, first.saturating_add(self.lateness()), false)?;
            self.closed_to = self.closed_to.max(first);
            self.drop_panes(windows);
        }
        Ok(before != (self.groups(), self.fired_to, self.closed_to))
    }

    /// Rows of the windows that have not fired, as they are now.
    pub fn open_rows(&self, lsn: Lsn) -> Result<Option<RecordBatch>, String> {
        // What waits becomes states in a copy, once for all windows.
        let states = match &self.panes {
            Panes::CountAggregator(_) => None,
            Panes::GenericAggregator(panes) => Some(panes.flushed()?),
        };
        let look =
            |which: PaneSelection<'_>, start: Micros, end: Micros| -> Result<FiredWindow, String> {
                let rows = match (&self.panes, &states) {
                    (Panes::GenericAggregator(_), Some(states)) => {
                        Rows::Columns(states.close(&which, start, end)?)
                    }
                    (Panes::CountAggregator(panes), _) => Rows::GroupCounts(panes.look(&which)),
                    (Panes::GenericAggregator(_), None) => {
                        return Err("the states were not copied".into());
                    }
                };
                Ok(FiredWindow {
                    start,
                    end,
                    lsn,
                    status: status::OPEN,
                    rows,
                    is_same: false,
                })
            };
        let mut open = Vec::new();
        match self.window.shape {
            Shape::Aligned(windows) => {
                let last = match &self.panes {
                    Panes::CountAggregator(panes) => panes.last_pane(),
                    Panes::GenericAggregator(panes) => panes.last_pane(),
                };
                let mut next = self.candidate();
                while let (Some(end), Some(last)) = (next, last) {
                    // Of a sliding window, the slides that end with what has come.
                    let is_shown = if windows.is_sliding() {
                        end <= windows.next_start(last) && open.len() < SHOWN_SLIDES
                    } else {
                        end <= windows.last_end(last)
                    };
                    if !is_shown {
                        break;
                    }
                    let start = windows.start(end);
                    open.push(look(PaneSelection::Range(start, end), start, end)?);
                    next = Some(windows.next_end(end));
                }
            }
            Shape::Session { gap, .. } => {
                for session in self.sessions.by_key.values().flatten() {
                    open.push(look(
                        PaneSelection::Panes(&session.panes),
                        session.start,
                        session.end + gap,
                    )?);
                }
            }
        }
        open.retain(|f| f.rows.len() > 0);
        if open.is_empty() {
            return Ok(None);
        }
        if !self.window.is_one_by_one() {
            return self.finish(&open.iter().collect::<Vec<_>>()).map(Some);
        }
        let parts = open
            .iter()
            .map(|f| self.finish(&[f]))
            .collect::<Result<Vec<_>, _>>()?;
        concat_batches(&self.window.schema, &parts)
            .map(Some)
            .map_err(|e| e.to_string())
    }
}
