//! Work on committed data beside the pipeline: merging files, checkpoints, taking out what lies
//! below the retention's floor, removing what is no longer named, and keeping to the disk's limit.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{notes, reserve};
use crate::config::Config;
use crate::config::units::Span;
use crate::event::Micros;
use crate::ingest::{Ingest, IngestError, Submission};
use crate::operators::{Floors, arrivals, checkpoints};
use crate::query::Handles;
use crate::sources::Stop;
use crate::threads::panic_if_asked;
use crate::views::ViewError;
use crate::views::lake::LakeTable;
use crate::views::lake::compact::{self, When};
use crate::wal::Kind;

/// How often tables are looked at.
const EVERY: Duration = Duration::from_secs(30);
/// How often it is looked whether the log waits for room on the disk.
const LOOK: Duration = Duration::from_secs(5);
/// What a query may still read stays so long where room is needed, instead of [`compact::GRACE`].
const SHORT_GRACE: Duration = Duration::from_secs(30);
/// Over its limit, the disk is brought down to this share of it, so that hours do not leave one by
/// one.
const DISK_AIM: u64 = 95;

/// Looks after what views have committed.
pub struct Maintenance {
    pub handles: Handles,
    /// Memory of a merge.
    pub memory: usize,
    /// The data folder, and the bytes that it may take.
    pub folder: std::path::PathBuf,
    pub disk: Option<u64>,
    /// Retention of the tables that are no stream's.
    pub retention: BTreeMap<String, Span>,
    /// Takes in the frame that raises floors; none beside a stopped process.
    pub ingest: Option<Ingest>,
    /// What has been said of tables, once each.
    told: Mutex<BTreeSet<(String, &'static str)>>,
    /// Held during a round; a backup holds it while it copies.
    pub trimming: Arc<Mutex<()>>,
    /// The longest that a query may take.
    pub sql_time: Duration,
}

impl Maintenance {
    pub fn new(
        config: &Config,
        handles: Handles,
        ingest: Option<Ingest>,
        trimming: Arc<Mutex<()>>,
    ) -> Self {
        let retention = [
            (checkpoints::RAW, config.raw_retention),
            (checkpoints::DEAD_LETTERS, config.dead_letters_retention),
        ];
        Self {
            handles,
            memory: config.limits.shares().merges(),
            folder: config.data.clone(),
            disk: config.limits.disk,
            retention: retention.map(|(name, span)| (name.to_owned(), span)).into(),
            ingest,
            told: Mutex::default(),
            trimming,
            sql_time: config.limits.sql_time,
        }
    }

