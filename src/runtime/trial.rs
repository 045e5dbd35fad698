//! Trying a changed configuration before its frame is appended, and finding a frame that nothing
//! has applied, which is taken back: a start that fails leaves the log as it was.

use std::collections::BTreeSet;

use super::context::{FolderContext, compile_or_empty};
use super::{RuntimeError, rebuild, views};
use crate::config::Declarations;
use crate::event::Lsn;
use crate::ids::ViewId;
use crate::schema::{Catalog, SearchDef};
use crate::views::LogIdentity;
use crate::views::lake::LakeTable;
use crate::wal::{Kind, LastFrame};

/// Refuses a configuration whose tables or indexes could not be created or extended, except for views
/// that are `replaced` by rebuilt ones. Changes nothing.
pub(super) fn refuse_what_cannot_open(
    context: &FolderContext,
    catalog: &Catalog,
    log: LogIdentity,
    replaced: &[ViewId],
) -> Result<(), RuntimeError> {
    let config = &context.config;
    for spec in views::specs(config, &context.folder, catalog) {
        spec.check().map_err(|refusal| {
            RuntimeError::Config(format!("the table `{}`: {refusal}", spec.name))
        })?;
        let is_replaced = replaced.contains(&spec.id.view());
        let table = LakeTable::open(spec, log, context.runtime.clone(), false)?;
        if let Some(table) = table.filter(|_| !is_replaced)
            && let Some(reason) = table.column_conflict()?
        {
            return Err(views::refused(config, catalog, &table.spec, &reason).into());
        }
    }
    for stream in catalog.streams.values() {
        if let Some(column) = stream.def.search.as_ref().and_then(repeated_column) {
            let message = format!("stream `{}`: `search` names `{column}` twice", stream.name);
            return Err(RuntimeError::Config(message));
        }
    }
    Ok(())
}

fn repeated_column(def: &SearchDef) -> Option<&String> {
    [&def.text, &def.exact].into_iter().find_map(|names| {
        let mut seen = BTreeSet::new();
        names.iter().find(|name| !seen.insert(name.as_str()))
    })
}

/// A configuration frame that the log ends with and that nothing has applied, because every start
/// under it failed.
pub(super) struct Unapplied {
    /// The declarations in force before it; none where it is the log's first frame.
    pub before: Option<Declarations>,
}

/// The frame that the log ends with, if no start could apply it and this start is under another
/// configuration.
pub(super) fn unapplied(
    context: &FolderContext,
    last_frame: Option<LastFrame>,
    last_lsn: Lsn,
    log: LogIdentity,
) -> Result<Option<Unapplied>, RuntimeError> {
    let Some(frame) = last_frame.filter(|frame| frame.kind == Kind::Configuration) else {
        return Ok(None);
    };
    let lsn = frame.first_lsn;
    let is_wanted = context
        .declarations_at(last_lsn)
        .is_ok_and(|d| d.as_ref() == Some(&context.config.declared));
    let has_snapshot = context
        .snapshots()
        .list()?
        .last()
        .is_some_and(|last| *last >= lsn);
    // A view that is being rebuilt may have read the log beyond it.
    if is_wanted || has_snapshot || rebuild::has_builds(&context.folder) {
        return Ok(None);
    }
    let before = context.declarations_at(lsn - 1)?;
    let catalog = compile_or_empty(before.as_ref())?;
    let opened = views::open(context, &catalog, log, false)?;
    let is_applied = opened
        .checkpoints
        .values()
        .any(|checkpoint| *checkpoint >= lsn);
    Ok((!is_applied).then_some(Unapplied { before }))
}
