//! Entity tables: the newest row of each key. The cost of a commit depends on the rows that it
//! brings, not on those of the table.
//!
//! The table is a log-structured merge tree (LSM tree) whose last level is the Delta table itself:
//!
//! | here | in the terms of LSM trees |
//! |---|---|
//! | bucket | one of 16 partitions of the keys, by hash; a folder of the Delta table |
//! | place | the sort key: 64 bits, of which the first four are the bucket |
//! | leaf | a sorted file of the last level; leaves do not overlap and have each key once |
//! | level | a sorted run above the last level; runs overlap, and a key may be in several |
//! | tier | levels of one size class; four of them become one (size-tiered compaction) |
//! | merge | compaction of levels into the leaves that they reach |
//!
//! For example, bucket 3 has the places from `3000…` to `3fff…`, in two leaves: A from `3000…` on,
//! and B from `3800…` on. The key `k` has the place `3a07…`, so its row of record 80 is in B.
//! Record 120 changes it, and its commit writes one level with that row. A query of `k` reads B and
//! the level, and the newer row wins: record 120. An outside reader sees A and B, the table as of an
//! earlier record. A merge writes B again, with the row of record 120, as B'; one Delta commit
//! removes B, adds B' and no longer names the level. Now both see record 120.
//!
//! # Leaves
//!
//! An outside reader does not know row versions: it reads all rows of all files that a Delta version
//! names. So those files have each key once, and a changed row can only come by rewriting its file.
//! To keep that small, a table is made of *leaves*: a file has the keys of a range of places
//! (`leaves`) and is split when it has become too large. Keys that are numbers keep their order, so
//! that ascending new ones touch the last leaves only; others are spread by their hash.
//!
//! # Levels
//!
//! Where a commit's rows reach many leaves, with a few rows each, rewriting them all would cost
//! as much as the table has, at every commit. Such rows wait in a *level*: a file in the table's
//! folder, sorted by place, that the table's metadata names and an outside reader does not see
//! (`levels`). Levels of one size become one, so that there are few. They are merged into the
//! leaves as soon as that writes at most `MAX_WRITES_PER_ROW` rows for each row that waits. A level
//! is synced, and named by the Delta commit that brings the checkpoint, so that rows in it are as
//! safe as those in leaves: the log is trimmed as before.
//!
//! Why not deletion vectors: many readers refuse tables that have them, delta-rs in Python among
//! them. Why not a file of each commit's rows, with a view over them: to read that, one must know
//! of it.
//!
//! # Merges
//!
//! A merge that is small is part of the commit that found it worth it. A large one would keep rows
//! waiting in memory for seconds, so it goes in steps beside the commits: at each, some leaves are
//! written again under new names that no version names yet; with the last of them, one Delta commit
//! puts all of them in the place of the old ones and lets go of the levels that they hold. So each
//! Delta version is the table as of one record, the LSN of the transaction `weir/…/recent`; the
//! transaction `weir/…/levels` has the view's own checkpoint, which the levels reach. After a kill
//! the steps are taken again: no version named what they wrote.
//!
//! What was merged twice is as if it were once, since of a key the newest row wins. Rows wait in
//! levels for `OVERDUE` at most, then they are merged whatever it costs; `weir run --once` merges
//! all at its end, `weir compact` at once.
//!
//! # An example
//!
//! A table of 8,000,000 rows has about 160 leaves of 50,000. A commit brings 40,000 changed rows of
//! keys without order, so all leaves are reached. Merging would write 8,000,000 rows, 200 for each:
//! they become a level. The fourth such level takes the three before with it, 160,000 rows in one
//! file, and so on. When 2,000,000 rows wait, merging costs 4 for each; it begins, with 320,000
//! rows at each of the next commits, whose own rows go into new levels. After 25 commits the table
//! is as of the record at which the merge began. Each changed row was written once as it came, once
//! for each size of level, log₄(2,000,000 / 40,000) = 3 times, and 4 to 5 times with its
//! neighbours: 9 rows for one, where writing what is reached would write 200.
//!
//! # Queries
//!
//! A query goes through the leaves in order (`scan`): of each it reads the files, the rows that the
//! levels and memory have of it, and gives the newest of each key. What it holds at once is a leaf.

pub(crate) mod changes;
pub(super) mod leaves;
pub(super) mod levels;
#[cfg(test)]
mod model;
pub(crate) mod scan;

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use arrow::array::RecordBatch;

use super::error::InView;
use super::files::{Attempt, FileEntry, sync_files};
use super::table::TableState;
use super::{Change, LakeError, LakeTable, TableSpec};
use crate::event::Lsn;
use crate::views::ViewError;
use leaves::{Leaf, RowsByPlace, leaves, newest_of, reached};
use levels::Level;

