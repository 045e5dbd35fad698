//! A snapshot of a lake table as SQL sees it: files and unflushed rows of one moment, pruned by
//! partition, time and LSN.

use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DFSchema, ScalarValue, project_schema};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::memory::{DataSourceExec, MemorySourceConfig};
use datafusion::datasource::physical_plan::{
    FileGroup, FileScanConfigBuilder, ParquetFileReaderFactory, ParquetSource,
};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::error::Result;
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType, col, lit};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::filter::FilterExecBuilder;
use datafusion::physical_plan::union::UnionExec;
use datafusion::prelude::SessionContext;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;

use super::checked::{CheckedFile, CheckedReaders};
use super::files::{FileEntry, partition_values};
use super::footers::{FooterReaders, Footers};
use super::pruned::{MAX_SCANNED, TooManyFiles, prune, statistics};
use super::table::TableState;
use super::{LakeTable, PerClass, TableSpec, unflushed_batches};
use crate::schema::select::session_config;

/// Up to so many files of a scan carry their own bounds.
const MAX_WITH_BOUNDS: usize = 2_000;

/// The private URL under which the lake's folder is registered with a session.
pub fn lake_url() -> ObjectStoreUrl {
    ObjectStoreUrl::parse("weir-lake://files").expect("a constant")
}

/// A table at one moment.
#[derive(Debug)]
pub struct LakeSnapshot {
    spec: TableSpec,
    schema: TableSchema,
    state: TableState,
}

impl LakeSnapshot {
    /// A state of the same table that was taken before.
    pub fn from_state(table: &LakeTable, state: TableState) -> Self {
        let partition = table.full_schema.fields()[table.spec.schema.fields().len()..].to_vec();
        let schema = TableSchema::builder(table.spec.schema.clone())
            .with_table_partition_cols(partition)
            .build();
        Self {
            spec: table.spec.clone(),
            schema,
            state,
        }
    }

    /// The same table with some of its files only, and nothing in memory.
    pub(super) fn with_files(&self, files: Vec<FileEntry>) -> Self {
        let mut state = self.state.clone();
        state.files = Arc::new(files);
        state.unflushed = PerClass::default();
        Self {
            spec: self.spec.clone(),
            schema: self.schema.clone(),
            state,
        }
    }

    fn file(&self, file: &FileEntry) -> PartitionedFile {
        let values = partition_values(file.bucket, self.spec.layout)
            .into_iter()
            .map(|(_, v)| ScalarValue::Int32(Some(v)));
        PartitionedFile::new(format!("{}/{}", self.spec.name, file.path), file.bytes)
            .with_partition_values(values.collect())
            .with_extension(CheckedFile::new(&self.spec, file))
    }

    fn file_scan(
        &self,
        state: &dyn Session,
        files: &[&FileEntry],
        projection: Option<&Vec<usize>>,
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = self.schema.table_schema();
        let merged = statistics(&self.spec, schema, files.iter().copied());
        if files.len() > MAX_SCANNED {
            let merged = merged.project(projection);
            let schema = project_schema(schema, projection)?;
            return Ok(Arc::new(TooManyFiles::new(
                &self.spec.name,
                files.len(),
                schema,
                merged,
            )));
        }
        let readers: Arc<dyn ParquetFileReaderFactory> =
            match state.config().get_extension::<Footers>() {
                Some(footers) => Arc::new(FooterReaders(footers)),
                None => Arc::new(CheckedReaders(
                    state.runtime_env().object_store(lake_url())?,
                )),
            };
        let source = ParquetSource::new(self.schema.clone())
            .with_table_parquet_options(state.default_table_options().parquet)
            .with_parquet_file_reader_factory(readers);
        // With their own bounds a scan skips files while it runs.
        let with_bounds = |file: &&FileEntry| {
            let known = Arc::new(statistics(&self.spec, &self.spec.schema, [*file]));
            self.file(file).with_statistics(known)
        };
        let files = if files.len() > MAX_WITH_BOUNDS {
            files.iter().map(|file| self.file(file)).collect()
        } else {
            files.iter().map(with_bounds).collect()
        };
        let groups: Vec<FileGroup> =
            FileGroup::new(files).split_files(state.config().target_partitions());
        let scan = FileScanConfigBuilder::new(lake_url(), Arc::new(source))
            .with_file_groups(groups)
            .with_statistics(merged)
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(scan))
    }
}

