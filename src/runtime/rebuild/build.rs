//! Building one view in a folder of its own: every record so far, applied by operators of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::RuntimeError;
use super::super::context::FolderContext;
use super::super::data_dir::DataDir;
use super::super::snapshots::Snapshots;
use super::super::views;
use super::manifest::{self, BuildManifest, Event, State, build_folder};
use super::replay::{ReplayFrame, ReplayReader, ReplaySources};
use super::retained_rows::{CarriedOverRows, RetainedOrigin, RetainedRows};
use super::scope::minimal_declarations;
use crate::config::Config;
use crate::event::{Lsn, Micros, lsn_sequence, rfc3339};
use crate::ids::{CheckpointId, TableId, ViewId};
use crate::operators::{Operators, Output};
use crate::schema::window::Shape;
use crate::schema::{Catalog, Stream};
use crate::storage::remove_temporaries;
use crate::views::lake::LakeTable;
use crate::views::{LogIdentity, View};

/// How often what was built is committed and saved, and the progress reported.
const SAVE_INTERVAL: Duration = Duration::from_secs(10);
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// The build of a view, held by this process.
pub struct ViewBuild {
    /// The live data folder, and the build's own inside it.
    pub(super) live: FolderContext,
    pub(super) own: FolderContext,
    pub(super) manifest: BuildManifest,
    /// The declarations that the view follows from.
    pub(super) catalog: Arc<Catalog>,
    sources: ReplaySources,
    _lock: fs::File,
}

/// The view, and the checkpoints that it has committed.
type Built = (Box<dyn View>, BTreeMap<CheckpointId, Lsn>);

/// Takes how far a build is: records done, of how many, since when.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64, Duration);

impl ViewBuild {
    /// Takes up the build of this view under this configuration, or begins one.
    pub fn begin(
        config: &Config,
        runtime: &tokio::runtime::Handle,
        view: &ViewId,
    ) -> Result<Self, RuntimeError> {
        let live = FolderContext::existing(config, runtime)?;
        let catalog = views::compile(config)?;
        let log = live.existing_log()?;
        let new = BuildManifest {
            view: view.clone(),
            configuration: catalog.id,
            log: log.id,
            partition: config.partition.name().to_owned(),
            state: State::Building,
            first_intact: 0,
            complete_since: None,
        };
        let root = build_folder(&live.folder, view);
        let lock = lock_for(&live.folder, &root, &new)?;
        remove_temporaries(&root);
        let mut build = Self::open(&live, &catalog, log, new, lock)?;
        match BuildManifest::read(&root) {
            Some(found) if matches!(found.state, State::CaughtUp | State::Installed) => {
                return Err(RuntimeError::InUse(format!(
                    "the rebuilt {view} is being installed; try again after the next start"
                )));
            }
            Some(found) => {
                build.manifest = BuildManifest {
                    view: view.clone(),
                    ..found
                };
            }
            None => {}
        }
        build.find_intact_range()?;
        build.save_manifest()?;
        Ok(build)
    }

    /// The build of a manifest whose folder is locked.
    pub(super) fn open(
        live: &FolderContext,
        catalog: &Catalog,
        log: LogIdentity,
        mut manifest: BuildManifest,
        lock: fs::File,
    ) -> Result<Self, RuntimeError> {
        manifest.view = catalog.view_id(manifest.view);
        let own = DataDir {
            root: build_folder(&live.folder, &manifest.view),
        };
        let minimal = Catalog::compile(&minimal_declarations(catalog, &manifest.view))
            .map_err(|e| RuntimeError::Config(e.to_string()))?;
        let sources = ReplaySources {
            lake: live.folder.lake(),
            log_folder: live.folder.log(),
            log,
            partition: live.config.partition,
            runtime: live.runtime.clone(),
        };
        Ok(Self {
            live: live.clone(),
            own: live.at(own),
            manifest,
            catalog: Arc::new(minimal),
            sources,
            _lock: lock,
        })
    }

    /// The log that it is built from.
    pub(super) fn log(&self) -> LogIdentity {
        self.sources.log
    }

    /// Moves the manifest on, durably.
    pub(super) fn record(&mut self, event: Event) -> Result<(), RuntimeError> {
        let state = self.manifest.state;
        self.manifest.state = manifest::next(state, event).ok_or_else(|| {
            RuntimeError::Failed(format!(
                "the build of {} is {state:?}, in which {event:?} is impossible",
                self.manifest.view
            ))
        })?;
        self.save_manifest()
    }

