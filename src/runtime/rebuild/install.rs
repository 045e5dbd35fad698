//! Installing builds: completed at the end of the log while nothing is taken in, moved to where the
//! old views are, then continued by the live operators.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::super::RuntimeError;
use super::super::context::{self, FolderContext};
use super::super::data_dir::DataDir;
use super::super::startup;
use super::super::views::{self, COUNTS, PLACES};
use super::build::{ViewBuild, apply};
use super::manifest::{BuildManifest, Event, State, build_folder, failed, in_state, lock, remove};
use crate::config::Config;
use crate::event::Lsn;
use crate::ids::{TableId, ViewId};
use crate::schema::Catalog;
use crate::storage::sync_folder;
use crate::views::LogIdentity;
use crate::views::lake::LakeTable;
use crate::wal::Wal;

impl ViewBuild {
    /// Moves what was built to where the old view is, at the end of the log.
    fn install(&mut self, end: Lsn) -> Result<(), RuntimeError> {
        if self.manifest.state == State::Complete {
            // A changed configuration's frame closes the old view's windows; the build reads it
            // itself, so that those closing rows do not end up in the new view.
            self.advance(end, &mut |_, _, _| {})?;
            self.record(Event::ConfigurationRead)?;
        }
        match &self.manifest.view {
            ViewId::Lake(table) => self.replace_table(table)?,
            ViewId::Search(stream) => {
                let replaced = self.own.folder.root.join("before");
                move_over(
                    &self.own.folder.search().join(&**stream),
                    &self.live.folder.search().join(&**stream),
                    Some(&replaced),
                )?;
            }
            ViewId::Places(stream) => self.replace_state(stream, PLACES)?,
            ViewId::Counts(stream) => self.replace_state(stream, COUNTS)?,
        }
        self.record(Event::Moved)
    }

    /// Replaces the old state file of a stream by the build's.
    fn replace_state(&self, stream: &str, suffix: &str) -> Result<(), RuntimeError> {
        let path = |folder: &DataDir| folder.state().join(format!("{stream}.{suffix}"));
        move_over(&path(&self.own.folder), &path(&self.live.folder), None)
    }

    /// Replaces the old table's files with the build's in one commit of the old table.
    fn replace_table(&self, table: &TableId) -> Result<(), RuntimeError> {
        let spec = |folder: &DataDir| views::spec(&self.live.config, folder, &self.catalog, table);
        let (Some(new), Some(old)) = (spec(&self.own.folder), spec(&self.live.folder)) else {
            return Err(RuntimeError::Failed(format!(
                "{} is not a table",
                self.manifest.view
            )));
        };
        let (log, runtime) = (self.log(), &self.live.runtime);
        let new = LakeTable::open(new, log, runtime.clone(), false)?.ok_or_else(|| {
            RuntimeError::Damaged(format!(
                "{}: the new {} is gone",
                self.own.folder.root.display(),
                self.manifest.view
            ))
        })?;
        LakeTable::open_to_replace(old, log, runtime.clone())?.replace_with(&new)?;
        Ok(())
    }

    /// Lets the live operators, saved at the end of the log, continue from those of the build.
    fn transfer_state(&self, end: Lsn) -> Result<(), RuntimeError> {
        let snapshots = self.live.snapshots();
        let mut live = snapshots.load(end)?;
        let (mut own, _) = self.load_operators(&BTreeMap::new())?;
        // The build's snapshot may be from before the frame of a changed configuration.
        let mut frames = self.replay(own.lsn())?;
        while let Some(frame) = frames.next(end)? {
            apply(&mut own, frame)?;
        }
        if let Some(table) = self.manifest.view.table() {
            live.import_state(table, &mut own);
            snapshots.save(&live)?;
        }
        Ok(())
    }
}

/// Renames over what exists, durably; a folder that exists is renamed to `replaced` first. Does
/// nothing where an earlier attempt did it.
fn move_over(new: &Path, old: &Path, replaced: Option<&Path>) -> Result<(), RuntimeError> {
    let parents = [new.parent(), old.parent()];
    let sync_names = || {
        parents
            .into_iter()
            .flatten()
            .try_for_each(|folder| sync_folder(folder).map_err(failed(folder)))
    };
    if !new.exists() {
        // The sync of an earlier attempt may have failed.
        return sync_names();
    }
    if let Some(replaced) = replaced.filter(|_| old.exists()) {
        // One of an earlier attempt.
        let _ = fs::remove_dir_all(replaced);
        fs::rename(old, replaced).map_err(failed(old))?;
    }
    fs::rename(new, old).map_err(failed(old))?;
    sync_names()
}

/// Whether a build waits to be installed under a configuration.
pub fn has_waiting(folder: &DataDir, configuration: u64) -> bool {
    in_state(folder, &State::WAITING)
        .iter()
        .any(|(_, manifest)| manifest.configuration == configuration)
}

/// Whether any build exists, in any state.
pub(in super::super) fn has_builds(folder: &DataDir) -> bool {
    !in_state(folder, &State::ALL).is_empty()
}

/// Whether a build is complete and not yet where the old view is.
pub(in super::super) fn has_builds_to_move(folder: &DataDir) -> bool {
    !in_state(folder, &State::INSTALLING).is_empty()
}

/// Whether a build is where the old view was, and the operators may not continue from it yet.
pub(in super::super) fn has_installed_builds(folder: &DataDir) -> bool {
    !in_state(folder, &[State::Installed]).is_empty()
}

/// Whether an install was begun.
fn has_begun_installs(folder: &DataDir) -> bool {
    has_builds_to_move(folder) || has_installed_builds(folder)
}

