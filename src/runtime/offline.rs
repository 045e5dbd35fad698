//! Reading a data folder that no process is working on: what is committed, and how much of the log is not.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::folder::{Folder, Lock};
use super::{RuntimeError, snapshots, sql_limits, views, wal_options};
use crate::config::Config;
use crate::event::Lsn;
use crate::query::Handles;
use crate::query::sql::SqlEngine;
use crate::storage::Disk;
use crate::views::lake::LogName;
use crate::wal::{LogReader, Wal};

/// A folder opened read-only.
pub struct Offline {
    pub handles: Handles,
    pub sql: SqlEngine,
    /// Synced records that the views do not hold.
    pub pending: u64,
    _lock: Lock,
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
        let opened = views::open(config, &folder, newest.catalog(), log, runtime, false)?;
        let handles = opened.handles;
        let end = Wal::peek(&Disk, &options, options.zero)?.last_lsn;
        let progress = &handles.progress;
        progress.set_synced(end);
        progress.set_operators(newest.progress(), newest.gaps().cloned().collect(), newest.partitions().clone());
        // A view that has every row it was given stands, for its readers, where the snapshot does.
        for (name, table) in &handles.tables {
            let positions = table.positions().into_iter().collect();
            let at = if crate::operators::snapshot::is_behind(newest.given(), &positions) {
                positions.values().copied().min().unwrap_or(options.zero)
            } else {
                positions.values().copied().min().unwrap_or(options.zero).max(newest.lsn())
            };
            tracing::debug!(table = name, at, end, "read-only");
            table.set_applied(at);
        }
        let lowest = handles.positions().into_iter().map(|(_, lsn)| lsn).min().unwrap_or(end);
        let mut reader = LogReader::new(Arc::new(Disk), folder.log(), lowest);
        if let Some(frame) = reader.next(end)? {
            progress.note_synced(frame.header.last_lsn(), frame.header.received_at);
        }
        let spill = std::env::temp_dir().join(format!("weir-{}", std::process::id()));
        let sql = SqlEngine::new(&folder.lake(), &spill, sql_limits(config))?;
        Ok(Self { handles, sql, pending: end.saturating_sub(lowest), _lock: lock })
    }
}