    fn save_manifest(&self) -> Result<(), RuntimeError> {
        self.manifest.save(&self.own.folder.root)
    }

    /// Notes the first intact record, and the time from which on the build will have everything.
    /// Repeated with each attempt, because more may have left since; neither ever decreases.
    ///
    /// Say the stream's rows begin at 08:00. Of hourly windows those that start before 08:00 lack
    /// rows, and stay as they were; of sessions with a gap of 10 minutes those before 08:10, because
    /// only then is it certain that no earlier row belongs to them.
    fn find_intact_range(&mut self) -> Result<(), RuntimeError> {
        self.manifest.first_intact = self.manifest.first_intact.max(self.sources.first()?);
        let stream = self.stream().filter(|_| self.lacks_beginning()).cloned();
        let table = stream.as_ref().map(|s| TableId::stream(&s.name));
        let Some((stream, table)) = stream.zip(table.filter(|table| self.has_table(table))) else {
            return Ok(());
        };
        let (newest, _) = self
            .live
            .snapshots()
            .newest_for(&BTreeMap::new(), Lsn::MAX)?;
        let floor = newest.retention_floors().get(&table).copied();
        // Hours may have left since that snapshot: the first that exists counts, too.
        let may_leave = stream.def.retention.is_some() || self.live.config.limits.disk.is_some();
        let table = self.old_table(&table)?;
        let begins = table
            .spec
            .layout
            .width()
            .filter(|_| may_leave)
            .and_then(|width| {
                table
                    .files()
                    .iter()
                    .map(|file| file.bucket.saturating_mul(width))
                    .min()
            });
        let complete_since = floor
            .max(begins)
            .map(|floor| floor.saturating_add(self.longest_reach()));
        self.manifest.complete_since = self.manifest.complete_since.max(complete_since);
        Ok(())
    }

    fn lacks_beginning(&self) -> bool {
        self.manifest.first_intact > self.sources.log.start_lsn + 1
    }

    /// The stream that the view follows from; none for dead letters, which come from all.
    fn stream(&self) -> Option<&Arc<Stream>> {
        match &self.manifest.view {
            ViewId::Lake(TableId::DeadLetters) => None,
            // Its build has the declarations of all streams.
            ViewId::Lake(TableId::Late(stream)) => self.catalog.streams.get(&**stream),
            _ => self.catalog.streams.values().next(),
        }
    }

    /// How far rows that are gone reach into what is built: the lengths of the sessions and windows
    /// that they may have been part of.
    fn longest_reach(&self) -> Micros {
        let of_sessions = self
            .stream()
            .and_then(|s| s.session())
            .filter(|_| matches!(self.manifest.view, ViewId::Lake(TableId::Sessions(_))))
            .map_or(0, |session| session.gap);
        // A row of a fixed window is carried over by its start, so its own length does not count;
        // a window over it may go by its end.
        let own = match &self.manifest.view {
            ViewId::Lake(TableId::Window(name)) => Some(&**name),
            _ => None,
        };
        let of_windows = self
            .catalog
            .windows
            .iter()
            .map(|window| match window.shape {
                Shape::Session { gap, .. } => gap,
                Shape::Aligned(_) if own == Some(window.name.as_str()) => 0,
                Shape::Aligned(windows) => windows.longest(),
            });
        of_sessions.saturating_add(of_windows.sum())
    }

    /// What the build cannot derive from intact records, if anything: a sentence for the user.
    pub fn coverage_notice(&self) -> Option<String> {
        let view = &self.manifest.view;
        if !self.lacks_beginning() {
            return None;
        }
        let first = lsn_sequence(self.manifest.first_intact);
        let rows = self.stream().map_or("dead letters", |stream| &stream.name);
        let mut notice = format!(
            "{view}: the records before {first} are gone; the rows of {rows} are used instead"
        );
        let since = self.manifest.complete_since;
        if let Some(since) = since.filter(|_| self.derived_table().is_some()) {
            notice += &format!(", and rows before {} stay as they were", rfc3339(since));
        }
        Some(notice)
    }

    /// The view's table if operators derive it: its rows outlive the records and rows that they
    /// were derived from.
    fn derived_table(&self) -> Option<&TableId> {
        self.manifest
            .view
            .table()
            .filter(|table| table.is_derived())
    }

    /// Whether the live folder has a table; it lacks one that is declared only now.
    fn has_table(&self, table: &TableId) -> bool {
        views::spec(&self.live.config, &self.live.folder, &self.catalog, table)
            .is_some_and(|spec| spec.root.exists())
    }

