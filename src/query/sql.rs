//! SQL over everything: planned and run by DataFusion, read-only, with limits of memory, time, rows
//! and bytes, and a number of queries at once.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::catalog::{
    CatalogProvider, CatalogProviderList, MemoryCatalogProvider, MemoryCatalogProviderList,
    MemorySchemaProvider, SchemaProvider, TableProvider,
};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{
    FairSpillPool, MemoryConsumer, MemoryPool, MemoryReservation, TrackConsumersPool,
};
use datafusion::execution::object_store::{
    DefaultObjectStoreRegistry, ObjectStoreRegistry, ObjectStoreUrl,
};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::execute_stream;
use datafusion::prelude::{SQLOptions, SessionContext};
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;

use super::derived_tables::{self, Open};
pub use super::encode::to_ndjson;
use super::encode::value_bytes;
use super::memory::SharedMemory;
use super::running::{self, Running};
use super::slots::{Asker, Slots};
use super::{AsOf, Handles, QueryError, guarded, local, names, pieces, system};
use crate::event::{Lsn, Micros};
use crate::operators::checkpoints;
use crate::schema::bounds::scope::Scope;
use crate::schema::select::{explain, session_config};
use crate::schema::{Layout, bounds, dialect, functions, versions_of};
use crate::storage::{create_folders, damage_in};
use crate::threads::panic_if_asked;
use crate::views::lake::entities::scan::EntitySnapshot;
use crate::views::lake::footers::Footers;
use crate::views::lake::provider::{LakeSnapshot, lake_url};
use crate::views::lake::{LakeTable, RowOrigin};

/// Longest query text.
const MAX_SQL_BYTES: usize = 256 << 10;
/// How long a query waits for the rows of windows that have just closed, and how often it looks.
const OPEN_WAIT: Duration = Duration::from_secs(2);
const OPEN_POLL: Duration = Duration::from_millis(2);
/// Rows that an operator computes with at once, and how many times fewer they become where they are
/// too wide.
const BATCH_ROWS: usize = 8_192;
const WIDE_FACTOR: usize = 32;
/// Bytes of a query's literals, written out for each row of a batch.
const LITERAL_BATCH_BYTES: usize = 4 << 20;
/// Queries that run at once for other answers.
const OWN_CONCURRENT: usize = 8;
/// Bytes that queries may spill to disk.
const MAX_SPILL_BYTES: u64 = 4 << 30;

/// Bytes of a file's columns that a filter unpacked and the answer needs too: kept that long, in
/// each of the scan's threads.
const PREDICATE_CACHE_BYTES: usize = 4 << 20;

/// Limits on one query and on all of them together.
#[derive(Debug, Clone, Copy)]
pub struct SqlLimits {
    pub time: Duration,
    pub rows: usize,
    pub bytes: usize,
    pub concurrent: usize,
    pub memory: usize,
    /// Bytes of the lake's footers that stay in memory.
    pub footers: usize,
}

/// Plans and runs SQL. What clients ask and what Weir asks for its own answers have slots and
/// memory of their own, so that a search never waits for a query.
pub struct SqlEngine {
    clients: Lane,
    own: Lane,
}

struct Lane {
    planner: Planner,
    slots: Slots,
    is_for_clients: bool,
}

#[derive(Clone)]
struct Planner {
    base: SessionState,
    limits: SqlLimits,
    memory: Arc<SharedMemory>,
}

/// What is a query's own while it runs.
struct Own {
    scope: Arc<Scope>,
    /// With its part of the memory.
    environment: Arc<RuntimeEnv>,
}

/// A finished query.
#[derive(Debug)]
pub struct SqlAnswer {
    pub schema: SchemaRef,
    pub batches: Vec<RecordBatch>,
    pub as_of: AsOf,
    /// The rows' memory, among that of queries, for as long as somebody has them.
    _held: Arc<MemoryReservation>,
}

impl SqlEngine {
    /// Rows that an answer may have.
    pub fn most_rows(&self) -> usize {
        self.clients.planner.limits.rows
    }

    /// `spill` is a folder for intermediate results that do not fit in memory.
    pub fn new(lake: &Path, spill: &Path, limits: SqlLimits) -> Result<Self, QueryError> {
        let own = limits.memory / 3;
        let footers = Arc::new(Footers::new(limits.footers));
        let lane = |memory, concurrent, is_for_clients| {
            let limits = SqlLimits {
                memory,
                concurrent,
                ..limits
            };
            Lane::new(lake, spill, limits, is_for_clients, footers.clone())
                .map_err(|e| QueryError::Failed(explain(&e)))
        };
        Ok(Self {
            clients: lane(limits.memory - own, limits.concurrent, true)?,
            own: lane(own, OWN_CONCURRENT, false)?,
        })
    }

