//! One Delta table: opening it, committing to it, and the state that queries read. Files and hot
//! rows change under one lock, so a snapshot has each row exactly once, also while a commit or a
//! merge goes on.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use deltalake::kernel::{Action, Add, LogicalFileView, Remove, Transaction};
use deltalake::protocol::{DeltaOperation, SaveMode};
use deltalake::{DeltaTable, DeltaTableError};

use super::checked::BlockChecksums;
use super::columns::{add_columns, column_conflict, columns_of, layout_of, metadata_of};
use super::delta::DeltaLog;
use super::entities::levels::{self, Level};
use super::entities::{self, Sizes};
use super::files::{FileEntry, partition_values, stats_json, sync_files};
use super::memtable::{self, UnflushedRows};
use super::store::CHECKPOINT_SUM;
use super::{LogName, PerClass, RowClass, TableSpec};
use crate::event::{Lsn, Micros, bucket};
use crate::schema::Layout;
use crate::schema::entity::newest;
use crate::storage::damage_in;
use crate::views::ViewError;

/// Commits after which the Delta log gets a checkpoint.
const CHECKPOINT_EVERY: u64 = 64;

/// What queries read, taken under one lock.
#[derive(Debug, Clone, Default)]
pub struct TableState {
    pub files: Arc<Vec<FileEntry>>,
    /// Rows above the last commit, in the order of their LSNs.
    pub unflushed: PerClass<Vec<Arc<UnflushedRows>>>,
    /// Of an entity table: rows that wait to be merged into its files.
    pub levels: Arc<Vec<Level>>,
    /// The first parts of each class are being written: no rows are merged into them.
    sealed: PerClass<usize>,
    /// Everything up to here is in files or hot rows.
    pub applied: Lsn,
    /// Rows below this time are no longer part of the table.
    floor: Option<Micros>,
    /// Likewise, by arrival: it goes back with the time that is believed.
    arrival_floor: Option<Micros>,
}

impl TableState {
    /// Rows below this time are no longer part of the table.
    pub fn floor(&self) -> Option<Micros> {
        self.floor.max(self.arrival_floor)
    }
}

/// A table, shared by its view, the compactor and queries.
pub struct LakeTable {
    pub spec: TableSpec,
    /// How the configuration wants it split.
    pub configured: Layout,
    /// `spec.schema` with the partition columns behind it.
    pub full_schema: SchemaRef,
    /// Delta app ids of the checkpoints.
    app_ids: PerClass<String>,
    /// Of an entity table the app id of the checkpoint that its files alone have.
    files_app_id: Option<String>,
    /// Of what an entity table is made, and whether nothing is to wait in its levels when its view
    /// ends.
    pub(super) sizes: Sizes,
    merge_all_on_close: AtomicBool,
    delta: Mutex<Delta>,
    state: RwLock<TableState>,
    runtime: tokio::runtime::Handle,
}

pub(super) struct Delta {
    log: DeltaLog,
    commits: u64,
    committed: PerClass<Lsn>,
    /// The record that the files have everything up to, as outside readers see them.
    files_lsn: Lsn,
    /// Files that the table names no more: since when, milliseconds since 1970, and their bytes.
    pub(super) tombstones: HashMap<PathBuf, (i64, u64)>,
    /// A commit failed and the table could not be read since: it must be, before anything is built
    /// on it.
    needs_reload: bool,
    /// Files that it would have added: removed as soon as the table says that it did not.
    unresolved_files: Vec<String>,
}

/// What the table names at a version.
struct TableFiles {
    files: Arc<Vec<FileEntry>>,
    levels: Arc<Vec<Level>>,
}

/// Files to add and to remove in one Delta commit, with the checkpoints that it brings.
#[derive(Default)]
pub struct Change {
    pub add: Vec<FileEntry>,
    pub remove: Vec<FileEntry>,
    pub checkpoints: Vec<(RowClass, Lsn)>,
    /// The levels of an entity table from here on, where they become others, and up to where its
    /// files are then; without levels up to its checkpoint.
    pub levels: Option<Vec<Level>>,
    pub files_lsn: Option<Lsn>,
    /// Rows change; false for a merge, which only moves them.
    pub data_change: bool,
    /// The columns and folders that the table has from here on, where they become others: those of
    /// the files that are added.
    pub becomes: Option<Box<TableSpec>>,
}

