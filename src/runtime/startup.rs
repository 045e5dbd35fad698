//! Opening a data folder for work. Every step is durable before the next begins, so that a start
//! that was killed is repeated from its first step:
//!
//! 1. move complete rebuilt views into place ([`rebuild::install`]),
//! 2. open the log and cut its torn tail, if no view has committed beyond it,
//! 3. let the operators continue from what built those views ([`rebuild::complete_install`]),
//! 4. switch to the configuration if the log ends under another ([`reconfigure::switch`]),
//! 5. open the views.

use std::path::Path;
use std::sync::Arc;

use super::context::{FolderContext, compile_stored};
use super::pipeline::Pipeline;
use super::shutdown::{Callers, Ending};
use super::views::{self, OpenViews};
use super::{RuntimeError, rebuild, reconfigure, trial};
use crate::event::Lsn;
use crate::schema::Catalog;
use crate::storage::Disk;
use crate::views::ViewError;
use crate::views::lake::LogName;
use crate::wal::Wal;

use super::data_dir::DataDir;

/// The log, at its end under this configuration, and the views of its catalog.
pub(super) fn open(
    context: &FolderContext,
    catalog: &Arc<Catalog>,
) -> Result<(Wal, OpenViews), RuntimeError> {
    rebuild::install(context)?;
    let wal = open_wal(context, catalog)?;
    let wal = rebuild::complete_install(context, wal)?;
    let (mut wal, is_appended) = reconfigure::switch(context, catalog, wal)?;
    let opened = open_views(context, catalog, &wal);
    if is_appended && opened.is_err() {
        // Nothing has read the frame: the folder stays under the old configuration.
        wal.remove_last_frame()?;
    }
    Ok((wal, opened?))
}

fn open_views(
    context: &FolderContext,
    catalog: &Arc<Catalog>,
    wal: &Wal,
) -> Result<OpenViews, RuntimeError> {
    let log = context.log_of(wal);
    let opened = views::open(context, catalog, log, true)?;
    refuse_views_ahead(&opened, wal.synced_lsn(), log)?;
    Ok(opened)
}

/// Opens the log. A torn tail is not cut where a view has committed records of it.
pub(super) fn open_wal(
    context: &FolderContext,
    catalog: &Arc<Catalog>,
) -> Result<Wal, RuntimeError> {
    let options = context.wal_options();
    let start_lsn = options.zero;
    let (mut committed, mut unapplied) = (start_lsn, None);
    match context.log()? {
        None => {
            context.snapshots().refuse_ahead(start_lsn)?;
            refuse_without_log(&context.folder)?;
        }
        Some(log) => {
            let found = Wal::peek(&Disk, &options, start_lsn)?;
            context.snapshots().refuse_ahead(found.last_lsn)?;
            unapplied = trial::unapplied(context, &found, log)?;
            // The folder's views are those of the configuration that the log ends under.
            let stored = match &unapplied {
                Some((_, before)) => Some(before.clone()),
                None => context.declarations_at(found.last_lsn)?,
            };
            let stored = match stored {
                Some(stored) => compile_stored(&stored)?,
                None => catalog.clone(),
            };
            let existing = views::open(context, &stored, log, false)?;
            committed = existing.checkpoints.values().copied().max().unwrap_or(start_lsn);
        }
    }
    let new_id = rand::random::<u64>() >> 1;
    let (mut wal, recovered) = Wal::open(Arc::new(Disk), options, new_id, committed)?;
    if let Some(torn) = recovered.torn {
        let what = "the log ended in bytes that are not a complete frame; they are cut off: a write that was never synced, or synced \
                    bytes that changed since, which cannot be distinguished. If the record was acknowledged, restore the file from a backup";
        tracing::warn!(path = %torn.path.display(), offset = torn.offset, lsn = torn.lsn, "{what}");
    }
    if let Some((lsn, _)) = unapplied {
        wal.remove_last_frame()?;
        tracing::warn!(
            lsn,
            "the log ended with a configuration that no start could apply; it was taken back"
        );
    }
    Ok(wal)
}

/// Refuses a folder whose log is gone, before another log is begun: a log's first segment exists
/// before any view.
pub(super) fn refuse_without_log(folder: &DataDir) -> Result<(), RuntimeError> {
    let has_entries =
        |path: &Path| std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
    match [folder.lake(), folder.search(), folder.state()]
        .into_iter()
        .find(|path| has_entries(path))
    {
        None => Ok(()),
        Some(path) => Err(RuntimeError::Damaged(format!(
            "{} has no segment, but {} was derived from one: restore the log from a backup, or begin with another data folder; nothing was changed",
            folder.log().display(),
            path.display()
        ))),
    }
}

fn refuse_views_ahead(opened: &OpenViews, end: Lsn, log: LogName) -> Result<(), RuntimeError> {
    match opened.checkpoints.iter().find(|(_, found)| **found > end) {
        Some((name, found)) => Err(ViewError::Ahead {
            path: name.into(),
            found: *found,
            log: log.id,
        }
        .into()),
        None => Ok(()),
    }
}

/// Applies the log to its end under the configuration that it ends under. Then every view has
/// committed everything, and a snapshot of the operators is saved there.
pub(super) fn drain(
    context: &FolderContext,
    catalog: &Arc<Catalog>,
    wal: Wal,
) -> Result<Wal, RuntimeError> {
    let opened = open_views(context, catalog, &wal)?;
    let pipeline = Pipeline::start(context, wal, catalog, opened)?;
    let resumed = pipeline.resume();
    // If the operators ended early, stopping returns why.
    let wal = pipeline.stop(Callers::default(), Ending::Complete).wal?;
    resumed.map(|_| wal)
}
