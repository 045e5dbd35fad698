//! Tables derived from stored ones: windows and sessions with their open rows, windows in their
//! latest version, entity tables with their columns in order.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::catalog::view::ViewTable;
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::common::TableReference;
use datafusion::datasource::provider_as_source;
use datafusion::error::Result;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use datafusion::functions_window::expr_fn::row_number;
use datafusion::logical_expr::{Expr, ExprFunctionExt, LogicalPlanBuilder, ident, lit};

use crate::event::Lsn;
use crate::schema::entity::ENTITY_COLUMNS;
use crate::schema::window::WINDOW_COLUMNS;
use crate::schema::{Late, Window};
use crate::views::lake::LakeTable;

/// Rows of open windows or sessions, which are not stored, as of a record.
pub struct OpenRows {
    /// The record up to which the operators had read.
    pub lsn: Lsn,
    /// None where nothing is open.
    pub rows: Option<RecordBatch>,
    _reservation: MemoryReservation,
}

impl OpenRows {
    /// Reserves the rows' memory, or fails.
    pub fn new(lsn: Lsn, rows: Option<RecordBatch>, pool: &Arc<dyn MemoryPool>) -> Result<Self> {
        let reservation = MemoryConsumer::new("open rows").register(pool);
        reservation.try_grow(rows.as_ref().map_or(0, RecordBatch::get_array_memory_size))?;
        Ok(Self {
            lsn,
            rows,
            _reservation: reservation,
        })
    }
}

/// The stored rows up to the LSN of the open ones, then the open ones, with the table's columns.
fn stored_and_open(
    table: &LakeTable,
    stored: Arc<dyn TableProvider>,
    open: Option<&OpenRows>,
) -> Result<LogicalPlanBuilder> {
    let name = TableReference::bare(table.spec.name.clone());
    let schema: SchemaRef = table.spec.schema.clone();
    let columns = || schema.fields().iter().map(|f| ident(f.name()));
    let mut plan = LogicalPlanBuilder::scan(name, provider_as_source(stored), None)?;
    let Some(open) = open else {
        return plan.project(columns());
    };
    plan = plan
        .filter(ident("lsn").lt_eq(lit(open.lsn as i64)))?
        .project(columns())?;
    let Some(rows) = &open.rows else {
        return Ok(plan);
    };
    let rows = MemTable::try_new(schema.clone(), vec![vec![rows.clone()]])?;
    let rows =
        LogicalPlanBuilder::scan("open", provider_as_source(Arc::new(rows)), None)?.build()?;
    plan.union(rows)
}

/// A window's rows in their latest version, with the open ones, without retracted ones.
pub fn window(
    window: &Window,
    table: &LakeTable,
    stored: Arc<dyn TableProvider>,
    open: Option<&OpenRows>,
) -> Result<Arc<dyn TableProvider>> {
    let mut plan = stored_and_open(table, stored, open)?;
    if window.def.late == Late::Update {
        let identity = window
            .keys
            .iter()
            .map(|c| window.schema.field(*c).name().as_str())
            .chain(["window_start"]);
        let rank = row_number()
            .partition_by(identity.map(ident).collect::<Vec<Expr>>())
            .order_by(vec![
                ident("version").sort(false, false),
                ident("lsn").sort(false, false),
            ])
            .build()?
            .alias("rank_of_version");
        plan = plan
            .window(vec![rank])?
            .filter(ident("rank_of_version").eq(lit(1_u64)))?;
    }
    plan = plan.filter(ident("status").not_eq(lit("retracted")))?;
    let own_columns = window
        .schema
        .fields()
        .iter()
        .skip(WINDOW_COLUMNS.len())
        .map(|f| f.name().as_str());
    let columns = own_columns.chain(["window_start", "window_end", "version", "status", "lsn"]);
    let plan = plan.project(columns.map(ident))?.build()?;
    Ok(Arc::new(ViewTable::new(plan, None)))
}

/// An entity table, its own columns first.
pub fn entity(table: &LakeTable, stored: Arc<dyn TableProvider>) -> Result<Arc<dyn TableProvider>> {
    let schema = &table.spec.schema;
    let own_columns = (ENTITY_COLUMNS.len()..schema.fields().len())
        .map(|column| schema.field(column).name().as_str());
    let plan = stored_and_open(table, stored, None)?
        .project(own_columns.chain(ENTITY_COLUMNS).map(ident))?
        .build()?;
    Ok(Arc::new(ViewTable::new(plan, None)))
}

/// A stream's sessions, with the open ones.
pub fn sessions(
    table: &LakeTable,
    stored: Arc<dyn TableProvider>,
    open: Option<&OpenRows>,
) -> Result<Arc<dyn TableProvider>> {
    let columns = [
        "session_id",
        "key",
        "status",
        "started",
        "ended",
        "duration_s",
        "events",
        "first",
        "last",
        "lsn",
    ];
    let plan = stored_and_open(table, stored, open)?
        .project(columns.map(ident))?
        .build()?;
    Ok(Arc::new(ViewTable::new(plan, None)))
}
