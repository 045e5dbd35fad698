//! A look at a data folder's tables with the eyes of a configuration, beside whatever works on
//! them: what it would refuse, and what it is worth to know.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::data_dir::DataDir;
use super::notes::{self, Note};
use super::{RuntimeError, rebuild, views, wal_options};
use crate::config::Config;
use crate::schema::Catalog;
use crate::storage::Disk;
use crate::views::lake::{LakeTable, LogName};
use crate::wal::Wal;

/// Refuses what the folder's tables cannot become, as a start would; gives what is to be said of
/// them. Nothing where there is no folder yet.
pub fn tables(
    config: &Config,
    catalog: &Catalog,
    runtime: &tokio::runtime::Handle,
) -> Result<Vec<Note>, RuntimeError> {
    let Ok(folder) = DataDir::existing(&config.data) else {
        return Ok(Vec::new());
    };
    let options = wal_options(config, &folder);
    let Some(id) = Wal::log_id_of(&Disk, &options.folder)? else {
        return Ok(Vec::new());
    };
    let log = LogName {
        instance: config.instance,
        id,
        zero: options.zero,
    };
    let is_rebuilt = rebuild::is_waiting(&folder, catalog.id);
    let mut there = BTreeMap::new();
    for spec in views::specs(config, &folder, catalog) {
        let Some(table) = LakeTable::open(spec, log, runtime.clone(), false)? else {
            continue;
        };
        if let Some(reason) = table.refused_columns()?.filter(|_| !is_rebuilt) {
            return Err(views::refused(config, catalog, &table.spec, &reason).into());
        }
        there.insert(table.spec.name.clone(), Arc::new(table));
    }
    Ok(notes::of_tables(&there, catalog))
}
