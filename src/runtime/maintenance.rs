//! Periodic work on committed data, next to the pipeline: merging files, checkpoints, dropping
//! partitions below the retention floor, removing files that no version names, and keeping to the
//! disk's limit.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::context::FolderContext;
use super::{RuntimeError, notes, reserve, views};
use crate::config::Config;
use crate::config::units::Span;
use crate::event::{Lsn, Micros};
use crate::ids::TableId;
use crate::ingest::{Ingest, IngestError, Submission};
use crate::operators::{RetentionFloors, arrivals};
use crate::query::Handles;
use crate::sources::Stop;
use crate::threads::panic_if_asked;
use crate::views::ViewError;
use crate::views::lake::LakeTable;
use crate::views::lake::compact::{self, MergeMode};
use crate::wal::Kind;

/// How often a round over all tables is due.
const ROUND_INTERVAL: Duration = Duration::from_secs(30);
/// How often it is checked whether the log waits for room on the disk.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// How long files that a query may still read stay where room is needed, instead of
/// [`compact::GRACE`].
const SHORT_GRACE: Duration = Duration::from_secs(30);
/// Above its limit, the disk is brought down to this share of it, so that hours do not leave one by
/// one.
const DISK_TARGET_PERCENT: u64 = 95;

/// Maintains what views have committed.
pub struct Maintenance {
    pub handles: Handles,
    /// Memory of a merge, in bytes.
    pub memory: usize,
    /// The data folder, and the bytes that it may take.
    pub folder: std::path::PathBuf,
    pub disk: Option<u64>,
    /// Retention by arrival of the tables that no declaration has one for: `raw` and
    /// `dead_letters`. Tables of streams have floors by event time, which the operators raise.
    pub retention: BTreeMap<TableId, Span>,
    /// Takes in the frame that raises floors; none in a stopped folder.
    pub ingest: Option<Ingest>,
    /// Notes on tables that were reported, once each.
    reported: Mutex<BTreeSet<(String, &'static str)>>,
    /// Held during a round; a backup holds it while it copies.
    pub retention_lock: Arc<Mutex<()>>,
    /// The longest that a query may take.
    pub sql_time: Duration,
}

impl Maintenance {
    pub fn new(
        config: &Config,
        handles: Handles,
        ingest: Option<Ingest>,
        retention_lock: Arc<Mutex<()>>,
    ) -> Self {
        let retention = [
            (TableId::Raw, config.raw_retention),
            (TableId::DeadLetters, config.dead_letters_retention),
        ];
        Self {
            handles,
            memory: config.limits.shares().merges(),
            folder: config.data.clone(),
            disk: config.limits.disk,
            retention: retention.into(),
            ingest,
            reported: Mutex::default(),
            retention_lock,
            sql_time: config.limits.sql_time,
        }
    }

    /// Works in a thread of its own, which holds `watch`, until asked to stop.
    pub fn start(self, stop: Stop, watch: impl Send + 'static) -> JoinHandle<()> {
        std::thread::Builder::new()
            .name("maintenance".into())
            .spawn(move || {
                let _watch = watch;
                let mut polls = 0;
                while !stop.wait(POLL_INTERVAL) {
                    panic_if_asked("maintenance");
                    polls += 1;
                    if polls * POLL_INTERVAL < ROUND_INTERVAL {
                        self.make_room();
                        continue;
                    }
                    polls = 0;
                    // In a thread that ends: the memory that merges allocate and free returns to the
                    // system with it.
                    let round = || self.round(MergeMode::Running, &|| stop.is_requested());
                    let done = std::thread::scope(|scope| scope.spawn(round).join());
                    match done {
                        Ok(Ok(_)) => {}
                        // Nothing was changed; the next round tries again.
                        Ok(Err(error)) => tracing::warn!(%error, "maintenance failed"),
                        Err(_) => {
                            tracing::error!("maintenance panicked; the next round tries again");
                        }
                    }
                }
            })
            .expect("the system can start a thread")
    }

    /// One round over everything; returns the number of merges.
    pub fn round(&self, when: MergeMode, stop: &dyn Fn() -> bool) -> Result<usize, ViewError> {
        let mut merges = 0;
        self.make_room();
        let mut result = Ok(());
        for table in self.handles.tables.values() {
            // One table that fails does not hold back the others, or the disk.
            match self.maintain_table(table, when, stop) {
                Ok(done) => merges += done,
                Err(error) => result = result.and(Err(error)),
            }
        }
        // A run that ends reports them at its end, when everything is committed.
        if when == MergeMode::Running {
            self.report_notes();
        }
        result = result.and(self.drop_indexes()).and(self.keep_to_the_disk());
        result.map(|()| merges)
    }

    fn report_notes(&self) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        for note in notes::all(&self.handles) {
            if reported.insert(note.key) {
                tracing::warn!("{}", note.text);
            }
        }
    }