    /// Bytes that running queries have reserved.
    pub fn memory_in_use(&self) -> usize {
        [&self.clients, &self.own]
            .map(|lane| lane.planner.base.runtime_env().memory_pool.reserved())
            .iter()
            .sum()
    }

    /// Runs a client's query on a snapshot taken now; it waits its turn where as many run as may.
    pub async fn ask(
        &self,
        asker: Asker,
        sql: &str,
        handles: &Handles,
        now: Micros,
    ) -> Result<SqlAnswer, QueryError> {
        self.clients.run(asker, sql, handles, now).await
    }

    /// Runs a query that is part of another answer.
    pub async fn run(
        &self,
        sql: &str,
        handles: &Handles,
        now: Micros,
    ) -> Result<SqlAnswer, QueryError> {
        self.own.run(Asker::default(), sql, handles, now).await
    }
}

impl Lane {
    fn new(
        lake: &Path,
        spill: &Path,
        limits: SqlLimits,
        is_for_clients: bool,
        footers: Arc<Footers>,
    ) -> Result<Self, DataFusionError> {
        let environment = environment(lake, spill, limits.memory)?;
        let mut config = session_config(running::THREADS)
            .with_default_catalog_and_schema("weir_lake", "main")
            .with_create_default_catalog_and_schema(false)
            .with_sort_spill_reservation_bytes(1 << 20)
            .with_extension(footers);
        // A filter chooses rows before the columns are unpacked that it does not read.
        let parquet = &mut config.options_mut().execution.parquet;
        parquet.pushdown_filters = true;
        parquet.max_predicate_cache_size = Some(PREDICATE_CACHE_BYTES);
        let mut base = SessionStateBuilder::new()
            .with_config(config)
            .with_runtime_env(environment)
            .with_default_features()
            .build();
        functions::register(&mut base, functions::Limits::Query)?;
        let pool = base.runtime_env().memory_pool.clone();
        let memory = SharedMemory::new(pool, limits.memory, limits.concurrent);
        Ok(Self {
            planner: Planner {
                base,
                limits,
                memory,
            },
            slots: Slots::new(limits.concurrent),
            is_for_clients,
        })
    }

    async fn run(
        &self,
        asker: Asker,
        sql: &str,
        handles: &Handles,
        now: Micros,
    ) -> Result<SqlAnswer, QueryError> {
        if sql.len() > MAX_SQL_BYTES {
            return Err(QueryError::Limit(format!(
                "the query has more than {MAX_SQL_BYTES} bytes"
            )));
        }
        let SqlLimits {
            concurrent, time, ..
        } = self.planner.limits;
        let deadline = tokio::time::Instant::now() + time;
        let slot = tokio::time::timeout_at(deadline, self.slots.acquire(asker)).await;
        let Ok(Ok(slot)) = slot else {
            return Err(QueryError::Busy {
                running: concurrent,
            });
        };
        let failed =
            |e: std::io::Error| QueryError::Failed(format!("no thread can be started: {e}"));
        let memory = self.planner.memory.query();
        // Dropped, as when its client has gone, the query ends, and soon its slot is free.
        let running = Running::start(slot, &memory, self.is_for_clients).map_err(failed)?;
        let (planner, sql, handles) = (self.planner.clone(), sql.to_owned(), handles.clone());
        let own = Own {
            scope: running.scope().clone(),
            environment: planner.environment(memory),
        };
        let query = running.spawn(async move {
            panic_if_asked("sql");
            planner.answer(&sql, &handles, now, &own).await
        });
        match tokio::time::timeout_at(deadline, query).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(lost)) => Err(QueryError::Failed(lost.to_string())),
            Err(_) => Err(QueryError::Limit(format!(
                "the query took longer than {time:?} (`[limits] sql_time`); narrow it by event_time"
            ))),
        }
    }
}

impl Planner {
    fn environment(&self, memory_pool: Arc<dyn MemoryPool>) -> Arc<RuntimeEnv> {
        let of_all = self.base.runtime_env().as_ref().clone();
        Arc::new(RuntimeEnv {
            memory_pool,
            ..of_all
        })
    }