/// Rows that a merge may write for each waiting row.
const MAX_WRITES_PER_ROW: u64 = 4;
/// Rows of a merge's step for each row that a commit brings: it ends before half as many as it
/// began with wait again.
const STEP_ROWS_PER_ROW: u64 = 8;
/// Rows wait in levels no longer than this.
const OVERDUE: Duration = Duration::from_secs(3_600);
/// Between two steps of a merge while no rows arrive.
pub(super) const STEP_INTERVAL: Duration = Duration::from_secs(1);
/// How often to check whether rows wait too long.
pub(super) const OVERDUE_CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Sizes of leaves and levels.
#[derive(Debug, Clone)]
pub(super) struct Sizes {
    /// Rows of a leaf, and the memory that they take, at most.
    pub leaf_rows: usize,
    pub leaf_bytes: usize,
    /// Rows of a row group of a level: the minimum that is read of it.
    pub group_rows: usize,
    /// Rows that any commit may write, however few it brings.
    pub floor: u64,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            leaf_rows: 64 << 10,
            leaf_bytes: 16 << 20,
            group_rows: 4 << 10,
            floor: 64 << 10,
        }
    }
}

/// What decides how a commit's rows are written.
#[derive(Debug, Clone, Copy, Default)]
struct CommitCost {
    /// Rows of the commit, rows that wait in levels, and rows of the leaves that both reach.
    new: u64,
    waiting: u64,
    reached: u64,
    /// Some wait too long, or a leaf is far too large.
    is_overdue: bool,
}

/// How a commit's rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CommitPlan {
    /// Merge them into leaves, with all that wait.
    Merge,
    /// Add them to the levels, and begin a stepwise merge of all.
    Begin,
    /// Add them to the levels.
    Wait,
}

/// Decides how a commit's rows are written.
fn plan_commit(cost: CommitCost, floor: u64) -> CommitPlan {
    let is_worth_it = cost.reached <= MAX_WRITES_PER_ROW * (cost.new + cost.waiting) + floor;
    if !is_worth_it && !cost.is_overdue {
        CommitPlan::Wait
    } else if cost.reached <= floor.max(STEP_ROWS_PER_ROW * cost.new) {
        CommitPlan::Merge
    } else {
        CommitPlan::Begin
    }
}

/// A merge in steps. Dropping it removes its files, unless they were persisted for a commit.
#[derive(Debug)]
pub(super) struct Merge {
    attempt: Attempt,
    /// The table is as of this record when the merge is committed.
    to: Lsn,
    levels: Vec<Level>,
    todo: VecDeque<Leaf>,
    add: Vec<FileEntry>,
    remove: Vec<FileEntry>,
}

impl Merge {
    fn begin(spec: &TableSpec, levels: Vec<Level>, todo: Vec<Leaf>, to: Lsn) -> Self {
        Self {
            attempt: Attempt::new(spec),
            to,
            levels,
            todo: todo.into(),
            add: Vec::new(),
            remove: Vec::new(),
        }
    }

    /// Rewrites leaves, approximately `rows` rows.
    fn step(&mut self, table: &LakeTable, rows: u64, now_ms: i64) -> Result<(), LakeError> {
        let (spec, before, mut written) = (&table.spec, self.add.len(), 0);
        while written < rows
            && let Some(leaf) = self.todo.pop_front()
        {
            let newest = newest_of(
                spec,
                &leaf.files,
                &self.levels,
                &RowsByPlace::default(),
                &leaf.places,
            )?;
            written += newest.num_rows() as u64;
            self.add.extend(leaves::write(
                spec,
                &table.sizes,
                &self.attempt,
                leaf.from(),
                &newest,
                now_ms,
            )?);
            self.remove.extend(leaf.files);
        }
        sync_files(&spec.root, &self.add[before..])
    }

    /// Adds the merge's result to what is to be committed; its levels leave the current ones.
    fn finish(self, mut current: Vec<Level>, written: &mut WrittenFiles) {
        current.retain(|level| !self.levels.contains(level));
        written.levels = Some(current);
        written.files_lsn = Some(self.to);
        written.add.extend(self.add);
        written.remove.extend(self.remove);
        written.attempts.push(self.attempt);
    }
}

/// How much a commit merges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MergeScope {
    /// As much as is due.
    Due,
    /// Everything: no rows wait in levels afterwards.
    All,
}

impl MergeScope {
    /// Rows that a commit of so many unflushed ones merges.
    fn step_rows(self, sizes: &Sizes, unflushed: usize) -> u64 {
        match self {
            Self::All => u64::MAX,
            Self::Due => sizes.floor.max(STEP_ROWS_PER_ROW * unflushed as u64),
        }
    }
}

