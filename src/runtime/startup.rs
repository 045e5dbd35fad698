//! Opening a data folder for work: [`plan`] decides the steps from what is on the disk, and
//! [`open`] runs them. What a step changes is durable before the next begins, so a start that was
//! killed is completed by the next one, which finds what it left and plans again.
//!
//! | what is found | steps |
//! |---|---|
//! | an empty folder | `OpenLog`, `TryOpening`, `AppendConfiguration`, `OpenViews` |
//! | views without a log | `RefuseMissingLog` |
//! | a log under this configuration | `ReadCheckpoints`, `OpenLog`, `OpenViews` |
//! | a torn tail | the same: `OpenLog` cuts it, or refuses to where a view has committed records of it |
//! | a last frame that is a configuration which no start could apply | `RemoveConfiguration` after `OpenLog` |
//! | another configuration | before `OpenViews`: `CheckCompatible`, `TryOpening`, `Drain`, `AppendConfiguration` |
//! | rebuilt views that are ready | before `OpenViews`: `CheckCompatible`, `Drain`, `CompleteBuilds`, `CheckCompatible`, `InstallBuilds` |
//! | rebuilt views that are complete, not installed | `MoveBuilds` first, and `TransferState` after `OpenLog` |
//! | rebuilt views in place, whose state is not transferred | `TransferState` after `OpenLog` |
//!
//! Example: the log ends under configuration A with record 100, the file declares B, and a table was
//! rebuilt for B up to record 90. The plan is `ReadCheckpoints`, `OpenLog`, `CheckCompatible`,
//! `TryOpening`, `Drain`, `CompleteBuilds`, `CheckCompatible`, `AppendConfiguration`,
//! `InstallBuilds`, `OpenViews`. If the process is killed
//!
//! - during `Drain`, the views have committed a part of A's rows. The next start makes the same
//!   plan, and drains the rest.
//! - after `CompleteBuilds`, the build is complete at record 100. The same plan: nothing is left to
//!   drain, and `CompleteBuilds` finds the build at the end.
//! - after `AppendConfiguration`, the log ends under B with record 101. The next start finds a
//!   complete build of B: `MoveBuilds`, `ReadCheckpoints`, `OpenLog`, `TransferState`, `OpenViews`.
//! - in `InstallBuilds`, after the files were moved: the same without `MoveBuilds`.
//!
//! Without a build, a start killed after `AppendConfiguration` leaves a frame that nothing has
//! applied. A next start under B continues from it; one under A or C removes it first.

mod plan;

use std::path::Path;
use std::sync::Arc;

use super::context::{FolderContext, compile_or_empty, compile_stored};
use super::data_dir::DataDir;
use super::pipeline::Pipeline;
use super::rebuild::{self, ViewBuild};
use super::shutdown::{Callers, Ending};
use super::views::{self, OpenViews};
use super::{
    RuntimeError, reconfigure,
    trial::{self, Unapplied},
};
use crate::config::Declarations;
use crate::event::Lsn;
use crate::ids::ViewId;
use crate::schema::Catalog;
use crate::storage::Disk;
use crate::views::{LogIdentity, ViewError};
use crate::wal::{Recovered, Wal};
use plan::{Found, FoundConfiguration, FoundLog, Installs, Step};

/// The log, at its end under this configuration, and the views of its catalog.
pub(super) fn open(
    context: &FolderContext,
    catalog: &Arc<Catalog>,
) -> Result<(Wal, OpenViews), RuntimeError> {
    let mut start = Start::inspect(context, catalog)?;
    let found = start.find_builds()?;
    let steps = plan::plan(&found);
    tracing::debug!(?found, ?steps, "starting");
    start.run(&steps)?;
    let opened = start
        .opened
        .take()
        .ok_or_else(|| missing(Step::OpenViews))?;
    Ok((start.take_log()?, opened))
}

/// Opens the log alone. A torn tail is not cut where a view has committed records of it.
pub(super) fn open_log(
    context: &FolderContext,
    catalog: &Arc<Catalog>,
) -> Result<Wal, RuntimeError> {
    let mut start = Start::inspect(context, catalog)?;
    start.run(&plan::plan_log(start.log))?;
    start.take_log()
}

/// A step needs what another one provides, which no plan lacks.
fn missing(step: Step) -> RuntimeError {
    RuntimeError::Failed(format!(
        "the start has no step {step:?} before one that needs it"
    ))
}

