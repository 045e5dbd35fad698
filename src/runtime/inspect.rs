//! Reading a data folder's tables under a configuration, also while a process works on them: what a
//! start would refuse, and what is worth knowing.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::context::FolderContext;
use super::data_dir::DataDir;
use super::notes::{self, Note};
use super::{RuntimeError, rebuild, views};
use crate::config::Config;
use crate::schema::Catalog;
use crate::views::lake::LakeTable;

/// Refuses what the folder's tables cannot become, as a start would; returns notes on them. None
/// where the folder does not exist yet.
pub fn tables(
    config: &Config,
    catalog: &Catalog,
    runtime: &tokio::runtime::Handle,
) -> Result<Vec<Note>, RuntimeError> {
    let Ok(folder) = DataDir::existing(&config.data) else {
        return Ok(Vec::new());
    };
    let context = FolderContext::new(config, folder, runtime);
    let Some(log) = context.log()? else {
        return Ok(Vec::new());
    };
    let is_rebuilt = rebuild::has_waiting(&context.folder, catalog.id);
    let mut tables = BTreeMap::new();
    for spec in views::specs(config, &context.folder, catalog) {
        let Some(table) = LakeTable::open(spec, log, runtime.clone(), false)? else {
            continue;
        };
        if let Some(reason) = table.column_conflict()?.filter(|_| !is_rebuilt) {
            return Err(views::refused(config, catalog, &table.spec, &reason).into());
        }
        tables.insert(table.spec.id.clone(), Arc::new(table));
    }
    Ok(notes::of_tables(&tables))
}
