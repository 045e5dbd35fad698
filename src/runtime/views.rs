//! Opens the views of a catalog: to write them, or to read what is committed beside a stopped process.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::RuntimeError;
use super::folder::Folder;
use crate::config::{Config, PartitionBy};
use crate::query::{Handles, Progress};
use crate::schema::Catalog;
use crate::views::View;
use crate::views::lake::{CommitPolicy, LakeTable, LakeView, LogName, TableSpec};

/// Everything that follows the log.
pub struct Opened {
    pub views: Vec<Box<dyn View>>,
    pub handles: Handles,
}

fn specs(config: &Config, folder: &Folder, catalog: &Catalog) -> Vec<TableSpec> {
    let lake = folder.lake();
    let by_hour = config.partition == PartitionBy::Hour;
    let mut specs: Vec<TableSpec> =
        catalog.streams.values().map(|s| TableSpec::stream(&lake, s, by_hour)).collect();
    specs.push(TableSpec::dead_letters(&lake, by_hour));
    specs.push(TableSpec::raw(&lake, by_hour));
    specs
}

/// Opens all views of the catalog. Not `writable`: only what is there, and no view to drive.
pub fn open(
    config: &Config,
    folder: &Folder,
    catalog: &Arc<Catalog>,
    log: LogName,
    runtime: &tokio::runtime::Handle,
    writable: bool,
) -> Result<Opened, RuntimeError> {
    let shares = config.limits.shares();
    let specs = specs(config, folder, catalog);
    let policy = CommitPolicy::with_memory(shares.hot_rows / specs.len().max(1));
    let mut tables = BTreeMap::new();
    let mut views: Vec<Box<dyn View>> = Vec::new();
    for spec in specs {
        let name = spec.name.clone();
        let Some(table) = LakeTable::open(spec, log, runtime.clone(), writable)? else { continue };
        let table = Arc::new(table);
        if writable {
            views.push(Box::new(LakeView::new(table.clone(), policy)));
        }
        tables.insert(name, table);
    }
    let handles = Handles {
        catalog: catalog.clone(),
        lake: folder.lake(),
        tables,
        progress: Arc::new(Progress::default()),
    };
    Ok(Opened { views, handles })
}
