//! Processing history once more for one view, under the configuration that is in force or is to be:
//! a new generation is built beside the old one, which goes on serving. It takes the old one's
//! place while nothing is taken in, at the end of the log.
//!
//! What a generation has reached lies in its folder, so that every step can be taken again after a
//! kill: `building` by a verb, `ready` for the next start, `whole` at the end of the log, `settled`
//! behind a changed configuration's frame, `placed` where the old one was; then the operators take
//! over what made it, and the folder is removed.

use std::collections::BTreeMap;
use std::fs::{self, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::data_dir::DataDir;
use super::replay::{self, ReplayFrame, ReplayReader};
use super::retained_rows::{CarriedOverRows, RetainedOrigin, RetainedRows};
use super::snapshots::Snapshots;
use super::views::{self, COUNTS, PLACES, of_table};
use super::{RuntimeError, log_name, snapshots, stored_catalog, wal_options};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, Declarations};
use crate::event::{Lsn, Micros, lsn_sequence, rfc3339};
use crate::operators::{Operators, Output, checkpoints, tables};
use crate::schema::window::Shape;
use crate::schema::{Catalog, Stream, Window};
use crate::storage::{Disk, Storage, remove_temporaries, sync_folder};
use crate::views::View;
use crate::views::lake::{LakeTable, LogName};
use crate::wal::Wal;

/// How often what was built is made safe, and the progress told.
const SAVE_EVERY: Duration = Duration::from_secs(10);
const TELL_EVERY: Duration = Duration::from_secs(1);
const MANIFEST: &str = "rebuild.json";

/// How far a generation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Building,
    Ready,
    Whole,
    Settled,
    Placed,
}

/// What a generation is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct BuildManifest {
    view: String,
    configuration: u64,
    log: u64,
    /// How a table is to be split: as `[lake] partition` said.
    #[serde(default)]
    partition: String,
    state: State,
    /// The first record that was whole when it was begun: of those before, what is kept of them is
    /// processed.
    first: Lsn,
    /// Where rows of the stream have left too: the time from which on what is made is whole. What
    /// lies before is taken over.
    whole_from: Option<Micros>,
}

impl BuildManifest {
    fn is_of(&self, other: &Self) -> bool {
        (&self.view, self.configuration, self.log, &self.partition)
            == (
                &other.view,
                other.configuration,
                other.log,
                &other.partition,
            )
    }
}

/// A generation being built, held by this process.
pub struct ViewBuild {
    /// The data folder, and the generation's own beside everything else in it.
    folder: DataDir,
    own: DataDir,
    manifest: BuildManifest,
    /// What the view follows from.
    catalog: Arc<Catalog>,
    archive: replay::ReplaySources,
    _lock: fs::File,
}

/// The view, and the checkpoints that it has committed.
type Built = (Box<dyn View>, BTreeMap<String, Lsn>);

/// How far a build is: records done, of how many, since when.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64, Duration);

/// Of a configuration what one view follows from: less to process.
fn needed(catalog: &Catalog, view: &str) -> Declarations {
    let mut declared = catalog.declarations();
    let (kind, name) = view.split_once('/').unwrap_or(("", view));
    let is_late = |name: &str| catalog.streams.keys().any(|s| tables::late(s) == name);
    if kind == "lake" && (name == checkpoints::DEAD_LETTERS || is_late(name)) {
        declared.tables.clear();
        return declared;
    }
    let window = catalog
        .windows
        .iter()
        .find(|w| kind == "lake" && tables::versions_of(&w.name) == name);
    let mut chain = Vec::new();
    let mut next = window;
    while let Some(window) = next {
        chain.push(window.name.as_str());
        next = catalog.window(&window.over);
    }
    // Who reads a window of these has it tell more.
    let is_of_it = |w: &str| {
        chain.contains(&w)
            || catalog
                .window(w)
                .is_some_and(|w| chain.contains(&w.over.as_str()))
    };
    declared.windows.retain(|name, _| is_of_it(name));
    declared
        .tables
        .retain(|table, _| kind == "lake" && table == name);
    let of_window = window.map(|w| w.stream.as_str());
    let of_entity = catalog
        .entities
        .iter()
        .find(|e| kind == "lake" && e.name == name)
        .map(|e| e.stream.as_str());
    let own = name
        .strip_suffix(".sessions")
        .filter(|s| catalog.streams.contains_key(*s))
        .unwrap_or(name);
    let stream = of_window.or(of_entity).unwrap_or(own);
    declared.streams.retain(|name, _| name == stream);
    declared
}