/// A start under way.
struct Start<'a> {
    context: &'a FolderContext,
    /// What to start under.
    catalog: &'a Arc<Catalog>,
    log: FoundLog,
    log_name: Option<LogIdentity>,
    /// The declarations that the log ends under, once a frame that no start could apply is removed;
    /// none in an empty log.
    stored: Option<Declarations>,
    /// They, compiled.
    before: Option<Arc<Catalog>>,
    /// What the folder's views were built from: [`Self::before`] as far as it exists.
    views_of: Arc<Catalog>,
    /// Rebuilt views that wait, held by this process.
    builds: Vec<ViewBuild>,
    /// The views that rebuilt ones replace.
    replaced: Vec<ViewId>,
    /// The highest LSN that a view has committed.
    committed: Lsn,
    wal: Option<Wal>,
    opened: Option<OpenViews>,
}

impl<'a> Start<'a> {
    /// Reads what the log ends with. Changes nothing.
    fn inspect(
        context: &'a FolderContext,
        catalog: &'a Arc<Catalog>,
    ) -> Result<Self, RuntimeError> {
        let start_lsn = context.start_lsn();
        let mut start = Self {
            context,
            catalog,
            log: FoundLog::Missing { has_views: false },
            log_name: context.log()?,
            stored: None,
            before: None,
            views_of: catalog.clone(),
            builds: Vec::new(),
            replaced: Vec::new(),
            committed: start_lsn,
            wal: None,
            opened: None,
        };
        let Some(log) = start.log_name else {
            context.snapshots().refuse_ahead(start_lsn)?;
            let has_views = derived_part(&context.folder).is_some();
            start.log = FoundLog::Missing { has_views };
            if !has_views {
                start.set_stored(context.declarations_at(start_lsn)?)?;
            }
            return Ok(start);
        };
        let Recovered {
            last_lsn,
            last_frame,
            ..
        } = context.peek()?;
        context.snapshots().refuse_ahead(last_lsn)?;
        let unapplied = trial::unapplied(context, last_frame, last_lsn, log)?;
        start.log = FoundLog::Present {
            ends_unapplied: unapplied.is_some(),
        };
        match unapplied {
            Some(Unapplied { before }) => {
                start.views_of = compile_or_empty(before.as_ref())?;
                start.set_stored(before)?;
            }
            None => start.set_stored(context.declarations_at(last_lsn)?)?,
        }
        Ok(start)
    }

    fn set_stored(&mut self, stored: Option<Declarations>) -> Result<(), RuntimeError> {
        self.before = stored.as_ref().map(compile_stored).transpose()?;
        if let Some(before) = &self.before {
            self.views_of = before.clone();
        }
        self.stored = stored;
        Ok(())
    }

    /// Takes the builds that wait; returns what the plan depends on.
    fn find_builds(&mut self) -> Result<Found, RuntimeError> {
        let (context, catalog) = (self.context, self.catalog);
        let configuration = match &self.stored {
            None => FoundConfiguration::Missing,
            Some(stored) if *stored == context.config.declared => FoundConfiguration::Same,
            Some(_) => FoundConfiguration::Changed,
        };
        let is_same = configuration == FoundConfiguration::Same;
        if let Some(log) = self.log_name {
            self.builds = rebuild::waiting_builds(context, catalog, log, is_same)?;
        }
        self.replaced = rebuild::views_of(&self.builds);
        let installs = if rebuild::has_builds_to_move(&context.folder) {
            Installs::ToMove
        } else if rebuild::has_installed_builds(&context.folder) {
            Installs::ToTransfer
        } else {
            Installs::None
        };
        Ok(Found {
            log: self.log,
            installs,
            configuration,
            has_builds: !self.builds.is_empty(),
        })
    }

    fn run(&mut self, steps: &[Step]) -> Result<(), RuntimeError> {
        steps.iter().try_for_each(|step| self.run_step(*step))
    }

