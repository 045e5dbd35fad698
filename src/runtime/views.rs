//! Opening the views of a catalog: to write them, or to read what is committed.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::RuntimeError;
use super::context::FolderContext;
use super::data_dir::DataDir;
use crate::config::{Config, ConfigError, PartitionBy};
use crate::event::Lsn;
use crate::operators::entities::{KEY_BYTES, MAX_KEYS};
use crate::operators::{checkpoints, tables};
use crate::query::{Handles, PipelineProgress};
use crate::schema::{Catalog, DeclarationError, Layout, PlanError, Stream, TABLE_KEY, WINDOW_KEY};
use crate::views::counts::{Counts, CountsView};
use crate::views::lake::{CommitPolicy, LakeTable, LakeView, Pool, RowOrigin, TableSpec};
use crate::views::places::{Places, PlacesView};
use crate::views::search::{RollPolicy, SearchIndex, SearchView};
use crate::views::{LogIdentity, View};

/// The views of a catalog, opened for writing or for reading.
pub struct OpenViews {
    /// To be driven; none if opened only for reading.
    pub views: Vec<Box<dyn View>>,
    /// What queries read of them.
    pub handles: Handles,
    /// Every checkpoint that a view has committed, by the names that snapshots use.
    pub checkpoints: BTreeMap<String, Lsn>,
}

/// The tables of a catalog: what each holds, and where.
pub fn specs(config: &Config, folder: &DataDir, catalog: &Catalog) -> Vec<TableSpec> {
    let lake = folder.lake();
    let layout = if config.partition == PartitionBy::Hour {
        Layout::Hours
    } else {
        Layout::Days
    };
    let mut specs: Vec<TableSpec> = catalog
        .streams
        .values()
        .map(|s| TableSpec::stream(&lake, s, layout))
        .collect();
    for stream in catalog.streams.values() {
        if stream.session().is_some() {
            let schema = crate::operators::sessions::schema();
            specs.push(TableSpec::derived(
                &lake,
                &tables::sessions(&stream.name),
                schema,
                layout,
            ));
        }
        if catalog.windows.iter().any(|w| w.input == stream.name) {
            // Few rows over many days: partitions by hour would be as many files as rows.
            specs.push(TableSpec::derived(
                &lake,
                &tables::late(&stream.name),
                stream.late_schema(),
                Layout::Days,
            ));
        }
    }
    for window in &catalog.windows {
        let name = tables::versions_of(&window.name);
        specs.push(TableSpec::derived(
            &lake,
            &name,
            window.schema.clone(),
            layout,
        ));
    }
    specs.extend(
        catalog
            .entities
            .iter()
            .map(|entity| TableSpec::entity(&lake, entity)),
    );
    specs.push(TableSpec::dead_letters(&lake, layout));
    specs.push(TableSpec::raw(&lake, layout));
    specs
}

/// A configuration's declarations, compiled, if each of their tables can be created with the columns
/// that the lake would give it.
pub fn compile(config: &Config) -> Result<Arc<Catalog>, ConfigError> {
    let catalog = Catalog::from_config(config)?;
    let folder = DataDir {
        root: config.data.clone(),
    };
    for spec in specs(config, &folder, &catalog) {
        if let Err(refusal) = spec.check() {
            return Err(declared_as(&spec, &catalog, &refusal).in_file(config));
        }
    }
    Ok(Arc::new(catalog))
}

/// Why an existing table cannot become what the configuration declares, as an error that points into
/// its file.
pub fn refused(config: &Config, catalog: &Catalog, spec: &TableSpec, reason: &str) -> ConfigError {
    let window = catalog
        .windows
        .iter()
        .find(|w| tables::versions_of(&w.name) == spec.name);
    let what = window.map_or(spec.name.as_str(), |w| w.name.as_str());
    let message = format!("{reason}; or let `weir rebuild {what}` recreate the table");
    declared_as(spec, catalog, &message.into()).in_file(config)
}