    /// Where the log or the disk is full, removes files that no version of a table names earlier:
    /// nothing is taken in until there is room.
    fn make_room(&self) {
        let is_full = self
            .ingest
            .as_ref()
            .is_some_and(|ingest| ingest.intake().full().is_some());
        if is_full
            || self
                .disk
                .is_some_and(|limit| folder_bytes(&self.folder) > limit)
        {
            self.remove_replaced();
        }
    }

    fn remove_replaced(&self) {
        let Some(_held) = self.try_hold() else { return };
        let now_ms = crate::clock::wall_clock_ms();
        let grace = SHORT_GRACE.max(self.sql_time).min(compact::GRACE);
        for (table, lake) in &self.handles.tables {
            if let Err(error) = lake.vacuum(now_ms, grace) {
                tracing::warn!(%table, %error, "replaced files could not be removed; retrying later");
            }
        }
    }

    /// Keeps a backup from beginning; none while one copies.
    fn try_hold(&self) -> Option<MutexGuard<'_, ()>> {
        match self.retention_lock.try_lock() {
            Err(TryLockError::WouldBlock) => None,
            Err(TryLockError::Poisoned(held)) => Some(held.into_inner()),
            Ok(held) => Some(held),
        }
    }

    fn maintain_table(
        &self,
        table: &Arc<LakeTable>,
        when: MergeMode,
        stop: &dyn Fn() -> bool,
    ) -> Result<usize, ViewError> {
        let Some(_held) = self.try_hold() else {
            return Ok(0);
        };
        let (id, name) = (&table.spec.id, &table.spec.name);
        if let Some((retention, width)) = self.retention.get(id).zip(table.spec.layout.width()) {
            let arrived = self.handles.progress.arrived();
            table.set_arrival_floor(arrived.map(|at| arrival_floor(at, retention.micros(), width)));
        }
        let dropped = table.drop_below_floor()?;
        if dropped > 0 {
            tracing::info!(
                table = name,
                files = dropped,
                "dropped files below the retention floor"
            );
        }
        let done = compact::maintain(table, self.memory, when, stop)?;
        if done > 0 {
            tracing::info!(
                table = name,
                merges = done,
                files = table.files().len(),
                "merged"
            );
        }
        Ok(done)
    }

    fn drop_indexes(&self) -> Result<(), ViewError> {
        let Some(_held) = self.try_hold() else {
            return Ok(());
        };
        for (name, index) in &self.handles.search {
            if let Some(floor) = self.handles.floor(name) {
                index.drop_below(floor)?;
            }
        }
        Ok(())
    }

    /// Raises floors if the folder has grown above its limit.
    fn keep_to_the_disk(&self) -> Result<(), ViewError> {
        let (Some(limit), Some(ingest)) = (self.disk, &self.ingest) else {
            return Ok(());
        };
        let usage = Usage::measure(&self.folder, &self.handles.tables);
        let plan = plan_floors(&usage, limit);
        if plan.is_short {
            tracing::warn!(
                limit,
                used = usage.total,
                "`[limits] disk` is too small for the log, the indexes and the present hour together"
            );
        }
        let mut floors = RetentionFloors::new();
        floors.extend(plan.raw.map(|floor| (TableId::Raw, floor)));
        if let Some(floor) = plan.others {
            let by_time = self
                .handles
                .tables
                .iter()
                .filter(|(_, t)| t.spec.layout.width().is_some());
            floors.extend(
                by_time
                    .map(|(id, _)| id)
                    .filter(|id| **id != TableId::Raw)
                    .map(|id| (id.clone(), floor)),
            );
        }
        if floors.is_empty() {
            return Ok(());
        }
        let names: BTreeMap<String, Micros> = floors
            .iter()
            .map(|(id, floor)| (id.to_string(), *floor))
            .collect();
        tracing::info!(
            floors = ?names,
            limit,
            used = usage.total,
            "the disk's limit is reached; dropping the oldest hours"
        );
        match raise_floors(ingest, &floors) {
            Err(error @ IngestError::Refused(_)) => {
                Err(ViewError::failed("floor")(error.to_string()))
            }
            // The queue or the log is full, or weir stops: the next round tries again.
            _ => Ok(()),
        }
    }
}

fn raise_floors(ingest: &Ingest, floors: &RetentionFloors) -> Result<(), IngestError> {
    let floors = serde_json::to_string(floors).unwrap_or_default();
    let submission = Submission::control(Kind::RetentionFloor, "", floors.as_bytes());
    ingest.submit(submission, false)?.wait().map(drop)
}

/// The floor of a table by arrival, rounded down to a partition's beginning. Pure.
///
/// A step of up to [`arrivals::STEP`] is trusted at once and may be wrong, so that much less is
/// dropped: with `retention = 7d`, partitions by hour and arrivals trusted up to Tuesday 12:34, the
/// floor is 11:00 on the Tuesday before.
fn arrival_floor(arrived: Micros, retention: Micros, width: Micros) -> Micros {
    arrived
        .saturating_sub(arrivals::STEP)
        .saturating_sub(retention)
        .div_euclid(width)
        * width
}

/// Bytes on the disk, of partitions by their ends.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Usage {
    /// Bytes that stay unless a floor rises: files that no version of a table names are removed
    /// anyway, and do not count.
    total: u64,
    raw: BTreeMap<Micros, u64>,
    others: BTreeMap<Micros, u64>,
}

