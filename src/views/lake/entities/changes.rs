//! The rows of an entity table that are newer than a record, for sinks: leaf by leaf, each key at
//! most once.
//!
//! An older row of a key may be gone, since the newest one replaced it. So a sink gets each row that
//! is the newest of its key as of one moment. Example: key `k` changes at records 10, 20 and 30, and
//! a sink that has everything up to 15 reads as of 25: it gets the row of record 20, or nothing if
//! the table has the one of record 30 already, which then comes with the next range.

use std::collections::VecDeque;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;

use super::leaves::{Leaf, Place, RowsByPlace, leaves, newest_of};
use super::levels::Level;
use crate::event::Lsn;
use crate::operators::lsns;
use crate::views::lake::scan_by_lsn::by_lsn;
use crate::views::lake::table::TableState;
use crate::views::lake::{LakeError, LakeTable, TableSpec};

/// Reads the changed rows of an entity table.
pub struct ChangedRows {
    spec: TableSpec,
    levels: Vec<Level>,
    unflushed: RowsByPlace,
    /// Those that have a changed row.
    leaves: VecDeque<Leaf>,
    after: Lsn,
    to: Lsn,
}

impl ChangedRows {
    /// The rows above `after`, up to `to`, at this place or a later one.
    pub fn of_snapshot(
        table: &LakeTable,
        state: &TableState,
        (after, to): (Lsn, Lsn),
        from: Place,
    ) -> Result<Self, LakeError> {
        let spec = &table.spec;
        let parts = state.unflushed.recent.iter();
        let parts = parts.map(|part| part.batch(&spec.schema));
        let unflushed = parts.collect::<Result<Vec<_>, _>>()?;
        let is_new = |lsn: Lsn| lsn > after;
        let changed = unflushed.iter().map(|rows| rows_where(rows, is_new));
        let changed = RowsByPlace::of(spec, changed.collect::<Result<_, _>>()?);
        let is_changed = |leaf: &Leaf| {
            leaf.files.iter().any(|file| is_new(file.max_lsn))
                || changed.count(&leaf.places) > 0
                || state
                    .levels
                    .iter()
                    .any(|level| is_new(level.entry.max_lsn) && level.reaches(&leaf.places))
        };
        let mut leaves: VecDeque<Leaf> = leaves(&state.files).into();
        leaves.retain(|leaf| *leaf.places.end() >= from && is_changed(leaf));
        Ok(Self {
            spec: spec.clone(),
            levels: state.levels.to_vec(),
            unflushed: RowsByPlace::of(spec, unflushed),
            leaves,
            after,
            to,
        })
    }

    /// The rows of the next leaf that has some, in the order of their LSNs; `None` at the end.
    pub fn next_rows(&mut self) -> Result<Option<RecordBatch>, LakeError> {
        while let Some(leaf) = self.leaves.pop_front() {
            let levels = self.levels.iter().filter(|l| l.reaches(&leaf.places));
            let levels: Vec<Level> = levels.cloned().collect();
            let (files, unflushed) = (&leaf.files, &self.unflushed);
            let newest = newest_of(&self.spec, files, &levels, unflushed, &leaf.places)?;
            let rows = rows_where(&newest, |lsn| lsn > self.after && lsn <= self.to)?;
            if rows.num_rows() > 0 {
                return by_lsn(&self.spec, &rows).map(Some);
            }
        }
        Ok(None)
    }

    /// Where the next leaf begins; `None` at the end.
    pub fn next_place(&self) -> Option<Place> {
        self.leaves.front().map(Leaf::from)
    }
}

fn rows_where(rows: &RecordBatch, is_in: impl Fn(Lsn) -> bool) -> Result<RecordBatch, LakeError> {
    let mask = lsns(rows).iter().map(|lsn| Some(is_in(*lsn as Lsn)));
    Ok(filter_record_batch(rows, &mask.collect::<BooleanArray>())?)
}