/// The view that a name means: a window, an entity table, another table, or `search`, `places`,
/// `counts` of a stream.
pub fn view_named(
    catalog: &Catalog,
    what: &str,
    stream: Option<&str>,
) -> Result<String, RuntimeError> {
    let wrong = |message: String| Err(RuntimeError::Config(message));
    if let "search" | "places" | "counts" = what {
        let found = match stream {
            None => catalog.streams.values().next(),
            Some(name) => catalog.streams.get(name),
        };
        let Some(found) = found else {
            return wrong(stream.map_or("no stream is declared".into(), |name| {
                format!("there is no stream `{name}`")
            }));
        };
        let (is_declared, view) = match what {
            "search" => (found.def.search.is_some(), checkpoints::search(&found.name)),
            "places" => (found.def.places.is_some(), checkpoints::places(&found.name)),
            _ => (found.def.count.is_some(), checkpoints::counts(&found.name)),
        };
        let key = if what == "counts" { "count" } else { what };
        return if is_declared {
            Ok(view)
        } else {
            wrong(format!("stream `{}` declares no `{key}`", found.name))
        };
    }
    if catalog.window(what).is_some() {
        return Ok(of_table(&tables::versions_of(what)));
    }
    let mut known: Vec<String> = catalog.entities.iter().map(|e| e.name.clone()).collect();
    for stream in catalog.streams.values() {
        known.push(stream.name.clone());
        known.extend(stream.session().map(|_| tables::sessions(&stream.name)));
        let has_windows = catalog.windows.iter().any(|w| w.over == stream.name);
        known.extend(has_windows.then(|| tables::late(&stream.name)));
    }
    known.push(checkpoints::DEAD_LETTERS.into());
    if known.iter().any(|name| name == what) {
        return Ok(of_table(what));
    }
    let windows = catalog.windows.iter().map(|w| w.name.clone());
    let all: Vec<String> = ["search", "places", "counts"]
        .map(str::to_owned)
        .into_iter()
        .chain(windows)
        .chain(known)
        .collect();
    wrong(format!(
        "`{what}` cannot be rebuilt; there are {}",
        all.join(", ")
    ))
}