/// Builds of a catalog and log in one of these states, locked for this process.
fn builds_in_state(
    context: &FolderContext,
    catalog: &Catalog,
    log: LogIdentity,
    states: &[State],
) -> Result<Vec<ViewBuild>, RuntimeError> {
    let mut found = Vec::new();
    for (root, manifest) in in_state(&context.folder, states) {
        if manifest.configuration != catalog.id || manifest.log != log.id {
            continue;
        }
        match lock(&root)? {
            Some(lock) => found.push(ViewBuild::open(context, catalog, log, manifest, lock)?),
            // A verb may have taken it up again; but an install that was begun must end before
            // anything else.
            None if manifest.state == State::Ready => {}
            None => {
                return Err(RuntimeError::InUse(format!(
                    "the rebuilt {} is held by another process",
                    manifest.view
                )));
            }
        }
    }
    Ok(found)
}

/// Builds that wait to be installed under a configuration, held by this process. Complete ones of
/// the configuration that the log ends under (`is_stored`) do not wait: [`install`] moves them.
pub(in super::super) fn waiting_builds(
    context: &FolderContext,
    catalog: &Catalog,
    log: LogIdentity,
    is_stored: bool,
) -> Result<Vec<ViewBuild>, RuntimeError> {
    let states: &[State] = if is_stored {
        &[State::Ready]
    } else {
        &State::WAITING
    };
    builds_in_state(context, catalog, log, states)
}

/// The builds' views.
pub(in super::super) fn views_of(builds: &[ViewBuild]) -> Vec<ViewId> {
    builds.iter().map(|b| b.manifest.view.clone()).collect()
}

/// Brings builds to the end of the log, where every view has committed. From here on they will be
/// installed; one that cannot be completed is left out. Returns the views of the others.
pub(in super::super) fn complete_builds(
    builds: Vec<ViewBuild>,
    end: Lsn,
) -> Result<Vec<ViewId>, RuntimeError> {
    let mut completed = Vec::new();
    for mut build in builds {
        let view = build.manifest.view.clone();
        match build.advance(end, &mut |_, _, _| {}) {
            Ok(()) => {
                build.record(Event::LogEndReached)?;
                completed.push(view);
            }
            Err(error) => {
                tracing::error!(%view, %error, "the rebuilt view is not installed; `weir rebuild` continues it");
                build.record(Event::CompletionFailed)?;
            }
        }
    }
    Ok(completed)
}

/// Moves complete builds into place: before anything is opened, because the old views may not fit
/// the configuration.
pub(in super::super) fn install(context: &FolderContext) -> Result<(), RuntimeError> {
    if !has_builds_to_move(&context.folder) {
        return Ok(());
    }
    let Some(log) = context.log()? else {
        return Ok(());
    };
    let end = context.peek()?.last_lsn;
    context.snapshots().refuse_ahead(end)?;
    let catalog = context.stored_catalog(end)?;
    for mut build in builds_in_state(context, &catalog, log, &State::INSTALLING)? {
        tracing::info!(view = %build.manifest.view, "installing rebuilt view");
        build.install(end)?;
    }
    Ok(())
}

/// Completes what [`install`] began: the live operators continue from those that built the views.
pub(in super::super) fn complete_install(
    context: &FolderContext,
    wal: Wal,
) -> Result<Wal, RuntimeError> {
    if !has_installed_builds(&context.folder) {
        return Ok(wal);
    }
    let (log, end) = (context.log_of(&wal), wal.synced_lsn());
    let catalog = context.stored_catalog(end)?;
    let installed = builds_in_state(context, &catalog, log, &[State::Installed])?;
    if installed.is_empty() {
        return Ok(wal);
    }
    let wal = startup::drain(context, &catalog, wal)?;
    for build in installed {
        build.transfer_state(end)?;
        let root = build.own.folder.root.clone();
        drop(build);
        remove(&context.folder, &root)?;
    }
    Ok(wal)
}

/// Completes installs that were begun and interrupted, in a stopped folder.
pub fn complete_interrupted_installs(
    config: &Config,
    runtime: &tokio::runtime::Handle,
) -> Result<(), RuntimeError> {
    let context = FolderContext::existing(config, runtime)?;
    let folder = &context.folder;
    if !has_begun_installs(folder) {
        return Ok(());
    }
    let _lock = folder.lock()?;
    install(&context)?;
    remove_stateless(folder)?;
    if !has_begun_installs(folder) {
        return Ok(());
    }
    let wal = startup::open_log(&context, &views::compile(config)?)?;
    complete_install(&context, wal).map(drop)
}

/// Removes installed builds without operator state: all but tables. No live view is opened for it,
/// because one of them may be refused until it is rebuilt, too.
fn remove_stateless(folder: &DataDir) -> Result<(), RuntimeError> {
    for (root, manifest) in in_state(folder, &[State::Installed]) {
        if manifest.view.table().is_none() && lock(&root)?.is_some() {
            remove(folder, &root)?;
        }
    }
    Ok(())
}

/// The last record of a stopped folder's log.
pub fn end_of_log(config: &Config) -> Result<Lsn, RuntimeError> {
    Ok(context::peek(config, &DataDir::existing(&config.data)?)?.last_lsn)
}

/// Whether a view that was ready has been installed; an error where it could not be completed.
pub fn is_installed(config: &Config, view: &ViewId) -> Result<bool, RuntimeError> {
    let folder = DataDir::existing(&config.data)?;
    match BuildManifest::read(&build_folder(&folder, view)) {
        None => Ok(true),
        Some(manifest) if manifest.state == State::Building => Err(RuntimeError::Failed(format!(
            "the rebuilt {view} could not be brought to the end of the log and is not installed; the log of the process that tried names the cause, `weir rebuild` continues it"
        ))),
        Some(_) => Ok(false),
    }
}