/// Files and levels to commit.
#[derive(Debug, Default)]
pub(super) struct WrittenFiles {
    pub add: Vec<FileEntry>,
    pub remove: Vec<FileEntry>,
    /// The new levels, if they change.
    pub levels: Option<Vec<Level>>,
    /// Of a merge that has ended: the record as of which the files are.
    pub files_lsn: Option<Lsn>,
    /// A merge that has not ended.
    pub merge: Option<Merge>,
    /// They own these files until they are persisted.
    pub attempts: Vec<Attempt>,
}

impl WrittenFiles {
    /// Whether there is something to commit.
    pub fn is_some(&self) -> bool {
        self.levels.is_some() || !self.add.is_empty() || !self.remove.is_empty()
    }
}

/// Writes a commit's rows, and continues a merge. Only one writer per table at a time.
pub(super) fn write(
    table: &LakeTable,
    rows: Vec<RecordBatch>,
    mut merge: Option<Merge>,
    scope: MergeScope,
    to: Lsn,
) -> Result<WrittenFiles, LakeError> {
    let now_ms = crate::clock::wall_clock_ms();
    let state = table.snapshot();
    let (spec, sizes, leaves) = (&table.spec, &table.sizes, leaves(&state.files));
    let unflushed = RowsByPlace::of(spec, rows);
    let attempt = Attempt::new(spec);
    let mut written = WrittenFiles::default();
    let due = match &merge {
        Some(_) => CommitPlan::Wait,
        None => {
            let dirty = dirty(&leaves, &state.levels, &unflushed, sizes);
            let cost = commit_cost(&leaves, &dirty, &state.levels, &unflushed, sizes, now_ms);
            let plan = if scope == MergeScope::All {
                CommitPlan::Merge
            } else {
                plan_commit(cost, sizes.floor)
            };
            if plan == CommitPlan::Merge {
                merge_now(
                    table,
                    &attempt,
                    dirty,
                    &state,
                    &unflushed,
                    &mut written,
                    now_ms,
                )?;
                sync_files(&spec.root, &written.add)?;
                written.attempts.push(attempt);
                return Ok(written);
            }
            plan
        }
    };
    let mut current = state.levels.to_vec();
    if unflushed.all_rows() > 0 {
        let free = if due == CommitPlan::Wait {
            unmerged_levels(&current, merge.as_ref())
        } else {
            Vec::new()
        };
        let (level, gone) =
            levels::add(spec, sizes, &attempt, &leaves, (&free, &unflushed), now_ms)?;
        sync_files(&spec.root, std::slice::from_ref(&level.entry))?;
        current.retain(|level| !gone.contains(&level.entry.path));
        current.push(level);
        written.levels = Some(current.clone());
        written.attempts.push(attempt);
    }
    if due == CommitPlan::Begin {
        let dirty = dirty(&leaves, &current, &RowsByPlace::default(), sizes);
        let todo = dirty.into_iter().map(|at| leaves[at].clone()).collect();
        merge = Some(Merge::begin(spec, current.clone(), todo, to));
    }
    let Some(merge) = merge else {
        return Ok(written);
    };
    let step_rows = scope.step_rows(sizes, unflushed.all_rows());
    continue_merge(table, merge, current, step_rows, now_ms, &mut written)?;
    Ok(written)
}

/// Merges about so many more rows; what is left stays in `written` for the next commit.
fn continue_merge(
    table: &LakeTable,
    mut merge: Merge,
    current: Vec<Level>,
    step_rows: u64,
    now_ms: i64,
    written: &mut WrittenFiles,
) -> Result<(), LakeError> {
    merge.step(table, step_rows, now_ms)?;
    if merge.todo.is_empty() {
        merge.finish(current, written);
    } else {
        written.merge = Some(merge);
    }
    Ok(())
}

/// The levels that may be rewritten: those that no merge reads.
fn unmerged_levels(levels: &[Level], merge: Option<&Merge>) -> Vec<Level> {
    let is_merging = |level: &&Level| merge.is_some_and(|merge| merge.levels.contains(level));
    let free = levels.iter().filter(|level| !is_merging(level));
    free.cloned().collect()
}

/// Merges rows and levels into the leaves that they reach.
fn merge_now(
    table: &LakeTable,
    attempt: &Attempt,
    dirty: Vec<usize>,
    state: &TableState,
    unflushed: &RowsByPlace,
    written: &mut WrittenFiles,
    now_ms: i64,
) -> Result<(), LakeError> {
    let leaves = leaves(&state.files);
    // One leaf at a time is in memory.
    for leaf in dirty.into_iter().map(|at| &leaves[at]) {
        let rows = newest_of(
            &table.spec,
            &leaf.files,
            &state.levels,
            unflushed,
            &leaf.places,
        )?;
        written.add.extend(leaves::write(
            &table.spec,
            &table.sizes,
            attempt,
            leaf.from(),
            &rows,
            now_ms,
        )?);
        written.remove.extend(leaf.files.iter().cloned());
    }
    written.levels = (!state.levels.is_empty()).then(Vec::new);
    Ok(())
}