    async fn answer(
        &self,
        sql: &str,
        handles: &Handles,
        now: Micros,
        own: &Own,
    ) -> Result<SqlAnswer, QueryError> {
        let scope = &own.scope;
        let open = self.open_rows(sql, handles, &own.environment).await?;
        let (context, checkpoints) = self.session(handles, &open)?;
        let mut rows = BATCH_ROWS;
        loop {
            scope.begin();
            let plan = frame(&context, sql)
                .await
                .map_err(|e| run_error(&e, self.limits))?;
            let as_of = self.as_of(&plan, &checkpoints, handles, now);
            match self.collect(&context, plan, rows, own).await {
                // Fewer rows at once take less memory, and longer.
                Err(_) if scope.take_wide() && rows > 1 => rows = (rows / WIDE_FACTOR).max(1),
                Err(error) => return Err(error),
                Ok((schema, batches, held)) => {
                    return Ok(SqlAnswer {
                        schema,
                        batches,
                        as_of,
                        _held: Arc::new(held),
                    });
                }
            }
        }
    }

    /// What is open in the windows and sessions that a query reads. Their tables are waited for up
    /// to there, for a moment, so that what has been closed since is not missed.
    async fn open_rows(
        &self,
        sql: &str,
        handles: &Handles,
        environment: &RuntimeEnv,
    ) -> Result<BTreeMap<String, Open>, QueryError> {
        let mut open = BTreeMap::new();
        // What cannot be parsed is told by the planner.
        let Ok(statement) = dialect::parse(&self.base, sql) else {
            return Ok(open);
        };
        for reference in self
            .base
            .resolve_table_references(&statement)
            .unwrap_or_default()
        {
            let Some(table) = open_table(handles, reference.schema(), reference.table()) else {
                continue;
            };
            let progress = handles.progress.clone();
            let name = table.spec.name.clone();
            let rows = tokio::task::spawn_blocking(move || progress.open_rows(&name)).await;
            let rows = rows
                .map_err(|e| QueryError::Failed(e.to_string()))?
                .map_err(QueryError::Failed)?;
            let Some((lsn, rows)) = rows else { continue };
            let deadline = tokio::time::Instant::now() + OPEN_WAIT;
            while table.applied() < lsn && tokio::time::Instant::now() < deadline {
                tokio::time::sleep(OPEN_POLL).await;
            }
            let rows = Open::new(lsn, rows, &environment.memory_pool)
                .map_err(|e| run_error(&e, self.limits))?;
            open.insert(table.spec.name.clone(), rows);
        }
        Ok(open)
    }

    /// A session whose tables are snapshots taken now, and the LSN that each one reaches.
    fn session(
        &self,
        handles: &Handles,
        open: &BTreeMap<String, Open>,
    ) -> Result<(SessionContext, Vec<(String, Lsn)>), QueryError> {
        let failed = |e: DataFusionError| QueryError::Failed(explain(&e));
        let mut checkpoints = Vec::new();
        let mut schemas: BTreeMap<String, MemorySchemaProvider> = BTreeMap::new();
        let mut register = |name: &str, provider: Arc<dyn TableProvider>| {
            let (schema, table) = name.split_once('.').unwrap_or(("main", name));
            schemas
                .entry(schema.to_owned())
                .or_default()
                .register_table(table.to_owned(), provider)
        };
        for (name, table) in &handles.tables {
            let state = table.snapshot();
            checkpoints.push((name.clone(), state.applied));
            let applied = state.applied;
            let stored: Arc<dyn TableProvider> = match table.spec.layout {
                Layout::Buckets => Arc::new(EntitySnapshot::of(table, state)),
                _ => Arc::new(LakeSnapshot::of(table, state)),
            };
            let retried = handles.progress.retried();
            let window = handles
                .catalog
                .windows
                .iter()
                .find(|w| versions_of(&w.name) == *name);
            let open = open.get(name).filter(|open| open.lsn <= applied);
            if let Some(window) = window {
                let latest =
                    derived_tables::window(window, table, stored.clone(), open).map_err(failed)?;
                register(&window.name, latest).map_err(failed)?;
                checkpoints.push((window.name.clone(), open.map_or(applied, |open| open.lsn)));
                register(name, stored).map_err(failed)?;
            } else if name.ends_with(".sessions") {
                register(
                    name,
                    derived_tables::sessions(table, stored, open).map_err(failed)?,
                )
                .map_err(failed)?;
            } else if table.spec.layout == Layout::Buckets {
                register(name, derived_tables::entity(table, stored).map_err(failed)?)
                    .map_err(failed)?;
            } else if table.spec.feed == RowOrigin::DeadLetters && !retried.is_empty() {
                register(
                    name,
                    system::with_retried(name, stored, &retried).map_err(failed)?,
                )
                .map_err(failed)?;
            } else {
                register(name, stored).map_err(failed)?;
            }
        }
        for name in system::TABLES {
            register(&format!("weir.{name}"), system::table(name, handles)?).map_err(failed)?;
        }
        schemas.entry("main".into()).or_default();
        let catalog = MemoryCatalogProvider::new();
        for (name, schema) in schemas {
            catalog
                .register_schema(&name, Arc::new(schema))
                .map_err(failed)?;
        }
        let catalogs = MemoryCatalogProviderList::new();
        catalogs.register_catalog("weir_lake".into(), Arc::new(catalog));
        let mut state = self.base.clone();
        state.register_catalog_list(Arc::new(catalogs));
        Ok((SessionContext::new_with_state(state), checkpoints))
    }