/// Why opening failed: the table is of another log, or the disk or Delta say no.
fn delta_error(path: &Path, error: &DeltaTableError) -> ViewError {
    let error = error.to_string();
    let reason = damage_in(&error).unwrap_or(&error).to_owned();
    ViewError::Failed {
        view: path.display().to_string(),
        reason,
    }
}

fn of_another_log(path: PathBuf, log: &LogName) -> ViewError {
    let reason = format!(
        "holds rows of another log than {:x}; restore log and lake from one backup, or move this folder away",
        log.id
    );
    ViewError::Damaged { path, reason }
}

impl LakeTable {
    /// Opens the table, or makes it. `writable`: false never changes anything and gives none for a
    /// table that is not there.
    pub fn open(
        spec: TableSpec,
        log: LogName,
        runtime: tokio::runtime::Handle,
        writable: bool,
    ) -> Result<Option<Self>, ViewError> {
        Self::open_as(spec, log, runtime, writable, true)
    }

    /// Opens a table whose rows are replaced by [`Self::replace_with`]: its columns may be others.
    pub fn open_to_replace(
        spec: TableSpec,
        log: LogName,
        runtime: tokio::runtime::Handle,
    ) -> Result<Self, ViewError> {
        let root = spec.root.clone();
        let missing = || ViewError::Damaged {
            path: root,
            reason: "is not there".into(),
        };
        Self::open_as(spec, log, runtime, true, false)?.ok_or_else(missing)
    }

