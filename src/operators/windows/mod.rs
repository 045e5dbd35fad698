//! Windows: rows go into panes, the watermark closes them. A window's state is its panes ([`counting`] where it only counts,
//! [`partial`] for every other aggregate) and, where late rows amend, what it said last.
//!
//! Everything goes row by row in the order of LSNs. A fixed window is known by its end: those up to `fired_to` have been stored once,
//! those up to `closed_to` take nothing more.

pub mod counting;
pub mod partial;
mod saved;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::row::{RowConverter, SortField};

use crate::event::{Lsn, Micros};
use crate::schema::window::{Shape, WINDOW_COLUMNS, gcd};
use crate::schema::{Late, Window};
use counting::{Counted, Counting};
use partial::Partial;

/// Panes of one window.
pub enum Which<'a> {
    /// Those that start in from..to.
    Range(Micros, Micros),
    /// Those of these numbers.
    Panes(&'a [Micros]),
}

/// Rows in the order of their LSNs, and how far time has come.
pub struct Feed<'a> {
    pub batch: &'a RecordBatch,
    pub times: &'a [Micros],
    pub lsns: &'a [i64],
    /// Records behind which the watermark is another one, which may lie between rows and behind them.
    pub marks: &'a [(Lsn, Micros)],
}

/// No watermark yet.
const NEVER: Micros = Micros::MIN;
/// Times so far apart that sums of them do not overflow.
const FIRST: Micros = Micros::MIN / 4;

/// Open windows shown of a hop, the earliest.
const SHOWN_SLIDES: usize = 16;

mod status {
    pub const OPEN: &str = "open";
    pub const FINAL: &str = "final";
    pub const AMENDED: &str = "amended";
    pub const ABANDONED: &str = "abandoned";
    pub const GONE: &str = "gone";
}

enum Panes {
    Counting(Box<Counting>),
    Partial(Box<Partial>),
}

/// An aggregation's rows, not yet finished.
enum Rows {
    Counted(Counted),
    Columns(Vec<ArrayRef>),
}

impl Rows {
    fn len(&self) -> usize {
        match self {
            Self::Counted(counted) => counted.len(),
            Self::Columns(columns) => columns.first().map_or(0, |a| a.len()),
        }
    }
}

/// A window that has fired, to be finished with its neighbours.
struct Fired {
    start: Micros,
    end: Micros,
    lsn: Lsn,
    status: &'static str,
    rows: Rows,
    /// Nothing changed since the slide before, which it repeats.
    is_same: bool,
}

/// What a window said last, while late rows may change it.
#[derive(Debug, Clone)]
struct Standing {
    /// The table's own columns.
    rows: RecordBatch,
    version: i64,
    is_changed: bool,
    was_stored: bool,
}

/// A session of one key that is not over.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
struct OpenSession {
    start: Micros,
    end: Micros,
    panes: Vec<Micros>,
}