    /// A table of the live folder, as this configuration reads it.
    fn old_table(&self, table: &TableId) -> Result<LakeTable, RuntimeError> {
        let missing = || RuntimeError::Damaged(format!("the table {table} is gone"));
        let spec = views::spec(&self.live.config, &self.live.folder, &self.catalog, table)
            .ok_or_else(missing)?;
        LakeTable::open(spec, self.log(), self.live.runtime.clone(), false)?.ok_or_else(missing)
    }

    /// Every record above one: those before the first intact one from the rows that are left.
    pub(super) fn replay(&self, after: Lsn) -> Result<ReplayReader, RuntimeError> {
        // More may have left since the build was begun.
        let first = self.sources.first()?;
        if after + 1 >= first {
            return ReplayReader::new(self.sources.clone(), after);
        }
        let (table, origin) = match self.stream() {
            Some(stream) => (
                TableId::stream(&stream.name),
                RetainedOrigin::Stream(stream.clone()),
            ),
            None => (
                TableId::DeadLetters,
                RetainedOrigin::DeadLetters(self.catalog.clone()),
            ),
        };
        if !self.has_table(&table) {
            return ReplayReader::new(self.sources.clone(), first - 1);
        }
        let retained = RetainedRows::new(&self.old_table(&table)?, origin, after, first - 1);
        Ok(ReplayReader::with_retained(
            self.sources.clone(),
            after,
            retained,
            first,
        ))
    }

    /// The derived table whose early rows are carried over, and the time before which they are.
    fn carried_over(&self) -> Option<(&TableId, Micros)> {
        self.derived_table()
            .zip(self.manifest.complete_since)
            .filter(|(table, _)| self.has_table(table))
    }

    /// Old rows that stay as they were, of records above one.
    fn carried_over_rows(&self, after: Lsn) -> Result<Option<CarriedOverRows>, RuntimeError> {
        let Some((table, before)) = self.carried_over() else {
            return Ok(None);
        };
        let old = self.old_table(table)?;
        Ok(Some(CarriedOverRows::new(&old, after, before)))
    }

    pub(super) fn open_view(&self) -> Result<Built, RuntimeError> {
        let is_own = |view: &ViewId| *view == self.manifest.view;
        let mut opened = views::open_some(&self.own, &self.catalog, self.log(), true, &is_own)?;
        let view = opened
            .views
            .pop()
            .ok_or_else(|| RuntimeError::Failed(format!("{} is not a view", self.manifest.view)))?;
        Ok((view, opened.checkpoints))
    }

    /// The operators of the build's newest snapshot that fits these checkpoints, or new ones; true
    /// if they are from a snapshot.
    pub(super) fn load_operators(
        &self,
        checkpoints: &BTreeMap<CheckpointId, Lsn>,
    ) -> Result<(Operators, bool), RuntimeError> {
        let (found, is_saved) = self.own.snapshots().newest_for(checkpoints, Lsn::MAX)?;
        let mut operators = if is_saved {
            found
        } else {
            Operators::new(self.catalog.clone(), self.log().start_lsn)
        };
        operators.pin(self.manifest.first_intact);
        Ok((operators, is_saved))
    }

    /// Builds up to a record while the old view keeps serving; where rows are carried over, only as
    /// far as the old table has committed them.
    pub fn build(&mut self, to: Lsn, progress: Progress<'_>) -> Result<(), RuntimeError> {
        let committed = match self.carried_over() {
            Some((table, _)) => self.old_table(table)?.committed().recent,
            None => Lsn::MAX,
        };
        self.advance(to.min(committed), progress)
    }

    /// Builds up to a record, then commits the view and saves its operators.
    pub(super) fn advance(&self, to: Lsn, progress: Progress<'_>) -> Result<(), RuntimeError> {
        let (mut view, checkpoints) = self.open_view()?;
        let snapshots = self.own.snapshots();
        let (mut operators, is_saved) = self.load_operators(&checkpoints)?;
        if is_saved {
            view.advance_to(operators.lsn());
        }
        let mut frames = Frames::new(self, operators.lsn())?;
        let mut carried_over = self.carried_over_rows(operators.lsn())?;
        let begun = Instant::now();
        let (mut reported, mut saved) = (begun, begun);
        while let Some(frame) = frames.next(to, operators.lsn())? {
            let mut output = apply(&mut operators, frame)?;
            self.carry_over(&mut carried_over, &mut output)?;
            let now = Instant::now();
            view.apply(&output, now)?;
            if view.is_due(now, false) {
                view.commit(false)?;
            }
            if saved.elapsed() >= SAVE_INTERVAL {
                save(&mut *view, &snapshots, &operators)?;
                saved = Instant::now();
            }
            if reported.elapsed() >= REPORT_INTERVAL {
                progress(
                    lsn_sequence(operators.lsn()),
                    lsn_sequence(to),
                    begun.elapsed(),
                );
                reported = Instant::now();
            }
        }
        save(&mut *view, &snapshots, &operators)?;
        progress(
            lsn_sequence(operators.lsn()),
            lsn_sequence(to),
            begun.elapsed(),
        );
        Ok(())
    }

