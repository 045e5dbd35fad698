//! One Delta table: opening it, committing to it, and the state that queries read. Files and
//! unflushed rows change under one lock, so a snapshot has each row exactly once, also during a
//! commit or a merge.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use deltalake::DeltaTableError;
use deltalake::kernel::{Action, Transaction};

use super::actions::{add_action, read_files, remove_action};
use super::change::Change;
use super::columns::{add_columns, column_conflict, columns_of, layout_of, metadata_of};
use super::delta::DeltaLog;
use super::entities::levels::Level;
use super::entities::{self, Sizes};
use super::error::InView;
use super::files::{FileEntry, sync_files};
use super::memtable::{self, UnflushedRows};
use super::store::CHECKPOINT_SUM;
use super::version::{AppIds, TableVersion};
use super::{LakeError, PerClass, RowClass, TableSpec};
use crate::event::{Lsn, Micros, bucket};
use crate::ids::CheckpointId;
use crate::schema::Layout;
use crate::schema::entity::newest;
use crate::views::{LogIdentity, ViewError};

/// Commits between two checkpoints of the Delta log.
const CHECKPOINT_EVERY: u64 = 64;

/// A table as queries see it, at one moment.
#[derive(Debug, Clone, Default)]
pub struct TableState {
    /// The files of the current version.
    pub files: Arc<Vec<FileEntry>>,
    /// Rows above the last commit, in the order of their LSNs.
    pub unflushed: PerClass<Vec<Arc<UnflushedRows>>>,
    /// Of an entity table: rows that are not yet merged into its files.
    pub levels: Arc<Vec<Level>>,
    /// The first parts of each class are being written: no rows are merged into them.
    sealed: PerClass<usize>,
    /// Everything up to here is in files or unflushed rows.
    pub applied: Lsn,
    /// The last record of which retention has removed a row.
    pub dropped_lsn: Lsn,
    /// Rows below this time are no longer part of the table.
    floor: Option<Micros>,
    /// Likewise, by time of arrival; it may go back, unlike the other.
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
    /// With the layout that the table has.
    pub spec: TableSpec,
    /// The layout of the configuration; the table has it once it is rebuilt.
    pub configured: Layout,
    /// `spec.schema` followed by the partition columns.
    pub full_schema: SchemaRef,
    app_ids: AppIds,
    /// Of an entity table.
    pub(super) sizes: Sizes,
    /// Of an entity table: its view merges all levels when it ends.
    merge_all_on_close: AtomicBool,
    delta: Mutex<Delta>,
    state: RwLock<TableState>,
    runtime: tokio::runtime::Handle,
}

/// The table's state in Delta, under the lock of commits.
pub(super) struct Delta {
    log: DeltaLog,
    commits: u64,
    committed: PerClass<Lsn>,
    /// The files have everything up to this record, as outside readers see them.
    files_lsn: Lsn,
    /// Files that the table no longer names: since when, milliseconds since 1970, and their bytes.
    pub(super) tombstones: HashMap<PathBuf, (i64, u64)>,
    /// A commit failed, and the table must be read before the next one.
    needs_reload: bool,
    /// Files of that commit: removed once the table shows that it did not happen.
    unresolved_files: Vec<String>,
}

type FilesAndLevels = (Arc<Vec<FileEntry>>, Arc<Vec<Level>>);

fn other_log_error(path: PathBuf, log: LogIdentity) -> ViewError {
    let reason = format!(
        "has rows of another log than {:x}; restore log and lake from one backup, or move this folder away",
        log.id
    );
    ViewError::Damaged { path, reason }
}

impl LakeTable {
    /// Opens or creates the table. Not `writable`: never changes anything, and returns `None` for a
    /// table that does not exist.
    pub fn open(
        spec: TableSpec,
        log: LogIdentity,
        runtime: tokio::runtime::Handle,
        writable: bool,
    ) -> Result<Option<Self>, ViewError> {
        Self::open_as(spec, log, runtime, writable, true)
    }

    /// Opens a table whose rows are replaced by [`Self::replace_with`]: its columns may differ.
    pub fn open_to_replace(
        spec: TableSpec,
        log: LogIdentity,
        runtime: tokio::runtime::Handle,
    ) -> Result<Self, ViewError> {
        let root = spec.root.clone();
        let missing = || ViewError::Damaged {
            path: root,
            reason: "does not exist".into(),
        };
        Self::open_as(spec, log, runtime, true, false)?.ok_or_else(missing)
    }

