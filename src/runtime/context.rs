//! A data folder together with the configuration it is opened under, passed as one value.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::data_dir::DataDir;
use super::snapshots::Snapshots;
use super::{RuntimeError, reserve};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, Declarations};
use crate::event::{Lsn, lsn_zero};
use crate::schema::Catalog;
use crate::storage::Disk;
use crate::views::LogIdentity;
use crate::wal::{Kind, LogReader, Recovered, Wal, WalOptions};

/// What opening the parts of a data folder takes.
#[derive(Clone)]
pub struct FolderContext {
    /// The configuration to open it under, which may differ from the one that the log ends under.
    pub config: Config,
    /// The live data folder, or that of a build inside it.
    pub folder: DataDir,
    /// Runs what the lake's library does asynchronously.
    pub runtime: tokio::runtime::Handle,
    /// Arrival times of frames that this process appends.
    pub clock: Arc<dyn Clock>,
}

impl FolderContext {
    /// A folder that exists, with the system's clock.
    pub fn new(config: &Config, folder: DataDir, runtime: &tokio::runtime::Handle) -> Self {
        Self {
            config: config.clone(),
            folder,
            runtime: runtime.clone(),
            clock: Arc::new(SystemClock::default()),
        }
    }

    /// The configured folder, which must exist.
    pub(super) fn existing(
        config: &Config,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Self, RuntimeError> {
        Ok(Self::new(config, DataDir::existing(&config.data)?, runtime))
    }

    /// The same configuration with another folder.
    pub(super) fn at(&self, folder: DataDir) -> Self {
        Self {
            folder,
            ..self.clone()
        }
    }

    /// The LSN before the log's first.
    pub(super) fn start_lsn(&self) -> Lsn {
        lsn_zero(self.config.instance)
    }

    pub(super) fn wal_options(&self) -> WalOptions {
        wal_options(&self.config, &self.folder)
    }

    pub(super) fn snapshots(&self) -> Snapshots {
        snapshots(&self.config, &self.folder)
    }

    /// The log of the folder; none where it has no segment.
    pub(super) fn log(&self) -> Result<Option<LogIdentity>, RuntimeError> {
        let id = Wal::log_id_of(&Disk, &self.folder.log())?;
        Ok(id.map(|id| self.log_with(id)))
    }

    /// As [`Self::log`], where there must be one.
    pub(super) fn existing_log(&self) -> Result<LogIdentity, RuntimeError> {
        self.log()?.ok_or_else(|| {
            RuntimeError::Config(format!("{} holds no data yet", self.folder.root.display()))
        })
    }

    pub(super) fn log_of(&self, wal: &Wal) -> LogIdentity {
        self.log_with(wal.log_id())
    }

    fn log_with(&self, id: u64) -> LogIdentity {
        LogIdentity {
            instance: self.config.instance,
            id,
            start_lsn: self.start_lsn(),
        }
    }

    /// Reads the log's end without changing anything.
    pub(super) fn peek(&self) -> Result<Recovered, RuntimeError> {
        peek(&self.config, &self.folder)
    }

    /// The declarations in force at a record; none in an empty log.
    pub(super) fn declarations_at(&self, end: Lsn) -> Result<Option<Declarations>, RuntimeError> {
        let snapshots = self.snapshots();
        let parse = |text: &str| {
            Declarations::from_json(text).map_err(|e| RuntimeError::Damaged(e.to_string()))
        };
        let newest = snapshots.newest_configuration(end)?;
        let mut stored = newest.as_ref().map(|(_, text)| parse(text)).transpose()?;
        let after = newest.map_or(snapshots.start_lsn, |(lsn, _)| lsn);
        let mut reader = LogReader::new(Arc::new(Disk), self.folder.log(), after);
        while let Some(frame) = reader.next(end)? {
            if frame.header.kind == Kind::Configuration {
                let records = frame
                    .records()
                    .map_err(|e| RuntimeError::Damaged(e.to_string()))?;
                stored = Some(parse(&String::from_utf8_lossy(records.get(0)))?);
            }
        }
        Ok(stored)
    }

    /// The catalog in force at the log's end; an empty one in an empty log.
    pub(super) fn stored_catalog(&self, end: Lsn) -> Result<Arc<Catalog>, RuntimeError> {
        compile_or_empty(self.declarations_at(end)?.as_ref())
    }
}

/// Compiles declarations that the log or a snapshot holds.
pub(super) fn compile_stored(declared: &Declarations) -> Result<Arc<Catalog>, RuntimeError> {
    Catalog::compile(declared)
        .map(Arc::new)
        .map_err(|e| RuntimeError::Damaged(e.to_string()))
}

/// As [`compile_stored`]; without declarations the catalog of an empty log.
pub(super) fn compile_or_empty(
    declared: Option<&Declarations>,
) -> Result<Arc<Catalog>, RuntimeError> {
    match declared {
        Some(declared) => compile_stored(declared),
        None => compile_stored(&Catalog::default().declarations()),
    }
}

fn wal_options(config: &Config, folder: &DataDir) -> WalOptions {
    WalOptions {
        folder: folder.log(),
        instance: config.instance,
        start_lsn: lsn_zero(config.instance),
        segment_bytes: config.log.segment,
        budget: Some(config.log.budget),
        reserved_disk_bytes: reserve::bytes_of(config),
    }
}

pub(super) fn peek(config: &Config, folder: &DataDir) -> Result<Recovered, RuntimeError> {
    let options = wal_options(config, folder);
    Ok(Wal::peek(&Disk, &options, options.start_lsn)?)
}

pub(super) fn snapshots(config: &Config, folder: &DataDir) -> Snapshots {
    Snapshots {
        storage: Arc::new(Disk),
        folder: folder.operators(),
        log: folder.log(),
        start_lsn: lsn_zero(config.instance),
        unsynced: Arc::new(AtomicBool::new(true)),
    }
}