#[async_trait]
impl TableProvider for LakeSnapshot {
    fn schema(&self) -> SchemaRef {
        self.schema.table_schema().clone()
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
        let schema = self.schema();
        let Some(floor) = self.state.floor() else {
            return self.scan_all(state, projection, filters, limit);
        };
        // Rows below the retention floor are hidden at once; their files are removed later.
        let name = schema.field(self.spec.time_column).name();
        let above = col(name.as_str()).gt_eq(lit(ScalarValue::TimestampMicrosecond(
            Some(floor),
            Some("UTC".into()),
        )));
        let mut columns: Vec<usize> = projection
            .cloned()
            .unwrap_or_else(|| (0..schema.fields().len()).collect());
        let wanted: Vec<usize> = (0..columns.len()).collect();
        if !columns.contains(&self.spec.time_column) {
            columns.push(self.spec.time_column);
        }
        let mut filters = filters.to_vec();
        filters.push(above.clone());
        let scan = self.scan_all(state, Some(&columns), &filters, None)?;
        let scanned = DFSchema::try_from(scan.schema())?;
        let filter = FilterExecBuilder::new(state.create_physical_expr(above, &scanned)?, scan);
        let is_whole = wanted.len() == columns.len();
        Ok(Arc::new(
            filter
                .apply_projection((!is_whole).then_some(wanted))?
                .build()?,
        ))
    }
}

impl LakeSnapshot {
    fn scan_all(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = self.schema();
        // Unflushed rows lack the partition columns; they are derived only where a query needs them.
        let own = self.spec.schema.fields().len();
        let is_narrow = projection.is_some_and(|columns| columns.iter().all(|c| *c < own));
        let unflushed_schema = if is_narrow {
            &self.spec.schema
        } else {
            &schema
        };
        let mut inputs: Vec<Arc<dyn ExecutionPlan>> = Vec::new();
        let files = prune(&self.spec, &self.state.files, state, filters, &schema)?;
        if !files.is_empty() {
            inputs.push(self.file_scan(state, &files, projection, limit)?);
        }
        for parts in self.state.unflushed.iter() {
            if parts.is_empty() {
                continue;
            }
            let batches = unflushed_batches(&self.spec, unflushed_schema, parts)?;
            let source = MemorySourceConfig::try_new(
                &[batches],
                unflushed_schema.clone(),
                projection.cloned(),
            )?
            .with_limit(limit)
            .with_show_sizes(false);
            inputs.push(DataSourceExec::from_data_source(source));
        }
        if inputs.is_empty() {
            return Ok(Arc::new(EmptyExec::new(project_schema(
                &schema, projection,
            )?)));
        }
        UnionExec::try_new(inputs)
    }
}

/// Whether SQL's JSON output must encode columns of this type.
pub fn is_binary(ty: &DataType) -> bool {
    matches!(
        ty,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView
    )
}

