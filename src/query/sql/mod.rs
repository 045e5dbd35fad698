//! SQL over all tables, planned and run by DataFusion: read-only, with limits of memory, time, rows,
//! bytes and concurrent queries.

mod planner;
mod session;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::execution::session_state::SessionStateBuilder;

use super::admission::{AdmissionController, ClientId};
pub use super::encode::to_ndjson;
use super::memory::SharedMemory;
use super::query_threads::{self, QueryThreads};
use super::{AsOf, Handles, QueryError};
use crate::event::Micros;
use crate::schema::select::{session_config, strip_internals};
use crate::schema::{PlanError, bounds, functions};
use crate::storage::damage_in;
use crate::threads::panic_if_asked;
use crate::views::lake::footers::Footers;
use planner::{Planner, QueryContext};

/// Maximum bytes of a query's text.
const MAX_SQL_BYTES: usize = 256 << 10;
/// Internal queries that run at once.
const INTERNAL_CONCURRENT: usize = 8;
/// Bytes of decoded filter columns that a scan's thread caches because the answer needs them too.
const PREDICATE_CACHE_BYTES: usize = 4 << 20;

/// Limits on one query and on all of them together.
#[derive(Debug, Clone, Copy)]
pub struct SqlLimits {
    /// From a query's arrival to its answer, waiting included: `[limits] sql_time`.
    pub time: Duration,
    /// Rows of a result: `[limits] sql_rows`.
    pub rows: usize,
    /// Bytes of a result in memory: `[limits] sql_result`.
    pub bytes: usize,
    /// Queries of clients that run at once: `[limits] sql_concurrent`.
    pub concurrent: usize,
    /// Bytes of all queries together: a share of `[limits] memory`.
    pub memory: usize,
    /// Bytes of the lake's footers that are cached in memory.
    pub footers: usize,
}

/// Plans and runs SQL. Queries of clients and internal ones have separate permits and memory, so
/// that a search never waits for a client's query.
pub struct SqlEngine {
    clients: Lane,
    internal: Lane,
}

struct Lane {
    planner: Planner,
    admission: AdmissionController,
    is_for_clients: bool,
}

/// A finished query.
#[derive(Debug)]
pub struct SqlAnswer {
    /// The columns of [`Self::batches`]; names are unique.
    pub schema: SchemaRef,
    /// The rows, without empty batches.
    pub batches: Vec<RecordBatch>,
    /// The freshness of the tables that the query read; of all streams if it read none.
    pub as_of: AsOf,
    /// The rows' share of the memory of queries.
    _reservation: Arc<MemoryReservation>,
}

impl SqlEngine {
    /// Maximum rows of an answer.
    pub(crate) fn max_rows(&self) -> usize {
        self.clients.planner.limits.rows
    }

    /// An engine over the lake's folder; `spill` is a folder for intermediate results that do not
    /// fit in memory. Fails if the lake's folder cannot be opened.
    pub fn new(lake: &Path, spill: &Path, limits: SqlLimits) -> Result<Self, QueryError> {
        let internal = limits.memory / 3;
        let footers = Arc::new(Footers::new(limits.footers));
        let lane = |memory, concurrent, is_for_clients| {
            let limits = SqlLimits {
                memory,
                concurrent,
                ..limits
            };
            Lane::new(lake, spill, limits, is_for_clients, footers.clone())
                .map_err(|e| QueryError::Failed(strip_internals(&e)))
        };
        Ok(Self {
            clients: lane(limits.memory - internal, limits.concurrent, true)?,
            internal: lane(internal, INTERNAL_CONCURRENT, false)?,
        })
    }

    /// Bytes that running queries have reserved.
    pub(crate) fn memory_in_use(&self) -> usize {
        [&self.clients, &self.internal]
            .map(|lane| lane.planner.base.runtime_env().memory_pool.reserved())
            .iter()
            .sum()
    }

    /// Runs a client's query on a snapshot taken now, once it is admitted. `now` is µs since 1970.
    pub(crate) async fn run_for_client(
        &self,
        client: ClientId,
        sql: &str,
        handles: &Handles,
        now: Micros,
    ) -> Result<SqlAnswer, QueryError> {
        self.clients.run(client, sql, handles, now).await
    }

    /// Runs an internal query, which is part of another answer. `now` is µs since 1970. The error
    /// says whether the query, a limit or a file is to blame.
    pub async fn run(
        &self,
        sql: &str,
        handles: &Handles,
        now: Micros,
    ) -> Result<SqlAnswer, QueryError> {
        self.internal
            .run(ClientId::default(), sql, handles, now)
            .await
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
        let environment = session::environment(lake, spill, limits.memory)?;
        let mut config = session_config(query_threads::THREADS)
            .with_default_catalog_and_schema("weir_lake", "main")
            .with_create_default_catalog_and_schema(false)
            .with_sort_spill_reservation_bytes(1 << 20)
            .with_extension(footers);
        // Filters select rows before the columns that they do not read are decoded.
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
            admission: AdmissionController::new(limits.concurrent),
            is_for_clients,
        })
    }

    async fn run(
        &self,
        client: ClientId,
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
        let permit = tokio::time::timeout_at(deadline, self.admission.acquire(client)).await;
        let Ok(Ok(permit)) = permit else {
            return Err(QueryError::Busy {
                running: concurrent,
            });
        };
        let failed =
            |e: std::io::Error| QueryError::Failed(format!("a thread could not be started: {e}"));
        let memory = self.planner.memory.query();
        // Dropping the threads, as when the client has left, ends the query.
        let threads = QueryThreads::start(permit, &memory, self.is_for_clients).map_err(failed)?;
        let (planner, sql, handles) = (self.planner.clone(), sql.to_owned(), handles.clone());
        let context = QueryContext {
            scope: threads.scope().clone(),
            environment: planner.environment(memory),
        };
        let query = threads.spawn(async move {
            panic_if_asked("sql");
            planner.run(&sql, &handles, now, &context).await
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

/// The error of a query that could not be planned or run, with its location in the text.
fn run_error(error: &DataFusionError, limits: SqlLimits, sql: &str) -> QueryError {
    if let Some(damage) = damage_in(&error.to_string()) {
        return QueryError::Failed(damage.to_owned());
    }
    if let Some(exceeded) = bounds::exceeded(error) {
        return QueryError::Limit(exceeded.to_string());
    }
    match error.find_root() {
        DataFusionError::ResourcesExhausted(why) => QueryError::Limit(format!(
            "the query needs more memory than all queries together may use ({} bytes, a share of `[limits] memory`): {why}",
            limits.memory
        )),
        DataFusionError::ParquetError(_)
        | DataFusionError::ObjectStore(_)
        | DataFusionError::IoError(_) => QueryError::Failed(strip_internals(error)),
        _ => QueryError::Invalid(PlanError::from_planner(error).locate_in(sql).to_string()),
    }
}