    /// In one commit, all rows leave, those of another table come, and its checkpoints with them.
    /// Does nothing where that was done.
    pub fn replace_with(&self, new: &Self) -> Result<(), ViewError> {
        let (there, files) = (self.files(), new.files());
        let paths: HashSet<&str> = there.iter().map(|f| f.path.as_str()).collect();
        if !files.is_empty() && files.iter().all(|f| paths.contains(f.path.as_str())) {
            return Ok(());
        }
        let failed = |path: &Path, e: &dyn std::fmt::Display| ViewError::Failed {
            view: path.display().to_string(),
            reason: e.to_string(),
        };
        let (waiting, gone) = (new.snapshot().levels, self.snapshot().levels);
        let own: Vec<FileEntry> = files
            .iter()
            .chain(waiting.iter().map(|level| &level.entry))
            .cloned()
            .collect();
        for file in &own {
            let (from, to) = (
                new.spec.root.join(&file.path),
                self.spec.root.join(&file.path),
            );
            if let Some(folder) = to.parent() {
                crate::storage::create_folders(folder).map_err(|e| failed(folder, &e))?;
            }
            match std::fs::hard_link(&from, &to) {
                Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(failed(&to, &e));
                }
                _ => {}
            }
        }
        sync_files(&self.spec.root, &own).map_err(|e| failed(&self.spec.root, &e))?;
        let committed = new.committed();
        let classes = self.spec.classes().iter();
        let checkpoints = classes.map(|class| (*class, committed[*class])).collect();
        let becomes = Some(Box::new(new.spec.clone()));
        let (add, remove) = (files.to_vec(), there.to_vec());
        let levels = (!waiting.is_empty() || !gone.is_empty()).then(|| waiting.to_vec());
        let files_lsn = Some(new.files_lsn());
        self.commit(
            &Change {
                add,
                remove,
                checkpoints,
                levels,
                files_lsn,
                data_change: true,
                becomes,
            },
            &[],
        )?;
        // An outside reader may still read them: their grace begins now, also for the next start,
        // which goes by this time.
        for file in there.iter().chain(gone.iter().map(|level| &level.entry)) {
            let _ = std::fs::File::open(self.spec.root.join(&file.path))
                .and_then(|file| file.set_modified(std::time::SystemTime::now()));
        }
        Ok(())
    }

    fn open_as(
        mut spec: TableSpec,
        log: LogName,
        runtime: tokio::runtime::Handle,
        writable: bool,
        adds_columns: bool,
    ) -> Result<Option<Self>, ViewError> {
        if !writable && !spec.root.join("_delta_log").is_dir() {
            return Ok(None);
        }
        let mut entries = runtime
            .block_on(DeltaLog::open(&spec))
            .map_err(|e| delta_error(&spec.root, &e))?;
        let configured = spec.layout;
        // A table stays split as it is until it is replaced.
        spec.layout = layout_of(entries.table())
            .map_err(|e| delta_error(&spec.root, &e))?
            .unwrap_or(configured);
        let full_schema = spec.full_schema();
        if writable && adds_columns {
            runtime.block_on(add_columns(entries.table_mut(), &spec, &full_schema))?;
            entries.refresh().map_err(|e| delta_error(&spec.root, &e))?;
        }
        let table = entries.table();
        let is_leveled = spec.layout == Layout::Buckets;
        let files_app_id = is_leveled.then(|| log.app_id(RowClass::Recent));
        let recent_app = if is_leveled {
            log.levels_app_id()
        } else {
            log.app_id(RowClass::Recent)
        };
        let app_ids = PerClass {
            recent: recent_app,
            late: log.app_id(RowClass::Late),
        };
        let checkpoint = |app: &String| {
            let found = runtime.block_on(async {
                table
                    .snapshot()?
                    .transaction_version(table.log_store().as_ref(), app)
                    .await
            });
            found
                .map(|lsn| lsn.map(|lsn| lsn as u64))
                .map_err(|e| delta_error(&spec.root, &e))
        };
        let mut committed = PerClass {
            recent: checkpoint(&app_ids.recent)?.unwrap_or(log.zero),
            late: checkpoint(&app_ids.late)?.unwrap_or(log.zero),
        };
        let files_lsn = files_app_id
            .as_ref()
            .map(&checkpoint)
            .transpose()?
            .flatten();
        // A table from before there were levels has its files' checkpoint only.
        committed.recent = committed.recent.max(files_lsn.unwrap_or(log.zero));
        let files = read_files(&spec, table).map_err(|e| delta_error(&spec.root, &e))?;
        let levels = read_levels(&spec, table)?;
        entries.release();
        if committed == PerClass::both(log.zero) && !(files.is_empty() && levels.is_empty()) {
            return Err(of_another_log(spec.root, &log));
        }
        let state = TableState {
            files: Arc::new(files),
            levels: Arc::new(levels),
            ..TableState::default()
        };
        let delta = Mutex::new(Delta {
            log: entries,
            commits: 0,
            committed,
            files_lsn: files_lsn.unwrap_or(log.zero),
            tombstones: HashMap::new(),
            needs_reload: false,
            unresolved_files: Vec::new(),
        });
        let (state, sizes) = (RwLock::new(state), Sizes::default());
        let table = Self {
            spec,
            configured,
            full_schema,
            app_ids,
            files_app_id,
            sizes,
            merge_all_on_close: false.into(),
            delta,
            state,
            runtime,
        };
        if writable {
            table.remove_orphans()?;
        }
        Ok(Some(table))
    }

    pub(super) fn lock_delta(&self) -> std::sync::MutexGuard<'_, Delta> {
        self.delta.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, TableState> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, TableState> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Files and hot rows as of one moment.
    pub fn snapshot(&self) -> TableState {
        self.read().clone()
    }

    pub fn files(&self) -> Arc<Vec<FileEntry>> {
        self.read().files.clone()
    }

    pub fn has_levels(&self) -> bool {
        !self.read().levels.is_empty()
    }

    /// Lets the view merge at its end what waits in levels.
    pub fn merge_on_close(&self) {
        self.merge_all_on_close.store(true, Ordering::Relaxed);
    }

    pub(super) fn merges_on_close(&self) -> bool {
        self.merge_all_on_close.load(Ordering::Relaxed)
    }

    /// The files, also those that wait in levels.
    pub fn all_files(&self) -> Vec<FileEntry> {
        let state = self.snapshot();
        state
            .files
            .iter()
            .chain(state.levels.iter().map(|level| &level.entry))
            .cloned()
            .collect()
    }

    pub fn applied(&self) -> Lsn {
        self.read().applied
    }

    /// Why the table cannot take the columns that it is to have, if so.
    pub fn column_conflict(&self) -> Result<Option<String>, ViewError> {
        let mut delta = self.lock_delta();
        let wrong = |e: DeltaTableError| delta_error(&self.spec.root, &e);
        let found =
            columns_of(self.runtime.block_on(delta.log.load()).map_err(wrong)?).map_err(wrong)?;
        delta.log.release();
        Ok(column_conflict(&found, &self.full_schema))
    }

    /// Committed checkpoints.
    pub fn committed(&self) -> PerClass<Lsn> {
        self.lock_delta().committed
    }

    /// The record that the files have everything up to, as outside readers see them.
    pub fn files_lsn(&self) -> Lsn {
        let delta = self.lock_delta();
        let committed = delta.committed;
        match (&self.files_app_id, self.spec.checkpoint_names().1) {
            (Some(_), _) => delta.files_lsn,
            (None, Some(_)) => committed.recent.min(committed.late),
            (None, None) => committed.recent,
        }
    }

    /// Committed checkpoints as the table itself tells them, for a start from there after an error.
    pub fn reload_committed(&self) -> Result<PerClass<Lsn>, ViewError> {
        let mut delta = self.lock_delta();
        self.reload_if_needed(&mut delta)?;
        Ok(delta.committed)
    }

    /// Committed checkpoints by the names that snapshots use.
    pub fn checkpoints(&self) -> Vec<(String, Lsn)> {
        let committed = self.committed();
        let (recent, late) = self.spec.checkpoint_names();
        let mut checkpoints = vec![(recent, committed.recent)];
        checkpoints.extend(late.map(|name| (name, committed.late)));
        checkpoints
    }

    pub fn set_applied(&self, lsn: Lsn) {
        self.write().applied = lsn;
    }

    /// Rows below this time are no longer part of the table.
    pub fn floor(&self) -> Option<Micros> {
        self.read().floor()
    }

    pub fn raise_floor(&self, floor: Micros) {
        let mut state = self.write();
        state.floor = state.floor.max(Some(floor));
    }

    /// Rows that arrived before this time are no longer part of the table.
    pub fn set_arrival_floor(&self, floor: Option<Micros>) {
        self.write().arrival_floor = floor;
    }

    /// Appends unflushed rows and advances the applied LSN, in one step.
    pub fn push(
        &self,
        recent: Option<UnflushedRows>,
        late: Option<RecordBatch>,
        applied: Lsn,
        floor: Option<Micros>,
    ) {
        let mut state = self.write();
        match recent {
            Some(UnflushedRows::Rows(rows)) => {
                let sealed = state.sealed.recent;
                memtable::push(&mut state.unflushed.recent, rows, sealed);
            }
            Some(frame) => state.unflushed.recent.push(Arc::new(frame)),
            None => {}
        }
        if let Some(rows) = late {
            let sealed = state.sealed.late;
            memtable::push(&mut state.unflushed.late, rows, sealed);
        }
        state.applied = applied;
        state.floor = state.floor.max(floor);
    }

    /// Of an entity table, retains only the newest row of each key among the unflushed rows that
    /// are not sealed; returns the rows and bytes of all unflushed ones.
    pub fn compact_in_memory(&self) -> Result<(usize, usize), String> {
        let state = self.snapshot();
        let sealed = state.sealed.recent;
        let uncompacted = state.unflushed.recent[sealed..]
            .iter()
            .map(|part| part.batch(&self.spec.schema));
        let uncompacted = uncompacted.collect::<Result<Vec<_>, _>>()?;
        let all = concat_batches(&self.spec.schema, &uncompacted).map_err(|e| e.to_string())?;
        let compacted = newest(&all, &self.spec.keys)?;
        let mut state = self.write();
        // Only this view's thread adds parts.
        let parts = &mut state.unflushed.recent;
        parts.truncate(sealed);
        parts.push(Arc::new(UnflushedRows::Rows(compacted)));
        Ok((
            parts.iter().map(|p| p.rows()).sum(),
            parts.iter().map(|p| p.memory_bytes()).sum(),
        ))
    }

    /// The unflushed parts of a class, which do not change until a commit drops them.
    pub fn seal(&self, class: RowClass) -> Vec<Arc<UnflushedRows>> {
        let mut state = self.write();
        let parts = state.unflushed[class].clone();
        state.sealed[class] = parts.len();
        parts
    }

    /// Drops all unflushed rows, to read them again from the log.
    pub fn clear_unflushed(&self) {
        let mut state = self.write();
        (state.unflushed, state.sealed) = Default::default();
    }

    /// Commits files with checkpoints and, in the same step for queries, drops the first parts of
    /// each class in `flushed`, so many.
    ///
    /// After an error the table is read again: what it names decides whether the commit happened.
    /// Files of one that did not are removed.
    pub fn commit(&self, change: &Change, flushed: &[(RowClass, usize)]) -> Result<(), ViewError> {
        let mut delta = self.lock_delta();
        if let Err(error) = self.reload_if_needed(&mut delta) {
            self.remove_files(self.new_files(change).map(|f| f.path.as_str()));
            return Err(error);
        }
        let before = self.snapshot().levels;
        let files_lsn = self.files_lsn_of(&delta, change, &before);
        let reread = match self
            .runtime
            .block_on(self.try_commit(&mut delta.log, change, files_lsn))
        {
            Ok(reread) => reread,
            Err(error) => Some(self.resolve_failed_commit(&mut delta, change, &error)?),
        };
        for (class, lsn) in &change.checkpoints {
            delta.committed[*class] = *lsn;
        }
        delta.files_lsn = files_lsn.unwrap_or(delta.files_lsn);
        delta.commits += 1;
        let now_ms = chrono::Utc::now().timestamp_millis();
        let merged = change
            .levels
            .iter()
            .flat_map(|levels| entities::gone(&before, levels));
        let replaced = change.remove.iter().chain(merged);
        delta
            .tombstones
            .extend(replaced.map(|f| (self.spec.root.join(&f.path), (now_ms, f.bytes))));
        let mut state = self.write();
        // Where the table was read again, it names the new files already.
        let gone: HashSet<&str> = change
            .remove
            .iter()
            .chain(&change.add)
            .map(|f| f.path.as_str())
            .collect();
        let before = reread.as_ref().unwrap_or(&state.files);
        let mut files: Vec<FileEntry> = before
            .iter()
            .filter(|f| !gone.contains(f.path.as_str()))
            .cloned()
            .collect();
        files.extend(change.add.iter().cloned());
        state.files = Arc::new(files);
        if let Some(levels) = &change.levels {
            state.levels = Arc::new(levels.clone());
        }
        for (class, parts) in flushed {
            state.sealed[*class] = 0;
            drop(state.unflushed[*class].drain(..*parts));
        }
        Ok(())
    }

    /// The files that a change brings, levels too.
    fn new_files<'a>(&self, change: &'a Change) -> impl Iterator<Item = &'a FileEntry> {
        let there = self.snapshot().levels;
        let is_new = move |level: &&Level| !there.contains(level);
        let levels = change
            .levels
            .iter()
            .flatten()
            .filter(is_new)
            .map(|level| &level.entry);
        change.add.iter().chain(levels)
    }

    /// Up to where the files are after a change, where that becomes another record.
    fn files_lsn_of(&self, delta: &Delta, change: &Change, before: &[Level]) -> Option<Lsn> {
        self.files_app_id.as_ref()?;
        let has_levels = !change.levels.as_deref().unwrap_or(before).is_empty();
        let checkpoint = change
            .checkpoints
            .iter()
            .map(|(_, lsn)| *lsn)
            .max()
            .unwrap_or(delta.committed.recent);
        if has_levels {
            change.files_lsn
        } else {
            Some(checkpoint)
        }
    }

    /// Gives the files where somebody else had changed them too.
    async fn try_commit(
        &self,
        log: &mut DeltaLog,
        change: &Change,
        files_lsn: Option<Lsn>,
    ) -> Result<Option<Arc<Vec<FileEntry>>>, DeltaTableError> {
        let mut transactions: Vec<Transaction> = Vec::new();
        for (class, lsn) in &change.checkpoints {
            transactions.push(Transaction::new(&self.app_ids[*class], *lsn as i64));
        }
        transactions.extend(
            self.files_app_id
                .as_ref()
                .zip(files_lsn)
                .map(|(app, lsn)| Transaction::new(app, lsn as i64)),
        );
        if !change.remove.is_empty() {
            transactions.push(Transaction::new("__maint__", log.version() as i64 + 1));
        }
        let now_ms = chrono::Utc::now().timestamp_millis();
        let spec = change.becomes.as_deref().unwrap_or(&self.spec);
        let mut actions: Vec<Action> = Vec::with_capacity(change.add.len() + change.remove.len());
        actions.extend(
            change
                .add
                .iter()
                .map(|f| Action::Add(add_action(spec, f, change.data_change))),
        );
        actions.extend(
            change
                .remove
                .iter()
                .map(|f| Action::Remove(remove_action(&self.spec, f, change.data_change, now_ms))),
        );
        if change.becomes.is_some() || change.levels.is_some() {
            let metadata = metadata_of(
                log.metadata(),
                change.becomes.as_deref(),
                change.levels.as_deref(),
            )?;
            actions.push(Action::Metadata(metadata));
        }
        let operation = if change.data_change && !change.remove.is_empty() && !change.add.is_empty()
        {
            DeltaOperation::Update { predicate: None }
        } else if change.data_change && !change.remove.is_empty() {
            DeltaOperation::Delete { predicate: None }
        } else if change.data_change {
            let partition_by = partition_values(0, spec.layout)
                .iter()
                .map(|(n, _)| (*n).to_owned())
                .collect();
            DeltaOperation::Write {
                mode: SaveMode::Append,
                partition_by: Some(partition_by),
                predicate: None,
            }
        } else {
            DeltaOperation::Optimize {
                predicate: None,
                target_size: 256 << 20,
            }
        };
        if !log.commit(actions, operation, transactions).await? {
            return Ok(None);
        }
        let files = read_files(spec, log.table())?;
        log.release();
        Ok(Some(Arc::new(files)))
    }

    /// After an error of a commit: did it happen? Only the table knows.
    /// If so, gives the files, which queries see together with what the caller drops for them.
    fn resolve_failed_commit(
        &self,
        delta: &mut Delta,
        change: &Change,
        error: &DeltaTableError,
    ) -> Result<Arc<Vec<FileEntry>>, ViewError> {
        let reason = error.to_string();
        delta.needs_reload = true;
        let paths: Vec<String> = self.new_files(change).map(|f| f.path.clone()).collect();
        delta.unresolved_files.extend(paths);
        let TableFiles { files, levels } = self.reload(delta)?;
        let is_named = |named: &Vec<Level>| *levels == *named;
        let happened = (change.levels.is_some()
            || change.add.iter().chain(&change.remove).next().is_some())
            && change.levels.as_ref().is_none_or(is_named)
            && change
                .add
                .iter()
                .all(|f| files.iter().any(|g| g.path == f.path))
            && change
                .remove
                .iter()
                .all(|f| !files.iter().any(|g| g.path == f.path));
        if happened {
            return Ok(files);
        }
        let mut state = self.write();
        (state.files, state.levels) = (files, levels);
        Err(ViewError::Failed {
            view: self.spec.name.clone(),
            reason,
        })
    }

    fn remove_files<'a>(&self, paths: impl Iterator<Item = &'a str>) {
        for path in paths {
            let _ = std::fs::remove_file(self.spec.root.join(path));
        }
    }

    /// Reads files and checkpoints again if a commit left it open what the table holds; gives the
    /// files.
    pub(super) fn reload_if_needed(
        &self,
        delta: &mut Delta,
    ) -> Result<Arc<Vec<FileEntry>>, ViewError> {
        if !delta.needs_reload {
            return Ok(self.files());
        }
        let TableFiles { files, levels } = self.reload(delta)?;
        let mut state = self.write();
        (state.files, state.levels) = (files.clone(), levels);
        Ok(files)
    }

    /// Reads files, levels and checkpoints; removes what a commit that did not happen has left.
    fn reload(&self, delta: &mut Delta) -> Result<TableFiles, ViewError> {
        let failed = |e: DeltaTableError| ViewError::Failed {
            view: self.spec.name.clone(),
            reason: e.to_string(),
        };
        // The error may have been the sync of the entry's name: what is read now must be there
        // after a power cut too.
        for folder in [&self.spec.root.join("_delta_log"), &self.spec.root] {
            let synced = crate::storage::sync_folder(folder);
            synced.map_err(|e| ViewError::Failed {
                view: self.spec.name.clone(),
                reason: e.to_string(),
            })?;
        }
        self.runtime.block_on(delta.log.load()).map_err(failed)?;
        let table = delta.log.table();
        let checkpoint = |app: &String| {
            let found = self.runtime.block_on(async {
                table
                    .snapshot()?
                    .transaction_version(table.log_store().as_ref(), app)
                    .await
            });
            found.map(|lsn| lsn.map(|lsn| lsn as u64)).map_err(failed)
        };
        let recent = checkpoint(&self.app_ids.recent)?;
        let late = checkpoint(&self.app_ids.late)?;
        let files_lsn = self
            .files_app_id
            .as_ref()
            .map(checkpoint)
            .transpose()?
            .flatten();
        let files = Arc::new(read_files(&self.spec, table).map_err(failed)?);
        let levels = Arc::new(read_levels(&self.spec, table)?);
        delta.log.release();
        let committed = &mut delta.committed;
        committed.recent = recent.unwrap_or(committed.recent);
        committed.recent = committed.recent.max(files_lsn.unwrap_or(0));
        committed.late = late.unwrap_or(committed.late);
        delta.files_lsn = files_lsn.unwrap_or(delta.files_lsn);
        delta.needs_reload = false;
        let unresolved_files = std::mem::take(&mut delta.unresolved_files);
        let named: HashSet<&str> = files
            .iter()
            .chain(levels.iter().map(|level| &level.entry))
            .map(|f| f.path.as_str())
            .collect();
        self.remove_files(
            unresolved_files
                .iter()
                .map(String::as_str)
                .filter(|path| !named.contains(path)),
        );
        Ok(TableFiles { files, levels })
    }

    /// Takes the partitions that lie whole below the floor out of the table; gives the number of
    /// files. Rows below it are hidden already.
    pub fn drop_below_floor(&self) -> Result<usize, ViewError> {
        let Some(floor) = self.floor() else {
            return Ok(0);
        };
        let Some(width) = self.spec.layout.width() else {
            return Ok(0);
        };
        let below = bucket(floor, width);
        let remove: Vec<FileEntry> = self
            .files()
            .iter()
            .filter(|f| f.bucket < below)
            .cloned()
            .collect();
        let files = remove.len();
        if files > 0 {
            self.commit(
                &Change {
                    remove,
                    data_change: true,
                    ..Change::default()
                },
                &[],
            )?;
        }
        Ok(files)
    }

    /// Names of the Delta log's files, and the files of rows that they name, of one moment.
    pub fn committed_files(&self) -> Result<(Vec<PathBuf>, Vec<FileEntry>), ViewError> {
        let mut delta = self.lock_delta();
        self.reload_if_needed(&mut delta)?;
        let files = self.all_files();
        let failed = |e: std::io::Error| ViewError::Failed {
            view: self.spec.name.clone(),
            reason: e.to_string(),
        };
        let folder = Path::new("_delta_log");
        let mut log = Vec::new();
        for entry in std::fs::read_dir(self.spec.root.join(folder)).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            // What else begins with a dot is being written.
            let text = name.to_string_lossy();
            if !text.starts_with('.') || text.ends_with(CHECKPOINT_SUM) {
                log.push(folder.join(name));
            }
        }
        Ok((log, files))
    }

    /// Checkpoints the Delta log now and then, so that opening stays quick, and removes log files
    /// no reader needs.
    pub fn checkpoint_log(&self, now: bool) -> Result<(), ViewError> {
        let mut delta = self.lock_delta();
        if delta.commits < CHECKPOINT_EVERY && !(now && delta.commits > 0) {
            return Ok(());
        }
        let result = self.runtime.block_on(delta.log.checkpoint());
        delta.commits = 0;
        result.map_err(|e| delta_error(&self.spec.root, &e))
    }
}