/// The view that is rebuilt together with this one: a search index stores the rows of its stream's
/// table.
pub fn dependent_view(catalog: &Catalog, view: &str) -> Option<String> {
    let is_of_table =
        |stream: &&Arc<Stream>| of_table(&stream.name) == view && stream.def.search.is_some();
    catalog
        .streams
        .values()
        .find(is_of_table)
        .map(|stream| checkpoints::search(&stream.name))
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> RuntimeError {
    let path = path.to_owned();
    move |e| RuntimeError::Failed(format!("{}: {e}", path.display()))
}

impl ViewBuild {
    /// Opens what was begun of this view under this configuration, or begins it.
    pub fn begin(
        config: &Config,
        runtime: &tokio::runtime::Handle,
        view: &str,
    ) -> Result<Self, RuntimeError> {
        let folder = DataDir::existing(&config.data)?;
        let catalog = views::compile(config)?;
        let options = wal_options(config, &folder);
        let id = Wal::log_id_of(&Disk, &options.folder)?.ok_or_else(|| {
            RuntimeError::Config(format!("{} holds no data yet", folder.root.display()))
        })?;
        let log = LogName {
            instance: config.instance,
            id,
            zero: options.zero,
        };
        let manifest = BuildManifest {
            view: view.to_owned(),
            configuration: catalog.id,
            log: id,
            partition: config.partition.name().to_owned(),
            state: State::Building,
            first: 0,
            whole_from: None,
        };
        let root = folder.rebuilds().join(view.replace('/', "."));
        let own = DataDir::create(&root)?;
        let taken = || RuntimeError::InUse(format!("{view} is being rebuilt by another process"));
        let mut held = lock(&own)?.ok_or_else(taken)?;
        if read_manifest(&root).is_none_or(|found| !found.is_of(&manifest)) {
            // Another configuration's, or half begun.
            remove(&folder, &root)?;
            held = lock(&DataDir::create(&root)?)?.ok_or_else(taken)?;
        }
        remove_temporaries(&root);
        let mut generation = Self::of(config, &folder, &catalog, log, runtime, manifest, held)?;
        match read_manifest(&root) {
            Some(found) if matches!(found.state, State::Settled | State::Placed) => {
                return Err(RuntimeError::InUse(format!(
                    "the rebuilt {view} is taking its place; try again behind the next start"
                )));
            }
            Some(found) => generation.manifest = found,
            None => {}
        }
        generation.find_what_is_left(config)?;
        generation.set(generation.manifest.state)?;
        Ok(generation)
    }

    fn of(
        config: &Config,
        folder: &DataDir,
        catalog: &Arc<Catalog>,
        log: LogName,
        runtime: &tokio::runtime::Handle,
        manifest: BuildManifest,
        lock: fs::File,
    ) -> Result<Self, RuntimeError> {
        let own = DataDir {
            root: folder.rebuilds().join(manifest.view.replace('/', ".")),
        };
        let needed = Catalog::compile(&needed(catalog, &manifest.view))
            .map_err(|e| RuntimeError::Config(e.to_string()))?;
        let archive = replay::ReplaySources {
            lake: folder.lake(),
            log_folder: folder.log(),
            log,
            partition: config.partition,
            runtime: runtime.clone(),
        };
        Ok(Self {
            folder: folder.clone(),
            own,
            manifest,
            catalog: Arc::new(needed),
            archive,
            _lock: lock,
        })
    }

    /// Notes where whole records begin, and from when on what is made of them is whole: again with
    /// each attempt, because more may have left since.
    fn find_what_is_left(&mut self, config: &Config) -> Result<(), RuntimeError> {
        self.manifest.first = self.manifest.first.max(self.archive.first()?);
        let stream = self
            .stream()
            .filter(|_| self.is_without_beginning())
            .cloned();
        let Some(stream) = stream.filter(|stream| self.has_table(config, &stream.name)) else {
            return Ok(());
        };
        let (live, _) = snapshots(config, &self.folder).newest_for(&BTreeMap::new(), Lsn::MAX)?;
        let floor = live.floors().get(stream.name.as_str()).copied();
        // Hours may have left since that snapshot. What begins before the first that is there stays
        // as it was.
        let may_leave = stream.def.retention.is_some() || config.limits.disk.is_some();
        let table = self.old_table(config, &stream.name)?;
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
        let whole_from = floor
            .max(begins)
            .map(|floor| floor.saturating_add(self.longest_gap()));
        self.manifest.whole_from = self.manifest.whole_from.max(whole_from);
        Ok(())
    }

    fn is_without_beginning(&self) -> bool {
        self.manifest.first > self.archive.log.zero + 1
    }

    /// The stream that the view follows from; none of dead letters, which are of all.
    fn stream(&self) -> Option<&Arc<Stream>> {
        if self.manifest.view == of_table(checkpoints::DEAD_LETTERS) {
            return None;
        }
        let late = self
            .manifest
            .view
            .strip_prefix("lake/")
            .and_then(|table| table.strip_suffix(".late"));
        late.map_or_else(
            || self.catalog.streams.values().next(),
            |stream| self.catalog.streams.get(stream),
        )
    }

    /// How long silence must be behind a record that is gone before a session is whole again.
    fn longest_gap(&self) -> Micros {
        let of_stream = self
            .stream()
            .and_then(|s| s.session())
            .filter(|_| self.manifest.view.ends_with(".sessions"));
        // A window over a window may go by the end of that one.
        let is_own =
            |window: &Window| of_table(&tables::versions_of(&window.name)) == self.manifest.view;
        let of_windows = self
            .catalog
            .windows
            .iter()
            .map(|window| match window.shape {
                Shape::Session { gap, .. } => gap,
                Shape::Aligned(_) if is_own(window) => 0,
                Shape::Aligned(windows) => windows.longest(),
            });
        of_stream
            .map_or(0, |session| session.gap)
            .saturating_add(of_windows.sum())
    }

    /// What is not made of every record, for whoever asked for it.
    pub fn told(&self) -> Option<String> {
        let BuildManifest {
            view,
            first,
            whole_from,
            ..
        } = &self.manifest;
        let first = self.is_without_beginning().then(|| lsn_sequence(*first))?;
        let of = self.stream().map_or("dead letters", |stream| &stream.name);
        let mut told = format!(
            "{view}: `raw` begins with record {first}; what came before is taken from the rows of {of}"
        );
        if let Some(from) = whole_from.filter(|_| self.makes_rows_of_its_own()) {
            told += &format!(", and rows before {} stay as they were", rfc3339(from));
        }
        Some(told)
    }

    /// A table that operators make: of what is gone it has rows that nothing else has.
    fn makes_rows_of_its_own(&self) -> bool {
        let table = self.manifest.view.strip_prefix("lake/");
        table.is_some_and(|table| {
            table != checkpoints::DEAD_LETTERS && !self.catalog.streams.contains_key(table)
        })
    }

    /// Whether the old generation has a table; one that is declared only now is not there.
    fn has_table(&self, config: &Config, name: &str) -> bool {
        views::spec(config, &self.folder, &self.catalog, name)
            .is_some_and(|spec| spec.root.exists())
    }

    /// A table of the old generation, as this configuration reads it.
    fn old_table(&self, config: &Config, name: &str) -> Result<LakeTable, RuntimeError> {
        let gone = || RuntimeError::Damaged(format!("the table {name} is gone"));
        let spec = views::spec(config, &self.folder, &self.catalog, name).ok_or_else(gone)?;
        LakeTable::open(spec, self.archive.log, self.archive.runtime.clone(), false)?
            .ok_or_else(gone)
    }

    /// Everything above a record.
    fn history(&self, config: &Config, after: Lsn) -> Result<ReplayReader, RuntimeError> {
        // Since the beginning more of it may have left.
        let first = self.archive.first()?;
        if after + 1 >= first {
            return ReplayReader::new(self.archive.clone(), after);
        }
        let (table, of) = match self.stream() {
            Some(stream) => (stream.name.as_str(), RetainedOrigin::Stream(stream.clone())),
            None => (
                checkpoints::DEAD_LETTERS,
                RetainedOrigin::DeadLetters(self.catalog.clone()),
            ),
        };
        if !self.has_table(config, table) {
            return ReplayReader::new(self.archive.clone(), first - 1);
        }
        let kept = RetainedRows::new(&self.old_table(config, table)?, of, after, first - 1);
        Ok(ReplayReader::kept(self.archive.clone(), after, kept, first))
    }

    fn takes_over(&self) -> bool {
        self.manifest.whole_from.is_some() && self.makes_rows_of_its_own()
    }

    /// Rows that stay as they were, above a record.
    fn taken_over(
        &self,
        config: &Config,
        after: Lsn,
    ) -> Result<Option<CarriedOverRows>, RuntimeError> {
        let table = self
            .manifest
            .view
            .strip_prefix("lake/")
            .filter(|_| self.makes_rows_of_its_own());
        let Some((table, before)) = table.zip(self.manifest.whole_from) else {
            return Ok(None);
        };
        if !self.has_table(config, table) {
            return Ok(None);
        }
        Ok(Some(CarriedOverRows::new(
            &self.old_table(config, table)?,
            after,
            before,
        )))
    }

    fn set(&mut self, state: State) -> Result<(), RuntimeError> {
        self.manifest.state = state;
        let path = self.own.root.join(MANIFEST);
        let text = serde_json::to_vec(&self.manifest).expect("plain data becomes JSON");
        Disk.replace(&path, &text).map_err(failed(&path))
    }

    fn snapshots(&self) -> Snapshots {
        Snapshots {
            storage: Arc::new(Disk),
            folder: self.own.operators(),
            log: self.own.log(),
            zero: self.archive.log.zero,
            unsynced: Arc::new(AtomicBool::new(true)),
        }
    }

    fn open(&self, config: &Config) -> Result<Built, RuntimeError> {
        let archive = &self.archive;
        let is_it = |view: &str| view == self.manifest.view;
        let runtime = &archive.runtime;
        let mut opened = views::open_some(
            config,
            &self.own,
            &self.catalog,
            archive.log,
            runtime,
            true,
            &is_it,
        )?;
        let view = opened
            .views
            .pop()
            .ok_or_else(|| RuntimeError::Failed(format!("{} is no view", self.manifest.view)))?;
        Ok((view, opened.checkpoints))
    }

    /// Goes on while the old generation serves, up to a record, or to where the rows that are taken
    /// over are committed.
    pub fn build(
        &mut self,
        config: &Config,
        to: Lsn,
        progress: Progress<'_>,
    ) -> Result<(), RuntimeError> {
        let table = self
            .manifest
            .view
            .strip_prefix("lake/")
            .filter(|_| self.takes_over());
        let committed = match table.filter(|table| self.has_table(config, table)) {
            Some(table) => self.old_table(config, table)?.committed().recent,
            None => Lsn::MAX,
        };
        self.advance(config, to.min(committed), progress)
    }

    /// Goes on up to a record, and makes it safe.
    fn advance(
        &mut self,
        config: &Config,
        to: Lsn,
        progress: Progress<'_>,
    ) -> Result<(), RuntimeError> {
        let (mut view, checkpoints) = self.open(config)?;
        let (saved, zero) = (self.snapshots(), self.archive.log.zero);
        let (found, from_snapshot) = saved.newest_for(&checkpoints, Lsn::MAX)?;
        let mut operators = if from_snapshot {
            found
        } else {
            Operators::new(self.catalog.clone(), zero)
        };
        operators.pin(self.manifest.first);
        if from_snapshot {
            view.advance_to(operators.lsn());
        }
        let mut history = self.history(config, operators.lsn())?;
        let mut taken_over = self.taken_over(config, operators.lsn())?;
        let (begun, mut told, mut safe) = (Instant::now(), Instant::now(), Instant::now());
        let all = lsn_sequence(to);
        // Files that are read may be replaced meanwhile: once, what is there now is looked at.
        let mut is_again = false;
        loop {
            let piece = match history.next(to) {
                Ok(Some(piece)) => piece,
                Ok(None) => break,
                Err(error) if is_again => return Err(error),
                Err(_) => {
                    is_again = true;
                    history = self.history(config, operators.lsn())?;
                    continue;
                }
            };
            is_again = false;
            let mut output = process(&mut operators, piece)?;
            if let Some(rows) = &mut taken_over
                && rows.give(&mut output).is_err()
                && let Some(mut again) = self.taken_over(config, output.after)?
            {
                again.give(&mut output).map_err(RuntimeError::Failed)?;
                *rows = again;
            }
            let now = Instant::now();
            view.apply(&output, now)?;
            if view.is_due(now, false) {
                view.commit(false)?;
            }
            if safe.elapsed() >= SAVE_EVERY {
                save(&mut *view, &saved, &operators)?;
                safe = Instant::now();
            }
            if told.elapsed() >= TELL_EVERY {
                progress(lsn_sequence(operators.lsn()), all, begun.elapsed());
                told = Instant::now();
            }
        }
        save(&mut *view, &saved, &operators)?;
        progress(lsn_sequence(operators.lsn()), all, begun.elapsed());
        Ok(())
    }

    /// It takes the old generation's place with the next start. Where no process is there and the
    /// old one cannot be opened, no start would come so far: the new one is whole at the log's end
    /// then, and takes its place before anything is opened.
    pub fn is_ready(&mut self, config: &Config, is_stopped: bool) -> Result<(), RuntimeError> {
        if is_stopped && self.is_old_unreadable(config) {
            let _lock = self.folder.lock()?;
            self.advance(config, end_of_log(config)?, &mut |_, _, _| {})?;
            return self.set(State::Whole);
        }
        self.set(State::Ready)
    }

    /// Whether what the view has cannot be opened, and is moved away without that.
    fn is_old_unreadable(&self, config: &Config) -> bool {
        let archive = &self.archive;
        let is_it = |view: &str| view == self.manifest.view;
        let open = || {
            views::open_some(
                config,
                &self.folder,
                &self.catalog,
                archive.log,
                &archive.runtime,
                false,
                &is_it,
            )
        };
        !self.manifest.view.starts_with("lake/") && matches!(open(), Err(RuntimeError::Damaged(_)))
    }

    /// Moves what was built to where the old generation is, at the end of the log.
    fn place(&mut self, config: &Config, end: Lsn) -> Result<(), RuntimeError> {
        if self.manifest.state == State::Whole {
            // What a changed configuration's frame makes of the old one is not this one's.
            self.advance(config, end, &mut |_, _, _| {})?;
            self.set(State::Settled)?;
        }
        let (view, log) = (self.manifest.view.clone(), self.archive.log);
        match view.split_once('/') {
            Some(("lake", name)) => {
                let open = |folder: &DataDir| views::spec(config, folder, &self.catalog, name);
                let (Some(new), Some(old)) = (open(&self.own), open(&self.folder)) else {
                    return Err(RuntimeError::Failed(format!("{view} is no table")));
                };
                let runtime = &self.archive.runtime;
                let new = LakeTable::open(new, log, runtime.clone(), false)?.ok_or_else(|| {
                    RuntimeError::Damaged(format!(
                        "{}: the new {view} is gone",
                        self.own.root.display()
                    ))
                })?;
                LakeTable::open_to_replace(old, log, runtime.clone())?.replace_with(&new)?;
            }
            Some(("search", stream)) => {
                let gone = self.own.root.join("before");
                move_over(
                    &self.own.search().join(stream),
                    &self.folder.search().join(stream),
                    Some(&gone),
                )?;
            }
            Some((kind, stream)) => {
                let name = format!(
                    "{stream}.{}",
                    if kind == "places" { PLACES } else { COUNTS }
                );
                move_over(
                    &self.own.state().join(&name),
                    &self.folder.state().join(&name),
                    None,
                )?;
            }
            None => {}
        }
        self.set(State::Placed)
    }

    /// Lets the operators, saved at the end of the log, go on from what made this generation.
    fn hand_over(&self, config: &Config, end: Lsn) -> Result<(), RuntimeError> {
        let live = snapshots(config, &self.folder);
        let mut operators = live.load(end)?;
        let (mut own, is_saved) = self.snapshots().newest_for(&BTreeMap::new(), Lsn::MAX)?;
        if !is_saved {
            own = Operators::new(self.catalog.clone(), self.archive.log.zero);
        }
        own.pin(self.manifest.first);
        // The frame of a changed configuration may lie between.
        let mut history = self.history(config, own.lsn())?;
        while let Some(piece) = history.next(end)? {
            process(&mut own, piece)?;
        }
        if let Some(table) = self.manifest.view.strip_prefix("lake/") {
            operators.adopt(table, &mut own);
            live.save(&operators)?;
        }
        Ok(())
    }
}

/// Applies what comes next.
fn process(
    operators: &mut Operators,
    ReplayFrame { frame, decoded }: ReplayFrame,
) -> Result<Output, RuntimeError> {
    let decoded = match decoded {
        Some(rows) => Some(rows),
        None => {
            operators.end_kept();
            operators.decode(&frame)?
        }
    };
    Ok(operators.apply(&Arc::new(frame), decoded.as_ref())?)
}

/// Commits what a view has, then saves the operators that made it.
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

/// Renames over what is there, durably; where that is a folder it goes to `gone` first. Does
/// nothing where it was done before.
fn move_over(new: &Path, old: &Path, gone: Option<&Path>) -> Result<(), RuntimeError> {
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
    if let Some(gone) = gone.filter(|_| old.exists()) {
        // Of an attempt before.
        let _ = fs::remove_dir_all(gone);
        fs::rename(old, gone).map_err(failed(old))?;
    }
    fs::rename(new, old).map_err(failed(old))?;
    sync_names()
}

fn read_manifest(root: &Path) -> Option<BuildManifest> {
    serde_json::from_slice(&fs::read(root.join(MANIFEST)).ok()?).ok()
}

/// None while another process has it.
fn lock(own: &DataDir) -> Result<Option<fs::File>, RuntimeError> {
    let path = own.root.join("lock");
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(failed(&path)(e)),
    }
}

