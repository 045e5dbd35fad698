//! Reading a data folder that no process is working on: what is committed, and how much of the log
//! is not.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::backlog::{self, Backlog};
use super::data_dir::{DataDir, Lock};
use super::query_service::QueryService;
use super::{
    RuntimeError, refuse_without_log, snapshots, sql_limits, stored_catalog, views, wal_options,
};
use crate::clock::SystemClock;
use crate::config::Config;
use crate::event::Lsn;
use crate::operators::{checkpoints, tables};
use crate::query::sql::SqlEngine;
use crate::query::{Handles, MissingRecords};
use crate::schema::Window;
use crate::storage::Disk;
use crate::views::lake::LogName;
use crate::wal::{LogReader, Wal};

/// A folder opened read-only.
pub struct Offline {
    pub answers: QueryService,
    _spill: Spill,
    _lock: Lock,
}

/// A folder for intermediate results, removed with its reader. Like everything that Weir writes it
/// lies in the data folder; where that takes no writes, a query that needs it fails by itself.
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
    pub fn open(config: &Config, runtime: &tokio::runtime::Handle) -> Result<Self, RuntimeError> {
        let folder = DataDir::existing(&config.data)?;
        let lock = folder.lock_shared()?;
        let options = wal_options(config, &folder);
        let Some(id) = Wal::log_id_of(&Disk, &options.folder)? else {
            refuse_without_log(&folder)?;
            let root = folder.root.display();
            return Err(RuntimeError::Config(format!(
                "{root} holds no data yet; start `weir run` first"
            )));
        };
        let log = LogName {
            instance: config.instance,
            id,
            zero: options.zero,
        };
        let snapshots = snapshots(config, &folder);
        let end = Wal::peek(&Disk, &options, options.zero)?.last_lsn;
        snapshots.refuse_ahead(end)?;
        let (newest, _) = snapshots.newest_for(&BTreeMap::new(), Lsn::MAX)?;
        // The streams that the log ends under, also where no snapshot tells them yet.
        let catalog = stored_catalog(config, &folder, end)?;
        let opened = views::open(config, &folder, &catalog, log, runtime, false)?;
        let handles = opened.handles.clone();
        let progress = &handles.progress;
        progress.set_synced(end);
        progress.set_operators(&newest);
        handles.raise_floors(&newest.floors());
        // A view that has every row it was given stands, for its readers, where the snapshot does.
        let stands = |names: Vec<String>| {
            let own: BTreeMap<String, Lsn> = names
                .iter()
                .filter_map(|n| Some((n.clone(), *opened.checkpoints.get(n)?)))
                .collect();
            let lowest = own.values().copied().min().unwrap_or(options.zero);
            if crate::operators::snapshot::is_ahead_of_views(newest.emitted_through(), &own) {
                lowest
            } else {
                lowest.max(newest.lsn())
            }
        };
        for table in handles.tables.values() {
            table.set_applied(stands(
                table.checkpoints().into_iter().map(|(n, _)| n).collect(),
            ));
        }
        for (name, search) in &handles.search {
            search.set_visible(stands(vec![checkpoints::search(name)]));
        }
        for (name, places) in &handles.places {
            places.set_applied(stands(vec![checkpoints::places(name)]));
        }
        for (name, counts) in &handles.counts {
            counts.set_applied(stands(vec![checkpoints::counts(name)]));
        }
        let is_whole = !crate::operators::snapshot::is_ahead_of_views(
            newest.emitted_through(),
            &opened.checkpoints,
        );
        let base = if is_whole {
            newest.lsn()
        } else {
            snapshots.newest_for(&opened.checkpoints, Lsn::MAX)?.0.lsn()
        };
        let base = base.max(options.zero);
        let open_at = newest.lsn();
        progress.attach_operators(Arc::new(Mutex::new(newest)));
        let reader = LogReader::new(Arc::new(Disk), folder.log(), base);
        let backlog = Backlog::read(reader, base, end, |lsn, at| progress.note_arrival(lsn, at))?;
        count_what_is_missing(&handles, backlog, open_at, end)?;
        let spill = Spill::new(&folder);
        let sql = Arc::new(SqlEngine::new(
            &folder.lake(),
            &spill.0,
            sql_limits(config),
        )?);
        let clock = Arc::new(SystemClock::default());
        let search_limit = config.limits.search_limit;
        let answers = QueryService {
            handles,
            sql,
            clock,
            search_limit,
            spools: super::spools(config, None),
        };
        Ok(Self {
            answers,
            _spill: spill,
            _lock: lock,
        })
    }
}

/// Tells, per view, how many records its answers lack; one that lacks none reaches the log's end.
/// What is open in windows and sessions is known up to `open_at`.
fn count_what_is_missing(
    handles: &Handles,
    mut backlog: Backlog,
    open_at: Lsn,
    end: Lsn,
) -> Result<(), RuntimeError> {
    let failed = RuntimeError::Failed;
    if let Some(table) = handles.tables.get(checkpoints::DEAD_LETTERS) {
        backlog.note_dead_letters(table).map_err(failed)?;
    }
    let mut of_streams = BTreeMap::new();
    for stream in backlog.streams() {
        let table = handles.tables.get(stream);
        of_streams.insert(
            stream.clone(),
            backlog.missing(stream, table).map_err(failed)?,
        );
    }
    let mut missing = BTreeMap::new();
    for (view, at) in handles.checkpoints() {
        let stream = backlog::stream_of(&view, |table| handles.stream_of(table));
        let count = match &stream {
            Some(stream) if view == views::of_table(stream) => {
                of_streams.get(stream).copied().unwrap_or(0)
            }
            Some(stream) if has_open_rows(&view, stream, handles) => {
                backlog.above(stream, at.min(open_at))
            }
            Some(stream) => backlog.above(stream, at),
            None if view == views::of_table(checkpoints::DEAD_LETTERS) => of_streams.values().sum(),
            None => backlog
                .streams()
                .map(|stream| backlog.above(stream, at))
                .sum(),
        };
        missing.insert(
            view,
            MissingRecords {
                stream,
                records: count,
            },
        );
    }
    let is_whole = |view: &str| missing.get(view).is_some_and(|m| m.records == 0);
    handles
        .tables
        .iter()
        .filter(|(n, _)| is_whole(&views::of_table(n)))
        .for_each(|(_, t)| t.set_applied(end));
    handles
        .search
        .iter()
        .filter(|(n, _)| is_whole(&checkpoints::search(n)))
        .for_each(|(_, s)| s.set_visible(end));
    handles
        .places
        .iter()
        .filter(|(n, _)| is_whole(&checkpoints::places(n)))
        .for_each(|(_, p)| p.set_applied(end));
    handles
        .counts
        .iter()
        .filter(|(n, _)| is_whole(&checkpoints::counts(n)))
        .for_each(|(_, c)| c.set_applied(end));
    handles.progress.set_missing(missing);
    Ok(())
}

/// Whether answers of a view show what operators have open, too.
fn has_open_rows(view: &str, stream: &str, handles: &Handles) -> bool {
    let is_window =
        |window: &Arc<Window>| view == checkpoints::table(&tables::versions_of(&window.name));
    view == checkpoints::table(&tables::sessions(stream))
        || handles.catalog.windows.iter().any(is_window)
}