    fn run_step(&mut self, step: Step) -> Result<(), RuntimeError> {
        let (context, catalog) = (self.context, self.catalog);
        match step {
            Step::RefuseMissingLog => refuse_without_log(&context.folder)?,
            Step::MoveBuilds => rebuild::install(context)?,
            Step::ReadCheckpoints => self.read_checkpoints()?,
            Step::OpenLog => self.open_log()?,
            Step::RemoveConfiguration => self.remove_configuration()?,
            Step::TransferState => {
                let wal = self.take_log()?;
                self.wal = Some(rebuild::complete_install(context, wal)?);
            }
            Step::CheckCompatible => {
                if let Some(before) = &self.before {
                    let config = &context.config;
                    reconfigure::check_compatible(config, before, catalog, &self.replaced)?;
                }
            }
            Step::TryOpening => {
                let log = context.log_of(self.log()?);
                trial::refuse_what_cannot_open(context, catalog, log, &self.replaced)?;
            }
            Step::Drain => {
                if let Some(before) = self.before.clone() {
                    let wal = self.take_log()?;
                    self.wal = Some(drain(context, &before, wal)?);
                }
            }
            Step::CompleteBuilds => {
                let builds = std::mem::take(&mut self.builds);
                self.replaced = rebuild::complete_builds(builds, self.log()?.synced_lsn())?;
            }
            Step::AppendConfiguration => {
                reconfigure::append_configuration(catalog, self.log()?, &*context.clock)?;
                reconfigure::report_change(self.stored.as_ref(), &context.config.declared);
            }
            Step::InstallBuilds => {
                if !self.replaced.is_empty() {
                    rebuild::install(context)?;
                    let wal = self.take_log()?;
                    self.wal = Some(rebuild::complete_install(context, wal)?);
                }
            }
            Step::OpenViews => self.open_views()?,
        }
        Ok(())
    }

    fn read_checkpoints(&mut self) -> Result<(), RuntimeError> {
        if let Some(log) = self.log_name {
            let existing = views::open(self.context, &self.views_of, log, false)?;
            let highest = existing.checkpoints.values().copied().max();
            self.committed = highest.unwrap_or(self.committed);
        }
        Ok(())
    }

    fn open_log(&mut self) -> Result<(), RuntimeError> {
        let options = self.context.wal_options();
        let new_id = rand::random::<u64>() >> 1;
        let (wal, recovered) = Wal::open(Arc::new(Disk), options, new_id, self.committed)?;
        if let Some(torn) = recovered.torn {
            let what = "the log ended in bytes that are not a complete frame; they are cut off: a write that was never synced, or synced \
                        bytes that changed since, which cannot be distinguished. If the record was acknowledged, restore the file from a backup";
            tracing::warn!(path = %torn.path.display(), offset = torn.offset, lsn = torn.lsn, "{what}");
        }
        self.wal = Some(wal);
        Ok(())
    }

    fn remove_configuration(&mut self) -> Result<(), RuntimeError> {
        let wal = self.log()?;
        let lsn = wal.synced_lsn();
        wal.remove_last_frame()?;
        tracing::warn!(
            lsn,
            "the log ended with a configuration that no start could apply; it was taken back"
        );
        Ok(())
    }

    fn open_views(&mut self) -> Result<(), RuntimeError> {
        let (context, catalog) = (self.context, self.catalog);
        let is_appended = self.stored.as_ref() != Some(&context.config.declared);
        let opened = open_views(context, catalog, self.log()?);
        if is_appended && self.replaced.is_empty() && opened.is_err() {
            // Nothing has read the frame: the folder stays under the old configuration.
            self.log()?.remove_last_frame()?;
        }
        self.opened = Some(opened?);
        Ok(())
    }

    fn log(&mut self) -> Result<&mut Wal, RuntimeError> {
        self.wal.as_mut().ok_or_else(|| missing(Step::OpenLog))
    }

    fn take_log(&mut self) -> Result<Wal, RuntimeError> {
        self.wal.take().ok_or_else(|| missing(Step::OpenLog))
    }
}

/// Refuses a folder whose log is gone, before another log is begun: a log's first segment exists
/// before any view.
pub(super) fn refuse_without_log(folder: &DataDir) -> Result<(), RuntimeError> {
    match derived_part(folder) {
        None => Ok(()),
        Some(path) => Err(RuntimeError::Damaged(format!(
            "{} has no segment, but {} was derived from one: restore the log from a backup, or begin with another data folder; nothing was changed",
            folder.log().display(),
            path.display()
        ))),
    }
}

/// A part of the folder that holds something derived from a log.
fn derived_part(folder: &DataDir) -> Option<std::path::PathBuf> {
    let has_entries =
        |path: &Path| std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
    [folder.lake(), folder.search(), folder.state()]
        .into_iter()
        .find(|path| has_entries(path))
}

/// Opens every view for writing; refuses one that is ahead of the log.
fn open_views(
    context: &FolderContext,
    catalog: &Arc<Catalog>,
    wal: &Wal,
) -> Result<OpenViews, RuntimeError> {
    let log = context.log_of(wal);
    let opened = views::open(context, catalog, log, true)?;
    let end = wal.synced_lsn();
    match opened.checkpoints.iter().find(|(_, found)| **found > end) {
        Some((name, found)) => Err(ViewError::Ahead {
            path: name.to_string().into(),
            found: *found,
            log: log.id,
        }
        .into()),
        None => Ok(opened),
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