    /// Puts old rows of an output's records in the place of derived ones. Files of the old table
    /// may be replaced while they are read: it is reopened once.
    fn carry_over(
        &self,
        rows: &mut Option<CarriedOverRows>,
        output: &mut Output,
    ) -> Result<(), RuntimeError> {
        if let Some(open) = rows
            && open.merge_into(output).is_err()
            && let Some(mut reopened) = self.carried_over_rows(output.after)?
        {
            reopened.merge_into(output).map_err(RuntimeError::Failed)?;
            *open = reopened;
        }
        Ok(())
    }

    /// Lets the next start install the build.
    ///
    /// Where no process runs and the old view cannot be opened, no start would come so far: the
    /// build is then completed here, and installed before anything is opened.
    pub fn mark_ready(&mut self, is_stopped: bool) -> Result<(), RuntimeError> {
        if is_stopped && self.is_old_unreadable() {
            let _lock = self.live.folder.lock()?;
            self.advance(self.live.peek()?.last_lsn, &mut |_, _, _| {})?;
            return self.record(Event::LogEndReached);
        }
        self.record(Event::Built)
    }

    /// Whether the old view cannot be opened, and can be moved away without that: an index, a
    /// table cannot.
    fn is_old_unreadable(&self) -> bool {
        let is_own = |view: &ViewId| *view == self.manifest.view;
        let open = || views::open_some(&self.live, &self.catalog, self.log(), false, &is_own);
        self.manifest.view.table().is_none() && open().is_err_and(|error| error.is_damage())
    }
}

/// Locks the folder of a build; one of other declarations, or half begun, is removed before.
fn lock_for(
    folder: &DataDir,
    root: &Path,
    manifest: &BuildManifest,
) -> Result<fs::File, RuntimeError> {
    let lock = || {
        DataDir::create(root)?;
        manifest::lock(root)?.ok_or_else(|| {
            RuntimeError::InUse(format!(
                "{} is being rebuilt by another process",
                manifest.view
            ))
        })
    };
    let held = lock()?;
    if BuildManifest::read(root).is_some_and(|found| found.is_same_build(manifest)) {
        return Ok(held);
    }
    manifest::remove(folder, root)?;
    lock()
}

/// The frames of a build. Files that are being read may be replaced: they are opened once more.
struct Frames<'a> {
    build: &'a ViewBuild,
    reader: ReplayReader,
}

impl<'a> Frames<'a> {
    fn new(build: &'a ViewBuild, after: Lsn) -> Result<Self, RuntimeError> {
        Ok(Self {
            build,
            reader: build.replay(after)?,
        })
    }

    /// The next frame up to `to`, where everything up to `applied` was applied.
    fn next(&mut self, to: Lsn, applied: Lsn) -> Result<Option<ReplayFrame>, RuntimeError> {
        match self.reader.next(to) {
            Ok(frame) => Ok(frame),
            Err(_) => {
                self.reader = self.build.replay(applied)?;
                self.reader.next(to)
            }
        }
    }
}

/// Applies a frame to the operators, with the rows that it came with if that is all that is left.
pub(super) fn apply(
    operators: &mut Operators,
    ReplayFrame { frame, decoded }: ReplayFrame,
) -> Result<Output, RuntimeError> {
    let decoded = match decoded {
        Some(rows) => Some(rows),
        None => {
            operators.end_retained();
            operators.decode(&frame)?
        }
    };
    Ok(operators.apply(&Arc::new(frame), decoded.as_ref())?)
}

/// Commits what a view has, then saves the operators that built it.
fn save(
    view: &mut dyn View,
    snapshots: &Snapshots,
    operators: &Operators,
) -> Result<(), RuntimeError> {
    view.checkpoint()?;
    snapshots.save(operators)?;
    snapshots.tidy(&view.checkpoints().into_iter().collect())?;
    Ok(())
}