    fn as_of(
        &self,
        plan: &LogicalPlan,
        checkpoints: &[(String, Lsn)],
        handles: &Handles,
        now: Micros,
    ) -> AsOf {
        let mut read = BTreeSet::new();
        let _ = plan.apply_with_subqueries(|node| {
            if let LogicalPlan::TableScan(scan) = node {
                read.insert(match scan.table_name.schema() {
                    Some(schema) if schema != "main" => {
                        format!("{schema}.{}", scan.table_name.table())
                    }
                    _ => scan.table_name.table().to_owned(),
                });
            }
            Ok(TreeNodeRecursion::Continue)
        });
        let lsn = checkpoints
            .iter()
            .filter(|(name, _)| read.contains(name))
            .map(|(_, lsn)| *lsn)
            .min();
        let mut streams: Vec<String> = read
            .iter()
            .filter_map(|table| handles.stream_of(table))
            .collect();
        streams.dedup();
        if streams.is_empty() {
            streams = handles.catalog.streams.keys().cloned().collect();
        }
        let lsn = lsn.unwrap_or_else(|| handles.progress.synced_lsn());
        let stored = |table: &String| match handles.catalog.window(table) {
            Some(window) => versions_of(&window.name),
            None => table.clone(),
        };
        let views: Vec<String> = read
            .iter()
            .map(|table| checkpoints::table(&stored(table)))
            .collect();
        handles.progress.as_of(lsn, &streams, &views, now)
    }

    /// Plans further and runs, with so many rows at once at most.
    async fn collect(
        &self,
        context: &SessionContext,
        plan: LogicalPlan,
        rows: usize,
        own: &Own,
    ) -> Result<(SchemaRef, Vec<RecordBatch>, MemoryReservation), QueryError> {
        let limits = self.limits;
        let failed = |e: DataFusionError| run_error(&e, limits);
        let mut state = context.state();
        let plan = state.optimize(&plan).map_err(failed)?;
        // `arrow_cast` has become a cast by now.
        bounds::plan::check_casts(&plan).map_err(failed)?;
        let literals = bounds::plan::literal_bytes(&plan);
        own.scope.set_planned(literals);
        // A literal may be written out for each row of a batch.
        let rows = rows.min(LITERAL_BATCH_BYTES / literals.max(1)).max(1);
        *state.config_mut() = state.config().clone().with_batch_size(rows);
        let plan = guarded::stoppable(plan).map_err(failed)?;
        let plan = state
            .query_planner()
            .create_physical_plan(&plan, &state)
            .await
            .map_err(failed)?;
        let plan = pieces::in_pieces(plan).map_err(failed)?;
        let task = TaskContext::from(&state).with_runtime(own.environment.clone());
        let mut stream = execute_stream(plan, Arc::new(task)).map_err(failed)?;
        let schema = stream.schema();
        let held = MemoryConsumer::new("result").register(&own.environment.memory_pool);
        let (mut rows, mut bytes, mut batches) = (0, 0, Vec::new());
        while let Some(batch) = stream.try_next().await.map_err(failed)? {
            rows += batch.num_rows();
            bytes += value_bytes(&batch);
            if rows > limits.rows {
                let limit = format!(
                    "the result has more than {} rows (`[limits] sql_rows`); aggregate, or add a limit",
                    limits.rows
                );
                return Err(QueryError::Limit(limit));
            }
            if bytes > limits.bytes {
                let limit = format!(
                    "the result has more than {} bytes (`[limits] sql_result`); select fewer columns or rows",
                    limits.bytes
                );
                return Err(QueryError::Limit(limit));
            }
            held.try_grow(pieces::bytes(&batch)).map_err(failed)?;
            batch
                .columns()
                .iter()
                .try_for_each(local::check)
                .map_err(QueryError::Invalid)?;
            if batch.num_rows() > 0 {
                batches.push(batch);
            }
        }
        let (schema, batches) = names::unique(schema, batches);
        Ok((schema, batches, held))
    }
}