#[derive(Debug, Clone, Default)]
struct Sessions {
    by_key: BTreeMap<Vec<u8>, Vec<OpenSession>>,
    /// (end, key) of every open one.
    ends: BTreeSet<(Micros, Vec<u8>)>,
    next: Micros,
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
    standing: BTreeMap<Micros, Standing>,
    /// Of a hop: the slide before as it was stored last, and the same by numbers where it counts.
    before: Option<RecordBatch>,
    before_counted: Option<Counted>,
    sessions: Sessions,
    /// Another window reads this one's final rows.
    is_read: bool,
    late: u64,
    /// Rows and windows of which an expression has no value; they are left out.
    failed: u64,
    fired: Vec<Fired>,
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
pub struct Verdict {
    pub accepted: Vec<u32>,
    pub late: Vec<u32>,
}

fn floor(time: Micros, width: Micros) -> Micros {
    time.div_euclid(width) * width
}

/// The greatest end of a window up to a time.
fn passed(limit: Micros, slide: Micros, size: Micros) -> Micros {
    floor(limit.saturating_sub(size).max(FIRST), slide) + size
}

impl WindowState {
    /// A window that answers from its first event on, or for windows that start after `greatest`, the greatest event time so far.
    pub fn new(window: &Arc<Window>, greatest: Option<Micros>) -> Result<Self, String> {
        let panes = if window.counts_only {
            Panes::Counting(Box::new(Counting::new(window)))
        } else {
            Panes::Partial(Box::new(Partial::new(window)?))
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
            before: None,
            before_counted: None,
            sessions: Sessions::default(),
            is_read: false,
            late: 0,
            failed: 0,
            fired: Vec::new(),
            stored: Vec::new(),
            finals: Vec::new(),
        };
        if let Some(greatest) = greatest {
            state.not_before = match window.shape {
                Shape::Fixed { slide, size } => {
                    let first = floor(greatest, slide) + slide;
                    state.fired_to = first + size - slide;
                    state.closed_to = state.fired_to;
                    first
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

    /// Groups in memory.
    pub fn groups(&self) -> usize {
        match &self.panes {
            Panes::Counting(panes) => panes.entries(),
            Panes::Partial(panes) => panes.entries(),
        }
    }

    pub fn memory_bytes(&self) -> usize {
        let panes = match &self.panes {
            Panes::Counting(panes) => panes.memory_bytes(),
            Panes::Partial(panes) => panes.memory_bytes(),
        };
        let standing: usize = self.standing.values().map(|s| s.rows.get_array_memory_size()).sum();
        panes + standing + self.sessions.ends.len() * 160
    }

    /// Whether the watermark has something to close.
    pub fn is_open(&self) -> bool {
        self.next_due < Micros::MAX || !self.standing.is_empty() || !self.sessions.ends.is_empty()
    }

    fn is_amending(&self) -> bool {
        self.window.def.late == Late::Amend
    }

    fn lateness(&self) -> Micros {
        self.window.def.allowed_lateness.micros()
    }

    /// Takes rows in and fires what is due.
    pub fn feed(&mut self, feed: &Feed<'_>) -> Result<(Verdict, Output), String> {
        let mut verdict = Verdict::default();
        let window = self.window.clone();
        let mut marks = feed.marks.iter().peekable();
        if feed.batch.num_rows() > 0 {
            let times: ArrayRef = feed.batch.column(window.time).clone();
            let reduced = window.reduce(feed.batch, &times)?;
            let (mut passes, mut failed) = window.passing(feed.batch, &reduced);
            let prepared = match &mut self.panes {
                _ if failed > 0 => Ok(()),
                Panes::Counting(panes) => panes.prepare(&window, &reduced),
                Panes::Partial(panes) => {
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
                        while self.groups() > window.def.max_groups {
                            self.force(lsn)?;
                        }
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
            Shape::Fixed { .. } => {
                while let Some(end) = self.candidate() {
                    self.fire(end, lsn, status::FINAL)?;
                }
                if self.is_amending() {
                    self.flush()?;
                    self.amend(lsn, Micros::MAX / 4, true)?;
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
            Shape::Fixed { .. } => {
                while let Some(end) = self.candidate() {
                    self.fire(end, lsn, status::ABANDONED)?;
                }
            }
            Shape::Session { .. } => self.close_sessions(Micros::MAX / 4, lsn, status::ABANDONED)?,
        }
        self.output().map(|output| output.stored)
    }

    fn prepare_passing(&mut self, reduced: &RecordBatch, passes: &BooleanArray) -> Result<(), String> {
        let reduced = arrow::compute::filter_record_batch(reduced, passes).map_err(|e| e.to_string())?;
        match &mut self.panes {
            Panes::Counting(panes) => panes.prepare(&self.window, &reduced)?,
            Panes::Partial(panes) => panes.prepare(reduced),
        }
        Ok(())
    }

    fn output(&mut self) -> Result<Output, String> {
        self.flush()?;
        match &mut self.panes {
            Panes::Counting(panes) => panes.end(),
            Panes::Partial(panes) => {
                panes.end()?;
                self.failed += panes.take_failed();
            }
        }
        let one = |parts: &mut Vec<RecordBatch>| {
            let parts = std::mem::take(parts);
            if parts.is_empty() {
                return Ok(None);
            }
            concat_batches(&self.window.schema, &parts).map(Some).map_err(|e| e.to_string())
        };
        Ok(Output { stored: one(&mut self.stored)?, finals: one(&mut self.finals)? })
    }

    fn add(&mut self, row: usize, pane: Micros, lsn: Lsn) -> Result<(), String> {
        match &mut self.panes {
            Panes::Counting(panes) => panes.add(row, pane),
            Panes::Partial(panes) => panes.add(row, pane, lsn)?,
        }
        Ok(())
    }

    /// Takes a row in, by its place among the prepared ones; false where every window it belongs to takes nothing more.
    fn take(
        &mut self,
        row: usize,
        prepared: usize,
        time: Micros,
        lsn: Lsn,
        batch: &RecordBatch,
    ) -> Result<bool, String> {
        let (slide, size) = match self.window.shape {
            Shape::Fixed { slide, size } => (slide, size),
            Shape::Session { gap, key } => {
                return self.take_into_session((row, prepared), time, lsn, gap, batch.column(key));
            }
        };
        let last_end = floor(time, slide) + size;
        let closed_to = self.closed_to.max(passed(self.mark.saturating_sub(self.lateness()), slide, size));
        if last_end <= closed_to {
            return Ok(false);
        }
        self.add(prepared, floor(time, gcd(slide, size)), lsn)?;
        let first_end = floor(time - size, slide) + slide + size;
        if self.is_amending() && first_end <= self.fired_to {
            // It changes windows that have fired already.
            let mut end = first_end.max(closed_to + slide - (closed_to - first_end).rem_euclid(slide));
            while end <= last_end.min(self.fired_to) {
                let empty = || Standing {
                    rows: RecordBatch::new_empty(self.window.schema.clone()),
                    version: 0,
                    is_changed: true,
                    was_stored: false,
                };
                self.standing.entry(end).or_insert_with(empty).is_changed = true;
                end += slide;
            }
        }
        self.next_due = self.next_due.min(first_end.max(self.next_end(slide)).saturating_add(self.wait()));
        Ok(true)
    }

    /// How long after its end a window fires first.
    fn wait(&self) -> Micros {
        if self.is_amending() { 0 } else { self.lateness() }
    }

    fn next_end(&self, slide: Micros) -> Micros {
        if self.fired_to == FIRST { FIRST } else { self.fired_to + slide }
    }

    /// The earliest window that has not fired and has rows, or follows one that had.
    fn candidate(&self) -> Option<Micros> {
        let Shape::Fixed { slide, size } = self.window.shape else { return None };
        let after_full = self.before.as_ref().is_some_and(|b| b.num_rows() > 0)
            || self.fired.last().is_some_and(|f| f.rows.len() > 0) && slide < size;
        if after_full {
            return Some(self.fired_to + slide);
        }
        // The first pane of a window that has not fired; those before it stay for amendments.
        let from = if self.fired_to == FIRST { FIRST } else { self.fired_to + slide - size };
        let first = match &self.panes {
            Panes::Counting(panes) => panes.pane_from(from),
            Panes::Partial(panes) => panes.pane_from(from),
        };
        first.map(|first| (floor(first - size, slide) + slide + size).max(self.next_end(slide)))
    }

    fn advance(&mut self, mark: Micros, lsn: Lsn) -> Result<(), String> {
        if mark <= self.mark {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.mark, mark);
        let Shape::Fixed { slide, size } = self.window.shape else {
            let next = self.sessions.ends.first().map(|(end, _)| *end);
            return match next {
                Some(end) if self.is_session_over(end, mark) => self.close_sessions(mark, lsn, status::FINAL),
                _ => Ok(()),
            };
        };
        if mark >= self.next_due {
            let limit = mark.saturating_sub(self.wait());
            while let Some(end) = self.candidate().filter(|end| *end <= limit) {
                self.fire(end, lsn, status::FINAL)?;
            }
            self.next_due = self.candidate().map_or(Micros::MAX, |end| end.saturating_add(self.wait()));
        }
        // Also where there was no row.
        self.fired_to = self.fired_to.max(passed(mark.saturating_sub(self.wait()), slide, size));
        if !self.is_amending() {
            self.closed_to = self.fired_to;
            return Ok(());
        }
        let pane = gcd(slide, size);
        let crosses = before == NEVER || floor(mark, pane) > floor(before, pane);
        let first = self.standing.keys().next().copied().into_iter().chain(self.fired.first().map(|f| f.end)).min();
        if crosses || first.is_some_and(|end| end.saturating_add(self.lateness()) <= mark) {
            self.flush()?;
            self.amend(lsn, mark, crosses)?;
            self.closed_to = self.closed_to.max(passed(mark.saturating_sub(self.lateness()), slide, size));
            self.drop_panes(slide, size);
        }
        Ok(())
    }

    /// Panes that no window needs any more.
    fn drop_panes(&mut self, slide: Micros, size: Micros) {
        let open = if self.is_amending() { self.closed_to.min(self.fired_to) } else { self.fired_to };
        let needed = open + slide - size;
        match &mut self.panes {
            Panes::Counting(panes) => panes.drop_before(needed),
            Panes::Partial(panes) => panes.drop_before(needed),
        }
    }

    fn fire(&mut self, end: Micros, lsn: Lsn, status: &'static str) -> Result<(), String> {
        let Shape::Fixed { slide, size } = self.window.shape else { return Ok(()) };
        let start = end - size;
        let slides = slide < size;
        let which = Which::Range(start, end);
        let (rows, mut is_same) = match &mut self.panes {
            Panes::Counting(panes) => {
                let rows = panes.rows(&which, slides);
                let is_same = slides && self.before_counted.as_ref().is_some_and(|before| *before == rows);
                if slides && !is_same {
                    panes.hold(&rows);
                    if let Some(before) = self.before_counted.replace(rows.clone()) {
                        panes.release(&before);
                    }
                }
                (Rows::Counted(rows), is_same)
            }
            Panes::Partial(panes) => (Rows::Columns(panes.rows(&which, start, end)?), false),
        };
        is_same &= !self.is_read && !self.is_amending();
        self.fired_to = end;
        if rows.len() > 0 || slides {
            self.fired.push(Fired { start, end, lsn, status, rows, is_same });
        }
        // An empty slide behind a full one ends the row of them.
        if slides && self.fired.last().is_some_and(|f| f.rows.len() == 0) {
            self.flush()?;
        }
        if !self.is_amending() {
            self.closed_to = end;
            self.drop_panes(slide, size);
        }
        Ok(())
    }

    /// The oldest window closes at once, because there are too many groups.
    fn force(&mut self, lsn: Lsn) -> Result<(), String> {
        let Shape::Fixed { slide, size } = self.window.shape else {
            let Some((end, _)) = self.sessions.ends.first().cloned() else { return Ok(()) };
            let Shape::Session { gap, .. } = self.window.shape else { return Ok(()) };
            let over = end.saturating_add(gap).saturating_add(self.lateness()).saturating_add(1);
            return self.close_sessions(over, lsn, status::ABANDONED);
        };
        match self.candidate() {
            Some(end) if !self.is_amending() || self.standing.is_empty() => self.fire(end, lsn, status::ABANDONED)?,
            _ => {}
        }
        self.flush()?;
        if self.is_amending() {
            let first = self.standing.keys().next().copied().unwrap_or(self.fired_to);
            self.amend(lsn, first.saturating_add(self.lateness()), false)?;
            self.closed_to = self.closed_to.max(first);
            self.drop_panes(slide, size);
        }
        Ok(())
    }

    /// Finishes what has fired: rows of the table, in the order in which they fired.
    fn flush(&mut self) -> Result<(), String> {
        let fired = std::mem::take(&mut self.fired);
        if fired.is_empty() {
            return Ok(());
        }
        let slides = matches!(self.window.shape, Shape::Fixed { slide, size } if slide < size);
        if !slides && !self.is_amending() && !self.window.is_one_by_one() {
            let all: Vec<&Fired> = fired.iter().collect();
            let batch = match self.finish(&all) {
                Ok(batch) => batch,
                Err(_) if all.len() > 1 => {
                    let parts: Vec<RecordBatch> = all.iter().map(|f| self.finish_alone(f)).collect();
                    self.failed +=
                        parts.iter().zip(&all).filter(|(p, f)| p.num_rows() == 0 && f.rows.len() > 0).count() as u64;
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
            return Ok(());
        }
        for window in &fired {
            if window.is_same {
                continue;
            }
            let batch = self.finish_or_nothing(window);
            if self.is_read && !self.is_amending() && batch.num_rows() > 0 {
                self.finals.push(batch.clone());
            }
            let mut is_stored = batch.num_rows() > 0;
            if slides {
                let before = self.before.take();
                if before.as_ref().is_some_and(|before| self.is_equal(before, &batch)) {
                    is_stored = false;
                }
                if batch.num_rows() == 0
                    && let Some(before) = before.filter(|b| b.num_rows() > 0)
                {
                    self.stored.push(self.stamp(
                        &before,
                        Some((window.start, window.end)),
                        window.lsn,
                        1,
                        status::GONE,
                    )?);
                }
                self.before = Some(batch.clone());
            }
            if is_stored {
                self.stored.push(batch.clone());
            }
            if self.is_amending() && window.status != status::ABANDONED {
                let version = i64::from(is_stored);
                let standing = Standing { rows: batch, version, is_changed: false, was_stored: is_stored };
                self.standing.insert(window.end, standing);
            }
        }
        // An empty slide is not compared with.
        if self.before.as_ref().is_some_and(|b| b.num_rows() == 0) {
            self.before = None;
            if let (Panes::Counting(panes), Some(before)) = (&mut self.panes, self.before_counted.take()) {
                panes.release(&before);
            }
        }
        Ok(())
    }

    /// A window's rows; none where what is selected of them has no value.
    fn finish_alone(&self, fired: &Fired) -> RecordBatch {
        self.finish(&[fired]).unwrap_or_else(|reason| {
            tracing::error!(window = self.window.name, reason, "a window could not be told and is left out");
            RecordBatch::new_empty(self.window.schema.clone())
        })
    }

    fn finish_or_nothing(&mut self, fired: &Fired) -> RecordBatch {
        let rows = self.finish_alone(fired);
        self.failed += u64::from(rows.num_rows() == 0 && fired.rows.len() > 0 && self.finish(&[fired]).is_err());
        rows
    }

    /// Rows in the table's columns.
    fn finish(&self, fired: &[&Fired]) -> Result<RecordBatch, String> {
        let lengths: Vec<usize> = fired.iter().map(|f| f.rows.len()).collect();
        let per_row = |value: &dyn Fn(&Fired) -> i64| -> ArrayRef {
            let values = fired.iter().zip(&lengths).flat_map(|(f, n)| std::iter::repeat_n(value(f), *n));
            Arc::new(Int64Array::from(values.collect::<Vec<i64>>()))
        };
        let (lsns, versions) = (per_row(&|f| f.lsn as i64), per_row(&|_| 1));
        let statuses = fired.iter().zip(&lengths).flat_map(|(f, n)| std::iter::repeat_n(f.status, *n));
        let statuses: ArrayRef = Arc::new(StringArray::from(statuses.collect::<Vec<&str>>()));
        let columns = match &self.panes {
            Panes::Counting(panes) => {
                let results: Vec<(Micros, Micros, &Counted)> = fired
                    .iter()
                    .filter_map(|f| match &f.rows {
                        Rows::Counted(counted) => Some((f.start, f.end, counted)),
                        Rows::Columns(_) => None,
                    })
                    .collect();
                panes.arrays(&self.window, &results)?
            }
            Panes::Partial(_) => concat_columns(fired)?,
        };
        let (own, beside) = self.window.finish(columns, vec![lsns, versions, statuses])?;
        assemble(&self.window, own, beside)
    }

    /// The same rows with another LSN, version and status, and with other times if these are given.
    fn stamp(
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
            let time =
                |t: Micros| Arc::new(TimestampMicrosecondArray::from(vec![t; n]).with_timezone("UTC")) as ArrayRef;
            (columns[1], columns[2]) = (time(start), time(end));
        }
        columns[3] = Arc::new(Int64Array::from(vec![version; n]));
        columns[4] = Arc::new(StringArray::from(vec![status; n]));
        RecordBatch::try_new(self.window.schema.clone(), columns).map_err(|e| e.to_string())
    }

    /// Whether two windows say the same, apart from their times.
    fn is_equal(&self, a: &RecordBatch, b: &RecordBatch) -> bool {
        let mut own = WINDOW_COLUMNS.len()..self.window.schema.fields().len();
        a.num_rows() == b.num_rows() && own.all(|c| a.column(c).as_ref() == b.column(c).as_ref())
    }

    /// Fires again what late rows have changed: `all` of it, or only windows whose lateness is over at `mark`, which say their last.
    fn amend(&mut self, lsn: Lsn, mark: Micros, all: bool) -> Result<(), String> {
        let Shape::Fixed { slide, size } = self.window.shape else { return Ok(()) };
        let ends: Vec<Micros> = self.standing.keys().copied().collect();
        for end in ends {
            let is_over = end.saturating_add(self.lateness()) <= mark;
            let Some(standing) = self.standing.get(&end) else { continue };
            if standing.is_changed && (all || is_over) {
                let rows = match &mut self.panes {
                    Panes::Counting(panes) => Rows::Counted(panes.rows(&Which::Range(end - size, end), false)),
                    Panes::Partial(panes) => {
                        Rows::Columns(panes.rows(&Which::Range(end - size, end), end - size, end)?)
                    }
                };
                let fired = Fired { start: end - size, end, lsn, status: status::AMENDED, rows, is_same: false };
                let now = self.finish_or_nothing(&fired);
                self.replace(end, slide, slide < size, lsn, now)?;
            }
            let last = if is_over { self.standing.remove(&end) } else { None };
            if let Some(last) = last.filter(|last| self.is_read && last.rows.num_rows() > 0) {
                let rows = self.stamp(&last.rows, None, lsn, last.version, status::FINAL)?;
                self.finals.push(rows);
            }
        }
        Ok(())
    }

    /// A window says something else than before: what differs is stored.
    fn replace(&mut self, end: Micros, slide: Micros, slides: bool, lsn: Lsn, now: RecordBatch) -> Result<(), String> {
        let Some(standing) = self.standing.get(&end).cloned() else { return Ok(()) };
        let version = standing.version + 1;
        let (changed, gone) = self.difference(&standing.rows, &now)?;
        // A slide that was not stored, as it said what the one before said, is stored whole once it differs from that.
        let repeats_before = slides
            && !standing.was_stored
            && self.standing.get(&(end - slide)).is_some_and(|before| self.is_equal(&before.rows, &now));
        let mut was_stored = standing.was_stored;
        if slides && !standing.was_stored {
            if !repeats_before && now.num_rows() > 0 {
                let status = if standing.version == 0 { status::FINAL } else { status::AMENDED };
                self.stored.push(self.stamp(&now, None, lsn, version, status)?);
                was_stored = true;
            }
        } else {
            if changed.num_rows() > 0 {
                let status = if standing.version == 0 { status::FINAL } else { status::AMENDED };
                self.stored.push(self.stamp(&changed, None, lsn, version, status)?);
                was_stored = true;
            }
            if gone.num_rows() > 0 {
                self.stored.push(self.stamp(&gone, None, lsn, version, status::GONE)?);
                was_stored = true;
            }
        }
        let is_new = was_stored && (changed.num_rows() > 0 || gone.num_rows() > 0);
        if slides
            && is_new
            && let Some(behind) = self.standing.get_mut(&(end + slide))
        {
            behind.is_changed = true;
        }
        if slides && end == self.fired_to {
            self.before = Some(now.clone());
        }
        let version = if is_new { version } else { standing.version };
        self.standing.insert(end, Standing { rows: now, version, is_changed: false, was_stored });
        Ok(())
    }

    /// Rows that are new or say something else, and rows whose group is gone.
    fn difference(&self, before: &RecordBatch, now: &RecordBatch) -> Result<(RecordBatch, RecordBatch), String> {
        let failed = |e: arrow::error::ArrowError| e.to_string();
        let rows_of = |batch: &RecordBatch, columns: &[usize]| -> Result<Vec<Vec<u8>>, String> {
            if columns.is_empty() {
                return Ok(vec![Vec::new(); batch.num_rows()]);
            }
            let fields = columns.iter().map(|c| SortField::new(batch.column(*c).data_type().clone())).collect();
            let converter = RowConverter::new(fields).map_err(failed)?;
            let columns: Vec<ArrayRef> = columns.iter().map(|c| batch.column(*c).clone()).collect();
            let rows = converter.convert_columns(&columns).map_err(failed)?;
            Ok(rows.iter().map(|r| r.as_ref().to_vec()).collect())
        };
        let own: Vec<usize> = (WINDOW_COLUMNS.len()..self.window.schema.fields().len()).collect();
        let keys = &self.window.keys;
        let (old_keys, new_keys) = (rows_of(before, keys)?, rows_of(now, keys)?);
        let (old, new) = (rows_of(before, &own)?, rows_of(now, &own)?);
        let known: BTreeMap<&[u8], &[u8]> =
            old_keys.iter().zip(&old).map(|(k, r)| (k.as_slice(), r.as_slice())).collect();
        let there: BTreeSet<&[u8]> = new_keys.iter().map(Vec::as_slice).collect();
        let changed: UInt64Array = (0..new.len())
            .filter(|n| known.get(new_keys[*n].as_slice()) != Some(&new[*n].as_slice()))
            .map(|n| Some(n as u64))
            .collect();
        let gone: UInt64Array =
            (0..old.len()).filter(|n| !there.contains(old_keys[*n].as_slice())).map(|n| Some(n as u64)).collect();
        Ok((take_record_batch(now, &changed).map_err(failed)?, take_record_batch(before, &gone).map_err(failed)?))
    }

    fn is_session_over(&self, end: Micros, mark: Micros) -> bool {
        let Shape::Session { gap, .. } = self.window.shape else { return false };
        // The gap itself still belongs to it.
        mark > end.saturating_add(gap).saturating_add(self.lateness())
    }

    fn take_into_session(
        &mut self,
        (row, prepared): (usize, usize),
        time: Micros,
        lsn: Lsn,
        gap: Micros,
        key: &ArrayRef,
    ) -> Result<bool, String> {
        let mut bytes = Vec::new();
        super::canonical(key, row, &mut bytes);
        let open = self.sessions.by_key.get(&bytes).map_or(&[][..], Vec::as_slice);
        let is_near = |s: &OpenSession| time >= s.start.saturating_sub(gap) && time <= s.end.saturating_add(gap);
        let is_joining = open.iter().any(is_near);
        if !is_joining && self.is_session_over(time, self.mark) {
            return Ok(false);
        }
        let (near, mut rest): (Vec<_>, Vec<_>) = open.iter().cloned().partition(is_near);
        for session in &near {
            self.sessions.ends.remove(&(session.end, bytes.clone()));
        }
        let mut joined = near.into_iter().reduce(|mut a, b| {
            (a.start, a.end) = (a.start.min(b.start), a.end.max(b.end));
            a.panes.extend(b.panes);
            a
        });
        let session = joined.get_or_insert_with(|| {
            self.sessions.next += 1;
            OpenSession { start: time, end: time, panes: vec![self.sessions.next] }
        });
        (session.start, session.end) = (session.start.min(time), session.end.max(time));
        let pane = session.panes[0];
        self.sessions.ends.insert((session.end, bytes.clone()));
        rest.extend(joined);
        rest.sort_by_key(|s| s.start);
        self.sessions.by_key.insert(bytes, rest);
        self.add(prepared, pane, lsn)?;
        Ok(true)
    }

    /// Sessions that are over at `mark`, in the order of their starts and keys.
    fn close_sessions(&mut self, mark: Micros, lsn: Lsn, status: &'static str) -> Result<(), String> {
        let Shape::Session { gap, .. } = self.window.shape else { return Ok(()) };
        let mut over: Vec<(Micros, Vec<u8>, OpenSession)> = Vec::new();
        while let Some((end, key)) =
            self.sessions.ends.first().filter(|(end, _)| self.is_session_over(*end, mark)).cloned()
        {
            self.sessions.ends.pop_first();
            let Some(open) = self.sessions.by_key.get_mut(&key) else { continue };
            let at = open.iter().position(|s| s.end == end);
            let session = at.map(|at| open.remove(at));
            if open.is_empty() {
                self.sessions.by_key.remove(&key);
            }
            over.extend(session.map(|session| (session.start, key, session)));
        }
        over.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        for (start, _, session) in over {
            let end = session.end + gap;
            let which = Which::Panes(&session.panes);
            let rows = match &mut self.panes {
                Panes::Counting(panes) => Rows::Counted(panes.rows(&which, false)),
                Panes::Partial(panes) => Rows::Columns(panes.rows(&which, start, end)?),
            };
            self.fired.push(Fired { start, end, lsn, status, rows, is_same: false });
            for pane in session.panes {
                match &mut self.panes {
                    Panes::Counting(panes) => panes.remove(pane),
                    Panes::Partial(panes) => panes.remove(pane),
                }
            }
        }
        Ok(())
    }

    /// Rows of the windows that have not fired, as they are now.
    pub fn open_rows(&self, lsn: Lsn) -> Result<Option<RecordBatch>, String> {
        // What waits becomes states in a copy, once for all windows.
        let states = match &self.panes {
            Panes::Counting(_) => None,
            Panes::Partial(panes) => Some(panes.flushed()?),
        };
        let look = |which: Which<'_>, start: Micros, end: Micros| -> Result<Fired, String> {
            let rows = match (&self.panes, &states) {
                (Panes::Partial(_), Some(states)) => Rows::Columns(states.close(&which, start, end)?),
                (Panes::Counting(panes), _) => Rows::Counted(panes.look(&which)),
                (Panes::Partial(_), None) => return Err("the states were not copied".into()),
            };
            Ok(Fired { start, end, lsn, status: status::OPEN, rows, is_same: false })
        };
        let mut open = Vec::new();
        match self.window.shape {
            Shape::Fixed { slide, size } => {
                let last = match &self.panes {
                    Panes::Counting(panes) => panes.last_pane(),
                    Panes::Partial(panes) => panes.last_pane(),
                };
                let mut next = self.candidate();
                while let (Some(end), Some(last)) = (next, last) {
                    // Of a sliding window, the slides that end with what has come.
                    let is_shown = if slide < size {
                        end <= floor(last, slide) + slide && open.len() < SHOWN_SLIDES
                    } else {
                        end <= floor(last, slide) + size
                    };
                    if !is_shown {
                        break;
                    }
                    open.push(look(Which::Range(end - size, end), end - size, end)?);
                    next = Some(end + slide);
                }
            }
            Shape::Session { gap, .. } => {
                for session in self.sessions.by_key.values().flatten() {
                    open.push(look(Which::Panes(&session.panes), session.start, session.end + gap)?);
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
        let parts = open.iter().map(|f| self.finish(&[f])).collect::<Result<Vec<_>, _>>()?;
        concat_batches(&self.window.schema, &parts).map(Some).map_err(|e| e.to_string())
    }
}

fn concat_columns(fired: &[&Fired]) -> Result<Vec<ArrayRef>, String> {
    let parts: Vec<&Vec<ArrayRef>> = fired
        .iter()
        .filter_map(|f| match &f.rows {
            Rows::Columns(columns) => Some(columns),
            Rows::Counted(_) => None,
        })
        .collect();
    let Some(first) = parts.first() else { return Ok(Vec::new()) };
    (0..first.len())
        .map(|n| {
            let columns: Vec<&dyn Array> = parts.iter().map(|p| p[n].as_ref()).collect();
            arrow::compute::concat(&columns).map_err(|e| e.to_string())
        })
        .collect()
}

/// The table's columns: lsn, the window's times, version and status, then the rest.
fn assemble(window: &Window, own: Vec<ArrayRef>, beside: Vec<ArrayRef>) -> Result<RecordBatch, String> {
    let (mut own, mut beside) = (own.into_iter(), beside.into_iter());
    let mut columns = Vec::with_capacity(window.schema.fields().len());
    columns.extend(beside.next());
    columns.extend(own.by_ref().take(2));
    columns.extend(beside);
    columns.extend(own);
    RecordBatch::try_new(window.schema.clone(), columns).map_err(|e| e.to_string())
}
