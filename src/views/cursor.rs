//! The skeleton of a view that follows one stream and has one checkpoint.

use std::time::{Duration, Instant};

use super::{View, ViewError};
use crate::event::{Lsn, Micros};
use crate::ids::{CheckpointId, TableId, ViewId};
use crate::operators::{Output, StreamRows};

/// How far a view with one checkpoint is.
///
/// For example, applied 120 and committed 100 with `dirty_since` set: the rows of records 101 to
/// 120 are in memory only, and the next commit brings the checkpoint to 120.
#[derive(Debug)]
pub struct Cursor {
    view: ViewId,
    applied: Lsn,
    committed: Lsn,
    /// When the first row after the last commit was applied.
    dirty_since: Option<Instant>,
}

impl Cursor {
    /// The cursor of a view as its last commit left it.
    pub fn new(view: ViewId, committed: Lsn) -> Self {
        Self {
            view,
            applied: committed,
            committed,
            dirty_since: None,
        }
    }

    /// The view that it is the cursor of.
    pub fn view(&self) -> &ViewId {
        &self.view
    }

    /// In memory, everything up to this LSN is applied.
    pub fn applied(&self) -> Lsn {
        self.applied
    }

    /// The last commit's checkpoint.
    pub fn committed(&self) -> Lsn {
        self.committed
    }

    /// Moves forward, never back.
    pub fn advance_to(&mut self, lsn: Lsn) {
        self.applied = self.applied.max(lsn);
    }

    /// Rows were applied that are not committed.
    pub fn mark_dirty(&mut self, now: Instant) {
        self.dirty_since.get_or_insert(now);
    }

    /// Whether rows were applied that are not committed.
    pub fn is_dirty(&self) -> bool {
        self.dirty_since.is_some()
    }

    /// Age of the oldest row that is not committed.
    pub fn dirty_for(&self, now: Instant) -> Option<Duration> {
        self.dirty_since
            .map(|since| now.saturating_duration_since(since))
    }

    /// Everything applied is committed.
    pub fn mark_committed(&mut self) {
        self.committed = self.applied;
        self.dirty_since = None;
    }

    /// Back to the last commit, after an error.
    pub fn reset_to(&mut self, committed: Lsn) {
        (self.applied, self.committed) = (committed, committed);
        self.dirty_since = None;
    }
}

/// What differs among views that follow one stream with one checkpoint; [`View`] follows from it.
pub trait StreamView: Send {
    /// How far it is.
    fn cursor(&self) -> &Cursor;

    /// The same, for [`View`]'s methods to move.
    fn cursor_mut(&mut self) -> &mut Cursor;

    /// The name of its stream.
    fn stream(&self) -> &str;

    /// Publishes to queries how far the view is. Called when [`Cursor::applied`] may have changed,
    /// with uncommitted rows or without.
    fn publish_applied(&self);

    /// Adds those rows of the stream that are above the cursor. May commit in between and advance
    /// the cursor within the rows.
    fn add(&mut self, rows: &StreamRows, now: Instant) -> Result<(), ViewError>;

    /// Rows below this time are no longer part of the view.
    fn raise_floor(&mut self, _floor: Option<Micros>) {}

    /// Whether a commit is due, with uncommitted rows of this age at most.
    fn is_commit_due(&self, age: Duration, caught_up: bool) -> bool;

    /// Opens what only writing needs, so that a checkpoint is committed also without new rows.
    fn open_writer(&mut self) -> Result<(), ViewError> {
        Ok(())
    }

    /// Commits what was added, with [`Cursor::applied`] as its checkpoint.
    fn write(&mut self) -> Result<(), ViewError>;

    /// Frees what only writing needs, after everything was committed.
    fn release_writer(&mut self) -> Result<(), ViewError> {
        Ok(())
    }

    /// Discards what is not committed; returns the committed checkpoint.
    fn reload(&mut self) -> Result<Lsn, ViewError>;
}

impl<T: StreamView> View for T {
    fn id(&self) -> &ViewId {
        self.cursor().view()
    }

    fn applied(&self) -> Lsn {
        self.cursor().applied()
    }

    fn checkpoints(&self) -> Vec<(CheckpointId, Lsn)> {
        let cursor = self.cursor();
        vec![(cursor.view().into(), cursor.committed())]
    }

    fn advance_to(&mut self, lsn: Lsn) {
        self.cursor_mut().advance_to(lsn);
        self.publish_applied();
    }

    fn apply(&mut self, output: &Output, now: Instant) -> Result<(), ViewError> {
        if output.to <= self.cursor().applied() {
            return Ok(());
        }
        let mut floor = output
            .retention_floors
            .get(&TableId::stream(self.stream()))
            .copied();
        let rows = output.rows.as_ref();
        if let Some(rows) = rows.filter(|rows| rows.stream.name == self.stream()) {
            self.add(rows, now)?;
            self.cursor_mut().mark_dirty(now);
            floor = floor.max(rows.retention_floor);
        }
        self.raise_floor(floor);
        self.cursor_mut().advance_to(output.to);
        self.publish_applied();
        Ok(())
    }

    fn is_due(&self, now: Instant, caught_up: bool) -> bool {
        let age = self.cursor().dirty_for(now);
        age.is_some_and(|age| self.is_commit_due(age, caught_up))
    }

    fn commit(&mut self, all: bool) -> Result<(), ViewError> {
        if self.cursor().is_dirty() {
            self.write()?;
            self.cursor_mut().mark_committed();
        }
        if all { self.release_writer() } else { Ok(()) }
    }

    fn checkpoint(&mut self) -> Result<(), ViewError> {
        self.open_writer()?;
        self.cursor_mut().mark_dirty(Instant::now());
        self.commit(true)
    }

    fn reset_to_committed(&mut self) -> Result<(), ViewError> {
        let committed = self.reload()?;
        self.cursor_mut().reset_to(committed);
        self.publish_applied();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_dirty_from_the_first_row_until_its_commit() {
        let start = Instant::now();
        let later = start + Duration::from_secs(3);
        let mut cursor = Cursor::new(ViewId::counts("a"), 100);
        assert_eq!((cursor.applied(), cursor.dirty_for(later)), (100, None));
        cursor.mark_dirty(start);
        cursor.mark_dirty(later);
        cursor.advance_to(120);
        cursor.advance_to(110);
        assert_eq!((cursor.applied(), cursor.committed()), (120, 100));
        let age = cursor.dirty_for(later);
        assert_eq!(age, Some(Duration::from_secs(3)), "by the oldest row");
        cursor.mark_committed();
        assert_eq!((cursor.committed(), cursor.is_dirty()), (120, false));
        cursor.mark_dirty(later);
        cursor.reset_to(100);
        assert_eq!((cursor.applied(), cursor.is_dirty()), (100, false));
    }
}