/// Plans a query that reads. Of columns with one name, which the planner refuses, those behind the
/// first get another.
async fn frame(context: &SessionContext, sql: &str) -> Result<LogicalPlan, DataFusionError> {
    let options = SQLOptions::new()
        .with_allow_ddl(false)
        .with_allow_dml(false)
        .with_allow_statements(false);
    let state = context.state();
    let statement = dialect::parse(&state, sql)?;
    let plan = match state.statement_to_plan(statement.clone()).await {
        Ok(plan) => plan,
        Err(error) => match names::distinct(&statement) {
            Some(distinct) => state.statement_to_plan(distinct).await.map_err(|_| error)?,
            None => return Err(error),
        },
    };
    bounds::plan::check(&plan)?;
    let plan = functions::showable(plan)?;
    options.verify_plan(&plan)?;
    Ok(plan)
}

/// The lake table behind a name whose rows may be open still.
fn open_table<'a>(
    handles: &'a Handles,
    schema: Option<&str>,
    table: &str,
) -> Option<&'a Arc<LakeTable>> {
    match schema {
        None | Some("main") => handles
            .catalog
            .window(table)
            .and_then(|w| handles.tables.get(&versions_of(&w.name))),
        Some(schema) if table == "sessions" => handles.tables.get(&format!("{schema}.{table}")),
        Some(_) => None,
    }
}

fn run_error(error: &DataFusionError, limits: SqlLimits) -> QueryError {
    if let Some(damage) = damage_in(&error.to_string()) {
        return QueryError::Failed(damage.to_owned());
    }
    if let Some(exceeded) = bounds::exceeded(error) {
        return QueryError::Limit(exceeded.to_string());
    }
    match error.find_root() {
        DataFusionError::ResourcesExhausted(why) => QueryError::Limit(format!(
            "the query needs more memory than queries have together ({} bytes, a share of `[limits] memory`): {why}",
            limits.memory
        )),
        DataFusionError::ParquetError(_)
        | DataFusionError::ObjectStore(_)
        | DataFusionError::IoError(_) => QueryError::Failed(explain(error)),
        _ => QueryError::Invalid(explain(error)),
    }
}

fn environment(
    lake: &Path,
    spill: &Path,
    memory: usize,
) -> Result<Arc<RuntimeEnv>, DataFusionError> {
    // A folder that takes no writes, or is full, can be read all the same: only what does not fit
    // in memory fails.
    let disk = match create_folders(spill) {
        Ok(()) => DiskManagerMode::Directories(vec![spill.to_owned()]),
        Err(error) => {
            tracing::debug!(path = %spill.display(), %error, "queries keep everything in memory");
            DiskManagerMode::Disabled
        }
    };
    // The registry comes with the whole file system in it: closed, so that no query reaches a file
    // of its own choice.
    let registry = DefaultObjectStoreRegistry::new();
    registry.deregister_store(ObjectStoreUrl::local_filesystem().as_ref())?;
    let consumers = NonZeroUsize::new(5).expect("five");
    let environment = RuntimeEnvBuilder::new()
        .with_object_store_registry(Arc::new(registry))
        .with_memory_pool(Arc::new(TrackConsumersPool::new(
            FairSpillPool::new(memory),
            consumers,
        )))
        .with_disk_manager_builder(
            DiskManagerBuilder::default()
                .with_mode(disk)
                .with_max_temp_directory_size(MAX_SPILL_BYTES),
        )
        .build_arc()?;
    environment.register_object_store(
        lake_url().as_ref(),
        Arc::new(LocalFileSystem::new_with_prefix(lake)?),
    );
    Ok(environment)
}