/// A refusal of a table as one of its declaration.
fn declared_as(spec: &TableSpec, catalog: &Catalog, refusal: &PlanError) -> DeclarationError {
    let name = &spec.name;
    let error = |name: &str, key: &'static str, sql: &str| {
        DeclarationError::new(name, key, refusal.clone().locate_in(sql))
    };
    if let Some(window) = catalog
        .windows
        .iter()
        .find(|w| tables::versions_of(&w.name) == *name)
    {
        return error(&window.name, WINDOW_KEY, &window.def.sql);
    }
    if let Some(entity) = catalog.entities.iter().find(|e| e.name == *name) {
        return error(name, TABLE_KEY, &entity.def.select);
    }
    let stream = name.split('.').next().unwrap_or(name);
    let select = catalog
        .streams
        .get(stream)
        .map_or("", |s| s.def.select.as_str());
    if stream == name {
        return error(stream, "select", select);
    }
    // A table with columns of Weir's own next to the stream's.
    let refusal = refusal
        .clone()
        .map(|message| format!("the table {name}: {message}"));
    DeclarationError::new(stream, "select", refusal.locate_in(select))
}

/// Suffixes of the names of a stream's files.
pub const PLACES: &str = "places.redb";
/// See [`PLACES`].
pub const COUNTS: &str = "counts.redb";

/// The name of the view that writes a table.
pub fn of_table(table: &str) -> String {
    checkpoints::table(table)
}

/// The specification of a table, by its name.
pub fn spec(
    config: &Config,
    folder: &DataDir,
    catalog: &Catalog,
    table: &str,
) -> Option<TableSpec> {
    specs(config, folder, catalog)
        .into_iter()
        .find(|spec| spec.name == table)
}

fn is_late(spec: &TableSpec) -> bool {
    matches!(&spec.feed, RowOrigin::Derived(name) if name.ends_with(".late"))
}

/// Opens all views of the catalog. Not `writable`: only views that exist, and none to drive.
pub fn open(
    context: &FolderContext,
    catalog: &Arc<Catalog>,
    log: LogIdentity,
    writable: bool,
) -> Result<OpenViews, RuntimeError> {
    open_some(context, catalog, log, writable, &|_| true)
}

/// Memory for rows that wait for a commit, and how often they are committed.
struct CommitPolicies<'a> {
    config: &'a Config,
    streams: usize,
    /// A part of the memory for rows that wait.
    part_bytes: usize,
    /// Shared by the derived tables.
    pool: Arc<Pool>,
}

impl<'a> CommitPolicies<'a> {
    fn new(config: &'a Config, catalog: &Catalog, specs: &[TableSpec]) -> Self {
        let part_bytes = config.limits.shares().hot_rows / 24;
        let derived = specs
            .iter()
            .filter(|s| matches!(s.feed, RowOrigin::Derived(_)))
            .count();
        // What operators remember of entities is taken from the rows that may wait here.
        let remembered = catalog.entities.len() * MAX_KEYS * KEY_BYTES;
        let pool_bytes = (7 * part_bytes).saturating_sub(remembered).max(part_bytes);
        Self {
            config,
            streams: catalog.streams.len(),
            part_bytes,
            pool: Arc::new(Pool::new(pool_bytes, derived.max(1))),
        }
    }

    fn policy_for(&self, spec: &TableSpec) -> CommitPolicy {
        let (limits, part) = (&self.config.limits, self.part_bytes);
        let is_late = is_late(spec);
        CommitPolicy {
            // Late rows are scattered over many hours; they wait together.
            recent_every: if is_late {
                limits.lake_old
            } else {
                limits.lake_recent
            },
            late_every: limits.lake_old,
            rows: if spec.layout == Layout::Buckets {
                usize::MAX
            } else {
                limits.lake_rows
            },
            // Rows of streams take most; those of `raw` wait compressed, and dead letters are few.
            bytes: match &spec.feed {
                RowOrigin::DeadLetters => part,
                RowOrigin::Raw => 3 * part,
                RowOrigin::Stream(_) => 9 * part / self.streams.max(1),
                RowOrigin::Derived(_) if is_late => 4 * part,
                RowOrigin::Derived(_) => 7 * part,
            },
            pool: (matches!(spec.feed, RowOrigin::Derived(_)) && !is_late)
                .then(|| self.pool.clone()),
        }
    }
}