    /// Replaces all rows by those of another table, with its checkpoints, in one commit. Does nothing
    /// where that was done before.
    pub fn replace_with(&self, new: &Self) -> Result<(), ViewError> {
        let (old_files, files) = (self.files(), new.files());
        let paths: HashSet<&str> = old_files.iter().map(|f| f.path.as_str()).collect();
        if !files.is_empty() && files.iter().all(|f| paths.contains(f.path.as_str())) {
            return Ok(());
        }
        let (levels, old_levels) = (new.snapshot().levels, self.snapshot().levels);
        self.link_files(new)?;
        let committed = new.committed();
        let classes = self.spec.classes().iter();
        let checkpoints = classes.map(|class| (*class, committed[*class])).collect();
        let new_spec = Some(Box::new(new.spec.clone()));
        let (add, remove) = (files.to_vec(), old_files.to_vec());
        let levels = (!levels.is_empty() || !old_levels.is_empty()).then(|| levels.to_vec());
        let files_lsn = Some(new.files_lsn());
        self.commit(
            &Change {
                add,
                remove,
                checkpoints,
                levels,
                files_lsn,
                dropped_lsn: None,
                data_change: true,
                new_spec,
            },
            &[],
        )?;
        // An outside reader may still read the old files: their grace period begins now, also after
        // a restart, which goes by the time of modification.
        let old_levels = old_levels.iter().map(|level| &level.entry);
        for file in old_files.iter().chain(old_levels) {
            let _ = std::fs::File::open(self.spec.root.join(&file.path))
                .and_then(|file| file.set_modified(crate::clock::wall_clock()));
        }
        Ok(())
    }