impl Usage {
    fn measure(folder: &Path, tables: &BTreeMap<TableId, Arc<LakeTable>>) -> Self {
        let mut usage = Self {
            total: folder_bytes(folder).saturating_sub(reserve::held_bytes(folder)),
            ..Self::default()
        };
        for (id, table) in tables {
            usage.total = usage.total.saturating_sub(table.orphan_bytes());
            // Entity tables have no partitions by time.
            let Some(width) = table.spec.layout.width() else {
                continue;
            };
            let below = table
                .floor()
                .map_or(i64::MIN, |floor| floor.div_euclid(width));
            let partitions = if *id == TableId::Raw {
                &mut usage.raw
            } else {
                &mut usage.others
            };
            for file in table.files().iter() {
                if file.bucket < below {
                    usage.total = usage.total.saturating_sub(file.bytes);
                } else {
                    *partitions
                        .entry((file.bucket + 1).saturating_mul(width))
                        .or_default() += file.bytes;
                }
            }
        }
        usage
    }
}

/// Floors that bring the disk below its limit.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    raw: Option<Micros>,
    others: Option<Micros>,
    /// Even so the disk stays above the limit.
    is_short: bool,
}

/// Drops the oldest partitions, those of `raw` first, then those of all other tables together; the
/// latest of each stays. Pure.
///
/// Limit 1,000; `raw` has partitions that end at 1, 2, 3 and 4, of 100 bytes each, the others the
/// same of 50 bytes; 1,300 bytes are used, so that 350 must go to reach 950 (95 %). `raw` loses
/// those up to 3 (300 bytes; the one up to 4 stays), the others the one up to 1 (50 bytes).
fn plan_floors(usage: &Usage, limit: u64) -> Plan {
    let mut plan = Plan::default();
    if usage.total <= limit {
        return plan;
    }
    let mut excess_bytes = usage.total - limit / 100 * DISK_TARGET_PERCENT;
    for (partitions, floor) in [
        (&usage.raw, &mut plan.raw),
        (&usage.others, &mut plan.others),
    ] {
        for (end, bytes) in partitions.iter().take(partitions.len().saturating_sub(1)) {
            if excess_bytes == 0 {
                break;
            }
            *floor = Some(*end);
            excess_bytes = excess_bytes.saturating_sub(*bytes);
        }
    }
    plan.is_short = excess_bytes > limit / 100 * (100 - DISK_TARGET_PERCENT);
    plan
}

/// Bytes of all files in a folder and below it.
pub fn folder_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
            Ok(metadata) => metadata.len(),
            // Removed since it was listed.
            Err(_) => 0,
        })
        .sum()
}

/// Merges a stopped folder's files regardless of their age; returns the numbers of merges and of
/// files left.
pub fn compact(
    config: &Config,
    runtime: &tokio::runtime::Handle,
) -> Result<(usize, usize), RuntimeError> {
    let context = FolderContext::existing(config, runtime)?;
    let _lock = context.folder.lock()?;
    let log = context.existing_log()?;
    let snapshots = context.snapshots();
    snapshots.refuse_ahead(context.peek()?.last_lsn)?;
    let (newest, _) = snapshots.newest_for(&BTreeMap::new(), Lsn::MAX)?;
    let opened = views::open(&context, newest.catalog(), log, true)?;
    let handles = opened.handles;
    handles.progress.set_operators(&newest);
    handles.raise_floors(&newest.retention_floors());
    let merges = Maintenance::new(config, handles.clone(), None, Arc::default())
        .round(MergeMode::Now, &|| false)?;
    let files = handles.tables.values().map(|t| t.files().len()).sum();
    Ok((merges, files))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(total: u64) -> Usage {
        let partitions = |bytes: u64| (1..=4).map(|end| (end, bytes)).collect();
        Usage {
            total,
            raw: partitions(100),
            others: partitions(50),
        }
    }

    #[test]
    fn raw_leaves_first_then_all_tables_and_the_latest_hour_stays() {
        assert_eq!(plan_floors(&usage(1_000), 1_000), Plan::default());
        // 1,001 is brought down to 950.
        assert_eq!(
            plan_floors(&usage(1_001), 1_000),
            Plan {
                raw: Some(1),
                ..Plan::default()
            }
        );
        assert_eq!(
            plan_floors(&usage(1_200), 1_000),
            Plan {
                raw: Some(3),
                ..Plan::default()
            }
        );
        assert_eq!(
            plan_floors(&usage(1_300), 1_000),
            Plan {
                raw: Some(3),
                others: Some(1),
                is_short: false
            }
        );
        assert_eq!(
            plan_floors(&usage(1_400), 1_000),
            Plan {
                raw: Some(3),
                others: Some(3),
                is_short: false
            }
        );
        assert_eq!(
            plan_floors(&usage(9_000), 1_000),
            Plan {
                raw: Some(3),
                others: Some(3),
                is_short: true
            }
        );
    }
}
