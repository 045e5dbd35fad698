//! An entity table for SQL: the newest row of each key from leaves, levels and memory, leaf by leaf.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::concat_batches;
use arrow::datatypes::{Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Column, ScalarValue, project_schema};
use datafusion::error::Result;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Expr, Operator, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use tokio::sync::mpsc::Sender;

use super::leaves::{Leaf, RowsByPlace, leaves, newest_of, places, reached};
use super::levels::Level;
use crate::schema::entity::ENTITY_COLUMNS;
use crate::views::lake::files::read;
use crate::views::lake::provider::LakeSnapshot;
use crate::views::lake::table::TableState;
use crate::views::lake::{LakeTable, TableSpec};

/// An entity table at one moment.
#[derive(Debug)]
pub struct EntitySnapshot {
    spec: TableSpec,
    state: TableState,
    /// As its files are.
    stored: LakeSnapshot,
}

impl EntitySnapshot {
    /// A state of the same table that was taken before.
    pub fn from_state(table: &LakeTable, state: TableState) -> Self {
        let stored = LakeSnapshot::from_state(table, state.clone());
        Self {
            spec: table.spec.clone(),
            state,
            stored,
        }
    }

    /// The leaves that may have a row for which all filters are true.
    fn leaves(&self, filters: &[Expr]) -> Vec<Leaf> {
        let mut leaves = leaves(&self.state.files);
        if let Some(key) = key_of(&self.spec, filters) {
            let place = places(&self.spec, &key)[0];
            let own = reached(&leaves, &(place..=place));
            leaves = leaves.drain(own).collect();
        }
        leaves
    }
}

/// The key that filters restrict the query to, if it is one: as a row without other columns.
fn key_of(spec: &TableSpec, filters: &[Expr]) -> Option<RecordBatch> {
    let mut columns = spec
        .schema
        .fields()
        .iter()
        .map(|f| new_null_array(f.data_type(), 1))
        .collect::<Vec<_>>();
    let equal = |filter: &Expr| -> Option<(String, ScalarValue)> {
        let Expr::BinaryExpr(both) = filter else {
            return None;
        };
        if both.op != Operator::Eq {
            return None;
        }
        match (both.left.as_ref(), both.right.as_ref()) {
            (Expr::Column(Column { name, .. }), Expr::Literal(value, _))
            | (Expr::Literal(value, _), Expr::Column(Column { name, .. })) => {
                Some((name.clone(), value.clone()))
            }
            _ => None,
        }
    };
    let asked: Vec<(String, ScalarValue)> = filters
        .iter()
        .flat_map(|filter| split_conjunction(filter))
        .filter_map(equal)
        .collect();
    for key in &spec.keys {
        let field = spec.schema.field(*key);
        let (_, value) = asked.iter().find(|(name, _)| name == field.name())?;
        if value.is_null() || value.data_type() != *field.data_type() {
            return None;
        }
        columns[*key] = value.to_array().ok()?;
    }
    RecordBatch::try_new(spec.schema.clone(), columns).ok()
}

#[async_trait]
impl TableProvider for EntitySnapshot {
    fn schema(&self) -> SchemaRef {
        self.spec.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let columns: Vec<usize> = projection
            .cloned()
            .unwrap_or_else(|| (0..self.spec.schema.fields().len()).collect());
        let leaves = self.leaves(filters);
        if self.state.levels.is_empty() && self.state.unflushed.recent.is_empty() {
            let files = leaves.into_iter().flat_map(|leaf| leaf.files).collect();
            return self
                .stored
                .with_files(files)
                .scan(state, Some(&columns), filters, limit)
                .await;
        }
        let unflushed = self
            .state
            .unflushed
            .recent
            .iter()
            .map(|part| part.batch(&self.spec.schema));
        let unflushed = unflushed.collect::<Result<Vec<_>, _>>()?;
        let schema = project_schema(&self.spec.schema, Some(&columns))?;
        let read = Arc::new(LeafReader::new(
            &self.spec,
            &columns,
            self.state.levels.to_vec(),
            &unflushed,
            schema.clone(),
        )?);
        let part = |leaves| {
            Arc::new(LeafPartition {
                read: read.clone(),
                leaves,
            }) as Arc<dyn PartitionStream>
        };
        let parts = share(leaves, state.config().target_partitions())
            .into_iter()
            .map(part)
            .collect();
        Ok(Arc::new(StreamingTableExec::try_new(
            schema,
            parts,
            None,
            [],
            false,
            limit,
        )?))
    }
}

