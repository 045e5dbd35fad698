//! Opening the views of a catalog: to write them, or to read what is committed.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::RuntimeError;
use super::context::FolderContext;
use super::data_dir::DataDir;
use crate::config::{Config, ConfigError, PartitionBy};
use crate::event::Lsn;
use crate::ids::{CheckpointId, TableId, ViewId};
use crate::operators::entities::{KEY_BYTES, MAX_KEYS};
use crate::query::{Handles, PipelineProgress};
use crate::schema::{Catalog, DeclarationError, Layout, PlanError, Stream, TABLE_KEY, WINDOW_KEY};
use crate::views::counts::{Counts, CountsView};
use crate::views::lake::{CommitPolicy, LakeTable, LakeView, Pool, TableSpec};
use crate::views::places::{Places, PlacesView};
use crate::views::search::{RollPolicy, SearchIndex, SearchView};
use crate::views::{LogIdentity, View};

/// The views of a catalog, opened for writing or for reading.
pub struct OpenViews {
    /// To be driven; none if opened only for reading.
    pub views: Vec<Box<dyn View>>,
    /// What queries read of them.
    pub handles: Handles,
    /// Every checkpoint that a view has committed.
    pub checkpoints: BTreeMap<CheckpointId, Lsn>,
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
            let id = TableId::sessions(&stream.name);
            specs.push(TableSpec::new(&lake, id, schema, layout));
        }
        if catalog.windows.iter().any(|w| w.input == stream.name) {
            // Few rows over many days: partitions by hour would be as many files as rows.
            let (id, schema) = (TableId::late(&stream.name), stream.late_schema());
            specs.push(TableSpec::new(&lake, id, schema, Layout::Days));
        }
    }
    for window in &catalog.windows {
        let (id, schema) = (TableId::window(&window.name), window.schema.clone());
        specs.push(TableSpec::new(&lake, id, schema, layout));
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
        let sends = |name: &String| catalog.table_id(name).as_ref() == Some(&spec.id);
        for sink in config
            .sinks
            .iter()
            .filter(|sink| sink.from.iter().any(sends))
        {
            crate::sinks::check(sink, &spec.schema, catalog.sql)
                .map_err(|reason| config.sink_error(&sink.name, &reason.to_string()))?;
        }
    }
    Ok(Arc::new(catalog))
}

/// Why an existing table cannot become what the configuration declares, as an error that points into
/// its file.
pub fn refused(config: &Config, catalog: &Catalog, spec: &TableSpec, reason: &str) -> ConfigError {
    let what = spec.id.rebuild_name();
    let message = format!("{reason}; or let `weir rebuild {what}` recreate the table");
    declared_as(spec, catalog, &message.into()).in_file(config)
}

/// A refusal of a table as one of its declaration.
fn declared_as(spec: &TableSpec, catalog: &Catalog, refusal: &PlanError) -> DeclarationError {
    let error = |name: &str, key: &'static str, sql: &str| {
        DeclarationError::new(name, key, refusal.clone().locate_in(sql))
    };
    let select_of = |stream: &str| {
        let stream = catalog.streams.get(stream);
        stream.map_or("", |s| s.def.select.as_str())
    };
    match &spec.id {
        TableId::Window(name) => {
            let sql = catalog.window(name).map_or("", |w| &w.def.sql);
            error(name, WINDOW_KEY, sql)
        }
        TableId::Entity(name) => {
            let select = catalog.entity(name).map_or("", |e| &e.def.select);
            error(name, TABLE_KEY, select)
        }
        TableId::Stream(name) => error(name, "select", select_of(name)),
        // A table with columns of Weir's own next to the stream's.
        TableId::Sessions(stream) | TableId::Late(stream) => {
            let refusal = refusal
                .clone()
                .map(|message| format!("the table {}: {message}", spec.name));
            DeclarationError::new(stream, "select", refusal.locate_in(select_of(stream)))
        }
        // Their columns do not follow from a declaration.
        TableId::Raw | TableId::DeadLetters => error(&spec.name, "select", ""),
    }
}

/// Suffixes of the names of a stream's files.
pub const PLACES: &str = "places.redb";
/// See [`PLACES`].
pub const COUNTS: &str = "counts.redb";

/// The specification of a table; none where it is not declared.
pub fn spec(
    config: &Config,
    folder: &DataDir,
    catalog: &Catalog,
    table: &TableId,
) -> Option<TableSpec> {
    specs(config, folder, catalog)
        .into_iter()
        .find(|spec| spec.id == *table)
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
        let derived = specs.iter().filter(|spec| spec.id.is_derived()).count();
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
        let is_late = matches!(spec.id, TableId::Late(_));
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
            bytes: match &spec.id {
                TableId::DeadLetters => part,
                TableId::Raw => 3 * part,
                TableId::Stream(_) => 9 * part / self.streams.max(1),
                TableId::Late(_) => 4 * part,
                TableId::Sessions(_) | TableId::Window(_) | TableId::Entity(_) => 7 * part,
            },
            pool: (spec.id.is_derived() && !is_late).then(|| self.pool.clone()),
        }
    }
}

/// Opens those views that are wanted.
pub(super) fn open_some(
    context: &FolderContext,
    catalog: &Arc<Catalog>,
    log: LogIdentity,
    writable: bool,
    is_wanted: &dyn Fn(&ViewId) -> bool,
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
        let id = spec.id.clone();
        if !is_wanted(&id.view()) {
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
        opened_tables.insert(id, table);
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
        if is_wanted(&ViewId::search(&stream.name)) {
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
        self.checkpoints.insert(
            (&ViewId::search(&stream.name)).into(),
            index.checkpoint(log)?,
        );
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
        is_wanted: &dyn Fn(&ViewId) -> bool,
    ) -> Result<(), RuntimeError> {
        let name = &stream.name;
        let shares = config.limits.shares();
        let streams = self.handles.catalog.streams.values();
        let sharing =
            |is_one: &dyn Fn(&Stream) -> bool| streams.clone().filter(|s| is_one(s)).count().max(1);
        if stream.def.places.is_some()
            && is_wanted(&ViewId::places(name))
            && let Some(places) = Places::open(
                &folder.state().join(format!("{name}.{PLACES}")),
                shares.places() / sharing(&|s| s.def.places.is_some()),
                writable,
            )?
        {
            let places = Arc::new(places);
            self.checkpoints
                .insert((&ViewId::places(name)).into(), places.checkpoint(log)?);
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
            && is_wanted(&ViewId::counts(name))
            && let Some(counts) = Counts::open(
                &folder.state().join(format!("{name}.{COUNTS}")),
                shares.counts() / sharing(&|s| s.def.count.is_some()),
                writable,
            )?
        {
            let counts = Arc::new(counts);
            self.checkpoints
                .insert((&ViewId::counts(name)).into(), counts.checkpoint(log)?);
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