/// The leaves that levels and rows in memory reach, and those that are to be split, by their
/// numbers.
fn dirty(leaves: &[Leaf], levels: &[Level], unflushed: &RowsByPlace, sizes: &Sizes) -> Vec<usize> {
    let mut is_dirty: Vec<bool> = leaves
        .iter()
        .map(|leaf| is_too_large(leaf.rows(), sizes) || unflushed.count(&leaf.places) > 0)
        .collect();
    for (range, _) in levels.iter().flat_map(Level::spans) {
        is_dirty[reached(leaves, &range)].fill(true);
    }
    (0..leaves.len()).filter(|at| is_dirty[*at]).collect()
}

/// A leaf of a table from before there were leaves.
fn is_too_large(rows: u64, sizes: &Sizes) -> bool {
    rows > 2 * sizes.leaf_rows as u64
}

fn commit_cost(
    leaves: &[Leaf],
    dirty: &[usize],
    levels: &[Level],
    unflushed: &RowsByPlace,
    sizes: &Sizes,
    now_ms: i64,
) -> CommitCost {
    CommitCost {
        new: unflushed.all_rows() as u64,
        waiting: levels.iter().map(Level::rows).sum(),
        reached: dirty.iter().map(|at| leaves[*at].rows()).sum(),
        is_overdue: has_overdue(levels, now_ms)
            || leaves.iter().any(|leaf| is_too_large(leaf.rows(), sizes)),
    }
}

fn has_overdue(levels: &[Level], now_ms: i64) -> bool {
    levels
        .iter()
        .any(|level| now_ms - level.entry.written_ms >= OVERDUE.as_millis() as i64)
}

/// Whether a merge is due without new rows.
pub(super) fn is_overdue(table: &LakeTable) -> bool {
    let state = table.snapshot();
    has_overdue(&state.levels, crate::clock::wall_clock_ms())
        || state
            .files
            .iter()
            .any(|file| is_too_large(file.rows, &table.sizes))
}

/// Merges all levels of a table that has no writer; returns the number of merges.
pub(super) fn merge_all(table: &LakeTable) -> Result<usize, ViewError> {
    let state = table.snapshot();
    if state.levels.is_empty() && !is_overdue(table) {
        return Ok(0);
    }
    let written = write(
        table,
        Vec::new(),
        None,
        MergeScope::All,
        table.committed().recent,
    )
    .in_view(format!("lake/{}", table.spec.name))?;
    table.commit(&change(written), &[])?;
    Ok(1)
}

/// The change that commits what was written; it owns the files from now on.
pub(super) fn change(written: WrittenFiles) -> Change {
    written.attempts.into_iter().for_each(Attempt::persist);
    Change {
        add: written.add,
        remove: written.remove,
        levels: written.levels,
        files_lsn: written.files_lsn,
        data_change: true,
        ..Change::default()
    }
}

/// The files of levels that are not among the current ones.
pub(super) fn removed_levels<'a>(before: &'a [Level], now: &[Level]) -> Vec<&'a FileEntry> {
    let there: HashSet<&str> = now.iter().map(|level| level.entry.path.as_str()).collect();
    before
        .iter()
        .map(|level| &level.entry)
        .filter(|entry| !there.contains(entry.path.as_str()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_merged_where_few_are_written_for_each() {
        let floor = 1_000;
        let plan = |new, waiting, reached, is_overdue| {
            plan_commit(
                CommitCost {
                    new,
                    waiting,
                    reached,
                    is_overdue,
                },
                floor,
            )
        };
        // What is small, or reaches little, is merged at once.
        assert_eq!(plan(1, 0, 1_000, false), CommitPlan::Merge);
        assert_eq!(plan(10_000, 0, 41_000, false), CommitPlan::Merge);
        assert_eq!(plan(10_000, 0, 41_001, false), CommitPlan::Wait);
        assert_eq!(plan(1, 9_999, 41_000, false), CommitPlan::Begin);
        assert_eq!(plan(6_000, 4_000, 41_000, false), CommitPlan::Merge);
        assert_eq!(plan(1, 0, 1_000_000, true), CommitPlan::Begin);
        assert_eq!(plan(0, 1, 900, true), CommitPlan::Merge);
    }
}
