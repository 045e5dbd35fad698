//! A changed configuration is tried before its frame is appended, and a frame that nothing has
//! applied is taken back: a start that fails leaves the log as it was.

use std::collections::BTreeSet;

use super::data_dir::DataDir;
use super::{RuntimeError, declarations_at, rebuild, snapshots, views};
use crate::config::{Config, Declarations};
use crate::event::Lsn;
use crate::schema::{Catalog, SearchDef};
use crate::views::lake::{LakeTable, LogName};
use crate::wal::{Kind, Recovered};

/// Refuses a configuration whose tables or indexes could not be made or extended. Views that were
/// rebuilt for it replace those that are there. Changes nothing.
pub fn refuse_what_cannot_open(
    config: &Config,
    folder: &DataDir,
    catalog: &Catalog,
    log: LogName,
    rebuilt: &[String],
    runtime: &tokio::runtime::Handle,
) -> Result<(), RuntimeError> {
    for spec in views::specs(config, folder, catalog) {
        spec.check().map_err(|refusal| {
            RuntimeError::Config(format!("the table `{}`: {refusal}", spec.name))
        })?;
        let is_kept = !rebuilt.contains(&views::of_table(&spec.name));
        if let Some(table) = LakeTable::open(spec, log, runtime.clone(), false)?.filter(|_| is_kept)
            && let Some(reason) = table.refused_columns()?
        {
            return Err(views::refused(config, catalog, &table.spec, &reason).into());
        }
    }
    for stream in catalog.streams.values() {
        let twice = stream.def.search.as_ref().and_then(named_twice);
        if let Some(column) = twice {
            let message = format!("stream `{}`: `search` names `{column}` twice", stream.name);
            return Err(RuntimeError::Config(message));
        }
    }
    Ok(())
}

fn named_twice(def: &SearchDef) -> Option<&String> {
    [&def.text, &def.exact].into_iter().find_map(|names| {
        let mut seen = BTreeSet::new();
        names.iter().find(|name| !seen.insert(name.as_str()))
    })
}

/// The LSN of a configuration frame that the log ends with and that nothing has applied, because
/// every start under it failed; and the declarations before it. None where the log ends with
/// something else, or the start is to be under that configuration.
pub fn unapplied(
    config: &Config,
    folder: &DataDir,
    found: &Recovered,
    log: LogName,
    runtime: &tokio::runtime::Handle,
) -> Result<Option<(Lsn, Declarations)>, RuntimeError> {
    let Some(frame) = found
        .last_frame
        .filter(|frame| frame.kind == Kind::Configuration)
    else {
        return Ok(None);
    };
    let lsn = frame.first_lsn;
    let is_wanted = declarations_at(config, folder, found.last_lsn)
        .is_ok_and(|d| d.as_ref() == Some(&config.declared));
    let has_snapshot = snapshots(config, folder)
        .list()?
        .last()
        .is_some_and(|last| *last >= lsn);
    // A view that is being rebuilt may have read the log beyond it.
    if is_wanted || has_snapshot || rebuild::is_any_begun(folder) {
        return Ok(None);
    }
    let before = declarations_at(config, folder, lsn - 1)?
        .unwrap_or_else(|| Catalog::default().declarations());
    let catalog = Catalog::compile(&before).map_err(|e| RuntimeError::Damaged(e.to_string()))?;
    let opened = views::open(config, folder, &catalog.into(), log, runtime, false)?;
    let is_applied = opened
        .checkpoints
        .values()
        .any(|checkpoint| *checkpoint >= lsn);
    Ok((!is_applied).then_some((lsn, before)))
}
