//! Plans and runs one query.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::session_state::SessionState;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::execute_stream;
use datafusion::prelude::{SQLOptions, SessionContext};
use futures::TryStreamExt;

use super::session::session;
use super::{SqlAnswer, SqlLimits, run_error};
use crate::event::{Lsn, Micros};
use crate::ids::{TableId, ViewId};
use crate::query::derived_tables::OpenRows;
use crate::query::encode::value_bytes;
use crate::query::memory::SharedMemory;
use crate::query::{
    AsOf, Handles, QueryError, bounded_input, cancellation, column_names, time_zones,
};
use crate::schema::bounds::scope::Scope;
use crate::schema::{bounds, dialect, functions};
use crate::views::lake::LakeTable;

/// How long a query waits for the rows of windows that have just closed, and how often it polls.
const MAX_OPEN_WAIT: Duration = Duration::from_secs(2);
const OPEN_POLL: Duration = Duration::from_millis(2);
/// Rows of a batch, and the factor by which they are reduced where rows are too wide.
const BATCH_ROWS: usize = 8_192;
const WIDE_FACTOR: usize = 32;
/// Maximum bytes of a query's literals, materialized for each row of a batch.
const LITERAL_BATCH_BYTES: usize = 4 << 20;

#[derive(Clone)]
pub(super) struct Planner {
    pub base: SessionState,
    pub limits: SqlLimits,
    pub memory: Arc<SharedMemory>,
}

/// A running query.
pub(super) struct QueryContext {
    pub scope: Arc<Scope>,
    /// With the query's share of the memory.
    pub environment: Arc<RuntimeEnv>,
}

impl Planner {
    /// The environment of a query, with its share of the memory.
    pub fn environment(&self, memory_pool: Arc<dyn MemoryPool>) -> Arc<RuntimeEnv> {
        let shared = self.base.runtime_env().as_ref().clone();
        Arc::new(RuntimeEnv {
            memory_pool,
            ..shared
        })
    }

    /// Plans and runs a query on a snapshot taken now. If its rows are too wide for the batch size,
    /// it is run again with smaller batches.
    pub async fn run(
        &self,
        sql: &str,
        handles: &Handles,
        now: Micros,
        query: &QueryContext,
    ) -> Result<SqlAnswer, QueryError> {
        let scope = &query.scope;
        let open = self.open_rows(sql, handles, &query.environment).await?;
        let (context, checkpoints) = session(&self.base, handles, &open)?;
        let mut rows = BATCH_ROWS;
        loop {
            scope.begin();
            let plan = logical_plan(&context, sql)
                .await
                .map_err(|e| run_error(&e, self.limits, sql))?;
            let as_of = self.as_of(&plan, &checkpoints, handles, now);
            match self.execute(&context, sql, plan, rows, query).await {
                // Smaller batches take less memory, and longer.
                Err(_) if scope.take_fewer_rows_request() && rows > 1 => {
                    rows = (rows / WIDE_FACTOR).max(1);
                }
                Err(error) => return Err(error),
                Ok((schema, batches, reservation)) => {
                    return Ok(SqlAnswer {
                        schema,
                        batches,
                        as_of,
                        _reservation: Arc::new(reservation),
                    });
                }
            }
        }
    }

