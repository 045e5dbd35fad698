//! Reading a data folder that no process is working on: what is committed, and how much of the log is not.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::folder::{Folder, Lock};
use super::questions::Answers;
use super::{RuntimeError, snapshots, sql_limits, stored_catalog, views, wal_options};
use crate::clock::SystemClock;
use crate::config::Config;
use crate::event::Lsn;
use crate::operators::positions;
use crate::query::sql::SqlEngine;
use crate::storage::Disk;
use crate::views::lake::LogName;
use crate::wal::{LogReader, Wal};

/// A folder opened read-only.
pub struct Offline {
    pub answers: Answers,
    /// Synced records that the views do not hold.
    pub pending: u64,
    _spill: Spill,
    _lock: Lock,
}

/// A folder for intermediate results, removed with its reader. Like everything that Weir writes it lies in the data folder; where
/// that takes no writes, a query that needs it fails by itself.
struct Spill(PathBuf);

impl Spill {
    fn new(folder: &Folder) -> Self {
        Self(folder.spill().join(format!("reader-{}", std::process::id())))
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Offline {
    pub fn open(config: &Config, runtime: &tokio::runtime::Handle) -> Result<Self, RuntimeError> {
        let folder = Folder::existing(&config.data)?;
        let lock = folder.lock_shared()?;
        let options = wal_options(config, &folder);
        let id = Wal::log_id_of(&Disk, &options.folder)?.ok_or_else(|| {
            RuntimeError::Config(format!("{} holds no data yet; start `weir run` first", folder.root.display()))
        })?;
        let log = LogName { instance: config.instance, id, zero: options.zero };
        let snapshots = snapshots(config, &folder);
        let (newest, _) = snapshots.newest_for(&BTreeMap::new(), Lsn::MAX)?;
        let end = Wal::peek(&Disk, &options, options.zero)?.last_lsn;
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
            let own: BTreeMap<String, Lsn> =
                names.iter().filter_map(|n| Some((n.clone(), *opened.positions.get(n)?))).collect();
            let lowest = own.values().copied().min().unwrap_or(options.zero);
            if crate::operators::snapshot::is_behind(newest.given(), &own) { lowest } else { lowest.max(newest.lsn()) }
        };
        for table in handles.tables.values() {
            table.set_applied(stands(table.positions().into_iter().map(|(n, _)| n).collect()));
        }
        for (name, search) in &handles.search {
            search.set_visible(stands(vec![positions::search(name)]));
        }
        for (name, places) in &handles.places {
            places.set_applied(stands(vec![positions::places(name)]));
        }
        for (name, counts) in &handles.counts {
            counts.set_applied(stands(vec![positions::counts(name)]));
        }
        progress.show(Arc::new(Mutex::new(newest)));
        let lowest = handles.positions().into_iter().map(|(_, lsn)| lsn).min().unwrap_or(end);
        let mut reader = LogReader::new(Arc::new(Disk), folder.log(), lowest);
        if let Some(frame) = reader.next(end)? {
            progress.note_synced(frame.header.last_lsn(), frame.header.received_at);
        }
        let spill = Spill::new(&folder);
        let sql = Arc::new(SqlEngine::new(&folder.lake(), &spill.0, sql_limits(config))?);
        let clock = Arc::new(SystemClock::default());
        let answers = Answers { handles, sql, clock, search_limit: config.limits.search_limit };
        Ok(Self { answers, pending: end.saturating_sub(lowest), _spill: spill, _lock: lock })
    }
}