fn delta_partition_values(spec: &TableSpec, bucket: i64) -> HashMap<String, Option<String>> {
    partition_values(bucket, spec.layout)
        .into_iter()
        .map(|(k, v)| (k.to_owned(), Some(v.to_string())))
        .collect()
}

fn tags(file: &FileEntry) -> HashMap<String, Option<String>> {
    HashMap::from([("weir.class".to_owned(), Some(file.class.name().to_owned()))])
}

pub(super) fn add_action(spec: &TableSpec, file: &FileEntry, data_change: bool) -> Add {
    Add {
        path: file.path.clone(),
        partition_values: delta_partition_values(spec, file.bucket),
        size: file.bytes as i64,
        modification_time: file.written_ms,
        data_change,
        stats: Some(stats_json(spec, file)),
        tags: Some(tags(file)),
        ..Add::default()
    }
}

fn remove_action(spec: &TableSpec, file: &FileEntry, data_change: bool, now_ms: i64) -> Remove {
    Remove {
        path: file.path.clone(),
        data_change,
        deletion_timestamp: Some(now_ms),
        extended_file_metadata: Some(true),
        partition_values: Some(delta_partition_values(spec, file.bucket)),
        size: Some(file.bytes as i64),
        tags: Some(tags(file)),
        deletion_vector: None,
        base_row_id: None,
        default_row_commit_version: None,
    }
}