    /// The open rows of the windows and sessions that a query reads. Waits for a moment until their
    /// tables have reached the same LSN, so that rows that were just closed are not missed.
    async fn open_rows(
        &self,
        sql: &str,
        handles: &Handles,
        environment: &RuntimeEnv,
    ) -> Result<BTreeMap<TableId, OpenRows>, QueryError> {
        let mut open = BTreeMap::new();
        // The planner reports what cannot be parsed.
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
            let id = table.spec.id.clone();
            let rows = tokio::task::spawn_blocking(move || progress.open_rows(&id)).await;
            let rows = rows.map_err(|e| QueryError::Failed(e.to_string()))??;
            let Some((lsn, rows)) = rows else { continue };
            let deadline = tokio::time::Instant::now() + MAX_OPEN_WAIT;
            while table.applied() < lsn && tokio::time::Instant::now() < deadline {
                tokio::time::sleep(OPEN_POLL).await;
            }
            let rows = OpenRows::new(lsn, rows, &environment.memory_pool)
                .map_err(|e| run_error(&e, self.limits, sql))?;
            open.insert(table.spec.id.clone(), rows);
        }
        Ok(open)
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
        let catalog = &handles.catalog;
        // System tables are not in it.
        let tables = read.iter().filter_map(|name| catalog.table_id(name));
        let tables: Vec<TableId> = tables.collect();
        let mut streams: Vec<String> = tables
            .iter()
            .filter_map(|table| catalog.stream_of(table).map(str::to_owned))
            .collect();
        streams.dedup();
        if streams.is_empty() {
            streams = catalog.streams.keys().cloned().collect();
        }
        let lsn = lsn.unwrap_or_else(|| handles.progress.synced_lsn());
        let views: Vec<ViewId> = tables.iter().map(TableId::view).collect();
        handles.progress.as_of(lsn, &streams, &views, now)
    }

    /// Optimizes and runs the plan of a text with at most `rows` rows per batch.
    async fn execute(
        &self,
        context: &SessionContext,
        sql: &str,
        plan: LogicalPlan,
        rows: usize,
        query: &QueryContext,
    ) -> Result<(SchemaRef, Vec<RecordBatch>, MemoryReservation), QueryError> {
        let limits = self.limits;
        let failed = |e: DataFusionError| run_error(&e, limits, sql);
        let mut state = context.state();
        let plan = state.optimize(&plan).map_err(failed)?;
        // `arrow_cast` has become a cast by now.
        bounds::plan::check_casts(&plan).map_err(failed)?;
        let literals = bounds::plan::literal_bytes(&plan);
        query.scope.set_planned(literals);
        // A literal may be written out for each row of a batch.
        let rows = rows.min(LITERAL_BATCH_BYTES / literals.max(1)).max(1);
        *state.config_mut() = state.config().clone().with_batch_size(rows);
        let plan = cancellation::cancellable(plan).map_err(failed)?;
        let plan = state
            .query_planner()
            .create_physical_plan(&plan, &state)
            .await
            .map_err(failed)?;
        let plan = bounded_input::bound_inputs(plan).map_err(failed)?;
        let task = TaskContext::from(&state).with_runtime(query.environment.clone());
        let stream = execute_stream(plan, Arc::new(task)).map_err(failed)?;
        let schema = stream.schema();
        let pool = &query.environment.memory_pool;
        let (batches, reservation) = collect(stream, limits, pool, sql).await?;
        let (schema, batches) = column_names::deduplicate(schema, batches);
        Ok((schema, batches, reservation))
    }
}

/// Collects a result, whose memory is reserved, within the limits of rows and bytes.
async fn collect(
    mut stream: SendableRecordBatchStream,
    limits: SqlLimits,
    pool: &Arc<dyn MemoryPool>,
    sql: &str,
) -> Result<(Vec<RecordBatch>, MemoryReservation), QueryError> {
    let failed = |e: DataFusionError| run_error(&e, limits, sql);
    let reservation = MemoryConsumer::new("result").register(pool);
    let (mut rows, mut bytes, mut batches) = (0, 0, Vec::new());
    while let Some(batch) = stream.try_next().await.map_err(failed)? {
        rows += batch.num_rows();
        bytes += value_bytes(&batch);
        if rows > limits.rows {
            return Err(QueryError::Limit(format!(
                "the result has more than {} rows (`[limits] sql_rows`); aggregate, or add a limit",
                limits.rows
            )));
        }
        if bytes > limits.bytes {
            return Err(QueryError::Limit(format!(
                "the result has more than {} bytes (`[limits] sql_result`); select fewer columns or rows",
                limits.bytes
            )));
        }
        reservation
            .try_grow(bounded_input::row_bytes(&batch))
            .map_err(failed)?;
        batch
            .columns()
            .iter()
            .try_for_each(time_zones::check_displayable)
            .map_err(|e| QueryError::Invalid(e.to_string()))?;
        if batch.num_rows() > 0 {
            batches.push(batch);
        }
    }
    Ok((batches, reservation))
}

/// The logical plan of a read-only query. The planner rejects duplicate column names: a query with
/// some is planned again with unique ones.
async fn logical_plan(context: &SessionContext, sql: &str) -> Result<LogicalPlan, DataFusionError> {
    let options = SQLOptions::new()
        .with_allow_ddl(false)
        .with_allow_dml(false)
        .with_allow_statements(false);
    let state = context.state();
    let statement = dialect::parse(&state, sql)?;
    let plan = match state.statement_to_plan(statement.clone()).await {
        Ok(plan) => plan,
        Err(error) => match column_names::deduplicate_in_sql(&statement) {
            Some(renamed) => state.statement_to_plan(renamed).await.map_err(|_| error)?,
            None => return Err(error),
        },
    };
    bounds::plan::check(&plan)?;
    let plan = functions::as_displayable(plan)?;
    options.verify_plan(&plan)?;
    Ok(plan)
}

/// The lake table of a window or of sessions, whose rows may be open.
fn open_table<'a>(
    handles: &'a Handles,
    schema: Option<&str>,
    table: &str,
) -> Option<&'a Arc<LakeTable>> {
    let id = match schema {
        None | Some("main") => TableId::window(&handles.catalog.window(table)?.name),
        Some(stream) if table == "sessions" => TableId::sessions(stream),
        Some(_) => return None,
    };
    handles.tables.get(&id)
}