/// Removes a generation's folder: under a name first that nobody looks for.
fn remove(folder: &DataDir, root: &Path) -> Result<(), RuntimeError> {
    if root.exists() {
        let gone = folder.rebuilds().join(".gone");
        let _ = fs::remove_dir_all(&gone);
        fs::rename(root, &gone).map_err(failed(root))?;
        sync_folder(&folder.rebuilds()).map_err(failed(root))?;
        let _ = fs::remove_dir_all(&gone);
    }
    Ok(())
}

/// Folders of generations that are so far, with what they are of.
fn in_state(folder: &DataDir, states: &[State]) -> Vec<(PathBuf, BuildManifest)> {
    let Ok(entries) = fs::read_dir(folder.rebuilds()) else {
        return Vec::new();
    };
    let roots = entries.filter_map(|e| Some(e.ok()?.path()));
    let mut found: Vec<(PathBuf, BuildManifest)> = roots
        .filter_map(|root| Some((root.clone(), read_manifest(&root)?)))
        .collect();
    // What is being removed has another name.
    let is_its_own = |root: &Path, manifest: &BuildManifest| {
        root.file_name()
            .is_some_and(|n| n == manifest.view.replace('/', ".").as_str())
    };
    found.retain(|(root, manifest)| states.contains(&manifest.state) && is_its_own(root, manifest));
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// Whether something waits to take its place under a configuration.
pub fn is_waiting(folder: &DataDir, configuration: u64) -> bool {
    in_state(folder, &[State::Ready, State::Whole])
        .iter()
        .any(|(_, manifest)| manifest.configuration == configuration)
}

/// Whether anything is being rebuilt, or waits to take its place.
pub fn is_any_begun(folder: &DataDir) -> bool {
    let all = [
        State::Building,
        State::Ready,
        State::Whole,
        State::Settled,
        State::Placed,
    ];
    !in_state(folder, &all).is_empty()
}

/// Whether something has begun to take its place.
fn is_taking_place(folder: &DataDir) -> bool {
    !in_state(folder, &[State::Whole, State::Settled, State::Placed]).is_empty()
}

/// The generations of a configuration that are so far, and that no other process holds.
fn of_configuration(
    config: &Config,
    folder: &DataDir,
    catalog: &Arc<Catalog>,
    log: LogName,
    runtime: &tokio::runtime::Handle,
    states: &[State],
) -> Result<Vec<ViewBuild>, RuntimeError> {
    let mut found = Vec::new();
    for (root, manifest) in in_state(folder, states) {
        if manifest.configuration != catalog.id || manifest.log != log.id {
            continue;
        }
        match lock(&DataDir { root })? {
            Some(lock) => found.push(ViewBuild::of(
                config, folder, catalog, log, runtime, manifest, lock,
            )?),
            // It may be built on; but what has begun to take its place must end before anything
            // else.
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

/// Generations that wait to take their place under a configuration.
pub fn ready(
    config: &Config,
    folder: &DataDir,
    catalog: &Arc<Catalog>,
    log: LogName,
    runtime: &tokio::runtime::Handle,
) -> Result<Vec<ViewBuild>, RuntimeError> {
    of_configuration(
        config,
        folder,
        catalog,
        log,
        runtime,
        &[State::Ready, State::Whole],
    )
}

/// The last record of a stopped folder's log.
pub fn end_of_log(config: &Config) -> Result<Lsn, RuntimeError> {
    let options = wal_options(config, &DataDir::existing(&config.data)?);
    Ok(Wal::peek(&Disk, &options, options.zero)?.last_lsn)
}

/// Whether a view that was ready has taken its place; an error where it could not be completed.
pub fn is_done(config: &Config, view: &str) -> Result<bool, RuntimeError> {
    let root = DataDir::existing(&config.data)?
        .rebuilds()
        .join(view.replace('/', "."));
    match read_manifest(&root) {
        None => Ok(true),
        Some(manifest) if manifest.state == State::Building => Err(RuntimeError::Failed(format!(
            "the rebuilt {view} could not be brought to the end of the log and has not taken its place; the log of the process that tried says why, `weir rebuild` goes on with it"
        ))),
        Some(_) => Ok(false),
    }
}

/// Names of their views.
pub fn views_of(generations: &[ViewBuild]) -> Vec<String> {
    generations
        .iter()
        .map(|g| g.manifest.view.clone())
        .collect()
}

/// Brings generations to the end of the log, where every view has committed. From here on they take
/// their place, whatever happens; one that cannot be completed is left out. Gives the views of the
/// others.
pub fn complete(
    generations: Vec<ViewBuild>,
    config: &Config,
    end: Lsn,
) -> Result<Vec<String>, RuntimeError> {
    let mut whole = Vec::new();
    for mut generation in generations {
        let view = generation.manifest.view.clone();
        match generation.advance(config, end, &mut |_, _, _| {}) {
            Ok(()) => {
                generation.set(State::Whole)?;
                whole.push(view);
            }
            Err(error) => {
                tracing::error!(view, %error, "what was rebuilt does not take its place; `weir rebuild` goes on with it");
                generation.set(State::Building)?;
            }
        }
    }
    Ok(whole)
}

/// Ends on a stopped folder what was begun and broken off: a generation that has begun to take its
/// place does so.
pub fn finish_what_was_begun(
    config: &Config,
    runtime: &tokio::runtime::Handle,
) -> Result<(), RuntimeError> {
    let folder = DataDir::existing(&config.data)?;
    if !is_taking_place(&folder) {
        return Ok(());
    }
    let _lock = folder.lock()?;
    place(config, &folder, runtime)?;
    remove_installed_views(&folder)?;
    if !is_taking_place(&folder) {
        return Ok(());
    }
    let wal = super::open_wal(config, &folder, &views::compile(config)?, runtime)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    finish(config, &folder, wal, runtime, &clock).map(drop)
}

/// Puts whole generations in their place: before anything is opened, because what is there may not
/// fit the configuration.
pub fn place(
    config: &Config,
    folder: &DataDir,
    runtime: &tokio::runtime::Handle,
) -> Result<(), RuntimeError> {
    if in_state(folder, &[State::Whole, State::Settled]).is_empty() {
        return Ok(());
    }
    let options = wal_options(config, folder);
    let Some(id) = Wal::log_id_of(&Disk, &options.folder)? else {
        return Ok(());
    };
    let end = Wal::peek(&Disk, &options, options.zero)?.last_lsn;
    snapshots(config, folder).refuse_ahead(end)?;
    let catalog = stored_catalog(config, folder, end)?;
    let log = LogName {
        instance: config.instance,
        id,
        zero: options.zero,
    };
    for mut generation in of_configuration(
        config,
        folder,
        &catalog,
        log,
        runtime,
        &[State::Whole, State::Settled],
    )? {
        tracing::info!(
            view = generation.manifest.view,
            "the rebuilt one takes its place"
        );
        generation.place(config, end)?;
    }
    Ok(())
}

/// Removes the folders of installed generations that hand no operator state over: all but tables.
/// No live view is opened for it, because one of them may be refused until it is rebuilt, too.
fn remove_installed_views(folder: &DataDir) -> Result<(), RuntimeError> {
    for (root, manifest) in in_state(folder, &[State::Placed]) {
        let own = DataDir { root: root.clone() };
        if !manifest.view.starts_with("lake/") && lock(&own)?.is_some() {
            remove(folder, &root)?;
        }
    }
    Ok(())
}

/// Ends what [`place`] began: the operators go on from what made the new generations.
pub fn finish(
    config: &Config,
    folder: &DataDir,
    wal: Wal,
    runtime: &tokio::runtime::Handle,
    clock: &Arc<dyn Clock>,
) -> Result<Wal, RuntimeError> {
    if in_state(folder, &[State::Placed]).is_empty() {
        return Ok(wal);
    }
    let (log, end) = (log_name(config, &wal), wal.synced_lsn());
    let catalog = stored_catalog(config, folder, end)?;
    let placed = of_configuration(config, folder, &catalog, log, runtime, &[State::Placed])?;
    if placed.is_empty() {
        return Ok(wal);
    }
    let wal = super::drain(config, folder, &catalog, wal, runtime, clock)?;
    for generation in placed {
        generation.hand_over(config, end)?;
        let root = generation.own.root.clone();
        drop(generation);
        remove(folder, &root)?;
    }
    Ok(wal)
}