/// The files of the loaded version.
pub(super) fn read_files(
    spec: &TableSpec,
    table: &DeltaTable,
) -> Result<Vec<FileEntry>, DeltaTableError> {
    Ok(table
        .snapshot()?
        .log_data()
        .iter()
        .map(|f| file_entry(spec, &f))
        .collect())
}

/// The levels that the loaded version names.
fn read_levels(spec: &TableSpec, table: &DeltaTable) -> Result<Vec<Level>, ViewError> {
    let snapshot = table.snapshot().map_err(|e| delta_error(&spec.root, &e))?;
    let Some(text) = snapshot.metadata().configuration().get(levels::KEY) else {
        return Ok(Vec::new());
    };
    levels::from_text(spec, text).map_err(ViewError::failed(spec.name.clone()))
}

fn file_entry(spec: &TableSpec, file: &LogicalFileView) -> FileEntry {
    let path = file.path().into_owned();
    let stats: serde_json::Value = file
        .stats()
        .and_then(|s| serde_json::from_str(&s).ok())
        .unwrap_or(serde_json::Value::Null);
    let lsn = |bound: &str, default: u64| stats[bound]["lsn"].as_u64().unwrap_or(default);
    let class = if path
        .rsplit('/')
        .next()
        .is_some_and(|n| n.starts_with("old-"))
    {
        RowClass::Late
    } else {
        RowClass::Recent
    };
    FileEntry {
        bytes: file.size() as u64,
        rows: stats["numRecords"].as_u64().unwrap_or(0),
        bucket: bucket_of(spec, file),
        class,
        min_time: stats["weir"]["min"].as_i64().unwrap_or(Micros::MIN),
        max_time: stats["weir"]["max"].as_i64().unwrap_or(Micros::MAX),
        min_lsn: lsn("minValues", 0),
        max_lsn: lsn("maxValues", Lsn::MAX),
        written_ms: file.modification_time(),
        checks: stats["weir"]["crc32c"]
            .as_str()
            .map(BlockChecksums::from_text)
            .unwrap_or_default(),
        path,
    }
}

fn bucket_of(spec: &TableSpec, file: &LogicalFileView) -> i64 {
    let values = file.partition_values_map();
    let value = |name: &str| {
        values
            .get(name)
            .cloned()
            .flatten()
            .and_then(|v| v.parse::<i64>().ok())
    };
    if spec.layout == Layout::Buckets {
        return value("bucket").unwrap_or(0);
    }
    let date = value("year")
        .zip(value("month"))
        .zip(value("day"))
        .and_then(|((y, m), d)| {
            chrono::NaiveDate::from_ymd_opt(
                i32::try_from(y).ok()?,
                u32::try_from(m).ok()?,
                u32::try_from(d).ok()?,
            )
        });
    let days = date
        .and_then(|d| d.and_hms_opt(0, 0, 0))
        .map_or(0, |t| t.and_utc().timestamp() / 86_400);
    if spec.layout == Layout::Hours {
        days * 24 + value("hour").unwrap_or(0)
    } else {
        days
    }
}