/// Splits leaves into so many parts, of approximately as many rows each.
fn share(leaves: Vec<Leaf>, parts: usize) -> Vec<Vec<Leaf>> {
    let each = leaves.iter().map(Leaf::rows).sum::<u64>() / parts.max(1) as u64;
    let mut shared: Vec<Vec<Leaf>> = vec![Vec::new()];
    let mut rows = 0;
    for leaf in leaves {
        if rows > each && shared.len() < parts {
            shared.push(Vec::new());
            rows = 0;
        }
        rows += leaf.rows();
        shared.last_mut().expect("never empty").push(leaf);
    }
    shared
}

/// Reads leaves.
#[derive(Debug)]
struct LeafReader {
    /// Only with the columns that are read: Weir's own, the keys, and those of the query.
    spec: TableSpec,
    levels: Vec<Level>,
    unflushed: RowsByPlace,
    /// The query's columns, by their indexes among those read.
    columns: Vec<usize>,
    schema: SchemaRef,
}

impl LeafReader {
    fn new(
        spec: &TableSpec,
        columns: &[usize],
        levels: Vec<Level>,
        unflushed: &[RecordBatch],
        schema: SchemaRef,
    ) -> Result<Self> {
        let wanted = (0..ENTITY_COLUMNS.len())
            .chain(spec.keys.iter().copied())
            .chain(columns.iter().copied());
        let wanted: Vec<usize> = wanted.collect::<BTreeSet<_>>().into_iter().collect();
        let at = |column: &usize| {
            wanted
                .binary_search(column)
                .expect("it is among those wanted")
        };
        let own: Schema = spec.schema.project(&wanted)?;
        let unflushed = unflushed
            .iter()
            .map(|batch| batch.project(&wanted))
            .collect::<Result<Vec<_>, _>>()?;
        let keys = spec.keys.iter().map(at).collect();
        let columns = columns.iter().map(at).collect();
        let spec = TableSpec {
            schema: Arc::new(own),
            keys,
            ..spec.clone()
        };
        let unflushed = RowsByPlace::of(&spec, unflushed);
        Ok(Self {
            spec,
            levels,
            unflushed,
            columns,
            schema,
        })
    }

    /// The newest row of each key of a leaf, in the columns asked for.
    fn rows(&self, leaf: &Leaf, memory: &MemoryReservation) -> Result<RecordBatch> {
        let levels: Vec<Level> = self
            .levels
            .iter()
            .filter(|l| l.reaches(&leaf.places))
            .cloned()
            .collect();
        let is_alone = levels.is_empty() && self.unflushed.count(&leaf.places) == 0;
        let rows = if is_alone && self.columns.is_empty() {
            return self.counted(leaf.rows() as usize);
        } else if is_alone {
            let parts = leaf.files.iter().map(|file| read(&self.spec, file));
            let parts = parts.collect::<Result<Vec<_>, _>>()?.concat();
            concat_batches(&self.spec.schema, &parts)?
        } else {
            newest_of(
                &self.spec,
                &leaf.files,
                &levels,
                &self.unflushed,
                &leaf.places,
            )?
        };
        memory.try_grow(rows.get_array_memory_size())?;
        if self.columns.is_empty() {
            return self.counted(rows.num_rows());
        }
        Ok(RecordBatch::try_new(
            self.schema.clone(),
            self.columns
                .iter()
                .map(|c| rows.column(*c).clone())
                .collect(),
        )?)
    }

    /// Rows without columns.
    fn counted(&self, rows: usize) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(
            self.schema.clone(),
            Vec::new(),
            &options,
        )?)
    }
}

/// Some leaves of a query.
#[derive(Debug)]
struct LeafPartition {
    read: Arc<LeafReader>,
    leaves: Vec<Leaf>,
}

impl LeafPartition {
    /// Sends all rows, or an error, until the receiver is dropped.
    fn send(self, context: &TaskContext, to: &Sender<Result<RecordBatch>>) {
        let memory = MemoryConsumer::new("entities").register(context.memory_pool());
        let most = context.session_config().batch_size();
        for leaf in &self.leaves {
            let rows = match self.read.rows(leaf, &memory) {
                Ok(rows) => rows,
                Err(error) => return drop(to.blocking_send(Err(error))),
            };
            for at in (0..rows.num_rows()).step_by(most) {
                if to
                    .blocking_send(Ok(rows.slice(at, most.min(rows.num_rows() - at))))
                    .is_err()
                {
                    return;
                }
            }
            drop(rows);
            memory.free();
        }
    }
}

impl PartitionStream for LeafPartition {
    fn schema(&self) -> &SchemaRef {
        &self.read.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut stream = RecordBatchReceiverStream::builder(self.read.schema.clone(), 1);
        let (to, part) = (
            stream.tx(),
            Self {
                read: self.read.clone(),
                leaves: self.leaves.clone(),
            },
        );
        stream.spawn_blocking(move || {
            part.send(&context, &to);
            Ok(())
        });
        stream.build()
    }
}