/// Opens those views that are wanted, by their names.
pub(super) fn open_some(
    context: &FolderContext,
    catalog: &Arc<Catalog>,
    log: LogIdentity,
    writable: bool,
    is_wanted: &dyn Fn(&str) -> bool,
) -> Result<OpenViews, RuntimeError> {
    let FolderContext {
        config,
        folder,
        runtime,
        ..
    } = context;
    let specs = specs(config, folder, catalog);
    let policies = CommitPolicies::new(config, catalog, &specs);
    let mut opened_tables = BTreeMap::new();
    let mut views: Vec<Box<dyn View>> = Vec::new();
    for spec in specs {
        let name = spec.name.clone();
        if !is_wanted(&of_table(&name)) {
            continue;
        }
        let policy = policies.policy_for(&spec);
        let Some(table) = LakeTable::open(spec, log, runtime.clone(), writable)? else {
            continue;
        };
        let table = Arc::new(table);
        if writable {
            views.push(Box::new(LakeView::new(table.clone(), policy)));
        }
        opened_tables.insert(name, table);
    }
    let committed = opened_tables
        .values()
        .flat_map(|t| t.checkpoints())
        .collect();
    let handles = Handles {
        catalog: catalog.clone(),
        lake: folder.lake(),
        tables: opened_tables,
        search: BTreeMap::new(),
        places: BTreeMap::new(),
        counts: BTreeMap::new(),
        progress: Arc::new(PipelineProgress::default()),
    };
    let mut opened = OpenViews {
        views,
        handles,
        checkpoints: committed,
    };
    for stream in catalog.streams.values() {
        if is_wanted(&checkpoints::search(&stream.name)) {
            opened.open_search(config, folder, stream, log, writable)?;
        }
        opened.open_state(config, folder, stream, log, writable, is_wanted)?;
    }
    Ok(opened)
}

impl OpenViews {
    fn open_search(
        &mut self,
        config: &Config,
        folder: &DataDir,
        stream: &Arc<Stream>,
        log: LogIdentity,
        writable: bool,
    ) -> Result<(), RuntimeError> {
        let Some(def) = &stream.def.search else {
            return Ok(());
        };
        let path = folder.search().join(&stream.name);
        let Some(index) = SearchIndex::open(&path, def, writable)? else {
            return Ok(());
        };
        let index = Arc::new(index);
        self.checkpoints
            .insert(checkpoints::search(&stream.name), index.checkpoint(log)?);
        if writable {
            let memory = config.limits.shares().search / self.handles.catalog.streams.len().max(1);
            let roll = RollPolicy::for_disk_limit(config.limits.disk);
            let view = SearchView::new(index.clone(), stream.clone(), log, memory, roll)?;
            self.views.push(Box::new(view));
        }
        self.handles.search.insert(stream.name.clone(), index);
        Ok(())
    }

    fn open_state(
        &mut self,
        config: &Config,
        folder: &DataDir,
        stream: &Arc<Stream>,
        log: LogIdentity,
        writable: bool,
        is_wanted: &dyn Fn(&str) -> bool,
    ) -> Result<(), RuntimeError> {
        let name = &stream.name;
        let shares = config.limits.shares();
        let streams = self.handles.catalog.streams.values();
        let sharing =
            |is_one: &dyn Fn(&Stream) -> bool| streams.clone().filter(|s| is_one(s)).count().max(1);
        if stream.def.places.is_some()
            && is_wanted(&checkpoints::places(name))
            && let Some(places) = Places::open(
                &folder.state().join(format!("{name}.{PLACES}")),
                shares.places() / sharing(&|s| s.def.places.is_some()),
                writable,
            )?
        {
            let places = Arc::new(places);
            self.checkpoints
                .insert(checkpoints::places(name), places.checkpoint(log)?);
            if writable {
                self.views.push(Box::new(PlacesView::new(
                    places.clone(),
                    stream.clone(),
                    log,
                )?));
            }
            self.handles.places.insert(name.clone(), places);
        }
        if stream.def.count.is_some()
            && is_wanted(&checkpoints::counts(name))
            && let Some(counts) = Counts::open(
                &folder.state().join(format!("{name}.{COUNTS}")),
                shares.counts() / sharing(&|s| s.def.count.is_some()),
                writable,
            )?
        {
            let counts = Arc::new(counts);
            self.checkpoints
                .insert(checkpoints::counts(name), counts.checkpoint(log)?);
            if writable {
                self.views.push(Box::new(CountsView::new(
                    counts.clone(),
                    stream.clone(),
                    log,
                )?));
            }
            self.handles.counts.insert(name.clone(), counts);
        }
        Ok(())
    }
}