    /// Links the files and levels of another table into this one's folder, and syncs them.
    fn link_files(&self, from: &Self) -> Result<(), ViewError> {
        let files = from.all_files();
        for file in &files {
            let source = from.spec.root.join(&file.path);
            let target = self.spec.root.join(&file.path);
            if let Some(folder) = target.parent() {
                crate::storage::create_folders(folder).in_folder(&target)?;
            }
            match std::fs::hard_link(&source, &target) {
                Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(e).in_folder(&target);
                }
                _ => {}
            }
        }
        sync_files(&self.spec.root, &files).in_folder(&self.spec.root)
    }

    fn open_as(
        mut spec: TableSpec,
        log: LogIdentity,
        runtime: tokio::runtime::Handle,
        writable: bool,
        adds_columns: bool,
    ) -> Result<Option<Self>, ViewError> {
        if !writable && !spec.root.join("_delta_log").is_dir() {
            return Ok(None);
        }
        let mut delta_log = runtime
            .block_on(DeltaLog::open(&spec))
            .in_folder(&spec.root)?;
        let configured = spec.layout;
        // A table retains its layout until it is replaced.
        spec.layout = layout_of(delta_log.table())
            .in_folder(&spec.root)?
            .unwrap_or(configured);
        let full_schema = spec.full_schema();
        if writable && adds_columns {
            runtime.block_on(add_columns(delta_log.table_mut(), &spec, &full_schema))?;
            delta_log.refresh().in_folder(&spec.root)?;
        }
        let app_ids = AppIds::new(log, spec.layout);
        let version = TableVersion::read(&spec, delta_log.table(), &app_ids, &runtime)?;
        delta_log.release();
        let files_lsn = version.files_lsn.unwrap_or(log.start_lsn);
        let mut committed = version.committed.map(|lsn| lsn.unwrap_or(log.start_lsn));
        // A table from before there were levels has its files' checkpoint only.
        committed.recent = committed.recent.max(files_lsn);
        let is_empty = version.files.is_empty() && version.levels.is_empty();
        if committed == PerClass::both(log.start_lsn) && !is_empty {
            return Err(other_log_error(spec.root, log));
        }
        let state = TableState {
            files: version.files,
            levels: version.levels,
            dropped_lsn: version.dropped_lsn,
            ..TableState::default()
        };
        let delta = Delta {
            log: delta_log,
            commits: 0,
            committed,
            files_lsn,
            tombstones: HashMap::new(),
            needs_reload: false,
            unresolved_files: Vec::new(),
        };
        let table = Self {
            spec,
            configured,
            full_schema,
            app_ids,
            sizes: Sizes::default(),
            merge_all_on_close: false.into(),
            delta: Mutex::new(delta),
            state: RwLock::new(state),
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

    /// Files and unflushed rows as of one moment.
    pub fn snapshot(&self) -> TableState {
        self.read().clone()
    }

    /// The files of the current version, without those of levels.
    pub fn files(&self) -> Arc<Vec<FileEntry>> {
        self.read().files.clone()
    }

    /// Of an entity table: whether rows wait to be merged into its files.
    pub fn has_levels(&self) -> bool {
        !self.read().levels.is_empty()
    }

    /// Makes the view merge all levels when it ends.
    pub fn merge_on_close(&self) {
        self.merge_all_on_close.store(true, Ordering::Relaxed);
    }

    pub(super) fn merges_on_close(&self) -> bool {
        self.merge_all_on_close.load(Ordering::Relaxed)
    }

    /// The files, including those of levels.
    pub fn all_files(&self) -> Vec<FileEntry> {
        let state = self.snapshot();
        state
            .files
            .iter()
            .chain(state.levels.iter().map(|level| &level.entry))
            .cloned()
            .collect()
    }

    /// Everything up to here is in files or unflushed rows.
    pub fn applied(&self) -> Lsn {
        self.read().applied
    }

    /// Why the table cannot get the columns of its specification, if so.
    pub fn column_conflict(&self) -> Result<Option<String>, ViewError> {
        let mut delta = self.lock_delta();
        let loaded = self.runtime.block_on(delta.log.load());
        let table = loaded.in_folder(&self.spec.root)?;
        let found = columns_of(table).in_folder(&self.spec.root)?;
        delta.log.release();
        Ok(column_conflict(&found, &self.full_schema))
    }

    /// Committed checkpoints.
    pub fn committed(&self) -> PerClass<Lsn> {
        self.lock_delta().committed
    }

    /// The files have everything up to this record, as outside readers see them.
    pub fn files_lsn(&self) -> Lsn {
        let delta = self.lock_delta();
        let committed = delta.committed;
        match (&self.app_ids.files, self.spec.checkpoint_ids().1) {
            (Some(_), _) => delta.files_lsn,
            (None, Some(_)) => committed.recent.min(committed.late),
            (None, None) => committed.recent,
        }
    }

    /// Committed checkpoints, read from the table if a commit left them uncertain.
    pub fn reload_committed(&self) -> Result<PerClass<Lsn>, ViewError> {
        let mut delta = self.lock_delta();
        self.reload_if_needed(&mut delta)?;
        Ok(delta.committed)
    }

    /// Committed checkpoints.
    pub fn checkpoints(&self) -> Vec<(CheckpointId, Lsn)> {
        let committed = self.committed();
        let (recent, late) = self.spec.checkpoint_ids();
        let mut checkpoints = vec![(recent, committed.recent)];
        checkpoints.extend(late.map(|id| (id, committed.late)));
        checkpoints
    }

    /// Publishes how far the table's view is.
    pub fn set_applied(&self, lsn: Lsn) {
        self.write().applied = lsn;
    }

    /// Rows below this time are no longer part of the table.
    pub fn floor(&self) -> Option<Micros> {
        self.read().floor()
    }

    /// Hides rows below a time; a lower floor than before has no effect.
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
    pub fn compact_in_memory(&self) -> Result<(usize, usize), LakeError> {
        let state = self.snapshot();
        let sealed = state.sealed.recent;
        let uncompacted = state.unflushed.recent[sealed..]
            .iter()
            .map(|part| part.batch(&self.spec.schema));
        let uncompacted = uncompacted.collect::<Result<Vec<_>, _>>()?;
        let all = concat_batches(&self.spec.schema, &uncompacted)?;
        let compacted = newest(&all, &self.spec.keys).map_err(LakeError::rows)?;
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
        let reloaded =
            match self
                .runtime
                .block_on(self.try_commit(&mut delta.log, change, files_lsn))
            {
                Ok(reloaded) => reloaded,
                Err(error) => Some(self.resolve_failed_commit(&mut delta, change, error)?),
            };
        for (class, lsn) in &change.checkpoints {
            delta.committed[*class] = *lsn;
        }
        delta.files_lsn = files_lsn.unwrap_or(delta.files_lsn);
        delta.commits += 1;
        let now_ms = crate::clock::wall_clock_ms();
        let merged = change
            .levels
            .iter()
            .flat_map(|levels| entities::removed_levels(&before, levels));
        let removed = change.remove.iter().chain(merged);
        delta
            .tombstones
            .extend(removed.map(|f| (self.spec.root.join(&f.path), (now_ms, f.bytes))));
        let mut state = self.write();
        // Where the table was reloaded, it names the new files already.
        let changed: HashSet<&str> = change
            .remove
            .iter()
            .chain(&change.add)
            .map(|f| f.path.as_str())
            .collect();
        let before = reloaded.as_ref().unwrap_or(&state.files);
        let mut files: Vec<FileEntry> = before
            .iter()
            .filter(|f| !changed.contains(f.path.as_str()))
            .cloned()
            .collect();
        files.extend(change.add.iter().cloned());
        state.files = Arc::new(files);
        if let Some(levels) = &change.levels {
            state.levels = Arc::new(levels.clone());
        }
        state.dropped_lsn = state
            .dropped_lsn
            .max(change.dropped_lsn.unwrap_or_default());
        for (class, parts) in flushed {
            state.sealed[*class] = 0;
            drop(state.unflushed[*class].drain(..*parts));
        }
        Ok(())
    }

    /// The files that a change adds, including those of levels.
    fn new_files<'a>(&self, change: &'a Change) -> impl Iterator<Item = &'a FileEntry> {
        let known = self.snapshot().levels;
        let is_new = move |level: &&Level| !known.contains(level);
        let levels = change
            .levels
            .iter()
            .flatten()
            .filter(is_new)
            .map(|level| &level.entry);
        change.add.iter().chain(levels)
    }

    /// The record as of which the files are after a change, if that is another record than the
    /// checkpoint.
    fn files_lsn_of(&self, delta: &Delta, change: &Change, before: &[Level]) -> Option<Lsn> {
        self.app_ids.files.as_ref()?;
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

    /// Returns the files where another writer had changed the table too.
    async fn try_commit(
        &self,
        log: &mut DeltaLog,
        change: &Change,
        files_lsn: Option<Lsn>,
    ) -> Result<Option<Arc<Vec<FileEntry>>>, DeltaTableError> {
        let mut transactions: Vec<Transaction> = Vec::new();
        for (class, lsn) in &change.checkpoints {
            transactions.push(Transaction::new(&self.app_ids.classes[*class], *lsn as i64));
        }
        transactions.extend(
            self.app_ids
                .files
                .as_ref()
                .zip(files_lsn)
                .map(|(app, lsn)| Transaction::new(app, lsn as i64)),
        );
        let dropped = change.dropped_lsn;
        transactions.extend(dropped.map(|lsn| Transaction::new(&self.app_ids.dropped, lsn as i64)));
        if !change.remove.is_empty() {
            transactions.push(Transaction::new("__maint__", log.version() as i64 + 1));
        }
        let now_ms = crate::clock::wall_clock_ms();
        let spec = change.new_spec.as_deref().unwrap_or(&self.spec);
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
        if change.new_spec.is_some() || change.levels.is_some() {
            let metadata = metadata_of(
                log.metadata(),
                change.new_spec.as_deref(),
                change.levels.as_deref(),
            )?;
            actions.push(Action::Metadata(metadata));
        }
        let operation = change.operation(spec);
        if !log.commit(actions, operation, transactions).await? {
            return Ok(None);
        }
        let files = read_files(spec, log.table())?;
        log.release();
        Ok(Some(Arc::new(files)))
    }

    /// After an error of a commit: only the table knows whether it happened.
    ///
    /// If so, returns the files, which become visible together with what the caller drops for them.
    /// For example, the disk fails in the sync after the entry was written: the table names the new
    /// files, so the commit counts. If the entry was not written, its files are removed and the view
    /// retries from its checkpoint. If the table cannot be read, `needs_reload` defers the decision.
    fn resolve_failed_commit(
        &self,
        delta: &mut Delta,
        change: &Change,
        error: DeltaTableError,
    ) -> Result<Arc<Vec<FileEntry>>, ViewError> {
        delta.needs_reload = true;
        let paths: Vec<String> = self.new_files(change).map(|f| f.path.clone()).collect();
        delta.unresolved_files.extend(paths);
        let (files, levels) = self.reload(delta)?;
        if change.is_applied(&files, &levels) {
            return Ok(files);
        }
        let mut state = self.write();
        (state.files, state.levels) = (files, levels);
        Err(error).in_view(&self.spec.name)
    }

    fn remove_files<'a>(&self, paths: impl Iterator<Item = &'a str>) {
        for path in paths {
            let _ = std::fs::remove_file(self.spec.root.join(path));
        }
    }

    /// Reads files and checkpoints again if a commit left them uncertain; returns the files.
    pub(super) fn reload_if_needed(
        &self,
        delta: &mut Delta,
    ) -> Result<Arc<Vec<FileEntry>>, ViewError> {
        if !delta.needs_reload {
            return Ok(self.files());
        }
        let (files, levels) = self.reload(delta)?;
        let mut state = self.write();
        (state.files, state.levels) = (files.clone(), levels);
        Ok(files)
    }

    /// Reads files, levels and checkpoints; removes the files of a commit that did not happen.
    fn reload(&self, delta: &mut Delta) -> Result<FilesAndLevels, ViewError> {
        // The error may have been the sync of the entry's name: what is read now must survive a
        // power cut too.
        for folder in [&self.spec.root.join("_delta_log"), &self.spec.root] {
            let synced = crate::storage::sync_folder(folder);
            synced.in_view(&self.spec.name)?;
        }
        let loaded = self.runtime.block_on(delta.log.load());
        let table = loaded.in_folder(&self.spec.root)?;
        let version = TableVersion::read(&self.spec, table, &self.app_ids, &self.runtime)?;
        delta.log.release();
        let TableVersion { files, levels, .. } = version;
        let committed = &mut delta.committed;
        committed.recent = version.committed.recent.unwrap_or(committed.recent);
        committed.recent = committed.recent.max(version.files_lsn.unwrap_or(0));
        committed.late = version.committed.late.unwrap_or(committed.late);
        delta.files_lsn = version.files_lsn.unwrap_or(delta.files_lsn);
        delta.needs_reload = false;
        self.write().dropped_lsn = version.dropped_lsn;
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
        Ok((files, levels))
    }

    /// Drops partitions entirely below the retention floor; returns the number of files. Rows below
    /// it are hidden already.
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
        let dropped = remove.iter().map(|file| file.max_lsn).max();
        if files > 0 {
            self.commit(
                &Change {
                    remove,
                    dropped_lsn: dropped.max(Some(self.dropped_lsn())),
                    data_change: true,
                    ..Change::default()
                },
                &[],
            )?;
        }
        Ok(files)
    }

    /// The last record of which retention has removed a row.
    pub fn dropped_lsn(&self) -> Lsn {
        self.read().dropped_lsn
    }

    /// Names of the Delta log's files, and the data files that they name, as of one moment.
    pub fn committed_files(&self) -> Result<(Vec<PathBuf>, Vec<FileEntry>), ViewError> {
        let mut delta = self.lock_delta();
        self.reload_if_needed(&mut delta)?;
        let files = self.all_files();
        let view = &self.spec.name;
        let folder = Path::new("_delta_log");
        let mut log = Vec::new();
        for entry in std::fs::read_dir(self.spec.root.join(folder)).in_view(view)? {
            let name = entry.in_view(view)?.file_name();
            // Other names that begin with a dot are temporary.
            let text = name.to_string_lossy();
            if !text.starts_with('.') || text.ends_with(CHECKPOINT_SUM) {
                log.push(folder.join(name));
            }
        }
        Ok((log, files))
    }

    /// Checkpoints the Delta log after `CHECKPOINT_EVERY` commits, or `now`, so that opening stays
    /// quick, and removes log files that no reader needs.
    pub fn checkpoint_log(&self, now: bool) -> Result<(), ViewError> {
        let mut delta = self.lock_delta();
        if delta.commits < CHECKPOINT_EVERY && !(now && delta.commits > 0) {
            return Ok(());
        }
        let result = self.runtime.block_on(delta.log.checkpoint());
        delta.commits = 0;
        result.in_folder(&self.spec.root)
    }
}