    /// Works in a thread of its own, which holds `watch`, until asked to stop.
    pub fn start(self, stop: Stop, watch: impl Send + 'static) -> JoinHandle<()> {
        std::thread::Builder::new()
            .name("maintenance".into())
            .spawn(move || {
                let _watch = watch;
                let mut looks = 0;
                while !stop.wait(LOOK) {
                    panic_if_asked("maintenance");
                    looks += 1;
                    if looks * LOOK < EVERY {
                        self.make_room();
                        continue;
                    }
                    looks = 0;
                    // In a thread that ends: the memory that merges take and give back returns to
                    // the system with it.
                    let round = || self.round(When::Running, &|| stop.is_requested());
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

    /// One round over everything; gives the number of merges.
    pub fn round(&self, when: When, stop: &dyn Fn() -> bool) -> Result<usize, ViewError> {
        let mut merges = 0;
        self.make_room();
        let mut result = Ok(());
        for (name, table) in &self.handles.tables {
            // One table that fails does not keep the others, and the disk, from being looked after.
            match self.look_after(name, table, when, stop) {
                Ok(done) => merges += done,
                Err(error) => result = result.and(Err(error)),
            }
        }
        // A run that ends tells them at its end, when everything is committed.
        if when == When::Running {
            self.tell_notes();
        }
        result = result.and(self.drop_indexes()).and(self.keep_to_the_disk());
        result.map(|()| merges)
    }

    fn tell_notes(&self) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for note in notes::of_tables(&self.handles.tables, &self.handles.catalog) {
            if told.insert(note.about) {
                tracing::warn!("{}", note.text);
            }
        }
    }

    /// Where the log or the disk is full, files that no version of a table names leave earlier:
    /// nothing is taken in before.
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
        let Some(_trimming) = self.hold() else { return };
        let now_ms = chrono::Utc::now().timestamp_millis();
        let grace = SHORT_GRACE.max(self.sql_time).min(compact::GRACE);
        for (table, lake) in &self.handles.tables {
            if let Err(error) = lake.remove_replaced_files(now_ms, grace) {
                tracing::warn!(table, %error, "replaced files could not be removed; it is tried again");
            }
        }
    }

    /// Keeps a backup from beginning, and does nothing while one copies.
    fn hold(&self) -> Option<MutexGuard<'_, ()>> {
        match self.trimming.try_lock() {
            Err(TryLockError::WouldBlock) => None,
            Err(TryLockError::Poisoned(held)) => Some(held.into_inner()),
            Ok(held) => Some(held),
        }
    }

    fn look_after(
        &self,
        name: &String,
        table: &Arc<LakeTable>,
        when: When,
        stop: &dyn Fn() -> bool,
    ) -> Result<usize, ViewError> {
        let Some(_trimming) = self.hold() else {
            return Ok(0);
        };
        if let Some((retention, width)) = self.retention.get(name).zip(table.spec.layout.width()) {
            let arrived = self.handles.progress.arrived();
            table.set_arrival_floor(arrived.map(|at| arrival_floor(at, retention.micros(), width)));
        }
        let dropped = table.drop_below_floor()?;
        if dropped > 0 {
            tracing::info!(
                table = name,
                files = dropped,
                "below the retention's floor; taken out"
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
        let Some(_trimming) = self.hold() else {
            return Ok(());
        };
        for (name, index) in &self.handles.search {
            if let Some(floor) = self.handles.floor(name) {
                index.drop_below(floor)?;
            }
        }
        Ok(())
    }

    /// Raises floors if the folder has grown over its limit.
    fn keep_to_the_disk(&self) -> Result<(), ViewError> {
        let (Some(limit), Some(ingest)) = (self.disk, &self.ingest) else {
            return Ok(());
        };
        let usage = Usage::of(&self.folder, &self.handles.tables);
        let plan = plan_floors(&usage, limit);
        if plan.is_short {
            tracing::warn!(
                limit,
                used = usage.total,
                "`[limits] disk` is too small for the log, the indexes and the present hour together"
            );
        }
        let mut floors = Floors::new();
        floors.extend(plan.raw.map(|floor| (checkpoints::RAW.to_owned(), floor)));
        if let Some(floor) = plan.others {
            let by_time = self
                .handles
                .tables
                .iter()
                .filter(|(_, t)| t.spec.layout.width().is_some());
            floors.extend(
                by_time
                    .map(|(n, _)| n)
                    .filter(|n| *n != checkpoints::RAW)
                    .map(|n| (n.clone(), floor)),
            );
        }
        if floors.is_empty() {
            return Ok(());
        }
        tracing::info!(
            ?floors,
            limit,
            used = usage.total,
            "the disk's limit is reached; the oldest hours leave"
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

fn raise_floors(ingest: &Ingest, floors: &Floors) -> Result<(), IngestError> {
    let floors = serde_json::to_string(floors).unwrap_or_default();
    let submission = Submission::control(Kind::RetentionFloor, "", floors.as_bytes());
    ingest.submit(submission, false)?.wait().map(drop)
}

/// The floor of a table by arrival, down to a whole partition. Pure.
fn arrival_floor(arrived: Micros, retention: Micros, width: Micros) -> Micros {
    arrived
        .saturating_sub(arrivals::STEP)
        .saturating_sub(retention)
        .div_euclid(width)
        * width
}

/// What takes how much of the disk. Partitions by their ends.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Usage {
    /// Bytes that stay unless a floor rises: those that no version of a table names leave by
    /// themselves, and do not count.
    total: u64,
    raw: BTreeMap<Micros, u64>,
    others: BTreeMap<Micros, u64>,
}

impl Usage {
    fn of(folder: &Path, tables: &BTreeMap<String, Arc<LakeTable>>) -> Self {
        let mut usage = Self {
            total: folder_bytes(folder).saturating_sub(reserve::held(folder)),
            ..Self::default()
        };
        for (name, table) in tables {
            usage.total = usage.total.saturating_sub(table.unnamed_bytes());
            // Entities have no hours that could leave.
            let Some(width) = table.spec.layout.width() else {
                continue;
            };
            let below = table
                .floor()
                .map_or(i64::MIN, |floor| floor.div_euclid(width));
            let partitions = if name == checkpoints::RAW {
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
    /// Even so it stays over the limit.
    is_short: bool,
}

/// The oldest partitions leave, those of `raw` first, then those of all other tables together; the
/// latest of each stays. Pure.
fn plan_floors(usage: &Usage, limit: u64) -> Plan {
    let mut plan = Plan::default();
    if usage.total <= limit {
        return plan;
    }
    let mut over = usage.total - limit / 100 * DISK_AIM;
    for (partitions, floor) in [
        (&usage.raw, &mut plan.raw),
        (&usage.others, &mut plan.others),
    ] {
        for (end, bytes) in partitions.iter().take(partitions.len().saturating_sub(1)) {
            if over == 0 {
                break;
            }
            *floor = Some(*end);
            over = over.saturating_sub(*bytes);
        }
    }
    plan.is_short = over > limit / 100 * (100 - DISK_AIM);
    plan
}

/// Bytes that a folder takes, with all below it.
pub fn folder_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
            Ok(metadata) => metadata.len(),
            // Removed meanwhile.
            Err(_) => 0,
        })
        .sum()
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