/// A scan of whole files, one partition each, in batches of `batch_rows`, in a session with its own
/// memory limit.
pub fn scan_files(
    table: &LakeTable,
    files: &[FileEntry],
    memory: usize,
    batch_rows: usize,
) -> Result<(Arc<dyn ExecutionPlan>, Arc<TaskContext>)> {
    let snapshot = LakeSnapshot::from_state(table, TableState::default());
    let lake = table.spec.root.parent().unwrap_or(&table.spec.root);
    let store: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new_with_prefix(lake)?);
    let readers = Arc::new(CheckedReaders(store.clone()));
    let source =
        ParquetSource::new(snapshot.schema.clone()).with_parquet_file_reader_factory(readers);
    let groups = files
        .iter()
        .map(|f| FileGroup::new(vec![snapshot.file(f)]))
        .collect();
    let columns = (0..table.spec.schema.fields().len()).collect();
    let scan = FileScanConfigBuilder::new(lake_url(), Arc::new(source))
        .with_file_groups(groups)
        .with_projection_indices(Some(columns))?
        .build();
    let environment = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(GreedyMemoryPool::new(memory)))
        .build_arc()?;
    environment.register_object_store(lake_url().as_ref(), store);
    let config = session_config(1).with_batch_size(batch_rows);
    let context = SessionContext::new_with_config_rt(config, environment).task_ctx();
    Ok((DataSourceExec::from_data_source(scan), context))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use arrow::array::Int64Array;
    use datafusion::physical_plan::displayable;

    use super::*;
    use crate::event::MICROS_PER_HOUR;
    use crate::schema::Layout;

    /// A table of one file more than a scan opens; none of them exists.
    fn session() -> SessionContext {
        let spec = TableSpec::raw(Path::new("lake"), Layout::Hours);
        let file = |hour: i64| FileEntry {
            path: format!("{hour}.parquet"),
            rows: 2,
            bucket: hour,
            min_time: hour * MICROS_PER_HOUR,
            max_time: hour * MICROS_PER_HOUR + 1,
            min_lsn: 2 * hour as u64,
            max_lsn: 2 * hour as u64 + 1,
            ..FileEntry::sample()
        };
        let files = Arc::new((0..=MAX_SCANNED as i64).map(file).collect());
        let partition = spec.full_schema().fields()[spec.schema.fields().len()..].to_vec();
        let schema = TableSchema::builder(spec.schema.clone())
            .with_table_partition_cols(partition)
            .build();
        let mut state = TableState::default();
        state.files = files;
        let snapshot = LakeSnapshot {
            spec,
            schema,
            state,
        };
        let context = SessionContext::new_with_config(session_config(1));
        context.register_object_store(lake_url().as_ref(), Arc::new(LocalFileSystem::new()));
        context
            .register_table("raw", Arc::new(snapshot))
            .expect("registered");
        context
    }

    #[tokio::test]
    async fn a_query_that_would_open_too_many_files_is_refused() {
        let context = session();
        let query = |sql: &'static str| async { context.sql(sql).await.expect("planned") };
        let count = query("select count(*) from raw")
            .await
            .collect()
            .await
            .expect("needs no file");
        let count = count[0]
            .column(0)
            .as_any()
            .downcast_ref::<Int64Array>()
            .expect("a number")
            .value(0);
        assert_eq!(count, 2 * (MAX_SCANNED as i64 + 1));
        let error = query("select source from raw where lsn % 2 = 0")
            .await
            .collect()
            .await
            .expect_err("too many");
        let error = error.to_string();
        assert!(
            error.contains("the table raw would be read from 20001 files"),
            "{error}"
        );
        assert!(error.contains("`[lake] partition = \"day\"`"), "{error}");
    }

    #[tokio::test]
    async fn files_are_chosen_by_time_and_record() {
        let context = session();
        for (filter, hours) in [
            (
                "received_at >= '1970-01-05T00:00:00Z' and received_at < '1970-01-05T02:00:00Z'",
                vec![96, 97],
            ),
            ("lsn = 40001", vec![20_000]),
            ("lsn between 0 and 4 and year = 1970", vec![0, 1, 2]),
            (
                "year = 1971 and month = 1 and day = 1 and hour = 3",
                vec![8_763],
            ),
        ] {
            let frame = context
                .sql(&format!("select source from raw where {filter}"))
                .await
                .expect("planned");
            let plan = frame.create_physical_plan().await.expect("planned");
            let plan = displayable(plan.as_ref()).indent(false).to_string();
            for hour in &hours {
                assert!(
                    plan.contains(&format!("raw/{hour}.parquet")),
                    "{filter}: {plan}"
                );
            }
            assert_eq!(
                plan.matches(".parquet").count(),
                hours.len(),
                "{filter}: {plan}"
            );
        }
    }
}
