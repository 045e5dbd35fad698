//! Reading a data folder that no process works on: what is committed, and how much of the log is
//! not.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::backlog::Backlog;
use super::context::FolderContext;
use super::data_dir::{DataDir, Lock};
use super::query_service::QueryService;
use super::snapshots::Snapshots;
use super::views::OpenViews;
use super::{RuntimeError, sink_threads, spools, sql_limits, startup, views};
use crate::config::Config;
use crate::event::Lsn;
use crate::ids::{CheckpointId, TableId, ViewId};
use crate::operators::Operators;
use crate::operators::snapshot::is_ahead_of_views;
use crate::query::sql::SqlEngine;
use crate::query::{Handles, MissingRecords};
use crate::storage::Disk;
use crate::wal::LogReader;

/// A folder opened read-only.
pub struct Offline {
    /// Answers queries from what is committed.
    pub queries: QueryService,
    _spill: Spill,
    _lock: Lock,
}

/// A folder for intermediate results, removed with its reader. Like everything that Weir writes it
/// is in the data folder; where that is read-only, only a query that needs it fails.
struct Spill(PathBuf);

impl Spill {
    fn new(folder: &DataDir) -> Self {
        Self(
            folder
                .spill()
                .join(format!("reader-{}", std::process::id())),
        )
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Offline {
    /// Opens the configured folder for reading, together with other readers.
    ///
    /// # Errors
    ///
    /// [`RuntimeError::InUse`] while a process works on the folder.
    pub fn open(config: &Config, runtime: &tokio::runtime::Handle) -> Result<Self, RuntimeError> {
        let context = FolderContext::existing(config, runtime)?;
        let folder = &context.folder;
        let lock = folder.lock_shared()?;
        let Some(log) = context.log()? else {
            startup::refuse_without_log(folder)?;
            let root = folder.root.display();
            return Err(RuntimeError::Config(format!(
                "{root} holds no data yet; start `weir run` first"
            )));
        };
        let snapshots = context.snapshots();
        let end = context.peek()?.last_lsn;
        snapshots.refuse_ahead(end)?;
        let (newest, _) = snapshots.newest_for(&BTreeMap::new(), Lsn::MAX)?;
        // The catalog in force at the log's end, which may be newer than the snapshot's.
        let catalog = context.stored_catalog(end)?;
        let opened = views::open(&context, &catalog, log, false)?;
        let handles = opened.handles.clone();
        let progress = &handles.progress;
        progress.set_synced(end);
        progress.set_sinks(sink_threads::stored(config, &folder.sinks()));
        progress.set_operators(&newest);
        handles.raise_floors(&newest.retention_floors());
        show_checkpoints(&opened, &newest, log.start_lsn);
        let base = complete_up_to(&opened, &newest, &snapshots)?;
        let open_at = newest.lsn();
        progress.attach_operators(Arc::new(Mutex::new(newest)));
        let reader = LogReader::new(Arc::new(Disk), folder.log(), base);
        let backlog = Backlog::read(reader, base, end, |lsn, at| progress.note_arrival(lsn, at))?;
        count_missing(&handles, backlog, open_at, end)?;
        let spill = Spill::new(folder);
        let sql = Arc::new(SqlEngine::new(
            &folder.lake(),
            &spill.0,
            sql_limits(config),
        )?);
        let queries = QueryService {
            handles,
            sql,
            clock: context.clock.clone(),
            search_limit: config.limits.search_limit,
            spools: spools(config, None),
        };
        Ok(Self {
            queries,
            _spill: spill,
            _lock: lock,
        })
    }
}

/// Sets how far the answers of each view reach. A view that has every row that was emitted for
/// it reaches as far as the snapshot, wherever its last row is.
fn show_checkpoints(opened: &OpenViews, newest: &Operators, start_lsn: Lsn) {
    let reach = |ids: Vec<CheckpointId>| {
        let own: BTreeMap<CheckpointId, Lsn> = ids
            .into_iter()
            .filter_map(|id| opened.checkpoints.get_key_value(&id))
            .map(|(id, lsn)| (id.clone(), *lsn))
            .collect();
        let lowest = own.values().copied().min().unwrap_or(start_lsn);
        if is_ahead_of_views(newest.emitted_through(), &own) {
            lowest
        } else {
            lowest.max(newest.lsn())
        }
    };
    let reach_of = |view: &ViewId| reach(vec![view.into()]);
    let handles = &opened.handles;
    for table in handles.tables.values() {
        let ids = table.checkpoints().into_iter().map(|(id, _)| id).collect();
        table.set_applied(reach(ids));
    }
    for (name, search) in &handles.search {
        search.set_visible(reach_of(&ViewId::search(name)));
    }
    for (name, places) in &handles.places {
        places.set_applied(reach_of(&ViewId::places(name)));
    }
    for (name, counts) in &handles.counts {
        counts.set_applied(reach_of(&ViewId::counts(name)));
    }
}

/// The record up to which every view has everything.
fn complete_up_to(
    opened: &OpenViews,
    newest: &Operators,
    snapshots: &Snapshots,
) -> Result<Lsn, RuntimeError> {
    let lsn = if is_ahead_of_views(newest.emitted_through(), &opened.checkpoints) {
        snapshots.newest_for(&opened.checkpoints, Lsn::MAX)?.0.lsn()
    } else {
        newest.lsn()
    };
    Ok(lsn.max(snapshots.start_lsn))
}

/// Counts, per view, the records that its answers lack; one that lacks none reaches the log's end.
/// Open windows and sessions are known up to `open_at`.
fn count_missing(
    handles: &Handles,
    mut backlog: Backlog,
    open_at: Lsn,
    end: Lsn,
) -> Result<(), RuntimeError> {
    let failed = RuntimeError::Failed;
    if let Some(table) = handles.tables.get(&TableId::DeadLetters) {
        backlog.add_dead_letters(table).map_err(failed)?;
    }
    let mut missing_rows = BTreeMap::new();
    for stream in backlog.streams() {
        let table = handles.stream_table(stream);
        missing_rows.insert(
            stream.clone(),
            backlog.missing(stream, table).map_err(failed)?,
        );
    }
    let mut missing = BTreeMap::new();
    for (view, at) in handles.checkpoints() {
        let stream = match &view {
            ViewId::Lake(table) => handles.catalog.stream_of(table),
            ViewId::Counts(stream) | ViewId::Places(stream) | ViewId::Search(stream) => {
                Some(&**stream)
            }
        };
        let count = match (stream, &view) {
            (Some(stream), ViewId::Lake(TableId::Stream(_))) => {
                missing_rows.get(stream).copied().unwrap_or(0)
            }
            // Their answers show open windows or sessions, too.
            (Some(stream), ViewId::Lake(TableId::Sessions(_) | TableId::Window(_))) => {
                backlog.above(stream, at.min(open_at))
            }
            (Some(stream), _) => backlog.above(stream, at),
            (None, ViewId::Lake(TableId::DeadLetters)) => missing_rows.values().sum(),
            (None, _) => backlog
                .streams()
                .map(|stream| backlog.above(stream, at))
                .sum(),
        };
        let stream = stream.map(str::to_owned);
        missing.insert(
            view,
            MissingRecords {
                stream,
                records: count,
            },
        );
    }
    let is_complete = |view: &ViewId| missing.get(view).is_some_and(|m| m.records == 0);
    show_end(handles, end, &is_complete);
    handles.progress.set_missing(missing);
    Ok(())
}

/// Sets that the views for which `is_complete` holds reach the log's end.
fn show_end(handles: &Handles, end: Lsn, is_complete: &dyn Fn(&ViewId) -> bool) {
    handles
        .tables
        .iter()
        .filter(|(n, _)| is_complete(&n.view()))
        .for_each(|(_, t)| t.set_applied(end));
    handles
        .search
        .iter()
        .filter(|(n, _)| is_complete(&ViewId::search(n)))
        .for_each(|(_, s)| s.set_visible(end));
    handles
        .places
        .iter()
        .filter(|(n, _)| is_complete(&ViewId::places(n)))
        .for_each(|(_, p)| p.set_applied(end));
    handles
        .counts
        .iter()
        .filter(|(n, _)| is_complete(&ViewId::counts(n)))
        .for_each(|(_, c)| c.set_applied(end));
}
